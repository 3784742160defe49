"""A project's own file of prices: what it says, what is wrong with it, and how it is locked."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from pytest_agenttrace.calls import ModelCall
from pytest_agenttrace.prices import PriceNotFound, Prices, PricesError, Used, lock, price_call, read_prices
from pytest_agenttrace.usage import Usage, UsageUnknown
from tests.handmade import FLASH, Run, call, tokens

SUMMER_2025 = datetime(2025, 7, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "prices.yaml"


def asked(
    usage: Usage | None = None,
    model: str = FLASH,
    answered: str | None = None,
    day: datetime | None = SUMMER_2025,
    tier: str | None = None,
    searches: int = 0,
) -> ModelCall:
    usage = tokens(1000, 100) if usage is None else usage
    by = Run().node("write", None, 1, "write:1")
    made = call(1, by, usage, model=model, model_version=answered, recorded_at=day, tier=tier, searches=searches)
    return ModelCall(model, "write", "write:1", usage, call=made)


def written(path: Path, text: str) -> Prices:
    path.write_text(text)
    return read_prices(path)


FULL = """\
# What we have negotiated.
format: 1
models:
  gemini-2.5-flash:
    - input: 0.20
      cached_input: 0.02
      output: 2.00
      input_audio: 0.8
      cached_audio: 0.08
      output_image: 20
      grounded_requests: 10
      above:
        200000:
          input: 0.40
          output: 4
        1000000: {input: 0.8}
      batch:
        output: 1.00
      priority:
        input: 0.30
        above: {200000: {input: 0.60}}
    - from: 2026-01-01
      source: the mail of December
      input: 0
      output: 1.5
  Models/Gemini-99:
    - {from: 2025-07-01, input: "1.00", output: 2, searches: 7}
