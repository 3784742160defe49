"""Tools that Google runs itself while it answers, read from the replies they leave traces in."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_agenttrace.calls import Caller, Endpoint
from pytest_agenttrace.wire import decode_body, read_call

RECORDINGS = Path(__file__).resolve().parents[2] / "shared" / "recordings"
ENDPOINT = Endpoint("generateContent", "gemini-2.5-flash", False, False, False)


def sse(*chunks: object) -> str:
    return "".join(f"data: {json.dumps(chunk)}\r\n\r\n" for chunk in chunks)


def replied(*parts: dict[str, Any], **candidate: Any) -> str:
    return json.dumps({"candidates": [{"content": {"parts": list(parts)}, **candidate}]})


SEARCHED = {"webSearchQueries": ["solar sails"], "groundingChunks": [{"web": {"uri": "https://x.example"}}]}


@pytest.mark.parametrize(
    ("reply", "served"),
    [
        (replied({"text": "hi"}), ()),
        (replied({"text": "hi"}, groundingMetadata={}), ()),
        (replied({"text": "hi"}, groundingMetadata=SEARCHED), ("google_search",)),
        (replied({"executableCode": {"code": "1"}}, {"codeExecutionResult": {"output": "1"}}), ("code_execution",)),
        # File search writes code without a result.
        (
            replied(
                {"executableCode": {"code": "print(file_search.query())"}},
                groundingMetadata={"groundingChunks": [{"retrievedContext": {"text": "x"}}] * 2},
            ),
            ("file_search",),
        ),
        (replied(groundingMetadata={"groundingChunks": [{"maps": {"placeId": "x"}}]}), ("google_maps",)),
        (replied(urlContextMetadata={"urlMetadata": [{"retrievedUrl": "https://x.example"}]}), ("url_context",)),
        (
            replied({"toolCall": {"toolType": "GOOGLE_SEARCH_WEB"}}, groundingMetadata=SEARCHED),
            ("google_search",),
        ),
        (replied({"toolCall": {"toolType": "URL_CONTEXT"}}, {"toolCall": {"toolType": 3}}), ("url_context",)),
        (replied({"functionCall": {"name": "google_search", "args": {}}}), ()),
        (replied(groundingMetadata=[1], urlContextMetadata={"urlMetadata": "x"}), ()),
        (
            sse({"candidates": [{"groundingMetadata": SEARCHED}]}, {"candidates": [{"groundingMetadata": {}}]}),
            ("google_search",),
        ),
    ],
)
def test_googles_own_tools_are_read_from_what_they_leave(reply: str, served: tuple[str, ...]) -> None:
    assert read_call(1, Caller(), ENDPOINT, 200, reply).server_tools == served


def declared(body: Any) -> str:
    """The tools of its own that a recorded request offers, beside functions."""
    tools = json.loads(decode_body(body) or b"{}").get("tools") or []
    return " ".join(sorted(name for tool in tools for name in tool if name != "functionDeclarations"))


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason=f"no recordings: {RECORDINGS} is absent")
def test_what_google_ran_in_the_real_recordings() -> None:
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for path in sorted(RECORDINGS.glob("*/*.yaml")):
        text = path.read_text(encoding="utf-8")
        if not any(name in text for name in ("googleSearch", "codeExecution", "fileSearch", "urlContext")):
            continue
        for interaction in yaml.load(text, Loader=loader)["interactions"]:  # noqa: S506 -- both loaders are safe
            if "enerateContent" not in interaction["request"]["uri"]:
                continue
            reply = interaction["response"]["body"].get("string")
            served = read_call(1, Caller(), ENDPOINT, 200, reply).server_tools
            if offered := declared(interaction["request"]["body"]):
                found[offered, served] += 1
            else:
                assert served == ()
    assert found == {
        ("codeExecution", ("code_execution",)): 3,
        ("fileSearch", ("file_search",)): 3,
        ("googleSearch", ()): 11,
        ("googleSearch", ("google_search",)): 8,
        ("urlContext", ("url_context",)): 2,
    }
