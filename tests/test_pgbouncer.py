"""The whole store through a real PgBouncer in transaction mode, as Neon's pooled host and many others are.

Not among the tests of a machine without one: `scripts/check` runs them, and fails where pgbouncer is not installed.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest

from chatledger.server import settings
from chatledger.server.cli import main
from chatledger.storage import ConversationStore, NewMessage, schema
from chatledger.storage.bulk import BulkStore
from chatledger.storage.database_url import SERVER_SETTINGS, read_database_url
from chatledger.storage.engine import CALL_SECONDS
from chatledger.storage.errors import ConversationUnavailable, Unavailable
from chatledger.storage.records import Conversation, Holdings
from chatledger.storage.tokens import TokenStore
from tests.conftest import run_sql
from tests.driver import connect
from tests.patience import PATIENCE
from tests.pgbouncer import PgBouncer
from tests.test_stdio import served
from tests.wire_proxy import WireProxy

pytestmark = pytest.mark.pgbouncer

CLIENTS, CONNECTIONS, UNITS = 12, 4, 300
HELLO = NewMessage(role="user", content="hello", client_message_id="1", metadata={"a": 1}, parts=[{"b": 2}])
CALLED = NewMessage(role="assistant", tool_calls=[{"id": "1"}])
RESULT = NewMessage(role="tool", tool_call_id="1", content="sunny")
ASKED = NewMessage(role="user", content="and tomorrow?")

Operation: TypeAlias = Callable[[ConversationStore, str, Conversation], Awaitable[object]]

OPERATIONS: dict[str, Operation] = {
    "ping": lambda store, user, talk: store.ping(),
    "create_conversation": lambda store, user, talk: store.create_conversation(user, title="t", metadata={"a": 1}),
    "get_or_create_conversation": lambda store, user, talk: store.get_or_create_conversation(user),
    "append_message": lambda store, user, talk: store.append_message(user, talk.id, ASKED),
    "add_message": lambda store, user, talk: store.add_message(user, talk.number, "user", "hello"),
    "append_messages": lambda store, user, talk: store.append_messages(user, talk.id, [HELLO, CALLED, RESULT, ASKED]),
    "load_history": lambda store, user, talk: store.load_history(user, talk.number, detail="full"),
    "get_chat_history": lambda store, user, talk: store.get_chat_history(user, talk.id),
    "load_message": lambda store, user, talk: store.load_message(user, talk.id, 1),
    "list_conversations": lambda store, user, talk: store.list_conversations(user, title_contains="t"),
    "list_numbers": lambda store, user, talk: store.list_numbers(user, "t"),
    "search_messages": lambda store, user, talk: store.search_messages(user, "hello"),
    "update_conversation": lambda store, user, talk: store.update_conversation(user, talk.id, metadata={"b": None}),
    "fork_conversation": lambda store, user, talk: store.fork_conversation(user, talk.id, at_seq=1),
}
ELSEWHERE = {"aclose", "start", "wake"}  # no operations on conversations
IN_THE_END = {"delete_conversation"}


@pytest.fixture
def pooler(database_url: str) -> Iterator[PgBouncer]:
    with PgBouncer(database_url, server_connections=CONNECTIONS) as started:
        yield started


async def begun(store: ConversationStore, user: str) -> Conversation:
    """A conversation of the user's with a message in it."""
    talk, _ = await store.create_conversation(user, title=f"{user}'s talk", metadata={"b": 2})
    await store.append_message(user, talk.id, HELLO)
    return talk


async def server_processes(url: str) -> set[int]:
    """The backends of the test's database, but the one that asks."""
    connection = await connect(url)
    try:
        sql = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return {row["pid"] for row in await connection.fetch(sql)}
    finally:
        await connection.close()


def test_every_operation_of_the_store_is_tried_here() -> None:
    public = {name for name, _ in inspect.getmembers(ConversationStore, inspect.isfunction) if name[0] != "_"}
    assert OPERATIONS.keys() | IN_THE_END == public - ELSEWHERE


