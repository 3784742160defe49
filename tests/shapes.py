"""Shapes: real graphs written once and run in every way, with the facts that must come out of each.

A shape is one `async def` that gets a `Kit`. Where the kit is sync, its `ask` and `invoke` never suspend, and the
coroutines are driven by hand: the nodes are plain functions, and LangGraph runs its sync loop. A prompt is the script
of its own reply, as JSON: what is asked is what is counted.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, get_type_hints

from pytest_agenttrace import ErrorReply, GeminiServer, Reply
from pytest_agenttrace.capture import AgentTrace, capture, judge
from pytest_agenttrace.gemini_server import ScriptedRequest
from pytest_agenttrace.gemini_server.replies import Answer
from pytest_agenttrace.settings import KINDS, Tolerance

FLASH = "gemini-2.5-flash"
STREAMS = ("stream:values", "stream:updates", "stream:messages", "stream:custom", "stream:debug", "stream:all")
ENTRIES = ("invoke", "ainvoke", "sync nodes", *STREAMS, "astream:updates", "astream:messages", "astream_events")


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("a sync shape was suspended")


def prompt(units: int, text: str = "ok", **more: Any) -> str:
    """A prompt that says how it is answered: by `text`, by `tools` or `json`, with `errors` before.

    A unit is 10 tokens in and 1 out, $0.0000055. Shapes count in powers of two, so that each sum tells whose it is;
    the next turn of a conversation costs twice the one before.
    """
    return json.dumps({"units": units, "text": text, **more})


def spent(**units: int) -> dict[str, tuple[int, Decimal]]:
    """Tokens and USD by node."""
    return {node: (11 * count, count * Decimal("0.0000055")) for node, count in units.items()}


class Script:
    """Answers each prompt as the prompt says."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    def __call__(self, request: ScriptedRequest) -> Answer:
        said = json.loads(request.prompt)
        errors = said.get("errors", [])
        turn = sum(content.get("role") == "model" for content in request.body["contents"])
        asked = self.asked[f"{turn} {request.prompt}"]
        self.asked[f"{turn} {request.prompt}"] += 1
        if asked < len(errors):
            return ErrorReply(errors[asked], "scripted")
        units = said["units"] * 2**turn
        usage = {"promptTokenCount": 10 * units, "candidatesTokenCount": units}
        if "cached" in said:
            usage["cachedContentTokenCount"] = said["cached"]
        tools = said.get("tools", [])
        if turn < len(tools):
            return Reply(tool_calls=[(name, args) for name, args in tools[turn]], usage=usage)
        if "json" in said:
            return Reply(json=said["json"], usage=usage)
        return Reply(said["text"], usage=usage, grounding=said.get("grounding"))


class Kit:
    """One way to run a shape: `entry` is one of ENTRIES. `apart` runs each graph in a task of its own."""

    def __init__(self, entry: str, *, apart: bool = False) -> None:
        self.apart = apart
        self.way, _, self.mode = entry.partition(":")
        self.is_async = self.way in ("ainvoke", "sync nodes", "astream", "astream_events")
        self.async_nodes = self.is_async and self.way != "sync nodes"
        self._models: dict[str, Any] = {}

    def model(self, **options: Any) -> Any:
        from langchain_google_genai import ChatGoogleGenerativeAI

        key = str(options)
        if key not in self._models:
            self._models[key] = ChatGoogleGenerativeAI(**{"model": FLASH, **options})
        return self._models[key]

    async def run(self, runnable: Any, value: Any, config: Any = None, **more: Any) -> Any:
        """A runnable inside of a node."""
        if self.async_nodes:
            return await runnable.ainvoke(value, config, **more)
        return runnable.invoke(value, config, **more)

    async def ask(self, units: int, text: str = "ok", **more: Any) -> str:
        said: str = (await self.run(self.model(), prompt(units, text, **more))).text
        return said

    def node(self, function: Callable[..., Awaitable[Any]]) -> Any:
        """A node: the coroutine function itself, or a plain function."""
        if self.async_nodes:
            return function

        @wraps(function)
        def plain(*args: Any, **kwargs: Any) -> Any:
            return drive(function(*args, **kwargs))  # type: ignore[arg-type]  # every shape's functions are coroutines

        # What LangGraph and LangChain look at to tell them apart, and where they look types up.
        del plain.__wrapped__
        plain.__signature__ = signature(function, eval_str=True)  # type: ignore[attr-defined]  # what `signature` reads
        plain.__annotations__ = get_type_hints(function)
        return plain

    def asking(self, units: int, update: Any = None, **more: Any) -> Any:
        """A node that asks one model."""

        async def ask(state: Any) -> Any:
            await self.ask(units, **more)
            return {} if update is None else update

        return self.node(ask)

    async def invoke(self, app: Any, value: Any, config: Any = None, **more: Any) -> Any:
        """The whole graph, the way this kit runs it; the result where that way has one."""
        running = self._invoke(app, value, config, **more)
        return await (asyncio.create_task(running) if self.apart else running)

    async def _invoke(self, app: Any, value: Any, config: Any, **more: Any) -> Any:
        if self.way in ("ainvoke", "sync nodes"):
            return await app.ainvoke(value, config, **more)
        if self.way == "astream":
            async for _ in app.astream(value, config, stream_mode=self.mode, **more):
                pass
            return None
        if self.way == "astream_events":
            async for _ in app.astream_events(value, config, version="v2", **more):
                pass
            return None
        if self.way == "stream":
            modes: Any = ["values", "updates", "messages", "custom"] if self.mode == "all" else self.mode
            for _ in app.stream(value, config, stream_mode=modes, **more):
                pass
            return None
        return app.invoke(value, config, **more)


