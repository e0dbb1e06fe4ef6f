"""The several ways to say the same thing to a tool, and text that looks like something else."""

from __future__ import annotations

import json
from typing import Any

from mcp import Client

from tests.conftest import OpenClient
from tests.test_tools import call, refused, with_messages

NEEDED: dict[str, dict[str, Any]] = {
    "append_message": {"role": "user", "content": "x"},
    "append_messages": {"messages": [{"role": "user", "content": "x"}]},
    "search_messages": {"query": "first"},
}
"""What a tool needs beside a conversation. A tool that is not here needs nothing else, or its tests fail."""

LOOKS_LIKE_JSON = ["null", "{}", "[1]", "12", "true", '"quoted"', "1e999", "NaN"]
SHOWN_AS_ESCAPES = "\x01\x1b\x7f\x80\x9f\u200b\u200d\u200f\u2028\u2029\u202e\u2060\u2066\ufeff\U000e0041"
SHOWN_AS_THEY_ARE = "aé漢ا\u0301\U0001f600"


async def taking(client: Client, argument: str) -> list[str]:
    """The tools that take this argument, out of the published list."""
    tools = (await client.list_tools()).tools
    return [tool.name for tool in tools if argument in tool.input_schema["properties"]]


async def test_every_tool_takes_a_conversation_by_id_in_any_case_by_number_and_by_number_as_text(
    client_of: OpenClient,
) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        tools = await taking(alice, "conversation_id")
        assert len(tools) >= 6
        for tool in tools:
            for form in ("id", "upper", "number", "text"):
                made = (await call(alice, "create_conversation"))["conversation"]
                await call(alice, "append_message", conversation_id=made["id"], role="user", content="first")
                forms = {"upper": made["id"].upper(), "text": str(made["number"])} | made
                done = await call(alice, tool, conversation_id=forms[form], **NEEDED.get(tool, {}))
                done = done["hits"][0] if tool == "search_messages" else done
                told = done.get("conversation_id") or done["conversation"]["id"]
                assert told == made["id"] or done["conversation"]["forked_from"]["conversation_id"] == made["id"]
                error = await refused(bob, tool, conversation_id=forms[form], **NEEDED.get(tool, {}))
                assert error["code"] == "conversation_unavailable"


async def test_a_null_argument_counts_as_left_out_in_every_tool(client_of: OpenClient) -> None:
    async with with_messages(client_of, 2) as (alice, bob):
        await call(bob, "create_conversation", title="kept", key="kept")
        for tool in (await alice.list_tools()).tools:
            named = {"conversation_id": 1} if "conversation_id" in tool.input_schema.get("required", []) else {}
            needed = named | NEEDED.get(tool.name, {})
            nulls = dict.fromkeys(set(tool.input_schema["properties"]) - set(needed))
            done = await call(alice, tool.name, **needed, **nulls)
            if tool.name == "create_conversation":
                assert set(done["conversation"]) & {"title", "key", "metadata"} == set()
            if tool.name == "list_conversations":
                assert len(done["conversations"]) == 2
            if tool.name == "load_history":
                assert len(done["messages"]) >= 2
        kept = await call(bob, "update_conversation", conversation_id=1, title=None, archived=None, metadata=None)
        assert (kept["conversation"]["title"], kept["conversation"]["archived"]) == ("kept", False)


