"""The server over HTTP: clients of every kind, health, limits, and the process from start to stop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client

from chatledger.server.admission import Admission, Rate, RateLimited
from tests.http_server import HttpServer, call, serving
from tests.patience import PATIENCE


@pytest.fixture
async def server(database_url: str) -> AsyncIterator[HttpServer]:
    async with serving(database_url) as running:
        yield running


# ---- clients --------------------------------------------------------------------------------------------------------


async def test_the_sdks_client_works_over_streamable_http_in_both_eras(server: HttpServer, era: str) -> None:
    async with Client(f"{server.base}/mcp", mode=era) as client:
        made = await client.call_tool("create_conversation", {"title": era})
        number = made.structured_content["conversation"]["number"]
        await client.call_tool("append_message", {"conversation_id": number, "role": "user", "content": "你好"})
        loaded = await client.call_tool("load_history", {"conversation_id": number})
        assert loaded.structured_content is not None
        assert [each["content"] for each in loaded.structured_content["messages"]] == ["你好"]
        assert (await client.list_resources()).resources
        refused = await client.call_tool("load_history", {"conversation_id": 99})
        assert refused.structured_content is not None
        assert refused.structured_content["error"]["code"] == "conversation_unavailable"


async def test_sse_serves_the_older_clients(server: HttpServer) -> None:
    async with sse_client(f"{server.base}/sse") as streams, ClientSession(*streams) as session:
        await session.initialize()
        made = await session.call_tool("create_conversation", {"title": "over SSE"})
        assert not made.is_error
    assert [each.conversation.title for each in (await server.store.list_conversations("alice")).conversations] == [
        "over SSE"
    ]


async def test_two_processes_on_one_database_behave_as_one(database_url: str) -> None:
    async with serving(database_url) as one, serving(database_url) as other:
        made = await one.post(call("tools/call", {"name": "create_conversation", "arguments": {"key": "k"}}))
        found = await other.post(call("tools/call", {"name": "create_conversation", "arguments": {"key": "k"}}))
        first, second = (answer.json()["result"]["structuredContent"] for answer in (made, found))
        assert (first["created"], second["created"]) == (True, False)
        assert first["conversation"]["id"] == second["conversation"]["id"]


async def test_health_needs_no_known_host_and_readiness_tells_of_the_database(server: HttpServer) -> None:
    for path, status in (("/healthz", "ok"), ("/readyz", "ready")):
        answer = await server.request("GET", path, {"host": "10.0.0.7:8000"})
        assert (answer.status, answer.json()) == (200, {"status": status})


async def test_readiness_fails_without_a_schema_and_health_does_not(empty_database_url: str) -> None:
    async with serving(empty_database_url) as server:
        assert (await server.request("GET", "/healthz")).status == 200
        answer = await server.request("GET", "/readyz")
        assert (answer.status, answer.json()["code"]) == (503, "schema_out_of_date")


# ---- limits ---------------------------------------------------------------------------------------------------------


async def test_over_the_rate_a_call_is_told_when_to_come_again(database_url: str) -> None:
    async with serving(database_url, rate=Rate(0.5, 3)) as server:
        listed = call("tools/call", {"name": "list_conversations", "arguments": {}})
        answers = [await server.post(listed) for _ in range(4)]
        results = [answer.json()["result"] for answer in answers]
        assert [result.get("isError", False) for result in results] == [False, False, False, True]
        error = results[3]["structuredContent"]["error"]
        assert (error["code"], error["status"], error["retryable"]) == ("rate_limited", 429, True)
        assert 1 <= error["retry_after_seconds"] <= 2
        assert answers[3].headers["retry-after"] == "2"
        assert "retry-after" not in answers[0].headers
        read = await server.post(call("resources/list"))
        assert read.json()["error"]["data"]["code"] == "rate_limited"


async def test_one_user_may_have_so_many_calls_in_flight_and_another_is_not_held_up() -> None:
    user = "alice"

    async def caller(ctx: Any) -> str:
        return user

    admission = Admission(caller, Rate(1_000, 100), in_flight=2)
    context: Any = None
    async with admission(context), admission(context):
        with pytest.raises(RateLimited, match="2 calls of yours are running"):
            async with admission(context):
                pass
        user = "bob"
        async with admission(context):
            pass
    user = "alice"
    async with admission(context):
        pass


# ---- the process ----------------------------------------------------------------------------------------------------


@pytest.fixture
def program(database_url: str, tmp_path: Path) -> Any:
    def start(*words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [Path(sys.executable).with_name("chatledger"), "serve", *words],
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CHATLEDGER_DATABASE_URL": database_url}
            | {f"CHATLEDGER_{name}": value for name, value in environment.items()},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_the_command_says_where_it_serves_and_stops_when_told_to(transport: str, program: Any) -> None:
    process = program("--transport", transport, "--port", "0")
    try:
        told = await asyncio.wait_for(asyncio.to_thread(process.stderr.readline), PATIENCE)
        found = re.findall(r"http://127\.0\.0\.1:\d+/\w+", told)
        assert [url.rsplit("/", 1)[1] for url in found] == (["mcp", "sse"] if transport == "http" else ["sse", "mcp"])
        sse = next(url for url in found if url.endswith("sse"))
        async with sse_client(sse) as streams, ClientSession(*streams) as session:
            await session.initialize()
            assert not (await session.call_tool("create_conversation", {})).is_error
            process.send_signal(signal.SIGTERM)
            code = await asyncio.wait_for(asyncio.to_thread(process.wait), PATIENCE)
        assert code == 0
        err = process.stderr.read()
        # The stream of the client that is still there may see the signal before the server counts what is in flight.
        assert re.search(r"^chatledger: stopping(: 1 requests in flight, at most \d+ s)?$", err, re.MULTILINE)
        assert err.endswith("chatledger: stopped\n")
        assert "Traceback" not in err
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("words", "settings", "told"),
    [
        (["--host", "0.0.0.0"], {}, "without authentication only loopback addresses are served"),
        (["--host", "10.255.255.1"], {"AUTH_SECRET": "s" * 40}, "cannot be served"),
        (["--host", "0.0.0.0", "--port", "0"], {"AUTH_SECRET": "s" * 40}, "CHATLEDGER_PUBLIC_URL"),
        (["--port", "70000"], {}, "cannot be served"),
        ([], {"PUBLIC_URL": "https://ledger.example"}, "everybody who comes through ledger.example would be the same"),
        ([], {"ALLOWED_HOSTS": "localhost:1, [::1]:2, ledger.example:3"}, "everybody who comes through ledger.example"),
    ],
)
def test_an_address_that_must_not_or_cannot_be_served_is_refused(
    words: list[str], settings: dict[str, str], told: str, program: Any
) -> None:
    process = program("--transport", "http", *words, **settings)
    out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (2, "")
    assert told in err
    assert "Traceback" not in err
    assert "ssss" not in err
