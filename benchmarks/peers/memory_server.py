"""How does the MCP reference memory server do what a store of conversations does, beside chatledger, both over stdio?

uv run python -m benchmarks.peers.memory_server [--rounds 5] [--short]      (needs node and npm)

It keeps a graph of entities with observations in one JSONL file, for a model to note facts in. A conversation is an
entity here, a message an observation: the nearest that it has. It has no user, order number, page or limit; each call
reads the file, and a write writes it whole. chatledger runs as it comes, with its embedded Postgres, where an append is
on the disk when it is acknowledged. Calls alternate; a ratio is how many times chatledger's time the other needs, the
median of the rounds' with their range.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from benchmarks import results
from benchmarks.bare_client import BareClient

PACKAGE = "@modelcontextprotocol/server-memory"
TEXT = "A message of three hundred characters, as people and models write them. " * 4 + "The end of it."
WRITERS = 64


class Server(Protocol):
    """One of the two, by its own tools."""

    client: BareClient

    async def fill(self, name: str, count: int) -> None: ...

    async def append(self, name: str, content: str) -> None: ...

    async def load(self, name: str) -> list[str]: ...


class ChatLedger:
    def __init__(self, client: BareClient) -> None:
        self.client = client
        self._ids: dict[str, str] = {}

    async def fill(self, name: str, count: int) -> None:
        made = await self.client.call("create_conversation", {"key": name})
        self._ids[name] = made["conversation"]["id"]
        for first in range(0, count, 100):
            messages = [{"role": "user", "content": f"{n} {TEXT}"} for n in range(first, min(first + 100, count))]
            await self.client.call("append_messages", {"conversation_id": self._ids[name], "messages": messages})

    async def append(self, name: str, content: str) -> None:
        message = {"conversation_id": self._ids[name], "role": "user", "content": content}
        await self.client.call("append_message", message)

    async def load(self, name: str) -> list[str]:
        bounds = {"limit": 1_000, "max_tokens": 200_000}
        found = await self.client.call("load_history", {"conversation_id": self._ids[name]} | bounds)
        return [message["content"] for message in found["messages"]]


class Memory:
    def __init__(self, client: BareClient) -> None:
        self.client = client

    async def fill(self, name: str, count: int) -> None:
        observations = [f"{n} {TEXT}" for n in range(count)]
        entity = {"name": name, "entityType": "conversation", "observations": observations}
        await self.client.call("create_entities", {"entities": [entity]})

    async def append(self, name: str, content: str) -> None:
        await self.client.call("add_observations", {"observations": [{"entityName": name, "contents": [content]}]})

    async def load(self, name: str) -> list[str]:
        found = await self.client.call("open_nodes", {"names": [name]})
        contents: list[str] = found["entities"][0]["observations"]
        return contents


async def written_at_once(server: Server, names: list[str]) -> tuple[int, int]:
    """How many of one append for each name, all at once, were acknowledged, and how many of those are there."""

    async def write(number: int, name: str) -> str | None:
        content = f"at once {number} {TEXT}"
        try:
            await server.append(name, content)
        except AssertionError:  # an error instead of a result
            return None
        return content

    contents = await asyncio.gather(*(write(number, name) for number, name in enumerate(names)))
    acknowledged = {content for content in contents if content is not None}
    found = {content for name in set(names) for content in await server.load(name)}
    return len(acknowledged), len(acknowledged & found)


async def measure(folder: Path, rounds: int, entries: tuple[int, ...], times: int) -> list[dict[str, Any]]:
    script = folder / "node_modules" / PACKAGE / "dist" / "index.js"
    chatledger = str(Path(sys.executable).with_name("chatledger"))
    ours = ChatLedger(await BareClient.start(chatledger, "serve", CHATLEDGER_DATA_DIR=str(folder / "data")))
    found: list[dict[str, Any]] = []
    for size in entries:
        file = {"MEMORY_FILE_PATH": str(folder / f"memory-{size}.jsonl")}  # nothing else is in it: its best case
        theirs = Memory(await BareClient.start("node", str(script), **file))
        servers: tuple[Server, Server] = (ours, theirs)
        await ours.fill(f"at {size}", size)
        await theirs.fill(f"at {size}", size)
        for what in ("load", "append") if 0 < size <= 1_000 else ("append",):
            seen: list[list[float]] = [[], []]
            for _ in range(rounds):
                for side, figure in enumerate(await _medians(servers, what, f"at {size}", times)):
                    seen[side].append(figure)
            ratios = [its / ours_ms for ours_ms, its in zip(*seen, strict=True)]
            p50 = [round(statistics.median(side), 2) for side in seen]
            print(f"| {what} at {size:,} | {results.told(ratios)} | {p50[1]} for {p50[0]} ms |", flush=True)
            ratio = round(statistics.median(ratios), 2)
            found.append({"what": f"{what} at {size}", "ratio": ratio, "p50_ms": p50})
        if size == entries[0]:
            found += [await _at_once(servers, what, names) for what, names in _writers()]
        await theirs.client.stop()
    await ours.client.stop()
    return found


async def _medians(servers: tuple[Server, Server], what: str, name: str, times: int) -> list[float]:
    """The median of each in ms, call by call in turn; the first of each warms."""
    delays: tuple[list[float], list[float]] = ([], [])
    for number in range(times + 1):
        for server, side in zip(servers, delays, strict=True):
            began = time.perf_counter()
            if what == "append":
                await server.append(name, f"{time.perf_counter_ns()} {TEXT}")
            else:
                assert await server.load(name)
            if number:
                side.append((time.perf_counter() - began) * 1e3)
    return [statistics.median(side) for side in delays]


def _writers() -> list[tuple[str, list[str]]]:
    own = [f"own {number}" for number in range(WRITERS)]
    return [("a conversation each", own), ("one conversation", ["one"] * WRITERS)]


async def _at_once(servers: tuple[Server, Server], what: str, names: list[str]) -> dict[str, Any]:
    figures: dict[str, Any] = {"what": f"{WRITERS} writes at once, {what}: acknowledged, kept"}
    for server in servers:
        for name in sorted(set(names)):
            await server.fill(name, 0)
        figures[type(server).__name__] = list(await written_at_once(server, names))
    print(f"| {' | '.join(map(str, figures.values()))} |", flush=True)
    return figures


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        shutil.copy(Path(__file__).with_name("package.json"), folder)
        subprocess.run(["npm", "install", "--no-fund", "--no-audit", "--silent"], cwd=folder, check=True)
        entries, times = ((0, 10), 2) if args.short else ((0, 100, 1_000, 5_000), 20)
        rows = asyncio.run(measure(folder, 1 if args.short else args.rounds, entries, times))
        installed = json.loads((folder / "node_modules" / PACKAGE / "package.json").read_text())["version"]
    if not args.short:
        results.write("peers_memory", {"server-memory": installed, "rows": rows}, load_before=load)


if __name__ == "__main__":
    main()
