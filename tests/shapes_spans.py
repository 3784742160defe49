"""Shapes where what MLflow sees and what went over the wire differ, or nearly: own spans, threads, raw google-genai."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

from langchain_core.messages import HumanMessage

from tests.shapes import FLASH, Kit, drive, prompt, shape, spent
from tests.shapes_flow import State, asks, lined


@shape(
    trajectory=["a", "b"],
    outline=[{"a": [FLASH, FLASH, FLASH]}, asks("b")],
    nodes=spent(a=1 + 2 + 4, b=8),
    llm_calls=4,
    findings=["orphans"],
    entries=["invoke", "sync nodes", "stream:updates"],
)
async def threads_in_a_node(kit: Kit) -> None:
    async def a(state: State) -> State:
        model = kit.model()
        thread = threading.Thread(target=lambda: model.invoke(prompt(1)))
        thread.start()
        thread.join(30)
        with ThreadPoolExecutor(1) as pool:
            list(pool.map(model.invoke, [prompt(2), prompt(4)]))
        return {}

    await kit.invoke(lined("g", a=kit.node(a), b=kit.asking(8)), {})


@shape(
    trajectory=["a", "b"],
    outline=[{"a": [FLASH]}, {"b": [FLASH, FLASH]}, FLASH],
    nodes=spent(a=1, b=2 + 4),
    llm_calls=4,
    total=15 * 11,
)
async def the_users_own_spans(kit: Kit) -> None:
    import mlflow

    @mlflow.trace
    def plain() -> int:
        return 1

    async def a(state: State) -> State:
        plain()
        with mlflow.start_span("inside"):
            await kit.ask(1)
        return {}

    async def b(state: State) -> State:
        with mlflow.start_span("outer"), mlflow.start_span("b"):
            await kit.ask(2)
        await kit.ask(4)
        return {}

    app = lined("g", a=kit.node(a), b=kit.node(b))

    @mlflow.trace
    async def main() -> None:
        await kit.invoke(app, {})
        await kit.ask(8)

    @mlflow.trace(name="main")
    def sync_main() -> None:
        drive(kit.invoke(app, {}))
        drive(kit.ask(8))

    if kit.is_async and kit.async_nodes:
        await main()
    elif not kit.is_async:
        sync_main()
    else:
        with mlflow.start_span("main"):
            await kit.invoke(app, {})
            await kit.ask(8)


def raw_genai(kit: Kit, units: int) -> Any:
    from google import genai

    # Made here and held: a client that is collected closes its connection.
    client = genai.Client()

    async def ask(state: State) -> State:
        if kit.async_nodes:
            await client.aio.models.generate_content(model=FLASH, contents=prompt(units))
        else:
            client.models.generate_content(model=FLASH, contents=prompt(units))
        return {}

    return kit.node(ask)


@shape(
    trajectory=["raw", "end"],
    # MLflow sees nothing of it, the wire does.
    outline=[{"raw": []}, asks("end")],
    nodes=spent(raw=1, end=2),
    llm_calls=2,
    findings=["uncounted"],
)
async def raw_google_genai(kit: Kit) -> None:
    await kit.invoke(lined("g", raw=raw_genai(kit, 1), end=kit.asking(2)), {})


@shape(
    trajectory=["raw", "end"],
    outline=[asks("raw"), asks("end")],
    nodes=spent(raw=1, end=2),
    llm_calls=2,
    # google-genai's spans find their run in async code only where MLflow's tracer is inline.
    apart=["orphans"],
    autolog=["langchain", "gemini"],
)
async def two_autologs(kit: Kit) -> None:
    await kit.invoke(lined("g", raw=raw_genai(kit, 1), end=kit.asking(2)), {})


@shape(
    trajectory=["a", "b"],
    outline=[asks("a"), asks("b")],
    nodes=spent(a=1, b=2),
    llm_calls=2,
    executions=["a", "b"],
    entries=["invoke", "ainvoke"],
)
async def a_span_that_is_still_open(kit: Kit) -> None:
    import mlflow

    # Detached: nobody ends it.
    mlflow.start_span_no_context("open")
    await kit.invoke(lined("g", a=kit.asking(1), b=kit.asking(2)), {})


@shape(
    trajectory=["a", "b"],
    outline=[{"a": [f"{FLASH} [google_search]"]}, asks("b")],
    # A grounded request costs $35 a thousand beside its tokens.
    nodes=spent(b=2) | {"a": (11, Decimal("0.0000055") + Decimal("0.035"))},
    llm_calls=2,
)
async def googles_own_tools(kit: Kit) -> None:
    async def a(state: State) -> State:
        model = kit.model().bind_tools([{"google_search": {}}])
        await kit.run(model, prompt(1, grounding={"webSearchQueries": ["solar sails"]}))
        return {}

    await kit.invoke(lined("g", a=kit.node(a), b=kit.asking(2)), {})


@shape(
    trajectory=["a"],
    outline=[{"a": [FLASH, FLASH]}],
    nodes=spent(a=1 + 2),
    llm_calls=2,
    # `agenerate` outside of a chain takes no part in LangChain's run.
    apart=["orphans"],
)
async def several_prompts_in_one_generate(kit: Kit) -> None:
    """One `generate` starts the spans of all its prompts before it asks the first."""

    async def a(state: State) -> State:
        prompts = [[HumanMessage(prompt(1))], [HumanMessage(prompt(2))]]
        if kit.async_nodes:
            await kit.model().agenerate(prompts)
        else:
            kit.model().generate(prompts)
        return {}

    await kit.invoke(lined("g", a=kit.node(a)), {})
