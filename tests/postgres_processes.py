"""Processes that share one embedded Postgres, and bounded waiting for what they do."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg

from chatledger.storage.embedded import EmbeddedPostgres, supervisor
from tests.patience import PATIENCE

QUICK = {"fsync": "off"}  # nothing here survives the machine, so nothing has to reach the disk

USER = """
import sys
from pathlib import Path
from chatledger.storage.embedded import EmbeddedPostgres

database = EmbeddedPostgres(Path(sys.argv[1]), linger=float(sys.argv[2]), settings={"fsync": "off"})
print(database.start(), flush=True)
for line in sys.stdin:
    exec(line)
"""


def eventually(holds: Callable[[], bool], within: float = 25.0) -> None:
    """Return as soon as `holds` is true; fail after `within` seconds: by itself before a server that lingers ends."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def throughout(seconds: float, holds: Callable[[], bool]) -> None:
    """Fail as soon as `holds` is not true, within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert holds(), "it did not stay true"
        time.sleep(0.01)


@contextlib.contextmanager
def empty_root() -> Iterator[Path]:
    """A data directory without a database, which any account can reach; its server is stopped afterwards."""
    root = Path(tempfile.mkdtemp(prefix="chatledger-test-"))
    root.chmod(0o711)
    try:
        yield root
    finally:
        EmbeddedPostgres(root).stop()
        shutil.rmtree(root)


@contextlib.contextmanager
def ready_root() -> Iterator[Path]:
    """A data directory with a database, which all tests share one after the other: each finds it without a server."""
    root = _ready_root()
    try:
        yield root
    finally:
        EmbeddedPostgres(root).stop()
        for left in (root / "pg18").iterdir():
            if left.is_file() and left.name != "password":
                left.unlink()


@contextlib.contextmanager
def copied_root() -> Iterator[Path]:
    """A data directory with a database that a test may damage; to copy 39 MB takes up to a second."""
    with empty_root() as root:
        subprocess.run(["cp", "-R", _new_root() / "pg18", root], check=True)
        yield root


@functools.cache
def _ready_root() -> Path:
    root = _kept_root()
    subprocess.run(["cp", "-R", _new_root() / "pg18", root], check=True)
    return root


def _kept_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="chatledger-test-"))
    root.chmod(0o711)
    atexit.register(shutil.rmtree, root)
    return root


@functools.cache
def _new_root() -> Path:
    """One that nobody has stored anything in."""
    root = _kept_root()
    database = EmbeddedPostgres(root, linger=0, settings=QUICK)
    database.start()
    database.stop()
    database.release()
    return root


def ask(url: str, query: str) -> Any:
    """The first column of the first row of the answer to `query`, on a connection of its own."""

    async def fetch() -> Any:
        connection = await asyncpg.connect(url, timeout=PATIENCE)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def postmaster_of(root: Path) -> int:
    return supervisor.pid_in(EmbeddedPostgres(root).data_directory / "postmaster.pid")


def supervisor_of(root: Path) -> int:
    return supervisor.pid_in(root / "pg18" / "supervisor.lock")


def kill_postmaster(root: Path) -> None:
    """Kill it and wait until it can answer no more."""
    data, pid = EmbeddedPostgres(root).data_directory, postmaster_of(root)
    assert pid > 0
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not supervisor.is_postmaster(pid, data))


def kill_supervisor(root: Path) -> None:
    """Kill it and wait until its lock is free, which is a little later than its death."""
    pid = supervisor_of(root)
    assert pid > 0
    os.kill(pid, signal.SIGKILL)
    with supervisor.FileLock(root / "pg18" / "supervisor.lock").take(20):
        pass


def is_down(root: Path) -> bool:
    """Whether neither a server nor a supervisor is left."""
    try:
        supervisor.FileLock(root / "pg18" / "supervisor.lock").take(shared=True).release()
    except TimeoutError:
        return False
    return not EmbeddedPostgres(root).running()


class User:
    """Another process that is a user of the database until it leaves or is killed."""

    def __init__(self, root: Path, linger: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(root), str(linger)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        """What `start()` gave it; waits for that."""
        return self.answer()

    def answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the process ended"
        return line.strip()

    def do(self, line: str) -> None:
        """Let it execute one line of Python."""
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def leave(self) -> None:
        self.process.communicate(timeout=PATIENCE)


@contextlib.contextmanager
def users(root: Path, number: int = 1, linger: float = 0.0) -> Iterator[list[User]]:
    """Processes that use the database at once. All have ended afterwards."""
    started = [User(root, linger) for _ in range(number)]
    try:
        yield started
    finally:
        for user in started:
            user.kill()
            user.process.communicate()
