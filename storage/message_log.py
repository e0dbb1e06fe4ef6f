"""The messages of conversations: appended, and loaded in windows. The half of the store that is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal
from uuid import UUID

from chatledger.storage import append_queries, conversation_queries, history_queries, limits, rows
from chatledger.storage.append_batcher import AppendBatcher
from chatledger.storage.engine import Database
from chatledger.storage.errors import (
    ConversationUnavailable,
    IdempotencyConflict,
    InvalidArgument,
    QuotaExceeded,
    SequenceConflict,
    UniqueViolation,
)
from chatledger.storage.ids import uuid7
from chatledger.storage.limits import Limits
from chatledger.storage.query import Query
from chatledger.storage.records import ConversationRef, HistoryWindow, Message, NewMessage, Receipt
from chatledger.storage.validation import MessageColumns, check_range, check_user, checked_message, repeats_within

# Attempts. On one machine a second one has always been enough (6,400 simultaneous repeats measured). On a cluster the
# parts of a statement see what was committed between them, and 16 callers of one key needed more than 3.
COLLISIONS = 10


class MessageLog:
    """What may be done with the messages of any user's conversations."""

    def __init__(self, database: Database, allowed: Limits) -> None:
        self.database = database
        self.limits = allowed
        self._batcher = AppendBatcher(database, quota=allowed.max_messages_per_conversation)

    async def append_message(
        self,
        user_id: str,
        conversation: ConversationRef,
        message: NewMessage,
        *,
        expected_last_seq: int | None = None,
    ) -> Receipt:
        """Append one message. It is durable when this returns.

        With a `client_message_id` it may be repeated for ever: the same body gives the first receipt again. Without
        one, each call is a new message. `expected_last_seq` makes it conditional; a repeat outranks the condition.

        Raises:
            ConversationUnavailable: it is not there or not the user's.
            SequenceConflict: the last seq is another than expected; nothing was stored.
            QuotaExceeded: the conversation has as many messages as one may have; nothing was stored.
            IdempotencyConflict: the id was used with another body; nothing was stored.
            InvalidArgument, ContentEmpty, ContentTooLong, TooLarge: the message is out of its bounds.
        """
        check_user(user_id)
        check_range("expected_last_seq", expected_last_seq, 0, limits.LAST_SEQ)
        columns = checked_message(message, self.limits)

        async def alone() -> list[Any]:
            query = append_queries.append_message(
                user_id,
                conversation,
                uuid7(),
                columns,
                expected_last_seq=expected_last_seq,
                quota=self.limits.max_messages_per_conversation,
            )
            return await self._append(user_id, query, [columns], expected_last_seq)

        if expected_last_seq is None:
            found = await self._batcher.append(user_id, conversation, columns, alone)
        else:
            found = await alone()
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
        check_user(user_id)
        check_range("expected_last_seq", expected_last_seq, 0, limits.LAST_SEQ)
        if not 1 <= len(messages) <= limits.APPEND_MESSAGES:
            raise InvalidArgument(f"messages has {len(messages)} entries; it must have 1 to {limits.APPEND_MESSAGES}")
        columns = [
            checked_message(message, self.limits, name=f"messages[{place}].") for place, message in enumerate(messages)
        ]
        first_of, repeats = repeats_within(columns)
        chosen = [columns[place] for place in first_of]
        query = append_queries.append_messages(
            user_id,
            conversation,
            [uuid7() for _ in chosen],
            chosen,
            expected_last_seq=expected_last_seq,
            quota=self.limits.max_messages_per_conversation,
        )
        found = await self._append(user_id, query, chosen, expected_last_seq)
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

        Without bounds the latest messages that fit; with `before_seq` those that end just before it; with `after_seq`
        (and perhaps `before_seq`) those that start just after it. No window cuts a tool exchange: `history` says how.
        It exceeds `limit` or `max_tokens` only where one message, or one exchange, does.

        Raises:
            ConversationUnavailable: it is not there or not the user's, or the user has none.
            InvalidArgument: a bound is out of its range.
        """
        check_user(user_id)
        check_range("limit", limit, 1, limits.HISTORY_MESSAGES)
        check_range("max_tokens", max_tokens, 1, limits.HISTORY_TOKENS)
        after, before = after_seq or 0, limits.LAST_SEQ if before_seq is None else before_seq
        check_range("after_seq", after, 0, limits.LAST_SEQ)
        check_range("before_seq", before, 0, limits.LAST_SEQ)
        if after_seq is not None and before_seq is not None and after >= before:
            raise InvalidArgument("after_seq must be less than before_seq")
        forward, whole, left_out = after_seq is not None, False, None
        while True:
            query = history_queries.load_history(
                user_id,
                conversation,
                after_seq=after,
                before_seq=before,
                limit=before - after if whole else limit,
                max_tokens=limits.LAST_SEQ if whole else max_tokens,
                forward=forward,
                full=detail == "full",
            )
            found = rows.history(user_id, await self.database.read(query))
            if found.head is None:
                raise _none_to_load(conversation)
            if whole or not found.messages:
                return rows.window(found, after if forward else before - 1, left_out)
            cut = found.cut(after_seq=after, before_seq=before, forward=forward)
            left_out = left_out or cut.left_out
            if cut.step == "give":
                return rows.window(found.between(cut.first, cut.last), cut.first - 1 if forward else cut.last, left_out)
            conversation, after, before = UUID(found.head["id"]), cut.first - 1, cut.last + 1
            whole = cut.step == "fetch whole"

    async def load_message(self, user_id: str, conversation: ConversationRef, seq: int) -> Message:
        """One message in full, however large, without the rest of its tool exchange.

        Raises:
            ConversationUnavailable: the conversation, or the message in it, is not there or not the user's.
            InvalidArgument: `seq` is not 1 or more.
        """
        check_user(user_id)
        check_range("seq", seq, 1, limits.LAST_SEQ)
        found = rows.owned(user_id, await self.database.read(history_queries.load_message(user_id, conversation, seq)))
        if not found:
            raise ConversationUnavailable(
                "there is no such message in a conversation of yours; load_history shows those that there are"
            )
        return rows.whole_message(found[0])

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
        return list(window.messages)

    async def _append(
        self, user_id: str, query: Query, columns: Sequence[MessageColumns], expected: int | None
    ) -> list[Any]:
        """Run it; and again where its condition failed and it may itself, sent twice at one instant, be the reason.

        The second to come waited for the first and found the conversation moved, in a snapshot without the message.
        """
        keyed = [message.client_message_id is not None for message in columns]
        found = await self._write(user_id, query, repeatable=all(keyed))
        if len(found) < len(columns) and expected is not None and any(keyed):
            found = await self._write(user_id, query, repeatable=all(keyed))
        return found

    async def _write(self, user_id: str, query: Query, *, repeatable: bool = False) -> list[Any]:
        """Run it; and again where another call used the same key at the same instant, which undid this one whole."""
        for attempt in range(COLLISIONS):
            try:
                return rows.owned(user_id, await self.database.write(query, repeatable=repeatable))
            except UniqueViolation:
                if attempt == COLLISIONS - 1:
                    raise
                await asyncio.sleep(0)
        raise AssertionError("the last attempt returns or raises")

    async def _last_seq(self, user_id: str, conversation: ConversationRef) -> int:
        found = rows.owned(
            user_id, await self.database.read(conversation_queries.get_conversation(user_id, conversation))
        )
        if not found:
            raise ConversationUnavailable
        return int(found[0]["last_seq"])

    async def _why_refused(
        self, user_id: str, conversation: ConversationRef, expected: int | None
    ) -> ConversationUnavailable | SequenceConflict | QuotaExceeded:
        """The rare second trip, to tell a conversation that is not there from one that has moved on or is full."""
        quota = self.limits.max_messages_per_conversation
        if expected is None and quota is None:
            return ConversationUnavailable()
        last_seq = await self._last_seq(user_id, conversation)
        if expected is not None and (quota is None or last_seq != expected):
            return SequenceConflict(last_seq)
        return QuotaExceeded(
            f"a conversation may have at most {quota} messages here, and this one has {last_seq}; go on in a new one",
            quota or 0,
        )


def _none_to_load(conversation: ConversationRef | None) -> ConversationUnavailable:
    if conversation is None:
        return ConversationUnavailable(
            "there is no conversation to continue; create_conversation makes one, an archived one is loaded by its id"
        )
    return ConversationUnavailable()
