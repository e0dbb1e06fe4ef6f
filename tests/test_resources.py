"""Conversations as resources, in both protocol eras: what is announced, the templates and the list."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, ErrorData, TextResourceContents

from tests.conftest import OpenClient
from tests.hostile_texts import CANARY, HOSTILE, UNSEEN
from tests.test_tools import call, with_messages

TEMPLATES: list[dict[str, Any]] = [
    {
        "name": "conversation",
        "title": "Conversation",
        "uriTemplate": "conversation://{conversation_id}",
        "description": (
            "The latest messages of one of your conversations, as Markdown: those that fit 8,000 tokens. It says how "
            "to read earlier ones. conversation_id is the conversation's number (12) or its id."
        ),
        "mimeType": "text/markdown",
    },
    {
        "name": "message",
        "title": "Message of a conversation",
        "uriTemplate": "conversation://{conversation_id}/messages/{seq}",
        "description": "One message, whole and exact, as JSON. seq is its place in the conversation: 1, 2, 3 …",
        "mimeType": "application/json",
    },
]


async def read(client: Client, uri: str) -> TextResourceContents:
    """What a URI gives: one text, under the URI that was sent."""
    (content,) = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    assert content.uri == uri
    return content


async def no_resource(client: Client, uri: str, code: str) -> dict[str, Any]:
    """The error of a URI that gives nothing; all of its form is as the contract has it."""
    with pytest.raises(MCPError) as raised:
        await client.read_resource(uri)
    error: ErrorData = raised.value.error
    assert error.code == INVALID_PARAMS, uri
    assert error.data["uri"] == uri
    assert error.data["code"] == code, uri
    assert error.data["status"] == {"conversation_unavailable": 403, "invalid_argument": 422}[code]
    assert error.data["retryable"] is False
    assert error.message == f"{code}: {error.data['message']}"
    return error.model_dump()


async def test_the_templates_are_as_agreed_whatever_the_toolset_and_the_user(client_of: OpenClient) -> None:
    for toolset in ("full", "core", "readonly"):
        for user in ("alice", "bob"):
            async with client_of(user, toolset=toolset) as client:
                found = await client.list_resource_templates()
                listed = [
                    template.model_dump(mode="json", by_alias=True, exclude_none=True)
                    for template in found.resource_templates
                ]
                assert listed == TEMPLATES
                assert (found.next_cursor, found.cache_scope) == (None, "private")


async def test_the_list_holds_the_callers_twenty_latest_that_are_not_archived(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        made = [(await call(alice, "create_conversation", title=f"Trip {n}"))["conversation"] for n in range(23)]
        theirs = (await call(bob, "create_conversation", title="Bob's"))["conversation"]
        await call(alice, "update_conversation", conversation_id=23, archived=True)
        first = (await call(alice, "append_message", conversation_id=2, role="user", content="later"))["created_at"]
        found = await alice.list_resources()
        assert (found.next_cursor, found.cache_scope) == (None, "private")
        expected = [made[1], *reversed(made[3:22])]
        assert [resource.uri for resource in found.resources] == [f"conversation://{each['id']}" for each in expected]
        assert found.resources[0].model_dump(mode="json", by_alias=True, exclude_none=True) == {
            "uri": f"conversation://{made[1]['id']}",
            "name": "conversation 2",
            "title": "Trip 1",
            "description": "Messages: 1",
            "mimeType": "text/markdown",
            "annotations": {"lastModified": first},
        }
        assert [resource.uri for resource in (await bob.list_resources()).resources] == [
            f"conversation://{theirs['id']}"
        ]
        for resource in found.resources:
            assert str(resource.title) in (await read(alice, resource.uri)).text
            await no_resource(bob, resource.uri, "conversation_unavailable")


async def test_a_user_without_conversations_has_an_empty_list(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        assert (await alice.list_resources()).resources == (await bob.list_resources()).resources == []


async def test_a_stored_title_is_in_the_list_as_a_title_only_and_can_be_seen_whole(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        for title in HOSTILE:
            await call(alice, "create_conversation", title=title)
        await call(alice, "create_conversation")
        await call(alice, "create_conversation", title=" \n ")
        resources = (await alice.list_resources()).resources[::-1]
        for number, resource in enumerate(resources, 1):
            assert resource.name == f"conversation {number}"
            assert resource.description == "Messages: 0"
            assert not UNSEEN.search(resource.title or "")
            assert "\n" not in (resource.title or "")
            fields = resource.model_dump(exclude={"title"}, mode="json")
            assert CANARY not in json.dumps(fields)
        assert [resource.title for resource in resources[-2:]] == [None, None]
        assert resources[0].title == HOSTILE[0]
        assert resources[7].title == f"\\u001b[2J\\u001b]0;{CANARY}\\u0007\\u009b31m"
        assert (await bob.list_resources()).resources == []


async def test_no_list_has_a_second_page(client_of: OpenClient) -> None:
    async with with_messages(client_of, 1) as (alice, bob):
        for _ in range(21):
            await call(alice, "create_conversation")
        cursor = (await call(alice, "list_conversations", limit=1))["next_cursor"]
        for client in (alice, bob):
            for sent in (cursor, "", "x" * 10_000, CANARY):
                for ask in (
                    client.list_tools,
                    client.list_resources,
                    client.list_resource_templates,
                    client.list_prompts,
                ):
                    with pytest.raises(MCPError) as raised:
                        await ask(cursor=sent)
                    assert (raised.value.code, raised.value.data["code"]) == (INVALID_PARAMS, "invalid_cursor")
                    assert CANARY not in str(raised.value.error)


async def test_what_the_server_can_do_is_announced_and_nothing_else(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        for client in (alice, bob):
            told = client.server_capabilities
            assert told.completions is not None
            assert told.prompts is not None
            assert told.resources is not None
            assert not told.resources.subscribe
            assert not told.resources.list_changed


async def test_every_uri_in_the_list_names_a_conversation_by_its_id(client_of: OpenClient) -> None:
    async with with_messages(client_of, 1) as (alice, bob):
        await call(bob, "create_conversation")
        for client in (alice, bob):
            (resource,) = (await client.list_resources()).resources
            assert UUID(resource.uri.removeprefix("conversation://")).version == 7
