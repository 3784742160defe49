"""What a run's tests have used together, in the few lines its summary has for that. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal

from pytest_agenttrace.usage import exact_decimals, format_tokens, format_usd

__all__ = ["Spent", "all_lines", "lines", "read_spent"]

# Tokens and USD by node, under "" those of the whole test; None is unknown.
Spent = Mapping[str, tuple[int | None, Decimal | None]]
_DEAREST = 3


def read_spent(told: Mapping[str, Sequence[int | str | None]]) -> Spent:
    """What a report carries, with money as text."""
    return {
        node: (None if tokens is None else int(tokens), None if cost is None else Decimal(cost))
        for node, (tokens, cost) in told.items()
    }


def lines(spent: Mapping[str, Spent]) -> Iterator[str]:
    """`traced: 34,567 tokens, $0.0345 in 12 traces`, and the dearest nodes; `spent` is by test."""
    traced = [found for found in spent.values() if "" in found]
    if not traced:
        return
    traces = "1 trace" if len(traced) == 1 else f"{len(traced)} traces"
    tokens, silent = _sum(found[""][0] for found in traced)
    cost, unpriced = _sum(found[""][1] for found in traced)
    told = f"{format_tokens(int(tokens))} tokens{_but(silent)}, {format_usd(cost)}{_but(unpriced)}"
    yield f"traced: {told} in {traces}"
    if dearest := sorted(_by_node(traced).items(), key=lambda item: (-item[1], item[0])):
        shown = [f"{node} {format_usd(usd)} ({_percent(usd, cost)})" for node, usd in dearest[:_DEAREST]]
        rest = len(dearest) - _DEAREST
        more = f" and {rest} more {'node' if rest == 1 else 'nodes'}" if rest > 0 else ""
        yield f"  dearest: {', '.join(shown)}{more}"


def all_lines(spent: Mapping[str, Spent]) -> Iterator[str]:
    """Every test with its nodes, the dearest test first."""
    yield from list(lines(spent))[:1]
    traced = {test: found for test, found in spent.items() if "" in found}
    for test, found in sorted(traced.items(), key=lambda item: (-(item[1][""][1] or Decimal(0)), item[0])):
        nodes = ", ".join(f"{node} {_both(*used)}" for node, used in found.items() if node)
        yield f"  {test}: {_both(*found[''])}{f' ({nodes})' if nodes else ''}"


def _both(tokens: int | None, cost: Decimal | None) -> str:
    told = "-" if tokens is None else format_tokens(tokens)
    return f"{told} tokens {'-' if cost is None else format_usd(cost)}"


def _sum(amounts: Iterable[int | Decimal | None]) -> tuple[Decimal, int]:
    """The sum of what is known, and how many are not."""
    given = list(amounts)
    with exact_decimals():
        return sum((Decimal(amount) for amount in given if amount is not None), Decimal(0)), given.count(None)


def _but(unknown: int) -> str:
    return f" (and {unknown} unknown)" if unknown else ""


def _by_node(traced: Iterable[Spent]) -> dict[str, Decimal]:
    """USD of each node over all tests, where it has cost anything."""
    nodes: dict[str, Decimal] = {}
    for found in traced:
        for node, (_, cost) in found.items():
            if node and cost:
                with exact_decimals():
                    nodes[node] = nodes.get(node, Decimal(0)) + cost
    return nodes


def _percent(part: Decimal, whole: Decimal) -> str:
    return f"{part * 100 / whole:.0f}%" if whole else "-"
