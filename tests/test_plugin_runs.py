"""What a run knows beyond one test: threads that outlive it, teardown, the network, misses and cassettes in common."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pytest_agenttrace import GeminiServer, Reply
from tests.projects import (
    SCRIPT,
    Session,
    Told,
    bare_fixture,
    cassette_fixture,
    environment,
    inner,
    project_fixture,
    run_pytest,
    shared_fixture,
    told_fixture,
)

__all__ = ["bare_fixture", "cassette_fixture", "project_fixture", "shared_fixture", "told_fixture"]

pytestmark = pytest.mark.xdist_group("shared session")


def summary(session: Session) -> str:
    """What stands under our name at the end, without the totals."""
    line = " agenttrace ".center(80, "=")
    told = session.out.partition(f"\n{line}\n")[2].partition("\n=====")[0].rstrip("\n")
    return re.sub(r"^traced: .*\n?(  dearest: .*\n?)?", "", told, flags=re.MULTILINE).rstrip("\n")


def own(folder: Path, module: str, *names: str) -> None:
    """A cassette of its own, by name, for each of these tests."""
    target = folder / "cassettes" / module
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(folder / "app.yaml", target / f"{name}.yaml")


# Threads inside of a node


@inner("""
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

from app import graph, model, write

ALONE = {"topic": "solar sails"}


def in_pool(state):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(write, state).result()


def in_thread(state):
    thread = threading.Thread(target=write, args=(state,), name="bare")
    thread.start()
    thread.join()
    return {"article": ""}


def in_context(state):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, write, state).result()


@pytest.mark.agent_trace(allow=["orphans"])
@pytest.mark.parametrize("node", [in_pool, in_thread, in_context])
def test_counted(agent_trace, node):
    graph(node).invoke(ALONE)
    assert agent_trace["write"].tokens == 1067
    assert agent_trace.tokens == 4601
    assert agent_trace.outline == [
        {"research": ["gemini-2.5-flash", "web_search()", "gemini-2.5-flash"]},
        {"write": ["gemini-2.5-flash"]},
    ]
    assert len(agent_trace.roots) == 1


@pytest.mark.budget("write", tokens=1_000)
def test_budget(agent_trace):
    graph(in_thread).invoke(ALONE)


def test_context_handed_over(agent_trace):
    graph(in_context).invoke(ALONE)
""")
def test_bare_threads_of_a_node_count_for_it(told: Told) -> None:
    assert told.outcomes == {
        "test_counted[in_pool]": "passed",
        "test_counted[in_thread]": "passed",
        "test_counted[in_context]": "passed",
        "test_budget": "failed",
        "test_context_handed_over": "passed",
    }
    assert told.text("test_budget") == (
        "write 1,067 tokens > 1,000 (+67)\n"
        "write: a trace outside of the run (ChatGoogleGenerativeAI, started in thread bare)\n"
        "  A bare thread loses the run's context, so MLflow files what it does as a trace of its own.\n"
        "  Hand the context over: pool.submit(contextvars.copy_context().run, function) [orphans]"
    )


@inner("""
import queue
import threading

from app import graph, write

ASKED, ANSWERED = queue.Queue(), queue.Queue()


def by_queue(state):
    ASKED.put(state)
    return ANSWERED.get(timeout=20)


@pytest.mark.budget("write", tokens=1_000)
def test_queue(agent_trace):
    worker = threading.Thread(target=lambda: ANSWERED.put(write(ASKED.get(timeout=20))), name="worker")
    worker.start()
    graph(by_queue).invoke(SAILS)
    worker.join()
    assert agent_trace.tokens == 4601


def test_graphs_in_threads_of_the_test(agent_trace):
    worker = threading.Thread(target=app.invoke, args=(SAILS,))
    worker.start()
    worker.join()
    assert agent_trace["write"].tokens == 1067
""")
def test_a_model_called_for_an_unknown_node_is_a_finding(told: Told) -> None:
    assert told.outcomes == {"test_queue": "failed", "test_graphs_in_threads_of_the_test": "passed"}
    assert told.text("test_queue").startswith(
        "(no node): a trace outside of the run (ChatGoogleGenerativeAI, started in thread worker)\n"
    )


# MLflow's own client autologs


@inner("""
import asyncio

