"""The settings of docs/authentication.md, as they stand there, with tokens of the form that each issuer makes."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from mcp.server.auth.provider import AccessToken

from chatledger.server import settings
from chatledger.server.auth import key_set
from chatledger.server.auth.refusals import TokenRefused
from chatledger.server.auth.resource_server import ResourceServer
from chatledger.server.auth.scopes import READ, WRITE
from chatledger.server.settings import Settings, load_settings
from chatledger.storage import ConversationStore
from chatledger.storage.tokens import TokenStore
from tests.issuer import private_key, public_jwk, signed

PAGE = (Path(__file__).parent.parent / "docs" / "authentication.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
RECIPES = {name: text for name, text in SECTIONS.items() if "```sh\nCHATLEDGER_" in text}

# What an issuer puts into its tokens, by the issuer's own documentation; where its keys are; what they are.
NEON = "https://ep-example-a1b2c3.neonauth.us-east-1.aws.neon.tech"
SUPABASE = "https://abcdefghijklmnopqrst.supabase.co/auth/v1"
NEON_USER = {"email": "a@example.com", "emailVerified": True, "name": "A", "role": "authenticated", "banned": False}
SUPABASE_USER = {
    "aal": "aal1",
    "amr": [{"method": "password", "timestamp": 1}],
    "app_metadata": {"provider": "email"},
    "email": "a@example.com",
    "is_anonymous": False,
    "phone": "",
    "role": "authenticated",
    "session_id": "5b1c",
    "user_metadata": {},
}
ISSUERS: dict[str, dict[str, Any]] = {
    "Neon Auth": {
        "algorithms": ["EdDSA"],
        "jwks": f"{NEON}/neondb/auth/.well-known/jwks.json",
        "claims": {"iss": NEON, "aud": NEON, "sub": "user-1"} | NEON_USER,
        "refused": [{"aud": "https://ep-other.neonauth.us-east-1.aws.neon.tech"}, {"iss": f"{NEON}/neondb/auth"}],
    },
    "Better Auth": {
        "algorithms": ["EdDSA"],
        "jwks": "https://app.example.com/api/auth/jwks",
        "claims": {
            "iss": "https://app.example.com",
            "aud": "https://app.example.com",
            "sub": "user-1",
            "id": "user-1",
            "name": "A",
            "email": "a@example.com",
            "image": None,
        },
        "refused": [{"aud": "https://other.example.com"}, {"iss": "https://app.example.com/"}],
    },
    "Auth0": {
        "algorithms": ["RS256"],
        "jwks": "https://tenant.eu.auth0.com/.well-known/jwks.json",
        "header": {"typ": "at+jwt"},
        "claims": {
            "iss": "https://tenant.eu.auth0.com/",
            "aud": ["https://ledger.example.com/mcp", "https://tenant.eu.auth0.com/userinfo"],
            "sub": "user-1",
            "azp": "client-1",
            "scope": "openid profile conversations:read",
            "permissions": ["conversations:read", "conversations:delete"],
        },
        "scopes": [READ],
        "refused": [
            {"aud": "https://tenant.eu.auth0.com/userinfo"},
            {"aud": "client-1", "nonce": "n"},  # its ID token
            {"iss": "https://tenant.eu.auth0.com"},
        ],
    },
    "Clerk": {
        "algorithms": ["RS256"],
        "jwks": "https://clerk.example.com/.well-known/jwks.json",
        "claims": {
            "iss": "https://clerk.example.com",
            "sub": "user-1",
            "azp": "https://app.example.com",
            "sid": "sess_1",
            "sts": "active",
            "v": 2,
            "fva": [0, -1],
        },
        "refused": [{"azp": "https://other.example.com"}, {"azp": ...}, {"iss": "https://other.clerk.accounts.dev"}],
    },
    "Supabase": {
        "algorithms": ["ES256", "RS256"],
        "jwks": f"{SUPABASE}/.well-known/jwks.json",
        "claims": {"iss": SUPABASE, "aud": "authenticated", "sub": "user-1"} | SUPABASE_USER,
        "refused": [{"aud": "anon", "role": "anon"}, {"iss": "supabase"}, {"sub": ...}],
    },
    "Supabase with the legacy secret": {
        "algorithms": ["HS256"],
        "claims": {"iss": SUPABASE, "aud": "authenticated", "sub": "user-1"} | SUPABASE_USER,
        "refused": [
            {"iss": "supabase", "ref": "abc", "role": "anon", "aud": ..., "sub": ...},  # the public API key
            {"iss": "supabase", "ref": "abc", "role": "service_role", "aud": ..., "sub": ...},
        ],
    },
    "Your own backend": {
        "algorithms": ["HS256"],
        "claims": {"iss": "my-backend", "aud": "chatledger", "sub": "user-1", "scope": f"{READ} {WRITE}"},
        "refused": [{"aud": "my-website"}, {"aud": ...}, {"iss": "other"}],
    },
}


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "USER_CONFIG_FILE", tmp_path / "config.env")


def set_as_in(recipe: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a recipe's block, from the environment."""
    block = re.search(r"```sh\n((?:CHATLEDGER_.*\n)+)```", RECIPES[recipe])
    assert block is not None
    for line in block[1].splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value)
    return load_settings()


