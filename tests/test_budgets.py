"""Budgets in whole pytest runs: markers and pyproject.toml, what is used of them, and the budget of the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.projects import bare_fixture, cassette_fixture, environment, project_fixture, run_pytest

__all__ = ["bare_fixture", "cassette_fixture", "project_fixture"]


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


# pyproject.toml


PRECEDENCE = """
import pytest
from app import SAILS, app


def test_defaults(agent_trace):
    app.invoke(SAILS)


@pytest.mark.budget(tokens=4_601, cost="0.0061565", llm_calls=3)
@pytest.mark.budget("write", tokens=1_067)
def test_a_marker_is_closest(agent_trace):
    app.invoke(SAILS)


@pytest.mark.budget(tokens=None, cost=None, llm_calls=None)
@pytest.mark.budget("write", tokens=None)
def test_none_lifts(agent_trace):
    app.invoke(SAILS)


def test_of_a_pattern(agent_trace):
    app.invoke(SAILS)


@pytest.mark.parametrize("number", [1, 2])
def test_by_parameter(agent_trace, number):
    app.invoke(SAILS)


@pytest.mark.budget("edit", tokens=1)
def test_a_marker_demands_its_node(agent_trace):
    app.invoke(SAILS)


def test_asked_for_while_running(request):
    request.getfixturevalue("agent_trace")
    app.invoke(SAILS)


def test_none_of_ours():
    pass


def test_the_cassette_alone(gemini_cassette):
    app.invoke(SAILS)


@pytest.mark.agent_trace(allow=["empty", "unused"])
def test_nothing_traced(agent_trace):
    pass


@pytest.mark.budget(cost=None)
def test_a_lift_brings_no_fixture(request):
    assert "agent_trace" not in request.fixturenames
"""
PYPROJECT = """
[project]
name = "article"

[tool.agenttrace.budgets]
tokens = 4_600
llm_calls = 2
nodes.edit.tokens = 0

[tool.agenttrace.budgets.nodes.write]
tokens = 1_066

[[tool.agenttrace.budgets.tests]]
match = "test_it.py::test_of_*"
tokens = 1
cost = "0.006"
llm_calls = 3
nodes.write.tokens = 1_065

[[tool.agenttrace.budgets.tests]]
match = "test_it.py::test_of_a_pattern"
tokens = 4_601

[[tool.agenttrace.budgets.tests]]
match = "test_it.py::test_by_parameter[2]"
tokens = 1
"""


def failures(out: str) -> dict[str, list[str]]:
    """What each failed test says, up to its first section."""
    parts = re.split(r"^_{3,} (?:ERROR at \w+ of )?(\S+) _{3,}$", out.partition(" FAILURES ")[2], flags=re.MULTILINE)
    return {
        name: [
            line for line in re.split(r"^(?:-{3,}|={3,}) ", text, maxsplit=1, flags=re.MULTILINE)[0].split("\n") if line
        ]
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_the_closest_marker_then_the_last_pattern_then_the_defaults(project: Path) -> None:
    (project / "test_it.py").write_text(PRECEDENCE)
    (project / "pyproject.toml").write_text(PYPROJECT)
    ran = run_pytest(project, "test_it.py", env=environment())
    defaults = [
        "run 4,601 tokens > 4,600 (+1)",
        "run 3 llm_calls > 2 (+1)",
        "write 1,067 tokens > 1,066 (+1)",
    ]
    assert failures(ran.out) == {
        "test_defaults": defaults,
        "test_of_a_pattern": ["run $0.0061565 > $0.006 (+$0.0001565)", "write 1,067 tokens > 1,065 (+2)"],
        "test_by_parameter[1]": defaults,
        "test_by_parameter[2]": ["run 4,601 tokens > 1 (+4,600)", *defaults[1:]],
        "test_a_marker_demands_its_node": [
            "budget: no node 'edit' in this trace. It has: research, write",
            *defaults,
        ],
        "test_asked_for_while_running": defaults,
    }, ran.out
    assert "6 failed, 6 passed" in ran.out


READERS = """
import pytest
from app import SAILS, app


@pytest.fixture(scope="module")
def article(agent_run):
    with agent_run("app.yaml") as trace:
        app.invoke(SAILS)
    return trace