"""


@pytest.mark.parametrize(
    ("usage", "tier", "usd"),
    [
        # 1,000 x 0.20 + 100 x 2 = 200 + 200
        (tokens(1000, 100), None, "0.0004"),
        (tokens(1000, 100), "standard", "0.0004"),
        # 600 x 0.20 + 400 x 0.02 + 200
        (Usage(1000, 100, 1100, 400), None, "0.000328"),
        # 600 x 0.20 + 400 x 0.80 + 200
        (Usage(1000, 100, 1100, 0, input_modalities=(("AUDIO", 400),)), None, "0.00064"),
        # 200 + 40 x 2 + 60 x 20
        (Usage(1000, 100, 1100, output_modalities=(("IMAGE", 60),)), None, "0.00148"),
        # 200,000 x 0.20, and one more: 200,001 x 0.40 + 100 x 4; cached has no dearer rate: + 1 x 0.02
        (tokens(200_000, 0), None, "0.04"),
        (tokens(200_001, 100), None, "0.0804004"),
        (Usage(200_001, 0, 200_001, 1), None, "0.08000002"),
        # 1,000,001 x 0.80 + 1 x 4
        (tokens(1_000_001, 1), None, "0.8000048"),
        # 200 + 100 x 1, and above 200,000 the tier's own rate: 200,001 x 0.40 + 1 x 1
        (tokens(1000, 100), "batch", "0.0003"),
        (tokens(200_001, 1), "batch", "0.0800014"),
        # 1,000 x 0.30 + 200; 200,001 x 0.60 + 1 x 4
        (tokens(1000, 100), "priority", "0.0005"),
        (tokens(200_001, 1), "priority", "0.1200046"),
    ],
)
def test_a_listed_model_is_priced_from_the_file(path: Path, usage: Usage, tier: str | None, usd: str) -> None:
    assert written(path, FULL)(asked(usage, tier=tier)) == Decimal(usd)


def test_a_grounded_request_costs_its_own(path: Path) -> None:
    price = written(path, FULL)
    # 400 and 10 / 1,000, whatever the number of queries; 1,000 x 1 + 100 x 2 and 3 x 7 / 1,000
    assert price(asked(searches=3)) == Decimal("0.0104")
    assert price(asked(model="gemini-99", searches=3)) == Decimal("0.0222")


@pytest.mark.parametrize(
    ("day", "usd"),
    [
        (datetime(2025, 12, 31, 23, 59, tzinfo=UTC), "0.0004"),
        # 1,000 x 0 + 100 x 1.50: what is free costs nothing
        (datetime(2026, 1, 1, tzinfo=UTC), "0.00015"),
        # Days are UTC's, as which a time without a zone is read: 23:30 in New York is the next day.
        (datetime(2026, 1, 1), "0.00015"),
        (datetime(2025, 12, 31, 23, 30, tzinfo=timezone(timedelta(hours=-5))), "0.00015"),
        (datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))), "0.0004"),
        (None, "0.00015"),
    ],
)
def test_the_last_entry_that_has_begun_is_in_force(path: Path, day: datetime | None, usd: str) -> None:
    assert written(path, FULL)(asked(day=day)) == Decimal(usd)


def test_names_are_those_of_calls(path: Path) -> None:
    price = written(path, FULL)
    assert price(asked(model="models/gemini-99")) == price(asked(model="GEMINI-99")) == Decimal("0.0012")
    # The model that answered comes first; what the file has of either goes before the table.
    assert price(asked(answered="gemini-99")) == Decimal("0.0012")
    assert price(asked(answered="gemini-2.5-flash-lite")) == Decimal("0.0004")


def test_what_is_not_listed_is_the_tables_unless_the_file_is_all_there_is(path: Path) -> None:
    assert written(path, FULL)(asked(model="gemini-2.5-flash-lite")) == Decimal("0.00014")
    with pytest.raises(PriceNotFound) as caught:
        written(path, FULL + "only: true\n")(asked(model="gemini-2.5-flash-lite"))
    assert str(caught.value) == (
        "write: no price is known for 'gemini-2.5-flash-lite' in prices.yaml\n"
        "  Give it one in prices.yaml, below models, in USD per million tokens:\n"
        "    gemini-2.5-flash-lite:\n"
        "      - input: USD\n"
        "        output: USD"
    )


def test_every_call_is_billed_at_the_tier_the_file_says(path: Path) -> None:
    assert written(path, FULL + "tier: batch\n")(asked(tier="priority")) == Decimal("0.0003")
    assert written(path, FULL + "tier: standard\n")(asked(tier="priority")) == Decimal("0.0004")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            asked(model="gemini-99", day=datetime(2025, 6, 30, tzinfo=UTC)),
            "write: no price is known for 'gemini-99' on 2025-06-30: the file's first price is from 2025-07-01",
        ),
        (asked(tier="flex"), "write: no price is known for 'gemini-2.5-flash' at service tier 'flex'"),
    ],
)
def test_what_the_file_leaves_open_is_not_asked_of_the_table(path: Path, made: ModelCall, said: str) -> None:
    with pytest.raises(PriceNotFound) as caught:
        written(path, FULL)(made)
    assert str(caught.value).splitlines()[0] == said


def test_an_empty_file_pins_nothing_and_says_so(path: Path) -> None:
    for text in ("", "# nothing yet\n"):
        with pytest.raises(PricesError, match=r": the file is empty\. Write it with: agenttrace prices lock$"):
            written(path, text)
    os.mkfifo(path.with_name("pipe"))
    with pytest.raises(PricesError, match=r"pipe: is no regular file\. Name another one\.$"):
        read_prices(path.with_name("pipe"))


def test_a_file_without_models(path: Path) -> None:
    for text in ("format: 1\n", "format: 1\nmodels:\n"):
        assert written(path, text)(asked()) == Decimal("0.00055")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", ":1: no YAML: expected the node content, but found '<stream end>'. Mend the line, or lock anew."),
        ("- a", ":1: the file is a list, not a mapping. See the README, Prices."),
        ("format: 2", ":1: format is '2'. It is one of 1."),
        ("only: true", ":1: the file does not say its format. Write format: 1."),
        ("format: 1\nmodel: {}", ":2: model is no key. Did you mean models?"),
        ("format: 1\nonly: maybe", ":2: only is 'maybe'. It is one of true, false."),
        ("format: 1\ntier: fast", ":2: tier is 'fast'. It is one of standard, batch, flex, priority, provisioned."),
        ("format: 1\nmodels: [a]", ":2: models is a list, not a mapping. See the README, Prices."),
        ("format: 1\nformat: 1", ":2: format is there twice. Leave one of the two."),
        ("format: 1\nmodels:\n  g:\n    input: 1", ":4: models.g is a mapping, not a list. See the README, Prices."),
        ("format: 1\nmodels:\n  g: []", ":3: models.g has no prices. Give it an entry, or take the name away."),
        ("format: 1\nmodels:\n  g:\n    - 1", ":4: models.g[0] is '1', not a mapping. See the README, Prices."),
        (
            "format: 1\nmodels:\n  g:\n    - from: 2026-01-01",
            ':4: models.g[0] has no rates. Give it input and output; what is free costs "0".',
        ),
        (
            "format: 1\nmodels:\n  g:\n    - input: 1\n      outptu: 1",
            ":5: models.g[0].outptu is no key. Did you mean output?",
        ),
        (
            "format: 1\nmodels:\n  g:\n    - input: -1",
            ":4: models.g[0].input is '-1', not an amount of USD. Write it as 0.30.",
        ),
        (
            "format: 1\nmodels:\n  g:\n    - input: .nan",
            ":4: models.g[0].input is '.nan', not an amount of USD. Write it as 0.30.",
        ),
        (
            "format: 1\nmodels:\n  g:\n    - input: 1\n      from: yesterday",
            ":5: models.g[0].from is 'yesterday', not a day. Write it as 2026-01-31.",
        ),
        (
            "format: 1\nmodels:\n  g:\n    - input: 1\n    - input: 2",
            ":5: models.g has two entries without a date. Leave one of the two.",
        ),
        (
            "format: 1\nmodels:\n  g:\n    - input_audio: 1",
            ":4: models.g[0] has no input, and input_audio is a part of it. Give it that rate.",
        ),
        (
            "format: 1\nmodels:\n  g:\n    - {input: 1, cached_input: 1, input_audio: 1}",
            ":4: models.g[0] has no cached_audio, and cached_input and input_audio both fit it. Give it that rate.",
        ),
        (
            "format: 1\nmodels:\n  g:\n    - input: 1\n      above: {many: {input: 2}}",
            ":5: models.g[0].above.many: 'many' is no number of tokens. Write it as 200000.",
        ),
        (
            "format: 1\nmodels:\n  g:\n    - input: 1\n      above: {200000: {output: 2}}",
            ":5: models.g[0].above.200000.output has no rate below 200000 tokens. Give models.g[0] a rate output.",
        ),
        (
            "format: 1\nmodels:\n  g:\n    - input: 1\n      batch: {cached_audio: 2}",
            ":5: models.g[0].batch has no cached_input, and cached_audio is a part of it. Give it that rate.",
        ),
        ("[" * 3000, ": is nested too deep to be a file of prices. Name another file."),
        ("format: &a [*a]", ":1: format is a list, not text. See the README, Prices."),
        ("a: !!python/object:os.system 1", ":1: a is no key. It has format, only, tier, models."),
    ],
)
def test_a_bad_file_is_one_line_with_the_place_and_the_way_out(path: Path, text: str, said: str) -> None:
    with pytest.raises(PricesError) as caught:
        written(path, text)
    assert str(caught.value) == f"prices.yaml{said}"


def test_a_file_that_cannot_be_read(path: Path) -> None:
    with pytest.raises(PricesError, match=r"^prices\.yaml: no such file\. Write it with: agenttrace prices lock$"):
        read_prices(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PricesError, match=r"^prices\.yaml: is not UTF-8 text\. Name another file\.$"):
        read_prices(path)
    with pytest.raises(PricesError, match=r"^\.: cannot be read: Is a directory\. Name another file\.$"):
        read_prices(path.parent)


# Locked prices


def google() -> list[str]:
    """Every model of Google's in the table, by genai-prices' public classes."""
    from genai_prices import Usage as TableUsage
    from genai_prices import calc_price

    return [model.id for model in calc_price(TableUsage(), FLASH, provider_id="google").provider.models]


def parts(**modalities: int) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(modalities.items()))


USAGES = [
    *(tokens(0, 0), tokens(1000, 100), tokens(1000, 0), tokens(128_001, 9), tokens(200_000, 7), tokens(200_001, 7)),
    *(Usage(1000, 100, 1100, 400), Usage(300_000, 100, 300_100, 100_001), Usage(1000, 100, 1100, 2000)),
    Usage(1000, 100, 1100, 0, input_modalities=parts(TEXT=500, AUDIO=500)),
    Usage(1000, 100, 1100, 100, input_modalities=parts(TEXT=500, AUDIO=500)),
    *(
        Usage(1000, 100, 1100, 100, input_modalities=parts(TEXT=500, AUDIO=500), cache_modalities=cached)
        for cached in (parts(TEXT=100), parts(TEXT=60, AUDIO=40))
    ),
    Usage(1000, 100, 1100, input_modalities=parts(TEXT=100, IMAGE=400, VIDEO=200, DOCUMENT=300)),
    Usage(1000, 100, 1100, input_modalities=parts(AUDIO=2000)),
    Usage(1000, 100, 1100, cache_modalities=parts(AUDIO=100)),
    *(Usage(1000, 1300, 2300, output_modalities=parts(**{part: 1290})) for part in ("AUDIO", "IMAGE", "VIDEO")),
]
DAYS = [date(2024, 5, 1), date(2025, 7, 1), date(2026, 1, 5), date(2026, 10, 15), date(2026, 12, 1), date(2027, 1, 1)]


def test_locked_prices_are_the_tables_to_the_last_digit(path: Path) -> None:
    models = google()
    assert len(models) > 60
    lock(path, [Used((model,), day) for model in models for day in DAYS])
    pinned = written(path, path.read_text() + "only: true\n")
    billed = [(None, 0), (None, 3), ("batch", 3), ("flex", 0), ("priority", 0)]
    priced = 0
    for model, day, usage, (tier, searches) in itertools.product(models, DAYS, USAGES, billed):
        moment = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
        made = asked(usage, model, None, moment, tier, searches)
        by_table, by_file = told(price_call, made), told(pinned, made)
        assert by_table == by_file, (model, day, usage, tier, searches)
        priced += isinstance(by_table, Decimal)
    assert priced > 10_000


def told(price: object, made: ModelCall) -> Decimal | str:
    assert callable(price)
    try:
        found: Decimal = price(made)
    except (PriceNotFound, UsageUnknown) as error:
        return type(error).__name__
    return found


SUMMER, LATE = date(2025, 7, 1), date(2026, 10, 20)
LOCKED = """\
# USD per million tokens, searches and grounded_requests per thousand. An entry holds from its day on.
# Written by `agenttrace prices lock`, which adds what is missing and never changes what is here.
format: 1
models:
  gemini-2.5-pro:
    - source: genai-prices VERSION
      input: 1.25
      cached_input: 0.125
      output: 10.00
      grounded_requests: 35.00
      above:
        200000:
          input: 2.50
          cached_input: 0.25
          output: 15.00
    - source: genai-prices VERSION
      from: 2026-10-14
      input: 1.25
      cached_input: 0.125
      output: 10.00
      grounded_requests: 35.00
      above:
        200000:
          input: 2.50
          cached_input: 0.25
          output: 15.00
      batch:
        input: 0.625
        output: 5.00
        above:
          200000:
            input: 1.25
            output: 7.50
