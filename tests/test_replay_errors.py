"""Recorded errors, replayed: the real clients' own exceptions, every attempt counted, not a second slept."""

from __future__ import annotations

import asyncio
import csv
import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest

from pytest_agenttrace import ErrorReply, GeminiServer, Reply, capture
from pytest_agenttrace.replay import CassetteMiss, GeminiCassette, Opening, open_cassette
from pytest_agenttrace.replay.cassette import Interaction, load_cassette
from pytest_agenttrace.replay.matching import plain_reply
from pytest_agenttrace.replay.writing import save_cassette
from pytest_agenttrace.wire import parse_endpoint

RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "recordings"
NOWHERE = "https://gemini.invalid"
PATH = "/v1beta/models/gemini-2.5-flash:generateContent"
STREAM = "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
pytestmark = [
    # google-genai's own session class, where aiohttp is installed.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]
STATUS = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}
# What langchain-google-genai makes of a status; before 4.3 one class for all the client's errors.
NAMES = {
    400: "GoogleInvalidRequestError",
    404: "GoogleModelNotFoundError",
    429: "GoogleRateLimitError",
    500: "GoogleAPIError",
    503: "GoogleAPIError",
}


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    """What is never awaited is collected here, where the warning of it is known."""
    yield
    gc.collect()


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were asked of `time.sleep` and `asyncio.sleep`; none is slept."""
    asked: list[float] = []
    real = asyncio.sleep

    async def asleep(delay: float, result: Any = None) -> Any:
        asked.append(delay)
        return await real(0, result)

    monkeypatch.setattr(time, "sleep", asked.append)
    monkeypatch.setattr(asyncio, "sleep", asleep)
    return asked


def said(status: int) -> bytes:
    """A reply of this status, in the API's form."""
    if status == 200:
        content = {"parts": [{"text": "answered"}], "role": "model"}
        usage = {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}
        return json.dumps(
            {"candidates": [{"content": content, "finishReason": "STOP"}], "usageMetadata": usage}
        ).encode()
    return json.dumps({"error": {"code": status, "message": "try later", "status": STATUS[status]}}).encode()


def cassette(path: Path, *statuses: int, url: str = PATH) -> Path:
    def body(status: int) -> bytes:
        return b"data: " + said(status) + b"\r\n\r\n" if "sse" in url and status == 200 else said(status)

    headers = {"content-type": ["text/event-stream" if "sse" in url else "application/json"]}
    exchanges = [Interaction("POST", NOWHERE + url, b"{}", s, body(s), "", {}, headers) for s in statuses]
    save_cassette(path, exchanges, {})
    return path


def llm(max_retries: int = 6, **options: Any) -> Any:
    from langchain_google_genai import ChatGoogleGenerativeAI

    options = {"google_api_key": "no key", "base_url": NOWHERE, **options}
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", max_retries=max_retries, **options)


def by_httpx(**options: Any) -> Any:
    import httpx

    # google-genai speaks aiohttp where it can, and httpx where it is given a transport.
    return llm(client_args={"transport": httpx.AsyncHTTPTransport()}, **options)


def invoke(model: Any) -> str:
    return str(model.invoke("x").text)


def ainvoke(model: Any) -> str:
    return str(asyncio.run(model.ainvoke("x")).text)


def stream(model: Any) -> str:
    return "".join(chunk.text for chunk in model.stream("x"))


def astream(model: Any) -> str:
    async def read() -> str:
        return "".join([chunk.text async for chunk in model.astream("x")])

    return asyncio.run(read())


WAYS: list[Any] = [
    pytest.param(llm, invoke, PATH, id="sync"),
    pytest.param(llm, ainvoke, PATH, id="aiohttp"),
    pytest.param(by_httpx, ainvoke, PATH, id="async httpx"),
    pytest.param(llm, stream, STREAM, id="stream"),
    pytest.param(llm, astream, STREAM, id="aiohttp stream"),
    pytest.param(by_httpx, astream, STREAM, id="async httpx stream"),
]
every_way = pytest.mark.parametrize(("model", "ask", "url"), WAYS)


def statuses(session: GeminiCassette) -> list[int | None]:
    return [call.status for call in session.calls]


@every_way
@pytest.mark.parametrize("status", NAMES)
def test_the_real_clients_exception(
    status: int, model: Callable[..., Any], ask: Callable[[Any], str], url: str, tmp_path: Path, sleeps: list[float]
) -> None:
    import google.genai.errors
    import langchain_google_genai.chat_models as client

    kind = getattr(client, NAMES[status], None)
    if kind is None:
        kind = client.ChatGoogleGenerativeAIError if status < 500 else google.genai.errors.ServerError
    attempts = [status] * 6
    path = cassette(tmp_path / "x.yaml", *attempts, url=url)
    with open_cassette(path, Opening(match="order")) as session, pytest.raises(kind, match="try later") as caught:
        ask(model())
    assert str(status) in str(caught.value)
    # 400 and 404 are not tried again.
    assert statuses(session) == (attempts if status in (429, 500, 503) else [status])
    assert (sum(sleeps), session.misses) == (0, ())


