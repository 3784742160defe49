"""What a run consists of, as plain data: spans, and the executions of nodes they belong to.

Attribution goes by LangGraph's run metadata on each span, never by the subtree alone: async runs have
been seen with wrong parents.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pytest_agenttrace.calls import Caller, ModelCall, Pricer, ToolCall, sum_cost, sum_duration, sum_tokens
from pytest_agenttrace.usage import Cost, Tokens, UnknownTokens, Usage

__all__ = [
    "MODEL_TYPES",
    "Execution",
    "Origin",
    "Span",
    "fold",
    "inside",
    "last_span",
    "outer_of",
    "status_of",
    "tool_call",
]

# MLflow's types of spans that call a model.
MODEL_TYPES = frozenset({"CHAT_MODEL", "LLM", "EMBEDDING"})
# LangGraph ends a node by these exceptions without anything being wrong.
_NOT_ERRORS = {
    "GraphInterrupt": "interrupted",
    "NodeInterrupt": "interrupted",
    "CancelledError": "cancelled",
    "ParentCommand": "ok",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """The node that started a trace of its own, and the name of the bare thread it used for that, if any."""

    caller: Caller
    thread: str | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """One span of an MLflow trace, as plain data. Times are nanoseconds since the epoch.

    `status` is "ok", "error", "unset" or "open" (not ended when it was read). `node`, `step`,
    `namespace` and `path` are LangGraph's run metadata (`langgraph_node`, `langgraph_step`,
    `langgraph_checkpoint_ns`, `langgraph_path`), None and () outside of a graph. `usage` is what the
    span itself claims (`mlflow.chat.tokenUsage`), `model` the model it names. `origin` is the node
    that started the trace whose root this is, where it ought to be part of that node's.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    type: str
    status: str
    start_ns: int
    end_ns: int | None
    inputs: Any = None
    outputs: Any = None
    error_type: str | None = None
    error: str | None = None
    node: str | None = None
    step: int | None = None
    namespace: str | None = None
    path: tuple[Any, ...] = ()
    model: str | None = None
    usage: Usage | None = None
    origin: Origin | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    children: tuple[Span, ...] = field(default=(), repr=False)

    def walk(self) -> Iterator[Span]:
        """This span and everything below it, depth first."""
        waiting = [self]
        while waiting:
            span = waiting.pop()
            yield span
            waiting.extend(reversed(span.children))


Folded = TypeVar("Folded")


def fold(
    spans: Iterable[Span],
    below: Callable[[Span], Sequence[Span]],
    combine: Callable[[Span, Sequence[Folded]], Folded],
) -> list[Folded]:
    """What `combine` makes of each of these spans, given what it made of those `below` it.

    Without recursion: real traces nest deeper than Python's stack.
    """
    roots, made = list(spans), dict[str, Folded]()
    waiting = [(span, False) for span in reversed(roots)]
    while waiting:
        span, ready = waiting.pop()
        inner = below(span)
        if ready:
            made[span.span_id] = combine(span, [made[child.span_id] for child in inner])
        elif span.span_id not in made:
            waiting.append((span, True))
            waiting += [(child, False) for child in inner]
    return [made[span.span_id] for span in roots]


@dataclass(frozen=True, slots=True)
class Execution:
    """One run of a node, with all its attempts.

    `status` is "ok", "error", "interrupted", "cancelled" or "open"; retries are attempts of one
    execution, and the resume of an interrupt joins the execution it resumes. `error` is
    "Type: message" of the last attempt. `tokens` and `cost` include everything the node called.
    """

    node: str
    namespace: str
    step: int | None
    status: str
    attempts: int
    inputs: Any
    outputs: Any
    error: str | None
    spans: tuple[Span, ...] = field(repr=False)
    model_calls: tuple[ModelCall, ...] = field(repr=False)
    pricer: Pricer = field(repr=False, compare=False)

    @property
    def tokens(self) -> Tokens | UnknownTokens:
        return sum_tokens(self.model_calls, self.node)

    @property
    def cost(self) -> Cost:
        return sum_cost(self.model_calls, self.pricer, self.node)

    @property
    def duration(self) -> float | None:
        """Seconds of recorded model time; None where a call's time is unknown or nothing was called."""
        return sum_duration(self.model_calls)


def status_of(span: Span) -> str:
    """How a span ended, with LangGraph's exceptions that are no errors told apart."""
    if span.status != "error":
        return "ok" if span.status == "unset" else span.status
    return _NOT_ERRORS.get((span.error_type or "").rpartition(".")[2], "error")


def inside(namespace: str | None, outer: str) -> bool:
    """Whether a checkpoint namespace is `outer` or lies below it (`a:1|b:2` lies below `a:1`)."""
    return namespace is not None and (namespace == outer or namespace.startswith(outer + "|"))


def outer_of(namespace: str, among: Container[str]) -> str | None:
    """The nearest namespace above that is among these: `a:1` above `a:1|2|b:3`."""
    while "|" in namespace:
        namespace = namespace.rpartition("|")[0]
        if namespace in among:
            return namespace
    return None


def last_span(execution: Execution) -> Span:
    """The span of the last attempt."""
    return execution.spans[-1]


def tool_call(span: Span) -> ToolCall:
    """A tool span as `(name, args)`. A tool called with a bare string has `{"input": text}`."""
    args = span.inputs
    if not isinstance(args, dict):
        args = {} if args is None else {"input": args}
    return ToolCall(span.name, args)
