"""What a traced test costs: `python -m tests.benchmarks.bench`.

One graph of two nodes, one cassette, three ways to run it, each in a process of its own: (a) vcrpy alone, mlflow
never imported; (b) what the `agent_trace` fixture composes, one reading of tokens and the judging at the end
included; (c) the recipe of today: a fresh SQLite store, autolog, vcrpy, the public flush, search_traces. The parent
asks for one round of each in turn, so that whatever else the machine does hits all three alike.

The models are built once, before the clock starts, as applications do. Times are milliseconds, medians of a run.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import yaml

if TYPE_CHECKING:
    from langgraph.graph.state import CompiledStateGraph

    from pytest_agenttrace import GeminiServer

ROUNDS = 30
RECIPE_EVERY = 10
INTERPRETERS = 3
MODEL = "gemini-2.5-flash"
TOKENS = 69
FIRST_ATTEMPT = "a first attempt stood at 8 times bare replay and 1/51 of the recipe"

# Milliseconds by the name of what took them, in the order it happened.
Times = dict[str, float]
# One round in a worker; what it returns is printed.
Round = Callable[[], Times]


class State(TypedDict):
    topic: str
    notes: str
    article: str


def build_graph(base_url: str | None = None) -> CompiledStateGraph[State]:
    """`research` -> `write`, a call to Gemini each."""
    from langchain_google_genai import ChatGoogleGenerativeAI
    from langgraph.graph import END, START, StateGraph

    model = ChatGoogleGenerativeAI(model=MODEL, api_key="none-is-needed", base_url=base_url)

    def research(state: State) -> dict[str, object]:
        return {"notes": model.invoke(f"Collect facts on {state['topic']}.").content}

    def write(state: State) -> dict[str, object]:
        return {"article": model.invoke(f"Write an article from these facts: {state['notes']}").content}

    graph = StateGraph(State)
    graph.add_node("research", research)
    graph.add_node("write", write)
    graph.add_edge(START, "research")
    graph.add_edge("research", "write")
    graph.add_edge("write", END)
    return graph.compile()


QUESTION: State = {"topic": "solar sails", "notes": "", "article": ""}


def scripted_server() -> GeminiServer:
    from pytest_agenttrace import GeminiServer, Reply

    return GeminiServer(
        [
            Reply("Light has momentum.", usage={"promptTokenCount": 9, "candidatesTokenCount": 20}),
            Reply("Sails of light.", usage={"promptTokenCount": 30, "candidatesTokenCount": 10}),
        ]
    )


def record(cassette: Path) -> None:
    """The cassette of all three ways, through the plugin's own way of recording."""
    from pytest_agenttrace.replay import Opening, open_cassette

    with scripted_server() as server, open_cassette(cassette, Opening(mode="record")):
        build_graph(server.url).invoke(QUESTION)


class Clock:
    """Laps in milliseconds; a lap that is timed twice adds up."""

    def __init__(self) -> None:
        self.laps: Times = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + (now - self._last) * 1000
        self._last = now


# The three ways. Each gives the function that runs one round.


def as_vcrpy(cassette: Path) -> Path:
    """The same exchanges as plain vcrpy writes them, bodies as text: the ways without the plugin read these."""
    return cassette.with_name("vcrpy.yaml")


def write_for_vcrpy(cassette: Path) -> None:
    from pytest_agenttrace.replay import read_recordings

    exchanges = [
        {
            "request": {"method": "POST", "uri": entry.request.url, "body": entry.request.body.decode(), "headers": {}},
            "response": {
                "status": {"code": entry.status, "message": entry.reason},
                "headers": {name: list(values) for name, values in entry.headers.items()},
                "body": {"string": entry.reply.decode()},
            },
        }
        for entry in read_recordings(cassette) or ()
    ]
    as_vcrpy(cassette).write_text(yaml.safe_dump({"version": 1, "interactions": exchanges}))


def bare(cassette: Path, folder: Path) -> Round:
    from vcr import VCR  # type: ignore[import-untyped]  # vcrpy has no types

    app = build_graph()

    def round_() -> Times:
        clock = Clock()
        with VCR(record_mode="none").use_cassette(str(as_vcrpy(cassette))):
            clock.lap("open")
            app.invoke(QUESTION)
            clock.lap("invoke")
        clock.lap("close")
        _never_imported("mlflow")
        return clock.laps

    return round_


def _never_imported(name: str) -> None:
    if name in sys.modules:
        raise RuntimeError(f"{name} has been imported: this is no bare replay")


