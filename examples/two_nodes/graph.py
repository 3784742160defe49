"""One node researches a topic, the next writes about it."""

from __future__ import annotations

from typing import TypedDict

from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph

RESEARCH = "List three facts about {topic}, one a line."
WRITE = "Write 300 words on {topic} from these facts:\n{facts}"


class Article(TypedDict, total=False):
    topic: str
    facts: str
    text: str


def model() -> ChatGoogleGenerativeAI:
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", temperature=0)


def research(state: Article) -> Article:
    return {"facts": model().invoke(RESEARCH.format(topic=state["topic"])).text}


def write(state: Article) -> Article:
    return {"text": model().invoke(WRITE.format(topic=state["topic"], facts=state["facts"])).text}


graph = StateGraph(Article)
graph.add_node("research", research)
graph.add_node("write", write)
graph.add_edge(START, "research")
graph.add_edge("research", "write")
graph.add_edge("write", END)
app = graph.compile(name="article_writer")
