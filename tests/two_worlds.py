"""Two databases that are alike but for one user's rows: what the other user is told must be the same in both.

Alice owns rows in the first only. Bob has the same few in both, and among them two namesakes: conversations with the
ids, the keys and the message ids of Alice's, as an import of her export makes them. A statement that finds a row by its
id alone therefore finds two.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from mcp import Client

from chatledger.server import schemas
from chatledger.server.app import make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.tokens import PREFIX
from tests.conftest import database_at, run_sql
from tests.driver import connect, logged_in

OWNER, PROBER = "alice", "bob"
WORD = re.compile(r"zq\d+owned")
"""What each text of the owner has one of, and each only once."""
FIRST_NUMBER = 501
"""Of the owner's conversations but the first two, so that no prober comes to have one with such a number."""
COMMON = "my copy of the harbour"
"""What both say."""
RARE = "lantern"
"""What the owner says often, the prober once in a conversation."""
TOKEN_ID = "0123456789ab"
TOKEN = f"{PREFIX}{TOKEN_ID}_{'5e' * 32}"
"""The prober's. One of the owner's has the same id, which need not be unique."""

OpenStore = Callable[[str], ConversationStore]


class Owner(NamedTuple):
    """What there is to guess, of the owner's alone unless it says otherwise."""

    conversations: list[str]
    messages: list[str]
    numbers: list[int]
    texts: list[str]
    times: list[str]
    namesakes: list[str]
    """The ids of the conversations that both have: one as long as the prober's, and one that is longer."""
    repeats: list[str]
    """The client_message_ids in the namesakes that only the owner has used there."""
    secrets: frozenset[str]
    """All that must be in no answer to the prober."""


@dataclass
class World:
    """One of the two databases, and the prober's way in."""

    url: str
    watch: Any
    """A connection that sees everything."""
    store: ConversationStore
    client: Client

    async def restore(self) -> None:
        """Every row as it was made."""
        await self.watch.execute(
            "DELETE FROM chatledger.users; DELETE FROM chatledger.erasures;"
            + "".join(f"INSERT INTO chatledger.{table} TABLE saved.{table};" for table in await tables(self.watch))
        )

    async def others(self) -> str:
        """A digest of every row that is not the prober's."""
        parts = [
            f"SELECT t::text AS line FROM chatledger.{table} t WHERE {'id' if table == 'users' else 'user_id'} <> $1"
            for table in await tables(self.watch)
        ]
        lines = await self.watch.fetch(" UNION ALL ".join(parts) + " ORDER BY line", PROBER)
        return hashlib.sha256("\n".join(row["line"] for row in lines).encode()).hexdigest()


@dataclass
class Worlds:
    """Both, with what the owner has in the first."""

    both: World
    alone: World
    owner: Owner
    owners_client: Client

    async def restore(self) -> None:
        for world in (self.both, self.alone):
            await world.restore()


async def tables(watch: Any) -> list[str]:
    """Those with rows of users, each after those that it refers to."""
    found = await watch.fetch(
        "SELECT DISTINCT table_name AS name FROM information_schema.columns "
        "WHERE table_schema = 'chatledger' AND (column_name = 'user_id' OR table_name = 'users')"
    )
    return sorted((row["name"] for row in found), key=lambda name: (name != "users", name != "conversations", name))


# ---- how they are made --------------------------------------------------------------------------------------------


