"""What the run says of the real recordings it checked (test_real_recordings.py), under xdist too."""

from __future__ import annotations

import json
import os
from collections import Counter

import pytest


@pytest.fixture
def clean_environment() -> dict[str, str]:
    """The environment without keys and without what this run's pytest left in it."""
    hidden = (
        "GOOGLE_API_KEY",
        "GEMINI_API_KEY",
        "GOOGLE_GEMINI_BASE_URL",
        "PYTEST_ADDOPTS",
        "PYTEST_CURRENT_TEST",
        "CI",
        "BUILD_NUMBER",
        "GITHUB_ACTIONS",
        "GITHUB_STEP_SUMMARY",
    )
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not name.startswith(("PYTEST_XDIST", "MLFLOW_"))
    }
    # A neighbour that is installed to be tested with: tests in a run of ours keep their order.
    return kept | {"PYTEST_ADDOPTS": "-p no:randomly"}


_PROPERTY = "recorded exchanges, "


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ways: dict[str, Counter[str]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            if name.startswith(_PROPERTY):
                checked = ways.setdefault(name.removeprefix(_PROPERTY), Counter())
                checked.update({"recordings": 1, **json.loads(str(value))})
    if not ways:
        return
    terminalreporter.section("real recordings")
    for way, checked in sorted(ways.items(), reverse=True):
        exchanges = checked["counted"] + checked["refused"] + checked["missed"]
        terminalreporter.line(
            f"{way}: {exchanges} exchanges of {checked['recordings']} recordings checked: "
            f"{checked['counted']} counted to the token, {checked['refused']} refused by the API, "
            f"{checked['missed']} that google-genai cannot ask for"
        )
