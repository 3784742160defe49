"""Replay and recording with the real clients against a small server on loopback."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

import pytest
import yaml

from pytest_agenttrace.replay import CassetteError, CassetteMiss, GeminiCassette, Opening, open_cassette
from pytest_agenttrace.replay.cassette import Interaction
from pytest_agenttrace.replay.writing import save_cassette
from pytest_agenttrace.wire import Caller

KEY = "AIza" + "SyNotAKeyButOfItsLength0123456789AB"
ROOT = Path(__file__).parents[1]
RECORDINGS = ROOT.parent / "shared" / "recordings"
COMMAND = "pytest tests/test_article.py::test_article"
# The version of the API that the installed client asks.
API = "v1" if int(version("google-genai").partition(".")[0]) >= 3 else "v1beta"
MODEL_PATH = "/v1beta/models/gemini-2.5-flash:generateContent"
# google-genai's own: nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")
# Nothing is ever sent there: a request that gets out of replay fails on its name.
NOWHERE = "https://gemini.invalid"


def reply(text: str) -> dict[str, Any]:
    return {
        "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7},
        "modelVersion": "gemini-2.5-flash",
    }


class Handler(BaseHTTPRequestHandler):
    hits: list[str]
    slow: threading.Event

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.hits.append(self.path)
        self.answer(b"local", "text/plain")

    def do_POST(self) -> None:
        self.hits.append(self.path)
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "contents" not in asked:
            self.answer(b"local", "text/plain")
            return
        prompt = asked["contents"][-1]["parts"][0]["text"]
        if prompt == "slow":
            self.slow.wait(5)
        answer = reply(f"re: {prompt} {self.headers['x-goog-api-key']}")
        if "streamGenerateContent" in self.path:
            events = b"".join(b"data: " + json.dumps(reply(part)).encode() + b"\r\n\r\n" for part in ("re: ", "stream"))
            self.answer(events, "text/event-stream")
        else:
            self.answer(json.dumps(answer).encode(), "application/json")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        if "gzip" in self.headers.get("accept-encoding", ""):
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "session=secret")
        self.end_headers()
        self.wfile.write(body)


class Server:
    """`hits` are the paths asked; the prompt `slow` is answered once `slow` is set."""

    def __init__(self, url: str, hits: list[str], slow: threading.Event) -> None:
        self.url, self.hits, self.slow = url, hits, slow

    def wait_for(self, hits: int) -> None:
        deadline = time.monotonic() + 5
        while len(self.hits) < hits and time.monotonic() < deadline:
            time.sleep(0.005)


@pytest.fixture
def server() -> Iterator[Server]:
    hits: list[str] = []
    slow = threading.Event()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Counting", (Handler,), {"hits": hits, "slow": slow}))
    http.daemon_threads = True
    thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    yield Server(f"http://127.0.0.1:{http.server_port}", hits, slow)
    slow.set()
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def llm(url: str = NOWHERE, model: str = "gemini-2.5-flash", **options: Any) -> Any:
    from langchain_google_genai import ChatGoogleGenerativeAI

    return ChatGoogleGenerativeAI(model=model, google_api_key=KEY, base_url=url, max_retries=1, **options)


def body(text: str, **more: Any) -> bytes:
    """What langchain-google-genai sends for one prompt."""
    content = {"contents": [{"parts": [{"text": text}], "role": "user"}], "safetySettings": []}
    return json.dumps(content | {"generationConfig": {"temperature": 0.7, "candidateCount": 1}} | more).encode()


def recorded(text: str, answer: str, path: str = MODEL_PATH, **fields: Any) -> Interaction:
    uri = f"https://generativelanguage.googleapis.com{path}"
    return Interaction("POST", uri, body(text), 200, json.dumps(reply(answer)).encode(), "OK", **fields)


def cassette(path: Path, *interactions: Interaction, **meta: Any) -> Path:
    save_cassette(path, interactions, meta)
    return path


def miss_of(session: GeminiCassette, act: Callable[[], object]) -> str:
    """The whole message of the miss that `act` runs into, which must be the one remembered too."""
    with pytest.raises(CassetteMiss) as caught:
        act()
    assert session.misses[-1].text == str(caught.value) == caught.value.message
    return str(caught.value)


# Recorded, then replayed


def sync_call(url: str) -> str:
    return str(llm(url).invoke("hello").text)


def sync_stream(url: str) -> str:
    return "".join(chunk.text for chunk in llm(url).stream("hello"))


def async_call(url: str) -> str:
    return str(asyncio.run(llm(url).ainvoke("hello")).text)


def async_stream(url: str) -> str:
    return asyncio.run(_streamed(llm(url)))


def httpx_async_call(url: str) -> str:
    return str(asyncio.run(_httpx(url).ainvoke("hello")).text)


def httpx_async_stream(url: str) -> str:
    return asyncio.run(_streamed(_httpx(url)))


def _httpx(url: str) -> Any:
    import httpx

    # google-genai speaks aiohttp where it can, and httpx where it is given a transport.
    return llm(url, client_args={"transport": httpx.AsyncHTTPTransport()})


async def _streamed(model: Any) -> str:
    return "".join([chunk.text async for chunk in model.astream("hello")])


ASKING = [sync_call, sync_stream, async_call, async_stream, httpx_async_call, httpx_async_stream]


@pytest.mark.parametrize("ask", ASKING)
def test_what_was_recorded_replays_without_a_server(ask: Callable[[str], str], server: Server, here: Path) -> None:
    with open_cassette(here / "new" / "x.yaml", Opening(mode="record")) as session:
        assert session.recording
        answer = ask(server.url)
    assert (len(server.hits), len(session.calls), len(session.misses), len(session.unused)) == (1, 1, 0, 0)
    written = (here / "new" / "x.yaml").read_text()
    assert KEY not in written
    assert "secret" not in written
    assert "127.0.0.1" not in written

    with open_cassette(here / "new" / "x.yaml") as session:
        assert not session.recording
        assert len(session.unused) == 1
        again = ask(f"{NOWHERE}/gateway")
    assert again == answer.replace(KEY, "REDACTED")
    assert (len(server.hits), len(session.misses), len(session.unused)) == (1, 0, 0)
    (call,) = session.calls
    assert call.usage is not None
    assert (call.index, call.status, call.caller) == (1, 200, Caller())
    assert (call.usage.input_tokens, call.usage.output_tokens, call.usage.total_tokens) == (3, 4, 7)
    assert call.duration is not None
    assert 0 <= call.duration < 5
    assert call.recorded_at is not None
    assert abs((datetime.now(UTC) - call.recorded_at).total_seconds()) < 60


def test_a_recording_in_full(server: Server, here: Path) -> None:
    with open_cassette(here / "x.yaml", Opening(mode="record")):
        llm(server.url).invoke("hello")
    text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", (here / "x.yaml").read_text())
    text = re.sub(r"duration: [\d.]+", "duration: SECONDS", text)
    names = ("google-genai", "langchain-core", "langchain-google-genai", "langgraph", "vcrpy")
    packages = "".join(f"    {name}: {version(name)}\n" for name in names)
    assert re.sub(r"    pytest-agenttrace: .*\n", "", text) == (
        f"""\
