"""The budget of a whole run: what each test has used, as its report carries it, and whether that is too much together.

Pure. Numbers are those of recordings; a test counts once, however often it was run again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pytest_agenttrace.budgets.limits import BudgetError, Limit, Use, read_limit
from pytest_agenttrace.calls import ModelCall, Pricer, sum_cost, sum_tokens
from pytest_agenttrace.trace import Trace
from pytest_agenttrace.tree import printable
from pytest_agenttrace.usage import UnknownTokens, UsageUnknown, exact_decimals, format_tokens, format_usd

__all__ = ["bill_of", "judge_run", "parse_run_budget", "unknown_bill"]

_METRICS = ("cost", "tokens")
_DEAREST = 3

# What one test has used, as plain data: `run` and each node with its tokens and USD as text, None where unknown, and
# `why` they are; `traced`.
Bill = Mapping[str, Any]


def parse_run_budget(given: Sequence[str]) -> list[Limit]:
    """`["0.50", "tokens=500_000"]`, as the option takes them. Raises `BudgetError` with all that is wrong."""
    limits: dict[str, Limit] = {}
    problems: list[str] = []
    for text in given:
        name, equals, value = text.partition("=")
        metric, value = (name.strip(), value.strip()) if equals else ("cost", text.strip())
        if metric not in _METRICS:
            problems.append(f"{text!r}: a run has cost (USD) and tokens: write 0.50, cost=0.50 or tokens=500000")
            continue
        try:
            limit = read_limit(metric, _whole(value) if metric == "tokens" else value)
        except BudgetError as error:
            problems += [f"{text!r} {problem}" for problem in error.problems]
            continue
        if metric in limits:
            problems.append(f"{text!r}: {metric} is given twice")
        limits[metric] = Limit(None, metric, limit, f"--agenttrace-budget {text}")
    if problems:
        raise BudgetError(problems)
    return [limits[metric] for metric in _METRICS if metric in limits]


def _whole(value: str) -> object:
    try:
        return int(value)
    except ValueError:
        return value


def bill_of(trace: Trace, price: Pricer, *, traced: bool = True) -> dict[str, Any]:
    """What a test has used, to be carried; `traced` where it has read a trace. What has no price is no finding here."""
    why: dict[str, str] = {}
    run = [_tokens(trace.llm_calls, why), _cost(trace.llm_calls, price, why)]
    by_node = trace.calls_by_node().items()
    nodes = {printable(node): [_tokens(calls, {}), _cost(calls, price, {})] for node, calls in by_node}
    return {"run": run, "nodes": nodes, "why": why, "traced": traced}


def unknown_bill(why: str) -> dict[str, Any]:
    """The bill of a test whose trace cannot be read."""
    return {"run": [None, None], "nodes": {}, "why": dict.fromkeys(_METRICS, why), "traced": False}


def _tokens(calls: Iterable[ModelCall], why: dict[str, str]) -> int | None:
    total = sum_tokens(calls, "run")
    if isinstance(total, UnknownTokens):
        why["tokens"] = total.reason
        return None
    return int(total)


def _cost(calls: Iterable[ModelCall], price: Pricer, why: dict[str, str]) -> str | None:
    try:
        return str(Decimal(sum_cost(calls, price, "run")))
    except (LookupError, UsageUnknown, ValueError) as error:  # the last: counts that contradict themselves
        why["cost"] = str(error)
        return None


def judge_run(
    limits: Iterable[Limit], bills: Mapping[str, Bill], part: str | None = None
) -> tuple[tuple[Use, ...], list[str]]:
    """What all tests together used of the run's limits, and what is over: the number first, then the dearest tests and
    nodes. `part` says why not all tests were run."""
    uses: list[Use] = []
    texts: list[str] = []
    for limit in limits:
        index = 1 if limit.metric == "cost" else 0
        used, unknown = _sum((test, bill["run"][index]) for test, bill in bills.items())
        known = not unknown
        shown: int | Decimal = used if limit.metric == "cost" else int(used)
        uses.append(Use(None, limit.metric, limit.limit, shown if known else None, limit.source))
        if not known:
            texts.append("\n".join([*_unknown(limit.metric, unknown, bills), *_of(part)]))
        elif used > limit.limit:
            texts.append("\n".join([*_over(limit, used, bills, index), *_of(part)]))
    return tuple(uses), texts


def _sum(amounts: Iterable[tuple[str, int | str | None]]) -> tuple[Decimal, list[str]]:
    total, unknown = Decimal(0), []
    with exact_decimals():
        for name, amount in amounts:
            if amount is None:
                unknown.append(name)
            else:
                total += Decimal(amount)
    return total, unknown


def _unknown(metric: str, tests: Sequence[str], bills: Mapping[str, Bill]) -> list[str]:
    """One reason once, with the tests it is of."""
    reasons: dict[str, list[str]] = {}
    for test in tests:
        reasons.setdefault(str(bills[test]["why"].get(metric, "nobody knows why")), []).append(test)
    lines = [f"whole run {metric} cannot be judged:"]
    for reason, names in reasons.items():
        head, *rest = reason.splitlines()
        more = f" and {len(names) - _DEAREST} more" if len(names) > _DEAREST else ""
        lines += [f"  {head} ({', '.join(names[:_DEAREST])}{more})", *(f"  {line}" for line in rest)]
    return lines


def _over(limit: Limit, used: Decimal, bills: Mapping[str, Bill], index: int) -> list[str]:
    shown: Callable[[Decimal], str] = format_usd if index else _counted
    with exact_decimals():
        over = used - Decimal(limit.limit)
    tests = {test: Decimal(bill["run"][index]) for test, bill in bills.items()}
    nodes: dict[str, Decimal] = {}
    for bill in bills.values():
        for node, amounts in bill["nodes"].items():
            if amounts[index] is not None:
                with exact_decimals():
                    nodes[node] = nodes.get(node, Decimal(0)) + Decimal(amounts[index])
    # The unit once, as in a test's own budgets.
    allowed, more = (text.removesuffix(" tokens") for text in (shown(Decimal(limit.limit)), shown(over)))
    head = f"whole run {shown(used)} > {allowed} (+{more})"
    return [
        f"{head}: {_dearest(tests, shown)}",
        *([f"  nodes: {_dearest(nodes, shown)}"] if nodes else []),
        f"  limit: {limit.source}",
    ]


def _counted(amount: Decimal) -> str:
    return f"{format_tokens(int(amount))} tokens"


def _dearest(amounts: Mapping[str, Decimal], shown: Callable[[Decimal], str]) -> str:
    order = sorted(((name, amount) for name, amount in amounts.items() if amount), key=lambda item: (-item[1], item[0]))
    rest = len(order) - _DEAREST
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(f"{name} {shown(amount)}" for name, amount in order[:_DEAREST]) + more


def _of(part: str | None) -> list[str]:
    return [] if part is None else [f"  of a part of the suite: {part}"]
