"""A cassette's YAML, read one interaction at a time and within bounds, beside the lines it came from.

PyYAML's events are composed here: its own composers recurse (libyaml's one ends the process in nested brackets),
keep the whole file as objects, and unfold what aliases repeat. Uses libyaml where PyYAML has it.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

__all__ = ["CassetteError", "Checked", "Document", "fail", "kind_of", "read_document", "shown_path"]

RESTORE: Final = "Restore the file, or delete it and record again with --agenttrace-record."
# Mappings and lists inside each other. Bodies stored as objects are the deepest, with some 20.
_DEPTH: Final = 200
_TOO_DEEP: Final = f"nested more than {_DEPTH} deep"
# Characters that aliases may add to a file's own; one reply repeated a hundred times is a megabyte.
_REPEATED: Final = 10_000_000
_SPECIAL = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_STR, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class CassetteError(Exception):
    """A cassette that cannot be used; the message starts with `path`, `path:line` or `path:line:column`."""


def shown_path(path: Path) -> str:
    """The path as a user would type it: relative to the working directory where it lies below it."""
    with suppress(ValueError, OSError):
        return path.absolute().relative_to(Path.cwd()).as_posix()
    return str(path)


def fail(path: Path, problem: str, line: int | None = None, column: int | None = None, out: str = RESTORE) -> NoReturn:
    """Raise the one line that says what is wrong with a file, where (counted from 1), and the way out."""
    place = "".join(f":{number}" for number in (line, column) if number is not None)
    raise CassetteError(f"{shown_path(path)}{place}: {problem}. {out}") from None


def kind_of(value: Any) -> str:
    """What a YAML value is, in a message's words: `a mapping`, `text`, `nothing`."""
    names: dict[type, str] = {dict: "a mapping", list: "a list", str: "text", bytes: "bytes", type(None): "nothing"}
    if isinstance(value, bool):
        return str(value).lower()
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


class Checked:
    """A parsed value beside its YAML node, so that a complaint can name the line."""

    def __init__(self, path: Path, node: Any, value: Any, name: str) -> None:
        self.path, self.node, self.value, self.name = path, node, value, name

    def fail(self, problem: str, out: str = RESTORE) -> NoReturn:
        fail(self.path, problem, self.node.start_mark.line + 1, out=out)

    def mapping(self) -> Checked:
        if not isinstance(self.value, dict):
            self.fail(f"{self.name} is {kind_of(self.value)}, not a mapping")
        return self

    def items(self) -> Iterator[tuple[str, Checked]]:
        for key in self.mapping().value:
            yield str(key), self.need(key)

    def get(self, key: Any) -> Checked | None:
        if key not in self.mapping().value:
            return None
        # Of a key written twice the last one counts. One that is no text has another form in its node: the parent's
        # line is near enough.
        pairs = reversed(self.node.value) if self.node.id == "mapping" else ()
        node = next((value for name, value in pairs if name.value == key), self.node)
        return Checked(self.path, node, self.value[key], f"{self.name}.{key}" if self.name else str(key))

    def need(self, key: Any) -> Checked:
        found = self.get(key)
        if found is None:
            self.fail(f"{self.name or 'the cassette'} has no {key!r}")
        return found

    def text(self) -> str:
        if not isinstance(self.value, str):
            self.fail(f"{self.name} is {kind_of(self.value)}, not text")
        return self.value

    def words(self) -> str:
        """Any scalar as text, as headers and reasons may be written without quotes; nothing is an empty one."""
        if isinstance(self.value, dict | list | set | tuple):
            self.fail(f"{self.name} is {kind_of(self.value)}, not text")
        if isinstance(self.value, bytes):
            return self.value.decode("latin-1")
        return "" if self.value is None else str(self.value)

    def body(self) -> bytes:
        """Text, bytes or nothing; an object is what vcrpy's stubs keep of `json=`."""
        value = self.value
        if value is None or isinstance(value, bytes):
            return value or b""
        if isinstance(value, dict | list):
            try:
                value = json.dumps(value)
            except (TypeError, ValueError, RecursionError):
                self.fail(f"{self.name} holds what JSON cannot")
        if not isinstance(value, str):
            self.fail(f"{self.name} is {kind_of(value)}, not text")
        return value.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Document:
    """A file read to its end. `root` is all of it but the streamed list, which is empty there; `problem` is the first
    complaint about an item of that list."""

    root: Checked
    problem: CassetteError | None


