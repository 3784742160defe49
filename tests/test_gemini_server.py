"""The scripted server, spoken to by the clients users have; its shapes held against real recordings."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from pytest_agenttrace.gemini_server import ErrorReply, GeminiServer, Reply, Script, ScriptedRequest

if TYPE_CHECKING:
    from langchain_google_genai import ChatGoogleGenerativeAI

RECORDINGS = Path(__file__).parents[2] / "shared" / "recordings"
# google-genai subclasses aiohttp's session, which aiohttp discourages.
GENAI_ON_AIOHTTP = "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"
MODEL = "/v1beta/models/gemini-2.5-flash"
# google-genai 3 asks /v1 where 2 asked /v1beta.
VERSION = re.compile(r"/v1\w*/")


def chat(server: GeminiServer, **options: Any) -> ChatGoogleGenerativeAI:
    from langchain_google_genai import ChatGoogleGenerativeAI

    settings = {"model": "gemini-2.5-flash", "api_key": "dummy", "base_url": server.url, "max_retries": 1}
    return ChatGoogleGenerativeAI(**(settings | options))


def web_search(query: str) -> str:
    """Search the web."""
    return f"about {query}"


def post(server: GeminiServer, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and raw body, by a client that shares nothing with Google's."""
    return send(server, "POST", path, body)


def send(server: GeminiServer, verb: str, path: str, body: Any) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    try:
        connection.request(verb, path, body if isinstance(body, bytes) else json.dumps(body))
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
    assert VERSION.sub("/v1beta/", path) == "/v1beta/models/gemini-2.5-flash:generateContent"
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
    path = VERSION.sub("/v1beta/", server.requests[0][0])
    assert path == "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"


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
        ({"finish_reason": "MAX_TOKEN"}, "Reply: no finish_reason 'MAX_TOKEN'; known: STOP, MAX_TOKENS, SAFETY, "),
        ({"block_reason": "UNSAFE"}, "Reply: no block_reason 'UNSAFE'; known: SAFETY, OTHER, "),
        ({"block_reason": "SAFETY"}, "Reply: a blocked prompt has no answer: leave out all but block_reason and usage"),
        ({"json": {}}, "Reply: text and json are one thing: leave one of them out"),
        (
            {"candidates": [Reply("a")]},
            "Reply: candidates stand for themselves: leave out all but candidates and usage",
        ),
        ({"usage": {"promptTokenCount": -1}}, "Reply: promptTokenCount is -1, not a number of tokens"),
        (
            {"usage": {"thoughtsTokenCount": {"TEXT": 1}}},
            "Reply: thoughtsTokenCount is not split by modality; these are: ",
        ),
    ],
)
def test_replies_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^Reply: ") as caught:
        Reply("abc", **options)
    assert str(caught.value).startswith(message)


def test_more_that_cannot_be_meant() -> None:
    with pytest.raises(TypeError, match=r"^Reply: candidates are Replies, not \['a', 'b'\]$"):
        Reply(candidates=["a", "b"])  # type: ignore[list-item]  # what a user may write
    with pytest.raises(ValueError, match=r"^Reply: json holds what JSON cannot: Object of type set is not JSON"):
        Reply(json={1, 2})
    with pytest.raises(ValueError, match=r"^Reply: a candidate has no candidates and no block_reason of its own$"):
        Reply(candidates=[Reply(block_reason="SAFETY")])
    with pytest.raises(ValueError, match=r"^ErrorReply: 200 is no HTTP error: 400 to 599$"):
        ErrorReply(200, "fine")


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


