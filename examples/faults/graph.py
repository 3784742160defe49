"""A writer that goes on when the wire breaks, and asks a second model when the first one has nothing to say."""

from __future__ import annotations

import functools
import importlib.util
import json
import operator
from typing import TypedDict

from google.genai.errors import UnknownApiResponseError
from langchain_core.messages import BaseMessage
from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import RetryPolicy

# google-genai speaks through httpx2 since version 3, through httpx before.
TRANSPORTS = [importlib.import_module(name) for name in ("httpx", "httpx2") if importlib.util.find_spec(name)]
# What the client does not try again by itself.
BROKEN = (*(http.TransportError for http in TRANSPORTS), json.JSONDecodeError, UnknownApiResponseError)


class Article(TypedDict, total=False):
    topic: str
    facts: str
    text: str


def model(name: str = "gemini-2.5-flash") -> ChatGoogleGenerativeAI:
    return ChatGoogleGenerativeAI(model=name, temperature=0, max_retries=3)


def research(state: Article) -> Article:
    return {"facts": model().invoke(f"List three facts about {state['topic']}.").text}


def write(state: Article) -> Article:
    prompt = f"Write an article from these facts:\n{state['facts']}"
    reply: BaseMessage = functools.reduce(operator.add, model().stream(prompt))
    if reply.response_metadata.get("finish_reason") != "STOP":
        reply = model("gemini-2.5-flash-lite").invoke(prompt)
    return {"text": reply.text}


graph = StateGraph(Article)
graph.add_node("research", research)
graph.add_node("write", write, retry_policy=RetryPolicy(max_attempts=2, retry_on=BROKEN))
graph.add_edge(START, "research")
graph.add_edge("research", "write")
graph.add_edge("write", END)
app = graph.compile(name="article_writer")
