"""The command `agenttrace run`: one run of a workflow, told while it runs; its result alone on stdout."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pytest_agenttrace.environment import dummy_key, quiet_environment
from pytest_agenttrace.inifile import ConfigurationError, find_project
from pytest_agenttrace.tree import printable
from pytest_agenttrace.usage import format_tokens, format_usd

if TYPE_CHECKING:
    from pytest_agenttrace.calls import Pricer
    from pytest_agenttrace.replay import GeminiCassette
    from pytest_agenttrace.workflow import Observer, Workflow, WorkflowConfig, WorkflowResult

__all__ = ["run"]

FAILED, MISUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143
# MLflow's words on what it does by itself, which are no news to a user of this command.
_TALKATIVE = ("alembic", "mlflow.store.db.utils", "mlflow.tracing.export.async_export_queue")

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("file", type=_FILE)
@click.option(
    "--input", "-i", "inputs", multiple=True, metavar="KEY=VALUE", help="A field of the state; KEY=@FILE reads a file."
)
@click.option("--verbose", "-v", is_flag=True, help="Where the run is traced to, and tracebacks.")
@click.option("--record", type=_FILE, metavar="CASSETTE", help="Record what the models answer.")
@click.option("--replay", type=_FILE, metavar="CASSETTE", help="Answer from a recording: no key, no network, no cost.")
@click.option("--strict", is_flag=True, help="Fail where tracing fails, or trace and wire disagree.")
def run(
    file: Path, inputs: tuple[str, ...], verbose: bool, record: Path | None, replay: Path | None, strict: bool
) -> None:
    """Run the workflow in FILE.

    Prints the final state on stdout as JSON, and everything else on stderr: a line for each node as it runs, then what
    was traced, with tokens and cost. A value is JSON where its field is no str: -i depth=3 -i tags='["a"]'.

    Exits with 0 where it has run, 1 where it failed (with --strict, where tracing did), 2 where the file, the inputs or
    a cassette are wrong and nothing was asked, 130 on Ctrl-C, 143 when terminated.
    """
    if record is not None and replay is not None:
        raise click.UsageError("--record and --replay exclude each other")
    undo = quiet_environment()
    try:
        with _quiet_libraries():
            code = _Run(file, inputs, record, replay, verbose=verbose, strict=strict).done()
    except KeyboardInterrupt:  # before anything was asked
        _say("interrupted")
        code = INTERRUPTED
    finally:
        undo()
    if code:
        raise SystemExit(code)


class _Wrong(Exception):
    """What is wrong before anything is asked."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler stops what takes too long: the run ends as on Ctrl-C."""


class _Signals:
    """SIGTERM is an error like Ctrl-C, and both end what nodes wait for: LangGraph waits for them before anybody sees
    an error. While `held`, the first of them is let pass: what was run is being written."""

    def __init__(self) -> None:
        self.held = False

    @contextmanager
    def heard(self) -> Iterator[None]:
        from pytest_agenttrace.workflow import stoppable

        with stoppable() as stop, ExitStack() as stack:
            for number, error in ((signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)):
                if number == signal.SIGINT and signal.getsignal(number) is not signal.default_int_handler:
                    continue  # ignored, or another's
                with suppress(ValueError):  # no main thread: whoever has it decides
                    stack.callback(signal.signal, number, signal.signal(number, self._handler(error, stop)))
            yield

    def _handler(self, error: type[KeyboardInterrupt], stop: Callable[[], None]) -> Callable[..., None]:
        def handle(*_: object) -> None:
            if self.held:
                self.held = False
                return
            stop()
            raise error

        return handle


