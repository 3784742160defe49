"""The example workflows: what their steps run is run, in a clone, over commits that break a node and that cost more."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.projects import APP, ROOT, cassette_fixture, environment

__all__ = ["cassette_fixture"]

FOLDER = ROOT / "examples" / "continuous_integration"
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yml"))}
# They need GitHub, or a package registry: their syntax is checked, and no more.
NOT_RUN = ("Install", "Take main's ledger", "Post")
BASH = shutil.which("bash") or "bash"
GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")

TEST = """
from app import SAILS, app


def test_{name}(agent_trace):
    app.invoke(SAILS)
"""


def steps(workflow: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for job, told in WORKFLOWS[workflow]["jobs"].items():
        yield from ((job, step) for step in told["steps"])


RUN_STEPS = [(name, job, step["name"], step["run"]) for name in WORKFLOWS for job, step in steps(name) if "run" in step]


@pytest.mark.parametrize(("name", "script"), [(name, script) for _, _, name, script in RUN_STEPS])
def test_every_step_is_bash(name: str, script: str) -> None:
    checked = subprocess.run([BASH, "-n"], input=script, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, ""), name
    # What a pull request names never becomes a part of a command.
    assert "${{" not in script


def test_actions_are_pinned_by_major_version_and_permissions_are_few() -> None:
    used = {step["uses"] for name in WORKFLOWS for _, step in steps(name) if "uses" in step}
    assert {re.sub(r"@v\d+$", "", action) for action in used} == {
        "actions/checkout",
        "actions/setup-python",
        "actions/upload-artifact",
        "actions/download-artifact",
    }
    assert {name: workflow["permissions"] for name, workflow in WORKFLOWS.items()} == {
        "agenttrace": {"contents": "read", "actions": "read"},
        "agenttrace-comment": {"actions": "read", "pull-requests": "write"},
    }


def test_the_workflow_with_a_token_checks_nothing_out() -> None:
    assert "actions/checkout" not in str(WORKFLOWS["agenttrace-comment"]["jobs"])
    assert not [name for _, _, name, script in RUN_STEPS if name == "Compose" and "python" in script]


@dataclass
class Runner:
    """Runs the jobs of a workflow as GitHub would, artifacts being folders."""

    artifacts: Path
    summary: Path
    variables: Mapping[str, str]
    codes: dict[str, int] = field(default_factory=dict)
    out: dict[str, str] = field(default_factory=dict)

    def job(self, workflow: str, name: str, folder: Path, matrix: Mapping[str, object] | None = None) -> None:
        failed = False
        for step in (step for job, step in steps(workflow) if job == name):
            if failed and "cancelled()" not in step.get("if", ""):
                continue
            if "run" in step and step["name"] not in NOT_RUN:
                failed = self._run(step, folder, matrix or {}) != 0 or failed
            elif "artifact" in step.get("uses", ""):
                self._artifact(step, folder, matrix or {})

    def _run(self, step: Mapping[str, Any], folder: Path, matrix: Mapping[str, object]) -> int:
        own = {name: _filled(value, matrix) for name, value in step.get("env", {}).items()}
        variables = {**self.variables, **own, "GITHUB_STEP_SUMMARY": str(self.summary)}
        command = [BASH, "--noprofile", "--norc", "-e", "-c", step["run"]]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        self.codes[step["name"]], self.out[step["name"]] = done.returncode, done.stdout + done.stderr
        return done.returncode

    def _artifact(self, step: Mapping[str, Any], folder: Path, matrix: Mapping[str, object]) -> None:
        given = {name: _filled(value, matrix) for name, value in step["with"].items()}
        path = folder / given["path"]
        if "upload" in step["uses"]:
            shutil.copytree(path, self.artifacts / given["name"], dirs_exist_ok=True)
            return
        wanted = given.get("pattern", given.get("name", ""))
        for kept in sorted(self.artifacts.iterdir()):
            if fnmatch(kept.name, wanted):
                shutil.copytree(kept, path, dirs_exist_ok=True)


def _filled(value: object, matrix: Mapping[str, object]) -> str:
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found: str(matrix[found[1]]), str(value))


def git(folder: Path, *arguments: str) -> None:
    subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder: Path, branch: str, changes: Mapping[str, tuple[str, str]]) -> None:
    """A branch off main, with texts of files replaced."""
    git(folder, "checkout", "-q", "-b", branch, "main")
    for name, (old, new) in changes.items():
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    git(folder, "commit", "-qam", branch)
    git(folder, "checkout", "-q", "main")


@pytest.fixture(name="origin", scope="module")
def origin_fixture(tmp_path_factory: pytest.TempPathFactory, cassette: str) -> Path:
    """A project in git: main, a branch that loses a node, and one whose prompt has become longer."""
    folder = tmp_path_factory.mktemp("origin")
    git(folder, "init", "-q")
    (folder / "app.py").write_text(APP)
    (folder / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = ["-p", "pytest_agenttrace.plugin"]\n'
        '[[tool.agenttrace.traffic.tests]]\nmatch = "tests/test_essay.py::*"\nruns_per_day = 14_000\n'
    )
    (folder / "tests").mkdir()
    for name in ("article", "essay"):
        (folder / "tests" / f"test_{name}.py").write_text(TEST.format(name=name))
        path = folder / "cassettes" / "tests" / f"test_{name}" / f"test_{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(cassette)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "main")
    write, edge = 'graph.add_node("write", write)', 'graph.add_edge("write", "check")'
    check = f'graph.add_node("check", lambda state: {{}})\n    {edge}'
    commit(folder, "breaks", {"app.py": (write, f"{write}\n    {check}")})
    longer = "promptTokenCount: 567\n          candidatesTokenCount: 500\n          totalTokenCount: 1067"
    recorded = "cassettes/tests/test_essay/test_essay.yaml"
    commit(folder, "dearer", {recorded: (longer, longer.replace("567", "779").replace("1067", "1279"))})
    return folder


@pytest.fixture(name="main", scope="module")
def main_fixture(origin: Path, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """What main's own run leaves: a ledger."""
    return of_branch(origin, "main", tmp_path_factory.mktemp("main"), None)


