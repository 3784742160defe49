"""Prices in a run: calls that cannot be priced, a project's own file, and MLflow's own idea of a cost."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

from pytest_agenttrace import GeminiServer
from tests.projects import (
    SCRIPT,
    Told,
    cassette_fixture,  # noqa: F401 - a fixture
    environment,
    project_fixture,  # noqa: F401 - a fixture
    run_pytest,
)

WAY_OUT = """\
  Give it one in a file that agenttrace_prices names, in USD per million tokens:
    format: 1
    models:
      gemini-99:
        - input: USD
          output: USD"""
FOUND = f"write: no price is known for 'gemini-99' [unpriced]\n{WAY_OUT}"

TESTS = """
import pytest
from app import SAILS, app
from pytest_agenttrace import PriceNotFound


@pytest.fixture(autouse=True)
def ran(agent_trace):
    app.invoke(SAILS)


@pytest.mark.budget(cost="1")
@pytest.mark.budget("write", cost="1", tokens=1_066)
def test_budget():
    pass


@pytest.mark.budget("research", cost="1")
def test_not_asked_for(agent_trace):
    print(agent_trace)
    assert agent_trace["research"].cost > 0
    with pytest.raises(PriceNotFound):
        _ = agent_trace.reprice("gemini-98").cost


def test_swallowed(agent_trace):
    with pytest.raises(PriceNotFound):
        _ = agent_trace.cost_by_node


def test_raised(agent_trace):
    assert agent_trace.cost < 1


@pytest.mark.agent_trace(allow=["write:unpriced"])
@pytest.mark.budget(cost="0.0047364")
def test_allowed(agent_trace):
    assert agent_trace.cost == agent_trace["research"].cost


@pytest.mark.agent_trace(allow=["unpriced"])
@pytest.mark.budget("write", cost="1")
def test_nothing_is_left():
    pass


@pytest.mark.agent_trace(warn=["unpriced"])
@pytest.mark.budget(cost="0.0047364")
def test_warned():
    pass
"""


def write_unpriced(project: Path) -> None:
    """The project, its last call asked of a model that nobody has a price for."""
    head, last, tail = (project / "app.yaml").read_text().rpartition("- request:")
    # For a model that it does not know LangChain sets no temperature.
    tail = re.sub(r" +temperature: .*\n", "", tail.replace("gemini-2.5-flash", "gemini-99"))
    (project / "app.yaml").write_text(head + last + tail)
    app = (project / "app.py").read_text()
    (project / "app.py").write_text(
        app.replace("def model():", 'def model(name="gemini-2.5-flash"):')
        .replace('model="gemini-2.5-flash", max', "model=name, max")
        .replace("model().invoke(f", 'model("gemini-99").invoke(f')
    )


def test_a_model_without_a_price_where_a_cost_is_asked_for(project: Path) -> None:
    write_unpriced(project)
    (project / "test_unpriced.py").write_text(TESTS)
    ran = run_pytest(project, env=environment())
    told = Told(ran, "test_unpriced")
    assert told.outcomes == {
        "test_budget": "failed",
        "test_not_asked_for": "passed",
        "test_swallowed": "failed",
        "test_raised": "failed",
        "test_allowed": "passed",
        "test_nothing_is_left": "failed",
        "test_warned": "passed",
    }, ran.out
    # Both budgets ask for it: one message, and what else is wrong beside it.
    assert told.text("test_budget") == f"write 1,067 tokens > 1,066 (+1)\n{FOUND}"
    assert told.text("test_swallowed") == FOUND
    assert told.errors("test_raised").startswith(
        f"pytest_agenttrace.prices.PriceNotFound: write: no price is known for 'gemini-99'\n{WAY_OUT}"
    )
    assert told.section("test_raised", "Captured findings") is None
    assert told.text("test_nothing_is_left") == (
        f"write cost cannot be judged: write: no price is known for 'gemini-99'\n{WAY_OUT}"
    )
    assert "\nfindings warned of: unpriced 1\n" in ran.out
    # Where no price is known, none is compared.
    assert "MLflow's own cost" not in ran.out


OWN = """
import sys

