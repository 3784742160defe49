"""What a whole pytest run knows of its tests: cassettes they share, misses they have in common, and its summary.

Knows nothing of pytest; what tests tell of themselves is plain data, so that xdist can carry it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pytest_agenttrace.environment import sweep_key
from pytest_agenttrace.session.totals import Spent, read_spent

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory

    from pytest_agenttrace.budgets.limits import Use
    from pytest_agenttrace.store import StoreFactory

__all__ = ["CassetteUse", "Session"]

_TESTS_FAILED = 1
# Names and commands are listed up to here; `-v` lists all names.
_NAMES, _NODES, _FILES = 5, 3, 5


@dataclass(frozen=True, slots=True)
class CassetteUse:
    """What one test left of its cassette. `unused` tells each reply nobody asked for, by its number, and for which
    request it is; `used` how many replies to each request were asked for.

    `named` where the cassette is not the test's own by name, so that others may use the rest; `complete` where the
    test's body ended by itself without a miss, `tolerance` what it says of unused replies ("", "warn" or "allow"),
    `recorded` where it was recorded and not replayed.
    """

    path: str
    named: bool
    complete: bool
    tolerance: str = ""
    unused: Mapping[str, Sequence[str]] = field(default_factory=dict)
    used: Mapping[str, int] = field(default_factory=dict)
    recorded: bool = False

    def plain(self) -> list[Any]:
        unused, used = dict(self.unused), dict(self.used)
        return [self.path, self.named, self.complete, self.tolerance, unused, used, self.recorded]


@dataclass(frozen=True, slots=True)
class _Edit:
    """Misses that one edit has caused: the first of them in words, and where it was met."""

    cause: str
    advice: str
    nodes: dict[str, None] = field(default_factory=dict)
    tests: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Adopted:
    """Requests that one edit has changed: how, in the words of the first, and which replies of which files."""

    change: str
    requests: set[tuple[str, int]] = field(default_factory=set)


class Run(Protocol):
    """A pytest run, of which only the exit status is anybody's business here."""

    exitstatus: int


