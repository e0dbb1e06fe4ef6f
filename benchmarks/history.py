"""What does a history of a thousand messages cost over fetching its rows and writing them as JSON?

uv run python -m benchmarks.history [--rounds 40] [--short]

The floor is asyncpg's `fetch` of the same rows by the same index, and orjson's `dumps` of them as dictionaries. Beside
it: the store's window with every message made, the store's window as the tool's JSON, the tool over stdio read by the
least client there can be, with orjson as well, and the tool through the SDK's own client. Alternatives alternate in
rounds; ratios are medians of the quietest ones, with their range.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import orjson
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from benchmarks import results
from benchmarks.bare_client import BareClient
from chatledger.server import schemas
from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.embedded import EmbeddedPostgres

MESSAGES = 1_000
TEXT = "A message of three hundred characters, as people and models write them. " * 4 + "The end of it."
ROWS = """
SELECT seq, role, content, created_at, tool_calls, tool_call_id, name FROM chatledger.messages
 WHERE user_id = $1 AND conversation_id = $2 AND seq > $3 ORDER BY seq LIMIT $4
"""
BUDGET: dict[str, Any] = {"limit": MESSAGES, "max_tokens": 200_000}


async def measure(folder: str, rounds: int) -> list[dict[str, Any]]:
    url = EmbeddedPostgres(Path(folder)).start()
    chatledger = str(Path(sys.executable).with_name("chatledger"))
    settings = {"CHATLEDGER_DATA_DIR": folder, "CHATLEDGER_USER_ID": "local"}
    bare = await BareClient.start(chatledger, "serve", **settings)
    await bare.call("create_conversation", {})
    parameters = StdioServerParameters(command=chatledger, args=["serve"], env=settings)
    async with ConversationStore.at(url) as store, Client(stdio_client(parameters)) as client:
        for _ in range(MESSAGES // 100):
            await store.append_messages("local", 1, [NewMessage(role="user", content=TEXT)] * 100)
        conversation = (await store.load_history("local", 1, limit=1)).conversation.id
        raw = await asyncpg.connect(url)

        async def floor() -> None:
            rows = await raw.fetch(ROWS, "local", conversation, 0, MESSAGES)
            names = ("seq", "role", "content", "created_at", "tool_calls", "tool_call_id", "name")
            shown = [{name: row[name] for name in names if row[name] is not None} for row in rows]
            assert len(orjson.dumps({"messages": shown})) > MESSAGES * len(TEXT)

        async def window() -> None:
            found = await store.load_history("local", 1, **BUDGET)
            assert len(list(found.messages)) == MESSAGES

        async def as_json() -> None:
            found = await store.load_history("local", 1, **BUDGET)
            schemas.compact_json(schemas.window_view(found, 200_000))

        async def over_stdio() -> None:
            assert len((await bare.call("load_history", {"conversation_id": 1, **BUDGET}))["messages"]) == MESSAGES

        async def by_the_sdk() -> None:
            result = await client.call_tool("load_history", {"conversation_id": 1, **BUDGET})
            assert len((result.structured_content or {})["messages"]) == MESSAGES

        calls: dict[str, Callable[[], Awaitable[None]]] = {
            "the store's window": window,
            "as the tool's JSON": as_json,
            "over stdio, the least client": over_stdio,
            "over stdio, the SDK's client": by_the_sdk,
        }
        for call in (floor, *calls.values()):  # the first time warms
            await call()
        gc.freeze()  # what the imports left is not looked through for garbage in the middle of a round
        measured = results.Rounds(rounds)
        for _ in measured:
            took: list[float] = []
            for call in (floor, *calls.values()):
                began = time.perf_counter()
                await call()
                took.append((time.perf_counter() - began) * 1e3)
            measured.note(took)
        await raw.close()
    await bare.stop()
    found = []
    bases, *sides = zip(*measured.kept(), strict=True)
    for name, side in zip(calls, sides, strict=True):
        ratios = [ours / base for ours, base in zip(side, bases, strict=True)]
        p50 = [round(statistics.median(each), 2) for each in (side, bases)]
        print(f"| {name} | {results.told(ratios)} | {p50[0]} for {p50[1]} | {measured.stolen()} |", flush=True)
        found.append({"what": name, **results.ratio(ratios), "p50_ms": p50, "stolen": measured.stolen()})
    return found


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print("| a history of 1,000 messages | over fetch and orjson | p50 ms | stolen by the host |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(folder, 2 if args.short else args.rounds))
    if not args.short:
        results.write("history", figures, load_before=load)


if __name__ == "__main__":
    main()
