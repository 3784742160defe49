"""Where a running workflow goes: forks and joins, maps, routes, loops; what runs side by side really does."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pytest_agenttrace import Reply
from pytest_agenttrace.gemini_server import ScriptedRequest
from pytest_agenttrace.workflow import Workflow, WorkflowError
from tests.running import Run, both, edge, node, prompts, route, served, workflow

# Forks and joins


def _echo(request: ScriptedRequest) -> Reply:
    """A text is answered in capitals, a schema's fields all with it."""
    text = request.prompt.upper()
    schema = request.body["generationConfig"].get("responseJsonSchema")
    return Reply(text) if schema is None else Reply(json=dict.fromkeys(schema["properties"], text))


def _texts(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "str")


@both
def test_branches_run_side_by_side_and_join_once(run: Run) -> None:
    together = threading.Barrier(3)

    def script(request: ScriptedRequest) -> Reply:
        if request.prompt != "join A B C":
            # Whoever came alone would wait here in vain.
            together.wait(timeout=10)
        return _echo(request)

    nodes = [node(name, name, f"{name}: str") for name in "abc"]
    nodes.append(node("j", "join {state.a} {state.b} {state.c}", "text: str"))
    edges = [edge("START", "a", "b", "c"), *(edge(name, "j") for name in "abc"), edge("j", "END")]
    with served(script) as server:
        result = run(workflow(_texts("a", "b", "c", "text"), nodes, edges), {})

    assert result == {"a": "A", "b": "B", "c": "C", "text": "JOIN A B C"}
    assert sorted(prompts(server)) == ["a", "b", "c", "join A B C"]


@both
@pytest.mark.parametrize("forked", ["list", "edges"])
def test_a_join_waits_for_the_longer_branch(run: Run, forked: str) -> None:
    nodes = [node(name, name, f"{name}: str") for name in ("a", "b", "b2", "b3")]
    nodes.append(node("j", "join {state.a} {state.b3}", "text: str"))
    fork = [edge("START", "a", "b")] if forked == "list" else [edge("START", "a"), edge("START", "b")]
    edges = [*fork, edge("a", "j"), edge("b", "b2"), edge("b2", "b3"), edge("b3", "j"), edge("j", "END")]
    with served(_echo) as server:
        result = run(workflow(_texts("a", "b", "b2", "b3", "text"), nodes, edges), {})

    assert result["text"] == "JOIN A B3"
    assert prompts(server)[2:] == ["b2", "b3", "join A B3"]


@both
@pytest.mark.parametrize(("goes", "asked"), [("on", ["a", "b", "b2", "join A B2"]), ("off", ["a", "b", "join A null"])])
def test_a_join_waits_for_a_branch_that_may_end_before(run: Run, goes: str, asked: list[str]) -> None:
    nodes = [node(name, name, f"{name}: str") for name in ("a", "b", "b2")]
    nodes.append(node("j", "join {state.a} {state.b2}", "text: str"))
    routes = [route("state.goes == 'on'", "b2"), route("default", "END")]
    edges = [edge("START", "a", "b"), edge("a", "j"), edge("b", routes=routes), edge("b2", "j"), edge("j", "END")]
    with served(_echo) as server:
        run(workflow(_texts("goes", "a", "b", "b2", "text"), nodes, edges), {"goes": goes})

    assert [*sorted(prompts(server)[:2]), *prompts(server)[2:]] == asked


@both
def test_a_join_waits_for_a_loop_and_for_a_map(run: Run) -> None:
    def script(request: ScriptedRequest) -> Reply:
        if request.prompt.startswith("again"):
            number = int(request.prompt.split()[1]) + 1
            return Reply(json={"n": number, "done": number == 3})
        return Reply(json={"items": ["x", "y"]}) if request.prompt == "list" else _echo(request)

    fields = {
        "n": {"type": "int", "default": 0},
        "done": "bool",
        "items": "list[str]",
        "found": "list[str]",
        "text": "str",
    }
    nodes = [
        node("again", "again {n}", "n: int", "done: bool"),
        node("list", "list", "items: list[str]"),
        node("each", "{state._parallel_item}", "text: str"),
        node("j", "join {n} {found}", "text: str"),
    ]
    edges = [
        edge("START", "again", "list"),
        edge("again", loop={"condition_field": "done", "exit_to": "j"}),
        edge("list", parallel={"items_field": "items", "target_node": "each", "collect_field": "found"}),
        edge("each", "j"),
        edge("j", "END"),
    ]
    with served(script) as server:
        result = run(workflow(fields, nodes, edges), {})

    assert result["text"] == 'JOIN 3 ["X", "Y"]'
    assert [prompt for prompt in prompts(server) if prompt.startswith("join")] == ['join 3 ["X", "Y"]']


