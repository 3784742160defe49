"""The way of a span from OpenTelemetry into the store: MLflow's own processor and exporter, called once
for each trace, in the thread that ends it.

MLflow exports either span by span, a transaction each, or by threads of its own that have to be waited
for. Here the spans of a trace are gathered and handed over together when the last of them ends: as fast as
the threads, and nothing is ever under way between two tests. A trace belongs to the test in which its root
started; what other tests' threads trace is dropped.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import environ  # held here: a test may replace it on the module
from typing import TYPE_CHECKING, Any, Protocol

from pytest_agenttrace.execution import Origin
from pytest_agenttrace.store.database import StoreError
from pytest_agenttrace.store.mlflow_state import PROVIDER, muted
from pytest_agenttrace.threads import Threads, caller_in_context, caller_of_thread

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider

__all__ = ["Exporter", "Session", "tracer_provider"]


def _origin() -> Origin | None:
    """Who starts a trace of its own: the node, the bare thread; None for the main thread outside of a graph."""
    in_context = caller_in_context()
    if in_context.namespace is not None:
        return Origin(in_context)
    thread = threading.current_thread()
    # Where no node is known the thread is kept: a model called there may still be a node's doing.
    return Origin(caller_of_thread(), thread.name) if thread is not threading.main_thread() else None


class Session:
    """What one test has traced: the OTel ids of its traces, and what has gone wrong."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.traces: set[int] = set()
        self.open: set[int] = set()
        self.waiting: dict[int, list[ReadableSpan]] = {}
        # Spans that have started and not come here yet, by trace: MLflow takes a trace out of its memory once all of
        # its spans have ended, and loses one that comes later.
        self.running: dict[int, set[int]] = {}
        self.errors: list[str] = []
        self.foreign: list[str] = []
        # Who started a trace that ought to be part of another, by the id of its root span.
        self.origins: dict[str, Origin] = {}
        # Counts exports, so that a reader knows whether anything is new.
        self.generation = 0
        self.watch = Watch.over(target, self.errors)


