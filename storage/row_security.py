"""Row security: a second fence behind the predicates of the statements, put up by `migrate --with-rls`.

Postgres itself then shows and takes only rows of the user whose statement runs, which its transaction says in a
setting. That holds for every role but superusers and those with BYPASSRLS. The server's role is in `chatledger_app`,
which owns nothing; the tables belong to `chatledger_owner`, which nobody logs in as and the role that migrates is in.

No statement may change a message, so the app role may not either: messages go with their conversation by the foreign
key, which acts for the tables' owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from chatledger.storage import distribution
from chatledger.storage.errors import StorageError, driver_error
from chatledger.storage.query import OWNED_BY, Query

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import Connection

OWNER: Final = "chatledger_owner"
APP: Final = "chatledger_app"

# What the app role may do with each table, and the column that tells whose a row is.
_PRIVILEGES: Final = {
    "users": "SELECT, INSERT, DELETE, UPDATE (last_number, conversation_count)",
    "conversations": "SELECT, INSERT, DELETE, UPDATE (title, metadata, last_seq, archived_at, updated_at)",
    "messages": "SELECT, INSERT",
    "api_tokens": "SELECT, INSERT, DELETE, UPDATE (last_used_at)",
    "erasures": "INSERT",
    "signing_keys": "SELECT",
    "alembic_version": "SELECT",
}

# Strict: where nothing was ever set on the connection it raises. Afterwards an earlier transaction's setting is an
# empty text, which is nobody's id.
_USER: Final = "(SELECT current_setting('chatledger.user_id'))"
# A token is looked up before anybody knows whose it is: the transaction says which one.
_NAMED: Final = "id = (SELECT current_setting('chatledger.token_id', true))"
# Lists of users, of their tokens and of what is old, for whoever runs the server; never messages.
_EVERYBODY: Final = "(SELECT current_setting('chatledger.everybody', true)) = 'yes'"
_LISTED: Final = ("users", "conversations", "api_tokens")

_MAKE_ROLES: Final = f"""
DO $chatledger$
DECLARE
  name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['{OWNER}', '{APP}'] LOOP
    BEGIN
      IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', name);
      END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
      NULL;  -- roles are of all databases, and another one's migration was first
    END;
  END LOOP;
  IF NOT pg_has_role('{OWNER}', 'USAGE') THEN
    GRANT {OWNER} TO CURRENT_USER;
  END IF;
END $chatledger$
"""


def _handed_over(owned: str, to: str) -> str:
    """A statement that makes `to` the owner of the tables and domains whose present one fits `owned`."""
    return f"""
DO $chatledger$
DECLARE
  statement text;
BEGIN
  FOR statement IN
    SELECT format('ALTER TABLE %s OWNER TO {to}', oid::regclass) FROM pg_class
     WHERE relnamespace = 'chatledger'::regnamespace AND relkind IN ('r', 'p') AND pg_get_userbyid(relowner) {owned}
    UNION ALL
    SELECT format('ALTER DOMAIN %s OWNER TO {to}', oid::regtype) FROM pg_type
     WHERE typnamespace = 'chatledger'::regnamespace AND typtype = 'd' AND pg_get_userbyid(typowner) {owned}
  LOOP
    EXECUTE statement;
  END LOOP;
END $chatledger$
"""


_GIVE_AWAY: Final = _handed_over(f"<> '{OWNER}'", OWNER)
_TAKE_BACK: Final = _handed_over(f"= '{OWNER}'", "CURRENT_USER")
_IS_UP: Final = """
SELECT coalesce(bool_or(relrowsecurity), false) FROM pg_class
 WHERE relnamespace = to_regnamespace('chatledger') AND relname = 'messages'
"""
_EXIST: Final = "SELECT to_regclass('chatledger.messages') IS NOT NULL"

NO_SCOPE: Final = "42704"  # SQLSTATE undefined_object: what the strict setting raises where it was never set
SET_SCOPE: Final = (
    "SELECT set_config('chatledger.user_id', $1, true), set_config('chatledger.token_id', $2, true), "
    "set_config('chatledger.everybody', $3, true)"
)
"""For the transaction only: a connection that goes back to a pool, or to a pooler, keeps nobody's id."""

_LOOK = f"""
SELECT coalesce((SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass('chatledger.messages')), false) AS up,
       coalesce(row_security_active(to_regclass('chatledger.messages')::oid), false) AS holds,
       (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user) AS mighty,
       (SELECT array_agg(relname::text ORDER BY relname) FROM pg_class
         WHERE relnamespace = to_regnamespace('chatledger') AND relname = ANY($1::text[])
           AND NOT (relrowsecurity AND relforcerowsecurity)) AS without,
       EXISTS (SELECT FROM pg_roles WHERE rolname = '{OWNER}' AND pg_has_role(oid, 'USAGE')) AS owns
"""


class RowSecurityRefused(StorageError):
    """It could not be put up, or the role in the URL is held to one user's rows."""

    code = "invalid_argument"


