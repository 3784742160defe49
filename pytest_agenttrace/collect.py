"""What happens while pytest collects: markers are read, and test modules imported under a temporary store.

Markers that cannot be meant are usage errors, all of them at once, before any test runs.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_agenttrace.environment import dummy_key
from pytest_agenttrace.session.state import Session
from pytest_agenttrace.settings import SettingsError, read_settings

if TYPE_CHECKING:
    from pytest_agenttrace.budgets.limits import Lift, Limit
    from pytest_agenttrace.budgets.project import ProjectBudgets

__all__ = ["BUDGETS", "LIMITS", "SESSION", "failed_by", "marker_layers", "named_alone", "named_by_tests"]

SESSION = pytest.StashKey[Session]()
LIMITS = pytest.StashKey[list["Limit"]]()
# The budgets in pyproject.toml; None where there are none.
BUDGETS: pytest.StashKey[ProjectBudgets | None] = pytest.StashKey()
_NAMED = pytest.StashKey[dict[Path, int]]()
_WORKER_PROBLEMS = pytest.StashKey[str]()

# What a worker of xdist tells the controller at its end.
_PROBLEMS, _PARTIAL, _LATE = "agenttrace_problems", "agenttrace_partial", "agenttrace_late"
_UNMATCHED = "agenttrace_unmatched"
_LEAVING_OUT = {option: f"--{option.replace('_', '-')} leaves tests out" for option in ("lf", "ignore", "ignore_glob")}


def marker_layers(item: pytest.Item) -> list[tuple[str, Mapping[str, Any]]]:
    """The settings of a test's markers, closest first."""
    return [("agent_trace", mark.kwargs) for mark in item.iter_markers("agent_trace")]


def failed_by(error: BaseException) -> bool:
    """Whether a body that ended by this has asked for everything it would ask for, as far as anybody knows: it failed
    an assertion, and did not leave."""
    failed = isinstance(error, AssertionError | pytest.fail.Exception)
    return failed and not isinstance(error, pytest.xfail.Exception)


def named_alone(item: pytest.Item, cassette: Path) -> bool:
    """Whether no other collected test's marker names this cassette."""
    return item.config.stash.get(_NAMED, {}).get(cassette, 0) == 1


