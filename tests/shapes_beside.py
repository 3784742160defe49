"""Shapes beside plain nodes: caches, the functional API, chains, threads, own spans, raw google-genai, streams."""

from __future__ import annotations

import asyncio
from typing import Any

from langchain_core.caches import InMemoryCache as LangChainCache
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import StructuredTool
from langgraph.cache.memory import InMemoryCache
from langgraph.func import entrypoint, task
from langgraph.graph import START, StateGraph
from langgraph.types import CachePolicy
from pydantic import BaseModel

from tests.shapes import FLASH, Kit, prompt, shape, spent
from tests.shapes_flow import State, asks, lined

BARE: Any = {"trajectory": [], "nodes": {}}


@shape(
    trajectory=["costly", "end", "end"],
    outline=[asks("costly"), asks("end"), asks("end")],
    nodes=spent(costly=1, end=2 * 2),
    llm_calls=3,
)
async def a_cached_node(kit: Kit) -> None:
    """A node that was answered by LangGraph's cache did not run: it has no execution."""
    graph = StateGraph(State)
    graph.add_node("costly", kit.asking(1), cache_policy=CachePolicy())
    graph.add_node("end", kit.asking(2))
    graph.add_edge(START, "costly")
    graph.add_edge("costly", "end")
    app = graph.compile(cache=InMemoryCache())
    await kit.invoke(app, {"n": 1})
    await kit.invoke(app, {"n": 1})


@shape(
    trajectory=["a", "b"],
    outline=[asks("a"), asks("b")],
    nodes=spent(a=1, b=1),
    llm_calls=2,
    findings=["uncalled"],
)
async def langchains_cache(kit: Kit) -> None:
    cached = kit.model(cache=LangChainCache())

    async def ask(state: State) -> State:
        await kit.run(cached, prompt(1))
        return {}

    await kit.invoke(lined("g", a=kit.node(ask), b=kit.node(ask)), {})


@shape(
    trajectory=["article"],
    outline=[{"article": [asks("research"), asks("write"), asks("write"), FLASH]}],
    nodes=spent(article=1 + 2 + 4 + 8),
    llm_calls=4,
    executions=["article", "research", "write", "write"],
)
async def functional_api(kit: Kit) -> None:
    @task
    @kit.node
    async def research(topic: str) -> str:
        return await kit.ask(1)

    @task
    @kit.node
    async def write(n: int) -> str:
        return await kit.ask(n)

    @entrypoint()
    @kit.node
    async def article(value: Any) -> Any:
        if kit.async_nodes:
            await research("x")
            await asyncio.gather(write(2), write(4))
        else:
            research("x").result()
            for future in [write(2), write(4)]:
                future.result()
        return await kit.ask(8)

    await kit.invoke(article, {"topic": "x"})


@shape(**BARE | {"outline": [FLASH, FLASH, FLASH], "llm_calls": 3, "total": 7 * 11, "entries": ["invoke", "ainvoke"]})
async def lcel(kit: Kit) -> None:
    template = ChatPromptTemplate.from_messages([("human", "{said}")])
    chain = template | kit.model() | StrOutputParser()
    both = RunnableParallel(a=chain, b=RunnableLambda(lambda x: {"said": prompt(4)}) | chain)
    await kit.invoke(chain, {"said": prompt(1)})
    await kit.invoke(both, {"said": prompt(2)})


@shape(
    trajectory=["a"],
    outline=[{"a": [FLASH, FLASH, FLASH]}],
    nodes=spent(a=1 + 2 + 4),
    llm_calls=3,
)
async def parallel_runnables_in_a_node(kit: Kit) -> None:
    async def three(said: Any) -> Any:
        return await kit.ask(4)

    async def a(state: State) -> State:
        one: Any = RunnableLambda(lambda _: prompt(1))
        two: Any = RunnableLambda(lambda _: prompt(2))
        model = kit.model()
        await kit.run(RunnableParallel(one=one | model, two=two | model, three=RunnableLambda(kit.node(three))), {})
        return {}

    await kit.invoke(lined("g", a=kit.node(a)), {})


@shape(trajectory=["a"], outline=[{"a": [FLASH, FLASH, FLASH]}], nodes=spent(a=1 + 2 + 4), llm_calls=3)
async def batch_in_a_node(kit: Kit) -> None:
    async def a(state: State) -> State:
        prompts = [prompt(1), prompt(2), prompt(4)]
        if kit.async_nodes:
            await kit.model().abatch(prompts)
        else:
            kit.model().batch(prompts)
        return {}

    await kit.invoke(lined("g", a=kit.node(a)), {})


@shape(
    trajectory=["a", "b"] * 3,
    outline=[asks("a"), asks("b")] * 3,
    nodes=spent(a=3 * 1, b=1 + 2 + 4),
    llm_calls=6,
    entries=["invoke", "ainvoke"],
)
async def batch_of_a_graph(kit: Kit) -> None:
    async def b(state: State) -> State:
        await kit.ask(state["n"])
        return {}

    app = lined("g", a=kit.asking(1), b=kit.node(b))
    inputs: Any = [{"n": 1}, {"n": 2}, {"n": 4}]
    if kit.is_async:
        await app.abatch(inputs)
    else:
        app.batch(inputs)