@both
def test_branches_append_to_one_list_in_the_order_of_their_names(run: Run) -> None:
    """Whoever is first to finish: LangGraph takes what branches wrote in the order of the nodes."""

    def script(request: ScriptedRequest) -> Reply:
        time.sleep(0.2 if request.prompt == "a" else 0)
        return Reply(json={"found": [request.prompt]})

    fields = {"found": {"type": "list[str]", "default": ["0"]}}
    nodes = [node(name, name, "found: list[str]") for name in "ab"]
    with served(script):
        result = run(workflow(fields, nodes, [edge("START", "a", "b"), edge("a", "END"), edge("b", "END")]), {})

    assert result == {"found": ["0", "a", "b"]}


def test_a_list_is_replaced_where_the_file_says_so() -> None:
    def script(request: ScriptedRequest) -> Reply:
        return Reply(json={"one": [request.prompt], "other": [request.prompt]})

    fields = {"one": {"type": "list[str]", "reducer": "replace"}, "other": {"type": "list[str]", "reducer": "append"}}
    nodes = [node(name, name, "one: list[str]", "other: list[str]") for name in "ab"]
    with served(script):
        result = workflow(fields, nodes, [edge("START", "a"), edge("a", "b"), edge("b", "END")]).run(
            {"one": ["i"], "other": ["i"]}
        )

    assert result == {"one": ["b"], "other": ["i", "a", "b"]}


def test_a_branch_that_fails_fails_the_run() -> None:
    nodes = [node(name, name, f"{name}: str") for name in "ab"]
    found = workflow(_texts("a", "b"), nodes, [edge("START", "a", "b"), edge("a", "END"), edge("b", "END")])
    with (
        served({"a": Reply("A")}),
        pytest.raises(WorkflowError, match=r"^f\.yaml:17:3: node b: gemini-2\.5-flash-lite: "),
    ):
        found.run({})


@both
@pytest.mark.parametrize("more", [{}, {"reducer": "replace"}])
def test_null_is_null_in_a_list_with_a_default_too(run: Run, more: dict[str, str]) -> None:
    """As in a field of any other type: null that is given is not what was never given."""
    fields = {"l": {"type": "list[str]", "default": ["d"], **more}, "n": {"type": "int", "default": 3}, "text": "str"}
    found = workflow(fields, [node("a", "{l} {n}", "text: str")], [edge("START", "a"), edge("a", "END")])
    with served(_echo) as server:
        assert run(found, {"l": None, "n": None}) == {"l": None, "n": None, "text": "NULL NULL"}
        assert run(found, {}) == {"l": ["d"], "n": 3, "text": '["D"] 3'}
    assert prompts(server) == ["null null", '["d"] 3']


@both
def test_a_list_that_is_null_is_appended_to(run: Run) -> None:
    fields = {"found": {"type": "list[str]", "default": ["d"]}}
    nodes = [node("a", "a", "found: list[str]")]
    with served({"": Reply(json={"found": ["x"]})}):
        result = run(workflow(fields, nodes, [edge("START", "a"), edge("a", "END")]), {"found": None})

    assert result == {"found": ["x"]}


# Maps


MAP = {"items_field": "items", "target_node": "each", "collect_field": "found"}
EACH = [edge("START", parallel=MAP), edge("each", "END")]


@both
def test_a_map_collects_in_the_order_of_the_items(run: Run) -> None:
    def script(request: ScriptedRequest) -> Reply:
        number, item = request.prompt.split()
        # The first item is the last to be answered.
        time.sleep(0.03 * (9 - int(number)))
        return Reply(f"{item}!")

    fields = {"items": "list[str]", "found": "list[str]", "text": "str"}
    nodes = [node("each", "{state._parallel_index} {state._parallel_item}", "text: str")]
    items = [f"i{number}" for number in range(10)]
    with served(script):
        result = run(workflow(fields, nodes, EACH), {"items": items})

    assert result == {"items": items, "found": [f"{item}!" for item in items], "text": None}


