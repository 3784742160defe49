"""YAML with places: where each value stands, and what is no plain YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace.workflow.positions import ConfigError, Leaf, Problems, Tree, compose, part, plain


def tree_of(text: str | bytes) -> Tree:
    problems = Problems(Path("w.yaml"))
    tree = compose(text if isinstance(text, bytes) else text.encode(), problems)
    problems.raise_any()
    return tree


def leaf_of(text: str, *keys: str | int) -> Leaf:
    found = part(tree_of(text), *keys)
    assert isinstance(found, Leaf)
    return found


def refused(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        tree_of(text)
    return str(caught.value)


def test_values_are_those_of_yaml() -> None:
    text = "a: 1\nb: [x, 2.5, true, null, 1e3, 0x10, 2026-11-25]\nc: {d: 'yes', e: yes, 3: z}\n"
    expected: dict[str, Any] = {
        "a": 1,
        "b": ["x", 2.5, True, None, "1e3", 16, "2026-11-25"],
        "c": {"d": "yes", "e": True, 3: "z"},
    }
    assert plain(tree_of(text)) == expected


def test_each_value_has_its_place_and_path() -> None:
    found = leaf_of("a:\n  - x\n  - {b: c}\n", "a", 1, "b")
    assert (found.place.line, found.place.column, found.path) == (3, 9, ("a", 1, "b"))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("p: |\n  one\n  two {x}\n", (3, 7)),
        ("p: |-\n\n    one\n     {x}\n", (4, 6)),
        ("p: |  # a comment 1\n  {x}\n", (2, 3)),
        ("p: '{x}'\n", (1, 5)),
        ('p: "two {x}"\n', (1, 9)),
        ("p: two {x}\n", (1, 8)),
        # Folded, escaped and explicitly indented texts: the text's own place.
        ("p: >\n  one\n  {x}\n", (1, 4)),
        ('p: "\\t{x}"\n', (1, 4)),
        ("p: |2\n   {x}\n", (1, 4)),
    ],
)
def test_a_character_of_a_text_has_its_place(text: str, place: tuple[int, int]) -> None:
    found = leaf_of(text, "p")
    at = found.at(str(found.value).index("{"))
    assert (at.line, at.column) == place


def test_anchors_and_merges_are_those_of_yaml() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {z: 4}]}\nd: *a\n"
    expected = {"x": 1, "y": 2}
    assert plain(tree_of(text)) == {"a": expected, "b": {"y": 3, "x": 1}, "c": {"x": 1, "y": 2, "z": 4}, "d": expected}


def test_texts_are_read_with_a_mark_and_in_utf_16() -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        assert plain(tree_of("a: ü\r\nb: 2\r\n".encode(encoding))) == {"a": "ü", "b": 2}


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "w.yaml: the file is empty"),
        ("# nothing\n", "w.yaml: the file is empty"),
        ("a: 1\n\tb: 2\n", "w.yaml:2:1: a tab: YAML is indented by blanks"),
        ("a: b: c\n", "w.yaml:1:5: no YAML: mapping values are not allowed here"),
        (
            "a: [1, 2\n",
            "w.yaml:2:1: no YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)",
        ),
        (
            "a: {type: list[str], default: []}\n",
            'w.yaml:1:15: within braces a type with brackets is written in quotes; did you mean "list[str]"?',
        ),
        ("a: 'x\n", "w.yaml:2:1: no YAML: found unexpected end of stream (while scanning a quoted scalar)"),
        ("a: *b\n", "w.yaml:1:4: no YAML: found undefined alias 'b'"),
        ("a: 1\n---\nb: 2\n", "w.yaml:2:1: a second document begins: a file has one workflow"),
        ("a: x\x00y\n", "w.yaml:1:5: no YAML: the character U+0000 is not allowed"),
        ("a: 1\nb: \x1b[31m\n", "w.yaml:2:4: no YAML: the character U+001B is not allowed"),
        (b"a: 1\nb: \xff\n", "w.yaml:2:4: no UTF-8: byte 0xff"),
        ("a: 1\nb: 2\na: 3\n", "w.yaml:3:1: a: 'a' stands here twice: line 1 has it already"),
        ("a: &a [*a]\n", "w.yaml:1:4: nested too deeply"),
        ("[" * 60 + "]" * 60, "w.yaml:1:42: nested too deeply"),
        ("[" * 5000, "w.yaml: nested too deeply"),
        (LAUGHS, "w.yaml:1:32: more than 20,000 values: aliases are counted as often as they are named"),
        ("a: " + "x" * 300_000, "w.yaml: more than 256 KiB: no workflow is as large"),
        (
            'a: !!python/object/apply:os.system ["true"]\n',
            "w.yaml:1:4: a: the tag !!python/object/apply:os.system is refused: a workflow is plain data",
        ),
        ("a: !!python/name:os ''\n", "w.yaml:1:4: a: the tag !!python/name:os is refused: a workflow is plain data"),
        ("a: !mine {b: 1}\n", "w.yaml:1:4: a: the tag !mine is refused: a workflow is plain data"),
        ("a: !!set {b}\n", "w.yaml:1:4: a: the tag !!set is refused: a workflow is plain data"),
        ("a: !!binary aGk=\n", "w.yaml:1:4: a: the tag !!binary is refused: a workflow is plain data"),
        ("a: !!int x\n", "w.yaml:1:4: a: 'x' cannot be read as int"),
        ("a: " + "9" * 5000, "w.yaml:1:4: a: '" + "9" * 36 + "... cannot be read as int"),
        ("? [a]\n: 1\n", "w.yaml:1:3: a key is a text or a number, not a list or a mapping"),
        ("a: {<<: 3}\n", "w.yaml:1:9: a.<<: << merges mappings only"),
    ],
)
def test_what_is_no_plain_yaml_is_one_message(text: str | bytes, message: str) -> None:
    assert refused(text) == message


def test_every_problem_of_a_file_is_told_in_the_order_of_its_lines() -> None:
    assert refused("b: !x 1\na: !y 2\nb: 3\n").splitlines() == [
        "w.yaml:1:4: b: the tag !x is refused: a workflow is plain data",
        "w.yaml:2:4: a: the tag !y is refused: a workflow is plain data",
        "w.yaml:3:1: b: 'b' stands here twice: line 1 has it already",
    ]


def test_a_message_is_one_line_whatever_a_key_holds() -> None:
    assert refused('"a\\nb\\e[31m": !x 1\n') == (
        "w.yaml:1:15: a\\x0ab\\x1b[31m: the tag !x is refused: a workflow is plain data"
    )
