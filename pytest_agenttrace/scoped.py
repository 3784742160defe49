"""Runs that many tests read: `agent_run`, for fixtures of a class, a module or a session.

A run is traced, replayed and judged when its block ends, by the fixture that holds it; what its tests assert, and their
budgets, are theirs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_agenttrace.collect import LIMITS, SESSION, failed_by, named_by_tests
from pytest_agenttrace.environment import dummy_key
from pytest_agenttrace.opening import fixture_value, hold_back, named_path, opening_of, own_path, price_of
from pytest_agenttrace.options import keep_of, max_age_of
from pytest_agenttrace.settings import Settings, SettingsError, read_settings
from pytest_agenttrace.testrun import Run

if TYPE_CHECKING:
    import os

    from pytest_agenttrace.budgets.limits import Limit, Overrun, Use
    from pytest_agenttrace.capture import AgentTrace
    from pytest_agenttrace.gemini_server import GeminiServer

# A fixture that is being set up: who asked for it, and the function that was written for it.
_Setup = tuple[pytest.FixtureDef[Any], pytest.FixtureRequest, Callable[..., object]]

__all__ = ["RUNS", "AgentRun", "Runs", "told_of"]


@dataclass(frozen=True, slots=True)
class _Place:
    """The fixture that holds a run: its name, its file, what it is set up for (a class, a module, ...), and where its
    tests may be."""

    fixture: str
    file: Path
    node: pytest.Item | pytest.Collector
    item: pytest.Item
    base: str

    @property
    def target(self) -> str:
        """What pytest runs to record it."""
        whole = isinstance(self.node, pytest.Session | pytest.Package)
        return self.item.nodeid if whole else self.node.nodeid

    @property
    def name(self) -> str:
        return f"{self.target}::{self.fixture}"

    @property
    def own_name(self) -> str:
        """The name of its own cassette, within that of its file."""
        inside = (pytest.Class, pytest.Item)
        return ".".join([*(node.name for node in self.node.listchain() if isinstance(node, inside)), self.fixture])

    @property
    def known_as(self) -> str:
        """A name that is the same in each of xdist's workers, whichever test was the first to ask."""
        return f"{self.base if isinstance(self.node, pytest.Session) else self.node.nodeid}::{self.fixture}".lstrip(":")


@dataclass
class _Held:
    """A run and who holds it."""

    place: _Place
    run: Run
    # The setting up of its fixture, and how many runs that has made so far.
    setup: object = None
    count: int = 1
    before: tuple[Run, ...] = ()
    about: dict[pytest.Item, tuple[str, ...]] = field(default_factory=dict)

    @property
    def known_as(self) -> str:
        """Its name in what the run as a whole says: in sums and in the ledger."""
        return self.place.known_as if self.count == 1 else f"{self.place.known_as} ({self.count})"

    def serves(self, item: pytest.Item) -> bool:
        name = self.place.fixture.partition("[")[0]
        return (
            name in getattr(item, "fixturenames", ())
            and self.place.node in item.listchain()
            and item.nodeid.startswith(self.place.base)
        )


