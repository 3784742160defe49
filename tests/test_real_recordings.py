"""Every real chat recording, replayed through a traced graph, sync and async, and counted by a reader of its own.

The recordings are real traffic of other SDKs, kept beside the project (`../shared/recordings`, `index.tsv`). Each
recorded exchange is one node `call_1`, `call_2`, ... that asks the recorded model in the recorded way. What MLflow's
own spans and `agent_trace` say is held against the recording's `usageMetadata`, read here by code that shares nothing
with the plugin's.
"""

from __future__ import annotations

import csv
import functools
import gzip
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
import yaml

if TYPE_CHECKING:
    from langchain_google_genai import ChatGoogleGenerativeAI
    from langgraph.graph.state import CompiledStateGraph

    from pytest_agenttrace import AgentTrace, GeminiCassette, MlflowStore, Usage

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "recordings"
PROMPT = "Answer as recorded."
CHAT_URL = re.compile(r"/models/(?P<model>[^/:?]+):(?P<stream>g|streamG)enerateContent(?P<query>\?.*)?$")
# Since 3.10 MLflow keeps the cached part of the input too.
COUNTS_CACHE = tuple(int(part) for part in version("mlflow").split(".")[:2]) >= (3, 10)
# langchain-google-genai warns of each answer that holds code the server ran.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Warning. Output may vary each run:UserWarning")

# What the client makes of an HTTP status, by the name of its exception.
CLIENT_ERRORS = {
    400: "GoogleInvalidRequestError",
    404: "GoogleModelNotFoundError",
    429: "GoogleRateLimitError",
}

PYDANTIC_STREAM = (
    "pydantic__pydantic-ai/models__google__cassettes__test_structured_output__"
    "test_native_output_with_builtin_tools_stream.yaml"
)
FIRST_CHUNK = "the first chunk counts a larger prompt than the last; LangChain keeps the first total"
NO_TOTAL = "the reply gives no total; LangChain calls it 0, it is the sum of its parts"
USAGE_RESETS = "the counts start anew after the server's tool ran; LangChain keeps the candidates of before"
JSON_ARRAY = "recorded without alt=sse, as a JSON array, which google-genai never asks for"


@dataclass(frozen=True)
class Known:
    """An exchange that breaks the token rule, or cannot be asked for: why, and exactly what is seen instead.

    `span` are the counts on MLflow's span (input, output, total); None where the client misses its reply.
    `total` is what the wire's total is where the reply gives none. `finding` is what the plugin must say.
    """

    cause: str
    span: tuple[int, int, int] | None = None
    total: int | None = None
    finding: tuple[str, str] | None = None


def _usage_finding(call: int, endpoint: str, *lines: str) -> tuple[str, str]:
    head = f"call_{call}, call {call}: the span's tokens are not the wire's"
    tail = f'The wire\'s are billed. If it is known: @pytest.mark.agent_trace(allow=["call_{call}:usage"])'
    return "usage", "\n  ".join([head, endpoint, *lines, tail])


def _missed(call: int, model: str) -> tuple[str, str]:
    """The head of a miss: the way out behind it names this test."""
    return "missing", (
        f"call_{call}, call {call}: no recorded reply\n"
        f"  POST {model}:streamGenerateContent?alt=sse\n"
        f"  nearest recorded: call 1, recorded for {model}:streamGenerateContent"
    )


def _array(call: int, model: str) -> Known:
    return Known(JSON_ARRAY, finding=_missed(call, model))


