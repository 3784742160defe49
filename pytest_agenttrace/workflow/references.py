"""Names in prompts, inputs and conditions, looked up among the fields of the state and their members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pytest_agenttrace.workflow.conditions import (
    Comparison,
    Condition,
    Constant,
    Expression,
    Field,
    comparable,
    parts_of,
)
from pytest_agenttrace.workflow.models import StateField, WorkflowConfig
from pytest_agenttrace.workflow.positions import Leaf, Problems, Tree
from pytest_agenttrace.workflow.reading import did_you_mean
from pytest_agenttrace.workflow.types import UNREAD, Type, kind_of, shown

T = TypeVar("T")

__all__ = ["Fields", "Subject", "UnknownName", "check_condition", "maybe", "member_type"]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked: a workflow as far as it could be read, its tree, and where problems go."""

    config: WorkflowConfig
    tree: Tree
    problems: Problems
    fields: Fields


class UnknownName(LookupError):
    """A name that stands for nothing; the message says which, and what may have been meant."""


def maybe(value: T) -> T | None:
    """The value: what could not be read is None, whatever its annotation says."""
    return value


class Fields:
    """The fields of a state. Where the file has none that can be read, every name is taken for one."""

    def __init__(self, fields: Mapping[str, StateField | None]) -> None:
        self.fields = fields

    def __contains__(self, name: str) -> bool:
        return not self.fields or name in self.fields

    def unknown(self, name: str, form: str = "{}") -> str:
        """The message for a name that is no field."""
        near = did_you_mean(name, self.fields, form)
        return f"the state has no field {shown(name)}{near or '; it has ' + _listed(self.fields)}"

    def type_of(self, path: tuple[str, ...], form: str = "{}") -> Type | None:
        """The type of what a path names; None where it may be anything. Raises `UnknownName`."""
        if path[0] not in self:
            raise UnknownName(self.unknown(path[0], form))
        field = self.fields.get(path[0])
        return member_type(None if field is None else field.type, path, 1)


def _listed(names: Mapping[str, object]) -> str:
    shown_names = ", ".join(list(names)[:8])
    return f"{shown_names}, ..." if len(names) > 8 else shown_names


def member_type(found: Type | None, path: tuple[str, ...], start: int) -> Type | None:
    """The type below a type, along the rest of a path. Raises `UnknownName`."""
    for at in range(start, len(path)):
        if found is None or found.name == UNREAD or (found.name == "object" and found.members is None):
            return None
        whole = ".".join(path[:at])
        if found.name == "dict":
            found = found.value
        elif found.name == "object" and found.members is not None:
            if path[at] not in found.members:
                near = did_you_mean(path[at], found.members, f"{whole}.{{}}")
                raise UnknownName(
                    f"{whole} has no member {shown(path[at])}{near or '; it has ' + _listed(found.members)}"
                )
            found = found.members[path[at]].type
        else:
            raise UnknownName(f"{whole} is {found}, which has no members")
    return found


def check_condition(subject: Subject, condition: Condition, tree: Tree) -> None:
    """Add names that are none, and comparisons that no state has an answer for."""
    leaf = tree if isinstance(tree, Leaf) else None
    for field in condition.fields:
        try:
            subject.fields.type_of(field.path)
        except UnknownName as error:
            quoted = _unquoted(field, condition.text, str(error))
            place = None if leaf is None else leaf.at(field.offset)
            subject.problems.add(tree, f"condition {shown(condition.text)}: {error}{quoted}", place)
    for found in parts_of(condition.expression):
        if isinstance(found, Comparison) and (why := _never(found, subject.fields)) is not None:
            place = None if leaf is None else leaf.at(found.offset)
            subject.problems.add(tree, f"condition {shown(condition.text)}: {why}", place)


def _unquoted(field: Field, text: str, error: str) -> str:
    """The way out for a text without its quotes, which reads like a field."""
    name = field.path[0]
    bare = len(field.path) == 1 and f"state.{name}" not in text
    return f"; a text is written in quotes: '{name}'" if bare and "did you mean" not in error else ""


def _type(expression: Expression, fields: Fields) -> Type | None:
    """The type of a field in a condition; None where only a run knows."""
    if not isinstance(expression, Field):
        return None
    try:
        found = fields.type_of(expression.path)
    except UnknownName:
        # Told already.
        return None
    return None if found is None or found.name == UNREAD else found


