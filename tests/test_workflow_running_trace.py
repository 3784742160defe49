"""A running workflow in its trace: each call in its node, nothing unattributed, at once and awaited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace import CassetteMiss, ErrorReply, Reply, capture
from pytest_agenttrace.capture import AgentTrace, judge
from pytest_agenttrace.gemini_server import ScriptedRequest
from pytest_agenttrace.reconcile import Finding
from pytest_agenttrace.settings import Tolerance
from pytest_agenttrace.workflow import Workflow, graphs
from pytest_agenttrace.workflow.tools import register, unregister
from tests.running import Run, both, edge, node, served, workflow

LINE = [edge("START", "a"), edge("a", "END")]


def _article() -> Workflow:
    fields = {
        "topic": "str",
        "topics": "list[str]",
        "pages": "list[str]",
        "page": "str",
        "left": "str",
        "right": "str",
        "done": "bool",
        "n": "int",
    }
    nodes = [
        node("plan", "Plan {topic}", "topics: list[str]", "n: int", tools=["trace_search"]),
        node("each", "Page {state._parallel_item}", "page: str"),
        node("a", "Left {pages}", "left: str"),
        node("b", "Right {pages}", "right: str"),
        node("check", "Check {n}", "n: int", "done: bool"),
    ]
    edges = [
        edge("START", "plan"),
        edge("plan", parallel={"items_field": "topics", "target_node": "each", "collect_field": "pages"}),
        edge("each", "a", "b"),
        edge("a", "check"),
        edge("b", "check"),
        edge("check", loop={"condition_field": "done"}),
    ]
    return workflow(fields, nodes, edges, max_retries=1)


def _script() -> Any:
    left: list[str] = []

    def script(request: ScriptedRequest) -> Reply | ErrorReply:
        usage = {"promptTokenCount": 10, "candidatesTokenCount": 5}
        if request.prompt.startswith("Plan"):
            if any("functionResponse" in part for content in request.body["contents"] for part in content["parts"]):
                return Reply("found", usage=usage)
            return Reply(tool_calls=[("trace_search", {"query": "q"})], usage=usage)
        if request.prompt.startswith("Give"):
            return Reply(json={"topics": ["x", "y", "z"], "n": 0}, usage=usage)
        if request.prompt.startswith("Check"):
            number = int(request.prompt.split()[1]) + 1
            return Reply(json={"n": number, "done": number == 2}, usage=usage)
        if request.prompt.startswith("Left") and not left:
            left.append("once")
            return ErrorReply(503, "busy")
        return Reply("text", usage=usage)

    return script


def _findings(trace: AgentTrace) -> tuple[Finding, ...]:
    """What a test with this trace would fail for."""
    return judge(trace, trace._cassette, trace._store, tolerance=Tolerance()).findings


@both
def test_each_call_stands_in_its_node(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "WAITS", (0.01, 0.02))

    def trace_search(query: str) -> str:
        """Search."""
        return f"found {query}"

    register("trace_search", trace_search)
    found, cassette = _article(), tmp_path / "c.yaml"
    try:
        with served(_script()), capture(cassette=cassette, record=True) as recorded:
            first = run(found, {"topic": "sails"})
            assert _findings(recorded) == ()
        with capture(cassette=cassette) as replayed:
            second = run(found, {"topic": "sails"})
            assert _findings(replayed) == ()
    finally:
        unregister("trace_search")

    assert first == second
    for trace in (recorded, replayed):
        assert trace.trajectory == ["plan", "each", "each", "each", "a", "b", "check", "check"]
        assert trace.tokens_by_node == {"plan": 45, "each": 45, "a": 15, "b": 15, "check": 30}
        assert trace.tokens == 150
        assert [call.name for call in trace["plan"].tool_calls] == ["trace_search"]
        assert [execution.attempts for execution in trace["a"].executions] == [2]
        assert [root.name for root in trace.roots] == ["workflow_f"]


@both
def test_a_request_without_a_recorded_reply_is_a_miss(run: Run, tmp_path: Path) -> None:
    """Not a failure of the workflow, and never tried again."""
    found = workflow({"topic": "str", "text": "str"}, [node("a", "On {topic}", "text: str")], LINE)
    with served([Reply("text")]), capture(cassette=tmp_path / "c.yaml", record=True):
        run(found, {"topic": "sails"})
    with pytest.raises(CassetteMiss) as caught, capture(cassette=tmp_path / "c.yaml"):
        run(found, {"topic": "ships"})

    assert "On [-sails-]{+ships+}" in str(caught.value)
