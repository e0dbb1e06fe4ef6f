"""Tables laid out over a Citus cluster by user, put there by `migrate --distribute`.

All that belongs to one user lies on one node, in shards that move together, so that every statement about a user goes
to that node and runs there whole. What belongs to no user (the secret, the list of erasures, the revision) stays with
the coordinator, which is whom the server connects to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from chatledger.storage.errors import StorageError, driver_error
from chatledger.storage.query import OWNED_BY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

NOT_SUPPORTED: Final = "0A000"
"""The SQLSTATE of a statement that would need several nodes where one is all it may have."""

HAS_CITUS: Final = "EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'citus')"
# Only where the extension is: its catalog is not there otherwise, and a statement that names it cannot be parsed.
_LAID_OUT: Final = """
SELECT c.relname::text AS name, p.colocationid AS together,
       pg_catalog.column_to_column_name(p.logicalrelid, p.partkey) AS by
  FROM pg_catalog.pg_dist_partition p JOIN pg_catalog.pg_class c ON c.oid = p.logicalrelid
 WHERE c.relnamespace = to_regnamespace('chatledger')
"""
# In the way: it is what adopted users and row security look like in the catalog.
_EXCLUDED: Final = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute
                WHERE attrelid = 'chatledger.users'::regclass AND attname = 'app_user_id' AND NOT attisdropped)
       AS adopted,
       (SELECT relrowsecurity FROM pg_catalog.pg_class WHERE oid = 'chatledger.messages'::regclass) AS fenced
"""
_FOREIGN_KEYS: Final = """
SELECT c.relname::text AS name, quote_ident(k.conname) AS key, pg_get_constraintdef(k.oid) AS definition,
       r.relname::text AS refers_to
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_class r ON r.oid = k.confrelid
 WHERE k.contype = 'f' AND c.relnamespace = 'chatledger'::regnamespace
 ORDER BY k.conname
"""


class DistributionRefused(StorageError):
    """The tables cannot be laid out, and nothing was changed. The sentence says why, for whoever runs the server."""

    code = "invalid_argument"


async def look(connection: Any) -> bool:
    """Whether the tables are laid out over a cluster, by one statement on a driver connection to one with Citus."""
    return any(row["name"] == "messages" for row in await connection.fetch(_LAID_OUT))


def is_laid_out(connection: Connection) -> bool:
    """The same inside a migration, of any Postgres."""
    return _has_citus(connection) and "messages" in {row["name"] for row in _all(connection, _LAID_OUT)}


def lay_out(connection: Connection) -> list[str]:
    """Lay the tables out in the connection's transaction, with their rows; those that were not yet.

    Raises:
        DistributionRefused: there is no Citus, the users are another application's, row security is up, the tables are
            laid out in another way already, or the role may not.
    """
    if not _has_citus(connection):
        raise DistributionRefused(
            "this database has no extension citus; let an administrator of the cluster run CREATE EXTENSION citus in "
            "it, and add its nodes (docs/scaling.md)"
        )
    laid_out = {row["name"]: row for row in _all(connection, _LAID_OUT)}
    _refuse_another_layout(laid_out)
    missing = [table for table in OWNED_BY if table not in laid_out]
    if not missing:
        return []
    (excluded,) = _all(connection, _EXCLUDED)
    if excluded["adopted"]:
        raise DistributionRefused(
            "the users are those of an application's table, which a foreign key leads to; from a distributed table it "
            "can not lead to one of another kind, so the two exclude each other"
        )
    if excluded["fenced"]:
        raise DistributionRefused(
            "row security is up, and what it reads of a transaction does not reach the other nodes; "
            "`chatledger migrate --without-rls` takes it away"
        )
    try:
        for statement in statements(missing, _all(connection, _FOREIGN_KEYS)):
            connection.exec_driver_sql(statement)
    except Exception as exc:
        if getattr(driver_error(exc), "sqlstate", None) != "42501":
            raise
        raise DistributionRefused(
            "the role in the URL may not lay out tables: it must own them, here and on all nodes"
        ) from exc
    return missing


def statements(tables: Sequence[str], foreign_keys: Sequence[Any]) -> list[str]:
    """The SQL that lays out `tables`, in order; `foreign_keys` are all that there are, as Postgres prints them.

    No foreign key may lead between a table that is laid out and one that is not yet, so they go first and come back
    last, when every node checks its part of the rows.
    """
    keys = [key for key in foreign_keys if key["name"] in tables or key["refers_to"] in tables]
    made = [f"ALTER TABLE chatledger.{key['name']} DROP CONSTRAINT {key['key']}" for key in keys]
    for table in tables:
        together = "none" if table == "users" else "chatledger.users"
        made.append(
            f"SELECT pg_catalog.create_distributed_table('chatledger.{table}', '{OWNED_BY[table]}', "
            f"colocate_with => '{together}')"
        )
        # The rows were copied to the nodes; what they were copied from is hidden, and takes room.
        made.append(f"SELECT pg_catalog.truncate_local_data_after_distributing_table('chatledger.{table}')")
    made += [
        f"ALTER TABLE chatledger.{key['name']} ADD CONSTRAINT {key['key']} {key['definition']}"  # as Postgres prints it
        for key in keys
    ]
    return made


def _refuse_another_layout(laid_out: dict[str, Any]) -> None:
    for table, row in laid_out.items():
        if row["by"] != OWNED_BY.get(table):
            raise DistributionRefused(
                f"chatledger.{table} is laid out by {row['by'] or 'no column'} already, not by {OWNED_BY.get(table)}; "
                "undistribute_table() takes that back"
            )
    if len({row["together"] for row in laid_out.values()}) > 1:
        raise DistributionRefused(
            "the tables are laid out already, but not together; undistribute_table() takes that back"
        )


def _has_citus(connection: Connection) -> bool:
    return bool(connection.exec_driver_sql(f"SELECT {HAS_CITUS}").scalar())


def _all(connection: Connection, sql: str) -> list[Any]:
    return list(connection.exec_driver_sql(sql).mappings().all())
