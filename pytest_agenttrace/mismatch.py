"""Where two JSON texts differ first, in words a failure message can hold. Standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Final

__all__ = ["closest", "difference", "shortened", "word_difference"]

# Bounds the cost of a comparison, in characters; requests with images are megabytes of base64.
_COMPARED: Final = 100_000
# Words shown before the first difference, and from it on.
_BEFORE, _AFTER = 5, 12
_SHOWN: Final = 60


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT: Final = _Absent()


def shortened(text: str, limit: int = _SHOWN) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3].rstrip() + "..."


def closest(text: bytes, candidates: Sequence[tuple[bytes, float]]) -> int:
    """The index of the candidate most like `text` by the words they share; each brings a bonus to its ratio, 0 to 1."""
    matcher: SequenceMatcher[str] = SequenceMatcher(autojunk=False)
    matcher.set_seq2(_words(text))
    scores: list[float] = []
    for candidate, bonus in candidates:
        matcher.set_seq1(_words(candidate))
        scores.append(matcher.quick_ratio() + bonus)
    return scores.index(max(scores))


def _words(text: bytes) -> list[str]:
    return re.findall(r"\w+", text[:_COMPARED].decode("utf-8", "replace"))


def difference(recorded: bytes, asked: bytes) -> tuple[str, str] | None:
    """The first place where two JSON texts differ, and how: `("contents[0].parts[0].text", "Write [-300-]{+400+}")`.

    Members are compared in the order of their names, so that `contents` come before everything that surrounds them.
    Texts that are not both JSON are compared as one text, named `body`. None where they mean the same.
    """
    try:
        pair: tuple[Any, Any] = (json.loads(recorded), json.loads(asked))
    except ValueError:
        pair = (recorded.decode("utf-8", "replace"), asked.decode("utf-8", "replace"))
    found = _first(*pair, "")
    if found is None:
        return None
    path, old, new = found
    if isinstance(old, str) and isinstance(new, str):
        return path or "body", word_difference(old, new)
    return path or "body", f"recorded {_value(old)}, asked {_value(new)}"


def _value(value: Any) -> str:
    return repr(value) if value is ABSENT else shortened(json.dumps(value, ensure_ascii=False))


def _first(old: Any, new: Any, path: str) -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            place = f"{path}.{name}" if path else name
            if found := _first(old.get(name, ABSENT), new.get(name, ABSENT), place):
                return found
        return None
    if isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            a, b = (items[index] if index < len(items) else ABSENT for items in (old, new))
            if found := _first(a, b, f"{path}[{index}]"):
                return found
        return None
    # True == 1 in Python, not in JSON.
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return None if same else (path, old, new)


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
            shown.append(" ".join(kept[:left]))
        else:
            shown.append(_change(gone, len(gone) < i2 - i1, come, len(come) < j2 - j1))
        left -= max(i2 - i1, j2 - j1)
    more = left < 0 or len(before) > first + len(a) or len(after) > first + len(b)
    return ("... " if first else "") + " ".join(shown) + (" ..." if more else "")


def _unlike(old: Sequence[str], new: Sequence[str]) -> int:
    """The first index at which two sequences differ; the length of the shorter where one begins the other."""
    shorter = min(len(old), len(new))
    return next((index for index in range(shorter) if old[index] != new[index]), shorter)


def _change(gone: Sequence[str], cut: bool, come: Sequence[str], grown: bool) -> str:
    old = f"[-{' '.join(gone)}{' ...' if cut else ''}-]" if gone else ""
    return old + (f"{{+{' '.join(come)}{' ...' if grown else ''}+}}" if come else "")


def _character_difference(old: str, new: str) -> str:
    """For texts that differ in white space only, or have no words worth the name."""
    start = _unlike(old, new)
    first = max(0, start - _SHOWN // 3)
    cut = [repr(text[first : first + _SHOWN]) + ("..." if len(text) > first + _SHOWN else "") for text in (old, new)]
    lead = "..." if first else ""
    return f"recorded {lead}{cut[0]}, asked {lead}{cut[1]}"
