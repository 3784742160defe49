"""Replay and recording of Gemini calls from cassettes; the only importer of vcr.

vcrpy patches the HTTP clients; what is asked, matched, served and written is decided here. In replay a model call
without a recorded reply raises `CassetteMiss`; nothing is sent but to loopback, and no model call even there.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from pytest_agenttrace.calls import Call, Caller, Endpoint
from pytest_agenttrace.cassette import (
    CassetteError,
    Interaction,
    cassette_path,
    check_writable,
    reply_time,
    save_cassette,
    scrub_uri,
    shown_path,
)
from pytest_agenttrace.matching import (
    Match,
    Recordings,
    Request,
    Unused,
    read_recordings,
    read_request,
)
from pytest_agenttrace.recording import google, loopback, merged, origin_of, packages, read_body, read_exchange
from pytest_agenttrace.wire import parse_endpoint, read_call

__all__ = [
    "CassetteError",
    "CassetteMiss",
    "GeminiCassette",
    "Match",
    "Miss",
    "Unused",
    "cassette_path",
    "open_cassette",
]

# What this process has recorded, by file and by the test's command.
_RECORDED: dict[Path, dict[str, tuple[list[Interaction], dict[str, Any]]]] = {}


class CassetteMiss(BaseException):
    """A request without a recorded reply.

    A BaseException: LangGraph's retries, `with_retry` and `except Exception` in a node would retry or swallow any
    other. langchain-core's `agenerate` takes results that are no `Exception` for answers and reads the two attributes.
    """

    generations: ClassVar[list[Any]] = []
    llm_output: ClassVar[None] = None

    def __init__(self, message: str, node: str | None = None, number: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.number = number


@dataclass(frozen=True, slots=True)
class Miss:
    """A request without a recorded reply. `number` is its place among the test's calls, answered or not;
    `endpoint` is None where it was no Gemini call; `nearest` says what was recorded instead; `text` is all of it."""

    caller: Caller
    number: int
    endpoint: Endpoint | None
    nearest: str | None
    text: str


def _caller() -> Caller:
    """The node that is asking, by LangGraph's run metadata of this context."""
    if "langgraph" not in sys.modules:
        return Caller()
    from langgraph.config import get_config

    try:
        metadata = get_config().get("metadata") or {}
    except RuntimeError:  # outside of a graph
        return Caller()
    return Caller(
        metadata.get("langgraph_node"),
        metadata.get("langgraph_step"),
        metadata.get("langgraph_checkpoint_ns"),
        tuple(metadata.get("langgraph_path") or ()),
    )


