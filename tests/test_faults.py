"""Faults: which call meets which, what is answered, that nothing of them is sent or written, and what is told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import RetryPolicy

from pytest_agenttrace import Fault, GeminiServer, Reply, capture
from pytest_agenttrace.calls import Caller, Endpoint
from pytest_agenttrace.capture import CaptureFailed
from pytest_agenttrace.replay import Opening, open_cassette
from pytest_agenttrace.replay.cassette import load_cassette
from pytest_agenttrace.replay.faults import Faults

pytestmark = [
    # google-genai's own session class, where aiohttp is installed.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]

NOWHERE = "https://gemini.invalid"
CHAT = Endpoint("generateContent", "gemini-2.5-flash", False, False, False)
SSE = Endpoint("streamGenerateContent", "gemini-2.5-flash", True, True, False)
ARRAY = Endpoint("streamGenerateContent", "gemini-2.5-flash", True, False, False)
EMBED = Endpoint("embedContent", "gemini-embedding-001", False, False, False)
COUNT = Endpoint("countTokens", "gemini-2.5-flash", False, False, False)
TEXT = "A sail needs no fuel at all."
SCRIPT = {"Write": Reply(TEXT, chunks=["A sail needs ", "no fuel at all."], usage={"promptTokenCount": 3})}
EVERY = {
    "503": Fault.status(503),
    "timeout": Fault.timeout(),
    "reset": Fault.reset(),
    "truncated": Fault.truncated(),
    "malformed": Fault.malformed(),
    "empty": Fault.empty(),
    "blocked SAFETY": Fault.blocked(),
    "finish SAFETY": Fault.finish("SAFETY"),
    "finish MAX_TOKENS": Fault.finish("MAX_TOKENS"),
    "slow 0.05 s": Fault.slow(0.05),
}


# What can be asked for


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Fault.status(200), "Fault.status: code is 200; it must be an HTTP status from 400 to 599"),
        (lambda: Fault.status(True), "Fault.status: code is True; it must be an HTTP status from 400 to 599"),
        (
            lambda: Fault.status("503"),  # type: ignore[arg-type]  # as a slip
            "Fault.status: code is '503'; it must be an HTTP status from 400 to 599",
        ),
        (
            lambda: Fault.status(503, 7),  # type: ignore[arg-type]  # as a slip
            "Fault.status: message is 7; it must be a text",
        ),
        (
            lambda: Fault.status(429, retry_after=-1),
            "Fault.status: retry_after is -1; it must be a whole number of seconds from 0",
        ),
        (lambda: Fault.slow(0), "Fault.slow: seconds is 0; it must be more than 0 and at most 5"),
        (lambda: Fault.slow(5.1), "Fault.slow: seconds is 5.1; it must be more than 0 and at most 5"),
        (lambda: Fault.slow(float("nan")), "Fault.slow: seconds is nan; it must be more than 0 and at most 5"),
        (lambda: Fault.finish("SAFTEY"), "Fault.finish: reason is 'SAFTEY'; did you mean 'SAFETY'?"),
        (
            lambda: Fault.blocked("safety"),
            "Fault.blocked: reason is 'safety'; it must be one of the API's: SAFETY, OTHER, BLOCKLIST, "
            "PROHIBITED_CONTENT, IMAGE_SAFETY, JAILBREAK, MODEL_ARMOR",
        ),
        (
            lambda: Faults().plan(503, None, None, 1),  # type: ignore[arg-type]  # as a slip
            "fault: 503 is no Fault; make one: Fault.status(503), Fault.timeout(), ...",
        ),
        (
            lambda: Faults().plan(Fault.reset(), "", None, 1),
            "fault: node is ''; it must be the name of a node, or None for any",
        ),
        (
            lambda: Faults().plan(Fault.reset(), "write", 0, 1),
            "fault: call is 0; it must be a whole number from 1",
        ),
        (
            lambda: Faults().plan(Fault.reset(), "write", None, 0),
            "fault: times is 0; it must be a whole number from 1",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_clear_error(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # all of the message follows
        wrong()
    assert str(caught.value) == message


def test_stop_is_no_fault_and_a_reason_newer_than_ours_is_one() -> None:
    with pytest.raises(
        ValueError, match=r"^Fault\.finish: reason is 'STOP'; it must be one of the API's: MAX_TOKENS, "
    ):
        Fault.finish("STOP")
    assert Fault.finish("ROBOT_UPRISING").name == "finish ROBOT_UPRISING"


# Which call meets which


def by(*nodes: str) -> Caller:
    return Caller(nodes[-1], 1, "|".join(f"{node}:1" for node in nodes)) if nodes else Caller()


def met(faults: Faults, *callers: Caller, endpoint: Endpoint = CHAT) -> list[str]:
    return [fault.name if (fault := faults.claim(caller, endpoint)) else "-" for caller in callers]


def test_a_nodes_faults_meet_its_next_calls_in_their_order() -> None:
    faults = Faults()
    faults.plan(Fault.status(503), "write", None, 2)
    faults.plan(Fault.timeout(), "write", None, 1)
    asked = [by("write"), by("research"), by("write"), by(), by("write"), by("write")]
    assert met(faults, *asked) == ["503", "-", "503", "-", "timeout", "-"]
    assert faults.unreached() == ()


def test_a_numbered_fault_meets_those_calls_only() -> None:
    faults = Faults()
    faults.plan(Fault.reset(), "write", 2, 2)
    faults.plan(Fault.timeout(), None, 1, 1)
    asked = [by("research"), by("write"), by("write"), by("write"), by("write")]
    assert met(faults, *asked) == ["timeout", "-", "reset", "reset", "-"]


def test_a_node_holds_what_its_subgraph_asks() -> None:
    faults = Faults()
    faults.plan(Fault.reset(), "team", 2, 1)
    assert met(faults, by("team", "plan"), by("team", "draft"), by("draft")) == ["-", "reset", "-"]


def test_counting_tokens_is_no_call_and_an_embedding_has_no_candidates() -> None:
    faults = Faults()
    faults.plan(Fault.empty(), None, None, 1)
    faults.plan(Fault.status(500), None, None, 1)
    assert met(faults, by("write"), endpoint=COUNT) == ["-"]
    assert met(faults, by("write"), endpoint=EMBED) == ["500"]
    assert met(faults, by("write")) == ["empty"]


def test_what_was_not_reached_is_told() -> None:
    faults = Faults()
    faults.plan(Fault.status(503), "write", 3, 1)
    faults.plan(Fault.timeout(), "write", None, 3)
    faults.plan(Fault.slow(1.5), None, None, 1)
    faults.plan(Fault.finish("SAFETY"), None, 9, 2)
    met(faults, by("write"), by("write"))
    assert [(left.node, left.text) for left in faults.unreached()] == [
        ("write", "write, call 3: fault 503 was never reached"),
        ("write", "write: fault timeout was reached 2 of 3 times"),
        (None, "any node: fault slow 1.5 s was never reached"),
        (None, "any node, call 9: fault finish SAFETY was never reached"),
    ]


# What a client gets


def answered(fault: Fault, endpoint: Endpoint = CHAT, tokens: int | None = None) -> tuple[int, str, str]:
    reply = fault.reply(endpoint, tokens)
    assert reply is not None
    return reply["status"]["code"], reply["headers"]["content-type"][0], reply["body"]["string"].decode()


def test_replies_have_the_apis_form() -> None:
    code, kind, body = answered(Fault.status(429, "slow down", 7), SSE)
    assert (code, kind) == (429, "application/json; charset=UTF-8")
    assert json.loads(body) == {
        "error": {
            "code": 429,
            "message": "slow down",
            "status": "RESOURCE_EXHAUSTED",
            "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}],
        }
    }
    assert json.loads(answered(Fault.status(503))[2]) == {
        "error": {"code": 503, "message": "UNAVAILABLE, injected by a test", "status": "UNAVAILABLE"}
    }
    assert answered(Fault.blocked("JAILBREAK"), SSE, 12) == (
        200,
        "text/event-stream",
        'data: {"promptFeedback": {"blockReason": "JAILBREAK"}, "usageMetadata": {"promptTokenCount": 12, '
        '"totalTokenCount": 12}, "modelVersion": "gemini-2.5-flash"}\r\n\r\n',
    )
    assert json.loads(answered(Fault.empty(), ARRAY)[2]) == [{"modelVersion": "gemini-2.5-flash"}]
    with pytest.raises(json.JSONDecodeError):
        json.loads(answered(Fault.malformed())[2])


def chunk(text: str, **fields: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **fields}]}


def events(*chunks: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + json.dumps(found).encode() + b"\r\n\r\n" for found in chunks)


def test_a_stream_is_cut_in_its_last_event_and_a_body_in_its_middle() -> None:
    first, last = events(chunk("One, ")), events(chunk("two."))
    cut = Fault.truncated().alter(first + last, 200)
    assert cut.startswith(first)
    assert cut == first + last[: (len(last) - 4) // 2]
    assert Fault.truncated().alter(b'{"error": {}}', 503) == b'{"erro'


def test_a_reply_ends_with_another_reason() -> None:
    whole, stream = json.dumps(chunk("One, two.", finishReason="STOP")).encode(), [chunk("One, "), chunk("two.")]
    blocked = {"candidates": [{"index": 0, "finishReason": "SAFETY"}]}
    assert json.loads(Fault.finish("SAFETY").alter(whole, 200)) == blocked
    assert Fault.finish("SAFETY").alter(events(*stream), 200) == events(stream[0], blocked)
    assert json.loads(Fault.finish("MAX_TOKENS").alter(whole, 200)) == chunk("One,", finishReason="MAX_TOKENS")
    array = json.dumps(stream).encode()
    assert json.loads(Fault.finish("MAX_TOKENS").alter(array, 200)) == [
        stream[0],
        chunk("tw", finishReason="MAX_TOKENS"),
    ]
    assert Fault.finish("SAFETY").alter(b'{"error": {}}', 503) == b'{"error": {}}'
    assert json.loads(Fault.finish("SAFETY").alter(b"{}", 200)) == blocked
    assert Fault.finish("SAFETY").alter(b"no JSON", 200) == b"no JSON"


# With the clients


class State(TypedDict, total=False):
    text: str


def llm(url: str = NOWHERE, **options: Any) -> Any:
    from langchain_google_genai import ChatGoogleGenerativeAI

    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", google_api_key="no key", base_url=url, **options)


def by_httpx(url: str = NOWHERE, **options: Any) -> Any:
    import httpx

    # google-genai speaks aiohttp where it can, and httpx where it is given a transport.
    return llm(url, client_args={"transport": httpx.AsyncHTTPTransport()}, **options)


def invoke(model: Any) -> str:
    return str(model.invoke("Write").text)


def ainvoke(model: Any) -> str:
    return str(asyncio.run(model.ainvoke("Write")).text)


def stream(model: Any) -> str:
    return "".join(found.text for found in model.stream("Write"))


def astream(model: Any) -> str:
    async def read() -> str:
        return "".join([found.text async for found in model.astream("Write")])

    return asyncio.run(read())


def outcome(ask: Callable[[Any], str], model: Any) -> str:
    try:
        return ask(model)
    except Exception as error:
        return type(error).__name__


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cassette of one plain reply and one stream."""
    path = tmp_path_factory.mktemp("recorded") / "c.yaml"
    with GeminiServer(SCRIPT) as server, open_cassette(path, Opening("record")):
        invoke(llm(server.url))
        stream(llm(server.url))
    return path


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


