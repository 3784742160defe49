"""Replay and recording of Gemini calls from cassettes; with its rooms the only importer of vcr.

vcrpy patches the HTTP clients; what is asked, matched, served and written is decided here. In replay a model call
without a recorded reply raises `CassetteMiss`; nothing is sent but to loopback, and no model call even there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from pytest_agenttrace.network import Refusal, allowed, guarded
from pytest_agenttrace.replay.cassette import CassetteError, cassette_path
from pytest_agenttrace.replay.clients import patched_clients
from pytest_agenttrace.replay.credentials import dummy_credentials
from pytest_agenttrace.replay.faults import Fault, Unreached
from pytest_agenttrace.replay.grpc_channels import no_model_channels
from pytest_agenttrace.replay.langsmith import quiet_langsmith
from pytest_agenttrace.replay.live import GeminiCassette, Opening, Refused, call_of
from pytest_agenttrace.replay.matching import Match, Unused, read_recordings
from pytest_agenttrace.replay.misses import CassetteMiss, Miss
from pytest_agenttrace.replay.orders import Gate, gated, seed_of
from pytest_agenttrace.replay.others import OtherCall
from pytest_agenttrace.replay.recorder import Mode, Shares, partial_path, prune
from pytest_agenttrace.replay.retries import no_waiting
from pytest_agenttrace.replay.spending import Spending
from pytest_agenttrace.replay.writing import check_writable
from pytest_agenttrace.threads import THREADS, caller

__all__ = [
    "CassetteError",
    "CassetteMiss",
    "Fault",
    "GeminiCassette",
    "Match",
    "Miss",
    "Mode",
    "Opening",
    "OtherCall",
    "Refused",
    "Shares",
    "Spending",
    "Unreached",
    "Unused",
    "call_of",
    "cassette_path",
    "hold_back",
    "open_cassette",
    "partial_path",
    "prune",
    "read_recordings",
]


_REPLAY = Opening()


@contextmanager
def open_cassette(path: Path, opening: Opening = _REPLAY, *, scratch: Path | None = None) -> Iterator[GeminiCassette]:
    """One test's cassette, open for the length of the block; written at its end when recording.

    `scratch` is a folder for what replay must write (by default a temporary one). A missing file is no error here:
    the first model call raises `CassetteMiss`. Raises `CassetteError` for a file that is no cassette, also before
    recording over it, and for a folder that cannot be written.
    """
    cassette = GeminiCassette(Path(path), opening)
    if opening.mode != "replay":
        check_writable(cassette.path)
    try:
        with ExitStack() as stack:
            stack.enter_context(THREADS.following())
            stack.enter_context(quiet_langsmith())
            if not cassette.recording:
                stack.enter_context(guarded(cassette._allows, cassette._refuse))
                cassette._replies = stack.enter_context(no_waiting())
                stack.enter_context(dummy_credentials(scratch))
            stack.enter_context(no_model_channels(cassette._refuse_channel))
            stack.enter_context(patched_clients(cassette, cassette.recording))
            if opening.order is not None and opening.mode == "replay":
                cassette.gate = Gate(seed_of(opening.order))
                stack.enter_context(gated(cassette.gate))
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
