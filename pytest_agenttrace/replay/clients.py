"""vcrpy's patches of the HTTP clients, kept in place for all threads; the only importer of vcr.

While vcrpy makes a connection or a request of http.client or urllib3 for real, it puts every real client back, for
every thread: a model call of another branch would get past the cassette meanwhile.
"""

from __future__ import annotations

import http.client
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from pytest_agenttrace.replay.delivery import delivered

__all__ = ["Decides", "clients_kept", "patched_clients"]


class Decides(Protocol):
    """What vcrpy's stubs ask for each request, in this order: whether it is none of ours, whether it is answered from
    here, then the answer, or (sent, then) what came back."""

    def _passes(self, request: Any) -> bool: ...

    def _admit(self, request: Any) -> bool: ...

    def _play(self, request: Any) -> dict[str, Any]: ...

    def _keep(self, request: Any, response: Mapping[str, Any]) -> None: ...


@contextmanager
def patched_clients(decides: Decides, recording: bool) -> Iterator[None]:
    """vcrpy's patches of the HTTP clients, with every decision handed over."""
    from vcr import VCR, patch, stubs  # type: ignore[import-untyped]  # vcrpy has no types
    from vcr.cassette import Cassette  # type: ignore[import-untyped]

    class Delegate(Cassette):  # type: ignore[misc]  # untyped base
        def can_play_response_for(self, request: Any) -> bool:
            return decides._admit(request)

        def play_response(self, request: Any) -> dict[str, Any]:
            return decides._play(request)

        def append(self, request: Any, response: Mapping[str, Any]) -> None:
            decides._keep(request, response)

        def filter_request(self, request: Any) -> Any:
            return None if decides._passes(request) else request

    class NoFile:
        """The file is read and written elsewhere, once, and checked."""

        @staticmethod
        def load_cassette(cassette_path: Any, serializer: Any) -> tuple[list[Any], list[Any]]:
            return [], []

        @staticmethod
        def save_cassette(cassette_path: Any, cassette_dict: Any, serializer: Any) -> None:
            pass

    vcr = VCR()
    vcr.register_persister(NoFile)
    mode = "all" if recording else "none"
    config = vcr.get_merged_config(path="no file", record_mode=mode)
    spared = list(_in_process_transports())
    with Delegate.use(**config):
        for transport, method, original in spared:
            setattr(transport, method, original)
        with clients_kept(patch, stubs), delivered():
            yield


def _in_process_transports() -> Iterator[tuple[Any, str, Any]]:
    """httpx transports that call a function or an application: vcrpy patches them too, and nothing is sent."""
    for module in (sys.modules.get("httpx"), sys.modules.get("httpx2")):
        for name in ("ASGITransport", "MockTransport", "WSGITransport"):
            transport = getattr(module, name, None)
            for method in ("handle_request", "handle_async_request"):
                if transport is not None and method in vars(transport):
                    yield transport, method, vars(transport)[method]


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
