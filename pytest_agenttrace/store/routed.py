"""The spans of one workflow's run, kept apart from whatever else this process traces, until they are written.

MLflow has one tracer for a process, and one store behind it. Runs of workflows name stores of their own, several at a
time: so the tracer is chosen by the run that a thread or a task belongs to, by a context variable, and every other
caller gets what it always got. Nothing is written while a run lasts. At its end each trace is handed whole to MLflow's
own exporter, and what that writes passes an `Edit`: what a run must not keep is taken out before anything is stored.
Tried with MLflow 3.9 and 3.17.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from os import environ  # held here: a test may replace it on the module
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pytest_agenttrace.store.exporter import tracer_provider
from pytest_agenttrace.store.mlflow_state import PROVIDER, outside_of_any_span

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["Edit", "NotTraceable", "Recording", "TraceFacts", "Writer"]

_ASYNC = "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"
_TRACER = "get_or_init_tracer"
_EXPERIMENT = "mlflow.experimentId"
_RUN = "mlflow.sourceRun"
_WRITES = ("log_spans", "start_trace", "_upload_trace_data", "_upload_attachments")
# What the row of a trace says where its spans lie in the store itself.
_IN_STORE = ("mlflow.trace.spansLocation", "TRACKING_STORE")


class NotTraceable(Exception):
    """This MLflow does not let a run be traced apart from others, or its spans be seen before they are written."""


@dataclass(frozen=True)
class TraceFacts:
    """What the row of a trace says beside its spans: the previews of what went in and came out, metadata and tags."""

    request: str | None
    response: str | None
    metadata: dict[str, str]
    tags: dict[str, str]


class Edit(Protocol):
    """What of a trace is kept. Spans come as `mlflow.entities.Span.to_dict` gives them, all of a trace together, and
    before its `facts`. `attachments` says whether files that were sent to a model are."""

    attachments: bool

    def spans(self, spans: list[dict[str, Any]]) -> list[dict[str, Any]]: ...

    def facts(self, facts: TraceFacts) -> TraceFacts: ...


_current: ContextVar[Recording | None] = ContextVar("agenttrace_workflow_run", default=None)
_lock = threading.Lock()
_making = threading.Lock()
_active = 0


class Recording:
    """What one run has traced. `active` makes it the run of a block; `write` hands its traces over, once."""

    def __init__(self, experiment_id: str, run_id: str, edit: Edit) -> None:
        self.experiment_id = experiment_id
        self.run_id = run_id
        self.edit = edit
        self.errors: list[str] = []
        self.over = False
        self.spans: dict[int, list[ReadableSpan]] = {}
        self.open: dict[int, set[int]] = {}
        self._written = threading.Condition()
        self._waiting: dict[str, set[str]] = {}

    @property
    def trace_ids(self) -> list[str]:
        """MLflow's ids of the traces, in order of their start."""
        return [_trace_id(otel_id) for otel_id in self.open]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Trace what this thread or task does in the block, and what that starts: a trace of its own, whatever span of
        the program's it is done in."""
        with _routed(), outside_of_any_span():
            token = _current.set(self)
            try:
                yield
            finally:
                _current.reset(token)

    def write(self, writer: Writer, seconds: float) -> None:
        """Write all traces, and wait for it. What went wrong is in `errors`."""
        self._end_open()
        self.over = True
        writer.write(self)
        with self._written:
            if not self._written.wait_for(lambda: not any(self._waiting.values()), seconds):
                late = [trace for trace, parts in self._waiting.items() if parts]
                self.errors.append(f"{_counted(len(late))} not written within {seconds:g} s")

    def _end_open(self) -> None:
        """End what an interrupted run has left open, inner spans first."""
        for otel_id, span_ids in list(self.open.items()):
            if span_ids:
                for span in reversed(_live_spans(otel_id)):
                    if span.end_time_ns is None:
                        with suppress(Exception):  # a span that cannot be ended is told as lost
                            span.end(status="ERROR")
            if self.open[otel_id]:
                self.errors.append(f"{len(self.open[otel_id])} spans were still running, and are lost")

    # What the writer tells.

    def expects(self, trace_id: str, *parts: str) -> None:
        with self._written:
            self._waiting.setdefault(trace_id, set()).update(parts)

    def has(self, trace_id: str, part: str) -> None:
        with self._written:
            self._waiting.get(trace_id, set()).discard(part)
            self._written.notify_all()

    def wait_for(self, trace_id: str, part: str, seconds: float) -> None:
        with self._written:
            self._written.wait_for(lambda: part not in self._waiting.get(trace_id, ()), seconds)

    def failed(self, trace_id: str, error: str) -> None:
        self.errors.append(error)
        with self._written:
            self._waiting.pop(trace_id, None)
            self._written.notify_all()


