"""A request without a recorded reply: the exception that nothing swallows, and the words for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pytest_agenttrace.calls import Caller, Endpoint

__all__ = ["CassetteMiss", "Miss", "word_miss"]

AGAIN = "If the prompt changed on purpose, record again:"
FIRST = "Record it:"
_NUMBER = re.compile(r"(?<=nearest recorded: )call \d+, ")


class CassetteMiss(BaseException):
    """A request without a recorded reply.

    A BaseException: LangGraph's retries, `with_retry` and `except Exception` in a node would retry or swallow any
    other. langchain-core's `agenerate` takes results that are no `Exception` for answers and reads the two attributes.
    """

    generations: ClassVar[list[Any]] = []
    llm_output: ClassVar[None] = None

    def __init__(self, message: str, node: str | None = None, number: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.node = node
        self.number = number


@dataclass(frozen=True, slots=True)
class Miss:
    """A request without a recorded reply. `number` is its place among the test's calls, answered or not;
    `nearest` says what was recorded instead; `text` is all of it. `cause` is what is left without the test and its
    numbers, equal where one change has caused many misses; `advice` is the line before the command, "" for none."""

    caller: Caller
    number: int
    endpoint: Endpoint | None
    nearest: str | None
    text: str
    cause: str
    advice: str


def word_miss(
    asking: Caller,
    number: int,
    endpoint: Endpoint | None,
    problem: str,
    nearest: str | None,
    evidence: Sequence[str],
    advice: str,
    command: str,
) -> Miss:
    """Node and number first, then the evidence, then the way out. The first line of evidence is the request."""
    node = asking.node or "(no node)"
    way_out = [advice, f"  {command}"] if advice and command else []
    text = "\n  ".join([f"{node}, call {number}: {problem}", *evidence, *way_out])
    cause = "\n  ".join([f"{node}: {problem}", *(_NUMBER.sub("", line) for line in evidence)])
    return Miss(asking, number, endpoint, nearest, text, cause, advice if way_out else "")
