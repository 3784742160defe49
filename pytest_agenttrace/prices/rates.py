"""Rates and the counts they are applied to: the arithmetic of a price, exact, without any table.

A rate is for what has at least its properties; of two that fit, the more special one counts. So input in audio is
billed by `input_audio` where there is such a rate, else by `input`; cached audio by `cached_audio`, and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import NamedTuple

from pytest_agenttrace.usage import Usage, exact_decimals

__all__ = [
    "MODALITIES",
    "PER_THOUSAND",
    "RATES",
    "TIERS",
    "TOKEN_RATES",
    "Billed",
    "Counts",
    "Entry",
    "Rate",
    "Rates",
    "bill_of",
    "count_of",
    "day_of",
    "entry_at",
    "missing_rates",
    "price_of",
]

# Modalities that some models have rates of their own for, by the API's names for what they hold. A document is
# billed as the images of its pages.
MODALITIES = {"audio": ("AUDIO",), "image": ("IMAGE", "DOCUMENT"), "video": ("VIDEO",)}

# USD per million tokens: each rate with the properties of what it is for.
TOKEN_RATES: dict[str, frozenset[str]] = {
    "input": frozenset({"input"}),
    "cached_input": frozenset({"input", "cached"}),
    "output": frozenset({"output"}),
    **{f"input_{part}": frozenset({"input", part}) for part in MODALITIES},
    **{f"cached_{part}": frozenset({"input", "cached", part}) for part in MODALITIES},
    **{f"output_{part}": frozenset({"output", part}) for part in MODALITIES},
}
# USD per thousand: Google's older models bill a grounded request once, the newer ones each query of it.
PER_THOUSAND = ("grounded_requests", "searches")
RATES = (*TOKEN_RATES, *PER_THOUSAND)
# What a call may be billed as beside the standard; provisioned throughput has no price by the token of its own.
TIERS = ("batch", "flex", "priority", "provisioned")

# Tokens, grounded requests and searches by the name of their rate; what nobody reported is left out.
Counts = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Rate:
    """USD per million tokens (or per thousand searches). `above` holds dearer rates for the whole of a call whose
    input has more tokens than so many, lowest first."""

    base: Decimal
    above: tuple[tuple[int, Decimal], ...] = ()

    def at(self, input_tokens: int) -> Decimal:
        """The rate for a call with so much input."""
        return next((price for start, price in reversed(self.above) if input_tokens > start), self.base)


Rates = Mapping[str, Rate]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a model costs from a day on (UTC; None: since ever). `tiers` holds the rates that another service tier
    replaces. `source` says which table it is from; None where a person has written it."""

    start: date | None
    rates: Rates
    tiers: Mapping[str, Rates] = field(default_factory=dict)
    source: str | None = None

    def rates_for(self, tier: str | None) -> Rates | None:
        """All rates of a service tier (None: standard); None where the tier has none."""
        if tier is None:
            return self.rates
        return {**self.rates, **self.tiers[tier]} if tier in self.tiers else None


def day_of(moment: datetime | None) -> date:
    """The day of a recording in UTC, as which a time without a zone is read; None is today."""
    if moment is None:
        return datetime.now(UTC).date()
    return (moment.astimezone(UTC) if moment.tzinfo is not None else moment).date()


def entry_at(entries: tuple[Entry, ...], day: date) -> Entry | None:
    """The entry in force on a day: the last that has begun."""
    begun = [entry for entry in entries if entry.start is None or entry.start <= day]
    return max(begun, key=lambda entry: entry.start or date.min, default=None)


