"""The event loop that servers run on, and how often Python looks for garbage meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Coroutine
from typing import Any, Final

# New objects before Python looks for cycles among them; by itself it does after 700. A history makes thousands, none of
# them in a cycle (measured: a tenth of a history's CPU).
NEW_OBJECTS: Final = 20_000


def run(main: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run` on uvloop where there is one. The process is taken to be the server's own."""
    gc.set_threshold(NEW_OBJECTS)
    factory: Any = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)
