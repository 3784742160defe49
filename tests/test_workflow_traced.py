"""Workflows from their files, traced as the files say: tools, maps and structured replies, at once and awaited."""

from __future__ import annotations

import threading
import warnings
from decimal import Decimal
from pathlib import Path

import pytest

from pytest_agenttrace.gemini_server import Reply, ScriptedRequest
from pytest_agenttrace.workflow import Workflow, WorkflowError, WorkflowResult, parse_config
from tests.observed import files_with, folder_fixture, metrics, rows
from tests.running import Run, both, served

__all__ = ["folder_fixture"]

# Texts that stand in one place only: in prompts, replies, inputs, tool results, descriptions.
TEXTS = ("askedquokka", "saidwombat", "givennumbat", "foundbilby", "describedkoala")
FILE = """\
schema_version: "1.0"
flow: {name: demo}
state:
  fields:
    topic: {type: str, required: true}
    items: {type: "list[str]", default: []}
    pages: {type: "list[str]", default: []}
nodes:
  - id: plan
    prompt: askedquokka to plan {state.topic} please
    tools: ["tests.observed:search"]
    outputs: [items]
    output_schema: {type: object, fields: [{name: items, type: "list[str]", description: describedkoala}]}
  - {id: page, prompt: "askedquokka to write {_parallel_item} please", outputs: [pages], output_schema: {type: str}}
edges:
  - {from: START, to: plan}
  - {from: plan, parallel: {items_field: items, target_node: page, collect_field: pages}}
  - {from: page, to: END}
config:
  llm: {provider: google, model: gemini-2.5-flash}
  execution: {max_retries: 0}
  observability: {mlflow: {enabled: true, async_logging: false, KEYS}}
"""
USAGE = {"promptTokenCount": 10, "candidatesTokenCount": 1}


def answer(request: ScriptedRequest) -> Reply:
    """A tool call, then the plan; a page for each item."""
    if "to write" in request.prompt:
        return Reply("saidwombat page", USAGE)
    if "foundbilby" not in str(request.body):
        return Reply(tool_calls=[("search", {"query": "saidwombat query"})], usage=USAGE)
    return Reply(json={"items": ["saidwombat one", "saidwombat two"]}, usage=USAGE)


def workflow(keys: str = "artifact_level: standard") -> Workflow:
    return Workflow(parse_config(FILE.replace("KEYS", keys), "demo.yaml"))


def found(folder: Path) -> dict[str, set[str]]:
    """The files of a run that hold each of the texts; those of a node by their names."""
    held = {text: files_with(folder, text) for text in TEXTS}
    return {text: {name.rpartition("/")[2] for name in names} for text, names in held.items()}


@both
def test_a_result_says_what_was_traced(folder: Path, run: Run) -> None:
    with served(answer) as server:
        result = run(workflow(), {"topic": "givennumbat"})

    assert dict(result) == {
        "topic": "givennumbat",
        "items": ["saidwombat one", "saidwombat two"],
        "pages": ["saidwombat page", "saidwombat page"],
    }
    assert result.problems == ()
    assert result.trace is not None
    assert result.trace.trajectory == ["plan", "page", "page"]
    assert result.trace.tool_calls == [("search", {"query": "saidwombat query"})]
    asked = len([path for path, _ in server.requests if path.endswith(":generateContent")])
    assert asked == len(result.trace.llm_calls)
    assert metrics(folder / "mlflow.db") == {
        "total_cost_usd": float(asked * (10 * Decimal("0.0000003") + Decimal("0.0000025"))),
        "total_tokens": 11.0 * asked,
        "prompt_tokens": 10.0 * asked,
        "completion_tokens": 1.0 * asked,
        "node_count": 3.0,
        "duration": pytest.approx(result.summary.totals.duration) if result.summary else 0,
    }
    assert rows(folder / "mlflow.db", "SELECT run_uuid, status FROM runs") == [(result.run_id, "FINISHED")]
    assert rows(folder / "mlflow.db", "SELECT name FROM spans WHERE parent_span_id IS NULL") == [("workflow_demo",)]


