"""`cost_summary.json`: its numbers, its money, its schema."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]

from pytest_agenttrace.gemini_server import ErrorReply, GeminiServer, Reply
from pytest_agenttrace.workflow.cost_summary import CostSummary, generated_schema, shipped_schema
from tests.observed import PROMPT, config, folder_fixture, graph, model_fixture, watched

__all__ = ["folder_fixture", "model_fixture"]


def summary_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.rglob("cost_summary.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(found, json.loads(shipped_schema()))
    return found


def usage(given: int, got: int) -> dict[str, int | None]:
    unknown = dict.fromkeys(["cache_read_input_tokens", "thoughts_tokens", "tool_use_tokens"])
    return {"input_tokens": given, "output_tokens": got, "total_tokens": given + got, **unknown}


def node(given: int, got: int, cost: str) -> dict[str, Any]:
    counts = {"executions": 1, "attempts": 1, "llm_calls": 1, "tool_calls": 0}
    return {**counts, "tokens": given + got, "usage": usage(given, got), "cost": cost}


def test_the_schema_that_is_shipped_is_that_of_the_data() -> None:
    """`python -c "from pytest_agenttrace.workflow import cost_summary as c; print(c.generated_schema(), end='')"`"""
    assert shipped_schema() == generated_schema()
    schema = json.loads(shipped_schema())
    assert schema["properties"].keys() == {found.name for found in dataclasses.fields(CostSummary)}
    jsonschema.Draft202012Validator.check_schema(schema)


def test_totals_nodes_and_models_to_the_last_digit(folder: Path, model: GeminiServer) -> None:
    done = watched(graph(model.url), config())

    found = summary_in(folder)
    assert done.observer.summary is not None
    duration = found["totals"].pop("duration")
    assert duration == done.observer.summary.totals.duration
    assert found == {
        "format": 1,
        "workflow": "demo",
        "version": "1.2.0",
        "status": "ok",
        "trace_ids": list(done.observer.summary.trace_ids),
        "totals": {
            "executions": 2,
            "llm_calls": 2,
            "failed_calls": 0,
            "tool_calls": 0,
            "tokens": 1474,
            "usage": usage(361, 1113),
            "cost": "0.0028908",
        },
        "nodes": {"research": node(150, 500, "0.001295"), "write": node(211, 613, "0.0015958")},
        "models": {"gemini-2.5-flash": {"calls": 2, "tokens": 1474, "usage": usage(361, 1113), "cost": "0.0028908"}},
        "unpriced": [],
        "disagreements": [],
    }


def test_what_nobody_knows_is_null(folder: Path, model: GeminiServer) -> None:
    watched(graph(model.url, "gemini-of-tomorrow"), config())

    found = summary_in(folder)
    assert (found["totals"]["cost"], found["totals"]["tokens"]) == (None, 1474)
    assert found["nodes"]["write"]["cost"] is None
    assert found["models"]["gemini-of-tomorrow"]["cost"] is None
    assert found["unpriced"] == ["gemini-of-tomorrow"]


def test_calls_without_usage_leave_tokens_unknown(folder: Path) -> None:
    with GeminiServer({f"{PROMPT} what": Reply("a", None), f"{PROMPT} to": Reply("b")}) as model:
        watched(graph(model.url), config())

    found = summary_in(folder)
    assert (found["totals"]["tokens"], found["totals"]["cost"]) == (None, None)
    assert found["nodes"]["research"]["tokens"] is None
    assert isinstance(found["nodes"]["write"]["tokens"], int)


def test_a_run_that_failed_says_so_and_what_it_has_used(folder: Path) -> None:
    replies: dict[str, Reply | ErrorReply] = {
        f"{PROMPT} what": Reply("n", {"promptTokenCount": 7, "candidatesTokenCount": 5}),
        f"{PROMPT} to": ErrorReply(400, "no"),
    }
    with GeminiServer(replies) as model:
        watched(graph(model.url), config())

    found = summary_in(folder)
    assert (found["status"], found["totals"]["tokens"], found["totals"]["failed_calls"]) == ("error", 12, 1)
    assert found["nodes"]["write"]["llm_calls"] == 0
