"""Alembic's entry. The connection comes from `chatledger.storage.schema`, which holds the lock around it.

Only the schema `chatledger` is looked at: what else a database holds is its owner's and none of ours.
"""

from __future__ import annotations

from typing import Any

from alembic import context

SCHEMA = "chatledger"


def is_ours(_object: Any, name: str | None, _kind: str, reflected: bool, compared_to: Any) -> bool:
    """Whether the models must know of it. What ties users to an application's table is in some databases only."""
    return not (reflected and compared_to is None and (name or "").removeprefix("users_").startswith("app_user"))


config = context.config
options: dict[str, Any] = {
    "target_metadata": config.attributes.get("target_metadata"),
    "version_table_schema": SCHEMA,
    "include_schemas": True,
    "include_name": lambda name, kind, _parents: kind != "schema" or name == SCHEMA,
    "include_object": is_ours,
    "transaction_per_migration": False,
}

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **options)
    with context.begin_transaction():
        context.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        context.run_migrations()
else:
    context.configure(connection=config.attributes["connection"], **options)
    context.run_migrations()