from google import genai

pytestmark = pytest.mark.agent_trace(autolog=["langchain", "gemini"])


def test_a_model_of_langchain(agent_trace):
    app.invoke({"topic": "light"})


@pytest.mark.parametrize("runs", ["sync", "async"])
def test_a_client(agent_trace, runs):
    client = genai.Client()
    asked = {"model": "gemini-2.5-flash", "contents": "x"}
    if runs == "sync":
        client.models.generate_content(**asked)
    else:
        asyncio.run(client.aio.models.generate_content(**asked))
""")
def test_mlflows_autolog_of_gemini_does_not_swallow_a_miss(told: Told) -> None:
    """It cannot record what is no Exception, takes that for a fault of its own, and gives None instead."""
    assert set(told.outcomes.values()) == {"failed"}
    assert told.text("test_a_model_of_langchain").startswith("CassetteMiss: research, call 1: no recorded reply\n")
    for runs in ("sync", "async"):
        test = f"test_a_client[{runs}]"
        assert told.text(test).startswith("CassetteMiss: (no node), call 1: no recorded reply\n")
        assert "Models.generate_content" in str(told.section(test, "Captured trace"))


# Teardown


TEARDOWN = """
import pytest
from app import SAILS, app, model


@pytest.fixture
def agenttrace_config():
    return {}


@pytest.fixture
def review(agent_trace):
    yield
    model().invoke("Review it")


def test_reviewed(review, agent_trace):
    app.invoke(SAILS)


@pytest.mark.budget(tokens=4_700)
def test_too_much(review, agent_trace):
    app.invoke(SAILS)
"""


def test_what_fixtures_ask_in_teardown_counts(project: Path) -> None:
    (project / "test_late.py").write_text(TEARDOWN)
    with GeminiServer(
        [*SCRIPT, Reply("Good.", usage={"promptTokenCount": 60, "candidatesTokenCount": 40})] * 2
    ) as server:
        env = environment(key=True) | {"GOOGLE_GEMINI_BASE_URL": server.url}
        recorded = run_pytest(project, "--agenttrace-record", "test_late.py", env=env)
    assert "1 error" in recorded.out, recorded.out
    replayed = run_pytest(project, "test_late.py", env=environment())
    assert "2 passed, 1 error" in replayed.out, replayed.out
    assert "after the test, in teardown:\nrun 4,701 tokens > 4,700 (+1)" in replayed.out.replace("E   ", "")
    left = TEARDOWN.replace('    model().invoke("Review it")\n', "")
    (project / "test_late.py").write_text(left)
    unasked = run_pytest(project, "test_late.py", "-k", "reviewed", env=environment())
    assert "1 passed, 1 deselected, 1 error" in unasked.out, unasked.out
    assert "(no node): reply 4" not in unasked.out
    assert "reply 4 was never asked for: gemini-2.5-flash:generateContent 'Review it' [unused]" in unasked.out


# Threads that outlive their test


OUTLIVED = """
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from app import SAILS, app, model

POOL = ThreadPoolExecutor(1)
go_on = threading.Event()
done = []


def late(text):
    assert go_on.wait(20)
    try:
        model().invoke(text)
    except BaseException as error:
        done.append(type(error).__name__)


def test_leaves_a_thread(agent_trace):
    threading.Thread(target=late, args=("thread",), name="left", daemon=True).start()
    POOL.submit(late, "pool")
    app.invoke(SAILS)


@pytest.mark.parametrize("traced", [WHEN])
def test_next(traced, request):
    if traced:
        request.getfixturevalue("agent_trace")
    go_on.set()
    for _ in range(200):
        if len(done) == 2:
            break
        time.sleep(0.05)
    assert len(done) == 2
    if traced:
        app.invoke(SAILS)
