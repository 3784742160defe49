"""A client's new version asks in another form: its requests are written over the old ones, the replies stay."""

from __future__ import annotations

import asyncio
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace import CassetteMiss, GeminiServer, Reply, capture
from pytest_agenttrace.capture import CaptureFailed
from pytest_agenttrace.replay import Opening, open_cassette
from pytest_agenttrace.replay.cassette import load_cassette
from pytest_agenttrace.replay.mismatch import changes
from pytest_agenttrace.session.state import Session
from pytest_agenttrace.wire import canonical_body
from tests.test_recorder import NOWHERE, ask, echo, prompts_of, record

OLD = Path(__file__).parents[1] / "cassettes" / "langchain-google-genai-4.0.0.yaml"


def run(path: Path, **how: Any) -> Any:
    from tests.upgrade.app import graph

    with capture(path, **how) as trace:
        done = asyncio.run(graph().ainvoke({"subject": "three things", "facts": []}))
        assert done["text"] == "An article."
        return trace.snapshot()


@pytest.mark.skipif(version("langchain-google-genai") == "4.0.0", reason="the version that has recorded it: no upgrade")
def test_an_upgrade_of_the_client_is_adopted_without_a_call(tmp_path: Path) -> None:
    """Recorded with langchain-google-genai 4.0.0, asked by the one that is installed: every body differs."""
    path = tmp_path / "x.yaml"
    shutil.copy(OLD, path)
    old = load_cassette(path)
    with pytest.raises(CassetteMiss):
        run(path)
    with open_cassette(path) as cassette:
        assert len(cassette.unused) == 8
    trace = run(path, record="adopt")
    assert trace.trajectory == ["plan", "research", "research", "research", "write"]
    assert [execution.tokens for execution in trace.executions] == [10, 34, 34, 34, 16]
    new = load_cassette(path)
    replies = [[canonical_body(found.reply) for found in file.interactions] for file in (new, old)]
    assert replies[0] == replies[1]
    assert [found.node for found in new.interactions] == [found.node for found in old.interactions]
    assert not {found.body for found in new.interactions} & {found.body for found in old.interactions}
    assert new.recorded == old.recorded
    assert new.origin == old.origin == "scripted server on loopback"
    assert new.meta["adopted_from"]["langchain-google-genai"] == "4.0.0"
    assert new.meta["packages"]["langchain-google-genai"] != "4.0.0"
    again = run(path)
    assert (again.tokens, again.cost, again.outline) == (trace.tokens, trace.cost, trace.outline)


def test_what_changed_is_told_by_its_ways(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    record(path, "one", "two", "three")
    with open_cassette(path, Opening(mode="adopt")) as cassette:
        assert ask(NOWHERE, "one", temperature=0.2) == "re: one"
        assert ask(NOWHERE, "two") == "re: two"
        assert ask(NOWHERE, "three", temperature=0.2) == "re: three"
    told = "generationConfig.temperature absent -> 0.2"
    assert cassette.adopted == ((1, told, told), (3, told, told))
    assert cassette.unused == ()
    with open_cassette(path) as cassette:
        assert ask(NOWHERE, "three", temperature=0.2) == "re: three"


def test_one_edit_of_a_template_is_one_way_whatever_stands_round_it(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    record(path, "Write about red kites", "Write about old looms")
    with open_cassette(path, Opening(mode="adopt")) as cassette:
        ask(NOWHERE, "Compose about red kites")
        ask(NOWHERE, "Compose about old looms", temperature=0.2)
    place = "contents[].parts[].text"
    warmer = "generationConfig.temperature absent -> 0.2"
    assert cassette.adopted == (
        (1, f"{place} [-Write-]{{+Compose+}} about red kites", f"{place} [-Write-]{{+Compose+}}"),
        (2, f"{place} [-Write-]{{+Compose+}} about old looms, {warmer}", f"{place} [-Write-]{{+Compose+}}, {warmer}"),
    )
    session = Session(lambda: None)
    for test, change in zip("abc", (*cassette.adopted, (3, *cassette.adopted[0][1:])), strict=True):
        session.tell(test, {"adopted": [["x.yaml", *change]]})
    assert session.adopted() == [
        f"2 requests changed in one way: {place} [-Write-]{{+Compose+}} about red kites",
        f"1 request changed in another way: {place} [-Write-]{{+Compose+}} about old looms, {warmer}",
    ]


def test_branches_adopt_the_request_that_is_most_like_theirs(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    record(path, "on solar sails", "on red kites", "on old looms")
    with open_cassette(path, Opening(mode="adopt")):
        for topic in ("old looms", "solar sails", "red kites"):
            assert ask(NOWHERE, f"on {topic}", temperature=0.2) == f"re: on {topic}"
    assert prompts_of(path) == ["on solar sails", "on red kites", "on old looms"]


@pytest.mark.parametrize("ending", ["a miss", "an error"])
def test_nothing_is_adopted_from_half_a_run(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "x.yaml"
    record(path, "one", "two")
    before = path.read_bytes()
    with open_cassette(path, Opening(mode="adopt")) as cassette:
        ask(NOWHERE, "one", temperature=0.2)
        if ending == "an error":
            assert cassette.give_up() is None
        else:
            ask(NOWHERE, "two")
            with pytest.raises(CassetteMiss, match="call 3: no recorded reply"):
                ask(NOWHERE, "three")
    assert path.read_bytes() == before


def test_the_reply_of_another_node_or_model_is_never_adopted(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with GeminiServer([Reply("x")]) as server, open_cassette(path, Opening(mode="record")):
        ask(server.url, "one")
    text = path.read_text()
    path.write_text(text.replace("gemini-2.5-flash", "gemini-2.5-pro"))
    with open_cassette(path, Opening(mode="adopt")), pytest.raises(CassetteMiss):
        ask(NOWHERE, "one")


def test_a_script_adopts_too(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with GeminiServer(echo) as server, capture(path, record=True, allow=["uncounted"]):
        ask(server.url, "one")
    with capture(path, record="missing", allow=["uncounted"]):
        ask(NOWHERE, "one")
    with pytest.raises(CaptureFailed, match="unused"), capture(path, record="adopt", allow=["uncounted", "empty"]):
        pass


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'{"a": 1}', b'{"a": 1.0}', []),
        (b'{"a": 1}', b'{"a": 2, "b": []}', ["a 1 -> 2", "b absent -> []"]),
        (b'{"a": {"b": null}}', b"{}", ['a {"b": null} -> absent']),
        (b'{"a": ["one two", 3]}', b'{"a": ["one 2", 3, 4]}', ["a[0] one [-two-]{+2+}", "a[2] absent -> 4"]),
        (b"text", b"other", ["body [-text-]{+other+}"]),
    ],
)
def test_every_difference_is_told(old: bytes, new: bytes, told: list[str]) -> None:
    assert changes(old, new) == told
