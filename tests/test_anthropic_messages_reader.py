"""Anthropic's messages have their results inside the user's; here each is a message of its own."""

from __future__ import annotations

from typing import Any

from tests.foreign_files import conversation, conversations, outcomes, sample, spoken

HI = {"role": "user", "content": "hi"}
USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"é": 1}}]}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "done"}]}


def test_the_sample_is_one_conversation() -> None:
    found = conversation("anthropic_messages", *sample("anthropic_messages.json"))
    assert spoken(found.messages) == [
        ("system", "Be brief."),
        ("user", "What is in this picture?"),
        ("user", ""),
        ("assistant", ""),
        ("tool", "a cat"),
        ("assistant", "A cat."),
    ]
    picture, thought, result = found.messages[2:5]
    assert picture.parts is not None
    assert picture.parts[0]["type"] == "image"
    assert thought.parts == [{"type": "thinking", "thinking": "Look.", "signature": "sig"}]
    assert thought.tool_calls is not None
    assert thought.tool_calls[0]["function"] == {"name": "describe", "arguments": '{"detail": "low"}'}
    assert (result.tool_call_id, result.metadata) == ("toolu_1", None)


def test_results_stand_before_the_text_beside_them() -> None:
    mixed = {"role": "user", "content": ["now this", *RESULT["content"], {"type": "document", "source": {}}]}
    found = conversation("anthropic_messages", {"messages": [HI, USE, mixed]})
    assert spoken(found.messages)[2:] == [("tool", "done"), ("user", "now this")]
    assert found.messages[3].parts == [{"type": "document", "source": {}}]


def test_calls_that_the_server_ran_are_parts() -> None:
    blocks = [
        {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
        {
            "type": "web_search_tool_result",
            "tool_use_id": "s1",
            "content": [{"url": "u", "encrypted_content": "SEALED"}],
        },
        {"type": "text", "text": "found"},
    ]
    found = conversation("anthropic_messages", {"messages": [HI, {"role": "assistant", "content": blocks}]})
    assert found.messages[1].parts == [
        blocks[0],
        {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"url": "u"}]},
    ]
    assert found.messages[1].tool_calls is None


def test_results_and_calls_without_ids_pair() -> None:
    use = {"role": "assistant", "content": [{"type": "tool_use", "name": "f"}, {"type": "tool_use", "name": "g"}]}
    results = {
        "role": "user",
        "content": [{"type": "tool_result", "content": "1"}, {"type": "tool_result", "content": "2"}],
    }
    found = conversation("anthropic_messages", {"messages": [use, results]})
    assert [call["id"] for call in found.messages[0].tool_calls or ()] == ["call_1", "call_2"]
    assert [(m.tool_call_id, m.content) for m in found.messages[1:]] == [("call_1", "1"), ("call_2", "2")]


def test_a_call_or_result_in_the_wrong_place_is_kept() -> None:
    """A call of the user is no call, and a result in an answer comes behind the calls of that answer."""
    asked = {"role": "user", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
    both = {"role": "assistant", "content": [*RESULT["content"], *USE["content"]]}
    found = conversation("anthropic_messages", {"messages": [asked, both]})
    assert found.messages[0].parts == asked["content"]
    assert [message.role for message in found.messages] == ["user", "assistant", "tool"]


def test_a_request_and_its_answer_are_one_conversation() -> None:
    answer: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": "end_turn",
    }
    answer["content"] = [{"type": "text", "text": "ho"}]
    pair = {"request": {"model": "claude-x", "system": "s", "messages": [HI]}, "response": answer}
    found = conversation("anthropic_messages", pair)
    assert spoken(found.messages) == [("system", "s"), ("user", "hi"), ("assistant", "ho")]
    assert found.messages[2].external_id == "msg_1"
    assert found.metadata == {"model": "claude-x"}


def test_lines_are_a_conversation_each_and_messages_alone_are_one() -> None:
    found = conversations("anthropic_messages", {"system": "a", "messages": [HI]}, HI, USE, RESULT)
    assert [len(each.messages) for each in found] == [2, 3]


def test_what_has_no_messages_fails_alone() -> None:
    found = outcomes("anthropic_messages", {"messages": None}, {"messages": [HI]}, "x")
    assert [getattr(each, "failed", None) for each in found] == [True, None, True]
