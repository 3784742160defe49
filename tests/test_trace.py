"""Reading a trace: selecting, counting, drawing; and what is said of a node that is not there."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from pytest_agenttrace.calls import ToolCall
from pytest_agenttrace.execution import inside, outer_of
from pytest_agenttrace.trace import SpanNotFound, Trace
from pytest_agenttrace.usage import UnknownTokens, Usage, UsageUnknown
from tests.handmade import Run, built, call, tokens

SECOND = tokens(2000, 213)


def article(*, model: str = "gemini-2.5-flash", second: Usage | None = SECOND) -> Trace:
    """research (two calls and a tool), a subgraph review (check, fix), write."""
    run = Run()
    graph = run.graph("article_writer")
    research = run.node("research", graph, 1, "research:1", inputs={"topic": "sails"}, outputs={"notes": "n"})
    first = run.model(research, tokens(150, 1171))
    run.tool(research, "web_search", inputs={"query": "solar sails"})
    then = run.model(research, second, model=model)
    review = run.node("review", graph, 2, "review:2")
    sub = run.graph("LangGraph", review)
    check = run.node("check", sub, 1, "review:2|check:3")
    run.tool(check, "lint", inputs="text")
    fix = run.node("fix", sub, 2, "review:2|fix:4")
    run.model(fix, tokens(40, 10))
    write = run.node("write", graph, 3, "write:5")
    asked = run.model(write, tokens(900, 167))
    return built(
        run,
        calls=[
            call(1, research, first.usage, duration=0.7, tool_requests=(ToolCall("web_search", {"query": "q"}),)),
            call(2, research, then.usage, duration=0.5, model=model),
            call(3, fix, tokens(40, 10), duration=0.02),
            call(4, write, None, status=429, at=asked.start_ns / 1e9),
            call(5, write, tokens(900, 167), duration=0.9),
        ],
    )


ARTICLE = article()


# The whole


def test_the_whole_run() -> None:
    assert ARTICLE.trajectory == ["research", "review", "write"]
    assert ARTICLE.tokens == 1321 + 2213 + 50 + 1067 == 4651
    assert ARTICLE.usage == Usage(150 + 2000 + 40 + 900, 1171 + 213 + 10 + 167, 4651)
    assert ARTICLE.cost == Decimal("0.004651")
    assert ARTICLE.tokens_by_node == {"research": 3534, "review": 50, "write": 1067}
    assert ARTICLE.cost_by_node == {
        "research": Decimal("0.003534"),
        "review": Decimal("0.00005"),
        "write": Decimal("0.001067"),
    }
    assert list(ARTICLE.tokens_by_node) == ["research", "review", "write"]
    assert ARTICLE.duration == pytest.approx(0.7 + 0.5 + 0.02 + 0.9)
    assert [c.index for c in ARTICLE.calls] == [1, 2, 3, 4, 5]
    assert [c.call.index for c in ARTICLE.llm_calls if c.call] == [1, 2, 3, 5]
    assert ARTICLE.tool_calls == [("web_search", {"query": "solar sails"}), ("lint", {"input": "text"})]
    assert [root.name for root in ARTICLE.roots] == ["article_writer"]
    assert ARTICLE.label == "run"
    assert repr(ARTICLE) == "<Trace: research > review > write>"


def test_the_numbers_remember_what_they_are_of() -> None:
    def label(number: Any) -> str:
        return str(number.label)

    assert (label(ARTICLE.tokens), label(ARTICLE.cost)) == ("run", "run")
    assert (label(ARTICLE["write"].tokens), label(ARTICLE["write"].cost)) == ("write", "write")
    assert [label(number) for number in ARTICLE.tokens_by_node.values()] == ["research", "review", "write"]
    assert [label(number) for number in ARTICLE.cost_by_node.values()] == ["research", "review", "write"]
    assert label(ARTICLE.executions[0].tokens) == "research"


def test_a_trace_is_a_collection_of_its_executions() -> None:
    assert len(ARTICLE) == 3
    assert [execution.node for execution in ARTICLE] == ["research", "review", "write"]
    assert "research" in ARTICLE
    assert "check" in ARTICLE
    assert "nobody" not in ARTICLE
    assert None not in ARTICLE
    assert bool(ARTICLE)
    assert len(ARTICLE.executions) == 3


def test_an_execution() -> None:
    execution = ARTICLE["research"].executions[0]
    assert (execution.node, execution.step, execution.status, execution.attempts) == ("research", 1, "ok", 1)
    assert (execution.inputs, execution.outputs, execution.error) == ({"topic": "sails"}, {"notes": "n"}, None)
    assert (execution.tokens, execution.cost, execution.duration) == (3534, Decimal("0.003534"), 1.2)
    assert execution.namespace == "research:1"
    assert ARTICLE["check"].executions[0].duration is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        execution.node = "other"  # type: ignore[misc]  # what must not work


# Selecting


def test_selecting_gives_a_trace() -> None:
    review = ARTICLE["review"]
    assert isinstance(review, Trace)
    assert (review.label, len(review), [e.node for e in review]) == ("review", 1, ["review"])
    assert review.trajectory == ["check", "fix"]
    assert review.tokens == 50
    assert review.tokens_by_node == {"check": 0, "fix": 50}
    assert review.tool_calls == [("lint", {"input": "text"})]
    assert [c.index for c in review.calls] == [3]
    assert review["fix"].tokens == 50
    assert review["fix"].trajectory == []
    assert repr(review) == "<Trace of review: check > fix>"
    assert repr(review["fix"]) == "<Trace of fix: 1 spans>"


def test_a_node_inside_of_a_subgraph_is_found_from_the_whole() -> None:
    assert ARTICLE["fix"].tokens == 50
    assert ARTICLE["fix"].executions[0].namespace == "review:2|fix:4"


def test_inside_of_a_selection_are_only_the_nodes_below_it() -> None:
    assert "fix" in ARTICLE["review"]
    assert "review" not in ARTICLE["review"]
    assert "write" not in ARTICLE["review"]
    with pytest.raises(SpanNotFound) as caught:
        ARTICLE["review"]["write"]
    assert str(caught.value) == "no node 'write' in this trace. It has: check, fix"


def test_failed_attempts_are_exchanges_of_the_node() -> None:
    assert [(c.index, c.status) for c in ARTICLE["write"].calls] == [(4, 429), (5, 200)]
    assert len(ARTICLE["write"].llm_calls) == 1


def test_a_node_that_ran_often_is_all_its_executions() -> None:
    run = Run()
    graph = run.graph()
    for step in range(1, 6):
        node = run.node("agent" if step % 2 else "tools", graph, step, f"n:{step}")
        run.model(node, tokens(step, 1)) if step % 2 else run.tool(node, "search", inputs={"n": step})
    trace = built(run)
    assert (len(trace["agent"]), trace["agent"].tokens) == (3, 2 + 4 + 6)
    assert [e.tokens for e in trace["agent"]] == [2, 4, 6]
    assert trace["tools"].tool_calls == [("search", {"n": 2}), ("search", {"n": 4})]
    assert trace.tokens_by_node == {"agent": 12, "tools": 0}


def test_a_node_inside_of_one_of_its_own_name_is_counted_once() -> None:
    run = Run()
    outer = run.node("agent", run.graph(), 1, "agent:1")
    run.model(outer, tokens(1, 1))
    inner = run.node("agent", run.graph(parent=outer), 1, "agent:1|agent:2")
    run.model(inner, tokens(10, 10))
    trace = built(run)
    assert (trace.trajectory, trace.tokens) == (["agent"], 22)
    assert (len(trace["agent"]), trace["agent"].tokens, len(trace["agent"].roots)) == (2, 22, 1)
    assert [e.tokens for e in trace["agent"]] == [22, 20]


@pytest.mark.parametrize("index", [0, None, slice(1), ("a",)])
def test_a_trace_is_indexed_by_names_only(index: Any) -> None:
    with pytest.raises(TypeError) as caught:
        ARTICLE[index]
    assert str(caught.value) == f"a trace is indexed by the name of a node, not by {type(index).__name__}"


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            "reserch",
            "no node 'reserch' in this trace; did you mean 'research'? It has: research, review, check, fix, write",
        ),
        ("zzz", "no node 'zzz' in this trace. It has: research, review, check, fix, write"),
        (
            "Write",
            "no node 'Write' in this trace; did you mean 'write'? It has: research, review, check, fix, write",
        ),
        ("", "no node '' in this trace. It has: research, review, check, fix, write"),
    ],
)
def test_a_node_that_is_not_there(node: str, said: str) -> None:
    with pytest.raises(SpanNotFound) as caught:
        ARTICLE[node]
    assert str(caught.value) == said
    assert isinstance(caught.value, LookupError)
    assert not isinstance(caught.value, KeyError)


def test_a_trace_without_nodes_says_so() -> None:
    run = Run()
    run.model(None, tokens(1, 1))
    with pytest.raises(SpanNotFound) as caught:
        built(run)["research"]
    assert str(caught.value) == "no node 'research' in this trace: it has no nodes at all"
    assert repr(built(run)) == "<Trace: 1 spans>"


def test_spans_by_name_and_type() -> None:
    assert [s.name for s in ARTICLE.spans(type="TOOL")] == ["web_search", "lint"]
    assert [s.name for s in ARTICLE.spans(name="lint")] == ["lint"]
    assert len(ARTICLE.spans(name="ChatGoogleGenerativeAI", type="CHAT_MODEL")) == 4
    assert ARTICLE.spans(name="lint", type="CHAT_MODEL") == []
    assert ARTICLE.spans(name="") == []
    assert len(ARTICLE.spans()) == 13
    assert len(ARTICLE["review"].spans()) == 6


@pytest.mark.parametrize(
    ("inputs", "args"), [({"a": 1}, {"a": 1}), (None, {}), ("text", {"input": "text"}), ([1], {"input": [1]}), ({}, {})]
)
def test_a_tools_arguments_are_a_mapping(inputs: Any, args: dict[str, Any]) -> None:
    run = Run()
    run.tool(run.node("a", run.graph(), 1, "a:1"), "t", inputs=inputs)
    assert built(run).tool_calls == [("t", args)]


@pytest.mark.parametrize(
    ("namespace", "outer", "held"),
    [("a:1", "a:1", True), ("a:1|b:2", "a:1", True), ("a:12", "a:1", False), (None, "a:1", False), ("a:1", "", False)],
)
def test_namespaces_inside_of_others(namespace: str | None, outer: str, held: bool) -> None:
    assert inside(namespace, outer) is held


def test_the_nearest_namespace_above() -> None:
    spaces = {"a:1", "a:1|b:2"}
    assert outer_of("a:1|b:2|c:3", spaces) == "a:1|b:2"
    assert outer_of("a:1|2|b:3", spaces) == "a:1"
    assert outer_of("a:1", spaces) is None
    assert outer_of("x:1|y:2", spaces) is None


# What is unknown


def test_unknown_tokens_are_unknown_where_they_count_and_nowhere_else() -> None:
    trace = article(second=None)
    assert isinstance(trace.tokens, UnknownTokens)
    assert isinstance(trace.tokens_by_node["research"], UnknownTokens)
    assert trace["write"].tokens == 1067
    assert trace.usage == Usage()
    assert trace["write"].usage == tokens(900, 167)
    with pytest.raises(UsageUnknown) as caught:
        assert trace["research"].tokens < 5000
    assert str(caught.value) == (
        "research: tokens unknown: research > ChatGoogleGenerativeAI (gemini-2.5-flash) reported no usage"
    )
    with pytest.raises(UsageUnknown, match=r"^run: cost unknown: research > ChatGoogleGenerativeAI"):
        _ = trace.cost


def test_a_model_without_a_price_is_no_free_model() -> None:
    trace = article(model="unpriced")
    assert trace.tokens == 4651
    with pytest.raises(LookupError, match="no price is known for 'unpriced'"):
        _ = trace.cost
    assert trace["write"].cost == Decimal("0.001067")


def test_a_duration_with_an_unknown_part_is_unknown() -> None:
    run = Run()
    node = run.node("a", run.graph(), 1, "a:1")
    run.model(node, tokens(1, 1))
    assert built(run).duration is None
    assert built(run, calls=[call(1, node, tokens(1, 1), duration=0.0)]).duration == 0.0


def test_a_call_knows_when_it_was_recorded() -> None:
    run = Run()
    node = run.node("a", run.graph(), 1, "a:1")
    when = datetime(2025, 7, 1, tzinfo=UTC)
    (made,) = built(run, calls=[call(1, node, tokens(1, 1), recorded_at=when)]).llm_calls
    assert made.recorded_at == when


# Outline


def test_the_outline_is_nodes_tools_and_models() -> None:
    flash = "gemini-2.5-flash"
    assert ARTICLE.outline == [
        {"research": [flash, "web_search()", flash]},
        {"review": [{"check": ["lint()"]}, {"fix": [flash]}]},
        {"write": [flash]},
    ]
    assert ARTICLE["review"].outline == [{"review": [{"check": ["lint()"]}, {"fix": [flash]}]}]


def test_the_outline_shows_the_last_attempt_and_what_a_tool_called() -> None:
    run = Run()
    graph = run.graph()
    run.model(run.node("a", graph, 1, "a:1", status="error", error_type="ValueError"), None, status="error")
    again = run.node("a", graph, 1, "a:1")
    run.model(run.tool(again, "ask"), tokens(1, 1), model=None)
    assert built(run).outline == [{"a": ["ask()", "ChatGoogleGenerativeAI"]}]


# Drawing


def test_the_drawn_tree() -> None:
    assert str(ARTICLE).splitlines() == [
        "article_writer             2.1 s  4,651 tok  $0.004651",
        "├─ research                1.2 s  3,534 tok  $0.003534",
        "│  ├─ gemini-2.5-flash            1,321 tok  $0.001321   150 in, 1,171 out",
        "│  ├─ web_search  [tool]",
        "│  └─ gemini-2.5-flash            2,213 tok  $0.002213   2,000 in, 213 out",
        "├─ review                  20 ms     50 tok  $0.00005",
        "│  ├─ check",
        "│  │  └─ lint  [tool]",
        "│  └─ fix                  20 ms     50 tok  $0.00005",
        "│     └─ gemini-2.5-flash            50 tok  $0.00005    40 in, 10 out",
        "└─ write                   0.9 s  1,067 tok  $0.001067",
        "   └─ gemini-2.5-flash            1,067 tok  $0.001067   900 in, 167 out, after 429",
    ]


def test_quiet_shows_the_nodes_and_verbose_every_span() -> None:
    assert ARTICLE.drawn(depth=0).splitlines() == [
        "article_writer  2.1 s  4,651 tok  $0.004651",
        "├─ research     1.2 s  3,534 tok  $0.003534",
        "├─ review       20 ms     50 tok  $0.00005",
        "│  ├─ check",
        "│  └─ fix       20 ms     50 tok  $0.00005",
        "└─ write        0.9 s  1,067 tok  $0.001067",
    ]
    assert len(ARTICLE.drawn(depth=2).splitlines()) == 13
    assert "│  └─ LangGraph" in ARTICLE.drawn(depth=2)


def test_what_a_failure_is_about_is_marked() -> None:
    lines = ARTICLE.drawn(about=("run", "fix"), depth=0).splitlines()
    assert [line[0] for line in lines] == [">", " ", " ", " ", ">", " "]
    assert lines[0] == "> article_writer  2.1 s  4,651 tok  $0.004651"


def test_every_root_of_the_run_is_marked_also_one_whose_parent_was_lost() -> None:
    run = Run()
    run.graph()
    run.add("alone", replace(run.spans[0], span_id="lost"))
    assert built(run).drawn(about=("run",)).splitlines() == ["> LangGraph", "> alone"]


def test_errors_are_marked_interrupts_are_not() -> None:
    run = Run()
    graph = run.graph(status="error", error_type="ValueError", error="boom")
    run.node("flaky", graph, 1, "f:1", status="error", error_type="TimeoutError", error="late")
    run.node("flaky", graph, 1, "f:1")
    run.node("ask", graph, 2, "ask:2", status="error", error_type="GraphInterrupt", error="?")
    run.node("stopped", graph, 2, "st:2", status="error", error_type="CancelledError")
    run.node("handed", graph, 2, "h:2", status="error", error_type="ParentCommand")
    run.node("slow", graph, 3, "s:3", status="open")
    bad = run.node("bad", graph, 3, "bad:3", status="error", error_type="ValueError", error="boom\nmore")
    run.add("parse", bad, status="error", error_type="ValueError", error="boom")
    run.add("ask_human", bad, status="error", error_type="GraphInterrupt")
    assert str(built(run)).splitlines() == [
        "! LangGraph",
        "  ├─ flaky   2 attempts",
        "  ├─ ask   interrupted",
        "  ├─ handed",
        "  ├─ stopped   cancelled",
        "! ├─ bad   ValueError: boom",
        "! │  └─ parse",
        "  └─ slow   open",
    ]


def test_what_is_unknown_is_drawn_as_a_dash() -> None:
    assert article(second=None).drawn(depth=0).splitlines()[:2] == [
        "article_writer  2.1 s          -          -",
        "├─ research     1.2 s          -          -",
    ]
    assert article(model="unpriced").drawn(depth=1).splitlines()[4] == (
        "│  └─ unpriced                    2,213 tok          -   2,000 in, 213 out"
    )


def test_a_model_that_nobody_named_is_drawn_by_its_span() -> None:
    run = Run()
    run.model(run.node("a", run.graph(), 1, "a:1"), tokens(1, 1), model=None)
    assert str(built(run)).splitlines()[2] == "   └─ ChatGoogleGenerativeAI     2 tok  $0.000002   1 in, 1 out"


def tried_again(*statuses: int | None, spans: int = 1, answered: bool = True) -> list[str]:
    """The tree of a node whose one call, or the one that `spans` run beside, fails with these statuses before."""
    run = Run()
    node = run.node("a", run.graph(), 1, "a:1")
    status, usage = ("ok", tokens(10, 1)) if answered else ("error", None)
    for _ in range(spans):
        run.model(node, usage, status=status)
    at = (run.spans[-1].start_ns + 100) / 1e9
    failed = [call(n, node, None, status=0, at=at) for n in range(1, len(statuses) + 1)]
    calls = [replace(one, status=status) for one, status in zip(failed, statuses, strict=True)]
    calls += [call(len(statuses) + 1 + n, node, tokens(10, 1), at=at) for n in range(spans if answered else 0)]
    return str(built(run, calls=calls)).splitlines()[1:]


def test_what_the_client_tried_itself_stands_beside_its_model() -> None:
    assert tried_again(503, 429) == [
        "└─ a                    -  11 tok  $0.000011",
        "   └─ gemini-2.5-flash     11 tok  $0.000011   10 in, 1 out, after 503, 429",
    ]
    assert tried_again(None)[1].endswith("10 in, 1 out, after no reply")


def test_of_a_model_that_failed_the_last_try_is_its_error() -> None:
    assert tried_again(503, 503, 503, answered=False) == ["  └─ a", "!    └─ ChatGoogleGenerativeAI   after 503, 503"]
    assert tried_again(503, answered=False) == ["  └─ a", "!    └─ ChatGoogleGenerativeAI"]


def test_failed_calls_that_no_single_model_made_stand_beside_the_node() -> None:
    assert tried_again(503, spans=2) == [
        "└─ a                    -  22 tok  $0.000022   failed calls: 503",
        "   ├─ gemini-2.5-flash     11 tok  $0.000011   10 in, 1 out",
        "   └─ gemini-2.5-flash     11 tok  $0.000011   10 in, 1 out",
    ]


@pytest.mark.parametrize(("cached", "said"), [(None, "150 in"), (0, "150 in"), (100, "150 in (100 cached)")])
def test_cached_input_is_named(cached: int | None, said: str) -> None:
    run = Run()
    run.model(run.node("a", run.graph(), 1, "a:1"), Usage(150, 1171, 1321, cached))
    assert str(built(run)).splitlines()[2] == f"   └─ gemini-2.5-flash     1,321 tok  $0.001321   {said}, 1,171 out"


def test_googles_own_tools_are_marked_and_no_tool_calls() -> None:
    run = Run()
    node = run.node("a", run.graph(), 1, "a:1")
    run.model(node, tokens(10, 1))
    served = ("google_search", "code_execution")
    trace = built(run, calls=[call(1, node, tokens(10, 1), server_tools=served)])
    assert str(trace).splitlines()[1:] == [
        "└─ a                                                     -  11 tok  $0.000011",
        "   └─ gemini-2.5-flash  [google_search, code_execution]     11 tok  $0.000011   10 in, 1 out",
    ]
    assert trace.outline == [{"a": ["gemini-2.5-flash [google_search, code_execution]"]}]
    assert [one.server_tools for one in trace.llm_calls] == [served]
    assert trace.tool_calls == []


def test_nothing_traced_is_drawn_as_that() -> None:
    assert str(built()) == "(nothing traced)"


def test_a_selection_draws_its_own_part() -> None:
    assert str(ARTICLE["write"]).splitlines() == [
        "write                0.9 s  1,067 tok  $0.001067",
        "└─ gemini-2.5-flash         1,067 tok  $0.001067   900 in, 167 out, after 429",
    ]
