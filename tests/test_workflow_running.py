"""Running a workflow: inputs, edges, results; real LangGraph, the real client, replies from a script."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from pytest_agenttrace import GeminiServer, Reply
from pytest_agenttrace.gemini_server import Script
from pytest_agenttrace.workflow import InputsError, Workflow, WorkflowError, WorkflowResult, parse_config
from tests.workflows import SHARED

Run = Callable[[Workflow, Mapping[str, Any]], WorkflowResult]


def _sync(workflow: Workflow, inputs: Mapping[str, Any]) -> WorkflowResult:
    return workflow.run(inputs)


def _async(workflow: Workflow, inputs: Mapping[str, Any]) -> WorkflowResult:
    return asyncio.run(workflow.arun(inputs))


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Script], GeminiServer]]:
    """Starts a server that all models of the test ask."""
    started: list[GeminiServer] = []

    def start(script: Script) -> GeminiServer:
        server = GeminiServer(script)
        started.append(server)
        server.__enter__()
        monkeypatch.setenv("GOOGLE_API_KEY", "dummy")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        return server

    yield start
    for server in started:
        server.__exit__(None, None, None)


Serve = Callable[[Script], GeminiServer]


def shared(name: str) -> Workflow:
    path = SHARED / name
    if not path.is_file():
        pytest.skip("the shared workflows are not beside this checkout")
    return Workflow.load(os.path.relpath(path))


def test_echo(run: Run, serve: Serve) -> None:
    server = serve({"Simply repeat": Reply(json={"result": "hello"})})

    result = run(shared("echo.yaml"), {"message": "hello"})

    assert result == {"message": "hello", "result": "hello"}
    assert repr(result) == "WorkflowResult({'message': 'hello', 'result': 'hello'})"
    assert [body["contents"] for _, body in server.requests] == [
        [{"parts": [{"text": "Simply repeat this message exactly: hello"}], "role": "user"}]
    ]


def test_what_is_wrong_with_inputs_is_told_at_once(serve: Serve) -> None:
    server = serve([])
    workflow = Workflow(
        parse_config(
            """
schema_version: "1.0"
flow: {name: f}
state:
  fields:
    topic: {type: str, required: true, description: What to write about}
    pages: {type: int, default: 1}
    tags: {type: "list[str]", default: []}
nodes:
  - {id: write, prompt: "{topic}", outputs: [topic], output_schema: {type: str}}
edges: [{from: START, to: write}, {from: write, to: END}]
""",
            "f.yaml",
        )
    )

    with pytest.raises(InputsError) as one:
        workflow.run({"topik": "x", "pages": True, "tags": ["a", 1]})
    with pytest.raises(InputsError) as other:
        workflow.run({"topic": "x", "pages": "3"})

    assert str(one.value) == (
        "f.yaml: inputs:\n"
        "  the state has no field 'topik'; did you mean topic?\n"
        "  pages: int is wanted, not bool true\n"
        "  tags[1]: str is wanted, not int 1\n"
        "  topic (str) is missing: What to write about"
    )
    assert str(other.value) == "f.yaml: inputs: pages: int is wanted, not str '3'"
    assert isinstance(one.value, WorkflowError)
    assert server.requests == []
