"""Users of a host application: one foreign key, from our side, ties chatledger's users to the application's own table.

`chatledger.users` gets a column that Postgres computes from `id`: the key of the application's table, or null where the
text is not that key's canonical form, which a CHECK refuses. So no statement of the store changes, nobody can write the
column, and no two texts mean one user: only `7` is 7, not `07`, `+7` or ` 7`. The foreign key refuses whoever is not in
the application's table, and deletes with its rows. It is checked when a user's row is made, and costs nothing later.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from chatledger.storage import distribution, schema
from chatledger.storage.errors import StorageError, driver_error

if TYPE_CHECKING:
    from sqlalchemy import Connection

_KINDS: Final = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index"}
_KEY_TYPES: Final = "uuid, integer, bigint, text and varchar"
_NAME: Final = re.compile(r'(?:"((?:[^"]|"")+)"|([^\W\d][\w$]*))')

# The key as an expression over `id`. CASE inside CASE: the order of an AND is not promised, and a cast may fail.
_FORMS: Final = {
    "uuid": "CASE WHEN id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN id::uuid END",
    "integer": "CASE WHEN id ~ '^(0|-?[1-9][0-9]{0,9})$' THEN "
    "CASE WHEN id::numeric BETWEEN -2147483648 AND 2147483647 THEN id::integer END END",
    "bigint": "CASE WHEN id ~ '^(0|-?[1-9][0-9]{0,18})$' THEN "
    "CASE WHEN id::numeric BETWEEN -9223372036854775808 AND 9223372036854775807 THEN id::bigint END END",
    "text": "id",
    "character varying": "id",
}

_FIND = """
SELECT c.oid, c.relkind::text AS kind, c.relpersistence::text AS persistence,
       quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name,
       has_schema_privilege(n.oid, 'USAGE') AS reachable
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = $1 AND c.relname = $2
"""
_FIND_SIMILAR = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE lower(n.nspname) = lower($1) AND lower(c.relname) = lower($2) AND c.relkind IN ('r', 'p')
 ORDER BY 1 LIMIT 1
"""
_KEYS = """
SELECT quote_ident(a.attname) AS name, format_type(a.atttypid, a.atttypmod) AS type,
       coalesce(l.collisdeterministic, true) AS exact,
       has_column_privilege(a.attrelid, a.attnum, 'REFERENCES') AS may_refer,
       has_column_privilege(a.attrelid, a.attnum, 'SELECT') AND NOT row_security_active(a.attrelid) AS may_read
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
  LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
 WHERE i.indrelid = $1::oid AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL AND i.indexprs IS NULL
   AND i.indimmediate AND i.indisvalid AND (i.indisprimary OR a.attname = 'id')
 ORDER BY i.indisprimary DESC LIMIT 1
"""
_ADOPTED = """
SELECT t.oid, n.nspname AS schema, t.relname AS table,
       quote_ident(n.nspname) || '.' || quote_ident(t.relname) AS name, quote_ident(k.attname) AS key,
       format_type(k.atttypid, k.atttypmod) AS key_type, format_type(a.atttypid, a.atttypmod) AS own_type,
       col_description(a.attrelid, a.attnum) AS noted
  FROM pg_catalog.pg_attribute a
  LEFT JOIN pg_catalog.pg_constraint c ON c.conrelid = a.attrelid AND c.conname = 'users_app_user'
  LEFT JOIN pg_catalog.pg_class t ON t.oid = c.confrelid
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
  LEFT JOIN pg_catalog.pg_attribute k ON k.attrelid = c.confrelid AND k.attnum = c.confkey[1]
 WHERE a.attrelid = to_regclass('chatledger.users') AND a.attname = 'app_user_id'
"""
# Names and types in them are quoted by Postgres itself.
_FORGET = "ALTER TABLE chatledger.users DROP COLUMN app_user_id"  # the constraints and the index go with it
_ADD_COLUMN = "ALTER TABLE chatledger.users ADD COLUMN app_user_id {type} GENERATED ALWAYS AS ({form}) STORED"
_COUNT_STRANGERS = """
SELECT count(*) AS strangers, min(u.id) AS first FROM chatledger.users u
 WHERE NOT EXISTS (SELECT FROM {name} h WHERE h.{key} = u.app_user_id)
"""
_COUNT_MALFORMED = "SELECT count(*) AS strangers, min(id) AS first FROM chatledger.users WHERE app_user_id IS NULL"
_TIE = (
    "ALTER TABLE chatledger.users ADD CONSTRAINT users_app_user_form CHECK (app_user_id IS NOT NULL)",
    "CREATE INDEX users_app_user_id ON chatledger.users (app_user_id)",  # it serves the cascade
    "COMMENT ON COLUMN chatledger.users.app_user_id IS {noted}",
    # Last, so that writers to the application's table wait for as short as can be.
    """ALTER TABLE chatledger.users ADD CONSTRAINT users_app_user
         FOREIGN KEY (app_user_id) REFERENCES {name} ({key}) ON DELETE CASCADE NOT VALID""",
    "ALTER TABLE chatledger.users VALIDATE CONSTRAINT users_app_user",
)


