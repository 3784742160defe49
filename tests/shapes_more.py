"""Shapes further out: runnables as nodes, subgraphs that remember, states set by hand, what tools are given."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Annotated, Any

from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import InjectedToolCallId, StructuredTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import InjectedState, ToolNode, tools_condition
from langgraph.types import Command, RetryPolicy, Send, interrupt

from tests.shapes import FLASH, Kit, prompt, shape, spent
from tests.shapes_ends import AT_ONCE, failing
from tests.shapes_flow import State, asks, lined
from tests.shapes_interrupts import THREAD, asking_a_person


@shape(
    trajectory=["chain", "model", "end"],
    outline=[asks("chain"), asks("model"), asks("end")],
    nodes=spent(chain=1, model=2, end=4),
    llm_calls=3,
)
async def runnables_as_nodes(kit: Kit) -> None:
    graph = StateGraph(MessagesState)
    chain = RunnableLambda(lambda state: prompt(1)) | kit.model() | StrOutputParser()
    graph.add_node("chain", chain | (lambda text: {"messages": [HumanMessage(prompt(2))]}))
    graph.add_node("model", RunnableLambda(lambda state: state["messages"][-1:]) | kit.model() | (lambda m: {}))
    graph.add_node("end", kit.asking(4))
    for before, after in ((START, "chain"), ("chain", "model"), ("model", "end")):
        graph.add_edge(before, after)
    await kit.invoke(graph.compile(), {"messages": []})


@shape(
    trajectory=["a"],
    outline=[{"a": [FLASH, FLASH]}],
    nodes=spent(a=1 + 2),
    llm_calls=2,
)
async def fallbacks(kit: Kit) -> None:
    async def a(state: State) -> State:
        first = kit.model(max_retries=1, model="gemini-2.5-pro").with_fallbacks([kit.model()])
        await kit.run(first, prompt(1, errors=[503]))
        await kit.ask(2)
        return {}

    await kit.invoke(lined("g", a=kit.node(a)), {})


@shape(
    trajectory=["talk", "talk", "end"],
    outline=[{"talk": [asks("x"), asks("y")]}, {"talk": [asks("x"), asks("y")]}, asks("end")],
    nodes=spent(talk=2 * (1 + 2), end=4),
    llm_calls=5,
    executions=["talk", "x", "y", "talk", "x", "y", "end"],
)
async def a_subgraph_that_remembers(kit: Kit) -> None:
    inner = StateGraph(State)
    inner.add_node("x", kit.asking(1))
    inner.add_node("y", kit.asking(2))
    inner.add_edge(START, "x")
    inner.add_edge("x", "y")

    graph = StateGraph(State)
    graph.add_node("talk", inner.compile(checkpointer=True))
    graph.add_node("end", kit.asking(4))
    graph.add_edge(START, "talk")
    rounds = count(1)
    graph.add_conditional_edges("talk", lambda state: "talk" if next(rounds) < 2 else "end", ["talk", "end"])
    await kit.invoke(graph.compile(checkpointer=InMemorySaver()), {}, THREAD)


@shape(
    trajectory=["talk"],
    outline=[{"talk": [asks("x"), asks("x")]}],
    nodes=spent(talk=2 * 1),
    llm_calls=2,
    executions=["talk", "x", "x"],
)
async def a_graph_that_remembers_called_twice_in_a_node(kit: Kit) -> None:
    inner = StateGraph(State)
    inner.add_node("x", kit.asking(1))
    inner.add_edge(START, "x")
    app = inner.compile(checkpointer=InMemorySaver())

    async def talk(state: State) -> State:
        for n in range(2):
            await kit.run(app, {"n": n}, {"configurable": {"thread_id": "inner"}})
        return {}

    await kit.invoke(lined("g", talk=kit.node(talk)), {})


@shape(
    trajectory=["a", "b", "b"],
    outline=[asks("a"), asks("b"), asks("b")],
    nodes=spent(a=1, b=2 * 2),
    llm_calls=3,
)
async def states_set_by_hand(kit: Kit) -> None:
    graph = StateGraph(State)
    graph.add_node("a", kit.asking(1))
    graph.add_node("b", kit.asking(2))
    graph.add_edge(START, "a")
    graph.add_edge("a", "b")
    app = graph.compile(checkpointer=InMemorySaver())
    await kit.invoke(app, {"n": 1}, THREAD)
    app.update_state(THREAD, {"n": 2}, as_node="a")
    await kit.invoke(app, None, THREAD)


@shape(
    trajectory=["plan", "work", "work"],
    outline=[asks("plan"), asks("work"), asks("work")],
    nodes=spent(plan=1, work=2 + 4),
    llm_calls=3,
)
async def a_command_that_sends(kit: Kit) -> None:
    async def plan(state: State) -> Any:
        await kit.ask(1)
        return Command(goto=[Send("work", {"n": 2}), Send("work", {"n": 4})])

    async def work(state: State) -> State:
        await kit.ask(state["n"])
        return {}

    graph = StateGraph(State)
    graph.add_node("plan", kit.node(plan), destinations=("work",))
    graph.add_node("work", kit.node(work))
    graph.add_edge(START, "plan")
    await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["flow"],
    outline=[{"flow": [{"flaky": [FLASH, FLASH]}, asks("ask"), FLASH]}],
    nodes=spent(flow=2 * 1 + 2 + 4),
    llm_calls=4,
    executions=["flow", ("flaky", "ok", 2, None), "ask"],
)
async def functional_api_tried_again_and_interrupted(kit: Kit) -> None:
    flaky_node = failing(kit, 1, 1)

    @task(retry_policy=RetryPolicy(max_attempts=2, **AT_ONCE))
    @kit.node
    async def flaky(value: int) -> None:
        await flaky_node(value) if kit.async_nodes else flaky_node(value)

    @task
    @kit.node
    async def ask(value: int) -> None:
        await kit.ask(2)

    @entrypoint(checkpointer=InMemorySaver())
    @kit.node
    async def flow(value: Any) -> Any:
        one: Any
        for one in (flaky, ask):
            await one(1) if kit.async_nodes else one(1).result()
        interrupt("ok?")
        await kit.ask(4)
        return 1

    await kit.invoke(flow, {"n": 1}, THREAD)
    await kit.invoke(flow, Command(resume="yes"), THREAD)


@shape(
    trajectory=["agent", "tools", "agent"],
    outline=[asks("agent"), {"tools": ["look()"]}, asks("agent")],
    nodes=spent(agent=1 + 2, tools=0),
    llm_calls=2,
    tool_calls=[("look", {"query": "q"})],
)
async def a_tool_that_is_given_the_state(kit: Kit) -> None:
    @tool
    def look(query: str, state: Annotated[Any, InjectedState], tool_call_id: Annotated[str, InjectedToolCallId]) -> str:
        """Look."""
        return query

    async def agent(state: MessagesState) -> Any:
        return {"messages": [await kit.run(kit.model().bind_tools([look]), state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("agent", kit.node(agent))
    graph.add_node("tools", ToolNode([look]))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    await kit.invoke(graph.compile(), {"messages": [HumanMessage(prompt(1, tools=[[("look", {"query": "q"})]]))]})


@shape(
    trajectory=["tools", "end"],
    outline=[{"tools": ["broken()"]}, asks("end")],
    nodes=spent(tools=0, end=1),
    llm_calls=1,
    tool_calls=[("broken", {"query": "q"})],
)
async def a_tool_that_fails_and_is_caught(kit: Kit) -> None:
    async def broken(query: str) -> str:
        """Fail."""
        raise ValueError("no")

    name = "coroutine" if kit.async_nodes else "func"
    made = StructuredTool.from_function(**{name: kit.node(broken)}, name="broken", description="-")

    async def tools(state: State) -> State:
        with suppress(ValueError):
            await kit.run(made, {"query": "q"})
        return {}

    await kit.invoke(lined("g", tools=kit.node(tools), end=kit.asking(1)), {})


@shape(
    trajectory=["team", "other", "other"],
    outline=[{"team": [{"squad": [asks("hand_over")]}, {"up": []}]}, asks("other"), asks("other")],
    nodes=spent(team=1, other=2 + 4),
    llm_calls=3,
    executions=["team", "squad", "hand_over", "up", "other", "other"],
)
async def commands_to_the_parents_parent(kit: Kit) -> None:
    async def hand_over(state: State) -> Any:
        await kit.ask(1)
        return Command(goto="up", graph=Command.PARENT)

    async def up(state: State) -> Any:
        return Command(goto=[Send("other", {"n": 2}), Send("other", {"n": 4})], graph=Command.PARENT)

    async def other(state: State) -> State:
        await kit.ask(state["n"])
        return {}

    squad = lined("squad", hand_over=kit.node(hand_over))
    team = StateGraph(State)
    team.add_node("squad", squad, destinations=("up",))
    team.add_node("up", kit.node(up))
    team.add_edge(START, "squad")
    graph = StateGraph(State)
    graph.add_node("team", team.compile(), destinations=("other",))
    graph.add_node("other", kit.node(other))
    graph.add_edge(START, "team")
    await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["ask", "ask"],
    outline=[asks("ask"), asks("ask")],
    nodes=spent(ask=2 * 1),
    llm_calls=2,
    executions=[("ask", "interrupted", 1, None)] * 2,
)
async def two_threads_of_one_graph(kit: Kit) -> None:
    graph = StateGraph(State)
    graph.add_node("ask", asking_a_person(kit, 1, 2))
    graph.add_edge(START, "ask")
    graph.add_edge("ask", END)
    app = graph.compile(checkpointer=InMemorySaver())
    for thread in ("1", "2"):
        await kit.invoke(app, {}, {"configurable": {"thread_id": thread}})
