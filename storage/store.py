"""ConversationStore: what may be done with conversations. One method, one atomic step; the user always comes first."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from chatledger.storage import conversation_queries, limits, rows
from chatledger.storage.cursor import open_sealed, seal
from chatledger.storage.engine import Database
from chatledger.storage.errors import ConversationUnavailable, InvalidArgument, too_many_conversations
from chatledger.storage.ids import uuid7
from chatledger.storage.limits import Limits
from chatledger.storage.message_log import COLLISIONS
from chatledger.storage.message_search import MessageSearch
from chatledger.storage.query import Query
from chatledger.storage.records import Conversation, ConversationPage, ConversationRef, Deletion, Fork
from chatledger.storage.source import DatabaseSource, EmbeddedDatabase, ExternalDatabase
from chatledger.storage.validation import check_range, check_text, check_title, check_user, checked_metadata

PING_SECONDS = 5.0  # chosen: orchestrators ask every 10 s


class ConversationStore(MessageSearch):
    """The conversations of all users, each user's for that user only.

    Safe to share by any number of tasks of one event loop; any number of processes may use one database. Every method
    ends within 30 seconds and may raise the `StorageError`s that it names, and `Unavailable` or `SchemaOutOfDate`
    besides. A write goes on when its caller is cancelled.
    """

    def __init__(self, source: DatabaseSource, allowed: Limits | None = None) -> None:
        super().__init__(Database(source), allowed or Limits())

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

    def wake(self) -> None:
        """Have an embedded database start, in processes of its own. Costs this one nothing; `start` does the rest."""
        self.database.wake()

    def start(self) -> None:
        """Open the database in the background, so that the first call finds it open. Needs a running event loop."""
        self.database.start()

    async def ping(self) -> None:
        """Return when the database answers and its schema is current. Raises the StorageError otherwise."""
        await self.database.read(Query("SELECT $1::text", ("ping",)), seconds=PING_SECONDS)

    async def aclose(self) -> None:
        """Finish what is being written, and disconnect."""
        async with self._batcher.closing():
            await self.database.aclose()

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
        check_user(user_id)
        check_title(title)
        if key is not None:
            check_text("key", key, min_chars=1, max_chars=limits.KEY_CHARS)
        text = checked_metadata(metadata)
        quota = self.limits.max_conversations_per_user
        for _ in range(COLLISIONS):
            query = conversation_queries.create_conversation(
                user_id, uuid7(), key=key, title=title, metadata=text, quota=quota
            )
            found = await self._write(user_id, query)
            if found:
                return rows.conversation(found[0]), found[0]["created"]
            if key is None:
                break
        raise too_many_conversations(quota)

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
        check_user(user_id)
        check_range("limit", limit, 1, limits.LIST_CONVERSATIONS)
        filters: dict[str, Any] = {
            "include_archived": include_archived,
            "title_contains": title_contains,
            "updated_after": updated_after,
            "updated_before": updated_before,
        }
        if title_contains is not None:
            check_text("title_contains", title_contains, min_chars=1, max_chars=limits.TITLE_CHARS)
        bound_to = {"list": "conversations", **filters}
        place = None
        if cursor is not None:
            place = open_sealed(await self.database.cursor_secret(), user_id, bound_to, cursor)
        query = conversation_queries.list_conversations(user_id, limit + 1, before=place, **filters)
        found = rows.owned(user_id, await self.database.read(query))
        page = [rows.listed(row) for row in found[:limit]]
        next_cursor = None
        if len(found) > limit:
            last = page[-1].conversation
            secret = await self.database.cursor_secret()
            next_cursor = seal(secret, user_id, bound_to, (last.updated_at, last.id))
        return ConversationPage(page, next_cursor)

    async def list_numbers(
        self, user_id: str, typed: str = "", *, limit: int = limits.LIST_CONVERSATIONS
    ) -> tuple[list[int], bool]:
        """The numbers of conversations that `typed` may mean, and whether there are more than `limit` of them.

        It is the beginning of a number, or a part of a title in any case. Newest `updated_at` first, none archived.

        Raises:
            InvalidArgument: `limit` is not 1 to 100, or `typed` is longer than a title or holds what no text may.
        """
        check_user(user_id)
        check_range("limit", limit, 1, limits.LIST_CONVERSATIONS)
        check_text("typed", typed, max_chars=limits.TITLE_CHARS)
        query = conversation_queries.list_numbers(user_id, typed, limit + 1)
        found = rows.owned(user_id, await self.database.read(query))
        return [row["number"] for row in found[:limit]], len(found) > limit

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
        check_user(user_id)
        check_title(title)
        if title is None and metadata is None and archived is None:
            found = await self.database.read(conversation_queries.get_conversation(user_id, conversation))
        else:
            checked_metadata(metadata)
            changes = metadata or {}
            merged = None if metadata is None else {key: value for key, value in changes.items() if value is not None}
            query = conversation_queries.update_conversation(
                user_id,
                conversation,
                title=title,
                merged=checked_metadata(merged),
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
        check_user(user_id)
        check_title(title)
        check_range("at_seq", at_seq, 1, limits.LAST_SEQ)
        quota = self.limits.max_conversations_per_user
        query = conversation_queries.fork_conversation(
            user_id, conversation, uuid7(), at_seq=at_seq, title=title, quota=quota
        )
        found = await self._write(user_id, query)
        if not found:
            last_seq = await self._last_seq(user_id, conversation)
            if quota is None or (at_seq is not None and at_seq > last_seq):
                raise InvalidArgument(f"at_seq was beyond the conversation's last seq, which is {last_seq} now")
            raise too_many_conversations(quota)
        return Fork(rows.conversation(found[0]), found[0]["last_seq"])

    async def delete_conversation(self, user_id: str, conversation: ConversationRef) -> Deletion:
        """Delete a conversation with all its messages, for good.

        Raises:
            ConversationUnavailable: it is not there or not the user's.
        """
        check_user(user_id)
        found = await self._write(user_id, conversation_queries.delete_conversation(user_id, conversation))
        if not found:
            raise ConversationUnavailable
        return Deletion(found[0]["id"], found[0]["last_seq"])

    async def get_or_create_conversation(
        self, user_id: str, key: str = "default", *, title: str | None = None
    ) -> Conversation:
        """The user's conversation with this key, made if there is none. As `create_conversation`, without the flag."""
        return (await self.create_conversation(user_id, key=key, title=title))[0]
