"""Who may use a connection: as many calls at once as there are connections, the others in the order they came.

A call waits for as long as the connections go round, so that a burst of a thousand calls is served, only later; it
gives up when none came free for a while, for then they are stuck, and waiting would not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator

from chatledger.storage.errors import Unavailable

# Seconds in which no connection came free, after which a waiting call gives up (chosen: callers are told within two,
# and no statement of a tool but a search takes half as long on a database that is well).
STALLED_SECONDS = 1.5
WAITING = 10_000  # calls of one process that may wait at once (chosen: some 20 s of work, most of what a call may wait)


class ConnectionQueue:
    """Turns at the connections of one pool. For the tasks of one event loop."""

    def __init__(self, connections: int) -> None:
        self._free = connections
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._waits = 0
        self._opening = 0
        self._moved = 0.0

    async def take(self, since: float | None = None) -> None:
        """Return when it is this call's turn, which it ends by `give`. `since`: it has waited already, from then on.

        Raises:
            Unavailable: the connections are stuck, or too many calls wait. Nothing was taken.
        """
        if self._free:
            self._free -= 1
            return
        turn = self.turn()
        self._waiting.append(turn)
        try:
            await self.wait(turn, since)
        except BaseException:
            if turn.done():
                self.give()  # it came at the moment of giving up
            else:
                turn.cancel()  # `give` passes it over
            raise

    def turn(self) -> asyncio.Future[None]:
        """What a call waits for, by `wait`.

        Raises:
            Unavailable: too many calls wait.
        """
        if self._waits >= WAITING:
            raise _all_in_use()
        return asyncio.get_running_loop().create_future()

    async def wait(self, turn: asyncio.Future[None], since: float | None = None) -> None:
        """Return when the turn has come; `since` as in `take`.

        Raises:
            Unavailable: the connections are stuck. The turn may have come at that moment.
        """
        came = time.monotonic() if since is None else since
        self._waits += 1
        try:
            while not turn.done():
                left = max(self._moved, came) + STALLED_SECONDS - time.monotonic()
                # A database that wakes takes its time, and whoever connects gives up by itself. Where a connection is
                # free the turn is another one, which ends with its call.
                if self._opening or self._free:
                    left = STALLED_SECONDS
                if left <= 0:
                    raise _all_in_use()
                await asyncio.wait([turn], timeout=left)
        finally:
            self._waits -= 1

    def give(self) -> None:
        """End a turn: the call that waits longest has the next."""
        self._moved = time.monotonic()
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Inside it a connection may be being opened, which nobody takes for being stuck."""
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1
            self._moved = time.monotonic()


def _all_in_use() -> Unavailable:
    return Unavailable("all connections to the database are in use; try again shortly")
