"""LangGraph: `AsyncPostgresSaver` under a graph whose state is a list of messages.

It keeps the state of a graph after every step, so that a run can go on or go back from there: each append reads the
list and writes it whole. A message with the id of another replaces it. Threads have no owner, and there is no list of
them. `opened_delta` is the same with a channel of the list's changes alone, which the library offers as a beta.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict
from uuid import uuid4

from benchmarks.peers.stores import POOL, Store


class _Conversation:
    def __init__(self, graph: Any, message: Any, name: str) -> None:
        self._graph, self._message = graph, message
        self._config = {"configurable": {"thread_id": name}}

    async def append(self, content: str, message_id: str | None = None) -> None:
        await self._add([self._message(content=content, id=message_id or str(uuid4()))])

    async def extend(self, contents: Sequence[str]) -> None:
        await self._add([self._message(content=content, id=str(uuid4())) for content in contents])

    async def _add(self, messages: list[Any]) -> None:
        await self._graph.aupdate_state(self._config, {"messages": messages}, as_node="keep")

    async def load(self) -> list[str]:
        state = await self._graph.aget_state(self._config)
        return [message.content for message in state.values.get("messages", [])]


class _Store:
    def __init__(self, graph: Any, prefix: str) -> None:
        self._graph, self._prefix = graph, prefix
        self._message = importlib.import_module("langchain_core.messages").HumanMessage

    async def conversation(self, name: str) -> _Conversation:
        return _Conversation(self._graph, self._message, self._prefix + name)


@asynccontextmanager
async def opened(url: str, checked: bool) -> AsyncIterator[Store]:
    """With its own `MessagesState`."""
    state = importlib.import_module("langgraph.graph").MessagesState
    async with _opened(url, checked, state, "") as store:
        yield store


@asynccontextmanager
async def opened_delta(url: str, checked: bool) -> AsyncIterator[Store]:
    """With the changes of each step, and the whole list with every hundredth."""
    channel = importlib.import_module("langgraph.channels").DeltaChannel
    reducer = importlib.import_module("langgraph.graph.message")._messages_delta_reducer
    state: Any = TypedDict("state", {"messages": Annotated[list[Any], channel(reducer)]})  # of a value
    async with _opened(url, checked, state, "delta ") as store:
        yield store


@asynccontextmanager
async def _opened(url: str, checked: bool, state: Any, prefix: str) -> AsyncIterator[Store]:
    graphs = importlib.import_module("langgraph.graph")
    saver = importlib.import_module("langgraph.checkpoint.postgres.aio").AsyncPostgresSaver
    pools = importlib.import_module("psycopg_pool")
    rows = importlib.import_module("psycopg.rows")
    how = {"autocommit": True, "prepare_threshold": 0, "row_factory": rows.dict_row}  # as it is documented
    check = pools.AsyncConnectionPool.check_connection if checked else None
    async with pools.AsyncConnectionPool(url, min_size=1, max_size=POOL, kwargs=how, check=check, open=False) as pool:
        keeper = saver(pool)
        await keeper.setup()
        building = graphs.StateGraph(state)
        building.add_node("keep", lambda _: {})
        building.add_edge(graphs.START, "keep")
        yield _Store(building.compile(checkpointer=keeper), prefix)  # both kinds share their tables