def of_branch(origin: Path, branch: str, folder: Path, main: Runner | None) -> Runner:
    variables = environment() | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    runner = Runner(folder / "artifacts", folder / "summary.md", variables)
    runner.artifacts.mkdir()
    for shard in WORKFLOWS["agenttrace"]["jobs"]["test"]["strategy"]["matrix"]["shard"]:
        clone = folder / f"shard-{shard}"
        git(folder, "clone", "-q", "-b", branch, str(origin), str(clone))
        runner.job("agenttrace", "test", clone, {"shard": shard})
        assert runner.codes["Test"] == 0, runner.out["Test"]
    clone = folder / "gate"
    git(folder, "clone", "-q", "-b", branch, str(origin), str(clone))
    if main is not None:
        shutil.copytree(main.artifacts / "ledger", clone / "main")
    runner.job("agenttrace", "gate", clone)
    return runner


def test_mains_first_run_has_nothing_to_compare_with(main: Runner) -> None:
    assert main.codes == {"Test": 0, "Merge": 0, "Gate": 0}
    assert main.out["Merge"] == "ledger/ledger.json: 2 tests of 2 ledgers\n"
    assert main.summary.read_text().endswith(
        "\n### agenttrace: main has no ledger yet, so there is nothing to compare with\n"
    )


def test_a_commit_that_breaks_a_node_fails_and_is_told_in_the_comment(
    origin: Path, main: Runner, tmp_path: Path
) -> None:
    found = of_branch(origin, "breaks", tmp_path, main)
    assert (found.codes["Gate"], found.out["Gate"]) == (1, "1 breaking: fails on breaking\n")
    assert (found.artifacts / "comment" / "comment.md").read_text() == BROKEN


BROKEN = """\
### agenttrace: 1 breaking: fails on breaking

2 tests compared.

| node | tokens | | cost | |
|---|--:|--:|--:|--:|
| `research` | `7,068` |  | `$0.0094728` |  |
| `write` | `2,134` |  | `$0.0028402` |  |
| `check` | `(did not run) -> 0` |  | `(did not run) -> $0` |  |
| **all tests compared** | `9,202` |  | `$0.012313` |  |

**breaking**

- `node 'check' appeared` in 2 tests: `tests/test_article.py::test_article`, `tests/test_essay.py::test_essay`
"""


def test_a_commit_that_costs_more_fails_with_what_a_month_costs(origin: Path, main: Runner, tmp_path: Path) -> None:
    found = of_branch(origin, "dearer", tmp_path, main)
    assert (found.codes["Gate"], found.out["Gate"]) == (1, "1 cost: fails on cost\n")
    text = (found.artifacts / "comment" / "comment.md").read_text()
    assert text == DEARER
    assert found.summary.read_text().endswith(f"\n{text}")
    posted = tmp_path / "posted"
    shutil.copytree(found.artifacts / "comment", posted / "comment")
    found.job("agenttrace-comment", "comment", posted)
    assert (posted / "body.md").read_text() == f"<!-- agenttrace -->\n{text}"


DEARER = """\
### agenttrace: 1 cost: fails on cost

2 tests compared.

| node | tokens | | cost | |
|---|--:|--:|--:|--:|
| `write` | `2,134 -> 2,346` | `+212 (+9.9%)` | `$0.0028402 -> $0.0029038` | `+$0.0000636 (+2.2%)` |
| `research` | `7,068` |  | `$0.0094728` |  |
| **all tests compared** | `9,202 -> 9,414` | `+212 (+2.3%)` | `$0.012313 -> $0.0123766` | `+$0.0000636 (+0.5%)` |

- `write +212 tokens x 14,000 runs a day = +$26.71 a month`

A month is 30 days, at the runs a day that `[tool.agenttrace.traffic]` names.

**cost**

- `write 1,067 -> 1,279 tokens (+212, +20%), +$0.0000636 (+4.5%)` in `tests/test_essay.py::test_essay`
  - `input 567 -> 779`
"""


def test_the_same_commit_again_is_green(origin: Path, main: Runner, tmp_path: Path) -> None:
    found = of_branch(origin, "main", tmp_path, main)
    assert (found.codes["Gate"], found.out["Gate"]) == (0, "no differences\n")
