"""What runs ask of Gemini, read off the clients: every client, whole or in a stream, and nothing left in place."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from pytest_agenttrace.gemini_server import ErrorReply, GeminiServer, Reply, ScriptedRequest
from pytest_agenttrace.wiretap import Tap, tapped

USAGE = {"promptTokenCount": 12, "candidatesTokenCount": 5}
MODEL = "gemini-2.5-flash"


@pytest.fixture
def server() -> Iterator[GeminiServer]:
    script: dict[str, Reply | ErrorReply] = {
        "words": Reply("one two three", USAGE, chunks=["one ", "two ", "three"]),
        "trouble": ErrorReply(400, "no"),
    }
    with GeminiServer(script) as found:
        yield found


def client(server: GeminiServer) -> Any:
    from google import genai

    return genai.Client(api_key="dummy", http_options={"base_url": server.url})


def told(tap: Tap) -> list[tuple[Any, ...]]:
    return [
        (call.index, call.model, call.endpoint.method, call.status, call.usage and call.usage.total_tokens)
        for call in tap.calls
    ]


def test_a_call_is_told_with_its_usage_date_and_duration(server: GeminiServer) -> None:
    tap, made = Tap(), client(server)
    with tapped(tap):
        answered = made.models.generate_content(model=MODEL, contents="words")

    assert answered.text == "one two three"
    assert told(tap) == [(1, MODEL, "generateContent", 200, 17)]
    (call,) = tap.calls
    assert call.recorded_at is not None
    assert call.duration is not None
    assert 0 < call.duration < 60
    assert (call.node, call.finish_reason, call.model_version) == (None, "STOP", MODEL)


def test_a_stream_is_read_as_its_client_reads_it(server: GeminiServer) -> None:
    tap, made = Tap(), client(server)
    with tapped(tap):
        pieces = made.models.generate_content_stream(model=MODEL, contents="words")
        first = next(pieces)
        assert told(tap) == [(1, MODEL, "streamGenerateContent", None, None)]
        rest = list(pieces)

    assert [first.text, *(piece.text for piece in rest)] == ["one ", "two ", "three"]
    assert told(tap) == [(1, MODEL, "streamGenerateContent", 200, 17)]


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
def test_async_clients_are_watched(server: GeminiServer, transport: str) -> None:
    from google import genai

    pytest.importorskip(transport)
    options: dict[str, Any] = {"base_url": server.url}
    if transport == "httpx":
        import httpx

        # With a transport of its own google-genai takes httpx.
        options["async_client_args"] = {"transport": httpx.AsyncHTTPTransport()}
    tap = Tap()

    async def ask() -> Any:
        made = genai.Client(api_key="dummy", http_options=options)  # type: ignore[arg-type]  # a dict is taken too
        found = await made.aio.models.generate_content(model=MODEL, contents="words")
        await made.aio.aclose()
        return found

    with tapped(tap):
        answered = asyncio.run(ask())
    assert answered.text == "one two three"
    assert told(tap) == [(1, MODEL, "generateContent", 200, 17)]


def test_an_async_stream_of_aiohttp_is_read(server: GeminiServer) -> None:
    pytest.importorskip("aiohttp")
    tap = Tap()

    async def ask() -> list[str]:
        made = client(server)
        stream = await made.aio.models.generate_content_stream(model=MODEL, contents="words")
        found = [piece.text async for piece in stream]
        await made.aio.aclose()
        return found

    with tapped(tap):
        assert asyncio.run(ask()) == ["one ", "two ", "three"]
    assert told(tap) == [(1, MODEL, "streamGenerateContent", 200, 17)]


@pytest.mark.parametrize("way", ["lines", "any", "chunks", "read", "text"])
def test_a_stream_of_aiohttp_is_heard_in_whichever_way_it_is_read(server: GeminiServer, way: str) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    tap = Tap()

    async def ask() -> str:
        url = f"{server.url}/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
        body = {"contents": [{"role": "user", "parts": [{"text": "words"}]}]}
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as reply:
            ways = {"lines": reply.content, "any": reply.content.iter_any(), "chunks": reply.content.iter_chunked(7)}
            if way in ways:
                return b"".join([piece async for piece in ways[way]]).decode()
            return str(await reply.text()) if way == "text" else (await reply.content.read()).decode()

    with tapped(tap):
        assert "three" in asyncio.run(ask())
    assert told(tap) == [(1, MODEL, "streamGenerateContent", 200, 17)]


def test_an_async_stream_of_httpx_is_read(server: GeminiServer) -> None:
    import httpx

    tap = Tap()

    async def ask() -> str:
        url = f"{server.url}/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
        body = {"contents": [{"role": "user", "parts": [{"text": "words"}]}]}
        async with httpx.AsyncClient() as made, made.stream("POST", url, json=body) as reply:
            return "".join([piece async for piece in reply.aiter_text()])

    with tapped(tap):
        assert "three" in asyncio.run(ask())
    assert told(tap) == [(1, MODEL, "streamGenerateContent", 200, 17)]


def test_what_is_given_up_or_under_way_was_asked() -> None:
    go_on, begun = threading.Event(), threading.Event()

    def slow(request: ScriptedRequest) -> Reply:
        begun.set()
        go_on.wait(60)
        return Reply("late")

    async def given_up(url: str) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5), httpx.AsyncClient() as asking:
                await asking.post(f"{url}/v1beta/models/{MODEL}:generateContent", json={"contents": []})

    tap = Tap()
    with GeminiServer(slow) as server, tapped(tap):
        asyncio.run(given_up(server.url))
        assert told(tap) == [(1, MODEL, "generateContent", None, None)]
        go_on.set()
    go_on.clear()
    begun.clear()
    tap = Tap()
    with GeminiServer(slow) as server, tapped(tap):
        made = client(server)
        ask = functools.partial(made.models.generate_content, model=MODEL, contents="x")
        thread = threading.Thread(target=contextvars.copy_context().run, args=(ask,))
        thread.start()
        assert begun.wait(60)
        assert told(tap) == [(1, MODEL, "generateContent", None, None)]
        go_on.set()
        thread.join(60)
        assert [status for _, _, _, status, _ in told(tap)] == [200]


def test_calls_that_fail_are_told(server: GeminiServer) -> None:
    from google.genai.errors import ClientError

    tap, made = Tap(), client(server)
    with tapped(tap):
        with pytest.raises(ClientError):
            made.models.generate_content(model=MODEL, contents="trouble")
        import httpx

        with pytest.raises(httpx.ConnectError):
            httpx.post(f"http://127.0.0.1:9/v1beta/models/{MODEL}:generateContent", json={})
    assert told(tap) == [(1, MODEL, "generateContent", 400, None), (2, MODEL, "generateContent", None, None)]


def test_what_is_no_models_is_nobodys_business(server: GeminiServer) -> None:
    import httpx

    tap = Tap()
    with tapped(tap):
        httpx.get(f"{server.url}/health")
    assert tap.calls == ()


def test_each_run_hears_its_own_calls(server: GeminiServer) -> None:
    one, other = Tap(), Tap()
    made = client(server)

    def ask(tap: Tap, times: int) -> None:
        with tapped(tap):
            meet.wait()
            for _ in range(times):
                made.models.generate_content(model=MODEL, contents="words")
            meet.wait()

    meet = threading.Barrier(2, timeout=60)
    threads = [threading.Thread(target=ask, args=given) for given in ((one, 2), (other, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(one.calls), len(other.calls)] == [2, 3]


def test_a_bare_thread_is_the_only_runs(server: GeminiServer) -> None:
    tap, made = Tap(), client(server)
    with tapped(tap):
        thread = threading.Thread(target=made.models.generate_content, kwargs={"model": MODEL, "contents": "words"})
        thread.start()
        thread.join()
    assert told(tap) == [(1, MODEL, "generateContent", 200, 17)]


def test_the_clients_are_put_back_and_others_patches_are_left(server: GeminiServer) -> None:
    import httpx

    before = httpx.Client.send, httpx.AsyncClient.send
    with tapped(Tap()):
        assert httpx.Client.send is not before[0]
        with tapped(Tap()):
            pass
        assert httpx.Client.send is not before[0]
    assert (httpx.Client.send, httpx.AsyncClient.send) == before

    theirs: Any = lambda self, *_, **__: None  # noqa: E731  # what a mock would put there
    with pytest.MonkeyPatch.context() as patch:
        with tapped(Tap()):
            patch.setattr(httpx.Client, "send", theirs)
        assert httpx.Client.send is theirs
