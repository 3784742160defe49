"""The plugin in whole pytest sessions: collection errors, neighbours, xdist, interrupts, imports."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.projects import (  # noqa: F401 - fixtures
    HEAVY,
    KINDS,
    ROOT,
    bare_fixture,
    cassette_fixture,
    environment,
    marked,
    project_fixture,
    run_pytest,
    temporary,
)

# Collection


def test_an_unused_plugin_imports_nothing_heavy(bare: Path) -> None:
    (bare / "conftest.py").write_text(f"""
import sys

def pytest_unconfigure(config):
    print("\\nimported:", sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r})))
""")
    (bare / "test_it.py").write_text("""
import pytest

def test_it():
    assert [1] == [1]

@pytest.mark.skip
@pytest.mark.budget(tokens=1, cost="0.1")
@pytest.mark.agent_trace(cassette="a.yaml", allow=["unused"])
def test_skipped(agent_trace):
    pass
""")
    ran = run_pytest(bare, "-rs", env=environment())
    assert ran.code == 0
    assert "1 passed, 1 skipped" in ran.out
    assert ran.out.endswith("\nimported: []\n")


BAD_MARKERS = """
import pytest

@pytest.mark.budget
def test_no_limit(): ...

@pytest.mark.budget(tokns=1)
@pytest.mark.budget("research", "write", tokens=1)
def test_names(): ...

class TestTypes:
    @pytest.mark.budget(tokens=4000.0, llm_calls=True, tool_calls="3", cost=0.1 + 0.2)
    @pytest.mark.parametrize("number", [1, 2])
    def test_types(self, number): ...

@pytest.mark.budget(tokens=-1, input_tokens=[], cost="-0.1")
@pytest.mark.budget("", cost="five")
def test_values(): ...

@pytest.mark.agent_trace("order", mtch="body")
@pytest.mark.agent_trace(match="fuzzy", allow="unused", warn=["unusd", "research:nothing", 3])
@pytest.mark.agent_trace(autolog="langchain", run_tracer_inline="yes", cassette=3)
def test_settings(): ...

@pytest.mark.budget("write", tokens=0, cost=0)
@pytest.mark.agent_trace(allow=["write:unused"])
def test_good(): ...
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_markers_are_usage_errors_all_at_once(bare: Path, workers: int) -> None:
    (bare / "test_it.py").write_text(BAD_MARKERS)
    # The workers find the errors, the controller tells them: once, and without a crash.
    args = ["-p", "xdist", "-n", str(workers)] if workers else []
    ran = run_pytest(bare, *args, env=environment())
    metrics = "tokens, input_tokens, output_tokens, cost, llm_calls, tool_calls"
    kinds = ", ".join(KINDS)
    assert ran.err.removeprefix("ERROR: ").splitlines() == [
        f"test_it.py:4: test_no_limit: budget: sets no limit: give one of {metrics}",
        "test_it.py:7: test_names: budget: takes one node at most, got 2: use a marker for each node",
        f"test_it.py:7: test_names: budget: unknown limit 'tokns'; did you mean 'tokens'? It has {metrics}",
        "test_it.py:12: test_types: budget: tokens=4000.0 is not a whole number",
        "test_it.py:12: test_types: budget: cost=0.30000000000000004 is a float that is not what it seems: "
        "write it as text",
        "test_it.py:12: test_types: budget: llm_calls=True is not a number",
        "test_it.py:12: test_types: budget: tool_calls='3' is not a whole number",
        "test_it.py:16: test_values: budget: the node is a name, not ''",
        "test_it.py:16: test_values: budget: cost='five' is not an amount of USD: write cost=\"0.005\"",
        "test_it.py:16: test_values: budget: tokens=-1 is negative",
        "test_it.py:16: test_values: budget: input_tokens=[] is not a whole number",
        "test_it.py:16: test_values: budget: cost='-0.1' is negative",
        "test_it.py:20: test_settings: agent_trace: takes keys only, not 'order'",
        "test_it.py:20: test_settings: agent_trace: autolog='langchain' is not a list of MLflow flavors: "
        'write autolog=["langchain"]',
        "test_it.py:20: test_settings: agent_trace: run_tracer_inline='yes' is neither True nor False",
        "test_it.py:20: test_settings: agent_trace: cassette=3 is not a path",
        "test_it.py:20: test_settings: agent_trace: match='fuzzy' is neither 'body' nor 'order'",
        "test_it.py:20: test_settings: agent_trace: allow='unused' is not a list of kinds: write allow=[\"unused\"]",
        f"test_it.py:20: test_settings: agent_trace: warn: unknown kind 'unusd'; did you mean 'unused'? "
        f"The kinds are {kinds}",
        f"test_it.py:20: test_settings: agent_trace: warn: unknown kind 'research:nothing'. The kinds are {kinds}",
        f"test_it.py:20: test_settings: agent_trace: warn: unknown kind 3. The kinds are {kinds}",
        "test_it.py:20: test_settings: agent_trace: unknown key 'mtch'; did you mean 'match'? "
        "It has cassette, match, order, ignore, hosts, secrets, allow, warn, autolog, run_tracer_inline",
        "",
    ]
    assert ran.code == pytest.ExitCode.USAGE_ERROR
    assert "INTERNALERROR" not in ran.out