version: 1
agenttrace:
  format: 1
  recorded: 'TIME'
  models:
  - gemini-2.5-flash
  packages:
{packages}  origin: scripted server on loopback
interactions:
- request:
    method: POST
    uri: https://generativelanguage.googleapis.com/{API}/models/gemini-2.5-flash:generateContent
    headers:
      content-type:
      - application/json
    body:
      contents:
      - parts:
        - text: hello
        role: user
      safetySettings: []
      generationConfig:
        temperature: 0.7
        candidateCount: 1
  response:
    status: {{code: 200, message: OK}}
    headers:
      content-type:
      - application/json
    body:
      string:
        candidates:
        - content:
            parts:
            - text: 're: hello REDACTED'
            role: model
          finishReason: STOP
          index: 0
        usageMetadata:
          promptTokenCount: 3
          candidatesTokenCount: 4
          totalTokenCount: 7
        modelVersion: gemini-2.5-flash
  agenttrace: {{recorded: 'TIME', duration: SECONDS}}
"""
    )


def test_recording_many_calls_at_once_loses_none(server: Server, here: Path) -> None:
    model = llm(server.url)

    async def all_at_once() -> list[str]:
        return [str(answer.text) for answer in await model.abatch([f"async {n}" for n in range(20)])]

    with open_cassette(here / "x.yaml", Opening(mode="record")) as session:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: str(model.invoke(f"sync {n}").text), range(20)))
        answers += asyncio.run(all_at_once())
    assert [call.index for call in session.calls] == list(range(1, 41))
    asked = [f"sync {n}" for n in range(20)] + [f"async {n}" for n in range(20)]
    with open_cassette(here / "x.yaml") as session, ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda prompt: str(model.invoke(prompt).text), asked))
    assert len(server.hits) == 40
    assert again == [f"re: {prompt} REDACTED" for prompt in asked]
    assert [answer.replace(KEY, "REDACTED") for answer in answers] == again
    assert (session.unused, session.misses) == ((), ())


def test_a_recording_is_in_the_order_of_asking(server: Server, here: Path) -> None:
    model = llm(server.url)
    with open_cassette(here / "x.yaml", Opening(mode="record")) as session, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(model.invoke, "slow")
        server.wait_for(1)
        model.invoke("fast")
        server.slow.set()
        slow.result()
    assert [call.index for call in session.calls] == [1, 2]
    with open_cassette(here / "x.yaml") as session:
        assert [unused.prompt for unused in session.unused] == ["slow", "fast"]


def test_a_reply_after_the_end_is_not_kept(server: Server, here: Path) -> None:
    model = llm(server.url)
    with ThreadPoolExecutor(1) as pool:
        with open_cassette(here / "x.yaml", Opening(mode="record")) as session:
            slow = pool.submit(model.invoke, "slow")
            server.wait_for(1)
        server.slow.set()
        assert slow.result().text == f"re: slow {KEY}"
    assert (session.calls, list(here.iterdir())) == ((), [])


def test_only_the_model_is_recorded(server: Server, here: Path) -> None:
    import httpx

    with open_cassette(here / "x.yaml", Opening(mode="record")) as session:
        assert httpx.get(f"{server.url}/api/traces").text == "local"
        with urllib.request.urlopen(f"{server.url}/by/urllib") as answer:  # noqa: S310  # loopback
            assert answer.read() in (b"local", gzip.compress(b"local"))
        llm(server.url).invoke("hello")
    assert session.passed_by == ("127.0.0.1",)
    assert [call.index for call in session.calls] == [1]
    assert (here / "x.yaml").read_text().count("uri:") == 1


@pytest.fixture
def rerouted(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Every host name leads to the server."""
    connect, port = socket.create_connection, int(server.url.rpartition(":")[2])
    monkeypatch.setattr(
        socket, "create_connection", lambda address, *args, **more: connect(("127.0.0.1", port), *args, **more)
    )
    return server


