"""What the statements of the store share: how a conversation is named in them, and which columns they answer with.

`$1` is the user in all of them and stands in the WHERE of every table they touch: no statement can be built without it.
`{target}` stands for a conversation's id as an expression over `$1` and `$2`, as it is named by its id or its number.
The statements keep to what distributed Postgres allows: no volatile function in an UPDATE, no stable one over a column.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from chatledger.storage.records import ConversationRef

# A statement's own time is from before its wait for the row lock: hence the clamp against the row's last time.
NOW = "greatest(statement_timestamp(), updated_at)"

CONVERSATION = (
    "user_id, id, number, title, key, metadata, last_seq, archived_at IS NOT NULL AS archived, "
    "forked_from_id, forked_from_seq, created_at, updated_at"
)
# The same as one value, beside rows of another kind; columns of its own would be a thousand nulls each.
HEAD = """jsonb_build_object(
         'id', id, 'number', number, 'title', title, 'key', key, 'metadata', metadata, 'last_seq', last_seq,
         'archived', archived_at IS NOT NULL, 'forked_from_id', forked_from_id, 'forked_from_seq', forked_from_seq,
         'created_at', created_at, 'updated_at', updated_at)"""
BODY = "role, content, tool_calls, tool_call_id, name, parts, metadata"
MESSAGE = f"user_id, conversation_id, seq, id, {BODY}, client_message_id, created_at"

OWNED_BY = {"users": "id", "conversations": "user_id", "messages": "user_id", "api_tokens": "user_id"}
"""The tables with rows of a user, each before those that refer to it, and the column that tells whose a row is."""

BY_ID = "$2::uuid"
BY_NUMBER = "(SELECT id FROM chatledger.conversations WHERE user_id = $1 AND number = $2::bigint)"
LATEST = (
    "(SELECT id FROM chatledger.conversations WHERE user_id = $1 AND archived_at IS NULL AND $2::text IS NULL "
    "ORDER BY updated_at DESC, id DESC LIMIT 1)"
)
_LAST_NUMBER = 2**63 - 1  # a number beyond bigint is no conversation's; 0, which none has either, costs the same work


Row: TypeAlias = tuple[object, ...]
"""A row that calls may wait for: of `users` by the user alone, of `conversations` by the user and what names it."""


class Query(NamedTuple):
    """A statement and its arguments: one atomic step and one network round trip."""

    sql: str
    args: tuple[Any, ...]
    about: Literal["a user", "a token", "everybody"] = "a user"
    """What row security holds it to: rows of the user or the token in its first argument, or lists of all users."""
    row: Row | None = None
    """What it locks first, if it is a write, and so waits for while another holds it."""


def at(sql: str, user_id: str, ref: ConversationRef | None, *args: object) -> Query:
    """The statement aimed at a conversation; None is the one updated last that is not archived."""
    if ref is None:
        return Query(_aimed(sql, LATEST), (user_id, None, *args))
    if isinstance(ref, UUID):
        return Query(_aimed(sql, BY_ID), (user_id, ref, *args), row=(user_id, ref))
    return Query(_aimed(sql, BY_NUMBER), (user_id, a_number(ref), *args), row=(user_id, ref))


def a_number(number: int) -> int:
    """The number of a conversation as Postgres can compare it; 0, which is nobody's, for one that it cannot."""
    return number if 0 < number <= _LAST_NUMBER else 0


@cache
def _aimed(sql: str, target: str) -> str:
    return sql.replace("{target}", target)
