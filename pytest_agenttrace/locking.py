"""A lock between processes and threads on the file at a path. The system releases it when its holder dies.

Standard library only.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["LockTimeout", "locked"]

# Seconds to wait for others; a lock is held while one file is written.
_DEADLINE = 60.0
_PAUSE = 0.01


class LockTimeout(OSError):
    """Another process has held the lock for too long."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with the file at `path`, which need not exist. Links are followed; not reentrant.

    The lock is a file of its own in the system's temporary folder, so that none lies beside what it guards; whoever is
    done with it takes it away. Raises `LockTimeout` after a minute.
    """
    name = hashlib.sha256(f"{_user()} {os.path.realpath(path)}".encode("utf-8", "surrogatepass")).hexdigest()[:24]
    file = Path(tempfile.gettempdir(), f"agenttrace-{name}.lock")
    lock = _acquired(file)
    try:
        yield
    finally:
        # Windows does not let go of a file that is open.
        with suppress(OSError):
            file.unlink()
        _released(lock)
        lock.close()


def _acquired(file: Path) -> IO[bytes]:
    until = time.monotonic() + _DEADLINE
    while True:
        lock = file.open("ab")
        if _taken(lock) and _still_there(lock, file):
            return lock
        lock.close()
        if time.monotonic() > until:
            raise LockTimeout(f"another process has been writing it for {_DEADLINE:.0f} seconds")
        time.sleep(_PAUSE)


def _still_there(lock: IO[bytes], file: Path) -> bool:
    """Whether a lock is on the file that others see: its holder may have taken it away meanwhile."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _user() -> str:
    """Whose locks they are: those of others cannot be opened."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


if sys.platform == "win32":
    import msvcrt

    def _taken(lock: IO[bytes]) -> bool:
        try:
            lock.seek(0)
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _released(lock: IO[bytes]) -> None:
        lock.seek(0)
        msvcrt.locking(lock.fileno(), msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _taken(lock: IO[bytes]) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _released(lock: IO[bytes]) -> None:
        fcntl.flock(lock, fcntl.LOCK_UN)
