"""Usage -> USD, by the dated price table of genai-prices (its only importer).

The table is bundled: nothing is dialled. A call is priced at the date of its recording, so an
update of the table does not change what a recorded run has cost; where no date is known, at today's.
"""

from __future__ import annotations

import functools
import itertools
from datetime import datetime
from decimal import Decimal

from pytest_agenttrace.calls import ModelCall
from pytest_agenttrace.usage import Usage, UsageUnknown, exact_decimals

__all__ = ["PriceNotFound", "price_call", "price_usage"]

# Modalities that some models have rates of their own for.
_PRICED_APART = ("AUDIO", "IMAGE", "VIDEO")


class PriceNotFound(LookupError):
    """No price is known for a model; names the model and the node that called it."""


def price_call(call: ModelCall) -> Decimal:
    """USD of one model call, exact. The model that answered (`modelVersion`) is priced where it has a
    price, so an alias such as `gemini-flash-latest` costs what it was; else the model asked for.

    Raises `PriceNotFound` for an unpriced model, `UsageUnknown` where the usage is not known.
    """
    if call.usage is None:
        raise UsageUnknown(f"{call.node or 'a call'}: {call.model} reported no usage")
    answered = call.call.model_version if call.call else None
    names = [name for name in dict.fromkeys((answered, call.model)) if name]
    # What never touched Gemini's wire may be of any provider: the table knows whose model it is.
    providers = ("google",) if call.call is not None else ("google", None)
    for name, provider in itertools.product(names, providers):
        try:
            return price_usage(name, call.usage, call.recorded_at, provider=provider)
        except PriceNotFound:
            continue
    where = f"{call.node}: " if call.node else ""
    raise PriceNotFound(f"{where}no price is known for {' or '.join(map(repr, names)) or 'a call that names no model'}")


def price_usage(model: str, usage: Usage, date: datetime | None, *, provider: str | None = "google") -> Decimal:
    """USD of a usage on a model at a date (None: today). Thoughts are billed as output, a tool's
    prompt as input; cached input, audio and images have their own rates, tiers go by the input's size.

    `provider` is genai-prices' name of whose model it is; None lets the table tell by the model.
    A model that the table lists without rates has no price.
    """
    if usage.input_tokens is None or usage.output_tokens is None:
        raise UsageUnknown(f"{model}: input or output tokens were not reported")
    try:
        price = _priced(model.removeprefix("models/"), _counts(usage), date, provider)
    except LookupError:
        raise PriceNotFound(f"no price is known for {model!r}") from None
    except ValueError as error:
        raise UsageUnknown(f"{model}: the reported usage cannot be priced: {error}") from None
    if price == 0 and usage.input_tokens + usage.output_tokens > 0:
        raise PriceNotFound(f"no price is known for {model!r}: the table lists it without rates")
    return price


def _counts(usage: Usage) -> tuple[tuple[str, int], ...]:
    """The counts by the names of genai-prices; what nobody reported is left out."""
    sent, cached, produced = map(dict, (usage.input_modalities, usage.cache_modalities, usage.output_modalities))
    counts = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_input_tokens,
    }
    for modality in _PRICED_APART:
        part = modality.lower()
        # Details that name other modalities only, or no cached tokens at all: none of them is of this one.
        none_cached = 0 if modality in sent and (cached or usage.cache_read_input_tokens == 0) else None
        counts[f"input_{part}_tokens"] = sent.get(modality)
        counts[f"cache_{part}_read_tokens"] = cached.get(modality, none_cached)
        counts[f"output_{part}_tokens"] = produced.get(modality)
    return tuple((name, count) for name, count in counts.items() if count is not None)


@functools.lru_cache(maxsize=4096)
def _priced(model: str, counts: tuple[tuple[str, int], ...], date: datetime | None, provider: str | None) -> Decimal:
    from genai_prices import Usage as TableUsage
    from genai_prices import calc_price

    usage = TableUsage(**dict(counts))
    with exact_decimals():
        return calc_price(usage, model, provider_id=provider, genai_request_timestamp=date).total_price
