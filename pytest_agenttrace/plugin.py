"""The pytest plugin: hooks, fixtures and options. Translates pytest to the rest and decides nothing.

Nothing heavy is imported until a test asks for a fixture: installed but unused, it costs a pytest
start next to nothing.
"""

from __future__ import annotations

import re
import shlex
import unittest
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_agenttrace.environment import dummy_key, quiet_environment
from pytest_agenttrace.settings import Settings, SettingsError, read_settings
from pytest_agenttrace.usage import explain_comparison

if TYPE_CHECKING:
    from pytest_agenttrace.budget import Limit
    from pytest_agenttrace.capture import AgentTrace, Verdict
    from pytest_agenttrace.replay import GeminiCassette
    from pytest_agenttrace.store import MlflowStore, StoreFactory

_FIXTURES = ("agent_trace", "mlflow_store", "gemini_cassette", "agenttrace_config")
_BUDGET = (
    "budget(node=None, /, *, tokens, input_tokens, output_tokens, cost, llm_calls, tool_calls): "
    "inclusive limits for a node, or for the whole run; cost in USD, as text or Decimal. "
    "The closest marker wins for each node and metric."
)
_AGENT_TRACE = (
    "agent_trace(*, cassette, match='body', allow=[], warn=[], autolog=['langchain'], run_tracer_inline=None): "
    "one test's exceptions. allow and warn name finding kinds, 'unused' or 'node:unused'; match='order' serves "
    "recordings of other clients in their order; a relative cassette path is relative to the test file."
)


@dataclass
class _Run:
    """What one run of one test holds; made anew for each rerun."""

    store: MlflowStore | None = None
    cassette: GeminiCassette | None = None
    trace: AgentTrace | None = None
    settings: Settings = field(default_factory=Settings)
    verdict: Verdict | None = None
    called: bool = False
    given_up: str | None = None


# An attribute of reports, because xdist carries those to the controller.
_WARNED = "agenttrace_warned"
_PROBLEMS = "agenttrace_problems"
_RUN = pytest.StashKey[_Run]()
_LIMITS = pytest.StashKey[list["Limit"]]()
_FACTORY = pytest.StashKey["StoreFactory"]()
_WORKER_PROBLEMS = pytest.StashKey[str]()
_OPEN = pytest.StashKey[ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("agenttrace", "traced workflows: replay, budgets (pytest-agenttrace)")
    try:
        group.addoption(
            "--agenttrace-record",
            action="store_true",
            default=False,
            help="Call the real Gemini API and record the selected tests' cassettes anew. Needs a key, costs money.",
        )
        parser.addini(
            "agenttrace_cassettes",
            "folder of the cassettes, relative to rootdir (default: cassettes)",
            default="cassettes",
        )
        parser.addini(
            "agenttrace_dummy_key",
            "put a dummy GOOGLE_API_KEY in the environment from the start, for models built at import "
            "(un-skips tests that skip without a key)",
            type="bool",
            default=False,
        )
    except ValueError as error:
        raise pytest.UsageError(
            f"pytest-agenttrace: another plugin has one of its names: {error}. "
            "Uninstall one of the two, or leave this one out with -p no:agenttrace."
        ) from None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _BUDGET)
    config.addinivalue_line("markers", _AGENT_TRACE)
    config.stash[_OPEN] = ExitStack()
    config.stash[_OPEN].callback(quiet_environment())
    try:
        early_key = bool(config.getini("agenttrace_dummy_key"))
    except (ValueError, TypeError, pytest.UsageError) as error:
        raise pytest.UsageError(f"agenttrace_dummy_key is neither true nor false: {error}") from None
    config.stash[_OPEN].enter_context(dummy_key(early_key and not config.getoption("agenttrace_record")))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OPEN in config.stash:
        config.stash[_OPEN].close()


# Collection: bad markers are usage errors, all of them at once.


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    problems: list[str] = []
    for item in items:
        if item.get_closest_marker("budget") is None and item.get_closest_marker("agent_trace") is None:
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


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """xdist: a worker has ended."""
    text = getattr(node, "workeroutput", {}).get(_PROBLEMS)
    if text is not None:
        node.config.stash[_WORKER_PROBLEMS] = text


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    result = yield
    if _WORKER_PROBLEMS in session.config.stash:
        raise pytest.UsageError(session.config.stash[_WORKER_PROBLEMS])
    return result