@pytest.mark.parametrize(
    ("hosts", "origin"),
    [
        (["generativelanguage.googleapis.com"], "Google"),
        (["gateway.example"], "gateway.example"),
        (
            ["generativelanguage.googleapis.com", "googleapis.com.example"],
            "generativelanguage.googleapis.com, googleapis.com.example",
        ),
        (["localhost", "127.0.0.1"], "scripted server on loopback"),
    ],
)
def test_a_recording_says_who_answered(hosts: list[str], origin: str, rerouted: Server, here: Path) -> None:
    with open_cassette(here / "x.yaml", Opening(mode="record")):
        for host in hosts:
            llm(f"http://{host}").invoke("hello")
    assert yaml.safe_load((here / "x.yaml").read_text())["agenttrace"]["origin"] == origin


def test_no_key_of_a_url_and_no_other_service_is_written(rerouted: Server, here: Path) -> None:
    import httpx

    with open_cassette(here / "x.yaml", Opening(mode="record")) as session:
        httpx.get("http://api.openai.example/v1/models")
        httpx.get(f"http://generativelanguage.googleapis.com/v1beta/files/a?key={KEY}")
        httpx.post(f"http://user:pass@gateway.example/x{MODEL_PATH}?access_token={KEY}", content=body(KEY))
    assert session.incomplete is None
    assert session.passed_by == ("api.openai.example",)
    text = (here / "x.yaml").read_text()
    assert re.findall("uri: (.*)", text) == [
        "http://generativelanguage.googleapis.com/v1beta/files/a",
        f"http://gateway.example/x{MODEL_PATH}",
    ]
    assert KEY not in text
    assert "text: REDACTED\n" in text


def test_a_body_that_is_a_file_is_recorded_and_matched(server: Server, here: Path) -> None:
    def ask() -> bytes:
        content = io.BytesIO(body("hello"))
        headers = {"Content-Length": str(len(body("hello"))), "Content-Type": "application/json"}
        request = urllib.request.Request(server.url + MODEL_PATH, content, headers)  # noqa: S310  # loopback
        with urllib.request.urlopen(request) as answer:  # noqa: S310  # loopback
            return bytes(answer.read())

    with open_cassette(here / "x.yaml", Opening(mode="record")):
        first = json.loads(ask())
    assert "text: hello\n" in (here / "x.yaml").read_text()
    with open_cassette(here / "x.yaml"):
        assert json.loads(ask()) == first == reply("re: hello None")


def test_a_recording_without_calls_writes_nothing(here: Path) -> None:
    with open_cassette(here / "new" / "x.yaml", Opening(mode="record")):
        pass
    assert list(here.iterdir()) == []
    content = cassette(here / "x.yaml", recorded("a", "b")).read_bytes()
    with open_cassette(here / "x.yaml", Opening(mode="record")) as session:
        pass
    assert (here / "x.yaml").read_bytes() == content
    assert session.unused == ()


