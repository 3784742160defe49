"""A run of a workflow under its observer: each key of `observability.mlflow`, on and off, in a real store."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from decimal import Decimal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace.gemini_server import ErrorReply, GeminiServer, Reply, ScriptedRequest
from pytest_agenttrace.workflow.observing import Observer, TracingFailed
from tests.observed import (
    PROMPT,
    REPLY,
    STATE,
    Watched,
    config,
    files_with,
    folder_fixture,
    graph,
    metrics,
    model_fixture,
    ready_database,
    rows,
    scripted,
    spans_of,
    watched,
)

__all__ = ["folder_fixture", "model_fixture"]

# gemini-2.5-flash: $0.30 and $2.50 for a million tokens; 361 in, 1,113 out.
COST = Decimal("0.0028908")
MLFLOW = tuple(int(part) for part in version("mlflow").split(".")[:2])


def ran(model: GeminiServer, keys: str = "enabled: true", node: str = "", **how: Any) -> Watched:
    """One run. Written in its own thread unless a test says otherwise: the threads of MLflow's queue stay, and are
    waited for at the end of the suite."""
    if "async_logging" not in keys:
        keys += ", async_logging: false"
    return watched(graph(model.url), config(keys, node), **how)


def ok(done: Watched) -> Watched:
    """A run that went well, and was traced without a problem."""
    assert done.error is None
    assert done.observer.problems == []
    assert done.warned == []
    assert done.state == {"topic": STATE, "notes": f"{REPLY} notes", "article": f"{REPLY} article"}
    return done


# The account


def test_a_run_is_in_the_store_with_numbers_equal_to_trace_and_wire(folder: Path, model: GeminiServer) -> None:
    done = ok(ran(model))

    trace = done.observer.trace
    assert trace is not None
    assert trace.trajectory == ["research", "write"]
    # The wire: what the server was asked, and answered each time.
    assert len(model.requests) == len(done.observer.calls) == 2
    billed = [call.usage for call in done.observer.calls]
    assert [usage and (usage.input_tokens, usage.output_tokens) for usage in billed] == [(150, 500), (211, 613)]
    # The store, read without MLflow and without us.
    found = metrics(folder / "mlflow.db")
    assert found.pop("duration") == pytest.approx(sum(_seconds(root) for root in trace.roots))
    assert found == {
        "total_cost_usd": float(COST),
        "total_tokens": 1474.0,
        "prompt_tokens": 361.0,
        "completion_tokens": 1113.0,
        "node_count": 2.0,
    }
    assert (trace.cost, trace.tokens) == (COST, 1474)
    assert (trace.usage.input_tokens, trace.usage.output_tokens) == (361, 1113)


def _seconds(span: Any) -> float:
    return float((span.end_ns - span.start_ns) / 1e9)


def test_the_trace_stands_below_the_workflows_name_and_is_linked_to_the_run(folder: Path, model: GeminiServer) -> None:
    done = ok(ran(model))

    spans = spans_of(folder / "mlflow.db")
    names = {span["span_id"]: span["name"] for span in spans}
    assert [(span["name"], names.get(span["parent_span_id"])) for span in spans] == [
        ("workflow_demo", None),
        ("research", "workflow_demo"),
        ("ChatGoogleGenerativeAI", "research"),
        ("write", "workflow_demo"),
        ("ChatGoogleGenerativeAI", "write"),
    ]
    assert rows(folder / "mlflow.db", "SELECT run_uuid, status FROM runs") == [(done.observer.run_id, "FINISHED")]
    linked = rows(folder / "mlflow.db", "SELECT value FROM trace_request_metadata WHERE key = 'mlflow.sourceRun'")
    assert linked == [(done.observer.run_id,)]


def test_parameters_and_tags_say_what_has_run(folder: Path, model: GeminiServer) -> None:
    ok(ran(model))

    params = dict(rows(folder / "mlflow.db", "SELECT key, value FROM params"))
    versions = {key.removeprefix("version."): value for key, value in params.items() if key.startswith("version.")}
    assert {key: value for key, value in params.items() if not key.startswith("version.")} == {
        "workflow_name": "demo",
        "workflow_version": "1.2.0",
        "models": "gemini-2.5-flash",
    }
    assert versions == {name: version(name) for name in versions}
    assert versions.keys() >= {"mlflow", "langgraph", "langchain-core", "langchain-google-genai", "pytest-agenttrace"}
    tags = dict(rows(folder / "mlflow.db", "SELECT key, value FROM tags"))
    assert {key: value for key, value in tags.items() if key.startswith("agenttrace.")} == {
        "agenttrace.workflow": "demo",
        "agenttrace.workflow_version": "1.2.0",
        "agenttrace.artifact_level": "standard",
        "agenttrace.status": "ok",
    }


def test_a_cost_that_nobody_knows_is_no_metric_and_is_said(folder: Path, model: GeminiServer) -> None:
    done = watched(graph(model.url, "gemini-of-tomorrow"), config())

    assert done.observer.problems == []
    assert done.warned == ["cost unknown: no price for gemini-of-tomorrow: total_cost_usd is not logged"]
    assert metrics(folder / "mlflow.db").keys() == {
        "total_tokens",
        "prompt_tokens",
        "completion_tokens",
        "node_count",
        "duration",
    }
    assert done.observer.summary is not None
    assert done.observer.summary.totals.cost is None


def test_tokens_that_nobody_reported_are_no_metric_and_are_said(folder: Path) -> None:
    with GeminiServer({f"{PROMPT} what": Reply("a", None), f"{PROMPT} to": Reply("b")}) as model:
        done = watched(graph(model.url), config())

    assert done.warned == ["research: a call reported no usage: total_tokens and total_cost_usd are not logged"]
    assert metrics(folder / "mlflow.db").keys() == {"node_count", "duration"}


def test_what_trace_and_wire_say_differently_is_told(folder: Path, model: GeminiServer) -> None:
    """A call of a client that MLflow does not trace is on the wire, and in no span."""
    from google import genai

    client = genai.Client(api_key="dummy", http_options={"base_url": model.url})

    def ask(_: object) -> None:
        client.models.generate_content(model="gemini-2.5-flash", contents=f"{PROMPT} what else")

    done = watched(graph(model.url, before=ask), config())

    line = "write, call 2: 650 tokens on the wire, no span in the trace [uncounted]"
    assert done.warned == [f"trace and wire disagree: {line}"]
    assert done.observer.summary is not None
    assert done.observer.summary.disagreements == (line,)
    # What is billed counts.
    assert metrics(folder / "mlflow.db")["total_tokens"] == 1474.0 + 650.0
    assert dict(rows(folder / "mlflow.db", "SELECT key, value FROM tags"))["agenttrace.disagreements"] == "1"


# The keys


def test_disabled_touches_no_store(folder: Path, model: GeminiServer) -> None:
    (folder / "mlflow.db").unlink()
    done = ok(ran(model, "enabled: false"))

    assert done.said == []
    assert (done.observer.trace, done.observer.run_id, done.observer.summary) == (None, None, None)
    assert list(folder.iterdir()) == []


def test_disabled_imports_no_mlflow() -> None:
    code = """
        import sys
        from tests.observed import config
        from pytest_agenttrace.workflow.observing import Observer
        with Observer(config("enabled: false")).run() as given:
            print(given, "mlflow" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "{'callbacks': []} False\n"


def test_the_tracking_uri_is_that_of_the_working_directory(folder: Path, model: GeminiServer) -> None:
    (folder / "deep").mkdir()
    ready_database(folder / "deep" / "other.db")
    done = ok(ran(model, 'enabled: true, tracking_uri: "sqlite:///deep/other.db"'))

    assert f"✓ Store: sqlite:///{(folder / 'deep' / 'other.db').as_posix()}" in done.said
    assert rows(folder / "mlflow.db", "SELECT count(*) FROM runs") == [(0,)]
    assert rows(folder / "deep" / "other.db", "SELECT count(*) FROM runs") == [(1,)]
    # Files lie beside their database.
    assert files_with(folder, "total") >= {"deep/mlruns/RUN/artifacts/cost_summary.json"}


def test_the_experiment_is_made_once_and_found_again(folder: Path, model: GeminiServer) -> None:
    first = ok(ran(model, "enabled: true, experiment_name: quarterly"))
    second = ok(ran(model, "enabled: true, experiment_name: quarterly"))
    assert first.said[1] == second.said[1]

    ((number, name),) = rows(
        folder / "mlflow.db",
        "SELECT DISTINCT e.experiment_id, e.name FROM experiments e JOIN runs USING (experiment_id)",
    )
    assert name == "quarterly"
    assert first.said[1] == f"✓ Experiment: quarterly (ID: {number})"
    assert rows(folder / "mlflow.db", "SELECT DISTINCT experiment_id FROM trace_info") == [(number,)]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("", r"demo_\d{8}_\d{6}"),
        (', run_name: "nightly {workflow_name} {workflow_version}"', r"nightly demo 1\.2\.0"),
        (', run_name: "at {timestamp}"', r"at \d{8}_\d{6}"),
    ],
)
def test_the_run_has_its_name(folder: Path, model: GeminiServer, key: str, name: str) -> None:
    import re

    ok(ran(model, f"enabled: true{key}"))
    ((found,),) = rows(folder / "mlflow.db", "SELECT name FROM runs")
    assert re.fullmatch(name, found)


