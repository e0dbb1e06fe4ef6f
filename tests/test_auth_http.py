"""Who gets in over HTTP, with a real server on a real socket: every row of the table, both eras, SSE as well."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp

from chatledger.server.app import make_server
from chatledger.server.auth.resource_server import ResourceServer
from chatledger.server.auth.rules import AuthRules, make_rules
from chatledger.server.auth.scopes import ALL, DELETE, READ, TOOL_SCOPES, WRITE, needed
from chatledger.server.identity import verified_user
from chatledger.server.tools import ANNOTATIONS
from chatledger.storage import ConversationStore
from chatledger.storage.tokens import TokenStore
from tests.issuer import Issuer, joined, private_key, public_jwk, serving, signed
from tests.test_tool_arguments import NEEDED

PUBLIC = "https://ledger.example"
US = f"{PUBLIC}/mcp"
BODY_BYTES = 100_000
MODERN = "2026-07-28"


class Served:
    """A server for tests: its address, whom it believes, and how a client speaks to it."""

    def __init__(self, base: str, issuer: Issuer, tokens: TokenStore) -> None:
        self.base, self.issuer, self.tokens = base, issuer, tokens
        self.http = httpx2.AsyncClient(base_url=base, timeout=30)

    async def post(
        self, method: str, params: dict[str, Any] | None = None, *, era: str, token: str | None = None, **headers: Any
    ) -> httpx2.Response:
        """One message to /mcp, as a client of this era sends it."""
        return await self.http.post("/mcp", **message(method, params, era=era, token=token, **headers))

    async def call(self, tool: str, arguments: dict[str, Any], *, era: str, token: str | None) -> httpx2.Response:
        return await self.post("tools/call", {"name": tool, "arguments": arguments}, era=era, token=token)


def message(
    method: str, params: dict[str, Any] | None = None, *, era: str, token: str | None = None, **headers: Any
) -> dict[str, Any]:
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method, "params": dict(params or {})}
    sent = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    sent["mcp-protocol-version"] = MODERN if era == "auto" else "2025-11-25"
    if era == "auto":
        body["params"]["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        }
        sent["mcp-method"] = method
        if name := body["params"].get("name") or body["params"].get("uri"):
            sent["mcp-name"] = name
    if token is not None:
        sent["authorization"] = f"Bearer {token}"
    return {"json": body, "headers": sent | headers}


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[str]:
    """An ASGI application on a free port of this machine."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
        assert not task.done()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


def rules_for(by: Issuer, **changed: Any) -> AuthRules:
    settings: dict[str, Any] = {
        "issuer": by.url,
        "jwks_url": None,
        "secret": None,
        "audience": (),
        "parties": (),
        "algorithms": (),
        "user_claim": "sub",
        "require_scopes": False,
        "static_tokens": None,
    }
    made = make_rules(**settings | changed)
    assert made is not None
    return made


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serving() as served:
        yield served


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(store: ConversationStore, issuer: Issuer) -> Serve:
    """Serves the real MCP server behind the layer: `async with serve() as served`."""

    @asynccontextmanager
    async def start(
        *, public_url: str = PUBLIC, wrap: Callable[[ASGIApp], ASGIApp] | None = None, **settings: Any
    ) -> AsyncIterator[Served]:
        server = make_server(store, verified_user())
        guard = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        app = server.streamable_http_app(json_response=True, stateless_http=True, transport_security=guard)
        known = {getattr(route, "path", None) for route in app.routes}
        sse = server.sse_app(transport_security=guard)
        app.router.routes += [route for route in sse.routes if getattr(route, "path", None) not in known]
        auth = ResourceServer(rules_for(issuer, **settings), store, public_url=public_url)
        app.router.routes += auth.routes()
        protected = auth.protect(app, open_paths=["/healthz"], body_bytes=BODY_BYTES)
        async with running(wrap(app) if wrap else protected) as base:
            served = Served(base, issuer, TokenStore(store))
            async with served.http:
                yield served
            await served.tokens.aclose()
            await auth.aclose()

    return start


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as started:
        yield started


def challenge(response: httpx2.Response) -> dict[str, str]:
    """What WWW-Authenticate says; it is one well-formed challenge."""
    (value,) = response.headers.get_list("www-authenticate")
    fields = re.fullmatch(r'Bearer ((?:[a-z_]+="[ -!#-\[\]-~]*"(?:, |$))+)', value)
    assert fields is not None, value
    return dict(re.findall(r'([a-z_]+)="([^"]*)"', fields[1]))


