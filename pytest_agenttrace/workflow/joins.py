"""Which nodes of a workflow run at the same time, and how branches join: found by going every way it can take.

A step of LangGraph's runs every node that is due, and what they lead to is the next step. A node that one branch
reaches before another has to wait, so that it runs once: for all nodes that lead to it, where each of them is sure to
come; else for everything else that runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_agenttrace.workflow.models import END, START, Edge, WorkflowConfig

__all__ = ["Joins", "Ways", "joins_of"]

# Steps that are looked at: workflows have dozens, and what is beyond is not judged.
_MOST = 4_000

# From a node to a node.
_Way = tuple[str, str]
_Due = frozenset[str]
_Came = frozenset[_Way]


@dataclass(frozen=True, slots=True)
class Joins:
    """Nodes that wait: those of `gathers` for all nodes before them, those of `waits` for all that runs."""

    gathers: frozenset[str] = frozenset()
    waits: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Step:
    """Nodes that run together, and those due that wait for them. `lost` are nodes that cannot wait for all before
    them: one comes twice, or at the end one never came."""

    runs: frozenset[str]
    waits: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()


def joins_of(config: WorkflowConfig) -> Joins:
    """The nodes that wait, of a workflow that fits together."""
    ways = Ways(config)
    found, never = Joins(), set[str]()
    while True:
        for step in ways.steps(found):
            # Step by step: what comes after a join that did not wait is no way that a run takes.
            if more := step.lost or ways.early(step) - found.waits:
                never |= {name for name in more if name in found.gathers or not ways.gathered(name)}
                gathers = (found.gathers | more) - never
                found = Joins(gathers, found.waits | (more & never))
                break
        else:
            return found


class Ways:
    """The ways of a workflow that fits together."""

    def __init__(self, config: WorkflowConfig) -> None:
        self.edges: dict[str, list[Edge]] = {}
        for edge in config.edges:
            self.edges.setdefault(edge.source, []).append(edge)
        self.onwards = {name: {to for edge in edges for to in edge.targets} for name, edges in self.edges.items()}
        self.mapped = {edge.parallel.target_node for edge in config.edges if edge.parallel is not None}
        self.known: dict[_Way, bool] = {}

    def before(self, name: str) -> tuple[str, ...]:
        """The nodes that lead to a node; START has come always."""
        return tuple(source for source, targets in self.onwards.items() if name in targets and source != START)

    def gathered(self, name: str) -> bool:
        """Whether it can wait for all nodes before it: plain edges lead from them, of which none can be passed over."""
        sources = [edge for edges in self.edges.values() for edge in edges if name in edge.targets]
        return all(edge.to and edge.source not in self.mapped for edge in sources) and name not in self.mapped

    def choices(self, name: str) -> list[frozenset[_Way]]:
        """Where a node may lead: one of these sets of ways."""
        found = frozenset[_Way]()
        for edge in self.edges.get(name, ()):
            if edge.parallel is not None:
                # With no items, to what lies behind the map's node.
                behind = self.choices(edge.parallel.target_node)
                return [
                    frozenset({(name, edge.parallel.target_node)}),
                    *(frozenset((name, to) for _, to in choice) for choice in behind),
                ]
            if not edge.to:
                return [frozenset({(name, to)} - {(name, END)}) for to in edge.targets]
            found |= {(name, to) for to in edge.to if to != END}
        return [found]

    def steps(self, joins: Joins) -> list[Step]:
        """Every step that can be."""
        found: list[Step] = []
        known: set[tuple[_Due, _Came]] = set()
        todo = deque(self.arrived(joins, choice, frozenset(), frozenset())[:2] for choice in self.choices(START))
        while todo and len(found) < _MOST:
            due, came = todo.popleft()
            if (due, came) in known:
                continue
            known.add((due, came))
            if not due:
                found.append(Step(due, lost=frozenset(to for _, to in came)))
                continue
            runs = due - joins.waits or due
            nexts, lost = set[tuple[_Due, _Came]](), frozenset[str]()
            for choice in _unions(self.choices(name) for name in sorted(runs)):
                after, then, twice = self.arrived(joins, choice, due - runs, came)
                nexts.add((after, then))
                lost |= twice
            found.append(Step(runs, due - runs, lost))
            if len(todo) < _MOST:
                todo += nexts - known
        return found

    def arrived(
        self, joins: Joins, ways: frozenset[_Way], due: _Due, came: _Came
    ) -> tuple[_Due, _Came, frozenset[str]]:
        """What is due once these ways were gone, what came to nodes that still wait for others, and who came twice."""
        waited = {(source, to) for source, to in ways if to in joins.gathers}
        due |= {to for _, to in ways - waited}
        twice = frozenset(to for _, to in waited & came)
        came |= {(source, to) for source, to in waited if source != START}
        for name in {to for _, to in waited}:
            every = {(source, name) for source in self.before(name)}
            if every <= came:
                due, came = due | {name}, came - every
        return due, came, twice

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


def _unions(choices: Iterable[list[frozenset[_Way]]]) -> set[frozenset[_Way]]:
    """Each choice of one together with each of the others."""
    found = {frozenset[_Way]()}
    for each in choices:
        found = {before | choice for before in list(found)[:_MOST] for choice in each}
    return found
