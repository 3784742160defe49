"""A kept store: a folder that opens in `mlflow ui` wherever it is moved, with what we know of each node in it.

MLflow has no public way to say where a run's artifacts are now, nor to add to a span that has ended: both are written
to the copied database by SQL, each in one step or not at all. Tried with MLflow 3.9 and 3.17.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import connect  # held here: a test may replace it on the module
from typing import TYPE_CHECKING

from pytest_agenttrace.calls import Asked, ModelCall, Pricer, sum_cost, sum_tokens, sum_usage
from pytest_agenttrace.store.database import store_uri, without_durability
from pytest_agenttrace.usage import UnknownTokens, UsageUnknown

if TYPE_CHECKING:
    from pytest_agenttrace.trace import Trace

__all__ = ["Kept", "finish"]

# Served by `mlflow ui --artifacts-destination`: the one location that does not depend on where the folder is.
_SERVED = "mlflow-artifacts:/"
_README = "README.txt"
_UNKNOWN = "unknown"
# What another layout of MLflow's tables, or a part of Python that the test has replaced, ends in.
_FAILURES = (sqlite3.Error, OSError, ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept store: `path` of its database, `artifacts` (a folder beside it, there where something was written to it).
    `lacks` says what could not be written to it, "" where nothing; `empty` is true where there is nothing to see in
    it: no trace of the test's, no run, no prompt and no model."""

    path: Path
    artifacts: Path
    lacks: str = ""
    empty: bool = False

    @property
    def command(self) -> str:
        """What opens it, from any directory, as a line for a shell."""
        return _command(self.path, self.artifacts)

    def read_by_failed_test(self) -> None:
        """Say so in the store of a run that has ended well."""
        with suppress(*_FAILURES), closing(connect(self.path)) as database, database:
            database.execute("UPDATE trace_tags SET value = 'failed' WHERE key = 'agenttrace.outcome'")


def finish(
    path: Path,
    artifacts: Path,
    made_in: Iterable[Path],
    *,
    test: str,
    outcome: str,
    trace: Trace | None,
    others: Container[str] = (),
) -> Kept:
    """Make a copied database one that can be moved and read: `artifacts` lies beside it and holds what was written to
    the folders `made_in`. `outcome` and `test` become tags of every trace but `others`; of `trace`, which may be None,
    each trace, node and call gets its tokens and its cost."""
    lacks = [
        *_tried(
            "artifacts are looked for where they were", lambda database: _relocate(database, made_in, artifacts), path
        ),
        *_tried(
            "tokens and cost per node are not in it",
            lambda database: _write(database, test, outcome, trace, others),
            path,
        ),
    ]
    with suppress(OSError):
        (path.parent / _README).write_text(_readme(path, artifacts, test, outcome), encoding="utf-8")
    return Kept(path, artifacts, "; ".join(lacks), empty=_is_empty(path, others))


def _tried(otherwise: str, step: Callable[[sqlite3.Connection], None], path: Path) -> Iterator[str]:
    try:
        with closing(connect(path)) as database, database:
            without_durability(database)
            step(database)
    except _FAILURES as error:
        yield f"{otherwise}: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _is_empty(path: Path, others: Container[str]) -> bool:
    with suppress(*_FAILURES), closing(connect(path)) as database:
        return not (
            any(found not in others for (found,) in database.execute("SELECT request_id FROM trace_info"))
            or database.execute("SELECT 1 FROM runs UNION ALL SELECT 1 FROM registered_models").fetchone()
        )
    return False


def _command(path: Path | str, artifacts: Path | str) -> str:
    uri = store_uri(Path(path))
    return shlex.join(["mlflow", "ui", "--backend-store-uri", uri, "--artifacts-destination", str(artifacts)])


def _readme(path: Path, artifacts: Path, test: str, outcome: str) -> str:
    import mlflow

    return (
        f"The MLflow store of {test} ({outcome}). To open it, in this folder, wherever it is:\n\n"
        f"    {_command(path.name, artifacts.name)}\n\n"
        f"MLflow {mlflow.__version__} wrote it. A newer one upgrades the database when it opens it, which an older\n"
        "one then refuses: open a copy where that matters.\n"
    )


# Where artifacts are


