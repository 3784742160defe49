"""The plugin as its users see it: pytest run on small projects, every message pinned in full.

A pytest that imports MLflow and LangGraph takes seconds to start. Tests marked with `@inner` therefore share one: each
brings a test module, all modules run in a single session, and the outer test judges what that session said of its own.
Whatever needs a session to itself (collection errors, xdist, interrupts) runs pytester.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import pytest

from pytest_agenttrace import GeminiServer, Reply

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("missing", "unused", "uncounted", "uncalled", "usage", "orphans", "unpriced", "network", "export", "empty")
HEAVY = ("mlflow", "vcr", "langchain", "langchain_core", "langgraph", "google", "genai_prices", "pandas")
F = TypeVar("F", bound=Callable[..., object])

APP = '''
"""A small graph: research (a tool loop), then write."""
from typing import TypedDict

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph


class State(TypedDict, total=False):
    topic: str
    words: int
    notes: str
    article: str


@tool
def web_search(query: str) -> str:
    """Search the web."""
    return f"three facts on {query}"


def model():
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", max_retries=1)


def research(state):
    bound = model().bind_tools([web_search])
    asked = bound.invoke([question := HumanMessage(f"Research {state['topic']}")])
    found = [web_search.invoke(call) for call in asked.tool_calls]
    return {"notes": bound.invoke([question, asked, *found]).content}


def write(state):
    return {"article": model().invoke(f"Write {state.get('words', 300)} words on {state['topic']}").content}


async def awrite(state):
    answer = await model().ainvoke(f"Write {state.get('words', 300)} words on {state['topic']}")
    return {"article": answer.content}


def graph(write=write):
    graph = StateGraph(State)
    graph.add_node("research", research)
    graph.add_node("write", write)
    graph.add_edge(START, "research")
    graph.add_edge("research", "write")
    graph.add_edge("write", END)
    return graph.compile(name="article_writer")


app = graph()
SAILS = {"topic": "solar sails"}
'''

SCRIPT = [
    Reply(
        tool_calls=[("web_search", {"query": "solar sails"})],
        usage={"promptTokenCount": 150, "candidatesTokenCount": 1171},
    ),
    Reply("Notes.", usage={"promptTokenCount": 1713, "candidatesTokenCount": 500}),
    Reply("An article.", usage={"promptTokenCount": 567, "candidatesTokenCount": 500}),
]

# Every test of the shared session finds the environment, and MLflow's, as the first one found it.
CONFTEST = '''
import json
import os
import sys
from pathlib import Path

import pytest

REPORTS = Path(__file__).with_name("reports.jsonl")


@pytest.fixture
def agenttrace_config():
    return {"cassette": "app.yaml"}


def told(**facts):
    with REPORTS.open("a") as file:
        file.write(json.dumps(facts) + "\\n")


def state():
    found = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    if "mlflow" in sys.modules:  # importing it is no change
        import mlflow
        from mlflow.utils.autologging_utils import AUTOLOGGING_INTEGRATIONS

        found["tracking uri"] = mlflow.get_tracking_uri()
        found["registry uri"] = mlflow.get_registry_uri()
        found["active run"] = repr(mlflow.active_run())
        found["autologging"] = repr({name: flags for name, flags in AUTOLOGGING_INTEGRATIONS.items() if flags})
    return found


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    before = state()
    result = yield
    after = state()
    changed = {name: [before[name], after[name]] for name in before.keys() & after.keys() if before[name] != after[name]}
    added = {name for name in after.keys() - before.keys() if name.isupper()}
    told(nodeid=item.nodeid, when="protocol", changed=changed, added=sorted(added), gone=sorted(before.keys() - after))
    return result


def pytest_runtest_logreport(report):
    told(
        nodeid=report.nodeid,
        when=report.when,
        outcome="xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome,
        text=report.longreprtext,
        sections=dict(report.sections),
        properties=dict(report.user_properties),
    )
'''


# Warnings are errors; the one that is left out is google-genai's own.
INI = """
[pytest]
junit_family = xunit1
filterwarnings =
  error
  ignore:Inheritance class AiohttpClientSession:DeprecationWarning
