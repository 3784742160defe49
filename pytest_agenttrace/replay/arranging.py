"""In which order exchanges stand in a file, and which of them are the old ones: so that a recording made again
differs where something changed and nowhere else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from pytest_agenttrace.calls import Caller, path_order
from pytest_agenttrace.replay.cassette import Interaction
from pytest_agenttrace.replay.matching import plain_reply, read_request
from pytest_agenttrace.wire import canonical_body

__all__ = ["Kept", "in_order", "kept_as_before", "key_of", "without"]

# What is new in every reply and means nothing.
_REPLY_ID = re.compile(rb'"responseId":\s*"[^"]*"')


@dataclass(frozen=True, slots=True)
class Kept:
    """An exchange of this run. `number` is its place among the test's calls, in the order they were asked; `started`
    and `ended` are seconds of one clock."""

    number: int
    interaction: Interaction
    caller: Caller
    started: float
    ended: float


def key_of(interaction: Interaction) -> tuple[str, str, str, bytes]:
    """Equal for requests that are answered by each other's replies."""
    return read_request(interaction.method, interaction.uri, interaction.body).key("body")


def in_order(kept: Iterable[Kept]) -> list[Interaction]:
    """As they were asked; the branches of one step one after the other, by LangGraph's path, whichever was faster."""
    branches: dict[str, list[Kept]] = {}
    for found in sorted(kept, key=lambda found: found.number):
        outer = (found.caller.namespace or "").partition("|")[0]
        branches.setdefault(outer or f"call {found.number}", []).append(found)
    blocks: list[list[list[Kept]]] = []
    end = float("-inf")
    for branch in sorted(branches.values(), key=lambda branch: min(found.started for found in branch)):
        after = min(found.started for found in branch) >= end
        if not blocks or (after and not _of_one_step([*blocks[-1], branch])):
            blocks.append([])
        blocks[-1].append(branch)
        end = max(end, *(found.ended for found in branch))
    parted = chain.from_iterable(sorted(block, key=_branch_order) for block in blocks)
    return [found.interaction for branch in parted for found in branch]


def _of_one_step(branches: Sequence[Sequence[Kept]]) -> bool:
    """Branches may be of one step and never overlap: each was answered before the next one asked."""
    callers = [branch[0].caller for branch in branches]
    if any(caller.step is None or _inside(caller) for caller in callers):
        return False
    paths = [path_order(caller.path) for caller in callers]
    return len({caller.step for caller in callers}) == 1 and len(set(paths)) == len(paths)


def _inside(caller: Caller) -> bool:
    """Whether it is a subgraph's: its step and its path are that graph's own."""
    return "|" in (caller.namespace or "")


def _branch_order(branch: Sequence[Kept]) -> tuple[object, ...]:
    first = branch[0]
    if not first.caller.namespace:
        return (False, "", (), (), first.number)
    name = first.caller.namespace.partition(":")[0]
    if _inside(first.caller):
        return (True, name, (), key_of(first.interaction), first.number)
    return (True, name, path_order(first.caller.path), (), first.number)


def kept_as_before(new: Sequence[Interaction], before: Iterable[Interaction]) -> list[Interaction]:
    """The new exchanges, each one that says the same as an old one replaced by that: its date and its duration stay."""
    waiting: dict[tuple[object, ...], list[Interaction]] = {}
    for old in before:
        waiting.setdefault(_said(old), []).append(old)
    return [queue.pop(0) if (queue := waiting.get(_said(found))) else found for found in new]


def without(some: Iterable[Interaction], others: Iterable[Interaction]) -> list[Interaction]:
    """Those that none of the others says again."""
    said = Counter(map(_said, others))
    left: list[Interaction] = []
    for found in some:
        if said[_said(found)]:
            said[_said(found)] -= 1
        else:
            left.append(found)
    return left


def _said(interaction: Interaction) -> tuple[object, ...]:
    plain = canonical_body(plain_reply(interaction.reply, interaction.reply_headers))
    # Line ends of an event stream are not kept in files.
    reply = _REPLY_ID.sub(b"", plain).replace(b"\r\n", b"\n")
    facts = (interaction.node, interaction.teardown, interaction.status)
    return (*key_of(interaction), reply, *facts)
