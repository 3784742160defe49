"""Calls to a model as data: one exchange on the wire, and one answered call seen by both witnesses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from pytest_agenttrace.usage import Cost, Tokens, UnknownTokens, Usage, UsageUnknown, exact_decimals

__all__ = [
    "CHAT_METHODS",
    "Asked",
    "Call",
    "Caller",
    "Endpoint",
    "ModelCall",
    "Pricer",
    "ToolCall",
    "branch_of",
    "path_order",
    "sum_cost",
    "sum_duration",
    "sum_tokens",
    "sum_usage",
]

CHAT_METHODS = frozenset({"generateContent", "streamGenerateContent"})


class ToolCall(NamedTuple):
    """A tool and its arguments; equal to the plain tuple `(name, args)`."""

    name: str
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a call, from LangGraph's run metadata; all None outside of a graph."""

    node: str | None = None
    step: int | None = None
    namespace: str | None = None
    path: tuple[Any, ...] = ()


def path_order(path: Any) -> tuple[Any, ...]:
    """A key that orders LangGraph's paths, whose elements mix strings, integers, booleans and tuples."""
    if isinstance(path, tuple | list):
        return (2, tuple(path_order(element) for element in path))
    if isinstance(path, int):
        return (0, int(path))
    return (1, str(path))


def branch_of(caller: Caller) -> str | None:
    """The place of a branch that `Send` has started among those beside it, by LangGraph's path: `"2"`; None of any
    other caller."""
    if not caller.path or caller.path[0] != "__pregel_push":
        return None
    waiting, places = list(caller.path[1:]), list[str]()
    while waiting:
        element = waiting.pop(0)
        if isinstance(element, tuple | list):
            waiting = [*element, *waiting]
        elif isinstance(element, int) and not isinstance(element, bool):
            places.append(str(element))
    return ".".join(places) or None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A Gemini URL taken apart. `method` is the part behind the colon, or the resource's name for
    the calls that have none (`cachedContents`, `files`)."""

    method: str
    model: str | None
    streaming: bool
    sse: bool
    vertex: bool

    @property
    def chat(self) -> bool:
        return self.method in CHAT_METHODS

    def __str__(self) -> str:
        if self.model is None:
            return self.method
        return f"{self.model}:{self.method}" + ("?alt=sse" if self.sse else "")


@dataclass(frozen=True, slots=True)
class Call:
    """One exchange with the Gemini API: what was asked, what came back, who asked.

    `index` counts the test's calls from 1. `status` is None where no reply came; `usage` is None where the reply
    reports none. `server_tools` are those that Google ran for the reply, each once: `google_search`, `code_execution`,
    `url_context`, `file_search`, `google_maps`. `recorded_at` is the recording's time, `duration` how long the real
    call took, in seconds. `attempt` counts from 1 how often in a row an execution has asked the same, after so many
    vain ones. `injected` names the fault that a test has put in the place of the reply, or into it. `searches` are the
    queries that Google Search was asked for it, `tier` the service tier it was billed as ("standard", "flex",
    "priority", "provisioned", "batch"), None where the reply does not say. `body` is the request's, as it is recorded,
    in one form for all texts that mean the same; `reply` the place of its reply in the cassette, from 1, None where it
    has none.
    """

    index: int
    caller: Caller
    endpoint: Endpoint
    status: int | None
    usage: Usage | None = None
    model_version: str | None = None
    finish_reason: str | None = None
    tool_requests: tuple[ToolCall, ...] = ()
    server_tools: tuple[str, ...] = ()
    recorded_at: datetime | None = None
    duration: float | None = None
    # Seconds since the epoch at which the exchange happened in this process, for pairing with spans.
    at: float = 0.0
    injected: str | None = None
    attempt: int = 1
    searches: int = 0
    tier: str | None = None
    body: bytes = field(default=b"", repr=False, compare=False)
    reply: int | None = field(default=None, compare=False)

    @property
    def node(self) -> str | None:
        return self.caller.node

    @property
    def model(self) -> str | None:
        """The model asked for; `model_version` is the one that answered."""
        return self.endpoint.model

    @property
    def answered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One answered call to a model, as seen by the wire (`call`), by the trace (`span_id`), or both.

    `usage` comes from the wire where there is a call, else from the span; None where nobody reported it.
    """

    model: str | None
    node: str | None
    namespace: str | None
    usage: Usage | None
    span_id: str | None = None
    span_name: str | None = None
    call: Call | None = None
    # Its missing usage is allowed: sums leave it out. So are sums of costs, where it has no price.
    forgiven: bool = False
    unpriced_forgiven: bool = False
    # The model and the moment whose prices it is given, where that is not its own.
    priced_as: str | None = None
    priced_at: datetime | None = None

    @property
    def recorded_at(self) -> datetime | None:
        """The moment whose prices hold for it: that of its recording. None where nobody knows: today's."""
        if self.priced_at is not None:
            return self.priced_at
        return self.call.recorded_at if self.call else None

    @property
    def searches(self) -> int:
        """The queries that Google Search was asked; only the wire tells."""
        return self.call.searches if self.call else 0

    @property
    def duration(self) -> float | None:
        """Seconds the recorded call took; None where nobody measured it."""
        return self.call.duration if self.call else None

    @property
    def tool_requests(self) -> tuple[ToolCall, ...]:
        """The tools the model asked for; what ran is in `Trace.tool_calls`."""
        return self.call.tool_requests if self.call else ()

    @property
    def server_tools(self) -> tuple[str, ...]:
        """The tools that Google ran itself to make this reply: `google_search`, `code_execution`, ..."""
        return self.call.server_tools if self.call else ()


