"""Which reply a request gets: rules by node and by prompt, and scripts as a list, a dict or a function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from pytest_agenttrace.gemini_server.replies import Answer, ErrorReply, Reply

__all__ = ["Chosen", "Rules", "Script", "ScriptedRequest", "read_scripted_request"]

_SHOWN = 80


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """What was asked. `method` is `generateContent` or `streamGenerateContent`; `prompt` the text of the last user
    content that has any (a tool's result has none); `tools` the names of the functions declared; `node` the LangGraph
    node that asks, None where nobody said (the server was asked directly, or outside of a graph)."""

    model: str
    method: str
    body: Mapping[str, Any]
    prompt: str
    tools: tuple[str, ...]
    node: str | None = None

    def __str__(self) -> str:
        return f"{self.model}:{self.method}, prompt {self.prompt!r}"


Script: TypeAlias = (
    Sequence[Answer] | Mapping[str, Answer | Sequence[Answer]] | Callable[[ScriptedRequest], Answer | None]
)


class Chosen(NamedTuple):
    """A reply and its place among those of its rule, from 1; 0 for one that is served as often as it is asked for."""

    answer: Answer
    number: int = 0


@dataclass
class _Rule:
    answers: tuple[Answer, ...]
    node: str | None
    prompt: str | None
    model: str | None
    asked: int = 0

    def fits(self, request: ScriptedRequest) -> bool:
        asked = self.node in (None, request.node) and self.model in (None, request.model)
        return asked and (self.prompt is None or self.prompt in request.prompt)

    @property
    def used_up(self) -> bool:
        return len(self.answers) > 1 and self.asked >= len(self.answers)

    @property
    def left(self) -> int:
        """How many of its replies nobody has asked for."""
        return max(len(self.answers) - self.asked, 0)

    def next(self) -> Chosen:
        number, self.asked = self.asked, self.asked + 1
        return Chosen(self.answers[0]) if len(self.answers) == 1 else Chosen(self.answers[number], number + 1)

    @property
    def conditions(self) -> str:
        given = {"node": self.node, "prompt": self.prompt, "model": self.model}
        return ", ".join(f"{name}={_quoted(value)}" for name, value in given.items() if value is not None)

    def __str__(self) -> str:
        replies = "1 reply" if len(self.answers) == 1 else f"{len(self.answers)} replies"
        return f"{self.conditions or 'any request'}: {replies}{', all used' if self.used_up else ''}"


class Rules:
    """A script in force: what it has served so far, and why it has no reply. Thread safe."""

    def __init__(self, script: Script | None) -> None:
        self._script = script
        self._rules: list[_Rule] = []
        self._served: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, answers: Sequence[Answer], node: str | None, prompt: str | None, model: str | None) -> None:
        if not answers:
            raise ValueError("gemini_server.reply: no reply was given")
        for answer in answers:
            if not isinstance(answer, Reply | ErrorReply):
                raise TypeError(f"gemini_server.reply: {answer!r} is no Reply and no ErrorReply")
        for name, value in (("node", node), ("prompt", prompt), ("model", model)):
            if value is not None and not isinstance(value, str):
                raise TypeError(f"gemini_server.reply: {name} is {value!r}, not text")
        with self._lock:
            self._rules.append(_Rule(tuple(answers), node, prompt, model))

    @property
    def unused(self) -> list[tuple[str | None, str]]:
        """Node and text of each rule that has replies nobody asked for."""
        with self._lock:
            return [(rule.node, _unused_text(rule)) for rule in self._rules if rule.left]

    def choose(self, request: ScriptedRequest) -> Chosen | str:
        """The reply to a request, or why there is none."""
        with self._lock:
            rule = next((rule for rule in self._rules if rule.fits(request) and not rule.used_up), None)
            if rule is not None:
                return rule.next()
        return self._explain(request) if self._script is None else self._of_script(self._script, request)

    def _explain(self, request: ScriptedRequest) -> str:
        """Why no rule has a reply: the prompt, the rules there are, the way out; a line each."""
        with self._lock:
            rules = [f"  {rule}" for rule in self._rules]
        by = f"node={_quoted(request.node)}" if request.node else f"prompt={_quoted(request.prompt[:20])}"
        return "\n".join(
            [
                f"prompt: {_cut(request.prompt)}",
                *(["rules:", *rules] if rules else ["rules: none"]),
                "Say what it answers:",
                f'  gemini_server.reply(Reply("..."), {by})',
            ]
        )

    def _of_script(self, script: Script, request: ScriptedRequest) -> Chosen | str:
        if callable(script):
            answer = script(request)
            return Chosen(answer) if answer is not None else f"the script has no reply to {request}"
        if isinstance(script, Mapping):
            key = next((key for key in script if key in request.prompt), None)
            if key is None:
                keys = ", ".join(map(repr, script)) or "none"
                return f"no key of the script is part of the prompt: {request}; keys: {keys}"
            found = script[key]
            if isinstance(found, Reply | ErrorReply):
                return Chosen(found)
            return self._next(key, found) or f"all replies to {key!r} are used ({len(found)}): {request}"
        return self._next("", script) or f"all replies are used ({len(script)}): {request}"

    def _next(self, key: str, answers: Sequence[Answer]) -> Chosen | None:
        with self._lock:
            position = self._served.get(key, 0)
            self._served[key] = position + 1
        return Chosen(answers[position], position + 1) if position < len(answers) else None


def _unused_text(rule: _Rule) -> str:
    head = f"{rule.node}: " if rule.node else ""
    if len(rule.answers) == 1:
        what = "a reply of the script was"
    else:
        what = f"{rule.left} of {len(rule.answers)} replies of the script {'was' if rule.left == 1 else 'were'}"
    return f"{head}{what} never asked for: gemini_server.reply({', '.join(filter(None, ['...', rule.conditions]))})"


def _quoted(text: str) -> str:
    """In double quotes, as the README writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3].rstrip()}..."


def read_scripted_request(model: str, method: str, body: Mapping[str, Any], node: str | None) -> ScriptedRequest:
    """What a body asks."""
    return ScriptedRequest(model, method, body, _prompt(body), _tool_names(body), node)


def _prompt(body: Mapping[str, Any]) -> str:
    for content in reversed(body.get("contents", [])):
        if content.get("role", "user") == "user":
            texts = [part["text"] for part in content.get("parts", []) if "text" in part]
            if texts:
                return "\n".join(texts)
    return ""


def _tool_names(body: Mapping[str, Any]) -> tuple[str, ...]:
    declared = [tool.get("functionDeclarations", []) for tool in body.get("tools", [])]
    return tuple(function["name"] for functions in declared for function in functions)