def test_a_pooler_is_a_host_of_which_nothing_is_known_and_gets_unnamed_statements(pooler: PgBouncer) -> None:
    target = read_database_url(pooler.url)
    assert (target.pooled, target.direct) == (False, False)
    assert target.connect_args["statement_cache_size"] == 0
    assert target.connect_args["server_settings"].keys() == {"application_name"}


async def test_it_is_told_from_postgres_when_a_connection_is_opened(pooler: PgBouncer, database_url: str) -> None:
    async with ConversationStore.at(pooler.url) as behind, ConversationStore.at(database_url) as straight:
        for store, direct in ((behind, False), (straight, True)):
            await store.create_conversation("alice")
            assert (await store.database._ready()).connections.direct == direct


@pytest.mark.parametrize("ignored", [(), SERVER_SETTINGS], ids=["refuses the settings", "ignores the settings"])
async def test_one_that_comes_in_between_later_is_noticed(database_url: str, ignored: Iterable[str]) -> None:
    pooler = PgBouncer(database_url, server_connections=2, ignored=ignored)
    async with ConversationStore.at(pooler.url) as store:
        async with WireProxy(database_url, port=pooler.port, pooler=False):
            talk, _ = await store.create_conversation("alice")
            assert (await store.database._ready()).connections.direct
        with pooler:
            rounds = 0
            while (await store.database._ready()).connections.direct:  # calls may keep to their connections by chance
                rounds += 1
                assert rounds <= 20
                windows = [store.load_history("alice", talk.id, limit=limit) for limit in range(1, 6)]
                appends = [store.append_message("alice", talk.id, ASKED) for _ in range(40)]
                await asyncio.gather(*windows, *appends)
            assert (await store.load_history("alice", talk.id)).conversation.message_count == 40 * rounds


async def test_a_pooler_refuses_the_limits_that_direct_hosts_are_sent(pooler: PgBouncer) -> None:
    plain = pooler.url.replace("postgresql+asyncpg", "postgresql")
    with pytest.raises(asyncpg.PostgresError, match="unsupported startup parameter"):
        await asyncpg.connect(plain, statement_cache_size=0, server_settings=SERVER_SETTINGS)


async def test_two_users_do_everything_through_it_and_each_finds_only_their_own(pooler: PgBouncer) -> None:
    async with ConversationStore.at(pooler.url) as store, asyncio.timeout(PATIENCE):
        talks = {user: await begun(store, user) for user in ("alice", "bob")}
        for _ in range(2):  # the second time every statement is known
            for operation in OPERATIONS.values():
                await asyncio.gather(*(operation(store, user, talk) for user, talk in talks.items()))
        pages = {user: await store.list_conversations(user, limit=100) for user in talks}
        assert len({page.conversations[0].conversation.id for page in pages.values()}) == 2
        assert {len(page.conversations) for page in pages.values()} == {6}  # of each: 1, 2, 1 by its key, 2 forks
        for user, other in (("alice", "bob"), ("bob", "alice")):
            window = await store.load_history(user, talks[user].id, max_tokens=200_000)
            assert [message.seq for message in window.messages] == list(range(1, 12))
            with pytest.raises(ConversationUnavailable):
                await store.load_history(user, talks[other].id)
        for user, talk in talks.items():
            assert (await store.delete_conversation(user, talk.id)).messages_deleted == 11


async def test_bulk_work_and_tokens_go_through_it_too(pooler: PgBouncer) -> None:
    async with ConversationStore.at(pooler.url) as store:
        talk = await begun(store, "alice")
        bulk, tokens = BulkStore(store), TokenStore(store)
        read = [each async for each in bulk.read("alice", talk.id)]
        assert len(read) == 2
        made, text = await tokens.create("alice", scopes=["conversations:read"])
        assert (await tokens.find(text)) is not None
        assert await tokens.revoke(made.id) is not None
        await tokens.aclose()
        assert await bulk.erase_user("alice") == Holdings(1, 1)


