"""One run, many tests: `agent_run` in fixtures of a class, a module and a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.projects import (
    ARTICLE,
    Told,
    cassette_fixture,
    environment,
    inner,
    marked,
    project_fixture,
    run_pytest,
    shared_fixture,
    told_fixture,
)

__all__ = ["cassette_fixture", "project_fixture", "shared_fixture", "told_fixture"]

RUN = """
@pytest.fixture(scope="module")
def article(agent_run):
    with agent_run("app.yaml") as trace:
        app.invoke(SAILS)
        assert trace.trajectory == ["research", "write"]
    return trace
"""


@inner(
    RUN
    + """
runs = []


@pytest.fixture(scope="class")
def of_a_class(agent_run, request):
    with agent_run(allow=["unused"]) as trace:
        app.invoke(SAILS)
    runs.append(request.node.name)
    return trace


def test_one(article):
    assert article.tokens == 4601
    assert str(article["write"].cost) == "0.0014201"


@pytest.mark.budget(tokens=5000)
@pytest.mark.budget("write", cost="0.002", llm_calls=1)
def test_within_its_budget(article):
    assert article.calls[0].node == "research"


@pytest.mark.budget("research", tokens=2000)
@pytest.mark.budget(cost="0.001")
def test_over_budget(article):
    pass


@pytest.mark.budget("edit", tokens=1)
def test_no_such_node(article):
    pass


def test_asserts(article):
    assert article.trajectory == ["write"]


def test_its_own_run_beside(agent_trace, article):
    app.invoke(SAILS)
    assert agent_trace.tokens == article.tokens


@pytest.mark.budget(tokens=10)
def test_a_budget_of_its_own_run(agent_trace, article):
    app.invoke(SAILS)


class TestFirst:
    def test_a(self, of_a_class):
        assert of_a_class.tokens == 4601

    def test_b(self, of_a_class):
        assert runs == ["TestFirst"]


class TestSecond:
    def test_c(self, of_a_class):
        assert runs == ["TestFirst", "TestSecond"]


@pytest.mark.budget(tokens=10)
def test_two_runs(article, of_a_class):
    pass


@pytest.fixture(scope="class")
def twice(agent_run):
    for _ in "12":
        with agent_run("app.yaml", allow=["unused"]) as trace:
            app.invoke(SAILS)
    return trace


@pytest.mark.budget(tokens=10)
def test_two_blocks(twice):
    pass


@pytest.mark.budget(tokens=10)
def test_no_run(agent_run):
    pass


def test_in_a_test(agent_run):
    with agent_run("app.yaml"):
        pass
"""
)
def test_a_run_of_a_module_and_of_a_class(told: Told) -> None:
    assert told.outcomes == {
        "test_one": "passed",
        "test_within_its_budget": "passed",
        "test_over_budget": "failed",
        "test_no_such_node": "failed",
        "test_asserts": "failed",
        "test_its_own_run_beside": "passed",
        "test_a_budget_of_its_own_run": "failed",
        "TestFirst::test_a": "passed",
        "TestFirst::test_b": "passed",
        "TestSecond::test_c": "passed",
        "test_two_runs": "failed",
        "test_two_blocks": "failed",
        "test_no_run": "failed",
        "test_in_a_test": "failed",
    }
    assert told.text("test_over_budget") == (
        "run $0.0061565 > $0.001 (+$0.0051565)\nresearch 3,534 tokens > 2,000 (+1,534)"
    )
    assert told.section("test_over_budget", "Captured trace") == marked("research", "article_writer")
    assert told.text("test_no_such_node").startswith("budget: ")
    assert told.section("test_asserts", "Captured trace") == ARTICLE
    assert told.text("test_a_budget_of_its_own_run") == "run 4,601 tokens > 10 (+4,591)"
    assert told.section("test_a_budget_of_its_own_run", "Captured trace") == marked("article_writer")
    assert told.section("test_a_budget_of_its_own_run", "Captured trace of article") == ARTICLE
    assert told.text("test_two_runs") == "budget: which of its runs is meant? (article, of_a_class)"
    assert told.text("test_two_blocks") == "budget: which of its runs is meant? (twice: 2 runs)"
    assert told.text("test_no_run") == "budget: no run: its fixtures held none"
    assert told.text("test_in_a_test") == (
        "agent_run is for fixtures of a class, a module or a session: a test takes agent_trace"
    )


@inner("""
@pytest.fixture(scope="module")
def missed(agent_run):
    with agent_run("app.yaml") as trace:
        app.invoke(SAILS | {"words": 400})
    return trace


