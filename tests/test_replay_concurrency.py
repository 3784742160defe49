"""Replay under threads, branches and tasks: every request gets its own reply, every reply is served once, in order."""

from __future__ import annotations

import asyncio
import itertools
import json
import operator
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

from pytest_agenttrace import ErrorReply, GeminiServer, Reply, capture
from pytest_agenttrace.gemini_server import ScriptedRequest
from pytest_agenttrace.replay import GeminiCassette, Opening, open_cassette
from pytest_agenttrace.replay.cassette import Interaction
from pytest_agenttrace.replay.clients import clients_kept
from pytest_agenttrace.replay.writing import save_cassette

URL = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
BRANCHES, THREADS, ROUNDS = 32, 8, 500
# A reply carries what it answers, and its place in the file as its tokens.
Answer = tuple[str, int]
# google-genai's own: nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")


def body(prompt: str) -> bytes:
    return json.dumps({"contents": [{"parts": [{"text": prompt}], "role": "user"}]}).encode()


def reply(prompt: str, number: int) -> bytes:
    counts = {"promptTokenCount": number, "candidatesTokenCount": 1, "totalTokenCount": number + 1}
    said = {"content": {"parts": [{"text": f"{prompt} #{number}"}], "role": "model"}, "finishReason": "STOP"}
    return json.dumps({"candidates": [said], "usageMetadata": counts}).encode()


def cassette(path: Path, prompts: Sequence[str], bodies: Sequence[bytes] | None = None) -> Path:
    asked = bodies if bodies is not None else [body(prompt) for prompt in prompts]
    replies = [
        Interaction("POST", URL, asked[number], 200, reply(prompt, number)) for number, prompt in enumerate(prompts)
    ]
    save_cassette(path, replies, {})
    return path


def read(text: str) -> Answer:
    prompt, _, number = text.rpartition(" #")
    return prompt, int(number)


def text_of(answer: Any) -> str:
    return str(answer["candidates"][0]["content"]["parts"][0]["text"])


