"""The list of erased users, and erasing them again after an older backup was restored.

The list names nobody: a user is a keyed digest in it, by a secret of the database that its backups have as well.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from chatledger.storage import erasure_queries, rows
from chatledger.storage.message_log import MessageLog
from chatledger.storage.query import Query
from chatledger.storage.records import Holdings

# The planner keeps samples of what is in the tables until they are looked at the next time, and those of a table that
# is empty then for ever. From 18 on they can be taken from it.
_CLEAR: Final = """
DO $chatledger$
DECLARE
  sampled record;
BEGIN
  IF current_setting('server_version_num')::integer >= 180000 THEN
    FOR sampled IN SELECT tablename, attname, inherited FROM pg_stats WHERE schemaname = 'chatledger' LOOP
      PERFORM pg_clear_attribute_stats('chatledger', sampled.tablename, sampled.attname, sampled.inherited);
    END LOOP;
  END IF;
EXCEPTION WHEN insufficient_privilege THEN
  RETURN;
END $chatledger$
"""
_ANALYZE: Final = "ANALYZE chatledger.users, chatledger.conversations, chatledger.messages, chatledger.api_tokens"
READ_USERS: Final = 1_000  # chosen: some 100 kB a round trip
ADD_ERASURES: Final = 1_000  # chosen: as many


class Erasure(NamedTuple):
    """That a user was erased, and how much that was."""

    user_digest: bytes
    erased_at: datetime
    conversations: int
    messages: int


class Returned(NamedTuple):
    """A user who is here, although there are erasures since the row was made."""

    user_id: str
    erasures: list[Erasure]


class ErasureList:
    """The erasures in the database of a store. For people who run a server, not for a tool's call."""

    def __init__(self, store: MessageLog) -> None:
        self._database = store.database

    async def name(self) -> str:
        """What tells lists by the same secret from others: equal in a database and all backups of it."""
        return user_digest(await self._database.cursor_secret(), "")[:8].hex()

    async def read(self) -> list[Erasure]:
        """All of them, the oldest first."""
        found = await self._database.read(erasure_queries.list_erasures())
        return [Erasure(*row) for row in found]

    async def returned(self, listed: Sequence[Erasure]) -> AsyncIterator[Returned]:
        """The users of this database whom `replay` would erase by this list. Changes nothing."""
        known = {(each.user_digest, each.erased_at) for each in await self.read()}
        missing: defaultdict[bytes, list[Erasure]] = defaultdict(list)
        for each in listed:
            if (each.user_digest, each.erased_at) not in known:
                missing[each.user_digest].append(each)
        secret = await self._database.cursor_secret()
        async for row in self._users():
            of_one = missing.get(user_digest(secret, row["id"]), [])
            erasures = [each for each in of_one if row["created_at"] <= each.erased_at]
            if erasures:
                yield Returned(row["id"], sorted(erasures))

    async def replay(self, again: Returned) -> Holdings:
        """Erase a user again: what there was of them. All or none, and doing it twice is doing it once."""
        gone = Holdings(0, 0)
        async with self._database.transaction() as step:
            for each in again.erasures:
                query = erasure_queries.replay_erasure(
                    again.user_id,
                    each.user_digest,
                    each.erased_at,
                    conversations=each.conversations,
                    messages=each.messages,
                )
                for row in rows.owned(again.user_id, await step.fetch(query)):
                    gone = Holdings(row["conversations"], int(row["messages"]))
        return gone

    async def forget(self) -> None:
        """Have Postgres' planner forget its samples of what is gone; before 18 not of a table that is empty now.

        It looks at 30,000 rows of each table, however large it is. A role that does not own them changes nothing.
        """
        async with self._database.transaction() as step:
            for statement in (_CLEAR, _ANALYZE):
                await step.fetch(Query(statement, ()))

    async def add(self, listed: Sequence[Erasure]) -> int:
        """Note what is not in the list yet, once those that `returned` gives are replayed: how many that was."""
        added = 0
        for start in range(0, len(listed), ADD_ERASURES):
            columns = list(zip(*listed[start : start + ADD_ERASURES], strict=True))
            async with self._database.transaction() as step:
                added += len(await step.fetch(erasure_queries.add_erasures(*columns)))
        return added

    async def _users(self) -> AsyncIterator[Any]:
        last = ""
        while page := await self._database.read(erasure_queries.next_users(last, READ_USERS)):
            for row in page:
                yield row
            last = page[-1]["id"]


def user_digest(secret: bytes, user_id: str) -> bytes:
    """Whom an erasure is about: nobody can tell it without the secret, or from the digests of the log."""
    return hmac.new(secret, b"erasure:" + user_id.encode(), hashlib.sha256).digest()
