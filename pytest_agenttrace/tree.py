"""Draws any tree as text, with aligned columns and marks at the margin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unicodedata import combining, east_asian_width

__all__ = ["Branch", "draw", "printable", "printable_lines"]

_UNICODE = ("├─ ", "└─ ", "│  ", "   ")
_ASCII = ("|- ", "`- ", "|  ", "   ")


@dataclass(frozen=True, slots=True)
class Branch:
    """One line of a tree. `cells` are its columns; `note` follows them, `tag` follows
    the label; `mark` is one character for the margin."""

    label: str
    cells: tuple[str, ...] = ()
    note: str = ""
    tag: str = ""
    mark: str = " "
    children: tuple[Branch, ...] = ()


def draw(branches: Iterable[Branch], *, ascii_only: bool = False) -> str:
    """The tree as lines joined by newlines. Columns are as wide as their widest cell."""
    rules = _ASCII if ascii_only else _UNICODE
    rows = [row for branch in branches for row in _rows(branch, rules)]
    width = max((_columns(label) for label, branch in rows if any(branch.cells)), default=0)
    columns = max((len(branch.cells) for _, branch in rows), default=0)
    widths = [max((_columns(_cell(branch, i)) for _, branch in rows), default=0) for i in range(columns)]
    marked = any(branch.mark != " " for _, branch in rows)
    return "\n".join(_line(label, branch, width, widths, marked) for label, branch in rows)


def _rows(root: Branch, rules: tuple[str, str, str, str]) -> Iterator[tuple[str, Branch]]:
    tee, corner, bar, gap = rules
    waiting = [(root, "", "")]
    while waiting:
        branch, lead, below = waiting.pop()
        tag = f"  {branch.tag}" if branch.tag else ""
        yield printable(f"{lead}{branch.label}{tag}"), branch
        last = len(branch.children) - 1
        for i, child in reversed(list(enumerate(branch.children))):
            waiting.append((child, below + (corner if i == last else tee), below + (gap if i == last else bar)))


def _cell(branch: Branch, index: int) -> str:
    return printable(branch.cells[index]) if index < len(branch.cells) else ""


def printable(text: str) -> str:
    """Text that stays on its line and can be printed anywhere: no line ends, escapes or lone surrogates."""
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def printable_lines(text: str) -> str:
    """The same of a text of several lines."""
    return "\n".join(map(printable, text.split("\n")))


def _columns(text: str) -> int:
    """How wide a terminal draws it."""
    return sum(2 if east_asian_width(char) in "WF" else 0 if combining(char) else 1 for char in text)


def _padded(text: str, width: int) -> str:
    """Numbers to the right; money to the left, so that its decimal points stand below each other."""
    space = " " * (width - _columns(text))
    return text + space if text.startswith("$") else space + text


def _line(label: str, branch: Branch, width: int, widths: list[int], marked: bool) -> str:
    texts = [(_cell(branch, i), w) for i, w in enumerate(widths) if w]
    cells = "".join("  " + _padded(text, w) for text, w in texts)
    note = f"   {printable(branch.note)}" if branch.note else ""
    margin = f"{branch.mark} " if marked else ""
    return f"{margin}{label}{' ' * (width - _columns(label))}{cells}{note}".rstrip()
