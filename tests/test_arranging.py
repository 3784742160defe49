"""In which order the exchanges of one test stand in its file."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from pytest_agenttrace.calls import Caller
from pytest_agenttrace.replay.arranging import Kept, in_order
from pytest_agenttrace.replay.cassette import Interaction

URI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"


def asked(name: str, number: int, caller: Caller, started: float, ended: float) -> Kept:
    return Kept(number, Interaction("POST", URI, name.encode(), 200, b"{}"), caller, started, ended)


def branch(name: str, step: int, index: int | str) -> Caller:
    path = ("__pregel_push", index, False) if isinstance(index, int) else ("__pregel_pull", index)
    return Caller(name, step, f"{name}:{step}-{index}", path)


def names(kept: list[Kept]) -> list[str]:
    return [interaction.body.decode() for interaction in in_order(kept)]


SLOW = [(0.0, 1.0), (0.1, 1.1), (0.2, 1.2)]
FAST = [(0.0, 0.1), (0.2, 0.3), (0.4, 0.5)]


@pytest.mark.parametrize("times", [SLOW, FAST], ids=["at once", "one after the other"])
@pytest.mark.parametrize("first_to_last", list(permutations(range(3))))
def test_branches_of_one_step_stand_by_their_path(
    times: list[tuple[float, float]], first_to_last: tuple[int, ...]
) -> None:
    """Whoever asked first, and whether or not one was answered before the next one asked."""
    kept = [asked("plan", 1, branch("plan", 1, "plan"), -2, -1)]
    for number, (index, (started, ended)) in enumerate(zip(first_to_last, times, strict=True), 2):
        kept.append(asked(f"section {index}", number, branch("section", 2, index), started, ended))
    kept.append(asked("join", 5, branch("join", 3, "join"), 3, 4))
    assert names(kept) == ["plan", "section 0", "section 1", "section 2", "join"]


def test_steps_stand_as_they_were_asked() -> None:
    """A loop, whose later node comes first by name."""
    turns = [("writer", 1), ("critic", 2), ("writer", 3), ("critic", 4)]
    kept = [asked(f"{name} {step}", step, branch(name, step, name), step, step + 0.5) for name, step in turns]
    assert names(kept) == ["writer 1", "critic 2", "writer 3", "critic 4"]


def test_a_graph_that_runs_again_stands_after_its_first_run() -> None:
    kept = []
    for number, name in enumerate(["b", "a", "b", "a"]):
        caller = Caller(name, 1, f"{name}:run {number // 2}", ("__pregel_pull", name))
        kept.append(asked(f"{name} of run {number // 2}", number, caller, number, number + 0.5))
    assert names(kept) == ["a of run 0", "b of run 0", "a of run 1", "b of run 1"]


def test_subgraphs_side_by_side_stand_by_what_they_ask() -> None:
    """LangGraph's path is the inner graph's there, and the same in each."""
    both = [("first", "sub:1|ask:1"), ("second", "sub:2|ask:2"), ("third", "sub:3|ask:3")]
    orders = set()
    for some in permutations(both):
        kept = [
            asked(name, number, Caller("ask", 1, namespace, ("__pregel_pull", "ask")), number / 10, 1 + number / 10)
            for number, (name, namespace) in enumerate(some)
        ]
        orders.add(tuple(names(kept)))
    assert len(orders) == 1


@pytest.mark.parametrize("times", [SLOW, FAST], ids=["at once", "one after the other"])
def test_subgraphs_side_by_side_stand_by_the_path_of_their_nodes_where_that_is_known(
    times: list[tuple[float, float]],
) -> None:
    """Whatever they ask: one changed word moves nothing."""
    places: dict[str, tuple[int | None, tuple[Any, ...]]] = {
        f"sub:{index}": (2, ("__pregel_push", index, False)) for index in range(3)
    }
    for some in permutations(range(3)):
        for word in ("short", "long"):
            kept = [
                asked(
                    f"{index} {word}",
                    number,
                    Caller("ask", 1, f"sub:{index}|ask:{number}", ("__pregel_pull", "ask")),
                    *at,
                )
                for number, (index, at) in enumerate(zip(some, times, strict=True))
            ]
            found = [interaction.body.decode() for interaction in in_order(kept, places)]
            assert found == [f"{index} {word}" for index in range(3)]


def test_subgraphs_one_after_the_other_stand_as_they_were_asked() -> None:
    both = [("z", "z:1|ask:1"), ("a", "a:2|ask:2")]
    kept = [
        asked(name, number, Caller("ask", 1, namespace, ("__pregel_pull", "ask")), number, number + 0.5)
        for number, (name, namespace) in enumerate(both)
    ]
    assert names(kept) == ["z", "a"]


def test_calls_outside_of_graphs_stand_as_they_were_asked() -> None:
    assert names([asked(str(number), number, Caller(), 0, 9) for number in (3, 1, 2)]) == ["1", "2", "3"]
