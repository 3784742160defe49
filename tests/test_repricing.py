"""What if: the same calls on another model, or at the prices of another day."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from pytest_agenttrace.calls import Asked
from pytest_agenttrace.forest import build_trace
from pytest_agenttrace.prices import PriceNotFound, price_call
from pytest_agenttrace.trace import Trace
from tests.handmade import Run, call, tokens

SUMMER = datetime(2026, 7, 1, tzinfo=UTC)
ASKED = Asked(price_call)


def article() -> Trace:
    """research on flash, write on an alias that 3.6 answered, and an embedding."""
    run = Run()
    root = run.graph("article_writer")
    research = run.node("research", root, 1, "research:1")
    run.model(research, tokens(1000, 100))
    write = run.node("write", root, 2, "write:1")
    run.model(write, tokens(2000, 200), model="gemini-flash-latest")
    calls = [
        call(1, research, tokens(1000, 100), recorded_at=SUMMER),
        call(
            *(2, write, tokens(2000, 200)),
            model="gemini-flash-latest",
            model_version="gemini-3.6-flash",
            recorded_at=SUMMER,
        ),
        call(3, write, tokens(1000, 0), model="gemini-embedding-001", method="embedContent", recorded_at=SUMMER),
    ]
    return build_trace(run.spans, calls, ASKED)


def test_as_it_was() -> None:
    # 1,000 x 0.30 + 100 x 2.50; 2,000 x 0.75 + 200 x 3.75, and 1,000 x 0.15
    assert article().cost_by_node == {"research": Decimal("0.00055"), "write": Decimal("0.0024")}
    assert article().reprice().cost_by_node == article().cost_by_node


def test_another_model_stands_for_every_chat_model() -> None:
    # 1,000 x 0.10 + 100 x 0.40; twice that, and the embedding as it was
    lite = article().reprice(model="models/gemini-2.5-flash-lite")
    assert lite.cost_by_node == {"research": Decimal("0.00014"), "write": Decimal("0.00043")}
    assert lite.cost == Decimal("0.00057")
    assert [execution.cost for execution in lite] == [Decimal("0.00014"), Decimal("0.00043")]
    # A selection stays one.
    assert article()["write"].reprice(model="gemini-2.5-flash-lite").cost == lite["write"].cost == Decimal("0.00043")
    assert (lite.tokens, lite.trajectory, lite.outline) == (4300, ["research", "write"], article().outline)


@pytest.mark.parametrize("old", ["gemini-flash-latest", "gemini-3.6-flash", "models/gemini-3.6-flash"])
def test_one_model_by_the_name_asked_or_answered(old: str) -> None:
    instead = article().reprice(model={old: "gemini-2.5-flash-lite", "gemini-embedding-001": "gemini-embedding-2"})
    # 2,000 x 0.10 + 200 x 0.40, and 1,000 x 0.20
    assert instead.cost_by_node == {"research": Decimal("0.00055"), "write": Decimal("0.00048")}


@pytest.mark.parametrize(
    "day", ["2027-01-01", "2027-01-01T00:00:00+00:00", date(2027, 1, 1), datetime(2027, 1, 1, tzinfo=UTC)]
)
def test_another_day(day: Any) -> None:
    # 2,000 x 1.50 + 200 x 7.50, and 1,000 x 0.15
    assert article().reprice(date=day).cost_by_node["write"] == Decimal("0.00465")


def test_today() -> None:
    now = datetime.now(UTC)
    assert article().reprice(date="today").cost == article().reprice(date=now).cost


def test_the_tree_says_what_is_priced_as_what() -> None:
    lines = str(article().reprice(model="gemini-2.5-flash-lite")).splitlines()
    assert lines[2] == (
        "│  └─ gemini-2.5-flash as gemini-2.5-flash-lite        1,100 tok  $0.00014   1,000 in, 100 out"
    )


def test_a_model_that_nobody_knows_or_nobody_asked() -> None:
    with pytest.raises(PriceNotFound) as caught:
        _ = article().reprice(model="gemini-2.5-flahs").cost
    assert str(caught.value).splitlines()[0] == (
        "research: no price is known for 'gemini-2.5-flahs'; did you mean 'gemini-2.5-flash' or 'gemini-3.5-flash'?"
    )
    with pytest.raises(LookupError) as wrong:
        article().reprice(model={"gemini-2.5-pro": "gemini-2.5-flash"})
    assert str(wrong.value) == (
        "no call to the model 'gemini-2.5-pro'. There are calls to: "
        "gemini-2.5-flash, gemini-3.6-flash, gemini-embedding-001, gemini-flash-latest"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": ""}, "model='' is neither the name of a model nor a dict of such, {old: new}"),
        ({"model": 5}, "model=5 is neither the name of a model nor a dict of such, {old: new}"),
        ({"model": {"a": None}}, "model={'a': None} is neither the name of a model nor a dict of such, {old: new}"),
        ({"date": "tomorrow"}, 'date=\'tomorrow\' is no day: write "2026-01-31" or "today"'),
        ({"date": 2026}, 'date=2026 is no day: write "2026-01-31" or "today"'),
        ({"date": ""}, 'date=\'\' is no day: write "2026-01-31" or "today"'),
    ],
)
def test_what_cannot_be_meant(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        article().reprice(**given)
    assert str(caught.value) == said


def test_a_what_if_is_not_asked_of_the_run() -> None:
    asked = Asked(price_call)
    run = Run()
    node = run.node("write", None, 1, "write:1")
    trace = build_trace(run.spans, [call(1, node, tokens(1, 1), model="gemini-99")], asked)
    with pytest.raises(PriceNotFound):
        _ = trace.reprice(model="gemini-98").cost
    str(trace)
    assert (asked.used, asked.unpriced) == (False, {})
    with pytest.raises(PriceNotFound):
        _ = trace.cost
    assert (asked.used, list(asked.unpriced)) == (True, [("write", "gemini-99")])