WAYS = [(invoke, llm), (stream, llm), (ainvoke, llm), (astream, llm), (ainvoke, by_httpx), (astream, by_httpx)]


@pytest.mark.parametrize(("ask", "model"), WAYS)
def test_a_client_retries_without_a_wait_and_gets_the_recorded_reply(
    ask: Callable[[Any], str], model: Callable[[], Any], recorded: Path, tmp_path: Path, sleeps: list[float]
) -> None:
    with open_cassette(recorded, scratch=tmp_path) as cassette:
        cassette.fault(Fault.status(429, retry_after=30))
        cassette.fault(Fault.status(503), times=2)
        assert ask(model()) == TEXT
        assert [(call.index, call.status, call.injected) for call in cassette.calls] == [
            (1, 429, "429"),
            (2, 503, "503"),
            (3, 503, "503"),
            (4, 200, None),
        ]
        assert len(cassette.unused) == 1
    assert [seconds for seconds in sleeps if seconds > 0] == []


@pytest.mark.parametrize("name", ["timeout", "reset", "truncated", "malformed"])
@pytest.mark.parametrize(("ask", "model"), WAYS)
def test_a_node_that_is_tried_again_does_not_wait(
    name: str, ask: Callable[[Any], str], model: Callable[..., Any], recorded: Path, tmp_path: Path, sleeps: list[float]
) -> None:
    def write(state: State) -> State:
        return {"text": ask(model(max_retries=1))}

    graph = StateGraph(State)
    graph.add_node("write", write, retry_policy=RetryPolicy(initial_interval=9, retry_on=Exception))
    graph.add_edge(START, "write")
    with open_cassette(recorded, scratch=tmp_path) as cassette:
        cassette.fault(EVERY[name], node="write", times=1 if name == "truncated" else 2)
        if name == "truncated":  # its reply is used, and this cassette holds no second one
            with pytest.raises(BaseException, match="write, call 2: no recorded reply"):
                graph.compile().invoke({})
        else:
            assert graph.compile().invoke({})["text"] == TEXT
            assert [call.injected for call in cassette.calls] == [name, name, None]
    assert [seconds for seconds in sleeps if seconds > 0] == []


