"""Many clients over HTTP: is every call answered with its own user's data, and what does a connected client cost?

uv run python benchmarks/http_clients.py [--users 50] [--calls 20000] [--clients 1000]

Two server processes share one database and verify tokens signed with a shared secret. First, users with a token each
make mixed calls, all with JSON-RPC ids from 0 on, and every answer is compared with what that user alone may see;
tokens that are expired, forged, foreign or without the scope are tried in between. Then all clients connect at once,
and each appends a message and loads it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jwt

from chatledger.storage import schema
from chatledger.storage.embedded import temporary

SECRET = "a secret for this benchmark alone, of no use elsewhere"
ISSUER, AUDIENCE = "https://issuer.example", "https://ledger.example/mcp"


def token(user: str, *, secret: str = SECRET, **changed: Any) -> str:
    """A token for an hour; `changed` replaces claims, None leaves one out."""
    claims = {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 3600} | changed
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, secret, algorithm="HS256")


class Server:
    """`chatledger serve --transport http` in a process of its own."""

    def __init__(self, url: str) -> None:
        settings = {
            "DATABASE_URL": url,
            "AUTH_SECRET": SECRET,
            "AUTH_ISSUER": ISSUER,
            "AUTH_AUDIENCE": AUDIENCE,
            "PUBLIC_URL": "https://ledger.example",
            "RATE_LIMIT_PER_SECOND": "0",
        }
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("chatledger"), "serve", "--transport", "http", "--port", "0"],
            env=os.environ | {f"CHATLEDGER_{name}": value for name, value in settings.items()},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        found = None
        while found is None:
            line = self.process.stderr.readline()
            if not line:
                raise SystemExit("a server did not start")
            found = re.search(r"http://127\.0\.0\.1:(\d+)/mcp", line)
        self.port = int(found[1])
        # What it logs must be read, or it would stop when the pipe is full.
        self._reader = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def memory_kib(self) -> int:
        """What it has in memory, without what it shares."""
        rollup = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return sum(int(amount) for amount in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.MULTILINE))

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        self.process.terminate()
        code = self.process.wait(30)
        self._reader.wait(30)
        return code


class Client:
    """One connection, and the ids of its own requests, from 0 on."""

    def __init__(self, port: int, bearer: str | None) -> None:
        self._port, self._bearer = port, bearer
        self._last = -1
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        """Open the connection now rather than with the first call."""
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)

    async def call(self, tool: str, **arguments: Any) -> tuple[int, dict[str, Any]]:
        """The status, and the structured content where there is any."""
        self._last += 1
        message = {"jsonrpc": "2.0", "id": self._last, "method": "tools/call"}
        body = json.dumps(message | {"params": {"name": tool, "arguments": arguments}}).encode()
        if self._streams is None:
            await self.connect()
        assert self._streams
        reader, writer = self._streams
        bearer = "" if self._bearer is None else f"authorization: Bearer {self._bearer}\r\n"
        writer.write(
            f"POST /mcp HTTP/1.1\r\nhost: localhost\r\n{bearer}content-type: application/json\r\n"
            f"accept: application/json, text/event-stream\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        data = await reader.readexactly(int(length[1])) if length else b""
        status = int(head.split()[1])
        if status != 200:
            return status, {}
        answer = json.loads(data)
        assert answer["id"] == self._last, "the answer to another request"
        return status, answer["result"]["structuredContent"]

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


async def one_user(name: str, ports: list[int], calls: int, seen: Counter[str]) -> None:
    """Mixed calls of one user over connections to all servers; whatever comes back must be this user's."""
    chance = random.Random(name)
    clients = [Client(port, token(name)) for port in ports]
    appended = 0
    await clients[0].call("create_conversation", title=name, key="one")
    bad = {
        401: [
            token(name, secret="x" * 40),
            token(name, exp=int(time.time()) - 120),
            token(name, iss="https://other.example"),
            token(name, aud="https://other.example/mcp"),
            token(name, sub=None),
            jwt.encode({"sub": name, "iss": ISSUER, "aud": AUDIENCE, "exp": 2**32}, "", algorithm="none"),
        ],
        403: [token(name, scope="conversations:read")],
    }
    for number in range(calls):
        client = chance.choice(clients)
        kind = chance.choice(["append", "append", "load", "load", "list", "search", "foreign", "refused"])
        if kind == "append":
            appended += 1
            text = f"{name} says {appended}"
            status, _ = await client.call(
                "append_message", conversation_id=1, role="user", content=text, client_message_id=str(appended)
            )
        elif kind == "load":
            status, found = await client.call("load_history", conversation_id=1, limit=20)
            texts = [message["content"] for message in found["messages"]]
            first = appended - len(texts) + 1
            assert texts == [f"{name} says {place}" for place in range(first, appended + 1)], "not this user's"
        elif kind == "list":
            status, found = await client.call("list_conversations")
            assert [each["title"] for each in found["conversations"]] == [name]
        elif kind == "search":
            status, found = await client.call("search_messages", query="says", limit=5)
            assert all(hit["snippet"].startswith(f"{name} says ") for hit in found["hits"])
        elif kind == "foreign":
            status, found = await client.call("load_history", conversation_id=2)
            assert found["error"]["code"] == "conversation_unavailable"
        else:
            expected = chance.choice([401, 401, 403])
            intruder = Client(chance.choice(ports), chance.choice(bad[expected]))
            status, _ = await intruder.call("append_message", conversation_id=1, role="user", content="never")
            intruder.close()
            assert status == expected, f"{status} instead of {expected}"
            status = 200
        assert status == 200
        seen[kind] += 1
        del number
    for client in clients:
        client.close()


