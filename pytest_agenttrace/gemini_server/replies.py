"""What a script says: replies and errors as data, checked where they are written.

Source of the names: the Gemini API reference (GenerateContentResponse, Candidate, PromptFeedback, UsageMetadata).
"""

from __future__ import annotations

import json as json_text
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = ["COUNTS", "DETAILS", "Answer", "ErrorReply", "Reply"]

COUNTS = (
    "promptTokenCount",
    "candidatesTokenCount",
    "totalTokenCount",
    "cachedContentTokenCount",
    "toolUsePromptTokenCount",
    "thoughtsTokenCount",
)
# The counts that the API also splits by modality, beside the key it does so under.
DETAILS = {
    "promptTokenCount": "promptTokensDetails",
    "cachedContentTokenCount": "cacheTokensDetails",
    "toolUsePromptTokenCount": "toolUsePromptTokensDetails",
    "candidatesTokenCount": "candidatesTokensDetails",
}
_FINISH_REASONS = (
    *("STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "LANGUAGE", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"),
    *("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "IMAGE_SAFETY"),
    *("IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "IMAGE_OTHER", "NO_IMAGE"),
)
_BLOCK_REASONS = ("SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY", "MODEL_ARMOR", "JAILBREAK")

ToolRequest: TypeAlias = tuple[str, Mapping[str, Any]] | tuple[str, Mapping[str, Any], str]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the model, plain or streamed as the client asks. ValueError for what cannot be meant.

    - `usage` holds counts by the API's names (`promptTokenCount`, `candidatesTokenCount`, `thoughtsTokenCount`,
      `cachedContentTokenCount`, `toolUsePromptTokenCount`, `totalTokenCount`); a count by modality is a dict
      (`{"TEXT": 12, "IMAGE": 258}`). Prompt, candidates and thoughts left out are counted in words, the total is the
      sum, a count of 0 is not sent (as the real API does); None sends no usage at all.
    - `tool_calls` are `(name, args)` or `(name, args, id)`; an id left out depends on the call and its place.
    - `json` is the text as data (dict, list, or an object with `model_dump`), for structured output.
    - `thoughts` is sent as a part of its own before the answer, which is signed.
    - `chunks` are the pieces of `text` in a stream; None streams it in one.
    - `candidates` are several answers, each a Reply; the client gets as many as its `candidateCount` asks for.
    - `block_reason` is that of a blocked prompt: there is no candidate then.
    - `safety_ratings` and `grounding` (groundingMetadata) are sent as they are given.
    - `model_version` is the model asked for unless given.
    """

    text: str = ""
    usage: Mapping[str, int | Mapping[str, int]] | None = field(default_factory=dict)
    tool_calls: Sequence[ToolRequest] = ()
    model_version: str | None = None
    finish_reason: str = "STOP"
    chunks: Sequence[str] | None = None
    json: Any = None
    thoughts: str = ""
    candidates: Sequence[Reply] = ()
    block_reason: str | None = None
    safety_ratings: Sequence[Mapping[str, Any]] = ()
    grounding: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.json is not None:
            self._take_json()
        self._check_usage()
        if self.chunks is not None and (not self.chunks or "".join(self.chunks) != self.text):
            raise ValueError(f"Reply: chunks must join to the text: {list(self.chunks)!r} is not {self.text!r}")
        _check_name("finish_reason", self.finish_reason, _FINISH_REASONS)
        if self.block_reason is not None:
            _check_name("block_reason", self.block_reason, _BLOCK_REASONS)
            if self._answers or self.candidates:
                raise ValueError("Reply: a blocked prompt has no answer: leave out all but block_reason and usage")
        if not all(isinstance(candidate, Reply) for candidate in self.candidates):
            raise TypeError(f"Reply: candidates are Replies, not {self.candidates!r}")
        if self.candidates and self._answers:
            raise ValueError("Reply: candidates stand for themselves: leave out all but candidates and usage")
        if any(candidate.candidates or candidate.block_reason for candidate in self.candidates):
            raise ValueError("Reply: a candidate has no candidates and no block_reason of its own")

    @property
    def _answers(self) -> bool:
        return bool(self.text or self.tool_calls or self.thoughts or self.grounding is not None)

    def _take_json(self) -> None:
        if self.text:
            raise ValueError("Reply: text and json are one thing: leave one of them out")
        dump = getattr(self.json, "model_dump", None)
        value = dump(mode="json") if callable(dump) else self.json
        try:
            text = json_text.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"Reply: json holds what JSON cannot: {error}") from None
        object.__setattr__(self, "json", value)
        object.__setattr__(self, "text", text)

    def _check_usage(self) -> None:
        for name, count in (self.usage or {}).items():
            if name not in COUNTS:
                raise ValueError(f"Reply: no count named {name!r}; known: {', '.join(COUNTS)}")
            if isinstance(count, Mapping) and name not in DETAILS:
                raise ValueError(f"Reply: {name} is not split by modality; these are: {', '.join(DETAILS)}")
            for number in count.values() if isinstance(count, Mapping) else [count]:
                if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                    raise ValueError(f"Reply: {name} is {number!r}, not a number of tokens")


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error: HTTP `code`, `status` by that code unless given, `retry_after` in seconds as a header, `details` as
    they are given (`[{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]`).

    google-genai tries 408, 429, 500, 502, 503 and 504 again, with waits of a second and more.
    """

    code: int
    message: str
    status: str | None = None
    retry_after: int | None = None
    details: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if not 400 <= self.code <= 599:
            raise ValueError(f"ErrorReply: {self.code} is no HTTP error: 400 to 599")


Answer: TypeAlias = Reply | ErrorReply


def _check_name(what: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        raise ValueError(f"Reply: no {what} {given!r}; known: {', '.join(known)}")
