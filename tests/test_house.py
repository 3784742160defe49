"""The house: floors, who may import what, and public names, read from the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pytest_agenttrace

PACKAGE = Path(pytest_agenttrace.__file__).parent

# Top first. A room imports only from floors below its own, never from one beside it.
FLOORS = (
    ("__init__", "plugin", "cli"),
    ("scoped",),
    ("opening",),
    ("session.gating",),
    ("session.bookkeeping", "session.accounting"),
    ("collect", "session.summary", "options", "diffing", "workflow_commands"),
    ("report",),
    ("report.pull_request",),
    ("report.baseline", "report.junit"),
    ("report.text", "report.markdown", "report.plainjson"),
    ("report.verdict", "report.traffic"),
    ("report.comparing",),
    ("report.growth", "report.requests"),
    ("report.structure", "report.limits", "report.renaming"),
    ("report.cost",),
    ("report.differences", "report.wording"),
    ("workflow",),
    ("testrun", "session.results"),
    ("capture", "session.state", "rerecord"),
    ("diagnosis", "budgets.project", "budgets.whole_run", "budgets.fullness"),
    ("ledger",),
    ("ledger.merging",),
    ("ledger.file", "ledger.entry"),
    ("ledger.requests",),
    ("ledger.model",),
    ("workflow.running",),
    ("workflow.graphs",),
    ("workflow.asking", "workflow.tools"),
    ("workflow.outputs", "workflow.providers"),
    ("workflow.values",),
    ("workflow.failing", "workflow.timing"),
    ("workflow.loading", "workflow.schema"),
    ("workflow.checking",),
    ("workflow.ways", "workflow.steps"),
    ("workflow.references", "workflow.joins"),
    ("workflow.reading",),
    ("workflow.refused",),
    ("workflow.models", "workflow.naming"),
    ("workflow.conditions", "workflow.placeholders", "workflow.positions"),
    ("workflow.types",),
    ("store", "replay", "prices", "budgets.limits", "reconcile", "crosscheck", "forest", "gemini_server"),
    # Behind the store, behind replay, behind prices.
    ("store.base_exceptions", "store.reading", "store.kept", "store.obstacles", "replay.live"),
    ("store.exporter", "store.redirect", "store.spans", "replay.answering", "prices.pinning", "prices.comparing"),
    (
        "store.database",
        "replay.recorder",
        "replay.filters",
        "replay.others",
        "replay.orders",
        "replay.purse",
        "replay.log",
    ),
    ("replay.adopting", "replay.arranging", "replay.injecting"),
    ("replay.recording", "replay.writing", "prices.book", "prices.table"),
    ("replay.scrubbing",),
    ("replay.matching", "replay.upstream", "gemini_server.caches"),
    (
        "store.mlflow_state",
        "store.seeding",
        "replay.cassette",
        "replay.misses",
        "gemini_server.bodies",
        "gemini_server.rules",
    ),
    ("replay.reading", "replay.mismatch", "replay.retries", "replay.clients", "replay.credentials", "replay.faults"),
    ("gemini_server.replies",),
    ("replay.grpc_channels", "replay.langsmith", "replay.secret_forms", "replay.spending", "replay.delivery"),
    ("trace", "wire"),
    ("execution", "repricing", "prices.rates"),
    ("threads",),
    ("model_runs",),
    ("calls",),
    ("settings", "session.totals"),
    # Packages without a front.
    ("budgets", "session"),
    (
        "usage",
        "tree",
        "environment",
        "ignoring",
        "network",
        "importing",
        "locking",
        "inifile",
        "placing",
        "projectfile",
    ),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Rooms behind a front are entered by it and from each other only; what a cassette is, the command line may read too.
FRONTS = ("store", "replay", "prices", "gemini_server", "ledger", "report", "workflow")

HEAVY = (
    *("mlflow", "vcr", "langchain", "langgraph", "google", "genai_prices", "pandas", "httpx", "aiohttp"),
    *("opentelemetry", "sqlalchemy", "pydantic", "requests"),
)
IMPORTERS = {
    "mlflow": {"store"},
    "opentelemetry": {"store"},
    "sqlalchemy": {"store"},
    "langsmith": {"replay"},
    "vcr": {"replay"},
    "genai_prices": {"prices"},
    "click": {"cli", "diffing", "workflow_commands"},
    # The last two for types only.
    "pytest": {
        *("plugin", "scoped", "opening", "collect", "options"),
        *("session.bookkeeping", "session.accounting", "session.gating", "session.summary"),
    },
    "_pytest": set[str](),
}


@dataclass(frozen=True)
class Import:
    room: str
    target: str
    line: int
    # Whether importing the room itself runs it: neither inside of a function nor for type checkers only.
    at_start: bool

    def of(self, name: str) -> bool:
        """Whether it is of this distribution's modules: `langchain` includes `langchain_core`."""
        top = self.target.partition(".")[0]
        return top == name or (name == "langchain" and top.startswith("langchain_"))

    def __str__(self) -> str:
        return f"{self.room}.py:{self.line} imports {self.target}"


