"""Store, replay, prices and reconcile composed into one live trace; works without pytest too."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_agenttrace.budgets.limits import Limit, Overrun, Use, unjudged, weigh
from pytest_agenttrace.calls import Asked, Pricer
from pytest_agenttrace.diagnosis import why_nothing, why_untraced
from pytest_agenttrace.environment import dummy_key, quiet_environment
from pytest_agenttrace.reconcile import Evidence, find
from pytest_agenttrace.settings import Finding, Settings, Tolerance, read_settings
from pytest_agenttrace.trace import Span, Trace, TraceReading

if TYPE_CHECKING:
    from pytest_agenttrace.crosscheck import CostDifference
    from pytest_agenttrace.replay import GeminiCassette, Miss, Mode, Unused
    from pytest_agenttrace.store import MlflowStore

__all__ = ["AgentTrace", "CaptureFailed", "NothingTraced", "Verdict", "capture", "cut_traceback", "judge", "own_words"]


_STRICT = Tolerance()


_MISS = "CassetteMiss: "


class NothingTraced(Exception):
    """A trace was read, and nothing had been traced; says why."""


class CaptureFailed(AssertionError):
    """What a `capture` without pytest found: overruns and findings, one below the other."""


class AgentTrace(TraceReading):
    """The live trace of a test: each reading drains MLflow's exporter and gives a frozen `Trace`.

    Reading raises `NothingTraced` where neither the trace nor the wire has seen anything, and where something keeps
    MLflow from seeing what went over the wire (unless `uncounted` calls are forgiven).
    """

    def __init__(
        self,
        store: MlflowStore,
        cassette: GeminiCassette,
        tolerance: Tolerance = _STRICT,
        price: Pricer | None = None,
    ) -> None:
        from pytest_agenttrace.prices import price_call

        self._tolerance = tolerance
        self._asked = Asked(price_call if price is None else price)
        self._store = store
        self._cassette = cassette
        self._last: tuple[tuple[Span, ...], int, Trace] | None = None

    def peek(self) -> Trace | None:
        """The trace as it is now, or None where nothing was traced."""
        from pytest_agenttrace.forest import build_trace

        spans, calls = self._store.spans(), self._cassette.calls
        if not spans and not calls:
            return None
        if self._last is None or self._last[0] is not spans or self._last[1] != len(calls):
            self._last = (spans, len(calls), build_trace(spans, calls, self._asked, self._tolerance.forgives))
        return self._last[2]

    def places(self) -> dict[str, tuple[int | None, tuple[Any, ...]]]:
        """Where LangGraph ran each execution, by its namespace: step and path."""
        trace = self.peek()
        found = trace.below() if trace is not None else []
        return {execution.namespace: (execution.step, execution.spans[0].path) for execution in found}

    def why_untraced(self) -> str | None:
        """Why MLflow has seen none of what went over the wire; None where it has, or nothing did."""
        trace = self.peek()
        return None if trace is None else why_untraced(self._store, trace, self._tolerance)

    def snapshot(self) -> Trace:
        __tracebackhide__ = True
        trace = self.peek()
        if trace is None:
            raise NothingTraced(why_nothing(self._store, self._cassette))
        if (why := why_untraced(self._store, trace, self._tolerance)) is not None:
            raise NothingTraced(why)
        return trace

    @property
    def unpriced(self) -> dict[tuple[str | None, str | None], str]:
        """Why a cost that was asked for could not be told, by node and model."""
        return self._asked.unpriced

    def cost_differences(self) -> list[CostDifference]:
        """What MLflow prices otherwise; nothing where no cost was asked for, so that no price is looked up in vain."""
        from pytest_agenttrace.crosscheck import cost_differences

        trace = self.peek() if self._asked.used else None
        return [] if trace is None else list(cost_differences(trace, self._asked.price))

    def __repr__(self) -> str:
        trace = self.peek()
        return repr(trace) if trace is not None else "<Trace: nothing traced>"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a run: `failures` as text, most telling first; `about` the nodes they name. `uses` has what
    was used of each limit."""

    failures: tuple[str, ...]
    findings: tuple[Finding, ...]
    warned: tuple[Finding, ...]
    about: tuple[str, ...]
    uses: tuple[Use, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(self.failures)

    @property
    def missed(self) -> bool:
        """Whether a request without a recorded reply is among what is wrong."""
        return any(failure.startswith(_MISS) for failure in self.failures)


def judge(
    trace: AgentTrace | None,
    cassette: GeminiCassette | None,
    store: MlflowStore | None,
    *,
    limits: Sequence[Limit] = (),
    tolerance: Tolerance,
    ended: bool = True,
    own: bool = True,
) -> Verdict:
    """Hold budgets and witnesses against what happened. Where the body did not end by itself
    (`ended` False) only misses, refused connections and failed exports are judged. `own` False leaves replies nobody
    asked for to others who share the cassette."""
    snapshot = trace.peek() if trace is not None else None
    untraced = trace.why_untraced() if trace is not None else None
    # What could not be stored is told as that.
    lost = store is not None and bool(store.export_errors)
    if untraced is not None:
        snapshot = None
    evidence = Evidence(
        trace=snapshot,
        misses=_grouped(cassette.misses) if cassette else (),
        refused=[(refused.node, refused.text) for refused in cassette.refused] if cassette else (),
        unused=[
            *((unused.node, unused.text) for unused in _left_over(cassette, own)),
            *(cassette.unused_script if cassette else ()),
            *_unreached(cassette),
        ],
        export_errors=store.export_errors if store else (),
        totals=store.totals if store and snapshot is not None else (),
        counts_cache=store.counts_cache if store and snapshot is not None else True,
        ended=ended,
        traced=trace is not None and not (lost and untraced is not None),
        obstacle=_of(store),
        nothing=untraced or (why_nothing(store, cassette) if store and cassette else "nothing was traced"),
    )
    findings = _without_effects(find(evidence), tolerance)
    failing = tolerance.failing(findings)
    over: list[Overrun] = []
    uses = unjudged(limits)
    if limits and ended and not any(finding.kind in ("missing", "empty") for finding in failing):
        demanded = any(limit.demanded for limit in limits)
        over = [Overrun(None, f"budget: {evidence.nothing}")] if demanded else []
        if snapshot is not None:
            uses, over = weigh(limits, snapshot)
    if trace is not None and ended:
        # Budgets have asked by now.
        findings += [Finding("unpriced", node, text) for (node, _), text in trace.unpriced.items()]
        failing = tolerance.failing(findings)
        told = {finding.text for finding in failing if finding.kind == "unpriced"}
        over = [overrun for overrun in over if overrun.unpriced not in told]
    texts = [overrun.text for overrun in over] + _texts(failing)
    about = [overrun.node or "run" for overrun in over] + [f.node for f in failing if f.node]
    warned = tuple(tolerance.warned(findings))
    return Verdict(tuple(texts), tuple(findings), warned, tuple(dict.fromkeys(about)), uses)


def _of(store: MlflowStore | None) -> tuple[str, str] | None:
    obstacle = store.obstacle if store is not None else None
    return None if obstacle is None else (obstacle.cause, obstacle.way_out)


def _without_effects(findings: list[Finding], tolerance: Tolerance) -> list[Finding]:
    """Calls without a span are no news where the test fails because MLflow could not store spans, nor are replies left
    over where nothing ran."""
    failing = {finding.kind for finding in tolerance.failing(findings)}
    effects = {effect for cause, effect in (("export", "uncounted"), ("empty", "unused")) if cause in failing}
    return [finding for finding in findings if finding.kind not in effects]


def _texts(findings: Sequence[Finding]) -> list[str]:
    """A text for each. The lines to add for a model without a price are shown once, whichever nodes call it."""
    texts: list[str] = []
    for finding in findings:
        if finding.kind == "unpriced":
            head, _, lines = finding.text.partition("\n")
            texts.append(f"{head} [unpriced]" + (f"\n{lines}" if lines and not any(lines in t for t in texts) else ""))
        else:
            texts.append(_text(finding))
    return texts


def _text(finding: Finding) -> str:
    return f"{_MISS}{finding.text}" if finding.kind == "missing" else f"{finding.text} [{finding.kind}]"


def _left_over(cassette: GeminiCassette | None, own: bool) -> list[Unused]:
    """The replies to judge: those that a fixture asks for in teardown only once it had its chance."""
    if cassette is None or not own:
        return []
    return [unused for unused in cassette.unused if cassette.closing or not unused.teardown]


def _unreached(cassette: GeminiCassette | None) -> list[tuple[str | None, str]]:
    """The faults to judge: one that nothing went wrong by tests nothing."""
    return [(fault.node, fault.text) for fault in cassette.unreached] if cassette is not None else []


def _grouped(misses: Sequence[Miss]) -> list[tuple[str | None, str]]:
    """One text for the misses of a node that differ from what was recorded in the same way: one edit of a template,
    in a fan-out or a loop."""
    alike: dict[tuple[str | None, str], list[Miss]] = {}
    for miss in misses:
        alike.setdefault((miss.caller.node, miss.edit), []).append(miss)
    return [(node, _with_others(found)) for (node, _), found in alike.items()]


def _with_others(misses: Sequence[Miss]) -> str:
    first, others = misses[0], [str(miss.number) for miss in misses[1:]]
    if not others:
        return first.text
    head, _, rest = first.text.partition("\n")
    calls = f"call {others[0]}" if len(others) == 1 else f"calls {', '.join(others[:5])}"
    more = f" and {len(others) - 5} more" if len(others) > 5 else ""
    return f"{head}\n  the same for {calls}{more}\n{rest}"


def miss_in(error: BaseException) -> bool:
    """Whether an error is a `CassetteMiss`, or a group that holds one."""
    from pytest_agenttrace.replay import CassetteMiss

    if isinstance(error, BaseExceptionGroup):
        return any(miss_in(inner) for inner in error.exceptions)
    return isinstance(error, CassetteMiss)


def own_words(error: BaseException) -> str | None:
    """What is told of an error in place of its traceback; None for one whose line is what matters."""
    from pytest_agenttrace.store import StoreError

    if miss_in(error):
        return f"CassetteMiss: {error}"
    if isinstance(error, NothingTraced):
        cause, *evidence = str(error).splitlines()
        return "\n".join([cause, f"  read at {_line_of(error)}", *evidence]) + " [empty]"
    return str(error) if isinstance(error, StoreError) else None


def cut_traceback(error: BaseException) -> None:
    """Make the traceback of an error of ours end at the user's line; any other error keeps its own."""
    if not _ours(type(error).__module__):
        return
    last, at = None, error.__traceback__
    while at is not None:
        last = last if _ours(str(at.tb_frame.f_globals.get("__name__"))) else at
        at = at.tb_next
    if last is not None:
        last.tb_next = None


def _line_of(error: BaseException) -> str:
    """The user's line that a cut traceback ends at, as `test_article.py:12`."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "an unknown line" if at is None else f"{_shown(Path(at.tb_frame.f_code.co_filename))}:{at.tb_lineno}"


def _shown(path: Path) -> str:
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else str(path)


def _ours(module: str) -> bool:
    return module.startswith("pytest_agenttrace.")


@contextmanager
def capture(
    cassette: str | os.PathLike[str],
    *,
    match: Literal["body", "order"] = "body",
    order: str | None = None,
    ignore: Sequence[str] = (),
    hosts: Sequence[str] = (),
    secrets: Sequence[str] = (),
    record: bool | Literal["missing", "adopt"] = False,
    allow: Sequence[str] = (),
    warn: Sequence[str] = (),
    autolog: Sequence[str] = ("langchain",),
    run_tracer_inline: bool | None = None,
    prices: str | os.PathLike[str] | None = None,
    directory: str | os.PathLike[str] | None = None,
) -> Iterator[AgentTrace]:
    """Trace and replay the block, without pytest: `with capture("cassette.yaml") as trace`.

    `prices` is a file that pins or overrides prices (`PricesError` where it is no such).
    `record` is what `--agenttrace-record` is for tests; "missing" and "adopt" are its neighbours.
    The temporary store lies in `directory` (by default one that is removed at the end: read the trace
    inside the block). Raises `CaptureFailed` at the end where a finding stands, `CassetteMiss` (a
    BaseException) where a request has no recorded reply.
    """
    keys = {
        "match": match,
        "order": order,
        "ignore": ignore,
        "hosts": hosts,
        "secrets": secrets,
        "allow": allow,
        "warn": warn,
        "autolog": autolog,
        "run_tracer_inline": run_tracer_inline,
    }
    settings = read_settings([("capture", keys)])
    with ExitStack() as stack:
        root = Path(directory) if directory is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mode: Mode = record if isinstance(record, str) else "record" if record else "replay"
        price = None if prices is None else _read_prices(Path(prices))
        trace = stack.enter_context(_composed(Path(cassette), settings, mode, root, price))
        yield trace
        if trace._cassette.recording:
            trace._cassette.place(trace.places())
        verdict = judge(trace, trace._cassette, trace._store, tolerance=settings.tolerance)
        if verdict.failures:
            raise CaptureFailed(verdict.text)


def _read_prices(path: Path) -> Pricer:
    from pytest_agenttrace.prices import read_prices

    return read_prices(path)


@contextmanager
def _composed(cassette: Path, settings: Settings, mode: Mode, root: Path, price: Pricer | None) -> Iterator[AgentTrace]:
    from pytest_agenttrace.replay import CassetteMiss, Opening, open_cassette
    from pytest_agenttrace.store import StoreFactory

    undo = quiet_environment()
    try:
        with (
            closing(StoreFactory(root)) as factory,
            factory.open("capture", autolog=settings.autolog, run_tracer_inline=settings.run_tracer_inline) as store,
            dummy_key(mode in ("replay", "adopt")),
            open_cassette(
                cassette,
                Opening(mode, settings.match, settings.ignore, settings.hosts, settings.order, settings.secrets),
                scratch=root,
            ) as tape,
        ):
            try:
                yield AgentTrace(store, tape, settings.tolerance, price)
            except BaseException as error:
                if isinstance(error, CassetteMiss):
                    error.add_note('to record it: capture(..., record=True), or record="missing" for it alone')
                if tape.gate is not None:
                    error.add_note(f'replies were released by order="shuffle:{tape.gate.seed}"')
                if not isinstance(error, AssertionError):
                    tape.give_up()
                raise
    finally:
        undo()
