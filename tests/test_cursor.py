"""A page cursor opens for the user, the list and the filters that it was made for, as it was made, or not at all."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger.storage.cursor import open_sealed, seal
from chatledger.storage.errors import InvalidCursor

SECRET = b"s" * 32
ANY_TIME = settings(deadline=None, database=None)  # the machine may be busy
QUERY = {"list": "conversations", "title_contains": None, "include_archived": False}
PLACE = (datetime(2026, 7, 28, 12, 30, 15, 123456, tzinfo=UTC), UUID("01980000-0000-7000-8000-000000000001"))
CURSOR = seal(SECRET, "alice", QUERY, PLACE)


def refused(cursor: str, *, secret: bytes = SECRET, user_id: str = "alice", query: Any = None) -> None:
    with pytest.raises(InvalidCursor) as error:
        open_sealed(secret, user_id, QUERY if query is None else query, cursor)
    assert error.value.message == InvalidCursor().message, "each refusal has the same words"
    assert error.value.__cause__ is None


@ANY_TIME
@given(
    st.datetimes(timezones=st.just(UTC)),
    st.uuids(),
    st.text(min_size=1),
)
def test_a_cursor_gives_back_its_place_to_the_microsecond(time: datetime, id: UUID, user_id: str) -> None:
    assert open_sealed(SECRET, user_id, QUERY, seal(SECRET, user_id, QUERY, (time, id))) == (time, id)


def test_a_cursor_is_short_and_needs_no_escaping_in_a_url() -> None:
    assert len(CURSOR) == 55
    assert CURSOR.replace("-", "").replace("_", "").isalnum()


def test_a_cursor_is_the_same_from_every_process() -> None:
    assert seal(SECRET, "alice", dict(reversed(QUERY.items())), PLACE) == CURSOR


def test_a_cursor_of_another_user_is_refused() -> None:
    for user_id in ("bob", "Alice", "alice ", "alice\u200b", '"alice"'):
        refused(CURSOR, user_id=user_id)


def test_a_cursor_sealed_with_another_secret_is_refused() -> None:
    refused(CURSOR, secret=b"t" * 32)


@pytest.mark.parametrize(
    "changed",
    [
        {"list": "messages"},
        {"title_contains": ""},
        {"title_contains": "None"},
        {"title_contains": "null"},
        {"include_archived": True},
        {"updated_after": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
    ids=str,
)
def test_a_cursor_for_another_list_or_other_filters_is_refused(changed: dict[str, Any]) -> None:
    refused(CURSOR, query=QUERY | changed)


def test_a_cursor_is_bound_to_the_times_among_its_filters() -> None:
    since = datetime(2026, 1, 1, tzinfo=UTC)
    cursor = seal(SECRET, "alice", QUERY | {"updated_after": since}, PLACE)
    assert open_sealed(SECRET, "alice", QUERY | {"updated_after": since}, cursor) == PLACE
    refused(cursor, query=QUERY | {"updated_after": since + timedelta(microseconds=1)})


def test_user_and_filters_cannot_be_exchanged_for_each_other() -> None:
    one = seal(SECRET, "a", {"b": "c"}, PLACE)
    for user_id, query in (('a", {"b', {"c": ""}), ("ab", {"": "c"}), ("", {"a": "", "b": "c"})):
        refused(one, user_id=user_id, query=query)


def test_every_flipped_bit_is_noticed() -> None:
    raw = base64.urlsafe_b64decode(CURSOR + "=")
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        refused(base64.urlsafe_b64encode(changed).rstrip(b"=").decode())


def test_every_other_spelling_of_the_same_bytes_is_refused() -> None:
    raw = base64.urlsafe_b64decode(CURSOR + "=")
    spellings = {
        CURSOR + "=",
        CURSOR + "==",
        CURSOR + "\n",
        " " + CURSOR,
        CURSOR[:-1] + chr(ord(CURSOR[-1]) + 1),  # the bits that base64 leaves over
        base64.b64encode(raw).decode(),
        base64.b64encode(raw).decode().rstrip("=") + "=",
        raw.hex(),
    }
    for spelling in spellings - {CURSOR}:
        refused(spelling)


@pytest.mark.parametrize("length", [*range(55), 57, 60, 10_000])
def test_a_cursor_that_was_cut_or_lengthened_is_refused(length: int) -> None:
    refused((CURSOR * (length // len(CURSOR) + 1))[:length])


@ANY_TIME
@given(st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"=").decode()))
def test_garbage_is_refused(garbage: str) -> None:
    refused(garbage)


def test_a_cursor_of_another_version_is_refused() -> None:
    raw = base64.urlsafe_b64decode(CURSOR + "=")
    assert raw[16:17] == b"1"
    refused(base64.urlsafe_b64encode(raw[:16] + b"2" + raw[17:]).rstrip(b"=").decode())
