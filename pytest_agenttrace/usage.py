"""Token usage and money: exact numbers that remember what they measure.

Tokens are integers, money is `Decimal` USD, unknown is None and never 0.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from decimal import Context, Decimal, localcontext
from typing import Any, NamedTuple, NoReturn

__all__ = [
    "Cost",
    "Tokens",
    "TraceTotal",
    "UnknownTokens",
    "Usage",
    "UsageUnknown",
    "exact_decimals",
    "explain_comparison",
    "format_tokens",
    "format_usd",
]


class UsageUnknown(Exception):
    """A number was asked for that nobody reported; names the span or call at fault."""


def exact_decimals() -> AbstractContextManager[Context]:
    """Decimal arithmetic of 100 digits inside the block, whatever few the program's own context rounds to."""
    return localcontext(Context(prec=100))


def format_tokens(value: int) -> str:
    """`3534` -> `'3,534'`."""
    return f"{int(value):,}"


def format_usd(value: Decimal) -> str:
    """Dollars with every digit that matters and none that does not: `'$0.00296'`, `'$1.20'`, `'$0'`."""
    value = Decimal(value)
    if not value.is_finite():
        return f"${value}"
    if value == 0:
        return "$0"
    whole, _, decimals = format(value.copy_abs(), "f").partition(".")
    sign = "-" if value < 0 else ""
    return f"{sign}${int(whole):,}.{decimals.rstrip('0').ljust(2, '0')}"


class Tokens(int):
    """A token count that remembers what it counts (`label`: a node, or the run).

    Equal to, and usable as, the plain integer everywhere; arithmetic gives a plain `int`.
    """

    label: str

    def __new__(cls, value: int, label: str = "run") -> Tokens:
        self = super().__new__(cls, value)
        self.label = label
        return self

    def __getnewargs__(self) -> tuple[int, str]:  # type: ignore[override]  # int's takes one value
        return int(self), self.label


class Cost(Decimal):
    """A cost in USD that remembers what it is the cost of (`label`: a node, or the run).

    Compares with Decimals, ints and floats. Equality is for Decimals: a float that merely prints
    the same is not equal.
    """

    label: str

    def __new__(cls, value: Decimal | int | str, label: str = "run") -> Cost:
        self = super().__new__(cls, value)
        self.label = label
        return self

    def __reduce__(self) -> tuple[type[Cost], tuple[str, str]]:  # type: ignore[override]  # Decimal's takes one value
        return type(self), (str(self), self.label)

    def __copy__(self) -> Cost:
        return self

    def __deepcopy__(self, memo: Any) -> Cost:
        return self


