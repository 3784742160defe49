"""The cassette file: its name, what it holds, and loading it with checks.

A cassette is YAML in vcrpy's form (`version: 1`, `interactions`) with a top-level mapping `agenttrace` beside it:
`format`, `recorded` (UTC), `models`, `packages`, `origin`. An interaction may carry
`agenttrace: {node, branch, recorded, duration, teardown}`. Knows nothing of vcrpy itself, of Gemini or of pytest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pytest_agenttrace.replay.reading import CassetteError, Checked, kind_of, read_document, shown_path

__all__ = [
    "CassetteError",
    "CassetteFile",
    "Interaction",
    "cassette_path",
    "load_cassette",
    "reply_time",
    "scrub_uri",
    "shown_path",
]

VERSION = 1
FORMAT = 1
SECRET_PARAMETERS = frozenset(
    {"key", "access_token", "api_key", "api-key", "apikey", "subscription-key", "token", "client_secret", "password"}
)

_NAME_LIMIT = 120
# Seconds a call may have taken: a day. More is a slip of the pen.
_LONGEST = 86_400
_ILLEGAL = re.compile(r"[^A-Za-z0-9._=+,@ ()\[\]-]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Interaction:
    """One recorded exchange. `body` and `reply` are as stored, still compressed where the file has them so.

    `recorded` is when, in UTC, to the second; `duration` how long it took, in seconds; `node` the one that asked;
    `branch` is its place among branches beside it, where several asked the same; `teardown` says that a fixture did,
    after the test's body had ended.
    """

    method: str
    uri: str
    body: bytes
    status: int
    reply: bytes
    reason: str = ""
    request_headers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reply_headers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    duration: float | None = None
    node: str | None = None
    branch: str | None = None
    teardown: bool = False
    recorded: datetime | None = None


@dataclass(frozen=True, slots=True)
class CassetteFile:
    """What a file holds. `recorded` is its own word on when it was recorded, in UTC; `meta` all it says of itself."""

    interactions: tuple[Interaction, ...]
    recorded: datetime | None = None
    origin: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


# Names


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _legal(name: str, *, hashed: bool = False) -> str:
    """A file name that Windows and macOS take; whatever loses distinctness on the way gets a hash of the original."""
    legal = _ILLEGAL.sub("_", name).strip(" ").rstrip(". ")
    if not legal or _RESERVED.match(legal):
        legal = f"_{legal}"
    if legal == name and len(legal) <= _NAME_LIMIT and not hashed:
        return legal
    digest = _digest(name)
    return f"{legal[: _NAME_LIMIT - len(digest) - 1]}-{digest}"


def cassette_path(root: Path, folder: str, module: str, name: str) -> Path:
    """`<root>/<folder>/<module path without .py>/<Class.test[param]>.yaml`.

    `module` is the test module's path relative to `root`. Plain names stay plain. A name gets a hash where characters
    were replaced, where it was shortened, and where a test or a parameter has an upper-case letter: `[a]` and `[A]`
    would be one file on Windows and macOS. Classes, in capitals by custom, are left as they are.
    """
    parts = [part for part in re.split(r"[/\\]", module.removesuffix(".py")) if part not in ("", ".")]
    head, bracket, parameter = name.partition("[")
    test = head.rpartition(".")[2] + bracket + parameter
    stem = _legal(name, hashed=test != test.lower())
    return root.joinpath(folder, *map(_legal, parts), f"{stem}.yaml")


# Loading


def _headers(found: Checked | None) -> dict[str, list[str]]:
    if found is None or found.value is None:
        return {}
    return {name: _values(value) for name, value in found.items()}


def _values(found: Checked) -> list[str]:
    if not isinstance(found.value, list):
        return [found.words()]
    return [Checked(found.path, found.node, value, found.name).words() for value in found.value]


def _uri(found: Checked) -> str:
    text = found.text()
    try:
        parts = urlsplit(text)
        _ = parts.hostname, parts.port
    except ValueError as error:
        found.fail(f"{found.name} is no URL: {error}")
    return text


def _status(found: Checked) -> int:
    code: Any = found.value
    if not isinstance(code, int) or isinstance(code, bool):
        found.fail(f"{found.name} is {kind_of(code)}, not an HTTP status")
    if not 100 <= code <= 999:
        found.fail(f"{found.name} is {code}, not an HTTP status: 100 to 999")
    return code


def _seconds(found: Checked | None) -> float | None:
    if found is None or found.value is None:
        return None
    value: Any = found.value
    if not isinstance(value, int | float) or isinstance(value, bool):
        found.fail(f"{found.name} is {kind_of(value)}, not a number of seconds")
    if not 0 <= value < _LONGEST:
        found.fail(f"{found.name} is {value}, not a number of seconds")
    return float(value)


def _interaction(found: Checked) -> Interaction:
    request, response = found.mapping().need("request").mapping(), found.need("response").mapping()
    status = response.need("status").mapping()
    body, reply, extra = request.get("body"), response.need("body"), found.get("agenttrace")
    string = reply.get("string") if reply.value is not None else None
    if string is None and reply.value:
        reply.fail(f"{reply.name} has no 'string'")
    reason = status.get("message")
    reply_headers = _headers(response.get("headers"))
    when = _recorded(extra.mapping().get("recorded")) if extra is not None else None
    return Interaction(
        method=request.need("method").text().upper(),
        uri=_uri(request.need("uri")),
        body=body.body() if body is not None else b"",
        status=_status(status.need("code")),
        reply=string.body() if string is not None else b"",
        reason=reason.words() if reason is not None else "",
        request_headers=_headers(request.get("headers")),
        reply_headers=reply_headers,
        recorded=when or reply_time(reply_headers),
        duration=_seconds(extra.mapping().get("duration")) if extra is not None else None,
        node=node.text() if extra is not None and (node := extra.get("node")) is not None else None,
        branch=branch.text() if extra is not None and (branch := extra.get("branch")) is not None else None,
        teardown=extra is not None and (flag := extra.get("teardown")) is not None and flag.value is True,
    )


def _version(found: Checked | None, known: int, what: str) -> None:
    if found is not None and (isinstance(found.value, bool) or found.value != known):
        out = "Upgrade pytest-agenttrace, or record again with --agenttrace-record into another file."
        value = repr(found.value) if type(found.value) in (int, float, str) else kind_of(found.value)
        found.fail(f"{what} {value} of the cassette format; this version reads {known}", out)


def _recorded(found: Checked | None) -> datetime | None:
    if found is None or found.value is None:
        return None
    value = found.value
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            found.fail(f"{found.name} is {value!r}, not a date and time")
    if not isinstance(value, datetime):
        found.fail(f"{found.name} is {kind_of(value)}, not a date and time")
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def load_cassette(path: Path) -> CassetteFile:
    """Read and check a cassette. Raises `CassetteError` for whatever is not one, also for a missing file. Keys it does
    not know are passed over."""
    interactions: list[Interaction] = []
    document = read_document(path, "interactions", lambda found: interactions.append(_interaction(found)))
    root = document.root
    _version(root.get("version"), VERSION, "version")
    extra = root.get("agenttrace")
    if extra is not None:
        _version(extra.mapping().get("format"), FORMAT, "agenttrace.format")
    if document.problem is not None:
        raise document.problem
    if (listed := root.need("interactions")).value != []:
        listed.fail(f"interactions is {kind_of(listed.value)}, not a list")
    recorded, origin = (extra.get(key) if extra is not None else None for key in ("recorded", "origin"))
    said = origin.value if origin is not None and isinstance(origin.value, str) else None
    meta = dict(extra.value) if extra is not None else {}
    return CassetteFile(tuple(interactions), _recorded(recorded), said, meta)


def reply_time(headers: Mapping[str, Sequence[str]]) -> datetime | None:
    """The reply's `Date` header, in UTC."""
    for name, values in headers.items():
        if name.lower() == "date" and values:
            with suppress(ValueError, TypeError):
                return parsedate_to_datetime(values[0]).astimezone(UTC)
    return None


def scrub_uri(uri: str) -> str:
    """A URI without keys and credentials: no user, no `key=`, no `access_token=`."""
    parts = urlsplit(uri)
    query = parts.query
    pairs = parse_qsl(query, keep_blank_values=True)
    if any(name.lower() in SECRET_PARAMETERS for name, _ in pairs):
        query = urlencode([pair for pair in pairs if pair[0].lower() not in SECRET_PARAMETERS], quote_via=quote)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
