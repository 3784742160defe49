"""The pytest plugin: hooks, fixtures and options. Translates pytest to the rest and decides nothing.

Nothing heavy is imported until a test asks for a fixture: installed but unused, it costs a pytest
start next to nothing.
"""

from __future__ import annotations

import os
import shlex
import unittest
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_agenttrace import collect
from pytest_agenttrace.collect import LIMITS, SESSION, marker_layers, named_alone
from pytest_agenttrace.environment import dummy_key, quiet_environment
from pytest_agenttrace.session import CassetteUse, Session
from pytest_agenttrace.settings import Settings, SettingsError, read_settings
from pytest_agenttrace.summary import TOLD, Summary
from pytest_agenttrace.usage import explain_comparison

if TYPE_CHECKING:
    from pytest_agenttrace.capture import AgentTrace, Verdict
    from pytest_agenttrace.gemini_server import GeminiServer
    from pytest_agenttrace.replay import GeminiCassette
    from pytest_agenttrace.store import MlflowStore

_FIXTURES = ("agent_trace", "mlflow_store", "gemini_cassette", "gemini_server", "agenttrace_config")
_BUDGET = (
    "budget(node=None, /, *, tokens, input_tokens, output_tokens, cost, llm_calls, tool_calls): "
    "inclusive limits for a node, or for the whole run; cost in USD, as text or Decimal. "
    "The closest marker wins for each node and metric."
)
_AGENT_TRACE = (
    "agent_trace(*, cassette, match='body', ignore=[], hosts=[], allow=[], warn=[], autolog=['langchain'], "
    "run_tracer_inline=None): one test's exceptions. allow and warn name finding kinds, 'unused' or 'node:unused'; "
    "match='order' serves recordings of other clients in their order; ignore names what of a request is volatile, "
    "hosts what may be spoken to in replay; a relative cassette path is relative to the test file."
)


@dataclass
class _Run:
    """What one run of one test holds; made anew for each rerun."""

    store: MlflowStore | None = None
    cassette: GeminiCassette | None = None
    trace: AgentTrace | None = None
    settings: Settings = field(default_factory=Settings)
    verdict: Verdict | None = None
    # How much had been asked of the cassette when the test was judged.
    asked: int = 0
    ended: bool = False
    called: bool = False
    # Whether replies nobody asked for are judged with the test, or over all tests that name its cassette.
    own: bool = True
    use: CassetteUse | None = None
    given_up: str | None = None


_RUN = pytest.StashKey[_Run]()
_OPEN = pytest.StashKey[ExitStack]()
_HELD = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("agenttrace", "traced workflows: replay, budgets (pytest-agenttrace)")
    try:
        group.addoption(
            "--agenttrace-record",
            action="store_true",
            default=False,
            help="Call the real Gemini API and record the selected tests' cassettes anew. Needs a key, costs money.",
        )
        group.addoption(
            "--agenttrace-unused",
            action="store_true",
            default=False,
            help="After a run of the whole suite, list the cassettes no test has used. Deletes nothing.",
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
    config.stash[SESSION] = Session(lambda: _basetemp(config))
    config.stash[_OPEN].callback(config.stash[SESSION].close)
    config.stash[_OPEN].callback(quiet_environment())
    config.pluginmanager.register(collect, "agenttrace-collect")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Summary(config, config.stash[SESSION]), "agenttrace-summary")
    try:
        early_key = bool(config.getini("agenttrace_dummy_key"))
    except (ValueError, TypeError, pytest.UsageError) as error:
        raise pytest.UsageError(f"agenttrace_dummy_key is neither true nor false: {error}") from None
    config.stash[_OPEN].enter_context(dummy_key(early_key and not config.getoption("agenttrace_record")))


def _basetemp(config: pytest.Config) -> Path | None:
    factory = getattr(config, "_tmp_path_factory", None)
    return None if factory is None else Path(factory.getbasetemp())


