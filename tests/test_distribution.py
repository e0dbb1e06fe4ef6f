"""`chatledger migrate --distribute`: what it refuses, what it runs, and a real cluster where there is one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from chatledger.server import cli
from chatledger.storage import ConversationStore, NewMessage, distribution, row_security, schema
from chatledger.storage.adoption import UsersTableRefused, adopt
from chatledger.storage.errors import TooLarge, Unforeseen, translate
from chatledger.storage.query import OWNED_BY
from chatledger.storage.row_security import RowSecurityRefused
from tests.commands import Run
from tests.conftest import run_sql
from tests.driver import connect
from tests.engine_under_test import ON_A_CLUSTER, Engine, report
from tests.test_queries import BUSY, USER, samples

HELLO = NewMessage(role="user", content="hello")
# Of people who run a server, which have a connection to themselves; and the one that a cluster never gets.
BULK = {"add_conversations", "add_erasures", "find_by_ids", "read_messages", "append_batch"}
KEYS = [
    {"name": "conversations", "key": "of_user", "definition": "FOREIGN KEY (u)", "refers_to": "users"},
    {"name": "messages", "key": "of_conversation", "definition": "FOREIGN KEY (c)", "refers_to": "conversations"},
    {"name": "notes", "key": "of_message", "definition": "FOREIGN KEY (m)", "refers_to": "messages"},
]


@pytest.fixture
def run_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command without a database in the settings."""

    def command(*argv: str) -> tuple[int, str]:
        monkeypatch.delenv("CHATLEDGER_DATABASE_URL", raising=False)
        with pytest.raises(SystemExit) as ended:
            cli.main(list(argv))
        return int(ended.value.code or 0), capsys.readouterr().err

    return command


# ---- without a cluster ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [["--check"], ["--sql"], ["--to", "base"], ["--users-table", "public.users"], ["--with-rls"]],
    ids=" ".join,
)
def test_what_does_not_go_with_it_is_refused_before_anything_is_done(run: Run, other: list[str]) -> None:
    code, _, err = run("migrate", "--distribute", *other)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("chatledger: --distribute ")


def test_the_embedded_database_is_refused(run_alone: Any) -> None:
    assert run_alone("migrate", "--distribute") == (
        2,
        "chatledger: --distribute needs a Citus cluster; the embedded Postgres is one machine\n",
    )


def test_a_postgres_without_citus_is_refused_in_a_sentence_and_stays_as_it_is(empty_database_url: str) -> None:
    schema.migrate(empty_database_url)
    with pytest.raises(distribution.DistributionRefused, match=r"^this database has no extension citus; let an admin"):
        schema.migrate(empty_database_url, then=distribution.lay_out)
    tied = run_sql(empty_database_url, "SELECT FROM pg_constraint WHERE contype = 'f' AND conname LIKE '%\\_user'")
    assert len(tied) == 2


def test_foreign_keys_go_first_and_come_back_last() -> None:
    made = distribution.statements(list(OWNED_BY), KEYS)
    kinds = [statement.split("(")[0].removeprefix("SELECT pg_catalog.").split(" CONSTRAINT")[0] for statement in made]
    distributed = ["create_distributed_table", "truncate_local_data_after_distributing_table"] * 4
    tables = ("conversations", "messages", "notes")
    assert kinds == [
        *(f"ALTER TABLE chatledger.{table} DROP" for table in tables),
        *distributed,
        *(f"ALTER TABLE chatledger.{table} ADD" for table in tables),
    ]
    assert made[-1] == "ALTER TABLE chatledger.notes ADD CONSTRAINT of_message FOREIGN KEY (m)"
    assert "('chatledger.users', 'id', colocate_with => 'none')" in made[3]
    assert "('chatledger.messages', 'user_id', colocate_with => 'chatledger.users')" in made[7]


