"""The plugin as its users see it: what pytest says of tests that use it, every message pinned in full."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.projects import (  # noqa: F401 - fixtures
    ARTICLE,
    KINDS,
    MISSED,
    Session,
    Told,
    cassette_fixture,
    inner,
    marked,
    miss,
    shared_fixture,
    temporary,
    told_fixture,
)

# One worker runs the shared session (xdist's --dist loadgroup).
pytestmark = pytest.mark.xdist_group("shared session")


# Budgets


@inner("""
@pytest.mark.budget(cost="0.005")
@pytest.mark.budget("research", tokens=2_000)
def test_article(agent_trace):
    app.invoke(SAILS)
""")
def test_budget_overrun(told: Told) -> None:
    out = told.session.out
    begin = out.index("research 3,534 tokens > 2,000 (+1,534)\nrun ")
    kept = temporary(told.session.folder) / "agenttrace" / "test_budget_overrun.py_test_article"
    assert re.split(r"\n(?:___|===|-+ generated)", out[begin:])[0] == (
        "research 3,534 tokens > 2,000 (+1,534)\n"
        "run $0.0061565 > $0.005 (+$0.0011565)\n"
        "-------------------------------- Captured trace --------------------------------\n"
        "> article_writer          2.1 s  4,601 tok  $0.0061565\n"
        "> ├─ research             1.2 s  3,534 tok  $0.0047364\n"
        "  │  ├─ gemini-2.5-flash         1,321 tok  $0.0029725   150 in, 1,171 out\n"
        "  │  ├─ web_search  [tool]\n"
        "  │  └─ gemini-2.5-flash         2,213 tok  $0.0017639   1,713 in, 500 out\n"
        "  └─ write                0.9 s  1,067 tok  $0.0014201\n"
        "     └─ gemini-2.5-flash         1,067 tok  $0.0014201   567 in, 500 out\n"
        "-------------------------------- Captured store --------------------------------\n"
        f"mlflow ui --backend-store-uri sqlite:///{kept}/mlflow.db --artifacts-destination {kept}/artifacts"
    )
    assert "FAILED test_budget_overrun.py::test_article - Failed: research 3,534 tokens >...\n" in out


@inner("""
@pytest.mark.budget(tokens=4_600, input_tokens=2_429, output_tokens=2_170, cost="0.0061564", llm_calls=2, tool_calls=0)
@pytest.mark.budget("write", tokens=1_066, input_tokens=566, output_tokens=499, cost=0.00142, llm_calls=0)
@pytest.mark.budget("reserch", tokens=1, cost=1)
def test_over(agent_trace):
    app.invoke(SAILS)


@pytest.mark.budget(tokens=4_601, input_tokens=2_430, output_tokens=2_171, cost="0.0061565", llm_calls=3, tool_calls=1)
@pytest.mark.budget("write", tokens=1_067, input_tokens=567, output_tokens=500, cost=0.0014201, llm_calls=1)
@pytest.mark.budget("write", tool_calls=0)
def test_exact(agent_trace):
    app.invoke(SAILS)


@pytest.mark.budget("research", tool_calls=0)
@pytest.mark.budget("write", tokens=0)
def test_zero(agent_trace):
    app.invoke(SAILS)
""")
def test_every_overrun_in_one_message(told: Told) -> None:
    assert told.outcomes == {"test_over": "failed", "test_exact": "passed", "test_zero": "failed"}
    assert told.text("test_over").splitlines() == [
        "budget: no node 'reserch' in this trace; did you mean 'research'? It has: research, write",
        "write 1,067 tokens > 1,066 (+1)",
        "write 567 input_tokens > 566 (+1)",
        "write 500 output_tokens > 499 (+1)",
        "write $0.0014201 > $0.00142 (+$0.0000001)",
        "write 1 llm_calls > 0 (+1)",
        "run 4,601 tokens > 4,600 (+1)",
        "run 2,430 input_tokens > 2,429 (+1)",
        "run 2,171 output_tokens > 2,170 (+1)",
        "run $0.0061565 > $0.0061564 (+$0.0000001)",
        "run 3 llm_calls > 2 (+1)",
        "run 1 tool_calls > 0 (+1)",
    ]
    assert told.section("test_over", "Captured trace") == marked("article_writer", "write")
    assert told.text("test_zero") == "write 1,067 tokens > 0 (+1,067)\nresearch 1 tool_calls > 0 (+1)"
    assert told.section("test_zero", "Captured trace") == marked("research", "write")


@inner("""
pytestmark = [pytest.mark.budget(tokens=1, cost=0), pytest.mark.budget("write", tokens=1)]


