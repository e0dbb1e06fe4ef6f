"""chatledger's own storage, without the protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from benchmarks.peers.stores import Store
from chatledger.storage import ConversationStore, NewMessage

USER = "peer"


class _Conversation:
    def __init__(self, store: ConversationStore, id: UUID) -> None:
        self._store, self._id = store, id

    async def append(self, content: str, message_id: str | None = None) -> None:
        message = NewMessage(role="user", content=content, client_message_id=message_id)
        await self._store.append_message(USER, self._id, message)

    async def extend(self, contents: Sequence[str]) -> None:
        for first in range(0, len(contents), 100):
            messages = [NewMessage(role="user", content=content) for content in contents[first : first + 100]]
            await self._store.append_messages(USER, self._id, messages)

    async def load(self) -> list[str]:
        contents: list[str] = []
        after, more = 0, True
        while more:
            window = await self._store.load_history(USER, self._id, limit=1_000, after_seq=after, max_tokens=200_000)
            contents += [message.content for message in window.messages]
            more = window.omitted_after > 0
            after = window.messages[-1].seq if window.messages else after
        return contents


class _Store:
    def __init__(self, store: ConversationStore) -> None:
        self._store = store

    async def conversation(self, name: str) -> _Conversation:
        return _Conversation(self._store, (await self._store.get_or_create_conversation(USER, name)).id)

    async def first_page(self, count: int) -> list[str]:
        page = await self._store.list_conversations(USER, limit=count)
        return [str(each.conversation.key) for each in page.conversations]


@asynccontextmanager
async def opened(url: str, checked: bool) -> AsyncIterator[Store]:
    """A store. It heals its connections by itself, `checked` or not."""
    del checked
    async with ConversationStore.at(url) as store:
        yield _Store(store)
