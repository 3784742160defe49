"""Budgets: what may be written, which limit wins, and what is said where one is exceeded."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Context, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_agenttrace.budgets.limits import (
    METRICS,
    BudgetError,
    Lift,
    Limit,
    Use,
    closest,
    parse_budget,
    unjudged,
    weigh,
)
from pytest_agenttrace.trace import Trace
from pytest_agenttrace.usage import Tokens, Usage
from tests.handmade import Run, built, call, tokens

ALL = "tokens, input_tokens, output_tokens, cost, llm_calls, tool_calls"
WRITE_IT = 'is not an amount of USD: write cost="0.005"'


def article(second: Usage | None = None, model: str = "gemini-2.5-flash") -> Trace:
    """research: 2 calls, 3,534 tokens, 1 tool; write: 1,067 tokens."""
    run = Run()
    graph = run.graph()
    research = run.node("research", graph, 1, "research:1")
    run.model(research, tokens(150, 1171))
    run.tool(research, "web_search", inputs={})
    run.model(research, second or tokens(2000, 213), model=model)
    write = run.node("write", graph, 2, "write:2")
    run.model(write, tokens(900, 167))
    return built(run, calls=[call(1, write, tokens(900, 167))])


def said(*limits: Limit, trace: Trace | None = None) -> list[str]:
    return [overrun.text for overrun in weigh(limits, trace or article())[1]]


# What may be written


@pytest.mark.parametrize(
    ("args", "kwargs", "limits"),
    [
        ((), {"tokens": 4_000}, [Limit(None, "tokens", 4000)]),
        ((None,), {"tokens": 0}, [Limit(None, "tokens", 0)]),
        (("research",), {"tokens": 4_000}, [Limit("research", "tokens", 4000)]),
        ((), {"cost": "0.005"}, [Limit(None, "cost", Decimal("0.005"))]),
        ((), {"cost": 0.005}, [Limit(None, "cost", Decimal("0.005"))]),
        ((), {"cost": 1e-7}, [Limit(None, "cost", Decimal("1E-7"))]),
        ((), {"cost": 0}, [Limit(None, "cost", Decimal(0))]),
        ((), {"cost": Decimal("0.0050")}, [Limit(None, "cost", Decimal("0.005"))]),
        ((), {"tokens": Tokens(7, "x")}, [Limit(None, "tokens", 7)]),
        (
            ("a",),
            {"tool_calls": 1, "llm_calls": 2, "cost": "1", "output_tokens": 3, "input_tokens": 4, "tokens": 5},
            [
                Limit("a", "tokens", 5),
                Limit("a", "input_tokens", 4),
                Limit("a", "output_tokens", 3),
                Limit("a", "cost", Decimal(1)),
                Limit("a", "llm_calls", 2),
                Limit("a", "tool_calls", 1),
            ],
        ),
    ],
)
def test_a_budget_as_limits(args: tuple[Any, ...], kwargs: dict[str, Any], limits: list[Limit]) -> None:
    assert parse_budget(args, kwargs) == limits


@pytest.mark.parametrize(
    ("args", "kwargs", "problems"),
    [
        ((), {}, [f"sets no limit: give one of {ALL}"]),
        (("a", "b"), {"tokens": 1}, ["takes one node at most, got 2: use a marker for each node"]),
        ((5,), {"tokens": 1}, ["the node is a name, not 5"]),
        (("",), {"tokens": 1}, ["the node is a name, not ''"]),
        ((), {"token": 1}, [f"unknown limit 'token'; did you mean 'tokens'? It has {ALL}"]),
        ((), {"tokens": -1}, ["tokens=-1 is negative"]),
        ((), {"tokens": 1.0}, ["tokens=1.0 is not a whole number"]),
        ((), {"tokens": "4000"}, ["tokens='4000' is not a whole number"]),
        ((), {"tokens": True}, ["tokens=True is not a number"]),
        ((), {"llm_calls": Decimal(1)}, ["llm_calls=Decimal('1') is not a whole number"]),
        ((), {"cost": -0.5}, ["cost=-0.5 is negative"]),
        ((), {"cost": "-1"}, ["cost='-1' is negative"]),
        ((), {"cost": False}, [f"cost=False {WRITE_IT}"]),
        ((), {"cost": "5 cents"}, [f"cost='5 cents' {WRITE_IT}"]),
        ((), {"cost": ""}, [f"cost='' {WRITE_IT}"]),
        ((), {"cost": "NaN"}, [f"cost='NaN' {WRITE_IT}"]),
        ((), {"cost": "sNaN"}, [f"cost='sNaN' {WRITE_IT}"]),
        ((), {"cost": float("inf")}, [f"cost=inf {WRITE_IT}"]),
        ((), {"cost": [1]}, [f"cost=[1] {WRITE_IT}"]),
        (
            (),
            {"cost": 0.1 + 0.2},
            ["cost=0.30000000000000004 is a float that is not what it seems: write it as text"],
        ),
        (
            (1, 2),
            {"tokn": 5, "tokens": -1, "cost": "x"},
            [
                "takes one node at most, got 2: use a marker for each node",
                "the node is a name, not 1",
                f"unknown limit 'tokn'; did you mean 'tokens'? It has {ALL}",
                "tokens=-1 is negative",
                f"cost='x' {WRITE_IT}",
            ],
        ),
    ],
)
def test_a_budget_that_cannot_be_meant_says_all_that_is_wrong(
    args: tuple[Any, ...], kwargs: dict[str, Any], problems: list[str]
) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_budget(args, kwargs)
    assert list(caught.value.problems) == problems
    assert str(caught.value) == "; ".join(problems)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.decimals() | st.text() | st.lists(st.integers())


@given(st.lists(VALUES, max_size=2), st.dictionaries(st.sampled_from([*METRICS, "limit"]), VALUES))
def test_any_arguments_are_limits_or_a_budget_error(args: list[Any], kwargs: dict[str, Any]) -> None:
    limits: list[Limit | Lift] = []
    problems: tuple[str, ...] = ()
    try:
        limits = parse_budget(args, kwargs)
    except BudgetError as error:
        problems = error.problems
    assert bool(limits) != bool(problems)
    assert all(limit.limit >= 0 for limit in limits if isinstance(limit, Limit))
    assert problems or [limit.metric for limit in limits] == [name for name in METRICS if name in kwargs]


def test_the_closest_marker_wins_for_each_node_and_metric() -> None:
    function = [Limit(None, "tokens", 10), Limit("a", "cost", Decimal(1))]
    cls = [Limit(None, "tokens", 99), Limit("a", "tokens", 5)]
    module = [Limit("a", "tokens", 6), Limit("a", "cost", Decimal(9)), Limit("b", "tokens", 0)]
    assert closest([function, cls, module]) == [*function, Limit("a", "tokens", 5), Limit("b", "tokens", 0)]
    assert closest([]) == []


def test_none_lifts_what_stands_further_away() -> None:
    assert parse_budget(("a",), {"tokens": None, "cost": 0}) == [Lift("a", "tokens"), Limit("a", "cost", Decimal(0))]
    module = [Limit("a", "tokens", 6), Limit(None, "tokens", 9), Limit("a", "cost", Decimal(9))]
    assert closest([[Lift("a", "tokens"), Lift("b", "cost")], module]) == module[1:]
    assert closest([module, [Lift("a", "tokens")]]) == module


# What is exceeded


@pytest.mark.parametrize(
    ("node", "metric", "used", "over"),
    [
        (None, "tokens", 4601, "run 4,601 tokens > 4,600 (+1)"),
        ("research", "tokens", 3534, "research 3,534 tokens > 3,533 (+1)"),
        (None, "input_tokens", 3050, "run 3,050 input_tokens > 3,049 (+1)"),
        ("write", "output_tokens", 167, "write 167 output_tokens > 166 (+1)"),
        (None, "llm_calls", 3, "run 3 llm_calls > 2 (+1)"),
        ("research", "llm_calls", 2, "research 2 llm_calls > 1 (+1)"),
        (None, "tool_calls", 1, "run 1 tool_calls > 0 (+1)"),
    ],
)
def test_a_limit_is_inclusive(node: str | None, metric: str, used: int, over: str) -> None:
    assert said(Limit(node, metric, used)) == []
    assert said(Limit(node, metric, used + 1)) == []
    assert said(Limit(node, metric, used - 1)) == [over]


def test_a_cost_is_exact_and_inclusive() -> None:
    assert said(Limit(None, "cost", Decimal("0.004601"))) == []
    assert said(Limit(None, "cost", Decimal("0.0046009"))) == ["run $0.004601 > $0.0046009 (+$0.0000001)"]
    assert said(Limit("write", "cost", Decimal("0.001"))) == ["write $0.001067 > $0.001 (+$0.000067)"]


def test_a_cost_is_not_rounded_by_the_context_of_the_program() -> None:
    with localcontext(Context(prec=2)):
        assert said(Limit(None, "cost", Decimal("0.0046"))) == ["run $0.004601 > $0.0046 (+$0.000001)"]


def test_zero_is_a_limit() -> None:
    assert said(Limit(None, "tokens", 0), Limit(None, "cost", Decimal(0)), Limit("write", "tool_calls", 0)) == [
        "run 4,601 tokens > 0 (+4,601)",
        "run $0.004601 > $0 (+$0.004601)",
    ]


def test_all_overruns_are_told_with_their_nodes() -> None:
    limits = [Limit("research", "tokens", 2000), Limit(None, "cost", Decimal("0.0025")), Limit("write", "tokens", 9999)]
    _, found = weigh(limits, article())
    assert [(o.node, o.text) for o in found] == [
        ("research", "research 3,534 tokens > 2,000 (+1,534)"),
        (None, "run $0.004601 > $0.0025 (+$0.002101)"),
    ]


def test_executions_are_summed() -> None:
    run = Run()
    graph = run.graph()
    for step in (1, 2, 3):
        run.model(run.node("agent", graph, step, f"agent:{step}"), tokens(100, 20))
    assert said(Limit("agent", "tokens", 300), trace=built(run)) == ["agent 360 tokens > 300 (+60)"]


def test_the_default_of_a_node_that_did_not_run_is_none() -> None:
    defaults = [Limit("edit", "tokens", 0, demanded=False), Limit("write", "tokens", 1_000, demanded=False)]
    uses, over = weigh(defaults, article())
    assert [overrun.text for overrun in over] == ["write 1,067 tokens > 1,000 (+67)"]
    assert uses == (Use("write", "tokens", 1000, 1067, ""),)


# What was used


def test_each_limit_says_what_was_used_of_it_and_where_it_is_written() -> None:
    limits: list[Sequence[Limit | Lift]] = [
        parse_budget(("research",), {"tokens": 4_000, "tool_calls": 0}, "test_article.py:12"),
        parse_budget((), {"cost": "0.0050"}),
        [Limit("edit", "tokens", 1)],
    ]
    uses, _ = weigh(closest(limits), article())
    assert uses == (
        Use("research", "tokens", 4000, 3534, 'test_article.py:12 budget("research", tokens=4000)'),
        Use("research", "tool_calls", 0, 1, 'test_article.py:12 budget("research", tool_calls=0)'),
        Use(None, "cost", Decimal("0.005"), Decimal("0.004601"), 'budget(cost="0.0050")'),
        Use("edit", "tokens", 1, None, ""),
    )
    assert [type(use.used) for use in uses] == [int, int, Decimal, type(None)]


def test_what_is_not_known_of_a_use_is_none() -> None:
    limits = [Limit(None, "tokens", 9, "here"), Limit(None, "llm_calls", 9)]
    assert unjudged(limits) == (Use(None, "tokens", 9, None, "here"), Use(None, "llm_calls", 9, None, ""))
    uses, _ = weigh([*limits, Limit(None, "cost", Decimal(9))], article(Usage()))
    assert [use.used for use in uses] == [None, 3, None]
    assert weigh([Limit(None, "cost", Decimal(9))], article(model="unpriced"))[0][0].used is None


# What cannot be judged


def test_a_node_that_did_not_run_fails_once_with_the_nearest_name() -> None:
    limits = [Limit("reserch", "tokens", 1), Limit("reserch", "cost", Decimal(1)), Limit("zzz", "tokens", 1)]
    assert said(*limits) == [
        "budget: no node 'reserch' in this trace; did you mean 'research'? It has: research, write",
        "budget: no node 'zzz' in this trace. It has: research, write",
    ]


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (
            "tokens",
            "run tokens cannot be judged: run: tokens unknown: "
            "research > ChatGoogleGenerativeAI (gemini-2.5-flash) reported no usage",
        ),
        (
            "input_tokens",
            "run input_tokens cannot be judged: run: tokens unknown: "
            "research > ChatGoogleGenerativeAI (gemini-2.5-flash) reported no usage",
        ),
        (
            "cost",
            "run cost cannot be judged: run: cost unknown: "
            "research > ChatGoogleGenerativeAI (gemini-2.5-flash) reported no usage",
        ),
    ],
)
def test_a_budget_never_passes_unread(metric: str, text: str) -> None:
    assert said(Limit(None, metric, 10**9), trace=article(Usage())) == [text]
    assert said(Limit("write", metric, 10**9), trace=article(Usage())) == []
    assert said(Limit(None, "llm_calls", 2), trace=article(Usage())) == ["run 3 llm_calls > 2 (+1)"]


def test_a_total_alone_gives_no_parts() -> None:
    trace = article(Usage(total_tokens=9))
    assert said(Limit("research", "tokens", 1330), Limit("research", "output_tokens", 10**6), trace=trace) == [
        "research output_tokens cannot be judged: research: output_tokens were not reported"
    ]


def test_a_model_without_a_price_cannot_be_judged() -> None:
    assert said(Limit(None, "cost", Decimal(99)), trace=article(model="unpriced")) == [
        "run cost cannot be judged: no price is known for 'unpriced'"
    ]