def _mlflows_id(span: dict[str, Any]) -> str:
    return str(json.loads(span["attributes"]["mlflow.traceRequestId"]))


def _told(span: dict[str, Any]) -> tuple[Any, ...]:
    facts = span["attributes"]
    return span["name"], span["status"], facts.get("mlflow.chat.tokenUsage"), facts.get("mlflow.spanInputs")


def test_async_logging_leaves_the_writing_to_mlflows_workers_and_gives_the_same_trace(
    folder: Path, model: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    writers: list[str] = []
    written = SqlAlchemyStore.log_spans

    def log_spans(self: Any, *args: Any, **kwargs: Any) -> Any:
        writers.append(threading.current_thread().name)
        return written(self, *args, **kwargs)

    monkeypatch.setattr(SqlAlchemyStore, "log_spans", log_spans)
    ok(ran(model, "enabled: true, async_logging: true, experiment_name: a"))
    queued, writers[:] = list(writers), []
    ok(ran(model, "enabled: true, async_logging: false, experiment_name: b"))

    assert [name.startswith("MlflowTraceLoggingWorker") for name in queued] == [True]
    assert [name.startswith("MlflowTraceLoggingWorker") for name in writers] == [False]
    first, second = (
        [span for span in spans_of(folder / "mlflow.db") if span["trace_id"] == trace]
        for trace in dict.fromkeys(span["trace_id"] for span in spans_of(folder / "mlflow.db"))
    )
    assert [_told(span) for span in first] == [_told(span) for span in second]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    totals = [client.get_trace(_mlflows_id(span)).info for span in (first[0], second[0])]
    assert [(info.state.value, (info.token_usage or {})["total_tokens"]) for info in totals] == [("OK", 1474)] * 2


KEPT = {
    "minimal": {"prompts": set(), "replies": set(), "states": set()},
    "standard": {"prompts": {"mlflow.db"}, "replies": {"mlflow.db"}, "states": {"mlflow.db"}},
    "full": {
        "prompts": {
            "mlflow.db",
            *(f"mlruns/RUN/artifacts/nodes/{n}/prompts.json" for n in ("01_research", "02_write")),
        },
        "replies": {
            "mlflow.db",
            *(f"mlruns/RUN/artifacts/nodes/{n}/replies.json" for n in ("01_research", "02_write")),
            *(f"mlruns/RUN/artifacts/nodes/{n}/state.json" for n in ("01_research", "02_write")),
            "mlruns/RUN/artifacts/nodes/02_write/prompts.json",
        },
        "states": {
            "mlflow.db",
            *(f"mlruns/RUN/artifacts/nodes/{n}/state.json" for n in ("01_research", "02_write")),
            "mlruns/RUN/artifacts/nodes/01_research/prompts.json",
        },
    },
}


@pytest.mark.parametrize("level", KEPT)
def test_levels_keep_what_they_say_and_nothing_else(folder: Path, model: GeminiServer, level: str) -> None:
    """A search of every byte: the database with its spans and previews, and the folder of files."""
    ok(ran(model, f"enabled: true, artifact_level: {level}"))

    found = {
        what: files_with(folder, text) for what, text in (("prompts", PROMPT), ("replies", REPLY), ("states", STATE))
    }
    assert found == KEPT[level]
    # Costs are told at every level.
    assert metrics(folder / "mlflow.db")["total_tokens"] == 1474.0
    assert "mlruns/RUN/artifacts/cost_summary.json" in files_with(folder, "1474")


def test_minimal_keeps_no_word_of_an_error_either(folder: Path) -> None:
    def fail(state: Any) -> None:
        raise ValueError(f"cannot use {state['notes']}")

    with scripted() as model:
        done = watched(graph(model.url, before=fail), config("enabled: true, artifact_level: minimal"))

    assert isinstance(done.error, ValueError)
    assert {text: files_with(folder, text) for text in (PROMPT, REPLY, STATE)} == {
        PROMPT: set(),
        REPLY: set(),
        STATE: set(),
    }
    assert rows(folder / "mlflow.db", "SELECT status FROM runs") == [("FAILED",)]
    trace = done.observer.trace
    assert trace is not None
    assert [(found.node, found.status) for found in trace] == [("research", "ok"), ("write", "error")]
    assert dict(rows(folder / "mlflow.db", "SELECT key, value FROM tags"))["agenttrace.error"] == "ValueError"


def test_minimal_keeps_what_numbers_need(folder: Path, model: GeminiServer) -> None:
    ok(ran(model, "enabled: true, artifact_level: minimal"))
    spans = spans_of(folder / "mlflow.db")
    kept = {key for span in spans for key in span["attributes"]}
    assert kept >= {"metadata", "mlflow.chat.tokenUsage", "mlflow.spanType"}
    assert kept.isdisjoint({"mlflow.spanInputs", "mlflow.spanOutputs", "mlflow.chat.messages", "options"})
    assert [event for span in spans for event in span["events"]] == []


@pytest.mark.parametrize("level", ["minimal", "standard", "full"])
def test_prompts_are_left_out_at_any_level(folder: Path, model: GeminiServer, level: str) -> None:
    ok(ran(model, f"enabled: true, artifact_level: {level}, log_prompts: false"))
    assert files_with(folder, PROMPT) == set()
    if level != "minimal":
        assert "mlflow.db" in files_with(folder, REPLY)
        assert "mlflow.db" in files_with(folder, STATE)


def test_a_prompt_is_left_out_of_errors_that_repeat_it(folder: Path) -> None:
    with GeminiServer(
        {f"{PROMPT} what": Reply("n"), f"{PROMPT} to": ErrorReply(400, f"no answer to: {PROMPT} to write on n")}
    ) as model:
        done = watched(graph(model.url), config("enabled: true, log_prompts: false"))
    assert PROMPT in str(done.error)
    assert files_with(folder, PROMPT) == set()
    assert files_with(folder, "no answer to") == set()
    assert "mlflow.db" in files_with(folder, "exception.type")


def test_a_node_keeps_its_prompts_for_itself(folder: Path, model: GeminiServer) -> None:
    ok(ran(model, "enabled: true, artifact_level: full, log_prompts: false", "log_prompts: true"))
    assert files_with(folder, f"{PROMPT} what") == {"mlflow.db", "mlruns/RUN/artifacts/nodes/01_research/prompts.json"}
    assert files_with(folder, f"{PROMPT} to write") == set()


def test_without_artifacts_there_are_no_files(folder: Path, model: GeminiServer) -> None:
    ok(ran(model, "enabled: true, artifact_level: full, log_artifacts: false"))
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "mlflow.db"]
    assert "mlflow.db" in files_with(folder, PROMPT)


