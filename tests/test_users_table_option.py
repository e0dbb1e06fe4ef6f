"""`chatledger migrate --users-table`: which tables it takes, which it refuses and how it says so."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from chatledger.storage import schema
from chatledger.storage.adoption import adopt, parse_name
from tests.commands import Run
from tests.conftest import run_sql
from tests.host_application import HOSTS, Host, install, refusal, store_as
from tests.test_schema import described

ODD = 'public."a.b ""c"" {d} %s :e \'f\' 界"'


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, database_url: str) -> Host:
    """An application that is not adopted yet."""
    install(database_url, HOSTS[request.param])
    return HOSTS[request.param]


# ---- tables that fit, and those that do not -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ddl"),
    [
        ("neon_auth.user", 'CREATE TABLE neon_auth."user" (id uuid PRIMARY KEY)'),
        ('neon_auth."user"', 'CREATE TABLE neon_auth."user" (id uuid PRIMARY KEY)'),
        ("Public.USERS", "CREATE TABLE public.users (id uuid PRIMARY KEY)"),
        ('public."Users"', 'CREATE TABLE public."Users" ("Id" uuid PRIMARY KEY)'),
        (ODD, f'CREATE TABLE {ODD} ("x""y" uuid PRIMARY KEY)'),
        ("public.größe", "CREATE TABLE public.größe (id uuid PRIMARY KEY)"),
        ("public.users", "CREATE TABLE public.users (tenant int, id uuid UNIQUE, PRIMARY KEY (tenant, id))"),
        ("public.users", "CREATE TABLE public.users (id uuid, name text); CREATE UNIQUE INDEX ON public.users (id)"),
        (
            "public.users",
            """CREATE TABLE public.users (id uuid PRIMARY KEY) PARTITION BY HASH (id);
               CREATE TABLE public.users_0 PARTITION OF public.users FOR VALUES WITH (MODULUS 2, REMAINDER 0);
               CREATE TABLE public.users_1 PARTITION OF public.users FOR VALUES WITH (MODULUS 2, REMAINDER 1)""",
        ),
    ],
)  # fmt: skip
def test_a_table_with_a_key_is_adopted_whatever_its_name(database_url: str, name: str, ddl: str) -> None:
    user = str(uuid4())
    run_sql(database_url, "CREATE SCHEMA neon_auth", *ddl.split(";"))
    adopted = adopt(database_url, name).users_table
    assert (adopted.schema, adopted.table) == parse_name(name)
    assert adopted.problem is None
    column = "id" if "tenant" in ddl else adopted.key
    tenant = ("tenant, ", "1, ") if "tenant" in ddl else ("", "")
    run_sql(database_url, f"INSERT INTO {adopted.name} ({tenant[0]}{column}) VALUES ({tenant[1]}'{user}')")
    store_as(database_url, user)
    run_sql(database_url, f"DELETE FROM {adopted.name}")
    assert run_sql(database_url, "SELECT FROM chatledger.conversations") == []
    assert adopt(database_url, name).changed is False


@pytest.mark.parametrize(
    ("name", "ddl", "told"),
    [
        ("public.users", "", "there is no table users in the schema public"),
        ("nowhere.users", "", "there is no table users in the schema nowhere"),
        ("public.Users", 'CREATE TABLE public."Users" (id uuid PRIMARY KEY)', 'there is public."Users"'),
        ("public.v", "CREATE VIEW public.v AS SELECT 1 AS id", "public.v is a view, and not a table"),
        ("public.m", "CREATE MATERIALIZED VIEW public.m AS SELECT 1 AS id", "public.m is a materialized view"),
        ("public.s", "CREATE SEQUENCE public.s", "public.s is a sequence"),
        ("public.u", "CREATE UNLOGGED TABLE public.u (id uuid PRIMARY KEY)", "public.u is unlogged or temporary"),
        ("public.users", "CREATE TABLE public.users (id uuid)", "public.users has no key that can be referred to"),
        (
            "public.users",
            "CREATE TABLE public.users (a uuid, b uuid, PRIMARY KEY (a, b))",
            "a primary key of one column, or a column id with a unique index",
        ),
        ("public.users", "CREATE TABLE public.users (email text UNIQUE)", "has no key that can be referred to"),
        (
            "public.users",
            "CREATE TABLE public.users (id uuid); CREATE UNIQUE INDEX ON public.users (id) WHERE id IS NOT NULL",
            "neither partial nor deferrable",
        ),
        (
            "public.users",
            "CREATE TABLE public.users (id uuid UNIQUE DEFERRABLE)",
            "neither partial nor deferrable",
        ),
        (
            "public.users",
            "CREATE TABLE public.users (id text); CREATE UNIQUE INDEX ON public.users (lower(id))",
            "has no key that can be referred to",
        ),
        (
            "public.users",
            "CREATE TABLE public.users (nr smallint PRIMARY KEY)",
            "the key of public.users, nr, has the type smallint; those that fit are uuid, integer, bigint, text and",
        ),
        ("public.users", "CREATE TABLE public.users (id char(8) PRIMARY KEY)", "has the type character(8)"),
        ("public.users", "CREATE TABLE public.users (id numeric PRIMARY KEY)", "has the type numeric"),
        (
            "public.users",
            # Only a Postgres with ICU makes such a collation, and the embedded one has none.
            """CREATE COLLATION public.loose (provider = libc, locale = 'C'); SET allow_system_table_mods = on;
               UPDATE pg_catalog.pg_collation SET collisdeterministic = false WHERE collname = 'loose';
               CREATE TABLE public.users (id text COLLATE public.loose PRIMARY KEY)""",
            "has a collation by which different texts are equal",
        ),
        ("chatledger.users", "", "the schema chatledger holds no table of an application"),
        ("pg_catalog.pg_class", "", "has the type oid"),
    ],
)
def test_a_table_that_cannot_be_adopted_is_refused_in_a_sentence(
    database_url: str, run: Run, name: str, ddl: str, told: str
) -> None:
    if ddl:
        run_sql(database_url, *ddl.split(";"))
    sentence = refusal(database_url, name)
    assert told in sentence
    code, out, err = run("migrate", "--users-table", name)
    assert (code, out) == (1, "")
    assert err.endswith(f"\nchatledger: {sentence}\n")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "users",
            "",
            ".",
            "public.",
            ".users",
            "a.b.c",
            "public users",
            'public."users',
            'public."',
            'public.""',
            "1.2",
        ),
        *("public.users;", "public.users (id)", "public.users\n", " public.users", "public.us-ers", 'public."us\0ers"'),
    ],
)
def test_a_name_that_is_not_two_names_is_not_understood(run: Run, name: str, database_url: str) -> None:
    before = described(database_url)
    code, out, err = run("migrate", "--users-table", name)
    assert (code, out) == (2, "")
    assert "must be SCHEMA.TABLE, such as public.users" in err
    assert described(database_url) == before


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_adopts_the_table_and_says_so_and_so_does_doctor(run: Run, host: Host, database_url: str) -> None:
    table = ("--users-table", "public.users")
    assert run("migrate", "--check")[0] == 0
    code, _, err = run("migrate", "--check", *table)
    assert (code, "no users table is adopted" in err) == (1, True)
    assert json.loads(run("doctor", "--json")[1])["users_table"] is None
    code, out, err = run("migrate", *table)
    assert (code, out) == (0, "")
    assert err.endswith(
        f"schema     {schema.REVISION}, nothing to do\nusers      those of public.users, by id ({host.type})\n"
    )
    assert run("migrate", *table)[2].endswith(f"by id ({host.type}), nothing to do\n")
    assert run("migrate")[0] == 0
    code, out, _ = run("doctor")
    assert "users      those of public.users\n" in out
    assert json.loads(run("doctor", "--json")[1])["users_table"] == "public.users"
    assert run("migrate", "--check", *table)[0] == 0
    assert run("migrate", "--check")[0] == 0
    assert run("migrate", "--check", "--users-table", "public.tasks")[0] == 1


@pytest.mark.parametrize("other", [["--sql"], ["--to", "base"], ["--to", "0000"]])
def test_the_command_adopts_no_table_beside_what_leaves_no_users(run: Run, other: list[str], database_url: str) -> None:
    install(database_url, HOSTS["uuid"])
    before = described(database_url)
    code, out, err = run("migrate", *other, "--users-table", "public.users")
    assert (code, out) == (2, "")
    assert "--users-table" in err
    assert described(database_url) == before


def test_a_token_for_a_stranger_is_refused_by_the_command(run: Run, database_url: str) -> None:
    install(database_url, HOSTS["text"])
    adopt(database_url, "public.users")
    code, out, err = run("token", "create", "--user", "mallory")
    assert (code, out) == (1, "")
    assert err.startswith("chatledger: the application's users table has no such user")
    assert run("token", "create", "--user", "alice")[0] == 0


def test_an_import_for_a_stranger_is_refused_by_the_command(run: Run, database_url: str, tmp_path: Path) -> None:
    install(database_url, HOSTS["text"])
    adopt(database_url, "public.users")
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": "hello"}]))
    code, _, err = run("import", str(file), "--user", "mallory")
    assert (code, "the application's users table has no such user" in err) == (1, True)
    assert run("import", str(file), "--user", "alice")[0] == 0
