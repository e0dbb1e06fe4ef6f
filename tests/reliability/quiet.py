"""What the database itself says of its connections: how many there are, and whether any of them is at work."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.driver import connect

_OTHERS = (
    "SELECT coalesce(state, 'starting') FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' "
    "AND application_name NOT LIKE 'citus_internal%'"  # the nodes of a cluster among themselves
)


async def connections(url: str) -> int:
    """How many connections others have to this database."""
    return len(await _states(url))


async def until_quiet(url: str, at_most: int, within: float = 25.0) -> None:
    """Return when others have at most so many connections, none of which is at work.

    By itself it waits for less than the 30 s after which the server ends a transaction that was left open.

    Raises:
        AssertionError: it was not so within `within` seconds.
    """
    deadline = time.monotonic() + within
    while True:
        states = await _states(url)
        if len(states) <= at_most and set(states) <= {"idle"}:
            return
        assert time.monotonic() < deadline, f"connections are left: {states}"
        await asyncio.sleep(0.02)


async def _states(url: str) -> list[str]:
    watch: Any = await connect(url)
    try:
        return [row[0] for row in await watch.fetch(_OTHERS)]
    finally:
        await watch.close()
