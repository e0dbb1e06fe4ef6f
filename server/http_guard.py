"""What is checked of a request before anything else looks at it: where it comes from, what it claims to be, how slow.

A page in a browser can reach a server on the same machine by a name that its owner points there. Such a request has
that name as its Host, or the page's as its Origin: both must be known.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatledger.server.http_envelope import NoMessage, read_message

# A full append_messages must fit: 100 messages of the content limit, each character escaped to 12 bytes, and what is
# around it. The content limit may be set higher; a batch of such messages is then refused by this one.
BODY_BYTES: Final = 16 * 1024 * 1024
DISCARDED_BYTES: Final = 4 * BODY_BYTES  # chosen: read and thrown away before a body is refused for its size
BODY_SECONDS: Final = 10.0  # the bad-input table: a body at one byte a second is closed after 10 s

MCP_PATH: Final = "/mcp"
MESSAGES_PATH: Final = "/messages/"
MESSAGE: Final = "chatledger.message"
"""In the scope of a request to either path: the JSON-RPC message that it brings, as it was read."""

LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?")


class Guard:
    """Refuses by 421 (Host), 403 (Origin), 415 (encoding), 413 (size) and 408 (time) what the application must not see.

    `hosts` are names or addresses, with a port where only that one will do; `origins` are `scheme://host`, likewise.
    Paths in `open_paths` are answered to any Host: a load balancer asks them by address.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str], origins: Iterable[str], open_paths: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope["method"], scope["path"], headers)
        if refused is not None:
            allow = {"allow": "POST"} if refused[0] == 405 else None
            await PlainTextResponse(refused[1], refused[0], allow)(scope, receive, send)
            return
        if scope["method"] == "POST":
            try:
                body = await _whole_body(headers, receive)
            except _Refused as exc:
                await PlainTextResponse(exc.sentence, exc.status, {"connection": "close"})(scope, receive, send)
                return
            brings = scope["path"] == MCP_PATH or scope["path"].startswith(MESSAGES_PATH)
            if brings:
                try:
                    scope[MESSAGE] = read_message(body)
                except NoMessage as exc:
                    await Response(exc.answer, 400, media_type="application/json")(scope, receive, send)
                    return
            receive = _again(body, receive)
        await self._app(scope, receive, send)

    def _refused(self, method: str, path: str, headers: Headers) -> tuple[int, str] | None:
        if path not in self._open_paths:
            hosts = headers.getlist("host")
            if len(hosts) != 1 or not _known(hosts[0].lower(), self._hosts):
                return 421, "this server is not known by that Host; CHATLEDGER_ALLOWED_HOSTS names those that it has"
        if path == MCP_PATH and method != "POST":
            return 405, "nothing is kept for a connection, so there is nothing to GET or DELETE: use POST"
        origins = headers.getlist("origin")
        if len(origins) > 1 or (origins and not self._known_origin(origins[0].lower())):
            return 403, "requests from that Origin are refused; CHATLEDGER_ALLOWED_ORIGINS names those that are not"
        if headers.get("content-encoding", "identity").lower() != "identity":
            return 415, "a body must not be encoded"
        return None

    def _known_origin(self, origin: str) -> bool:
        scheme, separator, host = origin.partition("://")
        if not separator or not _HOST.fullmatch(host):
            return False
        return _known(host, {known[len(scheme) + 3 :] for known in self._origins if known.startswith(f"{scheme}://")})


def _known(host: str, known: set[str]) -> bool:
    parsed = _HOST.fullmatch(host)
    return parsed is not None and (host in known or parsed[1] in known)


class _Refused(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        self.status, self.sentence = status, sentence


async def _whole_body(headers: Headers, receive: Receive) -> bytes:
    """The body at once, however it was sent: nobody further in waits for a slow client, or reads without a bound."""
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise _Refused(400, "Content-Length must be a number")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise _Refused(400, "the connection was closed before the body was complete")
                part = message.get("body", b"")
                size += len(part)
                if size <= BODY_BYTES:
                    body += part
                # What is too large is read on for a while: a client that still sends would not see the answer.
                if size > DISCARDED_BYTES or not message.get("more_body", False):
                    break
    except TimeoutError:
        raise _Refused(408, f"the body did not arrive within {BODY_SECONDS:.0f} seconds") from None
    if size > BODY_BYTES:
        raise _Refused(413, f"the body has {max(size, int(length)):,} bytes; the limit is {BODY_BYTES:,}")
    return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """The body as if it had just arrived; then what the connection says."""
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return given.pop() if given else await receive()

    return replay