def pytest_unconfigure(config: pytest.Config) -> None:
    if _OPEN in config.stash:
        config.stash[_OPEN].close()


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
    opened = (
        request.config.stash[SESSION]
        .factory()
        .open(request.node.nodeid, autolog=settings.autolog, run_tracer_inline=settings.run_tracer_inline)
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
    from pytest_agenttrace.replay import CassetteError, open_cassette

    settings = _settings(request)
    item, run = request.node, _run(request.node)
    path = _cassette_path(request, settings)
    marked = any("cassette" in layer for _, layer in marker_layers(item))
    whole = request.config.stash[SESSION].knows_all(path)
    run.own = settings.cassette is None or (marked and whole and named_alone(item, path.resolve()))
    record = bool(request.config.getoption("agenttrace_record"))
    opened = open_cassette(
        path,
        match=settings.match,
        ignore=settings.ignore,
        hosts=settings.hosts,
        record=record,
        command=f"pytest {shlex.quote(item.nodeid)} --agenttrace-record",
        keep_others=not run.own and not whole,
        late=request.config.stash[SESSION].late.append,
        scratch=request.config.stash[SESSION].root,
    )
    try:
        with dummy_key(not record or "gemini_server" in request.fixturenames), opened as cassette:
            run.cassette = cassette
            yield cassette
            _judge_again(item, run)
    except CassetteError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    finally:
        _hold_back(request.config)


def _hold_back(config: pytest.Config) -> None:
    """Keep threads that tests have left behind off the network, once there are any, until pytest ends."""
    from pytest_agenttrace.replay import hold_back

    if _HELD not in config.stash and (held := hold_back(config.stash[SESSION].late.append)) is not None:
        config.stash[_HELD] = True
        config.stash[_OPEN].enter_context(held)


@pytest.fixture
def agent_trace(
    request: pytest.FixtureRequest, mlflow_store: MlflowStore, gemini_cassette: GeminiCassette
) -> AgentTrace:
    """The live trace of this test: trajectory, tokens, cost, calls, per node.

    Composes mlflow_store and gemini_cassette. Reading it drains MLflow's exporter first.
    """
    from pytest_agenttrace.capture import AgentTrace

    trace = AgentTrace(mlflow_store, gemini_cassette, _settings(request).tolerance.forgives)
    _run(request.node).trace = trace
    return trace


@pytest.fixture
def gemini_server(request: pytest.FixtureRequest, gemini_cassette: GeminiCassette) -> GeminiServer:
    """A script to record the cassette from, instead of Google: no key, no network, no cost.

    `reply(Reply("..."), node="research")` says what is answered, by node, by prompt or to any request. It is asked
    with --agenttrace-record only; in replay nothing is started.
    """
    from pytest_agenttrace.gemini_server import GeminiServer
    from pytest_agenttrace.replay import CassetteError

    server = GeminiServer()
    try:
        gemini_cassette.record_from(server, request.config.stash[SESSION].root)
    except CassetteError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    return server


def _run(item: pytest.Item) -> _Run:
    return item.stash.setdefault(_RUN, _Run())


def _settings(request: pytest.FixtureRequest) -> Settings:
    config = request.getfixturevalue("agenttrace_config")
    try:
        settings = read_settings([*marker_layers(request.node), ("agenttrace_config", config)])
    except SettingsError as error:
        raise pytest.fail.Exception("\n".join(error.problems), pytrace=False) from None
    _run(request.node).settings = settings
    return settings


def _cassette_path(request: pytest.FixtureRequest, settings: Settings) -> Path:
    from pytest_agenttrace.replay import cassette_path

    item = request.node
    if settings.cassette is not None:
        return Path(os.path.normpath(item.path.parent / settings.cassette))
    root = request.config.rootpath
    module = item.path.relative_to(root) if item.path.is_relative_to(root) else _outside(item.path, root)
    classes = [node.name for node in item.listchain() if isinstance(node, pytest.Class)]
    name = ".".join([*classes, item.name])
    return cassette_path(root, str(request.config.getini("agenttrace_cassettes")), str(module), name)


def _outside(path: Path, root: Path) -> Path:
    """Where a module outside of rootdir stands below it: apart from others of its name."""
    try:
        place = Path(os.path.relpath(path.parent, root)).as_posix()
    except ValueError:  # another drive of Windows
        place = path.parent.as_posix()
    return Path(f"outside-{blake2b(place.encode(), digest_size=4).hexdigest()}", path.name)


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
    __tracebackhide__ = True
    item.stash[_RUN] = _Run()
    try:
        return (yield)
    except BaseException as error:
        _fail_instead(item, error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    __tracebackhide__ = True
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
    __tracebackhide__ = True
    try:
        return (yield)
    finally:
        item.config.stash[SESSION].sweep()


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
    run.ended = ended
    run.verdict = _verdict(item, run)
    if run.cassette is not None:
        run.asked, run.cassette.after_body = run.cassette.asked, True
    return run.verdict


def _verdict(item: pytest.Item, run: _Run) -> Verdict:
    from pytest_agenttrace.capture import Verdict, judge
    from pytest_agenttrace.store import StoreError

    limits, tolerance = item.stash.get(LIMITS, []), run.settings.tolerance
    try:
        return judge(
            run.trace, run.cassette, run.store, limits=limits, tolerance=tolerance, ended=run.ended, own=run.own
        )
    except StoreError as error:
        return Verdict((str(error),), (), (), ())
    except Exception as error:  # an error in a hook would end the whole run
        return Verdict((f"{_FAULT}: {type(error).__name__}: {error}",), (), (), ())


_FAULT = "pytest-agenttrace could not judge this test, which is a fault of its own"


def _judge_again(item: pytest.Item, run: _Run) -> None:
    """What fixtures have asked while they were torn down: it counts, and may be one thing too many."""
    cassette, before = run.cassette, run.verdict
    if cassette is None or before is None:
        return
    verdict = before
    if cassette.asked != run.asked or any(reply.teardown for reply in cassette.unused):
        cassette.closing = True
        verdict = run.verdict = _verdict(item, run)
    run.use = _use(run, cassette)
    if new := [text for text in verdict.failures if text not in before.failures]:
        raise pytest.fail.Exception("\n".join(["after the test, in teardown:", *new]), pytrace=False)


def _use(run: _Run, cassette: GeminiCassette) -> CassetteUse:
    """What is left of the cassette, for those that share it."""
    kinds = [name for name in ("allow", "warn") if (None, "unused") in getattr(run.settings.tolerance, name)]
    complete = run.ended and not cassette.misses and not cassette.recording
    unused = {str(reply.number): [reply.text, reply.request] for reply in cassette.unused} if complete else {}
    used = cassette.used if complete and unused and not run.own else {}
    return CassetteUse(str(cassette.path), not run.own, complete, kinds[0] if kinds else "", unused, used)


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
    if run is None or (run.store is None and run.cassette is None):
        return report
    if report.when == "teardown":
        setattr(report, TOLD, {"cassette": run.use.plain()} if run.use is not None else {})
    elif report.when == "call" or report.failed:
        setattr(report, TOLD, _told(run, report.failed))
        _explain(item, run, report)
    return report


def _told(run: _Run, failed: bool) -> dict[str, Any]:
    warned = [finding.kind for finding in run.verdict.warned] if run.verdict is not None else []
    # What a test allows, or expects, is no news at the end.
    misses = {miss.cause: miss for miss in run.cassette.misses} if failed and run.cassette is not None else {}
    return {"warned": warned, "misses": [[miss.cause, miss.advice] for miss in misses.values()]}


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
    except Exception as error:  # an error in this hook would end the whole run
        told.append(f"the trace could not be drawn: {type(error).__name__}: {error}")
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
