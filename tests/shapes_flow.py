"""Shapes of flow: edges, loops, fan-outs, subgraphs, commands."""

from __future__ import annotations

import operator
import warnings
from typing import Annotated, Any, TypedDict

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, create_react_agent, tools_condition
from langgraph.types import Command, Send

from tests.shapes import FLASH, Kit, prompt, shape, spent


def latest(old: int, new: int) -> int:
    return new


class State(TypedDict, total=False):
    n: Annotated[int, latest]
    seen: Annotated[list[Any], operator.add]


def asks(name: str) -> dict[str, list[str]]:
    """A node that asked one model, in an outline."""
    return {name: [FLASH]}


def lined(name: str, state: Any = State, **nodes: Any) -> Any:
    """The builder of a graph whose nodes stand in a line."""
    graph = StateGraph(state)
    for node, function in nodes.items():
        graph.add_node(node, function)
    for before, after in zip((START, *nodes), (*nodes, END), strict=True):
        graph.add_edge(before, after)
    return graph.compile(name=name)


@tool
def search(query: str) -> str:
    """Search."""
    return f"found {query}"


@tool
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


ASKED = [[("search", {"query": "sails"}), ("add", {"a": 1, "b": 2})], [("search", {"query": "light"})]]
RAN = [("search", {"query": "sails"}), ("add", {"a": 1, "b": 2}), ("search", {"query": "light"})]


@shape(trajectory=["plan", "write"], outline=[asks("plan"), asks("write")], nodes=spent(plan=1, write=2), llm_calls=2)
async def linear(kit: Kit) -> None:
    await kit.invoke(lined("article", plan=kit.asking(1), write=kit.asking(2)), {})


@shape(
    trajectory=["count", "count", "big"],
    outline=[asks("count"), asks("count"), asks("big")],
    nodes=spent(count=1 + 2, big=8),
    llm_calls=3,
)
async def conditional(kit: Kit) -> None:
    async def count(state: State) -> State:
        n = state["n"] + 1
        await kit.ask(n)
        return {"n": n}

    graph = StateGraph(State)
    graph.add_node("count", kit.node(count))
    graph.add_node("small", kit.asking(4))
    graph.add_node("big", kit.asking(8))
    graph.add_edge(START, "count")
    graph.add_conditional_edges("count", lambda state: "count" if state["n"] < 2 else "big", ["count", "small", "big"])
    await kit.invoke(graph.compile(), {"n": 0})


