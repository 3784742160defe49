"""Workflows by the hundred, made and changed by chance: each loads or is refused, runs to its end or fails in words."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pytest_agenttrace import ErrorReply, GeminiServer, Reply
from pytest_agenttrace.gemini_server import ScriptedRequest
from pytest_agenttrace.workflow import ConfigError, Workflow, WorkflowError, graphs, parse_config
from pytest_agenttrace.workflow.providers import Models
from pytest_agenttrace.workflow.tools import register, unregister
from tests.running import edge, node, route, served, written
from tests.test_workflow_loading import MUTATIONS, SEEDS

LONGEST = 30.0
FIELDS = {
    "x": {"type": "int", "default": 3},
    "done": {"type": "bool", "default": False},
    "items": {"type": "list[str]", "default": ["p", "q", "r"]},
    "found": "list[str]",
    **{f"t{at}": "str" for at in range(8)},
}


def _valued(schema: dict[str, Any], chance: random.Random) -> Any:
    """A value that fits a JSON Schema; now and then one that does not."""
    if chance.random() < 0.01:
        return chance.choice([None, 1.5, "x", [], {}])
    match schema.get("type"):
        case "string":
            return chance.choice(["", "text", "{state.x}", "{{", "}"])
        case "integer":
            return chance.randint(-2, 12)
        case "number":
            return chance.choice([1, 2.5])
        case "boolean":
            return chance.random() < 0.5
        case "array":
            return [_valued(schema["items"], chance) for _ in range(chance.randint(0, 3))]
        case "object":
            members = {name: _valued(member, chance) for name, member in schema.get("properties", {}).items()}
            more = schema.get("additionalProperties")
            return members or ({"key": _valued(more, chance)} if isinstance(more, dict) else {})
        case _:
            return chance.choice([1, "a", None])


def _answering(chance: random.Random) -> Callable[[ScriptedRequest], Reply | ErrorReply]:
    def script(request: ScriptedRequest) -> Reply | ErrorReply:
        dice = chance.random()
        if dice < 0.02:
            return ErrorReply(chance.choice([400, 429, 503]), "by chance")
        if dice < 0.04:
            return Reply(chance.choice(["", "no json", '{"half": ']))
        if request.tools and dice < 0.6:
            return Reply(tool_calls=[(chance.choice([*request.tools, "unknown"]), {"query": "q"})])
        schema = request.body["generationConfig"].get("responseJsonSchema")
        return Reply("text") if schema is None else Reply(json=_valued(schema, chance))

    return script


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    """Made once for all: making one costs more than a whole run."""
    monkeypatch.setattr(graphs, "WAITS", (0.001, 0.002))
    return Models(LONGEST)


def _with(models: Models, config: Any) -> Workflow:
    found = Workflow(config)
    found._models = models
    return found


def _inputs(found: Workflow) -> dict[str, Any]:
    """Values for what a workflow requires."""
    values = {"str": "text", "int": 1, "float": 1.5, "bool": False, "list": [], "dict": {}, "object": {}}
    return {name: values[field.type.name] for name, field in found.config.state.fields.items() if field.required}


# Graphs


def _edges(names: list[str], chance: random.Random) -> list[dict[str, Any]]:
    """Ways forward through the nodes, of all kinds; now and then one back."""
    found = []
    for at, name in enumerate(["START", *names]):
        # The next node is always among them, so that each is reached.
        first, *others = [*names[at:], "END"]
        targets = [first, *chance.sample(others, min(len(others), chance.choice([0, 0, 1, 1, 2])))]
        chance.shuffle(targets)
        kind = chance.random()
        if kind < 0.2 and len(targets) > 1:
            back = chance.random() < 0.3 and at > 0
            routes = [route(f"x > {chance.randint(0, 9)}", to) for to in targets[1:]]
            default = chance.choice(names[:at]) if back and "END" in targets[1:] else targets[0]
            found.append(edge(name, routes=[*routes, route("default", default)]))
        elif kind < 0.3 and name != "START":
            loop = {"condition_field": "done", "exit_to": targets[0], "max_iterations": chance.randint(1, 4)}
            found.append(edge(name, loop=loop))
        elif kind < 0.4 and targets[0] != "END":
            mapped = {"items_field": "items", "target_node": targets[0], "collect_field": "found"}
            found.append(edge(name, parallel=mapped))
        elif "END" in targets and len(targets) > 1:
            found.append(edge(name, *(to for to in targets if to != "END")))
        else:
            found.append(edge(name, *targets))
    return found


def _graph(chance: random.Random) -> str:
    names = [f"n{at}" for at in range(chance.randint(2, 7))]
    more = [(), (), (), (), ("x: int",), ("done: bool",)]
    nodes = [node(name, f"{name}:", f"t{at}: str", *chance.choice(more)) for at, name in enumerate(names)]
    return written(FIELDS, nodes, _edges(names, chance), max_retries=0)


def test_graphs_of_all_kinds_run_to_their_end(models: Models) -> None:
    """Where there is no way back, every node runs once at most: branches join, whatever their lengths."""
    chance, answers = random.Random(20_261_125), random.Random(7)

    def script(request: ScriptedRequest) -> Reply:
        schema = request.body["generationConfig"].get("responseJsonSchema")
        if schema is None:
            return Reply("text")
        values = {"string": "text", "integer": answers.randint(0, 9), "boolean": answers.random() < 0.5}
        return Reply(json={name: values[member["type"]] for name, member in schema["properties"].items()})

    ran = refused = circles = 0
    with served(script) as server:
        for number in range(500):
            try:
                found = _with(models, parse_config(_graph(chance), "f.yaml"))
            except ConfigError:
                refused += 1
                continue
            server.requests.clear()
            begun = time.monotonic()
            said = _said(found, {}, number)
            assert said is None or "its routes lead in a circle" in said, f"{number}: {said}"
            ran, circles = ran + (said is None), circles + (said is not None)
            assert time.monotonic() - begun < LONGEST, number
            _ran_once(found, server, number)
    assert ran > 60
    assert refused > 50
    assert circles < ran / 10


def _ran_once(found: Workflow, server: GeminiServer, number: int) -> None:
    if any(edge.loop is not None or _back(found, edge) for edge in found.config.edges):
        return
    asked = Counter(body["contents"][0]["parts"][0]["text"].partition(":")[0] for _, body in server.requests)
    mapped = {edge.parallel.target_node for edge in found.config.edges if edge.parallel is not None}
    for name, count in asked.items():
        assert count == 1 or (name in mapped and count <= 4), f"{number}: {name} ran {count} times"


def _back(found: Workflow, of: Any) -> bool:
    order = ["START", *(node.id for node in found.config.nodes), "END"]
    return any(order.index(to) <= order.index(of.source) for to in of.targets)


def _said(found: Workflow, inputs: dict[str, Any], number: int) -> str | None:
    """What a run failed with; None for one that came to its end. Each fourth one is awaited."""
    try:
        if number % 4:
            found.run(inputs)
        else:
            asyncio.run(found.arun(inputs))
    except WorkflowError as error:
        return str(error)
    return None


# Texts


def test_2000_changed_workflows_run_or_fail_in_words(models: Models) -> None:
    chance, answers = random.Random(1), random.Random(2)

    def web_search(query: str) -> str:
        """Search the web."""
        if answers.random() < 0.2:
            raise RuntimeError("by chance")
        return query

    register("web_search", web_search)
    ends: Counter[str] = Counter()
    try:
        with served(_answering(answers)):
            for number in range(2_000):
                text = chance.choice(SEEDS)
                for _ in range(chance.choice([1, 1, 2])):
                    text = chance.choice(MUTATIONS)(text, chance) or " "
                try:
                    found = _with(models, parse_config(text, "f.yaml"))
                except ConfigError:
                    ends["refused"] += 1
                    continue
                begun = time.monotonic()
                said = _said(found, _inputs(found), number)
                assert all(line.startswith(("f.yaml", "  ")) for line in (said or "").splitlines()), f"{number}: {said}"
                ends["ran" if said is None else "failed"] += 1
                assert time.monotonic() - begun < LONGEST, number
    finally:
        unregister("web_search")
    assert ends["ran"] > 50
    assert ends["failed"] > 20