# Every exchange that is not as the token rule says, by file and number of the chat exchange in it. One that begins
# to follow the rule fails its test: take it out.
KNOWN: dict[str, dict[int, Known]] = {
    "braintrustdata__braintrust-sdk-python/test_tool_use_stream_.yaml": {
        2: Known(
            FIRST_CHUNK,
            span=(85, 15, 145),
            finding=_usage_finding(
                2, "gemini-2.0-flash-001:streamGenerateContent?alt=sse", "total_tokens: wire 100, span 145"
            ),
        ),
    },
    "braintrustdata__braintrust-sdk-python/test_tool_use_async_async_stream_.yaml": {
        2: Known(
            FIRST_CHUNK,
            span=(85, 14, 145),
            finding=_usage_finding(
                2, "gemini-2.0-flash-001:streamGenerateContent?alt=sse", "total_tokens: wire 99, span 145"
            ),
        ),
    },
    PYDANTIC_STREAM: {
        1: Known(
            USAGE_RESETS,
            span=(87, 93, 165),
            finding=_usage_finding(
                1, "gemini-3-flash-preview:streamGenerateContent?alt=sse", "output_tokens: wire 78, span 93"
            ),
        ),
    },
    "lmnr-ai__lmnr-python/cassettes__test_google_genai__test_google_genai_no_tokens.yaml": {
        1: Known(NO_TOTAL, span=(40, 15, 0), total=55),
    },
    "simonw__llm-gemini/cassettes__test_gemini__test_nested_model_deep_composition.yaml": {
        1: _array(1, "gemini-flash-latest"),
    },
    "simonw__llm-gemini/cassettes__test_gemini__test_nested_model_direct_reference.yaml": {
        1: _array(1, "gemini-flash-latest"),
    },
    "simonw__llm-gemini/cassettes__test_gemini__test_nested_model_optional.yaml": {
        1: _array(1, "gemini-flash-latest"),
    },
    "simonw__llm-gemini/cassettes__test_gemini__test_tools.yaml": {
        1: _array(1, "gemini-2.5-flash"),
        2: _array(2, "gemini-2.5-flash"),
        3: _array(3, "gemini-2.5-flash"),
    },
    "simonw__llm-gemini/cassettes__test_gemini__test_tools_with_nested_pydantic_models.yaml": {
        1: _array(1, "gemini-flash-latest"),
        2: _array(2, "gemini-flash-latest"),
    },
}


# The recordings, read without the plugin.


@dataclass(frozen=True)
class Exchange:
    """One chat exchange as recorded. `usage` is the last `usageMetadata` of the reply, `{}` where it has none."""

    number: int
    model: str
    stream: bool
    status: int
    usage: dict[str, Any]
    known: Known | None

    @property
    def node(self) -> str:
        return f"call_{self.number}"

    @property
    def counted(self) -> bool:
        return self.status == 200 and not self.missed

    @property
    def missed(self) -> bool:
        return self.known is not None and self.known.span is None

    def _given(self, *names: str) -> int:
        return sum(self.usage.get(name) or 0 for name in names)

    @property
    def input(self) -> int:
        return self._given("promptTokenCount", "toolUsePromptTokenCount")

    @property
    def output(self) -> int:
        return self._given("candidatesTokenCount", "thoughtsTokenCount")

    @property
    def total(self) -> int:
        given: int | None = self.usage.get("totalTokenCount")
        if self.known is not None and self.known.total is not None:
            assert not given, f"the reply gives a total after all: {given}"
            return self.known.total
        assert given, "the reply gives no total"
        return given

    @property
    def span(self) -> tuple[int, int, int]:
        """What MLflow's span must say: input, output, total."""
        if self.known is not None and self.known.span is not None:
            return self.known.span
        return self.input, self.output, self.total


