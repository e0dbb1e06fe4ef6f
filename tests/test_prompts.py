"""The prompts, in both protocol eras: what they say for us, what was stored as data, and what they are refused for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, TextContent

from chatledger.storage import Limits
from tests.conftest import OpenClient
from tests.hostile_texts import CANARY, HOSTILE, UNSEEN, ours
from tests.test_tool_errors import NO_IDS
from tests.test_tools import ABSENT, CALL, NOTICE, call, with_messages

ARGUMENTS = [
    {
        "name": "conversation_id",
        "title": "Conversation",
        "description": "The conversation's number (12) or its id.",
        "required": True,
    }
]
PROMPTS: list[dict[str, Any]] = [
    {
        "name": "resume_conversation",
        "title": "Resume a conversation",
        "description": "Go on with a conversation that was saved earlier: its latest messages, and where it stood.",
        "arguments": ARGUMENTS,
    },
    {
        "name": "summarize_conversation",
        "title": "Summarize a conversation",
        "description": "What a saved conversation was about, what was decided and what is still open.",
        "arguments": ARGUMENTS,
    },
]
NAMES = [prompt["name"] for prompt in PROMPTS]


async def prompted(client: Client, name: str, conversation_id: str) -> tuple[list[str], dict[str, Any]]:
    """The lines of a prompt that speak for us, and the record in its one fence."""
    found = await client.get_prompt(name, {"conversation_id": conversation_id})
    assert found.description == next(prompt["description"] for prompt in PROMPTS if prompt["name"] == name)
    (message,) = found.messages
    assert message.role == "user"
    assert isinstance(message.content, TextContent)
    text = message.content.text
    assert not UNSEEN.search(text)
    lines = text.split("\n")
    (record,) = [line for line in lines if line.startswith("{")]
    place = lines.index(record)
    fence = lines[place + 1]
    assert lines[place - 1] == f"{fence}json"
    assert re.fullmatch("`{3,}", fence)
    assert fence not in record
    assert ours(text) == [line for line in lines[: place - 1] + lines[place + 2 :] if line]
    return ours(text), json.loads(record)


async def no_prompt(client: Client, name: str, arguments: dict[str, str] | None, code: str) -> str:
    """The error of a prompt that is not given, as it travels; all of its form is as the contract has it."""
    with pytest.raises(MCPError) as raised:
        await client.get_prompt(name, arguments)
    error = raised.value.error
    assert (error.code, error.data["code"]) == (INVALID_PARAMS, code), arguments
    assert error.data["status"] == {"conversation_unavailable": 403, "invalid_argument": 422}[code]
    assert error.data["retryable"] is False
    assert error.message == f"{code}: {error.data['message']}"
    assert CANARY not in str(error)
    return error.model_dump_json()


async def test_the_prompts_are_as_agreed_whatever_the_toolset_and_the_user(client_of: OpenClient) -> None:
    for toolset in ("full", "core", "readonly"):
        for user in ("alice", "bob"):
            async with client_of(user, toolset=toolset) as client:
                listed = (await client.list_prompts()).prompts
                assert [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in listed] == PROMPTS


@pytest.mark.parametrize("name", NAMES)
async def test_a_prompt_holds_the_window_that_load_history_gives_as_data(client_of: OpenClient, name: str) -> None:
    async with with_messages(client_of, 0) as (alice, bob):
        said: list[dict[str, Any]] = [
            {"role": "user", "content": "look"},
            {"role": "assistant", "tool_calls": CALL},
            {"role": "tool", "content": "found", "tool_call_id": "call_1"},
        ]
        done = await call(alice, "append_messages", conversation_id=1, messages=said)
        window = await call(alice, "load_history", conversation_id=1)
        lines, record = await prompted(alice, name, "1")
        assert record == window
        assert "conversation 1," in lines[0]
        assert lines[1].startswith(f"The record holds messages 1 to 3 of 3, oldest first. {NOTICE} ")
        assert lines[2].startswith("The record ends here")
        assert len(lines) == 3
        for same in (done["conversation_id"], done["conversation_id"].upper()):
            assert await prompted(alice, name, same) == (lines, record)
        await call(bob, "create_conversation")
        lines, record = await prompted(bob, name, "1")
        assert lines[1].startswith(f"The conversation holds no messages yet. {NOTICE} ")
        assert record["messages"] == []


@pytest.mark.parametrize("name", NAMES)
async def test_a_long_conversation_is_bounded_and_the_prompt_says_how_to_read_the_rest(
    client_of: OpenClient, name: str
) -> None:
    async with with_messages(client_of, 0) as (alice, bob):
        await call(bob, "create_conversation")
        for _ in range(3):
            messages = [{"role": "user", "content": "word " * 200}] * 20
            await call(alice, "append_messages", conversation_id=1, messages=messages)
        lines, record = await prompted(alice, name, "1")
        first = record["messages"][0]["seq"]
        assert record["next_before_seq"] == first > 1
        assert record["estimated_tokens"] <= 8_000
        assert lines[1].startswith(
            f"The record holds messages {first} to 60 of 60, oldest first. Read earlier ones, where you need them, "
            f"with load_history, conversation_id 1 and before_seq {first}; "
        )
        assert "load_history" not in " ".join((await prompted(bob, name, "1"))[0])


@pytest.mark.parametrize("name", NAMES)
async def test_what_was_stored_speaks_nowhere_in_a_prompt(client_of: OpenClient, name: str) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        await call(bob, "create_conversation")
        plain = (await prompted(bob, name, "1"))[0]
        for number, text in enumerate(HOSTILE, 1):
            await call(alice, "create_conversation", title=text, key=text, metadata={text: text})
            lines, record = await prompted(alice, name, str(number))
            assert lines == [
                line.replace("conversation 1,", f"conversation {number},").replace(
                    "conversation_id 1.", f"conversation_id {number}."
                )
                for line in plain
            ]
            assert record["conversation"]["title"] == text
            calls = [{"id": text[:50], "function": {"name": text, "arguments": text}}]
            said: list[dict[str, Any]] = [
                {"role": "user", "content": text, "name": text},
                {"role": "assistant", "content": text, "tool_calls": calls},
                {"role": "tool", "content": text, "tool_call_id": text[:50]},
            ]
            await call(alice, "append_messages", conversation_id=number, messages=said)
            lines, record = await prompted(alice, name, str(number))
            assert CANARY not in "".join(lines)
            assert [message["content"] for message in record["messages"]] == [text] * 3


async def test_a_million_characters_stay_inside_their_fence(client_of: OpenClient) -> None:
    wide = Limits(max_content_chars=1_000_000)
    async with client_of("alice", limits=wide) as alice, client_of("bob", limits=wide) as bob:
        for client, text in ((alice, "`" * 1_000_000), (bob, ("\n```\n# x\u202e" * 120_000)[:1_000_000])):
            await call(client, "create_conversation")
            await call(client, "append_message", conversation_id=1, role="user", content=text)
            lines, record = await prompted(client, "summarize_conversation", "1")
            assert len(lines) == 3
            assert record["messages"][0]["content"] == text
            assert record["exceeds_max_tokens"] is True


@pytest.mark.parametrize("name", NAMES)
async def test_a_foreign_conversation_and_an_absent_one_are_answered_byte_for_byte_alike(
    client_of: OpenClient, name: str
) -> None:
    async with with_messages(client_of, 1) as (alice, bob):
        for _ in range(3):
            await call(bob, "create_conversation", title=CANARY)
        foreign = (await call(bob, "load_history"))["conversation"]
        gone = (await call(alice, "create_conversation"))["conversation"]
        await call(alice, "delete_conversation", conversation_id=gone["id"])
        refs = [ABSENT, foreign["id"], foreign["id"].upper(), gone["id"], str(gone["number"]), str(foreign["number"])]
        refs += ["99", str(2**63), "9" * 5000]
        answers = [await no_prompt(alice, name, {"conversation_id": ref}, "conversation_unavailable") for ref in refs]
        assert len(set(answers)) == 1
        assert (await prompted(bob, name, "3"))[1]["conversation"] == foreign


async def test_a_prompt_that_is_not_there_or_has_other_arguments_is_refused(client_of: OpenClient) -> None:
    async with with_messages(client_of, 1) as (alice, bob):
        for client in (alice, bob):
            for name in NAMES:
                for ref in (ref for ref in NO_IDS if isinstance(ref, str) and ref.isprintable()):
                    await no_prompt(client, name, {"conversation_id": ref}, "invalid_argument")
                for arguments in (None, {}, {"id": "1"}, {"conversation_id": "1", "user_id": CANARY}):
                    await no_prompt(client, name, arguments, "invalid_argument")
            for unknown in ("", CANARY, "load_history", "RESUME_CONVERSATION", "resume_conversation "):
                told = await no_prompt(client, unknown, {"conversation_id": "1"}, "invalid_argument")
                assert f"the prompts are {', '.join(NAMES)}" in told
