"""The stdio transport: the SDK's, which answers nothing to a line that it cannot read, with an answer to that."""

from __future__ import annotations

import json
from typing import Any

import anyio
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import PARSE_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter
from pydantic import ValidationError


async def serve_stdio(server: MCPServer[Any]) -> None:
    """Serve the process's stdin and stdout until stdin ends. Nothing else that is printed meanwhile reaches stdout."""
    inner = server._lowlevel_server  # no public way to hand MCPServer its streams; a test holds it
    to_server, from_client = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    async with stdio_server() as (incoming, outgoing), anyio.create_task_group() as tasks:

        async def pass_on() -> None:
            async with to_server:
                async for item in incoming:
                    message = _reread(item) if isinstance(item, Exception) else item
                    if isinstance(message.message, JSONRPCError) and isinstance(item, Exception):
                        await outgoing.send(message)
                    else:
                        await to_server.send(message)

        tasks.start_soon(pass_on)
        await inner.run(from_client, outgoing, inner.create_initialization_options())
        tasks.cancel_scope.cancel()


def _reread(unread: Exception) -> SessionMessage:
    """The message after all, where Python's parser is more lenient (half a surrogate pair); else the error to send.

    So every request that can be told apart gets an answer under its own id, and no client waits for one in vain.
    """
    line = unread.errors(include_url=False)[0]["input"] if isinstance(unread, ValidationError) else None
    try:
        read = json.loads(line) if isinstance(line, str | bytes) else line
    except (ValueError, RecursionError):
        read = None
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_python(read, by_name=False))
    except ValidationError:
        known = read.get("id") if isinstance(read, dict) else None
        answerable = known if isinstance(known, str | int) and not isinstance(known, bool) else None
        error = ErrorData(code=PARSE_ERROR, message="the line is not a JSON-RPC message")
        return SessionMessage(JSONRPCError(jsonrpc="2.0", id=answerable, error=error))
