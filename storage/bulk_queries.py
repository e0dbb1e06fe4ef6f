"""The statements for whole conversations: looked up by the hundred, added, read out, erased with their user."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chatledger.storage.query import CONVERSATION, MESSAGE, Query, at
from chatledger.storage.records import ConversationRef, WholeConversation

_PATHS = """
SELECT c.user_id, c.id, c.number, c.key, m.identities, m.last_created_at
  FROM chatledger.conversations c
  LEFT JOIN LATERAL (
         SELECT array_agg(CASE WHEN $3::boolean THEN m.id::text ELSE m.client_message_id END ORDER BY m.seq)
                AS identities, max(m.created_at) AS last_created_at
           FROM chatledger.messages m WHERE m.user_id = $1 AND m.conversation_id = c.id) m ON true
 WHERE c.user_id = $1 AND c.{column} = ANY($2::{type}) AND c.{column} IS NOT NULL
 ORDER BY c.number
"""
_PATHS_BY_KEY = _PATHS.format(column="key", type="text[]")
_PATHS_BY_ID = _PATHS.format(column="id", type="uuid[]")


def find_by_keys(user_id: str, keys: Sequence[str], *, by_message_id: bool) -> Query:
    """Those that have one of the keys, by number, each with what identifies its messages, in order.

    That is their `client_message_id`, or their `id` as text. Index: conversations_key, messages_pkey.
    """
    return Query(_PATHS_BY_KEY, (user_id, list(keys), by_message_id))


def find_by_ids(user_id: str, ids: Sequence[UUID], *, by_message_id: bool) -> Query:
    """Those that have one of the ids, otherwise as `find_by_keys`. Index: conversations_pkey, messages_pkey."""
    return Query(_PATHS_BY_ID, (user_id, list(ids), by_message_id))


# Numbers that an export brings along are kept where all of them are above the last one handed out; otherwise the whole
# batch gets the next ones. Which of the two it was, the new last number tells: the second case never ends at $13.
_ADD = """
WITH taken AS MATERIALIZED (
  SELECT * FROM unnest($2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::timestamptz[],
                       $9::uuid[], $10::integer[], $11::timestamptz[], $12::timestamptz[]) WITH ORDINALITY
    AS t (id, number, key, title, metadata, last_seq, archived_at, forked_from_id, forked_from_seq, created_at,
          updated_at, place)
), owner AS (
  INSERT INTO chatledger.users AS u (id, last_number, conversation_count)
  SELECT $1, coalesce($13::bigint, $15::bigint), $15 WHERE $16::bigint IS NULL OR $15 <= $16
  ON CONFLICT (id) DO UPDATE
     SET last_number = CASE WHEN u.last_number < $14::bigint THEN $13
                            WHEN u.last_number + $15 = $13 THEN u.last_number + $15 + 1
                            ELSE u.last_number + $15 END,
         conversation_count = u.conversation_count + $15
   WHERE u.id = $1 AND ($16 IS NULL OR u.conversation_count + $15 <= $16)
  RETURNING last_number
)
INSERT INTO chatledger.conversations
       (user_id, id, number, key, title, metadata, last_seq, archived_at, forked_from_id, forked_from_seq, created_at,
        updated_at)
SELECT $1, t.id, CASE WHEN o.last_number = $13 THEN t.number ELSE o.last_number - $15 + t.place END, t.key, t.title,
       t.metadata::jsonb, t.last_seq, t.archived_at, t.forked_from_id, t.forked_from_seq, t.created_at, t.updated_at
  FROM taken t, owner o