def test_a_slow_reply_is_waited_for_and_a_shorter_timeout_is_kept(recorded: Path, tmp_path: Path) -> None:
    def timed(
        ask: Callable[[Any], str], model: Callable[..., Any], seconds: float, timeout: float
    ) -> tuple[str, float]:
        with open_cassette(recorded, scratch=tmp_path) as cassette:
            cassette.fault(Fault.slow(seconds))
            asking, before = model(max_retries=1, timeout=timeout), time.perf_counter()
            return outcome(ask, asking), time.perf_counter() - before

    for ask, model, error in (
        (invoke, llm, "ReadTimeout"),
        (ainvoke, llm, "TimeoutError"),
        (ainvoke, by_httpx, "ReadTimeout"),
    ):
        text, took = timed(ask, model, 0.3, 30)
        assert (text, took >= 0.3) == (TEXT, True)
        text, took = timed(ask, model, 5, 0.1)
        assert (text, 0.1 <= took < 4) == (error, True)


def test_a_slow_reply_of_one_branch_lets_the_others_go_on(recorded: Path, tmp_path: Path) -> None:
    ended: list[str] = []

    async def ask(name: str) -> None:
        model = llm()
        await (model.ainvoke("Write") if name == "slow" else asyncio.sleep(0.05))
        ended.append(name)

    async def both() -> None:
        await asyncio.gather(ask("slow"), ask("other"))

    with open_cassette(recorded, scratch=tmp_path) as cassette:
        cassette.fault(Fault.slow(0.5))
        asyncio.run(both())
    assert ended == ["other", "slow"]


