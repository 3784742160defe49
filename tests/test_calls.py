"""Calls as data, and what is summed over them."""

from __future__ import annotations

import dataclasses
from decimal import Context, Decimal, localcontext
from typing import Any

import pytest

from pytest_agenttrace.calls import (
    CHAT_METHODS,
    Asked,
    Call,
    Endpoint,
    ModelCall,
    ToolCall,
    sum_cost,
    sum_duration,
    sum_tokens,
    sum_usage,
)
from pytest_agenttrace.usage import Cost, Tokens, UnknownTokens, Usage, UsageUnknown
from tests.handmade import FLASH, Run, call, dollar_per_million, tokens

KNOWN = ModelCall(FLASH, "research", "research:1", tokens(150, 1171))
SECOND = ModelCall(FLASH, "research", "research:1", tokens(2000, 213))


def on_the_wire(**fields: Any) -> Call:
    return call(2, Run().node("write", None, 2, "write:1"), None, **fields)


def test_a_tool_call_equals_a_plain_tuple() -> None:
    made = ToolCall("web_search", {"query": "solar sails"})
    assert (made.name, made.args) == ("web_search", {"query": "solar sails"})
    assert made == ("web_search", {"query": "solar sails"})
    assert [made] == [("web_search", {"query": "solar sails"})]


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent", "embedContent", "countTokens"])
def test_only_chat_methods_are_chat(method: str) -> None:
    assert Endpoint(method, FLASH, False, False, False).chat is (method in CHAT_METHODS)


@pytest.mark.parametrize(("status", "answered"), [(200, True), (204, True), (199, False), (300, False), (429, False)])
def test_a_call_is_answered_by_a_status_of_success(status: int, answered: bool) -> None:
    assert on_the_wire(status=status).answered is answered


def test_a_model_call_takes_time_and_requests_from_the_wire() -> None:
    made = on_the_wire(duration=1.25, tool_requests=(ToolCall("clock", {}),))
    both = ModelCall(FLASH, "write", "write:1", None, call=made)
    assert (both.duration, both.tool_requests, both.recorded_at) == (1.25, (("clock", {}),), None)
    assert (KNOWN.duration, KNOWN.tool_requests, KNOWN.recorded_at) == (None, (), None)


def test_sums_of_known_calls() -> None:
    calls = [KNOWN, SECOND]
    assert sum_usage(calls) == Usage(2150, 1384, 3534)
    total = sum_tokens(calls, "research")
    assert isinstance(total, Tokens)
    assert (total, total.label) == (3534, "research")
    cost = sum_cost(calls, dollar_per_million, "research")
    assert isinstance(cost, Cost)
    assert (cost, cost.label) == (Decimal("0.003534"), "research")


def test_no_calls_are_zero_and_take_no_known_time() -> None:
    assert sum_tokens([], "run") == 0
    assert sum_cost([], dollar_per_million, "run") == 0
    assert sum_usage([]) == Usage(0, 0, 0)
    assert sum_duration([]) is None


@pytest.mark.parametrize(
    ("unknown", "named"),
    [
        (
            ModelCall(FLASH, "write", "w:1", None, "s1", "ChatGoogleGenerativeAI"),
            "write > ChatGoogleGenerativeAI (gemini-2.5-flash) reported no usage",
        ),
        (
            ModelCall(FLASH, "write", "w:1", None, call=on_the_wire()),
            "write > call 2 (gemini-2.5-flash) reported no usage",
        ),
        (ModelCall(None, None, None, Usage(1, 1, None)), "a call (model not named) reported no usage"),
    ],
)
def test_unknown_tokens_name_who_kept_silent(unknown: ModelCall, named: str) -> None:
    total = sum_tokens([KNOWN, unknown], "run")
    assert isinstance(total, UnknownTokens)
    assert (total.label, total.reason) == ("run", named)


def test_a_cost_needs_input_and_output_but_no_total() -> None:
    no_total = ModelCall(FLASH, "write", None, Usage(1, 2, None))
    assert sum_cost([no_total], lambda made: Decimal("0.5"), "run") == Decimal("0.5")
    with pytest.raises(UsageUnknown) as caught:
        sum_cost([KNOWN, ModelCall(FLASH, "write", None, Usage(None, None, 9))], dollar_per_million, "run")
    assert str(caught.value) == "run: cost unknown: write > a call (gemini-2.5-flash) reported no usage"


def test_a_cost_is_not_rounded_by_the_context_of_the_program() -> None:
    with localcontext(Context(prec=2)):
        assert sum_cost([KNOWN, SECOND], lambda made: Decimal("0.0012345"), "run") == Decimal("0.0024690")


def test_a_duration_is_known_where_every_part_is() -> None:
    timed = [ModelCall(FLASH, None, None, None, call=on_the_wire(duration=seconds)) for seconds in (0.5, 0.25, 0.0)]
    assert sum_duration(timed) == 0.75
    assert sum_duration([*timed, KNOWN]) is None


def test_all_calls_without_a_price_are_known_though_the_first_is_told() -> None:
    """One reading tells a budget's reader everything there is to add."""
    asked = Asked(dollar_per_million)
    calls = [
        dataclasses.replace(KNOWN, model="unpriced", node=node, unpriced_forgiven=node == "b")
        for node in ("a", "b", "c")
    ]
    with pytest.raises(LookupError, match=r"^no price is known for 'unpriced'$"):
        sum_cost([*calls, SECOND], asked, "run")
    assert list(asked.unpriced) == [("a", "unpriced"), ("b", "unpriced"), ("c", "unpriced")]


def test_what_has_no_price_is_left_out_where_that_is_allowed_but_never_all_of_it() -> None:
    unpriced = dataclasses.replace(KNOWN, model="unpriced", unpriced_forgiven=True)
    assert sum_cost([unpriced, SECOND], dollar_per_million, "run") == Decimal("0.002213")
    with pytest.raises(LookupError):
        sum_cost([unpriced, unpriced], dollar_per_million, "run")
    # Nothing at all costs nothing.
    assert sum_cost([], dollar_per_million, "run") == 0
