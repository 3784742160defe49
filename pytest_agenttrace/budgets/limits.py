"""Limits on what a node or a run may use, and what exceeded them."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from pytest_agenttrace.trace import SpanNotFound, TraceReading
from pytest_agenttrace.tree import printable
from pytest_agenttrace.usage import UnknownTokens, UsageUnknown, exact_decimals, format_tokens, format_usd

__all__ = [
    "METRICS",
    "BudgetError",
    "Lift",
    "Limit",
    "Overrun",
    "Use",
    "closest",
    "parse_budget",
    "read_limit",
    "unjudged",
    "weigh",
    "written",
]

METRICS = ("tokens", "input_tokens", "output_tokens", "cost", "llm_calls", "tool_calls")
_MOST, _DECIMALS = 10**18, 18
# More digits than a person writes: the float is the result of arithmetic, not the number meant.
_FLOAT_DIGITS = 12


class BudgetError(ValueError):
    """A budget that cannot be meant; `problems` holds one line for each thing wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Limit:
    """An inclusive limit for one metric of a node (None: the whole run). Zero is a limit.

    `source` is where it is written, as a person would find it: `test_article.py:12 budget("write", tokens=4000)`. One
    that is `demanded` fails where its node does not run; a default holds only where it does.
    """

    node: str | None
    metric: str
    limit: int | Decimal
    source: str = field(default="", compare=False)
    demanded: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True)
class Lift:
    """A marker's word that a metric of a node has no limit, whatever stands further away."""

    node: str | None
    metric: str


@dataclass(frozen=True, slots=True)
class Use:
    """What was used of a limit, in its own unit (tokens, USD or calls); None where that is not known: the test did not
    come to its end, the node did not run, nobody reported the tokens, a model has no price."""

    node: str | None
    metric: str
    limit: int | Decimal
    used: int | Decimal | None
    source: str


@dataclass(frozen=True, slots=True)
class Overrun:
    """A limit exceeded, or one that could not be judged. `text` is `research 3,534 tokens > 2,000 (+1,534)`."""

    node: str | None
    text: str
    # Why a cost could not be told: the pricer's own words.
    unpriced: str | None = None


def parse_budget(args: Sequence[object], kwargs: Mapping[str, object], site: str = "") -> list[Limit | Lift]:
    """The arguments of one `budget` marker, which stands at `site`, as limits; None lifts one. Raises `BudgetError`
    with all that is wrong."""
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
    limits: list[Limit | Lift] = []
    of = node if isinstance(node, str) else None
    for metric in (metric for metric in METRICS if metric in kwargs):
        value = kwargs[metric]
        if value is None:
            limits.append(Lift(of, metric))
            continue
        try:
            limit = read_limit(metric, value)
        except BudgetError as error:
            problems += [f"{metric}={value!r} {problem}" for problem in error.problems]
        else:
            limits.append(Limit(of, metric, limit, f"{site} budget({written(of, metric, limit)})".lstrip()))
    if problems:
        raise BudgetError(problems)
    return limits


def written(node: str | None, metric: str, limit: int | Decimal) -> str:
    """A limit as the marker's arguments: `"research", tokens=4000`."""
    value = f'"{limit:f}"' if metric == "cost" else str(limit)
    return ", ".join([*([] if node is None else [f'"{node}"']), f"{metric}={value}"])


def read_limit(metric: str, value: object) -> int | Decimal:
    """The value of one limit. Raises `BudgetError` with what it is instead: `is not a whole number`."""
    limit = _money(value) if metric == "cost" else _whole(value)
    if limit < 0:
        raise BudgetError(["is negative"])
    if limit > _MOST or (isinstance(limit, Decimal) and limit.adjusted() < -_DECIMALS):
        raise BudgetError(["is beyond what anybody uses or pays"])
    return limit


def _whole(value: object) -> int:
    if isinstance(value, bool):
        raise BudgetError(["is not a number"])
    try:
        return operator.index(value)  # type: ignore[arg-type]  # what is no integer is refused just below
    except TypeError:
        raise BudgetError(["is not a whole number"]) from None


def _money(value: object) -> Decimal:
    no_amount = BudgetError(['is not an amount of USD: write cost="0.005"'])
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise no_amount
    try:
        amount = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    except InvalidOperation:
        raise no_amount from None
    if not amount.is_finite():
        raise no_amount
    if isinstance(value, float) and len(amount.normalize().as_tuple().digits) > _FLOAT_DIGITS:
        raise BudgetError(["is a float that is not what it seems: write it as text"])
    return amount


def closest(layers: Iterable[Sequence[Limit | Lift]]) -> list[Limit]:
    """One limit for each node and metric: that of the first layer that has it (closest first), in the order of the
    layers; none where that layer lifts it."""
    chosen: dict[tuple[str | None, str], Limit | Lift] = {}
    for layer in layers:
        for limit in layer:
            chosen.setdefault((limit.node, limit.metric), limit)
    return [limit for limit in chosen.values() if isinstance(limit, Limit)]


def unjudged(limits: Iterable[Limit]) -> tuple[Use, ...]:
    """The uses of limits that nothing could be held against."""
    return tuple(_use(limit, None) for limit in limits)


def weigh(limits: Iterable[Limit], trace: TraceReading) -> tuple[tuple[Use, ...], list[Overrun]]:
    """What the trace used of each limit; and every limit that it exceeds, and every one that cannot be judged: a node
    that did not run, tokens nobody reported, a model without a price. A budget never passes unread; but the default of
    a node that did not run is none."""
    uses: list[Use] = []
    found: list[Overrun] = []
    snapshot = trace.snapshot()
    unknown: set[str] = set()
    for limit in limits:
        if limit.node is not None and not limit.demanded and limit.node not in snapshot:
            continue
        used: int | Decimal | None = None
        unpriced: str | None = None
        try:
            part: TraceReading = snapshot if limit.node is None else snapshot[limit.node]
            used = _used(limit, part)
            text = _over(limit, used)
        except SpanNotFound as error:
            text = None if str(limit.node) in unknown else f"budget: {error}"
            unknown.add(str(limit.node))
        except (LookupError, UsageUnknown) as error:
            text = f"{printable(limit.node or 'run')} {limit.metric} cannot be judged: {error}"
            unpriced = str(error) if isinstance(error, LookupError) else None
        uses.append(_use(limit, used))
        if text is not None:
            found.append(Overrun(limit.node, text, unpriced))
    return tuple(uses), found


def _use(limit: Limit, used: int | Decimal | None) -> Use:
    return Use(limit.node, limit.metric, limit.limit, used, limit.source)


def _used(limit: Limit, part: TraceReading) -> int | Decimal:
    """Plain numbers, which compare and travel like any other."""
    used = _USED[limit.metric](part)
    return Decimal(used) if limit.metric == "cost" else int(used)


def _over(limit: Limit, used: int | Decimal) -> str | None:
    if used <= limit.limit:
        return None
    name = printable(limit.node or "run")
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
