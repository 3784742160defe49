"""The dated price table of genai-prices, bundled with it: nothing is dialled. Its only importer."""

from __future__ import annotations

import difflib
import functools
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.prices.rates import PER_THOUSAND, Entry, Rate, Rates
from pytest_agenttrace.usage import exact_decimals

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

__all__ = ["Unlisted", "entry_in_table", "nearest_in_table", "table_price", "table_rates", "table_version"]

# Our rates by genai-prices' names: the counts it takes, and the prices it gives.
_USAGE_KEYS = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cached_input": "cache_read_tokens",
    **{f"input_{part}": f"input_{part}_tokens" for part in ("audio", "image", "video")},
    **{f"cached_{part}": f"cache_{part}_read_tokens" for part in ("audio", "image", "video")},
    **{f"output_{part}": f"output_{part}_tokens" for part in ("audio", "image", "video")},
}
_PRICE_KEYS = {name: f"{key.removesuffix('_tokens')}_mtok" for name, key in _USAGE_KEYS.items()}
_SEARCHES = "web_searches_kcount"
# What tells genai-prices of a service tier. It has none for provisioned throughput.
_CONTEXTS = {
    "batch": {"processing": "batch"},
    "flex": {"service_tier": "flex"},
    "priority": {"service_tier": "priority"},
}
_ANY_MODEL = "gemini-2.5-flash"


class Unlisted(LookupError):
    """The table has no price; the text goes on after `no price is known for 'MODEL'`, and may be empty."""


@functools.lru_cache(maxsize=4096)
def table_price(
    model: str, counts: tuple[tuple[str, int], ...], date: datetime | None, provider: str | None, tier: str | None
) -> Decimal:
    """USD of `rates.count_of` a usage at a date (None: today). Raises `Unlisted`, and ValueError for counts that
    contradict themselves."""
    from genai_prices import Usage as TableUsage
    from genai_prices import calc_price

    given = dict(counts)
    found = _find(model, provider)
    moment = date or datetime.now(UTC)
    context = _context(found, tier, moment)
    usage = TableUsage(**{_USAGE_KEYS[name]: count for name, count in given.items() if name in _USAGE_KEYS})
    prices = found.get_prices(moment, context)
    if not any(getattr(prices, key, None) is not None for key in _PRICE_KEYS.values()):
        raise Unlisted(": the table lists it without rates")
    if given["output"] > 0 and getattr(prices, "output_mtok", None) is None:
        raise Unlisted(": the table has no rate for its output")
    if searches := given.get(_search_unit(found.id)):
        usage.web_searches = searches
    with exact_decimals():
        return calc_price(
            usage, model, provider_id=provider, genai_request_timestamp=moment, price_context=context
        ).total_price


def table_rates(model: str, date: datetime | None, provider: str | None, tier: str | None) -> Rates:
    """The rates that `table_price` applies. Raises `Unlisted`."""
    found = _find(model, provider)
    moment = date or datetime.now(UTC)
    return _rates(found.get_prices(moment, _context(found, tier, moment)), found.id)


def _find(model: str, provider: str | None) -> ModelInfo:
    from genai_prices import Usage as TableUsage
    from genai_prices import calc_price

    try:
        return calc_price(TableUsage(), model, provider_id=provider).model
    except LookupError:
        raise Unlisted("") from None


def _context(model: ModelInfo, tier: str | None, moment: datetime) -> dict[str, str] | None:
    """What the table has to be told to give a service tier's prices."""
    if tier is None:
        return None
    context = _CONTEXTS.get(tier)
    if context is None or not _variants(model, tier, moment):
        why = ": it is billed by capacity" if tier == "provisioned" else ""
        raise Unlisted(f" at service tier {tier!r}{why}")
    return context


def _variants(model: ModelInfo, tier: str, moment: datetime) -> list[Any]:
    return [
        variant
        for variant in model.price_variants or ()
        if variant.when == _CONTEXTS[tier] and (variant.constraint is None or variant.constraint.active(moment))
    ]


def _search_unit(model: str) -> str:
    """What a model's web searches are counted in. Google's price list: up to Gemini 2.5 by grounded prompt, since
    Gemini 3 by query; the table has one number for both."""
    return "grounded_requests" if model.startswith("gemini-2.") else "searches"


def entry_in_table(model: str, day: date) -> Entry | None:
    """What the table has in force for a model of Google's on a day, to be pinned; None where it has no price."""
    moment = datetime.combine(day, time(), UTC)
    try:
        found = _find(model, "google")
    except Unlisted:
        return None
    rates = _rates(found.get_prices(moment), found.id)
    if not any(name not in PER_THOUSAND for name in rates):
        return None
    tiers: dict[str, Rates] = {}
    for tier, context in _CONTEXTS.items():
        if _variants(found, tier, moment):
            own = _rates(found.get_prices(moment, context), found.id)
            tiers[tier] = {name: rate for name, rate in own.items() if rate != rates.get(name)}
    return Entry(_start(found, day), rates, tiers, table_version())


def _start(model: ModelInfo, day: date) -> date | None:
    """Since when all that is in force on a day has been."""
    dated = [*(model.prices if isinstance(model.prices, list) else ()), *(model.price_variants or ())]
    starts = [getattr(price.constraint, "start_date", None) for price in dated]
    return max((start for start in starts if start is not None and start <= day), default=None)


def _rates(prices: Any, model: str) -> dict[str, Rate]:
    keys = _PRICE_KEYS | {_search_unit(model): _SEARCHES}
    found = {name: getattr(prices, key, None) for name, key in keys.items()}
    return {name: _rate(price) for name, price in found.items() if price is not None}


def _rate(price: Any) -> Rate:
    if isinstance(price, Decimal):
        return Rate(price)
    return Rate(price.base, tuple((tier.start, tier.price) for tier in price.tiers))


def table_version() -> str:
    """`genai-prices 0.2.3`."""
    from importlib.metadata import version

    return f"genai-prices {version('genai-prices')}"


def nearest_in_table(model: str) -> list[str]:
    """The names of Google's models that look most like this one."""
    from genai_prices import Usage as TableUsage
    from genai_prices import calc_price

    known = [found.id for found in calc_price(TableUsage(), _ANY_MODEL, provider_id="google").provider.models]
    return difflib.get_close_matches(model, known, n=3)
