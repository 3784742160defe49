"""The JSON Schema for editors: the shipped one is generated, valid, and says what the reader says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from pytest_agenttrace.workflow import generated_schema, shipped_schema
from tests.workflows import SHARED, VALID, changed

REAL = sorted(SHARED.glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(shipped_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_shipped_schema_is_the_generated_one() -> None:
    assert shipped_schema() == generated_schema(), "write generated_schema() to workflow/workflow.schema.json"


def test_each_key_is_described() -> None:
    for name, table in json.loads(shipped_schema())["$defs"].items():
        for key, about in table["properties"].items():
            assert about.get("description") or name == "Member", f"{name}.{key}"


@pytest.mark.skipif(not REAL, reason="the real workflows are not beside the project")
@pytest.mark.parametrize("file", REAL, ids=lambda file: file.stem)
def test_real_workflows_are_valid(file: Path, validator: Any) -> None:
    assert list(validator.iter_errors(yaml.safe_load(file.read_text(encoding="utf-8")))) == []


def test_a_workflow_of_each_form_is_valid(validator: Any) -> None:
    assert list(validator.iter_errors(yaml.safe_load(VALID))) == []
    tools = ("[web_search]", "[a, {name: b, on_error: continue}]")
    to = ("{from: START, to: research}", "{from: START, to: [research, write]}")
    loop = ("{from: write, to: END}", "{from: write, loop: {condition_field: done}}")
    assert list(validator.iter_errors(yaml.safe_load(changed(tools, to, loop)))) == []


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("  version: ", "  verison: ", ["flow"]),
        ("depth: {type: int", "depth: {type: itn", ["state", "fields", "depth", "type"]),
        ("    outputs: [article]\n", "", ["nodes", 1]),
        ("    outputs: [article]\n", "    outputs: []\n", ["nodes", 1, "outputs"]),
        ("{from: write, to: END}", "{from: write}", ["edges", 2]),
        ("{from: write, to: END}", "{from: write, to: END, loop: {condition_field: done}}", ["edges", 2]),
        ("output_schema: {type: str}", "output_schema: {type: object}", ["nodes", 1, "output_schema"]),
        ("provider: google", "temperature: 3", ["config"]),
        ("provider: google", "api_key: abc", ["config"]),
    ],
)
def test_what_the_reader_refuses_the_schema_does_too(old: str, new: str, path: list[str | int], validator: Any) -> None:
    errors = list(validator.iter_errors(yaml.safe_load(changed((old, new)))))
    assert [list(error.path) for error in errors] == [path]
