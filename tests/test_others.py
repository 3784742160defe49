"""HTTP that is none of the model's: recorded and replayed beside the calls where its host is named, never counted."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypedDict

import pytest
import yaml

from pytest_agenttrace import CassetteMiss, capture
from pytest_agenttrace.calls import Caller
from pytest_agenttrace.replay import Opening, open_cassette
from pytest_agenttrace.replay.cassette import load_cassette
from pytest_agenttrace.replay.writing import save_cassette

KEY = "AIza" + "SyNotAKeyButOfItsLength0123456789AB"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class State(TypedDict):
    said: Any


def run(node: Any) -> Any:
    """One node, `work`."""
    from langgraph.graph import START, StateGraph

    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    return builder.compile().invoke({"said": None})["said"]


class Search(BaseHTTPRequestHandler):
    """Answers everything; `hits` are method and path without its query."""

    hits: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.hits.append(f"{self.command} {self.path.partition('?')[0]}")
        # An echo of the key, as some services have it in their replies.
        body = json.dumps({"found": ["a page"], "you": self.headers.get("x-api-key")}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", f"session={KEY}")
        self.end_headers()
        self.wfile.write(body)


class Server:
    def __init__(self, url: str, hits: list[str]) -> None:
        self.url, self.hits = url, hits


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A search API: every host's name leads to it."""
    hits: list[str] = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Counting", (Search,), {"hits": hits}))
    http.daemon_threads = True
    thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    connect, address = socket.create_connection, ("127.0.0.1", http.server_port)
    monkeypatch.setattr(socket, "create_connection", lambda _, *args, **more: connect(address, *args, **more))
    yield Server(f"http://127.0.0.1:{http.server_port}", hits)
    http.shutdown()
    http.server_close()
    thread.join()


SEARCH = "http://api.search.example/v1/search"
HOSTS = ["api.search.example"]


def searched(query: str = "sails") -> Any:
    import httpx

    headers = {"Authorization": f"Bearer {KEY}", "X-Api-Key": KEY, "Cookie": f"session={KEY}"}
    url = f"{SEARCH}?q={query}&api_key={KEY}&token={KEY}"
    return httpx.post(url, json={"query": query, "api_key": KEY, "deep": {"token": KEY}}, headers=headers).json()


def searching(state: State) -> Any:
    return {"said": searched()}


def test_a_host_that_is_named_is_recorded_beside_the_calls(search: Server, here: Path) -> None:
    with open_cassette(here / "x.yaml", Opening(mode="record", hosts=HOSTS)) as session:
        given = run(searching)
    assert (search.hits, session.passed_by, session.calls) == (["POST /v1/search"], (), ())
    text = (here / "x.yaml").read_text()
    assert KEY not in text
    content = yaml.safe_load(text)
    assert content["agenttrace"]["origin"] == "api.search.example"
    (exchange,) = content["interactions"]
    assert exchange["request"]["uri"] == f"{SEARCH}?q=sails"
    assert exchange["request"]["headers"] == {"content-type": ["application/json"]}
    assert exchange["request"]["body"] == {
        "query": "sails",
        "api_key": "REDACTED",
        "deep": {"token": "REDACTED"},
    }

    with capture(here / "x.yaml", hosts=HOSTS) as trace:
        assert run(searching) == {**given, "you": "REDACTED"}
        # No call to a model: nothing to count, nothing to pay.
        assert (len(trace.llm_calls), len(trace.calls), trace.tokens, trace.cost) == (0, 0, 0, Decimal(0))
    with open_cassette(here / "x.yaml", Opening(hosts=HOSTS)) as session:
        run(searching)
    assert [str(other) for other in session.others] == [f"work: POST {SEARCH}?q=sails 200"]
    assert (session.others[0].caller.node, session.calls, session.unused) == ("work", (), ())
    assert len(search.hits) == 1


def test_without_its_name_a_host_is_not_recorded(search: Server, here: Path) -> None:
    with open_cassette(here / "x.yaml", Opening(mode="record")) as session:
        searched()
    assert (session.passed_by, session.others, list(here.iterdir())) == (("api.search.example",), (), [])


def test_a_server_on_this_machine_is_never_recorded(search: Server, here: Path) -> None:
    import httpx

    with open_cassette(here / "x.yaml", Opening(mode="record", hosts=[*HOSTS, "127.0.0.1"])) as session:
        httpx.post(search.url, content=b"x")
    assert (session.passed_by, session.others, list(here.iterdir())) == (("127.0.0.1",), (), [])


def test_another_question_to_a_recorded_host_is_a_miss(search: Server, here: Path) -> None:
    with open_cassette(here / "x.yaml", Opening(mode="record", hosts=HOSTS)):
        searched()
    opened = open_cassette(here / "x.yaml", Opening(hosts=HOSTS, command="pytest x.py"))
    with opened as session, pytest.raises(CassetteMiss) as caught:
        searched("planes")
    assert str(caught.value) == (
        "(no node), call 1: no recorded reply\n"
        f"  POST {SEARCH}?q=planes\n"
        "  other requests to this host were recorded, this one was not\n"
        "  If the prompt changed on purpose, record again:\n"
        "    pytest x.py --agenttrace-record"
    )
    assert (len(session.misses), session.others, len(search.hits)) == (1, (), 1)


def test_a_named_host_that_was_never_recorded_is_spoken_to(search: Server, here: Path) -> None:
    save_cassette(here / "x.yaml", [], {})
    with open_cassette(here / "x.yaml", Opening(hosts=HOSTS)) as session:
        searched()
    assert (search.hits, session.misses, session.refused, session.others) == (["POST /v1/search"], (), (), ())


def test_a_form_is_recorded_without_its_keys_and_found_again(search: Server, here: Path) -> None:
    import httpx

    def ask(key: str) -> None:
        httpx.post(SEARCH, data={"q": "sails & more", "apikey": key})

    with open_cassette(here / "x.yaml", Opening(mode="record", hosts=HOSTS)):
        ask(KEY)
    (exchange,) = load_cassette(here / "x.yaml").interactions
    assert exchange.body == b"q=sails+%26+more&apikey=REDACTED"
    with open_cassette(here / "x.yaml", Opening(hosts=HOSTS)) as session:
        ask("another key")
    assert (len(session.others), len(search.hits)) == (1, 1)


def test_the_model_stays_the_models_host(search: Server, here: Path) -> None:
    """A search beside a call: the call keeps its number, and its provenance is the model's."""

    import httpx

    count = f"{search.url}/v1beta/models/gemini-2.5-flash:countTokens"

    def work(state: State) -> Any:
        searched()
        return {"said": httpx.post(count, json={"contents": []}).json()}

    with open_cassette(here / "x.yaml", Opening(mode="record", hosts=HOSTS)) as session:
        run(work)
    assert [(call.index, call.node) for call in session.calls] == [(1, "work")]
    assert [other.caller for other in session.others] != [Caller()]
    assert yaml.safe_load((here / "x.yaml").read_text())["agenttrace"]["origin"] == "scripted server on loopback"