"""
EMBEDDING = """\
  gemini-embedding-001:
    - source: genai-prices VERSION
      input: 0.15
"""


def version(text: str) -> str:
    from importlib.metadata import version as installed

    return text.replace("VERSION", installed("genai-prices"))


def test_a_lock_writes_what_is_in_force_and_is_stable(path: Path) -> None:
    used = [Used(("gemini-2.5-pro",), LATE), Used(("gemini-2.5-pro",), SUMMER), Used(("nobody", "none"), SUMMER)]
    done = lock(path, used)
    assert (done.added, done.models, done.unpriced) == (2, 1, ("nobody or none",))
    assert path.read_text() == version(LOCKED)
    assert lock(path, used).added == 0
    assert path.read_text() == version(LOCKED)
    # What is new comes behind; what is there stays.
    assert lock(path, [*used, Used(("gemini-flash-lates", "gemini-embedding-001"), SUMMER)]).added == 1
    assert path.read_text() == version(LOCKED + EMBEDDING)


def test_a_lock_keeps_what_people_have_written(path: Path) -> None:
    text = """\
format: 1

models:
    # Negotiated: holds for whatever comes.
    gemini-2.5-pro:
      - input: 1
        output: 8   # per million

    gemini-embedding-001:
    - source: genai-prices 0.0.1
      input: 0.99
