"""Ledgers that whole pytest runs write: complete however a run ends, and equal between two runs."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace.ledger import read_ledger, write_ledger
from tests.ledgers import article, ledger
from tests.projects import Session, cassette_fixture, environment, project_fixture, run_pytest, temporary

__all__ = ["cassette_fixture", "project_fixture"]

TESTS = """
import pytest

from app import SAILS, app

sails = pytest.mark.agent_trace(cassette="app.yaml")


@sails
def test_passes(agent_trace):
    app.invoke(SAILS)


@sails
def test_fails(agent_trace):
    app.invoke(SAILS)
    assert agent_trace.tokens == 1, "not one"


@sails
def test_misses(agent_trace):
    app.invoke({"topic": "light"})


@pytest.mark.agent_trace(cassette="own.yaml", warn=["unused"])
def test_warned(agent_trace):
    app.nodes["write"].bound.invoke(SAILS)


@pytest.mark.skip
def test_skipped(agent_trace):
    pass


@pytest.mark.xfail
@sails
def test_xfails(agent_trace):
    app.invoke(SAILS)
    raise ValueError


@pytest.fixture
def broken():
    raise ValueError


def test_of_a_broken_fixture(broken, agent_trace):
    pass


def test_that_uses_nothing():
    pass


@pytest.fixture(scope="module")
def article(agent_run):
    with agent_run("app.yaml") as trace:
        app.invoke(SAILS)
    return trace


def test_reads(article):
    assert article.tokens == 4601
"""


def project_of(folder: Path, source: str = TESTS) -> Path:
    # A suite that runs in the background may be deaf to Ctrl-C, and its children with it.
    deaf = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    (folder / "conftest.py").write_text(deaf)
    (folder / "test_it.py").write_text(source)
    shutil.copy(folder / "app.yaml", folder / "own.yaml")
    return folder


def written(ran: Session, name: str = "ledger.json") -> dict[str, Any]:
    """The ledger, without its times; it is valid."""
    path = ran.folder / name
    read_ledger(path)
    data: dict[str, Any] = json.loads(path.read_text())
    del data["times"]
    return data


def without_times(path: Path) -> str:
    """The text itself: equal means byte for byte."""
    text, cut = re.subn(r',\n "times": \{.*\Z', "", path.read_text(), flags=re.DOTALL)
    assert cut == 1
    return text


OUTCOMES = {
    "test_it.py::article": "run",
    "test_it.py::test_fails": "failed",
    "test_it.py::test_misses": "failed",
    "test_it.py::test_of_a_broken_fixture": "error",
    "test_it.py::test_passes": "passed",
    "test_it.py::test_reads": "passed",
    "test_it.py::test_skipped": "skipped",
    "test_it.py::test_warned": "passed",
    "test_it.py::test_xfails": "xfailed",
}


def test_every_way_a_test_can_end_and_byte_equal_whoever_runs_it(project: Path) -> None:
    project_of(project)
    (project / "ledger.json").write_text('{"format": 1, "versions": {}, "of": "an earlier run"}')
    first = run_pytest(project, "--agenttrace-ledger", "ledger.json", env=environment())
    data = written(first)
    assert {test: facts["outcome"] for test, facts in data["tests"].items()} == OUTCOMES
    empty: dict[str, list[str]] = {
        key: [] for key in ("whole", "deselected", "not_run", "broken", "budgets", "findings")
    }
    assert data["run"] == {"stopped": None, "part": None, **empty}
    passed = data["tests"]["test_it.py::test_passes"]
    assert (passed["cassette"], passed["tokens"], passed["cost"]) == ("app.yaml", 4601, "0.0061565")
    assert passed["nodes"]["research"]["tool_calls"] == 1
    assert [call["node"] for call in passed["calls"]] == ["research", "research", "write"]
    assert [line for line in passed["calls"][0]["billed"] if line["count"]] == [
        {"rate": "input", "count": 150, "usd": "0.3"},
        {"rate": "output", "count": 1171, "usd": "2.5"},
    ]
    assert data["tests"]["test_it.py::article"] == passed | {"outcome": "run"}
    assert data["tests"]["test_it.py::test_reads"]["tokens"] is None
    assert data["tests"]["test_it.py::test_misses"]["findings"] == [
        {
            "kind": "missing",
            "node": "research",
            "text": "research, call 1: no recorded reply",
            "judged": "failed",
        }
    ]
    warned = data["tests"]["test_it.py::test_warned"]
    assert {(found["kind"], found["judged"]) for found in warned["findings"]} == {("unused", "warned")}
    assert data["versions"].keys() >= {"python", "mlflow", "langgraph", "google-genai", "pytest-agenttrace"}
    for name, args in (("again.json", ()), ("xdist.json", ("-p", "xdist", "-n2"))):
        ran = run_pytest(project, *args, "--agenttrace-ledger", name, env=environment())
        assert ran.code == 1
        assert without_times(project / name) == without_times(project / "ledger.json"), name
    times = json.loads((project / "xdist.json").read_text())["times"]
    assert times["tests"].keys() == OUTCOMES.keys() - {"test_it.py::article"}
    assert times["tests"]["test_it.py::test_passes"] > 0


MANY = """
import os
import signal
import time

