"""`agenttrace run`, run as users run it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pytest_agenttrace.cli import main
from pytest_agenttrace.gemini_server import GeminiServer, Reply, ScriptedRequest
from pytest_agenttrace.workflow import Observer
from tests.observed import FILE, PROMPT, metrics, ready_database, rows, spans_of

NOTES = Reply("light pushes", {"promptTokenCount": 150, "candidatesTokenCount": 500})
ARTICLE = Reply("Sails.", {"promptTokenCount": 211, "candidatesTokenCount": 613})
RESULT = '{\n  "topic": "sails",\n  "notes": "light pushes",\n  "article": "Sails."\n}\n'
TREE = """\

workflow_demo           TIME  1,474 tok  $0.0028908
├─ research             TIME    650 tok  $0.001295
│  └─ gemini-2.5-flash          650 tok  $0.001295    150 in, 500 out
└─ write                TIME    824 tok  $0.0015958
   └─ gemini-2.5-flash          824 tok  $0.0015958   211 in, 613 out
"""
NODES = "  research ...\n✓ research (TIME)\n  write ...\n✓ write (TIME)\n"
ON = "enabled: true, async_logging: false"


def write(folder: Path, keys: str = ON, **changes: str) -> None:
    text = FILE.format(keys=keys, node="")
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "w.yaml").write_text(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a workflow and a store, and no key in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GEMINI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    ready_database(tmp_path / "mlflow.db")
    write(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GeminiServer]:
    """What the workflow's models are, with a key to ask them."""
    with GeminiServer({f"{PROMPT} what": NOTES, f"{PROMPT} to write": ARTICLE}) as server:
        monkeypatch.setenv("GOOGLE_API_KEY", "a-key-that-is-nobodys")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        yield server


def ran(*arguments: str) -> Result:
    done = CliRunner().invoke(main, ["run", *arguments], prog_name="agenttrace")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def told(text: str) -> str:
    """What was said, without how long it took."""
    return re.sub(r" *\d+(?:\.\d+)? m?s\b", lambda found: " " * (len(found[0]) - len(found[0].lstrip())) + "TIME", text)


def columns(text: str) -> str:
    """The same, with one space for several: a column is as wide as its widest time."""
    return re.sub(r" +", " ", told(text))


# What is said


@pytest.mark.usefixtures("model")
def test_the_result_is_on_stdout_and_all_else_on_stderr(folder: Path) -> None:
    done = ran("w.yaml", "-i", "topic=sails")
    assert (done.exit_code, done.stdout) == (0, RESULT)
    assert columns(done.stderr) == columns(NODES + TREE)
    assert metrics(folder / "mlflow.db")["total_tokens"] == 1474.0


@pytest.mark.usefixtures("model")
def test_verbose_says_where_the_run_is_traced_to(folder: Path) -> None:
    import mlflow

    done = ran("w.yaml", "-i", "topic=sails", "--verbose")
    ((run_id,),) = rows(folder / "mlflow.db", "SELECT run_uuid FROM runs")
    ((number,),) = rows(folder / "mlflow.db", "SELECT experiment_id FROM runs")
    assert done.stderr.startswith(
        f"✓ MLflow {mlflow.__version__} auto-instrumentation enabled (langchain.autolog)\n"
        f"✓ Experiment: configurable_agents (ID: {number})\n"
        f"✓ Store: sqlite:///{(folder / 'mlflow.db').as_posix()}\n"
        f"✓ Run: {run_id}\n"
        "  research ...\n"
    )
    assert done.stdout == RESULT


@pytest.mark.usefixtures("model")
def test_a_run_that_is_not_traced_is_run(folder: Path) -> None:
    write(folder, "enabled: false")
    (folder / "mlflow.db").unlink()
    done = ran("w.yaml", "-i", "topic=sails")
    assert (done.exit_code, done.stdout) == (0, RESULT)
    assert told(done.stderr) == NODES + "\nnot traced: 2 calls, 1,474 tokens, $0.0028908\n"
    assert sorted(path.name for path in folder.iterdir()) == ["w.yaml"]


