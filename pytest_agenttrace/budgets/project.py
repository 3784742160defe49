"""Budgets in pyproject.toml: defaults, those of test patterns and that of the whole run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pytest_agenttrace.budgets.limits import METRICS, BudgetError, Limit, read_limit
from pytest_agenttrace.projectfile import Key, ProjectError, ProjectFile, Quoted, matches, nearest

__all__ = ["RUN_METRICS", "ProjectBudgets", "TestPattern", "read_budgets"]

RUN_METRICS = ("cost", "tokens")
_KEYS = (*METRICS, "nodes", "tests", "run")


@dataclass(frozen=True, slots=True)
class TestPattern:
    """Limits for the tests that `match` fits; `source` is where it is written."""

    match: str
    limits: tuple[Limit, ...]
    source: str
    # pytest collects what looks like a test.
    __test__ = False


@dataclass(frozen=True, slots=True)
class ProjectBudgets:
    """What a project's tests may use: each of them, and all together."""

    defaults: tuple[Limit, ...] = ()
    patterns: tuple[TestPattern, ...] = ()
    run: tuple[Limit, ...] = ()

    def of(self, nodeid: str) -> Iterator[tuple[Limit, ...]]:
        """The limits of a test, closest first: of the last pattern that fits, of those before it, the defaults."""
        yield from (pattern.limits for pattern in reversed(self.patterns) if matches(pattern.match, nodeid))
        yield self.defaults

    def unmatched(self, nodeids: Iterable[str]) -> list[str]:
        """Where the patterns are written that fit none of these tests, and what they are."""
        given = list(nodeids)
        return [
            f"{pattern.source} = {Quoted(pattern.match)}"
            for pattern in self.patterns
            if not any(matches(pattern.match, nodeid) for nodeid in given)
        ]

    @property
    def nodes(self) -> dict[str, str]:
        """The nodes that have limits, each with where the first of them is written."""
        found: dict[str, str] = {}
        for limit in (*self.defaults, *(limit for pattern in self.patterns for limit in pattern.limits)):
            if limit.node is not None:
                found.setdefault(limit.node, limit.source)
        return found


def read_budgets(file: ProjectFile | None) -> ProjectBudgets:
    """The budgets of a project, with all that is wrong in its `[tool.agenttrace]` as one `ProjectError`."""
    if file is None:
        return ProjectBudgets()
    reader = _Reader(file)
    reader.problems += file.unknown_tables()
    budgets = reader.budgets()
    if reader.problems:
        raise ProjectError(reader.problems)
    return budgets


class _Reader:
    """Reads tables of limits and gathers what is wrong with them."""

    def __init__(self, file: ProjectFile) -> None:
        self._file = file
        self.problems: list[str] = []

    def budgets(self) -> ProjectBudgets:
        table = self._table(self._file.table.get("budgets", {}), ("budgets",))
        self._known(table, _KEYS, ("budgets",))
        run = self._table(table.get("run", {}), ("budgets", "run"))
        self._known(run, RUN_METRICS, ("budgets", "run"))
        return ProjectBudgets(
            tuple(self._limits(table, ("budgets",))),
            tuple(self._patterns(table.get("tests", []))),
            tuple(self._own(run, RUN_METRICS, None, ("budgets", "run"))),
        )

    def _patterns(self, entries: object) -> Iterator[TestPattern]:
        path = ("budgets", "tests")
        if not isinstance(entries, list):
            self._wrong(path, entries, "is not an array of tables: write [[tool.agenttrace.budgets.tests]]")
            return
        for index, entry in enumerate(entries):
            at = (*path, index)
            table = self._table(entry, at)
            if not isinstance(entry, dict):
                continue
            self._known(table, ("match", *METRICS, "nodes"), at)
            match = table.get("match")
            if match is None:
                self.problems.append(f'{self._file.where(*at)}: names no tests: write match = "tests/nightly/*"')
            elif not isinstance(match, str) or not match:
                self._wrong((*at, "match"), match, "is no pattern for node ids of tests")
            if table.keys() <= {"match"}:
                self.problems.append(f"{self._file.where(*at)}: sets no limit: give one of {', '.join(METRICS)}, nodes")
            source = self._file.source(*at, "match")
            yield TestPattern(str(match), tuple(self._limits(table, at)), source)

    def _limits(self, table: Mapping[str, Any], path: Sequence[Key]) -> Iterator[Limit]:
        yield from self._own(table, METRICS, None, path)
        nodes = self._table(table.get("nodes", {}), (*path, "nodes"))
        for node, limits in nodes.items():
            at = (*path, "nodes", node)
            found = self._table(limits, at)
            self._known(found, METRICS, at)
            if isinstance(limits, dict) and not limits:
                self.problems.append(f"{self._file.where(*at)}: sets no limit: give one of {', '.join(METRICS)}")
            yield from self._own(found, METRICS, node, at)

    def _own(
        self, table: Mapping[str, Any], metrics: Sequence[str], node: str | None, path: Sequence[Key]
    ) -> Iterator[Limit]:
        for metric in metrics:
            if metric not in table:
                continue
            value = table[metric]
            try:
                limit: int | Decimal = read_limit(metric, value)
            except BudgetError as error:
                for problem in error.problems:
                    self._wrong((*path, metric), value, problem)
                continue
            yield Limit(node, metric, limit, f"{self._file.source(*path, metric)} = {Quoted(value)}", demanded=False)

    def _table(self, value: object, path: Sequence[Key]) -> Mapping[str, Any]:
        if isinstance(value, dict):
            return value
        self._wrong(path, value, "is not a table")
        return {}

    def _known(self, table: Mapping[str, Any], keys: Sequence[str], path: Sequence[Key]) -> None:
        self.problems += [
            f"{self._file.where(*path, key)}: unknown key{nearest(key, keys)} It has {', '.join(keys)}"
            for key in table
            if key not in keys
        ]

    def _wrong(self, path: Sequence[Key], value: object, why: str) -> None:
        self.problems.append(f"{self._file.where(*path)} = {Quoted(value)} {why}")
