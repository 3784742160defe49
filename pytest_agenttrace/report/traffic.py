"""What a difference costs in a month, by the runs that a project says it has a day."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pytest_agenttrace.projectfile import NAME, Key, ProjectError, ProjectFile, Quoted, matches, nearest, read_project
from pytest_agenttrace.report.cost import cost_change, tokens_change
from pytest_agenttrace.report.differences import Row
from pytest_agenttrace.usage import exact_decimals

__all__ = ["DAYS", "Monthly", "Traffic", "monthly", "read_traffic", "traffic_of"]

# The days that a month has here.
DAYS = 30


@dataclass(frozen=True, slots=True)
class Traffic:
    """Runs a day: of tests by a pattern of their names, of which the last that fits counts; of all others (None:
    unknown)."""

    runs_per_day: int | None = None
    tests: tuple[tuple[str, int], ...] = ()

    def stream_of(self, test: str) -> tuple[str | None, int] | None:
        """The workflow a test stands for, by its pattern (None: all others), and its runs a day."""
        for pattern, runs in reversed(self.tests):
            if matches(pattern, test):
                return pattern, runs
        return None if self.runs_per_day is None else (None, self.runs_per_day)


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


# Runs a day: more than the world's telephones.
_MOST = 10**12
_TABLE = ("runs_per_day", "tests")
_ENTRY = ("match", "runs_per_day")


def read_traffic(file: ProjectFile) -> Traffic | None:
    """`[tool.agenttrace.traffic]`; None where there is none. Raises `ProjectError` with all that is wrong."""
    table = file.table.get("traffic")
    if table is None:
        return None
    if not isinstance(table, Mapping):
        raise ProjectError([f"{file.where('traffic')} = {Quoted(table)} is not a table"])
    problems = list(_unknown(file, ("traffic",), table, _TABLE))
    runs = table.get("runs_per_day")
    if runs is not None:
        problems += _wrong_runs(file, ("traffic", "runs_per_day"), runs)
    entries = table.get("tests", [])
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        problems.append(f"{file.where('traffic', 'tests')} is no array of tables: [[tool.agenttrace.traffic.tests]]")
        entries = []
    for place, entry in enumerate(entries):
        problems += _wrong_entry(file, ("traffic", "tests", place), entry)
    if problems:
        raise ProjectError(problems)
    return Traffic(runs, tuple((entry["match"], entry["runs_per_day"]) for entry in entries))


def _unknown(
    file: ProjectFile, keys: tuple[Key, ...], table: Mapping[str, object], known: Sequence[str]
) -> Iterator[str]:
    for key in table:
        if key not in known:
            yield f"{file.where(*keys, key)}: unknown key{nearest(key, known)} It has {', '.join(known)}"


def _wrong_entry(file: ProjectFile, keys: tuple[Key, ...], entry: Mapping[str, object]) -> Iterator[str]:
    yield from _unknown(file, keys, entry, _ENTRY)
    match = entry.get("match")
    if not isinstance(match, str) or not match:
        yield f'{file.where(*keys)}: match is missing: tests, such as "tests/test_article.py"'
    if "runs_per_day" in entry:
        yield from _wrong_runs(file, (*keys, "runs_per_day"), entry["runs_per_day"])
    else:
        yield f"{file.where(*keys)}: runs_per_day is missing"


def _wrong_runs(file: ProjectFile, keys: tuple[Key, ...], value: object) -> list[str]:
    right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST
    return [] if right else [f"{file.where(*keys)} = {Quoted(value)} is no number of runs"]


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
    """The traffic in the nearest pyproject.toml, in this folder or above; None where there is none. Raises
    `ProjectError`."""
    home = next((base for base in (folder, *folder.parents) if (base / NAME).is_file()), folder)
    file = read_project(home)
    return None if file is None else read_traffic(file)
