"""MLflow's span entities, finished or live, as plain `Span`s."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_agenttrace.execution import Span
from pytest_agenttrace.usage import Usage

__all__ = ["read_span", "read_usage"]

# Since 3.10 MLflow names the model itself; before, LangChain's metadata does.
_MODEL = "mlflow.llm.model"
_USAGE = "mlflow.chat.tokenUsage"


def read_span(entity: Any) -> Span:
    """One `mlflow.entities.Span`. What a span does not say is None, never 0 or "".

    Usage comes from `mlflow.chat.tokenUsage`, the node from LangGraph's run metadata, the error from
    the last exception event (OpenTelemetry's `exception.type` and `exception.message`).
    """
    attributes = dict(entity.attributes)
    metadata = _mapping(attributes.get("metadata"))
    error_type, error = _error(entity.events)
    step = metadata.get("langgraph_step")
    return Span(
        trace_id=entity.trace_id,
        span_id=entity.span_id,
        parent_id=entity.parent_id,
        name=entity.name,
        type=str(entity.span_type),
        status="open" if entity.end_time_ns is None else str(entity.status.status_code.name).lower(),
        start_ns=entity.start_time_ns,
        end_ns=entity.end_time_ns,
        inputs=entity.inputs,
        outputs=entity.outputs,
        error_type=error_type,
        error=error,
        node=_text(metadata.get("langgraph_node")),
        step=step if isinstance(step, int) else None,
        namespace=_text(metadata.get("langgraph_checkpoint_ns")),
        path=_frozen(metadata.get("langgraph_path") or ()),
        model=_model(attributes, metadata),
        usage=read_usage(attributes.get(_USAGE)),
        attributes=attributes,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _error(events: Iterable[Any]) -> tuple[str | None, str | None]:
    found: tuple[str | None, str | None] = (None, None)
    for event in events:
        attributes = _mapping(event.attributes)
        if event.name == "exception":
            found = _text(attributes.get("exception.type")), _text(attributes.get("exception.message"))
    return found


def _model(attributes: Mapping[str, Any], metadata: Mapping[str, Any]) -> str | None:
    for name in (
        attributes.get(_MODEL),
        _mapping(attributes.get("invocation_params")).get("model"),
        metadata.get("ls_model_name") if _USAGE in attributes or "invocation_params" in attributes else None,
    ):
        if isinstance(name, str) and name:
            return name.removeprefix("models/")
    return None


def read_usage(value: Any) -> Usage | None:
    """MLflow's counts of a span or a trace; None where they count nothing."""
    counts = _mapping(value)
    known = {name: count for name, count in counts.items() if isinstance(count, int) and not isinstance(count, bool)}
    usage = Usage(
        input_tokens=known.get("input_tokens"),
        output_tokens=known.get("output_tokens"),
        total_tokens=known.get("total_tokens"),
        cache_read_input_tokens=known.get("cache_read_input_tokens"),
    )
    return usage if usage != Usage() else None
