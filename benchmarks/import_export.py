"""How fast a large export comes in, against COPY of the same rows into the same schema, and how much memory it takes.

uv run python benchmarks/import_export.py [--conversations 10000] [--messages 100] [--rounds 5]

Each round writes a ChatGPT export with its share of the conversations, runs `chatledger import` on it as a process of
its own, and copies the rows that this made, in binary, into a second database of the same server: the fastest way in
that there is. Both databases have every index and constraint and grow alike. At the end everything is exported, and
imported again, which must change nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

import asyncpg
from sqlalchemy import make_url

from chatledger.storage import schema
from chatledger.storage.embedded import temporary


def vocabulary(size: int = 20_000) -> list[str]:
    """Words whose frequency falls with their place, as in a language; the same in every run."""
    chance = random.Random(1)
    letters = "etaoinshrdlcumwfgypbvk"
    return ["".join(chance.choices(letters, k=chance.randint(2, 10))) for _ in range(size)]


def write_export(out: TextIO, first: int, conversations: int, messages: int) -> None:
    """A ChatGPT export: one branch each, 50 to 500 characters a message."""
    words = vocabulary()
    weights = [1 / place for place in range(1, len(words) + 1)]
    chance = random.Random(first)
    out.write("[")
    for number in range(first, first + conversations):
        mapping: dict[str, Any] = {}
        parent = None
        for place in range(messages):
            node = f"{number:08x}-{place:04x}-4000-8000-000000000000"
            text = " ".join(chance.choices(words, weights, k=chance.randint(8, 80)))
            mapping[node] = {
                "id": node,
                "parent": parent,
                "children": [],
                "message": {
                    "id": node,
                    "author": {"role": "user" if place % 2 == 0 else "assistant", "name": None, "metadata": {}},
                    "create_time": 1_700_000_000 + number * 1_000 + place,
                    "content": {"content_type": "text", "parts": [text]},
                    "status": "finished_successfully",
                    "weight": 1.0,
                    "metadata": {} if place % 2 == 0 else {"model_slug": "gpt-x"},
                    "recipient": "all",
                },
            }
            if parent is not None:
                mapping[parent]["children"].append(node)
            parent = node
        conversation = {
            "conversation_id": f"{number:08x}-0000-4000-8000-000000000000",
            "title": f"Conversation {number}",
            "create_time": 1_700_000_000 + number * 1_000,
            "update_time": 1_700_000_000 + number * 1_000 + messages,
            "current_node": parent,
            "mapping": mapping,
        }
        out.write(("" if number == first else ",\n") + json.dumps(conversation))
    out.write("]")


class Command:
    """One run of a command in a process of its own."""

    def __init__(self, *command: str | Path, url: str) -> None:
        environment = os.environ | {"CHATLEDGER_DATABASE_URL": url}
        began = time.perf_counter()
        with tempfile.TemporaryFile() as out:
            process = subprocess.Popen(
                [Path(sys.executable).with_name("chatledger"), *command], env=environment, stdout=out
            )
            _, status, usage = os.wait4(process.pid, 0)
            self.seconds = time.perf_counter() - began
            self.memory_mib = usage.ru_maxrss / 1024
            self.cpu_seconds = usage.ru_utime + usage.ru_stime
            out.seek(0)
            self.last_line = (out.read().decode().splitlines() or [""])[-1]
        if status != 0:
            raise SystemExit(f"{command[0]} failed: {self.last_line}")


async def copy_rows(source: str, target: str, after_number: int) -> tuple[float, int]:
    """Copy the conversations after a number, and their messages; the seconds that the target took, and how many."""
    one, other = await asyncpg.connect(source), await asyncpg.connect(target)
    seconds, messages = 0.0, 0
    wanted = {
        "users": "SELECT * FROM chatledger.users WHERE $1 = 0",
        "conversations": "SELECT * FROM chatledger.conversations WHERE number > $1 ORDER BY number",
        "messages": "SELECT m.* FROM chatledger.messages m JOIN chatledger.conversations c "
        "ON c.user_id = m.user_id AND c.id = m.conversation_id WHERE c.number > $1 ORDER BY c.number, m.seq",
    }
    try:
        async with other.transaction():
            for table, query in wanted.items():
                rows = io.BytesIO()
                await one.copy_from_query(query, after_number, output=rows, format="binary")
                rows.seek(0)
                began = time.perf_counter()
                done = await other.copy_to_table(table, schema_name="chatledger", source=rows, format="binary")
                seconds += time.perf_counter() - began
                messages = int(done.split()[-1])
            began = time.perf_counter()
        seconds += time.perf_counter() - began
    finally:
        await one.close()
        await other.close()
    return seconds, messages


async def make_databases(server: str) -> list[str]:
    connection = await asyncpg.connect(server)
    urls = []
    for name in ("imported", "copied"):
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        urls.append(make_url(server).set(database=name).render_as_string(hide_password=False))
    await connection.close()
    return urls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=100, help="of each conversation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--short", action="store_true", help="only to show that it works")
    args = parser.parse_args()
    if args.short:
        args.conversations, args.messages, args.rounds = 40, 10, 2
    each = args.conversations // args.rounds
    ratios, imports, copies, memory = [], 0.0, 0.0, 0.0
    with temporary() as server, tempfile.TemporaryDirectory() as folder:
        imported, copied = asyncio.run(make_databases(server))
        for url in (imported, copied):
            schema.migrate(url)
        for number in range(args.rounds):
            export = Path(folder, f"part-{number}.json")
            with export.open("w") as out:
                write_export(out, number * each, each, args.messages)
            size = export.stat().st_size / 2**20
            run = Command("import", export, url=imported)
            seconds, messages = asyncio.run(copy_rows(imported, copied, number * each))
            ratios.append(seconds / run.seconds)
            imports, copies, memory = imports + run.seconds, copies + seconds, max(memory, run.memory_mib)
            print(
                f"round {number + 1}: {messages:,} messages, {size:.0f} MiB: import {run.seconds:.1f} s "
                f"({messages / run.seconds:,.0f}/s, {run.cpu_seconds:.1f} s of CPU, {run.memory_mib:.0f} MiB), "
                f"COPY {seconds:.1f} s ({messages / seconds:,.0f}/s): rate {ratios[-1]:.2f} x COPY; {run.last_line}",
                flush=True,
            )
        print(
            f"median rate {statistics.median(ratios):.2f} x COPY ({min(ratios):.2f}-{max(ratios):.2f}), in all "
            f"{copies / imports:.2f} x; most memory {memory:.0f} MiB; load {os.getloadavg()[0]:.1f}"
        )
        whole = Path(folder, "whole.jsonl")
        run = Command("export", "-o", whole, url=imported)
        print(
            f"export: {run.seconds:.1f} s, {whole.stat().st_size / 2**20:.0f} MiB, {run.memory_mib:.0f} MiB of memory"
        )
        for again in (whole, Path(folder, "part-0.json")):
            run = Command("import", again, url=imported)
            print(f"again {again.name}: {run.seconds:.1f} s, {run.memory_mib:.0f} MiB of memory; {run.last_line}")


if __name__ == "__main__":
    main()
