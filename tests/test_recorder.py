"""Recording: what is paid for is on the disk at once, what is good is replaced only by what is whole."""

from __future__ import annotations

import dataclasses
import itertools
import json
import operator
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

from pytest_agenttrace import CassetteMiss, ErrorReply, GeminiServer, Reply
from pytest_agenttrace.calls import ModelCall
from pytest_agenttrace.gemini_server import ScriptedRequest
from pytest_agenttrace.replay import Opening, Shares, Spending, open_cassette, partial_path, prune
from pytest_agenttrace.replay.cassette import load_cassette

ASK = "/v1beta/models/gemini-2.5-flash:generateContent"
NOWHERE = "http://127.0.0.1:9"
RECORD = Opening(mode="record")


def ask(url: str, prompt: str, **settings: Any) -> str:
    import httpx

    content = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": settings}
    reply = httpx.post(url + ASK, json=content, timeout=5).raise_for_status().json()
    return str(reply["candidates"][0]["content"]["parts"][0]["text"])


def echo(request: ScriptedRequest) -> Reply:
    return Reply(f"re: {request.prompt}")


def record(path: Path, *prompts: str, mode: Any = "record", shares: Shares | None = None) -> list[str]:
    """What the server was asked."""
    with GeminiServer(echo) as server:
        with open_cassette(path, Opening(mode=mode, shares=shares)):
            assert [ask(server.url, prompt) for prompt in prompts] == [f"re: {prompt}" for prompt in prompts]
        return [body["contents"][0]["parts"][0]["text"] for _, body in server.requests]


def prompts_of(path: Path) -> list[str]:
    return [json.loads(found.body)["contents"][0]["parts"][0]["text"] for found in load_cassette(path).interactions]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


# Only what is missing


def test_a_changed_prompt_costs_only_itself(path: Path) -> None:
    assert record(path, "one", "two", "three") == ["one", "two", "three"]
    assert record(path, "one", "2", "three", mode="missing") == ["2"]
    assert prompts_of(path) == ["one", "2", "three"]
    assert not partial_path(path).exists()


def test_what_nobody_asks_for_any_more_is_dropped_from_a_tests_own_cassette(path: Path) -> None:
    record(path, "one", "two", "three")
    assert record(path, "one", "three", mode="missing") == []
    assert prompts_of(path) == ["one", "three"]


def test_nothing_missing_leaves_the_file_alone(path: Path) -> None:
    record(path, "one", "two")
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert record(path, "one", "two", mode="missing") == []
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_the_first_recording_may_be_one_of_what_is_missing(path: Path) -> None:
    assert record(path, "one", mode="missing") == ["one"]
    assert prompts_of(path) == ["one"]


def test_the_same_said_again_is_the_same_file(path: Path) -> None:
    record(path, "one", "two")
    before = path.read_bytes()
    time.sleep(1)  # the date of a reply has seconds
    assert record(path, "one", "two") == ["one", "two"]
    assert path.read_bytes() == before


# Whole or not at all


@pytest.mark.parametrize("mode", ["record", "missing"])
def test_a_request_without_a_reply_leaves_the_cassette_and_keeps_what_was_paid_for(path: Path, mode: Any) -> None:
    import httpx

    record(path, "old")
    before = path.read_bytes()
    with GeminiServer(echo) as server, open_cassette(path, Opening(mode=mode)) as cassette:
        assert ask(server.url, "one") == "re: one"
        assert prompts_of(partial_path(path)) == ["one"]
        with pytest.raises(httpx.ConnectError):
            ask(NOWHERE, "two")
        assert ask(server.url, "three") == "re: three"
    assert cassette.incomplete == (
        f"the recording is incomplete: no reply came to call 2: {path} is left as it was\n"
        f"  its 2 replies lie in {partial_path(path)}: --agenttrace-record-missing goes on from there"
    )
    assert path.read_bytes() == before
    assert prompts_of(partial_path(path)) == ["one", "three"]
    assert record(path, "one", "two", "three", mode="missing") == ["two"]
    assert prompts_of(path) == ["one", "two", "three"]
    assert not partial_path(path).exists()


def test_a_request_that_got_its_reply_at_the_second_try_is_whole(path: Path) -> None:
    import httpx

    with GeminiServer(echo) as server, open_cassette(path, Opening(mode="record")) as cassette:
        with pytest.raises(httpx.ConnectError):
            ask(NOWHERE, "one")
        ask(server.url, "one")
    assert cassette.incomplete is None
    assert prompts_of(path) == ["one"]


