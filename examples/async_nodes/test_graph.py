from decimal import Decimal

import pytest

from examples.async_nodes.graph import app
from pytest_agenttrace import AgentTrace


@pytest.mark.asyncio
@pytest.mark.agent_trace(cassette="briefing.yaml")
@pytest.mark.budget(tokens=1_000)
async def test_briefing(agent_trace: AgentTrace) -> None:
    result = await app.ainvoke({"topic": "solar sails"})

    assert result["text"] == "Light pushes gently but for ever. Dust and folding are the risks."
    assert agent_trace.trajectory == ["facts", "risks", "write"]
    assert agent_trace.tokens_by_node == {"facts": 142, "risks": 158, "write": 331}
    assert agent_trace["write"].cost == Decimal("0.0005745")
