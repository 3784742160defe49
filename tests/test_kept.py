"""Kept stores: whose are kept, what opens them, what stands in them, and that they can be moved."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace.store import Kept, StoreFactory
from pytest_agenttrace.usage import Usage
from tests.handmade import Run, built, tokens
from tests.projects import (
    ROOT,
    Session,
    Told,
    cassette_fixture,
    environment,
    project_fixture,
    run_pytest,
    temporary,
    write_project,
)

__all__ = ["cassette_fixture", "project_fixture"]

# One worker runs the session that most of them read (xdist's --dist loadgroup).
pytestmark = pytest.mark.xdist_group("kept stores")

MODULE = """
import json
from pathlib import Path

import mlflow
import pytest
from app import SAILS, app


@pytest.fixture(scope="module")
def article(agent_run):
    with agent_run() as trace:
        app.invoke(SAILS)
    return trace


@pytest.fixture(scope="module")
def unbroken(agent_run):
    with agent_run() as trace:
        app.invoke(SAILS)
    return trace


@pytest.fixture
def fails_at_its_end(agent_trace):
    yield
    raise RuntimeError("at its end")


def numbers(trace):
    return [int(trace.tokens), trace.usage.input_tokens, trace.usage.output_tokens, str(trace.cost)]


def test_fails(agent_trace, tmp_path):
    app.invoke(SAILS)
    with mlflow.start_run():
        mlflow.log_text("of a run", "notes/note.txt")
    told = {"article_writer": numbers(agent_trace)}
    told |= {node: numbers(agent_trace[node]) for node in agent_trace.trajectory}
    Path("numbers.json").write_text(json.dumps(told))
    assert agent_trace.tokens == 0


def test_passes(agent_trace):
    app.invoke(SAILS)


@pytest.mark.xfail
def test_is_expected(agent_trace):
    app.invoke(SAILS)
    assert agent_trace.tokens == 0


def test_alone(mlflow_store):
    with mlflow.start_span("mine"), mlflow.start_run():
        mlflow.log_text("of a run", "notes/note.txt")
    assert not mlflow_store.traces()


def test_ends_badly(fails_at_its_end):
    app.invoke(SAILS)


def test_reads(article, unbroken):
    assert article.tokens == unbroken.tokens == 4601


def test_reads_and_fails(article):
    assert article.tokens == 0
"""


def kept_names(folder: Path) -> list[str]:
    """The folders below pytest's temporary root that hold a kept store."""
    found = temporary(folder).rglob("mlflow.db")
    names = sorted(path.parent.relative_to(temporary(folder)).as_posix() for path in found)
    return [name for name in names if not name.endswith("agenttrace")]  # the live one of a process


def run_module(folder: Path, *args: str) -> Session:
    (folder / "test_keep.py").write_text(MODULE)
    return run_pytest(folder, *args, env=environment())


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, cassette: str) -> Session:
    """A run of the module without any option, below a folder whose name needs quotes."""
    folder = tmp_path_factory.mktemp("kept") / "a project"
    folder.mkdir()
    write_project(folder, cassette)
    return run_module(folder)


@pytest.fixture(scope="module")
def told(session: Session) -> Told:
    return Told(session, "test_keep")


@pytest.fixture
def moved(session: Session, tmp_path: Path) -> Iterator[Path]:
    """The folder of test_fails as it would be on another machine: its first place is gone."""
    first = temporary(session.folder) / "agenttrace" / "test_keep.py_test_fails"
    there = tmp_path / "another machine" / "downloaded"
    shutil.copytree(first, tmp_path / "original")
    try:
        there.parent.mkdir()
        shutil.move(first, there)
        yield there
    finally:
        (tmp_path / "original").rename(first)


