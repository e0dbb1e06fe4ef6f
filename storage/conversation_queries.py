"""The statements about conversations, one function each, with the index that each relies on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chatledger.storage.query import BODY, CONVERSATION, MESSAGE, Query, at
from chatledger.storage.records import ConversationRef

PREVIEW_CHARS = 160  # chosen: two lines of a list
PREVIEW_MESSAGES = 8  # chosen: how far back from the end the text of a preview is looked for

_CREATE = f"""
WITH existing AS MATERIALIZED (
  SELECT {CONVERSATION} FROM chatledger.conversations WHERE user_id = $1 AND key = $3::text
), owner AS (
  INSERT INTO chatledger.users AS u (id, last_number, conversation_count)
  SELECT $1, 1, 1 WHERE NOT EXISTS (SELECT FROM existing)
  ON CONFLICT (id) DO UPDATE
     SET last_number = u.last_number + 1, conversation_count = u.conversation_count + 1
   WHERE u.id = $1 AND ($6::bigint IS NULL OR u.conversation_count < $6)
  RETURNING last_number
), added AS (
  INSERT INTO chatledger.conversations (user_id, id, number, key, title, metadata)
  SELECT $1, $2::uuid, last_number, $3, $4::text, $5::jsonb FROM owner
  RETURNING {CONVERSATION}
)
SELECT *, true AS created FROM added
UNION ALL
SELECT *, false FROM existing
"""


def create_conversation(
    user_id: str, id: UUID, *, key: str | None, title: str | None, metadata: str | None, quota: int | None
) -> Query:
    """Get or create. The user's row is made or locked first, so that numbers and the quota are handed out in turn.

    No row: the quota is used up, or (with a key) another call made that conversation meanwhile: run it again.
    `conversations_key` is violated when another call made it at the same instant: run it again, too.
    Index: conversations_key, users_pkey.
    """
    return Query(_CREATE, (user_id, id, key, title, metadata, quota), row=(user_id,))


# The time comes from a FROM: distributed Postgres takes no function that is not immutable inside a CASE or coalesce.
_UPDATE = f"""
UPDATE chatledger.conversations
   SET title = coalesce($3::text, title),
       metadata = CASE WHEN $4::jsonb IS NULL THEN metadata
                       ELSE (coalesce(metadata, '{{}}'::jsonb) || $4) - $5::text[] END,
       archived_at = CASE WHEN $6::boolean THEN coalesce(archived_at, greatest(moment.now, updated_at))
                          WHEN NOT $6 THEN NULL ELSE archived_at END,
       updated_at = greatest(moment.now, updated_at)
  FROM (SELECT statement_timestamp() AS now) moment
 WHERE user_id = $1 AND id = {{target}}
RETURNING {CONVERSATION}
"""


def update_conversation(
    user_id: str,
    ref: ConversationRef,
    *,
    title: str | None,
    merged: str | None,
    removed: Sequence[str],
    archived: bool | None,
) -> Query:
    """Change what is not None. No row: it is not there or not this user's. Index: conversations_pkey."""
    return at(_UPDATE, user_id, ref, title, merged, list(removed), archived)


_GET = f"SELECT {CONVERSATION} FROM chatledger.conversations WHERE user_id = $1 AND id = {{target}}"


def get_conversation(user_id: str, ref: ConversationRef) -> Query:
    """One conversation, or no row. Index: conversations_pkey."""
    return at(_GET, user_id, ref)


_FORK = f"""
WITH holder AS MATERIALIZED (
  SELECT id FROM chatledger.users WHERE id = $1 FOR NO KEY UPDATE
), kept AS MATERIALIZED (
  SELECT id FROM chatledger.conversations
   WHERE user_id = $1 AND id = {{target}} AND EXISTS (SELECT FROM holder)
     FOR KEY SHARE
), source AS MATERIALIZED (
  SELECT c.id, c.title, c.metadata, c.updated_at, least($4::bigint, c.last_seq)::integer AS cut
    FROM chatledger.conversations c, kept k
   WHERE c.user_id = $1 AND c.id = k.id AND ($4 IS NULL OR $4 <= c.last_seq)
), owner AS (
  UPDATE chatledger.users u
     SET last_number = u.last_number + 1, conversation_count = u.conversation_count + 1
    FROM source
   WHERE u.id = $1 AND ($6::bigint IS NULL OR u.conversation_count < $6)
  RETURNING u.last_number
), added AS (
  INSERT INTO chatledger.conversations
         (user_id, id, number, title, metadata, last_seq, forked_from_id, forked_from_seq, updated_at)
  SELECT $1, $3::uuid, o.last_number, coalesce($5::text, s.title), s.metadata, s.cut, s.id, s.cut,
         greatest(statement_timestamp(), s.updated_at)
    FROM source s, owner o
  RETURNING {CONVERSATION}
), copied AS (
  INSERT INTO chatledger.messages ({MESSAGE})
  SELECT $1, a.id, m.seq, gen_random_uuid(), {BODY.replace("metadata", "m.metadata")}, m.client_message_id,
  m.created_at
    FROM added a
    JOIN chatledger.messages m ON m.user_id = $1 AND m.conversation_id = a.forked_from_id AND m.seq <= a.forked_from_seq
  RETURNING seq  -- as for append_messages
)
SELECT * FROM added
"""