async def test_a_null_does_not_stand_for_an_argument_that_is_needed(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        for client in (alice, bob):
            error = await refused(client, "append_message", conversation_id=None, role=None, content="x")
            assert error["message"] == "conversation_id is required; role is required"
            assert (error["code"], error["status"]) == ("invalid_argument", 422)


async def test_arrays_and_objects_may_come_as_json_in_a_string(client_of: OpenClient) -> None:
    calls, parts, metadata = [{"id": "a", "n": 1}], [{"type": "image"}, None], {"nested": {"x": [True, None]}}
    async with client_of("alice") as alice, client_of("bob") as bob:
        for client in (alice, bob):
            made = await call(client, "create_conversation", metadata=json.dumps(metadata))
            assert made["conversation"]["metadata"] == metadata
            in_text = {"tool_calls": json.dumps(calls), "parts": json.dumps(parts), "metadata": json.dumps(metadata)}
            await call(client, "append_message", conversation_id=1, role="assistant", **in_text)
            more = [{"role": "tool", "content": "r", "tool_call_id": "a", "metadata": metadata}]
            await call(client, "append_messages", conversation_id=1, messages=json.dumps(more, indent=2))
            stored = (await call(client, "load_history", detail="full"))["messages"]
            assert [stored[0][name] for name in in_text] == [calls, parts, metadata]
            assert (stored[1]["tool_call_id"], stored[1]["metadata"]) == ("a", metadata)
            changed = await call(client, "update_conversation", conversation_id=1, metadata='{"nested": null}')
            assert changed["conversation"]["metadata"] == {}


async def test_text_that_looks_like_json_stays_text(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        for text in LOOKS_LIKE_JSON:
            made = (await call(alice, "create_conversation", title=text, key=text))["conversation"]
            assert (made["title"], made["key"]) == (text, text)
            assert (await call(bob, "create_conversation", key=text))["created"] is True
            found = await call(alice, "list_conversations", title_contains=text)
            assert [entry["id"] for entry in found["conversations"]] == [made["id"]]
            number, words = (
                made["number"],
                dict.fromkeys(("content", "name", "tool_call_id", "client_message_id"), text),
            )
            await call(alice, "append_message", conversation_id=number, role="tool", **words)
            again = [{"role": "tool", **words}, {"role": "user", "content": text}]
            both = await call(alice, "append_messages", conversation_id=number, messages=again)
            assert [message["deduplicated"] for message in both["messages"]] == [True, False]
            first = (await call(alice, "load_history", detail="full"))["messages"][0]
            assert {name: first[name] for name in words} == words
            changed = await call(alice, "update_conversation", conversation_id=number, title=f"{number} {text}")
            assert changed["conversation"]["title"] == f"{number} {text}"
            fork = await call(alice, "fork_conversation", conversation_id=number, title=text)
            assert fork["conversation"]["title"] == text
            await call(alice, "delete_conversation", conversation_id=fork["conversation"]["number"])
            await call(alice, "delete_conversation", conversation_id=number)


async def test_characters_that_hide_or_reorder_text_are_escaped_in_the_text_block_only(client_of: OpenClient) -> None:
    text = "".join(f"{hidden}x" for hidden in SHOWN_AS_ESCAPES) + SHOWN_AS_THEY_ARE
    async with client_of("alice") as alice, client_of("bob") as bob:
        for client in (alice, bob):
            await call(client, "create_conversation", title=text, metadata={text: text})
            await call(client, "append_message", conversation_id=1, role="user", content=text)
            for tool in ("load_history", "list_conversations"):
                result = await client.call_tool(tool, {})
                block = result.content[0]
                assert block.type == "text"
                assert json.loads(block.text) == result.structured_content
                assert not set(SHOWN_AS_ESCAPES) & set(block.text)
                assert SHOWN_AS_THEY_ARE in block.text


async def test_a_hidden_character_is_escaped_where_all_others_are_ascii(client_of: OpenClient) -> None:
    async with client_of("alice") as client:
        for hidden in SHOWN_AS_ESCAPES:
            result = await client.call_tool("create_conversation", {"title": f"a{hidden}b"})
            assert result.structured_content is not None
            assert result.structured_content["conversation"]["title"] == f"a{hidden}b"
            assert hidden not in getattr(result.content[0], "text", hidden)


async def test_the_text_block_is_the_structured_content_as_compact_json(client_of: OpenClient) -> None:
    async with with_messages(client_of, 2) as (alice, _):
        for tool in ("load_history", "list_conversations", "create_conversation"):
            result = await alice.call_tool(tool, {})
            compact = json.dumps(result.structured_content, separators=(",", ":"), ensure_ascii=False)
            assert [getattr(block, "text", None) for block in result.content] == [compact]
