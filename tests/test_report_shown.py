"""Verdicts as text, Markdown and JSON, per month, in pull requests, and by `agenttrace diff`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pytest_agenttrace.cli import main
from pytest_agenttrace.ledger import Ledger, write_ledger
from pytest_agenttrace.projectfile import ProjectError
from pytest_agenttrace.report import (
    FailOn,
    Traffic,
    Verdict,
    append_summary,
    as_json,
    as_markdown,
    as_text,
    compare,
    error_annotations,
    judge,
    of_one_ledger,
    read_tolerance,
    traffic_of,
)
from pytest_agenttrace.report.markdown import bounded, code, month_usd
from pytest_agenttrace.report.plainjson import generated_schema, shipped_schema
from pytest_agenttrace.report.traffic import monthly
from tests.ledgers import article, budget, call, ledger, traced, used

OLD = ledger({"t::a": article(), "t::b": article((10, 10))})
NEW = ledger(
    {
        "t::a": traced(*article((1212, 500)).calls, call("critic", used(100, 10))),
        "t::b": article((10, 10)),
        "t::c": article((2, 2)),
    }
)

TEXT = """\
breaking
  node 'critic' appeared
    +110 tokens, +$0.000055
    in t::a
cost
  research 1,500 -> 1,712 tokens (+212, +14%), +$0.0000636 (+4.1%)
    input 1,000 -> 1,212
    in t::a
informational
  1 new test: 1,004 tokens, $0.0014056
    in t::c
2 tests compared, 1 new: 3,520 -> 3,842 tokens (+322, +9.1%), $0.004378 -> $0.0044966 (+$0.0001186, +2.7%)
1 breaking, 1 cost, 1 informational: fails on breaking and cost
"""

MARKDOWN = """\
### agenttrace: 1 breaking, 1 cost, 1 informational: fails on breaking and cost

2 tests compared, 1 new.

| node | tokens | | cost | |
|---|--:|--:|--:|--:|
| `research` | `1,520 -> 1,732` | `+212 (+14%)` | `$0.001578 -> $0.0016416` | `+$0.0000636 (+4%)` |
| `critic` | `(did not run) -> 110` | `+110` | `(did not run) -> $0.000055` | `+$0.000055` |
| `write` | `2,000` |  | `$0.0028` |  |
| **all tests compared** | `3,520 -> 3,842` | `+322 (+9.1%)` | `$0.004378 -> $0.0044966` | `+$0.0001186 (+2.7%)` |

- `research +212 tokens x 14,000 runs a day = +$26.71 a month`
- `critic +110 tokens x 14,000 runs a day = +$23.10 a month`
- `together +$49.81 a month`

A month is 30 days, at the runs a day that `[tool.agenttrace.traffic]` names.

**breaking**

- `node 'critic' appeared` in `t::a`
  - `+110 tokens, +$0.000055`

**cost**

- `research 1,500 -> 1,712 tokens (+212, +14%), +$0.0000636 (+4.1%)` in `t::a`
  - `input 1,000 -> 1,212`

<details><summary>informational</summary>

- `1 new test: 1,004 tokens, $0.0014056` in `t::c`

