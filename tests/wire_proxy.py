"""A proxy between a store and its Postgres: it counts round trips, and breaks connections at a chosen point.

A round trip begins when the client speaks after the server has spoken: that is what a network adds its latency to.
It reads the protocol, so the connection through it is unencrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, TypeAlias

from sqlalchemy import make_url

from tests.patience import PATIENCE

Moment: TypeAlias = Literal["before", "after"]
"""Of a statement: before the server gets it, or after it was carried out and before its answer gets through."""

_REQUESTS = {80877102: "cancel", 80877103: "tls", 80877104: "gss"}  # instead of a start-up message


class _Frames:
    """The types of the frames in one direction of a connection, across any packet boundaries."""

    def __init__(self, *, from_client: bool) -> None:
        self._typed = not from_client  # a client's first frames have no type byte
        self._rest = b""
        self.ours = False
        """Whether the statement parsed last is one of the store's, and not one of the driver's own."""

    def feed(self, data: bytes) -> list[str]:
        self._rest += data
        found: list[str] = []
        while True:
            head = 1 if self._typed else 0
            if len(self._rest) < head + 4:
                return found
            end = head + int(struct.unpack_from("!I", self._rest, head)[0])
            if len(self._rest) < end:
                return found
            frame, self._rest = self._rest[:end], self._rest[end:]
            if self._typed and frame[:1] == b"P":
                self.ours = b" chatledger." in frame
            found.append(frame[:1].decode("latin-1") if self._typed else self._first(frame))

    def _first(self, frame: bytes) -> str:
        name = _REQUESTS.get(int(struct.unpack_from("!I", frame, 4)[0]), "startup")
        self._typed = name == "startup"
        return name


class WireProxy:
    """`async with WireProxy(url) as proxy:` and then connect to `proxy.url`, which is the same database through it.

    It listens on 127.0.0.1, and as a pooler does it says another process id than the server's, unless `pooler` is
    false; or on a socket in `folder`, before which there certainly is none.
    """

    def __init__(self, url: str, folder: Path | None = None, port: int = 0, *, pooler: bool = True) -> None:
        target = make_url(url)
        self._folder = folder
        self.renames = pooler and folder is None
        self.port = port
        self._upstream_host = str(target.query.get("host", target.host))
        self._upstream_port = int(str(target.query.get("port", target.port or 5432)))
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cuts: list[Moment] = []
        self.round_trips = 0
        self.connections = 0
        """How many were ever opened."""
        self.black_hole = False
        """Whatever either side sends vanishes, and the connections stay open."""
        self.refusing = False
        """New connections are closed at once."""
        self.delay = 0.0
        """Seconds before anything is passed on: half of the round-trip time to imitate."""

    @property
    def url(self) -> str:
        if self._folder is None:
            through = self._target.set(host="127.0.0.1", port=self.port, query={"sslmode": "disable"})
        else:
            through = self._target.set(host=None, port=None, query={"host": str(self._folder), "port": "5432"})
        return through.render_as_string(hide_password=False)

    def cut(self, *moments: Moment) -> None:
        """Break the connection of the store's next statements, one for each moment."""
        self._cuts = list(moments)

    @property
    def cuts_left(self) -> int:
        return len(self._cuts)

    def cut_all(self) -> None:
        """Reset every connection, idle ones too, as a firewall or a restart does."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> WireProxy:
        if self._folder is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = int(self._server.sockets[0].getsockname()[1])
        else:
            self._server = await asyncio.start_unix_server(self._accept, self._folder / ".s.PGSQL.5432")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut_all()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE)

    async def _accept(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refusing:
            client_out.transport.abort()
            return
        self.connections += 1
        if self._upstream_host.startswith("/"):
            server_in, server_out = await asyncio.open_unix_connection(
                f"{self._upstream_host}/.s.PGSQL.{self._upstream_port}"
            )
        else:
            server_in, server_out = await asyncio.open_connection(self._upstream_host, self._upstream_port)
        await _Connection(self, client_in, client_out, server_in, server_out).serve()


class _Connection:
    def __init__(
        self,
        proxy: WireProxy,
        client_in: asyncio.StreamReader,
        client_out: asyncio.StreamWriter,
        server_in: asyncio.StreamReader,
        server_out: asyncio.StreamWriter,
    ) -> None:
        self.proxy = proxy
        self.client, self.server = (client_in, client_out), (server_in, server_out)
        self.client_spoke_last = False
        self.cut_at_completion = False

    async def serve(self) -> None:
        writers = {self.client[1], self.server[1]}
        self.proxy._writers |= writers
        try:
            await asyncio.gather(
                self._pump(self.client[0], self.server[1], from_client=True),
                self._pump(self.server[0], self.client[1], from_client=False),
            )
        finally:
            self.proxy._writers -= writers
            for writer in writers:
                writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool) -> None:
        frames = _Frames(from_client=from_client)
        with contextlib.suppress(OSError):
            async for data in _chunks(reader):
                seen = frames.feed(data)
                if self._is_cut(seen, frames.ours, from_client):
                    for end in (self.client[1], self.server[1]):
                        end.transport.abort()
                    return
                if self.proxy.delay:
                    await asyncio.sleep(self.proxy.delay)
                if not self.proxy.black_hole:
                    writer.write(_renamed(data, seen, from_client=from_client) if self.proxy.renames else data)
                    await writer.drain()
        writer.close()

    def _is_cut(self, frames: list[str], ours: bool, from_client: bool) -> bool:
        """Count what goes by; whether the connection is to be cut instead of passing it on."""
        if not from_client:
            self.client_spoke_last = False
            return self.cut_at_completion and "Z" in frames  # ReadyForQuery: it is committed
        if frames != ["X"]:  # a good-bye waits for nothing
            self.proxy.round_trips += not self.client_spoke_last
            self.client_spoke_last = True
        if self.proxy._cuts and ours and "E" in frames:  # Execute
            self.cut_at_completion = self.proxy._cuts.pop(0) == "after"
            return not self.cut_at_completion
        return False


def _renamed(data: bytes, frames: list[str], *, from_client: bool) -> bytes:
    """With another process id where the server tells its own, and with the server's where a client cancels."""
    key_data = b"K\0\0\0\x0c"  # BackendKeyData: process id and secret, of 4 bytes each
    if from_client:
        place = 8 if frames == ["cancel"] else -1
    else:
        found = data.find(key_data) if "K" in frames else -1
        place = found + len(key_data) if found >= 0 else -1
    return data if place < 0 else data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(65536):
        yield data
