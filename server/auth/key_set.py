"""The public keys of an issuer (a JWKS, RFC 7517): fetched when a token first needs them, kept, and renewed.

An issuer that cannot be reached does not lock out whoever bears a token by a key that is known already.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple

import httpx2
from jwt import PyJWK, PyJWTError

from chatledger.server.auth.refusals import KeysUnavailable, TokenRefused

logger = logging.getLogger("chatledger")

FETCH_SECONDS: Final = 5.0  # chosen: issuers answer within one, and calls wait for it
FETCH_BYTES: Final = 256 * 1024  # chosen: the largest known sets, with certificates, have 30 kB
REFETCH_SECONDS: Final = 60.0  # the trust plan: for keys that are not known, at most once a minute
RETRY_SECONDS: Final = 5.0  # chosen: after a fetch that failed
FRESH_SECONDS: Final = 600.0  # chosen: how long a key that its issuer has withdrawn may still count
STALE_SECONDS: Final = 86_400.0  # chosen: how long an issuer may be down; tokens live for an hour or so
RSA_BITS: Final = 2048  # RFC 7518, 3.3

# Only what says which key it is; a private part or a certificate is not looked at.
_MEMBERS: Final = {"EdDSA": ("x",), "ES256": ("x", "y"), "RS256": ("n", "e")}
_KINDS: Final = {("OKP", "Ed25519"): "EdDSA", ("EC", "P-256"): "ES256", ("RSA", None): "RS256"}


class _Key(NamedTuple):
    id: str | None
    algorithm: str
    key: PyJWK


class KeySet:
    """The keys at one URL, for any number of tasks of one event loop. Nothing is fetched before the first token."""

    def __init__(
        self,
        url: str,
        algorithms: Iterable[str],
        *,
        fetch: Callable[[str], Awaitable[bytes]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._algorithms = url, frozenset(algorithms)
        self._fetch, self._clock = fetch or _download, clock
        self._keys: list[_Key] = []
        self._fetched_at = self._next_try = float("-inf")
        self._failing = False
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, id: str | None, algorithm: str) -> PyJWK:
        """The key with this id for this algorithm; without an id, the only one for it.

        Raises:
            TokenRefused: the issuer has no such key, or several.
            KeysUnavailable: it is not known, and the issuer cannot be asked.
        """
        age = self._clock() - self._fetched_at
        known = self._find(id, algorithm) if age < STALE_SECONDS else None
        if known is not None and age < FRESH_SECONDS:
            return known
        was_failing = self._failing
        fetching = self._start()
        if known is not None and was_failing:
            return known  # an issuer that is down is asked again beside the call, not in it
        if fetching is not None:
            await asyncio.wait([fetching])  # goes on for the others when this caller leaves
        found = self._find(id, algorithm) if self._clock() - self._fetched_at < STALE_SECONDS else None
        if found is not None:
            return found
        if self._failing:
            raise KeysUnavailable(max(1.0, self._next_try - self._clock()))
        raise TokenRefused("the issuer has no such key")

    def _find(self, id: str | None, algorithm: str) -> PyJWK | None:
        fitting = [each for each in self._keys if each.algorithm == algorithm and (id is None or each.id == id)]
        return fitting[0].key if len(fitting) == 1 else None

    def _start(self) -> asyncio.Task[None] | None:
        """The fetch under way, a new one, or None where it is too early for one."""
        if self._fetching is None and self._clock() >= self._next_try:
            self._fetching = asyncio.create_task(self._renew())
        return self._fetching

    async def _renew(self) -> None:
        try:
            keys = read_keys(await self._fetch(self._url), self._algorithms)
        except Exception as exc:  # noqa: BLE001  # a network fails in many ways, and each means the same here
            self._failing = True
            logger.warning("the keys of the tokens' issuer cannot be had: %s", _reason(exc))
        else:
            self._keys, self._failing, self._fetched_at = keys, False, self._clock()
        finally:
            self._next_try = self._clock() + (RETRY_SECONDS if self._failing else REFETCH_SECONDS)
            self._fetching = None


class KeysUnreadable(Exception):
    """What was fetched is no set of keys, or nothing was. The sentence is ours."""


def _reason(exc: Exception) -> str:
    return str(exc) if isinstance(exc, KeysUnreadable) else type(exc).__name__  # others may quote what they were sent


async def fetch_keys(url: str, algorithms: Iterable[str]) -> list[_Key]:
    """The usable keys that an issuer lists at this moment, within the bounds of every fetch.

    Raises:
        KeysUnreadable: there are none, or it cannot be asked.
    """
    try:
        return read_keys(await _download(url), algorithms)
    except Exception as exc:  # noqa: BLE001  # a network fails in many ways, and each means the same here
        raise KeysUnreadable(_reason(exc)) from None


async def _download(url: str) -> bytes:
    """The document at a URL, in full and within bounds of time and size. Redirects are not followed."""
    async with (
        asyncio.timeout(FETCH_SECONDS),
        await asyncio.to_thread(_client) as client,
        client.stream("GET", url) as response,
    ):
        if response.status_code != 200:
            raise KeysUnreadable(f"it answers with status {response.status_code}")
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > FETCH_BYTES:
                raise KeysUnreadable(f"the answer has over {FETCH_BYTES:,} bytes")
        return bytes(body)


def _client() -> httpx2.AsyncClient:
    """In a thread, as it reads the system's certificates (60 ms, measured on the build machine)."""
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    return httpx2.AsyncClient(follow_redirects=False, timeout=FETCH_SECONDS, headers=headers)


def read_keys(document: bytes, algorithms: Iterable[str]) -> list[_Key]:
    """The public signing keys for these algorithms in a JWKS. What is not one of them is passed over.

    Raises:
        KeysUnreadable: there is none at all.
    """
    try:
        listed = json.loads(document)["keys"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise KeysUnreadable("the answer is not a JWKS") from None
    keys = [key for each in (listed if isinstance(listed, list) else []) if (key := _read_key(each)) is not None]
    usable = [key for key in keys if key.algorithm in algorithms]
    if not usable:
        raise KeysUnreadable("the JWKS has no key for the algorithms that are allowed")
    return usable


def _read_key(jwk: Any) -> _Key | None:
    if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig":
        return None
    kind, curve, key_id = jwk.get("kty"), jwk.get("crv"), jwk.get("kid")
    algorithm = _KINDS.get((kind, curve)) if isinstance(kind, str) and isinstance(curve, str | None) else None
    if algorithm is None or jwk.get("alg", algorithm) != algorithm or not isinstance(key_id, str | None):
        return None
    if "key_ops" in jwk and "verify" not in (jwk["key_ops"] or ()):
        return None
    public = {"kty": kind, "crv": curve} | {member: jwk.get(member) for member in _MEMBERS[algorithm]}
    try:
        key = PyJWK({name: value for name, value in public.items() if value is not None}, algorithm)
    except (PyJWTError, ValueError, TypeError, KeyError):
        return None
    if algorithm == "RS256" and key.key.key_size < RSA_BITS:
        return None
    return _Key(key_id, algorithm, key)
