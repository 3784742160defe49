"""Recorded exchanges and the requests they answer: what is compared, what is served next, what came nearest.

Host and port are no part of a match, nor is whatever a base URL puts before the API's version.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from pytest_agenttrace.calls import Endpoint
from pytest_agenttrace.cassette import (
    CassetteError,
    CassetteFile,
    Interaction,
    load_cassette,
    reply_time,
    scrub_uri,
    shown_path,
)
from pytest_agenttrace.mismatch import closest, difference, shortened
from pytest_agenttrace.wire import canonical_body, decode_body, parse_endpoint

__all__ = ["Match", "Recorded", "Recordings", "Request", "Unused", "api_path", "plain_reply", "read_recordings"]

Match = Literal["body", "order"]

# Headers that no longer hold once a body is decoded and whole.
_TRANSFER_HEADERS = frozenset({"content-encoding", "content-length", "transfer-encoding"})
_CACHED_FILES = 32
# A reply that still waits is the likelier one among requests that are alike.
_WAITING_BONUS = 0.2


@dataclass(frozen=True, slots=True)
class Unused:
    """A recorded reply nobody asked for. `number` is its place in the file, from 1; `prompt` the start of the last
    message it answers."""

    number: int
    endpoint: Endpoint
    prompt: str

    def __str__(self) -> str:
        return f"call {self.number}: {self.endpoint} {self.prompt!r}"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it is matched: without host and port where it is Gemini's, with them where it is not."""

    method: str
    url: str
    endpoint: Endpoint | None
    place: str
    alt: str
    body: bytes

    def key(self, match: Match) -> tuple[str, str, str, bytes]:
        return (self.method, self.place, self.alt, self.body if match == "body" else b"")

    def __str__(self) -> str:
        return f"{self.method} {self.endpoint or scrub_uri(self.url)}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded exchange, decoded. `number` is its place in the file, from 1."""

    number: int
    request: Request
    status: int
    reason: str
    headers: Mapping[str, Sequence[str]]
    reply: bytes
    recorded_at: datetime | None
    duration: float | None

    def response(self) -> dict[str, Any]:
        """In vcrpy's shape, and new each time: its stubs change what they are given."""
        return {
            "status": {"code": self.status, "message": self.reason.encode("ascii", "ignore").decode()},
            "headers": {name: list(values) for name, values in self.headers.items()},
            "body": {"string": self.reply},
        }


def read_request(method: str, url: str, body: bytes) -> Request:
    endpoint, parts = parse_endpoint(url), urlsplit(url)
    if endpoint is None:
        bare = urlsplit(scrub_uri(url))
        place = f"{bare.netloc}{bare.path}?{bare.query}"
    else:
        place = api_path(parts.path)
    return Request(
        method.upper(), url, endpoint, place, (parse_qs(parts.query).get("alt") or [""])[0], canonical_body(body)
    )


def api_path(path: str) -> str:
    """The path from the API's version on: a base URL may have a path of its own."""
    segments = path.split("/")
    for index, segment in enumerate(segments):
        if segment[:1] == "v" and segment[1:2].isdigit():
            start = index - 1 if index and segments[index - 1] == "upload" else index
            return "/" + "/".join(segments[start:])
    return path


def plain_reply(body: bytes, headers: Mapping[str, Sequence[str]]) -> bytes:
    """A reply as plain bytes. Real recordings have plain bodies under a gzip header too."""
    plain = decode_body(body)
    encodings = [
        value.lower() for name, values in headers.items() if name.lower() == "content-encoding" for value in values
    ]
    if plain is not body or not body or not set(encodings) - {"gzip", "identity"}:
        return plain
    import httpx

    with suppress(httpx.DecodingError, zlib.error):
        return httpx.Response(200, headers={"content-encoding": ", ".join(encodings)}, content=body).content
    return plain


def _recording(number: int, interaction: Interaction, file: CassetteFile) -> Recorded:
    return Recorded(
        number,
        read_request(interaction.method, interaction.uri, interaction.body),
        interaction.status,
        interaction.reason,
        {name: values for name, values in interaction.reply_headers.items() if name.lower() not in _TRANSFER_HEADERS},
        plain_reply(interaction.reply, interaction.reply_headers),
        reply_time(interaction.reply_headers) or file.recorded,
        interaction.duration,
    )


_files: OrderedDict[tuple[str, int, int], tuple[Recorded, ...]] = OrderedDict()
_files_lock = threading.Lock()