@pytest.mark.usefixtures("model")
def test_what_tools_and_libraries_print_is_not_on_stdout(folder: Path) -> None:
    (folder / "noise.py").write_text(
        "import os, warnings\n"
        "def talk(text: str) -> str:\n"
        '    "Says it."\n'
        '    print("printed"); os.write(1, b"written\\n"); warnings.warn("warned")\n'
        '    return "said"\n'
    )
    write(folder, **{"    outputs: [notes]": '    tools: ["noise:talk"]\n    outputs: [notes]'})
    calls = [Reply(tool_calls=[("talk", {"text": "x"})]), Reply("light pushes")]
    with GeminiServer(lambda asked: calls.pop(0) if calls else Reply("Sails.")) as server:
        environment = {**os.environ, "GOOGLE_GEMINI_BASE_URL": server.url, "PYTHONPATH": str(folder)}
        done = subprocess.run(
            [sys.executable, "-m", "pytest_agenttrace.cli", "run", "w.yaml", "-i", "topic=sails"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["topic"] == "sails"
    assert "printed" in done.stderr
    assert "written" in done.stderr
    assert "talk" in done.stderr.split("\n\n")[1]


# Inputs


@pytest.mark.usefixtures("model")
def test_inputs_are_texts_files_or_json_by_their_fields(folder: Path) -> None:
    typed = (
        'notes: {type: str, default: ""}\n    depth: {type: int}\n    tags: {type: "list[str]"}\n    mail: {type: str}'
    )
    write(folder, **{'notes: {type: str, default: ""}': typed})
    (folder / "topic.txt").write_text("42 sails\n", encoding="utf-8")
    done = ran("w.yaml", "-i", "topic=@topic.txt", "-i", "depth=3", "-i", 'tags=["a=b", "c"]', "-i", "mail=@@home")
    assert done.exit_code == 0, done.stderr
    given = {"topic": "42 sails\n", "depth": 3, "tags": ["a=b", "c"], "mail": "@home"}
    assert json.loads(done.stdout).items() >= given.items()


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "w.yaml: inputs: topic (str) is missing\n"),
        (
            ["topc=x"],
            "w.yaml: inputs:\n  the state has no field 'topc'; did you mean topic?\n  topic (str) is missing\n",
        ),
        (["topic"], "-i topic: KEY=VALUE is wanted, or KEY=@FILE\n"),
        (["topic=a", "topic=b"], "-i topic: is given twice\n"),
        (["topic=@none.txt"], "-i topic=@none.txt: cannot be read: No such file or directory\n"),
    ],
)
def test_wrong_inputs_ask_nothing_and_begin_nothing(
    folder: Path, model: GeminiServer, inputs: list[str], said: str
) -> None:
    done = ran("w.yaml", *(part for given in inputs for part in ("-i", given)))
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", said)
    assert model.requests == []
    assert rows(folder / "mlflow.db", "SELECT count(*) FROM runs") == [(0,)]


@pytest.mark.usefixtures("folder")
def test_wrong_files_and_uses_have_a_code_of_their_own() -> None:
    none = ran("none.yaml")
    assert (none.exit_code, none.stderr) == (2, "none.yaml: no such file\n")
    keyless = ran("w.yaml", "-i", "topic=sails")
    assert (keyless.exit_code, keyless.stderr) == (
        2,
        "w.yaml:9:5: nodes research, write: gemini-2.5-flash needs an API key: set GOOGLE_API_KEY or GEMINI_API_KEY\n",
    )
    both = ran("w.yaml", "--record", "a.yaml", "--replay", "b.yaml")
    assert both.exit_code == 2
    assert both.stderr.endswith("Error: --record and --replay exclude each other\n")


# Record and replay


