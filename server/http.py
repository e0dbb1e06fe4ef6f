"""MCP over HTTP: one ASGI application with Streamable HTTP, SSE and health checks, and the process that serves it.

Nothing is kept for a connection of Streamable HTTP, so that any number of processes on one database behave as one. An
SSE connection of the older transport lives in one process, to which its posts must find their way.
"""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

import uvicorn
from mcp.server.sse import SseServerTransport
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatledger.server import errors
from chatledger.server.app import LedgerServer
from chatledger.server.auth.resource_server import ResourceServer
from chatledger.server.http_calls import ToolCalls
from chatledger.server.http_guard import BODY_BYTES, MCP_PATH, Guard
from chatledger.server.http_progress import with_streams
from chatledger.server.http_protocol import connection_options
from chatledger.server.observing import request_id
from chatledger.storage.errors import StorageError

HEALTH_PATHS: Final = ("/healthz", "/readyz")
STOP_SECONDS: Final = 8  # calls in flight may take so long after SIGTERM; orchestrators wait 10 to 30 before SIGKILL
# The guard stands in front of every route, more strictly; left to itself, the SDK's is on for local hosts only.
_GUARDED: Final = TransportSecuritySettings(enable_dns_rebinding_protection=False)

Ready = Callable[[], Awaitable[None]]
"""Returns when the database answers; raises a StorageError otherwise."""


def make_app(
    server: LedgerServer,
    *,
    ready: Ready,
    hosts: Iterable[str],
    origins: Iterable[str],
    auth: ResourceServer | None = None,
    open_routes: Iterable[Route] = (),
) -> ASGIApp:
    """The application: `/mcp`, `/sse`, `/messages/`, `/healthz`, `/readyz`.

    With `auth`, the first three need a token, and its metadata is served. `/healthz` says that the process answers,
    `/readyz` that its database does. `open_routes` are served to any Host and without a token, as these two are.
    """
    make = partial(
        server.streamable_http_app,
        streamable_http_path=MCP_PATH,
        stateless_http=True,
        transport_security=_GUARDED,
        max_request_body_size=BODY_BYTES,
    )
    app = make(json_response=True)
    sse = SseServerTransport("/messages/", security_settings=_GUARDED, max_request_body_size=BODY_BYTES)
    app.router.routes += [
        Route("/sse", _SseStream(server, sse), methods=["GET"]),
        Mount("/messages/", sse.handle_post_message),
    ]

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        try:
            await ready()
        except StorageError as exc:
            return JSONResponse({"status": "unavailable", "code": exc.code, "message": exc.message}, 503)
        return JSONResponse({"status": "ready"})

    opened = [Route(path, answer) for path, answer in zip(HEALTH_PATHS, (healthz, readyz), strict=True)]
    opened += open_routes
    app.router.routes += opened
    open_paths = [route.path for route in opened]
    inner: ASGIApp = ToolCalls(with_streams(app, server.reporting, make), server)
    if auth is not None:
        app.router.routes += auth.routes()
        inner = auth.protect(inner, open_paths=open_paths, body_bytes=BODY_BYTES)
    return Guard(_with_headers(inner), hosts=hosts, origins=origins, open_paths=open_paths)


class _SseStream:
    """The stream of one SSE client. The SDK's own endpoint answers a second time when the stream has ended."""

    def __init__(self, server: LedgerServer, sse: SseServerTransport) -> None:
        self._server, self._sse = server, sse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        open_stream = False

        async def watched(message: Message) -> None:
            nonlocal open_stream
            open_stream = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        async with self._sse.connect_sse(scope, receive, watched) as streams:
            await self._server.run_streams(*streams)
        if open_stream:  # the server stops: the stream ends, it does not break
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _with_headers(app: ASGIApp) -> ASGIApp:
    """The request's id, and what a refusal inside says about repeating the call, where proxies and clients look."""

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        noted: list[float] = []
        errors.RETRY_AFTER.set(noted)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = known
                if noted:
                    headers["retry-after"] = str(math.ceil(noted[0]))
            await send(message)

        with request_id(Headers(scope=scope).get("x-request-id")) as known:
            await app(scope, receive, with_headers)

    return noting


class _Server(uvicorn.Server):
    """Says where it serves once it accepts, and what it waits for when it stops."""

    def __init__(self, config: uvicorn.Config, describe: Callable[[str], str]) -> None:
        super().__init__(config)
        self._describe = describe

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            for listener in self.servers:
                for bound in listener.sockets:
                    host, port = bound.getsockname()[:2]
                    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                    _say(self._describe(base))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        running = len(self.server_state.tasks)
        _say(f"stopping: {running} requests in flight, at most {STOP_SECONDS} s" if running else "stopping")
        await super().shutdown(sockets)
        self._captured_signals.clear()  # raised again, they would make a stop that was asked for look like a crash
        _say("stopped")


def _say(sentence: str) -> None:
    print(f"chatledger: {sentence}", file=sys.stderr, flush=True)


async def serve_http(app: ASGIApp, listener: socket.socket, *, sse_first: bool = False) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT; then finish what is in flight, within STOP_SECONDS."""

    def describe(base: str) -> str:
        paths = [f"Streamable HTTP at {base}/mcp", f"SSE at {base}/sse"]
        return "serving " + ", ".join(reversed(paths) if sse_first else paths)

    config = uvicorn.Config(
        app,
        lifespan="on",
        log_config=None,
        timeout_graceful_shutdown=STOP_SECONDS,
        **connection_options(),
    )
    await _Server(config, describe).serve(sockets=[listener])
