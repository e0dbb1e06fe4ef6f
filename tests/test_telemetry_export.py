"""To whom spans go: nobody unasked, a provider that is there already, a collector, which holds up no call or stop."""

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
from mcp import Client
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from chatledger.server import telemetry
from chatledger.server.app import make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore
from tests.http_server import HEADERS, HttpServer
from tests.patience import PATIENCE
from tests.spans_in_memory import Spans
from tests.test_telemetry import CANARY

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


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
