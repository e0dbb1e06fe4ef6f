"""Every SQL statement of the store, one function each; each is one atomic step and one network round trip.

`$1` is the user in all of them and stands in the WHERE of every table they touch: no statement can be built without it.
A conversation is named by its id or by its number, so `{target}` stands for its id as an expression over `$1` and `$2`.
The statements keep to what distributed Postgres allows: no volatile function in an UPDATE, no stable one over a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from .records import ConversationRef
from .validation import MessageColumns

LAST_NUMBER = 2**63 - 1  # a number beyond bigint cannot be any conversation's; it is asked for as 0, which none has
LOOK_AROUND = 256  # messages searched beyond a window's edge for the rest of a tool exchange (chosen: far above any turn)
PREVIEW_CHARS = 160  # chosen: two lines of a list
PREVIEW_MESSAGES = 8  # chosen: how far back from the end the text of a preview is looked for


class Query(NamedTuple):
    """A statement and its arguments."""

    sql: str
    args: tuple[Any, ...]


# A statement's own time is from before its wait for the row lock: hence the clamp against the row's last time.
NOW = "greatest(statement_timestamp(), updated_at)"

CONVERSATION = (
    "user_id, id, number, title, key, metadata, last_seq, archived_at IS NOT NULL AS archived, "
    "forked_from_id, forked_from_seq, created_at, updated_at"
)
_BODY = "role, content, tool_calls, tool_call_id, name, parts, metadata"
_MESSAGE = f"user_id, conversation_id, seq, id, {_BODY}, client_message_id, created_at"

_BY_ID = "$2::uuid"
_BY_NUMBER = "(SELECT id FROM chatledger.conversations WHERE user_id = $1 AND number = $2::bigint)"
_LATEST = (
    "(SELECT id FROM chatledger.conversations WHERE user_id = $1 AND archived_at IS NULL AND $2::text IS NULL "
    "ORDER BY updated_at DESC, id DESC LIMIT 1)"
)


@cache
def _aimed(sql: str, target: str) -> str:
    return sql.replace("{target}", target)


def _at(sql: str, user_id: str, ref: ConversationRef, *args: object) -> Query:
    if isinstance(ref, UUID):
        return Query(_aimed(sql, _BY_ID), (user_id, ref, *args))
    return Query(_aimed(sql, _BY_NUMBER), (user_id, ref if ref <= LAST_NUMBER else 0, *args))


# ---- create, update, fork, delete ---------------------------------------------------------------------------------

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
    return Query(_CREATE, (user_id, id, key, title, metadata, quota))


_UPDATE = f"""
UPDATE chatledger.conversations
   SET title = coalesce($3::text, title),
       metadata = CASE WHEN $4::jsonb IS NULL THEN metadata
                       ELSE (coalesce(metadata, '{{}}'::jsonb) || $4) - $5::text[] END,
       archived_at = CASE WHEN $6::boolean THEN coalesce(archived_at, {NOW})
                          WHEN NOT $6 THEN NULL ELSE archived_at END,
       updated_at = {NOW}
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
    return _at(_UPDATE, user_id, ref, title, merged, list(removed), archived)


_GET = f"SELECT {CONVERSATION} FROM chatledger.conversations WHERE user_id = $1 AND id = {{target}}"


def get_conversation(user_id: str, ref: ConversationRef) -> Query:
    """One conversation, or no row. Index: conversations_pkey."""
    return _at(_GET, user_id, ref)


_FORK = f"""
WITH source AS MATERIALIZED (
  SELECT id, title, metadata, updated_at, coalesce($4::bigint, last_seq)::integer AS cut
    FROM chatledger.conversations
   WHERE user_id = $1 AND id = {{target}} AND ($4 IS NULL OR $4 <= last_seq)
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
  INSERT INTO chatledger.messages ({_MESSAGE})
  SELECT $1, a.id, m.seq, gen_random_uuid(), {_BODY.replace("metadata", "m.metadata")}, m.client_message_id, m.created_at
    FROM added a
    JOIN chatledger.messages m ON m.user_id = $1 AND m.conversation_id = a.forked_from_id AND m.seq <= a.forked_from_seq
)
SELECT * FROM added
"""


def fork_conversation(
    user_id: str, ref: ConversationRef, id: UUID, *, at_seq: int | None, title: str | None, quota: int | None
) -> Query:
    """Copy messages 1 to `at_seq` into a new conversation, from one snapshot.

    No row: the source is not there or not this user's, it ends before `at_seq`, or the quota is used up.
    Index: conversations_pkey, messages_pkey.
    """
    return _at(_FORK, user_id, ref, id, at_seq, title, quota)


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
    return _at(_DELETE, user_id, ref)


# ---- append -------------------------------------------------------------------------------------------------------