def shapes(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a reply: its place (`candidates[].content.parts[].text`) and its type. What a user's tools and
    grounding hold is theirs."""
    yield place, type(value).__name__
    if isinstance(value, dict) and not place.endswith("functionCall.args"):
        for name, inner in value.items():
            yield from shapes(inner, f"{place}.{name}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from shapes(inner, f"{place}[]")


def key_sets(chunks: list[dict[str, Any]]) -> Iterator[tuple[str, frozenset[str]]]:
    """The objects whose keys depend on each other, by their place and the keys they have."""
    for chunk in chunks:
        yield "reply", frozenset(chunk)
        # Newer accounts are also told their service tier.
        yield "usage", frozenset(chunk.get("usageMetadata", {})) - {"serviceTier"}
        for candidate in chunk.get("candidates", []):
            yield "candidate", frozenset(candidate)
            yield "content", frozenset(candidate["content"])
            for part in candidate["content"].get("parts", []):
                yield "part", frozenset(part)
                if "functionCall" in part:
                    yield "functionCall", frozenset(part["functionCall"])


def parsed(raw: bytes) -> list[dict[str, Any]]:
    text = raw.decode()
    if text.startswith("data:"):
        return [json.loads(event.removeprefix("data:")) for event in text.split("\r\n\r\n") if event.strip()]
    value = json.loads(text)
    return value if isinstance(value, list) else [value]


class Real(NamedTuple):
    """What the real replies have: by method, places and types, and key sets that occur together."""

    values: set[tuple[str, str, str]]
    keys: set[tuple[str, str, frozenset[str]]]


@pytest.fixture(scope="module")
def real() -> Real:
    """Read from the recordings without the package's own code."""
    import gzip

    import yaml

    if not RECORDINGS.is_dir():
        pytest.skip(f"needs the real recordings in {RECORDINGS.parent.name}/{RECORDINGS.name} beside the project")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = Real(set(), set())
    for path in sorted(RECORDINGS.glob("*/*.yaml")):
        for exchange in yaml.load(path.read_bytes(), loader)["interactions"]:  # noqa: S506  # both are safe loaders
            url, body = urlsplit(exchange["request"]["uri"]), exchange["response"]["body"].get("string")
            method = kind_of(exchange["request"]["method"], url.path)
            if not (url.hostname or "").endswith("googleapis.com") or method not in METHODS or body is None:
                continue
            raw = body.encode() if isinstance(body, str) else body
            chunks = parsed(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
            # An error looks the same whatever was asked.
            for chunk in chunks:
                method = "error" if "error" in chunk else method
                found.values.update((method, *found_at) for found_at in shapes(chunk))
            found.keys.update((method, *found_at) for found_at in key_sets(chunks))
    return found


def kind_of(verb: str, path: str) -> str:
    if "/cachedContents" in path:
        return f"{verb} cachedContents"
    return path.rpartition(":")[2]


METHODS = {
    "generateContent": "",
    "streamGenerateContent": "?alt=sse",
    "countTokens": "",
    "batchEmbedContents": "",
    "POST cachedContents": "",
    "DELETE cachedContents": "",
}
FULL = {"promptTokenCount": 9, "candidatesTokenCount": 4, "thoughtsTokenCount": 2}
GROUNDING = {
    "webSearchQueries": ["solar sails"],
    "groundingChunks": [{"web": {"uri": "https://example.org/", "title": "example.org"}}],
    "groundingSupports": [{"segment": {"startIndex": 0, "endIndex": 4, "text": "some"}, "groundingChunkIndices": [0]}],
    "searchEntryPoint": {"renderedContent": "<div></div>"},
}
RATINGS = [{"category": "HARM_CATEGORY_HATE_SPEECH", "probability": "LOW", "blocked": True}]
SCRIPT: Mapping[str, Reply | ErrorReply] = {
    "words": Reply("some words", chunks=["some ", "words"]),
    "thinks": Reply("some words", usage=FULL, chunks=["some ", "words"]),
    "thinks aloud": Reply("some words", usage=FULL, thoughts="I think.", chunks=["some ", "words"]),
    "thinks and calls": Reply(usage=FULL, thoughts="I think.", tool_calls=[("web_search", {"query": "x"})]),
    "call": Reply(tool_calls=[("web_search", {"query": "x"}), ("web_search", {"query": "y"})], usage=FULL),
    "quick": Reply(tool_calls=[("web_search", {"query": "x"})]),
    "both": Reply("some words", tool_calls=[("web_search", {"query": "x"})]),
    "data": Reply(json={"name": "Paris"}, usage={"promptTokenCount": {"TEXT": 5, "IMAGE": 258}}),
    "split": Reply("some words", usage={"candidatesTokenCount": {"TEXT": 2}}),
    "server tool": Reply("some words", usage={**FULL, "toolUsePromptTokenCount": 8}, grounding=GROUNDING),
    "two": Reply(candidates=[Reply("one", chunks=["o", "ne"]), Reply("two", thoughts="Hm.")]),
    "gone": ErrorReply(404, "no such model"),
    "no key": ErrorReply(400, "bad key", details=[{"@type": "type.googleapis.com/google.rpc.ErrorInfo"}]),
}
# The plain API alone was recorded with these.
PLAIN: Mapping[str, Reply | ErrorReply] = {
    "cached": Reply("some words", usage={**FULL, "cachedContentTokenCount": 8}),
    "cut": Reply("", usage={"promptTokenCount": 9, "thoughtsTokenCount": 2}, finish_reason="MAX_TOKENS"),
    "unsafe": Reply("", usage={"promptTokenCount": 9}, finish_reason="SAFETY", safety_ratings=RATINGS),
}
# Nobody recorded a blocked prompt: its shape is the API reference's, and google-genai's types are held against it.
BLOCKED = Reply(block_reason="PROHIBITED_CONTENT", safety_ratings=RATINGS)
# Key sets that no recording has together, though each key has its place: of two candidates, and of one that is rated.
ALONE = frozenset({"both", "data", "split", "server tool", "unsafe"})


def said_to(method: str, prompt: str) -> list[dict[str, Any]]:
    body = asking(prompt) | {"requests": [{"content": asking(prompt)["contents"][0]}]}
    body |= {"generationConfig": {"candidateCount": 2}} if prompt == "two" else {}
    with GeminiServer() as server:
        for key, reply in {**SCRIPT, **PLAIN, "blocked": BLOCKED}.items():
            if key == prompt:
                server.reply(reply)
        if method.endswith("cachedContents"):
            created = parsed(send(server, "POST", "/v1beta/cachedContents", body)[2])
            name = created[0]["name"]
            return created if method[0] == "P" else parsed(send(server, "DELETE", f"/v1beta/{name}", {})[2])
        return parsed(post(server, f"{MODEL}:{method}{METHODS[method]}", body)[2])


def prompts_of(method: str) -> list[str]:
    if method == "generateContent":
        return [*SCRIPT, *PLAIN]
    return [*SCRIPT] if method == "streamGenerateContent" else ["words"]


def unknown_to(real: Real, method: str, chunks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The places and types of a reply that no real one has."""
    methods = ["error" if "error" in chunk else method for chunk in chunks]
    found = [(kind, value) for kind, chunk in zip(methods, chunks, strict=True) for value in shapes(chunk)]
    return [value for kind, value in found if (kind, *value) not in real.values]


@pytest.mark.parametrize("method", METHODS)
def test_every_value_has_its_place_in_a_real_reply(method: str, real: Real) -> None:
    for prompt in prompts_of(method):
        chunks = said_to(method, prompt)
        assert unknown_to(real, method, chunks) == [], prompt
        if prompt not in ALONE:
            for place, keys in key_sets(chunks):
                kind = "error" if "error" in chunks[0] else method
                assert (kind, place, keys) in real.keys, f"{prompt}: no real {place} has just {sorted(keys)}"


def test_an_invented_key_is_seen(real: Real) -> None:
    (chunk,) = said_to("generateContent", "thinks aloud")
    chunk["candidates"][0]["content"]["parts"][0]["mood"] = "good"
    chunk["usageMetadata"]["promptTokenCount"] = "9"
    chunk["candidates"][0]["content"]["thoughtSignature"] = "in the wrong place"
    assert unknown_to(real, "generateContent", [chunk]) == [
        ("candidates[].content.parts[].mood", "str"),
        ("candidates[].content.thoughtSignature", "str"),
        ("usageMetadata.promptTokenCount", "str"),
    ]


@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent"])
@pytest.mark.parametrize(
    "prompt", [*(key for key, reply in SCRIPT.items() if isinstance(reply, Reply)), *PLAIN, "blocked"]
)
def test_google_genais_types_understand_all_of_it(method: str, prompt: str) -> None:
    from google.genai import types

    # They refuse keys they do not know, at every depth.
    assert types.GenerateContentResponse.model_config.get("extra") == "forbid"
    for chunk in said_to(method, prompt):
        reply = types.GenerateContentResponse.model_validate(chunk)
        assert places(reply.model_dump(mode="json", by_alias=True, exclude_unset=True)) == places(chunk)


def places(value: Any) -> set[str]:
    return {place for place, _ in shapes(value)}


def test_google_genais_types_refuse_what_is_invented() -> None:
    from google.genai import types
    from pydantic import ValidationError

    (chunk,) = said_to("generateContent", "thinks aloud")
    chunk["candidates"][0]["content"]["parts"][0]["mood"] = "good"
    with pytest.raises(ValidationError, match="mood"):
        types.GenerateContentResponse.model_validate(chunk)


# What replies can say, as clients see it


def test_thoughts_are_parts_of_their_own_and_the_answer_is_signed() -> None:
    from langchain_core.messages import AIMessage

    with GeminiServer() as server:
        server.reply(Reply("Paris.", thoughts="A capital. Of France."))
        message = chat(server, include_thoughts=True).invoke("Capital?")
    assert isinstance(message, AIMessage)
    assert message.content[0] == {"type": "thinking", "thinking": "A capital. Of France."}
    assert message.text == "Paris."
    assert message.usage_metadata is not None
    assert message.usage_metadata["output_token_details"] == {"reasoning": 4}
    body = ask([Reply("Paris.", thoughts="A capital.")])
    assert body["candidates"][0]["content"]["parts"] == [
        {"text": "A capital.", "thought": True},
        {"text": "Paris.", "thoughtSignature": "c2NyaXB0ZWQ="},
    ]


def test_a_stream_of_thoughts_text_and_calls() -> None:
    calls = [("web_search", {"query": "x"}), ("web_search", {"query": "y"})]
    reply = Reply(
        "One, two.", thoughts="Hm.", chunks=["One, ", "two."], tool_calls=calls, usage={"candidatesTokenCount": 100}
    )
    with GeminiServer([reply]) as server:
        chunks = parsed(post(server, f"{MODEL}:streamGenerateContent?alt=sse", asking("Count"))[2])
    kinds = [next(iter(part)) for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"]]
    assert kinds == ["text", "text", "text", "functionCall", "functionCall"]
    assert [chunk["candidates"][0].get("finishReason") for chunk in chunks] == [None] * 4 + ["STOP"]
    assert [chunk["candidates"][0].get("finishMessage") is not None for chunk in chunks] == [False] * 4 + [True]
    assert [chunk["usageMetadata"].get("candidatesTokenCount") for chunk in chunks] == [None, 8, 15, 57, 100]
    assert {chunk["usageMetadata"]["thoughtsTokenCount"] for chunk in chunks} == {1}
    assert len({chunk["responseId"] for chunk in chunks}) == 1


def test_the_client_gets_as_many_candidates_as_it_asks_for() -> None:
    from google.genai import Client, types

    with GeminiServer() as server:
        server.reply(Reply(candidates=[Reply("one"), Reply("two", finish_reason="MAX_TOKENS"), Reply("three")]))
        client = Client(api_key="dummy", http_options=types.HttpOptions(base_url=server.url))
        said = [
            client.models.generate_content(
                model="gemini-2.5-flash", contents="Say", config=types.GenerateContentConfig(candidate_count=count)
            )
            for count in (1, 2, 8)
        ]
    texts = [[candidate.content.parts[0].text for candidate in reply.candidates or []] for reply in said]  # type: ignore[union-attr, index]  # all of them have parts
    assert texts == [["one"], ["one", "two"], ["one", "two", "three"]]
    assert [candidate.index for candidate in said[1].candidates or []] == [0, 1]
    assert [reply.usage_metadata and reply.usage_metadata.candidates_token_count for reply in said] == [1, 2, 3]


def test_a_blocked_prompt_has_no_candidates() -> None:
    body = ask([Reply(block_reason="SAFETY", usage={"promptTokenCount": 9})])
    assert {**body, "responseId": ""} == {
        "promptFeedback": {"blockReason": "SAFETY"},
        "usageMetadata": {
            "promptTokenCount": 9,
            "totalTokenCount": 9,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}],
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "",
    }
    with GeminiServer([Reply(block_reason="SAFETY")]) as server:
        assert chat(server).invoke("Say it").content == ""


def test_data_as_text() -> None:
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    said = [
        ask([Reply(json=data)])["candidates"][0]["content"]["parts"][0]["text"] for data in (City(name="Köln"), [1])
    ]
    assert said == ['{"name": "Köln"}', "[1]"]
    assert Reply(json=City(name="Köln")) == Reply(json={"name": "Köln"})


def test_usage_by_modality() -> None:
    usage = {"promptTokenCount": {"TEXT": 12, "IMAGE": 258}, "candidatesTokenCount": {"AUDIO": 40}}
    assert ask([Reply("hi", usage=usage)])["usageMetadata"] == {
        "promptTokenCount": 270,
        "candidatesTokenCount": 40,
        "totalTokenCount": 310,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 12}, {"modality": "IMAGE", "tokenCount": 258}],
        "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 40}],
    }


def test_the_id_of_a_reply_is_its_own_and_its_numbers() -> None:
    def ids(script: Script, *prompts: str) -> list[str]:
        with GeminiServer(script) as server:
            bodies = [parsed(post(server, f"{MODEL}:generateContent", asking(prompt))[2])[0] for prompt in prompts]
        return [body["responseId"] for body in bodies]

    one, two = ids([Reply("a"), Reply("a")], "Say hi", "Say hi")
    assert ids([Reply("a"), Reply("a")], "Say something else", "entirely") == [one, two]
    assert one != two
    assert ids([Reply("b")], "Say hi") != [one]
    assert len(set(ids({"Say": Reply("a")}, "Say hi", "Say ho"))) == 1


def test_the_id_of_a_call_is_its_own_and_its_places() -> None:
    def ids(reply: Reply) -> list[str]:
        parts = ask([reply])["candidates"][0]["content"]["parts"]
        return [part["functionCall"]["id"] for part in parts if "functionCall" in part]

    call = ("web_search", {"query": "x"})
    one, two, mine = ids(Reply(tool_calls=[call, call, (*call, "my-id")]))
    assert one != two
    assert mine == "my-id"
    assert ids(Reply("Another text.", tool_calls=[call])) == [one]


def test_cached_contents() -> None:
    from google.genai import Client, errors, types

    with GeminiServer() as server:
        client = Client(api_key="dummy", http_options=types.HttpOptions(base_url=server.url))
        config = types.CreateCachedContentConfig(contents="a long book", ttl="60s", display_name="book")
        made = client.caches.create(model="gemini-2.5-flash", config=config)
        assert made.name is not None
        assert made.name.startswith("cachedContents/scripted-")
        assert made.model == "models/gemini-2.5-flash"
        assert made.expire_time is not None
        assert made.create_time is not None
        assert 59 < (made.expire_time - made.create_time).total_seconds() <= 61
        assert [cache.name for cache in client.caches.list()] == [made.name]
        longer = client.caches.update(name=made.name, config=types.UpdateCachedContentConfig(ttl="600s"))
        assert longer.expire_time is not None
        assert longer.expire_time > made.expire_time
        assert client.caches.get(name=made.name).expire_time == longer.expire_time
        client.caches.delete(name=made.name)
        with pytest.raises(errors.ClientError, match=r"CachedContent not found \(or permission denied\)"):
            client.caches.get(name=made.name)
        assert list(client.caches.list()) == []
    assert server.unscripted == []


# Rules


def say(server: GeminiServer, prompt: str, node: str | None = None) -> str:
    headers = {} if node is None else {"X-Agenttrace-Node": node}
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=5)
    connection.request("POST", f"{MODEL}:generateContent", json.dumps(asking(prompt)), headers)
    body = json.loads(connection.getresponse().read())
    connection.close()
    return str(
        body["candidates"][0]["content"]["parts"][0]["text"] if "candidates" in body else body["error"]["message"]
    )


def test_rules_are_tried_in_order_and_go_by_node_and_prompt() -> None:
    with GeminiServer() as server:
        server.reply(Reply("both"), node="write", prompt="moon")
        server.reply(Reply("first"), Reply("second"), node="write")
        server.reply(Reply("by prompt"), prompt="moon")
        server.reply(Reply("any"), Reply("any again"))
        asked = [("moon", "write"), ("sun", "write"), ("sun", "write"), ("sun", "write"), ("moon", "research")]
        assert [say(server, *one) for one in asked] == ["both", "first", "second", "any", "by prompt"]
        assert say(server, "the moon") == "by prompt"
        assert server.unused == [(None, "1 of 2 replies of the script was never asked for: gemini_server.reply(...)")]
        assert say(server, "sun") == "any again"
        assert server.unused == []
        assert say(server, "sun", "pr%C3%BCfen").splitlines() == [
            "GeminiServer: prompt: sun",
            "rules:",
            '  node="write", prompt="moon": 1 reply',
            '  node="write": 2 replies, all used',
            '  prompt="moon": 1 reply',
            "  any request: 2 replies, all used",
            "Say what it answers:",
            '  gemini_server.reply(Reply("..."), node="prüfen")',
        ]


def test_rules_stand_before_a_script_which_sees_the_node() -> None:
    seen: list[str | None] = []

    def script(request: ScriptedRequest) -> Reply:
        seen.append(request.node)
        return Reply("by the script")

    with GeminiServer(script) as server:
        server.reply(Reply("by a rule"), prompt="moon")
        said = [say(server, "moon", "write"), say(server, "sun", "write"), say(server, "sun")]
    assert said == ["by a rule", "by the script", "by the script"]
    assert seen == ["write", None]