def traced(cassette: Path, folder: Path) -> Round:
    """As plugin.py composes it: store, cassette, live trace, a reading, the judging of findings."""
    from contextlib import ExitStack

    from pytest_agenttrace.capture import AgentTrace, judge
    from pytest_agenttrace.replay import open_cassette
    from pytest_agenttrace.settings import Tolerance
    from pytest_agenttrace.store import StoreFactory

    app, factory = build_graph(), StoreFactory(folder)

    def round_() -> Times:
        clock = Clock()
        with ExitStack() as stack:
            store = stack.enter_context(factory.open("bench"))
            clock.lap("open store")
            with open_cassette(cassette) as tape:
                trace = AgentTrace(store, tape)
                clock.lap("open cassette")
                app.invoke(QUESTION)
                clock.lap("invoke")
                store.drain()
                clock.lap("drain")
                _check(int(trace.tokens))
                clock.lap("read")
                verdict = judge(trace, tape, store, tolerance=Tolerance())
                clock.lap("judge")
            clock.lap("close cassette")
        clock.lap("close store")
        if verdict.failures:
            raise RuntimeError(verdict.text)
        return clock.laps

    return round_


def recipe(cassette: Path, folder: Path) -> Round:
    """What teams write today, once for each test; told to leave prices and telemetry alone, or it dials."""
    # The plugin's setting, not the teams'; MLflow 3.17 complains at exit where it is set.
    os.environ.pop("MLFLOW_TRACE_USE_ISOLATED_RANDOM_ID_GENERATOR", None)
    import mlflow
    from vcr import VCR

    app = build_graph()
    numbers = iter(range(1_000_000))

    def round_() -> Times:
        fresh = folder / f"test-{next(numbers)}"
        fresh.mkdir()
        os.chdir(fresh)  # MLflow's artifacts go where the process stands
        clock = Clock()
        mlflow.set_tracking_uri(f"sqlite:///{fresh}/mlflow.db")
        experiment = mlflow.set_experiment("test").experiment_id
        mlflow.langchain.autolog()
        clock.lap("open store")
        with VCR(record_mode="none").use_cassette(str(as_vcrpy(cassette))):
            clock.lap("open cassette")
            app.invoke(QUESTION)
            clock.lap("invoke")
        clock.lap("close cassette")
        mlflow.flush_trace_async_logging()
        clock.lap("flush")
        found = mlflow.search_traces(locations=[experiment], return_type="list")
        clock.lap("search_traces")
        _check(_spans_total(found))
        return clock.laps

    return round_


def _spans_total(traces: Iterable[Any]) -> int:
    usages = [span.attributes.get("mlflow.chat.tokenUsage") for trace in traces for span in trace.data.spans]
    return sum(usage["total_tokens"] for usage in usages if usage is not None)


def _check(tokens: int) -> None:
    if tokens != TOKENS:
        raise RuntimeError(f"{tokens} tokens were counted, not {TOKENS}")


WAYS: Mapping[str, Callable[[Path, Path], Round]] = {"a": bare, "b": traced, "c": recipe}


def runnable() -> list[str]:
    """MLflow before 3.12 asks, in its own autolog, for a `langchain` that LangGraph no longer needs."""
    recent = tuple(map(int, version("mlflow").split(".")[:2])) >= (3, 12)
    return list("abc" if recent or importlib.util.find_spec("langchain") else "ab")


# Workers.


def _quiet() -> None:
    """What the plugin sets when pytest starts; the workers and the measured imports inherit it."""
    from pytest_agenttrace.environment import quiet_environment

    quiet_environment()
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def _serve(way: str, cassette: Path, folder: Path, pipe: Connection) -> None:
    """A worker: set up, run a first round, then one for each request, until the parent hangs up.

    The recipe has no first round: among a median's three, the one that also imports does not count.
    """
    import logging

    logging.disable(logging.INFO)
    start = time.perf_counter()
    round_ = WAYS[way](cassette, folder)
    fixed = {"set up": (time.perf_counter() - start) * 1000}
    if way != "c":
        fixed["first round"] = sum(round_().values())
    pipe.send(fixed)
    with suppress(EOFError):
        while pipe.recv():
            pipe.send(round_())


@dataclass
class Worker:
    """The parent's end: asks for rounds, keeps what they took."""

    way: str
    pipe: Connection
    fixed: Times = field(default_factory=dict)
    rounds: list[Times] = field(default_factory=list)

    def run(self) -> None:
        self.pipe.send(True)
        self.rounds.append(self.pipe.recv())

    @property
    def total(self) -> float:
        return statistics.median(sum(times.values()) for times in self.rounds)

    def medians(self) -> Times:
        return {name: statistics.median(times[name] for times in self.rounds) for name in self.rounds[0]}


