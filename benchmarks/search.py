"""How long a search takes for a user with 100,000 messages in a store of a million, against the same written by hand.

uv run python benchmarks/search.py [--messages 1000000] [--rounds 15] [--short]

By hand means: for each query, the faster of the two plans that there are (walk the user's messages from the newest on,
or ask the trigrams and sort), written as one statement with its words in it, with the same snippets and titles. Rounds
interleave both. Then the index is measured by what it adds to an append, as CPU time of the database's process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import make_url

from chatledger.storage import ConversationStore, NewMessage, schema
from chatledger.storage.embedded import temporary
from chatledger.storage.search_text import INDEXED, SEARCHED, indexed

USER = "user-0"
APPENDS = 3_000  # in a round: twice as many as fill the list of waiting entries with these texts
HAN = "".join(chr(0x4E00 + n) for n in range(2_000))


def texts(count: int) -> list[str]:
    """About 280 characters each: words whose frequency falls with their place; every tenth is Chinese."""
    chance = random.Random(7)
    letters = "etaoinshrdlcumwfgypbvk"
    words = ["".join(chance.choices(letters, k=chance.randint(3, 11))) for _ in range(30_000)]
    weights = [1 / place for place in range(1, len(words) + 1)]
    made = []
    for number in range(count):
        if number % 10 == 0:
            made.append("".join(chance.choices(HAN, k=120)) + "。")
        else:
            made.append(" ".join(chance.choices(words, weights, k=chance.randint(20, 55))))
    return made


async def fill(url: str, messages: int) -> None:
    """A tenth of the messages is USER's, in 100 conversations; the others belong to 90 users."""
    connection = await asyncpg.connect(url, command_timeout=None)
    index = await connection.fetchval("SELECT indexdef FROM pg_indexes WHERE indexname = 'messages_search'")
    await connection.execute("DROP INDEX chatledger.messages_search")
    pool = texts(50_000)
    await connection.execute("CREATE TEMP TABLE pool (n integer PRIMARY KEY, content text)")
    await connection.copy_records_to_table("pool", records=list(enumerate(pool)))
    await connection.execute(
        "INSERT INTO chatledger.users (id, last_number, conversation_count) "
        "SELECT 'user-' || n, 100, 100 FROM generate_series(0, 90) n"
    )
    await connection.execute(
        "INSERT INTO chatledger.conversations (user_id, id, number, title, last_seq) "
        "SELECT 'user-' || u, md5(u || ' ' || c)::uuid, c, 'conversation ' || c, 100000 "
        "FROM generate_series(0, 90) u, generate_series(1, 100) c"
    )
    await connection.execute(
        "INSERT INTO chatledger.messages (user_id, conversation_id, seq, id, role, content, created_at) "
        "SELECT 'user-' || u, md5(u || ' ' || c)::uuid, made.n + 1, gen_random_uuid(), 'user', p.content, "
        "       timestamptz '2025-01-01' + made.n * interval '10 seconds' "
        "  FROM (SELECT n, CASE WHEN n % 10 = 0 THEN 0 ELSE 1 + n % 90 END AS u, 1 + n / 997 % 100 AS c "
        f"          FROM generate_series(0, {messages - 1}) n) made "
        "  JOIN pool p ON p.n = ((made.n / 10)::bigint * 7919 + made.n) % 50000"
    )
    began = time.perf_counter()
    await connection.execute("SET maintenance_work_mem = '512MB'")
    await connection.execute(index)
    print(f"{messages:,} messages; the index was built in {time.perf_counter() - began:.0f} s", flush=True)
    await connection.execute("VACUUM ANALYZE")
    await connection.close()


def by_hand(words: list[str], *, by_index: bool) -> str:
    """The query as somebody who knows the words would write it."""
    on = [(f"{INDEXED}", indexed(word)) if by_index else (SEARCHED, word) for word in words]
    fits = " AND ".join(f"{text} ILIKE '%{word}%'" for text, word in on)
    order = "created_at DESC, conversation_id DESC, seq DESC"
    chosen = f"SELECT conversation_id, seq, created_at FROM chatledger.messages WHERE user_id = '{USER}' AND {fits}"
    chosen = f"WITH found AS MATERIALIZED ({chosen}) SELECT * FROM found" if by_index else chosen
    return (
        f"SELECT h.*, m.role, c.number, c.title, substring(m.content FROM greatest(1, strpos(lower(m.content), "
        f"'{words[0].lower()}') - 40) FOR 161) FROM ({chosen} ORDER BY {order} LIMIT 11) h "
        f"JOIN chatledger.messages m ON m.user_id = '{USER}' AND m.conversation_id = h.conversation_id "
        "AND m.seq = h.seq "
        f"JOIN chatledger.conversations c ON c.user_id = '{USER}' AND c.id = h.conversation_id ORDER BY {order}"
    )


async def milliseconds(work: Any) -> float:
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


