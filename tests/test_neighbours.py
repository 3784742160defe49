"""Beside other plugins: real ones, each in a real run of pytest on a small project.

All neighbours that are installed are loaded, as pytest does by itself.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.projects import Session, Told, environment, miss, run_pytest, write_project
from tests.projects import cassette_fixture as cassette_fixture
from tests.projects import project_fixture as project_fixture

LOOPS = ("function", "class", "module", "package", "session")

ASYNC = """
import pytest
import pytest_asyncio
from app import SAILS, awrite, graph
from ids import keep

article = graph(awrite)
pytestmark = pytest.mark.MARK


@FIXTURE(SCOPE)
async def shared(agent_run):
    with agent_run("app.yaml") as trace:
        await article.ainvoke(SAILS)
    return trace


class TestLoop:
    async def test_traced(self, agent_trace, mlflow_store):
        await article.ainvoke(SAILS)
        assert agent_trace.tokens == 4601
        assert agent_trace.trajectory == ["research", "write"]
        keep(mlflow_store)

    @pytest.mark.budget("write", tokens=1_000)
    async def test_over(self, agent_trace):
        await article.ainvoke(SAILS)

    async def test_missed(self, agent_trace):
        await article.ainvoke(SAILS | {"words": 400})

    async def test_shared(self, shared, agent_trace):
        assert shared.tokens == 4601
        await article.ainvoke(SAILS)
        assert agent_trace.tokens == 4601
"""

IDS = """
from pathlib import Path


def keep(mlflow_store):
    with Path(__file__).with_name("ids.txt").open("a") as file:
        for trace in mlflow_store.traces():
            print(trace.info.trace_id, *[span.span_id for span in trace.data.spans], file=file)
"""

PLAIN = """
import random

import pytest
from app import SAILS, app
from ids import keep


@pytest.mark.parametrize("number", range(3))
def test_traced(agent_trace, mlflow_store, number):
    random.seed(7)
    app.invoke(SAILS)
    assert agent_trace.tokens == 4601
    keep(mlflow_store)


@pytest.mark.agent_trace(cassette="lonely.yaml")
def test_unused(agent_trace):
    app.nodes["research"].invoke(SAILS)
"""


def installed(**settings: str) -> dict[str, str]:
    """An environment in which pytest loads every plugin that is installed."""
    return {name: value for name, value in environment().items() if name != "PYTEST_DISABLE_PLUGIN_AUTOLOAD"} | settings


def run(project: Path, *args: str, **settings: str) -> Session:
    (project / "reports.jsonl").unlink(missing_ok=True)
    # pytest-agent-trace and pytest-recording both have an option --record-mode: pytest does not start with the two.
    own = ["-p", "no:agent_trace", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function"]
    return run_pytest(project, *own, *args, env=installed(**settings), plugins=())


# xdist, randomly, asyncio, anyio


def _write_loops(folder: Path) -> None:
    for scope in LOOPS:
        place = folder / "inner" if scope == "package" else folder
        loop = f'loop_scope="{scope}"'
        # A run for many tests is no fixture of one test: that one's own loop is the test's alone.
        wide = "class" if scope == "function" else scope
        source = ASYNC.replace("MARK", f"asyncio({loop})").replace("FIXTURE", "pytest_asyncio.fixture")
        (place / f"test_{scope}.py").write_text(source.replace("SCOPE", f'scope="{wide}", loop_scope="{wide}"'))
    source = ASYNC.replace("MARK", "anyio").replace("FIXTURE", "pytest.fixture").replace("SCOPE", 'scope="module"')
    backend = '\n\n@pytest.fixture(scope="module")\ndef anyio_backend():\n    return "asyncio"\n'
    (folder / "test_anyio.py").write_text(source + backend)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory, cassette: str) -> Path:
    """A project of tests of every kind of loop, and plain ones."""
    folder = tmp_path_factory.mktemp("street")
    write_project(folder, cassette)
    (folder / "inner").mkdir()
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "app.yaml").write_text(cassette)
    (folder / "lonely.yaml").write_text(cassette)
    (folder / "ids.py").write_text(IDS)
    (folder / "test_plain.py").write_text(PLAIN)
    _write_loops(folder)
    return folder


def _told(session: Session) -> dict[str, tuple[str, str]]:
    """What a session said of each test: its outcome, and the text of what failed."""
    modules = sorted({report["nodeid"].partition(".py::")[0] for report in session.reports})
    found = {}
    for module in modules:
        told = Told(session, module)
        for name, outcome in told.outcomes.items():
            text = "" if outcome == "passed" else told.text(name)
            found[f"{module}::{name}"] = (outcome, _own(text))
    return found


def _own(text: str) -> str:
    """A report's text without the line that xdist puts before it."""
    return re.sub(r"^\[gw\d\] .*\n?", "", text)


