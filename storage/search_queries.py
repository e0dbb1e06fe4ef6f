"""The statement that searches messages, in its forms, with the indexes that it relies on.

What is newest is read and compared, however common the words are; what is older is found by trigrams, however much of
it there is. Neither way alone is fast for both a common word and a rare one.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Final, NamedTuple
from uuid import UUID

from chatledger.storage.query import Query, at
from chatledger.storage.records import ConversationRef
from chatledger.storage.rows import SNIPPET_CHARS
from chatledger.storage.search_terms import Search
from chatledger.storage.search_text import INDEXED, SEARCHED

# Newest messages that are compared before the index is asked (chosen: it costs 2 ms, and a common word fills the page).
NEAR: Final = 250
# Messages that the index may name. Where it names more, they are walked through instead, newest first: so many are
# found sooner than sorted (chosen: looking at so many takes about 40 ms).
FEW: Final = 1_000
# Messages that one page walks through. The next one goes on behind them (chosen: about 100 ms for 600 characters each).
WALKED: Final = 10_000

SNIPPET_BEFORE: Final = 40  # characters; chosen: a few words in front of what was found


class Place(NamedTuple):
    """Where a message stands among all of a user, newest first."""

    created_at: datetime
    conversation_id: UUID
    seq: int


_NEWEST = "created_at DESC, conversation_id DESC, seq DESC"
_PLACE = "(created_at, conversation_id, seq)"
_NEWEST_OF_ONE = "seq DESC"  # the same order, which the key of a conversation has

_FITS = f"""{SEARCHED} ILIKE ALL ($6::text[]) AND {SEARCHED} ~* ALL ($7::text[])
         AND ($8::text IS NULL OR {SEARCHED} !~* $8) AND ($9::text IS NULL OR role = $9)"""

# A subquery with a LIMIT keeps the order of its index. The index is asked without order or place, or the planner would
# rather walk to the end of an ordered index than ask for trigrams.
_WALK = f"""
  SELECT user_id, conversation_id, seq, created_at FROM (
         SELECT user_id, conversation_id, seq, created_at, role, content FROM chatledger.messages
          WHERE user_id = $1{{scope}}{{after}} ORDER BY {{newest}} LIMIT {{most}}) newest
   WHERE {_FITS} ORDER BY {{newest}} LIMIT $4::bigint"""
_EDGE = """
  SELECT created_at, conversation_id, seq FROM chatledger.messages
   WHERE user_id = $1{scope}{after} ORDER BY {newest} OFFSET {most} - 1 LIMIT 1"""
_BY_INDEX = f"""
, near_edge AS MATERIALIZED ({{near_edge}}
), few AS MATERIALIZED (
  SELECT user_id, conversation_id, seq, created_at, {_FITS} AS fits FROM chatledger.messages
   WHERE user_id = $1{{scope}}{{drivers}} AND (SELECT count(*) FROM near) < $4 AND EXISTS (SELECT FROM near_edge)
   LIMIT {FEW}
), many AS MATERIALIZED (
  SELECT FROM few OFFSET {FEW} - 1 LIMIT 1
), edge AS MATERIALIZED (
  SELECT * FROM ({{edge}}) beyond WHERE EXISTS (SELECT FROM many)
), hits AS MATERIALIZED (
  (SELECT * FROM near)
  UNION ALL
  (SELECT f.user_id, f.conversation_id, f.seq, f.created_at FROM few f, near_edge e
    WHERE f.fits AND NOT EXISTS (SELECT FROM many)
      AND (f.created_at, f.conversation_id, f.seq) < (e.created_at, e.conversation_id, e.seq)
    ORDER BY {_NEWEST} LIMIT $4)
  UNION ALL
  (SELECT * FROM ({{walk}}) walked WHERE EXISTS (SELECT FROM many))
  ORDER BY {_NEWEST} LIMIT $4
)"""
_BY_WALK = """
, edge AS MATERIALIZED ({near_edge}
), hits AS MATERIALIZED (SELECT * FROM near)"""
_SEARCH = f"""
WITH {{head}}near AS MATERIALIZED ({{near}}
){{rest}}
SELECT coalesce(h.user_id, $1) AS user_id, h.conversation_id, h.seq, h.created_at, m.role, c.number, c.title,
       s.start, substring(m.content FROM s.start FOR {SNIPPET_CHARS + 1}) AS piece,
       e.created_at AS edge_created_at, e.conversation_id AS edge_conversation_id, e.seq AS edge_seq
  FROM {{once}}
  LEFT JOIN hits h ON true
  LEFT JOIN edge e ON true
  LEFT JOIN chatledger.messages m ON m.user_id = $1 AND m.conversation_id = h.conversation_id AND m.seq = h.seq
  LEFT JOIN chatledger.conversations c ON c.user_id = $1 AND c.id = h.conversation_id
  LEFT JOIN LATERAL (
       SELECT regexp_instr({SEARCHED.replace("content", "m.content")}, $5::text, 1, 1, 0, 'i') AS at) p ON true
  LEFT JOIN LATERAL (SELECT greatest(1, p.at - {SNIPPET_BEFORE}) AS start) s ON true
 ORDER BY h.created_at DESC, h.conversation_id DESC, h.seq DESC
