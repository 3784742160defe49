"""What a run says in a pull request on GitHub: the step's summary, and annotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pytest_agenttrace.ledger import Ledger
from pytest_agenttrace.report.limits import exceeded, overrun
from pytest_agenttrace.report.wording import plain_text

__all__ = ["SUMMARY", "append_summary", "error_annotations"]

# Where GitHub Actions takes a step's summary from.
SUMMARY = "GITHUB_STEP_SUMMARY"
# GitHub shows ten annotations of a kind in a step.
_MOST = 10


def append_summary(environment: Mapping[str, str], text: str) -> str | None:
    """Append Markdown to the step's summary, where there is one. What went wrong, in a line; None where nothing did."""
    name = environment.get(SUMMARY)
    if not name:
        return None
    try:
        with Path(name).open("ab") as file:
            file.write(("\n" + text).encode("utf-8", "backslashreplace"))
    except OSError as error:
        return f"{SUMMARY}: {name} cannot be written: {error.strerror or error}"
    return None


def error_annotations(
    environment: Mapping[str, str], ledger: Ledger, places: Mapping[str, tuple[str, int | None]]
) -> Iterator[str]:
    """One workflow command for each budget exceeded, in GitHub Actions only. `places` are file and line of tests."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return
    made: list[str] = []
    for test, facts in ledger.tests.items():
        file, line = places.get(test, (test.partition("::")[0], None))
        made += [_error(overrun(budget), test, file, line) for budget in facts.budgets if exceeded(budget)]
    made += [_error(overrun(budget), "the whole run", None, None) for budget in ledger.run.budgets if exceeded(budget)]
    yield from made[:_MOST]
    if len(made) > _MOST:
        yield _error(f"{len(made) - _MOST} more budgets are exceeded: see the summary", "agenttrace", None, None)


def _error(text: str, title: str, file: str | None, line: int | None) -> str:
    place = {"file": file, "line": None if line is None else str(line), "title": title}
    properties = ",".join(f"{name}={_property(value)}" for name, value in place.items() if value is not None)
    return f"::error {properties}::{_data(text)}"


def _data(text: str) -> str:
    """A command's text, as GitHub's own toolkit escapes it."""
    return plain_text(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
