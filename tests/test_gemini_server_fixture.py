"""The fixture `gemini_server`: cassettes recorded from a script, without a key, and replayed without the script.

One session records, without a key and with every name but loopback's refused; a second one replays what it wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.projects import CONFTEST, Session, Told, environment, run_pytest
from tests.test_readme import blocks

APP = '''
"""Graphs on models that were built at import, for a host that does not exist."""
import operator
from typing import Annotated, TypedDict

import httpx
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Send


def llm(**options):
    nowhere = {"base_url": "https://nowhere.invalid/proxy"}
    return ChatGoogleGenerativeAI(**({"model": "gemini-2.5-flash"} | nowhere | options))


MODEL = llm()


class State(TypedDict, total=False):
    topic: str
    facts: str
    text: str
    drafts: Annotated[list[str], operator.add]


def lined(research, write):
    graph = StateGraph(State)
    graph.add_node("research", research)
    graph.add_node("write", write)
    graph.add_edge(START, "research")
    graph.add_edge("research", "write")
    graph.add_edge("write", END)
    return graph.compile(name="article_writer")


def sync_graph():
    return lined(
        lambda state: {"facts": MODEL.invoke(f"Facts about {state['topic']}").text},
        lambda state: {"text": MODEL.invoke(f"Write about {state['facts']}").text},
    )


def streaming_graph():
    return lined(
        lambda state: {"facts": "".join(chunk.text for chunk in MODEL.stream(f"Facts about {state['topic']}"))},
        lambda state: {"text": "".join(chunk.text for chunk in MODEL.stream(f"Write about {state['facts']}"))},
    )


def async_graph(model, streaming=False):
    async def ask(prompt):
        if streaming:
            return "".join([chunk.text async for chunk in model.astream(prompt)])
        return (await model.ainvoke(prompt)).text

    async def research(state):
        return {"facts": await ask(f"Facts about {state['topic']}")}

    async def write(state):
        return {"text": await ask(f"Write about {state['facts']}")}

    return lined(research, write)


def by_httpx():
    return llm(client_args={"transport": httpx.AsyncHTTPTransport()})


@tool
def web_search(query: str) -> str:
    """Search the web."""
    return f"facts on {query}"


def agent():
    graph = StateGraph(MessagesState)
    bound = MODEL.bind_tools([web_search])
    graph.add_node("agent", lambda state: {"messages": [bound.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([web_search]))
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile(name="agent_graph")


def fan_out():
    graph = StateGraph(State)
    graph.add_node("plan", lambda state: {"text": MODEL.invoke("Plan").text})
    graph.add_node("draft", lambda state: {"drafts": [MODEL.invoke(f"Draft {state['topic']}").text]})
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda state: [Send("draft", {"topic": t}) for t in state["text"].split()])
    graph.add_edge("draft", END)
    return graph.compile(name="fan")


def nested():
    graph = StateGraph(State)
    graph.add_node("inside", sync_graph())
    graph.add_node("check", lambda state: {"text": MODEL.invoke(f"Check: {state['text']}").text})
    graph.add_edge(START, "inside")
    graph.add_edge("inside", "check")
    graph.add_edge("check", END)
    return graph.compile(name="nested")
'''

PASSING = """
import json
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest
from app import (
    MODEL, agent, async_graph, by_httpx, fan_out, lined, llm, nested, streaming_graph, sync_graph, web_search,
)

from pytest_agenttrace import ErrorReply, Fault, Reply

SAILS = {"topic": "sails"}


@pytest.fixture(autouse=True)
def seen(request):
    if "agent_trace" not in request.fixturenames:
        yield
        return
    trace, cassette = request.getfixturevalue("agent_trace"), request.getfixturevalue("gemini_cassette")
    yield
    facts = {
        "trajectory": trace.trajectory, "tokens": trace.tokens, "cost": str(trace.cost),
        "usage": trace.usage.as_dict(), "by_node": {n: [t, str(trace.cost_by_node[n])] for n, t in
        trace.tokens_by_node.items()}, "tool_calls": trace.tool_calls, "outline": trace.outline,
        "calls": [[call.node, str(call.endpoint), call.status] for call in trace.calls],
    }
    phase = "recorded" if cassette.recording else "replayed"
    with Path(__file__).with_name(f"{phase}.jsonl").open("a") as file:
        file.write(json.dumps([request.node.name, facts]) + "\\n")


