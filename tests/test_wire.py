"""Gemini's requests and replies, read from bytes: whatever they hold, reading never raises."""

from __future__ import annotations

import gzip
import json
import zlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pytest_agenttrace.wire as wire
from pytest_agenttrace.calls import Caller, Endpoint, ToolCall
from pytest_agenttrace.usage import Usage
from pytest_agenttrace.wire import (
    canonical_body,
    decode_body,
    parse_endpoint,
    read_call,
    read_usage,
    reply_chunks,
)
from tests.handmade import tokens

HOST = "https://generativelanguage.googleapis.com"
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=15)


# Endpoints


@pytest.mark.parametrize(
    ("url", "endpoint", "said"),
    [
        (
            f"{HOST}/v1beta/models/gemini-2.5-flash:generateContent",
            Endpoint("generateContent", "gemini-2.5-flash", False, False, False),
            "gemini-2.5-flash:generateContent",
        ),
        (
            f"{HOST}/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
            Endpoint("streamGenerateContent", "gemini-2.5-flash", True, True, False),
            "gemini-2.5-flash:streamGenerateContent?alt=sse",
        ),
        (
            "http://127.0.0.1:8080/proxy/v1/models/gemini-2.5-pro:streamGenerateContent?key=k",
            Endpoint("streamGenerateContent", "gemini-2.5-pro", True, False, False),
            "gemini-2.5-pro:streamGenerateContent",
        ),
        (
            "https://europe-west1-aiplatform.googleapis.com/v1beta1/projects/p/locations/l/publishers/google/models/"
            "gemini-2.0-flash-001:generateContent",
            Endpoint("generateContent", "gemini-2.0-flash-001", False, False, True),
            "gemini-2.0-flash-001:generateContent",
        ),
        (
            f"{HOST}/v1beta/tunedModels/mine-123:generateContent",
            Endpoint("generateContent", "mine-123", False, False, False),
            "mine-123:generateContent",
        ),
        (
            f"{HOST}/v1beta/models/gemini-embedding-001:batchEmbedContents",
            Endpoint("batchEmbedContents", "gemini-embedding-001", False, False, False),
            "gemini-embedding-001:batchEmbedContents",
        ),
        (
            "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/l/endpoints/123:predict",
            Endpoint("predict", "123", False, False, True),
            "123:predict",
        ),
        (f"{HOST}/upload/v1beta/files", Endpoint("files", None, False, False, False), "files"),
        (f"{HOST}/v1beta/cachedContents/abc", Endpoint("cachedContents", None, False, False, False), "cachedContents"),
        (f"{HOST}/v1beta/models", Endpoint("models", None, False, False, False), "models"),
    ],
)
def test_an_endpoint_is_read_from_the_path_whatever_the_host(url: str, endpoint: Endpoint, said: str) -> None:
    assert parse_endpoint(url) == endpoint
    assert str(endpoint) == said


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://example.com/",
        f"{HOST}/v1beta/models:generateContent",
        f"{HOST}/v1beta/models/gemini-2.5-flash/generateContent/more",
        "https://api.openai.com/v1/chat/completions",
        "http://[::1/v1beta/models/m:generateContent",
    ],
)
def test_what_is_not_the_gemini_api_is_no_endpoint(url: str) -> None:
    read = parse_endpoint(url)
    assert read is None or read.model is None
    assert not (read is not None and read.chat)


@given(st.text() | st.from_regex(r"https?://[\[\]:/?#@a-z0-9.%]*"))
@example("http://[/v1beta/models/m:generateContent")
@example("http://]:x/")
def test_any_text_can_be_asked_whether_it_is_an_endpoint(url: str) -> None:
    assert isinstance(parse_endpoint(url), Endpoint | None)


# Bodies


def test_bodies_are_unpacked_whatever_the_headers_say() -> None:
    plain = b'{"a": 1}'
    assert [
        decode_body(b) for b in (plain, plain.decode(), gzip.compress(plain, mtime=0), zlib.compress(plain), None, b"")
    ] == [
        *[plain] * 4,
        b"",
        b"",
    ]


