"""Conversations are created, listed, updated, forked and deleted by their owner, each step whole and for good."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from chatledger.storage import ConversationStore, Limits, NewMessage
from chatledger.storage.errors import (
    ConversationUnavailable,
    InvalidArgument,
    InvalidCursor,
    QuotaExceeded,
    TooLarge,
    too_many_conversations,
)
from chatledger.storage.records import Conversation, ConversationRef, ForkOrigin
from tests.conftest import run_sql

HELLO = NewMessage(role="user", content="hello")


async def sql(url: str, *statements: str) -> list[Any]:
    return await asyncio.to_thread(run_sql, url, *statements)


async def made(store: ConversationStore, user: str = "alice", **arguments: Any) -> Conversation:
    return (await store.create_conversation(user, **arguments))[0]


async def walk(store: ConversationStore, user: str = "alice", **arguments: Any) -> list[Conversation]:
    """All of a list, page by page."""
    found: list[Conversation] = []
    page = await store.list_conversations(user, **arguments)
    while True:
        found += [entry.conversation for entry in page.conversations]
        if page.next_cursor is None:
            return found
        assert len(page.conversations) == arguments.get("limit", 20)
        page = await store.list_conversations(user, cursor=page.next_cursor, **arguments)


async def test_a_new_conversation_holds_what_was_given_and_nothing_else(store: ConversationStore) -> None:
    title, metadata = "<b>ünïcode</b> \u202e\x1b[0m", {"big": 1e23, "deep": {"a": [None, True, -0.5]}, "__proto__": "x"}
    conversation, created = await store.create_conversation("alice", title=title, metadata=metadata, key="k")
    assert created
    assert (conversation.title, conversation.metadata, conversation.key) == (title, metadata, "k")
    assert (conversation.number, conversation.message_count, conversation.archived) == (1, 0, False)
    assert conversation.forked_from is None
    assert conversation.id.version == 7
    assert conversation.created_at == conversation.updated_at
    assert abs(datetime.now(UTC) - conversation.created_at) < timedelta(minutes=1)
    bare = await made(store)
    assert (bare.title, bare.metadata, bare.key, bare.number) == (None, None, None, 2)
    assert await walk(store) == [bare, conversation]
    assert await walk(store, "bob") == []


async def test_numbers_count_for_each_user_and_are_never_given_out_again(store: ConversationStore) -> None:
    assert [(await made(store)).number for _ in range(3)] == [1, 2, 3]
    assert (await made(store, "bob")).number == 1
    for number in (3, 1):
        await store.delete_conversation("alice", number)
    assert (await made(store)).number == 4
    assert [conversation.number for conversation in await walk(store)] == [4, 2]


async def test_a_key_is_made_once_and_gives_the_same_conversation_ever_after(store: ConversationStore) -> None:
    first = await made(store, key="daily", title="first", metadata={"a": 1})
    again, created = await store.create_conversation("alice", key="daily", title="second", metadata={"b": 1})
    assert (again, created) == (first, False)
    assert await store.get_or_create_conversation("alice", "daily") == first
    assert (await made(store, key="Daily")).id != first.id
    bobs, created = await store.create_conversation("bob", key="daily")
    assert created
    assert bobs.id != first.id
    await store.delete_conversation("alice", first.id)
    after, created = await store.create_conversation("alice", key="daily")
    assert (created, after.number, after.title) == (True, 3, None)


async def test_a_key_that_many_ask_for_at_once_is_one_conversation(database_url: str) -> None:
    stores = [ConversationStore.at(database_url) for _ in range(4)]
    for key in ("daily", "weekly"):
        answers = await asyncio.gather(*(stores[n % 4].create_conversation("alice", key=key) for n in range(20)))
        assert len({conversation.id for conversation, _ in answers}) == 1
        assert [created for _, created in answers].count(True) == 1
    assert await sql(database_url, "SELECT last_number, conversation_count FROM chatledger.users") == [(2, 2)]
    await asyncio.gather(*(store.aclose() for store in stores))


async def test_what_is_out_of_bounds_creates_nothing(store: ConversationStore) -> None:
    for title, key in (("", "k"), ("x" * 201, "k"), ("\x00", "k"), ("x", ""), ("x", "é" * 129)):
        with pytest.raises(InvalidArgument):
            await store.create_conversation("alice", title=title, key=key)
    assert (await made(store, key="é" * 128, title="😀" * 200)).number == 1


async def test_a_walk_shows_everything_once_even_where_times_are_equal(
    store: ConversationStore, database_url: str
) -> None:
    everything = [(await made(store)).id for _ in range(25)]
    await made(store, "bob")
    await sql(database_url, "UPDATE chatledger.conversations SET updated_at = date_trunc('hour', now())")
    await sql(database_url, "UPDATE chatledger.conversations SET updated_at = now() WHERE number % 5 = 0")
    for limit in (1, 7, 25, 100):
        found = await walk(store, limit=limit)
        assert sorted(conversation.id for conversation in found) == sorted(everything)
        places = [(conversation.updated_at, conversation.id) for conversation in found]
        assert places == sorted(places, reverse=True)


async def test_what_stands_still_during_a_walk_is_neither_skipped_nor_shown_twice(store: ConversationStore) -> None:
    everything = [(await made(store)).id for _ in range(20)]
    moving = everything[::3]
    still = sorted(set(everything) - set(moving))
    page = await store.list_conversations("alice", limit=3)
    shown = [entry.conversation.id for entry in page.conversations]
    while page.next_cursor is not None:
        if moving:
            await store.append_message("alice", moving.pop(), HELLO)
        page = await store.list_conversations("alice", limit=3, cursor=page.next_cursor)
        shown += [entry.conversation.id for entry in page.conversations]
    assert sorted(seen for seen in shown if seen in still) == still


async def test_a_list_is_filtered_by_title_time_and_archive(store: ConversationStore) -> None:
    titles = ["100% sure", "snake_case", r"C:\temp", "Grüße", None, "snakeXcase", "100 percent"]
    for title in titles:
        await made(store, title=title)
    await made(store, "bob", title="100% bob's")

    async def titled(text: str) -> set[str | None]:
        return {conversation.title for conversation in await walk(store, title_contains=text, limit=2)}

    assert await titled("%") == {"100% sure"}
    assert await titled("_") == {"snake_case"}
    assert await titled("\\") == {r"C:\temp"}
    assert await titled("SNAKE") == {"snake_case", "snakeXcase"}
    assert await titled("grÜß") == {"Grüße"}
    assert await titled("bob") == await titled("%%") == await titled("' OR true --") == set()
    times = [conversation.updated_at for conversation in await walk(store)]
    assert len(await walk(store, updated_after=times[3])) == 3
    assert len(await walk(store, updated_before=times[3])) == 3
    assert [found.updated_at for found in await walk(store, updated_after=times[4], updated_before=times[2])] == [
        times[3]
    ]
    await store.update_conversation("alice", 2, archived=True)
    assert await titled("snake") == {"snakeXcase"}
    assert [found.archived for found in await walk(store, include_archived=True)] == [True] + [False] * 6


async def test_a_preview_is_the_beginning_of_the_latest_text(store: ConversationStore) -> None:
    async def preview() -> str | None:
        return (await store.list_conversations("alice")).conversations[0].preview

    conversation = await made(store)
    assert await preview() is None
    await store.append_message("alice", conversation.id, replace(HELLO, content="😀" * 200))
    assert await preview() == "😀" * 160
    call = NewMessage(role="assistant", tool_calls=[{"id": "1"}])
    await store.append_messages("alice", conversation.id, [call] * 7)
    assert await preview() == "😀" * 160
    await store.append_message("alice", conversation.id, call)
    assert await preview() is None, "it is looked for in the last eight messages"


async def test_a_cursor_is_for_its_user_and_its_filters_alone(store: ConversationStore) -> None:
    for user in ("alice", "bob"):
        for title in ("tea", "tea", "milk"):
            await made(store, user, title=title)
    cursor = (await store.list_conversations("alice", limit=1)).next_cursor
    assert cursor is not None
    now = {"updated_after": datetime.now(UTC)}
    others: list[dict[str, Any]] = [{"title_contains": "tea"}, {"include_archived": True}, now]
    for user, filters in [("bob", {}), *(("alice", other) for other in others)]:
        with pytest.raises(InvalidCursor):
            await store.list_conversations(user, cursor=cursor, **filters)
    for broken in ("", "x", "é", cursor[:-1], cursor + "A", cursor * 200, cursor[::-1], cursor.swapcase()):
        with pytest.raises(InvalidCursor):
            await store.list_conversations("alice", cursor=broken)
    assert len((await store.list_conversations("alice", cursor=cursor, limit=100)).conversations) == 2


async def test_an_update_changes_what_is_given_and_merges_metadata(store: ConversationStore) -> None:
    before = await made(store, title="old", metadata={"a": 1, "b": {"c": 2}}, key="k")
    assert await store.update_conversation("alice", before.id) == before
    after = await store.update_conversation("alice", 1, metadata={"a": None, "b": {"d": 3}, "e": 4, "gone": None})
    assert after.metadata == {"b": {"d": 3}, "e": 4}
    assert after == replace(before, metadata=after.metadata, updated_at=after.updated_at)
    assert after.updated_at > before.updated_at
    assert (await store.update_conversation("alice", before.number, title="new")).title == "new"
    assert (await store.update_conversation("alice", before.id, archived=True)).archived
    again = await store.update_conversation("alice", before.id, archived=True)
    assert (again.archived, again.title, again.metadata) == (True, "new", after.metadata)
    emptied = await store.update_conversation("alice", before.id, metadata={"b": None, "e": None})
    assert (emptied.metadata, emptied.archived) == ({}, True)
    assert not (await store.update_conversation("alice", before.id, archived=False)).archived


async def test_metadata_that_grows_over_its_limit_by_a_merge_is_refused_whole(store: ConversationStore) -> None:
    before = await made(store, title="old", metadata={"a": "x" * 10_000})
    for addition in ({"b": "y" * 10_000}, {"b": [1e308] * 2_000}):
        with pytest.raises(TooLarge, match="metadata is over its limit of 16,384 bytes"):
            await store.update_conversation("alice", before.id, title="new", metadata=addition)
    assert await walk(store) == [before]
    swapped = await store.update_conversation("alice", before.id, metadata={"a": None, "b": "y" * 10_000})
    assert swapped.metadata == {"b": "y" * 10_000}


async def test_the_limit_of_metadata_is_that_of_compact_json_after_a_merge_too(store: ConversationStore) -> None:
    """jsonb prints spaces, half as much again where there are many small values; they do not count."""
    numbers = [1] * 8_000
    conversation = await made(store, metadata={"a": numbers})
    assert conversation.metadata == {"a": numbers}
    message = NewMessage(role="user", content="hello", metadata={"a": numbers, "b": {"c": "d, e"}})
    await store.append_message("alice", conversation.id, message)
    room = 16_384 - len('{"a":[') - len(",".join("1" * 8_000)) - len('],"b":""}')
    full = await store.update_conversation("alice", conversation.id, metadata={"b": "x" * room})
    assert full.metadata == {"a": numbers, "b": "x" * room}
    with pytest.raises(TooLarge):
        await store.update_conversation("alice", conversation.id, metadata={"b": "x" * (room + 1)})


async def test_the_time_of_an_update_never_runs_backwards(store: ConversationStore, database_url: str) -> None:
    conversation = await made(store)
    ahead = datetime.now(UTC) + timedelta(hours=1)
    await sql(database_url, f"UPDATE chatledger.conversations SET updated_at = '{ahead.isoformat()}'")
    assert (await store.update_conversation("alice", conversation.id, title="new")).updated_at == ahead
    assert (await store.fork_conversation("alice", conversation.id)).conversation.updated_at >= ahead


async def test_a_fork_is_a_copy_that_goes_its_own_way(store: ConversationStore) -> None:
    source = await made(store, title="old", metadata={"a": 1}, key="k")
    await store.append_messages("alice", source.id, [replace(HELLO, content=c, client_message_id=c) for c in "abcde"])
    originals = await store.get_chat_history("alice", source.id)
    fork = await store.fork_conversation("alice", source.id, at_seq=3)
    assert fork.messages_copied == fork.conversation.message_count == 3
    assert fork.conversation.forked_from == ForkOrigin(source.id, 3)
    assert (fork.conversation.title, fork.conversation.metadata) == ("old", {"a": 1})
    assert (fork.conversation.number, fork.conversation.key) == (2, None)
    copies = await store.get_chat_history("alice", fork.conversation.id)
    assert [copy._replace(id=None) for copy in copies] == [original._replace(id=None) for original in originals[:3]]
    assert not {copy.id for copy in copies} & {original.id for original in originals}
    known = replace(HELLO, content="b", client_message_id="b")
    repeat = await store.append_message("alice", fork.conversation.id, known)
    assert (repeat.seq, repeat.deduplicated) == (2, True)
    assert (await store.append_message("alice", fork.conversation.id, HELLO)).seq == 4
    assert await store.get_chat_history("alice", source.id) == originals
    whole = await store.fork_conversation("alice", source.number, title="new")
    assert (whole.messages_copied, whole.conversation.title) == (5, "new")
    await store.delete_conversation("alice", source.id)
    assert len(await store.get_chat_history("alice", whole.conversation.id)) == 5


async def test_a_fork_may_be_empty_and_not_longer_than_its_source(store: ConversationStore) -> None:
    source = await made(store)
    fork = await store.fork_conversation("alice", source.id)
    assert (fork.messages_copied, fork.conversation.forked_from) == (0, ForkOrigin(source.id, 0))
    for at_seq in (1, 2**63 - 1):
        with pytest.raises(InvalidArgument, match=r"^at_seq was beyond the conversation's last seq, which is 0 now"):
            await store.fork_conversation("alice", source.id, at_seq=at_seq)
    for at_seq in (0, -1, 2**63):
        with pytest.raises(InvalidArgument, match=r"^at_seq must be between 1"):
            await store.fork_conversation("alice", source.id, at_seq=at_seq)
    assert len(await walk(store)) == 2


async def test_a_deleted_conversation_is_gone_with_its_messages(store: ConversationStore, database_url: str) -> None:
    doomed, spared = await made(store), await made(store)
    await store.append_messages("alice", doomed.id, [HELLO] * 3)
    await store.append_messages("alice", spared.id, [HELLO] * 3)
    deletion = await store.delete_conversation("alice", doomed.id)
    assert (deletion.conversation_id, deletion.messages_deleted) == (doomed.id, 3)
    counts = "SELECT conversation_id, count(*) FROM chatledger.messages GROUP BY 1"
    assert await sql(database_url, counts) == [(spared.id, 3)]
    assert await sql(database_url, "SELECT last_number, conversation_count FROM chatledger.users") == [(2, 1)]


async def test_a_foreign_conversation_and_an_absent_one_are_refused_in_the_same_words(store: ConversationStore) -> None:
    bobs = await made(store, "bob", key="k", metadata={"a": 1})
    await store.append_message("bob", bobs.id, HELLO)
    await store.delete_conversation("alice", (await made(store)).id)
    before = await walk(store, "bob")
    absent: list[ConversationRef] = [uuid4(), 1, 0, -1, 2**63 - 1, 2**63, 10**30, -(10**30)]
    update, fork = store.update_conversation, store.fork_conversation
    operations: list[Callable[..., Awaitable[object]]] = [update, fork, store.delete_conversation, store.load_history]
    operations += [partial(update, title="x", metadata={"b": 1}, archived=True), partial(fork, at_seq=1)]
    for operation in operations:
        sentences = set()
        for ref in [bobs.id, *absent]:
            with pytest.raises(ConversationUnavailable) as refused:
                await operation("alice", ref)
            sentences.add((refused.value.message, str(refused.value.details)))
        assert len(sentences) == 1
    assert await walk(store, "bob") == before


async def test_a_quota_holds_however_many_ask_at_once(database_url: str) -> None:
    stores = [ConversationStore.at(database_url, Limits(max_conversations_per_user=3)) for _ in range(4)]
    answers = await asyncio.gather(
        *(stores[n % 4].create_conversation("alice", key=f"{n}") for n in range(20)), return_exceptions=True
    )
    refusals = [(type(answer), str(answer)) for answer in answers if isinstance(answer, BaseException)]
    assert refusals == [(QuotaExceeded, str(too_many_conversations(3)))] * 17
    first, *others = await walk(stores[0])
    assert {first.number, *(other.number for other in others)} == {1, 2, 3}
    assert (await stores[1].create_conversation("alice", key=first.key)) == (first, False)
    with pytest.raises(QuotaExceeded):
        await stores[1].fork_conversation("alice", first.id)
    assert (await made(stores[1], "bob")).number == 1
    await stores[2].delete_conversation("alice", first.id)
    assert (await made(stores[3])).number == 4
    await asyncio.gather(*(store.aclose() for store in stores))
