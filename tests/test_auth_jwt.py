"""Which JSON Web Tokens are believed, and whom they stand for. Every token here but one kind is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from mcp.server.auth.provider import AccessToken

from chatledger.server.auth.jwt_verifier import LEEWAY_SECONDS, TOKEN_BYTES, JwtVerifier
from chatledger.server.auth.key_set import KeySet
from chatledger.server.auth.refusals import TokenRefused
from chatledger.server.auth.rules import AuthRules, JwtRules
from tests.auth_server import rules_for
from tests.issuer import Issuer, b64, joined, private_key, public_jwk, signed

US = "https://ledger.example/mcp"
OWN = frozenset({US, "https://ledger.example", "https://ledger.example/"})
ISSUER = Issuer("https://issuer.example/")
SECRET = "a secret of the backend, not less than 32 bytes"
JWKS = [public_jwk("EdDSA", "ed"), public_jwk("ES256", "ec"), public_jwk("RS256", "rsa")]
CANARY = "Wb7canaryWb7"


def rules(**changed: Any) -> AuthRules:
    return rules_for(ISSUER, **changed)


def verifier(*, now: Callable[[], float] = time.time, jwks: list[dict[str, Any]] = JWKS, **changed: Any) -> JwtVerifier:
    """A verifier by these settings, for which the issuer's keys are at hand."""
    made = rules(**changed)
    jwt = made.jwt
    assert isinstance(jwt, JwtRules)

    async def fetch(url: str) -> bytes:
        assert url == "https://issuer.example/.well-known/jwks.json"
        return json.dumps({"keys": jwks}).encode()

    keys = None if jwt.jwks_url is None else KeySet(jwt.jwks_url, jwt.algorithms, fetch=fetch)
    return JwtVerifier(jwt, OWN, require_scopes=made.require_scopes, keys=keys, now=now)


async def refusal(token: str, **changed: Any) -> str:
    """Why a token is refused. Nothing of it is repeated."""
    with pytest.raises(TokenRefused) as refused:
        await verifier(**changed).verify(token)
    assert CANARY not in str(refused.value)
    return str(refused.value)


async def accepted(token: str, **changed: Any) -> AccessToken:
    return await verifier(**changed).verify(token)


def good(**claims: Any) -> str:
    return ISSUER.token("EdDSA", kid="ed", **claims)


# ---- what is believed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "kid"), [("EdDSA", "ed"), ("ES256", "ec"), ("RS256", "rsa")])
async def test_a_token_by_each_kind_of_key_stands_for_its_subject(algorithm: str, kid: str) -> None:
    expires = int(time.time()) + 60
    token = await accepted(ISSUER.token(algorithm, kid=kid, exp=expires, azp="app", email="not@used"))
    assert token.model_dump() == {
        "token": "",
        "client_id": "app",
        "scopes": ["conversations:read", "conversations:write"],
        "expires_at": expires,
        "resource": US,
        "subject": "alice",
        "claims": {"iss": ISSUER.url},
    }


async def test_a_token_by_the_secret_stands_for_its_subject_with_an_issuer_or_without() -> None:
    token = signed(ISSUER.claims(), SECRET, "HS256")
    assert (await accepted(token, secret=SECRET)).subject == "alice"
    without = signed(ISSUER.claims(iss=...), SECRET, "HS256")
    assert (await accepted(without, secret=SECRET, issuer=None)).claims is None
    assert "issuer" in await refusal(without, secret=SECRET)


@pytest.mark.parametrize("kind", [None, "JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"])
async def test_the_types_of_access_tokens_are_taken(kind: str | None) -> None:
    token = signed(ISSUER.claims(), private_key("EdDSA"), "EdDSA", kid="ed", typ=kind)
    assert (await accepted(token)).subject == "alice"


async def test_without_a_key_id_the_only_key_that_fits_is_taken() -> None:
    assert (await accepted(ISSUER.token("ES256", kid=None))).subject == "alice"
    two = [public_jwk("ES256", "one"), public_jwk("ES256", "two", "second")]
    assert "no such key" in await refusal(ISSUER.token("ES256", kid=None), jwks=two)


# ---- what is not ----------------------------------------------------------------------------------------------------

ED, RSA = private_key("EdDSA"), private_key("RS256")


def replaced(token: str, part: int, content: bytes) -> str:
    parts = token.split(".")
    parts[part] = b64(content)
    return ".".join(parts)


