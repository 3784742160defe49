"""What a run leaves in its store: minimal keeps numbers and names, standard what went in and came out, full the same
and files of each node; prompts can be left out of all of them.

What is not to be kept is taken out of the spans as they are about to be written. At minimal everything goes that is
not on a list of what may stay: an attribute that a later MLflow adds is not kept by accident.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from pytest_agenttrace.store import TraceFacts

if TYPE_CHECKING:
    from pytest_agenttrace.trace import Trace

__all__ = ["REMOVED", "Keeping", "node_files", "node_of"]

REMOVED = "[prompt not kept]"

Level = Literal["minimal", "standard", "full"]

# Numbers and names: nothing that a prompt, a reply or a state could be in.
_KEPT_ATTRIBUTES = frozenset(
    {
        "mlflow.chat.tokenUsage",
        "mlflow.experimentId",
        "mlflow.llm.cost",
        "mlflow.llm.model",
        "mlflow.llm.provider",
        "mlflow.message.format",
        "mlflow.spanLogLevel",
        "mlflow.spanType",
        "mlflow.traceRequestId",
    }
)
_KEPT_METADATA = frozenset(
    {
        "langgraph_checkpoint_ns",
        "langgraph_node",
        "langgraph_path",
        "langgraph_step",
        "ls_max_tokens",
        "ls_model_name",
        "ls_model_type",
        "ls_provider",
        "ls_temperature",
    }
)
_NAMES = _KEPT_ATTRIBUTES - {"mlflow.message.format"}
_KEPT_PARAMETERS = ("model", "model_name")
_KEPT_FACTS = ("mlflow.trace.", "mlflow.trace_schema.", "mlflow.source.", "mlflow.user", "mlflow.sourceRun")
_KEPT_TAGS = ("mlflow.traceName", "mlflow.artifactLocation", "mlflow.trace.spansLocation")
_INPUTS, _OUTPUTS, _MESSAGES = "mlflow.spanInputs", "mlflow.spanOutputs", "mlflow.chat.messages"
# Characters of what MLflow shows of a trace in its lists.
_PREVIEW = 1000
_ASKED = frozenset({_INPUTS, _MESSAGES, "mlflow.chat.tools", "invocation_params", "options"})
# Of the roles in a conversation, whose words are the prompt.
_ASKING = frozenset({"user", "system", "human", "developer"})
_MODELS = frozenset({"CHAT_MODEL", "LLM", "EMBEDDING"})
# A shorter prompt is taken out where it stands alone: as a part of other words it is no prompt.
_TELLING = 12
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


class Keeping:
    """The edit of one run's traces. `prompts` says of a node whether its prompts are kept, None asks for models that
    are called outside of any."""

    def __init__(self, level: Level, prompts: Callable[[str | None], bool]) -> None:
        self._level = level
        self._prompts = prompts
        self._asked: set[str] = set()
        self._forms: list[str] = []
        self._root: dict[str, Any] = {}
        self.attachments = level != "minimal" and prompts(None)

    def spans(self, spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The spans of a trace, with what is kept of each."""
        if self._level == "minimal":
            return [_minimal(span) for span in spans]
        for span in spans:
            if _type(span) in _MODELS and not self._prompts(node_of(_metadata(span))):
                self._asked |= set(_texts_asked(span))
        self._forms = _forms_of(self._asked)
        if not self._asked:
            return spans
        left = [self._without_prompts(span) for span in spans]
        root: dict[str, Any] = next((span["attributes"] for span in left if span.get("parent_span_id") is None), {})
        self._root = {name: root.get(name) for name in (_INPUTS, _OUTPUTS)}
        return left

    def facts(self, facts: TraceFacts) -> TraceFacts:
        """What is kept of a trace's row."""
        if self._level == "minimal":
            return TraceFacts(
                None,
                None,
                {key: value for key, value in facts.metadata.items() if key.startswith(_KEPT_FACTS)},
                {key: value for key, value in facts.tags.items() if key.startswith(_KEPT_TAGS)},
            )
        if not self._asked:
            return facts
        # MLflow has cut these short, and a prompt's first half is found by nobody: they are made anew of what is kept.
        inputs, outputs = self._preview(_INPUTS), self._preview(_OUTPUTS)
        previews = {"mlflow.traceInputs": inputs, "mlflow.traceOutputs": outputs}
        return TraceFacts(
            None if facts.request is None else inputs,
            None if facts.response is None else outputs,
            {key: previews.get(key, self._text(value)) for key, value in facts.metadata.items()},
            {key: self._text(value) for key, value in facts.tags.items()},
        )

    def _preview(self, name: str) -> str:
        text = self._root.get(name)
        shown = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        return shown if len(shown) <= _PREVIEW else f"{shown[: _PREVIEW - 3]}..."

    def plain(self, value: Any) -> Any:
        """Plain data without the prompts that were taken out of the spans."""
        if not self._asked:
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self.plain(key): self.plain(inner) for key, inner in value.items()}
        return [self.plain(inner) for inner in value] if isinstance(value, list | tuple) else value

    def _without_prompts(self, span: dict[str, Any]) -> dict[str, Any]:
        attributes = {
            key: value if key in _NAMES else self._attribute(value) for key, value in span["attributes"].items()
        }
        # Names and numbers that spans are read by, whatever they have in common with a prompt.
        if metadata := _metadata(span):
            own = {key: value for key, value in metadata.items() if key in _KEPT_METADATA}
            attributes["metadata"] = json.dumps({**self.plain(metadata), **own}, ensure_ascii=False)
        if _type(span) in _MODELS and not self._prompts(node_of(_metadata(span))):
            # Schemas and tools with their descriptions are told to a model too.
            attributes = {key: value for key, value in attributes.items() if key not in _ASKED} | _model_of(span)
        # An API that refuses a prompt quotes it, cut short and escaped in ways of its own.
        events = [
            _bare(event)
            if event["name"] == "exception"
            else {**event, "attributes": self.plain(event.get("attributes") or {})}
            for event in span["events"]
        ]
        return {**span, "attributes": attributes, "events": events, "status": {**span["status"], "message": ""}}

    def _attribute(self, value: Any) -> Any:
        """An attribute is JSON, in which a text looks otherwise than it is."""
        try:
            found = json.loads(value)
        except (TypeError, ValueError):
            return self.plain(value)
        left = self.plain(found)
        return value if left == found else json.dumps(left, ensure_ascii=False)

    def _text(self, text: str) -> str:
        if text in self._asked:
            return REMOVED
        for form in self._forms:
            if len(form) <= len(text):
                text = text.replace(form, REMOVED)
        return text


