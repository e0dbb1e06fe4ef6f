"""What does each call cost the database, and how much would a Neon compute of each size carry?

uv run python -m benchmarks.capacity [--messages 200000] [--short]

Measured are CPU time of all of Postgres' processes, bytes of its log, and bytes on disk, of calls of the store on 100
users with texts of 280 characters. The rest is arithmetic: a compute of one unit has one such processor and 4 GB of
memory. It says nothing of Neon's network and storage, which nobody has measured here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import asyncpg

from benchmarks import results
from benchmarks.search import texts
from chatledger.storage import ConversationStore, NewMessage, schema
from chatledger.storage.embedded import temporary
from chatledger.storage.engine import POOL_OVERFLOW, POOL_SIZE

USERS: Final = 100
GATHERED: Final = 64  # callers at once
# Compute units -> memory in GB, and max_connections, of which 7 are Neon's own: https://neon.com/docs/connect/connection-pooling
SIZES: Final = {0.25: (1, 104), 0.5: (2, 209), 1.0: (4, 419), 2.0: (8, 839), 4.0: (16, 1678), 8.0: (32, 3357)}
RESERVED: Final = 7
BUSY: Final = 0.5  # of the processor is what may be planned with: above it calls begin to wait (chosen)
CACHED: Final = 0.75  # of the memory is what Neon's local file cache may take: https://neon.com/docs/extensions/neon


class Postgres:
    """The processes of an embedded server."""

    def __init__(self, data: Path) -> None:
        self._postmaster = int((data / "postmaster.pid").read_text().split()[0])

    def cpu_us(self) -> float:
        """CPU time of those that run, so far (Linux)."""
        of = self._postmaster
        children = Path(f"/proc/{of}/task/{of}/children").read_text().split()
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in (of, *children)) / 1000


async def measure(url: str, messages: int) -> dict[str, Any]:
    raw = await asyncpg.connect(url)
    postgres = Postgres(Path(await raw.fetchval("SHOW data_directory")))
    said = texts(2_000)
    found: dict[str, Any] = {"calls": {}}
    async with ConversationStore.at(url) as store:
        for user in range(USERS):
            for _ in range(10):
                await store.create_conversation(f"user-{user}")

        async def one(number: int) -> object:
            message = NewMessage(role="user", content=said[number % len(said)], client_message_id=f"key {number}")
            return await store.append_message(f"user-{number % USERS}", 1 + number // USERS % 10, message)

        for number in range(0, messages, 100):
            batch = [NewMessage(role="user", content=said[(number + n) % len(said)]) for n in range(100)]
            await store.append_messages(f"user-{number // 100 % USERS}", 1 + number // 100 // USERS % 10, batch)
        await raw.execute("VACUUM ANALYZE")
        rows = await raw.fetch(
            "SELECT relname, pg_table_size(oid) AS bytes FROM pg_class "
            "WHERE relname LIKE 'messages%' AND relkind IN ('r', 'i')"
        )
        found["bytes_a_message"] = {row["relname"]: round(row["bytes"] / messages) for row in rows}

        async def alone(call: Callable[[int], Awaitable[object]], count: int) -> int:
            for number in range(count):
                await call(number)
            return count

        async def gathered(count: int) -> int:
            numbers = iter(range(10**6, 10**6 + count))

            async def caller() -> None:
                for number in numbers:
                    await one(number)

            await asyncio.gather(*(caller() for _ in range(GATHERED)))
            return count

        few = max(50, messages // 50)
        calls: dict[str, Callable[[], Awaitable[int]]] = {
            "append": lambda: alone(one, few),
            f"append, {GATHERED} callers at once": lambda: gathered(few * 4),
            "history of 50": lambda: alone(lambda n: store.load_history(f"user-{n % USERS}", limit=50), few),
            "first page of the list": lambda: alone(lambda n: store.list_conversations(f"user-{n % USERS}"), few),
            "search for a word": lambda: alone(
                lambda n: store.search_messages(f"user-{n % USERS}", said[1].split()[n % 20]), max(20, few // 10)
            ),
        }
        for name, run in calls.items():
            log, cpu = await raw.fetchval("SELECT pg_current_wal_lsn()"), postgres.cpu_us()
            count = await run()
            cpu = (postgres.cpu_us() - cpu) / count
            written = await raw.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", log) / count
            print(f"| {name} | {cpu:,.0f} | {written:,.0f} |", flush=True)
            found["calls"][name] = {"cpu_us": round(cpu), "log_bytes": round(written)}
    await raw.close()
    return found


def print_sizes(found: dict[str, Any]) -> None:
    calls, bytes_each = found["calls"], sum(found["bytes_a_message"].values())
    append, history = calls["append"]["cpu_us"], calls["history of 50"]["cpu_us"]
    print(f"\nbytes of a message on disk: {bytes_each:,} {found['bytes_a_message']}")
    print("\n| CU | appends/s | histories of 50/s | turns/s | messages in memory | server processes |")
    print("|---|---|---|---|---|---|")
    for units, (memory, connections) in SIZES.items():
        budget = units * 1e6 * BUSY
        turns = budget / (2 * append + history)  # a history is loaded, and two messages appended
        held = memory * CACHED * 1e9 / bytes_each / 1e6
        processes = (connections - RESERVED) // (POOL_SIZE + POOL_OVERFLOW)
        print(
            f"| {units:g} | {budget / append:,.0f} | {budget / history:,.0f} | {turns:,.0f} | {held:.1f} million "
            f"| {processes} |"
        )


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print("| call | CPU of Postgres, us | bytes of its log |\n|---|---|---|")
    with temporary() as url:
        schema.migrate(url)
        found = asyncio.run(measure(url, 2_000 if args.short else args.messages))
    print_sizes(found)
    if not args.short:
        results.write("capacity", found, load_before=load)


if __name__ == "__main__":
    main()