@both
def test_a_map_runs_side_by_side_and_ten_at_a_time(run: Run) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def script(request: ScriptedRequest) -> Reply:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.15)
        with lock:
            now -= 1
        return Reply("x")

    fields = {"items": "list[int]", "found": "list[str]", "text": "str"}
    with served(script) as server:
        result = run(
            workflow(fields, [node("each", "{state._parallel_item}", "text: str")], EACH), {"items": list(range(25))}
        )

    assert len(server.requests) == len(result["found"]) == 25
    assert 5 <= most <= 10


@both
@pytest.mark.parametrize(
    ("collect", "outputs", "answer", "found"),
    [
        ("list[str]", ["text: str"], None, ["A", "B"]),
        ("list", ["text: str", "n: int"], {"text": "t", "n": 1}, [{"text": "t", "n": 1}] * 2),
        ("list[int]", ["n: int"], {"n": 1}, [1, 1]),
        # The list itself is the node's output: an item of it, or a list to be joined.
        ("list[str]", ["found: str"], None, ["A", "B"]),
        ("list[str]", ["found: list[str]"], {"found": ["x", "y"]}, ["x", "y", "x", "y"]),
        ("list[list[str]]", ["found: list[str]"], {"found": ["x", "y"]}, [["x", "y"], ["x", "y"]]),
    ],
)  # fmt: skip
def test_what_a_map_collects(run: Run, collect: str, outputs: list[str], answer: Any, found: list[Any]) -> None:
    fields = {"items": "list[str]", "found": collect, "text": "str", "n": "int"}
    nodes = [node("each", "{state._parallel_item}", *outputs)]
    with served(_echo if answer is None else {"": Reply(json=answer)}):
        result = run(workflow(fields, nodes, EACH), {"items": ["a", "b"]})

    assert result == {"items": ["a", "b"], "found": found, "text": None, "n": None}


@both
def test_a_map_of_objects_reads_their_members(run: Run) -> None:
    kind = {"type": "list[object]", "schema": {"name": "str", "tags": "list[str]"}}
    nodes = [
        node("each", "{who} {state._parallel_item.tags}", "text: str", inputs={"who": "{state._parallel_item.name}"})
    ]
    items = [{"name": "a", "tags": ["x"]}, {"name": "b"}]
    with served(_echo) as server:
        run(workflow({"items": kind, "found": "list[str]", "text": "str"}, nodes, EACH), {"items": items})

    assert sorted(prompts(server)) == ['a ["x"]', "b null"]


@both
def test_a_map_of_nothing_goes_on(run: Run) -> None:
    fields = {"items": "list[str]", "found": "list[str]", "text": "str", "short": "bool"}
    nodes = [
        node("each", "{state._parallel_item}", "text: str"),
        node("sum", "sum {found}", "text: str"),
        node("none", "none {found}", "text: str"),
    ]
    routes = [route("short", "none"), route("default", "sum")]
    edges = [edge("START", parallel=MAP), edge("each", routes=routes), edge("sum", "END"), edge("none", "END")]
    with served(_echo) as server:
        found = workflow(fields, nodes, edges)
        assert run(found, {"items": [], "short": False})["text"] == "SUM []"
        assert run(found, {"items": ["a"], "short": False})["text"] == 'SUM ["A"]'
        assert run(found, {"items": [], "short": True})["text"] == "NONE []"
        assert run(workflow(fields, nodes[:1], EACH), {"items": []})["found"] == []
        assert run(found, {"short": True}) == {"items": [], "found": [], "text": "NONE []", "short": True}
    assert len(server.requests) == 5


def test_a_map_of_null_is_an_error() -> None:
    fields = {"items": {"type": "list", "reducer": "replace"}, "found": "list[str]", "text": "str"}
    found = workflow(fields, [node("each", "{state._parallel_item}", "text: str")], EACH)
    with served([]), pytest.raises(WorkflowError) as caught:
        found.run({})

    assert str(caught.value) == "f.yaml:21:3: parallel: items is null: a list is wanted, [] for no items"