class Session:
    """One pytest process, and on xdist's controller the whole run.

    `left_out` says why the run is not all tests of `folders` (None where it is; no folders: of the whole suite): then,
    and where it was `stopped`, nobody knows what else would have used a shared cassette. `whole` are files and folders
    whose every test is collected and, if not `deselected`, was to run. `late` are requests that threads of tests made
    after these had ended.
    """

    def __init__(self, basetemp: Callable[[], Path | None], worker: bool = False) -> None:
        self._basetemp = basetemp
        self._worker = worker
        self._temporary: TemporaryDirectory[str] | None = None
        self._factory: StoreFactory | None = None
        self.left_out: str | None = None
        self.stopped = False
        # Why the run did not come to its end, where that is nobody's wish.
        self.crashed: str | None = None
        self.folders: list[Path] = []
        self.whole: list[Path] = []
        self.deselected: dict[str, None] = {}
        self.late: list[str] = []
        self.warned: dict[str, int] = {}
        self.forgiven: dict[str, int] = {}
        # What each test has used, the last time it ran, and of its limits: see `runbudget` and `limits_used`.
        self.bills: dict[str, Mapping[str, Any]] = {}
        self.uses: dict[str, Sequence[Use]] = {}
        self.run_uses: Sequence[Use] = ()
        # The nodes that tests have run, and patterns of pyproject.toml that fit no test.
        self.nodes: set[str] = set()
        self.unmatched: list[str] = []
        self._misses: dict[tuple[str, str], _Edit] = {}
        self._uses: dict[str, dict[str, CassetteUse]] = {}
        # What was asked anew: calls, USD and calls of unknown cost, by test; and how requests were adopted.
        self.recorded: dict[str, tuple[int, str, int]] = {}
        # Recordings that are not whole, of tests that do not fail.
        self.incomplete: dict[str, str] = {}
        self._adopted: dict[str, _Adopted] = {}
        # Where MLflow prices a model otherwise than we do: the first difference of each, in words.
        self.costs: dict[str, str] = {}
        # What others have to say at the end of the run: under -q too what fails it.
        self.notes: list[str] = []
        self.alarms: list[str] = []
        # Paths of cassettes that are older than the project allows, with their age in days.
        self.aged: dict[str, int] = {}

        # Folders of kept stores, where all are kept.
        self.kept: dict[str, None] = {}

    def factory(self) -> StoreFactory:
        """The maker of this process's stores, below pytest's temporary root."""
        from pytest_agenttrace.store import StoreFactory

        if self._factory is None:
            self._factory = StoreFactory(self.root)
        return self._factory

    @property
    def parts(self) -> Path:
        """A folder that all processes of a run share, for what they record."""
        # xdist's workers have theirs below the controller's.
        root = self.root.parent
        return (root.parent if self._worker else root) / "agenttrace-recorded"

    @property
    def root(self) -> Path:
        """This process's own folder below pytest's temporary root."""
        root = self._basetemp()
        if root is None:
            if self._temporary is None:
                from tempfile import TemporaryDirectory

                self._temporary = TemporaryDirectory(prefix="pytest-agenttrace-")
            root = Path(self._temporary.name)
        return root / "agenttrace"

    def sweep(self) -> None:
        """After a test's last fixture is torn down: put back variables that a late `monkeypatch` has restored."""
        if self._factory is not None:
            self._factory.sweep()
        else:
            sweep_key()

    def close(self) -> None:
        if self._factory is not None:
            self._factory.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def tell(self, test: str, told: Mapping[str, Any]) -> None:
        """What one test's report carries: kinds `warned` of and `forgiven`, `misses` (edit, node, cause, advice),
        `bill`, `uses`, `nodes`, `cassette`, `costs`."""
        for counts, kinds in ((self.warned, told.get("warned", ())), (self.forgiven, told.get("forgiven", ()))):
            for kind in kinds:
                counts[kind] = counts.get(kind, 0) + 1
        if told.get("bill"):
            self.bills[test] = told["bill"]
        if "uses" in told:
            from pytest_agenttrace.budgets.fullness import read_uses

            self.uses[test] = read_uses(told["uses"])
        self.nodes.update(told.get("nodes", ()))
        for edit, node, cause, advice in told.get("misses", ()):
            found = self._misses.setdefault((edit, advice), _Edit(cause, advice))
            found.tests[test] = found.nodes[node or "(no node)"] = None
        if "recorded" in told:
            self.recorded[test] = tuple(told["recorded"])
        if "incomplete" in told:
            self.incomplete[test] = told["incomplete"]
        for path, number, change, edit in told.get("adopted", ()):
            self._adopted.setdefault(edit, _Adopted(change)).requests.add((path, number))
        if "kept" in told:
            self.kept[told["kept"]] = None
        self.aged.update(told.get("aged", {}))
        for model, text in told.get("costs", ()):
            self.costs.setdefault(model, text)
        if "cassette" in told:
            use = CassetteUse(*told["cassette"])
            self._uses.setdefault(use.path, {})[test] = use

    @property
    def spent(self) -> dict[str, Spent]:
        """What each trace has used."""
        traced = {test: bill for test, bill in self.bills.items() if bill["traced"]}
        return {test: read_spent({"": bill["run"], **bill["nodes"]}) for test, bill in traced.items()}

    def forget(self, test: str) -> None:
        """A test runs again: what it has used before counts no more."""
        self.bills.pop(test, None)
        self.uses.pop(test, None)

    def part(self, root: Path) -> str | None:
        """Why the run is not the whole suite of a project; None where it is."""
        if self.left_out is not None or not self.folders:
            return self.left_out
        return f"only {', '.join(_below(folder, root.resolve()) for folder in self.folders)} was run"

    def whole_parts(self, root: Path) -> tuple[str, ...]:
        """The files and folders, below pytest's rootdir, of which a part of the suite has every test that it does not
        deselect; none of a whole suite."""
        part = self.part(root) is not None
        return tuple(sorted(_below(path, root.resolve()) for path in self.whole)) if part else ()

    def alarm(self, lines: Iterable[str], run: Run) -> None:
        """Say at the end what fails the run, and fail it."""
        told = list(lines)
        self.alarms += told
        if told and run.exitstatus == 0:
            run.exitstatus = _TESTS_FAILED

    def knows_all(self, cassette: Path) -> bool:
        """Whether all tests that may use a cassette were to run: its folder, and with it theirs, was."""
        return (
            self.left_out is None
            and not self.stopped
            and self.crashed is None
            and (not self.folders or any(cassette.resolve().is_relative_to(folder) for folder in self.folders))
        )

    def recorded_by_all(self) -> list[Path]:
        """The shared cassettes that every test which names them was to record, and has recorded whole."""
        return [
            Path(path)
            for path, uses in self._uses.items()
            if self.knows_all(Path(path)) and all(u.named and u.complete and u.recorded for u in uses.values())
        ]

    def adopted(self) -> list[str]:
        """How requests have changed for which old replies were adopted, the most frequent first."""
        found = sorted(self._adopted.values(), key=lambda adopted: (-len(adopted.requests), adopted.change))
        return [
            f"{len(adopted.requests)} {'request' if len(adopted.requests) == 1 else 'requests'} changed in "
            f"{'one way' if not index else 'another way'}: {adopted.change}"
            for index, adopted in enumerate(found)
        ]

    def used(self) -> set[Path]:
        """The cassettes that tests have opened, links resolved."""
        return {Path(path).resolve() for path in self._uses}

    def unused(self) -> tuple[list[str], list[str]]:
        """Replies of shared cassettes that none of their tests asked for: those that fail the run, and those only
        warned of. Nothing, where the run is a part of the suite or one of the tests did not end by itself."""
        failing: list[str] = []
        warned: list[str] = []
        for path, uses in self._uses.items():
            shared = list(uses.values())
            judged = self.knows_all(Path(path)) and all(use.named and use.complete for use in shared)
            if not judged or any(use.tolerance == "allow" for use in shared):
                continue
            if left := _nobody_asked_for(shared):
                lines = warned if any(use.tolerance == "warn" for use in shared) else failing
                lines.append(_unused_text(path, list(uses), left))
        return failing, warned

    def groups(self, *, all_names: bool, last_failed: bool) -> Iterator[str]:
        """One text for each miss that several tests have in common; `last_failed` where `--lf` would repeat them."""
        for edit in self._misses.values():
            tests = list(edit.tests)
            if len(tests) < 2:
                continue
            head, _, evidence = edit.cause.partition("\n")
            problem = head.removeprefix(f"{next(iter(edit.nodes))}: ")
            nodes = _listed(list(edit.nodes), len(edit.nodes) if all_names else _NAMES)
            lines = [f"CassetteMiss in {len(tests)} tests: {nodes}: {problem}", *evidence.splitlines()]
            lines.append(f"  in {_listed(tests, len(tests) if all_names else _NAMES)}")
            if edit.advice:
                lines += [f"  {edit.advice}", f"    {_command(tests, last_failed)}"]
            yield "\n".join(line for line in lines if line)


