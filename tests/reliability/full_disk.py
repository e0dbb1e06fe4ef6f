"""An embedded Postgres on a small file system of its own that runs full: `python -m tests.reliability.full_disk DIR`.

It runs inside a private mount namespace, where DIR is a tmpfs: as root, or in a user namespace as anybody else. The
figures are printed as JSON. `run` starts it from outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg

from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.embedded import EmbeddedPostgres
from chatledger.storage.errors import Unavailable
from tests.driver import connect

# The database takes 33 MiB and its write-ahead log 16 to 32; to recover after running full, one segment of 16 more.
MOUNT = "mount -t tmpfs -o size={size}m,mode=0711 chatledger-test {place}"
CASES = {"data": 64, "data and log": 96}
"""What lies on the small file system, and its MiB. Where the log is elsewhere an append fails, else the server does."""
SMALL = {"fsync": "off", "max_wal_size": "32MB", "min_wal_size": "32MB", "wal_recycle": "off"}
SECONDS = 120.0  # for all of it (chosen: up to 16 were seen on two busy cores)
LEFT = 2 * 2**20  # bytes that are left free, for appends to fill
BATCH, CHARS = 20, 8_000  # of an append: messages, and characters that nothing can compress


def run(case: str) -> dict[str, Any]:
    """The figures of one full disk, of one of CASES.

    Raises:
        AssertionError: the store did something else than it should, or no file system can be mounted here.
    """
    with tempfile.TemporaryDirectory(prefix="chatledger-full-") as folder:
        Path(folder).chmod(0o711)
        disk, log = Path(folder, "disk"), Path(folder, "log")
        disk.mkdir()
        log.mkdir()
        mounts = (MOUNT.format(size=CASES[case], place=disk), MOUNT.format(size=256, place=log))
        program = f"exec {sys.executable} -m tests.reliability.full_disk {folder} '{case}'"
        said = ""
        for namespace in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
            done = subprocess.run(
                [*namespace, "sh", "-c", " && ".join((*mounts, program))],
                cwd=Path(__file__).parent.parent.parent,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
            if done.returncode == 0:
                figures: dict[str, Any] = json.loads(done.stdout)
                return figures
            said += done.stderr
            if "mount" not in done.stderr and "unshare" not in done.stderr:
                break
        raise AssertionError(f"a full disk could not be made, or was not survived:\n{said[-3000:]}")


async def fill(root: Path, log: Path | None) -> dict[str, Any]:
    """Append until there is no room, look whether loads go on, make room, append again."""
    server = EmbeddedPostgres(root, linger=0, settings=SMALL)
    server.start()
    if log is not None:
        server.stop()
        inside = server.data_directory / "pg_wal"
        subprocess.run(["mv", inside, log], check=True)
        inside.symlink_to(log / "pg_wal")
        server.start()
    async with ConversationStore.embedded(root) as store:
        conversation, _ = await store.create_conversation("alice")
        ballast = root / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(root).free - LEFT))
        if log is None:
            await _end_the_segment(str(server.url()))
        acknowledged, refusal = await _append_until_refused(store, conversation.id)
        loads = await _loads(store, conversation.id)
        ballast.unlink()
        began, attempts = time.monotonic(), 0
        while True:
            attempts += 1
            try:
                await store.append_messages("alice", conversation.id, _said(acknowledged))
                break
            except Unavailable:
                assert attempts < 50, "it did not recover"
                await asyncio.sleep(0.1)
        recovery = time.monotonic() - began
        assert await _loads(store, conversation.id), "loads must work again"
        watch = await connect(str(server.url()))
        ids = [row[0] for row in await watch.fetch("SELECT client_message_id FROM chatledger.messages ORDER BY seq")]
        await watch.close()
        assert ids == [str(number) for number in range(acknowledged + BATCH)], "lost, doubled or out of order"
    server.stop()
    return {
        "acknowledged": acknowledged + BATCH,
        "refusal": refusal,
        "loads while full": loads,
        "attempts": attempts,
        "recovery": recovery,
    }


async def _end_the_segment(url: str) -> None:
    """The log's next segment has to be made now, for which there is no room."""
    watch = await connect(url)
    try:
        with contextlib.suppress(asyncpg.PostgresError, OSError, asyncpg.InterfaceError):
            for _ in range(4):
                await watch.execute("SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal()")
    finally:
        watch.terminate()


async def _append_until_refused(store: ConversationStore, conversation: Any) -> tuple[int, str]:
    """How many messages were acknowledged before, and with which sentence it was refused."""
    for number in range(0, 100_000, BATCH):
        try:
            await store.append_messages("alice", conversation, _said(number))
        except Unavailable as refused:
            return number, refused.message
    raise AssertionError("the disk never ran full")


async def _loads(store: ConversationStore, conversation: Any) -> bool:
    try:
        window = await store.load_history("alice", conversation, limit=2)
    except Unavailable:
        return False
    return len(window.messages) == 2


def _said(first: int) -> list[NewMessage]:
    chance = random.Random(first)
    return [
        NewMessage(role="user", content=chance.randbytes(CHARS // 2).hex(), client_message_id=str(number))
        for number in range(first, first + BATCH)
    ]


if __name__ == "__main__":
    disk, log = Path(sys.argv[1], "disk"), Path(sys.argv[1], "log")
    sys.stdout.write(json.dumps(asyncio.run(fill(disk, log if sys.argv[2] == "data" else None))))
