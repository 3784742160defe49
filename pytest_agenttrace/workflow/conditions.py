"""Conditions of routes: `state.score >= 8 and not (state.kind == 'draft' or state.done)`.

A grammar of their own, never Python's eval:

    or:          and ("or" and)*
    and:         not ("and" not)*
    not:         "not" not | comparison
    comparison:  value (("==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not in") value)?
    value:       "(" or ")" | name | "{" name "}" | number | 'text' | "text" | true | false | null | "[" values "]"

A name is a field of the state, `state.profile.age` or `profile.age`. Types are exact: text is never equal to a number,
a bool to no int, in lists and dicts too; comparing what cannot be compared is an error that names the field, never
false.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from pytest_agenttrace.workflow.types import kind_of, shown

__all__ = [
    "Comparison",
    "Condition",
    "ConditionError",
    "ConditionFailed",
    "Constant",
    "Expression",
    "Field",
    "Joined",
    "Not",
    "comparable",
    "parse_condition",
    "parts_of",
]

_LONGEST = 2_000
_DEEPEST = 50

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>-?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)
    | (?P<sign>(?:==|!=|<=|>=)(?!=)|<(?![=>])|>(?!=)|[()\[\],{}])
    )""",
    re.VERBOSE | re.DOTALL,
)
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_COMPARED = ("==", "!=", "<", "<=", ">", ">=", "in", "not in")
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
# What other languages write.
_FOREIGN = {"=": "==", "===": "==", "!==": "!=", "&&": "and", "||": "or", "!": "not", "<>": "!=", "&": "and", "|": "or"}


class ConditionError(ValueError):
    """A text that is no condition: `offset` is where in it."""

    def __init__(self, message: str, offset: int) -> None:
        super().__init__(message)
        self.offset = offset


class ConditionFailed(ValueError):
    """A condition that has no answer for a state; names node, condition and field."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A value as written; a list of them is a tuple."""

    value: str | int | float | bool | tuple[str | int | float | bool | None, ...] | None


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the state, by its path."""

    path: tuple[str, ...]
    offset: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return ".".join(("state", *self.path))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two values compared."""

    left: Expression
    operator: Operator
    right: Expression
    offset: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    """The contrary."""

    inner: Expression


@dataclass(frozen=True, slots=True)
class Joined:
    """`and` or `or`; a part is looked at only where those before it do not decide."""

    word: Literal["and", "or"]
    parts: tuple[Expression, ...]


Expression = Constant | Field | Comparison | Not | Joined


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition: its text, and what it says."""

    text: str
    expression: Expression = field(compare=False)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Every mention of a field of the state, in order."""
        return tuple(part for part in parts_of(self.expression) if isinstance(part, Field))

    def evaluate(self, state: Mapping[str, object], node: str) -> bool:
        """Whether it holds for a state, on leaving a node. Raises `ConditionFailed` where it has no answer: a field
        that is not there, values that cannot be compared."""
        try:
            return _truth(_value(self.expression, state))
        except _NoAnswer as error:
            raise ConditionFailed(f"{node}: condition {self.text!r} cannot be judged: {error}") from None


class _NoAnswer(Exception):
    pass


def parts_of(part: Expression) -> Iterator[Expression]:
    """An expression and all in it, in order."""
    yield part
    match part:
        case Not(inner):
            yield from parts_of(inner)
        case Comparison(left, _, right):
            yield from parts_of(left)
            yield from parts_of(right)
        case Joined(_, parts):
            for each in parts:
                yield from parts_of(each)


def _value(part: Expression, state: Mapping[str, object]) -> object:
    match part:
        case Constant(value):
            return value
        case Field(path):
            return _looked_up(path, state)
        case Not(inner):
            return not _truth(_value(inner, state))
        case Joined(word, parts):
            truths = (_truth(_value(each, state)) for each in parts)
            return any(truths) if word == "or" else all(truths)
        case Comparison(left, operator, right):
            return _compared(part, _value(left, state), operator, _value(right, state))


def _looked_up(path: tuple[str, ...], state: Mapping[str, object]) -> object:
    found: object = state
    for at, name in enumerate(path):
        if not isinstance(found, Mapping) or name not in found:
            whole = ".".join(("state", *path[:at]))
            what = (
                f"{whole} is {kind_of(found)}" if at and not isinstance(found, Mapping) else f"{whole} has no {name!r}"
            )
            raise _NoAnswer(f"{Field(path)}: {what}")
        found = found[name]
    return found


