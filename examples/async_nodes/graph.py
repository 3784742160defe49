"""Two async nodes at once, and a third that streams."""

from __future__ import annotations

from typing import TypedDict

from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph


class Briefing(TypedDict, total=False):
    topic: str
    facts: str
    risks: str
    text: str


def model() -> ChatGoogleGenerativeAI:
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", temperature=0)


async def facts(state: Briefing) -> Briefing:
    return {"facts": (await model().ainvoke(f"Facts about {state['topic']}?")).text}


async def risks(state: Briefing) -> Briefing:
    return {"risks": (await model().ainvoke(f"Risks of {state['topic']}?")).text}


async def write(state: Briefing) -> Briefing:
    prompt = f"Write a briefing.\nFacts: {state['facts']}\nRisks: {state['risks']}"
    return {"text": "".join([chunk.text async for chunk in model().astream(prompt)])}


graph = StateGraph(Briefing)
graph.add_node("facts", facts)
graph.add_node("risks", risks)
graph.add_node("write", write)
graph.add_edge(START, "facts")
graph.add_edge(START, "risks")
graph.add_edge(["facts", "risks"], "write")
graph.add_edge("write", END)
app = graph.compile(name="briefing_writer")
