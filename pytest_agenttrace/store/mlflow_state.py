"""MLflow's process-wide state: set aside while a temporary store is open, put back as it was.

MLflow keeps its tracking URI, experiment, runs, autologging and tracer provider in module globals
and environment variables. Its public setters would do, but from MLflow 3.12 on each of them retires
the tracer provider and waits a second for it; so the globals are set directly where they are found
(`Global`, tried with MLflow 3.9 and 3.17), and by the public functions where they are not.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import environ  # held here: a test may replace it on the module
from typing import Any, NamedTuple

__all__ = [
    "CLIENT",
    "EXPERIMENT_ID",
    "PROVIDER",
    "REGISTRY_URI",
    "TRACKING_URI",
    "Autolog",
    "Global",
    "direct",
    "genuine",
    "give_provider",
    "muted",
    "outside_of_any_span",
    "set_aside",
    "sweep",
]

# Where MLflow's client stands.
CLIENT = ("mlflow", "mlflow.client", "mlflow.tracking.client")

# What would send traces, runs or models elsewhere, or drop them, while a store is open.
_HIDDEN = (
    "MLFLOW_ACTIVE_MODEL_ID",
    "MLFLOW_ENABLE_WORKSPACES",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_RUN_ID",
    "MLFLOW_TRACE_SAMPLING_RATIO",
    "MLFLOW_TRACING_DESTINATION",
    "MLFLOW_USE_DEFAULT_TRACER_PROVIDER",
    "MLFLOW_WORKSPACE",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_SDK_DISABLED",
    "_MLFLOW_SERVER_ARTIFACT_ROOT",
)


class Global(NamedTuple):
    """A global of MLflow's that has no public setter."""

    module: str
    name: str

    def read(self) -> Any:
        """Its value; AttributeError or ImportError where this MLflow has none."""
        return getattr(importlib.import_module(self.module), self.name)

    def write(self, value: Any) -> None:
        setattr(importlib.import_module(self.module), self.name, value)

    def exists(self) -> bool:
        try:
            self.read()
        except (AttributeError, ImportError):
            return False
        return True


TRACKING_URI = Global("mlflow.tracking._tracking_service.utils", "_tracking_uri")
REGISTRY_URI = Global("mlflow.tracking._model_registry.utils", "_registry_uri")
EXPERIMENT_ID = Global("mlflow.tracking.fluent", "_active_experiment_id")
RUN_STACK = Global("mlflow.tracking.fluent", "_active_run_stack")
LAST_RUN = Global("mlflow.tracking.fluent", "_last_active_run_id")
LAST_MODEL = Global("mlflow.tracking.fluent", "_last_logged_model_id")
ACTIVE_MODEL = Global("mlflow.tracking.fluent", "_ACTIVE_MODEL_CONTEXT")
# The run of a session's `@mlflow.test` tests (3.14 and later), opened by the first of them and never looked for again.
TEST_RUN = Global("mlflow.pytest.session", "_run_id")
LAST_TRACE = Global("mlflow.tracing.fluent", "_LAST_ACTIVE_TRACE_ID_GLOBAL")
DESTINATION = Global("mlflow.tracing.provider", "_MLFLOW_TRACE_USER_DESTINATION")
PROVIDER = Global("mlflow.tracing.provider", "provider")
CONTEXT = Global("mlflow.tracing.provider", "mlflow_runtime_context")
PROMPTS = Global("mlflow.prompt.registry_utils", "PromptCache")
AUTOLOGGING = Global("mlflow.utils.autologging_utils", "AUTOLOGGING_INTEGRATIONS")

# What MLflow takes for these where they are not set, while a store is open: code under test may clear the
# environment, and the price list's own default is on github.com (3.10 and later).
_UNSET = {
    "MLFLOW_MODEL_CATALOG_URI": "",
    "MLFLOW_DISABLE_TELEMETRY": True,
    "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": False,
}
# Variables whose values inside a store nobody else can have come upon.
_OURS_ONLY = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
# More runs than anybody starts inside of each other.
_MOST_RUNS = 1000


class _Closed(NamedTuple):
    """A store that has been closed: the environment inside it, and the one before."""

    inside: Mapping[str, str | None]
    before: Mapping[str, str]


_last: list[_Closed] = []

