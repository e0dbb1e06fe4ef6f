"""Users that are those of a host application: who is not in its table stores nothing, who leaves it leaves nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.adoption import adopt
from chatledger.storage.bulk import BulkStore
from chatledger.storage.errors import ConversationUnavailable, UnknownUser
from chatledger.storage.records import Conversation, WholeConversation
from chatledger.storage.tokens import TokenStore
from chatledger.transfer.importing import import_paths
from tests.conftest import OpenClient, run_sql
from tests.driver import connect
from tests.host_application import HOSTS, Host, install, quoted
from tests.test_stdio import CHATLEDGER, environment
from tests.test_tools import call, refused
from tests.wire_proxy import WireProxy

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HELLO = NewMessage(role="user", content="hello")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, database_url: str) -> Host:
    """An application with a key of each type, whose users are chatledger's."""
    found = HOSTS[request.param]
    install(database_url, found)
    adopt(database_url, "public.users")
    return found


@pytest.fixture
def texts(database_url: str) -> Host:
    """One with a text key, where the type does not matter."""
    install(database_url, HOSTS["text"])
    adopt(database_url, "public.users")
    return HOSTS["text"]


def kept(url: str) -> list[tuple[str, int, int, int]]:
    """Each user that chatledger has, with how many conversations, messages and tokens are there."""
    found = run_sql(
        url,
        """SELECT id, (SELECT count(*) FROM chatledger.conversations WHERE user_id = u.id) AS conversations,
                  (SELECT count(*) FROM chatledger.messages WHERE user_id = u.id) AS messages,
                  (SELECT count(*) FROM chatledger.api_tokens WHERE user_id = u.id) AS tokens
             FROM chatledger.users u ORDER BY id COLLATE "C" """,
    )
    return [tuple(row) for row in found]


def rows(url: str) -> int:
    """How many rows there are below any user, whoever that is."""
    tables = ("users", "conversations", "messages", "api_tokens")
    counts = ", ".join(f"(SELECT count(*) FROM chatledger.{table})" for table in tables)
    return sum(run_sql(url, f"SELECT {counts}")[0])


async def store_something(store: ConversationStore, user: str) -> str:
    """A conversation with two messages, and a token: its text."""
    conversation, _ = await store.create_conversation(user, key="a")
    await store.append_messages(user, conversation.id, [HELLO, HELLO])
    return (await TokenStore(store).create(user, scopes=["conversations:read"]))[1]


async def test_users_of_the_application_store_and_find_their_own(
    host: Host, store: ConversationStore, database_url: str
) -> None:
    first, second = host.users
    for user in host.users:
        await store_something(store, user)
    assert await asyncio.to_thread(kept, database_url) == sorted((user, 1, 2, 1) for user in host.users)
    for user in host.users:
        (listed,) = (await store.list_conversations(user)).conversations
        assert [message.content for message in (await store.load_history(user)).messages] == ["hello", "hello"]
        other = second if user == first else first
        with pytest.raises(ConversationUnavailable):
            await store.load_history(other, listed.conversation.id)


async def test_a_stranger_is_refused_by_everything_that_would_make_a_user(
    host: Host, store: ConversationStore, database_url: str, tmp_path: Path
) -> None:
    whole = WholeConversation(
        id=uuid4(), number=None, key=None, title=None, metadata=None, created_at=NOW, updated_at=NOW, messages=[]
    )
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": f"hello {n}"} for n in range(3)]))
    for stranger in (host.stranger, *host.not_keys):
        for refusal in (
            store.create_conversation(stranger),
            store.create_conversation(stranger, key="a", metadata={"a": 1}),
            store.get_or_create_conversation(stranger),
            BulkStore(store).store(stranger, [whole]),
            TokenStore(store).create(stranger, scopes=["conversations:read"]),
            import_paths(store, stranger, [file]),
        ):
            with pytest.raises(UnknownUser):
                await refusal
    assert await asyncio.to_thread(rows, database_url) == 0


