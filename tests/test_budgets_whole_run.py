"""The budget of a whole run, on bills made by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from pytest_agenttrace.budgets.limits import BudgetError, Limit, Use
from pytest_agenttrace.budgets.whole_run import bill_of, judge_run, parse_run_budget, unknown_bill
from pytest_agenttrace.usage import Usage
from tests.handmade import Run, built, dollar_per_million, tokens


def bill(used: int, usd: str, **nodes: tuple[int, str]) -> dict[str, Any]:
    return {"run": [used, usd], "nodes": {node: list(amounts) for node, amounts in nodes.items()}, "why": {}}


def traced(model: str = "gemini-2.5-flash", usage: Usage | None = None) -> dict[str, Any]:
    run = Run()
    graph = run.graph()
    run.model(run.node("research", graph, 1, "research:1"), tokens(150, 50))
    run.model(run.node("write", graph, 2, "write:2"), usage or tokens(900, 100), model=model)
    return bill_of(built(run), dollar_per_million)


COST = Limit(None, "cost", Decimal("0.50"), "--agenttrace-budget 0.50")
TOKENS = Limit(None, "tokens", 1000, "pyproject.toml: tool.agenttrace.budgets.run.tokens = 1000")


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        (["0.50"], [Limit(None, "cost", Decimal("0.50"))]),
        (["tokens=500_000", "cost = 0"], [Limit(None, "cost", Decimal(0)), Limit(None, "tokens", 500_000)]),
        ([], []),
    ],
)
def test_the_option(given: list[str], limits: list[Limit]) -> None:
    assert parse_run_budget(given) == limits


@pytest.mark.parametrize("given", ["", "$1", "tokens=", "tokens=1e3", "calls=1", "=1", "-1", "nan"])
def test_an_option_that_cannot_be_meant(given: str) -> None:
    with pytest.raises(BudgetError):
        parse_run_budget([given])


def test_a_bill_is_plain_and_says_why_it_does_not_know() -> None:
    assert traced() == {
        "run": [1200, "0.001200"],
        "nodes": {"research": [200, "0.000200"], "write": [1000, "0.001000"]},
        "why": {},
        "traced": True,
    }
    unpriced = traced("unpriced")
    assert (unpriced["run"], unpriced["nodes"]["write"]) == ([1200, None], [1000, None])
    assert unpriced["why"] == {"cost": "no price is known for 'unpriced'"}
    silent = "write > ChatGoogleGenerativeAI (gemini-2.5-flash) reported no usage"
    assert traced(usage=Usage())["why"] == {"tokens": silent, "cost": f"run: cost unknown: {silent}"}


def test_all_tests_together_are_too_much() -> None:
    bills = {
        "a.py::x": bill(600, "0.40", research=(500, "0.30"), write=(100, "0.10")),
        "a.py::y": bill(300, "0.15", write=(300, "0.15")),
        "a.py::z": bill(100, "0.06"),
        "a.py::free": bill(0, "0"),
        "a.py::w": bill(1, "0.001"),
    }
    uses, texts = judge_run([COST, TOKENS], bills, "tests were deselected")
    assert texts == [
        "whole run $0.611 > $0.50 (+$0.111): a.py::x $0.40, a.py::y $0.15, a.py::z $0.06 and 1 more\n"
        "  nodes: research $0.30, write $0.25\n"
        "  limit: --agenttrace-budget 0.50\n"
        "  of a part of the suite: tests were deselected",
        "whole run 1,001 tokens > 1,000 (+1): a.py::x 600 tokens, a.py::y 300 tokens, a.py::z 100 tokens and 1 more\n"
        "  nodes: research 500 tokens, write 400 tokens\n"
        "  limit: pyproject.toml: tool.agenttrace.budgets.run.tokens = 1000\n"
        "  of a part of the suite: tests were deselected",
    ]
    assert uses == (
        Use(None, "cost", Decimal("0.50"), Decimal("0.611"), COST.source),
        Use(None, "tokens", 1000, 1001, TOKENS.source),
    )


def test_a_limit_is_inclusive_and_nothing_is_within_it() -> None:
    assert judge_run([COST, TOKENS], {"a": bill(1000, "0.5")})[1] == []
    assert judge_run([Limit(None, "tokens", 0)], {}) == ((Use(None, "tokens", 0, 0, ""),), [])


def test_what_is_not_known_fails_the_run_and_is_told_once() -> None:
    bills = {f"t{number}": traced("unpriced") for number in range(5)} | {"lost": unknown_bill("no store\nat all")}
    uses, texts = judge_run([COST], bills)
    assert texts == [
        "whole run cost cannot be judged:\n"
        "  no price is known for 'unpriced' (t0, t1, t2 and 2 more)\n"
        "  no store (lost)\n"
        "  at all"
    ]
    assert uses[0].used is None
    assert judge_run([Limit(None, "tokens", 10**6)], {"t": traced("unpriced")})[1] == []
