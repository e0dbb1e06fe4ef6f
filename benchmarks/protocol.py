"""What does a call cost over stdio beside a tool that does nothing, served by the SDK as it comes?

uv run python -m benchmarks.protocol [--rounds 7] [--calls 1024] [--short]

Two servers are driven side by side by the least client there can be, one JSON line out and one in: chatledger with its
embedded Postgres, and an `MCPServer` with one tool that has the arguments and the answer of an append and does nothing.
Rounds alternate. CPU is the server process's own, all threads; ratios are medians of the rounds, with their range.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.types import CallToolResult, TextContent

from benchmarks import results
from benchmarks.bare_client import BareClient

ARGUMENTS = {"conversation_id": 1, "role": "user", "content": "x" * 300}


def serve_nothing() -> None:
    """The stock server: one tool that answers what an append answers."""
    server: MCPServer[Any] = MCPServer("nothing", log_level="WARNING")
    data = {"conversation_id": "c" * 36, "seq": 1, "id": "i" * 36, "created_at": "t" * 27, "deduplicated": False}

    @server.tool(structured_output=False)
    async def append_message(conversation_id: int, role: str, content: str) -> CallToolResult:
        """Do nothing."""
        text = TextContent(type="text", text=json.dumps(data, separators=(",", ":")))
        return CallToolResult(content=[text], structured_content=data)

    server.run()


async def one_round(client: BareClient, callers: int, calls: int) -> tuple[float, float]:
    """CPU of the server in microseconds a call, and calls a second."""
    each = max(1, calls // callers)

    async def work() -> None:
        for _ in range(each):
            await client.call("append_message", ARGUMENTS)

    cpu, began = client.cpu_us(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(callers)))
    return (client.cpu_us() - cpu) / (each * callers), each * callers / (time.perf_counter() - began)


async def measure(rounds: int, calls: int) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        chatledger = str(Path(sys.executable).with_name("chatledger"))
        ours = await BareClient.start(chatledger, "serve", CHATLEDGER_DATA_DIR=folder)
        stock = await BareClient.start(sys.executable, "-m", "benchmarks.protocol", "--serve-nothing")
        await ours.call("create_conversation", {})
        for client in (ours, stock):
            await one_round(client, 8, 64)  # warm
        for callers in (1, 64):
            cpus, rates, seen = [], [], []
            for _ in range(rounds):
                cpu, rate = await one_round(ours, callers, calls)
                stock_cpu, stock_rate = await one_round(stock, callers, calls)
                cpus.append(cpu / stock_cpu)
                rates.append(rate / stock_rate)
                seen.append((cpu, stock_cpu, rate, stock_rate))
            medians = [round(statistics.median(column)) for column in zip(*seen, strict=True)]
            print(
                f"| append, {callers} callers | CPU {results.told(cpus)} | rate {results.told(rates)} | "
                f"{medians[0]} for {medians[1]} us, {medians[2]:,} for {medians[3]:,} calls/s |",
                flush=True,
            )
            found.append({"callers": callers, "cpu": statistics.median(cpus), "rate": statistics.median(rates)})
        await ours.stop()
        await stock.stop()
    return found


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=1024, help="of one side of a round")
    parser.add_argument("--serve-nothing", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve_nothing:
        serve_nothing()
        return
    load = os.getloadavg()[0]
    print("| what | over the stock no-op | | medians |\n|---|---|---|---|")
    figures = asyncio.run(measure(1 if args.short else args.rounds, 64 if args.short else args.calls))
    if not args.short:
        results.write("protocol", figures, load_before=load)


if __name__ == "__main__":
    main()
