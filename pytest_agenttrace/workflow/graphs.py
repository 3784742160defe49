"""A workflow as a LangGraph StateGraph: a node for each of its nodes, by their ids, and its edges between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pytest_agenttrace.workflow.asking import Question, answered, awaited
from pytest_agenttrace.workflow.conditions import Condition, ConditionFailed
from pytest_agenttrace.workflow.failing import WorkflowError
from pytest_agenttrace.workflow.joins import Ways, joins_of
from pytest_agenttrace.workflow.models import END, START, Edge, Loop, Node, Parallel, WorkflowConfig
from pytest_agenttrace.workflow.placeholders import ITEM, ITEM_NAMES
from pytest_agenttrace.workflow.providers import Models
from pytest_agenttrace.workflow.timing import Stopped, TimeIsUp, awaited_within, within
from pytest_agenttrace.workflow.tools import resolved_tools
from pytest_agenttrace.workflow.types import Type, fits
from pytest_agenttrace.workflow.values import Anew, channels, fields_read, gathered, gathers, item_of, rendered, seen

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langchain_core.tools import BaseTool
    from langgraph.graph.state import CompiledStateGraph

__all__ = ["SIDE_BY_SIDE", "graph_of", "steps_of"]

INDEX = ITEM_NAMES[1]
# Where an item says which field takes its result: several maps may run one node.
_COLLECT = "_parallel_collect"

# How many nodes run at the same time, at most: branches, and items of a map.
SIDE_BY_SIDE = 10
# Seconds before a node is tried again for the first time; each later wait is twice as long, up to the second.
WAITS = (0.5, 30.0)
# How often routes may lead through the whole workflow again before a run is given up.
_PASSAGES = 25


def graph_of(config: WorkflowConfig, models: Models) -> CompiledStateGraph[Any, Any, Any, Any]:
    """The workflow, compiled. Raises `WorkflowError` for tools that are none, all of them at once."""
    from langgraph.graph import StateGraph

    tools = _all_tools(config)
    joins, ways = joins_of(config), Ways(config)
    graph = StateGraph(_state(config))
    for node in config.nodes:
        graph.add_node(
            node.id,
            _runnable(config, node, tools[node.id], models),
            retry_policy=_retries(config),
            defer=node.id in joins.waits,
        )
    for edge in config.edges:
        _add_edge(config, graph, edge, joins.gathers)
    for name in sorted(joins.gathers):
        graph.add_edge(list(ways.before(name)), name)
    limits = {"recursion_limit": steps_of(config), "max_concurrency": SIDE_BY_SIDE}
    return graph.compile(name=f"workflow_{config.flow.name}").with_config(limits)  # type: ignore[arg-type]


def steps_of(config: WorkflowConfig) -> int:
    """How many steps a run may take: enough for every loop to its end, and for routes that lead back 25 times."""
    loops = sum(edge.loop.max_iterations for edge in config.edges if edge.loop is not None)
    return _PASSAGES * (len(config.nodes) + loops + 1)


def _all_tools(config: WorkflowConfig) -> dict[str, tuple[BaseTool, ...]]:
    found: dict[str, tuple[BaseTool, ...]] = {}
    errors: list[WorkflowError] = []
    for node in config.nodes:
        try:
            found[node.id] = resolved_tools(config, node)
        except WorkflowError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise WorkflowError("\n".join(map(str, errors))) from errors[0].__cause__
    return found


# The state


def _state(config: WorkflowConfig) -> Any:
    from typing_extensions import TypedDict

    names = channels(config)
    fields = {names[name]: _channel(config, name) for name in config.state.fields}
    counters = {_counter(edge.source): int for edge in config.edges if edge.loop is not None}
    return TypedDict(f"workflow_{config.flow.name}", {**fields, **counters}, total=False)  # type: ignore[operator]


def _channel(config: WorkflowConfig, name: str) -> Any:
    from typing import Annotated

    from langgraph.channels import BinaryOperatorAggregate

    field = config.state.fields[name]
    kind = _annotation(field.type)
    if not gathers(config, name):
        return kind | None
    # What is appended to begins as the default, whoever runs the graph.
    return Annotated[kind, BinaryOperatorAggregate(lambda: field.initial() or [], gathered)]  # type: ignore[arg-type]


def _annotation(wanted: Type) -> Any:
    """What LangGraph's own schemas show of a type."""
    if wanted.item is not None:
        return list[_annotation(wanted.item)]  # type: ignore[misc]
    if wanted.key is not None and wanted.value is not None:
        return dict[_annotation(wanted.key), _annotation(wanted.value)]  # type: ignore[misc]
    kinds = {"str": str, "int": int, "float": float, "bool": bool, "list": list[Any]}
    return kinds.get(wanted.name, dict[str, Any])


