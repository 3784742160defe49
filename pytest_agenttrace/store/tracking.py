"""A store that a workflow names, by its tracking URI: opened within seconds or refused in words, without any of
MLflow's process-wide settings.

Tried with MLflow 3.9 and 3.17, on SQLite and on MLflow's own server.
"""

from __future__ import annotations

import importlib
import logging
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from pytest_agenttrace.execution import Span
from pytest_agenttrace.store.mlflow_state import muted
from pytest_agenttrace.store.reading import read_stored
from pytest_agenttrace.store.redirect import mask
from pytest_agenttrace.store.routed import Edit, NotTraceable, Recording, Writer, forget
from pytest_agenttrace.store.spans import read_usage
from pytest_agenttrace.usage import TraceTotal

__all__ = [
    "ParamValue",
    "Tracked",
    "Tracking",
    "TrackingFailed",
    "absolute_uri",
    "is_files",
    "langchain_tracer",
    "mlflow_version",
    "open_tracking",
]

# How long a store may take to open (a new database makes its tables first), and to take a run.
OPENING, WRITING = 60.0, 60.0
_CONNECTING = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_THREAD = "agenttrace-tracking"
_SQLITE = "sqlite:///"
_FILES = re.compile(r"file:(//)?", re.IGNORECASE)
# The longest value that MLflow 3.9 takes for a parameter.
_LONGEST = 6000

ParamValue = str | int | float | bool
Status = Literal["FINISHED", "FAILED", "KILLED"]
_T = TypeVar("_T")

_PARTS = (
    "mlflow.langchain.langchain_tracer",
    "mlflow.pyfunc.context",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracing.export.mlflow_v3",
    "mlflow.tracing.processor.mlflow_v3",
)
# What LangChain asks of a callback before it tells it anything.
_IGNORING = (
    *("ignore_agent", "ignore_chain", "ignore_chat_model", "ignore_custom_event"),
    *("ignore_llm", "ignore_retriever", "ignore_retry"),
)
_loading = threading.Lock()
_loaded: list[bool] = []


class TrackingFailed(Exception):
    """A run cannot be traced where its workflow says: the cause, and the way out on a line of its own."""


class _Silent(TrackingFailed):
    """A store that does not answer, or not in time."""


@dataclass(frozen=True, slots=True)
class Tracked:
    """What the store holds of a run: the spans of its traces, what MLflow says each has used, and whether this MLflow
    keeps the cached part of the input."""

    spans: tuple[Span, ...]
    totals: tuple[TraceTotal, ...]
    counts_cache: bool


def mlflow_version() -> str:
    """MLflow's version. `TrackingFailed` where it is not installed."""
    try:
        with _loading:
            if not _loaded:
                _load()
        import mlflow
    except ImportError as error:
        raise TrackingFailed(f"MLflow cannot be imported: {error}\n  pip install mlflow") from None
    return str(mlflow.__version__)


def _load() -> None:
    """Import what a run needs of MLflow, once: the warnings that MLflow gives of itself meanwhile would be errors in a
    program that makes warnings errors, and leave it half loaded."""
    with muted():
        importlib.import_module("mlflow")
        for name in _PARTS:
            with suppress(ImportError):  # said by who needs it
                importlib.import_module(name)
    _loaded.append(True)


