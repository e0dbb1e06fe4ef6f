"""What does each tool take when the database is far away?

uv run python -m benchmarks.network [--milliseconds 20] [--rounds 15] [--short]

A relay between the server and its Postgres holds every packet back for half of the added round trip, and counts the
trips. Each tool is called through the SDK's client, on connections that are warm; a time is told in trips' times.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from mcp import Client

from benchmarks import results
from chatledger.server.app import make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore, schema
from chatledger.storage.embedded import temporary
from tests.wire_proxy import WireProxy


async def measure(url: str, milliseconds: float, rounds: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return [
            *await measure_at(url, "directly", Path(folder), milliseconds, rounds),
            *await measure_at(url, "through a pooler", None, milliseconds, rounds),
        ]


async def measure_at(url: str, how: str, folder: Path | None, milliseconds: float, rounds: int) -> list[dict[str, Any]]:
    found, numbers = [], count(2)
    async with (
        WireProxy(url, folder) as proxy,
        ConversationStore.at(proxy.url) as store,
        Client(make_server(store, local_user(how)), mode="auto") as client,
    ):

        def message(**more: Any) -> dict[str, Any]:
            return {"role": "user", "content": "hello", "client_message_id": str(uuid4()), **more}

        async def call(tool: str, arguments: dict[str, Any]) -> None:
            answer = await client.call_tool(tool, arguments)
            assert not answer.is_error, answer

        tools: dict[str, Callable[[], dict[str, Any]]] = {
            "create_conversation": lambda: {"title": "weather", "key": str(uuid4())},
            "append_message": lambda: message(conversation_id=1),
            "append_messages": lambda: {"conversation_id": 1, "messages": [message() for _ in range(20)]},
            "load_history": lambda: {"conversation_id": 1, "limit": 50},
            "list_conversations": dict,
            "search_messages": lambda: {"query": "hello"},
            "update_conversation": lambda: {"conversation_id": 1, "title": "rain"},
            "fork_conversation": lambda: {"conversation_id": 1, "at_seq": 5},
            "delete_conversation": lambda: {"conversation_id": next(numbers)},
        }
        for tool, arguments in tools.items():
            proxy.delay = 0.0
            await call(tool, arguments())
            trips, took = proxy.round_trips, []
            proxy.delay = milliseconds / 2000
            for _ in range(rounds):
                ready = arguments()
                began = time.perf_counter()
                await call(tool, ready)
                took.append((time.perf_counter() - began) * 1e3 / milliseconds)
            each = (proxy.round_trips - trips) / rounds
            print(f"| {tool} | {how} | {each:g} | {results.told(took)} |", flush=True)
            found.append({"tool": tool, "connected": how, "trips": each, "times": round(statistics.median(took), 2)})
    return found


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--milliseconds", type=float, default=20.0, help="of a round trip that are added")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print("| tool | connected | round trips | time, in added round trips |\n|---|---|---|---|")
    with temporary() as url:
        schema.migrate(url)
        figures = asyncio.run(measure(url, args.milliseconds, 2 if args.short else args.rounds))
    if not args.short:
        results.write("network", figures, load_before=load)


if __name__ == "__main__":
    main()
