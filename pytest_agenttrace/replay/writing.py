"""Writes a cassette that people can read and compare: bodies as YAML, one changed line for a changed word."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC
from pathlib import Path
from typing import Any

import yaml

from pytest_agenttrace.replay.cassette import FORMAT, VERSION, Interaction, reply_time, scrub_uri
from pytest_agenttrace.replay.reading import fail
from pytest_agenttrace.replay.scrubbing import find_secret
from pytest_agenttrace.wire import canonical_body

__all__ = ["check_writable", "save_cassette"]

# Headers that are written; all others stay out, keys and cookies among them. A reply's date stands with its node.
REQUEST_HEADERS = frozenset({"content-type"})
# The last two lead a client through an upload.
REPLY_HEADERS = frozenset({"content-type", "retry-after", "x-goog-upload-url", "x-goog-upload-status"})

# JSON may hold these as they are, YAML would fold or refuse them.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
# Lines are never wrapped: a changed word would wrap all that follows it anew.
_WIDTH = 1 << 30
_END = "...\n"
# Texts of exchanges kept: a recording writes its own again with each reply.
_KEPT_TEXTS = 2_000


class _Line(dict[str, Any]):
    """A mapping on one line."""


class _Dumper(yaml.SafeDumper):
    """Python's own emitter, not libyaml's: one text on every machine."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


def _represent_line(dumper: yaml.SafeDumper, line: _Line) -> yaml.MappingNode:
    return dumper.represent_mapping("tag:yaml.org,2002:map", dict(line), flow_style=True)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(_Line, _represent_line)


def _dumped(content: Any) -> str:
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
    # A last text that ends in empty lines would end the document.
    return text[: -len(_END)] if text.endswith(f"\n{_END}") else text


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _readable(body: bytes) -> Any:
    """A body as people read it: JSON as YAML where that says the same, else indented; event streams line by line; bytes
    where it is no text. White space of JSON and the line ends of event streams are not kept: neither means anything.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        return body
    try:
        value = json.loads(text)
        if isinstance(value, dict | list) and value and _survives(value, text):
            return value
        indented = _UNSAFE.sub(_escape, json.dumps(value, indent=2, ensure_ascii=False))
        return indented if canonical_body(indented) == canonical_body(text) else text
    except (ValueError, RecursionError):
        pass
    return text.replace("\r\n", "\n") if text.startswith(("data:", "event:")) else text


def _survives(value: Any, text: str) -> bool:
    """Whether a JSON text says the same when its value has been written as YAML and read again."""
    with suppress(ValueError, RecursionError, TypeError, OverflowError, yaml.YAMLError):
        dumped = _dumped(value)
        if len(dumped.splitlines()) == dumped.count("\n"):
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            again = yaml.load(dumped.encode("utf-8"), Loader=loader)  # noqa: S506  # a safe loader
            return canonical_body(json.dumps(again)) == canonical_body(text)
    return False


def _kept(headers: Mapping[str, Any], names: frozenset[str]) -> dict[str, list[str]]:
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
            "status": _Line(code=interaction.status, message=interaction.reason),
            "headers": _kept(interaction.reply_headers, REPLY_HEADERS),
            "body": {"string": _readable(interaction.reply)},
        },
    }
    facts = _facts(interaction)
    return {**stored, "agenttrace": facts} if facts else stored


def _facts(interaction: Interaction) -> _Line:
    facts = _Line()
    if interaction.node is not None:
        facts["node"] = interaction.node
    if interaction.branch is not None:
        facts["branch"] = interaction.branch
    recorded = interaction.recorded or reply_time(interaction.reply_headers)
    if recorded is not None:
        facts["recorded"] = recorded.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    if interaction.duration is not None:
        facts["duration"] = round(interaction.duration, 3)
    if interaction.teardown:
        facts["teardown"] = True
    return facts


_texts: dict[int, tuple[Interaction, str]] = {}


def _clean_text(path: Path, number: int, interaction: Interaction) -> str:
    """As `_text`, looked through again: nothing that looks like a secret is written."""
    known = _texts.get(id(interaction))
    text = _text(interaction)
    if (known is None or known[0] is not interaction) and (secret := find_secret(text)) is not None:
        _texts.pop(id(interaction), None)
        where = f"exchange {number}" + (f" of node {interaction.node}" if interaction.node else "")
        out = "Nothing was written. A regular expression for it goes into secrets=[...] of agent_trace."
        fail(path, f"{where} would hold what looks like a secret: {secret}", out=out)
    return text


def _text(interaction: Interaction) -> str:
    """One exchange as it stands in the file's list."""
    kept = _texts.get(id(interaction))
    if kept is None or kept[0] is not interaction:
        while len(_texts) >= _KEPT_TEXTS:
            _texts.pop(next(iter(_texts)), None)
        kept = _texts[id(interaction)] = (interaction, _dumped([_stored(interaction)]))
    return kept[1]


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
        fail(folder, f"no cassette can be written here: {error.strerror or error}", out=out)


def save_cassette(path: Path, interactions: Iterable[Interaction], meta: Mapping[str, Any]) -> None:
    """Write a cassette whole or not at all. `meta` goes into the `agenttrace` mapping, behind `format`."""
    head = _dumped({"version": VERSION, "agenttrace": {"format": FORMAT, **meta}})
    listed = "".join(_clean_text(path, number, found) for number, found in enumerate(interactions, 1))
    text = f"{head}interactions:\n{listed}" if listed else f"{head}interactions: []\n"
    # A link stays a link: what it points at is replaced.
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}-{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        if target.exists():
            temporary.chmod(target.stat().st_mode)
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        fail(path, f"cannot be written: {error.strerror or error}", out="Nothing was overwritten.")


def _sweep(target: Path) -> None:
    """Take away what a killed process has left of a file beside this one."""
    for left in target.parent.glob(f".{_globbed(target.name)}-*.tmp"):
        number = left.stem.rpartition("-")[2]
        if number.isdecimal() and not _alive(int(number)):
            left.unlink(missing_ok=True)


def _globbed(name: str) -> str:
    return re.sub(r"([\[\]*?])", r"[\1]", name)


def _alive(process: int) -> bool:
    if os.name != "posix" or process == os.getpid():
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
