"""What one test records: kept beside its cassette as it comes, moved into its place once it is whole.

A recording is complete when every request got its reply. Until then its replies lie in `<name>.partial.yaml`, and the
cassette is as it was.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pytest_agenttrace.locking import LockTimeout, locked
from pytest_agenttrace.replay.arranging import Kept, Places, in_order, kept_as_before, key_of, told_apart, without
from pytest_agenttrace.replay.cassette import (
    CassetteError,
    CassetteFile,
    Interaction,
    load_cassette,
    shown_path,
)
from pytest_agenttrace.replay.recording import origin_of, packages
from pytest_agenttrace.replay.writing import save_cassette
from pytest_agenttrace.wire import parse_endpoint

__all__ = ["Mode", "Recorder", "Shares", "partial_path", "prune"]

# What a cassette is opened for. "missing" replays what is there and records the rest; "adopt" replays without a look at
# the bodies and writes the new requests beside the old replies.
Mode = Literal["replay", "record", "missing", "adopt"]

_BEFORE = "before.yaml"


def partial_path(path: Path) -> Path:
    """Where the replies of an incomplete recording of the cassette at `path` lie."""
    return path.with_name(f"{path.stem}.partial.yaml")


@dataclass(frozen=True, slots=True)
class Shares:
    """How a cassette is shared: `parts` is a folder of this run, for all its processes, where each test leaves what it
    has recorded; `test` names the test."""

    parts: Path
    test: str


class Recorder:
    """The exchanges of one test, and what becomes of its file. Thread safe.

    `shares` is None where the cassette is the test's own: then what it no longer asks for is dropped, else it stays for
    others until `prune`.
    """

    def __init__(self, path: Path, shares: Shares | None) -> None:
        self._path = path
        self._shares = shares
        self._lock = threading.Lock()
        self._kept: list[Kept] = []
        self._paid: list[Interaction] = []
        self._hosts: set[str] = set()
        self._other_hosts: set[str] = set()
        # The partial file as it was written last, what it holds, and whose replies were there before.
        self._aside: tuple[tuple[int, int, int] | None, list[Interaction], set[str]] = (None, [], set())
        # Where LangGraph ran what, by namespace: step and path.
        self.places: Places = {}
        # Why replies could not be set aside.
        self.trouble: list[str] = []

    @property
    def anew(self) -> int:
        """How many exchanges were really made."""
        with self._lock:
            return len(self._paid)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """Every exchange so far, from the file or really made."""
        with self._lock:
            return tuple(self._kept)

    def replayed(self, kept: Kept) -> None:
        """One that was answered from the file."""
        with self._lock:
            self._kept.append(kept)

    def made(self, kept: Kept, host: str, *, model: bool) -> None:
        """One that was really made: it lies on the disk when this returns."""
        with self._lock:
            self._kept.append(kept)
            self._paid.append(kept.interaction)
            (self._hosts if model else self._other_hosts).add(host)
            try:
                self._set_aside(self._paid)
            except CassetteError as error:  # raised here it would end the call, and the client would pay for another
                self.trouble = [str(error)]
                self._aside = (None, [], set())

    def _set_aside(self, paid: Sequence[Interaction]) -> None:
        """The partial file: what others have set aside, and what was paid for here."""
        partial = partial_path(self._path)
        with _alone_with(self._path):
            state, there, origins = self._aside
            if state is None or state != _state(partial):
                file = _load(partial)
                there = list(file.interactions) if file is not None else []
                origins = set(file.origin.split(", ")) if file is not None and file.origin is not None else set()
                new = without(paid, there)
            else:
                new = list(paid[-1:])
            if new:
                everything = [*there, *new]
                save_cassette(partial, everything, self._about(everything, origins))
                self._aside = (_state(partial), everything, origins)

    def close(self, *, complete: bool) -> bool:
        """Put the recording into its place where it is complete; whether the file is up to date."""
        with self._lock:
            kept, paid, places = list(self._kept), list(self._paid), self.places
        if not kept:
            return True
        if not complete:
            return False
        with _alone_with(self._path):
            before = _load(self._path)
            old = before.interactions if before is not None else ()
            mine = kept_as_before(told_apart(in_order(kept, places)), old)
            everything = mine if self._shares is None else _with_others(self._path, self._shares, mine, old)
            if everything != list(old):
                save_cassette(self._path, everything, self._meta(everything))
            self._clear(paid, mine)
        return True

    def _clear(self, paid: Sequence[Interaction], mine: Sequence[Interaction]) -> None:
        """Take out of the partial file what has found its place: all of it, where nobody else sets replies aside."""
        partial = partial_path(self._path)
        there = _interactions(partial)
        asked = {key_of(found) for found in mine}
        left = [found for found in without(there, paid) if key_of(found) not in asked] if self._shares else []
        if left:
            save_cassette(partial, left, self._meta(left))
        elif there:
            partial.unlink(missing_ok=True)

    def _meta(self, interactions: Sequence[Interaction]) -> dict[str, Any]:
        origins: set[str] = set()
        for file in (_load(self._path), _load(partial_path(self._path))):
            if (
                file is not None
                and file.origin is not None
                and any(found in interactions for found in file.interactions)
            ):
                origins |= set(file.origin.split(", "))
        return self._about(interactions, origins)

    def _about(self, interactions: Sequence[Interaction], origins: set[str]) -> dict[str, Any]:
        """The provenance of a file; `origins` are those of what it holds beside this test's."""
        hosts = self._hosts or self._other_hosts
        origins = origins | ({origin_of(hosts)} if hosts else set())
        return {**_facts(interactions), "packages": packages(), "origin": ", ".join(sorted(origins)) or "unknown"}