import pytest

from app import SAILS, app

pytestmark = pytest.mark.agent_trace(cassette="app.yaml")


def test_a(agent_trace):
    app.invoke(SAILS)


def test_b(agent_trace):
    app.invoke(SAILS)
    {ends}


def test_c(agent_trace):
    app.invoke(SAILS)
"""


@pytest.mark.parametrize(
    ("ends", "args", "stopped", "outcomes"),
    [
        ("assert 0", ["-x"], "stopping after 1 failures", {"a": "passed", "b": "failed"}),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(5)", [], "interrupted", {"a": "passed"}),
        ("pytest.exit('enough')", [], "pytest.exit: enough", {"a": "passed"}),
        ("pytest.exit('enough', returncode=0)", [], "pytest.exit: enough", {"a": "passed"}),
        ("os._exit(3)", ["-p", "xdist", "-n1"], "a worker of xdist crashed", {"a": "passed", "c": "passed"}),
    ],
    ids=["-x", "Ctrl-C", "exit", "exit 0", "crash"],
)
def test_a_run_that_ends_early(
    project: Path, ends: str, args: list[str], stopped: str, outcomes: dict[str, str]
) -> None:
    project_of(project, MANY.replace("{ends}", ends))
    ran = run_pytest(project, *args, "--agenttrace-ledger", "ledger.json", env=environment())
    assert (ran.code == 0) == ("returncode=0" in ends)
    data = written(ran)
    assert {name[-1]: facts["outcome"] for name, facts in data["tests"].items()} == outcomes
    assert data["run"]["stopped"] == stopped
    not_run = {"a", "b", "c"} - outcomes.keys()
    assert data["run"]["not_run"] == [f"test_it.py::test_{name}" for name in sorted(not_run)]
    assert data["run"]["part"] is None


@pytest.mark.parametrize(
    "looking",
    ["--help", "--version", "--markers", "--fixtures", "--fixtures-per-test", "--collect-only", "--setup-plan"],
)
def test_who_only_looks_loses_no_ledger(project: Path, looking: str) -> None:
    project_of(project, MANY.replace("{ends}", ""))
    write_ledger(project / "ledger.json", ledger(article()))
    write_ledger(project / "baseline.json", ledger(article()))
    before = [(project / name).read_bytes() for name in ("ledger.json", "baseline.json")]
    options = ("--agenttrace-ledger=ledger.json", "--agenttrace-baseline=baseline.json", "--agenttrace-update-baseline")
    run_pytest(project, looking, *options, env=environment())
    assert [(project / name).read_bytes() for name in ("ledger.json", "baseline.json")] == before


def test_ctrl_c_under_xdist(project: Path) -> None:
    source = MANY.replace("{ends}", "open('b', 'w').close(); time.sleep(60)")
    project_of(project, source)
    command = [sys.executable, "-m", "pytest", "-p", "pytest_agenttrace.plugin", "-p", "xdist", "-n1"]
    command += [f"--basetemp={temporary(project)}", "--agenttrace-ledger", "ledger.json"]
    run = subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.PIPE, text=True)
    for _ in range(600):
        if (project / "b").exists():
            break
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=120)
    data = written(Session(run.returncode, out, "", project))
    assert {name[-1]: facts["outcome"] for name, facts in data["tests"].items()} == {"a": "passed"}
    assert (data["run"]["stopped"], data["run"]["not_run"]) == (
        "interrupted",
        ["test_it.py::test_b", "test_it.py::test_c"],
    )


def test_parts_of_a_suite_reruns_groups_and_files_that_cannot_be_read(project: Path) -> None:
    project_of(
        project,
        """
