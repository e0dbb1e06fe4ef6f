"""A look at authentication for people: whom a server over HTTP would believe, and what keeps it from doing so."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from chatledger.server.auth.key_set import KeysUnreadable, fetch_keys
from chatledger.server.auth.rules import AuthRules, JwtRules
from chatledger.storage.diagnosis import Problem
from chatledger.storage.tokens import ApiToken


class AuthDiagnosis(NamedTuple):
    """What was found. No secret is in it, and no part of one."""

    ways: list[str]
    """How a caller can be known, in words; none where nothing is configured."""
    facts: dict[str, Any]
    """The same for programs."""
    problems: list[Problem]
    remarks: list[str]


async def diagnose(
    rules: AuthRules | None, tokens: Sequence[ApiToken] | None, *, public_url: str | None
) -> AuthDiagnosis:
    """Ask the issuer for its keys, once, within the bounds that servers keep to. `tokens` is None if nobody knows."""
    found = AuthDiagnosis([], {}, [], [])
    if rules is None:
        return found
    if rules.jwt is not None:
        await _jwt(rules.jwt, found, public_url)
    if rules.static_tokens:
        _static(tokens, found, alone=rules.jwt is None)
    if rules.require_scopes and rules.jwt is not None:
        found.remarks.append("a JWT that names no scopes may do nothing, as CHATLEDGER_AUTH_REQUIRE_SCOPES is set")
    return found


async def _jwt(jwt: JwtRules, found: AuthDiagnosis, public_url: str | None) -> None:
    facts: dict[str, Any] = {"issuer": jwt.issuer, "algorithms": list(jwt.algorithms), "user_claim": jwt.user_claim}
    way = "a secret"
    if jwt.jwks_url is None:
        facts["by"] = way
    else:
        way = facts["by"] = jwt.jwks_url
        try:
            facts["keys"] = len(await fetch_keys(jwt.jwks_url, jwt.algorithms))
        except KeysUnreadable as exc:
            what = f"the keys of the tokens' issuer cannot be had from {jwt.jwks_url}: {exc}"
            mend = "check CHATLEDGER_AUTH_ISSUER and CHATLEDGER_AUTH_JWKS_URL, and that this machine reaches it"
            found.problems.append(Problem(what, mend))
    by = "" if jwt.issuer is None else f" of {jwt.issuer}"
    found.ways.append(f"JWT{by}, verified by {way} ({', '.join(jwt.algorithms)}); the user is in {jwt.user_claim}")
    facts["audience"] = "any" if jwt.audiences is None else sorted(jwt.audiences) or public_url
    if jwt.audiences is None:
        found.remarks.append("JWTs for any audience are taken: one made for another service opens this one, too")
    elif not jwt.audiences and public_url is None:
        found.remarks.append(
            "the aud of a JWT must be the URL that `serve` prints, as CHATLEDGER_PUBLIC_URL is not set"
        )
    found.facts["jwt"] = {name: value for name, value in facts.items() if value is not None}


def _static(tokens: Sequence[ApiToken] | None, found: AuthDiagnosis, *, alone: bool) -> None:
    if tokens is None:
        found.ways.append("static tokens, how many is not known")
        found.facts["static_tokens"] = {}
        return
    now = datetime.now(UTC)
    expired = sum(token.expires_at is not None and token.expires_at <= now for token in tokens)
    valid = len(tokens) - expired
    found.facts["static_tokens"] = {"valid": valid, "expired": expired}
    found.ways.append(f"static tokens: {valid} valid" + (f", {expired} expired" if expired else ""))
    if alone and not valid:
        found.remarks.append("nobody can be known yet: `chatledger token create --user ID` makes a token")
