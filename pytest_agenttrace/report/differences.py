"""What two ledgers differ in, as data: differences by level, what nodes have used then and now, and what stands in the
way of a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from pytest_agenttrace.ledger import UsageFacts, Value

__all__ = ["LEVELS", "Comparison", "Difference", "Found", "Level", "Row", "Spent", "Tests"]

Level = Literal["breaking", "cost", "request", "informational"]
# The gravest first.
LEVELS: tuple[Level, ...] = ("breaking", "cost", "request", "informational")


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that differs in one test. Where `level`, `kind`, `node` and `text` are equal, the cause is one."""

    level: Level
    kind: str
    node: str | None
    text: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """One cause, and the tests it is seen in (none: the whole run). `text` is the message, `evidence` the lines below
    it; `old` and `new` are the numbers or values it is about, where it is about any."""

    level: Level
    kind: str
    node: str | None
    text: str
    tests: tuple[str, ...]
    evidence: tuple[str, ...] = ()
    old: Value | Decimal = None
    new: Value | Decimal = None


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used: tokens, USD, calls to a model. None is unknown."""

    tokens: int | None
    usage: UsageFacts
    cost: Decimal | None
    calls: int


@dataclass(frozen=True, slots=True)
class Row:
    """What a node (None: the whole of it, "(no node)": what no node asked for) has used in one test (None: in all that
    both runs have), then and now; `old` or `new` is None where it did not run. `by_tokens` and `by_prices` are the two
    parts of what it costs more, None where they cannot be told apart."""

    test: str | None
    node: str | None
    old: Spent | None
    new: Spent | None
    by_tokens: Decimal | None
    by_prices: Decimal | None


@dataclass(frozen=True, slots=True)
class Tests:
    """How many tests both ledgers have, and how many only one of them; `not_run` are those that the new run did not
    come to, or was not asked for."""

    __test__ = False

    compared: int
    new: int
    vanished: int
    not_run: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of it. `obstacles` say why nobody can vouch for the new run: they fail, whatever the differences. `rows` are
    by test and node, `nodes` their sums over tests, `total` that of all tests compared. `tolerance` is in percent."""

    format: Literal[1]
    tolerance: Decimal
    tests: Tests
    obstacles: tuple[str, ...]
    differences: tuple[Difference, ...]
    total: Row
    nodes: tuple[Row, ...]
    rows: tuple[Row, ...]

    def at_least(self, level: Level) -> tuple[Difference, ...]:
        """The differences of a level and those graver."""
        graver = LEVELS[: LEVELS.index(level) + 1]
        return tuple(difference for difference in self.differences if difference.level in graver)
