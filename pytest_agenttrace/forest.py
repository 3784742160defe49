"""Spans and calls, as they come, into one `Trace`: parents mended, executions found, calls paired."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from pytest_agenttrace.calls import Call, ModelCall, Pricer, path_order
from pytest_agenttrace.execution import MODEL_TYPES, Execution, Span, fold, inside, outer_of, status_of
from pytest_agenttrace.trace import Trace

__all__ = ["build_trace"]

_MODEL_METHODS = frozenset(
    {"generateContent", "streamGenerateContent", "embedContent", "batchEmbedContents", "predict"}
)
# LangGraph's name for the entry of a graph.
_ENTRY = "__start__"


def build_trace(
    spans: Iterable[Span],
    calls: Iterable[Call],
    pricer: Pricer,
    forgives: Callable[[str | None, str], bool] = lambda node, kind: False,
) -> Trace:
    """The forest of one test. Its order is a total one: run, then step, then LangGraph's path.

    `forgives` says of a node whether sums leave out its calls that report no usage ("usage") or have no price
    ("unpriced")."""
    found, moved = _brought_home(list(spans))
    index = _Index(found)
    all_calls = tuple(_moved(call, moved) for call in calls)
    if hosts := index.hosts():
        index = _Index([_hosted(span, span.namespace, hosts) for span in index.spans])
        all_calls = tuple(_hosted_call(call, hosts) for call in all_calls)
    attempts = _without_idle_entries(index.attempts(), index, all_calls)
    parents = {span.span_id: index.parent_of(span, attempts) for span in index.spans}
    model_calls = tuple(
        dataclasses.replace(
            call,
            forgiven=call.usage is None and (_injected(call) or forgives(call.node, "usage")),
            unpriced_forgiven=forgives(call.node, "unpriced"),
        )
        for call in _pair(index, all_calls)
    )
    order = _in_order(index, attempts)
    roots = _plant(index, parents, {span.span_id: rank for rank, ns in enumerate(order) for span in attempts[ns]})
    grown = {span.span_id: span for root in roots for span in root.walk()}
    executions = tuple(
        _execution(
            [grown[s.span_id] for s in attempts[ns]], [c for c in model_calls if inside(c.namespace, ns)], pricer
        )
        for ns in order
    )
    return Trace(roots, executions, model_calls, all_calls, pricer)


def _injected(call: ModelCall) -> bool:
    return call.call is not None and call.call.injected is not None


def _without_idle_entries(
    attempts: dict[str, list[Span]], index: _Index, calls: Sequence[Call]
) -> dict[str, list[Span]]:
    """`__start__` is no node of the user's: LangGraph runs it where conditional edges leave the entry. It counts only
    where a router there has called a model or a tool."""
    entries = [namespace for namespace, spans in attempts.items() if spans[0].name == _ENTRY]
    if not entries:
        return attempts
    busy = {call.caller.namespace for call in calls}
    busy |= {index.namespace_of(span) for span in index.spans if span.type in MODEL_TYPES | {"TOOL"}}
    idle = {entry for entry in entries if not any(inside(namespace, entry) for namespace in busy)}
    return {namespace: spans for namespace, spans in attempts.items() if namespace not in idle}


def _brought_home(spans: list[Span]) -> tuple[list[Span], dict[str, str]]:
    """Give traces that a node has started outside of its run their place inside the node; also which
    namespaces that changes, for the calls that bear them."""
    homes = {span.trace_id: span.origin.caller for span in spans if span.origin is not None}
    moved: dict[str, str] = {}
    placed: list[Span] = []
    for span in spans:
        home = homes.get(span.trace_id)
        if home is None or home.namespace is None:
            placed.append(span)
        elif span.origin is not None:
            placed.append(
                dataclasses.replace(span, node=home.node, step=home.step, namespace=home.namespace, path=home.path)
            )
        elif span.namespace is None or inside(span.namespace, home.namespace):
            placed.append(span)
        else:
            moved[span.namespace] = f"{home.namespace}|{span.namespace}"
            placed.append(dataclasses.replace(span, namespace=moved[span.namespace]))
    return placed, moved


def _hosted(span: Span, namespace: str | None, hosts: Mapping[str, str]) -> Span:
    """A span of a graph that does not say which node invoked it, with the namespace that does."""
    home = _inner_of(namespace, hosts)
    return span if home is None else dataclasses.replace(span, namespace=home)


def _hosted_call(call: Call, hosts: Mapping[str, str]) -> Call:
    home = _inner_of(call.caller.namespace, hosts)
    return call if home is None else dataclasses.replace(call, caller=dataclasses.replace(call.caller, namespace=home))


def _inner_of(namespace: str | None, hosts: Mapping[str, str]) -> str | None:
    """The whole namespace of what lies in one of those that `hosts` has a node for; None for anything else."""
    found, at, passed = namespace, namespace, set[str]()
    while at is not None:
        own = at if at in hosts else outer_of(at, hosts)
        if own is None or own in passed:
            break
        passed.add(own)
        at = hosts[own]
        found = f"{at}|{found}"
    return found if passed else None


def _moved(call: Call, moved: Mapping[str, str]) -> Call:
    namespace = moved.get(call.caller.namespace or "")
    if namespace is None:
        return call
    return dataclasses.replace(call, caller=dataclasses.replace(call.caller, namespace=namespace))


class _Index:
    """The spans of a test, found by id, with what LangGraph's metadata says of each."""

    def __init__(self, spans: Iterable[Span]) -> None:
        in_order = sorted(spans, key=lambda span: (span.start_ns, span.span_id))
        self.by_id = {span.span_id: span for span in in_order}
        self.spans = list(self.by_id.values())
        self._beside = {span.trace_id for span in self.spans if span.origin is not None}
        self._up: dict[str, Span] = {}
        self._placed: dict[str, Span | None] = {}
        for span in self.spans:
            parent = self._running_parent(span)
            # A circle of parents has no root: the link that would close it is left out.
            if parent is not None and parent is not span and all(above is not span for above in self.above(parent)):
                self._up[span.span_id] = parent

    def _running_parent(self, span: Span) -> Span | None:
        """The nearest recorded ancestor that was running when this span started.

        MLflow's `run_tracer_inline` leaves spans that have ended current in async code: what comes next is written
        below them, a retry below the attempt that failed."""
        passed = {span.span_id}
        at = span
        while at.parent_id is not None and at.parent_id not in passed:
            above = self.by_id.get(at.parent_id)
            if above is None or above.end_ns is None or above.end_ns >= span.start_ns:
                return above
            passed.add(above.span_id)
            at = above
        return None

    def up(self, span: Span) -> Span | None:
        return self._up.get(span.span_id)

    def above(self, span: Span) -> Iterator[Span]:
        """The recorded ancestors, nearest first."""
        at = self.up(span)
        while at is not None:
            yield at
            at = self.up(at)

    def placed(self, span: Span) -> Span | None:
        """The span itself, or the nearest ancestor, that LangGraph's metadata gives a place."""
        passed: list[str] = []
        found: Span | None = None
        for at in chain((span,), self.above(span)):
            if at.namespace is not None or at.span_id in self._placed:
                found = at if at.namespace is not None else self._placed[at.span_id]
                break
            passed.append(at.span_id)
        self._placed.update(dict.fromkeys(passed, found))
        return found

    def namespace_of(self, span: Span) -> str | None:
        placed = self.placed(span)
        return placed.namespace if placed else None

    def node_of(self, span: Span) -> str | None:
        placed = self.placed(span)
        return span.node or (placed.node if placed else None)

    def invoked(self, span: Span, home: str | None) -> int:
        """When the graph that ran this execution began: two runs of one graph restart their steps."""
        graph = next((up for up in self.above(span) if self.namespace_of(up) == home), None)
        return span.start_ns if graph is None else graph.start_ns

    def attempts(self) -> dict[str, list[Span]]:
        """Node executions: spans named as their own `langgraph_node`, the outermost per namespace.

        A tool or a chain inside a node may bear the node's name too; it has the node above it.
        """
        found: dict[str, list[Span]] = {}
        for span in self.spans:
            if span.namespace is None or span.name != span.node or span.type in MODEL_TYPES | {"TOOL"}:
                continue
            if span.origin is not None:
                continue
            if not any(up.namespace == span.namespace and up.name == span.name for up in self.above(span)):
                found.setdefault(span.namespace, []).append(span)
        return found

    def hosts(self) -> dict[str, str]:
        """The node that each outermost execution was invoked by, where its namespace does not say so: LangGraph gives
        graphs with a thread of their own, or a memory (`checkpointer=True`), namespaces that begin anew.

        Only a graph's own span between the two tells: wrong parents put a node directly below another one."""
        attempts = self.attempts()
        hosts: dict[str, str] = {}
        for namespace, spans in attempts.items():
            if outer_of(namespace, attempts) is not None:
                continue
            graph = next((up for up in self.above(spans[0]) if not self._within(up, namespace)), None)
            if graph is None or graph.namespace not in attempts or graph.type in MODEL_TYPES | {"TOOL"}:
                continue
            if all(graph is not attempt for attempt in attempts[graph.namespace]):
                hosts[namespace] = graph.namespace
        return hosts

    @staticmethod
    def _within(span: Span, namespace: str) -> bool:
        return span.namespace is None or inside(span.namespace, namespace)

    def models(self) -> list[Span]:
        """One span per call, however often nested autologs repeat it: the outermost that claims usage,
        or, where none above or below claims any, the outermost of a model."""
        claims = {span.span_id for span in self.spans if span.usage is not None}
        around = {up.span_id for span in self.spans if span.span_id in claims for up in self.above(span)}

        def is_model(span: Span) -> bool:
            if span.span_id in claims:
                return True
            return span.type in MODEL_TYPES and span.span_id not in around

        def repeats(span: Span) -> bool:
            # Wrong parents put one node below another: only what stands in the same place is a repetition.
            place = self.namespace_of(span)
            above = (up for up in self.above(span) if self.namespace_of(up) == place)
            return any(up.span_id in claims or (span.span_id not in claims and is_model(up)) for up in above)

        models = [span for span in self.spans if is_model(span) and not repeats(span)]
        return [span for span in models if not self._told_again(span, models)]

    def _told_again(self, span: Span, models: Sequence[Span]) -> bool:
        """Whether a trace of its own tells what a model's span tells already: a client that is traced too and did not
        find the span around it, as google-genai's in async code."""
        if span.trace_id not in self._beside or span.usage is None:
            return False
        place = self.namespace_of(span)
        return any(
            other.trace_id != span.trace_id
            and self.namespace_of(other) == place
            and _counts(other) == _counts(span)
            and other.start_ns <= span.start_ns
            and (span.end_ns or span.start_ns) <= (other.end_ns or span.start_ns)
            for other in models
        )

    def parent_of(self, span: Span, attempts: dict[str, list[Span]]) -> Span | None:
        """The parent by metadata where the recorded one contradicts it."""
        recorded = self.up(span)
        if span.namespace is None:
            return recorded
        is_attempt = any(span is attempt for attempt in attempts.get(span.namespace, []))
        home = outer_of(span.namespace, attempts) if is_attempt else span.namespace
        if home is not None and home not in attempts:
            home = outer_of(home, attempts)
        if recorded is not None and self.namespace_of(recorded) == home:
            return recorded
        if home is None:
            return self._climb(recorded)
        return self._execution_at(attempts[home], span)

    def _climb(self, span: Span | None) -> Span | None:
        while span is not None and self.namespace_of(span) is not None:
            span = self.up(span)
        return span

    @staticmethod
    def _execution_at(attempts: list[Span], span: Span) -> Span:
        before = [attempt for attempt in attempts if attempt.start_ns <= span.start_ns]
        return before[-1] if before else attempts[0]