@both
def test_a_map_that_runs_again_appends_or_replaces(run: Run) -> None:
    def script(request: ScriptedRequest) -> Reply:
        if request.prompt.startswith("plan"):
            number = int(request.prompt.split()[1])
            return Reply(json={"n": number + 1, "items": [f"{number}a", f"{number}b"]})
        return Reply(request.prompt)

    nodes = [
        node("plan", "plan {n}", "n: int", "items: list[str]"),
        node("each", "{state._parallel_item}", "text: str"),
        node("check", "check {found}", "text: str"),
    ]
    routes = [route("n < 2", "plan"), route("default", "END")]
    edges = [edge("START", "plan"), edge("plan", parallel=MAP), edge("each", "check"), edge("check", routes=routes)]
    replaced = {"type": "list[str]", "reducer": "replace"}
    fields = {"n": {"type": "int", "default": 0}, "items": replaced, "text": "str"}
    with served(script):
        appending = run(workflow({**fields, "found": "list[str]"}, nodes, edges), {})
        replacing = run(workflow({**fields, "found": {**replaced, "default": ["old"]}}, nodes, edges), {})
        given = run(
            workflow({**fields, "found": {"type": "list[str]", "default": ["old"]}}, nodes, edges), {"found": ["i"]}
        )

    assert appending["found"] == ["0a", "0b", "1a", "1b"]
    assert replacing["found"] == ["1a", "1b"]
    assert given["found"] == ["i", "0a", "0b", "1a", "1b"]


TWO = [
    edge("START", "a", "b"),
    edge("a", parallel=MAP),
    edge("b", parallel={"items_field": "more", "target_node": "each", "collect_field": "other"}),
    edge("each", "END"),
]


@both
@pytest.mark.parametrize("beside", [True, False])
def test_two_maps_of_one_node_collect_each_its_own(run: Run, beside: bool) -> None:
    replaced = {"type": "list[str]", "reducer": "replace"}
    fields = {
        "items": "list[str]",
        "more": "list[str]",
        "found": "list[str]",
        "other": replaced,
        **_texts("a", "b", "c"),
    }
    nodes = [node(name, name, f"{name}: str") for name in "ab"]
    nodes.append(node("each", "{state._parallel_item}", "c: str"))
    routes = [route("'x' in items", "a"), route("default", "b")]
    first = edge("START", "a", "b") if beside else edge("START", routes=routes)
    found = workflow(fields, nodes, [first, *TWO[1:]])
    with served(_echo):
        both_of = run(found, {"items": ["x", "y"], "more": ["z"]})
        none = run(found, {"items": [], "more": ["z"]})

    assert (both_of["found"], both_of["other"]) == (["X", "Y"], ["Z"] if beside else [])
    assert (none["found"], none["other"]) == ([], ["Z"])


@both
def test_two_maps_of_a_node_that_names_one_of_their_fields(run: Run) -> None:
    """That one's items are its output; the other takes the output's value."""
    fields = {"items": "list[str]", "more": "list[str]", "found": "list[str]", "other": "list[str]", **_texts("a", "b")}
    nodes = [node(name, name, f"{name}: str") for name in "ab"]
    nodes.append(node("each", "{state._parallel_item}", "other: str"))
    with served(_echo):
        result = run(workflow(fields, nodes, TWO), {"items": ["x", "y"], "more": ["z"]})

    assert (result["found"], result["other"]) == (["X", "Y"], ["Z"])


# Routes and loops


def _routed(logic: str, kind: Any = "int") -> Workflow:
    nodes = [node("a", "a", "text: str"), node("b", "b", "text: str"), node("c", "c", "text: str")]
    routes = [route(logic, "b"), route("default", "c")]
    return workflow(
        {"x": kind, "y": "bool", "text": "str"},
        nodes,
        [edge("START", "a"), edge("a", routes=routes), edge("b", "END"), edge("c", "END")],
    )


@both
@pytest.mark.parametrize(
    ("logic", "inputs", "text"),
    [
        ("x > 1 and not y", {"x": 2}, "B"),
        ("x > 1 and not y", {"x": 2, "y": True}, "C"),
        ("x == null or y", {}, "B"),
        ("state.text == 'A'", {}, "B"),
    ],
)
def test_the_first_route_that_holds_is_taken(run: Run, logic: str, inputs: dict[str, Any], text: str) -> None:
    with served(_echo) as server:
        assert run(_routed(logic), inputs)["text"] == text
    assert prompts(server) == ["a", text.lower()]