@every_way
def test_attempts_that_fail_are_counted_and_not_waited_for(
    model: Callable[..., Any], ask: Callable[[Any], str], url: str, tmp_path: Path, sleeps: list[float]
) -> None:
    with open_cassette(cassette(tmp_path / "x.yaml", 429, 503, 200, url=url), Opening(match="order")) as session:
        assert ask(model()) == "answered"
    assert statuses(session) == [429, 503, 200]
    assert [call.answered for call in session.calls] == [False, False, True]
    # The client did mean to wait, twice: what it was made to wait is nothing.
    assert (sum(sleeps), session.unused) == (0, ())


@pytest.mark.parametrize("ask", [invoke, ainvoke])
def test_with_retry_does_not_wait(ask: Callable[[Any], str], tmp_path: Path, sleeps: list[float]) -> None:
    model = llm(1).with_retry(stop_after_attempt=3)
    with open_cassette(cassette(tmp_path / "x.yaml", 500, 429, 200), Opening(match="order")) as session:
        assert ask(model) == "answered"
    assert (statuses(session), sum(sleeps)) == ([500, 429, 200], 0)


def test_with_fallbacks_the_second_model_is_asked_at_once(tmp_path: Path, sleeps: list[float]) -> None:
    model = llm(2).with_fallbacks([llm(1)])
    with open_cassette(cassette(tmp_path / "x.yaml", 503, 503, 200), Opening(match="order")) as session:
        assert invoke(model) == "answered"
    assert (statuses(session), sum(sleeps)) == ([503, 503, 200], 0)


def test_the_middleware_of_an_agent_does_not_wait(tmp_path: Path, sleeps: list[float]) -> None:
    agents = pytest.importorskip("langchain.agents")
    middleware = pytest.importorskip("langchain.agents.middleware")
    agent = agents.create_agent(llm(1), middleware=[middleware.ModelRetryMiddleware(max_retries=2, initial_delay=9)])
    with open_cassette(cassette(tmp_path / "x.yaml", 503, 503, 200), Opening(match="order")) as session:
        assert agent.invoke({"messages": ["x"]})["messages"][-1].text == "answered"
    assert (statuses(session), sum(sleeps)) == ([503, 503, 200], 0)


def test_a_stream_that_breaks_is_tried_again_at_once(tmp_path: Path, sleeps: list[float]) -> None:
    from google.genai.errors import ServerError

    exchanges = [
        Interaction("POST", NOWHERE + STREAM, b"{}", 200, b"data: " + said(200) + b"\r\n\r\n" + last, "")
        for last in (b"data: " + said(503) + b"\r\n\r\n", b"")
    ]
    save_cassette(tmp_path / "x.yaml", exchanges, {})
    texts: list[str] = []

    def ask() -> None:
        for attempt in range(2):
            try:
                texts.append(stream(llm(1)))
            except ServerError:
                time.sleep(5 + attempt)

    with open_cassette(tmp_path / "x.yaml", Opening(match="order")) as session:
        ask()
    assert (texts, statuses(session), sleeps) == (["answered"], [200, 200], [0])


# In a graph


class State(TypedDict):
    said: str


def graph(later: bool) -> Any:
    from langgraph.graph import START, StateGraph
    from langgraph.types import RetryPolicy

    def ask(state: State) -> State:
        return {"said": invoke(llm(1))}

    async def asking(state: State) -> State:
        return {"said": str((await llm(1).ainvoke("x")).text)}

    policy = RetryPolicy(max_attempts=3, initial_interval=9, jitter=False, retry_on=Exception)
    builder = StateGraph(State)
    builder.add_node("ask", asking if later else ask, retry_policy=policy)
    builder.add_edge(START, "ask")
    return builder.compile()


@pytest.mark.parametrize("later", [False, True])
def test_a_node_tried_again_is_one_execution_of_three_attempts(
    later: bool, tmp_path: Path, sleeps: list[float]
) -> None:
    app = graph(later)
    with capture(cassette(tmp_path / "x.yaml", 429, 503, 200), match="order") as trace:
        given = asyncio.run(app.ainvoke({"said": ""})) if later else app.invoke({"said": ""})
        (execution,) = trace.executions
        assert (execution.attempts, execution.status) == (3, "ok")
        assert [(call.node, call.status) for call in trace.calls] == [("ask", 429), ("ask", 503), ("ask", 200)]
        assert [(call.node, call.model) for call in trace.llm_calls] == [("ask", "gemini-2.5-flash")]
        assert trace.tokens == 7
    assert given == {"said": "answered"}
    assert [seconds for seconds in sleeps if seconds >= 9] == []


