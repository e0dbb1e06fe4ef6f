"""A JSON Web Token -> the user it stands for, or a refusal. Nothing in the token chooses how it is verified."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from jwt import PyJWK, PyJWS, PyJWTError
from mcp.server.auth.provider import AccessToken

from chatledger.server.auth import scopes
from chatledger.server.auth.key_set import KeySet
from chatledger.server.auth.refusals import TokenRefused
from chatledger.server.auth.rules import JwtRules
from chatledger.storage.limits import USER_ID_CHARS

TOKEN_BYTES: Final = 8 * 1024  # the trust plan; a token of any of the known issuers has less than half of it
LEEWAY_SECONDS: Final = 5.0  # chosen: clocks kept by NTP differ by less than one; the trust plan allows 30
_LAST_TIME: Final = 2**53  # RFC 8259, 6: beyond it a number is not exact

# They name a key, or say that something must be understood: neither is the token's to decide (RFC 8725, 3.10).
_REFUSED_HEADERS: Final = frozenset({"crit", "jku", "jwk", "x5u", "x5c"})
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})  # RFC 7519, 5.1; RFC 9068, 2.1
# OpenID Connect Core, 2 and 3.3.2.11: what only an ID token has, which tells a client who signed in and opens nothing.
_ID_TOKEN_CLAIMS: Final = frozenset({"nonce", "at_hash", "c_hash"})
# Keycloak writes what a token is into `typ`, Cognito into `token_use`.
_OTHER_KINDS: Final = {"typ": frozenset({"id", "refresh", "offline", "logout"}), "token_use": frozenset({"id"})}
_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # category Cc, and halves of surrogate pairs
_JWS: Final = PyJWS()


class JwtVerifier:
    """Verifies tokens of one issuer. `own` are the URLs that name this server where no audience is set."""

    def __init__(
        self,
        rules: JwtRules,
        own: frozenset[str],
        *,
        require_scopes: bool = False,
        keys: KeySet | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._rules, self._now, self._require_scopes = rules, now, require_scopes
        self._audiences = own if rules.audiences == frozenset() else rules.audiences
        if keys is None and rules.jwks_url is not None:
            keys = KeySet(rules.jwks_url, rules.algorithms)
        self._keys = keys

    async def verify(self, token: str) -> AccessToken:
        """Whom the token stands for. Its text is not kept.

        Raises:
            TokenRefused: it is not to be believed; the sentence says why.
            KeysUnavailable: that cannot be told at present.
        """
        if len(token) > TOKEN_BYTES:
            raise TokenRefused(f"the token has over {TOKEN_BYTES:,} bytes")
        try:
            header = _JWS.get_unverified_header(token)
        except (PyJWTError, ValueError):
            raise TokenRefused("the token is not a JWT") from None
        algorithm = self._checked_header(header)
        key = await self._key(header.get("kid"), algorithm)
        try:
            payload: bytes = _JWS.decode_complete(token, key, algorithms=[algorithm])["payload"]
            claims = json.loads(payload)
        except (PyJWTError, ValueError, RecursionError):
            raise TokenRefused("the token's signature does not verify") from None
        if not isinstance(claims, dict):
            raise TokenRefused("the token holds no claims")
        return self._read(claims)

    def _checked_header(self, header: Mapping[str, Any]) -> str:
        algorithm, kind = header.get("alg"), header.get("typ", "JWT")
        if algorithm not in self._rules.algorithms:
            raise TokenRefused("the token's algorithm is not among those that are allowed")
        if not _REFUSED_HEADERS.isdisjoint(header) or header.get("b64", True) is not True:
            raise TokenRefused("the token's header holds what is not allowed there")
        if not isinstance(kind, str) or kind.lower() not in _TYPES:
            raise TokenRefused("the token is not an access token")
        return str(algorithm)

    async def _key(self, id: str | None, algorithm: str) -> PyJWK | bytes:
        if self._rules.secret is not None:
            return self._rules.secret
        assert self._keys is not None
        return await self._keys.key(id, algorithm)

    def _read(self, claims: dict[str, Any]) -> AccessToken:
        if not _ID_TOKEN_CLAIMS.isdisjoint(claims) or any(
            str(claims.get(claim, "")).lower() in kinds for claim, kinds in _OTHER_KINDS.items()
        ):
            raise TokenRefused("the token is not an access token")
        expires = self._checked_times(claims)
        issuer = claims.get("iss")
        if self._rules.issuer is not None and issuer != self._rules.issuer:
            raise TokenRefused("the token is from another issuer")
        client = next((claims[claim] for claim in ("azp", "client_id") if claim in claims), "")
        if self._rules.parties and (not isinstance(client, str) or client not in self._rules.parties):
            raise TokenRefused("the token was made for a client that is not allowed")
        return AccessToken(
            token="",
            client_id=client if isinstance(client, str) else "",
            scopes=list(scopes.granted(claims, require_scopes=self._require_scopes)),
            expires_at=expires,
            resource=self._checked_audience(claims.get("aud")),
            subject=self._user(claims.get(self._rules.user_claim)),
            claims={"iss": issuer} if isinstance(issuer, str) else None,
        )

    def _checked_times(self, claims: Mapping[str, Any]) -> int:
        now, expires = self._now(), _time(claims.get("exp"))
        if expires is None:
            raise TokenRefused("the token does not say when it expires")
        if now >= expires + LEEWAY_SECONDS:
            raise TokenRefused("the token has expired")
        if "nbf" in claims:
            begins = _time(claims["nbf"])
            if begins is None or now < begins - LEEWAY_SECONDS:
                raise TokenRefused("the token is not valid yet")
        return math.ceil(expires)

    def _checked_audience(self, named: object) -> str | None:
        if self._audiences is None:
            return None
        names = named if isinstance(named, list) else [named]
        found = next((name for name in names if isinstance(name, str) and name in self._audiences), None)
        if found is None:
            raise TokenRefused("the token is not for this server: its aud names another, or none")
        return found

    def _user(self, user: object) -> str:
        if not isinstance(user, str) or not 1 <= len(user) <= USER_ID_CHARS or _CONTROLS.search(user):
            raise TokenRefused(f"the token names no user: a text of 1 to {USER_ID_CHARS} characters without controls")
        return user


def _time(value: object) -> float | None:
    """A NumericDate (RFC 7519, 2); None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LAST_TIME:
        return None
    return float(value)