class Exporter:
    """OpenTelemetry's SpanExporter for MLflow's span processor, one for each process.

    `provider` is the tracer provider that MLflow traces with while a test's store is open.
    """

    def __init__(self, uri: str, threads: Threads) -> None:
        self._uri = uri
        self._threads = threads
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._unfinished: set[int] = set()
        self._failures = _FailureFilter()
        # MLflow's public flush looks for this name, and logs an error where there is none.
        self._async_queue = self
        self.provider = tracer_provider(self)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Export this test's traces; afterwards nothing of it is under way or reaches the store."""
        from mlflow.tracing.export.mlflow_v3 import MlflowV3SpanExporter

        self._release()
        session = self._session = Session(MlflowV3SpanExporter(tracking_uri=self._uri))
        try:
            with self._failures.installed() if session.watch is None else contextlib.nullcontext():
                try:
                    yield session
                finally:
                    self.drain(session, 30.0)
        finally:
            self._session = None
            self._unfinished |= session.open

    def started(self, span: Any) -> None:
        """A span started, in its own thread. Whose root it is decides whose trace it is."""
        session = self._session
        context = span.get_span_context()
        if session is None or context is None:
            return
        if span.parent is not None and not span.parent.is_remote:
            if context.trace_id in session.traces:
                session.running.setdefault(context.trace_id, set()).add(context.span_id)
            return
        if not self._threads.owns_current():
            session.foreign.append(threading.current_thread().name)
            return
        session.traces.add(context.trace_id)
        if span.parent is None:
            session.open.add(context.trace_id)
            if (origin := _origin()) is not None:
                session.origins[format(context.span_id, "016x")] = origin

    def export(self, spans: Sequence[ReadableSpan]) -> None:
        session = self._session
        for span in spans:
            trace_id = span.context.trace_id
            if session is None or trace_id not in session.traces:
                self._end_unfinished(span, trace_id)
                continue
            with self._lock:
                session.waiting.setdefault(trace_id, []).append(span)
                running = session.running.get(trace_id, set())
                running.discard(span.context.span_id)
                if span.parent is None:
                    session.open.discard(trace_id)
                if trace_id not in session.open and not running:
                    self._hand_over(session, trace_id)

    def _hand_over(self, session: Session, trace_id: int) -> None:
        """Give MLflow all spans of one trace: its stores before 3.10 take no mixture."""
        spans = session.waiting.pop(trace_id, [])
        if not spans or session is not self._session:
            return
        known = len(session.errors)
        with self._failures.into(session.errors):
            try:
                session.target.export(spans)
            except Exception as error:  # whatever it is, it is this test's finding
                session.errors.append(f"{type(error).__name__}: {error}")
        if session.watch is not None and len(session.errors) == known:
            session.errors.extend(session.watch.missing(spans))
        session.generation += 1

    def drain(self, session: Session, timeout: float) -> None:
        """Wait until everything that ended is stored; `timeout` in seconds, then StoreError."""
        if not self._lock.acquire(timeout=timeout):
            raise StoreError(f"the trace exporter is still writing to {self._uri} after {timeout:g} s")
        try:
            for trace_id in list(session.waiting):
                self._hand_over(session, trace_id)
        finally:
            self._lock.release()
        for thread in threading.enumerate():
            if thread.name.startswith("link_prompts_from_exporter"):
                thread.join(timeout)
                if thread.is_alive():
                    raise StoreError(f"MLflow's thread {thread.name} still writes to the store after {timeout:g} s")

    def hold_back(self) -> None:
        """Between two tests, keep what earlier tests' threads still trace away from the user's store.

        Such a thread would make MLflow open the user's tracking URI, by default in the working
        directory. Its tracer is ours, and drops what it gets; everybody else's is the user's.
        """
        if not (self._unfinished or len(self._threads.stale)) or not PROVIDER.exists():
            return
        holder = PROVIDER.read()
        original: Callable[[str], Any] | None = getattr(holder, "get_or_init_tracer", None)
        if original is None:
            return

        def get_or_init_tracer(module_name: str) -> Any:
            thread = threading.current_thread()
            if thread in self._threads.stale or (self._unfinished and thread in self._threads.born):
                return self.provider.get_tracer(module_name)
            return original(module_name)

        holder.get_or_init_tracer = get_or_init_tracer

    def _release(self) -> None:
        if PROVIDER.exists():
            vars(PROVIDER.read()).pop("get_or_init_tracer", None)

    def _end_unfinished(self, span: Any, trace_id: int) -> None:
        if span.parent is None:
            self._unfinished.discard(trace_id)
            if not self._unfinished and self._session is None and not len(self._threads.stale):
                self._release()

    # The rest of OpenTelemetry's SpanExporter, and of MLflow's queue.

    def flush(self, terminate: bool = False) -> None:
        session = self._session
        if session is not None:
            self.drain(session, 30.0)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        self.flush()
        return True

    def shutdown(self) -> None:
        """Nothing to stop: there are no threads."""


class _Gathers(Protocol):
    """What is told of each span that starts, and is given those that have ended."""

    def started(self, span: Any) -> None: ...

    def export(self, spans: Sequence[ReadableSpan]) -> None: ...


def tracer_provider(exporter: _Gathers, first: SpanProcessor | None = None) -> TracerProvider:
    """MLflow's span processor on a provider of our own: no sampling, no OTLP, no threads, and ids that a
    test which seeds `random` cannot repeat. `first` sees a span before MLflow does."""
    from mlflow.tracing.processor.mlflow_v3 import MlflowV3SpanProcessor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor as Processor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    class Ids(IdGenerator):
        def generate_span_id(self) -> int:
            return secrets.randbits(64) or 1

        def generate_trace_id(self) -> int:
            return secrets.randbits(128) or 1

    class Starts(Processor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            exporter.started(span)

    _import_ahead()
    _hush_opentelemetry()
    processor: Any = MlflowV3SpanProcessor
    with _without_settings():
        provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource({"telemetry.sdk.name": "mlflow", "telemetry.sdk.language": "python"}),
            id_generator=Ids(),
            shutdown_on_exit=False,
        )
    if first is not None:
        provider.add_span_processor(first)
    # MLflow 3.9 takes the first processor of the provider in force for its own.
    provider.add_span_processor(processor(span_exporter=exporter, export_metrics=False))
    provider.add_span_processor(Starts())
    return provider


@contextmanager
def _without_settings() -> Iterator[None]:
    """Hide OpenTelemetry's variables, which a provider reads once: OTEL_SDK_DISABLED would make it trace nothing, and
    limits would cut attributes."""
    hidden = {name: value for name, value in environ.items() if name.startswith("OTEL_")}
    for name in hidden:
        del environ[name]
    try:
        yield
    finally:
        environ.update(hidden)


