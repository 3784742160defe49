"""What a run of a workflow has used and cost, as the file `cost_summary.json` says it: totals, nodes, models.

Its schema is shipped beside this module. Money is USD as text, exact; unknown is null, never 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from importlib.resources import files
from typing import Any, Literal

from pytest_agenttrace.calls import ModelCall, Pricer, sum_cost, sum_tokens, sum_usage
from pytest_agenttrace.ledger import NodeFacts, UsageFacts, facts_of, plain
from pytest_agenttrace.trace import Trace
from pytest_agenttrace.usage import Tokens, UsageUnknown

__all__ = [
    "FILE",
    "SCHEMA",
    "CostSummary",
    "ModelFacts",
    "TotalFacts",
    "generated_schema",
    "shipped_schema",
    "summarise",
    "summary_text",
]

FILE = "cost_summary.json"
# Where the schema lies in the package.
SCHEMA = "cost_summary.schema.json"
_NAMELESS = "(model not named)"

Status = Literal["ok", "error", "interrupted"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What one model was asked in a run, by all nodes together."""

    calls: int
    tokens: int | None
    usage: UsageFacts
    cost: Decimal | None


@dataclass(frozen=True, slots=True)
class TotalFacts:
    """What the whole run has used. `executions` are runs of nodes, `failed_calls` those that got no answer; `duration`
    is in seconds."""

    executions: int
    llm_calls: int
    failed_calls: int
    tool_calls: int
    tokens: int | None
    usage: UsageFacts
    cost: Decimal | None
    duration: float | None


@dataclass(frozen=True, slots=True)
class CostSummary:
    """A run's costs. `nodes` are by their path: "write", in a subgraph "report|write". `unpriced` are models whose
    price nobody knows; `disagreements` what the trace and the wire say differently, a line for each."""

    format: Literal[1]
    workflow: str
    version: str | None
    status: Status
    trace_ids: tuple[str, ...]
    totals: TotalFacts
    nodes: Mapping[str, NodeFacts]
    models: Mapping[str, ModelFacts]
    unpriced: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()


def summarise(
    trace: Trace,
    price: Pricer,
    *,
    workflow: str,
    version: str | None,
    status: Status,
    trace_ids: Sequence[str] = (),
    disagreements: Sequence[str] = (),
) -> CostSummary:
    """The costs of a traced run."""
    facts = facts_of(trace, price)
    usage = facts.usage or UsageFacts()
    return CostSummary(
        1,
        workflow,
        version,
        status,
        tuple(trace_ids),
        TotalFacts(
            executions=len(trace.executions),
            llm_calls=len(trace.llm_calls),
            failed_calls=sum(not call.answered for call in trace.calls if call.endpoint.chat),
            tool_calls=len(trace.tool_calls),
            tokens=facts.tokens,
            usage=usage,
            cost=facts.cost,
            duration=_duration(trace),
        ),
        facts.nodes,
        {model: _of_model(calls, price) for model, calls in sorted(_by_model(trace.llm_calls).items())},
        _unpriced(trace.llm_calls, price),
        tuple(disagreements),
    )


def summary_text(summary: CostSummary) -> str:
    """The summary as its file has it."""
    return json.dumps(plain(summary), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _duration(trace: Trace) -> float | None:
    """Seconds from the first span's start to the last one's end."""
    ends = [root.end_ns for root in trace.roots if root.end_ns is not None]
    if not ends or len(ends) < len(trace.roots):
        return None
    return (max(ends) - min(root.start_ns for root in trace.roots)) / 1e9


def _by_model(calls: Iterable[ModelCall]) -> dict[str, list[ModelCall]]:
    found: dict[str, list[ModelCall]] = {}
    for call in calls:
        found.setdefault(call.model or _NAMELESS, []).append(call)
    return found


def _unpriced(calls: Iterable[ModelCall], price: Pricer) -> tuple[str, ...]:
    """The models that there is no price for; not those whose usage nobody knows."""
    known = (call for call in calls if call.usage is not None and call.usage.input_tokens is not None)
    found = (call.model or _NAMELESS for call in known if _known(lambda: Decimal(price(call))) is None)  # noqa: B023
    return tuple(dict.fromkeys(found))


def _of_model(calls: Sequence[ModelCall], price: Pricer) -> ModelFacts:
    tokens = sum_tokens(calls, "")
    return ModelFacts(
        calls=len(calls),
        tokens=int(tokens) if isinstance(tokens, Tokens) else None,
        usage=UsageFacts(**sum_usage(calls).as_dict()),
        cost=_known(lambda: Decimal(sum_cost(calls, price, ""))),
    )


def _known(cost: Callable[[], Decimal]) -> Decimal | None:
    try:
        return cost()
    except (LookupError, UsageUnknown, ValueError):  # the last: counts that contradict themselves
        return None


def generated_schema() -> str:
    """The JSON Schema of a cost summary, as it is shipped."""
    from pydantic import TypeAdapter

    schema: dict[str, Any] = TypeAdapter(CostSummary).json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A cost summary of pytest-agenttrace"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def shipped_schema() -> str:
    """The JSON Schema in the package."""
    return files("pytest_agenttrace.workflow").joinpath(SCHEMA).read_text(encoding="utf-8")
