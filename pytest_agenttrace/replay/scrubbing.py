"""What is secret in an exchange, and what stands for it in a cassette.

Known by its shape (keys of well-known services, tokens, private keys), by the name it goes under (`api_key`,
`password`, ...), as the value of an environment variable, as a Google Cloud project, or by a regular expression of the
user's. A secret that an event stream sends in two pieces is not seen.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, unquote_plus, urlencode, urlsplit

from pytest_agenttrace.environment import DUMMY_KEY
from pytest_agenttrace.replay.secret_forms import LEFT, NAMED, SHAPES, is_secret_name, is_worded_name, looks_secret

__all__ = ["REDACTED", "Scrubber", "find_secret", "keys_in", "project_of", "without_keys"]

REDACTED = "REDACTED"
# Members of a body, JSON or form, that carry a key to a service that is not the model's.
_SECRET_MEMBERS = frozenset(
    {"api_key", "apikey", "access_token", "client_secret", "refresh_token", "password", "secret", "token"}
)
_JSON_DEPTH = 100

# Variables of the environment that hold secrets, by the ends of their names.
_VARIABLES = ("KEY", "KEYS", "TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "CREDENTIALS")
# Shorter values, and words shorter than the second, are torn out of texts that mean something else.
_SHORTEST, _SHORTEST_WORD = 8, 16

# A piece of a URL or of a form with escapes in it.
_PERCENT = re.compile(r"(?<![^\s\"'\\&=?;<>/%])[^\s\"'\\&=?;<>/%]*(?:%[0-9A-Fa-f]{2}[^\s\"'\\&=?;<>/%]*)+")
# JSON or an event stream, and the strings in it.
_DATA = re.compile(r"\s*[{\[\"]|(?:[^\n]*\n)?data:")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_IS_NAME = re.compile(r"\s*:")
_LONG_NUMBER = re.compile(r"^(\s*:\s*)-?\d{6,}")
_SOUND = re.compile(r"(?:[\s,:{}\[\]\d.+-]|[eE](?=[+-]?\d)|true|false|null|data:|event:)*")
# Members as the API names them; a pattern that fits one would break every reply.
_OF_THE_API = re.compile(r"[A-Za-z_$@-]*")
# JSON in a string of JSON, so deep.
_NESTED = 4
# Shorter values under the name of a secret are none.
_SHORTEST_NAMED = 6
_PROJECT = re.compile(r"/projects/([^/]+)/locations/")


def project_of(uri: str) -> str | None:
    """The Google Cloud project in a URL of Vertex AI."""
    found = _PROJECT.search(urlsplit(uri).path)
    return unquote(found[1]) if found is not None else None


def _values(environ: Mapping[str, str]) -> tuple[str, ...]:
    """What variables of the environment hold that is secret, longest first."""
    named = {environ[name] for name in list(environ) if name.upper().endswith(_VARIABLES)}
    return tuple(sorted((value.strip() for value in named if _is_secret(value.strip())), key=len, reverse=True))


def _is_secret(value: str) -> bool:
    if value == DUMMY_KEY or len(value) < _SHORTEST or value.startswith(("/", "~", "./")):
        return False
    return len(value) >= _SHORTEST_WORD or not value.isalpha()


@lru_cache(maxsize=16)
def _forms(values: tuple[str, ...]) -> tuple[str, ...]:
    """As values stand in JSON, in URLs, in forms and in base64."""
    forms: dict[str, None] = {}
    for value in values:
        escaped = (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
        packed = b64encode(value.encode("utf-8", "surrogatepass")).decode().rstrip("=")
        safe = value.encode("utf-8", "replace").decode()
        forms |= dict.fromkeys(
            (value, *escaped, json.dumps(escaped[0])[1:-1], quote(safe, safe=""), quote_plus(safe), packed)
        )
    return tuple(sorted(forms, key=len, reverse=True))


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


class Scrubber:
    """Takes the secrets out of one exchange. `patterns` are regular expressions, `project` a Google Cloud project."""

    def __init__(
        self, patterns: Sequence[str] = (), project: str | None = None, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._patterns = patterns
        self._forms = _forms(_values(environ))
        known = project is not None and project != REDACTED and len(project) >= _SHORTEST - 2
        self._project = re.compile(rf"(?<![\w-]){re.escape(project)}(?![\w-])") if project and known else None

    def text(self, text: str) -> str:
        """The text with `REDACTED` for each secret; the same text where there is none."""
        text = self._plain(text)
        return _PERCENT.sub(self._decoded, text) if "%" in text else text

    def _decoded(self, found: re.Match[str]) -> str:
        """A piece of a URL or of a form, where it hides a secret behind its escapes."""
        for decode in (unquote, unquote_plus):
            plain = decode(found[0])
            clean = self._plain(plain)
            if clean != plain:
                return quote(clean, safe="")
        return found[0]

    def _plain(self, text: str) -> str:
        for form in self._forms:
            text = text.replace(form, REDACTED) if form in text else text
        for mark, pattern in SHAPES:
            text = _compiled(pattern).sub(REDACTED, text) if mark in text else text
        lower = text.lower()
        for marks, pattern in NAMED:
            if any(mark in lower for mark in marks):
                text = _compiled(pattern).sub(_blacked, text)
        if self._project is not None:
            text = self._project.sub(REDACTED, text)
        for pattern in self._patterns:
            text = _compiled(pattern).sub(REDACTED, text)
        return text

    def body(self, body: bytes) -> bytes:
        """A body without its secrets; the same object where there is none. What is no text is searched as it is."""
        if not body:
            return body
        coding, errors = "utf-8", "surrogatepass"
        try:
            text = body.decode(coding, errors)
        except UnicodeDecodeError:
            coding, errors = "latin-1", "replace"
            for form in self._forms:
                packed = form.encode("utf-8", errors)
                body = body.replace(packed, REDACTED.encode()) if packed in body else body
            text = body.decode(coding)
        clean = self._data(text, _NESTED) if _DATA.match(text) else self.text(text)
        return body if clean == text else clean.encode(coding, errors)

    def _data(self, text: str, depth: int) -> str:
        """JSON, or an event stream of it, string by string: a pattern never reaches beyond the string it is found in,
        and escapes hide nothing. What is no string, and what is behind a break, is searched as it is."""
        parts: list[str] = []
        at, name, account = 0, "", "service_account" in text
        for found in _STRING.finditer(text):
            gap = text[at : found.start()]
            name = "" if "}" in gap or "]" in gap else name
            parts.append(self._gap(gap, name))
            at = found.end()
            value = _said(found[0])
            if _IS_NAME.match(text, at):
                name = value
                clean = value if _OF_THE_API.fullmatch(value) else self.text(value)
            else:
                hidden = _hides(name, value) or (account and name == "project_id")
                clean = REDACTED if hidden else self._value(value, depth)
            parts.append(found[0] if clean == value else json.dumps(clean, ensure_ascii=False))
        return "".join([*parts, self._gap(text[at:], name)])

    def _gap(self, gap: str, name: str) -> str:
        """What stands between two strings: punctuation and numbers, which patterns leave alone, or anything where the
        JSON is broken."""
        if not _SOUND.fullmatch(gap):
            return self.text(gap)
        if is_secret_name(name):
            gap = _LONG_NUMBER.sub(rf'\g<1>"{REDACTED}"', gap)
        for form in self._forms:
            gap = re.sub(rf"(?<![\d.-]){re.escape(form)}(?![\d.])", f'"{REDACTED}"', gap) if form in gap else gap
        return gap

    def _value(self, value: str, depth: int) -> str:
        """A string of JSON, which may hold JSON itself."""
        if depth and value.lstrip()[:1] in ("{", "["):
            with suppress(ValueError, RecursionError):
                json.loads(value)
                return self._data(value, depth - 1)
        return self.text(value)


def _said(string: str) -> str:
    """What a string of JSON says; as it stands where its escapes are none of JSON's."""
    with suppress(ValueError):
        said: str = json.loads(string, strict=False)
        return said
    return string


