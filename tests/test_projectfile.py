"""pyproject.toml: whether it is ours, where its keys stand, and which tests a pattern is for."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from pytest_agenttrace.projectfile import Key, ProjectError, ProjectFile, Quoted, matches, mentions_us, read_project

HOSTILE = '''\
[project]
name = "agenttrace"
notes = """
[tool.agenttrace.budgets]
tokens = 1
"""
[tool.other]
agenttrace = { tokens = 2 }
[tool."agenttrace".'budgets']  # tokens = 3
cost = "0.01"
  tokens  =  4
nodes."web research".tokens = 5
nodes.write = { tokens = 6, "llm_calls" = 7 }
tests = [
  # { match = "tests" }
  { match = "a", tokens = 8 },
  { match = "b", tokens = 9 }, { match = "c", tokens = 10 }
]
input_tokens = [

]
output_tokens = """
many"""
[[tool.agenttrace.more]]
a = 1
[[tool.agenttrace.more]]
a = 2
'''


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("budgets",), 9),
        (("budgets", "cost"), 10),
        (("budgets", "tokens"), 11),
        (("budgets", "nodes", "web research", "tokens"), 12),
        (("budgets", "nodes", "write"), 13),
        (("budgets", "nodes", "write", "llm_calls"), 13),
        (("budgets", "tests"), 14),
        (("budgets", "tests", 0, "tokens"), 16),
        (("budgets", "tests", 1), 17),
        (("budgets", "tests", 2, "match"), 17),
        (("budgets", "input_tokens"), 19),
        # It ends on another line than it begins.
        (("budgets", "output_tokens"), None),
        (("more", 0, "a"), 25),
        (("more", 1), 26),
        (("more", 1, "a"), 27),
        (("more", 2), None),
        (("budgets", "tokns"), None),
    ],
)
def test_a_line_is_right_or_not_told(tmp_path: Path, keys: tuple[Key, ...], line: int | None, newline: str) -> None:
    (tmp_path / "pyproject.toml").write_text(HOSTILE.replace("\n", newline), newline="")
    file = read_project(tmp_path)
    assert file is not None
    start, _, path = file.where(*keys).partition(": ")
    assert start == ("pyproject.toml" if line is None else f"pyproject.toml:{line}")
    assert path.startswith("tool.agenttrace.")


def test_keys_are_written_as_toml_has_them() -> None:
    file = ProjectFile("", {})
    assert file.where("budgets", "nodes", 'say "a"', "x-y", "") == (
        'pyproject.toml: tool.agenttrace.budgets.nodes."say \\"a\\"".x-y.""'
    )
    assert file.source("budgets", "tests", 0) == "pyproject.toml: tool.agenttrace.budgets.tests[0]"


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("[tool.agenttrace]", True),
        ('[tool."agenttrace".budgets]', True),
        ("[tool]\nagenttrace.budgets.tokens = 1", True),
        ('dependencies = ["pytest-agenttrace", "pytest_agenttrace>=1"]', False),
        ('addopts = "--agenttrace-record"\nagenttrace_max_age = 5', False),
        ("", False),
    ],
)
def test_a_file_that_does_not_mention_us_is_not_parsed(tmp_path: Path, text: str, ours: bool) -> None:
    assert mentions_us(text) is ours
    (tmp_path / "pyproject.toml").write_text(f"{text}\nno toml")
    if ours:
        with pytest.raises(ProjectError):
            read_project(tmp_path)
    else:
        assert read_project(tmp_path) is None


def test_no_file_no_table_and_what_is_no_table(tmp_path: Path) -> None:
    assert read_project(tmp_path) is None
    file = tmp_path / "pyproject.toml"
    file.write_text("# agenttrace\n[tool.other]\n")
    assert read_project(tmp_path) is None
    file.write_text("[tool]\nagenttrace = 3\n")
    with pytest.raises(ProjectError) as caught:
        read_project(tmp_path)
    assert str(caught.value) == "pyproject.toml:2: tool.agenttrace = 3 is not a table"
    file.write_text("[tool.agenttrace]\na = \n")
    with pytest.raises(ProjectError) as caught:
        read_project(tmp_path)
    assert str(caught.value).startswith("pyproject.toml: ")
    assert "line 2" in str(caught.value)
    file.write_bytes(b"\xff[tool.agenttrace]")
    with pytest.raises(ProjectError) as caught:
        read_project(tmp_path)
    assert str(caught.value).startswith("pyproject.toml: cannot be read: ")


@pytest.mark.parametrize(
    ("pattern", "nodeid", "fits"),
    [
        ("tests/nightly/*", "tests/nightly/test_a.py::test_x", True),
        ("tests/nightly/*", "tests/nightly/deep/test_a.py::test_x", True),
        ("tests/nightly", "tests/nightly/test_a.py::test_x", True),
        ("tests/nightly/", "tests/nightly/test_a.py::test_x", True),
        ("tests/night", "tests/nightly/test_a.py::test_x", False),
        ("nightly", "tests/nightly/test_a.py::test_x", False),
        ("tests/test_a.py", "tests/test_a.py::test_x", True),
        ("*/test_a.py", "tests/test_a.py::test_x", True),
        ("tests/test_a.py::TestX", "tests/test_a.py::TestX::test_x[1]", True),
        ("tests/test_a.py::TestX::test_x", "tests/test_a.py::TestX::test_x[1]", True),
        ("tests/test_a.py::test_x", "tests/test_a.py::test_xy", False),
        ("tests/test_a.py::test_x[a-b]", "tests/test_a.py::test_x[a-b]", True),
        ("tests/test_a.py::test_x[a-b]", "tests/test_a.py::test_x[a-c]", False),
        ("*::test_x", "tests/test_a.py::test_x[a::b/c]", True),
        ("*slow*", "tests/test_a.py::test_x[slow]", True),
        ("TESTS/*", "tests/test_a.py::test_x", False),
        ("*", "test_a.py::test_x", True),
    ],
)
def test_the_tests_of_a_pattern(pattern: str, nodeid: str, fits: bool) -> None:
    assert matches(pattern, nodeid) is fits


def test_a_number_that_nobody_can_hold_is_none_and_keeps_its_text(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.agenttrace.budgets]\ncost = 1e99999999999999999999\n")
    found = read_project(tmp_path)
    assert found is not None
    assert found.table["budgets"]["cost"].is_nan()
    assert Quoted(found.table["budgets"]["cost"]) == "1e99999999999999999999"


@pytest.mark.parametrize("written", ["0.1", "0.30000000000000004", "1e-400", "123456789.123456789123456789"])
def test_numbers_are_as_they_are_written(tmp_path: Path, written: str) -> None:
    (tmp_path / "pyproject.toml").write_text(f"[tool.agenttrace.budgets]\ncost = {written}\n")
    found = read_project(tmp_path)
    assert found is not None
    assert found.table["budgets"]["cost"] == Decimal(written)
