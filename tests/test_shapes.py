"""The trace model holds for everything LangGraph does: each shape of tests/shapes_*.py in each way to run it."""

from __future__ import annotations

from typing import Any

import pytest

from tests import shapes_beside, shapes_ends, shapes_flow
from tests.shapes import ENTRIES, SHAPES, Studio

assert shapes_flow
assert shapes_ends
assert shapes_beside

# Each shape plain and async, with MLflow's tracer inline and not; the telling ones in every other way too.
WAYS: list[tuple[str, bool | None]] = [("invoke", None), ("ainvoke", None), ("ainvoke", True)]
TELLING = ("tool_node", "nested_fan_out", "interrupt_and_resume", "an_exception")
MORE: list[tuple[str, bool | None]] = [("invoke", True), ("ainvoke", False)]


def cases() -> list[Any]:
    """By shape, so that each is recorded once by whoever runs it."""
    found = []
    for name, shape in SHAPES.items():
        ways = [way for way in WAYS if way[0] in shape.entries and (way[1], name) != (True, "send_64")]
        if name in TELLING:
            ways += [*MORE, *((entry, None) for entry in ENTRIES if entry not in ("invoke", "ainvoke"))]
        ways += [("sync nodes", None)] if "ainvoke" not in shape.entries else []
        for entry, inline in ways:
            marks = pytest.mark.xdist_group(f"shapes {name}")
            found.append(pytest.param(name, entry, inline, marks=marks, id=f"{name}-{entry}-{inline}"))
    return found


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("shapes"))


@pytest.mark.parametrize(("name", "entry", "inline"), cases())
def test_a_shape_reads_the_same_in_every_way(studio: Studio, name: str, entry: str, inline: bool | None) -> None:
    assert studio.run(SHAPES[name], entry, inline) == SHAPES[name].facts(entry, inline)
