"""How much of their limits tests have used, as the end of a run tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Context, Decimal, localcontext

import pytest

from pytest_agenttrace.budgets.fullness import percent_lines, plain_uses, read_uses, slack_lines
from pytest_agenttrace.budgets.limits import Use


def cost(used: str | None, limit: str = "0.01", node: str | None = None, source: str = "a.py:1") -> Use:
    return Use(node, "cost", Decimal(limit), None if used is None else Decimal(used), source)


def count(used: int | None, limit: int, node: str | None = None, source: str = "a.py:1", metric: str = "tokens") -> Use:
    return Use(node, metric, limit, used, source)


def test_uses_travel_as_plain_data() -> None:
    uses = (cost("0.004409"), cost(None), count(921, 4000, "research"), count(None, 0, metric="llm_calls"))
    assert plain_uses(uses)[0] == [None, "cost", "0.01", "0.004409", "a.py:1"]
    assert read_uses(plain_uses(uses)) == uses


def percent(**uses: Sequence[Use]) -> list[str]:
    return list(percent_lines(uses))


def test_the_fullest_stands_first_with_its_amounts() -> None:
    assert percent(
        low=[count(1, 4000)],
        test_article=[count(921, 4000, "research"), cost("0.004409")],
        over=[count(4001, 4000)],
    ) == [
        "budgets, used:",
        "  over          run tokens 101% (4,001 of 4,000)",
        "  test_article  run cost 44% ($0.004409 of $0.01)  research tokens 23%",
        "  low           run tokens 0% (1 of 4,000)",
    ]


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (count(0, 0), "run tokens 0 of 0"),
        (count(3, 0), "run tokens 3 of 0"),
        (count(0, 5), "run tokens 0% (0 of 5)"),
        (count(5, 5), "run tokens 100% (5 of 5)"),
        (count(3999, 4000), "run tokens 99% (3,999 of 4,000)"),
        (cost("0.0100001"), "run cost 101% ($0.0100001 of $0.01)"),
        (cost("0", "0"), "run cost $0 of $0"),
    ],
)
def test_percent_never_says_a_limit_was_kept_that_was_not(use: Use, said: str) -> None:
    with localcontext(Context(prec=2)):
        assert percent(t=[use])[1] == f"  t  {said}"


def test_unknown_uses_stand_last_and_alone_not_at_all() -> None:
    assert percent(a=[count(None, 5), count(1, 5, "b")], skipped=[cost(None)]) == [
        "budgets, used:",
        "  a  b tokens 20% (1 of 5)  run tokens -",
    ]
    assert percent(skipped=[cost(None)], none=[]) == []


def test_many_are_capped_unless_all_are_asked_for() -> None:
    uses = {f"t{number:02}": [count(1, 5, node) for node in "abcdef"] for number in range(22)}
    told = list(percent_lines(uses))
    assert len(told) == 22
    assert told[1] == "  t00  a tokens 20% (1 of 5)  b tokens 20%  c tokens 20%  d tokens 20%  +2 more"
    assert told[-1] == "  and 2 more tests: -vv lists all"
    every = list(percent_lines(uses, every=True))
    assert len(every) == 23
    assert every[1].count("(1 of 5)") == 6


def test_the_whole_run_stands_first() -> None:
    assert list(percent_lines({}, run=[cost("1", "2"), count(None, 9)])) == [
        "budgets, used:",
        "  whole run  cost 50% ($1.00 of $2.00)  tokens - (of 9)",
    ]


def slack(uses: Mapping[str, Sequence[Use]]) -> list[str]:
    return list(slack_lines(uses))[1:]


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (count(921, 4000), "at most 921 used (23%); tokens=1200 would do"),
        (count(1999, 4000), "at most 1,999 used (49%); tokens=2500 would do"),
        (count(3, 20, metric="llm_calls"), "at most 3 used (15%); llm_calls=4 would do"),
        (count(0, 20), "at most 0 used (0%); tokens=0 would do"),
        (cost("0.004409"), 'at most $0.004409 used (44%); cost="0.0056" would do'),
        (cost("0"), 'at most $0 used (0%); cost="0" would do'),
        (cost("30", "100"), 'at most $30.00 used (30%); cost="38" would do'),
    ],
)
def test_a_limit_nobody_came_near(use: Use, said: str) -> None:
    assert slack({"t": [use]}) == [f"  a.py:1: {said}"]


@pytest.mark.parametrize("use", [count(2000, 4000), count(0, 0), count(1, 0), cost("0.005")])
def test_half_is_near(use: Use) -> None:
    assert list(slack_lines({"t": [use]})) == ["limits of which no test has used half: none"]


def test_the_test_that_used_most_of_a_limit_counts() -> None:
    shared = "m.py budget(tokens=100)"
    uses = {"a": [count(10, 100, source=shared), count(1, 9, source="x")], "b": [count(49, 100, source=shared)]}
    assert slack(uses) == [
        "  m.py budget(tokens=100): at most 49 used (49%); tokens=62 would do",
        "  x: at most 1 used (11%); tokens=2 would do",
    ]
    uses["c"] = [count(50, 100, source=shared), count(None, 9, source="x")]
    assert list(slack_lines(uses, part="only a.py was run")) == [
        "limits of which no test has used half: none (only a.py was run: other tests may use more)",
        "  1 limit is left out: a test failed or was skipped, or its numbers are not known",
    ]
