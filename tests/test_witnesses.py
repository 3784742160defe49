"""The witnesses over a real graph, a real store and a recorded cassette: each kind of disagreement is seeded alone,
found, and no other kind is told."""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypedDict

import httpx
import pytest

from pytest_agenttrace import AgentTrace, CassetteMiss, GeminiServer, Reply, capture
from pytest_agenttrace.capture import CaptureFailed, judge
from pytest_agenttrace.replay import read_recordings
from pytest_agenttrace.settings import Finding, Tolerance

RESEARCH = {"promptTokenCount": 1000, "candidatesTokenCount": 200, "thoughtsTokenCount": 50}
WRITE = {"promptTokenCount": 500, "candidatesTokenCount": 80, "cachedContentTokenCount": 300}


class State(TypedDict, total=False):
    notes: str
    article: str


def ask(prompt: str) -> str:
    from langchain_google_genai import ChatGoogleGenerativeAI

    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", temperature=0, max_retries=1).invoke(prompt).text


def run(beside: Callable[[], object] = lambda: None, *, prompt: str = "Write", write: bool = True) -> None:
    """Two nodes that each ask once; the second one does something else as well."""
    from langgraph.graph import START, StateGraph

    def writes(state: State) -> State:
        beside()
        return {"article": ask(prompt)} if write else {}

    graph = StateGraph(State)
    graph.add_node("research", lambda state: {"notes": ask("Research")})
    graph.add_node("write", writes)
    graph.add_edge(START, "research")
    graph.add_edge("research", "write")
    graph.compile().invoke({})


