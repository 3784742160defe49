from __future__ import annotations

import pytest

from examples.one_run_many_asserts.graph import app
from pytest_agenttrace import AgentRun, AgentTrace


@pytest.fixture(scope="module")
def article(agent_run: AgentRun) -> AgentTrace:
    with agent_run("article.yaml") as trace:
        app.invoke({"topic": "solar sails"})
    return trace
