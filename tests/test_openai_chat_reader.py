"""OpenAI's chat messages are kept as they are, in whichever of their arrangements they come."""

from __future__ import annotations

from typing import Any

from chatledger.transfer.records import Rejected
from tests.foreign_files import BROKEN, conversation, conversations, outcomes, sample, spoken

HI = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def messages_of(*messages: Any) -> Any:
    return conversation("openai_chat", {"messages": list(messages)}).messages


def test_the_sample_is_two_conversations() -> None:
    first, second = conversations("openai_chat", *sample("openai_finetune.jsonl"))
    assert spoken(first.messages) == [("system", "Answer in French."), ("user", "Hi"), ("assistant", "Bonjour")]
    assert [message.role for message in second.messages] == ["user", "assistant", "tool", "assistant"]
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    assert second.messages[1].tool_calls == [call]
    assert (second.messages[2].tool_call_id, second.messages[2].content) == ("call_1", "-3")
    assert list(second.metadata) == ["tools"]


def test_messages_alone_are_one_conversation_and_lists_of_them_one_each() -> None:
    found = conversations("openai_chat", [HI], HI, {"messages": [HI]}, {**HI, "role": "assistant"})
    assert [spoken(each.messages) for each in found] == [
        [("user", "hi")],
        [("user", "hi")],
        [("user", "hi"), ("assistant", "hi")],
    ]


def test_a_conversation_with_a_role_of_its_own_is_no_message_and_the_first_message_gives_the_place() -> None:
    whole = {"role": "assistant", "messages": [HI]}
    first, single = conversations("openai_chat", HI, whole, {**HI, "content": "ho"})
    assert spoken(first.messages) == [("user", "hi")]
    assert spoken(single.messages) == [("user", "hi"), ("user", "ho")]
    assert int(single.place.split()[-1]) < int(first.place.split()[-1])


def test_a_call_is_kept_verbatim_but_for_what_makes_it_unusable() -> None:
    odd = {"id": "c2", "type": "custom", "custom": {"name": "g", "input": "x"}, "index": 1}
    parsed = {"function": {"name": "h", "arguments": {"b": 2}}}
    (message,) = messages_of({"role": "assistant", "content": None, "tool_calls": [CALL, odd, parsed, "junk"]})
    assert message.tool_calls == [
        CALL,
        odd,
        {"id": "call_3", "function": {"name": "h", "arguments": '{"b": 2}'}},
    ]
    assert message.parts == [{"tool_calls": "junk"}]


def test_a_legacy_function_call_pairs_with_the_function_that_answers() -> None:
    found = messages_of(
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "assistant", "content": None, "function_call": {"name": "g", "arguments": "{}"}},
        {"role": "function", "name": "g", "content": "of g"},
        {"role": "function", "name": "f", "content": "of f"},
        {"role": "function", "name": "f", "content": "of nothing"},
    )
    ids = [message.tool_calls[0]["id"] for message in found[:2]]
    assert ids == ["call_1", "call_2"]
    assert [(m.role, m.name, m.tool_call_id) for m in found[2:]] == [
        ("tool", "g", "call_2"),
        ("tool", "f", "call_1"),
        ("tool", "f", None),
    ]


def test_a_derived_id_is_never_one_that_was_there_before() -> None:
    first = {"role": "assistant", "tool_calls": [{**CALL, "id": "call_2"}]}
    second = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    found = messages_of(first, second, {"role": "tool", "tool_call_id": "call_2", "content": "x"}, {"role": "tool"})
    assert [found[1].tool_calls[0]["id"], found[3].tool_call_id] == ["call_2_", "call_2_"]


def test_visible_text_is_joined_and_the_rest_is_parts() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:x"}}
    sound = {"type": "input_audio", "input_audio": {"data": "x"}}
    (message,) = messages_of(
        {
            "role": "user",
            "content": [{"type": "text", "text": " a "}, image, "b\n", {"type": "text", "text": ""}, sound],
        }
    )
    assert message.content == " a \n\nb\n"
    assert message.parts == [image, sound]
    (refusal,) = messages_of({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]})
    assert refusal.content == "no"
    (beside,) = messages_of({"role": "assistant", "content": None, "refusal": "no", "reasoning_content": "hm"})
    assert (beside.content, beside.parts) == ("no", [{"reasoning_content": "hm"}])


def test_a_text_that_cites_is_in_parts_too() -> None:
    block = {"type": "text", "text": "see", "annotations": [{"type": "url_citation"}]}
    (message,) = messages_of({"role": "assistant", "content": [block]})
    assert (message.content, message.parts) == ("see", [block])


def test_a_result_without_text_still_answers_its_call() -> None:
    empty = {"role": "tool", "tool_call_id": "c1", "content": ""}
    found = messages_of({"role": "assistant", "tool_calls": [CALL]}, empty)
    assert (found[1].tool_call_id, found[1].content, found[1].parts) == ("c1", "", [empty])


def test_a_system_text_beside_the_list_comes_first() -> None:
    for key in ("system", "developer", "instructions"):
        found = conversation("openai_chat", {key: "be kind", "messages": [HI]})
        assert spoken(found.messages) == [("system", "be kind"), ("user", "hi")]


def test_what_is_no_message_is_counted() -> None:
    found = conversation(
        "openai_chat",
        {
            "id": 7,
            "title": "T",
            "created": 1_764_000_000,
            "model": "m",
            "tools": ["x" * 9_000],
            "messages": [
                {**HI, "id": "a"},
                {**HI, "id": "a"},
                {"role": "user", "content": " "},
                {"role": "critic", "content": "x"},
                {"role": ["x"]},
                5,
            ],
        },
    )
    assert found.left_out == {
        "repeated id": 1,
        "no text, call or parts": 1,
        "unknown role: critic": 1,
        "unknown role: not a name": 1,
        "not an object": 1,
    }
    assert (found.external_id, found.title, found.metadata) == ("7", "T", {"model": "m"})
    assert found.created_at is not None


def test_reasons_that_quote_the_source_are_bounded() -> None:
    found = conversation("openai_chat", {"messages": [HI, *({"role": f"r{n}"} for n in range(100))]})
    assert len(found.left_out) == 21
    assert found.left_out["unknown role: other"] == 80


def test_a_record_without_messages_fails_alone() -> None:
    found = outcomes("openai_chat", {"messages": [HI]}, {"messages": "x", "id": "b"}, BROKEN, {"messages": []})
    assert [getattr(each, "failed", None) for each in found] == [None, True, True, False]
    assert isinstance(found[1], Rejected)
    assert found[1].external_id == "b"
