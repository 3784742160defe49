"""What keeps MLflow from tracing LangChain and LangGraph while a store is open."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pytest_agenttrace.store.mlflow_state import Autolog
from pytest_agenttrace.store.redirect import Redirect

__all__ = ["Obstacle", "find_obstacle"]

# The flavor that traces chains and graphs.
_FLAVOR = "langchain"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why runs leave no span, and the way out, in the words of a failure."""

    cause: str
    way_out: str


def find_obstacle(redirect: Redirect, autolog: Autolog) -> Obstacle | None:
    """The first that is met; None where nothing is in the way."""
    if redirect.disabled_at is not None:
        return Obstacle(
            f"mlflow.tracing.disable() was called at {redirect.disabled_at}",
            "Leave it out in tests, or call mlflow.tracing.enable() before the graph runs.",
        )
    if _FLAVOR not in autolog.flavors:
        return Obstacle(
            f"autolog={list(autolog.flavors)} leaves LangChain and LangGraph out",
            f'Add "{_FLAVOR}" to autolog, or forgive it with allow=["uncounted"].',
        )
    off = [call for call in autolog.turned_off() if call.startswith(f"mlflow.{_FLAVOR}.")]
    if off:
        return Obstacle(f"the code called {off[0]}", "Leave it out in tests: autolog is on while the fixture is.")
    if not _gives_a_handler():
        return Obstacle(
            "MLflow's patch of LangChain is gone",
            "Something has put langchain_core.callbacks back or loaded it anew: do it before the fixture.",
        )
    return None


def _gives_a_handler() -> bool:
    """Whether a run of LangChain's gets a callback handler of MLflow's, as autolog promises."""
    callbacks = sys.modules.get("langchain_core.callbacks")
    make = getattr(callbacks, "CallbackManager", None)
    if make is None:
        return True
    manager = make(handlers=[])
    handlers = [*getattr(manager, "handlers", ()), *getattr(manager, "inheritable_handlers", ())]
    return any(type(handler).__module__.partition(".")[0] == "mlflow" for handler in handlers)
