"""How a reply reaches its client where a fault is injected: late, cut, or not at all, as from a real wire.

vcrpy's stubs hand over whole replies at once. Round them, each client gets what its own library makes of a connection
that hangs, resets or breaks.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

__all__ = ["NOTE", "Delivery", "current_delivery", "delivered", "is_injected", "mark_injected"]

_RESET = os.strerror(errno.ECONNRESET)
_CUT = "peer closed connection without sending complete message body (incomplete chunked read)"
_AIOHTTP_CUT = (
    "Response payload is not completed: <TransferEncodingError: 400, message='Not enough data to satisfy transfer "
    "length header.'>"
)
# What says of an exception, or of a reply that is no JSON, that a fault has made it.
NOTE = "injected by gemini_cassette.fault"
E = TypeVar("E", bound=BaseException)


@dataclass(slots=True)
class Delivery:
    """What becomes of one reply on its way. `wait` is in seconds; `reply` stands for the one that came; `cut` breaks
    the connection at the end of its body; `broken` says why there is none."""

    wait: float = 0.0
    reply: Mapping[str, Any] | None = None
    cut: bool = False
    broken: Literal["timeout", "reset"] | None = None

    def fail(self, kind: Literal["timeout", "reset"]) -> OSError:
        """The error of a connection that hangs or resets: the system's own, made the client's by those who know it."""
        self.broken = kind
        return mark_injected(
            TimeoutError("timed out") if kind == "timeout" else ConnectionResetError(errno.ECONNRESET, _RESET)
        )


_current: ContextVar[Delivery | None] = ContextVar("delivery", default=None)


def current_delivery() -> Delivery | None:
    """The delivery of the reply being asked for; None under a client that is not known here."""
    return _current.get()


def mark_injected(error: E) -> E:
    """Say of an exception that a fault has raised it."""
    error.add_note(NOTE)
    return error


def is_injected(error: BaseException) -> bool:
    """Whether a fault has raised an exception, or made the reply that it cannot parse."""
    unread = error.doc if isinstance(error, json.JSONDecodeError) else ""
    return NOTE in getattr(error, "__notes__", ()) or NOTE in unread


@contextmanager
def _delivering() -> Iterator[Delivery]:
    delivery = Delivery()
    token = _current.set(delivery)
    try:
        yield delivery
    finally:
        _current.reset(token)


@contextmanager
def delivered() -> Iterator[None]:
    """Deliver as told, for the length of the block, under httpx (and httpx2) and aiohttp. Enter it with vcrpy's patches
    in place; what others patch meanwhile stays theirs."""
    with ExitStack() as stack:
        for owner, name, wrap in _clients():
            original = getattr(owner, name)
            stand_in = wrap(original)
            setattr(owner, name, stand_in)
            stack.callback(_put_back, owner, name, stand_in, original)
        yield


def _put_back(owner: Any, name: str, stand_in: Any, original: Any) -> None:
    if getattr(owner, name) is stand_in:
        setattr(owner, name, original)


def _clients() -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    """The methods that vcrpy patches too, and what goes round them. Where aiohttp has no such name, a fault raises the
    system's own errors."""
    for library in ("httpx", "httpx2"):
        with suppress(ImportError):
            module = __import__(library)
            yield module.HTTPTransport, "handle_request", functools.partial(_by_httpx, module)
            yield module.AsyncHTTPTransport, "handle_async_request", functools.partial(_by_async_httpx, module)
    with suppress(ImportError):
        import aiohttp

        if hasattr(aiohttp.ClientSession, "_request"):
            yield aiohttp.ClientSession, "_request", _by_aiohttp


# httpx