UNUSED = (
    "write: reply 3 was never asked for: gemini-2.5-flash:generateContent 'Write 300 words on solar sails' [unused]"
)


def _expected() -> dict[str, tuple[str, str]]:
    found = {f"test_plain::test_traced[{number}]": ("passed", "") for number in range(3)}
    found["test_plain::test_unused"] = ("failed", UNUSED)
    for module in [*(f"test_{scope}" for scope in LOOPS if scope != "package"), "inner/test_package", "test_anyio"]:
        found |= {
            f"{module}::TestLoop::test_traced": ("passed", ""),
            f"{module}::TestLoop::test_shared": ("passed", ""),
            f"{module}::TestLoop::test_over": ("failed", "write 1,067 tokens > 1,000 (+67)"),
            f"{module}::TestLoop::test_missed": ("failed", miss(f"{module}.py::TestLoop::test_missed")),
        }
    return found


def test_every_loop_scope_in_any_order_with_random_seeded_alike(street: Path) -> None:
    ran = run(street, "--randomly-seed=7", "-p", "no:xdist")
    assert "Using --randomly-seed=7" in ran.out
    assert _told(ran) == _expected()
    # Each test began with the same seed; each trace and span has an id of its own all the same.
    ids = (street / "ids.txt").read_text().split()
    assert len(ids) == 9 * 8
    assert len(set(ids)) == len(ids)


def test_four_workers_say_the_same(street: Path) -> None:
    ran = run(street, "-n", "4", "--dist", "loadfile", "-p", "no:randomly")
    assert "4 workers" in ran.out
    assert _told(ran) == _expected()


# rerunfailures, timeout

TIMED = """
import time

import mlflow
import pytest
from app import SAILS, app, graph, write

tries = []


def slow(state):
    time.sleep(30)
    return write(state)


def test_before(agent_trace):
    app.invoke(SAILS)


@pytest.mark.timeout(4, method="signal", func_only=True)
def test_slow(agent_trace):
    graph(slow).invoke(SAILS)


@pytest.mark.flaky(reruns=1)
@pytest.mark.timeout(4, method="signal", func_only=True)
@pytest.mark.budget(tokens=4_600)
def test_slow_then_over(agent_trace):
    tries.append(1)
    graph(slow if len(tries) == 1 else write).invoke(SAILS)


@pytest.mark.flaky(reruns=1)
@pytest.mark.budget(tokens=4_601)
def test_missed_then_right(agent_trace):
    tries.append(1)
    app.invoke(SAILS | {"words": 400} if len(tries) == 3 else SAILS)
    assert agent_trace.tokens == 4601


@pytest.mark.timeout(4, method="thread", func_only=True)
def test_killed(agent_trace):
    graph(slow).invoke(SAILS)


@pytest.mark.timeout(200)
@pytest.mark.budget(tokens=4_601)
def test_after(agent_trace):
    app.invoke(SAILS)
    assert agent_trace.tokens == 4601
"""


CUT = """\
! article_writer          1.2 s  3,534 tok  $0.0047364
  ├─ research             1.2 s  3,534 tok  $0.0047364
  │  ├─ gemini-2.5-flash         1,321 tok  $0.0029725   150 in, 1,171 out
  │  ├─ web_search  [tool]
  │  └─ gemini-2.5-flash         2,213 tok  $0.0017639   1,713 in, 500 out
! └─ write                                               Failed: Timeout (>4.0s) from pytest-timeout."""


