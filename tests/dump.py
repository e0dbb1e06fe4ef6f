"""Databases looked at and kept as whole: every row of every table as text, digests, dumps by Postgres' own programs."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from chatledger.storage.embedded import cluster
from tests.conftest import run_sql
from tests.driver import connect
from tests.patience import PATIENCE

CHECKOUT = Path(__file__).resolve().parent.parent
TABLES = """
SELECT c.oid::regclass::text AS name FROM pg_class c WHERE c.relkind = 'r' AND c.relpersistence = 'p'
   AND has_table_privilege(c.oid, 'SELECT') ORDER BY 1
"""


def rows(url: str) -> str:
    """Every row of every table of the database, the system's own among them, as Postgres writes it as text."""

    async def read() -> list[str]:
        connection = await connect(url)
        try:
            told: list[str] = []
            for table in await connection.fetch(TABLES):
                found = await connection.fetch(f"SELECT t::text AS told FROM {table['name']} t")
                told += [str(row["told"]) for row in found]
            return told
        finally:
            await connection.close()

    return "\n".join(asyncio.run(read()))


def digest(url: str) -> tuple[int, str]:
    """How many messages there are, and a SHA-256 over all of them, by the statement in the documentation."""
    (sql,) = re.findall(r"```sql\n(.*?)```", (CHECKOUT / "docs/deploy.md").read_text(), re.DOTALL)
    (found,) = run_sql(url, sql)
    return found["messages"], found["sha256"]


def program(name: str) -> Path:
    """One of Postgres' programs, of the version that is embedded."""
    programs, _ = cluster.binaries()
    return programs / name


def run(name: str, *words: str | Path) -> bytes:
    """What a program prints; it must succeed and complain of nothing."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    command: list[Any] = [program(name), *words]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=clean)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
    return done.stdout
