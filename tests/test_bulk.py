"""Whole conversations: numbers, all or none, one snapshot, and nothing left of a user who is erased."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatledger.storage import ConversationStore, NewMessage, bulk
from chatledger.storage.bulk import BulkStore, ExportedConversation
from chatledger.storage.errors import ConversationUnavailable, TooLarge, UniqueViolation
from chatledger.storage.records import Growth, Holdings, Message, WholeConversation, WholeMessage
from tests.conftest import run_sql

START = datetime(2024, 1, 1, tzinfo=UTC)


def message(conversation_id: UUID, seq: int, **facts: Any) -> WholeMessage:
    told: dict[str, Any] = {
        "conversation_id": conversation_id,
        "seq": seq,
        "id": uuid4(),
        "role": "user",
        "content": f"message {seq}",
        "tool_calls": None,
        "tool_call_id": None,
        "name": None,
        "parts": None,
        "metadata": None,
        "client_message_id": f"m{seq}",
        "created_at": START,
        **facts,
    }
    return WholeMessage(**told)


def whole(messages: int = 1, **facts: Any) -> WholeConversation:
    own = facts.pop("id", uuid4())
    told: dict[str, Any] = {
        "key": None,
        "title": None,
        "metadata": None,
        "created_at": START,
        "updated_at": START,
        "messages": [message(own, seq) for seq in range(1, messages + 1)],
        **facts,
    }
    return WholeConversation(id=own, **told)


@pytest.fixture
def bulk_store(store: ConversationStore) -> BulkStore:
    return BulkStore(store)


async def contents(bulk_store: BulkStore, user_id: str, which: int | None = None) -> list[tuple[int, list[str]]]:
    told: list[tuple[int, list[str]]] = []
    async for entry in bulk_store.read(user_id, which):
        if isinstance(entry, ExportedConversation):
            told.append((entry.conversation.number, []))
        else:
            told[-1][1].append(entry.content)
    return told


async def test_new_conversations_get_the_next_numbers_in_their_order(
    store: ConversationStore, bulk_store: BulkStore
) -> None:
    await store.create_conversation("alice")
    new = [whole(2), whole(0), whole(1)]
    assert list((await bulk_store.store("alice", new)).values()) == [2, 3, 4]
    assert (await store.create_conversation("alice"))[0].number == 5


@pytest.mark.parametrize(
    ("there", "wanted", "given"),
    [
        (0, [3, 7], [3, 7]),
        (2, [3, 7], [3, 7]),
        (3, [3, 7], [4, 5]),
        (5, [2, 7], [7, 8]),  # 6 is skipped: ending at 7 would look as if both were kept
        (0, [4, 4], [1, 2]),
        (0, [4, None], [1, 2]),
    ],
)
async def test_numbers_are_kept_only_where_none_of_them_was_ever_given(
    there: int, wanted: list[int | None], given: list[int], store: ConversationStore, bulk_store: BulkStore
) -> None:
    for _ in range(there):
        await store.create_conversation("alice")
    await store.create_conversation("bob")
    numbers = await bulk_store.store("alice", [whole(number=number) for number in wanted])
    assert list(numbers.values()) == given
    last = (await store.create_conversation("alice"))[0].number
    assert last > max(given)


async def test_a_store_is_all_or_none(store: ConversationStore, bulk_store: BulkStore) -> None:
    there = whole(1, key="k")
    await bulk_store.store("alice", [there])
    for bad in (
        [whole(1), whole(1, key="k")],
        [whole(1), whole(1, id=there.id)],
    ):
        with pytest.raises(UniqueViolation):
            await bulk_store.store("alice", bad)
    too_large = whole(1, metadata='{"a": "' + "x" * 20_000 + '"}')
    with pytest.raises(TooLarge):
        await bulk_store.store("alice", [whole(1), too_large])
    assert await contents(bulk_store, "alice") == [(1, ["message 1"])]
    assert (await store.create_conversation("alice"))[0].number == 2


async def test_a_growth_goes_behind_the_last_message_it_knows_of_or_nowhere(
    store: ConversationStore, bulk_store: BulkStore
) -> None:
    there, new = whole(2), whole(1)
    await bulk_store.store("alice", [there])
    growth = Growth(there.id, 2, START + timedelta(days=1), [message(there.id, 3)])
    await bulk_store.store("alice", [], [growth])
    with pytest.raises(UniqueViolation):
        await bulk_store.store("alice", [new], [growth])
    with pytest.raises(UniqueViolation):
        await bulk_store.store("bob", [], [growth])
    assert await contents(bulk_store, "alice") == [(1, ["message 1", "message 2", "message 3"])]
    window = await store.load_history("alice", there.id)
    assert window.conversation.updated_at == START + timedelta(days=1)


async def test_an_append_goes_on_where_an_import_ended(store: ConversationStore, bulk_store: BulkStore) -> None:
    there = whole(3)
    await bulk_store.store("alice", [there])
    receipt = await store.append_message("alice", there.id, NewMessage(role="user", content="next"))
    assert receipt.seq == 4


async def test_paths_are_found_by_key_and_by_id_among_the_users_own(bulk_store: BulkStore) -> None:
    one, two = whole(2, key="k1"), whole(0, key="k2")
    await bulk_store.store("alice", [one, two])
    found = {path.key: path for path in await bulk_store.find("alice", keys=["k1", "k2", "k3"])}
    assert found["k1"].identities == ["m1", "m2"]
    assert (found["k1"].last_created_at, found["k2"].last_created_at) == (START, None)
    assert found["k2"].identities == []
    (path,) = await bulk_store.find("alice", ids=[one.id], by_message_id=True)
    assert path.identities == [str(each.id) for each in one.messages]
    assert await bulk_store.find("bob", keys=["k1"], ids=[one.id]) == []


async def test_a_read_gives_everything_in_order_however_it_is_cut_into_pages(
    bulk_store: BulkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "READ_MESSAGES", 7)
    monkeypatch.setattr(bulk, "READ_CONVERSATIONS", 4)
    sizes = [0, 3, 4, 7, 8, 14, 15, 1, 1, 1, 0, 30, 2]
    await bulk_store.store("alice", [whole(size) for size in sizes])
    await bulk_store.store("bob", [whole(2)])
    told = await contents(bulk_store, "alice")
    assert told == [(number, [f"message {seq}" for seq in range(1, size + 1)]) for number, size in enumerate(sizes, 1)]
    assert await contents(bulk_store, "alice", 4) == told[3:4]


async def test_a_read_is_of_one_moment(
    store: ConversationStore, bulk_store: BulkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "READ_MESSAGES", 2)
    await bulk_store.store("alice", [whole(3), whole(2)])
    told: list[ExportedConversation | Message] = []
    async for entry in bulk_store.read("alice"):
        if not told:
            for number in (1, 2):
                await store.append_message("alice", number, NewMessage(role="user", content="late"))
            await store.create_conversation("alice")
        told.append(entry)
    assert sum(isinstance(entry, ExportedConversation) for entry in told) == 2
    assert "late" not in {entry.content for entry in told if isinstance(entry, Message)}


async def test_a_foreign_conversation_cannot_be_read(bulk_store: BulkStore) -> None:
    theirs = whole(1)
    await bulk_store.store("bob", [theirs])
    for which in (theirs.id, 1):
        with pytest.raises(ConversationUnavailable):
            await anext(bulk_store.read("alice", which))


async def test_an_erased_user_leaves_nothing_and_others_lose_nothing(bulk_store: BulkStore, database_url: str) -> None:
    await bulk_store.store("alice", [whole(3), whole(0), whole(2)])
    await bulk_store.store("bob", [whole(4)])
    assert await bulk_store.count("alice") == Holdings(conversations=3, messages=5)
    assert await bulk_store.erase_user("alice") == Holdings(conversations=3, messages=5)
    assert await bulk_store.erase_user("alice") is None
    assert await bulk_store.count("alice") is None
    tables = "SELECT id AS user_id FROM chatledger.users"
    for table in ("conversations", "messages"):
        tables += f" UNION ALL SELECT user_id FROM chatledger.{table}"
    owners = [row["user_id"] for row in await asyncio.to_thread(run_sql, database_url, tables)]
    assert owners == ["bob"] * 6
