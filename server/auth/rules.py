"""Which callers count as verified: the settings about it, checked against each other. Values only, and no work."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

ASYMMETRIC: Final = ("EdDSA", "ES256", "RS256")  # the contract
SYMMETRIC: Final = ("HS256",)  # the contract
SECRET_BYTES: Final = 32  # RFC 7518, 3.2: a key as long as the hash, at least
ANY: Final = "any"
"""As the audience: a token need not say for whom it is."""

# OpenID Connect Core, 5.7: they can change hands, and must not be used as identifiers of a user.
_NO_IDENTIFIERS: Final = frozenset({"email", "phone_number", "preferred_username", "name"})
# A public key is no secret, and a private one does not belong here; the JWT library takes neither for HS256.
_KEY_FILES: Final = ("{", "ssh-", "ecdsa-")


@dataclass(frozen=True, slots=True)
class JwtRules:
    """What a JSON Web Token must be. Either `jwks_url` or `secret` is there, never both."""

    issuer: str | None
    """Compared exactly; None only beside a secret, where whoever has that is the issuer."""
    jwks_url: str | None
    secret: bytes | None = field(repr=False)
    audiences: frozenset[str] | None
    """One of them must be named; none here: this server's own URL; None: not looked at."""
    parties: frozenset[str]
    """Clients (`azp` or `client_id`) that a token may come from; none here: any."""
    algorithms: tuple[str, ...]
    user_claim: str


@dataclass(frozen=True, slots=True)
class AuthRules:
    """How callers are verified over HTTP: by JWTs, by tokens made by `chatledger token create`, or both."""

    jwt: JwtRules | None
    static_tokens: bool
    require_scopes: bool
    """Whether a token that names no scopes has none, instead of reading and writing."""


def make_rules(
    *,
    issuer: str | None,
    jwks_url: str | None,
    secret: str | None,
    audience: tuple[str, ...],
    parties: tuple[str, ...],
    algorithms: tuple[str, ...],
    user_claim: str,
    require_scopes: bool,
    static_tokens: bool | None,
) -> AuthRules | None:
    """The rules that the settings make together; None where no authentication is configured.

    Raises:
        ValueError: they contradict each other or are not safe; the sentence names the setting and no value.
    """
    if issuer is None and jwks_url is None and secret is None:
        for name, given in (("AUDIENCE", audience), ("AUTHORIZED_PARTIES", parties), ("ALGORITHMS", algorithms)):
            if given:
                raise _unusable(name, "it needs CHATLEDGER_AUTH_ISSUER or CHATLEDGER_AUTH_SECRET beside it")
        return AuthRules(None, True, require_scopes) if static_tokens else None
    if secret is not None and jwks_url is not None:
        raise _unusable("SECRET", "CHATLEDGER_AUTH_JWKS_URL is set as well; a token is verified by one or the other")
    if ANY in audience and len(audience) > 1:
        raise _unusable("AUDIENCE", f"`{ANY}` does not go together with names")
    allowed = ASYMMETRIC if secret is None else SYMMETRIC
    if not set(algorithms) <= set(allowed):
        raise _unusable(
            "ALGORITHMS", f"with {'a JWKS' if secret is None else 'a secret'} they are {', '.join(allowed)}"
        )
    if user_claim in _NO_IDENTIFIERS:
        raise _unusable("USER_CLAIM", "it must name a claim that never passes to another person, such as sub")
    if secret is not None:
        _check_secret(secret)
    else:
        issuer, jwks_url = _key_source(issuer, jwks_url)
    jwt = JwtRules(
        issuer=issuer,
        jwks_url=jwks_url,
        secret=None if secret is None else secret.encode(),
        audiences=None if ANY in audience else frozenset(audience),
        parties=frozenset(parties),
        algorithms=algorithms or allowed,
        user_claim=user_claim,
    )
    return AuthRules(jwt, static_tokens is not False, require_scopes)


def _check_secret(secret: str) -> None:
    if len(secret.encode()) < SECRET_BYTES:
        raise _unusable("SECRET", f"HS256 needs at least {SECRET_BYTES} bytes; `openssl rand -hex 32` makes them")
    if "-----BEGIN" in secret or secret.startswith(_KEY_FILES):
        raise _unusable("SECRET", "it is half of a key pair; for tokens signed by one set CHATLEDGER_AUTH_JWKS_URL")


def _key_source(issuer: str | None, jwks_url: str | None) -> tuple[str, str]:
    if issuer is None:
        raise _unusable("JWKS_URL", "it needs CHATLEDGER_AUTH_ISSUER beside it")
    for name, url in (("ISSUER", issuer), ("JWKS_URL", jwks_url)):
        if url is not None and not is_safe_url(url):
            raise _unusable(name, "it must be an https:// URL (http:// on loopback addresses only)")
    return issuer, jwks_url or f"{issuer.rstrip('/')}/.well-known/jwks.json"


def _unusable(name: str, why: str) -> ValueError:
    return ValueError(f"CHATLEDGER_AUTH_{name} cannot be used: {why}")


def is_safe_url(url: str) -> bool:
    """Whether it is an https URL, or an http one of a loopback address: nobody in between can change the answer."""
    return is_public_url(url) and (url.startswith("https:") or is_loopback(urlsplit(url).hostname or ""))


def is_public_url(url: str) -> bool:
    """Whether it is an https or http URL in its usual form, without a user, a query or a fragment."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    usual = re.fullmatch(r"https?://[A-Za-z0-9._~:/\[\]%-]+", url)
    return usual is not None and bool(host) and parts.username is None


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without brackets, is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
