"""Tools of a running workflow: found, bound, called with what the model gave, their answers in the next request."""
# ruff: noqa: E501  # a row is a case, with its message whole

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.tools import BaseTool, tool

from pytest_agenttrace import GeminiServer, Reply
from pytest_agenttrace.workflow import Workflow, WorkflowError, load_config
from pytest_agenttrace.workflow.tools import register, unregister
from tests.running import Run, both, edge, node, served, workflow, written

LINE = [edge("START", "ask"), edge("ask", "END")]
FIELDS = {"topic": {"type": "str", "default": "sails"}, "text": "str", "n": "int"}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    yield
    for name in ("search", "lookup", "broken"):
        unregister(name)


def asking(*tools: Any, outputs: tuple[str, ...] = ("text: str",), **execution: Any) -> Workflow:
    return workflow(
        FIELDS, [node("ask", "Ask {topic}", *outputs, tools=list(tools))], LINE, **{"max_retries": 0, **execution}
    )


def sent(server: GeminiServer, at: int) -> list[Any]:
    """The parts of a request's contents, each by what it holds."""
    return [part for content in server.requests[at][1]["contents"] for part in content["parts"]]


def called(name: str, **arguments: Any) -> Reply:
    return Reply(tool_calls=[(name, arguments)])


# Calls


@both
def test_a_tool_is_bound_and_called_and_its_answer_is_read(run: Run) -> None:
    asked: list[Any] = []

    @register("search")
    def search(query: str, most: int = 3) -> str:
        """Search the web."""
        asked.append((query, most))
        return f"found {query}"

    with served([called("search", query="a", most=5), called("search", query="b"), Reply("done")]) as server:
        assert run(asking("search"), {})["text"] == "done"

    assert asked == [("a", 5), ("b", 3)]
    declared = server.requests[0][1]["tools"][0]["functionDeclarations"][0]
    assert (declared["name"], declared["description"]) == ("search", "Search the web.")
    assert sent(server, 2)[1:] == [
        {"functionCall": {"args": {"query": "a", "most": 5}, "name": "search"}},
        {"functionResponse": {"name": "search", "response": {"output": "found a"}}},
        {"functionCall": {"args": {"query": "b"}, "name": "search"}},
        {"functionResponse": {"name": "search", "response": {"output": "found b"}}},
    ]


@both
def test_beside_a_schema_tools_come_first_and_the_answer_by_itself(run: Run) -> None:
    """Gemini 2 refuses a request with both."""
    register("search", lambda_tool("search", lambda query: f"found {query}"))
    script = [called("search", query="a"), Reply("I have it."), Reply(json={"text": "t", "n": 1})]
    with served(script) as server:
        result = run(asking("search", outputs=("text: str", "n: int")), {})

    assert (result["text"], result["n"]) == ("t", 1)
    bodies = [body for _, body in server.requests]
    assert ["tools" in body for body in bodies] == [True, True, False]
    assert ["responseJsonSchema" in body["generationConfig"] for body in bodies] == [False, False, True]
    assert sent(server, 2)[3:] == [
        {"text": "I have it."},
        {"text": "Give your answer now, from what you have found."},
    ]


def lambda_tool(name: str, function: Callable[[str], str]) -> BaseTool:
    @tool(name)
    def made(query: str) -> str:
        """Search the web."""
        return function(query)

    return made


@both
def test_tools_of_one_reply_are_called_in_its_order(run: Run) -> None:
    register("search", lambda_tool("search", lambda query: f"s {query}"))
    register("lookup", lambda_tool("lookup", lambda query: f"l {query}"))
    calls = [("lookup", {"query": "a"}), ("search", {"query": "b"})]
    with served([Reply(tool_calls=calls), Reply("done")]) as server:
        run(asking("search", "lookup"), {})

    assert [part["functionResponse"]["response"]["output"] for part in sent(server, 1)[-2:]] == ["l a", "s b"]


@both
def test_a_tool_that_is_awaited(run: Run) -> None:
    async def search(query: str) -> str:
        """Search the web."""
        return f"found {query}"

    register("search", search)
    with served([called("search", query="a"), Reply("done")]) as server:
        run(asking("search"), {})

    assert sent(server, 1)[-1]["functionResponse"]["response"] == {"output": "found a"}


@both
def test_a_tool_nobody_has_is_told_to_the_model(run: Run) -> None:
    register("search", lambda_tool("search", str))
    with served([called("serch", query="a"), Reply("done")]) as server:
        run(asking("search"), {})

    answer = sent(server, 1)[-1]["functionResponse"]
    assert answer["name"] == "serch"
    assert "There is no tool serch; there are: search" in str(answer["response"])


