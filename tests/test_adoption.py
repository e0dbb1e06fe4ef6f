"""Adopting a host application's users table: whose tables change, which users stay, and what when the table is gone."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from sqlalchemy import Connection, make_url

from chatledger.storage import schema
from chatledger.storage.adoption import UsersTableRefused, adopt
from chatledger.storage.errors import SchemaOutOfDate, Unavailable
from chatledger.storage.models import metadata
from tests.commands import Run
from tests.conftest import run_sql
from tests.driver import connect
from tests.host_application import HOSTS, Host, dump, install, refusal, store_as
from tests.test_schema import described, engine_at


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, database_url: str) -> Host:
    """An application that is not adopted yet."""
    install(database_url, HOSTS[request.param])
    return HOSTS[request.param]


# ---- the application's tables ---------------------------------------------------------------------------------------


def test_the_applications_tables_stay_as_they_are_and_so_they_do_when_chatledger_leaves(
    host: Host, database_url: str
) -> None:
    before = dump(database_url)
    assert "CREATE TABLE public.users" in before
    assert host.users[0] in before
    adopt(database_url, "public.users")
    assert dump(database_url) == before
    store_as(database_url, *host.users)
    assert dump(database_url) == before
    assert schema.migrate(database_url, "base") == (schema.REVISION, None)
    assert dump(database_url) == before
    run_sql(database_url, "TRUNCATE public.users, public.tasks", "DROP TABLE public.users CASCADE")


def test_chatledgers_tables_are_as_before_but_for_the_key(host: Host, database_url: str) -> None:
    before = described(database_url)
    adopt(database_url, "public.users")
    after = described(database_url)
    assert [row for row in before if row not in after] == []
    added = [row for row in after if row not in before]
    assert sorted(row[1] for row in added) == [
        "app_user_id",
        "users_app_user",
        "users_app_user_form",
        "users_app_user_id",
    ]
    (column,) = run_sql(
        database_url,
        """SELECT format_type(atttypid, atttypmod) FROM pg_attribute
            WHERE attrelid = 'chatledger.users'::regclass AND attname = 'app_user_id'""",
    )
    assert column[0] == host.type
    run_sql(database_url, "ALTER TABLE chatledger.users DROP COLUMN app_user_id")
    assert described(database_url) == before


def test_alembic_finds_nothing_to_change_in_a_database_with_adopted_users(host: Host, database_url: str) -> None:
    adopt(database_url, "public.users")

    def check(connection: Connection) -> None:
        config = schema._config()
        config.stdout = io.StringIO()  # its own is the one of its import, which may have been a test's
        config.attributes.update(connection=connection, target_metadata=metadata)
        command.check(config)

    async def run() -> None:
        engine = engine_at(database_url)
        async with engine.connect() as connection:
            await connection.run_sync(check)
        await engine.dispose()

    asyncio.run(run())


# ---- users that there are already -----------------------------------------------------------------------------------


def test_users_that_there_are_already_are_found_in_the_table_and_keep_what_they_have(
    host: Host, database_url: str
) -> None:
    store_as(database_url, *host.users)
    assert adopt(database_url, "public.users").changed
    rows = run_sql(database_url, "SELECT id, app_user_id::text AS key FROM chatledger.users")
    assert {(row["id"], row["key"]) for row in rows} == {(user, user) for user in host.users}
    assert len(run_sql(database_url, "SELECT FROM chatledger.conversations")) == 2


def test_users_that_are_not_in_the_table_are_counted_and_nothing_changes(host: Host, database_url: str) -> None:
    strangers = [text for text in (host.stranger, *host.not_keys) if len(text) < 100]
    store_as(database_url, *host.users, *strangers)
    told = refusal(database_url, "public.users")
    assert told.startswith(f"chatledger has {len(strangers)} users already that are not in public.users")
    assert "nothing was changed" in told
    assert "\n" not in told
    assert len(run_sql(database_url, "SELECT FROM chatledger.users")) == 2 + len(strangers)


def test_a_database_without_chatledger_is_migrated_and_adopted_in_one_step_or_neither(empty_database_url: str) -> None:
    install(empty_database_url, HOSTS["uuid"])
    with pytest.raises(UsersTableRefused):
        adopt(empty_database_url, "public.tasks_and_users")
    assert run_sql(empty_database_url, "SELECT to_regnamespace('chatledger')")[0][0] is None
    done = adopt(empty_database_url, "public.users")
    assert (done.before, done.after, done.changed) == (None, schema.REVISION, True)


# ---- again, and another one -----------------------------------------------------------------------------------------


def test_adopting_the_table_again_changes_nothing(host: Host, database_url: str) -> None:
    adopt(database_url, "public.users")
    store_as(database_url, *host.users)
    before = described(database_url)
    done = adopt(database_url, 'public."users"')
    assert (done.changed, done.users_table.name) == (False, "public.users")
    assert described(database_url) == before
    assert schema.migrate(database_url) == (schema.REVISION, schema.REVISION)
    assert described(database_url) == before


def test_another_table_is_refused_and_what_has_to_be_run_first_is_named(database_url: str) -> None:
    install(database_url, HOSTS["uuid"])
    run_sql(database_url, "CREATE TABLE public.people (id uuid PRIMARY KEY)")
    adopt(database_url, "public.users")
    told = refusal(database_url, "public.people")
    assert told.startswith("public.users is adopted already")
    run_sql(database_url, told.partition("run first: ")[2])
    assert adopt(database_url, "public.people").users_table.name == "public.people"


def test_a_table_that_was_renamed_is_still_the_adopted_one(database_url: str) -> None:
    install(database_url, HOSTS["uuid"])
    adopt(database_url, "public.users")
    run_sql(database_url, "ALTER TABLE public.users RENAME TO people", "ALTER TABLE public.people RENAME id TO uid")
    done = adopt(database_url, "public.people")
    assert (done.changed, done.users_table.name, done.users_table.key) == (False, "public.people", "uid")


def test_two_at_once_adopt_it_once(empty_database_url: str) -> None:
    install(empty_database_url, HOSTS["integer"])
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(adopt, [empty_database_url] * 2, ["public.users"] * 2))
    assert sorted(each.changed for each in done) == [False, True]


# ---- privileges and locks -------------------------------------------------------------------------------------------


@pytest.fixture
def migrating_role(empty_database_url: str) -> Iterator[tuple[str, str]]:
    """A role that may make the schema chatledger in a database whose tables are somebody else's, and a URL with it."""
    role = f"migrating_{uuid4().hex[:8]}"
    name = make_url(empty_database_url).database
    install(empty_database_url, HOSTS["uuid"])
    run_sql(
        empty_database_url,
        "CREATE EXTENSION btree_gin",
        "CREATE EXTENSION pg_trgm",
        f"CREATE ROLE {role} LOGIN PASSWORD 'secret'",
        f"GRANT CREATE ON DATABASE {name} TO {role}",
    )
    url = make_url(empty_database_url).set(username=role, password="secret")
    yield role, url.render_as_string(hide_password=False)
    run_sql(empty_database_url, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


def test_a_role_without_the_privilege_is_told_which_and_with_it_needs_no_other(
    migrating_role: tuple[str, str], empty_database_url: str
) -> None:
    role, url = migrating_role
    before = dump(empty_database_url)
    with pytest.raises(UsersTableRefused, match=r"GRANT REFERENCES \(id\) ON public.users") as refused:
        adopt(url, "public.users")
    assert run_sql(empty_database_url, "SELECT to_regnamespace('chatledger')")[0][0] is None
    assert dump(empty_database_url) == before
    grant = re.search(r"GRANT .+ ON public.users", str(refused.value))
    assert grant is not None
    run_sql(empty_database_url, f"{grant[0]} TO {role}")
    schema.migrate(url)
    store_as(url, HOSTS["uuid"].users[0], HOSTS["uuid"].stranger)
    with pytest.raises(UsersTableRefused, match="some of the users that chatledger has already are not in"):
        adopt(url, "public.users")
    run_sql(empty_database_url, f"DELETE FROM chatledger.users WHERE id = '{HOSTS['uuid'].stranger}'")
    assert adopt(url, "public.users").changed
    store_as(url, HOSTS["uuid"].users[1])
    run_sql(empty_database_url, "DELETE FROM public.users")
    assert run_sql(empty_database_url, "SELECT FROM chatledger.users") == []


def test_a_role_that_may_not_use_the_schema_is_told_so(
    migrating_role: tuple[str, str], empty_database_url: str
) -> None:
    role, url = migrating_role
    run_sql(
        empty_database_url,
        "CREATE SCHEMA hidden",
        "CREATE TABLE hidden.users (id uuid PRIMARY KEY)",
        f"GRANT REFERENCES ON hidden.users TO {role}",
    )
    with pytest.raises(UsersTableRefused, match="may not use the schema of hidden"):
        adopt(url, "hidden.users")


def test_row_security_on_the_users_table_hides_no_user_from_the_foreign_key(
    migrating_role: tuple[str, str], empty_database_url: str
) -> None:
    role, url = migrating_role
    run_sql(
        empty_database_url,
        "ALTER TABLE public.users ENABLE ROW LEVEL SECURITY",
        f"GRANT REFERENCES, SELECT ON public.users TO {role}",
    )
    schema.migrate(url)
    store_as(url, *HOSTS["uuid"].users)
    assert adopt(url, "public.users").changed


def test_it_does_not_wait_long_for_whoever_holds_the_users_table(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_TABLE_LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr(schema, "_PATIENCE", 0)
    install(database_url, HOSTS["uuid"])
    before = described(database_url)

    async def run() -> None:
        connection: Any = await connect(database_url)
        try:
            async with connection.transaction():
                await connection.execute("UPDATE public.users SET email = email || '.org'")
                with pytest.raises(Unavailable, match="nothing was changed"):
                    await asyncio.to_thread(adopt, database_url, "public.users")
        finally:
            await connection.close()

    asyncio.run(run())
    assert described(database_url) == before
    assert adopt(database_url, "public.users").changed


# ---- a table that is gone or has changed ----------------------------------------------------------------------------


def test_when_the_table_is_gone_nobody_is_served_until_there_is_one_again(run: Run, database_url: str) -> None:
    host = HOSTS["uuid"]
    install(database_url, host)
    adopt(database_url, "public.users")
    store_as(database_url, *host.users)
    run_sql(database_url, "DROP TABLE public.users CASCADE")
    with pytest.raises(SchemaOutOfDate, match="is gone; run `chatledger migrate --users-table"):
        store_as(database_url, host.users[0])
    code, out, _ = run("doctor")
    assert code == 1
    assert "users      those of a table that is gone\n" in out
    assert "problem    the application's users table that was adopted is gone (it was public.users)\n" in out
    assert "mend       `chatledger migrate --users-table SCHEMA.TABLE`\n" in out
    (problem,) = (each for each in json.loads(run("doctor", "--json")[1])["problems"] if "adopted" in each["what"])
    assert problem["mend"] == "`chatledger migrate --users-table SCHEMA.TABLE`"
    assert run("migrate", "--check")[0] == 1
    run_sql(database_url, "CREATE TABLE public.people (id uuid PRIMARY KEY)")
    assert "chatledger has 2 users already" in refusal(database_url, "public.people")
    run_sql(database_url, f"INSERT INTO public.people VALUES ('{host.users[0]}'), ('{host.users[1]}')")
    assert adopt(database_url, "public.people").changed
    store_as(database_url, *host.users)
    assert "adopted" not in run("doctor")[1]


def test_a_key_that_has_got_another_type_is_told_and_adopting_the_table_again_follows(
    run: Run, database_url: str
) -> None:
    install(database_url, HOSTS["integer"])
    adopt(database_url, "public.users")
    store_as(database_url, "7")
    for statement in ("DROP VIEW public.active_users", "ALTER TABLE public.users ALTER id TYPE bigint"):
        run_sql(database_url, statement)
    code, out, _ = run("doctor")
    assert code == 1
    assert "problem    the key of public.users is bigint now, and was integer when it was adopted\n" in out
    assert "mend       `chatledger migrate --users-table public.users`\n" in out
    assert adopt(database_url, "public.users").changed
    run_sql(database_url, "INSERT INTO public.users VALUES (3000000000, 'c@example.com')")
    store_as(database_url, "7", "3000000000")
    assert adopt(database_url, "public.users").changed is False
