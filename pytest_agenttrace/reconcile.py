"""Trace and calls -> findings: what the two witnesses do not agree on, one cause, one message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_agenttrace.calls import Call, ModelCall
from pytest_agenttrace.execution import MODEL_TYPES
from pytest_agenttrace.settings import Finding
from pytest_agenttrace.trace import Span, Trace
from pytest_agenttrace.usage import TraceTotal, Usage, format_tokens

__all__ = ["Evidence", "Finding", "find"]

# What a request without a reply brings about by itself: naming it again would be a second message.
_CAUSED_BY_A_MISS = frozenset({"unused", "uncounted", "uncalled", "usage", "empty", "export", "orphans"})
_THREAD = (
    "A bare thread loses the run's context, so MLflow files what it does as a trace of its own.\n"
    "  Hand the context over: pool.submit(contextvars.copy_context().run, function)"
)
_CONTEXT = (
    "MLflow did not see the run that this is part of.\n"
    "  In async code: @pytest.mark.agent_trace(run_tracer_inline=True)"
)
_RUN = (
    "MLflow saw nothing of this run of the node. Of runs that follow each other in one async task it loses some\n"
    "  with run_tracer_inline=True: leave that out, or await asyncio.create_task(...) for each run."
)
# What both witnesses count, and MLflow's traces too: the first four of `Usage`.
_COUNTS = ("input_tokens", "output_tokens", "total_tokens", "cache_read_input_tokens")
_UNSEEN = (
    "  MLflow saw nothing of this call: trace the client it was made with\n"
    '  (raw google-genai: @pytest.mark.agent_trace(autolog=["langchain", "gemini"])).'
)
# Judged only where the body of the test ended by itself.
_NEED_THE_WHOLE_RUN = frozenset({"unused", "usage", "uncalled", "uncounted", "empty", "orphans"})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a test left behind, beside its trace. Misses, refused connections and unused replies are `(node, text)`.

    `totals` is what MLflow says of whole traces; `counts_cache` whether it keeps the cached part of the input."""

    trace: Trace | None
    misses: Sequence[tuple[str | None, str]] = ()
    refused: Sequence[tuple[str | None, str]] = ()
    unused: Sequence[tuple[str | None, str]] = ()
    export_errors: Sequence[str] = ()
    totals: Sequence[TraceTotal] = ()
    counts_cache: bool = True
    ended: bool = True
    traced: bool = True
    nothing: str = "nothing was traced"
    # What keeps MLflow from tracing graphs, and the way out; None where nothing does.
    obstacle: tuple[str, str] | None = None


def find(evidence: Evidence) -> list[Finding]:
    """Every finding of a test, most telling first. A miss silences what it brings about."""
    found = [Finding("missing", node, text) for node, text in evidence.misses]
    found += [Finding("network", node, text) for node, text in evidence.refused]
    found += [Finding("export", None, f"MLflow failed to store: {text}") for text in evidence.export_errors]
    if evidence.trace is None:
        found += [Finding("empty", None, evidence.nothing)] if evidence.traced else []
    elif evidence.traced:
        found += _witnesses(evidence.trace, evidence.counts_cache, evidence.obstacle)
        found += _totals(evidence.trace, evidence.totals)
    found += [Finding("unused", node, text) for node, text in evidence.unused]
    if evidence.misses:
        found = [f for f in found if f.kind not in _CAUSED_BY_A_MISS]
    if not evidence.ended:
        found = [f for f in found if f.kind not in _NEED_THE_WHOLE_RUN]
    return found


def _witnesses(trace: Trace, counts_cache: bool, obstacle: tuple[str, str] | None) -> list[Finding]:
    spans = {span.span_id: span for root in trace.roots for span in root.walk()}
    found = _orphans(
        [span for span in spans.values() if span.origin is not None and _beside_a_run(span, trace)], obstacle
    )
    lost: dict[str | None, list[Call]] = {}
    for called in trace.llm_calls:
        span = spans.get(called.span_id) if called.span_id is not None else None
        # What a fault did to a reply is no disagreement.
        if called.call is not None and called.call.injected is not None:
            continue
        if called.call is not None and span is None:
            if not called.call.endpoint.chat:
                continue  # LangChain tells no tracer of embeddings
            if called.namespace is None or _node_was_traced(called.call, spans.values()):
                found.append(_uncounted(called.call, obstacle))
            else:
                lost.setdefault(called.node, []).append(called.call)
        elif called.call is not None and span is not None:
            found += _usage(called.call, span, counts_cache)
        elif span is not None and span.usage is not None and _speaks_to_gemini(span):
            found.append(_uncalled(called, span))
    return found + [_lost(calls) for calls in lost.values()]