def test_a_node_has_files_for_itself(folder: Path, model: GeminiServer) -> None:
    ok(ran(model, "enabled: true, artifact_level: full, log_artifacts: false", "log_artifacts: true"))
    found = {path.name for path in folder.rglob("*") if path.is_file()}
    assert found == {"mlflow.db", "state.json", "prompts.json", "replies.json"}
    assert not (files_with(folder, "02_write") - {"mlflow.db"})


# Beside others


def test_nothing_of_a_run_stays_in_the_process(folder: Path, model: GeminiServer) -> None:
    import httpx
    import mlflow
    from mlflow.tracing import provider

    aiohttp = pytest.importorskip("aiohttp")

    def state() -> tuple[object, ...]:
        return (
            mlflow.get_tracking_uri(),
            mlflow.active_run(),
            {name: value for name, value in os.environ.items() if "MLFLOW" in name},
            vars(provider.provider).copy(),
            httpx.Client.send,
            httpx.AsyncClient.send,
            aiohttp.ClientSession._request,
            [type(handler).__name__ for handler in _callbacks()],
        )

    before = state()
    ok(ran(model))
    assert state() == before
    assert graph(model.url).invoke({"topic": "later"})["article"] == f"{REPLY} article"
    assert rows(folder / "mlflow.db", "SELECT count(*) FROM trace_info") == [(1,)]


