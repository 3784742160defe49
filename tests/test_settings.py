"""Settings of a test: layers, kinds of findings, and everything wrong with them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.handmade  # noqa: F401 - loads the profile of the property tests
from pytest_agenttrace.settings import KINDS, Finding, Settings, SettingsError, Tolerance, read_settings

ALL_KEYS = "cassette, match, order, ignore, hosts, secrets, allow, warn, autolog, run_tracer_inline"
ALL_KINDS = "missing, unused, uncounted, uncalled, usage, orphans, unpriced, network, export, empty"


def read(**keys: Any) -> Settings:
    return read_settings([("marker", keys)])


def problems(*layers: tuple[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        read_settings(layers)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return list(caught.value.problems)


def test_nothing_asked_for_is_the_default() -> None:
    assert read_settings([]) == read() == Settings()
    assert Settings() == Settings(None, "body", Tolerance(), ("langchain",), None)


def test_every_key() -> None:
    assert read(
        cassette="a.yaml",
        match="order",
        allow=["unused"],
        warn=("write:usage",),
        autolog=["langchain", "gemini"],
        run_tracer_inline=False,
    ) == Settings(
        "a.yaml",
        "order",
        Tolerance(frozenset({(None, "unused")}), frozenset({("write", "usage")})),
        ("langchain", "gemini"),
        False,
    )


def test_the_closest_layer_wins_and_kinds_add_up() -> None:
    merged = read_settings(
        [
            ("function", {"match": "order", "allow": ["unused"], "cassette": None, "autolog": []}),
            ("module", {"match": "body", "allow": ["a:usage"], "warn": {"export"}, "autolog": ["langchain"]}),
            ("config", {"cassette": "far.yaml", "run_tracer_inline": True, "allow": []}),
        ]
    )
    tolerance = Tolerance(frozenset({(None, "unused"), ("a", "usage")}), frozenset({(None, "export")}))
    assert merged == Settings(None, "order", tolerance, (), True)


def test_a_path_is_a_cassette_too() -> None:
    assert read(cassette=Path("recorded") / "a.yaml").cassette == str(Path("recorded/a.yaml"))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"cassete": "x"}, f"unknown key 'cassete'; did you mean 'cassette'? It has {ALL_KEYS}"),
        ({"zzz": 1}, f"unknown key 'zzz'. It has {ALL_KEYS}"),
        ({5: 1}, f"unknown key 5. It has {ALL_KEYS}"),
        ({None: 1}, f"unknown key None. It has {ALL_KEYS}"),
        ({"cassette": ""}, "cassette='' is not a path"),
        ({"cassette": 5}, "cassette=5 is not a path"),
        ({"match": "exact"}, "match='exact' is neither 'body' nor 'order'"),
        ({"match": ["body"]}, "match=['body'] is neither 'body' nor 'order'"),
        ({"match": None}, "match=None is neither 'body' nor 'order'"),
        ({"run_tracer_inline": 1}, "run_tracer_inline=1 is neither True nor False"),
        (
            {"autolog": "langchain"},
            "autolog='langchain' is not a list of MLflow flavors: write autolog=[\"langchain\"]",
        ),
        ({"autolog": ["a b"]}, "autolog=['a b'] is not a list of MLflow flavors: write autolog=[\"langchain\"]"),
        ({"autolog": [1]}, 'autolog=[1] is not a list of MLflow flavors: write autolog=["langchain"]'),
        ({"autolog": None}, 'autolog=None is not a list of MLflow flavors: write autolog=["langchain"]'),
        ({"ignore": "date"}, "ignore='date' is not a list: write ignore=[\"date\"]"),
        ({"ignore": [1]}, "ignore: 1 is int, not text"),
        (
            {"ignore": ["run ("]},
            "ignore: 'run (' is neither date, uuid, a body path nor a regex: "
            "missing ), unterminated subpattern at position 4",
        ),
        ({"hosts": "postgres"}, "hosts='postgres' is not a list of hosts: write hosts=[\"postgres:5432\"]"),
        (
            {"hosts": ["http://postgres"]},
            "hosts: 'http://postgres' is a URL or a network, not a host: "
            'write "db.internal", "postgres:5432", "[::1]:80" or "*.corp.example"',
        ),
        ({"allow": "unused"}, "allow='unused' is not a list of kinds: write allow=[\"unused\"]"),
        ({"warn": None}, 'warn=None is not a list of kinds: write warn=["unused"]'),
        ({"allow": {"unused": 1}}, "allow={'unused': 1} is not a list of kinds: write allow=[\"unused\"]"),
        (
            {"allow": ["unusd"]},
            f"allow: unknown kind 'unusd'; did you mean 'unused'? The kinds are {ALL_KINDS}",
        ),
        (
            {"warn": ["write:unusd"]},
            f"warn: unknown kind 'write:unusd'; did you mean 'unused'? The kinds are {ALL_KINDS}",
        ),
        ({"allow": ["unused:"]}, f"allow: unknown kind 'unused:'. The kinds are {ALL_KINDS}"),
        ({"allow": [":unused"]}, f"allow: unknown kind ':unused'; did you mean 'unused'? The kinds are {ALL_KINDS}"),
        ({"allow": [None]}, f"allow: unknown kind None. The kinds are {ALL_KINDS}"),
    ],
)
def test_a_setting_that_cannot_be_meant(keys: dict[Any, Any], said: str) -> None:
    assert problems(("test_a.py::test_b", keys)) == [f"test_a.py::test_b: {said}"]


@pytest.mark.parametrize("layer", [None, [], "allow", 5])
def test_a_layer_that_is_no_mapping(layer: Any) -> None:
    assert problems(("agenttrace_config", layer)) == [
        f"agenttrace_config: a mapping of keys is wanted, not {type(layer).__name__}"
    ]


def test_everything_wrong_is_told_at_once() -> None:
    found = problems(("one", {"match": "x", "cassette": 1}), ("two", {"match": "y", "allow": ["a", "b"]}), ("three", 3))
    assert [line.partition(" ")[0] + line.partition(" ")[2][:8] for line in found] == [
        "one:match='x",
        "one:cassette",
        "two:match='y",
        "two:allow: u",
        "two:allow: u",
        "three:a mappin",
    ]


ANYTHING = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.lists(st.text() | st.none())
NAMES = ["cassette", "match", "order", "allow", "warn", "autolog", "run_tracer_inline"]
KEYS = st.sampled_from(NAMES) | st.text() | st.none()


@given(st.lists(st.dictionaries(KEYS, ANYTHING) | ANYTHING, max_size=3))
def test_any_layers_are_settings_or_a_settings_error(layers: list[Any]) -> None:
    settings, problems = Settings(), None
    try:
        settings = read_settings([("layer", layer) for layer in layers])
    except SettingsError as error:
        problems = error.problems
    assert problems is None or all(line.startswith("layer: ") for line in problems)
    assert problems is None or len(problems) > 0
    assert isinstance(settings.cassette, str | None)
    assert settings.match in ("body", "order")


# Forgiving and counting

FINDINGS = [Finding("unused", None, "1"), Finding("unused", "write", "2"), Finding("usage", "write", "3")]


@pytest.mark.parametrize(
    ("allow", "warn", "failing", "warned"),
    [
        ([], [], "123", ""),
        (["unused"], [], "3", ""),
        (["write:unused"], [], "13", ""),
        (["other:unused"], [], "123", ""),
        ([], ["unused"], "3", "12"),
        ([], ["write:usage"], "12", "3"),
        (["write:unused"], ["unused"], "3", "1"),
        (["unused", "usage"], ["unused", "usage"], "", ""),
    ],
)
def test_kinds_are_forgiven_or_counted(allow: list[str], warn: list[str], failing: str, warned: str) -> None:
    tolerance = read(allow=allow, warn=warn).tolerance
    assert "".join(finding.text for finding in tolerance.failing(FINDINGS)) == failing
    assert "".join(finding.text for finding in tolerance.warned(FINDINGS)) == warned


def test_a_node_may_have_a_colon_in_its_name() -> None:
    assert read(allow=["team:write:usage"]).tolerance.allow == {("team:write", "usage")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_accepted(kind: str) -> None:
    assert read(allow=[kind], warn=[f"a:{kind}"]).tolerance == Tolerance(
        frozenset({(None, kind)}), frozenset({("a", kind)})
    )


def test_ignore_and_hosts_of_all_layers_add_up() -> None:
    found = read_settings(
        [
            ("agent_trace", {"ignore": ["date"], "hosts": ["postgres:5432"]}),
            ("agenttrace_config", {"ignore": ["uuid", "date"], "hosts": ["db.internal"]}),
        ]
    )
    assert found.ignore.items == ("date", "uuid")
    assert found.hosts == ("postgres:5432", "db.internal")
