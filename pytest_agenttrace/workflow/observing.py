"""One run of a workflow, watched: traced into the store that its file names, with what it has used and cost.

Nothing of it may break the run: where tracing fails, the workflow runs all the same, and it is said.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from datetime import UTC, datetime
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pytest_agenttrace.calls import Call, Pricer
from pytest_agenttrace.ledger import facts_of
from pytest_agenttrace.reconcile import Evidence, find
from pytest_agenttrace.wiretap import Tap, tapped
from pytest_agenttrace.workflow.cost_summary import FILE, CostSummary, Status, summarise, summary_text
from pytest_agenttrace.workflow.keeping import Keeping, node_files
from pytest_agenttrace.workflow.models import WorkflowConfig

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from pytest_agenttrace.store import ParamValue, Recording, Tracked, Tracking
    from pytest_agenttrace.trace import Trace

__all__ = ["Observer", "TracingFailed"]

_PACKAGES = ("mlflow", "langgraph", "langchain-core", "langchain-google-genai", "google-genai", "pytest-agenttrace")
_LOGGER = logging.getLogger("pytest_agenttrace.workflow")
_ENDS: dict[Status, Literal["FINISHED", "FAILED", "KILLED"]] = {
    "ok": "FINISHED",
    "error": "FAILED",
    "interrupted": "KILLED",
}
# What a finding says of numbers; the rest of it is for tests.
_COUNTED = re.compile(r"\s+\w+: (?:wire|trace) [\d,-]+, ")
_T = TypeVar("_T")


class TracingFailed(Exception):
    """A strict run cannot be traced, or was not: what stands in `Observer.problems`."""


class Observer:
    """Watches one run: `open`, then the run inside of `watching`, then `close`; or `run`, `arun` for what of that
    nobody has done before.

    `problems` says what went wrong with tracing, `trace` and `summary` what was traced (None where nothing was),
    `run_id` MLflow's run, `calls` what the wire saw. `say` is told what is done, `warn` each problem; `price` gives
    the USD of a call, `callbacks` are LangChain's, for this run. `wire` reads the wire of a run that is not traced
    too. With `strict`, problems are `TracingFailed`: before the run where they are known by then.
    """

    def __init__(
        self,
        config: WorkflowConfig,
        *,
        price: Pricer | None = None,
        strict: bool = False,
        say: Callable[[str], None] = lambda line: None,
        warn: Callable[[str], None] = _LOGGER.warning,
        callbacks: Sequence[Any] = (),
        wire: bool = False,
    ) -> None:
        self.config = config
        self.problems: list[str] = []
        self.run_id: str | None = None
        self.trace: Trace | None = None
        self.summary: CostSummary | None = None
        self.disagreements: tuple[str, ...] = ()
        self._settings = config.config.observability.mlflow
        self._price = price
        self._strict = strict
        self._wire = wire
        self._say, self._warn = say, warn
        self._tap = Tap()
        self._witness: Callable[[], tuple[Call, ...]] | None = None
        self._keeping = Keeping(self._settings.artifact_level, self._keeps_prompts)
        self._tracking: Tracking | None = None
        self._recording: Recording | None = None
        self._callbacks = list(callbacks)
        self._opened = self._closed = False

    @property
    def calls(self) -> tuple[Call, ...]:
        """What was asked of Gemini, as the wire saw it; nothing of a run that is not traced, without `wire`."""
        return self._tap.calls if self._witness is None else self._witness()

    def hear(self, witness: Callable[[], tuple[Call, ...]]) -> None:
        """Let another tell what was asked: an open cassette, which knows how long a recorded call took, and when."""
        self._witness = witness

    @contextmanager
    def run(self) -> Iterator[RunnableConfig]:
        """Watch the block; gives what the graph is to be run with."""
        if self._opened and not self._closed:
            with self.watching() as config:
                yield config
            return
        self.open()
        try:
            with self.watching() as config:
                yield config
        except BaseException as error:
            self.close(error)
            raise
        self.close(None)

    @asynccontextmanager
    async def arun(self) -> AsyncIterator[RunnableConfig]:
        """The same, with what waits for a store in another thread."""
        if self._opened and not self._closed:
            with self.watching() as config:
                yield config
            return
        await asyncio.to_thread(self.open)
        try:
            with self.watching() as config:
                yield config
        except BaseException as error:
            await asyncio.to_thread(self.close, error)
            raise
        await asyncio.to_thread(self.close, None)

    def open(self) -> None:
        """Open the store and begin the run in it."""
        if self._opened:
            raise RuntimeError("an observer watches one run: make another for the next")
        self._opened = True
        if not self._settings.enabled:
            return
        from pytest_agenttrace.store import test_store_is_open

        if test_store_is_open():
            self._say("MLflow: this test's own store")
            return
        self._tried(self._begin)
        if self.problems and self._strict:
            raise TracingFailed("\n".join(self.problems))

    def _begin(self) -> None:
        from pytest_agenttrace.store import langchain_tracer, mlflow_version, open_tracking

        settings = self._settings
        installed = mlflow_version()
        self._say(f"✓ MLflow {installed} auto-instrumentation enabled (langchain.autolog)")
        tracking = open_tracking(settings.tracking_uri, settings.experiment_name, asynchronous=settings.async_logging)
        self._say(f"✓ Experiment: {tracking.experiment} (ID: {tracking.experiment_id})")
        self._say(f"✓ Store: {tracking.shown}")
        self._recording = tracking.begin(self._run_name(), self._tags(), self._keeping)
        self._tracking, self.run_id = tracking, self._recording.run_id
        self._callbacks.append(langchain_tracer(self._recording))
        self._say(f"✓ Run: {self.run_id}")

    @contextmanager
    def watching(self) -> Iterator[RunnableConfig]:
        """What runs in the block is traced, and what it asks of Gemini is seen."""
        recording = self._recording
        with ExitStack() as stack:
            if (self._settings.enabled or self._wire) and self._witness is None:
                stack.enter_context(tapped(self._tap))
            stack.enter_context(recording.active() if recording is not None else nullcontext())
            yield {"callbacks": list(self._callbacks)}

    def close(self, error: BaseException | None) -> None:
        """Write the trace, what it has used and cost, and end the run: `error` is what it ended with."""
        self._closed = True
        tracking, recording = self._tracking, self._recording
        if tracking is None or recording is None:
            return
        status: Status = "ok" if error is None else "error" if isinstance(error, Exception) else "interrupted"
        tracked = self._tried(lambda: self._written(tracking, recording))
        if tracked is not None:
            self._tried(lambda: self._account(tracking, recording, tracked, status, error))
        self._tried(lambda: tracking.end(recording, _ENDS[status]))
        if self.problems and self._strict and error is None:
            raise TracingFailed("\n".join(self.problems))

    def _written(self, tracking: Tracking, recording: Recording) -> Tracked:
        tracking.write(recording)
        for text in dict.fromkeys(recording.errors):
            self._problem(f"MLflow failed to store: {text}")
        return tracking.read(recording)

    def _account(
        self, tracking: Tracking, recording: Recording, tracked: Tracked, status: Status, error: BaseException | None
    ) -> None:
        from pytest_agenttrace.forest import build_trace

        if not tracked.spans:
            self._problem("MLflow has traced nothing of the run")
            return
        price = self._pricer()
        trace = self.trace = build_trace(tracked.spans, self.calls, price)
        self.disagreements = tuple(_disagreements(trace, tracked, ended=status == "ok"))
        summary = self.summary = summarise(
            trace,
            price,
            workflow=self.config.flow.name,
            version=self.config.flow.version,
            status=status,
            trace_ids=recording.trace_ids,
            disagreements=self.disagreements,
        )
        for line in self._unknown(summary):
            self._warn(line)
        tracking.log(
            recording, metrics=_metrics(summary), params=self._params(summary), tags=self._ended(status, error)
        )
        self._tried(lambda: self._keep_files(tracking, recording, summary, trace))

    def _keep_files(self, tracking: Tracking, recording: Recording, summary: CostSummary, trace: Trace) -> None:
        settings = self._settings
        with tempfile.TemporaryDirectory(prefix="agenttrace-") as made:
            folder = Path(made)
            if settings.log_artifacts:
                (folder / FILE).write_text(summary_text(summary), encoding="utf-8")
            if settings.artifact_level == "full":
                for name, data in node_files(trace, self._keeps_files, self._keeps_prompts):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    text = json.dumps(self._keeping.plain(data), indent=2, ensure_ascii=False, default=str)
                    (folder / name).write_text(text + "\n", encoding="utf-8")
            if any(folder.iterdir()):
                tracking.keep_files(recording, folder)

    def _tried(self, step: Callable[[], _T]) -> _T | None:
        """Do a step of tracing; what goes wrong is a problem, and no error of the run."""
        try:
            return step()
        except Exception as error:
            from pytest_agenttrace.store import TrackingFailed

            said = str(error) if isinstance(error, TrackingFailed) else f"{type(error).__name__}: {error}"
            self._problem(said)
            return None

    def _problem(self, text: str) -> None:
        said = f"tracing failed: {text}"
        if said not in self.problems:
            self.problems.append(said)
            self._warn(said)

    def _unknown(self, summary: CostSummary) -> Iterator[str]:
        if summary.unpriced:
            yield f"cost unknown: no price for {', '.join(summary.unpriced)}: total_cost_usd is not logged"
        silent = [node for node, facts in summary.nodes.items() if facts.tokens is None]
        if summary.totals.tokens is None:
            where = f"{', '.join(silent)}: " if silent else ""
            yield f"{where}a call reported no usage: total_tokens and total_cost_usd are not logged"
        for line in summary.disagreements:
            yield f"trace and wire disagree: {line}"

    @property
    def used(self) -> tuple[int, int | None, Decimal | None]:
        """What a run without a trace has used, by the wire alone: answered calls, tokens, USD; None is unknown."""
        from pytest_agenttrace.forest import build_trace

        price = self._pricer()
        facts = facts_of(build_trace((), self.calls, price), price)
        return sum(call.answered for call in self.calls), facts.tokens, facts.cost

    def _pricer(self) -> Pricer:
        if self._price is not None:
            return self._price
        from pytest_agenttrace.prices import price_call

        return price_call

    def _keeps_prompts(self, node: str | None) -> bool:
        own = self._node(node, "log_prompts")
        return self._settings.log_prompts if own is None else own

    def _keeps_files(self, node: str | None) -> bool:
        own = self._node(node, "log_artifacts")
        return self._settings.log_artifacts if own is None else own

    def _node(self, name: str | None, key: str) -> bool | None:
        found: bool | None = None
        for node in self.config.nodes:
            if node.id == name:
                found = getattr(node, key)
        return found

    def _run_name(self) -> str:
        values = {
            "timestamp": datetime.now(UTC).strftime("%Y%m%d_%H%M%S"),
            "workflow_name": self.config.flow.name,
            "workflow_version": self.config.flow.version or "",
        }
        name = self._settings.run_name or "{workflow_name}_{timestamp}"
        for key, value in values.items():
            name = name.replace(f"{{{key}}}", value)
        return name

    def _tags(self) -> dict[str, str]:
        flow = self.config.flow
        tags = {"agenttrace.workflow": flow.name, "agenttrace.artifact_level": self._settings.artifact_level}
        return tags | ({"agenttrace.workflow_version": flow.version} if flow.version is not None else {})

    def _ended(self, status: Status, error: BaseException | None) -> dict[str, str]:
        tags: dict[str, str] = {"agenttrace.status": status}
        if error is not None:
            cause = error.__cause__ or error
            tags["agenttrace.error"] = type(cause).__name__
        if self.disagreements:
            tags["agenttrace.disagreements"] = str(len(self.disagreements))
        return tags

    def _params(self, summary: CostSummary) -> dict[str, ParamValue]:
        models = {self.config.llm_of(node).model for node in self.config.nodes}
        params: dict[str, ParamValue] = {
            "workflow_name": self.config.flow.name,
            "workflow_version": self.config.flow.version or "",
            "models": ", ".join(sorted({*summary.models, *(name for name in models if name)})),
        }
        for package, installed in _versions().items():
            params[f"version.{package}"] = installed
        return {key: value for key, value in params.items() if value != ""}


def _metrics(summary: CostSummary) -> dict[str, float]:
    """What is known of a run in numbers; of what nobody knows there is none."""
    totals = summary.totals
    known: Mapping[str, int | float | Decimal | None] = {
        "total_cost_usd": totals.cost,
        "total_tokens": totals.tokens,
        "prompt_tokens": totals.usage.input_tokens,
        "completion_tokens": totals.usage.output_tokens,
        "node_count": totals.executions,
        "duration": totals.duration,
    }
    return {name: float(value) for name, value in known.items() if value is not None}


def _disagreements(trace: Trace, tracked: Tracked, *, ended: bool) -> Iterator[str]:
    """What the trace and the wire say differently, a line for each, without what pytest's users are told to do."""
    evidence = Evidence(trace=trace, totals=tracked.totals, counts_cache=tracked.counts_cache, ended=ended)
    for finding in find(evidence):
        head, *rest = finding.text.splitlines()
        counts = [line.strip() for line in rest if _COUNTED.match(line)]
        yield f"{head} [{finding.kind}]" + (f": {'; '.join(counts)}" if counts else "")


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