def fork_conversation(
    user_id: str, ref: ConversationRef, id: UUID, *, at_seq: int | None, title: str | None, quota: int | None
) -> Query:
    """Copy messages 1 to `at_seq` into a new conversation, from one snapshot.

    The user's row is locked first, as delete does, then the source: the parts of a statement may have snapshots of
    their own in distributed Postgres, some from before the wait for a deletion, and there would be nothing to copy.

    No row: the source is not there or not this user's, it ends before `at_seq`, or the quota is used up.
    Index: conversations_pkey, messages_pkey.
    """
    return at(_FORK, user_id, ref, id, at_seq, title, quota)._replace(row=(user_id,))


_DELETE = """
WITH owner AS MATERIALIZED (
  SELECT id FROM chatledger.users WHERE id = $1 FOR NO KEY UPDATE
), gone AS (
  DELETE FROM chatledger.conversations c USING owner o
   WHERE c.user_id = $1 AND c.user_id = o.id AND c.id = {target}
  RETURNING c.user_id, c.id, c.last_seq
), counted AS (
  UPDATE chatledger.users SET conversation_count = conversation_count - 1
   WHERE id = $1 AND EXISTS (SELECT FROM gone)
)
SELECT user_id, id, last_seq FROM gone
"""


def delete_conversation(user_id: str, ref: ConversationRef) -> Query:
    """Delete a conversation; its messages go by the foreign key. No row: it is not there or not this user's.

    The user's row is locked first, as create does, or the two could wait for each other over one key.
    Index: users_pkey, conversations_pkey, messages_pkey.
    """
    return at(_DELETE, user_id, ref)._replace(row=(user_id,))


_LIST = f"""
SELECT c.*, p.preview
  FROM (SELECT {CONVERSATION} FROM chatledger.conversations
         WHERE user_id = $1{{filters}}
         ORDER BY updated_at DESC, id DESC
         LIMIT $2::bigint) c
  LEFT JOIN LATERAL (
         SELECT left(content, {PREVIEW_CHARS}) AS preview FROM chatledger.messages m
          WHERE m.user_id = $1 AND m.conversation_id = c.id AND m.seq > c.last_seq - {PREVIEW_MESSAGES}
            AND m.content <> ''
          ORDER BY m.seq DESC LIMIT 1) p ON true
 ORDER BY c.updated_at DESC, c.id DESC
"""


def list_conversations(
    user_id: str,
    limit: int,
    *,
    before: tuple[datetime, UUID] | None,
    include_archived: bool,
    title_contains: str | None,
    updated_after: datetime | None,
    updated_before: datetime | None,
) -> Query:
    """A page of conversations, newest `updated_at` first, from `before` (exclusive) on. Index: conversations_recent."""
    args: list[object] = [user_id, limit]
    filters = "" if include_archived else " AND archived_at IS NULL"
    if before is not None:
        args += before
        filters += " AND (updated_at, id) < ($3::timestamptz, $4::uuid)"
    if title_contains is not None:
        args.append("%" + title_contains.translate(_LIKE_ESCAPES) + "%")
        filters += f" AND title ILIKE ${len(args)}::text"
    if updated_after is not None:
        args.append(updated_after)
        filters += f" AND updated_at > ${len(args)}::timestamptz"
    if updated_before is not None:
        args.append(updated_before)
        filters += f" AND updated_at < ${len(args)}::timestamptz"
    return Query(_LIST.replace("{filters}", filters), tuple(args))


_NUMBERS = """
SELECT user_id, number FROM chatledger.conversations
 WHERE user_id = $1 AND archived_at IS NULL AND (number::text LIKE $2::text || '%' OR title ILIKE '%' || $2 || '%')
 ORDER BY updated_at DESC, id DESC
 LIMIT $3::bigint
"""


def list_numbers(user_id: str, typed: str, limit: int) -> Query:
    """Numbers that begin with `typed`, or whose conversation has it in its title. Index: conversations_recent."""
    return Query(_NUMBERS, (user_id, typed.translate(_LIKE_ESCAPES), limit))


_LIKE_ESCAPES = str.maketrans({"%": r"\%", "_": r"\_", "\\": r"\\"})