@pytest.fixture(scope="module")
def twice(agent_run):
    for _ in "12":
        with agent_run("app.yaml") as trace:
            app.invoke(SAILS)
    return trace


def test_defaults(article):
    pass


@pytest.mark.budget(tokens=9_999)
def test_a_marker(article):
    pass


def test_several(article, twice):
    pass


def test_none_made(agent_run):
    pass
"""


def test_defaults_hold_for_the_runs_that_tests_read(project: Path) -> None:
    (project / "test_it.py").write_text(READERS)
    (project / "pyproject.toml").write_text("[tool.agenttrace]\nbudgets = { tokens = 4_600, nodes.edit.tokens = 0 }\n")
    ran = run_pytest(project, "test_it.py", env=environment())
    over = "run 4,601 tokens > 4,600 (+1)"
    assert failures(ran.out) == {
        "test_defaults": [over],
        "test_several": [f"{over} in article", f"{over} in twice", f"{over} in twice"],
    }, ran.out
    assert "2 failed, 2 passed" in ran.out


WRONG = """
[tool.agenttrace.budgets]
tokns = 5
cost = "1e"
llm_calls = true
input_tokens = 1_0e2
nodes = { research = { tokens = "many" }, "a b" = {} }
[tool.agenttrace.budgets.run]
llm_calls = 3
tokens = -1
[[tool.agenttrace.budgets.tests]]
cost = "five"
[[tool.agenttrace.budgets.tests]]
match = 3
[tool.agenttrace.buget]
[tool.agenttrace.traffic]
runs = 7
"""
ALL = "tokens, input_tokens, output_tokens, cost, llm_calls, tool_calls"
TOLD_WRONG = f"""\
pyproject.toml:15: tool.agenttrace.buget: unknown table; did you mean 'budgets'? [tool.agenttrace] has budgets, traffic
pyproject.toml:3: tool.agenttrace.budgets.tokns: unknown key; did you mean 'tokens'? It has {ALL}, nodes, tests, run
pyproject.toml:9: tool.agenttrace.budgets.run.llm_calls: unknown key. It has cost, tokens
pyproject.toml:6: tool.agenttrace.budgets.input_tokens = 1_0e2 is not a whole number
pyproject.toml:4: tool.agenttrace.budgets.cost = "1e" is not an amount of USD: write cost="0.005"
pyproject.toml:5: tool.agenttrace.budgets.llm_calls = true is not a number
pyproject.toml:7: tool.agenttrace.budgets.nodes.research.tokens = "many" is not a whole number
pyproject.toml:7: tool.agenttrace.budgets.nodes."a b": sets no limit: give one of {ALL}
pyproject.toml:11: tool.agenttrace.budgets.tests[0]: names no tests: write match = "tests/nightly/*"
pyproject.toml:12: tool.agenttrace.budgets.tests[0].cost = "five" is not an amount of USD: write cost="0.005"
pyproject.toml:14: tool.agenttrace.budgets.tests[1].match = 3 is no pattern for node ids of tests
pyproject.toml:13: tool.agenttrace.budgets.tests[1]: sets no limit: give one of {ALL}, nodes
pyproject.toml:10: tool.agenttrace.budgets.run.tokens = -1 is negative"""


@pytest.mark.parametrize("args", [[], ["-p", "xdist", "-n", "1"]], ids=["serial", "xdist"])
def test_all_that_is_wrong_is_told_before_any_test_runs(bare: Path, args: list[str]) -> None:
    (bare / "pyproject.toml").write_text(WRONG)
    (bare / "pytest.ini").write_text("[pytest]\n")
    (bare / "test_it.py").write_text("def test_it(): raise SystemExit\n")
    ran = run_pytest(bare, *args, env=environment())
    assert ran.err.removeprefix("ERROR: ").strip() == TOLD_WRONG
    assert (ran.code, "test_it" in ran.out) == (pytest.ExitCode.USAGE_ERROR, False)


def test_an_option_that_cannot_be_meant(bare: Path) -> None:
    given = ["cost=1", "0.5", "many", "tokens=1.5", "calls=3", "tokens=-1"]
    ran = run_pytest(bare, *(f"--agenttrace-budget={text}" for text in given), env=environment())
    assert ran.err.removeprefix("ERROR: ").splitlines()[:5] == [
        "--agenttrace-budget: '0.5': cost is given twice",
        "--agenttrace-budget: 'many' is not an amount of USD: write cost=\"0.005\"",
        "--agenttrace-budget: 'tokens=1.5' is not a whole number",
        "--agenttrace-budget: 'calls=3': a run has cost (USD) and tokens: write 0.50, cost=0.50 or tokens=500000",
        "--agenttrace-budget: 'tokens=-1' is negative",
    ]
    assert ran.code == pytest.ExitCode.USAGE_ERROR


# The whole run


SUITE = """
import pytest
from app import SAILS, app

