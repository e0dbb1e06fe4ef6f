"""What is told about each call: to a log for people and programs, and to whatever counts. Never what was said in it."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, TypeAlias

logger = logging.getLogger("chatledger")

REQUEST_ID: ContextVar[str | None] = ContextVar("REQUEST_ID", default=None)
_SAFE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Call:
    """One call, from its beginning to its end."""

    method: str
    tool: str | None = None
    user_id: str | None = None
    code: str = "ok"
    """`ok`, or the code of the error that was answered."""
    messages: int = 0
    """How many messages an append brought."""
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)


Observer: TypeAlias = Callable[[Call], Awaitable[None]]


class Observers:
    """Those who want to be told of each call that has ended."""

    def __init__(self) -> None:
        self._all: list[Observer] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, observer: Observer) -> None:
        self._all.append(observer)

    async def tell(self, call: Call) -> None:
        """An observer that fails is noted, and fails nothing else."""
        call.seconds = time.perf_counter() - call.began
        for observer in self._all:
            try:
                await observer(call)
            except Exception as exc:  # noqa: BLE001  # a call must not fail because it could not be counted
                logger.warning("an observer failed: %s", type(exc).__name__)


@contextmanager
def request_id(sent: str | None) -> Iterator[str]:
    """The id of this request in logs: what the client or a proxy sent, where it is harmless, or a new one."""
    known = sent if sent is not None and _SAFE_ID.fullmatch(sent) else secrets.token_hex(8)
    token = REQUEST_ID.set(known)
    try:
        yield known
    finally:
        REQUEST_ID.reset(token)


class CallLog:
    """A line of JSON for each call: when, who by a digest, what, how it ended, how long it took.

    The digest is keyed with a secret of the database: the same for all processes, and of no use elsewhere. While the
    secret is not known, as the database is away, a line says nothing of the user; no call waits for it.
    """

    def __init__(self, secret: Callable[[], bytes | None], write: Callable[[str], object]) -> None:
        self._secret, self._write = secret, write

    async def __call__(self, call: Call) -> None:
        facts: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": REQUEST_ID.get(),
            "user": None if call.user_id is None else self._digest(call.user_id),
            "method": call.method,
            "tool": call.tool,
            "code": call.code,
            "ms": round(call.seconds * 1000, 1),
        }
        self._write(json.dumps({name: value for name, value in facts.items() if value is not None}))

    def _digest(self, user_id: str) -> str | None:
        key = self._secret()
        return None if key is None else _digest(key, user_id)


@lru_cache(maxsize=10_000)  # users of a process (chosen: a megabyte or two)
def _digest(key: bytes, user_id: str) -> str:
    return hmac.new(key, b"log:" + user_id.encode(), hashlib.sha256).hexdigest()[:16]
