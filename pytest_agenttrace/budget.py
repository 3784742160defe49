"""Limits on what a node or a run may use, and what exceeded them."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from pytest_agenttrace.trace import SpanNotFound, TraceReading
from pytest_agenttrace.usage import UnknownTokens, UsageUnknown, exact_decimals, format_tokens, format_usd

__all__ = ["METRICS", "BudgetError", "Limit", "Overrun", "closest", "overruns", "parse_budget"]

METRICS = ("tokens", "input_tokens", "output_tokens", "cost", "llm_calls", "tool_calls")
# More digits than a person writes: the float is the result of arithmetic, not the number meant.
_FLOAT_DIGITS = 12


class BudgetError(ValueError):
    """A budget that cannot be meant; `problems` holds one line for each thing wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Limit:
    """An inclusive limit for one metric of a node (None: the whole run). Zero is a limit."""

    node: str | None
    metric: str
    limit: int | Decimal


@dataclass(frozen=True, slots=True)
class Overrun:
    """A limit exceeded, or one that could not be judged. `text` is `research 3,534 tokens > 2,000 (+1,534)`."""

    node: str | None
    text: str
    # Why a cost could not be told: the pricer's own words.
    unpriced: str | None = None


def parse_budget(args: Sequence[object], kwargs: Mapping[str, object]) -> list[Limit]:
    """The arguments of one `budget` marker as limits. Raises `BudgetError` with all that is wrong."""
    problems: list[str] = []
    node = args[0] if args else None
    if len(args) > 1:
        problems.append(f"takes one node at most, got {len(args)}: use a marker for each node")
    if node is not None and (not isinstance(node, str) or not node):
        problems.append(f"the node is a name, not {node!r}")
    unknown = [name for name in kwargs if name not in METRICS]
    for name in unknown:
        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        problems.append(f"unknown limit {name!r}{hint} It has {', '.join(METRICS)}")
    if not kwargs:
        problems.append(f"sets no limit: give one of {', '.join(METRICS)}")
    limits: list[Limit] = []
    for metric in METRICS:
        if metric not in kwargs:
            continue
        try:
            limits.append(Limit(node if isinstance(node, str) else None, metric, _limit(metric, kwargs[metric])))
        except BudgetError as error:
            problems.extend(error.problems)
    if problems:
        raise BudgetError(problems)
    return limits


def _limit(metric: str, value: object) -> int | Decimal:
    limit = _money(value) if metric == "cost" else _whole(metric, value)
    if limit < 0:
        raise BudgetError([f"{metric}={value!r} is negative"])
    return limit


def _whole(metric: str, value: object) -> int:
    if isinstance(value, bool):
        raise BudgetError([f"{metric}={value!r} is not a number"])
    try:
        return operator.index(value)  # type: ignore[arg-type]  # what is no integer is refused just below
    except TypeError:
        raise BudgetError([f"{metric}={value!r} is not a whole number"]) from None


def _money(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise BudgetError([f'cost={value!r} is not an amount of USD: write cost="0.005"'])
    try:
        amount = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    except InvalidOperation:
        raise BudgetError([f'cost={value!r} is not an amount of USD: write cost="0.005"']) from None
    if not amount.is_finite():
        raise BudgetError([f'cost={value!r} is not an amount of USD: write cost="0.005"'])
    if isinstance(value, float) and len(amount.normalize().as_tuple().digits) > _FLOAT_DIGITS:
        raise BudgetError([f"cost={value!r} is a float that is not what it seems: write it as text"])
    return amount


def closest(markers: Iterable[Sequence[Limit]]) -> list[Limit]:
    """One limit for each node and metric: that of the first marker that has it (closest first), in
    the order of the markers."""
    chosen: dict[tuple[str | None, str], Limit] = {}
    for limits in markers:
        for limit in limits:
            chosen.setdefault((limit.node, limit.metric), limit)
    return list(chosen.values())


def overruns(limits: Iterable[Limit], trace: TraceReading) -> list[Overrun]:
    """Every limit that the trace exceeds, and every one that cannot be judged: a node that did not
    run, tokens nobody reported, a model without a price. A budget never passes unread."""
    found: list[Overrun] = []
    snapshot = trace.snapshot()
    unknown: set[str] = set()
    for limit in limits:
        unpriced: str | None = None
        try:
            part: TraceReading = snapshot if limit.node is None else snapshot[limit.node]
            text = _judge(limit, part)
        except SpanNotFound as error:
            text = None if str(limit.node) in unknown else f"budget: {error}"
            unknown.add(str(limit.node))
        except (LookupError, UsageUnknown) as error:
            text = f"{limit.node or 'run'} {limit.metric} cannot be judged: {error}"
            unpriced = str(error) if isinstance(error, LookupError) else None
        if text is not None:
            found.append(Overrun(limit.node, text, unpriced))
    return found


def _judge(limit: Limit, part: TraceReading) -> str | None:
    used = _USED[limit.metric](part)
    if used <= limit.limit:
        return None
    name = limit.node or "run"
    if limit.metric == "cost":
        used, allowed = Decimal(used), Decimal(limit.limit)
        with exact_decimals():
            over_by = used - allowed
        return f"{name} {format_usd(used)} > {format_usd(allowed)} (+{format_usd(over_by)})"
    over = int(used) - int(limit.limit)
    return (
        f"{name} {format_tokens(int(used))} {limit.metric} > {format_tokens(int(limit.limit))} (+{format_tokens(over)})"
    )


def _tokens(part: TraceReading) -> int:
    tokens = part.tokens
    return int(tokens) if isinstance(tokens, UnknownTokens) else tokens


def _part(name: str) -> Callable[[TraceReading], int]:
    def read(part: TraceReading) -> int:
        _tokens(part)
        value = getattr(part.usage, name)
        if value is None:
            raise UsageUnknown(f"{part.label}: {name} were not reported")
        return int(value)

    return read


_USED: dict[str, Callable[[TraceReading], Any]] = {
    "tokens": _tokens,
    "input_tokens": _part("input_tokens"),
    "output_tokens": _part("output_tokens"),
    "cost": lambda part: part.cost,
    "llm_calls": lambda part: len(part.llm_calls),
    "tool_calls": lambda part: len(part.tool_calls),
}