class GeminiCassette:
    """One test's open cassette: what was asked, answered, missed and recorded so far. Thread safe."""

    def __init__(
        self, path: Path, match: Match, recording: bool, command: str, owner: Callable[[], bool] | None
    ) -> None:
        self.path = path
        self.recording = recording
        self._command = command
        self._owner = owner if owner is not None else lambda: True
        self._closed = False
        self._given_up = False
        found = read_recordings(path)
        self._missing = found is None
        self._recordings = Recordings(found if found is not None and not recording else (), match)
        self._lock = threading.RLock()
        self._count = 0
        self._calls: list[Call] = []
        self._misses: list[Miss] = []
        self._written: list[tuple[int, Interaction]] = []
        self._hosts: set[str] = set()
        self._started: WeakKeyDictionary[Any, tuple[int, float]] = WeakKeyDictionary()
        self._refused: dict[str, None] = {}

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every answered exchange with the Gemini API, in the order they were asked."""
        with self._lock:
            return tuple(sorted(self._calls, key=lambda call: call.index))

    @property
    def misses(self) -> tuple[Miss, ...]:
        """Every request without a recorded reply, whatever became of its exception."""
        with self._lock:
            return tuple(sorted(self._misses, key=lambda miss: miss.number))

    @property
    def unused(self) -> tuple[Unused, ...]:
        """Recorded replies nobody asked for. Counting tokens, files and caches are bookkeeping and not listed."""
        return self._recordings.unused()

    @property
    def refused(self) -> tuple[str, ...]:
        """Hosts that were spoken to while recording and are none of the model's: not written."""
        with self._lock:
            return tuple(self._refused)

    def __repr__(self) -> str:
        state = "recording" if self.recording else "replaying"
        return f"<GeminiCassette {shown_path(self.path)}: {state}, {len(self.calls)} calls>"

    # What vcrpy's stubs ask, in this order: admit, then play or (send, then) keep.

    def _admit(self, request: Any) -> bool:
        """Whether a request is answered from here; False sends it."""
        if self._passes(request):
            return False
        if not self.recording:
            return True
        if parse_endpoint(request.uri) is not None:
            self._check_owner(request)
            with self._lock:
                if request not in self._started:
                    self._started[request] = (self._next(), time.perf_counter())
        return False

    def _passes(self, request: Any) -> bool:
        """Users talk to servers of their own on loopback: let through what is no model call and not recorded."""
        if self.recording or not loopback(urlsplit(request.uri).hostname):
            return False
        asked = _asked(request)
        if asked.endpoint is not None and asked.endpoint.model is not None:
            return False
        return not self._recordings.holds(asked)

    def _play(self, request: Any) -> dict[str, Any]:
        self._check_owner(request)
        asked, caller = _asked(request), _caller()
        entry = self._recordings.take(asked)
        number = self._next() if entry is None or asked.endpoint is not None else 0
        if entry is None:
            miss = self._miss(asked, number, caller)
            with self._lock:
                self._misses.append(miss)
            raise CassetteMiss(miss.text, caller.node, number)
        if asked.endpoint is not None:
            call = read_call(
                number,
                caller,
                asked.endpoint,
                entry.status,
                entry.reply,
                recorded_at=entry.recorded_at,
                duration=entry.duration,
                at=time.time(),
            )
            with self._lock:
                self._calls.append(call)
        return entry.response()

    def _keep(self, request: Any, response: Mapping[str, Any]) -> None:
        """An exchange that was really made: written where it is one with the model, else only its host is kept."""
        if not self.recording or self._closed:
            return
        host, endpoint = urlsplit(request.uri).hostname or "", parse_endpoint(request.uri)
        if endpoint is None or (endpoint.model is None and not google(host) and not loopback(host)):
            with self._lock:
                self._refused.setdefault(host)
            return
        with self._lock:
            number, started = self._started.pop(request, None) or (self._next(), None)
        duration = None if started is None else time.perf_counter() - started
        interaction = read_exchange(request, response, duration)
        now = datetime.now(UTC)
        call = read_call(
            number,
            _caller(),
            endpoint,
            interaction.status,
            interaction.reply,
            recorded_at=reply_time(interaction.reply_headers) or now,
            duration=duration,
            at=now.timestamp(),
        )
        with self._lock:
            self._calls.append(call)
            self._written.append((number, interaction))
            self._hosts.add(host)

    def _next(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def _check_owner(self, request: Any) -> None:
        if self._closed or not self._owner():
            caller = _caller()
            raise CassetteMiss(
                f"{caller.node or '(no node)'}, late thread: no reply\n"
                f"  {request.method.upper()} {parse_endpoint(request.uri) or scrub_uri(request.uri)}\n"
                "  a thread that an earlier test has left behind: wait for it before that test ends",
                caller.node,
            )

    def give_up(self) -> str | None:
        """The test ended early while recording: an existing cassette stays as it is. Says so where there is one."""
        if not self.recording or self._missing:
            return None
        self._given_up = True
        return f"the recording is incomplete: {shown_path(self.path)} is left as it was"

    def _close(self) -> None:
        self._closed = True
        with self._lock:
            written = [interaction for _, interaction in sorted(self._written, key=lambda pair: pair[0])]
        if not written or self._given_up:
            return
        # Tests that share a cassette record it together: each rerun replaces its own part.
        parts = _RECORDED.setdefault(self.path.resolve(), {})
        parts[self._command] = (written, self._meta())
        everything = [interaction for part, _ in parts.values() for interaction in part]
        save_cassette(self.path, everything, merged([meta for _, meta in parts.values()]))

    def _meta(self) -> dict[str, Any]:
        calls = self.calls
        first = min(call.at for call in calls)
        return {
            "recorded": datetime.fromtimestamp(first, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "models": sorted({call.endpoint.model for call in calls if call.endpoint.model is not None}),
            "packages": packages(),
            "origin": origin_of(self._hosts),
        }

    # Misses

    def _miss(self, asked: Request, number: int, caller: Caller) -> Miss:
        head = f"{caller.node or '(no node)'}, call {number}"
        again = "If the prompt changed on purpose, record again:"
        nearest, evidence = None, []
        if asked.endpoint is None:
            problem, again = "no recorded reply", ""
            evidence = ["not a Gemini call: a cassette holds no others, and replay connects to loopback only"]
        elif self._missing:
            problem, again = "no cassette", "Record it:"
            evidence = [f"looked for: {shown_path(self.path)}"]
        else:
            problem = "no recorded reply"
            nearest, evidence = self._recordings.nearest(asked)
        lines = [str(asked), *evidence]
        if again and self._command:
            lines += [again, f"  {self._command}"]
        text = "\n  ".join([f"{head}: {problem}", *lines])
        return Miss(caller, number, asked.endpoint, nearest, text)


def _asked(request: Any) -> Request:
    return read_request(request.method, request.uri, read_body(request))


@contextmanager
def open_cassette(
    path: Path,
    *,
    match: Match = "body",
    record: bool = False,
    command: str = "",
    owner: Callable[[], bool] | None = None,
) -> Iterator[GeminiCassette]:
    """One test's cassette, open for the length of the block; written at its end when recording.

    `match="order"` ignores bodies and serves what was recorded for a path in its order. `command` is what a miss
    tells the user to run. `owner` says whether the current thread is this test's. A missing file is no error here:
    the first model call raises `CassetteMiss`. Raises `CassetteError` for a file that is no cassette, also before
    recording over it, and for a folder that cannot be written.
    """
    cassette = GeminiCassette(Path(path), match, record, command, owner)
    if record:
        check_writable(cassette.path)
    try:
        with _patched_clients(cassette):
            yield cassette
    finally:
        cassette._close()


@contextmanager
def _patched_clients(cassette: GeminiCassette) -> Iterator[None]:
    """vcrpy's patches of the HTTP clients, with every decision handed to `cassette`."""
    from vcr import VCR  # type: ignore[import-untyped]  # vcrpy has no types
    from vcr.cassette import Cassette  # type: ignore[import-untyped]

    class Delegate(Cassette):  # type: ignore[misc]  # untyped base
        def can_play_response_for(self, request: Any) -> bool:
            return cassette._admit(request)

        def play_response(self, request: Any) -> dict[str, Any]:
            return cassette._play(request)

        def append(self, request: Any, response: Mapping[str, Any]) -> None:
            cassette._keep(request, response)

        def filter_request(self, request: Any) -> Any:
            return None if cassette._passes(request) else request

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
    mode = "all" if cassette.recording else "none"
    config = vcr.get_merged_config(path=str(cassette.path), record_mode=mode)
    spared = list(_in_process_transports())
    with Delegate.use(**config):
        for transport, method, original in spared:
            setattr(transport, method, original)
        yield


def _in_process_transports() -> Iterator[tuple[Any, str, Any]]:
    """httpx transports that call a function or an application: vcrpy patches them too, and nothing is sent."""
    for module in (sys.modules.get("httpx"), sys.modules.get("httpx2")):
        for name in ("ASGITransport", "MockTransport", "WSGITransport"):
            transport = getattr(module, name, None)
            for method in ("handle_request", "handle_async_request"):
                if transport is not None and method in vars(transport):
                    yield transport, method, vars(transport)[method]
