"""What vcrpy's stubs ask of an open cassette, for each request: whether it is answered from here, with what, and what
comes of an exchange that was really made."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from pytest_agenttrace.calls import Caller, Endpoint, ModelCall, branch_of
from pytest_agenttrace.ignoring import NOTHING_IGNORED, Ignore
from pytest_agenttrace.network import Refusal, allowed
from pytest_agenttrace.replay.adopting import Adopter
from pytest_agenttrace.replay.arranging import Kept
from pytest_agenttrace.replay.cassette import Interaction, scrub_uri, shown_path
from pytest_agenttrace.replay.credentials import dummy_sent, token_reply
from pytest_agenttrace.replay.faults import Fault, Faults
from pytest_agenttrace.replay.filters import Filters
from pytest_agenttrace.replay.injecting import altered_call, deliver, fail, stand_in
from pytest_agenttrace.replay.log import Log, Refused
from pytest_agenttrace.replay.matching import (
    Match,
    Recorded,
    Recordings,
    Request,
    plain_reply,
    read_recordings,
    read_request,
)
from pytest_agenttrace.replay.misses import AGAIN, FIRST, GO_ON, LIMIT, SHUFFLED, CassetteMiss, Miss, word_miss
from pytest_agenttrace.replay.orders import Gate
from pytest_agenttrace.replay.others import Others, host_of
from pytest_agenttrace.replay.purse import Purse, TooDear
from pytest_agenttrace.replay.recorder import Mode, Recorder, Shares, partial_path
from pytest_agenttrace.replay.recording import google, loopback, read_body, read_exchange
from pytest_agenttrace.replay.retries import RecordedReplies
from pytest_agenttrace.replay.scrubbing import Scrubber, project_of, without_keys
from pytest_agenttrace.replay.spending import Spending
from pytest_agenttrace.replay.upstream import Unscripted, Upstream, ask
from pytest_agenttrace.threads import THREADS, caller
from pytest_agenttrace.wire import canonical_body, decode_body, parse_endpoint, read_call

__all__ = ["Answering", "Opening", "counted_down"]


@dataclass(frozen=True, slots=True)
class Opening:
    """How a cassette is opened. `order` is "shuffle" or "shuffle:SEED", None for as it comes; `secrets` are
    regular expressions for what is not written; `command` is what a miss
    tells the user to run (its option is added); `shares` how tests that share the cassette record it, None for one
    test's own; `late` is told what threads of ended tests ask for; `price` gives the USD of a call, and `spending`
    limits their sum."""

    mode: Mode = "replay"
    match: Match = "body"
    ignore: Ignore = NOTHING_IGNORED
    hosts: Sequence[str] = ()
    order: str | None = None
    secrets: Sequence[str] = ()
    filters: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    shares: Shares | None = None
    late: Callable[[str], None] | None = None
    price: Callable[[ModelCall], Decimal] | None = None
    spending: Spending | None = None


@dataclass(frozen=True, slots=True)
class _Begun:
    """A request that was asked while recording: what the file answers it, else what its reply is expected to cost."""

    number: int
    at: float
    asked: Request
    entry: Recorded | None
    expected: Decimal | None
    fault: Fault | None = None

    @property
    def answered(self) -> bool:
        return self.entry is not None or (self.fault is not None and self.fault.stands)


class Answering:
    """An open cassette as the HTTP clients see it. Thread safe."""

    def __init__(self, path: Path, opening: Opening) -> None:
        self.path = path
        self.mode = opening.mode
        # Whether calls are really made.
        self.recording = opening.mode in ("record", "missing")
        # Whether the test's body has ended, so that what asks now are its fixtures.
        self.after_body = False
        # What holds replies of parallel branches back; None where they come as they are asked for.
        self.gate: Gate | None = None
        # Whether nothing more will be asked.
        self.closing = False
        self._opening = opening
        self._late = opening.late if opening.late is not None else lambda text: None
        self._filters = Filters(opening.filters)
        self._closed = False
        self._given_up = self._stopped = False
        found = read_recordings(path)
        self._missing = found is None
        # What was there before this test.
        self.before: tuple[Recorded, ...] = found or ()
        set_aside = read_recordings(partial_path(path)) if opening.mode == "missing" else None
        entries = resumed(self.before, set_aside or ())
        self._recordings = Recordings(entries if opening.mode != "record" else (), opening.match, opening.ignore)
        self._recorder = Recorder(path, opening.shares)
        self._adopter = Adopter(path)
        self._purse = Purse(opening.spending, opening.price, self.before)
        self._allows = allowed(opening.hosts)
        self._others = Others(opening.hosts, [e.request.url for e in entries if e.request.endpoint is None])
        self._lock = threading.RLock()
        self._log = Log()
        # While recording: requests under way, and what the file answers them.
        self._started: WeakKeyDictionary[Any, _Begun] = WeakKeyDictionary()
        self._pending: dict[int, Request] = {}
        self._replies: RecordedReplies | None = None
        self._answered: set[tuple[str, str, str, bytes]] = set()
        # Who answers while recording; None is who was asked.
        self._upstream: Upstream | None = None
        self._opened = ExitStack()
        self._faults = Faults()
        # Numbers of the replies that a fault stood for.
        self._spared: set[int] = set()

    def _admit(self, request: Any) -> bool:
        """Whether a request is answered from here; False sends it."""
        if self._passes(request):
            return False
        if not self.recording:
            return True
        scripted = self._upstream is not None and self._scripted(request)
        if self._upstream is None and self._is_ours(request.uri) and dummy_sent(request.headers):
            self._refuse_dummy(request)
        return self._begin(request) or scripted

    def _scripted(self, request: Any) -> bool:
        """Whether the script answers a request while recording: the model's, and those of Google's credentials."""
        endpoint, host = parse_endpoint(request.uri), host_of(request.uri)
        if endpoint is None:
            return token_reply(request.method, request.uri) is not None
        return endpoint.model is not None or google(host)

    def _begin(self, request: Any) -> bool:
        """Whether the file answers a request while recording. vcrpy asks more than once."""
        if not self._is_ours(request.uri):
            return False
        endpoint = parse_endpoint(request.uri)
        self._refuse_late(request)
        with self._lock:
            if request not in self._started:
                asked, at = self._asked(request), time.perf_counter()
                fault = self._faults.claim(caller(), endpoint)
                stands = fault is not None and fault.stands
                entry = self._recordings.take(asked, caller()) if not stands else None
                number = self._log.next() if endpoint is not None else self._log.count
                expected = self._afford(asked, entry, number) if not stands else None
                self._started[request] = _Begun(number, at, asked, entry, expected, fault)
                if entry is None and endpoint is not None and not stands:
                    self._pending[number] = asked
            return self._started[request].answered

    def _is_ours(self, uri: str) -> bool:
        """Whether an exchange is one with the Gemini API, or with a host that the user names."""
        endpoint, host = parse_endpoint(uri), host_of(uri)
        if endpoint is None:
            return self._others.names(uri)
        return endpoint.model is not None or google(host) or loopback(host)

    def _passes(self, request: Any) -> bool:
        """Let through what is no call of the Gemini API and not recorded: the guard over sockets judges it.
        On loopback, users talk to servers of their own: only model calls are kept there. A host that is named and was
        recorded is replayed, strictly."""
        if self.recording or token_reply(request.method, request.uri) is not None:
            return False
        endpoint = parse_endpoint(request.uri)
        if endpoint is not None and (endpoint.model is not None or not loopback(host_of(request.uri))):
            return False
        return not self._recordings.holds(self._asked(request)) and not self._others.strict(request.uri)

    def _play(self, request: Any) -> dict[str, Any]:
        self._refuse_late(request)
        if (token := token_reply(request.method, request.uri)) is not None:
            return token
        asked_before = self._started.get(request) if self.recording else None
        if self._upstream is not None and (asked_before is None or not asked_before.answered):
            return self._ask_script(request, self._upstream, asked_before.fault if asked_before is not None else None)
        asking, begun = caller(), self._started.pop(request, None) if self.recording else None
        asked = begun.asked if begun is not None else self._asked(request)
        with self._lock:  # at once: equal requests are numbered in the order of their replies
            fault = begun.fault if begun is not None else self._faults.claim(asking, asked.endpoint)
            if fault is not None and fault.stands and asked.endpoint is not None:
                number = begun.number if begun is not None else self._log.next()
                if self._replies is not None:
                    self._replies.served(request.uri)
                return self._stand_in(fault, asked, asked.endpoint, number, asking)
            entry = begun.entry if begun is not None else self._take(asked, asking)
            number = begun.number if begun is not None else self._number(asked, entry)
        if entry is None:
            miss = self._miss(asked, number, asking)
            self._log.missed(miss)
            raise CassetteMiss(miss.text, asking.node, number)
        if self._replies is not None:
            self._replies.served(request.uri)
        if asked.endpoint is None:
            self._others.keep(asking, request.method, request.uri, entry.status)
        else:
            self._answer(asked, asked.endpoint, number, asking, entry, fault)
        if begun is not None:
            self._recorder.replayed(Kept(number, entry.interaction, asking, begun.at, time.perf_counter()))
        if self.mode == "adopt" and entry.request.digest() != asked.digest():
            self._adopter.adopt(entry, self._read(self._filters.asked(request), entry.response(), entry.duration))
        return entry.response() if fault is None else deliver(fault, entry.response())

    def _stand_in(
        self, fault: Fault, asked: Request, endpoint: Endpoint, number: int, asking: Caller
    ) -> dict[str, Any]:
        """What a request is answered by a fault that stands for its reply, which goes on waiting."""
        spared = self._recordings.peek(asked, asking)
        if spared is not None:
            self._spared.add(spared.number)
        reply, call = stand_in(fault, number, asking, endpoint, spared)
        self._log.answered(dataclasses.replace(call, body=asked.body), asked.key("body"))
        return reply if reply is not None else fail(fault)

    def _ask_script(self, request: Any, upstream: Upstream, fault: Fault | None) -> dict[str, Any]:
        asking = caller()
        try:
            response = ask(upstream, request.method, request.uri, decode_body(read_body(request)), asking.node)
        except Unscripted as error:
            evidence = [str(self._asked(request)), *error.evidence]
            self._miss_while_recording(request, asking, "the script of gemini_server has no reply", evidence)
        self._keep(request, response)
        if self._replies is not None:
            self._replies.served(request.uri)
        return response if fault is None else deliver(fault, response)

    def _refuse_dummy(self, request: Any) -> None:
        out = "Set GOOGLE_API_KEY, or say what is answered with the fixture gemini_server."
        self._miss_while_recording(request, caller(), "no key to record with", [str(self._asked(request)), out])

    def _miss_while_recording(self, request: Any, asking: Caller, problem: str, evidence: list[str]) -> NoReturn:
        """Raise the miss of a request that nobody answers; the cassette stays as it was."""
        with self._lock:
            begun = self._started.pop(request, None)
            number = begun.number if begun is not None else self._log.next()
            self._pending.pop(number, None)
            miss = word_miss(asking, number, parse_endpoint(request.uri), problem, None, evidence, "", "")
            self._log.missed(miss)
        raise CassetteMiss(miss.text, asking.node, number)

    def _take(self, asked: Request, asking: Caller) -> Recorded | None:
        if self.mode == "adopt" and asked.endpoint is not None:
            return self._recordings.adopt(asked, asking)
        return self._recordings.take(asked, asking)

    def _number(self, asked: Request, entry: Recorded | None) -> int:
        return self._log.next() if entry is None or asked.endpoint is not None else 0

    def _answer(
        self, asked: Request, endpoint: Endpoint, number: int, asking: Caller, entry: Recorded, fault: Fault | None
    ) -> None:
        call = read_call(
            number,
            asking,
            endpoint,
            entry.status,
            entry.reply,
            recorded_at=entry.recorded_at,
            duration=entry.duration,
            at=time.time(),
        )
        altered = call if fault is None else altered_call(fault, call, entry.reply)
        told = dataclasses.replace(altered, body=entry.request.body, reply=entry.number)
        self._log.answered(told, asked.key("body"))

    def _keep(self, request: Any, response: Mapping[str, Any]) -> None:
        """An exchange that was really made: written where it is one with the model or with a host that the user
        names, else only its host is kept."""
        if not self.recording or self._closed:
            return
        host, endpoint = host_of(request.uri), parse_endpoint(request.uri)
        if self._upstream is not None and self._scripted(request):
            host = host_of(self._upstream.url)
        if not self._is_ours(request.uri):
            self._log.pass_by(host)
            return
        with self._lock:
            begun = self._started.pop(request, None) or self._begun_unseen(request)
            self._pending.pop(begun.number, None)
            self._answered.add(begun.asked.key("body"))
        if begun.fault is not None and self._upstream is None:
            deliver(begun.fault, response)
        filtered = self._filters.written(request, response)
        if filtered is None:
            return
        asking, duration = caller(), time.perf_counter() - begun.at
        interaction = dataclasses.replace(
            self._read(*filtered, duration if endpoint is not None else None),
            node=asking.node,
            branch=branch_of(asking),
            teardown=self.after_body,
        )
        if endpoint is None:
            self._others.keep(asking, request.method, request.uri, interaction.status)
        else:
            now = datetime.now(UTC)
            call = read_call(
                begun.number,
                asking,
                endpoint,
                interaction.status,
                interaction.reply,
                recorded_at=interaction.recorded,
                duration=duration,
                at=now.timestamp(),
            )
            call = dataclasses.replace(call, body=canonical_body(interaction.body))
            fault, plain = begun.fault, plain_reply(interaction.reply, interaction.reply_headers)
            altered = call if fault is None else altered_call(fault, call, plain)
            self._log.answered(altered, begun.asked.key("body"), made=call)
            self._purse.settle(call, begun.expected)
        self._recorder.made(
            Kept(begun.number, interaction, asking, begun.at, begun.at + duration), host, model=endpoint is not None
        )

    def _begun_unseen(self, request: Any) -> _Begun:
        """What vcrpy has not asked for before it was sent."""
        return _Begun(self._log.next(), time.perf_counter(), self._asked(request), None, None)

    def _afford(self, asked: Request, entry: Recorded | None, number: int) -> Decimal | None:
        """USD set apart for a call that is to be made; None where nothing limits it. Raises where it would be too
        much."""
        if entry is not None or self._upstream is not None:
            return None
        asking = caller()
        try:
            return self._purse.set_apart(asked, asking, self._log.calls)
        except TooDear as error:
            said = [str(asked), str(error)]
        command = f"{self._command('missing')} --agenttrace-record-limit USD"
        miss = word_miss(asking, number, asked.endpoint, LIMIT, None, said, GO_ON, command)
        self._log.missed(miss)
        raise CassetteMiss(miss.text, asking.node, number)

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

    def _command(self, option: str = "") -> str:
        command = self._opening.command
        return f"{command} --agenttrace-record{f'-{option}' if option else ''}" if command else ""

    def _miss(self, asked: Request, number: int, asking: Caller) -> Miss:
        if self._missing:
            looked = f"looked for: {shown_path(self.path)}"
            return word_miss(
                asking, number, asked.endpoint, "no cassette", None, [str(asked), looked], FIRST, self._command()
            )
        if asked.endpoint is None:
            said = [str(asked), "other requests to this host were recorded, this one was not"]
            return word_miss(asking, number, None, "no recorded reply", None, said, AGAIN, self._command())
        nearest, evidence = self._recordings.nearest(asked)
        said, advice = [str(asked), *evidence], AGAIN if self.gate is None else SHUFFLED
        return word_miss(asking, number, asked.endpoint, "no recorded reply", nearest, said, advice, self._command())

    def _asked(self, request: Any) -> Request:
        filtered = self._filters.asked(request)
        body = read_body(filtered)
        # Recorded without the keys in it.
        body = without_keys(decode_body(body)) if parse_endpoint(request.uri) is None else body
        asked = read_request(filtered.method, filtered.uri, body)
        if self._recordings.holds(asked):
            return asked
        # It may have been recorded with a secret in it.
        scrubber = Scrubber(self._opening.secrets, project_of(filtered.uri))
        uri, clean = scrubber.text(filtered.uri), scrubber.body(body)
        return asked if (uri, clean) == (filtered.uri, body) else read_request(filtered.method, uri, clean)

    def _read(self, request: Any, response: Mapping[str, Any], duration: float | None) -> Interaction:
        return read_exchange(request, response, duration, self._opening.secrets)

    def _refuse_channel(self, host: str) -> NoReturn:
        asking, number = caller(), self._log.next()
        said = [
            f"a channel to {host}",
            'Where the client takes one: transport="rest". ChatGoogleGenerativeAI speaks REST since version 4.',
        ]
        problem = "gRPC cannot be recorded: use the REST transport"
        miss = word_miss(asking, number, None, problem, None, said, "", "")
        self._log.missed(miss)
        raise CassetteMiss(miss.text, asking.node, number)

    def _refuse(self, refusal: Refusal) -> str:
        node = caller().node
        text = f"{node or '(no node)'}: connection to {refusal.text} refused"
        if self._closed or not THREADS.owns_current():
            self._late(f"{text}, late")
            return f"{text}: its test has ended"
        out = f'If it is meant: @pytest.mark.agent_trace(hosts=["{refusal.place}"])'
        only = "only loopback is spoken to" if self.recording else "replay speaks to loopback only"
        self._log.refuse(Refused(node, f"{text}\n  {only}. {out}"))
        return f"{text}: {only}"


def counted_down(left: Counter[Any], key: Any) -> bool:
    """Take one of a key; False where none is left."""
    if not left[key]:
        return False
    left[key] -= 1
    return True


def resumed(before: Sequence[Recorded], aside: Sequence[Recorded]) -> list[Recorded]:
    """A file and the replies that an incomplete recording of it has set aside: these were paid for last, and stand for
    as many older ones to the same request. They are numbered as if they stood behind the file's."""
    newer = Counter(entry.request.key("body") for entry in aside)
    kept = [entry for entry in before if not counted_down(newer, entry.request.key("body"))]
    return [*(dataclasses.replace(entry, number=len(before) + entry.number) for entry in aside), *kept]
