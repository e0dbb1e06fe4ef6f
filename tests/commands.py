"""Commands run in this process, as a person types them on the machine of a server."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from chatledger.server import settings
from chatledger.server.cli import main

Run: TypeAlias = Callable[..., tuple[int, str, str]]
"""Of the words of a command: its exit code, stdout and stderr."""


def runner(url: str, folder: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[bytes]) -> Run:
    """Runs commands in `folder` on the database at `url`, or another one (`at`), with what is `typed` on stdin."""
    patch.chdir(folder)
    patch.setattr(settings, "USER_CONFIG_FILE", folder / "config.env")

    def run(*argv: str | Path, typed: str = "", at: str = url) -> tuple[int, str, str]:
        patch.setenv("CHATLEDGER_DATABASE_URL", at)
        patch.setattr(sys, "stdin", io.StringIO(typed))
        capture.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in argv])
        out, err = (text.decode() for text in capture.readouterr())
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run