def _callbacks() -> list[Any]:
    from langchain_core.callbacks import CallbackManager

    manager = CallbackManager(handlers=[])
    return [*manager.handlers, *manager.inheritable_handlers]


def test_runs_at_once_are_each_in_their_own_store(folder: Path, model: GeminiServer) -> None:
    """Two stores, four runs each, all under way together."""
    meet = threading.Barrier(8, timeout=60)
    done: dict[tuple[str, int], Watched] = {}

    def one(store: str, number: int) -> None:
        app = graph(model.url, before=lambda _: meet.wait())
        done[store, number] = watched(
            app, config(f'enabled: true, tracking_uri: "sqlite:///{store}.db"'), topic=f"{STATE}{number}"
        )

    for store in ("left", "right"):
        ready_database(folder / f"{store}.db")
    threads = [threading.Thread(target=one, args=(store, n)) for store in ("left", "right") for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [found.error for found in done.values()] == [None] * 8
    assert [found.observer.problems for found in done.values()] == [[]] * 8
    for store in ("left", "right"):
        assert rows(
            folder / f"{store}.db", "SELECT count(DISTINCT value), count(*) FROM params WHERE key = 'workflow_name'"
        ) == [(1, 4)]
        assert dict(
            rows(
                folder / f"{store}.db", "SELECT value, count(*) FROM metrics WHERE key = 'total_tokens' GROUP BY value"
            )
        ) == {1474.0: 4}
        given = [
            inputs for (inputs,) in rows(folder / f"{store}.db", "SELECT request_preview FROM trace_info ORDER BY 1")
        ]
        assert given == [f'{{"topic": "{STATE}{n}"}}' for n in range(4)]
        assert len(spans_of(folder / f"{store}.db")) == 20
    assert {len(found.observer.calls) for found in done.values()} == {2}


def test_async_runs_at_once_are_told_apart(folder: Path, model: GeminiServer) -> None:
    app = graph(model.url)

    async def one(number: int) -> Observer:
        observer = Observer(config(f"enabled: true, experiment_name: e{number}"), warn=warned.append)
        with observer.run() as given:
            await app.ainvoke({"topic": f"{STATE}{number}"}, given)
        return observer

    async def all_of_them() -> list[Observer]:
        return await asyncio.gather(*(one(number) for number in range(3)))

    warned: list[str] = []
    observers = asyncio.run(all_of_them())
    gc.collect()
    assert warned == []
    assert [observer.trace.tokens if observer.trace else None for observer in observers] == [1474] * 3
    assert [len(observer.calls) for observer in observers] == [2] * 3
    found = rows(
        folder / "mlflow.db",
        "SELECT name, request_preview FROM trace_info JOIN experiments USING (experiment_id) ORDER BY 1",
    )
    assert found == [(f"e{n}", f'{{"topic": "{STATE}{n}"}}') for n in range(3)]


def test_the_users_own_traces_go_where_they_always_went(folder: Path, model: GeminiServer) -> None:
    """A thread of the program's own, traced by MLflow, while a run is watched."""
    code = f"""
        import threading, mlflow
        from tests.observed import config, graph, watched, rows
        from pathlib import Path
        mlflow.set_tracking_uri("sqlite:///own.db"); mlflow.set_experiment("own")

        @mlflow.trace
        def own(): return "mine"

        def beside(_):
            thread = threading.Thread(target=own); thread.start(); thread.join()

        done = watched(graph({model.url!r}, before=beside), config())
        mlflow.flush_trace_async_logging()
        print(done.error, done.observer.problems)
        for store in ("own.db", "mlflow.db"):
            print(rows(Path(store), "SELECT name FROM spans ORDER BY start_time_unix_nano"))
        print(mlflow.get_tracking_uri())
    """  # noqa: S608  # a program, no statement
    ready_database(folder / "own.db")
    done = python(code, folder)
    assert done.stdout.splitlines() == [
        "None []",
        "[('own',)]",
        "[('workflow_demo',), ('research',), ('ChatGoogleGenerativeAI',), ('write',), ('ChatGoogleGenerativeAI',)]",
        "sqlite:///own.db",
    ]


@pytest.mark.skipif(
    MLFLOW < (3, 12) and find_spec("langchain") is None, reason="MLflow's own autolog asks for langchain's version"
)
def test_a_run_within_a_program_that_traces_itself_is_a_trace_of_its_own(folder: Path, model: GeminiServer) -> None:
    """A span that is open, and autolog that is on: neither takes the run in, nor traces it twice."""
    code = f"""
        import mlflow
        from tests.observed import config, graph, watched, rows
        from pathlib import Path
        mlflow.set_tracking_uri("sqlite:///own.db"); mlflow.set_experiment("own")
        mlflow.langchain.autolog()
        app = graph({model.url!r})
        with mlflow.start_span("outer"):
            done = watched(app, config())
            app.invoke({{"topic": "mine"}})
        mlflow.flush_trace_async_logging()
        print(done.error, done.observer.problems, done.warned, done.observer.trace.tokens)
        for store in ("own.db", "mlflow.db"):
            print([name for name, in rows(Path(store), "SELECT name FROM spans ORDER BY start_time_unix_nano")])
    """  # noqa: S608  # a program, no statement
    ready_database(folder / "own.db")
    run = ["workflow_demo", "research", "ChatGoogleGenerativeAI", "write", "ChatGoogleGenerativeAI"]
    assert python(code, folder).stdout.splitlines() == ["None [] [] 1474", str(["outer", *run]), str(run)]


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program of its own, in a folder, which finds this suite's helpers."""
    root = Path(__file__).resolve().parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "MLFLOW_MODEL_CATALOG_URI": "",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_a_thread_that_outlives_the_run_leaves_nothing_anywhere(folder: Path, model: GeminiServer) -> None:
    """It has the run's callbacks; what they were told would go to the process's own store, prompts and all."""
    import contextvars

    go_on = threading.Event()
    threads: list[threading.Thread] = []

    def start(_: object) -> None:
        from langchain_core.runnables.config import ensure_config

        late = graph(model.url)
        given = ensure_config()

        def ask() -> None:
            go_on.wait(60)
            late.invoke({"topic": "lateplatypus"}, {"callbacks": given["callbacks"]})

        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(ask,)))
        threads[0].start()

    app = graph(model.url, before=start)
    (folder / "mlflow.db").rename(folder / "own.db")
    done = watched(app, config('enabled: true, tracking_uri: "sqlite:///own.db", async_logging: false'))
    go_on.set()
    threads[0].join()
    assert done.observer.problems == []
    assert len(model.requests) == 4
    assert len(spans_of(folder / "own.db")) == 5
    assert files_with(folder, "lateplatypus") == set()
    assert not (folder / "mlflow.db").exists()


