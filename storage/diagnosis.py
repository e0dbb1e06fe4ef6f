"""A look at the database for people: what it is, whether it can be used, and which command mends what is wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

from chatledger.storage import schema
from chatledger.storage.database_url import DatabaseTarget, read_database_url
from chatledger.storage.errors import StorageError, translate, unreachable
from chatledger.storage.source import DatabaseSource

OLDEST_POSTGRES = 15  # tested; 14 has no index-only partial scans that the plans rely on, and ends in November 2026

_FACTS = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int / 10000 AS major,
       current_setting('fsync') = 'on' AS fsync, current_setting('synchronous_commit') <> 'off' AS synchronous_commit,
       current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS replica,
       has_schema_privilege('pg_catalog', 'usage') AS reachable,
       (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user) AS mighty
"""


class Problem(NamedTuple):
    """What is wrong, and what mends it."""

    what: str
    mend: str


class Diagnosis(NamedTuple):
    """What was found. Facts are None where the database could not be asked."""

    where: str
    server_version: str | None
    revision: str | None
    problems: list[Problem]
    remarks: list[str]


async def diagnose(source: DatabaseSource, where: str) -> Diagnosis:
    """Connect once and look. Nothing is changed, but an embedded database is started."""
    problems: list[Problem] = []
    remarks: list[str] = []
    try:
        target = read_database_url(await source.url())
    except ValueError as exc:
        return Diagnosis(where, None, None, [Problem(str(exc), "correct CHATLEDGER_DATABASE_URL")], [])
    except StorageError as exc:
        return Diagnosis(where, None, None, [Problem(exc.message, "set CHATLEDGER_DATABASE_URL to a Postgres")], [])
    remarks += _about_connection(target)
    try:
        facts, state = await _ask(target)
    except StorageError as exc:
        mend = (
            "check the URL, that the server runs, and the network between" if exc.code == "unavailable" else "see above"
        )
        return Diagnosis(
            where, None, None, [Problem(exc.message.removesuffix("; `chatledger doctor` says more"), mend)], remarks
        )
    if facts["major"] < OLDEST_POSTGRES:
        problems.append(Problem(f"Postgres {facts['version']} is too old", f"use Postgres {OLDEST_POSTGRES} or newer"))
    if facts["encoding"] != "UTF8":
        problems.append(Problem(f"the database's encoding is {facts['encoding']}", "create it with ENCODING 'UTF8'"))
    if facts["replica"]:
        problems.append(Problem("this is a read-only replica", "use the URL of the primary"))
    if not target.neon and not facts["fsync"]:  # Neon's durability is elsewhere, and its setting says off by design
        problems.append(Problem("fsync is off: a crash of the machine can lose what was stored", "set fsync = on"))
    if not facts["synchronous_commit"]:
        problems.append(
            Problem("synchronous_commit is off: a crash can lose what was acknowledged", "set synchronous_commit = on")
        )
    if facts["mighty"] and not source.migrates_itself:
        remarks.append("the role in the URL is a superuser or bypasses row security; a role of its own would do")
    if not source.migrates_itself:
        try:
            schema.require_current(state)
        except StorageError as exc:
            sentence, _, mend = exc.message.partition("; ")
            problems.append(Problem(sentence, mend.removeprefix("run ")))
    return Diagnosis(where, facts["version"], state.revision, problems, remarks)


def _about_connection(target: DatabaseTarget) -> list[str]:
    remarks = []
    if target.neon:
        remarks.append("Neon, pooled" if target.pooled else "Neon, direct")
    if not target.encrypted and not target.direct and target.url.host not in ("localhost", "127.0.0.1", "::1"):
        remarks.append("the connection is not encrypted, as its sslmode=disable says")
    return remarks


async def _ask(target: DatabaseTarget) -> tuple[Any, schema.SchemaState]:
    import asyncpg

    place = target.url.translate_connect_args(username="user") | dict(target.url.query)
    try:
        connection = await asyncpg.connect(**place, **target.connect_args)
    except Exception as exc:
        raise unreachable(exc) from exc
    try:
        return await connection.fetchrow(_FACTS), await schema.read_state(connection)
    except Exception as exc:
        raise translate(exc) from exc
    finally:
        await connection.close()
