"""The scripted server, spoken to by the clients users have; its shapes held against real recordings."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from pytest_agenttrace.gemini_server import ErrorReply, GeminiServer, Reply, Script, ScriptedRequest

if TYPE_CHECKING:
    from langchain_google_genai import ChatGoogleGenerativeAI

RECORDINGS = Path(__file__).parents[2] / "shared" / "recordings"
# google-genai subclasses aiohttp's session, which aiohttp discourages.
GENAI_ON_AIOHTTP = "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
MODEL = "/v1beta/models/gemini-2.5-flash"


def chat(server: GeminiServer, **options: Any) -> ChatGoogleGenerativeAI:
    from langchain_google_genai import ChatGoogleGenerativeAI

    settings = {"model": "gemini-2.5-flash", "api_key": "dummy", "base_url": server.url, "max_retries": 1}
    return ChatGoogleGenerativeAI(**(settings | options))


def web_search(query: str) -> str:
    """Search the web."""
    return f"about {query}"


def post(server: GeminiServer, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and raw body, by a client that shares nothing with Google's."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    try:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body))
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def asking(*texts: str) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": text}]} for text in texts]}


def ask(script: Script, prompt: str = "Say hi", method: str = ":generateContent") -> dict[str, Any]:
    with GeminiServer(script) as server:
        reply: dict[str, Any] = json.loads(post(server, MODEL + method, asking(prompt))[2])
        return reply


def test_invoke() -> None:
    usage = {"promptTokenCount": 12, "candidatesTokenCount": 30, "thoughtsTokenCount": 5, "cachedContentTokenCount": 4}
    with GeminiServer([Reply("Paris.", usage=usage, model_version="gemini-2.5-flash-002")]) as server:
        message = chat(server).invoke("Capital of France?")
        (path, body), *others = server.requests

    assert message.content == "Paris."
    assert message.usage_metadata == {
        "input_tokens": 12,
        "output_tokens": 35,
        "total_tokens": 47,
        "input_token_details": {"cache_read": 4},
        "output_token_details": {"reasoning": 5},
    }
    assert message.response_metadata["finish_reason"] == "STOP"
    assert message.response_metadata["model_name"] == "gemini-2.5-flash-002"
    assert path == "/v1beta/models/gemini-2.5-flash:generateContent"
    assert body["contents"] == [{"parts": [{"text": "Capital of France?"}], "role": "user"}]
    assert others == []
    assert server.unscripted == []


def test_base_url_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with GeminiServer([Reply("Paris.")]) as server:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
        assert chat(server, base_url=None).invoke("Capital of France?").content == "Paris."


@pytest.mark.filterwarnings(GENAI_ON_AIOHTTP)
def test_async_calls_at_once() -> None:
    async def run() -> list[Any]:
        model = chat(server)
        return await asyncio.gather(*(model.ainvoke(f"Write about {topic}") for topic in ("moon", "sun", "moon")))

    with GeminiServer({"moon": Reply("grey"), "sun": Reply("yellow")}) as server:
        messages = asyncio.run(run())

    assert [message.content for message in messages] == ["grey", "yellow", "grey"]


def test_stream() -> None:
    reply = Reply("One, two, three.", usage={"promptTokenCount": 7}, chunks=["One, ", "two, ", "three."])
    with GeminiServer([reply]) as server:
        chunks = list(chat(server).stream("Count"))

    assert [chunk.content for chunk in chunks if chunk.content] == ["One, ", "two, ", "three."]
    total = chunks[0]
    for chunk in chunks[1:]:
        total += chunk
    assert total.usage_metadata is not None
    assert (total.usage_metadata["input_tokens"], total.usage_metadata["output_tokens"]) == (7, 3)
    assert server.requests[0][0] == "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"


@pytest.mark.filterwarnings(GENAI_ON_AIOHTTP)
def test_async_stream() -> None:
    async def run() -> list[Any]:
        return [chunk.content async for chunk in chat(server).astream("Count") if chunk.content]

    with GeminiServer([Reply("One, two.", chunks=["One, ", "two."])]) as server:
        assert asyncio.run(run()) == ["One, ", "two."]


@pytest.mark.parametrize("thoughts", [0, 64])
def test_tool_loop_repeats_exactly(thoughts: int) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    usage = {"thoughtsTokenCount": thoughts}
    script = {
        "solar": [
            Reply(tool_calls=[("web_search", {"query": "solar sails"})], usage=usage),
            Reply("They sail.", usage=usage),
        ]
    }
    seen = []
    for _ in range(2):
        with GeminiServer(script) as server:
            model = chat(server).bind_tools([web_search])
            first = model.invoke([HumanMessage("Find solar sails")])
            assert [(call["name"], call["args"]) for call in first.tool_calls] == [
                ("web_search", {"query": "solar sails"})
            ]
            answer = ToolMessage("about solar sails", tool_call_id=first.tool_calls[0]["id"])
            assert model.invoke([HumanMessage("Find solar sails"), first, answer]).content == "They sail."
            seen.append(server.requests)

    assert seen[0] == seen[1]
    assert seen[0][1][1]["contents"][2]["parts"][0]["functionResponse"]["name"] == "web_search"
    signed = "thoughtSignature" in seen[0][1][1]["contents"][1]["parts"][0]
    assert signed is (thoughts > 0)


def test_structured_output() -> None:
    schema = {"title": "City", "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    with GeminiServer([Reply('{"name": "Paris"}'), Reply(tool_calls=[("City", {"name": "Rome"})])]) as server:
        model = chat(server)
        by_schema = model.with_structured_output(schema, method="json_schema")
        by_function = model.with_structured_output(schema, method="function_calling")
        assert by_schema.invoke("Capital of France?") == {"name": "Paris"}
        assert by_function.invoke("Capital of Italy?") == {"name": "Rome"}

    (_, first), (_, second) = server.requests
    assert first["generationConfig"]["responseMimeType"] == "application/json"
    assert second["tools"][0]["functionDeclarations"][0]["name"] == "City"


def test_count_tokens_and_embeddings_need_no_script() -> None:
    from langchain_google_genai import GoogleGenerativeAIEmbeddings
    from pydantic import SecretStr

    with GeminiServer([]) as server:
        assert chat(server).get_num_tokens("one two three") == 3
        embedder = GoogleGenerativeAIEmbeddings(
            model="gemini-embedding-001", api_key=SecretStr("dummy"), base_url=server.url
        )
        one, two, again = embedder.embed_documents(["one", "two", "one"])
        query = embedder.embed_query("one", output_dimensionality=3)

    assert (one, len(one)) == (again, 8)
    assert one != two
    assert query == one[:3]
    assert all(-1 <= value <= 1 for value in one)
    assert server.unscripted == []


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (ErrorReply(404, "no such model"), "GoogleModelNotFoundError", "404 NOT_FOUND. .* 'no such model'"),
        (ErrorReply(429, "slow down"), "GoogleRateLimitError", "429 RESOURCE_EXHAUSTED. .* 'slow down'"),
        (ErrorReply(400, "bad", status="FAILED_PRECONDITION"), "GoogleInvalidRequestError", "400 FAILED_PRECONDITION"),
    ],
)
def test_errors_reach_the_client(reply: ErrorReply, kind: str, message: str) -> None:
    with GeminiServer([reply]) as server, pytest.raises(Exception, match=message) as caught:
        chat(server).invoke("Say hi")
    assert type(caught.value).__name__ == kind


def test_list_is_served_in_order_and_used_up() -> None:
    with GeminiServer([Reply("a"), Reply("b")]) as server:
        said = [json.loads(post(server, f"{MODEL}:generateContent", asking("Say hi"))[2]) for _ in range(3)]

    assert [reply["candidates"][0]["content"]["parts"][0]["text"] for reply in said[:2]] == ["a", "b"]
    message = "all replies are used (2): gemini-2.5-flash:generateContent, prompt 'Say hi'"
    assert said[2] == {"error": {"code": 400, "message": f"GeminiServer: {message}", "status": "INVALID_ARGUMENT"}}
    assert server.unscripted == [message]


def test_dict_goes_by_the_last_prompt() -> None:
    script: Script = {"sun": [Reply("1"), Reply("2")], "moon": Reply("3")}
    with GeminiServer(script) as server:

        def said(*texts: str) -> str:
            body = json.loads(post(server, f"{MODEL}:generateContent", asking(*texts))[2])
            return str(body["candidates"][0]["content"]["parts"][0]["text"] if "candidates" in body else "refused")

        assert [said("moon", "the sun"), said("moon"), said("moon"), said("sun"), said("sun"), said("Mars")] == [
            "1",
            "3",
            "3",
            "2",
            "refused",
            "refused",
        ]
    assert server.unscripted == [
        "all replies to 'sun' are used (2): gemini-2.5-flash:generateContent, prompt 'sun'",
        "no key of the script is part of the prompt: gemini-2.5-flash:generateContent, prompt 'Mars'; "
        "keys: 'sun', 'moon'",
    ]


def test_unscripted_reaches_the_user_at_once() -> None:
    with GeminiServer([]) as server, pytest.raises(Exception, match=r"all replies are used \(0\)"):
        chat(server, max_retries=6).invoke("Say hi")
    assert len(server.requests) == 1


def test_callable_sees_the_request() -> None:
    seen: list[ScriptedRequest] = []

    def script(request: ScriptedRequest) -> Reply:
        seen.append(request)
        return Reply("ok")

    with GeminiServer(script) as server:
        chat(server).bind_tools([web_search]).invoke([("system", "Be brief"), ("human", "Find it")])

    (request,) = seen
    assert (request.model, request.method, request.prompt, request.tools) == (
        "gemini-2.5-flash",
        "generateContent",
        "Find it",
        ("web_search",),
    )
    assert request.body["systemInstruction"]["parts"] == [{"text": "Be brief"}]


def test_callable_that_raises_or_has_nothing() -> None:
    def broken(request: ScriptedRequest) -> Reply:
        raise KeyError(request.prompt)

    def silent(request: ScriptedRequest) -> None:
        return None

    assert ask(broken)["error"]["message"] == f"GeminiServer: KeyError: 'Say hi', at {MODEL}:generateContent"
    assert ask(silent)["error"]["message"] == (
        "GeminiServer: the script has no reply to gemini-2.5-flash:generateContent, prompt 'Say hi'"
    )


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1beta/files", {}, "nothing is scripted at /v1beta/files"),
        ("/nonsense", {}, "nothing is scripted at /nonsense"),
        (f"{MODEL}:predict", {}, "nothing is scripted for gemini-2.5-flash:predict"),
        (f"{MODEL}:generateContent", b"{", "JSONDecodeError: Expecting property name enclosed in double quotes"),
        (f"{MODEL}:generateContent", {"contents": 1}, "TypeError: 'int' object is not reversible"),
    ],
)
def test_odd_requests_are_refused(path: str, body: Any, message: str) -> None:
    with GeminiServer([Reply("ok")]) as server:
        status, _, raw = post(server, path, body)
    assert status == 400
    assert json.loads(raw)["error"]["message"].startswith(f"GeminiServer: {message}")
    assert [text.startswith(message) for text in server.unscripted] == [True]


def test_list_shared_by_threads_serves_each_reply_once() -> None:
    with GeminiServer([Reply(str(number)) for number in range(40)]) as server, ThreadPoolExecutor(8) as pool:
        raw = list(pool.map(lambda _: post(server, f"{MODEL}:generateContent", asking("Say hi"))[2], range(40)))

    texts = [json.loads(reply)["candidates"][0]["content"]["parts"][0]["text"] for reply in raw]
    assert sorted(map(int, texts)) == list(range(40))
    assert len(server.requests) == 40


def test_words_are_counted_where_nothing_is_given() -> None:
    assert ask([Reply("three words here")], "two words")["usageMetadata"] == {
        "promptTokenCount": 2,
        "candidatesTokenCount": 3,
        "totalTokenCount": 5,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 2}],
    }


def test_zero_is_not_sent_and_none_sends_nothing() -> None:
    zero = {"promptTokenCount": 9, "candidatesTokenCount": 0, "thoughtsTokenCount": 0, "totalTokenCount": 0}
    assert ask([Reply("hi", usage=zero)])["usageMetadata"] == {
        "promptTokenCount": 9,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}],
    }
    assert "usageMetadata" not in ask([Reply("hi", usage=None)])


def test_total_is_the_sum_without_what_the_prompt_holds_already() -> None:
    usage = {
        "promptTokenCount": 100,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 3,
        "toolUsePromptTokenCount": 7,
        "cachedContentTokenCount": 60,
    }
    assert ask([Reply("hi", usage=usage)])["usageMetadata"]["totalTokenCount"] == 130


def test_stream_bytes() -> None:
    reply = Reply("One, two.", usage={"promptTokenCount": 5, "candidatesTokenCount": 10}, chunks=["One, ", "two."])
    with GeminiServer([reply]) as server:
        status, headers, raw = post(server, f"{MODEL}:streamGenerateContent?alt=sse", asking("Count"))

    assert status == 200
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Server"].strip() == "scripted-gemini"
    first, second, end = raw.split(b"\r\n\r\n")
    assert end == b""
    one, two = json.loads(first.removeprefix(b"data: ")), json.loads(second.removeprefix(b"data: "))
    assert one["candidates"] == [{"content": {"parts": [{"text": "One, "}], "role": "model"}, "index": 0}]
    assert two["candidates"] == [
        {"content": {"parts": [{"text": "two."}], "role": "model"}, "finishReason": "STOP", "index": 0}
    ]
    assert [
        (part["usageMetadata"]["candidatesTokenCount"], part["usageMetadata"]["totalTokenCount"]) for part in (one, two)
    ] == [
        (5, 10),
        (10, 15),
    ]
    assert one["responseId"] == two["responseId"]
    assert one["responseId"].startswith("scripted-")


def test_a_total_that_was_given_stands_at_the_end_of_a_stream() -> None:
    usage = {"promptTokenCount": 5, "candidatesTokenCount": 10, "totalTokenCount": 99}
    with GeminiServer([Reply("One, two.", usage=usage, chunks=["One, ", "two."])]) as server:
        chunks = parsed(post(server, f"{MODEL}:streamGenerateContent?alt=sse", asking("Count"))[2])
    assert [chunk["usageMetadata"]["totalTokenCount"] for chunk in chunks] == [10, 99]


def test_stream_without_sse_is_a_json_array() -> None:
    with GeminiServer([Reply("One, two.", chunks=["One, ", "two."])]) as server:
        _, headers, raw = post(server, f"{MODEL}:streamGenerateContent", asking("Count"))
    assert headers["Content-Type"] == "application/json; charset=UTF-8"
    assert len(json.loads(raw)) == 2


def test_retry_after_is_a_header() -> None:
    with GeminiServer([ErrorReply(503, "busy", retry_after=0)]) as server:
        status, headers, raw = post(server, f"{MODEL}:generateContent", asking("Say hi"))
    assert (status, headers["Retry-After"]) == (503, "0")
    assert json.loads(raw) == {"error": {"code": 503, "message": "busy", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"usage": {"tokens": 3}}, "Reply: no count named 'tokens'; known: promptTokenCount, candidatesTokenCount, "),
        ({"chunks": ["a", "b"]}, "Reply: chunks must join to the text: ['a', 'b'] is not 'abc'"),
        ({"chunks": []}, "Reply: chunks must join to the text: [] is not 'abc'"),
    ],
)
def test_replies_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^Reply: ") as caught:
        Reply("abc", **options)
    assert str(caught.value).startswith(message)


def test_closes_and_leaves_nothing() -> None:
    before = threading.active_count()
    with GeminiServer([Reply("hi")]) as server:
        address = urlsplit(server.url)
        assert address.hostname == "127.0.0.1"
        post(server, f"{MODEL}:generateContent", asking("Say hi"))
    for thread in threading.enumerate():
        if thread.name == "gemini-server" or "process_request" in thread.name:
            thread.join(5)

    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="GeminiServer is not running: use it in a with block"):
        _ = server.url
    connection = http.client.HTTPConnection(address.netloc, timeout=1)
    with pytest.raises(ConnectionRefusedError):
        connection.connect()


def shapes(chunks: list[dict[str, Any]]) -> Iterator[tuple[str, frozenset[str]]]:
    """Every object of a reply by its place and the keys it has."""
    for chunk in chunks:
        yield "reply", frozenset(chunk)
        usage = chunk.get("usageMetadata", {})
        # Newer accounts are also told their service tier.
        yield "usage", frozenset(usage) - {"serviceTier"}
        for name, details in usage.items():
            if name.endswith("Details"):
                yield from ((name, frozenset(detail)) for detail in details)
        for candidate in chunk.get("candidates", []):
            yield "candidate", frozenset(candidate)
            yield "content", frozenset(candidate["content"])
            for part in candidate["content"].get("parts", []):
                yield "part", frozenset(part)
                if "functionCall" in part:
                    yield "functionCall", frozenset(part["functionCall"])
        if "error" in chunk:
            yield "error", frozenset(chunk["error"])


def parsed(raw: bytes) -> list[dict[str, Any]]:
    text = raw.decode()
    if text.startswith("data:"):
        return [json.loads(event.removeprefix("data:")) for event in text.split("\r\n\r\n") if event.strip()]
    value = json.loads(text)
    return value if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def real_shapes() -> dict[tuple[str, str], set[frozenset[str]]]:
    """Key sets of the real replies, by method and place; read without the package's own code."""
    import gzip

    import yaml

    if not RECORDINGS.is_dir():
        pytest.skip(f"needs the real recordings in {RECORDINGS.parent.name}/{RECORDINGS.name} beside the project")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[tuple[str, str], set[frozenset[str]]] = defaultdict(set)
    for path in sorted(RECORDINGS.glob("*/*.yaml")):
        for exchange in yaml.load(path.read_bytes(), loader)["interactions"]:  # noqa: S506  # both are safe loaders
            uri, body = exchange["request"]["uri"], exchange["response"]["body"]["string"]
            method = urlsplit(uri).path.rpartition(":")[2]
            if "googleapis.com" not in uri or method not in METHODS:
                continue
            raw = body.encode() if isinstance(body, str) else body
            raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
            for place, keys in shapes(parsed(raw)):
                found[method, place].add(keys)
    return found