@pytest.mark.budget(tokens=5_000)
class TestClosest:
    @pytest.mark.budget(cost=1)
    @pytest.mark.budget("write", tokens=2_000)
    def test_function(self, agent_trace):
        app.invoke(SAILS)

    def test_class(self, agent_trace):
        app.invoke(SAILS)


def test_module(agent_trace):
    app.invoke(SAILS)
""")
def test_closest_budget_wins(told: Told) -> None:
    assert told.outcomes == {
        "TestClosest::test_function": "passed",
        "TestClosest::test_class": "failed",
        "test_module": "failed",
    }
    rest = "run $0.0061565 > $0 (+$0.0061565)\nwrite 1,067 tokens > 1 (+1,066)"
    assert told.text("TestClosest::test_class") == rest
    assert told.text("test_module") == f"run 4,601 tokens > 1 (+4,600)\n{rest}"


@inner("""
import mlflow


@pytest.fixture(scope="module", autouse=True)
def of_the_project():
    mlflow.set_tracking_uri("sqlite:///the-projects-own.db")
    yield
    assert mlflow.get_tracking_uri() == "sqlite:///the-projects-own.db"
    mlflow.set_tracking_uri(None)


@pytest.mark.budget(tokens=4_000)
def test_no_fixture():
    app.invoke(SAILS)


@pytest.mark.parametrize("words", [pytest.param(300, marks=pytest.mark.budget("write", llm_calls=0)), 0])
def test_only_one(words):
    if words:
        app.invoke(SAILS | {"words": words})
""")
def test_budget_brings_the_fixture(told: Told) -> None:
    # Behind the fixtures of a wider scope, and to none but the test that has the marker.
    assert told.outcomes == {"test_no_fixture": "failed", "test_only_one[300]": "failed", "test_only_one[0]": "passed"}
    assert told.text("test_no_fixture") == "run 4,601 tokens > 4,000 (+601)"
    assert told.section("test_no_fixture", "Captured requests to MLflow") is None
    assert told.text("test_only_one[300]") == "write 1 llm_calls > 0 (+1)"


@inner("""
@pytest.mark.xfail(reason="too dear")
@pytest.mark.budget(tokens=0)
def test_expected(agent_trace):
    app.invoke(SAILS)


@pytest.mark.xfail(strict=True, reason="too dear")
@pytest.mark.budget(tokens=0)
def test_strict(agent_trace):
    app.invoke(SAILS)


@pytest.mark.xfail(strict=True, reason="too dear")
@pytest.mark.budget(tokens=5_000)
def test_within(agent_trace):
    app.invoke(SAILS)
""")
def test_budget_xfail(told: Told) -> None:
    assert told.outcomes == {"test_expected": "xfailed", "test_strict": "xfailed", "test_within": "failed"}
    assert told.text("test_strict") == "run 4,601 tokens > 0 (+4,601)"
    assert told.text("test_within") == "[XPASS(strict)] too dear"
    assert told.section("test_within", "Captured trace") == ARTICLE


@inner("""
import unittest

from app import awrite, graph

pytestmark = pytest.mark.budget("write", tokens=1_000)


@pytest.mark.asyncio
async def test_asyncio(agent_trace):
    await graph(awrite).ainvoke(SAILS)


@pytest.fixture(params=["asyncio"])
def anyio_backend(request):
    return request.param


@pytest.mark.anyio
async def test_anyio(agent_trace, anyio_backend_name):
    await graph(awrite).ainvoke(SAILS)


class TestClass:
    @pytest.mark.parametrize("topic", ["solar sails"])
    def test_method(self, agent_trace, topic):
        app.invoke({"topic": topic})


@pytest.mark.usefixtures("agent_trace")
class UsingFixtures(unittest.TestCase):
    def test_plain(self):
        app.invoke(SAILS)


class Async(unittest.IsolatedAsyncioTestCase):
    @pytest.fixture(autouse=True)
    def use(self, agent_trace):
        self.trace = agent_trace

    async def test_isolated(self):
        await graph(awrite).ainvoke(SAILS)
        assert self.trace.trajectory == ["research", "write"]