@shape(
    trajectory=["a", "b"] * 3,
    outline=[asks("a"), asks("b")] * 3,
    nodes=spent(a=3 * 1, b=1 + 2 + 4),
    llm_calls=6,
    entries=["ainvoke", "sync nodes", "astream:updates"],
)
async def graphs_gathered(kit: Kit) -> None:
    async def b(state: State) -> State:
        await kit.ask(state["n"])
        return {}

    app = lined("g", a=kit.asking(1), b=kit.node(b))
    await asyncio.gather(*(kit.invoke(app, {"n": n}) for n in (1, 2, 4)))


@shape(
    trajectory=["a", "b"],
    outline=[{"a": [asks("x"), asks("x")]}, asks("b")],
    nodes=spent(a=1 + 2, b=4),
    llm_calls=3,
    executions=["a", "x", "x", "b"],
    entries=["ainvoke", "astream:updates", "astream:messages", "astream_events"],
)
async def subgraphs_gathered_in_a_node(kit: Kit) -> None:
    one, two = lined("one", x=kit.asking(1)), lined("two", x=kit.asking(2))

    async def a(state: State) -> State:
        await asyncio.gather(one.ainvoke({}), two.ainvoke({}))
        return {}

    await kit.invoke(lined("g", a=a, b=kit.asking(4)), {})


class Answer(BaseModel):
    """What is answered."""

    n: int


@shape(
    trajectory=["a"],
    outline=[{"a": [FLASH, FLASH]}],
    nodes=spent(a=1 + 2),
    llm_calls=2,
)
async def structured_output(kit: Kit) -> None:
    async def a(state: State) -> State:
        by_schema = kit.model().with_structured_output(Answer, method="json_schema")
        by_tool = kit.model().with_structured_output(Answer, method="function_calling")
        first = await kit.run(by_schema, prompt(1, json={"n": 3}))
        second = await kit.run(by_tool, prompt(2, tools=[[("Answer", {"n": 3})]]))
        assert first == second == Answer(n=3)
        return {}

    await kit.invoke(lined("g", a=kit.node(a)), {})


@shape(trajectory=["a"], outline=[asks("a")], nodes=spent(a=1), llm_calls=1, entries=["invoke", "ainvoke"])
async def a_streamed_model(kit: Kit) -> None:
    async def a(state: State) -> State:
        if kit.async_nodes:
            said = [chunk.text async for chunk in kit.model().astream([HumanMessage(prompt(1))])]
        else:
            said = [chunk.text for chunk in kit.model().stream([HumanMessage(prompt(1))])]
        assert "".join(said) == "ok"
        return {}

    await kit.invoke(lined("g", a=kit.node(a)), {})


@shape(
    trajectory=["__start__", "a"],
    outline=[asks("__start__"), asks("a")],
    nodes=spent(__start__=1, a=2),
    llm_calls=2,
)
async def a_router_that_asks_at_the_entry(kit: Kit) -> None:
    """LangGraph's own node at the entry counts where something was asked there."""

    async def route(state: State) -> str:
        await kit.ask(1)
        return "a"

    graph = StateGraph(State)
    graph.add_node("a", kit.asking(2))
    graph.add_conditional_edges(START, kit.node(route), ["a"])
    await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["a", "b"],
    outline=[{"a": [FLASH, FLASH]}, asks("b")],
    nodes=spent(a=1 + 2, b=4),
    llm_calls=3,
)
async def a_router_that_asks(kit: Kit) -> None:
    """A router belongs to the node that it leads away from."""

    async def route(state: State) -> str:
        await kit.ask(2)
        return "b"

    graph = StateGraph(State)
    graph.add_node("a", kit.asking(1))
    graph.add_node("b", kit.asking(4))
    graph.add_edge(START, "a")
    graph.add_conditional_edges("a", kit.node(route), ["b"])
    await kit.invoke(graph.compile(), {})


@shape(
    trajectory=["a"],
    outline=[{"a": ["outer()", "inner()", FLASH, asks("x"), FLASH]}],
    nodes=spent(a=1 + 2 + 4),
    llm_calls=3,
    executions=["a", "x"],
    tool_calls=[("outer", {"query": "q"}), ("inner", {"query": "q"})],
)
async def a_tool_that_calls_a_tool_a_model_and_a_graph(kit: Kit) -> None:
    inner_graph = lined("inner", x=kit.asking(2))

    async def inner(query: str) -> str:
        """Inner."""
        return await kit.ask(1)

    async def outer(query: str) -> str:
        """Outer."""
        await kit.run(inner_tool, {"query": query})
        await kit.run(inner_graph, {})
        return await kit.ask(4)

    def made(function: Any) -> Any:
        return StructuredTool.from_function(
            **{"coroutine" if kit.async_nodes else "func": kit.node(function)}, name=function.__name__, description="-"
        )

    inner_tool, outer_tool = made(inner), made(outer)

    async def a(state: State) -> State:
        await kit.run(outer_tool, {"query": "q"})
        return {}

    await kit.invoke(lined("g", a=kit.node(a)), {})
