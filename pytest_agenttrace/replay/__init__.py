"""Replay and recording of Gemini calls from cassettes; with its rooms the only importer of vcr.

vcrpy patches the HTTP clients; what is asked, matched, served and written is decided here. In replay a model call
without a recorded reply raises `CassetteMiss`; nothing is sent but to loopback, and no model call even there.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from pytest_agenttrace.calls import Call, Caller
from pytest_agenttrace.environment import dummy_key
from pytest_agenttrace.ignoring import NOTHING_IGNORED, Ignore
from pytest_agenttrace.network import Refusal, allowed, guarded
from pytest_agenttrace.replay.cassette import (
    CassetteError,
    CassetteFile,
    Interaction,
    cassette_path,
    check_writable,
    load_cassette,
    reply_time,
    save_cassette,
    scrub_uri,
    shown_path,
)
from pytest_agenttrace.replay.clients import patched_clients
from pytest_agenttrace.replay.credentials import dummy_credentials, dummy_sent, token_reply
from pytest_agenttrace.replay.grpc_channels import no_model_channels
from pytest_agenttrace.replay.langsmith import quiet_langsmith
from pytest_agenttrace.replay.matching import (
    Match,
    Recordings,
    Request,
    Unused,
    read_recordings,
    read_request,
)
from pytest_agenttrace.replay.misses import AGAIN, FIRST, CassetteMiss, Miss, word_miss
from pytest_agenttrace.replay.others import OtherCall, Others, host_of
from pytest_agenttrace.replay.recording import (
    google,
    loopback,
    merged,
    origin_of,
    packages,
    read_body,
    read_exchange,
    without_keys,
)
from pytest_agenttrace.replay.retries import RecordedReplies, no_waiting
from pytest_agenttrace.replay.upstream import Unscripted, Upstream, ask, check_replaceable
from pytest_agenttrace.threads import THREADS, caller
from pytest_agenttrace.wire import decode_body, parse_endpoint, read_call

__all__ = [
    "CassetteError",
    "CassetteMiss",
    "GeminiCassette",
    "Match",
    "Miss",
    "OtherCall",
    "Refused",
    "Unused",
    "cassette_path",
    "hold_back",
    "open_cassette",
]

# What this process has recorded, by file and by the test's command.
_OTHERS = "what was there before"
_RECORDED: dict[Path, dict[str, tuple[list[Interaction], dict[str, Any]]]] = {}


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection that replay refused: the node that asked for it, and what to tell."""

    node: str | None
    text: str


