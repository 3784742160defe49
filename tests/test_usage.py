"""Tokens, costs and usage: exact, comparable with plain numbers, and never silently unknown."""

from __future__ import annotations

import copy
import json
import math
import operator
import pickle
from collections.abc import Callable
from decimal import Context, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import tests.handmade  # noqa: F401 - loads the profile of the property tests
from pytest_agenttrace.usage import (
    Cost,
    Tokens,
    UnknownTokens,
    Usage,
    UsageUnknown,
    exact_decimals,
    explain_comparison,
    format_tokens,
    format_usd,
)

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
COUNTS = st.integers(min_value=0, max_value=10**9)
MONEY = st.decimals(allow_nan=False, allow_infinity=False, places=9, min_value=0, max_value=10**6)
PARTS = st.builds(
    Usage,
    *[st.none() | COUNTS] * 6,
    *[st.lists(st.tuples(st.sampled_from(["AUDIO", "IMAGE", "TEXT"]), COUNTS), max_size=3).map(tuple)] * 3,
)


# Text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "$0"),
        ("-0", "$0"),
        ("0E-10", "$0"),
        ("1.2", "$1.20"),
        ("1E+3", "$1,000.00"),
        ("1234567.5", "$1,234,567.50"),
        ("0.002960", "$0.00296"),
        ("1E-7", "$0.0000001"),
        ("-0.00046", "-$0.00046"),
        ("-1234", "-$1,234.00"),
        ("NaN", "$NaN"),
        ("Infinity", "$Infinity"),
        ("-Infinity", "$-Infinity"),
    ],
)
def test_dollars_are_written_with_every_digit_that_matters(value: str, text: str) -> None:
    assert format_usd(Decimal(value)) == text


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=Decimal("-1e40"), max_value=Decimal("1e40")))
@example(Decimal("0.12345678901234567890123456789012345678901234567890"))
def test_dollars_can_be_read_back_exactly(value: Decimal) -> None:
    assert Decimal(format_usd(value).replace("$", "").replace(",", "")) == value


def test_dollars_are_not_rounded_by_the_context_of_the_program() -> None:
    with localcontext(Context(prec=3)):
        assert format_usd(Decimal("1.23456789")) == "$1.23456789"


def test_exact_decimals_leaves_the_programs_own_context_as_it_was() -> None:
    with localcontext(Context(prec=3)):
        with exact_decimals():
            assert Decimal("1.2345") + Decimal("1.2345") == Decimal("2.469")
        assert Decimal("1.2345") + Decimal("1.2345") == Decimal("2.47")


def test_tokens_are_written_with_thousands() -> None:
    assert [format_tokens(n) for n in (0, 999, 3534, 1_000_000)] == ["0", "999", "3,534", "1,000,000"]


# Tokens and Cost are numbers


@pytest.mark.parametrize("name", OPERATORS)
@given(left=COUNTS, right=COUNTS)
def test_tokens_compare_like_their_integer_in_both_orders(name: str, left: int, right: int) -> None:
    holds = OPERATORS[name]
    expected = holds(left, right)
    assert holds(Tokens(left, "a"), right) is expected
    assert holds(left, Tokens(right, "a")) is expected
    assert holds(Tokens(left, "a"), Tokens(right, "b")) is expected


@pytest.mark.parametrize("name", OPERATORS)
@given(left=MONEY, right=MONEY)
def test_costs_compare_like_their_decimal_in_both_orders(name: str, left: Decimal, right: Decimal) -> None:
    holds = OPERATORS[name]
    expected = holds(left, right)
    assert holds(Cost(left, "a"), right) is expected
    assert holds(left, Cost(right, "a")) is expected
    assert holds(Cost(left, "a"), Cost(right, "b")) is expected


def test_chained_comparisons() -> None:
    assert 3_000 < Tokens(3_534) <= 4_000
    assert not 3_000 < Tokens(4_001) <= 4_000
    assert Decimal("0.002") < Cost("0.00296") < 0.003
    assert 0 <= Cost(0) < 1


def test_cost_compares_with_floats_but_equals_only_decimals() -> None:
    assert Cost("0.003") == Decimal("0.003")
    assert Cost("0.003") == Decimal("0.0030")
    assert Cost("0.003") != 0.003
    assert Cost("0.5") == 0.5
    assert Cost(0) == 0


