"""A tool that reports progress is answered in a stream, for who asks for that; everything else is one JSON document."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from mcp.server.mcpserver import Context
from starlette.routing import Route

from chatledger.server.app import LedgerServer
from chatledger.storage import ConversationStore
from tests.http_server import serving

HEADERS = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}


async def slow(ctx: Context[Any, Any]) -> str:
    """Say that half is done."""
    await ctx.report_progress(1, 2)
    return "done"


def call(tool: str, *, asks: bool) -> dict[str, Any]:
    params: dict[str, Any] = {"name": tool, "arguments": {}} | ({"_meta": {"progressToken": "p"}} if asks else {})
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}


@pytest.mark.parametrize(
    ("tool", "asks", "streamed"),
    [("slow", True, True), ("slow", False, False), ("list_conversations", True, False)],
)
async def test_only_progress_that_somebody_asks_for_comes_in_a_stream(
    database_url: str, tool: str, asks: bool, streamed: bool
) -> None:
    def with_slow(server: LedgerServer, _: ConversationStore) -> list[Route]:
        assert server.reporting == frozenset(), "none of ours reports any"
        server.add_tool(slow, structured_output=False)
        server.reporting |= {"slow"}
        return []

    async with serving(database_url, observing=with_slow) as served, httpx2.AsyncClient() as client:
        url = f"http://127.0.0.1:{served.port}/mcp"
        answer = await client.post(url, json=call(tool, asks=asks), headers=HEADERS)
    assert answer.status_code == 200
    if not streamed:
        assert answer.headers["content-type"].startswith("application/json")
        assert "result" in answer.json()
        return
    assert answer.headers["content-type"].startswith("text/event-stream")
    messages = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert messages[0]["params"] == {"progressToken": "p", "progress": 1, "total": 2}
    assert messages[-1]["result"]["content"][0]["text"] == "done"
