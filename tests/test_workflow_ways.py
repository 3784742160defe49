"""Edges, and the ways through a workflow from START to END."""
# ruff: noqa: E501  # a row is a case, with its message whole

from __future__ import annotations

import pytest

from tests.workflows import VALID, problems, valid

START = "{from: START, to: research}"
LAST = "{from: write, to: END}"
TO_WRITE = "        to: write\n"
DEFAULT = "      - condition: {logic: default}\n        to: END\n"


def mapped(items: str = "tags", target: str = "write", collect: str = "pages") -> str:
    return f"{{from: START, parallel: {{items_field: {items}, target_node: {target}, collect_field: {collect}}}}}"


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (START, "{from: START, to: reserch}", ["34:23: edges[0].to: there is no node 'reserch'; did you mean research?"]),
        (START, "{from: START, to: [research, nobody]}", ["34:34: edges[0].to[1]: there is no node 'nobody'; there are research, write, END"]),
        (START, "{from: START, to: [research, research]}", ["34:34: edges[0].to[1]: 'research' stands here twice"]),
        (START, "{from: start, to: research}", ["34:12: edges[0].from: there is no node 'start'; did you mean START?"]),
        (LAST, "{from: write, to: end}", ["41:23: edges[2].to: there is no node 'end'; did you mean END?"]),
        (LAST, "{from: write, to: START}", ["41:23: edges[2].to: nothing leads to START"]),
        (LAST, "{from: END, to: write}", ["41:12: edges[2].from: nothing leads on from END"]),
        (LAST, f"{LAST}\n  - {LAST}", ["42:5: edges[3]: write leads to END already, by edges[2]"]),
        (START, "{from: research, to: END}", ["34:3: edges: no edge leads on from START", "35:5: edges[1]: research has an edge already, edges[0]: routes stands alone"]),
        (LAST, "{from: write, to: write}", ["28:5: nodes.write: no way leads from write to END"]),
        (f"  - {LAST}\n", "", ["28:5: nodes.write: no way leads from write to END: add an edge {from: write, to: ...}"]),
        (TO_WRITE, "        to: END\n", ["28:5: nodes.write: no way leads to write from START"]),
        (TO_WRITE, "        to: wirte\n", ["38:13: edges[1].routes[0].to: there is no node 'wirte'; did you mean write?"]),
        (DEFAULT, "", ["37:7: edges[1].routes: no default route: add {condition: {logic: default}, to: ...} for when no condition holds"]),
        (DEFAULT, DEFAULT * 2, ["41:28: edges[1].routes[2].condition.logic: a second default: one route is taken where no condition holds"]),
        (LAST, "{from: write, loop: {condition_field: finished, exit_to: END}}", ["41:43: edges[2].loop.condition_field: the state has no field 'finished'; it has topic, depth, tags, done, article, author"]),
        (LAST, "{from: write, loop: {condition_field: depth}}", ["41:43: edges[2].loop.condition_field: depth is int: a loop ends by a bool field of the state"]),
        (LAST, "{from: write, loop: {condition_field: done, exit_to: write}}", ["28:5: nodes.write: no way leads from write to END", "41:58: edges[2].loop.exit_to: the loop leads back to write, and never ends"]),
        (LAST, "{from: write, loop: {condition_field: done, exit_to: nowhere}}", ["41:58: edges[2].loop.exit_to: there is no node 'nowhere'; there are research, write, END"]),
        (START, "{from: START, loop: {condition_field: done, exit_to: research}}", ["34:25: edges[0].loop: START cannot be repeated: a loop is of a node"]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_edge(old: str, new: str, messages: list[str]) -> None:
    assert problems((old, new)) == messages


PAGES = ("    done: {type", '    pages: {type: "list[str]"}\n    done: {type')


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        (mapped(items="depth"), "edges[0].parallel.items_field: depth is int: a parallel map works on a list, and collects a list"),
        (mapped(items="tgas"), "edges[0].parallel.items_field: the state has no field 'tgas'; did you mean tags?"),
        (mapped(collect="article"), "edges[0].parallel.collect_field: article is str: a parallel map works on a list, and collects a list"),
        (mapped(collect="numbers"), "edges[0].parallel.collect_field: numbers is list[int], and write returns str for an item"),
        (mapped(target="END"), "edges[0].parallel.target_node: a parallel map runs a node, not END"),
        (mapped(target="wirte"), "edges[0].parallel.target_node: there is no node 'wirte'; did you mean write?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_parallel_map(edge: str, message: str) -> None:
    fields = (PAGES[0], '    numbers: {type: "list[int]"}\n' + PAGES[1])
    found = problems(fields, (START, f"{edge}\n  - {{from: START, to: research}}"))
    assert [line.split(": ", 1)[1] for line in found if "stands alone" not in line] == [message]


def test_a_node_for_each_item_reads_it_and_is_collected() -> None:
    item = ("{depth} pages", "{depth} pages, {_parallel_index} {_parallel_item} {state._parallel_item}")
    edges = VALID[VALID.index("edges:\n") : VALID.index("config:\n")]
    lines = f"edges:\n  - {mapped()}\n  - {{from: write, to: research}}\n  - {{from: research, to: END}}\n"
    found = valid(PAGES, item, (edges, lines))
    assert found.edges[0].targets == ("write",)
    # The list itself may be the node's output: each item's value is appended.
    collected = ("    outputs: [article]\n", "    outputs: [pages]\n")
    assert valid(PAGES, item, (edges, lines), collected).node("write").outputs == ("pages",)
    wrong = (("output_schema: {type: str}"), "output_schema: {type: int}")
    assert problems(PAGES, item, (edges, lines), collected, wrong) == [
        "33:27: nodes.write.output_schema.type: int for an item of pages, which is list[str] in the state"
    ]
    assert problems(PAGES, ("{depth} pages", "{_parallel_item.name}"), (edges, lines)) == [
        "31:31: nodes.write.prompt: {_parallel_item.name}: _parallel_item is str, which has no members"
    ]


def test_a_loop_that_no_node_ends_is_said() -> None:
    fields = ("    done: {type", "    over: {type: bool}\n    done: {type")
    found = valid(fields, (LAST, "{from: write, loop: {condition_field: over}}"))
    assert [str(note) for note in found.notes] == [
        "w.yaml:42:43: edges[2].loop.condition_field: no node writes over: the loop ends by max_iterations only"
    ]


def test_a_circle_without_an_end_names_each_of_its_nodes() -> None:
    found = problems((DEFAULT, DEFAULT.replace("END", "write")), (LAST, "{from: write, to: research}"))
    assert found == [
        "18:5: nodes.research: no way leads from research to END",
        "28:5: nodes.write: no way leads from write to END",
    ]


def test_several_edges_of_a_node_are_a_fork() -> None:
    found = valid((START, f"{START}\n  - {{from: START, to: write}}"))
    assert [edge.to for edge in found.edges_from("START")] == [("research",), ("write",)]


def test_an_edge_that_cannot_be_read_makes_no_node_unreachable() -> None:
    assert problems((START, "{from: START, too: research}")) == [
        "34:5: edges[0]: it leads nowhere: one of to, routes, loop, parallel is missing",
        "34:19: edges[0].too: 'too' is no key of this mapping; did you mean to?",
    ]
