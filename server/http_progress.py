"""Progress over Streamable HTTP: it travels ahead of the answer, in a stream.

An answer is one JSON document otherwise: a stream costs a fifth more time of the processor, and clients that can show
progress ask for it with every call. So only a call of a tool that is known to report any is answered as a stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic_core import from_json
from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatledger.server.http_guard import MCP_PATH


def with_streams(app: Starlette, tools: frozenset[str], streaming: Callable[[], Starlette]) -> ASGIApp:
    """The application; where any of `tools` is called by somebody who asks for progress, `streaming()` answers.

    That is made only where there is any such tool, and lives as long as the application.
    """
    if not tools:
        return app
    streams, alone = streaming(), app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def both(of: Any) -> AsyncIterator[None]:
        async with alone(of), streams.router.lifespan_context(streams):
            yield

    app.router.lifespan_context = both

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != MCP_PATH:
            await app(scope, receive, send)
            return
        first = await receive()  # the whole body: the guard has collected it
        given = [first]

        async def again() -> Message:
            return given.pop() if given else await receive()

        asked = _asks_for_progress(first.get("body", b""), tools)
        await (streams if asked else app)(scope, again, send)

    return answering


def _asks_for_progress(body: bytes, tools: frozenset[str]) -> bool:
    params = from_json(body).get("params")
    if not isinstance(params, dict) or params.get("name") not in tools:
        return False
    meta = params.get("_meta")
    return isinstance(meta, dict) and meta.get("progressToken") is not None