"""


@dataclass(frozen=True)
class Session:
    """A finished pytest session: its exit code, what it printed, and its folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "reports.jsonl").read_text().splitlines()]


class Told:
    """What a session said of the tests of one module, by the test's name."""

    def __init__(self, session: Session, module: str) -> None:
        self.session = session
        self.module = module
        mine = [report for report in session.reports if report["nodeid"].startswith(f"{module}.py::")]
        self._reports = [report for report in mine if report["when"] != "protocol"]

    @staticmethod
    def _name(report: Mapping[str, Any]) -> str:
        return str(report["nodeid"].partition("::")[2])

    @property
    def outcomes(self) -> dict[str, str]:
        """The outcome of each test; one that went wrong outside of its body is an error."""
        found: dict[str, str] = {}
        for report in self._reports:
            if report["when"] == "call":
                found[self._name(report)] = report["outcome"]
            elif report["outcome"] != "passed":
                found[self._name(report)] = "skipped" if report["outcome"] == "skipped" else f"{report['when']} error"
        return found

    def _failed(self, name: str) -> dict[str, Any]:
        return next(r for r in self._reports if self._name(r) == name and r["outcome"] != "passed")

    def text(self, name: str) -> str:
        """The failure's text."""
        return str(self._failed(name)["text"])

    def errors(self, name: str) -> str:
        """The lines of a traceback that pytest marks with E."""
        lines = self.text(name).splitlines()
        return "\n".join(line[1:].removeprefix("   ") for line in lines if line.startswith("E "))

    def section(self, name: str, title: str) -> str | None:
        found = self._failed(name)["sections"].get(title)
        return None if found is None else str(found)

    def properties(self, name: str) -> dict[str, object]:
        return next(r["properties"] for r in self._reports if self._name(r) == name and r["when"] == "call")


def inner(source: str) -> Callable[[F], F]:
    """Give a test its module of the shared session."""

    def keep(test: F) -> F:
        test.inner_source = textwrap.dedent(source)  # type: ignore[attr-defined]
        return test

    return keep


def environment(*, key: bool = False) -> dict[str, str]:
    """An environment in which pytest loads the plugins it is told to and no others."""
    keys = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in keys and not name.startswith("MLFLOW_")}
    if key:
        kept["GOOGLE_API_KEY"] = "a-key-of-somebody-0123456789"
    kept["PYTHONPATH"] = str(ROOT)
    kept["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return kept


def temporary(folder: Path) -> Path:
    """Where a session's temporary files are, beside its project."""
    return folder.with_name(f"{folder.name}-temporary")


def run_pytest(folder: Path, *args: str, env: Mapping[str, str]) -> Session:
    base = f"--basetemp={temporary(folder)}"
    command = [sys.executable, "-m", "pytest", "-p", "pytest_agenttrace.plugin", base, *args]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    return Session(done.returncode, done.stdout, done.stderr, folder)


@pytest.fixture(scope="session")
def cassette(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of the app's cassette, recorded by the plugin from a scripted server; its times are ours."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "app.py").write_text(APP)
    (folder / "test_article.py").write_text(
        "from app import SAILS, app\ndef test_article(agent_trace):\n    app.invoke(SAILS)\n"
    )
    with GeminiServer(SCRIPT) as server:
        env = environment(key=True) | {"GOOGLE_GEMINI_BASE_URL": server.url}
        # The flag takes no value: the file behind it is the file to run.
        ran = run_pytest(folder, "-q", "--agenttrace-record", "test_article.py", env=env)
        assert not server.unscripted
    assert ran.code == 0, ran.out
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".yaml", ".db")]
    assert written == ["cassettes/test_article/test_article.yaml"]
    text = (folder / written[0]).read_text()
    assert "origin: scripted server on loopback" in text
    assert "a-key-of-somebody" not in text
    seconds = iter(["0.7", "0.5", "0.9"])
    text = re.sub(r"duration: .*", lambda _: f"duration: {next(seconds)}", text)
    return re.sub(r"- \w{3}, \d\d \w{3} \d{4} .* GMT", "- Fri, 01 Aug 2025 12:00:00 GMT", text)


