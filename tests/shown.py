"""What pytest prints for the examples: run once, used by the tests and by the README.

`python -m tests.shown` writes them: into the README, below each `<!-- output of: COMMAND -->`, and into
each example's `failing.txt`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- output of: (?P<command>[^\n]+) -->\n```\n)(?P<text>.*?)(```\n)", re.DOTALL)
_TEST = re.compile(r"^_{3,} (?P<name>\S+) _{3,}$", re.MULTILINE)
_OURS = re.compile(r"^=+ agenttrace =+\n(?P<text>.*?)^=+ ", re.MULTILINE | re.DOTALL)
_END = re.compile(r"^=+ .*=+$", re.MULTILINE)


@cache
def run(command: str) -> str:
    """The output of a pytest or agenttrace command in the project's root, without a key and without colours."""
    hidden = (
        "GOOGLE_API_KEY",
        "GEMINI_API_KEY",
        "PYTEST_ADDOPTS",
        "PYTEST_XDIST_WORKER",
        "COLUMNS",
        "CI",
        "BUILD_NUMBER",
        "GITHUB_ACTIONS",
        "GITHUB_STEP_SUMMARY",
    )
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    given = shlex.split(command)
    # The command that opens a kept store names a place of this machine.
    arguments = [sys.executable, "-m", *given, "-p", "no:cacheprovider", "-p", "no:xdist", "--agenttrace-keep=none"]
    if given[0] == "agenttrace":
        arguments = [sys.executable, "-c", "from pytest_agenttrace.cli import main; main()", *given[1:]]
    done = subprocess.run(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.stdout


def sections(command: str) -> dict[str, str]:
    """What stands under the name of each test in the failures, or in the passes of `-rP`."""
    output = run(command)
    found = list(_TEST.finditer(output))
    if not found:
        raise RuntimeError(f"{command} shows no test:\n{output}")
    ends = [match.start() for match in found[1:]] + [len(output)]
    texts: dict[str, str] = {}
    for match, end in zip(found, ends, strict=True):
        text = output[match.end() : end].removeprefix("\n")
        over = _END.search(text)
        texts[match["name"]] = text[: over.start()] if over else text
    return texts


def told(command: str) -> str:
    """The sections of the tests, or where none is shown what stands under our name at the end."""
    found = _OURS.search(run(command))
    if _TEST.search(run(command)) or found is None:
        return "\n".join(sections(command).values())
    return found["text"].rstrip("\n") + "\n"


def readme() -> tuple[str, str]:
    """The README as it is, and as it must be."""
    text = README.read_text(encoding="utf-8")

    def shown(match: re.Match[str]) -> str:
        command = match["command"]
        output = run(command) if command.startswith("agenttrace ") else told(command)
        return match[1] + output + match[4]

    return text, _BLOCK.sub(shown, text)


def failing() -> dict[Path, str]:
    """The `failing.txt` of each example and what must stand in it."""
    command = "pytest examples --override-ini python_files=failing.py"
    texts = sections(command)
    return {
        path.with_suffix(".txt"): "\n".join(text for name, text in texts.items() if f"def {name}(" in path.read_text())
        for path in sorted(ROOT.glob("examples/*/failing.py"))
    }


if __name__ == "__main__":
    README.write_text(readme()[1], encoding="utf-8")
    for path, text in failing().items():
        path.write_text(text, encoding="utf-8")