def _read_markers(item: pytest.Item) -> list[str]:
    from pytest_agenttrace.budget import BudgetError, closest, parse_budget

    problems: list[str] = []
    limits: list[list[Limit]] = []
    for mark in item.iter_markers("budget"):
        try:
            limits.append(parse_budget(mark.args, mark.kwargs))
        except BudgetError as error:
            problems += [f"budget: {problem}" for problem in error.problems]
    problems += [
        f"agent_trace: takes keys only, not {mark.args[0]!r}" for mark in item.iter_markers("agent_trace") if mark.args
    ]
    try:
        read_settings(_marker_layers(item))
    except SettingsError as error:
        problems += error.problems
    item.stash[_LIMITS] = closest(limits)
    if limits:
        _use_fixture(item)
    return problems


def _use_fixture(item: pytest.Item) -> None:
    """Give a test agent_trace, where usefixtures would: behind all fixtures of a wider scope."""
    names = getattr(item, "fixturenames", None)
    if names is None or "agent_trace" in names:
        return
    # Not public: without it the fixture comes first of all.
    known = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    wider = [name for name in names if any(found.scope != "function" for found in known.get(name, ())[-1:])]
    # A list of its own: the tests of one parametrised function share theirs.
    item.fixturenames = [*wider, "agent_trace", *(name for name in names if name not in wider)]  # type: ignore[attr-defined]


def _marker_layers(item: pytest.Item) -> list[tuple[str, Mapping[str, Any]]]:
    return [("agent_trace", mark.kwargs) for mark in item.iter_markers("agent_trace")]


_USES_US = re.compile(r"\b(agent_trace|mlflow_store|gemini_cassette)\b|\bmark\.budget\b")
_NO_KEY = re.compile(r"API.?key|GOOGLE_API_KEY|GEMINI_API_KEY", re.IGNORECASE)
_KEY_HINT = (
    "A model is built while this file is imported, before any fixture can stand in for the key.\n"
    "Build it inside a function, or set this in the pytest configuration:\n"
    "  agenttrace_dummy_key = true"
)


_RECORDING_KEY_HINT = "Recording calls the real API: put GOOGLE_API_KEY into the environment."


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    if not isinstance(collector, pytest.Module) or not _mentions_us(collector.path):
        return (yield)
    from pytest_agenttrace.store import redirect_at_import

    with redirect_at_import(lambda: _factory(collector.config)):
        report = yield
    if report.failed and _NO_KEY.search(str(report.longrepr)):
        record = collector.config.getoption("agenttrace_record")
        report.sections.append(("agenttrace", _RECORDING_KEY_HINT if record else _KEY_HINT))
    return report


def _mentions_us(path: Path) -> bool:
    try:
        return _USES_US.search(path.read_text(encoding="utf-8", errors="replace")) is not None
    except OSError:
        return False


# Fixtures.


@pytest.fixture
def agenttrace_config() -> Mapping[str, Any]:
    """Settings of a folder or a project: override it to return the keys of the agent_trace marker."""
    return {}


@pytest.fixture
def mlflow_store(request: pytest.FixtureRequest) -> Iterator[MlflowStore]:
    """A real SQLite MLflow store, empty, with autolog on; MLflow's global state is restored afterwards.

    `uri`, `path`, `experiment_id`, `artifacts`, `traces()` (MLflow's own entities), `requested` (what
    the code asked of MLflow's global state and did not get).
    """
    from pytest_agenttrace.store import StoreError

    settings = _settings(request)
    opened = _factory(request.config).open(
        request.node.nodeid, autolog=settings.autolog, run_tracer_inline=settings.run_tracer_inline
    )
    try:
        with opened as store:
            _run(request.node).store = store
            yield store
    except StoreError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture
def gemini_cassette(request: pytest.FixtureRequest) -> Iterator[GeminiCassette]:
    """The test's recorded Gemini replies, replayed; with --agenttrace-record, recorded.

    `path`, `calls` (every exchange so far), `recording`. No key is needed in replay.
    """
    from pytest_agenttrace.cassette import CassetteError
    from pytest_agenttrace.replay import open_cassette

    settings = _settings(request)
    run = _run(request.node)
    record = bool(request.config.getoption("agenttrace_record"))
    owner = run.store.owns_current_thread if run.store is not None else None
    opened = open_cassette(
        _cassette_path(request, settings),
        match=settings.match,
        record=record,
        command=f"pytest {shlex.quote(request.node.nodeid)} --agenttrace-record",
        owner=owner,
    )
    try:
        with dummy_key(not record), opened as cassette:
            run.cassette = cassette
            yield cassette
    except CassetteError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.fixture