class Writer:
    """MLflow's exporter for one store, and MLflow's client under it: the only way from a run into the store. There is
    one for each store and way, as its queue has threads that stay."""

    _made: ClassVar[dict[tuple[str, bool], Writer]] = {}

    @classmethod
    def of(cls, uri: str, *, asynchronous: bool) -> Writer:
        """The writer of a store. Raises `NotTraceable`."""
        with _making:
            key = uri, asynchronous
            if key not in cls._made:
                cls._made[key] = cls(uri, asynchronous=asynchronous)
            return cls._made[key]

    def __init__(self, uri: str, *, asynchronous: bool) -> None:
        from mlflow.tracing.export.mlflow_v3 import MlflowV3SpanExporter

        with _variable(_ASYNC, "true" if asynchronous else "false"):
            target: Any = MlflowV3SpanExporter(tracking_uri=uri)
        client = getattr(target, "_client", None)
        if not all(hasattr(client, name) for name in _WRITES[:3]):
            raise NotTraceable("its exporter has no client that can be watched")
        self._runs: dict[str, Recording] = {}
        target._client = _Edited(client, self._runs)
        self._target = target

    def write(self, run: Recording) -> None:
        for otel_id, spans in run.spans.items():
            trace_id = _trace_id(otel_id)
            self._runs[trace_id] = run
            run.expects(trace_id, "spans", "trace")
            try:
                self._target.export(spans)
            except Exception as error:  # whatever it is, the run goes on without its trace
                run.failed(trace_id, f"{type(error).__name__}: {_first_line(error)}")

    def forget(self, run: Recording) -> None:
        """Drop what was kept of a run; what is still under way for it is not written."""
        for trace_id in run.trace_ids:
            self._runs.pop(trace_id, None)


class _Edited:
    """MLflow's tracing client, which writes what a run's edit leaves. One trace is written in one order, whichever
    workers do it: its spans, then its row. MLflow 3.9 counts tokens twice where the two overlap, and other versions
    look for the spans in the wrong place."""

    def __init__(self, client: Any, runs: dict[str, Recording]) -> None:
        self._client = client
        self._runs = runs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def log_spans(self, location: str, spans: list[Any]) -> Any:
        trace_id = spans[0].trace_id
        run = self._runs[trace_id]
        try:
            return self._client.log_spans(run.experiment_id, _edited(run, spans))
        except NotImplementedError:
            raise  # a store of files: the exporter uploads them with the trace
        except Exception as error:
            if "REST OTLP span logging is not supported" not in str(error):
                run.errors.append(_first_line(error))
            raise
        finally:
            run.has(trace_id, "spans")

    def start_trace(self, info: Any) -> Any:
        run = self._runs[info.trace_id]
        run.wait_for(info.trace_id, "spans", 30.0)
        kept = run.edit.facts(
            TraceFacts(info.request_preview, info.response_preview, dict(info.trace_metadata), dict(info.tags))
        )
        info.request_preview, info.response_preview = kept.request, kept.response
        info.trace_metadata, info.tags = {**kept.metadata, _RUN: run.run_id}, dict(kept.tags)
        try:
            written = self._client.start_trace(info)
        except Exception as error:
            run.failed(info.trace_id, _first_line(error))
            raise
        if written.tags.get(_IN_STORE[0]) == _IN_STORE[1]:
            run.has(info.trace_id, "trace")
        return written

    def _upload_trace_data(self, info: Any, data: Any) -> Any:
        from mlflow.entities import TraceData

        run = self._runs[info.trace_id]
        try:
            return self._client._upload_trace_data(info, TraceData(spans=_edited(run, data.spans)))
        except Exception as error:
            run.errors.append(_first_line(error))
            raise
        finally:
            run.has(info.trace_id, "trace")

    def _upload_attachments(self, info: Any, attachments: Any) -> Any:
        return (
            self._client._upload_attachments(info, attachments) if self._runs[info.trace_id].edit.attachments else None
        )