import pytest
from app import SAILS, app

pytestmark = pytest.mark.agent_trace(cassette="app.yaml")
ran = []

@pytest.mark.flaky(reruns=2)
def test_flaky(agent_trace):
    app.invoke(SAILS)
    ran.append(1)
    assert len(ran) == 2

@pytest.mark.xdist_group("g")
@pytest.mark.parametrize("value", ["a@b"])
def test_grouped(agent_trace, value):
    app.invoke(SAILS)
""",
    )
    plugins = ("xdist", "rerunfailures", "pytest_agenttrace.plugin")
    ran = run_pytest(project, "--agenttrace-ledger", "one.json", env=environment(), plugins=plugins)
    assert ran.code == 0, ran.out
    names = {"test_it.py::test_flaky": "passed", "test_it.py::test_grouped[a@b]": "passed"}
    assert {test: facts["outcome"] for test, facts in written(ran, "one.json")["tests"].items()} == names
    args = ["-n2", "--dist", "loadgroup", "--agenttrace-ledger", "two.json"]
    ran = run_pytest(project, *args, env=environment(), plugins=plugins)
    assert ran.code == 0, ran.out
    assert without_times(project / "two.json") == without_times(project / "one.json")
    (project / "test_broken.py").write_text("raise ValueError\n")
    ran = run_pytest(project, "--agenttrace-ledger", "three.json", env=environment(), plugins=plugins)
    found = written(ran, "three.json")
    assert (found["run"]["broken"], found["tests"]) == (["test_broken.py"], {})
    assert found["run"]["not_run"] == sorted(names)
    args = ["-k", "grouped", "test_it.py", "--agenttrace-ledger", "four.json"]
    found = written(run_pytest(project, *args, env=environment(), plugins=plugins), "four.json")
    assert found["run"]["part"] == "tests were deselected"
    assert found["tests"].keys() == {"test_it.py::test_grouped[a@b]"}


def test_a_ledger_that_cannot_be_written_is_told(project: Path) -> None:
    project_of(project, MANY.replace("{ends}", "pass"))
    (project / "file").touch()
    ran = run_pytest(project, "-q", "--agenttrace-ledger", "file/ledger.json", env=environment())
    assert ran.code == 1
    assert f"{project}/file/ledger.json: the ledger cannot be written: " in ran.out
    ran = run_pytest(project, "--agenttrace-ledger", ".", env=environment())
    assert ran.code == 4
    assert ran.err.strip() == "ERROR: --agenttrace-ledger: '.' is no file to write: name one, such as ledger.json"
    before = (project / "test_it.py").read_text()
    ran = run_pytest(project, "--agenttrace-ledger", "test_it.py", env=environment())
    assert (ran.code, (project / "test_it.py").read_text()) == (4, before)
    assert ran.err.strip() == (
        "ERROR: --agenttrace-ledger: test_it.py is there already and is no ledger: name another file"
    )
    (project / "old.json").write_text('{"format": 1, "versions": {}}')
    ran = run_pytest(project, "--collect-only", "--agenttrace-ledger", "old.json", env=environment())
    assert (ran.code, (project / "old.json").read_text()) == (0, '{"format": 1, "versions": {}}')
    one = ["--agenttrace-ledger", "./old.json", "--agenttrace-baseline", "old.json"]
    ran = run_pytest(project, *one, env=environment())
    assert (ran.code, (project / "old.json").read_text()) == (4, '{"format": 1, "versions": {}}')
    assert ran.err.strip() == (
        "ERROR: --agenttrace-ledger and --agenttrace-baseline name one file, ./old.json: give each its own"
    )


def test_replies_that_none_of_several_tests_asked_for(project: Path) -> None:
    source = MANY.replace("{ends}", "pass").replace("app.invoke(SAILS)", "app.nodes['research'].bound.invoke(SAILS)")
    project_of(project, source)
    ran = run_pytest(project, "--agenttrace-ledger", "ledger.json", env=environment())
    assert ran.code == 1
    text = "app.yaml: 1 recorded reply was never asked for by its 3 tests [unused]"
    assert text in ran.out
    data = written(ran)
    assert data["run"]["findings"] == [{"kind": "unused", "node": None, "text": text, "judged": "failed"}]
    assert {facts["outcome"] for facts in data["tests"].values()} == {"passed"}


def test_the_ledgers_of_shards_are_that_of_the_whole_suite(project: Path) -> None:
    project_of(project)
    own = ["test_passes", "test_fails", "test_misses"]
    for number, names in enumerate((" or ".join(own), f"not ({' or '.join(own)})"), 1):
        args = ["-k", names, "--agenttrace-ledger", f"shard-{number}.json"]
        assert run_pytest(project, *args, env=environment()).code == 1
    run_pytest(project, "--agenttrace-ledger", "whole.json", env=environment())

    def merged(*ledgers: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest_agenttrace.cli", "report", "merge", "-o", "merged.json", *ledgers]
        return subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, check=False)

    done = merged("shard-1.json", "shard-2.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, "merged.json: 9 tests of 2 ledgers\n", "")
    whole = json.loads(without_times(project / "whole.json") + "}")
    # A shard is a part of the suite: what its cassettes hold may be for tests of another one.
    assert whole["tests"]["test_it.py::test_warned"]["findings"].pop()["kind"] == "unused"
    whole["tests"]["test_it.py::test_warned"]["findings"].clear()
    assert json.loads(without_times(project / "merged.json") + "}") == whole
    for number in (1, 2):
        shard = json.loads((project / f"shard-{number}.json").read_text())
        shard["run"]["budgets"] = [{"node": None, "metric": "tokens", "limit": 5000, "used": 0}]
        (project / f"over-{number}.json").write_text(json.dumps(shard))
    done = merged("over-1.json", "over-2.json")
    assert done.returncode == 1
    assert re.fullmatch(r"whole run [\d,]+ tokens > 5,000 \(\+[\d,]+\)\n", done.stderr)
    shard["tests"]["test_it.py::test_of_unknown_use"] = {**whole["tests"]["test_it.py::test_passes"], "tokens": None}
    (project / "over-2.json").write_text(json.dumps(shard))
    done = merged("over-1.json", "over-2.json")
    assert (done.returncode, done.stderr) == (1, "whole run tokens > 5,000? unknown\n")
    assert merged("merged.json", "shard-1.json").stderr.endswith(
        "Error: --output merged.json: is one of the shards: name another file\n"
    )
    assert merged("shard-1.json", str(project / "shard-1.json")).stderr.endswith("Error: a ledger is named twice\n")
    done = merged("shard-1.json", "shard-3.json")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "Error: shard-3.json: no such ledger: write one with pytest --agenttrace-ledger shard-3.json"
    )


SESSION_RUN = """
import pytest
from app import SAILS, app

@pytest.fixture(scope="session")
def article(agent_run):
    with agent_run("app.yaml") as trace:
        app.invoke(SAILS)
    return trace
"""


def test_a_run_of_the_whole_session_has_one_name_whoever_asks_first(project: Path) -> None:
    project_of(project, "def test_it(article):\n    assert article.tokens == 4601\n")
    shutil.copy(project / "test_it.py", project / "test_more.py")
    (project / "conftest.py").write_text(SESSION_RUN)
    for name, args in (("one", ()), ("two", ("-p", "xdist", "-n2")), ("last", ("test_more.py", "test_it.py"))):
        ran = run_pytest(project, *args, "--agenttrace-ledger", name, env=environment())
        assert ran.code == 0, ran.out
        assert "traced: 4,601 tokens, $0.0061565 in 1 trace\n" in ran.out
    one = written(ran, "one")
    assert list(one["tests"]) == ["article", "test_it.py::test_it", "test_more.py::test_it"]
    assert (one["tests"]["article"]["outcome"], one["tests"]["article"]["tokens"]) == ("run", 4601)
    assert without_times(project / "two") == without_times(project / "one")
    assert written(ran, "last")["tests"] == one["tests"]
