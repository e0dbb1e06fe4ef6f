"""Structured content and text of an answer are equal, also where a transport writes one in the place of the other."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from mcp.client.session import ClientSession
from mcp.client.sse import sse_client

from chatledger.server import answers
from tests.http_server import META, MODERN, HttpServer, call, serving
from tests.patience import PATIENCE
from tests.test_stdio import served

STAND_IN = json.dumps({"structuredContent": answers.STAND_IN}, separators=(",", ":"))[1:-1]
# What looks like a stand-in, as itself and as it stands in a JSON text; quotes, controls, the invisible, other scripts.
LIKE_ONE = f'{STAND_IN} "text":"" {json.dumps(STAND_IN)}'
HOSTILE = LIKE_ONE + ' "\\"\\\\" \x01\x7f\u200b\u202e\U000e0041 你好 Ä …'


def checked(result: dict[str, Any]) -> dict[str, Any]:
    """The structured content, when the text says the same."""
    structured: dict[str, Any] = result["structuredContent"]
    assert structured == json.loads(result["content"][0]["text"])
    return structured


def test_over_stdio_they_are_equal(era: str, tmp_path: Path, database_url: str) -> None:
    with served(era, tmp_path, DATABASE_URL=database_url) as server:

        def ask(tool: str, **arguments: Any) -> dict[str, Any]:
            return checked(server.answer(server.send("tools/call", name=tool, arguments=arguments)))

        assert ask("create_conversation", title=HOSTILE)["conversation"]["title"] == HOSTILE
        assert ask("append_message", conversation_id=1, role="user", content=HOSTILE)["seq"] == 1
        assert ask("load_history")["messages"][0]["content"] == HOSTILE
        refused = server.answer(server.send("tools/call", name="load_history", arguments={"conversation_id": 9}))
        assert refused["structuredContent"]["error"]["code"] == "conversation_unavailable"


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
async def test_over_http_they_are_equal(database_url: str, version: str) -> None:
    async with serving(database_url) as server:

        async def ask(tool: str, **arguments: Any) -> dict[str, Any]:
            return checked(await asked(server, version, tool, arguments))

        assert (await ask("create_conversation", title=HOSTILE))["conversation"]["title"] == HOSTILE
        assert (await ask("append_message", conversation_id=1, role="user", content=HOSTILE))["seq"] == 1
        assert (await ask("load_history"))["messages"][0]["content"] == HOSTILE
        refused = await asked(server, version, "load_history", {"conversation_id": 9})
        assert refused["structuredContent"]["error"]["code"] == "conversation_unavailable"


async def asked(server: HttpServer, version: str, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    params: dict[str, Any] = {"name": tool, "arguments": arguments}
    headers: dict[str, str | None] = {"mcp-protocol-version": version}
    if version == MODERN:
        params["_meta"] = META
        headers |= {"mcp-method": "tools/call", "mcp-name": tool}
    answer = await server.post(call("tools/call", params), headers)
    assert len(answer.body) == int(answer.headers["content-length"])
    result: dict[str, Any] = answer.json()["result"]
    return result


async def test_over_sse_they_are_equal(database_url: str) -> None:
    async with (
        serving(database_url) as server,
        sse_client(f"{server.base}/sse") as streams,
        ClientSession(*streams) as session,
    ):
        await session.initialize()
        made = await session.call_tool("create_conversation", {"title": HOSTILE})
        assert checked(made.model_dump(by_alias=True))["conversation"]["title"] == HOSTILE


async def test_an_answer_that_comes_too_late_leaves_the_refusal_whole(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = answers.answer

    def late(facts: dict[str, Any]) -> Any:
        made(facts)
        raise TimeoutError

    monkeypatch.setattr("chatledger.server.tools.answer", late)
    async with serving(database_url) as server:
        refused = await asyncio.wait_for(asked(server, "2025-11-25", "list_conversations", {}), PATIENCE)
        assert refused["structuredContent"]["error"]["code"] in ("unavailable", "internal")
