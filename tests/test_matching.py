"""What is served for a request, what came nearest where nothing is, and what a large cassette costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import pytest_agenttrace.replay.matching as matching
import pytest_agenttrace.replay.mismatch as mismatch
from pytest_agenttrace.ignoring import Ignore
from pytest_agenttrace.replay.cassette import CassetteError, CassetteFile, Interaction, load_cassette
from pytest_agenttrace.replay.matching import Recorded, Recordings, Request, plain_reply, read_recordings, read_request
from pytest_agenttrace.replay.writing import save_cassette

ROOT = Path(__file__).parents[1]
GOOGLE = "https://generativelanguage.googleapis.com/v1beta/models"
UPLOAD = "https://generativelanguage.googleapis.com/upload"
VERTEX = (
    "https://us-central1-aiplatform.googleapis.com/v1beta1/projects/p/locations/us-central1/publishers/google/models"
)
FLASH = f"{GOOGLE}/gemini-2.5-flash:generateContent"
STREAM = f"{GOOGLE}/gemini-2.5-flash:streamGenerateContent"
WRITE = "Write 300 words on solar sails"


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "parts": [{"text": text}]}


def model(text: str) -> dict[str, Any]:
    return {"role": "model", "parts": [{"text": text}]}


# What the file holds plays no part here.
NOWHERE = Interaction("POST", FLASH, b"", 200, b"")


def ask(text: str | Sequence[Mapping[str, Any]], url: str = FLASH, **more: Any) -> Request:
    contents = [user(text)] if isinstance(text, str) else text
    body = {"contents": contents, "generationConfig": {"temperature": 0.7}, **more}
    return read_request("POST", url, json.dumps(body).encode())


def recordings(*requests: Request, ignore: Ignore | None = None, replayed: Sequence[int] = ()) -> Recordings:
    """Replies `1`, `2`, ... to these requests; those of the numbers `replayed` are already taken."""
    entries = [
        Recorded(number, request, 200, "OK", {}, str(number).encode(), None, None, NOWHERE)
        for number, request in enumerate(requests, 1)
    ]
    found = Recordings(entries, "body", ignore if ignore is not None else Ignore())
    for number in replayed:
        assert found.take(requests[number - 1]) is not None
    return found


def served(found: Recordings, asked: Request) -> str | None:
    entry = found.take(asked)
    return None if entry is None else entry.reply.decode()


def said(found: Recordings, asked: Request) -> str:
    """The lines of a message on a request that has no reply."""
    assert served(found, asked) is None
    nearest, lines = found.nearest(asked)
    assert nearest is not None
    assert nearest in lines[0]
    return "\n".join(lines)


# What matches


@pytest.mark.parametrize(
    "url",
    [
        VERTEX,
        VERTEX.replace("/p/", "/another-project/").replace("us-central1", "europe-west4"),
        VERTEX.replace("projects/p/locations/us-central1/", ""),
        VERTEX.replace("https://us-central1-aiplatform.googleapis.com", "http://127.0.0.1:1/gateway"),
    ],
)
def test_a_project_and_its_place_are_no_part_of_a_match(url: str) -> None:
    found = recordings(ask(WRITE, f"{VERTEX}/gemini-2.5-flash:generateContent"))
    assert served(found, ask(WRITE, f"{url}/gemini-2.5-flash:generateContent")) == "1"


def test_the_parts_of_a_match() -> None:
    found = recordings(ask(WRITE))
    body = json.dumps({"generationConfig": {"temperature": 7e-1}, "contents": [user(WRITE)]}, indent=2).encode()
    others = [
        read_request("PUT", FLASH, body),
        read_request("POST", f"{FLASH}?alt=sse", body),
        read_request("POST", FLASH.replace("flash", "pro"), body),
        read_request("POST", FLASH, body + b","),
        read_request("POST", FLASH, body.replace(b"300", b"301")),
    ]
    assert [other for other in others if found.holds(other)] == []
    assert served(found, read_request("post", FLASH, body + b"\n")) == "1"


@pytest.mark.parametrize("version", ["v1", "v1beta", "v1alpha", "v2beta3"])
@pytest.mark.parametrize(
    ("recorded", "asked"),
    [
        (FLASH, FLASH),
        (f"{VERTEX}/gemini-2.5-flash:generateContent", f"{VERTEX}/gemini-2.5-flash:generateContent"),
        (f"{GOOGLE.removesuffix('/models')}/files/f1", f"{GOOGLE.removesuffix('/models')}/files/f1"),
        (f"{UPLOAD}/v1beta/files", f"{UPLOAD}/v1beta/files"),
    ],
)
def test_the_version_of_the_api_is_no_part_of_a_match(recorded: str, asked: str, version: str) -> None:
    asked = re.sub(r"/v1beta1?/", f"/{version}/", asked)
    assert served(recordings(ask(WRITE, recorded)), ask(WRITE, asked)) == "1"


def test_what_is_ignored_is_ignored_on_both_sides() -> None:
    ignore = Ignore(("date", "uuid", "generationConfig.seed", r"run \d+"))
    recorded = ask("On 2026-11-22: run 7 of 0190a5f2-1111-7abc-8def-0123456789ab", generationConfig={"seed": 1})
    again = ask("On Monday, 23 November 2026: run 12 of 0190a5f2111170bc8def0123456789ab", generationConfig={})
    assert served(recordings(recorded), again) is None
    found = recordings(recorded, ask("else"), ignore=ignore)
    assert not found.holds(ask("On 2026-11-22: run of 0190a5f2-1111-7abc-8def-0123456789ab"))
    assert served(found, again) == "1"
    assert [unused.prompt for unused in found.unused()] == ["else"]


def test_requests_that_are_equal_but_for_what_is_ignored_keep_their_order() -> None:
    found = recordings(*[ask(f"2026-11-2{n}") for n in range(3)], ignore=Ignore(("date",)))
    assert [served(found, ask(f"2026-12-0{n}")) for n in (3, 2, 1, 1)] == ["1", "2", "3", None]


# What came nearest


def test_a_date_that_alone_differs_is_named_with_the_line_to_add() -> None:
    found = recordings(ask("Plan it"), ask("Today is 2026-11-22. Write 300 words"))
    assert said(found, ask("Today is 2026-11-23. Write 300 words")) == (
        "nearest recorded: call 2, differs only by a date at contents[0].parts[0].text:\n"
        "  Today is [-2026-11-22.-]{+2026-11-23.+} Write 300 words\n"
        'If it changes with every run: @pytest.mark.agent_trace(ignore=["date"])'
    )


def test_an_id_that_alone_differs_is_named_with_the_line_to_add() -> None:
    one, two = "0190a5f2-1111-7abc-8def-0123456789ab", "0190a5f2-2222-7abc-8def-0123456789ab"
    assert said(recordings(ask(f"Run {one} again")), ask(f"Run {two} again")) == (
        "nearest recorded: call 1, differs only by an id at contents[0].parts[0].text:\n"
        f"  Run [-{one}-]{{+{two}+}} again\n"
        'If it changes with every run: @pytest.mark.agent_trace(ignore=["uuid"])'
    )


def test_what_is_ignored_already_stays_in_the_line_to_add() -> None:
    one, two = "0" * 32, "1" * 32
    recorded = ask(f"On 2026-11-22, run 1, {one}", systemInstruction={"parts": [{"text": "It is May 2026"}]})
    asked = ask(f"On 2026-11-23, run 2, {two}", systemInstruction={"parts": [{"text": "It is June 2026"}]})
    found = recordings(recorded, ignore=Ignore((r"run \d+",)))
    assert said(found, asked) == (
        "nearest recorded: call 1, differs only by a date and an id at contents[0].parts[0].text:\n"
        f"  On [-2026-11-22,-]{{+2026-11-23,+}} <ignored>, [-{one}-]{{+{two}+}}\n"
        r'If it changes with every run: @pytest.mark.agent_trace(ignore=["run \\d+", "date", "uuid"])'
    )


def test_a_date_and_more_is_not_only_a_date() -> None:
    found = recordings(ask("Today is 2026-11-22. Write 300 words"))
    assert said(found, ask("Today is 2026-11-23. Write 400 words")) == (
        "nearest recorded: call 1, differs at contents[0].parts[0].text:\n"
        "  Today is [-2026-11-22.-]{+2026-11-23.+} Write [-300-]{+400+} words"
    )


def test_a_date_that_is_ignored_hides_no_other_difference() -> None:
    found = recordings(ask("Today is 2026-11-22. Write 300 words"), ignore=Ignore(("date",)))
    assert said(found, ask("Today is 2026-11-23. Write 400 words")) == (
        "nearest recorded: call 1, differs at contents[0].parts[0].text:\n  Today is <date>. Write [-300-]{+400+} words"
    )


def test_the_one_that_only_a_date_tells_apart_is_nearer_than_others() -> None:
    requests = [ask(f"Page {n} of 9 as of 2026-11-22, in short words") for n in range(1, 10)]
    asked = ask("Page 8 of 9 as of 2026-11-23, in short words")
    found = recordings(*requests, replayed=[8])
    assert said(found, asked).splitlines()[0] == (
        "nearest recorded: call 8, differs only by a date at contents[0].parts[0].text:"
    )


def test_a_seed_is_named_with_the_line_to_add() -> None:
    found = recordings(ask(WRITE, generationConfig={"seed": 1}))
    assert said(found, ask(WRITE, generationConfig={"seed": 2})) == (
        "nearest recorded: call 1, differs at generationConfig.seed:\n"
        "  recorded 1, asked 2\n"
        'If it changes with every run: @pytest.mark.agent_trace(ignore=["generationConfig.seed"])'
    )


@pytest.mark.parametrize(
    "more",
    [
        {"generationConfig": {"seed": 2, "topK": 3}},
        {"generationConfig": {}},
        {"generationConfig": {"seed": 1}, "toolConfig": {"mode": "ANY"}},
    ],
)
def test_a_setting_that_was_added_or_two_of_them_are_not_volatile(more: dict[str, Any]) -> None:
    found = recordings(ask(WRITE, generationConfig={"seed": 1}, toolConfig={"mode": "AUTO"}))
    changed: dict[str, Any] = {"toolConfig": {"mode": "AUTO"}, **more}
    assert "every run" not in said(found, ask(WRITE, **changed))


@pytest.mark.parametrize(
    ("recorded", "asked", "line"),
    [
        (f"{GOOGLE}/gemini-2.5-pro:generateContent", FLASH, "for gemini-2.5-pro"),
        (FLASH, f"{STREAM}?alt=sse", "without streaming"),
        (f"{STREAM}?alt=sse", FLASH, "as a stream"),
        (STREAM, f"{STREAM}?alt=sse", "without alt=sse"),
        (f"{STREAM}?alt=sse", STREAM, "with alt=sse"),
        (f"{VERTEX}/gemini-2.5-flash:generateContent", FLASH, "from Vertex AI"),
        (FLASH, f"{VERTEX}/gemini-2.5-flash:generateContent", "from the Gemini developer API"),
        (
            f"{VERTEX}/gemini-2.5-pro:streamGenerateContent?alt=sse",
            FLASH,
            "for gemini-2.5-pro, as a stream, from Vertex AI",
        ),
    ],
)
def test_the_same_request_recorded_elsewhere_is_recognised(recorded: str, asked: str, line: str) -> None:
    found = recordings(ask("Review it", asked), ask(WRITE, recorded))
    assert said(found, ask(WRITE, asked)) == f"the same request was recorded {line} (call 2)"


def test_the_same_request_for_another_model_is_one_that_still_waits() -> None:
    pro, lite = (FLASH.replace("flash", name) for name in ("pro", "lite"))
    found = recordings(ask(WRITE, pro), ask(WRITE, lite), replayed=[1])
    assert said(found, ask(WRITE)) == "the same request was recorded for gemini-2.5-lite (call 2)"
    assert served(found, ask(WRITE, lite)) == "2"
    assert said(found, ask(WRITE)) == "the same request was recorded for gemini-2.5-lite (call 2)"


def test_embeddings_name_their_model_in_the_body_too() -> None:
    def embed(name: str) -> Request:
        content = {"parts": [{"text": "a"}]}
        body = {"requests": [{"model": f"models/{name}", "content": content}] * 2}
        return read_request("POST", f"{GOOGLE}/{name}:batchEmbedContents", json.dumps(body).encode())

    line = "the same request was recorded for embedding-001 (call 1)"
    assert said(recordings(embed("embedding-001")), embed("embedding-2")) == line
    found = recordings(read_request("POST", f"{GOOGLE}/gemini-2.5-pro:countTokens", ask(WRITE).body))
    assert said(found, ask(WRITE)) == "nearest recorded: call 1, recorded for gemini-2.5-pro:countTokens"


def test_a_reply_already_replayed_is_nearer_than_another_model() -> None:
    found = recordings(ask(WRITE), ask(WRITE, FLASH.replace("flash", "pro")), replayed=[1])
    assert said(found, ask(WRITE)) == "nearest recorded: call 1, already replayed"


TALK = [user("Who was it?"), model("Kepler."), user("When?")]
SEARCH = {"name": "web_search", "parameters": {"properties": {"query": {"type": "STRING"}}}}
CLOCK = {"name": "clock", "description": "The time"}


def tools(*functions: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"functionDeclarations": list(functions)}]


@pytest.mark.parametrize(
    ("recorded", "asked", "lines"),
    [
        (
            ask(TALK),
            ask([*TALK, model("1608"), user("And where?")]),
            "contents[3]:\n  2 messages more than recorded, the first: model '1608'",
        ),
        (
            ask(TALK),
            ask([user("Hello"), *TALK]),
            "contents[0]:\n  one message more than recorded: user 'Hello'",
        ),
        (ask(TALK), ask(TALK[::2]), "contents[1]:\n  one message less than recorded: model 'Kepler.'"),
        (
            ask([*TALK, {"role": "model", "parts": [{"functionCall": {"name": "clock"}}]}]),
            ask(TALK),
            "contents[3]:\n  one message less than recorded: model 'call of clock'",
        ),
        (
            ask(TALK),
            ask([*TALK[:2], user("Where?")], generationConfig={"temperature": 0.1}),
            "contents[2].parts[0].text:\n  [-When?-]{+Where?+}",
        ),
        (
            ask(WRITE, systemInstruction=user("Be brief."), tools=tools(CLOCK)),
            ask(WRITE, systemInstruction=user("Be kind."), tools=tools(SEARCH)),
            "systemInstruction.parts[0].text:\n  Be [-brief.-]{+kind.+}",
        ),
        (
            ask(WRITE),
            ask(WRITE, systemInstruction=user("Be brief.")),
            "systemInstruction:\n  recorded without a system instruction, asked with 'Be brief.'",
        ),
        (
            ask(WRITE, systemInstruction=user("Be brief.")),
            ask(WRITE),
            "systemInstruction:\n  recorded with a system instruction, 'Be brief.', asked without",
        ),
        (
            ask(WRITE, tools=tools(CLOCK, SEARCH)),
            ask(WRITE, tools=tools(CLOCK, {**SEARCH, "parameters": {"properties": {"query": {"type": "INTEGER"}}}})),
            "tools[0].functionDeclarations[1].parameters.properties.query.type (tool web_search):\n"
            "  [-STRING-]{+INTEGER+}",
        ),
        (
            ask(WRITE, tools=tools(CLOCK)),
            ask(WRITE, tools=tools({**CLOCK, "description": "The time of day"})),
            "tools[0].functionDeclarations[0].description (tool clock):\n  The time {+of day+}",
        ),
        (
            ask(WRITE, tools=tools(SEARCH)),
            ask(WRITE, tools=tools(SEARCH, CLOCK)),
            "tools[0].functionDeclarations[1]:\n  one tool more than recorded: clock",
        ),
        (
            ask(WRITE, tools=tools(SEARCH, CLOCK)),
            ask(WRITE, tools=tools(CLOCK)),
            "tools[0].functionDeclarations[0]:\n  one tool less than recorded: web_search",
        ),
        (
            ask(WRITE, tools=tools(CLOCK)),
            ask(WRITE, tools=tools({"name": "watch", "description": "The hour"})),
            "tools[0].functionDeclarations[0].name:\n  [-clock-]{+watch+}",
        ),
        (
            ask(WRITE),
            ask(WRITE, tools=tools(SEARCH, CLOCK)),
            "tools:\n  recorded without tools, asked with web_search, clock",
        ),
        (
            ask(WRITE, tools=tools(CLOCK)),
            ask(WRITE),
            "tools:\n  recorded with tools, clock, asked without",
        ),
    ],
)
def test_what_changed_is_said_in_a_readers_words(recorded: Request, asked: Request, lines: str) -> None:
    assert said(recordings(recorded), asked) == f"nearest recorded: call 1, differs at {lines}"


# Many of them


def body_of(number: int) -> bytes:
    """18 KB that begin and end as all the others do."""
    lead, tail = "You are a careful writer. " * 250, " Use short words and no adjectives." * 300
    return ask(f"{lead} Topic {number}: write {number * 7} words on topic {number}.{tail}").body


def test_the_nearest_of_thousands_is_found_without_reading_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    words = mismatch._words

    def counted(text: bytes) -> list[str]:
        read.append(len(text))
        return words(text)

    monkeypatch.setattr(mismatch, "_words", counted)
    found = recordings(*[read_request("POST", FLASH, body_of(number)) for number in range(1_000)])
    changed = body_of(834).replace(b"adjectives", b"adverbs")
    assert 15_000 < len(changed) < 20_000
    lines = said(found, read_request("POST", FLASH, changed))
    assert lines.splitlines()[0] == "nearest recorded: call 835, differs at contents[0].parts[0].text:"
    # 17 MB are held.
    assert 4_000_000 < sum(read) < 5_100_000


def test_a_cassette_is_loaded_once_however_many_tests_share_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shared.yaml"
    save_cassette(path, [Interaction("POST", FLASH, ask(WRITE).body, 200, b"{}")], {})
    loads: list[Path] = []

    def counted(path: Path) -> CassetteFile:
        loads.append(path)
        time.sleep(0.05)
        return load_cassette(path)

    monkeypatch.setattr(matching, "load_cassette", counted)
    threads = [threading.Thread(target=read_recordings, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = read_recordings(path)
    assert entries is not None
    assert len(loads) == 1

    digested: list[int] = []
    body = Ignore.body

    def counted_body(self: Ignore, canonical: bytes) -> bytes:
        digested.append(len(canonical))
        return body(self, canonical)

    monkeypatch.setattr(Ignore, "body", counted_body)
    for _ in range(20):
        Recordings(entries, "body", Ignore(("date",)))
    assert len(digested) == 1


def test_the_largest_files_leave_the_memory_first_come_first_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def counted(path: Path) -> CassetteFile:
        loads.append(path.name)
        return load_cassette(path)

    monkeypatch.setattr(matching, "load_cassette", counted)
    monkeypatch.setattr(matching, "_files", type(matching._files)())
    paths = [tmp_path / f"{n}.yaml" for n in range(3)]
    for path in paths:
        save_cassette(path, [Interaction("POST", FLASH, ask(WRITE).body, 200, b"{}")], {})
    monkeypatch.setattr(matching, "_KEPT", paths[0].stat().st_size * 2)
    for path in [*paths, paths[2], paths[0]]:
        read_recordings(path)
    assert loads == ["0.yaml", "1.yaml", "2.yaml", "0.yaml"]
    monkeypatch.setattr(matching, "_KEPT", 1)
    read_recordings(paths[1])
    read_recordings(paths[1])
    assert loads[4:] == ["1.yaml"], "one is always kept"


COLLECT = """
import sys
import pytest

