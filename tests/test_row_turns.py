"""Calls that change one row take turns, so that a row which is held never has all connections of a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from chatledger.storage import ConversationStore, NewMessage, connection_queue, row_turns
from chatledger.storage.connection_queue import ConnectionQueue
from chatledger.storage.errors import Unavailable
from chatledger.storage.row_turns import RowTurns
from tests.driver import connect
from tests.patience import PATIENCE

HELLO = NewMessage(role="user", content="hello")
ROW, OTHER = ("alice", 1), ("alice", 2)


def at_most(each: int) -> RowTurns:
    """So many turns at each row, for calls at two connections."""
    return RowTurns(each, ConnectionQueue(2))


async def started(turns: RowTurns, number: int) -> list[asyncio.Task[None]]:
    """So many calls that ask for a turn at the row, in this order; each has come as far as it can."""
    tasks = [asyncio.create_task(turns.take(ROW)) for _ in range(number)]
    await asyncio.sleep(0)
    return tasks


async def test_a_row_has_so_many_turns_at_once_and_the_others_come_in_order() -> None:
    turns = at_most(2)
    calls = await started(turns, 5)
    assert [call.done() for call in calls] == [True, True, False, False, False]
    await asyncio.wait_for(turns.take(OTHER), PATIENCE)
    for served in (3, 4, 5):
        turns.give(ROW)
        await asyncio.wait_for(calls[served - 1], PATIENCE)
        assert sum(call.done() for call in calls) == served


async def test_who_waits_long_for_a_row_is_told_that_nothing_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_turns, "HELD_SECONDS", 0.05)
    turns = at_most(1)
    await turns.take(ROW)
    with pytest.raises(Unavailable, match="held by other calls"):
        await turns.take(ROW)
    turns.give(ROW)
    await asyncio.wait_for(turns.take(ROW), PATIENCE)


async def test_who_waits_long_behind_others_that_have_their_turns_is_not_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(row_turns, "HELD_SECONDS", 0.5)
    turns = at_most(1)
    calls = await started(turns, 8)
    for call in calls:
        await asyncio.wait_for(call, PATIENCE)
        await asyncio.wait(calls, timeout=0.25)  # in all four times as long as a row may be held
        turns.give(ROW)
    assert (turns._turns, turns._waiting, turns._moved) == ({}, {}, {})


async def test_a_row_that_nobody_changes_is_forgotten() -> None:
    turns = at_most(1)
    calls = await started(turns, 3)
    for call in calls:
        await asyncio.wait_for(call, PATIENCE)
        turns.give(ROW)
    assert (turns._turns, turns._waiting) == ({}, {})
    await asyncio.wait_for(turns.take(ROW), PATIENCE)


async def test_a_call_that_is_cancelled_takes_no_turn_with_it() -> None:
    turns = at_most(1)
    _, passed_over, given_up, next_one = await started(turns, 4)
    passed_over.cancel()
    await asyncio.wait([passed_over])
    turns.give(ROW)
    given_up.cancel()  # at the moment when its turn comes
    await asyncio.wait([given_up])
    assert passed_over.cancelled()
    assert given_up.cancelled()
    await asyncio.wait_for(next_one, PATIENCE)
    turns.give(ROW)
    assert (turns._turns, turns._waiting) == ({}, {})


async def test_no_more_calls_wait_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_queue, "WAITING", 1)
    turns = at_most(1)
    _, waiting = await started(turns, 2)
    with pytest.raises(Unavailable, match="all connections"):
        await turns.take(ROW)
    turns.give(ROW)
    await asyncio.wait_for(waiting, PATIENCE)


async def test_who_waits_for_a_row_is_told_when_all_connections_are_stuck_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection_queue, "STALLED_SECONDS", 0.05)
    queue = ConnectionQueue(2)
    turns = RowTurns(1, queue)
    await queue.take()
    _, waiting = await started(turns, 2)
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()
    await queue.take()
    with pytest.raises(Unavailable, match="all connections"):
        await asyncio.wait_for(waiting, PATIENCE)


async def append(store: ConversationStore, user: str) -> None:
    await store.append_messages(user, 1, [HELLO])


async def create(store: ConversationStore, user: str) -> None:
    await store.create_conversation(user)


@pytest.mark.parametrize(
    ("change", "held"),
    [(append, "conversations WHERE user_id = 'alice'"), (create, "users WHERE id = 'alice'")],
    ids=["a conversation", "a user"],
)
async def test_a_row_that_another_process_holds_leaves_connections_to_other_calls(
    store: ConversationStore,
    database_url: str,
    change: Callable[[ConversationStore, str], Coroutine[Any, Any, None]],
    held: str,
) -> None:
    for user in ("alice", "bob"):
        await store.create_conversation(user)
    blocker = await connect(database_url)
    try:
        await blocker.execute("BEGIN")
        await blocker.execute(f"SELECT FROM chatledger.{held} FOR UPDATE")
        waiting = [asyncio.create_task(change(store, "alice")) for _ in range(30)]
        async with asyncio.timeout(PATIENCE):
            while store.database.connections()[0] < 5:
                await asyncio.sleep(0.01)
            await asyncio.gather(*(change(store, "bob") for _ in range(30)))
        assert not any(call.done() for call in waiting)
    finally:
        await blocker.close()
    await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE)
    assert store.database.connections()[0] == 0
