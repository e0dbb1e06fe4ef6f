"""Appends of many callers at one moment, gathered: what arrives while others are on the wire goes out together.

There is no timer. A lone caller waits for nobody, nor do a few: their messages go in statements of their own. Many
share one round trip and one flush of the log. A receipt is given after the commit of the statement that held the
message, as ever.

Each conversation is a lane: of one lane one statement at most is on the wire, for another would wait for its lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from chatledger.storage import append_queries, engine
from chatledger.storage.engine import Database
from chatledger.storage.errors import UNKNOWN_OUTCOME, StorageError, Unavailable, Unforeseen
from chatledger.storage.ids import uuid7
from chatledger.storage.records import ConversationRef
from chatledger.storage.validation import MessageColumns

# In messages. Past 128 the cost of each falls no further, and below 4 statements side by side cost less than one for
# all, unless two are for one conversation (measured: docs/decisions/0014-gathered-appends.md).
LARGEST, SMALLEST = 128, 4
SHARED_FROM = 16  # to be shared out over several batches more must wait; below, a smaller one saves nothing (measured)
IN_FLIGHT = 4  # batches at once; best from 4 to 256 callers (measured)
BATCH_CHARS = 4_000_000  # of one batch (chosen: a few of the largest messages, some ten thousand usual ones)
WAITING_MESSAGES, WAITING_CHARS = 10_000, 64_000_000  # of one process (chosen: a second's work, a bounded memory)
MANY_ENDS = 1_000  # answers that are kept before those that were given are looked for (chosen: a few calls' worth)
# Seconds after which what is on the wire no longer keeps others from being sent: it waits for a lock, or for a database
# that has stopped, which the queue for connections sees to (chosen: above a distant database's round trip).
PLACE_SECONDS = 0.25

Alone: TypeAlias = Callable[[], Awaitable[list[Any]]]
"""Appends one message by a statement of its own; the rows that it answers with."""

_Lane: TypeAlias = tuple[str, UUID | int]
"""A conversation, as its user's calls name it."""


class _Waiting(NamedTuple):
    lane: _Lane
    message: MessageColumns
    alone: Alone
    rows: asyncio.Future[list[Any]]
    chars: int


