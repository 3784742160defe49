"""What goes wrong while a workflow runs: retries counted at the server, timeouts that hold, replies that do not fit."""
# ruff: noqa: E501  # a row is a case, with its message whole

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from pytest_agenttrace import ErrorReply, GeminiServer, Reply
from pytest_agenttrace.gemini_server import ScriptedRequest
from pytest_agenttrace.workflow import Workflow, WorkflowError, asking, graphs
from tests.running import Run, both, edge, node, served, workflow

LINE = [edge("START", "write"), edge("write", "END")]
BUSY = ErrorReply(503, "busy")


def _writer(*outputs: str, prompt: str = "Write", **execution: Any) -> Workflow:
    fields = dict(output.split(": ") for output in outputs)
    return workflow(fields, [node("write", prompt, *outputs)], LINE, **execution)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "WAITS", (0.01, 0.02))


# Retries


@both
@pytest.mark.parametrize(
    "reply", [BUSY, ErrorReply(429, "slow down"), ErrorReply(500, "oops"), Reply("[1, 2"), Reply(json={"n": "3"})]
)
def test_a_node_is_tried_again(run: Run, reply: Any) -> None:
    with served([reply, Reply(json={"n": 3})]) as server:
        assert run(_writer("n: int", max_retries=1), {}) == {"n": 3}
    assert len(server.requests) == 2


@both
@pytest.mark.parametrize("retries", [0, 1, 2])
def test_retries_are_counted(run: Run, retries: int) -> None:
    """One layer tries again, not the client too: max_retries 2 are 3 requests."""
    with served(lambda _: BUSY) as server, pytest.raises(WorkflowError) as caught:
        run(_writer("n: int", max_retries=retries), {})

    assert len(server.requests) == retries + 1
    attempts = f" (attempt {retries + 1} of {retries + 1})" if retries else ""
    message = str(caught.value)
    assert message.startswith("f.yaml:9:3: node write: gemini-2.5-flash-lite: ")
    assert "503" in message
    assert message.endswith(attempts)
    assert caught.value.__cause__ is not None
    assert (caught.value.node, caught.value.place) == ("write", "f.yaml:9:3")


@both
@pytest.mark.parametrize("reply", [ErrorReply(400, "bad"), ErrorReply(403, "no"), ErrorReply(404, "what")])
def test_what_cannot_go_better_is_not_tried_again(run: Run, reply: ErrorReply) -> None:
    with served(lambda _: reply) as server, pytest.raises(WorkflowError) as caught:
        run(_writer("n: int", max_retries=3), {})

    assert len(server.requests) == 1
    assert str(reply.code) in str(caught.value)
    assert "attempt" not in str(caught.value)


@both
def test_a_server_that_is_not_there_is_tried_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "dummy")
    with GeminiServer([]) as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
    with pytest.raises(WorkflowError) as caught:
        run(_writer("n: int", max_retries=1), {})

    assert str(caught.value).endswith(" (attempt 2 of 2)")


def test_only_the_branch_that_failed_is_asked_again() -> None:
    counts = {"a": 0, "b": 0}

    def script(request: ScriptedRequest) -> Reply | ErrorReply:
        counts[request.prompt] += 1
        return BUSY if request.prompt == "b" and counts["b"] < 3 else Reply(request.prompt)

    fields, nodes = {"a": "str", "b": "str"}, [node(name, name, f"{name}: str") for name in "ab"]
    edges = [edge("START", "a", "b"), edge("a", "END"), edge("b", "END")]
    with served(script):
        assert workflow(fields, nodes, edges).run({}) == {"a": "a", "b": "b"}
    assert counts == {"a": 1, "b": 3}


# Replies


