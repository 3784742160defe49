"""What runs at the same time: joins that wait, and what nodes side by side may not do, told when the file is read."""
# ruff: noqa: E501  # a row is a case, with its message whole

from __future__ import annotations

import time
from typing import Any

import pytest

from pytest_agenttrace.workflow import ConfigError, parse_config
from pytest_agenttrace.workflow.joins import joins_of
from tests.running import edge, node, route, written

FIELDS = {
    **dict.fromkeys("abcdefghj", "str"),
    **{f"{name}{at}": "str" for name in "ab" for at in (2, 3, 4)},
    "x": "int",
    "items": "list[str]",
    "found": "list[str]",
    "one": "str",
    "done": "bool",
    "replaced": {"type": "list[str]", "reducer": "replace"},
}


def config(edges: list[dict[str, Any]], **outputs: str) -> Any:
    """A workflow of these edges; each node writes a field of its own, or what is said here."""
    names = {name for found in edges for name in [found["from"], *found.get("to", [])]}
    for found in edges:
        names |= {each["to"] for each in found.get("routes", [])}
        names |= {found[key][name] for key, name in (("loop", "exit_to"), ("parallel", "target_node")) if key in found}
    nodes = [node(name, name, outputs.get(name, f"{name}: str")) for name in sorted(names - {"START", "END"})]
    return parse_config(written(FIELDS, nodes, edges), "f.yaml")


