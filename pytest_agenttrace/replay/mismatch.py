"""Where two JSON texts differ first, in words a failure message can hold. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Any, Final

__all__ = ["changes", "difference", "differing", "edit_in", "ranked", "shortened", "word_difference"]

# Bounds the cost of a comparison, in characters; requests with images are megabytes of base64.
_COMPARED: Final = 100_000
# Bounds what is compared word by word for one miss, in characters: a third of a second.
_COMPARED_TOGETHER: Final = 5_000_000
# What a request asks comes first, in this order, before its settings; of a tool its name.
_FIRST: Final = ("name", "contents", "content", "requests", "instances", "systemInstruction", "system_instruction")
# Words shown before the first difference, and from it on.
_BEFORE, _AFTER = 5, 12
_SHOWN: Final = 60


_CHANGE = re.compile(r"\[-.*?-\]|\{\+.*?\+\}")


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT: Final = _Absent()


def shortened(text: str, limit: int = _SHOWN) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


def ranked(text: bytes, candidates: Sequence[tuple[bytes, float]]) -> list[int]:
    """The indices of the candidates most like `text` by the words they share, best first; each candidate brings a bonus
    to its ratio, 0 to 1. Of many megabytes only the likeliest are compared, and the others left out."""
    matcher: SequenceMatcher[str] = SequenceMatcher(autojunk=False)
    matcher.set_seq2(_words(text))
    scores: dict[int, float] = {}
    for index in _likeliest(text, [candidate for candidate, _ in candidates]):
        matcher.set_seq1(_words(candidates[index][0]))
        scores[index] = matcher.quick_ratio() + candidates[index][1]
    return sorted(scores, key=lambda index: (-scores[index], index))


def _words(text: bytes) -> list[str]:
    return re.findall(r"\w+", text[:_COMPARED].decode("utf-8", "replace"))


def _likeliest(text: bytes, candidates: Sequence[bytes]) -> Iterable[int]:
    """As many candidates as may be compared, in turn those that begin and end alike, and those of about one length."""
    everything = range(len(candidates))
    if sum(min(len(candidate), _COMPARED) for candidate in candidates) <= _COMPARED_TOGETHER:
        return everything
    alike = sorted(everything, key=lambda index: -_ends_in_common(text, candidates[index]))
    long = sorted(everything, key=lambda index: abs(len(candidates[index]) - len(text)))
    chosen: dict[int, None] = {}
    left = _COMPARED_TOGETHER
    for index in (index for pair in zip(alike, long, strict=True) for index in pair):
        left -= 0 if index in chosen else min(len(candidates[index]), _COMPARED)
        if left < 0:
            break
        chosen.setdefault(index)
    return chosen


def _ends_in_common(one: bytes, two: bytes) -> float:
    """The share of two texts that is the same at their start and at their end."""
    shorter, longer = sorted((len(one), len(two)))
    start = _common(shorter, lambda a, b: one[a:b] == two[a:b])
    left = shorter - start
    end = _common(left, lambda a, b: one[len(one) - b : len(one) - a] == two[len(two) - b : len(two) - a])
    return (start + end) / max(longer, 1)


def _common(length: int, same: Callable[[int, int], bool]) -> int:
    """How far two texts are the same: by halves, for bytes compare fast and loops do not."""
    low, high = 0, length
    while low < high:
        middle = (low + high + 1) // 2
        if same(low, middle):
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(frozen=True, slots=True)
class _Found:
    """One place where two bodies differ. `count` values are `old` or `new` alone, where the other is absent."""

    path: str
    old: Any
    new: Any
    count: int = 1


def difference(recorded: bytes, asked: bytes) -> tuple[str, str] | None:
    """The first place where two JSON texts differ, and how: `("contents[0].parts[0].text", "Write [-300-]{+400+}")`.

    What is asked comes first, its messages and the system instruction; then the other members by their names. Texts
    that are not both JSON are compared as one text, named `body`. None where they mean the same.
    """
    pair = _parsed(recorded, asked)
    found = next(_differences(*pair, ""), None)
    if found is None:
        return None
    path = found.path or "body"
    tool = _tool_at(path, pair[0])
    if tool is not None and tool == _tool_at(path, pair[1]):
        path += f" (tool {tool})"
    if isinstance(found.old, str) and isinstance(found.new, str):
        return path, word_difference(found.old, found.new)
    return path, _added(found) or f"recorded {_value(found.old)}, asked {_value(found.new)}"


def differing(recorded: bytes, asked: bytes) -> str | None:
    """The path of the only value that differs in two JSON texts; None where more does, or where one has no value."""
    found = list(islice(_differences(*_parsed(recorded, asked), ""), 2))
    if len(found) != 1 or any(value is ABSENT or isinstance(value, dict | list) for value in _both(found[0])):
        return None
    return found[0].path or None


def changes(recorded: bytes, asked: bytes) -> list[str]:
    """Every place where two JSON texts differ: `generationConfig.temperature absent -> 0.2`."""
    told: list[str] = []
    for found in _differences(*_parsed(recorded, asked), ""):
        path = found.path or "body"
        if isinstance(found.old, str) and isinstance(found.new, str):
            told.append(f"{path} {word_difference(found.old, found.new)}")
        else:
            old, new = (("absent" if value is ABSENT else _value(value)) for value in _both(found))
            told.append(f"{path} {old} -> {new}")
    return told


def edit_in(line: str) -> str:
    """The words that changed, `[-300-]{+400+}`, without those round them, which a template fills in; "" where none
    did."""
    return "".join(_CHANGE.findall(line))


def _both(found: _Found) -> tuple[Any, Any]:
    return found.old, found.new


def _parsed(recorded: bytes, asked: bytes) -> tuple[Any, Any]:
    try:
        return json.loads(recorded), json.loads(asked)
    except (ValueError, RecursionError):
        return recorded.decode("utf-8", "replace"), asked.decode("utf-8", "replace")


def _value(value: Any) -> str:
    return repr(value) if value is ABSENT else shortened(json.dumps(value, ensure_ascii=False))


def _differences(old: Any, new: Any, path: str) -> Iterator[_Found]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(
            {*old, *new}, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)
        ):
            place = f"{path}.{name}" if path else name
            yield from _differences(old.get(name, ABSENT), new.get(name, ABSENT), place)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _list_differences(old, new, path)
    # True == 1 in Python, not in JSON.
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield _Found(path, old, new)


def _list_differences(old: list[Any], new: list[Any], path: str) -> Iterator[_Found]:
    """Element by element; what only one side has, wherever it was put in, is one difference."""
    start = _unlike(old, new)
    more = abs(len(new) - len(old))
    if more and old[start:] == new[start + more :]:
        yield _Found(f"{path}[{start}]", ABSENT, new[start], more)
        return
    if more and new[start:] == old[start + more :]:
        yield _Found(f"{path}[{start}]", old[start], ABSENT, more)
        return
    shorter = min(len(old), len(new))
    for index in range(shorter):
        yield from _differences(old[index], new[index], f"{path}[{index}]")
    if len(new) > shorter:
        yield _Found(f"{path}[{shorter}]", ABSENT, new[shorter], more)
    elif len(old) > shorter:
        yield _Found(f"{path}[{shorter}]", old[shorter], ABSENT, more)


# What may be added or taken away as a whole, in a reader's words.
_MESSAGE = re.compile(r"contents\[\d+\]")
_TOOL = re.compile(r"tools\[(\d+)\]\.functionDeclarations\[(\d+)\]")


def _tool_at(path: str, body: Any) -> str | None:
    """The name of the tool that a path leads into."""
    found = _TOOL.match(path)
    if found is None:
        return None
    with suppress(LookupError, TypeError):
        return str(body["tools"][int(found[1])]["functionDeclarations"][int(found[2])]["name"])
    return None


def _added(found: _Found) -> str | None:
    """What was added to a request, or taken away, where it is a message, a tool or a system instruction."""
    if found.new is not ABSENT and found.old is not ABSENT:
        return None
    added = found.old is ABSENT
    value = found.new if added else found.old
    with suppress(LookupError, TypeError, AttributeError):
        if _MESSAGE.fullmatch(found.path):
            return _counted(found.count, "message", added, _message(value))
        if _TOOL.fullmatch(found.path):
            return _counted(found.count, "tool", added, str(value["name"]))
        if found.path == "tools":
            names = [declared["name"] for tool in value for declared in tool["functionDeclarations"]]
            return _with("tools", added, ", ".join(names))
        if found.path in ("systemInstruction", "system_instruction"):
            return _with("a system instruction", added, repr(_said(value)))
    return None


def _counted(count: int, what: str, added: bool, first: str) -> str:
    than = "more than recorded" if added else "less than recorded"
    return f"one {what} {than}: {first}" if count == 1 else f"{count} {what}s {than}, the first: {first}"


def _with(what: str, added: bool, value: str) -> str:
    return f"recorded without {what}, asked with {value}" if added else f"recorded with {what}, {value}, asked without"


def _message(content: Any) -> str:
    return f"{content.get('role', 'user')} {_said(content)!r}"


def _said(content: Any) -> str:
    """The start of what a message says; a tool's call or reply by the tool's name."""
    parts = content["parts"]
    said = [part["text"] for part in parts if part.get("text")]
    said += [f"call of {part['functionCall']['name']}" for part in parts if "functionCall" in part]
    said += [f"reply of {part['functionResponse']['name']}" for part in parts if "functionResponse" in part]
    return shortened(" ".join(said))


def word_difference(old: str, new: str) -> str:
    """Some words round the first difference, as `Write [-300-]{+400+} words`, on one line."""
    before, after = old.split(), new.split()
    start = _unlike(before, after)
    differing = [*before[start : start + 1], *after[start : start + 1]]
    if before == after or any(len(word) > _SHOWN for word in differing):
        return _character_difference(old, new)
    first = max(0, start - _BEFORE)
    # More is compared than is shown: where one side is cut, everything behind the cut looks changed.
    a, b = before[first : start + 5 * _AFTER], after[first : start + 5 * _AFTER]
    shown, left = [], _AFTER + start - first
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if left <= 0:
            break
        kept, gone, come = a[i1:i2], a[i1:i2][:left], b[j1:j2][:left]
        if tag == "equal":
            shown.append(_line(kept[:left]))
        else:
            shown.append(_change(gone, len(gone) < i2 - i1, come, len(come) < j2 - j1))
        left -= max(i2 - i1, j2 - j1)
    more = left < 0 or len(before) > first + len(a) or len(after) > first + len(b)
    return ("... " if first else "") + " ".join(shown) + (" ..." if more else "")


def _unlike(old: Sequence[Any], new: Sequence[Any]) -> int:
    """The first index at which two sequences differ; the length of the shorter where one begins the other."""
    shorter = min(len(old), len(new))
    return next((index for index in range(shorter) if old[index] != new[index]), shorter)


def _change(gone: Sequence[str], cut: bool, come: Sequence[str], grown: bool) -> str:
    old = f"[-{_line(gone)}{' ...' if cut else ''}-]" if gone else ""
    return old + (f"{{+{_line(come)}{' ...' if grown else ''}+}}" if come else "")


def _line(words: Sequence[str]) -> str:
    return " ".join(shortened(word) for word in words)


def _character_difference(old: str, new: str) -> str:
    """For texts that differ in white space only, or have no words worth the name."""
    start = _unlike(old, new)
    first = max(0, start - _SHOWN // 3)
    cut = [repr(text[first : first + _SHOWN]) + ("..." if len(text) > first + _SHOWN else "") for text in (old, new)]
    lead = "..." if first else ""
    return f"recorded {lead}{cut[0]}, asked {lead}{cut[1]}"