def test_every_kind_of_finding_is_accepted(bare: Path) -> None:
    nodes = [f"write:{kind}" for kind in KINDS]
    (bare / "test_it.py").write_text(f"""
import pytest

@pytest.mark.agent_trace(allow={list(KINDS)!r}, warn={nodes!r})
def test_it(agent_trace): ...
""")
    ran = run_pytest(bare, "--collect-only", "-q", "--strict-markers", env=environment())
    assert (ran.code, ran.err) == (0, "")


def test_no_key_at_import(project: Path) -> None:
    (project / "test_it.py").write_text("from app import model\nMODEL = model()\n\ndef test_it(agent_trace): ...\n")
    ran = run_pytest(project, "-W", "ignore", env=environment())
    assert ran.code == pytest.ExitCode.INTERRUPTED
    hint = (
        "---------------------------------- agenttrace ----------------------------------\n"
        "A model is built while this file is imported, before any fixture can stand in for the key.\n"
        "Build it inside a function, or set this in the pytest configuration:\n"
        "  agenttrace_dummy_key = true\n"
    )
    assert hint in ran.out


def test_bad_dummy_key_option(bare: Path) -> None:
    ran = run_pytest(bare, "-o", "agenttrace_dummy_key=maybe", env=environment())
    assert ran.code == pytest.ExitCode.USAGE_ERROR
    message = "agenttrace_dummy_key is neither true nor false: invalid truth value 'maybe'"
    assert (ran.out, ran.err) == ("", f"ERROR: {message}\n\n")


# Neighbours


@pytest.mark.parametrize("order", [["rival", "pytest_agenttrace.plugin"], ["pytest_agenttrace.plugin", "rival"]])
def test_two_plugins_with_one_fixture(bare: Path, order: list[str]) -> None:
    (bare / "rival.py").write_text("import pytest\n\n@pytest.fixture\ndef agent_trace():\n    return 'a rival'\n")
    (bare / "test_it.py").write_text("def test_it(agent_trace):\n    assert agent_trace == 'a rival'\n")
    ran = run_pytest(bare, "-q", plugins=order, env=environment())
    assert ran.code == 1
    assert (
        "____ ERROR at setup of test_it ___________________________\n"
        "the fixture 'agent_trace' is defined by two plugins, pytest-agenttrace and rival: "
        "uninstall one of the two, or leave one out with -p no:NAME\n"
        "====" in ran.out
    )


def test_two_plugins_with_one_option(bare: Path) -> None:
    (bare / "rival.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--agenttrace-record', action='store_true')\n"
    )
    ran = run_pytest(bare, plugins=["rival", "pytest_agenttrace.plugin"], env=environment())
    assert ran.code == pytest.ExitCode.USAGE_ERROR
    assert ran.out == ""
    assert ran.err.startswith("ERROR: pytest-agenttrace: another plugin has one of its names: option")
    assert ran.err.endswith(". Uninstall one of the two, or leave this one out with -p no:agenttrace.\n\n")


@pytest.mark.parametrize("off", [False, True])
def test_entry_point_and_how_to_leave_it_out(bare: Path, off: bool) -> None:
    """Installed, with every neighbour that is installed too: the plugin is there, until it is left out."""
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    metadata = bare / "pytest_agenttrace-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: pytest-agenttrace\nVersion: 0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[pytest11]", *lines, ""]))
    (bare / "test_it.py").write_text("def test_it(gemini_cassette):\n    assert gemini_cassette.calls == ()\n")
    env = {name: value for name, value in environment().items() if name != "PYTEST_DISABLE_PLUGIN_AUTOLOAD"}
    ran = run_pytest(bare, "-q", *(["-p", "no:agenttrace"] if off else []), plugins=[], env=env)
    assert ran.code == int(off)
    assert ("E       fixture 'gemini_cassette' not found\n" in ran.out) is off