@contextmanager
def two_databases(server: str, template: str) -> Iterator[tuple[str, str]]:
    """Two databases from a migrated one, the owner in the first only. Blocking."""
    import asyncio

    names = [f"chatledger_worlds_{secrets.token_hex(4)}" for _ in range(2)]
    urls = [database_at(server, name) for name in names]
    run_sql(server, f"CREATE DATABASE {names[0]} TEMPLATE {template}")
    try:
        asyncio.run(_populate(urls[0]))
        run_sql(server, f"CREATE DATABASE {names[1]} TEMPLATE {names[0]}")
        run_sql(
            urls[1],
            f"DELETE FROM chatledger.users WHERE id <> '{PROBER}'",
            *(
                f"DELETE FROM saved.{table} WHERE {'id' if table == 'users' else 'user_id'} <> '{PROBER}'"
                for table in asyncio.run(_tables_at(urls[1]))
            ),
        )
        yield urls[0], urls[1]
    finally:
        for name in names:
            run_sql(server, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@asynccontextmanager
async def opened(
    urls: tuple[str, str], era: str, *, open_store: OpenStore = ConversationStore.at, as_role: str | None = None
) -> AsyncIterator[Worlds]:
    """Both worlds; the server logs in by the URLs, or as another role."""
    async with AsyncExitStack() as stack:
        worlds = []
        for url in urls:
            watch = await connect(url)
            stack.push_async_callback(watch.close)
            store = await stack.enter_async_context(open_store(url if as_role is None else logged_in(url, as_role)))
            client = Client(make_server(store, local_user(PROBER)), mode=era)
            worlds.append(World(url, watch, store, await stack.enter_async_context(client)))
        owners = await stack.enter_async_context(ConversationStore.at(urls[0]))
        client = Client(make_server(owners, local_user(OWNER)), mode=era)
        for world in worlds:
            await world.restore()  # from what was done in them before
        owner = await _look(worlds[0].watch)
        yield Worlds(worlds[0], worlds[1], owner, await stack.enter_async_context(client))


async def _tables_at(url: str) -> list[str]:
    watch = await connect(url)
    try:
        return await tables(watch)
    finally:
        await watch.close()


class _Words:
    def __init__(self) -> None:
        self._count = 100

    def __call__(self) -> str:
        self._count += 1
        return f"zq{self._count}owned"


async def _populate(url: str) -> None:
    word = _Words()
    async with ConversationStore.at(url) as store:
        await _conversation(store, word)
        await _own_rows(store)
        await _conversation(store, word, 9)
        watch = await connect(url)
        for number in (1, 2):
            await watch.execute(_NAMESAKE.replace("{number}", str(number)))
        await watch.execute(f"UPDATE chatledger.users SET last_number = {FIRST_NUMBER - 1} WHERE id = '{OWNER}'")
        for messages in (6, 1, 12):
            await _conversation(store, word, messages)
        first = (await store.list_conversations(OWNER)).conversations[0].conversation
        await store.fork_conversation(OWNER, first.id, at_seq=4, title=word())
        archived = await _conversation(store, word)
        await store.update_conversation(OWNER, archived, archived=True)
        await _conversation(store, word)  # the newest rows of all are the owner's
        for user, token in ((OWNER, "other"), (PROBER, TOKEN)):
            await watch.execute(
                "INSERT INTO chatledger.api_tokens (user_id, id, hash, name, scopes) VALUES ($1, $2, $3, $4, $5)",
                user,
                TOKEN_ID,
                hashlib.sha256(token.encode()).digest(),
                word() if user == OWNER else "laptop",
                ["conversations:read"],
            )
        await watch.execute(_INTERLEAVED)
        await watch.execute("CREATE SCHEMA saved")
        for table in await tables(watch):
            await watch.execute(f"CREATE TABLE saved.{table} AS TABLE chatledger.{table}")
        await watch.close()


async def _own_rows(store: ConversationStore) -> None:
    """The prober's conversation 1."""
    await store.create_conversation(PROBER, title="Mine", key="my-key", metadata={"mine": 1})
    said: list[dict[str, Any]] = [
        {"role": "user", "content": f"where is {COMMON}, and its {RARE}?"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "my-call", "name": "look"}]},
        {"role": "tool", "content": f"{COMMON} is here", "tool_call_id": "my-call"},
        {"role": "assistant", "content": "it is open", "client_message_id": "my-message"},
        *({"role": "user", "content": f"{COMMON} again, {n}"} for n in range(8)),
    ]
    await store.append_messages(PROBER, 1, [NewMessage(**each) for each in said])


