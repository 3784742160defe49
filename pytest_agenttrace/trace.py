"""A traced run as a forest that can be read, selected from and drawn.

Everything here is a frozen snapshot; `capture` makes the live one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import date as Date
from functools import cached_property
from typing import Any

from pytest_agenttrace.calls import (
    Asked,
    Call,
    ModelCall,
    Pricer,
    ToolCall,
    sum_cost,
    sum_duration,
    sum_tokens,
    sum_usage,
)
from pytest_agenttrace.execution import (
    MODEL_TYPES,
    Execution,
    Span,
    fold,
    inside,
    last_span,
    outer_of,
    status_of,
    tool_call,
)
from pytest_agenttrace.repricing import WhatIf, what_if
from pytest_agenttrace.tree import Branch, draw
from pytest_agenttrace.usage import Cost, Tokens, UnknownTokens, Usage, UsageUnknown, format_tokens, format_usd

__all__ = [
    "Execution",
    "Span",
    "SpanNotFound",
    "Trace",
    "TraceReading",
]


class SpanNotFound(LookupError):
    """No execution of that node in this trace; names the nearest node there is."""


class TraceReading(ABC):
    """Everything that can be read of a trace. `Trace` is frozen; the fixture's is live and takes a
    snapshot for each reading."""

    @abstractmethod
    def snapshot(self) -> Trace:
        """The trace as it is now, frozen."""

    @property
    def label(self) -> str:
        """What the numbers are of: the selected node, or `run`."""
        return self.snapshot()._label

    @property
    def roots(self) -> tuple[Span, ...]:
        """The outermost spans of the selection, each with its `children`."""
        return self.snapshot()._roots

    @property
    def executions(self) -> tuple[Execution, ...]:
        """The selected executions; of a whole trace, those of its outermost nodes. In order of step,
        parallel siblings by their path."""
        return self.snapshot()._executions

    @property
    def trajectory(self) -> list[str]:
        """Node names, one per execution. A subgraph is one node: `trace["sub"].trajectory` goes inside."""
        return [execution.node for execution in self.snapshot().level()]

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every exchange with the Gemini API, failed attempts included, as the wire saw them."""
        return self.snapshot()._calls

    @property
    def llm_calls(self) -> tuple[ModelCall, ...]:
        """The calls to a model that were answered."""
        return self.snapshot()._model_calls

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The tools executed, as named tuples `(name, args)`, in order."""
        return [tool_call(span) for span in self.spans(type="TOOL")]

    @property
    def usage(self) -> Usage:
        """Tokens by kind, summed over the selection; a part nobody reported is None."""
        return sum_usage(self.llm_calls)

    @property
    def tokens(self) -> Tokens | UnknownTokens:
        """Total tokens of the selection. Unknown tokens raise `UsageUnknown` when compared or added."""
        reading = self.snapshot()
        return sum_tokens(reading._model_calls, reading._label)

    @property
    def cost(self) -> Cost:
        """USD of the selection at the prices of the recording's date.

        Raises `PriceNotFound` for a model without a price, `UsageUnknown` for a call without usage.
        """
        reading = self.snapshot()
        return sum_cost(reading._model_calls, reading._pricer, reading._label)

    @property
    def tokens_by_node(self) -> dict[str, Tokens | UnknownTokens]:
        """Tokens of each node of the trajectory, summed over its executions, subgraphs included."""
        return {node: sum_tokens(calls, node) for node, calls in self.snapshot().calls_by_node().items()}

    @property
    def cost_by_node(self) -> dict[str, Cost]:
        """USD of each node of the trajectory, summed over its executions, subgraphs included."""
        reading = self.snapshot()
        return {node: sum_cost(calls, reading._pricer, node) for node, calls in reading.calls_by_node().items()}

    def reprice(self, model: str | Mapping[str, str] | None = None, date: Date | str | None = None) -> Trace:
        """The same usage on another model, or at the prices of another day: a frozen trace with those costs.

        `model` is a name that stands for all chat models, or a dict {old: new}; `date` a date, a datetime, ISO text or
        "today". A model without a price raises `PriceNotFound` where a cost is read; LookupError for an old model that
        nobody asked, ValueError for what is no model or no day.
        """
        return self.snapshot().repriced(what_if(model, date))

    @property
    def duration(self) -> float | None:
        """Seconds of recorded model time; None where unknown."""
        return sum_duration(self.llm_calls)

    @property
    def outline(self) -> list[Any]:
        """Nested plain data of nodes (`{name: [...]}`), tools (`"name()"`) and models (`"name"`), for `==`. A model
        for which Google ran tools of its own has them behind it: `"name [google_search]"`."""
        reading = self.snapshot()
        return [entry for entries in fold(reading._roots, reading._below, reading._outlined) for entry in entries]

    def spans(self, *, name: str | None = None, type: str | None = None) -> list[Span]:
        """The spans of the selection, depth first, filtered by name and MLflow span type ("TOOL")."""
        return [
            span
            for root in self.roots
            for span in root.walk()
            if (name is None or span.name == name) and (type is None or span.type == type)
        ]

    def __getitem__(self, node: str) -> Trace:
        __tracebackhide__ = True
        return self.snapshot().select(node)

    def __contains__(self, node: object) -> bool:
        return any(execution.node == node for execution in self.snapshot().below())

    def __iter__(self) -> Iterator[Execution]:
        return iter(self.executions)

    def __len__(self) -> int:
        return len(self.executions)

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return self.snapshot().drawn()


class Trace(TraceReading):
    """A frozen trace, or the part of one that was selected. Made by `forest.build_trace`."""

    def __init__(
        self,
        roots: tuple[Span, ...],
        executions: tuple[Execution, ...],
        model_calls: tuple[ModelCall, ...],
        calls: tuple[Call, ...],
        pricer: Pricer,
        *,
        selected: tuple[Execution, ...] | None = None,
        label: str = "run",
    ) -> None:
        self._roots = roots
        self._all = executions
        self._model_calls = model_calls
        self._calls = calls
        self._pricer = pricer
        self._selected = selected
        self._label = label
        self._executions = self.level() if selected is None else selected
        self._execution_of = {span.span_id: execution for execution in executions for span in execution.spans}
        self._call_of = {call.span_id: call for call in model_calls if call.span_id is not None}

    def snapshot(self) -> Trace:
        return self

    def __repr__(self) -> str:
        of = "" if self._selected is None else f" of {self._label}"
        return f"<Trace{of}: {' > '.join(self.trajectory) or f'{len(self._roots)} spans'}>"

    @property
    def pricer(self) -> Pricer:
        return self._pricer

    def below(self) -> list[Execution]:
        """Every execution of the selection at any depth, the selected ones left out."""
        if self._selected is None:
            return list(self._all)
        chosen = {execution.namespace for execution in self._selected}
        return [e for e in self._all if e.namespace not in chosen and outer_of(e.namespace, chosen) is not None]

    def level(self) -> tuple[Execution, ...]:
        """The executions of the trajectory: the outermost ones, or those just inside the selection."""
        below = self.below()
        spaces = {execution.namespace for execution in below}
        return tuple(execution for execution in below if outer_of(execution.namespace, spaces) is None)

    def calls_by_node(self) -> dict[str, list[ModelCall]]:
        by_node: dict[str, list[ModelCall]] = {}
        for execution in self.level():
            by_node.setdefault(execution.node, []).extend(execution.model_calls)
        return by_node

    def select(self, node: str) -> Trace:
        __tracebackhide__ = True
        if not isinstance(node, str):
            raise TypeError(f"a trace is indexed by the name of a node, not by {type(node).__name__}")
        below = self.below()
        chosen = tuple(execution for execution in below if execution.node == node)
        if not chosen:
            raise SpanNotFound(not_found(node, [execution.node for execution in below]))
        spaces = {execution.namespace for execution in chosen}
        outermost = [execution for execution in chosen if outer_of(execution.namespace, spaces) is None]
        return Trace(
            tuple(span for execution in outermost for span in execution.spans),
            self._all,
            tuple(call for call in self._model_calls if any(inside(call.namespace, space) for space in spaces)),
            tuple(call for call in self._calls if any(inside(call.caller.namespace, space) for space in spaces)),
            self._pricer,
            selected=chosen,
            label=node,
        )

    def repriced(self, instead: WhatIf) -> Trace:
        """This trace or selection with other prices. What has no price then is no fault of the run's."""
        instead.check(self._model_calls)
        price = self._quiet()
        made = {
            execution.namespace: dataclasses.replace(
                execution, model_calls=tuple(map(instead.of, execution.model_calls)), pricer=price
            )
            for execution in self._all
        }
        return Trace(
            self._roots,
            tuple(made.values()),
            tuple(map(instead.of, self._model_calls)),
            self._calls,
            price,
            selected=None if self._selected is None else tuple(made[e.namespace] for e in self._selected),
            label=self._label,
        )

    def _quiet(self) -> Pricer:
        """The pricer for what nobody has asked: a drawn tree, a what-if."""
        return self._pricer.price if isinstance(self._pricer, Asked) else self._pricer

    def model_call_of(self, span: Span) -> ModelCall | None:
        """The model call that was paired with a span."""
        return self._call_of.get(span.span_id)

    def model_calls_of(self, span: Span) -> tuple[ModelCall, ...]:
        """The calls whose sum stands beside a span in the drawn tree: those of a run or of an execution, the one that
        was paired with it; none beside any other span, nor beside an attempt before the last."""
        execution = self.execution_of(span)
        if execution is not None and span is not last_span(execution):
            return ()
        call = self.model_call_of(span) if execution is None else None
        return self._calls_of(span, execution, call, any(span is root for root in self._roots))

    def execution_of(self, span: Span) -> Execution | None:
        """The execution that has this span as an attempt."""
        return self._execution_of.get(span.span_id)

    @cached_property
    def _failed(self) -> dict[str, list[str]]:
        """The calls that got no answer and left no row, by the span to tell them beside: that of the one model that
        was running then, else the execution's. A client's own retries leave no other trace."""
        failed: dict[str, list[str]] = {}
        for call in self._calls:
            if call.answered or call.injected is not None or not call.endpoint.chat:
                continue
            running = [s for s in self._rows.get(call.caller.namespace, ()) if _during(s, call)]
            execution = next((e for e in self._all if e.namespace == call.caller.namespace), None)
            beside = running[0] if len(running) == 1 else last_span(execution) if execution is not None else None
            if beside is not None:
                failed.setdefault(beside.span_id, []).append("no reply" if call.status is None else str(call.status))
        return {span_id: words for span_id, statuses in failed.items() if (words := self._told(span_id, statuses))}

    def _told(self, span_id: str, statuses: list[str]) -> list[str]:
        if span_id in self._execution_of:
            return [f"failed calls: {', '.join(statuses)}"]
        # The last failure of a model that failed is its error.
        before = statuses if span_id in self._call_of else statuses[:-1]
        return [f"after {', '.join(before)}"] if before else []

    @cached_property
    def _rows(self) -> dict[str | None, list[Span]]:
        """The spans that are drawn as a call to a model, by the namespace they are in."""
        rows: dict[str | None, list[Span]] = {}
        waiting: list[tuple[Span, str | None]] = [(root, None) for root in self._roots]
        while waiting:
            span, outer = waiting.pop()
            namespace = span.namespace or outer
            is_failed = span.type in MODEL_TYPES and status_of(span) == "error"
            if span.span_id in self._call_of or is_failed:
                rows.setdefault(namespace, []).append(span)
            else:
                waiting += [(child, namespace) for child in span.children]
        return rows

    def _outlined(self, span: Span, below: Sequence[list[Any]]) -> list[Any]:
        inner = [entry for entries in below for entry in entries]
        if (execution := self.execution_of(span)) is not None:
            return [{execution.node: inner}] if span is last_span(execution) else []
        if span.type == "TOOL":
            return [f"{span.name}()", *inner]
        if (call := self.model_call_of(span)) is not None:
            return [" ".join([call.model or span.name, *_served(call)]), *inner]
        return inner

    def drawn(self, *, about: Container[str] = (), depth: int = 1, ascii_only: bool = False) -> str:
        """The tree as text. `depth` 0 shows nodes, 1 also models and tools, 2 every span. `about` names
        the nodes a failure is about (`run`: the whole of it), marked `>`; errors are marked `!`."""

        def branches(span: Span, below: Sequence[tuple[Branch, ...]]) -> tuple[Branch, ...]:
            return self._branches(span, tuple(branch for inner in below for branch in inner), about, depth)

        drawn = [branch for found in fold(self._roots, self._below, branches) for branch in found]
        return draw(drawn, ascii_only=ascii_only) if drawn else "(nothing traced)"

    def _branches(
        self, span: Span, children: tuple[Branch, ...], about: Container[str], depth: int
    ) -> tuple[Branch, ...]:
        execution = self.execution_of(span)
        if execution is not None and span is not last_span(execution):
            return ()
        call = self.model_call_of(span) if execution is None else None
        is_root = any(span is root for root in self._roots)
        failed = (execution.status if execution is not None else status_of(span)) == "error"
        leaf = call is not None or span.type == "TOOL" or failed
        if not (is_root or execution or (depth >= 1 and leaf) or depth >= 2):
            return children
        calls = self._calls_of(span, execution, call, is_root)
        named = execution.node if execution is not None else self._label if is_root else None
        mark = "!" if failed else ">" if named is not None and named in about else " "
        facts = [*_facts(call, execution), *self._failed.get(span.span_id, ())]
        return (
            Branch(
                label=_named(call, span) if call else span.name,
                cells=self._cells(calls, timed=call is None),
                note=", ".join([*facts, *_faults(self._injected(span, execution, call, is_root))]),
                tag="[tool]" if span.type == "TOOL" else " ".join(_served(call)),
                mark=mark,
                children=children,
            ),
        )

    def _below(self, span: Span) -> tuple[Span, ...]:
        """What is told below a span: below an execution, what all its attempts did."""
        execution = self.execution_of(span)
        if execution is None:
            return span.children
        return tuple(child for attempt in execution.spans for child in attempt.children)

    def _calls_of(
        self, span: Span, execution: Execution | None, call: ModelCall | None, is_root: bool
    ) -> tuple[ModelCall, ...]:
        if execution is not None:
            return execution.model_calls
        if call is not None:
            return (call,)
        if not is_root:
            return ()
        ids = {below.span_id for below in span.walk()}
        # A call without a span of its own is drawn where its execution ended: once, also after a resume.
        spaces = [e.namespace for e in self._all if last_span(e).span_id in ids]
        return tuple(
            c
            for c in self._model_calls
            if c.span_id in ids or (c.span_id is None and any(inside(c.namespace, space) for space in spaces))
        )

    def _injected(self, span: Span, execution: Execution | None, call: ModelCall | None, is_root: bool) -> list[Call]:
        """The calls that a fault was put into, to be told beside a span: all of an execution, and what a run asked
        outside of any."""
        if execution is not None:
            return [c for c in self._calls if c.injected and c.caller.namespace == execution.namespace]
        own = [call.call] if call is not None and call.call is not None and call.call.injected else []
        if not is_root:
            return own
        until = span.end_ns or math.inf
        bare = [c for c in self._calls if c.injected and c.caller.namespace is None and c not in own]
        return [*(c for c in bare if span.start_ns <= c.at * 1e9 <= until), *own]

    def _cells(self, calls: tuple[ModelCall, ...], *, timed: bool) -> tuple[str, ...]:
        if not calls:
            return ()
        return (
            _seconds(sum_duration(calls)) if timed else "",
            "-" if isinstance(tokens := sum_tokens(calls, ""), UnknownTokens) else f"{format_tokens(tokens)} tok",
            self._priced(calls),
        )

    def _priced(self, calls: tuple[ModelCall, ...]) -> str:
        try:
            return format_usd(sum_cost(calls, self._quiet(), ""))
        except (LookupError, UsageUnknown):
            return "-"


