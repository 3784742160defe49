"""Prices against arithmetic done by hand, from Google's price list in USD per million tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from typing import Any

import pytest

from pytest_agenttrace.calls import ModelCall
from pytest_agenttrace.prices import PriceNotFound, price_call, price_usage
from pytest_agenttrace.usage import Usage, UsageUnknown
from tests.handmade import FLASH, Run, call, tokens

SUMMER_2025 = datetime(2025, 7, 1, tzinfo=UTC)


def seen(usage: Usage | None, *, model: str | None = FLASH, node: str | None = "write", **wire: Any) -> ModelCall:
    made = call(1, Run().node("write", None, 1, "write:1"), usage, model=model, **wire)
    return ModelCall(model, node, "write:1", usage, call=made)


@pytest.mark.parametrize(
    ("model", "usage", "usd"),
    [
        # 150 x 0.075 + 500 x 0.30 = 11.25 + 150
        ("gemini-1.5-flash", tokens(150, 500), "0.00016125"),
        # 1,000 x 0.30 + 100 x 2.50 = 300 + 250
        ("gemini-2.5-flash", tokens(1000, 100), "0.00055"),
        ("models/gemini-2.5-flash", tokens(1000, 100), "0.00055"),
        ("gemini-2.5-flash", tokens(0, 0), "0"),
        # 100 x 0.30 + (30 said + 112 thought) x 2.50 = 30 + 355
        ("gemini-2.5-flash", Usage(100, 142, 242, thoughts_tokens=112), "0.000385"),
        # (100 prompt + 20 of a tool) x 0.30 + 10 x 2.50 = 36 + 25
        ("gemini-2.5-flash", Usage(120, 10, 130, tool_use_tokens=20), "0.000061"),
        # 600 x 0.30 + 400 cached x 0.03 + 100 x 2.50 = 180 + 12 + 250
        ("gemini-2.5-flash", Usage(1000, 100, 1100, 400), "0.000442"),
        # all of it cached: 1,000 x 0.03 = 30
        ("gemini-2.5-flash", Usage(1000, 0, 1000, 1000), "0.00003"),
        # up to 200,000 tokens: 200,000 x 1.25 + 100 x 10 = 250,000 + 1,000
        ("gemini-2.5-pro", tokens(200_000, 100), "0.251"),
        # above: 200,001 x 2.50 + 100 x 15 = 500,002.5 + 1,500
        ("gemini-2.5-pro", tokens(200_001, 100), "0.5015025"),
        # 300,000 x 2.50 + 1,000 x 15 = 750,000 + 15,000
        ("gemini-2.5-pro", tokens(300_000, 1000), "0.765"),
        # 200,000 x 2.50 + 100,000 cached x 0.25 + 1,000 x 15 = 500,000 + 25,000 + 15,000
        ("gemini-2.5-pro", Usage(300_000, 1000, 301_000, 100_000), "0.54"),
        # long output alone is no long context: 100 x 1.25 + 300,000 x 10 = 125 + 3,000,000
        ("gemini-2.5-pro", tokens(100, 300_000), "3.000125"),
        # 1,000 x 0.15
        ("gemini-embedding-001", tokens(1000, 0), "0.00015"),
    ],
)
def test_prices_computed_by_hand(model: str, usage: Usage, usd: str) -> None:
    assert price_usage(model, usage, SUMMER_2025) == Decimal(usd)


def parts(**modalities: int) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(modalities.items()))


@pytest.mark.parametrize(
    ("model", "usage", "usd"),
    [
        # 600 x 0.30 + 400 of audio x 1.00 + 100 x 2.50 = 180 + 400 + 250
        (FLASH, Usage(1000, 100, 1100, input_modalities=parts(TEXT=600, AUDIO=400)), "0.00083"),
        # images cost what text costs: 1,000 x 0.30 + 100 x 2.50
        (FLASH, Usage(1000, 100, 1100, input_modalities=parts(TEXT=600, IMAGE=400)), "0.00055"),
        # text 400 x 0.30 + 100 cached x 0.03, audio 400 x 1.00 + 100 cached x 0.10, 100 x 2.50:
        # 120 + 3 + 400 + 10 + 250
        (
            FLASH,
            Usage(
                *(1000, 100, 1100, 200),
                input_modalities=parts(TEXT=500, AUDIO=500),
                cache_modalities=parts(TEXT=100, AUDIO=100),
            ),
            "0.000783",
        ),
        # only text was cached: 400 x 0.30 + 100 x 0.03 + 500 of audio x 1.00 + 100 x 2.50 = 120 + 3 + 500 + 250
        (
            FLASH,
            Usage(
                *(1000, 100, 1100, 100),
                input_modalities=parts(TEXT=500, AUDIO=500),
                cache_modalities=parts(TEXT=100),
            ),
            "0.000873",
        ),
        # nothing was cached, and said so: 500 x 0.30 + 500 x 1.00 + 100 x 2.50 = 150 + 500 + 250
        (FLASH, Usage(1000, 100, 1100, 0, input_modalities=parts(TEXT=500, AUDIO=500)), "0.0009"),
        # a drawn image is dearer than text: 1,000 x 0.30 + 1,290 x 30 + 10 x 2.50 = 300 + 38,700 + 25
        ("gemini-2.5-flash-image", Usage(1000, 1300, 2300, output_modalities=parts(TEXT=10, IMAGE=1290)), "0.039025"),
    ],
)
def test_audio_and_images_have_their_own_rates(model: str, usage: Usage, usd: str) -> None:
    assert price_usage(model, usage, SUMMER_2025) == Decimal(usd)


@pytest.mark.parametrize(
    ("day", "usd"),
    [
        # 1,000 x 0.75 + 100 x 3.75 = 750 + 375, and twice that from 2027
        (datetime(2026, 12, 31, tzinfo=UTC), "0.001125"),
        (datetime(2027, 1, 1, tzinfo=UTC), "0.00225"),
        (datetime(2027, 1, 1), "0.00225"),
    ],
)
def test_a_call_is_priced_at_the_date_of_its_recording(day: datetime, usd: str) -> None:
    assert price_call(seen(tokens(1000, 100), model="gemini-3.6-flash", recorded_at=day)) == Decimal(usd)


def test_without_a_date_it_is_todays_price() -> None:
    today = price_usage("gemini-3.6-flash", tokens(1000, 100), datetime.now(UTC))
    assert price_call(seen(tokens(1000, 100), model="gemini-3.6-flash")) == today
    # No call on the wire, so nothing has a date: a fake, or another provider's model.
    assert price_call(ModelCall(FLASH, "write", None, tokens(1000, 100))) == Decimal("0.00055")


@pytest.mark.parametrize(
    ("asked", "answered", "usd"),
    [
        # the alias is priced as the model that answered: gemini-2.5-flash
        ("gemini-flash-latest", "gemini-2.5-flash", "0.00055"),
        # gemini-2.5-flash-lite: 1,000 x 0.10 + 100 x 0.40 = 100 + 40
        ("gemini-2.5-flash", "gemini-2.5-flash-lite", "0.00014"),
        ("gemini-2.5-flash", "gemini-99-secret", "0.00055"),
        ("gemini-2.5-flash", None, "0.00055"),
        ("my-tuned-model", "models/gemini-2.5-flash", "0.00055"),
        (None, "gemini-2.5-flash", "0.00055"),
    ],
)
def test_the_model_that_answered_is_priced_where_it_has_a_price(
    asked: str | None, answered: str | None, usd: str
) -> None:
    made = seen(tokens(1000, 100), model=asked, model_version=answered, recorded_at=SUMMER_2025)
    assert price_call(made) == Decimal(usd)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "gemini-99"}, "write: no price is known for 'gemini-99'"),
        (
            {"model": "gemini-99", "model_version": "gemini-99-001"},
            "write: no price is known for 'gemini-99-001' or 'gemini-99'",
        ),
        ({"model": "gemini-99", "model_version": "gemini-99"}, "write: no price is known for 'gemini-99'"),
        ({"model": "gpt-4o", "node": None}, "no price is known for 'gpt-4o'"),
        ({"model": None}, "write: no price is known for a call that names no model"),
        ({"model": ""}, "write: no price is known for a call that names no model"),
    ],
)
def test_a_model_without_a_price_is_never_free(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(PriceNotFound) as caught:
        price_call(seen(tokens(1000, 100), **fields))
    assert str(caught.value).splitlines()[0] == said
    assert isinstance(caught.value, LookupError)


def test_a_usage_on_a_model_without_a_price() -> None:
    with pytest.raises(PriceNotFound) as caught:
        price_usage("gemini-99", tokens(1, 1), None)
    assert str(caught.value) == "no price is known for 'gemini-99'"


def test_unknown_usage_is_never_free() -> None:
    with pytest.raises(UsageUnknown) as caught:
        price_call(seen(None))
    assert str(caught.value) == "write: gemini-2.5-flash reported no usage"
    for usage in (Usage(total_tokens=9), Usage(input_tokens=1), Usage(output_tokens=1)):
        with pytest.raises(UsageUnknown) as caught:
            price_call(seen(usage))
        assert str(caught.value) == "gemini-2.5-flash: input or output tokens were not reported"


@pytest.mark.parametrize(
    "usage",
    [
        Usage(1000, 100, 1100, 2000),
        Usage(1000, 100, 1100, input_modalities=parts(AUDIO=2000)),
        # some of the audio may have been cached, at another rate
        Usage(1000, 100, 1100, 100, input_modalities=parts(TEXT=500, AUDIO=500)),
    ],
)
def test_a_usage_that_contradicts_itself_is_not_guessed_at(usage: Usage) -> None:
    with pytest.raises(UsageUnknown, match=r"^gemini-2\.5-flash: the reported usage cannot be priced: "):
        price_usage(FLASH, usage, SUMMER_2025)


def test_a_price_is_not_rounded_by_the_context_of_the_program() -> None:
    # 1,234,567 x 0.30 + 7 x 2.50 = 370,370.1 + 17.5
    usage = tokens(1_234_567, 7)
    with localcontext(Context(prec=3)):
        assert price_usage(FLASH, usage, SUMMER_2025) == Decimal("0.3703876")
    assert price_usage(FLASH, usage, SUMMER_2025) == Decimal("0.3703876")
