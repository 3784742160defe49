"""Types of workflows: their texts, what fits them, and each value that does not."""

from __future__ import annotations

import pytest

from pytest_agenttrace.workflow.types import Member, Type, TypeSyntaxError, fits, mismatches, parse_type


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("str", "str"),
        (" int ", "int"),
        ("list", "list"),
        ("list[str]", "list[str]"),
        ("dict[str,int]", "dict[str, int]"),
        ("dict[str, list[dict[int, bool]]]", "dict[str, list[dict[int, bool]]]"),
        ("list[ list [float] ]", "list[list[float]]"),
        ("object", "object"),
        ("list[object]", "list[object]"),
    ],
)
def test_a_type_is_read_from_its_text(text: str, said: str) -> None:
    assert str(parse_type(text)) == said


@pytest.mark.parametrize(
    ("text", "message", "instead"),
    [
        ("string", "'string' is no type", "str"),
        ("Integer", "'Integer' is no type", "int"),
        ("number", "'number' is no type", "float"),
        ("flaot", "'flaot' is no type", "float"),
        ("array[str]", "'array[str]' is no type", "list[str]"),
        ("List[str]", "'List[str]' is no type", "list[str]"),
        ("xyz", "'xyz' is no type", None),
        ("", "'' is no type", None),
        ("list[]", "'list[]' is no type: its brackets are not closed, or empty", None),
        ("list[str", "'list[str' is no type: its brackets are not closed, or empty", None),
        ("list[str, int]", "'list[str, int]' is no type: a list has one type, list[T]", None),
        ("dict[str]", "'dict[str]' is no type: a dict has two, dict[K, V]", None),
        ("dict[list, int]", "'dict[list, int]' is no type: keys are str, int, float, bool", None),
        ("list[" * 20 + "str" + "]" * 20, "a type nested too deeply", None),
        ("x" * 300, "a type of 300 characters", None),
    ],
)
def test_what_is_no_type_says_so_with_the_nearest(text: str, message: str, instead: str | None) -> None:
    with pytest.raises(TypeSyntaxError) as caught:
        parse_type(text)
    assert (str(caught.value), caught.value.instead) == (message, instead)


PERSON = Type(
    "object",
    members={
        "name": Member(Type("str"), required=True),
        "age": Member(Type("int")),
        "tags": Member(parse_type("list[str]"), default=[]),
        "note": Member(Type("str"), required=False),
    },
)


@pytest.mark.parametrize(
    ("value", "wanted", "wrong"),
    [
        ("x", "str", []),
        (1, "int", []),
        (1, "float", []),
        (1.5, "float", []),
        (False, "bool", []),
        ([1, "x", None], "list", []),
        ({"a": 1, 2: None}, "dict", []),
        ({}, "dict[str, int]", []),
        (True, "int", [("", "int is wanted, not bool true")]),
        (True, "float", [("", "float is wanted, not bool true")]),
        (1, "bool", [("", "bool is wanted, not int 1")]),
        (0, "bool", [("", "bool is wanted, not int 0")]),
        (1.0, "int", [("", "int is wanted, not float 1.0")]),
        ("1", "int", [("", "int is wanted, not str '1'")]),
        (None, "str", [("", "str is wanted, not null")]),
        (float("nan"), "float", [("", "float is wanted, not float nan")]),
        ("abc", "list", [("", "list is wanted, not str 'abc'")]),
        ([1, True, "x"], "list[int]", [("[1]", "int is wanted, not bool true"), ("[2]", "int is wanted, not str 'x'")]),
        ({"a": [1.5]}, "dict[str, list[int]]", [(".a[0]", "int is wanted, not float 1.5")]),
        ({1: 1}, "dict[str, int]", [("", "a key of dict[str, int] is str, not int 1")]),
        ({"a b": "x"}, "dict[str, int]", [("['a b']", "int is wanted, not str 'x'")]),
    ],
)
def test_a_value_is_of_its_type_exactly(value: object, wanted: str, wrong: list[tuple[str, str]]) -> None:
    assert [(found.path, found.text) for found in mismatches(value, parse_type(wanted))] == wrong


def test_an_objects_members_are_checked_by_name() -> None:
    assert list(mismatches({"name": "Ada"}, PERSON)) == []
    found = [(wrong.path, wrong.text) for wrong in mismatches({"age": "old", "tags": [1], "job": 1}, PERSON)]
    assert found == [
        ("", "the object has no member 'job'"),
        ("", "its member 'name' is missing"),
        (".age", "int is wanted, not str 'old'"),
        (".tags[0]", "str is wanted, not int 1"),
    ]


def test_what_a_model_returns_is_whole() -> None:
    found = [wrong.text for wrong in mismatches({"name": "Ada", "age": None}, PERSON, whole=True)]
    assert found == ["its member 'age' is missing"]


def test_a_long_value_is_cut_in_a_message() -> None:
    (found,) = mismatches("x" * 500, Type("int"))
    assert found.text == "int is wanted, not str '" + "x" * 36 + "..."


@pytest.mark.parametrize(
    ("given", "wanted", "expected"),
    [
        ("int", "float", True),
        ("float", "int", False),
        ("bool", "int", False),
        ("list[int]", "list", True),
        ("list", "list[int]", False),
        ("list[int]", "list[float]", True),
        ("dict[str, int]", "dict", True),
        ("dict[str, int]", "dict[str, str]", False),
        ("object", "dict", True),
        ("dict", "object", False),
        ("object", "object", True),
    ],
)
def test_one_type_fits_another_where_all_its_values_do(given: str, wanted: str, expected: bool) -> None:
    assert fits(parse_type(given), parse_type(wanted)) is expected


def test_an_object_fits_one_with_the_members_it_needs() -> None:
    def of(**members: str) -> Type:
        return Type("object", members={name: Member(parse_type(text)) for name, text in members.items()})

    assert fits(of(name="str"), PERSON)
    assert not fits(of(age="int"), PERSON), "name is required"
    assert not fits(of(name="str", job="str"), PERSON), "no such member"
    assert not fits(of(name="int"), PERSON)
