"""The schema's revision, and the migrations that change it: under an advisory lock, on the direct host.

Importing Alembic takes a second of CPU, so it happens inside `migrate` only: a start that finds the schema as it should
be, which is every start but the first, never pays for it. SQLAlchemy, too, is imported where it is used first.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

from chatledger.storage import distribution, row_security
from chatledger.storage.errors import (
    SchemaOutOfDate,
    StorageError,
    Unavailable,
    driver_error,
    translate,
    unreachable,
)

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

REVISION = "0001"
"""The revision that this code is written for. Revisions are four digits, so they compare as text."""

_LOCK_KEY = 0x63686174  # "chat": any number will do that is always the same
_LOCK_TIMEOUT = "60s"  # another process migrates at this moment; a first migration takes less than 1 s (measured)
# Whatever a migration wants of a table that is in use, all later calls wait behind it: for 3 s at the most, so it asks
# for less than that, makes room, and asks again for as long as a backup or an export may reasonably read (chosen).
_TABLE_LOCK_TIMEOUT = "2s"
_MAKING_ROOM = 0.5  # seconds: several round trips of those that waited
_PATIENCE = 60.0  # seconds
_one_at_a_time = threading.Lock()  # Alembic's context is a module global: two upgrades in one process mix

STATE_SQL = """
SELECT (SELECT max(version_num) FROM chatledger.alembic_version) AS revision,
       (SELECT secret FROM chatledger.signing_keys WHERE purpose = 'cursor') AS secret,
       EXISTS (SELECT FROM pg_catalog.pg_attribute
                WHERE attrelid = to_regclass('chatledger.users') AND attname = 'app_user_id')
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint
                        WHERE conrelid = to_regclass('chatledger.users') AND conname = 'users_app_user') AS forsaken,
       coalesce(row_security_active(to_regclass('chatledger.messages')::oid), false) AS fenced,
       EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus') AS citus
"""
FORSAKEN = "the application's users table that was adopted is gone"


class SchemaState(NamedTuple):
    """What a database has: no revision where nothing was ever migrated there."""

    revision: str | None
    cursor_secret: bytes = b""
    forsaken: bool = False
    """Whether a users table was adopted that is gone, so that nothing tells any more who is a user."""
    fenced: bool = False
    """Whether row security holds this role to the rows of the user whom a transaction names."""
    distributed: bool = False
    """Whether the tables are laid out over a cluster, so that a statement is about one user or no user."""


async def read_state(connection: Any) -> SchemaState:
    """The schema's state, by one statement on a driver connection; where Citus is, by two."""
    try:
        row = await connection.fetchrow(STATE_SQL)
    except Exception as exc:
        if isinstance(translate(exc), SchemaOutOfDate):
            return SchemaState(None)
        raise
    distributed = row["citus"] and await distribution.look(connection)
    return SchemaState(row["revision"], row["secret"] or b"", row["forsaken"], row["fenced"], distributed)


def require_current(state: SchemaState) -> None:
    """Raises SchemaOutOfDate, with what to do about it."""
    if state.forsaken:
        raise SchemaOutOfDate(f"{FORSAKEN}; run `chatledger migrate --users-table SCHEMA.TABLE`")
    if state.revision == REVISION and state.cursor_secret:
        return
    if state.revision is None:
        raise SchemaOutOfDate("the database has no chatledger tables yet; run `chatledger migrate`")
    if state.revision > REVISION:
        raise SchemaOutOfDate(
            f"the database is at schema revision {state.revision}, newer than the {REVISION} of this version; "
            "upgrade chatledger (`uv sync`, or `pip install -U chatledger`)"
        )
    raise SchemaOutOfDate(
        f"the database is at schema revision {state.revision}, this version needs {REVISION}; run `chatledger migrate`"
    )


