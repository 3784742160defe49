"""Shapes of ends: retries, interrupts, cancelled tasks, exceptions, streams that are left."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count
from typing import Any

from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy

from tests.shapes import FLASH, Kit, prompt, shape, spent
from tests.shapes_flow import State, asks, lined

AT_ONCE: Any = {"initial_interval": 0.0, "backoff_factor": 1.0, "jitter": False}


class Flaky(Exception):
    """What is tried again."""


def failing(kit: Kit, fails: int, units: int, error: type[Exception] = Flaky) -> Any:
    """A node that fails after its call, so many times."""
    tries = count(1)

    async def node(state: State) -> State:
        await kit.ask(units)
        n = next(tries)
        if n <= fails:
            raise error(f"try {n}")
        return {}

    return kit.node(node)


@shape(
    trajectory=["flaky", "end"],
    outline=[{"flaky": [FLASH, FLASH, FLASH]}, asks("end")],
    nodes=spent(flaky=3 * 1, end=2),
    llm_calls=4,
    executions=[("flaky", "ok", 3, None), "end"],
)
async def retry_policy(kit: Kit) -> None:
    graph = StateGraph(State)
    graph.add_node("flaky", failing(kit, 2, 1), retry_policy=RetryPolicy(max_attempts=3, retry_on=Flaky, **AT_ONCE))
    graph.add_node("end", kit.asking(2))
    graph.add_edge(START, "flaky")
    graph.add_edge("flaky", "end")
    await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["flaky"],
    outline=[{"flaky": [FLASH, FLASH]}],
    nodes=spent(flaky=2 * 1),
    llm_calls=2,
    executions=[("flaky", "error", 2, "Flaky: try 2")],
)
async def retries_that_do_not_help(kit: Kit) -> None:
    graph = StateGraph(State)
    graph.add_node("flaky", failing(kit, 9, 1), retry_policy=RetryPolicy(max_attempts=2, retry_on=Flaky, **AT_ONCE))
    graph.add_edge(START, "flaky")
    with suppress(Flaky):
        await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["sub", "end"],
    # Each attempt runs the subgraph from its start: its nodes have executions of their own in both.
    outline=[{"sub": [asks("first"), asks("flaky"), asks("first"), asks("flaky")]}, asks("end")],
    nodes=spent(sub=2 * 1 + 2 * 2, end=4),
    llm_calls=5,
    executions=[("sub", "ok", 2, None), "first", ("flaky", "error", 1, "Flaky: try 1"), "first", "flaky", "end"],
)
async def a_subgraph_tried_again(kit: Kit) -> None:
    graph = StateGraph(State)
    sub = lined("sub", first=kit.asking(1), flaky=failing(kit, 1, 2))
    graph.add_node("sub", sub, retry_policy=RetryPolicy(max_attempts=2, retry_on=Flaky, **AT_ONCE))
    graph.add_node("end", kit.asking(4))
    graph.add_edge(START, "sub")
    graph.add_edge("sub", "end")
    await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["a"],
    outline=[asks("a")],
    nodes=spent(a=1),
    llm_calls=1,
)
async def with_retry(kit: Kit) -> None:
    async def a(state: State) -> State:
        model = kit.model(max_retries=1).with_retry(wait_exponential_jitter=False, stop_after_attempt=3)
        await kit.run(model, prompt(1, errors=[503, 503]))
        return {}

    await kit.invoke(lined("g", a=kit.node(a)), {})


@shape(trajectory=["a"], outline=[asks("a")], nodes=spent(a=1), llm_calls=1)
async def google_genais_own_retries(kit: Kit) -> None:
    await kit.invoke(lined("g", a=kit.asking(1, errors=[503, 429])), {})


@shape(
    trajectory=["a", "wrong"],
    outline=[asks("a"), asks("wrong")],
    nodes=spent(a=1, wrong=2),
    llm_calls=2,
    executions=["a", ("wrong", "error", 1, "ValueError: try 1")],
)
async def an_exception(kit: Kit) -> None:
    with suppress(ValueError):
        await kit.invoke(lined("g", a=kit.asking(1), wrong=failing(kit, 1, 2, ValueError)), {})


@shape(
    trajectory=["outer", "end"],
    outline=[{"outer": [asks("wrong"), FLASH]}, asks("end")],
    nodes=spent(outer=1 + 2, end=4),
    llm_calls=3,
    executions=["outer", ("wrong", "error", 1, "ValueError: try 1"), "end"],
)
async def an_exception_that_the_caller_catches(kit: Kit) -> None:
    inner = lined("inner", wrong=failing(kit, 1, 1, ValueError))

    async def outer(state: State) -> State:
        with suppress(ValueError):
            await kit.run(inner, {})
        await kit.ask(2)
        return {}

    await kit.invoke(lined("g", outer=kit.node(outer), end=kit.asking(4)), {})


@shape(
    trajectory=["sub"],
    outline=[{"sub": [asks("a"), asks("wrong")]}],
    nodes=spent(sub=1 + 2),
    llm_calls=2,
    executions=[("sub", "error", 1, "ValueError: try 1"), "a", ("wrong", "error", 1, "ValueError: try 1")],
)
async def an_exception_in_a_subgraph(kit: Kit) -> None:
    sub = lined("sub", a=kit.asking(1), wrong=failing(kit, 1, 2, ValueError))
    with suppress(ValueError):
        await kit.invoke(lined("g", sub=sub), {})


@shape(
    trajectory=["a", "slow"],
    outline=[asks("a"), asks("slow")],
    nodes=spent(a=1, slow=2),
    llm_calls=2,
    executions=["a", ("slow", "cancelled", 1, None)],
    entries=["ainvoke", "astream:updates"],
)
async def a_timeout_around_the_graph(kit: Kit) -> None:
    limit = asyncio.timeout(None)

    async def slow(state: State) -> State:
        await kit.ask(2)
        limit.reschedule(asyncio.get_running_loop().time())
        await asyncio.sleep(30)
        return {}

    with suppress(TimeoutError):
        async with limit:
            await kit.invoke(lined("g", a=kit.asking(1), slow=slow), {})


@shape(
    trajectory=["slow", "wrong"],
    outline=[asks("slow"), asks("wrong")],
    nodes=spent(slow=1, wrong=2),
    llm_calls=2,
    executions=[("slow", "cancelled", 1, None), ("wrong", "error", 1, "ValueError: no")],
    entries=["ainvoke", "astream:updates"],
)
async def a_branch_cancelled_by_its_sibling(kit: Kit) -> None:
    asked = asyncio.Event()

    async def slow(state: State) -> State:
        await kit.ask(1)
        asked.set()
        await asyncio.sleep(30)
        return {}

    async def wrong(state: State) -> State:
        await kit.ask(2)
        await asked.wait()
        raise ValueError("no")

    graph = StateGraph(State)
    graph.add_node("slow", slow)
    graph.add_node("wrong", wrong)
    graph.add_edge(START, "slow")
    graph.add_edge(START, "wrong")
    with suppress(ValueError):
        await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["a"],
    outline=[asks("a")],
    nodes=spent(a=1),
    llm_calls=1,
    executions=["a"],
    entries=["invoke", "ainvoke"],
)
async def a_stream_that_is_left(kit: Kit) -> None:
    app = lined("g", a=kit.asking(1), b=kit.asking(2))
    if kit.is_async:
        stream = app.astream({}, stream_mode="updates")
        async for _ in stream:
            break
        await stream.aclose()
    else:
        stream = app.stream({}, stream_mode="updates")
        for _ in stream:
            break
        stream.close()


@shape(
    trajectory=["sub", "sub"],
    outline=[{"sub": [asks("x"), asks("x")]}] * 2,
    nodes=spent(sub=4 * 1),
    llm_calls=4,
    executions=["sub", "x", "x", "sub", "x", "x"],
)
async def the_recursion_limit(kit: Kit) -> None:
    from langgraph.errors import GraphRecursionError

    inner = StateGraph(State)
    inner.add_node("x", kit.asking(1))
    inner.add_edge(START, "x")
    inner.add_edge("x", "x")

    async def sub(state: State) -> State:
        with suppress(GraphRecursionError):
            await kit.run(inner.compile(), {}, {"recursion_limit": 2})
        return {}

    graph = StateGraph(State)
    graph.add_node("sub", kit.node(sub))
    graph.add_edge(START, "sub")
    graph.add_edge("sub", "sub")
    with suppress(GraphRecursionError):
        await kit.invoke(graph.compile(), {}, {"recursion_limit": 2})


@shape(
    trajectory=["a"],
    outline=[asks("a")],
    nodes=spent(a=1),
    llm_calls=1,
    executions=[("a", "error", 1, "TimeoutError: too slow")],
    entries=["ainvoke", "astream:updates"],
)
async def a_timeout_inside_of_a_node(kit: Kit) -> None:
    async def a(state: State) -> State:
        await kit.ask(1)
        try:
            await asyncio.wait_for(asyncio.sleep(30), 0.1)
        except TimeoutError:
            raise TimeoutError("too slow") from None
        return {}

    with suppress(TimeoutError):
        await kit.invoke(lined("g", a=a), {})


@shape(
    trajectory=["a"],
    outline=[asks("a")],
    nodes=spent(a=1),
    llm_calls=1,
    executions=[("a", "cancelled", 1, None)],
    entries=["ainvoke", "astream:updates"],
)
async def a_cancelled_task(kit: Kit) -> None:
    asked = asyncio.Event()

    async def a(state: State) -> State:
        await kit.ask(1)
        asked.set()
        await asyncio.sleep(30)
        return {}

    task = asyncio.create_task(kit.invoke(lined("g", a=a), {}))
    await asked.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