async def measure(url: str, rounds: int) -> None:
    connection = await asyncpg.connect(url)
    ranked = await connection.fetch(
        "SELECT word, count(*) AS messages FROM "
        "(SELECT DISTINCT seq, conversation_id, unnest(string_to_array(content, ' ')) "
        f"AS word FROM chatledger.messages WHERE user_id = '{USER}' AND content !~ '[一-龥]') w WHERE length(word) > 5 "
        "GROUP BY word ORDER BY messages DESC"
    )
    rare = next(row["word"] for row in reversed(ranked) if row["messages"] >= 5)
    middle = next(row["word"] for row in ranked if row["messages"] < 700)
    common = ranked[0]["word"]
    phrase = await connection.fetchval(
        f"SELECT content FROM chatledger.messages WHERE user_id = '{USER}' AND content ~ '^[a-z]' "
        "ORDER BY created_at LIMIT 1"
    )
    two = " ".join(phrase.split()[4:6])
    pair = await connection.fetchval(
        f"SELECT substring(content FROM 30 FOR 2) FROM chatledger.messages WHERE user_id = '{USER}' "
        "AND content ~ '^[一-龥]' ORDER BY created_at LIMIT 1"
    )
    queries = {
        "a rare word": (rare, [rare]),
        "a word in 700 messages": (middle, [middle]),
        "a common word": (common, [common]),
        "a phrase": (f'"{two}"', [two]),
        "a substring": (middle[1:5], [middle[1:5]]),
        "two Chinese characters": (pair, [pair]),
        "one Chinese character": (HAN[700], [HAN[700]]),
        "two letters, which no message has": ("qz", ["qz"]),
        "nothing": ("zzzqqq", ["zzzqqq"]),
    }
    print("| query | found | median ms (range) | by hand | ratio |\n|---|---|---|---|---|")
    async with ConversationStore.at(url) as store:
        for name, (query, words) in queries.items():
            plans = [by_hand(words, by_index=by_index) for by_index in (True, False)]
            ours: list[float] = []
            hand: list[list[float]] = [[], []]
            for _ in range(rounds):
                ours.append(await milliseconds(lambda query=query: store.search_messages(USER, query)))
                for place, plan in enumerate(plans):
                    hand[place].append(await milliseconds(lambda plan=plan: connection.fetch(plan)))
            best = min(hand, key=statistics.median)
            ratio = statistics.median(one / other for one, other in zip(ours, best, strict=True))
            total = await connection.fetchval(
                f"SELECT count(*) FROM chatledger.messages WHERE user_id = '{USER}' AND content ILIKE '%' || $1 || '%'",
                words[0],
            )
            print(
                f"| {name} | {total:,} | {statistics.median(ours):.1f} ({min(ours):.1f}-{max(ours):.1f}) | "
                f"{statistics.median(best):.1f} | {ratio:.2f} |",
                flush=True,
            )
    await connection.close()


async def append_cost(url: str, rounds: int, appends: int) -> None:
    """CPU of the database for an append, with the search index and without it, in two databases by turns.

    New entries of the index wait in a list that one append in some thousand merges into it: with fewer appends in a
    round its larger half is not seen.
    """
    connection = await asyncpg.connect(url)
    some = texts(2_000)
    figures: dict[str, list[float]] = {"with": [], "without": []}
    slowest = dict.fromkeys(figures, 0.0)
    stores, processes = {}, {}
    for which in figures:
        await connection.execute(f"CREATE DATABASE appends_{which}")
        place = make_url(url).set(database=f"appends_{which}").render_as_string(hide_password=False)
        await asyncio.to_thread(schema.migrate, place)
        stores[which] = ConversationStore.at(place)
        stores[which].database._pool_size, stores[which].database._pool_overflow = 1, 0
        await stores[which].get_or_create_conversation("appender")
        processes[which] = (await stores[which].database.read(_query("SELECT pg_backend_pid()")))[0][0]
    await stores["without"].database.write(_query("DROP INDEX chatledger.messages_search"), repeatable=False)
    for number_of_round in range(rounds + 1):  # the first is not counted
        for which, store in stores.items():
            began = last = cpu(processes[which])
            for number in range(appends):
                content = some[(number_of_round * 500 + number) % len(some)]
                await store.append_message("appender", 1, NewMessage(role="user", content=content))
                now = cpu(processes[which])
                slowest[which], last = max(slowest[which], now - last), now
            if number_of_round:
                figures[which].append((last - began) / appends)
    for which, store in stores.items():
        await store.aclose()
        await connection.execute(f"DROP DATABASE appends_{which}")
    await connection.close()
    ratios = sorted(one / other for one, other in zip(figures["with"], figures["without"], strict=True))
    with_, without = (statistics.median(figures[which]) for which in ("with", "without"))
    print(
        f"append: {with_:.0f} us of the database's CPU with the index, {without:.0f} without: "
        f"{statistics.median(ratios):.2f} x ({ratios[0]:.2f}-{ratios[-1]:.2f}); "
        f"the slowest one, which merges what waits: {slowest['with'] / 1000:.0f} ms",
        flush=True,
    )


def _query(sql: str) -> Any:
    from chatledger.storage.query import Query

    return Query(sql, ())


def cpu(pid: int) -> float:
    """Microseconds that a process has run."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--short", action="store_true", help="only to show that it works")
    args = parser.parse_args()
    if args.short:
        args.messages, args.rounds = 20_000, 1
    with temporary() as url:
        schema.migrate(url)
        asyncio.run(append_cost(url, *((1, 100) if args.short else (5, APPENDS))))
        asyncio.run(fill(url, args.messages))
        print(f"load {os.getloadavg()[0]:.1f} before")
        asyncio.run(measure(url, args.rounds))
        print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
