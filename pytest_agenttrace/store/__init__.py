"""A temporary MLflow store for each test: real SQLite, empty, autologging on, nothing left behind.

With its rooms (`database`, `exporter`, `mlflow_state`, `redirect`, `spans`) the core's only importer of
mlflow. Tried with MLflow 3.9 and 3.17.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import environ  # held here: a test may replace it on the module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.environment import sweep_key
from pytest_agenttrace.execution import Span
from pytest_agenttrace.importing import after_import
from pytest_agenttrace.store.database import EXPERIMENT, Database, StoreError, cache_directory, without_durability
from pytest_agenttrace.store.exporter import Exporter, Session
from pytest_agenttrace.store.mlflow_state import CLIENT, Autolog, direct, genuine, muted, set_aside, sweep
from pytest_agenttrace.store.redirect import Redirect, mask, put_in_force
from pytest_agenttrace.store.spans import read_span, read_usage
from pytest_agenttrace.threads import THREADS
from pytest_agenttrace.usage import TraceTotal

if TYPE_CHECKING:
    from mlflow.entities import Trace

__all__ = ["MlflowStore", "StoreError", "StoreFactory", "redirect_at_import"]

# Experiment ids between two tests, for those the code under test makes itself.
_STRIDE = 1000


class MlflowStore:
    """A test's MLflow store: `uri`, `path` of the SQLite file, `experiment_id`, `artifacts` (a folder
    that is there once something was written to it).

    Reading drains MLflow's exporter first. After the test what was read last can be read again;
    anything else raises StoreError.
    """

    def __init__(self, factory: StoreFactory, name: str, experiment_id: int, artifacts: Path) -> None:
        self.uri = factory.database.uri
        self.path = factory.database.path
        self.experiment_id = str(experiment_id)
        self.artifacts = artifacts
        self._name = name
        self._factory = factory
        self._session: Session | None = None
        self._redirect: Redirect | None = None
        self._autolog: Autolog | None = None
        self._closed = False
        self._requested: tuple[str, ...] = ()
        self._traces: tuple[Trace, ...] | None = None
        self._spans: tuple[int, tuple[Span, ...]] | None = None

    def __repr__(self) -> str:
        return f"<MlflowStore {self.uri}, experiment {self.experiment_id}>"

    @property
    def requested(self) -> tuple[str, ...]:
        """What the code under test asked of MLflow's global state and did not get, as source text in
        the order of the calls, those of the import first; passwords are masked."""
        return self._requested if self._closed else self._collect_requested()

    def _collect_requested(self) -> tuple[str, ...]:
        requests = list(self._factory.import_requests)
        if self._redirect is not None:
            requests += self._redirect.requests
        uri = environ.get("MLFLOW_TRACKING_URI")
        if uri != self.uri:
            change = "del os.environ['MLFLOW_TRACKING_URI']"
            if uri is not None:
                change = f"os.environ['MLFLOW_TRACKING_URI'] = {uri!r}"
            requests.append(mask(change))
        for flavor in self._autolog.turned_off() if self._autolog is not None else ():
            requests.append(f"mlflow.{flavor}.autolog(disable=True)")
        return tuple(requests)

    @property
    def export_errors(self) -> tuple[str, ...]:
        """The spans and traces of this test that MLflow failed to write, in its own words."""
        return tuple(self._session.errors) if self._session is not None else ()

    @property
    def foreign_threads(self) -> tuple[str, ...]:
        """Names of the threads left by earlier tests whose traces were started in this one and dropped."""
        return tuple(dict.fromkeys(self._session.foreign)) if self._session is not None else ()

    def drain(self, timeout: float = 30.0) -> None:
        """Wait until every span that has ended is stored. StoreError after `timeout` seconds."""
        if self._session is not None and not self._closed:
            self._factory.drain(self._session, timeout)

    def traces(self) -> list[Trace]:
        """The traces of this test as MLflow's own entities, in order of their start."""
        if self._closed:
            if self._traces is None:
                raise StoreError(f"the MLflow store of {self._name} is closed: read it inside the test")
            return list(self._traces)
        self.drain()
        self._traces = tuple(_read_traces(self._factory.client(), self._factory.database))
        return list(self._traces)

    def spans(self) -> tuple[Span, ...]:
        """All spans of this test, flat, in order of trace and start; those still running have status "open"."""
        if self._closed:
            if self._spans is None:
                self.traces()  # raises, or there is something to convert
                self._spans = 0, self._placed(_flat(self._traces or ()))
            return self._spans[1]
        self.drain()
        session = self._session
        generation = session.generation if session is not None else -1
        # While a trace is running it grows without an export.
        if session is not None and not session.open and self._spans is not None and self._spans[0] == generation:
            return self._spans[1]
        open_spans = _open_spans(session) if session is not None else ()
        running = {span.trace_id for span in open_spans}
        stored = [span for span in _flat(self.traces()) if span.trace_id not in running]
        spans = self._placed((*stored, *open_spans))
        self._spans = generation, spans
        return spans

    @property
    def totals(self) -> tuple[TraceTotal, ...]:
        """What MLflow says that each trace of this test has used, in order of their start."""
        self.spans()  # reads what is new
        return tuple(TraceTotal(t.info.trace_id, read_usage(t.info.token_usage)) for t in self._traces or ())

    @property
    def counts_cache(self) -> bool:
        """Whether this MLflow keeps the cached part of the input: since 3.10 it does."""
        from mlflow.tracing import constant

        return hasattr(getattr(constant, "TokenUsageKey", None), "CACHE_READ_INPUT_TOKENS")

    def _placed(self, spans: tuple[Span, ...]) -> tuple[Span, ...]:
        origins = self._session.origins if self._session is not None else {}
        if not origins:
            return spans
        return tuple(dataclasses.replace(span, origin=origins.get(span.span_id)) for span in spans)

    def keep(self, directory: Path | None = None) -> Path:
        """Copy the database, by default beside the artifacts; returns the copy. Artifact locations in
        it stay as they are."""
        if self._closed:
            raise StoreError(f"the MLflow store of {self._name} is closed: its database has been reused")
        self.drain()
        directory = self.artifacts.parent if directory is None else directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the temporary MLflow store cannot be copied to {directory}: {error}") from None
        copy = directory / "mlflow.db"
        if copy == self.path:
            copy = directory / "mlflow-kept.db"
        self._factory.database.copy_to(copy)
        return copy

    def _close(self) -> None:
        self._requested = self._collect_requested()
        self._closed = True


