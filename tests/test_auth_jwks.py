"""The issuer's keys: fetched when they are needed, seldom, within bounds, and kept while the issuer is away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from jwt.algorithms import get_default_algorithms

from chatledger.server.auth import key_set
from chatledger.server.auth.key_set import (
    FETCH_BYTES,
    FRESH_SECONDS,
    REFETCH_SECONDS,
    RETRY_SECONDS,
    STALE_SECONDS,
    KeySet,
    read_keys,
)
from chatledger.server.auth.refusals import KeysUnavailable, TokenRefused
from chatledger.server.auth.rules import ASYMMETRIC
from tests.issuer import Issuer, public_jwk
from tests.patience import PATIENCE


class Clock:
    """A monotonic clock that a test sets forward."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def keys_of(issuer: Issuer, clock: Clock) -> KeySet:
    return KeySet(f"{issuer.url}/jwks", ASYMMETRIC, clock=clock)


async def outcome(keys: KeySet, kid: str | None, algorithm: str = "EdDSA") -> str:
    try:
        return f"{(await keys.key(kid, algorithm)).algorithm_name}"
    except (TokenRefused, KeysUnavailable) as exc:
        return type(exc).__name__


async def asked(issuer: Issuer, times: int) -> None:
    """The issuer was asked so often."""
    async with asyncio.timeout(PATIENCE):
        while len(issuer.asked) < times:
            await asyncio.sleep(0.005)


async def settled(keys: KeySet) -> None:
    """What was begun beside a call has ended."""
    while keys._fetching is not None:
        await asyncio.wait([keys._fetching])


async def test_nothing_is_fetched_before_the_first_token_and_then_once_for_all(issuer: Issuer, clock: Clock) -> None:
    keys = keys_of(issuer, clock)
    await asyncio.sleep(0)
    assert issuer.asked == []
    issuer.answers.clear()
    all_at_once = asyncio.gather(*[outcome(keys, "key-1") for _ in range(50)])
    await asked(issuer, 1)
    issuer.answers.set()
    assert await all_at_once == ["EdDSA"] * 50
    clock.now += FRESH_SECONDS - 1
    assert await outcome(keys, "key-1") == "EdDSA"
    assert issuer.asked == ["/jwks"]


async def test_a_new_key_is_found_and_a_withdrawn_one_forgotten(issuer: Issuer, clock: Clock) -> None:
    keys = keys_of(issuer, clock)
    assert await outcome(keys, "key-1") == "EdDSA"
    issuer.jwks = [public_jwk("EdDSA"), public_jwk("ES256", "key-2", "second")]
    clock.now += REFETCH_SECONDS
    assert await outcome(keys, "key-2", "ES256") == "ES256"
    issuer.jwks = [public_jwk("ES256", "key-2", "second")]
    assert await outcome(keys, "key-1") == "EdDSA"
    clock.now += FRESH_SECONDS
    assert await outcome(keys, "key-1") == "TokenRefused"
    assert len(issuer.asked) == 3


async def test_a_key_under_the_same_id_is_the_new_one(issuer: Issuer, clock: Clock) -> None:
    keys = keys_of(issuer, clock)
    first: Any = (await keys.key("key-1", "EdDSA")).key
    issuer.jwks = [public_jwk("EdDSA", "key-1", "second")]
    clock.now += FRESH_SECONDS
    second: Any = (await keys.key("key-1", "EdDSA")).key
    assert first.public_bytes_raw() != second.public_bytes_raw()


async def test_unknown_ids_make_one_request_a_minute_however_many_there_are(issuer: Issuer, clock: Clock) -> None:
    keys = keys_of(issuer, clock)
    for minute in range(1, 4):
        for number in range(100):
            assert await outcome(keys, f"{minute}-{number}") == "TokenRefused"
        assert await asyncio.gather(*[outcome(keys, f"x{number}") for number in range(100)]) == ["TokenRefused"] * 100
        clock.now += REFETCH_SECONDS - 0.1
        assert await outcome(keys, "again") == "TokenRefused"
        assert len(issuer.asked) == minute
        clock.now += 0.1


