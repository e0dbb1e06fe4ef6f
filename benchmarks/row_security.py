"""What row security costs an append, a history of 50 messages and a search: the same calls with it and without it.

uv run python benchmarks/row_security.py [--rounds 7] [--calls 300] [--messages 100000]

Two databases of one Postgres with the same rows, each with a server's role of its own that is no superuser. Rounds
interleave them, and the ratio of a round is that of its two medians. CPU is that of the database's process.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import make_url

from chatledger.storage import ConversationStore, NewMessage, row_security, schema
from chatledger.storage.embedded import temporary

LOGIN = "measured"
RARE = hashlib.md5(b"7").hexdigest()[:8]  # of one message of each user, and not one of the newest
SAID = NewMessage(role="user", content="what was said about the harbour yesterday, and by whom? " * 5)


async def run(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


def make(server: str, name: str, messages: int, *, fenced: bool) -> str:
    """A database of 20 users with so many messages in all; the URL of the server's role."""
    asyncio.run(run(server, f"CREATE DATABASE {name} TEMPLATE template0"))
    url = make_url(server).set(database=name)
    owner = url.render_as_string(hide_password=False)
    schema.migrate(owner)
    fill = (
        (
            "INSERT INTO chatledger.users (id, last_number, conversation_count) "
            "SELECT 'user-' || n, 1, 1 FROM generate_series(0, 19) n"
        ),
        (
            "INSERT INTO chatledger.conversations (user_id, id, number, last_seq) "
            f"SELECT 'user-' || n, gen_random_uuid(), 1, {messages // 20} FROM generate_series(0, 19) n"
        ),
        (
            "INSERT INTO chatledger.messages (user_id, conversation_id, seq, id, role, content) "
            "SELECT user_id, id, n, gen_random_uuid(), 'user', 'message ' || n || ' ' || repeat(md5(n::text), 6) "
            f"FROM chatledger.conversations, generate_series(1, {messages // 20}) n"
        ),
        "VACUUM ANALYZE",
    )
    asyncio.run(run(owner, *fill))
    role = f"DO $$ BEGIN CREATE ROLE {LOGIN} LOGIN PASSWORD '{LOGIN}'; EXCEPTION WHEN duplicate_object THEN END $$"
    asyncio.run(run(owner, role))
    if fenced:
        schema.migrate(owner, then=row_security.put_up)
        asyncio.run(run(owner, f"GRANT {row_security.APP} TO {LOGIN}"))
    else:
        grants = (
            f"GRANT USAGE ON SCHEMA chatledger TO {LOGIN}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA chatledger TO {LOGIN}",
        )
        asyncio.run(run(owner, *grants))
    return url.set(username=LOGIN, password=LOGIN).render_as_string(hide_password=False)


def cpu(pid: int) -> float:
    """Seconds that a process has computed; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def backend(store: ConversationStore) -> int:
    opened = store.database._opened_already()
    assert opened is not None
    connection = await opened.connections.borrow()
    driver: Any = connection.driver_connection
    pid = int(await driver.fetchval("SELECT pg_backend_pid()"))
    await opened.connections.give_back(connection, broken=False)
    return pid


async def measure(urls: dict[str, str], rounds: int, calls: int) -> None:
    stores = {name: ConversationStore.at(url) for name, url in urls.items()}
    work: dict[str, Callable[[ConversationStore], Awaitable[object]]] = {
        "append": lambda store: store.append_message("user-3", 1, SAID),
        "history": lambda store: store.load_history("user-3", 1, limit=50),
        "search": lambda store: store.search_messages("user-3", RARE),
    }
    found: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in work}
    for kind, call in work.items():
        number = calls if kind != "search" else max(10, calls // 20)
        for turn in range(rounds + 1):
            took: dict[str, tuple[float, float]] = {}
            for name in sorted(stores, reverse=turn % 2 == 1):
                store = stores[name]
                await call(store)
                pid, times = await backend(store), []
                before = cpu(pid)
                for _ in range(number):
                    began = time.perf_counter()
                    await call(store)
                    times.append((time.perf_counter() - began) * 1000)
                took[name] = statistics.median(times), (cpu(pid) - before) * 1000 / number
            if turn:  # the first warms up
                found[kind].append((*took["without"], *took["with"]))
        plain, plain_cpu, fenced, fenced_cpu = (statistics.median(column) for column in zip(*found[kind], strict=True))
        ratios = [row[2] / row[0] for row in found[kind]]
        print(
            f"{kind:8} {plain:.2f} ms without, {fenced:.2f} with: {statistics.median(ratios):.2f} times "
            f"({min(ratios):.2f} to {max(ratios):.2f}); CPU of the database {plain_cpu:.2f} and {fenced_cpu:.2f} ms, "
            f"{fenced_cpu / max(plain_cpu, 0.001):.2f} times",
            flush=True,
        )
    for store in stores.values():
        await store.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--short", action="store_true", help="only to show that it works")
    args = parser.parse_args()
    if args.short:
        args.rounds, args.calls, args.messages = 1, 10, 2_000
    with temporary(fsync="off") as server:
        urls = {name: make(server, f"{name}_rls", args.messages, fenced=name == "with") for name in ("without", "with")}
        asyncio.run(measure(urls, args.rounds, args.calls))


if __name__ == "__main__":
    main()