"""


@pytest.mark.parametrize("traced", [True, False], ids=["in the next test", "in a test without us"])
def test_threads_that_outlive_their_test_ask_for_nothing(project: Path, traced: bool) -> None:
    (project / "test_left.py").write_text(OUTLIVED.replace("WHEN", str(traced)))
    ran = run_pytest(project, "test_left.py", env=environment(key=True))
    assert "2 passed" in ran.out, ran.out
    if traced:
        asked = "POST gemini-2.5-flash:generateContent"
        assert summary(ran) == f"after its test had ended: (no node), late: {asked}"
    else:
        asked = "connection to generativelanguage.googleapis.com:443 (getaddrinfo)"
        assert summary(ran).startswith(f"after its test had ended: (no node): {asked} refused")


# The network


@inner("""
import socket
import urllib.request

from app import graph, write


def searching(state):
    try:
        urllib.request.urlopen("http://search.example.com/q", timeout=2)
    except OSError:
        pass
    return write(state)


def test_swallowed(agent_trace):
    graph(searching).invoke(SAILS)


@pytest.mark.agent_trace(allow=["network"])
def test_allowed(agent_trace):
    graph(searching).invoke(SAILS)


@pytest.mark.agent_trace(allow=["write:network"])
def test_allowed_for_the_node(agent_trace):
    graph(searching).invoke(SAILS)


def test_not_swallowed(agent_trace):
    app.invoke(SAILS)
    socket.create_connection(("192.0.2.1", 5432), timeout=2)


@pytest.mark.agent_trace(hosts=["192.0.2.1:80"])
def test_named_with_another_port(agent_trace):
    app.invoke(SAILS)
    with pytest.raises(OSError):
        socket.create_connection(("192.0.2.1", 5432), timeout=2)


def test_loopback(agent_trace):
    app.invoke(SAILS)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=2).close()
""")
def test_connections_are_refused(told: Told) -> None:
    assert told.outcomes == {
        "test_swallowed": "failed",
        "test_allowed": "passed",
        "test_allowed_for_the_node": "passed",
        "test_not_swallowed": "failed",
        "test_named_with_another_port": "failed",
        "test_loopback": "passed",
    }
    assert told.text("test_swallowed") == (
        "write: connection to search.example.com:80 (getaddrinfo) refused\n"
        "  replay speaks to loopback only. If it is meant: "
        '@pytest.mark.agent_trace(hosts=["search.example.com:80"]) [network]'
    )
    refused = (
        "(no node): connection to 192.0.2.1:5432 (connect) refused\n"
        '  replay speaks to loopback only. If it is meant: @pytest.mark.agent_trace(hosts=["192.0.2.1:5432"]) [network]'
    )
    assert told.section("test_not_swallowed", "Captured findings") == refused
    assert told.text("test_named_with_another_port") == refused


@inner("""
import urllib.request
from pathlib import Path

import pytest
from app import graph, write

HERE = Path(__file__).with_name("cassettes")
HERE.mkdir(exist_ok=True)
(HERE / "search.yaml").write_text(
    (Path(__file__).parent / "app.yaml").read_text()
    + '''
- request: {method: GET, uri: 'https://search.example.com/find?q=sails'}
  response: {status: {code: 200, message: OK}, body: {string: found}}
'''
)


def searching(state):
    with urllib.request.urlopen("https://search.example.com/find?q=sails") as reply:
        assert reply.read() == b"found"
    return write(state)


@pytest.mark.agent_trace(cassette="cassettes/search.yaml", hosts=["search.example.com"])
def test_search(agent_trace):
    graph(searching).invoke({"topic": "solar sails", "words": 300})
    assert agent_trace.tokens == 1
""")
def test_other_http_is_shown_as_such(told: Told) -> None:
    assert (
        told.section("test_search", "Captured other HTTP") == "write: GET https://search.example.com/find?q=sails 200"
    )


# Misses in common


EDITED = """
import pytest
from app import app


@pytest.mark.parametrize("number", range(COUNT))
def test_article(agent_trace, number):
    app.invoke({"topic": "solar sails", "words": 400})