def served_by(loaded: Settings, store: ConversationStore) -> ResourceServer:
    assert loaded.auth is not None
    assert loaded.public_url is not None
    return ResourceServer(loaded.auth, store, public_url=loaded.public_url)


def test_every_recipe_of_the_page_is_tried_here() -> None:
    assert RECIPES.keys() == {*ISSUERS, "Static tokens only"}


@pytest.mark.parametrize("recipe", ISSUERS)
async def test_a_recipe_takes_its_issuers_tokens_and_no_others(
    recipe: str, monkeypatch: pytest.MonkeyPatch, store: ConversationStore
) -> None:
    issuer = ISSUERS[recipe]
    asked = []

    async def download(url: str) -> bytes:
        asked.append(url)
        return json.dumps({"keys": [public_jwk(each, each) for each in ("EdDSA", "ES256", "RS256")]}).encode()

    monkeypatch.setattr(key_set, "_download", download)
    loaded = set_as_in(recipe, monkeypatch)
    server = served_by(loaded, store)

    async def verify(algorithm: str, **changed: Any) -> AccessToken:
        usual = issuer["claims"] | {"iat": int(time.time()), "exp": int(time.time()) + 900}
        claims = {name: value for name, value in (usual | changed).items() if value is not ...}
        secret = loaded.auth_secret
        key = private_key(algorithm) if secret is None else secret.get_secret_value()
        header = issuer.get("header", {}) | ({"kid": algorithm} if secret is None else {})
        return await server.verify(signed(claims, key, algorithm, **header))

    for algorithm in issuer["algorithms"]:
        token = await verify(algorithm)
        assert (token.subject, token.scopes) == ("user-1", issuer.get("scopes", [READ, WRITE]))
        for changed in [*issuer["refused"], {"exp": 1}, {"sub": ""}]:
            with pytest.raises(TokenRefused):
                await verify(algorithm, **changed)
    for algorithm in {"EdDSA", "ES256", "RS256"} - set(issuer["algorithms"]) if "jwks" in issuer else ():
        with pytest.raises(TokenRefused, match="algorithm"):
            await verify(algorithm)
    assert asked == ([issuer["jwks"]] if "jwks" in issuer else [])


async def test_the_recipe_for_static_tokens_takes_them_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, store: ConversationStore
) -> None:
    server = served_by(set_as_in("Static tokens only", monkeypatch), store)
    _, text = await TokenStore(store).create("alice", scopes=[READ])
    assert (await server.verify(text)).subject == "alice"
    await server.aclose()
    with pytest.raises(TokenRefused):
        await server.verify(signed({"sub": "alice", "exp": time.time() + 60}, b"x" * 32, "HS256"))


async def test_the_backends_code_makes_tokens_that_are_taken(
    monkeypatch: pytest.MonkeyPatch, store: ConversationStore
) -> None:
    server = served_by(set_as_in("Your own backend", monkeypatch), store)
    code = re.search(r"```python\n(.*?)```", RECIPES["Your own backend"], re.DOTALL)
    assert code is not None
    scope: dict[str, Any] = {}
    exec(code[1], scope)
    token = await server.verify(scope["chatledger_token"]("alice"))
    assert (token.subject, token.scopes, token.resource) == ("alice", [READ, WRITE], "chatledger")


def test_the_page_names_every_setting_and_no_other() -> None:
    named = set(re.findall(r"^\| `CHATLEDGER_(\w+)`", SECTIONS["Settings"], re.MULTILINE))
    assert named == {name.upper() for name in Settings.model_fields if name.startswith("auth_")} | {"PUBLIC_URL"}
