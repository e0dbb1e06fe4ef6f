"""The real HTTP server on a free port, for tests that need sockets: clients of its own kind, raw bytes, a stop."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from chatledger.server.app import make_server
from chatledger.server.http import make_app, serve_http
from chatledger.server.http_guard import LOOPBACK
from chatledger.server.identity import Caller, loopback_user
from chatledger.storage import ConversationStore
from tests.patience import PATIENCE

MODERN = "2026-07-28"
HEADERS = {"content-type": "application/json", "accept": "application/json, text/event-stream"}

META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
}


def call(method: str, params: dict[str, Any] | None = None, id: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}}


LIST = call("tools/list")


class Answer(NamedTuple):
    """What came back for raw bytes; status 0 where the connection was closed without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class HttpServer(NamedTuple):
    """A server that listens."""

    port: int
    store: ConversationStore

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def send(self, *chunks: bytes, pause: float = 0) -> Answer:
        """Write the bytes as they are, with pauses between them, and read the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(PATIENCE):
                answer = asyncio.create_task(_read(reader))  # it may come before all is sent
                with suppress(ConnectionError):
                    for chunk in chunks:
                        writer.write(chunk)
                        await writer.drain()
                        if pause:
                            await asyncio.wait([answer], timeout=pause)
                return await answer
        finally:
            writer.close()

    async def request(
        self, method: str, path: str, headers: dict[str, str | None] | None = None, body: bytes = b""
    ) -> Answer:
        """One request; a header that is None is left out."""
        told: dict[str, str | None] = {"host": f"127.0.0.1:{self.port}", "content-length": str(len(body))}
        told |= {"connection": "close"} | (headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value is not None)
        return await self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)

    async def post(self, body: Any, headers: dict[str, str | None] | None = None) -> Answer:
        """A body for `/mcp`: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.request("POST", "/mcp", {**HEADERS, **(headers or {})}, data)


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""
    if not head:
        return Answer(0, {}, b"")
    status, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length")
    body = await reader.readexactly(int(length)) if length is not None else b""
    return Answer(int(status.split()[1]), headers, body)


@asynccontextmanager
async def serving(url: str, *, caller: Caller | None = None, **how: Any) -> AsyncIterator[HttpServer]:
    """The server over a store at this database, until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    rate, observing = how.pop("rate", None), how.pop("observing", None)
    async with ConversationStore.at(url) as store:
        server = make_server(store, caller or loopback_user("alice"), rate=rate)
        if observing is not None:
            how["open_routes"] = observing(server, store)
        how = {"hosts": LOOPBACK, "origins": [f"http://{name}" for name in LOOPBACK]} | how
        app = make_app(server, ready=store.ping, **how)
        running = asyncio.create_task(serve_http(app, listener))
        try:
            yield HttpServer(port, store)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            listener.close()