def _plant(index: _Index, parents: dict[str, Span | None], order: dict[str, int]) -> tuple[Span, ...]:
    """Nest the spans. Siblings stand in order of start; executions among them in their own order, and
    so do tools, which run in parallel and start in any order."""
    below: dict[str | None, list[Span]] = {}
    for span in index.spans:
        parent = parents[span.span_id]
        below.setdefault(parent.span_id if parent else None, []).append(span)

    def ranked(span: Span) -> list[Span]:
        inner = below.get(span.span_id, [])
        return _rearranged(_rearranged(inner, order), _asked(span, inner))

    inside_of = {span.span_id: ranked(span) for span in index.spans}

    def grow(span: Span, children: Sequence[Span]) -> Span:
        return dataclasses.replace(span, children=tuple(children))

    return tuple(fold(_rearranged(below.get(None, []), order), lambda span: inside_of[span.span_id], grow))


def _rearranged(siblings: list[Span], rank: Mapping[str, int]) -> list[Span]:
    """Those that have a rank change places among themselves; the others stay."""
    places = [i for i, span in enumerate(siblings) if span.span_id in rank]
    ranked = sorted((siblings[i] for i in places), key=lambda span: rank[span.span_id])
    result = list(siblings)
    for place, span in zip(places, ranked, strict=True):
        result[place] = span
    return result


