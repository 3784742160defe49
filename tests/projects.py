"""Small projects to run pytest on, for the tests of the plugin.

A pytest that imports MLflow and LangGraph takes seconds to start. Tests marked with `@inner` therefore share one: each
brings a test module, all modules run in a single session, and `told` is what that session said of the module. Whatever
needs a session to itself (collection errors, xdist, interrupts) has a `project` or a `bare` folder of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

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
CONFTEST = """
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

        found["mlflow: tracking uri"] = mlflow.get_tracking_uri()
        found["mlflow: registry uri"] = mlflow.get_registry_uri()
        found["mlflow: active run"] = repr(mlflow.active_run())
        found["mlflow: autologging"] = repr({name: flags for name, flags in AUTOLOGGING_INTEGRATIONS.items() if flags})
    return found


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    before = state()
    result = yield
    after = state()
    names = before.keys() | {name for name in after if not name.startswith("mlflow: ")}
    left = {name: [before.get(name), after.get(name)] for name in names if before.get(name) != after.get(name)}
    told(nodeid=item.nodeid, when="protocol", left=left)
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
"""


# Warnings are errors; the one that is left out is google-genai's own.
INI = """
[pytest]
junit_family = xunit1
filterwarnings =
  error
  ignore:Inheritance class AiohttpClientSession:DeprecationWarning
"""
if version("google-genai").startswith("1."):
    # After async calls of this one, what it leaves to the collector is told by whichever test comes next (pytest 8.2).
    INI += "  ignore::pytest.PytestUnraisableExceptionWarning\n"


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
        lines = [line[1:] for line in self.text(name).splitlines() if line.startswith("E ")]
        return textwrap.dedent("\n".join(lines))

    def section(self, name: str, title: str) -> str | None:
        found = self._failed(name)["sections"].get(title)
        return None if found is None else str(found)

    def texts(self, name: str) -> list[str]:
        """The text of every report of a test, in order."""
        return [str(report["text"]) for report in self._reports if self._name(report) == name]

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
    # pytest cuts its summary lines, and its diffs, only where the first two are not set.
    github = ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE")
    xdist = ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID")
    for name in ("CI", "BUILD_NUMBER", *github, *xdist):
        kept.pop(name, None)
    if key:
        kept["GOOGLE_API_KEY"] = "a-key-of-somebody-0123456789"
    kept["PYTHONPATH"] = str(ROOT)
    kept["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return kept


def temporary(folder: Path) -> Path:
    """Where a session's temporary files are, beside its project."""
    return folder.with_name(f"{folder.name}-temporary")


def run_pytest(
    folder: Path, *args: str, env: Mapping[str, str], plugins: Sequence[str] = ("pytest_agenttrace.plugin",)
) -> Session:
    loaded = [part for plugin in plugins for part in ("-p", plugin)]
    command = [sys.executable, "-m", "pytest", *loaded, f"--basetemp={temporary(folder)}", *args]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False)
    return Session(done.returncode, done.stdout, done.stderr, folder)


_CASSETTE = pytest.StashKey[str]()


@pytest.fixture(name="cassette", scope="session")
def cassette_fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of the app's cassette: recorded by the plugin from a scripted server, with times of our own."""
    stash = request.config.stash
    # Each module that imports this fixture has its own; one recording is enough.
    if _CASSETTE not in stash:
        stash[_CASSETTE] = _record(tmp_path_factory.mktemp("recorded"))
    return stash[_CASSETTE]


def _record(folder: Path) -> str:
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
    text = re.sub(r"duration: [\d.]+", lambda _: f"duration: {next(seconds)}", text)
    return re.sub(r"(?<=, recorded: ')\d{4}-[\d:T-]+Z", "2025-08-01T12:00:00Z", text)


def write_project(folder: Path, cassette: str) -> None:
    (folder / "app.py").write_text(APP)
    (folder / "app.yaml").write_text(cassette)
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "pytest.ini").write_text(INI)


@pytest.fixture(name="shared", scope="session")
def shared_fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cassette: str) -> Session:
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


@pytest.fixture(name="told")
def told_fixture(request: pytest.FixtureRequest, shared: Session) -> Told:
    return Told(shared, request.node.originalname)


ARTICLE = """\
article_writer          2.1 s  4,601 tok  $0.0061565
├─ research             1.2 s  3,534 tok  $0.0047364
│  ├─ gemini-2.5-flash         1,321 tok  $0.0029725   150 in, 1,171 out
│  ├─ web_search  [tool]
│  └─ gemini-2.5-flash         2,213 tok  $0.0017639   1,713 in, 500 out
└─ write                0.9 s  1,067 tok  $0.0014201
   └─ gemini-2.5-flash         1,067 tok  $0.0014201   567 in, 500 out"""

MISSED = """\
! article_writer          1.2 s  3,534 tok  $0.0047364
  ├─ research             1.2 s  3,534 tok  $0.0047364
  │  ├─ gemini-2.5-flash         1,321 tok  $0.0029725   150 in, 1,171 out
  │  ├─ web_search  [tool]
  │  └─ gemini-2.5-flash         2,213 tok  $0.0017639   1,713 in, 500 out
! └─ write                                               CassetteMiss: write, call 3: no recorded reply
!    └─ ChatGoogleGenerativeAI"""


def marked(*names: str, tree: str = ARTICLE) -> str:
    """The tree with its margin, `>` before the lines of these names."""
    lines = [(re.sub(r"^[│├└─ ]+", "", line).split(" ")[0], line) for line in tree.splitlines()]
    return "\n".join(f"{'>' if label in names else ' '} {line}" for label, line in lines)


def miss(test: str) -> str:
    """What a test says where `write` asked for 400 words instead of 300."""
    return (
        "CassetteMiss: write, call 3: no recorded reply\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  nearest recorded: call 3, differs at contents[0].parts[0].text:\n"
        "    Write [-300-]{+400+} words on solar sails\n"
        "  If the prompt changed on purpose, record again:\n"
        f"    pytest {test} --agenttrace-record"
    )


@pytest.fixture(name="project")
def project_fixture(tmp_path: Path, cassette: str) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    write_project(folder, cassette)
    return folder


@pytest.fixture(name="bare")
def bare_fixture(tmp_path: Path) -> Path:
    """A project without the app and its cassette, for what imports nothing heavy."""
    folder = tmp_path / "bare"
    folder.mkdir()
    return folder