def _forms_of(texts: Iterable[str]) -> list[str]:
    """How texts look within others, the longest first: as they are, and as text in JSON or in Python."""
    telling = [text for text in texts if len(text) >= _TELLING]
    forms = {form for text in telling for form in (text, json.dumps(text)[1:-1], _unescaped(text), repr(text)[1:-1])}
    return sorted(forms, key=lambda form: (-len(form), form))


def _unescaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def node_of(metadata: dict[str, Any]) -> str | None:
    """The outermost node that a span is of, by LangGraph's metadata; None outside of any."""
    namespace = metadata.get("langgraph_checkpoint_ns")
    if isinstance(namespace, str) and namespace:
        return namespace.split("|")[0].rpartition(":")[0] or namespace
    node = metadata.get("langgraph_node")
    return node if isinstance(node, str) else None


def _minimal(span: dict[str, Any]) -> dict[str, Any]:
    attributes = {key: value for key, value in span["attributes"].items() if key in _KEPT_ATTRIBUTES}
    metadata = {key: value for key, value in _metadata(span).items() if key in _KEPT_METADATA}
    if metadata:
        attributes["metadata"] = json.dumps(metadata)
    attributes |= _model_of(span)
    events = [_bare(event) for event in span["events"] if event["name"] == "exception"]
    return {
        **span,
        "attributes": attributes,
        "events": events,
        "status": {**span["status"], "message": ""},
        **({"links": []} if "links" in span else {}),
    }


def _model_of(span: dict[str, Any]) -> dict[str, Any]:
    """Of what a model was called with, its name: MLflow 3.9 says it nowhere else."""
    asked = _loaded(span["attributes"].get("invocation_params"))
    models = {key: asked[key] for key in _KEPT_PARAMETERS if key in asked} if isinstance(asked, dict) else {}
    return {"invocation_params": json.dumps(models)} if models else {}


def _bare(event: dict[str, Any]) -> dict[str, Any]:
    """An error by its type: its words may be the model's."""
    kind = (event.get("attributes") or {}).get("exception.type")
    return {**event, "attributes": {} if kind is None else {"exception.type": kind}}


def _type(span: dict[str, Any]) -> Any:
    return _loaded(span["attributes"].get("mlflow.spanType"))


def _metadata(span: dict[str, Any]) -> dict[str, Any]:
    found = _loaded(span["attributes"].get("metadata"))
    return found if isinstance(found, dict) else {}


def _loaded(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def _texts_asked(span: dict[str, Any]) -> Iterator[str]:
    """The texts that a model was sent: of a conversation what was asked, not what was answered before."""
    for key in (_INPUTS, _MESSAGES):
        yield from _asked_in(_loaded(span["attributes"].get(key)))


def _asked_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield from (value,) if value.strip() else ()
    elif isinstance(value, list):
        for inner in value:
            yield from _asked_in(inner)
    elif isinstance(value, dict):
        role = value.get("role", value.get("type"))
        if "content" in value or "role" in value:
            if role in _ASKING or role is None:
                yield from _words(value.get("content"))
        else:
            for inner in value.values():
                yield from _asked_in(inner)


def _words(content: Any) -> Iterable[str]:
    """The texts of a message's content: one, or parts."""
    if isinstance(content, str):
        return (content,) if content.strip() else ()
    parts = content if isinstance(content, list) else []
    texts = (part if isinstance(part, str) else part.get("text") for part in parts if isinstance(part, str | dict))
    return [text for text in texts if isinstance(text, str) and text.strip()]


def node_files(
    trace: Trace, files: Callable[[str | None], bool], prompts: Callable[[str | None], bool]
) -> Iterator[tuple[str, Any]]:
    """The files of a run at level full, by name: for each execution of a node the state it got and gave, the prompts
    its models were sent and the replies that came."""
    for number, execution in enumerate(trace.executions, 1):
        if not files(execution.node):
            continue
        folder = f"nodes/{number:02d}_{_UNSAFE.sub('_', execution.node)}"
        asked = [span for attempt in execution.spans for span in attempt.walk() if span.type in _MODELS]
        yield (
            f"{folder}/state.json",
            {
                "node": execution.node,
                "status": execution.status,
                "attempts": execution.attempts,
                "inputs": execution.inputs,
                "outputs": execution.outputs,
            },
        )
        if prompts(execution.node):
            yield f"{folder}/prompts.json", [{"model": span.model, "prompt": span.inputs} for span in asked]
        yield f"{folder}/replies.json", [{"model": span.model, "reply": span.outputs} for span in asked]
