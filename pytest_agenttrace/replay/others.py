"""HTTP beside the model's: exchanges with hosts a user names, recorded and replayed with the calls, never counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pytest_agenttrace.calls import Caller
from pytest_agenttrace.network import allowed
from pytest_agenttrace.replay.cassette import scrub_uri

__all__ = ["OtherCall", "Others", "host_of"]

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class OtherCall:
    """An exchange that is none with a model, say with a search API: no tokens, no price. `url` is without keys, `at`
    in seconds since the epoch."""

    caller: Caller
    method: str
    url: str
    status: int
    at: float

    def __str__(self) -> str:
        return f"{self.caller.node or '(no node)'}: {self.method} {self.url} {self.status}"


class Others:
    """The hosts a user names, those the cassette has replies of, and what was exchanged with them. Thread safe.

    Recording keeps what is exchanged with a named host. In replay a named host that the cassette has replies of is
    replayed, strictly; one it has none of is spoken to.
    """

    def __init__(self, hosts: Sequence[str], recorded: Iterable[str]) -> None:
        self._named, self._here = allowed(hosts), allowed(())
        self._recorded = {host_of(url) for url in recorded}
        self._seen: list[OtherCall] = []
        self._lock = threading.Lock()

    @property
    def seen(self) -> tuple[OtherCall, ...]:
        with self._lock:
            return tuple(self._seen)

    def names(self, url: str) -> bool:
        """Whether `hosts` names a URL's host; this machine is none that one can name."""
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
        return self._named(host, port) and not self._here(host, port)

    def strict(self, url: str) -> bool:
        """Whether replay answers a URL's host from the cassette alone."""
        return host_of(url) in self._recorded and self.names(url)

    def keep(self, caller: Caller, method: str, url: str, status: int) -> None:
        """Remember an exchange."""
        with self._lock:
            self._seen.append(OtherCall(caller, method.upper(), scrub_uri(url), status, time.time()))


def host_of(url: str) -> str:
    """A URL's host, in lower case; empty where it has none."""
    return urlsplit(url).hostname or ""
