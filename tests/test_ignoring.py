"""What is volatile in a request: found in prompts, at body paths, by regular expressions; and what is left alone."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_agenttrace.ignoring import NOTHING_IGNORED, Ignore, is_path, read_ignore
from pytest_agenttrace.wire import canonical_body
from tests import handmade  # noqa: F401  # hypothesis' profile


def ignore(*items: str) -> Ignore:
    found, problems = read_ignore(list(items))
    assert problems == ()
    return found


def without(value: Any, *items: str) -> Any:
    return json.loads(ignore(*items).body(canonical_body(json.dumps(value))))


# Dates


@pytest.mark.parametrize(
    "date",
    [
        "2026-11-23",
        "2026/11/23",
        "2026-1-2",
        "2026-11-23T10:11:12Z",
        "2026-11-23T10:11:12.123456+00:00",
        "2026-11-23T10:11:12.123456789+0100",
        "2026-11-23 10:11",
        "2026-11-23 10:11:12 UTC",
        "2026-11-23, 10:11 PM",
        "20261123T101112Z",
        "Mon, 23 Nov 2026 10:11:12 GMT",
        "Mon, 23 Nov 2026 10:11:12 +0100 (CET)",
        "Mon Nov 23 10:11:12 2026",
        "Mon Nov  2 10:11:12 UTC 2026",
        "Mon Nov 23 2026 10:11:12 GMT+0100 (Central European Standard Time)",
        "23 November 2026",
        "23rd of November, 2026",
        "22-Nov-2026",
        "November 23, 2026",
        "Nov. 23rd 2026",
        "Sunday, November 23, 2026 at 10:30 PM",
        "10:30 on Monday, 23 November 2026",
        "November 2026",
        "11/23/2026",
        "23/11/2026 9:05 am",
        "9:05 p.m. UTC, 23 May 2026",
        "11-23-2026",
        "23.11.2026",
        "2026-11-23 (Monday)",
        "Monday, 2026-11-23, Monday",
    ],
)
def test_a_date_is_found_whole_with_its_time_and_weekday(date: str) -> None:
    assert without(f"Today is {date}. Write on 300 sails.", "date") == "Today is <date>. Write on 300 sails."
    assert without(f"({date})\nx", "date") == "(<date>)\nx"
    assert without(date, "date") == "<date>"


@pytest.mark.parametrize(
    "text",
    [
        "at 10:30",
        "in 2026",
        "2026 words",
        "version 1.2.2026.4",
        "192.168.2026",
        "1234-56-78",
        "2026-13-01",
        "2026-11-32",
        "12026-11-23",
        "2026-11-233",
        "32/11/2026",
        "you may 2026",
        "Monday",
        "300 words",
        "10:30 on Monday",
        "gemini-2.5-flash-preview-09-2025",
        "call 030-2026-1111",
    ],
)
def test_what_is_no_date_stays(text: str) -> None:
    assert without(text, "date") == text


def test_what_stands_beside_a_date_stays() -> None:
    assert without("2026-11-23 10 items", "date") == "<date> 10 items"
    assert without("2026-11-23, Sun and sails", "date") == "<date>, Sun and sails"
    assert without("at 10:30 LAST on 1 May 2026", "date") == "at 10:30 LAST on <date>"
    assert without("from 2026-11-22 to 2026-11-23; 2026-11-24", "date") == "from <date> to <date>; <date>"
    assert without("report-2026-11-23.txt, 2026-11-23T10:11:12Z,next", "date") == "report-<date>.txt, <date>,next"


def test_long_texts_without_dates_cost_little() -> None:
    text = json.dumps("lorem ipsum 12 dolor on Monday at 10:30, in 2026 items " * 20_000).encode()
    start = time.perf_counter()
    assert ignore("date", "uuid").body(text) == text
    assert time.perf_counter() - start < 5, "a megabyte takes half a second"


# Ids


@pytest.mark.parametrize("found", ["0190a5f2-1111-7abc-8def-0123456789ab", "0123456789abcdef0123456789ABCDEF"])
def test_an_id_is_found_within_a_name(found: str) -> None:
    assert without(f"run {found}, call_{found} lc--{found}-0", "uuid") == "run <id>, call_<id> lc--<id>-0"


@pytest.mark.parametrize(
    "text", ["a" * 33, "0190a5f2-1111-7abc-8def-0123456789abc", "g" * 32, "0" * 31, "x" + "0" * 32]
)
def test_what_is_no_id_stays(text: str) -> None:
    assert without(text, "uuid") == text


# Regular expressions and paths


def test_a_regex_is_for_texts_alone() -> None:
    value = {"run 7": ["run 12", 12, {"a": "x run 3 run 4"}]}
    assert without(value, r"run \d+") == {"run 7": ["<ignored>", 12, {"a": "x <ignored> <ignored>"}]}


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("generationConfig.seed", {"generationConfig": {"topK": 1}, "contents": [{"a": 1}, {"a": 2, "b": 3}]}),
        ("generationConfig", {"contents": [{"a": 1}, {"a": 2, "b": 3}]}),
        (
            "contents[*].a",
            {"generationConfig": {"topK": 1, "seed": 5}, "contents": [{}, {"b": 3}]},
        ),
        (
            "contents[1]",
            {"generationConfig": {"topK": 1, "seed": 5}, "contents": [{"a": 1}, None]},
        ),
    ],
)
def test_a_member_at_a_path_is_gone_and_an_element_keeps_its_place(path: str, left: Any) -> None:
    value = {"generationConfig": {"topK": 1, "seed": 5}, "contents": [{"a": 1}, {"a": 2, "b": 3}]}
    assert without(value, path) == left


@pytest.mark.parametrize("path", ["nothing", "contents.a", "contents[7].a", "contents[0].a.b", "seed", "a[0]"])
def test_a_path_to_nothing_takes_nothing(path: str) -> None:
    value = {"contents": [{"a": 1}], "b": {"seed": 1}}
    assert without(value, path) == value


def test_all_of_it_together() -> None:
    value = {"seed": 4, "contents": [{"parts": [{"text": "On 2026-11-23, run 7 of 0123456789abcdef0123456789abcdef"}]}]}
    said = "On <date>, <ignored> of <id>"
    assert without(value, "uuid", "seed", "date", r"run \d+") == {"contents": [{"parts": [{"text": said}]}]}


@pytest.mark.parametrize(
    ("item", "path"),
    [
        ("seed", True),
        ("generationConfig.seed", True),
        ("contents[0].parts[*].text", True),
        ("run-id", True),
        ("date", False),
        (r"run \d+", False),
        ("a|b", False),
        ("(?:seed)", False),
        ("contents[x]", False),
        ("a..b", False),
        (".a", False),
        ("[0]", False),
    ],
)
def test_what_reads_as_a_path_is_one(item: str, path: bool) -> None:
    assert is_path(item) is path
    assert ignore(item).items == (item,)


# What a list may hold


def test_everything_wrong_with_a_list_is_said() -> None:
    found, problems = read_ignore(["date", "", 3, "(a", r"\d*", None, "uuid", "date"])
    assert found == Ignore(("date", "uuid"))
    assert problems == (
        "ignore: an empty text ignores nothing: take it out",
        "ignore: 3 is int, not text",
        "ignore: '(a' is neither date, uuid, a body path nor a regex: missing ), unterminated subpattern at position 0",
        "ignore: '\\\\d*' is neither date, uuid, a body path nor a regex: it matches no text at all, and so everywhere",
        "ignore: None is NoneType, not text",
    )


@pytest.mark.parametrize(
    ("value", "meant"), [("dates", "date"), ("Date", "date"), ("datetime", "date"), ("uuids", "uuid"), ("GUID", "uuid")]
)
def test_other_words_for_a_kind_are_no_paths(value: str, meant: str) -> None:
    assert read_ignore([value]) == (NOTHING_IGNORED, (f"ignore: unknown kind {value!r}; did you mean {meant!r}?",))


@pytest.mark.parametrize("value", ["date", {"date"}, None, 3])
def test_what_is_no_list(value: object) -> None:
    assert read_ignore(value) == (NOTHING_IGNORED, (f'ignore={value!r} is not a list: write ignore=["date"]',))


def test_nothing_is_ignored_unless_it_is_named() -> None:
    body = b'{"contents":"2026-11-23"}'
    assert NOTHING_IGNORED.body(body) is body
    assert not NOTHING_IGNORED
    assert ignore("date").also("uuid", "date") == Ignore(("date", "uuid"))


# Whatever the body


def test_a_body_that_is_no_json_is_one_text() -> None:
    assert ignore("date", "a.b").body(b"\xff on 2026-11-23 \x00") == b"\xff on <date> \x00"
    assert ignore("date").body(b"[" * 100_000) == b"[" * 100_000
    assert ignore("date").body(b"") == b""


ITEMS = ["date", "uuid", r"\d+", "a", "a.b", "a[0]", "a[*].b"]
LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["2026-11-23", "x 1 May 2026 y"])
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from("abc"), inner), max_leaves=9
)


@given(JSON | st.binary(), st.lists(st.sampled_from(ITEMS)))
def test_whatever_is_ignored_once_stays_ignored(value: Any, items: list[str]) -> None:
    body = value if isinstance(value, bytes) else canonical_body(json.dumps(value))
    cleaned = ignore(*items).body(body)
    assert ignore(*items).body(cleaned) == cleaned
    assert canonical_body(cleaned) == cleaned or isinstance(value, bytes)
