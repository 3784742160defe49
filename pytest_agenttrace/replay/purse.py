"""What recording one cassette may cost: each call's share of the run's limit, set apart before it is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

from pytest_agenttrace.calls import Call, Caller, ModelCall
from pytest_agenttrace.replay.injecting import call_of
from pytest_agenttrace.replay.matching import Recorded, Request
from pytest_agenttrace.replay.spending import Spending
from pytest_agenttrace.usage import Usage, UsageUnknown

__all__ = ["Purse", "TooDear"]


class TooDear(Exception):
    """A call that is not made, and why."""


@dataclass(frozen=True, slots=True)
class Purse:
    """`price` gives the USD of a call, `spending` is the run's limit (None: there is none), `before` what the cassette
    held before."""

    spending: Spending | None
    price: Callable[[ModelCall], Decimal] | None
    before: Sequence[Recorded]

    def set_apart(self, asked: Request, asking: Caller, calls: Sequence[Call]) -> Decimal | None:
        """USD set apart for a call that is to be made, after `calls`; None where nothing limits it. Raises `TooDear`
        where the limit would be passed, or without a price."""
        spending, price, model = self.spending, self.price, asked.endpoint.model if asked.endpoint else None
        if spending is None or price is None or model is None:
            return None
        try:
            expected = max(self._expected(asked, model, asking, calls, price), spending.dearest(model))
        except LookupError as error:
            head, below, lines = str(error).partition("\n")
            raise TooDear(f"{head}: without a price the limit cannot be kept{below}{lines}") from None
        if not spending.reserve(expected):
            said = f"limit ${spending.limit}, spent ${spending.spent()}, this call is expected to cost ${expected}"
            raise TooDear(said)
        return expected

    def settle(self, call: Call, expected: Decimal | None) -> None:
        """A call has been made: what it cost in place of what was set apart; that stays where nothing is known."""
        if expected is not None and self.spending is not None and self.price is not None:
            cost = _cost(call, self.price)
            self.spending.settle(call.model or "", expected, expected if cost is None else cost)

    def _expected(
        self,
        asked: Request,
        model: str,
        asking: Caller,
        calls: Sequence[Call],
        price: Callable[[ModelCall], Decimal],
    ) -> Decimal:
        """What the call cost when it was last recorded, else the dearest one of its node or of its model so far, and
        at least its own prompt and the output it allows."""
        old = [entry for entry in self.before if entry.request.endpoint and entry.request.endpoint.model == model]
        same = [entry for entry in old if entry.request.key("body") == asked.key("body")]
        known = [cost for entry in same if (cost := _cost(call_of(entry), price)) is not None]
        if known:
            return max(known)
        alike = [call_of(entry) for entry in old if entry.node == asking.node]
        alike += [call for call in calls if call.model == model]
        least = price(ModelCall(model, asking.node, None, _estimated(asked.body)))
        return max([least, *(cost for call in alike if (cost := _cost(call, price)) is not None)])


def _cost(call: Call, price: Callable[[ModelCall], Decimal]) -> Decimal | None:
    """USD of a call; None where its usage or its price is not known."""
    try:
        return price(ModelCall(call.model, call.node, call.caller.namespace, call.usage, call=call))
    except (LookupError, UsageUnknown):
        return None


def _estimated(body: bytes) -> Usage:
    """What a request is at least expected to use: four characters of it are a token, and all the output it allows."""
    allowed_output = 0
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        allowed_output = max(0, int(json.loads(body)["generationConfig"]["maxOutputTokens"]))
    tokens = len(body) // 4
    return Usage(tokens, allowed_output, tokens + allowed_output)