def _during(span: Span, call: Call) -> bool:
    return span.start_ns <= call.at * 1e9 <= (span.end_ns or math.inf)


def _named(call: ModelCall, span: Span) -> str:
    name = call.model or span.name
    return name if call.priced_as in (None, call.model) else f"{name} as {call.priced_as}"


def _seconds(duration: float | None) -> str:
    if duration is None:
        return "-"
    return f"{duration:.1f} s" if duration >= 0.1 else f"{duration * 1000:.0f} ms"


def _faults(injected: Sequence[Call]) -> list[str]:
    """The faults that a test has put into some calls."""
    counted = Counter(found.injected for found in injected)
    return [f"injected: {name}" + (f" ({count})" if count > 1 else "") for name, count in counted.items()]


def _served(call: ModelCall | None) -> list[str]:
    """The mark of the tools that Google ran itself: `[google_search]`."""
    return [f"[{', '.join(call.server_tools)}]"] if call is not None and call.server_tools else []


def _facts(call: ModelCall | None, execution: Execution | None) -> list[str]:
    """What stands behind the columns: the call's two halves, or what became of the execution."""
    if call is not None:
        usage = call.usage
        if usage is None or usage.input_tokens is None or usage.output_tokens is None:
            return []
        cached = usage.cache_read_input_tokens
        of_it = f" ({format_tokens(cached)} cached)" if cached is not None and cached > 0 else ""
        return [f"{format_tokens(usage.input_tokens)} in{of_it}", f"{format_tokens(usage.output_tokens)} out"]
    if execution is None:
        return []
    facts = [f"{execution.attempts} attempts"] if execution.attempts > 1 else []
    if execution.status in ("interrupted", "cancelled", "open"):
        facts.append(execution.status)
    if execution.error and execution.status == "error":
        facts.append(execution.error.splitlines()[0][:80])
    return facts


def not_found(node: str, names: list[str]) -> str:
    """`no node 'reserch' in this trace; did you mean 'research'? It has: research, write`."""
    known = list(dict.fromkeys(names))
    if not known:
        return f"no node {node!r} in this trace: it has no nodes at all"
    near = difflib.get_close_matches(node, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"no node {node!r} in this trace{hint} It has: {', '.join(known)}"
