"""What is not the caller's fault: a defect, a database that is away, tables of another version."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from mcp import Client, MCPError
from mcp.types import CallToolResult
from pydantic import TypeAdapter
from sqlalchemy import make_url

from chatledger.server import schemas
from chatledger.server.app import make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore, schema
from chatledger.storage.engine import Database
from tests.conftest import OpenClient, database_at, run_sql
from tests.patience import PATIENCE
from tests.test_tool_arguments import NEEDED
from tests.test_tools import call, with_messages

CANARY = "Wb7canaryWb7"
MAKE_IT_FAIL = f"""
CREATE FUNCTION chatledger.fail() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '{CANARY} %', NEW USING ERRCODE = 'P0001'; END $$
"""


@asynccontextmanager
async def clients_at(url: str, era: str) -> AsyncIterator[tuple[Client, Client]]:
    """Alice and Bob, on one server's store."""
    async with (
        ConversationStore.at(url) as store,
        Client(make_server(store, local_user("alice")), mode=era) as alice,
        Client(make_server(store, local_user("bob")), mode=era) as bob,
    ):
        yield alice, bob


def error_in(result: CallToolResult, code: str, status: int) -> dict[str, Any]:
    assert result.is_error
    assert result.structured_content is not None
    error: dict[str, Any] = result.structured_content["error"]
    assert (error["code"], error["status"]) == (code, status)
    assert [getattr(block, "text", None) for block in result.content] == [f"{code}: {error['message']}"]
    assert not re.search(rf"{CANARY}|Traceback|File \"|Error\b|SELECT|INSERT", result.model_dump_json())
    return error


def assert_opaque(result: CallToolResult, caplog: pytest.LogCaptureFixture) -> None:
    """An `internal` whose reference is in the log, without the text of what was raised anywhere."""
    error = error_in(result, "internal", 500)
    assert error["retryable"] is False
    (reference,) = re.findall(r"\b[0-9a-f]{12}\b", error["message"])
    assert sum(reference in record.getMessage() for record in caplog.records) == 1
    assert CANARY not in caplog.text
    assert "Traceback" not in caplog.text


def assert_unavailable(result: CallToolResult) -> None:
    error = error_in(result, "unavailable", 503)
    assert error["retryable"] is True
    assert 0 < error["retry_after_seconds"] <= 60


