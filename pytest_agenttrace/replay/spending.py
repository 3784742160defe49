"""What a run may spend on recording: one sum for all of its processes. Standard library only, and the lock."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pytest_agenttrace.locking import locked

__all__ = ["Spending"]


@dataclass(frozen=True, slots=True)
class Spending:
    """A limit in USD, and the file in which the run's processes add up what they spend."""

    limit: Decimal
    ledger: Path

    def spent(self) -> Decimal:
        """USD spent so far, and set apart for calls under way."""
        return Decimal(self._read()["spent"])

    def dearest(self, model: str) -> Decimal:
        """USD of this run's dearest call to a model so far; 0 before the first."""
        return Decimal(self._read()["dearest"].get(model, "0"))

    def reserve(self, expected: Decimal) -> bool:
        """Set apart what a call is expected to cost; False where the limit would be passed, and nothing is."""
        with locked(self.ledger):
            found = self._read()
            total = Decimal(found["spent"]) + expected
            if total > self.limit:
                return False
            self._write({**found, "spent": str(total)})
            return True

    def settle(self, model: str, expected: Decimal, cost: Decimal) -> None:
        """What a call has really cost."""
        with locked(self.ledger):
            found = self._read()
            dearest = {**found["dearest"], model: str(max(cost, self.dearest(model)))}
            self._write({"spent": str(Decimal(found["spent"]) + cost - expected), "dearest": dearest})

    def _read(self) -> Any:
        return json.loads(self.ledger.read_text("ascii")) if self.ledger.exists() else {"spent": "0", "dearest": {}}

    def _write(self, found: Any) -> None:
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        self.ledger.write_text(json.dumps(found), "ascii")