async def _conversation(store: ConversationStore, word: Callable[[], str], messages: int = 6) -> UUID:
    made, _ = await store.create_conversation(
        OWNER, title=f"harbour {word()}", key=f"key-{word()}", metadata={word(): word()}
    )
    call = f"call-{word()}"
    said: list[dict[str, Any]] = [
        {"role": "user", "content": f"{COMMON}, by {RARE}: {word()}", "client_message_id": f"id-{word()}"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": call, "name": word(), "arguments": word()}]},
        {"role": "tool", "content": f"{COMMON} {RARE} {word()}", "tool_call_id": call, "name": word()},
    ]
    said += [
        {
            "role": ("assistant", "user")[n % 2],
            "content": f"{RARE} {word()} {COMMON}",
            "parts": [{"type": "note", "text": word()}],
            "metadata": {"note": word()},
            "client_message_id": f"id-{word()}",
        }
        for n in range(messages)
    ]
    await store.append_messages(OWNER, made.id, [NewMessage(**each) for each in said[:messages]])
    return made.id


# The prober's conversations 2 and 3 are the namesakes of the owner's 1 and 2: their ids and keys, with other words. The
# second one ends before the owner's does. Each is in the middle of a tool exchange for whoever cuts it there.
_NAMESAKE = f"""
INSERT INTO chatledger.conversations (user_id, id, number, key, title, metadata, last_seq)
SELECT '{PROBER}', id, {{number}} + 1, key, 'Copied', '{{"copied": true}}', 6
  FROM chatledger.conversations WHERE user_id = '{OWNER}' AND number = {{number}};
INSERT INTO chatledger.messages
       (user_id, conversation_id, seq, id, role, content, tool_calls, tool_call_id, client_message_id)
SELECT '{PROBER}', m.conversation_id, m.seq, m.id, m.role,
       '{COMMON} ' || m.seq || CASE m.seq WHEN 4 THEN ' {RARE}' ELSE '' END,
       CASE m.seq WHEN 2 THEN '[{{"id": "my-call"}}]'::jsonb END, CASE m.role WHEN 'tool' THEN 'my-call' END,
       CASE WHEN m.seq > 4 THEN m.client_message_id END
  FROM chatledger.messages m
  JOIN chatledger.conversations c ON c.user_id = m.user_id AND c.id = m.conversation_id
 WHERE c.user_id = '{OWNER}' AND c.number = {{number}} AND m.seq <= 6;
UPDATE chatledger.users SET last_number = 3, conversation_count = 3 WHERE id = '{PROBER}'
"""


# Sorted by time, the messages of all conversations and of both users alternate; in each they stay in their order. From
# 2026 on; as a number, for a function that is not immutable may not stand here in distributed Postgres.
_INTERLEAVED = """
UPDATE chatledger.messages
   SET created_at = to_timestamp(1767225600 + seq * 10
                                 + abs(hashtext(user_id || conversation_id::text)) % 10000 / 1000.0::float8)
"""


async def _look(watch: Any) -> Owner:
    """What the owner has, out of the rows themselves."""

    async def column(sql: str, user: str = OWNER) -> list[Any]:
        return [row[0] for row in await watch.fetch(sql, user)]

    lines = [
        f"SELECT row_to_json(t)::text FROM chatledger.{table} t WHERE {'id' if table == 'users' else 'user_id'} = $1"
        for table in await tables(watch)
    ]
    told = " UNION ALL ".join(lines)
    theirs, ours = " ".join(await column(told)), " ".join(await column(told, PROBER))
    words = sorted(set(WORD.findall(theirs)) - set(WORD.findall(ours)))
    conversations = await column("SELECT id::text FROM chatledger.conversations WHERE user_id = $1 ORDER BY number")
    messages = await column("SELECT id::text FROM chatledger.messages WHERE user_id = $1 ORDER BY created_at, seq")
    moments = await column(
        "SELECT updated_at FROM chatledger.conversations WHERE user_id = $1 UNION "
        "SELECT created_at FROM chatledger.messages WHERE user_id = $1 ORDER BY 1"
    )
    texts = await column(
        "SELECT unnest(ARRAY[key, title]) FROM chatledger.conversations WHERE user_id = $1 UNION "
        "SELECT unnest(ARRAY[client_message_id, tool_call_id, name, content]) FROM chatledger.messages "
        "WHERE user_id = $1 ORDER BY 1"
    )
    named = await column(
        "SELECT client_message_id FROM chatledger.messages m WHERE user_id = $1 AND client_message_id IS NOT NULL "
        "AND conversation_id IN (SELECT id FROM chatledger.conversations WHERE user_id = $1 AND number < 3) "
        "ORDER BY conversation_id, seq"
    )
    named_by_the_prober = await column("SELECT client_message_id FROM chatledger.messages WHERE user_id = $1", PROBER)
    alone = [known for known in (*conversations, *messages) if known not in ours]
    times = [schemas.iso(moment) for moment in moments]
    return Owner(
        conversations=[known for known in conversations if known not in ours],
        messages=[known for known in messages if known not in ours],
        numbers=await column("SELECT number FROM chatledger.conversations WHERE user_id = $1 AND number > 2"),
        texts=[text for text in texts if text and (found := WORD.search(text)) and found[0] in words],
        times=times,
        namesakes=[known for known in conversations if known in ours],
        repeats=[known for known in named if known not in named_by_the_prober],
        secrets=frozenset([*words, *alone, *times]),
    )
