"""What a server tells of its calls: enough to run it, and nothing that was said in them."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from chatledger.server import app
from chatledger.server.app import LedgerServer
from chatledger.server.metrics import Metrics
from chatledger.server.observing import Call, CallLog, Observers
from chatledger.storage import ConversationStore
from tests.http_server import HttpServer, serving
from tests.patience import PATIENCE

CANARY = "Qx9canaryQx9"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


async def talk(server: HttpServer) -> None:
    """Something of everything: stored, refused, unknown, read."""
    await server.post(call("create_conversation", title=CANARY, key=CANARY), {"x-request-id": "trace-7"})
    await server.post(call("append_message", conversation_id=1, role="user", content=CANARY))
    messages = [{"role": "user", "content": CANARY, "client_message_id": CANARY + str(n)} for n in range(3)]
    await server.post(call("append_messages", conversation_id=1, messages=messages))
    await server.post(call("append_message", conversation_id=1, role=CANARY, content=CANARY))
    await server.post(call("load_history", conversation_id=99))
    await server.post(call(CANARY, x=CANARY))
    uri = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": f"conversation://{CANARY}"}}
    await server.post(uri)


async def test_a_line_for_each_call_says_who_by_a_digest_what_and_how_it_ended(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []

    def observing(server: LedgerServer, store: ConversationStore) -> list[Any]:
        server.observers.add(CallLog(store.database.known_secret, lines.append))
        return []

    async with serving(database_url, observing=observing) as server:
        await talk(server)
    told = [json.loads(line) for line in lines]
    assert [(each["method"], each["code"]) for each in told] == [
        ("tools/call", "ok"),
        ("tools/call", "ok"),
        ("tools/call", "ok"),
        ("tools/call", "invalid_argument"),
        ("tools/call", "conversation_unavailable"),
        ("tools/call", "invalid_argument"),
        ("resources/read", "invalid_argument"),
    ]
    assert told[0]["request_id"] == "trace-7"
    assert len({each["request_id"] for each in told}) == 7
    (user,) = {each["user"] for each in told}
    assert re.fullmatch("[0-9a-f]{16}", user)
    assert all(each["ms"] >= 0 for each in told)
    assert CANARY not in "".join(lines)
    assert "alice" not in "".join(lines)
    assert CANARY not in caplog.text


def test_messages_are_counted_also_where_a_client_sends_them_as_text() -> None:
    assert app._count([{"role": "user", "content": "hello"}] * 2) == 2
    assert app._count('[{"role": "user", "content": "hello"}]') == 1


async def test_figures_count_calls_by_tool_and_code_and_hold_no_text(database_url: str) -> None:
    def observing(server: LedgerServer, store: ConversationStore) -> list[Any]:
        metrics = Metrics(store)
        server.observers.add(metrics)
        return [metrics.route()]

    async with serving(database_url, observing=observing) as server:
        await talk(server)
        text = (await server.request("GET", "/metrics", {"host": "10.0.0.1"})).body.decode()
    assert 'chatledger_calls_total{code="ok",method="tools/call",tool="append_message"} 1.0' in text
    assert 'chatledger_calls_total{code="invalid_argument",method="tools/call",tool="unknown"} 1.0' in text
    assert 'chatledger_calls_total{code="invalid_argument",method="resources/read",tool=""} 1.0' in text
    assert 'chatledger_call_seconds_count{method="tools/call",tool="load_history"} 1.0' in text
    assert "chatledger_append_messages_sum 4.0" in text
    assert re.search(r"^chatledger_database_connections_idle [1-9]", text, re.MULTILINE)
    assert "chatledger_database_connections_used 0.0" in text
    assert CANARY not in text


@pytest.mark.parametrize("sent", ["x" * 65, "a b", "a\tb", "é", ""])
async def test_a_request_id_is_kept_only_where_it_is_harmless(sent: str, database_url: str) -> None:
    async with serving(database_url) as server:
        kept = await server.post(call("list_conversations"), {"x-request-id": "abc-1.2_3"})
        made = await server.post(call("list_conversations"), {"x-request-id": sent})
    assert kept.headers["x-request-id"] == "abc-1.2_3"
    assert re.fullmatch("[0-9a-f]{16}", made.headers["x-request-id"])


async def test_an_observer_that_fails_fails_no_call(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Call] = []

    async def failing(_: Call) -> None:
        raise ValueError(CANARY)

    async def noting(call: Call) -> None:
        told.append(call)

    observers = Observers()
    assert not observers
    observers.add(failing)
    observers.add(noting)
    await observers.tell(Call("tools/call", "load_history"))
    assert len(told) == 1
    assert "an observer failed: ValueError" in caplog.text
    assert CANARY not in caplog.text


async def test_a_log_waits_for_no_database() -> None:
    lines: list[str] = []
    async with ConversationStore.at("postgresql://nobody@127.0.0.1:1/none") as store:
        log = CallLog(store.database.known_secret, lines.append)
        async with asyncio.timeout(PATIENCE):
            await log(Call("tools/list", user_id="alice"))
    assert "user" not in json.loads(lines[0])
