"""What a whole run's tests have come to: outcomes, times and facts, gathered from their reports, as one ledger.

Knows nothing of pytest; what tests tell of themselves is text, so that xdist can carry it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from platform import python_version
from time import perf_counter
from typing import Any

from pytest_agenttrace.ledger import BudgetFacts, FindingFacts, RunFacts, TestFacts, Times, plain

__all__ = ["Results", "told_facts", "versions"]

_PACKAGES = (
    *("pytest-agenttrace", "pytest", "mlflow", "langgraph", "langchain-core", "langchain-google-genai"),
    *("google-genai", "vcrpy", "genai-prices"),
)
# How bad an outcome is: the worst of a test's phases is the test's.
_WORST = ("run", "passed", "skipped", "xfailed", "xpassed", "failed", "error")


def told_facts(facts: TestFacts) -> str:
    """Facts as a report carries them, ASCII whatever they hold."""
    return json.dumps(plain(facts))


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide what is traced and what it costs."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass
class Results:
    """The tests of a run, as their reports come in. `collected` are all that were to run, `broken` files that could not
    be collected."""

    collected: dict[str, None] = field(default_factory=dict)
    broken: dict[str, None] = field(default_factory=dict)
    _outcomes: dict[str, str] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _facts: dict[str, str] = field(default_factory=dict)
    _ended: set[str] = field(default_factory=set)
    _started: datetime = field(default_factory=lambda: datetime.now(UTC))
    _clock: float = field(default_factory=perf_counter)

    def phase(self, test: str, when: str, outcome: str, seconds: float) -> None:
        """One phase of a test has ended: `setup` begins it anew, as a rerun does; `teardown` ends it."""
        if when == "setup":
            self._outcomes.pop(test, None)
            self._seconds[test] = 0.0
            self._ended.discard(test)
        before = self._outcomes.get(test, "run")
        self._outcomes[test] = max(before, outcome, key=_WORST.index)
        self._seconds[test] = self._seconds.get(test, 0.0) + seconds
        if when == "teardown":
            self._ended.add(test)

    def facts(self, test: str, told: str) -> None:
        """The facts of a test, or of a run that several tests read, which has no phases."""
        self._facts[test] = told

    @property
    def tests(self) -> dict[str, Mapping[str, Any]]:
        """The facts of the tests that used the plugin, each with its outcome."""
        return {
            test: {**json.loads(told), "outcome": self._outcomes.get(test, "run")} for test, told in self._facts.items()
        }

    def ledger(
        self,
        *,
        stopped: str | None,
        part: str | None,
        whole: Sequence[str] = (),
        deselected: Iterable[str] = (),
        budgets: Sequence[BudgetFacts] = (),
        findings: Sequence[FindingFacts] = (),
    ) -> dict[str, Any]:
        """The ledger of the run, to be written."""
        tests = self.tests
        run = RunFacts(
            stopped=stopped,
            part=part,
            whole=tuple(whole),
            deselected=tuple(sorted(deselected)),
            not_run=tuple(sorted(self.collected.keys() - self._ended)),
            broken=tuple(sorted(self.broken)),
            budgets=tuple(budgets),
            findings=tuple(findings),
        )
        times = Times(
            started=self._started.isoformat(timespec="seconds"),
            seconds=round(perf_counter() - self._clock, 3),
            tests={test: round(self._seconds[test], 3) for test in tests if test in self._seconds},
        )
        return {"format": 1, "versions": versions(), "run": run, "tests": tests, "times": times}