async def test_twelve_clients_on_four_server_connections_all_succeed(pooler: PgBouncer, database_url: str) -> None:
    stores = [ConversationStore.at(pooler.url) for _ in range(CLIENTS)]
    names = list(OPERATIONS)
    most = 0

    async def client(number: int) -> int:
        store, user = stores[number], ("alice", "bob")[number % 2]
        talk, succeeded = await begun(store, user), 0
        for unit in range(UNITS // CLIENTS):
            operation = names[(unit + number) % len(names)]  # at any moment, different statements of different clients
            await OPERATIONS[operation](store, user, talk)
            receipt = await store.append_message(user, talk.id, replace(ASKED, client_message_id=f"unit-{unit}"))
            window = await store.load_history(user, talk.id, after_seq=receipt.seq - 1, limit=1, detail="full")
            succeeded += window.messages[0].id == receipt.id
        return succeeded

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(await server_processes(database_url)))

    try:
        async with asyncio.timeout(PATIENCE):
            watching = asyncio.create_task(watch())
            done = await asyncio.gather(*(client(number) for number in range(CLIENTS)), return_exceptions=True)
            watching.cancel()
            await asyncio.wait([watching])
    finally:
        await asyncio.gather(*(store.aclose() for store in stores))
    assert [each for each in done if not isinstance(each, int)] == []
    assert sum(each for each in done if isinstance(each, int)) == UNITS
    assert 1 < most <= CONNECTIONS + 1  # one more that watched


