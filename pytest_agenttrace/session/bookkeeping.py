"""The ledger of a pytest run: hooks that gather what tests have come to, and write it at the end.

Registered where the whole run is seen, and only where somebody wants a ledger: not in xdist's workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from pytest_agenttrace.collect import SESSION
from pytest_agenttrace.session.state import Session
from pytest_agenttrace.testrun import Run

if TYPE_CHECKING:
    from pytest_agenttrace.ledger import FindingFacts

__all__ = ["FACTS", "Bookkeeper", "outcome_of"]

# An attribute of reports: names, and the facts of each.
FACTS = "agenttrace_facts"
_INTERRUPTED, _INTERNAL_ERROR = 2, 3


def ungrouped(nodeid: str) -> str:
    """A node id without the group that xdist's `loadgroup` puts behind it."""
    head, group, name = nodeid.rpartition("@")
    return head if group and not set("]/:") & set(name) else nodeid


def facts_told(
    item: pytest.Item, run: Run, ended: Sequence[tuple[str, Run]], when: str, *, ours: bool
) -> list[tuple[str | None, str]]:
    """What a report carries to the ledger: of a test that is over (`ours`: it asks for a fixture of ours), and of runs
    that have ended since, each under its name. Under no name: why one could not be told."""
    from pytest_agenttrace.session.results import told_facts

    root, scratch = item.config.rootpath, item.config.stash[SESSION].root
    told: list[tuple[str | None, str]] = []
    try:
        told += [(name, told_facts(held.noted(root, scratch))) for name, held in ended]
        if when != "teardown" and not run.idle:
            run.note(root, scratch)
        elif when == "teardown" and (ours or not run.idle):
            told.append((item.nodeid, told_facts(run.noted(root, scratch))))
    except Exception as error:  # an error in a hook would end the whole run
        text = f"what {item.nodeid} has done is not in the ledger, a fault of pytest-agenttrace's: "
        told.append((None, f"{text}{type(error).__name__}: {error}"))
    return told


class Bookkeeper:
    """Gathers results from reports and writes the ledger, whatever ends the run."""

    def __init__(self, session: Session, root: Path, ledger: Path | None) -> None:
        self._session = session
        self._root = root
        self._ledger = ledger
        from pytest_agenttrace.session.results import Results

        self.results = Results()
        self._trouble: list[str] = []
        self._left: str | None = None
        if ledger is not None and ledger.is_file():
            # One of an earlier run would be taken for this one's, should this one die.
            with suppress(OSError):
                ledger.resolve().unlink()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.results.collected |= dict.fromkeys(item.nodeid for item in getattr(session, "items", ()))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: Sequence[str]) -> None:
        self.results.collected |= dict.fromkeys(map(ungrouped, ids))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.results.broken[report.nodeid or "(the whole suite)"] = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, told in getattr(report, FACTS, ()):
            if name is None:
                self._trouble.append(told)
            else:
                self.results.facts(ungrouped(name), told)
        if report.when is not None and report.when in ("setup", "call", "teardown"):
            self.results.phase(ungrouped(report.nodeid), report.when, outcome_of(report), report.duration)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Ctrl-C, or `pytest.exit`, whatever exit code that asks for."""
        self._left = "interrupted" if excinfo.errisinstance(KeyboardInterrupt) else f"pytest.exit: {excinfo.value}"

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._ledger is None:
            return
        from pytest_agenttrace.ledger import LedgerError, write_ledger

        try:
            write_ledger(self._ledger, self.ledger(session, int(exitstatus)))
        except LedgerError as error:
            self._trouble.append(str(error))
        self._session.alarm(self._trouble, session)

    def ledger(self, session: pytest.Session, exitstatus: int) -> Mapping[str, Any]:
        """The results as they are now, to be written or read."""
        from pytest_agenttrace.ledger import BudgetFacts

        stopped = self._left or _stopped(session, exitstatus) or self._session.crashed
        budgets = [BudgetFacts(use.node, use.metric, use.limit, use.used) for use in self._session.run_uses]
        return self.results.ledger(
            stopped=stopped,
            part=self._session.part(self._root),
            whole=self._session.whole_parts(self._root),
            deselected=self._session.deselected,
            budgets=budgets,
            findings=list(self._unused()),
        )

    def _unused(self) -> Iterator[FindingFacts]:
        """Replies of shared cassettes that no test asked for."""
        from pytest_agenttrace.ledger import FindingFacts

        failing, warned = self._session.unused()
        ways: tuple[tuple[list[str], Literal["failed", "warned"]], ...] = ((failing, "failed"), (warned, "warned"))
        for texts, judged in ways:
            yield from (FindingFacts("unused", None, text.partition("\n")[0], judged) for text in texts)


def outcome_of(report: pytest.TestReport) -> str:
    """What a report says of its test, in a ledger's words."""
    if report.outcome == "failed":
        return "failed" if report.when == "call" else "error"
    expected = hasattr(report, "wasxfail")
    if report.outcome == "skipped":
        return "xfailed" if expected else "skipped"
    return "xpassed" if expected and report.when == "call" else "passed"


def _stopped(session: pytest.Session, exitstatus: int) -> str | None:
    """Why the run did not come to its end; None where it did."""
    for why in (session.shouldfail, session.shouldstop):
        if why:
            return str(why)
    return {_INTERRUPTED: "interrupted", _INTERNAL_ERROR: "an error of pytest's own"}.get(exitstatus)
