"""Recorded exchanges and the requests they answer: what is compared, what is served next, what came nearest.

Host and port are no part of a match, nor is whatever a base URL puts before the API's version.
"""

from __future__ import annotations

import json
import re
import threading
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from pytest_agenttrace.calls import Caller, Endpoint, branch_of
from pytest_agenttrace.ignoring import NOTHING_IGNORED, VOLATILE, Ignore, is_path
from pytest_agenttrace.replay.cassette import (
    CassetteError,
    CassetteFile,
    Interaction,
    load_cassette,
    scrub_uri,
    shown_path,
)
from pytest_agenttrace.replay.mismatch import difference, differing, ranked, shortened
from pytest_agenttrace.wire import canonical_body, decode_body, parse_endpoint

__all__ = ["Match", "Recorded", "Recordings", "Request", "Unused", "api_path", "plain_reply", "read_recordings"]

Match = Literal["body", "order"]

# Headers that no longer hold once a body is decoded and whole.
_TRANSFER_HEADERS = frozenset({"content-encoding", "content-length", "transfer-encoding"})
# Bytes of cassettes kept parsed. A larger one is kept alone.
_KEPT = 128_000_000
# Vertex AI's place of work is no part of a match, as hosts are not.
_PROJECT = re.compile(r"^/projects/[^/]+/locations/[^/]+(?=/)")
# Nor is the API's version: google-genai 2 asks /v1beta, 3 asks /v1, for the same.
_VERSION = re.compile(r"^(/upload)?/v\d\w*(?=/)")
# A reply that still waits is the likelier one among requests that are alike.
_WAITING_BONUS = 0.2
# So many replies to equal requests are looked through for whoever asks.
_COMPARED = 256
NOBODY = Caller()
# So many of the nearest are looked at without dates and ids.
_LIKELY = 10
_NAMED = {"date": "a date", "uuid": "an id"}
_PROMPT = re.compile(r"(contents|content|requests|instances|systemInstruction|system_instruction|tools|toolConfig)\b")


