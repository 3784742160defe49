"""A request's body as a flat table of its members, small enough for a ledger and equal for equal requests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

from pytest_agenttrace.ledger.model import Value

__all__ = ["members"]

_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
# A longer text is told by its length and a digest: prompts are in the cassette.
_LONGEST = 60
# Of a body with more members the rest is told together.
_MOST = 2_000


def members(body: bytes) -> dict[str, Value]:
    """`{"generationConfig.temperature": 0.7, "contents[0].parts[0].text": "812 characters #1f0a3c..."}`, in the order
    of the body. A body that is no JSON is one text named `body`."""
    try:
        data = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        return {"body": _text(body.decode("utf-8", "replace"))}
    found: dict[str, Value] = {}
    rest = blake2b(digest_size=6)
    left_over = 0
    for path, value in _leaves(data):
        if len(found) < _MOST:
            found[path or "body"] = value
        else:
            rest.update(f"{path}={value!r};".encode("utf-8", "backslashreplace"))
            left_over += 1
    return found | {"...": f"{left_over} more members #{rest.hexdigest()}"} if left_over else found


def _leaves(data: Any) -> Iterator[tuple[str, Value]]:
    waiting: list[tuple[str, Any]] = [("", data)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [(_below(path, key), inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list) and value:
            waiting += [(f"{path}[{index}]", inner) for index, inner in reversed(list(enumerate(value)))]
        else:
            yield path, _shown(value)


def _below(path: str, key: str) -> str:
    if not _NAME.fullmatch(key):
        return f"{path}[{json.dumps(key)}]"
    return f"{path}.{key}" if path else key


def _shown(value: Any) -> Value:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict | list):
        return "{}" if isinstance(value, dict) else "[]"
    # Whole numbers that no double holds, and what is no number in JSON.
    if isinstance(value, float) and not abs(value) < 1e300:
        return repr(value)
    return value  # type: ignore[no-any-return]  # JSON has nothing else


def _text(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    digest = blake2b(text.encode("utf-8", "backslashreplace"), digest_size=6).hexdigest()
    return f"{len(text)} characters #{digest}"
