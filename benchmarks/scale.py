"""Does it show in a call how much its user has?

uv run python -m benchmarks.scale [--rounds 9] [--short]

Two users in one database: one with a thousand conversations, of which one has a thousand messages, and one with a
million messages in a hundred thousand conversations, of which one has a hundred thousand. The same calls of the store
for either, in turn; ratios are medians of rounds of 40 calls each, with their range.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg

from benchmarks import results
from chatledger.storage import ConversationStore, NewMessage, schema
from chatledger.storage.embedded import temporary

CALLS: Final = 40  # of one side of a round
PAGE: Final = 20
RARE: Final = "zanzibar"  # the digests that the other messages are made of have no such letters
SAID = NewMessage(role="user", content="A message of three hundred characters, as people and models write them. " * 4)

# (user, conversations, messages of number 1, messages of each other one)
SIZES: Final = (("small", 1_000, 1_000, 1), ("large", 100_000, 100_000, 9))
SHORT_SIZES: Final = (("small", 100, 100, 1), ("large", 1_000, 1_000, 1))

_CONVERSATIONS = """
INSERT INTO chatledger.conversations (user_id, id, number, title, last_seq, created_at, updated_at)
SELECT $1, md5($1 || n)::uuid, n, 'conversation ' || n, CASE n WHEN 1 THEN $3::int ELSE $4::int END,
       timestamptz '2025-01-01' + n * interval '1 minute', timestamptz '2025-01-01' + n * interval '1 minute'
  FROM generate_series(1, $2::int) n
"""
# Of every conversation its first message, then its second: interleaved on the disk, as they are when they are written.
_MESSAGES = """
INSERT INTO chatledger.messages (user_id, conversation_id, seq, id, role, content, created_at)
SELECT $1, md5($1 || n)::uuid, seq, gen_random_uuid(), CASE seq % 2 WHEN 1 THEN 'user' ELSE 'assistant' END,
       'message ' || seq || ' of ' || n || ': ' || repeat(md5(seq::text || n) || ' ', 8)
       || CASE WHEN n = 1 AND seq = 3 THEN $5::text ELSE '' END,
       timestamptz '2025-01-01' + n * interval '1 minute'
  FROM (SELECT n, seq FROM generate_series(2, $2::int) n, generate_series(1, $4::int) seq
        UNION ALL
        SELECT 1, generate_series(1, $3::int)) made
 ORDER BY seq, n
"""


async def fill(url: str, sizes: tuple[tuple[str, int, int, int], ...]) -> None:
    connection = await asyncpg.connect(url, command_timeout=None)
    index = await connection.fetchval("SELECT indexdef FROM pg_indexes WHERE indexname = 'messages_search'")
    await connection.execute("DROP INDEX chatledger.messages_search")
    for user, conversations, first, each in sizes:
        began = time.perf_counter()
        await connection.execute(
            "INSERT INTO chatledger.users (id, last_number, conversation_count) VALUES ($1, $2, $2)",
            user,
            conversations,
        )
        await connection.execute(_CONVERSATIONS, user, conversations, first, each)
        await connection.execute(_MESSAGES, user, conversations, first, each, RARE)
        print(f"{user}: {conversations:,} conversations in {time.perf_counter() - began:.0f} s", flush=True)
    began = time.perf_counter()
    await connection.execute("SET maintenance_work_mem = '512MB'")
    await connection.execute(index)
    await connection.execute("VACUUM ANALYZE")
    print(f"search index and statistics in {time.perf_counter() - began:.0f} s", flush=True)
    await connection.close()


async def cursor_after(store: ConversationStore, user: str, pages: int) -> str:
    """Where so many pages of a hundred end."""
    cursor: str | None = None
    for _ in range(pages):
        cursor = (await store.list_conversations(user, limit=100, cursor=cursor)).next_cursor
    assert cursor is not None
    return cursor


async def measure(url: str, rounds: int, large: int) -> list[dict[str, Any]]:
    async with ConversationStore.at(url) as store:
        middle = await cursor_after(store, "large", large // 200)
        end = await cursor_after(store, "large", large // 100 - 1)
        deep = (await store.load_history("large", 1, limit=1)).conversation.message_count // 2
        keys = iter(range(10**9))

        async def keyed(user: str) -> object:
            message = NewMessage(role="user", content=SAID.content, client_message_id=f"key {next(keys)}")
            return await store.append_message(user, 1, message)

        def page(user: str, cursor: str | None = None) -> Awaitable[object]:
            return store.list_conversations(user, limit=PAGE, cursor=cursor)

        pairs: dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]] = {
            "the first page of the list": (lambda: page("large"), lambda: page("small")),
            "a page from its middle, over the first": (lambda: page("large", middle), lambda: page("small")),
            "its last page, over the first": (lambda: page("large", end), lambda: page("small")),
            "append to the longest conversation": (
                lambda: store.append_message("large", 1, SAID),
                lambda: store.append_message("small", 1, SAID),
            ),
            "append with a client_message_id": (lambda: keyed("large"), lambda: keyed("small")),
            "append to another conversation": (
                lambda: store.append_message("large", 7, SAID),
                lambda: store.append_message("small", 7, SAID),
            ),
            "create a conversation": (
                lambda: store.create_conversation("large"),
                lambda: store.create_conversation("small"),
            ),
            "the latest 50 messages of the longest": (
                lambda: store.load_history("large", 1, limit=50),
                lambda: store.load_history("small", 1, limit=50),
            ),
            "50 from its middle": (
                lambda: store.load_history("large", 1, limit=50, before_seq=deep),
                lambda: store.load_history("small", 1, limit=50, before_seq=90),
            ),
            "search for a word of one message": (
                lambda: store.search_messages("large", RARE),
                lambda: store.search_messages("small", RARE),
            ),
        }
        found = []
        for name, (ours, base) in pairs.items():
            ratios, delays = [], []
            for number in range(rounds + 1):
                took = (await median_ms(ours), await median_ms(base))
                if number:  # the first warms
                    ratios.append(took[0] / took[1])
                    delays.append(took)
            p50 = [round(statistics.median(side), 2) for side in zip(*delays, strict=True)]
            print(f"| {name} | {results.told(ratios)} | {p50[0]} for {p50[1]} |", flush=True)
            found.append({"what": name, "ratio": round(statistics.median(ratios), 2), "p50_ms": p50})
    return found


async def median_ms(call: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        await call()
        took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--short", action="store_true", help="a thousandth of the messages, to show that it works")
    args = parser.parse_args()
    sizes = SHORT_SIZES if args.short else SIZES
    with temporary() as url:
        schema.migrate(url)
        asyncio.run(fill(url, sizes))
        load = os.getloadavg()[0]
        print("| the large user's over the small one's | median (range) | p50 ms |\n|---|---|---|")
        figures = asyncio.run(measure(url, 1 if args.short else args.rounds, sizes[1][1]))
    if not args.short:
        results.write("scale", figures, load_before=load)


if __name__ == "__main__":
    main()