def test_a_call_that_is_under_way_when_the_run_ends_is_ended_in_the_trace(folder: Path) -> None:
    """As that of a thread which a timeout has given up."""
    import contextvars

    asked, go_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def answer(request: ScriptedRequest) -> Reply:
        if "slow" in request.prompt:
            asked.set()
            go_on.wait(60)
        return Reply("fine")

    with GeminiServer(answer) as model:
        from langchain_google_genai import ChatGoogleGenerativeAI

        slow = ChatGoogleGenerativeAI(model="gemini-2.5-flash", base_url=model.url, api_key="dummy", max_retries=1)

        def start(_: object) -> None:
            run = contextvars.copy_context().run
            threads.append(threading.Thread(target=run, args=(slow.invoke, "slow question")))
            threads[0].start()
            assert asked.wait(60)

        done = watched(graph(model.url, before=start), config())
        go_on.set()
        threads[0].join()

    assert done.observer.problems == []
    ends = [
        (span["name"], span["status"]["code"], span["end_time_unix_nano"] > 0)
        for span in spans_of(folder / "mlflow.db")
    ]
    assert ends.count(("ChatGoogleGenerativeAI", "STATUS_CODE_ERROR", True)) == 1
    assert len(ends) == 6
    assert {code for name, code, _ in ends if name != "ChatGoogleGenerativeAI"} == {"STATUS_CODE_OK"}
    assert rows(folder / "mlflow.db", "SELECT status FROM trace_info") == [("OK",)]