def _counter(node: str) -> str:
    """Where a loop is counted; no field is called so."""
    return f"loop.{node}"


# Nodes


def _retries(config: WorkflowConfig) -> Any:
    from langgraph.types import RetryPolicy

    def worth_it(error: Exception) -> bool:
        return isinstance(error, WorkflowError) and error.again

    first, longest = WAITS
    attempts = config.config.execution.max_retries + 1
    return RetryPolicy(max_attempts=attempts, initial_interval=first, max_interval=longest, retry_on=worth_it)


def _runnable(config: WorkflowConfig, node: Node, tools: tuple[BaseTool, ...], models: Models) -> Any:
    from langchain_core.runnables import Runnable

    work = _Work(config, node, tools, models)

    class NodeRunnable(Runnable[Any, Any]):
        """Not a RunnableLambda: that one would be a span of its own inside of the node's."""

        def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
            return work.run(input, config or {})

        async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
            return await work.arun(input, config or {})

    return NodeRunnable()


class _Work:
    """What a node does with the state: it asks, and says what is to be changed."""

    def __init__(self, config: WorkflowConfig, node: Node, tools: tuple[BaseTool, ...], models: Models) -> None:
        self.config = config
        self.node = node
        self.tools = tools
        self.models = models
        self.execution = config.config.execution
        self.loop = next((edge.loop for edge in config.edges_from(node.id) if edge.loop is not None), None)

    def run(self, state: Mapping[str, Any], config: RunnableConfig) -> dict[str, Any]:
        question = self.question(state)
        try:
            outputs = within(
                self.execution.timeout, lambda: answered(question, self.models, config), f"node {self.node.id}"
            )
        except Stopped:
            raise WorkflowError("stopped", self.node.place, self.node.id) from None
        except (TimeIsUp, WorkflowError) as error:
            raise self.failure(error) from error.__cause__
        return self.changes(state, outputs)

    async def arun(self, state: Mapping[str, Any], config: RunnableConfig) -> dict[str, Any]:
        question = self.question(state)
        try:
            outputs = await awaited_within(self.execution.timeout, lambda: awaited(question, self.models, config))
        except (TimeIsUp, WorkflowError) as error:
            raise self.failure(error) from error.__cause__
        return self.changes(state, outputs)

    def question(self, state: Mapping[str, Any]) -> Question:
        try:
            prompt = rendered(self.node, seen(self.config, state), item_of(state))
        except LookupError as error:
            raise WorkflowError(f"prompt: {error.args[0]}", self.node.place, self.node.id) from error
        return Question(self.node, self.config.llm_of(self.node), prompt, self.tools)

    def failure(self, error: TimeIsUp | WorkflowError) -> WorkflowError:
        """The error, with the attempt it was."""
        if isinstance(error, TimeIsUp):
            text, again = f"no answer after {self.execution.timeout:g} s, the execution.timeout", True
        else:
            text, again = error.text, error.again
        if again and self.execution.max_retries:
            text += f" (attempt {_attempt()} of {self.execution.max_retries + 1})"
        return WorkflowError(text, self.node.place, self.node.id, again=again)

    def changes(self, state: Mapping[str, Any], outputs: dict[str, Any]) -> dict[str, Any]:
        """What the graph is to change: the outputs, or in a map the item's result; and how often a loop has run."""
        names = channels(self.config)
        if item_of(state):
            return {names[state[_COLLECT]]: self.collected(state[_COLLECT], outputs, state[INDEX])}
        found = {names[name]: self.written(name, value) for name, value in outputs.items()}
        if self.loop is not None:
            found[_counter(self.node.id)] = self.counted(self.loop, state, outputs)
        return found

    def written(self, name: str, value: Any) -> Any:
        replaces = gathers(self.config, name) and not self.config.state.fields[name].appends
        return Anew(value) if replaces else value

    def collected(self, name: str, outputs: dict[str, Any], index: int) -> list[Any]:
        """An item's part of the list: the field's own output, the only output, or all of them as a dict."""
        field = self.config.state.fields[name]
        found: list[Any] = [next(iter(outputs.values())) if len(outputs) == 1 else outputs]
        if name in outputs and fits(_output_type(self.node, name), field.type):
            found = outputs[name]
        # LangGraph takes what the items wrote in their order: where the list is replaced, the first one does that.
        return Anew(found) if index == 0 and not field.appends else found

    def counted(self, loop: Loop, state: Mapping[str, Any], outputs: dict[str, Any]) -> int:
        """How often the loop has run; 0 once it is over, so that a later visit counts from there."""
        count = state.get(_counter(self.node.id), 0) + 1
        over = {**seen(self.config, state), **outputs}[loop.condition_field] is True
        return 0 if over or count >= loop.max_iterations else count


