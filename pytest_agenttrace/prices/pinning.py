"""Pins the prices that calls were made at: adds what a file lacks to it, and changes nothing that it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pytest_agenttrace.prices.book import FORMAT, Book, PricesError, composed, lines_of, read_book, shown_path
from pytest_agenttrace.prices.rates import Entry, entry_at
from pytest_agenttrace.prices.table import entry_in_table

__all__ = ["Locked", "Used", "lock"]

_HEAD = f"""# USD per million tokens, searches and grounded_requests per thousand. An entry holds from its day on.
# Written by `agenttrace prices lock`, which adds what is missing and never changes what is here.
format: {FORMAT}
models:
"""


@dataclass(frozen=True, slots=True)
class Used:
    """A call to be priced: the names it may be priced by, the one that answered first, and its day (UTC)."""

    names: tuple[str, ...]
    day: date


@dataclass(frozen=True, slots=True)
class Locked:
    """What a lock has done: how many entries it `added`, how many models the file has, and which calls' models have
    no price to be pinned."""

    added: int
    models: int
    unpriced: tuple[str, ...]


def lock(path: Path, used: Iterable[Used]) -> Locked:
    """Write every price in force for these calls that the file does not have. Entries by hand go before the table's.
    Raises `PricesError` for a file that cannot be read, or not be added to."""
    # An empty file is one to be written.
    book = read_book(path) if path.exists() and composed(path) is not None else Book(path)
    wanted: dict[str, dict[date | None, Entry]] = {}
    unpriced: dict[str, None] = {}
    for call in sorted(set(used), key=lambda call: (call.day, call.names)):
        name, entry = _priced(book, call)
        if name is None:
            unpriced[" or ".join(call.names)] = None
        elif entry is not None:
            wanted.setdefault(name, {})[entry.start] = entry
    if wanted:
        _write(path, book, {name: list(entries.values()) for name, entries in wanted.items()})
    added = sum(map(len, wanted.values()))
    return Locked(added, len({*book.models, *wanted}), tuple(unpriced))


def _priced(book: Book, call: Used) -> tuple[str | None, Entry | None]:
    """By which name a call is priced, and the entry that the file lacks for it, if any."""
    for name in call.names:
        if name in book.models:
            return name, _lacking(book.models[name], name, call.day)
    for name in call.names:
        if (entry := entry_in_table(name, call.day)) is not None:
            return name, entry
    return None, None


def _lacking(entries: tuple[Entry, ...], name: str, day: date) -> Entry | None:
    """The table's entry for a day that the file's entries do not cover; one by hand covers what follows it."""
    there = entry_at(entries, day)
    if there is not None and there.source is None:
        return None
    entry = entry_in_table(name, day)
    return entry if entry is not None and all(entry.start != other.start for other in entries) else None


def _write(path: Path, book: Book, wanted: dict[str, list[Entry]]) -> None:
    """The file's text and the new entries: below their model's others, new models at the end, in order."""
    root = composed(path) if path.exists() else None
    text = path.read_text(encoding="utf-8-sig") if root is not None else _HEAD
    lines = text.splitlines()
    models = next((value for key, value in root.value if key.value == "models"), None) if root is not None else None
    if models is None and root is not None:
        lines.append("models:")
    column, end = 2, len(lines)
    added: list[tuple[int, list[str]]] = []
    if models is not None and models.value:
        column, end = models.start_mark.column, _end(path, models)
        for key, entries in models.value:
            new = wanted.get(key.value.lower().removeprefix("models/"), ())
            if new:
                at = _end(path, entries)
                added.append((at, _indented(entries.start_mark.column, (lines_of(entry) for entry in new))))
    elif models is not None:
        end = models.start_mark.line + 1
    for name in sorted(name for name in wanted if name not in book.models):
        below = _indented(2, (lines_of(entry) for entry in wanted[name]))
        added.append((end, _indented(column, [[f"{name}:", *below]])))
    # From the bottom up, so that what was found above keeps its line.
    for at, block in reversed(added):
        lines[at:at] = block
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _indented(column: int, blocks: Iterable[Iterable[str]]) -> list[str]:
    return [f"{' ' * column}{line}" for block in blocks for line in block]


def _end(path: Path, node: Any) -> int:
    """The line behind the last thing that a node holds. (Its own end lies behind the comments that follow it.)"""
    if node.id != "scalar" and node.flow_style:
        place = f"{shown_path(path)}:{node.start_mark.line + 1}"
        raise PricesError(f"{place}: written in brackets, to which nothing can be added. Write it line by line.")
    while node.id != "scalar" and node.value and not node.flow_style:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.line) + 1
