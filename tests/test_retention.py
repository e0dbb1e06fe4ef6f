"""Old conversations end only where somebody says so, whole, some at a time, and never one that is in use."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from chatledger.storage import ConversationStore, NewMessage, retention
from chatledger.storage.bulk import BulkStore
from chatledger.storage.bulk_queries import read_conversations
from chatledger.storage.errors import ConversationUnavailable
from chatledger.storage.records import Holdings
from chatledger.storage.retention import OldConversations, Retention
from tests.commands import Run
from tests.conftest import run_sql
from tests.driver import connect
from tests.patience import PATIENCE
from tests.test_bulk import whole

NOW = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)  # some hours later is the same day
OLD, NEW = NOW - timedelta(days=400), NOW - timedelta(days=10)
YEAR_AGO = NOW - timedelta(days=365)


async def populate(store: ConversationStore) -> None:
    """Of each of two users: 3 old conversations with 1, 2 and 3 messages, the second one archived, and a new one."""
    for user in ("alice", "bob"):
        made = [whole(length, created_at=OLD, updated_at=OLD + timedelta(hours=length)) for length in (1, 2, 3)]
        await BulkStore(store).store(user, [*made, whole(4, created_at=NEW, updated_at=NEW)])
    archive = "UPDATE chatledger.conversations SET archived_at = updated_at WHERE number = 2"
    await asyncio.to_thread(run_sql, store_url(store), archive)


def store_url(store: ConversationStore) -> str:
    return str(store.database.source._url)  # type: ignore[attr-defined]


async def numbers(store: ConversationStore, user: str) -> list[int]:
    page = await store.list_conversations(user, include_archived=True)
    return sorted(each.conversation.number for each in page.conversations)


async def find(store: ConversationStore, before: datetime, **how: Any) -> list[OldConversations]:
    return [each async for each in Retention(store).find(before, **how)]


async def test_what_is_old_is_found_user_by_user_and_nothing_changes(store: ConversationStore) -> None:
    await populate(store)
    first = OLD + timedelta(hours=1)
    assert await find(store, YEAR_AGO) == [("alice", 3, 6, first), ("bob", 3, 6, first)]
    assert await find(store, YEAR_AGO, user_id="bob") == [("bob", 3, 6, first)]
    archived = OLD + timedelta(hours=2)
    assert await find(store, YEAR_AGO, archived_only=True) == [("alice", 1, 2, archived), ("bob", 1, 2, archived)]
    assert await find(store, OLD) == []
    assert await find(store, YEAR_AGO, user_id="nobody") == []
    assert await find(store, first) == [], "exclusive: what was updated at that very moment is not older"
    for user in ("alice", "bob"):
        assert await numbers(store, user) == [1, 2, 3, 4]


async def test_users_are_found_over_any_number_of_pages(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "READ_USERS", 2)
    users = [f"user-{number}" for number in range(5)]
    for user in users:
        await BulkStore(store).store(user, [whole(1, created_at=OLD, updated_at=OLD)])
    assert [each.user_id for each in await find(store, YEAR_AGO)] == users


async def test_deleting_spares_the_new_and_the_other_user_and_counts_what_it_did(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "DELETE_CONVERSATIONS", 2)
    await populate(store)
    steps = [step async for step in Retention(store).delete("alice", YEAR_AGO)]
    assert steps == [Holdings(2, 3), Holdings(1, 3)], "the oldest first, two at a time"
    assert (await numbers(store, "alice"), await numbers(store, "bob")) == ([4], [1, 2, 3, 4])
    counts = "SELECT id, conversation_count, last_number FROM chatledger.users ORDER BY id"
    rows = await asyncio.to_thread(run_sql, store_url(store), counts)
    assert [tuple(row) for row in rows] == [("alice", 1, 4), ("bob", 4, 4)]
    left = "SELECT count(*) FROM chatledger.messages WHERE user_id = 'alice'"
    assert (await asyncio.to_thread(run_sql, store_url(store), left))[0][0] == 4
    assert [step async for step in Retention(store).delete("alice", YEAR_AGO)] == []
    assert (await store.create_conversation("alice"))[0].number == 5, "a number is never given twice"


async def test_archived_only_leaves_what_is_not(store: ConversationStore) -> None:
    await populate(store)
    assert [step async for step in Retention(store).delete("alice", YEAR_AGO, archived_only=True)] == [Holdings(1, 2)]
    assert await numbers(store, "alice") == [1, 3, 4]


async def test_what_is_being_written_to_is_neither_deleted_nor_waited_for(
    store: ConversationStore, database_url: str
) -> None:
    await populate(store)
    writer = await connect(database_url)
    try:
        async with asyncio.timeout(PATIENCE), writer.transaction():
            touch = "UPDATE chatledger.conversations SET updated_at = now() WHERE user_id = 'alice' AND number = 1"
            await writer.execute(touch)
            assert [step async for step in Retention(store).delete("alice", YEAR_AGO)] == [Holdings(2, 5)]
    finally:
        await writer.close()
    assert await numbers(store, "alice") == [1, 4]
    assert [step async for step in Retention(store).delete("alice", YEAR_AGO)] == []


async def test_appends_to_old_conversations_meanwhile_are_stored_or_refused_and_never_lost(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "DELETE_CONVERSATIONS", 3)
    await BulkStore(store).store("alice", [whole(1, created_at=OLD, updated_at=OLD) for _ in range(60)])
    outcome: dict[int, bool] = {}

    async def write(number: int) -> None:
        try:
            await store.append_message("alice", number, NewMessage(role="user", content="still here"))
            outcome[number] = True
        except ConversationUnavailable:
            outcome[number] = False

    async def delete() -> int:
        return sum([step.conversations async for step in Retention(store).delete("alice", YEAR_AGO)])

    async with asyncio.timeout(PATIENCE):
        deleting = asyncio.create_task(delete())
        await asyncio.gather(*(write(number) for number in range(60, 0, -1)))
        deleted = await deleting + await delete()
    kept = sorted(number for number, stored in outcome.items() if stored)
    found = await store.database.read(read_conversations("alice", after_number=0, limit=100))
    assert sorted(row["number"] for row in found if row["last_seq"] == 2) == kept
    assert deleted + len(found) == 60


async def test_the_cutoff_is_by_the_databases_clock(store: ConversationStore) -> None:
    found = await Retention(store).cutoff(timedelta(days=365))
    assert abs(found - (datetime.now(UTC) - timedelta(days=365))) < timedelta(minutes=5)


@pytest.fixture
def run(run: Run, database_url: str) -> Run:
    """Runs `chatledger retention …` on the store of `populate`."""

    async def fill() -> None:
        async with ConversationStore.at(database_url) as store:
            await populate(store)

    asyncio.run(fill())

    return partial(run, "retention")


def test_the_command_shows_first_and_deletes_only_with_yes(run: Run) -> None:
    code, out, err = run("--older-than", "365d")
    assert code == 0
    assert out.startswith("6 conversations with 12 messages of 2 users are not updated since ")
    assert out.endswith(f", the oldest from {OLD:%Y-%m-%d}\n")
    assert err == "nothing was changed; with --yes they are deleted, for good\n"
    assert run("--older-than", "365d")[1][:40] == out[:40]
    code, out, err = run("--older-than", "365d", "--archived-only", "--user", "alice", "--by-user", "--yes")
    assert (code, err) == (0, "")
    by_user, in_all, deleted = out.splitlines()
    assert by_user == f"'alice': 1 conversations, 2 messages, from {OLD:%Y-%m-%d} on"
    assert in_all.startswith("1 conversations with 2 messages of 1 users are archived and not updated since ")
    assert deleted == "deleted 1 conversations, 2 messages"
    code, out, _ = run("--older-than", f"{YEAR_AGO:%Y-%m-%d}", "--yes")
    assert (code, out.splitlines()[-1]) == (0, "deleted 5 conversations, 10 messages")
    code, out, err = run("--older-than", "365d")
    assert (code, out[:43], err) == (0, "0 conversations with 0 messages of 0 users ", "")


@pytest.mark.parametrize("age", ["0d", "365", "-1d", "36501d", "1y", "yesterday", "2999-01-01", "", "1e3d", "²d"])
def test_an_age_that_is_none_is_refused_before_anything_is_looked_at(run: Run, age: str) -> None:
    code, out, err = run(f"--older-than={age}", "--yes")
    assert (code, out) == (2, "")
    assert "argument --older-than: must be" in err
    assert run("--older-than", "365d")[1].startswith("6 conversations")


def test_without_an_age_there_is_no_retention(run: Run) -> None:
    code, _, err = run("--yes")
    assert code == 2
    assert "--older-than" in err


def test_whoever_watches_sees_how_far_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, out, err = run("--older-than", "365d", "--yes")
    assert "conversations, " in err
    assert "%" in err
    assert "\x1b" not in out
    assert os.linesep in out
