"""The migrations: one way to the schema, the same as the models say, safe with any number of starters."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from chatledger.storage import ConversationStore, schema
from chatledger.storage.database_url import read_database_url
from chatledger.storage.errors import SchemaOutOfDate
from chatledger.storage.models import SCHEMA, metadata
from tests.conftest import run_sql
from tests.driver import connect
from tests.patience import PATIENCE

COLUMNS = """
SELECT table_name, column_name, data_type, domain_name, is_nullable, column_default
  FROM information_schema.columns WHERE table_schema = 'chatledger' ORDER BY 1, 2
"""
CONSTRAINTS = """
SELECT coalesce(nullif(conrelid, 0)::regclass::text, contypid::regtype::text), conname, pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = 'chatledger'::regnamespace AND contype <> 'n' ORDER BY 1, 2
"""
INDEXES = "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'chatledger' ORDER BY 1, 2"
OPTIONS = """
SELECT relname, array_to_string(reloptions, ', ') FROM pg_class
 WHERE relnamespace = 'chatledger'::regnamespace AND relkind = 'r' ORDER BY 1
"""


def described(url: str) -> list[Any]:
    """Everything that the schema consists of, as Postgres itself prints it."""
    found = [tuple(row) for sql in (COLUMNS, CONSTRAINTS, INDEXES, OPTIONS) for row in run_sql(url, sql)]
    return [row for row in found if "alembic_version" not in row[0]]


def engine_at(url: str) -> AsyncEngine:
    target = read_database_url(url)
    return create_async_engine(target.url, connect_args=target.connect_args)


def test_create_all_and_the_migrations_yield_the_same_schema(database_url: str, empty_database_url: str) -> None:
    async def create_all() -> None:
        engine = engine_at(empty_database_url)
        async with engine.begin() as connection:
            await connection.execute(text("CREATE SCHEMA chatledger"))
            for extension in ("btree_gin", "pg_trgm"):
                await connection.execute(text(f"CREATE EXTENSION {extension}"))
            await connection.run_sync(metadata.create_all)
        await engine.dispose()

    asyncio.run(create_all())
    by_models, by_migrations = described(empty_database_url), described(database_url)
    assert by_models == by_migrations
    assert len(by_models) > 60


def test_autogenerate_finds_nothing_to_change(database_url: str) -> None:
    def compare(connection: Connection) -> list[Any]:
        options = {
            "version_table_schema": SCHEMA,
            "include_schemas": True,
            "include_name": lambda name, kind, _: kind != "schema" or name == SCHEMA,
        }
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, metadata))

    async def run() -> list[Any]:
        engine = engine_at(database_url)
        async with engine.connect() as connection:
            found = await connection.run_sync(compare)
        await engine.dispose()
        return found

    assert asyncio.run(run()) == []


def test_the_revision_in_the_code_is_the_newest_migration() -> None:
    script = ScriptDirectory.from_config(schema._config())
    assert script.get_current_head() == schema.REVISION


def test_every_revision_is_four_digits_so_that_they_compare_as_text() -> None:
    script = ScriptDirectory.from_config(schema._config())
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert all(len(revision) == 4 and revision.isdigit() for revision in revisions)
    assert sorted(revisions, reverse=True) == revisions


def test_migrating_again_changes_nothing(database_url: str) -> None:
    before = described(database_url)
    assert schema.migrate(database_url) == (schema.REVISION, schema.REVISION)
    assert described(database_url) == before


def test_down_to_base_and_up_again_is_the_same_schema(database_url: str) -> None:
    before = described(database_url)
    assert schema.migrate(database_url, "base") == (schema.REVISION, None)
    assert described(database_url) == []
    assert schema.migrate(database_url) == (None, schema.REVISION)
    assert described(database_url) == before


def test_what_else_the_database_holds_is_left_alone(empty_database_url: str) -> None:
    host = (
        "CREATE TABLE public.users (id uuid PRIMARY KEY, email text NOT NULL)",
        "CREATE TABLE public.conversations (id integer PRIMARY KEY)",
        "INSERT INTO public.conversations VALUES (7)",
    )
    columns = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    before = run_sql(empty_database_url, *host, columns)
    schema.migrate(empty_database_url)
    schema.migrate(empty_database_url, "base")
    assert run_sql(empty_database_url, columns) == before
    assert [tuple(row) for row in run_sql(empty_database_url, "SELECT id FROM public.conversations")] == [(7,)]


def test_four_threads_and_two_processes_migrate_once(empty_database_url: str) -> None:
    program = "import sys; from chatledger.storage import schema; print(schema.migrate(sys.argv[1]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, empty_database_url], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    with ThreadPoolExecutor(4) as threads:
        answers = [str(answer) for answer in threads.map(schema.migrate, [empty_database_url] * 4)]
    answers += [process.communicate(timeout=PATIENCE)[0].strip() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sorted(answers) == [str((schema.REVISION, schema.REVISION))] * 5 + [str((None, schema.REVISION))]


def test_the_printed_sql_makes_a_schema_that_the_store_takes(empty_database_url: str, database_url: str) -> None:
    async def use() -> None:
        connection = await connect(empty_database_url)
        await connection.execute(schema.migration_sql())
        await connection.close()
        async with ConversationStore.at(empty_database_url) as store:
            await store.create_conversation("alice")

    asyncio.run(use())
    assert described(empty_database_url) == described(database_url)


def test_an_unknown_revision_is_refused_and_changes_nothing(database_url: str) -> None:
    before = described(database_url)
    with pytest.raises(ValueError, match="no schema revision 7777"):
        schema.migrate(database_url, "7777")
    assert described(database_url) == before


def test_a_newer_database_is_not_touched(database_url: str) -> None:
    run_sql(database_url, "UPDATE chatledger.alembic_version SET version_num = '9999'")
    before = described(database_url)
    with pytest.raises(SchemaOutOfDate, match="newer"):
        schema.migrate(database_url)
    assert described(database_url) == before


async def test_a_database_without_the_schema_is_refused_until_it_is_migrated(empty_database_url: str) -> None:
    async with ConversationStore.at(empty_database_url) as store:
        with pytest.raises(SchemaOutOfDate, match="chatledger migrate"):
            await store.create_conversation("alice")
        await asyncio.to_thread(schema.migrate, empty_database_url)
        _, created = await store.create_conversation("alice")
        assert created


def test_a_pooled_url_without_a_direct_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatledger.storage.database_url.DatabaseTarget.unpooled", lambda _: None)
    with pytest.raises(ValueError, match="CHATLEDGER_DIRECT_DATABASE_URL"):
        schema.migrate("postgresql://u:p@localhost/d")


def test_two_databases_seal_cursors_with_different_secrets(database_url: str, empty_database_url: str) -> None:
    schema.migrate(empty_database_url)
    secrets = [run_sql(url, "SELECT secret FROM chatledger.signing_keys") for url in (database_url, empty_database_url)]
    assert len(secrets[0]) == len(secrets[1]) == 1
    assert secrets[0] != secrets[1]
    assert len(secrets[0][0]["secret"]) == 32