def test_other_clients_get_the_systems_own_errors(recorded: Path, tmp_path: Path) -> None:
    import requests

    (asked, *_) = load_cassette(recorded).interactions
    url = NOWHERE + "/v1beta/models/gemini-2.5-flash:generateContent"
    with open_cassette(recorded, scratch=tmp_path) as cassette:
        cassette.fault(Fault.timeout())
        cassette.fault(Fault.reset())
        cassette.fault(Fault.slow(0.1))
        with pytest.raises(requests.exceptions.ReadTimeout):
            requests.post(url, data=asked.body, timeout=3)
        with pytest.raises(requests.exceptions.ConnectionError, match="Connection reset by peer"):
            requests.post(url, data=asked.body, timeout=3)
        assert requests.post(url, data=asked.body, timeout=3).status_code == 200


# While recording


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("ask", [stream, ainvoke])
def test_recording_writes_the_real_replies_and_replay_says_the_same(
    name: str, ask: Callable[[Any], str], tmp_path: Path
) -> None:
    path, fault = tmp_path / "c.yaml", EVERY[name]

    def asked(url: str = NOWHERE) -> list[str]:
        return [outcome(ask, llm(url, max_retries=1)) for _ in range(2)]

    with GeminiServer(SCRIPT) as server, open_cassette(path, Opening("record")) as cassette:
        cassette.fault(fault)
        seen = asked(server.url)
        assert cassette.incomplete is None
        calls = cassette.calls
        assert [call.status for call in cassette.made] == [200] * (1 if fault.stands else 2)
    assert len(server.requests) == (1 if fault.stands else 2)
    assert [found.status for found in load_cassette(path).interactions] == [200] * len(server.requests)
    assert name not in path.read_text()
    assert json.dumps(TEXT[-7:])[1:-1] in path.read_text()
    with open_cassette(path, scratch=tmp_path) as cassette:
        cassette.fault(fault)
        assert asked() == seen
        told = [(call.status, call.injected, call.usage, call.finish_reason) for call in cassette.calls]
        assert cassette.unused == ()
    prompt = fault.stands and fault.kind in ("empty", "blocked")
    assert [call.injected for call in calls] == [name, None]
    assert told[1:] == [(call.status, call.injected, call.usage, call.finish_reason) for call in calls[1:]]
    # What the prompt of a blocked call counts is known once its reply has been recorded.
    assert prompt or told[0] == (calls[0].status, name, calls[0].usage, calls[0].finish_reason)


