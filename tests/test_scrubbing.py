"""No secret of any kind reaches the disk, wherever an exchange holds it; what only looks a little like one stays."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_agenttrace.environment import DUMMY_KEY
from pytest_agenttrace.replay.cassette import CassetteError, Interaction, load_cassette
from pytest_agenttrace.replay.recording import read_exchange
from pytest_agenttrace.replay.scrubbing import REDACTED, Scrubber, find_secret
from pytest_agenttrace.replay.writing import save_cassette

GEMINI = "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent"
ALNUM = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def of(alphabet: str, size: int) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=size, max_size=size)


HEX = of("0123456789abcdef", 40)
# One digit at least, so that no draw is a word.
SHAPES: dict[str, st.SearchStrategy[str]] = {
    "Google API key": of(ALNUM + "_-", 35).map("AIza{}".format),
    "Google access token": of(ALNUM + "_-", 60).map("ya29.a0{}".format),
    "Google refresh token": of(ALNUM + "_-", 40).map("1//0{}".format),
    "Google client secret": of(ALNUM + "_-", 28).map("GOCSPX-{}".format),
    "OpenAI": of(ALNUM, 40).map("sk-proj-1{}".format),
    "GitHub": of(ALNUM, 36).map("ghp_{}".format),
    "GitHub fine-grained": of(ALNUM, 60).map("github_pat_{}".format),
    "GitLab": of(ALNUM, 20).map("glpat-{}".format),
    "Slack": of(ALNUM, 24).map("xoxb-{}".format),
    "AWS": of("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", 16).map("AKIA{}".format),
    "LangSmith": of("0123456789abcdef", 32).map("lsv2_pt_{}".format),
    "Tavily": of(ALNUM, 32).map("tvly-7{}".format),
    "JWT": st.builds("eyJ{}.eyJ{}.{}".format, of(ALNUM, 20), of(ALNUM, 40), of(ALNUM, 43)),
    "private key": of(ALNUM + "+/", 64).map("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n".format),
    "service account": st.builds("{}@{}.iam.gserviceaccount.com".format, of("abcdef0123456789", 9), of("abcdef", 9)),
}
# Known by the name it goes under.
NAMES = (
    "api_key",
    "apiKey",
    "access_token",
    "refreshToken",
    "client_secret",
    "password",
    "private_key_id",
    "x-goog-api-key",
)


def plain(secret: str, text: str) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text.format(secret)}]}]}


def stream(said: object) -> bytes:
    return b"".join(b"data: " + json.dumps(part).encode() + b"\r\n\r\n" for part in ({"a": 1}, said, {"b": 2}))


def exchanged(
    *,
    url: str = GEMINI,
    body: bytes = b"{}",
    reply: bytes = b"{}",
    headers: dict[str, str] | None = None,
    reply_headers: dict[str, list[str]] | None = None,
    reason: str = "OK",
    patterns: tuple[str, ...] = (),
) -> Interaction:
    asked = SimpleNamespace(method="POST", uri=url, body=body, headers=headers or {})
    status = {"code": 200, "message": reason}
    answered = {"status": status, "headers": reply_headers or {}, "body": {"string": reply}}
    return read_exchange(asked, answered, 0.1, patterns)


TEXTS = [
    "{}",
    "use {} now",
    "key={}",
    "a\n{}\nb",
    '"{}"',
    "({})",
    "Bearer {}",
    "https://x.example/?q=1&key={}&r=2",
    "{}.",
]
PLACES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "url query": lambda s, t: {"url": f"{GEMINI}?key={quote(s, safe='')}"},
    "url path": lambda s, t: {"url": f"https://api.telegram.example/bot/{quote(s, safe='')}/send"},
    "header": lambda s, t: {
        "headers": {"x-goog-api-key": s, "Authorization": f"Bearer {s}", "Cookie": s, "Content-Type": s}
    },
    "reply header": lambda s, t: {
        "reply_headers": {
            "Set-Cookie": [s],
            "X-Goog-Upload-URL": [f"https://up.example/?upload_id={quote(s, safe='')}"],
        }
    },
    "reason": lambda s, t: {"reason": t.format(s.replace("\n", " "))},
    "prompt": lambda s, t: {"body": json.dumps(plain(s, t)).encode()},
    "prompt, not escaped": lambda s, t: {"body": json.dumps(plain(s, t), ensure_ascii=False, indent=1).encode()},
    "JSON in a prompt": lambda s, t: {"body": json.dumps(plain(json.dumps({"a": t.format(s)}), "{}")).encode()},
    "body of another service": lambda s, t: {
        "url": "https://x.example/",
        "body": json.dumps({"q": t.format(s)}).encode(),
    },
    "form": lambda s, t: {"url": "https://x.example/", "body": b"q=1&x=" + quote(s, safe="").encode()},
    "gzip": lambda s, t: {
        "body": gzip.compress(json.dumps(plain(s, t)).encode()),
        "reply": gzip.compress(json.dumps(plain(s, t)).encode()),
        "reply_headers": {"Content-Encoding": ["gzip"]},
    },
    "deflate": lambda s, t: {"reply": zlib.compress(json.dumps(plain(s, t)).encode())},
    "reply": lambda s, t: {"reply": json.dumps({"candidates": [{"content": plain(s, t)}]}).encode()},
    "error": lambda s, t: {"reply": json.dumps({"error": {"code": 400, "message": t.format(s)}}).encode()},
    "stream": lambda s, t: {"reply": stream({"candidates": [{"content": plain(s, t)}]})},
    "text": lambda s, t: {"reply": t.format(s).encode()},
    "binary": lambda s, t: {"reply": b"\xff\xfe\x00 " + t.format(s).encode() + b" \x80"},
    "escaped": lambda s, t: {"reply": json.dumps(plain(s, t)).replace("=", r"\u003d").replace("/", r"\/").encode()},
}


def traces_of(secret: str) -> list[str]:
    """What of a secret must not be in a file: for one of several lines the longest."""
    part = max(secret.splitlines(), key=len) if "-----" not in secret else secret.splitlines()[1]
    return [part, part.replace("/", "\\/"), quote(part, safe="")]


def written(folder: Path, *found: Interaction) -> str:
    for old in folder.iterdir():
        old.unlink()
    save_cassette(folder / "x.yaml", found, {})
    return "".join(file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=3 * len(SHAPES), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), kind=st.sampled_from(sorted(SHAPES)), text=st.sampled_from(TEXTS))
def test_no_known_secret_is_written(tmp_path: Path, place: str, data: st.DataObject, kind: str, text: str) -> None:
    secret = data.draw(SHAPES[kind])
    found = exchanged(**PLACES[place](secret, text))
    whole = written(tmp_path, found)
    for trace in traces_of(secret):
        assert trace not in whole
        assert trace.encode() not in found.body + found.reply
    assert load_cassette(tmp_path / "x.yaml").interactions


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    value=st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"], exclude_characters="{}"),
        min_size=17,
    ),
    text=st.sampled_from(TEXTS),
)
def test_no_value_of_the_environment_is_written(tmp_path: Path, place: str, value: str, text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        value = f"v4{value}"
        patch.setenv("SEARCH_API_KEY", value)
        found = exchanged(**PLACES[place](value, text))
        whole = written(tmp_path, found)
    assert value.encode() not in found.body + found.reply + found.uri.encode()
    assert value.encode().decode("latin-1") not in whole
    assert quote(value, safe="") not in whole


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["hunter2-and-more", "p4ss word, long", 'with "quotes" 1', "back\\slash9"])
@pytest.mark.parametrize("wrap", ["body", "in text", "Python", "stream"])
def test_what_goes_under_the_name_of_a_secret_is_not_written(name: str, value: str, wrap: str) -> None:
    args: Any = {"b": 1, name: value, "z": "stays"}
    content = {"body": args, "in text": json.dumps(args), "Python": repr(args), "stream": args}[wrap]
    said = json.dumps({"x": content}).encode()
    clean = exchanged(body=stream({"x": content}) if wrap == "stream" else said).body
    for piece in value.replace('"', " ").replace("\\", " ").split():
        if len(piece) > 4:
            assert piece.encode() not in clean
    assert b"stays" in clean
    if wrap != "stream":
        json.loads(clean)


@pytest.mark.parametrize(
    "text",
    [
        "export OPENAI_API_KEY=hunter2Zz9top",
        "client = Client(api_key='hunter-Zztop')",
        "api_key: hunter2Zz9top",
        "Password = hunter2Zz9top",
        "<password>hunter-Zztop</password>",
        '{"dbPassword": "hunter-Zztop"}',
        '{"aws_secret_access_key": "hunter-Zztop"}',
        "AWS_SECRET_ACCESS_KEY = hunter2Zz9top",
        '{"SECRET_KEY": "hunter-Zztop", "pwd": "hunter-Zztop", "passphrase": "hunter-Zztop"}',
        '{"Authorization": "Token hunter2Zz9top"}',
        "sk_live_hunter2Zz9topxyz",
    ],
)
def test_settings_and_their_like_are_not_written(text: str) -> None:
    for content in (text, json.dumps({"x": text})):
        clean = exchanged(body=json.dumps({"x": content}).encode()).body.decode()
        assert "hunter" not in clean, clean
        assert isinstance(json.loads(clean)["x"], str)


def test_what_is_no_text_goes_too_under_such_a_name() -> None:
    args = {
        "password": 1234567890123,
        "api_key": ["hunter-Zztop", "hunter-Zz2"],
        "n": 1234567890123,
        "list": ["stays!"],
    }
    clean = json.loads(exchanged(body=json.dumps(args).encode()).body)
    assert clean == {"password": REDACTED, "api_key": [REDACTED, REDACTED], "n": 1234567890123, "list": ["stays!"]}


PEM_IN_PROSE = 'if "-----BEGIN PRIVATE KEY-----" in text:\n    raise ValueError("leak")'


@pytest.mark.parametrize(
    ("pattern", "text", "clean"),
    [
        (r"Kunde: \S+", "Kunde: Meier", "REDACTED"),
        (r"Kunde: .*", 'of "Kunde: Meier", and so on', 'of "REDACTED'),
        (r"\S*@corp\.example\S*", "mail joe@corp.example", "mail REDACTED"),
        (r"(?s)x.*", "ax\nb", "aREDACTED"),
        ("Łukasz Nowak", "hi Łukasz Nowak", "hi REDACTED"),
        (r"\d+", "the 7 of 9", "the REDACTED of REDACTED"),
        (r"never", PEM_IN_PROSE, PEM_IN_PROSE),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_pattern_never_breaks_the_reply_it_is_found_in(
    pattern: str, text: str, clean: str, ascii_only: bool, streamed: bool
) -> None:
    said = {"n": 12345678, "candidates": [{"content": {"parts": [{"text": text}]}, "index": 0}]}
    body = json.dumps(said, ensure_ascii=ascii_only).encode()
    body = b"data: " + body + b"\r\n\r\n" if streamed else body
    kept = exchanged(reply=body, patterns=(pattern,)).reply.decode().removeprefix("data: ")
    assert json.loads(kept) == {"n": 12345678, "candidates": [{"content": {"parts": [{"text": clean}]}, "index": 0}]}


def test_json_inside_of_a_reply_stays_json() -> None:
    inner = json.dumps({"customer": "Kunde: Meier", "ok": True})
    reply = json.dumps({"text": inner}).encode()
    kept = json.loads(exchanged(reply=reply, patterns=(r"Kunde: .*",)).reply)
    assert json.loads(kept["text"]) == {"customer": "REDACTED", "ok": True}


def test_what_is_behind_a_break_is_searched_too() -> None:
    key = "AIza" + "Sy0123456789" * 3
    for broken in (f'{{"a": "{key}', f'{{"a": 1}} {key}', 'data: {"a": "b', f'["\\x {key}"]'):
        assert key.encode() not in exchanged(reply=broken.encode()).reply


def test_a_service_account_is_not_written() -> None:
    account = {
        "type": "service_account",
        "project_id": "acme-prod-41",
        "private_key_id": "0f" * 20,
        "private_key": "-----BEGIN PRIVATE KEY-----\nMIIEvQ+/a\nBADANBg==\n-----END PRIVATE KEY-----\n",
        "client_email": "robot@acme-prod-41.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    for content in (account, json.dumps(account), json.dumps(json.dumps(account)), str(account)):
        clean = exchanged(body=json.dumps({"x": content}).encode()).body.decode()
        for secret in ("acme-prod", "0f0f", "MIIE", "BADAN", "robot@"):
            assert secret not in clean, (content, clean)
        assert "oauth2.googleapis.com" in clean
        json.loads(clean)


def test_projects_of_vertex_ai_are_not_written(tmp_path: Path) -> None:
    url = "https://europe-west1-aiplatform.googleapis.com/v1/projects/acme-prod-41/locations/europe-west1/publishers/google"
    body = {"cachedContent": "projects/acme-prod-41/locations/europe-west1/cachedContents/7", "q": "of acme-prod-41."}
    found = exchanged(
        url=f"{url}/models/gemini-2.5-flash:generateContent",
        body=json.dumps(body).encode(),
        reply=b'"not acme-prod-411"',
    )
    whole = written(tmp_path, found)
    assert "acme-prod-41/" not in whole
    assert "of acme-prod-41" not in whole
    assert "cachedContents/7" in whole
    assert "acme-prod-411" in whole


def test_what_stands_in_base64_or_for_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "x9-long-enough")
    packed = base64.b64encode(b"x9-long-enough").decode()
    assert packed not in Scrubber().text(f"it is {packed}")
    assert Scrubber().text("postgres://me:s3cret@db/x") == f"postgres://{REDACTED}@db/x"
    assert Scrubber().text("Authorization: Basic dXNlcjpwYXNzMQ==") == f"Authorization: {REDACTED}"


@pytest.mark.parametrize(
    "text",
    [
        "a token is a word, a password is one too",
        '{"key": "C major", "token": "word", "secret": "santa", "tokens": 12}',
        '{"functionCall": {"name": "login", "args": {"token": "x", "password": "y"}}}',
        '{"properties": {"password": {"type": "string"}, "api_key": {"type": "string", "description": "the key"}}}',
        '{"password": null, "api_key": 7, "required": ["api_key", "password"]}',
        "550e8400-e29b-41d4-a716-446655440000 " + "0f" * 32,
        "risk-based sk-learn scikit-learn task-oriented desk-job-with-a-very-long-name",
        "https://music.example/play?key=Cm&token=1",
        "the bearer of bad news, basic understanding of things",
        "monkey=banana-split-for-two",
        "projects/alpha and locations/beta",
        '{"usageMetadata": {"promptTokenCount": 12, "totalTokenCount": 34}, "nextPageToken": "abc"}',
        "data: image/png;base64," + base64.b64encode(bytes(range(256)) * 8).decode(),
    ],
)
def test_what_is_no_secret_stays(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "A_KEY": "short",
        "B_TOKEN": "production",
        "C_SECRET": "/etc/passwd",
        "D_KEY": DUMMY_KEY,
    }.items():
        monkeypatch.setenv(name, value)
    assert Scrubber().text(text) == text
    body = f"short production /etc/passwd {DUMMY_KEY}".encode()
    assert Scrubber().body(body) is body


def test_scrubbing_twice_is_scrubbing_once() -> None:
    text = '{"api_key": "abc12345678", "u": "https://x/?key=abcdefgh1", "t": "Bearer abcdefgh12345678"}'
    once = Scrubber().text(text)
    assert once == '{"api_key": "REDACTED", "u": "https://x/?key=REDACTED", "t": "Bearer REDACTED"}'
    assert Scrubber().text("api_key=abc12345678&q=1") == "api_key=REDACTED&q=1"
    assert Scrubber().text(once) == once


def test_more_by_configuration() -> None:
    body = b'{"customer": "CUST-1234", "n": 1}'
    assert exchanged(body=body, patterns=(r"CUST-\d+",)).body == b'{"customer": "REDACTED", "n": 1}'


def test_what_is_left_fails_and_leaves_no_file(tmp_path: Path) -> None:
    key = "AIza" + "Sy0123456789" * 3
    path = tmp_path / "x.yaml"
    raw = Interaction("POST", GEMINI, b"{}", 200, json.dumps({"x": key[:39]}).encode(), node="write")
    for _ in range(2):
        with pytest.raises(CassetteError) as caught:
            save_cassette(path, [exchanged(), raw], {})
        assert "exchange 2 of node write would hold what looks like a secret: AIza..." in str(caught.value)
        assert key[:39] not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
    save_cassette(path, [exchanged()], {})
    before = path.read_bytes()
    with pytest.raises(CassetteError):
        save_cassette(path, [raw], {})
    assert path.read_bytes() == before


def test_the_second_look_knows_the_environment() -> None:
    found = find_secret("a: v4-of-the-environment", {"X_TOKEN": "v4-of-the-environment"})
    assert found == "v4..., the value of an environment variable"
    assert find_secret("nothing here", {"X_TOKEN": "v4-of-the-environment"}) is None


TESTS = """
import os
from langchain_google_genai import ChatGoogleGenerativeAI
from pytest_agenttrace import Reply

