"""Budgets in whole pytest runs: markers and pyproject.toml, what is used of them, and the budget of the run."""

from __future__ import annotations

from pathlib import Path

from tests.projects import cassette_fixture, environment, project_fixture, run_pytest

__all__ = ["cassette_fixture", "project_fixture"]


# What each test hands on


USES = """
import pytest

KEEP = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    from pytest_agenttrace.plugin import _run

    if call.when == "call":
        for use in _run(item).uses:
            print("USE", item.name, use.node, use.metric, use.limit, use.used, use.source)
    return report
"""
USED = """
import pytest
from app import SAILS, app

pytestmark = pytest.mark.budget("write", tokens=2_000)


@pytest.fixture(scope="module")
def article(agent_run):
    with agent_run("app.yaml") as trace:
        app.invoke(SAILS)
    return trace


@pytest.mark.budget(cost="0.01")
def test_own(agent_trace):
    app.invoke(SAILS)


class TestIt:
    pytestmark = pytest.mark.budget(llm_calls=4)

    def test_read(self, article):
        pass

    def test_fails(self, agent_trace):
        app.invoke(SAILS)
        raise ValueError
"""


def test_a_run_hands_on_what_it_used_of_each_limit(project: Path) -> None:
    (project / "conftest.py").write_text((project / "conftest.py").read_text() + USES)
    (project / "test_it.py").write_text(USED)
    ran = run_pytest(project, "-s", "test_it.py", env=environment())
    assert [line.partition("USE ")[2] for line in ran.out.splitlines() if "USE " in line] == [
        'test_own None cost 0.01 0.0061565 test_it.py:15 budget(cost="0.01")',
        'test_own write tokens 2000 1067 test_it.py budget("write", tokens=2000)',
        "test_read None llm_calls 4 3 test_it.py:20 budget(llm_calls=4)",
        'test_read write tokens 2000 1067 test_it.py budget("write", tokens=2000)',
        "test_fails None llm_calls 4 None test_it.py:20 budget(llm_calls=4)",
        'test_fails write tokens 2000 None test_it.py budget("write", tokens=2000)',
    ], ran.out
