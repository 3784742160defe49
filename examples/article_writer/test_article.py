from decimal import Decimal
from pathlib import Path

import pytest

from pytest_agenttrace import AgentTrace
from pytest_agenttrace.workflow import Workflow

WORKFLOW = Workflow.load(Path(__file__).with_name("article_writer.yaml"))


@pytest.mark.budget(cost="0.003")
@pytest.mark.budget("write_node", tokens=1_000)
@pytest.mark.agent_trace(cassette="article.yaml")
def test_article(agent_trace: AgentTrace) -> None:
    result = WORKFLOW.run({"topic": "solar sails"})

    assert result["article"].startswith("A solar sail needs no fuel.")
    assert agent_trace.trajectory == ["research_node", "write_node"]
    assert agent_trace.tokens_by_node == {"research_node": 650, "write_node": 800}
    assert agent_trace.cost == Decimal("0.002855")
