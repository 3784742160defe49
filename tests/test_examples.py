"""Each example's failing variant, its message pinned in full beside it; the passing ones are collected as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import shown

EXAMPLES = sorted(path.name for path in Path(shown.ROOT, "examples").iterdir() if (path / "graph.py").is_file())


@pytest.mark.parametrize("example", EXAMPLES)
def test_failing_variant(example: str) -> None:
    """`python -m tests.shown` writes failing.txt; read the difference before you commit it."""
    pinned = shown.ROOT / "examples" / example / "failing.txt"
    message = shown.failing()[pinned]
    assert message
    assert pinned.read_text(encoding="utf-8") == message


@pytest.mark.parametrize("example", EXAMPLES)
def test_cassette_says_that_it_is_scripted(example: str) -> None:
    (cassette,) = Path(shown.ROOT, "examples", example).glob("*.yaml")
    assert "\n  origin: scripted server on loopback\n" in cassette.read_text(encoding="utf-8")
