"""What a recording writes: an exchange without the keys it carried, and where it came from.

Beside the model's exchanges those with the hosts a user names (`hosts`): their keys are in other places.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from pytest_agenttrace.replay.cassette import SECRET_PARAMETERS, Interaction, reply_time, scrub_uri
from pytest_agenttrace.replay.matching import api_path, plain_reply
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
    "without_keys",
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
# Members of a body, JSON or form, that carry a key to a service that is not the model's.
_SECRET_MEMBERS = frozenset(
    {"api_key", "apikey", "access_token", "client_secret", "refresh_token", "password", "secret", "token"}
)
_REDACTED = "REDACTED"
_JSON_DEPTH = 100
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


def read_exchange(request: Any, response: Mapping[str, Any], duration: float | None) -> Interaction:
    """An exchange as it is written, without the keys it carries."""
    body, reply = (
        decode_body(read_body(request)),
        plain_reply(response["body"].get("string") or b"", response["headers"]),
    )
    secrets = _secrets(request)
    if parse_endpoint(request.uri) is None:
        secrets += _long(_keys_in(body))
        body = without_keys(body)
    return Interaction(
        method=request.method.upper(),
        uri=_stored_uri(request.uri),
        body=_without(body, secrets),
        status=response["status"]["code"],
        reply=_without(reply, secrets),
        reason=response["status"]["message"] or "",
        request_headers={name: [str(value)] for name, value in request.headers.items()},
        reply_headers={name: _reply_header(name, values, secrets) for name, values in response["headers"].items()},
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
        body = body.replace(secret.encode(), _REDACTED.encode())
    return body


def _pairs(body: bytes) -> list[tuple[str, str]]:
    """The fields of a form; nothing where a body is none."""
    with suppress(ValueError):
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True)
    return []


def _json(body: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


def without_keys(body: bytes) -> bytes:
    """A body to a service that is not the model's, its keys blacked out by the names of their members (`api_key`,
    `token`, ...). The same body where it has none. Both sides of a match are compared like this."""
    content = _json(body)
    if _keys_in(body) and content is not None:
        return json.dumps(_blackened(content, 0), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if _keys_in(body):
        return urlencode([(n, _REDACTED if _is_key(n, v) else v) for n, v in _pairs(body)]).encode()
    return body


def _keys_in(body: bytes) -> list[str]:
    content = _json(body)
    if content is None:
        return [value for name, value in _pairs(body) if _is_key(name, value)]
    return list(_keys_of(content, 0))


def _is_key(name: str, value: Any) -> bool:
    return isinstance(value, str) and name.lower().replace("-", "_") in _SECRET_MEMBERS


def _keys_of(content: Any, depth: int) -> Iterator[str]:
    if depth > _JSON_DEPTH:
        return
    if isinstance(content, dict):
        yield from (value for name, value in content.items() if _is_key(name, value))
        content = list(content.values())
    for inner in content if isinstance(content, list) else []:
        yield from _keys_of(inner, depth + 1)


def _blackened(content: Any, depth: int) -> Any:
    if depth > _JSON_DEPTH:
        return content
    if isinstance(content, dict):
        return {n: _REDACTED if _is_key(n, v) else _blackened(v, depth + 1) for n, v in content.items()}
    return [_blackened(inner, depth + 1) for inner in content] if isinstance(content, list) else content


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
