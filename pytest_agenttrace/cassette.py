"""The cassette file: names, loading with checks, writing without secrets.

A cassette is a vcrpy YAML file (`version: 1`, `interactions`) with a top-level mapping `agenttrace` beside it that
vcrpy ignores: `format`, `recorded` (UTC), `models`, `packages`, `origin`. An interaction may carry
`agenttrace: {duration: seconds}`. Knows nothing of vcrpy itself, of Gemini or of pytest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import yaml

__all__ = [
    "CassetteError",
    "CassetteFile",
    "Interaction",
    "cassette_path",
    "check_writable",
    "load_cassette",
    "reply_time",
    "save_cassette",
    "scrub_uri",
    "shown_path",
]

VERSION = 1
FORMAT = 1
# Headers that are written; all others stay out, keys and cookies among them.
REQUEST_HEADERS = frozenset({"content-type"})
REPLY_HEADERS = frozenset({"content-type", "date", "retry-after"})
SECRET_PARAMETERS = frozenset({"key", "access_token"})

_RESTORE = "Restore the file, or delete it and record again with --agenttrace-record."
_NAME_LIMIT = 120
# Values in a body that is stored as an object; real ones hold some thousands.
_BODY_LIMIT = 1_000_000
_ILLEGAL = re.compile(r"[^A-Za-z0-9._=+,@ ()\[\]-]")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)", re.IGNORECASE)
# JSON may hold these as they are, YAML would fold or refuse them.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")


class CassetteError(Exception):
    """A cassette that cannot be used; the message starts with `path`, `path:line` or `path:line:column`."""


@dataclass(frozen=True, slots=True)
class Interaction:
    """One recorded exchange. `body` and `reply` are as stored, still compressed where the file has them so."""

    method: str
    uri: str
    body: bytes
    status: int
    reply: bytes
    reason: str = ""
    request_headers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reply_headers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class CassetteFile:
    """What a file holds. `recorded` is its own word on when it was recorded, in UTC."""

    interactions: tuple[Interaction, ...]
    recorded: datetime | None = None
    origin: str | None = None


def shown_path(path: Path) -> str:
    """The path as a user would type it: relative to the working directory where it lies below it."""
    with suppress(ValueError, OSError):
        return path.absolute().relative_to(Path.cwd()).as_posix()
    return str(path)


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


def _fail(
    path: Path, problem: str, line: int | None = None, column: int | None = None, out: str = _RESTORE
) -> NoReturn:
    place = "".join(f":{number}" for number in (line, column) if number is not None)
    raise CassetteError(f"{shown_path(path)}{place}: {problem}. {out}") from None


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        _fail(path, "a directory, not a cassette", out="Name a file, or move the directory away.")
    except OSError as error:
        _fail(path, f"cannot be read: {error.strerror or error}", out="Make it readable, or name another file.")
    if not data.strip():
        _fail(path, "an empty file, not a cassette")
    if (nul := data.find(b"\0")) >= 0:
        _fail(path, f"not text: NUL at byte {nul}", data.count(b"\n", 0, nul) + 1)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _fail(path, f"not UTF-8 text: 0x{data[error.start]:02x} at byte {error.start}", line)


class _Checked:
    """A parsed value beside its YAML node, so that a complaint can name the line."""

    def __init__(self, path: Path, node: Any, value: Any, name: str) -> None:
        self.path, self.node, self.value, self.name = path, node, value, name

    def fail(self, problem: str, out: str = _RESTORE) -> NoReturn:
        _fail(self.path, problem, self.node.start_mark.line + 1, out=out)

    def mapping(self) -> _Checked:
        if not isinstance(self.value, dict):
            self.fail(f"{self.name} is {_kind(self.value)}, not a mapping")
        return self

    def get(self, key: str) -> _Checked | None:
        if key not in self.mapping().value:
            return None
        # An alias or a merge key has no node of its own here: the parent's line is near enough.
        node = next((v for k, v in self.node.value if getattr(k, "value", None) == key), self.node)
        return _Checked(self.path, node, self.value[key], f"{self.name}.{key}" if self.name else key)

    def need(self, key: str) -> _Checked:
        found = self.get(key)
        if found is None:
            self.fail(f"{self.name or 'the cassette'} has no {key!r}")
        return found

    def text(self) -> str:
        if not isinstance(self.value, str):
            self.fail(f"{self.name} is {_kind(self.value)}, not text")
        return self.value

    def body(self) -> bytes:
        """Text, bytes or nothing; an object is what vcrpy's stubs keep of `json=`."""
        value = self.value
        if value is None or isinstance(value, bytes):
            return value or b""
        if isinstance(value, dict | list):
            if _size(value, {}) > _BODY_LIMIT:
                self.fail(f"{self.name} unfolds to more than {_BODY_LIMIT:,} values: its aliases repeat each other")
            try:
                value = json.dumps(value)
            except (TypeError, ValueError, RecursionError):
                self.fail(f"{self.name} holds what JSON cannot")
        if not isinstance(value, str):
            self.fail(f"{self.name} is {_kind(value)}, not text")
        return value.encode("utf-8", "surrogatepass")


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values an object holds once its aliases are written out; each is counted once."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = 0  # an alias of itself: json refuses it
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


