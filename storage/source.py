"""Where the database is: behind a URL that somebody gave, or the embedded Postgres, which is started for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from chatledger.storage.embedded import EmbeddedError, EmbeddedPostgres
from chatledger.storage.errors import Unavailable

# Seconds between attempts to start a server that could not be: the sentence is cheap, the attempt is not (chosen).
EMBEDDED_RETRY_SECONDS = 5.0


class DatabaseSource(Protocol):
    """A database that may have to be started before it has a URL."""

    migrates_itself: bool
    """Whether the schema is brought up to date when the database is opened, without anybody asking."""

    async def url(self) -> str:
        """The URL of a database that runs, started if need be. Raises Unavailable."""
        ...

    async def release(self) -> None:
        """Need it no longer."""
        ...


class ExternalDatabase:
    """A Postgres that runs by itself; only `chatledger migrate` changes its schema."""

    migrates_itself = False

    def __init__(self, url: str) -> None:
        self._url = url

    async def url(self) -> str:
        """The URL as it was given."""
        return self._url

    async def release(self) -> None:
        """Nothing to do."""


class EmbeddedDatabase:
    """The embedded Postgres below `root`: shared by all processes that name the same folder, migrated by the first."""

    migrates_itself = True

    def __init__(self, root: Path) -> None:
        self._root = root
        self._postgres: EmbeddedPostgres | None = None

    async def url(self) -> str:
        """Starts or joins the server, in a worker thread.

        Raises:
            Unavailable: it cannot run here; the sentence says why.
        """
        try:
            if self._postgres is None:
                self._postgres = EmbeddedPostgres(self._root)
            return await asyncio.to_thread(self._postgres.start)
        except EmbeddedError as exc:
            raise Unavailable(str(exc), retry_after_seconds=EMBEDDED_RETRY_SECONDS) from exc

    async def release(self) -> None:
        """Stop being a user of the server, which stops after the last one."""
        if self._postgres is not None:
            await asyncio.to_thread(self._postgres.release)