pytestmark = pytest.mark.budget("write", tokens=2_000)


@pytest.fixture(scope="session")
def article(agent_run):
    with agent_run("app.yaml") as trace:
        app.invoke(SAILS)
    return trace


@pytest.mark.budget(cost="0.01", tool_calls=9)
def test_one(agent_trace):
    app.invoke(SAILS)


@pytest.mark.budget("write", tokens=3_000)
@pytest.mark.budget("research", tokens=4_000, tool_calls=1)
def test_two(agent_trace):
    app.invoke(SAILS)


def test_read(article):
    pass


def test_reread(article):
    pass


@pytest.mark.flaky(reruns=1)
def test_again(agent_trace, request):
    app.invoke(SAILS)
    assert request.node.execution_count == 2


@pytest.mark.flaky(reruns=1)
def test_gives_up(agent_trace, request):
    if request.node.execution_count == 2:
        pytest.skip("what it used before counts no more")
    app.invoke(SAILS)
    assert not agent_trace.tokens


@pytest.mark.skip
@pytest.mark.budget("research", cost=1)
def test_skipped(agent_trace):
    pass
"""
BUDGETS = """
[tool.agenttrace.budgets]
llm_calls = 30
nodes.edt.tokens = 5

[[tool.agenttrace.budgets.tests]]
match = "nightly"
cost = 3

[tool.agenttrace.budgets.run]
tokens = 23_004
cost = 9
"""
# As serially, so in two workers: each of them makes the run that two tests read, and it counts once.
SERIES = """\
budgets, used:
  whole run                cost 103% ($0.0307825 of $0.03)  tokens 101% (23,005 of 23,004)
  test_it.py::test_two     research tool_calls 100% (1 of 1)  research tokens 88%  write tokens 35%  run llm_calls 10%
  test_it.py::test_one     run cost 61% ($0.0061565 of $0.01)  write tokens 53%  run tool_calls 11%  run llm_calls 10%
  test_it.py::test_again   write tokens 53% (1,067 of 2,000)  run llm_calls 10%
  test_it.py::test_read    write tokens 53% (1,067 of 2,000)  run llm_calls 10%
  test_it.py::test_reread  write tokens 53% (1,067 of 2,000)  run llm_calls 10%
limits of which no test has used half: 2
  test_it.py:15 budget(tool_calls=9): at most 1 used (11%); tool_calls=2 would do
  test_it.py:20 budget("write", tokens=3000): at most 1,067 used (35%); tokens=1400 would do
  4 limits are left out: a test failed or was skipped, or its numbers are not known
pyproject.toml: tool.agenttrace.budgets.tests[0].match = "nightly" matches no test
whole run $0.0307825 > $0.03 (+$0.0007825): \
test_alone.py::test_alone $0.0061565, test_it.py::article $0.0061565, test_it.py::test_again $0.0061565 and 2 more
  nodes: research $0.0189456, write $0.0056804
  limit: --agenttrace-budget 0.03
whole run 23,005 tokens > 23,004 (+1): \
test_alone.py::test_alone 4,601 tokens, test_it.py::article 4,601 tokens, test_it.py::test_again 4,601 tokens and 2 more
  nodes: research 14,136 tokens, write 4,268 tokens
  limit: pyproject.toml: tool.agenttrace.budgets.run.tokens = 23004"""
ALONE = """
from app import SAILS, app


def test_alone(gemini_cassette):
    app.invoke(SAILS)