</details>
"""


def verdict(old: Ledger = OLD, new: Ledger = NEW, fail_on: FailOn = "cost") -> Verdict:
    return judge(compare(old, new), fail_on)


def test_as_text() -> None:
    assert "\n".join(as_text(verdict())) + "\n" == TEXT


def test_text_lists_some_names_and_with_v_all() -> None:
    many = {f"t::{n}": article() for n in "abcdef"}
    more = {f"t::{n}": traced(*article().calls, call("critic", used(0, 0))) for n in "abcdef"}
    found = verdict(ledger(many), ledger(more))
    assert "    in 6 tests: t::a, t::b, t::c and 3 more" in as_text(found)
    assert "    in 6 tests: t::a, t::b, t::c, t::d, t::e, t::f" in as_text(found, all_names=True)


def test_news_are_cut_unless_asked_for() -> None:
    old = ledger(article(), versions={f"p{n}": "1" for n in range(20)})
    new = ledger(article(), versions={f"p{n}": "2" for n in range(20)})
    lines = as_text(verdict(old, new))
    assert len(lines) == 1 + 12 + 1 + 2
    assert lines[13] == "  and 8 more"
    assert len(as_text(verdict(old, new), all_names=True)) == 1 + 20 + 2


def test_equal_ledgers_say_so_in_two_lines() -> None:
    assert as_text(verdict(OLD, OLD)) == [
        "2 tests compared: 3,520 tokens, $0.004378, as before",
        "no differences",
    ]


def test_text_stays_on_its_lines_whatever_nodes_are_called() -> None:
    new = traced(*article().calls, call("a\nb\x1b[31m", used(0, 0)))
    lines = as_text(verdict(ledger(article()), ledger(new)))
    assert lines[1] == "  node 'a\\nb\\x1b[31m' appeared"
    assert all(line.isprintable() for line in lines)
    stopped = ledger(article(), stopped="a\nb\x1b[31m")
    assert as_text(verdict(ledger(article()), stopped))[0].startswith("the new run was stopped (a b?[31m)")


@pytest.mark.parametrize(
    ("fail_on", "failed", "text"),
    [
        ("breaking", True, "1 breaking, 1 cost, 1 informational: fails on breaking"),
        ("cost", True, "1 breaking, 1 cost, 1 informational: fails on breaking and cost"),
        ("informational", True, "1 breaking, 1 cost, 1 informational: fails on breaking and cost and informational"),
        ("never", False, "1 breaking, 1 cost, 1 informational"),
    ],
)
def test_what_fails(fail_on: FailOn, failed: bool, text: str) -> None:
    found = verdict(fail_on=fail_on)
    assert (found.failed, found.text) == (failed, text)


@pytest.mark.parametrize(
    ("fail_on", "failed"),
    [("breaking", False), ("cost", True), ("request", True), ("informational", True), ("never", False)],
)
def test_levels_are_ordered(fail_on: FailOn, failed: bool) -> None:
    assert verdict(ledger(article()), ledger(article((2000, 500))), fail_on).failed is failed


def test_what_nobody_can_vouch_for_fails_always() -> None:
    found = verdict(OLD, ledger(), "never")
    assert found.failed
    assert as_text(found)[0] == "the new ledger has no tests"
    assert found.text.endswith(": fails, nobody can vouch for the new run")


# Markdown


def test_as_markdown() -> None:
    assert as_markdown(verdict(), Traffic(tests=(("t::a", 14_000),))) == MARKDOWN


def test_markdown_without_traffic_has_no_months() -> None:
    assert "month" not in as_markdown(verdict())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("research", "`research`"),
        ("a|b", "`a\\|b`"),
        ("a`b", "``a`b``"),
        ("`a``", "``` `a`` ```"),
        ("<script>alert(1)</script> @team #1 $x$", "`<script>alert(1)</script> @team #1 $x$`"),
        ("a\n\n# b", "`a # b`"),
        ("", "` `"),
    ],
)
def test_foreign_text_is_code_and_nothing_else(text: str, shown: str) -> None:
    assert code(text, cell=True) == shown


def test_a_nodes_name_cannot_leave_its_cell() -> None:
    new = traced(*article().calls, call("x`|</details><img src=x>\n# y", used(1, 1)))
    text = as_markdown(verdict(ledger(article()), ledger(new)))
    assert "| ``x`\\|</details><img src=x> # y`` | `(did not run) -> 2` |" in text
    assert text.count("\n#") == 0


def test_markdown_is_bounded_by_whole_lines_and_says_what_is_cut() -> None:
    text = "\n".join(["<details><summary>x</summary>", *(f"- line {n}" for n in range(100)), "</details>", ""])
    cut = bounded(text, 700)
    assert len(cut.encode()) <= 700
    assert cut.endswith("\n\n</details>\n\n(53 lines cut: see the ledger)\n")
    assert bounded(text) == text


def test_many_nodes_and_long_names_stay_below_githubs_limits() -> None:
    new = traced(*(call(f"node{n:04}-" + "x" * 2000, used(1, 1)) for n in range(500)))
    assert len(as_markdown(verdict(ledger(article()), ledger(new))).encode()) <= 60_000


def test_a_run_without_a_baseline() -> None:
    over = article(budgets=(budget(1500, 1000), budget(1000, 1000, "write")))
    assert of_one_ledger(ledger({"t::a": over, "t::b": article()})) == (
        "### agenttrace: 2 tests, 5,000 tokens, `$0.0059`, 1 budget exceeded\n"
        "\n"
        "- `research 1,500 tokens > 1,000 (+500)` in `t::a`\n"
        "\n"
        "| node | tests | calls | tokens | cost |\n"
        "|---|--:|--:|--:|--:|\n"
        "| `research` | 2 | 2 | 3,000 | `$0.0031` |\n"
        "| `write` | 2 | 2 | 2,000 | `$0.0028` |\n"
    )


# Per month


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        ("37.104", "+$37.10"),
        ("-0.5", "-$0.50"),
        ("1240.4", "+$1,240"),
        ("0.0001", "+<$0.01"),
        ("0", "$0"),
        ("99.999", "+$100.00"),
    ],
)
def test_money_of_a_month(usd: str, shown: str) -> None:
    assert month_usd(Decimal(usd)) == shown


def test_tests_of_one_workflow_are_averaged() -> None:
    found = compare(
        ledger({"t::a[1]": article(), "t::a[2]": article(), "t::b": article()}),
        ledger({"t::a[1]": article((1300, 500)), "t::a[2]": article((1001, 500)), "t::b": article((2000, 500))}),
    )
    months = monthly(found.rows, Traffic(100, (("t::a", 1000),)))
    assert [(one.node, one.match, one.runs_per_day, one.tests, one.tokens, one.usd_per_month) for one in months] == [
        # 1,000 x $0.30 a million x 100 x 30, and the mean of 300 and 1 x $0.30 a million x 1,000 x 30
        ("research", "t::a", 1000, 2, Decimal("150.5"), Decimal("1.3545")),
        ("research", None, 100, 1, Decimal(1000), Decimal("0.9")),
    ]
    text = as_markdown(judge(found, "cost"), Traffic(100, (("t::a", 1000),)))
    assert "- `research about +151 tokens (mean of 2 tests) x 1,000 runs a day = +$1.35 a month`" in text


def test_a_node_inside_of_another_is_in_that_ones_month() -> None:
    was, now = (traced(call("report|write", used(10, count))) for count in (10, 20))
    found = compare(ledger(was), ledger(now))
    assert [one.node for one in monthly(found.rows, Traffic(1))] == ["report"]
    said = "\n`report|write` runs inside of `report`, whose row includes it.\n"
    assert said in as_markdown(judge(found, "cost"))
    assert said in of_one_ledger(ledger(now))
    assert "whose row" not in of_one_ledger(ledger(article()))


def test_tests_without_traffic_are_left_out() -> None:
    found = compare(ledger(article()), ledger(article((2000, 500))))
    assert monthly(found.rows, Traffic(None, (("other::*", 5),))) == []


def test_an_unknown_price_is_no_money() -> None:
    unpriced = traced(call("research", used(2000, 500), None), call("write", used(500, 500)))
    found = judge(compare(ledger(article()), ledger(unpriced)), "cost")
    assert "- `research +1,000 tokens x 5 runs a day at an unknown price`" in as_markdown(found, Traffic(5))


def project(folder: Path, text: str) -> Path:
    (folder / "pyproject.toml").write_text(text)
    return folder


def test_traffic_is_read(tmp_path: Path) -> None:
    text = '[tool.agenttrace.traffic]\nruns_per_day = 10\ntests = [{match = "t.py", runs_per_day = 14_000}]\n'
    found = traffic_of(project(tmp_path, text))
    assert found == Traffic(10, (("t.py", 14_000),))
    assert found.stream_of("t.py::test[a]") == ("t.py", 14_000)
    assert found.stream_of("u.py::test[a]") == (None, 10)
    assert Traffic(tests=(("*", 1), ("t.py", 2), ("u.py", 3))).stream_of("t.py::test") == ("t.py", 2)
    (tmp_path / "below").mkdir()
    assert traffic_of(tmp_path / "below") == found
    assert traffic_of(project(tmp_path, "[tool.agenttrace.budgets]\ntokens = 1\n")) is None


def test_all_that_is_wrong_with_traffic(tmp_path: Path) -> None:
    text = (
        '[tool.agenttrace.traffic]\nruns_per_day = "many"\nrun_per_day = 1\n\n'
        '[[tool.agenttrace.traffic.tests]]\nmatch = ""\nruns_per_day = true\nx = 1\n'
    )
    with pytest.raises(ProjectError) as caught:
        traffic_of(project(tmp_path, text))
    assert caught.value.problems == (
        "pyproject.toml:3: tool.agenttrace.traffic.run_per_day: unknown key; did you mean 'runs_per_day'? "
        "It has runs_per_day, tests",
        'pyproject.toml:2: tool.agenttrace.traffic.runs_per_day = "many" is no number of runs',
        "pyproject.toml:8: tool.agenttrace.traffic.tests[0].x: unknown key. It has match, runs_per_day",
        'pyproject.toml:5: tool.agenttrace.traffic.tests[0]: match is missing: tests, such as "tests/test_article.py"',
        "pyproject.toml:7: tool.agenttrace.traffic.tests[0].runs_per_day = true is no number of runs",
    )


# JSON


def test_json_holds_everything_and_its_schema_is_shipped() -> None:
    data = json.loads(as_json(verdict()))
    assert (data["failed"], data["fail_on"]) == (True, "cost")
    assert data["comparison"]["tests"] == {"compared": 2, "new": 1, "vanished": 0, "not_run": 0}
    first = data["comparison"]["differences"][0]
    assert first == {
        "level": "breaking",
        "kind": "node appeared",
        "node": "critic",
        "text": "node 'critic' appeared",
        "tests": ["t::a"],
        "evidence": ["+110 tokens, +$0.000055"],
        "old": None,
        "new": None,
    }
    assert data["comparison"]["total"]["by_tokens"] == "0.0001186"
    assert generated_schema() == shipped_schema()


# Annotations and the step's summary


def test_a_budget_exceeded_is_one_annotation_escaped_as_github_wants_it() -> None:
    over = article(budgets=(budget(3534, 2000, "50%: a,b\n"), budget(1, 2, "write")))
    found = ledger({"t/a.py::test[1,2]": over}, budgets=(budget(Decimal("0.3"), Decimal("0.2"), None, "cost"),))
    assert list(error_annotations({"GITHUB_ACTIONS": "true"}, found, {"t/a.py::test[1,2]": ("t/a.py", 12)})) == [
        "::error file=t/a.py,line=12,title=t/a.py%3A%3Atest[1%2C2]::50%25: a,b  3,534 tokens > 2,000 (+1,534)",
        "::error title=the whole run::run $0.30 > $0.20 (+$0.10)",
    ]
    assert list(error_annotations({}, found, {})) == []


def test_ten_annotations_at_most() -> None:
    tests = {f"t.py::{n}": article(budgets=(budget(2, 1),)) for n in range(12)}
    lines = list(error_annotations({"GITHUB_ACTIONS": "true"}, ledger(tests), {}))
    assert len(lines) == 11
    assert lines[0] == "::error file=t.py,title=t.py%3A%3A0::research 2 tokens > 1 (+1)"
    assert lines[-1] == "::error title=agenttrace::2 more budgets are exceeded: see the summary"


def test_the_summary_is_appended(tmp_path: Path) -> None:
    file = tmp_path / "summary.md"
    file.write_text("# Before\n")
    assert append_summary({"GITHUB_STEP_SUMMARY": str(file)}, "### ours\n") is None
    assert file.read_text() == "# Before\n\n### ours\n"
    assert append_summary({}, "x") is None
    assert append_summary({"GITHUB_STEP_SUMMARY": str(tmp_path)}, "x") == (
        f"GITHUB_STEP_SUMMARY: {tmp_path} cannot be written: Is a directory"
    )


# The command


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_ledger(tmp_path / "old.json", OLD)
    write_ledger(tmp_path / "new.json", NEW)
    write_ledger(tmp_path / "empty.json", ledger())
    (tmp_path / "text.json").write_text("hello")
    (tmp_path / "newer.json").write_text('{"format": 2}')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def diff(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["diff", *arguments])


def test_diff_prints_and_exits(folder: Path) -> None:
    found = diff("old.json", "new.json")
    assert (found.exit_code, found.output) == (1, TEXT)
    assert diff("old.json", "old.json").exit_code == 0
    assert diff("old.json", "new.json", "--fail-on", "never").exit_code == 0
    assert diff("old.json", "empty.json", "--fail-on", "never").exit_code == 1
    assert diff("old.json", "new.json", "--tolerance", "20").output.splitlines()[-1] == (
        "1 breaking, 2 informational: fails on breaking"
    )


def test_diff_writes_a_file_and_says_the_verdict(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[[tool.agenttrace.traffic.tests]]\nmatch = "t::a"\nruns_per_day = 14_000\n')
    found = diff("old.json", "new.json", "--format", "markdown", "--output", "diff.md")
    assert found.output == "1 breaking, 1 cost, 1 informational: fails on breaking and cost\n"
    assert (folder / "diff.md").read_text() == MARKDOWN
    assert json.loads(diff("old.json", "new.json", "--format", "json").output)["failed"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["old.json", "none.json"], "none.json: no such ledger: write one with pytest --agenttrace-ledger none.json"),
        (["text.json", "new.json"], "text.json: no ledger: Expecting value: line 1 column 1 (char 0)"),
        (
            ["old.json", "newer.json"],
            "newer.json: a ledger of format 2, written by a newer pytest-agenttrace: install that",
        ),
        (
            ["old.json", "new.json", "--tolerance", "much"],
            "Invalid value for '--tolerance': 'much' is no tolerance: give percent, such as 10%",
        ),
        (["old.json", "new.json", "-o", "text.json/diff"], "text.json/diff: cannot be written: Not a directory"),
        (
            ["old.json", "new.json", "-o", "../{here}/new.json"],
            "--output ../{here}/new.json: is one of the ledgers compared: name another file",
        ),
    ],
)
def test_what_cannot_be_meant_exits_with_2(folder: Path, arguments: list[str], said: str) -> None:
    before = (folder / "new.json").read_bytes()
    found = diff(*(argument.replace("{here}", folder.name) for argument in arguments))
    told = found.output.splitlines()[-1].replace(f"/{folder.name}/", "/{here}/")
    assert (found.exit_code, told) == (2, f"Error: {said}")
    assert (folder / "new.json").read_bytes() == before


def test_letters_that_a_terminal_does_not_have_and_a_full_disk(folder: Path) -> None:
    write_ledger(folder / "foreign.json", ledger({"日本.py::test": article()}))
    command = [
        sys.executable,
        "-c",
        "from pytest_agenttrace.cli import main; main()",
        "diff",
        "old.json",
        "foreign.json",
    ]
    narrow = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    found = subprocess.run(command, capture_output=True, env=narrow, check=False)
    assert found.returncode == 1
    assert rb"\u65e5\u672c.py::test" in found.stdout
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
        assert found.returncode not in (0, None)
        assert found.stderr.startswith(b"Error: No space left on device\n")
        assert b"Traceback" not in found.stderr


@pytest.mark.parametrize("runs", [-1, 10**12 + 1])
def test_wrong_traffic_is_named_with_its_file(folder: Path, runs: int) -> None:
    (folder / "pyproject.toml").write_text(f"[tool.agenttrace.traffic]\nruns_per_day = {runs}\n")
    found = diff("old.json", "new.json", "--format", "markdown")
    assert (found.exit_code, found.output.splitlines()[-1]) == (
        2,
        f"Error: pyproject.toml:2: tool.agenttrace.traffic.runs_per_day = {runs} is no number of runs",
    )


@pytest.mark.parametrize(("text", "value"), [("10%", "10"), (" 2.5 % ", "2.5"), ("0", "0")])
def test_tolerances(text: str, value: str) -> None:
    assert read_tolerance(text) == Decimal(value)


@pytest.mark.parametrize("text", ["-1", "x", "", "NaN", "inf%"])
def test_what_is_no_tolerance(text: str) -> None:
    with pytest.raises(ValueError, match="is no tolerance"):
        read_tolerance(text)
