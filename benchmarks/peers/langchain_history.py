"""LangChain: `PostgresChatMessageHistory` of langchain-postgres, one INSERT a message and nothing else.

It has no row for a conversation, no owner, no list, no limit on what it loads, and no id that tells a repeat from a
second message. Its documentation calls it a client for prototypes. That makes it the cheapest append there can be.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from benchmarks.peers.stores import POOL, Store

TABLE = "chat_history"


class _Conversation:
    def __init__(self, pool: Any, name: str) -> None:
        self._pool, self._id = pool, str(uuid5(NAMESPACE_URL, name))  # it takes no other ids
        self._history = importlib.import_module("langchain_postgres").PostgresChatMessageHistory
        self._message = importlib.import_module("langchain_core.messages").HumanMessage

    async def append(self, content: str, message_id: str | None = None) -> None:
        del message_id
        await self.extend([content])

    async def extend(self, contents: Sequence[str]) -> None:
        async with self._pool.connection() as connection:
            history = self._history(TABLE, self._id, async_connection=connection)
            await history.aadd_messages([self._message(content=content) for content in contents])

    async def load(self) -> list[str]:
        async with self._pool.connection() as connection:
            history = self._history(TABLE, self._id, async_connection=connection)
            return [message.content for message in await history.aget_messages()]


class _Store:
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def conversation(self, name: str) -> _Conversation:
        return _Conversation(self._pool, name)


@asynccontextmanager
async def opened(url: str, checked: bool) -> AsyncIterator[Store]:
    """Connections from a pool in autocommit, which saves it two round trips each time, and prepared statements."""
    history = importlib.import_module("langchain_postgres").PostgresChatMessageHistory
    pools = importlib.import_module("psycopg_pool")
    how = {"autocommit": True, "prepare_threshold": 0}
    check = pools.AsyncConnectionPool.check_connection if checked else None
    async with pools.AsyncConnectionPool(url, min_size=1, max_size=POOL, kwargs=how, check=check, open=False) as pool:
        async with pool.connection() as connection:
            await history.acreate_tables(connection, TABLE)
        yield _Store(pool)