def test_recording_again_replaces_what_was_there(server: Server, here: Path) -> None:
    cassette(here / "x.yaml", recorded("old", "old answer"))
    with open_cassette(here / "x.yaml", Opening(mode="record")):
        llm(server.url).invoke("new")
    with open_cassette(here / "x.yaml") as session:
        assert [unused.prompt for unused in session.unused] == ["new"]


def test_nothing_that_is_no_cassette_is_recorded_over(here: Path) -> None:
    (here / "x.yaml").write_text("- my: notes\n")
    with (
        pytest.raises(CassetteError, match=r"^x\.yaml:1: a list, not a cassette\. "),
        open_cassette(here / "x.yaml", Opening(mode="record")),
    ):
        pytest.fail("opened")
    assert (here / "x.yaml").read_text() == "- my: notes\n"


def test_a_folder_that_cannot_be_written_fails_before_any_call(here: Path) -> None:
    (here / "file").write_text("")
    with pytest.raises(CassetteError) as caught, open_cassette(here / "file" / "x.yaml", Opening(mode="record")):
        pytest.fail("opened")
    assert str(caught.value) == (
        "file: no cassette can be written here: Not a directory. Make it writable, or name another cassette."
    )


# What matches


def test_equal_requests_get_their_replies_in_recorded_order(here: Path) -> None:
    path = cassette(here / "x.yaml", recorded("roll", "1"), recorded("other", "x"), recorded("roll", "2"))
    with open_cassette(path) as session:
        assert [llm().invoke("roll").text for _ in range(2)] == ["1", "2"]
        assert [(u.number, str(u.endpoint), u.prompt) for u in session.unused] == [
            (2, "gemini-2.5-flash:generateContent", "other")
        ]


def test_a_reply_is_served_once_however_many_ask(here: Path) -> None:
    path = cassette(here / "x.yaml", *[recorded("roll", str(n)) for n in range(30)])
    model = llm()
    with open_cassette(path) as session, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: model.invoke("roll").text, range(30)))
    assert sorted(answers, key=int) == [str(n) for n in range(30)]
    assert sorted(call.index for call in session.calls) == list(range(1, 31))


def test_by_order_bodies_do_not_count_but_paths_do(here: Path) -> None:
    other = MODEL_PATH.replace("flash", "pro")
    path = cassette(here / "x.yaml", recorded("a", "1"), recorded("b", "pro", other), recorded("c", "2"))
    with open_cassette(path, Opening(match="order", command=COMMAND)) as session:
        assert [llm().invoke("anything").text for _ in range(2)] == ["1", "2"]
        assert llm(model="gemini-2.5-pro").invoke("anything").text == "pro"
        text = miss_of(session, lambda: llm().invoke("anything"))
    assert text == (
        "(no node), call 4: no recorded reply\n"
        "  POST gemini-2.5-flash:generateContent\n"
        f'  2 replies recorded for {MODEL_PATH.removeprefix("/v1beta")}, all replayed (match="order")\n'
        "  If the prompt changed on purpose, record again:\n"
        f"    {COMMAND} --agenttrace-record"
    )


def test_bodies_match_by_what_they_mean_and_methods_in_any_case(here: Path) -> None:
    asked = json.dumps(json.loads(body("hi")), indent=3, sort_keys=True).replace("0.7", "7e-1").encode()
    answer = json.dumps(reply("there")).encode()
    (here / "x.yaml").write_text(
        json.dumps(  # JSON is YAML
            {
                "interactions": [
                    {
                        "request": {"method": "post", "uri": f"http://proxy:1/x{MODEL_PATH}", "body": asked.decode()},
                        "response": {"status": {"code": 200}, "body": {"string": answer.decode()}},
                    }
                ]
            }
        )
    )
    with open_cassette(here / "x.yaml"):
        assert llm().invoke("hi").text == "there"


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("ask", ASKING)
def test_a_gzip_header_says_nothing_about_the_body(ask: Callable[[str], str], compressed: bool, here: Path) -> None:
    """The header stays in recordings whose client had already decoded the body."""
    answer = json.dumps(reply("there")).encode()
    answer = b"data: " + answer + b"\n\n" if "stream" in ask.__name__ else answer
    headers = {"Content-Encoding": ["gzip"], "Content-Length": ["12345"], "Transfer-Encoding": ["chunked"]}
    path = MODEL_PATH.replace(":generateContent", ":streamGenerateContent?alt=sse")
    stored = {
        "request": {
            "method": "POST",
            "uri": NOWHERE + (path if "stream" in ask.__name__ else MODEL_PATH),
            "body": gzip.compress(body("hello")),
        },
        "response": {
            "status": {"code": 200, "message": "OK"},
            "headers": headers,
            "body": {"string": gzip.compress(answer) if compressed else answer},
        },
    }
    (here / "x.yaml").write_text(yaml.safe_dump({"interactions": [stored]}))
    with open_cassette(here / "x.yaml") as session:
        assert ask(NOWHERE) == "there"
    assert session.calls[0].usage is not None
    assert session.calls[0].usage.total_tokens == 7


