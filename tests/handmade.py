"""Spans and calls made by hand: the pure rooms are tested without MLflow, LangGraph or a network."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from hypothesis import settings

from pytest_agenttrace.calls import Call, Caller, Endpoint, ModelCall
from pytest_agenttrace.forest import build_trace
from pytest_agenttrace.trace import Span, Trace
from pytest_agenttrace.usage import Usage

# The same examples in every run, and nothing left behind: a failure of the suite is a failure everywhere.
settings.register_profile("suite", max_examples=40, deadline=None, database=None, derandomize=True)
settings.load_profile("suite")

FLASH = "gemini-2.5-flash"


def tokens(input_tokens: int, output_tokens: int) -> Usage:
    return Usage(input_tokens, output_tokens, input_tokens + output_tokens)


def dollar_per_million(call: ModelCall) -> Decimal:
    """A price that can be read off: 4,601 tokens cost $0.004601. The model `unpriced` has none."""
    if call.model == "unpriced":
        raise LookupError(f"no price is known for {call.model!r}")
    assert call.usage is not None
    assert call.usage.total_tokens is not None
    return Decimal(f"{call.usage.total_tokens}E-6")


class Run:
    """The flat spans of one trace as they would be stored, each one later than the one before; all of them run until
    long after the last one has started, unless `end_ns` says otherwise."""

    def __init__(self, trace_id: str = "t1", start: int = 1_000_000) -> None:
        self.trace_id = trace_id
        self.spans: list[Span] = []
        self._now = start

    def add(self, name: str, parent: Span | None = None, *, type: str = "CHAIN", **fields: Any) -> Span:
        self._now += 1_000
        start = fields.pop("start_ns", self._now)
        made = Span(
            trace_id=self.trace_id,
            span_id=fields.pop("span_id", f"{self.trace_id}-{len(self.spans):03}"),
            parent_id=parent.span_id if parent else None,
            name=name,
            type=type,
            status=fields.pop("status", "ok"),
            start_ns=start,
            end_ns=fields.pop("end_ns", start + 100_000_000),
            **fields,
        )
        self.spans.append(made)
        return made

    def graph(self, name: str = "LangGraph", parent: Span | None = None, **fields: Any) -> Span:
        """A compiled graph: inside of a node it bears that node's metadata."""
        return self.add(name, parent, **(placed(parent) | fields))

    def node(self, name: str, parent: Span | None, step: int, namespace: str, **fields: Any) -> Span:
        """One attempt of a node, with the metadata LangGraph gives it."""
        path = fields.pop("path", ("__pregel_pull", name))
        return self.add(name, parent, node=name, step=step, namespace=namespace, path=path, **fields)

    def model(self, parent: Span | None, usage: Usage | None, **fields: Any) -> Span:
        name = fields.pop("name", "ChatGoogleGenerativeAI")
        fields = {"model": FLASH, "type": "CHAT_MODEL", "usage": usage} | placed(parent) | fields
        return self.add(name, parent, **fields)

    def tool(self, parent: Span | None, name: str, **fields: Any) -> Span:
        return self.add(name, parent, type="TOOL", **(placed(parent) | fields))


def placed(parent: Span | None) -> dict[str, Any]:
    if parent is None:
        return {}
    return {"node": parent.node, "step": parent.step, "namespace": parent.namespace, "path": parent.path}


def call(index: int, by: Span | None, usage: Usage | None, *, status: int = 200, **fields: Any) -> Call:
    """An exchange made by the node of a span (None: outside of any), while that span ran."""
    caller = Caller(by.node, by.step, by.namespace, by.path) if by else Caller()
    endpoint = Endpoint(fields.pop("method", "generateContent"), fields.pop("model", FLASH), False, False, False)
    fields.setdefault("at", (by.start_ns + 100) / 1e9 if by else 0.0)
    return Call(index, caller, endpoint, status, usage, **fields)


def built(*runs: Run, calls: Iterable[Call] = ()) -> Trace:
    return build_trace([span for run in runs for span in run.spans], calls, dollar_per_million)


def shape(span: Span) -> Any:
    """A span and all below it, as nested names."""
    return span.name if not span.children else {span.name: [shape(child) for child in span.children]}