class RowSecurity(NamedTuple):
    """Whether there is the fence, and whether it stands before the role that asks."""

    up: bool
    holds: bool
    mighty: bool
    """Whether the role is a superuser or has BYPASSRLS."""
    without: list[str]
    """The tables that lack it, or lack it for their owner."""
    owns: bool

    @property
    def problem(self) -> str | None:
        """Why it protects nothing, or not everything, of what this role does."""
        if not self.up:
            return None
        if self.mighty:
            return "row security is on, but the role in the URL is a superuser or has BYPASSRLS, and so passes it"
        if self.without:
            return f"row security is on, but not for {', '.join(self.without)}"
        return None


async def look(connection: Any) -> RowSecurity:
    """By one statement on a driver connection."""
    row = await connection.fetchrow(_LOOK, list(OWNED_BY))
    return RowSecurity(row["up"], row["holds"], row["mighty"], row["without"] or [], row["owns"])


_MAY_LIST: Final = Query(f"SELECT pg_has_role('{OWNER}', 'USAGE') AS may", ())


async def enter(fetch: Callable[[Query], Awaitable[list[Any]]], query: Query) -> None:
    """Say whose rows the next statement of the transaction is about.

    Raises:
        RowSecurityRefused: it lists all users, and the role is held to one.
    """
    await fetch(Query(SET_SCOPE, scope(query)))
    if query.about == "everybody" and not (await fetch(_MAY_LIST))[0]["may"]:
        raise RowSecurityRefused(
            "row security holds the role in the URL to one user at a time; run this with the URL that migrates"
        )


def scope(query: Query) -> tuple[str, str, str]:
    """The arguments of SET_SCOPE for a statement: whose rows it is about."""
    named = query.args[0] if query.args and isinstance(query.args[0], str) else ""
    if query.about == "everybody":
        return "", "", "yes"
    return ("", named, "") if query.about == "a token" else (named, "", "")


def statements() -> list[str]:
    """The SQL that puts it up, in order; each may be run again."""
    made = [_MAKE_ROLES, f"GRANT USAGE, CREATE ON SCHEMA chatledger TO {OWNER}", _GIVE_AWAY]
    made.append(f"GRANT USAGE ON SCHEMA chatledger TO {APP}")
    made += [f"GRANT {privileges} ON chatledger.{table} TO {APP}" for table, privileges in _PRIVILEGES.items()]
    for table, column in OWNED_BY.items():
        own = f"{column} = {_USER}"
        seen = f"{own} OR {_NAMED}" if table == "api_tokens" else own
        made += [
            f"DROP POLICY IF EXISTS own ON chatledger.{table}",
            f"CREATE POLICY own ON chatledger.{table} USING ({seen}) WITH CHECK ({own})",
        ]
        if table in _LISTED:
            made += [
                f"DROP POLICY IF EXISTS listed ON chatledger.{table}",
                f"CREATE POLICY listed ON chatledger.{table} FOR SELECT TO {OWNER} USING ({_EVERYBODY})",
            ]
        made += [
            f"ALTER TABLE chatledger.{table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE chatledger.{table} FORCE ROW LEVEL SECURITY",
        ]
    return made


def put_up(connection: Connection) -> None:
    """Put it up, or up again, in the connection's transaction.

    Raises:
        RowSecurityRefused: the role may not make roles, or not give them the tables.
    """
    if not connection.exec_driver_sql(_EXIST).scalar():
        return
    if distribution.is_laid_out(connection):
        raise RowSecurityRefused(
            "the tables are laid out over a cluster, to whose other nodes a transaction's settings do not go"
        )
    try:
        for statement in statements():
            connection.exec_driver_sql(statement)
    except Exception as exc:
        if getattr(driver_error(exc), "sqlstate", None) != "42501":
            raise
        raise RowSecurityRefused(
            f"the role in the URL may not create the roles {OWNER} and {APP}, or is not in the first; let an "
            f"administrator run `GRANT {OWNER} TO` it, or this command"
        ) from exc


def take_down(connection: Connection) -> None:
    """Take it away, in the connection's transaction. The tables become the caller's.

    The roles stay, without any right here: they may have members, and rights in other databases.
    """
    if not connection.exec_driver_sql(_IS_UP).scalar():
        return
    for table in OWNED_BY:
        for statement in (
            f"ALTER TABLE chatledger.{table} NO FORCE ROW LEVEL SECURITY",
            f"ALTER TABLE chatledger.{table} DISABLE ROW LEVEL SECURITY",
            f"DROP POLICY IF EXISTS own ON chatledger.{table}",
            f"DROP POLICY IF EXISTS listed ON chatledger.{table}",
        ):
            connection.exec_driver_sql(statement)
    for statement in (
        _TAKE_BACK,
        f"REVOKE ALL ON ALL TABLES IN SCHEMA chatledger FROM {APP}",
        f"REVOKE ALL ON SCHEMA chatledger FROM {APP}, {OWNER}",
    ):
        connection.exec_driver_sql(statement)


def lifted(connection: Connection, change: Callable[[Connection], object]) -> None:
    """Run what may have to read the rows of all users, or makes tables, with the fence lifted for the tables' owner.

    It is put up again in the same transaction, around new tables as well, unless the change took it away or the tables.
    """
    if not connection.exec_driver_sql(_IS_UP).scalar():
        change(connection)
        return
    for table in OWNED_BY:
        connection.exec_driver_sql(f"ALTER TABLE chatledger.{table} NO FORCE ROW LEVEL SECURITY")
    change(connection)
    if connection.exec_driver_sql(_IS_UP).scalar():
        put_up(connection)
