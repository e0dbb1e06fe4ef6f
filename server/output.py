"""Where a command writes what it was asked for: stdout, or a file."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def output(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Stdout, or a file that is there only once it is complete, for its owner to read."""
    if path is None:
        yield sys.stdout.buffer.write
        sys.stdout.buffer.flush()
        return
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file.write
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
