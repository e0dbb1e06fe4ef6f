"""A Claude.ai export gives what was visible, the branch that was open last, and the edits beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger.transfer.formats import claude_ai
from chatledger.transfer.records import Malformed, Origin, Outcome, ReadConversation, ReadMessage, Record, Rejected
from tests.foreign_files import spoken

ROOT = "00000000-0000-4000-8000-000000000000"


def text(shown: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": shown, **more}


def said(sender: str, *blocks: Any, **more: Any) -> dict[str, Any]:
    return {"sender": sender, "content": list(blocks), **more}


def outcomes(*values: Any) -> list[Outcome]:
    records: Iterator[Record] = (Record(f"element {n}", value) for n, value in enumerate(values, 1))
    return list(claude_ai.read(records, Origin("conversations.json")))


def conversation(value: Any) -> ReadConversation:
    (found,) = outcomes(value)
    assert isinstance(found, ReadConversation)
    return found


def read(*messages: Any, **fields: Any) -> ReadConversation:
    return conversation({"uuid": "c", "chat_messages": list(messages), **fields})


def message(source: Any) -> ReadMessage:
    (found,) = read(source).messages
    return found


# ---- conversations -------------------------------------------------------------------------------------------------


def test_what_a_conversation_says_of_itself_is_kept() -> None:
    found = read(
        said("human", text("hi"), uuid="m", created_at="2024-08-08T19:12:06.120414"),
        name="Name",
        created_at="2022-12-28T20:09:27.970040+02:00",
        updated_at="2024-08-08T19:12:06Z",
        model="claude-x",
        is_starred=True,
        is_archived=True,
        project={"uuid": "p", "name": "Project"},
        account={"uuid": "a"},
        summary="s" * 9_000,
    )
    assert (found.place, found.external_id, found.title, found.archived) == ("element 1", "c", "Name", True)
    assert found.created_at == datetime(2022, 12, 28, 18, 9, 27, 970040, UTC)
    assert found.updated_at == datetime(2024, 8, 8, 19, 12, 6, tzinfo=UTC)
    assert found.metadata == {"model": "claude-x", "project": "Project", "is_starred": True}
    assert found.messages == [
        ReadMessage("user", "hi", "m", datetime(2024, 8, 8, 19, 12, 6, 120414, UTC)),
    ]
    assert read(title="Title", name="").title == "Title"
    assert read(said("human", text("hi"))).metadata == {}


def test_without_messages_a_record_has_failed_and_an_empty_list_is_an_empty_conversation() -> None:
    found = outcomes({"uuid": "u", "name": "n"}, "text", Malformed("is not valid JSON"))
    assert all(isinstance(each, Rejected) and each.failed for each in found)
    assert found[0] == Rejected(
        place="element 1", reason="no list of chat_messages", failed=True, external_id="u", title="n"
    )
    assert read().messages == []


def test_edits_make_a_tree_and_the_order_of_the_array_says_nothing() -> None:
    turns = [
        said("assistant", text("answer 2"), uuid="d", parent_message_uuid="c"),
        said("human", text("prompt 1"), uuid="a", parent_message_uuid=ROOT),
        said("human", text("prompt 2"), uuid="c", parent_message_uuid=ROOT),
        said("assistant", text("answer 1"), uuid="b", parent_message_uuid="a"),
    ]
    found = read(*turns, current_leaf_message_uuid="b")
    assert spoken(found.messages) == [("user", "prompt 1"), ("assistant", "answer 1")]
    assert [spoken(branch) for branch in found.branches] == [[("user", "prompt 2"), ("assistant", "answer 2")]]


def test_the_newest_leaf_is_open_where_the_file_does_not_say() -> None:
    turns = [
        said("human", text("q"), uuid="a", parent_message_uuid=ROOT, created_at="2024-01-01"),
        said("assistant", text("new"), uuid="b", parent_message_uuid="a", created_at="2024-01-03"),
        said("assistant", text("old"), uuid="c", parent_message_uuid="a", created_at="2024-01-02"),
    ]
    assert spoken(read(*turns).messages)[-1] == ("assistant", "new")


def test_without_parents_all_messages_are_one_branch_wherever_the_page_stood() -> None:
    found = read(*(said("human", text(each), uuid=each) for each in "abc"), current_leaf_message_uuid="b")
    assert [m.content for m in found.messages] == ["a", "b", "c"]
    assert list(found.branches) == []


# ---- content -------------------------------------------------------------------------------------------------------


def test_the_text_is_that_of_the_text_blocks() -> None:
    found = message(said("assistant", {"type": "thinking", "thinking": "hm"}, text(" a "), "b", text="hm a b"))
    assert found.content == " a \n\nb"
    assert found.parts == [{"type": "thinking", "thinking": "hm"}]


def test_the_text_beside_the_blocks_counts_for_people_and_where_there_are_no_blocks() -> None:
    thinking = {"type": "thinking", "thinking": "hm"}
    assert message(said("human", text="typed")).content == "typed"
    assert message(said("human", text(""), text="typed")).content == "typed"
    assert message({"sender": "assistant", "text": "older"}).content == "older"
    assert message({"sender": "assistant", "text": "older", "content": None}).content == "older"
    assert message(said("assistant", text="older")).content == "older"
    assert message(said("assistant", thinking, text="hm")) == ReadMessage("assistant", parts=[thinking])
    assert read(said("assistant", text(""), text="leaked")).left_out == {"no text, call or parts": 1}


def test_calls_pair_with_their_results_and_both_stay_in_parts() -> None:
    use = {"type": "tool_use", "id": "toolu_1", "name": "search", "input": {"q": "é"}, "message": "Searching"}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("found")], "is_error": False}
    bare = {"type": "tool_use", "name": "artifacts", "input": None}
    found = message(said("assistant", text("a"), use, result, text("b"), bare, uuid="m"))
    assert found.content == "a\n\nb"
    assert found.parts == [use, result, bare]
    assert found.tool_calls == [
        {"id": "toolu_1", "type": "function", "function": {"name": "search", "arguments": '{"q": "é"}'}},
        {"id": "call_m_4", "type": "function", "function": {"name": "artifacts", "arguments": "{}"}},
    ]
    assert message(said("human", text("x"), use)).tool_calls is None


def test_attachments_and_files_are_parts_verbatim() -> None:
    attachment = {"file_name": "a.txt", "extracted_content": "whole text"}
    found = message(said("human", text("see"), attachments=[attachment, None], files=[{"file_name": "b.png"}]))
    assert (found.content, found.parts) == ("see", [attachment, {"file_name": "b.png"}])
    only = message(said("human", text(""), attachments=[attachment], files="wrong", files_v2=None))
    assert (only.content, only.parts) == ("", [attachment])
    assert message(said("human", files=[], files_v2=[{"file_uuid": "f"}])).parts == [{"file_uuid": "f"}]


def test_a_text_that_cites_keeps_what_it_cites() -> None:
    cited = text("so it is", citations=[{"url": "u"}])
    assert message(said("assistant", cited)).parts == [cited]


def test_what_is_left_out_is_counted() -> None:
    found = read(
        said("human", text("one"), uuid="m"),
        said("human", text("again"), uuid="m"),
        said("robot", text("who?")),
        "no message",
        said("human", text("two")),
        said("assistant"),
    )
    assert [m.content for m in found.messages] == ["one", "two"]
    assert found.left_out == {
        "repeated id": 1,
        "unknown role: robot": 1,
        "malformed message": 1,
        "no text, call or parts": 1,
    }


# ---- harm ----------------------------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["text", "tool_use", "m"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "id", "input", "name", "citations"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ["uuid", "sender", "content", "text", "parent_message_uuid", "created_at", "attachments", "files", "files_v2"]


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(FIELDS), JUNK, max_size=9) | JUNK, max_size=4),
    st.dictionaries(
        st.sampled_from(["uuid", "name", "title", "current_leaf_message_uuid", "project", "created_at"]),
        JUNK,
        max_size=5,
    ),
)
def test_no_field_of_a_wrong_type_fails_the_rest(messages: list[Any], fields: dict[str, Any]) -> None:
    messages.append(said("human", text("hi"), uuid="good"))
    found = conversation(fields | {"chat_messages": messages})
    paths = [found.messages, *found.branches]
    assert any(m.content == "hi" for path in paths for m in path)
    assert json.dumps([m.tool_calls for path in paths for m in path])
