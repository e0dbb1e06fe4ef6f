"""What a token lets its bearer do: three scopes, which request needs which, and what a token's claims grant.

Checked twice: before the application, where the answer is an HTTP status by which clients ask for more, and for every
message that the server is about to handle, over whatever transport and in whatever form it came.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from mcp import MCPError
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.types import INVALID_REQUEST

logger = logging.getLogger("chatledger")

READ: Final = "conversations:read"
WRITE: Final = "conversations:write"
DELETE: Final = "conversations:delete"
ALL: Final = (READ, WRITE, DELETE)
UNNAMED: Final = (READ, WRITE)  # the contract: what a token has that names no scopes at all

TOOL_SCOPES: Final = {
    "create_conversation": WRITE,
    "append_message": WRITE,
    "append_messages": WRITE,
    "load_history": READ,
    "list_conversations": READ,
    "search_messages": READ,
    "update_conversation": WRITE,
    "fork_conversation": WRITE,
    "delete_conversation": DELETE,
}
# They show nothing of a user. Every other method is taken to do so, those that a later protocol adds included.
_FREE: Final = frozenset({"initialize", "ping", "server/discover", "tools/list", "logging/setLevel"})


def needed(method: str, params: object) -> str | None:
    """The scope that a message needs; None for those that any verified caller may send."""
    if method == "tools/call":
        name = params.get("name") if isinstance(params, Mapping) else None
        return TOOL_SCOPES.get(name) if isinstance(name, str) else None  # without one, it is no tool of ours
    return None if method in _FREE or method.startswith("notifications/") else READ


def granted(claims: Mapping[str, Any], *, require_scopes: bool) -> tuple[str, ...]:
    """Those of our scopes that a token's `scope` or `scp` names, letter by letter; the usual ones if it has neither.

    A claim of another form than text or a list of texts names none.
    """
    named = next((claims[claim] for claim in ("scope", "scp") if claim in claims), None)
    if named is None and "scope" not in claims and "scp" not in claims:
        return () if require_scopes else UNNAMED
    words = named.split(" ") if isinstance(named, str) else named if isinstance(named, list) else []
    return tuple(scope for scope in ALL if scope in words)


async def refuse_beyond_scopes(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Middleware of the MCP server: lets a message pass that its bearer's scopes cover, or that bears no token.

    Raises:
        MCPError: a scope is missing. Something in front let the message through that it should have stopped.
    """
    token, scope = get_access_token(), needed(ctx.method, ctx.params)
    if token is not None and scope is not None and scope not in token.scopes:
        logger.warning("a message without the scope %s reached the server: %s", scope, ctx.method)
        raise MCPError(code=INVALID_REQUEST, message=f"insufficient_scope: this needs the scope {scope}")
    return await call_next(ctx)