# USD of one model call; raises LookupError where the model has no price.
Pricer = Callable[[ModelCall], Decimal]


class Asked:
    """A pricer that remembers whether it was `used`, and for which nodes and models it had no price."""

    def __init__(self, price: Pricer) -> None:
        self.price = price
        self.used = False
        self.unpriced: dict[tuple[str | None, str | None], str] = {}

    def __call__(self, call: ModelCall) -> Decimal:
        self.used = True
        try:
            return self.price(call)
        except LookupError as error:
            self.unpriced.setdefault((call.node, call.model), str(error))
            raise


def _summed(calls: Iterable[ModelCall]) -> list[ModelCall]:
    """The calls a sum is made of. Where all of them are forgiven none is left out: unknown is never 0."""
    given = list(calls)
    return [call for call in given if not call.forgiven] or given


def sum_usage(calls: Iterable[ModelCall]) -> Usage:
    """Tokens by kind; a total is unknown where one call's is (see `Usage.sum`)."""
    return Usage.sum(call.usage or Usage() for call in _summed(calls))


def sum_tokens(calls: Iterable[ModelCall], label: str) -> Tokens | UnknownTokens:
    """Total tokens under a label; unknown, with the first call at fault, where one reported none."""
    total = 0
    for call in _summed(calls):
        if call.usage is None or call.usage.total_tokens is None:
            return UnknownTokens(label, _unreported(call))
        total += call.usage.total_tokens
    return Tokens(total, label)


def _unreported(call: ModelCall) -> str:
    where = f"{call.node} > " if call.node else ""
    what = call.span_name or (f"call {call.call.index}" if call.call else "a call")
    return f"{where}{what} ({call.model or 'model not named'}) reported no usage"


def sum_cost(calls: Iterable[ModelCall], pricer: Pricer, label: str) -> Cost:
    """USD under a label, exact. Raises `UsageUnknown` for a call that reported no input or output, and
    what the pricer raises: a LookupError for a model without a price. Such a call is left out where that is allowed,
    but never all of them. Every call is asked for, so that all without a price are known."""
    total, priced = Decimal(0), False
    wrong: list[Exception] = []
    left_out: list[Exception] = []
    for call in _summed(calls):
        try:
            if call.usage is None or call.usage.input_tokens is None or call.usage.output_tokens is None:
                raise UsageUnknown(f"{label}: cost unknown: {_unreported(call)}")
            price = pricer(call)
        except UsageUnknown as error:
            wrong.append(error)
        except LookupError as error:
            (left_out if call.unpriced_forgiven else wrong).append(error)
        else:
            priced = True
            with exact_decimals():
                total += price
    if wrong or (left_out and not priced):
        raise (wrong or left_out)[0]
    return Cost(total, label)


def sum_duration(calls: Iterable[ModelCall]) -> float | None:
    """Seconds the recorded calls took together; None where one of them is unknown, or there are none."""
    durations = [call.duration for call in calls]
    known = [seconds for seconds in durations if seconds is not None]
    return sum(known) if known and len(known) == len(durations) else None
