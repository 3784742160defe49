"""YAML with places: every key and value knows its line, its column and its path of keys.

Only plain data: no tag but YAML's own, no key twice, aliases and depth bounded. What is wrong is collected in
`Problems`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.workflow.types import kind_of, shown

if TYPE_CHECKING:
    from yaml import MappingNode, Node, ScalarNode
    from yaml.error import MarkedYAMLError

__all__ = [
    "ConfigError",
    "Items",
    "Leaf",
    "Note",
    "Place",
    "Problem",
    "Problems",
    "Table",
    "Tree",
    "compose",
    "part",
    "plain",
    "said",
]

# Bytes; real workflows have some thousand.
LARGEST = 256 * 1024
# Values, those of aliases as often as they are named.
MOST = 20_000
DEEPEST = 40
# Problems, after which a file is read no further: a text can have one in each character.
ENOUGH = 200

_PREFIX = "tag:yaml.org,2002:"
_TEXTS = {f"{_PREFIX}{name}" for name in ("str", "timestamp", "value", "merge")}


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line and a column, both from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A text, number, bool or null."""

    place: Place
    path: tuple[str | int, ...]
    value: str | int | float | bool | None
    # As it stands in the file; the text before and after is the file's.
    written: str = ""
    style: str | None = None
    source: str = field(default="", repr=False, compare=False)
    span: tuple[int, int] = (0, 0)

    def at(self, offset: int) -> Place:
        """The place of a character of a text; the text's own where escapes or folding hide it."""
        text, (start, end) = str(self.value), self.span
        if self.style == "|":
            return self._in_block(text, offset)
        quote = 0 if self.style is None else 1
        if self.source[start + quote : end - quote] == text and "\n" not in text:
            return Place(self.place.line, self.place.column + quote + offset)
        return self.place

    def _in_block(self, text: str, offset: int) -> Place:
        header, *lines = self.source[self.span[0] : self.span[1]].split("\n")
        if any(character.isdigit() for character in header.partition("#")[0]):
            return self.place
        first = next((line for line in lines if line.strip()), "")
        before = text[:offset]
        column = len(first) - len(first.lstrip(" ")) + offset - (before.rfind("\n") + 1)
        return Place(self.place.line + 1 + before.count("\n"), column + 1)


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    place: Place
    path: tuple[str | int, ...]
    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping: each key with its own place."""

    place: Place
    path: tuple[str | int, ...]
    entries: Mapping[Any, tuple[Place, Tree]]

    def get(self, key: str) -> Tree | None:
        """The value of a key."""
        return self.entries[key][1] if key in self.entries else None


Tree = Leaf | Items | Table


def part(tree: Tree, *keys: str | int) -> Tree:
    """A part of a tree, or the nearest around it that is there."""
    for key in keys:
        below: Tree | None = None
        if isinstance(tree, Table):
            below = tree.entries[key][1] if key in tree.entries else None
        elif isinstance(tree, Items) and isinstance(key, int) and key < len(tree.items):
            below = tree.items[key]
        if below is None:
            return tree
        tree = below
    return tree


def plain(tree: Tree) -> Any:
    """A tree as Python has it, of one's own."""
    match tree:
        case Leaf():
            return tree.value
        case Items():
            return [plain(item) for item in tree.items]
        case Table():
            return {key: plain(value) for key, (_, value) in tree.entries.items()}


def said(tree: Tree) -> str:
    """What a value is, in a message."""
    match tree:
        case Leaf(value=None):
            return "nothing"
        case Leaf(value=str()):
            return f"text {shown(tree.value)}"
        case Leaf():
            return f"{kind_of(tree.value)} {tree.written[:40]}"
        case Items():
            return "a list"
        case Table():
            return "a mapping"


@dataclass(frozen=True, slots=True)
class Note:
    """What a user should know of a file that is valid; `place` is "file:line:column"."""

    place: str
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.path}: {self.text}"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something wrong in a file: where, at which path of keys, and what with the way out."""

    place: Place
    path: str
    text: str


class ConfigError(ValueError):
    """A workflow's file that cannot be used: every problem of it, a line each: `file:line:column: path: what`.

    Where `more` is true, there were so many that the file was read no further.
    """

    def __init__(self, file: Path, problems: tuple[Problem, ...], *, more: bool = False) -> None:
        self.file = file
        self.problems = problems
        self.more = more
        lines = [self._line(problem) for problem in problems]
        if more:
            lines.append(f"{one_line(str(file))}: there is more: after {ENOUGH} problems it is read no further")
        super().__init__("\n".join(lines))

    def _line(self, problem: Problem) -> str:
        where = one_line(str(self.file))
        if problem.place.line:
            where += f":{problem.place.line}:{problem.place.column}"
        return ": ".join(part for part in (where, problem.path, problem.text) if part)


