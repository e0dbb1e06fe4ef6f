"""ShareGPT's turns have names of their own for who speaks, and calls as text."""

from __future__ import annotations

from typing import Any

from tests.foreign_files import BROKEN, conversation, conversations, outcomes, sample, spoken


def turn(speaker: Any, value: Any) -> dict[str, Any]:
    return {"from": speaker, "value": value}


def test_the_sample_is_two_conversations() -> None:
    first, second = conversations("sharegpt", *sample("sharegpt.jsonl"))
    assert (first.external_id, second.external_id) == ("sg-1", "sg-2")
    assert spoken(first.messages) == [("system", "You are terse."), ("user", "2+2?"), ("assistant", "4")]
    assert [message.role for message in second.messages] == ["user", "assistant", "tool", "assistant"]
    called, answered = second.messages[1:3]
    assert called.tool_calls == [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    ]
    assert (answered.tool_call_id, answered.content) == ("call_1", '{"temp_c":-3}')


def test_a_call_that_is_no_json_is_kept_as_text() -> None:
    for value, calls in (
        ("weather(Oslo)", [("", "weather(Oslo)")]),
        ('{"arguments": 1}', [("", '{"arguments": 1}')]),
        ('[{"name": "f", "arguments": "x"}, {"name": "g"}]', [("f", "x"), ("g", "{}")]),
        ({"name": "f", "parameters": {"a": 1}}, [("f", '{"a": 1}')]),
        ([], [("", "[]")]),
    ):
        (message,) = conversation("sharegpt", {"conversations": [turn("function_call", value)]}).messages
        made = [(call["function"]["name"], call["function"]["arguments"]) for call in message.tool_calls or ()]
        assert made == calls


def test_turns_may_have_role_and_content() -> None:
    found = conversation(
        "sharegpt",
        {
            "id": 5,
            "title": "T",
            "system": "be kind",
            "conversations": [{"role": "user", "content": "hi"}, turn("gpt", "ho")],
        },
    )
    assert spoken(found.messages) == [("system", "be kind"), ("user", "hi"), ("assistant", "ho")]
    assert (found.external_id, found.title) == ("5", "T")


def test_what_is_no_turn_is_counted_and_what_is_no_conversation_fails_alone() -> None:
    found = outcomes(
        "sharegpt",
        {"conversations": [turn("human", "a")]},
        {"conversations": "x"},
        BROKEN,
    )
    assert [getattr(each, "failed", None) for each in found] == [None, True, True]
    first = conversation(
        "sharegpt", {"conversations": [turn("human", "a"), turn("narrator", "b"), turn("gpt", None), 5]}
    )
    assert first.left_out == {
        "unknown role: narrator": 1,
        "no text, call or parts": 1,
        "not an object": 1,
    }
