"""Ledgers as files: JSON with a shipped schema, written whole or not at all, read with every error named."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.ledger.model import Ledger
from pytest_agenttrace.placing import put_text

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "SCHEMA",
    "LedgerError",
    "as_ledger",
    "generated_schema",
    "ledger_text",
    "not_ours",
    "plain",
    "read_ledger",
    "shipped_schema",
    "write_ledger",
]

# Where the schema lies in the package.
SCHEMA = "ledger.schema.json"
_SHOWN = 5
# More than anybody has used, and few enough for exact arithmetic.
_DIGITS = 40
_BEGINS = re.compile(rb'\s*\{\s*"format"\s*:')


class LedgerError(ValueError):
    """A ledger that cannot be read, merged or written; the message starts with its path."""


def plain(facts: object) -> Any:
    """Facts as JSON has them: money as text, tuples as lists."""
    if dataclasses.is_dataclass(facts) and not isinstance(facts, type):
        return {field.name: plain(getattr(facts, field.name)) for field in dataclasses.fields(facts)}
    if isinstance(facts, Mapping):
        return {_text(key): plain(value) for key, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [plain(value) for value in facts]
    if isinstance(facts, Decimal):
        return format(facts, "f")
    # No subclass of ours: those remember what they count.
    if isinstance(facts, int) and not isinstance(facts, bool):
        return int(facts)
    if facts is None or isinstance(facts, bool) or (isinstance(facts, float) and math.isfinite(facts)):
        return facts
    return _text(facts)


def _text(value: object) -> str:
    """Text that any reader of JSON takes: a lone surrogate is told as what it is."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def ledger_text(ledger: Ledger | Mapping[str, Any]) -> str:
    """A ledger as JSON, tests in the order of their names."""
    data = plain(ledger)
    for part in (data, data["times"]):
        part["tests"] = dict(sorted(part["tests"].items()))
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def write_ledger(path: Path, ledger: Ledger | Mapping[str, Any]) -> None:
    """Put a ledger, or its facts as plain data, in its place in one step; links are followed. Raises `LedgerError`,
    also for a file that is there already and is no ledger."""
    if (why := not_ours(path)) is not None:
        raise LedgerError(f"{path} {why}")
    try:
        put_text(path, ledger_text(ledger))
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be written: {error.strerror or error}") from None


def not_ours(path: Path) -> str | None:
    """Why a file is not written over: it is there and is no ledger. None where it may be."""
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return None
        with path.open("rb") as file:
            begins = file.read(200)
    except OSError:  # told by who writes
        return None
    return None if _BEGINS.match(begins) else "is there already and is no ledger: name another file"


def read_ledger(path: Path) -> Ledger:
    """A ledger from its file. Raises `LedgerError` for one that is none, naming each place that is wrong."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise LedgerError(f"{path}: no such ledger: write one with pytest --agenttrace-ledger {path}") from None
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be read: {error.strerror or error}") from None
    if not text.strip():
        raise LedgerError(f"{path}: the ledger is empty: the run that was to write it did not")
    return as_ledger(path, text)


def as_ledger(path: Path, text: bytes | str) -> Ledger:
    """The text of a ledger's file, checked."""
    from pydantic import ValidationError

    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        data = json.loads(text)
    except UnicodeDecodeError:
        raise LedgerError(f"{path}: no ledger: its text is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise LedgerError(f"{path}: no ledger: {error}") from None
    version = data.get("format") if isinstance(data, dict) else None
    if isinstance(version, int) and version > 1:
        raise LedgerError(f"{path}: a ledger of format {version}, written by a newer pytest-agenttrace: install that")
    if not isinstance(data, dict) or version is None:
        raise LedgerError(f"{path}: no ledger: it has no 'format'")
    try:
        ledger = _adapter().validate_json(text, strict=True)
    except ValidationError as error:
        wrong = [f"{_place(found['loc'])}: {found['msg'].lower()}" for found in error.errors(include_url=False)]
    else:
        wrong = list(_beyond(ledger, ()))
        if not wrong:
            return ledger
    more = [f"  and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else []
    raise LedgerError("\n".join([f"{path}: no valid ledger", *(f"  {line}" for line in wrong[:_SHOWN]), *more]))


def _beyond(facts: object, place: tuple[int | str, ...]) -> Iterator[str]:
    """Numbers that nobody can have used or paid, with which no arithmetic is worth trying."""
    if dataclasses.is_dataclass(facts):
        for field in dataclasses.fields(facts):
            # What tools were given and requests held is anybody's.
            if field.name not in ("args", "request", "outline"):
                yield from _beyond(getattr(facts, field.name), (*place, field.name))
    elif isinstance(facts, Mapping):
        for key, value in facts.items():
            yield from _beyond(value, (*place, key))
    elif isinstance(facts, tuple):
        for index, value in enumerate(facts):
            yield from _beyond(value, (*place, index))
    elif isinstance(facts, int | Decimal) and not isinstance(facts, bool) and place[-1] != "step":
        digits = len(str(facts)) if isinstance(facts, int) else max(abs(facts.adjusted()), len(facts.as_tuple().digits))
        if facts < 0 or digits > _DIGITS:
            yield f"{_place(place)}: is no number of tokens or USD that anybody has used"


def _place(location: Sequence[int | str]) -> str:
    return " > ".join(str(part) for part in location) or "the file"


@cache
def _adapter() -> TypeAdapter[Ledger]:
    from pydantic import TypeAdapter

    return TypeAdapter(Ledger)


def generated_schema() -> str:
    """The JSON Schema of a ledger, as it is shipped."""
    schema = _adapter().json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A ledger of pytest-agenttrace"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def shipped_schema() -> str:
    """The JSON Schema in the package."""
    return files("pytest_agenttrace.ledger").joinpath(SCHEMA).read_text(encoding="utf-8")