@pytest.mark.parametrize("window", [15, -15], ids=["zlib", "raw"])
def test_other_encodings_are_undone_too(window: int, here: Path) -> None:
    packer = zlib.compressobj(wbits=window)
    answer = packer.compress(json.dumps(reply("there")).encode()) + packer.flush()
    stored = {
        "request": {"method": "POST", "uri": NOWHERE + MODEL_PATH, "body": body("hello")},
        "response": {
            "status": {"code": 200, "message": "OK"},
            "headers": {"content-encoding": ["deflate"]},
            "body": {"string": answer},
        },
    }
    (here / "x.yaml").write_text(yaml.safe_dump({"interactions": [stored]}))
    with open_cassette(here / "x.yaml"):
        assert llm().invoke("hello").text == "there"


def test_dates_are_the_replys_own_else_the_recordings(here: Path) -> None:
    dated = recorded("a", "b", reply_headers={"Date": ["Tue, 01 Jul 2025 16:25:28 GMT"]}, duration=1.5)
    path = cassette(here / "x.yaml", dated, recorded("c", "d"), recorded="2026-01-02T03:04:05Z")
    with open_cassette(path) as session:
        llm().invoke("a")
        llm().invoke("c")
    assert [(call.recorded_at, call.duration) for call in session.calls] == [
        (datetime(2025, 7, 1, 16, 25, 28, tzinfo=UTC), 1.5),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None),
    ]


def test_unused_replies_leave_out_the_bookkeeping(here: Path) -> None:
    count = recorded("count me", "", MODEL_PATH.replace("generateContent", "countTokens"))
    tool = json.dumps({"contents": [{"parts": [{"functionResponse": {"name": "search", "response": {}}}]}]}).encode()
    uri = f"https://generativelanguage.googleapis.com{MODEL_PATH}"
    path = cassette(
        here / "x.yaml",
        count,
        Interaction("GET", "https://generativelanguage.googleapis.com/v1beta/files/a", b"", 200, b"{}"),
        Interaction("GET", "https://example.com/image.png", b"", 200, b"png"),
        recorded("a long prompt " * 9, "x"),
        Interaction("POST", uri, tool, 200, b"{}"),
    )
    with open_cassette(path) as session:
        pass
    asked = "was never asked for: gemini-2.5-flash:generateContent"
    assert [unused.text for unused in session.unused] == [
        f"reply 4 {asked} 'a long prompt a long prompt a long prompt a long prompt a...'",
        f"reply 5 {asked} 'reply of search'",
    ]


# Misses


def missed(here: Path, *interactions: Interaction, **options: Any) -> str:
    path = cassette(here / "x.yaml", *interactions)
    with open_cassette(path, Opening(command=COMMAND)) as session:
        return miss_of(session, lambda: llm(**options).invoke("Write 400 words on solar sails"))


def test_a_changed_prompt_says_what_changed(here: Path) -> None:
    text = missed(here, recorded("Review it", "x"), recorded("Write 300 words on solar sails", "y"))
    assert text == (
        "(no node), call 1: no recorded reply\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  nearest recorded: call 2, differs at contents[0].parts[0].text:\n"
        "    Write [-300-]{+400+} words on solar sails\n"
        "  If the prompt changed on purpose, record again:\n"
        f"    {COMMAND} --agenttrace-record"
    )


def test_another_difference_shows_both_values(here: Path) -> None:
    text = missed(here, recorded("Write 400 words on solar sails", "y"), temperature=0.2)
    assert text.splitlines()[2:4] == [
        "  nearest recorded: call 1, differs at generationConfig.temperature:",
        "    recorded 0.7, asked 0.2",
    ]


def test_another_model_says_which_was_recorded(here: Path) -> None:
    older = MODEL_PATH.replace("2.5", "2.0")
    text = missed(
        here, recorded("x", "x"), recorded("Write 400 words on solar sails", "y", older), model="gemini-3-pro"
    )
    assert text.splitlines()[1:3] == [
        "  POST gemini-3-pro:generateContent",
        "  nearest recorded: call 2, recorded for gemini-2.0-flash:generateContent",
    ]


