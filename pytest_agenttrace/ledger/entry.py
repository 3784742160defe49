"""A test's trace as the facts a ledger holds of it: sums, executions, calls, in an order that never flickers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pytest_agenttrace.calls import Call, ModelCall, Pricer, sum_cost, sum_tokens, sum_usage
from pytest_agenttrace.execution import Execution, Span, inside, outer_of, tool_call
from pytest_agenttrace.ledger.model import (
    BilledFacts,
    CallFacts,
    ExecutionFacts,
    NodeFacts,
    TestFacts,
    ToolFacts,
    UsageFacts,
)
from pytest_agenttrace.ledger.requests import members
from pytest_agenttrace.trace import Trace
from pytest_agenttrace.usage import Tokens, Usage, UsageUnknown

__all__ = ["facts_of"]

# What a namespace says of a node: its name; the id behind it differs in every run.
_PART = re.compile(r"(?P<name>.+):[^:]*")
_ERROR = re.compile(r"[\w.]+")


# What a call was billed: the rate's name, how many, and USD for a million (a thousand searches) of them.
Biller = Callable[[ModelCall], Sequence[tuple[str, int, Decimal]]]


def facts_of(trace: Trace, price: Pricer, bill: Biller = lambda call: ()) -> TestFacts:
    """What a ledger says of a trace; outcome, budgets and findings are for others to add. `price` and `bill` are asked
    of every call; what there is no price for is None, and billed as nothing."""
    executions = trace.below()
    tools = _tools_by_namespace(trace)
    places = {execution.namespace: place for place, execution in enumerate(executions)}
    calls = sorted(trace.calls, key=lambda call: _order(call, places))
    paid = {id(call.call): (_cost([call], price), _billed(call, bill)) for call in trace.llm_calls}
    return TestFacts(
        outcome="passed",
        tokens=_tokens(trace.llm_calls),
        usage=_usage(sum_usage(trace.llm_calls)),
        cost=_cost(trace.llm_calls, price),
        unpriced=tuple(dict.fromkeys(call.model or "" for call in trace.llm_calls if _cost([call], price) is None)),
        models=tuple(sorted({call.model for call in trace.llm_calls if call.model})),
        trajectory=tuple(trace.trajectory),
        edges=tuple(_edges(executions)),
        outline=tuple(trace.outline),
        nodes=_nodes(executions, tools, price),
        executions=tuple(_execution(execution, tools, price) for execution in executions),
        calls=tuple(_call(call, *paid.get(id(call), (None, ()))) for call in calls),
    )


def _path(namespace: str) -> str:
    """`report:1f|2|write:3a` -> `report|write`."""
    parts = (_PART.fullmatch(part) for part in namespace.split("|"))
    return "|".join(part["name"] for part in parts if part is not None)


def _path_of(execution: Execution) -> str:
    return _path(execution.namespace) or execution.node


def _order(call: Call, places: Mapping[str, int]) -> tuple[int, int, int]:
    """By execution, then by the reply's place in the cassette: branches ask in any order."""
    namespace = call.caller.namespace or ""
    home = namespace if namespace in places else outer_of(namespace, places)
    place = len(places) if home is None else places[home]
    return place, call.reply if call.reply is not None else 1_000_000 + call.index, call.index


def _tokens(calls: Iterable[ModelCall]) -> int | None:
    total = sum_tokens(calls, "")
    return int(total) if isinstance(total, Tokens) else None


def _cost(calls: Iterable[ModelCall], price: Pricer) -> Decimal | None:
    try:
        return Decimal(sum_cost(calls, price, ""))
    except (LookupError, UsageUnknown, ValueError):  # the last: counts that contradict themselves
        return None


def _usage(usage: Usage) -> UsageFacts:
    return UsageFacts(**usage.as_dict())


def _edges(executions: Sequence[Execution]) -> Iterator[tuple[str | None, str]]:
    """Each pair of nodes that ran in steps which follow each other, once, sorted; None for the start of a graph."""
    runs: dict[str, list[Execution]] = {}
    for execution in executions:
        runs.setdefault(execution.namespace.rpartition("|")[0], []).append(execution)
    found: set[tuple[str | None, str]] = set()
    for level in runs.values():
        before: list[str] = []
        now: list[str] = []
        step: int | None = None
        for execution in level:
            if execution.step != step or step is None:
                # Steps that go back are those of another run of the graph.
                again = step is not None and execution.step is not None and execution.step < step
                before, now, step = [] if again else now, [], execution.step
            now.append(_path_of(execution))
            found |= {(node, now[-1]) for node in before} or {(None, now[-1])}
    yield from sorted(found, key=lambda edge: (edge[0] or "", edge[1]))


def _tools_by_namespace(trace: Trace) -> dict[str, list[ToolFacts]]:
    """The tools that each execution ran itself, by its namespace."""
    found: dict[str, list[ToolFacts]] = {}
    waiting: list[tuple[Span, str | None]] = [(root, None) for root in reversed(trace.roots)]
    while waiting:
        span, home = waiting.pop()
        execution = trace.execution_of(span)
        home = execution.namespace if execution is not None else home
        if span.type == "TOOL" and home is not None:
            name, args = tool_call(span)
            found.setdefault(home, []).append(ToolFacts(name, _sorted(args)))
        waiting += [(child, home) for child in reversed(span.children)]
    return found


def _sorted(args: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(args.items(), key=lambda item: str(item[0])))


def _nodes(
    executions: Sequence[Execution], tools: Mapping[str, Sequence[ToolFacts]], price: Pricer
) -> dict[str, NodeFacts]:
    by_path: dict[str, list[Execution]] = {}
    for execution in executions:
        by_path.setdefault(_path_of(execution), []).append(execution)
    facts: dict[str, NodeFacts] = {}
    for path, found in by_path.items():
        calls = [call for execution in found for call in execution.model_calls]
        spaces = [execution.namespace for execution in found]
        facts[path] = NodeFacts(
            executions=len(found),
            attempts=sum(execution.attempts for execution in found),
            llm_calls=len(calls),
            tool_calls=sum(len(ran) for home, ran in tools.items() if any(inside(home, space) for space in spaces)),
            tokens=_tokens(calls),
            usage=_usage(sum_usage(calls)),
            cost=_cost(calls, price),
        )
    return facts


def _execution(execution: Execution, tools: Mapping[str, Sequence[ToolFacts]], price: Pricer) -> ExecutionFacts:
    error = _ERROR.match(execution.error) if execution.error else None
    return ExecutionFacts(
        node=_path_of(execution),
        step=execution.step,
        status=execution.status,
        attempts=execution.attempts,
        error=error[0].rpartition(".")[2] if error is not None else execution.error and "Error",
        tokens=_tokens(execution.model_calls),
        cost=_cost(execution.model_calls, price),
        tools=tuple(tools.get(execution.namespace, ())),
    )


def _billed(call: ModelCall, bill: Biller) -> tuple[BilledFacts, ...]:
    return tuple(BilledFacts(*line) for line in bill(call))


def _call(call: Call, cost: Decimal | None, billed: tuple[BilledFacts, ...]) -> CallFacts:
    where = _path(call.caller.namespace) if call.caller.namespace else ""
    return CallFacts(
        node=where or call.node,
        method=call.endpoint.method,
        model=call.model,
        answered_by=call.model_version,
        status=call.status,
        attempt=call.attempt,
        finish_reason=call.finish_reason,
        injected=call.injected,
        usage=None if call.usage is None else _usage(call.usage),
        cost=cost,
        priced_at=None if call.recorded_at is None else call.recorded_at.date().isoformat(),
        request=members(call.body),
        billed=billed,
    )
