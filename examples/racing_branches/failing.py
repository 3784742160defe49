"""What a race looks like: the reviewers' notes stand the other way round, so the editor asks for something else."""

import pytest

from examples.racing_branches.graph import racing
from pytest_agenttrace import AgentTrace


@pytest.mark.agent_trace(cassette="review.yaml", order="shuffle:5")
def test_review_by_whoever_is_first(agent_trace: AgentTrace) -> None:
    assert racing().invoke({})["text"].startswith("A solar sail is pushed by light.")
