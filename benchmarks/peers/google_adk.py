"""Google ADK: `DatabaseSessionService`, events in sessions that belong to a user of an app, with state beside them.

A session in a program's hands knows which state of the stored one it saw, and an append to another is refused: of
writers that do not know of each other all but one get an error and must load the session again. That is by design.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.peers.stores import POOL, Store, asyncpg_url

APP, USER = "benchmark", "peer"


class _Conversation:
    def __init__(self, service: Any, session: Any) -> None:
        self._service, self._session = service, session
        self._event = importlib.import_module("google.adk.events.event").Event
        self._types = importlib.import_module("google.genai.types")

    async def append(self, content: str, message_id: str | None = None) -> None:
        del message_id  # an event has an id, but one that is repeated is an error of the database
        part = self._types.Part(text=content)
        event = self._event(author="user", content=self._types.Content(role="user", parts=[part]))
        await self._service.append_event(self._session, event)

    async def extend(self, contents: Sequence[str]) -> None:
        for content in contents:
            await self.append(content)

    async def load(self) -> list[str]:
        found = await self._service.get_session(app_name=APP, user_id=USER, session_id=self._session.id)
        return [event.content.parts[0].text for event in found.events]


class _Store:
    def __init__(self, service: Any) -> None:
        self._service = service
        self._sessions = importlib.import_module("google.adk.sessions.base_session_service")
        self._exists = importlib.import_module("google.adk.errors.already_exists_error").AlreadyExistsError

    async def conversation(self, name: str) -> _Conversation:
        place = {"app_name": APP, "user_id": USER, "session_id": name}
        config = self._sessions.GetSessionConfig(num_recent_events=0)  # an append needs none of them
        session = await self._service.get_session(**place, config=config)
        if session is None:
            try:
                session = await self._service.create_session(**place)
            except self._exists:  # another task was first
                session = await self._service.get_session(**place, config=config)
        return _Conversation(self._service, session)

    async def first_page(self, count: int) -> list[str]:
        found = await self._service.list_sessions(app_name=APP, user_id=USER)  # all: there are no pages, oldest first
        return [session.id for session in reversed(found.sessions[-count:])]


@asynccontextmanager
async def opened(url: str, checked: bool) -> AsyncIterator[Store]:
    """With asyncpg. By itself it would try every connection before it uses it, which costs it round trips."""
    service_class = importlib.import_module("google.adk.sessions.database_session_service").DatabaseSessionService
    service = service_class(asyncpg_url(url), pool_size=POOL, max_overflow=0, pool_pre_ping=checked)
    try:
        await service.prepare_tables()
        yield _Store(service)
    finally:
        await service.close()
