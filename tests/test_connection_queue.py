"""Calls take turns at the connections: a burst is served however long it is, and stuck connections are told soon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chatledger.storage import connection_queue
from chatledger.storage.connection_queue import ConnectionQueue
from chatledger.storage.engine import Database
from chatledger.storage.errors import Unavailable
from chatledger.storage.query import Query
from chatledger.storage.source import ExternalDatabase
from tests.driver import connect
from tests.patience import PATIENCE

SIZE = 2
SLEEP = "SELECT $1::text, pg_sleep($2::float8)"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(ExternalDatabase(database_url), pool_size=1, pool_overflow=1)
    await opened.read(Query("SELECT $1::text", ("first",)))
    yield opened
    await opened.aclose()


def queue_of(database: Database) -> ConnectionQueue:
    opened = database._opened_already()
    assert opened is not None
    return opened.connections._queue


async def test_a_burst_of_calls_is_served_in_the_order_they_came(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_queue, "STALLED_SECONDS", 1.0)
    done: list[int] = []

    async def call(number: int) -> None:
        await database.read(Query(SLEEP, ("x", 0.02)))
        done.append(number)

    await asyncio.gather(*(call(number) for number in range(150)))  # 1.5 s of work: more than a call waits for nothing
    assert len(done) == 150
    assert max(abs(place - number) for place, number in enumerate(done)) < SIZE * 2
    assert max(database.connections()) <= SIZE


async def test_stuck_connections_are_told_and_used_again_afterwards(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_queue, "STALLED_SECONDS", 0.2)
    holder = await connect(database_url)
    try:
        await holder.execute("SELECT pg_advisory_lock(1)")
        waits = Query("SELECT $1::text, pg_advisory_xact_lock_shared(1)", ("x",))
        stuck = [asyncio.create_task(database.read(waits)) for _ in range(SIZE)]
        while database.connections()[0] < SIZE:
            await asyncio.sleep(0.001)
        refused = await asyncio.gather(
            *(database.read(Query("SELECT $1::text", ("x",))) for _ in range(50)), return_exceptions=True
        )
        assert all(isinstance(error, Unavailable) and "all connections" in error.message for error in refused)
        assert not any(task.done() for task in stuck)
    finally:
        await holder.close()
    await asyncio.gather(*stuck)
    await asyncio.gather(*(database.read(Query("SELECT $1::text", ("x",))) for _ in range(50)))
    assert queue_of(database)._free == SIZE


async def test_a_call_that_is_cancelled_while_it_waits_takes_no_turn_with_it(database: Database) -> None:
    holding = [asyncio.create_task(database.read(Query(SLEEP, ("x", 0.3)))) for _ in range(SIZE)]
    waiting = [asyncio.create_task(database.read(Query("SELECT $1::text", ("x",)))) for _ in range(20)]
    while len(queue_of(database)._waiting) < 20:
        await asyncio.sleep(0.001)
    for call in waiting[::2]:
        call.cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(end, asyncio.CancelledError) for end in ended] == [True, False] * 10
    await asyncio.gather(*holding)
    assert queue_of(database)._free == SIZE


async def test_a_turn_that_comes_at_the_moment_of_cancelling_goes_to_the_next() -> None:
    queue = ConnectionQueue(1)
    await queue.take()
    first, second = (asyncio.create_task(queue.take()) for _ in range(2))
    await asyncio.sleep(0)
    queue.give()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    await asyncio.wait_for(second, PATIENCE)


async def test_nobody_gives_up_while_a_connection_is_being_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_queue, "STALLED_SECONDS", 0.05)
    queue = ConnectionQueue(1)
    await queue.take()
    with queue.opening():
        waiting = asyncio.create_task(queue.take())
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done()
    with pytest.raises(Unavailable):
        await waiting


async def test_no_more_calls_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_queue, "WAITING", 1)
    queue = ConnectionQueue(1)
    await queue.take()
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await queue.take()
    queue.give()
    await waiting
