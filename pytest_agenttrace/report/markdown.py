"""A verdict as Markdown for pull requests: what others have named stands in code, where nothing of it is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from decimal import ROUND_HALF_UP, Decimal

from pytest_agenttrace.ledger import Ledger
from pytest_agenttrace.report.cost import added, cost_change, spent_of_node, tokens_change, total_of
from pytest_agenttrace.report.differences import LEVELS, Difference, Row, Spent
from pytest_agenttrace.report.limits import exceeded, overrun
from pytest_agenttrace.report.traffic import DAYS, Monthly, Traffic, monthly
from pytest_agenttrace.report.verdict import Verdict, heading
from pytest_agenttrace.report.wording import (
    counted,
    cut,
    listed,
    percent,
    plain_text,
    signed_tokens,
    signed_usd,
    tokens,
    usd,
)
from pytest_agenttrace.usage import exact_decimals, format_usd

__all__ = ["LIMIT", "as_markdown", "bounded", "code", "of_one_ledger"]

# Bytes of one text: GitHub takes 1 MiB of a step, and 65,536 characters of a comment.
LIMIT = 60_000
_ROWS, _NAMES, _DIFFERENCES, _LINE = 40, 5, 60, 300


def code(text: str, *, cell: bool = False) -> str:
    """Foreign text as code: no markup, no mention, no formula, no HTML. In a table's `cell`, pipes are escaped."""
    line = cut(plain_text(text), _LINE) or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    made = f"{fence}{pad}{line}{pad}{fence}"
    return made.replace("|", "\\|") if cell else made


def as_markdown(verdict: Verdict, traffic: Traffic | None = None) -> str:
    """The verdict, old -> new per node, per month where the traffic is known, then the differences by level."""
    found = verdict.comparison
    lines = [f"### agenttrace: {verdict.text}", "", f"{heading(found)}."]
    lines += [f"- {code(obstacle)}" for obstacle in found.obstacles]
    if found.rows:
        lines += ["", *_table(found.nodes, found.total)]
    if traffic is not None and (months := monthly(found.rows, traffic)):
        lines += ["", *_months(months)]
    for level in LEVELS:
        of_it = [difference for difference in found.differences if difference.level == level]
        if of_it:
            lines += ["", *_level(level, of_it)]
    return bounded("\n".join(lines) + "\n")


def _table(nodes: Sequence[Row], total: Row) -> Iterator[str]:
    yield "| node | tokens | | cost | |"
    yield "|---|--:|--:|--:|--:|"
    moved = sorted(nodes, key=lambda row: -abs(cost_change(row) or Decimal(0)))
    for row in moved[:_ROWS]:
        yield _row(code(row.node or "", cell=True), row)
    if len(moved) > _ROWS:
        yield f"| and {len(moved) - _ROWS} more nodes | | | | |"
    yield _row("**all tests compared**", total)
    yield from _nested(row.node or "" for row in moved)


def _nested(nodes: Iterable[str]) -> Iterator[str]:
    """That the rows are no sum, where a node of a subgraph stands beside the one it runs in."""
    names = set(nodes)
    for name in sorted(names):
        outer = name.rpartition("|")[0]
        if outer in names:
            yield f"\n{code(name)} runs inside of {code(outer)}, whose row includes it."
            return


def _row(name: str, row: Row) -> str:
    old, new = row.old, row.new
    was, now = (None if side is None else side.tokens for side in (old, new))
    before, after = (None if side is None else side.cost for side in (old, new))
    cells = [
        name,
        _both(_tokens(old), _tokens(new)),
        _change(signed_tokens(tokens_change(row)), percent(was, now)),
        _both(_usd(old), _usd(new)),
        _change(signed_usd(cost_change(row)), percent(before, after)),
    ]
    return f"| {' | '.join(cells)} |"


def _tokens(side: Spent | None) -> str:
    return "(did not run)" if side is None else tokens(side.tokens)


def _usd(side: Spent | None) -> str:
    return "(did not run)" if side is None else usd(side.cost)


def _both(old: str, new: str) -> str:
    return f"`{new}`" if old == new else f"`{old} -> {new}`"


def _change(more: str, share: str) -> str:
    return "" if more in ("0", "$0") else f"`{more} ({share})`" if share else f"`{more}`"


def _months(months: Sequence[Monthly]) -> Iterator[str]:
    for one in months[:_ROWS]:
        more = "- tokens" if one.tokens is None else f"{_rounded(one.tokens)} tokens"
        of = "" if one.tests == 1 else f" (mean of {one.tests} tests)"
        money = "at an unknown price" if one.usd_per_month is None else f"= {month_usd(one.usd_per_month)} a month"
        yield f"- {code(f'{one.node} {more}{of} x {one.runs_per_day:,} runs a day {money}')}"
    if len(months) > _ROWS:
        yield f"- and {len(months) - _ROWS} more nodes"
    known = [one.usd_per_month for one in months if one.usd_per_month is not None]
    if len(known) > 1:
        yield f"- {code(f'together {month_usd(sum(known, Decimal(0)))} a month')}"
    yield f"\nA month is {DAYS} days, at the runs a day that `[tool.agenttrace.traffic]` names."


