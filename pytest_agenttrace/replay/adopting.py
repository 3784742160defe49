"""Old replies under new requests: what a client's new version asks is written where its old one's request stood."""

from __future__ import annotations

import dataclasses
import re
import threading
from datetime import UTC, datetime
from pathlib import Path

from pytest_agenttrace.locking import locked
from pytest_agenttrace.replay.cassette import Interaction, load_cassette
from pytest_agenttrace.replay.matching import Recorded
from pytest_agenttrace.replay.mismatch import changes, edit_in
from pytest_agenttrace.replay.recording import packages
from pytest_agenttrace.replay.writing import save_cassette
from pytest_agenttrace.wire import decode_body

__all__ = ["Adopter"]

_INDEX = re.compile(r"\[\d+\]")


class Adopter:
    """The requests of one test that were asked in another form than they are recorded in. Thread safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._found: dict[int, tuple[Interaction, str, str]] = {}

    @property
    def changes(self) -> tuple[tuple[int, str, str], ...]:
        """By the number of the reply: `generationConfig.temperature absent -> 0.2`, all changes of a request in one;
        and the same without the words round a change, which one edit of a template leaves equal in many requests."""
        with self._lock:
            return tuple((number, changed, edit) for number, (_, changed, edit) in sorted(self._found.items()))

    def adopt(self, entry: Recorded, asked: Interaction) -> None:
        """Put a request in the place of the one that a reply was recorded for."""
        old = entry.interaction
        renewed = dataclasses.replace(
            old, method=asked.method, uri=asked.uri, body=asked.body, request_headers=asked.request_headers
        )
        told = [_INDEX.sub("[]", change) for change in changes(decode_body(old.body), decode_body(asked.body))]
        edits = [f"{change.split()[0]} {edit}" if (edit := edit_in(change)) else change for change in told]
        with self._lock:
            changed = ", ".join(dict.fromkeys(told)) or "its address only"
            self._found[entry.number] = (renewed, changed, ", ".join(dict.fromkeys(edits)))

    def close(self) -> None:
        """Rewrite the file: the replies, their dates and their order stay."""
        with self._lock:
            found = dict(self._found)
        if not found:
            return
        with locked(self._path):
            file = load_cassette(self._path)
            everything = [
                found[number][0] if number in found else interaction
                for number, interaction in enumerate(file.interactions, 1)
            ]
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            before = file.meta.get("adopted_from", file.meta.get("packages", {}))
            meta = {**file.meta, "packages": packages(), "adopted": now, "adopted_from": before}
            save_cassette(self._path, everything, meta)
