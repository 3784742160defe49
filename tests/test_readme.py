"""The README is the manual: what it shows was printed, what it promises runs."""

from __future__ import annotations

import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from pytest_agenttrace import GeminiServer, ModelCall, Reply, Usage
from pytest_agenttrace.budgets.limits import closest
from pytest_agenttrace.budgets.project import read_budgets
from pytest_agenttrace.prices import read_prices
from pytest_agenttrace.projectfile import read_project
from tests import shown

TEXT = shown.README.read_text(encoding="utf-8")

APP = """
from typing import TypedDict
from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph

class State(TypedDict, total=False):
    topic: str
    facts: str
    text: str

def ask(prompt):
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash").invoke(prompt).text

graph = StateGraph(State)
graph.add_node("research", lambda state: {"facts": ask("Facts about " + state["topic"])})
graph.add_node("write", lambda state: {"text": ask("Write about " + state["facts"])})
graph.add_edge(START, "research")
graph.add_edge("research", "write")
graph.add_edge("write", END)
app = graph.compile(name="article_writer")
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def pytest_in(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_outputs_are_what_is_printed() -> None:
    """`python -m tests.shown` writes them."""
    shows, must_show = shown.readme()
    assert shows == must_show


def test_the_first_test_stands_before_line_30() -> None:
    lines = TEXT.splitlines()
    assert next(i for i, line in enumerate(lines, 1) if line.startswith("def test_")) < 30


def test_the_first_test_records_once_and_then_replays(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    (tmp_path / "test_article.py").write_text(blocks("python")[0])
    (tmp_path / "article.py").write_text(APP)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    usage = {"promptTokenCount": 20, "candidatesTokenCount": 300}
    with GeminiServer(
        {"Facts": Reply("Light has momentum.", usage=usage), "Write": Reply("A sail.", usage=usage)}
    ) as server:
        keyed = clean_environment | {"GOOGLE_API_KEY": "scripted", "GOOGLE_GEMINI_BASE_URL": server.url}
        recorded = pytest_in(tmp_path, keyed, "--agenttrace-record")
    assert recorded.returncode == 0, recorded.stdout
    assert (tmp_path / "cassettes" / "test_article" / "test_article.yaml").is_file()
    replayed = pytest_in(tmp_path, clean_environment)
    assert replayed.returncode == 0, replayed.stdout
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == [
        "article.py",
        "cassettes",
        "pytest.ini",
        "test_article.py",
    ]


AGENT = """
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

@tool
def web_search(query: str, limit: int) -> str:
    "Search."
    return query

@tool
def calculator(a: int, b: int) -> int:
    "Add."
    return a + b

def ask(state):
    model = ChatGoogleGenerativeAI(model="gemini-2.5-flash").bind_tools([web_search, calculator])
    return {"messages": [model.invoke(state.get("messages") or [HumanMessage("Find out")])]}

graph = StateGraph(MessagesState)
graph.add_node("agent", ask)
graph.add_node("tools", ToolNode([web_search, calculator]))
graph.add_edge(START, "agent")
graph.add_conditional_edges("agent", tools_condition)
graph.add_edge("tools", "agent")
app = graph.compile()
app.invoke = lambda given, run=app.invoke: run({"messages": [HumanMessage(given["topic"])]})
"""


def test_comparisons_of_trajectories_and_tools(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    source = next(block for block in blocks("python") if "test_at_least_this" in block)
    (tmp_path / "test_agent.py").write_text(f"from agent import app\n{source}")
    (tmp_path / "agent.py").write_text(AGENT)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    searches = [("web_search", {"query": query, "limit": 3}) for query in ("solar sails", "light")]
    replies = [
        Reply(
            tool_calls=[searches[0], ("calculator", {"a": 2, "b": 3})],
            usage={"promptTokenCount": 100, "candidatesTokenCount": 31},
        ),
        Reply(tool_calls=searches[1:], usage={"promptTokenCount": 150, "candidatesTokenCount": 32}),
        Reply("5", usage={"promptTokenCount": 200, "candidatesTokenCount": 27}),
    ]
    with GeminiServer(replies * 3) as server:
        keyed = clean_environment | {"GOOGLE_API_KEY": "scripted", "GOOGLE_GEMINI_BASE_URL": server.url}
        recorded = pytest_in(tmp_path, keyed, "--agenttrace-record")
    assert recorded.returncode == 0, recorded.stdout
    replayed = pytest_in(tmp_path, clean_environment)
    assert replayed.returncode == 0, replayed.stdout
    assert "3 passed" in replayed.stdout


def test_without_pytest(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    source = next(block for block in blocks("python") if "with capture(" in block)
    cassette = shown.ROOT / "examples" / "two_nodes" / "article.yaml"
    source = source.replace("cassettes/article.yaml", str(cassette))
    script = f"import sys\nsys.path.insert(0, {str(shown.ROOT)!r})\nfrom examples.two_nodes.graph import app\n{source}"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=clean_environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    name, *_, tokens, _, cost = done.stdout.splitlines()[0].split()
    assert (name, tokens, cost) == ("article_writer", "1,988", "$0.004409")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("block", blocks("python"), ids=range(len(blocks("python"))))
def test_code_blocks_are_python(block: str) -> None:
    compile(block, "README.md", "exec")


def test_the_file_of_prices_is_one(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(blocks("yaml")[0])
    price = read_prices(tmp_path / "prices.yaml")
    # 1,000 x 0.30 + 100 x 2.50
    assert price(ModelCall("gemini-2.5-flash", None, None, Usage(1000, 100, 1100))) == Decimal("0.00055")


def test_the_budgets_of_a_project_are_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(blocks("toml")[0])
    budgets = read_budgets(read_project(tmp_path))
    near, far = closest(budgets.of("tests/nightly/test_a.py::test_x")), closest(budgets.of("tests/test_a.py::test_x"))
    assert {(limit.node, limit.metric): limit.limit for limit in near} == {
        (None, "cost"): Decimal("0.10"),
        (None, "llm_calls"): 20,
        ("research", "tokens"): 9_000,
    }
    assert {(limit.node, limit.metric): limit.limit for limit in far} == {
        (None, "cost"): Decimal("0.01"),
        (None, "llm_calls"): 20,
        ("research", "tokens"): 4_000,
    }
    assert [limit.limit for limit in budgets.run] == [Decimal("2.00"), 5_000_000]
