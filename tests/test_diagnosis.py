"""Why nothing was traced: each cause with its evidence and its way out, met in real runs; and what is no cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_agenttrace.store import StoreFactory
from tests.projects import Told, cassette_fixture, environment, inner, project_fixture, run_pytest, shared_fixture
from tests.projects import told_fixture as told_fixture

__all__ = ["cassette_fixture", "project_fixture", "shared_fixture", "told_fixture"]

CALLS = "  3 calls were made, the first by research\n"
NOT_YET = "  Call the graph before its trace is read; consume its stream, await its coroutine. [empty]"
RAN = "nothing was traced: no graph, chain or model ran"


@inner("""
import mlflow


def run():
    app.invoke(SAILS)


def test_disabled(agent_trace):
    mlflow.tracing.disable()
    run()
    assert agent_trace.trajectory == ["research", "write"]


def test_disabled_unread(agent_trace):
    mlflow.tracing.disable()
    run()


@pytest.mark.budget(tokens=10)
def test_disabled_budget(agent_trace):
    mlflow.tracing.disable()
    run()


def test_disabled_midway(agent_trace):
    from app import graph, write

    def write_in_secret(state):
        mlflow.tracing.disable()
        try:
            from app import model
            model().invoke("Write 300 words on solar sails", config={"callbacks": []})
        finally:
            mlflow.tracing.enable()
        return {}

    graph(write_in_secret).invoke(SAILS)


def test_no_traces(agent_trace):
    mlflow.langchain.autolog(log_traces=False)
    run()
    agent_trace.tokens


def test_root_alone(agent_trace):
    mlflow.langchain.autolog(disable=True)
    mlflow.trace(run)()
    agent_trace["write"]


@pytest.mark.agent_trace(autolog=[])
def test_settings(agent_trace):
    run()
    agent_trace.trajectory


@pytest.mark.agent_trace(autolog=[], allow=["uncounted"])
def test_settings_forgiven(agent_trace):
    run()
    assert agent_trace.tokens == 4601


def test_patch_lost(agent_trace, monkeypatch):
    from langchain_core.callbacks.base import BaseCallbackManager

    original = BaseCallbackManager.__init__
    monkeypatch.setattr(BaseCallbackManager, "__init__", getattr(original, "__wrapped__", original))
    run()
    agent_trace.trajectory


def test_part_replaced(agent_trace, monkeypatch):
    from unittest.mock import MagicMock

    monkeypatch.setattr("mlflow.langchain.langchain_tracer.start_span_no_context", MagicMock())
    run()
    agent_trace.trajectory


def test_not_stored(agent_trace, monkeypatch):
    from mlflow.tracing.client import TracingClient

    def full(self, *args, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr(TracingClient, "log_spans", full)
    monkeypatch.setattr(TracingClient, "start_trace", full)
    run()
    agent_trace.trajectory


def test_not_stored_unread(agent_trace, monkeypatch):
    from mlflow.tracing.client import TracingClient

    def full(self, *args, **kwargs):
        raise RuntimeError("disk full")

    monkeypatch.setattr(TracingClient, "log_spans", full)
    monkeypatch.setattr(TracingClient, "start_trace", full)
    run()
""")
def test_what_went_over_the_wire_and_left_no_span(told: Told) -> None:
    file = "test_what_went_over_the_wire_and_left_no_span.py"
    passed = {name for name, outcome in told.outcomes.items() if outcome == "passed"}
    assert passed == {"test_settings_forgiven"}

    def read(name: str) -> str:
        """The text, without where the trace was read."""
        first, where, *rest = told.text(name).splitlines()
        assert where.startswith(f"  read at {file}:"), told.text(name)
        return "\n".join([first, *rest])

    leave = "  Leave it out in tests, or call mlflow.tracing.enable() before the graph runs."
    for name, line in ("test_disabled_unread", 20), ("test_disabled_budget", 26):
        assert told.text(name) == (
            f"nothing was traced: mlflow.tracing.disable() was called at {file}:{line}\n{CALLS}{leave} [empty]"
        )
    assert read("test_disabled").startswith(
        f"nothing was traced: mlflow.tracing.disable() was called at {file}:14\n{CALLS}"
    )
    assert told.section("test_disabled", "Captured requests to MLflow") == (
        "mlflow.tracing.disable(): tracing was switched off"
    )
    assert told.text("test_disabled_midway") == (
        "write, call 3: 1,067 tokens on the wire, no span in the trace\n"
        "  gemini-2.5-flash:generateContent\n"
        f"  mlflow.tracing.disable() was called at {file}:34\n{leave} [uncounted]"
    )
    assert read("test_no_traces") == (
        f"nothing was traced: the code called mlflow.langchain.autolog(log_traces=False)\n{CALLS}"
        "  Leave it out in tests: autolog is on while the fixture is. [empty]"
    )
    assert read("test_root_alone") == (
        f"no node was traced: the code called mlflow.langchain.autolog(disable=True)\n{CALLS}"
        "  Leave it out in tests: autolog is on while the fixture is. [empty]"
    )
    assert read("test_settings") == (
        f"nothing was traced: autolog=[] leaves LangChain and LangGraph out\n{CALLS}"
        '  Add "langchain" to autolog, or forgive it with allow=["uncounted"]. [empty]'
    )
    assert read("test_patch_lost") == (
        f"nothing was traced: MLflow's patch of LangChain is gone\n{CALLS}"
        "  Something has put langchain_core.callbacks back or loaded it anew: do it before the fixture. [empty]"
    )
    assert read("test_part_replaced") == (
        f"nothing was traced: MLflow's tracer has left no span\n{CALLS}"
        "  Something replaces a part of MLflow or of OpenTelemetry: mock what is your own. [empty]"
    )
    lost = "MLflow failed to store: Failed to log span to MLflow backend: disk full [export]"
    assert told.text("test_not_stored") == told.text("test_not_stored_unread") == lost


@inner("""
import subprocess
import sys
import threading

WORK = "import time; begun = time.process_time()\\nwhile time.process_time() - begun < 0.5: pass"


def test_built_only(agent_trace):
    from app import graph

    graph()


def test_stream_unread(agent_trace):
    app.stream(SAILS)


def test_read_too_early(agent_trace):
    assert agent_trace.tokens < 5_000
    app.invoke(SAILS)


def test_program(agent_trace):
    subprocess.run([sys.executable, "-c", WORK], check=True)
    agent_trace.trajectory


def test_short_program(agent_trace):
    subprocess.run(["true"], check=True)


def test_thread(agent_trace):
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, name="runs the graph")
    thread.start()
    try:
        agent_trace.trajectory
    finally:
        go_on.set()
        thread.join()