def modules() -> dict[str, Path]:
    """Every module of the package, by its name below it: `usage`, `workflow.load`."""
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
        if "__pycache__" not in path.parts
    }
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


def front(room: str) -> str:
    """The room that stands before one of a package, or the room itself."""
    return room.partition(".")[0]


def imports_of(room: str, tree: ast.Module) -> Iterator[Import]:
    later = {id(inner) for outer in ast.walk(tree) if _runs_later(outer) for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        for target in _targets(node):
            yield Import(room, target, node.lineno, id(node) not in later)  # type: ignore[attr-defined]  # imports have


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return True
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _targets(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = ".".join(part for part in ("pytest_agenttrace" if node.level else "", node.module or "") if part)
        # `from package import room` names a room only together with what it imports.
        return [f"{base}.{alias.name}" for alias in node.names] if base == "pytest_agenttrace" else [base]
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def room_imported(imported: Import) -> str | None:
    """The room of ours that an import is of; `__init__` for a name of the package itself."""
    if not imported.of("pytest_agenttrace"):
        return None
    rest = imported.target.partition(".")[2]
    found = [name for name in SOURCES if rest == name or rest.startswith(f"{name}.")]
    return max(found, key=len) if found else "__init__"


SOURCES = {room: ast.parse(path.read_text(encoding="utf-8"), str(path)) for room, path in modules().items()}
IMPORTS = [found for room, tree in SOURCES.items() for found in imports_of(room, tree)]


# The guard itself sees what it is meant to see


def test_the_guard_sees_imports_wherever_they_stand() -> None:
    source = """
from __future__ import annotations
import mlflow.entities
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from vcr import VCR
from pytest_agenttrace import usage
from . import trace
from .wire import Call
def f():
    import pandas as pd
    async def g():
        from langchain_core.messages import AIMessage
class C:
    import httpx
    h = lambda: __import__("aiohttp")
try:
    import importlib; importlib.import_module("genai_prices")
except ImportError:
    pass
"""
    found = {i.target: i.at_start for i in imports_of("sample", ast.parse(source)) if i.target != "__future__"}
    assert found == {
        "mlflow.entities": True,
        "typing": True,
        "vcr": False,
        "pytest_agenttrace.usage": True,
        "pytest_agenttrace.trace": True,
        "pytest_agenttrace.wire": True,
        "pandas": False,
        "langchain_core.messages": False,
        "httpx": True,
        "aiohttp": False,
        "importlib": True,
        "genai_prices": True,
    }


def test_the_guard_reads_the_whole_package() -> None:
    assert {"usage", "plugin", "__init__"} <= SOURCES.keys()
    assert len(IMPORTS) > 100
    assert {room_imported(i) for i in IMPORTS if i.room == "forest"} >= {"calls", "trace"}
    assert room_imported(Import("plugin", "pytest_agenttrace.capture", 1, True)) == "capture"
    assert room_imported(Import("plugin", "pytest_agenttrace.Trace", 1, True)) == "__init__"
    assert room_imported(Import("plugin", "pytest", 1, True)) is None


# Floors


def test_every_module_has_a_floor_and_every_floor_its_modules() -> None:
    assert sorted(SOURCES.keys() - FLOOR_OF.keys()) == [], "modules without a floor: give them one, see FLOORS"
    assert sorted(FLOOR_OF.keys() - SOURCES.keys()) == [], "floors name modules that are gone"
    assert len(FLOOR_OF) == sum(map(len, FLOORS)), "a module stands on two floors"


def test_imports_go_downwards_only() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if (room := room_imported(found)) is not None
        and room != found.room
        and FLOOR_OF.get(room, -1) <= FLOOR_OF.get(found.room, -1)
    ]
    assert wrong == []


def test_rooms_behind_the_store_and_replay_are_entered_by_their_front() -> None:
    wrong = [
        str(found)
        for found in IMPORTS
        if (room := room_imported(found)) is not None
        and room != front(room)
        and front(room) in FRONTS
        and front(found.room) != front(room)
    ]
    assert wrong == []


# Libraries


def test_heavy_libraries_are_imported_where_they_are_needed_never_at_the_start() -> None:
    assert [str(found) for found in IMPORTS if found.at_start and any(map(found.of, HEAVY))] == []


@pytest.mark.parametrize("library", IMPORTERS)
def test_a_library_has_its_importers(library: str) -> None:
    found = [i for i in IMPORTS if i.of(library)]
    assert [str(i) for i in found if not {i.room, front(i.room)} & IMPORTERS[library]] == []
    assert bool(found) == bool(IMPORTERS[library]), "nobody imports it: the guard guards nothing"


# Public names


def public(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def defined(tree: ast.Module) -> dict[str, ast.AST]:
    """What a module binds at its top, by name."""
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update({alias.asname or alias.name: node for alias in node.names})
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found.update({name.id: node for name in ast.walk(node) if isinstance(name, ast.Name)})
    return found


@pytest.mark.parametrize("room", SOURCES)
def test_public_names_are_defined_and_documented(room: str) -> None:
    names, there = public(SOURCES[room]), defined(SOURCES[room])
    assert len(set(names)) == len(names)
    if room != "__init__":
        assert [name for name in names if name not in there] == []
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    bare = [name for name in names if isinstance(node := there.get(name), documented) and not ast.get_docstring(node)]
    assert bare == [], f"{room}.py: public, but without a docstring"
    assert ast.get_docstring(SOURCES[room]), f"{room}.py has no docstring"


def test_the_package_exports_what_it_names() -> None:
    lazily = {name for names in pytest_agenttrace._ROOMS.values() for name in names}
    tree = SOURCES["__init__"]
    at_once = {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pytest_agenttrace")
        for alias in node.names
    }
    typed = {
        alias.name
        for block in tree.body
        if _runs_later(block)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert lazily.isdisjoint(at_once)
    assert sorted(lazily | at_once) == pytest_agenttrace.__all__
    assert typed == lazily | (typed & at_once)


@pytest.mark.parametrize("name", pytest_agenttrace.__all__)
def test_each_exported_name_is_its_rooms(name: str) -> None:
    value = getattr(pytest_agenttrace, name)
    assert value.__name__ == name
    room = value.__module__.removeprefix("pytest_agenttrace.")
    assert room in SOURCES
    assert name in public(SOURCES[room]), f"{room}.py does not name {name} in its __all__"
    assert pytest_agenttrace._ROOM_OF.get(name, room) in {room, *_reexporters(name)}


def _reexporters(name: str) -> set[str]:
    return {room for room, tree in SOURCES.items() if name in public(tree)}


def test_a_name_the_package_does_not_have() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = pytest_agenttrace.nothing
    assert str(caught.value) == "module 'pytest_agenttrace' has no attribute 'nothing'"


def test_the_plugin_loads_no_room_that_a_run_may_not_need() -> None:
    rooms = ("ledger", "report", "workflow", "prices", "replay", "store", "projectfile")
    code = "import sys, pytest_agenttrace.plugin; print(*(name for name in sys.modules if name.count('.')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[2] for name in done.stdout.split() if name.startswith("pytest_agenttrace.")}
    later = {*rooms, "session.gating", "session.results"}
    assert sorted(name for name in loaded if {name, front(name)} & later) == []
    assert "session.accounting" in loaded, "the guard sees nothing"
