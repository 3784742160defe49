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
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

__all__ = [
    "EXPERIMENT_ID",
    "PROVIDER",
    "REGISTRY_URI",
    "TRACKING_URI",
    "Autolog",
    "Global",
    "direct",
    "give_provider",
    "muted",
    "set_aside",
    "sweep",
]

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
LAST_TRACE = Global("mlflow.tracing.fluent", "_LAST_ACTIVE_TRACE_ID_GLOBAL")
DESTINATION = Global("mlflow.tracing.provider", "_MLFLOW_TRACE_USER_DESTINATION")
PROVIDER = Global("mlflow.tracing.provider", "provider")
CONTEXT = Global("mlflow.tracing.provider", "mlflow_runtime_context")
AUTOLOGGING = Global("mlflow.utils.autologging_utils", "AUTOLOGGING_INTEGRATIONS")

# Variables whose values inside a store nobody else can have come upon.
_OURS_ONLY = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
# Of the last store: their value inside and the one before.
_swept: dict[str, tuple[str | None, str | None]] = {}

_PROVIDER_FIELD = "_isolated_tracer_provider"
_ONCE_FIELD = "_isolated_tracer_provider_once"


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables (None unsets); afterwards these and all MLFLOW_* and OTEL_* are as before."""
    sweep()
    before = _variables(values)
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    try:
        yield
    finally:
        for name in _variables(values).keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
        _swept.update({name: (values[name], before.get(name)) for name in _OURS_ONLY if name in values})


def sweep() -> None:
    """Put variables back that something has set to their values inside the last store since it closed.

    `monkeypatch.setenv` does it, torn down after the store: what it takes for the old value is ours.
    """
    for name, (inside, before) in _swept.items():
        if inside is None or os.environ.get(name) != inside:
            continue
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
    _swept.clear()


def _variables(names: Mapping[str, str | None]) -> dict[str, str]:
    prefixes = ("MLFLOW_", "_MLFLOW_", "OTEL_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes) or name in names}


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
    from mlflow import get_tracking_uri, is_tracking_uri_set

    is_set: Callable[[], bool] = is_tracking_uri_set
    asked = get_tracking_uri() if is_set() else None
    hidden: dict[str, str | None] = dict.fromkeys(_HIDDEN)
    inside = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_ENABLE_ASYNC_TRACE_LOGGING": "false"}
    if experiment_id is not None:
        inside["MLFLOW_EXPERIMENT_ID"] = experiment_id
    with ExitStack() as stack:
        stack.enter_context(_environment({**hidden, **inside}))
        for place in (RUN_STACK, LAST_RUN, LAST_MODEL, ACTIVE_MODEL, DESTINATION):
            stack.enter_context(_fresh(place))
        stack.enter_context(_replaced(REGISTRY_URI, None))
        stack.enter_context(_replaced(LAST_TRACE, None))
        stack.enter_context(_outside_of_any_span())
        if direct():
            stack.enter_context(_replaced(TRACKING_URI, uri))
            stack.enter_context(_replaced(EXPERIMENT_ID, experiment_id))
            stack.enter_context(_provider_replaced(tracer_provider))
        else:
            stack.enter_context(_public_setters(uri, experiment_id, asked))
        stack.callback(_end_runs)
        yield


@contextmanager
def _replaced(place: Global, value: Any) -> Iterator[None]:
    if not place.exists():
        yield
        return
    before = place.read()
    place.write(value)
    try:
        yield
    finally:
        place.write(before)


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
def _outside_of_any_span() -> Iterator[None]:
    """A span that somebody left open must not become the parent of the test's spans."""
    if not CONTEXT.exists():
        yield
        return
    from opentelemetry.context import Context

    token = CONTEXT.read().attach(Context())
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the fixture was torn down in another context
            CONTEXT.read().detach(token)


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
def _public_setters(uri: str, experiment_id: str | None, before: Any) -> Iterator[None]:
    """The slow way, about a second each: MLflow's own tracer provider, exporting synchronously."""
    import mlflow

    tracing: Any = mlflow.tracing
    mlflow.set_tracking_uri(uri)
    if experiment_id is not None:
        mlflow.set_experiment(experiment_id=experiment_id)
    tracing.reset()
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
        tracing.reset()


def _end_runs() -> None:
    import mlflow

    while mlflow.active_run() is not None:
        mlflow.end_run()


class Autolog:
    """Autologging of some flavors: `start` switches it on, `close` makes every flavor what it was before."""

    def __init__(self, flavors: Sequence[str], run_tracer_inline: bool | None) -> None:
        self.flavors = tuple(flavors)
        self._run_tracer_inline = run_tracer_inline
        self._before = {flavor: dict(config) for flavor, config in _autologging().items()}

    def start(self) -> None:
        """LookupError for a flavor that this MLflow cannot autolog."""
        for flavor in self.flavors:
            options: dict[str, Any] = {}
            if flavor == "langchain" and self._run_tracer_inline is not None:
                options["run_tracer_inline"] = self._run_tracer_inline
            if _autolog_function(flavor) is None:
                raise LookupError(f"autolog={flavor!r}: MLflow has no such flavor to trace")
            if options or not _enabled(_autologging().get(flavor)):
                _autolog(flavor, silent=True, **options)

    def turned_off(self) -> tuple[str, ...]:
        """The flavors the code under test has switched off since."""
        return tuple(flavor for flavor in self.flavors if not _enabled(_autologging().get(flavor)))

    def close(self) -> None:
        for flavor, config in list(_autologging().items()):
            before = self._before.get(flavor, {})
            if config == before:
                continue
            if _enabled(before):
                _autolog(flavor, **before)
            else:
                _autolog(flavor, disable=True)
            if AUTOLOGGING.exists():
                AUTOLOGGING.read()[flavor] = before


def _autologging() -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = AUTOLOGGING.read() if AUTOLOGGING.exists() else {}
    return found


def _enabled(config: Mapping[str, Any] | None) -> bool:
    return bool(config) and config is not None and not config.get("disable", False)


def _autolog_function(flavor: str) -> Any:
    import mlflow

    module: Any = mlflow
    for part in [] if flavor == "mlflow" else flavor.split("."):
        module = getattr(module, part, None)
    return getattr(module, "autolog", None)


def _autolog(flavor: str, **options: Any) -> None:
    function = _autolog_function(flavor)
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
