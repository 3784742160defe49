"""What a pytest run says at its end: misses that tests share, replies nobody asked for, findings warned of.

Hooks of a pytest plugin, registered where the whole run is seen: not in xdist's workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.session.state import Session
from pytest_agenttrace.session.totals import all_lines, lines

if TYPE_CHECKING:
    import pytest

__all__ = ["TOLD", "TOLD_OF_RUNS", "Summary"]

# An attribute of reports, because xdist carries those to the controller.
TOLD = "agenttrace_told"
# The same of runs that several tests read, each under a name.
TOLD_OF_RUNS = "agenttrace_told_of_runs"
_TESTS_FAILED = 1


class Summary:
    """Collects what tests tell in their reports; fails the run where a shared cassette holds too much."""

    def __init__(self, config: pytest.Config, session: Session, cassettes: Path) -> None:
        self._config = config
        self._cassettes = cassettes
        self._session = session
        self._dropped: dict[str, int] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        told = getattr(report, TOLD, None)
        if told:
            self._session.tell(report.nodeid, told)
        for name, facts in getattr(report, TOLD_OF_RUNS, ()):
            self._session.tell(name, facts)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for path in self._session.recorded_by_all():
            from pytest_agenttrace.replay import prune

            if gone := prune(self._session.parts, path):
                self._dropped[_shown(path, self._config.rootpath)] = gone
        failing, _ = self._session.unused()
        if failing and session.exitstatus == 0:
            session.exitstatus = _TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        verbosity = self._config.get_verbosity()
        # What fails the run and what has cost money is told in any case.
        told = list(self._lines(verbosity)) if verbosity >= 0 else [*self._session.unused()[0], *self._recorded()]
        told += (self._session.notes if verbosity >= 0 else []) + self._session.alarms
        if self._config.getoption("agenttrace_unused"):
            told += self._unused_cassettes()
        if told:
            terminalreporter.section("agenttrace")
            for line in told:
                terminalreporter.line(line)

    def _lines(self, verbosity: int) -> Iterator[str]:
        session = self._session
        last_failed = self._config.pluginmanager.hasplugin("cacheprovider")
        yield from session.groups(all_names=verbosity > 0, last_failed=last_failed)
        failing, warned = session.unused()
        yield from failing
        yield from self._recorded()
        for text in dict.fromkeys(session.late):
            yield f"after its test had ended: {text}"
        yield from session.costs.values()
        if session.kept:
            yield f"stores kept: {len(session.kept)}, in {os.path.commonpath([*map(os.path.dirname, session.kept)])}"
        counts = dict(session.warned)
        if warned:
            counts["unused"] = counts.get("unused", 0) + len(warned)
        if counts:
            yield f"findings warned of: {_counted(counts)}"
        if session.forgiven:
            yield f"findings forgiven: {_counted(session.forgiven)}"
        yield from (all_lines if verbosity > 0 else lines)(session.spent)

    def _recorded(self) -> Iterator[str]:
        """What was asked anew and what it cost, and whose requests were rewritten."""
        session = self._session
        if session.recorded:
            from pytest_agenttrace.rerecord import Bill

            total = Bill()
            for calls, cost, unknown in session.recorded.values():
                total += Bill(calls, Decimal(cost), unknown)
            yield f"recorded anew: {total}"
        yield from (f"{test}: {text}" for test, text in session.incomplete.items())
        for path, count in self._dropped.items():
            yield f"{path}: {count} {'reply' if count == 1 else 'replies'} dropped that no test asks for any more"
        if adopted := session.adopted():
            yield from ("adopted: old replies stand under new requests", *(f"  {line}" for line in adopted))
        for path, days in session.aged.items():
            shown = _shown(Path(path), self._config.rootpath)
            yield f"{shown} was recorded {days} days ago: older than agenttrace_max_age"

    def _unused_cassettes(self) -> Iterator[str]:
        if (part := self._session.part(self._config.rootpath)) is not None:
            yield f"cassettes no test used: not known, {part}"
            return
        root, used = self._config.rootpath, self._session.used()
        files = [path for path in sorted(self._cassettes.rglob("*.yaml")) if not path.name.endswith(".partial.yaml")]
        left = [path for path in files if path.resolve() not in used]
        yield f"cassettes no test used: {len(left) or 'none'}"
        yield from (f"  {_shown(path, root)}" for path in left)


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