def _by_httpx(httpx: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def handle_request(self: Any, request: Any) -> Any:
        with _delivering() as delivery:
            try:
                response = original(self, request)
            except OSError as error:
                if delivery.broken is None:
                    raise
                raise _httpx_error(httpx, delivery, str(error)) from error
        limit = _read_timeout(request)
        # Not time.sleep: tests stop it, and so does replay.
        threading.Event().wait(min(delivery.wait, limit)) if delivery.wait else None
        if delivery.wait > limit:
            raise mark_injected(httpx.ReadTimeout("timed out"))
        return _altered(httpx, delivery, response)

    return handle_request


def _by_async_httpx(httpx: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        with _delivering() as delivery:
            try:
                response = await original(self, request)
            except OSError as error:
                if delivery.broken is None:
                    raise
                raise _httpx_error(httpx, delivery, "") from error
        limit = _read_timeout(request)
        if delivery.wait:
            await asyncio.sleep(min(delivery.wait, limit))
        if delivery.wait > limit:
            raise mark_injected(httpx.ReadTimeout(""))
        return _altered(httpx, delivery, response)

    return handle_async_request


def _httpx_error(httpx: Any, delivery: Delivery, text: str) -> Exception:
    made: Exception = httpx.ReadTimeout(text) if delivery.broken == "timeout" else httpx.ReadError(text)
    return mark_injected(made)


def _read_timeout(request: Any) -> float:
    seconds = request.extensions.get("timeout", {}).get("read")
    return float("inf") if seconds is None else float(seconds)


def _altered(httpx: Any, delivery: Delivery, response: Any) -> Any:
    reply = delivery.reply
    if reply is None:
        return response
    headers = [(name, value) for name, values in reply["headers"].items() for value in values]
    body = reply["body"]["string"]
    stream = _httpx_cut(httpx, body) if delivery.cut else httpx.ByteStream(body)
    extensions = {"reason_phrase": reply["status"]["message"].encode("ascii", "ignore")}
    return httpx.Response(reply["status"]["code"], headers=headers, stream=stream, extensions=extensions)


def _httpx_cut(httpx: Any, body: bytes) -> Any:
    class Cut(httpx.SyncByteStream, httpx.AsyncByteStream):  # type: ignore[misc]  # of either library
        def __iter__(self) -> Iterator[bytes]:
            yield body
            raise mark_injected(httpx.RemoteProtocolError(_CUT))

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield body
            raise mark_injected(httpx.RemoteProtocolError(_CUT))

    return Cut()


# aiohttp


def _by_aiohttp(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def request(self: Any, method: str, url: Any, **options: Any) -> Any:
        with _delivering() as delivery:
            try:
                response = await original(self, method, url, **options)
            except OSError as error:
                if delivery.broken is None:
                    raise
                raise _aiohttp_error(delivery, self, options) from error
        limit, timed_out = _aiohttp_timeout(self, options)
        if delivery.wait:
            await asyncio.sleep(min(delivery.wait, limit))
        if delivery.wait > limit:
            raise mark_injected(timed_out)
        return response if delivery.reply is None else _aiohttp_altered(delivery, delivery.reply, response)

    return request


def _aiohttp_error(delivery: Delivery, session: Any, options: Mapping[str, Any]) -> Exception:
    import aiohttp

    if delivery.broken == "timeout":
        return mark_injected(_aiohttp_timeout(session, options)[1])
    return mark_injected(aiohttp.ClientOSError(errno.ECONNRESET, _RESET))


def _aiohttp_timeout(session: Any, options: Mapping[str, Any]) -> tuple[float, Exception]:
    """Seconds until a request times out, and the error it then ends by: of the whole, or of one reading."""
    import aiohttp

    given = options.get("timeout")
    timeout = given if isinstance(given, aiohttp.ClientTimeout) else session.timeout
    whole = float("inf") if timeout.total is None else timeout.total
    reading = float("inf") if timeout.sock_read is None else timeout.sock_read
    if reading < whole:
        return reading, aiohttp.SocketTimeoutError("Timeout on reading data from socket")
    return whole, TimeoutError()


def _aiohttp_altered(delivery: Delivery, reply: Mapping[str, Any], response: Any) -> Any:
    from vcr.request import Request  # type: ignore[import-untyped]  # vcrpy has no types
    from vcr.stubs.aiohttp_stubs import build_response  # type: ignore[import-untyped]

    asked = Request(response.method, str(response.url), None, {})
    made = build_response(asked, reply, ())
    if delivery.cut:
        made.content = _aiohttp_cut(reply["body"]["string"])
        made.read = made.text = made.json = _aiohttp_broken
    return made


async def _aiohttp_broken(*args: Any, **options: Any) -> Any:
    import aiohttp

    raise mark_injected(aiohttp.ClientPayloadError(_AIOHTTP_CUT))


def _aiohttp_cut(body: bytes) -> Any:
    """The content of a reply, as far as it came: where it would end, reading fails."""
    from vcr.stubs.aiohttp_stubs import MockStream

    class Cut(MockStream):  # type: ignore[misc]  # untyped base
        async def readuntil(self, separator: bytes = b"\n", **options: Any) -> bytes:
            line: bytes = await super().readuntil(separator, **options)
            return line if line.endswith(separator) else await _aiohttp_broken()

        async def readline(self, **options: Any) -> bytes:
            return await self.readuntil(**options)

        async def read(self, n: int = -1) -> bytes:
            data: bytes = await super().read(n) if n >= 0 else b""
            return data if data or n == 0 else await _aiohttp_broken()

        async def readany(self) -> bytes:
            data: bytes = await super().readany()
            return data or await _aiohttp_broken()

        async def readchunk(self) -> tuple[bytes, bool]:
            data, end = await super().readchunk()
            return (data, end) if data else await _aiohttp_broken()

    return Cut(body)