class Bare(unittest.TestCase):
    def test_brought(self):
        app.invoke(SAILS)

    def test_subtests(self):
        with self.subTest("nothing has been asked yet: nothing is judged"):
            pass
        app.invoke(SAILS)
""")
def test_budget_in_every_kind_of_test(told: Told) -> None:
    assert set(told.outcomes) == {
        "test_asyncio",
        "test_anyio[asyncio]",
        "TestClass::test_method[solar sails]",
        "UsingFixtures::test_plain",
        "Async::test_isolated",
        "Bare::test_brought",
        "Bare::test_subtests",
    }
    for name in told.outcomes:
        assert (name, told.text(name)) == (name, "write 1,067 tokens > 1,000 (+67)")
        assert told.section(name, "Captured trace") == marked("write")


@inner("""
import unittest


@pytest.mark.usefixtures("agent_trace")
class Cases(unittest.TestCase):
    @pytest.mark.budget(tokens=1)
    def test_raising(self):
        app.invoke(SAILS)
        self.assertEqual(1, 2)

    @pytest.mark.budget(tokens=1)
    def test_skipping(self):
        app.invoke(SAILS)
        self.skipTest("not today")

    @pytest.mark.budget(tokens=1)
    @pytest.mark.xfail(reason="too dear", strict=True)
    def test_xfail(self):
        app.invoke(SAILS)

    def test_missing(self):
        app.invoke(SAILS | {"words": 400})

    @pytest.mark.budget(tokens=5_000)
    def test_within(self):
        app.invoke(SAILS)
""")
def test_a_testcase_is_judged_like_a_function(told: Told) -> None:
    assert told.outcomes == {
        "Cases::test_missing": "failed",
        "Cases::test_raising": "failed",
        "Cases::test_skipping": "skipped",
        "Cases::test_within": "passed",
        "Cases::test_xfail": "xfailed",
    }
    assert told.errors("Cases::test_raising") == "AssertionError: 1 != 2"
    assert told.text("Cases::test_xfail") == "run 4,601 tokens > 1 (+4,600)"
    assert told.text("Cases::test_missing") == miss("test_a_testcase_is_judged_like_a_function.py::Cases::test_missing")


@inner("""
@pytest.mark.budget(tokens=1)
def test_body_failed(agent_trace):
    app.invoke(SAILS)
    assert agent_trace.trajectory == []


@pytest.mark.budget(tokens=1)
def test_body_skipped(agent_trace):
    app.invoke(SAILS)
    pytest.skip("not today")
""")
def test_budgets_wait_for_the_end_of_the_body(told: Told) -> None:
    assert told.outcomes == {"test_body_failed": "failed", "test_body_skipped": "skipped"}
    assert "tokens" not in told.text("test_body_failed").partition("E  ")[2]
    assert told.section("test_body_failed", "Captured findings") is None
    assert told.section("test_body_failed", "Captured trace") == ARTICLE


@inner("""
runs = []


@pytest.mark.flaky(reruns=1)
@pytest.mark.budget(tokens=4_600)
def test_never(agent_trace):
    app.invoke(SAILS)


@pytest.mark.flaky(reruns=1)
@pytest.mark.budget(llm_calls=3)
def test_second(agent_trace):
    runs.append(app.invoke(SAILS))
    assert len(runs) == 2
""")
def test_reruns(told: Told) -> None:
    # A second run starts from nothing: the same tokens, not twice as many.
    assert told.outcomes == {"test_never": "failed", "test_second": "passed"}
    assert [text for text in told.texts("test_never") if text] == ["run 4,601 tokens > 4,600 (+1)"] * 2


# Misses


@inner("""
import app as code


def test_changed(agent_trace):
    app.invoke(SAILS | {"words": 400})


@pytest.mark.asyncio
async def test_async(agent_trace):
    await code.graph(code.awrite).ainvoke(SAILS | {"words": 400})


def test_caught(agent_trace):
    def write(state):
        try:
            return code.write(state | {"words": 400})
        except Exception:
            return {"article": ""}

    code.graph(write).invoke(SAILS)


def test_swallowed(agent_trace):
    def write(state):
        try:
            return code.write(state | {"words": 400})
        except BaseException:
            return {"article": ""}

    code.graph(write).invoke(SAILS)


@pytest.mark.budget(tokens=1)
def test_one_cause_one_message(agent_trace):
    app.invoke(SAILS | {"words": 400})