class AppendBatcher:
    """Appends to one database, gathered. For the tasks of one event loop."""

    def __init__(self, database: Database, *, quota: int | None) -> None:
        self._database, self._quota = database, quota
        self._lanes: dict[_Lane, deque[_Waiting]] = {}  # those that have anything waiting or on the wire
        self._ready: deque[_Lane] = deque()  # those that have something waiting, and nothing on the wire
        self._messages = self._chars = 0  # that wait
        self._in_flight = 0
        self._starting = self._closing = False
        self._crowded = False  # as many waited last as are worth a statement for all
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps none alive
        self._ends: deque[tuple[float, asyncio.Future[list[Any]]]] = deque()  # of those not answered, the first first
        self._many_ends = MANY_ENDS
        self._timer: asyncio.TimerHandle | None = None

    async def append(
        self, user_id: str, conversation: ConversationRef, message: MessageColumns, alone: Alone
    ) -> list[Any]:
        """The rows of `append_queries.append_message` for it, however it was sent; ended by the deadline of a call.

        A message that Postgres refuses fails alone. A caller that is cancelled before its message was sent leaves
        nothing behind; afterwards the append goes on.

        Raises:
            StorageError: as `alone`, or Unavailable when too many wait: then nothing was sent.
        """
        if not self._database.may_gather():
            return await alone()
        lane = (user_id, conversation)
        few = not self._crowded and not self._ready and len(self._lanes) < SMALLEST and lane not in self._lanes
        if few or not (self._in_flight or self._lanes):
            return await self._undisturbed(lane, alone)
        chars = sum(len(value) for value in message if value is not None)
        if self._messages >= WAITING_MESSAGES or self._chars + chars > WAITING_CHARS:
            raise Unavailable("too many messages wait to be stored; try again shortly")
        item = _Waiting(lane, message, alone, self._answer_in_time(), chars)
        if lane not in self._lanes:
            self._lanes[lane] = deque()
            self._ready.append(lane)
        self._wait(item)
        self._go_on()
        return await item.rows

    @contextlib.asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """While the block closes the database, nothing more is sent: what waits is cancelled."""
        self._closing = True
        for waiting in self._lanes.values():
            for item in waiting:
                item.rows.cancel()
        try:
            yield
            if self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            self._closing = False
            self._ends.clear()
            if self._timer is not None:  # the next use may be on another loop
                self._timer.cancel()
                self._timer = None

    # ---- deadlines -------------------------------------------------------------------------------------------------

    def _answer_in_time(self) -> asyncio.Future[list[Any]]:
        """A future that fails after CALL_SECONDS. One timer does for all, as they come in the order of their ends."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Any]] = loop.create_future()
        while self._ends and self._ends[0][1].done():
            self._ends.popleft()
        if len(self._ends) >= self._many_ends:  # behind one that waits for long
            self._ends = deque(end for end in self._ends if not end[1].done())
            self._many_ends = max(MANY_ENDS, 2 * len(self._ends))
        self._ends.append((loop.time() + engine.CALL_SECONDS, answer))
        if self._timer is None:
            self._timer = loop.call_at(self._ends[0][0], self._end)
        return answer

    def _end(self) -> None:
        loop = asyncio.get_running_loop()
        while self._ends and (self._ends[0][1].done() or self._ends[0][0] <= loop.time()):
            answer = self._ends.popleft()[1]
            if not answer.done():
                late = Unavailable(UNKNOWN_OUTCOME)
                late.__cause__ = TimeoutError()
                answer.set_exception(late)
        self._timer = loop.call_at(self._ends[0][0], self._end) if self._ends else None

    # ---- what waits ------------------------------------------------------------------------------------------------

    def _wait(self, item: _Waiting, *, first: bool = False) -> None:
        waiting = self._lanes[item.lane]
        (waiting.appendleft if first else waiting.append)(item)
        self._messages += 1
        self._chars += item.chars

    def _take(self) -> list[_Waiting]:
        """The next of those that wait, whose lanes are on the wire now: of one lane none twice with the same key."""
        batch: list[_Waiting] = []
        chars = 0
        # While Postgres stores one part of them this process can answer another, so each free place has its share.
        share = max(SHARED_FROM, -(-self._messages // max(1, IN_FLIGHT - self._in_flight)))
        while self._ready and len(batch) < min(share, LARGEST):
            lane = self._ready.popleft()
            waiting, before = self._lanes[lane], len(batch)
            keys: set[str] = set()
            while waiting and len(batch) < LARGEST:
                item, key = waiting[0], waiting[0].message.client_message_id
                if key in keys or (batch and chars + item.chars > BATCH_CHARS):
                    break
                waiting.popleft()
                self._messages -= 1
                self._chars -= item.chars
                if item.rows.done():  # its caller was cancelled
                    continue
                if key is not None:
                    keys.add(key)
                batch.append(item)
                chars += item.chars
            if len(batch) == before:
                self._landed(lane)
                if waiting:  # there is no room for the next in this batch
                    return batch
        return batch

    def _landed(self, lane: _Lane) -> None:
        """Nothing of the lane is on the wire any more: what waits in it may go, whatever went with it."""
        if self._lanes[lane]:
            self._ready.append(lane)
            self._go_on()
        else:
            del self._lanes[lane]

    # ---- what is on the wire ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """One of the places in flight, for as long as the block takes, but not for longer than PLACE_SECONDS."""
        self._in_flight += 1
        given_up = False

        def give_up() -> None:
            nonlocal given_up
            if not given_up:
                given_up = True
                self._in_flight -= 1
                self._go_on()

        timer = asyncio.get_running_loop().call_later(PLACE_SECONDS, give_up)
        try:
            yield
        finally:
            timer.cancel()
            give_up()
            self._go_on()  # even where the place was given up before: what waited behind this may go now

    async def _undisturbed(self, lane: _Lane, alone: Alone) -> list[Any]:
        self._lanes[lane] = deque()
        with self._place():
            try:
                return await alone()
            finally:
                self._landed(lane)

    def _go_on(self) -> None:
        if self._ready and not self._starting and self._in_flight < IN_FLIGHT:
            self._starting = True  # in the loop's next turn: callers of this one get in
            task = asyncio.create_task(self._flush())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _flush(self) -> None:
        self._starting = False
        batch = self._take()
        if not batch:
            return
        self._crowded = len(batch) >= SMALLEST
        with self._place():
            self._go_on()
            lanes: dict[_Lane, list[_Waiting]] = {}
            for item in batch:
                lanes.setdefault(item.lane, []).append(item)
            if len(batch) < SMALLEST and len(lanes) == len(batch):
                await asyncio.gather(*map(self._alone, batch))
                return
            left, in_turn = await self._together(batch)
            for lane in lanes:
                lanes[lane] = [item for item in lanes[lane] if item in left]
            await asyncio.gather(*(self._rest(lane, items, in_turn=in_turn) for lane, items in lanes.items()))

    async def _together(self, batch: list[_Waiting]) -> tuple[list[_Waiting], bool]:
        """Those that are still to be appended, and whether that is to be tried one after the other."""
        query = append_queries.append_batch(
            [item.lane[0] for item in batch],
            [item.lane[1] for item in batch],
            [uuid7() for _ in batch],
            [item.message for item in batch],
            quota=self._quota,
        )
        keyed = [item for item in batch if item.message.client_message_id is not None]
        try:
            found = await self._database.write(query, repeatable=len(keyed) == len(batch))
        except StorageError as exc:
            if exc.code not in ("unavailable", "schema_out_of_date"):
                return batch, True  # Postgres refused one of them, and nothing was stored
            # Where the outcome is unknown, a message may be sent once more by its key.
            again = keyed if exc.message == UNKNOWN_OUTCOME and len(keyed) < len(batch) else []
            for item in batch:
                if item not in again:
                    _fail(item, exc)
            return again, True
        except asyncio.CancelledError:  # the store is being closed
            for item in batch:
                item.rows.cancel()
            return [], False
        left = dict(enumerate(batch, 1))
        for row in found:
            item = left.pop(row["ord"])
            if row["user_id"] != item.lane[0]:
                _fail(item, Unforeseen("a statement found a row of another user"))
            elif not item.rows.done():
                item.rows.set_result([row])
        return list(left.values()), False

    async def _rest(self, lane: _Lane, items: list[_Waiting], *, in_turn: bool) -> None:
        """Append what a batch did not, of one lane: it waits for another writer, or learns why it is refused.

        Not `in_turn`: the first; the others wait again, for a batch will do now.
        """
        if not items:
            self._landed(lane)
            return
        alone = items if in_turn else items[:1]
        for item in reversed(items[len(alone) :]):
            self._wait(item, first=True)
        try:
            for item in alone:
                await self._answer(item)
        finally:
            self._landed(lane)

    async def _alone(self, item: _Waiting) -> None:
        try:
            await self._answer(item)
        finally:
            self._landed(item.lane)

    async def _answer(self, item: _Waiting) -> None:
        if self._closing:
            item.rows.cancel()
        if item.rows.done():
            return
        try:
            found = await item.alone()
        except Exception as exc:  # noqa: BLE001  # it is its caller's
            _fail(item, exc)
        except asyncio.CancelledError:  # the store is being closed
            item.rows.cancel()
        else:
            if not item.rows.done():
                item.rows.set_result(found)


def _fail(item: _Waiting, exc: Exception) -> None:
    if not item.rows.done():
        item.rows.set_exception(copy.copy(exc))  # each raises its own: a traceback grows where it is raised
