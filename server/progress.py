"""How far a long piece of work is, in one line of stderr that is written over; nothing where nobody watches."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final

_SECONDS: Final = 0.1  # between two updates (chosen: smooth to the eye, and of no cost)


class Progress:
    """`with Progress() as progress: ... progress.show(3, 40, 0.5)`."""

    def __init__(self) -> None:
        self._shown = 0.0
        self._watched = sys.stderr.isatty()

    def show(self, conversations: int, messages: int, part: float) -> None:
        """The counts so far; `part` is how much of the file is done, 0 to 1."""
        now = time.monotonic()
        if not self._watched or now - self._shown < _SECONDS:
            return
        self._shown = now
        done = int(part * 20)
        told = f"[{'#' * done}{'.' * (20 - done)}] {part:4.0%}  {conversations:,} conversations, {messages:,} messages"
        print(f"\r\x1b[K{told}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