METADATA = f"{PUBLIC}/.well-known/oauth-protected-resource/mcp"


# ---- who is nobody --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "bearer"},
        {"authorization": "Basic YWxpY2U6eA=="},
        {"authorization": "Digest x"},
        {"authorization": "Bearerx y"},
        {"x-user-id": "alice", "x-forwarded-user": "alice", "cookie": "user=alice"},
    ],
)
async def test_without_a_token_the_answer_says_where_to_get_one(
    served: Served, era: str, headers: dict[str, str]
) -> None:
    answer = await served.post("tools/list", {}, era=era, **headers)
    assert answer.status_code == 401
    assert challenge(answer) == {"scope": f"{READ} {WRITE}", "resource_metadata": METADATA}
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json() == {"error": "unauthorized"}


async def test_a_token_in_the_query_or_the_body_is_none(served: Served, era: str) -> None:
    good = served.issuer.token()
    sent = message("tools/list", era=era)
    assert (await served.http.post(f"/mcp?access_token={good}", **sent)).status_code == 401
    sent["json"]["access_token"] = good
    assert (await served.http.post("/mcp", **sent)).status_code == 401
    form = {"access_token": good}
    assert (await served.http.post("/mcp", data=form)).status_code == 401


async def test_two_tokens_are_none(served: Served, era: str) -> None:
    good = served.issuer.token()
    sent = message("tools/list", era=era)
    headers = [*sent["headers"].items(), ("authorization", f"Bearer {good}"), ("authorization", "Bearer x")]
    for order in (headers, headers[::-1]):
        answer = await served.http.post("/mcp", json=sent["json"], headers=order)
        assert (answer.status_code, challenge(answer)["error"]) == (401, "invalid_token")


def bad_tokens(issuer: Issuer) -> dict[str, str]:
    key = private_key("EdDSA")
    return {
        "random": "abc",
        "expired": issuer.token(exp=int(time.time()) - 60),
        "nbf ahead": issuer.token(nbf=int(time.time()) + 3600),
        "iss wrong": issuer.token(iss="https://evil.example"),
        "aud wrong": issuer.token(aud="https://other.example/mcp"),
        "aud missing": issuer.token(aud=...),
        "aud a sibling path": issuer.token(aud=f"{PUBLIC}/other"),
        "aud a list without us": issuer.token(aud=["https://a.example", "https://b.example"]),
        "alg none": joined({"alg": "none"}, issuer.claims(), b""),
        "alg unlisted": signed(issuer.claims(), private_key("RS256"), "RS384", kid="key-1"),
        "HS256 by the public key": signed(
            issuer.claims(), json.dumps(public_jwk("EdDSA")).encode(), "HS256", kid="key-1"
        ),
        "kid unknown": issuer.token(kid="key-9"),
        "jku": signed(issuer.claims(), key, "EdDSA", kid="key-1", jku=f"{issuer.url}/evil"),
        "jwk": signed(issuer.claims(), key, "EdDSA", jwk=public_jwk("EdDSA")),
        "crit": signed(issuer.claims(), key, "EdDSA", kid="key-1", crit=["x"], x=1),
        "zero ES256 signature": joined({"alg": "ES256", "kid": "key-1"}, issuer.claims(), bytes(64)),
        "ID token": issuer.token(nonce="x"),
        "user missing": issuer.token(sub=...),
        "user empty": issuer.token(sub=""),
        "user of 300 characters": issuer.token(sub="x" * 300),
        "user with U+0000": issuer.token(sub="a\0"),
        "user a number": issuer.token(sub=7),
        "over 8 KiB": issuer.token(padding="x" * 9_000),
        "static, never made": f"chatledger_{'0' * 12}_{'0' * 64}",
        "static, cut": "chatledger_",
    }


@pytest.mark.parametrize("what", sorted(bad_tokens(Issuer("https://issuer.example"))))
async def test_a_bad_token_is_told_so_and_nothing_of_it_is_repeated(served: Served, what: str) -> None:
    token = bad_tokens(served.issuer)[what]
    for era in ("auto", "legacy"):
        answer = await served.call("list_conversations", {}, era=era, token=token)
        assert answer.status_code == 401
        told = challenge(answer)
        assert (told["error"], told["resource_metadata"]) == ("invalid_token", METADATA)
        assert told["scope"] == f"{READ} {WRITE}"
        assert answer.json() == {"error": "invalid_token", "error_description": told["error_description"]}
        assert token not in answer.text


