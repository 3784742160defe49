"""What two tests of one run say: a budget that is too small, and an assertion."""

import pytest

from pytest_agenttrace import AgentTrace


@pytest.mark.budget("write", tokens=1_000)
def test_a_short_article(article: AgentTrace) -> None:
    assert "write" in article


def test_no_headline(article: AgentTrace) -> None:
    assert article.trajectory == ["research", "write"]