def _beside_a_run(span: Span, trace: Trace) -> bool:
    """Whether a trace ought to be part of a run: a node has started it, or a model was called in a bare thread
    while a graph was running, by whatever node had asked for it."""
    if span.origin is None or span.origin.caller.namespace is not None:
        return span.origin is not None
    if span.type not in MODEL_TYPES:
        return False
    spans = [own for execution in trace.executions for own in execution.spans]
    return any(own.start_ns <= span.start_ns <= (own.end_ns or span.start_ns) for own in spans)


def _orphans(roots: Sequence[Span], obstacle: tuple[str, str] | None) -> list[Finding]:
    """One finding for each node and way: what a node starts in a bare thread, it mostly starts often."""
    groups: dict[tuple[str | None, bool], list[Span]] = {}
    for span in roots:
        if span.origin is not None:
            groups.setdefault((span.origin.caller.node, span.origin.thread is not None), []).append(span)
    stopped = None if obstacle is None else "\n  ".join(obstacle)
    return [
        Finding(
            "orphans", node, f"{_node(node)}: {_outside(spans)}\n  {stopped or (_THREAD if in_thread else _CONTEXT)}"
        )
        for (node, in_thread), spans in groups.items()
    ]


def _outside(spans: Sequence[Span]) -> str:
    names = ", ".join(dict.fromkeys(span.name for span in spans))
    count = "a trace" if len(spans) == 1 else f"{len(spans)} traces"
    threads = list(dict.fromkeys(span.origin.thread for span in spans if span.origin and span.origin.thread))
    where = f", started in {'thread' if len(threads) == 1 else 'threads'} {', '.join(threads[:3])}" if threads else ""
    return f"{count} outside of the run ({names}{where}{', ...' if len(threads) > 3 else ''})"


def _speaks_to_gemini(span: Span) -> bool:
    """Whether a call was due: fakes and other providers never touch this wire."""
    metadata = span.attributes.get("metadata")
    provider = metadata.get("ls_provider") if isinstance(metadata, dict) else None
    return provider in ("google_genai", "google_vertexai", "google_anthropic_vertex") or span.name.startswith(
        ("ChatGoogleGenerativeAI", "ChatVertexAI")
    )


def _node(node: str | None) -> str:
    return node or "(no node)"


def _uncounted(call: Call, obstacle: tuple[str, str] | None) -> Finding:
    unseen = _UNSEEN
    if call.endpoint.streaming:
        unseen += f"\n  MLflow sees no streams of raw google-genai. {_forgive(call.node, 'uncounted')}"
    why = unseen if obstacle is None else f"  {obstacle[0]}\n  {obstacle[1]}"
    tokens = "tokens unknown" if call.usage is None else _said(call.usage)
    return Finding(
        "uncounted",
        call.node,
        f"{_node(call.node)}, call {call.index}: {tokens} on the wire, no span in the trace\n  {call.endpoint}\n{why}",
    )


def _node_was_traced(call: Call, spans: Iterable[Span]) -> bool:
    """Whether a span of the node that made a call was running then."""
    at = call.at * 1e9
    return any(span.namespace == call.caller.namespace and span.start_ns <= at <= (span.end_ns or at) for span in spans)


def _lost(calls: Sequence[Call]) -> Finding:
    """Calls of one node that MLflow has traced nothing of, not even the node."""
    first, others = calls[0], [str(call.index) for call in calls[1:]]
    tokens = "tokens unknown" if first.usage is None else _said(first.usage)
    same = f"\n  the same for {'call' if len(others) == 1 else 'calls'} {', '.join(others)}" if others else ""
    return Finding(
        "uncounted",
        first.node,
        f"{_node(first.node)}, call {first.index}: {tokens} on the wire, no span in the trace{same}\n"
        f"  {first.endpoint}\n  {_RUN}",
    )


def _uncalled(called: ModelCall, span: Span) -> Finding:
    return Finding(
        "uncalled",
        called.node,
        f"{_node(called.node)}: span {span.name} claims {_said(span.usage)}, no call was made\n"
        "  A cached reply is counted as if it had been paid for.\n"
        f"  {_forgive(called.node, 'uncalled')}",
    )


