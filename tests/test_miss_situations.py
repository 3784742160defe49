"""A miss wherever code might retry, await or swallow it: asked once, never slept on, raised or found at the end.

The model is real, the cassette is empty, and nothing is ever sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest

from pytest_agenttrace import CassetteMiss, capture
from pytest_agenttrace.capture import CaptureFailed
from pytest_agenttrace.replay import open_cassette
from pytest_agenttrace.replay.writing import save_cassette

NOWHERE = "https://gemini.invalid"
# google-genai's own session class, where aiohttp is installed.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")


class State(TypedDict):
    said: str


def llm(**options: Any) -> Any:
    from langchain_google_genai import ChatGoogleGenerativeAI

    # Six attempts are the client's default: a miss must be none of them.
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", google_api_key="no key", base_url=NOWHERE, **options)


def by_httpx() -> Any:
    import httpx

    # google-genai speaks aiohttp where it can, and httpx where it is given a transport.
    return llm(client_args={"transport": httpx.AsyncHTTPTransport()})


def retrying(model: Any) -> Any:
    return model.with_retry(stop_after_attempt=3)


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were asked of `time.sleep` and `asyncio.sleep`; none is slept."""
    asked: list[float] = []
    real = asyncio.sleep

    async def asleep(delay: float, result: Any = None) -> Any:
        asked.append(delay)
        return await real(0, result)

    monkeypatch.setattr(time, "sleep", asked.append)
    monkeypatch.setattr(asyncio, "sleep", asleep)
    return asked


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_cassette(tmp_path / "x.yaml", [], {})
    return tmp_path / "x.yaml"


def text(node: str | None = "ask", number: int = 1) -> str:
    """The whole message of a miss."""
    return (
        f"{node or '(no node)'}, call {number}: no recorded reply\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  the cassette holds no calls"
    )


def graph(*nodes: Any, retry_policy: Any = None, **options: Any) -> Any:
    """Nodes beside each other, each with this policy."""
    from langgraph.graph import START, StateGraph

    builder = StateGraph(State)
    for number, node in enumerate(nodes, 1):
        name = "ask" if len(nodes) == 1 else f"ask_{number}"
        builder.add_node(name, node, retry_policy=retry_policy)
        builder.add_edge(START, name)
    return builder.compile(**options)


# The twelve situations, sync and async, and async by both of the client's transports


def node(model: Any, *, later: bool, guarded: bool = False) -> Callable[[State], Any]:
    """A node that asks; `guarded` by an `except Exception` of its own."""
    caught: Any = Exception if guarded else ()

    def ask(state: State) -> Any:
        try:
            return {"said": str(model.invoke("x").text)}
        except caught:
            return {"said": "swallowed"}

    async def asking(state: State) -> Any:
        try:
            return {"said": str((await model.ainvoke("x")).text)}
        except caught:
            return {"said": "swallowed"}

    return asking if later else ask


def default_policy() -> Any:
    from langgraph.types import RetryPolicy

    return RetryPolicy()


def greedy_policy() -> Any:
    from langgraph.types import RetryPolicy

    return RetryPolicy(retry_on=Exception, max_attempts=5)


def same(model: Any) -> Any:
    return model


TRANSPORTS = [
    pytest.param(llm, False, id="sync"),
    pytest.param(by_httpx, True, id="httpx"),
    pytest.param(llm, True, id="aiohttp"),
]


@pytest.mark.parametrize(("model", "later"), TRANSPORTS)
@pytest.mark.parametrize(
    ("policy", "wrap", "guarded"),
    [
        pytest.param(None, same, False, id="plain"),
        pytest.param(default_policy, same, False, id="RetryPolicy"),
        pytest.param(greedy_policy, same, False, id="RetryPolicy of Exception"),
        pytest.param(None, retrying, False, id="with_retry"),
        pytest.param(None, same, True, id="except Exception"),
        pytest.param(greedy_policy, retrying, True, id="all at once"),
    ],
)
def test_a_miss_ends_the_run_at_once(
    policy: Callable[[], Any] | None,
    wrap: Callable[[Any], Any],
    guarded: bool,
    model: Callable[[], Any],
    later: bool,
    empty: Path,
    sleeps: list[float],
) -> None:
    app = graph(node(wrap(model()), later=later, guarded=guarded), retry_policy=policy() if policy else None)
    with open_cassette(empty) as session, pytest.raises(CassetteMiss) as caught:
        asyncio.run(app.ainvoke({"said": ""})) if later else app.invoke({"said": ""})
    assert str(caught.value) == text()
    assert [miss.text for miss in session.misses] == [text()]
    assert [seconds for seconds in sleeps if seconds] == []


