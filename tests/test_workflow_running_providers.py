"""Nodes that ask other providers, by LangChain's own packages where these are installed; servers on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import Any

import pytest

from pytest_agenttrace.workflow import Workflow, WorkflowError, graphs
from pytest_agenttrace.workflow.tools import register, unregister
from tests.running import Run, both, edge, node, workflow

NEEDED = ("langchain", "langchain_openai", "langchain_anthropic")
pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in NEEDED),
    reason="langchain, langchain-openai and langchain-anthropic are not installed",
)
ANSWER = {"s": "x", "n": 3}
MODELS = {"openai": ("gpt-4.1", "/v1"), "anthropic": ("claude-haiku-4-5", "")}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        # How many requests are answered by 503 first.
        self.busy = 0


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if self.server.busy:
            self.server.busy -= 1
            code, found = 503, {"error": {"message": "busy"}}
        else:
            code, found = 200, (_anthropic if self.path.endswith("/messages") else _openai)(body)
        data = json.dumps(found).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _openai(body: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "hello"}
    if "tools" in body and not any(each["role"] == "tool" for each in body["messages"]):
        call = {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"q": "z"}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    elif "response_format" in body:
        message["content"] = json.dumps(ANSWER)
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [choice],
        "usage": usage,
    }


def _anthropic(body: dict[str, Any]) -> dict[str, Any]:
    names = [tool["name"] for tool in body.get("tools", [])]
    results = [part for each in body["messages"] if isinstance(each["content"], list) for part in each["content"]]
    content: dict[str, Any] = {"type": "text", "text": "hello"}
    if names and ("look" not in names or not any(part["type"] == "tool_result" for part in results)):
        arguments = {"q": "z"} if "look" in names else ANSWER
        content = {"type": "tool_use", "id": "t1", "name": names[0], "input": arguments}
    elif {"output_config", "output_format"} & body.keys():
        content["text"] = json.dumps(ANSWER)
    reason = "tool_use" if content["type"] == "tool_use" else "end_turn"
    usage = {"input_tokens": 3, "output_tokens": 4}
    head = {"id": "m", "type": "message", "role": "assistant", "model": body["model"], "stop_sequence": None}
    return {**head, "content": [content], "stop_reason": reason, "usage": usage}


@contextmanager
def _serving() -> Iterator[_Server]:
    server = _Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "dummy")
        patch.setenv("ANTHROPIC_API_KEY", "dummy")
        patch.setattr(graphs, "WAITS", (0.01, 0.02))
        yield server
    server.shutdown()
    server.server_close()


def _asking(provider: str, server: _Server, *outputs: str, tools: tuple[str, ...] = ()) -> Workflow:
    model, path = MODELS[provider]
    address = f"http://127.0.0.1:{server.server_port}{path}"
    llm = {"provider": provider, "model": model, "api_base": address, "max_tokens": 100, "temperature": 0}
    nodes = [node("a", "hi", *outputs, llm=llm, tools=list(tools))]
    return workflow({"s": "str", "n": "int"}, nodes, [edge("START", "a"), edge("a", "END")], max_retries=1)


@both
@pytest.mark.parametrize("provider", MODELS)
def test_text_a_schema_and_tools(run: Run, provider: str) -> None:
    def look(q: str) -> str:
        """Look."""
        return f"seen {q}"

    register("look", look)
    try:
        with _serving() as server:
            assert run(_asking(provider, server, "s: str"), {}) == {"s": "hello", "n": None}
            assert run(_asking(provider, server, "s: str", "n: int"), {}) == ANSWER
            assert len(server.asked) == 2
            assert run(_asking(provider, server, "s: str", tools=("look",)), {}) == {"s": "hello", "n": None}
            assert run(_asking(provider, server, "s: str", "n: int", tools=("look",)), {}) == ANSWER
    finally:
        unregister("look")

    assert len(server.asked) == 7
    assert all("seen z" in json.dumps(body) for body in (server.asked[3], server.asked[5], server.asked[6]))
    assert {body["temperature"] for body in server.asked} == {0}


@both
@pytest.mark.parametrize("provider", MODELS)
def test_one_layer_tries_again(run: Run, provider: str) -> None:
    with _serving() as server:
        found = _asking(provider, server, "s: str")
        server.busy = 1
        assert run(found, {})["s"] == "hello"
        assert len(server.asked) == 2
        server.busy = 9
        with pytest.raises(WorkflowError) as caught:
            run(found, {})

    assert len(server.asked) == 4
    assert str(caught.value).startswith(f"f.yaml:11:3: node a: {MODELS[provider][0]}: ")
    assert str(caught.value).endswith("(attempt 2 of 2)")


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("anthropic", "m needs an API key: set ANTHROPIC_API_KEY"),
        ("openai", "openai m cannot be asked: OpenAIError: "),
        ("mistralai", "provider mistralai needs a package: pip install langchain-mistralai"),
        ("bedrock", "provider bedrock needs a package: pip install langchain-aws"),
        ("acme", "acme m cannot be asked: ValueError: Unsupported provider='acme'."),
    ],
)
def test_what_is_missing_is_told(provider: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    nodes = [node("a", "hi", "s: str", llm={"provider": provider, "model": "m"})]
    with pytest.raises(WorkflowError) as caught:
        workflow({"s": "str"}, nodes, [edge("START", "a"), edge("a", "END")]).run({})

    assert str(caught.value).startswith(f"f.yaml:9:3: node a: {message}")