_PROVIDER_FIELD = "_isolated_tracer_provider"
_ONCE_FIELD = "_isolated_tracer_provider_once"


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables (None unsets); afterwards these and all MLFLOW_* and OTEL_* are as before."""
    sweep()
    before = _variables(values)
    for name, value in values.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    try:
        yield
    finally:
        _put_back(values, before)
        _last[:] = [_Closed(dict(values), before)]


def _put_back(names: Mapping[str, str | None], before: Mapping[str, str]) -> None:
    for name in _variables(names).keys() - before.keys():
        del environ[name]
    environ.update(before)


def sweep() -> None:
    """Put variables back that something has set to their values inside the last store since it closed.

    `monkeypatch.setenv` does it, torn down after the store: what it takes for the old value is ours.
    `mock.patch.dict(os.environ)` does it with all of them.
    """
    for inside, before in _last:
        ours = [name for name in _OURS_ONLY if inside.get(name) is not None]
        back = [name for name in ours if environ.get(name) == inside[name]]
        if ours and back == ours:
            _put_back(inside, before)
        for name in back:
            if name in before:
                environ[name] = before[name]
            else:
                environ.pop(name, None)
    _last.clear()


def _variables(names: Mapping[str, str | None]) -> dict[str, str]:
    prefixes = ("MLFLOW_", "_MLFLOW_", "OTEL_")
    return {name: value for name, value in environ.items() if name.startswith(prefixes) or name in names}


def genuine(name: str, *modules: str) -> Any:
    """MLflow's own function or class of that name, from the first module that has it: a test may have put
    something else into some of them. LookupError where none has."""
    for module in modules:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            continue
        if str(getattr(found, "__module__", "")).partition(".")[0] == "mlflow":
            return found
    raise LookupError(f"{modules[0]}.{name} is not MLflow's own: a test or a plugin has replaced it")


def direct() -> bool:
    """Whether this MLflow keeps its state where we know it, so that nothing need be retired."""
    if not (TRACKING_URI.exists() and EXPERIMENT_ID.exists() and PROVIDER.exists()):
        return False
    provider = PROVIDER.read()
    return hasattr(provider, _PROVIDER_FIELD) and hasattr(getattr(provider, _ONCE_FIELD, None), "_done")


@contextmanager
def set_aside(uri: str, experiment_id: str | None, tracer_provider: Any) -> Iterator[None]:
    """Put a tracking URI, an experiment and a tracer provider in force, with no run active.

    `tracer_provider` None lets MLflow make one when it is needed. Afterwards all is as before, the
    user's tracer provider the same object, neither flushed nor reset.
    """
    hidden: dict[str, str | None] = dict.fromkeys(_HIDDEN)
    inside = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}
    if experiment_id is not None:
        inside["MLFLOW_EXPERIMENT_ID"] = experiment_id
    with ExitStack() as stack:
        stack.enter_context(_environment({**hidden, **inside}))
        stack.enter_context(_unset_means())
        for place in (RUN_STACK, LAST_RUN, LAST_MODEL, ACTIVE_MODEL, DESTINATION):
            stack.enter_context(_fresh(place))
        stack.enter_context(_replaced(REGISTRY_URI, None))
        stack.enter_context(_replaced(LAST_TRACE, None))
        stack.enter_context(_replaced(TEST_RUN, None))
        stack.enter_context(outside_of_any_span())
        stack.enter_context(_no_prompt_cached())
        if direct():
            stack.enter_context(_replaced(TRACKING_URI, uri))
            stack.enter_context(_replaced(EXPERIMENT_ID, experiment_id))
            stack.enter_context(_provider_replaced(tracer_provider))
        else:
            stack.enter_context(_public_setters(uri, experiment_id))
        stack.callback(_run_ender())
        yield


@contextmanager
def _unset_means() -> Iterator[None]:
    """Give MLflow's variables other defaults. Their objects are public, the attribute is not documented."""
    from mlflow import environment_variables

    with ExitStack() as stack:
        for name, value in _UNSET.items():
            variable = getattr(environment_variables, name, None)
            if hasattr(variable, "default"):
                stack.callback(setattr, variable, "default", getattr(variable, "default", None))
                setattr(variable, "default", value)  # noqa: B010  # mypy knows no such attribute of None
        yield


@contextmanager
def _replaced(place: Global, value: Any) -> Iterator[None]:
    if not place.exists():
        yield
        return
    # Held: by the end of the test another module may stand in its place.
    module = importlib.import_module(place.module)
    before = getattr(module, place.name)
    setattr(module, place.name, value)
    try:
        yield
    finally:
        setattr(module, place.name, before)


@contextmanager
def _fresh(place: Global) -> Iterator[None]:
    """Replace a registry object by an empty one of its kind, for all threads."""
    if not place.exists():
        yield
        return
    before = place.read()
    factory = getattr(before, "default_factory", None)
    with _replaced(place, type(before)(factory) if factory is not None else type(before)()):
        yield


@contextmanager
def _no_prompt_cached() -> Iterator[None]:
    """What was loaded from another store's registry must not be given out as this one's."""
    cache = PROMPTS.read() if PROMPTS.exists() else None
    before = getattr(cache, "_instance", None)
    if before is not None:
        setattr(cache, "_instance", None)  # noqa: B010  # mypy knows no such attribute of None
    try:
        yield
    finally:
        if hasattr(cache, "_instance"):
            setattr(cache, "_instance", before)  # noqa: B010  # as above


@contextmanager
def outside_of_any_span() -> Iterator[None]:
    """A span that somebody has open must not become the parent of the spans of the block."""
    if not CONTEXT.exists():
        yield
        return
    from opentelemetry.context import Context

    context = CONTEXT.read()
    token = context.attach(Context())
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the fixture was torn down in another context
            context.detach(token)


