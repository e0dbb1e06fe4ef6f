"""Who is calling: from the connection alone, never from an argument."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from mcp import MCPError
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.mcpserver import Context
from mcp.types import INVALID_REQUEST

Caller: TypeAlias = Callable[[Context[Any, Any]], Awaitable[str]]


def local_user(user_id: str) -> Caller:
    """The one user of a server that talks to its own parent process: stdio, or a client in the same process.

    Raises, when called for a connection over the network: MCPError, as nobody has verified who that is.
    """

    async def caller(ctx: Context[Any, Any]) -> str:
        if ctx.headers is not None:
            raise MCPError(code=INVALID_REQUEST, message="no authenticated caller")
        return user_id

    return caller


def loopback_user(user_id: str) -> Caller:
    """The one user of a server without authentication that listens on a loopback address only."""

    async def caller(ctx: Context[Any, Any]) -> str:
        return user_id

    return caller


def verified_user() -> Caller:
    """The user for whom the request's token was verified; scopes are checked elsewhere.

    Raises, when called for a request without one: MCPError.
    """

    async def caller(ctx: Context[Any, Any]) -> str:
        token = get_access_token()
        if token is None or not token.subject:
            raise MCPError(code=INVALID_REQUEST, message="no authenticated caller")
        return token.subject

    return caller