def test_they_hash_like_plain_numbers() -> None:
    assert {5: "five"}[Tokens(5, "a")] == "five"
    assert {5, Tokens(5, "a"), Tokens(5, "b")} == {5}
    assert hash(Cost("0.50", "a")) == hash(Decimal("0.5"))
    assert sorted([Tokens(3), Tokens(1), 2]) == [1, 2, 3]
    assert max(Cost("0.1", "a"), Cost("0.2", "b")).label == "b"


def test_arithmetic_gives_plain_numbers() -> None:
    assert type(Tokens(5) + 1).__name__ == "int"
    assert type(sum([Tokens(5), Tokens(6)])).__name__ == "int"
    assert type(Cost("0.1") + Cost("0.2")).__name__ == "Decimal"
    assert Cost("0.1") + Cost("0.2") == Decimal("0.3")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])  # noqa: S301 - our own bytes
@pytest.mark.parametrize("value", [Tokens(3534, "research"), Cost("0.00296", "research"), Cost("1E-7", "run")])
def test_a_copy_keeps_value_type_and_label(copied: Callable[[Any], Any], value: Tokens | Cost) -> None:
    again = copied([value])[0]
    assert again == value
    assert type(again) is type(value)
    assert again.label == value.label


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_keeps_the_label(protocol: int) -> None:
    for value in (Tokens(7, "a"), Cost("0.7", "a")):
        again = pickle.loads(pickle.dumps(value, protocol))  # noqa: S301 - our own bytes
        assert (again, again.label) == (value, "a")


def test_tokens_are_json_and_format_like_integers() -> None:
    assert json.dumps({"tokens": Tokens(3534, "research")}) == '{"tokens": 3534}'
    assert f"{Tokens(3534):,} {Tokens(3534)} {Tokens(3534)!r} {Tokens(3534):08d}" == "3,534 3534 3534 00003534"
    assert str(Cost("0.00296", "research")) == "0.00296"
    assert repr(Tokens(1)) == "1"


def test_the_label_is_run_where_none_is_given() -> None:
    assert Tokens(1).label == "run"
    assert Cost(1).label == "run"


# Unknown tokens

UNKNOWN = UnknownTokens("write", "write > ChatGoogleGenerativeAI (gemini-2.5-flash) reported no usage")
SAID = r"^write: tokens unknown: write > ChatGoogleGenerativeAI \(gemini-2\.5-flash\) reported no usage$"


@pytest.mark.parametrize(
    "use",
    [
        *[lambda u, holds=holds: holds(u, 5) for holds in OPERATORS.values()],
        *[lambda u, holds=holds: holds(5, u) for holds in OPERATORS.values()],
        *[
            lambda u, act=act: act(u, 5)
            for act in (
                operator.add,
                operator.sub,
                operator.mul,
                operator.truediv,
                operator.floordiv,
                operator.mod,
                operator.pow,
                divmod,
            )
        ],
        *[
            lambda u, act=act: act(5, u)
            for act in (
                operator.add,
                operator.sub,
                operator.mul,
                operator.truediv,
                operator.floordiv,
                operator.mod,
                operator.pow,
                divmod,
            )
        ],
        *[
            lambda u, act=act: act(u)
            for act in (int, float, bool, abs, round, operator.neg, operator.pos, operator.index, math.floor, math.ceil)
        ],
        math.trunc,
        lambda u: u == u,
        lambda u: u is None or u == None,  # noqa: E711 - a user may write it
        lambda u: u in [1, 2],
        lambda u: sum([u, u]),
        lambda u: sum([Tokens(5), u]),
        lambda u: max(u, 5),
        lambda u: sorted([u, 5]),
        lambda u: 0 < u < 5,
        lambda u: range(u),
        lambda u: [1, 2, 3][u],
        lambda u: u if u else 0,
        lambda u: Decimal(2) * u,
    ],
)
def test_unknown_tokens_refuse_every_use_and_name_the_span(use: Callable[[Any], Any]) -> None:
    with pytest.raises(UsageUnknown, match=SAID):
        use(UNKNOWN)