def test_only_the_keys_of_tables_that_are_laid_out_now_are_touched() -> None:
    made = distribution.statements(["messages"], KEYS)
    assert [statement.split()[2] for statement in made if "DROP" in statement] == [
        "chatledger.messages",
        "chatledger.notes",
    ]
    assert "conversations" not in "".join(made)


def test_every_table_with_a_user_is_laid_out_by_that_column() -> None:
    from chatledger.storage.models import metadata

    with_user = {table.name for table in metadata.tables.values() if "user_id" in table.columns}
    assert set(OWNED_BY) == {"users"} | with_user
    for table in metadata.tables.values():
        if column := OWNED_BY.get(table.name):
            assert next(iter(table.primary_key.columns)).name == column, "a key that does not lead with it is refused"


def test_what_an_engine_lacks_is_said_before_the_first_test() -> None:
    plain = Engine("17.0", None, (), None, None, (), mighty=True)
    assert report(plain, [("tables over a cluster", 3)]) == [
        "engine     Postgres 17.0 (CHATLEDGER_TEST_DATABASE_URL)",
        "lacking    tables over a cluster: 3 tests left out",
    ]
    cluster = plain._replace(citus="13.0", workers=("a", "b"), problems=("the role may not create databases",))
    lines = report(cluster, [])
    assert lines[0] == "engine     Postgres 17.0, Citus 13.0 with 2 workers (CHATLEDGER_TEST_DATABASE_URL)"
    assert [
        line.startswith(f"lacking    {lack.what}") for line, lack in zip(lines[1:], ON_A_CLUSTER, strict=False)
    ] == [True] * len(ON_A_CLUSTER)
    assert lines[-1] == "problem    the role may not create databases"


@pytest.mark.parametrize("named", [named for lack in ON_A_CLUSTER for named in lack.tests])
def test_what_an_engine_lacks_names_tests_that_there_are(named: str) -> None:
    module, _, test = named.partition("::")
    assert f"def {test}(" in Path(__file__).with_name(f"{module}.py").read_text() or not test


@pytest.mark.parametrize("ref", [BUSY, 3], ids=["by id", "by number"])
async def test_no_statement_of_a_call_makes_the_driver_ask_for_types(database_url: str, ref: UUID | int) -> None:
    """It knows single values and arrays of text; anything else is a look at the catalog, slow where Citus guards it."""
    connection = await connect(database_url)
    unknown: set[tuple[str, str]] = set()
    try:
        for name, queries in samples(ref).items():
            for query in queries if name not in BULK else ():
                statement = await connection.prepare(query.sql)
                types = [*statement.get_parameters(), *(column.type for column in statement.get_attributes())]
                unknown |= {(name, each.name) for each in types if each.kind != "scalar" and each.name != "text[]"}
    finally:
        await connection.close()
    assert unknown == set()


def test_what_a_cluster_says_of_rows_that_are_copied_in_is_understood_by_its_sentence() -> None:
    """It is an error without a code of its own: the constraint's name is all that is left."""
    size = 'value for domain chatledger.parts violates check constraint "parts_size"'
    assert isinstance(translate(asyncpg.InternalServerError(size)), TooLarge)
    assert isinstance(translate(asyncpg.InternalServerError("some other thing")), Unforeseen)


# ---- on a cluster --------------------------------------------------------------------------------------------------


@pytest.mark.cluster
def test_again_there_is_nothing_to_do_and_doctor_says_what_there_is(run: Run, database_url: str) -> None:
    code, _, err = run("migrate", "--distribute")
    assert (code, err.splitlines()[-1]) == (0, "tables     distributed by user, nothing to do")
    found = json.loads(run("doctor", "--json")[1])
    assert found["distributed"] is True
    assert (
        "the tables are distributed over a Citus cluster by user; connect to its coordinator only" in found["remarks"]
    )


