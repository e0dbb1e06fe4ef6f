"""Histories of stores in memory: requests and replies get lost, requests come twice, callers give up. Cheap to make."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from tests.reliability.history import History, Made, Receipt, Refused, Said, Stored, Unknown
from tests.reliability.model import Model
from tests.reliability.workload import Plan, Workload

T = TypeVar("T")
LOST_REQUEST, LOST_REPLY, TWICE = 0.08, 0.16, 0.22  # bounds of the shares of calls that meet such a fate
WORST_PAUSE = 12  # turns of the event loop


async def pause(chance: random.Random) -> None:
    for _ in range(chance.randrange(WORST_PAUSE)):
        await asyncio.sleep(0)


class LossyDoor:
    """A door to a store in memory, over a network that loses and repeats."""

    def __init__(self, store: Model, seed: str) -> None:
        self._store, self._chance = store, random.Random(seed)
        self.late: set[asyncio.Task[None]] = set()
        self.healed = False

    async def create(self, user: str, key: str) -> Made:
        return await self._through(lambda: self._store.create(user, key), repeatable=True)

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        repeatable = all(one.client_message_id is not None for one in said)
        return await self._through(lambda: self._store.append(user, conversation, said, expected), repeatable)

    async def load(self, user: str, conversation: str, latest: int | None = None) -> list[Stored]:
        return await self._through(lambda: self._store.load(user, conversation, latest), repeatable=False)

    async def list_conversations(self, user: str) -> list[str]:
        return await self._through(lambda: self._store.list_conversations(user), repeatable=False)

    async def _through(self, work: Callable[[], Awaitable[T]], repeatable: bool) -> T:
        fate = 1.0 if self.healed else self._chance.random()
        await pause(self._chance)
        if fate < LOST_REQUEST:
            raise Unknown
        if repeatable and LOST_REPLY <= fate < TWICE:
            copy = asyncio.create_task(self._copy(work))
            self.late.add(copy)
            copy.add_done_callback(self.late.discard)
        try:
            answer = await work()
        except Refused:
            await pause(self._chance)
            if fate < LOST_REPLY:
                raise Unknown from None
            raise
        await pause(self._chance)
        if fate < LOST_REPLY:
            raise Unknown
        return answer

    async def _copy(self, work: Callable[[], Awaitable[object]]) -> None:
        await pause(self._chance)
        with contextlib.suppress(Refused, Unknown):
            await work()


def simulate(store: Model, seed: int) -> History:
    """A history of this store with three users, each of whom has two doors. The same seed makes the same one."""
    return asyncio.run(_simulate(store, seed))


async def _simulate(store: Model, seed: int) -> History:
    history = History(f"simulated {seed}")
    ticks = itertools.count(1)
    doors = {user: [LossyDoor(store, f"{seed}/{user}/{n}") for n in range(2)] for user in ("alice", "bob", "carol")}
    workload = Workload(history, seed, doors, clock=lambda: next(ticks), pause=pause, plan=Plan())
    await workload.run()
    for door in (door for own in doors.values() for door in own):
        if door.late:
            await asyncio.wait(door.late)
        door.healed = True
    await workload.finish()
    return history
