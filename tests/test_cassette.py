from __future__ import annotations

import difflib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
import unicodedata
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import strategies as st

from pytest_agenttrace import GeminiServer, Reply
from pytest_agenttrace.replay import Opening, open_cassette
from pytest_agenttrace.replay.cassette import (
    CassetteError,
    CassetteFile,
    Interaction,
    cassette_path,
    load_cassette,
    reply_time,
    scrub_uri,
    shown_path,
)
from pytest_agenttrace.replay.writing import check_writable, save_cassette
from pytest_agenttrace.wire import canonical_body
from tests import handmade

__all__ = ["handmade"]  # its settings of hypothesis hold

RESTORE = "Restore the file, or delete it and record again with --agenttrace-record."
UPGRADE = "Upgrade pytest-agenttrace, or record again with --agenttrace-record into another file."
URI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


BAD = {
    "empty": (b"", "bad.yaml: an empty file, not a cassette"),
    "blank": (b" \n\n", "bad.yaml: an empty file, not a cassette"),
    "list": (b"- a\n", "bad.yaml:1: a list, not a cassette"),
    "text": (b"hello\n", "bad.yaml:1: text, not a cassette"),
    "comment": (b"# nothing\n", "bad.yaml:1: nothing, not a cassette"),
    "truncated": (
        b"interactions:\n- request:\n    body: '{\"a\n",
        "bad.yaml:4:1: not a YAML cassette: found unexpected end of stream",
    ),
    "tab": (b"a:\n\tb: 1\n", "bad.yaml:2:1: not a YAML cassette: found character that cannot start any token"),
    "binary": (b"\x89PNG\r\n\x1a\n\xff", "bad.yaml:1: not UTF-8 text: 0x89 at byte 0"),
    "nul": (b"a: 1\nb: \0\n", "bad.yaml:2: not text: NUL at byte 8"),
    "control": (b"a: 1\nb: \x07\n", "bad.yaml:2: not a YAML cassette: control characters are not allowed"),
    "no date": (b"a: 2026-13-45\n", "bad.yaml:1:4: not a YAML cassette: month must be in 1..12"),
    "two documents": (b"a: 1\n---\nb: 2\n", "bad.yaml:2:1: another document begins here: a cassette is one"),
    "python object": (
        b"a: 1\ninteractions: !!python/object/apply:os.system ['x']\n",
        "bad.yaml:2:15: not a YAML cassette: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    "no interactions": (b"version: 1\n", "bad.yaml:1: the cassette has no 'interactions'"),
    "interactions: nothing": (b"interactions:\n", "bad.yaml:1: interactions is nothing, not a list"),
    "interaction: a number": (b"interactions:\n- 3\n", "bad.yaml:2: interaction 1 is a number, not a mapping"),
    "no response": (
        b"interactions:\n- request: {method: GET, uri: x}\n",
        "bad.yaml:2: interaction 1 has no 'response'",
    ),
    "no request": (b"interactions:\n- response: {}\n", "bad.yaml:2: interaction 1 has no 'request'"),
    "no status": (
        b"interactions:\n- request: {method: GET, uri: x}\n  response: {body: {string: ''}}\n",
        "bad.yaml:3: interaction 1.response has no 'status'",
    ),
    "no method": (
        b"interactions:\n- request: {uri: x}\n  response: {status: {code: 200}, body: {}}\n",
        "bad.yaml:2: interaction 1.request has no 'method'",
    ),
    "no uri": (
        b"interactions:\n- request:\n    method: GET\n  response:\n    status: {code: 200}\n    body: {}\n",
        "bad.yaml:3: interaction 1.request has no 'uri'",
    ),
    "code is text": (
        b"interactions:\n- request: {method: GET, uri: x}\n  response:\n    status:\n      code: ok\n    body: {}\n",
        "bad.yaml:5: interaction 1.response.status.code is text, not an HTTP status",
    ),
    "deeper than anything": (b"a: " + b"[" * 40_000, "bad.yaml:1:203: not a YAML cassette: nested more than 200 deep"),
    "deeper than anything, dashes": (
        b"- " * 40_000 + b"a",
        "bad.yaml:1:399: not a YAML cassette: nested more than 200 deep",
    ),
    "never anchored": (b"a: *b\n", "bad.yaml:1:4: not a YAML cassette: nothing is anchored as &b"),
    "merged": (
        b"a: &a {b: 1}\nc: {<<: *a}\n",
        "bad.yaml:2:5: not a YAML cassette: merge keys (<<) are not read",
    ),
    "a tag that does not fit": (b"a: 1\nb: [!!bool perhaps]\n", "bad.yaml:2:5: not a YAML cassette: 'perhaps'"),
    "a date of another kind": (
        b"a: !!timestamp x\n",
        "bad.yaml:1:4: not a YAML cassette: 'NoneType' object has no attribute 'groupdict'",
    ),
    "interactions: a mapping": (b"interactions: {a: 1}\n", "bad.yaml:1: interactions is a mapping, not a list"),
    "version: true": (
        b"version: true\ninteractions: []\n",
        "bad.yaml:1: version true of the cassette format; this version reads 1",
    ),
    "a key written twice, the last one wrong": (
        b"interactions:\n- request: {method: GET, uri: x}\n  response:\n    body: {}\n"
        b"    status: {code: 200}\n    status: {code: ok}\n",
        "bad.yaml:6: interaction 1.response.status.code is text, not an HTTP status",
    ),
    "two that are wrong": (
        b"interactions:\n- first\n- 2\n",
        "bad.yaml:2: interaction 1 is text, not a mapping",
    ),
    "another body format": (
        b"interactions:\n- request: {method: GET, uri: x}\n  response:\n    status: {code: 200}\n"
        b"    body: {parsed: {}}\n",
        "bad.yaml:5: interaction 1.response.body has no 'string'",
    ),
    "body is a number": (
        b"interactions:\n- request: {method: GET, uri: x, body: 3}\n  response: {status: {code: 200}, body: {}}\n",
        "bad.yaml:2: interaction 1.request.body is a number, not text",
    ),
}


def interaction(request: str = "", response: str = "", more: str = "") -> bytes:
    """One interaction with a line of its request, response or itself in place of the right one."""
    request = request or "uri: https://a/b"
    response = response or "status: {code: 200}"
    status = "" if "status" in response else "\n    status: {code: 200}"
    uri = "" if "uri" in request else "\n    uri: https://a/b"
    asked = f"interactions:\n- request:\n    {request}{uri}\n    method: GET\n"
    return (f"{asked}  response:\n    {response}{status}\n    body: {{}}\n" + (f"  {more}\n" if more else "")).encode()


NOT_SECONDS, NOT_STATUS = "not a number of seconds", "not an HTTP status"
BAD |= {
    "uri: no address": (
        interaction("uri: 'http://[::1'"),
        "bad.yaml:3: interaction 1.request.uri is no URL: Invalid IPv6 URL",
    ),
    "uri: no port": (
        interaction("uri: http://a:99999/"),
        "bad.yaml:3: interaction 1.request.uri is no URL: Port out of range 0-65535",
    ),
    "headers: a list": (
        interaction("headers: [a]"),
        "bad.yaml:3: interaction 1.request.headers is a list, not a mapping",
    ),
    "header: a mapping": (
        interaction("", "headers: {date: {a: b}}"),
        "bad.yaml:6: interaction 1.response.headers.date is a mapping, not text",
    ),
    "header: nested": (
        interaction("", "headers: {date: [[a]]}"),
        "bad.yaml:6: interaction 1.response.headers.date is a list, not text",
    ),
    "reason: a list": (
        interaction("", "status: {code: 200, message: [a]}"),
        "bad.yaml:6: interaction 1.response.status.message is a list, not text",
    ),
    "aliases in a header": (
        interaction("", "headers: {a: &a [" + "1," * 4_000 + "], b: [" + "*a," * 4_000 + "]}"),
        "bad.yaml:2: interaction 1 unfolds beyond measure: its aliases repeat each other",
    ),
}
for given, kind in {
    "true": "true",
    "-1": "-1",
    "0": "0",
    "99": "99",
    "99999": "99999",
    "2.5": "a number",
    ".nan": "a number",
    "null": "nothing",
}.items():
    problem = f"{kind}, {NOT_STATUS}" + (": 100 to 999" if kind.lstrip("-").isdigit() else "")
    BAD[f"code: {given}"] = (
        interaction("", f"status: {{code: {given}}}"),
        f"bad.yaml:6: interaction 1.response.status.code is {problem}",
    )
for given, kind in {
    ".nan": "nan",
    ".inf": "inf",
    "-.inf": "-inf",
    "-0.5": "-0.5",
    "90000": "90000",
    "true": "true",
    "soon": "text",
    "9" * 400: "9" * 400,
}.items():
    BAD[f"duration: {given[:9]}"] = (
        interaction("", "", f"agenttrace: {{duration: {given}}}"),
        f"bad.yaml:8: interaction 1.agenttrace.duration is {kind}, {NOT_SECONDS}",
    )


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_cassette_is_one_clear_line(name: str, here: Path) -> None:
    content, message = BAD[name]
    (here / "bad.yaml").write_bytes(content)
    with pytest.raises(CassetteError) as caught:
        load_cassette(here / "bad.yaml")
    # Where libyaml 0.2.6 and later meet their own limit.
    said = str(caught.value).replace(
        "bad.yaml:1:1003: not a YAML cassette: nested", "bad.yaml:1:203: not a YAML cassette: nested"
    )
    assert said == f"{message}. {UPGRADE if 'this version' in message else RESTORE}"
    assert (here / "bad.yaml").read_bytes() == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version: 2\ninteractions: []\n", "bad.yaml:1: version 2 of the cassette format; this version reads 1"),
        (
            "version: 1\nagenttrace:\n  format: 2\ninteractions: []\n",
            "bad.yaml:3: agenttrace.format 2 of the cassette format; this version reads 1",
        ),
    ],
)
def test_another_version(content: str, message: str, here: Path) -> None:
    (here / "bad.yaml").write_text(content)
    with pytest.raises(CassetteError) as caught:
        load_cassette(here / "bad.yaml")
    assert str(caught.value) == f"{message}. {UPGRADE}"


