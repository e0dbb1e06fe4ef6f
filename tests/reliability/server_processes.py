"""`chatledger serve` in processes that may be killed at any moment and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import jwt

CHATLEDGER = str(Path(sys.executable).with_name("chatledger"))
START_SECONDS = 60.0  # for a process to listen (chosen: 20 were seen on two busy cores)
SECRET = "a secret for these tests alone, of no use elsewhere"
ISSUER, AUDIENCE = "https://issuer.example", "https://ledger.example/mcp"


def token(user: str) -> str:
    """A token that such a server takes for this user's, for an hour."""
    return jwt.encode(
        {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 3600}, SECRET, algorithm="HS256"
    )


def environment(home: Path, **settings: object) -> dict[str, str]:
    """What a host gives a server, and nothing of what is set here."""
    given = {"PATH": os.environ["PATH"], "HOME": str(home)}
    return given | {f"CHATLEDGER_{name}": str(value) for name, value in settings.items()}


class HttpServer:
    """A process that serves anyone with a token. `settings` say which database."""

    def __init__(self, **settings: object) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="chatledger-server-"))
        self._environment = environment(
            self._home,
            AUTH_SECRET=SECRET,
            AUTH_ISSUER=ISSUER,
            AUTH_AUDIENCE=AUDIENCE,
            PUBLIC_URL="https://ledger.example",
            RATE_LIMIT_PER_SECOND=0,
            **settings,
        )
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self._home / "log"

    async def start(self) -> None:
        """Start it, on another port than before, and return when it listens."""
        self.log.unlink(missing_ok=True)
        with self.log.open("wb") as log:
            command = [CHATLEDGER, "serve", "--transport", "http", "--port", "0"]
            self.process = subprocess.Popen(command, stderr=log, env=self._environment, cwd=self._home)
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/mcp", self.log.read_text(errors="replace"))):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "a server did not listen in time"
            await asyncio.sleep(0.01)
        self.port = int(found[1])

    def kill(self) -> None:
        """SIGKILL: no call is finished, no connection is closed by it."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None:
            self.kill()
        for file in sorted(self._home.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        self._home.rmdir()


@contextlib.asynccontextmanager
async def http_servers(number: int, **settings: object) -> AsyncIterator[list[HttpServer]]:
    """So many servers on one database, all listening; all are killed afterwards."""
    servers = [HttpServer(**settings) for _ in range(number)]
    try:
        await asyncio.gather(*(server.start() for server in servers))
        yield servers
    finally:
        for server in servers:
            server.close()