# The end.
tier: standard
"""
    path.write_text(text)
    lock(path, [Used(("gemini-2.5-pro",), LATE), Used(("gemini-embedding-001",), LATE), Used((FLASH,), SUMMER)])
    flash = """\
    gemini-2.5-flash:
      - source: genai-prices VERSION
        input: 0.30
        cached_input: 0.03
        output: 2.50
        input_audio: 1.00
        cached_audio: 0.10
        grounded_requests: 35.00
"""
    assert path.read_text() == text.replace("# The end.\n", version(flash) + "# The end.\n")
    # A pinned model has got a new price in the table: added below the old one.
    lock(path, [Used((FLASH,), LATE)])
    assert path.read_text().count(f"      - {version('source: genai-prices VERSION')}\n") == 2
    read_prices(path)


@pytest.mark.parametrize("text", ["format: 1", "format: 1\nmodels:", "format: 1\nmodels:   # none yet\nonly: true\n"])
def test_a_lock_into_a_file_that_holds_nothing(path: Path, text: str) -> None:
    path.write_text(text)
    lock(path, [Used(("gemini-embedding-001",), SUMMER)])
    head = text.replace("\nonly: true", "").rstrip("\n")
    models = "" if "models" in text else "models:\n"
    assert path.read_text().startswith(f"{head}\n{models}{version(EMBEDDING)}")
    assert read_prices(path)(asked(tokens(1000, 0), "gemini-embedding-001")) == Decimal("0.00015")


def test_nothing_is_added_to_brackets(path: Path) -> None:
    path.write_text("format: 1\nmodels: {gemini-99: [{input: 1}]}\n")
    with pytest.raises(PricesError) as caught:
        lock(path, [Used((FLASH,), SUMMER)])
    assert str(caught.value) == (
        "prices.yaml:2: written in brackets, to which nothing can be added. Write it line by line."
    )


def test_what_is_pinned_stays_whatever_the_table_says_but_a_what_if_asks_the_table(path: Path) -> None:
    text = (
        "format: 1\nmodels:\n  gemini-2.5-flash:\n    - source: genai-prices 0.0.1\n      input: 9\n      output: 9\n"
    )
    made = asked()
    assert written(path, text)(made) == Decimal("0.0099")
    instead = dataclasses.replace(made, priced_at=SUMMER_2025)
    assert written(path, text)(instead) == Decimal("0.00055")
    # What somebody has written goes before the table there too, and so does a file that is all there is.
    assert written(path, text.replace("source: genai-prices 0.0.1\n      ", ""))(instead) == Decimal("0.0099")
    assert written(path, text + "only: true\n")(instead) == Decimal("0.0099")


def test_the_table_is_not_imported_where_the_file_covers_all(path: Path) -> None:
    path.write_text(FULL)
    source = f"""
import sys
from pathlib import Path
from pytest_agenttrace.calls import ModelCall
from pytest_agenttrace.prices import read_prices
from pytest_agenttrace.usage import Usage
print(read_prices(Path({str(path)!r}))(ModelCall("gemini-2.5-flash", None, None, Usage(1000, 100, 1100))))
print("genai_prices" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0.00015", "False"]


def test_a_bill_by_the_file_has_the_files_rates(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(
        "format: 1\nmodels:\n  gemini-2.5-flash:\n    - {input: 1.00, output: 2.00, flex: {input: 0.50}}\n"
    )
    price = read_prices(tmp_path / "prices.yaml")
    asked = ModelCall("gemini-2.5-flash", "write", None, Usage(1000, 100, 1100))
    assert price.bill(asked) == (("input", 1000, Decimal("1.00")), ("output", 100, Decimal("2.00")))
