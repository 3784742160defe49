"""What runs ask of Gemini, read off the HTTP clients while they ask: nothing is changed, held up or kept.

The wire is the second witness of a run that no cassette stands for. The clients' public `send` (httpx and its kin,
httpx2) and aiohttp's one way to make a request are watched while a run lasts; whose call it is, is told by a context
variable. A reply is read as its client reads it.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pytest_agenttrace.calls import Call, Caller, Endpoint
from pytest_agenttrace.threads import caller_in_context
from pytest_agenttrace.wire import decode_body, parse_endpoint, read_call

__all__ = ["Tap", "tapped"]

_current: ContextVar[Tap | None] = ContextVar("agenttrace_wiretap", default=None)
_lock = threading.Lock()
_open: list[Tap] = []
_restore: list[Callable[[], None]] = []


class Tap:
    """The calls of one run, in the order they were asked. Thread safe."""

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}
        self._asked: dict[int, _Exchange] = {}
        self._count = 0
        self._lock = threading.Lock()

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every exchange with the Gemini API, those that failed included; one that is under way has no reply yet."""
        with self._lock:
            ended, asked = dict(self._calls), dict(self._asked)
        return tuple(ended[index] if index in ended else exchange.call(None) for index, exchange in asked.items())

    def begin(self, endpoint: Endpoint) -> _Exchange:
        """A call that is being asked."""
        with self._lock:
            self._count += 1
            self._asked[self._count] = _Exchange(self, self._count, endpoint, caller_in_context())
            return self._asked[self._count]

    def end(self, call: Call) -> None:
        """A call that was answered, or was not."""
        with self._lock:
            self._calls[call.index] = call

    def forget(self, index: int) -> None:
        """A call that was never asked."""
        with self._lock:
            self._asked.pop(index, None)


class _Exchange:
    """One call: who asks, and what comes back, piece by piece."""

    def __init__(self, tap: Tap, index: int, endpoint: Endpoint, asking: Caller) -> None:
        self._tap, self._index, self._endpoint, self._caller = tap, index, endpoint, asking
        self._at = time.time()
        self._status: int | None = None
        self._headers: Any = {}
        self._pieces: list[bytes] = []

    @property
    def streams(self) -> bool:
        return self._endpoint.streaming

    def answered(self, status: int, headers: Any) -> None:
        self._status, self._headers = status, headers

    def piece(self, data: bytes) -> None:
        self._pieces.append(data)

    def end(self) -> None:
        self._tap.end(self.call(self._status))

    def refused(self) -> None:
        self._tap.forget(self._index)

    def call(self, status: int | None) -> Call:
        """What was asked, and what came of it; no status: no reply, or none that has ended."""
        body = decode_body(b"".join(self._pieces if status is not None else ()))
        date = None
        with suppress(TypeError, ValueError):
            date = parsedate_to_datetime(self._headers.get("date")).astimezone(UTC)
        return read_call(
            self._index,
            self._caller,
            self._endpoint,
            status,
            body,
            recorded_at=date or (datetime.now(UTC) if status is not None else None),
            duration=time.time() - self._at,
            at=self._at,
        )


@contextmanager
def tapped(tap: Tap) -> Iterator[None]:
    """Give a run's calls to its tap, for the length of the block. Calls of threads that no run is known for are those
    of the only run there is."""
    with _lock:
        _open.append(tap)
        if len(_open) == 1:
            _watch()
    token = _current.set(tap)
    try:
        yield
    finally:
        _current.reset(token)
        with _lock:
            _open.remove(tap)
            if not _open:
                for restore in reversed(_restore):
                    restore()
                _restore.clear()


def _begun(url: object) -> _Exchange | None:
    """The exchange that a request begins; None for one that is no model's, or of no run."""
    endpoint = parse_endpoint(str(url))
    tap = _current.get()
    if endpoint is None or (tap is None and len(_open) != 1):
        return None
    return (tap if tap is not None else _open[0]).begin(endpoint)


def _watch() -> None:
    for name in ("httpx", "httpx2"):
        with suppress(ImportError, AttributeError):
            module: Any = importlib.import_module(name)
            _replace(module.Client, "send", functools.partial(_sync_send, module))
            _replace(module.AsyncClient, "send", functools.partial(_async_send, module))
    with suppress(ImportError, AttributeError):
        aiohttp: Any = importlib.import_module("aiohttp")
        # Its one way to make a request has no public name; where it is gone, aiohttp's calls are not seen.
        _replace(aiohttp.ClientSession, "_request", _aiohttp_request)


