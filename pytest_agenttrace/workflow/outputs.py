"""What a node's model must return: asked for by JSON Schema, read from its reply, checked by the format's own types."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from pytest_agenttrace.workflow.models import Node
from pytest_agenttrace.workflow.types import Member, Type, kind_of, mismatches
from pytest_agenttrace.workflow.values import whole

__all__ = ["Misfit", "answer_schema", "plain_text", "read_answer", "read_text"]

_SCALARS = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
# How many things that are wrong with one reply are named.
_NAMED = 3


class Misfit(ValueError):
    """A reply that is not what the node's schema wants; says what is wrong."""


def plain_text(node: Node) -> bool:
    """Whether the answer is the reply's text as it is: one text needs no JSON around it."""
    return node.output_schema.type.name == "str"


def answer_schema(node: Node) -> dict[str, Any]:
    """The JSON Schema of a node's answer: an object with a member for each output."""
    schema = node.output_schema
    found = _object(_members(node))
    description = schema.description or node.description
    return {"title": node.id, **({"description": description} if description else {}), **found}


def _members(node: Node) -> dict[str, Member]:
    schema = node.output_schema
    if schema.type.name != "object":
        return {node.outputs[0]: Member(schema.type, True, None, schema.description)}
    return {field.name: Member(field.type, True, None, field.description) for field in schema.fields or ()}


def _object(members: Mapping[str, Member]) -> dict[str, Any]:
    needed = [name for name, member in members.items() if _needed(member)]
    return {
        "type": "object",
        "properties": {name: _described(member) for name, member in members.items()},
        **({"required": needed} if needed else {}),
    }


def _needed(member: Member) -> bool:
    """As `mismatches` sees it, of what a model must return as a whole."""
    return bool(member.required) or (member.required is None and member.default is None)


def _described(member: Member) -> dict[str, Any]:
    found = _schema(member.type)
    return {**found, "description": member.description} if member.description else found


def _schema(wanted: Type) -> dict[str, Any]:
    if wanted.name in _SCALARS:
        return {"type": _SCALARS[wanted.name]}
    if wanted.name == "list":
        return {"type": "array", "items": {} if wanted.item is None else _schema(wanted.item)}
    if wanted.members is not None:
        return _object(wanted.members)
    return {"type": "object", "additionalProperties": True if wanted.value is None else _schema(wanted.value)}


def read_text(node: Node, text: str, ending: str = "", cut: str = "") -> dict[str, Any]:
    """The outputs of a reply that is text. `ending` is why the model stopped, for the message; `cut` says that the text
    is not whole, which JSON but a number shows by itself. Raises `Misfit`."""
    if not text.strip():
        raise Misfit(f"the reply is empty{ending}")
    if plain_text(node):
        if cut:
            raise Misfit(f"{cut}: {_cut(text)}")
        return {node.outputs[0]: text}
    inner = re.fullmatch(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", text, re.DOTALL)
    try:
        found = json.loads(inner.group(1) if inner else text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Misfit(f"the reply is no JSON{ending}: {error}: {_cut(text)}") from error
    if cut and isinstance(found, int | float) and not isinstance(found, bool):
        # A number alone reads well wherever it is cut.
        raise Misfit(f"{cut}: {_cut(text)}")
    return read_answer(node, found)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def read_answer(node: Node, answer: Any) -> dict[str, Any]:
    """The outputs of an answer that is data, each of its type. Raises `Misfit`."""
    members = _members(node)
    wanted = Type("object", members=members)
    found = _keyed(_named(node, answer, wanted), wanted)
    wrong = [
        f"{each.path.removeprefix('.')}: {each.text}" if each.keys else each.text for each in _wrong(found, wanted)
    ]
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise Misfit(f"the reply does not fit the schema: {'; '.join(wrong[:_NAMED])}{more}")
    complete: dict[str, Any] = whole(found, wanted)
    return {name: complete[name] for name in node.outputs}


def _named(node: Node, answer: Any, wanted: Type) -> Any:
    """The answer as the object that was asked for; a model asked for one value may give that value alone."""
    kind, name = node.output_schema.type, node.outputs[0]
    if kind.name == "object" or not _wrong(_keyed(answer, wanted), wanted):
        return answer
    if not isinstance(answer, dict) and kind_of(answer) == kind.name:
        # Told as what it is, whatever is wrong in it.
        return {name: answer}
    if isinstance(answer, dict) and kind.value is None and answer.keys() == {name}:
        # A dict of anything would take the object that was asked for too, whatever is wrong in that.
        return answer
    return answer if _wrong(_keyed(answer, kind), kind) else {name: answer}


def _wrong(found: Any, wanted: Type) -> list[Any]:
    return list(mismatches(found, wanted, whole=True))


def _keyed(value: Any, wanted: Type) -> Any:
    """JSON has keys of text only: those of a `dict[int, T]` are read as what they say."""
    if isinstance(value, list):
        return value if wanted.item is None else [_keyed(item, wanted.item) for item in value]
    if not isinstance(value, dict):
        return value
    if wanted.members is not None:
        return {
            name: _keyed(entry, wanted.members[name].type) if name in wanted.members else entry
            for name, entry in value.items()
        }
    if wanted.key is None or wanted.value is None:
        return value
    return {_key(key, wanted.key.name): _keyed(entry, wanted.value) for key, entry in value.items()}


def _key(key: Any, wanted: str) -> Any:
    if not isinstance(key, str) or wanted == "str":
        return key
    if wanted == "bool":
        return {"true": True, "false": False}.get(key, key)
    try:
        return int(key) if wanted == "int" else float(key)
    except ValueError:
        return key


def _cut(text: str) -> str:
    line = repr(text)
    return line if len(line) <= 80 else f"{line[:77]}..."
