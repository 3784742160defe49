"""The ledger: a run's results as stable data, the one file that gates, diffs and reports read."""

from __future__ import annotations

from pytest_agenttrace.ledger.entry import facts_of
from pytest_agenttrace.ledger.file import (
    LedgerError,
    as_ledger,
    ledger_text,
    not_ours,
    plain,
    read_ledger,
    write_ledger,
)
from pytest_agenttrace.ledger.merging import merge
from pytest_agenttrace.ledger.model import (
    BilledFacts,
    BudgetFacts,
    CallFacts,
    ExecutionFacts,
    FindingFacts,
    Ledger,
    NodeFacts,
    RunFacts,
    TestFacts,
    Times,
    ToolFacts,
    UsageFacts,
    Value,
)

__all__ = [
    "BilledFacts",
    "BudgetFacts",
    "CallFacts",
    "ExecutionFacts",
    "FindingFacts",
    "Ledger",
    "LedgerError",
    "NodeFacts",
    "RunFacts",
    "TestFacts",
    "Times",
    "ToolFacts",
    "UsageFacts",
    "Value",
    "as_ledger",
    "facts_of",
    "ledger_text",
    "merge",
    "not_ours",
    "plain",
    "read_ledger",
    "write_ledger",
]