class UsersTableRefused(StorageError):
    """The table cannot be adopted, and nothing was changed. The sentence says why, for whoever runs the server."""

    code = "invalid_argument"


class UsersTable(NamedTuple):
    """The adopted table; without the foreign key, as after DROP TABLE … CASCADE, only `noted` is known of it."""

    schema: str | None
    table: str | None
    name: str | None
    """Both, quoted as in SQL."""
    key: str | None
    key_type: str | None
    own_type: str
    """Of chatledger's copy of the key."""
    noted: str | None
    """Its name when it was adopted."""

    @property
    def problem(self) -> str | None:
        """What is wrong with it; adopting a table again mends it."""
        if self.name is None:
            return f"{schema.FORSAKEN} (it was {self.noted or 'one without a name'})"
        if self.key_type != self.own_type:
            return f"the key of {self.name} is {self.key_type} now, and was {self.own_type} when it was adopted"
        return None


class Adoption(NamedTuple):
    """What was done: revisions as `schema.migrate` tells them, and whether the table was adopted only now."""

    before: str | None
    after: str | None
    users_table: UsersTable
    changed: bool


def parse_name(text: str) -> tuple[str, str]:
    """SCHEMA.TABLE as SQL reads it: unquoted letters are small ones. Reserved words need no quotes here.

    Raises:
        ValueError: it is not two names with a dot between.
    """
    found = re.fullmatch(rf"{_NAME.pattern}\.{_NAME.pattern}", text)
    if found is None or "\0" in text:
        raise ValueError("must be SCHEMA.TABLE, such as public.users or neon_auth.user; quotes keep capitals")
    quoted_schema, schema_name, quoted_table, table = found.groups()
    return _unquoted(quoted_schema, schema_name), _unquoted(quoted_table, table)


def _unquoted(quoted: str | None, plain: str | None) -> str:
    return (plain or "").lower() if quoted is None else quoted.replace('""', '"')


async def read_users_table(connection: Any) -> UsersTable | None:
    """The adopted table, by one statement on a driver connection; None where chatledger keeps users by itself."""
    row = await connection.fetchrow(_ADOPTED)
    return None if row is None else _users_table(row)


def adopt(url: str, name: str) -> Adoption:
    """Bring the schema up to date and make the users of the table `name` chatledger's only ones.

    All or nothing, in one transaction, under the lock of the migrations. The application's tables are not changed; to
    write to this one waits while the foreign key is checked. Adopting the same table again changes nothing, unless its
    key has another type by now. Blocks; call it in a thread of its own.

    Raises:
        ValueError: the name is malformed, or as `schema.migrate`.
        UsersTableRefused: the table is not there or cannot be used, another one is adopted, or there are users already
            that are not in it.
        StorageError: as `schema.migrate`; that of the lock means the application's table, too.
    """
    wanted = parse_name(name)
    done: list[tuple[UsersTable, bool]] = []
    before, after = schema.migrate(url, then=lambda connection: done.append(_adopt(connection, *wanted)))
    ((users_table, changed),) = done
    return Adoption(before, after, users_table, changed)


