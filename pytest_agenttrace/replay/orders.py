"""Replies of parallel branches, released one at a time in an order that a seed draws: a graph whose result depends on
who finishes first is caught.

A request is held before it is answered until everything that is going to ask beside it has asked: no pool has more work
in hand than waits here, and nothing has moved for a moment. Where that cannot be seen, it is let go a little later.
"""

from __future__ import annotations

import asyncio
import functools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pytest_agenttrace.calls import Caller, path_order
from pytest_agenttrace.threads import THREADS, caller
from pytest_agenttrace.wire import parse_endpoint

__all__ = ["Gate", "gated", "seed_of"]

# Seconds without a new request after which the next one is let go: where all have asked, and where that is not known.
_SETTLED, _UNKNOWN = 0.005, 0.04
# How often that is begun anew where somebody is at work, or the machine is so busy that whoever was to ask may not have
# had its turn.
_PATIENCE = 20
# Rounds of an event loop in which every task that can run has run.
_ROUNDS = 25


def seed_of(order: str) -> int:
    """The seed of `shuffle:1234`; a new one for `shuffle`."""
    _, _, given = order.partition(":")
    # Not from `random`, which tests seed.
    return int(given) if given else random.SystemRandom().randrange(1_000_000)


@dataclass(eq=False, slots=True)
class _Ticket:
    """A request that waits for its turn. `rank` does not depend on who came first."""

    rank: tuple[Any, ...]
    threaded: bool
    free: bool = False


class Gate:
    """Lets requests of one test through, one at a time. Thread safe, and for any number of event loops."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._chance = random.Random(seed)  # noqa: S311  # an order, no secret
        self._moved = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._since = time.monotonic()
        self._patience = _PATIENCE

    def enter(self) -> None:
        """Wait, in a thread."""
        ticket = self._arrive(threaded=True)
        with self._moved:
            while not ticket.free:
                left = self._left()
                if left <= 0:
                    self._release()
                    continue
                begun, worked = time.monotonic(), time.process_time()
                if self._moved.wait(left):
                    continue
                late = time.monotonic() > begun + 2 * left + _SETTLED / 5
                if late or (not self._known() and time.process_time() - worked > left / 2):
                    self._delayed()

    async def enter_async(self) -> None:
        """Wait, in a task: others run meanwhile."""
        ticket = self._arrive(threaded=False)
        rounds, seen = 0, self._since
        while not ticket.free:
            await asyncio.sleep(0)
            with self._moved:
                rounds, seen = (rounds + 1, seen) if self._since == seen else (0, self._since)
                if ticket is self._waiting[0] and rounds >= _ROUNDS and self._left() <= 0:
                    self._release()
            if rounds >= _ROUNDS:
                await asyncio.sleep(_SETTLED / 4)

    def _arrive(self, *, threaded: bool) -> _Ticket:
        ticket = _Ticket(_rank(caller()), threaded)
        with self._moved:
            self._waiting.append(ticket)
            self._move()
        return ticket

    def _left(self) -> float:
        """Seconds until the next one may go."""
        return self._since + (_SETTLED if self._known() else _UNKNOWN) - time.monotonic()

    def _known(self) -> bool:
        """Whether all that have work wait here."""
        return THREADS.busy <= sum(ticket.threaded for ticket in self._waiting)

    def _delayed(self) -> None:
        if self._patience > 0:
            self._patience -= 1
            self._since = time.monotonic()

    def _release(self) -> None:
        self._patience = _PATIENCE
        ranked = sorted(self._waiting, key=lambda ticket: ticket.rank)
        chosen = ranked[self._chance.randrange(len(ranked))]
        chosen.free = True
        self._waiting.remove(chosen)
        self._move()

    def _move(self) -> None:
        self._since = time.monotonic()
        self._moved.notify_all()


def _rank(asking: Caller) -> tuple[Any, ...]:
    """By step, path and node; ids of LangGraph's tasks are new in every run."""
    nodes = [part.partition(":")[0] for part in (asking.namespace or "").split("|")]
    return asking.step or 0, path_order(asking.path), nodes


@contextmanager
def gated(gate: Gate) -> Iterator[None]:
    """Send every model call of httpx and aiohttp through the gate. Enter it with vcrpy's patches in place."""
    with ExitStack() as stack:
        for owner, name, wrap in _clients():
            original = getattr(owner, name)
            held = wrap(original, gate)
            setattr(owner, name, held)
            stack.callback(_put_back, owner, name, held, original)
        yield


def _put_back(owner: Any, name: str, held: Any, original: Any) -> None:
    if getattr(owner, name) is held:
        setattr(owner, name, original)


def _clients() -> Iterator[tuple[Any, str, Callable[[Any, Gate], Any]]]:
    """The methods that vcrpy patches too; where aiohttp has no such name, its calls are not held."""
    for library in ("httpx", "httpx2"):
        with suppress(ImportError):
            module = __import__(library)
            yield module.HTTPTransport, "handle_request", _held
            yield module.AsyncHTTPTransport, "handle_async_request", _held_async
    with suppress(ImportError):
        import aiohttp

        if hasattr(aiohttp.ClientSession, "_request"):
            yield aiohttp.ClientSession, "_request", _held_aiohttp


def _is_model_call(url: object) -> bool:
    endpoint = parse_endpoint(str(url))
    return endpoint is not None and endpoint.model is not None


def _held(original: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    @functools.wraps(original)
    def handle_request(self: Any, request: Any) -> Any:
        if _is_model_call(request.url):
            gate.enter()
        return original(self, request)

    return handle_request


def _held_async(original: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    @functools.wraps(original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        if _is_model_call(request.url):
            await gate.enter_async()
        return await original(self, request)

    return handle_async_request


def _held_aiohttp(original: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    @functools.wraps(original)
    async def request(self: Any, method: str, url: Any, **options: Any) -> Any:
        if _is_model_call(url):
            await gate.enter_async()
        return await original(self, method, url, **options)

    return request
