"""Turns at one row: of the calls that change it, half of a process's connections at the most wait for its lock.

Who is sent to wait holds a connection while nothing happens. A row that many callers change, or that another process
holds for a long time, would have them all, and calls about anything else would be told that none is free.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from chatledger.storage.errors import Unavailable

if TYPE_CHECKING:
    from chatledger.storage.connection_queue import ConnectionQueue
    from chatledger.storage.query import Row


HELD_SECONDS = 10.0  # a call waits so long for its turn (chosen: twice as long as one waits for the row's lock itself)


class RowTurns:
    """At most `each` turns at the same row at once, of calls that want connections of `queue`.

    A conversation that calls name in two ways, by its id and its number, has turns for either.
    """

    def __init__(self, each: int, queue: ConnectionQueue) -> None:
        self._each, self._queue = each, queue
        self._turns: dict[Row, int] = {}  # of the rows that anybody changes at this moment
        self._waiting: dict[Row, deque[asyncio.Future[None]]] = {}

    async def take(self, row: Row) -> None:
        """Return when it is this call's turn, in the order they came; it ends by `give`.

        Raises:
            Unavailable: the row is held for long, the connections are stuck, or too many calls wait. Nothing was taken.
        """
        taken = self._turns.get(row, 0)
        if taken < self._each:
            self._turns[row] = taken + 1
            return
        turn = self._queue.turn()
        self._waiting.setdefault(row, deque()).append(turn)
        try:
            async with asyncio.timeout(HELD_SECONDS):
                await self._queue.wait(turn)
        except BaseException as exc:
            if turn.done():
                self.give(row)  # it came at the moment of giving up
            else:
                turn.cancel()  # `give` passes it over
            if isinstance(exc, TimeoutError):
                raise Unavailable("what it would change is held by other calls; try again shortly") from None
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
                return
        taken = self._turns.pop(row) - 1
        if taken:
            self._turns[row] = taken
