"""A file of prices: what a project pins or overrides, in YAML, as text that a person can read and compare."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn

from pytest_agenttrace.prices.rates import PER_THOUSAND, RATES, TIERS, Entry, Rate, Rates, missing_rates

__all__ = ["FORMAT", "Book", "PricesError", "composed", "lines_of", "read_book", "shown_path"]

FORMAT = "1"
_AMOUNT = re.compile(r"\d+(\.\d+)?", re.ASCII)
_WHOLE = re.compile(r"\d{1,12}", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_KEYS = ("format", "only", "tier", "models")
_ENTRY_KEYS = ("source", "from", *RATES, "above", *TIERS)
_KINDS = {"mapping": "a mapping", "sequence": "a list", "scalar": "text"}


class PricesError(ValueError):
    """A file of prices that cannot be used; the message starts with `path` or `path:line`."""


@dataclass(frozen=True, slots=True)
class Book:
    """The prices of a file. `only` where a model that it does not list has no price at all; `tier` is the service tier
    that every call is billed as, whatever its reply says, None where each is billed as what it says."""

    path: Path
    models: Mapping[str, tuple[Entry, ...]] = field(default_factory=dict)
    only: bool = False
    tier: str | None = None


def shown_path(path: Path) -> str:
    """The path as a user would type it: relative to the working directory where it lies below it."""
    with suppress(ValueError, OSError):
        return path.absolute().relative_to(Path.cwd()).as_posix()
    return str(path)


def read_book(path: Path) -> Book:
    """The prices of a file. Raises `PricesError`, one line with the place and the way out, for whatever is wrong."""
    root = composed(path)
    if root is None:
        _fail(path, None, "the file is empty", "Write it with: agenttrace prices lock")
    top = _Node(path, root, "")
    keys = top.keys(_KEYS)
    if "format" not in keys:
        top.fail("the file does not say its format", f"Write format: {FORMAT}.")
    keys["format"].choice((FORMAT,))
    only = keys["only"].choice(("true", "false")) == "true" if "only" in keys else False
    tier = keys["tier"].choice(("standard", *TIERS)) if "tier" in keys else None
    models = {
        name.lower().removeprefix("models/"): _entries(entries)
        for name, entries in (keys["models"].items() if "models" in keys and keys["models"].node.value else ())
    }
    return Book(path, models, only, tier)


def composed(path: Path) -> Any:
    """The file's YAML as nodes, which know their lines; None for an empty file."""
    import yaml

    if path.exists() and not path.is_file() and not path.is_dir():
        _fail(path, None, "is no regular file", "Name another one.")
    try:
        return yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        _fail(path, None, "no such file", "Write it with: agenttrace prices lock")
    except OSError as error:
        _fail(path, None, f"cannot be read: {error.strerror or error}", "Name another file.")
    except UnicodeDecodeError:
        _fail(path, None, "is not UTF-8 text", "Name another file.")
    except RecursionError:
        _fail(path, None, "is nested too deep to be a file of prices", "Name another file.")
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        _fail(path, None if mark is None else mark.line + 1, f"no YAML: {problem}", "Mend the line, or lock anew.")


def _fail(path: Path, line: int | None, problem: str, out: str) -> NoReturn:
    place = "" if line is None else f":{line}"
    raise PricesError(f"{shown_path(path)}{place}: {problem}. {out}") from None


@dataclass(frozen=True, slots=True)
class _Node:
    """A YAML node, the place it has in the file, and what it is called in a complaint."""

    path: Path
    node: Any
    name: str

    def fail(self, problem: str, out: str) -> NoReturn:
        _fail(self.path, self.node.start_mark.line + 1, problem, out)

    def said(self) -> str:
        return repr(self.node.value) if self.node.id == "scalar" else _KINDS[self.node.id]

    def need(self, kind: str) -> None:
        if self.node.id != kind:
            what = self.name or "the file"
            self.fail(f"{what} is {self.said()}, not {_KINDS[kind]}", "See the README, Prices.")

    def text(self) -> str:
        self.need("scalar")
        return str(self.node.value)

    def choice(self, known: tuple[str, ...]) -> str:
        if self.text() not in known:
            self.fail(f"{self.name} is {self.said()}", f"It is one of {', '.join(known)}.")
        return self.text()

    def items(self) -> Iterator[tuple[str, _Node]]:
        self.need("mapping")
        seen: set[str] = set()
        for key, value in self.node.value:
            name = _Node(self.path, key, f"a key of {self.name or 'the file'}").text()
            found = _Node(self.path, value, f"{self.name}.{name}" if self.name else name)
            if name in seen:
                _Node(self.path, key, "").fail(f"{found.name} is there twice", "Leave one of the two.")
            seen.add(name)
            yield name, found

    def keys(self, known: Iterable[str]) -> dict[str, _Node]:
        found: dict[str, _Node] = {}
        for name, value in self.items():
            if name not in known:
                near = difflib.get_close_matches(name, list(known), n=1)
                hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}."
                value.fail(f"{value.name} is no key", hint)
            found[name] = value
        return found


