"""Whole conversations, by the thousand: stored as they are, read out from one snapshot, erased with their user.

For imports, exports and people who run a server, not for a tool's call: nothing here has a deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from chatledger.storage import bulk_queries, rows
from chatledger.storage.erasures import user_digest
from chatledger.storage.errors import ConversationUnavailable, UniqueViolation, too_many_conversations
from chatledger.storage.message_log import MessageLog
from chatledger.storage.records import (
    Conversation,
    ConversationRef,
    Growth,
    Holdings,
    Message,
    StoredPath,
    WholeConversation,
    WholeMessage,
)
from chatledger.storage.transaction import Transaction
from chatledger.storage.validation import check_user

READ_MESSAGES: Final = 2_000  # chosen: a few MB in memory, and one round trip for many short conversations
READ_CONVERSATIONS: Final = 500  # chosen: as few round trips as for their messages
_MESSAGE_COLUMNS: Final = ("user_id", *WholeMessage._fields)


class ExportedConversation(NamedTuple):
    """The head of a conversation in an export; its messages follow it."""

    conversation: Conversation
    archived_at: datetime | None


class BulkStore:
    """Whole conversations of any user, in the database of a store. Every method may raise `Unavailable` as well."""

    def __init__(self, store: MessageLog) -> None:
        self._database, self._limits = store.database, store.limits

    async def find(
        self, user_id: str, *, keys: Sequence[str] = (), ids: Sequence[UUID] = (), by_message_id: bool = False
    ) -> list[StoredPath]:
        """Those of the user's conversations that have one of the keys or ids, in no promised order.

        Their messages are identified by `client_message_id`, or by their own ids.
        """
        check_user(user_id)
        queries = []
        if keys:
            queries.append(bulk_queries.find_by_keys(user_id, keys, by_message_id=by_message_id))
        if ids:
            queries.append(bulk_queries.find_by_ids(user_id, ids, by_message_id=by_message_id))
        async with self._database.transaction() as step:
            found = [row for query in queries for row in rows.owned(user_id, await step.fetch(query))]
        return [
            StoredPath(row["id"], row["number"], row["key"], row["identities"] or [], row["last_created_at"])
            for row in found
        ]

    async def store(
        self, user_id: str, new: Sequence[WholeConversation], grown: Sequence[Growth] = ()
    ) -> dict[UUID, int]:
        """Store new conversations and lengthen old ones, all or none. Returns the numbers of the new ones.

        Raises:
            UniqueViolation: another one has such an id or key, or a stored one is no longer as it was: look again.
            QuotaExceeded: the user would have more than one may have.
        """
        check_user(user_id)
        numbers: dict[UUID, int] = {}
        async with self._database.transaction() as step:
            if new:
                numbers = await self._add(step, user_id, new)
            for growth in sorted(grown, key=lambda each: each.conversation_id):  # one order: no deadlock between two
                query = bulk_queries.extend_conversation(
                    user_id,
                    growth.conversation_id,
                    last_seq=growth.last_seq,
                    added=len(growth.messages),
                    updated_at=growth.updated_at,
                )
                if not await step.fetch(query):
                    raise UniqueViolation("the conversation changed meanwhile")
            added = [each.messages for each in new] + [each.messages for each in grown]
            messages = ((user_id, *message) for of_one in added for message in of_one)
            await step.copy("chatledger.messages", _MESSAGE_COLUMNS, messages)
        return numbers

    async def _add(self, step: Transaction, user_id: str, new: Sequence[WholeConversation]) -> dict[UUID, int]:
        quota = self._limits.max_conversations_per_user
        added = await step.fetch(bulk_queries.add_conversations(user_id, new, quota=quota))
        if not added:
            raise too_many_conversations(quota)
        return {row["id"]: row["number"] for row in rows.owned(user_id, added)}

    async def read(
        self, user_id: str, conversation: ConversationRef | None = None
    ) -> AsyncIterator[ExportedConversation | Message]:
        """The user's conversations by number (or the one named), each followed by its messages, from one snapshot.

        Messages are in full detail. At most READ_MESSAGES of them are in memory at once.

        Raises:
            ConversationUnavailable: the one named is not there or not the user's.
        """
        check_user(user_id)
        async with self._database.transaction(snapshot=True) as step:
            if conversation is not None:
                heads = rows.owned(user_id, await step.fetch(bulk_queries.read_conversation(user_id, conversation)))
                if not heads:
                    raise ConversationUnavailable
                async for each in _with_messages(step, user_id, heads):
                    yield each
                return
            number = 0
            while True:
                query = bulk_queries.read_conversations(user_id, after_number=number, limit=READ_CONVERSATIONS)
                heads = rows.owned(user_id, await step.fetch(query))
                if not heads:
                    return
                number = heads[-1]["number"]
                async for each in _with_messages(step, user_id, heads):
                    yield each

    async def count(self, user_id: str) -> Holdings | None:
        """How much a user has; None where there is no such user."""
        check_user(user_id)
        return _holdings(rows.owned(user_id, await self._database.read(bulk_queries.count_user(user_id))))

    async def erase_user(self, user_id: str) -> Holdings | None:
        """Delete a user with all conversations and messages, for good: what there was; None for no such user.

        That it was done is noted in the list of erasures, in the same step, by a digest.
        """
        check_user(user_id)
        digest = user_digest(await self._database.cursor_secret(), user_id)
        async with self._database.transaction() as step:
            found = rows.owned(user_id, await step.fetch(bulk_queries.erase_user(user_id, digest)))
        return _holdings(found)


def _holdings(found: list[Any]) -> Holdings | None:
    return Holdings(found[0]["conversations"], int(found[0]["messages"])) if found else None


async def _with_messages(
    step: Transaction, user_id: str, heads: list[Any]
) -> AsyncIterator[ExportedConversation | Message]:
    while heads:
        # As many as fit one read; a long one by itself, page by page.
        count, total = 0, 0
        for head in heads:
            total += head["last_seq"]
            if count and total > READ_MESSAGES:
                break
            count += 1
        together, heads = heads[:count], heads[count:]
        ids = [head["id"] for head in together]
        page = rows.owned(user_id, await _page(step, user_id, ids, 0))
        messages = {owner: list(of) for owner, of in groupby(page, itemgetter("conversation_id"))}
        for head in together:
            yield ExportedConversation(rows.conversation(head), head["archived_at"])
            for row in messages.get(head["id"], ()):
                yield rows.whole_message(row)
        while count == 1 and len(page) == READ_MESSAGES:
            page = rows.owned(user_id, await _page(step, user_id, ids, page[-1]["seq"]))
            for row in page:
                yield rows.whole_message(row)


async def _page(step: Transaction, user_id: str, ids: list[UUID], after_seq: int) -> list[Any]:
    return await step.fetch(bulk_queries.read_messages(user_id, ids, after_seq=after_seq, limit=READ_MESSAGES))
