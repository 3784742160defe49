"""What a pytest run says of its ledger where it ends: compared with a baseline, in a pull request, in JUnit's XML.

Hooks of a pytest plugin, registered where the whole run is seen, and only where one of these is wanted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_agenttrace.collect import SESSION
from pytest_agenttrace.options import OptionError, baseline_of
from pytest_agenttrace.projectfile import ProjectError
from pytest_agenttrace.session.bookkeeping import Bookkeeper, ungrouped

if TYPE_CHECKING:
    from pytest_agenttrace.ledger import Ledger
    from pytest_agenttrace.report import Traffic, Verdict

__all__ = ["Gate", "properties_of"]

# Where GitHub Actions has its checkout.
_WORKSPACE = "GITHUB_WORKSPACE"


def properties_of(test: str, told: Sequence[tuple[str | None, str]]) -> list[tuple[str, object]]:
    """The properties of a test that has just told its facts; none before it has."""
    facts = next((text for name, text in told if name == test), None)
    if facts is None:
        return []
    from pytest_agenttrace.report import properties

    return properties(json.loads(facts))


class Gate:
    """Compares the run's ledger with the baseline when the run ends. Raises `OptionError` for a baseline that is none,
    a tolerance or a traffic that cannot be meant."""

    def __init__(self, config: pytest.Config, bookkeeper: Bookkeeper) -> None:
        from pytest_agenttrace.ledger import LedgerError, read_ledger
        from pytest_agenttrace.report import read_tolerance, traffic_of

        self._config = config
        self._bookkeeper = bookkeeper
        self._file = baseline_of(config)
        self._update = bool(config.getoption("agenttrace_update_baseline"))
        self._places: dict[str, tuple[str, int | None]] = {}
        self._annotations: list[str] = []
        # As the run began: what a test leaves in the environment is not where GitHub looks.
        self._environment = dict(os.environ)
        try:
            self._tolerance: Decimal = read_tolerance(config.getoption("agenttrace_tolerance"))
        except ValueError as error:
            raise OptionError(f"--agenttrace-tolerance: {error}") from None
        try:
            self._baseline = read_ledger(self._file) if self._file is not None and self._file.exists() else None
        except LedgerError as error:
            raise OptionError(f"--agenttrace-baseline: {error}") from None
        try:
            self._traffic: Traffic | None = traffic_of(config.rootpath)
        except ProjectError as error:
            raise OptionError(str(error)) from None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file, line, _ = report.location
        self._places.setdefault(ungrouped(report.nodeid), (self._in_checkout(file), None if line is None else line + 1))

    def _in_checkout(self, file: str) -> str:
        """A test's file as GitHub names it: below the checkout, wherever pytest's rootdir is."""
        path = (self._config.rootpath / file).resolve()
        workspace = Path(self._environment.get(_WORKSPACE) or self._config.rootpath).resolve()
        return path.relative_to(workspace).as_posix() if path.is_relative_to(workspace) else file

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._file is None and not self._bookkeeper.results.tests:
            return
        try:
            self._finish(session, int(exitstatus))
        except Exception as error:  # an error in a hook would end the whole run
            text = f"the run could not be compared, a fault of pytest-agenttrace's: {type(error).__name__}: {error}"
            self._alarm([text], session)

    def _finish(self, session: pytest.Session, exitstatus: int) -> None:
        from pytest_agenttrace.ledger import as_ledger, ledger_text

        run = as_ledger(Path("this run"), ledger_text(self._bookkeeper.ledger(session, exitstatus)))
        verdict = self._compare(run)
        if verdict is not None and not self._update:
            self._tell(verdict, session)
        if self._update:
            self._move(run, verdict, session)
        self._to_github(run, verdict)

    def _compare(self, run: Ledger) -> Verdict | None:
        from pytest_agenttrace.report import compare, judge

        if self._baseline is None:
            return None
        return judge(compare(self._baseline, run, self._tolerance), self._config.getoption("agenttrace_fail_on"))

    def _tell(self, verdict: Verdict, session: pytest.Session) -> None:
        lines = [f"compared with {self._shown()}", *self._text(verdict)]
        if verdict.failed:
            self._alarm(lines, session)
        elif verdict.comparison.differences:
            self._config.stash[SESSION].notes += lines
        else:
            self._config.stash[SESSION].notes.append(f"no differences from {self._shown()}")

    def _text(self, verdict: Verdict) -> list[str]:
        from pytest_agenttrace.report import as_text

        return [f"  {line}" for line in as_text(verdict, all_names=self._config.get_verbosity() > 0)]

    def _move(self, run: Ledger, verdict: Verdict | None, session: pytest.Session) -> None:
        """Write the baseline, and say what has changed in it."""
        from pytest_agenttrace.ledger import LedgerError, write_ledger
        from pytest_agenttrace.report import as_text, compare, judge, new_baseline, why_not

        failed = "the run failed" if session.exitstatus != 0 else None
        if (why := why_not(run) or failed) is not None or self._file is None:
            self._alarm([f"{self._shown()} was not updated: {why}"], session)
            return
        moved = new_baseline(self._baseline, run)
        try:
            write_ledger(self._file, moved)
        except LedgerError as error:
            self._alarm([str(error)], session)
            return
        notes = self._config.stash[SESSION].alarms
        part = f" ({run.run.part}: the others stay as they were)" if run.run.part is not None else ""
        tests = f"{len(moved.tests)} test{'' if len(moved.tests) == 1 else 's'}"
        notes.append(f"{self._shown()} was written: {tests}{part}")
        if self._baseline is not None:
            changed = judge(compare(self._baseline, moved, self._tolerance), "never")
            notes += [f"  {line}" for line in as_text(changed, all_names=self._config.get_verbosity() > 0)]

    def _alarm(self, lines: list[str], session: pytest.Session) -> None:
        self._config.stash[SESSION].alarm(lines, session)

    def _to_github(self, run: Ledger, verdict: Verdict | None) -> None:
        from pytest_agenttrace.report import append_summary, as_markdown, error_annotations, of_one_ledger

        self._annotations = list(error_annotations(self._environment, run, self._places))
        if not run.tests and verdict is None:
            return
        text = of_one_ledger(run) if verdict is None else as_markdown(verdict, self._traffic)
        if (trouble := append_summary(self._environment, text)) is not None:
            self._config.stash[SESSION].notes.append(trouble)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Workflow commands, each at the start of a line of its own."""
        if self._annotations:
            terminalreporter.ensure_newline()
        for line in self._annotations:
            terminalreporter.line(line)

    def _shown(self) -> str:
        return str(self._config.getoption("agenttrace_baseline"))
