"""The statements that append messages, one function each, with the index that each relies on."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from chatledger.storage.query import BODY, MESSAGE, NOW, Query, a_number, at
from chatledger.storage.records import ConversationRef
from chatledger.storage.validation import MessageColumns

_UPDATE_AND_INSERT = f"""head AS (
  UPDATE chatledger.conversations
     SET last_seq = last_seq + 1, updated_at = {NOW}
   WHERE user_id = $1 AND id = {{target}} AND ($12::bigint IS NULL OR last_seq = $12)
     AND ($13::bigint IS NULL OR last_seq < $13){{unless}}
  RETURNING id, last_seq, updated_at
), added AS (
  INSERT INTO chatledger.messages ({MESSAGE})
  SELECT $1, id, last_seq, $3::uuid, $4::text, $5::text, $6::jsonb, $7::text, $8::text, $9::jsonb, $10::jsonb,
         $11::text, updated_at
    FROM head
  RETURNING user_id, conversation_id, seq, id, created_at
)
SELECT *, true AS same, false AS deduplicated FROM added"""
_APPEND_UNKEYED = "WITH " + _UPDATE_AND_INSERT.replace("{unless}", "")
_APPEND_KEYED = f"""
WITH prior AS MATERIALIZED (
  SELECT user_id, conversation_id, seq, id, created_at, ({BODY}) IS NOT DISTINCT FROM
         ($4::text, $5::text, $6::jsonb, $7::text, $8::text, $9::jsonb, $10::jsonb) AS same
    FROM chatledger.messages
   WHERE user_id = $1 AND conversation_id = {{target}} AND client_message_id = $11::text
), {_UPDATE_AND_INSERT.replace("{unless}", " AND NOT EXISTS (SELECT FROM prior)")}
UNION ALL
SELECT *, true FROM prior
"""


def append_message(
    user_id: str,
    ref: ConversationRef,
    id: UUID,
    message: MessageColumns,
    *,
    expected_last_seq: int | None,
    quota: int | None = None,
) -> Query:
    """Append one message: the UPDATE locks the conversation and hands out the number and the time.

    No row: ask `get_conversation` why. `same` false: the id was used with another body. Two calls with one id at the
    same instant both miss `prior`; the second violates `messages_client_message_id`: run it again. A message without an
    id can be no repeat, and nothing is looked up for it (measured: 0.88 times the database's CPU).
    Index: conversations_pkey; with an id messages_client_message_id.
    """
    sql = _APPEND_UNKEYED if message.client_message_id is None else _APPEND_KEYED
    return at(sql, user_id, ref, id, *message, expected_last_seq, quota)


_INPUT = ", ".join(f"i.{column}" for column in BODY.split(", "))
_STORED = ", ".join(f"m.{column}" for column in BODY.split(", "))

# Arrays of text only: before it sends one of another type the driver asks for that type, once on each connection, which
# takes Postgres 20 ms, and a coordinator of Citus 1.9 s of CPU (measured; it looks for shards in its catalog).
_APPEND_MANY = f"""
WITH input AS MATERIALIZED (
  SELECT id::uuid, role, content, tool_calls::jsonb, tool_call_id, name, parts::jsonb, metadata::jsonb,
         client_message_id, ord
    FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
                $11::text[])
         WITH ORDINALITY AS x (id, {BODY}, client_message_id, ord)
), prior AS MATERIALIZED (
  SELECT m.user_id, m.conversation_id, m.seq, m.id, m.created_at, i.ord,
         ({_STORED}) IS NOT DISTINCT FROM ({_INPUT}) AS same
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
     AND ($13::bigint IS NULL OR last_seq + (SELECT count(*) FROM todo) <= $13)
     AND EXISTS (SELECT FROM todo) AND NOT EXISTS (SELECT FROM prior WHERE NOT same)
  RETURNING id AS conversation_id, last_seq - (SELECT count(*) FROM todo)::integer AS base, updated_at
), added AS (
  INSERT INTO chatledger.messages ({MESSAGE})
  SELECT $1, h.conversation_id, h.base + t.nth, t.id, {BODY}, t.client_message_id, h.updated_at
    FROM todo t, head h
  RETURNING seq  -- for distributed Postgres, which else copies the rows in, and does not tell what an error is
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
    quota: int | None = None,
) -> Query:
    """Append many, all or none. Rows carry `ord`, counted from 1: the receipts of those that are stored now or were
    before.

    Fewer rows than messages: nothing was stored; a row with `same` false, an expectation that failed, the quota, or no
    conversation says why. No id may come twice in `messages`.
    Index: conversations_pkey, messages_client_message_id.
    """
    columns = zip(*messages, strict=True)
    return at(
        _APPEND_MANY,
        user_id,
        ref,
        [message_id.hex for message_id in ids],
        *(list(column) for column in columns),
        expected_last_seq,
        quota,
    )


