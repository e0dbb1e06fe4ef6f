"""A look at the database for people: what it is, whether it can be used, and which command mends what is wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

from chatledger.storage import row_security, schema
from chatledger.storage.adoption import UsersTable, read_users_table
from chatledger.storage.database_url import DatabaseTarget, read_database_url
from chatledger.storage.errors import StorageError, translate, unreachable
from chatledger.storage.row_security import RowSecurity
from chatledger.storage.source import DatabaseSource

OLDEST_POSTGRES = 15  # tested; 14 has no index-only partial scans that the plans rely on, and ends in November 2026

_FACTS = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int / 10000 AS major,
       current_setting('fsync') = 'on' AS fsync, current_setting('synchronous_commit') <> 'off' AS synchronous_commit,
       current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS replica,
       has_schema_privilege('pg_catalog', 'usage') AS reachable,
       (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user) AS mighty,
       (SELECT array_agg(wanted) FROM unnest($1::text[]) wanted
         WHERE NOT EXISTS (SELECT FROM pg_extension WHERE extname = wanted)) AS missing,
       (SELECT array_agg(wanted) FROM unnest($1::text[]) wanted
         WHERE NOT EXISTS (SELECT FROM pg_available_extensions WHERE name = wanted)) AS unavailable,
       has_database_privilege(current_database(), 'CREATE') AS may_create, lower('Ä') = 'ä' AS cased,
       (SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
         WHERE e.extname = 'pg_trgm') AS trigrams_at
"""
EXTENSIONS = ("btree_gin", "pg_trgm")  # what the migrations create, and search needs
# In locale C no letter beyond ASCII is one: search would look at every message of a user, and find neither case of Ä.
_LETTERS = "SELECT show_trgm('日本語') <> '{}'"


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
    users_table: UsersTable | None = None
    """The application's, where one is adopted."""
    row_security: bool | None = None
    """Whether Postgres holds this role's statements to one user's rows."""
    distributed: bool | None = None
    """Whether the tables are laid out over a cluster."""


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
        facts, letters, state, users_table, fence = await _ask(target)
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
    problems += _about_search(facts, letters, state)
    if facts["mighty"] and not source.migrates_itself:
        remarks.append("the role in the URL is a superuser or bypasses row security; a role of its own would do")
    if fence.problem:
        mend = f"give the server a role in {row_security.APP} that is neither, and migrate with another one"
        problems.append(Problem(fence.problem, "`chatledger migrate --with-rls`" if fence.without else mend))
    elif fence.up:
        remarks.append("row security is on: each statement is held to the rows of one user")
    if state.distributed:
        remarks.append("the tables are distributed over a Citus cluster by user; connect to its coordinator only")
    if users_table is not None and users_table.problem:
        adopt = users_table.name or "SCHEMA.TABLE"
        problems.append(Problem(users_table.problem, f"`chatledger migrate --users-table {adopt}`"))
    if not source.migrates_itself:
        try:
            schema.require_current(state._replace(forsaken=False))  # told above
        except StorageError as exc:
            sentence, _, mend = exc.message.partition("; ")
            problems.append(Problem(sentence, mend.removeprefix("run ")))
    return Diagnosis(
        where,
        facts["version"],
        state.revision,
        problems,
        remarks,
        users_table,
        fence.up and fence.holds,
        state.distributed,
    )


def _about_search(facts: Any, letters: bool, state: schema.SchemaState) -> list[Problem]:
    """What keeps search from working or from being fast; a missing extension that `migrate` will create is neither."""
    problems = []
    for name in facts["missing"] or ():
        if name in (facts["unavailable"] or ()):
            mend = "install the contrib modules on its host (postgresql-contrib in most distributions)"
            problems.append(Problem(f"this Postgres has no extension {name}, which search needs", mend))
        elif state.revision is not None or not facts["may_create"]:
            mend = f"let the database's owner or an administrator run CREATE EXTENSION {name} in it"
            problems.append(Problem(f"the extension {name}, which search needs, is missing", mend))
    if not letters:
        what = "the database's locale knows no letters beyond ASCII, so search in other scripts is slow or finds less"
        mend = "dump it, create it with TEMPLATE template0 LOCALE 'C.UTF-8' (or another in UTF-8), and restore"
        problems.append(Problem(what, mend))
    return problems


def _about_connection(target: DatabaseTarget) -> list[str]:
    remarks = []
    if target.neon:
        remarks.append("Neon, pooled" if target.pooled else "Neon, direct")
    if not target.encrypted and not target.direct and target.url.host not in ("localhost", "127.0.0.1", "::1"):
        remarks.append("the connection is not encrypted, as its sslmode=disable says")
    return remarks


async def _ask(target: DatabaseTarget) -> tuple[Any, bool, schema.SchemaState, UsersTable | None, RowSecurity]:
    """The facts, whether letters are known as such, the schema, the application's users table, row security."""
    import asyncpg

    place = target.url.translate_connect_args(username="user") | dict(target.url.query)
    try:
        connection = await asyncpg.connect(**place, **target.connect_args)
    except Exception as exc:
        raise unreachable(exc) from exc
    try:
        facts = await connection.fetchrow(_FACTS, EXTENSIONS)
        letters = facts["cased"]
        if facts["trigrams_at"]:
            async with connection.transaction():  # a name without its schema is found by a path of this step only
                await connection.execute("SELECT set_config('search_path', $1, true)", facts["trigrams_at"])
                letters = letters and await connection.fetchval(_LETTERS)
        state, users_table = await schema.read_state(connection), await read_users_table(connection)
        return facts, letters, state, users_table, await row_security.look(connection)
    except Exception as exc:
        raise translate(exc) from exc
    finally:
        await connection.close()
