"""Which run of a LangChain model is asking, by what LangChain tells its callbacks.

LangGraph runs a chain that is a node step by step, and only the first step inside of the run's context; the metadata
that callbacks are given is right everywhere.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from pytest_agenttrace.calls import Caller
from pytest_agenttrace.importing import after_import

__all__ = ["MODEL_RUNS", "ModelRuns", "caller_from"]

_HOOKS = "langchain_core.tracers.context"


def caller_from(metadata: Mapping[str, Any]) -> Caller:
    """The node that LangGraph's run metadata names; `Caller()` where it names none."""
    return Caller(
        metadata.get("langgraph_node"),
        metadata.get("langgraph_step"),
        metadata.get("langgraph_checkpoint_ns"),
        tuple(metadata.get("langgraph_path") or ()),
    )


class ModelRuns:
    """The runs of models that are going on while a test is followed."""

    def __init__(self) -> None:
        self._followed = False
        self._registered = False
        self._handler: Any = None
        self._callers: dict[str, Caller] = {}
        # A run that ends in another context than it began in leaves its id behind; it names nobody any more.
        self._current: ContextVar[str] = ContextVar("agenttrace_model_run", default="")

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Listen to the models of the block. Imports no LangChain: until the code does, there is nothing to hear."""
        self._followed = True
        try:
            with ExitStack() as stack:
                if _HOOKS in sys.modules:
                    self._register()
                else:
                    stack.enter_context(after_import(_HOOKS, self._register))
                yield
        finally:
            self._followed = False
            self._callers.clear()

    def caller(self) -> Caller:
        """The node whose model is asking in this context; `Caller()` where none is."""
        return self._callers.get(self._current.get(), Caller())

    def get(self) -> Any:
        """LangChain reads its hooks like context variables: the handler while a test is followed, else None."""
        if not self._followed:
            return None
        if self._handler is None:
            self._handler = _handler(self)
        return self._handler

    def began(self, run_id: object, metadata: Mapping[str, Any] | None) -> None:
        found = caller_from(metadata or {})
        if self._followed and found.namespace is not None:
            self._callers[str(run_id)] = found
            self._current.set(str(run_id))

    def ended(self, run_id: object) -> None:
        self._callers.pop(str(run_id), None)

    def _register(self) -> None:
        """Once for each process: LangChain keeps its hooks for ever."""
        if self._registered:
            return
        with contextlib.suppress(ImportError, AttributeError, TypeError):
            hooks: Any = sys.modules[_HOOKS]
            hooks.register_configure_hook(self, inheritable=False)
            self._registered = True


def _handler(runs: ModelRuns) -> Any:
    from langchain_core.callbacks.base import BaseCallbackHandler

    class Listener(BaseCallbackHandler):
        # In the task that asks, not in a thread beside it.
        run_inline = True
        ignore_chain = ignore_agent = ignore_retriever = ignore_custom_event = ignore_retry = True

        def on_chat_model_start(self, *args: Any, run_id: Any, metadata: Any = None, **kwargs: Any) -> None:
            runs.began(run_id, metadata)

        def on_llm_start(self, *args: Any, run_id: Any, metadata: Any = None, **kwargs: Any) -> None:
            runs.began(run_id, metadata)

        def on_llm_end(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
            runs.ended(run_id)

        def on_llm_error(self, *args: Any, run_id: Any, **kwargs: Any) -> None:
            runs.ended(run_id)

    return Listener()


MODEL_RUNS = ModelRuns()