def mixed(count: int) -> list[str]:
    """Half of the prompts are asked but once, the others four times and more, mixed by a seed."""
    prompts = [f"only {n}" for n in range(count // 2)] + [f"again {n % (count // 8)}" for n in range(count // 2)]
    random.Random(count).shuffle(prompts)
    return prompts


def check(session: GeminiCassette, prompts: Sequence[str], answers: Sequence[tuple[str, Answer]]) -> None:
    """None wrong: a reply answers what was asked. None lost: each was served once. Equal requests got theirs in
    recorded order, in the order in which they asked."""
    assert [(asked, answer) for asked, answer in answers if answer[0] != asked] == []
    assert sorted(number for _, (_, number) in answers) == list(range(len(prompts)))
    assert (session.misses, session.unused) == ((), ())
    assert [call.index for call in session.calls] == list(range(1, len(prompts) + 1))
    served: dict[str, list[int]] = defaultdict(list)
    for call in session.calls:
        assert call.usage is not None
        assert call.usage.input_tokens is not None
        served[prompts[call.usage.input_tokens]].append(call.usage.input_tokens)
    assert {prompt: numbers for prompt, numbers in served.items() if numbers != sorted(numbers)} == {}


class State(TypedDict):
    prompts: list[str]
    answers: Annotated[list[tuple[str, Answer]], operator.add]


class Branch(TypedDict):
    prompt: str


def fan_out(client: Any) -> Any:
    """A graph that asks every prompt in a branch of its own."""
    from langgraph.graph import START, StateGraph
    from langgraph.types import Send

    delays = random.Random(7)

    def ask(state: Branch) -> dict[str, Any]:
        time.sleep(delays.random() * 0.0005)
        answer = client.post(URL, content=body(state["prompt"]))
        time.sleep(delays.random() * 0.0002)
        return {"answers": [(state["prompt"], read(text_of(answer.json())))]}

    builder = StateGraph(State)
    builder.add_node("ask", ask)
    builder.add_conditional_edges(
        START, lambda state: [Send("ask", {"prompt": prompt}) for prompt in state["prompts"]], ["ask"]
    )
    return builder.compile()


def test_branches_of_a_graph(tmp_path: Path) -> None:
    import httpx

    prompts = mixed(BRANCHES)
    assert len(set(prompts)) == 20, "equal and different requests"
    path = cassette(tmp_path / "x.yaml", prompts)
    order = random.Random(3)
    with httpx.Client() as client:
        graph = fan_out(client)
        for _ in range(ROUNDS):
            asked = order.sample(prompts, len(prompts))
            with open_cassette(path) as session:
                found = graph.invoke({"prompts": asked, "answers": []}, {"max_concurrency": THREADS})
            assert len(found["answers"]) == BRANCHES
            check(session, prompts, found["answers"])
            assert {call.node for call in session.calls} == {"ask"}


def test_threads_of_a_pool(tmp_path: Path) -> None:
    import httpx

    prompts = mixed(200)
    path = cassette(tmp_path / "x.yaml", prompts)
    with httpx.Client() as client, ThreadPoolExecutor(THREADS) as pool:

        def ask(prompt: str) -> tuple[str, Answer]:
            return prompt, read(text_of(client.post(URL, content=body(prompt)).json()))

        for _ in range(5):
            with open_cassette(path) as session:
                answers = list(pool.map(ask, prompts))
            check(session, prompts, answers)


@pytest.mark.parametrize("library", ["httpx", "aiohttp"])
def test_tasks_of_a_loop(library: str, tmp_path: Path) -> None:
    prompts = mixed(200)
    path = cassette(tmp_path / "x.yaml", prompts)
    for _ in range(3):
        with open_cassette(path) as session:
            answers = asyncio.run(_by_httpx(prompts) if library == "httpx" else _by_aiohttp(prompts))
        check(session, prompts, answers)


async def _by_httpx(prompts: Sequence[str]) -> list[tuple[str, Answer]]:
    import httpx

    async with httpx.AsyncClient() as client:

        async def ask(prompt: str) -> tuple[str, Answer]:
            await asyncio.sleep(random.random() * 0.002)
            answer = await client.post(URL, content=body(prompt))
            return prompt, read(text_of(answer.json()))

        return list(await asyncio.gather(*map(ask, prompts)))


async def _by_aiohttp(prompts: Sequence[str]) -> list[tuple[str, Answer]]:
    import aiohttp

    async with aiohttp.ClientSession() as client:

        async def ask(prompt: str) -> tuple[str, Answer]:
            await asyncio.sleep(random.random() * 0.002)
            async with client.post(URL, data=body(prompt)) as answer:
                return prompt, read(text_of(await answer.json(content_type=None)))

        return list(await asyncio.gather(*map(ask, prompts)))


def test_batches_of_a_model(tmp_path: Path) -> None:
    from langchain_google_genai import ChatGoogleGenerativeAI

    model = ChatGoogleGenerativeAI(model="gemini-2.5-flash", google_api_key="none", max_retries=1)
    prompts = mixed(64)
    inputs: list[Any] = list(prompts)
    settings = {"safetySettings": [], "generationConfig": {"temperature": 0.7, "candidateCount": 1}}
    bodies = [json.dumps({**json.loads(body(prompt)), **settings}).encode() for prompt in prompts]
    path = cassette(tmp_path / "x.yaml", prompts, bodies)
    for _ in range(3):
        with open_cassette(path) as session:
            replies = model.batch(inputs, {"max_concurrency": THREADS})
        check(session, prompts, [(prompt, read(str(said.text))) for prompt, said in zip(prompts, replies, strict=True)])
        with open_cassette(path) as session:
            replies = asyncio.run(model.abatch(inputs))
        check(session, prompts, [(prompt, read(str(said.text))) for prompt, said in zip(prompts, replies, strict=True)])


def test_more_who_ask_than_there_are_replies(tmp_path: Path) -> None:
    import httpx

    from pytest_agenttrace.replay import CassetteMiss

    path = cassette(tmp_path / "x.yaml", ["again"] * 20)
    with httpx.Client() as client, ThreadPoolExecutor(THREADS) as pool, open_cassette(path) as session:

        def ask(_: int) -> int | None:
            try:
                return read(text_of(client.post(URL, content=body("again")).json()))[1]
            except CassetteMiss:
                return None

        numbers = list(pool.map(ask, range(50)))
    assert sorted(number for number in numbers if number is not None) == list(range(20))
    assert (len(session.misses), session.unused) == (30, ())
    assert {miss.nearest for miss in session.misses} == {"call 20, already replayed"}


def test_equal_requests_are_numbered_in_the_order_of_their_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    from pytest_agenttrace.replay.matching import Recorded, Recordings

    taken = threading.Semaphore(0)
    take = Recordings.take

    def slow(self: Recordings, *asked: Any) -> Recorded | None:
        entry = take(self, *asked)
        if entry is not None and entry.number == 1:
            # The second has its reply and its number by now, if anything lets it.
            taken.acquire(timeout=0.2)
        else:
            taken.release()
        return entry

    monkeypatch.setattr(Recordings, "take", slow)
    path = cassette(tmp_path / "x.yaml", ["again"] * 2)
    with httpx.Client() as client, open_cassette(path) as session:
        threads = [threading.Thread(target=client.post, args=(URL,), kwargs={"content": body("again")}) for _ in "12"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [call.usage.input_tokens for call in session.calls if call.usage is not None] == [0, 1]


class Local(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"local")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def local() -> Iterator[str]:
    """The URL of a server of the user's own on loopback."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Local)
    thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/"
    http.shutdown()
    http.server_close()
    thread.join()


def by_urllib(url: str) -> bytes:
    import urllib.request

    with urllib.request.urlopen(url) as answer:  # noqa: S310  # loopback
        return bytes(answer.read())


def by_requests(url: str) -> bytes:
    import requests

    return requests.get(url, timeout=5).content


@contextmanager
def neighbours(act: Callable[[], bytes]) -> Iterator[list[bytes]]:
    """Two threads that do the same over and over, and what they heard."""
    done = threading.Event()
    heard: list[bytes] = []

    def again() -> None:
        while not done.is_set():
            heard.append(act())

    threads = [threading.Thread(target=again) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        done.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("other", [by_urllib, by_requests])
def test_a_neighbour_with_another_client_lets_no_call_out(
    other: Callable[[str], bytes], local: str, tmp_path: Path
) -> None:
    """vcrpy puts the real clients back while it makes a request of http.client or urllib3."""
    import httpx

    prompts = mixed(400)
    path = cassette(tmp_path / "x.yaml", prompts)
    with (
        httpx.Client() as client,
        open_cassette(path) as session,
        ThreadPoolExecutor(THREADS) as pool,
        neighbours(lambda: other(local)) as heard,
    ):
        answers = list(pool.map(lambda prompt: (prompt, _asked(client, URL, prompt)), prompts))
    check(session, prompts, answers)
    assert set(heard) == {b"local"}


@pytest.mark.parametrize("other", [by_urllib, by_requests])
def test_a_neighbour_with_another_client_loses_no_recording(
    other: Callable[[str], bytes], local: str, tmp_path: Path
) -> None:
    import httpx

    prompts = mixed(48)
    with GeminiServer(lambda request: Reply(f"{request.prompt} #0")) as server:
        url = server.url + URL.partition("googleapis.com")[2]
        with (
            httpx.Client() as client,
            open_cassette(tmp_path / "x.yaml", Opening(mode="record")) as session,
            ThreadPoolExecutor(4) as pool,
            neighbours(lambda: other(local)),
        ):
            answers = list(pool.map(lambda prompt: _asked(client, url, prompt), prompts))
    assert answers == [(prompt, 0) for prompt in prompts]
    assert len(session.calls) == len(prompts)
    with open_cassette(tmp_path / "x.yaml") as session:
        assert sorted(unused.prompt for unused in session.unused) == sorted(prompts)


def _asked(client: Any, url: str, prompt: str) -> Answer:
    return read(text_of(client.post(url, content=body(prompt)).json()))


def test_a_connection_of_http_client_is_made_and_its_class_comes_back(local: str, tmp_path: Path) -> None:
    import http.client
    import ssl

    port = int(local.rstrip("/").rpartition(":")[2])
    before = http.client.HTTPSConnection
    with open_cassette(tmp_path / "x.yaml"):
        patched = http.client.HTTPSConnection
        assert patched is not before
        connection = patched("127.0.0.1", port, timeout=5)
        assert http.client.HTTPSConnection is patched
        connection.request("GET", "/")
        # The server speaks no TLS: that it was asked is enough.
        with pytest.raises((ssl.SSLError, ConnectionError)):
            connection.getresponse()
        assert http.client.HTTPSConnection is patched
    assert http.client.HTTPSConnection is before


def test_vcrpy_still_has_what_keeps_the_clients_in_place() -> None:
    import http.client

    from vcr import patch, stubs  # type: ignore[import-untyped]  # vcrpy has no types

    assert callable(patch.force_reset)
    assert stubs.HTTPSConnection is http.client.HTTPSConnection
    with clients_kept(object(), object()):  # another vcrpy: left to itself
        assert http.client.HTTPSConnection is stubs.HTTPSConnection


class Shared(TypedDict, total=False):
    said: Annotated[list[str], operator.add]


def the_same_thrice(url: str | None) -> Any:
    """Three nodes side by side and three branches of one node, all of which ask the same."""
    from langchain_google_genai import ChatGoogleGenerativeAI
    from langgraph.graph import START, StateGraph
    from langgraph.types import Send

    model = ChatGoogleGenerativeAI(model="gemini-2.5-flash", api_key="none", base_url=url, max_retries=2)
    graph = StateGraph(Shared)
    for name in ("a", "b", "c", "branch"):
        graph.add_node(name, lambda state: {"said": [str(model.invoke("Roll the dice").text)]})
    for name in ("a", "b", "c"):
        graph.add_edge(START, name)
    graph.add_conditional_edges("a", lambda state: [Send("branch", {}) for _ in range(3)], ["branch"])
    return graph.compile()


@pytest.mark.parametrize("ask", ["invoke", "ainvoke"])
def test_equal_requests_of_nodes_and_branches_get_their_own_replies(tmp_path: Path, ask: str) -> None:
    def run(url: str | None) -> None:
        graph = the_same_thrice(url)
        asyncio.run(graph.ainvoke({})) if ask == "ainvoke" else graph.invoke({})

    count = itertools.count()

    def roll(request: ScriptedRequest) -> Reply | ErrorReply:
        # The first call of all is tried again.
        number = next(count)
        tokens = {"promptTokenCount": 1, "candidatesTokenCount": 2**number}
        return Reply(f"{number}", usage=tokens) if number else ErrorReply(503, "busy")

    path = tmp_path / "x.yaml"
    with GeminiServer(roll) as server, capture(path, record=True) as trace:
        run(server.url)
        recorded = [(e.node, e.outputs, int(e.tokens)) for e in trace.executions]
    assert len({tokens for _, _, tokens in recorded}) == 6
    assert path.read_text().count("branch: ") == 3
    for seed in range(8):
        with capture(path, order=f"shuffle:{seed}") as trace:
            run(None)
            assert [(e.node, e.outputs, int(e.tokens)) for e in trace.executions] == recorded