def agent_trace(
    request: pytest.FixtureRequest, mlflow_store: MlflowStore, gemini_cassette: GeminiCassette
) -> AgentTrace:
    """The live trace of this test: trajectory, tokens, cost, calls, per node.

    Composes mlflow_store and gemini_cassette. Reading it drains MLflow's exporter first.
    """
    from pytest_agenttrace.capture import AgentTrace

    trace = AgentTrace(mlflow_store, gemini_cassette)
    _run(request.node).trace = trace
    return trace


def _run(item: pytest.Item) -> _Run:
    return item.stash.setdefault(_RUN, _Run())


def _settings(request: pytest.FixtureRequest) -> Settings:
    config = request.getfixturevalue("agenttrace_config")
    try:
        settings = read_settings([*_marker_layers(request.node), ("agenttrace_config", config)])
    except SettingsError as error:
        raise pytest.fail.Exception("\n".join(error.problems), pytrace=False) from None
    _run(request.node).settings = settings
    return settings


def _factory(config: pytest.Config) -> StoreFactory:
    if _FACTORY not in config.stash:
        from tempfile import TemporaryDirectory

        from pytest_agenttrace.store import StoreFactory

        factory = getattr(config, "_tmp_path_factory", None)
        if factory is not None:
            root = Path(factory.getbasetemp())
        else:
            root = Path(config.stash[_OPEN].enter_context(TemporaryDirectory(prefix="pytest-agenttrace-")))
        config.stash[_FACTORY] = StoreFactory(root / "agenttrace")
        config.stash[_OPEN].callback(config.stash[_FACTORY].close)
    return config.stash[_FACTORY]


def _cassette_path(request: pytest.FixtureRequest, settings: Settings) -> Path:
    from pytest_agenttrace.cassette import cassette_path

    item = request.node
    if settings.cassette is not None:
        return Path(item.path.parent / settings.cassette)
    root = request.config.rootpath
    module = item.path.relative_to(root) if item.path.is_relative_to(root) else Path(item.path.name)
    classes = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    name = ".".join([*classes, item.name])
    return cassette_path(root, str(request.config.getini("agenttrace_cassettes")), str(module), name)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """Two plugins with our fixture names: say so, rather than run the wrong one. A conftest may override."""
    if fixturedef.argname not in _FIXTURES:
        return
    manager = request.config.pluginmanager
    for plugin in manager.get_plugins():
        if _defines(plugin, fixturedef):
            pytest.fail(
                f"the fixture {fixturedef.argname!r} is defined by two plugins, pytest-agenttrace and "
                f"{manager.get_name(plugin)}: uninstall one of the two, or leave one out with -p no:NAME",
                pytrace=False,
            )


def _defines(plugin: object, fixturedef: pytest.FixtureDef[Any]) -> bool:
    """Whether a plugin that is neither ours nor a conftest has a fixture of this name, in force or not."""
    name = getattr(plugin, "__name__", None)
    if name == __name__ or Path(getattr(plugin, "__file__", None) or "").name == "conftest.py":
        return False
    ours, theirs = globals()[fixturedef.argname], getattr(plugin, fixturedef.argname, None)
    # Before pytest 8.4 a fixture is a function with marks of pytest's.
    is_fixture = type(theirs) is type(ours) and vars(ours).keys() <= vars(theirs).keys()
    return is_fixture or (name is not None and getattr(fixturedef.func, "__module__", None) == name)