class Runs:
    """The runs of one pytest process, and which fixture is being set up for which test: a plugin of pytest's."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, str], _Held] = {}
        self._untold: list[_Held] = []
        self._fixtures: list[_Setup] = []
        self._item: pytest.Item | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        __tracebackhide__ = True
        self._item = item
        return (yield)

    # First, since anyio puts a function of its own in the fixture's place while it is set up.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        __tracebackhide__ = True
        self._fixtures.append((fixturedef, request, fixturedef.func))
        try:
            return (yield)
        finally:
            self._fixtures.pop()

    def place(self) -> tuple[_Place, pytest.FixtureRequest]:
        """The fixture that is being set up. Fails a test that asks for a run itself."""
        if not self._fixtures or self._item is None:
            raise pytest.fail.Exception(
                "agent_run is for fixtures of a class, a module or a session: a test takes agent_trace", pytrace=False
            )
        fixture, request, function = self._fixtures[-1]
        # An async fixture's function is a wrapper of pytest-asyncio's.
        file = Path(inspect.unwrap(function).__code__.co_filename)
        name = fixture.argname + _parameter(request)
        return _Place(name, file, request.node, self._item, getattr(fixture, "baseid", "") or ""), request

    def begin(self, place: _Place, run: Run) -> None:
        # A parameter's run takes the place of the one before, as its value does.
        key, setup = (place.fixture.partition("[")[0], place.node.nodeid, place.base), self._fixtures[-1]
        before = self._held.get(key)
        if before is not None and before.setup is setup:
            self._held[key] = _Held(place, run, setup, before.count + 1, (*before.before, before.run))
        else:
            self._held[key] = _Held(place, run, setup)

    def end(self, place: _Place, run: Run) -> None:
        run.over = True
        self._untold.append(next((held for held in self._held.values() if held.run is run), _Held(place, run)))

    def of(self, item: pytest.Item) -> list[_Held]:
        """The runs that a test's fixtures hold; of two fixtures of one name, the closer one's."""
        found: dict[str, _Held] = {}
        for held in sorted(self._held.values(), key=lambda held: len(held.place.base)):
            if held.serves(item):
                found[held.place.fixture] = held
        return list(found.values())

    def judge(self, item: pytest.Item) -> tuple[tuple[Use, ...], str | None]:
        """What the run that a test reads used of the test's limits, and what its budgets say of that. Nothing where it
        has no limits, no run, or a run of its own."""
        limits = item.stash.get(LIMITS, None)
        names = getattr(item, "fixturenames", ())
        if not limits or "agent_trace" in names or "agent_run" not in names:
            return (), None
        from pytest_agenttrace.budgets.limits import unjudged

        runs = self.of(item)
        several = len(runs) != 1 or runs[0].count > 1
        if several and any(limit.demanded for limit in limits):
            held = ", ".join(
                run.place.fixture if run.count == 1 else f"{run.place.fixture}: {run.count} runs" for run in runs
            )
            why = f"which of its runs is meant? ({held})" if runs else "no run: its fixtures held none"
            return unjudged(limits), f"budget: {why}"
        uses: list[Use] = []
        texts: list[str] = []
        for one in runs:
            found, over = _weighed(limits, one)
            uses += found
            texts += [f"{overrun.text} in {one.place.fixture}" if several else overrun.text for overrun in over]
            one.about[item] = tuple(dict.fromkeys(overrun.node or "run" for overrun in over))
        return tuple(uses), "\n".join(texts) or None

    def ended(self) -> list[_Held]:
        """The runs that have ended since somebody asked."""
        ended, self._untold = self._untold, []
        return ended

    def sections(self, item: pytest.Item, *, alone: bool, **how: Any) -> Iterator[tuple[str, str]]:
        """The runs that a test reads, drawn as `Run.sections` has it; `alone` where it has no trace of its own."""
        runs = self.of(item)
        for held in runs:
            of = "" if alone and len(runs) == 1 else f" of {held.place.fixture}"
            about = held.about.get(item)
            parts = held.run.sections(about=about, **how)
            yield from ((f"{title}{of}", text) for title, text in parts)


def _weighed(limits: Sequence[Limit], held: _Held) -> tuple[list[Use], list[Overrun]]:
    """What the runs of one fixture used of a test's limits, and what is wrong with that."""
    from pytest_agenttrace.budgets.limits import Overrun, unjudged, weigh
    from pytest_agenttrace.capture import NothingTraced

    uses: list[Use] = []
    over: list[Overrun] = []
    for run in (*held.before, held.run):
        try:
            if run.trace is None:
                raise NothingTraced("nothing was traced")
            found, wrong = weigh(limits, run.trace)
        except NothingTraced as error:
            demanded = any(limit.demanded for limit in limits)
            found, wrong = unjudged(limits), [Overrun(None, f"budget: {error}")] if demanded else []
        uses += found
        over += wrong
    return uses, over


RUNS = pytest.StashKey[Runs]()


