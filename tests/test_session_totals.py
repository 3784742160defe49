"""What a run's tests have used together."""

from __future__ import annotations

from decimal import Decimal

from pytest_agenttrace.session.totals import all_lines, lines, read_spent

ARTICLE = read_spent({"": [4601, "0.0061565"], "research": [3534, "0.0047364"], "write": [1067, "0.0014201"]})
REVIEW = read_spent({"": [100, "0.0038435"], "critic": [60, "0.0020000"], "judge": [40, "0.0018435"]})


def test_totals_and_the_dearest_nodes() -> None:
    assert list(lines({"a": ARTICLE, "b": REVIEW})) == [
        "traced: 4,701 tokens, $0.01 in 2 traces",
        "  dearest: research $0.0047364 (47%), critic $0.002 (20%), judge $0.0018435 (18%) and 1 more node",
    ]
    assert list(lines({"a": ARTICLE})) == [
        "traced: 4,601 tokens, $0.0061565 in 1 trace",
        "  dearest: research $0.0047364 (77%), write $0.0014201 (23%)",
    ]


def test_a_node_of_several_tests_counts_once() -> None:
    assert list(lines({"a": ARTICLE, "b": ARTICLE}))[1] == (
        "  dearest: research $0.0094728 (77%), write $0.0028402 (23%)"
    )


def test_unknown_is_said_and_is_not_nothing() -> None:
    unknown = read_spent({"": [None, None], "embed": [None, None]})
    assert next(lines({"a": ARTICLE, "b": unknown, "c": unknown})) == (
        "traced: 4,601 tokens (and 2 unknown), $0.0061565 (and 2 unknown) in 3 traces"
    )
    free = read_spent({"": [0, "0"], "fake": [0, "0"]})
    assert list(lines({"a": free})) == ["traced: 0 tokens, $0 in 1 trace"]


def test_nothing_traced_is_nothing_said() -> None:
    assert list(lines({})) == list(lines({"a": {}})) == list(all_lines({"a": {}})) == []


def test_every_test_with_its_nodes_the_dearest_first() -> None:
    unknown = read_spent({"": [None, None]})
    assert list(all_lines({"t.py::b": REVIEW, "t.py::c": unknown, "t.py::a": ARTICLE})) == [
        "traced: 4,701 tokens (and 1 unknown), $0.01 (and 1 unknown) in 3 traces",
        "  t.py::a: 4,601 tokens $0.0061565 (research 3,534 tokens $0.0047364, write 1,067 tokens $0.0014201)",
        "  t.py::b: 100 tokens $0.0038435 (critic 60 tokens $0.002, judge 40 tokens $0.0018435)",
        "  t.py::c: - tokens -",
    ]


def test_amounts_are_exact() -> None:
    told = {str(n): read_spent({"": [1, "0.1"], "n": [1, "0.1"]}) for n in range(10)}
    assert list(lines(told)) == ["traced: 10 tokens, $1.00 in 10 traces", "  dearest: n $1.00 (100%)"]
    assert ARTICLE[""] == (4601, Decimal("0.0061565"))
