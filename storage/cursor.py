"""An opaque page cursor: a place in a list, sealed for one user and one set of filters.

The seal is an HMAC with a key that all processes on one database share. A cursor therefore survives restarts and goes
from one server to another, and one that was altered, or made for another user, list or filter, is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from chatledger.storage.errors import InvalidCursor

_VERSION = b"1"
_SEAL = 16  # bytes: 128 bits, more than can be guessed over a network
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SIZES: Final = {datetime: 8, UUID: 16, int: 8}
LISTED: Final = (datetime, UUID)
"""The kinds of value that make the place in a list of conversations."""


def seal(secret: bytes, user_id: str, query: Mapping[str, object], place: Sequence[datetime | UUID | int]) -> str:
    """A cursor for the entries after `place`: base64url, 55 characters for a list. `query` names it and its filters."""
    body = _VERSION + b"".join(map(_bytes, place))
    return base64.urlsafe_b64encode(_tag(secret, user_id, query, body) + body).rstrip(b"=").decode()


def open_sealed(
    secret: bytes, user_id: str, query: Mapping[str, object], cursor: str, kinds: Sequence[type] = LISTED
) -> tuple[Any, ...]:
    """The place that `seal` put in, made of values of these kinds.

    Raises:
        InvalidCursor: it was not made by `seal` with this secret for this user and this query.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidCursor from None
    tag, body = raw[:_SEAL], raw[_SEAL:]
    length = len(_VERSION) + sum(_SIZES[kind] for kind in kinds)
    if len(body) != length or not hmac.compare_digest(tag, _tag(secret, user_id, query, body)):
        raise InvalidCursor
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != cursor:  # other spellings of the same bytes
        raise InvalidCursor
    place, at = [], len(_VERSION)
    for kind in kinds:
        place.append(_value(kind, body[at : at + _SIZES[kind]]))
        at += _SIZES[kind]
    return tuple(place)


def _bytes(value: datetime | UUID | int) -> bytes:
    if isinstance(value, UUID):
        return value.bytes
    return struct.pack(">q", (value - _EPOCH) // timedelta(microseconds=1) if isinstance(value, datetime) else value)


def _value(kind: type, packed: bytes) -> datetime | UUID | int:
    if kind is UUID:
        return UUID(bytes=packed)
    number: int = struct.unpack(">q", packed)[0]
    return _EPOCH + timedelta(microseconds=number) if kind is datetime else number


def _tag(secret: bytes, user_id: str, query: Mapping[str, object], body: bytes) -> bytes:
    bound = json.dumps([user_id, query], sort_keys=True, default=str).encode()
    # The lengths keep (bound, body) apart; both parts are fixed by them.
    message = struct.pack(">I", len(bound)) + bound + body
    return hmac.new(secret, message, hashlib.sha256).digest()[:_SEAL]
