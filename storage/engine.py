"""The pool of connections: opened at the first use, one statement a call, every call ended by a deadline.

Statements run on the driver's connection under SQLAlchemy's pool, in autocommit: one statement is one transaction and
one network round trip. Through a session it would be three, with `pool_pre_ping` six (measured on the wire).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from chatledger.storage import distribution, row_security, schema
from chatledger.storage.connections import Connections, NothingSent
from chatledger.storage.errors import (
    ROLLED_BACK,
    UNKNOWN_OUTCOME,
    StorageError,
    Unavailable,
    may_pass,
    translate,
    unreachable,
)
from chatledger.storage.query import Query, Row
from chatledger.storage.source import DatabaseSource
from chatledger.storage.transaction import Transaction, transaction

if TYPE_CHECKING:
    from sqlalchemy.pool import PoolProxiedConnection

CALL_SECONDS: Final = 25.0  # one statement with its repeats; below the 28 s that a whole tool call may take
OPENING_SECONDS: Final = 20.0  # waiting for a database that starts or wakes; clients give up at 60 s
POOL_SIZE, POOL_OVERFLOW = 5, 5  # a small Neon compute takes about a hundred connections; several servers share it
PAUSES: Final = (0.1, 0.5)  # seconds before what may be sent again is sent the second and the third time
# Seconds that a call goes on trying to connect (chosen: a database that restarts or wakes refuses for up to 8).
WAKING_SECONDS = 10.0
WAKING_PAUSE: Final = 0.2  # seconds between two tries (chosen: a fraction of the shortest restart)

_T = TypeVar("_T")


# SQLSTATEs of what the database may have become while the pool is open.
_CHANGED: Final = frozenset({row_security.NO_SCOPE, distribution.NOT_SUPPORTED})
# Of what a pooler says where none was: of the settings that a connection brings, and of statements that were kept.
_OF_A_POOLER: Final = frozenset({"08P01", "26000", "42P05"})


@dataclass
class _Open:
    """The connections, and what was read of the schema; row security or a cluster may come later."""

    connections: Connections
    state: schema.SchemaState

    async def changed(self) -> bool:
        """Look again; whether the schema is not as it was."""
        before, self.state = self.state, await _state(self.connections)
        return self.state != before


class _Patience:
    """How long one call goes on trying."""

    def __init__(self) -> None:
        self._began, self._pauses = time.monotonic(), iter(PAUSES)

    async def until_it_wakes(self, failed: NothingSent) -> None:
        """Return when it is time to try to connect again; raise the caller's error when waiting would not help."""
        cause = failed.__cause__ or failed
        if not may_pass(cause) or time.monotonic() - self._began >= WAKING_SECONDS:
            raise unreachable(cause) from failed
        await asyncio.sleep(WAKING_PAUSE * random.uniform(0.5, 1.5))

    async def pause(self) -> bool:
        """Wait a moment before what was sent is sent again; False when that was done often enough."""
        seconds = next(self._pauses, None)
        if seconds is not None:
            await asyncio.sleep(seconds * random.uniform(0.5, 1.5))
        return seconds is not None


