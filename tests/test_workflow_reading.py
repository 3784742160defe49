"""Keys and values of a workflow's file: what is read, and each error with its place and its way out."""

# ruff: noqa: E501  # a row is a case, with its message whole

from __future__ import annotations

import pytest

from pytest_agenttrace.workflow import (
    Execution,
    LlmSettings,
    Loop,
    MlflowSettings,
    Parallel,
    Tool,
    WorkflowConfig,
    parse_config,
)
from tests.workflows import VALID, problems, valid

TOOLS = "    tools: [web_search]\n"
LLM = "  llm: {provider: google, model: gemini-2.5-flash}\n"
MLFLOW = "  observability:\n    mlflow: "


def test_a_workflow_is_read_whole() -> None:
    found = valid()
    assert (found.flow.name, found.flow.version, found.schema_version) == ("article_writer", "1.0.0", "1.0")
    assert {name: str(field.type) for name, field in found.state.fields.items()} == {
        "topic": "str",
        "depth": "int",
        "tags": "list[str]",
        "done": "bool",
        "article": "str",
        "author": "object",
    }
    author = found.state.fields["author"].type.members
    assert author is not None
    assert {name: (str(member.type), member.required) for name, member in author.items()} == {
        "name": ("str", None),
        "age": ("int", True),
    }
    research, write = found.nodes
    assert (research.tools, research.outputs, research.place) == (
        (Tool("web_search"),),
        ("tags", "done"),
        "w.yaml:18:5",
    )
    assert write.inputs["query"].only is not None
    assert write.output_schema.fields is None
    assert [(edge.source, edge.targets) for edge in found.edges] == [
        ("START", ("research",)),
        ("research", ("write", "END")),
        ("write", ("END",)),
    ]
    assert [route.condition.logic is None for route in found.edges[1].routes] == [False, True]
    assert found.config.execution == Execution(timeout=120, max_retries=3)
    assert found.config.observability.mlflow == MlflowSettings()
    assert found.notes == ()


def test_what_is_left_out_has_the_formats_defaults() -> None:
    found = valid((f"config:\n{LLM}", "config:\n"))
    assert found.llm_of(found.node("write")) == LlmSettings("google", "gemini-2.5-flash-lite", 0.7)
    assert valid((f"config:\n{LLM}", "")).config == found.config


def test_a_node_says_what_is_different_of_its_model() -> None:
    found = valid((TOOLS, f"{TOOLS}    llm: {{temperature: 0, max_tokens: 50}}\n"))
    assert found.llm_of(found.node("research")) == LlmSettings("google", "gemini-2.5-flash", 0, 50)
    other = valid((TOOLS, f"{TOOLS}    llm: {{provider: anthropic, model: claude-haiku-4-5}}\n"))
    assert other.llm_of(other.node("research")) == LlmSettings("anthropic", "claude-haiku-4-5", 0.7)
    # A server of one provider is none of another's.
    server = ("provider: google", "api_base: 'http://localhost:1'")
    own = valid(server, (TOOLS, f"{TOOLS}    llm: {{provider: anthropic, model: claude-haiku-4-5}}\n"))
    assert own.llm_of(own.node("research")).api_base is None
    assert own.llm_of(own.node("write")).api_base == "http://localhost:1"


def test_tools_are_names_or_say_what_an_error_does() -> None:
    given = "    tools: [a, {name: 'tools:b', on_error: continue, config: {depth: 2}}]\n"
    assert valid((TOOLS, given)).node("research").tools == (Tool("a"), Tool("tools:b", "continue", {"depth": 2}))


def test_edges_fork_loop_and_map() -> None:
    fork = valid(("{from: START, to: research}", "{from: START, to: [research, write]}"))
    assert fork.edges_from("START")[0].to == ("research", "write")
    loop = valid(("{from: write, to: END}", "{from: write, loop: {condition_field: done}}"))
    assert loop.edges_from("write")[0].loop == Loop("done", "END", 10)
    parallel = "{from: START, parallel: {items_field: tags, target_node: research, collect_field: topics}}"
    fields = ("    done: {", "    topics: {type: list}\n    done: {")
    found = valid(("{from: START, to: research}", parallel), fields)
    assert found.edges_from("START")[0].parallel == Parallel("tags", "research", "topics")