def test_timeouts_by_signal_and_by_thread_and_reruns(project: Path) -> None:
    (project / "test_timed.py").write_text(TIMED)
    ran = run(project, "-n", "1", "-p", "no:randomly")
    listed = ran.out.rpartition("short test summary info")[2]
    # How wide the rule is depends on how long the run took.
    assert re.sub(r"=+ (.*) in \d.*=", r"\1", listed).split("\n")[1:] == [
        "FAILED test_timed.py::test_slow - Failed: Timeout (>4.0s) from pytest-timeout.",
        "FAILED test_timed.py::test_slow_then_over - Failed: run 4,601 tokens > 4,600 ...",
        "FAILED test_timed.py::test_killed - worker 'gw0' crashed while running 'test_...",
        "3 failed, 3 passed, 2 rerun",
        "",
    ]
    told = Told(ran, "test_timed")
    assert told.section("test_slow", "Captured trace") == CUT
    # Each try is judged by itself: the first was cut, the second is too dear; a miss of the first is not the second's.
    # (Both the worker and its controller tell each report.)
    tries = [text for text in map(_own, told.texts("test_slow_then_over")) if text]
    assert "Failed: Timeout (>4.0s) from pytest-timeout." in tries[0]
    assert tries[-1] == "run 4,601 tokens > 4,600 (+1)"
    assert miss("test_timed.py::test_missed_then_right") in map(_own, told.texts("test_missed_then_right"))
    assert told.outcomes["test_missed_then_right"] == "passed"


# syrupy, inline-snapshot

SNAPSHOTS = """
from app import SAILS, app, graph
from inline_snapshot import snapshot as inline


def test_outline(agent_trace, snapshot):
    app.invoke(SAILS)
    assert agent_trace.outline == snapshot
    assert agent_trace.outline == inline()
    assert agent_trace.tokens == snapshot(name="tokens")
    assert agent_trace.tokens == inline()
"""
OTHER = """

def test_other_outline(agent_trace):
    app.invoke(SAILS)
    assert agent_trace["research"].outline == inline([{"research": ["gemini-2.5-flash"]}])
"""
SNAPSHOT = """\
# serializer version: 1
# name: test_outline
  list([
    dict({
      'research': list([
        'gemini-2.5-flash',
        'web_search()',
        'gemini-2.5-flash',
      ]),
    }),
    dict({
      'write': list([
        'gemini-2.5-flash',
      ]),
    }),
  ])
# ---
# name: test_outline[tokens]
  4601
# ---
"""


def test_outlines_are_snapshots(project: Path) -> None:
    file = project / "test_outline.py"
    file.write_text(SNAPSHOTS)
    made = run(project, "--snapshot-update", "--inline-snapshot=create", "-p", "no:randomly")
    assert "2 snapshots generated." in made.out
    taken = project / "__snapshots__" / "test_outline.ambr"
    assert taken.read_text() == SNAPSHOT
    source = file.read_text()
    research = "{'research': ['gemini-2.5-flash', 'web_search()', 'gemini-2.5-flash']}"
    assert f"assert agent_trace.outline == inline([{research}, {{'write': ['gemini-2.5-flash']}}])\n" in source
    assert "assert agent_trace.tokens == inline(4601)\n" in source

    # From then on they are compared: what they were taken of passes, another outline and another count do not.
    file.write_text(source + OTHER)
    taken.write_text(SNAPSHOT.replace("4601", "4602"))
    ran = run(project, "-p", "no:randomly", "-p", "no:xdist")
    told = Told(ran, "test_outline")
    assert told.outcomes == {"test_outline": "failed", "test_other_outline": "teardown error"}
    assert 'assert agent_trace.tokens == snapshot(name="tokens")' in told.text("test_outline")
    assert "- 4602" in told.errors("test_outline")
    assert "+ 4601" in told.errors("test_outline")
    # inline-snapshot says it in its own words, at the end of the test.
    assert "AssertionError: assert [{'research':" in told.texts("test_other_outline")[1]


# mlflow.pytest, langsmith's plugin

