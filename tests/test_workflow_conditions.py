"""Conditions of routes: what they say of a state, what they refuse, and what has no answer."""
# ruff: noqa: E501  # a row is a case, with its message whole

from __future__ import annotations

import ast
import random
from contextlib import suppress
from typing import Any

import pytest

from pytest_agenttrace.workflow import ConditionFailed
from pytest_agenttrace.workflow.conditions import ConditionError, parse_condition

STATE: dict[str, Any] = {
    "score": 8,
    "rate": 0.5,
    "kind": "draft",
    "done": False,
    "tags": ["a", "b"],
    "profile": {"age": 36, "name": "Ada", "tags": []},
    "nothing": None,
    "empty": "",
    "zero": 0,
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("state.score >= 8", True),
        ("score > 8", False),
        ("{state.score} <= 8.0", True),
        ("{score} < 7.5e0", False),
        ("rate == .5", True),
        ("score != -3", True),
        ("kind == 'draft'", True),
        ('state.kind == "final"', False),
        (r"kind != 'it\'s'", True),
        ("'draft' == kind", True),
        ("kind < 'e'", True),
        ("done == false", True),
        ("done == False", True),
        ("done", False),
        ("not done", True),
        ("not not done", False),
        ("state.profile.age > 30 and profile.name == 'Ada'", True),
        ("(score > 100 or done == true) and zero == 0", False),
        ("score > 100 or done == true and zero == 0 or kind == 'draft'", True),
        ("not (score > 1 and done)", True),
        ("not score > 100", True),
        ("nothing == null", True),
        ("nothing == None", True),
        ("score == null", False),
        ("nothing != 'x'", True),
        ("nothing", False),
        ("empty or zero or profile.tags", False),
        ("tags and score", True),
        ("kind in ['final', 'draft']", True),
        ("kind not in ['final', \"draft\",]", False),
        ("'a' in state.tags", True),
        ("'raf' in kind", True),
        ("'age' in profile", True),
        ("score in [1, 8.0, 'x', null]", True),
        ("true", True),
        ("tags == ['a', 'b']", True),
        ("  \n score\t== 8 ", True),
        ("done or score == 8 or nothing > 3", True),
        ("done and nothing > 3", False),
    ],
)
def test_a_condition_holds_or_not(text: str, holds: bool) -> None:
    assert parse_condition(text).evaluate(STATE, "router") is holds


