"""An article in three steps: research, write, and a headline for it."""

from __future__ import annotations

from typing import TypedDict

from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph


class Article(TypedDict, total=False):
    topic: str
    facts: str
    text: str
    headline: str


def ask(prompt: str, model: str = "gemini-2.5-flash") -> str:
    return ChatGoogleGenerativeAI(model=model, temperature=0).invoke(prompt).text


def research(state: Article) -> Article:
    return {"facts": ask(f"List three facts about {state['topic']}, one a line.")}


def write(state: Article) -> Article:
    return {"text": ask(f"Write 300 words on {state['topic']} from these facts:\n{state['facts']}")}


def headline(state: Article) -> Article:
    return {"headline": ask(f"A headline for:\n{state['text']}", model="gemini-2.5-flash-lite")}


graph = StateGraph(Article)
graph.add_node("research", research)
graph.add_node("write", write)
graph.add_node("headline", headline)
graph.add_edge(START, "research")
graph.add_edge("research", "write")
graph.add_edge("write", "headline")
graph.add_edge("headline", END)
app = graph.compile(name="article_writer")