@contextmanager
def workers(cassette: Path, folder: Path) -> Iterator[dict[str, Worker]]:
    """A process for each way, set up one after the other."""
    spawn = multiprocessing.get_context("spawn")
    started: dict[str, Worker] = {}
    processes = []
    try:
        for way in runnable():
            here, there = spawn.Pipe()
            own = folder / way
            own.mkdir()
            process = spawn.Process(target=_serve, args=(way, cassette, own, there), daemon=True)
            process.start()
            there.close()
            processes.append(process)
            started[way] = Worker(way, here)
            started[way].fixed = here.recv()
        yield started
    finally:
        for worker in started.values():
            worker.pipe.close()
        for process in processes:
            process.join(timeout=5)
            process.terminate()


# Fixed costs.


IMPORTED = {
    "the plugin": "import pytest_agenttrace.plugin",
    "langgraph, langchain-google-genai": "import langgraph.graph, langchain_google_genai",
    "vcrpy": "import vcr",
    "mlflow, its langchain autolog": "import mlflow.langchain.langchain_tracer",
    "genai-prices": "import genai_prices",
}


def import_times() -> Times:
    """One import after the other beside pytest, in fresh interpreters: what each adds to those before it."""
    lines = ["import pytest, time", "t = [time.perf_counter()]"]
    for statement in IMPORTED.values():
        lines += [statement, "t.append(time.perf_counter())"]
    lines.append("print(*[(b - a) * 1000 for a, b in zip(t, t[1:])])")
    command = [sys.executable, "-W", "ignore", "-c", "\n".join(lines)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(INTERPRETERS)]
    laps = zip(*(map(float, run.stdout.splitlines()[-1].split()) for run in runs), strict=True)
    return dict(zip(IMPORTED, map(statistics.median, laps), strict=True))


def store_times(folder: Path) -> Times:
    """What is paid once for a machine and once for a process, MLflow being imported already."""
    import mlflow.langchain  # noqa: F401  # imported before the clock starts

    from pytest_agenttrace.store import StoreFactory

    clock = Clock()
    for name, directory in (("template made, in an empty cache", "one"), ("template found there", "two")):
        factory = StoreFactory(folder / directory, cache=folder / "cache")
        clock.lap("")
        database = factory.database
        clock.lap(name)
        with factory.open("bench"):
            clock.lap(f"first store opened, {name.split(',')[0]}")
        database.close()
    del clock.laps[""]
    return clock.laps


# Exchanges: what one costs in a cassette of few and of many.


SIZES = (10, 1_000, 10_000)
NEAREST_KB = 18


def write_cassette(path: Path, count: int) -> None:
    """As a recording writes it, one exchange in `count` variations: writing all of them would take longest."""
    from pytest_agenttrace.replay.cassette import Interaction
    from pytest_agenttrace.replay.writing import save_cassette

    reply = b'{"candidates": [{"content": {"parts": [{"text": "answer NUMBER"}], "role": "model"}}]}'
    headers = {"content-type": ["application/json"], "date": ["Fri, 01 Aug 2025 12:00:00 GMT"]}
    save_cassette(path, [Interaction("POST", EXCHANGE_URL, exchange_body("NUMBER"), 200, reply, "OK", {}, headers)], {})
    head, mark, one = path.read_text().partition("interactions:\n")
    with path.open("w") as file:
        file.write(head + mark)
        for number in range(count):
            file.write(one.replace("NUMBER", str(number)))


EXCHANGE_URL = f"https://generativelanguage.googleapis.com/v1beta/models/{MODEL}:generateContent"


def exchange_body(number: object, words: int = 100) -> bytes:
    text = f"{'word ' * words}{number}{' and more' * words}"
    return f'{{"contents": [{{"role": "user", "parts": [{{"text": "{text}"}}]}}]}}'.encode()