def test_another_version_explains_more_than_what_is_odd_in_it(here: Path) -> None:
    (here / "bad.yaml").write_text("interactions:\n- odd\n- odder\nversion: 2\n")
    with pytest.raises(CassetteError) as caught:
        load_cassette(here / "bad.yaml")
    assert str(caught.value) == f"bad.yaml:4: version 2 of the cassette format; this version reads 1. {UPGRADE}"


@pytest.mark.parametrize("what", ["a FIFO", "a socket", "a device"])
def test_what_would_block_is_not_opened(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("x.yaml")
    with socket.socket(socket.AF_UNIX) as bound:
        if what == "a FIFO":
            os.mkfifo(path)
        elif what == "a socket":
            bound.bind(str(path))
        else:
            path.symlink_to("/dev/zero")
        with pytest.raises(CassetteError) as caught:
            load_cassette(path)
    assert str(caught.value) == f"x.yaml: {what}, not a cassette. Name a file."


def test_a_directory(here: Path) -> None:
    (here / "dir.yaml").mkdir()
    with pytest.raises(CassetteError) as caught:
        load_cassette(here / "dir.yaml")
    assert str(caught.value) == ("dir.yaml: a directory, not a cassette. Name a file, or move the directory away.")


def test_a_file_without_permission(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "x.yaml").write_text("version: 1\n")

    def denied(self: Path) -> bytes:  # permissions do not bind root, whom the suite may run as
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CassetteError) as caught:
        load_cassette(here / "x.yaml")
    assert str(caught.value) == "x.yaml: cannot be read: Permission denied. Make it readable, or name another file."