def test_unknown_tokens_can_be_shown_kept_and_copied() -> None:
    assert (str(UNKNOWN), repr(UNKNOWN), f"{UNKNOWN}", f"{UNKNOWN:,}") == ("-", "-", "-", "-")
    assert {UNKNOWN: 1}[UNKNOWN] == 1
    for again in (copy.deepcopy(UNKNOWN), pickle.loads(pickle.dumps(UNKNOWN))):  # noqa: S301 - our own bytes
        assert (again.label, again.reason) == (UNKNOWN.label, UNKNOWN.reason)
    with pytest.raises(TypeError):
        json.dumps(UNKNOWN)


# Usage


def test_a_sum_with_an_unknown_part_is_unknown_and_details_are_what_was_reported() -> None:
    total = Usage.sum([Usage(10, 5, 15, thoughts_tokens=2), Usage(None, 7, 7), Usage(1, 1, 2, 3, 4, 5)])
    assert total.as_dict() == {
        "input_tokens": None,
        "output_tokens": 13,
        "total_tokens": 24,
        "cache_read_input_tokens": 3,
        "thoughts_tokens": 6,
        "tool_use_tokens": 5,
    }
    assert not total.known


def test_nothing_sums_to_zero_with_unknown_details() -> None:
    assert Usage.sum([]) == Usage(0, 0, 0, None, None, None)
    assert Usage.sum([]).known


def test_modalities_add_up_by_name() -> None:
    one = Usage(input_modalities=(("TEXT", 5), ("AUDIO", 1)), output_modalities=(("IMAGE", 3),))
    two = Usage(input_modalities=(("TEXT", 2),), cache_modalities=(("TEXT", 1),))
    total = Usage.sum([one, two])
    assert total.input_modalities == (("AUDIO", 1), ("TEXT", 7))
    assert total.cache_modalities == (("TEXT", 1),)
    assert total.output_modalities == (("IMAGE", 3),)


@given(st.lists(PARTS, max_size=6), st.randoms(use_true_random=False))
def test_a_sum_does_not_depend_on_order_or_grouping(parts: list[Usage], random: Any) -> None:
    shuffled = random.sample(parts, len(parts))
    half = len(parts) // 2
    assert Usage.sum(shuffled) == Usage.sum(parts)
    assert Usage.sum([Usage.sum(parts[:half]), Usage.sum(parts[half:])]) == Usage.sum(parts)


@given(st.lists(PARTS, min_size=1, max_size=6))
def test_a_sum_is_known_exactly_where_every_part_is(parts: list[Usage]) -> None:
    total = Usage.sum(parts)
    assert total.known == all(part.known for part in parts)
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        values = [getattr(part, name) for part in parts]
        assert getattr(total, name) == (None if None in values else sum(values))


# Explanations


