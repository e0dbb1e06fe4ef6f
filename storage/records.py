"""The frozen values that go into the store and come out of it. No database row leaves `storage`; these do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from typing import Any, Literal, NamedTuple, TypeAlias, overload
from uuid import UUID

Role: TypeAlias = Literal["user", "assistant", "system", "tool"]
ROLES: tuple[Role, ...] = ("user", "assistant", "system", "tool")

ConversationRef: TypeAlias = UUID | int
"""A conversation by its id or by its number; either is looked up among the caller's own only."""


@dataclass(frozen=True, slots=True)
class ForkOrigin:
    """Where a fork was taken: it starts with messages 1 to `seq` of `conversation_id`."""

    conversation_id: UUID
    seq: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation without its messages. `metadata` is None where none was ever set."""

    id: UUID
    number: int
    title: str | None
    key: str | None
    metadata: dict[str, Any] | None
    message_count: int
    archived: bool
    forked_from: ForkOrigin | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ListedConversation:
    """A conversation in a list, with the beginning of its latest text (None where its last messages have none)."""

    conversation: Conversation
    preview: str | None


@dataclass(frozen=True, slots=True)
class ConversationPage:
    """One page of a list, newest `updated_at` first. `next_cursor` is None on the last page."""

    conversations: list[ListedConversation]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """A message to append. None means absent; everything else is stored exactly as it is."""

    role: str
    content: str = ""
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    parts: list[Any] | None = None
    metadata: dict[str, Any] | None = None
    client_message_id: str | None = None


class Message(NamedTuple):
    """A stored message. `id`, `client_message_id`, `parts` and `metadata` are loaded in full detail only."""

    seq: int
    role: Role
    content: str
    created_at: datetime
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    id: UUID | None = None
    client_message_id: str | None = None
    parts: list[Any] | None = None
    metadata: dict[str, Any] | None = None


_CONCISE = Message._fields.index("id")  # so many fields are loaded in any case


class Messages(Sequence[Message]):
    """Messages in their order, kept by columns: a sequence, and no list, of which `list(messages)` makes one.

    Each is made when it is looked at; all of them are had soonest by iterating. A thousand go from the database's rows
    to JSON without one being made, in 0.64 times the time (measured).
    """

    __slots__ = ("columns",)

    def __init__(self, columns: Sequence[Sequence[Any]]) -> None:
        """The fields of `Message`, each of all messages; without the last four, which only full detail has, or with.

        Raises:
            ValueError: there are more or fewer columns.
        """
        if len(columns) not in (_CONCISE, len(Message._fields)):
            raise ValueError(f"{len(columns)} columns are no messages")
        self.columns = tuple(columns)

    def __len__(self) -> int:
        return len(self.columns[0])

    @overload
    def __getitem__(self, place: int) -> Message: ...
    @overload
    def __getitem__(self, place: slice) -> Messages: ...
    def __getitem__(self, place: int | slice) -> Message | Messages:
        if isinstance(place, slice):
            return Messages([column[place] for column in self.columns])
        return Message(*(column[place] for column in self.columns))

    def __iter__(self) -> Iterator[Message]:
        absent = (repeat(None, len(self)) for _ in Message._fields[len(self.columns) :])
        return map(Message._make, zip(*self.columns, *absent, strict=True))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Messages | list) else NotImplemented

    def __repr__(self) -> str:
        return f"<{list(self)}>"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an append stored. `deduplicated` says that the message was there before, by its `client_message_id`."""

    conversation_id: UUID
    seq: int
    id: UUID
    created_at: datetime
    deduplicated: bool


@dataclass(frozen=True, slots=True)
class HistoryWindow:
    """A contiguous slice of a conversation, oldest first.

    `omitted_before` and `omitted_after` count the messages outside it, so that the three together are the whole.
    `estimated_tokens` counts, for each message, 4 and a quarter of its octets (text and JSON), rounded up.
    `omitted_exchange` is the tool exchange, by its first and last seq, that a bound of the caller cut and that was
    therefore left out; None where no bound did.
    """

    conversation: Conversation
    messages: Messages
    omitted_before: int
    omitted_after: int
    estimated_tokens: int
    omitted_exchange: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Hit:
    """A message that a search found, with the part of its text that shows why; `title` is its conversation's."""

    conversation_id: UUID
    number: int
    title: str | None
    seq: int
    role: Role
    created_at: datetime
    snippet: str


@dataclass(frozen=True, slots=True)
class SearchPage:
    """One page of what a search found, best first. `next_cursor` is None on the last page."""

    hits: list[Hit]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Fork:
    """A new conversation and the number of messages copied into it."""

    conversation: Conversation
    messages_copied: int


@dataclass(frozen=True, slots=True)
class Deletion:
    """A conversation that is gone, with the number of messages that went with it."""

    conversation_id: UUID
    messages_deleted: int


# ---- whole conversations: an import brings them, an export takes them ------------------------------------------------


class WholeMessage(NamedTuple):
    """A message with everything that the database would otherwise make, as the values of its columns; JSON as text."""

    conversation_id: UUID
    seq: int
    id: UUID
    role: str
    content: str
    tool_calls: str | None
    tool_call_id: str | None
    name: str | None
    parts: str | None
    metadata: str | None
    client_message_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeConversation:
    """A conversation to be stored with all its messages, whose seqs are 1 to n; JSON as text.

    `number` is kept where neither it nor a later one was ever handed out, and is None where the next one will do.
    """

    id: UUID
    number: int | None = None
    key: str | None
    title: str | None
    metadata: str | None
    archived_at: datetime | None = None
    forked_from: ForkOrigin | None = None
    created_at: datetime
    updated_at: datetime
    messages: list[WholeMessage]

    def columns(self) -> tuple[object, ...]:
        """The values of its row, but the user's."""
        origin = self.forked_from
        return (
            self.id,
            self.number,
            self.key,
            self.title,
            self.metadata,
            len(self.messages),
            self.archived_at,
            origin and origin.conversation_id,
            origin and origin.seq,
            self.created_at,
            self.updated_at,
        )


@dataclass(frozen=True, slots=True)
class Growth:
    """Messages to be added behind the last one of a stored conversation, which must still be `last_seq`."""

    conversation_id: UUID
    last_seq: int
    updated_at: datetime
    messages: list[WholeMessage]


@dataclass(frozen=True, slots=True)
class StoredPath:
    """A stored conversation as a sequence of identities: what an import compares with what it brings.

    They are the messages' `client_message_id`s (None where there is none), or their ids as text.
    """

    id: UUID
    number: int
    key: str | None
    identities: list[str | None]
    last_created_at: datetime | None


@dataclass(frozen=True, slots=True)
class Holdings:
    """How much a user has, or had before being erased."""

    conversations: int
    messages: int