def test_an_observer_watches_one_run(folder: Path, model: GeminiServer) -> None:
    observer = Observer(config("enabled: false"))
    with observer.run():
        pass
    with pytest.raises(RuntimeError, match=r"^an observer watches one run: make another for the next$"), observer.run():
        pass


def test_in_a_test_with_a_store_of_its_own_the_workflows_is_left_alone(folder: Path, model: GeminiServer) -> None:
    from pytest_agenttrace.capture import capture

    with capture(folder / "c.yaml", record=True, warn=["uncounted"]) as trace:
        trace._cassette.record_from(model)
        done = ok(ran(model))
        assert trace.trajectory == ["research", "write"]
    assert done.said == ["MLflow: this test's own store"]
    assert rows(folder / "mlflow.db", "SELECT count(*) FROM runs") == [(0,)]


# What goes wrong


def test_an_interrupt_ends_the_trace_and_the_run(folder: Path, model: GeminiServer) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    done = watched(graph(model.url, before=interrupt), config())

    assert isinstance(done.error, KeyboardInterrupt)
    assert done.observer.problems == []
    assert rows(folder / "mlflow.db", "SELECT status, end_time IS NOT NULL FROM runs") == [("KILLED", 1)]
    assert rows(folder / "mlflow.db", "SELECT status FROM trace_info") == [("ERROR",)]
    assert [span["name"] for span in spans_of(folder / "mlflow.db") if not span["end_time_unix_nano"]] == []
    assert metrics(folder / "mlflow.db")["total_tokens"] == 650.0
    assert done.observer.summary is not None
    assert done.observer.summary.status == "interrupted"