@pytest.mark.parametrize(
    "body", [b"\x1f\x8b", b"\x1f\x8bnot gzip", gzip.compress(b"cut off", mtime=0)[:-9], b"x", b"x\x9c?"]
)
def test_a_body_that_only_looks_packed_is_left_alone(body: bytes) -> None:
    assert decode_body(body) == body


def test_gzip_may_have_several_parts_and_zeros_behind_them() -> None:
    packed = gzip.compress(b"one ", mtime=0) + gzip.compress(b"two", mtime=0)
    assert decode_body(packed + b"\0" * 9) == b"one two"
    assert decode_body(packed + b"x") == packed + b"x"


def test_a_body_that_unfolds_beyond_measure_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "_UNPACKED", 1_000)
    small, large = gzip.compress(b"a" * 1_000, mtime=0), zlib.compress(b"a" * 1_001)
    assert decode_body(small) == b"a" * 1_000
    assert decode_body(large) == large
    assert decode_body(small + small) == small + small


def test_text_with_a_lone_surrogate_is_a_body_too() -> None:
    assert decode_body("\ud800") == b"\xed\xa0\x80"


# One form for all that means the same


@given(JSON)
@example({"b": 1, "a": [1.5, None, True, "ü\u2028\x7f"]})
@example([1e300, -0.0, 2**70, "\ud800"])
def test_canonical_is_stable_and_ignores_key_order_and_white_space(value: Any) -> None:
    canonical = canonical_body(json.dumps(value))
    assert canonical_body(canonical) == canonical
    assert canonical_body(json.dumps(_turned(value), indent=3)) == canonical
    assert canonical_body(json.dumps(value, ensure_ascii=False)) == canonical
    assert canonical_body(gzip.compress(json.dumps(value).encode())) == canonical
    assert json.loads(canonical, parse_int=float) == json.loads(json.dumps(value), parse_int=float)


def _turned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _turned(inner) for key, inner in reversed(value.items())}
    return [_turned(inner) for inner in value] if isinstance(value, list) else value


