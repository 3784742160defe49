from decimal import Decimal

import pytest

from examples.two_nodes.graph import app
from pytest_agenttrace import AgentTrace


@pytest.mark.agent_trace(cassette="article.yaml")
@pytest.mark.budget(cost="0.005")
@pytest.mark.budget("research", tokens=1_000)
def test_article(agent_trace: AgentTrace) -> None:
    result = app.invoke({"topic": "solar sails"})

    assert result["text"].startswith("A solar sail needs no fuel.")
    assert agent_trace.trajectory == ["research", "write"]
    assert agent_trace.tokens_by_node == {"research": 921, "write": 1_067}
    assert agent_trace["write"].usage.thoughts_tokens == 412
    assert agent_trace["write"].cost < Decimal("0.003")
    assert agent_trace.cost == Decimal("0.004409")
