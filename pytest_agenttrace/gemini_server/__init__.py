"""A scripted stand-in for the Gemini API on 127.0.0.1, for tests and for cassettes without a key.

Every reply is scripted, none is Google's: the texts come from the script, and token counts nobody
scripted are words, not tokens. Only the shapes are the real API's (`generateContent`,
`streamGenerateContent`, `countTokens`, `embedContent`, `batchEmbedContents`, `cachedContents`); the `Server` header
and every `responseId` say `scripted`, so that a recording of it can be told apart.

    with GeminiServer([Reply("Paris.")]) as server:
        ChatGoogleGenerativeAI(model="gemini-2.5-flash", base_url=server.url, api_key="dummy")

As the fixture `gemini_server` it is asked by the recording, not by the client: it knows the node then.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import unquote

from pytest_agenttrace.gemini_server.bodies import counted_tokens, embeddings, error_body, reply_bodies
from pytest_agenttrace.gemini_server.caches import Caches
from pytest_agenttrace.gemini_server.replies import Answer, ErrorReply, Reply
from pytest_agenttrace.gemini_server.rules import Chosen, Rules, Script, ScriptedRequest, read_scripted_request
from pytest_agenttrace.wire import Endpoint, parse_endpoint

__all__ = ["ErrorReply", "GeminiServer", "Reply", "Script", "ScriptedRequest"]


@dataclass(frozen=True, slots=True)
class _Refusal:
    """The script has no reply. `message` is told to the client with status 400, which it does not retry."""

    message: str


_Said: TypeAlias = Chosen | _Refusal | dict[str, Any]


class GeminiServer:
    """Answers from `script` and from the rules of `reply` while the `with` block lasts.

    `script` is a list of replies, served in order; a dict `{part of the prompt: reply, or list of replies in order}`,
    the first key that fits (a single reply is served as often as it is asked for: right for parallel branches); or a
    callable that gets the `ScriptedRequest` and may return None. Rules come first; without a script they stand alone.
    A request that nothing answers gets status 400, which clients do not retry, and its message is kept in
    `unscripted`. countTokens, embeddings and cached contents need no script. `requests` holds `(path, body)` of
    everything asked, in order of arrival.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.unscripted: list[str] = []
        self._rules = Rules(script)
        self._caches = Caches()
        self._lock = threading.Lock()
        self._http: _Http | None = None

    def reply(
        self, *answers: Answer, node: str | None = None, prompt: str | None = None, model: str | None = None
    ) -> None:
        """Say what is answered: to requests of this `node`, to those whose prompt holds `prompt`, to those that ask
        this `model`; of all that are given, to those of which all are true, and without any to every request.

        Rules are tried in the order they were given. A single answer is served as often as it is asked for, several
        in their order; then the next rule that fits has its turn. Raises ValueError without an answer, TypeError for
        what is none.
        """
        self._rules.add(answers, node, prompt, model)

    @property
    def unused(self) -> list[tuple[str | None, str]]:
        """Replies of `reply` that nobody has asked for yet: the node they are for, and what to tell."""
        return self._rules.unused

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, for `base_url=` or `GOOGLE_GEMINI_BASE_URL`."""
        if self._http is None:
            raise RuntimeError(
                "GeminiServer is not running: use it in a with block. The fixture gemini_server runs only while "
                "recording, and no model needs its address."
            )
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

    def _answer(self, verb: str, path: str, raw: bytes, node: str | None) -> tuple[dict[str, Any], _Said]:
        """The parsed body, and what to say: a scripted reply, a refusal, or a ready body."""
        body: dict[str, Any] = {}
        try:
            parsed = json.loads(raw or b"{}")
            if isinstance(parsed, dict):
                body = parsed
            with self._lock:
                self.requests.append((path, body))
            said = self._choose(verb, path, body, node)
        # Whatever a script or an odd body raises must reach the client as an answer it does not retry.
        except Exception as error:
            said = _Refusal(f"{type(error).__name__}: {error}, at {path}")
        if isinstance(said, _Refusal):
            with self._lock:
                self.unscripted.append(said.message)
        return body, said

    def _choose(self, verb: str, path: str, body: dict[str, Any], node: str | None) -> _Said:
        endpoint = parse_endpoint(path)
        if (cached := self._caches.answer(verb, path, body)) is not None:
            return Chosen(cached) if isinstance(cached, ErrorReply) else cached
        if endpoint is None or endpoint.model is None:
            return _Refusal(f"nothing is scripted at {path}")
        if endpoint.method == "countTokens":
            return counted_tokens(body)
        if endpoint.method in ("embedContent", "batchEmbedContents"):
            return embeddings(endpoint.method, body)
        if not endpoint.chat:
            return _Refusal(f"nothing is scripted for {endpoint}")
        request = read_scripted_request(endpoint.model, endpoint.method, body, node)
        chosen = self._rules.choose(request)
        return chosen if isinstance(chosen, Chosen) else _Refusal(chosen)


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
        node, endpoint = self.headers.get("X-Agenttrace-Node"), parse_endpoint(self.path)
        body, said = self.server.scripted._answer(
            self.command, self.path, raw, unquote(node) if node is not None else None
        )
        kind = "text/event-stream" if endpoint is not None and endpoint.sse else "application/json; charset=UTF-8"
        if isinstance(said, _Refusal):
            error = ErrorReply(400, f"GeminiServer: {said.message}")
            self._send(400, kind, [_pretty(error_body(error))], {"X-Agenttrace-Refused": "1"})
        elif isinstance(said, dict):
            self._send(200, kind, [_pretty(said)])
        elif isinstance(said.answer, ErrorReply):
            wait = {} if said.answer.retry_after is None else {"Retry-After": str(said.answer.retry_after)}
            self._send(said.answer.code, kind, [_pretty(error_body(said.answer))], wait)
        elif endpoint is not None:
            self._send(200, kind, _written(reply_bodies(said.answer, said.number, endpoint, body), endpoint))

    do_GET = do_PUT = do_PATCH = do_DELETE = do_POST

    def _send(self, code: int, kind: str, pieces: list[bytes], more: dict[str, str] | None = None) -> None:
        self.send_response(code)
        # One connection a request: closing the server leaves no socket behind.
        headers = {"Content-Type": kind, **(more or {}), "Connection": "close", "Transfer-Encoding": "chunked"}
        for name, value in headers.items():
            self.send_header(name, value)
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