def write_project(folder: Path, cassette: str) -> None:
    (folder / "app.py").write_text(APP)
    (folder / "app.yaml").write_text(cassette)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(INI)


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cassette: str) -> Session:
    """The session that runs the modules of all `@inner` tests, with warnings as errors and no key."""
    folder = tmp_path_factory.mktemp("shared")
    write_project(folder, cassette)
    for item in request.session.items:
        source = getattr(getattr(item, "function", None), "inner_source", None)
        if source is not None:
            module = item.originalname if isinstance(item, pytest.Function) else item.name
            (folder / f"{module}.py").write_text(f"import pytest\n\nfrom app import SAILS, app\n\n{source}")
    args = ["-p", "asyncio", "-o", "asyncio_default_fixture_loop_scope=function", "-p", "anyio", "-p", "rerunfailures"]
    ran = run_pytest(folder, *args, "--junitxml=junit.xml", env=environment())
    assert ran.code == 1, ran.out + ran.err
    return ran


@pytest.fixture
def told(request: pytest.FixtureRequest, shared: Session) -> Told:
    return Told(shared, request.node.originalname)


# Budgets


@inner("""
@pytest.mark.budget(cost="0.005")
@pytest.mark.budget("research", tokens=2_000)
def test_article(agent_trace):
    app.invoke(SAILS)
""")
def test_budget_overrun(told: Told) -> None:
    assert told.outcomes == {"test_article": "failed"}


@inner("""
@pytest.mark.budget(tokens=4_600, input_tokens=2_429, output_tokens=2_170, cost="0.0061564", llm_calls=2, tool_calls=0)
@pytest.mark.budget("write", tokens=1_066, input_tokens=566, output_tokens=499, cost=0.00142, llm_calls=0)
@pytest.mark.budget("reserch", tokens=1, cost=1)
def test_over(agent_trace):
    app.invoke(SAILS)


@pytest.mark.budget(tokens=4_601, input_tokens=2_430, output_tokens=2_171, cost="0.0061565", llm_calls=3, tool_calls=1)
@pytest.mark.budget("write", tokens=1_067, input_tokens=567, output_tokens=500, cost=0.0014201, llm_calls=1, tool_calls=0)
def test_exact(agent_trace):
    app.invoke(SAILS)


@pytest.mark.budget("research", tool_calls=0)
@pytest.mark.budget("write", tokens=0)
def test_zero(agent_trace):
    app.invoke(SAILS)
""")
def test_every_overrun_in_one_message(told: Told) -> None:
    assert told.outcomes == {"test_over": "failed", "test_exact": "passed", "test_zero": "failed"}


@inner("""
pytestmark = [pytest.mark.budget(tokens=1, cost=0), pytest.mark.budget("write", tokens=1)]


@pytest.mark.budget(tokens=5_000)
class TestClosest:
    @pytest.mark.budget(cost=1)
    @pytest.mark.budget("write", tokens=2_000)
    def test_function(self, agent_trace):
        app.invoke(SAILS)

    def test_class(self, agent_trace):
        app.invoke(SAILS)


def test_module(agent_trace):
    app.invoke(SAILS)
""")
def test_closest_budget_wins(told: Told) -> None:
    assert told.outcomes == {
        "TestClosest::test_function": "passed", "TestClosest::test_class": "failed", "test_module": "failed"
    }


