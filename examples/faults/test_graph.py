from decimal import Decimal

import pytest
from langchain_google_genai.chat_models import ChatGoogleGenerativeAIError

from examples.faults.graph import Article, app
from pytest_agenttrace import AgentTrace, Fault, GeminiCassette

pytestmark = pytest.mark.agent_trace(cassette="article.yaml")

SAILS: Article = {"topic": "solar sails"}
FLASH = "A solar sail needs no fuel. Light has momentum, and a mirror turns it into thrust."
LITE = "Solar sails are pushed by light."
RESEARCH, WRITE, WRITE_LITE = Decimal("0.0006005"), Decimal("0.001119"), Decimal("0.000044")


# The client tries again by itself


def test_two_errors_of_the_server(agent_trace: AgentTrace, gemini_cassette: GeminiCassette) -> None:
    gemini_cassette.fault(Fault.status(503), node="write", times=2)

    assert app.invoke(SAILS)["text"] == FLASH
    assert [call.status for call in agent_trace["write"].calls] == [503, 503, 200]
    assert agent_trace.cost == RESEARCH + WRITE


def test_too_many_requests(agent_trace: AgentTrace, gemini_cassette: GeminiCassette) -> None:
    gemini_cassette.fault(Fault.status(429, retry_after=30), node="research")

    assert app.invoke(SAILS)["text"] == FLASH
    assert [call.status for call in agent_trace["research"].calls] == [429, 200]
    assert agent_trace.cost == RESEARCH + WRITE


def test_no_reply_in_time(agent_trace: AgentTrace, gemini_cassette: GeminiCassette) -> None:
    gemini_cassette.fault(Fault.timeout(), node="research")

    assert app.invoke(SAILS)["text"] == FLASH
    assert [call.injected for call in agent_trace["research"].calls] == ["timeout", None]
    assert agent_trace.cost == RESEARCH + WRITE


# The node is tried again


@pytest.mark.parametrize("fault", [Fault.reset(), Fault.malformed()], ids=["reset", "malformed"])
def test_a_reply_that_never_came_or_is_no_json(
    fault: Fault, agent_trace: AgentTrace, gemini_cassette: GeminiCassette
) -> None:
    gemini_cassette.fault(fault, node="write")

    assert app.invoke(SAILS)["text"] == FLASH
    assert [execution.attempts for execution in agent_trace.executions] == [1, 2]
    assert agent_trace.cost == RESEARCH + WRITE


def test_a_stream_that_breaks_is_paid_for_twice(agent_trace: AgentTrace, gemini_cassette: GeminiCassette) -> None:
    gemini_cassette.fault(Fault.truncated(), node="write")

    assert app.invoke(SAILS)["text"] == FLASH
    assert agent_trace.executions[1].attempts == 2
    assert agent_trace.cost == RESEARCH + 2 * WRITE


# The node asks another model


@pytest.mark.parametrize("fault", [Fault.empty(), Fault.blocked("PROHIBITED_CONTENT")], ids=["empty", "blocked"])
def test_no_candidates(fault: Fault, agent_trace: AgentTrace, gemini_cassette: GeminiCassette) -> None:
    gemini_cassette.fault(fault, node="write")

    assert app.invoke(SAILS)["text"] == LITE
    assert [call.model for call in agent_trace["write"].llm_calls] == ["gemini-2.5-flash", "gemini-2.5-flash-lite"]
    assert agent_trace["write"].usage.output_tokens == 90


@pytest.mark.parametrize("reason", ["SAFETY", "MAX_TOKENS"])
def test_a_reply_that_ends_early_is_paid_for(
    reason: str, agent_trace: AgentTrace, gemini_cassette: GeminiCassette
) -> None:
    gemini_cassette.fault(Fault.finish(reason), node="write")

    assert app.invoke(SAILS)["text"] == LITE
    assert [call.finish_reason for call in agent_trace["write"].calls] == [reason, "STOP"]
    assert agent_trace.cost == RESEARCH + WRITE + WRITE_LITE


# It waits, or it fails


def test_a_slow_reply(agent_trace: AgentTrace, gemini_cassette: GeminiCassette) -> None:
    gemini_cassette.fault(Fault.slow(0.2), node="write")

    assert app.invoke(SAILS)["text"] == FLASH
    assert agent_trace.cost == RESEARCH + WRITE


def test_a_bad_request(agent_trace: AgentTrace, gemini_cassette: GeminiCassette) -> None:
    gemini_cassette.fault(Fault.status(400, "no such field"), node="write")

    with pytest.raises(ChatGoogleGenerativeAIError, match="no such field"):
        app.invoke(SAILS)
    assert agent_trace.executions[1].attempts == 1
    assert agent_trace.cost == RESEARCH