def prune(parts: Path, path: Path) -> int:
    """After a run of all tests that name a shared cassette: drop what none of them has recorded or replayed. How many
    replies that were."""
    with _alone_with(path):
        used, file = {key_of(found) for found in _parts(_folder(parts, path))}, _load(path)
        if not used or file is None:
            return 0
        left = [found for found in file.interactions if key_of(found) in used]
        gone = len(file.interactions) - len(left)
        if gone:
            save_cassette(path, left, {**file.meta, **_facts(left)})
        return gone


def _facts(interactions: Sequence[Interaction]) -> dict[str, Any]:
    """When the oldest of these was recorded, and from which models."""
    times = [found.recorded for found in interactions if found.recorded is not None]
    endpoints = [parse_endpoint(found.uri) for found in interactions]
    return {
        "recorded": min(times, default=datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "models": sorted({found.model for found in endpoints if found is not None and found.model is not None}),
    }


def _with_others(
    path: Path, shares: Shares, mine: Sequence[Interaction], old: Sequence[Interaction]
) -> list[Interaction]:
    """What stays for others, then what each test of this run has recorded."""
    folder = _folder(shares.parts, path)
    if not (folder / _BEFORE).exists():
        save_cassette(folder / _BEFORE, old, {})
    name = hashlib.sha256(shares.test.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    save_cassette(folder / f"test-{name}.yaml", mine, {"test": shares.test})
    parts = _parts(folder)
    anew = {key_of(found) for found in parts}
    return [*(found for found in _interactions(folder / _BEFORE) if key_of(found) not in anew), *parts]


def _folder(parts: Path, path: Path) -> Path:
    """What the tests of this run have recorded for one cassette."""
    name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return parts / name


def _parts(folder: Path) -> list[Interaction]:
    """What each test has recorded, by the tests' names."""
    files = [file for part in folder.glob("test-*.yaml") if (file := _load(part)) is not None]
    return [found for file in sorted(files, key=lambda file: str(file.meta.get("test"))) for found in file.interactions]


def _state(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever a file is replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _load(path: Path) -> CassetteFile | None:
    return load_cassette(path) if path.exists() else None


def _interactions(path: Path) -> tuple[Interaction, ...]:
    file = _load(path)
    return file.interactions if file is not None else ()


@contextmanager
def _alone_with(path: Path) -> Iterator[None]:
    try:
        with locked(path):
            yield
    except LockTimeout as error:
        raise CassetteError(
            f"{shown_path(path)}: cannot be written: {error}. Its replies are kept beside it."
        ) from None
