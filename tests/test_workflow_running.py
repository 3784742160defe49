"""Running a workflow: inputs and results, the real files; real LangGraph, the real client, replies from a script."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import Any

import pytest

from pytest_agenttrace import Reply
from pytest_agenttrace.gemini_server import ScriptedRequest
from pytest_agenttrace.workflow import InputsError, Workflow, WorkflowError
from pytest_agenttrace.workflow.tools import register, unregister
from tests.running import Run, both, edge, node, prompts, served, shared, workflow

# The files of real users


@both
def test_echo(run: Run) -> None:
    with served({"Simply repeat": Reply(json={"result": "hello"})}) as server:
        result = run(shared("echo.yaml"), {"message": "hello"})

    assert result == {"message": "hello", "result": "hello"}
    assert repr(result) == "WorkflowResult({'message': 'hello', 'result': 'hello'})"
    assert prompts(server) == ["Simply repeat this message exactly: hello"]


@both
def test_one_node(run: Run) -> None:
    with served([Reply(json={"response": "Hi."})]) as server:
        result = run(shared("01_basic_linear.yaml"), {"message": "Hello"})

    assert result == {"message": "Hello", "response": "Hi."}
    path, body = server.requests[0]
    assert path.endswith("/models/gemini-2.5-flash-lite:generateContent")
    # candidateCount is the client's own: 4.0 says none.
    assert {**body["generationConfig"], "candidateCount": 1} == {
        "temperature": 0.7,
        "candidateCount": 1,
        "responseMimeType": "application/json",
        "responseJsonSchema": {
            "title": "process",
            "description": "Process the input message",
            "type": "object",
            "properties": {"response": {"type": "string", "description": "The response message"}},
            "required": ["response"],
        },
    }


@both
def test_a_line_of_nodes(run: Run) -> None:
    with served([Reply(json={"fact": "Named after Monty."}), Reply(json={"summary": "Python, of Monty."})]) as server:
        result = run(shared("03_multi_node_linear.yaml"), {"topic": "Python"})

    assert result == {"topic": "Python", "fact": "Named after Monty.", "summary": "Python, of Monty."}
    assert prompts(server)[1].startswith("Topic: Python\nFact: Named after Monty.\n")


@both
@pytest.mark.parametrize(
    ("sentiment", "answers"), [("positive", ["ack", "HAPPY"]), ("negative", ["ack", "SORRY"]), ("none", ["ack"])]
)
def test_branches_by_condition(run: Run, sentiment: str, answers: list[str]) -> None:
    script = {
        "Analyze": Reply(json={"response": "ack"}),
        "POSITIVE": Reply(json={"response": "HAPPY"}),
        "NEGATIVE": Reply(json={"response": "SORRY"}),
    }
    with served(script) as server:
        result = run(shared("05_conditional_branching.yaml"), {"sentiment": sentiment})

    assert result == {"sentiment": sentiment, "response": answers[-1]}
    assert len(server.requests) == len(answers)


def _iteration(stops_at: int) -> Any:
    def script(request: ScriptedRequest) -> Reply:
        if not request.prompt.startswith("This is iteration"):
            return Reply(json={"accumulated": "all"})
        number = int(request.prompt.split()[3]) + 1
        answer = {"current_iteration": number, "accumulated": "x" * number, "loop_complete": number >= stops_at}
        return Reply(json=answer)

    return script


@both
@pytest.mark.parametrize(("stops_at", "ran"), [(3, 3), (1, 1), (5, 5), (99, 5)])
def test_a_loop_until_its_field_or_its_most(run: Run, stops_at: int, ran: int) -> None:
    with served(_iteration(stops_at)) as server:
        result = run(shared("06_loop_iteration.yaml"), {"target_count": stops_at})

    assert result["current_iteration"] == ran
    assert result["loop_complete"] is (stops_at <= 5)
    assert result["accumulated"] == "all"
    assert len(server.requests) == ran + 1


@both
def test_types_are_enforced(run: Run) -> None:
    answer = {
        "score": 80,
        "is_trending": True,
        "keywords": ["a", "b"],
        "categories": {"tech": 90},
        "analysis": {"summary": "s", "sentiment": "positive", "confidence": 1, "tags": ["t"]},
    }
    with served([Reply(json=answer)]) as server:
        result = run(shared("type_enforcement.yaml"), {"topic": "AI"})

    assert result == {"topic": "AI", **answer}
    asked = server.requests[0][1]["generationConfig"]
    assert asked["temperature"] == 0.3
    assert asked["responseJsonSchema"]["properties"] == {
        "score": {"type": "integer", "description": "Popularity score 1-100"},
        "is_trending": {"type": "boolean", "description": "True if currently trending"},
        "keywords": {"type": "array", "items": {"type": "string"}, "description": "List of relevant keywords"},
        "categories": {
            "type": "object",
            "additionalProperties": {"type": "integer"},
            "description": "Category to relevance score mapping",
        },
        "analysis": {
            "type": "object",
            "properties": {
                "summary": {"type": "string"},
                "sentiment": {"type": "string"},
                "confidence": {"type": "number"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["summary", "sentiment", "confidence", "tags"],
            "description": "Detailed analysis",
        },
    }


@both
def test_a_node_called_like_a_field_and_its_tool(run: Run) -> None:
    script = [
        Reply(tool_calls=[("serper_search", {"query": "sails"})]),
        Reply("Sails are thin."),
        Reply(json={"research": "Thin sails."}),
        Reply(json={"article": "On sails.", "word_count": 2}),
    ]

    def search(query: str) -> str:
        """Search the web."""
        return f"found {query}"

    register("serper_search", search)
    try:
        with served(script) as server:
            result = run(shared("article_writer.yaml"), {"topic": "solar sails"})
    finally:
        unregister("serper_search")

    assert result == {"topic": "solar sails", "research": "Thin sails.", "article": "On sails.", "word_count": 2}
    assert "Thin sails." in prompts(server)[3]


def test_a_tool_nobody_registered_is_told_before_anything_is_asked() -> None:
    found = shared("article_writer.yaml")
    with served([]) as server, pytest.raises(WorkflowError) as caught:
        found.run({"topic": "solar sails"})

    assert str(caught.value).split(": ", 1)[1] == (
        "node research: tool serper_search: no tool of this name is known; nothing is registered. Register it, "
        'pytest_agenttrace.workflow.tools.register("serper_search"), name it by import, module:attribute, or install a '
        "package with an entry point serper_search in agenttrace.tools"
    )
    assert caught.value.node == "research"
    assert caught.value.place.endswith("article_writer.yaml:31:5")
    assert server.requests == []


def test_another_provider_without_its_packages_is_told_before_anything_is_asked() -> None:
    if find_spec("langchain") is not None:
        pytest.skip("langchain is installed")
    found = shared("08_multi_llm.yaml")
    with served([]) as server, pytest.raises(WorkflowError) as caught:
        found.run({"question": "What is 2+2?"})

    assert str(caught.value).split(": ", 1)[1] == (
        "node ask_anthropic: provider anthropic needs packages: pip install langchain langchain-anthropic"
    )
    assert server.requests == []


# Inputs and results


FIELDS = {
    "topic": {"type": "str", "required": True, "description": "What to write about"},
    "pages": {"type": "int", "default": 1},
    "tags": {"type": "list[str]", "default": ["a"]},
    "author": {"type": "object", "schema": {"name": "str", "age": {"type": "int", "required": True}}},
    "rate": "float",
    "text": "str",
}
LINE = [edge("START", "write"), edge("write", "END")]


def _writer(prompt: str = "On {topic}") -> Workflow:
    return workflow(FIELDS, [node("write", prompt, "text: str")], LINE)


def test_what_is_wrong_with_inputs_is_told_at_once() -> None:
    with served([]) as server:
        with pytest.raises(InputsError) as one:
            _writer().run({"topik": "x", "pages": True, "tags": ["a", 1], "author": {"name": "A"}, "rate": 1})
        with pytest.raises(InputsError) as other:
            _writer().run({"topic": "x", "pages": "3"})
        with pytest.raises(InputsError) as none:
            _writer().run({"topic": None})
        with pytest.raises(InputsError) as text:
            _writer().run("x")  # type: ignore[arg-type]

    assert str(one.value) == (
        "f.yaml: inputs:\n"
        "  the state has no field 'topik'; did you mean topic?\n"
        "  pages: int is wanted, not bool true\n"
        "  tags[1]: str is wanted, not int 1\n"
        "  author: its member 'age' is missing\n"
        "  topic (str) is missing: What to write about"
    )
    assert str(other.value) == "f.yaml: inputs: pages: int is wanted, not str '3'"
    assert str(none.value) == "f.yaml: inputs: topic: str is wanted, not null"
    assert str(text.value) == "f.yaml: inputs: a mapping of fields is wanted, not str"
    assert isinstance(one.value, WorkflowError)
    assert server.requests == []


@both
def test_fields_begin_with_their_inputs_else_their_defaults_else_null(run: Run) -> None:
    prompt = "{topic}|{pages}|{tags}|{author}|{rate}|{text}"
    with served([Reply("t1"), Reply("t2")]) as server:
        first = run(_writer(prompt), {"topic": "x"})
        given = {"topic": "y", "pages": 2, "tags": ["b"], "author": {"age": 3}, "rate": 2, "text": "old"}
        second = run(_writer(prompt), given)

    assert prompts(server) == [
        'x|1|["a"]|null|null|null',
        'y|2|["b"]|{"name": null, "age": 3}|2|old',
    ]
    assert first == {"topic": "x", "pages": 1, "tags": ["a"], "author": None, "rate": None, "text": "t1"}
    assert second == {**given, "author": {"name": None, "age": 3}, "text": "t2"}


def test_runs_and_inputs_do_not_see_each_other() -> None:
    tags = ["b"]
    found = workflow({**FIELDS}, [node("write", "On {tags}", "tags: list[str]")], LINE)
    with served({"On": Reply(json={"tags": ["c"]})}):
        first = found.run({"topic": "x", "tags": tags})
        first["tags"].append("mine")
        second, third = found.run({"topic": "x", "tags": tags}), found.run({"topic": "x"})

    assert (tags, second["tags"], third["tags"]) == (["b"], ["b", "c"], ["a", "c"])


def test_the_inputs_of_a_node_are_names_of_its_own() -> None:
    inputs = {"topic": "{state.pages} pages", "who": "{author}", "all": "{state.tags}"}
    nodes = [node("write", "{topic}|{state.topic}|{who.age}|{all}", "text: str", inputs=inputs)]
    with served([Reply("t")]) as server:
        workflow(FIELDS, nodes, LINE).run({"topic": "x", "author": {"age": 3}})

    assert prompts(server) == ['1 pages|x|3|["a"]']


def test_a_prompt_reaches_values_only() -> None:
    odd = "{state.__class__} {0} {{topic}} {self}"
    with served([Reply("t")]) as server:
        workflow({**FIELDS, "self": "str"}, [node("write", "On {topic}", "text: str")], LINE).run({"topic": odd})

    assert prompts(server) == [f"On {odd}"]


def test_a_member_that_is_not_there_is_told_with_its_node() -> None:
    found = workflow(FIELDS, [node("write", "By {author.name}", "text: str")], LINE)
    with served([]) as server, pytest.raises(WorkflowError) as caught:
        found.run({"topic": "x"})

    assert str(caught.value) == "f.yaml:29:3: node write: prompt: {author.name}: author is null"
    assert server.requests == []


def test_the_graph_is_any_langgraph_graph() -> None:
    """Its inputs are a user's own names; defaults are there without the runner."""
    fields = {"topic": "str", "tags": {"type": "list[str]", "default": ["a"]}, "write": "str", "n": "int"}
    found = workflow(fields, [node("write", "On {topic} {tags} {n}", "write: str", "tags: list[str]")], LINE)
    assert found.graph is found.graph
    assert found.graph.name == "workflow_f"
    with served({"On": Reply(json={"write": "text", "tags": ["b"]})}) as server:
        state = found.graph.invoke({"topic": "x"})
        assert state == {"topic": "x", "state.write": "text", "tags": ["a", "b"]}
        assert found.run({"topic": "x"}) == {"topic": "x", "write": "text", "tags": ["a", "b"], "n": None}
        assert asyncio.run(found.graph.ainvoke({"topic": "x"})) == state
        updates = list(found.graph.stream({"topic": "x"}, stream_mode="updates"))
    assert updates == [{"write": {"state.write": "text", "tags": ["b"]}}]
    assert prompts(server) == ['On x ["a"] null'] * 4
    properties = found.graph.get_input_jsonschema()["properties"]
    assert list(properties) == ["topic", "tags", "state.write", "n"]
    assert "write(write)" in found.graph.get_graph().draw_mermaid()