def _rounded(value: Decimal) -> str:
    whole = int(value.to_integral_value(ROUND_HALF_UP))
    about = "" if whole == value else "about "
    return f"{about}{signed_tokens(whole)}"


def month_usd(value: Decimal) -> str:
    """Dollars of a month, to the cent, from a hundred on to the dollar: `+$37.10`, `+$1,240`, `+<$0.01`."""
    sign = "+" if value > 0 else "-" if value < 0 else ""
    amount = abs(value)
    if 0 < amount < Decimal("0.005"):
        return f"{sign}<$0.01"
    with exact_decimals():
        rounded = amount.quantize(Decimal(1) if amount >= 100 else Decimal("0.01"), ROUND_HALF_UP)
    shown = format_usd(rounded)
    return f"{sign}{shown.removesuffix('.00') if amount >= 100 else shown}"


def _level(level: str, differences: Sequence[Difference]) -> Iterator[str]:
    folded = level == "informational"
    yield f"<details><summary>{level}</summary>\n" if folded else f"**{level}**\n"
    for difference in differences[:_DIFFERENCES]:
        yield f"- {code(difference.text)}{_in(difference.tests)}"
        yield from (f"  - {code(line)}" for line in difference.evidence)
    if len(differences) > _DIFFERENCES:
        yield f"- and {len(differences) - _DIFFERENCES} more"
    if folded:
        yield "\n</details>"


def _in(tests: Sequence[str]) -> str:
    if not tests:
        return ""
    names = listed([code(test) for test in tests], _NAMES)
    return f" in {names}" if len(tests) == 1 else f" in {counted(len(tests), 'test')}: {names}"


def of_one_ledger(ledger: Ledger, traffic: Traffic | None = None) -> str:
    """A run without a baseline: what it used and cost, its dearest nodes, and the budgets it exceeds."""
    tests = ledger.tests
    total = added(total_of(facts) for facts in tests.values())
    over = [
        f"{code(overrun(budget))} in {code(test)}"
        for test, facts in tests.items()
        for budget in facts.budgets
        if exceeded(budget)
    ]
    over += [f"whole {code(overrun(budget))}" for budget in ledger.run.budgets if exceeded(budget)]
    said = f", {counted(len(over), 'budget')} exceeded" if over else ""
    used = f"{tokens(total.tokens)} tokens, {code(usd(total.cost))}"
    lines = [f"### agenttrace: {counted(len(tests), 'test')}, {used}{said}"]
    if ledger.run.stopped is not None:
        lines += ["", f"The run was stopped: {code(ledger.run.stopped)}"]
    lines += ["", *(f"- {line}" for line in over)] if over else []
    nodes: dict[str, list[Spent]] = {}
    for facts in tests.values():
        for node, of_it in facts.nodes.items():
            spent = spent_of_node(of_it)
            if spent is not None:
                nodes.setdefault(node, []).append(spent)
    if nodes:
        lines += ["", *_dearest({node: added(parts) for node, parts in nodes.items()}, nodes)]
    return bounded("\n".join(lines) + "\n")


def _dearest(sums: dict[str, Spent], parts: dict[str, list[Spent]]) -> Iterator[str]:
    yield "| node | tests | calls | tokens | cost |"
    yield "|---|--:|--:|--:|--:|"
    ordered = sorted(sums.items(), key=lambda item: (-(item[1].cost or 0), -(item[1].tokens or 0)))
    for node, spent in ordered[:_ROWS]:
        cells = [str(len(parts[node])), str(spent.calls), tokens(spent.tokens), f"`{usd(spent.cost)}`"]
        yield f"| {code(node, cell=True)} | {' | '.join(cells)} |"
    if len(ordered) > _ROWS:
        yield f"| and {len(ordered) - _ROWS} more nodes | | | | |"
    yield from _nested(sums)


def bounded(text: str, limit: int = LIMIT) -> str:
    """Text of a size that GitHub takes: whole lines, and how many were cut."""
    if len(text.encode("utf-8", "replace")) <= limit:
        return text
    kept: list[str] = []
    size, lines = 0, text.splitlines()
    for line in lines:
        size += len(line.encode("utf-8", "replace")) + 1
        if size > limit - 200:
            break
        kept.append(line)
    open_details = sum("<details>" in line for line in kept) > sum("</details>" in line for line in kept)
    end: Iterable[str] = ["", "</details>"] if open_details else []
    return "\n".join([*kept, *end, "", f"({counted(len(lines) - len(kept), 'line')} cut: see the ledger)", ""])
