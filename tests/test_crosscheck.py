"""MLflow's own cost of a call beside ours."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_agenttrace.crosscheck import cost_differences
from tests.handmade import Run, built, call, dollar_per_million, tokens


def told(*costs: Any, model: str = "gemini-2.5-flash") -> list[str]:
    """What is said of a call of 1,000 tokens, $0.001, for each of MLflow's costs of it."""
    run = Run()
    root = run.graph()
    calls = []
    for index, cost in enumerate(costs, 1):
        node = run.node(f"node{index}", root, index, f"node:{index}")
        attributes = {} if cost is None else {"mlflow.llm.cost": cost}
        run.model(node, tokens(900, 100), model=model, attributes=attributes)
        calls.append(call(index, node, tokens(900, 100), model=model))
    return [str(found) for found in cost_differences(built(run, calls=calls), dollar_per_million)]


@pytest.mark.parametrize("total", [0.001, 0.00099, 0.00101])
def test_up_to_one_percent_is_no_difference(total: float) -> None:
    assert told({"total_cost": total}) == []


@pytest.mark.parametrize(
    ("total", "said"), [(0.0012, "$0.0012"), (0.0009899, "$0.0009899"), (0.0, "$0"), (0.1 + 0.2, "$0.30"), (2, "$2.00")]
)
def test_a_difference_is_told_with_both_numbers(total: float, said: str) -> None:
    assert told({"input_cost": 0.0, "output_cost": total, "total_cost": total}) == [
        f"MLflow's own cost of gemini-2.5-flash differs: {said} by MLflow, $0.001 here (node1)"
    ]


def test_a_model_is_told_once() -> None:
    found = told({"total_cost": 0.001}, {"total_cost": 0.5}, {"total_cost": 0.7})
    assert found == ["MLflow's own cost of gemini-2.5-flash differs: $0.50 by MLflow, $0.001 here (node2)"]


@pytest.mark.parametrize(
    "cost", [None, {}, 5, {"total_cost": None}, {"total_cost": True}, {"total_cost": float("nan")}]
)
def test_no_cost_of_mlflows_is_no_difference(cost: Any) -> None:
    assert told(cost) == []


def test_what_we_cannot_price_is_not_compared() -> None:
    assert told({"total_cost": 0.5}, model="unpriced") == []