def script(server):
    usage = {"promptTokenCount": 20, "candidatesTokenCount": 300, "thoughtsTokenCount": 40}
    server.reply(Reply("Light has momentum.", usage=usage, chunks=["Light ", "has momentum."]), node="research")
    server.reply(Reply("A sail needs no fuel."), node="write", prompt="momentum")


def check(state, trace):
    assert state["text"] == "A sail needs no fuel."
    assert trace.trajectory == ["research", "write"]
    assert trace["research"].tokens == 360
    assert trace["write"].tokens == 5 + 5
    assert trace.cost == Decimal("0.000006") + Decimal("0.00085") + Decimal("0.0000015") + Decimal("0.0000125")


def test_linear(agent_trace, gemini_server):
    script(gemini_server)
    check(sync_graph().invoke(SAILS), agent_trace)


def test_streaming(agent_trace, gemini_server):
    script(gemini_server)
    check(streaming_graph().invoke(SAILS), agent_trace)


def test_streamed_messages(agent_trace, gemini_server):
    script(gemini_server)
    pieces = [message.text for message, _ in sync_graph().stream(SAILS, stream_mode="messages") if message.text]
    assert pieces == ["Light ", "has momentum.", "A sail needs no fuel."]


@pytest.mark.asyncio
@pytest.mark.parametrize("client", [llm, by_httpx], ids=["aiohttp", "httpx"])
@pytest.mark.parametrize("streaming", [False, True])
async def test_async(agent_trace, gemini_server, client, streaming):
    script(gemini_server)
    check(await async_graph(client(), streaming).ainvoke(SAILS), agent_trace)


def test_tool_loop(agent_trace, gemini_server):
    calls = [("web_search", {"query": "sails"}), ("web_search", {"query": "moons"}, "my-id")]
    gemini_server.reply(
        Reply(tool_calls=calls, thoughts="Two questions.", usage={"promptTokenCount": 64}),
        Reply("They sail.", thoughts="Enough."),
        node="agent",
    )
    messages = agent().invoke({"messages": [("human", "Find it")]})["messages"]
    assert messages[-1].text == "They sail."
    assert [message.tool_call_id for message in messages if message.type == "tool"][1] == "my-id"
    assert agent_trace.trajectory == ["agent", "tools", "agent"]
    assert agent_trace.tool_calls == [("web_search", {"query": "sails"}), ("web_search", {"query": "moons"})]
    assert agent_trace.usage.thoughts_tokens == 3


def test_fan_out(agent_trace, gemini_server):
    gemini_server.reply(Reply("history physics"), node="plan")
    gemini_server.reply(Reply("It pushes."), prompt="physics")
    gemini_server.reply(Reply("Kepler saw it."), node="draft")
    assert fan_out().invoke({})["drafts"] == ["Kepler saw it.", "It pushes."]
    assert agent_trace.trajectory == ["plan", "draft", "draft"]


def test_subgraph(agent_trace, gemini_server):
    script(gemini_server)
    gemini_server.reply(Reply("Good."), node="check")
    assert nested().invoke(SAILS)["text"] == "Good."
    assert agent_trace.trajectory == ["inside", "check"]
    assert agent_trace["inside"].trajectory == ["research", "write"]


def test_errors_are_tried_again_without_a_wait(agent_trace, gemini_server):
    busy = ErrorReply(503, "busy")
    gemini_server.reply(busy, busy, busy, Reply("Light has momentum."), node="research")
    gemini_server.reply(Reply("Done."))
    began = time.monotonic()
    assert sync_graph().invoke(SAILS)["text"] == "Done."
    assert time.monotonic() - began < 1.5
    assert [call.status for call in agent_trace.calls] == [503, 503, 503, 200, 200]


