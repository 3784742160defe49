"""Faults against the real thing: each client raises what it does on a connection that hangs, resets or breaks."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace import Fault
from pytest_agenttrace.replay import GeminiCassette, Opening, open_cassette
from pytest_agenttrace.replay.cassette import Interaction
from pytest_agenttrace.replay.writing import save_cassette

pytestmark = [
    # google-genai's own session class, where aiohttp is installed.
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]

MODEL = "gemini-2.5-flash"
PATH = f"/v1beta/models/{MODEL}:generateContent"
STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
NOWHERE = "https://gemini.invalid"


def said(text: str, *, last: bool = True) -> bytes:
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}
    return json.dumps({"candidates": [candidate], "usageMetadata": usage}).encode()


PLAIN = said("One, two.")
EVENTS = [b"data: " + said("One, ", last=False) + b"\r\n\r\n", b"data: " + said("two.") + b"\r\n\r\n"]


@contextmanager
def misbehaving(kind: str) -> Iterator[str]:
    """The URL of a server that hangs, resets the connection or breaks it within its reply."""
    with socket.create_server(("127.0.0.1", 0)) as server, threading_stops() as over:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=_misbehave, args=(connection, kind, over), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def threading_stops() -> Iterator[threading.Event]:
    over = threading.Event()
    try:
        yield over
    finally:
        over.set()


def _misbehave(connection: socket.socket, kind: str, over: threading.Event) -> None:
    with connection:
        stream = _asked(connection)
        if kind == "timeout":
            over.wait(10)
        elif kind == "reset":
            # No linger: closing sends RST.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            body = EVENTS[0] + EVENTS[1][:40] if stream else PLAIN[:40]
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
            connection.sendall(head + b"%x\r\n%s\r\n" % (len(body), body))


def _asked(connection: socket.socket) -> bool:
    """Read a request; whether it asks for a stream."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-len"))
    while len(body) < length:
        body += connection.recv(65536)
    return b"alt=sse" in head


def client(url: str, *, by_httpx: bool = False) -> Any:
    import httpx
    from google import genai
    from google.genai import types

    own: dict[str, Any] = {"httpx_async_client": httpx.AsyncClient()} if by_httpx else {}
    once = types.HttpRetryOptions(attempts=1)
    # In milliseconds. Where a fault is injected nobody waits: a minute would be noticed.
    patience = 60_000 if url == NOWHERE else 200
    options = types.HttpOptions(base_url=url, timeout=patience, retry_options=once, **own)
    return genai.Client(api_key="no key", http_options=options)


def plain(url: str, got: list[str]) -> None:
    asking = client(url)
    got.append(asking.models.generate_content(model=MODEL, contents="Count").text)


def stream(url: str, got: list[str]) -> None:
    asking = client(url)
    for chunk in asking.models.generate_content_stream(model=MODEL, contents="Count"):
        got.append(chunk.text)  # noqa: PERF401  # what came before an error counts


async def aplain(url: str, got: list[str], *, by_httpx: bool = False) -> None:
    asking = client(url, by_httpx=by_httpx)
    got.append((await asking.aio.models.generate_content(model=MODEL, contents="Count")).text)


async def astream(url: str, got: list[str], *, by_httpx: bool = False) -> None:
    asking = client(url, by_httpx=by_httpx)
    async for chunk in await asking.aio.models.generate_content_stream(model=MODEL, contents="Count"):
        got.append(chunk.text)  # noqa: PERF401  # what came before an error counts


Ask = Callable[[str, list[str]], None]
CLIENTS: dict[str, Ask] = {
    "httpx": plain,
    "httpx stream": stream,
    "aiohttp": lambda url, got: asyncio.run(aplain(url, got)),
    "aiohttp stream": lambda url, got: asyncio.run(astream(url, got)),
    "async httpx": lambda url, got: asyncio.run(aplain(url, got, by_httpx=True)),
    "async httpx stream": lambda url, got: asyncio.run(astream(url, got, by_httpx=True)),
}


def raised(ask: Ask, url: str) -> tuple[str, str, list[str]]:
    """The type and the text of what a client raises, and what it got before."""
    got: list[str] = []
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is the question
        ask(url, got)
    kind = type(caught.value)
    return f"{kind.__module__}.{kind.__qualname__}", str(caught.value).replace("\n", ""), got


def recorded(path: Path, count: int = 1, text: str = "Count") -> Path:
    asked = json.dumps({"contents": [{"parts": [{"text": text}], "role": "user"}]}).encode()
    headers = {"content-type": ["application/json"]}
    exchanges = [
        Interaction("POST", NOWHERE + url, asked, 200, body, "OK", {}, headers)
        for url, body in ((PATH, PLAIN), (STREAM, b"".join(EVENTS)))
        for _ in range(count)
    ]
    save_cassette(path, exchanges, {})
    return path


@contextmanager
def replay(tmp_path: Path, count: int = 1) -> Iterator[GeminiCassette]:
    path = recorded(tmp_path / "c.yaml", count)
    with open_cassette(path, Opening(match="order"), scratch=tmp_path) as cassette:
        yield cassette


FAULTS = {"timeout": Fault.timeout(), "reset": Fault.reset(), "truncated": Fault.truncated()}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_raises_what_it_does_on_a_real_wire(name: str, kind: str, tmp_path: Path) -> None:
    with misbehaving(kind) as url:
        real = raised(CLIENTS[name], url)
    with replay(tmp_path) as cassette:
        # google-genai 1 asks once more by itself where aiohttp was reset.
        tries = 2 if kind == "reset" and "aiohttp" in name and version("google-genai").startswith("1.") else 1
        cassette.fault(FAULTS[kind], times=tries)
        before = time.perf_counter()
        injected = raised(CLIENTS[name], NOWHERE)
        assert time.perf_counter() - before < 10
        assert len(cassette.calls) == tries
        call = cassette.calls[-1]
    assert injected == real
    assert injected[2] == (["One, "] if kind == "truncated" and "stream" in name else [])
    assert (call.status, call.injected) == (200 if kind == "truncated" else None, kind)