def _truth(value: object) -> bool:
    """A bool is itself; 0, null, and empty texts, lists and dicts are false."""
    return bool(value)


def _compared(part: Comparison, left: object, operator: Operator, right: object) -> bool:
    if operator in ("==", "!="):
        return _equal(part, left, right) == (operator == "==")
    if operator in ("in", "not in"):
        return _contains(part, left, right) == (operator == "in")
    if not comparable(kind_of(left), kind_of(right), ordered=True):
        raise _NoAnswer(_unlike(part, left, right))
    first, second = left, right
    assert isinstance(first, int | float | str)  # noqa: S101  # comparable said so; mypy cannot know
    return {
        "<": lambda: first < second,  # type: ignore[operator]
        "<=": lambda: first <= second,  # type: ignore[operator]
        ">": lambda: first > second,  # type: ignore[operator]
        ">=": lambda: first >= second,  # type: ignore[operator]
    }[operator]()


def _equal(part: Comparison, left: object, right: object) -> bool:
    if not comparable(kind_of(left), kind_of(right), ordered=False):
        raise _NoAnswer(_unlike(part, left, right))
    return _same(left, right)


def _same(left: object, right: object) -> bool:
    """Whether two values are one, and all that they hold: Python's `==` has `[true] == [1]`."""
    if not comparable(kind_of(left), kind_of(right), ordered=False):
        return False
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        keys = {key: key for key in right}
        return len(left) == len(right) and all(
            key in keys and _same(key, keys[key]) and _same(value, right[key]) for key, value in left.items()
        )
    return left == right


def _contains(part: Comparison, left: object, right: object) -> bool:
    if isinstance(right, str):
        if isinstance(left, str):
            return left in right
    elif isinstance(right, list | tuple):
        return any(_same(left, item) for item in right)
    elif isinstance(right, Mapping) and not isinstance(left, list | tuple | Mapping):
        # Keys one by one: a list cannot be looked up in a dict, and 1 would find true.
        return any(_same(left, key) for key in right)
    raise _NoAnswer(_unlike(part, left, right))


def comparable(left: str, right: str, *, ordered: bool) -> bool:
    """Whether values of two kinds can be compared: numbers with numbers, else only with their own; null with all, but
    not ordered."""
    if not ordered and "null" in (left, right):
        return True
    if ordered and left not in ("int", "float", "str"):
        return False
    return left == right or {left, right} == {"int", "float"}


def _unlike(part: Comparison, left: object, right: object) -> str:
    return f"{_named(part.left, left)} {part.operator} {_named(part.right, right)}"


def _named(part: Expression, value: object) -> str:
    kind = kind_of(value)
    said = shown(value) if value is None else f"{kind} {shown(value)}"
    return f"{part} ({said})" if isinstance(part, Field) else said


def parse_condition(text: str) -> Condition:
    """A condition from its text. Raises `ConditionError`."""
    if len(text) > _LONGEST:
        raise ConditionError(f"a condition of {len(text):,} characters, more than {_LONGEST:,}", 0)
    if not text.strip():
        raise ConditionError("the condition is empty", 0)
    parser = _Parser(text)
    found = parser.either(0)
    if parser.kind:
        parser.fail_at_rest()
    return Condition(text, found)


