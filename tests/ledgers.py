"""Ledgers made by hand: a small suite of one article writer, and what may become of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pytest_agenttrace.ledger import (
    BilledFacts,
    BudgetFacts,
    CallFacts,
    ExecutionFacts,
    Ledger,
    NodeFacts,
    RunFacts,
    TestFacts,
    ToolFacts,
    UsageFacts,
)

FLASH = "gemini-2.5-flash"
# USD per million, of our own.
RATES = {"input": Decimal("0.30"), "cached_input": Decimal("0.03"), "output": Decimal("2.50")}


def used(sent: int, made: int, cached: int | None = None, thoughts: int | None = None) -> UsageFacts:
    return UsageFacts(sent, made, sent + made, cached, thoughts)


def call(
    node: str | None, usage: UsageFacts | None, rates: Mapping[str, Decimal] | None = RATES, **fields: Any
) -> CallFacts:
    """A call priced by rates; None: nobody knows its price."""
    billed: tuple[BilledFacts, ...] = ()
    if usage is not None and rates is not None:
        cached = usage.cache_read_input_tokens or 0
        fresh = (usage.input_tokens or 0) - (cached if "cached_input" in rates else 0)
        counts = {"input": fresh, "cached_input": cached, "output": usage.output_tokens or 0}
        billed = tuple(BilledFacts(name, counts[name], rate) for name, rate in rates.items())
    cost = sum((line.usd * line.count / 1_000_000 for line in billed), Decimal(0)) if billed else None
    made: dict[str, Any] = {
        "node": node,
        "method": "generateContent",
        "model": FLASH,
        "answered_by": FLASH,
        "status": 200,
        "attempt": 1,
        "finish_reason": "STOP",
        "injected": None,
        "usage": usage,
        "cost": cost,
        "priced_at": "2025-08-01",
        "request": {"contents[0].parts[0].text": f"Do what {node} does", "generationConfig.temperature": 0.7},
        "billed": billed,
    }
    return CallFacts(**made | fields)


def traced(*calls: CallFacts, path: tuple[str, ...] | None = None, **fields: Any) -> TestFacts:
    """A test of these calls: its nodes are those that call, in their order, each once unless `path` says otherwise."""
    names = [found.node for found in calls if found.node is not None]
    trajectory = path if path is not None else tuple(dict.fromkeys(name.partition("|")[0] for name in names))
    nodes: dict[str, NodeFacts] = {}
    for node in dict.fromkeys([*trajectory, *names]):
        of_it = [found for found in calls if found.node == node or (found.node or "").startswith(f"{node}|")]
        usage, cost = summed(of_it)
        ran = trajectory.count(node) or 1
        nodes[node] = NodeFacts(ran, ran, len(of_it), 0, usage.total_tokens, usage, cost)
    usage, cost = summed(calls)
    made: dict[str, Any] = {
        "outcome": "passed",
        "tokens": usage.total_tokens,
        "usage": usage,
        "cost": cost,
        "models": (FLASH,),
        "trajectory": trajectory,
        "edges": tuple(dict.fromkeys(zip((None, *trajectory), trajectory, strict=False))),
        "nodes": nodes,
        "executions": tuple(
            ExecutionFacts(node, step, "ok", 1, None, nodes[node].tokens, nodes[node].cost, ())
            for step, node in enumerate(trajectory, 1)
        ),
        "calls": tuple(calls),
    }
    return TestFacts(**made | fields)


def summed(calls: Any) -> tuple[UsageFacts, Decimal | None]:
    usages = [found.usage for found in calls if found.usage is not None]
    counts = {
        field.name: sum(values)
        for field in dataclasses.fields(UsageFacts)
        if (values := [value for usage in usages if (value := getattr(usage, field.name)) is not None])
    }
    costs = [found.cost for found in calls]
    return UsageFacts(**counts), None if None in costs else sum(costs, Decimal(0))


def article(research: tuple[int, int] = (1000, 500), write: tuple[int, int] = (500, 500), **fields: Any) -> TestFacts:
    """research, then write: 1,500 tokens for $0.00155, and 1,000 for $0.0014."""
    return traced(call("research", used(*research)), call("write", used(*write)), **fields)


def tool(facts: TestFacts, node: str, name: str, **args: Any) -> TestFacts:
    """The same, with a tool that its node ran."""
    executions = tuple(
        dataclasses.replace(done, tools=(*done.tools, ToolFacts(name, args))) if done.node == node else done
        for done in facts.executions
    )
    return dataclasses.replace(facts, executions=executions)


def budget(used: Any, limit: Any, node: str | None = "research", metric: str = "tokens") -> BudgetFacts:
    return BudgetFacts(node, metric, limit, used)


def ledger(tests: Mapping[str, TestFacts] | TestFacts | None = None, **run: Any) -> Ledger:
    """A ledger of these tests; of one, if it is only one."""
    versions = run.pop("versions", {"python": "3.11"})
    found = {"test_a.py::test_article": tests} if isinstance(tests, TestFacts) else dict(tests or {})
    return Ledger(1, versions, RunFacts(**run), found)
