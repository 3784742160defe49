"""The JSON that a script's replies are sent as, shaped like the real API's."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from pytest_agenttrace.calls import Endpoint
from pytest_agenttrace.gemini_server.replies import COUNTS, DETAILS, ErrorReply, Reply

__all__ = ["counted_tokens", "embeddings", "error_body", "reply_bodies", "words_in"]

# Source: google.rpc.Code and the Gemini API's troubleshooting page.
_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
# Split by modality only where the script does so.
_SPLIT_WHERE_GIVEN = "candidatesTokenCount"
_SIGNATURE = base64.b64encode(b"scripted").decode()
_EMBEDDING_SIZE = 8
_Piece: TypeAlias = tuple[int, list[dict[str, Any]], bool]


def error_body(error: ErrorReply) -> dict[str, Any]:
    """The body of an error."""
    status = error.status if error.status is not None else _STATUS.get(error.code, "UNKNOWN")
    body: dict[str, Any] = {"code": error.code, "message": error.message, "status": status}
    return {"error": body | ({"details": [dict(detail) for detail in error.details]} if error.details else {})}


def reply_bodies(reply: Reply, number: int, endpoint: Endpoint, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The JSON objects of a reply: one, or one for each piece of a stream. Their usage is cumulative, as it is in
    every stream recorded of the real API. `number` is the reply's place in the script: with the reply itself, and
    nothing of the request, it makes the `responseId`."""
    about = {
        "modelVersion": reply.model_version if reply.model_version is not None else endpoint.model,
        "responseId": f"scripted-{_digest(f'{reply} {number}', 12)}",
    }
    if reply.block_reason is not None:
        ratings = [dict(rating) for rating in reply.safety_ratings]
        feedback = {"blockReason": reply.block_reason, **({"safetyRatings": ratings} if ratings else {})}
        return [{"promptFeedback": feedback, **_usage(reply, [], request, 0, 0), **about}]
    answers = _asked_for(reply, request)
    parts = [_parts(reply, answer, place, number, endpoint.streaming) for place, answer in enumerate(answers)]
    whole = sum(_weight(part) for found in parts for part in found)
    bodies, sent = [], 0
    for step, last in _steps(parts, endpoint.streaming):
        sent += sum(_weight(part) for _, piece, _ in step for part in piece)
        candidates = [_candidate(answers[place], place, piece, ends) for place, piece, ends in step]
        usage = _usage(reply, answers, request, None if last else sent, whole)
        bodies.append({"candidates": candidates, **usage, **about})
    return bodies


def _steps(parts: Sequence[list[dict[str, Any]]], streaming: bool) -> Iterator[tuple[list[_Piece], bool]]:
    """What is sent at once: of each candidate its place, some of its parts and whether it ends with them; and whether
    the reply does. A plain reply is sent whole, a stream part by part."""
    pieces = [[[part] for part in found] or [[]] if streaming else [found] for found in parts]
    most = max(map(len, pieces))
    for step in range(most):
        going = [(place, found) for place, found in enumerate(pieces) if step < len(found)]
        yield [(place, found[step], step == len(found) - 1) for place, found in going], step == most - 1


def _asked_for(reply: Reply, request: Mapping[str, Any]) -> list[Reply]:
    settings = request.get("generationConfig", {})
    wanted = settings.get("candidateCount", 1) if isinstance(settings, Mapping) else 1
    return list(reply.candidates[: max(wanted, 1)]) if reply.candidates else [reply]


def _parts(reply: Reply, answer: Reply, place: int, number: int, streaming: bool) -> list[dict[str, Any]]:
    """All parts of one candidate, in the order of the real API: thoughts, text, calls."""
    texts = answer.chunks if streaming and answer.chunks is not None else [answer.text]
    parts: list[dict[str, Any]] = [{"text": answer.thoughts, "thought": True}] if answer.thoughts else []
    parts += [{"text": text} for text in texts if text]
    made = [_call(call, at, place, number) for at, call in enumerate(answer.tool_calls)]
    calls: list[dict[str, Any]] = [{"functionCall": call} for call in made]
    # The real API signs the first call of a reply that was thought about, or its text, and wants it back.
    thought = answer.thoughts or (reply.usage or {}).get("thoughtsTokenCount", 0) != 0
    if thought and calls:
        calls[0]["thoughtSignature"] = _SIGNATURE
    elif answer.thoughts and answer.text:
        parts[-1]["thoughtSignature"] = _SIGNATURE
    return parts + calls


