"""What is refused before it reaches the database, and in which words."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger.storage import limits
from chatledger.storage.errors import (
    ContentEmpty,
    ContentTooLong,
    IdempotencyConflict,
    InvalidArgument,
    StorageError,
    TooLarge,
)
from chatledger.storage.limits import Limits
from chatledger.storage.records import ROLES, NewMessage
from chatledger.storage.rows import decode_json
from chatledger.storage.validation import (
    check_range,
    check_text,
    check_title,
    check_user,
    checked_json,
    checked_message,
    checked_metadata,
    repeats_within,
)

SAID = NewMessage(role="user", content="hello")
ANY_TIME = settings(deadline=None, database=None)  # the machine may be busy
WHITE_SPACE = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if char.isspace())


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("unstorable", ["\x00", "\ud800", "\udbff\udbff"])
def test_a_character_that_postgres_cannot_hold_is_refused_with_its_place(unstorable: str) -> None:
    with pytest.raises(InvalidArgument, match="at position 3") as refused:
        check_text("title", "abc" + unstorable)
    assert "abc" not in refused.value.message


@pytest.mark.parametrize(
    "text", ["\ufeffBOM", "\r\n", "e\u0301", "\U0010ffff\ufffe", "\u200b", "\x1b[31m", "\U000e0041"]
)
def test_every_other_character_is_a_text(text: str) -> None:
    check_text("content", text)


def test_length_is_counted_in_code_points() -> None:
    check_text("title", "😀" * 200, max_chars=200)
    with pytest.raises(InvalidArgument, match="title has 201 characters; it must have between 1 and 200"):
        check_text("title", "e\u0301" * 100 + "!", min_chars=1, max_chars=200)


@ANY_TIME
@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_a_text_passes_exactly_when_postgres_can_hold_it(text: str) -> None:
    storable = "\x00" not in text and not any("\ud800" <= char <= "\udfff" for char in text)
    try:
        check_text("content", text)
    except InvalidArgument:
        assert not storable
    else:
        assert storable


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from("abcdé"), inner, max_size=5),
    max_leaves=20,
)


@ANY_TIME
@given(JSON)
def test_json_text_means_the_value_that_it_was_made_of(value: Any) -> None:
    assert json.loads(checked_json("metadata", value, max_bytes=100_000)) == value


def test_json_bytes_are_those_of_compact_utf8() -> None:
    assert checked_json("metadata", {"é": [1, 2]}, max_bytes=12) == '{"é":[1,2]}'
    with pytest.raises(TooLarge, match="takes 12 bytes as JSON; the limit is 11"):
        checked_json("metadata", {"é": [1, 2]}, max_bytes=11)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        float("-inf"),
        json.loads("1e131071"),
        2**53 + 1,
        -(2**53) - 1,
        10**400,
        "\x00",
        "\udc00",
        {"\x00": 1},
        {"\ud800": 1},
        {1: 2},
        {None: 2},
        b"bytes",
        {1, 2},
        pytest.param(object(), id="an object"),
        complex(1, 2),
    ],
    ids=repr,
)
def test_json_that_would_not_come_back_equal_is_refused(value: Any) -> None:
    for place in (value, [value], {"a": [{"b": value}]}):
        with pytest.raises(InvalidArgument):
            checked_json("metadata", place, max_bytes=1_000)


def test_a_number_that_jsonb_writes_out_as_a_huge_integer_is_read_back_as_it_was() -> None:
    for number in (float(2**53), 1e-300, 0.1, 1e16, 1e23, 6.02214076e23, -1.7976931348623157e308):
        sent = checked_json("metadata", [number], max_bytes=100)
        as_jsonb_prints_it = f"[{Decimal(json.loads(sent)[0].__repr__()):f}]"
        (read,) = decode_json(as_jsonb_prints_it)
        assert read == number
        assert isinstance(read, float) or number == 2**53


def test_depth_is_limited_without_recursion() -> None:
    assert checked_json("metadata", nested(limits.JSON_DEPTH), max_bytes=1_000)
    for depth in (limits.JSON_DEPTH + 1, 100_000):
        with pytest.raises(TooLarge, match="nested deeper than 32 levels"):
            checked_json("metadata", nested(depth), max_bytes=1_000)


def test_keys_are_counted_at_all_levels_together() -> None:
    inner = {str(key): 0 for key in range(499)}
    assert checked_json("metadata", {"a": inner, "b": inner}, max_bytes=16_384)
    with pytest.raises(TooLarge, match="has 1,001 keys; the limit is 1,000"):
        checked_json("metadata", {"a": inner, "b": inner, "c": 1}, max_bytes=16_384)


@pytest.mark.parametrize("role", ROLES)
def test_every_role_of_the_contract_is_taken(role: str) -> None:
    assert checked_message(replace(SAID, role=role), Limits()).role == role


@pytest.mark.parametrize("role", ["", "root", "User", "user ", "developer", "\x00"])
def test_no_other_role_is_taken(role: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^role must be one of user, assistant, system, tool$"):
        checked_message(replace(SAID, role=role), Limits())


def test_an_installation_may_narrow_the_roles() -> None:
    narrow = Limits(allowed_roles=("user", "assistant"))
    assert checked_message(SAID, narrow)
    with pytest.raises(InvalidArgument, match=r"^role must be one of user, assistant on this server$"):
        checked_message(replace(SAID, role="system"), narrow)


def test_content_of_nothing_but_white_space_is_empty() -> None:
    assert len(WHITE_SPACE) == 29
    for blank in ("", *WHITE_SPACE, WHITE_SPACE):
        with pytest.raises(ContentEmpty, match=f"content has {len(blank)} characters and no visible one"):
            checked_message(replace(SAID, content=blank), Limits())


@pytest.mark.parametrize("content", ["\u200b", "\u200d", "\ufeff", "\u2060", "\u0301", " x ", "\x07"])
def test_content_with_any_other_character_is_not_empty(content: str) -> None:
    assert checked_message(replace(SAID, content=content), Limits()).content == content


def test_content_may_be_empty_beside_tool_calls_or_parts_that_are_not() -> None:
    empty = replace(SAID, role="assistant", content="")
    assert checked_message(replace(empty, tool_calls=[{"id": "1"}]), Limits()).content == ""
    assert checked_message(replace(empty, parts=[{"type": "image"}]), Limits()).content == ""
    with pytest.raises(ContentEmpty):
        checked_message(replace(empty, tool_calls=[], parts=[], metadata={"a": 1}), Limits())


def test_content_is_limited_in_code_points_and_never_truncated() -> None:
    longest = "é😀" * 5_000
    assert checked_message(replace(SAID, content=longest), Limits()).content == longest
    with pytest.raises(ContentTooLong, match="content has 10,001 characters; the limit is 10,000") as refused:
        checked_message(replace(SAID, content=longest + "\u0301"), Limits())
    assert refused.value.details == {"limit": 10_000, "length": 10_001}


def test_the_database_limits_content_whatever_the_setting() -> None:
    with pytest.raises(ContentTooLong, match="the limit is 1,000,000"):
        checked_message(replace(SAID, content="a" * 1_000_001), Limits(max_content_chars=2_000_000))


@pytest.mark.parametrize(
    ("field", "most"), [("tool_call_id", 256), ("name", 128), ("client_message_id", 128)], ids=lambda value: str(value)
)
def test_short_texts_have_one_character_at_least_and_a_limit(field: str, most: int) -> None:
    def said(value: Any) -> NewMessage:
        return replace(SAID, **{field: value})

    assert getattr(checked_message(said("é" * most), Limits()), field) == "é" * most
    for value in ("", "é" * (most + 1), "a\x00"):
        with pytest.raises(InvalidArgument, match=f"^{field} "):
            checked_message(said(value), Limits())


@pytest.mark.parametrize(
    ("field", "limit"), [("metadata", 16 * 1024), ("tool_calls", 256 * 1024), ("parts", 256 * 1024)]
)
def test_json_fields_have_limits_of_bytes_and_a_kind(field: str, limit: int) -> None:
    def value(size: int) -> Any:
        text = "x" * (size - (10 if field == "metadata" else 4))
        return {"abc": text} if field == "metadata" else [text]

    assert len(getattr(checked_message(replace(SAID, **{field: value(limit)}), Limits()), field)) == limit
    with pytest.raises(TooLarge, match=f"^{field} takes {limit + 1:,} bytes as JSON; the limit is {limit:,}$"):
        checked_message(replace(SAID, **{field: value(limit + 1)}), Limits())
    other: Any = [] if field == "metadata" else {}
    with pytest.raises(InvalidArgument, match=f"^{field} must be a JSON (array|object)$"):
        checked_message(replace(SAID, **{field: other}), Limits())


def test_a_sentence_names_the_message_of_a_batch_and_holds_nothing_of_it() -> None:
    secret = "the-value-sent"
    broken: list[NewMessage] = [
        replace(SAID, role=secret),
        replace(SAID, content=secret + "\x00"),
        replace(SAID, content=secret * 1_000),
        replace(SAID, name=secret * 100),
        replace(SAID, parts=[secret * 100_000]),
        replace(SAID, metadata={secret: float("nan")}),
    ]
    for message in broken:
        with pytest.raises(StorageError, match=r"^messages\[3\]\.\w+ ") as refused:
            checked_message(message, Limits(), name="messages[3].")
        assert secret not in refused.value.message


def test_a_repeat_within_a_batch_is_found_by_its_id_and_compared_whole() -> None:
    def columns(*messages: NewMessage) -> list[Any]:
        return [checked_message(message, Limits()) for message in messages]

    first, other = replace(SAID, client_message_id="a"), replace(SAID, client_message_id="b")
    assert repeats_within(columns(first, other, SAID, first, SAID)) == ([0, 1, 2, 4], {3: 0})
    with pytest.raises(IdempotencyConflict):
        repeats_within(columns(first, replace(first, name="n")))
    keyed = replace(first, metadata={"a": 1, "b": [1, 2]})
    assert repeats_within(columns(keyed, replace(keyed, metadata={"b": [1, 2], "a": 1}))) == ([0], {1: 0})
    for other_json in ({"a": 1, "b": [2, 1]}, {"a": True, "b": [1, 2]}):
        with pytest.raises(IdempotencyConflict):
            repeats_within(columns(keyed, replace(keyed, metadata=other_json)))


def test_a_user_id_is_1_to_255_characters_of_any_script() -> None:
    for user_id in ("a", "ユーザー", "auth0|5f7c8ec7c33c6c004bbafe82", "é" * 255):
        check_user(user_id)
    for user_id in ("", "é" * 256, "a\x00b", "\ud800"):
        with pytest.raises(InvalidArgument, match=r"^user_id "):
            check_user(user_id)


def test_titles_metadata_and_numbers_may_be_absent_and_have_bounds() -> None:
    check_title(None)
    check_title("x" * 200)
    assert checked_metadata(None) is None
    check_range("limit", None, 1, 100)
    check_range("limit", 100, 1, 100)
    for title in ("", "x" * 201):
        with pytest.raises(InvalidArgument, match=r"^title has"):
            check_title(title)
    for number in (0, 101, -1, 10**30):
        with pytest.raises(InvalidArgument, match=r"^limit must be between 1 and 100$"):
            check_range("limit", number, 1, 100)