def tool_loop(kit: Kit, tools: Any) -> Any:
    async def agent(state: MessagesState) -> Any:
        return {"messages": [await kit.run(kit.model().bind_tools([search, add]), state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", kit.node(agent))
    graph.add_node("tools", tools)
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile(name="looping")


LOOP: dict[str, Any] = {
    "trajectory": ["agent", "tools", "agent", "tools", "agent"],
    "outline": [
        asks("agent"),
        {"tools": ["search()", "add()"]},
        asks("agent"),
        {"tools": ["search()"]},
        asks("agent"),
    ],
    "nodes": spent(agent=1 + 2 + 4, tools=0),
    "llm_calls": 3,
    "tool_calls": RAN,
}


@shape(**LOOP)
async def tool_node(kit: Kit) -> None:
    await kit.invoke(tool_loop(kit, ToolNode([search, add])), {"messages": [HumanMessage(prompt(1, tools=ASKED))]})


@shape(**LOOP)
async def tools_by_hand(kit: Kit) -> None:
    async def tools(state: MessagesState) -> Any:
        known = {"search": search, "add": add}
        asked: Any = state["messages"][-1]
        return {"messages": [await kit.run(known[call["name"]], call) for call in asked.tool_calls]}

    await kit.invoke(tool_loop(kit, kit.node(tools)), {"messages": [HumanMessage(prompt(1, tools=ASKED))]})


@shape(
    **LOOP
    | {
        # Version 2 of the prebuilt agent sends each tool call to an execution of its own.
        "trajectory": ["agent", "tools", "tools", "agent", "tools", "agent"],
        "outline": [
            asks("agent"),
            {"tools": ["search()"]},
            {"tools": ["add()"]},
            asks("agent"),
            {"tools": ["search()"]},
            asks("agent"),
        ],
    }
)
async def react_agent(kit: Kit) -> None:
    with warnings.catch_warnings():
        # It has moved to the package langchain, and works here all the same.
        warnings.simplefilter("ignore", DeprecationWarning)
        agent = create_react_agent(kit.model(), [search, add])
    await kit.invoke(agent, {"messages": [HumanMessage(prompt(1, tools=ASKED))]})


def fanned(kit: Kit, width: int, node: Any, name: str = "draft") -> Any:
    graph = StateGraph(State)
    graph.add_node("plan", kit.asking(1))
    graph.add_node(name, node)
    graph.add_node("merge", kit.asking(2))
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda state: [Send(name, {"n": n}) for n in range(width)], [name])
    graph.add_edge(name, "merge")
    return graph.compile(name="fan")


def drafting(kit: Kit, base: int) -> Any:
    async def draft(state: State) -> State:
        await kit.ask(base << state["n"])
        return {"seen": [state["n"]]}

    return kit.node(draft)


@shape(
    trajectory=["plan", "draft", "draft", "draft", "merge"],
    outline=[asks("plan"), asks("draft"), asks("draft"), asks("draft"), asks("merge")],
    nodes=spent(plan=1, draft=4 + 8 + 16, merge=2),
    llm_calls=5,
)
async def send_3(kit: Kit) -> None:
    await kit.invoke(fanned(kit, 3, drafting(kit, 4)), {})


@shape(
    trajectory=["plan", *["draft"] * 64, "merge"],
    outline=[asks("plan"), *[asks("draft")] * 64, asks("merge")],
    nodes=spent(plan=1, draft=64 * 65 // 2, merge=2),
    llm_calls=66,
    entries=["invoke", "ainvoke"],
)
async def send_64(kit: Kit) -> None:
    async def draft(state: State) -> State:
        await kit.ask(state["n"] + 1)
        return {}

    await kit.invoke(fanned(kit, 64, kit.node(draft)), {})


@shape(
    trajectory=["plan", "book", "book", "merge"],
    outline=[
        asks("plan"),
        {"book": [asks("plan"), asks("draft"), asks("draft"), asks("merge")]},
        {"book": [asks("plan"), asks("draft"), asks("draft"), asks("merge")]},
        asks("merge"),
    ],
    nodes=spent(plan=1, book=2 * (1 + 4 + 8 + 2), merge=2),
    llm_calls=10,
    executions=["plan", *["book", "plan", "draft", "draft", "merge"] * 2, "merge"],
)
async def nested_fan_out(kit: Kit) -> None:
    await kit.invoke(fanned(kit, 2, fanned(kit, 2, drafting(kit, 4)), "book"), {})


@shape(
    trajectory=["plan", "book", "book", "merge"],
    outline=[
        asks("plan"),
        {"book": [FLASH, asks("plan"), asks("draft"), asks("draft"), asks("merge")]},
        {"book": [FLASH, asks("plan"), asks("draft"), asks("draft"), asks("merge")]},
        asks("merge"),
    ],
    nodes=spent(plan=1, book=16 + 32 + 2 * (1 + 4 + 8 + 2), merge=2),
    llm_calls=12,
    executions=["plan", *["book", "plan", "draft", "draft", "merge"] * 2, "merge"],
)
async def fan_out_called_inside_of_a_fan_out(kit: Kit) -> None:
    inner = fanned(kit, 2, drafting(kit, 4))

    async def book(state: State) -> State:
        await kit.ask(16 << state["n"])
        await kit.run(inner, {})
        return {}

    await kit.invoke(fanned(kit, 2, kit.node(book), "book"), {})


@shape(
    trajectory=["plan", "sub", "end"],
    outline=[asks("plan"), {"sub": [asks("plan"), {"sub": [asks("x"), asks("sub")]}]}, asks("end")],
    nodes=spent(plan=1, sub=2 + 4 + 8, end=16),
    llm_calls=5,
    executions=["plan", "sub", "plan", "sub", "x", "sub", "end"],
)
async def same_names_in_nested_subgraphs(kit: Kit) -> None:
    inmost = lined("sub", x=kit.asking(4), sub=kit.asking(8))
    inner = lined("sub", plan=kit.asking(2), sub=inmost)
    await kit.invoke(lined("sub", plan=kit.asking(1), sub=inner, end=kit.asking(16)), {})


@shape(
    trajectory=["plan", "book"],
    outline=[
        asks("plan"),
        {"book": [asks("a"), asks("b"), FLASH, asks("a"), asks("b"), asks("c")]},
    ],
    nodes=spent(plan=1, book=2 * (2 + 4) + 8 + 16),
    llm_calls=7,
    executions=["plan", "book", "a", "b", "a", "b", "c"],
)
async def subgraphs_called_several_times_in_a_node(kit: Kit) -> None:
    inner = lined("inner", a=kit.asking(2), b=kit.asking(4))
    other = lined("other", c=kit.asking(16))

    async def book(state: State) -> State:
        await kit.run(inner, {})
        await kit.ask(8)
        await kit.run(inner, {})
        await kit.run(other, {})
        return {}

    await kit.invoke(lined("outer", plan=kit.asking(1), book=kit.node(book)), {})


@shape(
    trajectory=["review", "fix", "review", "fix", "review"],
    outline=[{"review": [asks("read"), asks("judge")]}, asks("fix")] * 2 + [{"review": [asks("read"), asks("judge")]}],
    nodes=spent(review=3 * (1 + 2), fix=2 * 4),
    llm_calls=8,
    executions=["review", "read", "judge", "fix"] * 2 + ["review", "read", "judge"],
)
async def a_loop_through_a_subgraph(kit: Kit) -> None:
    async def fix(state: State) -> State:
        await kit.ask(4)
        return {"n": state["n"] + 1}

    graph = StateGraph(State)
    graph.add_node("review", lined("review", read=kit.asking(1), judge=kit.asking(2)))
    graph.add_node("fix", kit.node(fix))
    graph.add_edge(START, "review")
    graph.add_conditional_edges("review", lambda state: "fix" if state["n"] < 2 else END, ["fix", END])
    graph.add_edge("fix", "review")
    await kit.invoke(graph.compile(name="review"), {"n": 0})


@shape(trajectory=["a", "c"], outline=[asks("a"), asks("c")], nodes=spent(a=1, c=4), llm_calls=2)
async def command_goto(kit: Kit) -> None:
    async def a(state: State) -> Any:
        await kit.ask(1)
        return Command(goto="c", update={"n": 1})

    graph = StateGraph(State)
    graph.add_node("a", kit.node(a), destinations=("b", "c"))
    graph.add_node("b", kit.asking(2))
    graph.add_node("c", kit.asking(4))
    graph.add_edge(START, "a")
    await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["team", "other"],
    outline=[{"team": [asks("first"), asks("hand_over")]}, asks("other")],
    nodes=spent(team=1 + 2, other=4),
    llm_calls=3,
    executions=["team", "first", "hand_over", "other"],
)
async def command_to_the_parent(kit: Kit) -> None:
    async def hand_over(state: State) -> Any:
        await kit.ask(2)
        return Command(goto="other", graph=Command.PARENT)

    graph = StateGraph(State)
    graph.add_node("team", lined("team", first=kit.asking(1), hand_over=kit.node(hand_over)), destinations=("other",))
    graph.add_node("other", kit.asking(4))
    graph.add_edge(START, "team")
    await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["a", "long_1", "short", "long_2", "merge"],
    outline=[asks("a"), asks("long_1"), asks("short"), asks("long_2"), asks("merge")],
    nodes=spent(a=1, short=2, long_1=4, long_2=8, merge=16),
    llm_calls=5,
)
async def branches_of_different_length_with_a_deferred_end(kit: Kit) -> None:
    graph = StateGraph(State)
    for name, units in (("a", 1), ("short", 2), ("long_1", 4), ("long_2", 8)):
        graph.add_node(name, kit.asking(units))
    graph.add_node("merge", kit.asking(16), defer=True)
    graph.add_edge(START, "a")
    for before, after in (("a", "short"), ("a", "long_1"), ("long_1", "long_2"), ("long_2", "merge")):
        graph.add_edge(before, after)
    graph.add_edge("short", "merge")
    await kit.invoke(graph.compile(), {})


@shape(
    # Siblings of one step stand by their path: edges before sends.
    trajectory=["start", "other", "work", "work", "work"],
    outline=[asks("start"), asks("other"), asks("work"), asks("work"), asks("work")],
    nodes=spent(start=1, other=2, work=4 + 8 + 16),
    llm_calls=5,
)
async def sends_beside_edges(kit: Kit) -> None:
    """The same node by an edge and by two sends, in parallel with another one."""

    async def work(state: State) -> State:
        await kit.ask(4 << state.get("n", 0))
        return {}

    graph = StateGraph(State)
    graph.add_node("start", kit.asking(1))
    graph.add_node("work", kit.node(work))
    graph.add_node("other", kit.asking(2))
    graph.add_edge(START, "start")
    graph.add_edge("start", "work")
    graph.add_edge("start", "other")
    graph.add_conditional_edges("start", lambda state: [Send("work", {"n": 1}), Send("work", {"n": 2})], ["work"])
    await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["search", "LangGraph"],
    outline=[{"search": ["search()", FLASH]}, {"LangGraph": [asks("LangGraph")]}],
    nodes=spent(search=1, LangGraph=2),
    llm_calls=2,
    executions=["search", "LangGraph", "LangGraph"],
    tool_calls=[("search", {"query": "x"})],
)
async def nodes_named_like_a_tool_and_like_the_graph(kit: Kit) -> None:
    async def searching(state: State) -> State:
        await kit.run(search, {"query": "x"})
        await kit.ask(1)
        return {}

    inner = lined("LangGraph", LangGraph=kit.asking(2))
    await kit.invoke(lined("LangGraph", search=kit.node(searching), LangGraph=inner), {})


@shape(
    trajectory=["a", "b", "c", "a", "b"],
    outline=[asks("a"), asks("b"), asks("c"), asks("a"), asks("b")],
    nodes=spent(a=2 * 1, b=2 * 2, c=4),
    llm_calls=5,
)
async def several_graphs_in_one_test(kit: Kit) -> None:
    first, second = lined("first", a=kit.asking(1), b=kit.asking(2)), lined("second", c=kit.asking(4))
    for app in (first, second, first):
        await kit.invoke(app, {})