def migrate(
    url: str, revision: str = "head", *, then: Callable[[Connection], object] | None = None
) -> tuple[str | None, str | None]:
    """Bring the database at `url` to `revision`; the revisions before and after. All or nothing, in one transaction.

    Several callers at once, in any number of processes, are safe: one migrates, the others find it done. `then` is
    called with the connection when that is done, as a part of the transaction. Blocks; call it in a thread of its own.

    Raises:
        ValueError: the URL cannot be used, is pooled without a direct host that can be derived, or names no revision.
        StorageError: the database cannot be reached, or refused, or its tables are in use and stay so.
    """
    with _one_at_a_time:
        began = time.monotonic()
        while True:
            try:
                return asyncio.run(_migrate(url, revision, then))
            except Unavailable as exc:
                # Waited for too long, or in a circle with calls that take the tables in another order.
                if getattr(driver_error(exc.__cause__ or exc), "sqlstate", None) not in ("55P03", "40P01"):
                    raise
                if time.monotonic() - began >= _PATIENCE:
                    why = "something reads or changes the tables and does not end; nothing was changed, try again later"
                    raise Unavailable(why) from exc
            time.sleep(_MAKING_ROOM)


async def _migrate(
    url: str, revision: str, then: Callable[[Connection], object] | None
) -> tuple[str | None, str | None]:
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    from chatledger.storage.database_url import read_database_url

    target = read_database_url(url).unpooled()
    if target is None:
        raise ValueError("migrations need a direct connection; set CHATLEDGER_DIRECT_DATABASE_URL")
    connect_args = target.connect_args | {"command_timeout": None}  # building an index may take long
    engine = create_async_engine(target.url, poolclass=NullPool, connect_args=connect_args)
    connected = False
    try:
        async with engine.begin() as connection:
            connected = True
            await connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'"))
            await connection.execute(text("SET LOCAL statement_timeout = 0"))
            await connection.execute(text("SET LOCAL enable_seqscan = on"))  # a migration may need to read all there is
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            await connection.execute(text(f"SET LOCAL lock_timeout = '{_TABLE_LOCK_TIMEOUT}'"))
            # Asked first: IF NOT EXISTS wants the right to make it even where an administrator has made it.
            if await connection.scalar(text("SELECT to_regnamespace('chatledger') IS NULL")):
                await connection.execute(text("CREATE SCHEMA chatledger"))
            revisions = await connection.run_sync(_run, revision)
            if then is not None:
                await connection.run_sync(row_security.lifted, then)
            return revisions
    except (ValueError, StorageError):
        raise
    except Exception as exc:
        raise (translate(exc) if connected else unreachable(exc)) from exc
    finally:
        await engine.dispose()


def _run(connection: Connection, revision: str) -> tuple[str | None, str | None]:
    from alembic import command
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    config = _config()
    config.attributes["connection"] = connection
    context = MigrationContext.configure(connection, opts={"version_table_schema": "chatledger"})
    before = context.get_current_revision()
    script = ScriptDirectory.from_config(config)
    try:
        wanted = script.get_current_head() if revision == "head" else revision
        if wanted is not None and wanted != "base":
            script.get_revision(wanted)
        if before is not None:
            script.get_revision(before)  # a newer database: this code cannot know the way back
    except CommandError:
        if before is not None and before > REVISION:
            require_current(SchemaState(before))
        raise ValueError(f"there is no schema revision {revision}") from None
    down = before is not None and (wanted == "base" or (wanted is not None and wanted < before))
    if wanted != before:
        change = command.downgrade if down else command.upgrade
        row_security.lifted(connection, lambda _: change(config, wanted or "head"))
    return before, context.get_current_revision()


def migration_sql(revision: str = "head", *, with_row_security: bool = False) -> str:
    """The SQL that `migrate` would run on an empty database, for those who run it themselves."""
    from alembic import command

    text = StringIO()
    with _one_at_a_time:
        command.upgrade(_config(text), revision, sql=True)
    fence = "".join(f"{statement.strip()};\n\n" for statement in row_security.statements())
    return text.getvalue() + (f"BEGIN;\n\n{fence}COMMIT;\n\n" if with_row_security else "")


def _config(output: StringIO | None = None) -> Config:
    from alembic.config import Config

    config = Config() if output is None else Config(output_buffer=output)
    config.set_main_option("script_location", "chatledger.migrations:")
    return config