def test_each_model_says_its_own(agent_trace, gemini_server):
    gemini_server.reply(Reply("Light has momentum."), model="gemini-2.5-pro")
    gemini_server.reply(Reply("Done."), model="gemini-2.5-flash")
    graph = lined(
        lambda state: {"facts": llm(model="gemini-2.5-pro").invoke("Facts").text},
        lambda state: {"text": MODEL.invoke(f"Write about {state['facts']}").text},
    )
    assert graph.invoke(SAILS)["text"] == "Done."
    assert [call.model for call in agent_trace.calls] == ["gemini-2.5-pro", "gemini-2.5-flash"]


def test_a_fault_in_front_of_the_script(agent_trace, gemini_server, gemini_cassette):
    script(gemini_server)
    gemini_cassette.fault(Fault.status(503), node="research", times=2)
    check(sync_graph().invoke(SAILS), agent_trace)
    assert [call.status for call in agent_trace.calls] == [503, 503, 200, 200]
    assert [call.injected is not None for call in agent_trace.calls] == [True, True, False, False]


def test_alone_and_with_a_key(gemini_server, gemini_cassette, monkeypatch):
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.setenv("GEMINI_API_KEY", "a-key-of-somebody-0123456789")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:1")
    gemini_server.reply(Reply(json={"name": "Paris"}))
    assert llm(base_url=None).invoke("Capital of France?").text == '{"name": "Paris"}'
    assert [call.status for call in gemini_cassette.calls] == [200]
    # Replay starts nothing.
    assert any(thread.name == "gemini-server" for thread in threading.enumerate()) is gemini_cassette.recording
    if not gemini_cassette.recording:
        with pytest.raises(RuntimeError, match="The fixture gemini_server runs only while recording"):
            _ = gemini_server.url


def test_vertex_without_a_login(gemini_server, gemini_cassette):
    from google.genai import Client

    gemini_server.reply(Reply("Paris."))
    client = Client(vertexai=True, project="some-project", location="europe-west4")
    assert client.models.generate_content(model="gemini-2.5-flash", contents="Capital?").text == "Paris."


def test_bookkeeping_needs_no_script(gemini_server, gemini_cassette):
    from google.genai import Client, types

    client = Client()
    assert client.models.count_tokens(model="gemini-2.5-flash", contents="one two").total_tokens == 2
    config = types.CreateCachedContentConfig(contents="a long book", ttl="60s")
    name = client.caches.create(model="gemini-2.5-flash", config=config).name
    assert client.caches.get(name=name).usage_metadata.total_token_count == 3
    client.caches.delete(name=name)
"""

FAILING = """
import socket

import pytest
from app import MODEL, llm, sync_graph

from pytest_agenttrace import ErrorReply, Reply

SAILS = {"topic": "sails"}


@pytest.mark.agent_trace(cassette="kept.yaml")
def test_nothing_fits(agent_trace, gemini_server):
    gemini_server.reply(Reply("Light has momentum."), node="research", prompt="Facts")
    gemini_server.reply(Reply("a"), Reply("b"), prompt='say "hi"')
    sync_graph().invoke(SAILS)


def test_used_up_and_swallowed(agent_trace, gemini_server):
    gemini_server.reply(Reply("Light has momentum."), ErrorReply(404, "gone"), prompt="Facts")
    for _ in range(4):
        try:
            MODEL.invoke("Facts about " + "sails and masts and " * 6)
        except BaseException:
            pass


def test_no_script(gemini_server):
    MODEL.invoke("Say hi")


def test_nothing_of_this_kind(gemini_server):
    from google.genai import Client

    client = Client(http_options={"api_version": "v1beta"})
    list(client.files.list())


def test_unused(agent_trace, gemini_server):
    gemini_server.reply(Reply("Light has momentum."))
    gemini_server.reply(Reply("Never."), node="write", prompt="about")
    MODEL.invoke("Say hi")


def test_partly_unused(agent_trace, gemini_server):
    gemini_server.reply(Reply("1"), Reply("2"), Reply("3"))
    MODEL.invoke("Say hi")