def _kind(expression: Expression, fields: Fields) -> str | None:
    """What a part of a condition is; None where only a run knows."""
    if isinstance(expression, Constant):
        return kind_of(expression.value)
    if not isinstance(expression, Field):
        return "bool"
    found = _type(expression, fields)
    return None if found is None else _kind_of(found)


def _kind_of(found: Type) -> str:
    return {"object": "dict"}.get(found.name, found.name)


def _never(found: Comparison, fields: Fields) -> str | None:
    left, right = _kind(found.left, fields), _kind(found.right, fields)
    if left is None or right is None:
        return None
    if found.operator in ("in", "not in"):
        return _never_in(found, left, right, fields)
    if comparable(left, right, ordered=found.operator not in ("==", "!=")):
        return _never_one(found, fields)
    near = _meant(found.right.value, left) if isinstance(found.right, Constant) else ""
    return f"{_apart(_said(found.left, left), found)} {_value(found.right, right)}{near}"


def _apart(said: str, found: Comparison) -> str:
    return f"{said}, and cannot be compared by {found.operator} with"


def _never_in(found: Comparison, left: str, right: str, fields: Fields) -> str | None:
    if right not in ("list", "str", "dict"):
        return f"{_said(found.right, right)}: {found.operator!r} looks into a list, a text or a dict"
    if right == "str":
        return None if left == "str" else f"{_said(found.left, left)}, and is in no text"
    if right == "dict" and left in ("list", "dict"):
        return f"{_said(found.left, left)}, and is no key of a dict"
    said = _apart(_said(found.left, left), found)
    for value in _listed_in(found.right):
        if not comparable(left, kind_of(value), ordered=False):
            return f"{said} {kind_of(value)} {shown(value)} of the list{_meant(value, left)}"
    what, kind = _held(found.right, fields)
    if kind is None or comparable(left, kind, ordered=False):
        return None
    near = _meant(found.left.value, kind) if isinstance(found.left, Constant) else ""
    return f"{said} {what}, which are {kind}{near}"


def _never_one(found: Comparison, fields: Fields) -> str | None:
    """Why a field's list and one that is written never hold the same."""
    for one, other in ((found.left, found.right), (found.right, found.left)):
        what, kind = _held(one, fields)
        for value in _listed_in(other):
            if kind is not None and not comparable(kind, kind_of(value), ordered=False):
                return f"{_apart(f'{what} are {kind}', found)} {kind_of(value)} {shown(value)}{_meant(value, kind)}"
    return None


def _listed_in(expression: Expression) -> tuple[object, ...]:
    found = expression.value if isinstance(expression, Constant) else None
    return found if isinstance(found, tuple) else ()


def _held(expression: Expression, fields: Fields) -> tuple[str, str | None]:
    """What a field's list or dict is looked through for, and of what kind that is; None where it may be anything."""
    found = _type(expression, fields)
    if found is None:
        return "", None
    if found.item is not None:
        return f"the items of {expression}", None if found.item.name == UNREAD else _kind_of(found.item)
    if found.members is not None:
        return f"the members of {expression}", "str"
    return f"the keys of {expression}", None if found.key is None else found.key.name


def _said(expression: Expression, kind: str) -> str:
    return f"{expression} is {kind}" if isinstance(expression, Field) else _value(expression, kind)


def _value(expression: Expression, kind: str) -> str:
    if isinstance(expression, Constant):
        return f"{kind} {shown(expression.value)}" if expression.value is not None else "null"
    return f"{expression}, which is {kind}" if isinstance(expression, Field) else kind


def _meant(value: object, kind: str) -> str:
    """A written value as one of the kind that it is compared with."""
    if kind == "str" and isinstance(value, int | float):
        return f"; did you mean '{shown(value)}'?"
    if kind in ("int", "float") and isinstance(value, str):
        return f"; did you mean {value.strip()}?" if _number(value) else ""
    if kind == "bool" and str(value).lower() in ("true", "false", "1", "0"):
        return f"; did you mean {'true' if str(value).lower() in ('true', '1') else 'false'}?"
    return ""


def _number(text: str) -> bool:
    return text.strip().removeprefix("-").replace(".", "", 1).isdecimal()