def test_a_vcrpy_cassette_as_it_is_found(here: Path) -> None:
    (here / "x.yaml").write_text(
        "interactions:\n- request:\n    body: null\n    headers: {a: [b], c: d}\n    method: post\n    uri: http://x/\n"
        "  response:\n    body: {string: !!binary H4sI}\n    headers: {Date: ['Tue, 01 Jul 2025 16:25:28 GMT']}\n"
        "    status: {code: 503, message: null}\n"
        "- request: {method: GET, uri: u, body: {b: [1]}}\n  response: {status: {code: 204}, body: {string: null}}\n"
    )
    file = load_cassette(here / "x.yaml")
    first, second = file.interactions
    assert (first.method, first.uri, first.body, first.reply) == ("POST", "http://x/", b"", b"\x1f\x8b\x08")
    assert (first.status, first.reason, first.duration) == (503, "", None)
    assert first.request_headers == {"a": ["b"], "c": ["d"]}
    assert reply_time(first.reply_headers) == datetime(2025, 7, 1, 16, 25, 28, tzinfo=UTC)
    assert (second.body, second.reply, file.recorded, file.origin) == (b'{"b": [1]}', b"", None, None)


TRICKY = "tab\tdel\x7f nel\x85 ls\u2028 bom\ufeff quote\" 'single' emoji \U0001f600 trailing space \n: # - {}"


