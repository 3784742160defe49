"""Faults a test asks for: what a request is answered instead of its reply, or what becomes of the reply on its way."""

from __future__ import annotations

import difflib
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal, NoReturn

from pytest_agenttrace.calls import Caller, Endpoint
from pytest_agenttrace.replay.delivery import NOTE

__all__ = ["Fault", "Faults", "Unreached"]

Kind = Literal["status", "timeout", "reset", "truncated", "malformed", "empty", "blocked", "finish", "slow"]

LONGEST = 5
# Those that stand for a reply; the others alter the one that comes.
_STANDING = ("status", "timeout", "reset", "malformed", "empty", "blocked")
# About what only a chat has: candidates and a prompt.
_CHAT = ("empty", "blocked", "finish")
# The canonical codes of google.rpc.Code, as the API names them beside a status.
_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# BlockedReason and FinishReason of the Gemini API reference (GenerateContentResponse, Candidate).
_BLOCKED = ("SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY", "JAILBREAK", "MODEL_ARMOR")
_FINISHED = (
    *("MAX_TOKENS", "SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
    *("MALFORMED_FUNCTION_CALL", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_OTHER", "NO_IMAGE"),
    *("IMAGE_RECITATION", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE"),
    *("MALFORMED_RESPONSE",),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a call to a model, for `gemini_cassette.fault`. Made by its class methods.

    `name` is what trees, findings and `Call.injected` say: `503`, `timeout`, `finish MAX_TOKENS`.
    """

    kind: Kind
    name: str
    code: int = 200
    message: str = ""
    retry_after: int | None = None
    reason: str = ""
    seconds: float = 0.0

    @classmethod
    def status(cls, code: int, message: str | None = None, retry_after: int | None = None) -> Fault:
        """An error reply: HTTP `code` 400 to 599, `message`, `retry_after` in seconds as a header."""
        if not _whole(code) or not 400 <= code <= 599:
            _wrong("status", "code", code, "an HTTP status from 400 to 599")
        if message is not None and not isinstance(message, str):
            _wrong("status", "message", message, "a text")
        if retry_after is not None and (not _whole(retry_after) or retry_after < 0):
            _wrong("status", "retry_after", retry_after, "a whole number of seconds from 0")
        said = message if message is not None else f"{_status_name(code)}, injected by a test"
        return cls("status", str(code), code, said, retry_after)

    @classmethod
    def timeout(cls) -> Fault:
        """No reply within the client's timeout. Nobody waits for it."""
        return cls("timeout", "timeout")

    @classmethod
    def reset(cls) -> Fault:
        """The connection is reset before a reply came."""
        return cls("reset", "reset")

    @classmethod
    def truncated(cls) -> Fault:
        """The connection breaks within the reply: in the middle of a stream's last event, or of a plain body."""
        return cls("truncated", "truncated")

    @classmethod
    def malformed(cls) -> Fault:
        """A reply that came whole and is no JSON."""
        return cls("malformed", "malformed")

    @classmethod
    def empty(cls) -> Fault:
        """A reply without candidates."""
        return cls("empty", "empty")

    @classmethod
    def blocked(cls, reason: str = "SAFETY") -> Fault:
        """The prompt is blocked: `promptFeedback.blockReason`, no candidates."""
        return cls("blocked", f"blocked {_known('blocked', reason, _BLOCKED)}", reason=reason)

    @classmethod
    def finish(cls, reason: str) -> Fault:
        """The reply ends with this `finishReason`: MAX_TOKENS cuts its text in the middle, any other takes the content
        of its last piece away."""
        return cls("finish", f"finish {_known('finish', reason, _FINISHED)}", reason=reason)

    @classmethod
    def slow(cls, seconds: float) -> Fault:
        """The reply comes so many seconds late, really waited for, 5 at most; where the client's own timeout is
        shorter, it times out."""
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not number or not math.isfinite(seconds) or not 0 < seconds <= LONGEST:
            _wrong("slow", "seconds", seconds, f"more than 0 and at most {LONGEST}")
        return cls("slow", f"slow {seconds:g} s", seconds=float(seconds))

    @property
    def stands(self) -> bool:
        """Whether it stands for the reply, which is then not asked for."""
        return self.kind in _STANDING

    def fits(self, endpoint: Endpoint) -> bool:
        """Whether it can happen to such a request."""
        return endpoint.chat or self.kind not in _CHAT

    def reply(self, endpoint: Endpoint, prompt_tokens: int | None) -> dict[str, Any] | None:
        """What the request is answered by a fault that stands for the reply, as vcrpy has it; None where nothing comes.
        The prompt's tokens are those of the recorded reply; None where there is none."""
        if self.kind in ("timeout", "reset"):
            return None
        kind = "text/event-stream" if endpoint.sse and self.kind != "status" else "application/json; charset=UTF-8"
        headers = {"content-type": [kind]}
        if self.retry_after is not None:
            headers["retry-after"] = [str(self.retry_after)]
        body = self._body(endpoint, prompt_tokens)
        return {"status": {"code": self.code, "message": _phrase(self.code)}, "headers": headers, "body": body}

    def _body(self, endpoint: Endpoint, prompt_tokens: int | None) -> dict[str, bytes]:
        if self.kind == "status":
            error: dict[str, Any] = {"code": self.code, "message": self.message, "status": _status_name(self.code)}
            if self.retry_after is not None:
                delay = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{self.retry_after}s"}
                error["details"] = [delay]
            return {"string": json.dumps({"error": error}).encode()}
        if self.kind == "malformed":
            text = f'{{"candidates": [{{"content": {{"parts": [{{"text": "{NOTE}'
        else:
            said: dict[str, Any] = {"promptFeedback": {"blockReason": self.reason}} if self.kind == "blocked" else {}
            if prompt_tokens is not None:
                said["usageMetadata"] = {"promptTokenCount": prompt_tokens, "totalTokenCount": prompt_tokens}
            text = json.dumps({**said, "modelVersion": endpoint.model})
            text = f"[{text}]" if endpoint.streaming and not endpoint.sse else text
        return {"string": (f"data: {text}\r\n\r\n" if endpoint.sse else text).encode()}

    def alter(self, body: bytes, status: int) -> bytes:
        """What a client gets of a reply; the same where nothing is to be altered."""
        if self.kind == "truncated":
            return _cut(body)
        if self.kind == "finish" and status < 400:
            return _rewritten(body, self._finish)
        return body

    def _finish(self, chunks: list[dict[str, Any]]) -> None:
        last = next((chunk for chunk in reversed(chunks) if chunk.get("candidates")), chunks[-1])
        for candidate in last.setdefault("candidates", [{"index": 0}]):
            candidate["finishReason"] = self.reason
            if self.reason == "MAX_TOKENS":
                texts = [part for part in candidate.get("content", {}).get("parts", []) if part.get("text")]
                for part in texts[-1:]:
                    part["text"] = part["text"][: len(part["text"]) // 2]
            else:
                candidate.pop("content", None)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(method: str, name: str, value: object, meant: str) -> NoReturn:
    raise ValueError(f"Fault.{method}: {name} is {value!r}; it must be {meant}")


def _known(method: str, reason: str, known: tuple[str, ...]) -> str:
    """A reason of the API. One that is newer than this list passes, where it is no slip of the pen."""
    if not isinstance(reason, str) or not re.fullmatch(r"[A-Z][A-Z_]*", reason) or reason == "STOP":
        _wrong(method, "reason", reason, f"one of the API's: {', '.join(known)}")
    near = difflib.get_close_matches(reason, known, n=1, cutoff=0.8)
    if near and reason not in known:
        raise ValueError(f"Fault.{method}: reason is {reason!r}; did you mean {near[0]!r}?")
    return reason


def _status_name(code: int) -> str:
    return _NAMES.get(code) or _phrase(code).upper().replace(" ", "_") or "UNKNOWN"


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return ""


def _cut(body: bytes) -> bytes:
    """The first half of a body; of a stream all but the second half of its last event."""
    start = body.rstrip().rfind(b"data:") if body.startswith(b"data:") else 0
    return body[: start + (len(body.rstrip()) - start) // 2]


def _rewritten(body: bytes, change: Callable[[list[dict[str, Any]]], None]) -> bytes:
    """A reply whose JSON objects were changed in place; one that holds none stays as it is."""
    try:
        whole = json.loads(body)
    except ValueError:
        return _rewritten_events(body, change)
    chunks = [item for item in (whole if isinstance(whole, list) else [whole]) if isinstance(item, dict)]
    if chunks:
        change(chunks)
    return json.dumps(whole).encode()


def _rewritten_events(body: bytes, change: Callable[[list[dict[str, Any]]], None]) -> bytes:
    lines = re.split(rb"(\r\n|\r|\n)", body)
    found: dict[int, Any] = {}
    for place, line in enumerate(lines):
        if line.startswith(b"data:"):
            try:
                found[place] = json.loads(line[5:])
            except ValueError:
                continue
    chunks = [item for item in found.values() if isinstance(item, dict)]
    if chunks:
        change(chunks)
    for place, item in found.items():
        lines[place] = b"data: " + json.dumps(item).encode()
    return b"".join(lines)


@dataclass(frozen=True, slots=True)
class Unreached:
    """A fault that no call has met as often as it was asked for: whose it was, and what to tell."""

    node: str | None
    text: str


@dataclass(slots=True)
class _Planned:
    fault: Fault
    node: str | None
    call: int | None
    times: int
    met: int = 0

    def meets(self, counted: Mapping[str | None, int]) -> bool:
        """Whether the call just counted is one of its own."""
        number = counted.get(self.node, 0)
        if self.call is not None:
            return self.call <= number < self.call + self.times
        return self.met < self.times

    def unreached(self) -> Unreached:
        where = f"{self.node or 'any node'}, call {self.call}" if self.call is not None else self.node or "any node"
        often = "never reached" if not self.met else f"reached {self.met} of {self.times} times"
        return Unreached(self.node, f"{where}: fault {self.fault.name} was {often}")


class Faults:
    """The faults of one test, and which call meets which. Thread safe."""

    def __init__(self) -> None:
        self._planned: list[_Planned] = []
        self._counted: Counter[str | None] = Counter()
        self._lock = threading.Lock()

    def plan(self, fault: Fault, node: str | None, call: int | None, times: int) -> None:
        """Raises ValueError for what cannot be meant."""
        if not isinstance(fault, Fault):
            raise ValueError(f"fault: {fault!r} is no Fault; make one: Fault.status(503), Fault.timeout(), ...")
        if node is not None and (not isinstance(node, str) or not node):
            raise ValueError(f"fault: node is {node!r}; it must be the name of a node, or None for any")
        if call is not None and (not _whole(call) or call < 1):
            raise ValueError(f"fault: call is {call!r}; it must be a whole number from 1")
        if not _whole(times) or times < 1:
            raise ValueError(f"fault: times is {times!r}; it must be a whole number from 1")
        with self._lock:
            self._planned.append(_Planned(fault, node, call, times))

    def claim(self, asking: Caller, endpoint: Endpoint | None) -> Fault | None:
        """What goes wrong with a call that is being asked. Each call is claimed once, and counted for its node and for
        those around it. Counting tokens, files and caches are no calls to a model."""
        if endpoint is None or endpoint.model is None or endpoint.method == "countTokens":
            return None
        with self._lock:
            names = _nodes(asking)
            self._counted.update([None, *names])
            for planned in self._planned:
                mine = planned.node is None or planned.node in names
                if mine and planned.fault.fits(endpoint) and planned.meets(self._counted):
                    planned.met += 1
                    return planned.fault
        return None

    @property
    def stood(self) -> bool:
        """Whether a fault stood for a reply, so that nobody asked for that."""
        with self._lock:
            return any(planned.met and planned.fault.stands for planned in self._planned)

    def unreached(self) -> tuple[Unreached, ...]:
        """Those that not every call they were meant for has met."""
        with self._lock:
            return tuple(planned.unreached() for planned in self._planned if planned.met < planned.times)


def _nodes(asking: Caller) -> set[str]:
    """The node that asks and those it lies in: LangGraph's namespaces are `outer:id|inner:id`."""
    outer = {part.partition(":")[0] for part in (asking.namespace or "").split("|") if ":" in part}
    return outer | ({asking.node} if asking.node is not None else set())
