"""What is taken out of spans before they are written, on spans made by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_agenttrace.store import TraceFacts
from pytest_agenttrace.workflow.keeping import REMOVED, Keeping, node_of

LONG = 'Say "all" on\nsails, and nothing more.'


def span(kind: str = "CHAIN", node: str | None = "write", events: Any = (), **attributes: Any) -> dict[str, Any]:
    named = {key.replace("__", "."): json.dumps(value) for key, value in attributes.items()}
    metadata = {} if node is None else {"langgraph_node": node, "langgraph_checkpoint_ns": f"{node}:1f|inner:2"}
    return {
        "name": "s",
        "attributes": {"mlflow.spanType": json.dumps(kind), "metadata": json.dumps(metadata), **named},
        "events": list(events),
        "status": {"code": "STATUS_CODE_OK", "message": ""},
    }


def model(*messages: dict[str, Any], node: str | None = "write", **more: Any) -> dict[str, Any]:
    return span("CHAT_MODEL", node, mlflow__spanInputs={"messages": list(messages)}, **more)


def without_prompts(*spans: dict[str, Any], kept: frozenset[str | None] = frozenset()) -> list[dict[str, Any]]:
    return Keeping("standard", lambda node: node in kept).spans(list(spans))


def test_a_prompt_is_taken_out_wherever_it_stands() -> None:
    asked = model({"role": "user", "content": LONG}, mlflow__spanOutputs={"choices": ["fine"]})
    state = span(mlflow__spanInputs={"messages": [{"type": "human", "content": LONG}], "topic": "sails"})
    nested = span(mlflow__spanOutputs={"text": f"I was asked: {LONG}", "as_json": json.dumps({"p": LONG}), LONG: 1})
    error = {"name": "exception", "attributes": {"exception.message": f"400: {LONG!r}", "exception.type": "E"}}
    failed = span(events=[error]) | {"status": {"code": "STATUS_CODE_ERROR", "message": f"no answer to {LONG}"}}

    found = without_prompts(asked, state, nested, failed)
    assert "mlflow.spanInputs" not in found[0]["attributes"]
    assert json.loads(found[0]["attributes"]["mlflow.spanOutputs"]) == {"choices": ["fine"]}
    assert json.loads(found[1]["attributes"]["mlflow.spanInputs"]) == {
        "messages": [{"type": "human", "content": REMOVED}],
        "topic": "sails",
    }
    assert json.loads(found[2]["attributes"]["mlflow.spanOutputs"]) == {
        "text": f"I was asked: {REMOVED}",
        "as_json": json.dumps({"p": REMOVED}),
        REMOVED: 1,
    }
    assert found[3]["events"][0]["attributes"] == {"exception.type": "E"}
    assert found[3]["status"] == {"code": "STATUS_CODE_ERROR", "message": ""}


def test_what_a_model_has_said_before_is_no_prompt() -> None:
    said = {"role": "assistant", "content": "A long answer of the model."}
    result = {"role": "tool", "content": "A long result of the tool."}
    found = without_prompts(
        model({"role": "system", "content": "Be very short, please."}, {"role": "user", "content": LONG}, said, result),
        span(mlflow__spanOutputs=[said["content"], result["content"], "Be very short, please."]),
    )
    assert json.loads(found[1]["attributes"]["mlflow.spanOutputs"]) == [said["content"], result["content"], REMOVED]


@pytest.mark.parametrize(
    "inputs",
    [
        [[{"content": LONG, "type": "human"}]],  # MLflow 3.9
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}, {"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": [LONG]}]},
        LONG,
        [LONG],
    ],
)
def test_prompts_are_found_in_every_form(inputs: Any) -> None:
    found = without_prompts(span("CHAT_MODEL", mlflow__spanInputs=inputs), span(mlflow__spanOutputs=LONG))
    assert json.loads(found[1]["attributes"]["mlflow.spanOutputs"]) == REMOVED


def test_a_short_prompt_is_taken_out_where_it_stands_alone() -> None:
    found = without_prompts(model({"role": "user", "content": "hi"}), span(mlflow__spanOutputs=["hi", "this"]))
    assert json.loads(found[1]["attributes"]["mlflow.spanOutputs"]) == [REMOVED, "this"]


def test_a_prompt_that_is_called_like_a_node_or_a_model_hides_neither() -> None:
    asked = model({"role": "user", "content": "write"}, mlflow__llm__model="write")
    (found,) = without_prompts(asked)
    metadata = json.loads(found["attributes"]["metadata"])
    assert metadata == {"langgraph_node": "write", "langgraph_checkpoint_ns": "write:1f|inner:2"}
    assert json.loads(found["attributes"]["mlflow.llm.model"]) == "write"


def test_a_node_may_keep_its_own() -> None:
    other = "Another prompt, of another node."
    spans = [model({"role": "user", "content": LONG}), model({"role": "user", "content": other}, node="read")]
    found = without_prompts(*spans, kept=frozenset({"read"}))
    assert "mlflow.spanInputs" not in found[0]["attributes"]
    assert found[1] == spans[1]


def test_where_prompts_are_kept_nothing_is_changed() -> None:
    spans = [model({"role": "user", "content": LONG}), span(odd="\ud800")]
    assert Keeping("full", lambda node: True).spans(spans) is spans


def test_the_row_of_a_trace_follows() -> None:
    keeping = Keeping("standard", lambda node: False)
    keeping.spans([span(mlflow__spanInputs={"q": LONG}), model({"role": "user", "content": LONG})])
    facts = TraceFacts(json.dumps({"q": LONG}), None, {"mlflow.traceInputs": LONG}, {"note": f"about {LONG}"})
    inputs = json.dumps({"q": REMOVED})
    assert keeping.facts(facts) == TraceFacts(
        inputs, None, {"mlflow.traceInputs": inputs}, {"note": f"about {REMOVED}"}
    )


def test_a_prompt_that_mlflow_has_cut_short_in_a_preview_is_gone_too() -> None:
    long = "SECRET " + "and more of it, " * 200
    keeping = Keeping("standard", lambda node: False)
    root = span("CHAIN", None, mlflow__spanInputs={"topic": long}, mlflow__spanOutputs={"said": "word " * 500})
    keeping.spans([root, model({"role": "user", "content": long})])
    cut = json.dumps({"topic": long})[:997] + "..."
    found = keeping.facts(TraceFacts(cut, "x", {"mlflow.traceInputs": cut, "mlflow.traceOutputs": "x"}, {}))
    assert found.request == found.metadata["mlflow.traceInputs"] == json.dumps({"topic": REMOVED})
    assert found.response is not None
    assert (len(found.response), found.response[-3:]) == (1000, "...")


def test_minimal_keeps_a_list_and_nothing_else() -> None:
    error = {"name": "exception", "attributes": {"exception.type": "E", "exception.message": LONG}}
    made = span(
        "CHAT_MODEL",
        events=[error, {"name": "token", "attributes": {"t": LONG}}],
        mlflow__spanInputs=LONG,
        mlflow__chat__tokenUsage={"total_tokens": 3},
        of_a_later_mlflow=LONG,
        invocation_params={"model": "m", "stop": [LONG]},
    )
    made |= {"status": {"code": "STATUS_CODE_ERROR", "message": LONG}, "links": [LONG]}
    made["attributes"]["metadata"] = json.dumps({"langgraph_node": "write", "mine": LONG})
    (found,) = Keeping("minimal", lambda node: True).spans([made])
    assert found == {
        "name": "s",
        "attributes": {
            "mlflow.spanType": '"CHAT_MODEL"',
            "mlflow.chat.tokenUsage": '{"total_tokens": 3}',
            "metadata": '{"langgraph_node": "write"}',
            "invocation_params": '{"model": "m"}',
        },
        "events": [{"name": "exception", "attributes": {"exception.type": "E"}}],
        "status": {"code": "STATUS_CODE_ERROR", "message": ""},
        "links": [],
    }
    facts = TraceFacts(LONG, LONG, {"mlflow.traceInputs": LONG, "mlflow.trace.tokenUsage": "{}"}, {"mine": LONG})
    kept = Keeping("minimal", lambda node: True).facts(facts)
    assert kept == TraceFacts(None, None, {"mlflow.trace.tokenUsage": "{}"}, {})


@pytest.mark.parametrize(
    ("metadata", "node"),
    [
        ({"langgraph_checkpoint_ns": "plan:1f|agent:2e", "langgraph_node": "agent"}, "plan"),
        ({"langgraph_checkpoint_ns": "a:b:1f", "langgraph_node": "a:b"}, "a:b"),
        ({"langgraph_node": "plan"}, "plan"),
        ({}, None),
    ],
)
def test_the_node_of_a_span_is_the_outermost(metadata: dict[str, Any], node: str | None) -> None:
    assert node_of(metadata) == node
