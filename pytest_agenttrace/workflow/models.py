"""A workflow as frozen data: what its YAML file says, read and checked.

Each class is a table of the file and each field a key of it, described beside the field: the reader, the JSON Schema
for editors and the messages about unknown keys all come from these descriptions. None is a key that the file does not
set.
"""
# ruff: noqa: RUF009  # _key returns dataclasses.field, once for each field

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pytest_agenttrace.workflow.conditions import Condition
from pytest_agenttrace.workflow.placeholders import Template
from pytest_agenttrace.workflow.positions import Note
from pytest_agenttrace.workflow.types import Type

__all__ = [
    "END",
    "START",
    "Edge",
    "Execution",
    "Flow",
    "LlmSettings",
    "Logging",
    "Loop",
    "MlflowSettings",
    "Node",
    "Observability",
    "OutputField",
    "OutputSchema",
    "Parallel",
    "Route",
    "RouteCondition",
    "Settings",
    "State",
    "StateField",
    "Tool",
    "WorkflowConfig",
]

START = "START"
END = "END"

PROVIDER = "google"
MODEL = "gemini-2.5-flash-lite"
TEMPERATURE = 0.7


def _key(about: str, default: Any = MISSING, *, name: str | None = None, **rules: Any) -> Any:
    """A key of the file: what it is for, its default (needed without one), its name where Python has taken it, and
    rules: `least`, `most`, `more_than`; `name_of` (what it names, see `naming`); `some` (not empty); `single` (a text
    stands for a list of it)."""
    metadata = {"about": about, "key": name, **rules}
    if default == {}:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Flow:
    """What the workflow is called."""

    name: str = _key("The workflow's name: the root span is workflow_<name>.", name_of="flow")
    description: str | None = _key("What the workflow does.", None)
    version: str | None = _key('The workflow\'s version, as text: "1.0.0".', None)
    author: str | None = _key("Who wrote it.", None)
    tags: tuple[str, ...] = _key("Words to find it by.", ())


@dataclass(frozen=True, slots=True)
class StateField:
    """A field of the state. `type` holds what `schema` says of an object."""

    type: Type = _key("Its type: str, int, float, bool, list, dict, list[T], dict[K, V] or object.")
    required: bool = _key("Whether a run's inputs must give it.", False)
    default: Any = _key("Its value where the inputs give none; null where there is no default.", None)
    description: str | None = _key("What it holds.", None)
    reducer: Literal["append", "replace"] | None = _key(
        "What a node's output does to a list: append to it, as where not said, or replace it.", None
    )

    @property
    def appends(self) -> bool:
        """Whether what a node writes is appended: to a list, unless the file says `reducer: replace`."""
        return self.type.name == "list" and self.reducer != "replace"

    def initial(self) -> Any:
        """A default of one's own, to change at will."""
        return deepcopy(self.default)


@dataclass(frozen=True, slots=True)
class State:
    """What flows through the workflow: inputs, outputs and all between."""

    fields: Mapping[str, StateField] = _key("The state's fields by name.", name_of="field", some=True)


@dataclass(frozen=True, slots=True)
class OutputField:
    """A field that a model must return. `type` holds what `schema` says of an object."""

    name: str = _key("The field's name, one of the node's outputs.")
    type: Type = _key("Its type, that of the state's field.")
    description: str | None = _key("What the model is told about it.", None)


@dataclass(frozen=True, slots=True)
class OutputSchema:
    """What a model must return: an object with `fields`, or one value of `type` for the node's only output."""

    type: Type = _key("object, with fields; or the type of the node's only output.")
    fields: tuple[OutputField, ...] | None = _key("The object's fields, one for each output.", None, some=True)
    description: str | None = _key("What the model is told about it.", None)


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """A model and how it is asked: the workflow's, or what a node does differently."""

    provider: str | None = _key(f"Who serves the model: {PROVIDER} where not said.", None, name_of="provider")
    model: str | None = _key(f"The model's name: {MODEL} where not said.", None, name_of="model")
    temperature: float | None = _key(f"0 to 2: {TEMPERATURE} where not said.", None, least=0, most=2)
    max_tokens: int | None = _key("The most tokens of a reply.", None, least=1)
    api_base: str | None = _key("The API's address, for servers of one's own.", None, name_of="address")

    def under(self, other: LlmSettings) -> LlmSettings:
        """These settings, with another's where these say nothing."""
        return LlmSettings(
            provider=other.provider if self.provider is None else self.provider,
            model=other.model if self.model is None else self.model,
            temperature=other.temperature if self.temperature is None else self.temperature,
            max_tokens=other.max_tokens if self.max_tokens is None else self.max_tokens,
            api_base=other.api_base if self.api_base is None else self.api_base,
        )


