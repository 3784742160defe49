"""Texts with placeholders: `{x}` and `{state.a.b}` stand for values, `{{` and `}}` for braces.

A brace that does not open a name stands for itself, so JSON in a prompt (`{"score": 1}`, `{}`) stays as it is. What
looks like Python's formatting is refused: no conversion, no format, no index, no call, and no name with a leading
underscore but the two of a parallel map.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_agenttrace.workflow.types import kind_of

__all__ = ["ITEM", "ITEM_NAMES", "Placeholder", "PlaceholderError", "Template", "parse_template", "scan_template"]

# What a node reads of the item it was sent, in a parallel map.
ITEM = "_parallel_item"
ITEM_NAMES = (ITEM, "_parallel_index")

_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_DEEPEST = 20


class PlaceholderError(ValueError):
    """A text that is no template: `offset` is where in it."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A name in a template, as its parts: `("state", "topic")`, `("query",)`."""

    path: tuple[str, ...]
    offset: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return "{" + ".".join(self.path) + "}"


@dataclass(frozen=True, slots=True)
class Template:
    """A text and what it is made of: literal texts and placeholders, in order."""

    text: str
    parts: tuple[str | Placeholder, ...]

    @property
    def placeholders(self) -> tuple[Placeholder, ...]:
        return tuple(part for part in self.parts if isinstance(part, Placeholder))

    @property
    def only(self) -> Placeholder | None:
        """The placeholder that is the whole text, whose value can be taken as it is."""
        return self.parts[0] if len(self.parts) == 1 and isinstance(self.parts[0], Placeholder) else None

    def render(self, values: Mapping[str, object]) -> str:
        """The text with values for names: texts as they are, all else as JSON. Raises `LookupError` naming the
        placeholder whose value is not there."""
        return "".join(part if isinstance(part, str) else _text(self.value(part, values)) for part in self.parts)

    @staticmethod
    def value(placeholder: Placeholder, values: Mapping[str, object]) -> object:
        """What a placeholder stands for; members are looked up in mappings only, never on Python's objects."""
        found: object = values
        for at, name in enumerate(placeholder.path):
            if not isinstance(found, Mapping) or name not in found:
                whole = ".".join(placeholder.path[:at])
                what = f"{whole} has no {name!r}" if isinstance(found, Mapping) else f"{whole} is {kind_of(found)}"
                raise LookupError(f"{placeholder}: {what if whole else 'no value is given'}")
            found = found[name]
        return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def parse_template(text: str) -> Template:
    """A template from its text. Raises `PlaceholderError` at the first brace that is neither."""
    template, errors = scan_template(text)
    if errors:
        raise errors[0]
    return template


def scan_template(text: str) -> tuple[Template, list[PlaceholderError]]:
    """A template, and every brace in it that is neither a placeholder nor itself; those are left in the text."""
    errors: list[PlaceholderError] = []
    parts: list[str | Placeholder] = []
    literal: list[str] = []
    at = escaped = 0
    while at < len(text):
        brace = text[at]
        if brace == "{" and text[at + 1 : at + 2] == "{":
            literal.append("{")
            at, escaped = at + 2, escaped + 1
        elif brace == "}" and escaped and text[at + 1 : at + 2] == "}":
            literal.append("}")
            at, escaped = at + 2, escaped - 1
        elif brace == "{" and (found := _tried(text, at, errors)) is not None:
            if literal:
                parts.append("".join(literal))
                literal = []
            parts.append(found)
            at += len(str(found))
        else:
            literal.append(brace)
            at += 1
    if literal:
        parts.append("".join(literal))
    return Template(text, tuple(parts)), errors


def _tried(text: str, at: int, errors: list[PlaceholderError]) -> Placeholder | None:
    try:
        return _placeholder(text, at)
    except PlaceholderError as error:
        errors.append(error)
        return None


def _placeholder(text: str, at: int) -> Placeholder | None:
    """The placeholder that a brace opens; None where the brace stands for itself."""
    end = re.compile(r"[{}\n]|\Z").search(text, at + 1)
    inner = text[at + 1 : end.start() if end else len(text)]
    closed = end is not None and end.group() == "}"
    name = inner.strip(" \t")
    if not re.match(r"[^\W\d]", name):
        return None
    if name != inner:
        if closed and _NAME.fullmatch(name):
            raise PlaceholderError(f"{{{inner}}} has blanks in it: write {{{name}}}, or {{{{{inner}}}}} for braces", at)
        return None
    if not closed:
        raise PlaceholderError(f"{_cut('{' + inner)} is never closed: a brace for itself is written {{{{", at)
    if not _NAME.fullmatch(name):
        raise PlaceholderError(_why_not(name), at)
    path = tuple(name.split("."))
    private = next((part for part in path if part.startswith("_")), None)
    if private is not None and not _is_item(path):
        raise PlaceholderError(f"{{{_cut(name)}}}: {private!r} is refused: names of the state do not start with _", at)
    if len(path) > _DEEPEST:
        raise PlaceholderError(f"{{{_cut(name)}}} goes too deep", at)
    return Placeholder(path, at)


def _is_item(path: Sequence[str]) -> bool:
    rest = path[1:] if path[0] == "state" else path
    return bool(rest) and rest[0] in ITEM_NAMES and not any(part.startswith("_") for part in rest[1:])


def _why_not(name: str) -> str:
    shown = "{" + _cut(name) + "}"
    for sign, what in (("!", "a conversion"), (":", "a format"), ("[", "an index"), ("(", "a call")):
        if sign in name:
            return f"{shown} has {what}, and a placeholder is a name only: braces for themselves are written {{{{ }}}}"
    return f"{shown} is no placeholder: braces for themselves are written {{{{ }}}}"


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
