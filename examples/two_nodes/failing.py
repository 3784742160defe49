"""What a changed prompt looks like: nobody recorded a reply to it."""

import pytest

from examples.two_nodes import graph
from pytest_agenttrace import AgentTrace


@pytest.mark.agent_trace(cassette="article.yaml")
def test_article_of_400_words(agent_trace: AgentTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "WRITE", graph.WRITE.replace("300", "400"))

    graph.app.invoke({"topic": "solar sails"})