async def test_a_stranger_reads_as_somebody_who_has_stored_nothing(
    host: Host, store: ConversationStore, database_url: str
) -> None:
    user = host.users[0]
    await store_something(store, user)
    for stranger in (host.stranger, *host.not_keys):
        assert (await store.list_conversations(stranger)).conversations == []
        assert (await store.search_messages(stranger, "hello")).hits == []
        for refusal in (
            store.load_history(stranger),
            store.load_history(stranger, 1),
            store.append_message(stranger, 1, HELLO),
            store.update_conversation(stranger, 1, title="mine"),
            store.fork_conversation(stranger, 1),
            store.delete_conversation(stranger, 1),
        ):
            with pytest.raises(ConversationUnavailable):
                await refusal
    assert await asyncio.to_thread(kept, database_url) == [(user, 1, 2, 1)]


async def test_deleting_a_user_of_the_application_takes_everything_along_and_leaves_the_other(
    host: Host, store: ConversationStore, database_url: str
) -> None:
    first, second = host.users
    tokens = [await store_something(store, user) for user in host.users]
    delete = f"DELETE FROM public.users WHERE id = {quoted(first)}"
    await asyncio.to_thread(run_sql, database_url, delete)
    assert await asyncio.to_thread(kept, database_url) == [(second, 1, 2, 1)]
    found = [await TokenStore(store).find(token) for token in tokens]
    assert [None if token is None else token.user_id for token in found] == [None, second]
    with pytest.raises(ConversationUnavailable):
        await store.append_message(first, 1, HELLO)
    with pytest.raises(UnknownUser):
        await store.create_conversation(first)
    add = f"INSERT INTO public.users (id, email) VALUES ({quoted(first)}, 'again@example.com')"
    await asyncio.to_thread(run_sql, database_url, add)
    conversation, _ = await store.create_conversation(first)
    assert conversation.number == 1


async def test_an_application_that_may_do_nothing_with_chatledgers_tables_deletes_its_user_all_the_same(
    texts: Host, store: ConversationStore, database_url: str
) -> None:
    await store_something(store, "alice")
    role = f"application_{uuid4().hex[:8]}"
    connection: Any = await connect(database_url)
    try:
        await connection.execute(f"CREATE ROLE {role}; GRANT SELECT, DELETE ON public.users TO {role}")
        await connection.execute(f"SET ROLE {role}")
        assert not await connection.fetchval("SELECT has_schema_privilege('chatledger', 'USAGE')")
        assert await connection.execute("DELETE FROM public.users WHERE id = 'alice'") == "DELETE 1"
        await connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
    finally:
        await connection.close()
    assert await asyncio.to_thread(kept, database_url) == []


async def test_a_role_that_may_not_look_at_the_users_table_serves_its_users(texts: Host, database_url: str) -> None:
    role = f"serving_{uuid4().hex[:8]}"
    connection: Any = await connect(database_url)
    try:
        await connection.execute(
            f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA chatledger TO {role};"
            f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA chatledger TO {role}; SET ROLE {role}"
        )
        assert not await connection.fetchval("SELECT has_table_privilege('public.users', 'SELECT')")
        await connection.execute("INSERT INTO chatledger.users (id) VALUES ('alice')")
        with pytest.raises(Exception, match="users_app_user"):
            await connection.execute("INSERT INTO chatledger.users (id) VALUES ('mallory')")
        with pytest.raises(Exception, match="non-DEFAULT value"):
            await connection.execute("INSERT INTO chatledger.users (id, app_user_id) VALUES ('mallory', 'alice')")
        await connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
    finally:
        await connection.close()


async def test_a_new_user_whose_first_calls_come_all_at_once_gets_every_one_answered(
    host: Host, database_url: str
) -> None:
    user = host.users[0]
    async with ConversationStore.at(database_url) as store, ConversationStore.at(database_url) as other:
        made = await asyncio.gather(
            *(each.create_conversation(user) for _ in range(10) for each in (store, other)),
            *(
                TokenStore(each).create(user, scopes=["conversations:read"])
                for _ in range(3)
                for each in (store, other)
            ),
        )
    assert sorted(answer[0].number for answer in made[:20] if isinstance(answer[0], Conversation)) == list(range(1, 21))
    assert await asyncio.to_thread(kept, database_url) == [(user, 20, 0, 6)]


