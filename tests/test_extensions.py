"""What search needs of a Postgres: two extensions and a locale that knows letters, or else who must do what."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from importlib import import_module

import pytest
from sqlalchemy import make_url

from chatledger.storage import ConversationStore, NewMessage, schema
from chatledger.storage.diagnosis import Problem, diagnose
from chatledger.storage.errors import SchemaOutOfDate, translate
from chatledger.storage.source import ExternalDatabase
from tests.conftest import database_at, run_sql
from tests.driver import connect


def complaints(url: str) -> list[Problem]:
    """What the doctor finds wrong, but for the speed at which this suite's own server writes."""
    found = asyncio.run(diagnose(ExternalDatabase(url), "here"))
    return [problem for problem in found.problems if "fsync" not in problem.what]


async def found(url: str, query: str) -> list[str]:
    async with ConversationStore.at(url) as store:
        await store.get_or_create_conversation("alice")
        await store.append_message("alice", 1, NewMessage(role="user", content="load_history 你好"))
        return [hit.snippet for hit in (await store.search_messages("alice", query)).hits]


@pytest.fixture
def weak_url(postgres_url: str, empty_database_url: str) -> Iterator[str]:
    """The empty database for a role that owns the schema `chatledger` in it and may create nothing else."""
    role = f"weak_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE ROLE {role} LOGIN PASSWORD '{role}'")
    run_sql(empty_database_url, f"CREATE SCHEMA chatledger AUTHORIZATION {role}")
    yield make_url(empty_database_url).set(username=role, password=role).render_as_string(hide_password=False)
    run_sql(empty_database_url, f"DROP OWNED BY {role}")
    run_sql(postgres_url, f"DROP ROLE {role}")


def test_a_role_that_may_not_create_an_extension_is_told_which_and_who_may(
    weak_url: str, empty_database_url: str
) -> None:
    for name in ("btree_gin", "pg_trgm"):
        told = [problem for problem in complaints(weak_url) if name in problem.what]
        assert [problem.mend for problem in told] == [
            f"let the database's owner or an administrator run CREATE EXTENSION {name} in it"
        ]
        with pytest.raises(
            SchemaOutOfDate, match=f"may not create the extension {name}, .* run `CREATE EXTENSION {name}`"
        ):
            schema.migrate(weak_url)
        assert run_sql(empty_database_url, "SELECT FROM pg_tables WHERE schemaname = 'chatledger'") == []
        run_sql(empty_database_url, f"CREATE EXTENSION {name}")
    assert schema.migrate(weak_url) == (None, schema.REVISION)
    assert complaints(weak_url) == []
    assert asyncio.run(found(weak_url, "istory")) == ["load_history 你好"]


def test_an_extension_that_the_server_does_not_have_is_named_with_what_brings_it(empty_database_url: str) -> None:
    statement = import_module("chatledger.migrations.versions.0001_create_the_tables").EXTENSION

    async def create() -> None:
        connection = await connect(empty_database_url)
        try:
            await connection.execute(statement.format(name="no_such_thing"))
        finally:
            await connection.close()

    with pytest.raises(
        Exception, match="needs the extension no_such_thing, which this Postgres does not have"
    ) as refused:
        asyncio.run(create())
    error = translate(refused.value)
    assert isinstance(error, SchemaOutOfDate)
    assert error.message.startswith("this Postgres has no extension no_such_thing, which search needs; install")


def test_extensions_that_are_there_already_are_used_wherever_they_are(empty_database_url: str) -> None:
    name = make_url(empty_database_url).database
    run_sql(
        empty_database_url,
        'CREATE SCHEMA "Other place"',
        'CREATE EXTENSION pg_trgm SCHEMA "Other place"',
        'CREATE EXTENSION btree_gin SCHEMA "Other place"',
        f"ALTER DATABASE {name} SET search_path = ''",
    )
    schema.migrate(empty_database_url)
    for query in ("istory", "你好", "load_history"):
        assert asyncio.run(found(empty_database_url, query))
    assert complaints(empty_database_url) == []
    schema.migrate(empty_database_url, "base")
    kept = run_sql(empty_database_url, "SELECT extname FROM pg_extension WHERE extname IN ('pg_trgm', 'btree_gin')")
    assert len(kept) == 2, "others may use them"
    schema.migrate(empty_database_url)


def test_a_database_without_the_schema_public_gets_them_into_ours(empty_database_url: str) -> None:
    run_sql(empty_database_url, "DROP SCHEMA public")
    schema.migrate(empty_database_url)
    assert asyncio.run(found(empty_database_url, "istory")) == ["load_history 你好"]
    assert complaints(empty_database_url) == []


def test_a_locale_without_letters_beyond_ascii_is_told_and_search_still_finds(postgres_url: str) -> None:
    name = f"chatledger_c_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE template0 LOCALE_PROVIDER libc LOCALE 'C'")
    url = database_at(postgres_url, name)
    try:
        assert "knows no letters beyond ASCII" in complaints(url)[0].what, "before there are trigrams to ask, too"
        schema.migrate(url)
        (problem,) = complaints(url)
        assert "knows no letters beyond ASCII" in problem.what
        assert "LOCALE 'C.UTF-8'" in problem.mend
        for query in ("istory", "你好", "好"):
            assert asyncio.run(found(url, query))
    finally:
        run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_an_extension_that_was_dropped_is_missed(database_url: str) -> None:
    run_sql(database_url, "DROP EXTENSION pg_trgm CASCADE")
    (problem,) = complaints(database_url)
    assert problem.what == "the extension pg_trgm, which search needs, is missing"
