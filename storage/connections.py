"""The connections of one database: opened when they are needed, borrowed in turn, kept while they are well.

SQLAlchemy's pool opens and counts them. Those that came back are kept here besides: to borrow from the pool and to give
back costs as much as a small statement.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from chatledger.storage import row_security
from chatledger.storage.connection_queue import ConnectionQueue
from chatledger.storage.errors import driver_error
from chatledger.storage.query import Query, Row
from chatledger.storage.row_turns import RowTurns
from chatledger.storage.rows import decode_json

if TYPE_CHECKING:
    from sqlalchemy.pool import PoolProxiedConnection

RECYCLE_SECONDS: Final = 240  # below the 5 minutes after which Neon sleeps


class NothingSent(Exception):
    """No connection could be had, so the statement never left: `__cause__` says why, and repeating it is safe."""


class Connections:
    """At most `kept + more` of them to the database at `url`, of which `kept` stay open while nothing is to be done.

    `revive` is awaited when none can be opened: an embedded server that died comes back in it. `direct` says that no
    pooler is in between, where the URL does not tell.

    Raises:
        ValueError: the URL is none that can be used.
    """

    def __init__(
        self, url: str, *, kept: int, more: int, revive: Callable[[], Awaitable[object]], direct: bool = False
    ) -> None:
        from sqlalchemy.ext.asyncio import create_async_engine

        from chatledger.storage.database_url import read_database_url

        target = read_database_url(url)
        self.told_by_name: Final = target.direct or target.pooled
        if direct:
            target = target.known_direct()
        # Whether the driver keeps statements and Postgres their plans: not where a pooler may be in between.
        self.direct: Final = target.direct
        self._engine = create_async_engine(
            target.url,
            isolation_level="AUTOCOMMIT",
            pool_size=kept,
            max_overflow=more,
            pool_recycle=RECYCLE_SECONDS,
            pool_reset_on_return=None,  # nothing to undo in autocommit, and a reset is a round trip
            json_deserializer=decode_json,
            connect_args=target.connect_args,
        )
        self._kept, self._all, self._revive = kept, kept + more, revive
        self._closed = False
        self._idle: list[PoolProxiedConnection] = []
        self._queue = ConnectionQueue(self._all)
        self._turns = RowTurns(max(1, self._all // 2), self._queue)

    def count(self) -> tuple[int, int]:
        """How many are borrowed at this moment, and how many wait."""
        pool: Any = self._engine.pool
        return pool.checkedout() - len(self._idle), pool.checkedin() + len(self._idle)

    async def borrow(self, row: Row | None = None) -> PoolProxiedConnection:
        """One that is alive, in the turn of those who ask, and who will change that row; `give_back` ends all.

        Raises:
            NothingSent: none can be opened.
            Unavailable: all are in use, and have been for too long.
        """
        came = time.monotonic()
        if row is not None:
            await self._turns.take(row)
        try:
            await self._queue.take(came)
            try:
                with self._queue.opening():
                    return await self._alive()
            except BaseException:
                self._queue.give()
                raise
        except BaseException:
            if row is not None:
                self._turns.give(row)
            raise

    async def give_back(self, connection: PoolProxiedConnection, *, broken: bool, row: Row | None = None) -> None:
        """End a turn, of those who change the row as well. A broken connection is closed and never used again."""
        try:
            if broken or self._closed or len(self._idle) >= self._kept:
                await _close(connection, broken=broken or self._closed)
            else:
                self._idle.append(connection)
        finally:
            if row is not None:
                self._turns.give(row)
            self._queue.give()

    async def aclose(self) -> None:
        """Close those that are not borrowed; the others end when they are given back."""
        self._closed = True
        while self._idle:
            await _close(self._idle.pop(), broken=False)
        await self._engine.dispose()

    async def fetch(self, connection: PoolProxiedConnection, query: Query, *, fenced: bool) -> list[Any]:
        """The rows of a statement: one round trip, or four behind row security. Raises what the driver raises."""
        fetch = partial(_fetch_kept if self.direct else _fetch_unnamed, connection)
        return await (_fetch_fenced(connection.driver_connection, fetch, query) if fenced else fetch(query))

    async def _alive(self) -> PoolProxiedConnection:
        while self._idle:
            kept = self._idle.pop()
            driver: Any = kept.driver_connection
            if not driver.is_closed() and time.monotonic() - kept.info["opened"] < RECYCLE_SECONDS:
                return kept
            await _close(kept, broken=True)
        for _ in range(self._all + 1):
            try:
                connection = await self._engine.raw_connection()
            except Exception as exc:  # noqa: BLE001  # whatever it was, nothing was sent
                await self._revive()
                raise NothingSent from driver_error(exc)
            driver = connection.driver_connection
            if not driver.is_closed():
                connection.info.setdefault("opened", time.monotonic())
                return connection
            await _close(connection, broken=True)  # it died while idle: nothing was sent
        raise NothingSent from ConnectionError("every pooled connection was closed")


async def _fetch_kept(connection: PoolProxiedConnection, query: Query) -> list[Any]:
    """The rows, by a statement that the driver prepares once on a connection."""
    driver: Any = connection.driver_connection
    rows: list[Any] = await driver.fetch(query.sql, *query.args)
    return rows


async def _fetch_unnamed(connection: PoolProxiedConnection, query: Query) -> list[Any]:
    """The rows, by an unnamed statement: parsed anew each time, so that it may reach another server behind a pooler.

    The first use on a connection is a round trip more, which asks for the types; they are kept as long as it lives.
    """
    driver: Any = connection.driver_connection
    known: Any = connection.info.get(query.sql)
    if known is None:
        known = connection.info[query.sql] = await driver.prepare(query.sql)
    try:
        rows: list[Any] = await known.fetch(*query.args)
    except BaseException:
        connection.info.pop(query.sql, None)  # types that changed meanwhile are asked for again
        raise
    return rows


async def _fetch_fenced(driver: Any, fetch: Callable[[Query], Awaitable[list[Any]]], query: Query) -> list[Any]:
    """The rows, in a transaction that says first whose they must be: four round trips in the place of one."""
    await driver.execute("BEGIN")
    try:
        await row_security.enter(fetch, query)
        rows = await fetch(query)
    except Exception as exc:
        # After anything but a refusal the connection is not used again, and nothing more is waited for.
        if isinstance(getattr(exc, "sqlstate", None), str) and not driver.is_closed():
            await driver.execute("ROLLBACK")
        raise
    await driver.execute("COMMIT")
    return rows


async def _close(connection: PoolProxiedConnection, *, broken: bool) -> None:
    """Give it back to the pool, which keeps it unless it is broken."""
    from sqlalchemy.util import greenlet_spawn

    if broken:
        await greenlet_spawn(connection.invalidate)
    await greenlet_spawn(connection.close)
