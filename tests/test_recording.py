"""What a recording leaves behind, through the whole plugin: nothing good is destroyed, shared files hold all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_agenttrace import ErrorReply, GeminiServer, Reply
from pytest_agenttrace.gemini_server import Script

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
