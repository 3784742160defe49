"""One test's open cassette: what it tells of the test's calls, and what becomes of its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_agenttrace.calls import Call
from pytest_agenttrace.environment import dummy_key
from pytest_agenttrace.network import guarded
from pytest_agenttrace.replay.answering import Answering, Opening, counted_down
from pytest_agenttrace.replay.arranging import key_of
from pytest_agenttrace.replay.cassette import shown_path
from pytest_agenttrace.replay.credentials import dummy_credentials
from pytest_agenttrace.replay.faults import Fault, Unreached
from pytest_agenttrace.replay.injecting import call_of
from pytest_agenttrace.replay.log import Refused
from pytest_agenttrace.replay.matching import (
    Recordings,
    Unused,
)
from pytest_agenttrace.replay.misses import Miss
from pytest_agenttrace.replay.others import OtherCall
from pytest_agenttrace.replay.recorder import partial_path
from pytest_agenttrace.replay.retries import no_waiting
from pytest_agenttrace.replay.upstream import Upstream, check_replaceable

__all__ = ["GeminiCassette", "Opening", "Refused", "call_of"]


class GeminiCassette(Answering):
    """One test's open cassette: what was asked, answered, missed and recorded so far. Thread safe."""

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every answered exchange with the Gemini API, in the order they were asked."""
        return self._log.calls

    @property
    def age(self) -> int | None:
        """Whole days since the oldest of the recorded replies; None where no reply has a date."""
        times = [entry.recorded_at for entry in self.before if entry.recorded_at is not None]
        return (datetime.now(UTC) - min(times)).days if times else None

    @property
    def made(self) -> tuple[Call, ...]:
        """The calls that were really made while recording, as they were answered."""
        return self._log.made

    @property
    def adopted(self) -> tuple[tuple[int, str, str], ...]:
        """The replies whose request was rewritten, by their numbers in the file; what changed in it, in full and
        without the words round it."""
        return self._adopter.changes

    @property
    def others(self) -> tuple[OtherCall, ...]:
        """Every exchange with a host that is none of the model's, recorded or replayed, in the order of the replies."""
        return self._others.seen

    @property
    def misses(self) -> tuple[Miss, ...]:
        """Every request without a recorded reply, whatever became of its exception."""
        return self._log.misses

    @property
    def unused(self) -> tuple[Unused, ...]:
        """Recorded replies nobody asked for; while recording, those are dropped and not listed. Nor are counting
        tokens, files and caches: they are bookkeeping; nor what a fault stood for."""
        if self.recording:
            return ()
        with self._lock:
            return tuple(reply for reply in self._recordings.unused() if reply.number not in self._spared)

    def fault(self, fault: Fault, *, node: str | None = None, call: int | None = None, times: int = 1) -> None:
        """Let calls to a model go wrong, in replay and while recording alike: the next `times` calls of a node (None:
        of any), or those from its `call`-th of this test on. Nothing of it is sent or written. Raises ValueError for
        what cannot be meant; a fault that no call meets fails the test (`unused`)."""
        self._faults.plan(fault, node, call, times)

    @property
    def unreached(self) -> tuple[Unreached, ...]:
        """Faults that not every call they were meant for has met."""
        return self._faults.unreached()

    @property
    def unused_script(self) -> tuple[tuple[str | None, str], ...]:
        """Replies of the script it is recorded from that nobody asked for: the node they are for, and what to tell.
        None are told where a fault stood for one of them."""
        return tuple(self._upstream.unused) if self._upstream is not None and not self._faults.stood else ()

    @property
    def used(self) -> dict[str, int]:
        """How many recorded replies were asked for, by what names their request in `unused`."""
        return self._recordings.used()

    @property
    def passed_by(self) -> tuple[str, ...]:
        """Hosts that were spoken to while recording and are none of the model's: not written."""
        return self._log.passed_by

    @property
    def refused(self) -> tuple[Refused, ...]:
        """Connections that replay has refused, each node and place once, whatever became of the error."""
        return self._log.refused

    @property
    def asked(self) -> int:
        """How many requests and connections there were, answered or not."""
        return self._log.asked

    def __repr__(self) -> str:
        state = {"replay": "replaying", "adopt": "adopting"}.get(self.mode, "recording")
        return f"<GeminiCassette {shown_path(self.path)}: {state}, {len(self.calls)} calls>"

    def place(self, places: Mapping[str, tuple[int | None, tuple[Any, ...]]]) -> None:
        """Where LangGraph ran the executions of this test, by their namespaces: step and path. Calls of subgraphs know
        their own graph's only, and branches stand in the file by the outer one's."""
        self._recorder.places = dict(places)

    def before_and_now(self) -> tuple[list[Call], list[Call]]:
        """The calls that this recording replaces, and those that stand for them. Of a cassette that others share only
        what was asked again is known to be this test's."""
        old = [entry for entry in self.before if entry.request.endpoint is not None]
        if self._opening.shares is None:
            return list(map(call_of, old)), list(self.calls)
        again = {kept.number: key_of(kept.interaction) for kept in self._recorder.kept}
        asked, there = Counter(again.values()), Counter(entry.request.key("body") for entry in old)
        mine = [entry for entry in old if counted_down(asked, entry.request.key("body"))]
        now = [call for call in self.calls if call.index in again and counted_down(there, again[call.index])]
        return list(map(call_of, mine)), now

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
        # A script costs nothing, and goes on only where it is asked.
        self._recordings = Recordings((), self._opening.match, self._opening.ignore)

    def give_up(self, *, stopped: bool = False) -> str | None:
        """The test's body ended by an error that is no failed assertion: what it has recorded is not all it would have
        asked for, and no reason to put a whole cassette aside. Where it was `stopped` from outside it is no cassette
        either where there was none. Says what becomes of it."""
        self._given_up = True
        self._stopped = self._stopped or stopped
        return self.incomplete

    @property
    def incomplete(self) -> str | None:
        """What became of a recording that is not whole; None of one that is, and in replay."""
        if not self.recording:
            return None
        with self._lock:
            unanswered = [number for number, asked in self._pending.items() if asked.key("body") not in self._answered]
        if not unanswered and not self.misses and not (self._given_up and (self._stopped or not self._missing)):
            return None
        why = f": no reply came to call {', '.join(map(str, unanswered))}" if unanswered else ""
        shown = shown_path(self.path)
        lines = [f"the recording is incomplete{why}: {shown} is {'not written' if self._missing else 'left as it was'}"]
        if anew := self._recorder.anew:
            replies = "its reply lies" if anew == 1 else f"its {anew} replies lie"
            aside = shown_path(partial_path(self.path))
            lines.append(f"  {replies} in {aside}: --agenttrace-record-missing goes on from there")
        return "\n".join([*lines, *self._recorder.trouble])

    def _close(self) -> None:
        self._closed = True
        if self.recording:
            self._recorder.close(complete=self.incomplete is None)
        elif self.mode == "adopt" and not self.misses and not self._given_up:
            self._adopter.close()
