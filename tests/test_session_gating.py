"""Baselines, the step's summary, annotations and JUnit's properties, of whole pytest runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pytest_agenttrace.ledger import Times, read_ledger, write_ledger
from pytest_agenttrace.report import new_baseline, why_not
from tests.ledgers import article, ledger
from tests.projects import Session, cassette_fixture, environment, project_fixture, run_pytest

__all__ = ["cassette_fixture", "project_fixture"]

TESTS = """
import pytest

from app import SAILS, app

pytestmark = pytest.mark.agent_trace(cassette="app.yaml")


def test_article(agent_trace):
    app.invoke(SAILS)


def test_again(agent_trace):
    app.invoke(SAILS)
"""
BASELINE = ("--agenttrace-baseline", "baseline.json")
UPDATE = (*BASELINE, "--agenttrace-update-baseline")


@pytest.fixture(name="suite")
def suite_fixture(project: Path) -> Path:
    (project / "conftest.py").unlink()
    (project / "test_it.py").write_text(TESTS)
    return project


def run(suite: Path, *arguments: str, plugins: tuple[str, ...] = (), **variables: str) -> Session:
    loaded = ("pytest_agenttrace.plugin", *plugins)
    return run_pytest(suite, *arguments, env=environment() | variables, plugins=loaded)


def section(ran: Session) -> list[str]:
    """The lines below the heading "agenttrace", without what the run has used."""
    found = re.search(r"^-*=* agenttrace =+\n(.*?)(?=^=)", ran.out, re.DOTALL | re.MULTILINE)
    lines = found[1].rstrip().splitlines() if found is not None else []
    return [line for line in lines if not line.startswith(("traced: ", "  dearest: "))]


def edit(suite: Path, name: str, old: str, new: str) -> None:
    text = (suite / name).read_text()
    assert old in text
    (suite / name).write_text(text.replace(old, new))


DEARER = [
    "compared with baseline.json",
    "  cost",
    "    write 2,134 -> 2,558 tokens (+424, +20%), +$0.0001272 (+4.5%)",
    "      input 1,134 -> 1,558",
    "      test_it.py::test_again: +212 tokens",
    "      test_it.py::test_article: +212 tokens",
    "      in 2 tests: test_it.py::test_again, test_it.py::test_article",
    "  2 tests compared: 9,202 -> 9,626 tokens (+424, +4.6%), $0.012313 -> $0.0124402 (+$0.0001272, +1%)",
    "  1 cost: fails on cost",
]


def dearer(suite: Path) -> None:
    """As if write had been recorded anew with a longer prompt."""
    edit(suite, "app.yaml", "promptTokenCount: 567", "promptTokenCount: 779")
    edit(suite, "app.yaml", "totalTokenCount: 1067", "totalTokenCount: 1279")


def test_a_baseline_is_written_held_against_a_run_and_moved_on_purpose(suite: Path) -> None:
    missing = run(suite, *BASELINE)
    assert missing.code == 4
    assert missing.err == (
        "ERROR: --agenttrace-baseline: no file baseline.json: write it with\n"
        "  pytest --agenttrace-baseline baseline.json --agenttrace-update-baseline\n\n"
    )
    written = run(suite, *UPDATE)
    assert (written.code, section(written)) == (0, ["baseline.json was written: 2 tests"])
    first = (suite / "baseline.json").read_bytes()
    same = run(suite, *BASELINE)
    assert (same.code, section(same)) == (0, ["no differences from baseline.json"])
    dearer(suite)
    found = run(suite, *BASELINE)
    assert (found.code, section(found)) == (1, DEARER)
    assert "2 passed" in found.out
    assert (suite / "baseline.json").read_bytes() == first
    forgiven = run(suite, *BASELINE, "--agenttrace-tolerance", "20%")
    assert forgiven.code == 0
    assert section(forgiven)[1:3] == ["  informational", DEARER[2]]
    assert run(suite, *BASELINE, "--agenttrace-fail-on=breaking").code == 0
    moved = run(suite, *UPDATE)
    assert moved.code == 0
    assert section(moved) == ["baseline.json was written: 2 tests", *DEARER[1:-1], "  1 cost"]
    assert run(suite, *BASELINE).code == 0


def test_a_quiet_run_tells_what_fails_it(suite: Path) -> None:
    run(suite, *UPDATE)
    dearer(suite)
    assert "write 2,134 -> 2,558 tokens" in run(suite, "-q", *BASELINE).out


def test_a_node_that_vanished_breaks_with_xdist_too(suite: Path) -> None:
    run(suite, *UPDATE)
    edit(
        suite,
        "app.py",
        'graph.add_edge("research", "write")\n    graph.add_edge("write", END)',
        'graph.add_edge("research", END)',
    )
    edit(suite, "app.py", '    graph.add_node("write", write)\n', "")
    edit(suite, "test_it.py", 'cassette="app.yaml"', 'cassette="app.yaml", allow=["unused"]')
    found = run(suite, *BASELINE, "-n", "2", plugins=("xdist",))
    assert found.code == 1
    assert section(found)[:5] == [
        "compared with baseline.json",
        "  breaking",
        "    node 'write' vanished",
        "      -2,134 tokens, -$0.0028402",
        "      in 2 tests: test_it.py::test_again, test_it.py::test_article",
    ]


def test_only_what_ran_is_compared_and_only_that_is_updated(suite: Path) -> None:
    run(suite, *UPDATE)
    before = read_ledger(suite / "baseline.json")
    part = run(suite, *BASELINE, "-k", "again")
    assert part.code == 0
    assert section(part)[1:4] == [
        "  informational",
        "    1 test not run: tests were deselected",
        "      in test_it.py::test_article",
    ]
    dearer(suite)
    moved = run(suite, *UPDATE, "-k", "again")
    assert moved.code == 0
    assert re.fullmatch(r"baseline.json was written: 2 tests \(.*: the others stay as they were\)", section(moved)[0])
    after = read_ledger(suite / "baseline.json")
    assert after.tests["test_it.py::test_article"] == before.tests["test_it.py::test_article"]
    assert after.tests["test_it.py::test_again"] != before.tests["test_it.py::test_again"]


def test_a_test_that_is_gone_from_a_file_that_ran_has_vanished(suite: Path) -> None:
    run(suite, *UPDATE)
    (suite / "test_it.py").write_text(TESTS.replace("def test_article", "def of_no_test"))
    gone = run(suite, *BASELINE, "test_it.py")
    assert gone.code == 1
    assert section(gone)[1:3] == ["  breaking", "    1 test vanished"]
    assert run(suite, *BASELINE, "-n1", "-m", "not slow", plugins=("xdist",)).code == 1
    assert run(suite, *UPDATE, "test_it.py").code == 0
    assert list(read_ledger(suite / "baseline.json").tests) == ["test_it.py::test_again"]


def test_who_leaves_with_a_good_exit_code_is_no_match_for_a_baseline(suite: Path) -> None:
    run(suite, *UPDATE)
    before = (suite / "baseline.json").read_bytes()
    edit(
        suite,
        "test_it.py",
        "def test_again(agent_trace):\n",
        "def test_again(agent_trace):\n    pytest.exit('so', returncode=0)\n",
    )
    for options in (BASELINE, UPDATE):
        assert run(suite, *options).code == 1
    assert (suite / "baseline.json").read_bytes() == before


def test_a_red_run_moves_no_baseline(suite: Path) -> None:
    run(suite, *UPDATE)
    before = (suite / "baseline.json").read_bytes()
    (suite / "test_it.py").write_text(TESTS + "    assert agent_trace.tokens == 1\n")
    red = run(suite, *UPDATE)
    assert red.code == 1
    assert section(red) == ["baseline.json was not updated: 1 test failed: test_it.py::test_again"]
    assert (suite / "baseline.json").read_bytes() == before
    (suite / "test_it.py").write_text(TESTS)
    (suite / "test_other.py").write_text("def test_of_nothing_of_ours():\n    assert 0\n")
    red = run(suite, *UPDATE)
    assert red.code == 1
    assert section(red)[-1] == "baseline.json was not updated: the run failed"
    assert (suite / "baseline.json").read_bytes() == before


def test_a_stopped_run_can_not_be_vouched_for(suite: Path) -> None:
    run(suite, *UPDATE)
    source = TESTS.replace("def test_again", "def test_b").replace("app.invoke(SAILS)", "assert 0", 1)
    (suite / "test_it.py").write_text(source)
    stopped = run(suite, *BASELINE, "-x", "--agenttrace-fail-on", "never")
    assert stopped.code == 1
    assert section(stopped)[1].startswith("  the new run was stopped (stopping after 1 failures): 1 test not run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--agenttrace-update-baseline"],
            "--agenttrace-update-baseline: of which file? Name it with --agenttrace-baseline FILE",
        ),
        (["--agenttrace-baseline", ""], "--agenttrace-baseline: '' is no file: name one, such as baseline.json"),
        (["--agenttrace-baseline", "text"], "--agenttrace-baseline: text: no ledger: it has no 'format'"),
        (
            ["--agenttrace-baseline", "good", "--agenttrace-tolerance", "x"],
            "--agenttrace-tolerance: 'x' is no tolerance: give percent, such as 10%",
        ),
    ],
)
def test_what_cannot_be_meant_is_said_before_anything_runs(bare: Path, arguments: list[str], said: str) -> None:
    (bare / "text").write_text("{}")
    write_ledger(bare / "good", ledger(article()))
    (bare / "test_it.py").write_text("def test_it():\n    pass\n")
    found = run(bare, *arguments)
    assert found.code == 4
    assert found.err.replace(f"{bare}/", "") == f"ERROR: {said}\n\n"


@pytest.mark.parametrize("option", ["ledger", "baseline"])
def test_a_file_that_moves_pytests_rootdir_is_told(bare: Path, option: str) -> None:
    """Where the value is an argument of its own, pytest knows neither the project's tests nor its budgets."""
    (bare / "pytest.ini").write_text("[pytest]\n")
    (bare / "sub").mkdir()
    (bare / "sub" / "test_it.py").write_text("def test_it():\n    pass\n")
    other = bare.parent / "other"
    for place, name in ((bare, "in.json"), (other, "out.json")):
        place.mkdir(exist_ok=True)
        write_ledger(place / name, ledger(article()))
    found = run(bare, f"--agenttrace-{option}", str(other / "out.json"))
    assert (found.code, found.err) == (
        4,
        f"ERROR: --agenttrace-{option} {other}/out.json: pytest takes the file for a place of tests, and its rootdir "
        f"is {other}:\n  write --agenttrace-{option}={other}/out.json\n\n",
    )
    assert run(bare, f"--agenttrace-{option}={other / 'out.json'}").code != 4
    # Inside of the project it moves nothing, wherever pytest is started.
    assert run(bare / "sub", f"--agenttrace-{option}", "../in.json").code != 4


