"""A graph with a tool loop, structured output, a fan-out and a stream: what clients of several versions ask for it."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel

from pytest_agenttrace import Reply

TOPICS = ("solar sails", "red kites", "old looms")


class Plan(BaseModel):
    """What to look up."""

    topics: list[str]


class State(TypedDict, total=False):
    subject: str
    topic: str
    topics: list[str]
    facts: Annotated[list[str], operator.add]
    text: str


@tool
def look_up(topic: str) -> str:
    """Look a topic up."""
    return f"All there is to know of {topic}."


def model() -> ChatGoogleGenerativeAI:
    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", max_retries=1)


def plan(state: State) -> State:
    planned: Any = model().with_structured_output(Plan).invoke(f"Plan: {state['subject']}")
    return {"topics": list(planned.topics)}


def research(state: State) -> State:
    asked: list[Any] = [HumanMessage(f"Research {state['topic']}")]
    bound = model().bind_tools([look_up])
    answer = bound.invoke(asked)
    results = [look_up.invoke(call) for call in answer.tool_calls]
    return {"facts": [str(bound.invoke([*asked, answer, *results]).content)]}


async def write(state: State) -> State:
    pieces = [str(piece.content) async for piece in model().astream(f"Write on {', '.join(state['facts'])}")]
    return {"text": "".join(pieces)}


def graph() -> Any:
    builder = StateGraph(State)
    builder.add_node("plan", plan)
    builder.add_node("research", research)
    builder.add_node("write", write)
    builder.add_edge(START, "plan")
    builder.add_conditional_edges("plan", lambda state: [Send("research", {"topic": t}) for t in state["topics"]])
    builder.add_edge("research", "write")
    builder.add_edge("write", END)
    return builder.compile(name="upgraded")


def answer(request: Any) -> Reply:
    """What the scripted server says."""
    said = request.prompt
    if said.startswith("Plan"):
        planned = {"topics": list(TOPICS)}
        if "Plan" in request.tools:
            return Reply(tool_calls=[("Plan", planned)])
        return Reply('{"topics": ["solar sails", "red kites", "old looms"]}')
    if said.startswith("Research") and len(request.body["contents"]) == 1:
        return Reply(tool_calls=[("look_up", {"topic": said.removeprefix("Research ")})])
    if said.startswith("Research"):
        return Reply(f"Facts of {said.removeprefix('Research ')}.")
    return Reply("An article.", chunks=["An ", "article."])
