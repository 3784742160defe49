"""Ten thousand damaged cassettes: each loads, or fails in one line of ours; and whatever loads can be replayed from.

Damage is done to bytes, to YAML's lines and tokens, and to the parsed structure, by a seed; the cassettes are the
examples' own, recordings of other clients, and one small file that holds every key.
"""

from __future__ import annotations

import json
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import pytest_agenttrace.replay.matching as matching
from pytest_agenttrace.calls import Caller
from pytest_agenttrace.ignoring import Ignore
from pytest_agenttrace.replay.cassette import CassetteError, reply_time
from pytest_agenttrace.replay.matching import Recorded, Recordings, read_recordings, read_request
from pytest_agenttrace.wire import read_call

ROOT = Path(__file__).parents[1]
RECORDINGS = ROOT.parent / "shared" / "recordings"
EXAMPLES = sorted((ROOT / "examples").glob("*/*.yaml"))
# What takes longer is a hang; the slowest takes some tens of milliseconds.
SECONDS = 5.0
SMALL = """\
version: 1
agenttrace: {format: 1, recorded: '2026-11-23T10:11:12Z', models: [m], packages: {a: '1'}, origin: Google}
interactions:
- request:
    method: POST
    uri: https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent?alt=sse
    headers: &h {content-type: [application/json]}
    body: '{"contents": [{"role": "user", "parts": [{"text": "On 2026-11-23"}]}], "generationConfig": {"seed": 1}}'
  response:
    status: {code: 200, message: OK}
    headers: {date: ['Mon, 23 Nov 2026 10:11:12 GMT'], content-encoding: [gzip]}
    body:
      string: '{"candidates": [{"content": {"parts": [{"functionCall": {"name": "a", "args": {}}}]}}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}}'
  agenttrace: {duration: 1.5}
- request: {method: GET, uri: 'https://a/b', headers: *h, body: {contents: [1, null]}}
  response: {status: {code: 404}, body: {string: !!binary H4sI}}
"""
ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\t",
    b"\x85",
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80",
    b"\x1f\x8b",
    b"\x1b",
)
ODD_TOKENS = (
    *("[", "]", "{", "}", "&a ", "*a", "*h", "!!binary ", "!!int ", "!!float ", "!!timestamp ", "!!set ", "!!omap "),
    *(
        "? ",
        "- ",
        ": ",
        "| ",
        ">-\n",
        "'",
        '"',
        "%YAML 9.9\n",
        "---\n",
        "...\n",
        "<<: ",
        "!!python/name:os.system ",
        "# ",
    ),
    *(
        "[" * 500,
        "- " * 500,
        "? " * 300,
        "{a: " * 300,
        "&b [*b]",
        "1e999",
        "0x",
        ".nan",
        "1:2:3",
        "2026-99-99",
        "!<",
        "~",
    ),
    *("9" * 5000, '"\\ud800"', '"\\uD83D\\uDE00"', "\\", "@", "`", "=", "a: " * 50, " " * 5000, "\n" * 500),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 99_999, 2**70, 0.5, float("nan"), float("inf"), "", "x", b"\xff\x00", [], {}, [[]]),
    *(
        "http://[::1",
        "http://a:b/",
        "//",
        "\x00",
        "\ud7ff",
        "x" * 10_000,
        "{",
        '{"usageMetadata": []}',
        "data: [1]\n\n",
    ),
    *('{"candidates": null}', '{"usageMetadata": {"promptTokenCount": -1}}', "[" * 5000, {"string": None}, {1: 2}),
)


@contextmanager
def no_hang() -> Iterator[None]:
    """An alarm interrupts what hangs, where signals can: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Damage


def damaged_bytes(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data) + 1)
    match dice.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[at:]
        case 2:
            return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]
        case 3:
            return data[:at] + dice.choice(ODD_BYTES) + data[at:]
        case 4:
            return data[:at] + data[at + dice.randrange(1, 200) :]
        case _:
            start = dice.randrange(len(data) + 1)
            return data[:at] + data[start : start + dice.randrange(1, 200)] + data[at:]


def damaged_text(data: bytes, dice: random.Random) -> bytes:
    lines = data.decode().split("\n")
    at = dice.randrange(len(lines))
    match dice.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, dice.choice(lines))
        case 2:
            lines[at] = " " * dice.randrange(9) + lines[at].lstrip()
        case 3:
            lines[at] = re.sub(r":.*", lambda _: f": {dice.choice(ODD_TOKENS)}", lines[at], count=1)
        case 4:
            column = dice.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:column] + dice.choice(ODD_TOKENS) + lines[at][column:]
        case _:
            dice.shuffle(lines) if dice.random() < 0.1 else lines.insert(at, dice.choice(ODD_TOKENS))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def damaged_structure(data: bytes, dice: random.Random) -> bytes:
    value = yaml.load(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  # safe loaders, both
    for _ in range(dice.randrange(1, 4)):
        places = list(_places(value))
        if not places:
            break
        inside, key = dice.choice(places)
        match dice.randrange(4):
            case 0:
                del inside[key]
            case 1:
                inside[key] = dice.choice(ODD_VALUES)
            case 2:
                inside[key] = [inside[key]] if dice.random() < 0.5 else {"a": inside[key]}
            case _:
                other, name = dice.choice(places)
                inside[key] = other.get(name) if isinstance(other, dict) else (other[name : name + 1] or [None])[0]
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(value, Dumper=dumper, allow_unicode=True)).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a structure, each object once: damage may have put one into itself."""
    waiting, seen = [value], set[int]()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, dict | list) or id(one) in seen:
            continue
        seen.add(id(one))
        for key in one if isinstance(one, dict) else range(len(one)):
            yield one, key
            waiting.append(one[key])