def test_a_fault_of_our_own_fails_the_run_in_one_line(bare: Path) -> None:
    write_ledger(bare / "baseline.json", ledger(article()))
    (bare / "test_it.py").write_text("def test_it():\n    pass\n")
    (bare / "conftest.py").write_text("from pytest_agenttrace import report\nreport.compare = lambda *given: 1 / 0\n")
    found = run(bare, *BASELINE)
    assert found.code == 1
    assert section(found) == [
        "the run could not be compared, a fault of pytest-agenttrace's: ZeroDivisionError: division by zero"
    ]


def test_a_run_without_the_plugins_tests_is_no_match_for_a_baseline(bare: Path) -> None:
    write_ledger(bare / "baseline.json", ledger(article()))
    (bare / "test_it.py").write_text("def test_it():\n    pass\n")
    found = run(bare, *BASELINE, "--agenttrace-fail-on=never")
    assert found.code == 1
    assert section(found)[1] == "  the new ledger has no tests"


@pytest.fixture(name="bare")
def bare_fixture(tmp_path: Path) -> Path:
    folder = tmp_path / "bare"
    folder.mkdir()
    return folder


BUDGETS = TESTS.replace("def test_again", "@pytest.mark.budget('write', tokens={limit})\ndef test_again")


def test_a_budget_now_exceeded_breaks_and_is_annotated_once(suite: Path) -> None:
    (suite / "test_it.py").write_text(BUDGETS.format(limit=1100))
    run(suite, *UPDATE)
    dearer(suite)
    # Below the checkout, as GitHub names files.
    github = {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(suite.parent)}
    found = run(suite, *BASELINE, "-n", "2", plugins=("xdist",), **github)
    assert found.code == 1
    assert section(found)[:5] == [
        "compared with baseline.json",
        "  breaking",
        "    passed -> failed",
        "      in test_it.py::test_again",
        "    write 1,279 tokens > 1,100 (+179)",
    ]
    assert [line for line in found.out.splitlines() if line.startswith("::")] == [
        "::error file=project/test_it.py,line=13,title=test_it.py%3A%3Atest_again::write 1,279 tokens > 1,100 (+179)"
    ]