def count_of(usage: Usage, searches: int = 0) -> dict[str, int]:
    """A usage by the names of the rates, each with all that has its properties: `input` holds `cached_input` too.
    `searches` are the queries that Google Search was asked."""
    sent, cached, produced = map(dict, (usage.input_modalities, usage.cache_modalities, usage.output_modalities))
    counts = {
        "input": usage.input_tokens,
        "output": usage.output_tokens,
        "cached_input": usage.cache_read_input_tokens,
        "grounded_requests": 1 if searches else None,
        "searches": searches or None,
    }
    for part, names in MODALITIES.items():
        # Details that name other modalities only, or no cached tokens at all: none of them is of this one.
        none_cached = 0 if _added(sent, names) is not None and (cached or usage.cache_read_input_tokens == 0) else None
        found = _added(cached, names)
        counts[f"input_{part}"] = _added(sent, names)
        counts[f"cached_{part}"] = none_cached if found is None else found
        counts[f"output_{part}"] = _added(produced, names)
    return {name: count for name, count in counts.items() if count is not None}


def _added(details: Mapping[str, int], names: tuple[str, ...]) -> int | None:
    found = [details[name] for name in names if name in details]
    return sum(found) if found else None


def missing_rates(names: Mapping[str, object]) -> tuple[str, str] | None:
    """A rate that is missing, and why; None where they are whole. What is left of a special rate is billed by the
    common ones, and what two of them fit needs one of its own."""
    given = [name for name in TOKEN_RATES if name in names]
    for name in given:
        for wider, properties in TOKEN_RATES.items():
            if properties < TOKEN_RATES[name] and wider not in names:
                return wider, f"{name} is a part of it"
    for part in MODALITIES:
        if "cached_input" in names and f"input_{part}" in names and f"cached_{part}" not in names:
            return f"cached_{part}", f"cached_input and input_{part} both fit it"
    return None


class Billed(NamedTuple):
    """So many of one kind, and USD per million of them (searches: per thousand)."""

    rate: str
    amount: int
    usd: Decimal

    @property
    def cost(self) -> Decimal:
        with exact_decimals():
            return self.usd * self.amount / (1000 if self.rate in PER_THOUSAND else 1_000_000)


def bill_of(rates: Rates, counts: Counts) -> list[Billed]:
    """What each rate is applied to, nothing included. Raises ValueError where counts contradict themselves, or do not
    tell what is asked of them."""
    used = _told_apart([name for name in TOKEN_RATES if name in rates], counts)
    used |= {name: counts.get(name, 0) for name in PER_THOUSAND if name in rates}
    return [Billed(name, count, rates[name].at(counts["input"])) for name, count in used.items()]


def price_of(rates: Rates, counts: Counts) -> Decimal:
    """USD of these counts. Raises ValueError as `bill_of` does."""
    with exact_decimals():
        return sum((billed.cost for billed in bill_of(rates, counts)), Decimal(0))


def _told_apart(names: list[str], counts: Counts) -> dict[str, int]:
    """How many tokens each rate is applied to: every token once, by the most special of its rates."""
    apart: dict[str, int] = {}
    for name in sorted(names, key=lambda name: -len(TOKEN_RATES[name])):
        special = [apart[other] for other in apart if TOKEN_RATES[name] < TOKEN_RATES[other]]
        apart[name] = _reported(name, counts) - sum(special)
        if apart[name] < 0:
            raise ValueError(f"the parts of {name} are more than it: {sum(special)} > {_reported(name, counts)}")
    return apart


def _reported(name: str, counts: Counts) -> int:
    """A count; 0 where nobody reported it and nothing says that there was any."""
    if name in counts:
        return counts[name]
    properties = TOKEN_RATES[name]
    told = [other for other, count in counts.items() if other in TOKEN_RATES and count > 0]
    if inner := [other for other in told if properties < TOKEN_RATES[other]]:
        raise ValueError(f"{name} is not reported, but {inner[0]} is")
    # One cached and one of audio: how much of the two is the same nobody knows.
    around = [TOKEN_RATES[other] for other in told if TOKEN_RATES[other] < properties]
    if any(
        first | second == properties and not (first <= second or second <= first)
        for first in around
        for second in around
    ):
        raise ValueError(f"{name} is not reported, and a part of the input may be of it")
    return 0