def test_an_objects_schema_is_written_in_either_style() -> None:
    nested = "{type: object, schema: {street: str, at: {type: object, schema: {lat: float}, description: where}}}"
    found = valid(("        name: str\n", f"        name: str\n        home: {nested}\n"))
    author = found.state.fields["author"].type.members
    assert author is not None
    home = author["home"].type.members
    assert home is not None
    at = home["at"].type.members
    assert at is not None
    assert (str(home["street"].type), str(at["lat"].type), home["at"].description) == ("str", "float", "where")
    output = "{name: author, type: object, fields: [{name: name, type: str}, {name: age, type: int}]}"
    listed = valid(
        ("[tags, done]", "[tags, done, author]"),
        ("        - {name: done", f"        - {output}\n        - {{name: done"),
    )
    fields = listed.node("research").output_schema.fields
    assert fields is not None
    assert fields[1].type.members is not None
    assert list(fields[1].type.members) == ["name", "age"]


def test_descriptions_of_other_versions_are_kept() -> None:
    flow = ('  version: "1.0.0"\n', "  author: a team\n  tags: [a, b]\n")
    found = valid(flow, ("  - id: write\n", "  - id: write\n    name: Write it\n"))
    assert (found.flow.author, found.flow.tags, found.node("write").name) == ("a team", ("a", "b"), "Write it")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('schema_version: "1.0"', "schema_version: 1.0", '1:17: schema_version: float 1.0 is not one of "1.0"; write it in quotes'),
        ('schema_version: "1.0"', 'schema_version: "2.0"', "1:17: schema_version: text '2.0' is not one of \"1.0\"; did you mean 1.0?"),
        ('schema_version: "1.0"\n', "", "1:1: 'schema_version' is missing: the version of this format"),
        ("flow:\n", "flwo: {}\nflow:\n", "2:1: flwo: 'flwo' is no key of this mapping; did you mean flow?"),
        ("  name: article_writer\n", "", "3:3: flow: 'name' is missing: the workflow's name: the root span is workflow_<name>"),
        ('version: "1.0.0"', "version: 1.0", '4:12: flow.version: a text is wanted, not float 1.0; did you mean "1.0"?'),
        ('version: "1.0.0"', "version: [1]", "4:12: flow.version: a text is wanted, not a list"),
        ("depth: {type: int, default: 1}", "depth: int", "8:12: state.fields.depth: a mapping with type is wanted, not text 'int'"),
        ("depth: {type: int", "depth: {type: integer", "8:19: state.fields.depth.type: 'integer' is no type; did you mean int?"),
        ("depth: {type: int, default: 1}", "depth: {default: 1}", "8:12: state.fields.depth: 'type' is missing: its type: str, int, float, bool, list, dict, list[T], dict[K, V] or object"),
        ("type: int, default: 1}", "type: int, default: true}", "8:33: state.fields.depth.default: int is wanted, not bool true"),
        ("type: int, default: 1}", "type: int, default: 1, required: true}", "8:24: state.fields.depth.default: a required field is always given: it has no default"),
        ("type: int, default: 1}", 'type: int, required: "yes"}', "8:34: state.fields.depth.required: true or false is wanted, not text 'yes'"),
        ("default: []}", "default: [a, 2]}", "9:44: state.fields.tags.default[1]: str is wanted, not int 2"),
        ("type: int, default: 1}", "type: int, reducer: append}", "8:24: state.fields.depth.reducer: a reducer is for lists, not for int: another value replaces the one before"),
        ("default: []}", "reducer: appendd}", "9:40: state.fields.tags.reducer: text 'appendd' is not one of append, replace; did you mean append?"),
        ("    depth: {", "    on: {type: int}\n    depth: {", "8:5: state.fields.True: true is no name: YAML reads yes, no, on and off as true and false: write it in quotes"),
        ("    done: {", "    _x: {type: int}\n    done: {", "10:5: state.fields._x: '_x' is refused: names do not start with _"),
        ("    done: {", "    state: {type: int}\n    done: {", "10:5: state.fields.state: 'state' is reserved: {state.x} is how a field is named"),
        ("        name: str\n", "        name: string\n", "15:15: state.fields.author.schema.name: 'string' is no type; did you mean str?"),
        ("        age: {type: int, required: true}\n", "        age: {type: int, needed: true}\n", "16:26: state.fields.author.schema.age.needed: 'needed' is no key of this mapping; it has type, required, default, description, schema"),
        ("{type: bool, default: false}", "{type: bool, schema: {a: str}}", "10:24: state.fields.done.schema: only an object has a schema, and bool holds none"),
        ("    prompt: Write on {query}, {depth} pages\n", "", "28:5: nodes.write: 'prompt' is missing: what is asked, with {state.field} and {input}; {{ and }} for braces"),
        ("    prompt: Write on {query}, {depth} pages\n", "    prompt: ''\n", "30:13: nodes.write.prompt: the text is empty"),
        ("    outputs: [article]\n", "    outputs: article\n", "31:14: nodes.write.outputs: a list is wanted, not text 'article'; did you mean [article]?"),
        ("    outputs: [article]\n", "    outputs: []\n", "31:14: nodes.write.outputs: the list is empty"),
        ("[web_search]", "[web_search, 3]", "21:25: nodes.research.tools[1]: a mapping with name is wanted, not int 3"),
        ("[web_search]", "[../x]", "21:13: nodes.research.tools[0]: '../x' is no tool: a name is, or module:attribute"),
        ("[web_search]", "[{name: a, on_error: ignore}]", "21:33: nodes.research.tools[0].on_error: text 'ignore' is not one of fail, continue"),
        ("output_schema: {type: str}", "output_schema: {type: object}", "32:20: nodes.write.output_schema: an object needs fields: fields: [{name: ..., type: ...}]"),
        ("output_schema: {type: str}", "output_schema: {type: str, fields: [{name: a, type: str}]}", "32:32: nodes.write.output_schema.fields: only an object has fields, not str"),
        ("  - {from: write, to: END}", "  - {from: write}", "41:5: edges[2]: it leads nowhere: one of to, routes, loop, parallel is missing"),
        ("  - {from: write, to: END}", "  - {from: write, to: END, loop: {condition_field: done}}", "41:5: edges[2]: one of to, routes, loop, parallel is wanted, not to and loop"),
        ("  - {from: write, to: END}", "  - {from: write, loop: {condition_field: done, max_iterations: 0}}", "41:65: edges[2].loop.max_iterations: 0 is out of bounds: 1 to 100 is wanted"),
        ("  - {from: write, to: END}", "  - {from: write, loop: {}}", "41:25: edges[2].loop: 'condition_field' is missing: the bool field of the state that ends the loop"),
        ("  - {from: write, to: END}", "  - {from: write, parallel: [a, b]}", "41:29: edges[2].parallel: a map over a list is wanted, not a list; nodes side by side are to: [a, b]"),
        ("logic: default}", "logic: true}", "39:28: edges[1].routes[1].condition.logic: a text is wanted, not bool true; did you mean \"true\"?"),
        (" and not done", " && done", "37:45: edges[1].routes[0].condition.logic: condition 'state.depth > 1 && done': '&&' is not of this grammar; did you mean 'and'?"),
        ("provider: google", "provider: gogle", "43:19: config.llm.provider: 'gogle' is no provider; did you mean google?"),
        ("provider: google", "temperature: 3", "43:22: config.llm.temperature: 3 is out of bounds: 0 to 2 is wanted"),
        ("provider: google", "temperature: 1e-1", "43:22: config.llm.temperature: a number is wanted, not text '1e-1'; did you mean 0.1?"),
        ("provider: google", "temperature: .nan", "43:22: config.llm.temperature: nan is no number to work with"),
        ("provider: google", "max_tokens: 10.0", "43:21: config.llm.max_tokens: a whole number is wanted, not float 10.0; did you mean 10?"),
        ("provider: google", "max_tokens: true", "43:21: config.llm.max_tokens: a whole number is wanted, not bool true"),
        ("provider: google", "api_base: localhost", "43:19: config.llm.api_base: 'localhost' is no address: http://... or https://..."),
        (LLM, "  execution: {timeout: 0}\n", "43:24: config.execution.timeout: 0 is too small: more than 0 is wanted"),
        (LLM, f"  execution: {{timeout: {'9' * 400}}}\n", f"43:24: config.execution.timeout: {'9' * 37}... is out of bounds: more than 0 and up to 604800 is wanted"),
        (LLM, "  execution: {timeout_seconds: 5}\n", "43:15: config.execution.timeout_seconds: 'timeout_seconds' is no key of this mapping; did you mean timeout?"),
        (LLM, "  observability: {logging: {level: loud}}\n", "43:36: config.observability.logging.level: text 'loud' is not one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        (LLM, f"{MLFLOW}{{enabled: 1}}\n", "44:23: config.observability.mlflow.enabled: true or false is wanted, not int 1"),
        (LLM, f"{MLFLOW}{{artifact_level: ful}}\n", "44:30: config.observability.mlflow.artifact_level: text 'ful' is not one of minimal, standard, full; did you mean full?"),
        (LLM, f"{MLFLOW}{{experiment: x}}\n", "44:14: config.observability.mlflow.experiment: 'experiment' is no key of this mapping; did you mean experiment_name?"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_key_or_a_value(old: str, new: str, message: str) -> None:
    assert problems((old, new)) == [message]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tracking_uri: 'sqlite://x.db'", "'sqlite://x.db' is no store: SQLite's has three slashes; did you mean sqlite:///x.db?"),
        ("tracking_uri: 's3://bucket/x'", "s3:// holds artifacts, never runs: MLflow tracks to sqlite:///mlflow.db, postgresql:// or http://"),
        ("tracking_uri: 'postgrsql://x/y'", "'postgrsql' is no store of MLflow's: sqlite, postgresql, mysql, mssql, http, https are; did you mean postgresql?"),
        ("tracking_uri: 'http:'", "'http:' is no store: http://... is"),
        ("tracking_uri: ''", "it is empty"),
        ("tracking_uri: \"sqlite:///a\\nb\"", "the character U+000A is refused in a name"),
        ("experiment_name: ../../etc", "'../../etc' is refused: an experiment's name does not lead out of its folder"),
        ("experiment_name: \"a\\x1b[31m\"", "the character U+001B is refused in a name"),
        ("experiment_name: ' '", "it is empty"),
        ("run_name: ../x", "'../x' is refused: a name with / is a path"),
        ("run_name: '..'", "'..' is refused: a name with dots only is a path"),
        ("run_name: 'a\\b'", "'a\\\\b' is refused: a name with \\ is a path"),
        ("run_name: '{timestamp}/{workflow_name}'", "'{timestamp}/{workflow_name}' is refused: a name with / is a path"),
        ("run_name: 'run_{time}'", "{time} is unknown here: {timestamp}, {workflow_name}, {workflow_version} are; did you mean {timestamp}?"),
        ("run_name: '{timestamp.__class__}'", "{timestamp.__class__}: '__class__' is refused: names of the state do not start with _"),
        ("run_name: '" + "x" * 300 + "'", "a name of 300 characters, more than 200"),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_or_hide_are_refused(given: str, message: str) -> None:
    (found,) = problems((LLM, f"{MLFLOW}{{{given}}}\n"))
    assert found.partition(": ")[2].partition(": ")[2] == message


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", '"a\\tb"', '"a\\u202eb"', "''"])
def test_a_workflows_name_is_no_path_and_hides_nothing(name: str) -> None:
    (found,) = problems(("name: article_writer", f"name: {name}"))
    assert found.startswith("3:9: flow.name: ")


@pytest.mark.parametrize(
    "given",
    [
        "tracking_uri: 'sqlite:///../runs/mlflow.db'",
        "tracking_uri: 'postgresql+psycopg://user:pass@db.example.com/mlflow'",
        "tracking_uri: 'http://localhost:5000'",
        "tracking_uri: databricks",
        "tracking_uri: 'databricks://workspace'",
        "experiment_name: /Users/me/my experiment",
        "run_name: 'nightly {workflow_name} {timestamp}'",
        "artifact_level: minimal, log_prompts: false, log_artifacts: false, async_logging: false",
    ],
)
def test_what_the_guide_says_of_mlflow_is_valid(given: str) -> None:
    assert valid((LLM, f"{MLFLOW}{{enabled: true, {given}}}\n")).notes == ()


@pytest.mark.parametrize("uri", ["file://./mlruns", "file:///tmp/mlruns", "./mlruns", "mlruns"])
def test_the_guides_old_store_is_valid_and_said_to_be_old(uri: str) -> None:
    found = valid((LLM, f'{MLFLOW}{{enabled: true, tracking_uri: "{uri}"}}\n'))
    assert found.config.observability.mlflow.tracking_uri == uri
    assert [str(note) for note in found.notes] == [
        "w.yaml:44:43: config.observability.mlflow.tracking_uri: a store of files is deprecated, and MLflow 3.13 and "
        'newer refuse it without MLFLOW_ALLOW_FILE_STORE=true; in its place: tracking_uri: "sqlite:///mlflow.db"'
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-node", "28:9: nodes[1].id: 'my-node' is no name: letters, digits and _ are, a letter first; did you mean my_node?"),
        ('"a|b"', "28:9: nodes[1].id: 'a|b' is no name: letters, digits and _ are, a letter first; did you mean a_b?"),
        ("START", "28:9: nodes.START.id: 'START' is reserved: START and END stand for the workflow's ends"),
        ("__start__", "28:9: nodes.__start__.id: '__start__' is refused: names do not start with _"),
        ('"a\\nb"', "28:9: nodes[1].id: the character U+000A is refused in a name"),
    ],
)  # fmt: skip
def test_a_nodes_id_is_a_name_that_langgraph_can_have(name: str, message: str) -> None:
    changes = [(f"{key}: write", f"{key}: {name}") for key in ("- id", "to", "{from")]
    assert problems(*changes) == [message]


REFUSED = [
    ("edges:\n", "memory: {enabled: true}\nedges:\n", "memory: memory kept between runs is not supported: give a run what it must know as inputs"),
    ("edges:\n", "optimization: {enabled: true}\nedges:\n", "optimization: prompt optimization is not supported: compare prompts by tests with budgets"),
    ("edges:\n", "webhook: {enabled: true}\nedges:\n", "webhook: webhooks are not supported: a workflow is run by a command or a test"),
    (TOOLS, "    memory: {enabled: true}\n", "nodes.research.memory: memory kept between runs is not supported: give a run what it must know as inputs"),
    (TOOLS, "    sandbox: {mode: docker}\n", "nodes.research.sandbox: sandboxed code is not supported: make the code a tool, and name it in 'tools'"),
    (TOOLS, "    code: result = 1\n", "nodes.research.code: code in a workflow is not supported, and never run: make it a tool, and name it in 'tools'"),
    (TOOLS, "    optimize: {metric: x}\n", "nodes.research.optimize: prompt optimization is not supported: compare prompts by tests with budgets"),
    (TOOLS, "    loop: {max_iterations: 3}\n", "nodes.research.loop: a loop is an edge: {from: ..., loop: {condition_field: ..., exit_to: ...}}"),
    ("{from: write, to: END}", '{from: write, to: END, condition: "{state.done}"}', "edges[2].condition: conditions stand in routes: routes: [{condition: {logic: ...}, to: ...}, ...]"),
    (LLM, "  gates: [{metric: cost_usd_avg, threshold: 0.01}]\n", "config.gates: quality gates are not supported: pytest's budget marker fails a test that costs too much"),
    (LLM, "  ab_test: {enabled: true}\n", "config.ab_test: A/B tests are not supported: write each prompt as a workflow, and a test for each"),
    (LLM, "  storage: {backend: sqlite}\n", "config.storage: storage of runs is not supported: config.observability.mlflow keeps them"),
    (LLM, "  sandbox: {enabled: true}\n", "config.sandbox: sandboxed code is not supported: make the code a tool, and name it in 'tools'"),
    (LLM, "  mlflow: {enabled: true}\n", "config.mlflow: MLflow's settings stand in config.observability.mlflow"),
    (LLM, "  llm: {api_key: abc}\n", "config.llm.api_key: a key in a file is a leak: it is read from the environment (GOOGLE_API_KEY, OPENAI_API_KEY, ...)"),
    (LLM, f"{MLFLOW}{{redact_pii: true}}\n", "config.observability.mlflow.redact_pii: redaction is not supported, and would be a false promise: log_prompts: false keeps no text"),
    (LLM, f"{MLFLOW}{{retention_days: 90}}\n", "config.observability.mlflow.retention_days: deleting old runs is not supported: mlflow gc does that"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), REFUSED)
def test_features_of_other_versions_are_refused_by_name(old: str, new: str, message: str) -> None:
    (found,) = problems((old, new))
    assert found.split(": ", 1)[1] == message


def test_a_feature_that_is_off_is_let_through_and_said() -> None:
    found = valid(
        ("edges:\n", "optimization: {enabled: false, strategy: x}\nedges:\n"), (LLM, f"{MLFLOW}{{redact_pii: false}}\n")
    )
    assert [str(note) for note in found.notes] == [
        "w.yaml:33:1: optimization: it is off, and does nothing here: prompt optimization is not supported: compare "
        "prompts by tests with budgets",
        "w.yaml:45:14: config.observability.mlflow.redact_pii: it is off, and does nothing here: redaction is not "
        "supported, and would be a false promise: log_prompts: false keeps no text",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just text", "1:1: a mapping with schema_version, flow, state, nodes, edges is wanted, not text 'just text'"),
        ("[1, 2]", "1:1: a mapping with schema_version, flow, state, nodes, edges is wanted, not a list"),
        ("null", "1:1: a mapping with schema_version, flow, state, nodes, edges is wanted, not nothing"),
    ],
)
def test_a_file_that_is_no_mapping(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="mapping") as caught:
        parse_config(text, "w.yaml")
    assert str(caught.value) == f"w.yaml:{message}"


