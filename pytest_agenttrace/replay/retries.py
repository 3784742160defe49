"""Waits between attempts, left out in replay where what is tried again is a recorded error.

Two kinds of waiting are known: a `time.sleep` or `asyncio.sleep` by the very function that has caught the error
(LangGraph's RetryPolicy, LangChain's middleware, loops of the user's own), and tenacity's between two attempts
(google-genai's `max_retries`, LangChain's `with_retry`). Every other wait is real.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any
from urllib.parse import unquote, urlsplit

from pytest_agenttrace.replay.delivery import is_injected

__all__ = ["RecordedReplies", "no_waiting"]

# In place of a URL, for an error that a fault has raised: some name none.
_INJECTED = "injected"
_lock = threading.Lock()
_open: list[RecordedReplies] = []
# Stand-ins and where they belong. One that somebody else's patch puts back later waits as it is told, until it is met.
_stand_ins: dict[Any, tuple[Any, str]] = {}


class RecordedReplies:
    """The replies one replay has served. Thread safe."""

    def __init__(self) -> None:
        self._places: set[tuple[str, str]] = {_place(_INJECTED)}

    def served(self, url: str) -> None:
        """A recorded reply to this URL was served. A good one counts too: a stream may hold an error."""
        self._places.add(_place(url))

    def explain(self, error: BaseException | None) -> bool:
        """Whether an exception tells of one of them, also behind exceptions that were raised from it."""
        return error is not None and any(_place(url) in self._places for url in _urls(error))


def _place(url: str) -> tuple[str, str]:
    """Host and path: clients print a query differently."""
    with suppress(ValueError):
        parts = urlsplit(url)
        return (parts.hostname or "", unquote(parts.path))
    return ("", url)


def _urls(error: BaseException) -> Iterator[str]:
    """The URLs of the exchanges that an exception tells of.

    The nearest exception that tells of an exchange, or that is the system's own, speaks for all behind it: a local
    service that is polled while a recorded error is handled has errors of its own.
    """
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        if isinstance(at, BaseExceptionGroup):
            for inner in at.exceptions:
                yield from _urls(inner)
        url = _INJECTED if is_injected(at) else _url(at)
        if url is not None:
            yield url
        if url is not None or isinstance(at, OSError):
            return
        at = at.__cause__ or at.__context__


def _url(error: BaseException) -> str | None:
    """The URL an exception of google-genai, httpx, aiohttp, requests or urllib is about."""
    reply = _read(error, "response")
    # google-genai hands out wrappers of an HTTP client's response.
    reply = _read(reply, "_response") or _read(reply, "response_stream") or reply
    for thing, name in (
        (reply, "url"),
        (_read(error, "request_info"), "real_url"),
        (_read(error, "request"), "url"),
        (error, "url"),
    ):
        found = _read(thing, name)
        if found is not None:
            return str(found)
    return None


def _read(thing: Any, name: str) -> Any:
    # Some are properties that raise: a response without its request has no URL.
    with suppress(Exception):
        return getattr(thing, name)
    return None


def _recorded(error: BaseException | None) -> bool:
    return any(replies.explain(error) for replies in tuple(_open))


def _caught_by(frame: FrameType | None) -> bool:
    """Whether a frame is handling a recorded error: its own `except`, not that of a function further out."""
    error = sys.exception()
    caught = error is not None and error.__traceback__ is not None and error.__traceback__.tb_frame is frame
    return caught and _recorded(error)


def _time_sleep(original: Callable[[float], None]) -> Callable[[float], None]:
    @functools.wraps(original)
    def sleep(seconds: float, /) -> None:
        frame = inspect.currentframe()
        original(0 if _open and frame is not None and _caught_by(frame.f_back) else seconds)

    return sleep


def _asyncio_sleep(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def sleep(delay: float, result: Any = None) -> Any:
        frame = inspect.currentframe()
        return await original(0 if _open and frame is not None and _caught_by(frame.f_back) else delay, result)

    return sleep


def _wait(step: Any, state: Any) -> Any:
    """tenacity's next step; where it is a wait for a recorded error, one of no length."""
    import tenacity

    if isinstance(step, tenacity.DoSleep) and state.outcome is not None and state.outcome.failed:
        return tenacity.DoSleep(0) if _recorded(state.outcome.exception()) else step
    return step


def _tenacity_iter(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def iterate(self: Any, retry_state: Any) -> Any:
        step = original(self, retry_state)
        return _wait(step, retry_state) if _open else step

    return iterate


def _tenacity_async_iter(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    async def iterate(self: Any, retry_state: Any) -> Any:
        step = await original(self, retry_state)
        return _wait(step, retry_state) if _open else step

    return iterate


def _waiters() -> Iterator[tuple[Any, str, Callable[..., Any]]]:
    """Who waits between attempts, by owner and name. A tenacity without these names waits as long as it wants."""
    yield time, "sleep", _time_sleep
    yield asyncio, "sleep", _asyncio_sleep
    with suppress(ImportError):
        import tenacity

        known = hasattr(tenacity, "DoSleep")
        for kind, stand_in in (("BaseRetrying", _tenacity_iter), ("AsyncRetrying", _tenacity_async_iter)):
            owner = getattr(tenacity, kind, None)
            if known and owner is not None and "iter" in vars(owner):
                yield owner, "iter", stand_in


@contextmanager
def no_waiting() -> Iterator[RecordedReplies]:
    """Leave out, for the length of the block, the waits before a recorded error is tried again.

    Gives the list to which replay tells each reply it serves. Blocks nest; what others patch meanwhile stays theirs.
    """
    replies = RecordedReplies()
    with _lock:
        if not _open:
            for owner, name, stand_in in _waiters():
                original = getattr(owner, name)
                if original not in _stand_ins:
                    replacing = stand_in(original)
                    _stand_ins[replacing] = (owner, name)
                    setattr(owner, name, replacing)
        _open.append(replies)
    try:
        yield replies
    finally:
        with _lock:
            _open.remove(replies)
            if not _open:
                _restore()


def _restore() -> None:
    for stand_in, (owner, name) in list(_stand_ins.items()):
        if getattr(owner, name) is stand_in:
            setattr(owner, name, stand_in.__wrapped__)
            del _stand_ins[stand_in]
