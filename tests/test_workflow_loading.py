"""Files of workflows: the real ones load, broken ones are refused, and no change of a text does anything else."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_agenttrace.workflow import ConfigError, WorkflowConfig, load_config, parse_config
from tests.shown import README, ROOT
from tests.workflows import SHARED, VALID, changed

REAL = sorted(SHARED.glob("*.yaml"))
needs_real = pytest.mark.skipif(not REAL, reason="the real workflows are not beside the project")


@needs_real
@pytest.mark.parametrize("file", REAL, ids=lambda file: file.stem)
def test_real_workflows_load_without_a_word(file: Path) -> None:
    found = load_config(file)
    assert (found.path, found.notes) == (file, ())


@needs_real
def test_what_real_workflows_say_is_read() -> None:
    def loaded(name: str) -> WorkflowConfig:
        return load_config(SHARED / f"{name}.yaml")

    writer = loaded("article_writer")
    assert [node.id for node in writer.nodes] == ["research", "write"]
    assert (writer.config.execution.timeout, writer.config.execution.max_retries) == (120, 3)
    branching = loaded("05_conditional_branching").edges_from("router")[0]
    assert [route.to for route in branching.routes] == ["positive_response", "negative_response", "END"]
    first = branching.routes[0].condition.logic
    assert first is not None
    assert first.evaluate({"sentiment": "positive"}, "router")
    loop = loaded("06_loop_iteration").edges_from("iterate")[0].loop
    assert loop is not None
    assert (loop.condition_field, loop.exit_to, loop.max_iterations) == ("loop_complete", "finalize", 5)
    llms = loaded("08_multi_llm")
    assert [llms.llm_of(node).model for node in llms.nodes] == [
        "gemini-2.5-flash-lite",
        "claude-haiku-4-5",
        "gemini-2.5-flash-lite",
    ]
    analysis = loaded("type_enforcement").state.fields["analysis"].type.members
    assert analysis is not None
    assert {name: str(member.type) for name, member in analysis.items()} == {
        "summary": "str",
        "sentiment": "str",
        "confidence": "float",
        "tags": "list[str]",
    }


GUIDE = """\
config:
  observability:
    mlflow:
      enabled: true
      tracking_uri: "{uri}"
      experiment_name: "my_workflows"
      async_logging: true
      log_artifacts: true
      artifact_level: "standard"  # minimal | standard | full
