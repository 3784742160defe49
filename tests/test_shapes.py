"""The trace model holds for everything LangGraph does: each shape of tests/shapes_*.py in each way to run it."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from pytest_agenttrace.capture import judge
from pytest_agenttrace.settings import Tolerance
from tests import shapes_beside, shapes_ends, shapes_flow, shapes_interrupts, shapes_more, shapes_spans
from tests.shapes import ENTRIES, SHAPES, Studio

assert all((shapes_flow, shapes_ends, shapes_interrupts, shapes_beside, shapes_more, shapes_spans))  # they fill SHAPES

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


def test_mlflow_loses_runs_that_follow_another_one_in_a_task(studio: Studio) -> None:
    """MLflow 3.9 to 3.17: an inline tracer leaves the last node's span current; what comes next is written below it,
    into a trace that has ended. Where this no longer fails, the kit needs no tasks of its own (`apart`)."""
    shape = dataclasses.replace(SHAPES["interrupt_and_resume"], findings=["uncounted"])
    with studio.traced(shape, "ainvoke", True, apart=False) as trace:
        assert (trace.trajectory, trace.tokens) == (["plan", "ask"], 17 * 11)
        verdict = judge(trace, trace._cassette, trace._store, tolerance=Tolerance())
    why = (
        "  MLflow saw nothing of this run of the node. Of runs that follow each other in one async task it loses some\n"
        "  with run_tracer_inline=True: leave that out, or await asyncio.create_task(...) for each run. [uncounted]"
    )
    assert verdict.failures == (
        "ask, call 3: 22 tokens on the wire, no span in the trace\n"
        f"  the same for call 4\n  gemini-2.5-flash:generateContent\n{why}",
        f"end, call 5: 88 tokens on the wire, no span in the trace\n  gemini-2.5-flash:generateContent\n{why}",
    )


@pytest.mark.xdist_group("200 repetitions")
def test_200_repetitions_read_the_same(studio: Studio) -> None:
    """The hardest for an order: branches that fan out in branches, async, each time as the machine is busy."""
    shape = SHAPES["fan_out_called_inside_of_a_fan_out"]
    read = [studio.run(shape, "ainvoke", None if n % 2 else True) for n in range(200)]
    assert [n for n, facts in enumerate(read) if facts != shape.facts("ainvoke", None)] == []


MODEL = "gemini-2.5-flash      11 tok  $0.0000055   10 in, 1 out"


@pytest.mark.parametrize("entry", ["invoke", "ainvoke"])
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        # What google-genai tries again by itself leaves no span; what LangChain does leaves one for each attempt.
        ("google_genais_own_retries", [f"   └─ {MODEL}, after 503, 429"]),
        ("with_retry", ["!    ├─ ChatGoogleGenerativeAI", "!    ├─ ChatGoogleGenerativeAI", f"     └─ {MODEL}"]),
    ],
)
def test_calls_that_failed_are_told_once(studio: Studio, entry: str, name: str, rows: list[str]) -> None:
    with studio.traced(SHAPES[name], entry) as trace:
        assert [call.status for call in trace.calls] == [503, 429 if len(rows) == 1 else 503, 200]
        # The column of durations is as wide as this machine was slow.
        assert [re.sub(r" {6,}(?=11 tok)", "      ", line) for line in str(trace).splitlines()[2:]] == rows
