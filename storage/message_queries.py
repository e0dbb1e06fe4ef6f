"""The statements that append messages and load them, one function each, with the index that each relies on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from uuid import UUID

from chatledger.storage.limits import LAST_SEQ
from chatledger.storage.query import BODY, HEAD, MESSAGE, NOW, Query, a_number, at
from chatledger.storage.records import ConversationRef
from chatledger.storage.validation import MessageColumns

# How many messages beyond a window's edge are searched for the rest of a tool exchange (chosen: far above any turn).
LOOK_AROUND = 256
# Tokens of a message that is not short (chosen: 150 characters). A budget is first looked for in as many messages as
# it holds of these.
TYPICAL_TOKENS = 40

# ---- append -------------------------------------------------------------------------------------------------------

_APPEND_ONE = f"""
WITH prior AS MATERIALIZED (
  SELECT user_id, conversation_id, seq, id, created_at, ({BODY}) IS NOT DISTINCT FROM
         ($4::text, $5::text, $6::jsonb, $7::text, $8::text, $9::jsonb, $10::jsonb) AS same
    FROM chatledger.messages
   WHERE user_id = $1 AND conversation_id = {{target}} AND client_message_id = $11::text
), head AS (
  UPDATE chatledger.conversations
     SET last_seq = last_seq + 1, updated_at = {NOW}
   WHERE user_id = $1 AND id = {{target}} AND ($12::bigint IS NULL OR last_seq = $12)
     AND ($13::bigint IS NULL OR last_seq < $13) AND NOT EXISTS (SELECT FROM prior)
  RETURNING id, last_seq, updated_at
), added AS (
  INSERT INTO chatledger.messages ({MESSAGE})
  SELECT $1, id, last_seq, $3::uuid, $4, $5, $6, $7, $8, $9, $10, $11, updated_at FROM head
  RETURNING user_id, conversation_id, seq, id, created_at
)
SELECT *, true AS same, false AS deduplicated FROM added
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
    same instant both miss `prior`; the second violates `messages_client_message_id`: run it again.
    Index: conversations_pkey, messages_client_message_id.
    """
    return at(_APPEND_ONE, user_id, ref, id, *message, expected_last_seq, quota)


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
    conversation says why. No id may come twice in `messages`. Index: as append_message.
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
    come twice. Index: as append_message.
    """
    named = [ref.hex if isinstance(ref, UUID) else None for ref in refs]
    numbered = [None if isinstance(ref, UUID) else str(a_number(ref)) for ref in refs]
    columns: list[list[str | None]] = [list(user_ids), named, numbered, [each.hex for each in ids]]
    columns += [list(column) for column in zip(*messages, strict=True)]
    # A null in the place of an array of nulls, which takes the driver longer than all the texts.
    arrays = (column if any(value is not None for value in column) else None for column in columns)
    return Query(_APPEND_BATCH, (*arrays, quota))


# ---- load ---------------------------------------------------------------------------------------------------------

# Octets, not characters: they are known without unpacking a large text. Four a token fits English and code; a Chinese
# character has three octets and counts 0.75. The constant stands for the role and the wrapping of a message.
_TOKENS = "4 + (octet_length(content) + coalesce(octet_length(tool_calls::text), 0){full} + 3) / 4"
_FULL_TOKENS = " + coalesce(octet_length(parts::text), 0) + coalesce(octet_length(metadata::text), 0)"
_FULL = ", id, client_message_id::text, parts::jsonb, metadata::jsonb"
_NO_FULL = ", NULL, NULL, NULL, NULL"

