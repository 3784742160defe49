"""Why a test has no trace: the first cause that fits, its evidence, and the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_agenttrace.settings import Finding, Tolerance
from pytest_agenttrace.trace import Trace

if TYPE_CHECKING:
    from pytest_agenttrace.calls import Call
    from pytest_agenttrace.replay import GeminiCassette
    from pytest_agenttrace.store import MlflowStore

__all__ = ["why_nothing", "why_untraced"]

_NOT_YET = "Call the graph before its trace is read; consume its stream, await its coroutine."
# Seconds of CPU time below which another program has run no graph.
_A_PROGRAM = 0.2


def why_nothing(store: MlflowStore, cassette: GeminiCassette) -> str:
    """Why neither the trace nor the wire has seen anything."""
    if store.foreign_threads:
        return f"nothing was traced but by threads that an earlier test left behind: {', '.join(store.foreign_threads)}"
    if cassette.misses:
        return "nothing was traced: the first call had no recorded reply"
    if store.export_errors:
        return _lost(store)
    if (obstacle := store.obstacle) is not None:
        return f"nothing was traced: {obstacle.cause}\n  {obstacle.way_out}"
    if threads := store.running_threads:
        running = "a thread is" if len(threads) == 1 else f"{len(threads)} threads are"
        return (
            f"nothing was traced: {running} still running ({', '.join(threads)})\n"
            "  Join what runs the graph before its trace is read."
        )
    ran = "nothing was traced: no graph, chain or model ran"
    if (seconds := store.programs_ran) >= _A_PROGRAM:
        return (
            f"{ran} in this process\n  programs that the test has started ran for {seconds:.1f} s\n"
            "  What runs in another process is not traced here: call the graph in the test."
        )
    return f"{ran}\n  {_NOT_YET}"


def why_untraced(store: MlflowStore, trace: Trace, tolerance: Tolerance) -> str | None:
    """Why MLflow has seen nothing of what went over the wire; None where it has, where the client is one that MLflow
    does not see, or where calls without a span are forgiven."""
    calls = [called.call for called in trace.llm_calls if called.call is not None]
    if not calls or any(called.span_id is not None for called in trace.llm_calls) or trace.executions:
        return None
    if all(_forgiven(call, tolerance) for call in calls):
        return None
    if store.export_errors:
        return _lost(store)
    what = "no node was traced" if trace.roots else "nothing was traced"
    if (obstacle := store.obstacle) is not None:
        return f"{what}: {obstacle.cause}\n  {_asked(calls)}\n  {obstacle.way_out}"
    if not any(call.node for call in calls):
        return None
    return (
        f"{what}: MLflow's tracer has left no span\n  {_asked(calls)}\n"
        "  Something replaces a part of MLflow or of OpenTelemetry: mock what is your own."
    )


def _forgiven(call: Call, tolerance: Tolerance) -> bool:
    return tolerance.covers(Finding("uncounted", call.node, ""), tolerance.allow | tolerance.warn)


def _lost(store: MlflowStore) -> str:
    return f"nothing was traced: MLflow failed to store it\n  {store.export_errors[0]}"


def _asked(calls: Sequence[Call]) -> str:
    by = calls[0].node
    first = f"by {by}" if by is not None else "outside of any graph"
    return f"1 call was made, {first}" if len(calls) == 1 else f"{len(calls)} calls were made, the first {first}"
