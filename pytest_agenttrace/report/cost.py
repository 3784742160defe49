"""What nodes used and cost, then and now: tokens and prices told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from decimal import Decimal

from pytest_agenttrace.calls import CHAT_METHODS
from pytest_agenttrace.ledger import BilledFacts, CallFacts, NodeFacts, TestFacts, UsageFacts
from pytest_agenttrace.report.differences import Found, Level, Row, Spent
from pytest_agenttrace.usage import exact_decimals, format_usd

__all__ = [
    "OUTSIDE",
    "added",
    "cost_change",
    "grew",
    "known_of",
    "known_part",
    "rate_changes",
    "rows_of",
    "spent_of_node",
    "tokens_change",
    "total_of",
]

# What no node asked for.
OUTSIDE = "(no node)"
# USD per million of these; per thousand of what is searched.
_PER_THOUSAND = ("grounded_requests", "searches")


def grew(old: int | Decimal, new: int | Decimal, tolerance: Decimal) -> bool:
    """Whether it is more by more than so many percent. From nothing, anything is."""
    with exact_decimals():
        return Decimal(new) > Decimal(old) * (1 + tolerance / 100) and new > old


def rows_of(test: str, old: TestFacts, new: TestFacts) -> list[Row]:
    """A row for the test as a whole (node None), one for each node, and one for what no node asked for, if anything."""
    rows = [_row(test, None, total_of(old), total_of(new), old.calls, new.calls)]
    for node in dict.fromkeys([*old.nodes, *new.nodes]):
        was, now = (spent_of_node(facts.nodes.get(node)) for facts in (old, new))
        rows.append(_row(test, node, was, now, _calls(old, node), _calls(new, node)))
    outside = _outside(old), _outside(new)
    if any(outside):
        none = Spent(0, UsageFacts(), Decimal(0), 0)
        rows.append(
            _row(test, OUTSIDE, outside[0] or none, outside[1] or none, _calls(old, OUTSIDE), _calls(new, OUTSIDE))
        )
    return rows


def spent_of_node(facts: NodeFacts | None) -> Spent | None:
    """What a node used; None where it did not run."""
    return None if facts is None else Spent(facts.tokens, facts.usage, facts.cost, facts.llm_calls)


def total_of(facts: TestFacts) -> Spent:
    """What a whole test used; nothing where nothing was asked."""
    if not facts.nodes and not facts.calls and not facts.outline:
        return Spent(0, UsageFacts(), Decimal(0), 0)
    return Spent(facts.tokens, facts.usage or UsageFacts(), facts.cost, len(facts.calls))


def _outside(facts: TestFacts) -> Spent | None:
    """What calls have used that no node has made; None where there are none."""
    calls = [call for call in facts.calls if call.node is None]
    return known_of(calls) if any(_counts(call) for call in calls) else None


def known_of(calls: Sequence[CallFacts]) -> Spent:
    """The sum of calls: unknown where an answer of a model reports nothing."""
    counted = [call for call in calls if _counts(call)]
    parts = [Spent(_total(call.usage), call.usage or UsageFacts(), call.cost, 1) for call in counted]
    return added(parts)


def _total(usage: UsageFacts | None) -> int | None:
    return None if usage is None else usage.total_tokens


def _counts(call: CallFacts) -> bool:
    """Whether a call is one that is billed: errors are not, nor are counting tokens, files and caches."""
    answered = call.status is not None and 200 <= call.status < 300
    return answered and (call.usage is not None or call.method in CHAT_METHODS)


def known_part(old: TestFacts, new: TestFacts, tolerance: Decimal) -> Iterator[Found]:
    """Growth of what is known of nodes whose sums are unknown in both runs: a call that reports nothing hides none."""
    for node, was in old.nodes.items():
        now = new.nodes.get(node)
        if now is None or was.tokens is not None or now.tokens is not None:
            continue
        before, after = (_known_tokens(_calls(facts, node)) for facts in (old, new))
        if before == after:
            continue
        level: Level = "cost" if grew(before, after, tolerance) else "informational"
        text = f"{node}: tokens unknown as before, of those known {before:,} -> {after:,}"
        yield Found(level, "known tokens", node, text)


def _known_tokens(calls: Sequence[CallFacts]) -> int:
    return sum(total for call in calls if (total := _total(call.usage)) is not None)


_PARTS = fields(UsageFacts)


def _calls(facts: TestFacts, node: str) -> list[CallFacts]:
    return [call for call in facts.calls if _within(call, node)]


def _within(call: CallFacts, node: str) -> bool:
    if node == OUTSIDE:
        return call.node is None
    return call.node == node or (call.node or "").startswith(f"{node}|")


def _row(
    test: str,
    node: str | None,
    old: Spent | None,
    new: Spent | None,
    was: Sequence[CallFacts],
    now: Sequence[CallFacts],
) -> Row:
    parts = _split(old, new, was, now)
    return Row(test, node, old, new, *parts)


def _split(
    old: Spent | None, new: Spent | None, was: Sequence[CallFacts], now: Sequence[CallFacts]
) -> tuple[Decimal | None, Decimal | None]:
    """The difference of two costs as what other tokens cost at the old prices, and what the prices did with the new
    ones. None where the ledgers do not tell."""
    before = Decimal(0) if old is None else old.cost
    after = Decimal(0) if new is None else new.cost
    if before is None or after is None:
        return None, None
    with exact_decimals():
        if old is None or new is None or 0 in (old.tokens, new.tokens):
            return after - before, Decimal(0)
        if before == after and old.usage == new.usage:
            return Decimal(0), Decimal(0)
        then = _at_old_prices(was, now)
        if then is None:
            return _guessed(old, new, was, now, after - before)
        return then - before, after - then


def _at_old_prices(was: Sequence[CallFacts], now: Sequence[CallFacts]) -> Decimal | None:
    """What the new calls would have cost by the old ones' rates, each by its counterpart's."""
    # Error replies bill nothing.
    was, now = ([call for call in calls if call.usage is not None] for calls in (was, now))
    if not was or not now or not all(call.billed for call in (*was, *now)):
        return None
    costs = [_at_old_price(_counterpart(was, now, index), call) for index, call in enumerate(now)]
    known = [cost for cost in costs if cost is not None]
    return sum(known, Decimal(0)) if len(known) == len(costs) else None


def _at_old_price(old: CallFacts, new: CallFacts) -> Decimal | None:
    return old.cost if old.usage == new.usage else _billed_by(new.billed, old)


def _counterpart(was: Sequence[CallFacts], now: Sequence[CallFacts], index: int) -> CallFacts:
    """The call at the same place; where there are more or fewer, one of the same model first."""
    if len(was) == len(now):
        return was[index]
    same = [call for call in was if call.model == now[index].model]
    return same[min(index, len(same) - 1)] if same else was[min(index, len(was) - 1)]


def _billed_by(billed: Sequence[BilledFacts], old: CallFacts) -> Decimal | None:
    rates = {line.rate: line.usd for line in old.billed}
    total = Decimal(0)
    for line in billed:
        if line.count == 0:
            continue
        rate = next((rates[name] for name in _wider(line.rate) if name in rates), None)
        if rate is None:
            return None
        total += rate * line.count / (1000 if line.rate in _PER_THOUSAND else 1_000_000)
    return total


def _wider(rate: str) -> Iterator[str]:
    """The rate itself, then what bills the same where there is none of its own."""
    yield rate
    if rate.startswith("cached_"):
        yield from (rate.replace("cached_", "input_"), "cached_input", "input")
    elif rate.startswith(("input_", "output_")):
        yield rate.partition("_")[0]


def _guessed(
    old: Spent, new: Spent, was: Sequence[CallFacts], now: Sequence[CallFacts], more: Decimal
) -> tuple[Decimal | None, Decimal | None]:
    """Without bills: equal tokens, then it is the prices; equal models and days, then it is the tokens."""
    if old.usage == new.usage:
        return Decimal(0), more
    terms = [{(call.model, call.answered_by, call.priced_at) for call in calls} for calls in (was, now)]
    return (more, Decimal(0)) if terms[0] == terms[1] and terms[0] else (None, None)


def rate_changes(old: Sequence[CallFacts], new: Sequence[CallFacts], node: str | None) -> list[str]:
    """What is priced otherwise, by model and rate, in words: `gemini-2.5-flash: input $0.30 -> $0.45 a million`."""
    was, now = (
        [call for call in calls if call.usage is not None and (node is None or _within(call, node))]
        for calls in (old, new)
    )
    found: dict[str, None] = {}
    for index, call in enumerate(now):
        if not was or not call.billed:
            continue
        before = _counterpart(was, now, index)
        rates = {line.rate: line.usd for line in before.billed}
        models = _priced_as(before), _priced_as(call)
        name = models[0] if models[0] == models[1] else f"{models[0]} -> {models[1]}"
        moved = [
            f"{line.rate.replace('_', ' ')} {format_usd(rates[line.rate])} -> {format_usd(line.usd)}"
            for line in call.billed
            if line.rate in rates and rates[line.rate] != line.usd and (line.count or _count(before, line.rate))
        ]
        if moved:
            found[f"{name}: {', '.join(moved)} a million tokens"] = None
    return list(found)


def _priced_as(call: CallFacts) -> str:
    return call.answered_by or call.model or "-"


def _count(call: CallFacts, rate: str) -> int:
    return sum(line.count for line in call.billed if line.rate == rate)


def added(parts: Iterable[Spent]) -> Spent:
    """A sum; unknown where a part is. Details are added up where they were reported."""
    spent = list(parts)
    with exact_decimals():
        costs = [part.cost for part in spent]
        cost = None if None in costs else sum((value for value in costs if value is not None), Decimal(0))
    usage = UsageFacts(**{f.name: _sum(getattr(part.usage, f.name) for part in spent) for f in _PARTS})
    tokens = [part.tokens for part in spent]
    return Spent(
        None if None in tokens else sum(value for value in tokens if value is not None),
        usage,
        cost,
        sum(part.calls for part in spent),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def cost_change(row: Row) -> Decimal | None:
    """What it costs more, in USD; None where either is unknown. What did not run costs nothing."""
    was = Decimal(0) if row.old is None else row.old.cost
    now = Decimal(0) if row.new is None else row.new.cost
    with exact_decimals():
        return None if was is None or now is None else now - was


def tokens_change(row: Row) -> int | None:
    """Tokens used more; None where either is unknown."""
    was = 0 if row.old is None else row.old.tokens
    now = 0 if row.new is None else row.new.tokens
    return None if was is None or now is None else now - was
