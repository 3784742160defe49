"""The SQLite file behind the temporary MLflow store: made once per machine, restored for each test.

A new MLflow database runs every migration, 2 to 9 seconds. So a template is made once per machine and
MLflow version, held in memory by each process and copied over the same live file for each test, in a
few milliseconds, while MLflow's engine for that file stays open.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from sqlite3 import connect  # held here: a test may replace it on the module
from typing import Any

from pytest_agenttrace.store.mlflow_state import muted

__all__ = ["Database", "StoreError", "cache_directory", "store_uri", "without_durability"]

# The experiment that stands ready in the template, under the id of whichever test is running.
EXPERIMENT = "pytest-agenttrace"
# Raised when the template's own content changes; MLflow's version is in the name beside it.
_FORMAT = 1
_BUILD_SECONDS = 120.0
# Between two tries to copy a database that is in use.
_PAUSE = 0.02
# How long a statement waits for a lock. MLflow's own connections wait for 20.
_BUSY_SECONDS = 5.0


class StoreError(Exception):
    """The temporary MLflow store cannot be made, restored, drained or read; says what to do."""


def cache_directory() -> Path:
    """Where this user's caches are: XDG_CACHE_HOME, LOCALAPPDATA on Windows, else ~/.cache; for a user
    without a home, a folder among the temporary files. Relative paths are passed over, as the XDG Base
    Directory Specification asks."""
    given = Path(os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", ""))
    if given.is_absolute():
        return given / "pytest-agenttrace"
    with contextlib.suppress(RuntimeError):
        home = Path.home()
        if home.is_absolute():
            return home / ".cache" / "pytest-agenttrace"
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return Path(tempfile.gettempdir()).absolute() / f"pytest-agenttrace-{user}"


def store_uri(path: Path) -> str:
    """MLflow's URI of a SQLite file."""
    return f"sqlite:///{path.as_posix()}"


class Database:
    """The live file of this process, and the template it is restored from."""

    def __init__(self, directory: Path, cache: Path) -> None:
        self.path = directory / "mlflow.db"
        self.uri = store_uri(self.path)
        directory.mkdir(parents=True, exist_ok=True)
        self._template = load_template(cache, directory)
        self._live = _connect(self.path)
        self._holder = ""

    def close(self) -> None:
        self._live.close()
        self._template.close()

    def restore(
        self,
        holder: str,
        experiment_id: int,
        artifacts: str,
        more: Mapping[int, str],
        deadline: float = 10.0,
        *,
        template: sqlite3.Connection | None = None,
    ) -> None:
        """Empty the live file and give it this test's experiment, and more of them by id and name; or make it a copy
        of another template than the empty one.

        `deadline` is in seconds; StoreError names `holder` of the last restore, whose connection is
        still in a transaction when it passes.
        """
        template = self._template if template is None else template
        _prepare(template, experiment_id, artifacts, more)
        try:
            # The busy timeout would count for each try.
            self._live.execute("PRAGMA busy_timeout = 0")
            _copy(template, self._live, deadline)
        except TimeoutError:
            raise self._in_use("emptied", deadline, "left") from None
        except sqlite3.Error as error:
            raise StoreError(f"the temporary MLflow store {self.path} cannot be written: {error}") from None
        finally:
            _set_busy_timeout(self._live)
        self._holder = holder

    def _in_use(self, done: str, deadline: float, verb: str) -> StoreError:
        user = f"{self._holder} {verb}" if self._holder else "somebody has"
        return StoreError(
            f"the MLflow store is locked: {user} a transaction open on it\n"
            f"  {self.path} could not be {done} within {deadline:g} s\n"
            "  Close every connection the test opens to the store."
        )

    def as_template(self, experiment: str, experiment_id: int) -> sqlite3.Connection:
        """A copy of the live file in memory, to restore from: what was written to the test's experiment stays there,
        under another name and this id."""
        memory = connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            _copy(self._live, memory, 10.0)
        except TimeoutError:
            raise self._in_use("copied", 10.0, "holds") from None
        memory.execute("UPDATE experiments SET name = ? WHERE name = ?", (experiment, EXPERIMENT))
        _add_experiment(memory, experiment_id, EXPERIMENT, like=experiment)
        return memory

    def experiments(self) -> dict[int, str]:
        """The experiments in the live file by id, and their names. StoreError where it cannot be read."""
        try:
            rows = self._live.execute("SELECT experiment_id, name FROM experiments").fetchall()
            return {int(number): name for number, name in rows}
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise StoreError(f"the temporary MLflow store {self.path} cannot be read: {error}") from None
            raise self._in_use("read", _BUSY_SECONDS, "holds") from None
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise StoreError(f"the temporary MLflow store {self.path} cannot be read: {error}") from None

    def copy_to(self, target: Path, deadline: float = 10.0) -> None:
        """Copy the live file, as its last committed transaction left it. StoreError after `deadline` seconds."""
        try:
            with closing(connect(target)) as copy:
                without_durability(copy)
                _copy(self._live, copy, deadline)
        except TimeoutError:
            raise self._in_use("copied", deadline, "holds") from None
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"the temporary MLflow store cannot be copied to {target}: {error}") from None


