"""Who waits for a lock, on any node that has the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.driver import connect
from tests.engine_under_test import on_nodes
from tests.patience import PATIENCE

_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@asynccontextmanager
async def looking(url: str) -> AsyncIterator[Callable[[str], Awaitable[int]]]:
    """Asks every node that has the database for a number: their sum."""
    watches = [await connect(node) for node in on_nodes(url)]

    async def count(question: str) -> int:
        return sum([int(await watch.fetchval(question)) for watch in watches])

    try:
        yield count
    finally:
        for watch in watches:
            await watch.close()


async def until_waiting(url: str, number: int, tasks: Sequence[asyncio.Task[Any]] = ()) -> None:
    """Return when so many connections to this database wait for a lock; the tasks are still under way until then."""
    async with looking(url) as count, asyncio.timeout(PATIENCE):
        while await count(_WAITING) < number:
            for task in tasks:
                assert not task.done(), task
            await asyncio.sleep(0.01)
