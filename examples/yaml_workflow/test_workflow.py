from decimal import Decimal
from pathlib import Path

import pytest

from pytest_agenttrace import AgentTrace
from pytest_agenttrace.workflow import Workflow

WORKFLOW = Workflow.load(Path(__file__).with_name("pitch.yaml"))


@pytest.mark.agent_trace(cassette="pitch.cassette.yaml")
def test_pitch(agent_trace: AgentTrace) -> None:
    result = WORKFLOW.run({"topic": "solar sails"})

    assert result["text"].startswith("A solar sail needs no fuel.")
    assert agent_trace.trajectory == ["research", "write"]
    assert agent_trace.tokens_by_node == {"research": 921, "write": 1_067}
    assert agent_trace.cost == Decimal("0.004409")
