"""How far a long piece of work is, in one line of stderr that is written over; nothing where nobody watches."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final

_SECONDS: Final = 0.1  # between two updates (chosen: smooth to the eye, and of no cost)


class Progress:
    """`with Progress("conversations", "messages") as progress: ... progress.show(3, 40)`."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self._shown = 0.0
        self._watched = sys.stderr.isatty()

    def show(self, *counts: int, part: float | None = None) -> None:
        """The counts so far, in the order of the names; `part` is how much of the whole is done, 0 to 1."""
        now = time.monotonic()
        if not self._watched or now - self._shown < _SECONDS:
            return
        self._shown = now
        told = ", ".join(f"{count:,} {name}" for count, name in zip(counts, self._names, strict=True))
        if part is not None:
            done = int(part * 20)
            told = f"[{'#' * done}{'.' * (20 - done)}] {part:4.0%}  {told}"
        print(f"\r\x1b[K{told}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
