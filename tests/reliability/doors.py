"""Ways into the real store: an instance of it in this process, a server over HTTP, a server over stdio."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import Awaitable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from chatledger.storage import ConversationStore, NewMessage, StorageError
from chatledger.storage.limits import HISTORY_TOKENS
from tests.reliability.history import Made, Receipt, Refused, Said, Stored, Unknown
from tests.reliability.server_processes import CHATLEDGER, HttpServer, environment, token

T = TypeVar("T")
ANSWER_SECONDS = 35.0  # seconds for an answer: longer than the contract's 30, so that the checker sees who was late
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class StoreDoor:
    """The store's own methods."""

    def __init__(self, store: ConversationStore) -> None:
        self.store = store

    async def create(self, user: str, key: str) -> Made:
        made, created = await _told(self.store.create_conversation(user, key=key, title=key))
        return Made(str(made.id), made.number, created)

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        new = [NewMessage(role="user", content=one.content, client_message_id=one.client_message_id) for one in said]
        ref = UUID(conversation)
        if len(new) == 1:
            got = [await _told(self.store.append_message(user, ref, new[0], expected_last_seq=expected))]
        else:
            got = await _told(self.store.append_messages(user, ref, new, expected_last_seq=expected))
        return [Receipt(each.seq, str(each.id), each.created_at, each.deduplicated) for each in got]

    async def load(self, user: str, conversation: str, latest: int | None = None) -> list[Stored]:
        found: list[Stored] = []
        before: int | None = None
        while True:
            window = await _told(
                self.store.load_history(
                    user,
                    UUID(conversation),
                    limit=latest or 1_000,
                    before_seq=before,
                    max_tokens=HISTORY_TOKENS,
                    detail="full",
                )
            )
            found[:0] = [
                Stored(m.seq, str(m.id), m.content, m.client_message_id, m.created_at) for m in window.messages
            ]
            if latest is not None or window.omitted_before == 0:
                return found
            before = found[0].seq

    async def list_conversations(self, user: str) -> list[str]:
        page = await _told(self.store.list_conversations(user, limit=100))
        return [str(listed.conversation.id) for listed in page.conversations]


async def _told(work: Awaitable[T]) -> T:
    try:
        return await work
    except StorageError as error:
        raise (Unknown if error.code == "unavailable" else Refused(error.code)) from error


class ToolDoor:
    """The tools, however they are reached."""

    async def call(self, user: str, tool: str, **arguments: Any) -> dict[str, Any]:
        raise NotImplementedError

    async def create(self, user: str, key: str) -> Made:
        answer = await self.call(user, "create_conversation", key=key, title=key)
        return Made(answer["conversation"]["id"], answer["conversation"]["number"], answer["created"])

    async def append(
        self, user: str, conversation: str, said: Sequence[Said], expected: int | None = None
    ) -> list[Receipt]:
        messages = [_fields(one) for one in said]
        condition = {} if expected is None else {"expected_last_seq": expected}
        if len(messages) == 1:
            one = await self.call(user, "append_message", conversation_id=conversation, **messages[0], **condition)
            got = [one]
        else:
            answer = await self.call(
                user, "append_messages", conversation_id=conversation, messages=messages, **condition
            )
            got = answer["messages"]
        return [Receipt(each["seq"], each["id"], _time(each), each["deduplicated"]) for each in got]

    async def load(self, user: str, conversation: str, latest: int | None = None) -> list[Stored]:
        found: list[Stored] = []
        bounds: dict[str, Any] = {"limit": latest or 1_000, "max_tokens": HISTORY_TOKENS, "detail": "full"}
        while True:
            window = await self.call(user, "load_history", conversation_id=conversation, **bounds)
            found[:0] = [
                Stored(m["seq"], m["id"], m["content"], m.get("client_message_id"), _time(m))
                for m in window["messages"]
            ]
            if latest is not None or not window["has_more_before"]:
                return found
            bounds["before_seq"] = window["next_before_seq"]

    async def list_conversations(self, user: str) -> list[str]:
        answer = await self.call(user, "list_conversations", limit=100)
        return [listed["id"] for listed in answer["conversations"]]