@pytest.mark.parametrize(
    ("left", "op", "right", "said"),
    [
        (Tokens(3534, "research"), "<", 2000, ["research 3,534 tokens < 2,000 (+1,534)"]),
        (2000, ">", Tokens(3534, "research"), ["2,000 > research 3,534 tokens (+1,534)"]),
        (Tokens(3534, "research"), "<=", 2000, ["research 3,534 tokens <= 2,000 (+1,534)"]),
        (Tokens(1500, "research"), ">", 2000, ["research 1,500 tokens > 2,000 (-500)"]),
        (2000, "<", Tokens(1500, "research"), ["2,000 < research 1,500 tokens (-500)"]),
        (Tokens(1500, "run"), ">=", 2000, ["run 1,500 tokens >= 2,000 (-500)"]),
        (Tokens(4601, "run"), "==", 4600, ["run 4,601 tokens == 4,600 (+1)"]),
        (4600, "==", Tokens(4601, "run"), ["4,600 == run 4,601 tokens (+1)"]),
        (Tokens(5, "run"), "!=", 5, ["run 5 tokens != 5"]),
        (Tokens(5, "run"), "<", 5, ["run 5 tokens < 5"]),
        (Tokens(5, "a"), "<", Tokens(4, "b"), ["a 5 tokens < b 4 tokens (+1)"]),
        (Tokens(5, "a"), "<", 4.5, ["a 5 tokens < 4.5 (+0.5)"]),
        (Tokens(1, "a"), "<", 0.9, ["a 1 tokens < 0.9 (+0.1)"]),
        (Tokens(5, "a"), "<", Decimal("2E+0"), ["a 5 tokens < 2 (+3)"]),
        (Tokens(5, "a"), ">", math.inf, ["a 5 tokens > inf"]),
        (Tokens(5, "a"), "<", math.nan, ["a 5 tokens < nan"]),
        (Cost("0.00296", "run"), "<", Decimal("0.0025"), ["run $0.00296 < $0.0025 (+$0.00046)"]),
        (Decimal("0.0025"), ">", Cost("0.00296", "run"), ["$0.0025 > run $0.00296 (+$0.00046)"]),
        (Cost("0.00296", "run"), "<", 0.0025, ["run $0.00296 < $0.0025 (+$0.00046)"]),
        (Cost("0.00296", "run"), ">", 1, ["run $0.00296 > $1.00 (-$0.99704)"]),
        (Cost("0.3", "run"), "==", Decimal("0.2"), ["run $0.30 == $0.20 (+$0.10)"]),
        (
            Cost("0.003", "run"),
            "==",
            0.003,
            ["run $0.003 == $0.003", "a float is not an amount of money: compare with Decimal('0.003')"],
        ),
        (
            0.004,
            "==",
            Cost("0.003", "run"),
            ["$0.004 == run $0.003 (-$0.001)", "a float is not an amount of money: compare with Decimal('0.004')"],
        ),
        (
            Cost("0.3", "run"),
            "<=",
            0.3,
            ["run $0.30 <= $0.30", "a float is not an amount of money: compare with Decimal('0.3')"],
        ),
        (
            0.3,
            ">=",
            Cost("0.3", "run"),
            ["$0.30 >= run $0.30", "a float is not an amount of money: compare with Decimal('0.3')"],
        ),
        (Cost("0.5", "run"), "<", 0.5, ["run $0.50 < $0.50"]),
        (Cost("0.5", "run"), "!=", 0.5, ["run $0.50 != $0.50"]),
        (Cost("0.5", "run"), ">", math.inf, ["run $0.50 > $Infinity"]),
        (Cost("0.5", "run"), "==", math.nan, ["run $0.50 == $NaN"]),
        (Cost("0.5", "run"), "==", Decimal("NaN"), ["run $0.50 == $NaN"]),
        (Cost("2", "a"), "<", Tokens(1, "b"), ["a $2.00 < b 1 tokens (+$1.00)"]),
    ],
)
def test_a_failed_comparison_is_said_as_a_person_would(left: object, op: str, right: object, said: list[str]) -> None:
    assert not OPERATORS[op](left, right)
    assert explain_comparison(op, left, right) == said


def test_a_difference_is_not_rounded_by_the_context_of_the_program() -> None:
    with localcontext(Context(prec=2)):
        said = explain_comparison("<", Cost("0.123456", "run"), Decimal("0.1"))
    assert said == ["run $0.123456 < $0.10 (+$0.023456)"]


NUMBERS = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.decimals(allow_nan=False).filter(lambda value: not value.is_snan()),
    st.builds(Tokens, COUNTS, st.just("b")),
    st.builds(Cost, MONEY, st.just("c")),
)


@pytest.mark.parametrize("op", OPERATORS)
@given(ours=st.one_of(st.builds(Tokens, COUNTS, st.just("a")), st.builds(Cost, MONEY, st.just("a"))), other=NUMBERS)
def test_a_comparison_that_held_is_never_given_an_excess(op: str, ours: Tokens | Cost, other: Any) -> None:
    for left, right in ((ours, other), (other, ours)):
        said = explain_comparison(op, left, right)
        assert said is not None
        assert f" {op} " in said[0]
        if OPERATORS[op](left, right):
            assert "(" not in said[0]
            assert len(said) == 1


@pytest.mark.parametrize(
    ("op", "left", "right"),
    [
        ("<", 1, 2),
        ("==", "a", "b"),
        ("in", Tokens(1), [1]),
        ("is", Tokens(1), 1),
        ("==", Tokens(1), "1"),
        ("==", Tokens(1), None),
        ("==", Tokens(1), True),
        ("==", Cost(1), [1]),
        ("==", UNKNOWN, UNKNOWN),
    ],
)
def test_what_is_not_ours_is_left_to_pytest(op: str, left: object, right: object) -> None:
    assert explain_comparison(op, left, right) is None