"""


def test_the_guides_configuration_before_and_after() -> None:
    workflow = VALID[: VALID.index("config:\n")]
    after = parse_config(workflow + GUIDE.format(uri="sqlite:///mlflow.db"))
    before = parse_config(workflow + GUIDE.format(uri="file://./mlruns"))
    assert after.config.observability.mlflow.enabled
    assert (len(after.notes), len(before.notes)) == (0, 1)


def test_the_workflow_that_the_manual_shows_is_the_examples() -> None:
    example = ROOT / "examples" / "article_writer" / "article_writer.yaml"
    assert f"```yaml\n{example.read_text(encoding='utf-8')}```" in README.read_text(encoding="utf-8")
    assert load_config(example).notes == ()


def failed(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


def test_a_file_that_cannot_be_read_is_one_message(tmp_path: Path) -> None:
    assert failed(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such file"
    assert failed(tmp_path) == f"{tmp_path}: no file"
    assert failed(Path("/dev/zero")) == "/dev/zero: no file"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert failed(fifo) == f"{fifo}: no file"
    assert failed(Path("a\0b")) == "a\\x00b: it cannot be read: embedded null byte"
    large = tmp_path / "large.yaml"
    large.write_text("#" * 300_000)
    assert failed(large) == f"{large}: more than 256 KiB: no workflow is as large"


def test_all_that_is_wrong_with_a_file_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    wrong = (("depth: {type: int", "depth: {type: itn"), ("to: write", "to: wirte"), ("{query}", "{x!r}"))
    file.write_text(changed(*wrong))
    assert failed(file).splitlines() == [
        f"{file}:8:19: state.fields.depth.type: 'itn' is no type; did you mean int?",
        f"{file}:30:22: nodes.write.prompt: {{x!r}} has a conversion, and a placeholder is a name only: braces for "
        "themselves are written {{ }}",
        f"{file}:38:13: edges[1].routes[0].to: there is no node 'wirte'; did you mean write?",
    ]


def test_importing_and_using_the_front_needs_no_heavy_library() -> None:
    code = (
        "import sys; import pytest_agenttrace.workflow as w; assert 'yaml' not in sys.modules;"
        f"w.parse_config({VALID!r}); print(sorted({{'mlflow', 'langgraph', 'pydantic', 'pytest'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


ENDLESS = {
    "placeholders that are none": ("Write on {query}, {depth} pages", "'" + "{a}" * 80_000 + "'"),
    "braces that are refused": (
        "    prompt: Write on {query}, {depth} pages\n",
        "    prompt: |\n" + "      {a!r}\n" * 19_000,
    ),
    "edges to nowhere": ("config:\n", "  - {from: write, to: wrte}\n" * 4_000 + "config:\n"),
    "keys twice": ("config:\n", "? a\n" * 30_000 + "config:\n"),
}


@pytest.mark.parametrize("change", ENDLESS.values(), ids=list(ENDLESS))
def test_a_file_with_problems_without_end_is_read_no_further(change: tuple[str, str]) -> None:
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(change), "w.yaml")
    assert time.perf_counter() - start < 30, "seconds"
    assert caught.value.more
    assert len(caught.value.problems) <= 200
    assert str(caught.value).endswith("\nw.yaml: there is more: after 200 problems it is read no further")


@pytest.mark.parametrize("text", ["[" * 250_000, "{" * 250_000, "- " * 125_000, "? " * 125_000, "[" + "a," * 125_000])
def test_a_file_nested_or_long_without_end_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"nested too deeply|more than 20,000 values|no YAML"):
        parse_config(text)


# Mutation

SEEDS = [VALID, *(file.read_text(encoding="utf-8") for file in REAL)]
ATTACKS = (
    "!!python/object/apply:os.system ['touch pwned']",
    "!!python/name:os.system",
    "{state.__class__.__mro__}",
    "{x!r:>{y}}",
    "../../etc/passwd",
    "*a",
    "&a [*a]",
    "<<: *a",
    "null",
    "[]",
    "{}",
    "true",
    "-1",
    ".inf",
    "1e999",
    "9" * 400,
    "'",
    '"\\x00"',
    "\t",
    "\x00",
    "\ud7ff",
    "🜁",
    "? [",
    "---",
    "%YAML 3",
    "state.topic == 1",
    "list[dict[str, list[int]]]",
    "START",
    "END",
)


def _cut(text: str, random_: random.Random) -> str:
    start = random_.randrange(len(text))
    return text[:start] + text[start + random_.randint(1, 40) :]


def _swap_lines(text: str, random_: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    one, other = random_.randrange(len(lines)), random_.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return "".join(lines)


def _repeat_lines(text: str, random_: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    start = random_.randrange(len(lines))
    return "".join(lines[:start] + lines[start : start + 5] + lines[start:])


def _indent(text: str, random_: random.Random) -> str:
    lines = text.splitlines(keepends=True)
    at = random_.randrange(len(lines))
    lines[at] = random_.choice([" " + lines[at], lines[at].removeprefix(" "), "  " + lines[at]])
    return "".join(lines)


def _attack(text: str, random_: random.Random) -> str:
    at = random_.randrange(len(text))
    return text[:at] + random_.choice(ATTACKS) + text[at:]


def _attack_value(text: str, random_: random.Random) -> str:
    lines = text.splitlines()
    at = random_.choice([number for number, line in enumerate(lines) if ": " in line])
    lines[at] = lines[at].partition(": ")[0] + ": " + random_.choice(ATTACKS)
    return "\n".join(lines)


def _swap_words(text: str, random_: random.Random) -> str:
    words = text.split(" ")
    one, other = random_.randrange(len(words)), random_.randrange(len(words))
    words[one], words[other] = words[other], words[one]
    return " ".join(words)


def _byte(text: str, random_: random.Random) -> str:
    at = random_.randrange(len(text))
    return text[:at] + chr(random_.randrange(1, 0x250)) + text[at + 1 :]


MUTATIONS: tuple[Callable[[str, random.Random], str], ...] = (
    *(_cut, _swap_lines, _repeat_lines, _indent, _attack, _attack_value, _attack_value, _swap_words, _byte),
)


def said_of(text: str) -> str | None:
    """What is wrong with a text; None for a workflow."""
    try:
        parse_config(text)
    except ConfigError as error:
        return str(error)
    return None


def test_5000_changed_workflows_load_or_are_refused_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random_ = random.Random(20_261_125)
    loaded = refused = 0
    slowest = 0.0
    for _ in range(5_000):
        text = random_.choice(SEEDS)
        for _ in range(random_.choice([1, 1, 1, 2, 4])):
            text = random_.choice(MUTATIONS)(text, random_) or " "
        start = time.perf_counter()
        message = said_of(text)
        loaded, refused = loaded + (message is None), refused + (message is not None)
        assert all(line.startswith("workflow.yaml") for line in (message or "").splitlines()), message
        slowest = max(slowest, time.perf_counter() - start)
    assert loaded > 200
    assert refused > 2_000
    assert slowest < 5, "seconds for one workflow"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, 1, 2, 20_000])
def test_noise_is_refused(size: int) -> None:
    noise = random.Random(size).randbytes(size)
    with pytest.raises(ConfigError):
        parse_config(noise)