def _reply_objects(body: str | bytes | None) -> list[dict[str, Any]]:
    raw = body.encode() if isinstance(body, str) else body or b""
    text = (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode()
    if text.startswith("data:"):
        events = re.split(r"\r?\n\r?\n", text)
        return [json.loads(event.removeprefix("data:")) for event in events if event.startswith("data:")]
    found = json.loads(text)
    return found if isinstance(found, list) else [found]


def _read_exchanges(file: str) -> list[Exchange]:
    # libyaml's loader where PyYAML was built with it: ten times faster.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)((FOLDER / file).read_text(encoding="utf-8"))
    document = loader.get_single_data()
    loader.dispose()
    exchanges: list[Exchange] = []
    for interaction in document["interactions"]:
        url = CHAT_URL.search(interaction["request"]["uri"])
        if url is None:
            continue
        response, number = interaction["response"], len(exchanges) + 1
        metadata = [o["usageMetadata"] for o in _reply_objects(response["body"].get("string")) if "usageMetadata" in o]
        exchanges.append(
            Exchange(
                number,
                url["model"],
                url["stream"] == "streamG",
                response["status"]["code"],
                metadata[-1] if metadata else {},
                KNOWN.get(file, {}).get(number),
            )
        )
    return exchanges


def _index() -> list[dict[str, str]]:
    if not FOLDER.is_dir():
        return []
    with (FOLDER / "index.tsv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def _has_chat(row: dict[str, str]) -> bool:
    return "enerateContent" in row["endpoints"]


def _parameters() -> Iterator[Any]:
    """One parameter for each chat recording, in the order of the index, with the marker that replays it."""
    files = [row["file"] for row in _index() if _has_chat(row)]
    for file in files:
        known = KNOWN.get(file, {}).values()
        allow = sorted({k.finding[0] for k in known if k.finding is not None})
        mark = pytest.mark.agent_trace(cassette=str(FOLDER / file), match="order", allow=allow)
        yield pytest.param(file, marks=mark, id=file.removesuffix(".yaml"))
    if not files:
        yield pytest.param("", marks=pytest.mark.skip(reason=f"no recordings: {FOLDER} is absent"), id="absent")


every_recording = pytest.mark.parametrize("file", list(_parameters()))


# The workflow: one node for each exchange.


class _State(TypedDict):
    answered: int


def _expected_error(exchange: Exchange) -> AbstractContextManager[Any]:
    """What the client must raise in this node; nothing where the recording has an answer."""
    import langchain_google_genai.chat_models as client

    from pytest_agenttrace import CassetteMiss

    if exchange.missed:
        return pytest.raises(CassetteMiss)
    if exchange.status != 200:
        return pytest.raises(getattr(client, CLIENT_ERRORS[exchange.status]), match=str(exchange.status))
    return nullcontext()


def _model(name: str) -> ChatGoogleGenerativeAI:
    from langchain_google_genai import ChatGoogleGenerativeAI

    # One attempt: a recorded 429 must not be waited for.
    return ChatGoogleGenerativeAI(model=name, max_retries=1)


def _sync_node(exchange: Exchange, model: ChatGoogleGenerativeAI) -> Callable[[_State], dict[str, int]]:
    def ask(state: _State) -> dict[str, int]:
        with _expected_error(exchange):
            if exchange.stream:
                for _ in model.stream(PROMPT):
                    pass
            else:
                model.invoke(PROMPT)
        return {"answered": exchange.number}

    return ask


def _async_node(exchange: Exchange, model: ChatGoogleGenerativeAI) -> Callable[[_State], Any]:
    async def ask(state: _State) -> dict[str, int]:
        with _expected_error(exchange):
            if exchange.stream:
                async for _ in model.astream(PROMPT):
                    pass
            else:
                await model.ainvoke(PROMPT)
        return {"answered": exchange.number}

    return ask


def _graph(
    exchanges: list[Exchange], node: Callable[[Exchange, ChatGoogleGenerativeAI], Any]
) -> CompiledStateGraph[_State]:
    from langgraph.graph import StateGraph

    model = functools.cache(_model)
    graph = StateGraph(_State)
    graph.add_sequence([(exchange.node, node(exchange, model(exchange.model))) for exchange in exchanges])
    graph.set_entry_point(exchanges[0].node)
    return graph.compile()


# The checks.


def _mlflow_says(store: MlflowStore) -> list[tuple[str, dict[str, int] | None]]:
    """Node and usage of each model span, from MLflow's own entities."""
    spans = [span for trace in store.traces() for span in trace.data.spans if span.span_type == "CHAT_MODEL"]
    return [
        (span.attributes["metadata"]["langgraph_node"], span.attributes.get("mlflow.chat.tokenUsage"))
        for span in sorted(spans, key=lambda span: span.start_time_ns)
    ]


def _span_usage(exchange: Exchange) -> dict[str, int] | None:
    if not exchange.counted:
        return None
    usage = dict(zip(("input_tokens", "output_tokens", "total_tokens"), exchange.span, strict=True))
    # LangChain says 0 where the reply says nothing of a cache.
    return (
        usage | {"cache_read_input_tokens": exchange.usage.get("cachedContentTokenCount") or 0}
        if COUNTS_CACHE
        else usage
    )


def _check_witnesses(exchanges: list[Exchange], trace: AgentTrace, store: MlflowStore) -> None:
    """MLflow's spans, the same spans as `agent_trace` gives them, and the wire: each exchange by itself."""
    assert _mlflow_says(store) == [(exchange.node, _span_usage(exchange)) for exchange in exchanges]
    spans = trace.spans(type="CHAT_MODEL")
    assert [(span.node, _counts(span.usage)) for span in spans] == [
        (exchange.node, exchange.span if exchange.counted else None) for exchange in exchanges
    ]
    assert [span.status for span in spans] == ["ok" if exchange.counted else "error" for exchange in exchanges]
    assert [(call.index, call.node, call.status, _counts(call.usage)) for call in trace.calls] == [
        (e.number, e.node, e.status, (e.input, e.output, e.total) if e.counted else None)
        for e in exchanges
        if not e.missed
    ]


def _counts(usage: Usage | None) -> tuple[int | None, ...] | None:
    return None if usage is None else (usage.input_tokens, usage.output_tokens, usage.total_tokens)


def _check_trace(exchanges: list[Exchange], trace: AgentTrace) -> None:
    """What a user reads: order, calls and tokens, by node and of the whole run."""
    counted = [exchange for exchange in exchanges if exchange.counted]
    assert trace.trajectory == [exchange.node for exchange in exchanges]
    assert [(call.node, call.model) for call in trace.llm_calls] == [(e.node, e.model) for e in counted]
    assert trace.tokens_by_node == {e.node: e.total if e.counted else 0 for e in exchanges}
    assert trace.tokens == sum(exchange.total for exchange in counted)
    assert trace.usage.as_dict() == {
        "input_tokens": sum(exchange.input for exchange in counted),
        "output_tokens": sum(exchange.output for exchange in counted),
        "total_tokens": sum(exchange.total for exchange in counted),
        "cache_read_input_tokens": _reported(counted, "cachedContentTokenCount"),
        "thoughts_tokens": _reported(counted, "thoughtsTokenCount"),
        "tool_use_tokens": _reported(counted, "toolUsePromptTokenCount"),
    }


def _reported(exchanges: list[Exchange], name: str) -> int | None:
    """The sum of a count that most replies leave out; None where all do."""
    given = [count for exchange in exchanges if (count := exchange.usage.get(name)) is not None]
    return sum(given) if given else None


def _check_findings(exchanges: list[Exchange], trace: AgentTrace, cassette: GeminiCassette, store: MlflowStore) -> None:
    """The plugin names what is known to differ, and nothing else. Of a miss the head: it ends in a command."""
    from pytest_agenttrace.capture import judge
    from pytest_agenttrace.settings import Tolerance

    found = judge(trace, cassette, store, tolerance=Tolerance()).findings
    heads = [(f.kind, "\n".join(f.text.splitlines()[:3]) if f.kind == "missing" else f.text) for f in found]
    assert heads == [e.known.finding for e in exchanges if e.known is not None and e.known.finding is not None]


def _record_checked(record_property: Callable[[str, object], None], way: str, exchanges: list[Exchange]) -> None:
    """What this test checked, for the count at the end of the run (tests/conftest.py adds it up)."""
    counted = sum(exchange.counted for exchange in exchanges)
    missed = sum(exchange.missed for exchange in exchanges)
    numbers = {"counted": counted, "refused": len(exchanges) - counted - missed, "missed": missed}
    record_property(f"recorded exchanges, {way}", json.dumps(numbers))


def _check(exchanges: list[Exchange], trace: AgentTrace, cassette: GeminiCassette, store: MlflowStore) -> None:
    _check_witnesses(exchanges, trace, store)
    _check_trace(exchanges, trace)
    _check_findings(exchanges, trace, cassette, store)


@every_recording
def test_sync(
    file: str,
    agent_trace: AgentTrace,
    gemini_cassette: GeminiCassette,
    mlflow_store: MlflowStore,
    record_property: Callable[[str, object], None],
) -> None:
    exchanges = _read_exchanges(file)
    _graph(exchanges, _sync_node).invoke({"answered": 0})
    _check(exchanges, agent_trace, gemini_cassette, mlflow_store)
    _record_checked(record_property, "sync", exchanges)


@every_recording
@pytest.mark.asyncio
async def test_async(
    file: str,
    agent_trace: AgentTrace,
    gemini_cassette: GeminiCassette,
    mlflow_store: MlflowStore,
    record_property: Callable[[str, object], None],
) -> None:
    exchanges = _read_exchanges(file)
    await _graph(exchanges, _async_node).ainvoke({"answered": 0})
    _check(exchanges, agent_trace, gemini_cassette, mlflow_store)
    _record_checked(record_property, "async", exchanges)


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recordings: {FOLDER} is absent")
def test_no_chat_recording_is_left_out() -> None:
    rows = _index()
    assert {row["file"] for row in rows} == {path.relative_to(FOLDER).as_posix() for path in FOLDER.glob("*/*.yaml")}
    assert [row["file"] for row in rows if _has_chat(row) != bool(_read_exchanges(row["file"]))] == []


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recordings: {FOLDER} is absent")
@pytest.mark.parametrize("file", KNOWN)
def test_every_known_exception_is_an_exchange_of_its_file_that_breaks_the_rule(file: str) -> None:
    excepted = {e.number: e for e in _read_exchanges(file) if e.known is not None}
    assert set(excepted) == set(KNOWN[file])
    for exchange in excepted.values():
        assert exchange.span != (exchange.input, exchange.output, exchange.usage.get("totalTokenCount")) or (
            exchange.missed and exchange.usage
        )
