"""Spans that end by an exception which is no `Exception`: MLflow refuses to record one, and its autologs take that
refusal for a fault of their own, swallow it together with the exception and give None to whoever called the model.

Seen with `mlflow.gemini.autolog()` of MLflow 3.9 and 3.17, and a `CassetteMiss`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["recorded"]


@contextmanager
def recorded() -> Iterator[None]:
    """Let spans record whatever they end by, for the length of the block."""
    from mlflow.entities.span import LiveSpan

    original = LiveSpan.record_exception

    def record_exception(self: LiveSpan, exception: Any) -> None:
        original(self, _ordinary(exception))

    LiveSpan.record_exception = record_exception  # type: ignore[method-assign]
    try:
        yield
    finally:
        # Whoever has replaced it since, as mocks do, puts it back by himself.
        if LiveSpan.record_exception is record_exception:
            LiveSpan.record_exception = original  # type: ignore[method-assign]


def _ordinary(exception: Any) -> Any:
    """An `Exception` of the same name and words; what is one already, or none at all, as it is."""
    if not isinstance(exception, BaseException) or isinstance(exception, Exception):
        return exception
    kind = type(exception)
    return type(kind.__name__, (Exception,), {"__module__": kind.__module__})(str(exception)).with_traceback(
        exception.__traceback__
    )
