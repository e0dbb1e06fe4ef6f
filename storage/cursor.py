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
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

from chatledger.storage.errors import InvalidCursor

_VERSION = b"1"
_SEAL = 16  # bytes: 128 bits, more than can be guessed over a network
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def seal(secret: bytes, user_id: str, query: Mapping[str, object], place: tuple[datetime, UUID]) -> str:
    """A cursor for the entries after `place`: 56 characters of base64url. `query` names the list and its filters."""
    microseconds = (place[0] - _EPOCH) // timedelta(microseconds=1)
    body = _VERSION + struct.pack(">q", microseconds) + place[1].bytes
    return base64.urlsafe_b64encode(_tag(secret, user_id, query, body) + body).rstrip(b"=").decode()


def open_sealed(secret: bytes, user_id: str, query: Mapping[str, object], cursor: str) -> tuple[datetime, UUID]:
    """The place that `seal` put in.

    Raises:
        InvalidCursor: it was not made by `seal` with this secret for this user and this query.
    """
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidCursor from None
    tag, body = raw[:_SEAL], raw[_SEAL:]
    if len(body) != 25 or not hmac.compare_digest(tag, _tag(secret, user_id, query, body)):
        raise InvalidCursor
    if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != cursor:  # other spellings of the same bytes
        raise InvalidCursor
    (microseconds,) = struct.unpack(">q", body[1:9])
    return _EPOCH + timedelta(microseconds=microseconds), UUID(bytes=body[9:])


def _tag(secret: bytes, user_id: str, query: Mapping[str, object], body: bytes) -> bytes:
    bound = json.dumps([user_id, query], sort_keys=True, default=str).encode()
    # The lengths keep (bound, body) apart; both parts are fixed by them.
    message = struct.pack(">I", len(bound)) + bound + body
    return hmac.new(secret, message, hashlib.sha256).digest()[:_SEAL]
