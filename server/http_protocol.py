"""HTTP connections that cost little: bounded heads, and a client that sends slowly is not waited for.

uvicorn bounds neither the size of a request's head nor the time that it takes, and keeps all of it in memory.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES: Final = 32 * 1024  # chosen: a token has at most 8 KiB, the rest of a usual head 2
HEAD_FIELDS: Final = 100  # chosen: browsers and proxies send about thirty
HEAD_SECONDS: Final = 10.0  # the bad-input table: what sends one byte a second is closed after 10 s


class BoundedProtocol(HttpToolsProtocol):
    """One connection. A head that is too large is answered with 431, one that takes too long with 408."""

    _head_bytes = 0
    _fields_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """What arrives counts as head until the parser says that the head is complete."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_timer is None:  # the first bytes of a further request on this connection
                self._head_timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)
        super().data_received(data)
        # The parser has looked at it by now: a body that came along with its head is none.
        if self._in_head and self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self._answer(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        self._in_head, self._fields_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value.strip(b" \t"))  # RFC 9110, 5.5; the parser leaves what trails
        self._fields_bytes += len(name) + len(value)
        if len(self.headers) > HEAD_FIELDS or self._fields_bytes > HEAD_BYTES:
            raise ValueError("the head is too large")  # the parser stops, and the answer is 400

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._stop_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        self._in_head = True
        super().on_response_complete()

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self._answer(b"408 Request Timeout")

    def _answer(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def connection_options() -> dict[str, Any]:
    """What uvicorn is told about connections."""
    return {
        "http": BoundedProtocol,
        "ws": "none",
        "timeout_keep_alive": 75,  # above the 60 s that proxies keep idle connections: they close first, without a race
        "server_header": False,
        "access_log": False,
    }
