"""A scripted server that answers while a cassette is recorded, so that Google is not asked."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from pytest_agenttrace.replay.cassette import CassetteError, load_cassette, scrub_uri, shown_path

__all__ = ["SCRIPTED", "Unscripted", "Upstream", "ask", "check_replaceable"]

SCRIPTED = "scripted server on loopback"
# Of a connection, no part of the reply.
_HOP = frozenset({"connection", "transfer-encoding", "content-length", "server"})
_SECONDS = 60


class Upstream(Protocol):
    """What is asked instead of Google: a server on loopback that runs inside of its `with` block, and knows what of
    its script nobody has asked for (the node it is for, and what to tell)."""

    @property
    def url(self) -> str: ...

    @property
    def unused(self) -> Sequence[tuple[str | None, str]]: ...

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Unscripted(Exception):
    """The script has no reply; `evidence` is why, a line each."""

    def __init__(self, evidence: Sequence[str]) -> None:
        super().__init__("\n".join(evidence))
        self.evidence = evidence


def check_replaceable(path: Path) -> None:
    """Raise `CassetteError` for a cassette that a script would replace with replies that somebody has paid for."""
    if not path.exists():
        return
    file = load_cassette(path)
    if file.interactions and file.origin != SCRIPTED:
        came = f"came from {file.origin}" if file.origin else "did not come from a script"
        raise CassetteError(
            f"{shown_path(path)}: its replies {came}; recording with gemini_server would replace them. "
            'Delete it, or name another file: @pytest.mark.agent_trace(cassette="...").'
        )


def ask(upstream: Upstream, method: str, url: str, body: bytes, node: str | None) -> dict[str, Any]:
    """A reply over loopback, in vcrpy's shape. The node is told in a header, which nobody records. Raises `Unscripted`
    where the script has none.

    On a socket of its own: the clients of http.client are vcrpy's while a cassette is open.
    """
    server, asked = urlsplit(upstream.url), urlsplit(scrub_uri(url))
    target = asked.path + (f"?{asked.query}" if asked.query else "")
    head = [f"{method.upper()} {target} HTTP/1.1", f"Host: {server.netloc}", f"Content-Length: {len(body)}"]
    head += [f"X-Agenttrace-Node: {quote(node)}"] if node is not None else []
    with socket.create_connection((server.hostname, server.port), timeout=_SECONDS) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        response = HTTPResponse(connection, method=method.upper())
        response.begin()
        said = response.read()
    if response.getheader("X-Agenttrace-Refused") is not None:
        message: str = json.loads(said)["error"]["message"]
        raise Unscripted(message.removeprefix("GeminiServer: ").splitlines())
    return {
        "status": {"code": response.status, "message": response.reason},
        "headers": _headers(response.headers),
        "body": {"string": said},
    }


def _headers(given: Message) -> dict[str, list[str]]:
    return {name: [value] for name, value in given.items() if name.lower() not in _HOP}
