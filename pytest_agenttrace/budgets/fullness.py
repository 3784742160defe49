"""How much of their limits tests have used: in percent for `-v`, and the limits nobody came near. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from pytest_agenttrace.budgets.limits import Use, written
from pytest_agenttrace.tree import printable
from pytest_agenttrace.usage import exact_decimals, format_tokens, format_usd

__all__ = ["percent_lines", "plain_uses", "read_uses", "slack_lines"]

_TESTS, _LIMITS = 20, 4
_NEAR = 50
_ROOM = Decimal("1.25")


def plain_uses(uses: Iterable[Use]) -> list[list[Any]]:
    """Uses as a report carries them, with numbers as text."""
    return [
        [use.node, use.metric, str(use.limit), None if use.used is None else str(use.used), use.source] for use in uses
    ]


def read_uses(told: Iterable[Sequence[Any]]) -> tuple[Use, ...]:
    """What a report carries."""
    return tuple(
        Use(node, metric, _number(metric, limit), None if used is None else _number(metric, used), source)
        for node, metric, limit, used, source in told
    )


def _number(metric: str, text: str) -> int | Decimal:
    return Decimal(text) if metric == "cost" else int(text)


def percent_lines(uses: Mapping[str, Sequence[Use]], *, run: Sequence[Use] = (), every: bool = False) -> Iterator[str]:
    """A line for each test that has limits, the fullest first; `run` are those of the whole run. The first of a test is
    told in its own unit too. `every` tells all of them. A test of which nothing is known has none."""
    known = {test: found for test, found in uses.items() if any(use.used is not None for use in found)}
    rows = [(test, sorted(found, key=_fullest)) for test, found in known.items()]
    rows.sort(key=lambda row: (_fullest(row[1][0]), row[0]))
    shown = rows if every else rows[:_TESTS]
    if not shown and not run:
        return
    yield "budgets, used:"
    width = max((len(name) for name in [*(test for test, _ in shown), *(["whole run"] if run else [])]), default=0)
    if run:
        yield f"  {'whole run'.ljust(width)}  {'  '.join(_percent_of(use, amounts=True) for use in run)}"
    for test, found in shown:
        yield f"  {test.ljust(width)}  {'  '.join(_cells(found, every))}"
    if rest := len(rows) - len(shown):
        yield f"  and {rest} more {'test' if rest == 1 else 'tests'}: -vv lists all"


def _cells(uses: Sequence[Use], every: bool) -> Iterator[str]:
    for number, use in enumerate(uses if every else uses[:_LIMITS]):
        yield f"{printable(use.node or 'run')} {_percent_of(use, amounts=every or number == 0)}"
    if not every and len(uses) > _LIMITS:
        yield f"+{len(uses) - _LIMITS} more"


def _fullest(use: Use) -> tuple[bool, Decimal, str, str]:
    """The order of uses: by the part that is used, unknown ones last; a limit of zero is full."""
    if use.used is None:
        return True, Decimal(0), use.node or "", use.metric
    with exact_decimals():
        part = Decimal(use.used) / Decimal(use.limit) if use.limit else Decimal(2 if use.used else 1)
        return False, -part, use.node or "", use.metric


def _percent_of(use: Use, *, amounts: bool) -> str:
    if use.used is None:
        return f"{use.metric} - (of {_amount(use.metric, use.limit)})" if amounts else f"{use.metric} -"
    of = f"{_amount(use.metric, use.used)} of {_amount(use.metric, use.limit)}"
    if not use.limit:
        return f"{use.metric} {of}"
    return f"{use.metric} {_percent(use.used, use.limit)}" + (f" ({of})" if amounts else "")


def _percent(used: int | Decimal, limit: int | Decimal) -> str:
    """Whole percent that tell no limit exceeded that is not, nor the other way round."""
    with exact_decimals():
        part = Decimal(used) * 100 / Decimal(limit)
        return f"{part.to_integral_value(ROUND_CEILING if used > limit else ROUND_FLOOR):f}%"


def _amount(metric: str, value: int | Decimal) -> str:
    return format_usd(Decimal(value)) if metric == "cost" else format_tokens(int(value))


def slack_lines(uses: Mapping[str, Sequence[Use]], *, part: str | None = None) -> Iterator[str]:
    """The limits of which no test has used half, each with what was used at most and a limit that would do. `part` says
    why not all tests were run."""
    limits: dict[tuple[str, str | None, str], list[Use]] = {}
    for found in uses.values():
        for use in found:
            limits.setdefault((use.source, use.node, use.metric), []).append(use)
    slack: list[str] = []
    unknown = 0
    for held in limits.values():
        known = [use.used for use in held if use.used is not None]
        if len(known) < len(held):
            unknown += 1
        elif (line := _slack(held[0], max(known))) is not None:
            slack.append(line)
    of = "" if part is None else f" ({part}: other tests may use more)"
    yield f"limits of which no test has used half: {len(slack) or 'none'}{of}"
    yield from (f"  {line}" for line in sorted(slack))
    if unknown:
        limits_are = "1 limit is" if unknown == 1 else f"{unknown} limits are"
        yield f"  {limits_are} left out: a test failed or was skipped, or its numbers are not known"


def _slack(use: Use, most: int | Decimal) -> str | None:
    with exact_decimals():
        near = Decimal(most) * 100 >= Decimal(use.limit) * _NEAR
    if near:
        return None
    tight = written(None, use.metric, _tightened(use.metric, most))
    return f"{use.source}: at most {_amount(use.metric, most)} used ({_percent(most, use.limit)}); {tight} would do"


def _tightened(metric: str, most: int | Decimal) -> int | Decimal:
    """A quarter more than was used, in two digits."""
    if not most:
        return Decimal(0) if metric == "cost" else 0
    with exact_decimals():
        wanted = Decimal(most) * _ROOM
        unit = Decimal(1).scaleb(wanted.adjusted() - 1)
        unit = unit if metric == "cost" else max(unit, Decimal(1))
        found = (wanted / unit).to_integral_value(ROUND_CEILING) * unit
    return found if metric == "cost" else int(found)
