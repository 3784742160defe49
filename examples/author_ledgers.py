"""Makes the two ledgers that the README compares, without a key: of the first example, and of a branch of it.

    python -m examples.author_ledgers

The replies are scripted, never Google's, by the fixture `gemini_server`; the branch asks for 400 words, at a higher
temperature, and has a node that checks them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

TEST = """
from graph import app
from pytest_agenttrace import Reply


def tokens(prompt, candidates, thoughts=0):
    return {"promptTokenCount": prompt, "candidatesTokenCount": candidates, "thoughtsTokenCount": thoughts}


def test_article(agent_trace, gemini_server):
    gemini_server.reply(Reply("Light has momentum.", usage=tokens(14, 227, 680)), node="research")
    gemini_server.reply(Reply("A sail needs no fuel.", usage=WRITE), node="write")
    if CHECK:
        gemini_server.reply(Reply("Well said.", usage=tokens(430, 12)), node="check")
    app.invoke({"topic": "solar sails"})
"""

CHECK = """
def check(state: Article) -> Article:
    model().invoke(f"Is this right? {state['text']}")
    return {}


graph = StateGraph(Article)
graph.add_node("check", check)
graph.add_edge("write", "check")
"""


def write(name: str, source: str, usage: str) -> None:
    """Record and replay a project of this source, and keep the ledger."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "graph.py").write_text(source)
        (folder / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
        (folder / "tests").mkdir()
        (folder / "tests" / "test_article.py").write_text(
            TEST.replace("WRITE", usage).replace("CHECK", str("check" in source))
        )
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "GITHUB"))}
        for option in (["--agenttrace-record"], ["--agenttrace-ledger", str(HERE / "continuous_integration" / name)]):
            command = [sys.executable, "-m", "pytest", "-q", *option]
            subprocess.run(command, cwd=folder, env=environment, check=True)  # noqa: S603 - pytest itself


if __name__ == "__main__":
    source = (HERE / "two_nodes" / "graph.py").read_text()
    write("main.json", source, "tokens(241, 414, 412)")
    source = source.replace("300 words", "400 words").replace("temperature=0", "temperature=0.4")
    source = source.replace("\ngraph = StateGraph(Article)\n", CHECK)
    source = source.replace('graph.add_edge("write", END)\n', 'graph.add_edge("check", END)\n')
    write("branch.json", source, "tokens(241, 551, 487)")
