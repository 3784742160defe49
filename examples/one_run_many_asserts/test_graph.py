from decimal import Decimal

import pytest

from pytest_agenttrace import AgentTrace

pytestmark = pytest.mark.budget(cost="0.005")


def test_path(article: AgentTrace) -> None:
    assert article.trajectory == ["research", "write", "headline"]


@pytest.mark.budget("research", tokens=1_000)
def test_research_thinks(article: AgentTrace) -> None:
    assert article["research"].usage.thoughts_tokens == 680


def test_the_headline_is_made_by_a_smaller_model(article: AgentTrace) -> None:
    assert [call.model for call in article["headline"].llm_calls] == ["gemini-2.5-flash-lite"]
    assert article["headline"].cost < Decimal("0.0001")


def test_the_article_is_what_the_headline_is_made_of(article: AgentTrace) -> None:
    written, titled = article["write"].executions[0], article["headline"].executions[0]
    assert written.outputs["text"] == titled.inputs["text"]