OBSERVED = """
import langsmith
import mlflow
import pytest
from app import SAILS, app


@mlflow.test
@pytest.mark.budget("write", tokens=1_000)
def test_ours(agent_trace, mlflow_store):
    app.invoke(SAILS)
    assert agent_trace.tokens == 4601
    # The run of MLflow's test is in the store of this one.
    assert mlflow.get_tracking_uri() == mlflow_store.uri
    (trace,) = mlflow_store.traces()
    assert trace.info.trace_metadata["mlflow.sourceRun"] == mlflow.active_run().info.run_id


@mlflow.test
def test_theirs():
    run = mlflow.active_run()
    assert run is not None
    assert mlflow.get_tracking_uri() == "sqlite:///theirs.db"
    assert mlflow.get_run(run.info.run_id).data.tags["mlflow.runType"]


@mlflow.genai.scorer
def asks_three_times(trace) -> bool:
    return len(trace.search_spans(span_type="CHAT_MODEL")) == 3


@mlflow.test
@pytest.mark.parametrize("number", range(2))
def test_evaluated(agent_trace, mlflow_store, number):
    app.invoke(SAILS)
    result = mlflow.genai.evaluate(data=mlflow_store.traces(), scorers=[asks_three_times])
    assert result.metrics == {"asks_three_times/mean": 1.0}
    assert agent_trace.tokens == 4601


@pytest.mark.langsmith(output_keys=["article"])
def test_langsmith(agent_trace):
    article = app.invoke(SAILS)["article"]
    langsmith.testing.log_outputs({"article": article})
    assert agent_trace.tokens == 4601


@pytest.mark.langsmith
@pytest.mark.budget("write", tokens=1_000)
def test_langsmith_over(agent_trace):
    app.invoke(SAILS)
"""


def test_mlflow_test_and_langsmith(project: Path) -> None:
    (project / "test_observed.py").write_text(OBSERVED)
    settings = {"MLFLOW_TRACKING_URI": "sqlite:///theirs.db", "LANGSMITH_API_KEY": "a-key-of-langsmiths"}
    ran = run(project, "-p", "mlflow.pytest.plugin", "-p", "no:randomly", "-p", "no:xdist", "-W", "ignore", **settings)
    told = Told(ran, "test_observed")
    assert told.outcomes == {
        "test_ours": "failed",
        "test_theirs": "passed",
        "test_evaluated[0]": "passed",
        "test_evaluated[1]": "passed",
        "test_langsmith": "passed",
        "test_langsmith_over": "failed",
    }, ran.out
    for name in ("test_ours", "test_langsmith_over"):
        assert (name, told.text(name)) == (name, "write 1,067 tokens > 1,000 (+67)")


# deepeval, pytest-agent-trace: installed in one cell of the matrix (tests/matrix)

EVALUATED = """
import pytest
from app import SAILS, app
from deepeval import assert_test
from deepeval.metrics import BaseMetric
from deepeval.test_case import LLMTestCase


class Words(BaseMetric):
    threshold = 2
    async_mode = False

    def measure(self, test_case, *args, **kwargs):
        self.score = len(test_case.actual_output.split())
        self.success = self.score >= self.threshold
        return self.score

    def is_successful(self):
        return self.success


@pytest.mark.budget(tokens=4_601)
def test_evaluated(agent_trace):
    article = app.invoke(SAILS)["article"]
    assert_test(LLMTestCase(input="solar sails", actual_output=article), [Words()], run_async=False)
    assert agent_trace.tokens == 4601


@pytest.mark.budget("write", tokens=1_000)
def test_over(agent_trace):
    app.invoke(SAILS)
"""

BESIDE = """
import pytest
from app import SAILS, app


@pytest.mark.budget(tokens=4_601)
@pytest.mark.agent_trace(allow=["unpriced"])
def test_both(agent_trace, agent_cassette):
    app.invoke(SAILS)
    assert agent_trace.tokens == 4601
    assert agent_cassette.record_mode == "none"


@pytest.mark.budget("write", tokens=1_000)
def test_over(agent_trace):
    app.invoke(SAILS)
"""


@pytest.mark.parametrize(
    ("plugin", "source", "passed"),
    [("deepeval.plugins.plugin", EVALUATED, "test_evaluated"), ("agent_test.plugin", BESIDE, "test_both")],
    ids=["deepeval", "pytest-agent-trace"],
)
def test_heavy_neighbours(plugin: str, source: str, passed: str, project: Path) -> None:
    pytest.importorskip(plugin.partition(".")[0], reason="installed in one cell of the matrix")
    (project / "test_heavy.py").write_text(source)
    plugins = ("pytest_agenttrace.plugin", plugin)
    env = environment() | {"DEEPEVAL_TELEMETRY_OPT_OUT": "YES"}
    ran = run_pytest(project, "-W", "ignore", "--strict-markers", env=env, plugins=plugins)
    told = Told(ran, "test_heavy")
    assert told.outcomes == {passed: "passed", "test_over": "failed"}, ran.out + ran.err
    assert told.text("test_over") == "write 1,067 tokens > 1,000 (+67)"
