"""What if: the same calls on another model, or at the prices of another day."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from pytest_agenttrace.calls import ModelCall

__all__ = ["WhatIf", "what_if"]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Calls priced as if another model had been asked, or on another day. `every` is the model that all chat models
    are replaced by, `models` names each one's own."""

    every: str | None = None
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    date: datetime | None = None

    def of(self, call: ModelCall) -> ModelCall:
        """The call, priced as if."""
        chat = call.call is None or call.call.endpoint.chat
        model = next((self.models[name] for name in _names(call) if name in self.models), self.every if chat else None)
        return dataclasses.replace(
            call,
            priced_as=call.priced_as if model is None else model,
            priced_at=call.priced_at if self.date is None else self.date,
        )

    def check(self, calls: Iterable[ModelCall]) -> None:
        """Raises LookupError for a model to be replaced that none of these calls has asked."""
        asked = sorted({name for call in calls for name in _names(call)})
        for name in self.models:
            if name not in asked:
                raise LookupError(f"no call to the model {name!r}. There are calls to: {', '.join(asked) or 'none'}")


def what_if(model: object = None, date: object = None) -> WhatIf:
    """`model` is a name, for all chat models, or a dict {old: new}; `date` a date, a datetime, ISO text or "today".
    Raises ValueError for anything else."""
    if model is None or (isinstance(model, str) and model):
        return WhatIf(every=None if model is None else _plain(model), date=_moment(date))
    if isinstance(model, Mapping) and all(isinstance(name, str) and name for pair in model.items() for name in pair):
        return WhatIf(models={_plain(old): _plain(new) for old, new in model.items()}, date=_moment(date))
    raise ValueError(f"model={model!r} is neither the name of a model nor a dict of such, {{old: new}}")


def _moment(given: object) -> datetime | None:
    if given is None:
        return None
    if given == "today":
        return datetime.now(UTC)
    if isinstance(given, datetime):
        return given
    if isinstance(given, date):
        return datetime.combine(given, time(), UTC)
    try:
        return datetime.fromisoformat(given if isinstance(given, str) else "")
    except ValueError:
        raise ValueError(f'date={given!r} is no day: write "2026-01-31" or "today"') from None


def _names(call: ModelCall) -> list[str]:
    """The model that was asked, and the one that answered."""
    found = (call.model, call.call.model_version if call.call is not None else None)
    return [_plain(name) for name in found if name]


def _plain(name: str) -> str:
    return name.removeprefix("models/")
