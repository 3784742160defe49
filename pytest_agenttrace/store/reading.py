"""What a store holds, read through MLflow's client: its own entities, and these as plain spans."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.execution import Span
from pytest_agenttrace.store.database import Database, StoreError
from pytest_agenttrace.store.exporter import Session
from pytest_agenttrace.store.spans import read_span

if TYPE_CHECKING:
    from mlflow.entities import Trace

__all__ = ["read_open", "read_stored", "read_traces"]


def read_traces(client: Any, database: Database, seeded: Container[str] = ()) -> list[Trace]:
    """All traces of the store but the seed's, in order of their start. StoreError names the one that cannot be read."""
    locations = [str(number) for number in database.experiments()]
    try:
        found = (trace for trace in _pages(client, locations) if trace.info.trace_id not in seeded)
        return sorted(found, key=_start)
    except StoreError:
        raise
    except Exception as error:
        which = _unreadable(client, locations)
        raise StoreError(f"{which} in {database.path} cannot be read: {_reason(error)}{_MOCKED}") from None


# How many traces are read one by one to find the one that is broken.
_MOST_ASKED = 500
_MOCKED = "\n  Something has changed its rows, or replaces a part of MLflow, json or time while the trace is read."


def _reason(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first[:200]}"


def _pages(client: Any, locations: list[str]) -> Iterator[Trace]:
    seen: set[str | None] = {None}
    token: str | None = None
    while True:
        page = client.search_traces(locations=locations, max_results=500, page_token=token)
        token = getattr(page, "token", None)
        if not isinstance(page, list) or not isinstance(token, str | None):
            raise StoreError(f"MLflow's search_traces gave a {type(page).__name__}, and no list of traces{_MOCKED}")
        yield from page
        if not token:
            return
        if token in seen:
            raise StoreError(f"MLflow's search_traces gives the same page again and again{_MOCKED}")
        seen.add(token)


def _unreadable(client: Any, locations: list[str]) -> str:
    """The first trace that cannot be read by itself."""
    token: str | None = None
    with contextlib.suppress(Exception):  # another reason not to say which
        for _ in range(_MOST_ASKED):
            page = client.search_traces(locations=locations, max_results=1, page_token=token, include_spans=False)
            try:
                list(map(_start, client.search_traces(locations=locations, max_results=1, page_token=token)))
            except Exception:
                return f"the trace {page[0].info.trace_id}"
            if not (token := page.token):
                break
    return "a trace"


def _start(trace: Trace) -> int:
    starts = [span.start_time_ns for span in trace.data.spans]
    return min(starts) if starts else trace.info.request_time * 1_000_000


def read_stored(traces: Sequence[Trace]) -> tuple[Span, ...]:
    """The spans of traces, flat, in order of trace and start. StoreError names the span that cannot be read."""
    return tuple(span for trace in traces for span in _read_spans(trace.data.spans))


def _read_spans(entities: Iterable[Any]) -> list[Span]:
    """In order of start. StoreError names the span that cannot be read."""
    spans: list[Span] = []
    for entity in entities:
        try:
            spans.append(read_span(entity))
        except Exception as error:
            trace_id, span_id, name = (getattr(entity, key, "?") for key in ("trace_id", "span_id", "name"))
            raise StoreError(
                f"the span {name!r} ({span_id}) of the trace {trace_id} cannot be read: {_reason(error)}{_MOCKED}"
            ) from None
    return sorted(spans, key=lambda span: span.start_ns)


def read_open(session: Session) -> tuple[Span, ...]:
    """The spans of traces whose root is running, from MLflow's memory where it can be read."""
    spans: list[Span] = []
    for otel_id in sorted(session.open):
        try:
            from mlflow.tracing.trace_manager import InMemoryTraceManager

            memory: Any = InMemoryTraceManager
            manager = memory.get_instance()
            with manager.get_trace(manager.get_mlflow_trace_id_from_otel_id(otel_id)) as trace:
                live = list(trace.span_dict.values()) if trace is not None else []
        except (AttributeError, ImportError, TypeError):
            continue
        spans += _read_spans(live)
    return tuple(spans)
