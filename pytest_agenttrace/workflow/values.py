"""The state's values while a workflow runs: defaults beneath, what inputs gave, and what a node's prompt reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from pytest_agenttrace.workflow.failing import InputsError
from pytest_agenttrace.workflow.models import Node, WorkflowConfig
from pytest_agenttrace.workflow.placeholders import ITEM_NAMES, Template
from pytest_agenttrace.workflow.reading import did_you_mean
from pytest_agenttrace.workflow.types import Type, kind_of, mismatches

__all__ = [
    "Anew",
    "channels",
    "checked_inputs",
    "fields_read",
    "gathered",
    "gathers",
    "item_of",
    "rendered",
    "seen",
    "whole",
]


def channels(config: WorkflowConfig) -> dict[str, str]:
    """How LangGraph knows each field: by its own name, but where a node is called the same, which LangGraph refuses."""
    nodes = {node.id for node in config.nodes}
    return {name: f"state.{name}" if name in nodes else name for name in config.state.fields}


class Anew(list[Any]):
    """A list that takes the place of what a field holds, in a field that others append to."""


def gathers(config: WorkflowConfig, name: str) -> bool:
    """Whether a field takes what several nodes, or the items of a map, write in one step."""
    maps = [edge.parallel for edge in config.edges if edge.parallel is not None]
    return config.state.fields[name].appends or name in {found.collect_field for found in maps}


def gathered(before: list[Any] | None, new: list[Any] | None) -> list[Any] | None:
    """What a field holds once a list is added to it, or put in its place, as null is too."""
    if new is None:
        return None
    return [*new] if isinstance(new, Anew) else [*(before or ()), *(new or ())]


def seen(config: WorkflowConfig, state: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of the state by its own name: what the graph holds, else its default, else null."""
    names = channels(config)
    return {
        name: state[names[name]] if names[name] in state else whole(field.initial(), field.type)
        for name, field in config.state.fields.items()
    }


def checked_inputs(config: WorkflowConfig, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a run begins with, by LangGraph's names. Raises `InputsError` with all that is missing, unknown or wrong."""
    given: object = inputs
    if not isinstance(given, Mapping):
        raise InputsError(f"inputs: a mapping of fields is wanted, not {kind_of(given)}", str(config.path))
    problems = list(_problems(config, inputs))
    if problems:
        text = f"inputs: {problems[0]}" if len(problems) == 1 else "\n  ".join(["inputs:", *problems])
        raise InputsError(text, str(config.path))
    names = channels(config)
    return {names[name]: _given(config, name, value) for name, value in inputs.items()}


def _given(config: WorkflowConfig, name: str, value: Any) -> Any:
    found = whole(deepcopy(value), config.state.fields[name].type)
    return Anew(found) if gathers(config, name) and found is not None else found


def _problems(config: WorkflowConfig, inputs: Mapping[str, Any]) -> Iterator[str]:
    fields = config.state.fields
    for name, value in inputs.items():
        if name not in fields:
            near = did_you_mean(str(name), fields) or f"; it has {', '.join(fields)}"
            yield f"the state has no field {name!r}{near}"
        elif value is not None or fields[name].required:
            for found in mismatches(value, fields[name].type):
                yield f"{name}{found.path}: {found.text}"
    for name, field in fields.items():
        if field.required and name not in inputs:
            what = f": {field.description}" if field.description else ""
            yield f"{name} ({field.type}) is missing{what}"


def rendered(node: Node, values: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """A node's prompt. Inputs of the node come first, then fields. Raises LookupError naming what has no value."""
    state = {**values, **item}
    own = {name: _input(template, state) for name, template in node.inputs.items()}
    # An input may be called as a field is: {state.x} is always the field.
    return node.prompt.render({**state, **own, "state": state})


def fields_read(node: Node) -> list[str]:
    """The fields of the state that a node's prompt and inputs name, and names of its own inputs beside them."""
    paths = [found.path for template in (node.prompt, *node.inputs.values()) for found in template.placeholders]
    return list(dict.fromkeys(path[1] if path[0] == "state" and len(path) > 1 else path[0] for path in paths))


def _input(template: Template, state: Mapping[str, Any]) -> Any:
    """Its value as it is where it is one placeholder, a text else."""
    values = {**state, "state": state}
    return template.render(values) if template.only is None else Template.value(template.only, values)


def item_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a parallel map sent beside the state."""
    return {name: state[name] for name in ITEM_NAMES if name in state}


def whole(value: Any, wanted: Type) -> Any:
    """A value with the members that it left out, as their defaults or null, so that a prompt can name them."""
    if isinstance(value, list | tuple):
        return [value_ if wanted.item is None else whole(value_, wanted.item) for value_ in value]
    if not isinstance(value, Mapping):
        return value
    if wanted.members is None:
        return {key: entry if wanted.value is None else whole(entry, wanted.value) for key, entry in value.items()}
    return {
        **{name: deepcopy(member.default) for name, member in wanted.members.items()},
        **{name: whole(entry, wanted.members[name].type) for name, entry in value.items() if name in wanted.members},
    }