def test_what_is_written_is_read_back(here: Path) -> None:
    body = json.dumps({"b": TRICKY, "a": [1, 0.1, None, True, 10**30]}).encode()
    stream = b'data: {"text": "a"}\r\n\r\ndata: {"text": "b"}\r\n\r\n'
    written = [
        Interaction("POST", URI, body, 200, body, "OK", {}, {"Content-Type": ["application/json"]}, 1.23456),
        Interaction("POST", URI, b"", 200, stream, "OK"),
        Interaction("GET", URI, b"\xff\x00", 404, b"plain text \n", "Not Found"),
    ]
    save_cassette(here / "new" / "x.yaml", written, {"recorded": "2026-01-02T03:04:05Z", "origin": "Google"})
    file = load_cassette(here / "new" / "x.yaml")
    first, second, third = file.interactions
    assert json.loads(first.body) == json.loads(body)
    assert json.loads(first.reply) == json.loads(body)
    assert list(json.loads(first.reply)) == ["b", "a"]
    assert (first.duration, first.reply_headers) == (1.235, {"content-type": ["application/json"]})
    assert second.reply == stream.replace(b"\r\n", b"\n")
    assert (third.body, third.reply, third.status, third.reason) == (b"\xff\x00", b"plain text \n", 404, "Not Found")
    assert (file.recorded, file.origin) == (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "Google")
    assert [path.name for path in (here / "new").iterdir()] == ["x.yaml"]


@pytest.mark.parametrize(
    "character", ["\x7f", "\x85", "\x9f", "\u2028", "\u2029", "\ufeff", "\U0001f600", "\\", '"', "\t", "é"]
)
def test_no_character_spoils_a_body_or_its_layout(character: str, here: Path) -> None:
    body = json.dumps({"text": f"a{character}b "}, ensure_ascii=False).encode()
    save_cassette(here / "x.yaml", [Interaction("POST", URI, body, 200, body)], {})
    (again,) = load_cassette(here / "x.yaml").interactions
    assert json.loads(again.body) == json.loads(again.reply) == {"text": f"a{character}b "}
    text = (here / "x.yaml").read_text()
    assert len(text.splitlines()) == text.count("\n")


def test_a_written_cassette_reads_well(here: Path) -> None:
    headers = {"Content-Type": ["application/json"], "Set-Cookie": ["a=b"], "X-Goog-Api-Key": ["k"]}
    uri = f"{URI}?alt=sse&key=AIza-secret"
    body = json.dumps({"a": "ä", "b": "Write:\n\n- one\n- two\n", "c": "yes"}).encode()
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    interaction = Interaction(
        "POST", uri, body, 200, b'{"b":[1]}', "OK", headers, headers, 0.5, node="write", recorded=when
    )
    save_cassette(here / "x.yaml", [interaction], {"models": ["m"]})
    assert (here / "x.yaml").read_text() == (
        f"""\
version: 1
agenttrace:
  format: 1
  models:
  - m
interactions:
- request:
    method: POST
    uri: {URI}?alt=sse
    headers:
      content-type:
      - application/json
    body:
      a: ä
      b: |
        Write:

        - one
        - two
      c: 'yes'
  response:
    status: {{code: 200, message: OK}}
    headers:
      content-type:
      - application/json
    body:
      string:
        b:
        - 1
  agenttrace: {{node: write, recorded: '2026-01-02T03:04:05Z', duration: 0.5}}
"""
    )


