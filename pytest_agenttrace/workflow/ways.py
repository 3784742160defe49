"""The ways of a workflow: edges between nodes that are there, each node between START and END."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pytest_agenttrace.workflow.models import END, START, Edge, Loop, Node, Parallel
from pytest_agenttrace.workflow.positions import Table, Tree, part
from pytest_agenttrace.workflow.reading import did_you_mean
from pytest_agenttrace.workflow.references import Subject, check_condition, maybe
from pytest_agenttrace.workflow.types import Type, fits, shown

__all__ = ["check_ways", "maps_of"]


def maps_of(subject: Subject, node: str | None) -> tuple[Parallel, ...]:
    """The parallel maps that run a node."""
    maps = [edge.parallel for edge in subject.config.edges if edge is not None and edge.parallel is not None]
    return tuple(found for found in maps if node is not None and found.target_node == node)


def check_ways(subject: Subject) -> None:
    """Add what is wrong with edges, and nodes that are on no way from START to END."""
    nodes = {node.id: at for at, node in enumerate(subject.config.nodes) if node is not None and node.id is not None}
    ways = _Ways(subject, nodes)
    for at, edge in enumerate(subject.config.edges):
        if maybe(edge) is not None:
            ways.edge(at, edge)
        else:
            ways.complete = False
    if len(nodes) == len(subject.config.nodes) and ways.complete:
        ways.check()


class _Ways:
    def __init__(self, subject: Subject, nodes: Mapping[str, int]) -> None:
        self.subject = subject
        self.nodes = nodes
        self.onwards: dict[str, set[str]] = {}
        # Whether every edge is known, or at least what was meant by it.
        self.complete = True
        self.first: dict[str, tuple[int, Edge]] = {}

    def tree(self, at: int, *keys: str | int) -> Tree:
        return part(self.subject.tree, "edges", at, *keys)

    def add(self, tree: Tree, text: str) -> None:
        self.subject.problems.add(tree, text)

    def edge(self, at: int, edge: Edge) -> None:
        source = self.known(edge.source, self.tree(at, "from"), leads=True)
        targets = [self.known(name, tree, leads=False) for name, tree in self.named_targets(at, edge)]
        if source is None or None in targets or not targets:
            self.complete = False
        if source is not None:
            self.onwards.setdefault(source, set()).update(target for target in targets if target is not None)
            self.one_decision(at, edge, source)
        if edge.routes:
            self.routes(at, edge)
        if edge.loop is not None:
            self.loop(at, edge, edge.loop)
        if edge.parallel is not None:
            self.parallel(at, edge, edge.parallel)

    def named_targets(self, at: int, edge: Edge) -> Iterator[tuple[str | None, Tree]]:
        seen: set[str] = set()
        for number, name in enumerate(edge.to):
            tree = self.tree(at, "to", number)
            if name in seen:
                self.add(tree, f"{name!r} stands here twice")
            elif name is not None:
                seen.add(name)
            yield name, tree
        for number, route in enumerate(edge.routes):
            yield (None if route is None else route.to), self.tree(at, "routes", number, "to")
        if edge.loop is not None:
            yield edge.loop.exit_to, self.tree(at, "loop", "exit_to")
        if edge.parallel is not None:
            yield edge.parallel.target_node, self.tree(at, "parallel", "target_node")

    def known(self, name: str | None, tree: Tree, *, leads: bool) -> str | None:
        """A node's id or an end, as written or as it may have been meant; None where nobody knows."""
        if name is None:
            return None
        if name in self.nodes or name == (START if leads else END):
            return name
        if name in (START, END):
            self.add(tree, "nothing leads on from END" if leads else "nothing leads to START")
            return None
        names = [*self.nodes, START if leads else END]
        near = did_you_mean(name, names)
        self.add(tree, f"there is no node {shown(name)}{near or '; there are ' + ', '.join(names[:10])}")
        return near.removeprefix("; did you mean ").removesuffix("?") or None

    def one_decision(self, at: int, edge: Edge, source: str) -> None:
        """Several edges of a node are a fork; what decides where to go on stands alone."""
        if source not in self.first:
            self.first[source] = (at, edge)
            return
        number, other = self.first[source]
        if edge.to and other.to:
            for name in set(edge.to) & set(other.to):
                self.add(self.tree(at), f"{source} leads to {name} already, by edges[{number}]")
        else:
            way = next(key for key in ("routes", "loop", "parallel", "to") if getattr(other, key) or getattr(edge, key))
            self.add(self.tree(at), f"{source} has an edge already, edges[{number}]: {way} stands alone")

    def routes(self, at: int, edge: Edge) -> None:
        defaults, unread = 0, False
        for number, route in enumerate(edge.routes):
            logic = self.tree(at, "routes", number, "condition", "logic")
            condition = None if maybe(route) is None else maybe(route.condition)
            if condition is not None and condition.logic is not None:
                check_condition(self.subject, condition.logic, logic)
            elif condition is None or not _is_default(logic):
                # Something is wrong with it already: it may be meant as the default.
                unread = True
            elif defaults:
                self.add(logic, "a second default: one route is taken where no condition holds")
            else:
                defaults += 1
        if defaults == 0 and not unread:
            example = "{condition: {logic: default}, to: ...}"
            self.add(self.tree(at, "routes"), f"no default route: add {example} for when no condition holds")

    def loop(self, at: int, edge: Edge, loop: Loop) -> None:
        if edge.source == START:
            self.add(self.tree(at, "loop"), "START cannot be repeated: a loop is of a node")
        if loop.exit_to is not None and loop.exit_to == edge.source:
            self.add(self.tree(at, "loop", "exit_to"), f"the loop leads back to {edge.source}, and never ends")
        name = maybe(loop.condition_field)
        if name is None:
            return
        tree = self.tree(at, "loop", "condition_field")
        found = self.field(name, tree)
        if found is not None and found.name != "bool":
            self.add(tree, f"{name} is {found}: a loop ends by a bool field of the state")
        written = [output for node in self.subject.config.nodes if node is not None for output in node.outputs]
        if found is not None and name not in written:
            self.subject.problems.note(tree, f"no node writes {name}: the loop ends by max_iterations only")

    def parallel(self, at: int, edge: Edge, found: Parallel) -> None:
        tree = self.tree(at, "parallel", "target_node")
        if found.target_node == END:
            self.add(tree, "a parallel map runs a node, not END")
        if found.target_node is not None and found.target_node == edge.source:
            self.add(tree, f"{edge.source} would run itself for each item, without end")
        for key in ("items_field", "collect_field"):
            name = getattr(found, key)
            where = self.tree(at, "parallel", key)
            kind = None if name is None else self.field(name, where)
            if kind is not None and kind.name != "list":
                self.add(where, f"{name} is {kind}: a parallel map works on a list, and collects a list")
            elif kind is not None and key == "collect_field":
                self.collected(found, kind, where)

    def collected(self, found: Parallel, kind: Type, tree: Tree) -> None:
        """Whether the list can take what the node returns for an item."""
        at = self.nodes.get(found.target_node)
        node: Node | None = None if at is None else self.subject.config.nodes[at]
        if node is None or node.output_schema is None or kind.item is None or None in node.outputs:
            return
        # An output of that name is checked with the node.
        if found.collect_field in node.outputs:
            return
        given = Type("object") if len(node.outputs) != 1 else _only_type(node)
        if given is not None and not fits(given, kind.item):
            what = f"{node.id} returns {given} for an item"
            self.add(tree, f"{found.collect_field} is {kind}, and {what}")

    def field(self, name: str, tree: Tree) -> Type | None:
        if name not in self.subject.fields:
            self.add(tree, self.subject.fields.unknown(name))
            return None
        known = self.subject.fields.fields.get(name)
        return None if known is None else known.type

    # From START to END

    def check(self) -> None:
        if not self.onwards.get(START):
            self.add(part(self.subject.tree, "edges"), "no edge leads on from START")
            return
        backwards: dict[str, set[str]] = {}
        for source, targets in self.onwards.items():
            for target in targets:
                backwards.setdefault(target, set()).add(source)
        reached, ending = _reached(self.onwards, START), _reached(backwards, END)
        for name, at in self.nodes.items():
            tree = part(self.subject.tree, "nodes", at)
            if name not in reached:
                self.add(tree, f"no way leads to {name} from START")
            elif name not in ending:
                more = "" if self.onwards.get(name) else f": add an edge {{from: {name}, to: ...}}"
                self.add(tree, f"no way leads from {name} to END{more}")


def _only_type(node: Node) -> Type | None:
    schema = node.output_schema
    if schema.type is None or schema.type.name != "object":
        return schema.type
    field = next((field for field in schema.fields or () if field is not None), None)
    return None if field is None else field.type


def _is_default(tree: Tree) -> bool:
    return not isinstance(tree, Table) and str(getattr(tree, "value", "")).strip() == "default"


def _reached(onwards: Mapping[str, set[str]], start: str) -> set[str]:
    found, waiting = {start}, [start]
    while waiting:
        for name in onwards.get(waiting.pop(), ()):
            if name not in found:
                found.add(name)
                waiting.append(name)
    return found