@pytest.fixture(scope="module")
def swallowed(agent_run):
    with agent_run("app.yaml"):
        try:
            app.invoke(SAILS | {"words": 400})
        except BaseException:
            pass


@pytest.fixture(scope="module")
def broken(agent_run):
    with agent_run("app.yaml"):
        app.invoke(SAILS)
        raise KeyError("mine")


@pytest.fixture(scope="module")
def empty(agent_run):
    with agent_run("app.yaml", allow=["unused"]):
        pass


@pytest.fixture(scope="module")
def mistaken(agent_run):
    with agent_run("app.yaml", alow=["unused"]):
        pass


@pytest.fixture(scope="module")
def left_open(agent_run):
    with agent_run("app.yaml") as trace:
        app.invoke(SAILS)
        yield trace


@pytest.mark.parametrize("number", [1, 2])
def test_missed(missed, number):
    pass


def test_swallowed(swallowed):
    pass


def test_broken(broken):
    pass


def test_empty(empty):
    pass


def test_mistaken(mistaken):
    pass


def test_left_open(left_open):
    assert left_open.tokens == 4601
""")
def test_a_run_that_fails_is_an_error_of_each_of_its_tests(told: Told) -> None:
    assert told.outcomes == {
        "test_missed[1]": "setup error",
        "test_missed[2]": "setup error",
        "test_swallowed": "setup error",
        "test_broken": "setup error",
        "test_empty": "setup error",
        "test_mistaken": "setup error",
        "test_left_open": "passed",
    }
    file = "test_a_run_that_fails_is_an_error_of_each_of_its_tests.py"
    missed = (
        "CassetteMiss: write, call 3: no recorded reply\n"
        "  POST gemini-2.5-flash:generateContent\n"
        "  nearest recorded: call 3, differs at contents[0].parts[0].text:\n"
        "    Write [-300-]{+400+} words on solar sails\n"
        "  If the prompt changed on purpose, record again:\n"
        f"    pytest {file} --agenttrace-record"
    )
    assert told.text("test_missed[1]") == told.text("test_missed[2]") == told.text("test_swallowed") == missed
    for name in ("test_missed[1]", "test_missed[2]"):
        tree = told.section(name, "Captured trace")
        assert tree is not None
        assert "! └─ write" in tree
    assert told.errors("test_broken") == "KeyError: 'mine'"
    assert "scoped.py" not in told.text("test_broken")
    assert told.section("test_broken", "Captured trace") == ARTICLE
    assert told.text("test_empty").startswith("nothing was traced: no graph, chain or model ran\n")
    assert told.text("test_mistaken").startswith("agent_run: unknown key 'alow'; did you mean 'allow'?")


PROJECT = """
import pytest
from app import SAILS, app


@pytest.fixture(scope="module")
def article(agent_run):
    with agent_run() as trace:
        app.invoke(SAILS)
    with open("runs.txt", "a") as file:
        print("run", file=file)
    return trace


def test_tokens(article):
    assert article.tokens == 4601


@pytest.mark.budget(tokens=5_000)
def test_nodes(article):
    assert article.trajectory == ["research", "write"]


class TestMore:
    def test_cost(self, article):
        assert str(article.cost) == "0.0061565"

    def test_own(self, agent_trace):
        app.invoke(SAILS)
