from __future__ import annotations

import json

import pytest

from pytest_agenttrace.replay.mismatch import difference, differing, ranked, shortened, word_difference


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Write 300 words on sails", "Write 400 words on sails", "Write [-300-]{+400+} words on sails"),
        ("one two", "three", "[-one two-]{+three+}"),
        ("one", "one two", "one {+two+}"),
        ("one two", "one", "one [-two-]"),
        ("", "hi", "{+hi+}"),
        ("a b c d e f g X h", "a b c d e f g Y h", "... c d e f g [-X-]{+Y+} h"),
        (
            "a " * 9 + "old tail" + " z" * 40,
            "a " * 9 + "new and longer tail" + " z" * 40,
            "... a a a a a [-old-]{+new and longer+} tail z z z z z z z z ...",
        ),
        (
            " ".join(f"o{i}" for i in range(20)),
            " ".join(f"n{i}" for i in range(20)),
            "[-o0 o1 o2 o3 o4 o5 o6 o7 o8 o9 o10 o11 ...-]{+n0 n1 n2 n3 n4 n5 n6 n7 n8 n9 n10 n11 ...+} ...",
        ),
        (f"a {'x' * 99} b", f"a {'x' * 99} c", f"a {'x' * 57}... [-b-]{{+c+}}"),
        (f"a {'x' * 99}", f"b {'x' * 9}", f"[-a {'x' * 57}...-]{{+b xxxxxxxxx+}}"),
        ("a b", "a b\n", "recorded 'a b', asked 'a b\\n'"),
        ("line one\nline 2", "line one\nline 3", "line one line [-2-]{+3+}"),
        ("x" * 70 + "y", "x" * 70 + "z", f"recorded ...'{'x' * 20}y', asked ...'{'x' * 20}z'"),
    ],
)
def test_words_round_the_first_difference(old: str, new: str, said: str) -> None:
    assert word_difference(old, new) == said


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, ("a.b[1]", "recorded 2, asked 3")),
        ({"a": [1]}, {"a": [1, {"q": "hello"}]}, ("a[1]", 'recorded nothing, asked {"q": "hello"}')),
        ({"a": [1, 2]}, {"a": [1]}, ("a[1]", "recorded 2, asked nothing")),
        ({}, {"temperature": 0.7}, ("temperature", "recorded nothing, asked 0.7")),
        ({"t": True}, {"t": 1}, ("t", "recorded true, asked 1")),
        ({"t": None}, {"t": 0}, ("t", "recorded null, asked 0")),
        (
            {"z": 1, "contents": [{"text": "a"}]},
            {"z": 2, "contents": [{"text": "b"}]},
            ("contents[0].text", "[-a-]{+b+}"),
        ),
        (1, 2, ("body", "recorded 1, asked 2")),
    ],
)
def test_the_first_place_where_two_bodies_differ(old: object, new: object, found: tuple[str, str] | None) -> None:
    assert difference(json.dumps(old).encode(), json.dumps(new).encode()) == found


def test_bodies_that_are_not_json_are_compared_as_texts() -> None:
    assert difference(b"name=a b", b"name=a c") == ("body", "name=a [-b-]{+c+}")
    assert difference(b"\xff\xfe", b"\xff\xfe") is None


def test_the_closest_shares_most_words_and_a_bonus_decides_between_equals() -> None:
    asked = b'{"text": "write four hundred words on solar sails"}'
    review = (b'{"text": "review the article"}', 0.0)
    write = (b'{"text": "write three hundred words on solar sails"}', 0.0)
    assert ranked(asked, [review, write]) == [1, 0]
    assert ranked(asked, [write, review, write]) == [0, 2, 1]
    assert ranked(asked, [write, (write[0], 0.2)]) == [1, 0]


def test_megabytes_are_compared_in_no_time() -> None:
    image = b'{"data": "' + b"QUJD+/" * 200_000 + b'"}'
    assert ranked(image, [(image, 0.0)] * 20)[0] == 0


def test_shortened_is_one_line() -> None:
    assert shortened("a\n  b\tc") == "a b c"
    assert shortened("word " * 20, 20) == "word word word wo..."
    assert len(shortened("word " * 20, 20)) == 20


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ({"a": {"seed": 1}}, {"a": {"seed": 2}}, "a.seed"),
        ({"a": [1, {"b": "x"}]}, {"a": [1, {"b": "y"}]}, "a[1].b"),
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2}, None),
        ({"a": 1}, {}, None),
        ({"a": [1]}, {"a": [1, 2]}, None),
        ({"a": 1}, {"a": {}}, None),
        (1, 2, None),
    ],
)
def test_the_one_value_that_differs(old: object, new: object, path: str | None) -> None:
    assert differing(json.dumps(old).encode(), json.dumps(new).encode()) == path


def test_what_is_asked_comes_before_what_surrounds_it() -> None:
    surroundings = ["cachedContent", "generationConfig", "safetySettings", "tools", "a"]
    asked = ["contents", "content", "requests", "systemInstruction", "system_instruction"]
    for first in asked:
        old, new = (dict.fromkeys([*surroundings, first], side) for side in ("old", "new"))
        assert difference(json.dumps(old).encode(), json.dumps(new).encode()) == (first, "[-old-]{+new+}")


def test_texts_nested_beyond_measure_are_compared_as_texts() -> None:
    assert difference(b"[" * 9_000 + b" a", b"[" * 9_000 + b" b") == ("body", f"{'[' * 57}... [-a-]{{+b+}}")
