"""A temporary MLflow store for each test: real SQLite, empty, autologging on, nothing left behind.

With its rooms (`database`, `exporter`, `mlflow_state`, `redirect`, `spans`) the core's only importer of
mlflow; `tracking` and `routed` are the stores that workflows name. Tried with MLflow 3.9 and 3.17.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import environ, times  # held here: a test may replace them on the module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.environment import sweep_key
from pytest_agenttrace.execution import Span
from pytest_agenttrace.importing import after_import
from pytest_agenttrace.network import allowed, guarded
from pytest_agenttrace.store.base_exceptions import recorded
from pytest_agenttrace.store.database import EXPERIMENT, Database, StoreError, cache_directory, without_durability
from pytest_agenttrace.store.exporter import Exporter, Session
from pytest_agenttrace.store.kept import Kept, finish
from pytest_agenttrace.store.mlflow_state import CLIENT, Autolog, direct, genuine, muted, set_aside, sweep
from pytest_agenttrace.store.obstacles import Obstacle, find_obstacle
from pytest_agenttrace.store.reading import read_open, read_stored, read_traces
from pytest_agenttrace.store.redirect import Redirect, mask, put_in_force
from pytest_agenttrace.store.routed import Edit, NotTraceable, Recording, TraceFacts
from pytest_agenttrace.store.seeding import SEED, UNSEEDED, Seed, failed, no_seed, refused
from pytest_agenttrace.store.spans import read_usage
from pytest_agenttrace.store.tracking import (
    ParamValue,
    Tracked,
    Tracking,
    TrackingFailed,
    absolute_uri,
    is_files,
    langchain_tracer,
    mlflow_version,
    open_tracking,
)
from pytest_agenttrace.threads import THREADS
from pytest_agenttrace.usage import TraceTotal

if TYPE_CHECKING:
    from mlflow.entities import Trace

    from pytest_agenttrace.trace import Trace as PlainTrace

__all__ = [
    "Edit",
    "Kept",
    "MlflowStore",
    "NotTraceable",
    "Obstacle",
    "ParamValue",
    "Recording",
    "StoreError",
    "StoreFactory",
    "TraceFacts",
    "Tracked",
    "Tracking",
    "TrackingFailed",
    "absolute_uri",
    "is_files",
    "langchain_tracer",
    "mlflow_version",
    "open_tracking",
    "redirect_at_import",
    "test_store_is_open",
]

_LOCKED = "database is locked"
_FLUSHING = re.compile(r"\(raised as a result of [^\n]*\)\n")
# Experiment ids between two tests, for those the code under test makes itself.
_STRIDE = 1000


class MlflowStore:
    """A test's MLflow store: `uri`, `path` of the SQLite file, `experiment_id`, `artifacts` (a folder
    that is there once something was written to it).

    Reading drains MLflow's exporter first. After the test what was read last can be read again;
    anything else raises StoreError.
    """

    def __init__(
        self, factory: StoreFactory, name: str, experiment_id: int, artifacts: Path, seed: Seed = UNSEEDED
    ) -> None:
        self.uri = factory.database.uri
        self.path = factory.database.path
        self.experiment_id = str(experiment_id)
        self.artifacts = artifacts
        self._name = name
        self._seed = seed
        self._factory = factory
        self._session: Session | None = None
        self._redirect: Redirect | None = None
        self._autolog: Autolog | None = None
        self._closed = False
        self._requested: tuple[str, ...] = ()
        self._obstacle: Obstacle | None = None
        self._programs_ran = _programs_ran()
        self._traces: tuple[Trace, ...] | None = None
        self._spans: tuple[int, tuple[Span, ...]] | None = None
        self._held: Path | None = None

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
        return (*requests, *(self._autolog.turned_off() if self._autolog is not None else ()))

    @property
    def obstacle(self) -> Obstacle | None:
        """What keeps MLflow from tracing a graph of this test; None where nothing does."""
        return self._obstacle if self._closed else self._find_obstacle()

    def _find_obstacle(self) -> Obstacle | None:
        if self._redirect is None or self._autolog is None:
            return None
        return find_obstacle(self._redirect, self._autolog)

    @property
    def export_errors(self) -> tuple[str, ...]:
        """What kept MLflow from writing spans and traces of this test, in its own words, each cause once."""
        causes: dict[str, str] = {}
        for error in self._session.errors if self._session is not None else ():
            text = _first_line(error)
            cause = text.partition(": ")[2] or text
            way_out = f"\n  Close every connection the test opens to {self.path}." if _LOCKED in text else ""
            causes.setdefault(cause, f"{text}{way_out}")
        return tuple(causes.values())

    @property
    def foreign_threads(self) -> tuple[str, ...]:
        """Names of the threads left by earlier tests whose traces were started in this one and dropped."""
        return tuple(dict.fromkeys(self._session.foreign)) if self._session is not None else ()

    @property
    def running_threads(self) -> tuple[str, ...]:
        """Names of the threads that the test has started and that are still running."""
        return tuple(THREADS.running)

    @property
    def programs_ran(self) -> float:
        """Seconds of CPU time of the programs that have ended since the test began."""
        return _programs_ran() - self._programs_ran

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
        self._traces = tuple(read_traces(self._factory.client(), self._factory.database, self._seed.traces))
        return list(self._traces)

    def spans(self) -> tuple[Span, ...]:
        """All spans of this test, flat, in order of trace and start; those still running have status "open"."""
        if self._closed:
            if self._spans is None:
                self.traces()  # raises, or there is something to convert
                self._spans = 0, self._placed(read_stored(self._traces or ()))
            return self._spans[1]
        self.drain()
        session = self._session
        generation = session.generation if session is not None else -1
        # While a trace is running it grows without an export.
        if session is not None and not session.open and self._spans is not None and self._spans[0] == generation:
            return self._spans[1]
        open_spans = read_open(session) if session is not None else ()
        running = {span.trace_id for span in open_spans}
        stored = [span for span in read_stored(self.traces()) if span.trace_id not in running]
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

    def hold(self) -> None:
        """Copy the database for a `keep` that may be asked for once another test has this store."""
        self._held = self._copied(self.artifacts.parent / ".mlflow.db")
        self._factory.held.append(self._held)

    def keep(self, directory: Path | None = None, *, outcome: str = "run", trace: PlainTrace | None = None) -> Kept:
        """Copy the database, by default beside the artifacts, so that it can be moved with them and read without us:
        `outcome` and the test's name are tags of its traces, `trace` says what each node has used."""
        directory = self.artifacts.parent if directory is None else directory
        copy = directory / ("mlflow.db" if directory != self.path.parent else "mlflow-kept.db")
        if self._held is not None:
            self._held.replace(copy)
            self._held = None
        else:
            self._copied(copy)
        made_in = [self.artifacts, *([self._seed.artifacts] if self._seed.artifacts is not None else ())]
        facts = {"test": self._name, "outcome": outcome, "trace": trace, "others": self._seed.traces}
        return finish(copy, directory / "artifacts", made_in, **facts)  # type: ignore[arg-type]  # as it takes them

    def _copied(self, copy: Path) -> Path:
        if self._closed and not self._factory.holds(self.experiment_id):
            raise StoreError(f"the MLflow store of {self._name} is closed: its database has been reused")
        self.drain()
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the temporary MLflow store cannot be copied to {copy.parent}: {error}") from None
        self._factory.database.copy_to(copy)
        return copy

    def _close(self) -> None:
        self._requested, self._obstacle = self._collect_requested(), self._find_obstacle()
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
        self._seeds: dict[Callable[[], object], Seed] = {}
        self._experiment_id = _STRIDE * (100_000 + secrets.randbelow(900_000))
        self._folders: set[str] = set()
        self._import_experiments: dict[int, str] = {}
        self.import_requests: list[str] = []
        # Copies that nobody may have come to ask for.
        self.held: list[Path] = []

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

    def holds(self, experiment_id: str) -> bool:
        """Whether the database is still as the last test has left it, whose experiment this is."""
        return self._current is None and self._database is not None and experiment_id == str(self._experiment_id)

    def close(self) -> None:
        """Close the connections this process has to its database."""
        for copy in self.held:
            copy.unlink(missing_ok=True)
        self._client = None
        for seed in self._seeds.values():
            seed.close()
        self._seeds.clear()
        if self._store is not None:
            self._store.engine.dispose()
            self._store = None
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def open(
        self,
        name: str,
        *,
        autolog: Sequence[str] = ("langchain",),
        run_tracer_inline: bool | None = None,
        seed: Callable[[], object] | None = None,
    ) -> Iterator[MlflowStore]:
        """An empty store under MLflow's global state; afterwards that state is as it was before. With a `seed` it holds
        what that wrote when it was called, once in this process."""
        seeded = UNSEEDED if seed is None else self._seeded(seed)
        with self._opened(name, autolog, run_tracer_inline, seeded) as store:
            yield store

    def _seeded(self, function: Callable[[], object]) -> Seed:
        """What the function has written. StoreError where it failed, each time."""
        if (wrong := no_seed(function)) is not None:
            raise StoreError(wrong)
        if function not in self._seeds and self._current is None:
            with self._opened(SEED, (), None, UNSEEDED) as store:
                self._seeds[function] = self._written_by(function, store)
        found = self._seeds.get(function, UNSEEDED)
        if found.error is not None:
            raise StoreError(found.error)
        return found

    def _written_by(self, function: Callable[[], object], store: MlflowStore) -> Seed:
        try:
            with guarded(allowed(()), refused):
                function()
        except Exception as error:
            return Seed(error=failed(function, error))
        traces = frozenset(trace.info.trace_id for trace in store.traces())
        template = self.database.as_template(SEED, self._experiment_id + _STRIDE)
        return Seed(template, traces, artifacts=store.artifacts)

    @contextmanager
    def _opened(
        self, name: str, autolog: Sequence[str], run_tracer_inline: bool | None, seed: Seed
    ) -> Iterator[MlflowStore]:
        if self._current is not None:
            raise StoreError(
                f"{name}: the temporary MLflow store is already open for {self._current}\n"
                "  Where that is a run of agent_run: end its block before its fixture returns or yields."
            )
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
                self._restore(name, artifacts, seed)
                store = MlflowStore(self, name, self._experiment_id, artifacts, seed)
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
        stack.enter_context(recorded())
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

    def _restore(self, name: str, artifacts: Path, seed: Seed = UNSEEDED) -> None:
        # What the seed saw of them is in its template.
        more = self._import_experiments if seed is UNSEEDED else {}
        self.database.restore(name, self._experiment_id, artifacts.as_uri(), more, template=seed.template)

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


def test_store_is_open() -> bool:
    """Whether a test's temporary store stands for all others in this process just now."""
    return Redirect.is_active()


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


def _first_line(error: str) -> str:
    """What failed, without the statement that SQLAlchemy goes on with, and without its word that it was flushing."""
    return next(iter(_FLUSHING.sub("", error).splitlines()), "")


def _programs_ran() -> float:
    """Seconds of CPU time of this process's children so far; 0 on Windows, which does not tell."""
    spent = times()
    return spent.children_user + spent.children_system


def _stranger() -> str | None:
    """The type of what stands in MLflow's place, where it is no module."""
    import mlflow

    return None if isinstance(mlflow, ModuleType) and hasattr(mlflow, "__file__") else type(mlflow).__name__