def _attempt() -> int:
    from langgraph.runtime import get_runtime

    info = get_runtime().execution_info
    return info.node_attempt if info is not None else 1


def _output_type(node: Node, name: str) -> Type:
    schema = node.output_schema
    return next((field.type for field in schema.fields or () if field.name == name), schema.type)


# Edges


def _add_edge(config: WorkflowConfig, graph: Any, edge: Edge, gathers: frozenset[str]) -> None:
    from langgraph.graph import START as GRAPH_START

    source = GRAPH_START if edge.source == START else edge.source
    for target in edge.to:
        # A node that gathers has one edge from all before it.
        if target not in gathers:
            graph.add_edge(source, _end(target))
    if edge.routes:
        graph.add_conditional_edges(source, _routes(config, edge), [_end(name) for name in edge.targets])
    if edge.loop is not None:
        graph.add_conditional_edges(source, _loop(edge, edge.loop), [_end(name) for name in edge.targets])
    if edge.parallel is not None:
        targets = dict.fromkeys([edge.parallel.target_node, *_onwards(config, edge.parallel)])
        graph.add_conditional_edges(source, _map(config, edge, edge.parallel), list(targets))


def _end(name: str) -> str:
    from langgraph.graph import END as GRAPH_END

    return GRAPH_END if name == END else name


def _node(edge: Edge) -> str | None:
    return None if edge.source == START else edge.source


def _routes(config: WorkflowConfig, edge: Edge) -> Callable[[Mapping[str, Any]], str]:
    """The first route whose condition holds, else the default one."""

    def routes(state: Mapping[str, Any]) -> str:
        values = seen(config, state)
        for route in edge.routes:
            condition = route.condition.logic
            if condition is not None and _holds(condition, values, edge):
                return _end(route.to)
        return _end(next(route.to for route in edge.routes if route.condition.logic is None))

    return routes


def _holds(condition: Condition, values: Mapping[str, Any], edge: Edge) -> bool:
    try:
        return condition.evaluate(values, edge.source)
    except ConditionFailed as error:
        text = str(error).removeprefix(f"{edge.source}: ")
        raise WorkflowError(text, edge.place, _node(edge)) from error


def _loop(edge: Edge, of: Loop) -> Callable[[Mapping[str, Any]], str]:
    """Back to the node, or out: the node has counted, and has seen whether the loop is over."""

    def loop(state: Mapping[str, Any]) -> str:
        return _end(of.exit_to) if state.get(_counter(edge.source), 0) == 0 else edge.source

    return loop


def _map(config: WorkflowConfig, edge: Edge, of: Parallel) -> Callable[[Mapping[str, Any]], list[Any]]:
    """The node once for each item; with no items, on to where the node leads."""
    from langgraph.types import Send

    names = channels(config)
    read = [names[field] for field in fields_read(config.node(of.target_node)) if field in names]

    def parallel(state: Mapping[str, Any]) -> list[Any]:
        items = seen(config, state)[of.items_field]
        if items is None:
            text = f"parallel: {of.items_field} is null: a list is wanted, [] for no items"
            raise WorkflowError(text, edge.place, _node(edge))
        if not items:
            return _onwards(config, of, state)
        # What the node reads, and no more: each item's span has all of it.
        sent = {name: state[name] for name in read if name in state} | {_COLLECT: of.collect_field}
        return [Send(of.target_node, {**sent, ITEM: item, INDEX: at}) for at, item in enumerate(items)]

    return parallel


def _onwards(config: WorkflowConfig, of: Parallel, state: Mapping[str, Any] | None = None) -> list[str]:
    """Where the node of a map leads, by its routes as they are now; without a state, wherever it may."""
    found: list[str] = []
    for edge in config.edges_from(of.target_node):
        if edge.routes and state is not None:
            found.append(_routes(config, edge)(state))
        else:
            found += [_end(name) for name in edge.targets]
    return found
