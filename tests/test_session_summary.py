"""What a pytest run says at its end of what its tests have used and forgiven."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.projects import ARTICLE, Session, cassette_fixture, environment, project_fixture, run_pytest

__all__ = ["cassette_fixture", "project_fixture"]

TESTS = """
import pytest
from app import SAILS, app

cassette = pytest.mark.agent_trace(cassette="app.yaml")

@cassette
def test_article(agent_trace):
    app.invoke(SAILS)

@pytest.mark.agent_trace(cassette="app.yaml", allow=["write:uncounted"])
def test_forgiving(agent_trace):
    app.invoke(SAILS)

def test_nothing_of_ours():
    pass
"""

TOTALS = [
    "traced: 9,202 tokens, $0.012313 in 2 traces",
    "  dearest: research $0.0094728 (77%), write $0.0028402 (23%)",
]


def section(ran: Session) -> list[str]:
    """The lines under our name."""
    head, _, rest = ran.out.partition(f"\n{' agenttrace '.center(80, '=')}\n")
    assert rest, head
    return rest.partition("\n=")[0].rstrip("\n").splitlines()


@pytest.fixture(name="tests")
def tests_fixture(project: Path) -> Path:
    (project / "conftest.py").unlink()
    (project / "test_it.py").write_text(TESTS)
    return project


@pytest.mark.parametrize("workers", [(), ("-p", "xdist", "-n2")], ids=["alone", "xdist"])
def test_totals_after_a_run(tests: Path, workers: tuple[str, ...]) -> None:
    ran = run_pytest(tests, *workers, env=environment())
    assert ran.code == 0, ran.out
    assert section(ran) == TOTALS
    quiet = run_pytest(tests, "-q", *workers, env=environment())
    assert "agenttrace" not in quiet.out
    wordy = run_pytest(tests, "-v", *workers, env=environment())
    nodes = "4,601 tokens $0.0061565 (research 3,534 tokens $0.0047364, write 1,067 tokens $0.0014201)"
    assert section(wordy) == [
        TOTALS[0],
        f"  test_it.py::test_article: {nodes}",
        f"  test_it.py::test_forgiving: {nodes}",
    ]


def test_what_is_forgiven_is_counted(tests: Path) -> None:
    source = TESTS.replace('"app.yaml", allow=["write:uncounted"]', '"own.yaml", allow=["unused"]')
    source, half = source.rsplit("app.invoke(SAILS)", 1)
    (tests / "test_it.py").write_text(f"{source}app.nodes['research'].bound.invoke(SAILS){half}")
    (tests / "own.yaml").write_text((tests / "app.yaml").read_text())
    ran = run_pytest(tests, env=environment())
    assert ran.code == 0, ran.out
    assert section(ran)[0] == "findings forgiven: unused 1"


def test_a_terminal_without_lines_gets_plain_ones(tests: Path) -> None:
    (tests / "test_it.py").write_text(TESTS.replace("app.invoke(SAILS)\n\n", "app.invoke(SAILS)\n    assert 0\n\n", 1))
    plain = ARTICLE.replace("├─", "|-").replace("└─", "`-").replace("│", "|")
    for args in ((), ("-p", "xdist", "-n1")):
        ran = run_pytest(tests, *args, env=environment() | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
        assert ran.code == 1
        assert plain in ran.out
    ran = run_pytest(tests, env=environment() | {"PYTHONIOENCODING": "utf-8"})
    assert ARTICLE in ran.out