@contextmanager
def _provider_replaced(tracer_provider: Any) -> Iterator[None]:
    holder = PROVIDER.read()
    once = getattr(holder, _ONCE_FIELD)
    before = getattr(holder, _PROVIDER_FIELD), once._done
    give_provider(tracer_provider)
    try:
        yield
    finally:
        setattr(holder, _PROVIDER_FIELD, before[0])
        once._done = before[1]


def give_provider(tracer_provider: Any) -> None:
    """Make MLflow trace with this provider, without retiring the one it had."""
    holder = PROVIDER.read()
    setattr(holder, _PROVIDER_FIELD, tracer_provider)
    getattr(holder, _ONCE_FIELD)._done = tracer_provider is not None


@contextmanager
def _public_setters(uri: str, experiment_id: str | None) -> Iterator[None]:
    """The slow way, about a second each: MLflow's own tracer provider, exporting synchronously."""
    set_tracking_uri = genuine("set_tracking_uri", "mlflow", "mlflow.tracking")
    is_set = genuine("is_tracking_uri_set", "mlflow", "mlflow.tracking")
    reset = genuine("reset", "mlflow.tracing", "mlflow.tracing.provider")
    before = genuine("get_tracking_uri", "mlflow", "mlflow.tracking")() if is_set() else None
    set_tracking_uri(uri)
    if experiment_id is not None:
        genuine("set_experiment", "mlflow", "mlflow.tracking.fluent")(experiment_id=experiment_id)
    reset()
    try:
        yield
    finally:
        set_tracking_uri(before)
        reset()


def _run_ender() -> Callable[[], None]:
    """What ends the runs that are active then, with the functions that MLflow has now."""
    active_run = genuine("active_run", "mlflow", "mlflow.tracking.fluent")
    end_run = genuine("end_run", "mlflow", "mlflow.tracking.fluent")

    def end_runs() -> None:
        for _ in range(_MOST_RUNS):
            if active_run() is None:
                break
            # A run that was deleted cannot be ended, and need not be: its store is emptied.
            with contextlib.suppress(Exception):
                end_run()

    return end_runs


class Autolog:
    """Autologging of some flavors: `start` switches it on, `close` makes every flavor what it was before."""

    def __init__(self, flavors: Sequence[str], run_tracer_inline: bool | None) -> None:
        self.flavors = tuple(flavors)
        self._run_tracer_inline = run_tracer_inline
        self._integrations = _autologging()
        self._before = {flavor: dict(config) for flavor, config in self._integrations.items()}
        # Held: a test may replace them.
        self._functions: dict[str, Any] = {}

    def start(self) -> None:
        """LookupError for a flavor that this MLflow cannot autolog."""
        for flavor in self.flavors:
            options: dict[str, Any] = {}
            if flavor == "langchain" and self._run_tracer_inline is not None:
                options["run_tracer_inline"] = self._run_tracer_inline
            function = self._functions[flavor] = _autolog_function(flavor)
            if function is None:
                raise LookupError(f"autolog={flavor!r}: MLflow has no such flavor to trace")
            if options or _off(self._integrations.get(flavor)) is not None:
                _autolog(flavor, function, silent=True, **options)

    def turned_off(self) -> tuple[str, ...]:
        """How the code under test has switched flavors off since, as source text."""
        found = {flavor: _off(self._integrations.get(flavor)) for flavor in self.flavors}
        return tuple(f"mlflow.{flavor}.autolog({how})" for flavor, how in found.items() if how is not None)

    def close(self) -> None:
        for flavor, config in list(self._integrations.items()):
            before = self._before.get(flavor, {})
            if config == before:
                continue
            function = self._functions.get(flavor)
            if _enabled(before):
                _autolog(flavor, function, **before)
            else:
                _autolog(flavor, function, disable=True)
            self._integrations[flavor] = before


def _autologging() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = AUTOLOGGING.read() if AUTOLOGGING.exists() else {}
    return found


def _enabled(config: Mapping[str, Any] | None) -> bool:
    return bool(config) and config is not None and not config.get("disable", False)


def _off(config: Mapping[str, Any] | None) -> str | None:
    """The argument that keeps a flavor from tracing; None where it traces."""
    if not _enabled(config):
        return "disable=True"
    return "log_traces=False" if config is not None and config.get("log_traces") is False else None


def _autolog_function(flavor: str) -> Any:
    try:
        if flavor == "mlflow":
            return genuine("autolog", "mlflow", "mlflow.tracking.fluent")
        return genuine("autolog", f"mlflow.{flavor}", f"mlflow.{flavor}.autolog", f"mlflow.{flavor}.autologging")
    except LookupError:
        return None


def _autolog(flavor: str, function: Any = None, **options: Any) -> None:
    function = _autolog_function(flavor) if function is None else function
    if function is None:
        return
    with muted():
        try:
            function(**options)
        except ModuleNotFoundError as error:
            # MLflow before 3.12 asks for the version of a `langchain` that LangGraph no longer needs.
            if flavor != "langchain" or error.name != "langchain":
                raise
            inspect.unwrap(function)(**options)


@contextmanager
def muted() -> Iterator[None]:
    """No log record below WARNING and no Python warning: opening MLflow's first database chatters, and
    deprecations in it would be errors in a suite that makes warnings errors."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
