"""What is no chat: embeddings, counting, caches and files; and Vertex AI, which wants a login."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypedDict

import pytest

from pytest_agenttrace import CassetteMiss, GeminiServer, UsageUnknown, capture
from pytest_agenttrace.replay import Opening, open_cassette
from pytest_agenttrace.replay.cassette import Interaction, load_cassette
from pytest_agenttrace.replay.credentials import TOKEN
from pytest_agenttrace.replay.matching import plain_reply
from pytest_agenttrace.replay.writing import save_cassette
from pytest_agenttrace.wire import parse_endpoint

RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "recordings"
KEY = "AIza" + "SyNotAKeyButOfItsLength0123456789AB"
NOWHERE = "https://gemini.invalid"
EMBEDDER = "gemini-embedding-001"
# google-genai's own session class, where aiohttp is installed.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and no credentials anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


class State(TypedDict):
    said: Any


def run(node: Any, later: bool = False) -> Any:
    """One node, `work`."""
    from langgraph.graph import START, StateGraph

    builder = StateGraph(State)
    builder.add_node("work", node)
    builder.add_edge(START, "work")
    app = builder.compile()
    given = asyncio.run(app.ainvoke({"said": None})) if later else app.invoke({"said": None})
    return given["said"]


# Embeddings


def embedder(url: str = NOWHERE) -> Any:
    from langchain_google_genai import GoogleGenerativeAIEmbeddings

    options: dict[str, Any] = {"google_api_key": KEY}
    return GoogleGenerativeAIEmbeddings(model=EMBEDDER, base_url=url, **options)


def embed(url: str) -> Any:
    def work(state: State) -> Any:
        model = embedder(url)
        return {"said": [model.embed_query("one two"), model.embed_documents(["three", "four five six"])]}

    return run(work)


def aembed(url: str) -> Any:
    async def work(state: State) -> Any:
        model = embedder(url)
        return {"said": [await model.aembed_query("one two"), await model.aembed_documents(["three", "four five six"])]}

    return run(work, later=True)


@pytest.mark.parametrize("ask", [embed, aembed])
def test_embeddings_replay_and_are_counted(ask: Callable[[str], Any], here: Path) -> None:
    with GeminiServer([]) as server, open_cassette(here / "x.yaml", Opening(mode="record")) as session:
        given = ask(server.url)
        assert len(server.requests) == 2
    assert [call.usage.input_tokens for call in session.calls if call.usage is not None] == [2, 4]

    with capture(here / "x.yaml") as trace:
        assert ask(NOWHERE) == given
        assert [(call.node, call.model, total(call)) for call in trace.llm_calls] == [
            ("work", EMBEDDER, 2),
            ("work", EMBEDDER, 4),
        ]
        assert trace.tokens == trace["work"].tokens == 6
        assert trace.usage.as_dict() | {"cache_read_input_tokens": None} == {
            "input_tokens": 6,
            "output_tokens": 0,
            "total_tokens": 6,
            "cache_read_input_tokens": None,
            "thoughts_tokens": None,
            "tool_use_tokens": None,
        }
        # 0.15 USD for a million tokens of text.
        assert trace.cost == Decimal("0.0000009")


def total(call: Any) -> int | None:
    return None if call.usage is None else call.usage.total_tokens


def test_an_embedding_that_mlflow_does_not_see_is_no_finding(here: Path) -> None:
    """LangChain tells no tracer of embeddings: nobody could mend it."""
    with GeminiServer([]) as server, open_cassette(here / "x.yaml", Opening(mode="record")):
        embedder(server.url).embed_query("one two")

    def work(state: State) -> Any:
        return {"said": embedder().embed_query("one two")}

    with capture(here / "x.yaml") as trace:
        run(work)
        assert trace["work"].tokens == 2
        assert trace.llm_calls[0].span_id is None


def without_usage(path: Path) -> Path:
    """A cassette of two embeddings, the second without usage, as some of the real ones are."""
    replies = [
        json.dumps({"embeddings": [{"values": [0.5, 0.25]}]} | usage).encode()
        for usage in ({"usageMetadata": {"promptTokenCount": 2}}, {})
    ]
    uri = f"{NOWHERE}/v1beta/models/{EMBEDDER}:batchEmbedContents"
    save_cassette(path, [Interaction("POST", uri, b"{}", 200, reply, "") for reply in replies], {})
    return path


def embed_both(state: State) -> Any:
    return {"said": [embedder().embed_query("a"), embedder().embed_query("b")]}


UNREPORTED = r"work > call 2 \(gemini-embedding-001\) reported no usage$"


def test_tokens_that_nobody_reports_are_unknown_never_zero(here: Path) -> None:
    with capture(without_usage(here / "x.yaml"), match="order") as trace:
        assert run(embed_both) == [[0.5, 0.25], [0.5, 0.25]]
        assert [total(call) for call in trace.llm_calls] == [2, None]
        assert trace.usage.total_tokens is None
        with pytest.raises(UsageUnknown, match=f"^run: tokens unknown: {UNREPORTED}"):
            assert trace.tokens > 0
        with pytest.raises(UsageUnknown, match=f"^run: cost unknown: {UNREPORTED}"):
            _ = trace.cost


@pytest.mark.parametrize("loosened", [["work:usage"], ["usage"]])
@pytest.mark.parametrize("key", ["allow", "warn"])
def test_a_node_may_be_allowed_calls_without_usage(loosened: list[str], key: str, here: Path) -> None:
    keys: dict[str, Any] = {key: loosened}
    with capture(without_usage(here / "x.yaml"), match="order", **keys) as trace:
        run(embed_both)
        # The sum of what was reported: the call itself stays unknown.
        assert [total(call) for call in trace.llm_calls] == [2, None]
        assert (trace.tokens, trace["work"].tokens, trace.usage.total_tokens) == (2, 2, 2)
        assert trace.cost == Decimal("0.0000003")


def test_what_is_allowed_for_one_node_is_not_for_another(here: Path) -> None:
    with capture(without_usage(here / "x.yaml"), match="order", allow=["else:usage"]) as trace:
        run(embed_both)
        with pytest.raises(UsageUnknown, match=UNREPORTED):
            assert trace.tokens > 0


def test_where_nothing_was_reported_nothing_is_known(here: Path) -> None:
    path = without_usage(here / "x.yaml")
    save_cassette(path, load_cassette(path).interactions[1:] * 2, {})
    with capture(path, match="order", allow=["work:usage"]) as trace:
        run(embed_both)
        with pytest.raises(UsageUnknown, match=r"^work: tokens unknown: work > call 1 "):
            assert trace["work"].tokens == 0


# Bookkeeping: what a client asks beside the model


VERSION = re.compile(r"/v1\w*/")


class Google(BaseHTTPRequestHandler):
    """As much of the API's caches and files as a client needs. `hits` are method and path without its query."""

    hits: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        # google-genai 3 asks /v1 where 2 asked /v1beta.
        path = VERSION.sub("/v1beta/", self.path.partition("?")[0])
        self.hits.append(f"{self.command} {path}")
        host = self.headers["host"]
        headers: dict[str, str] = {}
        if path == "/upload/v1beta/files" and self.headers.get("x-goog-upload-command") == "start":
            query = f"upload_id=AB1&upload_protocol=resumable&key={KEY}"
            headers = {"x-goog-upload-url": f"http://{host}/upload/v1beta/files?{query}"}
            headers |= {"x-goog-upload-status": "active"}
            said: Any = {}
        elif path == "/upload/v1beta/files":
            headers = {"x-goog-upload-status": "final"}
            said = {"file": {"name": "files/f1", "sizeBytes": str(len(body)), "state": "ACTIVE"}}
        elif path.endswith(":countTokens"):
            said = {"totalTokens": 5}
        elif path == "/v1beta/cachedContents" and self.command == "POST":
            said = {"name": "cachedContents/c1", "model": "models/gemini-2.5-flash"}
        elif path == "/v1beta/cachedContents":
            said = {"cachedContents": [{"name": "cachedContents/c1"}]}
        elif self.command == "DELETE":
            said = {}
        else:
            said = {"name": path.removeprefix("/v1beta/"), "state": "ACTIVE"}
        self.reply(json.dumps(said).encode(), headers)

    do_GET = do_POST = do_PATCH = do_DELETE = answer

    def reply(self, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(200)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server:
    def __init__(self, url: str, hits: list[str]) -> None:
        self.url, self.hits = url, hits


@pytest.fixture
def server() -> Iterator[Server]:
    hits: list[str] = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Counting", (Google,), {"hits": hits}))
    http.daemon_threads = True
    thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    yield Server(f"http://127.0.0.1:{http.server_port}", hits)
    http.shutdown()
    http.server_close()
    thread.join()


def client(url: str = NOWHERE) -> Any:
    from google import genai
    from google.genai import types as of_client

    return genai.Client(api_key=KEY, http_options=of_client.HttpOptions(base_url=url))


CONTENTS = b"\x89PNG not a picture \xff" * 20


def bookkeeping(url: str) -> list[Any]:
    """Counts, caches and uploads, and what came of it."""
    import io

    from google.genai import types as of_client

    google = client(url)
    tokens = google.models.count_tokens(model="gemini-2.5-flash", contents="one two three").total_tokens
    cache = google.caches.create(
        model="gemini-2.5-flash", config=of_client.CreateCachedContentConfig(contents="long", ttl="60s")
    )
    again = google.caches.get(name=cache.name)
    listed = [found.name for found in google.caches.list()]
    google.caches.delete(name=cache.name)
    config = of_client.UploadFileConfig(mime_type="image/png")
    file = google.files.upload(file=io.BytesIO(CONTENTS), config=config)
    state = google.files.get(name=file.name).state
    google.files.delete(name=file.name)
    return [tokens, cache.name, again.name, listed, file.name, file.size_bytes, state]


def abookkeeping(url: str) -> list[Any]:
    import io

    from google.genai import types as of_client

    async def work() -> list[Any]:
        whole = client(url)
        google = whole.aio
        tokens = (await google.models.count_tokens(model="gemini-2.5-flash", contents="one two three")).total_tokens
        create = of_client.CreateCachedContentConfig(contents="long", ttl="60s")
        cache = await google.caches.create(model="gemini-2.5-flash", config=create)
        again = await google.caches.get(name=cache.name)
        listed = [found.name async for found in await google.caches.list()]
        await google.caches.delete(name=cache.name)
        config = of_client.UploadFileConfig(mime_type="image/png")
        file = await google.files.upload(file=io.BytesIO(CONTENTS), config=config)
        state = (await google.files.get(name=file.name)).state
        await google.files.delete(name=file.name)
        return [tokens, cache.name, again.name, listed, file.name, file.size_bytes, state]

    return asyncio.run(work())


ASKED = [
    "POST /v1beta/models/gemini-2.5-flash:countTokens",
    "POST /v1beta/cachedContents",
    "GET /v1beta/cachedContents/c1",
    "GET /v1beta/cachedContents",
    "DELETE /v1beta/cachedContents/c1",
    "POST /upload/v1beta/files",
    "POST /upload/v1beta/files",
    "GET /v1beta/files/f1",
    "DELETE /v1beta/files/f1",
]


@pytest.mark.parametrize("keep", [bookkeeping, abookkeeping])
def test_counting_caches_and_files_replay_and_are_no_findings(
    keep: Callable[[str], list[Any]], server: Server, here: Path
) -> None:
    with open_cassette(here / "x.yaml", Opening(mode="record")) as session:
        given = keep(server.url)
    assert server.hits == ASKED
    assert given == [
        *(5, "cachedContents/c1", "cachedContents/c1", ["cachedContents/c1"]),
        *("files/f1", len(CONTENTS), "ACTIVE"),
    ]
    written = (here / "x.yaml").read_text()
    assert KEY not in written
    assert "127.0.0.1" not in written
    kinds = ["countTokens", *["cachedContents"] * 4, *["files"] * 4]
    assert [call.endpoint.method for call in session.calls] == kinds

    def work(state: State) -> Any:
        return {"said": keep(NOWHERE)}

    with capture(here / "x.yaml") as trace:
        assert run(work) == given
        assert [(call.node, call.endpoint.method) for call in trace.calls] == [("work", kind) for kind in kinds]
        assert (len(trace.llm_calls), trace.tokens, trace.cost) == (0, 0, Decimal(0))
    assert len(server.hits) == len(ASKED)


def test_bookkeeping_that_nobody_asks_for_is_no_finding(server: Server, here: Path) -> None:
    with open_cassette(here / "x.yaml", Opening(mode="record")):
        bookkeeping(server.url)
    with open_cassette(here / "x.yaml") as session:
        pass
    assert session.unused == ()


def test_bookkeeping_that_was_not_recorded_is_a_miss(here: Path) -> None:
    save_cassette(here / "x.yaml", [], {})
    google = client()
    with open_cassette(here / "x.yaml") as session, pytest.raises(CassetteMiss) as caught:
        google.files.get(name="files/f2")
    assert str(caught.value) == ("(no node), call 1: no recorded reply\n  GET files\n  the cassette holds no calls")
    assert [miss.text for miss in session.misses] == [str(caught.value)]


# Real recordings


def beyond_chat() -> list[Path]:
    if not RECORDINGS.is_dir():
        return []
    with (RECORDINGS / "index.tsv").open(encoding="utf-8", newline="") as lines:
        files = [RECORDINGS / row["file"] for row in csv.DictReader(lines, delimiter="\t")]
    chat = re.compile(r"enerateContent(\?alt=sse)?$")
    uris = re.compile(r"^ +uri: (\S+)$", re.MULTILINE)
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    return [file for file in files if any(chat.search(uri) is None for uri in uris.findall(texts[file]))]


BEYOND_CHAT = beyond_chat()


@pytest.mark.skipif(not BEYOND_CHAT, reason=f"no recordings: {RECORDINGS} is absent")
@pytest.mark.parametrize("file", BEYOND_CHAT, ids=lambda file: file.stem)
def test_every_real_exchange_that_is_no_chat_replays(file: Path) -> None:
    import httpx

    recorded = load_cassette(file).interactions
    with open_cassette(file, Opening(match="order")) as session, httpx.Client() as http:
        for exchange in recorded:
            answer = http.request(exchange.method, exchange.uri, content=exchange.body)
            assert answer.status_code == exchange.status
            assert answer.content == plain_reply(exchange.reply, exchange.reply_headers)
    endpoints = [parse_endpoint(exchange.uri) for exchange in recorded]
    assert [call.endpoint for call in session.calls] == [endpoint for endpoint in endpoints if endpoint is not None]
    assert len(session.others) == endpoints.count(None)
    assert (session.unused, session.misses, session.refused) == ((), (), ())
    for call in session.calls:
        if "mbed" in call.endpoint.method and call.answered:
            said = json.loads(plain_reply(recorded[call.index - 1].reply, recorded[call.index - 1].reply_headers))
            prompt = said.get("usageMetadata", {}).get("promptTokenCount")
            assert (None if call.usage is None else call.usage.total_tokens) == prompt


@pytest.mark.skipif(not BEYOND_CHAT, reason=f"no recordings: {RECORDINGS} is absent")
def test_the_real_exchanges_that_are_no_chat_are_all_here() -> None:
    found: dict[str, int] = {}
    for file in BEYOND_CHAT:
        for exchange in load_cassette(file).interactions:
            endpoint = parse_endpoint(exchange.uri)
            kind = "another host" if endpoint is None else endpoint.method
            found[kind] = found.get(kind, 0) + 1
    assert {kind: count for kind, count in found.items() if "enerateContent" not in kind} == {
        "batchEmbedContents": 11,
        "cachedContents": 2,
        "fileSearchStores": 8,
        "countTokens": 2,
        "another host": 10,
    }


# Vertex AI

VERTEX = "publishers/google/models/gemini-2.5-flash:generateContent"
REGION = "https://us-central1-aiplatform.googleapis.com/v1beta1/projects/recorded/locations/us-central1/" + VERTEX
REPLY = {
    "candidates": [{"content": {"parts": [{"text": "answered"}], "role": "model"}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7},
}


def vertex(uri: str, path: Path) -> Path:
    save_cassette(path, [Interaction("POST", uri, b"{}", 200, json.dumps(REPLY).encode(), "OK")] * 2, {})
    return path


def by_langchain(project: str, location: str, **options: Any) -> Any:
    from langchain_google_genai import ChatGoogleGenerativeAI

    model = ChatGoogleGenerativeAI(
        model="gemini-2.5-flash", vertexai=True, project=project, location=location, **options
    )
    return model.invoke("x").text, asyncio.run(model.ainvoke("x")).text


def by_google(project: str, location: str, **options: Any) -> Any:
    from google import genai

    google = genai.Client(vertexai=True, project=project, location=location, **options)
    asked: dict[str, Any] = {"model": "gemini-2.5-flash", "contents": "x"}
    return (
        google.models.generate_content(**asked).text,
        asyncio.run(google.aio.models.generate_content(**asked)).text,
    )


@pytest.mark.parametrize("ask", [by_langchain, by_google])
@pytest.mark.parametrize(
    ("project", "location"), [("recorded", "us-central1"), ("another", "global"), ("another", "europe-west4")]
)
def test_vertex_replays_without_credentials(ask: Callable[..., Any], project: str, location: str, here: Path) -> None:
    path = vertex(REGION, here / "x.yaml")
    with open_cassette(path, Opening(match="order")) as session:
        assert ask(project, location) == ("answered", "answered")
    assert [(call.model, call.endpoint.vertex, call.usage and call.usage.total_tokens) for call in session.calls] == [
        ("gemini-2.5-flash", True, 7)
    ] * 2
    assert (session.misses, session.refused, session.unused) == ((), (), ())
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in os.environ


WANTED = ("refresh_token", "client_id", "client_secret")


def test_credentials_of_the_codes_own_get_a_token_that_is_never_sent(here: Path) -> None:
    from google.oauth2.credentials import Credentials

    given = {**dict.fromkeys(WANTED, "mine"), "token_uri": "https://oauth2.googleapis.com/token"}
    mine: Any = Credentials(None, **given)  # type: ignore[no-untyped-call]  # google-auth has no types for it
    with open_cassette(vertex(REGION, here / "x.yaml"), Opening(match="order")) as session:
        assert by_google("recorded", "us-central1", credentials=mine) == ("answered", "answered")
    assert mine.token == TOKEN
    assert (session.misses, session.refused, len(session.calls)) == ((), (), 2)


def test_a_login_of_this_machine_is_not_used_and_comes_back(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(here / "login.json"))
    with open_cassette(vertex(REGION, here / "x.yaml"), Opening(match="order")):
        dummy = os.environ["GOOGLE_APPLICATION_CREDENTIALS"]
        assert by_google("recorded", "us-central1") == ("answered", "answered")
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == str(here / "login.json")
    assert not Path(dummy).exists()
    with open_cassette(here / "y.yaml", Opening(mode="record")):
        assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == str(here / "login.json")
    with open_cassette(here / "x.yaml"):
        os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = "set by the test"
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == "set by the test"
