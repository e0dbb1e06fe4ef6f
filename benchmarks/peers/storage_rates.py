"""How fast do the stores append, load and list, each by its own interface, on one Postgres with pools of one size?

uv run --with-requirements benchmarks/peers/requirements.txt python -m benchmarks.peers.storage_rates
    [--rounds 5] [--seconds 1] [--list 10000] [--stores NAME ...] [--short]

Stores take turns, with one task call by call, with many within a round. A ratio compares two measurements of one round
and says how many times chatledger's time a store needs: above 1 chatledger is ahead. Each figure is the median of the
rounds' ratios, with their range. What many tasks stored is loaded again and counted, and the time is that for a message
that is there.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg

from benchmarks import results
from benchmarks.peers.compared import OURS, STORES
from benchmarks.peers.stores import POOL, Conversation, Lists, Store
from chatledger.storage import schema
from chatledger.storage.embedded import temporary
from tests.wire_proxy import WireProxy

TEXT = "A message of three hundred characters, as people and models write them. " * 4 + "The end of it."
TASKS = 64
PAGE = 20


class Sizes(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    """Of many tasks, for one store in one round."""
    appends: int
    """Of one task, for one store in one round; a quarter as many loads."""
    appended_to: tuple[int, ...]
    """Messages in the conversation before."""
    loaded: tuple[int, ...]
    listed: int


class Burst(NamedTuple):
    """What many tasks did."""

    rate: float
    """Messages a second that were acknowledged and are there."""
    acknowledged: int
    lost: int
    errors: Counter[str]


async def burst(store: Store, names: list[str], seconds: float) -> Burst:
    """As many tasks as names, each with its own view of the conversation that it names, and one append at least.

    Who is refused opens the conversation anew.
    """
    errors: Counter[str] = Counter()
    acknowledged: set[str] = set()
    numbers = count()

    async def work(name: str, conversation: Conversation) -> None:
        while True:
            content = f"{next(numbers)} {TEXT}"
            try:
                await conversation.append(content)
                acknowledged.add(content)
            except Exception as exc:  # noqa: BLE001  # whatever it was, it is counted
                errors[type(exc).__name__] += 1
                conversation = await store.conversation(name)
            if time.perf_counter() >= end:
                return

    views = [await store.conversation(name) for name in names]
    began = time.perf_counter()
    end = began + seconds
    await asyncio.gather(*map(work, names, views))
    took = time.perf_counter() - began
    found = {content for name in set(names) for content in await (await store.conversation(name)).load()}
    kept = len(acknowledged & found)
    return Burst(kept / took, len(acknowledged), len(acknowledged) - kept, errors)


class Experiment:
    """The same work for every store in turn."""

    def __init__(self, stores: dict[str, Store], sizes: Sizes) -> None:
        self.stores, self.sizes = stores, sizes
        self.times: dict[str, dict[str, list[float]]] = {}
        """By row and store, a figure for each round: the more the worse."""
        self.bursts: dict[str, dict[str, list[Burst]]] = {}

    async def run(self) -> None:
        for name, store in self.stores.items():
            await self._fill(name, store)
        for number in range(self.sizes.rounds):
            names = list(self.stores)
            turn = number % len(names)
            await self._round(number, names[turn:] + names[:turn])
            print(f"round {number + 1} of {self.sizes.rounds}", flush=True)

    async def _fill(self, name: str, store: Store) -> None:
        began = time.perf_counter()
        for size in self.sizes.appended_to:
            for number in range(self.sizes.rounds if size == 0 else 1):
                conversation = await store.conversation(_appended(size, number))
                if size:
                    await conversation.extend([TEXT] * size)
        for size in self.sizes.loaded:
            await (await store.conversation(f"load {size}")).extend([TEXT] * size)
        if isinstance(store, Lists):
            missing = iter(range(self.sizes.listed))

            async def make() -> None:
                for number in missing:
                    await store.conversation(f"listed {number}")

            await asyncio.gather(*(make() for _ in range(POOL)))
        print(f"{name} is filled: {time.perf_counter() - began:.0f} s", flush=True)

    async def _round(self, number: int, names: list[str]) -> None:
        sizes, stores = self.sizes, self.stores
        for size in sizes.appended_to:
            found = {name: await stores[name].conversation(_appended(size, number)) for name in names}
            appends = {name: partial(conversation.append, TEXT) for name, conversation in found.items()}
            await self._alternate(f"append at {size:,}", appends, sizes.appends)
        for size in sizes.loaded:
            found = {name: await stores[name].conversation(f"load {size}") for name in names}
            loads = {name: conversation.load for name, conversation in found.items()}
            assert {len(await load()) for load in loads.values()} == {size}
            await self._alternate(f"load {size:,}", loads, max(1, sizes.appends // 4))
        for name in names:
            own = [f"own {number} {task}" for task in range(TASKS)]
            self._burst(f"{TASKS} tasks, a conversation each", name, await burst(self.stores[name], own, sizes.seconds))
        for name in names:
            one = [f"one {number}"] * TASKS
            self._burst(f"{TASKS} tasks, one conversation", name, await burst(self.stores[name], one, sizes.seconds))
        listing = {name: store for name in names if isinstance(store := stores[name], Lists)}
        assert {len(await store.first_page(PAGE)) for store in listing.values()} == {PAGE}
        pages = {name: partial(store.first_page, PAGE) for name, store in listing.items()}
        await self._alternate(f"first {PAGE} of {sizes.listed:,}", pages, 3)

    async def _alternate(self, row: str, calls: Mapping[str, Callable[[], Awaitable[Any]]], times: int) -> None:
        """The median of each, call by call in turn, so that what else the machine does is the same for all."""
        delays: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(times + 1):
            for name, call in calls.items():
                began = time.perf_counter()
                await call()
                if turn:  # the first warms what the store keeps for the conversation
                    delays[name].append((time.perf_counter() - began) * 1e3)
        for name, seen in delays.items():
            self._seen(row, name, statistics.median(seen))

    def _seen(self, row: str, name: str, figure: float) -> None:
        self.times.setdefault(row, {}).setdefault(name, []).append(figure)

    def _burst(self, row: str, name: str, seen: Burst) -> None:
        self.bursts.setdefault(row, {}).setdefault(name, []).append(seen)
        self._seen(row, name, 1e3 / seen.rate if seen.rate else float("inf"))  # ms for one that is there

    def told(self) -> list[dict[str, Any]]:
        """Print a line for each row, and give all figures."""
        others = [name for name in self.stores if name != OURS]
        print("\n| " + " | ".join(["over chatledger", *others]) + " |\n" + "|---" * (len(others) + 1) + "|")
        rows = []
        for row, seen in self.times.items():
            cells = []
            figures: dict[str, Any] = {}
            for name, times in seen.items():
                ratios = [theirs / ours for theirs, ours in zip(times, seen[OURS], strict=True)]
                figures[name] = {"p50_ms": round(statistics.median(times), 3)}
                if name != OURS:
                    figures[name] |= {
                        "ratio": round(statistics.median(ratios), 2),
                        "range": [round(min(ratios), 2), round(max(ratios), 2)],
                    }
                if row in self.bursts:
                    figures[name] |= _summed(self.bursts[row][name])
            for name in others:
                figure = figures.get(name)
                cells.append("none" if figure is None else _cell(figure))
            print(f"| {row} | " + " | ".join(cells) + " |")
            rows.append({"what": row, "stores": figures})
        return rows


def _appended(size: int, number: int) -> str:
    return f"append {size} {number if size == 0 else ''}"


def _summed(bursts: list[Burst]) -> dict[str, Any]:
    errors: Counter[str] = Counter()
    for each in bursts:
        errors += each.errors
    return {
        "a_second": round(statistics.median(each.rate for each in bursts)),
        "acknowledged": sum(each.acknowledged for each in bursts),
        "lost": sum(each.lost for each in bursts),
        "errors": dict(errors),
    }


def _cell(figure: dict[str, Any]) -> str:
    text = f"{figure['ratio']:.2f} ({figure['range'][0]:.2f}-{figure['range'][1]:.2f})"
    if figure.get("lost"):
        text += f", {figure['lost']:,} of {figure['acknowledged']:,} lost"
    if figure.get("errors"):
        text += f", {sum(figure['errors'].values()):,} errors for {figure['acknowledged']:,}"
    return text


async def round_trips(url: str, names: list[str]) -> dict[str, dict[str, int]]:
    """Exactly, of one call each: with the conversation in hand, and by a caller that has its name alone."""
    found: dict[str, dict[str, int]] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            async with WireProxy(url, Path(folder)) as proxy, STORES[name].open(proxy.url, False) as store:
                conversation = await store.conversation("round trips")
                for _ in range(3):  # until everything that is prepared once is prepared
                    await conversation.append(TEXT)
                    await conversation.load()
                begun = proxy.round_trips
                await conversation.append(TEXT)
                appended = proxy.round_trips
                await conversation.load()
                loaded = proxy.round_trips
                await (await store.conversation("round trips")).append(TEXT)
                by_name = proxy.round_trips
        found[name] = {"append": appended - begun, "load": loaded - appended, "append by name": by_name - loaded}
        print(f"| round trips, {name} | {found[name]} |", flush=True)
    return found


async def measure(url: str, names: list[str], sizes: Sizes) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        stores = {name: await stack.enter_async_context(STORES[name].open(url, False)) for name in names}
        experiment = Experiment(stores, sizes)
        await experiment.run()
        rows = experiment.told()
    connection = await asyncpg.connect(url)
    postgres = await connection.fetchval("SHOW server_version")
    await connection.close()
    return {
        "postgres": postgres,
        "pool": POOL,
        "stores": {name: {"title": STORES[name].title, "versions": STORES[name].versions()} for name in names},
        "rows": rows,
        "round_trips": await round_trips(url, names),
    }


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of many tasks on one store in one round")
    parser.add_argument("--list", type=int, default=10_000, help="conversations to list the first of")
    parser.add_argument("--stores", nargs="+", choices=list(STORES), default=list(STORES), help="besides chatledger")
    args = parser.parse_args()
    sizes = Sizes(args.rounds, args.seconds, 20, (0, 1_000, 5_000), (100, 1_000), args.list)
    if args.short:
        sizes = Sizes(1, 0.1, 4, (0, 20), (10,), 30)
    load = os.getloadavg()[0]
    names = [OURS, *(name for name in args.stores if name != OURS)]
    with temporary() as url:
        schema.migrate(url)
        figures = asyncio.run(measure(url, names, sizes))
    if not args.short:
        results.write("peers_storage", figures, load_before=load)


if __name__ == "__main__":
    main()
