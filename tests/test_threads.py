"""Which node set a thread to work, and whose test it belongs to."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypedDict

import pytest

from pytest_agenttrace.calls import Caller
from pytest_agenttrace.threads import THREADS, Threads, caller, caller_in_context


class State(TypedDict, total=False):
    found: list[Any]


def run(node: Any) -> None:
    from langgraph.graph import START, StateGraph

    graph = StateGraph(State)
    graph.add_node("research", node)
    graph.add_edge(START, "research")
    graph.compile().invoke({})


def in_thread(function: Any) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def nodes(start: Any) -> list[str | None]:
    """The nodes that what `start` sets to work inside of a node says it works for."""
    found: list[str | None] = []

    def node(state: State) -> State:
        start(lambda: found.append(caller().node))
        return {}

    with THREADS.following():
        run(node)
    return found


def nested(function: Any) -> None:
    in_thread(lambda: in_thread(function))


def pooled(function: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result(20)


def mapped(function: Any) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: function(), range(3)))


def in_its_context(function: Any) -> None:
    in_thread(lambda: contextvars.copy_context().run(function))


@pytest.mark.parametrize(
    ("start", "count"),
    [(lambda function: function(), 1), (in_thread, 1), (nested, 1), (pooled, 1), (mapped, 3), (in_its_context, 1)],
    ids=["itself", "thread", "thread of a thread", "pool", "map", "own context"],
)
def test_a_thread_works_for_the_node_that_started_it(start: Any, count: int) -> None:
    assert nodes(start) == ["research"] * count


def test_a_worker_works_for_whoever_submitted() -> None:
    with ThreadPoolExecutor(1) as pool:
        found = nodes(lambda function: pool.submit(function).result(20))
        with THREADS.following():
            assert pool.submit(caller).result(20) == Caller()
    assert found == ["research"]


def test_outside_of_a_graph_nobody_asks() -> None:
    with THREADS.following():
        assert caller() == caller_in_context() == Caller()
        in_thread(lambda: None)


def test_results_arguments_and_errors_pass_through() -> None:
    with THREADS.following(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda a, b: a - b, 5, b=3).result(20) == 2
        failed: Future[float] = pool.submit(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            failed.result(20)


def test_threads_and_pools_are_as_before_afterwards() -> None:
    before = threading.Thread.start, ThreadPoolExecutor.submit
    with THREADS.following(), THREADS.following():
        assert threading.Thread.start is not before[0]
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == before


def test_what_others_patch_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = threading.Thread.start

    def theirs(thread: threading.Thread) -> None:
        own(thread)

    with THREADS.following():
        monkeypatch.setattr(threading.Thread, "start", theirs)
    assert threading.Thread.start is theirs


def test_a_thread_left_behind_is_late() -> None:
    threads, go_on, owned = Threads(), threading.Event(), list[bool]()

    def late() -> None:
        assert go_on.wait(20)
        owned.append(threads.owns_current())

    with threads.following():
        thread = threading.Thread(target=late)
        thread.start()
        assert not threads.left_behind()
    assert threads.left_behind()
    with threads.following():
        go_on.set()
        thread.join(20)
        assert threads.owns_current()
    assert owned == [False]
    assert not threads.left_behind()


def test_a_task_left_to_a_pool_is_late_and_the_pool_is_not() -> None:
    threads, go_on = Threads(), threading.Event()

    def late() -> bool:
        assert go_on.wait(20)
        return threads.owns_current()

    with ThreadPoolExecutor(1) as pool:
        with threads.following():
            first = pool.submit(late)
        assert threads.left_behind()
        with threads.following():
            second = pool.submit(late)
            go_on.set()
            assert (first.result(20), second.result(20)) == (False, True)
        assert not threads.left_behind()


def test_a_coroutine_left_on_an_event_loop_is_late_and_the_loop_is_not() -> None:
    threads, go_on = Threads(), threading.Event()
    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever)

    async def late() -> bool:
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        return threads.owns_current()

    try:
        with threads.following():
            runner.start()
            assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0, threads.owns_current()), loop).result(20)
            first = asyncio.run_coroutine_threadsafe(late(), loop)
        assert threads.left_behind()
        with threads.following():
            second = asyncio.run_coroutine_threadsafe(late(), loop)
            go_on.set()
            assert (first.result(20), second.result(20)) == (False, True)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        runner.join(20)
        loop.close()
    assert not threads.left_behind()


def test_what_late_work_starts_is_late_too() -> None:
    threads, go_on, owned = Threads(), threading.Event(), list[bool]()

    def late() -> None:
        assert go_on.wait(20)
        with ThreadPoolExecutor(1) as pool:
            owned.append(pool.submit(threads.owns_current).result(20))

    with threads.following():
        thread = threading.Thread(target=late)
        thread.start()
    with threads.following():
        go_on.set()
        thread.join(20)
    assert owned == [False]


def test_a_cancelled_task_is_not_left_behind() -> None:
    threads, go_on = Threads(), threading.Event()
    pool = ThreadPoolExecutor(1)
    with threads.following():
        pool.submit(go_on.wait, 20)
        pool.submit(lambda: None)
        pool.shutdown(wait=False, cancel_futures=True)
        go_on.set()
        pool.shutdown(wait=True)
    assert not threads.left_behind()


def asked_for(metadata: dict[str, Any]) -> tuple[list[Caller], Caller]:
    """Who asks while a model runs outside of any run's context, with this metadata, and who does afterwards."""
    from langchain_core.language_models.fake_chat_models import FakeListChatModel
    from langchain_core.messages import BaseMessage

    found: list[Caller] = []

    class Model(FakeListChatModel):
        def _call(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> str:
            found.append(caller())
            return "ok"

    def ask() -> Caller:
        Model(responses=["ok"]).invoke("hi", {"metadata": metadata})
        return caller()

    with THREADS.following():
        after = contextvars.Context().run(ask)
    contextvars.Context().run(Model(responses=["ok"]).invoke, "hi", {"metadata": metadata})
    return found, after


def test_a_models_run_knows_its_node_where_the_context_does_not() -> None:
    """LangGraph runs the second step of a chain like this. Nobody listens once the test is over."""
    place = {"langgraph_node": "write", "langgraph_step": 2, "langgraph_checkpoint_ns": "write:1"}
    write = Caller("write", 2, "write:1", ("__pregel_pull", "write"))
    assert asked_for(place | {"langgraph_path": ["__pregel_pull", "write"]}) == ([write, Caller()], Caller())
    assert asked_for({}) == ([Caller(), Caller()], Caller())


def test_a_server_of_ours_is_no_thread_that_a_test_waits_for() -> None:
    stop = threading.Event()
    with THREADS.following():
        for name in ("gemini-server", "theirs"):
            threading.Thread(target=stop.wait, args=(20,), name=name, daemon=True).start()
        found = THREADS.running
        stop.set()
    assert found == ["theirs"]
