"""Two reviewers read a text at once, an editor gets their notes: once by way of the state, once by a list beside it."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph

TEXT = "A solar sail is pushed by the wind of the Sun."


class Review(TypedDict, total=False):
    notes: Annotated[list[str], operator.add]
    text: str


def ask(prompt: str) -> str:
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", temperature=0).invoke(prompt).text


def graph_of(facts: Any, style: Any, edit: Any) -> Any:
    graph = StateGraph(Review)
    for name, node in {"facts": facts, "style": style, "edit": edit}.items():
        graph.add_node(name, node)
    graph.add_edge(START, "facts")
    graph.add_edge(START, "style")
    graph.add_edge(["facts", "style"], "edit")
    graph.add_edge("edit", END)
    return graph.compile(name="review")


def facts(state: Review) -> Review:
    return {"notes": [ask(f"Which facts are wrong? {TEXT}")]}


def style(state: Review) -> Review:
    return {"notes": [ask(f"What reads badly? {TEXT}")]}


def revised(notes: list[str]) -> Review:
    return {"text": ask("\n".join([f"Revise: {TEXT}", *notes]))}


# LangGraph hands the branches' notes on in one order, whoever was first.
app = graph_of(facts, style, lambda state: revised(state["notes"]))


def racing() -> Any:
    """The same with a mistake: the notes stand as the reviewers happened to end."""
    notes: list[str] = []

    def keep(found: Review) -> Review:
        notes.extend(found["notes"])
        return {}

    return graph_of(lambda state: keep(facts(state)), lambda state: keep(style(state)), lambda state: revised(notes))
