"""Calls of tools over Streamable HTTP, straight: a message in, one JSON document out.

The SDK gives the same answers. But for each request it makes a route, a transport or a classification, a Request and a
Response, and in the older protocol tasks with streams between them, which takes longer than the call (measured). Only
what is plainly a call of a tool is answered here; whatever is unusual about a request is for the SDK to judge.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import anyio
from mcp.server.connection import Connection
from mcp.server.runner import ServerRunner
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.inbound import ERROR_CODE_HTTP_STATUS, X_MCP_HEADER_KEY
from mcp.shared.jsonrpc_dispatcher import handler_exception_to_error_data
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp.types import (
    CLIENT_CAPABILITIES_META_KEY,
    CLIENT_INFO_META_KEY,
    DEFAULT_NEGOTIATED_VERSION,
    INTERNAL_ERROR,
    PROTOCOL_VERSION_META_KEY,
    ErrorData,
)
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from chatledger.server import answers
from chatledger.server.app import LedgerServer
from chatledger.server.http_guard import MCP_PATH, MESSAGE

logger = logging.getLogger("chatledger")

_CALL: Final = "tools/call"
_ONCE: Final = frozenset({b"mcp-protocol-version", b"mcp-method", b"mcp-name", b"accept", b"content-type"})


class _Call(NamedTuple):
    id: str | int
    params: dict[str, Any]
    version: str


class ToolCalls:
    """Answers them; everything else goes to `app`. Behind the guard, which has read the message."""

    def __init__(self, app: ASGIApp, server: LedgerServer) -> None:
        self._app, self._server = app, server
        self._plain: dict[str, bool] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = _plain_call(scope) if scope["type"] == "http" and scope["path"] == MCP_PATH else None
        if call is None or not self._answers(call.params["name"]):
            await self._app(scope, receive, send)
            return
        standing_in = answers.STANDING_IN.set(True)
        status = 200
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": call.id}
        try:
            answer["result"] = await self._result(call, scope, receive)
        except Exception as exc:  # noqa: BLE001  # whatever it is, its text must not reach the client
            error = handler_exception_to_error_data(exc)
            if error is None:
                logger.error("a call failed outside its tool: %s", type(exc).__name__)  # nor the log
                error = ErrorData(code=INTERNAL_ERROR, message="Internal server error")
            answer["error"] = error.model_dump(by_alias=True, mode="json", exclude_none=True)
            if call.version in MODERN_PROTOCOL_VERSIONS:
                status = ERROR_CODE_HTTP_STATUS.get(error.code, 200)
        finally:
            answers.STANDING_IN.reset(standing_in)  # the next request of a connection may begin in this one's context
        body = b"".join(answers.written(answer))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answers(self, tool: str) -> bool:
        """Not what may report progress, which needs a stream, nor what asks for arguments to be repeated in headers."""
        if tool in self._server.reporting:
            return False
        if tool not in self._plain:
            schema = self._server.input_schema(tool)
            if schema is None:
                return True  # a refusal; nothing is kept for names that anybody may think of
            self._plain[tool] = X_MCP_HEADER_KEY not in json.dumps(schema)
        return self._plain[tool]

    async def _result(self, call: _Call, scope: Scope, receive: Receive) -> dict[str, Any]:
        meta = call.params.get("_meta", {}) if call.version in MODERN_PROTOCOL_VERSIONS else {}
        connection = Connection.from_envelope(
            call.version, meta.get(CLIENT_INFO_META_KEY), meta.get(CLIENT_CAPABILITIES_META_KEY)
        )
        runner = ServerRunner(self._server.lowlevel, connection, {})
        return await runner.on_request(_Exchange(call.id, scope, receive), _CALL, call.params)


def _plain_call(scope: Scope) -> _Call | None:
    """The call that a request plainly brings, all of its headers as they should be; None where anything is unusual."""
    message = scope.get(MESSAGE)
    if not isinstance(message, dict) or message.keys() != {"jsonrpc", "id", "method", "params"}:
        return None
    params = message["params"]
    if (
        message["method"] != _CALL
        or not isinstance(params, dict)
        or not params.keys() <= {"name", "arguments", "_meta"}
    ):
        return None
    name, meta = params.get("name"), params.get("_meta", {})
    if not (isinstance(name, str) and isinstance(params.get("arguments", {}), dict) and isinstance(meta, dict)):
        return None
    headers: dict[bytes, bytes] = {}
    for field, value in scope["headers"]:
        if (field in _ONCE and field in headers) or field.startswith(b"mcp-param-"):
            return None
        headers[field] = value
    if headers.get(b"content-type") != b"application/json" or not _takes_both(headers.get(b"accept", b"")):
        return None
    version = headers.get(b"mcp-protocol-version", DEFAULT_NEGOTIATED_VERSION.encode()).decode("latin-1")
    if version in HANDSHAKE_PROTOCOL_VERSIONS:
        return None if PROTOCOL_VERSION_META_KEY in meta else _Call(message["id"], params, version)
    told = headers.get(b"mcp-method"), headers.get(b"mcp-name")
    if version not in MODERN_PROTOCOL_VERSIONS or told != (_CALL.encode(), name.encode()):
        return None
    if meta.get(PROTOCOL_VERSION_META_KEY) != version or not isinstance(meta.get(CLIENT_CAPABILITIES_META_KEY), dict):
        return None
    return _Call(message["id"], params, version) if isinstance(meta.get(CLIENT_INFO_META_KEY, {}), dict) else None


def _takes_both(accept: bytes) -> bool:
    kinds = {kind.strip() for kind in accept.split(b",")}
    return b"*/*" in kinds or {b"application/json", b"text/event-stream"} <= kinds


class _Exchange:
    """What the SDK asks of a transport for one request, whose answer is a document: nothing can be sent besides."""

    can_send_request = False
    progress_token = None

    def __init__(self, id: str | int, scope: Scope, receive: Receive) -> None:
        self.request_id = id
        self.transport = TransportContext(kind="streamable-http", can_send_request=False, headers=Headers(scope=scope))
        self.message_metadata = ServerMessageMetadata(request_context=Request(scope, receive))
        self.cancel_requested = anyio.Event()

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Nowhere to go."""

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Nowhere to go."""