@both
@pytest.mark.parametrize(
    ("outputs", "reply", "message"),
    [
        (["n: int"], Reply(json={"n": 3.0}), "the reply does not fit the schema: n: int is wanted, not float 3.0"),
        (["n: int"], Reply(json={"n": True}), "the reply does not fit the schema: n: int is wanted, not bool true"),
        (["n: int"], Reply(json={"m": 1}), "the reply does not fit the schema: the object has no member 'm'; its member 'n' is missing"),
        (["n: int"], Reply(json=[1]), "the reply does not fit the schema: object is wanted, not list [1]"),
        (["n: float"], Reply('{"n": NaN}'), "the reply is no JSON: NaN is no JSON: '{\"n\": NaN}'"),
        (["n: int"], Reply('{"n": 1', finish_reason="MAX_TOKENS"), "the reply is no JSON (MAX_TOKENS): Expecting ',' delimiter: line 1 column 8 (char 7): '{\"n\": 1'"),
        (["n: int"], Reply(""), "the reply is empty"),
        (["n: str"], Reply(" ", finish_reason="SAFETY"), "the reply is empty (SAFETY)"),
        (["n: list[str]"], Reply(json=["a", 1]), "the reply does not fit the schema: n[1]: str is wanted, not int 1"),
        (["n: int"], Reply("12", finish_reason="MAX_TOKENS"), "the reply is cut (MAX_TOKENS): max_tokens is not set: '12'"),
        (["n: dict"], Reply(json={"n": 3}), "the reply does not fit the schema: n: dict is wanted, not int 3"),
        (["n: list[int]"], Reply(json={"n": list("abcd")}), "the reply does not fit the schema: n[0]: int is wanted, not str 'a'; n[1]: int is wanted, not str 'b'; n[2]: int is wanted, not str 'c'; and 1 more"),
    ],
)  # fmt: skip
def test_a_reply_that_does_not_fit_is_told(run: Run, outputs: list[str], reply: Reply, message: str) -> None:
    with served(lambda _: reply) as server, pytest.raises(WorkflowError) as caught:
        run(_writer(*outputs, max_retries=0), {})

    assert str(caught.value) == f"f.yaml:9:3: node write: gemini-2.5-flash-lite: {message}"
    assert len(server.requests) == 1


@both
@pytest.mark.parametrize(
    ("reason", "llm", "message"),
    [
        ("MAX_TOKENS", {"max_tokens": 1000}, "the reply is cut (MAX_TOKENS): max_tokens is 1,000: 'Once upon a'"),
        ("MAX_TOKENS", {}, "the reply is cut (MAX_TOKENS): max_tokens is not set: 'Once upon a'"),
        ("SAFETY", {}, "the reply is cut (SAFETY): 'Once upon a'"),
    ],
)
def test_a_text_that_is_cut_is_no_answer(run: Run, reason: str, llm: dict[str, Any], message: str) -> None:
    found = workflow({"n": "str"}, [node("write", "Write", "n: str", llm=llm)], LINE, max_retries=1)
    cut = Reply("Once upon a", finish_reason=reason)
    with served([cut, Reply("Once.")]):
        assert run(found, {}) == {"n": "Once."}
    with served(lambda _: cut) as server, pytest.raises(WorkflowError) as caught:
        run(found, {})

    assert str(caught.value) == f"f.yaml:9:3: node write: gemini-2.5-flash-lite: {message} (attempt 2 of 2)"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("said", "cut"),
    [
        ({"finish_reason": "length"}, "the reply is cut (length): max_tokens is 5"),
        ({"stop_reason": "max_tokens"}, "the reply is cut (max_tokens): max_tokens is 5"),
        ({"done_reason": "length"}, "the reply is cut (length): max_tokens is 5"),
        ({"finish_reason": "content_filter"}, "the reply is cut (content_filter)"),
        ({"stop_reason": "end_turn"}, ""),
        ({"finish_reason": "tool_calls"}, ""),
        ({}, ""),
    ],
)
def test_other_providers_say_in_their_words_that_a_text_is_cut(said: dict[str, str], cut: str) -> None:
    """What their packages put into a message, which are not all here to be asked."""
    written = _writer("n: str").config
    settings = dataclasses.replace(written.llm_of(written.nodes[0]), max_tokens=5)
    question = asking.Question(written.nodes[0], settings, "Write")
    reply = AIMessage("Once", response_metadata=said)
    if not cut:
        assert asking._outputs(question, reply) == {"n": "Once"}
        return
    with pytest.raises(WorkflowError) as caught:
        asking._outputs(question, reply)
    assert caught.value.text == f"gemini-2.5-flash-lite: {cut}: 'Once'"
    assert caught.value.again


@both
def test_a_blocked_prompt_is_told_and_not_asked_again(run: Run) -> None:
    with served(lambda _: Reply(block_reason="SAFETY")) as server, pytest.raises(WorkflowError) as caught:
        run(_writer("n: str", max_retries=3), {})

    assert str(caught.value) == "f.yaml:9:3: node write: gemini-2.5-flash-lite: the prompt was blocked: SAFETY"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("output", "text", "value"),
    [
        ("n: str", "  as it is", "  as it is"),
        ("n: int", '```json\n{"n": 3}\n```', 3),
        ("n: float", '{"n": 3}', 3),
        ("n: dict[int, str]", '{"n": {"1": "a", "-2": "b"}}', {1: "a", -2: "b"}),
        ("n: dict[bool, float]", '{"n": {"true": 1.5}}', {True: 1.5}),
        ("n: dict[str, list[int]]", '{"n": {"a": [1]}}', {"a": [1]}),
        ("n: dict", '{"n": {"a": [1, null, {"b": true}]}}', {"a": [1, None, {"b": True}]}),
        ("n: list", '{"n": [1, "a", null]}', [1, "a", None]),
        # The value alone, without the object that was asked for.
        ("n: list[str]", '["a"]', ["a"]),
        ("n: list", "```json\n[1, [2]]\n```", [1, [2]]),
        ("n: int", "3", 3),
        ("n: float", "3", 3),
        ("n: bool", "true", True),
        ("n: dict[int, str]", '{"1": "a"}', {1: "a"}),
        ("n: dict", '{"a": 1}', {"a": 1}),
        # What can be read as both is what was asked for.
        ("n: dict", '{"n": {"n": {"a": 1}}}', {"n": {"a": 1}}),
        ("n: dict", '{"n": {}, "m": 1}', {"n": {}, "m": 1}),
        ("n: dict[str, dict[str, int]]", '{"n": {"a": 1}}', {"n": {"a": 1}}),
    ],
)
def test_what_is_read_of_a_reply(output: str, text: str, value: Any) -> None:
    with served([Reply(text)]):
        assert _writer(output, max_retries=0).run({}) == {"n": value}