def exchange_times(folder: Path) -> dict[int, Times]:
    """Microseconds of an exchange: to load it, and to replay it through httpx, in shuffled order; medians."""
    import random

    import httpx

    from pytest_agenttrace.replay import open_cassette
    from pytest_agenttrace.replay.matching import read_recordings

    found: dict[int, Times] = {}
    with httpx.Client() as client:
        for count in SIZES:
            laps: list[tuple[float, float]] = []
            numbers = random.Random(count).sample(range(count), count)
            for again in range(max(3, min(30, 3_000 // count))):
                path = folder / f"{count}-{again}.yaml"  # a name of its own: nothing is parsed yet
                write_cassette(path, count)
                start = time.perf_counter()
                read_recordings(path)
                loaded = time.perf_counter()
                with open_cassette(path) as tape:
                    opened = time.perf_counter()
                    for number in numbers:
                        client.post(EXCHANGE_URL, content=exchange_body(number))
                    replayed = time.perf_counter()
                laps.append((loaded - start, replayed - opened))
                if tape.unused or len(tape.calls) != count:
                    raise RuntimeError("an exchange was lost")
            load, replay = (statistics.median(times) * 1e6 / count for times in zip(*laps, strict=True))
            found[count] = {"load": load, "replay": replay}
    return found


def nearest_time(count: int) -> float:
    """Milliseconds to word the miss of a request among `count` of 18 KB; of three the median."""
    from pytest_agenttrace.replay.cassette import Interaction
    from pytest_agenttrace.replay.matching import Recorded, Recordings, read_request

    stored = Interaction("POST", EXCHANGE_URL, b"", 200, b"{}")
    words = NEAREST_KB * 1024 // 14
    asked = [read_request("POST", EXCHANGE_URL, exchange_body(number, words)) for number in range(count)]
    entries = [Recorded(number, one, 200, "OK", {}, b"{}", None, None, stored) for number, one in enumerate(asked, 1)]
    tape, times = Recordings(entries, "body"), []
    for number in (3, count // 2, count - 3):
        changed = exchange_body(f"{number} but once", words)
        start = time.perf_counter()
        said, _ = tape.nearest(read_request("POST", EXCHANGE_URL, changed))
        times.append((time.perf_counter() - start) * 1000)
        if said is None or "differs at contents" not in said:
            raise RuntimeError(f"the nearest was not found: {said}")
    return statistics.median(times)


def print_exchanges(exchanges: Mapping[int, Times], nearest: float) -> None:
    first, last = SIZES[0], SIZES[-1]
    say("\nan exchange in a cassette of that many, microseconds, medians")
    for name in ("load", "replay"):
        row = "".join(f"{count:>9,}: {exchanges[count][name]:>7,.0f}" for count in SIZES)
        say(f"  {name:<8}{row}    {last:,} / {first} = {exchanges[last][name] / exchanges[first][name]:.2f}")
    say(f"  the nearest of {last:,} requests of {NEAREST_KB} KB, milliseconds: {nearest:,.0f}")


# The report.


def main() -> None:
    start = time.perf_counter()
    _quiet()
    with tempfile.TemporaryDirectory(prefix="agenttrace-bench-") as name:
        folder = Path(name)
        cassette = folder / "cassette.yaml"
        record(cassette)
        write_for_vcrpy(cassette)
        with workers(cassette, folder) as ways:
            for number in range(ROUNDS):
                ways["a"].run()
                ways["b"].run()
                if number % RECIPE_EVERY == RECIPE_EVERY - 1 and "c" in ways:
                    ways["c"].run()
        print_ways(ways)
        print_fixed(ways, store_times(folder))
        print_exchanges(exchange_times(folder), nearest_time(SIZES[-1]))
    say(f"\n{time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def print_ways(ways: Mapping[str, Worker]) -> None:
    names = {"a": "bare vcrpy replay, no MLflow", "b": "with agent_trace", "c": "today's recipe"}
    say(f"a test of two nodes, milliseconds, medians of {ROUNDS} rounds (c: {ROUNDS // RECIPE_EVERY})")
    for way, worker in ways.items():
        say(f"  ({way}) {names[way]:<32}{worker.total:>10,.1f}")
    ratios = [f"b / a = {ways['b'].total / ways['a'].total:.1f}"]
    if "c" in ways:
        ratios.append(f"b / c = 1/{ways['c'].total / ways['b'].total:.0f}")
    else:
        say(f"  (c) {names['c']:<32}not run: the autolog of mlflow {version('mlflow')} needs the package langchain")
    say(f"  {'    '.join(ratios)}    ({FIRST_ATTEMPT})")
    for way, worker in ways.items():
        say(f"\n({way}) by part")
        for name, value in worker.medians().items():
            say(f"  {name:<38}{value:>10,.1f}")


def print_fixed(ways: Mapping[str, Worker], store: Times) -> None:
    say(f"\nfixed costs, milliseconds (imports: medians of {INTERPRETERS} fresh interpreters)")
    for name, value in import_times().items():
        say(f"  {f'import {name}':<45}{value:>10,.1f}")
    for name, value in store.items():
        say(f"  {name:<45}{value:>10,.1f}")
    say(f"  {'first test of a process, imports included':<45}{sum(ways['b'].fixed.values()):>10,.1f}")


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # a command's output


if __name__ == "__main__":
    main()
