"""Messages found by what was said in them, in any script."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any, Final
from uuid import UUID
from weakref import WeakValueDictionary

from chatledger.storage import conversation_queries, limits, rows, search_queries
from chatledger.storage.cursor import open_sealed, seal
from chatledger.storage.engine import Database
from chatledger.storage.errors import ConversationUnavailable, InvalidArgument, Unavailable
from chatledger.storage.limits import Limits
from chatledger.storage.message_log import MessageLog
from chatledger.storage.query import Query
from chatledger.storage.records import ROLES, ConversationRef, SearchPage
from chatledger.storage.search_queries import Place
from chatledger.storage.search_terms import parse, search_for
from chatledger.storage.validation import check_range, check_text, check_user

SEARCH_SECONDS: Final = 3.0  # the bad-input table: a search that takes longer is ended, and is `unavailable`
AT_ONCE: Final = 4  # the bad-input table: searches of one user in a process; the next ones wait


class MessageSearch(MessageLog):
    """What may be found in the messages of any user's conversations."""

    def __init__(self, database: Database, allowed: Limits) -> None:
        super().__init__(database, allowed)
        self._searching: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def search_messages(
        self,
        user_id: str,
        query: str,
        *,
        conversation: ConversationRef | None = None,
        role: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = limits.SEARCH_MESSAGES_DEFAULT,
        cursor: str | None = None,
    ) -> SearchPage:
        """The user's messages that hold every term of `query`, newest first; both times are exclusive.

        A term is a word, found inside others too, or a phrase in quotes; `-term` leaves out what has it. Scripts that
        write no spaces are searched as any other. Nothing is malformed: punctuation around words is dropped. Looked at
        are the first 10,000 characters of each message, in archived conversations too. For a query that the index knows
        little of, one page looks at some 10,000 messages: it may have few hits, or none, and a `next_cursor`.

        Raises:
            ConversationUnavailable: `conversation` is not there or not the user's.
            InvalidArgument: `query` is empty, over 512 characters or 32 terms, or another argument out of its bounds.
            InvalidCursor: it is not from a page of this search for this user.
        """
        check_user(user_id)
        check_text("query", query, min_chars=1, max_chars=limits.SEARCH_QUERY_CHARS)
        check_range("limit", limit, 1, limits.SEARCH_MESSAGES)
        if role is not None and role not in ROLES:
            raise InvalidArgument(f"role must be one of {', '.join(ROLES)}")
        wanted, unwanted = parse(query)
        filters: dict[str, Any] = {"role": role, "created_after": created_after, "created_before": created_before}
        bound_to = {"search": query, "conversation": conversation, **filters}
        after = None
        if cursor is not None:
            secret = await self.database.cursor_secret()
            after = Place(*open_sealed(secret, user_id, bound_to, cursor, (datetime, UUID, int)))
        if not wanted:
            return await self._nothing(user_id, conversation)
        search = search_for(wanted, unwanted)
        statement = search_queries.search_messages(
            user_id, search, conversation, after=after, limit=limit + 1, **filters
        )
        found = rows.owned(user_id, await self._in_time(user_id, statement))
        if not found:
            raise ConversationUnavailable
        hits = [row for row in found if row["seq"] is not None]
        place = None
        if len(hits) > limit:
            place = Place(hits[limit - 1]["created_at"], hits[limit - 1]["conversation_id"], hits[limit - 1]["seq"])
        elif found[0]["edge_seq"] is not None:
            place = Place(found[0]["edge_created_at"], found[0]["edge_conversation_id"], found[0]["edge_seq"])
        next_cursor = None
        if place is not None:
            next_cursor = seal(await self.database.cursor_secret(), user_id, bound_to, place)
        return SearchPage([rows.hit(row) for row in hits[:limit]], next_cursor)

    async def _in_time(self, user_id: str, statement: Query) -> list[Any]:
        await self.database.cursor_secret()  # opens it: a database that starts takes no part of a search's time
        async with self._searching.setdefault(user_id, asyncio.Semaphore(AT_ONCE)):
            try:
                return await self.database.read(statement, seconds=SEARCH_SECONDS)
            except Unavailable as exc:
                if not isinstance(exc.__cause__, TimeoutError):
                    raise
                raise Unavailable(
                    f"the search took longer than {SEARCH_SECONDS:g} s; name a conversation, a time or a longer word, "
                    "or try again shortly"
                ) from exc

    async def _nothing(self, user_id: str, conversation: ConversationRef | None) -> SearchPage:
        """The answer to a query without a term that must be there; a conversation must be there all the same."""
        if conversation is not None:
            query = conversation_queries.get_conversation(user_id, conversation)
            if not await self.database.read(query):
                raise ConversationUnavailable
        return SearchPage([], None)