def read_recordings(path: Path) -> tuple[Recorded, ...] | None:
    """The file's exchanges, parsed once per process and state of the file; None where there is no file."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CassetteError(f"{shown_path(path)}: cannot be read: {error.strerror}. Name another file.") from None
    key = (str(path.absolute()), stat.st_mtime_ns, stat.st_size)
    with _files_lock:
        if key in _files:
            _files.move_to_end(key)
            return _files[key]
    file = load_cassette(path)
    entries = tuple(_recording(number, interaction, file) for number, interaction in enumerate(file.interactions, 1))
    with _files_lock:
        _files[key] = entries
        while len(_files) > _CACHED_FILES:
            _files.popitem(last=False)
    return entries


class Recordings:
    """A cassette's exchanges and which of them still wait for their request. Thread safe."""

    def __init__(self, entries: Sequence[Recorded], match: Match) -> None:
        self._entries = entries
        self._match = match
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str, str, bytes], deque[Recorded]] = {}
        for entry in entries:
            self._waiting.setdefault(entry.request.key(match), deque()).append(entry)

    def take(self, asked: Request) -> Recorded | None:
        """The next reply to a request; equal requests get theirs in recorded order."""
        with self._lock:
            queue = self._waiting.get(asked.key(self._match))
            return queue.popleft() if queue else None

    def holds(self, asked: Request) -> bool:
        with self._lock:
            return bool(self._waiting.get(asked.key(self._match)))

    def _left(self) -> list[Recorded]:
        with self._lock:
            return sorted(
                (entry for queue in self._waiting.values() for entry in queue), key=lambda entry: entry.number
            )

    def unused(self) -> tuple[Unused, ...]:
        """Model calls nobody asked for. Counting tokens, files and caches are bookkeeping and not listed."""
        return tuple(
            Unused(entry.number, endpoint, _prompt(entry.request.body))
            for entry in self._left()
            if (endpoint := entry.request.endpoint) and endpoint.model is not None and endpoint.method != "countTokens"
        )

    def nearest(self, asked: Request) -> tuple[str | None, list[str]]:
        """What was recorded instead of a request that has no reply, and the lines of a message that say so."""
        calls = [entry for entry in self._entries if entry.request.endpoint is not None]
        if not calls:
            return None, ["the cassette holds no calls"]
        same = [entry for entry in calls if entry.request.key("order") == asked.key("order")]
        if same and self._match == "order":
            count = f"{len(same)} {'reply' if len(same) == 1 else 'replies'}"
            said = f"{count} recorded for {asked.place}, all replayed"
            return said, [f'{said} (match="order")']
        entry = self._closest(asked, same or calls)
        if not same:
            said = f"call {entry.number}, recorded for {_unlike(entry.request, asked)}"
            return said, [f"nearest recorded: {said}"]
        found = difference(entry.request.body, asked.body)
        if found is None:
            said = f"call {entry.number}, already replayed"
            return said, [f"nearest recorded: {said}"]
        said = f"call {entry.number}, differs at {found[0]}"
        return said, [f"nearest recorded: {said}:", f"  {found[1]}"]

    def _closest(self, asked: Request, pool: Sequence[Recorded]) -> Recorded:
        equal = [entry for entry in pool if entry.request.body == asked.body]
        if equal:
            return equal[-1]
        waiting = {entry.number for entry in self._left()}
        chances = [(entry.request.body, _WAITING_BONUS if entry.number in waiting else 0.0) for entry in pool]
        return pool[closest(asked.body, chances)]


def _prompt(body: bytes) -> str:
    """The start of the last message of a request; of a tool's reply, its name."""
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        asked = json.loads(body)
        asked = asked["requests"][-1] if "requests" in asked else asked
        last = asked["content"] if "content" in asked else asked["contents"][-1]
        parts = last["parts"]
        texts = [part["text"] for part in parts if part.get("text")]
        names = [f"reply of {part['functionResponse']['name']}" for part in parts if "functionResponse" in part]
        return shortened(" ".join(texts or names))
    return shortened(body.decode("utf-8", "replace"))


def _unlike(recorded: Request, asked: Request) -> str:
    """What a request was recorded for, in the shortest words that tell it from the one asked."""
    if str(recorded.endpoint) != str(asked.endpoint):
        return str(recorded.endpoint)
    if recorded.place != asked.place:
        return recorded.place
    return f"{recorded.method} {recorded.place}" + (f"?alt={recorded.alt}" if recorded.alt else "")