# It waits for nobody: a conversation that another writer holds at this moment is passed over, so that one user's busy
# conversation holds up no other's, and two batches never wait for each other.
_APPEND_BATCH = f"""
WITH input AS MATERIALIZED (
  SELECT x.user_id, coalesce(x.conversation_id::uuid, (SELECT c.id FROM chatledger.conversations c
                                                        WHERE c.user_id = x.user_id AND c.number = x.number::bigint))
         AS conversation_id,
         x.id::uuid, role, content, tool_calls::jsonb, tool_call_id, name, parts::jsonb, metadata::jsonb,
         client_message_id, ord
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::text[], $11::text[], $12::text[])
         WITH ORDINALITY AS x (user_id, conversation_id, number, id, {BODY}, client_message_id, ord)
), prior AS MATERIALIZED (
  SELECT m.user_id, m.conversation_id, m.seq, m.id, m.created_at, i.ord,
         ({_STORED}) IS NOT DISTINCT FROM ({_INPUT}) AS same
    FROM input i
    JOIN chatledger.messages m ON m.user_id = i.user_id AND m.conversation_id = i.conversation_id
                              AND m.client_message_id = i.client_message_id
), todo AS MATERIALIZED (
  SELECT i.*, row_number() OVER (PARTITION BY user_id, conversation_id ORDER BY ord)::integer AS nth
    FROM input i
   WHERE NOT EXISTS (SELECT FROM prior p WHERE p.ord = i.ord)
), locked AS MATERIALIZED (
  SELECT c.user_id, c.id, w.added
    FROM (SELECT user_id, conversation_id, max(nth) AS added FROM todo GROUP BY 1, 2) w
    JOIN chatledger.conversations c ON c.user_id = w.user_id AND c.id = w.conversation_id
     FOR NO KEY UPDATE OF c SKIP LOCKED
), head AS (
  UPDATE chatledger.conversations c
     SET last_seq = c.last_seq + l.added, updated_at = greatest(statement_timestamp(), c.updated_at)
    FROM locked l
   WHERE c.user_id = l.user_id AND c.id = l.id AND ($13::bigint IS NULL OR c.last_seq + l.added <= $13)
  RETURNING c.user_id, c.id, c.last_seq - l.added AS base, c.updated_at
), numbered AS MATERIALIZED (
  SELECT t.*, h.base + t.nth AS seq, h.updated_at AS created_at
    FROM todo t
    JOIN head h ON h.user_id = t.user_id AND h.id = t.conversation_id
), added AS (
  INSERT INTO chatledger.messages ({MESSAGE})
  SELECT {MESSAGE} FROM numbered
)
SELECT user_id, conversation_id, seq, id, created_at, ord, true AS same, false AS deduplicated FROM numbered
UNION ALL
SELECT *, true FROM prior
"""


def append_batch(
    user_ids: Sequence[str],
    refs: Sequence[UUID | int],
    ids: Sequence[UUID],
    messages: Sequence[MessageColumns],
    *,
    quota: int | None,
) -> Query:
    """Append messages of many users to many conversations: each as by `append_message` without an expectation.

    Rows carry the user and `ord`, counted from 1. A message without a row was not stored, because it is refused or its
    conversation is locked: append it alone. Each row of a table is reached by the user of its own message. No key may
    come twice. Index: conversations_pkey, messages_client_message_id.
    """
    named = [ref.hex if isinstance(ref, UUID) else None for ref in refs]
    numbered = [None if isinstance(ref, UUID) else str(a_number(ref)) for ref in refs]
    columns: list[list[str | None]] = [list(user_ids), named, numbered, [each.hex for each in ids]]
    columns += [list(column) for column in zip(*messages, strict=True)]
    # A null in the place of an array of nulls, which takes the driver longer than all the texts.
    arrays = (column if any(value is not None for value in column) else None for column in columns)
    return Query(_APPEND_BATCH, (*arrays, quota))
