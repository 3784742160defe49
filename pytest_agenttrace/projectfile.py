"""The table `[tool.agenttrace]` of a project's pyproject.toml, and where its keys stand; not what they mean."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["ProjectError", "ProjectFile", "Quoted", "matches", "mentions_us", "nearest", "read_project"]

NAME = "pyproject.toml"
TABLES = ("budgets", "traffic")
# Not a dependency on pytest-agenttrace, and no ini key: what a table or a key of it is called.
_OURS = re.compile(r"(?<![\w-])agenttrace(?![\w-])")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ABSENT = object()

# A key is a name, or the index of an entry of an array.
Key = str | int


class ProjectError(ValueError):
    """A pyproject.toml that cannot be meant; `problems` holds one line for each thing wrong."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class _Number(Decimal):
    """A TOML float, to its last digit, and its text: a float has other digits, and none below 5e-324."""

    text: str

    def __new__(cls, text: str) -> _Number:
        try:
            number = super().__new__(cls, text)
        except InvalidOperation:  # of an exponent of twenty digits
            number = super().__new__(cls, "NaN")
        number.text = text
        return number


class Quoted(str):
    """A TOML value as it would be written."""

    def __new__(cls, value: object) -> Quoted:
        if isinstance(value, _Number):
            return super().__new__(cls, value.text)
        # The rest is shown as Python does: dates, tables.
        plain = isinstance(value, str | int)
        return super().__new__(cls, json.dumps(value, ensure_ascii=False) if plain else str(value))


class ProjectFile:
    """A pyproject.toml's text and its table `tool.agenttrace`."""

    def __init__(self, text: str, table: Mapping[str, Any]) -> None:
        self.table = table
        self._text = text

    def where(self, *keys: Key) -> str:
        """`pyproject.toml:12: tool.agenttrace.budgets.tokens`; without the line where nobody knows it."""
        line = self._line(("tool", "agenttrace", *keys))
        return f"{NAME}{'' if line is None else f':{line}'}: {path_of(keys)}"

    def source(self, *keys: Key) -> str:
        """`pyproject.toml: tool.agenttrace.budgets.tokens`: what stands still when lines move."""
        return f"{NAME}: {path_of(keys)}"

    def unknown_tables(self) -> list[str]:
        """What is wrong with the tables' names."""
        return [
            f"{self.where(key)}: unknown table{nearest(key, TABLES)} [tool.agenttrace] has {', '.join(TABLES)}"
            for key in self.table
            if key not in TABLES
        ]

    def _line(self, path: Sequence[Key]) -> int | None:
        for line, certain, data in self._steps:
            if _get(data, path) is not _ABSENT:
                return line if certain else None
        return None

    @cached_property
    def _steps(self) -> list[tuple[int, bool, Any]]:
        """What TOML's own reader makes of the file up to each line that ends something: a statement, or an entry of an
        array over several lines. `certain` where that line is all there is to it."""
        steps: list[tuple[int, bool, Any]] = []
        lines = self._text.split("\n")
        # Nothing of ours begins before the first word of us.
        start = next((number for number, line in enumerate(lines) if mentions_us(line)), 0)
        for end in range(start + 1, len(lines) + 1):
            data = _tables_so_far("\n".join(lines[:end]))
            if data is None:
                data = _tables_so_far("\n".join(lines[:end]) + "\n]")
            if data is not None:
                steps.append((end, end == start + 1, data))
                start = end
        return steps


def path_of(keys: Sequence[Key]) -> str:
    """Keys below `tool.agenttrace` as TOML writes them."""
    text = "tool.agenttrace"
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f".{key if _BARE.fullmatch(key) else Quoted(key)}"
    return text


def _tables(text: str) -> dict[str, Any]:
    """Raises `ProjectError`."""
    import tomllib

    try:
        return tomllib.loads(text, parse_float=_Number)
    except (ValueError, RecursionError) as error:  # the first: TOMLDecodeError, and a number of too many digits
        raise ProjectError([f"{NAME}: {error}"]) from None


def _tables_so_far(text: str) -> dict[str, Any] | None:
    try:
        return _tables(text)
    except ProjectError:
        return None


def _get(data: Any, path: Sequence[Key]) -> Any:
    for key in path:
        inside = key in data if isinstance(data, dict) else isinstance(data, list) and key in range(len(data))
        if not inside:
            return _ABSENT
        data = data[key]
    return data


def mentions_us(text: str) -> bool:
    """Whether a pyproject.toml may have a table of ours: cheap, for every start of pytest."""
    return _OURS.search(text) is not None


def read_project(root: Path) -> ProjectFile | None:
    """The file of a project, None where it has none or nothing in it is ours. Raises `ProjectError`."""
    try:
        text = (root / NAME).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except (OSError, ValueError) as error:
        raise ProjectError([f"{NAME}: cannot be read: {error}"]) from None
    if not mentions_us(text):
        return None
    tool = _tables(text).get("tool")
    table = tool.get("agenttrace") if isinstance(tool, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise ProjectError([f"{ProjectFile(text, {}).where()} = {Quoted(table)} is not a table"])
    return ProjectFile(text, table)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean 'tokens'?`, or a full stop."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def matches(pattern: str, nodeid: str) -> bool:
    """Whether a pattern is for a test: it names, or matches as fnmatch does, the test with or without its parameter,
    its class, its file, or a folder of that."""
    pattern = pattern.rstrip("/")
    return any(name == pattern or fnmatchcase(name, pattern) for name in _names(nodeid))


def _names(nodeid: str) -> Iterable[str]:
    yield nodeid
    file, *inside = nodeid.partition("[")[0].split("::")
    names = file.split("/")
    yield from ("/".join(names[:end]) for end in range(1, len(names) + 1))
    yield from ("::".join([file, *inside[:end]]) for end in range(1, len(inside) + 1))