def _exact(value: Any) -> Any:
    """What a JSON value is, told apart as JSON does: `True` is not 1, 1.0 is."""
    if isinstance(value, dict):
        return ("object", frozenset((key, _exact(inner)) for key, inner in value.items()))
    if isinstance(value, list):
        return ("array", tuple(map(_exact, value)))
    return ("number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__, value)


@given(JSON, JSON)
@example(1, True)
@example(0, False)
@example(1, "1")
@example(None, "null")
@example([], {})
@example([[1], 2], [1, [2]])
@example(2**64, 2**64 + 1)
@example({"a": 1}, {"a": 1, "b": None})
@example(0.1, 0.10000000000000002)
def test_what_differs_stays_different(one: Any, two: Any) -> None:
    assert (canonical_body(json.dumps(one)) == canonical_body(json.dumps(two))) == (_exact(one) == _exact(two))


@pytest.mark.parametrize(
    ("body", "canonical"),
    [
        ("1.0", b"1"),
        ("1e2", b"100"),
        ("-0.0", b"0"),
        ("0.70", b"0.7"),
        ("7E-1", b"0.7"),
        ("12345678901234567890.0", b"12345678901234567890"),
        ("1e23", b"100000000000000000000000"),
        ("1.00000000000000000000001", b"1"),
        ("0.99999999999999999999999", b"1"),
        ("1e-400", b"0"),
        ('{"a": 1, "a": 2}', b'{"a":2}'),
        ('"\\ud83d\\ude00"', '"😀"'.encode()),
        ('"\\u2028"', b'"\xe2\x80\xa8"'),
        ("\ufeff[1]", b"[1]"),
        ("NaN", b"NaN"),
        ("-Infinity", b"-Infinity"),
    ],
)
def test_numbers_and_strings_have_one_form(body: str, canonical: bytes) -> None:
    assert canonical_body(body) == canonical


@pytest.mark.parametrize(
    "body",
    [
        "1e400",
        "1e401",
        "[1e999999999]",
        "-1e9999999999999999999999",
        "9" * 5000,
        "[" * 100_000,
        '{"a":' * 100_000,
        "{",
        "no json",
        "",
    ],
)
def test_a_body_beyond_json_is_matched_as_it_is(body: str) -> None:
    assert canonical_body(body) == body.encode()


@given(st.binary())
@example(b"\xff\xfe\x00")
@example(b"\x00")
@example(b"\x1f\x8b\x08\x00")
def test_any_bytes_have_a_canonical_form_and_chunks(body: bytes) -> None:
    canonical = canonical_body(body)
    assert isinstance(canonical, bytes)
    assert all(isinstance(chunk, dict) for chunk in reply_chunks(body))


def test_no_body_is_an_empty_one() -> None:
    assert canonical_body(None) == b""
    assert list(reply_chunks(None)) == []


# Replies


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_stream_is_read_event_by_event(end: str) -> None:
    lines = [
        ": comment",
        'event {"n": 9}',
        'data: {"n": 1}',
        "",
        'data:{"n": 2}',
        "",
        "data: {broken",
        "",
        "data: [DONE]",
        "data: 3",
    ]
    assert list(reply_chunks(end.join(lines))) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_mark_inside_of_an_event_does_not_cut_it(mark: str) -> None:
    text = json.dumps({"text": f"one{mark}two"}, ensure_ascii=mark < " ")
    assert list(reply_chunks(f"data: {text}\n\n")) == [{"text": f"one{mark}two"}]


def test_a_reply_can_be_an_object_an_array_or_nothing_of_the_kind() -> None:
    assert list(reply_chunks('{"n": 1}')) == [{"n": 1}]
    assert list(reply_chunks('[{"n": 1}, 2, {"n": 3}]')) == [{"n": 1}, {"n": 3}]
    assert list(reply_chunks(b'\xef\xbb\xbf{"n": 1}')) == [{"n": 1}]
    assert list(reply_chunks(gzip.compress(b'{"n": 1}', mtime=0))) == [{"n": 1}]
    assert list(reply_chunks("<html>502</html>")) == []
    assert list(reply_chunks("[" * 100_000)) == []
    assert list(reply_chunks("data: " + "[" * 100_000 + '\ndata: {"n": 1}')) == [{"n": 1}]


# Usage


@pytest.mark.parametrize(
    ("metadata", "usage"),
    [
        (
            {"promptTokenCount": 150, "candidatesTokenCount": 1171, "totalTokenCount": 1321},
            Usage(150, 1171, 1321),
        ),
        (  # 100 + 20 in, 30 + 12 out
            {
                "promptTokenCount": 100,
                "toolUsePromptTokenCount": 20,
                "candidatesTokenCount": 30,
                "thoughtsTokenCount": 12,
                "cachedContentTokenCount": 64,
                "totalTokenCount": 162,
            },
            Usage(120, 42, 162, 64, 12, 20),
        ),
        ({"promptTokenCount": 8}, Usage(8, 0, 8)),
        ({"promptTokenCount": 8, "candidatesTokenCount": 2, "totalTokenCount": 0}, Usage(8, 2, 10)),
        ({"promptTokenCount": 8, "candidatesTokenCount": None, "totalTokenCount": 8}, Usage(8, 0, 8)),
        ({"promptTokenCount": 8, "candidatesTokenCount": None, "totalTokenCount": 10}, Usage(8, None, 10)),
        (
            {"promptTokenCount": 8, "thoughtsTokenCount": 5, "totalTokenCount": 20},
            Usage(8, None, 20, thoughts_tokens=5),
        ),
        # Of a count that is there nothing is doubted.
        ({"promptTokenCount": 8, "candidatesTokenCount": 2, "totalTokenCount": 99}, Usage(8, 2, 99)),
        ({"promptTokenCount": 8, "thoughtsTokenCount": 5, "totalTokenCount": 13}, Usage(8, 5, 13, thoughts_tokens=5)),
        ({"promptTokenCount": 0, "totalTokenCount": 0}, Usage(0, 0, 0)),
        ({"candidatesTokenCount": 2}, Usage(None, 2, None)),
        ({"thoughtsTokenCount": 5}, Usage(None, 5, None, thoughts_tokens=5)),
        ({"totalTokenCount": 9}, Usage(None, None, 9)),
        ({"totalTokenCount": 0}, None),
        ({}, None),
        ({"trafficType": "ON_DEMAND"}, None),
        ({"promptTokenCount": "8", "candidatesTokenCount": True, "totalTokenCount": 1.5}, None),
        ({"promptTokenCount": -8, "candidatesTokenCount": 2, "totalTokenCount": 10}, Usage(None, 2, 10)),
    ],
)
def test_the_token_rule(metadata: dict[str, Any], usage: Usage | None) -> None:
    assert read_usage(metadata) == usage


def test_modalities_are_summed_over_prompt_and_tool_use() -> None:
    usage = read_usage(
        {
            "promptTokenCount": 20,
            "toolUsePromptTokenCount": 5,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 12}, {"modality": "AUDIO", "tokenCount": 8}],
            "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 5}, {"modality": "IMAGE"}, "odd"],
            "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 10}],
            "candidatesTokensDetails": [{"tokenCount": 3}],
        }
    )
    assert usage is not None
    assert usage.input_modalities == (("AUDIO", 8), ("TEXT", 17))
    assert usage.cache_modalities == (("TEXT", 10),)
    assert usage.output_modalities == (("MODALITY_UNSPECIFIED", 3),)


