"""MLflow's own idea of what a call has cost, beside ours: a cross-check, never a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pytest_agenttrace.calls import Pricer
from pytest_agenttrace.trace import Trace
from pytest_agenttrace.usage import UsageUnknown, format_usd

__all__ = ["CostDifference", "cost_differences"]

# MLflow 3.10 and later: {"input_cost", "output_cost", "total_cost"} in USD, as floats.
_COST = "mlflow.llm.cost"
_TOLERATED = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class CostDifference:
    """A call that MLflow prices otherwise than we do, by more than 1%."""

    model: str
    node: str | None
    ours: Decimal
    mlflows: Decimal

    def __str__(self) -> str:
        return (
            f"MLflow's own cost of {self.model} differs: {format_usd(self.mlflows)} by MLflow, "
            f"{format_usd(self.ours)} here ({self.node or 'no node'})"
        )


def cost_differences(trace: Trace, price: Pricer) -> Iterator[CostDifference]:
    """The first difference for each model; of calls that either side has no price for, none."""
    costs = {span.span_id: _total(span.attributes.get(_COST)) for root in trace.roots for span in root.walk()}
    told: set[str] = set()
    for call in trace.llm_calls:
        theirs, model = costs.get(call.span_id or ""), call.model
        if theirs is None or model is None or model in told:
            continue
        try:
            ours = price(call)
        except (LookupError, UsageUnknown):
            continue
        if abs(theirs - ours) > max(ours, theirs) * _TOLERATED:
            told.add(model)
            yield CostDifference(model, call.node, ours, theirs)


def _total(cost: Any) -> Decimal | None:
    total = cost.get("total_cost") if isinstance(cost, dict) else None
    if isinstance(total, bool) or not isinstance(total, int | float) or not math.isfinite(total):
        return None
    # A sum of floats: the digits behind the twelfth are its rounding.
    return Decimal(f"{total:.12g}")
