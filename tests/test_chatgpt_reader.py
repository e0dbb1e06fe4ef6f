"""A ChatGPT export gives the conversation that was shown, its other branches, and a count of what is left out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger.transfer.formats import chatgpt
from chatledger.transfer.records import Malformed, Origin, Outcome, ReadConversation, ReadMessage, Record, Rejected
from chatledger.transfer.times import parse_time
from tests.foreign_files import sample, spoken

AT = 1764000000.5


def text(*parts: Any, kind: str = "text") -> dict[str, Any]:
    return {"content_type": kind, "parts": list(parts)}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    author = {"role": role, "name": more.pop("name", None)}
    return {"author": author, "content": text(content) if isinstance(content, str) else content, **more}


def chain(*messages: Any) -> dict[str, Any]:
    """The nodes of a conversation without branches: `n1`, `n2`, each after the one before."""
    return {
        f"n{n}": {"id": f"n{n}", "parent": f"n{n - 1}" if n > 1 else None, "message": message}
        for n, message in enumerate(messages, 1)
    }


def outcomes(*values: Any, assets: tuple[str, ...] = ()) -> list[Outcome]:
    records: Iterator[Record] = (Record(f"element {n}", value) for n, value in enumerate(values, 1))
    return list(chatgpt.read(records, Origin("conversations.json", assets)))


def conversation(value: Any, assets: tuple[str, ...] = ()) -> ReadConversation:
    (found,) = outcomes(value, assets=assets)
    assert isinstance(found, ReadConversation)
    return found


def read(*messages: Any, assets: tuple[str, ...] = (), **fields: Any) -> ReadConversation:
    return conversation({"mapping": chain(*messages), "current_node": f"n{len(messages)}", **fields}, assets)


def message(source: Any, assets: tuple[str, ...] = ()) -> ReadMessage:
    (found,) = read(source, assets=assets).messages
    return found


# ---- conversations -------------------------------------------------------------------------------------------------


def test_the_sample_has_branches_hidden_nodes_a_lost_parent_and_a_null_character() -> None:
    first, second = (
        each for each in outcomes(*sample("chatgpt_edge_cases.json")) if isinstance(each, ReadConversation)
    )
    assert (first.place, first.external_id, first.title) == ("element 1", "c-1", "Branches & hidden")
    assert (first.created_at, first.updated_at) == (parse_time(1764000000.1), parse_time(1764000100.9))
    assert spoken(first.messages) == [("user", "Describe it"), ("assistant", "Second answer, active")]
    assert [spoken(branch)[-1][1] for branch in first.branches] == ["First answer (regenerated away)"]
    assert next(iter(first.branches))[0] is first.messages[0]
    assert first.left_out == {"hidden": 1}
    assert first.messages[0].parts is not None
    assert first.messages[0].parts[0]["asset_pointer"] == "sediment://file_0000"
    assert first.messages[1].metadata == {"model": "gpt-x"}
    assert (second.title, second.updated_at, list(second.branches)) == (None, None, [])
    assert [(m.role, m.content, m.name) for m in second.messages] == [
        ("user", "orphan parent; NUL \x00 inside", None),
        ("tool", "42", "python"),
    ]


def test_what_a_conversation_says_of_itself_is_kept_small() -> None:
    about: dict[str, Any] = {
        "default_model_slug": "gpt-x",
        "gizmo_id": "g-1",
        "is_starred": True,
        "voice": "v",
        "is_archived": True,
    }
    found = read(said("user", "hi"), id="i", conversation_id="c", **about)
    assert (found.external_id, found.archived) == ("c", True)
    assert found.metadata == {"model": "gpt-x", "gizmo_id": "g-1", "is_starred": True}
    bare = read(said("user", "hi"), id="i", gizmo_id=None, is_starred=False, is_archived=None)
    assert (bare.external_id, bare.archived, bare.metadata) == ("i", False, {})


def test_without_a_mapping_a_record_has_failed() -> None:
    found = outcomes({"id": "c", "title": "t"}, {"mapping": None}, [], None, Malformed("is not valid JSON"))
    assert all(isinstance(each, Rejected) and each.failed for each in found)
    assert found[0] == Rejected(
        place="element 1", reason="no mapping of messages", failed=True, external_id="c", title="t"
    )
    assert isinstance(found[4], Rejected)
    assert found[4].reason == "is not valid JSON"


def test_an_empty_conversation_has_no_messages_and_says_what_was_left_out() -> None:
    assert conversation({"mapping": {}}).messages == []
    found = read(said("system", ""), said("user", "  \n"), None)
    assert (found.messages, list(found.branches), found.left_out) == ([], [], {"no text, call or parts": 2})


def test_parents_lead_from_the_current_node_and_children_are_a_fallback() -> None:
    nodes = {
        "b": {"message": said("assistant", "two"), "children": "none"},
        "a": {"message": said("user", "one"), "children": ["b", 7, "lost"]},
        "c": {"message": said("assistant", "three"), "parent": "b", "children": []},
        "d": {"message": said("assistant", "other"), "parent": "a"},
    }
    found = conversation({"mapping": nodes, "current_node": "c"})
    assert [m.content for m in found.messages] == ["one", "two", "three"]
    assert [[m.content for m in branch] for branch in found.branches] == [["one", "other"]]
    lost = conversation({"mapping": nodes, "current_node": "nowhere"})
    assert [m.content for m in lost.messages] == ["one", "other"]


# ---- content -------------------------------------------------------------------------------------------------------


def test_text_is_joined_by_an_empty_line_and_never_trimmed() -> None:
    assert message(said("user", text(" a ", "", "b\n"))).content == " a \n\nb\n"


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ({"content_type": "code", "language": "python", "text": "1+1"}, "1+1"),
        ({"content_type": "execution_output", "text": "2"}, "2"),
        ({"content_type": "system_error", "name": "e", "text": "failed"}, "failed"),
        ({"parts": ["no type"]}, "no type"),
        ("a bare string", "a bare string"),
        (
            {"content_type": "multimodal_text", "parts": [{"content_type": "audio_transcription", "text": "aloud"}]},
            "aloud",
        ),
    ],
)
def test_these_contents_are_text(content: Any, shown: str) -> None:
    found = message({"author": {"role": "assistant"}, "content": content})
    assert (found.content, found.parts) == (shown, None)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ({"content_type": "tether_quote", "url": "u", "title": "t", "text": "quoted"}, "quoted"),
        ({"content_type": "tether_browsing_display", "result": "found", "summary": None}, "found"),
        ({"content_type": "thoughts", "thoughts": [{"summary": "s", "content": "c"}]}, ""),
        ({"content_type": "reasoning_recap", "content": "Thought for 5s"}, ""),
        ({"content_type": "new_kind", "parts": ["shown", {"x": 1}], "y": 2}, "shown"),
        ({"content_type": ["wrong"], "text": 5}, ""),
    ],
)
def test_everything_else_is_a_part_verbatim(content: Any, shown: str) -> None:
    found = message(said("assistant", content))
    assert (found.content, found.parts) == (shown, [content])


def test_pictures_and_sound_are_parts_and_their_files_are_named() -> None:
    image = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://file-Ab1"}
    call = {
        "content_type": "real_time_user_audio_video_asset_pointer",
        "audio_asset_pointer": {"asset_pointer": "sediment://file_cd2#x"},
    }
    pdf = {"id": "file-Ef3", "name": "paper.pdf"}
    names = ("chat.html", "file-Ab1-photo.png", "audio/file_cd2.wav", "file-Ab12-other.png", "file-Ef3-paper.pdf")
    source = said("user", text(image, "look", call, None, 5), metadata={"attachments": [{"id": "file-Ab1"}, pdf, 7]})
    found = message(source, names)
    assert found.content == "look"
    assert found.parts == [image, call, 5, pdf, 7]
    assert found.metadata == {"files": ["file-Ab1-photo.png", "audio/file_cd2.wav", "file-Ef3-paper.pdf"]}
    assert message(source).metadata is None


def test_hidden_messages_and_editable_contexts_are_left_out_and_counted() -> None:
    found = read(
        said("system", "secret", metadata={"is_visually_hidden_from_conversation": True}),
        said("user", {"content_type": "user_editable_context", "user_profile": "p"}),
        said("system", {"content_type": "model_editable_context", "model_set_context": "m"}),
        said("critic", "who?"),
        "no message",
        said("user", "hi", metadata={"is_visually_hidden_from_conversation": False}),
    )
    assert spoken(found.messages) == [("user", "hi")]
    assert found.left_out == {"hidden": 1, "editable context": 2, "unknown role: critic": 1, "malformed message": 1}


def test_a_message_id_that_repeats_counts_once() -> None:
    found = read(said("user", "one", id="m"), said("assistant", "two", id="m"), said("user", "three"))
    assert [(m.content, m.external_id) for m in found.messages] == [("one", "m"), ("three", "n3")]
    assert found.left_out == {"repeated id": 1}


# ---- calls ---------------------------------------------------------------------------------------------------------


def call(recipient: str, arguments: str, **more: Any) -> dict[str, Any]:
    content = {"content_type": "code", "language": "unknown", "text": arguments}
    return said("assistant", content, recipient=recipient, **more)


def pairs(found: ReadConversation) -> list[str | None]:
    """Per message: the id of its call, or `answers` and the id of the call it answers."""
    return [
        m.tool_calls[0]["id"] if m.tool_calls else f"answers {m.tool_call_id}" if m.role == "tool" else None
        for m in found.messages
    ]


def test_a_message_to_a_tool_is_a_call_without_text() -> None:
    asked = message(call("python", "print(1)", id="m-1"))
    assert (asked.content, asked.parts, asked.tool_call_id) == ("", None, None)
    function = {"name": "python", "arguments": "print(1)"}
    assert asked.tool_calls == [{"id": "call_m-1", "type": "function", "function": function}]
    for other in (
        said("assistant", "x", recipient="all"),
        said("assistant", "x", recipient=None),
        said("tool", "x", recipient="assistant"),
    ):
        assert message(other).tool_calls is None
        assert message(other).content == "x"


def test_results_answer_the_nearest_call_of_their_name_that_waits() -> None:
    found = read(
        call("python", "1"),
        call("browser", "2"),
        said("tool", "r1", name="python"),
        said("tool", "r2", name="browser"),
        said("tool", "r3", name="python"),
        call("browser.open", "3"),
        call("dalle", "4"),
        said("tool", "r4", name="browser"),
        said("tool", "r5", name="another"),
    )
    assert pairs(found) == [
        *("call_n1", "call_n2", "answers call_n1", "answers call_n2", "answers None"),
        *("call_n6", "call_n7", "answers call_n6", "answers call_n7"),
    ]


def test_results_are_paired_along_their_own_branch() -> None:
    nodes = chain(said("user", "q"), call("python", "1"), said("tool", "r1", name="python"))
    nodes |= {
        "x2": {"parent": "n1", "message": call("python", "2")},
        "x3": {"parent": "x2", "message": said("tool", "r2", name="python")},
        "x4": {"parent": "n2", "message": said("tool", "r3", name="python")},
    }
    found = conversation({"mapping": nodes, "current_node": "n3"})
    answered = [found.messages[-1].tool_call_id, *(branch[-1].tool_call_id for branch in found.branches)]
    assert answered == ["call_n2", "call_x2", "call_n2"]


def test_what_belongs_to_a_hidden_call_stays_a_result() -> None:
    found = read(
        call("bio", "x", metadata={"is_visually_hidden_from_conversation": True}), said("tool", "saved", name="bio")
    )
    assert [(m.role, m.content, m.tool_call_id, m.name) for m in found.messages] == [("tool", "saved", None, "bio")]


# ---- harm ----------------------------------------------------------------------------------------------------------

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(["all", "python", "text", "n1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "parts", "content_type", "role", "text", "asset_pointer", "attachments", "result"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def some(keys: list[str], values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.sampled_from(keys), values, max_size=len(keys))


MESSAGES = some(["id", "author", "content", "metadata", "recipient", "create_time"], JUNK)
NODES = some(["id", "parent", "children"], JUNK).flatmap(
    lambda node: (MESSAGES | JUNK).map(lambda message: node | {"message": message})
)


@settings(max_examples=300, deadline=None, database=None)
@given(
    st.dictionaries(st.sampled_from(["n1", "n2", "n3", "n4"]), NODES | JUNK, max_size=4),
    some(["id", "conversation_id", "title", "create_time", "current_node", "default_model_slug", "gizmo_id"], JUNK),
)
def test_no_field_of_a_wrong_type_fails_the_rest(mapping: dict[str, Any], fields: dict[str, Any]) -> None:
    mapping |= {"good": {"message": said("user", "hi")}}
    found = conversation(fields | {"mapping": mapping})
    paths = [found.messages, *found.branches]
    assert any(m.content == "hi" for path in paths for m in path)
    for path in paths:
        ids = [m.external_id for m in path]
        assert len(ids) == len(set(ids))
        assert all(m.role in ("user", "assistant", "system", "tool") for m in path)


def test_many_calls_that_nothing_answers_cost_little() -> None:
    count = 20_000
    calls = [call("a", "1") for _ in range(count)]
    results = [said("tool", "r", name="b") for _ in range(count)]
    start = time.perf_counter()
    found = read(*calls, *results)
    assert found.messages[-1].tool_call_id == "call_n1"
    assert time.perf_counter() - start < 30  # about a second; by comparing each with each it would be minutes
