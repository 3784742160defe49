"""What went over the wire: Gemini requests and replies, read into `Call`s.

Reads bytes only; knows nothing of vcrpy, MLflow or pytest. Covers the REST surface of the Gemini
developer API and of Vertex AI (`/v1beta/models/MODEL:METHOD`, `.../publishers/google/models/...`).
Source of the field names: the Gemini API reference, GenerateContentResponse.UsageMetadata.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pytest_agenttrace.calls import Call, Caller, Endpoint, ToolCall
from pytest_agenttrace.usage import Usage

__all__ = [
    "Call",
    "Caller",
    "Endpoint",
    "ToolCall",
    "canonical_body",
    "decode_body",
    "parse_endpoint",
    "read_call",
    "read_usage",
    "reply_chunks",
]

_MODEL_PATH = re.compile(r"/(?:v\d\w*)/(?:.*/)?(?:models|tunedModels|endpoints)/(?P<model>[^/:]+):(?P<method>\w+)$")
# Vertex AI's names for what the developer API calls a service tier.
_TRAFFIC = {
    "ON_DEMAND": "standard",
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_PRIORITY": "priority",
    "PROVISIONED_THROUGHPUT": "provisioned",
}
_UNPACKED = 256_000_000
_LINE_END = re.compile(r"\r\n|\r|\n")
_API_PATH = re.compile(r"/(?:upload/)?v\d\w*/(?P<resource>cachedContents|files|fileSearchStores|models|operations)\b")


def parse_endpoint(url: str) -> Endpoint | None:
    """Take a URL apart, or None where it is not the Gemini API's.

    The host is no part of the judgement: proxies and other base URLs speak the same paths.
    """
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
    except ValueError:
        return None
    vertex = "/publishers/" in parts.path or "/projects/" in parts.path
    if found := _MODEL_PATH.search(parts.path):
        method = found["method"]
        streaming = method.startswith("stream")
        return Endpoint(method, found["model"], streaming, query.get("alt") == ["sse"], vertex)
    if found := _API_PATH.search(parts.path):
        return Endpoint(found["resource"], None, False, False, vertex)
    return None


def decode_body(body: bytes | str | None) -> bytes:
    """A body as plain bytes: gzip and deflate (in its zlib wrapping) undone, whatever the headers say. One that would
    unfold to more than 256 MB is left as it is."""
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    if body[:2] != b"\x1f\x8b" and body[:1] != b"\x78":
        return body
    plain = b""
    packed = body
    # gzip may have several members, one behind the other, and zeros behind the last.
    while packed.strip(b"\0"):
        inflating = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            plain += inflating.decompress(packed, _UNPACKED + 1 - len(plain))
        except zlib.error:
            return body
        if not inflating.eof or len(plain) > _UNPACKED:
            return body
        packed = inflating.unused_data
    return plain


def _number(text: str) -> int | float:
    """A number with a point or an exponent: the integer where it is one, of any size, else a double."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is larger than any double")
    if value.is_integer():
        exact = Decimal(text)
        return int(exact if exact == exact.to_integral_value() else value)
    return value


def canonical_body(body: bytes | str | None) -> bytes:
    """One form for all JSON texts that mean the same: key order, white space and the way a number
    is written do not matter. Of a key written twice the last one counts. A body that is not JSON, or
    goes beyond it (nested a thousand deep, numbers no double holds), is returned as it is."""
    raw = decode_body(body)
    try:
        value = json.loads(raw, parse_float=_number)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    except (ValueError, RecursionError):
        return raw
    return text.encode("utf-8", "surrogatepass")


def reply_chunks(body: bytes | str | None) -> Iterator[dict[str, Any]]:
    """The JSON objects of a reply: one for a plain reply, several for a stream (SSE, or the JSON
    array the API sends without `alt=sse`). What does not parse is passed over."""
    text = decode_body(body).decode("utf-8-sig", "replace")
    try:
        value = json.loads(text)
        items = value if isinstance(value, list) else [value]
    except (ValueError, RecursionError):
        items = list(_events(text))
    for item in items:
        if isinstance(item, dict):
            yield item


def _events(text: str) -> Iterator[Any]:
    # Not splitlines: JSON may hold U+2028 and other marks that it takes for the end of a line.
    for line in _LINE_END.split(text):
        if line.startswith("data:"):
            try:
                yield json.loads(line[5:])
            except (ValueError, RecursionError):
                continue


def _count(metadata: Mapping[str, Any], key: str) -> int | None:
    value = metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _modalities(metadata: Mapping[str, Any], *keys: str) -> tuple[tuple[str, int], ...]:
    totals: dict[str, int] = {}
    for key in keys:
        details = metadata.get(key)
        for detail in details if isinstance(details, list) else []:
            count = _count(detail, "tokenCount") if isinstance(detail, dict) else None
            if count is not None:
                name = str(detail.get("modality", "MODALITY_UNSPECIFIED"))
                totals[name] = totals.get(name, 0) + count
    return tuple(sorted(totals.items()))