async def test_while_the_issuer_is_down_known_keys_count_and_others_cannot_be_judged(
    issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    keys = keys_of(issuer, clock)
    assert await outcome(keys, "key-1") == "EdDSA"
    issuer.status = 500
    clock.now += FRESH_SECONDS
    assert await outcome(keys, "key-1") == "EdDSA"
    with pytest.raises(KeysUnavailable) as unavailable:
        await keys.key("new", "EdDSA")
    assert 0 < unavailable.value.retry_after_seconds <= RETRY_SECONDS
    assert len(issuer.asked) == 2
    clock.now += RETRY_SECONDS
    assert await outcome(keys, "new") == "KeysUnavailable"
    assert len(issuer.asked) == 3
    assert "status 500" in caplog.text
    issuer.status, issuer.jwks = 200, [public_jwk("EdDSA"), public_jwk("EdDSA", "new", "second")]
    clock.now += RETRY_SECONDS
    assert await outcome(keys, "new") == "EdDSA"


async def test_a_call_with_a_known_key_does_not_wait_for_an_issuer_that_is_down(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "FETCH_SECONDS", 60.0)
    keys = keys_of(issuer, clock)
    assert await outcome(keys, "key-1") == "EdDSA"
    issuer.status = 503
    clock.now += FRESH_SECONDS
    assert await outcome(keys, "key-1") == "EdDSA"
    issuer.answers.clear()
    clock.now += RETRY_SECONDS
    async with asyncio.timeout(20):
        assert [await outcome(keys, "key-1") for _ in range(20)] == ["EdDSA"] * 20
    await asked(issuer, 3)
    issuer.answers.set()
    await settled(keys)
    assert len(issuer.asked) == 3


async def test_keys_do_not_count_for_ever_without_their_issuer(issuer: Issuer, clock: Clock) -> None:
    keys = keys_of(issuer, clock)
    assert await outcome(keys, "key-1") == "EdDSA"
    issuer.status = 500
    clock.now += STALE_SECONDS - 1
    assert await outcome(keys, "key-1") == "EdDSA"
    clock.now += RETRY_SECONDS
    assert await outcome(keys, "key-1") == "KeysUnavailable"


async def test_a_caller_that_leaves_does_not_end_the_fetch_for_the_others(issuer: Issuer, clock: Clock) -> None:
    keys = keys_of(issuer, clock)
    issuer.answers.clear()
    leaving, staying = asyncio.create_task(outcome(keys, "key-1")), asyncio.create_task(outcome(keys, "key-1"))
    await asked(issuer, 1)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    issuer.answers.set()
    assert await staying == "EdDSA"
    assert issuer.asked == ["/jwks"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"status": 404}, "status 404"),
        ({"status": 302, "headers": {"location": "/elsewhere"}}, "status 302"),
        ({"document": b""}, "not a JWKS"),
        ({"document": b"<html>"}, "not a JWKS"),
        ({"document": b"[]"}, "not a JWKS"),
        ({"document": b'{"keys": 1}'}, "no key"),
        ({"document": b'{"keys": []}'}, "no key"),
        ({"document": b"[" * 200_000}, "not a JWKS"),
        ({"document": b" " * (FETCH_BYTES + 1)}, "bytes"),
    ],
)
async def test_an_answer_that_is_no_key_set_changes_nothing(
    issuer: Issuer, clock: Clock, caplog: pytest.LogCaptureFixture, answer: dict[str, Any], told: str
) -> None:
    keys = keys_of(issuer, clock)
    assert await outcome(keys, "key-1") == "EdDSA"
    for name, value in answer.items():
        setattr(issuer, name, value)
    clock.now += FRESH_SECONDS
    assert await outcome(keys, "key-1") == "EdDSA"
    assert told in caplog.text
    assert await outcome(keys_of(issuer, clock), "key-1") == "KeysUnavailable"
    assert "/elsewhere" not in issuer.asked


async def test_an_issuer_that_is_slow_or_gone_is_given_up(
    issuer: Issuer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_set, "FETCH_SECONDS", 0.1)
    issuer.answers.clear()
    assert await outcome(keys_of(issuer, clock), "key-1") == "KeysUnavailable"
    gone = KeySet("http://127.0.0.1:1/jwks", ASYMMETRIC, clock=clock)
    assert await outcome(gone, "key-1") == "KeysUnavailable"


def usable(*jwks: Any) -> list[tuple[str | None, str]]:
    return [
        (key.id, key.algorithm)
        for key in read_keys(json.dumps({"keys": [*jwks, public_jwk("EdDSA")]}).encode(), ASYMMETRIC)
    ][:-1]


def test_keys_are_taken_as_issuers_list_them() -> None:
    assert usable(public_jwk("RS256", use="sig", alg="RS256", x5t="x", x5c=["x"])) == [("key-1", "RS256")]
    assert usable(public_jwk("ES256", None)) == [(None, "ES256")]
    assert usable(public_jwk("EdDSA", key_ops=["verify"])) == [("key-1", "EdDSA")]


def test_what_is_no_public_signing_key_for_these_algorithms_is_passed_over() -> None:
    algorithms = get_default_algorithms()
    p384: Any = algorithms["ES384"].to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
    ed_448: Any = algorithms["EdDSA"].to_jwk(ed448.Ed448PrivateKey.generate().public_key(), as_dict=True)
    for jwk in (
        {"kty": "oct", "k": "c2VjcmV0", "kid": "key-1"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "key-1", "alg": "RS256"},
        public_jwk("RS256", use="enc"),
        public_jwk("RS256", alg="RS512"),
        public_jwk("RS256", alg="PS256"),
        public_jwk("RS256", key_ops=["encrypt"]),
        public_jwk("RS256", key_ops=[]),
        public_jwk("RS256", name="short"),
        public_jwk("ES256", crv="P-384"),
        public_jwk("ES256", y="AAAA"),
        public_jwk("EdDSA", x="AAAA"),
        public_jwk("EdDSA", x=1),
        public_jwk("EdDSA", kid=None) | {"kid": 1},
        public_jwk("EdDSA", crv=["Ed25519"]),
        p384,
        ed_448,
        {},
        {"kty": "RSA"},
        {"kty": ["RSA"]},
        None,
        "key",
        7,
    ):
        assert usable(jwk) == [], jwk


async def test_two_keys_under_one_id_are_none(issuer: Issuer, clock: Clock) -> None:
    issuer.jwks = [public_jwk("EdDSA"), public_jwk("EdDSA", "key-1", "second")]
    assert await outcome(keys_of(issuer, clock), "key-1") == "TokenRefused"


async def test_an_algorithm_that_is_not_allowed_has_no_keys(issuer: Issuer, clock: Clock) -> None:
    issuer.jwks = [public_jwk("EdDSA"), public_jwk("RS256", "rsa")]
    keys = KeySet(f"{issuer.url}/jwks", ("RS256",), clock=clock)
    assert await outcome(keys, "key-1", "EdDSA") == "TokenRefused"
    assert await outcome(keys, "rsa", "RS256") == "RS256"