RSA_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
FORGED = {
    "not a JWT": {
        "empty": "",
        "one part": "abc",
        "two parts": "abc.def",
        "no JSON": joined(b"{", {}, b""),
        "no base64": f"!!!.{b64(b'{}')}.{b64(b'')}",
        "not ASCII": good() + "é",
        "header a list": joined([], ISSUER.claims(), b""),
        "header nested deeply": joined(b"[" * 3000, ISSUER.claims(), b""),
        "kid a number": signed(ISSUER.claims(), ED, "EdDSA", kid=1),
        "crit": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", crit=["exp"], exp=1),
        "b64 false": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", b64=False),
    },
    "algorithm": {
        "alg none": joined({"alg": "none", "typ": "JWT"}, ISSUER.claims(), b""),
        "alg NONE": joined({"alg": "NONE"}, ISSUER.claims(), b""),
        "alg missing": joined({"typ": "JWT", "kid": "ed"}, ISSUER.claims(), b"x" * 64),
        "alg a list": joined({"alg": ["EdDSA"], "kid": "ed"}, ISSUER.claims(), b"x" * 64),
        "alg an object": joined({"alg": {}, "kid": "ed"}, ISSUER.claims(), b"x" * 64),
        "alg unlisted": signed(ISSUER.claims(), RSA, "RS512", kid="rsa"),
        "PS256 by an RSA key": signed(ISSUER.claims(), RSA, "PS256", kid="rsa"),
        "HS256": joined({"alg": "HS256", "typ": "JWT", "kid": "rsa"}, ISSUER.claims(), b"x" * 32),
    },
    "no such key": {
        "alg of another key": joined({"alg": "ES256", "typ": "JWT", "kid": "ed"}, ISSUER.claims(), b"x" * 64),
        "kid unknown": ISSUER.token("EdDSA", kid="other"),
        "kid a path": ISSUER.token("EdDSA", kid="../../dev/null"),
        "kid in another case": ISSUER.token("EdDSA", kid="ED"),
    },
    "not allowed there": {
        "jku": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", jku=f"https://{CANARY}/jwks"),
        "jwk": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", jwk=public_jwk("EdDSA")),
        "x5u": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", x5u=f"https://{CANARY}/pem"),
        "x5c": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", x5c=[CANARY]),
        "crit that the library knows": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", crit=["b64"], b64=True),
        "b64 of a wrong type": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", b64="no"),
    },
    "does not verify": {
        "another's key": ISSUER.token("EdDSA", kid="ed", name="stranger"),
        "zero signature": joined({"alg": "ES256", "typ": "JWT", "kid": "ec"}, ISSUER.claims(), bytes(64)),
        "empty signature": joined({"alg": "ES256", "typ": "JWT", "kid": "ec"}, ISSUER.claims(), b""),
        "claims changed": replaced(good(), 1, json.dumps(ISSUER.claims(sub="bob")).encode()),
        "header changed": replaced(good(), 0, b'{"alg":"EdDSA","kid":"ed"}'),
        "claims no JSON": signed(b"{", ED, "EdDSA", kid="ed"),
        "claims nested deeply": signed(b"[" * 4000, ED, "EdDSA", kid="ed"),
    },
    "no claims": {"claims a list": signed([1], ED, "EdDSA", kid="ed")},
    "not an access token": {
        "ID token by type": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", typ="ID"),
        "logout token": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", typ="logout+jwt"),
        "type a number": signed(ISSUER.claims(), ED, "EdDSA", kid="ed", typ=1),
        "ID token by nonce": good(nonce=CANARY),
        "ID token by at_hash": good(at_hash="x"),
        "ID token by c_hash": good(c_hash="x"),
        "Keycloak's ID token": good(typ="ID"),
        "Keycloak's refresh token": good(typ="Refresh"),
        "Cognito's ID token": good(token_use="id"),
    },
    "expire": {
        "expired": good(exp=int(time.time()) - 60),
        "exp missing": good(exp=...),
        "exp null": good(exp=None),
        "exp text": good(exp="9999999999"),
        "exp true": good(exp=True),
        "exp NaN": good(exp=float("nan")),
        "exp infinite": good(exp=float("inf")),
        "exp 1e400": signed(
            json.dumps(ISSUER.claims(exp=0)).replace('"exp": 0', '"exp": 1e400').encode(), ED, "EdDSA", kid="ed"
        ),
        "exp 1e300": good(exp=1e300),
    },
    "not valid yet": {
        "nbf ahead": good(nbf=int(time.time()) + 80_000),
        "nbf text": good(nbf="0"),
        "nbf null": good(nbf=None),
        "nbf true": good(nbf=True),
    },
    "another issuer": {
        "iss wrong": good(iss=f"https://{CANARY}/"),
        "iss without its slash": good(iss="https://issuer.example"),
        "iss in another case": good(iss="https://ISSUER.example/"),
        "iss missing": good(iss=...),
        "iss a list": good(iss=["https://issuer.example/"]),
    },
    "not for this server": {
        "aud wrong": good(aud=f"https://{CANARY}/mcp"),
        "aud missing": good(aud=...),
        "aud null": good(aud=None),
        "aud empty": good(aud=""),
        "aud an empty list": good(aud=[]),
        "aud a sibling path": good(aud="https://ledger.example/other"),
        "aud below us": good(aud="https://ledger.example/mcp/more"),
        "aud a prefix": good(aud="https://ledger.example/m"),
        "aud by http": good(aud="http://ledger.example/mcp"),
        "aud a list without us": good(aud=["https://a.example", "https://b.example", 1, None, [US]]),
        "aud an object": good(aud={US: True}),
    },
    "names no user": {
        "sub missing": good(sub=...),
        "sub null": good(sub=None),
        "sub empty": good(sub=""),
        "sub of 300 characters": good(sub="x" * 300),
        "sub with U+0000": good(sub="a\0b"),
        "sub with a line feed": good(sub="a\nb"),
        "sub with C1": good(sub="a\x85b"),
        "sub with half a pair": good(sub="a\ud800"),
        "sub a number": good(sub=7),
        "sub true": good(sub=True),
        "sub a list": good(sub=["alice"]),
    },
    "8,192 bytes": {"over 8 KiB": good(padding="x" * TOKEN_BYTES)},
}
ROWS = {what: (why, token) for why, rows in FORGED.items() for what, token in rows.items()}


