"""What of a request is volatile and no part of its match: dates, ids, regular expressions, members of the body.

Standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

__all__ = ["NOTHING_IGNORED", "VOLATILE", "Ignore", "is_path", "read_ignore"]

_WEEKDAYS = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b"
_WEEKDAY = rf"(?:{_WEEKDAYS}|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)\b\.?)"
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\b\.?"
)
_YEAR, _MM, _DD = r"[12]\d{3}(?!\d)", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_MONTH_NUMBER, _DAY_NUMBER = rf"(?:{_MM}|[1-9])", rf"(?:{_DD}|[1-9])"
_DAY = rf"{_DAY_NUMBER}(?:st|nd|rd|th)?"
_TIME = r"[0-2]?\d:[0-5]\d(?::[0-6]\d(?:[.,]\d{1,9})?)?"
_ZONE = r"(?:(?:Z|UTC|GMT|BST|CES?T|EES?T|IST|JST|MSK|[ECMP][SD]T)\b)"
_OFFSET = r"(?:[+-]\d\d(?::?\d\d)?(?![\d:])(?: \([A-Z][A-Za-z ]{1,40}\))?)"
_CLOCK = rf"{_TIME}(?: ?(?:[AaPp][Mm]\b|[ap]\.m\.))?(?: ?(?:{_ZONE}{_OFFSET}?|{_OFFSET}))?"
_DATES = "|".join(
    (
        rf"[12]\d{{3}}([-/]){_MONTH_NUMBER}\1{_DAY_NUMBER}(?!\d)",
        rf"[12]\d{{3}}{_MM}{_DD}T[0-2]\d[0-5]\d[0-6]\d(?:Z\b|[+-]\d{{4}}(?!\d))?",
        rf"{_MONTH_NUMBER}([-/]){_DAY_NUMBER}\2{_YEAR}",
        rf"{_DAY_NUMBER}([-/.]){_MONTH_NUMBER}\3{_YEAR}",
        rf"{_DAY}(?: of)?[ -]{_MONTH},?[ -]{_YEAR}",
        # The first two as C's asctime and the command `date` write them.
        rf"\b{_MONTH} {{1,2}}{_DAY_NUMBER} {_TIME}(?: {_ZONE})? {_YEAR}",
        rf"\b{_MONTH} {{1,2}}{_DAY},? {_YEAR}",
        rf"\b{_MONTH} {_YEAR}",
    )
)
_DATE = (
    rf"(?:\b{_WEEKDAY},? )?(?:(?<!\d){_CLOCK},? (?:on )?)?(?:\b{_WEEKDAY},? )?(?<![\d.])(?:{_DATES})(?!\.\d)"
    rf"(?:(?:T|,? |,? at ){_CLOCK})?(?:,? (?:{_WEEKDAYS}|\({_WEEKDAYS}\)))?"
)
# Every date holds one: most of a text need not be tried for more.
_YEARS = r"(?<!\d)[12]\d{3}(?!\d)|[12]\d{7}T"
# Characters before and behind its year that may belong to a date.
_REACH: Final = 100
_UUID = r"(?i)(?<![0-9A-Za-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})(?![0-9A-Za-z])"
# The kinds that have names, and other words for them.
VOLATILE: Final = ("date", "uuid")
_MEANT: Final = {"date": "date", "datetime": "date", "uuid": "uuid", "guid": "uuid"}

_NAME = r"[A-Za-z_$][A-Za-z0-9_$-]*"
_PATH = re.compile(rf"{_NAME}(?:\[(?:\d+|\*)\])*(?:\.{_NAME}(?:\[(?:\d+|\*)\])*)*")
_STEP = re.compile(rf"{_NAME}|\d+|\*")

# A member's name, an element's index, or None for every element.
_Step = str | int | None


@dataclass(frozen=True, slots=True)
class Ignore:
    """Volatile parts of a request's body, each item as the user wrote it: `date`, `uuid`, a body path, a regex.

    Made by `read_ignore`. Two of them are equal where they hold the same items in the same order.
    """

    items: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.items)

    def also(self, *items: str) -> Ignore:
        """With more items; the ones that are there stay in front."""
        return Ignore(tuple(dict.fromkeys((*self.items, *items))))

    def body(self, canonical: bytes) -> bytes:
        """A body in canonical JSON without what is ignored: members at body paths are gone, elements of lists are null,
        and in every text `<date>`, `<id>` or `<ignored>` stands for what varied. Other bodies are one text."""
        if not self.items:
            return canonical
        cleaning, paths = _compiled(self.items)
        try:
            value = json.loads(canonical)
            for path in paths:
                _drop(value, path)
            value = _cleaned(value, cleaning) if cleaning else value
            text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        except (ValueError, RecursionError):
            whole: str = _cleaned(canonical.decode("utf-8", "surrogateescape"), cleaning)
            return whole.encode("utf-8", "surrogateescape")
        return text.encode("utf-8", "surrogatepass")


NOTHING_IGNORED: Final = Ignore()


def read_ignore(values: object, key: str = "ignore") -> tuple[Ignore, tuple[str, ...]]:
    """`["date", "uuid", r"run \\d+", "generationConfig.seed"]`, and what is wrong with it, a sentence each.

    A dotted name of JSON members, with `[0]` or `[*]` for elements of lists, is a path of the body, also where it is
    a single word; everything else is a regular expression for the text inside of prompts.
    """
    if isinstance(values, str) or not isinstance(values, list | tuple):
        return NOTHING_IGNORED, (f'{key}={values!r} is not a list: write {key}=["date"]',)
    items: list[str] = []
    problems: list[str] = []
    for value in values:
        if not isinstance(value, str):
            problems.append(f"{key}: {value!r} is {type(value).__name__}, not text")
        elif (kind := _MEANT.get(value.strip().lower().rstrip("s"))) is not None and value != kind:
            problems.append(f"{key}: unknown kind {value!r}; did you mean {kind!r}?")
        elif not value.strip():
            problems.append(f"{key}: an empty text ignores nothing: take it out")
        elif (problem := _problem(value)) is not None:
            problems.append(f"{key}: {value!r} is neither {', '.join(VOLATILE)}, a body path nor a regex: {problem}")
        else:
            items.append(value)
    return NOTHING_IGNORED.also(*items), tuple(problems)


def is_path(item: str) -> bool:
    """Whether an item is a body path: `generationConfig.seed`, `contents[*].parts[0].text`, `seed`."""
    return item not in VOLATILE and _PATH.fullmatch(item) is not None


def _problem(item: str) -> str | None:
    if item in VOLATILE or is_path(item):
        return None
    try:
        matches_nothing = re.compile(item).fullmatch("") is not None
    except (re.error, OverflowError, RecursionError) as error:
        return str(error)
    return "it matches no text at all, and so everywhere" if matches_nothing else None


@cache
def _compiled(items: tuple[str, ...]) -> tuple[tuple[Callable[[str], str], ...], tuple[tuple[_Step, ...], ...]]:
    """What cleans a text, one after the other, and the paths."""
    named: dict[str, Callable[[str], str]] = {"date": _without_dates, "uuid": partial(re.compile(_UUID).sub, "<id>")}
    others = [item for item in items if item not in VOLATILE]
    cleaning = [named[item] for item in VOLATILE if item in items]
    cleaning += [partial(re.compile(item).sub, "<ignored>") for item in others if not is_path(item)]
    return tuple(cleaning), tuple(tuple(_steps(item)) for item in others if is_path(item))


def _steps(path: str) -> Iterator[_Step]:
    for step in _STEP.findall(path):
        yield None if step == "*" else int(step) if step.isdigit() else step


def _drop(value: Any, path: tuple[_Step, ...]) -> None:
    """Take out what is at a path, in place. Elements become null: the others keep their places."""
    step, rest = path[0], path[1:]
    if isinstance(step, str):
        if not isinstance(value, dict) or step not in value:
            return
        if rest:
            _drop(value[step], rest)
        else:
            del value[step]
    elif isinstance(value, list):
        for index in range(len(value)) if step is None else [step] if step < len(value) else []:
            if rest:
                _drop(value[index], rest)
            else:
                value[index] = None


def _cleaned(value: Any, cleaning: tuple[Callable[[str], str], ...]) -> Any:
    if isinstance(value, str):
        for clean in cleaning:
            value = clean(value)
        return value
    if isinstance(value, dict):
        return {name: _cleaned(inner, cleaning) for name, inner in value.items()}
    return [_cleaned(inner, cleaning) for inner in value] if isinstance(value, list) else value


@cache
def _dates() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Compiled when they are needed: it takes milliseconds."""
    return re.compile(_YEARS), re.compile(_DATE)


def _without_dates(text: str) -> str:
    years, date = _dates()
    pieces: list[str] = []
    done = 0
    for year in years.finditer(text):
        if year.start() < done:
            continue
        found = date.search(text, max(done, year.start() - _REACH), year.end() + _REACH)
        if found is not None and found.start() <= year.start() < found.end():
            pieces += [text[done : found.start()], "<date>"]
            done = found.end()
    return "".join([*pieces, text[done:]])