class Tracking:
    """An open store and the experiment of the runs in it. Every method raises `TrackingFailed`, within seconds."""

    def __init__(self, uri: str, client: Any, experiment: str, experiment_id: str, writer: Writer) -> None:
        self.uri = uri
        self.experiment = experiment
        self.experiment_id = experiment_id
        self._client = client
        self._writer = writer
        self._lost: TrackingFailed | None = None

    @property
    def shown(self) -> str:
        """The store's URI, without its password."""
        return mask(self.uri)

    def begin(self, name: str | None, tags: Mapping[str, str], edit: Edit) -> Recording:
        """Begin a run, and the recording of its traces."""
        made = self._bounded(
            "begin a run", lambda: self._client.create_run(self.experiment_id, tags=dict(tags), run_name=name)
        )
        return Recording(self.experiment_id, made.info.run_id, edit)

    def write(self, recording: Recording) -> None:
        """Write the traces of a run. What went wrong is in the recording's errors."""
        self._bounded("write the trace", lambda: recording.write(self._writer, WRITING), WRITING + 5)

    def read(self, recording: Recording) -> Tracked:
        """What the store now holds of the traces."""
        from mlflow.tracing import constant

        entities = self._bounded(
            "read the trace", lambda: [self._client.get_trace(trace_id) for trace_id in recording.trace_ids]
        )
        totals = [TraceTotal(found.info.trace_id, read_usage(found.info.token_usage)) for found in entities]
        cached = hasattr(getattr(constant, "TokenUsageKey", None), "CACHE_READ_INPUT_TOKENS")
        return Tracked(read_stored(entities), tuple(totals), cached)

    def log(
        self,
        recording: Recording,
        *,
        metrics: Mapping[str, float] | None = None,
        params: Mapping[str, ParamValue] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write numbers and words to the run."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        self._bounded(
            "write the run",
            lambda: self._client.log_batch(
                recording.run_id,
                metrics=[Metric(key, value, now, 0) for key, value in (metrics or {}).items()],
                params=[Param(key, str(value)[:_LONGEST]) for key, value in (params or {}).items()],
                tags=[RunTag(key, value) for key, value in (tags or {}).items()],
            ),
        )

    def keep_files(self, recording: Recording, folder: Path) -> None:
        """Copy a folder's files to the run's artifacts."""
        self._bounded("keep the files", lambda: self._client.log_artifacts(recording.run_id, str(folder)))

    def end(self, recording: Recording, status: Status) -> None:
        """End the run."""
        try:
            self._bounded("end the run", lambda: self._client.set_terminated(recording.run_id, status))
        finally:
            forget(recording, self._writer)

    def _bounded(self, what: str, function: Callable[[], _T], seconds: float = WRITING) -> _T:
        if self._lost is not None:
            raise self._lost
        try:
            _reach(self.uri)
            return _bounded(f"{mask(self.uri)}: MLflow could not {what}", function, seconds, self.uri)
        except _Silent as error:
            # Nobody waits a second time for one that is gone.
            self._lost = error
            raise


def open_tracking(uri: str, experiment: str, *, asynchronous: bool) -> Tracking:
    """Open a store and find the experiment in it, made where there is none."""
    mlflow_version()
    whole = absolute_uri(uri)
    _reach(whole)
    return _bounded(f"{mask(whole)} cannot be opened", lambda: _opened(whole, experiment, asynchronous), OPENING, whole)


def _opened(uri: str, experiment: str, asynchronous: bool) -> Tracking:
    from mlflow import MlflowClient

    _say_less()
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        experiment_id = _made(client, uri, experiment)
    elif found.lifecycle_stage != "active":
        raise TrackingFailed(
            f"{mask(uri)}: the experiment {experiment!r} is deleted\n"
            f"  mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    else:
        experiment_id = found.experiment_id
    try:
        writer = Writer.of(uri, asynchronous=asynchronous)
    except NotTraceable as error:
        raise _unknown(str(error)) from None
    return Tracking(uri, client, experiment, str(experiment_id), writer)


def _made(client: Any, uri: str, experiment: str) -> str:
    """Beside a database in a file, whatever folder the run is started in."""
    from mlflow.exceptions import MlflowException

    where = None
    if uri.startswith(_SQLITE):
        where = (Path(_database(uri)).parent / "mlruns").as_uri()
    try:
        return str(client.create_experiment(experiment, artifact_location=where))
    except MlflowException:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)  # another run was faster


def langchain_tracer(recording: Recording) -> Any:
    """The callback that `mlflow.langchain.autolog` gives to every run; here for one run alone. It hears nothing of
    what a thread that outlives the run still does: that would be traced to the store of the process."""
    try:
        from mlflow.langchain.langchain_tracer import MlflowLangchainTracer
    except ImportError as error:
        raise _unknown(f"its tracer for LangChain cannot be imported: {error}") from None
    over = property(lambda self: recording.over)
    return type("RunTracer", (MlflowLangchainTracer,), dict.fromkeys(_IGNORING, over))()


