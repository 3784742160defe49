"""A plan fans out into as many branches as it has sections (`Send`), and an editor joins them."""

from __future__ import annotations

import operator
from typing import Annotated, TypedDict

from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel


class Plan(BaseModel):
    """The sections of a report."""

    sections: list[str]


class Report(TypedDict, total=False):
    topic: str
    sections: list[str]
    drafts: Annotated[list[str], operator.add]
    text: str


class Section(TypedDict):
    title: str


def model() -> ChatGoogleGenerativeAI:
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", temperature=0)


def plan(state: Report) -> Report:
    reply = model().with_structured_output(Plan).invoke(f"Plan a report on {state['topic']}.")
    return {"sections": Plan.model_validate(reply).sections}


def branches(state: Report) -> list[Send]:
    return [Send("section", {"title": title}) for title in state["sections"]]


def section(state: Section) -> Report:
    return {"drafts": [model().invoke(f"Write the section '{state['title']}'.").text]}


def edit(state: Report) -> Report:
    return {"text": model().invoke("Join these drafts:\n" + "\n".join(state["drafts"])).text}


graph = StateGraph(Report)
graph.add_node("plan", plan)
graph.add_node("section", section)
graph.add_node("edit", edit)
graph.add_edge(START, "plan")
graph.add_conditional_edges("plan", branches, ["section"])
graph.add_edge("section", "edit")
graph.add_edge("edit", END)
app = graph.compile(name="report_writer")
