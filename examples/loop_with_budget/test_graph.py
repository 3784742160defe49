import pytest

from examples.loop_with_budget.graph import app
from pytest_agenttrace import AgentTrace


# A node's budget holds for all its rounds together.
@pytest.mark.agent_trace(cassette="headline.yaml")
@pytest.mark.budget(cost="0.003")
@pytest.mark.budget("write", tokens=600, llm_calls=3)
@pytest.mark.budget("critique", output_tokens=500)
def test_headline(agent_trace: AgentTrace) -> None:
    result = app.invoke({"topic": "solar sails"})

    assert result["text"] == "Sailing on Light: The Kite That Left Earth"
    assert agent_trace.trajectory == ["write", "critique", "write", "critique", "write", "critique"]
    assert len(agent_trace["write"]) == 3
    assert agent_trace["critique"].usage.output_tokens == 462
