"""LangSmith kept quiet, seen from a LangSmith server on loopback: what arrives, and when."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pytest_agenttrace.replay import langsmith as room
from pytest_agenttrace.replay.langsmith import quiet_langsmith


class Server(ThreadingHTTPServer):
    """Takes what LangSmith's clients send; `arrived` holds path and body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.arrived: list[tuple[str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.arrived.append((self.path, b""))
        self._reply(200)

    def do_POST(self) -> None:
        if self.headers["Transfer-Encoding"] == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.arrived.append((self.path, body))
        self._reply(202)

    do_PATCH = do_POST

    def _reply(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


PREFACE = """
import asyncio, os, sys, threading
from pytest_agenttrace.replay.langsmith import quiet_langsmith

def build():
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.prompts import ChatPromptTemplate
    return ChatPromptTemplate.from_template("{x}") | FakeListChatModel(responses=["yes"])

def flush():
    from langchain_core.tracers.langchain import wait_for_all_tracers
    wait_for_all_tracers()

def mark(name):
    import urllib.request
    urllib.request.urlopen(os.environ["LANGSMITH_ENDPOINT"] + "/mark/" + name)
"""


def arrivals(server: Server, script: str, clean_environment: dict[str, str], **env: str) -> list[str]:
    """Run a script that traces words and marks moments; gives the marks and the words in the order they arrived."""
    hidden = ("LANGSMITH_", "LANGCHAIN_")
    environment = {name: value for name, value in clean_environment.items() if not name.startswith(hidden)}
    environment |= {"LANGSMITH_ENDPOINT": server.url, "LANGSMITH_API_KEY": "none", "NO_PROXY": "127.0.0.1"} | env
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREFACE + script],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    words: list[str] = []
    for path, body in server.arrived:
        if path.startswith("/mark/"):
            words.append(path.removeprefix("/mark/").upper())
        elif path == "/info":
            words.append("info")
        else:
            found = [word for word in WORDS if word.encode() in body]
            words += found or ["?"]
    # Each once between two marks.
    return [word for n, word in enumerate(words) if word not in words[last_mark(words, n) : n]]


def last_mark(words: list[str], before: int) -> int:
    return max((n for n, word in enumerate(words[:before]) if word.isupper()), default=0)


WORDS = (
    *("was-before", "in-sync", "in-async", "in-thread", "in-context", "in-tracer", "in-callback", "in-traceable"),
    *("was-after", "after-async"),
)


def test_nothing_arrives_while_open_and_all_of_it_before_and_after(
    server: Server, clean_environment: dict[str, str]
) -> None:
    script = """
import langsmith
from langchain_core.tracers.context import tracing_v2_enabled
from langchain_core.tracers.langchain import LangChainTracer

chain = build()
chain.invoke({"x": "was-before"})
mark("opening")
with quiet_langsmith():
    mark("open")
    chain.invoke({"x": "in-sync"})
    asyncio.run(chain.ainvoke({"x": "in-async"}))
    thread = threading.Thread(target=chain.invoke, args=({"x": "in-thread"},))
    thread.start()
    thread.join()
    with langsmith.tracing_context(enabled=True):
        chain.invoke({"x": "in-context"})
    with tracing_v2_enabled(client=langsmith.Client()):
        chain.invoke({"x": "in-tracer"})
    chain.invoke({"x": "in-callback"}, {"callbacks": [LangChainTracer()]})
    langsmith.traceable(lambda x: x, enabled=True, client=langsmith.Client())("in-traceable")
    flush()
    mark("closing")
chain.invoke({"x": "was-after"})
asyncio.run(chain.ainvoke({"x": "after-async"}))
flush()
"""
    words = arrivals(server, script, clean_environment, LANGSMITH_TRACING="true")
    # What had been traced before was sent before the block was entered.
    assert set(words[: words.index("OPEN")]) == {"OPENING", "info", "was-before"}
    assert words[words.index("OPEN") :] == ["OPEN", "CLOSING", "was-after", "after-async"]


@pytest.mark.parametrize("name", ["LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING_V2"])
def test_a_langsmith_imported_while_open_is_quiet_and_awake_afterwards(
    server: Server, clean_environment: dict[str, str], name: str
) -> None:
    script = """
assert "langsmith" not in sys.modules
with quiet_langsmith():
    assert "langsmith" not in sys.modules
    chain = build()
    chain.invoke({"x": "in-sync"})
    asyncio.run(chain.ainvoke({"x": "in-async"}))
    flush()
    mark("closing")
chain.invoke({"x": "was-after"})
flush()
"""
    words = arrivals(server, script, clean_environment, **{name: "true"})
    assert (words[0], set(words)) == ("CLOSING", {"CLOSING", "info", "was-after"})


def test_the_old_variable_that_langchain_refuses_alone_is_no_trouble(
    server: Server, clean_environment: dict[str, str]
) -> None:
    script = """
chain = build()
with quiet_langsmith():
    assert "LANGCHAIN_TRACING" not in os.environ
    chain.invoke({"x": "in-sync"})
    mark("closing")
assert os.environ["LANGCHAIN_TRACING"] == "true"
chain.invoke({"x": "was-after"})
flush()
"""
    words = arrivals(server, script, clean_environment, LANGCHAIN_TRACING="true")
    assert (words[0], set(words)) == ("CLOSING", {"CLOSING", "info", "was-after"})


