"""What a run of a workflow is doing, told while it does it: a line as a node begins, one as it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from pytest_agenttrace.workflow.failing import said_of

__all__ = ["progress"]


def progress(say: Callable[[str], None]) -> Any:
    """A callback of LangChain's that tells of the outermost nodes."""
    from langchain_core.callbacks import BaseCallbackHandler

    class Progress(BaseCallbackHandler):
        def __init__(self) -> None:
            self._begun: dict[object, tuple[str, float]] = {}
            self._lock = threading.Lock()

        def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: object, **more: Any) -> None:
            metadata = more.get("metadata") or {}
            node, namespace = metadata.get("langgraph_node"), str(metadata.get("langgraph_checkpoint_ns", ""))
            if node is None or node != more.get("name") or "|" in namespace:
                return
            with self._lock:
                self._begun[run_id] = node, time.monotonic()
            say(f"  {node} ...")

        def on_chain_end(self, outputs: Any, *, run_id: object, **more: Any) -> None:
            self._ended(run_id, "✓", "")

        def on_chain_error(self, error: BaseException, *, run_id: object, **more: Any) -> None:
            self._ended(run_id, "✗", f": {said_of(error)}")

        def _ended(self, run_id: object, mark: str, why: str) -> None:
            with self._lock:
                node, since = self._begun.pop(run_id, ("", 0.0))
            if node:
                say(f"{mark} {node} ({time.monotonic() - since:.1f} s){why}")

    return Progress()
