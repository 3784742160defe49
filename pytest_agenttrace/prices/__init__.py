"""Usage -> USD: by a project's own file of prices, else by the dated table of genai-prices.

A call is priced at the date of its recording, so an update of the table does not change what a recorded run has cost;
where no date is known, at today's. With its rooms the only importer of genai_prices.
"""

from __future__ import annotations

import difflib
import itertools
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from pytest_agenttrace.calls import ModelCall
from pytest_agenttrace.prices.book import Book, PricesError, read_book, shown_path
from pytest_agenttrace.prices.comparing import Comparison, Row, compare
from pytest_agenttrace.prices.pinning import Locked, Used, lock
from pytest_agenttrace.prices.rates import Billed, Entry, Rates, bill_of, count_of, day_of, entry_at, price_of
from pytest_agenttrace.prices.table import Unlisted, nearest_in_table, table_price, table_rates
from pytest_agenttrace.usage import Usage, UsageUnknown, exact_decimals

__all__ = [
    "Billed",
    "Comparison",
    "Locked",
    "PriceNotFound",
    "Prices",
    "PricesError",
    "Row",
    "Used",
    "compare",
    "lock",
    "names_of",
    "price_call",
    "price_usage",
    "read_prices",
    "used_by",
]


class PriceNotFound(LookupError):
    """No price is known for a model; names the model and the node that called it, and the lines to add."""


def names_of(call: ModelCall) -> tuple[str, ...]:
    """The names a call may be priced by. The model that answered (`modelVersion`) comes first, so an alias such as
    `gemini-flash-latest` costs what it was; then the model asked for."""
    if call.priced_as is not None:
        return (call.priced_as,)
    answered = call.call.model_version if call.call else None
    return tuple(dict.fromkeys(name.removeprefix("models/") for name in (answered, call.model) if name))


def used_by(call: ModelCall) -> Used:
    """What `lock` is told of a call."""
    return Used(tuple(name.lower() for name in names_of(call)), day_of(call.recorded_at))


class Prices:
    """Prices calls: USD of one model call, exact. What the file lists is priced by the file alone, anything else by
    the table, unless the file says `only`.

    Raises `PriceNotFound` for an unpriced model, `UsageUnknown` where the usage is not known.
    """

    def __init__(self, book: Book | None = None) -> None:
        self._book = book

    def __call__(self, call: ModelCall) -> Decimal:
        if call.usage is None:
            raise UsageUnknown(f"{call.node or 'a call'}: {call.model} reported no usage")
        names, tier = names_of(call), self._tier(call)
        date = call.recorded_at
        for name in names:
            if (entries := self._own(name, call)) is not None:
                try:
                    return _by_file(name, entries, call.usage, date, call.searches, tier)
                except Unlisted as error:
                    raise self._not_found(call, (name,), str(error)) from None
        # What never touched Gemini's wire may be of any provider: the table knows whose model it is.
        providers = ("google",) if call.call is not None or call.priced_as else ("google", None)
        said = "" if self._book is None or not self._book.only else f" in {shown_path(self._book.path)}"
        for name, provider in itertools.product(names, providers) if not said else ():
            try:
                return _by_table(name, call.usage, date, provider, call.searches, tier)
            except Unlisted as error:
                said = said or str(error)
        raise self._not_found(call, names, said)

    def bill(self, call: ModelCall) -> tuple[Billed, ...]:
        """What the price of a call is the sum of, to the last digit; empty where it has none, or not by rates alone."""
        try:
            cost, rates = self(call), self._rates(call)
            lines = bill_of(rates, count_of(call.usage or Usage(), call.searches)) if rates is not None else []
        except (LookupError, UsageUnknown, ValueError):
            return ()
        with exact_decimals():
            whole = sum((line.cost for line in lines), Decimal(0)) == cost
        return tuple(lines) if whole else ()

    def _rates(self, call: ModelCall) -> Rates | None:
        """The rates that a call is priced by, found in the order in which prices are."""
        names, tier = names_of(call), self._tier(call)
        for name in names:
            if (entries := self._own(name, call)) is not None:
                entry = entry_at(entries, day_of(call.recorded_at))
                return entry.rates_for(tier) if entry is not None else None
        providers = ("google",) if call.call is not None or call.priced_as else ("google", None)
        for name, provider in itertools.product(names, providers):
            with suppress(Unlisted):
                return table_rates(name, call.recorded_at, provider, tier)
        return None

    def _own(self, name: str, call: ModelCall) -> tuple[Entry, ...] | None:
        """The file's entries for a model. Pins keep verdicts as they are; who asks what another day would have cost
        asks the table, and what people have written themselves."""
        entries = self._book.models.get(name.lower()) if self._book is not None else None
        if self._book is None or entries is None or call.priced_at is None or self._book.only:
            return entries
        return tuple(entry for entry in entries if entry.source is None) or None

    def _tier(self, call: ModelCall) -> str | None:
        told = call.call.tier if call.call is not None else None
        if self._book is not None and self._book.tier is not None:
            told = self._book.tier
        return None if told == "standard" else told

    def _not_found(self, call: ModelCall, names: tuple[str, ...], said: str) -> PriceNotFound:
        where = f"{call.node}: " if call.node else ""
        if not names:
            return PriceNotFound(f"{where}no price is known for a call that names no model")
        near = self._nearest(call.priced_as) if call.priced_as is not None and not said else []
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        tier = self._tier(call)
        return PriceNotFound(
            f"{where}no price is known for {' or '.join(map(repr, names))}{said}{hint}\n" + self._lines(names[0], tier)
        )

    def _nearest(self, name: str) -> list[str]:
        known = list(self._book.models) if self._book is not None else []
        found = [] if self._book is not None and self._book.only else nearest_in_table(name)
        return difflib.get_close_matches(name, [*known, *found], n=2)

    def _lines(self, name: str, tier: str | None) -> str:
        """The lines to add, with the amounts left open."""
        rates = ["input: USD", "output: USD"]
        rates += [f"{tier}:", *(f"  {rate}" for rate in rates)] if tier is not None else []
        lines = [f"{name}:", *(f"{'    ' if index else '  - '}{rate}" for index, rate in enumerate(rates))]
        if self._book is None:
            to = "Give it one in a file that agenttrace_prices names"
            lines = ["format: 1", "models:", *(f"  {line}" for line in lines)]
        else:
            to = f"Give it one in {shown_path(self._book.path)}, below models"
        return "\n".join([f"  {to}, in USD per million tokens:", *(f"    {line}" for line in lines)])


