"""How many appends a second does each store serve over HTTP, and in how much CPU of the server's process?

uv run --with-requirements benchmarks/peers/requirements.txt python -m benchmarks.peers.http_rates
    [--rounds 5] [--seconds 1] [--stores NAME ...] [--short]

chatledger is `chatledger serve --transport http` as it comes, for its loopback user. Every other store is behind the
SDK's own MCPServer, stateless with JSON answers, in a process of its own. All have one Postgres and pools of one size.
Servers take turns within a round; each caller has a connection and a conversation of its own. At the end every
conversation is loaded, and what was acknowledged must be there. "nothing" keeps them in memory, which shows what the
protocol alone costs; "kept" is told of in `mcp_server`. The client is plain HTTP/1.1 over sockets; how much of
a core it took is told, for it shares the machine with the server and Postgres.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import uvloop

from benchmarks import results
from benchmarks.peers.compared import OURS, SERVED
from benchmarks.peers.stores import POOL
from chatledger.storage import schema
from chatledger.storage.embedded import temporary

TEXT = "A message of three hundred characters, as people and models write them. " * 4 + "The end of it."
CALLERS = (1, 64)
START_SECONDS = 60.0  # chosen: some of these imports take a dozen seconds on a busy machine
REVISION = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": REVISION,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "benchmark", "version": "1"},
}


class Served:
    """A server process. To be stopped."""

    def __init__(self, url: str, name: str, *, keep: bool = False) -> None:
        self.name = f"{name}, kept" if keep else name
        self.ours = name == OURS
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        if self.ours:
            command = [str(Path(sys.executable).with_name("chatledger")), "serve", "--transport", "http"]
        else:
            command = [sys.executable, "-m", "benchmarks.peers.mcp_server", name, *(["--keep"] if keep else [])]
        settings = {"CHATLEDGER_DATABASE_URL": url, "CHATLEDGER_RATE_LIMIT_PER_SECOND": "0", "DATABASE_URL": url}
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)], env=os.environ | settings, stderr=subprocess.DEVNULL
        )

    def until_it_listens(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except ConnectionRefusedError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{self.name} did not start") from None
                time.sleep(0.1)

    def cpu_seconds(self) -> float:
        """CPU time of the process so far, all threads (Linux)."""
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class Caller:
    """One connection to a server, and one conversation."""

    def __init__(self, served: Served, number: int) -> None:
        self._served = served
        self.conversation = f"{served.name} {number}"
        self.acknowledged = 0
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        """Anew, for a server closes connections that idle while others have their turn."""
        self.close()
        self._streams = await asyncio.open_connection("127.0.0.1", self._served.port, limit=1 << 26)

    async def begin(self) -> None:
        await self.connect()
        if self._served.ours:
            made = await self._call(self._request("create_conversation", key=self.conversation))
            self.conversation = made["conversation"]["id"]
        self._append = self._request("append_message", role="user", content=TEXT)
        await self.append()  # warms what the server keeps

    async def append(self) -> None:
        await self._call(self._append)
        self.acknowledged += 1

    async def stored(self) -> int:
        """How many messages the server has of it."""
        await self.connect()
        if not self._served.ours:
            return len((await self._call(self._request("load_history")))["messages"])
        loaded = await self._call(self._request("load_history", limit=1))
        return int(loaded["conversation"]["message_count"])

    def _request(self, tool: str, **arguments: Any) -> bytes:
        named = {} if tool == "create_conversation" else {"conversation_id": self.conversation}
        params = {"name": tool, "arguments": named | arguments, "_meta": META}
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        head = (
            f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:{self._served.port}\r\ncontent-type: application/json\r\n"
            f"accept: application/json, text/event-stream\r\nmcp-protocol-version: {REVISION}\r\n"
            f"mcp-method: tools/call\r\nmcp-name: {tool}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _call(self, request: bytes) -> Any:
        assert self._streams
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert length, head
        result = json.loads(await reader.readexactly(int(length[1])))["result"]
        assert not result.get("isError"), result
        return result["structuredContent"]

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


class Seen(NamedTuple):
    """Of one server in one round."""

    rate: float
    cpu_us: float
    """Of the server's process, for one call."""
    p50_ms: float
    client: float
    """The share of a core that the client took."""


