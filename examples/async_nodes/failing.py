"""What a node that is not there looks like: the nearest name that is."""

import pytest

from examples.async_nodes.graph import app
from pytest_agenttrace import AgentTrace


@pytest.mark.asyncio
@pytest.mark.agent_trace(cassette="briefing.yaml")
async def test_writer(agent_trace: AgentTrace) -> None:
    await app.ainvoke({"topic": "solar sails"})

    assert agent_trace["writer"].tokens < 500
