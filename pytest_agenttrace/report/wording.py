"""Words and numbers of differences, the same in text, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

from pytest_agenttrace.usage import exact_decimals, format_tokens, format_usd

__all__ = ["counted", "cut", "listed", "percent", "plain_text", "shown", "signed_tokens", "signed_usd", "tokens", "usd"]


def tokens(value: int | None) -> str:
    """`3,534`; unknown is `-`."""
    return "-" if value is None else format_tokens(value)


def usd(value: Decimal | None) -> str:
    """`$0.00296`; unknown is `-`."""
    return "-" if value is None else format_usd(value)


def signed_tokens(value: int | None) -> str:
    """`+212`, `-3`, `0`; unknown is `-`."""
    return "-" if value is None else f"{'+' if value > 0 else ''}{format_tokens(value)}"


def signed_usd(value: Decimal | None) -> str:
    """`+$0.0003`, `-$0.01`, `$0`; unknown is `-`."""
    return "-" if value is None else f"{'+' if value > 0 else ''}{format_usd(value)}"


def percent(old: int | Decimal | None, new: int | Decimal | None) -> str:
    """`+6%`, `-0.4%`; empty where there is nothing to compare with."""
    if old is None or new is None or old <= 0 or old == new:
        return ""
    with exact_decimals():
        share = (Decimal(new) - Decimal(old)) * 100 / Decimal(old)
        rounded = share.quantize(Decimal("0.1") if abs(share) < 10 else Decimal(1), ROUND_HALF_UP)
    sign = "+" if share > 0 else "-"
    if rounded == 0:
        return f"{sign}<0.1%"
    whole, _, decimal = format(abs(rounded), "f").partition(".")
    return f"{sign}{int(whole):,}{'' if decimal in ('', '0') else f'.{decimal}'}%"


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 test`, `12 tests`."""
    return f"{format_tokens(count)} {one if count == 1 else many or f'{one}s'}"


def listed(names: Sequence[str], most: int) -> str:
    """Names joined, the rest counted."""
    text = ", ".join(names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


def cut(text: str, most: int = 100) -> str:
    """Text on one line, of a length that can be read."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def shown(value: object) -> str:
    """A value of a request as a reader knows it from JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return cut(str(value), 60)


def plain_text(text: str) -> str:
    """Text that stays on its line and can be printed anywhere: no line ends, escapes or lone surrogates."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)