def test_another_version_of_the_api_is_answered(here: Path) -> None:
    entry = recorded("hello", "from there", MODEL_PATH.replace("v1beta", "v1alpha"))
    with open_cassette(cassette(here / "x.yaml", entry)):
        assert llm().invoke("hello").text == "from there"


def test_a_reply_that_was_replayed_is_not_repeated(here: Path) -> None:
    path = cassette(here / "x.yaml", recorded("a", "1"), recorded("b", "2"), recorded("a b", "3"))
    with open_cassette(path) as session:
        llm().invoke("a")
        text = miss_of(session, lambda: llm().invoke("a"))
        assert text == (
            "(no node), call 2: no recorded reply\n"
            "  POST gemini-2.5-flash:generateContent\n"
            "  nearest recorded: call 1, already replayed"
        )
        # The numbers go on: a miss is one of the test's calls.
        assert llm().invoke("b").text == "2"
    assert [call.index for call in session.calls] == [1, 3]
    (miss,) = session.misses
    assert (miss.number, miss.caller, str(miss.endpoint), miss.nearest) == (
        2,
        Caller(),
        "gemini-2.5-flash:generateContent",
        "call 1, already replayed",
    )


def test_a_stream_and_an_array_are_not_the_same(here: Path) -> None:
    array = MODEL_PATH.replace(":generateContent", ":streamGenerateContent")
    with open_cassette(cassette(here / "x.yaml", recorded("a", "b", array))) as session:
        text = miss_of(session, lambda: list(llm().stream("a")))
    assert text == (
        "(no node), call 1: no recorded reply\n"
        "  POST gemini-2.5-flash:streamGenerateContent?alt=sse\n"
        "  the same request was recorded without alt=sse (call 1)"
    )


def test_the_nearest_is_the_same_endpoints(here: Path) -> None:
    older = recorded("Write 400 words on solar sails", "y", MODEL_PATH.replace("2.5", "2.0"))
    text = missed(here, older, recorded("Review it", "x"))
    assert text.splitlines()[2] == "  the same request was recorded for gemini-2.0-flash (call 1)"


def test_the_nearest_is_rather_one_that_still_waits(here: Path) -> None:
    with open_cassette(cassette(here / "x.yaml", recorded("Draft 1", "x"), recorded("Draft 2", "y"))) as session:
        llm().invoke("Draft 1")
        text = miss_of(session, lambda: llm().invoke("Draft 3"))
    assert text.splitlines()[2:] == [
        "  nearest recorded: call 2, differs at contents[0].parts[0].text:",
        "    Draft [-2-]{+3+}",
    ]


def test_a_cassette_without_calls(here: Path) -> None:
    assert missed(here).splitlines()[2] == "  the cassette holds no calls"


def test_no_cassette_names_the_file_and_the_command(here: Path) -> None:
    path = here / "cassettes" / "tests" / "test_article" / "test_article.yaml"
    with open_cassette(path, Opening(command=COMMAND)) as session:
        text = miss_of(session, lambda: llm().invoke("x"))
    assert text == (
        "(no node), call 1: no cassette\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  looked for: cassettes/tests/test_article/test_article.yaml\n"
        "  Record it:\n"
        f"    {COMMAND} --agenttrace-record"
    )
    with open_cassette(path) as session:
        assert miss_of(session, lambda: llm().invoke("x")).splitlines()[2:] == [
            "  looked for: cassettes/tests/test_article/test_article.yaml"
        ]
    assert list(here.iterdir()) == []


def test_a_bad_cassette_fails_when_it_is_opened_and_stays(here: Path) -> None:
    (here / "x.yaml").write_text("")
    with (
        pytest.raises(CassetteError, match=r"^x\.yaml: an empty file, not a cassette\. "),
        open_cassette(here / "x.yaml"),
    ):
        pytest.fail("opened")
    assert (here / "x.yaml").read_text() == ""


def test_a_changed_cassette_is_read_again(here: Path) -> None:
    for answer in ("one", "and two"):
        with open_cassette(cassette(here / "x.yaml", recorded("a", answer))):
            assert llm().invoke("a").text == answer


def test_a_miss_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(CassetteMiss("text", "write", 3)))  # noqa: S301  # our own
    assert (str(again), again.node, again.number) == ("text", "write", 3)


# Misses in a graph: raised once, never retried, never swallowed


class State(TypedDict):
    topic: str


def graph(node: Any, retry_policy: Any = None) -> Any:
    from langgraph.graph import END, START, StateGraph

    builder = StateGraph(State)
    builder.add_node("write", node, retry_policy=retry_policy)
    builder.add_edge(START, "write")
    builder.add_edge("write", END)
    return builder.compile()