RETURNING user_id, id, number
"""


def add_conversations(user_id: str, whole: Sequence[WholeConversation], *, quota: int | None) -> Query:
    """Rows for conversations whose messages follow in the same transaction. The user's row is made or locked first.

    No row: the quota would be exceeded. `conversations_key` or `conversations_pkey` is violated where one is there.
    Index: users_pkey.
    """
    columns = zip(*(each.columns() for each in whole), strict=True)
    numbers = [each.number for each in whole]
    wanted = [number for number in numbers if number is not None]
    kept = len(wanted) == len(whole) and len(set(wanted)) == len(wanted)
    most, least = (max(wanted), min(wanted)) if kept else (None, None)
    return Query(_ADD, (user_id, *map(list, columns), most, least, len(whole), quota))


_EXTEND = """
UPDATE chatledger.conversations
   SET last_seq = last_seq + $4::integer, updated_at = greatest(updated_at, $5::timestamptz)
 WHERE user_id = $1 AND id = $2::uuid AND last_seq = $3::integer
RETURNING user_id, id
"""


def extend_conversation(user_id: str, id: UUID, *, last_seq: int, added: int, updated_at: datetime) -> Query:
    """Make room for messages that follow in the same transaction. No row: it is gone, or another writer was first.

    Index: conversations_pkey.
    """
    return Query(_EXTEND, (user_id, id, last_seq, added, updated_at))


_ONE = f"SELECT {CONVERSATION}, archived_at FROM chatledger.conversations WHERE user_id = $1 AND id = {{target}}"
_NEXT = f"""
SELECT {CONVERSATION}, archived_at FROM chatledger.conversations
 WHERE user_id = $1 AND number > $2::bigint ORDER BY number LIMIT $3::bigint
"""
# One by one: before Postgres 17 `= ANY` keeps no order, so that a page of a long one would read all that is left of it.
_MESSAGES = f"""
SELECT m.*
  FROM unnest($2::uuid[]) AS wanted (id)
 CROSS JOIN LATERAL (
       SELECT {MESSAGE} FROM chatledger.messages
        WHERE user_id = $1 AND conversation_id = wanted.id AND seq > $3::integer
        ORDER BY seq LIMIT $4::bigint) m
 ORDER BY m.conversation_id, m.seq LIMIT $4
"""


def read_conversation(user_id: str, ref: ConversationRef) -> Query:
    """One conversation, or no row. Index: conversations_pkey."""
    return at(_ONE, user_id, ref)


def read_conversations(user_id: str, *, after_number: int, limit: int) -> Query:
    """The next conversations in the order of their numbers. Index: conversations_number."""
    return Query(_NEXT, (user_id, after_number, limit))


def read_messages(user_id: str, ids: Sequence[UUID], *, after_seq: int, limit: int) -> Query:
    """Messages of these conversations, by conversation and seq. Index: messages_pkey."""
    return Query(_MESSAGES, (user_id, list(ids), after_seq, limit))


_COUNT = """
SELECT u.id AS user_id, count(c.id) AS conversations, coalesce(sum(c.last_seq), 0) AS messages
  FROM chatledger.users u LEFT JOIN chatledger.conversations c ON c.user_id = $1
 WHERE u.id = $1 GROUP BY u.id
"""


def count_user(user_id: str) -> Query:
    """How much a user has. No row: there is no such user. Index: users_pkey, conversations_pkey."""
    return Query(_COUNT, (user_id,))


# Counted first: in distributed Postgres each part of a statement sees what those before it did.
_ERASE = """
WITH had AS MATERIALIZED (
  SELECT u.id AS user_id, count(c.id) AS conversations, coalesce(sum(c.last_seq), 0) AS messages
    FROM chatledger.users u LEFT JOIN chatledger.conversations c ON c.user_id = $1
   WHERE u.id = $1 GROUP BY u.id
), gone AS (
  DELETE FROM chatledger.users u USING had h WHERE u.id = $1 AND u.id = h.user_id
  RETURNING u.id AS user_id, h.conversations, h.messages
), listed AS (
  INSERT INTO chatledger.erasures (user_digest, conversations, messages)
  SELECT $2::bytea, conversations, messages FROM gone
)
SELECT user_id, conversations, messages FROM gone
"""


def erase_user(user_id: str, user_digest: bytes) -> Query:
    """Delete a user; conversations and messages go by the foreign keys. What stays is a line in the list of erasures.

    No row: there is no such user. Index: users_pkey, conversations_pkey, messages_pkey.
    """
    return Query(_ERASE, (user_id, user_digest))