@inner("""
import mlflow


@pytest.fixture(scope="module", autouse=True)
def of_the_project():
    mlflow.set_tracking_uri("sqlite:///the-projects-own.db")
    yield
    assert mlflow.get_tracking_uri() == "sqlite:///the-projects-own.db"
    mlflow.set_tracking_uri(None)


@pytest.mark.budget(tokens=4_000)
def test_no_fixture():
    app.invoke(SAILS)


@pytest.mark.parametrize("words", [pytest.param(300, marks=pytest.mark.budget("write", llm_calls=0)), 0])
def test_only_one(words):
    if words:
        app.invoke(SAILS | {"words": words})
""")
def test_budget_brings_the_fixture(told: Told) -> None:
    assert told.outcomes == {"test_no_fixture": "failed", "test_only_one[300]": "failed", "test_only_one[0]": "passed"}


@inner("""
@pytest.mark.xfail(reason="too dear")
@pytest.mark.budget(tokens=0)
def test_expected(agent_trace):
    app.invoke(SAILS)


@pytest.mark.xfail(strict=True, reason="too dear")
@pytest.mark.budget(tokens=0)
def test_strict(agent_trace):
    app.invoke(SAILS)


@pytest.mark.xfail(strict=True, reason="too dear")
@pytest.mark.budget(tokens=5_000)
def test_within(agent_trace):
    app.invoke(SAILS)
""")
def test_budget_xfail(told: Told) -> None:
    assert told.outcomes == {"test_expected": "xfailed", "test_strict": "xfailed", "test_within": "failed"}


@inner("""
import unittest

from app import awrite, graph

pytestmark = pytest.mark.budget("write", tokens=1_000)


@pytest.mark.asyncio
async def test_asyncio(agent_trace):
    await graph(awrite).ainvoke(SAILS)


@pytest.mark.anyio
async def test_anyio(agent_trace, anyio_backend_name):
    await graph(awrite).ainvoke(SAILS)


class TestClass:
    @pytest.mark.parametrize("topic", ["solar sails"])
    def test_method(self, agent_trace, topic):
        app.invoke({"topic": topic})


@pytest.mark.usefixtures("agent_trace")
class UsingFixtures(unittest.TestCase):
    def test_plain(self):
        app.invoke(SAILS)


class Autouse(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def use(self, agent_trace):
        self.trace = agent_trace

    def test_own(self):
        app.invoke(SAILS)
        self.assertEqual(self.trace.trajectory, ["research", "write"])

    def test_raising(self):
        app.invoke(SAILS)
        self.assertEqual(self.trace.trajectory, ["write"])

    def test_skipping(self):
        app.invoke(SAILS)
        self.skipTest("not today")

    @pytest.mark.xfail(reason="too dear", strict=True)
    def test_xfail(self):
        app.invoke(SAILS)

    def test_missing(self):
        app.invoke(SAILS | {"words": 400})

    def test_subtests(self):
        for _ in range(1):
            with self.subTest("before anything was asked"):
                pass
        app.invoke(SAILS)


class Async(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def use(self, agent_trace):
        self.trace = agent_trace

    async def test_isolated(self):
        await graph(awrite).ainvoke(SAILS)


class Bare(unittest.TestCase):
    def test_brought(self):
        app.invoke(SAILS)
""")
def test_budget_in_every_kind_of_test(told: Told) -> None:
    print(told.outcomes)


@inner("""
@pytest.mark.budget(tokens=1)
def test_body_failed(agent_trace):
    app.invoke(SAILS)
    assert agent_trace.trajectory == []


@pytest.mark.budget(tokens=1)
def test_body_skipped(agent_trace):
    app.invoke(SAILS)
    pytest.skip("not today")
""")
def test_budgets_are_judged_where_the_body_ended(told: Told) -> None:
    assert told.outcomes == {"test_body_failed": "failed", "test_body_skipped": "skipped"}


