"""The least MCP client over stdio there can be: one JSON line out, one in, and nothing checked."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any, TypeVar

import orjson

Client = TypeVar("Client", bound="BareClient")


class BareClient(asyncio.SubprocessProtocol):
    """A server process and what was asked of it."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._last, self._unended = 0, list[bytes]()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def start(cls: type[Client], *command: str, **settings: str) -> Client:
        _, client = await asyncio.get_running_loop().subprocess_exec(
            cls, *command, stderr=subprocess.DEVNULL, env=os.environ | settings
        )
        info = {"name": "bare", "version": "1"}
        await client.request("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info})
        client._send({"method": "notifications/initialized"})
        return client

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """What answers."""
        self._last += 1
        answer = self._answers[self._last] = asyncio.get_running_loop().create_future()
        self._send({"id": self._last, "method": method, "params": params})
        return await asyncio.wait_for(answer, 60)

    async def call(self, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The structured content that a tool answers with."""
        answer = await self.request("tools/call", {"name": tool, "arguments": arguments})
        assert not answer["result"].get("isError"), answer
        structured: dict[str, Any] = answer["result"]["structuredContent"]
        return structured

    async def stop(self) -> None:
        self._transport.get_pipe_transport(0).close()
        await asyncio.wait_for(self._ended, 20)
        self._transport.close()

    def cpu_us(self) -> float:
        """CPU time of the server process so far, all threads (Linux)."""
        threads = Path(f"/proc/{self._transport.get_pid()}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1000

    def _send(self, message: dict[str, Any]) -> None:
        self._transport.get_pipe_transport(0).write(orjson.dumps({"jsonrpc": "2.0", **message}) + b"\n")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        ended, newline, unended = data.rpartition(b"\n")
        if newline:
            lines, self._unended = b"".join((*self._unended, ended)), [unended]
            for line in lines.split(b"\n"):
                answer = orjson.loads(line)
                self._answers.pop(answer["id"]).set_result(answer)
        else:
            self._unended.append(data)

    def process_exited(self) -> None:
        self._ended.set_result(None)
