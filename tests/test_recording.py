"""What a recording leaves behind, through the whole plugin: nothing good is destroyed, shared files hold all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_agenttrace import ErrorReply, GeminiServer, Reply
from pytest_agenttrace.gemini_server import Script
from pytest_agenttrace.options import OptionError, check_options
from pytest_agenttrace.replay.recording import read_exchange
from pytest_agenttrace.replay.scrubbing import without_keys

TESTS = """
import pytest
from langchain_google_genai import ChatGoogleGenerativeAI

def ask(prompt):
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", max_retries=1).invoke(prompt).text

@pytest.mark.agent_trace(cassette="shared.yaml", allow=["unused"])
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_shared(agent_trace, name):
    assert ask(f"Summarise {name}") == f"{name} in short"

def test_two_calls(agent_trace):
    first = ask("First?")
    if first == "stop":
        raise ValueError("no second call")
    second = ask("Second?")
    assert (first, second) == ("one", "two")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run(folder: Path, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def record(folder: Path, environment: dict[str, str], script: Script, *arguments: str) -> str:
    with GeminiServer(script) as server:
        keyed = environment | {"GOOGLE_API_KEY": "scripted", "GOOGLE_GEMINI_BASE_URL": server.url}
        return run(folder, keyed, *arguments, "--agenttrace-record")


def test_a_shared_cassette_holds_what_each_test_recorded(folder: Path, clean_environment: dict[str, str]) -> None:
    script = {f"Summarise {name}": Reply(f"{name} in short") for name in "abc"}
    assert "3 passed" in record(folder, clean_environment, script, "-k", "shared")
    assert "3 passed" in run(folder, clean_environment, "-k", "shared")


def test_a_recording_cut_short_leaves_the_old_one(folder: Path, clean_environment: dict[str, str]) -> None:
    cassette = folder / "cassettes" / "test_it" / "test_two_calls.yaml"
    assert "1 passed" in record(folder, clean_environment, [Reply("one"), Reply("two")], "-k", "two_calls")
    good = cassette.read_bytes()

    cut = record(folder, clean_environment, [Reply("stop")], "-k", "two_calls")
    assert "ValueError: no second call" in cut
    assert "the recording is incomplete: cassettes/test_it/test_two_calls.yaml is left as it was" in cut
    assert cassette.read_bytes() == good

    refused = record(folder, clean_environment, [ErrorReply(403, "API key not valid")], "-k", "two_calls")
    assert "1 failed" in refused
    assert cassette.read_bytes() == good

    # What an assert says of new replies is no reason to lose them.
    assert "1 failed" in record(folder, clean_environment, [Reply("one"), Reply("three")], "-k", "two_calls")
    assert b"three" in cassette.read_bytes()


ENDS = """
import operator
import os
from typing import Annotated, TypedDict

import pytest
from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import START, StateGraph
from langgraph.types import Send

def ask(prompt):
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", max_retries=1).invoke(prompt).text

def test_ends(agent_trace):
    assert ask("First?")
    if os.environ.get("END") == "xfail":
        pytest.xfail("not today")
    if os.environ.get("END") == "skip":
        pytest.skip("not today")
    assert ask("Second?")

def test_hides_a_miss(agent_trace):
    try:
        ask("Never recorded")
    except BaseException:
        pytest.skip("no answer")

class Said(TypedDict):
    said: Annotated[list, operator.add]

class State(Said, total=False):
    topic: str

def test_sections(agent_trace):
    inner = StateGraph(State, output_schema=Said)
    inner.add_node("ask", lambda state: {"said": [ask(f"{os.environ.get('WORD', 'Short')} on {state['topic']}")]})
    inner.add_edge(START, "ask")
    outer = StateGraph(State)
    outer.add_node("section", inner.compile())
    topics = ["sails", "kites", "looms", "bells"]
    outer.add_conditional_edges(START, lambda state: [Send("section", {"topic": topic}) for topic in topics])
    outer.compile().invoke({})
"""


def end(folder: Path, environment: dict[str, str], how: str, *arguments: str) -> str:
    return record(folder, environment | {"END": how}, lambda asked: Reply(f"re: {asked.prompt}"), *arguments)


@pytest.mark.parametrize(("how", "outcome"), [("xfail", "1 xfailed"), ("skip", "1 skipped")])
def test_a_body_that_ends_early_replaces_nothing_and_says_so(
    how: str, outcome: str, tmp_path: Path, clean_environment: dict[str, str]
) -> None:
    (tmp_path / "test_ends.py").write_text(ENDS)
    cassette = tmp_path / "cassettes" / "test_ends" / "test_ends.yaml"
    assert "1 passed" in end(
        tmp_path, clean_environment, "", "-k", "test_ends.py and test_ends and not miss and not sections"
    )
    whole = cassette.read_bytes()
    ended = end(tmp_path, clean_environment, how, "-k", "test_ends.py and test_ends and not miss and not sections")
    assert outcome in ended
    assert cassette.read_bytes() == whole
    assert (
        "test_ends.py::test_ends: the recording is incomplete: cassettes/test_ends/test_ends.yaml is left as it was\n"
        "  its reply lies in cassettes/test_ends/test_ends.partial.yaml: --agenttrace-record-missing goes on from there"
    ) in ended


def test_a_skip_hides_no_miss(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    (tmp_path / "test_ends.py").write_text(ENDS)
    ended = run(tmp_path, clean_environment | {"GOOGLE_API_KEY": "none"}, "-k", "hides")
    assert "1 failed" in ended
    assert "CassetteMiss: (no node), call 1: no cassette" in ended


def test_branches_that_are_subgraphs_stand_as_they_were_sent(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    (tmp_path / "test_ends.py").write_text(ENDS)
    cassette = tmp_path / "cassettes" / "test_ends" / "test_sections.yaml"
    for word in ("Short", "Brief", "Long"):
        said = end(tmp_path, clean_environment | {"WORD": word}, "", "-k", "sections")
        assert "1 passed" in said, said
        topics = re.findall(rf"text: {word} on (\w+)", cassette.read_text())
        assert topics == ["sails", "kites", "looms", "bells"]


def test_a_shared_cassette_is_compared_with_what_was_asked_again(
    folder: Path, clean_environment: dict[str, str]
) -> None:
    def script(words: int) -> Script:
        return {
            f"Summarise {name}": Reply(f"{name} in short", usage={"promptTokenCount": 3, "candidatesTokenCount": words})
            for name in "abc"
        }

    shared = ("-k", "shared", "-rP")
    assert "Captured recording" not in record(folder, clean_environment, script(5), *shared)
    assert "Captured recording" not in record(folder, clean_environment, script(5), *shared)
    changed = record(folder, clean_environment, script(7), *shared)
    assert changed.count("(no node) 8 -> 10 tokens") == 3
    assert changed.count("run 8 -> 10 tokens") == 3


AGAIN = """
import os

import pytest
from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import START, StateGraph


def ask(prompt):
    temperature = float(os.environ.get("TEMPERATURE", "0"))
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", temperature=temperature, max_retries=1).invoke(prompt).text


def app(words):
    graph = StateGraph(dict)
    graph.add_node("research", lambda state: {"facts": ask(f"Research {state['topic']}")})
    graph.add_node("write", lambda state: {"text": ask(f"Write {words} words on {state['facts']}")})
    graph.add_edge(START, "research")
    graph.add_edge("research", "write")
    return graph.compile()


@pytest.mark.parametrize("topic", ["sails", "kites"])
@pytest.mark.budget("write", tokens=100)
def test_article(agent_trace, topic):
    app(int(os.environ.get("WORDS", "300"))).invoke({"topic": topic})


@pytest.mark.parametrize("topic", ["sails", "kites"])
@pytest.mark.agent_trace(cassette="shared.yaml")
def test_shared(agent_trace, topic):
    ask(f"Summarise {topic}")
"""


def lines(out: str) -> list[str]:
    """Without what differs from run to run."""
    return [line.rstrip() for line in out.splitlines()]


def test_recording_again_costs_what_changed_and_says_so(folder: Path, clean_environment: dict[str, str]) -> None:
    (folder / "test_it.py").write_text(AGAIN)
    small = {part: Reply("x", usage={"promptTokenCount": 10, "candidatesTokenCount": 40}) for part in ("R", "W", "S")}
    first = record(folder, clean_environment, small, "-n2", "-p", "xdist")
    assert "4 passed" in first, first
    assert "agenttrace: recording 4 tests; their last recording: none; 3 of 3 cassettes are new" in lines(first)
    assert "recorded anew: 6 calls, $0.000618" in lines(first)
    assert "4 passed" in run(folder, clean_environment)

    large = {"Write": Reply("y", usage={"promptTokenCount": 10, "candidatesTokenCount": 140})}
    with GeminiServer(large) as server:
        keyed = clean_environment | {"GOOGLE_API_KEY": "x", "GOOGLE_GEMINI_BASE_URL": server.url, "WORDS": "400"}
        again = run(folder, keyed, "--agenttrace-record-missing")
        assert len(server.requests) == 2
    assert "2 failed, 2 passed" in again
    assert "agenttrace: recording 4 tests; their last recording: 6 calls, $0.000618" in lines(again)
    assert "recorded anew: 2 calls, $0.000706" in lines(again)
    assert lines(again).count("write 150 tokens > 100 (+50)") == 2
    told = ["write 50 -> 150 tokens, $0.000103 -> $0.000353", "run 100 -> 200 tokens, $0.000206 -> $0.000456"]
    assert [line for line in lines(again) if " -> " in line] == told * 2
    # Complete, and kept though a budget failed.
    replayed = run(folder, clean_environment | {"WORDS": "400"})
    assert lines(replayed).count("write 150 tokens > 100 (+50)") == 2
    assert "CassetteMiss" not in replayed


def test_a_limit_stops_the_run_and_adopting_calls_nobody(folder: Path, clean_environment: dict[str, str]) -> None:
    (folder / "test_it.py").write_text(AGAIN)
    small = {part: Reply("x", usage={"promptTokenCount": 10, "candidatesTokenCount": 40}) for part in ("R", "W", "S")}
    stopped = record(folder, clean_environment, small, "--agenttrace-record-limit", "0.00035")
    assert "CassetteMiss: write, call 2: not asked: it would pass the limit of --agenttrace-record-limit" in stopped
    assert "stopping after 2 failures" not in stopped
    assert "--agenttrace-record-limit is reached" in stopped
    assert "recorded anew: 3 calls, $0.000309" in lines(stopped)
    aside = "cassettes/test_it/test_article[kites].partial.yaml"
    assert f"  its reply lies in {aside}: --agenttrace-record-missing goes on from there" in lines(stopped)
    assert (folder / aside).exists()

    old = folder / "cassettes" / "test_it" / "test_article[sails].yaml"
    old.write_text(re.sub(r"20\d\d-\d\d-\d\dT\S+Z|\w{3}, .* GMT", "2026-01-01T00:00:00Z", old.read_text()))
    adopted = run(folder, clean_environment | {"TEMPERATURE": "0.5"}, "-k", "article and sails", "--agenttrace-adopt")
    assert "1 passed" in adopted, adopted
    assert "  2 requests changed in one way: generationConfig.temperature 0.0 -> 0.5" in lines(adopted)
    ini = ["-o", "agenttrace_max_age=30"]
    aged = run(folder, clean_environment | {"TEMPERATURE": "0.5"}, "-k", "article and sails", *ini)
    assert "1 passed" in aged, aged
    assert re.search(r"cassettes/test_it/test_article\[sails\]\.yaml was recorded \d{3,} days ago", aged)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"record": True, "adopt": True}, "--agenttrace-record and --agenttrace-adopt exclude each other: give one"),
        ({"record_limit": "1"}, "--agenttrace-record-limit: nothing is recorded; add --agenttrace-record-missing"),
        ({"record": True, "record_limit": "much"}, "--agenttrace-record-limit: 'much' is no sum of USD, such as 0.50"),
        ({"record": True, "record_limit": "-1"}, "--agenttrace-record-limit: '-1' is no sum of USD, such as 0.50"),
        ({"max_age": "a week"}, "agenttrace_max_age: 'a week' is no whole number of days"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    def given(name: str) -> Any:
        return options.get(name.removeprefix("agenttrace_"))

    given_or = {"agenttrace_keep": "failed"}
    config: Any = SimpleNamespace(
        getoption=lambda name: given(name) or given_or.get(name),
        getini=lambda name: given(name) or "",
        rootpath=Path("nowhere"),
    )
    with pytest.raises(OptionError) as caught:
        check_options(config)
    assert str(caught.value).startswith(said)


# Keys


@pytest.mark.parametrize(
    ("body", "stored"),
    [
        (b'{"api_key": "short", "q": "x"}', {"api_key": "REDACTED", "q": "x"}),
        (b'{"deep": [{"API-Key": "short"}, 1]}', {"deep": [{"API-Key": "REDACTED"}, 1]}),
        (b'{"Client_Secret": "a", "password": "b"}', {"Client_Secret": "REDACTED", "password": "REDACTED"}),
    ],
)
def test_members_that_hold_a_key_are_blacked_out(body: bytes, stored: object) -> None:
    assert json.loads(without_keys(body)) == stored
    assert without_keys(without_keys(body)) == without_keys(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00 not text",
        b'{"tokens": 3, "max_tokens": 5, "token": null, "api_key": 7}',
        b'[{"q": "api_key=x"}]',
        b"q=a+b&page=2",
        b"api_key",
        b"[" * 100_000,
        b'{"api_key": ' * 5_000 + b'"x"' + b"}" * 5_000,
    ],
    ids=["empty", "bytes", "no texts", "text", "form", "word", "open", "deep"],
)
def test_other_bodies_stay_as_they_are(body: bytes) -> None:
    assert without_keys(body) is body


def test_a_form_keeps_its_other_fields() -> None:
    assert without_keys(b"q=a+%26&token=x&empty=") == b"q=a+%26&token=REDACTED&empty="


def exchange(url: str, body: object, said: object, **headers: str) -> Any:
    asked = SimpleNamespace(method="post", uri=url, body=json.dumps(body), headers=headers)
    reply = {"string": json.dumps(said).encode()}
    status = {"code": 200, "message": "OK"}
    return read_exchange(asked, {"status": status, "headers": {}, "body": reply}, None)


def test_a_key_of_another_service_and_its_echoes_are_not_written() -> None:
    key = "tvly-" + "0123456789abcdefghij"
    stored = exchange("https://api.search.example/search", {"api_key": key, "q": "x"}, {"you": key})
    assert (json.loads(stored.body), json.loads(stored.reply)) == (
        {"api_key": "REDACTED", "q": "x"},
        {"you": "REDACTED"},
    )
    # Too short to be looked for anywhere else.
    stored = exchange("https://api.search.example/search", {"api_key": "short", "q": "short"}, {"you": "short"})
    assert (json.loads(stored.body), json.loads(stored.reply)) == (
        {"api_key": "REDACTED", "q": "short"},
        {"you": "short"},
    )
    for header in ("X-Api-Key", "api-key", "Authorization", "X-Subscription-Token", "Cookie"):
        stored = exchange("https://api.search.example/search", {}, {"you": key}, **{header: key})
        assert json.loads(stored.reply) == {"you": "REDACTED"}


def test_a_prompt_about_tokens_is_the_models_and_stays() -> None:
    asked = {"contents": [{"parts": [{"functionCall": {"name": "login", "args": {"token": "x", "password": "y"}}}]}]}
    stored = exchange("https://generativelanguage.googleapis.com/v1beta/models/m:generateContent", asked, {})
    assert json.loads(stored.body) == asked