@inner("""
runs = []


@pytest.mark.flaky(reruns=1)
@pytest.mark.budget(tokens=4_600)
def test_never(agent_trace):
    app.invoke(SAILS)


@pytest.mark.flaky(reruns=1)
@pytest.mark.budget(llm_calls=3)
def test_second(agent_trace):
    runs.append(app.invoke(SAILS))
    assert len(runs) == 2
""")
def test_reruns(told: Told) -> None:
    print(told.outcomes)


# Misses and unused replies


@inner("""
import app as code
from pytest_agenttrace import CassetteMiss
from langgraph.types import RetryPolicy


def test_changed(agent_trace):
    app.invoke(SAILS | {"words": 400})


@pytest.mark.agent_trace(cassette="cassettes/none.yaml")
def test_no_cassette(agent_trace):
    app.invoke(SAILS)


def test_swallowed(agent_trace):
    def write(state):
        try:
            return code.write(state | {"words": 400})
        except Exception:
            return {"article": ""}

    code.graph(write).invoke(SAILS)


def test_swallowed_whole(agent_trace):
    def write(state):
        try:
            return code.write(state | {"words": 400})
        except BaseException:
            return {"article": ""}

    code.graph(write).invoke(SAILS)


def test_fails_otherwise(agent_trace):
    with pytest.raises(BaseException):
        app.invoke(SAILS | {"words": 400})
    assert agent_trace["research"].tokens < 100


def test_skips(agent_trace):
    with pytest.raises(BaseException):
        app.invoke(SAILS | {"words": 400})
    pytest.skip("not today")


@pytest.mark.agent_trace(allow=["missing"])
def test_allowed(agent_trace):
    with pytest.raises(CassetteMiss, match="write, call 3: no recorded reply"):
        app.invoke(SAILS | {"words": 400})


@pytest.mark.agent_trace(allow=["missing"])
def test_allowed_but_raised(agent_trace):
    app.invoke(SAILS | {"words": 400})


@pytest.mark.xfail(raises=CassetteMiss, strict=True)
def test_expected(agent_trace):
    app.invoke(SAILS | {"words": 400})


@pytest.mark.budget(tokens=1)
def test_one_cause(agent_trace):
    app.invoke(SAILS | {"words": 400})


@pytest.mark.asyncio
async def test_async(agent_trace):
    await code.graph(code.awrite).ainvoke(SAILS | {"words": 400})
""")
def test_cassette_miss(told: Told) -> None:
    print(told.outcomes)


@inner("""
import app as code

def test_unused(agent_trace):
    code.write({"topic": "solar sails"})


@pytest.mark.agent_trace(allow=["unused"])
def test_allowed(agent_trace):
    code.write({"topic": "solar sails"})


@pytest.mark.agent_trace(warn=["unused", "uncounted"])
def test_warned(agent_trace):
    code.write({"topic": "solar sails"})


def test_cassette_alone(gemini_cassette):
    assert not gemini_cassette.recording
    code.write({"topic": "solar sails"})
    assert [call.usage.total_tokens for call in gemini_cassette.calls] == [1067]


def test_store_alone(mlflow_store, gemini_cassette, request):
    app.invoke(SAILS)
    [trace] = mlflow_store.traces()
    assert trace.info.experiment_id == mlflow_store.experiment_id
    assert mlflow_store.uri == f"sqlite:///{mlflow_store.path}"
""")
def test_unused_replies(told: Told) -> None:
    print(told.outcomes)


# Nothing traced


@inner("""
@pytest.mark.agent_trace(allow=["unused"])
def test_nothing(agent_trace):
    pass


@pytest.mark.agent_trace(allow=["unused"])
def test_read(agent_trace):
    assert agent_trace.tokens == 0


@pytest.mark.agent_trace(allow=["unused", "empty"])
def test_allowed(agent_trace):
    assert repr(agent_trace) == "<Trace: nothing traced>"


@pytest.mark.agent_trace(allow=["unused"], autolog=[])
def test_off(agent_trace):
    pass


@pytest.mark.agent_trace(allow=["unused"])
def test_turned_off(agent_trace):
    import mlflow
    mlflow.langchain.autolog(disable=True)
""")
def test_nothing_traced(told: Told) -> None:
    print(told.outcomes)


