"""Spans: what they say, and that nothing which a client or a user chose is in one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mcp import Client, MCPError
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from chatledger.server import telemetry
from chatledger.server.app import LedgerServer, make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore
from chatledger.storage.engine import Database
from tests.http_server import MODERN, HttpServer, serving
from tests.patience import PATIENCE
from tests.spans_in_memory import Spans

CANARY = "Qx5canaryQx5"
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def watched(store: ConversationStore, spans: Spans) -> LedgerServer:
    server = make_server(store, local_user("alice"))
    telemetry.watch(server, store, spans.provider)
    return server


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


# ---- what they say --------------------------------------------------------------------------------------------------


async def test_a_call_has_a_span_by_its_tool_and_its_statements_are_inside(
    watched: LedgerServer, spans: Spans, era: str
) -> None:
    async with Client(watched, mode=era) as client:
        await client.list_tools()  # or the client would ask for them after its first call
        spans.taken()
        await client.call_tool("create_conversation", {"title": CANARY})
        statement, call = spans.taken()
        assert (call.name, call.kind) == ("tools/call create_conversation", SpanKind.SERVER)
        assert call.status.status_code is StatusCode.UNSET
        assert told(call) == {
            "rpc.system": "jsonrpc",
            "mcp.method.name": "tools/call",
            "gen_ai.tool.name": "create_conversation",
        }
        assert (statement.name, statement.kind) == ("database write", SpanKind.CLIENT)
        assert told(statement)["db.system.name"] == "postgresql"
        assert told(statement)["db.response.returned_rows"] == 1
        assert statement.parent is not None
        assert call.context is not None
        assert statement.parent.span_id == call.context.span_id
        await client.get_prompt("resume_conversation", {"conversation_id": "1"})
        *read, prompt = spans.taken()
        assert prompt.name == "prompts/get resume_conversation"
        assert {span.name for span in read} == {"database read"}


async def test_a_failure_is_told_by_its_code_alone(
    watched: LedgerServer, spans: Spans, era: str, monkeypatch: pytest.MonkeyPatch, store: ConversationStore
) -> None:
    async with Client(watched, mode=era) as client:
        await client.call_tool("load_history", {"conversation_id": 77})
        await client.call_tool("load_history", {CANARY: 1})
        with pytest.raises(MCPError):
            await client.read_resource(f"conversation://{CANARY}")

        async def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError(CANARY)

        monkeypatch.setattr(store, "load_history", fail)
        await client.call_tool("load_history", {})
        found = [span for span in spans.messages() if "error.type" in told(span)]
        codes = ["conversation_unavailable", "invalid_argument", "invalid_argument", "internal"]
        assert [told(span)["error.type"] for span in found] == codes
        assert {span.status.status_code for span in found} == {StatusCode.ERROR}
        assert all(span.status.description is None and not span.events for span in found)


async def test_a_statement_that_fails_is_told_by_its_code_and_a_cancelled_one_as_such(
    spans: Spans, store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    async def never(*_: Any, **__: Any) -> list[Any]:
        begun.set()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(Database, "read", never)
    telemetry.watch(make_server(store, local_user("alice")), store, spans.provider)
    waiting = asyncio.create_task(store.ping())
    await asyncio.wait_for(begun.wait(), PATIENCE)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (span,) = spans.taken()
    assert told(span)["error.type"] == "CancelledError"


async def test_a_span_continues_the_clients_and_takes_over_nothing_else_of_it(
    watched: LedgerServer, spans: Spans
) -> None:
    async with Client(watched) as client:
        await client.list_tools()
        for sent, parent in (
            (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
            (f"00-{TRACE}-b7ad6b7169203331-01-{CANARY}", None),
            (CANARY, None),
            (["00"], None),
        ):
            spans.taken()
            meta: Any = {"traceparent": sent, "tracestate": f"a={CANARY}", "baggage": f"b={CANARY}"}
            await client.session.call_tool("list_conversations", {}, meta=meta)
            (span,) = spans.messages()
            assert span.context is not None
            assert (span.parent is None) == (parent is None)
            assert not span.context.trace_state
            if parent is not None:
                assert format(span.context.trace_id, "032x") == parent


# ---- what they do not say -------------------------------------------------------------------------------------------

META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": CANARY, "version": CANARY},
    "tracestate": f"a={CANARY}",
    "progressToken": CANARY,
}
MESSAGE = {"role": "user", "content": CANARY, "name": CANARY, "client_message_id": CANARY, "metadata": {"a": CANARY}}
CREATED = {"title": CANARY, "key": CANARY, "metadata": {CANARY: CANARY}}
SENT: list[tuple[str, dict[str, Any]]] = [
    ("tools/call", {"name": "create_conversation", "arguments": CREATED}),
    ("tools/call", {"name": "append_message", "arguments": {"conversation_id": 1, **MESSAGE}}),
    ("tools/call", {"name": "append_messages", "arguments": {"conversation_id": 1, "messages": [MESSAGE]}}),
    ("tools/call", {"name": "append_message", "arguments": {"conversation_id": 1, **MESSAGE, "content": "other"}}),
    ("tools/call", {"name": "load_history", "arguments": {"conversation_id": 1}}),
    ("tools/call", {"name": "search_messages", "arguments": {"query": CANARY}}),
    ("tools/call", {"name": "list_conversations", "arguments": {"cursor": CANARY, "title_contains": CANARY}}),
    ("tools/call", {"name": "list_conversations", "arguments": {"user_id": CANARY}}),
    ("tools/call", {"name": CANARY, "arguments": {}}),
    ("tools/call", {"name": [CANARY]}),
    ("resources/read", {"uri": f"conversation://1/{CANARY}"}),
    ("resources/read", {"uri": "conversation://1"}),
    ("prompts/get", {"name": CANARY, "arguments": {"conversation_id": CANARY}}),
    ("prompts/get", {"name": "resume_conversation", "arguments": {"conversation_id": "1"}}),
    ("completion/complete", {"ref": {"type": "ref/prompt", "name": CANARY}, "argument": {"name": "a", "value": "b"}}),
    (CANARY, {}),
]


async def answered(server: HttpServer, method: str, params: dict[str, Any], *, newest: bool) -> int:
    headers: dict[str, str | None] = {"authorization": f"Bearer {CANARY}", "x-request-id": f"{CANARY} not one"}
    body = {"jsonrpc": "2.0", "id": CANARY, "method": method, "params": params}
    if newest:
        body["params"] = params | {"_meta": META}
        headers |= {"mcp-protocol-version": MODERN, "mcp-method": method}
        if isinstance(name := params.get("name") or params.get("uri"), str):
            headers["mcp-name"] = name
    return (await server.post(body, headers)).status


@pytest.mark.parametrize("newest", [False, True], ids=["older", "newest"])
async def test_nothing_that_a_client_sends_is_in_a_span(
    database_url: str, spans: Spans, newest: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where the provider is everybody's: what the SDK itself would leave is seen as well.
    monkeypatch.setattr("mcp.shared._otel._tracer", spans.provider.get_tracer("mcp-python-sdk"))
    async with serving(database_url, observing=spans.observing) as server:
        for method, params in SENT:
            assert await answered(server, method, params, newest=newest) < 500
        notified = {"jsonrpc": "2.0", "method": f"notifications/{CANARY}"}
        await server.post(notified, {"mcp-protocol-version": "2025-11-25"})
    found = spans.taken()
    assert {span.name for span in found if span.kind is SpanKind.SERVER} >= {
        "tools/call append_messages",
        "tools/call unknown",
        "prompts/get unknown",
        "resources/read",
        "unknown",
    }
    assert sum(span.kind is SpanKind.CLIENT for span in found) > 5
    for span in found:
        assert CANARY not in span.to_json()
        assert "chatledger.request_id" in told(span) or span.kind is not SpanKind.SERVER
        assert {type(value) for value in told(span).values()} <= {str, int}