"""


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n2")], ids=["alone", "xdist"])
def test_one_edit_that_breaks_many_tests_is_one_difference(project: Path, workers: tuple[str, ...]) -> None:
    (project / "test_many.py").write_text(EDITED.replace("COUNT", "12"))
    ran = run_pytest(project, "--tb=no", *workers, env=environment())
    assert "12 failed" in ran.out, ran.out
    first, *lines = summary(ran).splitlines()
    assert first == "CassetteMiss in 12 tests: write: no recorded reply"
    assert lines[:3] == [
        "  POST gemini-2.5-flash:generateContent",
        "  nearest recorded: differs at contents[0].parts[0].text:",
        "    Write [-300-]{+400+} words on solar sails",
    ]
    names, *way_out = lines[3:]
    assert names.startswith("  in test_many.py::test_article[")
    assert names.endswith("] and 7 more")
    assert names.count("test_article[") == 5
    assert way_out == ["  If the prompt changed on purpose, record again:", "    pytest --lf --agenttrace-record"]


TEMPLATES = """
from typing import Annotated, TypedDict
import operator

import pytest
from app import model
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from prompts import TEMPLATE


class State(TypedDict):
    topics: list[str]
    facts: Annotated[list[str], operator.add]


async def look_up(state):
    return {"facts": [str((await model().ainvoke(TEMPLATE.format(**state))).content)]}


graph = StateGraph(State)
graph.add_node("look_up", look_up)
graph.add_conditional_edges(START, lambda state: [Send("look_up", {"topic": topic}) for topic in state["topics"]])
graph.add_edge("look_up", END)
app = graph.compile()


@pytest.mark.parametrize("pair", [("solar sails", "red kites"), ("old looms", "ion drives")], ids=["a", "b"])
def test_facts(agent_trace, pair):
    import asyncio

    asyncio.run(app.ainvoke({"topics": [*pair]}))
"""


def test_an_edit_of_a_template_is_one_difference_whatever_its_other_words(project: Path) -> None:
    (project / "prompts.py").write_text('TEMPLATE = "List 3 facts on {topic}, in short sentences"')
    (project / "test_fan_out.py").write_text(TEMPLATES)
    with GeminiServer({"facts": Reply("Some.")}) as server:
        env = environment(key=True) | {"GOOGLE_GEMINI_BASE_URL": server.url}
        recorded = run_pytest(project, "--agenttrace-record", env=env)
    assert recorded.code == 0, recorded.out
    (project / "prompts.py").write_text('TEMPLATE = "List 4 facts on {topic}, in short sentences"')
    ran = run_pytest(project, env=environment())
    assert ran.out.count("[-3-]{+4+}") == 3, ran.out
    assert "look_up, call 1: no recorded reply\n  the same for call 2\n" in ran.out
    assert summary(ran).startswith("CassetteMiss in 2 tests: look_up: no recorded reply\n")


def test_few_tests_with_one_miss_are_named_in_the_command(project: Path) -> None:
    (project / "test_many.py").write_text(EDITED.replace("COUNT", "2"))
    ran = run_pytest(project, "--tb=no", env=environment())
    names = "'test_many.py::test_article[0]' 'test_many.py::test_article[1]'"
    assert summary(ran).endswith(f"\n    pytest {names} --agenttrace-record")
    assert " agenttrace " not in run_pytest(project, "--tb=no", "-q", env=environment()).out
    one = run_pytest(project, "--tb=no", "-k", "0", env=environment())
    assert summary(one) == ""
    source = EDITED.replace("COUNT", "2").replace(
        "    app.invoke", "    with pytest.raises(BaseException):\n        app.invoke"
    )
    marked = source.replace("def test", '@pytest.mark.agent_trace(allow=["missing"])\ndef test')
    (project / "test_many.py").write_text(marked)
    allowed = run_pytest(project, env=environment())
    assert (allowed.code, summary(allowed)) == (0, "findings forgiven: missing 2")


@inner("""
import asyncio

from app import model


async def ask():
    return await asyncio.gather(*(model().ainvoke("Another question") for _ in range(3)), return_exceptions=True)


