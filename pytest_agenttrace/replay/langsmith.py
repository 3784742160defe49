"""LangSmith kept quiet. LangChain and LangGraph trace to it by themselves wherever the environment says so; a replayed
test is nobody's production run, and its traces are a connection to the outside.

Seen in langsmith 0.15: `utils.tracing_is_enabled` is what everything asks, from an environment it reads once and
caches; tracers built in code do not ask, and end in `Client.create_run` and `update_run`; every new client asks the
server for its `info` from a thread of its own.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

__all__ = ["quiet_langsmith"]

# In the order langsmith reads them; the first that is not blank counts.
_TRACING = ("LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING_V2", "LANGSMITH_TRACING", "LANGCHAIN_TRACING")
# LangChain refuses to run with these where tracing is off, and ignores them where it is on.
_OLD = ("LANGCHAIN_TRACING", "LANGCHAIN_HANDLER")
# Seconds to wait for what was traced before.
_PATIENCE = 2.0

Undo = Callable[[], None]

_lock = threading.RLock()
_open = 0
_undo: list[Undo] = []
_silenced = False


@contextmanager
def quiet_langsmith() -> Iterator[None]:
    """Nothing is traced to LangSmith while open, in any thread, whatever the environment or the code says.

    What was traced before is sent first, for at most 2 seconds. Afterwards the environment, what langsmith has cached
    of it and its functions are as before. Other requests through a LangSmith client (datasets, prompts, feedback) are
    the code's own and are made. Nests. Where langsmith is not imported yet, it is not imported here, and the
    environment says no.
    """
    global _open, _silenced
    _send_what_is_waiting()
    with _lock:
        _open += 1
    try:
        with _lock:
            if _open == 1:
                _undo.extend(_environment())
            if "langsmith" in sys.modules and not _silenced:
                _silenced = True
                _undo.extend(_silence())
        yield
    finally:
        with _lock:
            _open -= 1
            while not _open and _undo:
                _undo.pop()()
            _silenced = _silenced and _open > 0


def _send_what_is_waiting() -> None:
    wait = getattr(sys.modules.get("langchain_core.tracers.langchain"), "wait_for_all_tracers", None)
    if wait is None:
        return

    def send() -> None:
        with suppress(Exception):
            wait()

    # A thread of its own: older versions know no deadline.
    sender = threading.Thread(target=send, name="agenttrace-langsmith-flush", daemon=True)
    sender.start()
    sender.join(_PATIENCE)


# The environment


def _environment() -> Iterator[Undo]:
    value = next((v for name in _TRACING if (v := os.environ.get(name, "")).strip()), "")
    if value == "true":
        for name in _OLD:
            if name in os.environ:
                yield _set(name, None)
    if not callable(getattr(sys.modules.get("langsmith.utils"), "tracing_is_enabled", None)):
        # Not imported yet, or without the function: the environment says no, and is read anew before and after.
        yield _forget
        yield _set(_TRACING[0], "false")
        yield _set("LANGSMITH_TEST_TRACKING", "false")
        _forget()


def _set(name: str, value: str | None) -> Undo:
    before = os.environ.get(name)
    _put(name, value)

    def undo() -> None:
        # Whatever the code under test has put there itself stays.
        if os.environ.get(name) == value:
            _put(name, before)

    return undo


def _put(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _forget() -> None:
    """Drop what a langsmith imported under our environment has cached of it."""
    utils = sys.modules.get("langsmith.utils")
    clear = getattr(getattr(utils, "get_env_var", None), "cache_clear", None)
    if clear is not None:
        clear()


# Its functions


def _silence() -> Iterator[Undo]:
    try:
        from langsmith import client, schemas, utils
    except ImportError:
        return
    yield from _swap(utils, "tracing_is_enabled", lambda *_, **__: False)
    # What its marker `langsmith` asks before it makes a data set and an experiment on the server.
    yield from _swap(utils, "test_tracking_is_disabled", lambda *_, **__: True)
    yield from _swap(client.Client, "create_run", lambda *_, **__: None)
    yield from _swap(client.Client, "update_run", lambda *_, **__: None)
    asked = vars(client.Client).get("info")
    if isinstance(asked, property) and asked.fget is not None:
        ask = asked.fget
        info = property(lambda self: schemas.LangSmithInfo() if _open else ask(self))
        yield _replace(client.Client, "info", info)


def _swap(owner: Any, name: str, quiet: Callable[..., Any]) -> Iterator[Undo]:
    before = vars(owner).get(name)
    if not callable(before):
        return

    # Somebody may keep it: closed, it is the function it stands for.
    @functools.wraps(before)
    def swapped(*args: Any, **kwargs: Any) -> Any:
        return quiet(*args, **kwargs) if _open else before(*args, **kwargs)

    yield _replace(owner, name, swapped)


def _replace(owner: Any, name: str, value: Any) -> Undo:
    before = vars(owner)[name]
    setattr(owner, name, value)

    def undo() -> None:
        if vars(owner).get(name) is value:
            with suppress(AttributeError, TypeError):
                setattr(owner, name, before)

    return undo
