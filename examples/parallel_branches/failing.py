"""What a run over its budget looks like: the node that costs most is not to be guessed."""

import pytest

from examples.parallel_branches.graph import app
from pytest_agenttrace import AgentTrace


@pytest.mark.agent_trace(cassette="report.yaml")
@pytest.mark.budget(tokens=1_000)
def test_report_within_1000_tokens(agent_trace: AgentTrace) -> None:
    app.invoke({"topic": "solar sails"})