@both
def test_a_model_that_never_stops_asking_is_given_up(run: Run) -> None:
    register("search", lambda_tool("search", str))
    with served(lambda _: called("search", query="a")) as server, pytest.raises(WorkflowError) as caught:
        run(asking("search"), {})

    assert str(caught.value) == ("f.yaml:14:3: node ask: after 10 rounds of tool calls its model asks for tools still")
    assert len(server.requests) == 10


# Errors of tools


def fail(query: str) -> str:
    raise RuntimeError(f"no {query} here\nsecond line")


@both
def test_an_error_of_a_tool_fails_the_node(run: Run) -> None:
    register("broken", lambda_tool("broken", fail))
    with served([called("broken", query="a")]) as server, pytest.raises(WorkflowError) as caught:
        run(asking("broken", max_retries=3), {})

    assert str(caught.value) == "f.yaml:14:3: node ask: tool broken: RuntimeError: no a here"
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(server.requests) == 1


@both
def test_an_error_of_a_tool_is_its_answer_where_the_file_says_so(run: Run) -> None:
    register("broken", lambda_tool("broken", fail))
    with served([called("broken", query="a"), Reply("done")]) as server:
        assert run(asking({"name": "broken", "on_error": "continue"}), {})["text"] == "done"

    assert "Error: RuntimeError: no a here" in str(sent(server, 1)[-1]["functionResponse"]["response"])


@both
def test_a_tools_connection_and_wrong_arguments_are_worth_another_try(run: Run) -> None:
    failures: list[Exception] = [ConnectionError("gone")]

    def search(query: str) -> str:
        if failures:
            raise failures.pop()
        return query

    register("search", lambda_tool("search", search))
    script = [called("search", query="a"), called("search", wrong=1), called("search", query="b"), Reply("done")]
    with served(script) as server:
        assert run(asking("search", max_retries=2), {})["text"] == "done"
    assert len(server.requests) == 4


@both
def test_a_timeout_holds_while_a_tool_hangs(run: Run) -> None:
    free = threading.Event()

    def hang(query: str) -> str:
        free.wait(30)
        return query

    register("search", lambda_tool("search", hang))
    with served([called("search", query="a")]):
        found = asking("search", timeout=0.4)
        # asyncio.run waits at its end for the thread that hangs: it is let go by then.
        threading.Timer(1.5, free.set).start()
        begun = time.monotonic()
        with pytest.raises(WorkflowError) as caught:
            run(found, {})
        took = time.monotonic() - begun

    assert str(caught.value) == "f.yaml:14:3: node ask: no answer after 0.4 s, the execution.timeout"
    assert took < 15


# Where tools come from


MODULE = '''
"""Tools beside a workflow."""
from langchain_core.tools import BaseTool, tool

READY = 3


@tool
def ready(query: str) -> str:
    """Ready made."""
    return f"ready {query}"


def plain(query: str) -> str:
    """Plain."""
    return f"plain {query}"


def bare(query: str) -> str:
    return query


def maker(prefix: str, most: int = 1):
    @tool
    def made(query: str) -> str:
        """Made."""
        return f"{prefix} {query} {most}"

    return made


class Search(BaseTool):
    name: str = "search_class"
    description: str = "By class."
    prefix: str = "class"

    def _run(self, query: str) -> str:
        return f"{self.prefix} {query}"


class Callable:
    def __call__(self, query: str) -> str:
        """By call."""
        return f"call {query}"
'''


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Workflow]]:
    """A workflow in a folder with own_tools.py; where it is run is another folder."""
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "kit").mkdir(parents=True)
    there.mkdir()
    (here / "own_tools.py").write_text(MODULE)
    (here / "kit" / "__init__.py").write_text("")
    (here / "kit" / "web.py").write_text("import own_tools\nready = own_tools.ready\n")
    (here / "failing_tools.py").write_text("import nothing_of_this_name\n")
    (there / "cwd_tools.py").write_text(MODULE)
    monkeypatch.chdir(there)

    def load(*tools: Any) -> Workflow:
        nodes = [node("ask", "Ask {topic}", "text: str", tools=list(tools))]
        (here / "f.yaml").write_text(written(FIELDS, nodes, LINE, max_retries=0))
        return Workflow(load_config("../here/f.yaml"))

    before = {*sys.modules}
    yield load
    for name in {*sys.modules} - before:
        if name.partition(".")[0] in ("own_tools", "kit", "cwd_tools", "failing_tools"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("given", "name", "answer"),
    [
        ("own_tools:ready", "ready", "ready q"),
        ("own_tools.ready", "ready", "ready q"),
        ("kit.web:ready", "ready", "ready q"),
        ("cwd_tools:plain", "plain", "plain q"),
        ({"name": "own_tools:maker", "config": {"prefix": "p"}}, "made", "p q 1"),
        ({"name": "own_tools:maker", "config": {"prefix": "p", "most": 2}}, "made", "p q 2"),
        ("own_tools:Search", "search_class", "class q"),
        ({"name": "own_tools:Search", "config": {"prefix": "mine"}}, "search_class", "mine q"),
        ("own_tools:Callable", "Callable", "call q"),
    ],
)
def test_a_tool_by_import(beside: Callable[..., Workflow], given: Any, name: str, answer: str) -> None:
    path = [*sys.path]
    with served([called(name, query="q"), Reply("done")]) as server:
        beside(given).run({})

    assert sent(server, 1)[-1]["functionResponse"] == {"name": name, "response": {"output": answer}}
    assert sys.path == path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("own_tools:raedy", "tool own_tools:raedy: own_tools has no 'raedy'; did you mean own_tools:ready?"),
        ("own_tools:READY", "tool own_tools:READY: int is no tool: a LangChain tool is, or a function"),
        ("no_tools:ready", "tool no_tools:ready: no_tools cannot be imported: ModuleNotFoundError: No module named 'no_tools'"),
        ("failing_tools:x", "tool failing_tools:x: failing_tools cannot be imported: ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("own_tools:bare", "tool own_tools:bare: the function cannot be a tool: ValueError: Function must have a docstring if description not provided."),
        ({"name": "own_tools:ready", "config": {"a": 1}}, "tool own_tools:ready: it is ready made, and takes no config (a)"),
        ({"name": "own_tools:maker", "config": {"b": 1}}, "tool own_tools:maker: it cannot be made with config {'b': 1}: TypeError: maker() got an unexpected keyword argument 'b'"),
    ],
)  # fmt: skip
def test_a_tool_that_is_none(beside: Callable[..., Workflow], given: Any, message: str) -> None:
    with served([]) as server, pytest.raises(WorkflowError) as caught:
        beside(given).run({})

    assert str(caught.value) == f"../here/f.yaml:14:3: node ask: {message}"
    assert server.requests == []


