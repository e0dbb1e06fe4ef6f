"""The least MCP client over stdio there can be: one JSON line out, one in, and nothing checked."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import orjson


class BareClient(asyncio.SubprocessProtocol):
    """A server process and what was asked of it."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._last, self._unended = 0, list[bytes]()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._failure: Exception | None = None
        self._exited = asyncio.Event()

    @classmethod
    async def start(cls, *command: str, **settings: str) -> BareClient:
        _, client = await asyncio.get_running_loop().subprocess_exec(
            cls, *command, stderr=subprocess.DEVNULL, env=os.environ | settings
        )
        info = {"name": "bare", "version": "1"}
        await client.request("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": info})
        client._send({"method": "notifications/initialized"})
        return client

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """What answers. Raises what has happened to the server instead."""
        if self._failure is not None:
            raise self._failure
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
        """Let the server end; one that does not is killed. Raises what had happened to it before."""
        failure = self._failure
        try:
            self._transport.get_pipe_transport(0).close()
            await asyncio.wait_for(self._exited.wait(), 20)
        finally:
            self._transport.close()
        if failure is not None:
            raise failure

    def cpu_us(self) -> float:
        """CPU time of the server process so far, all threads (Linux)."""
        threads = Path(f"/proc/{self._transport.get_pid()}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1000

    def _send(self, message: dict[str, Any]) -> None:
        self._transport.get_pipe_transport(0).write(orjson.dumps({"jsonrpc": "2.0", **message}) + b"\n")

    def _fail(self, failure: Exception) -> None:
        self._failure = self._failure or failure
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(failure)

    # ---- what the loop tells ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        ended, newline, unended = data.rpartition(b"\n")
        if not newline:
            self._unended.append(data)
            return
        lines, self._unended = b"".join((*self._unended, ended)), [unended]
        try:
            for line in lines.split(b"\n"):
                answer = orjson.loads(line)
                if "id" in answer:  # a notification has none
                    self._answers.pop(answer["id"]).set_result(answer)
        except Exception as exc:  # noqa: BLE001  # no answer to a request that waits: every one is told
            self._fail(exc)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._fail(exc or EOFError("the server has ended"))

    def process_exited(self) -> None:
        self._exited.set()