_APPEND_ONE = f"""
WITH prior AS MATERIALIZED (
  SELECT user_id, conversation_id, seq, id, created_at, ({_BODY}) IS NOT DISTINCT FROM
         ($4::text, $5::text, $6::jsonb, $7::text, $8::text, $9::jsonb, $10::jsonb) AS same
    FROM chatledger.messages
   WHERE user_id = $1 AND conversation_id = {{target}} AND client_message_id = $11::text
), head AS (
  UPDATE chatledger.conversations
     SET last_seq = last_seq + 1, updated_at = {NOW}
   WHERE user_id = $1 AND id = {{target}} AND ($12::bigint IS NULL OR last_seq = $12)
     AND NOT EXISTS (SELECT FROM prior)
  RETURNING id, last_seq, updated_at
), added AS (
  INSERT INTO chatledger.messages ({_MESSAGE})
  SELECT $1, id, last_seq, $3::uuid, $4, $5, $6, $7, $8, $9, $10, $11, updated_at FROM head
  RETURNING user_id, conversation_id, seq, id, created_at
)
SELECT *, true AS same, false AS deduplicated FROM added
UNION ALL
SELECT *, true FROM prior
"""


def append_message(
    user_id: str, ref: ConversationRef, id: UUID, message: MessageColumns, *, expected_last_seq: int | None
) -> Query:
    """Append one message: the UPDATE locks the conversation and hands out the number and the time.

    No row: ask `get_conversation` why. `same` false: the id was used with another body. Two calls with one id at the
    same instant both miss `prior`; the second violates `messages_client_message_id`: run it again.
    Index: conversations_pkey, messages_client_message_id.
    """
    return _at(_APPEND_ONE, user_id, ref, id, *message, expected_last_seq)


_APPEND_MANY = f"""
WITH input AS MATERIALIZED (
  SELECT id, role, content, tool_calls::jsonb, tool_call_id, name, parts::jsonb, metadata::jsonb, client_message_id, ord
    FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
                $11::text[])
         WITH ORDINALITY AS x (id, {_BODY}, client_message_id, ord)
), prior AS MATERIALIZED (
  SELECT m.user_id, m.conversation_id, m.seq, m.id, m.created_at, i.ord,
         ({", ".join(f"m.{column}" for column in _BODY.split(", "))}) IS NOT DISTINCT FROM
         ({", ".join(f"i.{column}" for column in _BODY.split(", "))}) AS same
    FROM input i
    JOIN chatledger.messages m
      ON m.user_id = $1 AND m.conversation_id = {{target}} AND m.client_message_id = i.client_message_id
), todo AS MATERIALIZED (
  SELECT i.*, row_number() OVER (ORDER BY i.ord)::integer AS nth
    FROM input i
   WHERE NOT EXISTS (SELECT FROM prior p WHERE p.ord = i.ord)
), head AS (
  UPDATE chatledger.conversations
     SET last_seq = last_seq + (SELECT count(*) FROM todo)::integer, updated_at = {NOW}
   WHERE user_id = $1 AND id = {{target}} AND ($12::bigint IS NULL OR last_seq = $12)
     AND EXISTS (SELECT FROM todo) AND NOT EXISTS (SELECT FROM prior WHERE NOT same)
  RETURNING id AS conversation_id, last_seq - (SELECT count(*) FROM todo)::integer AS base, updated_at
), added AS (
  INSERT INTO chatledger.messages ({_MESSAGE})
  SELECT $1, h.conversation_id, h.base + t.nth, t.id, {_BODY}, t.client_message_id, h.updated_at
    FROM todo t, head h
)
SELECT $1 AS user_id, h.conversation_id, h.base + t.nth AS seq, t.id, h.updated_at AS created_at, t.ord,
       true AS same, false AS deduplicated
  FROM todo t, head h
UNION ALL
SELECT *, true FROM prior
"""


def append_messages(
    user_id: str,
    ref: ConversationRef,
    ids: Sequence[UUID],
    messages: Sequence[MessageColumns],
    *,
    expected_last_seq: int | None,
) -> Query:
    """Append many, all or none. Rows carry `ord`, counted from 1: the receipts of those that are stored now or were before.

    Fewer rows than messages: nothing was stored; a row with `same` false, an expectation that failed, or no
    conversation says why. No id may come twice in `messages`. Index: as append_message.
    """
    columns = zip(*messages, strict=True)
    return _at(_APPEND_MANY, user_id, ref, list(ids), *(list(column) for column in columns), expected_last_seq)


# ---- load and list ------------------------------------------------------------------------------------------------