WORDS = [
    "yes",
    "null",
    "2024-01-01",
    "1e5",
    "0o7",
    "<<",
    "=",
    "~",
    "-0",
    "1_000",
    "12:30",
    "",
    " ",
    "a b",
    "#x",
    "é",
    "%a",
    "@",
    "`",
    "!!x",
]
texts = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=30),
    st.lists(st.sampled_from([*WORDS, "\n", "\r\n", "\t", " \n", "\n\n", "  x"]), max_size=8).map("".join),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


@hypothesis.given(st.lists(values, max_size=3))
@hypothesis.settings(max_examples=300)
def test_every_body_is_read_back_as_it_was(bodies: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        written = [json.dumps(body).encode() for body in bodies]
        save_cassette(path, [Interaction("POST", URI, body, 200, body) for body in written], {})
        for body, found in zip(written, load_cassette(path).interactions, strict=True):
            assert canonical_body(found.body) == canonical_body(found.reply) == canonical_body(body)


@pytest.mark.parametrize(
    "body", ["[" * 5_000 + "]" * 5_000, '{"a": 1, "a": 2}', '{"a": 1e999}', "3", '"text"', "null", "{}", "[]", " "]
)
def test_odd_bodies_are_read_back_too(body: str, here: Path) -> None:
    save_cassette(here / "x.yaml", [Interaction("POST", URI, body.encode(), 200, body.encode())], {})
    (found,) = load_cassette(here / "x.yaml").interactions
    assert canonical_body(found.body) == canonical_body(found.reply) == canonical_body(body)


def prompted(path: Path, prompt: str, streamed: bool) -> list[str]:
    """The lines of a file recorded from the scripted server."""
    import httpx

    method = "streamGenerateContent?alt=sse" if streamed else "generateContent"
    url = f"/v1beta/models/gemini-2.5-flash:{method}"
    content = {"contents": [{"role": "user", "parts": [{"text": prompt}]}], "generationConfig": {"temperature": 0.5}}
    with (
        GeminiServer([Reply("An answer of some words.", usage={"promptTokenCount": 9})]) as server,
        open_cassette(path, Opening(mode="record")),
    ):
        httpx.post(server.url + url, json=content)
    return path.read_text().splitlines()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("prompt", ["word " * 200, "word " * 200 + "\n\n" + "- item \n" * 20 + "word " * 300])
def test_a_changed_word_is_a_few_changed_lines(here: Path, prompt: str, streamed: bool) -> None:
    before = prompted(here / "x.yaml", prompt.strip(), streamed)
    time.sleep(1)  # another date
    after = prompted(here / "x.yaml", prompt.strip()[:-4] + "work", streamed)
    changed = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    # The file's own date is none of an exchange's.
    changed = [line for line in changed if not line.startswith("+   recorded:")]
    assert 1 <= len(changed) <= 3, changed


def test_a_failed_write_leaves_the_old_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "x.yaml").write_text("old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CassetteError) as caught:
        save_cassette(here / "x.yaml", [], {})
    assert str(caught.value) == "x.yaml: cannot be written: No space left on device. Nothing was overwritten."
    assert [(path.name, path.read_text()) for path in here.iterdir()] == [("x.yaml", "old")]


def test_a_link_stays_a_link(here: Path) -> None:
    (here / "real.yaml").write_text("old")
    (here / "link.yaml").symlink_to("real.yaml")
    (here / f".real.yaml-{_dead()}.tmp").write_text("left by a killed process")
    (here / f".real.yaml-{os.getppid()}.tmp").write_text("of one that lives")
    save_cassette(here / "link.yaml", [], {})
    (here / f".real.yaml-{os.getppid()}.tmp").unlink()
    assert sorted(path.name for path in here.iterdir()) == ["link.yaml", "real.yaml"]
    assert (here / "link.yaml").is_symlink()
    assert yaml.safe_load((here / "real.yaml").read_text()) == {
        "version": 1,
        "agenttrace": {"format": 1},
        "interactions": [],
    }
    assert stat.S_IMODE((here / "real.yaml").stat().st_mode) == 0o666 & ~_umask()


def _dead() -> str:
    """The number of a process that has ended."""
    command = [sys.executable, "-c", "import os; print(os.getpid(), end='')"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_folder_that_takes_no_files(here: Path) -> None:
    check_writable(here / "new" / "deep" / "x.yaml")
    assert list(here.iterdir()) == []
    (here / "file").write_text("")
    with pytest.raises(CassetteError) as caught:
        check_writable(here / "file" / "x.yaml")
    out = "Make it writable, or name another cassette."
    assert str(caught.value) == f"file: no cassette can be written here: Not a directory. {out}"
    if sys.platform == "linux":
        with pytest.raises(CassetteError, match=r"^/proc/1: no cassette can be written here: "):
            check_writable(Path("/proc/1/x.yaml"))


@pytest.mark.parametrize(
    ("uri", "scrubbed"),
    [
        ("https://a/b?alt=sse", "https://a/b?alt=sse"),
        ("https://a/b?key=AIza&alt=sse", "https://a/b?alt=sse"),
        ("https://a/b?Key=AIza", "https://a/b"),
        ("https://a/b?access_token=x&q=1%202&e=", "https://a/b?q=1%202&e="),
        ("https://user:pass@a:1/b", "https://a:1/b"),
    ],
)
def test_no_key_stays_in_a_uri(uri: str, scrubbed: str) -> None:
    assert scrub_uri(uri) == scrubbed


@pytest.mark.parametrize(
    ("module", "name", "path"),
    [
        ("tests/test_a.py", "TestX.test_y[gemini]", "tests/test_a/TestX.test_y[gemini].yaml"),
        ("tests\\sub\\test_a.py", "test_y", "tests/sub/test_a/test_y.yaml"),
        ("./test_a.py", "test_y[a-1.5-b c]", "test_a/test_y[a-1.5-b c].yaml"),
        ("test_a.py", "test_y[A]", "test_a/test_y[A]-3a23e8dd.yaml"),
        ("test_a.py", "test_y[a/b:c]", "test_a/test_y[a_b_c]-5f9c05c0.yaml"),
        ("test_a.py", "con", "test_a/_con-1143da2b.yaml"),
        ("../out/test_a.py", "test_y", "_-5ec1f7e7/out/test_a/test_y.yaml"),
    ],
)
def test_where_the_cassette_of_a_test_is(module: str, name: str, path: str) -> None:
    assert cassette_path(Path("/project"), "cassettes", module, name) == Path("/project/cassettes", path)


def test_names_are_legal_and_distinct_where_case_does_not_count() -> None:
    names = [
        "t[a]",
        "t[A]",
        "T[a]",
        "TestX.test_a",
        "TestX.test_A",
        "t[aB]",
        "t[Ab]",
        "t[a/b]",
        "t[a_b]",
        "t[a:b]",
        "t[é]",
        "t[e\u0301]",
        "t[ß]",
        "t[a.]",
        "t[a ]",
    ]
    names += [
        "nul",
        "NUL.x",
        "com1",
        "lpt9.test",
        "t" * 300,
        "t" * 301,
        "t.",
        "t ",
        " t",
        ".",
        "..",
        "t[" + "é" * 150 + "]",
    ]
    stems = [cassette_path(Path(), "c", "m.py", name).stem for name in names]
    assert len({unicodedata.normalize("NFC", stem).casefold() for stem in stems}) == len(names)
    for stem in stems:
        assert len(stem) <= 120
        assert stem.isascii()
        assert not set(stem) & set('<>:"/\\|?*')
        assert stem[-1] not in ". "
        assert stem.split(".")[0].upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT9"}


def test_paths_are_shown_as_they_are_typed(here: Path) -> None:
    assert shown_path(here / "a" / "b.yaml") == "a/b.yaml"
    assert shown_path(Path("a") / "b.yaml") == "a/b.yaml"
    assert shown_path(Path("/elsewhere/b.yaml")) == str(Path("/elsewhere/b.yaml"))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (
            "{a: &a [1,1,1,1,1,1,1,1], b: &b [*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b],"
            " d: &d [*c,*c,*c,*c,*c,*c,*c,*c], e: &e [*d,*d,*d,*d,*d,*d,*d,*d], f: &f [*e,*e,*e,*e,*e,*e,*e,*e],"
            " g: &g [*f,*f,*f,*f,*f,*f,*f,*f], h: [*g,*g,*g,*g,*g,*g,*g,*g]}",
            "interaction 1 unfolds beyond measure: its aliases repeat each other",
        ),
        ("&a [*a]", "interaction 1.request.body holds what JSON cannot"),
        ("{a: 2026-01-01}", "interaction 1.request.body holds what JSON cannot"),
    ],
)
def test_bodies_stored_as_objects_are_bounded(tmp_path: Path, body: str, problem: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        f"version: 1\ninteractions:\n- request: {{method: POST, uri: 'https://a/b', body: {body}}}\n"
        "  response: {status: {code: 200}, body: {string: ''}}\n"
    )
    with pytest.raises(CassetteError) as caught:
        load_cassette(path)
    assert problem in str(caught.value)


