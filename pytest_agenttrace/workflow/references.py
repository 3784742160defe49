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
            quoted = ""
            if (
                len(field.path) == 1
                and "did you mean" not in str(error)
                and f"state.{field.path[0]}" not in condition.text
            ):
                quoted = f"; a text is written in quotes: '{field.path[0]}'"
            place = None if leaf is None else leaf.at(field.offset)
            subject.problems.add(tree, f"condition {shown(condition.text)}: {error}{quoted}", place)
    for found in parts_of(condition.expression):
        if isinstance(found, Comparison) and (why := _never(found, subject.fields)) is not None:
            place = None if leaf is None else leaf.at(found.offset)
            subject.problems.add(tree, f"condition {shown(condition.text)}: {why}", place)


def _unquoted(field: Field, text: str, error: str) -> str:
    """The way out for a text without its quotes, which reads like a field."""
    name = field.path[0]
    bare = len(field.path) == 1 and f"state.{name}" not in text and f"{{{name}}}" not in text
    return f"; a text is written in quotes: '{name}'" if bare and "did you mean" not in error else ""


def _kind(expression: Expression, fields: Fields) -> str | None:
    """What a part of a condition is; None where only a run knows."""
    if isinstance(expression, Constant):
        return kind_of(expression.value)
    if not isinstance(expression, Field):
        return "bool"
    try:
        found = fields.type_of(expression.path)
    except UnknownName:
        # Told already.
        return None
    return None if found is None or found.name == UNREAD else {"object": "dict"}.get(found.name, found.name)


def _never(found: Comparison, fields: Fields) -> str | None:
    left, right = _kind(found.left, fields), _kind(found.right, fields)
    if left is None or right is None:
        return None
    if found.operator in ("in", "not in"):
        if right not in ("list", "str", "dict"):
            return f"{_said(found.right, right)}: {found.operator!r} looks into a list, a text or a dict"
        if right == "str" and left != "str":
            return f"{_said(found.left, left)}, and is in no text"
        return None
    if comparable(left, right, ordered=found.operator not in ("==", "!=")):
        return None
    near = _meant(found, left, right)
    return (
        f"{_said(found.left, left)}, and cannot be compared by {found.operator} with {_value(found.right, right)}{near}"
    )


def _said(expression: Expression, kind: str) -> str:
    return f"{expression} is {kind}" if isinstance(expression, Field) else _value(expression, kind)


def _value(expression: Expression, kind: str) -> str:
    if isinstance(expression, Constant):
        return f"{kind} {shown(expression.value)}" if expression.value is not None else "null"
    return f"{expression}, which is {kind}" if isinstance(expression, Field) else kind


def _meant(found: Comparison, left: str, right: str) -> str:
    """The constant of the other side's type."""
    if not isinstance(found.right, Constant) or isinstance(found.right.value, tuple):
        return ""
    value = found.right.value
    if left == "str" and right in ("int", "float", "bool"):
        return f"; did you mean '{shown(value)}'?"
    if left in ("int", "float") and isinstance(value, str) and value.strip().lstrip("-").replace(".", "", 1).isdigit():
        return f"; did you mean {value.strip()}?"
    if left == "bool" and str(value).lower() in ("true", "false", "1", "0"):
        return f"; did you mean {'true' if str(value).lower() in ('true', '1') else 'false'}?"
    return ""