def write(state: State) -> State:
    return {"topic": str(llm().invoke(state["topic"]).text)}


async def awrite(state: State) -> State:
    return {"topic": str((await llm().ainvoke(state["topic"])).text)}


async def awrite_by_httpx(state: State) -> State:
    return {"topic": str((await _httpx(NOWHERE).ainvoke(state["topic"])).text)}


def greedy(state: State) -> State:
    try:
        return write(state)
    except Exception:
        return {"topic": "swallowed"}


async def agreedy(state: State) -> State:
    try:
        return await awrite(state)
    except Exception:
        return {"topic": "swallowed"}


@pytest.mark.parametrize("retried", [False, True])
@pytest.mark.parametrize("node", [write, awrite, awrite_by_httpx, greedy, agreedy])
def test_a_miss_in_a_node_ends_the_run_at_once(node: Callable[[State], Any], retried: bool, here: Path) -> None:
    from langgraph.types import RetryPolicy

    policy = RetryPolicy(initial_interval=0.01, max_attempts=3, retry_on=Exception)
    app = graph(node, policy if retried else None)
    with open_cassette(cassette(here / "x.yaml", recorded("sails", "a")), Opening(command=COMMAND)) as session:
        act = app.invoke if node in (write, greedy) else lambda topic: asyncio.run(app.ainvoke(topic))
        text = miss_of(session, lambda: act({"topic": "sail"}))
    assert text == (
        "write, call 1: no recorded reply\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  nearest recorded: call 1, differs at contents[0].parts[0].text:\n"
        "    [-sails-]{+sail+}\n"
        "  If the prompt changed on purpose, record again:\n"
        f"    {COMMAND} --agenttrace-record"
    )
    assert [(miss.caller.node, miss.number) for miss in session.misses] == [("write", 1)]


@pytest.mark.parametrize("retrying", [True, False])
def test_a_miss_is_not_retried_by_langchain(retrying: bool, here: Path) -> None:
    model = llm().with_retry(stop_after_attempt=3, wait_exponential_jitter=False) if retrying else llm()
    with open_cassette(cassette(here / "x.yaml")) as session:
        with pytest.raises(CassetteMiss):
            asyncio.run(model.ainvoke("a"))
        with pytest.raises(CassetteMiss):
            model.invoke("a")
    assert [miss.number for miss in session.misses] == [1, 2]


def test_calls_know_the_node_that_made_them(here: Path) -> None:
    with open_cassette(cassette(here / "x.yaml", recorded("a", "b"), recorded("a", "c"))) as session:
        assert graph(write).invoke({"topic": "a"}) == {"topic": "b"}
        assert asyncio.run(graph(awrite).ainvoke({"topic": "a"})) == {"topic": "c"}
    for call in session.calls:
        assert (call.node, call.caller.step) == ("write", 1)
        assert call.caller.namespace is not None
        assert call.caller.namespace.startswith("write:")
        assert call.caller.path[:2] == ("__pregel_pull", "write")


# Whose thread, whose host


def test_a_thread_of_an_earlier_test_gets_no_reply(server: Server, here: Path) -> None:
    path = cassette(here / "x.yaml", recorded("a", "b"))
    for record in (False, True):
        go_on, caught, told = threading.Event(), list[BaseException](), list[str]()

        def ask(go_on: threading.Event = go_on, caught: list[BaseException] = caught) -> None:
            assert go_on.wait(20)
            try:
                llm(server.url).invoke("a")
            except BaseException as raised:
                caught.append(raised)

        with open_cassette(path):
            thread = threading.Thread(target=ask)
            thread.start()
        with open_cassette(path, Opening(mode="record" if record else "replay", late=told.append)) as session:
            go_on.set()
            thread.join(20)
            assert (session.calls, session.misses, server.hits) == ((), (), [])
        late = "(no node), late: POST gemini-2.5-flash:generateContent"
        assert told == [late]
        assert [(type(error), str(error)) for error in caught] == [
            (
                CassetteMiss,
                f"{late}\n  the thread or task was started by a test that has ended: wait for it before that test ends",
            )
        ]
    with open_cassette(path) as session:
        assert llm().invoke("a").text == "b"


def test_a_request_caught_by_a_closed_cassette_is_late(here: Path) -> None:
    import httpx

    with open_cassette(cassette(here / "x.yaml", recorded("a", "b"))) as session:
        transport = httpx.HTTPTransport.handle_request
    request = httpx.Request("POST", NOWHERE + MODEL_PATH, content=body("a"))
    with pytest.raises(CassetteMiss, match="late: POST"):
        transport(httpx.HTTPTransport(), request)
    assert (session.calls, session.misses) == ((), ())


