"""The seed of a store: what it wrote is in every test's store as if just made, and what a test changes is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pytest_agenttrace.store import StoreError, StoreFactory
from tests.projects import cassette_fixture, environment, project_fixture, run_pytest

__all__ = ["cassette_fixture", "project_fixture"]


@pytest.fixture
def factory(tmp_path: Path) -> Iterator[StoreFactory]:
    with closing(StoreFactory(tmp_path / "stores")) as opened:
        yield opened


def test_what_a_seed_wrote_is_in_every_store(factory: StoreFactory) -> None:
    import mlflow
    import mlflow.artifacts

    calls: list[str] = []

    def seed() -> None:
        calls.append(mlflow.get_tracking_uri())
        mlflow.genai.register_prompt(name="writer", template="Write {{words}} words")
        mlflow.set_experiment("golden")
        with mlflow.start_run(run_name="reference"):
            mlflow.log_param("words", 300)
            mlflow.log_text("read me", "notes.txt")
            mlflow.trace(lambda: 1, name="seeded")()

    ids: set[str] = set()
    for name in ("first", "second"):
        with factory.open(name, seed=seed) as opened:
            assert calls == [opened.uri]
            assert mlflow.genai.load_prompt("prompts:/writer/1").template == "Write {{words}} words"
            with pytest.raises(Exception, match=r"version=2|version 2"):
                mlflow.genai.load_prompt("prompts:/writer/2")
            mlflow.genai.register_prompt(name="writer", template=f"of {name}")
            assert mlflow.genai.load_prompt("prompts:/writer@latest").template == f"of {name}"
            golden = mlflow.get_experiment_by_name("golden")
            assert golden is not None
            (run,) = mlflow.search_runs([golden.experiment_id], output_format="list")
            assert (run.data.params, run.info.run_name) == ({"words": "300"}, "reference")
            assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/notes.txt") == "read me"
            assert opened.traces() == []
            ids.add(opened.experiment_id)
            mlflow.trace(lambda: 1, name="of the test")()
            assert [span.name for span in opened.spans()] == ["of the test"]
            # What a test logs to a seeded experiment goes to its own folder.
            mlflow.set_experiment("golden")
            with mlflow.start_run():
                assert mlflow.get_artifact_uri().startswith(opened.artifacts.as_uri())
    assert len(ids) == 2
    with factory.open("unseeded") as opened, pytest.raises(Exception, match="writer"):
        mlflow.genai.load_prompt("prompts:/writer/1")
    assert len(calls) == 1


def test_each_function_seeds_a_template_of_its_own(factory: StoreFactory) -> None:
    import mlflow

    def seeds(name: str) -> None:
        mlflow.create_experiment(name)

    def one() -> None:
        seeds("one")

    def two() -> None:
        seeds("two")

    for function in (one, two, one):
        with factory.open(function.__name__, seed=function):
            found = {experiment.name for experiment in mlflow.search_experiments()}
            assert found == {"Default", "mlflow_seed", "pytest-agenttrace", function.__name__}


def test_what_is_no_seed_is_told(factory: StoreFactory) -> None:
    def generated() -> Iterator[None]:
        yield

    async def later() -> None:
        pass

    out = "\n  Return a function that writes: def seed(): mlflow.genai.register_prompt(...)"
    for given, wrong in (
        ([1], "mlflow_seed is a list, no function"),
        (generated, "mlflow_seed is a generator function, which would not run"),
        (later, "mlflow_seed is an async function, which would not run"),
    ):
        seed: Any = given
        with pytest.raises(StoreError) as caught, factory.open("test", seed=seed):
            pass
        assert str(caught.value) == wrong + out


def test_a_seed_speaks_to_loopback_only(factory: StoreFactory) -> None:
    import socket

    def dials() -> None:
        socket.create_connection(("192.0.2.1", 80), timeout=1)

    with pytest.raises(StoreError) as caught, factory.open("test", seed=dials):
        pass
    assert "connection to 192.0.2.1:80 (connect) refused: a seed speaks to loopback only" in str(caught.value)


def test_no_prompt_of_one_test_is_given_to_the_next(factory: StoreFactory) -> None:
    import mlflow

    with factory.open("first"):
        mlflow.genai.register_prompt(name="writer", template="one")
        assert mlflow.genai.load_prompt("prompts:/writer@latest").template == "one"
        assert mlflow.genai.load_prompt("prompts:/writer/1").template == "one"
    with factory.open("second"), pytest.raises(Exception, match="writer"):
        mlflow.genai.load_prompt("prompts:/writer/1")


def test_a_seed_that_fails_is_told_each_time_and_called_once(factory: StoreFactory) -> None:
    calls: list[int] = []

    def seed() -> None:
        calls.append(1)
        raise KeyError("no such prompt")

    for name in ("first", "second"):
        with pytest.raises(StoreError) as caught, factory.open(name, seed=seed):
            pass
        first, where, last = str(caught.value).splitlines()
        assert first == "mlflow_seed failed: KeyError: 'no such prompt'"
        assert where.endswith(': raise KeyError("no such prompt")')
        assert "test_seeding.py:" in where
        assert last == "  No test that needs it can run."
    assert calls == [1]
    with factory.open("another test") as opened:
        assert opened.spans() == ()


def test_a_seed_costs_each_test_next_to_nothing(factory: StoreFactory) -> None:
    import mlflow

    def seed() -> None:
        for number in range(10):
            mlflow.genai.register_prompt(name=f"prompt-{number}", template="x" * 10_000)

    def fastest(given: object) -> float:
        times = []
        for number in range(12):
            begun = time.perf_counter()
            with factory.open(f"{number}", seed=seed if given else None):
                times.append(time.perf_counter() - begun)
        return min(times)

    empty, seeded = fastest(None), fastest(seed)
    print(f"empty {empty * 1000:.1f} ms, seeded {seeded * 1000:.1f} ms")  # noqa: T201  # shown with -rP
    assert seeded < 3 * empty + 0.01


CONFTEST = """
import os
import pytest


