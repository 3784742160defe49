"""Rows of cost as differences: growth beyond the tolerance, growth within it, what fell, what nobody knows any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from pytest_agenttrace.ledger import TestFacts, UsageFacts
from pytest_agenttrace.report.cost import added, grew, rate_changes
from pytest_agenttrace.report.differences import Difference, Level, Row, Spent
from pytest_agenttrace.report.wording import counted, listed, percent, signed_tokens, signed_usd, tokens, usd
from pytest_agenttrace.usage import exact_decimals

__all__ = ["growth", "judged_rows"]

_TESTS, _RATES = 3, 3


@dataclass
class _Group:
    rows: list[Row] = field(default_factory=list)
    rates: dict[str, None] = field(default_factory=dict)


def judged_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of one test that say where something moved: nodes, and a node around others only for what is its own.
    A node that came or went is told as such. Without nodes, the test itself."""
    named = [row for row in rows if row.node is not None]
    if not named:
        return list(rows)
    return [row for row in named if row.old is not None and row.new is not None and not _of_its_inner_nodes(row, rows)]


def _of_its_inner_nodes(row: Row, rows: Sequence[Row]) -> bool:
    """Whether a node has moved by what the nodes of its subgraph have, and by nothing else."""
    inner = [
        other
        for other in rows
        if other.node is not None
        and other.node.startswith(f"{row.node}|")
        and "|" not in other.node[len(row.node or "") + 1 :]
    ]
    if not inner or row.old is None or row.new is None:
        return False
    was = added(other.old for other in inner if other.old is not None)
    now = added(other.new for other in inner if other.new is not None)
    return _less(row.new, row.old) == _less(now, was)


def _less(one: Spent, other: Spent) -> tuple[object, object]:
    with exact_decimals():
        return (
            None if one.tokens is None or other.tokens is None else one.tokens - other.tokens,
            None if one.cost is None or other.cost is None else one.cost - other.cost,
        )


def growth(
    rows: Iterable[Row], old: Mapping[str, TestFacts], new: Mapping[str, TestFacts], tolerance: Decimal
) -> Iterator[Difference]:
    """The differences of judged rows, those of one node and kind together."""
    groups: dict[tuple[Level, str, str | None], _Group] = {}
    for row in rows:
        for level, kind in _kinds(row, tolerance):
            group = groups.setdefault((level, kind, row.node), _Group())
            group.rows.append(row)
            if kind in ("prices", "lower prices") and row.test is not None:
                group.rates |= dict.fromkeys(rate_changes(old[row.test].calls, new[row.test].calls, row.node))
    for (level, kind, node), group in groups.items():
        yield _told(level, kind, node, group)


def _kinds(row: Row, tolerance: Decimal) -> Iterator[tuple[Level, str]]:
    old, new = row.old, row.new
    if old is None or new is None:
        return
    if old.tokens is not None and new.tokens is None:
        yield "cost", "tokens unknown"
    elif old.tokens is None and new.tokens is not None:
        yield "informational", "tokens known"
    elif old.tokens is not None and new.tokens is not None:
        yield from _by_tokens(old, new, row.by_tokens, tolerance)
    if old.cost is not None and new.cost is None:
        yield "cost", "cost unknown"
    elif old.cost is None and new.cost is not None:
        yield "informational", "cost known"
    elif old.cost is not None and new.cost is not None:
        yield from _by_prices(old.cost, new.cost, row, tolerance)


def _by_tokens(old: Spent, new: Spent, money: Decimal | None, tolerance: Decimal) -> Iterator[tuple[Level, str]]:
    was, now = old.tokens or 0, new.tokens or 0
    with exact_decimals():
        dearer = money is not None and old.cost is not None and grew(old.cost, old.cost + money, tolerance)
    more = now > was or (now == was and money is not None and money > 0)
    if grew(was, now, tolerance) or dearer:
        yield "cost", "tokens"
    elif more or (money is not None and money > 0):
        yield "informational", "more tokens"
    elif now < was or (money is not None and money < 0):
        yield "informational", "fewer tokens"
    elif old.usage != new.usage:
        yield "informational", "other tokens"


def _by_prices(was: Decimal, now: Decimal, row: Row, tolerance: Decimal) -> Iterator[tuple[Level, str]]:
    if row.by_prices is None or row.by_tokens is None:
        if grew(was, now, tolerance):
            yield "cost", "cost"
        elif was != now:
            yield "informational", "more cost" if now > was else "less cost"
        return
    with exact_decimals():
        dearer = grew(was, was + row.by_prices, tolerance)
    if dearer:
        yield "cost", "prices"
    elif row.by_prices != 0:
        yield "informational", "higher prices" if row.by_prices > 0 else "lower prices"