_FEW = f"$6::bigint / {TYPICAL_TOKENS}"
# One result of three kinds of row, so that it is one statement and one snapshot; a join would repeat the conversation
# in every row (measured: 27-45 % more CPU). Columns of domains are cast, for kinds whose types differ are gone through
# once more (measured: 13 %). What is looked at first has no texts in it: a running total over rows with theirs, kept
# until its edges are known, takes Postgres 1.8 times the time (measured: 5.4 for 3.0 ms of a thousand). And few are
# looked at where the budget is spent within them: by default a thousand may be asked for, and a hundred fit.
_HISTORY = f"""
WITH nearest AS MATERIALIZED (
  SELECT sum(tokens) > $6 AS enough
    FROM ({{near}} LIMIT CASE WHEN {_FEW} < $5::bigint THEN {_FEW} ELSE 0 END) near
), reach AS MATERIALIZED (
  SELECT min(seq) AS first, max(seq) AS last, sum(tokens) AS tokens, bool_or(role = 'tool') AS results,
         bool_or(calls) AS calls
    FROM ({{near}} LIMIT {{most}}) near
), fitting AS MATERIALIZED (
  SELECT first, last FROM reach WHERE tokens <= $6
  UNION ALL
  SELECT min(seq), max(seq)
    FROM (SELECT seq, tokens, sum(tokens) OVER (ORDER BY seq {{direction}} ROWS UNBOUNDED PRECEDING) AS total
            FROM ({{near}} LIMIT {{most}}) near
           WHERE (SELECT tokens FROM reach) > $6) counted
   WHERE total <= $6 OR total = tokens
  HAVING (SELECT tokens FROM reach) > $6
), edges AS MATERIALIZED (
  -- A bound may lie inside an exchange of which the window has no message, and only its two sides show it.
  SELECT CASE WHEN bounded OR results THEN fitting.first END AS first,
         CASE WHEN bounded OR calls THEN fitting.last END AS last
    FROM reach, fitting, (SELECT $3 > 0 OR $4 < {LAST_SEQ} AS bounded) ask
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
SELECT user_id, seq::integer, role::text, content::text, created_at, tool_calls::jsonb, tool_call_id, name{{detail}},
       {{tokens}} AS tokens, NULL::jsonb AS conversation
  FROM chatledger.messages
 WHERE user_id = $1 AND conversation_id = {{target}}
   AND seq >= (SELECT first FROM fitting) AND seq <= (SELECT last FROM fitting)
UNION ALL
SELECT user_id, seq::integer, role::text, NULL, NULL, jsonb_path_query_array(tool_calls, '$[*].id'), tool_call_id,
       NULL{{no_detail}}, NULL, NULL
  FROM around WHERE role = 'tool' OR tool_calls IS NOT NULL
UNION ALL
SELECT user_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL{{no_detail}}, NULL, {HEAD}
  FROM chatledger.conversations WHERE user_id = $1 AND id = {{target}}
"""
_NEAR = """SELECT seq, role, tool_calls IS NOT NULL AS calls, {tokens} AS tokens
            FROM chatledger.messages
           WHERE user_id = $1 AND conversation_id = {target} AND seq > $3::bigint AND seq < $4::bigint
           ORDER BY seq {direction}"""
_MOST = f"CASE WHEN (SELECT enough FROM nearest) THEN {_FEW} ELSE $5 END"


@cache
def _history(forward: bool, full: bool) -> str:
    sql = _HISTORY.replace("{near}", _NEAR).replace("{tokens}", _TOKENS.format(full=_FULL_TOKENS if full else ""))
    sql = sql.replace("{detail}", _FULL if full else "").replace("{no_detail}", _NO_FULL if full else "")
    return sql.replace("{most}", _MOST).replace("{direction}", "ASC" if forward else "DESC")


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

    Rows of three kinds, in no promised order. One has a `conversation`, the one that they belong to, as JSON (no such
    row: it is not there or not this user's). Those with a `content` are messages, at least one where there is any: with
    the columns of `Message` in its order, the last four only when `full`, between the user and the tokens. Those with
    neither lie within LOOK_AROUND of an edge that may cut a tool exchange, with the ids of their calls only. `ref` None
    is the latest conversation not archived. Index: messages_pkey; conversations_recent for the latest.
    """
    return at(_history(forward, full), user_id, ref, after_seq, before_seq, limit, max_tokens)


_ONE = f"""
SELECT {MESSAGE} FROM chatledger.messages WHERE user_id = $1 AND conversation_id = {{target}} AND seq = $3::bigint
"""


def load_message(user_id: str, ref: ConversationRef, seq: int) -> Query:
    """One message, or no row. Index: messages_pkey."""
    return at(_ONE, user_id, ref, seq)
