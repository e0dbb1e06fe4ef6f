"""What bounds a search: its words and filters, the rows behind a page, its time, and how many a user has at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chatledger.storage import ConversationStore, NewMessage, message_search, search_queries
from chatledger.storage.engine import Database
from chatledger.storage.errors import InvalidArgument, Unavailable
from chatledger.storage.query import Query
from tests.conftest import run_sql
from tests.test_search import found


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"query": ""}, "query has 0 characters"),
        ({"query": "x" * 513}, "query has 513 characters"),
        ({"query": " ".join(f"w{n}" for n in range(33))}, "query has 33 terms; it may have 32"),
        ({"query": "a\x00b"}, "U\\+0000"),
        ({"query": "a\ud800b"}, "lone surrogate"),
        ({"query": "x", "limit": 0}, "limit must be between 1 and 50"),
        ({"query": "x", "limit": 51}, "limit must be between 1 and 50"),
        ({"query": "x", "role": "root"}, "role must be one of"),
    ],
)
async def test_bounds_are_told(arguments: dict[str, Any], told: str, store: ConversationStore) -> None:
    with pytest.raises(InvalidArgument, match=told):
        await store.search_messages("alice", **arguments)


async def test_thirty_two_terms_are_searched(store: ConversationStore) -> None:
    words = [f"word{n}" for n in range(32)]
    await store.create_conversation("alice")
    await store.append_message("alice", 1, NewMessage(role="user", content=" ".join(words)))
    await store.append_message("alice", 1, NewMessage(role="user", content=" ".join(words[:-1])))
    assert await found(store, " ".join(words)) == [1]


@pytest.mark.parametrize("query", ["apple", "🍎"])
async def test_what_is_common_but_not_new_is_walked_through_in_bounded_pages(
    query: str, store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_queries, "NEAR", 5)
    monkeypatch.setattr(search_queries, "WALKED", 20)
    search_queries._statement.cache_clear()
    monkeypatch.setattr(search_queries, "_BY_INDEX", search_queries._BY_INDEX.replace(str(search_queries.FEW), "10"))
    try:
        await store.create_conversation("alice")
        texts = [f"apple 🍎 {n}" if n < 60 else f"other {n}" for n in range(100)]
        await store.append_messages("alice", 1, [NewMessage(role="user", content=text) for text in texts])
        assert await found(store, query, limit=7) == list(range(60, 0, -1))
        assert await found(store, query, limit=7, conversation=1) == list(range(60, 0, -1))
    finally:
        search_queries._statement.cache_clear()


async def test_a_search_that_takes_too_long_is_ended_in_the_database_too(
    store: ConversationStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create_conversation("alice")
    slow = Query("SELECT $1 AS user_id, pg_sleep(30)", ("alice",))
    monkeypatch.setattr(message_search, "SEARCH_SECONDS", 0.5)
    monkeypatch.setattr(search_queries, "search_messages", lambda *_, **__: slow)
    with pytest.raises(Unavailable, match=r"^the search took longer than 0.5 s; name a conversation"):
        await store.search_messages("alice", "x")
    for _ in range(100):
        asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND pid <> pg_backend_pid()"
        if (await asyncio.to_thread(run_sql, database_url, asked))[0][0] == 0:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("it is still running")
    monkeypatch.undo()
    assert (await store.search_messages("alice", "x")).hits == []


async def test_a_database_that_starts_takes_no_part_of_a_searchs_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = Database._open

    async def opens_late(database: Database) -> Any:
        await asyncio.sleep(1)
        return await opens(database)

    monkeypatch.setattr(Database, "_open", opens_late)
    monkeypatch.setattr(message_search, "SEARCH_SECONDS", 0.9)
    async with ConversationStore.at(database_url) as late:
        assert (await late.search_messages("alice", "x")).hits == []


async def test_a_users_fifth_search_waits_and_another_users_does_not(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, go = 0, 0, asyncio.Event()

    async def read(query: Any, **_: Any) -> list[Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return [{"user_id": query.args[0], "seq": None, "edge_seq": None}]

    await store.database.cursor_secret()
    monkeypatch.setattr(store.database, "read", read)
    searches = [asyncio.create_task(store.search_messages("alice", "x")) for _ in range(10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert running == 4
    other = asyncio.create_task(store.search_messages("bob", "x"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert running == 5
    go.set()
    await asyncio.gather(other, *searches)
    assert most == 5
    assert not store._searching
