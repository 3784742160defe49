"""Two ledgers compared: what breaks, what costs, what is asked otherwise, and what is only news."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any

import pytest

from pytest_agenttrace.ledger import BilledFacts, ExecutionFacts, FindingFacts, Ledger, TestFacts, UsageFacts
from pytest_agenttrace.report import Comparison, Difference, compare, new_baseline
from tests.ledgers import FLASH, RATES, article, budget, call, ledger, tool, traced, used

TEST = "test_a.py::test_article"
replace = dataclasses.replace


def told(old: Any, new: Any, tolerance: str = "5") -> list[str]:
    """Every difference as `level: text`, the evidence indented below it."""
    was, now = (side if isinstance(side, Ledger) else ledger(side) for side in (old, new))
    found = compare(was, now, Decimal(tolerance))
    return [line for difference in found.differences for line in lines(difference)]


def lines(difference: Difference) -> list[str]:
    return [f"{difference.level}: {difference.text}", *(f"  {line}" for line in difference.evidence)]


def test_equal_ledgers_do_not_differ() -> None:
    found = compare(ledger(article()), ledger(article()))
    assert (found.differences, found.obstacles) == ((), ())
    assert (found.tests.compared, found.total.new, found.total.by_tokens) == (1, found.total.old, Decimal(0))


# Breaking


def test_a_node_that_came_is_one_cause_in_all_its_tests_with_what_it_costs() -> None:
    more = traced(*article().calls, call("critic", used(100, 10)))
    found = compare(ledger({f"t::{n}": article() for n in "abc"}), ledger({f"t::{n}": more for n in "abc"}))
    (difference,) = found.at_least("request")
    assert lines(difference) == ["breaking: node 'critic' appeared", "  +330 tokens, +$0.000165"]
    assert difference.tests == ("t::a", "t::b", "t::c")


def test_a_node_that_went_takes_its_edges_and_calls_along() -> None:
    assert told(article(), traced(article().calls[0])) == [
        "breaking: node 'write' vanished",
        "  -1,000 tokens, -$0.0014",
    ]


def test_a_node_of_another_name_that_did_the_same_is_renamed() -> None:
    research, write = article().calls
    other = traced(research, replace(write, node="draft"))
    assert told(article(), other) == ["breaking: node 'write' is 'draft' now, and did what it did"]


def test_two_nodes_alike_are_nobodys_new_names() -> None:
    was, now = (traced(*(call(name, used(0, 0)) for name in names), path=()) for names in ("ab", "cd"))
    assert [line for line in told(was, now) if "node" in line] == [
        "breaking: node 'c' appeared",
        "breaking: node 'd' appeared",
        "breaking: node 'a' vanished",
        "breaking: node 'b' vanished",
    ]


def test_a_subgraph_renamed_is_told_once() -> None:
    def around(name: str) -> TestFacts:
        steps = {"plan": used(10, 10), "write": used(10, 20)}
        return traced(*(call(f"{name}|{step}", usage, request={}) for step, usage in steps.items()))

    assert told(around("report"), around("essay")) == ["breaking: node 'report' is 'essay' now, and did what it did"]


def test_a_subgraph_that_went_is_told_once() -> None:
    both = traced(call("plan", used(10, 10)), call("report|write", used(10, 20)))
    assert told(both, traced(both.calls[0])) == ["breaking: node 'report' vanished", "  -30 tokens, -$0.000053"]


def test_edges_between_nodes_that_stayed() -> None:
    was = replace(article(), edges=((None, "research"), ("research", "write")))
    now = replace(article(), edges=((None, "research"), (None, "write")))
    assert told(was, now) == [
        "breaking: edge start -> write appeared",
        "breaking: edge research -> write vanished",
    ]


def test_an_edge_around_a_node_that_went_is_no_cause_of_its_own() -> None:
    plan, write, check = (call(node, used(0, 0)) for node in ("plan", "write", "check"))
    assert told(traced(plan, write, check), traced(plan, check)) == ["breaking: node 'write' vanished"]
    assert told(traced(plan, check), traced(plan, write, check)) == ["breaking: node 'write' appeared"]
    assert told(traced(write, check), traced(check)) == ["breaking: node 'write' vanished"]


def test_tools_that_came_and_went_and_other_arguments() -> None:
    was = tool(tool(article(), "research", "search", q="sails"), "research", "add", a=1)
    now = tool(tool(article(), "research", "search", q="light"), "write", "save", to="x")
    assert told(was, now) == [
        "breaking: write: tool 'save' appeared",
        "breaking: research: tool 'add' vanished",
        "informational: research: tool 'search' got other arguments",
    ]
    assert told(was, tool(was, "research", "search", q="again")) == [
        "informational: research: tool 'search' ran 2 times instead of 1"
    ]


def failing(facts: TestFacts, node: str, **fields: Any) -> TestFacts:
    def other(done: ExecutionFacts) -> ExecutionFacts:
        return replace(done, **fields) if done.node == node else done

    return replace(facts, executions=tuple(map(other, facts.executions)))


def test_errors_and_statuses_of_nodes() -> None:
    broken = failing(article(), "write", status="error", error="ValueError")
    assert told(article(), broken) == ["breaking: write: ValueError appeared"]
    assert told(broken, article()) == ["breaking: write: ValueError vanished"]
    waits = failing(article(), "write", status="interrupted")
    assert told(article(), waits) == ["breaking: write: status 'interrupted' appeared"]


def test_what_is_missing_after_a_node_that_newly_fails_is_no_news() -> None:
    early = failing(traced(article().calls[0], path=("research",)), "research", status="error", error="ValueError")
    now = replace(early, outcome="failed")
    assert told(article(), now) == ["breaking: passed -> failed", "breaking: research: ValueError appeared"]


def test_what_is_missing_after_a_miss_is_no_news() -> None:
    text = "CassetteMiss: write, call 2: no recorded reply"
    now = replace(
        traced(article().calls[0], path=("research", "write")),
        outcome="failed",
        findings=(FindingFacts("missing", "write", text, "failed"),),
    )
    assert told(article(), now) == ["breaking: passed -> failed", f"  {text} [missing]"]


def test_retries_that_came_break_and_more_of_them_are_told() -> None:
    def retried(attempts: int) -> TestFacts:
        facts = article()
        return replace(facts, nodes={**facts.nodes, "write": replace(facts.nodes["write"], attempts=attempts)})

    assert told(article(), retried(3)) == ["breaking: write retried 2 times instead of 0"]
    assert told(retried(3), article()) == ["breaking: write retried 0 times instead of 2"]
    assert told(retried(3), retried(2)) == ["informational: write retried 1 time instead of 2"]


def test_error_replies_break_unless_a_test_has_injected_them() -> None:
    refused = call("write", None, None, status=503, cost=Decimal(0), finish_reason=None)
    was = article()
    now = replace(was, calls=(was.calls[0], refused, was.calls[1]))
    assert told(was, now) == [
        "breaking: write: error reply 503 appeared",
        "request: write: 1 call appeared",
    ]
    injected = replace(was, calls=(was.calls[0], replace(refused, injected="503"), was.calls[1]))
    assert told(was, injected) == ["request: write: 1 call appeared"]


def test_a_reply_that_is_cut() -> None:
    was = article()
    cut = replace(was, calls=(was.calls[0], replace(was.calls[1], finish_reason="MAX_TOKENS")))
    assert told(was, cut) == ["breaking: write: a reply ended with MAX_TOKENS"]
    assert told(cut, was) == ["informational: write: no MAX_TOKENS any more"]


def test_a_loop_that_runs_once_more_is_told_and_judged_by_what_it_costs() -> None:
    def loop(times: int) -> TestFacts:
        return traced(*[call("write", used(100, 100))] * times, path=("write",) * times)

    assert told(loop(3), loop(4)) == [
        "cost: write 600 -> 800 tokens (+200, +33%), +$0.00028 (+33%)",
        "  input 300 -> 400, output 300 -> 400",
        "request: write: 1 call appeared",
        "informational: write ran 4 times instead of 3",
    ]


def test_another_order_of_the_same_nodes_and_edges() -> None:
    was = replace(article(), trajectory=("research", "write", "research", "research"))
    now = replace(article(), trajectory=("research", "research", "write", "research"))
    assert told(was, now) == [
        "breaking: nodes ran in another order",
        "  was research write research research",
        "  now research research write research",
    ]


def test_another_order_that_other_edges_tell_is_told_by_them() -> None:
    was, now = (
        traced(call("a", used(0, 0)), call("b", used(0, 0))),
        traced(call("b", used(0, 0)), call("a", used(0, 0))),
    )
    assert [line for line in told(was, now) if "edge" in line or "order" in line] == [
        "breaking: edge start -> b appeared",
        "breaking: edge b -> a appeared",
        "breaking: edge start -> a vanished",
        "breaking: edge a -> b vanished",
    ]


def test_outcomes() -> None:
    assert told(article(), article(outcome="error")) == ["breaking: passed -> error"]
    assert told(article(), article(outcome="xpassed")) == ["informational: passed -> xpassed"]
    assert told(article(outcome="failed"), article()) == ["informational: failed -> passed"]
    skipped = TestFacts("skipped")
    assert told(article(), skipped) == ["informational: passed -> skipped: its numbers are not compared"]
    assert told(article(), TestFacts("passed")) == ["breaking: nothing is traced any more"]


# Tests


def test_a_test_that_vanished_and_a_new_one() -> None:
    was = {"t::a": article(), "t::b": article((1, 1))}
    now = {"t::a": article(), "t::c": article((2, 2))}
    found = compare(ledger(was), ledger(now))
    assert [lines(difference) for difference in found.differences] == [
        ["breaking: 1 test vanished"],
        ["informational: 1 new test: 1,004 tokens, $0.0014056"],
    ]
    assert [difference.tests for difference in found.differences] == [("t::b",), ("t::c",)]
    assert dataclasses.astuple(found.tests) == (1, 1, 1, 0)


def test_a_test_of_another_name_is_renamed_and_compared() -> None:
    assert told(ledger({"t::old": article()}), ledger({"t::new": article()})) == ["informational: t::old is t::new now"]


def test_a_file_renamed_is_one_difference() -> None:
    was, now = ({f"{file}::{n}": article((n, n)) for n in range(7)} for file in ("old.py", "new.py"))
    assert told(ledger(was), ledger(now)) == [
        "informational: 7 tests renamed",
        *(f"  old.py::{n} is new.py::{n} now" for n in range(5)),
        "  and 2 more",
    ]


def test_two_tests_alike_are_nobodys_new_names() -> None:
    was = ledger({"t::a": article(), "t::b": article()})
    now = ledger({"t::c": article(), "t::d": article()})
    assert told(was, now)[0] == "breaking: 2 tests vanished"


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"part": "only test_a.py was run"}, "1 test not run: only test_a.py was run"),
        ({"not_run": ("t::b",)}, "1 test not run: collected, and not run"),
    ],
)
def test_a_test_that_was_not_to_run_has_not_vanished(run: dict[str, Any], said: str) -> None:
    found = compare(ledger({"t::a": article(), "t::b": article((1, 1))}), ledger({"t::a": article()}, **run))
    assert [(difference.level, difference.text) for difference in found.differences] == [("informational", said)]
    assert found.obstacles == ()
    assert found.tests.not_run == 1


@pytest.mark.parametrize(
    ("run", "vanished"),
    [
        ({"part": "only tests was run", "whole": ("tests",)}, ["tests/a.py::b", "tests/in/b.py::c"]),
        ({"part": "only tests/a.py was run", "whole": ("tests/a.py",)}, ["tests/a.py::b"]),
        (
            {"part": "tests were deselected", "whole": (".",), "deselected": ("tests/a.py::b",)},
            ["tests/in/b.py::c", "tests2/c.py::d"],
        ),
        ({"part": "only tests/a.py::a was run"}, []),
        (
            {"stopped": "-x", "part": "only tests was run", "whole": ("tests",), "not_run": ("tests/a.py::b",)},
            ["tests/in/b.py::c"],
        ),
    ],
)
def test_what_is_gone_from_the_part_that_ran_has_vanished(run: dict[str, Any], vanished: list[str]) -> None:
    names = ("tests/a.py::a", "tests/a.py::b", "tests/in/b.py::c", "tests2/c.py::d")
    was = ledger({name: article((n, n)) for n, name in enumerate(names)})
    now = ledger({names[0]: was.tests[names[0]]}, **run)
    found = {difference.kind: list(difference.tests) for difference in compare(was, now).differences}
    assert found.get("test vanished", []) == vanished
    assert sorted([*vanished, *found.get("test not run", [])]) == sorted(names[1:])
    assert sorted(new_baseline(was, now).tests) == sorted({*names} - {*vanished})


@pytest.mark.parametrize(
    "run", [{"stopped": "-x", "not_run": ("t::b",)}, {"part": "-k", "whole": (".",), "deselected": ("t::b",)}]
)
def test_a_run_whose_readers_did_not_run_has_not_vanished(run: dict[str, Any]) -> None:
    was = ledger({"t::a": article(), "t::made": article((1, 1), outcome="run")})
    found = compare(was, ledger({"t::a": article()}, **run))
    assert [difference.kind for difference in found.differences] == ["test not run"]
    assert compare(was, ledger({"t::a": article()})).differences[0].kind == "test vanished"


@pytest.mark.parametrize(
    ("was", "now", "obstacle"),
    [
        (ledger(), ledger(article()), "the old ledger has no tests: nothing to compare with"),
        (ledger(article()), ledger(), "the new ledger has no tests"),
        (
            ledger({"t::a": article()}),
            ledger({"t::b": article((1, 1))}),
            "the new ledger has none of the old one's tests",
        ),
        (
            ledger({"t::a": article(), "t::b": article((1, 1))}),
            ledger({"t::a": article()}, stopped="--maxfail=1", not_run=("t::b",)),
            "the new run was stopped (--maxfail=1): 1 test not run, nobody can vouch for them",
        ),
        (
            ledger({"t::a": article()}),
            ledger({"t::a": article()}, broken=("b.py",)),
            "files that could not be collected: b.py",
        ),
    ],
)
def test_what_nobody_can_vouch_for(was: Ledger, now: Ledger, obstacle: str) -> None:
    assert compare(was, now).obstacles == (obstacle,)


def test_tests_of_a_file_that_could_not_be_collected() -> None:
    was = ledger({"a.py::x": article(), "b.py::y": article((1, 1))})
    now = ledger({"a.py::x": article()}, broken=("b.py",))
    assert told(was, now) == ["breaking: 1 test vanished with files that could not be collected"]


def test_a_new_test_that_fails_and_exceeds_its_budget_breaks() -> None:
    now = {"t::a": article(), "t::new": article((1, 1), outcome="failed", budgets=(budget(2, 1),))}
    assert told(ledger({"t::a": article()}), ledger(now)) == [
        "breaking: 1 new test failed",
        "breaking: research 2 tokens > 1 (+1)",
        "informational: 1 new test: 1,002 tokens, $0.0014028",
    ]


# Budgets


@pytest.mark.parametrize(
    ("was", "now", "said"),
    [
        (
            budget(1900, 2000),
            budget(3534, 2000),
            ["breaking: research 3,534 tokens > 2,000 (+1,534)", "  1,900 of 2,000 before"],
        ),
        (None, budget(3534, 2000), ["breaking: research 3,534 tokens > 2,000 (+1,534)"]),
        (
            budget(3000, 2000),
            budget(3534, 2000),
            [
                "informational: over budget before this change: research 3,534 tokens > 2,000 (+1,534)",
                "  3,000 of 2,000 before",
            ],
        ),
        (
            budget(3000, 2000),
            budget(1500, 2000),
            ["informational: research tokens: within its budget again", "  3,000 of 2,000 before"],
        ),
        (
            budget(1900, 2000),
            budget(3534, 4000),
            ["informational: research tokens: limit raised, 2,000 -> 4,000", "  3,534 would exceed the old one"],
        ),
        (
            budget(1900, 2000),
            budget(1900, 1000),
            [
                "breaking: research 1,900 tokens > 1,000 (+900)",
                "  1,900 of 2,000 before",
                "informational: research tokens: limit lowered, 2,000 -> 1,000",
            ],
        ),
        (budget(1900, 2000), None, ["informational: research tokens: no limit any more", "  1,900 of 2,000 before"]),
        (
            budget(1900, 2000),
            budget(None, 2000),
            [
                "breaking: research tokens cannot be judged any more: what was used is unknown",
                "  1,900 of 2,000 before",
            ],
        ),
        (
            budget(Decimal("0.001"), Decimal("0.002"), None, "cost"),
            budget(Decimal("0.0025"), Decimal("0.002"), None, "cost"),
            ["breaking: run $0.0025 > $0.002 (+$0.0005)", "  $0.001 of $0.002 before"],
        ),
        (budget(0, 0), budget(1, 0), ["breaking: research 1 tokens > 0 (+1)", "  0 of 0 before"]),
    ],
)
def test_budgets(was: Any, now: Any, said: list[str]) -> None:
    def having(found: Any) -> TestFacts:
        return article(budgets=() if found is None else (found,))

    assert told(having(was), having(now)) == said
    of_run = [ledger(article(), budgets=() if found is None else (found,)) for found in (was, now)]
    assert told(of_run[0], of_run[1]) == said


def test_a_test_that_failed_has_lost_no_limit() -> None:
    was = article(budgets=(budget(1900, 2000),))
    assert not [line for line in told(was, article(outcome="error", budgets=())) if "limit" in line]


# Cost


def test_tokens_beyond_the_tolerance_and_within_it() -> None:
    now = article((1100, 520))
    assert told(article(), now) == [
        "cost: research 1,500 -> 1,620 tokens (+120, +8%), +$0.00008 (+5.2%)",
        "  input 1,000 -> 1,100, output 500 -> 520",
    ]
    assert (
        told(article(), now, "10")[0] == "informational: research 1,500 -> 1,620 tokens (+120, +8%), +$0.00008 (+5.2%)"
    )
    assert told(article(), now, "8")[0].startswith("informational: ")
    assert told(article(), now, "7.99")[0].startswith("cost: ")


def test_one_node_in_several_tests_is_one_difference_with_those_that_moved_most() -> None:
    was = {f"t::{name}": article() for name in "abcde"}
    more = {"a": 100, "b": 500, "c": 300, "d": 10, "e": 200}
    now = {f"t::{name}": article((1000 + count, 500)) for name, count in more.items()}
    found = compare(ledger(was), ledger(now))
    assert [lines(difference) for difference in found.differences] == [
        [
            "cost: research 6,000 -> 7,100 tokens (+1,100, +18%), +$0.00033 (+5.3%)",
            "  input 4,000 -> 5,100",
            "  t::b: +500 tokens",
            "  t::c: +300 tokens",
            "  t::e: +200 tokens",
            "  and 1 more test",
        ],
        [
            "informational: research 1,500 -> 1,510 tokens (+10, +0.7%), +$0.000003 (+0.2%)",
            "  input 1,000 -> 1,010",
        ],
    ]


def test_as_many_tokens_of_a_dearer_kind() -> None:
    def thinking(sent: int, made: int, cached: int, thoughts: int) -> TestFacts:
        return traced(call("write", used(sent, made, cached, thoughts)))

    assert told(thinking(1000, 100, 900, 0), thinking(1000, 100, 100, 50)) == [
        "cost: write 1,100 -> 1,100 tokens (as many), +$0.000216 (+70%)",
        "  cached 900 -> 100, thoughts 0 -> 50",
    ]


def test_less_is_good_news() -> None:
    assert told(article(), article((900, 500))) == [
        "informational: research 1,500 -> 1,400 tokens (-100, -6.7%), -$0.00003 (-1.9%)",
        "  input 1,000 -> 900",
    ]


DEARER = RATES | {"input": Decimal("0.60")}


def test_prices_alone() -> None:
    now = traced(call("research", used(1000, 500), DEARER, priced_at="2026-01-01"), call("write", used(500, 500)))
    found = compare(ledger(article()), ledger(now))
    assert [lines(difference) for difference in found.differences] == [
        [
            "cost: research +$0.0003 by prices alone (+19%)",
            "  gemini-2.5-flash: input $0.30 -> $0.60 a million tokens",
        ],
        ["informational: 1 test recorded anew"],
    ]


def test_tokens_and_prices_are_told_apart_to_the_last_digit() -> None:
    now = traced(call("research", used(2000, 500), DEARER), call("write", used(500, 500)))
    found = compare(ledger(article()), ledger(now))
    # 1,000 x 0.30 more at the old price; 2,000 x 0.30 of the new one
    assert (found.total.by_tokens, found.total.by_prices) == (Decimal("0.0003"), Decimal("0.0006"))
    assert [difference.text for difference in found.differences] == [
        "research 1,500 -> 2,500 tokens (+1,000, +67%), +$0.0003 (+19%)",
        "research +$0.0006 by prices alone (+39%)",
    ]


def test_another_model_is_named_once_as_a_request_and_once_with_its_prices() -> None:
    pro = {"input": Decimal("1.25"), "output": Decimal("10")}
    now = traced(
        call("research", used(1000, 500, 100), pro, model="gemini-2.5-pro", answered_by="gemini-2.5-pro"),
        call("write", used(500, 500)),
    )
    was = traced(call("research", used(1000, 500, 100)), call("write", used(500, 500)))
    assert told(was, now)[:3] == [
        "cost: research +$0.004727 by prices alone (+310%)",
        "  gemini-2.5-flash -> gemini-2.5-pro: input $0.30 -> $1.25, output $2.50 -> $10.00 a million tokens",
        "request: model gemini-2.5-flash -> gemini-2.5-pro in 1 request of research",
    ]
    assert "answered by" not in " ".join(told(was, now))


def test_searches_are_billed_by_the_thousand() -> None:
    def searching(count: int) -> TestFacts:
        lines = (BilledFacts("input", 10, Decimal("0.3")), BilledFacts("searches", count, Decimal(14)))
        cost = sum((Decimal("0.000003"), Decimal("0.014") * count), Decimal(0))
        return traced(call("write", used(10, count), billed=lines, cost=cost))

    assert told(searching(1), searching(2)) == [
        "cost: write 11 -> 12 tokens (+1, +9.1%), +$0.014 (+100%)",
        "  output 1 -> 2",
    ]


def bare(facts: TestFacts) -> TestFacts:
    return replace(facts, calls=tuple(replace(asked, billed=()) for asked in facts.calls))


def test_ledgers_without_bills_tell_what_they_can() -> None:
    more = traced(call("research", used(2000, 500), DEARER), call("write", used(500, 500)))
    assert told(bare(article()), bare(article((2000, 500))))[0].endswith("+$0.0003 (+19%)")
    same = traced(call("research", used(1000, 500), DEARER), call("write", used(500, 500)))
    assert told(bare(article()), bare(same)) == ["cost: research +$0.0003 by prices alone (+19%)"]
    other = replace(more, calls=tuple(replace(asked, priced_at="2026-01-01") for asked in more.calls))
    assert told(bare(article()), bare(other))[:4] == [
        "cost: research 1,500 -> 2,500 tokens (+1,000, +67%)",
        "  input 1,000 -> 2,000",
        "cost: research $0.00155 -> $0.00245 (+$0.0009, +58%)",
        "  tokens and prices cannot be told apart: a ledger holds no rates",
    ]


def test_what_nobody_knows_any_more_is_no_zero() -> None:
    now = traced(call("research", used(1000, 500), None), call("write", used(500, 500)))
    assert told(article(), now) == [
        "cost: research: cost unknown, $0.00155 before",
        "  a model without a price, in test_a.py::test_article",
    ]
    assert told(now, article()) == ["informational: research: cost $0.00155, unknown before"]
    assert told(now, now) == []
    assert compare(ledger(article()), ledger(now)).total.by_tokens is None


def test_a_subgraphs_growth_is_its_inner_nodes() -> None:
    was = traced(call("report|plan", used(10, 10)), call("report|write", used(10, 20)))
    now = traced(call("report|plan", used(10, 10)), call("report|write", used(10, 40)))
    assert [line for line in told(was, now) if line.startswith("cost")] == [
        "cost: report|write 30 -> 50 tokens (+20, +67%), +$0.00005 (+94%)"
    ]


def test_what_no_node_asks_for() -> None:
    was, now = (traced(call("write", used(10, 10)), call(None, used(sent, 10))) for sent in (10, 30))
    assert told(was, now)[0] == "cost: (no node) 20 -> 40 tokens (+20, +100%), +$0.000006 (+21%)"
    assert told(was, now)[1] == "  input 10 -> 30"
    came = traced(call("write", used(10, 10)))
    assert told(came, was)[0] == "cost: (no node) 0 -> 20 tokens (+20), +$0.000028"


def test_a_test_that_fails_early_has_not_become_cheaper() -> None:
    assert told(article(), article((100, 50), outcome="failed")) == ["breaking: passed -> failed"]


# Requests


def test_one_edit_of_many_requests_is_one_difference() -> None:
    def warm(temperature: float) -> TestFacts:
        facts = article()
        return replace(
            facts,
            calls=tuple(
                replace(asked, request={**asked.request, "generationConfig.temperature": temperature})
                for asked in facts.calls
            ),
        )

    found = compare(ledger({f"t::{n}": warm(0.7) for n in "abc"}), ledger({f"t::{n}": warm(0.2) for n in "abc"}))
    (difference,) = found.differences
    assert lines(difference) == ["request: generationConfig.temperature 0.7 -> 0.2 in 6 requests"]
    assert (difference.tests, difference.old, difference.new) == (("t::a", "t::b", "t::c"), 0.7, 0.2)


def test_prompts_that_changed_in_several_ways_are_one_difference_with_examples() -> None:
    def asking(*words: str) -> TestFacts:
        return traced(*(call("write", used(1, 1), request={"contents[0].parts[0].text": word}) for word in words))

    assert told(asking("a", "b", "c", "d"), asking("e", "f", "g", "h")) == [
        "request: contents[].parts[].text changed in 4 requests",
        "  a -> e",
        "  b -> f",
        "  and 2 more edits",
    ]
    assert told(asking("a"), replace(asking("a"), calls=(call("write", used(1, 1), request={}),))) == [
        "request: contents[].parts[].text a -> (absent) in 1 request"
    ]


def test_a_call_that_came_is_found_between_those_that_stayed() -> None:
    def asking(*words: str) -> TestFacts:
        facts = traced(*(call("write", used(0, 0), request={"text": word}) for word in words))
        return replace(facts, nodes={"write": replace(facts.nodes["write"], llm_calls=0)})

    assert told(asking("a", "c"), asking("a", "b", "c")) == ["request: write: 1 call appeared"]
    assert told(asking("a", "b", "c"), asking("a", "c")) == ["request: write: 1 call vanished"]


def test_another_answering_model_is_news_only() -> None:
    was = article()
    now = replace(was, calls=tuple(replace(asked, answered_by="gemini-2.5-flash-002") for asked in was.calls))
    assert told(was, now) == [
        f"informational: answered by {FLASH} -> gemini-2.5-flash-002 in 2 requests of research, write"
    ]


# News


def test_versions_findings_and_old_runs() -> None:
    warned = FindingFacts("uncalled", "write", "a span without a call", "warned")
    unused = FindingFacts("unused", None, "a.yaml: 1 recorded reply was never asked for", "failed")
    was = ledger(article(), versions={"mlflow": "3.9.0", "vcrpy": "9.0"}, part="one file")
    now = ledger(
        article(findings=(warned, warned)),
        versions={"mlflow": "3.17.2", "google-genai": "2.34"},
        findings=(unused,),
    )
    assert told(was, now) == [
        "breaking: a.yaml: 1 recorded reply was never asked for",
        "informational: write: uncalled warned 2 times instead of 0",
        "informational: mlflow 3.9.0 -> 3.17.2",
        "informational: vcrpy 9.0 -> (not there)",
        "informational: google-genai (not there) -> 2.34",
        "informational: the old run was not whole: one file",
    ]


def test_the_sums_of_nodes_over_tests() -> None:
    found: Comparison = compare(
        ledger({f"t::{n}": article() for n in "ab"}), ledger({f"t::{n}": article((1100, 500)) for n in "ab"})
    )
    assert [(row.node, row.old and row.old.tokens, row.new and row.new.tokens) for row in found.nodes] == [
        ("research", 3000, 3200),
        ("write", 2000, 2000),
    ]
    assert found.total.old is not None
    assert (found.total.old.tokens, found.total.old.cost) == (5000, Decimal("0.0059"))
    assert found.total.by_tokens == Decimal("0.00006")


# Unknown is never 0, and hides nothing


def test_a_call_outside_of_nodes_that_reports_nothing_any_more() -> None:
    def with_call(usage: UsageFacts | None) -> TestFacts:
        facts = traced(call("research", used(1000, 500)), call(None, usage))
        return facts if usage is not None else dataclasses.replace(facts, tokens=None, cost=None)

    found = compare(ledger(with_call(used(100, 50))), ledger(with_call(None)))
    assert [(one.level, one.text) for one in found.at_least("cost")] == [
        ("cost", "(no node): tokens unknown, 150 before"),
        ("cost", "(no node): cost unknown, $0.000155 before"),
    ]


def test_a_call_that_reports_nothing_hides_no_growth_beside_it() -> None:
    def with_output(made: int) -> TestFacts:
        facts = traced(call("write", used(100, made)), call("write", None))
        nodes = {name: dataclasses.replace(node, tokens=None, cost=None) for name, node in facts.nodes.items()}
        return dataclasses.replace(facts, tokens=None, cost=None, nodes=nodes)

    found = compare(ledger(with_output(500)), ledger(with_output(500_000)))
    assert [(one.level, one.text) for one in found.differences] == [
        ("cost", "write: tokens unknown as before, of those known 600 -> 500,100")
    ]
    assert compare(ledger(with_output(500)), ledger(with_output(500))).differences == ()


def test_nobody_vouches_for_a_run_that_has_skipped_all() -> None:
    found = compare(ledger(article()), ledger(TestFacts("skipped")))
    assert found.obstacles == ("all tests were skipped in the new run: nothing to compare",)
    assert compare(ledger(TestFacts("skipped")), ledger(TestFacts("skipped"))).obstacles == ()


def test_limits_of_a_test_that_failed_are_no_news() -> None:
    was = article(budgets=(budget(1_500, 2_000),))
    now = article(outcome="failed", budgets=(budget(None, 2_000),))
    assert [one.text for one in compare(ledger(was), ledger(now)).differences] == ["passed -> failed"]
    silent = article(budgets=(budget(None, 2_000),))
    assert [one.text for one in compare(ledger(was), ledger(silent)).differences] == [
        "research tokens cannot be judged any more: what was used is unknown"
    ]
