"""Workflows to run in tests: written in a few words, asked of a server with a script, at once and awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from pytest_agenttrace import GeminiServer
from pytest_agenttrace.gemini_server import Script
from pytest_agenttrace.workflow import Workflow, WorkflowResult, parse_config
from tests.workflows import SHARED

Run = Callable[[Workflow, Mapping[str, Any]], WorkflowResult]


def _sync(workflow: Workflow, inputs: Mapping[str, Any]) -> WorkflowResult:
    return workflow.run(inputs)


def _async(workflow: Workflow, inputs: Mapping[str, Any]) -> WorkflowResult:
    return asyncio.run(workflow.arun(inputs))


both = pytest.mark.parametrize("run", [pytest.param(_sync, id="sync"), pytest.param(_async, id="async")])


@contextmanager
def served(script: Script) -> Iterator[GeminiServer]:
    """A server that all models ask meanwhile."""
    with GeminiServer(script) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_API_KEY", "dummy")
        patch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        yield server


def prompts(server: GeminiServer) -> list[str]:
    """What was asked, by its first text, in order of arrival."""
    return [body["contents"][0]["parts"][0]["text"] for _, body in server.requests]


def shared(name: str) -> Workflow:
    """A real workflow; its path is relative, as users write it."""
    path = SHARED / name
    if not path.is_file():
        pytest.skip("the shared workflows are not beside this checkout")
    return Workflow.load(os.path.relpath(path))


def node(name: str, prompt: str, *outputs: str, **more: Any) -> dict[str, Any]:
    """A node: `node("plan", "Plan {topic}", "topics: list[str]", "done: bool")`; one output alone is a type."""
    pairs = [tuple(output.split(": ", 1)) for output in outputs]
    schema: dict[str, Any] = {"type": "object", "fields": [{"name": field, "type": kind} for field, kind in pairs]}
    if len(pairs) == 1:
        schema = {"type": pairs[0][1]}
    return {"id": name, "prompt": prompt, "outputs": [field for field, _ in pairs], "output_schema": schema, **more}


def edge(source: str, *targets: str, **more: Any) -> dict[str, Any]:
    """An edge: `edge("plan", "write")`, `edge("plan", "a", "b")`, `edge("plan", loop={...})`."""
    return {"from": source, **({"to": list(targets)} if targets else {}), **more}


def route(logic: str, to: str) -> dict[str, Any]:
    return {"condition": {"logic": logic}, "to": to}


def written(
    fields: Mapping[str, Any], nodes: list[dict[str, Any]], edges: list[dict[str, Any]], **execution: Any
) -> str:
    """A file's text. A field is a type, or what the file has for it; `execution` is config.execution."""
    said = {name: {"type": field} if isinstance(field, str) else field for name, field in fields.items()}
    found = {"schema_version": "1.0", "flow": {"name": "f"}, "state": {"fields": said}, "nodes": nodes, "edges": edges}
    if execution:
        found["config"] = {"execution": execution}
    return yaml.safe_dump(found, sort_keys=False, width=1_000)


def workflow(
    fields: Mapping[str, Any], nodes: list[dict[str, Any]], edges: list[dict[str, Any]], **execution: Any
) -> Workflow:
    return Workflow(parse_config(written(fields, nodes, edges, **execution), "f.yaml"))
