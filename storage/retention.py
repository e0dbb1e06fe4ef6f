"""Retention: the end of conversations that nobody has added to for a long time. Only where somebody asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from chatledger.storage import retention_queries, rows
from chatledger.storage.message_log import MessageLog
from chatledger.storage.query import Query
from chatledger.storage.records import Holdings
from chatledger.storage.validation import check_user

READ_USERS: Final = 1_000  # chosen: some 100 kB a round trip
# Conversations of a step (chosen: their user waits for its end to create another one; it is short at the usual length).
DELETE_CONVERSATIONS = 100


class OldConversations(NamedTuple):
    """How much of a user is old."""

    user_id: str
    conversations: int
    messages: int
    oldest: datetime


class Retention:
    """Old conversations of all users, in the database of a store. For people who run a server, not for a tool's call.

    Old is what was last updated before a moment, by an append or any other change. With `archived_only` it must also
    have been archived.
    """

    def __init__(self, store: MessageLog) -> None:
        self._database = store.database

    async def cutoff(self, age: timedelta) -> datetime:
        """The moment that was so long ago, by the database's clock."""
        (row,) = await self._fetch(retention_queries.cutoff(age))
        found: datetime = row["cutoff"]
        return found

    async def find(
        self, before: datetime, *, user_id: str | None = None, archived_only: bool = False
    ) -> AsyncIterator[OldConversations]:
        """How much is old, user by user in the order of their ids. Changes nothing."""
        if user_id is not None:
            check_user(user_id)
            query = retention_queries.count_old(user_id, before=before, archived_only=archived_only)
            for row in rows.owned(user_id, await self._fetch(query)):
                yield _old(row)
            return
        last = ""
        while True:
            query = retention_queries.users_with_old(last, READ_USERS, before=before, archived_only=archived_only)
            page = [_old(row) for row in await self._fetch(query)]
            for each in page:
                yield each
            if len(page) < READ_USERS:
                return
            last = page[-1].user_id

    async def delete(self, user_id: str, before: datetime, *, archived_only: bool = False) -> AsyncIterator[Holdings]:
        """Delete what is old of a user, whole conversations, for good: how much it was, after each step.

        A step is atomic and has at most DELETE_CONVERSATIONS. What is added to meanwhile stays.
        """
        check_user(user_id)
        while True:
            query = retention_queries.delete_old(
                user_id, before=before, archived_only=archived_only, limit=DELETE_CONVERSATIONS
            )
            (row,) = rows.owned(user_id, await self._fetch(query))
            if not row["conversations"]:
                return
            yield Holdings(row["conversations"], int(row["messages"]))

    async def _fetch(self, query: Query) -> list[Any]:
        async with self._database.transaction() as step:
            return await step.fetch(query)


def _old(row: Any) -> OldConversations:
    return OldConversations(row["user_id"], row["conversations"], int(row["messages"]), row["oldest"])