async def one_round(served: Served, callers: list[Caller], seconds: float) -> Seen:
    delays: list[float] = []

    async def work(caller: Caller) -> None:
        while (began := time.perf_counter()) < end:
            await caller.append()
            delays.append(time.perf_counter() - began)

    for caller in callers:
        await caller.connect()
    cpu, client, began = served.cpu_seconds(), time.process_time(), time.perf_counter()
    end = began + seconds
    await asyncio.gather(*map(work, callers))
    took = time.perf_counter() - began
    return Seen(
        len(delays) / took,
        (served.cpu_seconds() - cpu) / len(delays) * 1e6,
        statistics.median(delays) * 1e3,
        (time.process_time() - client) / took,
    )


async def measure(servers: list[Served], rounds: int, seconds: float) -> list[dict[str, Any]]:
    found = []
    callers = {served.name: [Caller(served, number) for number in range(max(CALLERS))] for served in servers}
    for served in servers:
        for caller in callers[served.name]:
            await caller.begin()
    for count in CALLERS:
        seen: dict[str, list[Seen]] = {served.name: [] for served in servers}
        for number in range(rounds):
            turn = number % len(servers)
            for served in servers[turn:] + servers[:turn]:
                seen[served.name].append(await one_round(served, callers[served.name][:count], seconds))
        found.append({"callers": count, "servers": _told(count, seen)})
    for caller in (caller for each in callers.values() for caller in each):
        there = await caller.stored()
        assert there == caller.acknowledged, f"{there} messages of {caller.acknowledged} are there"
        caller.close()
    return found


def _told(count: int, seen: dict[str, list[Seen]]) -> dict[str, Any]:
    figures: dict[str, dict[str, Any]] = {}
    for name, rounds in seen.items():
        medians = Seen(*(statistics.median(column) for column in zip(*rounds, strict=True)))
        figures[name] = {
            "a_second": round(medians.rate),
            "cpu_us": round(medians.cpu_us),
            "p50_ms": round(medians.p50_ms, 2),
            "client_cores": round(medians.client, 2),
        }
        rates = cpus = "1"
        if name != OURS:
            ahead = [ours.rate / theirs.rate for ours, theirs in zip(seen[OURS], rounds, strict=True)]
            spent = [theirs.cpu_us / ours.cpu_us for ours, theirs in zip(seen[OURS], rounds, strict=True)]
            rates, cpus = results.told(ahead), results.told(spent)
            figures[name] |= {"our_rate_over_it": _ratio(ahead), "its_cpu_over_ours": _ratio(spent)}
        print(
            f"| {count} callers, {name} | {medians.rate:,.0f} | {rates} | {medians.cpu_us:,.0f} | {cpus} | "
            f"{medians.p50_ms:.1f} | {medians.client:.2f} |",
            flush=True,
        )
    return figures


def _ratio(ratios: Iterable[float]) -> list[float]:
    ordered = sorted(ratios)
    return [round(figure, 2) for figure in (statistics.median(ordered), ordered[0], ordered[-1])]


def main() -> None:
    parser = results.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one server in one round")
    parser.add_argument("--stores", nargs="+", choices=list(SERVED), default=list(SERVED), help="besides chatledger")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    names = [OURS, *(name for name in args.stores if name != OURS)]
    with temporary() as url, ExitStack() as stack:
        schema.migrate(url)
        servers = []
        for name in names:
            for keep in (False, True) if name in ("openai-agents", "google-adk") else (False,):
                servers.append(Served(url, name, keep=keep))
                stack.callback(servers[-1].stop)
                servers[-1].until_it_listens()  # one by one: they make their tables
        print("| | calls/s | chatledger's rate over it | CPU us a call | over chatledger's | p50 ms | client's cores |")
        print("|---|---|---|---|---|---|---|")
        rounds, seconds = (1, 0.2) if args.short else (args.rounds, args.seconds)
        rows = uvloop.run(measure(servers, rounds, seconds))
    stores = {name: {"title": SERVED[name].title, "versions": SERVED[name].versions()} for name in names}
    if not args.short:
        results.write("peers_http", {"pool": POOL, "stores": stores, "rows": rows}, load_before=load)


if __name__ == "__main__":
    main()
