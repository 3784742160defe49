"""Budgets, then and now: what is exceeded by whose doing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal

from pytest_agenttrace.ledger import BudgetFacts
from pytest_agenttrace.report.differences import Found
from pytest_agenttrace.report.wording import tokens, usd
from pytest_agenttrace.usage import exact_decimals

__all__ = ["budgets", "exceeded", "overrun"]


def exceeded(budget: BudgetFacts) -> bool:
    """Whether more was used than allowed."""
    return budget.used is not None and budget.used > budget.limit


def overrun(budget: BudgetFacts) -> str:
    """`research 3,534 tokens > 2,000 (+1,534)`, as pytest says it."""
    name, used, limit = budget.node or "run", budget.used, budget.limit
    if used is None:
        return f"{name} {budget.metric} > {_amount(budget, limit)}? unknown"
    with exact_decimals():
        over = Decimal(used) - Decimal(limit)
    unit = "" if budget.metric == "cost" else f" {budget.metric}"
    return f"{name} {_amount(budget, used)}{unit} > {_amount(budget, limit)} (+{_amount(budget, over)})"


def _amount(budget: BudgetFacts, value: int | Decimal) -> str:
    return usd(Decimal(value)) if budget.metric == "cost" else tokens(int(value))


def budgets(old: Iterable[BudgetFacts], new: Iterable[BudgetFacts], *, ended: bool = True) -> Iterator[Found]:
    """A budget now exceeded breaks; one that the old run had exceeded already is only told. Those of a test that has
    failed (`ended` False) are not judged, which is no news of theirs."""
    was = {(budget.node, budget.metric): budget for budget in old}
    now = {(budget.node, budget.metric): budget for budget in new}
    for key, budget in now.items():
        before = was.get(key)
        if ended or budget.used is not None:
            yield from _judged(before, budget)
        if before is not None and before.limit != budget.limit:
            yield _moved(before, budget)
    for key, budget in was.items():
        # A test that failed may not have come to its limits.
        if key not in now and ended:
            name = f"{budget.node or 'run'} {budget.metric}"
            yield Found("informational", "budget removed", budget.node, f"{name}: no limit any more", (_use(budget),))


def _judged(before: BudgetFacts | None, budget: BudgetFacts) -> Iterator[Found]:
    name = f"{budget.node or 'run'} {budget.metric}"
    if budget.used is None:
        if before is not None and before.used is not None:
            text = f"{name} cannot be judged any more: what was used is unknown"
            yield Found("breaking", "budget", budget.node, text, (_use(before),))
        return
    if before is not None and exceeded(before):
        if exceeded(budget):
            text = f"over budget before this change: {overrun(budget)}"
            yield Found("informational", "budget of the baseline", budget.node, text, (_use(before),))
        elif before.limit == budget.limit:
            yield Found("informational", "budget", budget.node, f"{name}: within its budget again", (_use(before),))
    elif exceeded(budget):
        was = () if before is None else (_use(before),)
        yield Found("breaking", "budget", budget.node, overrun(budget), was)


def _use(budget: BudgetFacts) -> str:
    used = "unknown" if budget.used is None else _amount(budget, budget.used)
    return f"{used} of {_amount(budget, budget.limit)} before"


def _moved(before: BudgetFacts, budget: BudgetFacts) -> Found:
    raised = budget.limit > before.limit
    text = (
        f"{budget.node or 'run'} {budget.metric}: limit {'raised' if raised else 'lowered'}, "
        f"{_amount(budget, before.limit)} -> {_amount(budget, budget.limit)}"
    )
    passes = raised and budget.used is not None and before.limit < budget.used <= budget.limit
    needs = (f"{_amount(budget, budget.used)} would exceed the old one",) if passes and budget.used is not None else ()
    return Found("informational", "limit", budget.node, text, needs)
