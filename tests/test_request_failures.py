"""What is not the caller's fault in requests that are no tool call: a defect, a database away, nobody who calls."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.server.mcpserver import Context
from mcp.types import INTERNAL_ERROR, INVALID_REQUEST, ErrorData

from chatledger.server.app import make_server
from chatledger.server.identity import Caller
from chatledger.storage import ConversationStore
from chatledger.storage.engine import Database
from tests.conftest import OpenClient
from tests.hostile_texts import CANARY
from tests.patience import PATIENCE
from tests.test_completions import MESSAGE, TRANSCRIPT
from tests.test_tool_failures import clients_at
from tests.test_tools import call, with_messages

REQUESTS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "resources/list": lambda client: client.list_resources(),
    "a transcript": lambda client: client.read_resource("conversation://1"),
    "a message": lambda client: client.read_resource("conversation://1/messages/1"),
    "prompts/get": lambda client: client.get_prompt("resume_conversation", {"conversation_id": "1"}),
    "completion of a number": lambda client: client.complete(TRANSCRIPT, {"name": "conversation_id", "value": "1"}),
    "completion of a seq": lambda client: client.complete(
        MESSAGE, {"name": "seq", "value": ""}, {"conversation_id": "1"}
    ),
}


async def failure(client: Client, name: str, code: str, status: int) -> ErrorData:
    """The error of a request, in the contract's form; nothing of what was raised is in it."""
    with pytest.raises(MCPError) as raised:
        await asyncio.wait_for(REQUESTS[name](client), PATIENCE)
    error = raised.value.error
    assert (error.code, error.data["code"], error.data["status"]) == (INTERNAL_ERROR, code, status), name
    assert error.message == f"{code}: {error.data['message']}"
    uri = {"a transcript": "conversation://1", "a message": "conversation://1/messages/1"}.get(name)
    assert error.data.get("uri") == uri
    assert not re.search(rf"{CANARY}|Traceback|File \"|Error\b|SELECT|127\.0\.0\.1", json.dumps(error.model_dump()))
    return error


async def unavailable(client: Client, name: str) -> None:
    error = await failure(client, name, "unavailable", 503)
    assert error.data["retryable"] is True
    assert 0 < error.data["retry_after_seconds"] <= 60


async def test_a_defect_is_opaque_in_every_request(
    client_of: OpenClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"a defect near {CANARY}") from ValueError(CANARY)

    caplog.set_level(logging.INFO)
    async with with_messages(client_of, 1) as (alice, bob):
        with monkeypatch.context() as patch:
            for name in ("read", "cursor_secret"):
                patch.setattr(Database, name, fail)
            for name in REQUESTS:
                for client in (alice, bob):
                    caplog.clear()
                    error = await failure(client, name, "internal", 500)
                    assert error.data["retryable"] is False
                    (reference,) = re.findall(r"\b[0-9a-f]{12}\b", error.data["message"])
                    assert sum(reference in record.getMessage() for record in caplog.records) == 1
                    assert "RuntimeError" in caplog.text
                    assert CANARY not in caplog.text
                    assert "Traceback" not in caplog.text
        assert len((await alice.list_resources()).resources) == 1


async def test_a_database_that_cannot_be_reached_is_unavailable_and_may_be_asked_again(
    era: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.storage.engine.WAKING_SECONDS", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken and not listening: a connection is refused
        url = f"postgresql://someone:{CANARY}@127.0.0.1:{taken.getsockname()[1]}/none"
        async with clients_at(url, era) as clients:
            for name in REQUESTS:
                for client in clients:
                    await unavailable(client, name)
            for client in clients:
                assert len((await client.list_prompts()).prompts) == 2
                assert len((await client.list_resource_templates()).resource_templates) == 2
    assert caplog.text.count("cannot be reached") == 2 * len(REQUESTS)
    assert CANARY not in caplog.text


async def test_tables_of_another_version_are_refused_with_what_to_do(empty_database_url: str, era: str) -> None:
    async with clients_at(empty_database_url, era) as clients:
        for name in REQUESTS:
            for client in clients:
                error = await failure(client, name, "schema_out_of_date", 503)
                assert error.data["retryable"] is False
                assert "`chatledger migrate`" in error.data["message"]


async def test_a_request_ends_by_the_same_deadline_as_a_call(
    client_of: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async with with_messages(client_of, 1) as (alice, bob):
        with monkeypatch.context() as patched:
            patched.setattr("chatledger.server.app.CALL_SECONDS", 0.1)
            patched.setattr(Database, "read", never)
            for name in REQUESTS:
                for client in (alice, bob):
                    await unavailable(client, name)
        assert len((await alice.list_resources()).resources) == 1


@asynccontextmanager
async def client_as(database_url: str, era: str, caller: Caller) -> AsyncIterator[Client]:
    async with ConversationStore.at(database_url) as store, Client(make_server(store, caller), mode=era) as client:
        yield client


async def test_every_request_asks_who_calls_and_for_whom_nobody_vouches_gets_nothing(
    client_of: OpenClient, database_url: str, era: str
) -> None:
    async def nobody(ctx: Context[Any, Any]) -> str:
        assert ctx.headers is None
        raise MCPError(INVALID_REQUEST, "no authenticated caller")

    async with with_messages(client_of, 1) as (alice, bob):
        await call(bob, "create_conversation")
        async with client_as(database_url, era, nobody) as stranger:
            for name, ask in REQUESTS.items():
                with pytest.raises(MCPError, match="no authenticated caller") as raised:
                    await ask(stranger)
                assert raised.value.code == INVALID_REQUEST, name
                assert await ask(alice)