def told_of(ended: Sequence[_Held], counted: Callable[[Run], dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """What runs tell the end of the whole run, each under a name; `counted` what its sums and budget ask of them."""
    told: list[tuple[str, dict[str, Any]]] = []
    for held in ended:
        facts = held.run.told(failed=held.run.failed)
        told.append((held.place.target, {"misses": facts.pop("misses")}))
        told.append((held.place.name, facts | held.run.told_at_last()))
        if asked := counted(held.run):
            told.append((held.known_as, asked))
    return told


class AgentRun:
    """Traces and replays a block, in a fixture of a class, a module or a session: `with agent_run(...) as trace`."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    @contextmanager
    def __call__(
        self, cassette: str | os.PathLike[str] | None = None, *, server: GeminiServer | None = None, **keys: Any
    ) -> Iterator[AgentTrace]:
        """Give the trace, which is live within the block and stays as it is after it.

        `cassette` is relative to the fixture's file, by default named after it; `keys` are the keys of the agent_trace
        marker, with `agenttrace_config` behind them. `server` is a script to record from. The run is judged when the
        block ends: findings are an error of the fixture, and so of each test that asks for it.
        """
        __tracebackhide__ = True
        from pytest_agenttrace.replay import CassetteError
        from pytest_agenttrace.store import StoreError

        place, request = self._runs.place()
        given = keys if cassette is None else keys | {"cassette": cassette}
        run = Run(
            max_age=max_age_of(request.config),
            keep=keep_of(request.config),
            settings=_settings(given, place, request),
        )
        try:
            with _opened(run, place, request, named="cassette" in given) as trace:
                if server is not None and run.cassette is not None:
                    run.cassette.record_from(server, request.config.stash[SESSION].root)
                self._runs.begin(place, run)
                try:
                    yield trace
                except BaseException as error:
                    run.stop(failed=failed_by(error))
                    _judge(run, error)
                    raise
                _judge(run, None)
        except (StoreError, CassetteError) as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        finally:
            self._runs.end(place, run)
            if run.over_limit:
                request.session.shouldstop = "--agenttrace-record-limit is reached"
            hold_back(request.config)


@contextmanager
def _opened(run: Run, place: _Place, request: pytest.FixtureRequest, *, named: bool) -> Iterator[AgentTrace]:
    from pytest_agenttrace.capture import AgentTrace
    from pytest_agenttrace.replay import Shares, open_cassette

    settings = run.settings or Settings()
    session = request.config.stash[SESSION]
    if settings.cassette is None:
        path = own_path(request.config, place.file, place.own_name)
    else:
        path = named_path(place.file, settings.cassette)
        run.own = named and session.knows_all(path) and not named_by_tests(request.config, path.resolve())
    how = opening_of(
        request, place.item, settings, place.target, None if run.own else Shares(session.parts, place.name)
    )
    seed = fixture_value(request, place.item, "mlflow_seed")
    with (
        session.factory().open(
            place.name, autolog=settings.autolog, run_tracer_inline=settings.run_tracer_inline, seed=seed
        ) as run.store,
        dummy_key(how.mode in ("replay", "adopt")),
        open_cassette(path, how, scratch=session.root) as run.cassette,
    ):
        run.price = price_of(request.config)
        run.trace = AgentTrace(run.store, run.cassette, settings.tolerance, run.price)
        yield run.trace


def _judge(run: Run, error: BaseException | None) -> None:
    """Raise what is wrong with a run whose block has ended: by itself, or by an error whose own words are told."""
    __tracebackhide__ = True
    if isinstance(error, KeyboardInterrupt | pytest.exit.Exception | GeneratorExit):
        return
    verdict = run.judge(ended=error is None)
    found = [*(verdict.failures if verdict is not None else ()), *run.judge_again()]
    run.failed = error is not None or bool(found)
    run.hold_store("failed" if run.failed else "passed")
    if error is not None:
        from pytest_agenttrace.capture import cut_traceback, own_words

        cut_traceback(error)
        words = own_words(error)
        if words is None:
            return
        found = found or [words]
    if found:
        raise pytest.fail.Exception("\n".join(found), pytrace=False) from None


def _settings(given: Mapping[str, Any], place: _Place, request: pytest.FixtureRequest) -> Settings:
    config = fixture_value(request, place.item, "agenttrace_config")
    try:
        return read_settings([("agent_run", given), ("agenttrace_config", config)])
    except SettingsError as error:
        raise pytest.fail.Exception("\n".join(error.problems), pytrace=False) from None


def _parameter(request: pytest.FixtureRequest) -> str:
    """What tells the runs of a parametrised fixture apart."""
    if not hasattr(request, "param"):
        return ""
    value = request.param
    return f"[{value if isinstance(value, str | int | float | bool) else getattr(request, 'param_index', 0)}]"