@pytest.mark.parametrize(("model", "later"), TRANSPORTS)
def test_parallel_branches_ask_once_each(
    model: Callable[[], Any], later: bool, empty: Path, sleeps: list[float]
) -> None:
    branches = [node(model(), later=later) for _ in range(4)]
    app = graph(*branches, retry_policy=greedy_policy())
    with open_cassette(empty) as session, pytest.raises(CassetteMiss) as caught:
        asyncio.run(app.ainvoke({"said": ""})) if later else app.invoke({"said": ""})
    # The first miss ends the run: how many of its siblings had asked by then is left to chance.
    asked = [str(miss.caller.node) for miss in session.misses]
    assert 1 <= len(asked) == len(set(asked)) <= 4
    assert set(asked) <= {"ask_1", "ask_2", "ask_3", "ask_4"}
    assert str(caught.value) in [miss.text for miss in session.misses]
    assert [miss.text for miss in session.misses] == [text(name, n) for n, name in enumerate(asked, 1)]
    assert [seconds for seconds in sleeps if seconds] == []


# Raised through everything else that handles errors


def fallbacks() -> object:
    return llm().with_fallbacks([llm(), llm()]).invoke("x")


def fallbacks_later() -> object:
    return asyncio.run(llm().with_fallbacks([llm(), llm()]).ainvoke("x"))


def a_batch() -> object:
    return llm().batch(["x"], return_exceptions=True)


def a_batch_later() -> object:
    return asyncio.run(llm().abatch(["x"], return_exceptions=True))


def a_stream() -> object:
    return list(llm().with_retry().stream("x"))


def a_stream_later() -> object:
    async def read() -> list[Any]:
        return [chunk async for chunk in llm().astream("x")]

    return asyncio.run(read())


def in_time() -> object:
    return asyncio.run(asyncio.wait_for(llm().ainvoke("x"), 30))


def a_tool() -> object:
    from langchain_core.messages import AIMessage
    from langchain_core.tools import tool
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode

    @tool
    def research(topic: str) -> str:
        """Ask a model of its own."""
        return str(llm().invoke(topic).text)

    builder = StateGraph(MessagesState)
    builder.add_node("ask", ToolNode([research], handle_tool_errors=True))
    builder.add_edge(START, "ask")
    wanted = {"name": "research", "args": {"topic": "x"}, "id": "1"}
    return builder.compile().invoke({"messages": [AIMessage("", tool_calls=[wanted])]})


def after_an_interrupt() -> object:
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.types import Command, interrupt

    def ask(state: State) -> Any:
        interrupt("go on?")
        return {"said": str(llm().invoke("x").text)}

    app = graph(ask, checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}}
    app.invoke({"said": ""}, config)
    return app.invoke(Command(resume="yes"), config)


def events() -> object:
    async def read() -> list[Any]:
        app = graph(node(llm(), later=True))
        return [event async for event in app.astream_events({"said": ""}, version="v2")]

    return asyncio.run(read())


def a_stream_of_a_graph() -> object:
    return list(graph(node(llm(), later=False)).stream({"said": ""}, stream_mode="updates"))


def a_subgraph() -> object:
    from langgraph.graph import START, StateGraph

    outer = StateGraph(State)
    outer.add_node("outer", graph(node(llm(), later=False)), retry_policy=greedy_policy())
    outer.add_edge(START, "outer")
    return outer.compile().invoke({"said": ""})


def suppressed() -> object:
    with contextlib.suppress(Exception):
        return llm().invoke("x")
    return "swallowed"


@pytest.mark.parametrize(
    ("act", "asked"),
    [
        (fallbacks, None),
        (fallbacks_later, None),
        (a_batch, None),
        (a_batch_later, None),
        (a_stream, None),
        (a_stream_later, None),
        (in_time, None),
        (a_tool, "ask"),
        (after_an_interrupt, "ask"),
        (events, "ask"),
        (a_stream_of_a_graph, "ask"),
        (a_subgraph, "ask"),
        (suppressed, None),
    ],
)
def test_a_miss_passes_through(act: Callable[[], object], asked: str | None, empty: Path, sleeps: list[float]) -> None:
    with open_cassette(empty) as session, pytest.raises(CassetteMiss) as caught:
        act()
    (miss,) = session.misses
    streamed = act in (a_stream, a_stream_later, events)
    said = text(asked)
    if streamed:
        said = said.replace(":generateContent", ":streamGenerateContent?alt=sse")
    assert str(caught.value) == miss.text == said
    assert [seconds for seconds in sleeps if seconds] == []


