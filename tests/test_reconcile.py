"""The two witnesses held against each other: each kind of finding alone, in its own words, and no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pytest_agenttrace.calls import Caller, Endpoint
from pytest_agenttrace.execution import Origin
from pytest_agenttrace.reconcile import Evidence, Finding, find
from pytest_agenttrace.trace import Trace
from pytest_agenttrace.usage import TraceTotal, Usage
from tests.handmade import FLASH, Run, built, call, tokens

ONE, TWO = tokens(1000, 200), tokens(20, 7)


def traced(claimed: list[Usage | None], wire: list[Usage | None], **fields: Any) -> Trace:
    """One node `write`: what its spans claim, what was on the wire."""
    run = Run()
    write = run.node("write", run.graph(), 1, "write:1")
    for usage in claimed:
        run.model(write, usage, **fields)
    return built(run, calls=[call(index, write, usage, at=0.002 + index / 1000) for index, usage in enumerate(wire, 1)])


AGREED = traced([ONE, TWO], [ONE, TWO])
UNCOUNTED = traced([ONE], [ONE, TWO])
UNCALLED = traced([ONE, TWO], [ONE])
DIFFERENT = traced([tokens(1000, 150)], [ONE])

MISS = ("write", "write, call 3: no recorded reply")
UNUSED = (None, "reply 2 was never asked for: gemini-2.5-flash:generateContent 'Write'")


def kinds(evidence: Evidence) -> list[str]:
    return [finding.kind for finding in find(evidence)]


def test_calls_of_a_run_that_was_not_traced_are_told_once_for_each_node() -> None:
    run = Run()
    write = run.node("write", run.graph(), 1, "write:1", end_ns=2_000_000)
    resumed = [call(index, write, ONE, at=0.003) for index in (1, 2, 3)]
    assert find(Evidence(built(run, calls=resumed))) == [
        Finding(
            "uncounted",
            "write",
            "write, call 1: 1,200 tokens on the wire, no span in the trace\n"
            "  the same for calls 2, 3\n"
            "  gemini-2.5-flash:generateContent\n"
            "  MLflow saw nothing of this run of the node. Of runs that follow each other in one async task it loses "
            "some\n"
            "  with run_tracer_inline=True: leave that out, or await asyncio.create_task(...) for each run.",
        )
    ]


def test_witnesses_that_agree_find_nothing() -> None:
    assert find(Evidence(AGREED)) == []
    assert find(Evidence(AGREED, ended=False)) == []


@pytest.mark.parametrize(
    ("evidence", "finding"),
    [
        (Evidence(AGREED, misses=[MISS]), Finding("missing", "write", "write, call 3: no recorded reply")),
        (
            Evidence(AGREED, unused=[UNUSED]),
            Finding("unused", None, "reply 2 was never asked for: gemini-2.5-flash:generateContent 'Write'"),
        ),
        (
            Evidence(AGREED, export_errors=["database is locked"]),
            Finding("export", None, "MLflow failed to store: database is locked"),
        ),
        (Evidence(None), Finding("empty", None, "nothing was traced")),
        (
            Evidence(None, nothing="nothing was traced: no graph, chain or model ran"),
            Finding("empty", None, "nothing was traced: no graph, chain or model ran"),
        ),
        (
            Evidence(UNCOUNTED),
            Finding(
                "uncounted",
                "write",
                "write, call 2: 27 tokens on the wire, no span in the trace\n"
                "  gemini-2.5-flash:generateContent\n"
                "  MLflow saw nothing of this call: trace the client it was made with\n"
                '  (raw google-genai: @pytest.mark.agent_trace(autolog=["langchain", "gemini"])).',
            ),
        ),
        (
            Evidence(UNCALLED),
            Finding(
                "uncalled",
                "write",
                "write: span ChatGoogleGenerativeAI claims 27 tokens, no call was made\n"
                "  A cached reply is counted as if it had been paid for.\n"
                '  If it is known: @pytest.mark.agent_trace(allow=["write:uncalled"])',
            ),
        ),
        (
            Evidence(DIFFERENT),
            Finding(
                "usage",
                "write",
                "write, call 1: the span's tokens are not the wire's\n"
                "  gemini-2.5-flash:generateContent\n"
                "  output_tokens: wire 200, span 150\n"
                "  total_tokens: wire 1,200, span 1,150\n"
                '  The wire\'s are billed. If it is known: @pytest.mark.agent_trace(allow=["write:usage"])',
            ),
        ),
    ],
)
def test_each_kind_is_found_alone(evidence: Evidence, finding: Finding) -> None:
    assert find(evidence) == [finding]


def test_several_causes_are_told_most_telling_first() -> None:
    both = traced([tokens(1, 1), tokens(1, 2)], [ONE, TWO, tokens(5, 5)])
    evidence = Evidence(both, unused=[UNUSED, UNUSED], export_errors=["locked"])
    assert kinds(evidence) == ["export", "usage", "usage", "uncounted", "unused", "unused"]


# One cause, one message


@pytest.mark.parametrize("trace", [AGREED, UNCOUNTED, UNCALLED, DIFFERENT, None])
def test_a_miss_silences_what_it_brings_about(trace: Trace | None) -> None:
    evidence = Evidence(trace, misses=[MISS, (None, "2")], unused=[UNUSED], export_errors=["locked"])
    assert kinds(evidence) == ["missing", "missing"]


@pytest.mark.parametrize("trace", [AGREED, UNCOUNTED, UNCALLED, DIFFERENT, None])
def test_a_body_that_did_not_end_is_judged_by_misses_and_exports_only(trace: Trace | None) -> None:
    assert kinds(Evidence(trace, unused=[UNUSED], export_errors=["locked"], ended=False)) == ["export"]
    assert kinds(Evidence(trace, unused=[UNUSED], misses=[MISS], ended=False)) == ["missing"]


@pytest.mark.parametrize("trace", [AGREED, UNCOUNTED, UNCALLED, DIFFERENT, None])
def test_without_a_trace_asked_for_only_the_wire_is_judged(trace: Trace | None) -> None:
    assert kinds(Evidence(trace, unused=[UNUSED], traced=False)) == ["unused"]


# What is a difference


@pytest.mark.parametrize(
    ("wire", "claimed", "lines"),
    [
        (ONE, ONE, None),
        (None, None, None),
        (Usage(1000, 200, 1200, 0), ONE, None),
        (Usage(1000, 200, 1200, 64), ONE, ["cache_read_input_tokens: wire 64, span -"]),
        (Usage(1000, 200, 1200, 64), Usage(1000, 200, 1200, 64), None),
        (ONE, Usage(1000, 200, 1200, 0), None),
        (ONE, Usage(1000, 200, 0), None),
        (ONE, Usage(1000, 200, None), None),
        (Usage(total_tokens=9), Usage(total_tokens=9), None),
        (ONE, Usage(1000, 200, 1201), ["total_tokens: wire 1,200, span 1,201"]),
        (ONE, Usage(1001, 200, 0), ["input_tokens: wire 1,000, span 1,001", "total_tokens: wire 1,200, span 0"]),
        (Usage(1000, 200, 1200, 64), Usage(1000, 200, 1200, 0), ["cache_read_input_tokens: wire 64, span 0"]),
        (ONE, Usage(1000, 200, 1200, 64), ["cache_read_input_tokens: wire -, span 64"]),
        (
            ONE,
            None,
            [
                "input_tokens: wire 1,000, span -",
                "output_tokens: wire 200, span -",
                "total_tokens: wire 1,200, span -",
            ],
        ),
        (
            None,
            ONE,
            [
                "input_tokens: wire -, span 1,000",
                "output_tokens: wire -, span 200",
                "total_tokens: wire -, span 1,200",
            ],
        ),
        (
            tokens(0, 0),
            None,
            ["input_tokens: wire 0, span -", "output_tokens: wire 0, span -", "total_tokens: wire 0, span -"],
        ),
    ],
)
def test_what_the_witnesses_differ_in(wire: Usage | None, claimed: Usage | None, lines: list[str] | None) -> None:
    found = find(Evidence(traced([claimed], [wire])))
    assert [f.text.split("\n  ")[2:-1] for f in found] == ([lines] if lines else [])


def test_an_mlflow_that_counts_no_cached_input_is_not_held_to_it() -> None:
    lost = traced([ONE], [Usage(1000, 200, 1200, 64)])
    assert kinds(Evidence(lost)) == ["usage"]
    assert kinds(Evidence(lost, counts_cache=False)) == []


# What MLflow says of a whole trace


def total(usage: Usage | None) -> list[TraceTotal]:
    return [TraceTotal("t1", usage)]


@pytest.mark.parametrize("stated", [tokens(1020, 207), Usage(1020, 207, 1227, 0)])
def test_a_total_that_is_the_sum_of_its_spans(stated: Usage) -> None:
    assert find(Evidence(AGREED, totals=total(stated))) == []


def test_a_total_that_is_not() -> None:
    text = (
        "run: MLflow's total of the trace LangGraph is not the sum of its spans\n"
        "  input_tokens: trace 2,040, spans 1,020\n"
        "  output_tokens: trace 414, spans 207\n"
        "  total_tokens: trace 2,454, spans 1,227\n"
        "  MLflow's own pages show the trace's. If it is known: @pytest.mark.agent_trace(allow=[\"usage\"])"
    )
    assert find(Evidence(AGREED, totals=total(tokens(2040, 414)))) == [Finding("usage", None, text)]
    [missing] = find(Evidence(AGREED, totals=total(None)))
    assert missing.text.splitlines()[1] == "  input_tokens: trace -, spans 1,020"


@pytest.mark.parametrize("trace", [UNCOUNTED, UNCALLED, DIFFERENT])
def test_one_cause_is_one_message_where_the_total_follows_the_spans_or_the_wire(trace: Trace) -> None:
    spans = [span for root in trace.roots for span in root.walk() if span.usage is not None]
    for usages in ([span.usage for span in spans], [called.usage for called in trace.llm_calls if called.call]):
        stated = Usage.sum(usage or Usage() for usage in usages)
        assert len(find(Evidence(trace, totals=total(stated)))) == 1


def test_what_nested_autologs_repeat_counts_once_and_what_is_running_not_yet() -> None:
    run = Run()
    write = run.node("write", run.graph(), 1, "write:1")
    outer = run.model(write, ONE)
    run.model(outer, ONE, name="generate_content")
    agreed = built(run, calls=[call(1, write, ONE)])
    assert find(Evidence(agreed, totals=total(ONE))) == []
    assert kinds(Evidence(agreed, totals=total(tokens(2000, 400)))) == ["usage"]
    run = Run()
    write = run.node("write", run.graph(status="open"), 1, "write:1")
    run.model(write, ONE)
    assert find(Evidence(built(run, calls=[call(1, write, ONE)]), totals=total(None))) == []


def test_a_call_whose_usage_nobody_reported_is_uncounted_with_unknown_tokens() -> None:
    (finding,) = find(Evidence(traced([], [None])))
    assert finding.text.splitlines()[0] == "write, call 1: tokens unknown on the wire, no span in the trace"


def test_a_call_outside_of_any_node() -> None:
    trace = built(Run(), calls=[call(1, None, TWO)])
    (finding,) = find(Evidence(trace))
    assert (finding.node, finding.text.splitlines()[0]) == (
        None,
        "(no node), call 1: 27 tokens on the wire, no span in the trace",
    )


@pytest.mark.parametrize("method", ["countTokens", "cachedContents", "files", "models"])
def test_counting_tokens_and_files_are_no_findings(method: str) -> None:
    run = Run()
    write = run.node("write", run.graph(), 1, "write:1")
    assert find(Evidence(built(run, calls=[call(1, write, None, method=method)]))) == []


@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_failed_attempt_is_no_finding(status: int) -> None:
    run = Run()
    write = run.node("write", run.graph(), 1, "write:1")
    run.model(write, None, status="error")
    run.model(write, ONE)
    calls = [call(1, write, None, status=status), call(2, write, ONE)]
    assert find(Evidence(built(run, calls=calls))) == []


@pytest.mark.parametrize(
    ("fields", "due"),
    [
        ({}, True),
        ({"name": "ChatVertexAI"}, True),
        ({"name": "GenericFakeChatModel"}, False),
        ({"name": "ChatOpenAI", "attributes": {"metadata": {"ls_provider": "openai"}}}, False),
        ({"name": "MyModel", "attributes": {"metadata": {"ls_provider": "google_genai"}}}, True),
        ({"name": "MyModel", "attributes": {"metadata": {"ls_provider": "google_vertexai"}}}, True),
        ({"name": "MyModel", "attributes": {"metadata": "odd"}}, False),
        ({"name": "MyModel", "attributes": {}}, False),
    ],
)
def test_a_call_is_due_where_the_model_is_geminis(fields: dict[str, Any], due: bool) -> None:
    assert kinds(Evidence(traced([ONE], [], **fields))) == (["uncalled"] if due else [])


def test_a_span_without_usage_and_without_a_call_claims_nothing() -> None:
    assert find(Evidence(traced([None], []))) == []


def test_a_raw_clients_cached_reply_names_the_node_around_it() -> None:
    run = Run()
    write = run.node("write", run.graph(), 1, "write:1")
    run.add("ChatGoogleGenerativeAI", write, type="LLM", usage=TWO)
    (finding,) = find(Evidence(built(run)))
    assert (finding.node, finding.text.splitlines()[0]) == (
        "write",
        "write: span ChatGoogleGenerativeAI claims 27 tokens, no call was made",
    )


@pytest.mark.parametrize(
    "order", [lambda calls: calls, lambda calls: list(reversed(calls)), lambda calls: calls[1:] + calls[:1]]
)
def test_calls_that_come_in_another_order_than_their_spans_are_no_findings(
    order: Callable[[list[Usage | None]], list[Usage | None]],
) -> None:
    usages: list[Usage | None] = [ONE, TWO, tokens(3, 4)]
    assert find(Evidence(traced(usages, order(usages)))) == []


# Traces outside of the run


def orphaned(thread: str | None, count: int = 1) -> Trace:
    """A node `write` that starts traces of their own, each with a graph inside that calls a model."""
    run = Run()
    run.node("write", run.graph(), 1, "write:1")
    others = [Run(f"other{number}", 2_000_000 * (number + 1)) for number in range(count)]
    calls = []
    for number, other in enumerate(others):
        root = other.graph("reviewer", origin=Origin(Caller("write", 1, "write:1"), thread))
        review = other.node("review", root, 1, f"review:{number}")
        other.model(review, ONE)
        calls.append(call(number + 1, review, ONE))
    return built(run, *others, calls=calls)


def test_a_trace_that_a_node_starts_is_its_own_and_a_finding() -> None:
    trace = orphaned("bare")
    assert trace.trajectory == ["write"]
    assert trace["write"].trajectory == ["review"]
    assert (trace["write"].tokens, trace.tokens) == (1200, 1200)
    assert [call.caller.namespace for call in trace["write"].calls] == ["write:1|review:0"]
    assert trace.outline == [{"write": [{"review": ["gemini-2.5-flash"]}]}]
    assert find(Evidence(trace)) == [
        Finding(
            "orphans",
            "write",
            "write: a trace outside of the run (reviewer, started in thread bare)\n"
            "  A bare thread loses the run's context, so MLflow files what it does as a trace of its own.\n"
            "  Hand the context over: pool.submit(contextvars.copy_context().run, function)",
        )
    ]
    assert find(Evidence(trace, ended=False)) == []
    assert kinds(Evidence(trace, misses=[MISS])) == ["missing"]


def test_where_langchain_is_not_traced_that_is_the_way_out() -> None:
    run = Run()
    run.model(None, ONE, origin=Origin(Caller("write", 1, "write:1")))
    trace = built(run, calls=[])
    [found, _] = find(Evidence(trace, obstacle=("autolog=['gemini'] leaves LangChain out", "Add it.")))
    assert found.kind == "orphans"
    assert found.text.endswith("\n  autolog=['gemini'] leaves LangChain out\n  Add it.")


def test_a_raw_stream_is_told_as_one_that_mlflow_never_sees() -> None:
    streamed = dataclasses.replace(
        call(1, None, ONE), endpoint=Endpoint("streamGenerateContent", FLASH, True, True, False)
    )
    [found] = find(Evidence(built(Run(), calls=[streamed])))
    assert found.text.splitlines()[-1] == (
        '  MLflow sees no streams of raw google-genai. If it is known: @pytest.mark.agent_trace(allow=["uncounted"])'
    )


def test_many_of_them_are_one_finding() -> None:
    [finding] = find(Evidence(orphaned("bare", 3)))
    assert finding.text.startswith("write: 3 traces outside of the run (reviewer, started in thread bare)\n")
    [finding] = find(Evidence(orphaned(None)))
    assert finding.text == (
        "write: a trace outside of the run (reviewer)\n"
        "  MLflow did not see the run that this is part of.\n"
        "  In async code: @pytest.mark.agent_trace(run_tracer_inline=True)"
    )


def test_refused_connections_are_told_beside_a_failure_too() -> None:
    refused = (None, "(no node): connection to search.example.com:443 (connect) refused")
    for ended in (True, False):
        assert find(Evidence(AGREED, refused=[refused], ended=ended)) == [Finding("network", *refused)]


def test_a_span_without_usage_is_a_finding_for_chat_only() -> None:
    run = Run()
    write = run.node("write", run.graph(), 1, "write:1")
    run.model(write, None, type="EMBEDDING")
    assert find(Evidence(built(run, calls=[call(1, write, ONE, method="embedContent")]))) == []
    assert kinds(Evidence(built(run, calls=[call(1, write, ONE)]))) == ["usage"]