def _copy(source: sqlite3.Connection, target: sqlite3.Connection, deadline: float) -> None:
    """SQLite's backup, which by itself tries for ever; TimeoutError after `deadline` seconds.

    Counts its own pauses: a test may have stopped the clock.
    """
    tries = 0

    def give_up_late(_status: int, _remaining: int, _total: int) -> None:
        nonlocal tries
        tries += 1
        if tries * _PAUSE > deadline:
            raise TimeoutError

    source.backup(target, progress=give_up_late, sleep=_PAUSE)


def _connect(path: Path) -> sqlite3.Connection:
    """A connection without implicit transactions and without durability: the file is temporary."""
    connection = connect(path, isolation_level=None, check_same_thread=False)
    _set_busy_timeout(connection)
    without_durability(connection)
    return connection


def without_durability(connection: Any, _record: object = None) -> None:
    """Let a connection wait for no disk: none of our databases outlives its machine's crash."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous=OFF")
    cursor.execute("PRAGMA journal_mode=MEMORY")
    cursor.close()


def _set_busy_timeout(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_SECONDS * 1000:.0f}")


def _prepare(template: sqlite3.Connection, experiment_id: int, artifacts: str, more: Mapping[int, str]) -> None:
    """Set the experiments in memory, so that the live file changes in one step."""
    for number, name in more.items():
        _add_experiment(template, number, name)
    template.execute("UPDATE experiments SET experiment_id = ? WHERE name = ?", (experiment_id, EXPERIMENT))
    template.execute("UPDATE experiments SET artifact_location = ? || '/' || experiment_id", (artifacts,))


def _add_experiment(connection: sqlite3.Connection, number: int, name: str, like: str = EXPERIMENT) -> None:
    """Copy the row of the ready experiment, whatever columns this MLflow version gives it."""
    row = connection.execute("SELECT * FROM experiments WHERE name = ?", (like,))
    columns = [column[0] for column in row.description]
    values = dict(zip(columns, row.fetchone(), strict=True)) | {"experiment_id": number, "name": name}
    marks = ", ".join("?" * len(columns))
    statement = f"INSERT OR REPLACE INTO experiments VALUES ({marks})"  # noqa: S608  # nothing but marks
    connection.execute(statement, [values[column] for column in columns])


def load_template(cache: Path, directory: Path) -> sqlite3.Connection:
    """The template in memory, made first where there is none or a broken one.

    A cache that cannot be written is passed over: the template is then made in `directory`.
    """
    import mlflow

    name = f"mlflow-{mlflow.__version__}-{_FORMAT}.db"
    if (found := _read(cache / name)) is not None:
        return found
    try:
        with _one_builder(cache):
            found = _read(cache / name) or _build(cache, name)
    except OSError:
        found = _build(directory, f"template-{name}")
    return found


def _read(path: Path) -> sqlite3.Connection | None:
    """A database in memory; None where the file is absent, broken or not a template."""
    if not path.is_file():
        return None
    memory = connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        with closing(connect(f"{path.as_uri()}?mode=ro", uri=True)) as stored:
            stored.backup(memory)
        whole = memory.execute("PRAGMA quick_check").fetchone() == ("ok",)
        ready = memory.execute("SELECT count(*) FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone() == (1,)
    except sqlite3.Error:
        whole = ready = False
    if whole and ready:
        return memory
    memory.close()
    return None


@contextmanager
def _one_builder(cache: Path) -> Iterator[None]:
    """Let one process build and the others wait; where files cannot be locked, all may build."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("a") as file:
        try:
            import fcntl
        except ImportError:  # Windows: building twice is slow, not wrong
            yield
            return
        clock = threading.Event()  # never set: a test may have replaced `time.sleep`, and stopped the clock
        for _ in range(int(_BUILD_SECONDS / 0.05)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                clock.wait(0.05)
        yield


def _build(directory: Path, name: str) -> sqlite3.Connection:
    """Make the template by MLflow's own means, in a folder of its own, and move it into place."""
    scratch = Path(tempfile.mkdtemp(prefix="building-", dir=directory))
    try:
        uri = store_uri(scratch / name)
        with muted():
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            make: Any = SqlAlchemyStore
            store = make(uri, (scratch / "artifacts").as_uri())
            store.create_experiment(EXPERIMENT, (scratch / "artifacts").as_uri())
        store.engine.dispose()
        getattr(SqlAlchemyStore, "_engine_map", {}).pop(uri, None)  # kept for ever otherwise
        with closing(_connect(scratch / name)) as made:
            made.execute("PRAGMA journal_mode=DELETE")
            made.execute("VACUUM")
        found = _read(scratch / name)
        if found is None:
            raise StoreError(f"MLflow made no usable database in {scratch}")
        with contextlib.suppress(PermissionError):  # Windows: another process reads the same template
            (scratch / name).replace(directory / name)
        return found
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
