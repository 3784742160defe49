"""Trees as models: each key read by the annotation and the rules of its field, every error collected.

What could not be read is None in a model, whatever its annotation says: such models are for `checking` only, and never
leave the package.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal

from pytest_agenttrace.workflow.conditions import Condition, ConditionError, parse_condition
from pytest_agenttrace.workflow.models import (
    Edge,
    OutputField,
    OutputSchema,
    Parallel,
    StateField,
    Tool,
    WorkflowConfig,
)
from pytest_agenttrace.workflow.naming import check as name_problem
from pytest_agenttrace.workflow.naming import note as known_of
from pytest_agenttrace.workflow.placeholders import Template, scan_template
from pytest_agenttrace.workflow.positions import Items, Leaf, Place, Problems, Table, Tree, part, plain, said
from pytest_agenttrace.workflow.refused import is_off, refusal
from pytest_agenttrace.workflow.types import UNREAD, Member, Type, TypeSyntaxError, mismatches, parse_type, shown

__all__ = ["did_you_mean", "file_keys", "hints", "read_workflow"]

# Keys that stand beside those of the model, and become a part of its `type`.
EXTRA: dict[type, tuple[str, ...]] = {StateField: ("schema",), OutputField: ("schema", "fields"), Member: ("schema",)}
LONGEST = 200
_WANTED = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def did_you_mean(name: str, known: Iterable[str], form: str = "{}") -> str:
    """A suggestion to put behind a message, with the text for the nearest name; empty where none is near."""
    # Comparing long texts takes long, and they are no names.
    names = sorted({other for other in known if len(other) <= LONGEST}) if len(name) <= LONGEST else []
    folded = {other.lower(): other for other in names}
    near = [folded[name.lower()]] if name.lower() in folded else get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {form.format(near[0])}?" if near else ""


@cache
def hints(cls: type) -> Mapping[str, Any]:
    """The annotations of a model."""
    return typing.get_type_hints(cls)


@cache
def file_keys(cls: type) -> Mapping[str, dataclasses.Field[Any]]:
    """The fields of a model by their keys in the file."""
    return {
        field.metadata.get("key") or field.name: field
        for field in dataclasses.fields(cls)
        if field.metadata or cls is Member
    }


def read_workflow(tree: Tree, problems: Problems) -> WorkflowConfig | None:
    """What a file says, as far as it could be read; None where it is no mapping."""
    _name_nodes(tree, problems)
    reader = _Reader(problems)
    found = reader.table(tree, WorkflowConfig)
    if not isinstance(found, WorkflowConfig):
        return None
    return dataclasses.replace(found, path=problems.file)


def _name_nodes(tree: Tree, problems: Problems) -> None:
    """Nodes are called by their ids in messages, where these are told apart."""
    nodes = tree.get("nodes") if isinstance(tree, Table) else None
    for at, node in enumerate(nodes.items if isinstance(nodes, Items) else ()):
        name = node.get("id") if isinstance(node, Table) else None
        if isinstance(name, Leaf) and isinstance(name.value, str) and name.value.isidentifier():
            problems.names[at] = name.value


class _Reader:
    """Reads one file."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems

    def wrong(self, tree: Tree, wanted: str, more: str = "") -> None:
        self.problems.add(tree, f"{wanted} is wanted, not {said(tree)}{more}")

    # Tables

    def table(self, tree: Tree, cls: type) -> Any:
        """A model of a mapping; None where it is none."""
        keys = file_keys(cls)
        if not isinstance(tree, Table):
            needed = ", ".join(key for key, field in keys.items() if _needed(field))
            self.wrong(tree, f"a mapping with {needed}" if needed else f"a mapping of {', '.join(keys)}")
            return None
        self.unknown(tree, cls)
        values: dict[str, Any] = {}
        for key, field in keys.items():
            entry = tree.entries.get(key)
            if entry is None or (_is_null(entry[1]) and not _needed(field)):
                if _needed(field):
                    self.problems.add(tree, f"{key!r} is missing: {_lower(field.metadata.get('about', 'its type.'))}")
                values[field.name] = _unread(hints(cls)[field.name]) if _needed(field) else _default(field)
            else:
                values[field.name] = self.value(entry[1], hints(cls)[field.name], field.metadata)
        if hasattr(cls, "place"):
            values["place"] = f"{self.problems.file}:{tree.place.line}:{tree.place.column}"
        return self.finished(tree, cls, values)

    def unknown(self, tree: Table, cls: type) -> None:
        known = [*file_keys(cls), *EXTRA.get(cls, ())]
        for key, (place, value) in tree.entries.items():
            if key in known:
                continue
            sentence = refusal(cls, key) if isinstance(key, str) else None
            if sentence is None:
                self.problems.add(tree, _unknown(key, known), place, str(key))
            elif is_off(value):
                self.problems.note(tree, f"it is off, and does nothing here: {sentence}", place, str(key))
            else:
                self.problems.add(tree, sentence, place, str(key))

    def finished(self, tree: Table, cls: type, values: dict[str, Any]) -> Any:
        if cls in EXTRA and isinstance(values["type"], Type):
            values["type"] = self.described(tree, cls, values["type"])
        if cls in (StateField, Member):
            self.default(tree, values)
        if cls is StateField:
            self.reducer(tree, values)
        if cls is Edge:
            self.one_way(tree)
        if cls is OutputSchema:
            self.output_schema(tree, values["type"])
        return cls(**values)

    # Values

    def value(self, tree: Tree, hint: Any, rules: Mapping[str, Any]) -> Any:
        """A value of an annotation; None, with a problem, where it is none."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            return self.value(tree, next(part for part in arguments if part is not type(None)), rules)
        if origin is Literal:
            return self.choice(tree, arguments)
        if origin is tuple:
            return self.items(tree, arguments[0], rules)
        if origin is Mapping or hint is Mapping:
            return self.mapping(tree, arguments[1], rules)
        if hint in _WANTED:
            return self.scalar(tree, hint, rules)
        special = {Type: self.type_of, Template: self.template, Condition: self.condition, Tool: self.tool, Any: plain}
        if hint in special:
            return special[hint](tree)
        if hint is Parallel and isinstance(tree, Items):
            self.wrong(tree, "a map over a list", "; nodes side by side are to: [a, b]")
            return None
        return self.table(tree, hint)

    def scalar(self, tree: Tree, hint: type, rules: Mapping[str, Any]) -> Any:
        value = tree.value if isinstance(tree, Leaf) else None
        fine = isinstance(value, int | float) if hint is float else isinstance(value, hint)
        if not isinstance(tree, Leaf) or value is None or not fine or (hint is not bool and isinstance(value, bool)):
            self.wrong(tree, _WANTED[hint], _instead(tree, hint))
            return None
        why = _out_of_bounds(value, rules) if isinstance(value, int | float) else None
        if isinstance(value, str) and "name_of" in rules:
            why = name_problem(rules["name_of"], value)
            if why is None and (note := known_of(rules["name_of"], value)) is not None:
                self.problems.note(tree, note)
        if why is not None:
            self.problems.add(tree, why)
        # A name that is refused is known by it all the same: what else names it is not wrong.
        return value

    def choice(self, tree: Tree, allowed: tuple[str, ...]) -> str | None:
        value = plain(tree)
        # Log levels are written in any case.
        if isinstance(value, str) and (value in allowed or (value.upper() in allowed and allowed[0].isupper())):
            return value if value in allowed else value.upper()
        listed = ", ".join(f'"{choice}"' if choice[0].isdigit() else choice for choice in allowed)
        near = did_you_mean(value, allowed) if isinstance(value, str) else ""
        if len(allowed) == 1 and isinstance(tree, Leaf) and tree.written == allowed[0] and not isinstance(value, str):
            near = "; write it in quotes"
        self.problems.add(tree, f"{said(tree)} is not one of {listed}{near}")
        return None

    def items(self, tree: Tree, hint: Any, rules: Mapping[str, Any]) -> tuple[Any, ...]:
        """The items of a list; one that cannot be read is None, so that the others keep their places."""
        if rules.get("single") and isinstance(tree, Leaf) and isinstance(tree.value, str):
            return (tree.value,)
        if not isinstance(tree, Items):
            self.wrong(tree, "a list", f"; did you mean [{tree.written}]?" if _is_text(tree) else "")
            return ()
        if not tree.items and rules.get("some"):
            self.problems.add(tree, "the list is empty")
        return tuple(self.value(item, hint, {}) for item in tree.items)

    def mapping(self, tree: Tree, hint: Any, rules: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(tree, Table):
            self.wrong(tree, "a mapping of names")
            return {}
        if not tree.entries and rules.get("some"):
            self.problems.add(tree, "it is empty")
        found: dict[str, Any] = {}
        for key, (place, value) in tree.entries.items():
            name = self.name(tree, key, place, rules.get("name_of"))
            read = self.value(value, hint, {})
            if name is not None:
                found[name] = read
        return found

    def name(self, tree: Table, key: object, place: Place, name_of: str | None) -> str | None:
        why = f"{shown(key)} is no name: {_quoted(key)}" if not isinstance(key, str) else None
        if isinstance(key, str) and name_of is not None:
            why = name_problem(name_of, key)
        if why is not None:
            self.problems.add(tree, why, place, str(key))
        return key if isinstance(key, str) else None

    # What has a text of its own

    def text(self, tree: Tree) -> tuple[Leaf, str] | None:
        if isinstance(tree, Leaf) and isinstance(tree.value, str):
            return tree, tree.value
        self.wrong(tree, "a text", _instead(tree, str))
        return None

    def template(self, tree: Tree) -> Template | None:
        found = self.text(tree)
        if found is None:
            return None
        leaf, text = found
        template, errors = scan_template(text)
        for error in errors:
            self.problems.add(leaf, str(error), leaf.at(error.offset))
        if not text.strip():
            self.problems.add(leaf, "the text is empty")
        return template

    def condition(self, tree: Tree) -> Condition | None:
        """A condition; None for the default route too."""
        found = self.text(tree)
        if found is None or found[1].strip() == "default":
            return None
        leaf, text = found
        try:
            return parse_condition(text)
        except ConditionError as error:
            self.problems.add(leaf, f"condition {shown(text)}: {error}", leaf.at(error.offset))
            return None

    def type_of(self, tree: Tree) -> Type | None:
        found = self.text(tree)
        if found is None:
            return None
        try:
            return parse_type(found[1])
        except TypeSyntaxError as error:
            near = "" if error.instead is None else f"; did you mean {error.instead}?"
            self.problems.add(tree, f"{error}{near}")
            return None

    def tool(self, tree: Tree) -> Tool | None:
        if isinstance(tree, Leaf) and isinstance(tree.value, str):
            why = name_problem("tool", tree.value)
            if why is None:
                return Tool(tree.value)
            self.problems.add(tree, why)
            return None
        found = self.table(tree, Tool)
        return found if isinstance(found, Tool) else None

    # Types with schemas

    def described(self, tree: Table, cls: type, found: Type) -> Type:
        """A type with the members that its schema names, in either style."""
        given = [key for key in EXTRA[cls] if key in tree.entries and not _is_null(tree.entries[key][1])]
        for key in given:
            if not found.holds_object:
                self.problems.add(
                    tree, f"only an object has a {key}, and {found} holds none", tree.entries[key][0], key
                )
                return found
        if not given:
            if cls is not OutputField and found.name == "object":
                self.problems.add(tree, "an object needs a schema of its members: schema: {name: str, age: int}")
            return found
        if len(given) == 2:
            self.problems.add(tree, "schema and fields say the same: keep one", tree.entries["fields"][0], "fields")
        return found.with_members(self.members(tree.entries[given[0]][1]))

    def members(self, tree: Tree) -> dict[str, Member]:
        if isinstance(tree, Items):
            fields = [self.table(item, OutputField) for item in tree.items]
            known = [field for field in fields if field is not None and field.name is not None]
            return {field.name: Member(field.type or Type(UNREAD), description=field.description) for field in known}
        if not isinstance(tree, Table) or not tree.entries:
            self.wrong(tree, "a mapping of members, {name: str, age: int},")
            return {}
        found: dict[str, Member] = {}
        for key, (place, value) in tree.entries.items():
            name = self.name(tree, key, place, "member")
            member = self.member(value)
            if name is not None:
                found[name] = member
        return found

    def member(self, tree: Tree) -> Member:
        if isinstance(tree, Table):
            found = self.table(tree, Member)
            return found if found.type is not None else Member(Type(UNREAD))
        read = self.type_of(tree)
        if read is None:
            return Member(Type(UNREAD))
        if read.name == "object":
            self.problems.add(tree, "an object needs a schema of its members: {type: object, schema: {...}}")
        return Member(read)

    def default(self, tree: Table, values: Mapping[str, Any]) -> None:
        given = tree.get("default")
        if given is None or values["default"] is None:
            return
        if values["required"]:
            text = "a required field is always given: it has no default"
            self.problems.add(tree, text, tree.entries["default"][0], "default")
        if values["type"] is not None:
            for wrong in mismatches(values["default"], values["type"]):
                self.problems.add(part(given, *wrong.keys), wrong.text)

    # Rules between keys

    def reducer(self, tree: Table, values: Mapping[str, Any]) -> None:
        found = values["type"]
        if values["reducer"] is not None and found is not None and found.name != "list":
            text = f"a reducer is for lists, not for {found}: another value replaces the one before"
            self.problems.add(tree, text, tree.entries["reducer"][0], "reducer")

    def one_way(self, tree: Table) -> None:
        given = [key for key in ("to", "routes", "loop", "parallel") if (it := tree.get(key)) and not _is_null(it)]
        if len(given) != 1:
            text = "one of to, routes, loop, parallel" + (f" is wanted, not {' and '.join(given)}" if given else "")
            self.problems.add(tree, text if given else f"it leads nowhere: {text} is missing")

    def output_schema(self, tree: Table, found: Type | None) -> None:
        fields = tree.get("fields")
        if found is None:
            return
        if found.name == "object" and (fields is None or _is_null(fields)):
            self.problems.add(tree, "an object needs fields: fields: [{name: ..., type: ...}]")
        if found.name != "object" and fields is not None and not _is_null(fields):
            self.problems.add(tree, f"only an object has fields, not {found}", tree.entries["fields"][0], "fields")


def _needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _unread(hint: Any) -> Any:
    """What stands for a key that is missing: nothing to be judged further."""
    return {tuple: (), Mapping: {}}.get(typing.get_origin(hint))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _is_null(tree: Tree) -> bool:
    return isinstance(tree, Leaf) and tree.value is None


def _is_text(tree: Tree) -> typing.TypeGuard[Leaf]:
    return isinstance(tree, Leaf) and isinstance(tree.value, str) and tree.value.isidentifier()


def _lower(sentence: str) -> str:
    first = sentence if sentence[:2].isupper() else sentence[0].lower() + sentence[1:]
    return first.removesuffix(".")


def _unknown(key: object, known: list[str]) -> str:
    if not isinstance(key, str):
        return f"{shown(key)} is no key of this mapping: {_quoted(key)}"
    return f"{shown(key)} is no key of this mapping{did_you_mean(key, known) or '; it has ' + ', '.join(known)}"


def _quoted(key: object) -> str:
    if isinstance(key, bool):
        return "YAML reads yes, no, on and off as true and false: write it in quotes"
    return "write it in quotes"


def _instead(tree: Tree, hint: type) -> str:
    """What may have been meant, for a value of the wrong type."""
    if not isinstance(tree, Leaf) or tree.value is None:
        return ""
    if hint is str:
        return f'; did you mean "{tree.written}"?'
    if isinstance(tree.value, str) and hint is bool:
        word = {"true": "true", "false": "false", "1": "true", "0": "false"}.get(tree.value.lower())
        return f"; did you mean {word}?" if word else ""
    if isinstance(tree.value, str) and hint in (int, float):
        return _number_meant(tree.value, hint)
    if isinstance(tree.value, float) and hint is int and tree.value.is_integer():
        return f"; did you mean {int(tree.value)}?"
    return ""


def _number_meant(text: str, hint: type) -> str:
    try:
        meant = float(text) if hint is float else int(text)
    except ValueError:
        return ""
    return f"; did you mean {meant}?" if isinstance(meant, int) or math.isfinite(meant) else ""


def _out_of_bounds(value: float, rules: Mapping[str, Any]) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no number to work with"
    if "more_than" in rules and not value > rules["more_than"]:
        return f"{shown(value)} is too small: more than {rules['more_than']} is wanted"
    least, most = rules.get("least"), rules.get("most")
    if (least is not None and value < least) or (most is not None and value > most):
        return f"{shown(value)} is out of bounds: {_bounds(rules)} is wanted"
    return None


def _bounds(rules: Mapping[str, Any]) -> str:
    if "more_than" in rules:
        return f"more than {rules['more_than']} and up to {rules['most']}"
    return f"{rules['least']} to {rules['most']}" if "most" in rules else f"{rules['least']} or more"
