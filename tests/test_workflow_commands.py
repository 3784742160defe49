"""`agenttrace validate`, run as users run it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pytest_agenttrace.cli import main
from tests.workflows import VALID, changed


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(VALID)
    (tmp_path / "old.yaml").write_text(f"{VALID}  observability: {{mlflow: {{tracking_uri: 'file://./mlruns'}}}}\n")
    (tmp_path / "bad.yaml").write_text(changed(("depth: {type: int", "depth: {type: itn"), ("{query}", "{qurey}")))
    return tmp_path


def ran(*arguments: str) -> Result:
    done = CliRunner().invoke(main, ["validate", *arguments], prog_name="agenttrace")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


@pytest.mark.usefixtures("folder")
def test_a_valid_file_is_said_to_be() -> None:
    done = ran("good.yaml")
    assert (done.exit_code, done.output) == (0, "good.yaml: valid: 2 nodes, 3 edges, 6 state fields\n")


@pytest.mark.usefixtures("folder")
def test_what_is_worth_knowing_of_a_valid_file_is_said() -> None:
    done = ran("old.yaml")
    assert (done.exit_code, done.output) == (
        0,
        "old.yaml: valid: 2 nodes, 3 edges, 6 state fields\n"
        "old.yaml:44:42: config.observability.mlflow.tracking_uri: a store of files is deprecated, and MLflow 3.13 and "
        'newer refuse it without MLFLOW_ALLOW_FILE_STORE=true; in its place: tracking_uri: "sqlite:///mlflow.db"\n',
    )


@pytest.mark.usefixtures("folder")
def test_all_that_is_wrong_with_all_files_is_said() -> None:
    done = ran("bad.yaml", "good.yaml", "none.yaml")
    assert done.exit_code == 1
    assert done.stdout == "good.yaml: valid: 2 nodes, 3 edges, 6 state fields\n"
    assert done.stderr.splitlines() == [
        "bad.yaml:8:19: state.fields.depth.type: 'itn' is no type; did you mean int?",
        "bad.yaml:30:22: nodes.write.prompt: {qurey}: neither an input of the node nor a field of the state; "
        "did you mean {query}?",
        "none.yaml: no such file",
    ]


def test_a_wrong_use_has_an_exit_code_of_its_own() -> None:
    done = ran()
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == "Error: Missing argument 'FILE...'."


def test_the_command_says_what_it_does() -> None:
    assert "0 where all are valid, 1 where one is not" in " ".join(ran("--help").output.split())