@pytest.mark.parametrize("words", ["four hundred"])
def test_parametrised(agent_trace, words):
    code.write({"topic": "solar sails", "words": words})


@pytest.fixture
def article(agent_trace):
    return app.invoke(SAILS | {"words": 400})


def test_in_setup(article):
    pass
""")
def test_cassette_miss(told: Told) -> None:
    names = ["test_changed", "test_async", "test_caught", "test_swallowed", "test_one_cause_one_message"]
    for name in names:
        assert told.text(name) == miss(f"test_cassette_miss.py::{name}")
    assert told.section("test_changed", "Captured trace") == MISSED
    assert told.section("test_changed", "Captured findings") is None
    assert told.text("test_parametrised[four hundred]") == (
        "CassetteMiss: (no node), call 1: no recorded reply\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  nearest recorded: call 3, differs at contents[0].parts[0].text:\n"
        "    Write [-300-]{+four hundred+} words on solar sails\n"
        "  If the prompt changed on purpose, record again:\n"
        "    pytest 'test_cassette_miss.py::test_parametrised[four hundred]' --agenttrace-record"
    )
    assert told.outcomes == {
        **dict.fromkeys([*names, "test_parametrised[four hundred]"], "failed"),
        "test_in_setup": "setup error",
    }
    assert told.text("test_in_setup") == miss("test_cassette_miss.py::test_in_setup")
    assert told.section("test_in_setup", "Captured trace") == MISSED


@inner("""
@pytest.mark.agent_trace(cassette="cassettes/none.yaml")
def test_named(agent_trace):
    app.invoke(SAILS)


class TestDefault:
    @pytest.fixture
    def agenttrace_config(self):
        return {}

    @pytest.mark.parametrize("topic", ["solar sails"])
    def test_place(self, agent_trace, topic):
        app.invoke(SAILS)
""")
def test_missing_cassette(told: Told) -> None:
    assert told.text("test_named") == (
        "CassetteMiss: research, call 1: no cassette\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  looked for: cassettes/none.yaml\n"
        "  Record it:\n"
        "    pytest test_missing_cassette.py::test_named --agenttrace-record"
    )
    name = "TestDefault::test_place[solar sails]"
    assert told.text(name) == (
        "CassetteMiss: research, call 1: no cassette\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  looked for: cassettes/test_missing_cassette/TestDefault.test_place[solar sails].yaml\n"
        "  Record it:\n"
        f"    pytest 'test_missing_cassette.py::{name}' --agenttrace-record"
    )


@inner("""
from pytest_agenttrace import CassetteMiss


def test_fails_otherwise(agent_trace):
    with pytest.raises(CassetteMiss):
        app.invoke(SAILS | {"words": 400})
    assert agent_trace["research"].tokens < 100


def test_expected_by_the_body(agent_trace):
    with pytest.raises(CassetteMiss):
        app.invoke(SAILS | {"words": 400})


@pytest.mark.agent_trace(allow=["write:missing"])
def test_allowed(agent_trace):
    with pytest.raises(CassetteMiss, match="write, call 3: no recorded reply"):
        app.invoke(SAILS | {"words": 400})


@pytest.mark.agent_trace(allow=["missing"])
def test_allowed_but_raised(agent_trace):
    app.invoke(SAILS | {"words": 400})


@pytest.mark.xfail(raises=CassetteMiss, strict=True)
def test_xfail(agent_trace):
    app.invoke(SAILS | {"words": 400})
""")
def test_miss_beside_other_failures(told: Told) -> None:
    assert told.outcomes == {
        "test_fails_otherwise": "failed",
        "test_expected_by_the_body": "failed",
        "test_allowed": "passed",
        "test_allowed_but_raised": "failed",
        "test_xfail": "xfailed",
    }
    assert told.errors("test_fails_otherwise") == "assert research 3,534 tokens < 100 (+3,434)"
    nodeid = "test_miss_beside_other_failures.py::"
    assert told.section("test_fails_otherwise", "Captured findings") == miss(f"{nodeid}test_fails_otherwise")
    assert told.section("test_fails_otherwise", "Captured trace") == MISSED
    for name in ("test_expected_by_the_body", "test_allowed_but_raised"):
        assert told.text(name) == miss(nodeid + name)


# Replies nobody asked for, and nothing at all


@inner("""
import shutil
from pathlib import Path

