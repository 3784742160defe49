"""A limit on how long something may take, which holds whatever it waits for; and an end to all waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

T = TypeVar("T")

__all__ = ["Stopped", "TimeIsUp", "awaited_within", "goes_on", "stoppable", "within"]

# Seconds between two looks at whether the process is told to end.
_LOOK = 0.05
_stopped = [False]
# Set once nobody waits for the work that runs here any more.
_left: ContextVar[threading.Event | None] = ContextVar("agenttrace_left", default=None)


class TimeIsUp(Exception):
    """It took longer than it may."""


class Stopped(Exception):
    """The process is told to end."""


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Gives what ends all waiting of this process, to be called by a handler of signals: LangGraph waits for its
    threads before anybody sees a Ctrl-C."""

    def stop() -> None:
        _stopped[0] = True

    try:
        yield stop
    finally:
        _stopped[0] = False


def goes_on() -> bool:
    """Whether somebody still waits for the work that asks: what is to be paid for is not begun where nobody does."""
    left = _left.get()
    return not _stopped[0] and (left is None or not left.is_set())


def within(seconds: float, work: Callable[[], T], name: str) -> T:
    """What `work` returns or raises; `TimeIsUp` after `seconds`, `Stopped` when the process is told to end.

    It is done in a thread of its own, with the caller's context: Python cannot stop a thread that waits for a socket
    or computes, and what is not done in time is left to end by itself, unheard.
    """
    left = threading.Event()
    found: list[T] = []
    failed: list[BaseException] = []

    def begin() -> T:
        _left.set(left)
        return work()

    context = copy_context()

    def do() -> None:
        try:
            found.append(context.run(begin))
        # Whatever it is, it belongs to the caller: a thread would only print it.
        except BaseException as error:
            failed.append(error)

    # A daemon: Python does not wait for it at its end.
    thread = threading.Thread(target=do, name=name, daemon=True)
    thread.start()
    until = time.monotonic() + seconds
    try:
        while thread.is_alive() and not _stopped[0] and (more := until - time.monotonic()) > 0:
            thread.join(min(more, _LOOK))
    finally:
        left.set()
    if failed:
        raise failed[0]
    if found:
        return found[0]
    raise Stopped if _stopped[0] else TimeIsUp


async def awaited_within(seconds: float, work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns or raises, or `TimeIsUp` after `seconds`; it is cancelled then."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            return await work()
    except TimeoutError:
        # Another's timeout is an error of the work.
        if limit.expired():
            raise TimeIsUp from None
        raise