def test_a_body_that_gives_up_keeps_what_is_whole_and_sets_the_rest_aside(path: Path) -> None:
    record(path, "one", "two")
    with GeminiServer(echo) as server, open_cassette(path, Opening(mode="record")) as cassette:
        ask(server.url, "new")
        assert "1 reply" not in str(cassette.give_up())
    assert prompts_of(path) == ["one", "two"]
    assert prompts_of(partial_path(path)) == ["new"]


def test_what_was_stopped_is_no_cassette(path: Path) -> None:
    with GeminiServer(echo) as server, open_cassette(path, RECORD) as cassette:
        ask(server.url, "one")
        assert str(cassette.give_up(stopped=True)).startswith("the recording is incomplete: ")
    assert (path.exists(), prompts_of(partial_path(path))) == (False, ["one"])


def test_replies_set_aside_twice_are_all_kept(path: Path) -> None:
    record(path, "old")
    for prompts in (["one", "two"], ["two", "three"]):
        with GeminiServer(echo) as server, open_cassette(path, Opening(mode="record")) as cassette:
            for prompt in prompts:
                ask(server.url, prompt)
            cassette.give_up()
    assert sorted(prompts_of(partial_path(path))) == ["one", "three", "two"]
    assert record(path, "three", "two", "one", mode="missing") == []


def test_what_was_paid_for_last_stands_for_what_was_there(path: Path) -> None:
    """The same prompts asked anew, and not to the end: going on keeps the new replies in the places of the old ones."""
    prompts, numbers = ("one", "one", "two"), itertools.count(1)
    with GeminiServer(lambda asked: Reply(f"old {next(numbers)}")) as server, open_cassette(path, RECORD):
        for prompt in prompts:
            ask(server.url, prompt)
    with GeminiServer([Reply("new 1")]) as server, open_cassette(path, RECORD) as cassette:
        ask(server.url, "one")
        cassette.give_up()
    assert prompts_of(partial_path(path)) == ["one"]
    with open_cassette(path, Opening(mode="missing")):
        assert [ask(NOWHERE, prompt) for prompt in prompts] == ["new 1", "old 2", "old 3"]
    assert not partial_path(path).exists()
    with open_cassette(path):
        assert [ask(NOWHERE, prompt) for prompt in prompts] == ["new 1", "old 2", "old 3"]


KILLED = """
import dataclasses, os, random, signal, sys, time
from pathlib import Path

from pytest_agenttrace.calls import Caller
from pytest_agenttrace.replay.arranging import Kept
from pytest_agenttrace.replay.cassette import load_cassette
from pytest_agenttrace.replay.recorder import Recorder, partial_path
from tests.test_recorder import prompts_of

path = Path(sys.argv[1])
(stored, *_) = load_cassette(path).interactions


def record(turns):
    for turn in turns:
        recorder = Recorder(path, None)
        for number in range(3):
            body = stored.body.replace(b"0 0", f"{os.getpid()}-{turn} {number}".encode())
            made = Kept(number, dataclasses.replace(stored, body=body), Caller(), number, number)
            recorder.made(made, "127.0.0.1", model=True)
        recorder.close(complete=True)


record(range(1))  # what is imported late is imported here
start = time.perf_counter()
record(range(2))
turn = (time.perf_counter() - start) / 2
chance, aside, turns = random.Random(7), 0, set()
for _ in range(100):
    child = os.fork()
    if not child:
        record(range(10_000))
    time.sleep(chance.uniform(0, 4 * turn))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = [prompt.split() for prompt in prompts_of(path)]
    assert [number for _, number in found] == ["0", "1", "2"], found
    assert len({turn for turn, _ in found}) == 1, found
    turns.add(found[0][0])
    if partial_path(path).exists():
        aside += bool(prompts_of(partial_path(path)))
        partial_path(path).unlink()
print(len(turns), aside)
"""


