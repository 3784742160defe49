"""What a difference costs in a month, by the runs that a project says it has a day."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fnmatch import fnmatchcase
from pathlib import Path

from pytest_agenttrace.report.cost import cost_change, tokens_change
from pytest_agenttrace.report.differences import Row
from pytest_agenttrace.usage import exact_decimals

__all__ = ["DAYS", "Monthly", "Traffic", "TrafficError", "monthly", "read_traffic", "traffic_of"]

# The days that a month has here.
DAYS = 30


class TrafficError(ValueError):
    """A table of traffic that cannot be meant; `problems` holds one line for each thing wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Runs a day: of tests by a pattern of their names, the first that fits counts; of all others (None: unknown)."""

    runs_per_day: int | None = None
    tests: tuple[tuple[str, int], ...] = ()

    def stream_of(self, test: str) -> tuple[str | None, int] | None:
        """The workflow a test stands for, by its pattern (None: all others), and its runs a day."""
        for pattern, runs in self.tests:
            if fits(test, pattern):
                return pattern, runs
        return None if self.runs_per_day is None else (None, self.runs_per_day)


def fits(test: str, pattern: str) -> bool:
    """Whether a test's name is meant by a pattern: `*` and `?` stand for anything, brackets for themselves."""
    return fnmatchcase(test, re.sub(r"\[", "[[]", pattern))


@dataclass(frozen=True, slots=True)
class Monthly:
    """A node in one workflow: tokens and USD that an average run uses more, and USD of a month. `tests` many tests are
    what the average is of; `match` is their pattern (None: all others)."""

    node: str
    match: str | None
    runs_per_day: int
    tests: int
    tokens: Decimal | None
    usd: Decimal | None
    usd_per_month: Decimal | None


def read_traffic(table: object) -> Traffic:
    """`[tool.agenttrace.traffic]` as TOML has it. Raises `TrafficError` with all that is wrong."""
    if not isinstance(table, Mapping):
        raise TrafficError([f"traffic: {table!r} is no table"])
    problems = [f"traffic.{key}: unknown, it has runs_per_day and tests" for key in table if key not in _KEYS]
    runs = table.get("runs_per_day")
    if runs is not None:
        problems += _wrong_number("traffic.runs_per_day", runs)
    entries = table.get("tests", [])
    if not isinstance(entries, list):
        problems, entries = [*problems, "traffic.tests: write [[tool.agenttrace.traffic.tests]]"], []
    found: list[tuple[str, int]] = []
    for place, entry in enumerate(entries, 1):
        where = f"traffic.tests, entry {place}"
        wrong = list(_wrong_entry(where, entry))
        problems += wrong
        if not wrong:
            found.append((entry["match"], entry["runs_per_day"]))
    if problems:
        raise TrafficError(problems)
    return Traffic(runs, tuple(found))


_KEYS = ("runs_per_day", "tests")


def _wrong_entry(where: str, entry: object) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield f"{where}: {entry!r} is no table"
        return
    yield from (f"{where}: {key!r} is unknown, it has match and runs_per_day" for key in entry if key not in _ENTRY)
    if not isinstance(entry.get("match"), str) or not entry["match"]:
        yield f'{where}: match is missing: a pattern of tests, such as "tests/test_article.py::*"'
    yield from _wrong_number(f"{where}: runs_per_day", entry.get("runs_per_day"))


_ENTRY = ("match", "runs_per_day")


def _wrong_number(where: str, value: object) -> list[str]:
    right = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return [] if right else [f"{where}: {value!r} is no number of runs" if value is not None else f"{where} is missing"]


def monthly(rows: Iterable[Row], traffic: Traffic) -> list[Monthly]:
    """What nodes cost more in a month, those of one workflow averaged over its tests, the dearest first. A node inside
    of another is in that one's sum."""
    tests: dict[tuple[str | None, int], dict[str, None]] = {}
    nodes: dict[tuple[tuple[str | None, int], str], list[Row]] = {}
    for row in rows:
        stream = traffic.stream_of(row.test or "")
        if stream is None:
            continue
        tests.setdefault(stream, {})[row.test or ""] = None
        if row.node is not None and "|" not in row.node:
            nodes.setdefault((stream, row.node), []).append(row)
    made = [_monthly(node, stream, len(tests[stream]), found) for (stream, node), found in nodes.items()]
    moved = [one for one in made if one.tokens != 0 or one.usd != 0]
    return sorted(moved, key=lambda one: -abs(one.usd_per_month or Decimal(0)))


def _monthly(node: str, stream: tuple[str | None, int], tests: int, rows: Sequence[Row]) -> Monthly:
    match, runs = stream
    with exact_decimals():
        tokens = _average([None if (more := tokens_change(row)) is None else Decimal(more) for row in rows], tests)
        usd = _average([cost_change(row) for row in rows], tests)
        return Monthly(node, match, runs, tests, tokens, usd, None if usd is None else usd * runs * DAYS)


def _average(values: Sequence[Decimal | None], count: int) -> Decimal | None:
    known = [value for value in values if value is not None]
    return sum(known, Decimal(0)) / count if len(known) == len(values) else None


def traffic_of(folder: Path) -> Traffic | None:
    """`[tool.agenttrace.traffic]` of the nearest pyproject.toml, in this folder or above; None where there is none.
    Raises `TrafficError`."""
    file = next((path for base in (folder, *folder.parents) if (path := base / "pyproject.toml").is_file()), None)
    if file is None:
        return None
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("agenttrace", {}).get("traffic")
    except (OSError, ValueError) as error:
        raise TrafficError([f"{file.name}: {error}"]) from None
    try:
        return None if table is None else read_traffic(table)
    except TrafficError as error:
        raise TrafficError([f"{file.name}: tool.agenttrace.{problem}" for problem in error.problems]) from None
