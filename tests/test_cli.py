"""The command `agenttrace`, run as users run it, on the examples' recordings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from pytest_agenttrace.cli import main
from pytest_agenttrace.inifile import ConfigurationError, find_project

ROOT = Path(__file__).parent.parent
ARTICLE = ROOT / "examples" / "two_nodes" / "article.yaml"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one recording, made on 2026-11-23."""
    (tmp_path / "cassettes").mkdir()
    shutil.copy(ARTICLE, tmp_path / "cassettes" / "article.yaml")
    (tmp_path / "cassettes" / "article.partial.yaml").write_text("not yet a cassette")
    (tmp_path / "pytest.ini").write_text("[pytest]\nagenttrace_prices = pinned/prices.yaml\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments, prog_name="agenttrace")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


LOCKED = """\
    - source: genai-prices VERSION
      from: 2026-10-14
      input: 0.30
      cached_input: 0.03
      output: 2.50
      input_audio: 1.00
      cached_audio: 0.10
      grounded_requests: 35.00
      batch:
        input: 0.15
        output: 1.25
        input_audio: 0.50
"""


def test_lock_writes_the_file_that_the_configuration_names(folder: Path) -> None:
    assert ran("prices", "lock") == (0, "pinned/prices.yaml: 1 model, 1 added\n")
    text = (folder / "pinned" / "prices.yaml").read_text()
    assert text.endswith(
        "format: 1\nmodels:\n  gemini-2.5-flash:\n" + LOCKED.replace("VERSION", version("genai-prices"))
    )
    assert ran("prices", "lock") == (0, "pinned/prices.yaml: 1 model, nothing added\n")
    assert (folder / "pinned" / "prices.yaml").read_text() == text


def test_lock_says_how_its_file_takes_effect_and_what_it_could_not_pin(folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\n")
    cassette = folder / "cassettes" / "article.yaml"
    cassette.write_text(cassette.read_text().replace("gemini-2.5-flash", "gemini-99"))
    assert ran("prices", "lock", "cassettes/article.yaml", str(ARTICLE), "--file", "here.yaml") == (
        0,
        "here.yaml: 1 model, 1 added\n"
        "no price to pin for gemini-99\n"
        'It holds once pytest\'s configuration says: agenttrace_prices = "here.yaml"\n',
    )


def test_compare_with_another_model(folder: Path) -> None:
    # 14 x 0.10 + 907 x 0.40, and 241 x 0.10 + 826 x 0.40
    (folder / "pytest.ini").write_text("[pytest]\n")
    assert ran("prices", "compare", "--model", "gemini-2.5-flash-lite") == (
        0,
        """\
node      model                                      calls  tokens    recorded        then   difference
research  gemini-2.5-flash as gemini-2.5-flash-lite      1     921  $0.0022717  $0.0003642  -$0.0019075
write     gemini-2.5-flash as gemini-2.5-flash-lite      1   1,067  $0.0021373  $0.0003545  -$0.0017828
total                                                    2   1,988   $0.004409  $0.0007187  -$0.0036903
""",
    )


def test_compare_with_another_day_and_one_model_as_json(folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\n")
    pair = "gemini-2.5-flash=gemini-3.8-flash"
    code, out = ran("prices", "compare", "--model", pair, "--date", "2027-01-01", "--json")
    # 14 x 1.50 + 907 x 7.50 = 21 + 6,802.5, and 241 x 1.50 + 826 x 7.50 = 361.5 + 6,195
    facts = {"model": "gemini-2.5-flash", "as": "gemini-3.8-flash", "calls": 1}
    assert (code, json.loads(out)) == (
        0,
        {
            "rows": [
                {
                    "node": "research",
                    **facts,
                    "tokens": 921,
                    "before": "0.0022717",
                    "after": "0.0068235",
                    "difference": "0.0045518",
                },
                {
                    "node": "write",
                    **facts,
                    "tokens": 1067,
                    "before": "0.0021373",
                    "after": "0.0065565",
                    "difference": "0.0044192",
                },
            ],
            "total": {
                "calls": 2,
                "tokens": 1988,
                "before": "0.0044090",
                "after": "0.0133800",
                "difference": "0.0089710",
            },
            "unknown": [],
        },
    )


def test_compare_says_what_is_unknown_and_why(folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\n")
    code, out = ran("prices", "compare", "--model", "gemini-2.5-flahs")
    lines = out.splitlines()
    assert (code, lines[:5]) == (
        0,
        [
            "node      model                                 calls  tokens    recorded  then  difference",
            "research  gemini-2.5-flash as gemini-2.5-flahs      1     921  $0.0022717     -           -",
            "write     gemini-2.5-flash as gemini-2.5-flahs      1   1,067  $0.0021373     -           -",
            "total                                               2   1,988   $0.004409     -           -",
            "research: no price is known for 'gemini-2.5-flahs'; "
            "did you mean 'gemini-2.5-flash' or 'gemini-3.5-flash'?",
        ],
    )


def test_compare_leaves_open_what_nobody_reported(folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\n")
    cassette = folder / "cassettes" / "article.yaml"
    head, usage, tail = cassette.read_text().rpartition("usageMetadata:")
    cassette.write_text(head + usage.replace("usage", "noUsage") + tail)
    code, out = ran("prices", "compare", "--date", "2026-11-24")
    assert (code, out.splitlines()) == (
        0,
        [
            "node      model             calls  tokens    recorded        then  difference",
            "research  gemini-2.5-flash      1     921  $0.0022717  $0.0022717          $0",
            "write     gemini-2.5-flash      1       -           -           -           -",
            "total                           2       -           -           -           -",
            "write: gemini-2.5-flash reported no usage",
        ],
    )


def test_compare_reads_the_projects_own_prices(folder: Path) -> None:
    (folder / "pinned").mkdir()
    (folder / "pinned" / "prices.yaml").write_text(
        "format: 1\nmodels:\n  gemini-2.5-flash:\n    - input: 1\n      output: 1\n"
    )
    code, out = ran("prices", "compare", "--date", "2026-11-24")
    assert (code, out.splitlines()[-1]) == (
        0,
        "total                           2   1,988  $0.001988  $0.001988          $0",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lock", "nowhere"), "Invalid value for '[CASSETTES]...': Path 'nowhere' does not exist."),
        (("lock", "empty"), "no cassettes in empty"),
        (("lock", "broken.yaml"), "broken.yaml:2:1: not a YAML cassette: "),
        (("compare",), "pinned/prices.yaml: no such file. Write it with: agenttrace prices lock"),
        (("compare", "--date", "tomorrow"), 'date=\'tomorrow\' is no day: write "2026-01-31" or "today"'),
        (
            ("compare", "--model", "gemini-9=gemini-2.5-flash"),
            "no call to the model 'gemini-9'. There are calls to: gemini-2.5-flash",
        ),
        (("compare", "--model", "a", "--model", "b=c"), "--model: give one model for all, or OLD=NEW for each"),
        (("compare", "--model", "a="), "--model: give one model for all, or OLD=NEW for each"),
        (("burn",), "No such command 'burn'."),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    (folder / "empty").mkdir()
    (folder / "broken.yaml").write_text("[")
    code, out = ran("prices", *arguments)
    assert code == 2
    assert out.splitlines()[-1].startswith(f"Error: {said}")


def test_a_folder_without_cassettes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out = ran("prices", "lock")
    assert (code, out.splitlines()[-1]) == (
        2,
        "Error: no folder cassettes: name the cassettes, or run this in the project's folder",
    )


def test_the_installed_command_imports_nothing_heavy() -> None:
    source = """
import sys
from pytest_agenttrace.cli import main
print([name for name in ("mlflow", "vcr", "genai_prices", "langchain_core", "pytest", "yaml") if name in sys.modules])
try:
    main(["--version"], prog_name="agenttrace")
except SystemExit as end:
    print(end.code)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "agenttrace, version 0.1.0", "0"]


# What pytest's configuration says


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pytest.ini", "[pytest]\nagenttrace_prices = a.yaml\n"),
        (".pytest.ini", "[pytest]\nagenttrace_prices = a.yaml\n"),
        ("pyproject.toml", '[tool.pytest.ini_options]\nagenttrace_prices = "a.yaml"\n'),
        ("pyproject.toml", '[tool.pytest]\nagenttrace_prices = "a.yaml"\n'),
        ("tox.ini", "[pytest]\nagenttrace_prices = a.yaml\n"),
        ("setup.cfg", "[tool:pytest]\nagenttrace_prices = a.yaml\n"),
    ],
)
def test_the_configuration_is_found_here_or_above(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    inner = tmp_path / "src" / "deep"
    inner.mkdir(parents=True)
    (tmp_path / "src" / "pyproject.toml").write_text("[tool.ruff]\n")
    found = find_project(inner)
    assert (found.root, found.get("agenttrace_prices", "none")) == (tmp_path, "a.yaml")
    assert found.get("agenttrace_cassettes", "cassettes") == "cassettes"


def test_an_empty_pytest_ini_is_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("")
    (tmp_path / "tox.ini").write_text("[pytest]\nagenttrace_prices = a.yaml\n")
    assert find_project(tmp_path).get("agenttrace_prices", "none") == "none"


@pytest.mark.parametrize(("name", "text"), [("pyproject.toml", "tool = ["), ("tox.ini", "nothing")])
def test_a_configuration_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        find_project(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    monkeypatch.chdir(tmp_path)
    code, out = ran("prices", "lock")
    assert (code, out.splitlines()[-1]) == (2, f"Error: {caught.value}")


def test_a_model_is_replaced_once_and_by_one_that_has_a_price(folder: Path) -> None:
    (folder / "pytest.ini").write_text("[pytest]\n")
    code, said = ran("prices", "compare", "--model", "gemini-2.5-flash=a", "--model", "gemini-2.5-flash=b")
    assert (code, said.splitlines()[-1]) == (2, "Error: --model: gemini-2.5-flash is replaced twice")
    code, said = ran("prices", "compare", "--model", "gemini-99")
    assert code == 0
    # A line for each node, the lines to add once.
    assert said.count("no price is known for 'gemini-99'") == 2
    assert said.count("gemini-99:\n") == 1


def test_it_runs_as_a_module(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest_agenttrace.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"agenttrace, version {version('pytest-agenttrace')}\n"
