"""Appends while processes are killed: servers, backends, the postmaster of the embedded Postgres.

Writers repeat what was not answered, with the same ids, until it is. What is stored in the end is compared with what
was acknowledged, and how long it takes from a kill until a call succeeds again is measured.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatledger.storage import ConversationStore
from chatledger.storage.embedded import EmbeddedPostgres
from tests.driver import connect
from tests.postgres_processes import postmaster_of
from tests.reliability.doors import HttpDoor, StdioDoor, StoreDoor, ToolDoor
from tests.reliability.history import Call, Door, History, Refused, Said, Unknown
from tests.reliability.server_processes import http_servers

AFTER_SENDING = 0.03  # seconds at most between a request and the kill (chosen: some calls have ended by then)
ANSWERED_WITHIN = 60.0  # seconds in which a writer's repeats must have been answered (chosen: twice a call's deadline)
BATCH = 20  # messages of one append
# Seconds on average from an answer to a writer's next append, so that a killed server has a processor to start on.
BETWEEN_APPENDS = 0.04
Kill = Callable[[random.Random], Awaitable[None]]


@dataclass(slots=True)
class Ground:
    """Where it happens: ways into one store, and what can be killed there, by name."""

    doors: Sequence[Door]
    kills: Mapping[str, Kill]
    probes: Sequence[Door]
    """Doors that must answer again after a kill of whatever they stand on."""


@dataclass(slots=True)
class Figures:
    """What a campaign saw."""

    kills: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from each kill until an append that was begun after it was acknowledged through every door left."""
    acknowledged: int = 0
    unknown: int = 0


def names_of(seed: int, users: int) -> list[str]:
    """The users of a campaign; the last is the one who probes whether it goes on after a kill."""
    return [*(f"user {seed} {number}" for number in range(users)), f"probe {seed}"]