from app import write

HERE = Path(__file__).parent
OWN = HERE / "cassettes" / "test_unused_replies"


@pytest.fixture
def agenttrace_config():
    return {}


def own(name):
    OWN.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "app.yaml", OWN / f"{name}.yaml")


for name in ("unused", "allowed", "warned", "cassette_alone", "store_alone", "body_failed"):
    own(f"test_{name}")


def test_unused(agent_trace):
    write(SAILS)


@pytest.mark.agent_trace(allow=["unused"])
def test_allowed(agent_trace):
    write(SAILS)


@pytest.mark.agent_trace(warn=["unused"])
def test_warned(agent_trace):
    write(SAILS)


def test_cassette_alone(gemini_cassette):
    write(SAILS)
    assert [call.usage.total_tokens for call in gemini_cassette.calls] == [1067]
    assert (gemini_cassette.recording, gemini_cassette.path.name) == (False, "test_cassette_alone.yaml")


def test_store_alone(mlflow_store, gemini_cassette):
    app.invoke(SAILS)
    [trace] = mlflow_store.traces()
    assert trace.info.experiment_id == mlflow_store.experiment_id
    assert mlflow_store.uri == f"sqlite:///{mlflow_store.path}"


def test_body_failed(agent_trace):
    write(SAILS)
    assert agent_trace.tokens == 1
""")
def test_unused_replies(told: Told) -> None:
    assert told.outcomes == {
        "test_unused": "failed",
        "test_allowed": "passed",
        "test_warned": "passed",
        "test_cassette_alone": "failed",
        "test_store_alone": "passed",
        "test_body_failed": "failed",
    }
    unused = (
        "research: reply 1 was never asked for: gemini-2.5-flash:generateContent 'Research solar sails' [unused]\n"
        "research: reply 2 was never asked for: gemini-2.5-flash:generateContent 'reply of web_search' [unused]"
    )
    assert told.text("test_unused") == told.text("test_cassette_alone") == unused
    alone = "gemini-2.5-flash  1,067 tok  $0.0014201   567 in, 500 out"
    assert told.section("test_unused", "Captured trace") == alone
    assert told.errors("test_body_failed") == "assert run 1,067 tokens == 1 (+1,066)"
    assert told.section("test_body_failed", "Captured findings") is None
    assert f"\n{' agenttrace '.center(80, '=')}\n" in told.session.out
    assert "\nfindings warned of: unused 2\n" in told.session.out


@inner("""
pytestmark = pytest.mark.agent_trace(allow=["unused"])


def test_nothing(agent_trace):
    pass


def test_read(agent_trace):
    assert agent_trace.tokens == 0


@pytest.mark.budget(tokens=10)
def test_budget():
    pass


@pytest.mark.agent_trace(allow=["empty"])
def test_allowed(agent_trace):
    assert repr(agent_trace) == "<Trace: nothing traced>"


def test_turned_off(agent_trace):
    import mlflow

    mlflow.langchain.autolog(disable=True)
""")
def test_nothing_traced(told: Told) -> None:
    assert told.outcomes == {
        "test_nothing": "failed",
        "test_read": "failed",
        "test_budget": "failed",
        "test_allowed": "passed",
        "test_turned_off": "failed",
    }
    ran = "nothing was traced: no graph, chain or model ran"
    way_out = "  Call the graph before its trace is read; consume its stream, await its coroutine. [empty]"
    assert told.text("test_nothing") == told.text("test_budget") == f"{ran}\n{way_out}"
    assert told.text("test_read") == f"{ran}\n  read at test_nothing_traced.py:14\n{way_out}"
    call = "mlflow.langchain.autolog(disable=True)"
    assert told.text("test_turned_off") == (
        f"nothing was traced: the code called {call}\n"
        "  Leave it out in tests: autolog is on while the fixture is. [empty]"
    )
    assert told.section("test_turned_off", "Captured requests to MLflow") == f"{call}: tracing was switched off"


# Settings


@inner("""
@pytest.fixture
def agenttrace_config(agenttrace_config):
    assert agenttrace_config == {"cassette": "app.yaml"}
    return {"cassette": "cassettes/nowhere.yaml", "match": "order", "allow": ["unused"]}


