"""Flat spans and calls into one forest, from spans made by hand as LangGraph and MLflow leave them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_agenttrace.calls import Call, Caller
from pytest_agenttrace.execution import Origin
from pytest_agenttrace.forest import build_trace
from pytest_agenttrace.trace import Execution, Span, Trace
from pytest_agenttrace.usage import Usage
from tests.handmade import FLASH, Run, built, call, dollar_per_million, shape, tokens

ONE, TWO, THREE = tokens(10, 5), tokens(20, 7), tokens(30, 9)


def names(executions: tuple[Execution, ...]) -> list[tuple[str, str, int]]:
    return [(execution.node, execution.status, execution.attempts) for execution in executions]


# Plain graphs


def two_nodes(run: Run, parent: Span | None = None, tag: str = "") -> tuple[Span, Span, Span]:
    graph = run.graph(parent=parent)
    a = run.node("a", graph, 1, f"a:{tag}1")
    run.model(a, ONE)
    b = run.node("b", graph, 2, f"b:{tag}2")
    run.model(b, TWO)
    return graph, a, b


def test_a_plain_run() -> None:
    run = Run()
    _, a, b = two_nodes(run)
    trace = built(run, calls=[call(1, a, ONE), call(2, b, TWO)])
    assert trace.trajectory == ["a", "b"]
    assert [shape(root) for root in trace.roots] == [
        {"LangGraph": [{"a": ["ChatGoogleGenerativeAI"]}, {"b": ["ChatGoogleGenerativeAI"]}]}
    ]
    assert trace.tokens == 42
    assert trace.tokens_by_node == {"a": 15, "b": 27}
    assert [(c.node, c.span_name, c.call.index if c.call else None) for c in trace.llm_calls] == [
        ("a", "ChatGoogleGenerativeAI", 1),
        ("b", "ChatGoogleGenerativeAI", 2),
    ]


def test_nothing_makes_an_empty_trace() -> None:
    trace = build_trace([], [], dollar_per_million)
    assert (trace.roots, trace.trajectory, trace.tokens, trace.llm_calls) == ((), [], 0, ())


def test_spans_without_a_graph_are_a_forest_without_executions() -> None:
    run = Run()
    chain = run.add("RunnableSequence")
    run.model(chain, ONE)
    run.model(None, TWO)
    trace = built(run)
    assert [shape(root) for root in trace.roots] == [
        {"RunnableSequence": ["ChatGoogleGenerativeAI"]},
        "ChatGoogleGenerativeAI",
    ]
    assert (trace.trajectory, trace.tokens) == ([], 42)


def test_a_routers_span_is_no_execution() -> None:
    run = Run()
    graph = run.graph()
    a = run.node("a", graph, 1, "a:1")
    run.add("route", a, node="a", step=1, namespace="a:1", path=a.path)
    assert names(built(run).executions) == [("a", "ok", 1)]


def test_a_loop_is_an_execution_each_time() -> None:
    run = Run()
    graph = run.graph()
    for step in range(1, 12):
        run.node("agent" if step % 2 else "tools", graph, step, f"n:{step}")
    assert built(run).trajectory == ["agent", "tools"] * 5 + ["agent"]


# Wrong parents


def test_nodes_chained_by_wrong_parents_are_brought_back_under_the_graph() -> None:
    run = Run()
    graph = run.graph()
    above = graph
    for step, name in enumerate("abc", 1):
        above = run.node(name, above, step, f"{name}:{step}")
        run.model(above, ONE)
    trace = built(run)
    assert [shape(root) for root in trace.roots] == [
        {"LangGraph": [{name: ["ChatGoogleGenerativeAI"]} for name in "abc"]}
    ]
    assert trace.tokens_by_node == {"a": 15, "b": 15, "c": 15}
    assert trace.tokens == 45


def test_a_node_below_another_nodes_model_span_keeps_its_own_calls() -> None:
    run = Run()
    graph = run.graph()
    a = run.node("a", graph, 1, "a:1")
    model = run.model(a, ONE)
    b = run.node("b", model, 2, "b:2")
    run.model(b, TWO)
    trace = built(run)
    assert shape(trace.roots[0]) == {
        "LangGraph": [{"a": ["ChatGoogleGenerativeAI"]}, {"b": ["ChatGoogleGenerativeAI"]}]
    }
    assert trace.tokens_by_node == {"a": 15, "b": 27}


def test_wrong_parents_do_not_change_the_order_of_parallel_siblings() -> None:
    run = Run()
    above = run.graph()
    for i in (2, 1, 0):
        above = run.node(f"n{i}", above, 1, f"n:{i}", path=("__pregel_push", i))
    assert built(run).trajectory == ["n0", "n1", "n2"]


def test_a_span_in_a_root_of_its_own_joins_its_node() -> None:
    run, lost = Run(), Run("t2", 5_000_000)
    _, _, b = two_nodes(run)
    lost.model(None, THREE, node=b.node, step=b.step, namespace=b.namespace, path=b.path)
    trace = built(run, lost)
    assert len(trace.roots) == 1
    assert trace.tokens_by_node == {"a": 15, "b": 66}


def test_a_span_in_a_root_of_its_own_joins_the_attempt_that_was_running() -> None:
    run, lost = Run(), Run("t2", 5_000_000)
    graph = run.graph()
    first = run.node("a", graph, 1, "a:1", status="error", error_type="ValueError")
    run.node("a", graph, 1, "a:1", start_ns=8_000_000)
    lost.add("first", None, namespace="a:1", node="a", step=1)
    lost.add("second", None, namespace="a:1", node="a", step=1, start_ns=9_000_000)
    lost.add("early", None, namespace="a:1", node="a", step=1, start_ns=first.start_ns - 1)
    assert [shape(span) for span in built(run, lost).executions[0].spans] == [
        {"a": ["early", "first"]},
        {"a": ["second"]},
    ]


def test_right_parents_inside_of_a_node_are_kept() -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    chain = run.add("RunnableSequence", a, node="a", step=1, namespace="a:1")
    run.model(chain, ONE)
    assert shape(built(run).roots[0]) == {"LangGraph": [{"a": [{"RunnableSequence": ["ChatGoogleGenerativeAI"]}]}]}


def test_a_node_whose_parent_was_lost_is_a_root() -> None:
    run = Run()
    run.node("b", replace(run.graph(), span_id="lost"), 2, "b:2")
    trace = built(run)
    assert [root.name for root in trace.roots] == ["LangGraph", "b"]
    assert trace.trajectory == ["b"]


def test_parents_in_a_circle_end_in_a_root() -> None:
    run = Run()
    a = run.node("a", None, 1, "a:1")
    b = run.node("b", a, 2, "b:2")
    run.spans[0] = replace(a, parent_id=b.span_id)
    itself = run.add("alone")
    run.spans[2] = replace(itself, parent_id=itself.span_id)
    trace = built(run)
    assert trace.trajectory == ["a", "b"]
    assert sorted(span.name for root in trace.roots for span in root.walk()) == ["a", "alone", "b"]


def test_what_starts_below_a_span_that_has_ended_belongs_to_one_that_still_ran() -> None:
    run = Run()
    graph = run.graph()
    for n in (1, 2):
        above = run.spans[-1]
        at = 2_000_000 * n
        failed = run.node("a", above, 1, "a:1", start_ns=at, end_ns=at + 9_000, status="error", error_type="Flaky")
        run.model(failed, ONE, start_ns=at + 1_000, end_ns=at + 8_000)
    last = run.node("a", run.spans[-1], 1, "a:1", start_ns=6_000_000)
    model = run.model(last, TWO, start_ns=6_001_000, end_ns=6_002_000)
    run.node("x", run.graph(parent=model, start_ns=6_003_000), 1, "a:1|x:1", start_ns=6_004_000)
    trace = built(run)
    assert names(trace.executions) == [("a", "ok", 3)]
    assert trace.outline == [{"a": [FLASH, FLASH, FLASH, {"x": []}]}]
    model_name = "ChatGoogleGenerativeAI"
    assert shape(trace.roots[0]) == {
        graph.name: [{"a": [model_name]}, {"a": [model_name]}, {"a": [model_name, {"LangGraph": ["x"]}]}]
    }


def test_a_run_below_one_that_has_ended_is_a_run_of_its_own() -> None:
    run = Run()
    first = run.graph("first", end_ns=1_005_000)
    a = run.node("a", first, 1, "a:1", end_ns=1_004_000)
    second = run.graph("second", a, node=None, namespace=None, step=None, path=(), start_ns=2_000_000)
    run.node("b", second, 1, "b:1", start_ns=2_001_000)
    trace = built(run)
    assert [shape(root) for root in trace.roots] == [{"first": ["a"]}, {"second": ["b"]}]


@pytest.mark.parametrize(
    ("asked", "trajectory"), [(None, ["a"]), ("model", ["__start__", "a"]), ("wire", ["__start__", "a"])]
)
def test_langgraphs_entry_is_a_node_only_where_a_router_asked_something(
    asked: str | None, trajectory: list[str]
) -> None:
    run = Run()
    graph = run.graph()
    entry = run.node("__start__", graph, 0, "__start__:1")
    if asked == "model":
        run.model(entry, ONE)
    run.node("a", graph, 1, "a:1")
    assert built(run, calls=[call(1, entry, ONE)] if asked == "wire" else []).trajectory == trajectory


# Parallel branches


def fanned_out(paths: list[tuple[Any, ...]]) -> Trace:
    """Siblings of one step, the last one of the list started first."""
    run = Run()
    graph = run.graph()
    for i, path in reversed(list(enumerate(paths))):
        run.node(f"n{i}", graph, 1, f"n:{9 - i}", path=path)
    return built(run)


@pytest.mark.parametrize(
    "paths",
    [
        [("__pregel_push", 0), ("__pregel_push", 1), ("__pregel_push", 2), ("__pregel_push", 10)],
        [("__pregel_pull", "alpha"), ("__pregel_pull", "beta"), ("__pregel_push", 0)],
        [("__pregel_push", 0, False), ("__pregel_push", ("__pregel_pull", "plan"), 0)],
        [("__pregel_push", ("__pregel_pull", "a"), 2, "x"), ("__pregel_push", ("__pregel_pull", "b"), 1, "x")],
        [(), (0,), (1, "a"), ("a", 1), (("a",), 1)],
        [(None,), ("__pregel_pull", "x")],
        [("__pregel_push", [0, 1]), ("__pregel_push", [0, "a"]), ("__pregel_push", (1,))],
    ],
)
def test_parallel_siblings_stand_in_order_of_their_path(paths: list[tuple[Any, ...]]) -> None:
    trace = fanned_out(paths)
    assert trace.trajectory == [f"n{i}" for i in range(len(paths))]
    assert [span.name for span in trace.roots[0].children] == trace.trajectory


def test_what_lies_inside_of_parallel_siblings_stands_in_their_order() -> None:
    run = Run()
    graph = run.graph()
    for i in (2, 0, 1):
        outer = run.node("outer", graph, 1, f"outer:{9 - i}", path=("__pregel_push", i))
        run.node("x", run.graph(parent=outer), 1, f"outer:{9 - i}|x:1")
    trace = built(run)
    assert [e.namespace for e in trace["x"]] == ["outer:9|x:1", "outer:8|x:1", "outer:7|x:1"]
    assert [e.node for e in trace.below()] == ["outer", "x"] * 3


ELEMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
PATHS = st.lists(st.lists(ELEMENTS, max_size=4).map(tuple), min_size=2, max_size=6)


@given(PATHS, st.randoms(use_true_random=False))
@example([("__pregel_push", 0), ("__pregel_push", "0"), ("__pregel_push", (0,))], random.Random(0))
def test_paths_have_a_total_order_whatever_they_mix(paths: list[tuple[Any, ...]], shuffle: random.Random) -> None:
    run = Run()
    graph = run.graph()
    nodes = [run.node(f"n{i}", graph, 1, f"n:{i}", path=path) for i, path in enumerate(paths)]
    ordered = built(run).trajectory
    # Other start times, the same order.
    times = shuffle.sample(range(len(paths)), len(paths))
    run.spans[1:] = [replace(node, start_ns=graph.start_ns + 1 + t) for node, t in zip(nodes, times, strict=True)]
    assert built(run).trajectory == ordered


def tools_asked(*ids: str) -> dict[str, Any]:
    return {"messages": [{"type": "ai", "tool_calls": [{"name": "search", "args": {}, "id": i} for i in ids]}]}


@pytest.mark.parametrize("where", ["attributes", "outputs"])
def test_tools_that_ran_in_parallel_stand_in_the_order_they_were_asked_for(where: str) -> None:
    run = Run()
    tools = run.node("tools", run.graph(), 2, "tools:2", inputs=tools_asked("c1", "c2", "c3", "c4"))
    run.tool(tools, "note", inputs={"n": 0})
    for n in (3, 1, 4, 2):
        run.tool(tools, "search", inputs={"n": n}, **{where: {"tool_call_id": f"c{n}"}})
    run.tool(tools, "other", inputs={}, attributes={"tool_call_id": "unheard of"})
    trace = built(run)
    asked = [("search", {"n": n}) for n in (1, 2, 3, 4)]
    assert trace.tool_calls == [("note", {"n": 0}), *asked, ("other", {})]


@pytest.mark.parametrize("inputs", [None, "text", {"tool_calls": "odd"}, {"tool_calls": [1, {"id": 2}, {}]}, [[]]])
def test_tools_without_requests_stand_in_the_order_they_started(inputs: Any) -> None:
    run = Run()
    tools = run.node("tools", run.graph(), 2, "tools:2", inputs=inputs)
    for n in (2, 1):
        run.tool(tools, "search", inputs={"n": n}, attributes={"tool_call_id": f"c{n}"})
    assert built(run).tool_calls == [("search", {"n": 2}), ("search", {"n": 1})]


# Several runs


def test_two_runs_stand_one_after_the_other() -> None:
    first, second = Run("zz", 1_000_000), Run("aa", 9_000_000)
    two_nodes(second, tag="x")
    two_nodes(first, tag="y")
    trace = built(second, first)
    assert trace.trajectory == ["a", "b", "a", "b"]
    assert [root.trace_id for root in trace.roots] == ["zz", "aa"]
    assert (trace["a"].tokens, len(trace["a"])) == (30, 2)


@pytest.mark.parametrize("tags", [("x", "y"), ("y", "x")])
def test_two_runs_below_one_function_stand_one_after_the_other(tags: tuple[str, str]) -> None:
    run = Run()
    main = run.add("main", type="UNKNOWN")
    for tag in tags:
        two_nodes(run, main, tag)
    assert built(run).trajectory == ["a", "b", "a", "b"]


@pytest.mark.parametrize("second", ["c:1|1", "c:1|0"])
def test_a_graph_run_twice_inside_of_a_node_is_two_runs(second: str) -> None:
    run = Run()
    c = run.node("c", run.graph(), 1, "c:1")
    for space in ("c:1", second):
        inner = run.graph(parent=c)
        x = run.node("x", inner, 1, f"{space}|x:9")
        run.node("y", x if space == "c:1" else inner, 2, f"{space}|y:1")
    trace = built(run)
    assert trace.trajectory == ["c"]
    assert trace["c"].trajectory == ["x", "y", "x", "y"]


# Attempts


def test_a_retry_is_an_attempt_of_one_execution() -> None:
    run = Run()
    graph = run.graph()
    failed = run.node("a", graph, 1, "a:1", status="error", error_type="ValueError", error="not yet", inputs={"n": 1})
    run.model(failed, ONE)
    again = run.node("a", graph, 1, "a:1", inputs={"n": 1}, outputs={"m": 2})
    run.model(again, TWO)
    run.node("b", graph, 2, "b:2")
    trace = built(run)
    assert names(trace.executions) == [("a", "ok", 2), ("b", "ok", 1)]
    execution = trace.executions[0]
    assert (execution.inputs, execution.outputs, execution.error, execution.step) == ({"n": 1}, {"m": 2}, None, 1)
    assert execution.tokens == 42
    assert [span.name for span in execution.spans] == ["a", "a"]


@pytest.mark.parametrize(
    ("error_type", "error", "status", "said"),
    [
        ("ValueError", "no", "error", "ValueError: no"),
        ("ValueError", None, "error", "ValueError"),
        (None, None, "error", None),
        ("GraphInterrupt", "(Interrupt(...),)", "interrupted", None),
        ("langgraph.errors.NodeInterrupt", "wait", "interrupted", None),
        ("asyncio.exceptions.CancelledError", "", "cancelled", None),
        ("langgraph.errors.ParentCommand", "Command(...)", "ok", None),
    ],
)
def test_how_an_execution_ended(error_type: str | None, error: str | None, status: str, said: str | None) -> None:
    run = Run()
    run.node("a", run.graph(), 1, "a:1", status="error", error_type=error_type, error=error)
    execution = built(run).executions[0]
    assert (execution.status, execution.error, execution.attempts) == (status, said, 1)


@pytest.mark.parametrize(("recorded", "status"), [("ok", "ok"), ("unset", "ok"), ("open", "open")])
def test_an_execution_that_did_not_fail(recorded: str, status: str) -> None:
    run = Run()
    run.node("a", run.graph(), 1, "a:1", status=recorded)
    assert built(run).executions[0].status == status


def interrupted_and_resumed() -> tuple[Trace, Call]:
    first, second = Run("t1"), Run("t2", 9_000_000)
    graph = first.graph()
    first.node("plan", graph, 1, "plan:1")
    waiting = first.node("ask", graph, 2, "ask:2", status="error", error_type="GraphInterrupt", error="?")
    first.model(waiting, ONE)
    graph = second.graph()
    resumed = second.node("ask", graph, 2, "ask:2")
    second.model(resumed, TWO)
    second.node("done", graph, 3, "done:3")
    unseen = call(9, resumed, THREE, at=1.0)
    return built(second, first, calls=[call(1, waiting, ONE), call(2, resumed, TWO), unseen]), unseen


def test_a_resume_joins_the_execution_it_resumes() -> None:
    trace, unseen = interrupted_and_resumed()
    assert names(trace.executions) == [("plan", "ok", 1), ("ask", "ok", 1), ("done", "ok", 1)]
    assert trace.tokens_by_node == {"plan": 0, "ask": 15 + 27 + 39, "done": 0}
    assert trace.tokens == 81
    assert next(c for c in trace.llm_calls if c.span_id is None).call is unseen


def test_each_run_of_an_interrupted_graph_is_drawn_with_its_own_tokens_once() -> None:
    trace, _ = interrupted_and_resumed()
    assert str(trace).splitlines() == [
        "LangGraph               -  15 tok  $0.000015",
        "└─ plan",
        "LangGraph               -  66 tok  $0.000066",
        "├─ ask                  -  81 tok  $0.000081",
        "│  ├─ gemini-2.5-flash     15 tok  $0.000015   10 in, 5 out",
        "│  └─ gemini-2.5-flash     27 tok  $0.000027   20 in, 7 out",
        "└─ done",
    ]


def test_retries_of_a_resumed_node_are_its_attempts() -> None:
    run = Run()
    graph = run.graph()
    for kind in ("GraphInterrupt", "ValueError", "GraphInterrupt"):
        run.node("ask", graph, 1, "ask:1", status="error", error_type=kind)
    run.node("ask", graph, 1, "ask:1")
    assert names(built(run).executions) == [("ask", "ok", 2)]


# Subgraphs


def with_subgraph() -> Trace:
    run = Run()
    graph = run.graph()
    run.node("plan", graph, 1, "plan:1")
    sub = run.node("sub", graph, 2, "sub:2")
    run.model(sub, ONE)
    x = run.node("x", sub, 1, "sub:2|x:3")
    run.model(x, TWO)
    y = run.node("y", x, 2, "sub:2|y:4")
    run.model(y, THREE)
    run.node("end", graph, 3, "end:5")
    return built(run)


def test_a_subgraph_is_one_node_with_executions_inside() -> None:
    trace = with_subgraph()
    assert trace.trajectory == ["plan", "sub", "end"]
    assert trace["sub"].trajectory == ["x", "y"]
    assert trace.tokens_by_node == {"plan": 0, "sub": 81, "end": 0}
    assert trace["sub"].tokens_by_node == {"x": 27, "y": 39}
    model = "ChatGoogleGenerativeAI"
    assert shape(trace.roots[0]) == {"LangGraph": ["plan", {"sub": [model, {"x": [model]}, {"y": [model]}]}, "end"]}


def test_namespaces_that_only_begin_alike_are_not_inside_each_other() -> None:
    run = Run()
    graph = run.graph()
    for n, space in enumerate(("a:1", "a:12", "a:1|b:2"), 1):
        run.model(run.node(f"n{n}", graph, n, space), ONE)
    trace = built(run)
    assert trace.trajectory == ["n1", "n2"]
    assert (trace["n1"].tokens, trace["n2"].tokens) == (30, 15)


def test_graphs_whose_namespaces_begin_anew_belong_to_the_node_that_invoked_them() -> None:
    run = Run()
    graph = run.graph()
    for n, space in ((1, ""), (2, "sub|")):
        sub = run.node("sub", graph, n, f"sub:{n}")
        x = run.node("x", run.graph(parent=sub), n, f"{space}x:{n}")
        run.node("deep", run.graph(parent=x), 1, f"deep:{n}")
        y = run.node("y", run.graph(parent=x), 1, f"{space}x:{n}|y:1")
        run.model(y, ONE)
    trace = built(run, calls=[call(1, y, ONE)])
    assert trace.trajectory == ["sub", "sub"]
    assert trace.outline == [{"sub": [{"x": [{"deep": []}, {"y": [FLASH]}]}]}] * 2
    assert [e.namespace for e in trace["deep"]] == ["sub:1|x:1|deep:1", "sub:2|sub|x:2|deep:2"]
    assert [c.namespace for c in trace.llm_calls] == ["sub:1|x:1|y:1", "sub:2|sub|x:2|y:1"]
    assert (trace["sub"].tokens, [c.index for c in trace["y"].calls]) == (30, [1])


def test_graphs_that_seem_to_have_invoked_each_other_are_left_where_they_are() -> None:
    run = Run()
    b_graph = run.add("g", None, namespace="b:1", node="b", step=1)
    a_graph = run.add("g", None, namespace="a:1", node="a", step=1)
    run.node("a", b_graph, 1, "a:1")
    run.node("b", a_graph, 1, "b:1")
    assert sorted(span.name for root in built(run).roots for span in root.walk()) == ["a", "b", "g", "g"]


# Names that mislead


@pytest.mark.parametrize("kind", ["TOOL", "CHAT_MODEL", "LLM", "EMBEDDING"])
def test_a_tool_or_model_that_bears_its_nodes_name_is_no_execution(kind: str) -> None:
    run = Run()
    a = run.node("search", run.graph(), 1, "search:1")
    run.add("search", a, type=kind, node="search", step=1, namespace="search:1", path=a.path)
    assert names(built(run).executions) == [("search", "ok", 1)]
    run.add("other", a, type=kind, node="other", step=1, namespace="search:1|other:1")
    assert names(built(run).executions) == [("search", "ok", 1)]


def test_a_chain_inside_of_a_node_that_bears_its_name_is_no_attempt() -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    run.node("a", run.add("RunnableSequence", a, node="a", step=1, namespace="a:1"), 1, "a:1")
    run.node("a", a, 1, "a:1")
    assert names(built(run).executions) == [("a", "ok", 1)]


# Which spans are a call


def test_nested_autologs_count_a_call_once() -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    outer = run.model(a, ONE)
    middle = run.add("generate_content", outer, type="LLM", usage=ONE)
    run.add("Models.generate_content", middle, type="CHAT_MODEL", usage=ONE)
    trace = built(run, calls=[call(1, a, ONE)])
    assert trace.tokens == 15
    assert [(c.span_id, c.call is not None) for c in trace.llm_calls] == [(outer.span_id, True)]


def test_a_trace_of_its_own_that_tells_a_call_again_counts_once() -> None:
    run, beside = Run(), Run("t2", 1_100_000)
    a = run.node("a", run.graph(), 1, "a:1")
    told = run.model(a, ONE)
    origin = Origin(Caller("a", 1, "a:1", a.path))
    beside.model(None, ONE, name="AsyncModels.generate_content", origin=origin, end_ns=1_200_000)
    other = beside.trace_id, beside.spans[0].span_id
    trace = built(run, beside, calls=[call(1, a, ONE)])
    assert ([c.span_id for c in trace.llm_calls], trace.tokens) == ([told.span_id], 15)
    # Where the wire has a call for it, it is one.
    trace = built(run, beside, calls=[call(1, a, ONE), call(2, a, ONE)])
    assert ([c.span_id for c in trace.llm_calls], trace.tokens) == ([told.span_id, other[1]], 30)


def test_prompts_of_one_generate_are_calls_although_their_spans_stand_below_each_other() -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    first = run.model(a, ONE)
    second = run.model(first, TWO)
    trace = built(run, calls=[call(1, a, ONE), call(2, a, TWO)])
    assert [(c.span_id, c.call and c.call.index) for c in trace.llm_calls] == [
        (first.span_id, 1),
        (second.span_id, 2),
    ]
    assert trace.outline == [{"a": [FLASH, FLASH]}]


def test_a_span_of_a_model_without_usage_gives_way_to_those_below_that_claim_some() -> None:
    run = Run()
    b = run.node("b", run.graph(), 1, "b:1")
    wrapper = run.add("ask_twice", b, type="LLM")
    first, second = run.model(b, ONE), run.model(b, TWO)
    run.spans[-2:] = [replace(first, parent_id=wrapper.span_id), replace(second, parent_id=wrapper.span_id)]
    trace = built(run, calls=[call(1, b, ONE), call(2, b, TWO)])
    assert [(c.span_id, c.call.index if c.call else None) for c in trace.llm_calls] == [
        (first.span_id, 1),
        (second.span_id, 2),
    ]


def test_nested_spans_without_usage_are_one_call_of_unknown_tokens() -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    outer = run.model(a, None)
    run.add("generate_content", outer, type="LLM")
    assert [(c.span_id, c.usage) for c in built(run).llm_calls] == [(outer.span_id, None)]


def test_a_raw_clients_span_belongs_to_the_node_around_it() -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    run.add("Models.generate_content", a, type="LLM", usage=ONE, model=FLASH)
    (made,) = built(run).llm_calls
    assert (made.node, made.namespace, made.model, made.call) == ("a", "a:1", FLASH, None)


# Both witnesses


def paired(spans: list[Usage | None], wire: list[Usage | None], **fields: Any) -> list[tuple[int | None, str | None]]:
    """(index of the call, last digit of the span) for each model call of one node."""
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    for usage in spans:
        run.model(a, usage)
    trace = built(run, calls=[call(i, a, usage, at=10.0 + i, **fields) for i, usage in enumerate(wire, 1)])
    return [(c.call.index if c.call else None, c.span_id[-1] if c.span_id else None) for c in trace.llm_calls]


@pytest.mark.parametrize(
    ("spans", "wire", "pairs"),
    [
        ([ONE, TWO], [ONE, TWO], [(1, "2"), (2, "3")]),
        ([ONE, TWO], [TWO, ONE], [(2, "2"), (1, "3")]),
        ([ONE, ONE, TWO], [TWO, ONE, ONE], [(2, "2"), (3, "3"), (1, "4")]),
        ([ONE, TWO], [THREE, ONE], [(2, "2"), (1, "3")]),
        ([ONE, TWO], [ONE], [(1, "2"), (None, "3")]),
        ([TWO, ONE], [ONE], [(None, "2"), (1, "3")]),
        ([ONE], [TWO, ONE], [(2, "2"), (1, None)]),
        ([], [ONE, TWO], [(1, None), (2, None)]),
        ([ONE, TWO], [], [(None, "2"), (None, "3")]),
        ([ONE, None], [None], [(None, "2"), (1, "3")]),
        ([None, ONE], [ONE, None], [(2, "2"), (1, "3")]),
        ([Usage(10, 5, 0), Usage(20, 7, 0)], [TWO, ONE], [(2, "2"), (1, "3")]),
        ([Usage(total_tokens=8), Usage(total_tokens=9)], [Usage(total_tokens=9)], [(None, "2"), (1, "3")]),
    ],
)
def test_calls_and_spans_are_paired_by_what_they_count_then_in_order(
    spans: list[Usage | None], wire: list[Usage | None], pairs: list[tuple[int | None, str | None]]
) -> None:
    assert paired(spans, wire) == pairs


def test_calls_are_paired_within_their_node() -> None:
    run = Run()
    graph = run.graph()
    a, b = run.node("a", graph, 1, "a:1"), run.node("b", graph, 1, "b:1")
    in_a, in_b = run.model(a, ONE), run.model(b, ONE)
    alone = run.model(None, ONE)
    calls = [call(1, b, ONE), call(2, None, ONE), call(3, a, ONE)]
    found = {c.span_id: c.call.index for c in built(run, calls=calls).llm_calls if c.call}
    assert found == {in_a.span_id: 3, in_b.span_id: 1, alone.span_id: 2}


@pytest.mark.parametrize("status", [400, 429, 503])
def test_a_failed_attempt_is_an_exchange_but_no_call_to_a_model(status: int) -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    run.model(a, None, status="error")
    answered = run.model(a, ONE)
    trace = built(run, calls=[call(1, a, None, status=status), call(2, a, ONE)])
    assert [(c.span_id, c.call.index if c.call else None) for c in trace.llm_calls] == [(answered.span_id, 2)]
    assert [c.index for c in trace.calls] == [1, 2]
    assert trace.tokens == 15


def test_a_span_that_failed_after_its_call_was_answered_is_paired() -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    broken = run.model(a, None, status="error")
    (made,) = built(run, calls=[call(1, a, ONE)]).llm_calls
    assert (made.span_id, made.usage) == (broken.span_id, ONE)


def test_a_span_that_failed_is_paired_last() -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    run.model(a, None, status="error")
    answered = run.model(a, None)
    (made,) = built(run, calls=[call(1, a, None)]).llm_calls
    assert made.span_id == answered.span_id


def test_a_failed_span_without_a_call_is_no_call() -> None:
    run = Run()
    run.model(run.node("a", run.graph(), 1, "a:1"), None, status="error")
    trace = built(run)
    assert (trace.llm_calls, trace.tokens) == ((), 0)


@pytest.mark.parametrize("method", ["countTokens", "cachedContents", "files", "models"])
def test_counting_tokens_and_files_are_no_calls_to_a_model(method: str) -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    trace = built(run, calls=[call(1, a, None, method=method)])
    assert (trace.llm_calls, len(trace.calls)) == ((), 1)


def test_usage_comes_from_the_wire_where_there_is_a_call() -> None:
    run = Run()
    a = run.node("a", run.graph(), 1, "a:1")
    run.model(a, tokens(999, 1))
    assert built(run, calls=[call(1, a, ONE)]).tokens == 15
    assert built(run).tokens == 1000


# Order of the input


def busy() -> tuple[list[Span], list[Call]]:
    """Two runs, wrong parents, a fan-out, a retry, a subgraph, tools, nested autologs."""
    run, second = Run("t1"), Run("t2", 9_000_000)
    graph = run.graph()
    plan = run.node("plan", graph, 1, "plan:1", status="error", error_type="ValueError")
    run.node("plan", graph, 1, "plan:1")
    work = [run.node("work", plan, 2, f"work:{i}", path=("__pregel_push", 2 - i, False)) for i in range(3)]
    for span in work:
        run.model(run.model(span, ONE), ONE, name="inner")
    sub = run.node("sub", work[0], 3, "sub:3")
    inner = run.node("x", sub, 1, "sub:3|x:1", inputs=tools_asked("c1", "c2"))
    for n in (2, 1):
        run.tool(inner, "search", inputs=n, attributes={"tool_call_id": f"c{n}"}, start_ns=8_000_000)
    _, a, b = two_nodes(second, tag="z")
    calls = [call(1, work[1], ONE), call(2, work[0], ONE), call(3, b, TWO), call(4, a, THREE)]
    return run.spans + second.spans, calls


def told(trace: Trace) -> Any:
    return (
        trace.trajectory,
        trace.roots,
        trace.executions,
        trace.llm_calls,
        trace.tool_calls,
        trace.outline,
        str(trace),
    )


@given(st.randoms(use_true_random=False))
def test_the_order_of_the_spans_does_not_matter(shuffle: random.Random) -> None:
    spans, calls = busy()
    expected = told(build_trace(spans, calls, dollar_per_million))
    assert told(build_trace(shuffle.sample(spans, len(spans)), calls, dollar_per_million)) == expected


def test_the_busy_trace_is_what_it_should_be() -> None:
    trace = build_trace(*busy(), dollar_per_million)
    assert trace.trajectory == ["plan", "work", "work", "work", "sub", "a", "b"]
    assert trace.tool_calls == [("search", {"input": 1}), ("search", {"input": 2})]
    assert trace.tokens == 3 * 15 + 39 + 27


ANY_SPANS = st.lists(
    st.tuples(
        st.integers(0, 11),
        st.sampled_from([None, "a:1", "b:2", "a:1|x:1", "a:1|1|x:1", "c:3|y:1"]),
        st.sampled_from(["a", "b", "x", "g"]),
        st.sampled_from(["CHAIN", "TOOL", "CHAT_MODEL"]),
        st.sampled_from([None, ONE, Usage()]),
        st.sampled_from(["ok", "error", "open"]),
    ),
    max_size=12,
)


@given(ANY_SPANS, st.randoms(use_true_random=False))
def test_any_spans_make_a_trace_that_loses_none(rows: list[tuple[Any, ...]], shuffle: random.Random) -> None:
    spans = [
        Span("t", f"s{i}", f"s{up}", name, kind, status, i, i, node=name, namespace=space, usage=usage)
        for i, (up, space, name, kind, usage, status) in enumerate(rows)
    ]
    trace = build_trace(spans, [], dollar_per_million)
    assert sorted(s.span_id for root in trace.roots for s in root.walk()) == sorted(s.span_id for s in spans)
    assert told(build_trace(shuffle.sample(spans, len(spans)), [], dollar_per_million)) == told(trace)
    assert sum(len(e.spans) for e in trace.below()) == len({s.span_id for e in trace.below() for s in e.spans})


def test_a_span_given_twice_is_one() -> None:
    run = Run()
    two_nodes(run)
    trace = build_trace(run.spans * 2, [], dollar_per_million)
    assert told(trace) == told(built(run))
    assert trace.tokens == 42


def many(make: Callable[[Run], None]) -> Trace:
    run = Run()
    make(run)
    return built(run)


def test_a_long_chain_of_wrong_parents_is_mended() -> None:
    def chained(run: Run) -> None:
        above = run.graph()
        for step in range(300):
            above = run.node("n", above, step, f"n:{step}")

    trace = many(chained)
    assert len(trace.trajectory) == 300
    assert len(trace.roots[0].children) == 300


# Deeper than Python's stack


def test_spans_nested_deeper_than_the_stack() -> None:
    run = Run()
    span = run.node("a", run.graph(), 1, "a:1")
    for number in range(1_500):
        span = run.add(f"step {number}", span)
    run.model(span, ONE, span_id="the call")
    trace = built(run, calls=[call(1, run.spans[1], ONE)])
    below = list(trace.roots[0].walk())
    assert [span.name for span in below[:3]] == ["LangGraph", "a", "step 0"]
    assert [span.span_id for span in below[-1:]] == ["the call"]
    assert (len(below), len(trace.spans(name="step 1499")), trace.tokens_by_node) == (1_503, 1, {"a": 15})


def test_tools_of_inputs_nested_deeper_than_the_stack() -> None:
    asked: Any = {"tool_calls": [{"id": "one"}, {"id": "two"}]}
    for _ in range(5_000):
        asked = [asked]
    run = Run()
    node = run.node("a", run.graph(), 1, "a:1", inputs=asked)
    run.tool(node, "second", attributes={"tool_call_id": "two"})
    run.tool(node, "first", attributes={"tool_call_id": "one"})
    assert [name for name, _ in built(run).tool_calls] == ["first", "second"]


def test_requests_are_told_in_the_order_they_were_written() -> None:
    run = Run()
    inputs = {
        "messages": [
            {"tool_calls": [{"id": "1"}], "then": {"tool_calls": [{"id": "2"}]}},
            [{"tool_calls": [{"id": "3"}, {"id": 4}, "no"]}, {"tool_calls": {"id": "no"}}],
        ],
        "more": {"tool_calls": [{"id": "5"}]},
    }
    node = run.node("a", run.graph(), 1, "a:1", inputs=inputs)
    for request in ("5", "3", "2", "1"):
        run.tool(node, f"tool {request}", attributes={"tool_call_id": request})
    assert [name for name, _ in built(run).tool_calls] == ["tool 1", "tool 2", "tool 3", "tool 5"]
