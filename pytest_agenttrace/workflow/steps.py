"""What nodes that run side by side cannot do: write one field, or join in a way that LangGraph does not have."""

from __future__ import annotations

from itertools import combinations

from pytest_agenttrace.workflow.joins import Joins, Ways, joins_of
from pytest_agenttrace.workflow.models import Edge, Node, Parallel, WorkflowConfig
from pytest_agenttrace.workflow.positions import part
from pytest_agenttrace.workflow.references import Subject

__all__ = ["check_steps"]


def check_steps(subject: Subject) -> None:
    """Add what nodes side by side cannot do. The workflow is read as a whole, and its ways are right."""
    config = subject.config
    _check_maps(subject)
    if subject.problems.found:
        return
    ways, joins = Ways(config), joins_of(config)
    numbers = {node.id: at for at, node in enumerate(config.nodes)}
    pairs = {pair for step in ways.steps(joins) for pair in combinations(sorted(step.runs, key=numbers.__getitem__), 2)}
    for first, second in sorted(pairs):
        _check_pair(subject, ways, joins, config.node(first), config.node(second))


def _check_pair(subject: Subject, ways: Ways, joins: Joins, first: Node, second: Node) -> None:
    config = subject.config
    at = config.nodes.index(second)
    for name in sorted(_written(config, first) & _written(config, second)):
        number = second.outputs.index(name) if name in second.outputs else 0
        text = f"{first.id} writes {name} in the same step: of nodes side by side one writes a field"
        more = ", or both append to a list" if config.state.fields[name].type.name != "list" else " that is replaced"
        subject.problems.add(part(subject.tree, "nodes", at, "outputs", number), text + more)
    _check_lists(subject, first, second)
    if {first.id, second.id} <= joins.waits:
        one, other = (first, second) if ways.leads(first.id, second.id) else (second, first)
        if ways.leads(one.id, other.id):
            text = (
                f"{one.id} and {other.id} both join branches, one within the other's, and neither can know who is "
                f"still to come: lead the branches to {one.id} by `to` alone, not by routes, a loop or a map"
            )
            subject.problems.add(part(subject.tree, "nodes", config.nodes.index(other)), text)


def _check_lists(subject: Subject, first: Node, second: Node) -> None:
    """Maps that are begun side by side and run one node: it would replace one list twice."""
    config = subject.config
    one = {edge.parallel.collect_field for edge in config.edges_from(first.id) if edge.parallel is not None}
    for number, edge in enumerate(config.edges):
        name = edge.parallel.collect_field if edge.parallel is not None and edge.source == second.id else ""
        if name in one and not config.state.fields[name].appends:
            text = f"the map of {first.id} writes {name} in the same step, a list that is replaced"
            subject.problems.add(part(subject.tree, "edges", number, "parallel", "collect_field"), text)


def _written(config: WorkflowConfig, node: Node) -> set[str]:
    """The fields that a node replaces as a whole."""
    maps = [edge.parallel for edge in config.edges if edge.parallel is not None]
    collected = [found.collect_field for found in maps if found.target_node == node.id]
    return {name for name in (collected or node.outputs) if not config.state.fields[name].appends}


def _check_maps(subject: Subject) -> None:
    """What the node of a map cannot do, since it runs once for each item."""
    config = subject.config
    maps = [edge.parallel for edge in config.edges if edge.parallel is not None]
    for found in {(found.target_node, found.collect_field): found for found in maps}.values():
        node = config.node(found.target_node)
        at = config.nodes.index(node)
        lost = [name for name in node.outputs if name != found.collect_field]
        if found.collect_field in node.outputs and lost:
            text = (
                f"{', '.join(lost)}: a map collects {found.collect_field} only; without it in outputs it collects all"
            )
            subject.problems.add(part(subject.tree, "nodes", at, "outputs"), text)
        for number, edge in enumerate(config.edges):
            if edge.source == node.id:
                _check_behind(subject, number, edge, found)


def _check_behind(subject: Subject, number: int, edge: Edge, of: Parallel) -> None:
    """Where a map leads on to: its node decides that once for each item, before all results are there."""
    problems, tree = subject.problems, subject.tree
    again = f"a map runs {edge.source} once for each item"
    if edge.loop is not None or edge.parallel is not None:
        way = "parallel" if edge.loop is None else "loop"
        problems.add(part(tree, "edges", number, way), f"{again}: put a node behind it, and the {way} behind that one")
    for at, route in enumerate(edge.routes):
        logic = route.condition.logic
        if logic is not None and any(field.path[0] == of.collect_field for field in logic.fields):
            text = f"{again}, and {of.collect_field} is whole only after it: decide in a node behind it"
            problems.add(part(tree, "edges", number, "routes", at, "condition", "logic"), text)
