"""The pytest plugin: hooks, fixtures and options. Translates pytest to the rest and decides nothing.

Nothing heavy is imported until a test asks for a fixture: installed but unused, it costs a pytest
start next to nothing.
"""

from __future__ import annotations

import unittest
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_agenttrace import collect, opening
from pytest_agenttrace.collect import BUDGETS, LIMITS, SESSION, failed_by, marker_layers, named_alone
from pytest_agenttrace.environment import dummy_key, quiet_environment
from pytest_agenttrace.opening import OPEN, PRICES, cassette_of, hold_back, opening_of, price_of
from pytest_agenttrace.options import (
    ASCII,
    OptionError,
    add_options,
    ascii_only,
    budgets_of,
    cassettes_of,
    check_options,
    early_key,
    keep_of,
    ledger_of,
    max_age_of,
    mode_of,
    prices_of,
    wants_gate,
)
from pytest_agenttrace.scoped import RUNS, AgentRun, Runs, told_of
from pytest_agenttrace.session.accounting import WANTED, Accountant, wanted_of
from pytest_agenttrace.session.bookkeeping import FACTS, Bookkeeper, facts_told, outcome_of
from pytest_agenttrace.session.state import Session
from pytest_agenttrace.session.summary import TOLD, TOLD_OF_RUNS, Summary
from pytest_agenttrace.settings import Settings, SettingsError, read_settings
from pytest_agenttrace.testrun import Run
from pytest_agenttrace.tree import printable_lines
from pytest_agenttrace.usage import explain_comparison

if TYPE_CHECKING:
    from pytest_agenttrace.capture import AgentTrace
    from pytest_agenttrace.gemini_server import GeminiServer
    from pytest_agenttrace.replay import GeminiCassette
    from pytest_agenttrace.session.gating import Gate
    from pytest_agenttrace.store import MlflowStore

_FIXTURES = (
    *("agent_trace", "agent_run", "mlflow_store", "mlflow_seed"),
    *("gemini_cassette", "gemini_server", "agenttrace_config"),
)
_BUDGET = (
    "budget(node=None, /, *, tokens, input_tokens, output_tokens, cost, llm_calls, tool_calls): "
    "inclusive limits for a node, or for the whole run; cost in USD, as text or Decimal. "
    "None lifts one. The closest marker wins for each node and metric, then pyproject.toml."
)
_AGENT_TRACE = (
    "agent_trace(*, cassette, match='body', order=None, ignore=[], hosts=[], secrets=[], allow=[], warn=[], "
    "autolog=['langchain'], run_tracer_inline=None): one test's exceptions. "
    "allow and warn name finding kinds, 'unused' or 'node:unused'; "
    "match='order' serves recordings of other clients in their order; order='shuffle' or 'shuffle:SEED' releases "
    "replies of parallel branches in an order of chance; ignore names what of a request is volatile, "
    "hosts what may be spoken to in replay, secrets what no cassette may hold; "
    "a relative cassette path is relative to the test file."
)


_RUN = pytest.StashKey[Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    try:
        add_options(parser)
    except OptionError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _BUDGET)
    config.addinivalue_line("markers", _AGENT_TRACE)
    config.stash[OPEN] = ExitStack()
    config.stash[SESSION] = Session(lambda: _basetemp(config), hasattr(config, "workerinput"))
    try:
        check_options(config)
        config.stash[PRICES] = prices_of(config)
        config.stash[BUDGETS] = budgets_of(config)
        config.stash[WANTED] = wanted_of(config)
    except OptionError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[OPEN].callback(config.stash[SESSION].close)
    config.stash[OPEN].callback(quiet_environment())
    config.pluginmanager.register(collect, "agenttrace-collect")
    config.pluginmanager.register(opening, "agenttrace-opening")
    config.stash[RUNS] = Runs()
    config.pluginmanager.register(config.stash[RUNS], "agenttrace-runs")
    if not hasattr(config, "workerinput"):
        if config.stash[WANTED].facts:
            bookkeeper = Bookkeeper(config.stash[SESSION], config.rootpath, ledger_of(config))
            config.pluginmanager.register(bookkeeper, "agenttrace-ledger")
            if wants_gate(config):
                config.pluginmanager.register(_gate(config, bookkeeper), "agenttrace-gate")
        if config.stash[WANTED].judged:
            config.pluginmanager.register(Accountant(config, config.stash[SESSION]), "agenttrace-accounting")
        cassettes = config.rootpath / cassettes_of(config)
        config.pluginmanager.register(Summary(config, config.stash[SESSION], cassettes), "agenttrace-summary")
    config.stash[OPEN].enter_context(dummy_key(early_key(config) and mode_of(config) in ("replay", "adopt")))