class GeminiCassette:
    """One test's open cassette: what was asked, answered, missed and recorded so far. Thread safe."""

    def __init__(
        self,
        path: Path,
        match: Match,
        ignore: Ignore,
        hosts: Sequence[str],
        recording: bool,
        command: str,
        late: Callable[[str], None] | None,
    ) -> None:
        self.path = path
        self.recording = recording
        # Whether the test's body has ended, so that what asks now are its fixtures.
        self.after_body = False
        # Whether nothing more will be asked.
        self.closing = False
        # Whether what is not recorded anew stays in the file: other tests may ask for it.
        self.keep_others = False
        self._command = command
        self._late = late if late is not None else lambda text: None
        self._closed = False
        self._given_up = False
        found = read_recordings(path)
        self._missing = found is None
        self._recordings = Recordings(found if found is not None and not recording else (), match, ignore)
        self._allows = allowed(hosts)
        self._others = Others(hosts, [entry.request.url for entry in found or () if entry.request.endpoint is None])
        self._lock = threading.RLock()
        self._count = 0
        self._calls: list[Call] = []
        self._misses: list[Miss] = []
        self._written: list[tuple[int, Interaction]] = []
        self._hosts: set[str] = set()
        self._started: WeakKeyDictionary[Any, tuple[int, float]] = WeakKeyDictionary()
        self._passed_by: dict[str, None] = {}
        self._refused: dict[Refused, None] = {}
        self._replies: RecordedReplies | None = None
        # Who answers while recording; None is who was asked.
        self._upstream: Upstream | None = None
        self._opened = ExitStack()

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every answered exchange with the Gemini API, in the order they were asked."""
        with self._lock:
            return tuple(sorted(self._calls, key=lambda call: call.index))

    @property
    def others(self) -> tuple[OtherCall, ...]:
        """Every exchange with a host that is none of the model's, recorded or replayed, in the order of the replies."""
        return self._others.seen

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
    def unused_script(self) -> tuple[tuple[str | None, str], ...]:
        """Replies of the script it is recorded from that nobody asked for: the node they are for, and what to tell."""
        return tuple(self._upstream.unused) if self._upstream is not None else ()

    @property
    def used(self) -> dict[str, int]:
        """How many recorded replies were asked for, by what names their request in `unused`."""
        return self._recordings.used()

    @property
    def passed_by(self) -> tuple[str, ...]:
        """Hosts that were spoken to while recording and are none of the model's: not written."""
        with self._lock:
            return tuple(self._passed_by)

    @property
    def refused(self) -> tuple[Refused, ...]:
        """Connections that replay has refused, each node and place once, whatever became of the error."""
        with self._lock:
            return tuple(self._refused)

    @property
    def asked(self) -> int:
        """How many requests and connections there were, answered or not."""
        with self._lock:
            return self._count + len(self._refused)

    def __repr__(self) -> str:
        state = "recording" if self.recording else "replaying"
        return f"<GeminiCassette {shown_path(self.path)}: {state}, {len(self.calls)} calls>"

    def record_from(self, upstream: Upstream, scratch: Path | None = None) -> None:
        """While recording, ask a server on loopback, which runs until the cassette is closed: every call to the model
        is answered by it, none by Google, whatever key and base URL the client has. In replay nothing happens.

        Raises `CassetteError` where replies that came from elsewhere would be overwritten.
        """
        if not self.recording:
            return
        check_replaceable(self.path)
        for opened in (dummy_key(), dummy_credentials(scratch), guarded(self._allows, self._refuse), upstream):
            self._opened.enter_context(opened)
        self._replies, self._upstream = self._opened.enter_context(no_waiting()), upstream

    # What vcrpy's stubs ask, in this order: admit, then play or (send, then) keep.

    def _admit(self, request: Any) -> bool:
        """Whether a request is answered from here; False sends it."""
        if self._passes(request):
            return False
        if not self.recording:
            return True
        if parse_endpoint(request.uri) is not None:
            self._refuse_late(request)
            with self._lock:
                if request not in self._started:
                    self._started[request] = (self._next(), time.perf_counter())
            if self._upstream is None and dummy_sent(request.headers):
                self._refuse_dummy(request)
        return self._upstream is not None and self._scripted(request)

    def _scripted(self, request: Any) -> bool:
        """Whether the script answers a request while recording: the model's, and those of Google's credentials."""
        endpoint, host = parse_endpoint(request.uri), host_of(request.uri)
        if endpoint is None:
            return token_reply(request.method, request.uri) is not None
        return endpoint.model is not None or google(host)

    def _passes(self, request: Any) -> bool:
        """Let through what is no call of the Gemini API and not recorded: the guard over sockets judges it.
        On loopback, users talk to servers of their own: only model calls are kept there. A host that is named and was
        recorded is replayed, strictly."""
        if self.recording or token_reply(request.method, request.uri) is not None:
            return False
        endpoint = parse_endpoint(request.uri)
        if endpoint is not None and (endpoint.model is not None or not loopback(host_of(request.uri))):
            return False
        return not self._recordings.holds(_asked(request)) and not self._others.strict(request.uri)

    def _play(self, request: Any) -> dict[str, Any]:
        self._refuse_late(request)
        if (token := token_reply(request.method, request.uri)) is not None:
            return token
        if self._upstream is not None:
            return self._ask_script(request, self._upstream)
        asked, asking = _asked(request), caller()
        with self._lock:  # at once: equal requests are numbered in the order of their replies
            entry = self._recordings.take(asked)
            number = self._next() if entry is None or asked.endpoint is not None else 0
        if entry is None:
            miss = self._miss(asked, number, asking)
            with self._lock:
                self._misses.append(miss)
            raise CassetteMiss(miss.text, asking.node, number)
        if self._replies is not None:
            self._replies.served(request.uri)
        if asked.endpoint is None:
            self._others.keep(asking, request.method, request.uri, entry.status)
        else:
            call = read_call(
                number,
                asking,
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

    def _ask_script(self, request: Any, upstream: Upstream) -> dict[str, Any]:
        asking = caller()
        try:
            response = ask(upstream, request.method, request.uri, decode_body(read_body(request)), asking.node)
        except Unscripted as error:
            evidence = [str(_asked(request)), *error.evidence]
            self._miss_while_recording(request, asking, "the script of gemini_server has no reply", evidence)
        self._keep(request, response)
        if self._replies is not None:
            self._replies.served(request.uri)
        return response

    def _refuse_dummy(self, request: Any) -> None:
        out = "Set GOOGLE_API_KEY, or say what is answered with the fixture gemini_server."
        self._miss_while_recording(request, caller(), "no key to record with", [str(_asked(request)), out])

    def _miss_while_recording(self, request: Any, asking: Caller, problem: str, evidence: list[str]) -> NoReturn:
        """Raise the miss of a request that nobody answers; the cassette stays as it was."""
        with self._lock:
            number, _ = self._started.pop(request, None) or (self._next(), None)
            miss = word_miss(asking, number, parse_endpoint(request.uri), problem, None, evidence, "", "")
            self._misses.append(miss)
            self._given_up = True
        raise CassetteMiss(miss.text, asking.node, number)

    def _keep(self, request: Any, response: Mapping[str, Any]) -> None:
        """An exchange that was really made: written where it is one with the model or with a host that the user
        names, else only its host is kept."""
        if not self.recording or self._closed:
            return
        host, endpoint = host_of(request.uri), parse_endpoint(request.uri)
        if self._upstream is not None and self._scripted(request):
            host = host_of(self._upstream.url)
        if endpoint is None and self._others.names(request.uri):
            self._keep_other(request, response)
            return
        if endpoint is None or (endpoint.model is None and not google(host) and not loopback(host)):
            with self._lock:
                self._passed_by.setdefault(host)
            return
        with self._lock:
            number, started = self._started.pop(request, None) or (self._next(), None)
        duration = None if started is None else time.perf_counter() - started
        asking = caller()
        interaction = dataclasses.replace(
            read_exchange(request, response, duration), node=asking.node, teardown=self.after_body
        )
        now = datetime.now(UTC)
        call = read_call(
            number,
            asking,
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

    def _keep_other(self, request: Any, response: Mapping[str, Any]) -> None:
        asking = caller()
        interaction = dataclasses.replace(
            read_exchange(request, response, None), node=asking.node, teardown=self.after_body
        )
        self._others.keep(asking, request.method, request.uri, interaction.status)
        with self._lock:
            # Behind the calls asked so far: it has no number of its own.
            self._written.append((self._count, interaction))

    def _next(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def _refuse_late(self, request: Any) -> None:
        """What an earlier test has left behind is answered nothing of this one's."""
        if not self._closed and THREADS.owns_current():
            return
        node, asked = caller().node, parse_endpoint(request.uri) or scrub_uri(request.uri)
        text = f"{node or '(no node)'}, late: {request.method.upper()} {asked}"
        self._late(text)
        raise CassetteMiss(
            f"{text}\n  the thread or task was started by a test that has ended: wait for it before that test ends",
            node,
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
        if self.keep_others and not self._missing and _OTHERS not in parts:
            before = load_cassette(self.path)
            parts[_OTHERS] = (list(before.interactions), self._meta_of(before))
        parts[self._command] = (written, self._meta())
        anew = {_key(found) for name, (part, _) in parts.items() if name != _OTHERS for found in part}
        everything = [
            interaction
            for name, (part, _) in parts.items()
            for interaction in part
            if name != _OTHERS or _key(interaction) not in anew
        ]
        save_cassette(self.path, everything, merged([meta for _, meta in parts.values()]))

    def _meta(self) -> dict[str, Any]:
        calls = self.calls
        first = min([call.at for call in calls] + [other.at for other in self.others])
        return {
            "recorded": datetime.fromtimestamp(first, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "models": sorted({call.endpoint.model for call in calls if call.endpoint.model is not None}),
            "packages": packages(),
            "origin": origin_of(self._hosts or {host_of(other.url) for other in self.others}),
        }

    def _meta_of(self, before: CassetteFile) -> dict[str, Any]:
        """The provenance of what stays in the file."""
        endpoints = [parse_endpoint(found.uri) for found in before.interactions]
        recorded = before.recorded
        return {
            **self._meta(),
            **({} if recorded is None else {"recorded": recorded.strftime("%Y-%m-%dT%H:%M:%SZ")}),
            "models": [found.model for found in endpoints if found is not None and found.model is not None],
            "origin": before.origin or "unknown",
        }

    def _miss(self, asked: Request, number: int, asking: Caller) -> Miss:
        if self._missing:
            looked = f"looked for: {shown_path(self.path)}"
            return word_miss(
                asking, number, asked.endpoint, "no cassette", None, [str(asked), looked], FIRST, self._command
            )
        if asked.endpoint is None:
            said = [str(asked), "other requests to this host were recorded, this one was not"]
            return word_miss(asking, number, None, "no recorded reply", None, said, AGAIN, self._command)
        nearest, evidence = self._recordings.nearest(asked)
        said = [str(asked), *evidence]
        return word_miss(asking, number, asked.endpoint, "no recorded reply", nearest, said, AGAIN, self._command)

    def _refuse_channel(self, host: str) -> NoReturn:
        asking, number = caller(), self._next()
        said = [
            f"a channel to {host}",
            'Where the client takes one: transport="rest". ChatGoogleGenerativeAI speaks REST since version 4.',
        ]
        problem = "gRPC cannot be recorded: use the REST transport"
        miss = word_miss(asking, number, None, problem, None, said, "", "")
        with self._lock:
            self._misses.append(miss)
        raise CassetteMiss(miss.text, asking.node, number)

    def _refuse(self, refusal: Refusal) -> str:
        node = caller().node
        text = f"{node or '(no node)'}: connection to {refusal.text} refused"
        if self._closed or not THREADS.owns_current():
            self._late(f"{text}, late")
            return f"{text}: its test has ended"
        out = f'If it is meant: @pytest.mark.agent_trace(hosts=["{refusal.place}"])'
        with self._lock:
            self._refused.setdefault(Refused(node, f"{text}\n  replay speaks to loopback only. {out}"))
        return f"{text}: replay speaks to loopback only"


def _key(interaction: Interaction) -> tuple[str, str, str, bytes]:
    return read_request(interaction.method, interaction.uri, interaction.body).key("body")


def _asked(request: Any) -> Request:
    body = read_body(request)
    # Recorded without the keys in it.
    body = without_keys(decode_body(body)) if parse_endpoint(request.uri) is None else body
    return read_request(request.method, request.uri, body)


@contextmanager
def open_cassette(
    path: Path,
    *,
    match: Match = "body",
    ignore: Ignore = NOTHING_IGNORED,
    hosts: Sequence[str] = (),
    record: bool = False,
    keep_others: bool = False,
    command: str = "",
    late: Callable[[str], None] | None = None,
    scratch: Path | None = None,
) -> Iterator[GeminiCassette]:
    """One test's cassette, open for the length of the block; written at its end when recording.

    `match="order"` ignores bodies and serves what was recorded for a path in its order. `ignore` is what of a request
    is volatile, `hosts` what may be spoken to in replay beside loopback. `command` is what a miss
    tells the user to run. `late` is told what threads of ended tests ask for; `scratch` is a
    folder for what replay must write (by default a temporary one). A missing file is no error here:
    the first model call raises `CassetteMiss`. Raises `CassetteError` for a file that is no cassette, also before
    recording over it, and for a folder that cannot be written.
    """
    cassette = GeminiCassette(Path(path), match, ignore, hosts, record, command, late)
    cassette.keep_others = keep_others
    if record:
        check_writable(cassette.path)
    try:
        with ExitStack() as stack:
            stack.enter_context(THREADS.following())
            stack.enter_context(quiet_langsmith())
            if not record:
                stack.enter_context(guarded(cassette._allows, cassette._refuse))
                cassette._replies = stack.enter_context(no_waiting())
                stack.enter_context(dummy_credentials(scratch))
            stack.enter_context(no_model_channels(cassette._refuse_channel))
            stack.enter_context(patched_clients(cassette, cassette.recording))
            cassette._opened = stack
            yield cassette
    finally:
        cassette._close()


def hold_back(late: Callable[[str], None]) -> AbstractContextManager[None] | None:
    """Keeps the threads and tasks of tests that have ended off the network; None where there are none."""
    if not THREADS.left_behind():
        return None
    local = allowed(())

    def refuse(refusal: Refusal) -> str:
        text = f"{caller().node or '(no node)'}: connection to {refusal.text} refused, late"
        late(text)
        return f"{text}: its test has ended"

    return guarded(lambda host, port: THREADS.owns_current() or local(host, port), refuse)