@pytest.mark.parametrize("what", ROWS)
async def test_a_token_that_is_not_to_be_believed_is_refused_for_what_is_wrong_with_it(what: str) -> None:
    why, token = ROWS[what]
    assert why in await refusal(token)


async def test_the_public_key_is_no_secret() -> None:
    for key in (RSA_PEM, RSA_PEM.strip(), json.dumps(JWKS[2]).encode()):
        assert "algorithm" in await refusal(signed(ISSUER.claims(), key, "HS256", kid="rsa"))


async def test_a_token_by_a_key_pair_is_refused_where_there_is_a_secret_and_the_other_way_round() -> None:
    assert "algorithm" in await refusal(good(), secret=SECRET)
    assert "algorithm" in await refusal(signed(ISSUER.claims(), SECRET, "HS256", kid="ed"))
    assert "verify" in await refusal(signed(ISSUER.claims(), SECRET + "x", "HS256"), secret=SECRET)


async def test_an_algorithm_that_is_not_allowed_is_refused_although_the_key_is_there() -> None:
    assert "algorithm" in await refusal(ISSUER.token("RS256", kid="rsa"), algorithms=("EdDSA", "ES256"))


async def test_a_token_of_100_kilobytes_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatledger.server.auth.jwt_verifier._JWS", None)
    assert "8,192 bytes" in await refusal("x" * 100_000)


@pytest.mark.parametrize("seconds", [-86_400, -3_600, 0, 3_600, 86_400])
async def test_a_clock_that_is_wrong_moves_the_time_of_expiry_with_it(seconds: int) -> None:
    def now() -> float:
        return time.time() + seconds

    lasting = good(exp=int(time.time()) + seconds + 60, nbf=int(time.time()) + seconds)
    assert (await accepted(lasting, now=now)).subject == "alice"
    assert "expired" in await refusal(good(exp=int(time.time()) + seconds - 60), now=now)
    assert "not valid yet" in await refusal(good(exp=2**40, nbf=int(time.time()) + seconds + 60), now=now)


