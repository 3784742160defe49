"""The process's environment: what MLflow reads when it is imported, and a key where there is none."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["DUMMY_KEY", "KEY_VARIABLES", "dummy_key", "quiet_environment"]

KEY_VARIABLES = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
# Google's own clients ask for a key when they are built; replay never sends it anywhere.
DUMMY_KEY = "agenttrace-replay-needs-no-key"

# Read when mlflow is imported, so set before: no price list from the network, no telemetry.
_QUIET = {
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def quiet_environment() -> Callable[[], None]:
    """Keep MLflow from dialling anybody; gives the function that puts the environment back."""
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)

    def undo() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return undo


@contextmanager
def dummy_key(wanted: bool = True) -> Iterator[None]:
    """A key in the environment where there is none, so that clients can be built; taken away after."""
    if not wanted or any(os.environ.get(name) for name in KEY_VARIABLES):
        yield
        return
    before = os.environ.get(KEY_VARIABLES[0])
    os.environ[KEY_VARIABLES[0]] = DUMMY_KEY
    try:
        yield
    finally:
        if os.environ.get(KEY_VARIABLES[0]) == DUMMY_KEY:
            os.environ.pop(KEY_VARIABLES[0])
            if before is not None:
                os.environ[KEY_VARIABLES[0]] = before