@pytest.mark.agent_trace(allow=["write:unused"])
def test_unused_is_allowed(agent_trace, gemini_server):
    gemini_server.reply(Reply("Light has momentum."))
    gemini_server.reply(Reply("Never."), node="write")
    MODEL.invoke("Say hi")


@pytest.mark.agent_trace(cassette="google.yaml")
def test_paid_for(agent_trace, gemini_server):
    gemini_server.reply(Reply("Mine."))
    MODEL.invoke("Say hi")


@pytest.mark.agent_trace(cassette="foreign.yaml")
def test_from_nobody_knows_where(agent_trace, gemini_server):
    pass


def test_recording_from_google_without_a_key(agent_trace):
    MODEL.invoke("Say hi")


def test_nothing_else_is_dialled(agent_trace, gemini_server):
    gemini_server.reply(Reply("Hi."))
    MODEL.invoke("Say hi")
    with pytest.raises(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=1)


def test_no_reply_given(gemini_server):
    for given, conditions in [((), {}), (("Hi.",), {}), ((Reply("Hi."),), {"node": 3})]:
        with pytest.raises((TypeError, ValueError)) as caught:
            gemini_server.reply(*given, **conditions)
        print(caught.value)
    pytest.fail("shown")
"""

INI = """
[pytest]
agenttrace_dummy_key = true
asyncio_default_fixture_loop_scope = function
filterwarnings =
  error
  ignore:Inheritance class AiohttpClientSession:DeprecationWarning
"""

CASSETTE = """\
version: 1
{about}interactions:
- request:
    method: POST
    uri: https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent
    body: '{{}}'
  response: {{status: {{code: 200, message: OK}}, body: {{string: '{{}}'}}}}
