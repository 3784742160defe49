"""What was sent, then and now: edits of request bodies, models asked, calls that came or went."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from pytest_agenttrace.ledger import CallFacts, TestFacts, Value
from pytest_agenttrace.report.differences import Difference, Level
from pytest_agenttrace.report.structure import cut_short
from pytest_agenttrace.report.wording import counted, listed, shown

__all__ = ["Requests"]

_INDEX = re.compile(r"\[\d+\]")
_EXAMPLES, _NODES = 2, 3
_ABSENT = "(absent)"


@dataclass
class _Edit:
    """One member of requests that is another now, wherever it was met."""

    requests: int = 0
    tests: dict[str, None] = field(default_factory=dict)
    nodes: dict[str | None, None] = field(default_factory=dict)
    changes: dict[tuple[object, object], int] = field(default_factory=dict)


class Requests:
    """Collects the edits of all tests; one edit is one difference."""

    def __init__(self) -> None:
        self._edits: dict[str, _Edit] = {}
        self._models: dict[tuple[str, str], _Edit] = {}
        self._came: dict[tuple[str | None, str], _Edit] = {}

    def compare(self, test: str, old: TestFacts, new: TestFacts) -> None:
        """Take in one test. A node that came or went is told elsewhere."""
        short = cut_short(old, new)
        nodes = dict.fromkeys(call.node for call in (*old.calls, *new.calls))
        for node in nodes:
            if node is not None and (node not in old.nodes or node not in new.nodes):
                continue
            was, now = ([call for call in facts.calls if call.node == node] for facts in (old, new))
            for before, after in _aligned(was, now):
                if after is not None or not short:
                    self._pair(test, node, before, after)

    def _pair(self, test: str, node: str | None, before: CallFacts | None, after: CallFacts | None) -> None:
        if before is None or after is None:
            _note(self._came.setdefault((node, "vanished" if after is None else "appeared"), _Edit()), test, node)
            return
        for word, was, now in (
            ("model", before.model, after.model),
            ("method", before.method, after.method),
            ("answered by", before.answered_by, after.answered_by),
        ):
            # An answer by the model that is asked now is told by that one.
            if was != now and None not in (was, now) and (word != "answered by" or before.model == after.model):
                edit = self._models.setdefault((word, f"{was} -> {now}"), _Edit())
                _note(edit, test, node)
        for path, (one, other) in _edits(before.request, after.request).items():
            edit = self._edits.setdefault(path, _Edit())
            _note(edit, test, node)
            edit.changes[one, other] = edit.changes.get((one, other), 0) + 1

    def differences(self) -> Iterator[Difference]:
        """What was collected, what is met most first."""
        for (word, change), edit in self._models.items():
            text = f"{word} {change} in {counted(edit.requests, 'request')} of {listed(_names(edit), _NODES)}"
            level: Level = "informational" if word == "answered by" else "request"
            yield Difference(level, word, _only(edit), text, tuple(edit.tests))
        for (node, change), edit in self._came.items():
            text = f"{node or '(no node)'}: {counted(edit.requests, 'call')} {change}"
            yield Difference("request", f"call {change}", node, text, tuple(edit.tests))
        for path, edit in sorted(self._edits.items(), key=lambda found: (-found[1].requests, found[0])):
            yield _told(path, edit)


def _told(path: str, edit: _Edit) -> Difference:
    changes = [f"{_value(one)} -> {_value(other)}" for one, other in edit.changes]
    where = f"in {counted(edit.requests, 'request')}"
    node = _only(edit)
    if len(changes) == 1:
        ((one, other),) = edit.changes
        values = {"old": _plain(one), "new": _plain(other)}
        return Difference("request", "body", node, f"{path} {changes[0]} {where}", tuple(edit.tests), (), **values)
    more = [f"and {len(changes) - _EXAMPLES} more edits"] if len(changes) > _EXAMPLES + 1 else changes[_EXAMPLES:]
    evidence = (*changes[:_EXAMPLES], *more)
    return Difference("request", "body", node, f"{path} changed {where}", tuple(edit.tests), evidence)


def _note(edit: _Edit, test: str, node: str | None) -> None:
    edit.requests += 1
    edit.tests[test] = edit.nodes[node] = None


def _names(edit: _Edit) -> list[str]:
    return [node or "(no node)" for node in edit.nodes]


def _only(edit: _Edit) -> str | None:
    return next(iter(edit.nodes)) if len(edit.nodes) == 1 else None


def _value(value: object) -> str:
    return _ABSENT if value is _MISSING else shown(value)


def _plain(value: object) -> Value:
    return value if isinstance(value, str | int | float | bool) else None


_MISSING = object()


def _edits(old: Mapping[str, Value], new: Mapping[str, Value]) -> dict[str, tuple[object, object]]:
    """Members that differ, by their paths without indexes. What a conversation holds more is one edit by its path."""
    found: dict[str, tuple[object, object]] = {}
    for path in dict.fromkeys([*old, *new]):
        one, other = old.get(path, _MISSING), new.get(path, _MISSING)
        if one != other:
            found.setdefault(_INDEX.sub("[]", path), (one, other))
    return found


def _aligned(old: Sequence[CallFacts], new: Sequence[CallFacts]) -> Iterator[tuple[CallFacts | None, CallFacts | None]]:
    """Calls of a node with their counterparts: by place, and where there are more or fewer, by what they ask."""
    if len(old) == len(new):
        yield from zip(old, new, strict=True)
        return
    was, now = ([_asked(call) for call in calls] for calls in (old, new))
    for _, i, end_i, j, end_j in SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        for step in range(max(end_i - i, end_j - j)):
            yield (
                old[i + step] if i + step < end_i else None,
                new[j + step] if j + step < end_j else None,
            )


def _asked(call: CallFacts) -> tuple[object, ...]:
    return call.method, call.model, tuple(sorted(call.request.items(), key=str))
