"""OpenAI Agents SDK: `SQLAlchemySession`, one row for each item of a session, whose row is locked and updated with it.

Its items have no id of their own, so that a repeat cannot be told from a second message; sessions have no owner, and
there is no list of them.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.stores import POOL, Store, asyncpg_url


class _Conversation:
    def __init__(self, session: Any) -> None:
        self._session = session

    async def append(self, content: str, message_id: str | None = None) -> None:
        del message_id
        await self._session.add_items([{"role": "user", "content": content}])

    async def extend(self, contents: Sequence[str]) -> None:
        await self._session.add_items([{"role": "user", "content": content} for content in contents])

    async def load(self) -> list[str]:
        return [item["content"] for item in await self._session.get_items()]


class _Store:
    def __init__(self, session: Any, engine: Any) -> None:
        self._session, self._engine = session, engine

    async def conversation(self, name: str) -> _Conversation:
        return _Conversation(self._session(name, engine=self._engine))


@asynccontextmanager
async def opened(url: str, checked: bool) -> AsyncIterator[Store]:
    """Its documented form for an application that has an engine: one for all sessions, the tables made once."""
    session = importlib.import_module("agents.extensions.memory").SQLAlchemySession
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(asyncpg_url(url), pool_size=POOL, max_overflow=0, pool_pre_ping=checked)
    try:
        await session("set-up", engine=engine, create_tables=True).get_items()
        yield _Store(session, engine)
    finally:
        await engine.dispose()