COUNT_KEYS = [
    "promptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
    "cachedContentTokenCount",
    "toolUsePromptTokenCount",
    "totalTokenCount",
    "promptTokensDetails",
    "cacheTokensDetails",
]


@given(st.dictionaries(st.sampled_from(COUNT_KEYS) | st.text(), JSON | st.integers(0, 10**9)))
def test_usage_can_be_read_from_any_json(metadata: dict[str, Any]) -> None:
    usage = read_usage(metadata)
    counts = [] if usage is None else [count for count in usage.as_dict().values() if count is not None]
    assert all(type(count) is int and count >= 0 for count in counts)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(COUNT_KEYS[:5], st.integers(0, 10**6))))
def test_with_a_known_prompt_nothing_of_the_three_is_unknown(metadata: dict[str, int]) -> None:
    usage = read_usage(metadata | {"promptTokenCount": 7})
    assert usage is not None
    assert usage.known
    assert usage.total_tokens == (usage.input_tokens or 0) + (usage.output_tokens or 0)


# Calls

CALLER = Caller("write", 2, "write:1", ("__pregel_pull", "write"))
ENDPOINT = Endpoint("streamGenerateContent", "gemini-2.5-flash", True, True, False)


def sse(*chunks: object) -> str:
    return "".join(f"data: {json.dumps(chunk)}\r\n\r\n" for chunk in chunks)


def test_a_stream_counts_its_last_chunk_and_collects_what_was_asked_for() -> None:
    when = datetime(2025, 7, 1, tzinfo=UTC)
    search = {"functionCall": {"name": "web_search", "args": {"query": "q"}}}
    clock = {"functionCall": {"name": "clock"}}
    reply = sse(
        {
            "usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9},
            "candidates": [{"content": {"parts": [{"text": "a"}, search]}}],
        },
        {
            "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13},
            "modelVersion": "gemini-2.5-flash-001",
            "candidates": [{"content": {"parts": [clock]}, "finishReason": "STOP"}],
        },
        {"usageMetadata": {}, "candidates": [{"index": 0}]},
    )
    made = read_call(3, CALLER, ENDPOINT, 200, reply, recorded_at=when, duration=1.5, at=2.0)
    assert made.usage == tokens(9, 4)
    assert (made.model, made.model_version, made.finish_reason) == ("gemini-2.5-flash", "gemini-2.5-flash-001", "STOP")
    assert made.tool_requests == (("web_search", {"query": "q"}), ("clock", {}))
    assert made.tool_requests[0] == ToolCall("web_search", {"query": "q"})
    assert (made.index, made.node, made.answered) == (3, "write", True)
    assert (made.recorded_at, made.duration, made.at) == (when, 1.5, 2.0)