@both
def test_minimal_keeps_no_word(folder: Path, run: Run) -> None:
    with served(answer):
        result = run(workflow("artifact_level: minimal"), {"topic": "givennumbat"})

    assert found(folder) == {text: set() for text in TEXTS}
    assert result.trace is not None
    assert (result.trace.trajectory, [name for name, _ in result.trace.tool_calls]) == (
        ["plan", "page", "page"],
        ["search"],
    )


def test_full_without_prompts_keeps_all_but_what_models_were_told(folder: Path) -> None:
    with served(answer):
        workflow("artifact_level: full, log_prompts: false").run({"topic": "givennumbat"})

    database, state, replies = "mlflow.db", "state.json", "replies.json"
    assert found(folder) == {
        "askedquokka": set(),
        "saidwombat": {database, state, replies},
        "givennumbat": {database, state},
        "foundbilby": {database},
        "describedkoala": set(),
    }


def test_full_keeps_everything(folder: Path) -> None:
    with served(answer):
        workflow("artifact_level: full").run({"topic": "givennumbat"})

    names = {path.parent.name for path in folder.rglob("prompts.json")}
    assert names == {"01_plan", "02_page", "03_page"}
    assert found(folder)["askedquokka"] == {"mlflow.db", "prompts.json"}
    assert found(folder)["describedkoala"] == {"mlflow.db"}


@both
def test_a_run_that_fails_is_traced_to_its_end(folder: Path, run: Run) -> None:
    script = served(lambda request: None if "to write" in request.prompt else answer(request))
    with script, pytest.raises(WorkflowError, match=r"^demo\.yaml:\d+:\d+: node page: "):
        run(workflow(), {"topic": "givennumbat"})

    assert rows(folder / "mlflow.db", "SELECT status FROM runs") == [("FAILED",)]
    assert rows(folder / "mlflow.db", "SELECT status FROM trace_info") == [("ERROR",)]
    assert metrics(folder / "mlflow.db")["prompt_tokens"] > 0


def test_runs_at_once_make_one_new_database(folder: Path) -> None:
    """The first runs of a project, all at the same moment: nobody has made the store yet."""
    (folder / "mlflow.db").unlink()
    results: list[WorkflowResult] = []
    with served(answer):
        threads = [
            threading.Thread(target=lambda: results.append(workflow().run({"topic": "givennumbat"}))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [result.problems for result in results] == [(), (), ()]
    assert rows(folder / "mlflow.db", "SELECT status, count(*) FROM runs GROUP BY 1") == [("FINISHED", 3)]
    assert rows(folder / "mlflow.db", "SELECT count(*) FROM trace_info") == [(3,)]


def test_the_files_of_the_old_store_and_of_the_new_one_trace_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The migration guide's before and after."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with served(answer), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own word on stores of files
        old = workflow('tracking_uri: "file://./mlruns"').run({"topic": "givennumbat"})
        new = workflow('tracking_uri: "sqlite:///mlflow.db", experiment_name: my_workflows').run(
            {"topic": "givennumbat"}
        )

    assert (old.problems, new.problems, dict(old)) == ((), (), dict(new))
    assert old.trace is not None
    assert new.trace is not None
    assert old.trace.outline == new.trace.outline
    assert old.trace.tokens_by_node == new.trace.tokens_by_node
    assert old.trace.cost_by_node == new.trace.cost_by_node
    assert list((folder / "mlruns").glob("*/*/metrics/total_cost_usd"))


def test_what_is_refused_before_it_is_asked_is_no_run(folder: Path) -> None:
    with served(answer) as server, pytest.raises(WorkflowError):
        workflow().run({})
    assert server.requests == []
    assert rows(folder / "mlflow.db", "SELECT count(*) FROM runs") == [(0,)]