def _usage(call: Call, span: Span, counts_cache: bool) -> list[Finding]:
    wire, claimed = call.usage, span.usage
    # Embeddings report no usage, or one that MLflow's span does not take over.
    if claimed is None and (wire is None or not call.endpoint.chat):
        return []
    differences = _differences(wire, claimed, counts_cache)
    if not differences:
        return []
    return [
        Finding(
            "usage",
            call.node,
            f"{_node(call.node)}, call {call.index}: the span's tokens are not the wire's\n"
            f"  {call.endpoint}\n" + "\n".join(f"  {line}" for line in differences) + "\n"
            f"  The wire's are billed. {_forgive(call.node, 'usage')}",
        )
    ]


def _forgive(node: str | None, kind: str) -> str:
    return f'If it is known: @pytest.mark.agent_trace(allow=["{f"{node}:" if node else ""}{kind}"])'


def _differences(wire: Usage | None, claimed: Usage | None, counts_cache: bool) -> list[str]:
    lines: list[str] = []
    for name in _COUNTS:
        billed = None if wire is None else getattr(wire, name)
        traced = None if claimed is None else getattr(claimed, name)
        if name == "total_tokens" and not lines and not traced and claimed is not None:
            continue  # the API leaves a total out, LangChain then says 0: the parts agree
        # Nothing cached is counted as 0 by one and left out by the other.
        if name == "cache_read_input_tokens" and (not counts_cache or not (billed or traced)):
            continue
        if billed != traced:
            lines.append(f"{name}: wire {_count(billed)}, span {_count(traced)}")
    return lines


def _totals(trace: Trace, totals: Sequence[TraceTotal]) -> list[Finding]:
    """What MLflow says of whole traces against the spans in them: some versions count spans twice."""
    spans: dict[str, list[Span]] = {}
    for root in trace.roots:
        for span in root.walk():
            spans.setdefault(span.trace_id, []).append(span)
    found = []
    for total in totals:
        inside = spans.get(total.trace_id, [])
        if not inside or any(span.status == "open" for span in inside):
            continue
        stated, claimed = total.usage or Usage(), _claimed(inside)
        lines = [
            f"{name}: trace {_count(one)}, spans {_count(other)}"
            for name in _COUNTS
            # A count of 0 that only one of them gives says what the other says by leaving it out.
            if (one := getattr(stated, name)) != (other := getattr(claimed, name)) and (one or other)
        ]
        if lines and not _is_billed(stated, trace, inside):
            root = next((span for span in inside if span.parent_id is None), inside[0])
            text = f"run: MLflow's total of the trace {root.name} is not the sum of its spans"
            known = f"MLflow's own pages show the trace's. {_forgive(None, 'usage')}"
            found.append(Finding("usage", None, "\n  ".join([text, *lines, known])))
    return found


def _is_billed(stated: Usage, trace: Trace, spans: Sequence[Span]) -> bool:
    """Whether a trace's total is what the wire says: then it is a span that is wrong, and told by itself."""
    ids = {span.span_id for span in spans}
    paired = [called for called in trace.llm_calls if called.span_id in ids and called.call is not None]
    alone = [called for called in trace.llm_calls if called.span_id is None]
    sums = [Usage.sum(called.usage or Usage() for called in calls) for calls in (paired, [*paired, *alone])]
    return any((stated.input_tokens, stated.output_tokens) == (wire.input_tokens, wire.output_tokens) for wire in sums)


def _claimed(spans: Sequence[Span]) -> Usage:
    """The outermost claims of a trace's spans, by their recorded parents, added up."""
    by_id = {span.span_id: span for span in spans}

    def repeats(span: Span) -> bool:
        seen, above = {span.span_id}, span.parent_id
        while above in by_id and above not in seen:
            if by_id[above].usage is not None:
                return True
            seen.add(above)
            above = by_id[above].parent_id
        return False

    claims = [span.usage for span in spans if span.usage is not None and not repeats(span)]
    if not claims:
        return Usage()
    added = [sum(getattr(usage, name) or 0 for usage in claims) for name in _COUNTS]
    return Usage(added[0], added[1], added[2], added[3])


def _count(value: int | None) -> str:
    return "-" if value is None else format_tokens(value)


def _said(usage: Usage | None) -> str:
    total = None if usage is None else usage.total_tokens
    return f"{_count(total)} tokens"
