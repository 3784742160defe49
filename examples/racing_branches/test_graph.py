import pytest

from examples.racing_branches.graph import app
from pytest_agenttrace import AgentTrace

SEEDS = [pytest.param(marks=pytest.mark.agent_trace(order=f"shuffle:{seed}"), id=str(seed)) for seed in range(100)]


@pytest.mark.agent_trace(cassette="review.yaml")
def test_review(agent_trace: AgentTrace) -> None:
    assert app.invoke({})["text"].startswith("A solar sail is pushed by light.")
    assert agent_trace.trajectory == ["facts", "style", "edit"]


@pytest.mark.agent_trace(cassette="review.yaml")
@pytest.mark.parametrize((), SEEDS)
def test_any_order(agent_trace: AgentTrace) -> None:
    """One seed is one order: `order="shuffle"` draws another one in each run, and a failure names it."""
    assert app.invoke({})["text"].startswith("A solar sail is pushed by light.")