def test_without_mlflow_the_workflow_runs_and_it_is_said(folder: Path, model: GeminiServer) -> None:
    """Not a program without MLflow: one whose import of it is blocked."""
    code = f"""
        import sys
        sys.modules["mlflow"] = None
        from tests.observed import config, graph, watched
        done = watched(graph({model.url!r}), config())
        print(done.state["article"]); print(*done.observer.problems, sep="\\n")
        done = watched(graph({model.url!r}), config(), strict=True)
        print(done.state, type(done.error).__name__)
    """
    assert python(code, folder).stdout.splitlines() == [
        f"{REPLY} article",
        "tracing failed: MLflow cannot be imported: import of mlflow halted; None in sys.modules",
        "  pip install mlflow",
        "None TracingFailed",
    ]


def test_a_server_that_is_not_there_costs_seconds_and_no_run(folder: Path, model: GeminiServer) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    done = ran(model, f'enabled: true, tracking_uri: "http://127.0.0.1:{port}"')
    assert done.state is not None
    assert (
        done.warned
        == done.observer.problems
        == [
            f"tracing failed: http://127.0.0.1:{port} cannot be reached: Connection refused\n"
            f"  Start it: mlflow server --host 127.0.0.1 --port {port}"
        ]
    )


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "mysql+pymysql"])
def test_a_database_that_is_not_there_is_told_at_once(folder: Path, model: GeminiServer, scheme: str) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    done = ran(model, f'enabled: true, tracking_uri: "{scheme}://me:secret@127.0.0.1:{port}/mlflow"')
    assert done.state is not None
    (problem,) = done.observer.problems
    assert problem.startswith("tracing failed: ")
    assert problem.endswith(" cannot be reached: Connection refused\n  Start the database, or mend tracking_uri")
    assert "secret" not in problem