async def test_the_clocks_may_differ_by_seconds_only() -> None:
    assert LEEWAY_SECONDS <= 30
    at = 2_000_000_000.0
    inside, outside = at + LEEWAY_SECONDS - 0.5, at + LEEWAY_SECONDS
    assert (await accepted(good(exp=at), now=lambda: inside)).expires_at == at
    assert "expired" in await refusal(good(exp=at), now=lambda: outside)
    early = at - LEEWAY_SECONDS
    assert (await accepted(good(exp=at + 9, nbf=at), now=lambda: early)).subject == "alice"
    assert "not valid yet" in await refusal(good(exp=at + 9, nbf=at), now=lambda: early - 0.5)


# ---- audiences, clients, users --------------------------------------------------------------------------------------


@pytest.mark.parametrize("aud", [US, "https://ledger.example", "https://ledger.example/", ["https://a.example", US]])
async def test_a_token_is_for_this_server_when_it_names_its_endpoint_or_all_of_it(aud: Any) -> None:
    assert (await accepted(good(aud=aud))).resource in OWN


async def test_audiences_that_are_set_replace_the_servers_own_name() -> None:
    audience = ("authenticated", "api")
    assert (await accepted(good(aud=["x", "api"]), audience=audience)).resource == "api"
    for aud in (US, "AUTHENTICATED", "authenticated ", "auth", "any", ...):
        assert "not for this server" in await refusal(good(aud=aud), audience=audience)


async def test_any_audience_must_be_asked_for_by_that_word() -> None:
    for aud in ("https://elsewhere.example", ..., 7):
        assert (await accepted(good(aud=aud), audience=("any",))).resource is None
        assert "not for this server" in await refusal(good(aud=aud))
    assert "not for this server" in await refusal(good(aud="any"))


async def test_clients_that_are_set_are_the_only_ones() -> None:
    parties = ("https://app.example", "client-7")
    assert (await accepted(good(azp="https://app.example"), parties=parties)).client_id == "https://app.example"
    assert (await accepted(good(client_id="client-7"), parties=parties)).client_id == "client-7"
    for claims in ({}, {"azp": "https://evil.example"}, {"azp": "x", "client_id": "client-7"}, {"azp": ["client-7"]}):
        assert "client" in await refusal(good(**claims), parties=parties)
    assert (await accepted(good(azp=["client-7"]))).client_id == ""


async def test_the_user_is_in_the_claim_that_is_set_and_in_no_other() -> None:
    token = await accepted(good(uid="u-1", sub="alice", email="a@b"), user_claim="uid")
    assert token.subject == "u-1"
    assert "names no user" in await refusal(good(sub="alice"), user_claim="uid")
    assert (await accepted(good(sub="x" * 255))).subject == "x" * 255
    assert (await accepted(good(sub="Zoë 用户|auth0"))).subject == "Zoë 用户|auth0"


# ---- scopes ---------------------------------------------------------------------------------------------------------

READ, WRITE, DELETE = (f"conversations:{scope}" for scope in ("read", "write", "delete"))


@pytest.mark.parametrize(
    ("claims", "granted"),
    [
        ({}, [READ, WRITE]),
        ({"permissions": [DELETE], "roles": ["admin"]}, [READ, WRITE]),
        ({"scope": f"openid {WRITE} {READ}"}, [READ, WRITE]),
        ({"scope": DELETE}, [DELETE]),
        ({"scp": f"{READ} {DELETE}"}, [READ, DELETE]),
        ({"scp": ["openid", WRITE, 1, None]}, [WRITE]),
        ({"scope": [READ]}, [READ]),
        ({"scope": READ, "scp": [WRITE]}, [READ]),
        ({"scope": ""}, []),
        ({"scope": "openid profile email"}, []),
        ({"scope": "conversations:*"}, []),
        ({"scope": "conversations:READ Conversations:write"}, []),
        ({"scope": "conversations"}, []),
        ({"scope": f"{READ},{WRITE}"}, []),
        ({"scope": f"{READ}\t{WRITE}\n{DELETE}"}, []),
        ({"scope": f"x{READ} {READ}x"}, []),
        ({"scp": [f"{READ} {WRITE}"]}, []),
        ({"scope": None}, []),
        ({"scope": 7}, []),
        ({"scope": {READ: True}}, []),
        ({"scp": None}, []),
    ],
)
async def test_scopes_are_those_that_a_token_names_letter_by_letter(claims: dict[str, Any], granted: list[str]) -> None:
    assert (await accepted(good(**claims))).scopes == granted
    without = granted if {"scope", "scp"} & claims.keys() else []
    assert (await accepted(good(**claims), require_scopes=True)).scopes == without
