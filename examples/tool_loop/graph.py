"""An agent that searches until it can answer."""

from __future__ import annotations

from langchain_core.messages import BaseMessage
from langchain_core.tools import tool
from langchain_google_genai import ChatGoogleGenerativeAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

PAGES = {
    "solar sails": "IKAROS (2010) was the first spacecraft to fly by a solar sail.",
    "IKAROS sail area": "The sail of IKAROS measures 14 m by 14 m.",
}


@tool
def web_search(query: str) -> str:
    """Search the web."""
    return PAGES.get(query, "nothing found")


def agent(state: MessagesState) -> dict[str, list[BaseMessage]]:
    model = ChatGoogleGenerativeAI(model="gemini-2.5-flash", temperature=0).bind_tools([web_search])
    return {"messages": [model.invoke(state["messages"])]}


graph = StateGraph(MessagesState)
graph.add_node("agent", agent)
graph.add_node("tools", ToolNode([web_search]))
graph.add_edge(START, "agent")
graph.add_conditional_edges("agent", tools_condition)
graph.add_edge("tools", "agent")
app = graph.compile(name="researcher")