def test_what_was_recorded_is_replayed_without_a_key_or_a_network(
    folder: Path, model: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = ran("w.yaml", "-i", "topic=sails", "--record", "c.yaml")
    assert (recorded.exit_code, recorded.stdout) == (0, RESULT)
    assert "recorded: c.yaml\n" in recorded.stderr
    assert "a-key-that-is-nobodys" not in (folder / "c.yaml").read_text()
    monkeypatch.delenv("GOOGLE_API_KEY")
    monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL")
    asked = len(model.requests)

    done = ran("w.yaml", "-i", "topic=sails", "--replay", "c.yaml", "--strict")
    assert (done.exit_code, done.stdout) == (0, RESULT)
    assert columns(done.stderr) == columns(NODES + TREE)
    assert len(model.requests) == asked
    assert rows(folder / "mlflow.db", "SELECT value FROM metrics WHERE key = 'total_cost_usd'") == [(0.0028908,)] * 2


def test_a_request_that_was_not_recorded_fails_the_run_and_says_what_differs(folder: Path, model: GeminiServer) -> None:
    ran("w.yaml", "-i", "topic=sails", "--record", "c.yaml")
    done = ran("w.yaml", "-i", "topic=kites", "--replay", "c.yaml")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.endswith(
        "CassetteMiss: research, call 1: no recorded reply\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  nearest recorded: call 1, differs at contents[0].parts[0].text:\n"
        "    askedquokka what [-sails-]{+kites+} is\n"
        "  To record again: agenttrace run w.yaml -i topic=kites --record c.yaml\n"
    )
    assert sorted(rows(folder / "mlflow.db", "SELECT status FROM runs")) == [("FINISHED",), ("KILLED",)]


def test_replies_nobody_asked_for_are_told_and_fail_a_strict_run(folder: Path, model: GeminiServer) -> None:
    ran("w.yaml", "-i", "topic=sails", "--record", "c.yaml")
    write(folder, **{"{from: research, to: write}": "{from: research, to: END}", "  - {from: write, to: END}\n": ""})
    text = (folder / "w.yaml").read_text()
    (folder / "w.yaml").write_text(re.sub(r"  - id: write\n(?:    .*\n)+|  - \{id: write.*\n", "", text))
    done = ran("w.yaml", "-i", "topic=sails", "--replay", "c.yaml")
    assert done.exit_code == 0, done.stderr
    assert "! nobody asked for a recorded reply: " in done.stderr
    strict = ran("w.yaml", "-i", "topic=sails", "--replay", "c.yaml", "--strict")
    assert strict.exit_code == 1
    assert json.loads(strict.stdout)["notes"] == "light pushes"


@pytest.mark.usefixtures("folder")
def test_a_cassette_that_is_none_is_said_before_anything_runs(folder: Path) -> None:
    done = ran("w.yaml", "-i", "topic=sails", "--replay", "none.yaml")
    assert (done.exit_code, done.stderr) == (
        2,
        "none.yaml: no such cassette\n  agenttrace run w.yaml -i topic=sails --record none.yaml\n",
    )
    assert rows(folder / "mlflow.db", "SELECT count(*) FROM runs") == [(0,)]


# What goes wrong


def test_a_failure_says_which_node_and_is_traced(folder: Path, model: GeminiServer) -> None:
    write(folder, **{f"{PROMPT} to write": "unscripted"}, **{"  llm:": "  execution: {max_retries: 0}\n  llm:"})
    done = ran("w.yaml", "-i", "topic=sails")
    assert (done.exit_code, done.stdout) == (1, "")
    assert re.search(r"^w\.yaml:\d+:\d+: node write: ", done.stderr, re.MULTILINE)
    assert re.search(r"^! └─ write ", done.stderr, re.MULTILINE)
    assert rows(folder / "mlflow.db", "SELECT status FROM runs") == [("FAILED",)]
    assert metrics(folder / "mlflow.db")["total_tokens"] == 650.0


@pytest.mark.usefixtures("model")
def test_tracing_that_fails_is_loud_and_fails_only_a_strict_run(folder: Path) -> None:
    (folder / "mlflow.db").write_text("no database at all, and long enough to be one\n" * 100)
    done = ran("w.yaml", "-i", "topic=sails")
    assert (done.exit_code, done.stdout) == (0, RESULT)
    path = (folder / "mlflow.db").as_posix()
    assert done.stderr.startswith(f"! tracing failed: sqlite:///{path} cannot be opened: ")
    assert f"\n  Is {path} a database of MLflow's, and may it be written?\n  research ...\n" in done.stderr
    assert done.stderr.endswith("\nnot traced: 2 calls, 1,474 tokens, $0.0028908\n")
    strict = ran("w.yaml", "-i", "topic=sails", "--strict")
    assert (strict.exit_code, strict.stdout) == (1, "")


@pytest.mark.usefixtures("model")
def test_a_store_of_files_is_told_with_the_line_to_write_instead(folder: Path) -> None:
    write(folder, f"{ON}, tracking_uri: 'file://./mlruns'")
    done = ran("w.yaml", "-i", "topic=sails")
    assert (done.exit_code, done.stdout) == (0, RESULT)
    note, *_ = done.stderr.splitlines()
    assert note.startswith("w.yaml:")
    assert note.endswith('; in its place: tracking_uri: "sqlite:///mlflow.db"')
    if tuple(map(int, version("mlflow").split(".")[:2])) >= (3, 13):
        assert f"! tracing failed: {(folder / 'mlruns').as_uri()} cannot be opened: " in done.stderr
    assert not Path("/mlruns").exists()


@pytest.mark.usefixtures("model")
def test_without_mlflow_a_workflow_is_run_and_it_is_said(folder: Path) -> None:
    """A program whose import of MLflow is blocked."""
    code = "import sys; sys.modules['mlflow'] = None; from pytest_agenttrace.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "w.yaml", "-i", "topic=sails"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert (done.returncode, done.stdout) == (0, RESULT)
    assert done.stderr.startswith(
        "! tracing failed: MLflow cannot be imported: import of mlflow halted; None in sys.modules\n"
        "  pip install mlflow\n"
    )
    assert done.stderr.endswith("\nnot traced: 2 calls, 1,474 tokens, $0.0028908\n")
    strict = subprocess.run([*command, "--strict"], capture_output=True, text=True, cwd=folder)
    assert (strict.returncode, strict.stdout) == (1, "")


def stopped(
    folder: Path,
    server: GeminiServer,
    stop: signal.Signals,
    asked: Callable[[], bool],
    go_on: threading.Event,
    *arguments: str,
) -> tuple[int, str, str]:
    """A process of the command that is sent a signal once it has `asked`; its exit code, and what it has said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest_agenttrace.cli", "run", "w.yaml", "-i", "topic=sails", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GOOGLE_GEMINI_BASE_URL": server.url, "GOOGLE_API_KEY": "nobodys"},
        cwd=folder,
        # A suite in the background hands on that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert asked(), "nothing was asked"
        process.send_signal(stop)
        out, err = process.communicate(timeout=120)
    finally:
        go_on.set()
        process.kill()
        process.wait()
    return process.returncode, out, err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    ("stop", "recording"),
    [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, False)],
    ids=["ctrl-c", "ctrl-c-recording", "terminated"],
)
def test_being_stopped_ends_trace_and_run_and_leaves_nothing_half_written(
    folder: Path, stop: signal.Signals, recording: bool
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer(request: ScriptedRequest) -> Reply:
        if f"{PROMPT} what" in request.prompt:
            return NOTES
        asked.set()
        go_on.wait(60)
        return ARTICLE

    more = ["--record", "c.yaml"] if recording else []
    with GeminiServer(answer) as server:
        ended, out, err = stopped(folder, server, stop, lambda: asked.wait(120), go_on, *more)
    code, word = (130, "interrupted") if stop == signal.SIGINT else (143, "terminated")
    assert (ended, out) == (code, ""), err
    assert err.endswith(f"{word}\n")
    assert rows(folder / "mlflow.db", "SELECT status, end_time IS NOT NULL FROM runs") == [("KILLED", 1)]
    assert rows(folder / "mlflow.db", "SELECT status FROM trace_info") == [("ERROR",)]
    spans = spans_of(folder / "mlflow.db")
    assert {span["name"]: span["status"]["code"] for span in spans if span["name"] != "ChatGoogleGenerativeAI"} == {
        "workflow_demo": "STATUS_CODE_ERROR",
        "research": "STATUS_CODE_OK",
        "write": "STATUS_CODE_ERROR",
    }
    assert metrics(folder / "mlflow.db")["total_tokens"] == 650.0
    assert not (folder / "c.yaml").exists()
    if recording:
        assert "the recording is incomplete" in err


SIDE_BY_SIDE = """
schema_version: "1.0"
flow: {name: demo}
state: {fields: {topic: {type: str, required: true}, notes: {type: str}, article: {type: str}}}
nodes:
  - {id: research, prompt: "research {topic}", outputs: [notes], output_schema: {type: str}}
  - {id: write, prompt: "write {topic}", outputs: [article], output_schema: {type: str}}
edges:
  - {from: START, to: [research, write]}
  - {from: research, to: END}
  - {from: write, to: END}
config:
  execution: {timeout: 600}
  observability: {mlflow: {enabled: true}}
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_being_stopped_waits_for_no_node(folder: Path, stop: signal.Signals, code: int) -> None:
    """Side by side nodes run in LangGraph's threads, for which it waits: ten minutes here."""
    (folder / "w.yaml").write_text(SIDE_BY_SIDE)
    asked, go_on = threading.Barrier(3), threading.Event()

    def answer(request: ScriptedRequest) -> Reply:
        asked.wait(120)
        go_on.wait(300)
        return NOTES

    with GeminiServer(answer) as server:
        ended, out, err = stopped(folder, server, stop, lambda: asked.wait(120) >= 0, go_on)
    assert (ended, out) == (code, ""), err
    assert rows(folder / "mlflow.db", "SELECT status, end_time IS NOT NULL FROM runs") == [("KILLED", 1)]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_has_ended_is_written_whoever_stops_it(
    folder: Path, model: GeminiServer, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    close = Observer.close

    def stopped_meanwhile(self: Observer, error: BaseException | None) -> None:
        os.kill(os.getpid(), stop)
        close(self, error)

    monkeypatch.setattr(Observer, "close", stopped_meanwhile)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = ran("w.yaml", "-i", "topic=sails")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.exit_code, done.stdout) == (0, RESULT)
    assert rows(folder / "mlflow.db", "SELECT status FROM runs") == [("FINISHED",)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_screen_that_takes_nothing_loses_no_result(folder: Path, model: GeminiServer) -> None:
    command = [sys.executable, "-m", "pytest_agenttrace.cli", "run", "w.yaml", "-i", "topic=sails"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, cwd=folder, check=False)
    assert done.stdout == RESULT


@pytest.mark.parametrize(
    "value", ["[" * 100_000, "[NaN]", "[1e999]", "[-Infinity]"], ids=["deep", "nan", "inf", "-inf"]
)
def test_a_value_that_is_no_json_is_told(folder: Path, value: str) -> None:
    write(folder, **{"topic: {": "numbers: {type: list}\n    topic: {"})
    done = ran("w.yaml", "-i", "topic=sails", "-i", f"numbers={value}")
    assert done.exit_code == 2
    assert "numbers: list is wanted, not str" in done.stderr


@pytest.mark.parametrize(("level", "lines"), [("INFO", True), ("WARNING", False)])
def test_the_level_of_what_is_said(folder: Path, model: GeminiServer, level: str, lines: bool) -> None:
    write(folder, **{"  observability:\n": f"  observability:\n    logging: {{level: {level}}}\n"})
    done = ran("w.yaml", "-i", "topic=sails")
    assert done.exit_code == 0
    assert ("research ..." in done.stderr) == lines


# The README


def test_the_readme_shows_what_is_said(folder: Path) -> None:
    """The run of examples/article_writer: all but its id, MLflow's version and the folder is as it is shown."""
    from tests.shown import README, ROOT

    if tuple(map(int, version("langchain-google-genai").split(".")[:2])) < (4, 1):
        pytest.skip("the cassette is of a newer client, which asks for the same in other words")
    example = Path("examples", "article_writer")
    (folder / example).mkdir(parents=True)
    for name in ("article_writer.yaml", "article.yaml"):
        (folder / example / name).write_bytes((ROOT / example / name).read_bytes())
    cassette = str(example / "article.yaml")
    done = ran(str(example / "article_writer.yaml"), "-i", "topic=solar sails", "--verbose", "--replay", cassette)
    assert done.exit_code == 0
    for readme in (README, ROOT / example / "README.md"):
        (shown,) = re.findall(r"```\n(✓ MLflow .*?)```\n", readme.read_text(encoding="utf-8"), re.DOTALL)
        assert _plain(done.stderr + done.stdout) == _plain(shown)


def _plain(text: str) -> str:
    text = re.sub(r"(?<=✓ MLflow )\S+|(?<=sqlite:///).*(?=mlflow\.db)|(?<=✓ Run: ).*|(?<=ID: )\d+", "...", text)
    return re.sub(r"(?<=\()\d+\.\d s(?=\))", "TIME", text)
