"""What does an append cost over a bare INSERT, and what do many callers gain by sharing statements?

uv run python -m benchmarks.appends [--rounds 7] [--seconds 0.5] [--flush 0 1 3] [--short]

One caller: `append_message` of the store against the INSERT of the same bytes in autocommit by asyncpg alone, into the
same table with its indexes and its foreign key, and into a table with nothing but columns. Then many callers at once,
with and without gathering, each on a conversation of its own, or all on one. Alternatives alternate in rounds; each
figure is the median of the ratios of the quietest rounds, with their range.

A commit waits until the log is on the disk. How long that takes is the disk's, from hundredths of a millisecond to some
of them, and the ratios follow it: `--flush` names delays in ms that are added to every flush (`commit_delay`), and
everything is measured once with each. Commits that come during the delay go with that flush, where a disk would have
them wait for the next one: what many callers gain by sharing statements is more there than it is here.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any
from uuid import uuid4

import asyncpg

from benchmarks import results
from chatledger.storage import ConversationStore, NewMessage, schema
from chatledger.storage.embedded import temporary

TEXT = "A message of three hundred characters, as people and models write them. " * 4 + "The end of it."
USERS = 256
INSERT = (
    "INSERT INTO {table} (user_id, conversation_id, seq, id, role, content, created_at) "
    "VALUES ($1, $2, $3, $4, $5, $6, statement_timestamp())"
)

Call = Callable[[int], Awaitable[Any]]


async def delays_and_rate(call: Call, callers: int, seconds: float) -> tuple[float, float]:
    """The median delay in ms, and calls a second, of so many callers at once."""
    delays: list[float] = []
    end = time.perf_counter() + seconds

    async def work(number: int) -> None:
        begin = time.perf_counter()
        while True:
            await call(number)
            before, begin = begin, time.perf_counter()
            delays.append(begin - before)
            if begin >= end:
                return

    began = time.perf_counter()
    await asyncio.gather(*map(work, range(callers)))
    return statistics.median(delays) * 1e3, len(delays) / (time.perf_counter() - began)


async def measure(url: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    raw = await asyncpg.connect(url)
    await raw.execute(
        "CREATE TABLE bare (user_id text, conversation_id uuid, seq bigint, id uuid, role text, content text, "
        "created_at timestamptz)"
    )
    numbers, conversation = count(1), uuid4()
    into_bare, into_ours = INSERT.format(table="bare"), INSERT.format(table="chatledger.messages")

    async def bare(_: int) -> None:
        await raw.execute(into_bare, "user-0", conversation, next(numbers), uuid4(), "user", TEXT)

    async def indexed(_: int) -> None:
        await raw.execute(into_ours, "raw", taken.id, next(numbers), uuid4(), "user", TEXT)

    message = NewMessage(role="user", content=TEXT)
    found: list[dict[str, Any]] = []
    async with ConversationStore.at(url) as gathering, ConversationStore.at(url) as single:
        single.database.may_gather = lambda: False  # type: ignore[method-assign]
        taken, _ = await single.create_conversation("raw")
        for number in range(USERS):
            await single.create_conversation(f"user-{number}")

        def appends(store: ConversationStore, users: int) -> Call:
            return lambda number: store.append_message(f"user-{number % users}", 1, message)

        pairs: list[tuple[str, Call, Call, int]] = [
            ("one caller, over an INSERT into the same table: time", appends(gathering, 1), indexed, 1),
            ("one caller, over an INSERT without any index: time", appends(gathering, 1), bare, 1),
            ("one caller, over the same ungathered: time", appends(gathering, 1), appends(single, 1), 1),
        ]
        for callers in (4, 16, 64, 256):
            for what, users in (("a conversation each", USERS), ("one conversation", 1)):
                pair = appends(gathering, users), appends(single, users)
                pairs.append((f"{callers} callers, {what}, over ungathered: rate", *pair, callers))
        for name, ours, other, callers in pairs:
            measured = results.Rounds(rounds)
            for _ in measured:
                delay, rate = await delays_and_rate(ours, callers, seconds)
                other_delay, other_rate = await delays_and_rate(other, callers, seconds)
                measured.note((delay / other_delay if callers == 1 else rate / other_rate, delay, other_delay))
            ratios, *delays = map(list, zip(*measured.kept(), strict=True))
            p50 = [round(statistics.median(side), 2) for side in delays]
            stolen = measured.stolen()
            print(f"| {name} | {results.told(ratios)} | {p50[0]} for {p50[1]} | {stolen} |", flush=True)
            found.append({"what": name, **results.ratio(ratios), "p50_ms": p50, "stolen": stolen})
    await raw.close()
    return found


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one side of a round")
    parser.add_argument("--flush", type=float, nargs="+", default=[0.0], help="ms that are added to each flush")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    how = (1, 0.02) if args.short else (args.rounds, args.seconds)
    figures: list[dict[str, Any]] = []
    for added in args.flush:
        print(f"\n{added:g} ms added to each flush\n")
        print("| what | ratio, median (range) | p50 ms | stolen by the host |\n|---|---|---|---|", flush=True)
        with temporary(commit_delay=f"{added * 1000:.0f}", commit_siblings="0") as url:
            schema.migrate(url)
            figures += [each | {"flush_ms": added} for each in asyncio.run(measure(url, *how))]
    if not args.short:
        results.write("appends", figures, load_before=load)


if __name__ == "__main__":
    main()
