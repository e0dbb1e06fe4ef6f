"""Spans: what they say, to whom they go, and that nothing which a client or a user chose is in one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from chatledger.server import telemetry
from chatledger.server.app import LedgerServer, make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore
from chatledger.storage.engine import Database
from tests.http_server import HEADERS, MODERN, HttpServer, serving
from tests.patience import PATIENCE

CANARY = "Qx5canaryQx5"
TRACE = "0af7651916cd43dd8448eb211c80319c"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Spans:
    """What a provider was left, in memory."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))

    def taken(self) -> list[ReadableSpan]:
        """Those that have ended since the last time."""
        found = list(self._kept.get_finished_spans())
        self._kept.clear()
        return found

    def messages(self) -> list[ReadableSpan]:
        return [span for span in self.taken() if span.kind is SpanKind.SERVER]

    def observing(self, server: LedgerServer, store: ConversationStore) -> list[Any]:
        telemetry.watch(server, store, self.provider)
        return []


@pytest.fixture
def spans() -> Spans:
    return Spans()


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


# ---- to whom they go ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({ENDPOINT: "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", ENDPOINT: "http://c:4318"}, False),
    ],
)
async def test_where_nobody_asks_for_spans_nothing_is_in_the_way_of_a_call(
    environment: dict[str, str], asked: bool, store: ConversationStore
) -> None:
    server = make_server(store, local_user("alice"))
    before = list(server.middleware)
    stop = telemetry.start(server, store, environment)
    assert (stop is not None, server.middleware != before, "read" in vars(store.database)) == (asked,) * 3
    if stop is not None:
        await stop()


async def test_a_provider_that_is_set_up_already_gets_them(
    store: ConversationStore, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: spans.provider)
    server = make_server(store, local_user("alice"))
    assert telemetry.start(server, store, {}) is None
    async with Client(server) as client:
        await client.call_tool("list_conversations", {})
    assert "tools/call list_conversations" in {span.name for span in spans.taken()}


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"OTEL_TRACES_EXPORTER": f"console,{CANARY}"}, "otlp over http/protobuf only"),
        ({ENDPOINT: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp over http/protobuf only"),
        ({ENDPOINT: "http://c:4318", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "ValueError"),
    ],
)
async def test_what_cannot_be_exported_as_it_is_asked_for_is_said_without_any_value(
    environment: dict[str, str], why: str, store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(telemetry.Unusable, match=why) as unusable:
        telemetry.start(make_server(store, local_user("alice")), store, os.environ)
    assert CANARY not in str(unusable.value)


async def test_without_the_extra_that_is_said(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(telemetry.Unusable, match="the extra `telemetry` is not installed"):
        telemetry.start(make_server(store, local_user("alice")), store, {ENDPOINT: "http://127.0.0.1:1"})


class Collector:
    """What is posted to a collector on a loopback port."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.posted: list[tuple[str, dict[str, str], bytes]] = []
        self.answers = threading.Event()
        self.answers.set()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@contextmanager
def collecting() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.posted.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            kept.answers.wait(2 * PATIENCE)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: stderr is for what a test looks for."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    kept = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield kept
    finally:
        kept.answers.set()
        server.shutdown()
        thread.join()
        server.server_close()


async def served_once(database_url: str, folder: Path, environment: dict[str, str]) -> tuple[str, float]:
    """Serve one call in a process of its own and stop it: what it said, and how many seconds the stop took."""
    process = subprocess.Popen(
        [Path(sys.executable).with_name("chatledger"), "serve", "--transport", "http", "--port", "0"],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "CHATLEDGER_DATABASE_URL": database_url} | environment,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        said = ""
        while "serving" not in said:
            line = await asyncio.wait_for(asyncio.to_thread(process.stderr.readline), PATIENCE)
            assert line, said
            said += line
        port = int(said.split("/mcp")[0].rsplit(":", 1)[1])
        store: Any = None
        call = {"name": "create_conversation", "arguments": {"title": CANARY}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        assert (await HttpServer(port, store).post(body, dict(HEADERS))).status == 200
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, rest = await asyncio.wait_for(asyncio.to_thread(process.communicate), PATIENCE)
        assert process.returncode == 0
        return said + rest, time.monotonic() - began
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


async def test_a_collector_gets_the_spans_of_a_server_by_the_time_that_it_has_stopped(
    database_url: str, collector: Collector, tmp_path: Path
) -> None:
    key = {"OTEL_EXPORTER_OTLP_HEADERS": f"x-api-key={CANARY}-key"}
    said, _ = await served_once(database_url, tmp_path, {ENDPOINT: collector.url} | key)
    request = ExportTraceServiceRequest()
    for path, headers, body in collector.posted:
        assert (path, headers["x-api-key"]) == ("/v1/traces", f"{CANARY}-key")
        assert CANARY.encode() not in body
        request.MergeFromString(body)
    (resource, *_) = [each.resource for each in request.resource_spans]
    named = {attribute.key: attribute.value.string_value for attribute in resource.attributes}
    assert named["service.name"] == "chatledger"
    assert named.keys() >= {"service.version", "telemetry.sdk.name"}
    names = [span.name for each in request.resource_spans for scope in each.scope_spans for span in scope.spans]
    assert "tools/call create_conversation" in names
    assert "database write" in names
    assert CANARY not in said


async def test_a_collector_that_does_not_answer_holds_up_neither_a_call_nor_the_stop(
    database_url: str, collector: Collector, tmp_path: Path
) -> None:
    collector.answers.clear()
    patient = {"OTEL_EXPORTER_OTLP_TIMEOUT": str(2 * PATIENCE)}  # so long would the exporter itself try
    _, seconds = await served_once(database_url, tmp_path, {ENDPOINT: collector.url} | patient)
    assert seconds < 25  # the SDK's own stop waits for 30
    assert collector.posted


async def test_a_server_that_cannot_leave_spans_says_so_and_serves(database_url: str, tmp_path: Path) -> None:
    said, _ = await served_once(database_url, tmp_path, {"OTEL_TRACES_EXPORTER": "console"})
    assert "http/protobuf only, and OTEL_... asks for something else; it goes on without spans" in said
