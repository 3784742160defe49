"""pytest-recording's `vcr_config`: what it takes out of a request or a reply stays out of our cassettes too.

vcrpy's own filters do it; requests are matched as they were filtered. The other keys of that fixture (where its
cassettes lie, how they match, what they record) are about its cassettes alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_agenttrace.replay.recording import read_body

__all__ = ["Filters"]

KEYS = (
    "before_record",
    "before_record_request",
    "before_record_response",
    "filter_headers",
    "filter_nested_post_data_parameters",
    "filter_post_data_parameters",
    "filter_query_parameters",
)


@dataclass(frozen=True, slots=True)
class Filters:
    """The filters among the keys of a `vcr_config`; none of them by default."""

    config: Mapping[str, Any]

    def asked(self, request: Any) -> Any:
        """A request of vcrpy as it is matched; one that is not to be recorded is matched as it is."""
        filtered = self._request(request)
        return request if filtered is None else filtered

    def written(self, request: Any, response: Mapping[str, Any]) -> tuple[Any, Any] | None:
        """An exchange as it is written; None for one that is not to be."""
        asked = self._request(request)
        replied = None if asked is None else self._vcrpy("before_record_response", response)
        return None if replied is None else (asked, replied)

    def _request(self, request: Any) -> Any:
        if not self._chosen:
            return request
        plain = copy.deepcopy(request)
        # Bytes that say what they are, whichever client asks.
        if isinstance(plain.body, dict | list):
            plain.headers.setdefault("Content-Type", "application/json")
        plain.body = read_body(plain)
        return self._vcrpy("before_record_request", plain)

    @property
    def _chosen(self) -> dict[str, Any]:
        return {key: self.config[key] for key in KEYS if key in self.config}

    def _vcrpy(self, which: str, what: Any) -> Any:
        if not self._chosen:
            return what
        from vcr import VCR  # type: ignore[import-untyped]  # vcrpy has no types

        # A filter of a user's may change in place what the client still reads.
        return VCR(**self._chosen).get_merged_config(path="no file")[which](copy.deepcopy(what))
