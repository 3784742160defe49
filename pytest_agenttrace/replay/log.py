"""What one test has asked, and what became of it: calls, misses, refused connections, in the order of asking."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pytest_agenttrace.calls import Call
from pytest_agenttrace.replay.misses import Miss

__all__ = ["Log", "Refused"]

# Faults that leave a client without an answer although one came.
_BROKEN = ("truncated", "malformed")


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection that replay refused: the node that asked for it, and what to tell."""

    node: str | None
    text: str


class Log:
    """Numbers what is asked, and keeps what came of it. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._calls: list[Call] = []
        # The calls that were really made, by their numbers.
        self._made: dict[int, Call] = {}
        self._misses: list[Miss] = []
        self._refused: dict[Refused, None] = {}
        self._passed_by: dict[str, None] = {}
        # How often in a row an execution has asked the same in vain.
        self._failed: dict[Hashable, int] = {}

    @property
    def calls(self) -> tuple[Call, ...]:
        with self._lock:
            return tuple(sorted(self._calls, key=lambda call: call.index))

    @property
    def made(self) -> tuple[Call, ...]:
        with self._lock:
            return tuple(self._made[index] for index in sorted(self._made))

    @property
    def misses(self) -> tuple[Miss, ...]:
        with self._lock:
            return tuple(sorted(self._misses, key=lambda miss: miss.number))

    @property
    def refused(self) -> tuple[Refused, ...]:
        with self._lock:
            return tuple(self._refused)

    @property
    def passed_by(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(self._passed_by)

    @property
    def count(self) -> int:
        """The number of the last request to the model's API."""
        with self._lock:
            return self._count

    @property
    def asked(self) -> int:
        """How many requests and connections there were, answered or not."""
        with self._lock:
            return self._count + len(self._refused)

    def next(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def answered(self, call: Call, request: Sequence[Hashable], *, made: Call | None = None) -> None:
        """A call that has come to its end, told apart from its repetitions by what it asked. `made` is the same as it
        was before a fault changed it, where it was really made."""
        key = (call.caller.namespace, call.node, *request)
        with self._lock:
            attempt = self._failed.pop(key, 0) + 1
            if not call.answered or call.injected in _BROKEN:
                self._failed[key] = attempt
            self._calls.append(dataclasses.replace(call, attempt=attempt))
            if made is not None:
                self._made[made.index] = dataclasses.replace(made, attempt=attempt)

    def missed(self, miss: Miss) -> None:
        with self._lock:
            self._misses.append(miss)

    def refuse(self, refused: Refused) -> None:
        """Each node and place once."""
        with self._lock:
            self._refused.setdefault(refused)

    def pass_by(self, host: str) -> None:
        with self._lock:
            self._passed_by.setdefault(host)
