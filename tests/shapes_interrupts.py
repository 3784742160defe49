"""Shapes of graphs that stop and go on: interrupts, breakpoints, time travel, runs taken up after an error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from langgraph.types import Command, Send, interrupt

from tests.shapes import FLASH, Kit, shape, spent
from tests.shapes_ends import failing
from tests.shapes_flow import State, asks, lined

THREAD: Any = {"configurable": {"thread_id": "1"}}


def asking_a_person(kit: Kit, units: int, after: int) -> Any:
    async def ask(state: State) -> State:
        await kit.ask(units)
        answer = interrupt("ok?")
        await kit.ask(after)
        return {"seen": [answer]}

    return kit.node(ask)


@shape(
    trajectory=["plan", "ask", "end"],
    outline=[asks("plan"), {"ask": [FLASH, FLASH, FLASH]}, asks("end")],
    nodes=spent(plan=1, ask=2 * 2 + 4, end=8),
    llm_calls=5,
)
async def interrupt_and_resume(kit: Kit) -> None:
    graph = StateGraph(State)
    graph.add_node("plan", kit.asking(1))
    graph.add_node("ask", asking_a_person(kit, 2, 4))
    graph.add_node("end", kit.asking(8))
    for before, after in ((START, "plan"), ("plan", "ask"), ("ask", "end")):
        graph.add_edge(before, after)
    app = graph.compile(checkpointer=InMemorySaver())
    await kit.invoke(app, {}, THREAD)
    await kit.invoke(app, Command(resume="yes"), THREAD)


@shape(
    trajectory=["plan", "ask"],
    outline=[asks("plan"), asks("ask")],
    nodes=spent(plan=1, ask=2),
    llm_calls=2,
    executions=["plan", ("ask", "interrupted", 1, None)],
)
async def an_interrupt_that_is_not_resumed(kit: Kit) -> None:
    graph = StateGraph(State)
    graph.add_node("plan", kit.asking(1))
    graph.add_node("ask", asking_a_person(kit, 2, 4))
    graph.add_edge(START, "plan")
    graph.add_edge("plan", "ask")
    await kit.invoke(graph.compile(checkpointer=InMemorySaver()), {}, THREAD)


@shape(
    trajectory=["sub", "end"],
    outline=[{"sub": [asks("first"), {"ask": [FLASH, FLASH, FLASH]}, asks("last")]}, asks("end")],
    nodes=spent(sub=1 + 2 * 2 + 4 + 8, end=16),
    llm_calls=6,
    executions=["sub", "first", "ask", "last", "end"],
)
async def an_interrupt_inside_of_a_subgraph(kit: Kit) -> None:
    sub = lined("sub", first=kit.asking(1), ask=asking_a_person(kit, 2, 4), last=kit.asking(8))
    graph = StateGraph(State)
    graph.add_node("sub", sub)
    graph.add_node("end", kit.asking(16))
    graph.add_edge(START, "sub")
    graph.add_edge("sub", "end")
    app = graph.compile(checkpointer=InMemorySaver())
    await kit.invoke(app, {}, THREAD)
    await kit.invoke(app, Command(resume="yes"), THREAD)


@shape(
    trajectory=["other", "ask", "ask", "end"],
    outline=[
        asks("other"),
        {"ask": [FLASH, FLASH, FLASH]},
        {"ask": [FLASH, FLASH, FLASH, FLASH]},
        asks("end"),
    ],
    nodes=spent(other=1, ask=2 * 2 + 4 + 3 * 2 + 4, end=8),
    llm_calls=9,
)
async def interrupts_in_parallel_resumed_one_by_one(kit: Kit) -> None:
    graph = StateGraph(State)
    graph.add_node("other", kit.asking(1))
    graph.add_node("ask", asking_a_person(kit, 2, 4))
    graph.add_node("end", kit.asking(8))
    graph.add_edge(START, "other")
    graph.add_conditional_edges(START, lambda state: [Send("ask", {"n": 1}), Send("ask", {"n": 2})], ["ask"])
    graph.add_edge(["ask", "other"], "end")
    app = graph.compile(checkpointer=InMemorySaver())
    await kit.invoke(app, {}, THREAD)
    resumed: set[str] = set()
    for _ in range(2):
        # langgraph 1.1 goes on listing those that were resumed.
        resumed.add(first := next(found.id for found in app.get_state(THREAD).interrupts if found.id not in resumed))
        await kit.invoke(app, Command(resume={first: "yes"}), THREAD)


@shape(
    trajectory=["a", "b", "c", "b", "c"],
    outline=[asks("a"), asks("b"), asks("c"), asks("b"), asks("c")],
    nodes=spent(a=1, b=2 * 2, c=2 * 4),
    llm_calls=5,
)
async def time_travel(kit: Kit) -> None:
    graph = StateGraph(State)
    for name, units in (("a", 1), ("b", 2), ("c", 4)):
        graph.add_node(name, kit.asking(units))
    for before, after in ((START, "a"), ("a", "b"), ("b", "c")):
        graph.add_edge(before, after)
    app = graph.compile(checkpointer=InMemorySaver())
    await kit.invoke(app, {"n": 1}, THREAD)
    past = next(state for state in app.get_state_history(THREAD) if state.next == ("b",))
    await kit.invoke(app, None, past.config)


@shape(
    trajectory=["sub", "sub", "end"],
    outline=[
        {"sub": [asks("first"), {"ask": [FLASH, FLASH, FLASH]}]},
        {"sub": [asks("first"), {"ask": [FLASH, FLASH, FLASH, FLASH]}]},
        asks("end"),
    ],
    nodes=spent(sub=2 * 1 + (2 * 2 + 4) + (3 * 2 + 4), end=8),
    llm_calls=10,
    executions=["sub", "first", "ask", "sub", "first", "ask", "end"],
)
async def interrupts_in_parallel_subgraphs_resumed_one_by_one(kit: Kit) -> None:
    sub = lined("sub", first=kit.asking(1), ask=asking_a_person(kit, 2, 4))
    graph = StateGraph(State)
    graph.add_node("sub", sub)
    graph.add_node("end", kit.asking(8))
    graph.add_conditional_edges(START, lambda state: [Send("sub", {"n": 1}), Send("sub", {"n": 2})], ["sub"])
    graph.add_edge("sub", "end")
    app = graph.compile(checkpointer=InMemorySaver())
    await kit.invoke(app, {}, THREAD)
    resumed: set[str] = set()
    for _ in range(2):
        resumed.add(first := next(found.id for found in app.get_state(THREAD).interrupts if found.id not in resumed))
        await kit.invoke(app, Command(resume={first: "yes"}), THREAD)


@shape(
    trajectory=["ask", "end"],
    outline=[{"ask": [FLASH] * 6}, asks("end")],
    nodes=spent(ask=3 * 1 + 3 * 2, end=4),
    llm_calls=7,
)
async def two_interrupts_in_one_node(kit: Kit) -> None:
    async def ask(state: State) -> State:
        await kit.ask(1)
        for _ in range(2):
            interrupt("ok?")
            await kit.ask(2)
        return {}

    graph = StateGraph(State)
    graph.add_node("ask", kit.node(ask))
    graph.add_node("end", kit.asking(4))
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "end")
    app = graph.compile(checkpointer=InMemorySaver())
    await kit.invoke(app, {}, THREAD)
    await kit.invoke(app, Command(resume="yes"), THREAD)
    await kit.invoke(app, Command(resume="yes"), THREAD)


@shape(
    trajectory=["a", "b"],
    outline=[asks("a"), asks("b")],
    nodes=spent(a=1, b=2),
    llm_calls=2,
)
async def a_breakpoint(kit: Kit) -> None:
    """`interrupt_before` stops between two nodes: nothing is interrupted."""
    graph = StateGraph(State)
    graph.add_node("a", kit.asking(1))
    graph.add_node("b", kit.asking(2))
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    app = graph.compile(checkpointer=InMemorySaver(), interrupt_before=["b"])
    await kit.invoke(app, {}, THREAD)
    await kit.invoke(app, None, THREAD)


@shape(
    trajectory=["a", "wrong", "b"],
    outline=[asks("a"), {"wrong": [FLASH, FLASH]}, asks("b")],
    nodes=spent(a=1, wrong=2 * 2, b=4),
    llm_calls=4,
    executions=["a", ("wrong", "ok", 2, None), "b"],
)
async def a_run_taken_up_after_an_error(kit: Kit) -> None:
    graph = StateGraph(State)
    graph.add_node("a", kit.asking(1))
    graph.add_node("wrong", failing(kit, 1, 2, ValueError))
    graph.add_node("b", kit.asking(4))
    for before, after in ((START, "a"), ("a", "wrong"), ("wrong", "b")):
        graph.add_edge(before, after)
    app = graph.compile(checkpointer=InMemorySaver())
    with suppress(ValueError):
        await kit.invoke(app, {"n": 1}, THREAD)
    await kit.invoke(app, None, THREAD)