def test_all_tools_that_are_none_are_told_at_once() -> None:
    register("search", lambda_tool("search", str))
    nodes = [
        node(name, "Ask", "text: str", tools=[tool_]) for name, tool_ in (("a", "serch"), ("b", "search"), ("c", "x:y"))
    ]
    edges = [edge("START", "a"), edge("a", "b"), edge("b", "c"), edge("c", "END")]
    with pytest.raises(WorkflowError) as caught:
        _ = workflow({"text": "str"}, nodes, edges).graph

    assert str(caught.value) == (
        "f.yaml:9:3: node a: tool serch: no tool of this name is known; did you mean search?; registered: search. "
        'Register it, pytest_agenttrace.workflow.tools.register("serch"), name it by import, module:attribute, or '
        "install a package with an entry point serch in agenttrace.tools\n"
        "f.yaml:25:3: node c: tool x:y: x cannot be imported: ModuleNotFoundError: No module named 'x'"
    )


def test_two_workflows_with_modules_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "same_tools.py").write_text(MODULE)
        text = written(FIELDS, [node("ask", "Ask", "text: str", tools=["same_tools:ready"])], LINE)
        (tmp_path / name / "f.yaml").write_text(text)
        found.append(Workflow.load(f"{name}/f.yaml"))
    try:
        _ = found[0].graph
        with pytest.raises(WorkflowError) as caught:
            _ = found[1].graph
    finally:
        del sys.modules["same_tools"]

    assert str(caught.value) == (
        f"other/f.yaml:14:3: node ask: tool same_tools:ready: {tmp_path}/other/same_tools.py cannot be imported: "
        f"{tmp_path}/one/same_tools.py is imported under the same name already; rename one of them"
    )


def test_a_tool_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "kit-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kit\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[agenttrace.tools]\ninstalled = kit_tools:ready\ngone = kit_tools:nothing\n"
    )
    (tmp_path / "kit_tools.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    with served([called("installed", query="q"), Reply("done")]) as server:
        asking("installed").run({})
    with pytest.raises(WorkflowError) as caught:
        _ = asking("gone").graph

    assert sent(server, 1)[-1]["functionResponse"] == {"name": "installed", "response": {"output": "ready q"}}
    assert str(caught.value).startswith(
        "f.yaml:14:3: node ask: tool gone: the entry point kit_tools:nothing cannot be loaded: AttributeError: "
    )
    del sys.modules["kit_tools"]


def test_what_cannot_be_registered() -> None:
    with pytest.raises(TypeError, match=r"^register\('search'\): 3 is no tool and no function$"):
        register("search", 3)


def test_a_registered_tool_goes_by_its_registered_name() -> None:
    register("search", lambda_tool("web_search_v2", str))
    with served([called("search", query="q"), Reply("done")]) as server:
        asking("search").run({})

    def names(request: tuple[str, dict[str, Any]]) -> list[str]:
        return [found["name"] for found in request[1]["tools"][0]["functionDeclarations"]]

    assert names(server.requests[0]) == ["search"]
