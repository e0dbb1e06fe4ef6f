"""One of the stores behind the SDK's own server over Streamable HTTP, as an ordinary engineer would wire it.

DATABASE_URL=... python -m benchmarks.peers.mcp_server STORE --port 8001 [--keep]

Stateless, with JSON answers, its ASGI application under uvicorn without a log of requests: the form in which the SDK is
the fastest, for uvicorn brings uvloop and httptools, which `MCPServer.run` would not use both. `--keep` keeps for ever
what a program may hold of a conversation between two calls: that spares some stores work, and is no way to serve many
conversations, or one by two processes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from mcp.server import MCPServer
from pydantic import BaseModel, Field

from benchmarks.peers.compared import OURS, SERVED
from benchmarks.peers.stores import Conversation, Store


class Appended(BaseModel):
    """What the tool answers."""

    conversation_id: str
    stored: bool


class History(BaseModel):
    """What the other tool answers."""

    messages: list[str]


def make_server(name: str, url: str, *, keep: bool) -> MCPServer[Any]:
    stores: list[Store] = []
    kept: dict[str, Conversation] = {}

    @asynccontextmanager
    async def lifespan(_: MCPServer[Any]) -> AsyncIterator[None]:
        async with SERVED[name].open(url, False) as store:
            stores.append(store)
            yield

    async def conversation(id: str) -> Conversation:
        found = kept.get(id)
        if found is None:
            found = await stores[0].conversation(id)
            if keep:
                kept[id] = found
        return found

    server: MCPServer[Any] = MCPServer(name, lifespan=lifespan, log_level="WARNING")

    @server.tool()
    async def append_message(
        conversation_id: str, role: str, content: Annotated[str, Field(max_length=10_000)]
    ) -> Appended:
        """Append a message to a conversation."""
        del role  # all of them are a user's
        await (await conversation(conversation_id)).append(content)
        return Appended(conversation_id=conversation_id, stored=True)

    @server.tool()
    async def load_history(conversation_id: str) -> History:
        """Load a conversation."""
        return History(messages=await (await conversation(conversation_id)).load())

    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", choices=[name for name in SERVED if name != OURS])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    server = make_server(args.store, os.environ["DATABASE_URL"], keep=args.keep)
    app = server.streamable_http_app(stateless_http=True, json_response=True)
    uvicorn.run(app, port=args.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
