"""What is answered straight is answered as the SDK would have answered it, and what is unusual is left to the SDK."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from chatledger.server import http_calls
from chatledger.storage import ConversationStore, NewMessage
from tests.http_server import HEADERS, META, MODERN, HttpServer, call, serving
from tests.patience import PATIENCE

OLDER = ("2025-11-25", "2025-03-26", None)

CALLS: list[dict[str, Any]] = [
    {"name": "list_conversations", "arguments": {}},
    {"name": "list_conversations"},
    {"name": "load_history", "arguments": {"conversation_id": 1}},
    {"name": "load_history", "arguments": {"conversation_id": 1, "detail": "full"}},
    {"name": "load_history", "arguments": {"conversation_id": 9}},
    {"name": "load_history", "arguments": {"conversation_id": 1, "limit": "many"}},
    {"name": "load_history", "arguments": {"conversation_id": 1, "unknown": True}},
    {"name": "search_messages", "arguments": {"query": "Ä"}},
    {"name": "append_message", "arguments": {"conversation_id": 1, "role": "nobody", "content": "x"}},
    {"name": "no_such_tool", "arguments": {}},
]
STRANGE: list[dict[str, Any]] = [
    {"name": "list_conversations", "arguments": None},
    {"name": "list_conversations", "arguments": []},
    {"name": "list_conversations", "arguments": {}, "more": 1},
    {"name": 7, "arguments": {}},
    {"arguments": {}},
]


def headers(version: str | None, name: object) -> dict[str, str | None]:
    if version != MODERN:
        return {"mcp-protocol-version": version}
    return {"mcp-protocol-version": version, "mcp-method": "tools/call", "mcp-name": str(name)}


def requests() -> list[tuple[dict[str, str | None], dict[str, Any]]]:
    """Headers and messages: all calls in all revisions, and then whatever is wrong with one."""
    made: list[tuple[dict[str, str | None], dict[str, Any]]] = []
    for version in (*OLDER, MODERN):
        more = {"_meta": META} if version == MODERN else {}
        made += [(headers(version, each.get("name")), call("tools/call", each | more)) for each in CALLS + STRANGE]
    listed, newest = CALLS[0], headers(MODERN, "list_conversations")
    whole = call("tools/call", listed | {"_meta": META})
    made += [
        (headers(OLDER[0], ""), call("tools/call", listed, id="a text")),
        (headers(OLDER[0], ""), call("tools/call", listed | {"_meta": {"progressToken": 1}})),
        (headers(OLDER[0], ""), whole),  # a newest message with an older header
        (headers("1999-01-01", ""), call("tools/call", listed)),
        (newest, call("tools/call", listed)),  # without what the newest revision asks of each message
        (newest, call("tools/call", listed | {"_meta": META | {"io.modelcontextprotocol/protocolVersion": "x"}})),
        (newest, call("tools/call", listed | {"_meta": META | {"io.modelcontextprotocol/clientCapabilities": 1}})),
        (newest, call("tools/call", listed | {"_meta": META | {"io.modelcontextprotocol/clientInfo": 1}})),
        (newest | {"mcp-name": "load_history"}, whole),
        (newest | {"mcp-name": None}, whole),
        (newest | {"mcp-method": "tools/list"}, whole),
        (newest | {"mcp-param-limit": "3"}, whole),
        (newest | {"accept": "application/json"}, whole),
        (newest | {"accept": "text/html"}, whole),
        (newest | {"accept": "*/*"}, whole),
        (newest | {"content-type": "text/plain"}, whole),
        (newest | {"content-type": "application/json; charset=utf-8"}, whole),
        (headers(OLDER[0], "") | {"accept": "text/html"}, call("tools/call", listed)),
        (headers(OLDER[0], "") | {"content-type": "text/plain"}, call("tools/call", listed)),
    ]
    return made


async def answered(server: HttpServer) -> list[tuple[int, str | None, Any]]:
    told = []
    for extra, message in requests():
        answer = await server.post(message, {**HEADERS, **extra})
        kind = answer.headers.get("content-type")
        told.append((answer.status, kind, answer.json() if kind == "application/json" else answer.body))
    return told


async def test_an_answer_is_the_one_that_the_sdk_gives(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ConversationStore.at(database_url) as store:
        for user in ("alice", "bob"):
            await store.create_conversation(user, title="weather", metadata={"a": [1.5, None]})
            said = NewMessage(role="user", content='Ä "quoted" \u200b', metadata={"n": 1e23}, client_message_id="1")
            await store.append_messages(user, 1, [said, NewMessage(role="assistant", tool_calls=[{"id": "1"}])])
    straight: list[bool] = []
    plain = http_calls._plain_call
    async with serving(database_url) as ours, serving(database_url) as the_sdk:

        def of_ours(scope: Any) -> Any:
            if scope["server"][1] == the_sdk.port:
                return None
            found = plain(scope)
            straight.append(found is not None)
            return found

        monkeypatch.setattr(http_calls, "_plain_call", of_ours)
        told, expected = await answered(ours), await answered(the_sdk)
    for request, one, other in zip(requests(), told, expected, strict=True):
        assert one == other, request
    # All calls in each revision; of the others one with a text as its id, one with a progress token, one for any type.
    assert sum(straight) == 4 * len(CALLS) + 3, list(zip(straight, requests(), strict=True))


async def test_the_next_request_of_a_connection_is_answered_whole(database_url: str) -> None:
    """It may begin inside the one before it, and in its context."""
    straight = headers("2025-11-25", "")
    message = json.dumps(call("tools/call", CALLS[0])).encode()

    def raw(port: int, more: dict[str, str | None]) -> bytes:
        sent = {"host": f"127.0.0.1:{port}", "content-length": str(len(message)), **HEADERS, **more}
        lines = ["POST /mcp HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", ""]
        return "\r\n".join(lines).encode() + message

    async with serving(database_url) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        to_the_sdk = straight | {"content-type": "application/json; charset=utf-8"}
        writer.write(raw(server.port, straight) + raw(server.port, to_the_sdk))
        for _ in range(2):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            result = json.loads(await reader.readexactly(length))["result"]
            assert result["structuredContent"] == json.loads(result["content"][0]["text"]) == {"conversations": []}
        writer.close()
