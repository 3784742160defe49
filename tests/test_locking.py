"""Locks between processes: nobody is let in beside another, and no file is left."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pytest_agenttrace import locking
from pytest_agenttrace.locking import LockTimeout, locked

COUNT = """
import sys, tempfile
from pathlib import Path
from pytest_agenttrace.locking import locked
file, tempfile.tempdir = Path(sys.argv[1]), sys.argv[2]
for _ in range(200):
    with locked(file):
        number = int(file.read_text())
        file.write_text(str(number + 1))
"""


def test_processes_take_turns_and_leave_nothing(tmp_path: Path) -> None:
    file, folder = tmp_path / "number", tmp_path / "locks"
    folder.mkdir()
    file.write_text("0")
    running = [subprocess.Popen([sys.executable, "-c", COUNT, str(file), str(folder)]) for _ in range(4)]
    assert [process.wait(120) for process in running] == [0, 0, 0, 0]
    assert file.read_text() == "800"
    assert list(folder.iterdir()) == []


def test_a_holder_that_does_not_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(locking, "_DEADLINE", 0.05)
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        started = time.monotonic()
        with (
            pytest.raises(LockTimeout, match="another process has been writing it for 0 seconds"),
            locked(tmp_path / "a"),
        ):
            pytest.fail("two are in")
        assert time.monotonic() - started < 10
    assert list(tmp_path.iterdir()) == []
