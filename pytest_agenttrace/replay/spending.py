"""What a run may spend on recording: one sum for all of its processes. Standard library only, and the lock."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pytest_agenttrace.locking import locked

__all__ = ["Spending"]


@dataclass(frozen=True, slots=True)
class Spending:
    """A limit in USD, and the file in which the run's processes add up what they spend."""

    limit: Decimal
    ledger: Path

    def spent(self) -> Decimal:
        """USD spent so far, and set apart for calls under way."""
        return Decimal(self.ledger.read_text("ascii")) if self.ledger.exists() else Decimal(0)

    def reserve(self, expected: Decimal) -> bool:
        """Set apart what a call is expected to cost; False where the limit would be passed, and nothing is."""
        with locked(self.ledger):
            total = self.spent() + expected
            if total > self.limit:
                return False
            self._write(total)
            return True

    def settle(self, expected: Decimal, cost: Decimal) -> None:
        """What a call has really cost."""
        with locked(self.ledger):
            self._write(self.spent() + cost - expected)

    def _write(self, total: Decimal) -> None:
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        self.ledger.write_text(str(total), "ascii")