def _asked(parent: Span, siblings: list[Span]) -> dict[str, int]:
    """The place of each tool among the requests that its node was given, by the request's id."""
    ids = {span.span_id: _request_id(span) for span in siblings if span.type == "TOOL"}
    if len(ids) < 2:
        return {}
    places = {request: place for place, request in enumerate(dict.fromkeys(_requests(parent.inputs)))}
    return {span_id: places[request] for span_id, request in ids.items() if request in places}


def _request_id(span: Span) -> str | None:
    """LangChain's `tool_call_id`, from the span or from the message the tool became."""
    message = span.outputs if isinstance(span.outputs, dict) else {}
    found = span.attributes.get("tool_call_id", message.get("tool_call_id"))
    return found if isinstance(found, str) else None


def _requests(data: Any) -> Iterator[str]:
    """The ids under `tool_calls`, in order, at any depth."""
    waiting = [data]
    while waiting:
        data = waiting.pop()
        if isinstance(data, dict):
            requests = data.get("tool_calls")
            for request in requests if isinstance(requests, list) else []:
                if isinstance(request, dict) and isinstance(request.get("id"), str):
                    yield request["id"]
            data = list(data.values())
        waiting += reversed(data) if isinstance(data, list) else []


def _in_order(index: _Index, attempts: dict[str, list[Span]]) -> list[str]:
    """The namespaces of all executions: by run, step and path, what lies inside behind its outer one."""

    def key(namespace: str) -> tuple[Any, ...]:
        first = attempts[namespace][0]
        outer = outer_of(namespace, attempts)
        own = (index.invoked(first, outer), first.step or 0, path_order(first.path), namespace)
        return (own,) if outer is None else (*key(outer), own)

    return sorted(attempts, key=key)