def named_by_tests(config: pytest.Config, cassette: Path) -> bool:
    """Whether a collected test's marker names this cassette."""
    return config.stash.get(_NAMED, {}).get(cassette, 0) > 0


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    given = getattr(config, "workerinput", None)
    found = config.stash[SESSION]
    found.left_out, folders, whole = _asked_for(config) if given is None else given[_PARTIAL]
    found.folders = [Path(folder) for folder in folders]
    found.whole = [Path(path) for path in whole]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: a worker is about to start; it cannot tell what was asked of the controller."""
    node.workerinput[_PARTIAL] = _asked_for(node.config)


def _asked_for(config: pytest.Config) -> tuple[str | None, list[str], list[str]]:
    """Why a command line does not ask for all tests in its folders (None where it does); the folders that it names (no
    folder: the whole suite); and the files and folders of which it collects every test."""
    here = config.invocation_params.dir
    named = config.args if config.args_source == config.ArgsSource.ARGS else []
    paths = {arg: (here / arg.partition("::")[0]).resolve() for arg in named}
    if config.rootpath.resolve() in paths.values():
        paths = {}
    why = next((why for option, why in _LEAVING_OUT.items() if getattr(config.option, option, None)), None)
    every = [path for arg, path in paths.items() if "::" not in arg] if paths else [config.rootpath.resolve()]
    whole = [] if why is not None else [str(path) for path in every]
    for arg in config.args:
        if "::" in arg or not (here / arg).is_dir():
            why = f"only {arg} was run"
            break
    return why, [str(path) for path in paths.values()], whole


@pytest.hookimpl(tryfirst=True, specname="pytest_collection_modifyitems")
def pytest_count_named(config: pytest.Config, items: list[pytest.Item]) -> None:
    """How many tests name each cassette, those included that are deselected later."""
    counts: dict[Path, int] = {}
    for item in items:
        for mark in item.iter_markers("agent_trace"):
            if isinstance(mark.kwargs.get("cassette"), str | Path):
                path = (item.path.parent / mark.kwargs["cassette"]).resolve()
                counts[path] = counts.get(path, 0) + 1
                break
    config.stash[_NAMED] = counts
    budgets = config.stash[BUDGETS]
    if budgets is not None:
        config.stash[SESSION].unmatched = budgets.unmatched(item.nodeid for item in items)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    problems: list[str] = []
    for item in items:
        unmarked = item.get_closest_marker("budget") is None and item.get_closest_marker("agent_trace") is None
        if unmarked and config.stash[BUDGETS] is None:
            continue
        where = f"{item.location[0]}:{(item.location[1] or 0) + 1}: {getattr(item, 'originalname', None) or item.name}"
        problems += [f"{where}: {problem}" for problem in _read_markers(item)]
    if not problems:
        return
    text = "\n".join(dict.fromkeys(problems))
    output = getattr(config, "workeroutput", None)
    if output is None:
        raise pytest.UsageError(text)
    # xdist takes an error of a worker for a crash: the controller raises it at the end.
    output[_PROBLEMS] = text
    items.clear()


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    if items:
        found = items[0].config.stash[SESSION]
        found.left_out = "tests were deselected"
        found.deselected |= dict.fromkeys(item.nodeid for item in items)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    found = session.config.stash[SESSION]
    found.stopped = bool(session.shouldstop or session.shouldfail)
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_PARTIAL] = found.left_out, found.stopped, list(found.deselected)
        output[_LATE], output[_UNMATCHED] = list(found.late), list(found.unmatched)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """xdist: a worker has ended."""
    output, config = getattr(node, "workeroutput", {}), node.config
    if output.get(_PROBLEMS) is not None:
        config.stash[_WORKER_PROBLEMS] = output[_PROBLEMS]
    session = config.stash[SESSION]
    session.late += output.get(_LATE, ())
    # Each worker has collected all tests.
    session.unmatched = output.get(_UNMATCHED, session.unmatched)
    if error:
        session.crashed = "a worker of xdist crashed"
    left_out, stopped, deselected = output.get(_PARTIAL, (None, False, ()))
    session.left_out = session.left_out or left_out
    session.stopped = session.stopped or stopped
    session.deselected |= dict.fromkeys(deselected)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    result = yield
    if _WORKER_PROBLEMS in session.config.stash:
        raise pytest.UsageError(session.config.stash[_WORKER_PROBLEMS])
    return result


def _read_markers(item: pytest.Item) -> list[str]:
    from pytest_agenttrace.budgets.limits import BudgetError, closest, parse_budget

    problems: list[str] = []
    limits: list[Sequence[Limit | Lift]] = []
    for node, mark in item.iter_markers_with_node("budget"):
        try:
            limits.append(parse_budget(mark.args, mark.kwargs, _site(item, node)))
        except BudgetError as error:
            problems += [f"budget: {problem}" for problem in error.problems]
    problems += [
        f"agent_trace: takes keys only, not {mark.args[0]!r}" for mark in item.iter_markers("agent_trace") if mark.args
    ]
    try:
        read_settings(marker_layers(item))
    except SettingsError as error:
        problems += error.problems
    own = closest(limits)
    if own and isinstance(item, pytest.Function):  # a doctest of a module that has a budget needs none
        _use_fixture(item)
    budgets = item.config.stash[BUDGETS]
    item.stash[LIMITS] = own if budgets is None else closest([*limits, *budgets.of(item.nodeid)])
    return problems


def _site(item: pytest.Item, node: Any) -> str:
    """Where a marker stands: `test_article.py:12`, the first line of what it marks; of a module the file alone."""
    file, line = item.location[0], item.location[1]
    if isinstance(node, pytest.Class):
        place = node.reportinfo()
        file, line = _shown(Path(place[0]), item.config.rootpath), place[1]
    elif node is not item:
        file, line = _shown(node.path, item.config.rootpath), None
    return file if line is None else f"{file}:{line + 1}"


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _use_fixture(item: pytest.Function) -> None:
    """Give a test agent_trace, where usefixtures would: behind all fixtures of a wider scope. Not one that reads a
    run of such a fixture's."""
    names = item.fixturenames
    if "agent_trace" in names or "agent_run" in names:
        return
    # Not public: without it the fixture comes first of all.
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    wider = [name for name in names if any(found.scope != "function" for found in known.get(name, ())[-1:])]
    # A list of its own: the tests of one parametrised function share theirs.
    item.fixturenames = [*wider, "agent_trace", *(name for name in names if name not in wider)]


# Test modules


_USES_US = re.compile(r"\b(agent_trace|agent_run|mlflow_store|gemini_cassette|gemini_server)\b|\bmark\.budget\b")
_SCRIPTED = re.compile(r"\bgemini_server\b")
_NO_KEY = re.compile(r"API.?key|GOOGLE_API_KEY|GEMINI_API_KEY", re.IGNORECASE)
_KEY_HINT = (
    "A model is built while this file is imported, before any fixture can stand in for the key.\n"
    "Build it inside a function, or set this in the pytest configuration:\n"
    "  agenttrace_dummy_key = true"
)
_RECORDING_KEY_HINT = (
    "Recording calls the real API: put GOOGLE_API_KEY into the environment. Or record from a script: name the fixture "
    "gemini_server in this file, and set agenttrace_dummy_key = true."
)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    if not isinstance(collector, pytest.Module) or not _mentions(_USES_US, collector.path):
        return (yield)
    from pytest_agenttrace.store import redirect_at_import

    # While recording only here: elsewhere a dummy would stand before the key that an application loads by itself.
    scripted = collector.config.getini("agenttrace_dummy_key") is True and _mentions(_SCRIPTED, collector.path)
    with redirect_at_import(collector.config.stash[SESSION].factory), dummy_key(scripted):
        report = yield
    if report.failed and _NO_KEY.search(str(report.longrepr)):
        record = any(collector.config.getoption(f"agenttrace_{name}") for name in ("record", "record_missing"))
        report.sections.append(("agenttrace", _RECORDING_KEY_HINT if record else _KEY_HINT))
    return report


def _mentions(names: re.Pattern[str], path: Path) -> bool:
    try:
        return names.search(path.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False
