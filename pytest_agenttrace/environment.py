"""The process's environment: what MLflow reads when it is imported, and a key where there is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import environ  # held here: a test may replace it on the module
from typing import Any

__all__ = ["DUMMY_KEY", "KEY_VARIABLES", "dummy_key", "quiet_environment", "sweep_key"]

KEY_VARIABLES = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
# Google's own clients ask for a key when they are built; replay never sends it anywhere.
DUMMY_KEY = "agenttrace-replay-needs-no-key"

# Read when mlflow is imported, so set before: no price list from the network, no telemetry.
_QUIET = {
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

# How many `dummy_key` are open that have set one.
_keys_given = 0


def quiet_environment() -> Callable[[], None]:
    """Keep MLflow from dialling anybody, imported already or not; gives the function that puts it back."""
    before = {name: environ.get(name) for name in _QUIET}
    environ.update(_QUIET)
    had_client = _telemetry("get_telemetry_client") is not None
    if had_client:
        _telemetry("set_telemetry_client")

    def undo() -> None:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
        if had_client:
            _telemetry("set_telemetry_client")

    return undo


def _telemetry(function: str) -> Any:
    """Call a function of MLflow's telemetry, which decides when MLflow is imported; None where it is not.

    `set_telemetry_client` decides anew (MLflow 3.9 to 3.17).
    """
    found = getattr(sys.modules.get("mlflow.telemetry"), function, None)
    return found() if callable(found) else None


@contextmanager
def dummy_key(wanted: bool = True) -> Iterator[None]:
    """A key in the environment where there is none, so that clients can be built; taken away after."""
    global _keys_given
    if not wanted or any(environ.get(name) for name in KEY_VARIABLES):
        yield
        return
    before = environ.get(KEY_VARIABLES[0])
    environ[KEY_VARIABLES[0]] = DUMMY_KEY
    _keys_given += 1
    try:
        yield
    finally:
        _keys_given -= 1
        if environ.get(KEY_VARIABLES[0]) == DUMMY_KEY:
            environ.pop(KEY_VARIABLES[0])
            if before is not None:
                environ[KEY_VARIABLES[0]] = before


def sweep_key() -> None:
    """After a test's last fixture is torn down: take a dummy key away that a `monkeypatch` outliving
    `dummy_key` has put back, as what it took for the old value."""
    if _keys_given == 0 and environ.get(KEY_VARIABLES[0]) == DUMMY_KEY:
        environ.pop(KEY_VARIABLES[0])
