"""Bad input: each kind in each argument of each tool is refused by its code, repeated nowhere, and does nothing."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from mcp import Client

from chatledger.server.tools import TOOLSETS
from chatledger.storage import Limits
from tests.conftest import OpenClient
from tests.test_tool_arguments import NEEDED, taking
from tests.test_tools import ABSENT, call, with_messages

STATUS = {
    "conversation_unavailable": 403,
    "invalid_argument": 422,
    "content_empty": 422,
    "content_too_long": 422,
    "too_large": 422,
    "invalid_cursor": 422,
    "sequence_conflict": 409,
    "idempotency_conflict": 409,
    "quota_exceeded": 429,
}
CANARY = "Wb7canaryWb7"
NO_INTEGERS: list[Any] = [-1, 2**63, 10**30, 1.5, 7.0, True, "7", CANARY, [7], {"n": 7}]
NO_TEXTS: list[Any] = ["", f"a\x00{CANARY}", f"{CANARY}\ud800", 5, True, [CANARY], {"a": CANARY}]
NO_BOOLEANS: list[Any] = ["true", 1, 0, "", CANARY, [True]]
NO_TIMES = ["yesterday", "-infinity", "294277-01-01T00:00:00Z", "2026-01-01T00:00:61Z", "2026-01-31T12:00:00", CANARY]
NO_TIMES += ["2026-01-31", "2026-02-30T00:00:00Z", "0001-01-01T00:00:00+14:00", "", "20260131", "now()"]
NO_IDS: list[Any] = ["", f"{{{ABSENT}}}", f"urn:uuid:{ABSENT}", ABSENT.replace("-", ""), f" {ABSENT}", f"{ABSENT}\n"]
NO_IDS += [f"'{ABSENT}'", "../1", "\uff11\uff12", "012", "+1", "-1", "0", "1_0", "1.0", 0, -1, True, 1.5, 1.0, [1]]
NO_IDS += [{"id": 1}, "null", "true", "[1]", '"1"', f"1\x00{CANARY}", f"{CANARY}\udfff", "' OR '1'='1", CANARY]


def nested(levels: int) -> list[Any]:
    inner: list[Any] = [CANARY]
    for _ in range(levels - 1):
        inner = [inner]
    return inner


def in_json(value: Any) -> list[Any]:
    """A value in an array, a deep one, and, beside it, an object: what is wrong with JSON wherever it stands."""
    return [value, {"a": [value]}]


NO_JSON: list[Any] = [f"\x00{CANARY}", f"\ud800{CANARY}", {f"\x00{CANARY}": 1}, 2**53 + 1, -(2**53) - 1, 10**30]
ARRAYS: dict[str, list[Any]] = {
    "invalid_argument": [CANARY, "{}", {}, 5, True, "[NaN]", "[1e131071]", *(in_json(value) for value in NO_JSON)],
    "too_large": [[CANARY * 25_000], [nested(32)], [{f"{CANARY}{n}": n for n in range(1001)}]],
}
OBJECTS: dict[str, list[Any]] = {
    "invalid_argument": [CANARY, "[]", [], 5, True, '{"n": Infinity}', *({"a": in_json(value)} for value in NO_JSON)],
    "too_large": [{"a": CANARY * 1400}, {"a": nested(32)}, {f"k{n}": CANARY * (n == 0) for n in range(1001)}],
}
GOOD = {"role": "user", "content": "good"}


def texts(most: int) -> dict[str, list[Any]]:
    return {"invalid_argument": [*NO_TEXTS, CANARY.ljust(most + 1, "x")]}


BAD: dict[str, dict[str, list[Any]]] = {
    "conversation_id": {
        "invalid_argument": NO_IDS,
        "conversation_unavailable": [ABSENT, 2**31, 2**63, 10**30, str(2**63), str(10**30), "9" * 5000],
    },
    "title": texts(200),
    "title_contains": texts(200),
    "key": texts(128),
    "client_message_id": texts(128),
    "tool_call_id": texts(256),
    "name": texts(128),
    "metadata": OBJECTS,
    "tool_calls": ARRAYS,
    "parts": ARRAYS,
    "role": {"invalid_argument": ["root", "User", " user", *NO_TEXTS]},
    "content": {
        "invalid_argument": [bad for bad in NO_TEXTS if bad != ""],
        "content_empty": ["", "".join(filter(str.isspace, map(chr, range(sys.maxunicode))))],
        "content_too_long": [CANARY.ljust(10_001, "x"), "e\u0301" * 5_000 + "x"],
    },
    "messages": {
        "invalid_argument": [
            [],
            [GOOD] * 101,
            CANARY,
            "{}",
            {},
            5,
            [CANARY],
            [None],
            [{}],
            [[GOOD]],
            [{**GOOD, "x": 1}],
        ]
    },
    "expected_last_seq": {"invalid_argument": NO_INTEGERS, "sequence_conflict": [0, 1, 3, 2**31, 2**63 - 1]},
    "before_seq": {"invalid_argument": NO_INTEGERS},
    "after_seq": {"invalid_argument": NO_INTEGERS},
    "at_seq": {"invalid_argument": [0, 3, 2**31, 2**63 - 1, *NO_INTEGERS]},
    "limit": {"invalid_argument": [0, 1001, 2**31, *NO_INTEGERS]},
    "max_tokens": {"invalid_argument": [0, 200_001, 2**31, *NO_INTEGERS]},
    "detail": {"invalid_argument": ["Full", "", 5, True, CANARY, ["full"]]},
    "include_archived": {"invalid_argument": NO_BOOLEANS},
    "archived": {"invalid_argument": NO_BOOLEANS},
    "cursor": {
        "invalid_cursor": ["", CANARY, "x" * 10_000, "é", f"\x00{CANARY}", "A" * 55, "null"],
        "invalid_argument": [5, True, [CANARY]],
    },
    "query": {"invalid_argument": [*NO_TEXTS, CANARY.ljust(513, "x"), " ".join(map(str, range(33)))]},
    "created_after": {"invalid_argument": [*NO_TIMES, 5, True, [CANARY]]},
    "created_before": {"invalid_argument": [*NO_TIMES, 5, True, [CANARY]]},
    "updated_after": {"invalid_argument": [*NO_TIMES, 5, True, [CANARY]]},
    "updated_before": {"invalid_argument": [*NO_TIMES, 5, True, [CANARY]]},
}


async def error_of(client: Client, tool: str, arguments: dict[str, Any], code: str) -> dict[str, Any]:
    """The error of a call that fails with this code; all of its form is as the contract has it."""
    result = await client.call_tool(tool, arguments)
    sent = f"{tool} {str(arguments)[:200]!a}"
    assert result.is_error, sent
    assert result.structured_content is not None
    assert set(result.structured_content) == {"error"}, sent
    error: dict[str, Any] = result.structured_content["error"]
    assert error["code"] == code, f"{sent}: {error}"
    assert error["status"] == STATUS[code], sent
    assert error["retryable"] is False, sent
    assert [getattr(block, "text", None) for block in result.content] == [f"{code}: {error['message']}"], sent
    assert CANARY not in str(error), sent
    return error


async def everything(client: Client) -> list[Any]:
    """All that a user has, as the tools show it."""
    page = await call(client, "list_conversations", include_archived=True, limit=100)
    ids = [conversation["id"] for conversation in page["conversations"]]
    return [page, *[await call(client, "load_history", conversation_id=known, detail="full") for known in ids]]


@pytest.mark.parametrize("tool", TOOLSETS["full"])
async def test_a_bad_value_is_refused_by_its_code_and_leaves_no_trace(
    client_of: OpenClient, tool: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with with_messages(client_of, 2) as (alice, bob):
        await call(bob, "create_conversation", title="Bob's")
        before = await everything(alice), await everything(bob)
        (listed,) = [listed for listed in (await alice.list_tools()).tools if listed.name == tool]
        properties = listed.input_schema["properties"]
        base = NEEDED.get(tool, {}) | ({"conversation_id": 1} if "conversation_id" in properties else {})
        for argument in properties:
            for code, values in BAD[argument].items():
                for value in values:
                    await error_of(alice, tool, base | {argument: value}, code)
        for code, values in BAD["conversation_id"].items() if "conversation_id" in properties else ():
            for value in values:
                await error_of(bob, tool, base | {"conversation_id": value}, code)
        assert CANARY not in caplog.text
        assert (await everything(alice), await everything(bob)) == before


async def test_a_bad_field_of_one_message_refuses_the_whole_batch_and_is_named_by_its_place(
    client_of: OpenClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with with_messages(client_of, 2) as (alice, bob):
        await call(bob, "create_conversation")
        before = await everything(alice), await everything(bob)
        schema = next(t.input_schema for t in (await alice.list_tools()).tools if t.name == "append_messages")
        fields = set(schema["$defs"]["MessageIn"]["properties"])
        assert fields == set(BAD) & {"role", "content", "tool_calls", "parts", "metadata", "client_message_id"} | {
            "tool_call_id",
            "name",
        }
        for client in (alice, bob):
            for field in sorted(fields):
                for code, values in BAD[field].items():
                    for value in values:
                        if isinstance(value, str) and field in ("tool_calls", "parts", "metadata"):
                            continue  # inside a message, JSON in a string is a string
                        messages = [GOOD, GOOD | {field: value}]
                        sent = {"conversation_id": 1, "messages": messages}
                        error = await error_of(client, "append_messages", sent, code)
                        assert f"messages[1].{field}" in error["message"]
        assert CANARY not in caplog.text
        assert (await everything(alice), await everything(bob)) == before


async def test_the_sentence_tells_the_limit_and_what_was_measured(client_of: OpenClient) -> None:
    async with with_messages(client_of, 2) as (alice, _):
        for tool, argument, value, code, told in [
            ("append_message", "content", "x" * 10_001, "content_too_long", ("10,001", "10,000")),
            ("append_message", "client_message_id", "x" * 130, "invalid_argument", ("130", "128")),
            ("append_message", "metadata", {"a": "x" * 17_000}, "too_large", ("17,008", "16,384")),
            ("append_message", "parts", ["x" * 300_000], "too_large", ("300,004", "262,144")),
            ("append_message", "tool_calls", [nested(32)], "too_large", ("32",)),
            ("append_message", "expected_last_seq", 7, "sequence_conflict", ("2", "load_history")),
            ("append_messages", "messages", [GOOD] * 101, "invalid_argument", ("101", "100")),
            ("create_conversation", "title", "x" * 201, "invalid_argument", ("201", "200")),
            ("load_history", "limit", 1001, "invalid_argument", ("limit", "1,000")),
            ("load_history", "max_tokens", 200_001, "invalid_argument", ("max_tokens", "200,000")),
            ("list_conversations", "limit", 101, "invalid_argument", ("limit", "100")),
            ("fork_conversation", "at_seq", 3, "invalid_argument", ("at_seq", "2")),
            ("load_history", "detail", "all", "invalid_argument", ("detail", "concise", "full")),
            ("append_message", "role", "root", "invalid_argument", ("role", "assistant", "system", "tool", "user")),
            ("delete_conversation", "conversation_id", ABSENT, "conversation_unavailable", ("list_conversations",)),
        ]:
            base = {"conversation_id": 1} if tool not in ("create_conversation", "list_conversations") else {}
            error = await error_of(alice, tool, base | NEEDED.get(tool, {}) | {argument: value}, code)
            assert [fact for fact in told if fact not in error["message"]] == [], error["message"]


async def test_what_an_installation_narrows_is_told_with_its_figure(client_of: OpenClient) -> None:
    narrow = Limits(max_content_chars=5, allowed_roles=("user",), max_conversations_per_user=1)
    async with client_of("alice", limits=narrow) as alice, client_of("bob", limits=narrow) as bob:
        for client in (alice, bob):
            assert [(await call(client, "create_conversation", key="k"))["created"] for _ in range(2)] == [True, False]
            for tool, arguments in {"create_conversation": {}, "fork_conversation": {"conversation_id": 1}}.items():
                assert (await error_of(client, tool, arguments, "quota_exceeded"))["quota"] == 1
            said = {"conversation_id": 1, "role": "user", "content": "12345", "client_message_id": "c"}
            await call(client, "append_message", **said)
            await error_of(client, "append_message", said | {"content": "other"}, "idempotency_conflict")
            error = await error_of(client, "append_message", said | {"content": "123456"}, "content_too_long")
            assert (error["limit"], error["length"]) == (5, 6)
            error = await error_of(client, "append_message", said | {"role": "system"}, "invalid_argument")
            assert error["message"] == "role must be one of user on this server"


async def test_an_argument_that_no_tool_has_is_refused_and_those_it_has_are_named(client_of: OpenClient) -> None:
    async with with_messages(client_of, 1) as (alice, bob):
        await call(bob, "create_conversation")
        before = await everything(alice), await everything(bob)
        for tool in (await alice.list_tools()).tools:
            assert tool.input_schema["additionalProperties"] is False
            known = list(tool.input_schema["properties"])
            assert not {"user_id", "user", "owner"} & set(known)
            base = {"conversation_id": 1} if "conversation_id" in known else {}
            for unknown, value in {"user_id": "bob", "sql": CANARY, "deep": nested(150), f"{CANARY} \n": 1}.items():
                arguments = base | NEEDED.get(tool.name, {}) | {unknown: value}
                error = await error_of(alice, tool.name, arguments, "invalid_argument")
                assert error["message"].endswith(f"the arguments are {', '.join(known)}")
        sent = {"conversation_id": 1, "messages": [GOOD | {"user_id": "bob"}]}
        error = await error_of(alice, "append_messages", sent, "invalid_argument")
        assert error["message"].startswith(
            "unknown field messages[0].user_id; the fields of a message are role, content"
        )
        assert (await everything(alice), await everything(bob)) == before


async def test_a_tool_that_is_not_there_is_refused_and_those_there_are_are_named(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        names = ", ".join(tool.name for tool in (await bob.list_tools()).tools)
        for tool in ("search", CANARY, "", "create_conversation ", "CREATE_CONVERSATION"):
            error = await error_of(alice, tool, {"title": CANARY}, "invalid_argument")
            assert error["message"] == f"there is no such tool; the tools are {names}"
        assert await everything(alice) == [{"conversations": []}]


async def test_a_foreign_conversation_and_an_absent_one_are_answered_byte_for_byte_alike(client_of: OpenClient) -> None:
    async with with_messages(client_of, 2) as (alice, bob):
        for _ in range(3):
            await call(bob, "create_conversation", title="Bob's")
        foreign = (await call(bob, "load_history"))["conversation"]
        gone = (await call(alice, "create_conversation"))["conversation"]
        await call(alice, "delete_conversation", conversation_id=gone["id"])
        before = await everything(alice), await everything(bob)
        tools = await taking(alice, "conversation_id")
        assert set(tools) >= {"append_message", "append_messages", "load_history", "delete_conversation"}
        refs = (ABSENT, foreign["id"], foreign["id"].upper(), gone["id"], gone["number"], foreign["number"], "3", 99)
        extra: list[dict[str, Any]] = [{}, {"expected_last_seq": 0}, {"at_seq": 1}, {"client_message_id": "c"}]
        for tool in tools:
            known = (await alice.list_tools()).tools
            takes = next(listed.input_schema["properties"] for listed in known if listed.name == tool)
            for more in extra if set().union(*extra) & set(takes) else extra[:1]:
                if set(more) <= set(takes):
                    needed = NEEDED.get(tool, {}) | more
                    answers = [await alice.call_tool(tool, {"conversation_id": ref} | needed) for ref in refs]
                    assert len({answer.model_dump_json() for answer in answers}) == 1, tool
                    await error_of(alice, tool, {"conversation_id": ABSENT} | needed, "conversation_unavailable")
        assert (await everything(alice), await everything(bob)) == before


async def test_a_cursor_that_was_altered_or_made_for_another_list_is_refused(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        for client in (alice, bob):
            for title in ("a1", "a2", "a3"):
                await call(client, "create_conversation", title=title)
        cursor = (await call(alice, "list_conversations", limit=1))["next_cursor"]
        flipped = [cursor[:at] + ("A" if cursor[at] != "A" else "B") + cursor[at + 1 :] for at in range(len(cursor))]
        for broken in (*flipped, cursor[:-1], cursor[1:], f"{cursor}A", f"{cursor}=", f" {cursor}", json.dumps(cursor)):
            await error_of(alice, "list_conversations", {"cursor": broken}, "invalid_cursor")
        for other in ({"title_contains": "a"}, {"include_archived": True}, {"updated_after": "2020-01-01T00:00:00Z"}):
            await error_of(alice, "list_conversations", {"cursor": cursor} | other, "invalid_cursor")
        await error_of(bob, "list_conversations", {"cursor": cursor}, "invalid_cursor")
        assert len((await call(alice, "list_conversations", cursor=cursor))["conversations"]) == 2