# Settings


@inner("""
@pytest.fixture
def agenttrace_config(agenttrace_config):
    return {**agenttrace_config, "cassette": "cassettes/nowhere.yaml", "allow": ["unused"]}


@pytest.mark.agent_trace(cassette="app.yaml")
class TestMarked:
    def test_class(self, agent_trace, gemini_cassette):
        assert gemini_cassette.path.name == "app.yaml"
        app.invoke(SAILS)

    @pytest.mark.agent_trace(cassette="cassettes/closer.yaml", allow=["empty"])
    def test_function(self, agent_trace, gemini_cassette):
        assert gemini_cassette.path.name == "closer.yaml"


@pytest.mark.agent_trace(allow=["empty"])
def test_config(agent_trace, gemini_cassette):
    assert gemini_cassette.path.name == "nowhere.yaml"


class TestBad:
    @pytest.fixture
    def agenttrace_config(self):
        return {"cassete": "x.yaml", "allow": ["unusd"], "match": "fuzzy"}

    def test_keys(self, agent_trace):
        pass


class TestNoMapping:
    @pytest.fixture
    def agenttrace_config(self):
        return ["unused"]

    def test_list(self, agent_trace):
        pass
""")
def test_settings(told: Told) -> None:
    print(told.outcomes)


# Plain asserts


@inner("""
from decimal import Decimal

@pytest.fixture
def trace(agent_trace):
    app.invoke(SAILS)
    return agent_trace

def test_tokens(trace):
    assert trace.tokens < 100

def test_reversed(trace):
    assert 100 > trace["research"].tokens

def test_chain(trace):
    assert 10 < trace.tokens < 100

def test_chain_first(trace):
    assert 10_000 < trace.tokens < 100_000

def test_and(trace):
    assert trace.tokens < 10_000 and trace.tokens < 100

def test_cost(trace):
    assert trace["write"].cost < Decimal("0.001")

def test_cost_float(trace):
    assert 0.001 >= trace["write"].cost

def test_cost_equal_float(trace):
    assert trace["write"].cost == 0.0014201

def test_equal(trace):
    assert trace.tokens == 4_600

def test_not_equal(trace):
    assert trace.tokens != 4_601

def test_trajectory(trace):
    assert trace.trajectory == ["research", "review", "write"]

def test_tool_calls(trace):
    assert trace["research"].tool_calls == [("web_search", {"query": "moon"})]

def test_in(trace):
    assert "reviewer" in trace

def test_no_node(trace):
    assert trace["reserch"].tokens < 100

def test_all_hold(trace, record_property):
    record_property("tokens", trace.tokens)
    record_property("cost", trace.cost)
    record_property("by node", trace["write"].tokens)
    assert trace.tokens == 4601
    assert trace.cost == Decimal("0.0061565")
    assert trace.tokens_by_node == {"research": 3534, "write": 1067}
    assert "write" in trace
    assert len(trace) == 2
    assert [execution.node for execution in trace] == ["research", "write"]
    assert trace["research"].tool_calls == [("web_search", {"query": "solar sails"})]
""")
def test_asserts(told: Told) -> None:
    print(told.outcomes)


# The environment


@inner("""
import os
import mlflow


@pytest.fixture
def broken(agent_trace):
    app.invoke(SAILS)
    raise RuntimeError("not in the mood")


@pytest.fixture
def broken_later(agent_trace):
    yield
    raise RuntimeError("not in the mood")


def test_setup_error(broken):
    pass


def test_teardown_error(broken_later):
    app.invoke(SAILS)


def test_meddles(agent_trace):
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///meddled.db"
    os.environ["MLFLOW_TRACE_SAMPLING_RATIO"] = "1"
    mlflow.set_experiment("meddled")
    mlflow.set_registry_uri("sqlite:///meddled.db")
    mlflow.start_run()
    mlflow.autolog()
    app.invoke(SAILS)
    raise RuntimeError("not in the mood")


def test_exits(agent_trace):
    app.invoke(SAILS)
    raise SystemExit(3)


@pytest.fixture
def missed(agent_trace):
    app.invoke(SAILS | {"words": 400})


def test_missed_in_setup(missed):
    pass
""")
def test_everything_is_as_before(told: Told) -> None:
    print(told.outcomes)


