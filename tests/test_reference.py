"""The README's reference is complete: every option, key, fixture, marker argument, command and kind stands in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pytest_agenttrace import Fault, Reply, cli, plugin
from pytest_agenttrace.budgets.limits import METRICS
from pytest_agenttrace.options import add_options
from pytest_agenttrace.settings import KEYS, KINDS
from pytest_agenttrace.trace import TraceReading
from tests.projects import environment, run_pytest
from tests.shown import README

TEXT = README.read_text(encoding="utf-8")


def table(first: str) -> list[str]:
    """The first cells of the table whose head begins so, without their marks."""
    rows = iter(TEXT.splitlines())
    for row in rows:
        if row.startswith(f"| {first} |"):
            break
    else:
        pytest.fail(f"the README has no table of {first}")
    found = []
    for row in rows:
        if not row.startswith("|"):
            break
        if not row.startswith("| ---") and not row.startswith("|---"):
            found.append(row.split("|")[1].strip())
    return found


def names(cells: list[str]) -> list[str]:
    """What stands between back quotes, up to its arguments."""
    return [re.split(r"[\s(=\[]", quoted)[0] for cell in cells for quoted in cell.split("`")[1::2]]


class Parser:
    """Stands for pytest's parser, to hear what is added to it."""

    def __init__(self) -> None:
        self.options: dict[str, str] = {}
        self.keys: dict[str, str] = {}
        self.group = ""

    def getgroup(self, name: str, description: str) -> Parser:
        self.group = f"{name}: {description}"
        return self

    def addoption(self, name: str, *, help: str, **how: object) -> None:
        self.options[name] = help

    def addini(self, name: str, help: str, **how: object) -> None:
        self.keys[name] = help


@pytest.fixture(name="added")
def added_fixture() -> Parser:
    parser = Parser()
    add_options(parser)  # type: ignore[arg-type]  # as much of a parser as is asked for
    return parser


def test_every_option_and_ini_key(added: Parser) -> None:
    assert sorted(names(table("option, ini key"))) == sorted([*added.options, *added.keys])
    for name, text in {**added.options, **added.keys}.items():
        assert text.strip(), f"{name} has no help"
    assert all(name.startswith("--agenttrace-") for name in added.options)
    assert all(name.startswith("agenttrace_") for name in added.keys)


def test_every_key_of_the_marker() -> None:
    assert sorted(names(table_of_settings())) == sorted(KEYS)
    for key in KEYS:
        assert f"{key}=" in plugin._AGENT_TRACE or f" {key}," in plugin._AGENT_TRACE, key


def table_of_settings() -> list[str]:
    _, _, rest = TEXT.partition("\n## Settings\n")
    rows = [row for row in rest.partition("\n\n| fixture")[0].splitlines() if row.startswith("| `")]
    return [row.split("|")[1] for row in rows]


def test_every_limit_of_a_budget() -> None:
    signature = f"budget(node=None, /, *, {', '.join(METRICS)})"
    assert f"`@pytest.mark.{signature}`" in TEXT
    assert plugin._BUDGET.startswith(f"{signature}: ")


def test_every_fixture() -> None:
    assert sorted(names(table("fixture"))) == sorted(plugin._FIXTURES)
    for name in plugin._FIXTURES:
        assert getattr(plugin, name).__doc__, f"{name} has no docstring"


def test_every_kind_of_finding() -> None:
    assert sorted(names(table("kind"))) == sorted(KINDS)


def test_everything_a_trace_can_be_asked() -> None:
    cells = " ".join(row.split("|")[1] for row in TEXT.splitlines() if row.startswith("| `"))
    public = [name for name in vars(TraceReading) if not name.startswith("_") and name not in ("snapshot", "label")]
    missing = [name for name in public if f"`{name}" not in cells]
    assert missing == []


def test_every_fault_and_every_part_of_a_reply() -> None:
    faults = [name for name, made in vars(Fault).items() if isinstance(made, classmethod)]
    assert sorted(set(re.findall(r"`Fault\.(\w+)\(", " ".join(table("fault"))))) == sorted(faults)
    parts = [name for name in Reply.__dataclass_fields__ if name != "text"]
    assert sorted(names(table("`Reply(text, ...)`"))) == sorted(parts)


def commands(group: click.Command, path: str = "agenttrace") -> Iterator[tuple[str, click.Command]]:
    if isinstance(group, click.Group):
        for name, inner in sorted(group.commands.items()):
            yield from commands(inner, f"{path} {name}")
    else:
        yield path, group


@pytest.mark.parametrize(("path", "command"), list(commands(cli.main)), ids=[path for path, _ in commands(cli.main)])
def test_every_command_and_its_options(path: str, command: click.Command) -> None:
    assert f"`{path}" in TEXT or f"\n{path} " in TEXT or f": {path} " in TEXT, f"{path} is not in the README"
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option) and option.name != "help":
            assert option.help, f"{path} {option.opts[0]} has no help"
            assert any(name in TEXT for name in option.opts), f"{path} {option.opts} is not in the README"


def test_what_pytest_shows_of_us(tmp_path: Path) -> None:
    """--help, --markers and --fixtures, as a user reads them."""
    plugins = ("pytest_agenttrace.plugin",)
    helped = run_pytest(tmp_path, "--help", env=environment(), plugins=plugins).out
    assert "\ntraced workflows: replay, budgets (pytest-agenttrace):\n  --agenttrace-record " in helped
    marked = run_pytest(tmp_path, "--markers", env=environment(), plugins=plugins).out
    assert f"@pytest.mark.{plugin._BUDGET}" in marked
    assert f"@pytest.mark.{plugin._AGENT_TRACE}" in marked
    (tmp_path / "test_it.py").touch()
    shown = run_pytest(tmp_path, "--fixtures", "-v", env=environment(), plugins=plugins).out
    for name in plugin._FIXTURES:
        assert re.search(rf"^{name}( \[session scope\])? -- .*plugin.py:\d+\n    \S", shown, re.MULTILINE), name