class Database:
    """A pool of connections to one database. Nothing happens before the first call or `start`."""

    def __init__(
        self, source: DatabaseSource, *, pool_size: int = POOL_SIZE, pool_overflow: int = POOL_OVERFLOW
    ) -> None:
        self.source = source
        self._pool_size, self._pool_overflow = pool_size, pool_overflow
        self._opening: asyncio.Task[_Open] | None = None
        self._unfinished: set[asyncio.Task[Any]] = set()
        self._waking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Open it in the background. Calls made meanwhile wait for it; what goes wrong is told to them."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)

    def wake(self) -> None:
        """Have an embedded server start, in processes of its own, while this one still imports what it needs."""
        self._waking = asyncio.create_task(self._wake())

    async def _wake(self) -> None:
        with contextlib.suppress(StorageError):  # opening it meets the same error, and tells it
            await self.source.url()

    async def aclose(self) -> None:
        """Wait for the writes that were sent, then close every connection. What waits for the database ends unsent."""
        if self._waking is not None:
            await asyncio.wait([self._waking])
        opening = self._opening
        if opening is not None and not opening.done():
            opening.cancel()
            for unsent in self._unfinished:
                unsent.cancel()
        if self._unfinished:
            await asyncio.wait(self._unfinished)
        if opening is not None:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                await opening.result().connections.aclose()
        self._opening = None
        await self.source.release()

    async def read(self, query: Query, *, seconds: float | None = None) -> list[Any]:
        """The rows of a statement that changes nothing; repeated when the connection breaks.

        Ends within `seconds`, or CALL_SECONDS.

        Raises:
            StorageError: what the database's answer means to a caller.
        """
        attempts = self._attempts(query, repeatable=True)
        return await self._deadline(attempts, CALL_SECONDS if seconds is None else seconds)

    async def write(self, query: Query, *, repeatable: bool) -> list[Any]:
        """The rows of a statement that changes something, in a step that a cancelled caller does not interrupt.

        `repeatable` says that running it twice is the same as running it once: only then it is repeated when the
        connection breaks after it was sent.

        Raises:
            StorageError: what the database's answer means to a caller; Unavailable where the outcome is unknown.
        """
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._write(answer, query, repeatable))
        self._unfinished.add(task)
        task.add_done_callback(partial(self._written, answer))
        return await answer  # `asyncio.shield` would do, a turn of the loop later

    def connections(self) -> tuple[int, int]:
        """How many connections of this process calls hold at this moment, and how many wait for calls."""
        opened = self._opened_already()
        return (0, 0) if opened is None else opened.connections.count()

    def may_gather(self) -> bool:
        """Whether one statement may carry the appends of several users."""
        opened = self._opened_already()
        return opened is not None and not (opened.state.fenced or opened.state.distributed)

    def known_secret(self) -> bytes | None:
        """As `cursor_secret`, or None while the database is not open: nothing is waited for."""
        opened = self._opened_already()
        return None if opened is None else opened.state.cursor_secret

    def _opened_already(self) -> _Open | None:
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return None
        return opening.result()

    @contextlib.asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Transaction]:
        """Several statements as one atomic step, without a deadline: for bulk work, never for a call of a tool.

        Committed when the block ends, undone when it raises; `snapshot` reads only, all from one moment.

        Raises:
            StorageError: what the database's answer means to a caller.
        """
        opened = await self._deadline(self._ready(), CALL_SECONDS)
        connections = opened.connections
        connection = await _borrow_patiently(connections)
        broken = True
        try:
            async with transaction(
                connection.driver_connection, snapshot=snapshot, fenced=opened.state.fenced
            ) as begun:
                yield begun
            broken = False
        finally:
            await connections.give_back(connection, broken=broken)

    async def cursor_secret(self) -> bytes:
        """The secret that seals page cursors, the same for every process on this database."""
        return (await self._deadline(self._ready(), CALL_SECONDS)).state.cursor_secret

    # ---- one statement ---------------------------------------------------------------------------------------------

    async def _write(self, answer: asyncio.Future[list[Any]], query: Query, repeatable: bool) -> None:
        """Run it, and say how it ended where somebody still waits: not where the caller was cancelled."""
        try:
            rows = await self._deadline(self._attempts(query, repeatable, query.row), CALL_SECONDS)
        except Exception as exc:  # noqa: BLE001  # it is the caller's
            if not answer.done():
                answer.set_exception(exc)
        else:
            if not answer.done():
                answer.set_result(rows)

    def _written(self, answer: asyncio.Future[list[Any]], task: asyncio.Task[None]) -> None:
        self._unfinished.discard(task)
        answer.cancel()  # changes nothing, unless the task was cancelled: the database is being closed

    async def _deadline(self, work: Coroutine[Any, Any, _T], seconds: float) -> _T:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError as exc:
            raise Unavailable(UNKNOWN_OUTCOME) from exc

    async def _attempts(self, query: Query, repeatable: bool, row: Row | None = None) -> list[Any]:
        patience = _Patience()
        while True:
            opened = await self._ready()
            try:
                return await self._once(opened, query, row)
            except NothingSent as exc:
                if not (self._mistaken(opened, exc.__cause__) and await patience.pause()):
                    await patience.until_it_wakes(exc)
            except Exception as exc:  # noqa: BLE001  # drivers raise outside their own trees, too
                if self._mistaken(opened, exc) and await patience.pause():
                    continue
                if getattr(exc, "sqlstate", None) in _CHANGED and await opened.changed():
                    continue  # it was put up meanwhile, and let nothing through
                error = translate(exc)
                rolled_back = getattr(exc, "sqlstate", None) in ROLLED_BACK
                if not (rolled_back or (repeatable and error.message == UNKNOWN_OUTCOME)) or not await patience.pause():
                    raise error from (None if error is exc else exc)

    def _mistaken(self, opened: _Open, exc: BaseException | None) -> bool:
        """Whether a pooler has come in between. Nothing was done then, and the next attempt opens the database anew."""
        connections = opened.connections
        if connections.told_by_name or not connections.direct or getattr(exc, "sqlstate", None) not in _OF_A_POOLER:
            return False
        if self._opened_already() is opened:
            self._opening = None
            closing = asyncio.create_task(connections.aclose())
            self._unfinished.add(closing)
            closing.add_done_callback(self._unfinished.discard)
        return True

    async def _once(self, opened: _Open, query: Query, row: Row | None) -> list[Any]:
        connections = opened.connections
        connection = await connections.borrow(row)
        driver: Any = connection.driver_connection
        broken = True
        try:
            rows = await connections.fetch(connection, query, fenced=opened.state.fenced)
            broken = False
            return rows
        except Exception as exc:
            state = getattr(exc, "sqlstate", None)
            # An ordinary refusal leaves a connection as good as new. Everything else ends it: the unforeseen, and a
            # call that was cancelled or timed out, whose late answer must not reach the next borrower.
            broken = not isinstance(state, str) or state.startswith(("08", "57P", "XX"))
            raise
        finally:
            await connections.give_back(connection, broken=broken or driver.is_closed(), row=row)

    # ---- opening ---------------------------------------------------------------------------------------------------

    async def _ready(self) -> _Open:
        self.start()
        assert self._opening is not None
        if self._opening.done():
            return self._opening.result()
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                return await asyncio.shield(self._opening)
        except TimeoutError:
            raise Unavailable("the database is still starting; try again shortly", retry_after_seconds=5) from None

    async def _open(self) -> _Open:
        url = await self.source.url()
        try:
            make = partial(Connections, url, kept=self._pool_size, more=self._pool_overflow, revive=self.source.url)
            connections = await asyncio.to_thread(make)  # the import takes a while
        except ValueError as exc:
            raise Unavailable(f"{exc}; `chatledger doctor` says more", retry_after_seconds=60) from exc
        try:
            if not connections.told_by_name:
                connections = await _told_apart(connections, partial(make, direct=True))
            state = await _state(connections)
            if self.source.migrates_itself and (state.revision is None or state.revision < schema.REVISION):
                await asyncio.to_thread(schema.migrate, url)
                state = await _state(connections)
            schema.require_current(state)
        except BaseException as exc:
            await connections.aclose()
            if isinstance(exc, StorageError) or not isinstance(exc, Exception):
                raise
            raise translate(exc) from exc
        return _Open(connections, state)

    def _opened(self, task: asyncio.Task[_Open]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._opening = None  # the next call tries anew


async def _told_apart(cautious: Connections, directly: Callable[[], Connections]) -> Connections:
    """Connections that keep statements, where no pooler is in between; `cautious` where one is.

    Behind a pooler another process answers than the one that the connection was said to lead to, as the statements of
    one client reach several.
    """
    connection = await _borrow_patiently(cautious)
    driver: Any = connection.driver_connection
    direct = False
    try:
        direct = await driver.fetchval("SELECT pg_catalog.pg_backend_pid()") == driver.get_server_pid()
    finally:
        await cautious.give_back(connection, broken=direct or driver.is_closed())
    if not direct:
        return cautious
    found = directly()
    try:
        await found.give_back(await found.borrow(), broken=False)
    except NothingSent:  # whatever is there does not take the settings
        await found.aclose()
        return cautious
    await cautious.aclose()
    return found


async def _state(connections: Connections) -> schema.SchemaState:
    connection = await _borrow_patiently(connections)
    broken = True
    try:
        state = await schema.read_state(connection.driver_connection)
        broken = False
    except Exception as exc:
        raise translate(exc) from exc
    finally:
        await connections.give_back(connection, broken=broken)
    return state


async def _borrow_patiently(connections: Connections) -> PoolProxiedConnection:
    patience = _Patience()
    while True:
        try:
            return await connections.borrow()
        except NothingSent as exc:
            await patience.until_it_wakes(exc)
