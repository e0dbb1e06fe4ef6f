"""Access tokens that stand for a user without an issuer: made on the command line, kept as hashes, revoked at once.

`chatledger_<id>_<secret>`, so that scanners for secrets know one by its shape: the id, 12 hexadecimal digits, may be
shown and finds the row; the secret is 256 random bits in hexadecimal. A hash without salt or stretching is right for
that: there is nothing to guess, as with passwords, and each request has to compute it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from chatledger.storage import limits, token_queries
from chatledger.storage.errors import StorageError
from chatledger.storage.message_log import MessageLog
from chatledger.storage.validation import check_text, check_user

PREFIX: Final = "chatledger_"
ID_BYTES: Final = 6  # chosen: short enough to type; ids need not be unique, as the secret decides
SECRET_BYTES: Final = 32  # chosen: as many bits as the hash has
_TOKEN: Final = re.compile(rf"{PREFIX}([0-9a-f]{{{2 * ID_BYTES}}})_[0-9a-f]{{{2 * SECRET_BYTES}}}")


class ApiToken(NamedTuple):
    """A token without its secret, which nobody has but its bearer."""

    user_id: str
    id: str
    name: str | None
    scopes: tuple[str, ...]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    """Of the last minute in which it was used, not of the last use."""


class TokenStore:
    """The access tokens of all users, in the database of a store. Every method may raise `Unavailable` as well."""

    def __init__(self, store: MessageLog) -> None:
        self._database = store.database
        self._marking: dict[str, asyncio.Task[None]] = {}

    async def create(
        self, user_id: str, *, scopes: Sequence[str], name: str | None = None, expires_at: datetime | None = None
    ) -> tuple[ApiToken, str]:
        """A new token, and its text, which cannot be had again.

        Raises:
            InvalidArgument: the user's id or the name is out of its bounds.
        """
        check_user(user_id)
        if name is not None:
            check_text("name", name, min_chars=1, max_chars=limits.TOKEN_NAME_CHARS)
        public = secrets.token_hex(ID_BYTES)
        text = f"{PREFIX}{public}_{secrets.token_hex(SECRET_BYTES)}"
        query = token_queries.create_token(
            user_id, public, _hash(text), name=name, scopes=scopes, expires_at=expires_at
        )
        (row,) = await self._database.write(query, repeatable=False)
        return _token(row), text

    async def find(self, text: str) -> ApiToken | None:
        """The token with this text; None where it was never made, is revoked or has expired, by the database's clock.

        That it is in use is noted once a minute, beside the call and not in it.
        """
        parsed = _TOKEN.fullmatch(text)
        if parsed is None:
            return None
        hashed = _hash(text)
        rows = await self._database.read(token_queries.find_token(parsed[1]))
        found = [row for row in rows if hmac.compare_digest(row["hash"], hashed)]
        if not found:
            return None
        token = _token(found[0])
        if found[0]["unmarked"] and token.id not in self._marking:
            self._marking[token.id] = asyncio.create_task(self._mark(token))
        return token

    async def list(self, user_id: str | None = None) -> list[ApiToken]:
        """All tokens, or one user's, the oldest first; those that have expired are among them."""
        if user_id is not None:
            check_user(user_id)
        query = token_queries.list_tokens() if user_id is None else token_queries.list_tokens_of(user_id)
        return [_token(row) for row in await self._database.read(query)]

    async def revoke(self, id: str) -> ApiToken | None:
        """Delete a token, so that the next request with it is refused by every process. None where there is none."""
        rows = await self._database.write(token_queries.revoke_token(id), repeatable=False)
        return _token(rows[0]) if rows else None

    async def aclose(self) -> None:
        """Finish noting which tokens are in use: before the store is closed, which would open again for it."""
        if self._marking:
            await asyncio.wait(list(self._marking.values()))

    async def _mark(self, token: ApiToken) -> None:
        try:
            query = token_queries.mark_token(token.user_id, token.id, token.last_used_at)
            with contextlib.suppress(StorageError):  # the next use notes it
                await self._database.write(query, repeatable=True)
        finally:
            del self._marking[token.id]


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _token(row: Any) -> ApiToken:
    return ApiToken(
        row["user_id"],
        row["id"],
        row["name"],
        tuple(row["scopes"]),
        row["created_at"],
        row["expires_at"],
        row["last_used_at"],
    )
