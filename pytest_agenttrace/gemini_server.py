"""A scripted stand-in for the Gemini API on 127.0.0.1, for tests and for cassettes without a key.

Every reply is scripted, none is Google's: the texts come from the script, and token counts nobody
scripted are words, not tokens. Only the shapes are the real API's (`generateContent`,
`streamGenerateContent`, `countTokens`, `embedContent`, `batchEmbedContents`); the `Server` header
and every `responseId` say `scripted`, so that a recording of it can be told apart.

    with GeminiServer([Reply("Paris.")]) as server:
        ChatGoogleGenerativeAI(model="gemini-2.5-flash", base_url=server.url, api_key="dummy")
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, TypeAlias

from pytest_agenttrace.wire import Endpoint, parse_endpoint

__all__ = ["ErrorReply", "GeminiServer", "Reply", "Script", "ScriptedRequest"]

_COUNTS = (
    "promptTokenCount",
    "candidatesTokenCount",
    "totalTokenCount",
    "cachedContentTokenCount",
    "toolUsePromptTokenCount",
    "thoughtsTokenCount",
)
# The parts of a prompt that the API also counts by modality, beside the key it does so under.
_DETAILS = {
    "promptTokenCount": "promptTokensDetails",
    "cachedContentTokenCount": "cacheTokensDetails",
    "toolUsePromptTokenCount": "toolUsePromptTokensDetails",
}
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
_EMBEDDING_SIZE = 8


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of the model, plain or streamed as the client asks.

    `usage` holds counts by the API's names (`promptTokenCount`, `candidatesTokenCount`,
    `thoughtsTokenCount`, `cachedContentTokenCount`, `toolUsePromptTokenCount`, `totalTokenCount`). Prompt and
    candidates left out are counted in words, the total is the sum, a count of 0 is not sent (as the real API does);
    None sends no usage at all. `tool_calls` are `(name, args)`. `model_version` is the model asked for unless given.
    `chunks` are the pieces of `text` in a stream; None streams it in one.
    """

    text: str = ""
    usage: Mapping[str, int] | None = field(default_factory=dict)
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    model_version: str | None = None
    finish_reason: str = "STOP"
    chunks: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name in self.usage or ():
            if name not in _COUNTS:
                raise ValueError(f"Reply: no count named {name!r}; known: {', '.join(_COUNTS)}")
        if self.chunks is not None and (not self.chunks or "".join(self.chunks) != self.text):
            raise ValueError(f"Reply: chunks must join to the text: {list(self.chunks)!r} is not {self.text!r}")


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error: HTTP `code`, `status` by that code unless given, `retry_after` in seconds as a header.

    google-genai tries 408, 429, 500, 502, 503 and 504 again, with waits of a second and more.
    """

    code: int
    message: str
    status: str | None = None
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """What was asked. `method` is `generateContent` or `streamGenerateContent`; `prompt` the text of the last user
    content that has any (a tool's result has none); `tools` the names of the functions declared."""

    model: str
    method: str
    body: Mapping[str, Any]
    prompt: str
    tools: tuple[str, ...]


Answer: TypeAlias = Reply | ErrorReply
Script: TypeAlias = (
    Sequence[Answer] | Mapping[str, Answer | Sequence[Answer]] | Callable[[ScriptedRequest], Answer | None]
)


class GeminiServer:
    """Answers from `script` while the `with` block lasts.

    `script` is a list of replies, served in order; a dict `{part of the prompt: reply, or list of replies in order}`,
    the first key that fits (a single reply is served as often as it is asked for: right for parallel branches); or a
    callable that gets the `ScriptedRequest` and may return None. A request it has no reply for is answered
    with status 400, which clients do not retry, and its message kept in `unscripted`. countTokens and
    embeddings need no script. `requests` holds `(path, body)` of everything asked, in order of arrival.
    """

    def __init__(self, script: Script) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.unscripted: list[str] = []
        self._script = script
        self._served: dict[str, int] = {}
        self._lock = threading.Lock()
        self._http: _Http | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, for `base_url=` or `GOOGLE_GEMINI_BASE_URL`."""
        if self._http is None:
            raise RuntimeError("GeminiServer is not running: use it in a with block")
        return f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> GeminiServer:
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.scripted = self
        # A short poll: shutdown() waits for one.
        serve = {"poll_interval": 0.02}
        threading.Thread(target=self._http.serve_forever, kwargs=serve, name="gemini-server", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def answer(self, path: str, raw: bytes) -> tuple[Endpoint | None, dict[str, Any], Answer | dict[str, Any]]:
        """The endpoint asked, the parsed body, and what to say: a scripted reply, or a ready body."""
        endpoint = parse_endpoint(path)
        body: dict[str, Any] = {}
        try:
            parsed = json.loads(raw or b"{}")
            if isinstance(parsed, dict):
                body = parsed
            with self._lock:
                self.requests.append((path, body))
            return endpoint, body, self._choose(endpoint, path, body)
        # Whatever a script or an odd body raises must reach the client as an answer it does not retry.
        except Exception as error:
            return endpoint, body, self._refuse(f"{type(error).__name__}: {error}, at {path}")

    def _choose(self, endpoint: Endpoint | None, path: str, body: dict[str, Any]) -> Answer | dict[str, Any]:
        if endpoint is None or endpoint.model is None:
            return self._refuse(f"nothing is scripted at {path}")
        if endpoint.method == "countTokens":
            words = _words(body.get("generateContentRequest", body))
            return {"totalTokens": words, "promptTokensDetails": _text_details(words)}
        if endpoint.method in ("embedContent", "batchEmbedContents"):
            return _embeddings(endpoint.method, body)
        if not endpoint.chat:
            return self._refuse(f"nothing is scripted for {endpoint}")
        return self._scripted(ScriptedRequest(endpoint.model, endpoint.method, body, _prompt(body), _tool_names(body)))

    def _scripted(self, request: ScriptedRequest) -> Answer:
        asked = f"{request.model}:{request.method}, prompt {request.prompt!r}"
        script = self._script
        if callable(script):
            return script(request) or self._refuse(f"the script has no reply to {asked}")
        if isinstance(script, Mapping):
            key = next((key for key in script if key in request.prompt), None)
            if key is None:
                keys = ", ".join(map(repr, script)) or "none"
                return self._refuse(f"no key of the script is part of the prompt: {asked}; keys: {keys}")
            found = script[key]
            if isinstance(found, Reply | ErrorReply):
                return found
            return self._next(key, found) or self._refuse(f"all replies to {key!r} are used ({len(found)}): {asked}")
        return self._next("", script) or self._refuse(f"all replies are used ({len(script)}): {asked}")

    def _next(self, key: str, answers: Sequence[Answer]) -> Answer | None:
        with self._lock:
            position = self._served.get(key, 0)
            self._served[key] = position + 1
        return answers[position] if position < len(answers) else None

    def _refuse(self, message: str) -> ErrorReply:
        with self._lock:
            self.unscripted.append(message)
        return ErrorReply(400, f"GeminiServer: {message}")


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    # The default of 5 makes the sixth parallel branch wait a second for its connection.
    request_queue_size = 128
    scripted: GeminiServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that hangs up early is no news; anything else is a defect and is printed.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "scripted-gemini"
    sys_version = ""
    timeout = 10
    server: _Http

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        endpoint, body, answer = self.server.scripted.answer(self.path, raw)
        sse = endpoint is not None and endpoint.sse
        kind = "text/event-stream" if sse else "application/json; charset=UTF-8"
        if isinstance(answer, ErrorReply):
            status = answer.status if answer.status is not None else _STATUS.get(answer.code, "UNKNOWN")
            error = {"error": {"code": answer.code, "message": answer.message, "status": status}}
            self._send(answer.code, kind, [_pretty(error)], answer.retry_after)
        elif isinstance(answer, Reply) and endpoint is not None:
            self._send(200, kind, _written(_bodies(answer, endpoint, body), endpoint))
        else:
            self._send(200, kind, [_pretty(answer)])

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

    def _send(self, code: int, kind: str, pieces: list[bytes], retry_after: int | None = None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        # One connection a request: closing the server leaves no socket behind.
        self.send_header("Connection", "close")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: the requests are kept in `requests`."""


def _pretty(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _written(bodies: list[dict[str, Any]], endpoint: Endpoint) -> list[bytes]:
    if endpoint.sse:
        return [b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\r\n\r\n" for body in bodies]
    return [_pretty(bodies if endpoint.streaming else bodies[0])]


def _bodies(reply: Reply, endpoint: Endpoint, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The JSON objects of a reply: one, or one for each piece of a stream. Their usage is cumulative,
    as it is in every stream recorded of the real API."""
    pieces = list(reply.chunks) if endpoint.streaming and reply.chunks is not None else [reply.text]
    digest = hashlib.sha256(f"{json.dumps(request, sort_keys=True)} {reply}".encode()).hexdigest()
    bodies = []
    for number, piece in enumerate(pieces, 1):
        last = number == len(pieces)
        body: dict[str, Any] = {"candidates": [_candidate(reply, piece, last)]}
        if reply.usage is not None:
            sent = None if last else sum(map(len, pieces[:number]))
            body["usageMetadata"] = _usage_metadata(reply, reply.usage, request, sent)
        body["modelVersion"] = reply.model_version if reply.model_version is not None else endpoint.model
        body["responseId"] = f"scripted-{digest[:12]}"
        bodies.append(body)
    return bodies


def _candidate(reply: Reply, piece: str, last: bool) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"text": piece}] if piece else []
    if last:
        calls: list[dict[str, Any]] = [{"functionCall": {"name": n, "args": dict(a)}} for n, a in reply.tool_calls]
        # The real API signs the first call of a reply that was thought about, and wants it back.
        if calls and (reply.usage or {}).get("thoughtsTokenCount", 0) > 0:
            calls[0]["thoughtSignature"] = base64.b64encode(b"scripted").decode()
        parts += calls
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"} if parts else {}}
    if last:
        candidate["finishReason"] = reply.finish_reason
    candidate["index"] = 0
    if last and reply.tool_calls:
        candidate["finishMessage"] = "Model generated function call(s)."
    return candidate


def _usage_metadata(
    reply: Reply, given: Mapping[str, int], request: Mapping[str, Any], sent: int | None
) -> dict[str, Any]:
    """`sent`: characters of the text streamed so far; None for the whole reply."""
    calls = [{"name": name, "args": dict(args)} for name, args in reply.tool_calls]
    counts = {"promptTokenCount": _words(request), "candidatesTokenCount": _count_words([reply.text, *calls]), **given}
    if sent is not None:
        counts["candidatesTokenCount"] = counts["candidatesTokenCount"] * sent // max(len(reply.text), 1)
    if sent is not None or "totalTokenCount" not in given:
        # Cached tokens are part of the prompt.
        inside = ("totalTokenCount", "cachedContentTokenCount")
        counts["totalTokenCount"] = sum(count for name, count in counts.items() if name not in inside)
    metadata: dict[str, Any] = {name: counts[name] for name in _COUNTS if counts.get(name, 0) != 0}
    metadata.update({key: _text_details(counts[name]) for name, key in _DETAILS.items() if name in metadata})
    return metadata


def _text_details(count: int) -> list[dict[str, Any]]:
    return [{"modality": "TEXT", "tokenCount": count}]


def _embeddings(method: str, body: Mapping[str, Any]) -> dict[str, Any]:
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


def _words(request: Mapping[str, Any]) -> int:
    """Words of the whole prompt: the system instruction and all contents."""
    contents = [request.get("systemInstruction", {}), *request.get("contents", [])]
    return sum(_count_words(_texts(content)) for content in contents)


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