def test_a_killed_recording_damages_no_file(path: Path) -> None:
    """A process is killed at a hundred random moments: the cassette is always one whole recording, and what was set
    aside can be read."""
    record(path, "0 0", "0 1", "0 2")
    command = [sys.executable, "-c", KILLED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    replaced, aside = map(int, done.stdout.split())
    assert replaced > 1
    assert aside > 1


# Order


class State(TypedDict, total=False):
    topics: list[str]
    topic: str
    facts: Annotated[list[str], operator.add]


def fan_out(url: str) -> Any:
    from langgraph.graph import END, START, StateGraph
    from langgraph.types import Send

    def look_up(state: State) -> State:
        first = ask(url, f"Facts on {state['topic']}")
        return {"facts": [ask(url, f"Shorter: {first}")]}

    graph = StateGraph(State)
    graph.add_node("look_up", look_up)
    graph.add_node("sum_up", lambda state: {"facts": [ask(url, f"Sum up {len(state['facts'])}")]})
    graph.add_conditional_edges(START, lambda state: [Send("look_up", {"topic": topic}) for topic in state["topics"]])
    graph.add_edge("look_up", "sum_up")
    graph.add_edge("sum_up", END)
    return graph.compile()


def test_branches_stand_in_the_order_of_their_paths_whichever_was_faster(path: Path) -> None:
    topics = [f"topic {number}" for number in range(12)]
    expected = [text for topic in topics for text in (f"Facts on {topic}", f"Shorter: re: Facts on {topic}")]
    chance = random.Random(3)

    def slowly(request: ScriptedRequest) -> Reply:
        time.sleep(chance.uniform(0, 0.03))
        return echo(request)

    arrived: set[tuple[str, ...]] = set()
    files: set[bytes] = set()
    for _ in range(3):
        with GeminiServer(slowly) as server:
            with open_cassette(path, Opening(mode="record")):
                fan_out(server.url).invoke({"topics": topics, "facts": []})
            arrived.add(tuple(body["contents"][0]["parts"][0]["text"] for _, body in server.requests))
        assert prompts_of(path) == [*expected, "Sum up 12"]
        files.add(path.read_bytes())
    assert len(arrived) > 1
    assert len(files) == 1


def test_many_threads_lose_nothing(path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(60)]
    with (
        GeminiServer(echo) as server,
        open_cassette(path, Opening(mode="record")) as cassette,
        ThreadPoolExecutor(8) as pool,
    ):
        assert list(pool.map(lambda prompt: ask(server.url, prompt), prompts)) == [f"re: {p}" for p in prompts]
    assert sorted(prompts_of(path)) == sorted(prompts)
    assert len(cassette.calls) == 60
    with open_cassette(path) as cassette, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda prompt: ask(NOWHERE, prompt), prompts)) == [f"re: {p}" for p in prompts]
    assert cassette.unused == ()


# Shared