def _call(call: Sequence[Any], at: int, place: int, number: int) -> dict[str, Any]:
    name, args, *given = call
    made = _digest(f"{name} {json.dumps(args, sort_keys=True, default=str)} {place} {at} {number}", 8)
    return {"name": name, "args": dict(args), "id": given[0] if given else made}


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _weight(part: Mapping[str, Any]) -> int:
    """How much of an answer a part is: characters; thoughts are none of it."""
    if "functionCall" in part:
        return len(json.dumps(part["functionCall"]["args"])) + len(part["functionCall"]["name"])
    return 0 if part.get("thought") else len(part["text"])


def _candidate(answer: Reply, place: int, parts: Sequence[Mapping[str, Any]], ends: bool) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": [*parts], "role": "model"} if parts else {}}
    if ends:
        candidate["finishReason"] = answer.finish_reason
    candidate["index"] = place
    if ends and answer.tool_calls:
        candidate["finishMessage"] = "Model generated function call(s)."
    if ends and answer.safety_ratings:
        candidate["safetyRatings"] = [dict(rating) for rating in answer.safety_ratings]
    if ends and answer.grounding is not None:
        candidate["groundingMetadata"] = dict(answer.grounding)
    return candidate


def _usage(
    reply: Reply, answers: Sequence[Reply], request: Mapping[str, Any], sent: int | None, whole: int
) -> dict[str, Any]:
    """`sent` of `whole` characters have been streamed so far; None for the whole reply."""
    if reply.usage is None:
        return {}
    said = [text for answer in answers for text in (answer.text, *_plain_calls(answer))]
    counts = {"promptTokenCount": words_in(request), "candidatesTokenCount": _count_words(said)}
    if thoughts := [answer.thoughts for answer in answers if answer.thoughts]:
        counts["thoughtsTokenCount"] = _count_words(thoughts)
    counts |= {name: sum(n.values()) if isinstance(n, Mapping) else n for name, n in reply.usage.items()}
    if sent is not None:
        counts["candidatesTokenCount"] = counts["candidatesTokenCount"] * sent // max(whole, 1)
    if sent is not None or "totalTokenCount" not in reply.usage:
        # Cached tokens are part of the prompt.
        inside = ("totalTokenCount", "cachedContentTokenCount")
        counts["totalTokenCount"] = sum(count for name, count in counts.items() if name not in inside)
    metadata: dict[str, Any] = {name: counts[name] for name in COUNTS if counts.get(name, 0) != 0}
    for name, key in DETAILS.items():
        split = reply.usage.get(name)
        if name in metadata and isinstance(split, Mapping) and (sent is None or name != _SPLIT_WHERE_GIVEN):
            metadata[key] = [{"modality": kind, "tokenCount": count} for kind, count in split.items()]
        elif name in metadata and name != _SPLIT_WHERE_GIVEN:
            metadata[key] = _text_details(metadata[name])
    return {"usageMetadata": metadata}


def _plain_calls(answer: Reply) -> list[dict[str, Any]]:
    return [{"name": name, "args": dict(args)} for name, args, *_ in answer.tool_calls]


def _text_details(count: int) -> list[dict[str, Any]]:
    return [{"modality": "TEXT", "tokenCount": count}]


def counted_tokens(body: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to countTokens: words."""
    words = words_in(body.get("generateContentRequest", body))
    return {"totalTokens": words, "promptTokensDetails": _text_details(words)}


def embeddings(method: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Vectors that depend on the text alone, of `outputDimensionality` numbers, else 8."""
    asked = body.get("requests", []) if method == "batchEmbedContents" else [body]
    vectors = [{"values": list(_vector(request))} for request in asked]
    words = sum(_count_words(_texts(request.get("content", {}))) for request in asked)
    usage = {"promptTokenCount": words, "promptTokenDetails": _text_details(words)}
    if method == "batchEmbedContents":
        return {"embeddings": vectors, "usageMetadata": usage}
    return {"embedding": vectors[0], "usageMetadata": usage}


def _vector(request: Mapping[str, Any]) -> Iterator[float]:
    text = " ".join(str(text) for text in _texts(request.get("content", {})))
    for position in range(request.get("outputDimensionality", _EMBEDDING_SIZE)):
        byte = hashlib.sha256(f"{position} {text}".encode()).digest()[0]
        yield round((byte - 127.5) / 127.5, 6)


def _texts(content: Mapping[str, Any]) -> list[Any]:
    """What a content says: its texts, and its function calls and results as plain data."""
    parts = content.get("parts", [])
    return [part.get("text", part.get("functionCall", part.get("functionResponse", ""))) for part in parts]


def _count_words(values: Sequence[Any]) -> int:
    return sum(len((v if isinstance(v, str) else json.dumps(v)).split()) for v in values)


def words_in(request: Mapping[str, Any]) -> int:
    """Words of the whole prompt: the system instruction and all contents."""
    contents = [request.get("systemInstruction", {}), *request.get("contents", [])]
    return sum(_count_words(_texts(content)) for content in contents)
