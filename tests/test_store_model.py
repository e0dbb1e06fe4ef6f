"""Two users do anything in any order, and the store says what a few lists in memory say."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.errors import (
    ConversationUnavailable,
    IdempotencyConflict,
    InvalidArgument,
    SequenceConflict,
    Unforeseen,
)
from chatledger.storage.query import Query
from chatledger.storage.records import Conversation, ConversationRef, Receipt

T = TypeVar("T")
NAMES = ("alice", "bob")
USERS = st.sampled_from(NAMES)
PICKS = st.sampled_from(range(8))  # evenly, unlike integers
TEXTS = st.sampled_from(["hello", " \ufeffé\r\n", "x" * 300])
TITLES = st.sampled_from(["tea", "50% milk", "Grüße"])
MESSAGES = st.builds(
    NewMessage,
    role=st.sampled_from(["user", "assistant", "system"]),
    content=TEXTS,
    client_message_id=st.none() | st.sampled_from("pqr"),
    metadata=st.none() | st.just({"a": 1}),
)
EXPECTED = st.none() | st.integers(0, 6)


@dataclass
class Kept:
    """What the model knows of a conversation."""

    id: UUID
    number: int
    title: str | None
    key: str | None
    touched: int
    metadata: dict[str, Any] | None = None
    archived: bool = False
    messages: list[NewMessage] = field(default_factory=list)
    receipts: list[tuple[int, UUID]] = field(default_factory=list)


class Model(RuleBasedStateMachine):
    """The store beside the lists. Each run has two users of its own, so that all share one database."""

    runner: ClassVar[asyncio.Runner]
    store: ClassVar[ConversationStore]

    def __init__(self) -> None:
        super().__init__()
        self.run_name = secrets.token_hex(4)
        self.clock = itertools.count()
        self.kept: dict[str, list[Kept]] = {user: [] for user in NAMES}
        self.numbers: dict[str, int] = dict.fromkeys(NAMES, 0)

    def do(self, work: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await work

        return self.runner.run(awaited())

    def refused(self, work: Awaitable[object], *errors: type[Exception]) -> None:
        with pytest.raises(errors):
            self.do(work)

    def name(self, user: str) -> str:
        return f"{user} {self.run_name}"

    def chosen(self, user: str, pick: int) -> tuple[ConversationRef, Kept | None]:
        """A conversation as `user` may name it: own by id or number, foreign by its id, or none at all."""
        own, foreign = self.kept[user], self.kept[NAMES[user == "alice"]]
        if pick >= 6:
            return (foreign[0].id if foreign and pick == 6 else uuid4()), None
        if not own:
            return self.numbers[user] + 1, None
        kept = own[pick // 2 % len(own)]
        return (kept.id if pick % 2 else kept.number), kept

    def same(self, found: Conversation, kept: Kept) -> None:
        assert (found.id, found.number, found.title, found.key) == (kept.id, kept.number, kept.title, kept.key)
        assert (found.metadata, found.archived, found.message_count) == (
            kept.metadata,
            kept.archived,
            len(kept.messages),
        )

    @initialize()
    def each_has_one(self) -> None:
        for user in NAMES:
            self.create(user, "tea", None)

    @rule(user=USERS, title=st.none() | TITLES, key=st.none() | st.sampled_from("kl"))
    def create(self, user: str, title: str | None, key: str | None) -> None:
        found, created = self.do(self.store.create_conversation(self.name(user), title=title, key=key))
        existing = next((kept for kept in self.kept[user] if key is not None and kept.key == key), None)
        assert created == (existing is None)
        if existing is None:
            self.numbers[user] += 1
            existing = Kept(found.id, self.numbers[user], title, key, next(self.clock))
            self.kept[user].append(existing)
        self.same(found, existing)

    @rule(
        user=USERS, pick=PICKS, batch=st.lists(MESSAGES, min_size=1, max_size=4), expect=EXPECTED, alone=st.booleans()
    )
    def append(self, user: str, pick: int, batch: list[NewMessage], expect: int | None, alone: bool) -> None:
        ref, kept = self.chosen(user, pick)
        batch = batch[:1] if alone else batch

        async def send() -> list[Receipt]:
            if alone:
                return [await self.store.append_message(self.name(user), ref, batch[0], expected_last_seq=expect)]
            return await self.store.append_messages(self.name(user), ref, batch, expected_last_seq=expect)

        after = list(kept.messages) if kept is not None else []
        by_id: dict[str | None, int] = {m.client_message_id: seq for seq, m in enumerate(after, 1)}
        by_id.pop(None, None)
        seqs: list[tuple[int, bool]] = []
        clash, count = False, len(after)
        for message in batch:
            seq = by_id.get(message.client_message_id)
            if seq is None:
                after.append(message)
                seq = len(after)
                if message.client_message_id:
                    by_id[message.client_message_id] = seq
            clash |= after[seq - 1] != message
            seqs.append((seq, seq <= count or seq in [earlier for earlier, _ in seqs]))
        if clash or kept is None:
            self.refused(
                send(), *([IdempotencyConflict] if clash else []), *([ConversationUnavailable] if kept is None else [])
            )
        elif len(after) > count and expect not in (None, count):
            self.refused(send(), SequenceConflict)
        else:
            receipts = self.do(send())
            assert [(receipt.seq, receipt.deduplicated) for receipt in receipts] == seqs
            assert {receipt.conversation_id for receipt in receipts} == {kept.id}
            if len(after) > count:
                kept.touched = next(self.clock)
            kept.messages = after
            kept.receipts += [(r.seq, r.id) for r in receipts if not r.deduplicated]
            assert all((receipt.seq, receipt.id) in kept.receipts for receipt in receipts)

    @rule(user=USERS, pick=PICKS, title=st.none() | TITLES, archived=st.none() | st.booleans(), value=st.none() | PICKS)
    def update(self, user: str, pick: int, title: str | None, archived: bool | None, value: int | None) -> None:
        ref, kept = self.chosen(user, pick)
        changes = {"a": None, "b": value} if value is not None else None
        work = self.store.update_conversation(self.name(user), ref, title=title, archived=archived, metadata=changes)
        if kept is None:
            return self.refused(work, ConversationUnavailable)
        found = self.do(work)
        if (title, archived, value) != (None, None, None):
            kept.touched = next(self.clock)
        kept.title = title or kept.title
        kept.archived = kept.archived if archived is None else archived
        kept.metadata = kept.metadata if value is None else {"b": value}
        return self.same(found, kept)

    @rule(user=USERS, pick=PICKS, at_seq=st.none() | st.integers(1, 6), title=st.none() | TITLES)
    def fork(self, user: str, pick: int, at_seq: int | None, title: str | None) -> None:
        ref, kept = self.chosen(user, pick)
        work = self.store.fork_conversation(self.name(user), ref, at_seq=at_seq, title=title)
        if kept is None:
            return self.refused(work, ConversationUnavailable)
        if at_seq is not None and at_seq > len(kept.messages):
            return self.refused(work, InvalidArgument)
        forked = self.do(work)
        self.numbers[user] += 1
        copy = replace(kept, id=forked.conversation.id, number=self.numbers[user], key=None, archived=False)
        copy.title, copy.touched = title or kept.title, next(self.clock)
        copy.messages = kept.messages[: len(kept.messages) if at_seq is None else at_seq]
        found = self.do(self.store.get_chat_history(self.name(user), copy.id))
        copy.receipts = [(message.seq, message.id) for message in found if message.id is not None]
        assert forked.messages_copied == len(copy.messages)
        self.kept[user].append(copy)
        return self.same(forked.conversation, copy)

    @rule(user=USERS, pick=PICKS)
    def delete(self, user: str, pick: int) -> None:
        ref, kept = self.chosen(user, pick)
        work = self.store.delete_conversation(self.name(user), ref)
        if kept is None:
            return self.refused(work, ConversationUnavailable)
        deletion = self.do(work)
        assert (deletion.conversation_id, deletion.messages_deleted) == (kept.id, len(kept.messages))
        self.kept[user].remove(kept)
        return self.refused(self.store.load_history(self.name(user), kept.id), ConversationUnavailable)

    @rule(user=USERS, pick=PICKS)
    def load(self, user: str, pick: int) -> None:
        ref, kept = self.chosen(user, pick)
        work = self.store.load_history(self.name(user), ref, detail="full")
        if kept is None:
            return self.refused(work, ConversationUnavailable)
        window = self.do(work)
        self.same(window.conversation, kept)
        assert [(m.role, m.content, m.metadata, m.client_message_id) for m in window.messages] == [
            (m.role, m.content, m.metadata, m.client_message_id) for m in kept.messages
        ]
        assert [(message.seq, message.id) for message in window.messages] == kept.receipts
        return None

    @invariant()
    def each_user_has_a_list_of_own_conversations_newest_first(self) -> None:
        for user in NAMES:
            newest = sorted(self.kept[user], key=lambda kept: kept.touched, reverse=True)
            page = self.do(self.store.list_conversations(self.name(user), include_archived=True, limit=100))
            for entry, kept in zip(page.conversations, newest, strict=True):
                self.same(entry.conversation, kept)
            shown = [kept for kept in newest if not kept.archived]
            if shown:
                self.same(self.do(self.store.load_history(self.name(user), limit=1)).conversation, shown[0])
            else:
                self.refused(self.store.load_history(self.name(user)), ConversationUnavailable)
            page = self.do(self.store.list_conversations(self.name(user), title_contains="%"))
            assert [entry.conversation.id for entry in page.conversations] == [
                k.id for k in shown if "%" in (k.title or "")
            ]


@pytest.fixture
def machine(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Model]]:
    with asyncio.Runner() as runner:
        store = ConversationStore.at(database_url)
        monkeypatch.setattr(Model, "runner", runner, raising=False)
        monkeypatch.setattr(Model, "store", store, raising=False)
        yield Model
        runner.run(store.aclose())


def test_the_store_does_what_the_model_does(machine: type[Model]) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None, database=None)
    )


async def test_a_statement_that_finds_rows_of_another_user_gives_nothing_away(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bobs, _ = await store.create_conversation("bob", key="k", title="tea")
    said = NewMessage(role="user", content="hello", client_message_id="1")
    await store.append_message("bob", bobs.id, said)
    for way in ("read", "write"):
        sent = getattr(store.database, way)

        def as_bob(query: Query, sent: Any = sent, **options: Any) -> Any:
            return sent(Query(query.sql, ("bob", *query.args[1:])), **options)

        monkeypatch.setattr(store.database, way, as_bob)
    operations: list[Awaitable[object]] = [
        store.create_conversation("alice", key="k"),
        store.list_conversations("alice"),
        store.load_history("alice", bobs.id),
        store.append_message("alice", bobs.id, said),
        store.append_messages("alice", bobs.id, [said]),
        store.append_message("alice", bobs.id, replace(said, client_message_id="2"), expected_last_seq=0),
        store.update_conversation("alice", bobs.id),
        store.update_conversation("alice", bobs.id, title="milk"),
        store.fork_conversation("alice", bobs.id),
        store.delete_conversation("alice", bobs.id),
    ]
    for operation in operations:
        with pytest.raises(Unforeseen, match=r"^a statement found a row of another user$"):
            await operation
