"""A server for tests behind the layer that verifies callers, on a real socket, and what a client says to it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp

from chatledger.server.app import make_server
from chatledger.server.auth.resource_server import ResourceServer
from chatledger.server.auth.rules import AuthRules, make_rules
from chatledger.server.identity import verified_user
from chatledger.storage import ConversationStore
from chatledger.storage.tokens import TokenStore
from tests.issuer import Issuer
from tests.patience import PATIENCE

PUBLIC = "https://ledger.example"
US = f"{PUBLIC}/mcp"
BODY_BYTES = 100_000
MODERN = "2026-07-28"


class Served:
    """A server for tests: its address, whom it believes, and how a client speaks to it."""

    def __init__(self, base: str, issuer: Issuer, tokens: TokenStore) -> None:
        self.base, self.issuer, self.tokens = base, issuer, tokens
        self.http = httpx2.AsyncClient(base_url=base, timeout=PATIENCE)

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


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def start(
    store: ConversationStore,
    by: Issuer,
    *,
    public_url: str = PUBLIC,
    wrap: Callable[[ASGIApp], ASGIApp] | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Serves the real MCP server behind the layer that verifies callers; `settings` are those of `make_rules`."""
    server = make_server(store, verified_user())
    guard = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(json_response=True, stateless_http=True, transport_security=guard)
    known = {getattr(route, "path", None) for route in app.routes}
    sse = server.sse_app(transport_security=guard)
    app.router.routes += [route for route in sse.routes if getattr(route, "path", None) not in known]
    auth = ResourceServer(rules_for(by, **settings), store, public_url=public_url)
    app.router.routes += auth.routes()
    protected = auth.protect(app, open_paths=["/healthz"], body_bytes=BODY_BYTES)
    async with running(wrap(app) if wrap else protected) as base:
        served = Served(base, by, TokenStore(store))
        async with served.http:
            yield served
        await served.tokens.aclose()
        await auth.aclose()


def challenge(response: httpx2.Response) -> dict[str, str]:
    """What WWW-Authenticate says; it is one well-formed challenge."""
    (value,) = response.headers.get_list("www-authenticate")
    fields = re.fullmatch(r'Bearer ((?:[a-z_]+="[ -!#-\[\]-~]*"(?:, |$))+)', value)
    assert fields is not None, value
    return dict(re.findall(r'([a-z_]+)="([^"]*)"', fields[1]))


METADATA = f"{PUBLIC}/.well-known/oauth-protected-resource/mcp"


@asynccontextmanager
async def client(served: Served, era: str, token: str) -> AsyncIterator[Client]:
    """The SDK's own client over the socket."""
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=PATIENCE) as http,
        Client(streamable_http_client(f"{served.base}/mcp", http_client=http), mode=era) as opened,
    ):
        yield opened
