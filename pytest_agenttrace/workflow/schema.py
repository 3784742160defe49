"""The JSON Schema of workflow files, for editors: generated from the models, shipped in the package."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Literal

from pytest_agenttrace.workflow.conditions import Condition
from pytest_agenttrace.workflow.models import Edge, OutputField, OutputSchema, StateField, Tool, WorkflowConfig
from pytest_agenttrace.workflow.placeholders import Template
from pytest_agenttrace.workflow.reading import file_keys, hints
from pytest_agenttrace.workflow.types import NAMES, Member, Type

__all__ = ["SCHEMA", "generated_schema", "shipped_schema"]

# Where the schema lies in the package.
SCHEMA = "workflow.schema.json"

_TEXT = {"type": "string", "minLength": 1}
_SCALARS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    Template: _TEXT,
    Condition: _TEXT,
    Any: {},
    Type: {"anyOf": [{"enum": list(NAMES)}, {"type": "string", "pattern": r"^\s*(list|dict)\s*\[.+\]\s*$"}]},
}
_NULL = {"type": "null"}
_WAYS = ("to", "routes", "loop", "parallel")


def generated_schema() -> str:
    """The JSON Schema of a workflow's file, as it is shipped."""
    defs: dict[str, Any] = {}
    root = _reference(WorkflowConfig, defs)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A workflow of pytest-agenttrace",
        "$defs": defs,
        **root,
    }
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def shipped_schema() -> str:
    """The JSON Schema in the package."""
    return files("pytest_agenttrace.workflow").joinpath(SCHEMA).read_text(encoding="utf-8")


def _reference(cls: type, defs: dict[str, Any]) -> dict[str, Any]:
    if cls.__name__ not in defs:
        # Before its members: it may be one of them.
        defs[cls.__name__] = {}
        defs[cls.__name__] = _table(cls, defs)
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _table(cls: type, defs: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    needed: list[str] = []
    for key, field in file_keys(cls).items():
        properties[key] = _property(cls, field, defs)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            needed.append(key)
        else:
            properties[key] = _or_null(properties[key])
        if "about" in field.metadata:
            properties[key]["description"] = field.metadata["about"]
    for key in {StateField: ["schema"], OutputField: ["schema", "fields"], Member: ["schema"]}.get(cls, []):
        properties[key] = _or_null(_members(key, defs))
        properties[key]["description"] = "The members of the object."
    table = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
    if cls is Edge:
        table["oneOf"] = [{"properties": {way: {"not": _NULL}}, "required": [way]} for way in _WAYS]
    if cls is OutputSchema:
        table["if"] = {"properties": {"type": {"const": "object"}}}
        table["then"] = {"required": ["fields"]}
    return table


def _property(cls: type, field: dataclasses.Field[Any], defs: dict[str, Any]) -> dict[str, Any]:
    return _value(hints(cls)[field.name], field.metadata, defs)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, _NULL]} if schema else {}


def _value(hint: Any, rules: Mapping[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _value(next(part for part in arguments if part is not type(None)), rules, defs)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        listed = {"type": "array", "items": _value(arguments[0], {}, defs), "minItems": 1 if rules.get("some") else 0}
        return {"anyOf": [_TEXT, listed]} if rules.get("single") else listed
    if origin is Mapping:
        least = 1 if rules.get("some") else 0
        return {"type": "object", "additionalProperties": _value(arguments[1], {}, defs), "minProperties": least}
    if hint is Tool:
        return {"anyOf": [_TEXT, _reference(Tool, defs)]}
    if hint in _SCALARS:
        bounds = {"least": "minimum", "most": "maximum", "more_than": "exclusiveMinimum"}
        return {**_SCALARS[hint], **{bounds[rule]: value for rule, value in rules.items() if rule in bounds}}
    return _reference(hint, defs)


def _members(key: str, defs: dict[str, Any]) -> dict[str, Any]:
    if key == "fields":
        return {"type": "array", "items": _reference(OutputField, defs)}
    member = {"anyOf": [_SCALARS[Type], _reference(Member, defs)]}
    return {"type": "object", "additionalProperties": member, "minProperties": 1}