def _execution(spans: list[Span], calls: list[ModelCall], pricer: Pricer) -> Execution:
    last = spans[-1]
    status = status_of(last)
    interrupts = sum(status_of(span) == "interrupted" for span in spans[:-1])
    return Execution(
        node=last.name,
        namespace=last.namespace or "",
        step=last.step,
        status=status,
        attempts=len(spans) - interrupts,
        inputs=spans[0].inputs,
        outputs=last.outputs,
        error=": ".join(part for part in (last.error_type, last.error) if part) or None if status == "error" else None,
        spans=tuple(spans),
        model_calls=tuple(calls),
        pricer=pricer,
    )


def _pair(index: _Index, calls: Sequence[Call]) -> tuple[ModelCall, ...]:
    """One `ModelCall` for each answered call: wire and span paired within a namespace, first where
    both count the same, then in order. What only one side saw stands alone."""
    answered = [c for c in calls if c.answered and c.endpoint.method in _MODEL_METHODS]
    models = index.models()
    spans = [span for span in models if span.status != "error" or span.usage is not None]
    failed = [span for span in models if span.status == "error" and span.usage is None]
    told = {span.span_id for span in models}
    nested = [span for span in index.spans if span.usage is not None and span.span_id not in told]
    paired: list[tuple[int, ModelCall]] = []
    groups = {c.caller.namespace for c in answered} | {index.namespace_of(s) for s in spans}
    for group in groups:
        wires = [c for c in answered if c.caller.namespace == group]
        seen = [s for s in spans if index.namespace_of(s) == group]
        seen += [s for s in failed if index.namespace_of(s) == group] if len(wires) > len(seen) else []
        paired += _pair_group(index, group, wires, seen, [s for s in nested if index.namespace_of(s) == group])
    return tuple(call for _, call in sorted(paired, key=lambda item: item[0]))


def _pair_group(
    index: _Index, namespace: str | None, wires: list[Call], models: list[Span], nested: list[Span]
) -> Iterable[tuple[int, ModelCall]]:
    """`nested` are spans that seem to repeat one above them. Where the wire knows of more calls than there are others,
    they do not: LangChain's `generate` starts the spans of all its prompts one below the other."""
    rest, spare = list(models), list(nested)
    partners: dict[int, Span] = {}
    # A broken reply may count what its repetition counts, and leaves a span that counts nothing.
    for wire in sorted(wires, key=lambda call: call.injected in ("truncated", "malformed")):
        same = next((s for s in rest if _counts(s) == _counts(wire)), None)
        if same is not None:
            partners[wire.index] = same
            rest.remove(same)
    for wire in wires:
        if wire.index not in partners and rest:
            partners[wire.index] = rest.pop(0)
    for wire in wires:
        same = next((s for s in spare if _counts(s) == _counts(wire)), None)
        if wire.index not in partners and same is not None:
            partners[wire.index] = same
            spare.remove(same)
    for wire in wires:
        span = partners.get(wire.index)
        called = ModelCall(wire.model, wire.node, namespace, wire.usage, call=wire)
        if span is None:
            yield int(wire.at * 1e9), called
        else:
            yield span.start_ns, dataclasses.replace(called, span_id=span.span_id, span_name=span.name)
    for span in rest:
        if span.status != "error":
            node = index.node_of(span)
            yield span.start_ns, ModelCall(span.model, node, namespace, span.usage, span.span_id, span.name)


def _counts(side: Call | Span) -> tuple[int | None, ...] | None:
    """What tells calls apart. The total only where it is alone: the API may leave it out, LangChain then says 0."""
    usage = side.usage
    if usage is None:
        return None
    total = usage.total_tokens if usage.input_tokens is None else None
    return usage.input_tokens, usage.output_tokens, total