async def test_nothing_is_left_of_a_user_who_is_deleted_while_they_write(
    texts: Host, store: ConversationStore, database_url: str
) -> None:
    connection: Any = await connect(database_url)
    try:
        for turn in range(15):
            creates = [asyncio.create_task(store.create_conversation("alice")) for _ in range(8)]
            if turn % 3:
                await asyncio.wait(creates, return_when=asyncio.FIRST_COMPLETED)
            await connection.execute("DELETE FROM public.users WHERE id = 'alice'")
            answers = await asyncio.gather(*creates, return_exceptions=True)
            assert all(isinstance(answer, UnknownUser | tuple) for answer in answers), answers
            assert await connection.fetchval("SELECT count(*) FROM chatledger.conversations") == 0
            assert await connection.fetchval("SELECT count(*) FROM chatledger.users") == 0
            await connection.execute("INSERT INTO public.users (id, email) VALUES ('alice', 'alice@example.com')")
    finally:
        await connection.close()


async def test_a_store_that_was_open_before_goes_on_and_knows_the_users(
    store: ConversationStore, database_url: str
) -> None:
    await store.create_conversation("alice")
    await asyncio.to_thread(install, database_url, HOSTS["text"])
    await asyncio.to_thread(adopt, database_url, "public.users")
    with pytest.raises(UnknownUser):
        await store.create_conversation("mallory")
    conversation, _ = await store.create_conversation("alice")
    assert conversation.number == 2


async def test_a_create_is_one_round_trip_for_a_new_user_a_known_one_and_a_stranger(
    texts: Host, database_url: str
) -> None:
    async with WireProxy(database_url) as proxy, ConversationStore.at(proxy.url) as store:
        await store.create_conversation("alice")  # opens the connection, which then knows the statement
        for user in (texts.users[1], "alice"):
            before = proxy.round_trips
            await store.create_conversation(user)
            assert proxy.round_trips - before == 1
        before = proxy.round_trips
        with pytest.raises(UnknownUser):
            await store.create_conversation("mallory")
        assert proxy.round_trips - before == 1


async def test_a_tool_tells_a_stranger_who_is_meant_and_nothing_of_the_database(
    host: Host, client_of: OpenClient
) -> None:
    for stranger in (host.stranger, host.not_keys[0]):
        async with client_of(stranger) as client:
            for arguments in ({}, {"key": "a"}, {"title": "t", "metadata": {"a": 1}}):
                error = await refused(client, "create_conversation", **arguments)
                assert (error["code"], error["status"], error["retryable"]) == ("unknown_user", 403, False)
                assert error.keys() == {"code", "status", "message", "retryable"}
                for secret in (stranger, "public", "users_app", "chatledger.", "key"):
                    assert secret not in error["message"]
            assert (await call(client, "list_conversations"))["conversations"] == []
            error = await refused(client, "append_message", conversation_id=1, role="user", content="hello")
            assert error["code"] == "conversation_unavailable"
    async with client_of(host.users[0]) as client:
        assert (await call(client, "create_conversation"))["created"]


@pytest.fixture
def serving(tmp_path: Path, database_url: str, era: str) -> Iterator[Any]:
    @asynccontextmanager
    async def connected(user: str) -> AsyncIterator[Client]:
        env = environment(tmp_path, DATABASE_URL=database_url, USER_ID=user)
        parameters = StdioServerParameters(command=CHATLEDGER, args=["serve"], env=env, cwd=tmp_path)
        with (tmp_path / "stderr").open("a+") as log:
            async with Client(stdio_client(parameters, errlog=log), mode=era) as client:
                yield client

    yield connected
    assert "Traceback" not in (tmp_path / "stderr").read_text()


async def test_over_stdio_the_user_in_the_settings_must_be_one_of_the_application(serving: Any, texts: Host) -> None:
    async with serving("local") as client:
        error = await refused(client, "create_conversation")
        assert (error["code"], error["status"]) == ("unknown_user", 403)
        assert "CHATLEDGER_USER_ID" in error["message"]
    async with serving(texts.users[1]) as client:
        assert (await call(client, "create_conversation", title="t"))["created"]
        assert (await call(client, "append_message", conversation_id=1, role="user", content="hello"))["seq"] == 1