def _replace(owner: Any, name: str, made: Callable[[Any], Any]) -> None:
    before = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
    replacement = functools.wraps(before)(made(before))
    setattr(owner, name, replacement)

    def restore() -> None:
        # Whoever has replaced it since puts it back by himself.
        if vars(owner).get(name) is replacement:
            setattr(owner, name, before)

    _restore.append(restore)


def _sync_send(module: Any, original: Any) -> Any:
    base: Any = module.SyncByteStream

    class Read(base):  # type: ignore[misc]  # a class that is known at run time only
        def __init__(self, stream: Any, exchange: _Exchange) -> None:
            self._stream, self._exchange = stream, exchange

        def __iter__(self) -> Iterator[bytes]:
            for data in self._stream:
                self._exchange.piece(data)
                yield data

        def close(self) -> None:
            self._stream.close()
            self._exchange.end()

    def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        exchange = _begun(request.url)
        if exchange is None:
            return original(self, request, *args, **kwargs)
        try:
            response = original(self, request, *args, **kwargs)
        except BaseException as error:
            _failed(exchange, error)
            raise
        return _answered(response, exchange, Read)

    return send


def _async_send(module: Any, original: Any) -> Any:
    base: Any = module.AsyncByteStream

    class Read(base):  # type: ignore[misc]  # as above
        def __init__(self, stream: Any, exchange: _Exchange) -> None:
            self._stream, self._exchange = stream, exchange

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for data in self._stream:
                self._exchange.piece(data)
                yield data

        async def aclose(self) -> None:
            await self._stream.aclose()
            self._exchange.end()

    async def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        exchange = _begun(request.url)
        if exchange is None:
            return await original(self, request, *args, **kwargs)
        try:
            response = await original(self, request, *args, **kwargs)
        except BaseException as error:
            _failed(exchange, error)
            raise
        return _answered(response, exchange, Read)

    return send


def _answered(response: Any, exchange: _Exchange, read: Any) -> Any:
    """A reply of httpx's: heard now where it is whole, else as its stream is read."""
    exchange.answered(response.status_code, response.headers)
    if response.is_closed:
        exchange.piece(response.content)
        exchange.end()
    else:
        response.stream = read(response.stream, exchange)
    return response


def _aiohttp_request(original: Any) -> Any:
    async def request(self: Any, method: str, str_or_url: Any, *args: Any, **kwargs: Any) -> Any:
        exchange = _begun(str_or_url)
        if exchange is None:
            return await original(self, method, str_or_url, *args, **kwargs)
        try:
            response = await original(self, method, str_or_url, *args, **kwargs)
            exchange.answered(response.status, response.headers)
            if exchange.streams:
                response.content = _Content(response.content, exchange)
                return response
            exchange.piece(await response.read())  # kept by aiohttp for its own reader
        except BaseException as error:
            _failed(exchange, error)
            raise
        exchange.end()
        return response

    return request


class _Content:
    """The body of a reply of aiohttp's, heard while its client reads it in whichever way."""

    def __init__(self, content: Any, exchange: _Exchange) -> None:
        self._content, self._exchange = content, exchange

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def read(self, n: int = -1) -> bytes:
        return self._heard(await self._content.read(n))

    async def readany(self) -> bytes:
        return self._heard(await self._content.readany())

    async def readline(self, *args: Any, **kwargs: Any) -> bytes:
        return self._heard(await self._content.readline(*args, **kwargs))

    async def readchunk(self) -> tuple[bytes, bool]:
        data, end = await self._content.readchunk()
        return self._heard(data), end

    def iter_any(self) -> AsyncIterator[bytes]:
        return self._until_empty(self.readany)

    def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        return self._until_empty(functools.partial(self.read, n))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._until_empty(self.readline)

    def _heard(self, data: bytes) -> bytes:
        self._exchange.piece(data)
        if self._content.at_eof():
            self._exchange.end()
        return data

    @staticmethod
    async def _until_empty(read: Callable[[], Awaitable[bytes]]) -> AsyncIterator[bytes]:
        while data := await read():
            yield data


def _failed(exchange: _Exchange, error: BaseException) -> None:
    # What replay refuses was never asked; what is given up was.
    if isinstance(error, Exception | asyncio.CancelledError | KeyboardInterrupt):
        exchange.end()
    else:
        exchange.refused()
