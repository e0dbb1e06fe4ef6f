"""The process's stdin and stdout as asyncio pipes: no worker thread for each line, which costs more than an append.

While they are open, descriptor 0 reads as empty and descriptor 1 is stderr: nothing that is printed reaches the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final, TypeAlias, TypeVar

from mcp.shared.message import SessionMessage
from mcp.types import JSONRPCError, JSONRPCResponse, jsonrpc_message_adapter
from pydantic import TypeAdapter, ValidationError

from chatledger.server import answers

# Bytes of a line: 100 messages of 10,000 characters, each escaped to 12 bytes, and room for the rest.
LONGEST_LINE: Final = 16 * 1024 * 1024
# Bytes that the pipe to the client holds; by itself it would be a quarter. Linux allows 64 MiB for all pipes of a user,
# and gives tiny ones when those are spent (chosen: enough for 250 servers at once).
PIPE_BYTES: Final = 256 * 1024
FLUSH_SECONDS: Final = 5.0  # at the end, for a client that has stopped reading (chosen: hosts kill after a few)

Reread: TypeAlias = Callable[[bytes], SessionMessage]
"""Of a line that is no message: the message after all, or the error to answer with."""

_ANY_MESSAGE: Final[TypeAdapter[Any]] = TypeAdapter(Any)

_T = TypeVar("_T")


def usable() -> bool:
    """Whether both are pipes or sockets.

    Not where one is a file, which asyncio cannot watch, or a terminal, which would change for all who have it open.
    """

    def watchable(descriptor: int) -> bool:
        try:
            mode = os.fstat(descriptor).st_mode
        except OSError:
            return False
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)

    return sys.platform != "win32" and watchable(0) and watchable(1)


class _Stream:
    """What the SDK's dispatcher asks of either direction besides its messages."""

    async def aclose(self) -> None:
        """The pipes outlive it: `opened` closes them."""

    async def __aenter__(self: _T) -> _T:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Outgoing(_Stream):
    """Messages to the client, a line each. Those of one turn of the loop go out in one write."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer, self._pieces = writer, list[bytes]()
        self._loop = asyncio.get_running_loop()

    async def send(self, item: SessionMessage, /) -> None:
        """Hand it over to be written; wait first while the client is behind with reading."""
        if self._writer.transport.get_write_buffer_size():
            await self._writer.drain()
        if not self._pieces:
            self._loop.call_soon(self._write)
        message = item.message
        if isinstance(message, JSONRPCResponse):
            self._pieces += answers.written({"jsonrpc": "2.0", "id": message.id, "result": message.result})
        else:
            self._pieces.append(_ANY_MESSAGE.dump_json(message, by_alias=True, exclude_unset=True))
        self._pieces.append(b"\n")

    async def flush(self) -> None:
        """Return when all of it is in the pipe."""
        self._write()
        await self._writer.drain()

    def _write(self) -> None:
        if self._pieces:
            self._writer.writelines(self._pieces)
            self._pieces = []


class Incoming(_Stream):
    """Messages from the client, until its end of the pipe is closed. What is no message is answered here."""

    def __init__(self, reader: asyncio.StreamReader, outgoing: Outgoing, reread: Reread) -> None:
        self._reader, self._outgoing, self._reread = reader, outgoing, reread

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        while (line := await self._line()) is not None:
            try:
                return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValidationError:
                message = self._reread(line)
                if not isinstance(message.message, JSONRPCError):
                    return message
                await self._outgoing.send(message)
        raise StopAsyncIteration

    async def receive(self) -> SessionMessage | Exception:
        """The next message. Raises StopAsyncIteration at the end."""
        return await self.__anext__()

    async def _line(self) -> bytes | None:
        """The next line, without blank ones; empty in place of one that is too long; None at the end."""
        too_long = False
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as exc:
                await self._reader.readexactly(exc.consumed)
                too_long = True
            except asyncio.IncompleteReadError as exc:
                return exc.partial if exc.partial.strip() else None
            else:
                if too_long:
                    return b""
                if not line.isspace():
                    return line


@contextlib.asynccontextmanager
async def opened(reread: Reread) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Both directions. Only where they are `usable`; the process has them back afterwards, but for what was sent."""
    loop = asyncio.get_running_loop()
    nothing = os.open(os.devnull, os.O_RDONLY)
    wire_in, wire_out = _taken(0, nothing), _taken(1, 2)
    os.close(nothing)
    _widen(wire_out)
    reader = asyncio.StreamReader(limit=LONGEST_LINE)
    in_pipe, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(wire_in), "rb", buffering=0)
    )
    # A reader's protocol on the writing end for its flow control, which `drain` needs.
    out_pipe, protocol = await loop.connect_write_pipe(
        lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), os.fdopen(os.dup(wire_out), "wb", buffering=0)
    )
    out_pipe.set_write_buffer_limits(high=0)  # `drain` waits until all of it is in the pipe
    writer = asyncio.StreamWriter(out_pipe, protocol, None, loop)
    try:
        outgoing = Outgoing(writer)
        try:
            yield Incoming(reader, outgoing, reread), outgoing
        finally:
            with contextlib.suppress(OSError, TimeoutError):  # the client went away, or reads no more
                async with asyncio.timeout(FLUSH_SECONDS):
                    await outgoing.flush()
    finally:
        in_pipe.close()
        out_pipe.close()
        for descriptor, wire in ((0, wire_in), (1, wire_out)):
            with contextlib.suppress(OSError):
                os.set_blocking(wire, True)  # others may have the other end of this very pipe
            os.dup2(wire, descriptor)
            os.close(wire)


def _widen(pipe: int) -> None:
    """Let it hold more, so that a client is woken less often for a long history."""
    import fcntl

    with contextlib.suppress(AttributeError, OSError):  # not on Linux, no pipe, or the user's are spent
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _taken(descriptor: int, instead: int) -> int:
    """Another descriptor for the same, out of reach of everything else in the process; `instead` stands in for it."""
    import fcntl

    private: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.dup2(instead, descriptor)
    return private