def test_a_budget_of_the_run_is_in_the_ledger_and_annotated(suite: Path) -> None:
    found = run(suite, "--agenttrace-budget", "tokens=5000", GITHUB_ACTIONS="true")
    assert found.code == 1
    assert [line for line in found.out.splitlines() if line.startswith("::")] == [
        "::error title=the whole run::run 9,202 tokens > 5,000 (+4,202)"
    ]


def test_a_baseline_over_its_own_budget_is_not_blamed_on_the_branch(suite: Path) -> None:
    (suite / "test_it.py").write_text(BUDGETS.format(limit=1000))
    assert run(suite, "--agenttrace-ledger", "baseline.json").code == 1
    found = run(suite, *BASELINE)
    assert found.code == 1
    assert section(found)[:4] == [
        "compared with baseline.json",
        "  informational",
        "    over budget before this change: write 1,067 tokens > 1,000 (+67)",
        "      1,067 of 1,000 before",
    ]


# Baselines as data


def test_a_baseline_has_no_times_and_keeps_what_was_skipped() -> None:
    old = ledger({"t::a": article(), "t::b": article((1, 1))}, versions={"mlflow": "3.9"})
    timed = dataclasses.replace(old, times=Times("2026-11-25", 1.0, {"t::a": 0.5}))
    assert new_baseline(None, timed) == old
    new = ledger({"t::a": article(outcome="skipped", calls=())}, versions={"mlflow": "3.10"})
    moved = new_baseline(old, new)
    assert moved.tests == {"t::a": article()}
    assert moved.versions == {"mlflow": "3.10"}
    part = new_baseline(old, ledger({"t::a": article((2, 2))}, part="-k", versions={"mlflow": "3.10"}))
    assert part.tests == {"t::a": article((2, 2)), "t::b": article((1, 1))}
    assert (part.versions, part.run.part, part.times.started) == ({"mlflow": "3.9"}, None, None)