# Octets, not characters: they are known without unpacking a large text. Four a token fits English and code; a Chinese
# character has three octets and counts 0.75. The constant stands for the role and the wrapping of a message.
_TOKENS = "4 + (octet_length(content) + coalesce(octet_length(tool_calls::text), 0){full} + 3) / 4"
_FULL_TOKENS = " + coalesce(octet_length(parts::text), 0) + coalesce(octet_length(metadata::text), 0)"
_FULL = "id, client_message_id, parts, metadata"
_CONCISE = "NULL::uuid AS id, NULL::text AS client_message_id, NULL::jsonb AS parts, NULL::jsonb AS metadata"

# One result of three kinds of row, so that it is one statement and one snapshot; a join would repeat the conversation
# in every row (measured: 27-45 % more CPU).
_HISTORY = f"""
WITH window_rows AS MATERIALIZED (
  SELECT * FROM (
    SELECT near.*, sum(tokens) OVER (ORDER BY seq {{direction}} ROWS UNBOUNDED PRECEDING) AS total
      FROM (SELECT user_id, seq, role, content, created_at, tool_calls, tool_call_id, name, {{detail}},
                   {{tokens}} AS tokens
              FROM chatledger.messages
             WHERE user_id = $1 AND conversation_id = {{target}} AND seq > $3::bigint AND seq < $4::bigint
             ORDER BY seq {{direction}}
             LIMIT $5::bigint) near
  ) counted
   WHERE total <= $6::bigint OR total = tokens
), edges AS MATERIALIZED (
  SELECT CASE WHEN bool_or(role = 'tool') THEN min(seq) END AS first,
         CASE WHEN bool_or(tool_calls IS NOT NULL) THEN max(seq) END AS last
    FROM window_rows
), around AS (
  -- Scalar subqueries, not a join: they become bounds of the index scan, and a null bound ends it before it begins.
  SELECT user_id, seq, role, tool_call_id, tool_calls FROM chatledger.messages
   WHERE user_id = $1 AND conversation_id = {{target}}
     AND seq >= (SELECT first FROM edges) - {LOOK_AROUND} AND seq < (SELECT first FROM edges)
  UNION ALL
  SELECT user_id, seq, role, tool_call_id, tool_calls FROM chatledger.messages
   WHERE user_id = $1 AND conversation_id = {{target}}
     AND seq > (SELECT last FROM edges) AND seq <= (SELECT last FROM edges) + {LOOK_AROUND}
)
SELECT 'message' AS kind, user_id, seq, role, content, created_at, tool_calls, tool_call_id, name, id, client_message_id,
       parts, metadata, tokens, NULL::bigint AS number, NULL::text AS title, NULL::text AS key,
       NULL::integer AS last_seq, NULL::boolean AS archived, NULL::uuid AS forked_from_id,
       NULL::integer AS forked_from_seq, NULL::timestamptz AS updated_at
  FROM window_rows
UNION ALL
SELECT 'around', user_id, seq, role, NULL, NULL, jsonb_path_query_array(tool_calls, '$[*].id'), tool_call_id, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
  FROM around WHERE role = 'tool' OR tool_calls IS NOT NULL
UNION ALL
SELECT 'conversation', user_id, NULL, NULL, NULL, created_at, NULL, NULL, NULL, id,
       NULL, NULL, metadata, NULL, number, title, key, last_seq, archived_at IS NOT NULL, forked_from_id,
       forked_from_seq, updated_at
  FROM chatledger.conversations WHERE user_id = $1 AND id = {{target}}
"""


@cache
def _history(target: str, forward: bool, full: bool) -> str:
    sql = _HISTORY.replace("{tokens}", _TOKENS.format(full=_FULL_TOKENS if full else ""))
    sql = sql.replace("{detail}", _FULL if full else _CONCISE)
    return sql.replace("{direction}", "ASC" if forward else "DESC").replace("{target}", target)


def load_history(
    user_id: str,
    ref: ConversationRef | None,
    *,
    after_seq: int,
    before_seq: int,
    limit: int,
    max_tokens: int,
    forward: bool,
    full: bool,
) -> Query:
    """The messages between two numbers, both exclusive, from the one end or the other, while they fit `max_tokens`.

    Rows of three kinds, in no promised order: `conversation`, the one that they belong to (no such row: it is not there
    or not this user's); `message`, at least one where there is any; `around`, what lies within LOOK_AROUND of an edge
    that may cut a tool exchange, with the ids of its calls only. `ref` None is the latest conversation not archived.
    Index: messages_pkey; conversations_recent for the latest.
    """
    bounds = (after_seq, before_seq, limit, max_tokens)
    if ref is None:
        return Query(_history(_LATEST, forward, full), (user_id, None, *bounds))
    if isinstance(ref, UUID):
        return Query(_history(_BY_ID, forward, full), (user_id, ref, *bounds))
    return Query(_history(_BY_NUMBER, forward, full), (user_id, ref if ref <= LAST_NUMBER else 0, *bounds))


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


_LIKE_ESCAPES = str.maketrans({"%": r"\%", "_": r"\_", "\\": r"\\"})