@both
def test_a_condition_without_an_answer_is_an_error(run: Run) -> None:
    with served(_echo) as server, pytest.raises(WorkflowError) as caught:
        run(_routed("x > 1"), {})

    assert str(caught.value) == ("f.yaml:35:3: node a: condition 'x > 1' cannot be judged: state.x (null) > int 1")
    assert prompts(server) == ["a"]


@both
def test_routes_lead_on_from_the_start(run: Run) -> None:
    nodes = [node("b", "b", "text: str"), node("c", "c", "text: str")]
    edges = [edge("START", routes=[route("x > 1", "b"), route("default", "c")]), edge("b", "END"), edge("c", "END")]
    with served(_echo):
        found = workflow({"x": "int", "text": "str"}, nodes, edges)
        assert (run(found, {"x": 2})["text"], run(found, {"x": 1})["text"]) == ("B", "C")
        with pytest.raises(WorkflowError) as caught:
            run(found, {})

    assert str(caught.value) == "f.yaml:24:3: condition 'x > 1' cannot be judged: state.x (null) > int 1"


@both
def test_a_loop_that_is_entered_again_counts_from_the_start(run: Run) -> None:
    """Its most is of one visit; a node between may open it again."""

    def script(request: ScriptedRequest) -> Reply:
        if request.prompt.startswith("draft"):
            return Reply(json={"n": int(request.prompt.split()[1]) + 1, "done": False})
        return Reply(json={"rounds": int(request.prompt.split()[1]) + 1})

    zero = {"type": "int", "default": 0}
    nodes = [node("draft", "draft {n}", "n: int", "done: bool"), node("judge", "judge {rounds}", "rounds: int")]
    edges = [
        edge("START", "draft"),
        edge("draft", loop={"condition_field": "done", "max_iterations": 3, "exit_to": "judge"}),
        edge("judge", routes=[route("rounds < 2", "draft"), route("default", "END")]),
    ]
    with served(script) as server:
        result = run(workflow({"n": zero, "rounds": zero, "done": "bool"}, nodes, edges), {})

    assert (result["n"], result["rounds"], len(server.requests)) == (6, 2, 8)


@both
def test_a_hundred_iterations_are_no_limit_of_langgraphs(run: Run) -> None:
    def script(request: ScriptedRequest) -> Reply:
        return Reply(json={"n": int(request.prompt) + 1, "done": False})

    edges = [edge("START", "a"), edge("a", loop={"condition_field": "done", "max_iterations": 100})]
    with served(script):
        fields = {"n": {"type": "int", "default": 0}, "done": "bool"}
        result = run(workflow(fields, [node("a", "{n}", "n: int", "done: bool")], edges), {})

    assert result == {"n": 100, "done": False}


@both
def test_routes_in_a_circle_are_given_up(run: Run) -> None:
    edges = [edge("START", "a"), edge("a", routes=[route("x > 1", "END"), route("default", "a")])]
    with served(_echo) as server, pytest.raises(WorkflowError) as caught:
        run(workflow({"x": "int", "text": "str"}, [node("a", "a", "text: str")], edges), {"x": 0})

    assert str(caught.value) == "f.yaml: after 50 steps it is at no end: its routes lead in a circle"
    assert len(server.requests) == 50


def test_an_item_is_sent_with_what_its_node_reads_and_no_more() -> None:
    """Every span of an item has all that it is sent: with the whole list in each, a store grows by its square."""
    fields = {"topic": "str", "unread": "str", "items": "list[str]", "found": "list[str]"}
    nodes = [node("each", "{state.topic}: {_parallel_item}", "found: str")]
    found = workflow(fields, nodes, EACH)
    given = {"topic": "t", "unread": "u", "items": ["a", "b"]}
    with served(lambda asked: Reply(asked.prompt)):
        events: list[Any] = list(found.graph.stream(given, stream_mode="debug"))
    inputs = [
        event["payload"]["input"] for event in events if event["type"] == "task" and event["payload"]["name"] == "each"
    ]
    assert [{key for key in sent if key in fields} for sent in inputs] == [{"topic"}, {"topic"}]
