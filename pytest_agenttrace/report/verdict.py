"""What a comparison comes to: whether it fails, and in how many words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from pytest_agenttrace.report.differences import LEVELS, Comparison, Level
from pytest_agenttrace.report.wording import counted, listed

__all__ = ["FAIL_ON", "FailOn", "Verdict", "heading", "judge", "read_tolerance"]

FailOn = Literal["breaking", "cost", "request", "informational", "never"]
# `never` forgives differences, not what nobody can vouch for.
FAIL_ON: tuple[FailOn, ...] = (*LEVELS, "never")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A comparison, and whether it `failed`: by an obstacle, or by a difference at or above `fail_on`."""

    fail_on: FailOn
    failed: bool
    text: str
    comparison: Comparison


def judge(found: Comparison, fail_on: FailOn) -> Verdict:
    """The verdict, with its one line: `2 breaking, 1 cost: fails`."""
    at_or_above = found.at_least(fail_on) if fail_on != "never" else ()
    counts = Counter(difference.level for difference in found.differences)
    parts = [f"{counts[level]} {level}" for level in LEVELS if counts[level]]
    said = ", ".join(parts) or "no differences"
    if found.obstacles:
        return Verdict(fail_on, True, f"{said}: fails, nobody can vouch for the new run", found)
    if at_or_above:
        graver = LEVELS[: LEVELS.index(_level(fail_on)) + 1]
        return Verdict(fail_on, True, f"{said}: fails on {' and '.join(_present(graver, counts))}", found)
    return Verdict(fail_on, False, said, found)


def _level(fail_on: FailOn) -> Level:
    return "informational" if fail_on == "never" else fail_on


def _present(levels: tuple[Level, ...], counts: Counter[Level]) -> list[str]:
    return [level for level in levels if counts[level]]


def read_tolerance(text: str) -> Decimal:
    """`10%`, `2.5%`, `0`: percent, not negative. Raises ValueError with the way out."""
    try:
        value = Decimal(text.strip().removesuffix("%").strip())
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0 or value > 1_000_000:
        raise ValueError(f"{text!r} is no tolerance: give percent, such as 10%")
    return value


def heading(found: Comparison) -> str:
    """`12 tests compared, 1 new, 2 vanished`."""
    tests = found.tests
    more = [(tests.new, "new"), (tests.vanished, "vanished"), (tests.not_run, "not run")]
    return listed([f"{counted(tests.compared, 'test')} compared", *(f"{n} {word}" for n, word in more if n)], 4)
