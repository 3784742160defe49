"""What a wrong expectation looks like: pytest's own difference of two plain lists."""

import pytest
from langchain_core.messages import HumanMessage

from examples.tool_loop.graph import app
from pytest_agenttrace import AgentTrace

QUESTION = "How large was the sail of the first solar sailer?"


@pytest.mark.agent_trace(cassette="question.yaml")
def test_searches_once(agent_trace: AgentTrace) -> None:
    app.invoke({"messages": [HumanMessage(QUESTION)]})

    assert agent_trace.tool_calls == [
        ("web_search", {"query": "solar sails"}),
        ("web_search", {"query": "IKAROS size"}),
    ]
