"""A token made by `chatledger token create` -> the user it was made for, or a refusal."""

from __future__ import annotations

import math

from mcp.server.auth.provider import AccessToken

from chatledger.server.auth import scopes
from chatledger.server.auth.refusals import TokenRefused
from chatledger.storage.tokens import PREFIX, TokenStore


def is_static(token: str) -> bool:
    """Whether it is, or pretends to be, one of ours: no JWT begins like that."""
    return token.startswith(PREFIX)


class StaticTokenVerifier:
    """Looks tokens up at each request, so that a revoked one ends at once. `resource` is this server's URL."""

    def __init__(self, tokens: TokenStore, resource: str) -> None:
        self._tokens, self._resource = tokens, resource

    async def verify(self, token: str) -> AccessToken:
        """Whom the token stands for. Its text is not kept.

        Raises:
            TokenRefused: there is no such token, or not any more.
            StorageError: the database cannot say.
        """
        found = await self._tokens.find(token)
        if found is None:
            raise TokenRefused("the token was revoked, has expired or was never made")
        return AccessToken(
            token="",
            client_id=f"token:{found.id}",
            scopes=[scope for scope in scopes.ALL if scope in found.scopes],
            expires_at=None if found.expires_at is None else math.ceil(found.expires_at.timestamp()),
            resource=self._resource,
            subject=found.user_id,
            claims={"iss": self._resource},
        )
