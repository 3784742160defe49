"""A ledger's facts and its file, built by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_agenttrace.calls import ModelCall
from pytest_agenttrace.ledger import (
    BilledFacts,
    BudgetFacts,
    CallFacts,
    ExecutionFacts,
    FindingFacts,
    Ledger,
    LedgerError,
    NodeFacts,
    RunFacts,
    TestFacts,
    Times,
    ToolFacts,
    UsageFacts,
    facts_of,
    ledger_text,
    merge,
    plain,
    read_ledger,
    write_ledger,
)
from pytest_agenttrace.ledger.file import generated_schema, shipped_schema
from pytest_agenttrace.ledger.requests import members
from tests.handmade import Run, built, call, dollar_per_million, tokens


def bill(call: ModelCall) -> list[tuple[str, int, Decimal]]:
    return [("input", call.usage.input_tokens or 0, Decimal(1))] if call.usage is not None else []


def article(*, reverse: bool = False) -> TestFacts:
    """A node with a tool, then two branches, one of them a subgraph with a retry, each asking once."""
    run = Run()
    root = run.graph("writer")
    research = run.node("research", root, 1, "research:1")
    asked = run.model(research, tokens(100, 20))
    run.tool(research, "web_search", inputs={"query": "sails", "limit": 3})
    first = run.node("write", root, 2, "write:2", path=("__pregel_push", 0, False))
    second = run.node("report", root, 2, "report:3", path=("__pregel_push", 1, False))
    inner = run.graph("inner", second)
    failed = run.node("draft", inner, 1, "report:3|draft:4", status="error", error_type="ValueError", error="no")
    draft = run.node("draft", inner, 1, "report:3|draft:4")
    told = [(first, run.model(first, tokens(10, 1))), (draft, run.model(draft, tokens(30, 3)))]
    calls = [call(1, research, asked.usage, body=b'{"a":1}', reply=1)]
    # Branches ask in any order; their replies lie in the cassette in one.
    order = reversed(told) if reverse else told
    for number, (by, model) in enumerate(order, 2):
        place = 2 if by is first else 3
        calls.append(call(number, by, model.usage, body=f'{{"a":{place}}}'.encode(), reply=place))
    assert failed.status == "error"
    return facts_of(built(run, calls=calls), dollar_per_million, bill)


def used(input_tokens: int, output_tokens: int) -> UsageFacts:
    return UsageFacts(input_tokens, output_tokens, input_tokens + output_tokens)


def test_facts_of_a_trace() -> None:
    facts = article()
    assert facts.tokens == 164
    assert facts.usage == used(140, 24)
    assert facts.cost == Decimal("0.000164")
    assert facts.unpriced == ()
    assert facts.models == ("gemini-2.5-flash",)
    assert facts.trajectory == ("research", "write", "report")
    assert facts.edges == (
        (None, "report|draft"),
        (None, "research"),
        ("research", "report"),
        ("research", "write"),
    )
    search = ToolFacts("web_search", {"limit": 3, "query": "sails"})
    assert facts.nodes == {
        "research": NodeFacts(1, 1, 1, 1, 120, used(100, 20), Decimal("0.000120")),
        "write": NodeFacts(1, 1, 1, 0, 11, used(10, 1), Decimal("0.000011")),
        "report": NodeFacts(1, 1, 1, 0, 33, used(30, 3), Decimal("0.000033")),
        "report|draft": NodeFacts(1, 2, 1, 0, 33, used(30, 3), Decimal("0.000033")),
    }
    assert facts.executions == (
        ExecutionFacts("research", 1, "ok", 1, None, 120, Decimal("0.000120"), (search,)),
        ExecutionFacts("write", 2, "ok", 1, None, 11, Decimal("0.000011"), ()),
        ExecutionFacts("report", 2, "ok", 1, None, 33, Decimal("0.000033"), ()),
        ExecutionFacts("report|draft", 1, "ok", 2, None, 33, Decimal("0.000033"), ()),
    )
    assert [(made.node, made.request) for made in facts.calls] == [
        ("research", {"a": 1}),
        ("write", {"a": 2}),
        ("report|draft", {"a": 3}),
    ]
    assert [made.billed for made in facts.calls] == [
        (BilledFacts("input", count, Decimal(1)),) for count in (100, 10, 30)
    ]


def test_the_order_in_which_branches_ask_is_no_part_of_it() -> None:
    assert article(reverse=True) == article()


def test_what_nobody_knows_is_none() -> None:
    run = Run()
    root = run.graph()
    silent = run.node("silent", root, 1, "silent:1")
    run.model(silent, None)
    dear = run.node("dear", root, 2, "dear:2")
    spoke = run.model(dear, tokens(5, 5), model="unpriced")
    failed = run.node("failed", root, 3, "failed:3", status="error", error_type="google.api.ClientError", error="429")
    facts = facts_of(
        built(
            run,
            calls=[
                call(1, silent, None),
                call(2, dear, spoke.usage, model="unpriced"),
                call(3, failed, None, status=429),
            ],
        ),
        dollar_per_million,
    )
    assert (facts.tokens, facts.cost, facts.unpriced) == (None, None, ("gemini-2.5-flash", "unpriced"))
    assert (facts.nodes["silent"].tokens, facts.nodes["silent"].usage) == (None, UsageFacts())
    assert (facts.nodes["dear"].tokens, facts.nodes["dear"].cost) == (10, None)
    assert [(call.status, call.usage, call.cost) for call in facts.calls] == [
        (200, None, None),
        (200, used(5, 5), None),
        (429, None, None),
    ]
    assert facts.executions[2].error == "ClientError"


def test_two_runs_in_one_test_have_no_edge_between_them() -> None:
    run = Run()
    for turn in (1, 2):
        root = run.graph()
        run.node("a", root, 1, f"a:{turn}")
        run.node("b", root, 2, f"b:{turn}")
    facts = facts_of(built(run), dollar_per_million)
    assert facts.trajectory == ("a", "b", "a", "b")
    assert facts.edges == ((None, "a"), ("a", "b"))


# Requests


def test_members_of_a_request() -> None:
    long = "Write 300 words on solar sails, how they work, who built them and how far they went."
    body = {
        "contents": [{"parts": [{"text": long}, {"text": "short"}], "role": "user"}],
        "generationConfig": {"temperature": 0.5, "stop": [], "extra": {}, "seed": None, "on": True},
        "odd key": 1,
    }
    found = members(json.dumps(body).encode())
    digest = found["contents[0].parts[0].text"]
    assert found == {
        "contents[0].parts[0].text": digest,
        "contents[0].parts[1].text": "short",
        "contents[0].role": "user",
        "generationConfig.temperature": 0.5,
        "generationConfig.stop": "[]",
        "generationConfig.extra": "{}",
        "generationConfig.seed": None,
        "generationConfig.on": True,
        '["odd key"]': 1,
    }
    assert str(digest).startswith("84 characters #")
    assert members(json.dumps(long + ".").encode())["body"] != members(json.dumps(long + "!").encode())["body"]


def test_bodies_that_are_odd() -> None:
    assert members(b"") == {"body": "{}"}
    assert members(b"a=1&b=2") == {"body": "a=1&b=2"}
    assert members(b"3") == {"body": 3}
    assert members(b"[1e999]") == {"[0]": "inf"}
    many = members(json.dumps(list(range(2_500))).encode())
    assert len(many) == 2_001
    assert str(many["..."]).startswith("500 more members #")
    other = members(json.dumps([*range(2_499), 0]).encode())
    assert other["..."] != many["..."]


# The file


def ledger(**tests: TestFacts) -> Ledger:
    return Ledger(
        1, {"python": "3.12.1"}, RunFacts(), tests, Times("2026-01-01T00:00:00+00:00", 1.5, {"b": 0.5, "a": 1.0})
    )


FULL = TestFacts(
    outcome="failed",
    cassette="cassettes/a.yaml",
    tokens=7,
    usage=UsageFacts(3, 4, 7),
    cost=Decimal("1E-7"),
    models=("m",),
    trajectory=("a",),
    edges=((None, "a"),),
    outline=({"a": ["m"]},),
    nodes={"a": NodeFacts(1, 1, 1, 0, 7, UsageFacts(3, 4, 7), Decimal("1E-7"))},
    executions=(ExecutionFacts("a", 1, "ok", 1, None, 7, None, (ToolFacts("t", {"x": [1, None]}),)),),
    calls=(
        CallFacts(
            "a", "generateContent", "m", "m-1", 200, 1, "STOP", None, None, None, "2026-01-01", {"n": 0.5, "t": True}
        ),
    ),
    budgets=(BudgetFacts("a", "cost", Decimal("0.10"), None), BudgetFacts(None, "tokens", 5, 7)),
)


def test_a_ledger_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = ledger(b=FULL, a=TestFacts(outcome="skipped"))
    path = tmp_path / "new" / "ledger.json"
    write_ledger(path, made)
    back = read_ledger(path)
    assert plain(back) == plain(made)
    assert list(back.tests) == ["a", "b"]
    assert list(back.times.tests) == ["a", "b"]
    assert back.tests["b"].cost == Decimal("0.0000001")
    assert back.tests["b"].budgets[0].limit == Decimal("0.10")
    assert isinstance(back.tests["b"].budgets[1].limit, int)
    assert [found.name for found in path.parent.iterdir()] == ["ledger.json"]
    assert not stat.S_IMODE(path.stat().st_mode) & 0o111


@given(
    st.dictionaries(
        st.text(),
        st.recursive(st.none() | st.integers() | st.text() | st.floats(), lambda inner: st.lists(inner)),
        max_size=3,
    )
)
def test_whatever_a_tool_was_given_can_be_written(args: dict[str, Any]) -> None:
    facts = dataclasses.replace(
        FULL, executions=(ExecutionFacts("a", 1, "ok", 1, None, 7, None, (ToolFacts("t", args),)),)
    )
    text = ledger_text(ledger(a=facts)).encode("utf-8", "backslashreplace")
    json.loads(text, parse_constant=pytest.fail)


def test_a_ledger_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    path.mkdir()
    with pytest.raises(LedgerError) as caught:
        write_ledger(path, ledger())
    assert str(caught.value) == f"{path}: the ledger cannot be written: Is a directory"
    assert list(tmp_path.iterdir()) == [path]


def written(path: Path, **changes: Any) -> Path:
    data = plain(ledger(a=FULL))
    path.write_text(json.dumps(data | changes))
    return path


def test_files_that_are_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "l.json"

    def error() -> str:
        with pytest.raises(LedgerError) as caught:
            read_ledger(path)
        return str(caught.value).removeprefix(f"{path}: ")

    assert error() == f"no such ledger: write one with pytest --agenttrace-ledger {path}"
    path.write_text("")
    assert error() == "the ledger is empty: the run that was to write it did not"
    path.write_text("{")
    assert error() == "no ledger: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    path.write_text("[1]")
    assert error() == "no ledger: it has no 'format'"
    path.write_text("{}")
    assert error() == "no ledger: it has no 'format'"
    written(path, format=2)
    assert error() == "a ledger of format 2, written by a newer pytest-agenttrace: install that"
    written(path, format="1")
    assert error() == "no valid ledger\n  format: input should be 1"
    written(path, tests={"t": {"outcome": "pased", "tokens": 1.5, "cost": "much"}}, run=None)
    assert error().splitlines() == [
        "no valid ledger",
        "  run: input should be an object",
        "  tests > t > outcome: input should be 'passed', 'failed', 'error', 'skipped', 'xfailed', 'xpassed' or 'run'",
        "  tests > t > tokens: input should be a valid integer",
        "  tests > t > cost: input should be a valid decimal",
    ]
    path.write_bytes(b"\xff\xfe")
    assert error().startswith("no ledger: ")
    path.unlink()
    path.mkdir()
    assert error() == "the ledger cannot be read: Is a directory"


def test_members_of_a_later_minor_form_are_passed_over(tmp_path: Path) -> None:
    assert read_ledger(written(tmp_path / "l.json", more=1)).tests["a"].tokens == 7


def test_the_schema_that_is_shipped_is_that_of_the_data() -> None:
    """`python -c "from pytest_agenttrace.ledger import file; print(file.generated_schema(), end='')"` makes it."""
    assert shipped_schema() == generated_schema()
    schema = json.loads(shipped_schema())
    assert schema["properties"].keys() == {"format", "versions", "run", "tests", "times"}
    assert schema["$defs"]["TestFacts"]["properties"].keys() == {found.name for found in dataclasses.fields(TestFacts)}


# Shards


ONE, TWO = Path("shard-1.json"), Path("shard-2.json")


def shard(*names: str, **changes: Any) -> Ledger:
    run = RunFacts(part="tests were deselected")
    made = Ledger(1, {"python": "3.12.1"}, run, dict.fromkeys(names, FULL), Times("2026-01-01T00:00:00+00:00", 2.5))
    return dataclasses.replace(made, **changes)


def test_what_a_shard_leaves_out_another_was_to_run() -> None:
    """By deselecting, as pytest-split does, and by files; what all shards leave out was not to run."""
    splits = (
        RunFacts(part="-", whole=(".",), deselected=("a::2", "a::plain", "a::slow")),
        RunFacts(part="-", whole=(".",), deselected=("a::1", "a::slow")),
    )
    found = merge({ONE: shard("a::1", run=splits[0]), TWO: shard("a::2", run=splits[1])})
    assert (found.run.part, found.run.deselected) == (None, ("a::slow",))
    files = (RunFacts(part="-", whole=("a",), deselected=("a::slow",)), RunFacts(part="-", whole=("b",)))
    assert merge({ONE: shard(run=files[0]), TWO: shard(run=files[1])}).run.deselected == ("a::slow",)


def test_shards_are_a_whole() -> None:
    times = Times("2025-12-31T23:00:00+00:00", 1.0, {"b": 0.5})
    first = shard("a", run=RunFacts(stopped="interrupted", part="some", not_run=("b", "c"), broken=("x.py",)))
    whole = merge({ONE: first, TWO: shard("a", "b", times=times)})
    assert whole == Ledger(
        1,
        {"python": "3.12.1"},
        RunFacts(stopped="shard-1.json: interrupted", not_run=("c",), broken=("x.py",)),
        {"a": FULL, "b": FULL},
        Times("2025-12-31T23:00:00+00:00", 3.5, {"b": 0.5}),
    )


def test_shards_that_contradict_each_other() -> None:
    other = shard(tests={"a": dataclasses.replace(FULL, tokens=8)})
    with pytest.raises(LedgerError) as caught:
        merge({ONE: shard("a"), TWO: other})
    assert str(caught.value) == "shard-2.json: a has another result than in shard-1.json: these are two runs"
    with pytest.raises(LedgerError) as caught:
        merge({ONE: shard("a"), TWO: shard("b", versions={"python": "3.13.0"})})
    assert str(caught.value) == "shard-2.json: python 3.13.0, but 3.12.1 in shard-1.json: shards share versions"


def test_a_limit_of_the_run_holds_for_the_tests_of_all_shards_each_once() -> None:
    limits = (BudgetFacts(None, "cost", Decimal("0.50"), None), BudgetFacts(None, "tokens", 100, 9_999))
    run = RunFacts(budgets=limits, findings=(FindingFacts("unused", None, "a.yaml: 1 reply", "warned"),))
    whole = merge({ONE: shard("a", "b", run=run), TWO: shard("b", "c", run=run)})
    assert whole.run.budgets == (
        BudgetFacts(None, "cost", Decimal("0.50"), Decimal("3E-7")),
        BudgetFacts(None, "tokens", 100, 21),
    )
    assert len(whole.run.findings) == 1
    silent = dataclasses.replace(FULL, tokens=None)
    unknown = merge({ONE: shard("a", run=run), TWO: shard(run=run, tests={"b": silent, "c": TestFacts("skipped")})})
    assert [budget.used for budget in unknown.run.budgets] == [Decimal("2E-7"), None]
    assert merge({ONE: shard("a", run=run), TWO: shard("b")}).run.budgets == ()


# What is there already


def test_nothing_but_a_ledger_is_written_over(tmp_path: Path) -> None:
    test = tmp_path / "test_it.py"
    test.write_text("def test_it(): pass\n")
    with pytest.raises(LedgerError) as caught:
        write_ledger(test, ledger())
    assert str(caught.value) == f"{test} is there already and is no ledger: name another file"
    assert test.read_text() == "def test_it(): pass\n"
    write_ledger(tmp_path / "a.json", ledger(a=FULL))
    write_ledger(tmp_path / "a.json", ledger())
    assert read_ledger(tmp_path / "a.json").tests == {}


def test_links_are_followed_and_pipes_stay_pipes(tmp_path: Path) -> None:
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("target.json")
    write_ledger(link, ledger(a=FULL))
    assert link.is_symlink()
    assert list(read_ledger(tmp_path / "target.json").tests) == ["a"]
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(pipe.read_text)
        write_ledger(pipe, ledger(a=FULL))
        assert reading.result(30) == ledger_text(ledger(a=FULL))
    assert pipe.is_fifo()


def test_texts_that_are_odd_come_back(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    lone = json.loads('"\\ud800"')
    write_ledger(path, ledger(a=dataclasses.replace(FULL, cassette=lone)))
    assert read_ledger(path).tests["a"].cassette == "\\ud800"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(read_ledger(path).tests) == ["a"]
    path.write_text(ledger_text(ledger()), encoding="utf-16")
    with pytest.raises(LedgerError, match=r"no ledger: its text is not UTF-8$"):
        read_ledger(path)


@pytest.mark.parametrize(
    "change", [{"tokens": 10**41}, {"tokens": -1}, {"cost": "1e5000"}, {"cost": "-0.1"}, {"cost": "1e-999999"}]
)
def test_numbers_that_nobody_has_used(tmp_path: Path, change: dict[str, Any]) -> None:
    path = written(tmp_path / "l.json", tests={"t": {"outcome": "passed", **change}})
    with pytest.raises(LedgerError) as caught:
        read_ledger(path)
    (name,) = change
    wrong = f"tests > t > {name}: is no number of tokens or USD that anybody has used"
    assert str(caught.value) == f"{path}: no valid ledger\n  {wrong}"
