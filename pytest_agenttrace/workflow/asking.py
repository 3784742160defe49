"""How a node asks its model: its prompt, the tools it calls, its answer by the node's schema.

What is said and what is done with it is one generator; that it is done at once or awaited is all that differs between
a run and an async run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pytest_agenttrace.workflow.failing import WorkflowError, said_of
from pytest_agenttrace.workflow.models import LlmSettings, Node
from pytest_agenttrace.workflow.outputs import Misfit, answer_schema, plain_text, read_answer, read_text
from pytest_agenttrace.workflow.providers import GOOGLE, Models, gemini_settings, worth_another_try
from pytest_agenttrace.workflow.timing import Stopped, goes_on

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage, BaseMessage, ToolCall
    from langchain_core.runnables import Runnable, RunnableConfig
    from langchain_core.tools import BaseTool

__all__ = ["ROUNDS", "Question", "answered", "awaited"]

# How often a model may ask for tools before it must answer.
ROUNDS = 10

# Why a model stopped: Google's and OpenAI's word for it, Anthropic's, Ollama's.
_REASONS = ("finish_reason", "stop_reason", "done_reason")
_WHOLE = ("", "stop", "end_turn", "stop_sequence")
_OUT_OF_TOKENS = ("max_tokens", "length")
_BROKEN_OFF = ("safety", "recitation", "blocklist", "prohibited_content", "spii", "content_filter", "refusal")

_ANSWER = "Give your answer now, from what you have found."


@dataclass(frozen=True, slots=True)
class Question:
    """What a node asks: of a model with these settings, with a prompt as it is sent, and tools."""

    node: Node
    settings: LlmSettings
    prompt: str
    tools: tuple[BaseTool, ...] = ()

    def failed(self, text: str, *, again: bool = False) -> WorkflowError:
        """The node's error."""
        return WorkflowError(text, self.node.place, self.node.id, again=again)


@dataclass(frozen=True, slots=True)
class _Ask:
    """The model is asked: for what it likes, with the tools it may call, or for the answer by the schema."""

    messages: tuple[BaseMessage, ...]
    way: Literal["text", "tools", "schema"]


@dataclass(frozen=True, slots=True)
class _Use:
    """A tool is called."""

    tool: BaseTool
    call: ToolCall


_Talk: TypeAlias = Generator[_Ask | _Use, Any, dict[str, Any]]


def answered(question: Question, models: Models, config: RunnableConfig) -> dict[str, Any]:
    """The node's outputs. Raises `WorkflowError`."""
    talk = _talk(question)
    step = next(talk)
    while True:
        if not goes_on():
            raise Stopped
        try:
            found = _at_once(_runnable(step, question, models), _given(step), config)
        except Exception as error:
            step, outputs = _on(talk, error=error)
        else:
            step, outputs = _on(talk, found)
        if step is None:
            return outputs


async def awaited(question: Question, models: Models, config: RunnableConfig) -> dict[str, Any]:
    """The node's outputs, without blocking. Raises `WorkflowError`."""
    talk = _talk(question)
    step = next(talk)
    while True:
        try:
            found = await _runnable(step, question, models).ainvoke(_given(step), config)
        except Exception as error:
            step, outputs = _on(talk, error=error)
        else:
            step, outputs = _on(talk, found)
        if step is None:
            return outputs


def _at_once(asked: Runnable[Any, Any], given: Any, config: RunnableConfig) -> Any:
    from langchain_core.tools import StructuredTool

    if isinstance(asked, StructuredTool) and asked.func is None:
        # A tool that can only be awaited: no loop runs in this thread, which is the node's own.
        return asyncio.run(asked.ainvoke(given, config))
    return asked.invoke(given, config)


def _on(talk: _Talk, found: Any = None, error: Exception | None = None) -> tuple[Any, dict[str, Any]]:
    """The next step; None with the outputs at the end."""
    try:
        return (talk.send(found) if error is None else talk.throw(error)), {}
    except StopIteration as end:
        return None, end.value


def _given(step: _Ask | _Use) -> Any:
    return list(step.messages) if isinstance(step, _Ask) else step.call


def _runnable(step: _Ask | _Use, question: Question, models: Models) -> Runnable[Any, Any]:
    if isinstance(step, _Use):
        return step.tool
    model = models.get(question.settings)
    gemini = question.settings.provider in GOOGLE
    # Said with each request: langchain-google-genai 4.0 and 4.1.0 leave out what the model itself was made with.
    said = gemini_settings(question.settings) if gemini else {}
    if step.way == "tools":
        return model.bind_tools(question.tools).bind(**said)
    if step.way == "text":
        return model.bind(**said)
    schema = answer_schema(question.node)
    if gemini:
        # What with_structured_output binds, without its parser: that one takes half a reply for a whole one.
        return model.bind(response_mime_type="application/json", response_json_schema=schema, **said)
    return model.with_structured_output(schema, include_raw=True)


