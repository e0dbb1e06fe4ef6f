"""The statements that load messages, one function each, with the index that each relies on."""

from __future__ import annotations

from functools import cache

from chatledger.storage.limits import LAST_SEQ
from chatledger.storage.query import HEAD, MESSAGE, Query, at
from chatledger.storage.records import ConversationRef

# How many messages beyond a window's edge are searched for the rest of a tool exchange (chosen: far above any turn).
LOOK_AROUND = 256
# Tokens of a message that is not short (chosen: 150 characters). A budget is first looked for in as many messages as
# it holds of these.
TYPICAL_TOKENS = 40

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
