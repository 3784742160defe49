import pytest
from langchain_core.messages import HumanMessage

from examples.tool_loop.graph import app
from pytest_agenttrace import AgentTrace

QUESTION = "How large was the sail of the first solar sailer?"


@pytest.mark.agent_trace(cassette="question.yaml")
@pytest.mark.budget(tool_calls=2, cost="0.002")
@pytest.mark.budget("agent", llm_calls=3)
def test_question(agent_trace: AgentTrace) -> None:
    result = app.invoke({"messages": [HumanMessage(QUESTION)]})

    assert result["messages"][-1].text == "The sail of IKAROS measured 14 m by 14 m, 196 square metres."
    assert agent_trace.trajectory == ["agent", "tools", "agent", "tools", "agent"]
    assert agent_trace["tools"].tool_calls == [
        ("web_search", {"query": "solar sails"}),
        ("web_search", {"query": "IKAROS sail area"}),
    ]
    # The prompt grows with every round, and each round pays for all of it.
    assert [call.usage.input_tokens for call in agent_trace.llm_calls if call.usage] == [64, 131, 203]
    assert [execution.tokens for execution in agent_trace["agent"]] == [131, 182, 227]