def test_a_failed_call_has_no_usage_and_is_not_answered() -> None:
    made = read_call(1, Caller(), ENDPOINT, 429, '{"error": {"code": 429}}')
    assert (made.usage, made.answered, made.node, made.finish_reason) == (None, False, None, None)


@pytest.mark.parametrize(
    "reply",
    [
        {"candidates": "no list"},
        {"candidates": [None, {"content": None}, {"content": {"parts": {}}}, {"content": {"parts": [1]}}]},
        {"candidates": [{"finishReason": {"odd": 1}}], "usageMetadata": [1], "modelVersion": 5},
    ],
)
def test_a_reply_of_another_shape_is_read_as_far_as_it_goes(reply: object) -> None:
    made = read_call(1, CALLER, ENDPOINT, 200, json.dumps(reply))
    assert (made.usage, made.model_version, made.finish_reason, made.tool_requests) == (None, None, None, ())


@given(JSON, st.sampled_from(["candidates", "usageMetadata", "modelVersion"]))
def test_any_json_can_be_read_as_a_reply(value: Any, key: str) -> None:
    for reply in (value, {key: value}, {"candidates": [{"content": {"parts": [value]}, "finishReason": value}]}):
        made = read_call(1, CALLER, ENDPOINT, 200, json.dumps(reply))
        assert isinstance(made.model_version, str | None)
        assert isinstance(made.finish_reason, str | None)


# What else is billed


@pytest.mark.parametrize(
    ("queries", "counted"),
    [
        (None, 0),
        ("solar sails", 0),
        ([], 0),
        (["solar sails"], 1),
        # Gemini 3 lists empty queries too
        (["", " ", "solar sails", 7], 1),
        (["solar sails", "ikaros"], 2),
        (["solar sails", "solar sails"], 1),
    ],
)
def test_searches_are_distinct_queries(queries: object, counted: int) -> None:
    chunk = {"candidates": [{"groundingMetadata": {"webSearchQueries": queries}}, {"groundingMetadata": None}]}
    # A stream may repeat what it has said.
    for reply in (json.dumps(chunk), sse(chunk, {"candidates": [{}]}, chunk)):
        assert read_call(1, CALLER, ENDPOINT, 200, reply).searches == counted


@pytest.mark.parametrize(
    ("usage", "tier"),
    [
        ({}, None),
        ({"serviceTier": "standard"}, "standard"),
        ({"serviceTier": "priority"}, "priority"),
        ({"serviceTier": "SERVICE_TIER_FLEX"}, "flex"),
        ({"serviceTier": "unspecified"}, None),
        ({"serviceTier": 7}, None),
        ({"trafficType": "ON_DEMAND"}, "standard"),
        ({"trafficType": "ON_DEMAND_PRIORITY"}, "priority"),
        ({"trafficType": "ON_DEMAND_FLEX"}, "flex"),
        ({"trafficType": "PROVISIONED_THROUGHPUT"}, "provisioned"),
        ({"trafficType": "TRAFFIC_TYPE_UNSPECIFIED"}, None),
        ({"trafficType": []}, None),
    ],
)
def test_the_service_tier_that_a_reply_names(usage: dict[str, Any], tier: str | None) -> None:
    reply = sse({"usageMetadata": {"promptTokenCount": 1, **usage}}, {"usageMetadata": {"promptTokenCount": 1}})
    assert read_call(1, CALLER, ENDPOINT, 200, reply).tier == tier