def test_what_is_no_baseline() -> None:
    assert why_not(ledger()) == "no test has used the plugin"
    assert why_not(ledger(article(), broken=("b.py",))) == "files could not be collected: b.py"
    assert why_not(ledger(article(), stopped="interrupted")) == "the run was stopped (interrupted)"
    assert why_not(ledger(article())) is None


# In the pull request


SUMMARY = """\
# Before

### agenttrace: 2 tests, 9,202 tokens, `$0.012313`

| node | tests | calls | tokens | cost |
|---|--:|--:|--:|--:|
| `research` | 2 | 4 | 7,068 | `$0.0094728` |
| `write` | 2 | 2 | 2,134 | `$0.0028402` |
"""


def test_the_steps_summary_is_written_without_being_asked(suite: Path) -> None:
    file = suite / "summary.md"
    file.write_text("# Before\n")
    assert run(suite, "-n", "2", plugins=("xdist",), GITHUB_STEP_SUMMARY=str(file)).code == 0
    assert file.read_text() == SUMMARY


def test_the_summary_goes_where_github_looks_whatever_a_test_leaves(suite: Path) -> None:
    file = suite / "summary.md"
    edit(
        suite,
        "test_it.py",
        "def test_again(agent_trace):\n",
        "def test_again(agent_trace):\n    os.environ['GITHUB_STEP_SUMMARY'] = 'app.py'\n",
    )
    edit(suite, "test_it.py", "import pytest\n", "import os\n\nimport pytest\n")
    before = (suite / "app.py").read_text()
    assert run(suite, GITHUB_STEP_SUMMARY=str(file)).code == 0
    assert file.read_text() == "\n" + SUMMARY.partition("\n\n")[2]
    assert (suite / "app.py").read_text() == before


def test_the_steps_summary_has_old_and_new_per_node_and_per_month(suite: Path) -> None:
    run(suite, *UPDATE)
    dearer(suite)
    (suite / "pyproject.toml").write_text("[tool.agenttrace.traffic]\nruns_per_day = 14_000\n")
    file = suite / "summary.md"
    run(suite, *BASELINE, GITHUB_STEP_SUMMARY=str(file))
    text = file.read_text()
    assert "| `write` | `2,134 -> 2,558` | `+424 (+20%)` | `$0.0028402 -> $0.0029674` | `+$0.0001272 (+4.5%)` |" in text
    assert "- `write +212 tokens (mean of 2 tests) x 14,000 runs a day = +$26.71 a month`" in text


def test_a_summary_that_cannot_be_written_is_a_line_and_no_failure(suite: Path) -> None:
    ran = run(suite, GITHUB_STEP_SUMMARY=str(suite))
    assert (ran.code, section(ran)) == (0, [f"GITHUB_STEP_SUMMARY: {suite} cannot be written: Is a directory"])


def test_a_suite_without_the_plugins_fixtures_has_no_summary(bare: Path) -> None:
    (bare / "test_it.py").write_text("def test_it():\n    pass\n")
    assert run(bare, GITHUB_STEP_SUMMARY=str(bare / "summary.md")).code == 0
    assert not (bare / "summary.md").exists()


@pytest.mark.parametrize("family", ["xunit1", "xunit2"])
def test_junit_has_a_tests_numbers_as_properties(suite: Path, family: str) -> None:
    ran = run(
        suite, "-k", "again", "--junitxml=junit.xml", "-o", f"junit_family={family}", "-n", "1", plugins=("xdist",)
    )
    assert ran.code == 0
    (test,) = ElementTree.parse(suite / "junit.xml").iter("testcase")  # noqa: S314 - pytest's own
    assert {found.get("name"): found.get("value") for found in test.iter("property")} == {
        "agenttrace.tokens": "4601",
        "agenttrace.cost_usd": "0.0061565",
        "agenttrace.node.research.tokens": "3534",
        "agenttrace.node.research.cost_usd": "0.0047364",
        "agenttrace.node.write.tokens": "1067",
        "agenttrace.node.write.cost_usd": "0.0014201",
    }