@dataclass(frozen=True, slots=True)
class Unused:
    """A recorded reply nobody asked for. `number` is its place in the file, from 1; `prompt` the start of the last
    message it answers; `node` the one it was recorded for, where the file says. `teardown`: a fixture asked for it
    after the test's body had ended."""

    number: int
    endpoint: Endpoint
    prompt: str
    node: str | None = None
    teardown: bool = False
    # Equal for equal requests.
    request: str = ""

    @property
    def text(self) -> str:
        """`write: reply 3 was never asked for: gemini-2.5-flash:generateContent 'Write 300 words'`."""
        return f"{f'{self.node}: ' if self.node else ''}reply {self.number} was never asked for: {self}"

    def __str__(self) -> str:
        return f"{self.endpoint} {self.prompt!r}"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it is matched: without host, port and API version where it is Gemini's, with all where it is not."""

    method: str
    url: str
    endpoint: Endpoint | None
    place: str
    alt: str
    body: bytes

    # By what was ignored: an entry of a shared cassette is digested once for all tests.
    _digests: dict[Ignore, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def digest(self, ignore: Ignore = NOTHING_IGNORED) -> bytes:
        """What stands for the body without what is ignored, in 16 bytes."""
        found = self._digests.get(ignore)
        if found is None:
            found = self._digests[ignore] = blake2b(ignore.body(self.body), digest_size=16).digest()
        return found

    def key(self, match: Match, ignore: Ignore = NOTHING_IGNORED) -> tuple[str, str, str, bytes]:
        return (self.method, self.place, self.alt, self.digest(ignore) if match == "body" else b"")

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
    interaction: Interaction
    node: str | None = None
    teardown: bool = False

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
        place = _PROJECT.sub("", _VERSION.sub(r"\1", api_path(parts.path)))
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

    with suppress(httpx.DecodingError, zlib.error, ValueError):  # ValueError: an encoding that is no ASCII
        return httpx.Response(200, headers={"content-encoding": ", ".join(encodings)}, content=body).content
    return plain


def unpacked(reply: Mapping[str, Any]) -> dict[str, Any]:
    """A reply as vcrpy has it, with a plain body, and without the headers that told how it was packed."""
    headers = reply["headers"]
    return {
        "status": reply["status"],
        "headers": {name: values for name, values in headers.items() if name.lower() not in _TRANSFER_HEADERS},
        "body": {"string": plain_reply(reply["body"].get("string") or b"", headers)},
    }


def _recording(number: int, interaction: Interaction, file: CassetteFile) -> Recorded:
    return Recorded(
        number,
        read_request(interaction.method, interaction.uri, interaction.body),
        interaction.status,
        interaction.reason,
        {name: values for name, values in interaction.reply_headers.items() if name.lower() not in _TRANSFER_HEADERS},
        plain_reply(interaction.reply, interaction.reply_headers),
        interaction.recorded or file.recorded,
        interaction.duration,
        interaction,
        interaction.node,
        interaction.teardown,
    )


_files: OrderedDict[tuple[str, int, int, int], tuple[Recorded, ...]] = OrderedDict()
_files_lock = threading.Lock()


def read_recordings(path: Path) -> tuple[Recorded, ...] | None:
    """The file's exchanges, parsed once per process and state of the file; None where there is no file."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise CassetteError(f"{shown_path(path)}: cannot be read: {reason}. Name another file.") from None
    key = (str(path.absolute()), stat.st_ino, stat.st_mtime_ns, stat.st_size)
    # Held while a file is read: tests in threads that share it wait for one reading.
    with _files_lock:
        if key not in _files:
            file = load_cassette(path)
            _files[key] = tuple(
                _recording(number, exchange, file) for number, exchange in enumerate(file.interactions, 1)
            )
            while len(_files) > 1 and sum(size for *_, size in _files) > _KEPT:
                _files.popitem(last=False)
        _files.move_to_end(key)
        return _files[key]


class Recordings:
    """A cassette's exchanges and which of them still wait for their request. Thread safe."""

    def __init__(self, entries: Sequence[Recorded], match: Match, ignore: Ignore = NOTHING_IGNORED) -> None:
        self._entries = entries
        self._match = match
        self._ignore = ignore
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str, str, bytes], deque[Recorded]] = {}
        for entry in entries:
            self._waiting.setdefault(self._key(entry.request), deque()).append(entry)

    def _key(self, request: Request) -> tuple[str, str, str, bytes]:
        return request.key(self._match, self._ignore)

    def take(self, asked: Request, asking: Caller = NOBODY) -> Recorded | None:
        """The next reply to a request. Equal requests get theirs in recorded order, and those of several nodes or
        branches each the one that was recorded for it."""
        key = self._key(asked)
        with self._lock:
            queue = self._waiting.get(key)
            if not queue:
                return None
            index = self._next_of(queue, asking)
            found = queue[index]
            del queue[index]
            return found

    def _next_of(self, queue: deque[Recorded], asking: Caller) -> int:
        """The place of the next reply for whoever asks: the first that was recorded for this branch of this node, else
        for this node, else for nobody in particular."""
        if self._match == "order":
            return 0
        branch, best = branch_of(asking), (4, 0)
        for index, entry in enumerate(islice(queue, _COMPARED)):
            if entry.node == asking.node:
                rank = 0 if entry.interaction.branch in (branch, None) else 1
            else:
                rank = 2 if entry.node is None else 3
            if rank == 0:
                return index
            best = min(best, (rank, index))
        return best[1]

    def adopt(self, asked: Request, asking: Caller) -> Recorded | None:
        """The reply that was recorded for a request of this node whose body was another: of several that wait
        (branches of a fan-out) the one whose request is most like it."""
        if (exact := self.take(asked, asking)) is not None:
            return exact
        with self._lock:
            pool = [
                entry
                for entry in self._waiting_entries()
                if entry.request.key("order") == asked.key("order") and entry.node in (asking.node, None)
            ]
            if not pool:
                return None
            chosen = pool[ranked(asked.body, [(entry.request.body, 0.0) for entry in pool])[0]]
            self._waiting[self._key(chosen.request)].remove(chosen)
            return chosen

    def peek(self, asked: Request, asking: Caller = NOBODY) -> Recorded | None:
        """The reply that `take` would give; it goes on waiting."""
        key = self._key(asked)
        with self._lock:
            queue = self._waiting.get(key)
            return queue[self._next_of(queue, asking)] if queue else None

    def holds(self, asked: Request) -> bool:
        return self.peek(asked) is not None

    def _left(self) -> list[Recorded]:
        with self._lock:
            return self._waiting_entries()

    def _waiting_entries(self) -> list[Recorded]:
        return sorted((entry for queue in self._waiting.values() for entry in queue), key=lambda entry: entry.number)

    def unused(self) -> tuple[Unused, ...]:
        """Model calls nobody asked for. Counting tokens, files and caches are bookkeeping and not listed."""
        return tuple(
            Unused(
                entry.number,
                endpoint,
                _prompt(entry.request.body),
                entry.node,
                entry.teardown,
                self._name(entry.request),
            )
            for entry in self._left()
            if (endpoint := entry.request.endpoint) and endpoint.model is not None and endpoint.method != "countTokens"
        )

    def used(self) -> dict[str, int]:
        """How many replies were asked for, by what names their request in `Unused`."""
        left = {entry.number for entry in self._left()}
        return dict(Counter(self._name(entry.request) for entry in self._entries if entry.number not in left))

    def _name(self, request: Request) -> str:
        return blake2b(repr(self._key(request)).encode(), digest_size=8).hexdigest()

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
        replayed = [entry for entry in same if self._key(entry.request) == self._key(asked)]
        if replayed:
            said = f"call {replayed[-1].number}, already replayed"
            return said, [f"nearest recorded: {said}"]
        if (twin := self._twin(asked, calls)) is not None:
            said = f"the same request was recorded {_elsewhere(twin.request, asked)} (call {twin.number})"
            return said, [said]
        near = self._closest(asked, same or calls)
        if not same:
            said = f"call {near[0].number}, recorded for {_unlike(near[0].request, asked)}"
            return said, [f"nearest recorded: {said}"]
        return self._changed(asked, near)

    def _twin(self, asked: Request, calls: Sequence[Recorded]) -> Recorded | None:
        """What was recorded for another model, another way of streaming or another API, and is otherwise the same."""
        twins = [entry for entry in calls if self._alike(entry.request, asked)] if self._match == "body" else []
        waiting = {entry.number for entry in self._left()}
        return next((twin for twin in twins if twin.number in waiting), twins[-1] if twins else None)

    def _alike(self, recorded: Request, asked: Request) -> bool:
        one, other = recorded.endpoint, asked.endpoint
        if one is None or other is None or one.model is None or other.model is None or recorded.method != asked.method:
            return False
        if one.method != other.method and not (one.chat and other.chat):
            return False
        if recorded.digest(self._ignore) == asked.digest(self._ignore):
            return True
        # Embeddings and token counts name the model in the body too.
        mine, theirs = f'"models/{other.model}"'.encode(), f'"models/{one.model}"'.encode()
        return mine in asked.body and recorded.body.replace(theirs, mine) == asked.body

    def _changed(self, asked: Request, near: Sequence[Recorded]) -> tuple[str, list[str]]:
        """Where the nearest request differs; if it is but a date or an id, or one value beside the prompt, also the
        setting that ignores it."""
        kinds, entry = self._volatile(asked, near[:_LIKELY])
        old, new = self._ignore.body(entry.request.body), self._ignore.body(asked.body)
        path, text = difference(old, new) or ("body", "in white space only")
        by = f"only by {' and '.join(_NAMED[kind] for kind in kinds)} " if kinds else ""
        said = f"call {entry.number}, differs {by}at {path}"
        items = kinds or _setting(differing(old, new))
        again = ", ".join(json.dumps(item) for item in self._ignore.also(*items).items)
        hint = [f"If it changes with every run: @pytest.mark.agent_trace(ignore=[{again}])"] if items else []
        return said, [f"nearest recorded: {said}:", f"  {text}", *hint]

    def _volatile(self, asked: Request, near: Sequence[Recorded]) -> tuple[tuple[str, ...], Recorded]:
        """The kinds of volatile text by which alone one of these differs from what is asked, and that one; else the
        nearest."""
        for kinds in (*((kind,) for kind in VOLATILE), VOLATILE):
            ignore = self._ignore.also(*kinds)
            for entry in near:
                if entry.request.digest(ignore) == asked.digest(ignore):
                    return kinds, entry
        return (), near[0]

    def _closest(self, asked: Request, pool: Sequence[Recorded]) -> list[Recorded]:
        """The nearest first."""
        waiting = {entry.number for entry in self._left()}
        chances = [(entry.request.body, _WAITING_BONUS if entry.number in waiting else 0.0) for entry in pool]
        return [pool[index] for index in ranked(asked.body, chances)]


def _setting(path: str | None) -> tuple[str, ...]:
    """A path that a setting may name: a value beside what is asked for."""
    return () if path is None or not is_path(path) or _PROMPT.match(path) else (path,)


def _elsewhere(recorded: Request, asked: Request) -> str:
    """How a request was recorded that is otherwise the same: `for gemini-2.5-pro, without streaming`."""
    one, other = recorded.endpoint, asked.endpoint
    if one is None or other is None:
        return f"for {recorded.place}"
    how = [f"for {one.model}"] if one.model != other.model else []
    if one.streaming != other.streaming:
        how.append("as a stream" if one.streaming else "without streaming")
    elif recorded.alt != asked.alt:
        how.append(f"with alt={recorded.alt}" if recorded.alt else f"without alt={asked.alt}")
    if one.vertex != other.vertex:
        how.append("from Vertex AI" if one.vertex else "from the Gemini developer API")
    return ", ".join(how) or f"for {recorded.place}"


def _prompt(body: bytes) -> str:
    """The start of the last message of a request; of a tool's reply, its name."""
    with suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
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