class Campaign:
    """Users with a conversation each, whose writers append for as long as there is somebody to kill."""

    def __init__(self, ground: Ground, seed: int, *, users: int = 3, writers: int = 2) -> None:
        self.ground, self.seed, self.users, self.writers = ground, seed, users, writers
        self.history, self.figures = History(f"kills {seed}"), Figures()
        self._sent, self._over = asyncio.Event(), False
        self._texts = 0

    async def run(self, kills: Mapping[str, int], *, messages: int) -> History:
        """So many kills of each kind, in an order by the seed, and at least so many acknowledged messages."""
        chance = random.Random(f"{self.seed}/kills")
        order = [kind for kind, count in kills.items() for _ in range(count)]
        chance.shuffle(order)
        *names, probe = names_of(self.seed, self.users)
        own = {user: await self._conversation(user) for user in (*names, probe)}
        writers = [
            asyncio.create_task(self._writer(user, own[user], f"{user}/{n}"))
            for user in names
            for n in range(self.writers)
        ]
        try:
            for place, kind in enumerate(order, 1):
                await self._kill(kind, probe, own[probe], chance)
                await self._reach(messages * place // len(order), writers)
            await self._reach(messages, writers)
        finally:
            self._over = True
            ended = await asyncio.gather(*writers, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, BaseException):
                raise outcome
        for user, conversation in own.items():
            await self._answered(Call(user=user, verb="load", start=0, conversation=conversation, final=True), chance)
        self.figures.unknown = self.history.count("unknown")
        return self.history

    async def _reach(self, messages: int, writers: Sequence[asyncio.Task[None]]) -> None:
        """Return when so many messages are acknowledged, or a writer has failed."""
        while self.figures.acknowledged < messages and not any(writer.done() for writer in writers):
            await self._next_send()

    async def _next_send(self) -> None:
        self._sent.clear()
        await asyncio.wait_for(self._sent.wait(), ANSWERED_WITHIN)

    async def _kill(self, kind: str, probe: str, conversation: str, chance: random.Random) -> None:
        await self._next_send()
        await asyncio.sleep(chance.uniform(0, AFTER_SENDING))
        killed = time.monotonic()
        await self.ground.kills[kind](chance)
        await asyncio.gather(*(self._append(probe, conversation, 1, chance, door) for door in self.ground.probes))
        self.figures.recovery.setdefault(kind, []).append(time.monotonic() - killed)
        self.figures.kills[kind] = self.figures.kills.get(kind, 0) + 1

    async def _conversation(self, user: str) -> str:
        call = Call(user=user, verb="create", start=0, key="k")
        await self._answered(call, random.Random(user))
        assert call.made is not None
        return call.made.conversation

    async def _writer(self, user: str, conversation: str, seed: str) -> None:
        chance = random.Random(seed)
        while not self._over:
            await self._append(user, conversation, BATCH, chance)
            await asyncio.sleep(chance.uniform(0, 2 * BETWEEN_APPENDS))

    async def _append(
        self, user: str, conversation: str, number: int, chance: random.Random, door: Door | None = None
    ) -> None:
        said = []
        for _ in range(number):
            self._texts += 1
            said.append(Said(f"{self.seed} {self._texts}", str(self._texts)))
        call = Call(user=user, verb="append", start=0, conversation=conversation, said=tuple(said))
        await self._answered(call, chance, door)
        self.figures.acknowledged += number

    async def _answered(self, call: Call, chance: random.Random, door: Door | None = None) -> None:
        """Repeat the call until it is acknowledged; every attempt is in the history.

        Raises:
            AssertionError: it was not within ANSWERED_WITHIN.
        """
        began = time.monotonic()
        while call.outcome != "acknowledged":
            attempt = Call(
                user=call.user,
                verb=call.verb,
                start=time.monotonic(),
                conversation=call.conversation,
                said=call.said,
                key=call.key,
                final=call.final,
            )
            await self._attempt(attempt, door or chance.choice(self.ground.doors))
            self.history.calls.append(attempt)
            call.outcome, call.made = attempt.outcome, attempt.made
            assert time.monotonic() - began < ANSWERED_WITHIN, f"a {call.verb} was not answered: {attempt.code}"
            if call.outcome != "acknowledged":
                await asyncio.sleep(chance.uniform(0.01, 0.1))  # as a client would, before it asks again

    async def _attempt(self, call: Call, door: Door) -> None:
        self._sent.set()
        try:
            if call.verb == "create":
                call.made = await door.create(call.user, call.key or "")
            elif call.verb == "append":
                call.receipts = tuple(await door.append(call.user, call.conversation or "", call.said))
            else:
                call.stored = tuple(await door.load(call.user, call.conversation or ""))
            call.outcome = "acknowledged"
        except Refused as refused:
            call.outcome, call.code = "refused", refused.code
        except Unknown as unknown:
            call.code = f"unanswered: {unknown.__cause__}"
        call.end = time.monotonic()


# ---- what is killed --------------------------------------------------------------------------------------------------


def of_the_database(root: Path) -> dict[str, Kill]:
    """The postmaster of the embedded Postgres below `root`, and one of its backends at work for a client."""

    async def postmaster(chance: random.Random) -> None:
        pid = postmaster_of(root)
        assert pid > 0
        os.kill(pid, signal.SIGKILL)

    async def backend(chance: random.Random) -> None:
        url = EmbeddedPostgres(root).url()
        assert url is not None
        watch = await connect(url)
        try:
            rows = await watch.fetch(
                "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        finally:
            await watch.close()
        os.kill(chance.choice([row["pid"] for row in rows]), signal.SIGKILL)

    return {"postmaster": postmaster, "backend": backend}


@asynccontextmanager
async def instances(root: Path) -> AsyncIterator[Ground]:
    """Two instances of the store in this process, on the embedded Postgres."""
    async with ConversationStore.embedded(root) as one, ConversationStore.embedded(root) as other:
        doors = [StoreDoor(one), StoreDoor(other)]
        yield Ground(doors, of_the_database(root), doors)


@asynccontextmanager
async def over_http(root: Path, number: int = 2) -> AsyncIterator[Ground]:
    """Server processes over HTTP, on the embedded Postgres. A killed one is started again, as its host would."""
    async with http_servers(number, DATA_DIR=root) as servers:

        async def server(chance: random.Random) -> None:
            killed = chance.choice(servers)
            killed.kill()
            await killed.start()

        doors = [HttpDoor(each) for each in servers]
        yield Ground(doors, {"server": server} | of_the_database(root), doors)


@asynccontextmanager
async def over_stdio(root: Path, users: Sequence[str]) -> AsyncIterator[Ground]:
    """A server process for each user over stdin and stdout. A killed one is started by the next call."""
    async with AsyncExitStack() as stack:
        doors = {user: StdioDoor(user, DATA_DIR=root) for user in users}
        for door in doors.values():
            stack.push_async_callback(door.aclose)

        async def server(chance: random.Random) -> None:
            await chance.choice(list(doors.values())).kill()

        shared = _OfItsUser(doors)
        yield Ground([shared], {"server": server} | of_the_database(root), [shared])


class _OfItsUser(ToolDoor):
    """Each call goes to the process of its user."""

    def __init__(self, doors: Mapping[str, StdioDoor]) -> None:
        self._doors = doors

    async def call(self, user: str, tool: str, **arguments: Any) -> dict[str, Any]:
        return await self._doors[user].call(user, tool, **arguments)