class _Parser:
    """Reads a condition from left to right, one token ahead."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.end = 0
        self.step()

    def step(self) -> None:
        self.start = re.compile(r"\s*").match(self.text, self.end).end()  # type: ignore[union-attr]  # matches always
        found = _TOKEN.match(self.text, self.end)
        if found is None:
            if self.text[self.end :].strip():
                self._foreign()
            self.kind, self.word = "", ""
            return
        self.kind = found.lastgroup or ""
        self.word = found.group(self.kind)
        self.start, self.end = found.start(self.kind), found.end()

    def _foreign(self) -> NoReturn:
        sign = re.compile(r"[=!&|<>+\-*/%^~]+|.", re.DOTALL).match(self.text, self.start)
        word = sign.group() if sign else ""
        if word in ("'", '"'):
            raise ConditionError("a text is never closed", self.start)
        if word in _FOREIGN:
            raise ConditionError(f"{word!r} is not of this grammar; did you mean {_FOREIGN[word]!r}?", self.start)
        raise ConditionError(f"{word!r} is not of this grammar", self.start)

    def fail(self, message: str) -> NoReturn:
        raise ConditionError(message, self.start)

    def fail_at_rest(self) -> NoReturn:
        if self.word in _COMPARED:
            self.fail(f"{self.word!r} after a comparison: join two with and")
        if self.word == "(":
            self.fail("a call: conditions have no functions")
        self.fail(f"{self.word!r} is not expected here: and, or, a comparison or the end is")

    def either(self, depth: int) -> Expression:
        return self.joined("or", self.all, depth)

    def all(self, depth: int) -> Expression:
        return self.joined("and", self.negated, depth)

    def joined(self, word: Literal["and", "or"], part: Callable[[int], Expression], depth: int) -> Expression:
        found = [part(depth)]
        while (self.kind, self.word) == ("name", word):
            self.step()
            found.append(part(depth))
        return found[0] if len(found) == 1 else Joined(word, tuple(found))

    def negated(self, depth: int) -> Expression:
        if depth > _DEEPEST:
            self.fail("nested too deeply")
        if (self.kind, self.word) == ("name", "not"):
            self.step()
            return Not(self.negated(depth + 1))
        return self.comparison(depth)

    def comparison(self, depth: int) -> Expression:
        offset = self.start
        left = self.value(depth)
        operator = self.operator()
        if operator is None:
            return left
        return Comparison(left, operator, self.value(depth), offset)

    def operator(self) -> Operator | None:
        word = self.word if self.kind in ("sign", "name") else ""
        if word == "not":
            self.step()
            if self.word != "in":
                self.fail("'in' is expected after 'not' here")
            word = "not in"
        if word not in _COMPARED:
            return None
        self.step()
        return word  # type: ignore[return-value]  # one of them

    def value(self, depth: int) -> Expression:
        kind, word, offset = self.kind, self.word, self.start
        if not kind:
            self.fail("a value is missing at the end")
        if kind == "sign" and word in "([{":
            self.step()
            return {"(": self.grouped, "[": self.listed, "{": self.braced}[word](depth)
        found = self.constant()
        if found is not None:
            return found
        if kind != "name" or word in ("and", "or", "in", "not"):
            self.fail(f"a value is missing before {word!r}")
        return self.name(offset)

    def grouped(self, depth: int) -> Expression:
        if depth > _DEEPEST:
            self.fail("nested too deeply")
        found = self.either(depth + 1)
        self.close(")")
        return found

    def listed(self, depth: int) -> Expression:
        values: list[str | int | float | bool | None] = []
        while self.word != "]":
            found = self.constant()
            if found is None:
                self.fail("a list holds numbers, texts, true, false and null")
            values.append(found.value)  # type: ignore[arg-type]  # a constant is no list
            if self.word != ",":
                break
            self.step()
        self.close("]")
        return Constant(tuple(values))

    def braced(self, depth: int) -> Expression:
        if self.kind != "name":
            self.fail("braces hold a name: {state.x}")
        found = self.name(self.start)
        self.close("}")
        return found

    def close(self, bracket: str) -> None:
        if self.word != bracket or self.kind != "sign":
            self.fail(f"{bracket!r} is missing")
        self.step()

    def constant(self) -> Constant | None:
        kind, word = self.kind, self.word
        if kind == "number":
            value = self._number(word)
        elif kind == "text":
            value = re.sub(r"\\(.)", r"\1", word[1:-1], flags=re.DOTALL)
        elif kind == "name" and word in _WORDS:
            value = _WORDS[word]
        else:
            return None
        self.step()
        return Constant(value)

    def _number(self, word: str) -> str | int | float | bool | None:
        if len(word) > 100:
            self.fail("a number of more than 100 digits")
        return float(word) if set(word) & set(".eE") else int(word)

    def name(self, offset: int) -> Field:
        path = tuple(self.word.split("."))
        path = path[1:] if path[0] == "state" else path
        if not path:
            self.fail("state is not a field: name one, state.x")
        private = next((part for part in path if part.startswith("_")), None)
        if private is not None:
            self.fail(f"{private!r} is refused: names of the state do not start with _")
        self.step()
        if (self.kind, self.word) == ("sign", "("):
            self.fail("a call: conditions have no functions")
        if (self.kind, self.word) == ("sign", "["):
            self.fail("an index: conditions have names only")
        return Field(path, offset)
