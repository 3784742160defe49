"""Prices against arithmetic done by hand, from Google's price list in USD per million tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_agenttrace.calls import ModelCall
from pytest_agenttrace.prices import PriceNotFound, Prices, price_call, price_usage
from pytest_agenttrace.usage import Usage, UsageUnknown, exact_decimals
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
        # 200,001 of which 50,000 cached, and (400 said + 600 thought) out, all at the rates of long contexts:
        # 150,001 x 2.50 + 50,000 x 0.25 + 1,000 x 15 = 375,002.5 + 12,500 + 15,000
        ("gemini-2.5-pro", Usage(200_001, 1000, 201_001, 50_000, thoughts_tokens=600), "0.4025025"),
        # up to 200,000 of which 50,000 cached: 150,000 x 1.25 + 50,000 x 0.125 + 1,000 x 10 = 187,500 + 6,250 + 10,000
        ("gemini-2.5-pro", Usage(200_000, 1000, 201_000, 50_000, thoughts_tokens=600), "0.20375"),
        # a tool's prompt counts for the size: (199,990 + 11 of a tool) x 2.50 + 1 x 15 = 500,002.5 + 15
        ("gemini-2.5-pro", Usage(200_001, 1, 200_002, tool_use_tokens=11), "0.5000175"),
        # 1,000 x 0.10 + 100 x 0.40 = 100 + 40
        ("gemini-2.5-flash-lite", tokens(1000, 100), "0.00014"),
        # 700 x 0.10 + 300 cached x 0.01 + 100 x 0.40 = 70 + 3 + 40
        ("gemini-2.5-flash-lite", Usage(1000, 100, 1100, 300), "0.000113"),
        # up to 200,000: 1,000 x 2 + 500 x 12 = 2,000 + 6,000
        ("gemini-3-pro-preview", tokens(1000, 500), "0.008"),
        # above: 150,000 x 4 + 60,000 cached x 0.40 + 500 x 18 = 600,000 + 24,000 + 9,000
        ("gemini-3-pro-preview", Usage(210_000, 500, 210_500, 60_000), "0.633"),
        # 1,000 x 0.10 + 100 x 0.40 = 100 + 40
        ("gemini-2.0-flash", tokens(1000, 100), "0.00014"),
        # above 128,000 it doubles: 128,001 x 0.15 + 10 x 0.60 = 19,200.15 + 6
        ("gemini-1.5-flash", tokens(128_001, 10), "0.01920615"),
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
        # flash-lite, half of it audio, cached in part: text 400 x 0.10 + 100 x 0.01, audio 450 x 0.30 + 50 x 0.03,
        # 100 x 0.40: 40 + 1 + 135 + 1.5 + 40
        (
            "gemini-2.5-flash-lite",
            Usage(
                *(1000, 100, 1100, 150),
                input_modalities=parts(TEXT=500, AUDIO=500),
                cache_modalities=parts(TEXT=100, AUDIO=50),
            ),
            "0.0002175",
        ),
        # an embedding of text, a picture and the pages of a document: 100 x 0.20 + (258 + 516) x 0.45 = 20 + 348.3
        (
            "gemini-embedding-2",
            Usage(874, 0, 874, input_modalities=parts(TEXT=100, IMAGE=258, DOCUMENT=516)),
            "0.0003683",
        ),
        # of sound and film: 10 x 0.20 + 100 x 6.50 + 200 x 12 = 2 + 650 + 2,400
        ("gemini-embedding-2", Usage(310, 0, 310, input_modalities=parts(TEXT=10, AUDIO=100, VIDEO=200)), "0.003052"),
        # spoken: 100 x 0.75 + 50 of audio x 3 + 40 x 4.50 + 60 spoken x 12 = 75 + 150 + 180 + 720
        (
            "gemini-3.1-flash-live-preview",
            Usage(150, 100, 250, input_modalities=parts(TEXT=100, AUDIO=50), output_modalities=parts(AUDIO=60)),
            "0.001125",
        ),
        # a drawn image is dearer than text: 1,000 x 0.30 + 1,290 x 30 + 10 x 2.50 = 300 + 38,700 + 25
        ("gemini-2.5-flash-image", Usage(1000, 1300, 2300, output_modalities=parts(TEXT=10, IMAGE=1290)), "0.039025"),
    ],
)
def test_audio_and_images_have_their_own_rates(model: str, usage: Usage, usd: str) -> None:
    assert price_usage(model, usage, SUMMER_2025) == Decimal(usd)


LATE_2026 = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("model", "date", "searches", "usd"),
    [
        # up to Gemini 2.5 a grounded request costs 35 / 1,000, however many queries it took:
        # 1,000 x 0.30 + 100 x 2.50 = 550, and 0.035
        ("gemini-2.5-flash", SUMMER_2025, 0, "0.00055"),
        ("gemini-2.5-flash", SUMMER_2025, 1, "0.03555"),
        ("gemini-2.5-flash", SUMMER_2025, 3, "0.03555"),
        # since Gemini 3 each query costs 14 / 1,000: 1,000 x 0.50 + 100 x 3 = 800, and 3 x 0.014
        ("gemini-3-flash-preview", LATE_2026, 1, "0.0148"),
        ("gemini-3-flash-preview", LATE_2026, 3, "0.0428"),
        # before 2026-01-05 it was free
        ("gemini-3-flash-preview", SUMMER_2025, 3, "0.0008"),
        # the table knows no price of this model's searches: they are left out
        ("gemini-1.5-flash", SUMMER_2025, 3, "0.000105"),
    ],
)
def test_searches_cost_what_the_table_says(model: str, date: datetime, searches: int, usd: str) -> None:
    assert price_usage(model, tokens(1000, 100), date, searches=searches) == Decimal(usd)
    assert price_call(seen(tokens(1000, 100), model=model, recorded_at=date, searches=searches)) == Decimal(usd)


@pytest.mark.parametrize(
    ("model", "usage", "tier", "usd"),
    [
        # half of 1,000 x 0.30 + 100 x 2.50
        ("gemini-2.5-flash", tokens(1000, 100), "batch", "0.000275"),
        # cached input stays at its standard rate: 600 x 0.15 + 400 x 0.03 + 100 x 1.25 = 90 + 12 + 125
        ("gemini-2.5-flash", Usage(1000, 100, 1100, 400), "batch", "0.000227"),
        # audio at half: 1,000 x 0.50 + 100 x 1.25
        ("gemini-2.5-flash", Usage(1000, 100, 1100, 0, input_modalities=parts(AUDIO=1000)), "batch", "0.000625"),
        # above 200,000: 300,000 x 1.25 + 1,000 x 7.50 = 375,000 + 7,500
        ("gemini-2.5-pro", tokens(300_000, 1000), "batch", "0.3825"),
        # 1,000 x 0.25 + 100 x 4.50, and 1.8 times the standard 1,000 x 0.50 + 100 x 9
        ("gemini-3.8-flash-tts", tokens(1000, 100), "flex", "0.0007"),
        ("gemini-3.8-flash-tts", tokens(1000, 100), "priority", "0.00252"),
        ("gemini-3.8-flash-tts", tokens(1000, 100), "standard", "0.0014"),
        ("gemini-3.8-flash-tts", tokens(1000, 100), None, "0.0014"),
    ],
)
def test_a_call_costs_what_its_service_tier_costs(model: str, usage: Usage, tier: str | None, usd: str) -> None:
    assert price_call(seen(usage, model=model, recorded_at=LATE_2026, tier=tier)) == Decimal(usd)


@pytest.mark.parametrize(
    ("tier", "date", "said"),
    [
        ("priority", LATE_2026, " at service tier 'priority'"),
        # the table knows batch prices from 2026-10-14 on
        ("batch", SUMMER_2025, " at service tier 'batch'"),
        ("provisioned", LATE_2026, " at service tier 'provisioned': it is billed by capacity"),
        ("turbo", LATE_2026, " at service tier 'turbo'"),
    ],
)
def test_a_service_tier_without_a_rate_is_not_the_standard_price(tier: str, date: datetime, said: str) -> None:
    with pytest.raises(PriceNotFound) as caught:
        price_call(seen(tokens(1000, 100), recorded_at=date, tier=tier))
    assert str(caught.value) == (
        f"write: no price is known for 'gemini-2.5-flash'{said}\n"
        "  Give it one in a file that agenttrace_prices names, in USD per million tokens:\n"
        "    format: 1\n"
        "    models:\n"
        "      gemini-2.5-flash:\n"
        "        - input: USD\n"
        "          output: USD\n"
        f"          {tier}:\n"
        "            input: USD\n"
        "            output: USD"
    )


@pytest.mark.parametrize(
    ("model", "usage", "said"),
    [
        ("gemma-4-31b-it", tokens(10, 10), "no price is known for 'gemma-4-31b-it': the table lists it without rates"),
        (
            "gemini-embedding-001",
            tokens(10, 10),
            "no price is known for 'gemini-embedding-001': the table has no rate for its output",
        ),
    ],
)
def test_what_the_table_has_no_rate_for_is_not_free(model: str, usage: Usage, said: str) -> None:
    with pytest.raises(PriceNotFound) as caught:
        price_usage(model, usage, SUMMER_2025)
    assert str(caught.value) == said


COUNTS = st.integers(0, 100_000)


@given(COUNTS, COUNTS, COUNTS, COUNTS, st.sampled_from(["gemini-2.5-pro", FLASH, "gemini-2.5-flash-lite"]))
def test_prices_add_up_below_the_threshold(fresh: int, cached: int, said: int, thought: int, model: str) -> None:
    """Every token is billed once: a call costs what its parts cost alone, to the last digit."""
    whole = price_usage(model, Usage(fresh + cached, said + thought, None, cached), SUMMER_2025)
    alone = [tokens(fresh, 0), Usage(cached, 0, cached, cached), tokens(0, said), tokens(0, thought)]
    with exact_decimals():
        assert whole == sum(price_usage(model, part, SUMMER_2025) for part in alone)


@given(COUNTS, COUNTS)
def test_a_long_context_is_dearer_as_a_whole(more: int, produced: int) -> None:
    usage = tokens(200_001 + more, produced)
    with exact_decimals():
        dear = (Decimal("2.50") * (200_001 + more) + 15 * produced) / 1_000_000
    assert price_usage("gemini-2.5-pro", usage, SUMMER_2025) == dear


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


# What a price is the sum of


def test_a_bill_tells_every_token_once_with_its_rate() -> None:
    lines = Prices().bill(seen(Usage(1000, 100, 1100, 400)))
    assert [line for line in lines if line.rate in ("input", "cached_input", "output")] == [
        ("cached_input", 400, Decimal("0.03")),
        ("input", 600, Decimal("0.3")),
        ("output", 100, Decimal("2.5")),
    ]
    assert sum(line.cost for line in lines) == Decimal("0.000442")


@pytest.mark.parametrize(
    ("usage", "rates"),
    [(tokens(200_000, 100), ["1.25", "10"]), (tokens(200_001, 100), ["2.5", "15"])],
)
def test_a_bill_has_the_rates_of_the_whole_call(usage: Usage, rates: list[str]) -> None:
    lines = {line.rate: line.usd for line in Prices().bill(seen(usage, model="gemini-2.5-pro"))}
    assert [lines["input"], lines["output"]] == [Decimal(rate) for rate in rates]


@pytest.mark.parametrize("tier", ["standard", "batch"])
@pytest.mark.parametrize("searches", [0, 2])
def test_a_bill_is_the_price(tier: str, searches: int) -> None:
    asked = seen(Usage(1000, 100, 1100), model="gemini-2.5-flash", tier=tier, searches=searches, recorded_at=LATE_2026)
    lines = Prices().bill(asked)
    with exact_decimals():
        assert lines
        assert sum(line.cost for line in lines) == price_call(asked)


@pytest.mark.parametrize("asked", [seen(tokens(1, 1), model="nobody-knows"), seen(None), seen(Usage(1, None, None))])
def test_what_has_no_price_has_no_bill(asked: ModelCall) -> None:
    assert Prices().bill(asked) == ()