@pytest.fixture(scope="module")
def cassette(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("witnesses") / "two_nodes.yaml"
    script = {"Research": Reply("Notes.", usage=RESEARCH), "Write": Reply("Text.", usage=WRITE)}
    with GeminiServer(script) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        patch.setenv("GOOGLE_API_KEY", "none")
        with capture(path, record=True):
            run()
    return path


Witnessed = Callable[[Callable[[AgentTrace], object]], list[Finding]]


@pytest.fixture
def witnessed(cassette: Path) -> Witnessed:
    """What is found once something was done under a live trace of the cassette."""

    def find(act: Callable[[AgentTrace], object]) -> list[Finding]:
        found: list[Finding] = []
        with suppress(CaptureFailed), capture(cassette) as trace:
            act(trace)
            found += judge(trace, trace._cassette, trace._store, tolerance=Tolerance()).findings
        return found

    return find


def told(findings: list[Finding]) -> list[tuple[str, str | None, list[str]]]:
    """Kind, node, and the message without its way out."""
    return [(f.kind, f.node, f.text.split("\n  ")[:-1] or [f.text]) for f in findings]


def test_two_witnesses_that_agree(witnessed: Witnessed) -> None:
    assert witnessed(lambda trace: run()) == []


# What the store holds, changed behind MLflow's back, as a version that loses or doubles something would leave it.


def rows(trace: AgentTrace, node: str) -> Iterator[tuple[sqlite3.Connection, str, dict[str, Any]]]:
    """The model's span of a node, in the database: a connection, its id and its content."""
    with closing(sqlite3.connect(trace._store.path)) as database:
        for span_id, text in database.execute("SELECT span_id, content FROM spans WHERE type = 'CHAT_MODEL'"):
            content = json.loads(text)
            if json.loads(content["attributes"]["metadata"])["langgraph_node"] == node:
                yield database, span_id, content
        database.commit()


def change_usage(trace: AgentTrace, node: str, change: Callable[[dict[str, int]], object]) -> None:
    for database, span_id, content in rows(trace, node):
        usage = json.loads(content["attributes"]["mlflow.chat.tokenUsage"])
        change(usage)
        content["attributes"]["mlflow.chat.tokenUsage"] = json.dumps(usage)
        database.execute("UPDATE spans SET content = ? WHERE span_id = ?", (json.dumps(content), span_id))


def test_a_span_that_is_there_twice_is_uncalled(witnessed: Witnessed) -> None:
    def act(trace: AgentTrace) -> None:
        run()
        for database, span_id, content in rows(trace, "write"):
            content["span_id"] = base64.b64encode(b"twice!!!").decode()
            columns = [column[1] for column in database.execute("PRAGMA table_xinfo(spans)") if not column[6]]
            same = ", ".join(columns)
            new = ", ".join({"span_id": "?", "content": "?"}.get(column, column) for column in columns)
            values = [
                b"twice!!!".hex() if column == "span_id" else json.dumps(content)
                for column in columns
                if column in ("span_id", "content")
            ]
            copy = f"INSERT INTO spans ({same}) SELECT {new} FROM spans WHERE span_id = ?"  # noqa: S608  # its own columns
            database.execute(copy, [*values, span_id])

    assert told(witnessed(act)) == [
        (
            "uncalled",
            "write",
            [
                "write: span ChatGoogleGenerativeAI claims 580 tokens, no call was made",
                "A cached reply is counted as if it had been paid for.",
            ],
        )
    ]


def lose_thoughts(usage: dict[str, int]) -> None:
    usage |= {"output_tokens": 200, "total_tokens": 1200}


def test_thoughts_that_were_lost(witnessed: Witnessed) -> None:
    def act(trace: AgentTrace) -> None:
        run()
        change_usage(trace, "research", lose_thoughts)

    assert told(witnessed(act)) == [
        (
            "usage",
            "research",
            [
                "research, call 1: the span's tokens are not the wire's",
                "gemini-2.5-flash:generateContent",
                "output_tokens: wire 250, span 200",
                "total_tokens: wire 1,250, span 1,200",
            ],
        )
    ]


def test_a_count_of_cached_input_that_was_lost(witnessed: Witnessed) -> None:
    found: list[bool] = []

    def act(trace: AgentTrace) -> None:
        run()
        found.append(trace._store.counts_cache)
        change_usage(trace, "write", lambda usage: usage.pop("cache_read_input_tokens", None))

    lines = [
        "write, call 2: the span's tokens are not the wire's",
        "gemini-2.5-flash:generateContent",
        "cache_read_input_tokens: wire 300, span -",
    ]
    told_of = told(witnessed(act))
    # MLflow before 3.10 counts none.
    assert told_of == ([("usage", "write", lines)] if found[0] else [])


def test_a_total_that_counts_spans_twice(witnessed: Witnessed) -> None:
    def act(trace: AgentTrace) -> None:
        run()
        with closing(sqlite3.connect(trace._store.path)) as database:
            for table, name, value in double(database):
                database.execute(f"UPDATE {table} SET value = ? WHERE key = ?", (value, name))  # noqa: S608  # of this file
            columns = [column[1] for column in database.execute("PRAGMA table_info(trace_info)")]
            for column in {"input_tokens", "output_tokens", "total_tokens", "cache_read_input_tokens"} & set(columns):
                database.execute(f"UPDATE trace_info SET {column} = {column} * 2")  # noqa: S608  # of this file
            database.commit()

    [(kind, node, text)] = told(witnessed(act))
    assert (kind, node) == ("usage", None)
    assert text[:4] == [
        "run: MLflow's total of the trace LangGraph is not the sum of its spans",
        "input_tokens: trace 3,000, spans 1,500",
        "output_tokens: trace 660, spans 330",
        "total_tokens: trace 3,660, spans 1,830",
    ]


def double(database: sqlite3.Connection) -> Iterator[tuple[str, str, object]]:
    """Where MLflow's versions keep a trace's total beside its columns."""
    for name, value in database.execute("SELECT key, value FROM trace_metrics").fetchall():
        yield "trace_metrics", name, value * 2
    named = "SELECT key, value FROM trace_request_metadata WHERE key = 'mlflow.trace.tokenUsage'"
    for name, value in database.execute(named).fetchall():
        yield "trace_request_metadata", name, json.dumps({key: 2 * count for key, count in json.loads(value).items()})


# What a run does.


def refuse_writes(trace: AgentTrace) -> None:
    with closing(sqlite3.connect(trace._store.path)) as database:
        database.execute("CREATE TRIGGER full BEFORE INSERT ON spans BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    run()


def beside(act: Callable[[], object]) -> Callable[[AgentTrace], object]:
    return lambda trace: run(act)


def in_a_bare_thread() -> None:
    from langchain_core.runnables import RunnableLambda

    thread = threading.Thread(target=lambda: RunnableLambda(str.upper).invoke("a"), name="helper")
    thread.start()
    thread.join(20)


def dial() -> None:
    with suppress(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def ask_by_hand(trace: AgentTrace) -> None:
    """The recorded request, sent by a client that MLflow does not trace."""
    recorded = read_recordings(trace._cassette.path)
    assert recorded is not None
    request = recorded[1].request
    run(lambda: httpx.post(request.url, content=request.body), write=False)


def remember(trace: AgentTrace) -> None:
    """LangChain's cache: the second run's reply comes from there, with the tokens of the first."""
    from langchain_core.caches import InMemoryCache
    from langchain_core.globals import set_llm_cache

    set_llm_cache(InMemoryCache())
    try:
        run()
        ask("Write")
    finally:
        set_llm_cache(None)


def swallowed(trace: AgentTrace) -> None:
    with suppress(BaseException):
        run(prompt="Write more")


@pytest.mark.parametrize(
    ("act", "kind", "node", "first"),
    [
        (
            ask_by_hand,
            "uncounted",
            "write",
            "write, call 2: 580 tokens on the wire, no span in the trace",
        ),
        (swallowed, "missing", "write", "write, call 2: no recorded reply"),
        (
            lambda trace: run(write=False),
            "unused",
            "write",
            "write: reply 2 was never asked for: gemini-2.5-flash:generateContent 'Write'",
        ),
        (
            beside(in_a_bare_thread),
            "orphans",
            "write",
            "write: a trace outside of the run (upper, started in thread helper)",
        ),
        (beside(dial), "network", "write", "write: connection to 192.0.2.1:80 (connect) refused"),
        (refuse_writes, "export", None, "MLflow failed to store:"),
        (lambda trace: None, "empty", None, "nothing was traced: no graph, chain or model ran"),
        (
            remember,
            "uncalled",
            None,
            "(no node): span ChatGoogleGenerativeAI claims 580 tokens, no call was made",
        ),
    ],
    ids=["uncounted", "missing", "unused", "orphans", "network", "export", "empty", "uncalled"],
)
def test_each_kind_alone(
    witnessed: Witnessed, act: Callable[[AgentTrace], object], kind: str, node: str | None, first: str
) -> None:
    found = witnessed(act)
    assert {(f.kind, f.node) for f in found} == {(kind, node)}
    assert found[0].text.startswith(first)


def test_a_miss_without_pytest_says_how_to_record(cassette: Path) -> None:
    with pytest.raises(CassetteMiss) as caught, capture(cassette):
        run(prompt="Write more")
    assert caught.value.__notes__[-1] == 'to record it: capture(..., record=True), or record="missing" for it alone'
