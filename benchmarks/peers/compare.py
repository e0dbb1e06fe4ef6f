"""The same appends and the same kills against two other stores of conversations, and against this one.

uv run --with-requirements benchmarks/peers/requirements.txt python -m benchmarks.peers.compare [--kills 20]

Several writers append to a few conversations through two instances of a store, first undisturbed, then while the
postmaster and backends are killed (and the postmaster started again, as a service manager would). What fails is
repeated, with the same message id where the store takes one. Counted is what each store did with what it acknowledged.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers.compared import STORES
from benchmarks.peers.stores import Conversation, Store
from chatledger.storage import schema
from chatledger.storage.embedded import EmbeddedPostgres
from tests.postgres_processes import ask, empty_root
from tests.reliability.kills import of_the_database

JUDGED = ("chatledger", "openai-agents", "langgraph")
CONVERSATIONS, INSTANCES = 4, 2
APPENDS = 60  # of each writer without kills; with kills, at least so many and until all kills are done
GIVE_UP_SECONDS = 180.0  # after which a store that does not come back ends the run (chosen: one gave no answer for 60)


class Sent(NamedTuple):
    """A message, when it was first sent, and when it was acknowledged."""

    content: str
    begun: float
    acknowledged: float


class Exercise:
    """Writers on a few conversations of one store, and perhaps kills meanwhile."""

    def __init__(self, instances: Sequence[Store], name: str, writers: int) -> None:
        self.instances, self.name, self.writers = instances, name, writers
        self.sent: dict[str, list[Sent]] = {f"{name} {n}": [] for n in range(CONVERSATIONS)}
        self.unanswered: set[str] = set()
        self.errors: Counter[str] = Counter()
        self.over = True
        self.answered = asyncio.Event()

    async def run(self, kills: int, root: Path, seed: int) -> dict[str, Any]:
        self.over = not kills
        began = time.monotonic()
        writing = asyncio.gather(
            *(self._writer(conversation, n) for conversation in self.sent for n in range(self.writers))
        )
        try:
            if kills:
                await self._kill(kills, root, random.Random(seed))
        finally:
            self.over = True
        await writing
        return {"seconds": time.monotonic() - began} | await self._judged()

    async def _kill(self, kills: int, root: Path, chance: random.Random) -> None:
        server, ways = EmbeddedPostgres(root), of_the_database(root)
        for number in range(kills):
            await asyncio.sleep(chance.uniform(0.2, 0.6))
            with contextlib.suppress(IndexError):  # no connection was open at that moment
                await ways[("postmaster", "backend")[number % 2]](chance)
            await asyncio.to_thread(server.start)
            await self._progress()

    async def _progress(self) -> None:
        """Return when something was acknowledged again."""
        self.answered.clear()
        await asyncio.wait_for(self.answered.wait(), GIVE_UP_SECONDS)

    async def _writer(self, conversation: str, number: int) -> None:
        chance, count = random.Random(f"{conversation} {number}"), 0
        held: dict[Store, Conversation] = {}
        while count < APPENDS or not self.over:
            count += 1
            content = f"{conversation} {number} {count}"
            begun = time.monotonic()
            while True:
                try:
                    async with asyncio.timeout(30):
                        store = chance.choice(self.instances)
                        if store not in held:
                            held[store] = await store.conversation(conversation)
                        await held[store].append(content, content)
                    break
                except Exception as exc:  # whatever it was, the outcome is unknown
                    held.clear()
                    self.errors[type(exc).__name__] += 1
                    self.unanswered.add(content)
                    if time.monotonic() - begun > GIVE_UP_SECONDS:
                        raise
                    await asyncio.sleep(chance.uniform(0.05, 0.2))
            self.sent[conversation].append(Sent(content, begun, time.monotonic()))
            self.answered.set()
            await asyncio.sleep(chance.uniform(0, 0.01))

    async def _judged(self) -> dict[str, Any]:
        lost = doubled = disordered = 0
        for conversation, sent in self.sent.items():
            found = await (await self.instances[0].conversation(conversation)).load()
            times, places = Counter(found), {content: place for place, content in enumerate(found)}
            lost += sum(each.content not in places for each in sent)
            doubled += sum(count - 1 for count in times.values())
            disordered += _disordered([each for each in sent if each.content in places], places)
        return {
            "acknowledged": sum(map(len, self.sent.values())),
            "lost": lost,
            "doubled": doubled,
            "out of order": disordered,
            "with an unknown outcome": len(self.unanswered),
            "errors": dict(self.errors),
        }


def _disordered(sent: list[Sent], places: dict[str, int]) -> int:
    """How many stand before one that was acknowledged before they were sent."""
    count, earliest = 0, float("inf")
    for each in sorted(sent, key=lambda each: places[each.content], reverse=True):
        count += earliest < each.begun
        earliest = min(earliest, each.acknowledged)
    return count


async def compare(root: Path, kills: int, seed: int) -> dict[str, Any]:
    url = await asyncio.to_thread(EmbeddedPostgres(root).start)
    told: dict[str, Any] = {}
    for store in map(STORES.__getitem__, JUDGED):
        name, found = store.title, {"versions": store.versions()}
        async with AsyncExitStack() as stack:
            instances = [await stack.enter_async_context(store.open(url, True)) for _ in range(INSTANCES)]
            for case, writers, how_many in (
                ("one writer a conversation", 1, 0),
                ("one writer a conversation, kills", 1, kills),
                ("four writers a conversation", 4, 0),
                ("four writers a conversation, kills", 4, kills),
            ):
                exercise = Exercise(instances, case, writers)
                found[case] = await exercise.run(how_many, root, seed)
                sys.stdout.write(f"{name}: {case}: {found[case]}\n")
                sys.stdout.flush()
        told[name] = found
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    results = Path(__file__).parent.parent / "results" / "peers.json"
    parser.add_argument("--json", type=Path, default=results)
    args = parser.parse_args()
    with empty_root() as root:
        server = EmbeddedPostgres(root)
        url = server.start()
        schema.migrate(url)
        told: dict[str, Any] = {
            "date": datetime.now(UTC).date().isoformat(),
            "postgres": ask(url, "SHOW server_version"),
            "kills": args.kills,
            "seed": args.seed,
        }
        told["stores"] = asyncio.run(compare(root, args.kills, args.seed))
        server.release()
    args.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