def test_anchors_that_hold_each_other_are_bounded(here: Path) -> None:
    deep = [f"a0: &a0 {'[' * 190}1{']' * 190}"]
    deep += [f"a{n}: &a{n} {'[' * 190}*a{n - 1}{']' * 190}" for n in range(1, 20)]
    request = "{method: GET, uri: a, body: *a19}"
    (here / "x.yaml").write_text("\n".join([*deep, f"interactions: [{{request: {request}}}]"]))
    with pytest.raises(CassetteError) as caught:
        load_cassette(here / "x.yaml")
    assert str(caught.value) == (
        f"x.yaml:21: interaction 1 unfolds beyond measure: its aliases repeat each other. {RESTORE}"
    )


def test_a_reply_may_be_shared_by_an_alias(here: Path) -> None:
    first = (
        "- request: &q {method: POST, uri: https://a/b, body: {a: &t [x, x]}}\n"
        "  response: &r {status: {code: 200}, body: {string: *s}}\n"
    )
    (here / "x.yaml").write_text(f"s: &s hello\ninteractions:\n{first}- {{request: *q, response: *r}}\n")
    one, two = load_cassette(here / "x.yaml").interactions
    assert one == two
    assert (one.body, one.reply) == (b'{"a": ["x", "x"]}', b"hello")
    (here / "y.yaml").write_text(f"s: &s hello\nlist: &l\n{first}interactions: *l\n")
    assert load_cassette(here / "y.yaml").interactions == (one,)


