"""What `chatledger doctor` says of authentication: which kind is in force, what is wrong with it, and no secret."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chatledger.server import cli
from chatledger.server.auth import diagnosis, key_set
from chatledger.server.auth.rules import make_rules
from chatledger.storage import ConversationStore
from chatledger.storage.tokens import ApiToken, TokenStore
from tests.issuer import Issuer, public_jwk

SECRET = "Ck7secretCk7secretCk7secretCk7secret"
PUBLIC = "https://ledger.example"
Doctor = Callable[..., dict[str, Any]]


@pytest.fixture
def doctor(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run it with these settings of authentication: its facts, and under `words` what it tells people."""
    monkeypatch.setenv("CHATLEDGER_DATABASE_URL", database_url)

    def run(**settings: str) -> dict[str, Any]:
        for name, value in settings.items():
            monkeypatch.setenv(f"CHATLEDGER_{name}", value)
        printed = []
        for argv in (["doctor", "--json"], ["doctor"]):
            with pytest.raises(SystemExit) as ended:
                cli.main(argv)
            out, err = capsys.readouterr()
            assert SECRET not in out + err
            printed.append(out)
            found: dict[str, Any] = json.loads(printed[0])
            assert ended.value.code == (1 if found["problems"] else 0)
        return found | {"words": printed[1]}

    return run


def about_keys(found: dict[str, Any]) -> list[str]:
    return [problem["what"] for problem in found["problems"] if "keys" in problem["what"]]


def test_without_authentication_it_says_so(doctor: Doctor) -> None:
    found = doctor(USER_ID="alice")
    assert found["authentication"] == {}
    assert "http       none: only loopback is served, and everybody there is alice\n" in found["words"]


def test_a_secret_is_named_and_not_shown(doctor: Doctor) -> None:
    found = doctor(AUTH_SECRET=SECRET, AUTH_STATIC_TOKENS="false", PUBLIC_URL=PUBLIC)
    jwt = {"algorithms": ["HS256"], "user_claim": "sub", "by": "a secret", "audience": PUBLIC}
    assert found["authentication"] == {"jwt": jwt}
    assert "http       JWT, verified by a secret (HS256); the user is in sub\n" in found["words"]


def test_an_issuer_is_asked_for_its_keys(doctor: Doctor, issuer: Issuer) -> None:
    issuer.jwks = [public_jwk("EdDSA"), public_jwk("ES256", "key-2")]
    found = doctor(AUTH_ISSUER=issuer.url, AUTH_AUDIENCE="b,a", AUTH_USER_CLAIM="uid")
    assert found["authentication"]["jwt"] == {
        "issuer": issuer.url,
        "algorithms": ["EdDSA", "ES256", "RS256"],
        "user_claim": "uid",
        "by": f"{issuer.url}/.well-known/jwks.json",
        "keys": 2,
        "audience": ["a", "b"],
    }
    assert about_keys(found) == []
    assert f"http       JWT of {issuer.url}, verified by {issuer.url}/.well-known/jwks.json (EdDSA" in found["words"]
    assert "http       static tokens: 0 valid\n" in found["words"]


def test_an_issuer_without_keys_is_a_problem_that_says_what_to_check(doctor: Doctor, issuer: Issuer) -> None:
    issuer.status = 404
    found = doctor(AUTH_ISSUER=issuer.url, PUBLIC_URL=PUBLIC)
    where = f"{issuer.url}/.well-known/jwks.json"
    assert about_keys(found) == [
        f"the keys of the tokens' issuer cannot be had from {where}: it answers with status 404"
    ]
    assert "mend       check CHATLEDGER_AUTH_ISSUER and CHATLEDGER_AUTH_JWKS_URL" in found["words"]
    assert "keys" not in found["authentication"]["jwt"]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield int(taken.getsockname()[1])


def test_an_issuer_that_does_not_answer_is_not_waited_for(
    doctor: Doctor, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "FETCH_SECONDS", 0.2)
    found = doctor(AUTH_ISSUER=f"http://127.0.0.1:{silent_port}")
    (problem,) = about_keys(found)
    assert problem.endswith(("TimeoutError", "ReadTimeout"))


def test_static_tokens_are_counted_those_that_have_expired_apart(doctor: Doctor, database_url: str) -> None:
    found = doctor(AUTH_STATIC_TOKENS="true")
    assert found["authentication"] == {"static_tokens": {"valid": 0, "expired": 0}}
    assert "nobody can be known yet: `chatledger token create --user ID` makes a token" in found["remarks"]

    async def make() -> list[str]:
        async with ConversationStore.at(database_url) as store:
            return [(await TokenStore(store).create("alice", scopes=["conversations:read"]))[1] for _ in range(2)]

    texts = asyncio.run(make())
    found = doctor()
    assert found["authentication"] == {"static_tokens": {"valid": 2, "expired": 0}}
    assert "http       static tokens: 2 valid\n" in found["words"]
    assert not any(text in json.dumps(found) for text in texts)


async def test_an_expired_token_counts_as_such_and_an_unknown_number_is_said_to_be() -> None:
    rules = static_rules()
    now = datetime.now(UTC)
    ends = [None, now + timedelta(days=1), now - timedelta(seconds=1)]
    tokens = [ApiToken("alice", "0" * 12, None, (), now, until, None) for until in ends]
    found = await diagnosis.diagnose(rules, tokens, public_url=None)
    assert (found.ways, found.facts["static_tokens"]) == (
        ["static tokens: 2 valid, 1 expired"],
        {"valid": 2, "expired": 1},
    )
    found = await diagnosis.diagnose(rules, None, public_url=None)
    assert found.ways == ["static tokens, how many is not known"]


def test_tokens_are_not_counted_where_the_database_cannot_say(
    doctor: Doctor, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (empty_database_url, "postgresql://u@127.0.0.1:1/none"):
        monkeypatch.setenv("CHATLEDGER_DATABASE_URL", url)
        found = doctor(AUTH_STATIC_TOKENS="true")
        assert found["authentication"] == {"static_tokens": {}}
        assert len(found["problems"]) >= 1


@pytest.mark.parametrize(
    ("settings", "remark"),
    [
        ({"AUTH_AUDIENCE": "any"}, "for any audience are taken"),
        ({}, "must be the URL that `serve` prints"),
        ({"AUTH_REQUIRE_SCOPES": "true"}, "a JWT that names no scopes may do nothing"),
    ],
)
def test_what_surprises_is_noted(settings: dict[str, str], remark: str, doctor: Doctor) -> None:
    found = doctor(AUTH_SECRET=SECRET, **settings)
    assert [remark in each for each in found["remarks"]].count(True) == 1
    plain = doctor(AUTH_SECRET=SECRET, PUBLIC_URL=PUBLIC, AUTH_AUDIENCE="a", AUTH_REQUIRE_SCOPES="false")
    assert not any(remark in each for each in plain["remarks"])


def static_rules() -> Any:
    return make_rules(
        issuer=None,
        jwks_url=None,
        secret=None,
        audience=(),
        parties=(),
        algorithms=(),
        user_claim="sub",
        require_scopes=False,
        static_tokens=True,
    )