# While recording


def test_recording_waits_as_the_client_wants(tmp_path: Path, sleeps: list[float]) -> None:
    script: list[Reply | ErrorReply] = [ErrorReply(429, "slow down"), ErrorReply(503, "busy"), Reply("answered")]
    with GeminiServer(script) as server, open_cassette(tmp_path / "x.yaml", Opening(mode="record")) as session:
        assert invoke(llm(base_url=server.url)) == "answered"
    first, second = (seconds for seconds in sleeps if seconds >= 1)
    # google-genai: 1 and 2 seconds, each with up to one more.
    assert 1 <= first <= 2 <= second <= 3
    assert statuses(session) == [429, 503, 200]

    sleeps.clear()
    with open_cassette(tmp_path / "x.yaml") as session:
        assert invoke(llm()) == "answered"
    assert (statuses(session), sum(sleeps)) == ([429, 503, 200], 0)


# Real recordings


def error_files() -> list[Path]:
    """Every recording that holds an error."""
    if not RECORDINGS.is_dir():
        return []
    with (RECORDINGS / "index.tsv").open(encoding="utf-8", newline="") as lines:
        files = [RECORDINGS / row["file"] for row in csv.DictReader(lines, delimiter="\t")]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    return [file for file in files if re.search(r"^ +code: [45]\d\d$", texts[file], re.MULTILINE)]


ERROR_FILES = error_files()
with_recordings = pytest.mark.skipif(not ERROR_FILES, reason=f"no recordings: {RECORDINGS} is absent")


@with_recordings
def test_the_real_errors_are_all_here() -> None:
    found = [exchange.status for file in ERROR_FILES for exchange in load_cassette(file).interactions]
    assert sorted(found) == [400, 400, 400, 404, 404, 404, 404, 404, 404, 429]


def ask_google(url: str, attempts: int, *, later: bool) -> None:
    """google-genai's own client asks the model of a recorded URL, in its way."""
    from google import genai
    from google.genai import types

    endpoint = parse_endpoint(url)
    assert endpoint is not None
    assert endpoint.model is not None
    retry = types.HttpRetryOptions(attempts=attempts)
    client = genai.Client(api_key="no key", http_options=types.HttpOptions(retry_options=retry, base_url=NOWHERE))
    asked: dict[str, Any] = {"model": endpoint.model, "contents": "x"}

    async def read() -> None:
        async for _ in await client.aio.models.generate_content_stream(**asked):
            pass

    if endpoint.method == "countTokens":
        asyncio.run(client.aio.models.count_tokens(**asked)) if later else client.models.count_tokens(**asked)
    elif endpoint.streaming:
        asyncio.run(read()) if later else list(client.models.generate_content_stream(**asked))
    else:
        asyncio.run(client.aio.models.generate_content(**asked)) if later else client.models.generate_content(**asked)


@with_recordings
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("file", ERROR_FILES, ids=lambda file: file.stem)
def test_a_real_error_is_the_real_clients_exception(file: Path, later: bool, sleeps: list[float]) -> None:
    from google.genai.errors import ClientError

    recorded = load_cassette(file).interactions
    with open_cassette(file, Opening(match="order")) as session:
        for exchange in recorded:
            with pytest.raises(ClientError) as caught:
                ask_google(exchange.uri, 1, later=later)
            error = json.loads(plain_reply(exchange.reply, exchange.reply_headers))
            said = (error[0] if isinstance(error, list) else error)["error"]
            assert (caught.value.code, caught.value.message) == (exchange.status, said["message"])
    assert statuses(session) == [exchange.status for exchange in recorded]
    assert ([call.usage for call in session.calls], session.misses, sum(sleeps)) == ([None] * len(recorded), (), 0)


@with_recordings
@pytest.mark.parametrize("later", [False, True])
def test_a_real_429_is_tried_again_at_once(later: bool, sleeps: list[float]) -> None:
    (file,) = (file for file in ERROR_FILES if load_cassette(file).interactions[0].status == 429)
    (recorded,) = load_cassette(file).interactions
    with open_cassette(file, Opening(match="order")) as session, pytest.raises(CassetteMiss, match="all replayed"):
        ask_google(recorded.uri, 3, later=later)
    # One reply was recorded: the second attempt has none, and there is no third.
    assert (statuses(session), len(session.misses), sum(sleeps)) == ([429], 1, 0)
