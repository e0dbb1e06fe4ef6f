"""What a verified caller may do: each message needs its scope, over both transports and in both eras."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chatledger.server.auth.resource_server import ResourceServer
from chatledger.server.auth.scopes import ALL, DELETE, READ, TOOL_SCOPES, WRITE, needed
from chatledger.server.tools import ANNOTATIONS
from chatledger.storage import ConversationStore
from tests.auth_server import BODY_BYTES, METADATA, PUBLIC, Serve, Served, challenge, client, message, rules_for
from tests.issuer import Issuer
from tests.patience import PATIENCE
from tests.test_tool_arguments import NEEDED

# ---- what they may do -----------------------------------------------------------------------------------------------


METHODS: dict[str, tuple[dict[str, Any], str | None]] = {
    "tools/list": ({}, None),
    "resources/list": ({}, READ),
    "resources/templates/list": ({}, READ),
    "resources/read": ({"uri": "conversation://1"}, READ),
    "prompts/list": ({}, READ),
    "prompts/get": ({"name": "resume_conversation", "arguments": {"conversation_id": "1"}}, READ),
    "completion/complete": (
        {
            "ref": {"type": "ref/prompt", "name": "resume_conversation"},
            "argument": {"name": "conversation_id", "value": ""},
        },
        READ,
    ),
    "some/later_method": ({}, READ),
}
for tool in ANNOTATIONS:
    METHODS[f"tools/call {tool}"] = {"name": tool, "arguments": NEEDED.get(tool, {})}, TOOL_SCOPES[tool]


def test_every_tool_has_a_scope_and_one_that_changes_nothing_needs_only_reading() -> None:
    assert ANNOTATIONS.keys() <= TOOL_SCOPES.keys()
    for tool, hints in ANNOTATIONS.items():
        expected = READ if hints.read_only_hint else DELETE if hints.destructive_hint else WRITE
        assert TOOL_SCOPES[tool] == expected


@pytest.mark.parametrize("what", sorted(METHODS))
async def test_each_message_needs_its_scope_and_no_other(served: Served, era: str, what: str) -> None:
    params, scope = METHODS[what]
    method = what.split(" ")[0]
    for held in ((), (READ,), (WRITE,), (DELETE,), (READ, WRITE), (WRITE, DELETE), ALL):
        answer = await served.post(method, params, era=era, token=served.issuer.token(scope=" ".join(held)))
        if scope is None or scope in held:
            assert answer.status_code not in (401, 403)
            continue
        assert answer.status_code == 403
        told = challenge(answer)
        assert (told["error"], told["resource_metadata"]) == ("insufficient_scope", METADATA)
        assert told["scope"].split(" ") == [each for each in ALL if each in (*held, scope)]


@pytest.mark.parametrize(
    "claims",
    [
        {"scope": "conversations:*"},
        {"scope": "conversations:DELETE Conversations:delete"},
        {"scope": "admin"},
        {"scp": ["conversations:*", "*"]},
        {},
    ],
)
async def test_deleting_needs_its_scope_by_name(served: Served, era: str, claims: dict[str, Any]) -> None:
    async with client(served, era, served.issuer.token(sub="alice")) as alice:
        await alice.call_tool("create_conversation", {})
    arguments = {"conversation_id": 1}
    refused = await served.call("delete_conversation", arguments, era=era, token=served.issuer.token(**claims))
    assert (refused.status_code, challenge(refused)["error"]) == (403, "insufficient_scope")
    allowed = await served.call("delete_conversation", arguments, era=era, token=served.issuer.token(scope=DELETE))
    assert allowed.json()["result"]["structuredContent"]["deleted"] is True


async def test_scopes_can_be_required(serve: Serve, era: str) -> None:
    async with serve(require_scopes=True) as served:
        refused = await served.call("list_conversations", {}, era=era, token=served.issuer.token())
        assert (refused.status_code, challenge(refused)["scope"]) == (403, READ)
        assert (await served.post("tools/list", era=era, token=served.issuer.token())).status_code == 200
        allowed = await served.call("list_conversations", {}, era=era, token=served.issuer.token(scp=[READ]))
        assert allowed.status_code == 200


async def test_a_call_disguised_in_its_body_is_stopped_all_the_same(served: Served, era: str) -> None:
    token = served.issuer.token(sub="alice", scope=f"{READ} {WRITE}")
    async with client(served, era, token) as alice:
        await alice.call_tool("create_conversation", {})
    sent = message("tools/call", {"name": "delete_conversation", "arguments": {"conversation_id": 1}}, era=era)
    plain = json.dumps(sent["json"])
    headers = sent["headers"] | {"authorization": f"Bearer {token}"}
    for body in (
        plain.encode(),
        plain.replace("delete", "\\u0064elete").encode(),
        plain.replace('"tools/call"', '"tools\\/call"').encode(),
        plain.replace('"method":', '"method": "tools/list", "method":').encode(),
        plain.replace('"name":', '"name": "list_conversations", "name":').encode(),
        plain.encode("utf-16"),
        plain.encode("utf-8-sig"),
        b"[" + plain.encode() + b"]",
    ):
        answer = await served.http.post("/mcp", content=body, headers=headers)
        assert answer.status_code in (400, 403), body
        assert "deleted" not in answer.text
    other = {"mcp-method": "tools/list", "mcp-name": "list_conversations"}
    answer = await served.http.post("/mcp", content=plain.encode(), headers=headers | other)
    assert answer.status_code == 403
    listed = await served.call("list_conversations", {}, era=era, token=token)
    assert len(listed.json()["result"]["structuredContent"]["conversations"]) == 1


async def test_the_server_itself_refuses_what_slipped_past_the_layer(
    serve: Serve, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.server.auth.resource_server._needed", lambda _: None)
    async with serve() as served:
        for what, (params, scope) in METHODS.items():
            if scope is None or what == "some/later_method":
                continue
            token = served.issuer.token(scope=" ".join(each for each in ALL if each != scope))
            answer = (await served.post(what.split(" ")[0], params, era=era, token=token)).json()
            assert answer["error"]["message"] == f"insufficient_scope: this needs the scope {scope}", what


def test_a_method_that_nobody_knows_yet_is_taken_to_show_something() -> None:
    assert {needed(method, {}) for method in ("tasks/list", "subscriptions/listen", "TOOLS/CALL", "")} == {READ}
    assert {needed(method, None) for method in ("initialize", "ping", "notifications/initialized")} == {None}
    assert needed("tools/call", {"name": ["delete_conversation"]}) is None
    assert needed("tools/call", []) is None


async def test_a_body_over_the_limit_is_not_read_further(served: Served) -> None:
    sent = message("tools/call", {"name": "x" * BODY_BYTES}, era="legacy", token=served.issuer.token())
    assert (await served.http.post("/mcp", **sent)).status_code == 413
    unread = message("tools/call", {"name": "x" * BODY_BYTES}, era="legacy")
    assert (await served.http.post("/mcp", **unread)).status_code == 401


# ---- the older transport --------------------------------------------------------------------------------------------


@asynccontextmanager
async def sse(served: Served, token: str) -> AsyncIterator[tuple[str, AsyncIterator[str]]]:
    """An open SSE connection: where to post, and the lines that follow."""
    headers = {"authorization": f"Bearer {token}"}
    async with served.http.stream("GET", "/sse", headers=headers) as stream:
        assert stream.status_code == 200
        lines = stream.aiter_lines()
        async for line in lines:
            if line.startswith("data: "):
                yield line.removeprefix("data: "), lines
                break


async def answer_on(lines: AsyncIterator[str]) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE):
        async for line in lines:
            if line.startswith("data: "):
                found: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return found
    raise AssertionError("the stream ended")


INITIALIZE = {
    "protocolVersion": "2024-11-05",
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


async def test_over_sse_each_post_is_verified_and_bound_to_its_user(served: Served) -> None:
    alice, bob = served.issuer.token(sub="alice", scope=f"{READ} {WRITE}"), served.issuer.token(sub="bob")
    async with sse(served, alice) as (endpoint, lines):

        async def post(method: str, params: dict[str, Any], token: str | None) -> int:
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            headers = {} if token is None else {"authorization": f"Bearer {token}"}
            return (await served.http.post(endpoint, json=body, headers=headers)).status_code

        create = {"name": "create_conversation", "arguments": {}}
        assert await post("initialize", INITIALIZE, alice) == 202
        assert "serverInfo" in (await answer_on(lines))["result"]
        assert await post("tools/call", create, None) == 401
        assert await post("tools/call", create, bob) == 404
        assert await post("tools/call", create, served.issuer.token(sub="alice", exp=1)) == 401
        assert await post("tools/call", create, served.issuer.token(sub="alice", scope=READ)) == 403
        delete = {"name": "delete_conversation", "arguments": {"conversation_id": 1}}
        assert await post("tools/call", delete, alice) == 403
        initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        assert (
            await served.http.post(endpoint, json=initialized, headers={"authorization": f"Bearer {alice}"})
        ).status_code == 202
        assert await post("tools/call", create, alice) == 202
        assert (await answer_on(lines))["result"]["structuredContent"]["created"] is True
        assert await post("tools/call", delete, served.issuer.token(sub="alice", scope=DELETE)) == 202
        assert (await answer_on(lines))["result"]["structuredContent"]["deleted"] is True


async def test_over_sse_the_server_itself_refuses_what_slipped_past_the_layer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.server.auth.resource_server._needed", lambda _: None)
    async with serve() as served:
        token = served.issuer.token(scope=READ)
        headers = {"authorization": f"Bearer {token}"}
        async with sse(served, token) as (endpoint, lines):
            for method, params in (
                ("initialize", INITIALIZE),
                ("tools/call", {"name": "create_conversation", "arguments": {}}),
            ):
                body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
                assert (await served.http.post(endpoint, json=body, headers=headers)).status_code == 202
                told = await answer_on(lines)
            assert told["error"]["message"] == f"insufficient_scope: this needs the scope {WRITE}"


async def test_a_websocket_is_closed(store: ConversationStore, issuer: Issuer) -> None:
    sent: list[Any] = []

    async def app(*_: Any) -> None:
        raise AssertionError("it was reached")

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(event: Any) -> None:
        sent.append(event)

    protected = ResourceServer(rules_for(issuer), store, public_url=PUBLIC).protect(
        app, open_paths=["/healthz"], body_bytes=BODY_BYTES
    )
    for path in ("/mcp", "/healthz"):
        await protected({"type": "websocket", "path": path, "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}] * 2


async def test_no_token_is_ever_in_the_log(served: Served, caplog: pytest.LogCaptureFixture, era: str) -> None:
    caplog.set_level("DEBUG", logger="chatledger")
    good, bad = served.issuer.token(), served.issuer.token(exp=1)
    _, static = await served.tokens.create("alice", scopes=[READ])
    for token in (good, bad, static, static[:-1] + "x"):
        await served.call("create_conversation", {}, era=era, token=token)
    assert "a token was refused: the token has expired" in caplog.text
    for token in (good, bad, static):
        for part in (token, token.split(".")[-1], token[-64:]):
            assert part not in caplog.text