HELD: dict[str, Any] = {
    "l": [1, True, [2, "x"]],
    "same": [1.0, True, [2.0, "x"]],
    "ones": [1, 0],
    "bools": [True, False],
    "nested": [[1], {"a": 1}],
    "one": {"a": 1, "b": [1]},
    "float": {"b": [1.0], "a": 1.0},
    "true": {"a": True, "b": [True]},
    "by_int": {1: "x"},
    "by_bool": {True: "x"},
    "bool_list": [True],
    "true_dict": {"a": True},
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("ones == bools", False),
        ("bools == [1, 0]", False),
        ("bools != [1, 0]", True),
        ("bools == [true, false]", True),
        ("ones == [1.0, 0]", True),
        ("ones == [1]", False),
        ("l == same", True),
        ("one == float", True),
        ("float != one", False),
        ("one == state.true", False),
        ("one != state.true", True),
        ("by_int == by_bool", False),
        ("by_int == by_int", True),
        ("one == by_int", False),
        ("true in ones", False),
        ("1 in bools", False),
        ("1.0 in ones", True),
        ("true not in [1]", True),
        ("bool_list in nested", False),
        ("[1] in nested", True),
        ("true_dict in nested", False),
        ("true in by_int", False),
        ("1 in by_bool", False),
        ("1.0 in by_int", True),
        ("true in by_bool", True),
        ("null in one", False),
    ],
)
def test_what_lists_and_dicts_hold_is_compared_by_its_type(text: str, holds: bool) -> None:
    assert parse_condition(text).evaluate(HELD, "router") is holds


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        ("", "the condition is empty", 0),
        ("   ", "the condition is empty", 0),
        ("score = 8", "'=' is not of this grammar; did you mean '=='?", 6),
        ("score <> 8", "'<>' is not of this grammar; did you mean '!='?", 6),
        ("score === 8", "'===' is not of this grammar; did you mean '=='?", 6),
        ("done && score", "'&&' is not of this grammar; did you mean 'and'?", 5),
        ("done || score", "'||' is not of this grammar; did you mean 'or'?", 5),
        ("!done", "'!' is not of this grammar; did you mean 'not'?", 0),
        ("score + 1 > 2", "'+' is not of this grammar", 6),
        ("score > 8%", "'%' is not of this grammar", 9),
        ("1 < score < 9", "'<' after a comparison: join two with and", 10),
        ("len(tags) > 1", "a call: conditions have no functions", 3),
        ("__import__('os')", "'__import__' is refused: names of the state do not start with _", 0),
        ("state.__class__ == 1", "'__class__' is refused: names of the state do not start with _", 0),
        ("tags[0] == 'a'", "an index: conditions have names only", 4),
        ("state", "state is not a field: name one, state.x", 0),
        ("(score > 1", "')' is missing", 10),
        ("{score", "'}' is missing", 6),
        ("{1} > 1", "braces hold a name: {state.x}", 1),
        ("kind in ['a', score]", "a list holds numbers, texts, true, false and null", 14),
        ("kind in ['a'", "']' is missing", 12),
        ("kind == 'draft", "a text is never closed", 8),
        ("score >", "a value is missing at the end", 7),
        ("and score", "a value is missing before 'and'", 0),
        ("score not 8", "'in' is expected after 'not' here", 10),
        ("score 8", "'8' is not expected here: and, or, a comparison or the end is", 6),
        ("score > 1 ; done", "';' is not of this grammar", 10),
        ("score > 1" + "0" * 200, "a number of more than 100 digits", 8),
        ("(" * 60 + "done" + ")" * 60, "nested too deeply", 51),
        ("not " * 60 + "done", "nested too deeply", 204),
        ("done or " * 300 + "done", "a condition of 2,404 characters, more than 2,000", 0),
    ],
)
def test_what_is_no_condition_says_where_and_why(text: str, message: str, offset: int) -> None:
    with pytest.raises(ConditionError) as caught:
        parse_condition(text)
    assert (str(caught.value), caught.value.offset) == (message, offset)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("state.missing == 1", "state.missing: state has no 'missing'"),
        ("profile.nme == 'x'", "state.profile.nme: state.profile has no 'nme'"),
        ("kind.x == 1", "state.kind.x: state.kind is str"),
        ("score > '8'", "state.score (int 8) > str '8'"),
        ("kind == 8", "state.kind (str 'draft') == int 8"),
        ("done == 0", "state.done (bool false) == int 0"),
        ("nothing > 3", "state.nothing (null) > int 3"),
        ("tags > 1", "state.tags (list ['a', 'b']) > int 1"),
        ("done < true", "state.done (bool false) < bool true"),
        ("1 in score", "int 1 in state.score (int 8)"),
        ("1 in kind", "int 1 in state.kind (str 'draft')"),
        (
            "tags in profile",
            "state.tags (list ['a', 'b']) in state.profile (dict {'age': 36, 'name': 'Ada', 'tags': []})",
        ),
        (
            "profile not in profile",
            "state.profile (dict {'age': 36, 'name': 'Ada', 'tags': []}) not in state.profile (dict {'age': 36, 'name': 'Ada', 'tags': []})",
        ),
    ],
)
def test_a_condition_without_an_answer_names_node_condition_and_field(text: str, why: str) -> None:
    with pytest.raises(ConditionFailed) as caught:
        parse_condition(text).evaluate(STATE, "router")
    assert str(caught.value) == f"router: condition {text!r} cannot be judged: {why}"


def test_the_fields_of_a_condition_have_their_places() -> None:
    text = "not state.done and {profile.age} > 3"
    found = parse_condition(text).fields
    assert [(str(field), text[field.offset :][:5]) for field in found] == [
        ("state.done", "state"),
        ("state.profile.age", "profi"),
    ]


def test_conditions_agree_with_python_where_both_have_an_answer() -> None:
    random_ = random.Random(7)

    def made(depth: int) -> str:
        if depth == 0 or random_.random() < 0.3:
            left = random_.choice(["a", "b", "3", "-1", "2.5"])
            return f"{left} {random_.choice(['==', '!=', '<', '<=', '>', '>='])} {random_.choice(['a', 'b', '0', '7'])}"
        kind = random_.choice(["and", "or", "not", "()"])
        if kind == "not":
            return f"not {made(depth - 1)}"
        if kind == "()":
            return f"({made(depth - 1)})"
        return f"{made(depth - 1)} {kind} {made(depth - 1)}"

    state = {"a": 3, "b": -1.5}
    for _ in range(300):
        text = made(4)
        expected = eval(compile(ast.parse(text, mode="eval"), "<made>", "eval"), {}, dict(state))  # noqa: S307  # ours
        assert parse_condition(text).evaluate(state, "n") is expected, text


def test_no_text_makes_the_parser_fail_otherwise() -> None:
    random_ = random.Random(11)
    words = ["state.a", "b", "and", "or", "not", "in", "==", "<", "'x'", "1"]
    pieces = [*words, *'()[]{},"._é\\\n-', "e5"]
    for _ in range(3_000):
        text = random_.choice([" ", ""]).join(random_.choices(pieces, k=random_.randint(1, 12)))
        with suppress(ConditionError, ConditionFailed):
            parse_condition(text).evaluate({"a": 1, "b": "x"}, "n")
