"""The statements of retention: who has old conversations, and their end, some at a time."""

from __future__ import annotations

from datetime import datetime, timedelta

from chatledger.storage.query import Query

_CUTOFF = "SELECT statement_timestamp() - $1::interval AS cutoff"


def cutoff(age: timedelta) -> Query:
    """The moment that was so long ago, by the database's clock, which is the one that conversations are dated by."""
    return Query(_CUTOFF, (age,))


_OLD = """
SELECT user_id, count(*) AS conversations, sum(last_seq) AS messages, min(updated_at) AS oldest
  FROM chatledger.conversations
 WHERE {users} AND updated_at < $3::timestamptz AND (archived_at IS NOT NULL OR NOT $4::boolean)
 GROUP BY user_id ORDER BY user_id LIMIT $2::bigint
"""
_OLD_OF_ALL = _OLD.format(users="user_id > $1")
_OLD_OF_ONE = _OLD.format(users="user_id = $1")


def users_with_old(after_user: str, limit: int, *, before: datetime, archived_only: bool) -> Query:
    """The next users who have conversations not updated since, and how much; for whoever runs the server.

    Index: conversations_recent.
    """
    return Query(_OLD_OF_ALL, (after_user, limit, before, archived_only), "everybody")


def count_old(user_id: str, *, before: datetime, archived_only: bool) -> Query:
    """The same of one user; no row: there is nothing old. Index: conversations_recent."""
    return Query(_OLD_OF_ONE, (user_id, 1, before, archived_only))


# The user's row is locked first, as create and delete do. What is being written to at this moment is skipped: it is
# no longer old. So is what became new since the snapshot: a locked row is looked at once more.
_DELETE = """
WITH owner AS MATERIALIZED (
  SELECT id FROM chatledger.users WHERE id = $1 FOR NO KEY UPDATE
), old AS MATERIALIZED (
  SELECT c.id FROM chatledger.conversations c, owner o
   WHERE c.user_id = $1 AND c.user_id = o.id AND c.updated_at < $2::timestamptz
     AND (c.archived_at IS NOT NULL OR NOT $3::boolean)
   ORDER BY c.updated_at, c.id LIMIT $4::bigint FOR UPDATE OF c SKIP LOCKED
), gone AS (
  DELETE FROM chatledger.conversations c USING old WHERE c.user_id = $1 AND c.id = old.id RETURNING c.last_seq
), counted AS (
  UPDATE chatledger.users SET conversation_count = conversation_count - (SELECT count(*) FROM gone)
   WHERE id = $1 AND EXISTS (SELECT FROM gone)
)
SELECT $1::text AS user_id, count(*) AS conversations, coalesce(sum(last_seq), 0) AS messages FROM gone
"""


def delete_old(user_id: str, *, before: datetime, archived_only: bool, limit: int) -> Query:
    """Delete a user's oldest conversations, at most `limit`; their messages go by the foreign key.

    Index: users_pkey, conversations_recent, conversations_pkey, messages_pkey.
    """
    return Query(_DELETE, (user_id, before, archived_only, limit))