def test_it(gemini_server, agent_trace, gemini_cassette):
    gemini_server.reply(Reply("the key is " + os.environ["SEARCH_API_KEY"]))
    model = ChatGoogleGenerativeAI(model="gemini-2.5-flash")
    said = model.invoke("Search with " + os.environ["SEARCH_API_KEY"]).text
    assert said == "the key is " + ("REDACTED" if not gemini_cassette.recording else os.environ["SEARCH_API_KEY"])
"""
# The first look sees nothing.
BLIND = """
from pytest_agenttrace.replay.scrubbing import Scrubber

Scrubber.text = Scrubber.body = lambda self, given: given
"""


def run(folder: Path, environment: dict[str, str], key: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    keyed = environment | {"SEARCH_API_KEY": key}
    done = subprocess.run(command, cwd=folder, env=keyed, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_key_of_the_environment_from_end_to_end(tmp_path: Path, clean_environment: dict[str, str]) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    cassette = tmp_path / "cassettes" / "test_it" / "test_it.yaml"

    (tmp_path / "conftest.py").write_text(BLIND)
    found = run(tmp_path, clean_environment, "first-of-1-kind", "--agenttrace-record")
    assert "exchange 1 would hold what looks like a secret: fi..., the value of an environment variable" in found
    assert "passed" not in found.splitlines()[-1] or "error" in found.splitlines()[-1]
    assert not list(tmp_path.rglob("*.yaml"))
    (tmp_path / "conftest.py").unlink()

    assert "1 passed" in run(tmp_path, clean_environment, "first-of-1-kind", "--agenttrace-record")
    assert "first-of-1-kind" not in cassette.read_text()
    assert "Search with REDACTED" in cassette.read_text()
    # Another key finds the same replies.
    assert "1 passed" in run(tmp_path, clean_environment, "second-of-2-kinds")
