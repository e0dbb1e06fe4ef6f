"""The statements about access tokens. Unlike all others some are not about one user: a token tells who its user is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from chatledger.storage.query import Query

_COLUMNS = "user_id, id, name, scopes, created_at, expires_at, last_used_at"

_CREATE = f"""
WITH owner AS (
  INSERT INTO chatledger.users (id) VALUES ($1) ON CONFLICT (id) DO NOTHING
)
INSERT INTO chatledger.api_tokens (user_id, id, hash, name, scopes, expires_at)
SELECT $1, $2::text, $3::bytea, $4::text, $5::text[], $6::timestamptz
RETURNING {_COLUMNS}
"""


def create_token(
    user_id: str, id: str, hash: bytes, *, name: str | None, scopes: Sequence[str], expires_at: datetime | None
) -> Query:
    """Add a token, and its user where there is none yet: who is erased loses the tokens by the foreign key.

    Index: users_pkey.
    """
    return Query(_CREATE, (user_id, id, hash, name, list(scopes), expires_at))


_FIND = f"""
SELECT {_COLUMNS}, hash, last_used_at IS NULL OR last_used_at < statement_timestamp() - interval '1 minute' AS unmarked
  FROM chatledger.api_tokens
 WHERE id = $1 AND (expires_at IS NULL OR expires_at > statement_timestamp())
"""


def find_token(id: str) -> Query:
    """The token with this id, unless it has expired: whose it is, is the question. Index: api_tokens_id."""
    return Query(_FIND, (id,), "a token")


_MARK = """
UPDATE chatledger.api_tokens SET last_used_at = statement_timestamp()
 WHERE user_id = $1 AND id = $2::text AND last_used_at IS NOT DISTINCT FROM $3::timestamptz
"""


def mark_token(user_id: str, id: str, last_used_at: datetime | None) -> Query:
    """Note that a token is in use, unless another process has just done so. Index: api_tokens_pkey or api_tokens_id."""
    return Query(_MARK, (user_id, id, last_used_at))


_LIST = f"SELECT {_COLUMNS} FROM chatledger.api_tokens ORDER BY user_id, created_at, id"
_LIST_OF_ONE = f"SELECT {_COLUMNS} FROM chatledger.api_tokens WHERE user_id = $1 ORDER BY created_at, id"


def list_tokens() -> Query:
    """Those of all users, by user and age, for whoever runs the server. Reads the whole table."""
    return Query(_LIST, (), "everybody")


def list_tokens_of(user_id: str) -> Query:
    """Those of one user, the oldest first. Index: api_tokens_pkey."""
    return Query(_LIST_OF_ONE, (user_id,))


_REVOKE = f"DELETE FROM chatledger.api_tokens WHERE id = $1 RETURNING {_COLUMNS}"


def revoke_token(id: str) -> Query:
    """Delete the token with this id, for whoever runs the server. No row: there is none. Index: api_tokens_id."""
    return Query(_REVOKE, (id,), "a token")
