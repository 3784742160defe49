"""Test traced LangGraph workflows on Gemini offline: trajectory, tokens and cost per node."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

# Not left for later: once its module of the same name is loaded, the name would mean the module.
from pytest_agenttrace.capture import AgentTrace, NothingTraced, capture

if TYPE_CHECKING:
    from pytest_agenttrace.calls import Call, ModelCall, ToolCall
    from pytest_agenttrace.gemini_server import ErrorReply, GeminiServer, Reply
    from pytest_agenttrace.prices import PriceNotFound, PricesError
    from pytest_agenttrace.replay import CassetteError, CassetteMiss, Fault, GeminiCassette
    from pytest_agenttrace.scoped import AgentRun
    from pytest_agenttrace.store import MlflowStore, StoreError
    from pytest_agenttrace.trace import Execution, Span, SpanNotFound, Trace
    from pytest_agenttrace.usage import Cost, Tokens, Usage, UsageUnknown

__all__ = [
    "AgentRun",
    "AgentTrace",
    "Call",
    "CassetteError",
    "CassetteMiss",
    "Cost",
    "ErrorReply",
    "Execution",
    "Fault",
    "GeminiCassette",
    "GeminiServer",
    "MlflowStore",
    "ModelCall",
    "NothingTraced",
    "PriceNotFound",
    "PricesError",
    "Reply",
    "Span",
    "SpanNotFound",
    "StoreError",
    "Tokens",
    "ToolCall",
    "Trace",
    "Usage",
    "UsageUnknown",
    "capture",
]

_ROOMS = {
    "calls": ("Call", "ModelCall", "ToolCall"),
    "gemini_server": ("ErrorReply", "GeminiServer", "Reply"),
    "prices": ("PriceNotFound", "PricesError"),
    "replay": ("CassetteError", "CassetteMiss", "Fault", "GeminiCassette"),
    "scoped": ("AgentRun",),
    "store": ("MlflowStore", "StoreError"),
    "trace": ("Execution", "Span", "SpanNotFound", "Trace"),
    "usage": ("Cost", "Tokens", "Usage", "UsageUnknown"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> object:
    """Public names are imported when asked for: the plugin's start pays for none of them."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
