"""A small valid workflow for tests to change, and the real ones that lie beside the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_agenttrace.workflow import ConfigError, WorkflowConfig, parse_config

SHARED = Path(__file__).resolve().parents[2] / "shared" / "workflows"

VALID = """\
schema_version: "1.0"
flow:
  name: article_writer
  version: "1.0.0"
state:
  fields:
    topic: {type: str, required: true}
    depth: {type: int, default: 1}
    tags: {type: "list[str]", default: []}
    done: {type: bool, default: false}
    article: {type: str, default: ""}
    author:
      type: object
      schema:
        name: str
        age: {type: int, required: true}
nodes:
  - id: research
    prompt: |
      Research {state.topic} for {state.author.name}.
    tools: [web_search]
    outputs: [tags, done]
    output_schema:
      type: object
      fields:
        - {name: tags, type: "list[str]"}
        - {name: done, type: bool}
  - id: write
    inputs: {query: "{state.topic}"}
    prompt: Write on {query}, {depth} pages
    outputs: [article]
    output_schema: {type: str}
edges:
  - {from: START, to: research}
  - from: research
    routes:
      - condition: {logic: "state.depth > 1 and not done"}
        to: write
      - condition: {logic: default}
        to: END
  - {from: write, to: END}
config:
  llm: {provider: google, model: gemini-2.5-flash}
"""


def valid(*changes: tuple[str, str]) -> WorkflowConfig:
    """The workflow with texts of it changed, each of them once."""
    return parse_config(changed(*changes), "w.yaml")


def changed(*changes: tuple[str, str]) -> str:
    text = VALID
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} stands there {text.count(old)} times"
        text = text.replace(old, new)
    return text


def problems(*changes: tuple[str, str]) -> list[str]:
    """What is wrong with the workflow once texts of it are changed, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        valid(*changes)
    return [line.removeprefix("w.yaml:") for line in str(caught.value).splitlines()]