"""
PLAIN = "import pytest\n\n\n@pytest.fixture\ndef agenttrace_config(tmp_path):\n    return {'warn': ['unused']}\n"


def runs(project: Path) -> int:
    return len((project / "runs.txt").read_text().split())


def test_a_run_has_a_cassette_of_its_own_and_is_recorded_and_told(project: Path, cassette: str) -> None:
    (project / "conftest.py").write_text(PLAIN)
    (project / "test_article.py").write_text(PROJECT)
    own = project / "cassettes" / "test_article" / "article.yaml"
    missed = run_pytest(project, "-q", "-o", "filterwarnings=", env=environment())
    assert "pytest test_article.py --agenttrace-record" in missed.out
    own.parent.mkdir(parents=True)
    own.write_text(cassette)
    ran = run_pytest(project, "-q", "-o", "filterwarnings=", "-k", "not test_own", env=environment())
    assert ran.code == 0, ran.out
    assert runs(project) == 1
    # One reply more than is asked for: warned of by the project's settings, of a narrower scope than the run's.
    text = cassette.replace("Write 300", "Write 3000")
    own.write_text(cassette + text[text.index("interactions:\n") + len("interactions:\n") :])
    warned = run_pytest(project, "-o", "filterwarnings=", "-k", "not test_own", env=environment())
    assert warned.code == 0, warned.out
    assert "findings warned of: unused 3" in warned.out


@pytest.mark.parametrize("how", [("-n", "2"), ("-n", "2", "--dist", "loadfile"), ("-n", "2", "--dist", "loadscope")])
def test_a_run_under_xdist(project: Path, how: tuple[str, ...]) -> None:
    (project / "test_article.py").write_text(PROJECT.replace("agent_run()", 'agent_run("app.yaml")'))
    plugins = ("pytest_agenttrace.plugin", "xdist")
    ran = run_pytest(project, "-q", "-o", "filterwarnings=", *how, env=environment(), plugins=plugins)
    assert ran.code == 0, ran.out
    assert runs(project) == (2 if len(how) == 2 else 1 if "loadfile" in how else runs(project))


def test_a_run_is_made_once_where_a_test_is_run_again(project: Path) -> None:
    flaky = """

tries = []


def test_flaky(article):
    tries.append(article.tokens)
    assert len(tries) == 2
"""
    (project / "test_article.py").write_text(PROJECT.replace("agent_run()", 'agent_run("app.yaml")') + flaky)
    plugins = ("pytest_agenttrace.plugin", "rerunfailures")
    ran = run_pytest(project, "-q", "-o", "filterwarnings=", "--reruns", "1", env=environment(), plugins=plugins)
    assert ran.code == 0, ran.out
    assert "1 rerun" in ran.out
    assert runs(project) == 1


SCRIPTED = """
import pytest
from app import SAILS, app
from pytest_agenttrace import GeminiServer, Reply


@pytest.fixture(scope="session")
def article(agent_run):
    server = GeminiServer()
    server.reply(Reply("Notes.", usage={"promptTokenCount": 3, "candidatesTokenCount": 4}), node="research")
    server.reply(Reply("An article."), node="write")
    with agent_run("article.yaml", server=server) as trace:
        app.invoke(SAILS)
    return trace


def test_one(article):
    assert article["research"].tokens == 14


def test_two(article):
    assert [call.caller.node for call in article.calls] == ["research", "research", "write"]
"""


def test_a_run_beside_pytest_recording(project: Path) -> None:
    """Its fixture vcr_config is of a test's scope."""
    (project / "test_article.py").write_text(PROJECT.replace("agent_run()", 'agent_run("app.yaml")'))
    plugins = ("pytest_agenttrace.plugin", "pytest_recording.plugin")
    ran = run_pytest(project, "-q", "-o", "filterwarnings=", env=environment(), plugins=plugins)
    assert ran.code == 0, ran.out


def test_a_run_is_recorded_from_a_script(project: Path) -> None:
    (project / "conftest.py").write_text("")
    (project / "test_article.py").write_text(SCRIPTED)
    recorded = run_pytest(project, "-q", "-o", "filterwarnings=", "--agenttrace-record", env=environment())
    assert recorded.code == 0, recorded.out
    assert "recorded anew: 3 calls" in recorded.out
    assert "agenttrace: recording 2 tests" in recorded.out
    assert "origin: scripted server on loopback" in (project / "article.yaml").read_text()
    replayed = run_pytest(project, "-q", "-o", "filterwarnings=", "-p", "no:randomly", env=environment())
    assert replayed.code == 0, replayed.out
