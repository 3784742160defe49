"""What every test's store begins with: the template that a function of the user's has written to."""

from __future__ import annotations

import inspect
import linecache
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_agenttrace.network import Refusal

__all__ = ["SEED", "UNSEEDED", "Seed", "failed", "no_seed", "refused"]

# The name of the experiment that the seed's own runs and traces stay in, and of the fixture.
SEED = "mlflow_seed"


@dataclass(frozen=True)
class Seed:
    """A database in memory to restore from, None for the empty one; the ids of the traces in it, and the folder of its
    artifacts; or why there is none."""

    template: sqlite3.Connection | None = None
    traces: frozenset[str] = frozenset()
    error: str | None = None
    artifacts: Path | None = None

    def close(self) -> None:
        if self.template is not None:
            self.template.close()


UNSEEDED = Seed()


def no_seed(function: object) -> str | None:
    """What is wrong with what the fixture has given; None for a function that can be called."""
    out = "  Return a function that writes: def seed(): mlflow.genai.register_prompt(...)"
    if not callable(function):
        return f"{SEED} is a {type(function).__name__}, no function\n{out}"
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        kind = "an async" if inspect.iscoroutinefunction(function) else "a generator"
        return f"{SEED} is {kind} function, which would not run\n{out}"
    return None


def refused(refusal: Refusal) -> str:
    """The error of a connection that a seed makes: what is replayed asks nobody, and records nothing."""
    return f"connection to {refusal.text} refused: a seed speaks to loopback only"


def failed(function: Callable[[], object], error: Exception) -> str:
    """A seed's own error and the line of its function, for each test that needs it."""
    first = next(iter(str(error).splitlines()), "")
    return f"{SEED} failed: {type(error).__name__}: {first}{_line(function, error)}\n  No test that needs it can run."


def _line(function: Callable[[], object], error: Exception) -> str:
    """The last line of the user's file that the error has passed."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    found, at = "", error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        if code.co_filename == file:
            here, path = Path.cwd(), Path(code.co_filename)
            shown = path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)
            found = f"\n  {shown}:{at.tb_lineno}: {linecache.getline(code.co_filename, at.tb_lineno).strip()}"
        at = at.tb_next
    return found
