"""What a workflow's parts say of each other: prompts, inputs, outputs, conditions and the state's fields."""
# ruff: noqa: E501  # a row is a case, with its message whole

from __future__ import annotations

import pytest

from tests.workflows import problems, valid

PROMPT = "    prompt: Write on {query}, {depth} pages\n"
INPUTS = '    inputs: {query: "{state.topic}"}\n'
LOGIC = "state.depth > 1 and not done"
SIMPLE = "    output_schema: {type: str}\n"


def prompt(text: str) -> tuple[str, str]:
    return PROMPT, f"    prompt: '{text}'\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (*prompt("on {state.topik}"), "30:17: nodes.write.prompt: {state.topik}: the state has no field 'topik'; did you mean {state.topic}?"),
        (*prompt("on {topci}"), "30:17: nodes.write.prompt: {topci}: neither an input of the node nor a field of the state; did you mean {topic}?"),
        (*prompt("on {qurey}"), "30:17: nodes.write.prompt: {qurey}: neither an input of the node nor a field of the state; did you mean {query}?"),
        (*prompt("{state.query}"), "30:14: nodes.write.prompt: {state.query}: the state has no field 'query'; it has topic, depth, tags, done, article, author"),
        (*prompt("{state}"), "30:14: nodes.write.prompt: {state}: the state as a whole is no text: name a field, {state.x}"),
        (*prompt("{topic.length}"), "30:14: nodes.write.prompt: {topic.length}: topic is str, which has no members"),
        (*prompt("{query.x}"), "30:14: nodes.write.prompt: {query.x}: query is str, which has no members"),
        (*prompt("{state.author.nmae}"), "30:14: nodes.write.prompt: {state.author.nmae}: author has no member 'nmae'; did you mean author.name?"),
        (*prompt("{author.x}"), "30:14: nodes.write.prompt: {author.x}: author has no member 'x'; it has name, age"),
        (*prompt("{_parallel_item}"), "30:14: nodes.write.prompt: {_parallel_item}: it is there only in a node that a parallel map runs"),
        (INPUTS, '    inputs: {query: "{state.topik}"}\n', "29:22: nodes.write.inputs.query: {state.topik}: the state has no field 'topik'; did you mean {state.topic}?"),
        (INPUTS, '    inputs: {query: "{other}"}\n', "29:22: nodes.write.inputs.query: {other}: the state has no field 'other'; it has topic, depth, tags, done, article, author"),
        (INPUTS, '    inputs: {query: "{state.topic}", more: "{query}"}\n', "29:45: nodes.write.inputs.more: {query}: the state has no field 'query'; it has topic, depth, tags, done, article, author"),
        (INPUTS, "    inputs: {query: state.topic}\n", '29:21: nodes.write.inputs.query: a field of the state is named in braces; did you mean "{state.topic}"?'),
        (INPUTS, "    inputs: {query: 3}\n", '29:21: nodes.write.inputs.query: a text is wanted, not int 3; did you mean "3"?'),
        ("outputs: [article]", "outputs: [artcle]", "31:15: nodes.write.outputs[0]: the state has no field 'artcle'; did you mean article?"),
        ("outputs: [article]", "outputs: [article, topic]", "32:20: nodes.write.output_schema: one str for 2 outputs: more than one needs type: object, with fields"),
        ("outputs: [tags, done]", "outputs: [tags, done, tags]", "22:27: nodes.research.outputs[2]: 'tags' stands here twice"),
        ("outputs: [tags, done]", "outputs: [tags, done, topic]", "26:9: nodes.research.output_schema.fields: no field for the output topic"),
        ("{name: done, type: bool}", "{name: dnoe, type: bool}", "27:18: nodes.research.output_schema.fields[1].name: 'dnoe' is no output of the node; did you mean done?"),
        ("{name: done, type: bool}", "{name: topic, type: str}", "27:18: nodes.research.output_schema.fields[1].name: 'topic' is no output of the node: outputs has tags, done"),
        ("{name: done, type: bool}", "{name: done, type: int}", "27:30: nodes.research.output_schema.fields[1].type: int for done, which is bool in the state"),
        ('{name: tags, type: "list[str]"}', "{name: tags, type: list}", "26:30: nodes.research.output_schema.fields[0].type: list for tags, which is list[str] in the state"),
        (SIMPLE, "    output_schema: {type: float}\n", "32:27: nodes.write.output_schema.type: float for article, which is str in the state"),
        (SIMPLE, f"{SIMPLE}    llm: {{provider: openai}}\n", "33:10: nodes.write.llm: provider openai without a model: gemini-2.5-flash is google's"),
        (LOGIC, "state.dpeth > 1", "37:29: edges[1].routes[0].condition.logic: condition 'state.dpeth > 1': the state has no field 'dpeth'; did you mean depth?"),
        (LOGIC, "topic == positive", "37:38: edges[1].routes[0].condition.logic: condition 'topic == positive': the state has no field 'positive'; it has topic, depth, tags, done, article, author; a text is written in quotes: 'positive'"),
        (LOGIC, "depth == '3'", "37:29: edges[1].routes[0].condition.logic: condition \"depth == '3'\": state.depth is int, and cannot be compared by == with str '3'; did you mean 3?"),
        (LOGIC, "topic == 3", "37:29: edges[1].routes[0].condition.logic: condition 'topic == 3': state.topic is str, and cannot be compared by == with int 3; did you mean '3'?"),
        (LOGIC, "done == 'True'", "37:29: edges[1].routes[0].condition.logic: condition \"done == 'True'\": state.done is bool, and cannot be compared by == with str 'True'; did you mean true?"),
        (LOGIC, "tags > 1", "37:29: edges[1].routes[0].condition.logic: condition 'tags > 1': state.tags is list, and cannot be compared by > with int 1"),
        (LOGIC, "depth < null", "37:29: edges[1].routes[0].condition.logic: condition 'depth < null': state.depth is int, and cannot be compared by < with null"),
        (LOGIC, "depth == topic", "37:29: edges[1].routes[0].condition.logic: condition 'depth == topic': state.depth is int, and cannot be compared by == with state.topic, which is str"),
        (LOGIC, "1 in depth", "37:29: edges[1].routes[0].condition.logic: condition '1 in depth': state.depth is int: 'in' looks into a list, a text or a dict"),
        (LOGIC, "1 in topic", "37:29: edges[1].routes[0].condition.logic: condition '1 in topic': int 1, and is in no text"),
        (LOGIC, "author.age > 1 and author.size > 1", "37:48: edges[1].routes[0].condition.logic: condition 'author.age > 1 and author.size > 1': author has no member 'size'; it has name, age"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together(old: str, new: str, message: str) -> None:
    assert problems((old, new)) == [message]


@pytest.mark.parametrize(
    "change",
    [
        prompt("{state.author.name} {author.age} {query} {topic}"),
        prompt('{"score": 1} {{topik}}'),
        (INPUTS, '    inputs: {query: "on {topic}, {state.depth}", fixed: a text}\n'),
        (LOGIC, "topic == null or tags == [] or author.name in ['Ada', 'Bob']"),
        (LOGIC, "depth > 1.5 and 'x' in topic and '3' not in tags and not topic"),
        ("type: int, default: 1}", "type: float, default: 1}"),
        ("default: []}", "default: null}"),
    ],
)
def test_what_fits(change: tuple[str, str]) -> None:
    assert valid(change).notes == ()


def test_an_input_gives_the_members_of_what_it_stands_for() -> None:
    whole = (INPUTS, '    inputs: {query: "{state.author}"}\n')
    assert valid(whole, prompt("{query.name}")).notes == ()
    assert problems(whole, prompt("{query.nmae}")) == [
        "30:14: nodes.write.prompt: {query.nmae}: query has no member 'nmae'; did you mean query.name?"
    ]


LISTS = (
    "    done: {",
    """\
    counts: {type: "dict[int, str]"}
    flags: {type: "list[bool]"}
    any: {type: list}
    raw: {type: dict}
    lists: {type: "list[list[str]]"}
    done: {""",
)


@pytest.mark.parametrize(
    ("logic", "why"),
    [
        ('depth in ["8","9"]', "state.depth is int, and cannot be compared by in with str '8' of the list; did you mean 8?"),
        ("depth not in [8, '9']", "state.depth is int, and cannot be compared by not in with str '9' of the list; did you mean 9?"),
        ("depth in ['x']", "state.depth is int, and cannot be compared by in with str 'x' of the list"),
        ("topic in [8,9]", "state.topic is str, and cannot be compared by in with int 8 of the list; did you mean '8'?"),
        ("topic in [true]", "state.topic is str, and cannot be compared by in with bool true of the list; did you mean 'true'?"),
        ("done in [1]", "state.done is bool, and cannot be compared by in with int 1 of the list; did you mean true?"),
        ("depth in [false]", "state.depth is int, and cannot be compared by in with bool false of the list"),
        ("tags in [1]", "state.tags is list, and cannot be compared by in with int 1 of the list"),
        ("1 in ['a']", "int 1, and cannot be compared by in with str 'a' of the list"),
        ("3 in tags", "int 3, and cannot be compared by in with the items of state.tags, which are str; did you mean '3'?"),
        ("depth not in tags", "state.depth is int, and cannot be compared by not in with the items of state.tags, which are str"),
        ("'true' in flags", "str 'true', and cannot be compared by in with the items of state.flags, which are bool; did you mean true?"),
        ("topic in lists", "state.topic is str, and cannot be compared by in with the items of state.lists, which are list"),
        ("topic in counts", "state.topic is str, and cannot be compared by in with the keys of state.counts, which are int"),
        ("1 in author", "int 1, and cannot be compared by in with the members of state.author, which are str; did you mean '1'?"),
        ("tags == [1]", "the items of state.tags are str, and cannot be compared by == with int 1; did you mean '1'?"),
        ("['a', 2] != tags", "the items of state.tags are str, and cannot be compared by != with int 2; did you mean '2'?"),
        ("lists == ['a']", "the items of state.lists are list, and cannot be compared by == with str 'a'"),
        ("tags in raw", "state.tags is list, and is no key of a dict"),
        ("author not in raw", "state.author is dict, and is no key of a dict"),
    ],
)  # fmt: skip
def test_what_a_list_or_a_dict_never_holds(logic: str, why: str) -> None:
    at = 37 + LISTS[1].count("\n")
    (told,) = problems(LISTS, (f'"{LOGIC}"', "'" + logic.replace("'", "''") + "'"))
    place, _, text = told.partition(" ")
    assert place.startswith(f"{at}:")
    assert text == f"edges[1].routes[0].condition.logic: condition {logic!r}: {why}"


@pytest.mark.parametrize(
    "logic",
    [
        "depth in [8, 9.5, null]",
        "3 in any or any == [1, 'a']",
        "topic in raw and 3 in raw",
        "2.0 in counts",
        "tags in lists and ['a'] in lists",
        "tags == any or tags == lists or tags == []",
        "topic in author and (depth > 1) in flags",
        "null in tags or tags in any",
    ],
)
def test_what_a_list_or_a_dict_may_hold(logic: str) -> None:
    assert valid(LISTS, (LOGIC, logic)).notes == ()


def test_dicts_and_lists_without_types_hold_anything() -> None:
    fields = ("    done: {", "    data: {type: dict}\n    deep: {type: 'dict[str, list[int]]'}\n    done: {")
    assert valid(fields, prompt("{data.a.b} {deep.x}")).notes == ()
    assert problems(fields, prompt("{deep.x.y}")) == [
        "32:14: nodes.write.prompt: {deep.x.y}: deep.x is list[int], which has no members"
    ]


def test_every_error_of_a_prompt_has_its_line() -> None:
    found = problems(
        ("      Research {state.topic} for", "      {x!r}\n      {nope}\n      Research {state.topik} for")
    )
    assert [line.partition(" nodes")[0] for line in found] == ["20:7:", "21:7:", "22:16:"]


def test_two_nodes_have_two_names() -> None:
    found = problems(
        ("  - id: write\n", "  - id: research\n"),
        ("        to: write\n", "        to: END\n"),
        ("{from: write, to: END}", "{from: research, to: END}"),
    )
    assert found == [
        "28:9: nodes.research.id: a node in line 18 is called research too",
        "41:5: edges[2]: research has an edge already, edges[1]: routes stands alone",
    ]


def test_a_field_that_cannot_be_read_causes_no_second_message() -> None:
    assert problems(("depth: {type: int", "depth: {type: itn")) == [
        "8:19: state.fields.depth.type: 'itn' is no type; did you mean int?"
    ]
    assert problems(("  - id: research\n", "  - id: research\n    promt: x\n")) == [
        "19:5: nodes.research.promt: 'promt' is no key of this mapping; did you mean prompt?"
    ]