@dataclass
class Problems:
    """What is wrong in one file, in the order of its lines."""

    file: Path
    found: list[tuple[Place, tuple[str | int, ...], str]] = field(default_factory=list)
    # What a user should know of a file that is valid.
    notes: list[Note] = field(default_factory=list)
    # How a node is called in a path: its id instead of its number.
    names: dict[int, str] = field(default_factory=dict)

    def add(self, tree: Tree, text: str, place: Place | None = None, key: str | int | None = None) -> None:
        """A problem of a value; `place` inside of it, `key` below it."""
        path = tree.path if key is None else (*tree.path, key)
        self.found.append((place or tree.place, path, one_line(text)))
        if len(self.found) >= ENOUGH:
            self.raise_any(more=True)

    def note(self, tree: Tree, text: str, place: Place | None = None, key: str | None = None) -> None:
        """What is worth knowing of a value."""
        at = place or tree.place
        path = self.shown(tree.path if key is None else (*tree.path, key))
        self.notes.append(Note(f"{self.file}:{at.line}:{at.column}", path, one_line(text)))

    def shown(self, path: tuple[str | int, ...]) -> str:
        """A path of keys; nodes by their ids: `nodes.write.prompt`, `edges[2].to`."""
        text = ""
        for at, key in enumerate(path):
            if at == 1 and path[0] == "nodes" and isinstance(key, int) and key in self.names:
                text += f".{self.names[key]}"
            else:
                text += f"[{key}]" if isinstance(key, int) else f".{one_line(key)}"
        return text.removeprefix(".")

    def fail(self, text: str, place: Place = Place(0, 0)) -> ConfigError:
        """A problem of the file as a whole, to raise alone."""
        return ConfigError(self.file, (Problem(place, "", one_line(text)),))

    def raise_any(self, *, more: bool = False) -> None:
        """Raise `ConfigError` where there is any."""
        if self.found:
            found = {Problem(place, self.shown(path), text) for place, path, text in self.found}
            raise ConfigError(self.file, tuple(sorted(found)), more=more)


