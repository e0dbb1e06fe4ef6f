"""ConversationStore: what may be done with conversations. One method, one atomic step; the user always comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from . import history, limits, queries, rows, validation
from .cursor import open_sealed, seal
from .engine import Database
from .errors import (
    ConversationUnavailable,
    IdempotencyConflict,
    InvalidArgument,
    QuotaExceeded,
    SequenceConflict,
    UniqueViolation,
)
from .ids import uuid7
from .limits import Limits
from .queries import Query
from .records import (
    Conversation,
    ConversationPage,
    ConversationRef,
    Deletion,
    Fork,
    HistoryWindow,
    Message,
    NewMessage,
    Receipt,
)
from .source import DatabaseSource, EmbeddedDatabase, ExternalDatabase

LAST_SEQ = 2**63 - 1  # the largest bound that a bigint can express
_COLLISIONS = 3  # attempts; a second one has always been enough (6,400 simultaneous repeats measured)


class ConversationStore:
    """The conversations of all users, each user's for that user only.

    Safe to share by any number of tasks of one event loop; any number of processes may use one database. Every method
    ends within 30 seconds and may raise the `StorageError`s that it names, and `Unavailable` or `SchemaOutOfDate`
    besides. A write goes on when its caller is cancelled.
    """

    def __init__(self, source: DatabaseSource, allowed: Limits | None = None, *, pool_size: int | None = None) -> None:
        self.database = Database(source) if pool_size is None else Database(source, pool_size=pool_size)
        self.limits = allowed or Limits()

    @classmethod
    def at(cls, url: str, allowed: Limits | None = None) -> ConversationStore:
        """A store in the Postgres at `url`, as Neon's console or any other shows it. Connects at the first call."""
        return cls(ExternalDatabase(url), allowed)

    @classmethod
    def embedded(cls, data_dir: Path, allowed: Limits | None = None) -> ConversationStore:
        """A store in the embedded Postgres below `data_dir`, started at the first call."""
        return cls(EmbeddedDatabase(data_dir), allowed)

    async def __aenter__(self) -> ConversationStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def start(self) -> None:
        """Open the database in the background, so that the first call finds it open. Needs a running event loop."""
        self.database.start()

    async def aclose(self) -> None:
        """Finish what is being written, and disconnect."""
        await self.database.aclose()

    # ---- conversations ---------------------------------------------------------------------------------------------

    async def create_conversation(
        self,
        user_id: str,
        *,
        title: str | None = None,
        metadata: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> tuple[Conversation, bool]:
        """A new conversation and True; or the one that has this `key` already, unchanged, and False.

        Raises:
            InvalidArgument, TooLarge: an argument is out of its bounds.
            QuotaExceeded: the user has as many as one may have.
        """
        _check_user(user_id)
        _check_title(title)
        if key is not None:
            validation.check_text("key", key, min_chars=1, max_chars=limits.KEY_CHARS)
        text = _metadata(metadata)
        quota = self.limits.max_conversations_per_user
        for _ in range(_COLLISIONS):
            query = queries.create_conversation(
                user_id, uuid7(), key=key, title=title, metadata=text, quota=quota
            )
            found = await self._write(user_id, query)
            if found:
                return rows.conversation(found[0]), found[0]["created"]
            if key is None:
                break
        raise QuotaExceeded(quota or 0)

    async def list_conversations(
        self,
        user_id: str,
        *,
        limit: int = limits.LIST_CONVERSATIONS_DEFAULT,
        cursor: str | None = None,
        include_archived: bool = False,
        title_contains: str | None = None,
        updated_after: datetime | None = None,
        updated_before: datetime | None = None,
    ) -> ConversationPage:
        """A page of the user's conversations, newest `updated_at` first; both times are exclusive.

        What does not change during a walk by cursors is in exactly one page of it.

        Raises:
            InvalidCursor: it is not from a page of this list with these filters for this user.
            InvalidArgument: `limit` is not 1 to 100, or another argument is out of its bounds.
        """
        _check_user(user_id)
        _check_range("limit", limit, 1, limits.LIST_CONVERSATIONS)
        filters: dict[str, Any] = {
            "include_archived": include_archived,
            "title_contains": title_contains,
            "updated_after": updated_after,
            "updated_before": updated_before,
        }
        if title_contains is not None:
            validation.check_text("title_contains", title_contains, min_chars=1, max_chars=limits.TITLE_CHARS)
        bound_to = {"list": "conversations", **filters}
        place = None
        if cursor is not None:
            place = open_sealed(await self.database.cursor_secret(), user_id, bound_to, cursor)
        query = queries.list_conversations(user_id, limit + 1, before=place, **filters)
        found = rows.owned(user_id, await self.database.read(query))
        page = [rows.listed(row) for row in found[:limit]]
        next_cursor = None
        if len(found) > limit:
            last = page[-1].conversation
            secret = await self.database.cursor_secret()
            next_cursor = seal(secret, user_id, bound_to, (last.updated_at, last.id))
        return ConversationPage(page, next_cursor)

    async def update_conversation(
        self,
        user_id: str,
        conversation: ConversationRef,
        *,
        title: str | None = None,
        metadata: dict[str, Any] | None = None,
        archived: bool | None = None,
    ) -> Conversation:
        """Change what is not None. `metadata` is merged, key by key; a key with None is removed.

        Where nothing is to be changed, the conversation is returned as it is.

        Raises:
            ConversationUnavailable: it is not there or not the user's.
            InvalidArgument, TooLarge: an argument is out of its bounds, or the merged metadata would be.
        """
        _check_user(user_id)
        _check_title(title)
        if title is None and metadata is None and archived is None:
            found = await self.database.read(queries.get_conversation(user_id, conversation))
        else:
            _metadata(metadata)
            changes = metadata or {}
            merged = None if metadata is None else {key: value for key, value in changes.items() if value is not None}
            query = queries.update_conversation(
                user_id,
                conversation,
                title=title,
                merged=_metadata(merged),
                removed=[key for key, value in changes.items() if value is None],
                archived=archived,
            )
            found = await self._write(user_id, query)
        if not found:
            raise ConversationUnavailable
        return rows.conversation(rows.owned(user_id, found)[0])

    async def fork_conversation(
        self, user_id: str, conversation: ConversationRef, *, at_seq: int | None = None, title: str | None = None
    ) -> Fork:
        """A new conversation that starts with copies of messages 1 to `at_seq` (None: all), from one snapshot.

        Titles and metadata are the source's unless `title` is given; the key is not copied. Messages keep their seq,
        times and `client_message_id`.

        Raises:
            ConversationUnavailable: it is not there or not the user's.
            InvalidArgument: the source ends before `at_seq`, or an argument is out of its bounds.
            QuotaExceeded: the user has as many as one may have.
        """
        _check_user(user_id)
        _check_title(title)
        if at_seq is not None:
            _check_range("at_seq", at_seq, 1, LAST_SEQ)
        quota = self.limits.max_conversations_per_user
        query = queries.fork_conversation(user_id, conversation, uuid7(), at_seq=at_seq, title=title, quota=quota)
        found = await self._write(user_id, query)
        if not found:
            last_seq = await self._last_seq(user_id, conversation)
            if at_seq is not None and at_seq > last_seq:
                raise InvalidArgument(f"at_seq must be at most {last_seq}, the conversation's last seq")
            raise QuotaExceeded(quota or 0)
        return Fork(rows.conversation(found[0]), found[0]["last_seq"])

    async def delete_conversation(self, user_id: str, conversation: ConversationRef) -> Deletion:
        """Delete a conversation with all its messages, for good.

        Raises:
            ConversationUnavailable: it is not there or not the user's.
        """
        _check_user(user_id)
        found = await self._write(user_id, queries.delete_conversation(user_id, conversation))
        if not found:
            raise ConversationUnavailable
        return Deletion(found[0]["id"], found[0]["last_seq"])

    # ---- messages --------------------------------------------------------------------------------------------------

    async def append_message(
        self,
        user_id: str,
        conversation: ConversationRef,
        message: NewMessage,
        *,
        expected_last_seq: int | None = None,
    ) -> Receipt:
        """Append one message. It is durable when this returns.

        With a `client_message_id` it may be repeated for ever: the same body gives the first receipt again. Without one,
        each call is a new message. `expected_last_seq` makes it conditional; a repeat outranks the condition.

        Raises:
            ConversationUnavailable: it is not there or not the user's.
            SequenceConflict: the last seq is another than expected; nothing was stored.
            IdempotencyConflict: the id was used with another body; nothing was stored.
            InvalidArgument, ContentEmpty, ContentTooLong, TooLarge: the message is out of its bounds.
        """
        _check_user(user_id)
        _check_expected(expected_last_seq)
        columns = validation.checked_message(message, self.limits)
        query = queries.append_message(
            user_id, conversation, uuid7(), columns, expected_last_seq=expected_last_seq
        )
        found = await self._write(user_id, query, repeatable=columns.client_message_id is not None)
        if not found:
            raise await self._why_refused(user_id, conversation, expected_last_seq)
        if not found[0]["same"]:
            raise IdempotencyConflict
        return rows.receipt(found[0])

    async def append_messages(
        self,
        user_id: str,
        conversation: ConversationRef,
        messages: Sequence[NewMessage],
        *,
        expected_last_seq: int | None = None,
    ) -> list[Receipt]:
        """Append 1 to 100 messages in this order with consecutive seqs, all or none.

        Each may carry its own `client_message_id`; those that are stored already give their first receipts, and
        only the others are added. The condition applies where any is added.

        Raises:
            As `append_message`; the sentence names the message by its place, counted from 0.
        """
        _check_user(user_id)
        _check_expected(expected_last_seq)
        if not 1 <= len(messages) <= limits.APPEND_MESSAGES:
            raise InvalidArgument(f"messages has {len(messages)} entries; it must have 1 to {limits.APPEND_MESSAGES}")
        columns = [
            validation.checked_message(message, self.limits, name=f"messages[{place}].")
            for place, message in enumerate(messages)
        ]
        first_of, repeats = _repeats(columns)
        chosen = [columns[place] for place in first_of]
        query = queries.append_messages(
            user_id, conversation, [uuid7() for _ in chosen], chosen, expected_last_seq=expected_last_seq
        )
        repeatable = all(message.client_message_id is not None for message in chosen)
        found = await self._write(user_id, query, repeatable=repeatable)
        if not all(row["same"] for row in found):
            raise IdempotencyConflict
        if len(found) < len(chosen):
            raise await self._why_refused(user_id, conversation, expected_last_seq)
        receipts = {first_of[row["ord"] - 1]: rows.receipt(row) for row in found}
        for place, first in repeats.items():
            row = next(row for row in found if first_of[row["ord"] - 1] == first)
            receipts[place] = rows.receipt(row, deduplicated=True)
        return [receipts[place] for place in range(len(columns))]

    async def load_history(
        self,
        user_id: str,
        conversation: ConversationRef | None = None,
        *,
        limit: int = limits.HISTORY_MESSAGES,
        before_seq: int | None = None,
        after_seq: int | None = None,
        max_tokens: int = limits.HISTORY_TOKENS_DEFAULT,
        detail: Literal["concise", "full"] = "concise",
    ) -> HistoryWindow:
        """A window of a conversation (None: the one updated last that is not archived), oldest message first.

        Without bounds the latest messages that fit; with `before_seq` those that end just before it; with `after_seq` (and
        perhaps `before_seq`) those that start just after it. No window cuts a tool exchange: `history` says how.
        It exceeds `limit` or `max_tokens` only where one message, or one exchange, does.

        Raises:
            ConversationUnavailable: it is not there or not the user's, or the user has none.
            InvalidArgument: a bound is out of its range.
        """
        _check_user(user_id)
        _check_range("limit", limit, 1, limits.HISTORY_MESSAGES)
        _check_range("max_tokens", max_tokens, 1, limits.HISTORY_TOKENS)
        after, before = after_seq or 0, LAST_SEQ if before_seq is None else before_seq
        _check_range("after_seq", after, 0, LAST_SEQ)
        _check_range("before_seq", before, 0, LAST_SEQ)
        if after_seq is not None and before_seq is not None and after >= before:
            raise InvalidArgument("after_seq must be less than before_seq")
        forward, whole, left_out = after_seq is not None, False, None
        while True:
            query = queries.load_history(
                user_id,
                conversation,
                after_seq=after,
                before_seq=before,
                limit=before - after if whole else limit,
                max_tokens=LAST_SEQ if whole else max_tokens,
                forward=forward,
                full=detail == "full",
            )
            found = rows.history(rows.owned(user_id, await self.database.read(query)))
            if found.head is None:
                raise _none_to_load(conversation)
            if whole or not found.messages:
                return rows.window(found, after if forward else before - 1, left_out)
            cut = found.cut(after_seq=after, before_seq=before, forward=forward)
            left_out = left_out or cut.left_out
            if cut.step == "give":
                return rows.window(found.between(cut.first, cut.last), cut.first - 1 if forward else cut.last, left_out)
            conversation, after, before = found.head["id"], cut.first - 1, cut.last + 1
            whole = cut.step == "fetch whole"

    # ---- the names that applications expect --------------------------------------------------------------------------

    async def get_or_create_conversation(
        self, user_id: str, key: str = "default", *, title: str | None = None
    ) -> Conversation:
        """The user's conversation with this key, made if there is none. As `create_conversation`, without the flag."""
        return (await self.create_conversation(user_id, key=key, title=title))[0]

    async def add_message(
        self, user_id: str, conversation: ConversationRef, role: str, content: str, **fields: Any
    ) -> Receipt:
        """Append a message given as arguments; `fields` are the other ones of `NewMessage`. As `append_message`."""
        return await self.append_message(user_id, conversation, NewMessage(role=role, content=content, **fields))

    async def get_chat_history(
        self, user_id: str, conversation: ConversationRef, *, limit: int = limits.HISTORY_MESSAGES
    ) -> list[Message]:
        """The latest messages in full, oldest first: at most `limit` and 200,000 tokens. As `load_history`."""
        window = await self.load_history(
            user_id, conversation, limit=limit, max_tokens=limits.HISTORY_TOKENS, detail="full"
        )
        return window.messages

    # ---- inside ----------------------------------------------------------------------------------------------------

    async def _write(self, user_id: str, query: Query, *, repeatable: bool = False) -> list[Any]:
        """Run it; and again where another call used the same key at the same instant, which undid this one whole."""
        for attempt in range(_COLLISIONS):
            try:
                return rows.owned(user_id, await self.database.write(query, repeatable=repeatable))
            except UniqueViolation:
                if attempt == _COLLISIONS - 1:
                    raise
                await asyncio.sleep(0)
        raise AssertionError("the last attempt returns or raises")

    async def _last_seq(self, user_id: str, conversation: ConversationRef) -> int:
        found = rows.owned(user_id, await self.database.read(queries.get_conversation(user_id, conversation)))
        if not found:
            raise ConversationUnavailable
        return int(found[0]["last_seq"])

    async def _why_refused(
        self, user_id: str, conversation: ConversationRef, expected: int | None
    ) -> ConversationUnavailable | SequenceConflict:
        """The rare second trip, to tell a conversation that is not there from one that has moved on."""
        if expected is None:
            return ConversationUnavailable()
        return SequenceConflict(await self._last_seq(user_id, conversation))


def _none_to_load(conversation: ConversationRef | None) -> ConversationUnavailable:
    if conversation is None:
        return ConversationUnavailable("you have no conversation yet; create_conversation makes one")
    return ConversationUnavailable()


def _repeats(columns: list[validation.MessageColumns]) -> tuple[list[int], dict[int, int]]:
    """Which places hold a message of their own, and of which earlier place each other is a repeat."""
    first_of: list[int] = []
    repeats: dict[int, int] = {}
    seen: dict[str, int] = {}
    for place, message in enumerate(columns):
        earlier = seen.get(message.client_message_id) if message.client_message_id is not None else None
        if earlier is None:
            first_of.append(place)
            if message.client_message_id is not None:
                seen[message.client_message_id] = place
        elif columns[earlier] != message:
            raise IdempotencyConflict
        else:
            repeats[place] = earlier
    return first_of, repeats


def _check_user(user_id: str) -> None:
    validation.check_text("user_id", user_id, min_chars=1, max_chars=limits.USER_ID_CHARS)


def _check_title(title: str | None) -> None:
    if title is not None:
        validation.check_text("title", title, min_chars=1, max_chars=limits.TITLE_CHARS)


def _check_expected(expected: int | None) -> None:
    if expected is not None:
        _check_range("expected_last_seq", expected, 0, LAST_SEQ)


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise InvalidArgument(f"{name} must be between {least:,} and {most:,}")


def _metadata(value: dict[str, Any] | None) -> str | None:
    return None if value is None else validation.checked_json("metadata", value, max_bytes=limits.METADATA_BYTES)
