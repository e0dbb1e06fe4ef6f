"""A message is stored exactly as it was sent, once, at the end of its conversation; or refused with no effect."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatledger.storage import ConversationStore, Limits, NewMessage, StorageError, errors
from chatledger.storage.records import Conversation, ConversationRef, Message
from tests.conftest import run_sql

HELLO = NewMessage(role="user", content="hello")
KEYED = replace(HELLO, client_message_id="1")
WHOLE = NewMessage(
    role="tool",
    content="sunny",
    tool_calls=[{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    tool_call_id="c1",
    name="weather",
    parts=[{"type": "image", "url": "x"}],
    metadata={"a": {"b": [1, 2.5, None, True, "é"]}},
    client_message_id="whole",
)

EXACT = {
    "byte order mark": "\ufeffhello\ufeff",
    "line ends": "a\r\nb\rc\nd\u2028e\x85f",
    "composed and not": "é e\u0301 ﬁ Å Å",
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪",
    "white space at the ends": " \t\n hello \n\t ",
    "controls": "".join(map(chr, range(1, 32))) + "\x7f\x80",
    "bidirectional": "abc \u202e cba \u2066x\u2069",
    "noncharacters": "\ufffe\uffff\U0010ffff\ufdd0",
    "tags": "\U000e0041\U000e007f",
    "zero width alone": "\u200b",
    "sql": "x') OR '1'='1; DROP TABLE chatledger.messages; -- $1 %s {} \\",
    "json": '{"a": "\\u0000"}',
    "many marks": "Z" + "\u0321" * 4_000,
}


@pytest.fixture
async def alices(store: ConversationStore) -> Conversation:
    """Of alice, with two messages, beside one of bob's; its second number is no conversation of bob's."""
    await store.create_conversation("alice")
    made, _ = await store.create_conversation("alice")
    await store.create_conversation("bob")
    await store.append_messages("alice", made.id, [HELLO, KEYED])
    return await state(store, made.id)


async def state(store: ConversationStore, ref: ConversationRef, user: str = "alice") -> Conversation:
    return await store.update_conversation(user, ref)


async def stored(store: ConversationStore, ref: ConversationRef, user: str = "alice") -> list[Message]:
    return list((await store.load_history(user, ref, detail="full", max_tokens=200_000)).messages)


def as_sent(message: Message) -> NewMessage:
    fields = {name: getattr(message, name) for name in NewMessage.__dataclass_fields__}
    return NewMessage(**fields)


async def test_messages_are_numbered_from_one_without_a_gap(store: ConversationStore, alices: Conversation) -> None:
    receipts = [await store.append_message("alice", alices.id, HELLO) for _ in range(3)]
    receipts += await store.append_messages("alice", alices.number, [HELLO] * 3)
    assert [receipt.seq for receipt in receipts] == [3, 4, 5, 6, 7, 8]
    assert {(receipt.conversation_id, receipt.deduplicated) for receipt in receipts} == {(alices.id, False)}
    found = await stored(store, alices.id)
    assert [message.seq for message in found] == list(range(1, 9))
    assert [(message.id, message.created_at) for message in found[2:]] == [(r.id, r.created_at) for r in receipts]
    assert len({message.id for message in found}) == 8
    assert {receipt.id.version for receipt in receipts} == {7}
    assert (await store.add_message("bob", 1, "user", "hi", name="b")).seq == 1


async def test_an_append_moves_the_conversation_with_it(store: ConversationStore, alices: Conversation) -> None:
    receipt = await store.append_message("alice", alices.id, HELLO)
    after = await state(store, alices.id)
    assert after == replace(alices, message_count=3, updated_at=receipt.created_at)
    assert after.updated_at > alices.updated_at
    newest = (await store.list_conversations("alice")).conversations[0].conversation
    assert newest == after == (await store.load_history("alice")).conversation


async def test_text_comes_back_exactly_as_it_was_sent(store: ConversationStore) -> None:
    for name, content in EXACT.items():
        made, _ = await store.create_conversation("alice")
        sent = [replace(HELLO, content=content), replace(HELLO, content=content, metadata={content: [content]})]
        await store.append_message("alice", made.id, sent[0])
        await store.append_messages("alice", made.id, [sent[1]])
        found = await stored(store, made.id)
        assert [as_sent(message) for message in found] == sent, name
        assert [message.content.encode() for message in found] == [content.encode()] * 2, name


async def test_every_field_comes_back_as_it_was_sent(store: ConversationStore, alices: Conversation) -> None:
    sent = [replace(WHOLE, role=role, client_message_id=role) for role in ("user", "assistant", "system", "tool")]
    await store.append_message("alice", alices.id, sent[0])
    await store.append_messages("alice", alices.id, [*sent[1:], HELLO])
    assert [as_sent(message) for message in await stored(store, alices.id)] == [HELLO, KEYED, *sent, HELLO]
    empty = NewMessage(role="assistant", tool_calls=[], parts=[{}], metadata={})
    await store.append_message("alice", alices.id, empty)
    assert as_sent((await stored(store, alices.id))[-1]) == empty


REFUSED: list[tuple[str, type[StorageError], NewMessage]] = [
    ("empty", errors.ContentEmpty, replace(HELLO, content="")),
    (
        "blank",
        errors.ContentEmpty,
        replace(HELLO, content=" \u00a0\u2003\r\n\x1f", metadata={"a": 1}, tool_calls=[], parts=[]),
    ),
    ("too long", errors.ContentTooLong, replace(HELLO, content="é" * 10_001)),
    ("null", errors.InvalidArgument, replace(HELLO, content="a\x00")),
    ("surrogate", errors.InvalidArgument, replace(HELLO, content="\ud83d")),
    ("role", errors.InvalidArgument, replace(HELLO, role="User")),
    ("null in a key", errors.InvalidArgument, replace(HELLO, metadata={"\x00": 1})),
    ("surrogate in parts", errors.InvalidArgument, replace(HELLO, parts=[["\udfff"]])),
    ("null in tool calls", errors.InvalidArgument, replace(HELLO, tool_calls=[{"id": "\x00"}])),
    ("infinity", errors.InvalidArgument, replace(HELLO, metadata={"a": float("inf")})),
    ("huge integer", errors.InvalidArgument, replace(HELLO, parts=[2**53 + 1])),
    ("metadata", errors.TooLarge, replace(HELLO, metadata={"a": "x" * 16_384})),
    ("metadata once printed", errors.TooLarge, replace(HELLO, metadata={"a": [1e308] * 1_000})),
    ("parts", errors.TooLarge, replace(HELLO, parts=["x" * 262_144])),
    ("parts once printed", errors.TooLarge, replace(HELLO, parts=[1e308] * 30_000)),
    ("tool calls", errors.TooLarge, replace(HELLO, tool_calls=["x" * 262_144])),
    ("keys", errors.TooLarge, replace(HELLO, metadata={str(n): n for n in range(1_001)})),
    ("name", errors.InvalidArgument, replace(HELLO, name="n" * 129)),
    ("tool call id", errors.InvalidArgument, replace(HELLO, tool_call_id="n" * 257)),
    ("client message id", errors.InvalidArgument, replace(HELLO, client_message_id="é" * 129)),
    ("no client message id", errors.InvalidArgument, replace(HELLO, client_message_id="")),
    ("another body", errors.IdempotencyConflict, replace(KEYED, content="other")),
]


async def test_a_refused_message_changes_nothing(store: ConversationStore, alices: Conversation) -> None:
    for name, error, message in REFUSED:
        with pytest.raises(StorageError) as alone:
            await store.append_message("alice", alices.id, message)
        with pytest.raises(StorageError) as together:
            await store.append_messages("alice", alices.id, [HELLO, message, HELLO])
        for refused in (alone.value, together.value):
            assert type(refused) is error, name
            assert "hello" not in refused.message
        assert await state(store, alices.id) == alices, name
    assert len(await stored(store, alices.id)) == 2


async def test_what_is_exactly_at_its_limit_is_stored(store: ConversationStore, alices: Conversation) -> None:
    largest = NewMessage(
        role="assistant",
        content="😀" * 10_000,
        tool_calls=["x" * (262_144 - 4)],
        tool_call_id="é" * 256,
        name="é" * 128,
        parts=["x" * (262_144 - 4)],
        metadata={"a": "x" * (16_384 - 8)},
        client_message_id="😀" * 128,
    )
    await store.append_message("alice", alices.id, largest)
    assert as_sent((await stored(store, alices.id))[-1]) == largest


async def test_an_installation_narrows_what_is_taken(database_url: str) -> None:
    async with ConversationStore.at(database_url, Limits(max_content_chars=5, allowed_roles=("user",))) as store:
        await store.create_conversation("alice")
        assert (await store.append_message("alice", 1, HELLO)).seq == 1
        with pytest.raises(errors.ContentTooLong, match="has 6 characters; the limit is 5"):
            await store.append_message("alice", 1, replace(HELLO, content="hello!"))
        with pytest.raises(errors.InvalidArgument, match="one of user on this server"):
            await store.append_message("alice", 1, replace(HELLO, role="system"))


async def test_a_repeat_gives_the_first_receipt_for_ever(store: ConversationStore, alices: Conversation) -> None:
    first = await store.append_message("alice", alices.id, WHOLE)
    await store.append_messages("alice", alices.id, [HELLO] * 5)
    before = await state(store, alices.id)
    again = replace(WHOLE, metadata=dict(reversed((WHOLE.metadata or {}).items())))
    for ref in (alices.id, alices.number):
        assert await store.append_message("alice", ref, again) == replace(first, deduplicated=True)
        assert await store.append_messages("alice", ref, [again, again]) == [replace(first, deduplicated=True)] * 2
    assert await state(store, alices.id) == before


OTHERS: dict[str, Any] = {
    "role": "user",
    "content": "sunny ",
    "tool_calls": [{"id": "c2"}],
    "tool_call_id": "c2",
    "name": "Weather",
    "parts": [{"type": "image", "url": "y"}],
    "metadata": {"a": {"b": [1, 2.5, None, False, "é"]}},
}


async def test_a_repeat_with_one_field_changed_or_absent_is_a_conflict(store: ConversationStore) -> None:
    bare = NewMessage(role="tool", content="sunny", client_message_id="bare")
    await store.create_conversation("alice")
    await store.append_messages("alice", 1, [WHOLE, bare])
    before = await state(store, 1)
    changes: list[dict[str, Any]] = [{field: value} for field, value in OTHERS.items()]
    changed = [replace(message, **change) for message in (WHOLE, bare) for change in changes]
    changed += [replace(WHOLE, **{field: None}) for field in OTHERS if field not in ("role", "content")]  # type: ignore[arg-type]
    for message in changed:
        with pytest.raises(errors.IdempotencyConflict) as alone:
            await store.append_message("alice", 1, message)
        with pytest.raises(errors.IdempotencyConflict) as together:
            await store.append_messages("alice", 1, [HELLO, message])
        assert alone.value.message == together.value.message
    assert await state(store, 1) == before


async def test_an_id_belongs_to_its_conversation_and_its_user(store: ConversationStore, alices: Conversation) -> None:
    for user, number in (("alice", 1), ("bob", 1)):
        receipt = await store.append_message(user, number, replace(KEYED, content="other"))
        assert (receipt.seq, receipt.deduplicated) == (1, False)
    assert (await store.append_message("alice", alices.id, KEYED)).deduplicated


async def test_an_append_may_expect_a_last_seq(store: ConversationStore, alices: Conversation) -> None:
    for wrong in (0, 1, 3, 2**31, 2**63 - 1):
        with pytest.raises(errors.SequenceConflict, match="the conversation's last seq is 2,") as refused:
            await store.append_message("alice", alices.id, HELLO, expected_last_seq=wrong)
        assert (refused.value.last_seq, refused.value.details) == (2, {"last_seq": 2})
        with pytest.raises(errors.SequenceConflict, match="the conversation's last seq is 2,"):
            await store.append_messages("alice", 2, [HELLO, KEYED], expected_last_seq=wrong)
    for impossible in (-1, 2**63):
        with pytest.raises(errors.InvalidArgument, match=r"^expected_last_seq must be between 0"):
            await store.append_message("alice", alices.id, HELLO, expected_last_seq=impossible)
    assert await state(store, alices.id) == alices
    assert (await store.append_message("alice", alices.id, HELLO, expected_last_seq=2)).seq == 3
    repeat = await store.append_message("alice", alices.id, KEYED, expected_last_seq=0)
    assert (repeat.seq, repeat.deduplicated) == (2, True), "a repeat outranks the condition"
    assert [r.seq for r in await store.append_messages("alice", 2, [KEYED, KEYED], expected_last_seq=0)] == [2, 2]
    with pytest.raises(errors.IdempotencyConflict):
        await store.append_message("alice", alices.id, replace(KEYED, content="other"), expected_last_seq=0)


async def test_a_batch_adds_only_what_is_new(store: ConversationStore, alices: Conversation) -> None:
    a, b = (replace(HELLO, client_message_id=name, content=name) for name in "ab")
    receipts = await store.append_messages("alice", alices.id, [a, KEYED, HELLO, a, b, HELLO, KEYED])
    assert [(r.seq, r.deduplicated) for r in receipts] == [
        (3, False),
        (2, True),
        (4, False),
        (3, True),
        (5, False),
        (6, False),
        (2, True),
    ]
    assert receipts[3].id == receipts[0].id
    assert [m.content for m in await stored(store, alices.id)] == ["hello", "hello", "a", "hello", "b", "hello"]
    with pytest.raises(errors.IdempotencyConflict):
        await store.append_messages(
            "alice", alices.id, [replace(a, client_message_id="c"), replace(b, client_message_id="c")]
        )
    assert (await state(store, alices.id)).message_count == 6


async def test_a_batch_has_1_to_100_messages(store: ConversationStore, alices: Conversation) -> None:
    for size in (0, 101):
        with pytest.raises(errors.InvalidArgument, match=f"messages has {size} entries; it must have 1 to 100"):
            await store.append_messages("alice", alices.id, [HELLO] * size)
    receipts = await store.append_messages("alice", alices.id, [HELLO] * 100)
    assert [receipt.seq for receipt in receipts] == list(range(3, 103))
    assert len({receipt.created_at for receipt in receipts}) == 1


async def test_times_never_run_backwards(store: ConversationStore, alices: Conversation, database_url: str) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    force = f"UPDATE chatledger.conversations SET updated_at = '{ahead.isoformat()}'"
    await asyncio.to_thread(run_sql, database_url, force)
    receipts = [await store.append_message("alice", alices.id, HELLO)]
    receipts += await store.append_messages("alice", alices.id, [HELLO, HELLO])
    assert [receipt.created_at for receipt in receipts] == [ahead] * 3
    assert (await state(store, alices.id)).updated_at == ahead


async def test_foreign_and_absent_are_refused_alike(store: ConversationStore, alices: Conversation) -> None:
    absent: list[UUID | int] = [uuid4(), 2, 0, -1, 2**31, 2**63 - 1, 2**63, 10**40, -(10**40)]
    for expected in (None, 0, 2):
        sentences = set()
        for ref in [alices.id, *absent]:
            for messages in ([KEYED], [HELLO, KEYED]):
                with pytest.raises(errors.ConversationUnavailable) as refused:
                    await store.append_messages("bob", ref, messages, expected_last_seq=expected)
                sentences.add(refused.value.message)
            with pytest.raises(errors.ConversationUnavailable) as refused:
                await store.append_message("bob", ref, KEYED, expected_last_seq=expected)
            sentences.add(refused.value.message)
        assert len(sentences) == 1
    assert await state(store, alices.id) == alices
    assert await stored(store, 1, "bob") == []


async def test_a_conversation_takes_no_more_messages_than_it_may_have(database_url: str) -> None:
    allowed = Limits(max_messages_per_conversation=3)
    async with ConversationStore.at(database_url, allowed) as store:
        for user_id in ("alice", "bob"):
            await store.create_conversation(user_id)
        first = await store.append_message("alice", 1, NewMessage(role="user", content="1", client_message_id="k"))
        batch = [NewMessage(role="user", content=text) for text in "234"]
        for expected in (None, 1):
            with pytest.raises(errors.QuotaExceeded, match="at most 3 messages here, and this one has 1"):
                await store.append_messages("alice", 1, batch, expected_last_seq=expected)
        await store.append_messages("alice", 1, batch[:2])
        with pytest.raises(errors.QuotaExceeded):
            await store.append_message("alice", 1, NewMessage(role="user", content="4"))
        with pytest.raises(errors.SequenceConflict):
            await store.append_message("alice", 1, NewMessage(role="user", content="4"), expected_last_seq=1)
        with pytest.raises(errors.ConversationUnavailable):
            await store.append_message("alice", 2, NewMessage(role="user", content="4"))
        again = await store.append_message("alice", 1, NewMessage(role="user", content="1", client_message_id="k"))
        assert (again.id, again.deduplicated) == (first.id, True)
        assert (await store.append_message("bob", 1, NewMessage(role="user", content="1"))).seq == 1