# What is done with each


def use(path: Path) -> bool:
    """Everything replay does with a cassette; whether it loaded. Anything but a `CassetteError` is a defect."""
    try:
        entries = read_recordings(path)
    except CassetteError as error:
        message = str(error)
        assert re.match(r"x\.yaml(:\d+){0,2}: .+\. [A-Z].+\.\Z", message), message
        assert "\n" not in message
        return False
    assert entries is not None
    for entry in entries[:3]:
        _replay(entries, entry)
    return True


def _replay(entries: tuple[Recorded, ...], entry: Recorded) -> None:
    found = Recordings(entries, "body", Ignore(("date", "generationConfig.seed")))
    served = found.take(entry.request)
    assert served is not None
    assert isinstance(served.response()["body"]["string"], bytes)
    url = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
    found.nearest(read_request("POST", url, entry.request.body + b" "))
    found.nearest(read_request("POST", entry.request.url, b'{"contents": [{"parts": [{"text": "x"}]}]}'))
    assert all(str(unused) for unused in found.unused())
    reply_time(entry.headers)
    if entry.request.endpoint is not None:
        read_call(1, Caller(), entry.request.endpoint, entry.status, entry.reply)


def fuzz(folder: Path, seeds: list[bytes], damage: Callable[[bytes, random.Random], bytes], rounds: int) -> list[bool]:
    path, loaded = folder / "x.yaml", []
    for number in range(rounds):
        dice = random.Random(number)
        data = dice.choice(seeds)
        for _ in range(dice.randrange(1, 3)):
            data = damage(data, dice) or data
        path.write_bytes(data)
        # A file's time is too coarse to tell two such files apart.
        matching._files.clear()
        start = time.perf_counter()
        with no_hang():
            try:
                loaded.append(use(path))
            except BaseException as error:
                error.add_note(f"damaged by {damage.__name__}, seed {number}")
                raise
        assert time.perf_counter() - start < SECONDS, f"{damage.__name__}, seed {number}"
        assert path.read_bytes() == data
    assert [found.name for found in folder.iterdir()] == ["x.yaml"]
    return loaded


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own() -> list[bytes]:
    return [SMALL.encode()] * 15 + [path.read_bytes() for path in EXAMPLES]


def others() -> list[bytes]:
    """The smaller recordings of other clients."""
    paths = sorted(RECORDINGS.rglob("*.yaml"))
    if not paths:
        pytest.skip(f"no recordings of other clients at {RECORDINGS}")
    return [path.read_bytes() for path in paths if path.stat().st_size < 8_000]


DAMAGE = [(damaged_bytes, 4_000), (damaged_text, 4_000), (damaged_structure, 2_000)]


@pytest.mark.parametrize(("damage", "rounds"), DAMAGE)
def test_damaged_cassettes_load_or_fail_in_one_line(
    damage: Callable[[bytes, random.Random], bytes], rounds: int, here: Path
) -> None:
    assert len(EXAMPLES) >= 5
    loaded = fuzz(here, own(), damage, rounds)
    assert rounds // 20 < sum(loaded) < rounds - rounds // 20, (
        "some load, some do not: the damage is neither nil nor total"
    )


@pytest.mark.parametrize("damage", [damaged_bytes, damaged_text, damaged_structure])
def test_damaged_recordings_of_other_clients_do_too(
    damage: Callable[[bytes, random.Random], bytes], here: Path
) -> None:
    rounds = 500 if damage is damaged_structure else 1_000
    assert 0 < sum(fuzz(here, others(), damage, rounds)) < rounds


@pytest.mark.parametrize("damage", [damaged_bytes, damaged_text, damaged_structure])
def test_without_libyaml_they_do_too(
    damage: Callable[[bytes, random.Random], bytes], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader")
    assert 0 < sum(fuzz(here, [SMALL.encode()], damage, 200)) < 200


def test_replies_that_are_no_replies_can_be_replayed(here: Path) -> None:
    replies = [value if isinstance(value, str) else json.dumps(str(value)) for value in ODD_VALUES]
    replies += [
        "data: {}\n\ndata: [DONE]",
        "<html>",
        '{"usageMetadata": {"totalTokenCount": "7"}}',
        '{"candidates": [[]]}',
    ]
    url = "https://generativelanguage.googleapis.com/v1beta/models/m:streamGenerateContent?alt=sse"
    interactions = [
        {"request": {"method": "POST", "uri": url, "body": text}, "response": {"status": {"code": 200}, "body": body}}
        for text in replies
        for body in ({"string": text}, {"string": text.encode()}, None, {})
    ]
    (here / "x.yaml").write_text(json.dumps({"interactions": interactions}, default=lambda data: data.decode()))
    entries = read_recordings(here / "x.yaml")
    assert entries is not None
    assert len(entries) == len(replies) * 4
    for entry in entries:
        _replay((*entries[:8], entry), entry)