def _talk(question: Question) -> _Talk:
    from langchain_core.messages import HumanMessage

    messages: list[BaseMessage] = [HumanMessage(question.prompt)]
    if question.tools:
        reply = yield from _with_tools(question, messages)
        if plain_text(question.node):
            return _outputs(question, reply)
        # Gemini 2 refuses tools beside a schema, so that the answer is asked for by itself.
        messages.append(HumanMessage(_ANSWER))
    elif plain_text(question.node):
        return _outputs(question, (yield from _asked(question, messages, "text")))
    return _outputs(question, (yield from _asked(question, messages, "schema")))


def _with_tools(question: Question, messages: list[BaseMessage]) -> Generator[_Ask | _Use, Any, AIMessage]:
    """Rounds of calls until the model asks for no tool any more; all that is said is added to the messages."""
    for _ in range(ROUNDS):
        reply: AIMessage = yield from _asked(question, messages, "tools")
        if not reply.tool_calls:
            if reply.text.strip():
                messages.append(reply)
            return reply
        messages.append(reply)
        for call in reply.tool_calls:
            messages.append((yield from _used(question, call)))  # noqa: PERF401  # a comprehension cannot yield from
    raise question.failed(f"after {ROUNDS} rounds of tool calls its model asks for tools still", again=True)


def _asked(question: Question, messages: list[BaseMessage], way: Literal["text", "tools", "schema"]) -> Any:
    from langgraph.errors import GraphBubbleUp

    try:
        found = yield _Ask(tuple(messages), way)
    except (GraphBubbleUp, WorkflowError):
        raise
    except Exception as error:
        text = f"{question.settings.model}: {said_of(error)}"
        raise question.failed(text, again=worth_another_try(error)) from error
    return found


def _used(question: Question, call: ToolCall) -> Any:
    """A tool's answer as a message. An error of it is the answer too where the tool says `on_error: continue`."""
    from langchain_core.messages import ToolMessage
    from langgraph.errors import GraphBubbleUp

    def answer(text: str) -> ToolMessage:
        return ToolMessage(text, tool_call_id=call["id"] or "", name=call["name"], status="error")

    tool = next((tool for tool in question.tools if tool.name == call["name"]), None)
    if tool is None:
        known = ", ".join(tool.name for tool in question.tools)
        return answer(f"There is no tool {call['name']}; there are: {known}")
    try:
        return (yield _Use(tool, {**call, "type": "tool_call"}))
    except GraphBubbleUp:
        raise
    except Exception as error:
        if question.node.tools[question.tools.index(tool)].on_error == "continue":
            return answer(f"Error: {said_of(error)}")
        again = worth_another_try(error) or _of_arguments(error)
        raise question.failed(f"tool {tool.name}: {said_of(error)}", again=again) from error


def _of_arguments(error: Exception) -> bool:
    """Whether the model gave a tool arguments that it does not take: another time it may do better."""
    from pydantic import ValidationError

    return isinstance(error, ValidationError)


def _outputs(question: Question, found: Any) -> dict[str, Any]:
    try:
        return _read(question, found)
    except Misfit as error:
        message = found["raw"] if isinstance(found, dict) else found
        blocked = _blocked(message)
        if blocked:
            raise question.failed(f"{question.settings.model}: the prompt was blocked: {blocked}") from error
        raise question.failed(f"{question.settings.model}: {error}", again=True) from error


def _read(question: Question, found: Any) -> dict[str, Any]:
    node = question.node
    if not isinstance(found, dict):
        return read_text(node, found.text, _ending(found), _cut(found, question.settings))
    # By with_structured_output: the raw message, what was parsed of it, and why that failed.
    raw, parsed = found["raw"], found["parsed"]
    if parsed is not None and (raw.tool_calls or not raw.text.strip()):
        return read_answer(node, parsed)
    return read_text(node, raw.text, _ending(raw), _cut(raw, question.settings))


def _reason(message: AIMessage) -> str:
    """Why the model stopped, in its provider's words; "" where nobody says."""
    found = message.response_metadata
    return next((str(found[key]) for key in _REASONS if found.get(key)), "")


def _ending(message: AIMessage) -> str:
    reason = _reason(message)
    return f" ({reason})" if reason.lower() not in _WHOLE else ""


def _cut(message: AIMessage, settings: LlmSettings) -> str:
    """Why a reply is not whole, though it reads well; "" where it is."""
    reason = _reason(message)
    if reason.lower() in _OUT_OF_TOKENS:
        most = settings.max_tokens
        more = "max_tokens is not set" if most is None else f"max_tokens is {most:,}"
        return f"the reply is cut ({reason}): {more}"
    return f"the reply is cut ({reason})" if reason.lower() in _BROKEN_OFF else ""


def _blocked(message: AIMessage) -> str | None:
    feedback = message.response_metadata.get("prompt_feedback")
    reason = feedback.get("block_reason") if isinstance(feedback, dict) else None
    # Unset is 0 in Google's messages.
    return str(getattr(reason, "name", reason)) if reason else None