def one_line(text: str) -> str:
    """A text without what would break a line, or a terminal."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def compose(data: bytes, problems: Problems) -> Tree:
    """The tree of a file. Raises `ConfigError` where it is no YAML; what else is wrong is added to the problems."""
    import yaml

    text = _decoded(data, problems)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise problems.fail(_yaml_problem(error, text), _mark(error)) from None
    except yaml.YAMLError as error:
        raise problems.fail(*_unreadable(text, error)) from None
    except RecursionError:
        raise problems.fail("nested too deeply") from None
    # PyYAML's own reading of numbers and directives raises these for a few malformed texts.
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise problems.fail(f"no YAML: {error}") from None
    if node is None:
        raise problems.fail("the file is empty")
    return _Converter(text, problems).tree(node, ())


def _decoded(data: bytes, problems: Problems) -> str:
    if len(data) > LARGEST:
        raise problems.fail(f"more than {LARGEST // 1024} KiB: no workflow is as large")
    utf_16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace") if not utf_16 else ""
        raise problems.fail(f"no UTF-8: byte 0x{data[error.start]:02x}", _place_of(before)) from None


def _place_of(before: str) -> Place:
    return Place(before.count("\n") + 1, len(before) - before.rfind("\n"))


def _yaml_problem(error: MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    if mark is not None and text[mark.index : mark.index + 1] == "[" and text[: mark.index].endswith(("list", "dict")):
        name = text[mark.index - 4 : text.find("]", mark.index, mark.index + 60) + 1] or "list[str]"
        return f'within braces a type with brackets is written in quotes; did you mean "{name}"?'
    problem = error.problem or error.context or "it cannot be parsed"
    if "'\\t'" in problem:
        return "a tab: YAML is indented by blanks"
    if "another document" in problem:
        return "a second document begins: a file has one workflow"
    return f"no YAML: {problem}" + (f" ({error.context})" if error.context and error.problem else "")


def _mark(error: MarkedYAMLError) -> Place:
    mark = error.problem_mark or error.context_mark
    return Place(0, 0) if mark is None else Place(mark.line + 1, mark.column + 1)


def _unreadable(text: str, error: Exception) -> tuple[str, Place]:
    """Of a character that YAML does not allow (yaml.reader.ReaderError)."""
    at = getattr(error, "position", None)
    if not isinstance(at, int) or not 0 <= at < len(text):
        return f"no YAML: {error}", Place(0, 0)
    return f"no YAML: the character U+{ord(text[at]):04X} is not allowed", _place_of(text[:at])


class _Converter:
    """YAML's nodes as trees."""

    def __init__(self, text: str, problems: Problems) -> None:
        from yaml.constructor import SafeConstructor

        self.text = text
        self.problems = problems
        self.count = 0
        self.constructor = SafeConstructor()

    def tree(self, node: Node, path: tuple[str | int, ...]) -> Tree:
        import yaml

        place = _start(node)
        self.count += 1
        if self.count > MOST:
            raise self.problems.fail(
                f"more than {MOST:,} values: aliases are counted as often as they are named", place
            )
        if len(path) > DEEPEST:
            raise self.problems.fail("nested too deeply", place)
        if isinstance(node, yaml.ScalarNode):
            return self.leaf(node, place, path)
        if node.tag not in (f"{_PREFIX}seq", f"{_PREFIX}map"):
            self.refuse(node, place, path)
        if isinstance(node, yaml.SequenceNode):
            return Items(place, path, tuple(self.tree(item, (*path, at)) for at, item in enumerate(node.value)))
        assert isinstance(node, yaml.MappingNode)  # noqa: S101  # the three kinds of YAML
        return Table(place, path, self.entries(node, path))

    def refuse(self, node: Node, place: Place, path: tuple[str | int, ...]) -> None:
        tag = node.tag.replace(_PREFIX, "!!")
        self.problems.add(Leaf(place, path, None), f"the tag {tag} is refused: a workflow is plain data")

    def leaf(self, node: ScalarNode, place: Place, path: tuple[str | int, ...]) -> Leaf:
        value: str | int | float | bool | None = node.value
        if node.tag not in _TEXTS:
            value = self.value(node, place, path)
        span = (node.start_mark.index, node.end_mark.index)
        return Leaf(place, path, value, node.value, node.style, self.text, span)

    def value(self, node: ScalarNode, place: Place, path: tuple[str | int, ...]) -> int | float | bool | None:
        read = {
            f"{_PREFIX}null": lambda _: None,
            f"{_PREFIX}bool": self.constructor.construct_yaml_bool,
            f"{_PREFIX}int": self.constructor.construct_yaml_int,
            f"{_PREFIX}float": self.constructor.construct_yaml_float,
        }.get(node.tag)
        if read is None:
            self.refuse(node, place, path)
            return None
        try:
            value: int | float | bool | None = read(node)
        except (ValueError, LookupError, OverflowError):
            kind = node.tag.removeprefix(_PREFIX)
            self.problems.add(Leaf(place, path, None), f"{shown(node.value)} cannot be read as {kind}")
            return None
        return value

    def entries(self, node: MappingNode, path: tuple[str | int, ...]) -> dict[Any, tuple[Place, Tree]]:
        found: dict[Any, tuple[Place, Tree]] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_PREFIX}merge":
                merged.append(value_node)
                continue
            key = self.key(key_node, path)
            if key in found and type(key) in {type(other) for other in found if other == key}:
                where = found[key][0].line
                text = f"{shown(key)} stands here twice: line {where} has it already"
                self.problems.add(Leaf(_start(key_node), (*path, str(key)), None), text)
                continue
            step = key if isinstance(key, str) else str(key)
            found[key] = (_start(key_node), self.tree(value_node, (*path, step)))
        for value_node in merged:
            for key, entry in self.merged(value_node, path):
                found.setdefault(key, entry)
        return found

    def key(self, node: Node, path: tuple[str | int, ...]) -> str | int | float | bool | None:
        import yaml

        if not isinstance(node, yaml.ScalarNode):
            self.problems.add(Leaf(_start(node), path, None), "a key is a text or a number, not a list or a mapping")
            return f"?{node.start_mark.index}"
        return self.leaf(node, _start(node), path).value

    def merged(self, node: Node, path: tuple[str | int, ...]) -> Iterator[tuple[Any, tuple[Place, Tree]]]:
        """What `<<` brings: of a mapping, or of a list of them."""
        tree = self.tree(node, (*path, "<<"))
        for part in tree.items if isinstance(tree, Items) else (tree,):
            if isinstance(part, Table):
                yield from part.entries.items()
            else:
                self.problems.add(part, "<< merges mappings only")


def _start(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)