opened = set()
sys.addaudithook(lambda event, args: event == "open" and opened.add(str(args[0])))
code = pytest.main(["-q", "--collect-only", "-p", "no:cacheprovider", "-p", "pytest_agenttrace.plugin"])
print("exit", int(code), "cassettes", sum(name.endswith(".yaml") for name in opened), "modules", len(opened) > 300)
print("loaded", "vcr" in sys.modules, "mlflow" in sys.modules)
"""


def test_collection_touches_no_cassette(tmp_path: Path) -> None:
    cassettes = tmp_path / "cassettes"
    text = "{broken: " + "x" * 100_000
    for number in range(300):
        (tmp_path / f"test_{number}.py").write_text("def test_it(agent_trace):\n    pass\n")
        folder = cassettes / f"test_{number}"
        folder.mkdir(parents=True)
        (folder / "test_it.yaml").write_text(text)
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert "300 tests collected" in done.stdout, done.stdout[-2000:] + done.stderr
    assert done.stdout.splitlines()[-2:] == ["exit 0 cassettes 0 modules True", "loaded False False"]


# Odd replies


@pytest.mark.parametrize("encoding", ["gzip", "gzip, deflate", "br", "zstd", "é", "\ud800", "", "deflate, gzip, br"])
@pytest.mark.parametrize("body", [b"", b"plain", b"\x1f\x8b broken", b"x\x9c broken", b'{"usageMetadata": []}'])
def test_a_reply_under_any_header_is_bytes(encoding: str, body: bytes) -> None:
    assert plain_reply(body, {"Content-Encoding": [encoding]}) == body


def test_a_recorded_reply_is_served_anew_each_time() -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    entry = Recorded(1, ask(WRITE), 503, "Später\r\n", {"a": ("b",)}, b"x", when, 0.5, NOWHERE)
    one, two = entry.response(), entry.response()
    one["headers"]["a"].append("c")
    assert two == {"status": {"code": 503, "message": "Spter\r\n"}, "headers": {"a": ["b"]}, "body": {"string": b"x"}}


def test_a_path_that_no_file_can_have() -> None:
    with pytest.raises(CassetteError) as caught:
        read_recordings(Path("a\0b.yaml"))
    assert re.fullmatch(r"a\x00b.yaml: cannot be read: .*embedded null .*\. Name another file\.", str(caught.value))
