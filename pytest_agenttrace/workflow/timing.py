"""A limit on how long something may take, which holds whatever it waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")

__all__ = ["TimeIsUp", "awaited_within", "within"]


class TimeIsUp(Exception):
    """It took longer than it may."""


def within(seconds: float, work: Callable[[], T], name: str) -> T:
    """What `work` returns or raises, or `TimeIsUp` after `seconds`.

    It is done in a thread of its own, with the caller's context: Python cannot stop a thread that waits for a socket
    or computes, and what is not done in time is left to end by itself, unheard.
    """
    context = copy_context()
    found: list[T] = []
    failed: list[BaseException] = []

    def do() -> None:
        try:
            found.append(context.run(work))
        # Whatever it is, it belongs to the caller: a thread would only print it.
        except BaseException as error:
            failed.append(error)

    # A daemon: Python does not wait for it at its end.
    thread = threading.Thread(target=do, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeIsUp
    return found[0]


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
