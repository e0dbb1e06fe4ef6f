"""The stores that are compared, by the names that the commands take."""

from __future__ import annotations

from importlib.metadata import version
from typing import NamedTuple

from benchmarks.peers import (
    agents_sdk,
    chatledger_store,
    google_adk,
    langchain_history,
    langgraph_saver,
    nothing,
)
from benchmarks.peers.stores import Open


class Compared(NamedTuple):
    """A store's full name, how it is opened, and whose versions matter."""

    title: str
    open: Open
    packages: tuple[str, ...]

    def versions(self) -> dict[str, str]:
        return {package: version(package) for package in self.packages}


OURS, NOTHING = "chatledger", "nothing"
_LANGGRAPH = ("langgraph", "langgraph-checkpoint-postgres", "psycopg")
STORES = {
    OURS: Compared("chatledger", chatledger_store.opened, ("chatledger",)),
    "openai-agents": Compared(
        "OpenAI Agents SDK SQLAlchemySession", agents_sdk.opened, ("openai-agents", "sqlalchemy")
    ),
    "google-adk": Compared("Google ADK DatabaseSessionService", google_adk.opened, ("google-adk", "sqlalchemy")),
    "langgraph": Compared("LangGraph AsyncPostgresSaver", langgraph_saver.opened, _LANGGRAPH),
    "langgraph-delta": Compared(
        "LangGraph AsyncPostgresSaver, DeltaChannel (beta)", langgraph_saver.opened_delta, _LANGGRAPH
    ),
    "langchain": Compared(
        "LangChain PostgresChatMessageHistory",
        langchain_history.opened,
        ("langchain-postgres", "langchain-core", "psycopg"),
    ),
}
SERVED = STORES | {NOTHING: Compared("nothing, in memory", nothing.opened, ("mcp",))}
"""What stands behind a server, too."""
