"""Drawn trees, pinned line by line; columns line up whatever the labels hold."""

from __future__ import annotations

from typing import Any
from unicodedata import combining, east_asian_width

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.handmade  # noqa: F401 - loads the profile of the property tests
from pytest_agenttrace.tree import Branch, draw


def columns(text: str) -> int:
    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in text)


ARTICLE = Branch(
    "article_writer",
    ("2.1 s", "4,601 tok", "$0.00296"),
    mark=">",
    children=(
        Branch(
            "research",
            ("1.2 s", "3,534 tok", "$0.00201"),
            mark=">",
            children=(
                Branch("gemini-2.5-flash", ("", "1,321 tok", "$0.00066"), note="150 in, 1,171 out"),
                Branch("web_search", tag="[tool]"),
                Branch("gemini-2.5-flash", ("", "2,213 tok", "$0.00135")),
            ),
        ),
        Branch("write", ("0.9 s", "1,067 tok", "$0.00095"), mark="!"),
    ),
)


def test_a_tree_with_columns_notes_tags_and_marks() -> None:
    assert draw([ARTICLE]).splitlines() == [
        "> article_writer          2.1 s  4,601 tok  $0.00296",
        "> ├─ research             1.2 s  3,534 tok  $0.00201",
        "  │  ├─ gemini-2.5-flash         1,321 tok  $0.00066   150 in, 1,171 out",
        "  │  ├─ web_search  [tool]",
        "  │  └─ gemini-2.5-flash         2,213 tok  $0.00135",
        "! └─ write                0.9 s  1,067 tok  $0.00095",
    ]


def test_the_same_tree_in_ascii() -> None:
    drawn = draw([ARTICLE], ascii_only=True)
    assert drawn.isascii()
    assert drawn.splitlines()[2:4] == [
        "  |  |- gemini-2.5-flash         1,321 tok  $0.00066   150 in, 1,171 out",
        "  |  |- web_search  [tool]",
    ]
    assert drawn.splitlines()[5] == "! `- write                0.9 s  1,067 tok  $0.00095"


def test_without_marks_there_is_no_margin_and_several_roots_stand_below_each_other() -> None:
    assert draw([Branch("one", children=(Branch("two"),)), Branch("three")]) == "one\n└─ two\nthree"


def test_nothing_is_drawn_as_nothing() -> None:
    assert draw([]) == ""


def test_a_column_nobody_fills_takes_no_room() -> None:
    assert draw([Branch("a", ("", "1 tok")), Branch("b", ("", "20 tok"))]) == "a   1 tok\nb  20 tok"


def test_money_stands_with_its_decimal_points_below_each_other() -> None:
    assert draw([Branch("a", ("$0.003", "1 tok")), Branch("b", ("$0.00296", "20 tok")), Branch("c", ("-",))]) == (
        "a  $0.003     1 tok\nb  $0.00296  20 tok\nc         -"
    )


def test_the_same_branch_twice_is_drawn_twice_with_its_own_connectors() -> None:
    twin = Branch("gemini")
    assert draw([Branch("a", children=(twin, twin))]) == "a\n├─ gemini\n└─ gemini"


def test_wide_and_combining_characters_keep_the_columns() -> None:
    drawn = draw([Branch("研究", ("1 tok",)), Branch("re\u0301sume\u0301", ("22 tok",)), Branch("plain", ("3 tok",))])
    assert drawn.splitlines() == ["研究     1 tok", "re\u0301sume\u0301  22 tok", "plain    3 tok"]


@pytest.mark.parametrize(
    ("label", "drawn"),
    [("a\nb", "a b"), ("a\r\n\tb", "a   b"), ("\x1b[31mred", "?[31mred"), ("lone \ud800", "lone ?"), ("a\x00b", "a?b")],
)
def test_a_label_stays_on_its_line_and_can_be_printed(label: str, drawn: str) -> None:
    assert draw([Branch(label)]) == drawn
    assert draw([Branch("x", (label,))]) == f"x  {drawn}"
    assert draw([Branch("x", ("1",), note=label)]) == f"x  1   {drawn}"


TEXT = st.text(max_size=8)
TREES = st.recursive(
    st.builds(Branch, TEXT, st.lists(TEXT, max_size=3).map(tuple), TEXT),
    lambda inner: st.builds(
        Branch, TEXT, st.lists(TEXT, max_size=3).map(tuple), children=st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=12,
)


def count(branch: Branch) -> int:
    return 1 + sum(map(count, branch.children))


@given(st.lists(TREES, max_size=3), st.booleans())
def test_any_tree_has_one_printable_line_a_branch(branches: list[Branch], ascii_only: bool) -> None:
    lines = draw(branches, ascii_only=ascii_only).split("\n") if branches else []
    assert len(lines) == sum(map(count, branches))
    assert all(line.isprintable() and line == line.rstrip() for line in lines)


@given(st.lists(st.tuples(st.text(min_size=1, max_size=12), st.integers(0, 10**9)), min_size=1, max_size=8))
def test_the_last_column_ends_at_the_same_place_in_every_line(rows: list[tuple[str, Any]]) -> None:
    lines = draw(Branch(label, (f"{number:,} tok",)) for label, number in rows).split("\n")
    assert len({columns(line) for line in lines}) == 1
