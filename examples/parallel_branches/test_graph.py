import pytest

from examples.parallel_branches.graph import app
from pytest_agenttrace import AgentTrace


@pytest.mark.agent_trace(cassette="report.yaml")
@pytest.mark.budget("section", tokens=1_000)
def test_report(agent_trace: AgentTrace) -> None:
    result = app.invoke({"topic": "solar sails"})

    assert result["sections"] == ["History", "Physics", "Missions"]
    # Branches end in any order; the trajectory and the executions stand in the order they were sent.
    assert agent_trace.trajectory == ["plan", "section", "section", "section", "edit"]
    assert [execution.inputs["title"] for execution in agent_trace["section"]] == ["History", "Physics", "Missions"]
    assert [execution.tokens for execution in agent_trace["section"]] == [190, 268, 231]
    assert agent_trace["section"].tokens == 689
    # The schema of a structured output is no tool.
    assert agent_trace.tool_calls == []
