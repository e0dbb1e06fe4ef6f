"""The statements about erased users: the list of them, and the users who are here again although they were erased."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from chatledger.storage.query import Query

_LIST = """
SELECT user_digest, erased_at, conversations, messages FROM chatledger.erasures ORDER BY erased_at, user_digest
"""


def list_erasures() -> Query:
    """All that was ever erased, the oldest first, for whoever runs the server. Reads the whole table."""
    return Query(_LIST, (), "everybody")


_USERS = "SELECT id, created_at FROM chatledger.users WHERE id > $1 ORDER BY id LIMIT $2::bigint"


def next_users(after_id: str, limit: int) -> Query:
    """The next users in the order of their ids, for whoever runs the server. Index: users_pkey."""
    return Query(_USERS, (after_id, limit), "everybody")


# The entry and what it is about go together: a backup that has the one has not the other. Counted before it is deleted:
# in distributed Postgres each part of a statement sees what those before it did.
_REPLAY = """
WITH listed AS (
  INSERT INTO chatledger.erasures (user_digest, erased_at, conversations, messages)
  VALUES ($2::bytea, $3::timestamptz, $4::bigint, $5::bigint)
  ON CONFLICT (user_digest, erased_at) DO NOTHING
  RETURNING erased_at
), had AS MATERIALIZED (
  SELECT u.id AS user_id, count(c.id) AS conversations, coalesce(sum(c.last_seq), 0) AS messages
    FROM chatledger.users u LEFT JOIN chatledger.conversations c ON c.user_id = $1
   WHERE u.id = $1 GROUP BY u.id
)
DELETE FROM chatledger.users u USING listed l, had h
 WHERE u.id = $1 AND u.id = h.user_id AND u.created_at <= l.erased_at
RETURNING u.id AS user_id, h.conversations, h.messages
"""


def replay_erasure(
    user_id: str, user_digest: bytes, erased_at: datetime, *, conversations: int, messages: int
) -> Query:
    """Delete a user again who was erased at that time, and note it. The row: what the user had.

    No row: the erasure is in the list already, so it was carried out here, or the user is newer than it.
    Index: users_pkey, conversations_pkey, messages_pkey.
    """
    return Query(_REPLAY, (user_id, user_digest, erased_at, conversations, messages))


_ADD = """
INSERT INTO chatledger.erasures (user_digest, erased_at, conversations, messages)
SELECT * FROM unnest($1::bytea[], $2::timestamptz[], $3::bigint[], $4::bigint[])
ON CONFLICT (user_digest, erased_at) DO NOTHING
RETURNING erased_at
"""


def add_erasures(
    digests: Sequence[bytes], times: Sequence[datetime], conversations: Sequence[int], messages: Sequence[int]
) -> Query:
    """Note erasures of users who are not here; a row for each that was not in the list. Index: erasures_pkey."""
    return Query(_ADD, (list(digests), list(times), list(conversations), list(messages)))