def _adopt(connection: Connection, schema_name: str, table: str) -> tuple[UsersTable, bool]:
    host = _find(connection, schema_name, table)
    adopted = _one(connection, _ADOPTED)
    if adopted is not None and adopted["oid"] not in (None, host["oid"]):
        raise UsersTableRefused(
            f"{adopted['name']} is adopted already; to change to {host['name']}, run first: {_FORGET}"
        )
    if adopted is not None and _users_table(adopted).problem is None:
        return _users_table(adopted), False
    if distribution.is_laid_out(connection):
        raise UsersTableRefused(
            "the tables are laid out over a cluster, from which no foreign key leads to such a table"
        )
    key = _key(connection, host)
    names = {"name": host["name"], "key": key["name"], "type": key["type"], "form": _form(key["type"])}
    try:
        if adopted is not None:
            connection.exec_driver_sql(_FORGET)
        connection.exec_driver_sql(_ADD_COLUMN.format(**names))
        _refuse_strangers(connection, host["name"], (_COUNT_STRANGERS if key["may_read"] else _COUNT_MALFORMED), names)
        noted = _one(connection, "SELECT quote_literal($1::text) AS noted", host["name"])
        for statement in _TIE:
            connection.exec_driver_sql(statement.format(**names, **noted))
    except Exception as exc:
        if getattr(driver_error(exc), "sqlstate", None) == "23503":
            raise UsersTableRefused(
                f"some of the users that chatledger has already are not in {host['name']}; nothing was changed"
            ) from exc
        raise
    return _users_table(_one(connection, _ADOPTED)), True


def _find(connection: Connection, schema_name: str, table: str) -> Any:
    if schema_name == "chatledger":
        raise UsersTableRefused("the schema chatledger holds no table of an application")
    found = _one(connection, _FIND, schema_name, table)
    if found is None:
        similar = _one(connection, _FIND_SIMILAR, schema_name, table)
        hint = f"; there is {similar['name']}" if similar else ""
        raise UsersTableRefused(f"there is no table {table} in the schema {schema_name}{hint}")
    if found["kind"] not in ("r", "p"):
        raise UsersTableRefused(f"{found['name']} is {_KINDS.get(found['kind'], 'something else')}, and not a table")
    if found["persistence"] != "p":
        raise UsersTableRefused(f"{found['name']} is unlogged or temporary; a foreign key cannot lead to it")
    if not found["reachable"]:
        raise UsersTableRefused(f"the role in the URL may not use the schema of {found['name']}: GRANT USAGE on it")
    return found


def _key(connection: Connection, host: Any) -> Any:
    key = _one(connection, _KEYS, host["oid"])
    if key is None:
        raise UsersTableRefused(
            f"{host['name']} has no key that can be referred to: it needs a primary key of one column, or a column id "
            "with a unique index of its own that is neither partial nor deferrable"
        )
    if _form(key["type"]) is None:
        raise UsersTableRefused(
            f"the key of {host['name']}, {key['name']}, has the type {key['type']}; those that fit are {_KEY_TYPES}"
        )
    if not key["exact"]:
        raise UsersTableRefused(
            f"the key of {host['name']}, {key['name']}, has a collation by which different texts are equal"
        )
    if not key["may_refer"]:
        raise UsersTableRefused(
            f"the role in the URL lacks a privilege: GRANT REFERENCES ({key['name']}) ON {host['name']} to it"
        )
    return key


def _form(type: str) -> str | None:
    if bounded := re.fullmatch(r"character varying\(([0-9]+)\)", type):
        return f"CASE WHEN char_length(id) <= {bounded[1]} THEN id END"
    return _FORMS.get(type)


def _refuse_strangers(connection: Connection, host: str, count: str, names: dict[str, Any]) -> None:
    found = _one(connection, count.format(**names))
    if found["strangers"]:
        raise UsersTableRefused(
            f"chatledger has {found['strangers']:,} users already that are not in {host}, the first is "
            f"{found['first']!a}; nothing was changed. `chatledger user erase ID` removes one with all it has"
        )


def _users_table(row: Any) -> UsersTable:
    return UsersTable(*(row[name] for name in UsersTable._fields))


def _one(connection: Connection, sql: str, *args: object) -> Any:
    return connection.exec_driver_sql(sql, args).mappings().one_or_none()