def _import_ahead() -> None:
    """What MLflow imports with the first span: the warning it gives would, as an error, lose that span."""
    with muted(), contextlib.suppress(ImportError):
        importlib.import_module("mlflow.pyfunc.context")


def _hush_opentelemetry() -> None:
    """The warnings that MLflow silences for a provider of its own: closed streams cause them."""
    with contextlib.suppress(ImportError):
        from mlflow.tracing.utils.warning import suppress_warning

        suppress: Callable[[str, str], None] = suppress_warning
        suppress("opentelemetry.context", "Failed to detach context")
        suppress("opentelemetry.sdk.trace", "Setting attribute on ended span")
        suppress("opentelemetry.sdk.trace", "Calling end() on an ended span")


# The writes of MLflow's tracing client, and what MLflow logs where one fails.
_WRITES = {
    "log_spans": "Failed to log span to MLflow backend",
    "start_trace": "Failed to send trace to MLflow backend",
    "_upload_trace_data": "Failed to send trace to MLflow backend",
    "_upload_attachments": "Failed to upload trace attachments",
}


class Watch:
    """MLflow's tracing client under its exporter's feet, and what comes of its writes: MLflow only logs those
    that fail, and the code under test may have silenced any logger."""

    def __init__(self, client: Any, errors: list[str]) -> None:
        self._client = client
        self._errors = errors
        self._written: set[str] = set()

    @classmethod
    def over(cls, target: Any, errors: list[str]) -> Watch | None:
        """Put one between an exporter and its client; None where this MLflow's exporter has no such client."""
        client = getattr(target, "_client", None)
        if not (hasattr(client, "log_spans") and hasattr(client, "start_trace")):
            return None
        target._client = cls(client, errors)
        return target._client  # type: ignore[no-any-return]  # just set

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if name not in _WRITES:
            return value

        def write(*args: Any, **kwargs: Any) -> Any:
            try:
                result = value(*args, **kwargs)
            except Exception as error:
                self._errors.append(f"{_WRITES[name]}: {error}")
                raise
            self._written.update(_ids([*args, *kwargs.values()]))
            return result

        return write

    def missing(self, spans: Sequence[ReadableSpan]) -> list[str]:
        """What MLflow was given of one trace and wrote neither, nor failed to write."""
        lost = [span for span in spans if format(span.context.span_id, "016x") not in self._written]
        if lost:
            names = ", ".join(sorted({span.name for span in lost}))
            return [f"MLflow has dropped {len(lost)} of {len(spans)} spans: {names}"]
        for span in spans:
            otel_id = span.context.trace_id
            # One whose root ends before its other spans waits in MLflow's memory.
            if span.parent is None and f"tr-{otel_id:032x}" not in self._written and not _in_memory(otel_id):
                return [f"MLflow has dropped the trace {span.name}"]
        return []


def _ids(arguments: list[Any]) -> Iterator[str]:
    """The ids of the spans, or of the trace, that a client was told to write."""
    for argument in arguments:
        if isinstance(argument, list):
            yield from (str(span.span_id) for span in argument)
        elif hasattr(argument, "trace_id"):
            yield str(argument.trace_id)


def _in_memory(otel_id: int) -> bool:
    try:
        from mlflow.tracing.trace_manager import InMemoryTraceManager

        memory: Any = InMemoryTraceManager
        return memory.get_instance().get_mlflow_trace_id_from_otel_id(otel_id) is not None
    except (AttributeError, ImportError):
        return True  # not to be known: nothing is claimed


class _FailureFilter(logging.Filter):
    """Reads MLflow's failed writes out of its log, where some of them are DEBUG records only: for an MLflow
    whose client cannot be watched."""

    _LOGGER = "mlflow.tracing.export.mlflow_v3"

    def __init__(self) -> None:
        super().__init__()
        self._logger = logging.getLogger(self._LOGGER)
        self._visible = logging.WARNING
        self._thread: int | None = None
        self._errors: list[str] = []

    @contextmanager
    def installed(self) -> Iterator[None]:
        level = self._logger.level
        self._visible = self._logger.getEffectiveLevel()
        self._logger.addFilter(self)
        self._logger.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            self._logger.setLevel(level)
            self._logger.removeFilter(self)

    @contextmanager
    def into(self, errors: list[str]) -> Iterator[None]:
        self._thread, self._errors = threading.get_ident(), errors
        try:
            yield
        finally:
            self._thread = None

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if record.thread == self._thread and (record.levelno >= logging.WARNING or message.startswith("Failed")):
            self._errors.append(message)
        return record.levelno >= self._visible
