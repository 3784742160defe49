"""Prompts: what stands for a value, what for itself, and what is refused."""

from __future__ import annotations

import json
import string

import pytest

from pytest_agenttrace.workflow import Placeholder, Template
from pytest_agenttrace.workflow.placeholders import PlaceholderError, parse_template, scan_template

BRACES = "braces for themselves are written {{ }}"
ONLY = f"and a placeholder is a name only: {BRACES}"
PRIVATE = "is refused: names of the state do not start with _"


def rendered(text: str, **values: object) -> str:
    return parse_template(text).render(values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("About {topic}.", "About solar sails."),
        ("{state.topic}: {state.profile.age}", "solar sails: 36"),
        ("{{topic}} is {topic}", "{topic} is solar sails"),
        ('{"score": 1}', '{"score": 1}'),
        ('{"a": {"b": {}}} {topic}', '{"a": {"b": {}}} solar sails'),
        ('{{"a": {{"b": "{topic}"}}}}', '{"a": {"b": "solar sails"}}'),
        ('{{"a": {topic}}}', '{"a": solar sails}'),
        ("{} { } {\n} }", "{} { } {\n} }"),
        (r"\d{3,5} {0}", r"\d{3,5} {0}"),
        ("{tags} {flag} {nothing} {umlaut}", '["a", 1] true null ä'),
        ("", ""),
    ],
)
def test_placeholders_stand_for_values_and_other_braces_for_themselves(text: str, said: str) -> None:
    profile = {"age": 36}
    values = {"topic": "solar sails", "tags": ["a", 1], "flag": True, "nothing": None, "umlaut": "ä"}
    assert rendered(text, **values, state={"topic": "solar sails", "profile": profile}) == said


@pytest.mark.parametrize(
    ("text", "message", "offset"),
    [
        (
            "a {state.__class__} b",
            "{state.__class__}: '__class__' is refused: names of the state do not start with _",
            2,
        ),
        ("{_private}", "{_private}: '_private' " + PRIVATE, 0),
        (
            "{__import__('os')}",
            "{__import__('os')} has a call, " + ONLY,
            0,
        ),
        (
            "{x!r}",
            "{x!r} has a conversion, " + ONLY,
            0,
        ),
        (
            "{x:>10}",
            "{x:>10} has a format, " + ONLY,
            0,
        ),
        ("{x[0]}", "{x[0]} has an index, " + ONLY, 0),
        ("{x.}", "{x.} is no placeholder: " + BRACES, 0),
        ("{a, b}", "{a, b} is no placeholder: " + BRACES, 0),
        ("{ topic }", "{ topic } has blanks in it: write {topic}, or {{ topic }} for braces", 0),
        ("x {topic", "{topic is never closed: a brace for itself is written {{", 2),
        ("{" + "a." * 30 + "a}", "{" + ("a." * 30)[:37] + "...} goes too deep", 0),
    ],
)
def test_what_looks_like_formatting_is_refused(text: str, message: str, offset: int) -> None:
    with pytest.raises(PlaceholderError) as caught:
        parse_template(text)
    assert (str(caught.value), caught.value.offset) == (message, offset)


def test_every_error_of_a_text_is_found() -> None:
    template, errors = scan_template("{x!r} {topic} {y:d}")
    assert [error.offset for error in errors] == [0, 14]
    assert template.placeholders == (Placeholder(("topic",)),)


def test_the_item_of_a_parallel_map_has_names_of_its_own() -> None:
    template = parse_template("{_parallel_index}: {_parallel_item.name} {state._parallel_item}")
    assert [str(found) for found in template.placeholders] == [
        "{_parallel_index}",
        "{_parallel_item.name}",
        "{state._parallel_item}",
    ]


def test_a_text_that_is_one_placeholder_gives_its_value_as_it_is() -> None:
    only = parse_template("{state.tags}").only
    assert only is not None
    assert Template.value(only, {"state": {"tags": [1]}}) == [1]
    assert parse_template("{state.tags}!").only is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{topic}", "{topic}: no value is given"),
        ("{state.profile.age}", "{state.profile.age}: state.profile has no 'age'"),
        ("{state.text.upper}", "{state.text.upper}: state.text is str"),
    ],
)
def test_a_value_that_is_not_there_is_named(text: str, message: str) -> None:
    with pytest.raises(LookupError) as caught:
        rendered(text, state={"profile": {}, "text": "x"})
    assert caught.value.args == (message,)


def test_members_are_never_attributes_of_python() -> None:
    class Thing:
        inner = "leaked"

    with pytest.raises(LookupError):
        rendered("{thing.inner}", thing=Thing())


def test_what_python_would_format_the_same_is_rendered_the_same() -> None:
    texts = ["{a}{b}", "{{{a}}}", "{{}}{a}", "x{{y}}z", "{{{{{a}}}}}"]
    for text in texts:
        assert rendered(text, a="1", b="2") == string.Formatter().format(text, a="1", b="2")


def test_json_in_a_prompt_stays_json() -> None:
    data: dict[str, object] = {"a": [{"b": {"c": {}}}], "": {}}
    text = json.dumps(data, indent=1)
    assert json.loads(rendered(text)) == data