import pytest
from app import SAILS, app


@pytest.mark.parametrize("run", range(3))
@pytest.mark.budget(cost="0.00292435")
def test_article(agent_trace, run):
    app.invoke(SAILS)
    # research: 1,863 x 0.10 + 1,671 x 1.00; write: 567 x 1.00 + 500 x 1.0001
    assert agent_trace.cost_by_node == {"research": D("0.0018573"), "write": D("0.00106705")}
    # Nobody has asked the table.
    assert "genai_prices" not in sys.modules


def test_no_cost_is_asked_for(agent_trace):
    app.invoke(SAILS)


def test_pinned_is_no_what_if(agent_trace):
    app.invoke(SAILS)
    # 2,430 x 0.10 + 2,171 x 0.40 by the table
    assert agent_trace.reprice("gemini-2.5-flash-lite").cost == D("0.0011114")
""".replace("import pytest\n", "import pytest\nfrom decimal import Decimal as D\n", 1)

FILE = """\
format: 1
models:
  gemini-2.5-flash:
    - input: 0.10
      output: 1.00
  gemini-99:
    - input: 1.00
      output: 1.0001
"""


def test_a_file_of_prices(project: Path) -> None:
    write_unpriced(project)
    (project / "test_own.py").write_text(OWN)
    (project / "prices.yaml").write_text(FILE)
    (project / "pytest.ini").write_text((project / "pytest.ini").read_text() + 'agenttrace_prices = "prices.yaml"\n')
    ran = run_pytest(project, "-p", "xdist", "-n", "2", env=environment())
    assert ran.code == 0, ran.out
    # MLflow has its own price of the one model, and none of the other: told once, with both numbers.
    lines = [line for line in ran.out.splitlines() if "MLflow" in line]
    # 150 x 0.10 + 1,171 x 1.00 here; 150 x 0.30 + 1,171 x 2.50 by MLflow
    told = ["MLflow's own cost of gemini-2.5-flash differs: $0.0029725 by MLflow, $0.001186 here (research)"]
    # MLflow before 3.10 has no costs.
    assert lines == (told if tuple(map(int, version("mlflow").split(".")[:2])) >= (3, 10) else [])


def test_recording_costs_what_the_file_says(project: Path) -> None:
    write_unpriced(project)
    (project / "test_again.py").write_text(
        "import pytest\nfrom app import SAILS, app\n\n"
        "@pytest.mark.agent_trace(cassette='app.yaml')\ndef test_it(agent_trace):\n    app.invoke(SAILS)\n"
    )
    (project / "prices.yaml").write_text(FILE)
    with GeminiServer(SCRIPT) as server:
        env = environment(key=True) | {"GOOGLE_GEMINI_BASE_URL": server.url}
        given = ("-o", "agenttrace_prices=prices.yaml", "--agenttrace-record")
        ran = run_pytest(project, *given, "--agenttrace-record-limit", "0.5", env=env)
    assert ran.code == 0, ran.out
    assert "agenttrace: recording 1 test; their last recording: 3 calls, $0.00292435\n" in ran.out
    assert "\nrecorded anew: 3 calls, $0.00292435\n" in ran.out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "agenttrace_prices: prices.yaml: no such file. Write it with: agenttrace prices lock"),
        (
            "format: 1\nmodels:\n  gemini-99:\n    - input: USD\n",
            "agenttrace_prices: prices.yaml:4: models.gemini-99[0].input is 'USD', not an amount of USD. "
            "Write it as 0.30.",
        ),
    ],
)
def test_a_bad_file_is_one_line_and_a_usage_error(project: Path, text: str | None, said: str) -> None:
    if text is not None:
        (project / "prices.yaml").write_text(text)
    ran = run_pytest(project, "-o", "agenttrace_prices=prices.yaml", env=environment())
    assert (ran.code, ran.out, ran.err.strip()) == (4, "", f"ERROR: {said}")