def test_without_libyaml_the_same_is_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps({"text": TRICKY, "n": [1, None]}).encode()
    written = [
        Interaction("POST", URI, body, 200, body, "OK", {}, {"Date": ["x"]}, 1.5),
        Interaction("GET", URI, b"\xff", 404, b""),
    ]
    save_cassette(here / "x.yaml", written, {"recorded": "2026-01-02T03:04:05Z"})
    (here / "deep.yaml").write_text("a: " + "[" * 40_000)
    parsers: list[type] = []

    def seen(loader: type) -> type:
        def made(text: str) -> Any:
            parsers.append(loader)
            return loader(text)

        return made  # type: ignore[return-value]  # called as the class is

    # Compiled without libyaml, PyYAML has no such name.
    assert hasattr(yaml, "CSafeLoader"), "the suite's PyYAML is expected to have libyaml"
    c_loader = yaml.CSafeLoader
    monkeypatch.setattr(yaml, "CSafeLoader", seen(c_loader))
    fast = load_cassette(here / "x.yaml")
    monkeypatch.delattr(yaml, "CSafeLoader")
    monkeypatch.setattr(yaml, "SafeLoader", seen(yaml.SafeLoader))
    assert load_cassette(here / "x.yaml") == fast
    with pytest.raises(CassetteError, match=r"^deep.yaml:1:203: not a YAML cassette: nested more than 200 deep\."):
        load_cassette(here / "deep.yaml")
    assert [parser.__name__ for parser in parsers] == ["CSafeLoader", "SafeLoader", "SafeLoader"]


