"""MLflow's own scorers and queries on the temporary store, as the README shows them."""

from __future__ import annotations

from pathlib import Path

from tests.projects import cassette_fixture, environment, project_fixture, run_pytest
from tests.test_readme import blocks

__all__ = ["cassette_fixture", "project_fixture"]


def test_mlflows_scorers_and_queries_read_the_temporary_store(project: Path) -> None:
    block = next(block for block in blocks("python") if "genai.evaluate" in block)
    (project / "test_scored.py").write_text(f"from app import app\n{block}\n    assert agent_trace.tokens == 4601\n")
    ran = run_pytest(project, "-q", "-o", "filterwarnings=", "test_scored.py", env=environment())
    assert ran.code == 0, ran.out
    assert not list(project.rglob("*.db"))
    assert not (project / "mlruns").exists()