"""
_HEAD = "head AS MATERIALIZED (SELECT id FROM chatledger.conversations WHERE user_id = $1 AND id = {target}), "
_BEYOND = "(SELECT created_at FROM near_edge), (SELECT conversation_id FROM near_edge), (SELECT seq FROM near_edge)"
_FIXED = 9  # arguments that every form has


@cache
def _statement(in_one: bool, after: bool, times: tuple[bool, bool], drivers: int) -> str:
    """The statement's text; what is optional follows the fixed arguments in this order."""
    number = _FIXED

    def argument(kind: str) -> str:
        nonlocal number
        number += 1
        return f"${number}::{kind}"

    # In subqueries, which hide them from the planner: it knows how often a word is said by all users, and for one that
    # is said often would rather read this user's messages one by one, who may never have said it.
    driving = "".join(f" AND {INDEXED} ILIKE (SELECT {argument('text')})" for _ in range(drivers))
    scope = " AND conversation_id = (SELECT id FROM head)" if in_one else ""
    if times[0]:
        scope += f" AND created_at > {argument('timestamptz')}"
    if times[1]:
        scope += f" AND created_at < {argument('timestamptz')}"
    before = ""
    if after:
        before = f" AND {_PLACE} < ({argument('timestamptz')}, {argument('uuid')}, {argument('integer')})"
    parts = {"scope": scope, "newest": _NEWEST_OF_ONE if in_one else _NEWEST}
    beyond = f" AND {_PLACE} < ({_BEYOND})"
    if in_one:  # its key has them by seq, which is the same order
        beyond += " AND seq < (SELECT seq FROM near_edge)"
        before += f" AND seq < ${number}" if after else ""
    # An argument, not a number: a plan that is kept for any arguments takes it for a small part of what there is and so
    # keeps to the order of the index; knowing it, it sorts all that a user has (measured: 3 x, from the sixth call on).
    walked = argument("bigint") if drivers else ""
    near_edge = _EDGE.format(after=before, most="$3::bigint", **parts)
    rest = _BY_WALK.format(near_edge=near_edge)
    if drivers:
        rest = _BY_INDEX.format(
            near_edge=near_edge,
            scope=scope,
            drivers=driving,
            edge=_EDGE.format(after=beyond, most=walked, **parts),
            walk=_WALK.format(after=beyond, most=walked, **parts),
        )
    return _SEARCH.format(
        head=_HEAD if in_one else "",
        near=_WALK.format(after=before, most="$3::bigint", **parts),
        rest=rest,
        once="head" if in_one else "(SELECT $2::text) AS once",
    )


def search_messages(
    user_id: str,
    search: Search,
    ref: ConversationRef | None,
    *,
    role: str | None,
    created_after: datetime | None,
    created_before: datetime | None,
    after: Place | None,
    limit: int,
) -> Query:
    """The newest `limit` messages that fit, from `after` (exclusive) on; a row without a message where there is none.

    Each row tells of the edge, if there is one: messages beyond it were not looked at, so that a page which is not full
    goes on there. No row: the conversation is not there or not this user's.
    Index: messages_recent, messages_search; messages_pkey for one conversation.
    """
    drivers = search.drivers
    text = _statement(
        ref is not None,
        after is not None,
        (created_after is not None, created_before is not None),
        len(drivers),
    )
    args = [
        NEAR if drivers else WALKED,
        limit,
        search.shown,
        search.parts,
        search.required,
        search.excluded,
        role,
        *drivers,
        *(time for time in (created_after, created_before) if time is not None),
        *(after or ()),
        *([WALKED] if drivers else []),
    ]
    return at(text, user_id, ref, *args) if ref is not None else Query(text, (user_id, None, *args))