async def isolation(ports: list[int], users: int, calls: int) -> None:
    seen: Counter[str] = Counter()
    began = time.perf_counter()
    await asyncio.gather(*(one_user(f"user-{n:03d}", ports, calls // users, seen) for n in range(users)))
    seconds = time.perf_counter() - began
    print(f"{sum(seen.values()):,} calls of {users} users to 2 processes in {seconds:.0f} s, none wrong: {dict(seen)}")


async def connected(servers: list[Server], count: int) -> None:
    clients = [Client(servers[n % 2].port, token(f"client-{n}")) for n in range(count)]
    before = sum(server.memory_kib() for server in servers)
    await asyncio.gather(*(client.connect() for client in clients))

    async def talk(number: int, client: Client) -> float:
        began = time.perf_counter()
        for tool, arguments in (
            ("create_conversation", {"key": "one"}),
            ("append_message", {"conversation_id": 1, "role": "user", "content": f"client {number}"}),
            ("load_history", {"conversation_id": 1}),
        ):
            status, found = await client.call(tool, **arguments)
            assert status == 200, status
            assert "error" not in found, found
        assert [message["content"] for message in found["messages"]] == [f"client {number}"]
        return time.perf_counter() - began

    began = time.perf_counter()
    times = await asyncio.gather(*(talk(number, client) for number, client in enumerate(clients)))
    seconds = time.perf_counter() - began
    grown = sum(server.memory_kib() for server in servers) - before
    for client in clients:
        client.close()
    print(
        f"{count:,} clients at once, each with a create, an append and a load: {seconds:.1f} s "
        f"({3 * count / seconds:,.0f} calls/s), slowest {max(times):.1f} s, median {statistics.median(times):.1f}; "
        f"no error; {grown / count:.1f} KiB of server memory a client"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=1_000)
    parser.add_argument("--short", action="store_true", help="only to show that it works")
    args = parser.parse_args()
    if args.short:
        args.users, args.calls, args.clients = 5, 200, 20
    with temporary() as url:
        schema.migrate(url)
        servers = [Server(url), Server(url)]
        try:
            asyncio.run(isolation([server.port for server in servers], args.users, args.calls))
            asyncio.run(connected(servers, args.clients))
        finally:
            codes = [server.stop() for server in servers]
        print(f"both servers ended with {codes} when told to; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