async def test_named_statements_would_fail_here_so_that_this_pooler_shows_the_difference(pooler: PgBouncer) -> None:
    """The driver's own defaults, for comparison: what the test before relies on is not the pooler's kindness."""
    clients = [await asyncpg.connect(pooler.url, timeout=PATIENCE) for _ in range(CLIENTS)]

    async def client(connection: Any, number: int) -> int:
        succeeded = 0
        for unit in range(UNITS // CLIENTS):
            try:
                value = await connection.fetchval(f"SELECT $1::int + {(unit + number) % 7}", unit)
                succeeded += value == unit + (unit + number) % 7
            except asyncpg.PostgresError:
                continue
        return succeeded

    try:
        async with asyncio.timeout(PATIENCE):
            done = await asyncio.gather(*(client(connection, number) for number, connection in enumerate(clients)))
    finally:
        for connection in clients:
            connection.terminate()
    assert sum(done) < UNITS


async def test_no_client_leaves_a_statement_a_setting_or_a_lock_to_the_next(database_url: str) -> None:
    with PgBouncer(database_url, server_connections=1) as pooler:
        async with ConversationStore.at(pooler.url) as store:
            for user in ("alice", "bob"):
                talk = await begun(store, user)
                for operation in OPERATIONS.values():
                    await operation(store, user, talk)
                assert [each async for each in BulkStore(store).read(user, talk.id)]
        await asyncio.to_thread(schema.migrate, pooler.url)
        (before,) = await server_processes(database_url)
        other = await asyncpg.connect(pooler.url, statement_cache_size=0)
        try:
            assert await other.fetchval("SELECT pg_backend_pid()") == before, (
                "it is the connection that all of them had"
            )
            async with other.transaction():
                # What a pooler sets for each of its clients is no leak. jit is switched off and on again by the driver
                # itself, round a question about types; that can reach two connections, and changes no answer.
                assert await other.fetch("SELECT name FROM pg_prepared_statements WHERE name <> ''") == []
                assert await other.fetch("SELECT * FROM pg_locks WHERE locktype = 'advisory'") == []
                changed = await other.fetch("SELECT name FROM pg_settings WHERE source = 'session'")
                assert {row["name"] for row in changed} <= {
                    "DateStyle", "TimeZone", "application_name", "client_encoding", "jit", "standard_conforming_strings"
                }  # fmt: skip
        finally:
            await other.close()


@pytest.mark.parametrize("name", sorted(OPERATIONS))
async def test_an_operation_is_one_round_trip_once_it_is_known(name: str, pooler: PgBouncer) -> None:
    async with WireProxy(pooler.url) as proxy, ConversationStore.at(proxy.url) as store:
        talk = await begun(store, "alice")
        await OPERATIONS[name](store, "alice", talk)
        before = proxy.round_trips
        await OPERATIONS[name](store, "alice", talk)
        assert (proxy.connections, proxy.round_trips - before) == (1, 1)


async def test_calls_end_while_it_is_down_and_go_on_when_it_is_back(
    pooler: PgBouncer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.storage.engine.WAKING_SECONDS", 0.5)
    acknowledged: list[str] = []

    async def write(store: ConversationStore, talk: Conversation, key: str) -> None:
        message = replace(ASKED, content=key, client_message_id=key)
        while True:
            began = time.monotonic()
            try:
                await store.append_message("alice", talk.id, message)
            except Unavailable:
                assert time.monotonic() - began < CALL_SECONDS + 5
                continue
            acknowledged.append(key)
            return

    async with ConversationStore.at(pooler.url) as store, asyncio.timeout(PATIENCE):
        talk = await begun(store, "alice")
        for restart in range(3):
            writing = [asyncio.create_task(write(store, talk, f"{restart}-{number}")) for number in range(20)]
            await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(pooler.kill)
            with pytest.raises(Unavailable):
                await store.load_history("alice", talk.id)
            await asyncio.to_thread(pooler.start)
            began = time.monotonic()
            assert (await store.load_history("alice", talk.id)).messages
            assert time.monotonic() - began < CALL_SECONDS / 2
            await asyncio.gather(*writing)
        window = await store.load_history("alice", talk.id, max_tokens=200_000)
    assert [message.seq for message in window.messages] == list(range(1, 62))
    assert sorted(message.content for message in window.messages[1:]) == sorted(acknowledged)


def test_migrating_through_it_is_done_once_whoever_begins(empty_database_url: str) -> None:
    """A pooler that nobody can tell from a server: the lock and all that it guards are one transaction."""
    with PgBouncer(empty_database_url, server_connections=3) as pooler, ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(schema.migrate, [pooler.url] * 3))
    assert sorted(map(str, answers)) == [str((schema.REVISION, schema.REVISION))] * 2 + [str((None, schema.REVISION))]
    locks = run_sql(empty_database_url, "SELECT * FROM pg_locks WHERE locktype = 'advisory'")
    assert locks == []


def test_migrations_take_the_direct_host_where_one_is_set(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "USER_CONFIG_FILE", tmp_path / "config.env")
    with PgBouncer(empty_database_url) as pooler:
        monkeypatch.setenv("CHATLEDGER_DATABASE_URL", pooler.url)
        pooler.kill()
        for direct, code in ((None, 1), (empty_database_url, 0)):
            if direct is not None:
                monkeypatch.setenv("CHATLEDGER_DIRECT_DATABASE_URL", direct)
            with pytest.raises(SystemExit) as ended:
                main(["migrate"])
            assert (ended.value.code or 0) == code
        assert f"none -> {schema.REVISION}" in capsys.readouterr().err
        pooler.start()
        with pytest.raises(SystemExit) as ended:
            main(["migrate", "--check"])
        assert not ended.value.code


def test_a_server_over_stdio_works_through_it(era: str, pooler: PgBouncer, tmp_path: Path) -> None:
    with served(era, tmp_path, DATABASE_URL=pooler.url) as server:
        said = secrets.token_hex(8)
        talk = server.call("create_conversation", title="through a pooler")["conversation"]
        for number in range(3):
            server.call("append_message", conversation_id=talk["id"], role="user", content=f"{said} {number}")
        history = server.call("load_history", conversation_id=talk["number"])
        assert [message["content"] for message in history["messages"]] == [f"{said} {number}" for number in range(3)]
        assert len(server.call("search_messages", query=said)["hits"]) == 3
        assert server.leave() == 0
