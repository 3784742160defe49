"""What nodes over their budgets look like: all of them in one message, the numbers first."""

import pytest

from examples.loop_with_budget.graph import app
from pytest_agenttrace import AgentTrace


@pytest.mark.agent_trace(cassette="headline.yaml")
@pytest.mark.budget("write", llm_calls=2)
@pytest.mark.budget("critique", cost="0.001", output_tokens=400)
def test_headline_in_two_rounds(agent_trace: AgentTrace) -> None:
    app.invoke({"topic": "solar sails"})
