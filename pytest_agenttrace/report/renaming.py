"""Nodes and tests that have another name and are otherwise as they were."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from pytest_agenttrace.ledger import TestFacts, plain

__all__ = ["renamed", "renamed_nodes", "renamed_tests"]


def renamed_nodes(old: TestFacts, new: TestFacts) -> dict[str, str]:
    """Old names of nodes by their new ones: of those that did exactly the same, at the same places of the trajectory.
    Names that several nodes could have are nobody's."""
    gone = [node for node in old.nodes if node not in new.nodes]
    come = [node for node in new.nodes if node not in old.nodes]
    pairs: dict[str, str] = {}
    for name in gone:
        alike = [other for other in come if _deeds(old, name) == _deeds(new, other)]
        if len(alike) == 1 and sum(_deeds(old, one) == _deeds(old, name) for one in gone) == 1:
            pairs[name] = alike[0]
    return pairs


def _deeds(facts: TestFacts, node: str) -> tuple[object, ...]:
    executions = tuple(
        dataclasses.replace(execution, node="") for execution in facts.executions if execution.node == node
    )
    places = tuple(index for index, name in enumerate(facts.trajectory) if name == node)
    return facts.nodes[node], executions, places


def renamed(facts: TestFacts, names: Mapping[str, str]) -> TestFacts:
    """The facts with other names of nodes."""
    if not names:
        return facts

    def name(node: str | None) -> str | None:
        return names.get(node, node) if node is not None else None

    replace = dataclasses.replace
    return replace(
        facts,
        nodes={names.get(node, node): value for node, value in facts.nodes.items()},
        trajectory=tuple(names.get(node, node) for node in facts.trajectory),
        edges=tuple((name(start), names.get(end, end)) for start, end in facts.edges),
        executions=tuple(replace(done, node=names.get(done.node, done.node)) for done in facts.executions),
        calls=tuple(replace(call, node=name(call.node)) for call in facts.calls),
        budgets=tuple(replace(budget, node=name(budget.node)) for budget in facts.budgets),
        findings=tuple(replace(finding, node=name(finding.node)) for finding in facts.findings),
    )


def renamed_tests(old: Mapping[str, TestFacts], new: Mapping[str, TestFacts]) -> dict[str, str]:
    """New names of tests by their old ones: of those with calls that are equal in all but name and cassette."""
    gone, come = _by_content(old, new), _by_content(new, old)
    return {names[0]: come[text][0] for text, names in gone.items() if len(names) == len(come.get(text, ())) == 1}


def _by_content(tests: Mapping[str, TestFacts], others: Mapping[str, TestFacts]) -> dict[str, list[str]]:
    """The names of tests that only one side has, by what they did."""
    found: dict[str, list[str]] = {}
    for name, facts in tests.items():
        if name not in others and facts.calls:
            text = json.dumps(plain(dataclasses.replace(facts, cassette=None)), sort_keys=True)
            found.setdefault(text, []).append(name)
    return found
