"""Threads and pools: which node set them to work, and whose test they belong to.

LangGraph's run metadata lives in a context variable, which a bare `Thread` or `ThreadPoolExecutor` does not
inherit. While a test is followed, starting a thread and submitting to a pool leave a note of who did it.
"""

from __future__ import annotations

import asyncio.base_events
import concurrent.futures.thread
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from pytest_agenttrace.calls import Caller
from pytest_agenttrace.model_runs import MODEL_RUNS, caller_from

__all__ = ["THREADS", "Threads", "caller", "caller_in_context", "caller_of_thread"]

# Of servers of ours, which run as long as their tests.
_OURS = "gemini-server"
_POOLS = ("ThreadPoolExecutor-", "asyncio_", "Mlflow", "MLflow", "OtelBatch")


@dataclass(frozen=True, slots=True)
class _Origin:
    """Who handed work to a thread: the node, and the test (by the number of the following)."""

    caller: Caller
    test: int


class _Task:
    """Something submitted and not done."""


_started: WeakKeyDictionary[threading.Thread, _Origin] = WeakKeyDictionary()
# What a pool's worker has in hand; it outlives the thread's own origin.
_task = threading.local()
# The test whose context this is: what is scheduled on another thread's event loop takes it along.
_test_of: ContextVar[int] = ContextVar("agenttrace_test", default=0)


def _origin() -> _Origin | None:
    given: _Origin | None = getattr(_task, "origin", None)
    return given if given is not None else _started.get(threading.current_thread())


def caller() -> Caller:
    """The node that is asking: by LangGraph's metadata of this context, else by who set this thread to work."""
    found = caller_in_context()
    return found if found.namespace is not None else caller_of_thread()


def caller_of_thread() -> Caller:
    """The node that started this thread, or submitted what a pool's worker does; `Caller()` where none did."""
    origin = _origin()
    return origin.caller if origin is not None else Caller()


def caller_in_context() -> Caller:
    """The node whose model is asking, else the one by LangGraph's run metadata; `Caller()` outside of a graph."""
    asking = MODEL_RUNS.caller()
    if asking.namespace is not None or "langgraph" not in sys.modules:
        return asking
    from langgraph.config import get_config

    try:
        return caller_from(get_config().get("metadata") or {})
    except RuntimeError:  # outside of a graph
        return Caller()


class Threads:
    """Which threads belong to the running test: all but those an earlier one left behind.

    Workers of pools and threads that run an event loop are shared by tests and belong to each; what they do belongs
    to the test that submitted or scheduled it.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._test = 0
        self._runner = 0
        self._loops: WeakSet[threading.Thread] = WeakSet()
        self._pending: WeakSet[_Task] = WeakSet()
        self._running: WeakSet[_Task] = WeakSet()
        self._before: WeakSet[threading.Thread] = WeakSet()
        self._restore: list[Callable[[], None]] = []
        self._models = ExitStack()
        self.born: WeakSet[threading.Thread] = WeakSet()
        self.stale: WeakSet[threading.Thread] = WeakSet()

    @contextmanager
    def following(self) -> Iterator[None]:
        """One test, from its first fixture to its last; nested uses are part of it."""
        self._depth += 1
        if self._depth == 1:
            self._test += 1
            self._runner = threading.get_ident()
            _test_of.set(self._test)
            self._before = WeakSet(threading.enumerate())
            self._patch()
            self._models.enter_context(MODEL_RUNS.followed())
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._models.close()
                for restore in self._restore:
                    restore()
                self._restore.clear()
                self._tell_apart()
                _test_of.set(0)

    def owns_current(self) -> bool:
        """Whether what the calling thread does is none of a test's that has ended."""
        test = self._test_of_current()
        return not test or (self._depth > 0 and test == self._test)

    def _test_of_current(self) -> int:
        """The test whose work this is; 0 for nobody's, and for the thread that runs the tests."""
        given: _Origin | None = getattr(_task, "origin", None)
        if given is not None:
            return given.test
        thread = threading.current_thread()
        if thread in self.stale:
            return -1
        return 0 if thread.ident == self._runner else _test_of.get()

    @property
    def running(self) -> list[str]:
        """Names of the threads of this test that are alive; workers of pools only where they have something in hand."""
        own = [thread for thread in threading.enumerate() if thread not in self._before]
        mine = [t for t in own if t is not threading.current_thread() and not t.name.startswith(_OURS)]
        return [thread.name for thread in mine if not _is_shared(thread) or self.busy]

    @property
    def busy(self) -> int:
        """How many tasks the workers of pools have in hand."""
        return len(self._running)

    def left_behind(self) -> bool:
        """Whether a test that has ended may still have work under way: a thread, a task submitted to a pool, or
        something on another thread's event loop."""
        return len(self._pending) > 0 or any(thread.is_alive() for thread in (*self.stale, *self._loops))

    def _tell_apart(self) -> None:
        current = threading.current_thread()
        for thread in threading.enumerate():
            if thread is current:
                continue
            if _runs_event_loop(thread):
                self._loops.add(thread)
            if thread not in self._before:
                self.born.add(thread)
                if not _is_shared(thread):
                    self.stale.add(thread)

    def _patch(self) -> None:
        start, submit = threading.Thread.start, ThreadPoolExecutor.submit
        threads = self

        def noted_start(thread: threading.Thread) -> None:
            _started[thread] = _Origin(caller(), threads._test_of_current() or threads._test)
            start(thread)

        def noted_submit(pool: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            return submit(pool, threads._noted(fn), *args, **kwargs)

        self._put(threading.Thread, "start", noted_start)
        self._put(ThreadPoolExecutor, "submit", noted_submit)

    def _put(self, owner: type, name: str, replacement: Callable[..., Any]) -> None:
        before = vars(owner)[name]
        setattr(owner, name, replacement)

        def restore() -> None:
            # Whoever patched it since keeps a working method and restores ours, which passes everything on.
            if vars(owner).get(name) is replacement:
                setattr(owner, name, before)

        self._restore.append(restore)

    def _noted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        origin, task = _Origin(caller(), self._test_of_current() or self._test), _Task()

        def run(*args: Any, **kwargs: Any) -> Any:
            outer, _task.origin = getattr(_task, "origin", None), origin
            self._running.add(task)
            try:
                return function(*args, **kwargs)
            finally:
                _task.origin = outer
                self._pending.discard(task)
                self._running.discard(task)

        self._pending.add(task)  # weakly: what is cancelled is never run
        return run


THREADS = Threads()


def _is_shared(thread: threading.Thread) -> bool:
    workers = getattr(concurrent.futures.thread, "_threads_queues", {})
    return (
        thread in workers
        or thread.name.startswith(_POOLS)
        or type(thread).__module__.partition(".")[0] == "anyio"
        or _runs_event_loop(thread)
    )


def _runs_event_loop(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        if frame.f_code.co_filename == asyncio.base_events.__file__ and frame.f_code.co_name == "run_forever":
            return True
        frame = frame.f_back
    return False
