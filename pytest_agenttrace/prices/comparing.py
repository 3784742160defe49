"""The same usage at other prices: what recorded calls have cost, and would cost, by node and model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

from pytest_agenttrace.calls import ModelCall, Pricer
from pytest_agenttrace.usage import UsageUnknown, exact_decimals

__all__ = ["Comparison", "Row", "compare"]


@dataclass(frozen=True, slots=True)
class Row:
    """The calls of one node to one model: tokens, and USD before and after. None is unknown: a call without usage, a
    model without a price."""

    node: str | None
    model: str | None
    priced_as: str | None
    calls: int
    tokens: int | None
    before: Decimal | None
    after: Decimal | None

    @property
    def difference(self) -> Decimal | None:
        if self.before is None or self.after is None:
            return None
        with exact_decimals():
            return self.after - self.before


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows in the order of the recordings, their total, and why what is unknown is so, each cause once."""

    rows: tuple[Row, ...]
    total: Row
    unknown: tuple[str, ...]


def compare(pairs: Iterable[tuple[ModelCall, ModelCall]], price: Pricer) -> Comparison:
    """What calls cost as they were recorded, and as they would be."""
    unknown: dict[str, None] = {}
    groups: dict[tuple[str | None, str | None, str | None], list[Row]] = {}
    for before, after in pairs:
        model = before.model if after.priced_as is None else after.priced_as
        usage = before.usage
        row = Row(
            before.node,
            before.model,
            model,
            1,
            usage.total_tokens if usage is not None else None,
            _priced(before, price, unknown),
            _priced(after, price, unknown),
        )
        groups.setdefault((row.node, row.model, row.priced_as), []).append(row)
    rows = tuple(_sum(found) for found in groups.values())
    return Comparison(rows, dataclasses.replace(_sum(rows), node=None, model=None, priced_as=None), tuple(unknown))


def _priced(call: ModelCall, price: Pricer, unknown: dict[str, None]) -> Decimal | None:
    try:
        return price(call)
    except (LookupError, UsageUnknown) as error:
        unknown[str(error)] = None
        return None


def _sum(rows: Iterable[Row]) -> Row:
    found = list(rows)
    if not found:
        return Row(None, None, None, 0, 0, Decimal(0), Decimal(0))
    tokens = [row.tokens for row in found]
    with exact_decimals():
        return dataclasses.replace(
            found[0],
            calls=sum(row.calls for row in found),
            tokens=None if None in tokens else sum(count for count in tokens if count is not None),
            before=_usd([row.before for row in found]),
            after=_usd([row.after for row in found]),
        )


def _usd(amounts: list[Decimal | None]) -> Decimal | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known, Decimal(0)) if len(known) == len(amounts) else None
