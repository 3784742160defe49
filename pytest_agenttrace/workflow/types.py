"""The types of a workflow's state and outputs: written as text, held as data, checked exactly.

`str`, `int`, `float`, `bool`, `list`, `dict`, `list[T]`, `dict[K, V]` and `object`, whose members a `schema` names. A
bool is no int; an int is fine where a float is wanted; nothing is converted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = [
    "UNREAD",
    "Member",
    "Mismatch",
    "Type",
    "TypeSyntaxError",
    "fits",
    "kind_of",
    "mismatches",
    "parse_type",
    "shown",
]

SCALARS = ("str", "int", "float", "bool")
NAMES = (*SCALARS, "list", "dict", "object")
# What people of other languages write, and JSON Schema.
_FOREIGN = {
    "string": "str",
    "text": "str",
    "integer": "int",
    "number": "float",
    "double": "float",
    "boolean": "bool",
    "array": "list",
    "tuple": "list",
    "set": "list",
    "map": "dict",
    "mapping": "dict",
    "any": "dict",
}
_LONGEST = 200
_DEEPEST = 10


# A type that could not be read, of which nothing more is said.
UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class Member:
    """A named part of an object. `required` is None where the file does not say."""

    type: Type
    required: bool | None = None
    default: Any = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Type:
    """A type: its `name`, what a list holds (`item`), a dict's `key` and `value`, an object's `members`. None is
    anything: `list` holds what it likes, an `object` without a schema too."""

    name: str
    item: Type | None = None
    key: Type | None = None
    value: Type | None = None
    members: Mapping[str, Member] | None = field(default=None, hash=False)

    def __str__(self) -> str:
        if self.item is not None:
            return f"list[{self.item}]"
        if self.key is not None:
            return f"dict[{self.key}, {self.value}]"
        return self.name

    @property
    def holds_object(self) -> bool:
        """Whether a schema has something to describe: `object`, `list[object]`, `dict[str, object]`."""
        return self.name == "object" or any(part.holds_object for part in (self.item, self.value) if part is not None)

    def with_members(self, members: Mapping[str, Member]) -> Type:
        """The same with the members of the object in it."""
        if self.name == "object":
            return replace(self, members=members)
        return replace(
            self,
            item=None if self.item is None else self.item.with_members(members),
            value=None if self.value is None else self.value.with_members(members),
        )


class TypeSyntaxError(ValueError):
    """A text that is no type; `instead` is the nearest that is one."""

    def __init__(self, message: str, instead: str | None = None) -> None:
        super().__init__(message)
        self.instead = instead


def parse_type(text: str) -> Type:
    """A type from its text. Raises `TypeSyntaxError`."""
    if len(text) > _LONGEST:
        raise TypeSyntaxError(f"a type of {len(text):,} characters")
    return _parse(text.strip(), 0)


def _parse(text: str, depth: int) -> Type:
    if depth > _DEEPEST:
        raise TypeSyntaxError("a type nested too deeply")
    name, bracket, rest = text.partition("[")
    name = name.strip()
    if not bracket:
        if name not in NAMES:
            raise TypeSyntaxError(f"{text!r} is no type", _nearest(name))
        return Type(name)
    if not rest.endswith("]") or not rest[:-1].strip():
        raise TypeSyntaxError(f"{text!r} is no type: its brackets are not closed, or empty")
    parts = [part.strip() for part in _split(rest[:-1])]
    if name not in ("list", "dict"):
        near = _nearest(name)
        raise TypeSyntaxError(f"{text!r} is no type", f"{near}[{rest}" if near in ("list", "dict") else near)
    if name == "list":
        if len(parts) != 1:
            raise TypeSyntaxError(f"{text!r} is no type: a list has one type, list[T]")
        return Type("list", item=_parse(parts[0], depth + 1))
    if len(parts) != 2:
        raise TypeSyntaxError(f"{text!r} is no type: a dict has two, dict[K, V]")
    key = _parse(parts[0], depth + 1)
    if key.name not in SCALARS:
        raise TypeSyntaxError(f"{text!r} is no type: keys are {', '.join(SCALARS)}")
    return Type("dict", key=key, value=_parse(parts[1], depth + 1))


def _split(text: str) -> Iterator[str]:
    """At the commas outside of brackets."""
    start = depth = 0
    for at, character in enumerate(text):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def _nearest(name: str) -> str | None:
    from difflib import get_close_matches

    low = name.lower()
    if low in _FOREIGN:
        return _FOREIGN[low]
    return next(iter(get_close_matches(low, NAMES, n=1, cutoff=0.6)), None)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A value that is not of its type: where in it, by keys and indexes (none for the whole), and what is wrong."""

    keys: tuple[Any, ...]
    text: str

    @property
    def path(self) -> str:
        """Where in the value, as text: `[2].name`."""
        return "".join(_step(key) for key in self.keys)


