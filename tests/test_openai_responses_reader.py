"""Items of the Responses API keep their order, and reasoning stays right before what it led to."""

from __future__ import annotations

from typing import Any

from tests.foreign_files import BROKEN, call_names, conversation, conversations, outcomes, sample, spoken

SAID = {"type": "message", "id": "m1", "role": "assistant", "content": [{"type": "output_text", "text": "ho"}]}


def test_the_sample_is_one_conversation() -> None:
    found = conversation("openai_responses", *sample("openai_responses_items.json"))
    assert spoken(found.messages) == [
        ("user", "Weather in Oslo?"),
        ("assistant", ""),
        ("assistant", ""),
        ("tool", "-3"),
        ("assistant", "-3 °C"),
    ]
    assert [message.external_id for message in found.messages] == [None, "rs_1", "fc_1", None, "msg_1"]
    summary = [{"type": "summary_text", "text": "Need a tool."}]
    assert found.messages[1].parts == [{"type": "reasoning", "id": "rs_1", "summary": summary}]
    assert found.messages[2].tool_calls is not None
    assert found.messages[2].tool_calls[0]["id"] == found.messages[3].tool_call_id == "call_1"


def test_a_document_has_its_instructions_its_input_and_its_output_in_this_order() -> None:
    document = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_764_000_000,
        "model": "gpt-x",
        "instructions": "be kind",
        "output": [SAID],
        "input": "hi",
    }
    found = conversation("openai_responses", document)
    assert spoken(found.messages) == [("system", "be kind"), ("user", "hi"), ("assistant", "ho")]
    assert (found.external_id, found.metadata) == ("resp_1", {"model": "gpt-x"})
    assert found.created_at is not None


def test_every_arrangement_of_items_is_read() -> None:
    arrangements: list[list[Any]] = [[{"input": [SAID]}], [{"items": [SAID]}], [{"data": [SAID]}], [[SAID]], [SAID]]
    for arrangement in arrangements:
        assert spoken(conversation("openai_responses", *arrangement).messages) == [("assistant", "ho")]
    assert len(conversations("openai_responses", {"output": [SAID]}, SAID, [SAID], SAID)) == 3


def test_a_message_may_lack_its_type() -> None:
    found = conversation("openai_responses", {"role": "user", "content": "hi"}, SAID)
    assert spoken(found.messages) == [("user", "hi"), ("assistant", "ho")]


def test_a_hosted_tool_is_a_call_and_its_result() -> None:
    found = conversation(
        "openai_responses",
        {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"type": "search", "query": "q"}},
        {"type": "file_search_call", "id": "fs", "queries": ["q"], "results": [{"text": "t"}]},
        {
            "type": "mcp_call",
            "id": "mcp",
            "name": "f",
            "server_label": "s",
            "arguments": "{}",
            "output": "out",
            "error": None,
        },
        {"type": "mcp_call", "id": "mcp2", "name": "f", "arguments": "{}", "output": None, "error": "broken"},
        {"type": "image_generation_call", "id": "ig", "result": "BASE64"},
    )
    assert [(m.role, m.external_id, m.tool_call_id) for m in found.messages] == [
        ("assistant", "ws", None),
        ("assistant", "fs", None),
        ("tool", "fs#1", "fs"),
        ("assistant", "mcp", None),
        ("tool", "mcp#1", "mcp"),
        ("assistant", "mcp2", None),
        ("tool", "mcp2#1", "mcp2"),
        ("assistant", "ig", None),
        ("tool", "ig#1", "ig"),
    ]
    names = [name for message in found.messages for name in call_names(message)]
    assert names == ["web_search", "file_search", "f", "f", "image_generation"]
    results = [message for message in found.messages if message.role == "tool"]
    assert [each.content for each in results] == ["", "out", "", ""]
    assert results[0].parts == [{"results": [{"text": "t"}]}]
    assert results[2].metadata == {"is_error": True}
    assert results[3].parts == [{"result": "BASE64"}]


def test_what_is_not_known_is_counted() -> None:
    found = conversation(
        "openai_responses",
        SAID,
        SAID,
        {"type": "compaction", "encrypted_content": "SEALED"},
        {"type": "message", "role": "critic", "content": "x"},
        BROKEN,
    )
    assert found.left_out == {
        "repeated id": 1,
        "unknown record type: compaction": 1,
        "unknown role: critic": 1,
        "malformed line": 1,
    }


def test_a_document_without_items_fails_alone() -> None:
    found = outcomes("openai_responses", {"object": "response", "output": None}, {"output": [SAID]}, 5)
    assert [getattr(each, "failed", None) for each in found] == [True, None, True]