def _hides(name: str, value: str) -> bool:
    if is_secret_name(name):
        return len(value) >= _SHORTEST_NAMED and value != REDACTED
    return is_worded_name(name) and looks_secret(value)


def _blacked(found: re.Match[str]) -> str:
    """The first group stays, the last one goes."""
    return found[0] if found[found.re.groups] == REDACTED else f"{found[1]}{REDACTED}"


def find_secret(text: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """What looks like a secret in a text that is about to be written, by its first characters; None is well."""
    found = LEFT.search(text)
    if found is not None:
        return f"{found[0][:4]}..."
    left = next((value for value in _values(environ) if value in text), None)
    return f"{left[:2]}..., the value of an environment variable" if left is not None else None


def _json(body: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(body)
    return None


def _pairs(body: bytes) -> list[tuple[str, str]]:
    """The fields of a form; nothing where a body is none."""
    with suppress(ValueError):
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True)
    return []


def without_keys(body: bytes) -> bytes:
    """A body to a service that is not the model's, its keys blacked out by the names of their members (`api_key`,
    `token`, ...). The same body where it has none. Both sides of a match are compared like this."""
    content = _json(body)
    if keys_in(body) and content is not None:
        return json.dumps(_blackened(content, 0), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if keys_in(body):
        return urlencode([(n, REDACTED if _is_key(n, v) else v) for n, v in _pairs(body)]).encode()
    return body


def keys_in(body: bytes) -> list[str]:
    """What stands under the names of keys in a body to a service that is not the model's."""
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
        return {n: REDACTED if _is_key(n, v) else _blackened(v, depth + 1) for n, v in content.items()}
    return [_blackened(inner, depth + 1) for inner in content] if isinstance(content, list) else content