def test_an_object_within_objects_is_whole() -> None:
    schema = {
        "type": "object",
        "fields": [
            {"name": "n", "type": "object", "schema": {
                "name": "str",
                "nick": {"type": "str", "default": "none"},
                "old": {"type": "int", "required": False},
                "at": {"type": "list[object]", "schema": {"x": "float"}},
            }}
        ],
    }  # fmt: skip
    kind = {"type": "object", "schema": schema["fields"][0]["schema"]}  # type: ignore[index]
    nodes = [{"id": "write", "prompt": "Write", "outputs": ["n"], "output_schema": schema}]
    with served(
        [Reply(json={"n": {"name": "A", "at": [{"x": 1}, {"x": 2.5}]}}), Reply(json={"n": {"at": [{"y": 1}]}})]
    ) as server:
        assert workflow({"n": kind}, nodes, LINE).run({})["n"] == {
            "name": "A", "nick": "none", "old": None, "at": [{"x": 1}, {"x": 2.5}],
        }  # fmt: skip
        with pytest.raises(WorkflowError) as caught:
            workflow({"n": kind}, nodes, LINE, max_retries=0).run({})

    assert str(caught.value).endswith(
        "the reply does not fit the schema: n: its member 'name' is missing; "
        "n.at[0]: the object has no member 'y'; n.at[0]: its member 'x' is missing"
    )
    assert server.requests[0][1]["generationConfig"]["responseJsonSchema"]["properties"]["n"] == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "nick": {"type": "string"},
            "old": {"type": "integer"},
            "at": {
                "type": "array",
                "items": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
            },
        },
        "required": ["name", "at"],
    }


# Timeouts


@both
def test_a_timeout_holds_while_a_server_is_silent(run: Run) -> None:
    free = threading.Event()

    def script(_: ScriptedRequest) -> Reply:
        free.wait(30)
        return Reply("late")

    with served(script) as server:
        begun = time.monotonic()
        with pytest.raises(WorkflowError) as caught:
            run(_writer("n: str", timeout=0.3, max_retries=1), {})
        took = time.monotonic() - begun
        free.set()

    assert str(caught.value) == (
        "f.yaml:9:3: node write: no answer after 0.3 s, the execution.timeout (attempt 2 of 2)"
    )
    assert len(server.requests) == 2
    assert took < 15


@both
def test_a_timeout_holds_while_a_server_trickles(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps a client's own timeout from ever ending."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
                while not over.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        monkeypatch.setenv("GOOGLE_API_KEY", "dummy")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(WorkflowError, match=r"no answer after 0\.4 s, the execution\.timeout\b"):
            run(_writer("n: str", timeout=0.4, max_retries=0), {})
        took = time.monotonic() - begun
        over.set()
        thread.join(5)

    assert 0.3 < took < 15


@both
def test_a_node_that_is_in_time_after_a_timeout_goes_on(run: Run) -> None:
    free, asked = threading.Event(), []

    def script(request: ScriptedRequest) -> Reply:
        asked.append(request.prompt)
        if len(asked) == 1:
            free.wait(30)
            return Reply("late")
        return Reply("in time")

    with served(script):
        assert run(_writer("n: str", timeout=0.5, max_retries=1), {}) == {"n": "in time"}
        free.set()


def test_each_node_has_a_timeout_of_its_own() -> None:
    def script(request: ScriptedRequest) -> Reply:
        time.sleep(0.3)
        return Reply(request.prompt)

    fields, nodes = {"a": "str", "b": "str"}, [node(name, name, f"{name}: str") for name in "ab"]
    with served(script):
        found = workflow(
            fields, nodes, [edge("START", "a"), edge("a", "b"), edge("b", "END")], timeout=0.55, max_retries=0
        )
        assert found.run({}) == {"a": "a", "b": "b"}
