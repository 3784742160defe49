"""pytest-recording's `vcr_config`: its filters hold for our cassettes too, and requests are matched as filtered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace import CassetteMiss, GeminiServer, Reply
from pytest_agenttrace.replay import Opening, open_cassette
from pytest_agenttrace.replay.cassette import load_cassette

ASK = "/v1beta/models/gemini-2.5-flash:generateContent"


def ask(url: str, prompt: str, client: str, **body: Any) -> Any:
    content = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], **body}
    if client == "aiohttp":
        return asyncio.run(_ask_aiohttp(url + ASK + "?user=anna", content))
    import httpx

    return httpx.post(url + ASK + "?user=anna", json=content).json()


async def _ask_aiohttp(url: str, content: Mapping[str, Any]) -> Any:
    import aiohttp

    async with aiohttp.ClientSession() as session, session.post(url, json=content) as response:
        return await response.json()


def anonymous(request: Any) -> Any:
    request.body = request.body.replace(b"Anna", b"somebody")
    return request


def shorter(response: Any) -> Any:
    response["body"]["string"] = response["body"]["string"].replace(b"Anna", b"somebody")
    return response


FILTERS: dict[str, Any] = {
    "record_mode": "none",
    "match_on": ["method"],
    "filter_query_parameters": ["user"],
    "filter_post_data_parameters": ["session"],
    "before_record_request": anonymous,
    "before_record_response": shorter,
}


@pytest.mark.parametrize("client", ["httpx", "aiohttp"])
def test_what_is_filtered_is_not_written_and_matched_without_it(tmp_path: Path, client: str) -> None:
    path = tmp_path / "asked.yaml"
    with GeminiServer([Reply("Good morning, Anna.")]) as server:
        with open_cassette(path, Opening(mode="record", filters=FILTERS)):
            said = ask(server.url, "Greet Anna", client, session="s-1")
        assert server.requests[0][1]["session"] == "s-1"
    assert said["candidates"][0]["content"]["parts"][0]["text"] == "Good morning, Anna."
    text = path.read_text()
    assert not [word for word in ("Anna", "anna", "s-1", "session") if word in text]
    with open_cassette(path, Opening(filters=FILTERS)) as cassette:
        replayed = ask("http://127.0.0.1:9", "Greet Anna", client, session="s-2")
    assert replayed["candidates"][0]["content"]["parts"][0]["text"] == "Good morning, somebody."
    assert (len(cassette.calls), cassette.unused) == (1, ())
    with open_cassette(path) as cassette, pytest.raises(CassetteMiss):
        ask("http://127.0.0.1:9", "Greet Anna", client, session="s-2")


@pytest.mark.parametrize("which", ["before_record_request", "before_record_response"])
def test_what_is_not_to_be_recorded_is_not_and_is_missed_in_replay(tmp_path: Path, which: str) -> None:
    path = tmp_path / "asked.yaml"
    filters = {
        which: lambda found: None if b"Anna" in str(vars(found) if hasattr(found, "uri") else found).encode() else found
    }
    with (
        GeminiServer([Reply("Hello, Anna."), Reply("Hello.")]) as server,
        open_cassette(path, Opening(mode="record", filters=filters)),
    ):
        ask(server.url, "Greet Anna", "httpx")
        ask(server.url, "Greet all", "httpx")
    (kept,) = load_cassette(path).interactions
    assert b"Greet all" in kept.body
    with open_cassette(path, Opening(filters=filters)), pytest.raises(CassetteMiss, match=r"nearest recorded: call 1"):
        ask("http://127.0.0.1:9", "Greet Anna", "httpx")


def test_a_filter_changes_nothing_that_is_sent_or_received(tmp_path: Path) -> None:
    def spoil(request: Any) -> Any:
        request.body = b"{}"
        request.headers.clear()
        return request

    with (
        GeminiServer([Reply("Hello.")]) as server,
        open_cassette(tmp_path / "asked.yaml", Opening(mode="record", filters={"before_record_request": spoil})),
    ):
        ask(server.url, "Greet all", "httpx")
    assert server.requests[0][1]["contents"][0]["parts"][0]["text"] == "Greet all"