def _relocate(database: sqlite3.Connection, made_in: Iterable[Path], artifacts: Path) -> None:
    """Whatever names a place in one of these folders, in whichever table, names the same place as it is served."""
    columns = list(_text_columns(database))
    for folder in made_in:
        if folder != artifacts and folder.is_dir():
            shutil.copytree(folder, artifacts, copy_function=_linked, dirs_exist_ok=True)
        for prefix in (f"{folder.as_uri()}/", f"{folder.as_posix()}/"):
            for table, column in columns:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608  # names of the database's own
                    (_SERVED, len(prefix) + 1, len(prefix), prefix),
                )


def _text_columns(database: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """Every column that may hold text, quoted, with its table."""
    tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in tables:
        for column, declared in database.execute("SELECT name, type FROM pragma_table_info(?)", (table,)).fetchall():
            if "CHAR" in declared.upper() or "TEXT" in declared.upper():
                yield f'"{table}"', f'"{column}"'


def _linked(source: str, target: str) -> None:
    """A second name of the same file; a copy where the file system has no links, or the name is taken."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# What we know


def _write(database: sqlite3.Connection, test: str, outcome: str, trace: Trace | None, others: Container[str]) -> None:
    traces = [found for (found,) in database.execute("SELECT request_id FROM trace_info") if found not in others]
    totals = dict(_totals(trace)) if trace is not None else {}
    for trace_id in traces:
        tags = {"agenttrace.test": test, "agenttrace.outcome": outcome, **totals.get(trace_id, {})}
        database.executemany(
            "INSERT OR REPLACE INTO trace_tags (request_id, key, value) VALUES (?, ?, ?)",
            [(trace_id, key, str(value)) for key, value in tags.items()],
        )
    for trace_id, span_id, numbers in _by_span(trace) if trace is not None else ():
        _add_attributes(database, trace_id, span_id, numbers)


def _add_attributes(
    database: sqlite3.Connection, trace_id: str, span_id: str, numbers: Mapping[str, int | str]
) -> None:
    """MLflow keeps a span as JSON, each of its attributes as JSON within."""
    where = "WHERE trace_id = ? AND span_id = ?"
    found = database.execute(f"SELECT content FROM spans {where}", (trace_id, span_id)).fetchone()  # noqa: S608  # a constant
    if found is None:
        return  # never stored
    content = json.loads(found[0])
    content["attributes"].update({name: json.dumps(value) for name, value in numbers.items()})
    database.execute(f"UPDATE spans SET content = ? {where}", (json.dumps(content), trace_id, span_id))  # noqa: S608  # a constant


def _totals(trace: Trace) -> Iterator[tuple[str, Mapping[str, int | str]]]:
    """The numbers of each run, by the id of its trace."""
    calls: dict[str, list[ModelCall]] = {}
    for root in trace.roots:
        calls.setdefault(root.trace_id, []).extend(trace.model_calls_of(root))
    for trace_id, made in calls.items():
        yield trace_id, _numbers(made, _quiet(trace.pricer))


def _by_span(trace: Trace) -> Iterator[tuple[str, str, Mapping[str, int | str]]]:
    """The numbers of each node, each call and each run, on the span that stands for it in the drawn tree."""
    price = _quiet(trace.pricer)
    for span in trace.spans():
        if numbers := _numbers(trace.model_calls_of(span), price):
            yield span.trace_id, span.span_id, numbers


def _quiet(pricer: Pricer) -> Pricer:
    """Prices that the test has not asked for."""
    return pricer.price if isinstance(pricer, Asked) else pricer


def _numbers(calls: Sequence[ModelCall], price: Pricer) -> dict[str, int | str]:
    """Nothing where no model was called; what nobody reported, or nobody has a price for, is "unknown"."""
    if not calls:
        return {}
    usage, tokens = sum_usage(calls), sum_tokens(calls, "")
    try:
        cost = format(sum_cost(calls, price, ""), "f")
    except (LookupError, UsageUnknown):
        cost = _UNKNOWN
    return {
        "agenttrace.tokens": _UNKNOWN if isinstance(tokens, UnknownTokens) else int(tokens),
        "agenttrace.input_tokens": _UNKNOWN if usage.input_tokens is None else usage.input_tokens,
        "agenttrace.output_tokens": _UNKNOWN if usage.output_tokens is None else usage.output_tokens,
        "agenttrace.cost_usd": cost,
    }