""")
def test_nothing_ran(told: Told) -> None:
    assert set(told.outcomes.values()) == {"failed"}
    assert [told.text(name) for name in ("test_built_only", "test_stream_unread", "test_short_program")] == [
        f"{RAN}\n{NOT_YET}"
    ] * 3
    assert told.text("test_read_too_early") == f"{RAN}\n  read at test_nothing_ran.py:24\n{NOT_YET}"
    where, seconds, way_out = told.text("test_program").splitlines()[1:]
    assert told.text("test_program").startswith(f"{RAN} in this process\n")
    assert where == "  read at test_nothing_ran.py:30"
    assert seconds.startswith("  programs that the test has started ran for 0.")
    assert way_out == "  What runs in another process is not traced here: call the graph in the test. [empty]"
    assert told.text("test_thread") == (
        "nothing was traced: a thread is still running (runs the graph)\n"
        "  read at test_nothing_ran.py:42\n"
        "  Join what runs the graph before its trace is read. [empty]"
    )


NEUTRAL = """
import sys
from unittest.mock import MagicMock

import mlflow
import pytest
from app import SAILS, app

mlflow.langchain.autolog(log_traces=False)
mlflow.tracing.disable()


def runs(trace):
    app.invoke(SAILS)
    assert trace.trajectory == ["research", "write"]


def test_environment_and_import(agent_trace):
    runs(agent_trace)


def test_environment_later(agent_trace, monkeypatch):
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("MLFLOW_TRACE_SAMPLING_RATIO", "0")
    mlflow.tracing.reset()
    runs(agent_trace)


def test_enabled_again(agent_trace):
    mlflow.tracing.disable()
    mlflow.tracing.enable()
    runs(agent_trace)


def test_no_callbacks(agent_trace):
    app.invoke(SAILS, config={"callbacks": []})
    assert agent_trace.trajectory == ["research", "write"]


def test_mocked(agent_trace, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", MagicMock())
    runs(agent_trace)


def test_as_it_was():
    assert mlflow.utils.autologging_utils.AUTOLOGGING_INTEGRATIONS["langchain"]["log_traces"] is False
"""


def test_what_the_store_keeps_from_switching_tracing_off(project: Path) -> None:
    (project / "test_neutral.py").write_text(NEUTRAL)
    env = environment() | {
        "OTEL_SDK_DISABLED": "true",
        "MLFLOW_TRACE_SAMPLING_RATIO": "0",
        "LANGCHAIN_TRACING_V2": "false",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "10",
    }
    ran = run_pytest(project, "-q", "-o", "filterwarnings=", "test_neutral.py", env=env)
    assert ran.code == 0, ran.out


def test_a_lock_is_told_once(factory: StoreFactory) -> None:
    with factory.open("locked") as opened:
        assert opened._session is not None
        opened._session.errors += [
            "Failed to log span to MLflow backend: (sqlite3.OperationalError) database is locked\n[SQL: SELECT 1]",
            "Failed to send trace to MLflow backend: (sqlite3.OperationalError) database is locked\n[SQL: SELECT 2]",
        ]
        assert opened.export_errors == (
            "Failed to log span to MLflow backend: (sqlite3.OperationalError) database is locked\n"
            f"  Close every connection the test opens to {opened.path}.",
        )


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> StoreFactory:
    return StoreFactory(tmp_path_factory.mktemp("store"))