def test_a_server_that_never_answers_costs_seconds_and_no_run(
    folder: Path, model: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_agenttrace.store.tracking.OPENING", 1.0)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = silent.getsockname()[1]
        done = ran(model, f'enabled: true, tracking_uri: "http://127.0.0.1:{port}"')
    assert done.state is not None
    assert done.observer.problems == [f"tracing failed: http://127.0.0.1:{port} cannot be opened: no answer within 1 s"]


def test_a_file_that_is_no_database_is_said_and_left_as_it_is(folder: Path, model: GeminiServer) -> None:
    (folder / "notes.txt").write_text("my notes, no database at all\n" * 200)
    done = ran(model, 'enabled: true, tracking_uri: "sqlite:///notes.txt"')
    assert done.state is not None
    (problem,) = done.observer.problems
    path = (folder / "notes.txt").as_posix()
    assert problem.startswith(f"tracing failed: sqlite:///{path} cannot be opened: ")
    assert "file is not a database" in problem
    assert problem.endswith(f"\n  Is {path} a database of MLflow's, and may it be written?")
    assert (folder / "notes.txt").read_text() == "my notes, no database at all\n" * 200


def test_a_database_of_another_mlflow_is_said_to_be(folder: Path, model: GeminiServer) -> None:
    import sqlite3

    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    done = ran(model)
    assert done.state is not None
    (problem,) = done.observer.problems
    assert problem.startswith(f"tracing failed: sqlite:///{(folder / 'mlflow.db').as_posix()} cannot be opened: ")
    assert problem.endswith(
        f"\n  Copy the database, then: mlflow db upgrade sqlite:///{(folder / 'mlflow.db').as_posix()}"
    )


def test_a_deleted_experiment_is_said_to_be(folder: Path, model: GeminiServer) -> None:
    import sqlite3

    ok(ran(model, "enabled: true, experiment_name: gone"))
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'gone'")
    done = ran(model, "enabled: true, experiment_name: gone")
    ((number,),) = rows(folder / "mlflow.db", "SELECT experiment_id FROM experiments WHERE name = 'gone'")
    assert done.observer.problems == [
        f"tracing failed: sqlite:///{(folder / 'mlflow.db').as_posix()}: the experiment 'gone' is deleted\n"
        f"  mlflow experiments restore --experiment-id {number}"
    ]


def test_a_driver_that_is_missing_is_named(folder: Path, model: GeminiServer) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as there:
        uri = f"postgresql+psycopg2://u:secret@127.0.0.1:{there.getsockname()[1]}/m"
        done = ran(model, f'enabled: true, tracking_uri: "{uri}"')
    assert done.state is not None
    (problem,) = done.observer.problems
    assert "secret" not in problem
    assert problem.endswith("\n  pip install psycopg2-binary")


def test_databricks_without_configuration_is_told_in_words(
    folder: Path, model: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("DATABRICKS")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    done = ran(model, "enabled: true, tracking_uri: databricks")
    assert done.state is not None
    (problem,) = done.observer.problems
    assert problem.startswith("tracing failed: databricks cannot be opened: ")
    assert problem.endswith("\n  Set DATABRICKS_HOST and DATABRICKS_TOKEN, or: databricks configure --profile NAME")


@pytest.mark.skipif(MLFLOW < (3, 13), reason="a store of files still works")
def test_a_store_of_files_is_an_error_with_the_way_out(folder: Path, model: GeminiServer) -> None:
    done = ran(model, 'enabled: true, tracking_uri: "file://./mlruns"')
    assert done.state is not None
    (problem,) = done.observer.problems
    assert problem.startswith(f"tracing failed: {(folder / 'mlruns').as_uri()} cannot be opened: ")
    assert problem.endswith('\n  Write tracking_uri: "sqlite:///mlflow.db", or set MLFLOW_ALLOW_FILE_STORE=true.')


def test_a_store_of_files_is_written_to_where_mlflow_lets_it(
    folder: Path, model: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own word on stores of files
        done = ok(ran(model, 'enabled: true, tracking_uri: "file://./mlruns"'))
    assert done.observer.trace is not None
    assert done.observer.trace.tokens == 1474
    assert any(name.endswith("traces.json") for name in files_with(folder, PROMPT))


def test_what_cannot_be_stored_is_told_and_the_run_goes_on(
    folder: Path, model: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(SqlAlchemyStore, "log_spans", refuse)
    monkeypatch.setattr(SqlAlchemyStore, "start_trace", refuse)
    done = ran(model)
    assert done.state is not None
    assert done.observer.problems[0] == "tracing failed: MLflow failed to store: the disk is full"
    assert rows(folder / "mlflow.db", "SELECT status FROM runs") == [("FINISHED",)]
    strict = ran(model, strict=True)
    assert isinstance(strict.error, TracingFailed)
    assert str(strict.error).startswith("tracing failed: MLflow failed to store: the disk is full")


def test_strict_asks_nothing_where_a_run_cannot_be_traced(folder: Path, model: GeminiServer) -> None:
    (folder / "mlflow.db").write_text("no database at all, and long enough to be one\n" * 100)
    done = ran(model, strict=True)
    assert isinstance(done.error, TracingFailed)
    assert model.requests == []


def test_a_later_mlflow_that_hides_its_tracer_is_no_run_in_the_wrong_store(
    folder: Path, model: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Private names are used, and missed: `_client` of the exporter, through which what is kept is decided."""
    from mlflow.tracing.export import mlflow_v3

    class Changed:
        def __init__(self, tracking_uri: str) -> None: ...

    monkeypatch.setattr(mlflow_v3, "MlflowV3SpanExporter", Changed)
    from pytest_agenttrace.store.routed import Writer

    monkeypatch.setattr(Writer, "_made", {})
    done = ran(model)
    assert done.state is not None
    import mlflow

    assert done.observer.problems == [
        f"tracing failed: MLflow {mlflow.__version__} cannot trace a run of its own: its exporter has no client that "
        "can be watched\n  Use MLflow 3.9 to 3.17."
    ]
