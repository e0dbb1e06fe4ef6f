"""How much one user may ask at once: a rate with a burst, and a number of calls in flight, in each server process."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from chatledger.storage.errors import StorageError

if TYPE_CHECKING:  # settings name a Rate, and must not import the protocol for it
    from mcp.server.mcpserver import Context

    from chatledger.server.identity import Caller

IN_FLIGHT: Final = 64  # calls of one user at once (chosen: the burst of the default rate, and a little)
_FORGET_ABOVE: Final = 10_000  # users remembered before those who are at rest are dropped (chosen: about 2 MB)


class RateLimited(StorageError):
    """The user calls faster than one may. `retry_after_seconds` says when the next call will pass."""

    code: ClassVar[str] = "rate_limited"


class Rate(NamedTuple):
    """So many calls a second in the long run, and so many at once after a rest."""

    per_second: float
    burst: int


class _Bucket:
    __slots__ = ("at", "calls", "in_flight")

    def __init__(self, calls: float, at: float) -> None:
        self.calls, self.at, self.in_flight = calls, at, 0


class Admission:
    """Admits calls one by one; all of them where `rate` is None."""

    def __init__(self, caller: Caller, rate: Rate | None = None, *, in_flight: int = IN_FLIGHT) -> None:
        self._caller, self._rate, self._in_flight = caller, rate, in_flight
        self._buckets: dict[str, _Bucket] = {}

    @contextlib.asynccontextmanager
    async def __call__(self, ctx: Context[Any, Any]) -> AsyncIterator[None]:
        """While a call of this context's user runs.

        Raises:
            RateLimited: it may not run now; it counts for nothing.
        """
        if self._rate is None:
            yield
            return
        bucket = self._bucket(await self._caller(ctx), self._rate)
        if bucket.in_flight >= self._in_flight:
            raise RateLimited(
                f"{bucket.in_flight} calls of yours are running, which is the limit; wait for one to end",
                retry_after_seconds=1,
            )
        _take(bucket, self._rate)
        bucket.in_flight += 1
        try:
            yield
        finally:
            bucket.in_flight -= 1

    def _bucket(self, user_id: str, rate: Rate) -> _Bucket:
        bucket = self._buckets.get(user_id)
        if bucket is None:
            if len(self._buckets) >= _FORGET_ABOVE:
                self._forget(rate)
            bucket = self._buckets[user_id] = _Bucket(rate.burst, time.monotonic())
        return bucket

    def _forget(self, rate: Rate) -> None:
        """Drop those who have nothing in flight and would have a full burst again by now."""
        rested = time.monotonic() - rate.burst / rate.per_second
        self._buckets = {
            user_id: bucket for user_id, bucket in self._buckets.items() if bucket.in_flight or bucket.at > rested
        }


def _take(bucket: _Bucket, rate: Rate) -> None:
    now = time.monotonic()
    bucket.calls = min(rate.burst, bucket.calls + (now - bucket.at) * rate.per_second)
    bucket.at = now
    if bucket.calls < 1:
        seconds = math.ceil((1 - bucket.calls) / rate.per_second * 100) / 100
        raise RateLimited(
            f"more than {rate.per_second:g} calls a second; the next one passes in {seconds:g} s",
            retry_after_seconds=seconds,
        )
    bucket.calls -= 1