"""


def agenttrace(out: str) -> list[str]:
    """The lines of our section at the end of the run."""
    section = out.partition(" agenttrace =")[2].partition("\n")[2]
    return [line for line in re.split(r"^(?:=+|\d+) ", section, maxsplit=1, flags=re.MULTILINE)[0].splitlines() if line]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_whole_run(project: Path, workers: int) -> None:
    (project / "test_it.py").write_text(SUITE)
    (project / "test_alone.py").write_text(ALONE)
    (project / "pyproject.toml").write_text(BUDGETS)
    args = ["-p", "xdist", "-p", "rerunfailures", "-n", str(workers)]
    ran = run_pytest(project, *args, "-v", "--agenttrace-slack", "--agenttrace-budget=0.03", env=environment())
    told = agenttrace(ran.out)
    assert "\n".join(told[told.index("budgets, used:") :]) == SERIES
    assert (ran.code, "6 passed, 2 skipped, 2 rerun" in ran.out) == (1, True)


def test_a_part_of_the_run_says_so_and_is_told_under_q(project: Path) -> None:
    (project / "test_it.py").write_text(SUITE)
    (project / "pyproject.toml").write_text(BUDGETS)
    args = ["-q", "-p", "rerunfailures", "test_it.py::test_one", "--agenttrace-budget=tokens=4_600"]
    ran = run_pytest(project, *args, "--agenttrace-ledger=ledger.json", env=environment())
    assert agenttrace(ran.out) == [
        "whole run 4,601 tokens > 4,600 (+1): test_it.py::test_one 4,601 tokens",
        "  nodes: research 3,534 tokens, write 1,067 tokens",
        "  limit: --agenttrace-budget tokens=4_600",
        "  of a part of the suite: only test_it.py::test_one was run",
    ]
    assert ran.code == 1
    assert json.loads((project / "ledger.json").read_text())["run"]["budgets"] == [
        {"node": None, "metric": "tokens", "limit": 4600, "used": 4601},
        {"node": None, "metric": "cost", "limit": "9", "used": "0.0061565"},
    ]


QUIET = """
from app import SAILS, app


def test_it(agent_trace):
    app.invoke(SAILS)
"""


def test_within_the_budget_nothing_is_told_but_names_that_are_nobodys(project: Path) -> None:
    (project / "test_it.py").write_text(QUIET)
    (project / "pyproject.toml").write_text(BUDGETS)
    ran = run_pytest(project, "-p", "rerunfailures", "--agenttrace-slack", env=environment())
    assert agenttrace(ran.out)[2:] == [
        "limits of which no test has used half: 1",
        "  pyproject.toml: tool.agenttrace.budgets.llm_calls = 30: at most 3 used (10%); llm_calls=4 would do",
        'pyproject.toml: tool.agenttrace.budgets.tests[0].match = "nightly" matches no test',
        "pyproject.toml: tool.agenttrace.budgets.nodes.edt.tokens = 5: no test has run a node 'edt'",
    ]
    assert ran.code == 0
    part = run_pytest(project, "test_it.py", "--agenttrace-slack", "--co", "-q", env=environment())
    assert (part.code, agenttrace(part.out)) == (0, [])
    part = run_pytest(project, "test_it.py", "-p", "rerunfailures", env=environment())
    assert (part.code, len(agenttrace(part.out))) == (0, 2)


def test_a_model_without_a_price_fails_a_run_with_a_budget_and_no_other(project: Path) -> None:
    (project / "test_it.py").write_text(QUIET)
    (project / "prices.yaml").write_text("format: 1\nonly: true\nmodels: {}\n")
    args = ["-o", "agenttrace_prices=prices.yaml", "--agenttrace-budget"]
    ran = run_pytest(project, *args, "tokens=5000", "-v", env=environment())
    assert (ran.code, agenttrace(ran.out)[-1]) == (0, "  whole run  tokens 92% (4,601 of 5,000)")
    ran = run_pytest(project, *args, "9", env=environment())
    told = agenttrace(ran.out)[1:]
    assert told[0] == "whole run cost cannot be judged:"
    assert "gemini-2.5-flash" in told[1], told
    assert told[1].endswith("(test_it.py::test_it)")
    assert (ran.code, "1 passed" in ran.out, "[unpriced]" in ran.out) == (1, True, False)
