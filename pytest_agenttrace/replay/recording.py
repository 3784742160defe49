"""What a recording writes: an exchange without the keys it carried, and where it came from.

Beside the model's exchanges those with the hosts a user names (`hosts`): their keys are in other places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pytest_agenttrace.replay.cassette import SECRET_PARAMETERS, Interaction, reply_time, scrub_uri
from pytest_agenttrace.replay.matching import api_path, plain_reply
from pytest_agenttrace.replay.scrubbing import REDACTED, Scrubber, keys_in, project_of, without_keys
from pytest_agenttrace.replay.upstream import SCRIPTED
from pytest_agenttrace.wire import decode_body, parse_endpoint

__all__ = [
    "google",
    "loopback",
    "merged",
    "origin_of",
    "packages",
    "read_body",
    "read_exchange",
]

GEMINI = "https://generativelanguage.googleapis.com"
PACKAGES = ("google-genai", "langchain-core", "langchain-google-genai", "langgraph", "vcrpy", "pytest-agenttrace")
_SECRET_HEADERS = frozenset(
    {
        *("authorization", "proxy-authorization", "cookie", "x-goog-api-key"),
        # Search services and their like.
        *("api-key", "apikey", "x-api-key", "x-auth-token", "x-subscription-token", "ocp-apim-subscription-key"),
    }
)
# Shorter values are no real keys; replacing them would tear words out of texts.
_SECRET_LENGTH = 20


def read_body(request: Any) -> bytes:
    """The body of a vcrpy request: bytes, text, a file, an iterator, or what was given as `json=`."""
    body = request.body
    if hasattr(body, "read"):
        body = body.read()
    if isinstance(body, dict | list):
        body = json.dumps(body, default=str)
    if body is None or isinstance(body, bytes | bytearray):
        return bytes(body or b"")
    if isinstance(body, str):
        return body.encode()
    if hasattr(body, "__iter__"):
        return b"".join(part if isinstance(part, bytes) else str(part).encode() for part in body)
    return repr(body).encode()


def read_exchange(
    request: Any, response: Mapping[str, Any], duration: float | None, patterns: Sequence[str] = ()
) -> Interaction:
    """An exchange as it is written, without what is secret in it; `patterns` are the user's own regular expressions."""
    body, reply = (
        decode_body(read_body(request)),
        plain_reply(response["body"].get("string") or b"", response["headers"]),
    )
    secrets = _secrets(request)
    if parse_endpoint(request.uri) is None:
        secrets += _long(keys_in(body))
        body = without_keys(body)
    scrubber = Scrubber(patterns, project_of(request.uri))
    return Interaction(
        method=request.method.upper(),
        uri=scrubber.text(_stored_uri(request.uri)),
        body=scrubber.body(_without(body, secrets)),
        status=response["status"]["code"],
        reply=scrubber.body(_without(reply, secrets)),
        reason=scrubber.text(response["status"]["message"] or ""),
        request_headers={name: [scrubber.text(str(value))] for name, value in request.headers.items()},
        reply_headers={
            name: list(map(scrubber.text, _reply_header(name, values, secrets)))
            for name, values in response["headers"].items()
        },
        recorded=reply_time(response["headers"]) or datetime.now(UTC).replace(microsecond=0),
        duration=duration,
    )


def _reply_header(name: str, values: Sequence[str], secrets: Sequence[str]) -> list[str]:
    # Where to send a file's bytes: an address, with the key in some.
    stored = [scrub_uri(_stored_uri(value)) if name.lower() == "x-goog-upload-url" else value for value in values]
    return [_without(value.encode(), secrets).decode() for value in stored]


def _secrets(request: Any) -> list[str]:
    """Keys and credentials a request carries, so that no echo of them is written either."""
    values = [str(value) for name, value in request.headers.items() if name.lower() in _SECRET_HEADERS]
    for name, given in parse_qs(urlsplit(request.uri).query).items():
        values += given if name.lower() in SECRET_PARAMETERS else []
    return _long(values)


def _long(values: Sequence[str]) -> list[str]:
    return [part for value in values for part in value.split() if len(part) >= _SECRET_LENGTH]


def _without(body: bytes, secrets: Sequence[str]) -> bytes:
    for secret in secrets:
        body = body.replace(secret.encode(), REDACTED.encode())
    return body


def _stored_uri(uri: str) -> str:
    """A URI as it is written: the port of a model's stand-in on loopback means nothing tomorrow."""
    parts = urlsplit(uri)
    if not loopback(parts.hostname) or parse_endpoint(uri) is None:
        return uri
    return f"{GEMINI}{api_path(parts.path)}" + (f"?{parts.query}" if parts.query else "")


@cache
def packages() -> dict[str, str]:
    """The versions of what made the requests."""
    versions: dict[str, str] = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def origin_of(hosts: set[str]) -> str:
    """Whose replies these are: never "Google" for what another host has said."""
    if all(map(google, hosts)):
        return "Google"
    if all(map(loopback, hosts)):
        return SCRIPTED
    return ", ".join(sorted(hosts))


def merged(metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The provenance of a file that several tests have recorded."""
    origins = sorted({str(meta["origin"]) for meta in metas})
    return {
        **metas[0],
        "recorded": min(str(meta["recorded"]) for meta in metas),
        "models": sorted({model for meta in metas for model in meta["models"]}),
        "origin": ", ".join(origins),
    }


def loopback(host: str | None) -> bool:
    """Whether a host is this machine itself."""
    if host is None:
        return False
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def google(host: str) -> bool:
    """Whether a host is Google's API."""
    return host == "googleapis.com" or host.endswith(".googleapis.com")