@pytest.mark.agent_trace(cassette="app.yaml", match="body")
class TestMarked:
    def test_class(self, agent_trace, gemini_cassette):
        assert gemini_cassette.path.name == "app.yaml"
        app.invoke(SAILS)

    @pytest.mark.agent_trace(cassette="cassettes/closer.yaml", allow=["empty"])
    def test_function(self, agent_trace, gemini_cassette):
        assert gemini_cassette.path.name == "closer.yaml"


@pytest.mark.agent_trace(allow=["empty"])
def test_config(agent_trace, gemini_cassette):
    assert gemini_cassette.path.name == "nowhere.yaml"


@pytest.mark.agent_trace(cassette="app.yaml")
def test_order(agent_trace):
    app.invoke({"topic": "anything"})


class TestBad:
    @pytest.fixture
    def agenttrace_config(self):
        return {"cassete": "x.yaml", "allow": ["unusd"], "match": "fuzzy"}

    def test_keys(self, agent_trace):
        pass


class TestNoMapping:
    @pytest.fixture
    def agenttrace_config(self):
        return ["unused"]

    def test_list(self, agent_trace):
        pass
""")
def test_settings(told: Told) -> None:
    assert told.outcomes == {
        "TestMarked::test_class": "passed",
        "TestMarked::test_function": "passed",
        "test_config": "passed",
        "test_order": "passed",
        "TestBad::test_keys": "setup error",
        "TestNoMapping::test_list": "setup error",
    }
    assert told.text("TestBad::test_keys").splitlines() == [
        "agenttrace_config: unknown key 'cassete'; did you mean 'cassette'? "
        "It has cassette, match, order, ignore, hosts, secrets, allow, warn, autolog, run_tracer_inline",
        f"agenttrace_config: allow: unknown kind 'unusd'; did you mean 'unused'? The kinds are {', '.join(KINDS)}",
        "agenttrace_config: match='fuzzy' is neither 'body' nor 'order'",
    ]
    assert told.text("TestNoMapping::test_list") == "agenttrace_config: a mapping of keys is wanted, not list"


# Plain asserts


@inner("""
from decimal import Decimal


@pytest.fixture
def trace(agent_trace):
    app.invoke(SAILS)
    return agent_trace


def test_tokens(trace):
    assert trace.tokens < 100


def test_reversed(trace):
    assert 100 > trace["research"].tokens


def test_chain(trace):
    assert 10 < trace.tokens < 100


def test_chain_first(trace):
    assert 10_000 < trace.tokens < 100_000


def test_and(trace):
    assert trace.tokens < 10_000 and trace.tokens < 100


def test_cost(trace):
    assert trace["write"].cost < Decimal("0.001")


def test_cost_reversed(trace):
    assert 0.001 >= trace["write"].cost


def test_cost_float(trace):
    assert trace["write"].cost == 0.0014201


def test_equal(trace):
    assert trace.tokens == 4_600


def test_not_equal(trace):
    assert trace.tokens != 4_601


def test_trajectory(trace):
    assert trace.trajectory == ["research", "review", "write"]


def test_in(trace):
    assert "reviewer" in trace


def test_no_node(trace):
    assert trace["reserch"].tokens < 100


def test_all_hold(trace, record_property):
    record_property("tokens", trace.tokens)
    record_property("cost", trace.cost)
    record_property("of one node", trace["write"].tokens)
    assert trace.tokens == 4601
    assert trace.cost == Decimal("0.0061565")
    assert trace.tokens_by_node == {"research": 3534, "write": 1067}
    assert "write" in trace
    assert [execution.node for execution in trace] == ["research", "write"]
    assert trace["research"].tool_calls == [("web_search", {"query": "solar sails"})]
