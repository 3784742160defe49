"""A test's numbers as properties of JUnit's XML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_agenttrace.tree import printable

__all__ = ["properties"]


def properties(facts: Mapping[str, Any]) -> list[tuple[str, object]]:
    """`agenttrace.tokens`, `agenttrace.cost_usd`, and the same of each node below `agenttrace.node.NAME.`, of a test's
    facts as JSON has them. What nobody knows has no property."""
    found: list[tuple[str, object]] = []
    nodes = {f"agenttrace.node.{printable(name)}": node for name, node in facts["nodes"].items()}
    places = {"agenttrace": facts, **nodes}
    for place, numbers in places.items():
        for name, value in (("tokens", numbers["tokens"]), ("cost_usd", numbers["cost"])):
            if value is not None:
                found.append((f"{place}.{name}", value))
    return found