def _nobody_asked_for(shared: Sequence[CassetteUse]) -> list[str]:
    """Replies that no test asked for. Every test begins with the first of equal replies: each is one that others
    have left to it."""
    requests = {request for use in shared for request in use.used}
    counts = {request: [use.used.get(request, 0) for use in shared] for request in requests}
    spared = {request: sum(asked) - max(asked) for request, asked in counts.items()}
    left: list[str] = []
    for number, (text, request) in shared[0].unused.items():
        if not all(number in use.unused for use in shared):
            continue
        if spared.get(request, 0) > 0:
            spared[request] -= 1
        else:
            left.append(text)
    return left


def _unused_text(path: str, tests: Sequence[str], left: Sequence[str]) -> str:
    by = f"its {len(tests)} tests" if len(tests) > 1 else tests[0]
    files = [Path(name.partition("::")[0]) for name in tests]
    places = dict.fromkeys((file.parent if file.name == "conftest.py" else file).as_posix() for file in files)
    return "\n".join(
        [
            f"{_shown(Path(path))}: {len(left)} recorded {_replies(left)} never asked for by {by} [unused]",
            *(f"  {text}" for text in left),
            "  Where nothing asks for that any more, delete the file and record it again:",
            f"    pytest {' '.join(map(shlex.quote, places))} --agenttrace-record",
        ]
    )


def _shown(path: Path) -> str:
    return _below(path, Path.cwd())


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _replies(left: Sequence[str]) -> str:
    return "reply was" if len(left) == 1 else "replies were"


def _listed(names: Sequence[str], most: int) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _command(tests: Sequence[str], last_failed: bool) -> str:
    files = list(dict.fromkeys(re.split(r"::", test, maxsplit=1)[0] for test in tests))
    if len(tests) <= _NODES:
        what: Iterable[str] = tests
    elif last_failed or len(files) > _FILES:
        what = ["--lf"]
    else:
        what = files
    return f"pytest {shlex.join(what)} --agenttrace-record"