@pytest.fixture(scope="session")
def mlflow_seed(tmp_path_factory):
    def seed():
        import mlflow

        with open("seeds.txt", "a") as file:
            print(os.environ.get("PYTEST_XDIST_WORKER", "main"), file=file)
        mlflow.genai.register_prompt(name="writer", template="Write {{words}} words on {{topic}}")

    return seed


@pytest.fixture
def agenttrace_config():
    return {"cassette": "app.yaml"}
"""

TESTS = """
import mlflow
import pytest
from app import SAILS, graph, model


def write(state):
    prompt = mlflow.genai.load_prompt("prompts:/writer/1")
    return {"article": model().invoke(prompt.format(words=300, topic=state["topic"])).content}


@pytest.mark.parametrize("number", range(4))
def test_a_prompt_of_the_registry_in_a_node(agent_trace, number):
    graph(write).invoke(SAILS)
    assert agent_trace.trajectory == ["research", "write"]
    assert agent_trace["write"].tokens == 1067
    mlflow.genai.register_prompt(name="writer", template=str(number))
"""


@pytest.mark.parametrize("xdist", [False, True], ids=["", "xdist"])
def test_a_seed_of_a_project(project: Path, xdist: bool) -> None:
    (project / "conftest.py").write_text(CONFTEST)
    (project / "test_prompts.py").write_text(TESTS)
    plugins = ("pytest_agenttrace.plugin", *(("xdist",) if xdist else ()))
    more = ("-n", "2") if xdist else ()
    ran = run_pytest(project, "-q", "-o", "filterwarnings=", *more, env=environment(), plugins=plugins)
    assert ran.code == 0, ran.out
    seeds = sorted((project / "seeds.txt").read_text().split())
    assert seeds == (["gw0", "gw1"] if xdist else ["main"])


def test_a_seed_of_a_project_that_fails(project: Path) -> None:
    (project / "conftest.py").write_text(CONFTEST.replace('template="Write', 'tmpl="Write'))
    (project / "test_prompts.py").write_text(TESTS + "\n\ndef test_without(tmp_path):\n    pass\n")
    ran = run_pytest(project, "-q", "-o", "filterwarnings=", env=environment())
    assert ran.code == 1
    assert "4 errors" in ran.out
    assert "1 passed" in ran.out
    assert ran.out.count("\nmlflow_seed failed: TypeError: register_prompt() ") == 4
    assert "\n  conftest.py:13: mlflow.genai.register_prompt(name=" in ran.out
    assert "Traceback" not in ran.out
