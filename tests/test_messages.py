"""The messages of a window, which are kept by columns."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest

from chatledger.server.schemas import message_view, message_views
from chatledger.storage.records import Message, Messages

NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
WHOLE = [
    Message(1, "user", "hi", NOW),
    Message(2, "assistant", "", NOW, [{"id": "c"}], None, "a", uuid4(), "m2", [{"type": "image"}], {"k": 1}),
    Message(3, "tool", "ho", NOW, None, "c"),
]
FULL = Messages(list(zip(*WHOLE, strict=True)))
CONCISE = Messages(FULL.columns[:7])


def test_they_are_a_sequence_of_what_they_were_made_of() -> None:
    assert list(FULL) == [FULL[place] for place in range(3)] == WHOLE
    assert (FULL[-1], len(FULL), list(reversed(FULL))) == (WHOLE[-1], 3, WHOLE[::-1])
    assert WHOLE[1] in FULL
    assert Message(1, "user", "another", NOW) not in FULL
    with pytest.raises(IndexError):
        FULL[3]


def test_what_only_full_detail_has_is_absent_without_it() -> None:
    assert list(CONCISE) == [Message(*message[:7]) for message in WHOLE] == [CONCISE[place] for place in range(3)]
    assert CONCISE != FULL
    assert CONCISE[::2] == FULL[::2]


@pytest.mark.parametrize("part", [slice(1, None), slice(-1, None), slice(0), slice(None, None, -1)])
def test_a_slice_is_messages_as_well(part: slice) -> None:
    assert isinstance(FULL[part], Messages)
    assert FULL[part] == WHOLE[part]
    assert bool(FULL[part]) == bool(WHOLE[part])


@pytest.mark.parametrize("count", [0, 1, 6, 8, 12])
def test_other_columns_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} columns"):
        Messages([()] * count)


def test_a_column_that_is_shorter_is_noticed() -> None:
    with pytest.raises(ValueError, match="shorter"):
        list(Messages([*CONCISE.columns[:6], ()]))


def test_what_is_shown_of_them_is_what_is_shown_of_each() -> None:
    assert message_views(FULL) == [message_view(message) for message in WHOLE]
    assert message_views(CONCISE)[1].keys() == {"seq", "role", "content", "created_at", "tool_calls", "name"}
    assert message_views(FULL[:0]) == []
