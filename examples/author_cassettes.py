"""Records the examples' cassettes anew, without a key: `python -m examples.author_cassettes [FOLDER ...]`.

The replies below are scripted, never Google's; they reach the cassettes through the plugin's own record path, from a
server on loopback, and the cassettes say so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pytest_agenttrace.gemini_server import GeminiServer, Reply, Script, ScriptedRequest

HERE = Path(__file__).parent


def tokens(prompt: int, candidates: int, thoughts: int = 0) -> dict[str, int]:
    return {"promptTokenCount": prompt, "candidatesTokenCount": candidates, "thoughtsTokenCount": thoughts}


FACTS = "Light has momentum.\nIKAROS flew by it in 2010.\nA sail needs no fuel."
ARTICLE = "A solar sail needs no fuel. Light has momentum, and a mirror thin as a film turns it into thrust."
TWO_NODES: Script = {
    "List three facts": Reply(FACTS, usage=tokens(14, 227, 680)),
    "Write 300 words": Reply(ARTICLE, usage=tokens(241, 414, 412)),
}

ANSWER = "The sail of IKAROS measured 14 m by 14 m, 196 square metres."
TOOL_LOOP: Script = [
    Reply(tool_calls=[("web_search", {"query": "solar sails"})], usage=tokens(64, 18, 49)),
    Reply(tool_calls=[("web_search", {"query": "IKAROS sail area"})], usage=tokens(131, 16, 35)),
    Reply(ANSWER, usage=tokens(203, 24)),
]

# By prompt, not in order: branches ask in any order.
PARALLEL_BRANCHES: Script = {
    "Plan a report": Reply('{"sections": ["History", "Physics", "Missions"]}', usage=tokens(16, 14, 70)),
    "'History'": Reply("Kepler saw that comets' tails point away from the Sun.", usage=tokens(12, 178)),
    "'Physics'": Reply("At the Earth's distance light pushes with 9 micropascals.", usage=tokens(12, 256)),
    "'Missions'": Reply("IKAROS, NanoSail-D2 and LightSail 2 have flown.", usage=tokens(12, 219)),
    "Join these drafts": Reply("From Kepler's comets to LightSail 2: how light pushes.", usage=tokens(640, 210)),
}

LOOP_WITH_BUDGET: Script = {
    "Write a headline": [
        Reply("Solar Sails Explained", usage=tokens(11, 12, 97)),
        Reply("Sailing on Light", usage=tokens(61, 13, 106)),
        Reply("Sailing on Light: The Kite That Left Earth", usage=tokens(64, 15, 121)),
    ],
    "Judge this headline": [
        Reply("Dull. Say what is surprising.", usage=tokens(20, 24, 136)),
        Reply("Better. Say what it did.", usage=tokens(22, 21, 131)),
        Reply("OK", usage=tokens(23, 1, 149)),
    ],
}

BRIEFING = ["Light pushes gently ", "but for ever. ", "Dust and folding are the risks."]
ASYNC_NODES: Script = {
    "Facts about": Reply("Light pushes gently, for ever.", usage=tokens(9, 83, 50)),
    "Risks of": Reply("Dust; folding.", usage=tokens(10, 98, 50)),
    "Write a briefing": Reply("".join(BRIEFING), usage=tokens(115, 16, 200), chunks=BRIEFING),
}

SAIL = ["A solar sail needs no fuel. ", "Light has momentum, and a mirror turns it into thrust."]


def faults(request: ScriptedRequest) -> Reply:
    if request.prompt.startswith("List three facts"):
        return Reply("Light has momentum.", usage=tokens(10, 39, 200))
    if request.model == "gemini-2.5-flash-lite":
        return Reply("Solar sails are pushed by light.", usage=tokens(80, 90))
    return Reply("".join(SAIL), usage=tokens(80, 138, 300), chunks=SAIL)


SCRIPTS: dict[str, Script] = {
    "two_nodes": TWO_NODES,
    "tool_loop": TOOL_LOOP,
    "parallel_branches": PARALLEL_BRANCHES,
    "loop_with_budget": LOOP_WITH_BUDGET,
    "async_nodes": ASYNC_NODES,
    "faults": faults,
}

# Tests that share a cassette and ask alike: what the others ask is what these do.
RECORDED = {"faults": ("-k", "twice or SAFETY")}


def record(name: str) -> int:
    """Run one example in record mode against its script; pytest's exit code."""
    with GeminiServer(SCRIPTS[name]) as server:
        environment = os.environ | {"GOOGLE_GEMINI_BASE_URL": server.url, "GOOGLE_API_KEY": "scripted"}
        selected = RECORDED.get(name, ())
        command = [sys.executable, "-m", "pytest", str(HERE / name), "--agenttrace-record", "-q", *selected]
        # The command is put together here, of no one's input.
        done = subprocess.run(command, cwd=HERE.parent, env=environment, check=False)  # noqa: S603
    for message in server.unscripted:
        sys.stderr.write(f"{name}: {message}\n")
    return done.returncode


def main(names: Sequence[str]) -> int:
    unknown = sorted(set(names) - SCRIPTS.keys())
    if unknown:
        sys.stderr.write(f"no example named {', '.join(unknown)}; there are {', '.join(SCRIPTS)}\n")
        return 2
    return max([record(name) for name in names or SCRIPTS])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
