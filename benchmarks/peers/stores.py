"""What the experiments ask of a store of conversations. Each adapter beside this file answers it for one store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol, runtime_checkable

# Connections that each store may open to Postgres: as many as chatledger's pool, so that none is ahead by having more.
POOL: Final = 10


class Conversation(Protocol):
    """One conversation, in the hands of one task. Any exception means that the outcome is unknown.

    It holds what its store lets a program hold between two calls, so that no store pays for finding it again.
    """

    async def append(self, content: str, message_id: str | None = None) -> None:
        """One message of a user; with the id where the store takes one."""
        ...

    async def extend(self, contents: Sequence[str]) -> None:
        """Many messages, in the fastest way that the store has."""
        ...

    async def load(self) -> list[str]:
        """All contents, in the store's order."""
        ...


class Store(Protocol):
    """One process' view of a store, with a pool of its own."""

    async def conversation(self, name: str) -> Conversation:
        """The conversation with this name, made if there is none and the store has such a thing."""
        ...


@runtime_checkable
class Lists(Protocol):
    """A store that can tell which conversations there are."""

    async def first_page(self, count: int) -> list[str]:
        """The names of the `count` conversations that were updated last, newest first."""
        ...


Open = Callable[[str, bool], AbstractAsyncContextManager[Store]]
"""Of a database's URL, and whether a connection is tried before it is used, as one does where a server may restart."""


def asyncpg_url(url: str) -> str:
    """As SQLAlchemy wants it for the driver that is the fastest of its own for Postgres."""
    return url.replace("postgresql:", "postgresql+asyncpg:", 1)