def test_a_key_that_is_missing_is_told_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI"):
        monkeypatch.delenv(name, raising=False)
    nodes = [
        node("write", "On {topic}", "text: str"),
        node("check", "Is {text}", "text: str"),
        node("last", "End {text}", "text: str", llm={"model": "gemini-2.5-pro"}),
    ]
    found = workflow(
        FIELDS, nodes, [edge("START", "write"), edge("write", "check"), edge("check", "last"), edge("last", "END")]
    )

    with pytest.raises(WorkflowError) as caught:
        found.run({"topic": "x"})

    key = "needs an API key: set GOOGLE_API_KEY or GEMINI_API_KEY"
    assert str(caught.value) == (
        f"f.yaml:29:3: nodes write, check: gemini-2.5-flash-lite {key}\nf.yaml:41:3: node last: gemini-2.5-pro {key}"
    )


def test_a_model_is_asked_as_the_file_says() -> None:
    llm = {"model": "gemini-2.5-pro", "temperature": 0, "max_tokens": 50}
    with served([Reply("t")]) as server:
        found = workflow(FIELDS, [node("write", "On {topic}", "text: str", llm=llm)], LINE)
        found.run({"topic": "x"})
        own = {**llm, "api_base": server.url}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9")
            with pytest.raises(WorkflowError, match="all replies are used"):
                workflow(FIELDS, [node("write", "On {topic}", "text: str", llm=own)], LINE).run({"topic": "x"})

    path, body = server.requests[0]
    assert path.endswith("/models/gemini-2.5-pro:generateContent")
    asked = body["generationConfig"]
    assert (asked["temperature"], asked["maxOutputTokens"]) == (0, 50)
    assert len(server.requests) == 2