# Bad cassettes


@inner("""
from pathlib import Path
BAD = {
    "empty": b"",
    "binary": b"\\x80\\x00\\x01",
    "truncated": b"version: 1\\ninteractions:\\n- request: {body: 'a",
    "list": b"- 1\\n",
    "other": b"version: 2\\ninteractions: []\\n",
}


@pytest.mark.parametrize("name", [*BAD, "directory"])
def test_bad(name, request):
    path = Path(__file__).with_name(f"bad-{name}.yaml")
    if name == "directory":
        path.mkdir()
    else:
        path.write_bytes(BAD[name])
    request.node.add_marker(pytest.mark.agent_trace(cassette=path.name))
    try:
        request.getfixturevalue("gemini_cassette")
    finally:
        assert path.is_dir() or path.read_bytes() == BAD[name]
""")
def test_bad_cassettes(told: Told) -> None:
    print(told.outcomes)


# Sessions of their own


@pytest.fixture
def project(tmp_path: Path, cassette: str) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    write_project(folder, cassette)
    return folder


def test_interrupted(project: Path) -> None:
    (project / "test_it.py").write_text("""
import mlflow
from app import SAILS, app

def test_it(agent_trace):
    mlflow.set_experiment("mine")
    app.invoke(SAILS)
    raise KeyboardInterrupt
""")
    ran = run_pytest(project, env=environment())
    print(ran.out, ran.err, ran.reports)
    assert ran.code == 2


def test_xdist_and_last_failed(project: Path) -> None:
    (project / "test_it.py").write_text("""
import pytest
from app import SAILS, app, write

def test_properties(agent_trace, record_property):
    app.invoke(SAILS)
    record_property("tokens", agent_trace.tokens)
    record_property("cost", agent_trace.cost)

@pytest.mark.agent_trace(warn=["unused", "uncounted"])
def test_warned(agent_trace):
    write({"topic": "solar sails"})

@pytest.mark.budget(tokens=1)
def test_over():
    app.invoke(SAILS)
""")
    ran = run_pytest(project, "-p", "xdist", "-n", "2", "-q", "--junitxml=junit.xml", env=environment())
    print(ran.out, ran.err, ran.reports)
    print((project / "junit.xml").read_text())
    again = run_pytest(project, "--lf", "-vv", env=environment())
    print(again.out)


def test_import_time(project: Path) -> None:
    (project / "prod.py").write_text("""
import mlflow
mlflow.set_tracking_uri("sqlite:///prod.db")
mlflow.set_experiment("prod")
mlflow.langchain.autolog()
from app import app, graph, model
MODEL = model()
""")
    (project / "test_it.py").write_text("""
import mlflow
import pytest
from prod import app
from app import SAILS

def test_reads(agent_trace, mlflow_store):
    app.invoke(SAILS)
    assert agent_trace.tokens == 4601
    assert [trace.info.state for trace in mlflow_store.traces()] == ["OK"]

@pytest.mark.budget(llm_calls=1)
def test_over():
    app.invoke(SAILS)

def test_after():
    assert mlflow.get_tracking_uri() == "sqlite:///prod.db"
""")
    ran = run_pytest(project, "-q", "-W", "ignore", env=environment())
    print(ran.out, ran.err)
    ran = run_pytest(project, "-q", "-rP", "-W", "ignore", "-o", "agenttrace_dummy_key=true", env=environment())
    print(ran.out, ran.err)
    print(sorted(p.name for p in project.iterdir()))