def test_tests_that_share_a_cassette_record_it_together(path: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    record(path, "old of a", "common", "old of b")
    record(path, "common", "a", shares=Shares(parts, "test_a"))
    # Until the end of the run nothing that others may ask for is gone.
    assert prompts_of(path) == ["old of a", "old of b", "common", "a"]
    record(path, "b", shares=Shares(parts, "test_b"))
    record(path, "a", shares=Shares(parts, "test_a"))  # a rerun
    assert prompts_of(path) == ["old of a", "common", "old of b", "a", "b"]
    assert prune(parts, path) == 3
    assert prompts_of(path) == ["a", "b"]


SHARING = """
import os, sys
from pathlib import Path

from pytest_agenttrace.replay import Opening, Shares, open_cassette
from tests.test_recorder import ask

path, url = Path(sys.argv[1]), sys.argv[2]
children = []
for number in range(4):
    if child := os.fork():
        children.append(child)
        continue
    with open_cassette(path, Opening(mode="record", shares=Shares(path.with_name("parts"), f"test_{number}"))):
        for turn in range(5):
            ask(url, f"{number} {turn}")
    os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


def test_processes_that_share_a_cassette_record_it_together(path: Path) -> None:
    with GeminiServer(echo) as server:
        command = [sys.executable, "-c", SHARING, str(path), server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert prompts_of(path) == [f"{number} {turn}" for number in range(4) for turn in range(5)]
    assert not partial_path(path).exists()


# What it may cost


def dollars(call: ModelCall) -> Decimal:
    if call.model == "unpriced":
        raise LookupError(f"no price is known for {call.model!r}")
    assert call.usage is not None
    return Decimal(call.usage.output_tokens or 0) / 1000


def limited(tmp_path: Path, limit: str) -> Opening:
    spending = Spending(Decimal(limit), tmp_path / "spent")
    return Opening(mode="missing", price=dollars, spending=spending, command="pytest test_it.py")


def ask_all(url: str, count: int) -> None:
    for number in range(count):
        ask(url, str(number))


def test_recording_stops_before_the_call_that_would_pass_the_limit(path: Path, tmp_path: Path) -> None:
    replies = [Reply("x", usage={"promptTokenCount": 1, "candidatesTokenCount": 100}) for _ in range(9)]
    with GeminiServer(replies) as server:
        with open_cassette(path, limited(tmp_path, "0.25")) as cassette, pytest.raises(CassetteMiss) as caught:
            ask_all(server.url, 9)
        assert len(server.requests) == 2
        assert str(caught.value) == (
            "(no node), call 3: not asked: it would pass the limit of --agenttrace-record-limit\n"
            "  POST gemini-2.5-flash:generateContent\n"
            "  limit $0.25, spent $0.2, this call is expected to cost $0.1\n"
            "  Raise the limit, and go on from what was recorded:\n"
            "    pytest test_it.py --agenttrace-record-missing --agenttrace-record-limit USD"
        )
        assert cassette.incomplete is not None
        assert not path.exists()
        # The next test of the run spends of the same sum.
        with (
            open_cassette(path.with_name("y.yaml"), limited(tmp_path, "0.25")),
            pytest.raises(CassetteMiss, match="call 1: not asked"),
        ):
            ask(server.url, "next")
        (tmp_path / "spent").unlink()
        with open_cassette(path, limited(tmp_path, "0.25")):
            ask_all(server.url, 3)
        assert len(server.requests) == 3
    assert prompts_of(path) == ["0", "1", "2"]


def test_the_last_recording_says_what_a_call_will_cost(path: Path, tmp_path: Path) -> None:
    replies = [Reply("x", usage={"promptTokenCount": 1, "candidatesTokenCount": count}) for count in (100, 300)]
    with GeminiServer(replies) as server, open_cassette(path, Opening(mode="record")):
        ask_all(server.url, 2)
    with (
        GeminiServer(echo) as server,
        open_cassette(path, dataclasses.replace(limited(tmp_path, "0.30"), mode="record")) as cassette,
    ):
        ask(server.url, "0")
        with pytest.raises(CassetteMiss, match=r"spent \$0\.\d+, this call is expected to cost \$0\.3"):
            ask(server.url, "1")
    assert len(cassette.made) == 1


def test_the_output_a_request_allows_is_expected(path: Path, tmp_path: Path) -> None:
    with (
        GeminiServer(echo) as server,
        open_cassette(path, limited(tmp_path, "0.25")),
        pytest.raises(CassetteMiss, match=r"this call is expected to cost \$0\.3"),
    ):
        ask(server.url, "long", maxOutputTokens=300)
    assert not server.requests


def test_a_model_without_a_price_is_not_asked_under_a_limit(path: Path, tmp_path: Path) -> None:
    import httpx

    said = "no price is known for 'unpriced': without a price the limit cannot be kept"
    with (
        GeminiServer(echo) as server,
        open_cassette(path, limited(tmp_path, "9")),
        pytest.raises(CassetteMiss, match=said),
    ):
        httpx.post(f"{server.url}/v1beta/models/unpriced:generateContent", json={"contents": []})
    assert not server.requests


def test_one_sum_for_many_threads(tmp_path: Path) -> None:
    spending = Spending(Decimal("0.50"), tmp_path / "spent")
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(lambda _: spending.reserve(Decimal("0.01")), range(80)))
    assert (allowed.count(True), spending.spent()) == (50, Decimal("0.50"))
    spending.settle("flash", Decimal("0.01"), Decimal("0.003"))
    assert spending.dearest("flash") == Decimal("0.003")
    assert spending.spent() == Decimal("0.493")


# Real errors


def test_a_429_is_waited_for_and_recorded(path: Path) -> None:
    """While recording the client's waits are real: a server that is busy is left alone."""
    from langchain_google_genai import ChatGoogleGenerativeAI

    asked: list[float] = []

    def busy(request: ScriptedRequest) -> Reply | ErrorReply:
        asked.append(time.monotonic())
        return ErrorReply(429, "slow down") if len(asked) == 1 else Reply("at last")

    with GeminiServer(busy) as server, open_cassette(path, Opening(mode="record")) as cassette:
        model = ChatGoogleGenerativeAI(model="gemini-2.5-flash", base_url=server.url, api_key="x", max_retries=2)
        assert model.invoke("hello").content == "at last"
    assert asked[1] - asked[0] > 0.4
    assert [call.status for call in cassette.calls] == [429, 200]
    assert [found.status for found in load_cassette(path).interactions] == [429, 200]
