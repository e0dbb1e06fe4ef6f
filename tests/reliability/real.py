"""Histories of the real store, with faults injected while they are made and healed before the last looks.

Two kinds: instances of the store in this process, each behind a proxy of its own; and server processes, two over HTTP
and one over stdio, that are killed and started again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from chatledger.storage import ConversationStore
from tests.driver import connect
from tests.reliability.doors import HttpDoor, StdioDoor, StoreDoor
from tests.reliability.history import Door, History
from tests.reliability.quiet import until_quiet
from tests.reliability.server_processes import HttpServer, http_servers
from tests.reliability.workload import Plan, Workload
from tests.wire_proxy import Moment, WireProxy

MOMENTS: list[Moment] = ["before", "after"]
Fault = Callable[[], Awaitable[None]]
INSTANCES = 3
WORST_PAUSE = 0.02  # seconds at most before a caller gives up (chosen: some calls have ended by then)
BETWEEN_FAULTS = 0.03  # seconds on average (chosen)
PLAN = Plan(steps=20, cancelled=0.3)


async def pause(chance: random.Random) -> None:
    await asyncio.sleep(chance.uniform(0, WORST_PAUSE))


async def terminate_a_backend(url: str, chance: random.Random) -> None:
    """End one of the database's connections from within the database, whatever it is doing."""
    killer = await connect(url)
    try:
        await killer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND "
            "pid <> pg_backend_pid() AND backend_type = 'client backend' "
            f"ORDER BY hashint4(pid + {chance.randrange(99)}) LIMIT 1"
        )
    finally:
        await killer.close()


def wire_faults(proxy: WireProxy, chance: random.Random) -> list[Fault]:
    """What a network does to the connections of a proxy; each is over when it returns, but for cuts still to come."""

    async def cut() -> None:
        proxy.cut(*chance.choices(MOMENTS, k=chance.randint(1, 3)))

    async def reset() -> None:
        proxy.cut_all()

    async def refuse() -> None:
        proxy.refusing = True
        await asyncio.sleep(chance.uniform(0, 0.3))
        proxy.refusing = False

    async def slow() -> None:
        proxy.delay = chance.uniform(0, 0.02)
        await asyncio.sleep(chance.uniform(0, 0.2))
        proxy.delay = 0.0

    async def swallow() -> None:
        proxy.black_hole = True
        await asyncio.sleep(chance.uniform(0, 0.1))
        proxy.black_hole = False
        proxy.cut_all()

    return [*[cut] * 6, reset, refuse, slow, swallow]


@asynccontextmanager
async def disturbed(faults: Sequence[Fault], chance: random.Random) -> AsyncIterator[list[str]]:
    """Faults one after the other for as long as the block runs; those that there were, by name."""
    over, met = asyncio.Event(), list[str]()

    async def disturb() -> None:
        while not over.is_set():
            fault = chance.choice(faults)
            await fault()
            met.append(fault.__name__)
            await asyncio.sleep(chance.expovariate(1 / BETWEEN_FAULTS))

    task = asyncio.create_task(disturb())
    try:
        yield met
    finally:
        over.set()
        await task


async def history_of_instances(url: str, seed: int) -> History:
    """Three instances of the store, each behind a proxy, shared by three users."""
    history, chance = History(f"instances {seed}"), random.Random(f"{seed}/faults")
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(WireProxy(url)) for _ in range(INSTANCES)]
        stores = [await stack.enter_async_context(ConversationStore.at(proxy.url)) for proxy in proxies]
        doors = [StoreDoor(store) for store in stores]

        async def terminate() -> None:
            await terminate_a_backend(url, chance)

        faults = [fault for proxy in proxies for fault in wire_faults(proxy, chance)] + [terminate] * 3
        workload = _workload(history, seed, dict.fromkeys(_users(history), doors))
        async with disturbed(faults, chance):
            await workload.run()
        for proxy in proxies:
            proxy.cut()
        await workload.finish()
    await until_quiet(url, 0)
    return history


class Processes:
    """Two servers over HTTP, which a proxy connects to the database, for any number of histories."""

    def __init__(self, url: str, proxy: WireProxy, servers: Sequence[HttpServer]) -> None:
        self.url, self.proxy, self.servers = url, proxy, servers

    async def history(self, seed: int, *, kills: int = 2) -> History:
        """With three users, of whom one has a server over stdio besides; so many kills of servers at most."""
        history, chance = History(f"processes {seed}"), random.Random(f"{seed}/faults")
        users = _users(history)
        stdio = StdioDoor(users[0], DATABASE_URL=self.proxy.url)
        left = kills

        async def terminate() -> None:
            await terminate_a_backend(self.url, chance)

        async def kill() -> None:
            nonlocal left
            if left:
                left -= 1
                server = chance.choice(self.servers)
                server.kill()
                await server.start()

        async def kill_stdio() -> None:
            nonlocal left
            if left:
                left -= 1
                await stdio.kill()

        doors: dict[str, Sequence[Door]] = {user: [HttpDoor(server) for server in self.servers] for user in users}
        doors[users[0]] = [*doors[users[0]], stdio]
        try:
            await stdio.list_conversations(users[0])  # it is up before the first fault
            workload = _workload(history, seed, doors)
            faults = [*wire_faults(self.proxy, chance), terminate, kill, kill, kill_stdio]
            async with disturbed(faults, chance):
                await workload.run()
            self.proxy.cut()
            await workload.finish()
        finally:
            await stdio.aclose()
        return history


@asynccontextmanager
async def processes(url: str) -> AsyncIterator[Processes]:
    """The servers, ended afterwards; their connections must end with them."""
    async with WireProxy(url) as proxy, http_servers(2, DATABASE_URL=proxy.url) as servers:
        yield Processes(url, proxy, servers)
    await until_quiet(url, 0)


def _users(history: History) -> list[str]:
    """Three of its own, so that all histories may share one database."""
    return [f"{name} of {history.name}" for name in ("alice", "bob", "carol")]


def _workload(history: History, seed: int, doors: dict[str, Sequence[Door]] | dict[str, list[StoreDoor]]) -> Workload:
    return Workload(history, seed, dict(doors), clock=time.monotonic, pause=pause, plan=PLAN)