def test_a_task_group_raises_a_group_that_holds_it(empty: Path) -> None:
    async def together() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(llm().ainvoke("x"))

    with open_cassette(empty) as session, pytest.raises(BaseExceptionGroup) as caught:
        asyncio.run(together())
    assert caught.group_contains(CassetteMiss)
    assert [miss.text for miss in session.misses] == [text(None)]


def test_a_finally_that_asks_again_misses_again(empty: Path) -> None:
    def ask(state: State) -> Any:
        try:
            return {"said": str(llm().invoke("x").text)}
        finally:
            llm().invoke("clean up")

    with open_cassette(empty) as session, pytest.raises(CassetteMiss) as caught:
        graph(ask, retry_policy=greedy_policy()).invoke({"said": ""})
    assert [miss.text for miss in session.misses] == [text(number=1), text(number=2)]
    assert str(caught.value) == text(number=2)
    assert str(caught.value.__context__) == text(number=1)


# Swallowed, and found at the end all the same


def anything(state: State) -> Any:
    try:
        return {"said": str(llm().invoke("x").text)}
    except BaseException:
        return {"said": "swallowed"}


async def gathered(state: State) -> Any:
    answers = await asyncio.gather(llm().ainvoke("x"), return_exceptions=True)
    return {"said": type(answers[0]).__name__}


def thrown_away(state: State) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    from langchain_core.runnables.config import ContextThreadPoolExecutor

    pool: ThreadPoolExecutor
    with ContextThreadPoolExecutor(1) as pool:
        pool.submit(llm().invoke, "x")
    return {"said": "not looked at"}


@pytest.mark.parametrize(
    ("swallowing", "said"),
    [
        (anything, "swallowed"),
        (gathered, "CassetteMiss"),
        (thrown_away, "not looked at"),
    ],
)
def test_a_miss_that_was_swallowed_fails_at_the_end(
    swallowing: Callable[[State], Any], said: str, empty: Path, sleeps: list[float]
) -> None:
    app = graph(swallowing, retry_policy=greedy_policy())
    given: list[Any] = []
    with pytest.raises(CaptureFailed) as caught, capture(empty):
        given.append(asyncio.run(app.ainvoke({"said": ""})))
    assert given == [{"said": said}]
    assert str(caught.value) == f"CassetteMiss: {text()}"
    assert [seconds for seconds in sleeps if seconds >= 0.5] == []


# What CassetteMiss rests on


class Bare(BaseException):
    """Neither an Exception nor with the two attributes that `agenerate` reads."""


def failing_model(error: BaseException) -> Any:
    from langchain_core.language_models.fake_chat_models import FakeListChatModel

    class Failing(FakeListChatModel):
        async def _agenerate(self, *args: Any, **options: Any) -> Any:
            raise error

        def _generate(self, *args: Any, **options: Any) -> Any:
            raise error

    return Failing(responses=["never given"])


def test_langchain_still_takes_a_base_exception_for_an_answer() -> None:
    """`agenerate` gathers results and looks for `isinstance(result, Exception)`: another exception is read like an
    answer. Where this fails, langchain-core has changed, and `CassetteMiss` may not need its two attributes."""
    with pytest.raises(AttributeError, match="'Bare' object has no attribute 'generations'"):
        asyncio.run(failing_model(Bare()).ainvoke("x"))


def test_a_miss_has_what_langchain_reads_of_an_answer() -> None:
    from langchain_core.messages import HumanMessage

    miss = CassetteMiss("no reply")
    model = failing_model(miss)
    with pytest.raises(CassetteMiss) as caught:
        asyncio.run(model.ainvoke("x"))
    assert caught.value is miss
    with pytest.raises(CassetteMiss) as caught:
        asyncio.run(model.agenerate([[HumanMessage("x")], [HumanMessage("y")]]))
    assert caught.value is miss
    with pytest.raises(CassetteMiss) as caught:
        model.invoke("x")
    assert caught.value is miss