DEFAULT_LLM = LlmSettings(PROVIDER, MODEL, TEMPERATURE)


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that a node's model may call. With on_error "continue" an error is the tool's answer."""

    name: str = _key("The tool's name, or module:attribute.", name_of="tool")
    on_error: Literal["fail", "continue"] = _key("Whether an error of the tool fails the node.", "fail")
    config: Mapping[str, Any] = _key("What the tool is made with.", {})


@dataclass(frozen=True, slots=True)
class Node:
    """One question to a model. `place` is "file:line:column"."""

    id: str = _key("The node's name, in the graph, the trace and the budgets.", name_of="node")
    prompt: Template = _key("What is asked, with {state.field} and {input}; {{ and }} for braces.")
    outputs: tuple[str, ...] = _key("The fields of the state that it writes.", some=True)
    output_schema: OutputSchema = _key("What the model must return.")
    name: str | None = _key("A title for people.", None)
    description: str | None = _key("What the node does.", None)
    inputs: Mapping[str, Template] = _key(
        "Names of its own for the prompt: {query: '{state.topic}'}.", {}, name_of="input"
    )
    tools: tuple[Tool, ...] = _key("The tools its model may call.", ())
    llm: LlmSettings | None = _key("What of config.llm is different here.", None)
    log_prompts: bool | None = _key("observability.mlflow.log_prompts, for this node.", None)
    log_artifacts: bool | None = _key("observability.mlflow.log_artifacts, for this node.", None)
    place: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RouteCondition:
    """When a route is taken."""

    logic: Condition | None = _key("state.score >= 8 and not state.done; or default. None is the default route.")


@dataclass(frozen=True, slots=True)
class Route:
    """Where to go on, and when."""

    condition: RouteCondition = _key("When this route is taken; the first that holds is.")
    to: str = _key("The node to go on to, or END.")


@dataclass(frozen=True, slots=True)
class Loop:
    """A node repeated until a field of the state is true, `max_iterations` times at most."""

    condition_field: str = _key("The bool field of the state that ends the loop.")
    exit_to: str = _key("The node to go on to then, or END.", END)
    max_iterations: int = _key("How often the node runs at most.", 10, least=1, most=100)


@dataclass(frozen=True, slots=True)
class Parallel:
    """A node run once for each item of a list, side by side, its results collected in the order of the items."""

    items_field: str = _key("The list field of the state whose items are worked on.")
    target_node: str = _key("The node that works on an item: {_parallel_item}, {_parallel_index}.")
    collect_field: str = _key("The list field of the state that takes the results.")


@dataclass(frozen=True, slots=True)
class Edge:
    """Where a node leads: one of `to`, `routes`, `loop`, `parallel`. `place` is "file:line:column"."""

    source: str = _key("The node that was run, or START.", name="from")
    to: tuple[str, ...] = _key(
        "The node to go on to, or END; a list of nodes runs side by side.", (), single=True, some=True
    )
    routes: tuple[Route, ...] = _key("Where to go on, by conditions.", (), some=True)
    loop: Loop | None = _key("The node runs again until a field is true.", None)
    parallel: Parallel | None = _key("A node runs for each item of a list.", None)
    place: str = field(default="", compare=False, repr=False)

    @property
    def targets(self) -> tuple[str, ...]:
        """Every node it may lead to, each once."""
        found = [*self.to, *(route.to for route in self.routes)]
        if self.loop is not None:
            found += [self.source, self.loop.exit_to]
        if self.parallel is not None:
            found.append(self.parallel.target_node)
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Execution:
    """How long a run may take, and how often a node is tried."""

    timeout: float = _key("Seconds that a node may take.", 120, more_than=0, most=604_800)
    max_retries: int = _key("How often a node that failed is tried again.", 3, least=0, most=100)


@dataclass(frozen=True, slots=True)
class MlflowSettings:
    """Where and how much MLflow keeps of a run."""

    enabled: bool = _key("Whether runs are traced.", False)
    tracking_uri: str = _key("MLflow's store.", "sqlite:///mlflow.db", name_of="store")
    experiment_name: str = _key("The experiment of the runs.", "configurable_agents", name_of="experiment")
    run_name: str | None = _key("The runs' name; {timestamp}, {workflow_name}.", None, name_of="run")
    async_logging: bool = _key("Whether traces are written beside the run.", True)
    log_artifacts: bool = _key("Whether files are kept with the run.", True)
    artifact_level: Literal["minimal", "standard", "full"] = _key(
        "minimal: costs only; standard: traces with inputs and outputs; full: prompts, replies, states as files too.",
        "standard",
    )
    log_prompts: bool = _key("Whether prompts are kept.", True)


@dataclass(frozen=True, slots=True)
class Logging:
    """What the runner says of itself."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = _key("The least important that is said.", "INFO")


@dataclass(frozen=True, slots=True)
class Observability:
    """What is kept and said of a run."""

    mlflow: MlflowSettings = _key("Tracing.", MlflowSettings())
    logging: Logging = _key("Messages.", Logging())


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all nodes."""

    llm: LlmSettings = _key("The model, where a node names none.", LlmSettings())
    execution: Execution = _key("Timeouts and retries.", Execution())
    observability: Observability = _key("Tracing and messages.", Observability())


@dataclass(frozen=True, slots=True)
class WorkflowConfig:
    """A workflow, as its file says it."""

    schema_version: Literal["1.0"] = _key("The version of this format.")
    flow: Flow = _key("What the workflow is called.")
    state: State = _key("What flows through it.")
    nodes: tuple[Node, ...] = _key("Its questions to models.", some=True)
    edges: tuple[Edge, ...] = _key("Which node follows which.", some=True)
    config: Settings = _key("What holds for all nodes.", Settings())
    path: Path = field(default=Path(), compare=False)
    notes: tuple[Note, ...] = field(default=(), compare=False)

    def node(self, name: str) -> Node:
        """A node by its id. Raises KeyError."""
        for node in self.nodes:
            if node.id == name:
                return node
        raise KeyError(name)

    def edges_from(self, name: str) -> tuple[Edge, ...]:
        """The edges of a node, or of START."""
        return tuple(edge for edge in self.edges if edge.source == name)

    def llm_of(self, node: Node) -> LlmSettings:
        """The model a node asks: its own settings, else the workflow's, else the defaults."""
        own = LlmSettings() if node.llm is None else node.llm
        merged = own.under(self.config.llm)
        # Another provider's model, or server, is not this one's.
        if own.provider not in (None, self.config.llm.provider or PROVIDER):
            merged = replace(merged, model=own.model, api_base=own.api_base)
        return merged.under(DEFAULT_LLM)