@pytest.mark.cluster
async def test_rows_that_are_there_are_kept_and_leave_no_copy_behind(database_url: str) -> None:
    await _undistribute(database_url)
    async with ConversationStore.at(database_url) as store:
        kept = {}
        for user in ("alice", "bob", "carol"):
            kept[user], _ = await store.create_conversation(user, key="k")
            await store.append_message(user, kept[user].id, HELLO)
        assert store.database.may_gather()
        await _in_thread(database_url)
        for user, conversation in kept.items():
            receipt = await store.append_message(user, conversation.id, HELLO)
            assert receipt.seq == 2
            assert len((await store.load_history(user, conversation.id)).messages) == 2
    connection = await connect(database_url)
    try:
        keys = await connection.fetch(
            "SELECT conname FROM pg_constraint WHERE contype = 'f' "
            "AND conrelid IN (SELECT to_regclass('chatledger.' || t) FROM unnest($1::text[]) t) ORDER BY conname",
            list(OWNED_BY),
        )
        assert [key["conname"] for key in keys] == ["api_tokens_user", "conversations_user", "messages_conversation"]
        copies = "SELECT sum(pg_relation_size(oid)) FROM pg_class WHERE relname = ANY($1) AND relkind = 'r'"
        assert await connection.fetchval(copies, list(OWNED_BY)) == 0
    finally:
        await connection.close()


@pytest.mark.cluster
@pytest.mark.parametrize("ref", [BUSY, 3], ids=["by id", "by number"])
async def test_every_statement_runs_on_a_cluster_but_the_gathered_one(database_url: str, ref: UUID | int) -> None:
    """Six times each: from then on the driver's statement has a plan for any arguments."""
    connection = await connect(database_url)
    refused = set()
    try:
        for name, queries in samples(ref).items():
            for query in queries:
                for _ in range(6):
                    step = connection.transaction()
                    await step.start()
                    try:
                        await connection.fetch(query.sql, *query.args)
                    except asyncpg.FeatureNotSupportedError:
                        refused.add(name)
                    finally:
                        await step.rollback()
    finally:
        await connection.close()
    assert refused == {"append_batch"}


@pytest.mark.cluster
@pytest.mark.parametrize("ref", [BUSY, 3], ids=["by id", "by number"])
async def test_what_a_user_reads_is_one_statement_on_one_node(database_url: str, ref: UUID | int) -> None:
    connection = await connect(database_url)
    asked = set()
    try:
        for name, queries in samples(ref).items():
            for query in queries:
                if query.about != "a user" or name == "cutoff" or re.search(r"\b(INSERT|UPDATE|DELETE)\b", query.sql):
                    continue
                (told,) = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query.sql}", *query.args))
                shards = told["Plan"]["Distributed Query"]
                assert (list(shards), shards["Job"]["Task Count"]) == (["Job"], 1), name
                asked.add(name)
    finally:
        await connection.close()
    assert asked >= {"get_conversation", "list_conversations", "load_history", "load_message", "search_messages"}


@pytest.mark.cluster
async def test_appends_of_several_users_are_not_gathered(store: ConversationStore) -> None:
    await store.create_conversation(USER)
    assert not store.database.may_gather()


@pytest.mark.cluster
def test_adopted_users_and_row_security_are_refused_with_nothing_changed(database_url: str) -> None:
    run_sql(database_url, "CREATE TABLE public.users (id text PRIMARY KEY)")
    with pytest.raises(UsersTableRefused, match="laid out over a cluster"):
        adopt(database_url, "public.users")
    with pytest.raises(RowSecurityRefused, match="laid out over a cluster"):
        schema.migrate(database_url, then=row_security.put_up)


async def _undistribute(url: str) -> None:
    connection = await connect(url)
    try:
        await connection.execute("SELECT undistribute_table('chatledger.users', cascade_via_foreign_keys => true)")
    finally:
        await connection.close()


async def _in_thread(url: str) -> None:
    import asyncio

    await asyncio.to_thread(schema.migrate, url, then=distribution.lay_out)
