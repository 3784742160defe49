"""The settings of one test: the keys of the `agent_trace` marker and of `agenttrace_config`."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_agenttrace.ignoring import NOTHING_IGNORED, Ignore, read_ignore

__all__ = ["KINDS", "Finding", "Settings", "SettingsError", "Tolerance", "read_settings"]

KINDS = ("missing", "unused", "uncounted", "uncalled", "usage", "orphans", "unpriced", "network", "export", "empty")
MATCHES = ("body", "order")
_ORDER = re.compile(r"shuffle(:\d{1,18})?", re.ASCII)


class SettingsError(ValueError):
    """Settings that cannot be meant; `problems` holds one line for each thing wrong."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the witnesses disagree on. `text` starts with the node and a number."""

    kind: str
    node: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Kinds a test forgives (`allow`) or only counts (`warn`), everywhere or for one node."""

    allow: frozenset[tuple[str | None, str]] = field(default_factory=frozenset)
    warn: frozenset[tuple[str | None, str]] = field(default_factory=frozenset)

    def covers(self, finding: Finding, among: frozenset[tuple[str | None, str]]) -> bool:
        return (None, finding.kind) in among or (finding.node, finding.kind) in among

    def forgives(self, node: str | None, kind: str) -> bool:
        """Whether sums leave out a node's calls that report no usage ("usage"), or have no price ("unpriced")."""
        return self.covers(Finding(kind, node, ""), self.allow | self.warn)

    def failing(self, findings: Iterable[Finding]) -> list[Finding]:
        return [f for f in findings if not self.covers(f, self.allow) and not self.covers(f, self.warn)]

    def warned(self, findings: Iterable[Finding]) -> list[Finding]:
        return [f for f in findings if self.covers(f, self.warn) and not self.covers(f, self.allow)]


@dataclass(frozen=True, slots=True)
class Settings:
    """What one test asks for. `cassette` is a path, relative to the test file; None is the test's own.

    `match` is "body" (exact) or "order" (recordings of other clients). `allow` and `warn` hold finding
    kinds, `"unused"`, or for one node `"research:unused"`. `autolog` names MLflow's flavors to trace;
    `run_tracer_inline` is passed to `mlflow.langchain.autolog`, None leaves MLflow's default. `ignore` is
    what of a request is volatile, `hosts` what may be spoken to in replay beside loopback. `order` is "shuffle" or
    "shuffle:SEED" where replies of parallel branches are released in an order of chance. `secrets` are regular
    expressions for what no cassette may hold.
    """

    cassette: str | None = None
    match: Literal["body", "order"] = "body"
    tolerance: Tolerance = field(default_factory=Tolerance)
    autolog: tuple[str, ...] = ("langchain",)
    run_tracer_inline: bool | None = None
    ignore: Ignore = NOTHING_IGNORED
    hosts: tuple[str, ...] = ()
    order: str | None = None
    secrets: tuple[str, ...] = ()


KEYS = ("cassette", "match", "order", "ignore", "hosts", "secrets", "allow", "warn", "autolog", "run_tracer_inline")


def read_settings(layers: Iterable[tuple[str, object]]) -> Settings:
    """Settings from layers of keys, closest first, each with a name for its errors. The closest layer
    that has a key wins; `allow`, `warn`, `ignore`, `hosts` and `secrets` add up. Raises `SettingsError` with all that
    is wrong."""
    problems: list[str] = []
    merged: dict[str, Any] = {}
    added: dict[str, dict[Any, None]] = {key: {} for key in _ADDED}
    for where, layer in layers:
        if not isinstance(layer, Mapping):
            problems.append(f"{where}: a mapping of keys is wanted, not {type(layer).__name__}")
            continue
        for key, value in layer.items():
            if key not in KEYS:
                problems.append(f"{where}: unknown key {key!r}{_nearest(key, KEYS)} It has {', '.join(KEYS)}")
            elif key in _ADDED:
                items, wrong = _ADDED[key](value)
                added[key] |= dict.fromkeys(items)
                problems += [f"{where}: {line}" for line in wrong]
            else:
                problems += [f"{where}: {line}" for line in _check(key, value)]
                merged.setdefault(key, value)
    if problems:
        raise SettingsError(problems)
    if merged.get("cassette") is not None:
        merged["cassette"] = os.fspath(merged["cassette"])
    if "autolog" in merged:
        merged["autolog"] = tuple(merged["autolog"])
    tolerance = Tolerance(frozenset(added["allow"]), frozenset(added["warn"]))
    return Settings(
        **merged,
        tolerance=tolerance,
        ignore=Ignore(tuple(added["ignore"])),
        hosts=tuple(added["hosts"]),
        secrets=tuple(added["secrets"]),
    )


