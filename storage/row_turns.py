"""Turns at one row: of the calls that change it, half of a process's connections at the most wait for its lock.

Who is sent to wait holds a connection while nothing happens. A row that many callers change, or that another process
holds for a long time, would have them all, and calls about anything else would be told that none is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING

from chatledger.storage.errors import Unavailable

if TYPE_CHECKING:
    from chatledger.storage.connection_queue import ConnectionQueue
    from chatledger.storage.query import Row


# Seconds in which nobody had a turn at a row, after which a waiting call gives up (chosen: twice as long as one waits
# for the row's lock itself). As long as turns go round a call waits, however many came before it.
HELD_SECONDS = 10.0


class RowTurns:
    """At most `each` turns at the same row at once, of calls that want connections of `queue`.

    A conversation that calls name in two ways, by its id and its number, has turns for either.
    """

    def __init__(self, each: int, queue: ConnectionQueue) -> None:
        self._each, self._queue = each, queue
        self._turns: dict[Row, int] = {}  # of the rows that anybody changes at this moment
        self._waiting: dict[Row, deque[asyncio.Future[None]]] = {}
        self._moved: dict[Row, float] = {}  # when those that wait last saw one of them have its turn

    async def take(self, row: Row) -> None:
        """Return when it is this call's turn, in the order they came; it ends by `give`.

        Raises:
            Unavailable: the row is held for long, the connections are stuck, or too many calls wait. Nothing was taken.
        """
        taken = self._turns.get(row, 0)
        if taken < self._each:
            self._turns[row] = taken + 1
            return
        came, turn = time.monotonic(), self._queue.turn()
        self._waiting.setdefault(row, deque()).append(turn)
        try:
            while not turn.done():
                left = max(self._moved.get(row, came), came) + HELD_SECONDS - time.monotonic()
                if left <= 0:
                    raise Unavailable("what it would change is held by other calls; try again shortly")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._queue.wait(turn, came)
        except BaseException:
            if turn.done():
                self.give(row)  # it came at the moment of giving up
            else:
                turn.cancel()  # `give` passes it over
            raise

    def give(self, row: Row) -> None:
        """End a turn: the call that waits longest for this row has the next."""
        waiting = self._waiting.get(row) if self._waiting else None
        while waiting:
            turn = waiting.popleft()
            if not waiting:
                del self._waiting[row]
            if not turn.done():
                turn.set_result(None)
                if waiting:
                    self._moved[row] = time.monotonic()
                else:
                    self._moved.pop(row, None)
                return
        self._moved.pop(row, None)
        taken = self._turns.pop(row) - 1
        if taken:
            self._turns[row] = taken