# Judging: in the call phase, so that xfail, reruns, xdist and JUnit see a failure like any other.


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[_RUN] = _Run()
    try:
        return (yield)
    except BaseException as error:
        _fail_instead(item, error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    try:
        result = yield
    except BaseException as error:
        _fail_instead(item, error)
        raise
    _run(item).called = True
    if not _is_unittest(item):
        _fail_instead(item, None)
    return result


@pytest.hookimpl(specname="pytest_runtest_makereport", wrapper=True, trylast=True)
def pytest_unittest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A TestCase's failure does not come through the call: it is judged here, innermost, before xfail is."""
    report = yield
    # Its subtests are reported while it runs.
    if call.when != "call" or not _is_unittest(item) or not _run(item).called:
        return report
    try:
        _fail_instead(item, call.excinfo.value if call.excinfo is not None else None)
    except pytest.fail.Exception:
        call.excinfo = pytest.ExceptionInfo.from_current()
        return pytest.TestReport.from_item_and_call(item, call)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        if _FACTORY in item.config.stash:
            item.config.stash[_FACTORY].sweep()


def _fail_instead(item: pytest.Item, error: BaseException | None) -> None:
    """Fail a test that ended by itself (`error` None) where something is wrong; one that a miss has
    ended in the miss's own words, without a traceback of ours."""
    run = _run(item)
    if error is not None and run.cassette is not None and not isinstance(error, AssertionError | pytest.fail.Exception):
        run.given_up = run.cassette.give_up()
    if isinstance(error, KeyboardInterrupt | pytest.exit.Exception):
        return
    verdict = _judge(item, run, ended=error is None)
    if verdict is None:
        return
    text = verdict.text
    if error is not None:
        from pytest_agenttrace.capture import cut_traceback, miss_in

        cut_traceback(error)
        if not miss_in(error) or any("raises" in mark.kwargs for mark in item.iter_markers("xfail")):
            return
        text = text or f"CassetteMiss: {error}"
    if text:
        raise pytest.fail.Exception(text, pytrace=False) from None


def _judge(item: pytest.Item, run: _Run, *, ended: bool) -> Verdict | None:
    if run.cassette is None and run.store is None:
        return None
    from pytest_agenttrace.capture import Verdict, judge
    from pytest_agenttrace.store import StoreError

    limits: list[Limit] = item.stash.get(_LIMITS, [])
    tolerance = run.settings.tolerance
    try:
        run.verdict = judge(run.trace, run.cassette, run.store, limits=limits, tolerance=tolerance, ended=ended)
    except StoreError as error:
        run.verdict = Verdict((str(error),), (), (), ())
    return run.verdict


def _is_unittest(item: pytest.Item) -> bool:
    cls = getattr(item, "cls", None)
    return isinstance(cls, type) and issubclass(cls, unittest.TestCase)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    report.user_properties = [(name, _plain(value)) for name, value in report.user_properties]
    run = item.stash.get(_RUN, None)
    if run is None or report.when == "teardown" or (run.store is None and run.cassette is None):
        return report
    if run.verdict is not None and run.verdict.warned:
        setattr(report, _WARNED, [finding.kind for finding in run.verdict.warned])
    if report.when == "call" or report.failed:
        _explain(item, run, report)
    return report


def _plain(value: object) -> object:
    """What xdist and JUnit can carry: no subclass of ours, no Decimal."""
    if isinstance(value, Decimal):
        return str(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _explain(item: pytest.Item, run: _Run, report: pytest.TestReport) -> None:
    """What a test needs beside its message: misses its own error hides, the tree, redirects, the store."""
    from pytest_agenttrace.store import StoreError

    told = [run.verdict.text] if run.verdict is not None and run.verdict.failures else []
    drawn: list[tuple[str, str]] = []
    try:
        if report.failed and run.store is not None:
            run.store.keep()
        if report.failed or set("PA") & set(item.config.option.reportchars):
            drawn = _drawn(item, run)
    except (StoreError, OSError) as error:
        told.append(str(error))
    if run.given_up is not None:
        told.append(run.given_up)
    findings = [text for text in dict.fromkeys(told) if text not in str(report.longrepr)]
    report.sections += [("Captured findings", text) for text in findings] + drawn


def _drawn(item: pytest.Item, run: _Run) -> list[tuple[str, str]]:
    """The sections with the tree, and with what the code asked of MLflow and did not get."""
    sections: list[tuple[str, str]] = []
    trace = run.trace.peek() if run.trace is not None else None
    if trace is not None:
        verbosity = item.config.get_verbosity()
        depth = 0 if verbosity < 0 else 2 if verbosity > 1 else 1
        about = run.verdict.about if run.verdict is not None else ()
        sections.append(("Captured trace", trace.drawn(about=about, depth=depth)))
    if run.store is not None and run.store.requested:
        lines = [f"{request}: {_answer(request)}" for request in run.store.requested]
        sections.append(("Captured requests to MLflow", "\n".join(lines)))
    return sections


def _answer(request: str) -> str:
    return "tracing was switched off" if "autolog(" in request else "redirected to the temporary store"


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    return explain_comparison(op, left, right)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    counts: dict[str, int] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for kind in getattr(report, _WARNED, ()):
                counts[kind] = counts.get(kind, 0) + 1
    if counts:
        terminalreporter.section("agenttrace")
        told = ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items()))
        terminalreporter.line(f"findings warned of: {told}")
