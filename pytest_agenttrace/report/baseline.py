"""Baselines: ledgers that a project keeps, moved on purpose only."""

from __future__ import annotations

import dataclasses

from pytest_agenttrace.ledger import Ledger, RunFacts, TestFacts, Times
from pytest_agenttrace.report.structure import FAILING, stayed_away
from pytest_agenttrace.report.wording import counted, listed

__all__ = ["new_baseline", "why_not"]

_NAMES = 3


def why_not(run: Ledger) -> str | None:
    """Why a run is no baseline; None where it is one."""
    failed = [name for name, facts in run.tests.items() if facts.outcome in FAILING]
    if run.run.stopped is not None:
        return f"the run was stopped ({run.run.stopped})"
    if run.run.broken:
        return f"files could not be collected: {listed(run.run.broken, _NAMES)}"
    if failed:
        return f"{counted(len(failed), 'test')} failed: {listed(failed, _NAMES)}"
    if any(finding.judged == "failed" for finding in run.run.findings):
        return next(finding.text for finding in run.run.findings if finding.judged == "failed")
    return None if run.tests else "no test has used the plugin"


def new_baseline(old: Ledger | None, run: Ledger) -> Ledger:
    """The baseline after a run: its tests, and what it was not to run as it was. What was skipped keeps its numbers.
    Without times, which no two runs share."""
    before = old.tests if old is not None else {}
    whole = run.run.part is None
    ran: dict[str, TestFacts] = {}
    for name, facts in run.tests.items():
        ran[name] = before[name] if facts.outcome == "skipped" and name in before else facts
    away = {name: facts for name, facts in before.items() if name not in ran and stayed_away(name, facts, run.run)}
    versions = run.versions if whole or old is None else old.versions
    of_all = RunFacts(budgets=run.run.budgets, findings=run.run.findings) if whole or old is None else old.run
    return dataclasses.replace(run, versions=versions, run=of_all, tests={**away, **ran}, times=Times())