""")
def test_asserts(told: Told) -> None:
    assert {name: told.errors(name) for name, outcome in told.outcomes.items() if outcome == "failed"} == {
        "test_tokens": "assert run 4,601 tokens < 100 (+4,501)",
        "test_reversed": "assert 100 > research 3,534 tokens (+3,434)",
        "test_chain": "assert run 4,601 tokens < 100 (+4,501)",
        "test_chain_first": "assert 10,000 < run 4,601 tokens (-5,399)",
        # The comparison that held has no excess.
        "test_and": "assert (run 4,601 tokens < 10,000 and run 4,601 tokens < 100 (+4,501))",
        "test_cost": "assert write $0.0014201 < $0.001 (+$0.0004201)",
        "test_cost_reversed": "assert $0.001 >= write $0.0014201 (+$0.0004201)",
        "test_cost_float": "AssertionError: assert write $0.0014201 == $0.0014201\n"
        "  a float is not an amount of money: compare with Decimal('0.0014201')",
        "test_equal": "assert run 4,601 tokens == 4,600 (+1)",
        "test_not_equal": "assert run 4,601 tokens != 4,601",
        "test_trajectory": "AssertionError: assert ['research', 'write'] == ['research', ...iew', 'write']\n"
        "\n"
        "  At index 1 diff: 'write' != 'review'\n"
        "  Right contains one more item: 'write'\n"
        "  Use -v to get more diff",
        "test_in": "AssertionError: assert 'reviewer' in <Trace: research > write>",
        "test_no_node": "pytest_agenttrace.trace.SpanNotFound: no node 'reserch' in this trace; "
        "did you mean 'research'? It has: research, write",
    }
    assert told.section("test_chain", "Captured trace") == ARTICLE
    assert told.text("test_no_node").endswith(": SpanNotFound")
    assert "trace.py" not in told.text("test_no_node")
    assert told.outcomes["test_all_hold"] == "passed"
    assert told.properties("test_all_hold") == {"tokens": 4601, "cost": "0.0061565", "of one node": 1067}


def test_junit(shared: Session) -> None:
    """The messages and properties of the shared session in its JUnit file."""
    cases = {
        f"{case.get('classname')}::{case.get('name')}": case
        for case in ElementTree.parse(shared.folder / "junit.xml").iter("testcase")  # noqa: S314 - pytest wrote it
    }
    if "test_budget_overrun::test_article" in cases:
        [failure] = cases["test_budget_overrun::test_article"].findall("failure")
        overruns = "research 3,534 tokens > 2,000 (+1,534)\nrun $0.0061565 > $0.005 (+$0.0011565)"
        assert (failure.get("message"), failure.text) == (f"Failed: {overruns}", overruns)
    if "test_asserts::test_all_hold" in cases:
        found = {p.attrib["name"]: p.attrib["value"] for p in cases["test_asserts::test_all_hold"].iter("property")}
        assert found == {
            "tokens": "4601",
            "cost": "0.0061565",
            "of one node": "1067",
            "agenttrace.tokens": "4601",
            "agenttrace.cost_usd": "0.0061565",
            "agenttrace.node.research.tokens": "3534",
            "agenttrace.node.research.cost_usd": "0.0047364",
            "agenttrace.node.write.tokens": "1067",
            "agenttrace.node.write.cost_usd": "0.0014201",
        }


# What is left behind


@inner("""
import os

import mlflow


@pytest.fixture
def broken(agent_trace):
    app.invoke(SAILS)
    raise RuntimeError("not in the mood")


@pytest.fixture
def broken_later(agent_trace):
    yield
    raise RuntimeError("not in the mood")


def test_setup(broken):
    pass


def test_teardown(broken_later):
    app.invoke(SAILS)


def test_meddling(agent_trace):
    os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///meddled.db"
    os.environ["MLFLOW_TRACE_SAMPLING_RATIO"] = "1"
    mlflow.set_experiment("meddled")
    mlflow.set_registry_uri("sqlite:///meddled.db")
    mlflow.start_run()
    mlflow.autolog(silent=True)
    app.invoke(SAILS)
    raise RuntimeError("not in the mood")


def test_exit(agent_trace):
    app.invoke(SAILS)
    raise SystemExit(3)


def test_passing(agent_trace):
    app.invoke(SAILS)
    assert "GOOGLE_API_KEY" in os.environ
