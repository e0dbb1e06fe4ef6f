"""What is sent to the server over HTTP that should not be: the transport table of bad input, row by row."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client
from mcp.types import CancelledNotification, CancelledNotificationParams

from chatledger.server import http_envelope, http_guard, http_protocol
from tests.http_server import HEADERS, LIST, META, MODERN, HttpServer, call, serving
from tests.patience import PATIENCE


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[HttpServer]:
    async with serving(database_url) as running:
        yield running


@pytest.fixture(params=["older", "newest"])
def era_headers(request: pytest.FixtureRequest) -> dict[str, str | None]:
    return {"mcp-protocol-version": MODERN, "mcp-method": "tools/list"} if request.param == "newest" else {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{x",
        b'{"jsonrpc":"2.0",',
        b"\xef\xbb\xbf" + json.dumps(LIST).encode(),
        b'{"a":"\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=["empty", "not JSON", "truncated", "byte order mark", "invalid UTF-8", "deep arrays", "deep objects"],
)
async def test_what_is_no_json_is_a_parse_error(
    body: bytes, server: HttpServer, era_headers: dict[str, str | None]
) -> None:
    answer = await server.post(body, era_headers)
    assert (answer.status, answer.json()["error"]["code"]) == (400, -32700)
    assert (await server.post(LIST)).status == 200


def test_deep_nesting_costs_nothing() -> None:
    for body in (b"[" * 100_000, b'{"a":' * 100_000, b'{"jsonrpc":"2.0","id":1,"method":' + b"[" * 100_000):
        began = time.process_time()
        with pytest.raises(http_envelope.NoMessage):
            http_envelope.read_message(body)
        assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "body",
    [
        [LIST],
        1,
        "text",
        None,
        True,
        {},
        {**LIST, "jsonrpc": "1.0"},
        {**LIST, "method": 7},
        {**LIST, "id": None},
        {**LIST, "id": {}},
        {**LIST, "id": [1]},
        {**LIST, "id": True},
        {**LIST, "id": 1.5},
        {**LIST, "id": "x" * 10_000},
        b'{"jsonrpc":"2.0","id":1e400,"method":"tools/list"}',
        {**LIST, "params": ["x" * 100]},
        {**LIST, "params": "x" * 100},
        {"jsonrpc": "2.0", "id": 1, "result": "x" * 100},
        {"jsonrpc": "2.0", "result": {}},
        {"jsonrpc": "2.0", "id": 1, "error": "x" * 100},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": "x" * 100, "message": ""}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": ["x" * 100]}},
    ],
    ids=lambda body: str(body)[:80],
)
async def test_what_is_no_single_message_is_an_invalid_request(
    body: Any, server: HttpServer, era_headers: dict[str, str | None]
) -> None:
    answer = await server.post(body, era_headers)
    assert (answer.status, answer.json()["error"]["code"]) == (400, -32600)
    assert "x" * 50 not in answer.body.decode()


async def test_what_is_no_message_is_refused_over_sse_too_and_its_text_is_in_no_log(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with (
        httpx2.AsyncClient(base_url=server.base, timeout=PATIENCE) as http,
        http.stream("GET", "/sse") as stream,
    ):
        lines = stream.aiter_lines()  # when it is given up, the stream is closed
        while not (line := await anext(lines)).startswith("data: "):
            pass
        endpoint = line.removeprefix("data: ")
        for code, body in (
            (-32700, b'{"method": "Kw4canary'),
            (-32600, b'["Kw4canary"]'),
            (-32600, b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":["Kw4canary"]}'),
            (-32600, b'{"jsonrpc":"2.0","id":["Kw4canary"],"method":"tools/list"}'),
            (-32600, b'{"jsonrpc":"2.0","id":1,"result":"Kw4canary"}'),
        ):
            answer = await http.post(endpoint, content=body, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
            assert "Kw4canary" not in answer.text
        assert (await http.post(endpoint, json=call("ping"))).status_code == 202
        while not (line := await anext(lines)).startswith("data: "):
            pass
        assert json.loads(line.removeprefix("data: ")) == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert "Kw4canary" not in caplog.text


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"1e999"])
async def test_numbers_that_json_does_not_have_are_refused(constant: bytes, server: HttpServer) -> None:
    body = json.dumps(call("tools/call", {"name": "load_history", "arguments": {"limit": "?"}})).encode()
    answer = await server.post(body.replace(b'"?"', constant))
    assert answer.status == 400 or answer.json()["result"]["structuredContent"]["error"]["code"] == "invalid_argument"


async def test_an_unknown_method_is_said_to_be_one(server: HttpServer) -> None:
    for method in ("nope", "TOOLS/LIST"):
        older = await server.post(call(method))
        assert older.json()["error"]["code"] == -32601
        newest = await server.post(
            call(method, {"_meta": META}), {"mcp-protocol-version": MODERN, "mcp-method": method}
        )
        assert (newest.status, newest.json()["error"]["code"]) == (404, -32601)


async def test_headers_of_the_newest_revision_must_agree_with_the_body(server: HttpServer) -> None:
    body = call("tools/list", {"_meta": META})
    assert (await server.post(body, {"mcp-protocol-version": MODERN, "mcp-method": "tools/list"})).status == 200
    for headers in ({"mcp-method": "tools/call"}, {"mcp-method": None}):
        answer = await server.post(body, {"mcp-protocol-version": MODERN, **headers})
        assert (answer.status, answer.json()["error"]["code"]) == (400, -32020)
    without = await server.post(LIST, {"mcp-protocol-version": MODERN, "mcp-method": "tools/list"})
    assert (without.status, without.json()["error"]["code"]) == (400, -32602)
    unknown = call("tools/list", {"_meta": {**META, "io.modelcontextprotocol/protocolVersion": "2099-01-01"}})
    answer = await server.post(unknown, {"mcp-protocol-version": "2099-01-01", "mcp-method": "tools/list"})
    assert (answer.status, answer.json()["error"]["code"]) == (400, -32022)
    assert MODERN in answer.json()["error"]["data"]["supported"]


@pytest.mark.parametrize(
    "headers",
    [
        {"mcp-name": "delete_conversation"},
        {"mcp-name": "LIST_CONVERSATIONS"},
        {"mcp-name": None},
        {"mcp-name": "list_conversations\r\nmcp-name: list_conversations"},
        {"mcp-method": "tools/call\r\nmcp-method: tools/list"},
    ],
    ids=["another", "another case", "missing", "a name twice", "two methods"],
)
async def test_the_headers_of_a_call_must_name_the_tool_in_its_body(
    headers: dict[str, str | None], server: HttpServer
) -> None:
    body = call("tools/call", {"name": "list_conversations", "arguments": {}, "_meta": META})
    right = {"mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": "list_conversations"}
    assert (await server.post(body, {**right})).status == 200
    answer = await server.post(body, {**right, **headers})
    assert (answer.status, answer.json()["error"]["code"]) == (400, -32020)


async def test_of_a_key_that_comes_twice_the_last_counts_and_a_header_must_agree_with_that(server: HttpServer) -> None:
    await server.store.create_conversation("alice")
    body = json.dumps(call("tools/call", {"name": "list_conversations", "arguments": {}, "_meta": META}))
    twice = body.replace('"name": "list_conv', '"name": "delete_conversation", "name": "list_conv').encode()
    assert twice.count(b'"name"') == body.count('"name"') + 1
    older = await server.post(twice)
    assert len(older.json()["result"]["structuredContent"]["conversations"]) == 1
    headers: dict[str, str | None] = {"mcp-protocol-version": MODERN, "mcp-method": "tools/call"}
    assert (await server.post(twice, {**headers, "mcp-name": "list_conversations"})).status == 200
    first = await server.post(twice, {**headers, "mcp-name": "delete_conversation"})
    assert (first.status, first.json()["error"]["code"]) == (400, -32020)


async def test_white_space_round_a_header_is_no_part_of_it(server: HttpServer) -> None:
    headers: dict[str, str | None] = {"mcp-protocol-version": f" {MODERN}\t", "mcp-method": "\t tools/list  "}
    headers["host"] = f"localhost:{server.port} "
    assert (await server.post(call("tools/list", {"_meta": META}), headers)).status == 200


async def test_a_body_over_the_limit_is_refused_however_it_is_sent(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_guard, "BODY_BYTES", 1_000)
    large = json.dumps(call("x" * 2_000)).encode()
    assert (await server.post(large)).status == 413
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    chunk = f"{len(large):x}\r\n".encode() + large + b"\r\n0\r\n\r\n"
    begin = f"POST /mcp HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n{head}\r\n".encode()
    assert (await server.send(begin, chunk)).status == 413
    assert (await server.post(LIST)).status == 200


async def test_the_largest_batch_that_the_tools_allow_fits(server: HttpServer) -> None:
    await server.store.create_conversation("alice")
    messages = [{"role": "user", "content": "\U0001f600" * 10_000}] * 100
    arguments = {"conversation_id": 1, "messages": messages}
    answer = await server.post(call("tools/call", {"name": "append_messages", "arguments": arguments}))
    assert answer.json()["result"]["structuredContent"]["last_seq"] == 100


async def test_a_body_without_a_length_is_none(server: HttpServer, era_headers: dict[str, str | None]) -> None:
    answer = await server.post(b"", {**era_headers, "content-length": None})
    assert (answer.status, answer.json()["error"]["code"]) == (400, -32700)


async def test_bodies_are_read_plain_and_as_json_only(server: HttpServer) -> None:
    assert (await server.post(LIST, {"content-encoding": "gzip"})).status == 415
    assert (await server.post(LIST, {"content-type": "text/plain"})).status in (400, 415)
    assert (await server.post(LIST, {"content-type": None})).status in (400, 415)
    newest = call("tools/list", {"_meta": META})
    for body, headers in ((LIST, {}), (newest, {"mcp-protocol-version": MODERN, "mcp-method": "tools/list"})):
        for accepted in ("text/html", "text/event-stream", "application/xml, text/event-stream"):
            assert (await server.post(body, {**headers, "accept": accepted})).status == 406


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_only_post_is_served_at_mcp(method: str, server: HttpServer, era_headers: dict[str, str | None]) -> None:
    answer = await server.request(method, "/mcp", {**HEADERS, **era_headers})
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost.evil", "http://127.0.0.1@evil", "file://", "", "http://"],
)
async def test_a_page_of_somebody_else_is_refused(origin: str, server: HttpServer) -> None:
    for path in ("/mcp", "/messages/?session_id=x"):
        answer = await server.request("POST", path, {**HEADERS, "origin": origin}, json.dumps(LIST).encode())
        assert answer.status == 403
    assert (await server.request("GET", "/sse", {"origin": origin})).status == 403


@pytest.mark.parametrize("origin", ["http://localhost", "http://localhost:3000", "http://127.0.0.1:1"])
async def test_a_page_of_this_machine_is_served(origin: str, server: HttpServer) -> None:
    assert (await server.post(LIST, {"origin": origin})).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil", "127.0.0.1:80@evil", "127.0.0.1:8000:1", "[::1", "localhost:x", ""],
)
async def test_a_name_that_is_not_known_is_refused(host: str, server: HttpServer) -> None:
    assert (await server.post(LIST, {"host": host})).status == 421
    assert (await server.request("GET", "/sse", {"host": host})).status == 421


async def test_a_request_without_a_host_or_with_two_is_refused(server: HttpServer) -> None:
    assert (await server.post(LIST, {"host": None})).status in (400, 421)
    two = b"POST /mcp HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\ncontent-length: 0\r\n\r\n"
    assert (await server.send(two)).status in (400, 421)


@pytest.mark.parametrize(
    "head",
    [
        b"x: " + b"y" * 64_000 + b"\r\n",
        b"".join(b"x%d: 1\r\n" % number for number in range(1_000)),
        b"x: a\rb\r\n",
        b"x y: 1\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
    ],
    ids=["64 kB", "1,000 fields", "CR", "space in a name", "two lengths"],
)
async def test_an_unreasonable_head_is_refused(head: bytes, server: HttpServer) -> None:
    answer = await server.send(b"POST /mcp HTTP/1.1\r\nhost: localhost\r\n" + head + b"\r\n")
    assert answer.status in (400, 431)
    assert (await server.post(LIST)).status == 200


async def test_a_head_without_an_end_is_not_kept(server: HttpServer) -> None:
    answer = await server.send(b"POST /mcp HTTP/1.1\r\nx: ", *[b"y" * 1_000] * 40)
    assert answer.status in (400, 431)


async def test_a_client_that_sends_slowly_is_not_waited_for(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_guard, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.3)
    slow = [b"x"] * 10
    head = b"POST /mcp HTTP/1.1\r\nhost: localhost\r\n"
    assert (await server.send(head, *slow, pause=0.1)).status == 408
    assert (await server.send(head + b"content-length: 100\r\n\r\n", *slow, pause=0.1)).status == 408
    assert (await server.post(LIST)).status == 200


async def test_a_request_id_in_flight_twice_gets_each_its_own_answer(server: HttpServer) -> None:
    for title in ("one", "two"):
        await server.store.create_conversation("alice", title=title)
    loads = [
        call("tools/call", {"name": "load_history", "arguments": {"conversation_id": 1 + n % 2}}) for n in range(40)
    ]
    answers = await asyncio.gather(*(server.post(load) for load in loads))
    titles = [answer.json()["result"]["structuredContent"]["conversation"]["title"] for answer in answers]
    assert titles == ["one", "two"] * 20


@pytest.fixture
def held_loads(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """Every load says by the first event that it has begun, and waits for the second."""
    begun, may_end = asyncio.Event(), asyncio.Event()
    load = server.store.load_history

    async def slowly(*arguments: Any, **options: Any) -> Any:
        begun.set()
        await may_end.wait()
        return await load(*arguments, **options)

    monkeypatch.setattr(server.store, "load_history", slowly)
    return begun, may_end


async def test_a_request_is_not_cancelled_by_what_comes_in_another(
    server: HttpServer, held_loads: tuple[asyncio.Event, asyncio.Event]
) -> None:
    begun, may_end = held_loads
    await server.store.create_conversation("alice")
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1, "reason": "no"}}
    eras: list[dict[str, str | None]] = [
        {},
        {"mcp-protocol-version": MODERN, "mcp-method": "tools/call", "mcp-name": "load_history"},
    ]
    for headers in eras:
        begun.clear()
        may_end.clear()
        body = call("tools/call", {"name": "load_history", "arguments": {}, **({"_meta": META} if headers else {})})
        running = asyncio.create_task(server.post(body, headers))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        for said in ({}, {"mcp-protocol-version": MODERN, "mcp-method": "notifications/cancelled"}):
            assert (await server.post(cancel, {**said})).status == 202
        may_end.set()
        assert (await running).json()["result"]["structuredContent"]["messages"] == []


async def test_over_sse_a_client_cancels_its_own_requests_only(
    server: HttpServer, held_loads: tuple[asyncio.Event, asyncio.Event]
) -> None:
    begun, may_end = held_loads
    await server.store.create_conversation("alice")
    async with (
        sse_client(f"{server.base}/sse") as one,
        sse_client(f"{server.base}/sse") as other,
        ClientSession(*one) as busy,
        ClientSession(*other) as stranger,
    ):
        await busy.initialize()
        await stranger.initialize()
        running = asyncio.create_task(busy.call_tool("load_history", {}))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        for number in range(10):
            await stranger.send_notification(
                CancelledNotification(params=CancelledNotificationParams(request_id=number))
            )
        assert (await stranger.list_tools()).tools  # all of them have been read by now
        may_end.set()
        assert not (await asyncio.wait_for(running, PATIENCE)).is_error


async def test_a_client_that_leaves_in_the_middle_of_a_write_has_written(server: HttpServer) -> None:
    await server.store.create_conversation("alice")
    body = json.dumps(
        call(
            "tools/call",
            {"name": "append_message", "arguments": {"conversation_id": 1, "role": "user", "content": "x"}},
        )
    ).encode()
    head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    for _ in range(20):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            f"POST /mcp HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body
        )
        await writer.drain()
        writer.close()
    async with asyncio.timeout(PATIENCE):
        while (await server.store.load_history("alice", 1)).conversation.message_count < 20:
            await asyncio.sleep(0.01)
