"""Cached contents: created, read, changed, listed and deleted, while the server runs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pytest_agenttrace.gemini_server.bodies import words_in
from pytest_agenttrace.gemini_server.replies import ErrorReply

__all__ = ["Caches"]

_PATH = re.compile(r"/v\d\w*/(?:.*/)?cachedContents(?:/(?P<name>[^/?:]+))?(?:\?.*)?$")
# Of the API: a cache lives for an hour unless its creator says otherwise.
_HOUR = 3600.0


class Caches:
    """The cached contents of one server. Thread safe."""

    def __init__(self) -> None:
        self._caches: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def answer(self, verb: str, path: str, body: Mapping[str, Any]) -> dict[str, Any] | ErrorReply | None:
        """The reply, an error, or None where the request is none about cached contents."""
        found = _PATH.match(path)
        if found is None:
            return None
        with self._lock:
            if found["name"] is None:
                return self._create(body) if verb == "POST" else self._list()
            name = f"cachedContents/{found['name']}"
            if name not in self._caches:
                return ErrorReply(403, "CachedContent not found (or permission denied)")
            if verb == "DELETE":
                del self._caches[name]
                return {}
            if verb == "PATCH":
                self._caches[name].update(_times(body))
            return dict(self._caches[name])

    def _list(self) -> dict[str, Any]:
        return {"cachedContents": [dict(cache) for cache in self._caches.values()]} if self._caches else {}

    def _create(self, body: Mapping[str, Any]) -> dict[str, Any]:
        # By its content: the name goes into later requests, which shall be the same in every recording.
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]
        cache = {
            "name": f"cachedContents/scripted-{digest}",
            "model": body.get("model", ""),
            "displayName": body.get("displayName", ""),
            **_times(body),
            "usageMetadata": {"totalTokenCount": words_in(body)},
        }
        cache["createTime"] = cache["updateTime"]
        self._caches[cache["name"]] = cache
        return dict(cache)


def _times(body: Mapping[str, Any]) -> dict[str, str]:
    now = datetime.now(UTC)
    until = body.get("expireTime")
    if until is None:
        until = _written(now + timedelta(seconds=float(str(body.get("ttl", _HOUR)).removesuffix("s"))))
    return {"updateTime": _written(now), "expireTime": until}


def _written(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