class _Run:
    """One run of the command."""

    def __init__(
        self,
        file: Path,
        inputs: tuple[str, ...],
        record: Path | None,
        replay: Path | None,
        *,
        verbose: bool,
        strict: bool,
    ) -> None:
        self._file, self._inputs = file, inputs
        self._record, self._replay = record, replay
        self._verbose, self._strict = verbose, strict
        self._disagreed, self._warns = False, True

    def done(self) -> int:
        """Run it, and say what came of it. The exit code."""
        try:
            workflow, given = self._ready()
        except _Wrong as error:
            _say(str(error))
            return MISUSED
        from pytest_agenttrace.workflow import Observer, progress

        level = workflow.config.config.observability.logging.level
        self._verbose = self._verbose or level == "DEBUG"
        self._warns = level not in ("ERROR", "CRITICAL")
        observer = Observer(
            workflow.config,
            price=_prices(),
            strict=self._strict,
            say=_say if self._verbose else lambda line: None,
            warn=self._warn,
            callbacks=[progress(_say)] if self._verbose or level == "INFO" else [],
            wire=True,
        )
        signals = _Signals()
        with signals.heard():
            with _stdout_is_ours():
                result, raised = self._outcome(workflow, given, observer, signals)
            return self._ended(observer, result, raised)

    def _ended(self, observer: Observer, result: WorkflowResult | None, raised: BaseException | None) -> int:
        self._tell(observer)
        if raised is not None:
            return self._failed(raised)
        if result is not None:
            click.echo(json.dumps(dict(result), indent=2, ensure_ascii=False, default=str))
        return FAILED if self._strict and (self._disagreed or observer.problems) else 0

    def _ready(self) -> tuple[Workflow, dict[str, Any]]:
        """The workflow and its inputs, checked: nothing is asked, nothing is begun, where they are wrong."""
        from pytest_agenttrace.replay import CassetteError, read_recordings
        from pytest_agenttrace.workflow import ConfigError, Workflow, WorkflowError

        try:
            workflow = Workflow.load(self._file)
            for note in workflow.config.notes:
                _say(str(note))
            given = _read_inputs(workflow.config, self._inputs)
            with dummy_key(self._replay is not None):
                workflow.check(given)
            if self._replay is not None and read_recordings(self._replay) is None:
                raise _Wrong(f"{self._replay}: no such cassette\n  {self._recording()}")
        except (ConfigError, WorkflowError, CassetteError) as error:
            raise _Wrong(str(error)) from None
        return workflow, given

    def _outcome(
        self, workflow: Workflow, given: Mapping[str, Any], observer: Observer, signals: _Signals
    ) -> tuple[WorkflowResult | None, BaseException | None]:
        """The run's result, or what it ended with. The store is opened before the cassette and written after it:
        replay lets nothing through to a store elsewhere."""
        result: WorkflowResult | None = None
        error: BaseException | None = None
        try:
            observer.open()
            with self._cassette() as tape:
                if tape is not None:
                    observer.hear(lambda: tape.calls)
                try:
                    result = workflow.run(given, observer=observer)
                    signals.held = True
                except BaseException as caught:
                    if tape is not None:
                        tape.give_up(stopped=isinstance(caught, KeyboardInterrupt))
                    raise
        except BaseException as caught:
            error = caught
        signals.held = True
        try:
            observer.close(error)
        except Exception as caught:  # strict, and not traced
            error = error or caught
        except KeyboardInterrupt as caught:
            error = caught
        return result, error

    @contextmanager
    def _cassette(self) -> Iterator[GeminiCassette | None]:
        path = self._record if self._record is not None else self._replay
        if path is None:
            yield None
            return
        from pytest_agenttrace.replay import Opening, open_cassette

        replaying = self._replay is not None
        with dummy_key(replaying), open_cassette(path, Opening("replay" if replaying else "record")) as tape:
            try:
                yield tape
            finally:
                if not replaying:
                    # What follows about pytest's options is for tests.
                    said = None if tape.incomplete is None else tape.incomplete.partition(": --agenttrace")[0]
                    _say(f"recorded: {path}" if said is None else said)
            for unused in tape.unused:
                self._disagreement(f"nobody asked for a recorded reply: {unused.text.splitlines()[0]}")

    def _tell(self, observer: Observer) -> None:
        if observer.trace is not None:
            _say("")
            _say(observer.trace.drawn(ascii_only=not _takes_unicode()))
        elif observer.calls:
            calls, tokens, cost = observer.used
            told = [
                "1 call" if calls == 1 else f"{calls} calls",
                "tokens unknown" if tokens is None else f"{format_tokens(tokens)} tokens",
                "cost unknown" if cost is None else format_usd(cost),
            ]
            _say(f"\nnot traced: {', '.join(told)}")

    def _warn(self, line: str) -> None:
        # That tracing failed is an error, whatever else is wanted.
        if self._warns or line.startswith("tracing failed"):
            _say(f"! {line}")
        if line.startswith("trace and wire disagree"):
            self._disagreed = True

    def _disagreement(self, line: str) -> None:
        _say(f"! {line}")
        self._disagreed = True

    def _recording(self) -> str:
        """The command that records what was to be replayed."""
        given = [word for pair in self._inputs for word in ("-i", pair)]
        return shlex.join(["agenttrace", "run", str(self._file), *given, "--record", str(self._replay)])

    def _failed(self, error: BaseException) -> int:
        from pytest_agenttrace.capture import own_words
        from pytest_agenttrace.workflow import TracingFailed, WorkflowError

        if isinstance(error, KeyboardInterrupt):
            _say("terminated" if isinstance(error, Terminated) else "interrupted")
            return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        if isinstance(error, TracingFailed):
            return FAILED  # each problem was told
        if self._verbose:
            import traceback

            _say("".join(traceback.format_exception(error)).rstrip())
        own = own_words(error)
        if own is not None:
            again = f"\n  To record again: {self._recording()}" if self._replay else ""
            _say(f"{own}{again}")
        elif isinstance(error, WorkflowError):
            _say(str(error))
        elif isinstance(error, Exception):
            _say(f"{self._file}: {type(error).__name__}: {error}")
        else:
            raise error
        return FAILED