async def test_a_defect_in_the_store_is_opaque_in_every_tool(
    client_of: OpenClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError(f"a defect near {CANARY}") from ValueError(CANARY)

    caplog.set_level(logging.INFO)
    async with with_messages(client_of, 1) as (alice, bob):
        with monkeypatch.context() as patch:
            for name in ("read", "write", "cursor_secret"):
                patch.setattr(Database, name, fail)
            for tool in (await alice.list_tools()).tools:
                named = {"conversation_id": 1} if "conversation_id" in tool.input_schema["properties"] else {}
                for client in (alice, bob):
                    caplog.clear()
                    assert_opaque(await client.call_tool(tool.name, named | NEEDED.get(tool.name, {})), caplog)
                    assert "RuntimeError" in caplog.text
        assert (await call(alice, "load_history"))["conversation"]["message_count"] == 1


async def test_a_defect_behind_the_store_is_opaque_even_if_it_looks_like_a_bad_argument(
    client_of: OpenClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def invalid(_: object) -> None:
        TypeAdapter(int).validate_python(CANARY)

    def missing(_: object) -> None:
        raise KeyError(CANARY)

    caplog.set_level(logging.INFO)
    async with with_messages(client_of, 1) as (alice, bob):
        await call(bob, "create_conversation")
        broken: list[Callable[[object], None]] = [invalid, missing]
        for view in broken:
            with monkeypatch.context() as patch:
                patch.setattr(schemas, "conversation_view", view)
                for client in (alice, bob):
                    caplog.clear()
                    assert_opaque(await client.call_tool("load_history", {}), caplog)


async def test_an_error_of_the_database_that_no_rule_expects_is_opaque(
    client_of: OpenClient, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    trigger = "CREATE TRIGGER fail BEFORE INSERT ON chatledger.messages FOR EACH ROW EXECUTE FUNCTION chatledger.fail()"
    await asyncio.to_thread(run_sql, database_url, MAKE_IT_FAIL, trigger)
    async with with_messages(client_of, 0) as (alice, bob):
        await call(bob, "create_conversation")
        for client in (alice, bob):
            for tool in ("append_message", "append_messages"):  # the trigger is on writing
                needed = NEEDED[tool]
                caplog.clear()
                assert_opaque(await client.call_tool(tool, {"conversation_id": 1} | needed), caplog)
                assert "P0001" in caplog.text
        await asyncio.to_thread(run_sql, database_url, "DROP TRIGGER fail ON chatledger.messages")
        receipt = await call(alice, "append_message", conversation_id=1, role="user", content="now")
        assert receipt["seq"] == 1


async def test_a_database_that_cannot_be_reached_is_unavailable_for_every_tool(
    era: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.storage.engine.WAKING_SECONDS", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken and not listening: a connection is refused
        url = f"postgresql://someone:{CANARY}@127.0.0.1:{taken.getsockname()[1]}/none"
        async with clients_at(url, era) as (alice, bob):
            tools = (await alice.list_tools()).tools
            for tool in tools:
                named = {"conversation_id": 1} if "conversation_id" in tool.input_schema["properties"] else {}
                for client in (alice, bob):
                    assert_unavailable(await client.call_tool(tool.name, named | NEEDED.get(tool.name, {})))
    assert caplog.text.count("cannot be reached") == 2 * len(tools)
    assert CANARY not in caplog.text
    assert "127.0.0.1" not in caplog.text


async def test_a_server_answers_once_its_database_is_there(postgres_url: str, template: str, era: str) -> None:
    name = f"chatledger_late_{secrets.token_hex(4)}"
    try:
        async with clients_at(database_at(postgres_url, name), era) as (alice, bob):
            for client in (alice, bob):
                assert_unavailable(await client.call_tool("list_conversations", {}))
            await asyncio.to_thread(run_sql, postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
            for client in (alice, bob):
                assert (await call(client, "create_conversation"))["conversation"]["number"] == 1
    finally:
        await asyncio.to_thread(run_sql, postgres_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


async def test_a_wrong_password_is_unavailable_and_not_repeated(
    postgres_url: str, era: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_url(postgres_url).set(password=CANARY).render_as_string(hide_password=False)
    async with clients_at(url, era) as clients:
        for client in clients:
            assert_unavailable(await client.call_tool("create_conversation", {"title": CANARY}))
    assert CANARY not in caplog.text


@pytest.mark.parametrize("revision", ["0000", "9999", None])
async def test_tables_of_another_version_are_refused_with_what_to_do_until_it_was_done(
    empty_database_url: str, era: str, revision: str | None
) -> None:
    if revision is not None:
        await asyncio.to_thread(schema.migrate, empty_database_url)
        state = f"UPDATE chatledger.alembic_version SET version_num = '{revision}'"
        await asyncio.to_thread(run_sql, empty_database_url, state)
    async with clients_at(empty_database_url, era) as clients:
        tools = (await clients[0].list_tools()).tools
        for client in clients:
            for tool in tools:
                named = {"conversation_id": 1} if "conversation_id" in tool.input_schema["properties"] else {}
                result = await client.call_tool(tool.name, named | NEEDED.get(tool.name, {}))
                error = error_in(result, "schema_out_of_date", 503)
                assert error["retryable"] is False
                assert ("upgrade chatledger" if revision == "9999" else "`chatledger migrate`") in error["message"]
                assert (revision or "no chatledger tables") in error["message"]
        if revision is None:
            await asyncio.to_thread(schema.migrate, empty_database_url)
        else:
            mend = f"UPDATE chatledger.alembic_version SET version_num = '{schema.REVISION}'"
            await asyncio.to_thread(run_sql, empty_database_url, mend)
        for client in clients:
            assert (await call(client, "create_conversation"))["created"] is True


async def test_a_connection_over_the_network_is_nobodys_until_somebody_verifies_whose() -> None:
    class OverHttp:
        headers: ClassVar = {"x-user-id": "alice"}

    overheard: Any = OverHttp()
    with pytest.raises(MCPError, match="no authenticated caller"):
        await local_user("alice")(overheard)


async def test_a_call_ends_by_its_own_deadline_however_many_statements_it_needs(
    client_of: OpenClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    async with client_of("alice") as alice, client_of("bob") as bob:
        await call(alice, "create_conversation")
        with monkeypatch.context() as patched:
            patched.setattr("chatledger.server.app.CALL_SECONDS", 0.1)
            patched.setattr("chatledger.storage.store.ConversationStore.load_history", never)
            assert_unavailable(await asyncio.wait_for(alice.call_tool("load_history", {}), PATIENCE))
            assert_unavailable(await asyncio.wait_for(bob.call_tool("load_history", {}), PATIENCE))
        assert (await call(alice, "load_history"))["messages"] == []