def told(edges: list[dict[str, Any]], **outputs: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(edges, **outputs)
    return [line.partition(": ")[2] for line in str(caught.value).splitlines()]


LOOP = {"condition_field": "done", "exit_to": "c"}


@pytest.mark.parametrize(
    ("edges", "waits"),
    [
        ([edge("START", "a"), edge("a", "b"), edge("b", "END")], "+"),
        # Branches of one length arrive together.
        ([edge("START", "a", "b"), edge("a", "c"), edge("b", "c"), edge("c", "END")], "+"),
        ([edge("START", "a", "b"), edge("a", "a2"), edge("b", "b2"), edge("a2", "c"), edge("b2", "c"), edge("c", "END")], "+"),
        ([edge("START", "a", "b"), edge("a", "END"), edge("b", "END")], "+"),
        # One is longer, may end before, or repeats.
        ([edge("START", "a", "b"), edge("a", "a2"), edge("a2", "c"), edge("b", "c"), edge("c", "END")], "c+"),
        ([edge("START", "a", "c"), edge("a", "c"), edge("c", "END")], "c+"),
        ([edge("START", "a", "b"), edge("a", routes=[route("x > 1", "c"), route("default", "END")]), edge("b", "c"), edge("c", "END")], "+"),
        ([edge("START", "a", "b"), edge("a", routes=[route("x > 1", "c"), route("default", "a2")]), edge("a2", "c"), edge("b", "c"), edge("c", "END")], "+c"),
        ([edge("START", "a", "b"), edge("a", loop=LOOP), edge("b", "c"), edge("c", "END")], "+c"),
        # A way back to the fork is no branch on its way to a node of it.
        ([edge("START", "d"), edge("d", "a", "b"), edge("a", "a2"), edge("b", "b2"), edge("a2", "c"), edge("b2", "c"), edge("c", routes=[route("x > 1", "d"), route("default", "END")])], "+"),
        ([edge("START", "d"), edge("d", "a", "b"), edge("a", "a2"), edge("a2", "c"), edge("b", "c"), edge("c", routes=[route("x > 1", "d"), route("default", "END")])], "c+"),
        # Alternatives are no branches side by side.
        ([edge("START", routes=[route("x > 1", "a"), route("default", "b")]), edge("a", "a2"), edge("a2", "c"), edge("b", "c"), edge("c", "END")], "+"),
        # A fork within a fork: the inner one joins by itself where its branches are equally long.
        ([edge("START", "a", "b"), edge("a", "d", "e"), edge("d", "f"), edge("e", "f"), edge("f", "c"), edge("b", "c"), edge("c", "END")], "c+"),
        # Ways that pass over a node, within each other.
        ([edge("START", "a"), edge("a", "b", "c", "d"), edge("b", "c"), edge("c", "d"), edge("d", "END")], "cd+"),
        # All before it may not come: of d or e one does.
        ([edge("START", "a", "b"), edge("a", routes=[route("x > 1", "d"), route("default", "e")]), edge("d", "f"), edge("e", "c"), edge("f", "c"), edge("b", "c"), edge("c", "END")], "+c"),
        # A fork within a fork, of ways that decide.
        ([edge("START", "a", "b"), edge("a", "d", "e"), edge("d", routes=[route("x > 1", "f"), route("default", "g")]), edge("g", "f"), edge("e", "f"), edge("f", "c"), edge("b", "c"), edge("c", "END")], "c+f"),
        # What lies behind a map may be reached without its node.
        ([edge("START", "a", "b"), edge("a", parallel={"items_field": "items", "target_node": "d", "collect_field": "found"}), edge("d", "c"), edge("b", "c"), edge("c", "END")], "+c"),
        # Two that wait, one after the other.
        ([edge("START", "a", "b"), edge("a", "a2"), edge("a2", "c"), edge("b", "c"), edge("c", "d", "e"), edge("d", "f"), edge("f", "g"), edge("e", "g"), edge("g", "END")], "cg+"),
    ],
)  # fmt: skip
def test_a_join_waits_where_one_branch_is_there_first(edges: list[dict[str, Any]], waits: str) -> None:
    joins = joins_of(config(edges))
    assert "".join(sorted(joins.gathers)) + "+" + "".join(sorted(joins.waits)) == waits


FORK = [edge("START", "a", "b"), edge("a", "END"), edge("b", "END")]
MAP = {"items_field": "items", "target_node": "a", "collect_field": "found"}


@pytest.mark.parametrize(
    ("edges", "outputs", "messages"),
    [
        (FORK, {"a": "one: str", "b": "one: str"}, ["nodes.b.outputs[0]: a writes one in the same step: of nodes side by side one writes a field, or both append to a list"]),
        (FORK, {"a": "replaced: list[str]", "b": "replaced: list[str]"}, ["nodes.b.outputs[0]: a writes replaced in the same step: of nodes side by side one writes a field that is replaced"]),
        # Where branches meet only by their length.
        ([edge("START", "a", "b"), edge("a", "a2"), edge("b", "END"), edge("a2", routes=[route("x > 1", "c"), route("default", "END")]), edge("c", "END")], {}, []),
        ([edge("START", "a", "b"), edge("a", "a2"), edge("b", "b2"), edge("a2", "END"), edge("b2", "END")], {"a2": "one: str", "b2": "one: str"}, ["nodes.b2.outputs[0]: a2 writes one in the same step: of nodes side by side one writes a field, or both append to a list"]),
        ([edge("START", "a", "b"), edge("a", "a2"), edge("b", "END"), edge("a2", "END")], {"a2": "one: str", "b": "one: str"}, []),
        (FORK, {"a": "found: list[str]", "b": "found: list[str]"}, []),
        ([edge("START", "a", "b"), edge("a", routes=[route("x > 1", "c"), route("default", "d")]), edge("c", "END"), edge("d", "END"), edge("b", "END")], {"c": "one: str", "d": "one: str"}, []),
        # Maps
        ([edge("START", parallel=MAP), edge("a", loop={**LOOP, "exit_to": "END"})], {}, ["edges[1].loop: a map runs a once for each item: put a node behind it, and the loop behind that one"]),
        ([edge("START", parallel=MAP), edge("a", parallel={**MAP, "target_node": "b"}), edge("b", "END")], {}, ["edges[1].parallel: a map runs a once for each item: put a node behind it, and the parallel behind that one"]),
        ([edge("START", parallel=MAP), edge("a", routes=[route("found != []", "b"), route("default", "END")]), edge("b", "END")], {}, ["edges[1].routes[0].condition.logic: a map runs a once for each item, and found is whole only after it: decide in a node behind it"]),
        ([edge("START", parallel=MAP), edge("a", routes=[route("x > 1", "b"), route("default", "END")]), edge("b", "END")], {}, []),
        # Forks within forks
        ([edge("START", "a", "b"), edge("a", "d", "e"), edge("d", routes=[route("x > 1", "f"), route("default", "g")]), edge("g", "f"), edge("e", "f"), edge("f", "c"), edge("b", routes=[route("x > 1", "c"), route("default", "END")]), edge("c", "END")], {}, ["nodes.c: f and c both join branches, one within the other's, and neither can know who is still to come: lead the branches to f by `to` alone, not by routes, a loop or a map"]),
    ],
)  # fmt: skip
def test_what_nodes_side_by_side_may_not_do(
    edges: list[dict[str, Any]], outputs: dict[str, str], messages: list[str]
) -> None:
    if messages:
        assert told(edges, **outputs) == messages
    else:
        config(edges, **outputs)


@pytest.mark.parametrize(
    ("second", "messages"),
    [
        ({"items_field": "items", "target_node": "c", "collect_field": "found"}, []),
        ({"items_field": "items", "target_node": "c", "collect_field": "replaced"}, ["edges[2].parallel.collect_field: the map of a writes replaced in the same step, a list that is replaced"]),
    ],
)  # fmt: skip
def test_maps_of_one_node_side_by_side_replace_no_list_twice(second: dict[str, str], messages: list[str]) -> None:
    first = {"items_field": "items", "target_node": "c", "collect_field": "replaced"}
    begun = [edge("a", parallel=first), edge("b", parallel=second), edge("c", "END")]
    apart = [edge("START", routes=[route("x > 1", "a"), route("default", "b")]), *begun]
    config(apart)
    beside = [edge("START", "a", "b"), *begun]
    if messages:
        assert told(beside) == messages
    else:
        config(beside)


def test_each_map_of_a_node_is_checked() -> None:
    fields = {
        **FIELDS,
        "people": {"type": "list[object]", "schema": {"name": "str"}},
        "others": {"type": "list"},
    }
    nodes = [node("a", "a", "a: str"), node("b", "b", "b: str")]
    edges = [
        edge("START", "a", "b"),
        edge("a", parallel={"items_field": "items", "target_node": "c", "collect_field": "found"}),
        edge("b", parallel={"items_field": "people", "target_node": "c", "collect_field": "others"}),
        edge("c", "END"),
    ]
    each = node("c", "{_parallel_item.name}", "c: str")
    with pytest.raises(ConfigError) as caught:
        parse_config(written(fields, [*nodes, each], edges), "f.yaml")
    assert str(caught.value).partition(": ")[2] == (
        "nodes.c.prompt: {_parallel_item.name}: _parallel_item is str, which has no members"
    )
    each = node("c", "{_parallel_item}", "found: str", "c: str")
    with pytest.raises(ConfigError) as caught:
        parse_config(written(fields, [*nodes, each], edges), "f.yaml")
    assert str(caught.value).partition(": ")[2] == (
        "nodes.c.outputs: c: a map collects found only; without it in outputs it collects all"
    )


def test_a_map_collects_one_field() -> None:
    nodes = [node("a", "a", "found: str", "one: str", "x: int")]
    with pytest.raises(ConfigError) as caught:
        parse_config(written(FIELDS, nodes, [edge("START", parallel=MAP), edge("a", "END")]), "f.yaml")

    assert str(caught.value).partition(": ")[2] == (
        "nodes.a.outputs: one, x: a map collects found only; without it in outputs it collects all"
    )


def test_a_workflow_with_more_ways_than_anybody_reads_is_judged_in_time() -> None:
    """Twelve branches of which each goes one of three ways: 531,441 sets of nodes."""
    fields = {"x": "int", "found": "list[str]"}
    names = [f"n{at}" for at in range(12)]
    edges = [edge("START", *names)]
    nodes = []
    for name in names:
        nodes += [node(each, each, "found: list[str]") for each in (name, f"{name}a", f"{name}b")]
        edges.append(
            edge(name, routes=[route("x > 1", f"{name}a"), route("x > 2", f"{name}b"), route("default", "END")])
        )
        edges += [edge(f"{name}a", "END"), edge(f"{name}b", "END")]
    begun = time.monotonic()
    found = parse_config(written(fields, nodes, edges), "f.yaml")
    assert len(found.nodes) == 36
    assert time.monotonic() - begun < 10