def kind_of(value: object) -> str:
    """What a value is, in the words of the format."""
    if value is None:
        return "null"
    for kind, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "str"), (list | tuple, "list")):
        if isinstance(value, kind):
            return name
    return "dict" if isinstance(value, Mapping) else type(value).__name__


def shown(value: object) -> str:
    """A value in a message, short."""
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or value in (True, False) else None
    if text is None or not isinstance(value, bool | None):
        text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def mismatches(value: object, wanted: Type, keys: tuple[Any, ...] = (), *, whole: bool = False) -> Iterator[Mismatch]:
    """What of a value is not of its type. Members that are not `required` may be absent or null; with `whole` (what a
    model must return) only those with a default, or of which the file says `required: false`."""
    match wanted.name:
        case "list" if isinstance(value, list | tuple):
            if wanted.item is not None:
                for at, item in enumerate(value):
                    yield from mismatches(item, wanted.item, (*keys, at), whole=whole)
        case "dict" if isinstance(value, Mapping):
            yield from _entries(value, wanted, keys, whole)
        case "object" if isinstance(value, Mapping):
            if wanted.members is not None:
                yield from _members(value, wanted.members, keys, whole)
        case name if name == UNREAD or (name in SCALARS and _is(value, name)):
            pass
        case _:
            given = "null" if value is None else f"{kind_of(value)} {shown(value)}"
            yield Mismatch(keys, f"{wanted} is wanted, not {given}")


def _is(value: object, name: str) -> bool:
    if isinstance(value, bool) or name == "bool":
        return isinstance(value, bool) and name == "bool"
    if name == "float":
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, {"str": str, "int": int}[name])


def _entries(value: Mapping[Any, object], wanted: Type, keys: tuple[Any, ...], whole: bool) -> Iterator[Mismatch]:
    if wanted.key is None or wanted.value is None:
        return
    for key, entry in value.items():
        if not _is(key, wanted.key.name):
            yield Mismatch(keys, f"a key of {wanted} is {wanted.key}, not {kind_of(key)} {shown(key)}")
        yield from mismatches(entry, wanted.value, (*keys, key), whole=whole)


def _members(
    value: Mapping[Any, object], members: Mapping[str, Member], keys: tuple[Any, ...], whole: bool
) -> Iterator[Mismatch]:
    for key in value:
        if key not in members:
            yield Mismatch(keys, f"the object has no member {shown(key)}")
    for name, member in members.items():
        needed = member.required or (whole and member.required is None and member.default is None)
        if value.get(name) is None:
            if needed:
                yield Mismatch(keys, f"its member {name!r} is missing")
        else:
            yield from mismatches(value[name], member.type, (*keys, name), whole=whole)


def _step(key: object) -> str:
    return f".{key}" if isinstance(key, str) and re.fullmatch(r"\w+", key) else f"[{shown(key)}]"


def fits(given: Type, wanted: Type) -> bool:
    """Whether each value of one type is one of the other."""
    if UNREAD in (given.name, wanted.name):
        return True
    if given.name == wanted.name == "list":
        return wanted.item is None or (given.item is not None and fits(given.item, wanted.item))
    if given.name == wanted.name == "dict":
        if wanted.key is None or wanted.value is None:
            return True
        return (
            given.key is not None
            and given.value is not None
            and fits(given.key, wanted.key)
            and fits(given.value, wanted.value)
        )
    if given.name == wanted.name == "object":
        return _object_fits(given.members, wanted.members)
    if wanted.name == "dict" and wanted.key is None:
        return given.name == "object"
    return given.name == wanted.name or (given.name, wanted.name) == ("int", "float")


def _object_fits(given: Mapping[str, Member] | None, wanted: Mapping[str, Member] | None) -> bool:
    if wanted is None or given is None:
        return True
    needed = {name for name, member in wanted.items() if member.required}
    return needed <= given.keys() and all(
        name in wanted and fits(member.type, wanted[name].type) for name, member in given.items()
    )
