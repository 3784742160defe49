"""order="shuffle": replies of parallel branches in the order of a seed; what depends on it is caught."""

from __future__ import annotations

import asyncio
import operator
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

from pytest_agenttrace import GeminiServer, capture
from pytest_agenttrace.replay import Opening, open_cassette
from pytest_agenttrace.replay.orders import seed_of
from pytest_agenttrace.settings import SettingsError, read_settings
from tests.test_recorder import NOWHERE, ask, echo, record

ASK = "/v1beta/models/gemini-2.5-flash:generateContent"


class State(TypedDict, total=False):
    topics: list[str]
    topic: str
    facts: Annotated[list[str], operator.add]


async def ask_later(prompt: str, library: str) -> str:
    content = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": {}}
    if library == "aiohttp":
        import aiohttp

        async with aiohttp.ClientSession() as session, session.post(NOWHERE + ASK, json=content) as response:
            said = await response.json()
    else:
        import httpx

        async with httpx.AsyncClient() as client:
            said = (await client.post(NOWHERE + ASK, json=content)).json()
    return str(said["candidates"][0]["content"]["parts"][0]["text"])


def graph(client: str, done: list[str], work: float = 0) -> Any:
    """A fan-out that also appends to a list outside of the graph: in the order in which the branches end.

    Before it ends, a synchronous branch computes for `work` seconds of this thread's time.
    """
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send

    def sync(state: State) -> State:
        fact = ask(NOWHERE, state["topic"])
        until = time.thread_time() + work
        while time.thread_time() < until:
            pass
        done.append(state["topic"])
        return {"facts": [fact]}

    async def later(state: State) -> State:
        fact = await ask_later(state["topic"], client)
        done.append(state["topic"])
        return {"facts": [fact]}

    builder = StateGraph(State)
    builder.add_node("look_up", sync if client == "sync" else later)
    builder.add_conditional_edges(START, lambda state: [Send("look_up", {"topic": t}) for t in state["topics"]])
    builder.add_edge("look_up", END)
    return builder.compile()


def run(
    path: Path, client: str, topics: list[str], order: str | None, work: float = 0, **config: Any
) -> tuple[list[str], list[str]]:
    """What the graph returns, and the order in which its branches ended."""
    done: list[str] = []
    app = graph(client, done, work)
    with open_cassette(path, Opening(order=order)) as cassette:
        given = {"topics": topics, "facts": []}
        result = app.invoke(given, config) if client == "sync" else asyncio.run(app.ainvoke(given, config))
    assert cassette.unused == ()
    return result["facts"], done


CLIENTS = ["sync", "httpx", "aiohttp"]


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("branches", [3, 12])
def test_a_seed_is_an_order(tmp_path: Path, client: str, branches: int) -> None:
    topics = [f"topic {number:02}" for number in range(branches)]
    record(tmp_path / "x.yaml", *topics)
    orders: dict[int, list[str]] = {}
    for seed in range(6):
        facts, orders[seed] = run(tmp_path / "x.yaml", client, topics, f"shuffle:{seed}")
        assert facts == [f"re: {topic}" for topic in topics]
        assert sorted(orders[seed]) == topics
    assert len(set(map(tuple, orders.values()))) > 2
    assert run(tmp_path / "x.yaml", client, topics, "shuffle:3")[1] == orders[3]


def test_who_still_computes_is_waited_for(tmp_path: Path) -> None:
    topics = ["a", "b", "c"]
    record(tmp_path / "x.yaml", *topics)
    for seed in range(4):
        order = f"shuffle:{seed}"
        assert (
            run(tmp_path / "x.yaml", "sync", topics, order, 0.15)[1]
            == run(tmp_path / "x.yaml", "sync", topics, order)[1]
        )


def test_every_client_is_given_the_same_order(tmp_path: Path) -> None:
    topics = ["a", "b", "c", "d"]
    record(tmp_path / "x.yaml", *topics)
    assert len({tuple(run(tmp_path / "x.yaml", client, topics, "shuffle:5")[1]) for client in CLIENTS}) == 1