# What a user is told


def article(**options: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("write", lambda state: {"text": invoke(llm(**options))})
    graph.add_edge(START, "write")
    return graph.compile(name="article")


def test_a_fault_that_nobody_reached_fails_the_test(recorded: Path) -> None:
    def ran(**settings: Any) -> None:
        with capture(recorded, **settings) as trace:
            trace._cassette.fault(Fault.status(503), node="write", call=3)
            article().invoke({})
            stream(llm())

    with pytest.raises(CaptureFailed) as caught:
        ran()
    assert str(caught.value) == "write, call 3: fault 503 was never reached [unused]"
    ran(allow=["write:unused"])


@pytest.mark.parametrize("name", EVERY)
def test_no_finding_is_made_of_a_fault_and_the_tree_says_that_it_was_one(name: str, recorded: Path) -> None:
    """`capture` would raise."""
    with capture(recorded, allow=["unused"]) as trace:
        trace._cassette.fault(EVERY[name], node="write")
        outcome(lambda app: str(app.invoke({})), article(max_retries=1))
        (call,) = trace.calls
        assert call.injected == name
        assert f"injected: {name}" in trace.snapshot().drawn()
        assert f"injected: {name}" in trace.snapshot().drawn(depth=0)


def test_the_tree_of_faults(recorded: Path) -> None:
    with capture(recorded, allow=["unused"]) as trace:
        trace._cassette.fault(Fault.status(503), node="write", times=2)
        trace._cassette.fault(Fault.finish("MAX_TOKENS"), node="write")
        article().invoke({})
        lines = [line.split("$")[1] for line in trace.snapshot().drawn().splitlines()]
    assert lines == [
        "0.0000184",
        "0.0000184   injected: 503 (2), injected: finish MAX_TOKENS",
        "0.0000184   3 in, 7 out, injected: finish MAX_TOKENS",
    ]


def test_a_model_without_a_graph_tells_its_faults_at_the_root(recorded: Path) -> None:
    with capture(recorded, allow=["unused"]) as trace:
        trace._cassette.fault(Fault.timeout())
        invoke(llm())
        (line,) = trace.snapshot().drawn().splitlines()
    assert line.endswith("3 in, 7 out, injected: timeout")


def test_a_stream_that_broke_and_was_asked_again_is_counted_twice(tmp_path: Path) -> None:
    def write(state: State) -> State:
        return {"text": stream(llm(urls[0], max_retries=1))}

    graph = StateGraph(State)
    graph.add_node("write", write, retry_policy=RetryPolicy(initial_interval=0.01, retry_on=Exception))
    graph.add_edge(START, "write")
    urls = [NOWHERE]
    with GeminiServer(SCRIPT) as server:
        urls[0] = server.url
        for record in (True, False):
            with capture(tmp_path / "c.yaml", record=record) as trace:
                trace._cassette.fault(Fault.truncated(), node="write")
                assert graph.compile().invoke({})["text"] == TEXT
                assert trace["write"].tokens == 20
                assert trace.executions[0].attempts == 2
                assert [call.injected for call in trace.calls] == ["truncated", None]