def test_unwritable_folder_is_told_before_anything_is_paid(bare: Path) -> None:
    (bare / "cassettes").mkdir()
    (bare / "cassettes" / "test_it").write_text("a file where the folder should be")
    (bare / "test_it.py").write_text("def test_it(gemini_cassette):\n    raise RuntimeError('paid')\n")
    ran = run_pytest(bare, "-q", "--agenttrace-record", "test_it.py", env=environment(key=True))
    assert ran.code == 1
    message = "cassettes/test_it: no cassette can be written here: Not a directory. "
    message += "Make it writable, or name another cassette."
    assert f"\n{message}\n====" in ran.out
    assert (bare / "cassettes" / "test_it").read_text() == "a file where the folder should be"


# xdist, interrupts, imports


def test_xdist_and_last_failed(project: Path) -> None:
    (project / "test_it.py").write_text("""
import pytest

from app import SAILS, app, write

def test_properties(agent_trace, record_property):
    app.invoke(SAILS)
    record_property("tokens", agent_trace.tokens)
    record_property("cost", agent_trace.cost)

@pytest.mark.agent_trace(warn=["unused"])
def test_warned(agent_trace):
    write(SAILS)

@pytest.mark.budget(tokens=1)
def test_over():
    app.invoke(SAILS)
""")
    args = ["-p", "xdist", "-n", "2", "-q", "--junitxml=junit.xml", "--agenttrace-keep=none"]
    ran = run_pytest(project, *args, env=environment())
    assert (ran.code, ran.err) == (1, "")
    assert (
        "run 4,601 tokens > 1 (+4,600)\n"
        "-------------------------------- Captured trace --------------------------------\n"
        "> article_writer  2.1 s  4,601 tok  $0.0061565\n"
        "  ├─ research     1.2 s  3,534 tok  $0.0047364\n"
        "  └─ write        0.9 s  1,067 tok  $0.0014201\n"
        "=========================== short test summary info ============================\n"
        "FAILED test_it.py::test_over - Failed: run 4,601 tokens > 1 (+4,600)\n"
        "1 failed, 2 passed in " in ran.out
    )
    junit = ElementTree.parse(project / "junit.xml")  # noqa: S314 - pytest wrote it
    assert [found.get("message") for found in junit.iter("failure")] == ["Failed: run 4,601 tokens > 1 (+4,600)"]
    properties = [(str(p.get("name")), p.get("value")) for p in junit.iter("property")]
    assert [(name, value) for name, value in properties if not name.startswith("agenttrace.")] == [
        ("tokens", "4601"),
        ("cost", "0.0061565"),
    ]
    again = run_pytest(project, "--lf", "-vv", env=environment())
    assert "test_it.py::test_over FAILED" in again.out
    assert f"Captured trace --------------------------------\n{marked('article_writer')}\n" in again.out
    assert "1 failed in " in again.out


def test_interrupted(project: Path) -> None:
    (project / "test_it.py").write_text("""
import mlflow

from app import SAILS, app

def test_it(agent_trace):
    mlflow.set_experiment("mine")
    mlflow.start_run()
    app.invoke(SAILS)
    raise KeyboardInterrupt
""")
    (project / "main.py").write_text("""
import sys

import mlflow
import pytest
from conftest import state

mlflow.set_tracking_uri("sqlite:///theirs.db")
before = state()
code = pytest.main(["-p", "pytest_agenttrace.plugin", "-p", "no:cacheprovider", "-W", "ignore", *sys.argv[1:]])
after = state()
print("code:", int(code))
print("left:", {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)})
""")
    command = [sys.executable, "main.py", f"--basetemp={temporary(project)}"]
    done = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.stdout.endswith("\ncode: 2\nleft: set()\n"), done.stdout + done.stderr
    assert "test_it.py:10: KeyboardInterrupt\n" in done.stdout
    assert "INTERNALERROR" not in done.stdout
    assert not [path.name for path in project.iterdir() if path.name.startswith("mlruns") or path.suffix == ".db"]


