"""Row security, opted into: all works behind it, and without any owner predicate it still lets nothing through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest

from chatledger.storage import ConversationStore, NewMessage, row_security, schema
from chatledger.storage.bulk import BulkStore
from chatledger.storage.errors import ConversationUnavailable
from chatledger.storage.tokens import TokenStore
from tests.conftest import run_sql
from tests.driver import connect
from tests.fenced_database import LOGIN, as_app, put_up
from tests.owner_predicates import WatchedStore, mutants, small_search
from tests.pgbouncer import PgBouncer
from tests.probes import Inquiry, inquire
from tests.test_bulk import whole
from tests.test_isolation import make_battery, watched_database
from tests.two_worlds import opened, two_databases
from tests.wire_proxy import WireProxy


@pytest.fixture
def fenced_url(database_url: str) -> str:
    """A database with row security up; the URL is the migrating role's."""
    put_up(database_url)
    return database_url


@pytest.fixture
async def store(fenced_url: str) -> AsyncIterator[ConversationStore]:
    async with ConversationStore.at(as_app(fenced_url)) as opened:
        yield opened


@pytest.fixture(scope="module")
def fenced_worlds(postgres_url: str, template: str) -> Iterator[tuple[str, str]]:
    with two_databases(postgres_url, template) as urls:
        for url in urls:
            put_up(url)
        yield urls


def test_all_that_a_later_migration_may_change_belongs_to_the_owners_role(fenced_url: str) -> None:
    owners = """
    SELECT pg_get_userbyid(relowner) FROM pg_class
     WHERE relnamespace = 'chatledger'::regnamespace AND relkind IN ('r', 'p')
    UNION SELECT pg_get_userbyid(typowner) FROM pg_type
     WHERE typnamespace = 'chatledger'::regnamespace AND typtype = 'd'"""
    assert [row[0] for row in run_sql(fenced_url, owners)] == [row_security.OWNER]
    schema.migrate(fenced_url, then=row_security.take_down)
    assert row_security.OWNER not in {row[0] for row in run_sql(fenced_url, owners)}


async def test_all_that_is_offered_works_and_tells_nothing_of_another_user(
    fenced_worlds: tuple[str, str], era: str
) -> None:
    async with opened(fenced_worlds, era, as_role=LOGIN) as worlds:
        inquiry = await inquire(worlds, 200, seed=11)
    assert inquiry.found == []
    assert inquiry.asked == 200


async def test_without_any_owner_predicate_nothing_foreign_is_told_or_changed(
    fenced_worlds: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_search(monkeypatch)
    wrong, tried = [], 0
    async with opened(fenced_worlds, "auto", open_store=WatchedStore, as_role=LOGIN) as worlds:
        battery = await make_battery(worlds)
        inquiry, before = Inquiry(worlds, Random(3)), await worlds.both.others()
        database = watched_database(worlds)
        for text, asked in battery.items():
            *_, without_any = [None, *mutants(text)]
            if without_any is None:
                continue
            tried += 1
            database.instead = {text: without_any.text}
            for question, expected in asked[:3]:
                answer = inquiry.masked(await question.ask(worlds.both))
                if not question.reads:
                    changed = await worlds.both.others() != before
                    await worlds.both.restore()
                    if changed:
                        wrong.append(f"{question.name} changed rows of another user")
                if answer != expected:
                    wrong.append(f"{question.name}: {answer} instead of {expected}")
    assert wrong == []
    assert tried > 80


# ---- what the roles may do ------------------------------------------------------------------------------------------


@pytest.fixture
async def app(fenced_url: str) -> AsyncIterator[Any]:
    """A connection as the server's role, with a conversation of each of two users there."""
    async with ConversationStore.at(as_app(fenced_url)) as store:
        for user in ("alice", "bob"):
            await store.create_conversation(user, title=user)
            await store.add_message(user, 1, "user", f"from {user}")
    connection = await connect(as_app(fenced_url))
    yield connection
    await connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE chatledger.messages SET content = 'other'",
        "DELETE FROM chatledger.messages",
        "TRUNCATE chatledger.messages",
        "UPDATE chatledger.conversations SET user_id = 'alice'",
        "UPDATE chatledger.conversations SET number = 7",
        "UPDATE chatledger.users SET id = 'carol'",
        "UPDATE chatledger.api_tokens SET scopes = '{}'",
        "SELECT * FROM chatledger.erasures",
        "UPDATE chatledger.signing_keys SET secret = ''",
        "INSERT INTO chatledger.conversations (user_id, id, number) VALUES ('bob', gen_random_uuid(), 9)",
        "CREATE TABLE chatledger.more (id integer)",
        "ALTER TABLE chatledger.messages ADD COLUMN more integer",
        "ALTER TABLE chatledger.messages DISABLE ROW LEVEL SECURITY",
        "DROP POLICY own ON chatledger.messages",
        "DROP TABLE chatledger.messages",
        "CREATE INDEX more ON chatledger.messages (seq)",
        f"SET ROLE {row_security.OWNER}",
        f"ALTER ROLE {LOGIN} BYPASSRLS",
    ],
)
async def test_the_servers_role_may_change_no_message_no_owner_and_no_table(app: Any, statement: str) -> None:
    async with app.transaction():
        await app.execute(row_security.SET_SCOPE.replace("$1", "'alice'").replace("$2", "''").replace("$3", "'yes'"))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with app.transaction():
                await app.execute(statement)