def test_an_older_workflow_of_another_shape_is_told_apart_by_each_key() -> None:
    text = 'name: Team\nversion: "1.0"\nnodes:\n  - {name: a, prompt: x}\nedges: []\nexecution: {timeout: 3}\n'
    with pytest.raises(ValueError, match="flow") as caught:
        parse_config(text, "w.yaml")
    assert str(caught.value).splitlines() == [
        "w.yaml:1:1: 'flow' is missing: what the workflow is called",
        "w.yaml:1:1: 'schema_version' is missing: the version of this format",
        "w.yaml:1:1: 'state' is missing: what flows through it",
        "w.yaml:1:1: name: it stands in flow: flow.name",
        "w.yaml:2:1: version: it stands in flow: flow.version",
        "w.yaml:4:5: nodes[0]: 'id' is missing: the node's name, in the graph, the trace and the budgets",
        "w.yaml:4:5: nodes[0]: 'output_schema' is missing: what the model must return",
        "w.yaml:4:5: nodes[0]: 'outputs' is missing: the fields of the state that it writes",
        "w.yaml:5:8: edges: the list is empty",
        "w.yaml:6:1: execution: it stands in config: config.execution",
    ]


def test_two_readings_are_equal_and_hold_no_part_of_each_other() -> None:
    one, other = valid(), valid()
    assert one == other
    field = one.state.fields["tags"]
    field.initial().append("x")
    assert field.default == []
    assert isinstance(one, WorkflowConfig)
    assert VALID.count("\n") == 43