def _edited(run: Recording, spans: Sequence[Any]) -> list[Any]:
    from mlflow.entities import Span

    return [Span.from_dict(span) for span in run.edit.spans([span.to_dict() for span in spans])]


class _Router:
    """OpenTelemetry's exporter of the one provider that runs are traced with: gathers the spans of each run."""

    def __init__(self) -> None:
        self._runs: dict[int, Recording] = {}
        # MLflow's public flush looks for this name.
        self._async_queue = self
        self.provider = tracer_provider(self, self._places())

    def _places(self) -> Any:
        from opentelemetry.sdk.trace import SpanProcessor

        class Places(SpanProcessor):
            """Says which experiment a span is of before MLflow asks: MLflow 3.9 does for each of them."""

            def on_start(self, span: Any, parent_context: Any = None) -> None:
                if (run := _current.get()) is not None:
                    span.set_attribute(_EXPERIMENT, json.dumps(run.experiment_id))

        return Places()

    def started(self, span: Any) -> None:
        context = span.get_span_context()
        run = self._runs.get(context.trace_id) or _current.get()
        if run is None or run.over:
            return
        self._runs[context.trace_id] = run
        run.open.setdefault(context.trace_id, set()).add(context.span_id)

    def export(self, spans: Sequence[ReadableSpan]) -> None:
        for span in spans:
            trace_id = span.context.trace_id
            run = self._runs.get(trace_id)
            if run is None or run.over:
                continue
            run.spans.setdefault(trace_id, []).append(span)
            run.open.get(trace_id, set()).discard(span.context.span_id)

    def forget(self, run: Recording) -> None:
        for otel_id in run.open:
            self._runs.pop(otel_id, None)

    def flush(self, terminate: bool = False) -> None:
        """Nothing to wait for: a run writes its own traces."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True

    def shutdown(self) -> None:
        """Nothing to stop: there are no threads."""


_router: _Router | None = None


@contextmanager
def _routed() -> Iterator[None]:
    """Let MLflow's tracer be chosen by the run that asks, while at least one run lasts."""
    global _active, _router
    with _lock:
        if not hasattr(PROVIDER.read() if PROVIDER.exists() else None, _TRACER):
            raise NotTraceable("its tracer is not where it was")
        if _router is None:
            _router = _Router()
        _active += 1
        if _active == 1:
            _choose(PROVIDER.read(), _router)
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            if _active == 0:
                vars(PROVIDER.read()).pop(_TRACER, None)


def _choose(holder: Any, router: _Router) -> None:
    usual = getattr(holder, _TRACER)

    def get_or_init_tracer(module_name: str) -> Any:
        run = _current.get()
        return usual(module_name) if run is None or run.over else router.provider.get_tracer(module_name)

    setattr(holder, _TRACER, get_or_init_tracer)


def forget(run: Recording, writer: Writer) -> None:
    """Drop what is held of a run that has been written."""
    writer.forget(run)
    if _router is not None:
        _router.forget(run)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """A variable that MLflow reads when it makes an exporter, for as long as that takes."""
    with _lock:
        before = environ.get(name)
        environ[name] = value
        try:
            yield
        finally:
            if before is None:
                environ.pop(name, None)
            else:
                environ[name] = before


def _live_spans(otel_id: int) -> list[Any]:
    """The spans of a trace from MLflow's memory, in order of their start; none where it cannot be read."""
    try:
        from mlflow.tracing.trace_manager import InMemoryTraceManager

        memory: Any = InMemoryTraceManager
        manager = memory.get_instance()
        with manager.get_trace(manager.get_mlflow_trace_id_from_otel_id(otel_id)) as trace:
            return list(trace.span_dict.values()) if trace is not None else []
    except (AttributeError, ImportError, TypeError):
        return []


def _trace_id(otel_id: int) -> str:
    return f"tr-{otel_id:032x}"


def _counted(traces: int) -> str:
    return "a trace was" if traces == 1 else f"{traces} traces were"


def _first_line(error: object) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