class StoreFactory:
    """Makes the stores of one process, one at a time; everything costly is made once, when first used.

    `root` is a folder of this process's own; `cache` holds the template database (by default the user's
    cache folder; where that cannot be written, `root`). `import_requests` is what modules asked of
    MLflow while `redirect_at_import` watched them.
    """

    def __init__(self, root: Path, *, cache: Path | None = None) -> None:
        self._root = Path(root).absolute()
        self._cache = (cache_directory() if cache is None else Path(cache)).absolute()
        self._database: Database | None = None
        self._store: Any = None
        self._client: Any = None
        self._exporter: Exporter | None = None
        self._current: str | None = None
        self._experiment_id = _STRIDE * (100_000 + secrets.randbelow(900_000))
        self._folders: set[str] = set()
        self._import_experiments: dict[int, str] = {}
        self.import_requests: list[str] = []

    @property
    def database(self) -> Database:
        if self._database is None:
            try:
                self._database = Database(self._root, self._cache)
            except OSError as error:
                raise StoreError(f"the temporary MLflow store cannot be made in {self._root}: {error}") from error
        return self._database

    def sweep(self) -> None:
        """After a test's last fixture is torn down: put back variables that a `monkeypatch` outliving the
        store has set to the store's own values."""
        if self._current is None:
            sweep()
            sweep_key()

    def close(self) -> None:
        """Close the connections this process has to its database."""
        self._client = None
        if self._store is not None:
            self._store.engine.dispose()
            self._store = None
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def open(
        self, name: str, *, autolog: Sequence[str] = ("langchain",), run_tracer_inline: bool | None = None
    ) -> Iterator[MlflowStore]:
        """An empty store under MLflow's global state; afterwards that state is as it was before."""
        if self._current is not None:
            raise StoreError(f"{name}: the temporary MLflow store is already open for {self._current}")
        if (stranger := _stranger()) is not None:
            raise StoreError(
                f"{name}: sys.modules['mlflow'] is a {stranger}: put it there for less than the whole test, or leave "
                "this test without the fixture"
            )
        self._experiment_id += _STRIDE
        artifacts = self._folder(name) / "artifacts"
        with ExitStack() as stack:
            # MLflow warns of itself while it is imported and opened: no fault of a suite that makes warnings errors.
            with muted():
                self._restore(name, artifacts)
                store = MlflowStore(self, name, self._experiment_id, artifacts)
                self._current = name
                stack.callback(self._let_go)
                try:
                    self._enter(stack, store, autolog, run_tracer_inline)
                except LookupError as error:
                    raise StoreError(str(error)) from None
            stack.callback(store._close)
            yield store

    def _enter(
        self, stack: ExitStack, store: MlflowStore, autolog: Sequence[str], run_tracer_inline: bool | None
    ) -> None:
        stack.enter_context(THREADS.following())
        exporter = self._own_exporter()
        provider = exporter.provider if exporter is not None else None
        stack.enter_context(set_aside(self.database.uri, store.experiment_id, provider))
        self._tracking_store(store.artifacts)
        if exporter is not None:
            store._session = stack.enter_context(exporter.session())
        store._redirect = stack.enter_context(Redirect(store.uri, store.experiment_id, provider))
        store._autolog = Autolog(autolog, run_tracer_inline)
        stack.callback(store._autolog.close)
        store._autolog.start()

    def client(self) -> Any:
        """MLflow's client of this store, held since it was first opened: a test may replace its class."""
        if self._client is None:
            self._client = genuine("MlflowClient", *CLIENT)(tracking_uri=self.database.uri)
        return self._client

    def _let_go(self) -> None:
        self._current = None
        if self._exporter is not None:
            self._exporter.hold_back()

    def _folder(self, name: str) -> Path:
        """A folder for the test, named after it: legal everywhere, never given twice."""
        slug = re.sub(r"[^A-Za-z0-9.-]+", "_", name)[-80:].strip("._") or "test"
        folder, number = slug, 1
        while folder.lower() in self._folders:
            number += 1
            folder = f"{slug}-{number}"
        self._folders.add(folder.lower())
        return self._root / folder

    def _restore(self, name: str, artifacts: Path) -> None:
        self.database.restore(name, self._experiment_id, artifacts.as_uri(), self._import_experiments)

    def _own_exporter(self) -> Exporter | None:
        """The exporter of this process; None where this MLflow must be left to its own."""
        if self._exporter is None and direct():
            try:
                self._exporter = Exporter(self.database.uri, THREADS)
            except (ImportError, AttributeError, TypeError):
                return None
        return self._exporter

    def _tracking_store(self, artifacts: Path) -> None:
        """MLflow's store object for our URI: a fast connection, artifacts of new experiments in our folder."""
        if self._store is None:
            self._store = getattr(getattr(self.client(), "_tracking_client", None), "store", None)
            if self._store is None:
                return
            from sqlalchemy import event

            event.listen(self._store.engine, "connect", without_durability)
            self._store.engine.dispose()  # those connected before
        self._store.artifact_root_uri = artifacts.as_uri()

    def drain(self, session: Session, timeout: float) -> None:
        if self._exporter is not None:
            self._exporter.drain(session, timeout)

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Redirect what a module asks of MLflow while it is imported, and remember it.

        Afterwards the tracking and registry URI it asked for are in force, as the rest of the session
        expects; experiments it made are in every later store under the same id.
        """
        artifacts = self._root / "import" / "artifacts"
        if self._current is not None or _stranger() is not None:
            yield
            return
        self._experiment_id += _STRIDE
        self._restore("an import", artifacts)
        redirect = Redirect(self.database.uri, None, None)
        try:
            with set_aside(self.database.uri, None, None):
                with muted():
                    self._tracking_store(artifacts)
                with redirect:
                    yield
        finally:
            self.import_requests += redirect.requests
            own = {0: "Default", self._experiment_id: EXPERIMENT}
            self._import_experiments |= {
                number: name for number, name in self.database.experiments().items() if number not in own
            }
            put_in_force(redirect.asked)


@contextmanager
def redirect_at_import(factory: Callable[[], StoreFactory]) -> Iterator[None]:
    """Around the import of a module: what it asks of MLflow at its top level reaches no other store.

    Imports no mlflow itself; a module that imports none either costs nothing.
    """
    with ExitStack() as stack:

        def begin() -> None:
            stack.enter_context(factory().importing())

        if "mlflow" in sys.modules:
            begin()
        else:
            stack.enter_context(after_import("mlflow", begin))
        yield


def _stranger() -> str | None:
    """The type of what stands in MLflow's place, where it is no module."""
    import mlflow

    return None if isinstance(mlflow, ModuleType) and hasattr(mlflow, "__file__") else type(mlflow).__name__


def _read_traces(client: Any, database: Database) -> list[Trace]:
    locations = [str(number) for number in database.experiments()]
    try:
        return sorted(_pages(client, locations), key=_start)
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


def _flat(traces: Sequence[Trace]) -> tuple[Span, ...]:
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


def _open_spans(session: Session) -> tuple[Span, ...]:
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
