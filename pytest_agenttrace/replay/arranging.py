"""In which order exchanges stand in a file, and which of them are the old ones: so that a recording made again
differs where something changed and nowhere else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from pytest_agenttrace.calls import Caller, path_order
from pytest_agenttrace.replay.cassette import Interaction
from pytest_agenttrace.replay.matching import plain_reply, read_request
from pytest_agenttrace.wire import canonical_body

__all__ = ["Kept", "Places", "in_order", "kept_as_before", "key_of", "told_apart", "without"]

# Where LangGraph ran an execution, by its namespace: step and path.
Places = Mapping[str, tuple[int | None, tuple[Any, ...]]]
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


def in_order(kept: Iterable[Kept], places: Places | None = None) -> list[Interaction]:
    """As they were asked; the branches of one step one after the other, by LangGraph's path, whichever was faster.
    `places` tells those of the nodes that subgraphs ran in: their calls do not."""
    known = places or {}
    branches: dict[str, list[Kept]] = {}
    for found in sorted(kept, key=lambda found: found.number):
        outer = (found.caller.namespace or "").partition("|")[0]
        branches.setdefault(outer or f"call {found.number}", []).append(found)
    blocks: list[list[list[Kept]]] = []
    end = float("-inf")
    for branch in sorted(branches.values(), key=lambda branch: min(found.started for found in branch)):
        after = min(found.started for found in branch) >= end
        if not blocks or (after and not _of_one_step([*blocks[-1], branch], known)):
            blocks.append([])
        blocks[-1].append(branch)
        end = max(end, *(found.ended for found in branch))
    parted = chain.from_iterable(sorted(block, key=lambda branch: _branch_order(branch, known)) for block in blocks)
    return [found.interaction for branch in parted for found in branch]


def _place(caller: Caller, places: Places) -> tuple[int | None, tuple[Any, ...]] | None:
    """Step and path of the outermost node that a call was made in; None of one that is not known, for a subgraph's
    calls bear that graph's own."""
    outer, _, inner = (caller.namespace or "").partition("|")
    return places.get(outer) if inner or outer in places else (caller.step, caller.path)


def _of_one_step(branches: Sequence[Sequence[Kept]], places: Places) -> bool:
    """Branches may be of one step and never overlap: each was answered before the next one asked."""
    found = [_place(branch[0].caller, places) for branch in branches]
    known = [place for place in found if place is not None and place[0] is not None]
    if len(known) < len(found):
        return False
    paths = [path_order(path) for _, path in known]
    return len({step for step, _ in known}) == 1 and len(set(paths)) == len(paths)


def _branch_order(branch: Sequence[Kept], places: Places) -> tuple[object, ...]:
    first = branch[0]
    if not first.caller.namespace:
        return (False, "", (), (), first.number)
    name, place = first.caller.namespace.partition(":")[0], _place(first.caller, places)
    if place is None:
        return (True, name, (), key_of(first.interaction), first.number)
    return (True, name, path_order(place[1]), (), first.number)


def told_apart(found: Sequence[Interaction]) -> list[Interaction]:
    """Branches are named only where several of one node have asked the same: else the request tells whose it is."""
    asked = Counter((key_of(interaction), interaction.node) for interaction in found)
    return [
        interaction
        if interaction.branch is None or asked[key_of(interaction), interaction.node] > 1
        else replace(interaction, branch=None)
        for interaction in found
    ]


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
