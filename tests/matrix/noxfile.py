"""The suite's core on every Python, and on the oldest and the newest of every library that pyproject.toml allows.

`make matrix` runs all cells and prints their table; `make oldest` runs one. Each cell has a virtual environment of its
own, made and filled by uv; a cell whose Python is not on this machine is told, and is no success.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import nox

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / ".venv" / "matrix" / "results"
SHOWN = ("mlflow", "langgraph", "langchain-core", "langchain-google-genai", "google-genai", "vcrpy", "pytest")
# What touches the libraries: MLflow's stores, pytest's hooks, vcrpy's matching, LangGraph's spans, the client's bodies.
SUITE = (
    "test_store",
    "test_kept",
    "test_seeding",
    "test_scorers",
    "test_crosscheck",
    "test_session_totals",
    "test_plugin",
    "test_delivery",
    "test_matching",
    "test_adopting",
    "test_witnesses",
    "test_shapes",
    "test_prices",
    "test_run_command",
    "test_workflow_observing",
    "test_workflow_traced",
    "test_workflow_running_edges",
    "test_workflow_running_tools",
    "test_workflow_running_trace",
)
# One way of running each shape, and of the store's tests those that ask MLflow: a cell takes minutes, not half an hour.
SHAPES = "invoke-None and not ainvoke"
STORE = "span or token or cost or autolog or as_before or trace or prompt"
CHOSEN = f"not (test_shapes or test_store) or (test_shapes and {SHAPES}) or (test_store and ({STORE}))"

nox.options.default_venv_backend = "uv"
nox.options.envdir = str(ROOT / ".venv" / "matrix")
nox.options.error_on_missing_interpreters = True


@dataclass(frozen=True)
class Cell:
    """Which Python, which end of what pyproject.toml allows, and what of it is pinned elsewhere."""

    python: str
    lowest: bool = False
    pins: tuple[str, ...] = ()
    extras: str = "dev"
    more: tuple[str, ...] = ()
    args: tuple[str, ...] = ()


def _lowest(*names: str) -> tuple[str, ...]:
    """pyproject's lower bounds, as pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(dependency.split(">=") for dependency in project["dependencies"])
    return tuple(f"{name}=={bounds[name]}" for name in names)


CELLS: Mapping[str, Cell] = {
    "oldest": Cell("3.11", lowest=True),
    # pytest-agent-trace and pytest-recording both have an option --record-mode: pytest does not start with the two.
    "newest": Cell(
        "3.13",
        extras="dev,neighbours",
        more=("test_neighbours", "test_workflow_running_providers"),
        args=("-p", "no:agent_trace", "-p", "no:deepeval"),
    ),
    "old-langgraph": Cell("3.12", pins=("mlflow==3.13.*", *_lowest("langgraph"))),
    "old-client": Cell("3.12", pins=_lowest("mlflow", "langchain-google-genai")),
    "newest-3.11": Cell("3.11"),
}


def _offer_pyenv() -> None:
    """Where pyenv keeps the Pythons, its `python3.12` answers only for those that are chosen: choose all."""
    if pyenv := shutil.which("pyenv"):
        found = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True, check=False)
        os.environ["PYENV_VERSION"] = ":".join(found.stdout.split())


_offer_pyenv()


def _run(session: nox.Session, name: str, cell: Cell) -> None:
    session.chdir(ROOT)
    RESULTS.mkdir(parents=True, exist_ok=True)
    # What an earlier run said is not this one's, should this one not come to its end.
    (RESULTS / f"{name}.json").unlink(missing_ok=True)
    resolution = "lowest-direct" if cell.lowest else "highest"
    session.install("--resolution", resolution, "-e", f".[{cell.extras}]", *cell.pins)
    versions = _versions(session)
    files = [f"tests/{file}.py" for file in (*SUITE, *cell.more)]
    # Not in nox's own folder for temporary files: it lies below this project, whose ini file pytest would then find.
    report = RESULTS / f"{name}.xml"
    began = time.monotonic()
    how = ("-n", "2", "--dist", "loadgroup", "-q", "-p", "no:cacheprovider", "-k", CHOSEN, f"--junitxml={report}")
    # Failures (1) are the table's to tell, and those of the whole matrix: the cells after this one run all the same.
    session.run("python", "-m", "pytest", *how, *cell.args, *session.posargs, *files, success_codes=[0, 1])
    row = {"cell": name, "python": cell.python, **versions, **_counts(report), "s": round(time.monotonic() - began)}
    (RESULTS / f"{name}.json").write_text(json.dumps(row), encoding="utf-8")
    _print([row])
    if row["failed"]:
        session.error(f"{row['failed']} failed")


def _versions(session: nox.Session) -> dict[str, str]:
    """What is really installed."""
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {SHOWN!r}}}))"
    found: dict[str, str] = json.loads(str(session.run("python", "-c", code, silent=True)))
    return found


def _counts(report: Path) -> dict[str, int]:
    suite = next(ElementTree.parse(report).iter("testsuite"))  # noqa: S314 - pytest wrote it
    tests, failures, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return {"passed": tests - failed - skipped, "failed": failed, "skipped": skipped}


def _print(rows: Sequence[Mapping[str, object]]) -> None:
    titles = ("cell", "python", *SHOWN, "passed", "failed", "skipped", "s")
    lines = [titles, *(tuple(str(row.get(title, "not run")) for title in titles) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())  # noqa: T201 - the table is what is asked for


def _add(name: str, cell: Cell) -> None:
    @nox.session(name=name, python=cell.python)
    def run(session: nox.Session) -> None:
        _run(session, name, cell)


for _name, _cell in CELLS.items():
    _add(_name, _cell)


@nox.session(python=False)
def table(session: nox.Session) -> None:
    """What the cells have come to, those included that did not run."""
    files = {name: RESULTS / f"{name}.json" for name in CELLS}
    _print([json.loads(file.read_text()) if file.is_file() else {"cell": name} for name, file in files.items()])
