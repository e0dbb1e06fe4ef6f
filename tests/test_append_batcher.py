"""Appends of many callers share statements, and nobody can tell: by an order, a refusal, a wait or a lost message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from chatledger.storage import ConversationStore, Limits, NewMessage, append_batcher
from chatledger.storage.errors import (
    ConversationUnavailable,
    IdempotencyConflict,
    QuotaExceeded,
    StorageError,
    Unavailable,
)
from chatledger.storage.query import Query
from chatledger.storage.records import ConversationRef, Receipt
from tests.driver import connect
from tests.patience import PATIENCE
from tests.wire_proxy import WireProxy

HELLO = NewMessage(role="user", content="hello")


class Counted:
    """Counts the statements that a store sends."""

    def __init__(self, store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements: list[str] = []
        write = store.database.write

        async def counting(query: Query, *, repeatable: bool) -> list[Any]:
            self.statements.append(query.sql)
            return await write(query, repeatable=repeatable)

        monkeypatch.setattr(store.database, "write", counting)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[ConversationStore]:
    """Open, with conversations 1 to 3 of alice's and of bob's."""
    async with ConversationStore.at(database_url) as opened:
        for user in ("alice", "bob"):
            for _ in range(3):
                await opened.create_conversation(user)
        yield opened


async def contents(store: ConversationStore, user: str, number: int = 1) -> list[str]:
    return [message.content for message in await store.get_chat_history(user, number)]


async def outcome(call: Any) -> Receipt | StorageError:
    try:
        receipt: Receipt = await call
    except StorageError as refused:
        return refused
    return receipt


async def test_callers_of_one_moment_share_a_statement_and_each_gets_its_own_receipt(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = {
        user: {n: (await store.load_history(user, n)).conversation.id for n in (1, 2, 3)} for user in ("alice", "bob")
    }
    counted = Counted(store, monkeypatch)
    calls: list[tuple[str, int, str, ConversationRef]] = []
    for n in range(60):
        user, number = ("alice", "bob")[n % 2], n % 3 + 1
        calls.append((user, number, f"{user} {number} {n}", number if n % 5 else ids[user][number]))
    receipts = await asyncio.gather(
        *(store.append_message(user, ref, replace(HELLO, content=text)) for user, _, text, ref in calls)
    )
    # A few go alone. Named in two ways a conversation has two lanes, and if these go in two statements at once, the one
    # that finds it locked leaves its messages for later (9 to 13 statements seen).
    assert len(counted.statements) <= 20
    for user in ids:
        for number in ids[user]:
            mine = [(r, c[2]) for r, c in zip(receipts, calls, strict=True) if c[:2] == (user, number)]
            found = (await store.load_history(user, number, detail="full")).messages
            assert [message.seq for message in found] == list(range(1, 11))
            stored = {(message.seq, message.id, message.created_at, message.content) for message in found}
            assert stored == {(r.seq, r.id, r.created_at, text) for r, text in mine}
            times = [message.created_at for message in found]
            assert times == sorted(times)


async def test_a_lone_caller_has_a_statement_of_its_own(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(store, monkeypatch)
    for _ in range(3):
        await store.append_message("alice", 1, HELLO)
    assert len(counted.statements) == 3
    assert not any("SKIP LOCKED" in sql for sql in counted.statements)


async def test_what_is_refused_is_refused_alone_and_says_why(database_url: str) -> None:
    limits = Limits(max_messages_per_conversation=2, max_content_chars=2_000_000)
    async with ConversationStore.at(database_url, limits) as store:
        for user in ("alice", "bob"):
            for _ in range(3):
                await store.create_conversation(user)
        await store.append_message("alice", 2, replace(HELLO, client_message_id="used"))
        calls = [
            *(outcome(store.append_message("bob", 1, HELLO)) for _ in range(3)),  # the quota is two
            outcome(store.append_message("bob", 2, HELLO)),
            outcome(store.append_message("alice", 9, HELLO)),
            outcome(store.append_message("carol", 1, HELLO)),
            outcome(store.append_message("alice", 2, replace(HELLO, content="other", client_message_id="used"))),
            outcome(store.append_message("alice", 2, replace(HELLO, client_message_id="used"))),
            outcome(store.append_message("alice", 3, replace(HELLO, content="x" * 1_000_001))),  # the database's limit
            outcome(store.append_message("alice", 1, HELLO)),
        ]
        *quota, second, absent, stranger, conflict, repeat, long, last = await asyncio.gather(*calls)
        assert sorted(type(end).__name__ for end in quota) == ["QuotaExceeded", "Receipt", "Receipt"]
        assert any(isinstance(end, QuotaExceeded) for end in quota)
        assert isinstance(second, Receipt)
        assert isinstance(absent, ConversationUnavailable)
        assert isinstance(stranger, ConversationUnavailable)
        assert str(absent) == str(stranger)
        assert isinstance(conflict, IdempotencyConflict)
        assert isinstance(repeat, Receipt)
        assert repeat.deduplicated
        assert isinstance(long, StorageError)
        assert long.code == "content_too_long"
        assert isinstance(last, Receipt)
        assert [len(await contents(store, "bob", n)) for n in (1, 2, 3)] == [2, 1, 0]
        assert [len(await contents(store, "alice", n)) for n in (1, 2, 3)] == [1, 1, 0]


async def test_a_conversation_that_another_writer_holds_keeps_nobody_else_waiting(
    store: ConversationStore, database_url: str
) -> None:
    blocker = await connect(database_url)
    try:
        await blocker.execute(
            "BEGIN; SELECT FROM chatledger.conversations WHERE user_id = 'alice' AND number = 1 FOR NO KEY UPDATE"
        )
        held = [asyncio.create_task(store.append_message("alice", 1, HELLO)) for _ in range(3)]
        await asyncio.wait_for(asyncio.gather(*(store.append_message("bob", 1, HELLO) for _ in range(20))), PATIENCE)
        assert not any(task.done() for task in held)
    finally:
        await blocker.close()
    assert sorted(receipt.seq for receipt in await asyncio.gather(*held)) == [1, 2, 3]


@pytest.mark.parametrize("more", [0, 8], ids=["each alone", "in one batch"])
async def test_what_follows_on_a_conversation_does_not_wait_for_a_held_one_that_went_with_it(
    store: ConversationStore, database_url: str, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(append_batcher, "PLACE_SECONDS", 60.0)
    keyed = replace(HELLO, client_message_id="one")  # two with one key never go together: the second follows
    blocker = await connect(database_url)
    try:
        await blocker.execute(
            "BEGIN; SELECT FROM chatledger.conversations WHERE user_id = 'alice' AND number = 1 FOR NO KEY UPDATE"
        )
        others = [store.append_message("bob", 3, HELLO)]  # alone, and the rest is gathered behind it
        held = store.append_message("alice", 1, HELLO)
        others += [store.append_message("bob", 1, keyed) for _ in range(2)]
        others += [store.append_message("bob", 2, HELLO) for _ in range(more)]
        first, *rest = (asyncio.create_task(call) for call in (others[0], held, *others[1:]))
        await asyncio.wait_for(asyncio.gather(first, *rest[1:]), PATIENCE)
        assert not rest[0].done()
    finally:
        await blocker.close()
    assert (await rest[0]).seq == 1


async def test_one_key_sent_many_times_at_one_moment_is_one_message(store: ConversationStore) -> None:
    keyed = [replace(HELLO, content=f"message {n % 4}", client_message_id=f"key {n % 4}") for n in range(40)]
    receipts = await asyncio.gather(*(store.append_message("alice", 1, message) for message in keyed))
    for n in range(4):
        assert len({(receipt.seq, receipt.id) for receipt in receipts[n::4]}) == 1
        assert sum(not receipt.deduplicated for receipt in receipts[n::4]) == 1
    assert len(await contents(store, "alice")) == 4


async def test_a_caller_that_is_cancelled_before_its_message_was_sent_leaves_nothing_behind(
    store: ConversationStore,
) -> None:
    calls = [asyncio.create_task(store.append_message("alice", 1, replace(HELLO, content=str(n)))) for n in range(20)]
    await asyncio.sleep(0)  # all of them wait now, but for the first
    for call in calls[1::2]:
        call.cancel()
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(end, asyncio.CancelledError) for end in ended] == [False, True] * 10
    assert sorted(await contents(store, "alice"), key=int) == [str(n) for n in range(0, 20, 2)]


async def test_a_caller_that_is_cancelled_afterwards_has_its_message_stored(
    store: ConversationStore, database_url: str
) -> None:
    calls = [asyncio.create_task(store.append_message("alice", 1, HELLO)) for _ in range(20)]
    while not store._batcher._tasks or store._batcher._ready:
        await asyncio.sleep(0)
    for call in calls[10:]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    await store.aclose()
    async with ConversationStore.at(database_url) as reopened:
        assert len(await contents(reopened, "alice")) == 20


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_connection_that_breaks_leaves_each_message_stored_once_at_most_and_keyed_ones_stored(
    database_url: str, moment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.storage.engine.PAUSES", (0.01, 0.02))
    async with WireProxy(database_url) as proxy, ConversationStore.at(proxy.url) as store:
        await store.create_conversation("alice")
        blocker = asyncio.create_task(store.append_message("alice", 1, replace(HELLO, content="first")))
        messages = [replace(HELLO, content=str(n), client_message_id=f"key {n}" if n % 2 else None) for n in range(20)]
        calls = [asyncio.create_task(outcome(store.append_message("alice", 1, message))) for message in messages]
        await blocker
        proxy.cut(moment)
        ended = await asyncio.gather(*calls)
        stored = await contents(store, "alice")
        for n, end in enumerate(ended):
            if isinstance(end, Receipt):
                assert stored.count(str(n)) == 1
            else:
                assert isinstance(end, Unavailable)
                assert n % 2 == 0, "what has a key was sent again inside the call"
                assert stored.count(str(n)) <= 1
        assert len(stored) == len(set(stored))


async def test_no_more_messages_wait_than_may(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_batcher, "WAITING_MESSAGES", 5)
    ended = await asyncio.gather(*(outcome(store.append_message("alice", 1, HELLO)) for _ in range(10)))
    assert sum(isinstance(end, Receipt) for end in ended) == 6
    assert all(isinstance(end, Receipt | Unavailable) for end in ended)
    monkeypatch.setattr(append_batcher, "WAITING_CHARS", 20)
    ended = await asyncio.gather(*(outcome(store.append_message("bob", 1, HELLO)) for _ in range(10)))
    assert 2 <= sum(isinstance(end, Receipt) for end in ended) < 5
    assert store._batcher._chars == 0
    assert len(await contents(store, "alice")) == 6


async def test_no_batch_is_larger_than_it_may_be(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_batcher, "LARGEST", 8)
    monkeypatch.setattr(append_batcher, "BATCH_CHARS", 100)
    counted = Counted(store, monkeypatch)
    await asyncio.gather(*(store.append_message("alice", 1, HELLO) for _ in range(33)))
    assert len(counted.statements) == 5
    await asyncio.gather(*(store.append_message("bob", 1, replace(HELLO, content="x" * 60)) for _ in range(9)))
    assert len(counted.statements) == 14
    assert [len(await contents(store, user)) for user in ("alice", "bob")] == [33, 9]


async def test_the_answers_behind_one_that_waits_are_not_kept(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = store._batcher
    monkeypatch.setattr(append_batcher, "MANY_ENDS", 10)
    batcher._many_ends = 10
    waiting = batcher._answer_in_time()
    for _ in range(500):
        batcher._answer_in_time().set_result([])
    assert len(batcher._ends) <= 21
    assert batcher._ends[0][1] is waiting
    async with batcher.closing():
        pass
    assert (len(batcher._ends), batcher._timer) == (0, None), "the next use may be on another loop"