def _unknown(why: str) -> TrackingFailed:
    return TrackingFailed(f"MLflow {mlflow_version()} cannot trace a run of its own: {why}\n  Use MLflow 3.9 to 3.17.")


def absolute_uri(uri: str) -> str:
    """A tracking URI that means the same in every folder: relative paths are those of the working directory."""
    if uri.startswith(_SQLITE):
        path, question, query = uri.removeprefix(_SQLITE).partition("?")
        return uri if path in ("", ":memory:") else f"{_SQLITE}{Path(path).absolute().as_posix()}{question}{query}"
    if (files := is_files(uri)) is not None:
        return files.absolute().as_uri()
    return uri


def is_files(uri: str) -> Path | None:
    """The folder of a store of files; None of any other store. `file://./mlruns` means ./mlruns, and not /mlruns."""
    if (start := _FILES.match(uri)) is not None:
        return Path(unquote(uri[start.end() :]))
    return Path(uri) if ":" not in uri and uri != "databricks" else None


def _database(uri: str) -> str:
    return uri.removeprefix(_SQLITE).partition("?")[0]


def _reach(uri: str) -> None:
    """Fail in seconds where nobody answers: MLflow itself tries again for minutes."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in _PORTS or parts.hostname is None:
        return
    port = parts.port or _PORTS[scheme]
    way_out = "Start the database, or mend tracking_uri"
    if scheme.startswith("http"):
        way_out = f"Start it: mlflow server --host {parts.hostname} --port {port}"
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(parts.hostname):
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECTING).close()
    except OSError as error:
        raise _Silent(f"{mask(uri)} cannot be reached: {error.strerror or error}\n  {way_out}") from None


def _bounded(failed: str, function: Callable[[], _T], seconds: float, uri: str) -> _T:
    """Do what may hang in a thread that nobody has to wait for. `failed` begins the error."""
    done: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            done.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=_THREAD, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise _Silent(f"{failed}: no answer within {seconds:g} s")
    if errors:
        if isinstance(errors[0], TrackingFailed):
            raise errors[0]
        raise TrackingFailed(f"{failed}: {_why(errors[0])}{_way_out(errors[0], uri)}") from errors[0]
    return done[0]


def _why(error: BaseException) -> str:
    # SQLAlchemy says first that it was flushing.
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("(raised as a result of")]
    first = next(iter(lines), "") or type(error).__name__
    return mask(first[:300])


def _way_out(error: BaseException, uri: str) -> str:
    text, scheme = str(error), uri.partition(":")[0]
    if "out-of-date database schema" in text or "Can't locate revision" in text:
        return f"\n  Copy the database, then: mlflow db upgrade {mask(uri)}"
    if scheme.startswith("postgresql") and isinstance(error, ImportError):
        return "\n  pip install psycopg2-binary"
    if scheme == "databricks":
        return "\n  Set DATABRICKS_HOST and DATABRICKS_TOKEN, or: databricks configure --profile NAME"
    if is_files(uri) is not None:
        return '\n  Write tracking_uri: "sqlite:///mlflow.db", or set MLFLOW_ALLOW_FILE_STORE=true.'
    if scheme == "sqlite":
        return f"\n  Is {_database(uri)} a database of MLflow's, and may it be written?"
    return ""


class _Unsaid(logging.Filter):
    """Keeps what MLflow logs of our own steps off the user's screen: new tables, and tracebacks of errors that are
    told in a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.threadName != _THREAD


def _say_less() -> None:
    for name in ("alembic", "alembic.runtime.migration", "alembic.runtime.plugins", "mlflow.store.db.utils"):
        logger = logging.getLogger(name)
        if not any(isinstance(found, _Unsaid) for found in logger.filters):
            logger.addFilter(_Unsaid())
