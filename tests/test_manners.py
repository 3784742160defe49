"""How the plugin behaves where it is configured, only looked at, or left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.projects import HEAVY, bare_fixture, cassette_fixture, environment, project_fixture, run_pytest, temporary

__all__ = ["bare_fixture", "cassette_fixture", "project_fixture"]


def told(folder: Path, table: str, line: str) -> tuple[int, str]:
    """The exit code, and the line of pytest's error."""
    (folder / "pytest.ini").unlink(missing_ok=True)
    (folder / "pyproject.toml").write_text(f"[{table}]\n{line}\n")
    ran = run_pytest(folder, "-q", env=environment())
    return ran.code, ran.err.strip().removeprefix("ERROR: ").replace(f"{folder}/", "")


def test_ini_keys_are_typed(bare: Path) -> None:
    (bare / "test_it.py").write_text("def test_it(): pass\n")
    (bare / "file").touch()
    classic = "tool.pytest.ini_options"
    assert told(bare, classic, 'agenttrace_max_age = "90"')[0] == 0
    assert told(bare, classic, "agenttrace_cassettes = \"'recorded'\"")[0] == 0
    expected = 'agenttrace_cassettes = "file"', "agenttrace_cassettes: file is a file: name the folder of the cassettes"
    assert told(bare, classic, expected[0]) == (4, expected[1])
    code, said = told(bare, classic, 'agenttrace_max_age = "soon"')
    assert (code, said.partition(": ")[0]) == (4, "agenttrace_max_age is no whole number of days")
    assert told(bare, classic, 'agenttrace_max_age = "-1"') == (
        4,
        "agenttrace_max_age: '-1' is no whole number of days",
    )
    code, said = told(bare, classic, 'agenttrace_prices = "none.yaml"')
    assert (code, said) == (4, "agenttrace_prices: none.yaml: no such file. Write it with: agenttrace prices lock")


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="pytest reads no TOML values before 9.0")
def test_ini_keys_of_pytests_own_table_are_typed(bare: Path) -> None:
    (bare / "test_it.py").write_text("def test_it(): pass\n")
    assert told(bare, "tool.pytest", "agenttrace_max_age = 90\nagenttrace_dummy_key = true")[0] == 0
    code, said = told(bare, "tool.pytest", "agenttrace_cassettes = 3")
    assert (code, said) == (4, "pyproject.toml: config option 'agenttrace_cassettes' expects a string, got int: 3")
    code, said = told(bare, "tool.pytest", 'agenttrace_max_age = "90"')
    assert code == 4
    assert said.startswith("agenttrace_max_age is no whole number of days: pyproject.toml: config option")


LOOKED_AT = f"""
import os
import sys

import pytest

BEFORE = dict(os.environ)
TRACED = sys.gettrace()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    heavy = sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r}))
    changed = sorted(name for name in BEFORE.keys() ^ os.environ.keys() if not name.startswith("PYTEST"))
    print("\\nleft:", heavy, changed, sys.gettrace() is TRACED, file=sys.stderr)
"""


def files(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n2")], ids=["alone", "xdist"])
def test_collecting_alone_has_no_effects(project: Path, tmp_path: Path, workers: tuple[str, ...]) -> None:
    """Nothing is imported that the tests do not import, nothing written, nobody asked."""
    (project / "conftest.py").write_text(LOOKED_AT)
    (project / "app.py").unlink()
    (project / "test_it.py").write_text("""
import pytest

@pytest.fixture(scope="session")
def mlflow_seed():
    return lambda: open("seeded", "w").close()

@pytest.mark.budget(cost="0.01")
@pytest.mark.agent_trace(cassette="new.yaml")
def test_it(agent_trace, mlflow_seed):
    open("ran", "w").close()
""")
    home = tmp_path / "home"
    home.mkdir()
    env = environment() | {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    before = files(project, home)
    args = ["--collect-only", "--agenttrace-record", "--agenttrace-ledger", "ledger.json", *workers]
    ran = run_pytest(project, "-p", "no:cacheprovider", *args, env=env)
    assert ran.code == 0, ran.out + ran.err
    assert "test_it" in ran.out
    assert files(project, home) == before
    assert "left: [] [] True" in ran.err
    assert not [path for path in files(temporary(project)) if path.is_file() and "agenttrace" in str(path)]


def test_left_out_it_is_not_there(bare: Path) -> None:
    """With -p no:agenttrace its fixtures, markers and options are unknown, and nothing of it is imported."""
    (bare / "conftest.py").write_text(
        "import sys\n\ndef pytest_unconfigure(config):\n"
        '    print("\\nimported:", sorted(name for name in sys.modules if name.startswith("pytest_agenttrace")))\n'
    )
    (bare / "test_it.py").write_text("def test_plain(): pass\n\ndef test_ours(agent_trace): pass\n")
    env = environment()
    del env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
    args = ["-p", "no:agenttrace", "-p", "no:langsmith", "-p", "no:asyncio", "-o", "filterwarnings="]
    ran = run_pytest(bare, *args, env=env, plugins=())
    assert ran.code == 1
    assert "fixture 'agent_trace' not found" in ran.out
    assert "1 passed, 1 error" in ran.out
    assert ran.out.endswith("imported: []\n")
    refused = run_pytest(bare, *args, "--agenttrace-record", env=env, plugins=())
    assert refused.code == 4
    assert "unrecognized arguments: --agenttrace-record" in refused.err