def _gate(config: pytest.Config, bookkeeper: Bookkeeper) -> Gate:
    from pytest_agenttrace.session.gating import Gate

    try:
        return Gate(config, bookkeeper)
    except OptionError as error:
        raise pytest.UsageError(str(error)) from None


def _basetemp(config: pytest.Config) -> Path | None:
    factory = getattr(config, "_tmp_path_factory", None)
    return None if factory is None else Path(factory.getbasetemp())


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist: a worker is about to start; its reports are shown by the controller's terminal."""
    node.workerinput[ASCII] = ascii_only(node.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if OPEN in config.stash:
        config.stash[OPEN].close()


# Fixtures.


@pytest.fixture(scope="session")
def agenttrace_config() -> Mapping[str, Any]:
    """Settings of a folder or a project: override it to return the keys of the agent_trace marker."""
    return {}


@pytest.fixture(scope="session")
def mlflow_seed() -> Callable[[], object] | None:
    """What every test's MLflow store begins with: override it, in the same scope, to return a function that registers
    prompts and models, logs runs, ... It is called once, before the first test that has a store."""
    return None


@pytest.fixture
def mlflow_store(request: pytest.FixtureRequest, mlflow_seed: Callable[[], object] | None) -> Iterator[MlflowStore]:
    """A real SQLite MLflow store, empty but for the seed, autolog on; MLflow's global state is restored afterwards.

    `uri`, `path`, `experiment_id`, `artifacts`, `traces()` (MLflow's own entities), `requested` (what
    the code asked of MLflow's global state and did not get).
    """
    from pytest_agenttrace.store import StoreError

    settings = _settings(request)
    opened = (
        request.config.stash[SESSION]
        .factory()
        .open(
            request.node.nodeid,
            autolog=settings.autolog,
            run_tracer_inline=settings.run_tracer_inline,
            seed=mlflow_seed,
        )
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
    from pytest_agenttrace.replay import CassetteError, Shares, open_cassette

    settings = _settings(request)
    item, run = request.node, _run(request.node)
    path = cassette_of(item, settings)
    marked = any("cassette" in layer for _, layer in marker_layers(item))
    whole = request.config.stash[SESSION].knows_all(path)
    run.max_age = max_age_of(request.config)
    run.price = price_of(request.config)
    run.own = settings.cassette is None or (marked and whole and named_alone(item, path.resolve()))
    mode = mode_of(request.config)
    session = request.config.stash[SESSION]
    shares = None if run.own else Shares(session.parts, item.nodeid)
    how = opening_of(request, item, settings, item.nodeid, shares)
    opened = open_cassette(path, how, scratch=session.root)
    try:
        scripted = "gemini_server" in request.fixturenames
        with dummy_key(scripted or mode in ("replay", "adopt")), opened as cassette:
            run.cassette = cassette
            yield cassette
            if new := run.judge_again():
                raise pytest.fail.Exception("\n".join(["after the test, in teardown:", *new]), pytrace=False)
    except CassetteError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None
    finally:
        hold_back(request.config)


@pytest.fixture
def agent_trace(
    request: pytest.FixtureRequest, mlflow_store: MlflowStore, gemini_cassette: GeminiCassette
) -> AgentTrace:
    """The live trace of this test: trajectory, tokens, cost, calls, per node.

    Composes mlflow_store and gemini_cassette. Reading it drains MLflow's exporter first.
    """
    from pytest_agenttrace.capture import AgentTrace

    trace = AgentTrace(mlflow_store, gemini_cassette, _settings(request).tolerance, price_of(request.config))
    _run(request.node).trace = trace
    return trace


@pytest.fixture(scope="session")
def agent_run(request: pytest.FixtureRequest) -> AgentRun:
    """One run that many tests read: `with agent_run("article.yaml") as trace:` in a fixture of a class, a module or a
    session, with the keys of the agent_trace marker. Return the trace once the block has ended."""
    return AgentRun(request.config.stash[RUNS])


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


def _run(item: pytest.Item) -> Run:
    return item.stash.setdefault(_RUN, Run())


def _settings(request: pytest.FixtureRequest) -> Settings:
    run = _run(request.node)
    if run.settings is not None:
        return run.settings
    config = request.getfixturevalue("agenttrace_config")
    try:
        settings = read_settings([*marker_layers(request.node), ("agenttrace_config", config)])
    except SettingsError as error:
        raise pytest.fail.Exception("\n".join(error.problems), pytrace=False) from None
    run.settings = settings
    return settings


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
    item.stash[_RUN] = Run(keep=keep_of(item.config))
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
    if error is not None:
        run.stop(failed=failed_by(error))
    if run.over_limit:
        item.session.shouldstop = "--agenttrace-record-limit is reached"
    if isinstance(error, KeyboardInterrupt | pytest.exit.Exception):
        return
    traced = run.trace is not None or "agent_trace" in getattr(item, "fixturenames", ())
    run.limits = item.stash.get(LIMITS, None) if traced else None
    verdict = run.judge(ended=error is None)
    text = verdict.text if verdict is not None else ""
    if error is None and run.called:
        run.read, wrong = item.config.stash[RUNS].judge(item)
        text = "\n".join(filter(None, [text, wrong]))
    if error is not None:
        from pytest_agenttrace.capture import cut_traceback, own_words

        cut_traceback(error)
        words = own_words(error)
        # A skip in the wake of a miss would hide it.
        if words is None and isinstance(error, pytest.skip.Exception) and verdict is not None and verdict.missed:
            words = text
        if words is None or any("raises" in mark.kwargs for mark in item.iter_markers("xfail")):
            return
        text = text or words
    if text:
        raise pytest.fail.Exception(printable_lines(text), pytrace=False) from None


def _is_unittest(item: pytest.Item) -> bool:
    cls = getattr(item, "cls", None)
    return isinstance(cls, type) and issubclass(cls, unittest.TestCase)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    report.user_properties = [(name, _plain(value)) for name, value in report.user_properties]
    run, runs = item.stash.get(_RUN, None), item.config.stash[RUNS]
    if ended := runs.ended():
        setattr(report, TOLD_OF_RUNS, told_of(ended, item.config.stash[WANTED].of_run))
    if run is None:
        return report
    wanted = item.config.stash[WANTED]
    if wanted.facts:
        ours = not set(_FIXTURES).isdisjoint(getattr(item, "fixturenames", ()))
        held = [(held.known_as, held.run) for held in ended]
        facts = facts_told(item, run, held, report.when, ours=ours)
        setattr(report, FACTS, facts)
        if wanted.properties:
            from pytest_agenttrace.session.gating import properties_of

            report.user_properties += properties_of(item.nodeid, facts)
    if report.when == "teardown":
        if report.failed:
            report.sections += run.kept_at_last()
        setattr(report, TOLD, run.told_at_last() | wanted.of(item, run))
    elif report.when == "call" or report.failed:
        how: dict[str, Any] = {
            "outcome": outcome_of(report),
            "drawn": bool(set("PA") & set(item.config.option.reportchars)),
            "verbosity": item.config.get_verbosity(),
            "ascii_only": ascii_only(item.config),
            "shown": str(report.longrepr),
        }
        if not run.idle:
            setattr(report, TOLD, run.told(failed=report.failed))
            report.sections += run.sections(**how)
        report.sections += runs.sections(item, alone=run.idle, **how)
    return report


def _plain(value: object) -> object:
    """What xdist and JUnit can carry: no subclass of ours, no Decimal."""
    if isinstance(value, Decimal):
        return str(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    return explain_comparison(op, left, right)
