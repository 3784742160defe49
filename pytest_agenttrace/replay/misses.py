"""A request without a recorded reply: the exception that nothing swallows, and the words for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pytest_agenttrace.calls import Caller, Endpoint
from pytest_agenttrace.replay.mismatch import edit_in

__all__ = ["CassetteMiss", "Miss", "word_miss"]

AGAIN = "If the prompt changed on purpose, record again:"
SHUFFLED = (
    "Replies were shuffled. Where it passes without order=..., the prompt depends on which branch was first:\n"
    "  keep in the graph's state what branches hand on. Where it does not, record again:"
)
FIRST = "Record it:"
GO_ON = "Raise the limit, and go on from what was recorded:"
LIMIT = "not asked: it would pass the limit of --agenttrace-record-limit"
_NUMBER = re.compile(r"(?<=nearest recorded: )call \d+, ")
_INDEX = re.compile(r"\[\d+\]")


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
    numbers; `edit` what is left without the node and the words round a change, equal where one edit of a prompt has
    caused many misses; `advice` is the line before the command, "" for none."""

    caller: Caller
    number: int
    endpoint: Endpoint | None
    nearest: str | None
    text: str
    cause: str
    edit: str
    advice: str

    @property
    def limit(self) -> bool:
        """Whether the request was not made because it would have cost too much."""
        return LIMIT in self.text


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
    seen = [_NUMBER.sub("", line) for line in evidence]
    cause = "\n  ".join([f"{node}: {problem}", *seen])
    return Miss(asking, number, endpoint, nearest, text, cause, _edit(problem, seen), advice if way_out else "")


def _edit(problem: str, evidence: Sequence[str]) -> str:
    """The words that changed, without those round them: a template's other words are different in each test, and so
    are dates and ids."""
    volatile = any("differs only by" in line for line in evidence)
    changes = [(line, edit_in(line)) for line in evidence]
    lines = [change or line for line, change in changes if not (volatile and change)]
    return "\n".join([problem, *(_INDEX.sub("[]", line) for line in lines)])