def _kind(value: Any) -> str:
    names: dict[type, str] = {dict: "a mapping", list: "a list", str: "text", bytes: "bytes", type(None): "nothing"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _parse(path: Path, text: str) -> _Checked:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        node = loader.get_single_node()
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        _fail(path, f"not a YAML cassette: {error.problem or error.context}", *place)
    except yaml.reader.ReaderError as error:
        _fail(path, f"not a YAML cassette: {error.reason}", text.count("\n", 0, error.position) + 1)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: a plain scalar that looks like a date and is none, `2026-13-45`.
        _fail(path, f"not a YAML cassette: {str(error).splitlines()[0]}")
    finally:
        loader.dispose()
    if not isinstance(value, dict):
        _fail(path, f"{_kind(value)}, not a cassette", 1)
    return _Checked(path, node, value, "")


def _headers(found: _Checked | None) -> dict[str, list[str]]:
    values = found.mapping().value if found is not None and found.value is not None else {}
    return {str(k): [str(item) for item in (v if isinstance(v, list) else [v])] for k, v in values.items()}


def _interaction(found: _Checked) -> Interaction:
    request, response = found.mapping().need("request").mapping(), found.need("response").mapping()
    status = response.need("status")
    code = status.mapping().need("code")
    if not isinstance(code.value, int):
        code.fail(f"{code.name} is no number")
    body, reply, extra = request.get("body"), response.need("body"), found.get("agenttrace")
    string = reply.get("string") if reply.value is not None else None
    if string is None and reply.value:
        reply.fail(f"{reply.name} has no 'string'")
    duration = extra.mapping().value.get("duration") if extra is not None else None
    return Interaction(
        method=request.need("method").text().upper(),
        uri=request.need("uri").text(),
        body=body.body() if body is not None else b"",
        status=code.value,
        reply=string.body() if string is not None else b"",
        reason=str(status.value.get("message") or ""),
        request_headers=_headers(request.get("headers")),
        reply_headers=_headers(response.get("headers")),
        duration=float(duration) if isinstance(duration, int | float) else None,
    )


def _version(found: _Checked | None, known: int, what: str) -> None:
    if found is not None and found.value != known:
        out = "Upgrade pytest-agenttrace, or record again with --agenttrace-record into another file."
        found.fail(f"{what} {found.value!r} of the cassette format; this version reads {known}", out)


def _recorded(value: Any) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=UTC)


def load_cassette(path: Path) -> CassetteFile:
    """Read and check a cassette. Raises `CassetteError` for whatever is not one, also for a missing file."""
    root = _parse(path, _read_text(path))
    _version(root.get("version"), VERSION, "version")
    extra = root.get("agenttrace")
    meta = extra.mapping().value if extra is not None else {}
    if extra is not None:
        _version(extra.get("format"), FORMAT, "agenttrace.format")
    listed = root.need("interactions")
    if not isinstance(listed.value, list):
        listed.fail(f"interactions is {_kind(listed.value)}, not a list")
    interactions = tuple(
        _interaction(_Checked(path, node, value, f"interaction {number}"))
        for number, (node, value) in enumerate(zip(listed.node.value, listed.value, strict=True), 1)
    )
    origin = meta.get("origin")
    return CassetteFile(interactions, _recorded(meta.get("recorded")), origin if isinstance(origin, str) else None)


def reply_time(headers: Mapping[str, Sequence[str]]) -> datetime | None:
    """The reply's `Date` header, in UTC."""
    for name, values in headers.items():
        if name.lower() == "date" and values:
            with suppress(ValueError, TypeError):
                return parsedate_to_datetime(values[0]).astimezone(UTC)
    return None


# Writing


def scrub_uri(uri: str) -> str:
    """A URI without keys and credentials: no user, no `key=`, no `access_token=`."""
    parts = urlsplit(uri)
    query = parts.query
    pairs = parse_qsl(query, keep_blank_values=True)
    if any(name.lower() in SECRET_PARAMETERS for name, _ in pairs):
        query = urlencode([pair for pair in pairs if pair[0].lower() not in SECRET_PARAMETERS], quote_via=quote)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _readable(body: bytes) -> str | bytes:
    """A body as text a human can read and diff: JSON indented, event streams line by line; bytes where it is no text.

    White space of JSON and the line ends of event streams are not kept: neither means anything.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return body
    try:
        return _UNSAFE.sub(_escape, json.dumps(json.loads(text), indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        pass
    return text.replace("\r\n", "\n") if text.startswith(("data:", "event:")) else text


class _Dumper(yaml.SafeDumper):
    """Python's own emitter, not libyaml's: one text on every machine."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def _kept(headers: Mapping[str, Sequence[str]], names: frozenset[str]) -> dict[str, list[str]]:
    return {name.lower(): list(values) for name, values in sorted(headers.items()) if name.lower() in names}


def _stored(interaction: Interaction) -> dict[str, Any]:
    stored: dict[str, Any] = {
        "request": {
            "method": interaction.method,
            "uri": scrub_uri(interaction.uri),
            "headers": _kept(interaction.request_headers, REQUEST_HEADERS),
            "body": _readable(interaction.body),
        },
        "response": {
            "status": {"code": interaction.status, "message": interaction.reason},
            "headers": _kept(interaction.reply_headers, REPLY_HEADERS),
            "body": {"string": _readable(interaction.reply)},
        },
    }
    if interaction.duration is not None:
        stored["agenttrace"] = {"duration": round(interaction.duration, 3)}
    return stored


def check_writable(path: Path) -> None:
    """Fail before anything is paid for: try to write where the cassette will go, and leave nothing behind."""
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        out = "Make it writable, or name another cassette."
        _fail(folder, f"no cassette can be written here: {error.strerror or error}", out=out)


def save_cassette(path: Path, interactions: Iterable[Interaction], meta: Mapping[str, Any]) -> None:
    """Write a cassette whole or not at all. `meta` goes into the `agenttrace` mapping, behind `format`."""
    content = {
        "version": VERSION,
        "agenttrace": {"format": FORMAT, **meta},
        "interactions": [_stored(interaction) for interaction in interactions],
    }
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    # A link stays a link: what it points at is replaced.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{_digest(target.name)}-{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        _fail(path, f"cannot be written: {error.strerror or error}", out="Nothing was overwritten.")