def read_document(path: Path, streamed: str, item: Callable[[Checked], None]) -> Document:
    """Read a YAML mapping, handing over each item of the list under the key `streamed`, named `interaction 3`.

    Raises `CassetteError` for what is no such file. A complaint of `item` is kept until the file has been read to its
    end: another version of the format explains more.
    """
    text = _read_text(path)
    composer = _Composer(path, text)
    try:
        root, problem = composer.read(streamed, item)
    finally:
        composer.loader.dispose()
    return Document(root, problem)


def _read_text(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        special = next((name for test, name in _SPECIAL if test(mode)), None)
        if special is not None:
            fail(path, f"{special}, not a cassette", out="Name a file.")
        data = path.read_bytes()
    except IsADirectoryError:
        fail(path, "a directory, not a cassette", out="Name a file, or move the directory away.")
    except OSError as error:
        fail(path, f"cannot be read: {error.strerror or error}", out="Make it readable, or name another file.")
    if not data.strip():
        fail(path, "an empty file, not a cassette")
    if (nul := data.find(b"\0")) >= 0:
        fail(path, f"not text: NUL at byte {nul}", data.count(b"\n", 0, nul) + 1)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fail(path, f"not UTF-8 text: 0x{data[error.start]:02x} at byte {error.start}", line)


class _Composer:
    """Builds nodes from events, one interaction at a time."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.loader = self._guarded(lambda: getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text))
        self._anchors: dict[str, Any] = {}
        self._left = 2 * len(text) + _REPEATED

    def read(self, streamed: str, item: Callable[[Checked], None]) -> tuple[Checked, CassetteError | None]:
        self._event()  # the stream's start
        if isinstance(self._event(), yaml.StreamEndEvent):
            fail(self.path, "nothing, not a cassette", 1)
        first = self._event()
        if not isinstance(first, yaml.MappingStartEvent):
            fail(self.path, f"{kind_of(self._built(self._compose(first), 'the cassette').value)}, not a cassette", 1)
        root, pairs, problem = self._collection(first), [], None
        while not isinstance(event := self._event(), yaml.MappingEndEvent):
            key, event = self._compose(event), self._event()
            if key.value == streamed and isinstance(event, yaml.SequenceStartEvent):
                pairs.append((key, self._collection(event)))
                problem = self._hand_over(self._items(), item) or problem
                continue
            node = self._compose(event)
            if key.value == streamed and node.id == "sequence":  # an alias of a list that stands elsewhere
                problem = self._hand_over(node.value, item) or problem
                node = yaml.SequenceNode(node.tag, [], node.start_mark)
            pairs.append((key, node))
        root.value = pairs
        self._event()  # the document's end
        if not isinstance(event := self._event(), yaml.StreamEndEvent):
            mark = event.start_mark
            fail(self.path, "another document begins here: a cassette is one", mark.line + 1, mark.column + 1)
        return self._built(root, ""), problem

    def _items(self) -> Iterator[Any]:
        while not isinstance(event := self._event(), yaml.SequenceEndEvent):
            yield self._compose(event)

    def _hand_over(self, nodes: Iterable[Any], item: Callable[[Checked], None]) -> CassetteError | None:
        """Hand over each item until one of them is wrong; the rest is only read."""
        problem = None
        for number, node in enumerate(nodes, 1):
            if problem is None:
                found = self._built(node, f"interaction {number}")
                try:
                    item(found)
                except CassetteError as error:
                    problem = error
        return problem

    def _event(self) -> Any:
        return self._guarded(self.loader.get_event)

    def _guarded(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except yaml.MarkedYAMLError as error:
            self._refuse(error)
        except yaml.reader.ReaderError as error:
            # libyaml counts bytes, PyYAML itself characters.
            whole = error.encoding == "unicode"
            read = self.text if whole else self.text.encode("utf-8", "surrogatepass").decode("latin-1")
            fail(self.path, f"not a YAML cassette: {error.reason}", read.count("\n", 0, error.position) + 1)
        except (yaml.YAMLError, ValueError) as error:
            fail(self.path, f"not a YAML cassette: {_first_line(error)}")

    def _refuse(self, error: yaml.MarkedYAMLError) -> NoReturn:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark is not None else (None, None)
        problem = error.problem or error.context
        # libyaml's own limit is met first where it looks far ahead.
        problem = _TOO_DEEP if problem == "exceeded maximum nesting depth" else problem
        fail(self.path, f"not a YAML cassette: {problem}", *place)

    def _refuse_at(self, mark: Any, problem: str) -> NoReturn:
        fail(self.path, f"not a YAML cassette: {problem}", mark.line + 1, mark.column + 1)

    def _compose(self, event: Any) -> Any:
        """The node that begins with an event, read to its end; without recursion."""
        whole: list[Any] = []
        stack: list[tuple[Any, list[Any]]] = [(None, whole)]
        while True:
            if isinstance(event, yaml.ScalarEvent):
                stack[-1][1].append(self._scalar(event))
            elif isinstance(event, yaml.AliasEvent):
                stack[-1][1].append(self._aliased(event))
            elif isinstance(event, yaml.CollectionStartEvent):
                node = self._collection(event)
                stack[-1][1].append(node)
                stack.append((node, []))
                if len(stack) > _DEPTH:
                    self._refuse_at(event.start_mark, _TOO_DEEP)
            else:
                node, parts = stack.pop()
                node.value = list(zip(parts[::2], parts[1::2], strict=True)) if node.id == "mapping" else parts
            if len(stack) == 1:
                return whole[0]
            event = self._event()

    def _scalar(self, event: Any) -> Any:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit) if event.implicit[0] else _STR
        if tag == _MERGE:
            self._refuse_at(event.start_mark, "merge keys (<<) are not read")
        return self._anchored(event, yaml.ScalarNode(tag, event.value, event.start_mark))

    def _collection(self, event: Any) -> Any:
        is_list = isinstance(event, yaml.SequenceStartEvent)
        default = "tag:yaml.org,2002:seq" if is_list else "tag:yaml.org,2002:map"
        tag = default if event.tag in (None, "!") else event.tag
        return self._anchored(event, (yaml.SequenceNode if is_list else yaml.MappingNode)(tag, [], event.start_mark))

    def _anchored(self, event: Any, node: Any) -> Any:
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _aliased(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            self._refuse_at(event.start_mark, f"nothing is anchored as &{event.anchor}")
        return self._anchors[event.anchor]

    def _built(self, node: Any, name: str) -> Checked:
        """A node with its Python value, whose aliases may not unfold beyond measure."""
        try:
            value = self.loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            self._refuse(error)
        except Exception as error:  # PyYAML's constructors raise what they run into: `2026-13-45`, `!!bool perhaps`
            self._refuse_at(self._culprit(node), _first_line(error))
        try:
            self._left -= _size(value, {})
        except RecursionError:  # one anchor inside of another's alias, many times over
            self._left = -1
        if self._left < 0:
            what = f"{name or 'the cassette'} unfolds beyond measure: its aliases repeat each other"
            fail(self.path, what, node.start_mark.line + 1)
        return Checked(self.path, node, value, name)

    def _culprit(self, node: Any) -> Any:
        """The mark of the first scalar that PyYAML cannot construct; of the whole where none fails by itself."""
        waiting, seen = [node], set()
        while waiting:
            one = waiting.pop()
            if one.id == "scalar":
                try:
                    yaml.SafeLoader("").construct_document(one)
                except Exception:
                    return one.start_mark
            elif id(one) not in seen:
                seen.add(id(one))
                parts = [part for pair in one.value for part in pair] if one.id == "mapping" else one.value
                waiting += reversed(parts)
        return node.start_mark


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _size(value: Any, known: dict[int, int]) -> int:
    """How many characters and values an object holds once its aliases are written out; each is counted once."""
    if not isinstance(value, dict | list):
        return 1 + len(value) if isinstance(value, str | bytes) else 1
    if id(value) not in known:
        known[id(value)] = 0  # an alias of itself: json refuses it
        parts = (part for pair in value.items() for part in pair) if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]
