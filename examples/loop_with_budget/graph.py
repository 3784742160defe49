"""A writer and a critic, in a loop until the critic is content."""

from __future__ import annotations

from typing import TypedDict

from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph

MOST_ROUNDS = 4


class Draft(TypedDict, total=False):
    topic: str
    text: str
    critique: str
    rounds: int


def ask(prompt: str) -> str:
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", temperature=0).invoke(prompt).text


def write(state: Draft) -> Draft:
    prompt = f"Write a headline on {state['topic']}."
    if "critique" in state:
        prompt += f"\nYour last one: {state['text']}\nThe critic: {state['critique']}"
    return {"text": ask(prompt), "rounds": state.get("rounds", 0) + 1}


def critique(state: Draft) -> Draft:
    return {"critique": ask(f"Judge this headline, or say OK: {state['text']}")}


def content(state: Draft) -> str:
    return END if state["critique"] == "OK" or state["rounds"] >= MOST_ROUNDS else "write"


graph = StateGraph(Draft)
graph.add_node("write", write)
graph.add_node("critique", critique)
graph.add_edge(START, "write")
graph.add_edge("write", "critique")
graph.add_conditional_edges("critique", content, ["write", END])
app = graph.compile(name="headline_writer")
