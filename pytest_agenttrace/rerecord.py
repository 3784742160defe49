"""What recording costs: what the last recording has cost, what was made anew, and what changed for each node."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.calls import Call, ModelCall, Pricer
from pytest_agenttrace.usage import UsageUnknown, exact_decimals, format_tokens, format_usd

if TYPE_CHECKING:
    from pytest_agenttrace.replay import GeminiCassette

__all__ = ["Bill", "bill", "last_recording", "made", "old_and_new"]


@dataclass(frozen=True, slots=True)
class Bill:
    """How many calls to a model there were, and what the priced ones cost in USD; `unknown` ones have no price or
    reported no usage."""

    calls: int = 0
    cost: Decimal = Decimal(0)
    unknown: int = 0

    def __add__(self, other: Bill) -> Bill:
        with exact_decimals():
            return Bill(self.calls + other.calls, self.cost + other.cost, self.unknown + other.unknown)

    def __str__(self) -> str:
        calls = "1 call" if self.calls == 1 else f"{self.calls} calls"
        if self.calls and self.unknown == self.calls:
            return f"{calls}, cost unknown"
        more = f" and {self.unknown} of unknown cost" if self.unknown else ""
        return f"{calls}, {format_usd(self.cost)}{more}"

    def plain(self) -> list[Any]:
        return [self.calls, str(self.cost), self.unknown]


def bill(calls: Iterable[Call], price: Pricer) -> Bill:
    """What the answered calls to a model cost; counting tokens is free."""
    billed = [
        call for call in calls if call.answered and call.model is not None and call.endpoint.method != "countTokens"
    ]
    total = Bill()
    for call in billed:
        try:
            total += Bill(1, price(_priced(call)))
        except (LookupError, UsageUnknown):
            total += Bill(1, Decimal(0), 1)
    return total


def _priced(call: Call) -> ModelCall:
    return ModelCall(call.model, call.node, call.caller.namespace, call.usage, call=call)


def made(cassette: GeminiCassette, price: Pricer) -> Bill:
    """What a test has really asked while recording."""
    return bill(cassette.made, price)


def last_recording(paths: Iterable[Path], price: Pricer) -> tuple[Bill, int]:
    """What the cassettes at these paths hold, and how many of them are not there. Raises `CassetteError`."""
    from pytest_agenttrace.replay import call_of, read_recordings

    total, absent = Bill(), 0
    for path in paths:
        found = read_recordings(path)
        absent += found is None
        total += bill((call_of(entry) for entry in found or () if entry.request.endpoint is not None), price)
    return total, absent


def old_and_new(cassette: GeminiCassette, price: Pricer) -> list[str]:
    """`research 3,534 -> 3,600 tokens, $0.00201 -> $0.00204`, for each node whose numbers a recording has changed."""
    old, new = cassette.before_and_now()
    if not old or cassette.incomplete is not None:
        return []
    nodes = list(dict.fromkeys(call.node for call in [*old, *new]))
    found = [
        (node, _numbers([c for c in old if c.node == node], price), _numbers([c for c in new if c.node == node], price))
        for node in nodes
    ]
    lines = [f"{node or '(no node)'} {_changed(before, after)}" for node, before, after in found if before != after]
    return [*lines, f"run {_changed(_numbers(old, price), _numbers(new, price))}"] if lines else []


def _numbers(calls: Sequence[Call], price: Pricer) -> tuple[int, int | None, Bill]:
    """Calls, tokens and USD."""
    models = [call for call in calls if call.answered and call.model is not None]
    totals = [call.usage.total_tokens if call.usage is not None else None for call in models]
    known = [total for total in totals if total is not None]
    return len(models), sum(known) if len(known) == len(totals) else None, bill(models, price)


def _changed(before: tuple[int, int | None, Bill], after: tuple[int, int | None, Bill]) -> str:
    calls = [f"{before[0]} -> {after[0]} calls"] if before[0] != after[0] else []
    tokens = [f"{_tokens(before[1])} -> {_tokens(after[1])} tokens"] if before[1] != after[1] else []
    cost = [f"{_usd(before[2])} -> {_usd(after[2])}"] if before[2] != after[2] else []
    return ", ".join([*calls, *tokens, *cost]) or "as before"


def _tokens(count: int | None) -> str:
    return "-" if count is None else format_tokens(count)


def _usd(spent: Bill) -> str:
    return "-" if spent.unknown else format_usd(spent.cost)