def test_an_app_that_sets_up_mlflow_at_import(project: Path) -> None:
    (project / "prod.py").write_text("""
import mlflow

mlflow.set_tracking_uri("sqlite:///prod.db")
mlflow.set_experiment("prod")
mlflow.autolog(silent=True)

from app import app, model

MODEL = model()
""")
    (project / "test_it.py").write_text("""
import mlflow
import pytest

from app import SAILS
from prod import app

def test_reads(agent_trace):
    app.invoke(SAILS)
    assert agent_trace.tokens == 4601

@pytest.mark.budget(llm_calls=1)
def test_over():
    app.invoke(SAILS)

def test_after():
    assert mlflow.get_tracking_uri() == "sqlite:///prod.db"
""")
    args = ["-q", "-rP", "-W", "ignore", "-o", "agenttrace_dummy_key=true", "--agenttrace-keep=none"]
    ran = run_pytest(project, *args, env=environment())
    assert (ran.code, ran.err) == (1, "")
    tree = (
        "article_writer  2.1 s  4,601 tok  $0.0061565\n"
        "├─ research     1.2 s  3,534 tok  $0.0047364\n"
        "└─ write        0.9 s  1,067 tok  $0.0014201"
    )
    requests = (
        "------------------------- Captured requests to MLflow --------------------------\n"
        "mlflow.set_tracking_uri('sqlite:///prod.db'): redirected to the temporary store\n"
        "mlflow.set_experiment('prod'): redirected to the temporary store\n"
    )
    section = "-------------------------------- Captured trace --------------------------------\n"
    assert f"run 3 llm_calls > 1 (+2)\n{section}{marked('article_writer', tree=tree)}\n{requests}====" in ran.out
    assert f"{section}{tree}\n{requests}1 failed, 2 passed in " in ran.out
    assert not [path.name for path in project.iterdir() if path.name.startswith("mlruns") or path.suffix == ".db"]


BESIDE = """
import socket
import urllib.request

import pytest
from app import SAILS, app, model


def without_session(request):
    request.body = (request.body or b"").replace(b"(session 17)", b"")
    return request


@pytest.fixture
def vcr_config():
    filters = {"filter_headers": ["x-secret"], "before_record_request": without_session}
    return {"record_mode": "none", "match_on": ["method"], **filters}


def test_ours(agent_trace):
    app.invoke(SAILS)
    assert agent_trace.tokens == 4601


def test_filtered(agent_trace):
    app.invoke({**SAILS, "topic": "solar (session 17)sails"})


@pytest.mark.vcr
def test_theirs():
    urllib.request.urlopen("http://search.example.com/q", timeout=2)


@pytest.mark.block_network
def test_blocked(agent_trace):
    app.invoke(SAILS)
    with socket.socket() as plain, pytest.raises(RuntimeError, match="Network is disabled"):
        plain.connect(("127.0.0.1", 9))


@pytest.mark.vcr
def test_both(agent_trace):
    app.invoke(SAILS)
    model().invoke("Something else")
"""


@pytest.mark.parametrize("args", [(), ("--block-network",)])
def test_pytest_recording_beside_us(project: Path, args: tuple[str, ...]) -> None:
    (project / "test_beside.py").write_text(BESIDE)
    plugins = ("pytest_agenttrace.plugin", "pytest_recording.plugin")
    ran = run_pytest(project, *args, "--tb=short", env=environment(), plugins=plugins)
    assert "2 failed, 3 passed" in ran.out, ran.out
    assert "CannotOverwriteExistingCassetteException" in ran.out
    assert "FAILED test_beside.py::test_theirs" in ran.out
    assert "CassetteMiss: (no node), call 4: no recorded reply\n  POST gemini-2.5-flash:generateContent" in ran.out
    assert not list(project.rglob("test_both.yaml"))


def test_modules_of_one_name_outside_of_rootdir_are_told_apart() -> None:
    from pytest_agenttrace.opening import _outside

    root = Path("/project/suite")
    found = [_outside(Path(f"/project/{folder}/test_it.py"), root) for folder in ("one", "other")]
    assert [path.name for path in found] == ["test_it.py"] * 2
    assert found[0].parent != found[1].parent
    # The same wherever the project lies.
    assert found[0] == _outside(Path("/elsewhere/one/test_it.py"), Path("/elsewhere/suite"))