def _check(key: str, value: object) -> list[str]:
    if key == "cassette" and not (value is None or (isinstance(value, str | os.PathLike) and os.fspath(value))):
        return [f"cassette={value!r} is not a path"]
    if key == "match" and value not in MATCHES:
        return [f"match={value!r} is neither 'body' nor 'order'"]
    if key == "order" and not (value is None or (isinstance(value, str) and _ORDER.fullmatch(value))):
        return [f"order={value!r} is neither 'shuffle' nor 'shuffle:SEED', such as 'shuffle:1234'"]
    if key == "run_tracer_inline" and not (value is None or isinstance(value, bool)):
        return [f"run_tracer_inline={value!r} is neither True nor False"]
    if key == "autolog":
        names = value if isinstance(value, list | tuple) else None
        if names is None or not all(isinstance(name, str) and name.isidentifier() for name in names):
            return [f'autolog={value!r} is not a list of MLflow flavors: write autolog=["langchain"]']
    return []


def _nearest(name: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _parse_ignore(value: object) -> tuple[Sequence[str], Sequence[str]]:
    found, problems = read_ignore(value)
    return found.items, problems


def _parse_secrets(value: object) -> tuple[Sequence[str], Sequence[str]]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        return (), [f'secrets={value!r} is not a list of regular expressions: write secrets=[r"CUST-\\d+"]']
    problems = []
    for item in value:
        try:
            if re.compile(item).search("") is not None:
                problems.append(f"secrets: {item!r} matches the empty text, so it would match everywhere")
        except re.error as error:
            problems.append(f"secrets: {item!r} is no regular expression: {error}")
    return (() if problems else value), problems


def _parse_hosts(value: object) -> tuple[Sequence[str], Sequence[str]]:
    from pytest_agenttrace.network import wrong_hosts

    problems = wrong_hosts(value)
    return (() if problems else value), problems  # type: ignore[return-value]  # a list of texts, as was just checked


def _parse_kinds(values: object, key: str) -> tuple[set[tuple[str | None, str]], list[str]]:
    """`["unused", "web_research:uncounted"]` as (node, kind) pairs, and what is wrong with them."""
    if isinstance(values, str) or not isinstance(values, list | tuple | set | frozenset):
        return set(), [f'{key}={values!r} is not a list of kinds: write {key}=["unused"]']
    pairs: set[tuple[str | None, str]] = set()
    problems: list[str] = []
    for value in values:
        node, colon, kind = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        if kind in KINDS and bool(node) == bool(colon):
            pairs.add((node or None, kind))
        else:
            problems.append(f"{key}: unknown kind {value!r}{_nearest(kind, KINDS)} The kinds are {', '.join(KINDS)}")
    return pairs, problems


# The keys whose values of all layers add up, each with what reads one: its items, and what is wrong with it.
_ADDED: dict[str, Callable[[object], tuple[Iterable[Any], Sequence[str]]]] = {
    "allow": lambda value: _parse_kinds(value, "allow"),
    "warn": lambda value: _parse_kinds(value, "warn"),
    "ignore": _parse_ignore,
    "hosts": _parse_hosts,
    "secrets": _parse_secrets,
}
