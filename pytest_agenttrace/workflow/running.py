"""A workflow that can be run: its file loaded, its graph built, its inputs checked, its result by the state's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.workflow.failing import WorkflowError, said_of
from pytest_agenttrace.workflow.graphs import graph_of
from pytest_agenttrace.workflow.loading import load_config
from pytest_agenttrace.workflow.models import LlmSettings, WorkflowConfig
from pytest_agenttrace.workflow.observing import Observer
from pytest_agenttrace.workflow.providers import Models
from pytest_agenttrace.workflow.values import checked_inputs, seen

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

    from pytest_agenttrace.trace import Trace
    from pytest_agenttrace.workflow.cost_summary import CostSummary

__all__ = ["Workflow", "WorkflowResult"]


# Equal to a dict of the same fields, as mappings are.
@dataclass(frozen=True, eq=False)
class WorkflowResult(Mapping[str, Any]):
    """What a run ended with: every field of the state by its name, with its default or null where nothing wrote it.

    Of a run that is traced (`observability.mlflow.enabled`): `trace`, MLflow's `run_id`, `summary` of what it has used
    and cost; None where there is none. `problems` says why it is not traced as it should be, "tracing failed: ...".
    """

    state: Mapping[str, Any]
    trace: Trace | None = None
    run_id: str | None = None
    summary: CostSummary | None = None
    problems: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        return self.state[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

    def __repr__(self) -> str:
        return f"WorkflowResult({dict(self.state)!r})"


class Workflow:
    """A workflow's file, ready to be run.

    `Workflow.load("article.yaml").run({"topic": "solar sails"})["article"]`. Its `graph` is a LangGraph graph like any
    other, for `invoke`, `stream` and LangGraph's own tools.
    """

    def __init__(self, config: WorkflowConfig) -> None:
        self.config = config
        self._models = Models(config.config.execution.timeout)

    @classmethod
    def load(cls, path: Path | str) -> Workflow:
        """A workflow from its file. Raises `ConfigError` with everything that is wrong in it."""
        return cls(load_config(path))

    @cached_property
    def graph(self) -> CompiledStateGraph[Any, Any, Any, Any]:
        """The compiled graph, `workflow_<flow name>`, made once. Raises `WorkflowError` for tools that are none.

        It takes inputs unchecked, and gives the fields that were written; a field called like a node is `state.<name>`.
        """
        return graph_of(self.config, self._models)

    def run(self, inputs: Mapping[str, Any], *, observer: Observer | None = None) -> WorkflowResult:
        """Run it to its end. Raises `WorkflowError`; nothing is asked where inputs, tools or keys are wrong. `observer`
        watches the run, by default one that does what `config.observability` says."""
        return _invoke(self, self._ready(inputs), observer or Observer(self.config))

    async def arun(self, inputs: Mapping[str, Any], *, observer: Observer | None = None) -> WorkflowResult:
        """Run it to its end without blocking. Raises as `run` does."""
        return await _ainvoke(self, self._ready(inputs), observer or Observer(self.config))

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Raise what `run` raises before it asks anything: wrong inputs, tools, keys."""
        self._ready(inputs)

    def _ready(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The graph's inputs, once all is there that a run needs."""
        given = checked_inputs(self.config, inputs)
        _ = self.graph
        self._check_models()
        return given

    def _check_models(self) -> None:
        """Make every model, so that a missing key or package is told before the first call, all at once."""
        users: dict[LlmSettings, list[str]] = {}
        for node in self.config.nodes:
            users.setdefault(self.config.llm_of(node), []).append(node.id)
        errors: list[WorkflowError] = []
        for settings, nodes in users.items():
            try:
                self._models.get(settings)
            except WorkflowError as error:
                place = self.config.node(nodes[0]).place
                if len(nodes) == 1:
                    found = WorkflowError(error.text, place, nodes[0])
                else:
                    found = WorkflowError(f"nodes {', '.join(nodes)}: {error.text}", place)
                found.__cause__ = error.__cause__
                errors.append(found)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise WorkflowError("\n".join(map(str, errors))) from errors[0].__cause__


def _invoke(workflow: Workflow, given: dict[str, Any], observer: Observer) -> WorkflowResult:
    """One run of the graph, watched."""
    with observer.run() as watched:
        try:
            state = workflow.graph.invoke(given, watched)
        except Exception as error:
            raise _failed(workflow, error) from error.__cause__
    return _result(workflow, state, observer)


async def _ainvoke(workflow: Workflow, given: dict[str, Any], observer: Observer) -> WorkflowResult:
    """One async run of the graph, watched."""
    async with observer.arun() as watched:
        try:
            state = await workflow.graph.ainvoke(given, watched)
        except Exception as error:
            raise _failed(workflow, error) from error.__cause__
    return _result(workflow, state, observer)


def _failed(workflow: Workflow, error: Exception) -> Exception:
    """What LangGraph itself gave up with, in this format's words; all else as it is."""
    from langgraph.errors import GraphRecursionError, InvalidUpdateError

    if isinstance(error, GraphRecursionError):
        steps = f"after {workflow.graph.config.get('recursion_limit')} steps it is at no end"  # type: ignore[union-attr]
        return WorkflowError(f"{steps}: its routes lead in a circle", str(workflow.config.path))
    if isinstance(error, InvalidUpdateError):
        # Told when the file is read, but of a workflow with more ways than are looked at.
        found = WorkflowError(f"nodes side by side write one field: {said_of(error)}", str(workflow.config.path))
        found.__cause__ = error
        return found
    return error


def _result(workflow: Workflow, state: Mapping[str, Any] | None, observer: Observer) -> WorkflowResult:
    # LangGraph gives None where nothing was written, by no input and no node.
    fields = seen(workflow.config, {} if state is None else state)
    return WorkflowResult(fields, observer.trace, observer.run_id, observer.summary, tuple(observer.problems))
