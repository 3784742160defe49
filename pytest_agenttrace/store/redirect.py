"""MLflow's setters, answered by the temporary store while it is open or a test module is imported.

Code under test that calls `mlflow.set_tracking_uri` and its like would leave the temporary store. The
functions keep their identity and change their code, so that it does not matter how they were imported.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import environ
from pathlib import Path
from typing import Any

from pytest_agenttrace.store.mlflow_state import (
    CLIENT,
    EXPERIMENT_ID,
    REGISTRY_URI,
    TRACKING_URI,
    genuine,
    give_provider,
)

__all__ = ["Redirect", "mask", "put_in_force"]

_PASSWORD = re.compile(r"(://[^:@/\s'\"]*:)[^@/\s'\"]+@")
_SECRET = re.compile(r"((?:password|passwd|token|secret)=)[^&\s'\"]+", re.IGNORECASE)

# The setters by the module they are called on, and where else they stand: a test may replace them there.
_SETTERS: dict[str, dict[str, tuple[str, ...]]] = {
    "mlflow": {
        "set_tracking_uri": ("mlflow.tracking", TRACKING_URI.module),
        "set_registry_uri": ("mlflow.tracking", REGISTRY_URI.module),
        "set_experiment": ("mlflow.tracking.fluent",),
    },
    "mlflow.tracing": dict.fromkeys(("set_destination", "reset", "enable", "disable"), ("mlflow.tracing.provider",)),
}
# The module of the decorator around MLflow's tracing functions.
_DECORATOR = "mlflow.tracing.utils.exception"
# What a redirected function runs, by its name and the depth of nesting.
_answers: dict[str, Callable[..., Any]] = {}


class Redirect:
    """Answers MLflow's setters while it is active, whichever way the code under test got hold of them:
    the functions keep their identity and change their code.

    `requests` is what was asked for, as source text with passwords masked; `asked` the last value
    given to each function of one argument; `disabled_at` the line that has switched tracing off, `app.py:12`.
    """

    _open = 0

    def __init__(self, uri: str, experiment_id: str | None, tracer_provider: Any) -> None:
        self.uri = uri
        self.requests: list[str] = []
        self.asked: dict[str, Any] = {}
        self.disabled_at: str | None = None
        self._experiment_id = experiment_id
        self._tracer_provider = tracer_provider
        self._stack = ExitStack()
        self.depth = 0

    def __enter__(self) -> Redirect:
        self.depth = Redirect._open
        Redirect._open += 1
        for owner, names in _SETTERS.items():
            for name, elsewhere in names.items():
                if name in ("enable", "disable") and self._tracer_provider is None:
                    continue
                # Where it is MLflow's own no longer, it reaches no store either.
                with contextlib.suppress(LookupError):
                    public = genuine(name, owner, *elsewhere)
                    self._stack.enter_context(_answered_by(self, owner, name, public))
        return self

    @classmethod
    def is_active(cls) -> bool:
        """Whether one answers just now."""
        return cls._open > 0

    def __exit__(self, *_: object) -> None:
        Redirect._open -= 1
        self._stack.close()

    def answer(self, where: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = where.rpartition(".")[2]
        if name == "enable":
            return give_provider(self._tracer_provider)
        if name == "disable":
            return self._disable(original, args, kwargs)
        value = next(iter([*args, *kwargs.values()]), None)
        if name == "set_tracking_uri" and value == self.uri:
            return None
        self.requests.append(_source(where, args, kwargs))
        self.asked[name] = value
        return self._set_experiment(original, args, kwargs) if name == "set_experiment" else None

    def _disable(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Followed, as it may keep secrets out of a trace, and remembered; MLflow's own use of it is no news."""
        line = _line_of_caller()
        if line is not None:
            self.disabled_at = line
            self.requests.append("mlflow.tracing.disable()")
        return original(*args, **kwargs)

    def _set_experiment(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The experiment of that name in the temporary store, made where there is none. An id belongs to
        the store it was asked of: one that is unknown here gives the test's own experiment."""
        from mlflow.exceptions import MlflowException

        given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        name, wanted = given.get("experiment_name"), given.get("experiment_id")
        if (name is None) == (wanted is None):
            return original(*args, **kwargs)  # MLflow's own error
        client = genuine("MlflowClient", *CLIENT)(tracking_uri=self.uri)
        if name is None:
            try:
                experiment = client.get_experiment(wanted)
            except MlflowException:
                experiment = client.get_experiment(self._experiment_id or "0")
        else:
            experiment = client.get_experiment_by_name(name) or _new_experiment(client, name)
        environ["MLFLOW_EXPERIMENT_ID"] = experiment.experiment_id
        if EXPERIMENT_ID.exists():
            EXPERIMENT_ID.write(experiment.experiment_id)
        return experiment


def _line_of_caller() -> str | None:
    """Who has called one of MLflow's setters, as `app.py:12`; None where it was MLflow itself."""
    frame: types.FrameType | None = sys._getframe(1)
    # Ours stands in the place of what MLflow has decorated.
    while frame is not None and (frame.f_code.co_filename == __file__ or _module_of(frame) == _DECORATOR):
        frame = frame.f_back
    if frame is None or _module_of(frame).partition(".")[0] == "mlflow":
        return None
    path = Path(frame.f_code.co_filename)
    here = Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{frame.f_lineno}"


def _module_of(frame: types.FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _new_experiment(client: Any, name: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_experiment(client.create_experiment(name))
    except MlflowException:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment  # another thread was faster


def _trampoline(*args: Any, **kwargs: Any) -> Any:
    # Runs with MLflow's globals: it can use only what it imports.
    from pytest_agenttrace.store.redirect import _answers

    return _answers["KEY"](*args, **kwargs)


@contextmanager
def _answered_by(redirect: Redirect, owner: str, name: str, public: Any) -> Iterator[None]:
    where = f"{owner}.{name}"
    key = f"{where}:{redirect.depth}"
    target = inspect.unwrap(public)
    if not isinstance(target, types.FunctionType) or target.__code__.co_freevars:
        # No plain function: callers that look it up on the module are answered all the same.
        module = sys.modules[owner]
        there = getattr(module, name, public)
        _answers[key] = lambda *args, **kwargs: redirect.answer(where, public, args, kwargs)
        setattr(module, name, lambda *args, **kwargs: _answers[key](*args, **kwargs))
        try:
            yield
        finally:
            setattr(module, name, there)
            _answers[key] = public
        return
    code = target.__code__
    original = types.FunctionType(code, target.__globals__, name, target.__defaults__)
    original.__kwdefaults__ = target.__kwdefaults__
    _answers[key] = lambda *args, **kwargs: redirect.answer(where, original, args, kwargs)
    constants = tuple(key if constant == "KEY" else constant for constant in _trampoline.__code__.co_consts)
    target.__code__ = _trampoline.__code__.replace(co_consts=constants)
    try:
        yield
    finally:
        target.__code__ = code
        _answers[key] = original  # for a thread that is on its way


def _source(where: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    parts = [_literal(arg) for arg in args] + [f"{name}={_literal(arg)}" for name, arg in kwargs.items()]
    return mask(f"{where}({', '.join(parts)})")


def _literal(value: Any) -> str:
    text = repr(str(value)) if isinstance(value, Path) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def mask(text: str) -> str:
    """A text with the passwords of its URLs blacked out."""
    return _SECRET.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))


def put_in_force(asked: Mapping[str, Any]) -> None:
    """Set the tracking and registry URI that a redirected import asked for, retiring nothing."""
    for name, place, variable in (
        ("set_tracking_uri", TRACKING_URI, "MLFLOW_TRACKING_URI"),
        ("set_registry_uri", REGISTRY_URI, "MLFLOW_REGISTRY_URI"),
    ):
        if name not in asked or not place.exists():
            continue
        uri = asked[name]
        if isinstance(uri, Path):
            uri = uri.absolute().resolve().as_uri()
        place.write(uri)
        if uri:
            environ[variable] = uri
        else:
            environ.pop(variable, None)
