"""What a pytest run's tests have used of their budgets: hooks that gather it, judge the budget of the run, and tell.

Registered where the whole run is seen, and only where somebody asks: not in xdist's workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_agenttrace.collect import BUDGETS, LIMITS
from pytest_agenttrace.options import ledger_of, only_looked_at, run_limits_of, wants_gate
from pytest_agenttrace.session.state import Session
from pytest_agenttrace.testrun import Run

if TYPE_CHECKING:
    from pytest_agenttrace.budgets.limits import Limit, Use

__all__ = ["WANTED", "Accountant", "Wanted", "wanted_of"]

_OURS = {"agent_trace", "agent_run"}


@dataclass(frozen=True)
class Wanted:
    """What the end of a run asks of each test: its bill, for the `sums` of those that traced or for a budget of all
    (`bills`), its use of each limit, the nodes it ran, and all its `facts`, for a ledger, a gate or as `properties` of
    JUnit's XML. Settled before the first test: nothing that a test does to files or the environment changes it."""

    facts: bool
    properties: bool
    sums: bool
    bills: bool
    uses: bool
    nodes: bool

    @property
    def judged(self) -> bool:
        """Whether anything is judged or told of it beside the sums."""
        return self.bills or self.uses or self.nodes

    def of(self, item: pytest.Item, run: Run) -> dict[str, Any]:
        """What the report of a test that is over carries."""
        told = self.of_run(run)
        if self.uses and (uses := run.uses or _unjudged(item)):
            from pytest_agenttrace.budgets.fullness import plain_uses

            told["uses"] = plain_uses(uses)
        return told

    def of_run(self, run: Run) -> dict[str, Any]:
        """The same of a run that several tests read."""
        told: dict[str, Any] = {}
        if self.sums or self.bills:
            told["bill"] = run.bill(untraced=self.bills)
        if self.nodes:
            told["nodes"] = run.nodes()
        return told


WANTED = pytest.StashKey[Wanted]()


def wanted_of(config: pytest.Config) -> Wanted:
    """What is asked of the tests of this process."""
    budgets = config.stash[BUDGETS]
    nodes = budgets is not None and bool(budgets.nodes)
    listed = config.get_verbosity() > 0 or bool(config.getoption("agenttrace_slack"))
    # JUnit's XML alone takes properties; other reporters are not given them.
    properties = bool(config.getoption("xmlpath", None))
    facts = ledger_of(config) is not None or wants_gate(config) or properties
    return Wanted(
        facts=facts and not only_looked_at(config),
        properties=properties,
        sums=config.get_verbosity() >= 0,
        bills=bool(run_limits_of(config, budgets)),
        uses=listed or nodes,
        nodes=nodes,
    )


def _unjudged(item: pytest.Item) -> tuple[Use, ...]:
    """The limits of a test that did not come to its body."""
    limits = item.stash.get(LIMITS, None)
    if not limits or _OURS.isdisjoint(getattr(item, "fixturenames", ())):
        return ()
    from pytest_agenttrace.budgets.limits import unjudged

    return unjudged(limits)


class Accountant:
    """Judges the budget of the run when it ends, and has told how full budgets are."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self._config = config
        self._session = session
        self._limits: list[Limit] = run_limits_of(config, config.stash[BUDGETS])
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A rerun begins anew.
        if report.when == "setup":
            self._session.forget(report.nodeid)
            self._failed.discard(report.nodeid)
        if report.failed:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        from pytest_agenttrace.budgets.whole_run import judge_run

        found = self._session
        part = found.part(self._config.rootpath)
        found.run_uses, over = judge_run(self._limits, found.bills, part)
        found.alarm(over, session)
        found.notes += self._notes(part)

    def _notes(self, part: str | None) -> Iterator[str]:
        from pytest_agenttrace.budgets.fullness import percent_lines, slack_lines

        found, verbosity = self._session, self._config.get_verbosity()
        if verbosity > 0:
            yield from percent_lines(found.uses, run=found.run_uses, every=verbosity > 1)
        if self._config.getoption("agenttrace_slack"):
            # What a test has used that failed is not what it uses.
            ended = {
                test: [replace(use, used=None) if test in self._failed else use for use in uses]
                for test, uses in found.uses.items()
            }
            yield from slack_lines(ended, part=part)
        budgets = self._config.stash[BUDGETS]
        if budgets is None or part is not None:
            return
        yield from (f"{source} matches no test" for source in found.unmatched)
        if all(use.used is not None for uses in found.uses.values() for use in uses):
            for node, source in budgets.nodes.items():
                if node not in found.nodes:
                    yield f"{source}: no test has run a node {node!r}"
