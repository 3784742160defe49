"""Runs of a small workflow under an observer: its file, a graph made by hand for it, and what they leave in a store."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace.gemini_server import GeminiServer, Reply
from pytest_agenttrace.store.database import cache_directory, load_template
from pytest_agenttrace.workflow import WorkflowConfig, parse_config
from pytest_agenttrace.workflow.observing import Observer

# Texts that stand in one place only: in what a model is asked, in what it says, in what a run is given.
PROMPT, REPLY, STATE = "askedquokka", "saidwombat", "givennumbat"

FILE = """\
schema_version: "1.0"
flow: {{name: demo, version: "1.2.0"}}
state:
  fields:
    topic: {{type: str, required: true}}
    notes: {{type: str, default: ""}}
    article: {{type: str, default: ""}}
nodes:
  - id: research
    prompt: askedquokka what {{state.topic}} is
    outputs: [notes]
    output_schema: {{type: str}}{node}
  - {{id: write, prompt: "askedquokka to write on {{state.notes}}", outputs: [article], output_schema: {{type: str}}}}
edges:
  - {{from: START, to: research}}
  - {{from: research, to: write}}
  - {{from: write, to: END}}
config:
  llm: {{provider: google, model: gemini-2.5-flash}}
  observability:
    mlflow: {{{keys}}}
"""


def config(keys: str = "enabled: true, async_logging: false", node: str = "") -> WorkflowConfig:
    """The workflow with these keys of observability, and of the node research."""
    return parse_config(FILE.format(keys=keys, node=f"\n    {node}" if node else ""), "w.yaml")


def ready_database(path: Path) -> None:
    """An empty store of MLflow's, without the seconds that MLflow takes to make one."""
    with (
        closing(load_template(cache_directory(), path.parent)) as template,
        closing(sqlite3.connect(path)) as made,
    ):
        template.backup(made)


def scripted() -> GeminiServer:
    """A model that answers both nodes; its counts are no multiples of each other."""
    return GeminiServer(
        {
            f"{PROMPT} what": Reply(f"{REPLY} notes", {"promptTokenCount": 150, "candidatesTokenCount": 500}),
            f"{PROMPT} to write": Reply(f"{REPLY} article", {"promptTokenCount": 211, "candidatesTokenCount": 613}),
        }
    )


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a run, with a store that is ready in it."""
    monkeypatch.chdir(tmp_path)
    ready_database(tmp_path / "mlflow.db")
    return tmp_path


@pytest.fixture(name="model")
def model_fixture() -> Iterator[GeminiServer]:
    with scripted() as server:
        yield server


def graph(url: str, model: str = "gemini-2.5-flash", before: Any = None) -> Any:
    """The workflow as LangGraph's graph. `before` is called by the node write before it asks."""
    from typing import TypedDict

    from langchain_google_genai import ChatGoogleGenerativeAI
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict, total=False):
        topic: str
        notes: str
        article: str

    llm = ChatGoogleGenerativeAI(model=model, base_url=url, api_key="dummy", max_retries=1)

    def research(state: State) -> State:
        return {"notes": str(llm.invoke(f"{PROMPT} what {state['topic']} is").text)}

    def write(state: State) -> State:
        if before is not None:
            before(state)
        return {"article": str(llm.invoke(f"{PROMPT} to write on {state['notes']}").text)}

    made = StateGraph(State)
    made.add_node("research", research)
    made.add_node("write", write)
    made.add_edge(START, "research")
    made.add_edge("research", "write")
    made.add_edge("write", END)
    return made.compile(name="workflow_demo")


@dataclass
class Watched:
    """What became of a run: its observer, what was said and warned, and how it ended."""

    observer: Observer
    said: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)
    state: dict[str, Any] | None = None
    error: BaseException | None = None


def watched(app: Any, workflow: WorkflowConfig, *, strict: bool = False, topic: str = STATE) -> Watched:
    """One run of a graph under an observer; an error of the run is kept."""
    said: list[str] = []
    warned: list[str] = []
    observer = Observer(workflow, strict=strict, say=said.append, warn=warned.append)
    done = Watched(observer, said, warned)
    try:
        with observer.run() as given:
            done.state = app.invoke({"topic": topic}, given)
    except (Exception, KeyboardInterrupt) as error:
        done.error = error
    return done


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    """What SQLite says, without MLflow."""
    with closing(sqlite3.connect(path)) as database:
        return database.execute(query).fetchall()


def metrics(path: Path) -> dict[str, float]:
    return dict(rows(path, "SELECT key, value FROM metrics"))


def spans_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(content) for (content,) in rows(path, "SELECT content FROM spans ORDER BY start_time_unix_nano")]


def files_with(folder: Path, text: str) -> set[str]:
    """The files below a folder that hold a text anywhere, databases included; each run's folder is `RUN`."""
    found = {
        path.relative_to(folder).parts
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    }
    return {"/".join("RUN" if len(part) == 32 else part for part in parts) for parts in found}


def search(query: str) -> str:
    """Finds what is asked for: a tool of workflows."""
    return f"foundbilby on {query}"