def test_a_server_that_does_not_answer_holds_nobody_up(server: Server, clean_environment: dict[str, str]) -> None:
    script = """
import socket, time
silent = socket.create_server(("127.0.0.1", 0))
os.environ["LANGCHAIN_ENDPOINT"] = os.environ["LANGSMITH_ENDPOINT"]
os.environ["LANGSMITH_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
chain = build()
chain.invoke({"x": "was-before"})
import pytest_agenttrace.replay.langsmith as room
room._PATIENCE = 0.1
start = time.monotonic()
with quiet_langsmith():
    took = time.monotonic() - start
    chain.invoke({"x": "in-sync"})
os.environ["LANGSMITH_ENDPOINT"] = os.environ["LANGCHAIN_ENDPOINT"]
mark("soon" if 0.1 <= took < 2 else "late")
sys.stdout.flush()
os._exit(0)
"""
    assert arrivals(server, script, clean_environment, LANGSMITH_TRACING="true") == ["SOON"]


# What it leaves behind


def langsmith_utils() -> Any:
    from langsmith import utils

    return utils


def functions() -> dict[str, object]:
    from langsmith import client, utils

    methods = ("create_run", "update_run", "info")
    return {name: vars(client.Client)[name] for name in methods} | {
        name: vars(utils)[name] for name in ("tracing_is_enabled", "test_tracking_is_disabled")
    }


def test_what_it_silences_is_there() -> None:
    """langsmith may rename them: then tracing is switched off by the environment alone."""
    found = functions()
    assert isinstance(found.pop("info"), property)
    assert sorted(name for name, value in found.items() if callable(value)) == [
        "create_run",
        "test_tracking_is_disabled",
        "tracing_is_enabled",
        "update_run",
    ]


def test_environment_cache_and_functions_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = langsmith_utils()
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING", "LANGCHAIN_HANDLER"):
        monkeypatch.setenv(name, "true")
    utils.get_env_var.cache_clear()
    assert utils.tracing_is_enabled() is True
    environment, before, cached = dict(os.environ), functions(), utils.get_env_var.cache_info().currsize
    with quiet_langsmith():
        assert utils.tracing_is_enabled() is False
        with quiet_langsmith():
            assert utils.tracing_is_enabled() is False
        assert utils.tracing_is_enabled() is False
        assert {name for name in environment if name not in os.environ} == {"LANGCHAIN_TRACING", "LANGCHAIN_HANDLER"}
    assert dict(os.environ) == environment
    assert functions() == before
    assert utils.get_env_var.cache_info().currsize == cached
    # Still what the cache holds, not what the environment says now.
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    assert utils.tracing_is_enabled() is True
    with pytest.raises(ZeroDivisionError), quiet_langsmith():
        _ = 1 / 0
    assert functions() == before
    utils.get_env_var.cache_clear()


def test_what_langchain_refuses_is_refused_where_tracing_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING_V2"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANGCHAIN_TRACING", "1")
    with quiet_langsmith():
        assert os.environ["LANGCHAIN_TRACING"] == "1"


def test_what_the_code_under_test_changes_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = langsmith_utils()
    monkeypatch.setenv("LANGCHAIN_TRACING", "true")
    real = utils.tracing_is_enabled
    with quiet_langsmith():
        kept = utils.tracing_is_enabled
        os.environ["LANGCHAIN_TRACING"] = "1"
        monkeypatch.setattr(utils, "tracing_is_enabled", lambda: "theirs")
    assert os.environ["LANGCHAIN_TRACING"] == "1"
    assert utils.tracing_is_enabled() == "theirs"
    monkeypatch.undo()
    # Undone later than ours was: it put back what it had found, which asks the real one now.
    assert utils.tracing_is_enabled is kept
    assert kept({"enabled": "local"}) == "local"
    utils.tracing_is_enabled = real


def test_where_langsmith_has_other_names_the_environment_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    utils = langsmith_utils()
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.delattr(utils, "tracing_is_enabled")
    utils.get_env_var.cache_clear()
    assert utils.get_env_var("TRACING_V2", default="unset") == "unset"
    with quiet_langsmith():
        assert os.environ["LANGSMITH_TRACING_V2"] == "false"
        assert utils.get_env_var("TRACING_V2", default="unset") == "false"
    assert "LANGSMITH_TRACING_V2" not in os.environ
    assert utils.get_env_var("TRACING_V2", default="unset") == "unset"
    utils.get_env_var.cache_clear()


def test_it_imports_nothing(clean_environment: dict[str, str]) -> None:
    source = """
import json, sys
from pytest_agenttrace.replay.langsmith import quiet_langsmith
with quiet_langsmith():
    print(json.dumps([name for name in ("langsmith", "langchain_core") if name in sys.modules]))
"""
    run = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, env=clean_environment
    )
    assert (json.loads(run.stdout), run.stderr) == ([], "")
    assert room._open == 0