"""


class Sessions(NamedTuple):
    """Both sessions of the one project: what was recorded, then what was replayed of it."""

    recorded: Session
    reports: list[dict[str, Any]]
    replayed: Session
    folder: Path


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    folder = tmp_path_factory.mktemp("scripted")
    (folder / "app.py").write_text(APP)
    (folder / "test_passing.py").write_text(PASSING)
    (folder / "test_failing.py").write_text(FAILING)
    shown = next(block for block in blocks("python") if "gemini_server.reply(" in block)
    (folder / "test_shown.py").write_text(f"from app import sync_graph\napp = sync_graph()\n{shown}")
    (folder / "conftest.py").write_text(CONFTEST.replace('{"cassette": "app.yaml"}', "{}"))
    (folder / "pytest.ini").write_text(INI)
    scripted = "agenttrace: {format: 1, origin: scripted server on loopback}\n"
    (folder / "kept.yaml").write_text(CASSETTE.format(about=scripted))
    (folder / "google.yaml").write_text(CASSETTE.format(about="agenttrace: {format: 1, origin: Google}\n"))
    (folder / "foreign.yaml").write_text(CASSETTE.format(about=""))
    recorded = run_pytest(folder, "-p", "asyncio", "--agenttrace-record", env=environment())
    reports = recorded.reports
    (folder / "reports.jsonl").unlink()
    replayed = run_pytest(folder, "-p", "asyncio", "test_passing.py", "test_shown.py", env=environment())
    return Sessions(recorded, reports, replayed, folder)


@pytest.fixture
def failed(sessions: Sessions) -> Told:
    told = Told(sessions.replayed, "test_failing")
    told._reports = [r for r in sessions.reports if "test_failing" in r["nodeid"] and r["when"] != "protocol"]
    return told


def outcomes(reports: list[dict[str, Any]], module: str) -> dict[str, str]:
    return {
        r["nodeid"].partition("::")[2]: r["outcome"] for r in reports if r["when"] == "call" and module in r["nodeid"]
    }


def facts(folder: Path, phase: str) -> dict[str, Any]:
    return dict(json.loads(line) for line in (folder / f"{phase}.jsonl").read_text().splitlines())


def text_of(sessions: Sessions, name: str) -> str:
    return (sessions.folder / "cassettes" / "test_passing" / f"{name}.yaml").read_text()


def test_every_graph_is_recorded_and_replayed(sessions: Sessions) -> None:
    recorded, replayed = (outcomes(found, "test_passing") for found in (sessions.reports, sessions.replayed.reports))
    assert set(recorded.values()) == {"passed"}, sessions.recorded.out
    assert recorded == replayed, sessions.replayed.out
    assert len(recorded) == 16
    assert sessions.replayed.code == 0


def test_the_replayed_trace_is_the_recorded_one(sessions: Sessions) -> None:
    recorded, replayed = facts(sessions.folder, "recorded"), facts(sessions.folder, "replayed")
    assert len(recorded) == 13
    assert recorded == replayed
    assert recorded["test_linear"]["calls"] == [
        ["research", "gemini-2.5-flash:generateContent", 200],
        ["write", "gemini-2.5-flash:generateContent", 200],
    ]
    assert recorded["test_streaming"]["calls"][0][1] == "gemini-2.5-flash:streamGenerateContent?alt=sse"


def test_what_the_readme_shows(sessions: Sessions) -> None:
    found = [outcomes(reports, "test_shown") for reports in (sessions.reports, sessions.replayed.reports)]
    assert found == [{"test_article": "passed"}] * 2


def test_nothing_is_left_in_the_environment(sessions: Sessions) -> None:
    reports = [r for r in [*sessions.reports, *sessions.replayed.reports] if r["when"] == "protocol"]
    assert len(reports) > 30
    assert {r["nodeid"]: r["left"] for r in reports if r["left"]} == {}


def test_the_cassette_says_where_it_came_from(sessions: Sessions) -> None:
    text = text_of(sessions, "test_linear")
    cassette = yaml.safe_load(text)
    assert cassette["agenttrace"]["origin"] == "scripted server on loopback"
    assert cassette["agenttrace"]["models"] == ["gemini-2.5-flash"]
    assert [found["agenttrace"]["node"] for found in cassette["interactions"]] == ["research", "write"]
    assert [list(found["response"]["headers"]) for found in cassette["interactions"]] == [["content-type"]] * 2
    assert [list(found["request"]["headers"]) for found in cassette["interactions"]] == [["content-type"]] * 2
    assert "agenttrace-node" not in text.lower()
    assert "127.0.0.1" not in text
    assert "a-key-of-somebody" not in text_of(sessions, "test_alone_and_with_a_key")


NOTHING_FITS = """\
CassetteMiss: write, call 2: the script of gemini_server has no reply
  POST gemini-2.5-flash:generateContent
  prompt: Write about Light has momentum.
  rules:
    node="research", prompt="Facts": 1 reply
    prompt="say \\"hi\\"": 2 replies
  Say what it answers:
    gemini_server.reply(Reply("..."), node="write")"""

USED_UP = """\
CassetteMiss: (no node), call 3: the script of gemini_server has no reply
  the same for call 4
  POST gemini-2.5-flash:generateContent
  prompt: Facts about sails and masts and sails and masts and sails and masts and sails...
  rules:
    prompt="Facts": 2 replies, all used
  Say what it answers:
    gemini_server.reply(Reply("..."), prompt="Facts about sails an")"""

NO_SCRIPT = """\
CassetteMiss: (no node), call 1: the script of gemini_server has no reply
  POST gemini-2.5-flash:generateContent
  prompt: Say hi
  rules: none
  Say what it answers:
    gemini_server.reply(Reply("..."), prompt="Say hi")"""

OTHER_KIND = """\
CassetteMiss: (no node), call 1: the script of gemini_server has no reply
  GET files
  nothing is scripted at /v1beta/files"""

NO_KEY = """\
CassetteMiss: (no node), call 1: no key to record with
  POST gemini-2.5-flash:generateContent
  Set GOOGLE_API_KEY, or say what is answered with the fixture gemini_server."""

PAID_FOR = (
    "google.yaml: its replies came from Google; recording with gemini_server would replace them. "
    'Delete it, or name another file: @pytest.mark.agent_trace(cassette="...").'
)


@pytest.mark.parametrize(
    ("test", "text"),
    [
        ("test_nothing_fits", NOTHING_FITS),
        ("test_used_up_and_swallowed", USED_UP),
        ("test_no_script", NO_SCRIPT),
        ("test_nothing_of_this_kind", OTHER_KIND),
        ("test_recording_from_google_without_a_key", NO_KEY),
        (
            "test_unused",
            "write: a reply of the script was never asked for: "
            'gemini_server.reply(..., node="write", prompt="about") [unused]',
        ),
        ("test_partly_unused", "2 of 3 replies of the script were never asked for: gemini_server.reply(...) [unused]"),
        ("test_paid_for", PAID_FOR),
        (
            "test_from_nobody_knows_where",
            PAID_FOR.replace("google", "foreign").replace("came from Google", "did not come from a script"),
        ),
        (
            "test_nothing_else_is_dialled",
            "(no node): connection to 192.0.2.1:80 (connect) refused\n  only loopback is spoken to. "
            'If it is meant: @pytest.mark.agent_trace(hosts=["192.0.2.1:80"]) [network]',
        ),
    ],
)
def test_messages(failed: Told, test: str, text: str) -> None:
    assert failed.text(test) == text


def test_what_is_no_rule(failed: Told) -> None:
    assert failed.section("test_no_reply_given", "Captured stdout call") == (
        "gemini_server.reply: no reply was given\n"
        "gemini_server.reply: 'Hi.' is no Reply and no ErrorReply\n"
        "gemini_server.reply: node is 3, not text\n"
    )


def test_what_was_there_stays(sessions: Sessions, failed: Told) -> None:
    folder = sessions.folder
    scripted = "agenttrace: {format: 1, origin: scripted server on loopback}\n"
    assert (folder / "kept.yaml").read_text() == CASSETTE.format(about=scripted)
    assert failed.section("test_nothing_fits", "Captured findings") == (
        "the recording is incomplete: kept.yaml is left as it was\n"
        "  its reply lies in kept.partial.yaml: --agenttrace-record-missing goes on from there"
    )
    assert (folder / "google.yaml").read_text() == CASSETTE.format(about="agenttrace: {format: 1, origin: Google}\n")
    assert (folder / "foreign.yaml").read_text() == CASSETTE.format(about="")
    written = sorted(path.name for path in (folder / "cassettes" / "test_failing").iterdir())
    # A complete recording is kept where a reply of the script was too many, or something else was refused.
    assert written == [
        "test_nothing_else_is_dialled.yaml",
        "test_partly_unused.yaml",
        "test_unused.yaml",
        "test_unused_is_allowed.yaml",
        # No request but one got its reply.
        "test_used_up_and_swallowed.partial.yaml",
    ]
    assert failed.outcomes["test_unused_is_allowed"] == "passed"


IN_TURN = """
import os
from langchain_google_genai import ChatGoogleGenerativeAI
from pytest_agenttrace import Reply

def test_in_turn(gemini_server, gemini_cassette):
    gemini_server.reply(Reply("FIRST"), Reply("SECOND"))
    model = ChatGoogleGenerativeAI(model="gemini-2.5-flash")
    assert model.invoke("one").text == "FIRST"
    assert model.invoke(os.environ.get("PROMPT", "two")).text == "SECOND"
"""


def test_what_is_missing_is_asked_with_the_rest_of_its_script(tmp_path: Path) -> None:
    """A script goes on only where it is asked, and costs nothing."""
    (tmp_path / "test_turns.py").write_text(IN_TURN)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    anew = environment() | {"PROMPT": "changed"}
    for option, given in (("record", environment()), ("record-missing", environment()), ("record-missing", anew)):
        ran = run_pytest(tmp_path, f"--agenttrace-{option}", env=given)
        assert ran.code == 0, ran.out
    assert run_pytest(tmp_path, env=anew).code == 0
    assert "text: changed" in (tmp_path / "cassettes" / "test_turns" / "test_in_turn.yaml").read_text()