@dataclass(frozen=True)
class Shape:
    """A graph and how it is run, with what must be read from its trace in each way.

    `nodes` are tokens and USD by node of the trajectory; `executions` are those at every depth:
    `(node, status, attempts, error)`; a plain name stands for `(name, "ok", 1, None)`. `findings` are the kinds that
    the two witnesses must tell; `apart` those that they tell in async code where MLflow's tracer is not inline.
    """

    name: str
    run: Callable[[Kit], Awaitable[Any]]
    trajectory: Sequence[str]
    outline: Sequence[Any]
    nodes: dict[str, tuple[int, Decimal]]
    llm_calls: int
    executions: Sequence[Any] = ()
    tool_calls: Sequence[Any] = ()
    findings: Sequence[str] = ()
    apart: Sequence[str] = ()
    autolog: Sequence[str] = ("langchain",)
    entries: Sequence[str] = ENTRIES
    total: int | None = None

    def facts(self, entry: str, inline: bool | None) -> dict[str, Any]:
        """What `read` must give."""
        is_apart = Kit(entry).is_async and inline is not True
        return {
            "trajectory": list(self.trajectory),
            "outline": list(self.outline),
            "nodes": dict(self.nodes),
            "llm_calls": self.llm_calls,
            "executions": [
                (one, "ok", 1, None) if isinstance(one, str) else tuple(one)
                for one in self.executions or self.trajectory
            ],
            "tool_calls": list(self.tool_calls),
            "findings": list(self.apart if is_apart and self.apart else self.findings),
            "total": sum(tokens for tokens, _ in self.nodes.values()) if self.total is None else self.total,
        }


SHAPES: dict[str, Shape] = {}


def shape(**facts: Any) -> Callable[[Callable[[Kit], Awaitable[Any]]], Callable[[Kit], Awaitable[Any]]]:
    """Put a shape into SHAPES, under its function's name."""

    def put(run: Callable[[Kit], Awaitable[Any]]) -> Callable[[Kit], Awaitable[Any]]:
        name = run.__name__
        SHAPES[name] = Shape(name, run, **facts)
        return run

    return put


def read(trace: AgentTrace) -> dict[str, Any]:
    """The facts of a trace, as `Shape.facts` writes them."""
    frozen = trace.snapshot()
    tokens, cost = frozen.tokens_by_node, frozen.cost_by_node
    verdict = judge(trace, trace._cassette, trace._store, tolerance=Tolerance())
    return {
        "trajectory": frozen.trajectory,
        "outline": frozen.outline,
        "nodes": {node: (int(tokens[node]), Decimal(cost[node])) for node in tokens},
        "llm_calls": len(frozen.llm_calls),
        "executions": [(e.node, e.status, e.attempts, e.error) for e in frozen.below()],
        "tool_calls": frozen.tool_calls,
        "findings": list(dict.fromkeys(finding.kind for finding in verdict.findings)),
        "total": frozen.tokens,
    }


@dataclass
class Studio:
    """Cassettes of shapes: recorded from their own prompts when first used, then replayed."""

    folder: Path
    recorded: set[str] = field(default_factory=set)

    def run(self, given: Shape, entry: str, inline: bool | None) -> dict[str, Any]:
        """The facts of one run."""
        with self.traced(given, entry, inline) as trace:
            return read(trace)

    @contextmanager
    def traced(
        self, given: Shape, entry: str, inline: bool | None = None, *, apart: bool = True
    ) -> Iterator[AgentTrace]:
        """The trace of one run. `apart` gives each graph an async task of its own where the tracer is inline: of runs
        that follow each other in one task, MLflow loses some."""
        streams = "messages" in entry or "events" in entry or entry.endswith(":all")
        name = f"{given.name}{'-streamed' if streams else ''}"
        if name not in self.recorded:
            import pytest

            with GeminiServer(Script()) as server, pytest.MonkeyPatch.context() as patch:
                patch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
                patch.setenv("GOOGLE_API_KEY", "scripted")
                with self._capture(given, name, None, record=True):
                    # Sync where it can be: replies of real errors over aiohttp leave a coroutine that nobody awaits.
                    plain = "stream:messages" if streams else "invoke"
                    play(given, plain if plain in given.entries else entry)
                assert server.unscripted == []
            self.recorded.add(name)
        with self._capture(given, name, inline, record=False) as trace:
            play(given, entry, apart=apart and inline is True)
            yield trace

    def _capture(self, given: Shape, name: str, inline: bool | None, *, record: bool) -> Any:
        return capture(
            self.folder / f"{name}.yaml",
            record=record,
            autolog=given.autolog,
            run_tracer_inline=inline,
            allow=KINDS if record else [*given.findings, *given.apart],
            directory=self.folder / "stores",
        )


def play(given: Shape, entry: str, *, apart: bool = False) -> None:
    kit = Kit(entry, apart=apart and entry not in ("invoke", *STREAMS))
    if kit.is_async:
        asyncio.run(given.run(kit))  # type: ignore[arg-type]  # a coroutine
    else:
        drive(given.run(kit))  # type: ignore[arg-type]  # a coroutine
