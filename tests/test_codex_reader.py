"""A Codex rollout has every turn twice, and becomes a conversation that has it once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tests.foreign_files import BROKEN, conversation, outcomes, spoken

AT = "2026-01-02T03:04:05.000Z"


def row(kind: str, **payload: Any) -> dict[str, Any]:
    return {"timestamp": AT, "type": kind, "payload": payload}


def item(kind: str, **more: Any) -> dict[str, Any]:
    return row("response_item", type=kind, **more)


def said(role: str, *texts: str) -> dict[str, Any]:
    kind = "output_text" if role == "assistant" else "input_text"
    return item("message", role=role, content=[{"type": kind, "text": text} for text in texts])


META = row("session_meta", id="11", cwd="/w", git={"branch": "main"}, cli_version="0.5", instructions="long" * 9)


def test_items_are_read_and_the_events_beside_them_are_not() -> None:
    found = conversation(
        "codex",
        META,
        row("turn_context", cwd="/w", model="gpt-x"),
        row("event_msg", type="user_message", message="hi"),
        said("user", "hi"),
        row("event_msg", type="agent_reasoning", text="hm"),
        row("event_msg", type="agent_message", message="ho"),
        row("event_msg", type="token_count", info=None),
        said("assistant", "ho"),
    )
    assert spoken(found.messages) == [("user", "hi"), ("assistant", "ho")]
    assert found.external_id == "11"
    assert found.metadata == {"cwd": "/w", "git": {"branch": "main"}, "cli_version": "0.5", "model": "gpt-x"}
    assert found.created_at == found.messages[0].created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert not found.left_out


def test_without_items_the_events_are_the_conversation() -> None:
    found = conversation(
        "codex",
        META,
        row("event_msg", type="user_message", message="<environment_context>x"),
        row("event_msg", type="user_message", message="hi", images=["data:x"]),
        row("event_msg", type="agent_reasoning", text="hm"),
        row("event_msg", type="agent_message", message="ho"),
        row("event_msg", type="token_count", info=None),
    )
    assert spoken(found.messages) == [("user", "hi"), ("assistant", ""), ("assistant", "ho")]
    assert found.messages[0].parts == [{"type": "input_image", "image_url": "data:x"}]
    assert found.messages[1].parts == [{"type": "agent_reasoning", "text": "hm"}]
    assert found.left_out == {"instructions and environment": 1, "record type: token_count": 1}


def test_what_the_program_says_for_the_user_is_left_out() -> None:
    found = conversation(
        "codex",
        said("developer", "rules"),
        said("user", "# AGENTS.md instructions for /w\n\nbe kind", "<environment_context>\n</environment_context>"),
        said("user", "<user_instructions>\nbe kind</user_instructions>"),
        said("user", "<environment_context>x</environment_context>", "and my question"),
    )
    assert spoken(found.messages) == [("system", "rules"), ("user", "and my question")]
    assert found.left_out == {"instructions and environment": 2}


def test_calls_of_every_kind_pair_with_their_outputs() -> None:
    found = conversation(
        "codex",
        item("function_call", name="shell", arguments='{"a": 1}', call_id="c1"),
        item("function_call_output", call_id="c1", output="plain"),
        item("custom_tool_call", name="apply_patch", input="*** Begin\n+é", call_id="c2", status="completed"),
        item("custom_tool_call_output", call_id="c2", output=[{"type": "output_text", "text": "Done!"}, {"type": "x"}]),
        item("local_shell_call", call_id="c3", action={"type": "exec", "command": ["ls"]}, status="completed"),
        item("function_call_output", call_id="c3", output='{"output": "a", "metadata": {"exit_code": 0}}'),
        item("web_search_call", action={"type": "search", "query": "ü"}, status="completed"),
        item("function_call", name="old", arguments="{}", call_id="c4"),
        item("function_call_output", call_id="c4", output={"content": "no", "success": False}),
        item("tool_search_call", call_id="c5", arguments={"query": "q"}),
        item("tool_search_output", call_id="c5", tools=[{"name": "t"}]),
    )
    calls = [call for message in found.messages for call in message.tool_calls or ()]
    assert [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        ("c1", "shell", '{"a": 1}'),
        ("c2", "apply_patch", "*** Begin\n+é"),
        ("c3", "local_shell", '{"type": "exec", "command": ["ls"]}'),
        ("call_4", "web_search", '{"type": "search", "query": "ü"}'),
        ("c4", "old", "{}"),
        ("c5", "tool_search", '{"query": "q"}'),
    ]
    results = [message for message in found.messages if message.role == "tool"]
    assert [(each.tool_call_id, each.content) for each in results] == [
        ("c1", "plain"),
        ("c2", "Done!"),
        ("c3", '{"output": "a", "metadata": {"exit_code": 0}}'),
        ("c4", "no"),
        ("c5", ""),
    ]
    assert results[1].parts == [{"type": "x"}]
    assert results[3].metadata == {"is_error": True}
    assert results[4].parts == [{"type": "tool_search_output", "call_id": "c5", "tools": [{"name": "t"}]}]


def test_readable_reasoning_is_a_message_of_parts_and_sealed_reasoning_is_left_out() -> None:
    summary = [{"type": "summary_text", "text": "hm"}]
    found = conversation(
        "codex",
        item("reasoning", summary=summary, content=None, encrypted_content="SEALED"),
        item("reasoning", summary=[], encrypted_content="SEALED"),
        item("reasoning", summary=[]),
        said("assistant", "ho"),
    )
    assert found.messages[0].parts == [{"type": "reasoning", "summary": summary, "content": None}]
    assert len(found.messages) == 2
    assert found.left_out == {"encrypted reasoning": 1, "empty reasoning": 1}
    assert "SEALED" not in str(found)


def test_old_files_have_bare_items_after_a_header() -> None:
    found = conversation(
        "codex",
        {"id": "22", "timestamp": AT, "instructions": None, "git": {"branch": "main"}},
        {"record_type": "state"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ho"}]},
    )
    assert (found.external_id, spoken(found.messages)) == ("22", [("user", "hi"), ("assistant", "ho")])
    assert found.left_out == {"record type: state": 1}


def test_the_first_header_names_the_session_and_the_file_does_where_there_is_none() -> None:
    uuid = "0199a213-81c0-7800-8aa1-bbab2a035a53"
    file = f"rollout-2026-01-02T03-04-05-{uuid}.jsonl"
    other = row("session_meta", id="parent", cwd="/elsewhere")
    assert conversation("codex", META, other, said("user", "x"), file=file).external_id == "11"
    assert conversation("codex", META, other, said("user", "x")).metadata["cwd"] == "/w"
    assert conversation("codex", said("user", "x"), file=file).external_id == uuid
    assert conversation("codex", said("user", "x"), file="x.jsonl").external_id is None


def test_unknown_and_malformed_records_are_counted() -> None:
    found = conversation(
        "codex", said("user", "x"), BROKEN, 7, row("compacted", message="m"), row("new"), item("ghost_snapshot")
    )
    assert found.left_out == {
        "malformed line": 1,
        "not an object": 1,
        "record type: compacted": 1,
        "record type: new": 1,
        "unknown record type: ghost_snapshot": 1,
    }
    (rejected,) = outcomes("codex", META)
    assert rejected.external_id == "11"