def test_other_hosts_get_what_was_recorded_for_them_or_are_refused(here: Path) -> None:
    import httpx

    image = Interaction("GET", "https://example.com/a.png?size=1", b"", 200, b"png", "OK", {}, {"x": ["y"]})
    with open_cassette(cassette(here / "x.yaml", image), Opening(command=COMMAND)) as session:
        answer = httpx.get("https://example.com/a.png?size=1&key=secret")
        assert (answer.content, session.calls) == (b"png", ())
        with pytest.raises(httpx.ConnectError):
            httpx.get("https://example.com/a.png?size=2&key=secret")
    assert session.misses == ()
    assert [(refused.node, refused.text) for refused in session.refused] == [
        (
            None,
            "(no node): connection to example.com:443 (getaddrinfo) refused\n"
            '  replay speaks to loopback only. If it is meant: @pytest.mark.agent_trace(hosts=["example.com:443"])',
        )
    ]


def test_servers_on_loopback_are_reached_but_models_never(server: Server, here: Path) -> None:
    import aiohttp
    import httpx

    async def by_aiohttp() -> str:
        async with aiohttp.ClientSession() as client, client.post(f"{server.url}/a", json={"q": [1]}) as answer:
            return await answer.text()

    with open_cassette(here / "x.yaml"):
        assert httpx.get(f"{server.url}/v1/models").text == "local"
        assert asyncio.run(by_aiohttp()) == "local"
    with open_cassette(here / "x.yaml") as session:
        with urllib.request.urlopen(f"{server.url}/b") as answer:  # noqa: S310  # loopback
            assert answer.read() == b"local"
        assert server.hits == ["/v1/models", "/a", "/b"]
        miss_of(session, lambda: llm(server.url).invoke("x"))
    assert (len(server.hits), session.calls, session.passed_by, list(here.iterdir())) == (3, (), (), [])


def test_in_process_transports_are_no_network(here: Path) -> None:
    import httpx

    fake = httpx.MockTransport(lambda request: httpx.Response(200, text="fake"))
    with open_cassette(here / "x.yaml"), httpx.Client(transport=fake) as client:
        assert client.get("https://example.com/").text == "fake"


def test_the_clients_are_as_before_afterwards(here: Path) -> None:
    import httpx

    before = [vars(transport).copy() for transport in (httpx.HTTPTransport, httpx.MockTransport)]
    with pytest.raises(ZeroDivisionError), open_cassette(here / "x.yaml"):
        raise ZeroDivisionError
    assert [vars(transport).copy() for transport in (httpx.HTTPTransport, httpx.MockTransport)] == before


def test_importing_it_costs_nothing() -> None:
    code = "import sys, pytest_agenttrace.replay; print(sorted({m.split('.')[0] for m in sys.modules}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    for heavy in ("vcr", "httpx", "aiohttp", "langgraph", "langchain_core", "google", "mlflow", "pytest"):
        assert f"'{heavy}'" not in done.stdout


# Real recordings


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="the real recordings are not beside this checkout")
class TestRealRecordings:
    def ask(self, name: str, model: str, method: str = "generateContent") -> tuple[Any, GeminiCassette]:
        import httpx

        (path,) = RECORDINGS.glob(name)
        with open_cassette(path, Opening(match="order")) as session:
            answer = httpx.post(f"{NOWHERE}/v1beta/models/{model}:{method}", json={})
        return answer.json(), session

    def test_a_compressed_body(self) -> None:
        name = "pydantic__logfire/*test_instrument_google_genai.yaml"
        answer, session = self.ask(name, "gemini-2.0-flash-001")
        assert answer["usageMetadata"]["totalTokenCount"] == session.calls[0].usage.total_tokens  # type: ignore[union-attr]
        assert session.calls[0].recorded_at == datetime(2025, 7, 1, 16, 25, 28, tzinfo=UTC)

    def test_a_plain_body_under_a_gzip_header(self) -> None:
        name = "lmnr-ai__lmnr-python/*reasoning_tokens_with_include_thoughts_async.yaml"
        answer, session = self.ask(name, "gemini-2.5-flash-lite")
        assert answer["usageMetadata"]["totalTokenCount"] == session.calls[0].usage.total_tokens  # type: ignore[union-attr]

    def test_a_stream_that_is_an_array(self) -> None:
        name = "simonw__llm-gemini/*test_nested_model_optional.yaml"
        answer, session = self.ask(name, "gemini-flash-latest", "streamGenerateContent")
        assert isinstance(answer, list)
        usage = answer[-1]["usageMetadata"]
        assert usage["totalTokenCount"] == session.calls[0].usage.total_tokens  # type: ignore[union-attr]