def read_usage(metadata: Mapping[str, Any]) -> Usage | None:
    """`usageMetadata` as `Usage`; None where it counts nothing.

    input = promptTokenCount + toolUsePromptTokenCount; output = candidatesTokenCount +
    thoughtsTokenCount; cache_read = cachedContentTokenCount, already inside input. The API leaves
    out a count that is 0, so beside a known prompt an absent (or null) count of candidates is 0;
    thoughts, cache and tool use stay unknown. An absent or zero total beside known parts is their sum: in all
    488 recordings that give one, it is. Where the total is larger and nobody says of what, output is unknown.
    """
    prompt = _count(metadata, "promptTokenCount")
    candidates = _count(metadata, "candidatesTokenCount")
    thoughts = _count(metadata, "thoughtsTokenCount")
    tool_use = _count(metadata, "toolUsePromptTokenCount")
    total = _count(metadata, "totalTokenCount")
    input_tokens = None if prompt is None else prompt + (tool_use or 0)
    output_tokens: int | None = (candidates or 0) + (thoughts or 0)
    if prompt is None and candidates is None and thoughts is None:
        if not total:
            return None
        return Usage(total_tokens=total)
    if input_tokens is not None and output_tokens is not None:
        known = input_tokens + output_tokens
        if not total:
            total = known
        elif candidates is None and total > known:
            output_tokens = None
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        total_tokens=total,
        cache_read_input_tokens=_count(metadata, "cachedContentTokenCount"),
        thoughts_tokens=thoughts,
        tool_use_tokens=tool_use,
        input_modalities=_modalities(metadata, "promptTokensDetails", "toolUsePromptTokensDetails"),
        cache_modalities=_modalities(metadata, "cacheTokensDetails"),
        output_modalities=_modalities(metadata, "candidatesTokensDetails"),
    )


def _candidates(chunk: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    candidates = chunk.get("candidates")
    for candidate in candidates if isinstance(candidates, list) else []:
        if isinstance(candidate, dict):
            yield candidate


def _tool_requests(candidate: Mapping[str, Any]) -> Iterator[ToolCall]:
    content = candidate.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    for part in parts if isinstance(parts, list) else []:
        request = part.get("functionCall") if isinstance(part, dict) else None
        if isinstance(request, dict):
            args = request.get("args")
            yield ToolCall(str(request.get("name")), args if isinstance(args, dict) else {})


# How a reply's grounding names what it was taken from, and how its steps name Google's own tools.
_GROUNDED_BY = {"retrievedContext": "file_search", "maps": "google_maps"}
_TOOL_TYPES = {"GOOGLE_SEARCH_WEB": "google_search", "GOOGLE_SEARCH_IMAGE": "google_search"}


def _items(data: Any, key: str) -> list[Mapping[str, Any]]:
    """The objects in a list of an object; none where either is something else."""
    found = data.get(key) if isinstance(data, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _server_tools(candidate: Mapping[str, Any]) -> Iterator[str]:
    """What Google ran itself for a candidate, by what it left there: steps, results, sources.

    Source: the Gemini API reference (Part.toolCall, Part.codeExecutionResult, GroundingMetadata, UrlContextMetadata).
    """
    for part in _items(candidate.get("content"), "parts"):
        step = part.get("toolCall")
        if isinstance(step, dict) and isinstance(step.get("toolType"), str):
            yield _TOOL_TYPES.get(step["toolType"], step["toolType"].lower())
        # File search leaves code of its own, without a result.
        if "codeExecutionResult" in part:
            yield "code_execution"
    grounding = candidate.get("groundingMetadata")
    if isinstance(grounding, dict) and grounding.get("webSearchQueries"):
        yield "google_search"
    for chunk in _items(grounding, "groundingChunks"):
        yield from (tool for source, tool in _GROUNDED_BY.items() if source in chunk)
    if _items(candidate.get("urlContextMetadata"), "urlMetadata"):
        yield "url_context"


def _queries(candidate: Mapping[str, Any]) -> Iterator[str]:
    """What Google Search was asked. Gemini 3 lists empty queries too; they are no searches."""
    grounding = candidate.get("groundingMetadata")
    queries = grounding.get("webSearchQueries") if isinstance(grounding, dict) else None
    for query in queries if isinstance(queries, list) else []:
        if isinstance(query, str) and query.strip():
            yield query


def _tier(metadata: Mapping[str, Any]) -> str | None:
    """The service tier a call was billed as: `serviceTier` of the developer API, `trafficType` of Vertex AI."""
    found = metadata.get("serviceTier")
    if isinstance(found, str) and found:
        name = found.lower().removeprefix("service_tier_")
        return None if name == "unspecified" else name
    traffic = metadata.get("trafficType")
    return _TRAFFIC.get(traffic) if isinstance(traffic, str) else None


def read_call(
    index: int,
    caller: Caller,
    endpoint: Endpoint,
    status: int | None,
    reply: bytes | str | None,
    *,
    recorded_at: datetime | None = None,
    duration: float | None = None,
    at: float = 0.0,
) -> Call:
    """Read a reply. In a stream the counts are cumulative: the last chunk that has any counts."""
    usage: Usage | None = None
    model_version: str | None = None
    finish_reason: str | None = None
    tier: str | None = None
    tools: list[ToolCall] = []
    served: dict[str, None] = {}
    queries: set[str] = set()
    for chunk in reply_chunks(reply):
        metadata = chunk.get("usageMetadata")
        if isinstance(metadata, dict):
            usage = read_usage(metadata) or usage
            tier = _tier(metadata) or tier
        if isinstance(chunk.get("modelVersion"), str):
            model_version = chunk["modelVersion"]
        for candidate in _candidates(chunk):
            reason = candidate.get("finishReason")
            finish_reason = reason if isinstance(reason, str) else finish_reason
            tools.extend(_tool_requests(candidate))
            served |= dict.fromkeys(_server_tools(candidate))
            queries.update(_queries(candidate))
    return Call(
        index=index,
        caller=caller,
        endpoint=endpoint,
        status=status,
        usage=usage,
        model_version=model_version,
        finish_reason=finish_reason,
        tool_requests=tuple(tools),
        server_tools=tuple(served),
        recorded_at=recorded_at,
        duration=duration,
        at=at,
        searches=len(queries),
        tier=tier,
    )