@pytest.mark.parametrize("libyaml", [True, False])
def test_a_control_character_is_found_on_its_line(libyaml: bool, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not libyaml:
        monkeypatch.delattr(yaml, "CSafeLoader")
    (here / "x.yaml").write_text("a: üüüüüüüüüüüü\n" * 9 + "b: \x07\n\n\n\n", encoding="utf-8")
    with pytest.raises(CassetteError) as caught:
        load_cassette(here / "x.yaml")
    which = "control" if libyaml else "special"
    assert str(caught.value) == f"x.yaml:10: not a YAML cassette: {which} characters are not allowed. {RESTORE}"


# Written by hand from the README's table: all that is needed, then all there is, with keys nobody knows yet.
LEAST_REPLY = b'{"candidates": []}'
LEAST = """
interactions:
- request:
    method: POST
    uri: https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent
  response:
    status: {code: 200}
    body: {string: '{"candidates": []}'}
"""
ALL = """
version: 1
agenttrace:
  format: 1
  recorded: '2026-11-23T10:11:12Z'
  models: [gemini-2.5-flash]
  packages: {google-genai: 2.34.0}
  origin: Google
  later: {unknown: [1, 2]}
later: [3]
interactions:
- request:
    method: POST
    uri: https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent
    headers:
      content-type: [application/json]
    body: |-
      {"contents": [{"parts": [{"text": "hello"}]}]}
    later: x
  response:
    status: {code: 200, message: OK, later: x}
    headers:
      date: ['Mon, 23 Nov 2026 10:11:12 GMT']
    body: {string: '{"candidates": []}', later: x}
    later: x
  agenttrace: {duration: 1.5, later: [x]}
  later: x
"""


def test_a_cassette_written_by_hand_loads_and_unknown_keys_are_passed_over(here: Path) -> None:
    (here / "least.yaml").write_text(LEAST)
    (here / "all.yaml").write_text(ALL)
    assert load_cassette(here / "least.yaml") == CassetteFile((Interaction("POST", URI, b"", 200, LEAST_REPLY),))
    assert load_cassette(here / "all.yaml") == CassetteFile(
        (
            Interaction(
                method="POST",
                uri=URI,
                body=b'{"contents": [{"parts": [{"text": "hello"}]}]}',
                status=200,
                reply=LEAST_REPLY,
                reason="OK",
                request_headers={"content-type": ["application/json"]},
                reply_headers={"date": ["Mon, 23 Nov 2026 10:11:12 GMT"]},
                duration=1.5,
                recorded=datetime(2026, 11, 23, 10, 11, 12, tzinfo=UTC),
            ),
        ),
        recorded=datetime(2026, 11, 23, 10, 11, 12, tzinfo=UTC),
        origin="Google",
        meta=yaml.safe_load(ALL)["agenttrace"] | {"format": 1},
    )


@pytest.mark.parametrize(
    ("recorded", "problem"),
    [
        ("yesterday", "'yesterday', not a date and time"),
        ("'2026-11-23T10'", None),
        ("2026-11-23", "a date, not a date and time"),
        ("[2026]", "a list, not a date and time"),
        ("null", None),
        ("2026-11-23 10:11:12", None),
    ],
)
def test_the_time_of_a_recording_is_one_or_an_error(recorded: str, problem: str | None, here: Path) -> None:
    (here / "x.yaml").write_text(f"agenttrace:\n  recorded: {recorded}\ninteractions: []\n")
    if problem is None:
        found = load_cassette(here / "x.yaml").recorded
        assert (found is None) == (recorded == "null")
        return
    with pytest.raises(CassetteError) as caught:
        load_cassette(here / "x.yaml")
    assert str(caught.value) == f"x.yaml:2: agenttrace.recorded is {problem}. {RESTORE}"