READ = """
import json
import sys

from mlflow import MlflowClient

client = MlflowClient(sys.argv[1])
ids = [experiment.experiment_id for experiment in client.search_experiments()]
read = {"traces": [], "artifacts": {}}
for trace in client.search_traces(locations=ids):
    tags = {key: value for key, value in trace.info.tags.items() if key.startswith("agenttrace.")}
    attributes = [
        [span.name, {key: value for key, value in span.attributes.items() if key.startswith("agenttrace.")}]
        for span in trace.data.spans
    ]
    read["traces"].append({"tags": tags, "spans": attributes})
if sys.argv[1].startswith("http"):
    for run in client.search_runs(ids):
        for found in client.list_artifacts(run.info.run_id, "notes"):
            with open(client.download_artifacts(run.info.run_id, found.path)) as file:
                read["artifacts"][found.path] = file.read()
print(json.dumps(read))
"""


def read_elsewhere(uri: str) -> dict[str, Any]:
    """What MLflow's own client says of a store, in a process that knows nothing of us."""
    done = subprocess.run(
        [sys.executable, "-c", READ, uri], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def opened(path: Path) -> dict[str, Any]:
    return read_elsewhere(f"sqlite:///{path / 'mlflow.db'}")


# Whose are kept, and where


def test_by_default_those_of_failed_tests_are_kept(told: Told) -> None:
    assert told.outcomes == {
        "test_fails": "failed",
        "test_passes": "passed",
        "test_is_expected": "xfailed",
        "test_alone": "failed",
        "test_ends_badly": "teardown error",
        "test_reads": "passed",
        "test_reads_and_fails": "failed",
    }
    assert kept_names(told.session.folder) == [
        "agenttrace/test_keep.py_article",
        "agenttrace/test_keep.py_test_alone",
        "agenttrace/test_keep.py_test_ends_badly",
        "agenttrace/test_keep.py_test_fails",
    ]
    assert list(temporary(told.session.folder).rglob(".mlflow.db")) == []


def test_a_failure_prints_the_command_that_opens_its_store(told: Told) -> None:
    for test, folder in {
        "test_fails": "test_keep.py_test_fails",
        "test_alone": "test_keep.py_test_alone",
        "test_ends_badly": "test_keep.py_test_ends_badly",
        "test_reads_and_fails": "test_keep.py_article",
    }.items():
        kept = temporary(told.session.folder) / "agenttrace" / folder
        command = (
            f"mlflow ui --backend-store-uri 'sqlite:///{kept}/mlflow.db' --artifacts-destination '{kept}/artifacts'"
        )
        assert told.section(test, "Captured store") == command
        assert (
            f"-------------------------------- Captured store --------------------------------\n{command}\n"
            in told.session.out
        )
    assert told.session.out.count("mlflow ui") == 4
    assert "stores kept" not in told.session.out


def test_a_setup_that_fails_before_anything_ran_prints_no_command(project: Path) -> None:
    (project / "test_early.py").write_text(
        "import pytest\n"
        "@pytest.fixture\n"
        "def fails(agent_trace): raise RuntimeError('early')\n"
        "def test_early(fails): pass\n"
    )
    ran = run_pytest(project, env=environment())
    assert "RuntimeError: early" in ran.out
    assert "Captured store" not in ran.out


def test_all_are_kept_in_each_worker_of_xdist(project: Path) -> None:
    ran = run_pytest_on_two(project, "--agenttrace-keep", "all", "-rP", "-q")
    folders = kept_names(project)
    names = [name.rpartition("/")[2] for name in folders]
    assert sorted(names) == [
        "test_keep.py_article",
        *(f"test_keep.py_test_{name}" for name in ("alone", "ends_badly", "fails", "is_expected", "passes")),
        "test_keep.py_unbroken",
    ]
    assert all(name.startswith("popen-gw") for name in folders)
    passed = next(folder for folder in folders if folder.endswith("test_passes"))
    assert opened(temporary(project) / passed)["traces"][0]["tags"] == {
        "agenttrace.test": "test_keep.py::test_passes",
        "agenttrace.outcome": "passed",
        "agenttrace.tokens": "4601",
        "agenttrace.input_tokens": "2430",
        "agenttrace.output_tokens": "2171",
        "agenttrace.cost_usd": "0.0061565",
    }
    assert f"mlflow ui --backend-store-uri sqlite:///{temporary(project)}/{passed}/mlflow.db" in ran.out


def run_pytest_on_two(project: Path, *args: str) -> Session:
    (project / "test_keep.py").write_text(MODULE)
    plugins = ("pytest_agenttrace.plugin", "xdist")
    return run_pytest(project, "-n", "2", "--dist", "loadfile", *args, env=environment(), plugins=plugins)


def test_where_all_are_kept_the_end_of_the_run_says_where(project: Path) -> None:
    (project / "test_two.py").write_text(
        "from app import SAILS, app\n"
        "def test_one(agent_trace): app.invoke(SAILS)\n"
        "def test_two(agent_trace): app.invoke(SAILS)\n"
    )
    ran = run_pytest(project, "--agenttrace-keep=all", env=environment())
    assert ran.code == 0
    assert (
        f"= agenttrace ==================================\nstores kept: 2, in {temporary(project)}/agenttrace\n"
        in ran.out
    )
    assert "mlflow ui" not in ran.out


def test_none_are_kept(project: Path) -> None:
    ran = run_module(project, "--agenttrace-keep=none", "-rP")
    assert "Captured trace" in ran.out
    assert kept_names(project) == []
    assert list(temporary(project).rglob(".mlflow.db")) == []
    assert "mlflow ui" not in ran.out


def test_what_is_none_of_the_three_is_a_usage_error(bare_folder: Path) -> None:
    ran = run_pytest(bare_folder, "--agenttrace-keep", "some", env=environment())
    assert ran.code == 4
    assert ran.err == "ERROR: --agenttrace-keep: 'some' is none of failed, all, none\n\n"


@pytest.fixture
def bare_folder(tmp_path: Path) -> Path:
    (tmp_path / "bare").mkdir()
    return tmp_path / "bare"


# What stands in it, and what opens it


def expected(session: Session) -> dict[str, dict[str, Any]]:
    """What agent_trace has said to test_fails, by node."""
    names = ("agenttrace.tokens", "agenttrace.input_tokens", "agenttrace.output_tokens", "agenttrace.cost_usd")
    told = json.loads((session.folder / "numbers.json").read_text())
    return {node: dict(zip(names, numbers, strict=True)) for node, numbers in told.items()}


def test_tokens_and_cost_of_each_node_equal_ours(session: Session, moved: Path) -> None:
    ours = expected(session)
    assert ours["research"] == {
        "agenttrace.tokens": 3534,
        "agenttrace.input_tokens": 1863,
        "agenttrace.output_tokens": 1671,
        "agenttrace.cost_usd": "0.0047364",
    }
    [trace] = opened(moved)["traces"]
    assert trace["tags"] == {
        "agenttrace.test": "test_keep.py::test_fails",
        "agenttrace.outcome": "failed",
        **{name: str(value) for name, value in ours["article_writer"].items()},
    }
    found = {name: numbers for name, numbers in trace["spans"] if name in ours}
    assert found == ours
    calls = [numbers["agenttrace.cost_usd"] for name, numbers in trace["spans"] if name == "ChatGoogleGenerativeAI"]
    assert calls == ["0.0029725", "0.0017639", "0.0014201"]
    assert [numbers for name, numbers in trace["spans"] if name == "web_search"] == [{}]


def test_the_store_of_a_run_says_that_a_test_of_it_has_failed(session: Session) -> None:
    [trace] = opened(temporary(session.folder) / "agenttrace" / "test_keep.py_article")["traces"]
    assert trace["tags"]["agenttrace.test"] == "test_keep.py::article"
    assert trace["tags"]["agenttrace.outcome"] == "failed"
    assert trace["tags"]["agenttrace.tokens"] == "4601"


def test_a_store_alone_is_named_and_counts_nothing(session: Session) -> None:
    [trace] = opened(temporary(session.folder) / "agenttrace" / "test_keep.py_test_alone")["traces"]
    assert trace == {
        "tags": {"agenttrace.test": "test_keep.py::test_alone", "agenttrace.outcome": "failed"},
        "spans": [["mine", {}]],
    }


@contextmanager
def serving(command: str, folder: Path, log: Path) -> Iterator[Callable[[], str]]:
    """What a shell makes of a command in a folder, with a port of ours and this Python's `mlflow`; waits for it where
    it is asked for its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    env = environment() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    line = f"exec {command} --port {url.rpartition(':')[2]}"
    with log.open("w") as out:
        server = subprocess.Popen(
            ["/bin/sh", "-c", line], cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True
        )

    def address() -> str:
        until = time.monotonic() + 150
        while not answers(f"{url}/health"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.5)
        return url

    try:
        yield address
    finally:
        # Its workers too: all of them are in the group that it began.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(20)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310  # loopback
            return True
    except OSError:
        return False


def test_it_opens_from_any_directory_and_in_another_place(
    session: Session, told: Told, moved: Path, tmp_path: Path
) -> None:
    """By the command that a failure prints, and by the one in its folder once that was moved: both at once, as MLflow
    takes half a minute to start."""
    import mlflow

    command = "mlflow ui --backend-store-uri sqlite:///mlflow.db --artifacts-destination artifacts"
    assert (moved / "README.txt").read_text() == (
        "The MLflow store of test_keep.py::test_fails (failed). To open it, in this folder, wherever it is:\n"
        "\n"
        f"    {command}\n"
        "\n"
        f"MLflow {mlflow.__version__} wrote it. A newer one upgrades the database when it opens it, which an older\n"
        "one then refuses: open a copy where that matters.\n"
    )
    printed = str(told.section("test_alone", "Captured store"))
    with (
        serving(printed, tmp_path, tmp_path / "printed.log") as here,
        serving(command, moved, tmp_path / "moved.log") as there,
    ):
        alone, read = read_elsewhere(here()), read_elsewhere(there())
    assert [span for trace in alone["traces"] for span in trace["spans"]] == [["mine", {}]]
    [trace] = read["traces"]
    assert {name: numbers for name, numbers in trace["spans"] if name in expected(session)} == expected(session)
    assert alone["artifacts"] == read["artifacts"] == {"notes/note.txt": "of a run"}


# By hand


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[StoreFactory]:
    with closing(StoreFactory(tmp_path / "stores")) as made:
        yield made


def texts(path: Path) -> Iterator[str]:
    """Every text in a database."""
    with closing(sqlite3.connect(path)) as database:
        yield from (line for line in database.iterdump())


def test_no_place_of_the_first_machine_is_left_in_it(factory: StoreFactory, tmp_path: Path) -> None:
    import mlflow

    def seed() -> None:
        with mlflow.start_run(run_name="reference"):
            mlflow.log_text("of the seed", "notes.txt")
        mlflow.trace(lambda: 1, name="seeded")()

    with factory.open("test_x.py::test_moved", seed=seed) as store:
        with mlflow.start_run():
            mlflow.log_text("of the test", "notes.txt")
        mlflow.trace(lambda: 1, name="mine")()
        kept = store.keep(tmp_path / "kept", outcome="failed")
    assert kept == Kept(tmp_path / "kept" / "mlflow.db", tmp_path / "kept" / "artifacts")
    stores = [line for line in texts(kept.path) if str(tmp_path / "stores") in line]
    assert stores == []
    with closing(sqlite3.connect(kept.path)) as database:
        uris = [uri for (uri,) in database.execute("SELECT artifact_uri FROM runs ORDER BY start_time")]
        tagged = database.execute("SELECT value FROM trace_tags WHERE key = 'agenttrace.outcome'").fetchall()
    assert [uri.partition(":/")[0] for uri in uris] == ["mlflow-artifacts"] * 2
    found = [(kept.artifacts / uri.partition(":/")[2] / "notes.txt").read_text() for uri in uris]
    assert found == ["of the seed", "of the test"]
    assert tagged == [("failed",)]  # the seed's trace is no test's


def test_the_live_store_is_left_as_it_is(factory: StoreFactory) -> None:
    import mlflow

    with factory.open("live") as store:
        mlflow.trace(lambda: 1, name="mine")()
        store.keep(outcome="failed")
        [trace] = store.traces()
        assert [key for key in trace.info.tags if key.startswith("agenttrace")] == []
        assert trace.info.tags["mlflow.artifactLocation"].startswith(store.artifacts.as_uri())


def test_another_layout_of_mlflows_tables_costs_the_numbers_only(factory: StoreFactory, tmp_path: Path) -> None:
    from pytest_agenttrace.store.kept import finish

    with factory.open("layout") as store:
        path = store.keep(tmp_path / "kept").path
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("ALTER TABLE trace_tags RENAME TO tags_of_traces")
        database.execute("ALTER TABLE trace_info RENAME TO infos")
    kept = finish(path, store.artifacts, [store.artifacts], test="t", outcome="failed", trace=None)
    assert kept.lacks == "tokens and cost per node are not in it: OperationalError: no such table: trace_info"
    path.write_bytes(b"no database, and longer than a header of one" * 99)
    kept = finish(path, store.artifacts, [store.artifacts], test="t", outcome="failed", trace=None)
    assert kept.lacks == (
        "artifacts are looked for where they were: DatabaseError: file is not a database; "
        "tokens and cost per node are not in it: DatabaseError: file is not a database"
    )


def test_what_nobody_knows_is_unknown_and_never_nothing() -> None:
    from pytest_agenttrace.store.kept import _by_span

    run = Run()
    root = run.graph()
    counted = run.node("counted", root, 1, "counted:1")
    run.model(counted, tokens(10, 5))
    silent = run.node("silent", root, 2, "silent:1")
    run.model(silent, None)
    partly = run.node("partly", root, 3, "partly:1")
    run.model(partly, Usage(input_tokens=7))
    unpriced = run.node("unpriced", root, 4, "unpriced:1")
    run.model(unpriced, tokens(3, 4), model="unpriced")
    free = run.node("free", root, 5, "free:1")
    run.model(free, tokens(0, 0))
    run.node("calls_nobody", root, 6, "calls_nobody:1")
    names = {span.span_id: span.name for span in run.spans}
    found = {names[span_id]: list(numbers.values()) for _, span_id, numbers in _by_span(built(run))}
    del found["ChatGoogleGenerativeAI"]
    assert found == {
        "LangGraph": ["unknown", "unknown", "unknown", "unknown"],
        "counted": [15, 10, 5, "0.000015"],
        "silent": ["unknown", "unknown", "unknown", "unknown"],
        "partly": ["unknown", 7, "unknown", "unknown"],
        "unpriced": [7, 3, 4, "unknown"],
        "free": [0, 0, 0, "0.000000"],
    }


def test_a_retried_node_has_its_numbers_where_the_tree_has_them() -> None:
    from pytest_agenttrace.store.kept import _by_span

    run = Run()
    root = run.graph()
    first = run.node("write", root, 1, "write:1", status="error", error_type="ValueError")
    run.model(first, tokens(10, 5))
    second = run.node("write", root, 1, "write:1")
    run.model(second, tokens(20, 5))
    found = {span_id: numbers["agenttrace.tokens"] for _, span_id, numbers in _by_span(built(run))}
    assert first.span_id not in found
    assert found[second.span_id] == found[root.span_id] == 40


def test_a_store_with_nothing_in_it_is_no_news(factory: StoreFactory) -> None:
    import mlflow

    with factory.open("empty") as store:
        assert store.keep().empty
        mlflow.genai.register_prompt(name="writer", template="Write")
        assert not store.keep().empty

    def seed() -> None:
        mlflow.trace(lambda: 1, name="seeded")()

    with factory.open("seeded", seed=seed) as store:
        assert store.keep().empty
        mlflow.trace(lambda: 1, name="mine")()
        assert not store.keep().empty


def test_the_readme_shows_the_command() -> None:
    folder = Path("/tmp/pytest-of-you/pytest-0/agenttrace/test_article.py_test_article")  # noqa: S108  # shown, not used
    command = Kept(folder / "mlflow.db", folder / "artifacts").command
    assert f" Captured store --------------------------------\n{command}\n```" in (ROOT / "README.md").read_text()


def test_a_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    folder = tmp_path / "it's $HOME here"
    assert shlex.split(Kept(folder / "mlflow.db", folder / "artifacts").command) == [
        "mlflow",
        "ui",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
