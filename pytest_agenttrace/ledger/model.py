"""What a ledger holds: a run's results as frozen data, the one form that gates, diffs and reports read.

Tokens are integers, money is USD as `Decimal` (text in JSON); None is unknown. Everything but `Times` is equal between
two runs of the same suite. A node stands by its path: `"write"`, in a subgraph `"report|write"` (LangGraph allows no
`|` in a name).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

__all__ = [
    "BilledFacts",
    "BudgetFacts",
    "CallFacts",
    "ExecutionFacts",
    "FindingFacts",
    "Ledger",
    "NodeFacts",
    "RunFacts",
    "TestFacts",
    "Times",
    "ToolFacts",
    "UsageFacts",
    "Value",
]

Outcome = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed", "run"]
# A member of a request: short values as they are, a long text as its length and a digest.
Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class UsageFacts:
    """Tokens by kind, see `Usage`."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    thoughts_tokens: int | None = None
    tool_use_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ToolFacts:
    """A tool that ran."""

    name: str
    args: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExecutionFacts:
    """One execution of a node. `error` is the type of the error it ended with; its `tokens` and `cost` include what
    its subgraph used, its `tools` do not."""

    node: str
    step: int | None
    status: str
    attempts: int
    error: str | None
    tokens: int | None
    cost: Decimal | None
    tools: tuple[ToolFacts, ...]


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """All executions of a node in one test, summed, its subgraph included."""

    executions: int
    attempts: int
    llm_calls: int
    tool_calls: int
    tokens: int | None
    usage: UsageFacts
    cost: Decimal | None


@dataclass(frozen=True, slots=True)
class BilledFacts:
    """So many tokens of one kind at so many USD per million of them (searches: per thousand); `rate` is the rate's
    name in a file of prices. Every token stands once: `input` leaves out what `cached_input` holds."""

    rate: str
    count: int
    usd: Decimal


@dataclass(frozen=True, slots=True)
class CallFacts:
    """One exchange with the model's API, in the order of the cassette. `node` is None outside of a graph. `model` is
    the one asked, `answered_by` the one that answered; `priced_at` the day (ISO) whose prices hold. `request` holds
    the members of its body by their paths (`contents[0].parts[0].text`). `billed` is what `cost` is the sum of, rates
    that billed nothing included; empty where nobody knows."""

    node: str | None
    method: str
    model: str | None
    answered_by: str | None
    status: int | None
    attempt: int
    finish_reason: str | None
    injected: str | None
    usage: UsageFacts | None
    cost: Decimal | None
    priced_at: str | None
    request: Mapping[str, Value]
    billed: tuple[BilledFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class BudgetFacts:
    """A limit and how much of it was used: tokens and calls as integers, a cost in USD; None where nobody knows.
    `node` is None for the whole run of a test."""

    node: str | None
    metric: str
    limit: int | Decimal
    used: int | Decimal | None


@dataclass(frozen=True, slots=True)
class FindingFacts:
    """What the two witnesses disagreed on, and what became of it. `text` is its first line."""

    kind: str
    node: str | None
    text: str
    judged: Literal["failed", "warned", "allowed"]


@dataclass(frozen=True, slots=True)
class TestFacts:
    """One test that used the plugin, or (`outcome` "run") one run that several tests read. `edges` are pairs of nodes
    that ran one after the other, None stands for the start. `unpriced` are models whose cost nobody knows."""

    __test__ = False

    outcome: Outcome
    cassette: str | None = None
    tokens: int | None = None
    usage: UsageFacts | None = None
    cost: Decimal | None = None
    unpriced: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    trajectory: tuple[str, ...] = ()
    edges: tuple[tuple[str | None, str], ...] = ()
    outline: tuple[Any, ...] = ()
    nodes: Mapping[str, NodeFacts] = field(default_factory=dict)
    executions: tuple[ExecutionFacts, ...] = ()
    calls: tuple[CallFacts, ...] = ()
    budgets: tuple[BudgetFacts, ...] = ()
    findings: tuple[FindingFacts, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The run as a whole. `stopped` says why it did not come to its end, `part` why it was not the whole suite; None
    where it did and was. `whole` are the files and folders (`.`: all) whose every test a part of the suite was to run,
    but for the `deselected` ones. `not_run` are tests that were to run and did not; `broken` files that could not be
    collected. `budgets` are limits of the whole run, `findings` what no single test is to blame for: replies of a
    shared cassette that none of its tests asked for."""

    stopped: str | None = None
    part: str | None = None
    whole: tuple[str, ...] = ()
    deselected: tuple[str, ...] = ()
    not_run: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    budgets: tuple[BudgetFacts, ...] = ()
    findings: tuple[FindingFacts, ...] = ()

    def was_to_run(self, test: str) -> bool:
        """Whether a test that is there was one of this run's, as far as it names tests."""
        if test in self.deselected:
            return False
        file = test.partition("::")[0]
        return self.part is None or any(
            place in (".", file, test) or file.startswith(f"{place}/") for place in self.whole
        )


@dataclass(frozen=True, slots=True)
class Times:
    """When the run began (ISO, UTC), how long it took, and each of its tests, in seconds."""

    started: str | None = None
    seconds: float | None = None
    tests: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The results of one run. `versions` are those of Python and of the packages that matter."""

    format: Literal[1]
    versions: Mapping[str, str]
    run: RunFacts
    tests: Mapping[str, TestFacts]
    times: Times = field(default_factory=Times)