def _entries(given: _Node) -> tuple[Entry, ...]:
    given.need("sequence")
    if not given.node.value:
        given.fail(f"{given.name} has no prices", "Give it an entry, or take the name away.")
    found: list[Entry] = []
    for index, node in enumerate(given.node.value):
        place = _Node(given.path, node, f"{given.name}[{index}]")
        entry = _entry(place)
        if any(other.start == entry.start for other in found):
            when = "without a date" if entry.start is None else f"from {entry.start}"
            place.fail(f"{given.name} has two entries {when}", "Leave one of the two.")
        found.append(entry)
    return tuple(found)


def _entry(given: _Node) -> Entry:
    keys = given.keys(_ENTRY_KEYS)
    start: date | None = None
    if "from" in keys:
        text = keys["from"].text()
        try:
            start = date.fromisoformat(text if _DATE.fullmatch(text) else "")
        except ValueError:
            keys["from"].fail(f"{keys['from'].name} is {keys['from'].said()}, not a day", "Write it as 2026-01-31.")
    rates = _rates(given, {name: value for name, value in keys.items() if name not in TIERS})
    if (missing := missing_rates(rates)) is not None:
        given.fail(f"{given.name} has no {missing[0]}, and {missing[1]}", "Give it that rate.")
    if not any(name not in PER_THOUSAND for name in rates):
        given.fail(f"{given.name} has no rates", 'Give it input and output; what is free costs "0".')
    tiers: dict[str, Rates] = {}
    for tier in TIERS:
        if tier in keys:
            tiers[tier] = _rates(keys[tier], keys[tier].keys((*RATES, "above")))
            if (missing := missing_rates({**rates, **tiers[tier]})) is not None:
                keys[tier].fail(f"{keys[tier].name} has no {missing[0]}, and {missing[1]}", "Give it that rate.")
    return Entry(start, rates, tiers, keys["source"].text() if "source" in keys else None)


def _rates(given: _Node, keys: Mapping[str, _Node]) -> dict[str, Rate]:
    base = {name: _amount(value) for name, value in keys.items() if name in RATES}
    above: dict[str, dict[int, Decimal]] = {name: {} for name in base}
    for size, dearer in keys["above"].items() if "above" in keys else ():
        if not _WHOLE.fullmatch(size):
            dearer.fail(f"{dearer.name}: {size!r} is no number of tokens", "Write it as 200000.")
        for name, value in dearer.keys(RATES).items():
            if name not in base:
                value.fail(f"{value.name} has no rate below {size} tokens", f"Give {given.name} a rate {name}.")
            above[name][int(size)] = _amount(value)
    return {name: Rate(amount, tuple(sorted(above[name].items()))) for name, amount in base.items()}


def _amount(given: _Node) -> Decimal:
    text = given.text()
    if not _AMOUNT.fullmatch(text):
        given.fail(f"{given.name} is {given.said()}, not an amount of USD", "Write it as 0.30.")
    return Decimal(text)


def lines_of(entry: Entry) -> list[str]:
    """An entry as the lines of a file, its first with `- `; rates in their own order, amounts with all digits."""
    head = [f"source: {entry.source}"] if entry.source is not None else []
    head += [f"from: {entry.start.isoformat()}"] if entry.start is not None else []
    lines = [*head, *_rate_lines(entry.rates)]
    for tier in TIERS:
        if tier in entry.tiers:
            own = _rate_lines(entry.tiers[tier])
            lines += [f"{tier}:", *(f"  {line}" for line in own)] if own else [f"{tier}: {{}}"]
    return [f"{'  ' if index else '- '}{line}" for index, line in enumerate(lines)]


def _rate_lines(rates: Rates) -> list[str]:
    lines = [f"{name}: {_said(rates[name].base)}" for name in RATES if name in rates]
    sizes = sorted({size for rate in rates.values() for size, _ in rate.above})
    lines += ["above:"] if sizes else []
    for size in sizes:
        lines.append(f"  {size}:")
        lines += [f"    {name}: {_said(dict(rates[name].above)[size])}" for name in RATES if _dearer(rates, name, size)]
    return lines


def _dearer(rates: Rates, name: str, size: int) -> bool:
    return name in rates and size in dict(rates[name].above)


def _said(amount: Decimal) -> str:
    """Every digit that matters, two decimals at least: `0.30`, `0.0375`."""
    whole, _, decimals = format(amount, "f").partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"