class UnknownTokens:
    """Stands where a token count would, when some part of it was never reported.

    Comparing, adding or converting it raises `UsageUnknown`; it prints as `-`, in every format.
    """

    def __init__(self, label: str, reason: str) -> None:
        self.label = label
        self.reason = reason

    def _refuse(self, *_: object) -> NoReturn:
        raise UsageUnknown(f"{self.label}: tokens unknown: {self.reason}")

    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _refuse
    __divmod__ = __rdivmod__ = __pow__ = __rpow__ = __neg__ = __pos__ = __abs__ = _refuse
    __int__ = __index__ = __float__ = __bool__ = __round__ = __trunc__ = __floor__ = __ceil__ = _refuse
    __eq__ = __ne__ = _refuse
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return "-"

    def __format__(self, spec: str) -> str:
        return "-"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call, or the sum of several, by MLflow's names.

    `input_tokens` holds everything sent (the prompt, with cached and tool-use parts inside it),
    `output_tokens` everything produced (candidates and thoughts). None is unknown, never 0.
    Rule: `usageMetadata` of the Gemini API, see `wire.read_usage`.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    thoughts_tokens: int | None = None
    tool_use_tokens: int | None = None
    # Parts of input and output by modality ("AUDIO", "IMAGE", ...), as the API details them.
    input_modalities: tuple[tuple[str, int], ...] = ()
    cache_modalities: tuple[tuple[str, int], ...] = ()
    output_modalities: tuple[tuple[str, int], ...] = ()

    @property
    def known(self) -> bool:
        return None not in (self.input_tokens, self.output_tokens, self.total_tokens)

    @classmethod
    def sum(cls, parts: Iterable[Usage]) -> Usage:
        """Add usages up. A total with an unknown part is unknown; a detail (cache, thoughts, tool
        use) is the sum of what was reported, unknown only where nobody reported it."""
        usages = list(parts)
        return cls(
            input_tokens=_strict_sum(u.input_tokens for u in usages),
            output_tokens=_strict_sum(u.output_tokens for u in usages),
            total_tokens=_strict_sum(u.total_tokens for u in usages),
            cache_read_input_tokens=_lenient_sum(u.cache_read_input_tokens for u in usages),
            thoughts_tokens=_lenient_sum(u.thoughts_tokens for u in usages),
            tool_use_tokens=_lenient_sum(u.tool_use_tokens for u in usages),
            input_modalities=_sum_modalities(u.input_modalities for u in usages),
            cache_modalities=_sum_modalities(u.cache_modalities for u in usages),
            output_modalities=_sum_modalities(u.output_modalities for u in usages),
        )

    def as_dict(self) -> dict[str, int | None]:
        """The six counts by name, modalities left out."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.name.endswith("modalities")}


class TraceTotal(NamedTuple):
    """What MLflow says that a whole trace has used (`trace.info.token_usage`); None where it says nothing."""

    trace_id: str
    usage: Usage | None


def _strict_sum(values: Iterable[int | None]) -> int | None:
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _lenient_sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _sum_modalities(parts: Iterable[tuple[tuple[str, int], ...]]) -> tuple[tuple[str, int], ...]:
    totals: dict[str, int] = {}
    for part in parts:
        for modality, count in part:
            totals[modality] = totals.get(modality, 0) + count
    return tuple(sorted(totals.items()))


_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def explain_comparison(op: str, left: object, right: object) -> list[str] | None:
    """A comparison with tokens or a cost in it as a person would say it, for pytest's assertion
    message: `research 3,534 tokens < 2,000 (+1,534)`. None where neither side is one of ours.

    The difference is given only for a comparison that failed: pytest also asks about those that held.
    """
    ours = next((side for side in (left, right) if isinstance(side, Tokens | Cost)), None)
    other = right if ours is left else left
    if ours is None or op not in _HOLDS or not isinstance(other, int | float | Decimal) or isinstance(other, bool):
        return None
    lines = [f"{_said(left, ours)} {op} {_said(right, ours)}"]
    if not _HOLDS[op](left, right):
        lines[0] += _difference(ours, other)
        if isinstance(ours, Cost) and isinstance(other, float) and math.isfinite(other):
            meant = Decimal(str(other))
            # 0.3 as a float is a little less than 0.3: the reader sees two equal amounts.
            if op == "==" or _HOLDS[op](*((ours, meant) if ours is left else (meant, ours))):
                lines.append(f"a float is not an amount of money: compare with Decimal('{meant}')")
    return lines


def _said(side: object, ours: Tokens | Cost) -> str:
    if isinstance(side, Tokens):
        return f"{side.label} {format_tokens(side)} tokens"
    if isinstance(side, Cost):
        return f"{side.label} {format_usd(side)}"
    if isinstance(ours, Cost):
        return format_usd(Decimal(str(side)))
    return f"{side:,}"


def _difference(ours: Tokens | Cost, other: float | Decimal) -> str:
    """`" (+$0.00046)"`; nothing where there is none, or none that can be told."""
    exact = Decimal(str(other))
    if not exact.is_finite() or exact == ours:
        return ""
    with exact_decimals():
        difference = Decimal(ours) - exact
    sign = "+" if difference > 0 else ""
    return f" ({sign}{format_usd(difference) if isinstance(ours, Cost) else f'{difference:,f}'})"