def read_prices(path: Path) -> Prices:
    """Prices by a file. Raises `PricesError`, one line with the place and the way out, for a file that is no such."""
    return Prices(read_book(path))


def price_call(call: ModelCall) -> Decimal:
    """USD of one model call by the table; see `Prices`."""
    return Prices()(call)


def price_usage(
    model: str,
    usage: Usage,
    date: datetime | None,
    *,
    provider: str | None = "google",
    searches: int = 0,
    tier: str | None = None,
) -> Decimal:
    """USD of a usage on a model at a date (None: today), by the table. Thoughts are billed as output, a tool's prompt
    as input; cached input, audio and images have their own rates, tiers go by the input's size.

    `provider` is genai-prices' name of whose model it is; None lets the table tell by the model. `searches` are the
    queries that Google Search was asked, `tier` is "batch", "flex" or "priority". What the table lists without rates,
    or not at this tier, has no price.
    """
    try:
        return _by_table(model.removeprefix("models/"), usage, date, provider, searches, tier)
    except Unlisted as error:
        raise PriceNotFound(f"no price is known for {model!r}{error}") from None


def _by_table(
    model: str, usage: Usage, date: datetime | None, provider: str | None, searches: int, tier: str | None
) -> Decimal:
    counts = _counts(model, usage, searches)
    try:
        return table_price(model, tuple(counts.items()), date, provider, tier)
    except ValueError as error:
        raise _contradiction(model, error) from None


def _by_file(
    model: str, entries: tuple[Entry, ...], usage: Usage, date: datetime | None, searches: int, tier: str | None
) -> Decimal:
    entry = entry_at(entries, day_of(date))
    if entry is None:
        first = min(entry.start for entry in entries if entry.start is not None)
        raise Unlisted(f" on {day_of(date)}: the file's first price is from {first}")
    rates = entry.rates_for(tier)
    if rates is None:
        raise Unlisted(f" at service tier {tier!r}")
    counts = _counts(model, usage, searches)
    if counts["output"] > 0 and "output" not in rates:
        raise Unlisted(": the file has no rate for its output")
    try:
        return price_of(rates, counts)
    except ValueError as error:
        raise _contradiction(model, error) from None


def _counts(model: str, usage: Usage, searches: int) -> dict[str, int]:
    if usage.input_tokens is None or usage.output_tokens is None:
        raise UsageUnknown(f"{model}: input or output tokens were not reported")
    return count_of(usage, searches)


def _contradiction(model: str, error: ValueError) -> UsageUnknown:
    return UsageUnknown(f"{model}: the reported usage cannot be priced: {error}")
