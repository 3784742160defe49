"""The ledgers of shards as the one of the whole suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from pytest_agenttrace.ledger.file import LedgerError
from pytest_agenttrace.ledger.model import BudgetFacts, Ledger, RunFacts, TestFacts, Times
from pytest_agenttrace.usage import exact_decimals

__all__ = ["merge"]


def merge(shards: Mapping[Path, Ledger]) -> Ledger:
    """One ledger of several, by their files: the shards together are the whole suite.

    A test that two shards have run counts once where both say the same; one that a shard has not run is not missing
    where another has. A limit of the whole run that all shards have holds for all tests together.
    Raises `LedgerError` where shards contradict each other: a test with two results, other versions.
    """
    runs = {path: ledger.run for path, ledger in shards.items()}
    tests = _tests(shards)
    stopped = [f"{path.name}: {run.stopped}" for path, run in runs.items() if run.stopped is not None]
    run = RunFacts(
        stopped="; ".join(stopped) or None,
        deselected=tuple(sorted(_deselected(list(runs.values())) - tests.keys())),
        not_run=tuple(sorted({test for run in runs.values() for test in run.not_run} - tests.keys())),
        broken=tuple(sorted({file for run in runs.values() for file in run.broken})),
        budgets=_budgets([run.budgets for run in runs.values()], tests),
        findings=tuple(dict.fromkeys(finding for run in runs.values() for finding in run.findings)),
    )
    return Ledger(1, _versions(shards), run, tests, _times([ledger.times for ledger in shards.values()]))


def _deselected(runs: Sequence[RunFacts]) -> set[str]:
    """What no shard was to run: a shard that leaves a test out is made good for by one that does not."""
    return {test for run in runs for test in run.deselected if not any(other.was_to_run(test) for other in runs)}


def _tests(shards: Mapping[Path, Ledger]) -> dict[str, TestFacts]:
    tests: dict[str, TestFacts] = {}
    found_in: dict[str, Path] = {}
    for path, ledger in shards.items():
        for test, facts in ledger.tests.items():
            if tests.setdefault(test, facts) != facts:
                raise LedgerError(f"{path}: {test} has another result than in {found_in[test]}: these are two runs")
            found_in.setdefault(test, path)
    return tests


def _budgets(shards: Sequence[Sequence[BudgetFacts]], tests: Mapping[str, TestFacts]) -> tuple[BudgetFacts, ...]:
    """The limits of the whole run that all shards have, and what all tests have used of them: each test once, whichever
    shards have run it."""
    limits = [(budget.metric, budget.limit) for budgets in shards for budget in budgets]
    of_all = [limit for limit in dict.fromkeys(limits) if limits.count(limit) == len(shards)]
    return tuple(BudgetFacts(None, *limit, _used(limit[0], tests.values())) for limit in of_all)


def _used(metric: str, tests: Iterable[TestFacts]) -> int | Decimal | None:
    """Unknown where that of one test is, unless it has asked nothing."""
    asked = [facts for facts in tests if facts.calls or facts.nodes or facts.outline]
    used = [facts.cost if metric == "cost" else facts.tokens for facts in asked]
    with exact_decimals():
        total = None if None in used else sum((Decimal(part) for part in used if part is not None), Decimal(0))
    return total if total is None or metric == "cost" else int(total)


def _versions(shards: Mapping[Path, Ledger]) -> dict[str, str]:
    versions: dict[str, str] = {}
    found_in: dict[str, Path] = {}
    for path, ledger in shards.items():
        for name, version in ledger.versions.items():
            before = versions.setdefault(name, version)
            if before != version:
                raise LedgerError(f"{path}: {name} {version}, but {before} in {found_in[name]}: shards share versions")
            found_in.setdefault(name, path)
    return versions


def _times(times: Sequence[Times]) -> Times:
    """As if the shards had run one after the other, from the first one's start."""
    started = [found.started for found in times if found.started is not None]
    seconds = [found.seconds for found in times if found.seconds is not None]
    tests = {test: taken for found in times for test, taken in found.tests.items()}
    return Times(min(started, default=None), round(sum(seconds), 3) if seconds else None, tests)