""")
def test_everything_is_as_before(told: Told) -> None:
    assert told.outcomes == {
        "test_setup": "setup error",
        "test_teardown": "teardown error",
        "test_meddling": "failed",
        "test_exit": "failed",
        "test_passing": "passed",
    }
    assert told.section("test_setup", "Captured trace") == ARTICLE
    assert told.section("test_meddling", "Captured requests to MLflow") == (
        "mlflow.set_experiment('meddled'): redirected to the temporary store\n"
        "mlflow.set_registry_uri('sqlite:///meddled.db'): redirected to the temporary store\n"
        "os.environ['MLFLOW_TRACKING_URI'] = 'sqlite:///meddled.db': redirected to the temporary store"
    )
    # All tests of the shared session, but for those whose module-wide fixture sets a tracking URI of its own.
    left = {report["nodeid"]: report["left"] for report in told.session.reports if report["when"] == "protocol"}
    own = {"test_no_fixture", "test_only_one[0]"}
    assert {name: changes for name, changes in left.items() if changes and name.partition("::")[2] not in own} == {}
    assert len(left) >= 5


def test_nothing_is_written_to_the_working_directory(shared: Session) -> None:
    written = {path.name for path in shared.folder.iterdir() if path.suffix != ".py"}
    ours = {name for name in written if name.startswith("bad-")}
    # One of the tests puts cassettes of its own there.
    assert written - ours == {"app.yaml", "pytest.ini", "reports.jsonl", "junit.xml", ".pytest_cache", "cassettes"}


@inner("""
def test_fails(agent_trace, mlflow_store):
    print(mlflow_store.artifacts.parent)
    app.invoke(SAILS)
    assert agent_trace.tokens == 0


def test_passes(agent_trace, mlflow_store, record_property):
    record_property("folder", str(mlflow_store.artifacts.parent))
    app.invoke(SAILS)
""")
def test_the_store_of_a_failed_test_is_kept(told: Told) -> None:
    kept = Path(str(told.section("test_fails", "Captured stdout call")).strip()) / "mlflow.db"
    assert kept.is_relative_to(temporary(told.session.folder))
    with closing(sqlite3.connect(kept)) as database:
        [(count,)] = database.execute("select count(*) from trace_info")
    assert count == 1
    assert not (Path(str(told.properties("test_passes")["folder"])) / "mlflow.db").exists()


@inner("""
from pytest_agenttrace import StoreError


@pytest.fixture(autouse=True)
def hanging(agent_trace, mlflow_store, monkeypatch):
    def drain(timeout=30.0):
        raise StoreError("MLflow's exporter hangs")

    app.invoke(SAILS)
    monkeypatch.setattr(mlflow_store, "drain", drain)


def test_passing():
    pass


def test_failing():
    assert 1 == 2
""")
def test_a_store_that_cannot_be_read(told: Told) -> None:
    # Told, and never in the place of what the test itself says.
    assert told.outcomes == {"test_passing": "failed", "test_failing": "failed"}
    assert told.text("test_passing") == "MLflow's exporter hangs"
    assert told.section("test_passing", "Captured findings") is None
    assert told.errors("test_failing") == "assert 1 == 2"
    assert told.section("test_failing", "Captured findings") == "MLflow's exporter hangs"


# Bad cassettes


BAD = {
    "empty": b"",
    "binary": b"\x80\x00\x01",
    "truncated": b"version: 1\ninteractions:\n- request: {body: 'a",
    "list": b"- 1\n",
    "newer": b"version: 2\ninteractions: []\n",
}


@inner(f"""
from pathlib import Path

BAD = {BAD!r}


@pytest.mark.parametrize("name", [*BAD, "directory"])
def test_bad(name, request):
    path = Path(__file__).with_name(f"bad-{{name}}.yaml")
    if name == "directory":
        path.mkdir()
    else:
        path.write_bytes(BAD[name])
    request.node.add_marker(pytest.mark.agent_trace(cassette=path.name))
    request.getfixturevalue("agent_trace")
""")
def test_bad_cassettes(told: Told) -> None:
    restore = "Restore the file, or delete it and record again with --agenttrace-record."
    assert {name: told.text(name) for name in told.outcomes} == {
        "test_bad[empty]": f"bad-empty.yaml: an empty file, not a cassette. {restore}",
        "test_bad[binary]": f"bad-binary.yaml:1: not text: NUL at byte 1. {restore}",
        "test_bad[truncated]": "bad-truncated.yaml:3:21: not a YAML cassette: found unexpected end of stream. "
        + restore,
        "test_bad[list]": f"bad-list.yaml:1: a list, not a cassette. {restore}",
        "test_bad[newer]": "bad-newer.yaml:1: version 2 of the cassette format; this version reads 1. "
        "Upgrade pytest-agenttrace, or record again with --agenttrace-record into another file.",
        "test_bad[directory]": "bad-directory.yaml: a directory, not a cassette. "
        "Name a file, or move the directory away.",
    }
    for name, content in BAD.items():
        assert (told.session.folder / f"bad-{name}.yaml").read_bytes() == content
    assert (told.session.folder / "bad-directory.yaml").is_dir()
