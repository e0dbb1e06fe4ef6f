"""What models are told about the tools, held still: one snapshot a tool, and one digest over the whole list.

A change of a name, a description or a schema changes what agents do. Make it on purpose, then write the snapshots anew:

    uv run python -m tests.test_tool_list

It prints the digest that belongs into SHA256 below.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
from mcp import Client

from chatledger.server.app import make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore
from tests.conftest import ERAS

SHA256 = "a9eebb605b4604b0f839839e7e30407c8af764581ebd13e8bdf5fa364d988de1"

SNAPSHOTS = Path(__file__).parent / "snapshots"
FIELDS = ("name", "title", "description", "inputSchema", "outputSchema", "annotations", "_meta")
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"  # a list of tools needs no database
NAMES = ["create_conversation", "append_message", "append_messages", "load_history", "list_conversations"]
NAMES += ["search_messages", "update_conversation", "fork_conversation", "delete_conversation"]
LIMIT = 14_000  # bytes of tools/list, of which every conversation of every client pays a part
DESCRIPTION_LIMIT = 700  # characters


async def listed(era: str = "auto", user_id: str = "local") -> dict[str, Any]:
    """The result of tools/list, as it travels."""
    async with (
        ConversationStore.at(NOWHERE) as store,
        Client(make_server(store, local_user(user_id)), mode=era) as client,
    ):
        return (await client.list_tools()).model_dump(mode="json", by_alias=True, exclude_none=True)


def snapshot(tool: dict[str, Any]) -> str:
    """What one tool's file holds: what a client sees of it, in one order of fields."""
    assert set(tool) <= set(FIELDS), "a field that no snapshot holds"
    fields = {name: ordered(tool[name]) for name in FIELDS if name in tool}
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def ordered(part: Any, *, named: bool = False) -> Any:
    """The keywords of a schema in one order for both eras; what they name keeps its own, which models see."""
    if isinstance(part, list):
        return [ordered(item) for item in part]
    if not isinstance(part, dict):
        return part
    keys = part if named else sorted(part)
    return {key: ordered(part[key], named=not named and key in ("properties", "$defs")) for key in keys}


def digest(tools: list[dict[str, Any]]) -> str:
    return hashlib.sha256("".join(map(snapshot, tools)).encode()).hexdigest()


async def test_every_tool_is_as_its_snapshot_says_byte_for_byte(era: str) -> None:
    tools = {f"{tool['name']}.json": snapshot(tool) for tool in (await listed(era))["tools"]}
    assert {path.name: path.read_text(encoding="utf-8") for path in SNAPSHOTS.iterdir()} == tools, __doc__


async def test_the_whole_list_has_the_digest_that_was_agreed_on(era: str) -> None:
    tools = (await listed(era))["tools"]
    assert [tool["name"] for tool in tools] == NAMES
    assert digest(tools) == SHA256, __doc__


async def test_the_list_is_the_same_for_every_caller_and_in_both_eras() -> None:
    seen = [(await listed(era, user))["tools"] for era in ERAS for user in ("alice", "bob")]
    assert [tools for tools in seen if tools != seen[0]] == []


async def test_the_list_stays_small(era: str) -> None:
    found = await listed(era)
    assert len(json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode()) <= LIMIT
    too_long = {tool["name"]: len(tool["description"]) for tool in found["tools"]}
    assert {name: length for name, length in too_long.items() if length > DESCRIPTION_LIMIT} == {}


async def test_every_tool_has_a_title_and_all_four_annotations() -> None:
    reads, destroys = {"load_history", "list_conversations", "search_messages"}, {"delete_conversation"}
    for tool in (await listed())["tools"]:
        name, hints = tool["name"], tool["annotations"]
        assert tool["title"] == hints["title"] != ""
        assert hints["readOnlyHint"] is (name in reads)
        assert hints["destructiveHint"] is (name in destroys)
        assert hints["openWorldHint"] is False
        assert hints["idempotentHint"] is (name in reads | destroys | {"update_conversation"})


async def test_every_schema_is_valid_closed_and_without_a_caller() -> None:
    for tool in (await listed())["tools"]:
        for side in ("inputSchema", "outputSchema"):
            jsonschema.Draft202012Validator.check_schema(tool[side])
            assert tool[side]["type"] == "object"
        assert tool["inputSchema"]["additionalProperties"] is False
        result = jsonschema.Draft202012Validator(tool["outputSchema"])
        assert result.is_valid({"error": {"code": "internal"}}), "clients on the TypeScript SDK check errors too"
        assert not result.is_valid({})
        assert not result.is_valid({"error": "text"})
        assert "user_id" not in json.dumps(tool["inputSchema"])
        for name, argument in tool["inputSchema"]["properties"].items():
            told = {"type", "anyOf", "enum", "$ref"} & set(argument)
            assert told, f"{tool['name']} says nothing about the type of {name}"


def write() -> None:
    """Replace the snapshots by what the tools are now."""
    tools = asyncio.run(listed())["tools"]
    SNAPSHOTS.mkdir(exist_ok=True)
    for path in SNAPSHOTS.iterdir():
        path.unlink()
    for tool in tools:
        (SNAPSHOTS / f"{tool['name']}.json").write_text(snapshot(tool), encoding="utf-8")
    sys.stdout.write(f"SHA256 = {json.dumps(digest(tools))}\n")


if __name__ == "__main__":
    write()
