"""Records the examples' cassettes anew, without a key (`make cassettes`), as a plugin of pytest's:

    pytest -p examples.author_cassettes --agenttrace-record examples

The replies below are scripted, never Google's; they reach the cassettes through the plugin's own record path, by the
fixture `gemini_server`, and the cassettes say so. The examples' tests know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pytest_agenttrace import AgentRun, AgentTrace, GeminiServer, Reply


def tokens(prompt: int, candidates: int, thoughts: int = 0) -> dict[str, int]:
    return {"promptTokenCount": prompt, "candidatesTokenCount": candidates, "thoughtsTokenCount": thoughts}


FACTS = "Light has momentum.\nIKAROS flew by it in 2010.\nA sail needs no fuel."
ARTICLE = "A solar sail needs no fuel. Light has momentum, and a mirror thin as a film turns it into thrust."


def two_nodes(server: GeminiServer) -> None:
    server.reply(Reply(FACTS, usage=tokens(14, 227, 680)), node="research")
    server.reply(Reply(ARTICLE, usage=tokens(241, 414, 412)), node="write")


def tool_loop(server: GeminiServer) -> None:
    server.reply(
        Reply(tool_calls=[("web_search", {"query": "solar sails"})], usage=tokens(64, 18, 49)),
        Reply(tool_calls=[("web_search", {"query": "IKAROS sail area"})], usage=tokens(131, 16, 35)),
        Reply("The sail of IKAROS measured 14 m by 14 m, 196 square metres.", usage=tokens(203, 24)),
    )


def parallel_branches(server: GeminiServer) -> None:
    sections = {"sections": ["History", "Physics", "Missions"]}
    server.reply(Reply(json=sections, usage=tokens(16, 14, 70)), node="plan")
    # By prompt, not in order: branches ask in any order.
    kepler, light, flown = (
        "Kepler saw that comets' tails point away from the Sun.",
        "At the Earth's distance light pushes with 9 micropascals.",
        "IKAROS, NanoSail-D2 and LightSail 2 have flown.",
    )
    server.reply(Reply(kepler, usage=tokens(12, 178)), node="section", prompt="'History'")
    server.reply(Reply(light, usage=tokens(12, 256)), node="section", prompt="'Physics'")
    server.reply(Reply(flown, usage=tokens(12, 219)), node="section", prompt="'Missions'")
    joined = "From Kepler's comets to LightSail 2: how light pushes."
    server.reply(Reply(joined, usage=tokens(640, 210)), node="edit")


def loop_with_budget(server: GeminiServer) -> None:
    server.reply(
        Reply("Solar Sails Explained", usage=tokens(11, 12, 97)),
        Reply("Sailing on Light", usage=tokens(61, 13, 106)),
        Reply("Sailing on Light: The Kite That Left Earth", usage=tokens(64, 15, 121)),
        node="write",
    )
    server.reply(
        Reply("Dull. Say what is surprising.", usage=tokens(20, 24, 136)),
        Reply("Better. Say what it did.", usage=tokens(22, 21, 131)),
        Reply("OK", usage=tokens(23, 1, 149)),
        node="critique",
    )


def async_nodes(server: GeminiServer) -> None:
    briefing = ["Light pushes gently ", "but for ever. ", "Dust and folding are the risks."]
    server.reply(Reply("Light pushes gently, for ever.", usage=tokens(9, 83, 50)), node="facts")
    server.reply(Reply("Dust; folding.", usage=tokens(10, 98, 50)), node="risks")
    server.reply(Reply("".join(briefing), usage=tokens(115, 16, 200), chunks=briefing), node="write")


def faults(server: GeminiServer) -> None:
    sail = ["A solar sail needs no fuel. ", "Light has momentum, and a mirror turns it into thrust."]
    server.reply(Reply("Light has momentum.", usage=tokens(10, 39, 200)), node="research")
    server.reply(Reply("".join(sail), usage=tokens(80, 138, 300), chunks=sail), node="write", model="gemini-2.5-flash")


def one_run_many_asserts(server: GeminiServer) -> None:
    server.reply(Reply(FACTS, usage=tokens(14, 227, 680)), node="research")
    server.reply(Reply(ARTICLE, usage=tokens(241, 414, 412)), node="write")
    server.reply(Reply("Sailing on Light", usage=tokens(92, 4)), node="headline")


def racing_branches(server: GeminiServer) -> None:
    server.reply(Reply("It is light that pushes, not wind.", usage=tokens(19, 11, 120)), node="facts")
    server.reply(Reply("Say what pushes first.", usage=tokens(17, 6, 64)), node="style")
    revised = "A solar sail is pushed by light. It needs no fuel."
    server.reply(Reply(revised, usage=tokens(33, 13, 88)), node="edit")


def article_writer(server: GeminiServer) -> None:
    server.reply(Reply(FACTS, usage=tokens(150, 500)), node="research_node")
    written = {"article": ARTICLE, "word_count": len(ARTICLE.split())}
    server.reply(Reply(json=written, usage=tokens(200, 600)), node="write_node")


SCRIPTS: dict[str, Callable[[GeminiServer], None]] = {
    script.__name__: script
    for script in (
        *(two_nodes, tool_loop, parallel_branches, loop_with_budget),
        *(async_nodes, faults, racing_branches, one_run_many_asserts, article_writer),
    )
}
# Tests of `faults`; the others would leave the reply unasked for.
ASK_A_SECOND_MODEL = ("test_no_candidates", "test_a_reply_that_ends_early")


@pytest.fixture(autouse=True)
def scripted(request: pytest.FixtureRequest) -> None:
    if "agent_run" in request.fixturenames:
        return  # by the next fixture
    gemini_server: GeminiServer = request.getfixturevalue("gemini_server")
    if request.node.name.startswith("test_any_order"):
        pytest.skip("replays what another test records")
    SCRIPTS[request.path.parent.name](gemini_server)
    if request.node.name.startswith(ASK_A_SECOND_MODEL):
        second = Reply("Solar sails are pushed by light.", usage=tokens(80, 90))
        gemini_server.reply(second, node="write", model="gemini-2.5-flash-lite")


@pytest.fixture(scope="module", autouse=True)
def scripted_runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Gives a script to the runs that several tests read, as `agent_run(..., server=...)` would."""
    unscripted = AgentRun.__call__

    def scripted_run(run: AgentRun, cassette: str, **keys: Any) -> AbstractContextManager[AgentTrace]:
        server = GeminiServer()
        SCRIPTS[request.path.parent.name](server)
        return unscripted(run, cassette, server=server, **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AgentRun, "__call__", scripted_run)
        yield
