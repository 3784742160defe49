"""Which nodes of a workflow run at the same time, found by going every way it can take, step by step.

A step of LangGraph's runs every node that is due, and what they lead to is the next step. From these sets of nodes
follows what branches side by side may write, and where they join: a node that one branch reaches before another waits
for it, so that it runs once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from pytest_agenttrace.workflow.models import END, START, Edge, Node, Parallel, WorkflowConfig
from pytest_agenttrace.workflow.positions import part
from pytest_agenttrace.workflow.references import Subject

__all__ = ["check_steps", "waiting"]

# Sets of nodes that are looked at: workflows have dozens, and what is beyond is not judged.
_MOST = 4_000


@dataclass(frozen=True, slots=True)
class Step:
    """Nodes that run together, and those due that wait for them."""

    runs: frozenset[str]
    waits: frozenset[str]


def waiting(config: WorkflowConfig) -> frozenset[str]:
    """The nodes that wait for all others that run: joins which one branch reaches before another."""
    ways = _Ways(config)
    found = frozenset[str]()
    # Step by step: what comes after a join that did not wait is no way that a run takes.
    while more := next(filter(None, (ways.early(step) - found for step in ways.steps(found))), None):
        found |= more
    return found


def check_steps(subject: Subject) -> None:
    """Add what nodes side by side cannot do. The workflow is read as a whole, and its ways are right."""
    config = subject.config
    _check_maps(subject)
    if subject.problems.found:
        return
    ways, waits = _Ways(config), waiting(config)
    numbers = {node.id: at for at, node in enumerate(config.nodes)}
    pairs = {pair for step in ways.steps(waits) for pair in combinations(sorted(step.runs, key=numbers.__getitem__), 2)}
    for first, second in sorted(pairs):
        _check_pair(subject, ways, waits, config.node(first), config.node(second))


def _check_pair(subject: Subject, ways: _Ways, waits: frozenset[str], first: Node, second: Node) -> None:
    config = subject.config
    at = config.nodes.index(second)
    for name in sorted(_written(config, first) & _written(config, second)):
        number = second.outputs.index(name) if name in second.outputs else 0
        text = f"{first.id} writes {name} in the same step: of nodes side by side one writes a field"
        more = ", or both append to a list" if config.state.fields[name].type.name != "list" else " that is replaced"
        subject.problems.add(part(subject.tree, "nodes", at, "outputs", number), text + more)
    if {first.id, second.id} <= waits:
        one, other = (first, second) if ways.leads(first.id, second.id) else (second, first)
        if ways.leads(one.id, other.id):
            text = (
                f"{other.id} joins branches around {one.id}, which joins branches of its own: where forks lie within "
                f"forks, make the branches that join in {one.id} equally long"
            )
            subject.problems.add(part(subject.tree, "nodes", config.nodes.index(other)), text)


def _written(config: WorkflowConfig, node: Node) -> set[str]:
    """The fields that a node replaces as a whole."""
    maps = [edge.parallel for edge in config.edges if edge.parallel is not None]
    collected = [found.collect_field for found in maps if found.target_node == node.id]
    return {name for name in (collected or node.outputs) if not config.state.fields[name].appends}


def _check_maps(subject: Subject) -> None:
    """What the node of a map cannot do, since it runs once for each item."""
    config = subject.config
    for found in {edge.parallel.target_node: edge.parallel for edge in config.edges if edge.parallel}.values():
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


class _Ways:
    """The ways of a workflow that fits together."""

    def __init__(self, config: WorkflowConfig) -> None:
        self.edges: dict[str, list[Edge]] = {}
        for edge in config.edges:
            self.edges.setdefault(edge.source, []).append(edge)
        self.known: dict[tuple[str, str], bool] = {}
        self.onwards = {name: {to for edge in edges for to in edge.targets} for name, edges in self.edges.items()}

    def choices(self, name: str) -> list[frozenset[str]]:
        """What may be due after a node: one of these."""
        found: list[frozenset[str]] = []
        for edge in self.edges.get(name, ()):
            if edge.parallel is not None:
                # With no items, what lies behind the map's node.
                return [frozenset({edge.parallel.target_node}), *self.choices(edge.parallel.target_node)]
            if not edge.to:
                return [frozenset({target}) - {END} for target in edge.targets]
            found.append(frozenset(edge.to) - {END})
        return [frozenset().union(*found)]

    def steps(self, waits: frozenset[str]) -> list[Step]:
        """Every step that can be, the nodes of `waits` run only where no other does."""
        known: dict[frozenset[str], Step] = {}
        todo = deque(due for due in self.choices(START) if due)
        while todo and len(known) < _MOST:
            due = todo.popleft()
            if due in known:
                continue
            step = known[due] = Step(due - waits or due, due & waits if due - waits else frozenset())
            if len(todo) > _MOST:
                continue
            afters = (after | step.waits for after in _unions(self.choices(name) for name in sorted(step.runs)))
            todo += [after for after in afters if after and after not in known]
        return list(known.values())

    def early(self, step: Step) -> frozenset[str]:
        """Nodes of a step that another branch is still on its way to."""
        due = step.runs | step.waits
        return frozenset(name for name in step.runs for other in due if other != name and self.leads(other, name))

    def leads(self, name: str, to: str) -> bool:
        """Whether one node leads to another before both lead to a third, where their branches join."""
        if (name, to) not in self.known:
            both = self.behind(name) & self.behind(to) - {to}
            self.known[name, to] = name not in both and to in self.reached(name, both)
        return self.known[name, to]

    def behind(self, name: str) -> set[str]:
        """The nodes on every way from a node to the end, itself first."""
        return {other for other in (*self.edges, END) if other == name or END not in self.reached(name, {other})}

    def reached(self, name: str, without: Iterable[str]) -> set[str]:
        closed, found, todo = set(without), set[str](), [name]
        while todo:
            for target in self.onwards.get(todo.pop(), ()):
                if target not in found and target not in closed:
                    found.add(target)
                    todo.append(target)
        return found


def _unions(choices: Iterable[list[frozenset[str]]]) -> set[frozenset[str]]:
    """Each choice of one together with each of the others."""
    found = {frozenset[str]()}
    for each in choices:
        found = {before | choice for before in list(found)[:_MOST] for choice in each}
    return found
