"""vcrpy's patches of the HTTP clients, kept in place for all threads.

While vcrpy makes a connection or a request of http.client or urllib3 for real, it puts every real client back, for
every thread: a model call of another branch would get past the cassette meanwhile. Knows vcrpy by its modules' names
alone; replay hands them in.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["clients_kept"]


@contextmanager
def clients_kept(patch: Any, stubs: Any) -> Iterator[None]:
    """Let vcrpy put back `http.client.HTTPSConnection` and nothing else: that class asks for itself by its name, no
    other client does. Enter it with the patches in place. `patch` and `stubs` are `vcr.patch` and `vcr.stubs` (9.4.2);
    where they have no such names, vcrpy does as it always did."""
    usual, real = getattr(patch, "force_reset", None), getattr(stubs, "HTTPSConnection", None)
    if usual is None or real is None:
        yield
        return
    window = _Window(real)
    patch.force_reset = window.open
    try:
        yield
    finally:
        patch.force_reset = usual
        window.end()


class _Window:
    """The real class under its name, while at least one thread needs it there."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._patched = vars(http.client)["HTTPSConnection"]
        self._lock = threading.Lock()
        self._open = 0
        self._ended = False

    @contextmanager
    def open(self) -> Iterator[None]:
        with self._lock:
            self._open += 1
            self._show(self._real)
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if not self._open:
                    self._show(self._patched)

    def end(self) -> None:
        """A thread may still be in its window: nothing of this cassette comes back after it."""
        with self._lock:
            self._show(self._patched)
            self._ended = True

    def _show(self, connection: Any) -> None:
        if not self._ended:
            vars(http.client)["HTTPSConnection"] = connection