def test_every_table_says_what_the_servers_role_may_do_with_it(database_url: str) -> None:
    tables = run_sql(database_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'chatledger'")
    assert {row["tablename"] for row in tables} == row_security._PRIVILEGES.keys()


async def test_nothing_is_shown_before_a_user_is_named_and_nothing_after_the_transaction(app: Any) -> None:
    for table in ("users", "conversations", "messages"):
        fresh = f"SELECT * FROM chatledger.{table}"
        with pytest.raises(asyncpg.UndefinedObjectError):
            await app.fetch(fresh)
    async with app.transaction():
        await app.fetch(row_security.SET_SCOPE, "alice", "", "")
        assert [row["content"] for row in await app.fetch("SELECT content FROM chatledger.messages")] == ["from alice"]
    for table in ("users", "conversations", "messages", "api_tokens"):
        assert await app.fetch(f"SELECT * FROM chatledger.{table}") == []


async def test_row_security_cannot_be_set_aside_by_a_setting_or_a_list_of_all(app: Any) -> None:
    await app.execute("SET row_security = off")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.fetch("SELECT * FROM chatledger.messages")
    await app.execute("RESET row_security")
    async with app.transaction():
        await app.fetch(row_security.SET_SCOPE, "alice", "", "yes")
        found = await app.fetch("SELECT id FROM chatledger.users")
    assert [row["id"] for row in found] == ["alice"]


async def test_a_connection_that_goes_back_to_the_pool_carries_no_user(store: ConversationStore) -> None:
    await store.create_conversation("alice", title="hers")
    await store.add_message("alice", 1, "user", "hers")
    with pytest.raises(ConversationUnavailable):
        await store.load_history("bob", 1)
    opened = store.database._opened_already()
    assert opened is not None
    assert opened.state.fenced
    connection = await opened.connections.borrow()
    try:
        driver: Any = connection.driver_connection
        assert await driver.fetchval("SELECT current_setting('chatledger.user_id')") == ""
        assert await driver.fetch("SELECT * FROM chatledger.messages") == []
        assert not driver.is_in_transaction()
    finally:
        await opened.connections.give_back(connection, broken=False)


async def test_calls_of_many_users_at_once_on_few_connections_keep_apart(store: ConversationStore) -> None:
    users = [f"user-{n}" for n in range(30)]

    async def live(user: str) -> list[str]:
        await store.create_conversation(user)
        for n in range(5):
            await store.add_message(user, 1, "user", f"{user} {n}")
        return [message.content for message in (await store.load_history(user, 1)).messages]

    for user, said in zip(users, await asyncio.gather(*map(live, users)), strict=True):
        assert said == [f"{user} {n}" for n in range(5)]
    assert not store.database.may_gather()  # a statement that carries the messages of several users would be refused


@pytest.mark.parametrize("direct", [False, True])
async def test_a_call_costs_four_round_trips_in_the_place_of_one(fenced_url: str, tmp_path: Path, direct: bool) -> None:
    async with (
        WireProxy(as_app(fenced_url), tmp_path if direct else None) as proxy,
        ConversationStore.at(proxy.url) as store,
    ):
        await store.create_conversation("alice")
        for call in (
            partial(store.add_message, "alice", 1, "user", "hello"),
            partial(store.load_history, "alice", 1),
            partial(store.list_conversations, "alice"),
        ):
            await call()
            before = proxy.round_trips
            await call()
            assert proxy.round_trips - before == 4


@pytest.mark.pgbouncer
async def test_a_pooler_between_keeps_no_user_for_the_next_client(fenced_url: str) -> None:
    with PgBouncer(as_app(fenced_url), server_connections=2) as pooler:
        async with ConversationStore.at(pooler.url) as one, ConversationStore.at(pooler.url) as two:

            async def live(store: ConversationStore, user: str) -> list[str]:
                for n in range(8):
                    await store.get_or_create_conversation(user)
                    await store.add_message(user, 1, "user", f"{user} {n}")
                return [message.content for message in (await store.load_history(user, 1)).messages]

            users = [f"user-{n}" for n in range(10)]
            done = await asyncio.gather(*(live((one, two)[n % 2], user) for n, user in enumerate(users)))
        for user, said in zip(users, done, strict=True):
            assert said == [f"{user} {n}" for n in range(8)]
        bare = await connect(pooler.url)
        assert await bare.fetch("SELECT * FROM chatledger.messages") == []  # on a connection that served all of them
        await bare.close()


# ---- what else there is beside tools --------------------------------------------------------------------------------


async def test_imports_exports_erasures_and_tokens_work_as_the_servers_role(store: ConversationStore) -> None:
    for user in ("alice", "bob"):
        await store.create_conversation(user)
        await store.append_messages(user, 1, [NewMessage(role="user", content=f"{user} {n}") for n in range(3)])
    bulk, tokens = BulkStore(store), TokenStore(store)
    exported = [each async for each in bulk.read("alice")]
    assert len(exported) == 4
    imported = whole(3)
    assert list(await bulk.store("alice", [imported])) == [imported.id]
    assert (await store.load_history("alice", imported.id)).conversation.message_count == 3
    token, text = await tokens.create("alice", scopes=["conversations:read"])
    found = await tokens.find(text)
    assert found is not None
    assert (found.user_id, found.id) == ("alice", token.id)
    await tokens.aclose()
    assert [each.id for each in await tokens.list("alice")] == [token.id]
    assert await tokens.list("bob") == []
    with pytest.raises(row_security.RowSecurityRefused, match="one user at a time"):
        await tokens.list()
    assert await tokens.revoke(token.id) is not None
    assert await tokens.find(text) is None
    holdings = await bulk.erase_user("alice")
    assert holdings is not None
    assert holdings.conversations == 2
    assert await bulk.count("alice") is None
    assert await bulk.count("bob") is not None