def _fields(said: Said) -> dict[str, Any]:
    named = {} if said.client_message_id is None else {"client_message_id": said.client_message_id}
    return {"role": "user", "content": said.content, **named}


def _time(each: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(each["created_at"])


def _structured(message: dict[str, Any]) -> dict[str, Any]:
    if "error" in message:  # the request failed, not the tool: a server that ends says so of what it has not answered
        raise Unknown from ConnectionError(message["error"]["message"])
    structured: dict[str, Any] = message["result"]["structuredContent"]
    if "error" in structured:
        code = structured["error"]["code"]
        raise Unknown if code == "unavailable" else Refused(code)
    return structured


class HttpDoor(ToolDoor):
    """A server process over HTTP. Each call has a connection of its own, which a caller that gives up closes."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self._last_id = 0

    async def call(self, user: str, tool: str, **arguments: Any) -> dict[str, Any]:
        self._last_id += 1
        asked = {"jsonrpc": "2.0", "id": self._last_id, "method": "tools/call"}
        body = json.dumps(asked | {"params": {"name": tool, "arguments": arguments}}).encode()
        head = (
            f"POST /mcp HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token(user)}\r\n"
            "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, data = await _exchange(self.server.port, head.encode() + body)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            raise Unknown from exc
        if status != 200:
            raise Refused(f"HTTP {status}")
        answer = json.loads(data)
        assert answer["id"] == asked["id"], "the answer to another request"
        return _structured(answer)


async def _exchange(port: int, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        return int(head.split()[1]), await reader.readexactly(int(length[1])) if length else b""
    finally:
        writer.transport.abort()


class StdioDoor(ToolDoor):
    """A server process of one user, over its stdin and stdout. After a kill the next call starts another one."""

    def __init__(self, user: str, **settings: object) -> None:
        self.user = user
        self._home = tempfile.TemporaryDirectory(prefix="chatledger-stdio-")
        self._environment = environment(Path(self._home.name), USER_ID=user, **settings)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._starting = asyncio.Lock()
        self._last_id = 0

    async def call(self, user: str, tool: str, **arguments: Any) -> dict[str, Any]:
        assert user == self.user
        await self._start()
        self._last_id += 1
        number = self._last_id
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        params = {"name": tool, "arguments": arguments, "_meta": ENVELOPE}
        try:
            self._write({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})
            if self._reading is None or self._reading.done():
                raise ConnectionResetError("the server is gone")
            async with asyncio.timeout(ANSWER_SECONDS):
                return _structured(await answer)
        except (OSError, TimeoutError) as exc:
            raise Unknown from exc
        except asyncio.CancelledError:
            told = {"requestId": number, "reason": "the caller gave up", "_meta": ENVELOPE}
            with contextlib.suppress(OSError):
                self._write({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": told})
            raise
        finally:
            self._asked.pop(number, None)

    async def kill(self) -> None:
        """SIGKILL: whatever was asked stays unanswered."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            assert self._reading is not None
            await asyncio.wait([self._reading])

    async def leave(self) -> int:
        """End the input, as a client does that goes away; the exit code."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        return await asyncio.wait_for(self._process.wait(), ANSWER_SECONDS)

    async def aclose(self) -> None:
        await self.kill()
        self._home.cleanup()

    async def _start(self) -> None:
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            self._process = await asyncio.create_subprocess_exec(
                CHATLEDGER,
                "serve",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=self._environment,
                cwd=self._home.name,
                limit=2**24,
            )
            self._reading = asyncio.create_task(self._read(self._process))

    def _write(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            while line := await process.stdout.readline():
                if not line.endswith(b"\n"):
                    break  # it was killed in the middle of an answer
                message = json.loads(line)
                asked = self._asked.get(message.get("id"))
                if asked is not None and not asked.done():
                    asked.set_result(message)
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()  # asked for, or Python 3.11.2 tells the loop of a pipe that broke
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(ConnectionResetError("the server was killed"))
