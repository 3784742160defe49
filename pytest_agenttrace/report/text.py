"""A verdict as lines of text, for terminals."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_agenttrace.report.cost import cost_change
from pytest_agenttrace.report.differences import LEVELS, Difference, Row
from pytest_agenttrace.report.verdict import Verdict, heading
from pytest_agenttrace.report.wording import (
    counted,
    listed,
    percent,
    plain_text,
    signed_tokens,
    signed_usd,
    tokens,
    usd,
)

__all__ = ["as_text", "total_line"]

_NAMES, _NEWS = 3, 12


def as_text(verdict: Verdict, *, all_names: bool = False) -> list[str]:
    """What stands in the way first, then the differences by level, the sums and the verdict. `all_names` lists every
    test and all news."""
    return [plain_text(line) for line in _lines(verdict, all_names)]


def _lines(verdict: Verdict, all_names: bool) -> Iterator[str]:
    found = verdict.comparison
    yield from found.obstacles
    for level in LEVELS:
        of_it = [difference for difference in found.differences if difference.level == level]
        shown = of_it if all_names or level != "informational" else of_it[:_NEWS]
        if of_it:
            yield level
        for difference in shown:
            yield from (f"  {line}" for line in _difference(difference, all_names))
        if len(shown) < len(of_it):
            yield f"  and {len(of_it) - len(shown)} more"
    yield f"{heading(found)}: {total_line(found.total)}"
    yield verdict.text


def _difference(difference: Difference, all_names: bool) -> Iterator[str]:
    tests = difference.tests
    yield difference.text
    yield from (f"  {line}" for line in difference.evidence)
    if len(tests) > 1:
        yield f"  in {counted(len(tests), 'test')}: {listed(tests, len(tests) if all_names else _NAMES)}"
    elif tests:
        yield f"  in {tests[0]}"


def total_line(total: Row) -> str:
    """`5,000 -> 5,200 tokens (+200, +4%), $0.0059 -> $0.00596 (+$0.00006, +1%)`; unknown is `-`."""
    old, new = total.old, total.new
    if old is None or new is None:
        return "-"
    if old == new:
        return f"{tokens(old.tokens)} tokens, {usd(old.cost)}, as before"
    more = None if old.tokens is None or new.tokens is None else new.tokens - old.tokens
    said = _moved(
        tokens(old.tokens), tokens(new.tokens), signed_tokens(more), percent(old.tokens, new.tokens), " tokens"
    )
    dearer = cost_change(total)
    return f"{said}, {_moved(usd(old.cost), usd(new.cost), signed_usd(dearer), percent(old.cost, new.cost))}"


def _moved(old: str, new: str, more: str, share: str, unit: str = "") -> str:
    if old == new:
        return f"{new}{unit}"
    return f"{old} -> {new}{unit} ({more}{f', {share}' if share else ''})"