async def test_100_kilobytes_of_a_token_end_without_a_5xx(served: Served) -> None:
    with contextlib.suppress(httpx2.TransportError):  # the socket server may close before all of it is read
        answer = await served.post("tools/list", era="auto", token="x" * 100_000)
        assert answer.status_code in (400, 401, 431)
    assert (await served.post("tools/list", era="auto", token="x" * 20_000)).status_code == 401
    assert (await served.post("tools/list", era="auto", token=served.issuer.token())).status_code == 200


@pytest.mark.parametrize("path", ["/mcp", "/mcp/", "/sse", "/messages/", "/messages/?session_id=0", "/", "/none"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
async def test_nothing_but_what_is_open_is_answered_to_nobody(served: Served, path: str, method: str) -> None:
    answer = await served.http.request(method, path)
    assert answer.status_code == 401
    assert challenge(answer)["resource_metadata"] == (METADATA if path == "/mcp" else METADATA.removesuffix("/mcp"))


@pytest.mark.parametrize(
    "path", ["//healthz", "/healthz/", "/healthz/../mcp", "/HEALTHZ", "/healthz;x", "/%68ealthz/x", "/mcp/healthz"]
)
async def test_a_path_that_resembles_an_open_one_is_not_open(served: Served, path: str) -> None:
    request = served.http.build_request("POST", served.base)
    reader, writer = await asyncio.open_connection("127.0.0.1", request.url.port)
    writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
    assert b" 401 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


# ---- who is somebody ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def client(served: Served, era: str, token: str) -> AsyncIterator[Client]:
    """The SDK's own client over the socket."""
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{served.base}/mcp", http_client=http), mode=era) as opened,
    ):
        yield opened


async def test_a_user_is_who_the_token_says_whatever_else_the_request_says(served: Served, era: str) -> None:
    async with client(served, era, served.issuer.token(sub="alice")) as alice:
        made = await alice.call_tool("create_conversation", {"key": "mine"})
        assert not made.is_error
    forged = {"x-user-id": "alice", "x-forwarded-user": "alice", "mcp-user": "alice"}
    bobs = served.issuer.token(sub="bob")
    for arguments in ({}, {"user_id": "alice"}, {"user": "alice"}):
        answer = await served.http.post(
            "/mcp",
            **message(
                "tools/call", {"name": "list_conversations", "arguments": arguments}, era=era, token=bobs, **forged
            ),
        )
        result = answer.json()["result"]
        told = result["structuredContent"]
        assert told["error"]["code"] == "invalid_argument" if arguments else told == {"conversations": []}
    async with client(served, era, served.issuer.token(sub="alice")) as alice:
        assert made.structured_content is not None
        listed = (await alice.call_tool("list_conversations", {})).structured_content
        assert listed is not None
        assert [each["id"] for each in listed["conversations"]] == [made.structured_content["conversation"]["id"]]


async def test_a_static_token_is_its_user_until_it_is_revoked(served: Served, era: str) -> None:
    made, text = await served.tokens.create("alice", scopes=[READ, WRITE])
    async with client(served, era, text) as alice:
        assert not (await alice.call_tool("create_conversation", {"title": "hers"})).is_error
    jwt = await served.call("list_conversations", {}, era=era, token=served.issuer.token(sub="alice"))
    assert jwt.json()["result"]["structuredContent"]["conversations"][0]["title"] == "hers"
    await served.tokens.revoke(made.id)
    answer = await served.call("list_conversations", {}, era=era, token=text)
    assert (answer.status_code, challenge(answer)["error"]) == (401, "invalid_token")


@pytest.mark.parametrize("settings", [{"static_tokens": False}, {"issuer": None, "static_tokens": True}])
async def test_tokens_of_a_kind_that_is_not_configured_are_refused(serve: Serve, settings: dict[str, Any]) -> None:
    async with serve(**settings) as served:
        _, text = await served.tokens.create("alice", scopes=[READ])
        static = await served.post("tools/list", era="auto", token=text)
        jwt = await served.post("tools/list", era="auto", token=served.issuer.token())
        expected = (200, 401) if settings["static_tokens"] else (401, 200)
        assert (static.status_code, jwt.status_code) == expected
        assert served.issuer.asked == ([] if settings["static_tokens"] else ["/.well-known/jwks.json"])


async def test_without_the_layer_a_request_is_nobody_s(serve: Serve, era: str) -> None:
    async with serve(wrap=lambda app: app) as served:
        answer = await served.call("list_conversations", {}, era=era, token=served.issuer.token())
        assert "no authenticated caller" in answer.text
        assert "structuredContent" not in answer.text


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


# ---- an issuer or a database that is away ---------------------------------------------------------------------------


async def test_while_the_issuer_is_down_known_keys_count_and_others_hear_when_to_come_back(
    served: Served, era: str
) -> None:
    served.issuer.status = 500
    answer = await served.post("tools/list", era=era, token=served.issuer.token())
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert "www-authenticate" not in answer.headers


async def test_a_known_key_outlasts_its_issuer(served: Served, era: str) -> None:
    assert (await served.post("tools/list", era=era, token=served.issuer.token())).status_code == 200
    served.issuer.status = 500
    assert (await served.post("tools/list", era=era, token=served.issuer.token())).status_code == 200


async def test_while_the_database_is_away_a_static_token_is_not_refused_for_good(
    served: Served, monkeypatch: pytest.MonkeyPatch, era: str
) -> None:
    from chatledger.storage.engine import Database
    from chatledger.storage.errors import Unavailable

    _, text = await served.tokens.create("alice", scopes=[READ])

    async def away(*_: Any, **__: Any) -> list[Any]:
        raise Unavailable("the database is restarting; try again shortly", retry_after_seconds=2.5)

    monkeypatch.setattr(Database, "read", away)
    answer = await served.post("tools/list", era=era, token=text)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


# ---- metadata -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["ledger.example", "evil.example", "127.0.0.1", "evil.example:443"])
async def test_metadata_names_this_server_by_its_public_url_whatever_the_host_header_says(
    served: Served, host: str
) -> None:
    hostile = {"host": host, "x-forwarded-host": "evil.example", "forwarded": "host=evil.example"}
    for path, resource in (("", PUBLIC), ("/mcp", US)):
        answer = await served.http.get(f"/.well-known/oauth-protected-resource{path}", headers=hostile)
        assert answer.status_code == 200
        assert answer.json() == {
            "resource": resource,
            "resource_name": "chatledger",
            "authorization_servers": [served.issuer.url],
            "scopes_supported": [READ, WRITE, DELETE],
            "bearer_methods_supported": ["header"],
        }
        assert "evil" not in f"{answer.text}{answer.headers}"
    refused = await served.http.post("/mcp", headers=hostile)
    assert challenge(refused)["resource_metadata"] == METADATA


@pytest.mark.parametrize(
    ("public_url", "resource", "metadata"),
    [
        ("https://a.example/", "https://a.example/mcp", "https://a.example/.well-known/oauth-protected-resource/mcp"),
        (
            "https://a.example/mcp",
            "https://a.example/mcp",
            "https://a.example/.well-known/oauth-protected-resource/mcp",
        ),
        (
            "https://a.example:8443/x/y",
            "https://a.example:8443/x/y/mcp",
            "https://a.example:8443/.well-known/oauth-protected-resource/x/y/mcp",
        ),
        ("http://127.0.0.1:9", "http://127.0.0.1:9/mcp", "http://127.0.0.1:9/.well-known/oauth-protected-resource/mcp"),
    ],
)
async def test_the_resource_is_the_endpoint_below_the_public_url(
    serve: Serve, public_url: str, resource: str, metadata: str
) -> None:
    async with serve(public_url=public_url) as served:
        refused = await served.http.post("/mcp")
        assert challenge(refused)["resource_metadata"] == metadata
        path = metadata.removeprefix(re.match(r"https?://[^/]+", metadata)[0])  # type: ignore[index]
        assert (await served.http.get(path)).json()["resource"] == resource
        assert (await served.http.get("/.well-known/oauth-protected-resource/mcp")).json()["resource"] == resource
        assert (await served.post("tools/list", era="auto", token=served.issuer.token(aud=resource))).is_success
        assert (await served.post("tools/list", era="auto", token=served.issuer.token(aud=US))).status_code == 401


async def test_metadata_may_be_read_from_a_page_and_names_no_issuer_where_there_is_none(serve: Serve) -> None:
    async with serve(issuer=None, static_tokens=True) as served:
        answer = await served.http.get(
            "/.well-known/oauth-protected-resource/mcp", headers={"origin": "https://app.example"}
        )
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "authorization_servers" not in answer.json()


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
    async with asyncio.timeout(30):
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