def test_thrice(gemini_cassette):
    asyncio.run(ask())
""")
def test_equal_misses_of_one_test_are_told_once(told: Told) -> None:
    text = told.text("test_thrice")
    assert text.startswith(
        "CassetteMiss: (no node), call 1: no recorded reply\n"
        "  the same for calls 2, 3\n"
        "  POST gemini-2.5-flash:generateContent\n"
    )
    assert text.count("CassetteMiss") == 1


# Cassettes that tests share


SHARING = """
import pytest
from app import SAILS, app, research, write


def test_research(agent_trace):
    research(SAILS)


def test_other(agent_trace):
    OTHER
"""


def sharing(project: Path, other: str = "write(SAILS)") -> None:
    (project / "test_shared.py").write_text(SHARING.replace("OTHER", other))


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n2")], ids=["alone", "xdist"])
def test_a_shared_cassette_is_judged_over_all_its_tests(project: Path, workers: tuple[str, ...]) -> None:
    sharing(project)
    ran = run_pytest(project, *workers, env=environment())
    assert (ran.code, summary(ran)) == (0, ""), ran.out
    sharing(project, "research(SAILS)")
    ran = run_pytest(project, *workers, env=environment())
    assert ran.code == 1
    assert "2 passed" in ran.out
    quiet = run_pytest(project, "-q", *workers, env=environment())
    assert summary(quiet).startswith(summary(ran))
    assert summary(ran).splitlines() == [
        "app.yaml: 1 recorded reply was never asked for by its 2 tests [unused]",
        "  write: reply 3 was never asked for: gemini-2.5-flash:generateContent 'Write 300 words on solar sails'",
        "  Where nothing asks for that any more, delete the file and record it again:",
        "    pytest test_shared.py --agenttrace-record",
    ]


@pytest.mark.parametrize(
    ("args", "marked"),
    [
        (("-k", "other"), True),
        (("test_shared.py::test_other",), True),
        (("test_shared.py",), True),
        (("--ignore=inner",), True),
        (("inner",), True),
        (("inner",), False),
    ],
    ids=["-k", "by name", "one file", "--ignore", "another folder", "another folder, by the fixture"],
)
def test_a_part_of_the_suite_judges_no_shared_cassette(project: Path, args: tuple[str, ...], marked: bool) -> None:
    sharing(project, "research(SAILS)")
    source = (project / "test_shared.py").read_text()
    if marked:
        source = source.replace("def test_", '@pytest.mark.agent_trace(cassette="app.yaml")\ndef test_')
        (project / "test_shared.py").write_text(source)
    (project / "inner").mkdir()
    shutil.copy(project / "conftest.py", project / "inner")
    conftest = (project / "inner" / "conftest.py").read_text()
    (project / "inner" / "conftest.py").write_text(conftest.replace('"app.yaml"', '"../app.yaml"'))
    (project / "inner" / "test_inner.py").write_text(source.replace('"app.yaml"', '"../app.yaml"'))
    ran = run_pytest(project, *args, env=environment())
    assert (ran.code, summary(ran)) == (0, ""), ran.out


def test_equal_requests_of_several_tests_are_recorded_and_replayed(project: Path) -> None:
    sharing(project, "model().invoke('Same')")
    source = (project / "test_shared.py").read_text().replace("research(SAILS)", "model().invoke('Same')")
    (project / "test_shared.py").write_text(source.replace("research, write", "model"))
    (project / "app.yaml").unlink()
    reply = Reply("It is.", usage={"promptTokenCount": 6, "candidatesTokenCount": 4})
    with GeminiServer([reply, reply]) as server:
        env = environment(key=True) | {"GOOGLE_GEMINI_BASE_URL": server.url}
        assert run_pytest(project, "--agenttrace-record", env=env).code == 0
    assert (project / "app.yaml").read_text().count("It is.") == 2
    replayed = run_pytest(project, env=environment())
    assert (replayed.code, summary(replayed)) == (0, ""), replayed.out
    (project / "test_shared.py").write_text(source.partition("def test_other")[0].replace("research, write", "model"))
    one_left = run_pytest(project, env=environment())
    assert one_left.code == 1
    said = "app.yaml: 1 recorded reply was never asked for by test_shared.py::test_research [unused]\n"
    assert summary(one_left).startswith(said)


def test_recording_a_part_of_a_shared_cassette_keeps_the_rest(project: Path) -> None:
    sharing(project)
    with GeminiServer([Reply("Anew.", usage={"promptTokenCount": 6, "candidatesTokenCount": 4})]) as server:
        env = environment(key=True) | {"GOOGLE_GEMINI_BASE_URL": server.url}
        ran = run_pytest(project, "--agenttrace-record", "test_shared.py::test_other", env=env)
    assert ran.code == 0, ran.out
    text = (project / "app.yaml").read_text()
    assert (text.count("Notes."), text.count("An article."), text.count("Anew.")) == (1, 0, 1)
    replayed = run_pytest(project, env=environment())
    assert (replayed.code, summary(replayed)) == (0, ""), replayed.out


@pytest.mark.parametrize(
    ("other", "code"),
    [("assert not research(SAILS)", 1), ("write({'topic': 'sails', 'words': 5})", 1), ("pytest.skip()", 0)],
    ids=["a failure", "a miss", "a skip"],
)
def test_a_shared_cassette_is_not_judged_beside_failures(project: Path, other: str, code: int) -> None:
    sharing(project, other)
    ran = run_pytest(project, "--tb=no", env=environment())
    assert (ran.code, summary(ran)) == (code, "")


def test_unused_replies_of_a_shared_cassette_can_be_allowed(project: Path) -> None:
    for word, said in (("allow", ""), ("warn", "findings warned of: unused 1")):
        sharing(project, "research(SAILS)")
        source = (project / "test_shared.py").read_text()
        (project / "test_shared.py").write_text(
            source.replace("def test_other", f'@pytest.mark.agent_trace({word}=["unused"])\ndef test_other')
        )
        ran = run_pytest(project, env=environment())
        assert (ran.code, summary(ran)) == (0, said), ran.out


def test_a_cassette_that_one_marker_names_is_judged_with_its_test(project: Path) -> None:
    (project / "test_named.py").write_text(
        "import pytest\nfrom app import SAILS, research\n\n\n"
        '@pytest.mark.agent_trace(cassette="app.yaml")\ndef test_named(agent_trace):\n    research(SAILS)\n'
    )
    ran = run_pytest(project, env=environment())
    assert "1 failed" in ran.out
    assert "write: reply 3 was never asked for" in ran.out
    assert summary(ran) == ""


# Cassettes no test used


def test_cassettes_no_test_used_are_listed(project: Path) -> None:
    own(project, "test_kept", "test_one", "test_gone")
    own(project, "test_renamed", "test_old")
    (project / "test_kept.py").write_text(
        "import pytest\nfrom app import SAILS, app\n\n\n@pytest.fixture\ndef agenttrace_config():\n    return {}\n\n\n"
        "def test_one(agent_trace):\n    app.invoke(SAILS)\n\n\ndef test_two():\n    pass\n"
    )
    before = sorted(project.rglob("*.yaml"))
    for workers in ((), ("-p", "xdist", "-n2")):
        ran = run_pytest(project, "--agenttrace-unused", *workers, env=environment())
        assert (ran.code, summary(ran).splitlines()) == (
            0,
            [
                "cassettes no test used: 2",
                "  cassettes/test_kept/test_gone.yaml",
                "  cassettes/test_renamed/test_old.yaml",
            ],
        )
    (project / "other").mkdir()
    (project / "other" / "test_other.py").write_text("def test_other():\n    pass\n")
    for args, why in (
        (("-k", "two"), "tests were deselected"),
        (("test_kept.py",), "only test_kept.py was run"),
        (("other",), "only other was run"),
    ):
        ran = run_pytest(project, "--agenttrace-unused", *args, env=environment())
        assert summary(ran) == f"cassettes no test used: not known, {why}"
    assert sorted(project.rglob("*.yaml")) == before