def _told(level: Level, kind: str, node: str | None, group: _Group) -> Difference:
    rows = group.rows
    old = added(row.old for row in rows if row.old is not None)
    new = added(row.new for row in rows if row.new is not None)
    name = node or "run"
    tests = tuple(dict.fromkeys(row.test for row in rows if row.test is not None))
    each = _each(rows, kind) if len(rows) > 1 else []
    if kind in ("tokens unknown", "cost unknown"):
        what = kind.partition(" ")[0]
        was = tokens(old.tokens) if what == "tokens" else usd(old.cost)
        return Difference(level, kind, node, f"{name}: {what} unknown, {was} before", tests, tuple(_why(rows, what)))
    if kind in ("tokens known", "cost known"):
        what = kind.partition(" ")[0]
        now = tokens(new.tokens) if what == "tokens" else usd(new.cost)
        return Difference(level, kind, node, f"{name}: {what} {now}, unknown before", tests)
    if "prices" in kind:
        money = _sum(row.by_prices for row in rows)
        text = f"{name} {signed_usd(money)} by prices alone{_share(old.cost, money)}"
        rates = [
            *list(group.rates)[:_RATES],
            *([f"and {len(group.rates) - _RATES} more"] if len(group.rates) > _RATES else []),
        ]
        return Difference(level, kind, node, text, tests, (*rates, *each), old.cost, _plus(old.cost, money))
    if kind.endswith("cost"):
        rise = _plus(new.cost, None if old.cost is None else -old.cost)
        text = f"{name} {usd(old.cost)} -> {usd(new.cost)} ({signed_usd(rise)}{_comma(percent(old.cost, new.cost))})"
        said = "tokens and prices cannot be told apart: a ledger holds no rates"
        return Difference(level, kind, node, text, tests, (said, *each), old.cost, new.cost)
    return _of_tokens(level, kind, node, old, new, rows, tests, each)


def _of_tokens(
    level: Level,
    kind: str,
    node: str | None,
    old: Spent,
    new: Spent,
    rows: Sequence[Row],
    tests: tuple[str, ...],
    each: Sequence[str],
) -> Difference:
    was, now = old.tokens or 0, new.tokens or 0
    money = _sum(row.by_tokens for row in rows)
    change = f"{signed_tokens(now - was)}{_comma(percent(was, now))}" if now != was else "as many"
    text = f"{node or 'run'} {tokens(was)} -> {tokens(now)} tokens ({change})"
    if money is not None and money != 0:
        text += f", {signed_usd(money)}{_share(old.cost, money)}"
    moved = _moved(old.usage, new.usage)
    return Difference(level, kind, node, text, tests, (*([moved] if moved else []), *each), was, now)


def _share(cost: Decimal | None, more: Decimal | None) -> str:
    share = percent(cost, _plus(cost, more))
    return f" ({share})" if share else ""


def _comma(text: str) -> str:
    return f", {text}" if text else ""


_WORDS = {
    "input_tokens": "input",
    "cache_read_input_tokens": "cached",
    "tool_use_tokens": "of tools",
    "output_tokens": "output",
    "thoughts_tokens": "thoughts",
}


def _moved(old: UsageFacts, new: UsageFacts) -> str:
    """`input 150 -> 362, output 1,171 -> 1,100`: the parts that moved; unknown is `-`."""
    parts = [(word, getattr(old, name), getattr(new, name)) for name, word in _WORDS.items()]
    return ", ".join(f"{word} {tokens(was)} -> {tokens(now)}" for word, was, now in parts if was != now)


def _each(rows: Sequence[Row], kind: str) -> list[str]:
    """The tests that moved most, each with its own numbers."""
    money = "prices" in kind or kind.endswith("cost")

    def more(row: Row) -> Decimal:
        if row.old is None or row.new is None:
            return Decimal(0)
        if money:
            return row.by_prices if row.by_prices is not None else (row.new.cost or 0) - (row.old.cost or Decimal(0))
        return Decimal((row.new.tokens or 0) - (row.old.tokens or 0))

    with exact_decimals():
        ordered = sorted(rows, key=lambda row: (-abs(more(row)), row.test or ""))
        lines = [
            f"{row.test}: {signed_usd(more(row)) if money else f'{signed_tokens(int(more(row)))} tokens'}"
            for row in ordered[:_TESTS]
        ]
    return [*lines, *([f"and {counted(len(rows) - _TESTS, 'more test')}"] if len(rows) > _TESTS else [])]


def _why(rows: Sequence[Row], what: str) -> list[str]:
    where = [row.test for row in rows if row.test is not None]
    return [f"a model without a price, in {listed(where, _TESTS)}"] if what == "cost" else []


def _sum(values: Iterable[Decimal | None]) -> Decimal | None:
    found = list(values)
    with exact_decimals():
        return None if None in found else sum((value for value in found if value is not None), Decimal(0))


def _plus(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    with exact_decimals():
        return None if one is None or other is None else one + other