def _read_inputs(config: WorkflowConfig, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Inputs by their fields' types: text as it is, all else as JSON. What is no JSON is left to be told as a text."""
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise _Wrong(f"-i {pair}: KEY=VALUE is wanted, or KEY=@FILE")
        if name in given:
            raise _Wrong(f"-i {name}: is given twice")
        if text.startswith("@"):
            text = text[1:] if text.startswith("@@") else _read(name, Path(text[1:]))
        field = config.state.fields.get(name)
        given[name] = text
        if field is not None and field.type.name != "str":
            # RecursionError: of brackets by the thousand.
            with suppress(ValueError, RecursionError):
                given[name] = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    return given


def _no_number(text: str) -> None:
    raise ValueError(text)


def _finite(text: str) -> float:
    """JSON knows no infinity, and Python writes 1e999 as one."""
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value


def _read(name: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _Wrong(f"-i {name}=@{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _prices() -> Pricer | None:
    """The project's own prices, where it has some; None for the table's."""
    from pytest_agenttrace.prices import PricesError, read_prices

    try:
        project = find_project(Path.cwd())
        named = project.get("agenttrace_prices", "")
        return read_prices(project.root / named) if named else None
    except (ConfigurationError, PricesError) as error:
        raise click.UsageError(str(error)) from None


def _say(text: str) -> None:
    # A screen that is closed or full loses what is said, and not what was paid for.
    with suppress(OSError, ValueError):
        for line in text.split("\n"):
            click.echo(printable(line), err=True)


def _takes_unicode() -> bool:
    with suppress(UnicodeError, LookupError):
        "├─✓".encode(getattr(sys.stderr, "encoding", None) or "utf-8")
        return True
    return False


@contextmanager
def _stdout_is_ours() -> Iterator[None]:
    """What tools and libraries print goes to stderr, also where they write past Python."""
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            kept = os.dup(1)
            stack.callback(_put_back, kept)
            os.dup2(2, 1)
        yield


def _put_back(kept: int) -> None:
    os.dup2(kept, 1)
    os.close(kept)


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    import logging

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        # It speaks when the process ends; MLflow 3.9 has set it anew when it was imported.
        loggers[-1].setLevel(logging.WARNING)
