"""The stdio transport. Every line that the client sends is answered, also one that cannot be read."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import anyio
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage
from mcp.types import PARSE_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter
from pydantic import ValidationError

from chatledger.server import answers, stdio_pipes
from chatledger.server.app import LedgerServer


async def serve_stdio(server: LedgerServer) -> None:
    """Serve the process's stdin and stdout until stdin ends. Nothing else that is printed meanwhile reaches stdout."""
    if stdio_pipes.usable():
        standing_in = answers.STANDING_IN.set(True)
        try:
            async with stdio_pipes.opened(_reread) as (incoming, outgoing):
                await server.run_streams(incoming, outgoing)
        finally:
            answers.STANDING_IN.reset(standing_in)
    else:
        await _serve_anything(server)


async def _serve_anything(server: LedgerServer) -> None:
    """Over the SDK's transport, which can also be a file or a terminal, and answers nothing to what it cannot read."""
    to_server, from_client = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    async with stdio_server() as (incoming, outgoing), anyio.create_task_group() as tasks:

        async def pass_on() -> None:
            async with to_server:
                async for item in incoming:
                    message = _reread_error(item) if isinstance(item, Exception) else item
                    if isinstance(message.message, JSONRPCError) and isinstance(item, Exception):
                        await outgoing.send(message)
                    else:
                        await to_server.send(message)

        tasks.start_soon(pass_on)
        await server.run_streams(from_client, outgoing)
        tasks.cancel_scope.cancel()


def _reread_error(unread: Exception) -> SessionMessage:
    line = unread.errors(include_url=False)[0]["input"] if isinstance(unread, ValidationError) else None
    return _reread(line)


def _reread(line: Any) -> SessionMessage:
    """The message after all, where Python's parser is more lenient (half a surrogate pair); else the error to send.

    So every request that can be told apart gets an answer under its own id, and no client waits for one in vain.
    """
    try:
        read = json.loads(line) if isinstance(line, str | bytes) else line
    except (ValueError, RecursionError):
        read = None
    fields = read if isinstance(read, dict) else {}
    known, method = fields.get("id"), fields.get("method")
    if _repeatable(known) and _repeatable(method):
        with contextlib.suppress(ValidationError):
            return SessionMessage(jsonrpc_message_adapter.validate_python(read, by_name=False))
    answerable = isinstance(known, str | int) and not isinstance(known, bool) and _repeatable(known)
    error = ErrorData(code=PARSE_ERROR, message="the line is not a JSON-RPC message")
    return SessionMessage(JSONRPCError(jsonrpc="2.0", id=known if answerable else None, error=error))


def _repeatable(name: object) -> bool:
    """Whether an answer can say it: not with half a surrogate pair in it."""
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True