METHODS = {
    "generateContent": "",
    "streamGenerateContent": "?alt=sse",
    "countTokens": "",
    "batchEmbedContents": "",
}
FULL = {"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 2}
SCRIPT: Mapping[str, Reply | ErrorReply] = {
    "words": Reply("some words", chunks=["some ", "words"]),
    "thinks": Reply("some words", usage=FULL, chunks=["some ", "words"]),
    "call": Reply(tool_calls=[("web_search", {"query": "x"}), ("web_search", {"query": "y"})], usage=FULL),
    "quick": Reply(tool_calls=[("web_search", {"query": "x"})]),
    "gone": ErrorReply(404, "no such model"),
}
# The plain API alone was recorded with these.
PLAIN: Mapping[str, Reply | ErrorReply] = {
    "cached": Reply("some words", usage={**FULL, "cachedContentTokenCount": 8}),
    "server tool": Reply("some words", usage={**FULL, "toolUsePromptTokenCount": 8}),
    "empty": Reply("", usage={"promptTokenCount": 9, "thoughtsTokenCount": 2}, finish_reason="MAX_TOKENS"),
}


@pytest.mark.parametrize("method", METHODS)
def test_shapes_are_the_real_ones(method: str, real_shapes: dict[tuple[str, str], set[frozenset[str]]]) -> None:
    prompts = [*SCRIPT, *PLAIN] if method == "generateContent" else [*SCRIPT]
    body: dict[str, Any] = {}
    checked = 0
    with GeminiServer({**SCRIPT, **PLAIN}) as server:
        for prompt in prompts:
            body = asking(prompt) | {"requests": [{"content": asking(prompt)["contents"][0]}]}
            for place, keys in shapes(parsed(post(server, f"{MODEL}:{method}{METHODS[method]}", body)[2])):
                assert keys in real_shapes[method, place], f"{prompt}: no real {place} has just {sorted(keys)}"
                checked += 1
    assert checked >= 5
