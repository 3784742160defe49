"""What a fault nobody reached looks like, and one that a budget did not allow for."""

import pytest

from examples.faults.graph import app
from pytest_agenttrace import AgentTrace, Fault, GeminiCassette


@pytest.mark.agent_trace(cassette="article.yaml")
def test_third_call_fails(agent_trace: AgentTrace, gemini_cassette: GeminiCassette) -> None:
    gemini_cassette.fault(Fault.status(503), node="write", call=3)

    app.invoke({"topic": "solar sails"})


@pytest.mark.agent_trace(cassette="article.yaml")
@pytest.mark.budget("write", cost="0.002")
def test_broken_stream_within_budget(agent_trace: AgentTrace, gemini_cassette: GeminiCassette) -> None:
    gemini_cassette.fault(Fault.truncated(), node="write")

    app.invoke({"topic": "solar sails"})