def test_few_at_a_time_and_many_at_once(tmp_path: Path) -> None:
    topics = [f"topic {number:02}" for number in range(32)]
    record(tmp_path / "x.yaml", *topics)
    facts, done = run(tmp_path / "x.yaml", "sync", topics, "shuffle:1")
    assert (facts, sorted(done)) == ([f"re: {topic}" for topic in topics], topics)
    facts, done = run(tmp_path / "x.yaml", "sync", topics[:6] + topics[6:], "shuffle:1", max_concurrency=2)
    assert (facts, sorted(done)) == ([f"re: {topic}" for topic in topics], topics)


def test_a_branch_that_waits_for_another_is_let_go(tmp_path: Path) -> None:
    """Whatever the order: nobody waits for ever."""
    import threading

    record(tmp_path / "x.yaml", "first", "second")
    for seed in range(4):
        ready = threading.Event()

        def second(ready: threading.Event = ready) -> str:
            assert ready.wait(5)
            return ask(NOWHERE, "second")

        with open_cassette(tmp_path / "x.yaml", Opening(order=f"shuffle:{seed}")), ThreadPoolExecutor(2) as pool:
            later = pool.submit(second)
            assert pool.submit(ask, NOWHERE, "first").result(5) == "re: first"
            ready.set()
            assert later.result(5) == "re: second"


class Review(TypedDict, total=False):
    verdicts: Annotated[list[str], operator.add]


def summed_up(path: Path, seed: int, fixed: bool) -> str:
    """Two reviewers; the buggy graph keeps whoever answered last."""
    from langgraph.graph import END, START, StateGraph

    last: dict[str, str] = {}

    def strict(state: Review) -> Review:
        last["verdict"] = ask(NOWHERE, "strict")
        return {"verdicts": [last["verdict"]]}

    def mild(state: Review) -> Review:
        last["verdict"] = ask(NOWHERE, "mild")
        return {"verdicts": [last["verdict"]]}

    builder = StateGraph(Review)
    for node in (strict, mild):
        builder.add_node(node)
        builder.add_edge(START, node.__name__)
        builder.add_edge(node.__name__, END)
    with open_cassette(path, Opening(order=f"shuffle:{seed}")):
        result = builder.compile().invoke({"verdicts": []})
        return sorted(result["verdicts"])[0] if fixed else last["verdict"]


def test_a_race_is_caught_and_its_fixed_form_passes_a_hundred_seeds(tmp_path: Path) -> None:
    record(tmp_path / "x.yaml", "strict", "mild")
    assert {summed_up(tmp_path / "x.yaml", seed, fixed=False) for seed in range(10)} == {"re: strict", "re: mild"}
    assert {summed_up(tmp_path / "x.yaml", seed, fixed=True) for seed in range(100)} == {"re: mild"}


def test_an_error_tells_the_seed(tmp_path: Path) -> None:
    record(tmp_path / "x.yaml", "one")
    with pytest.raises(ValueError, match="no") as caught, capture(tmp_path / "x.yaml", order="shuffle"):
        raise ValueError("no")
    assert caught.value.__notes__[0].startswith('replies were released by order="shuffle:')
    assert len({seed_of("shuffle") for _ in range(20)}) > 1
    assert seed_of("shuffle:0017") == 17


@pytest.mark.parametrize("order", ["random", "shuffle:", "shuffle:x", "shuffle:-1", 7, "shuffle:1\n", "shuffle:٣"])
def test_what_is_no_order(order: object) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings([("agent_trace", {"order": order})])
    said = f"agent_trace: order={order!r} is neither 'shuffle' nor 'shuffle:SEED', such as 'shuffle:1234'"
    assert caught.value.problems == (said,)


def test_recording_is_not_shuffled(tmp_path: Path) -> None:
    with GeminiServer(echo) as server, open_cassette(tmp_path / "x.yaml", Opening("record", order="shuffle")) as found:
        ask(server.url, "one")
    assert found.gate is None
