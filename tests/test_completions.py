"""Completions, in both protocol eras: the numbers of the caller's own conversations, by number and by title."""

from __future__ import annotations

from typing import Any

import pytest
from mcp import Client, MCPError
from mcp.types import INVALID_PARAMS, PromptReference, ResourceTemplateReference

from chatledger.server.completions import seqs
from tests.conftest import OpenClient
from tests.hostile_texts import CANARY, HOSTILE
from tests.test_resources import TEMPLATES
from tests.test_tools import ABSENT, call, with_messages

TRANSCRIPT, MESSAGE = (ResourceTemplateReference(uri=template["uriTemplate"]) for template in TEMPLATES)
REFS = [
    PromptReference(name="resume_conversation"),
    PromptReference(name="summarize_conversation"),
    TRANSCRIPT,
    MESSAGE,
]
Offered = tuple[list[str], int | None, bool | None]


async def offered(client: Client, typed: str, ref: Any = TRANSCRIPT) -> Offered:
    """The values for a `conversation_id`, their total, and whether there are more."""
    found = (await client.complete(ref, {"name": "conversation_id", "value": typed})).completion
    return found.values, found.total, found.has_more


async def offered_seqs(client: Client, typed: str, **context: str) -> Offered:
    found = (await client.complete(MESSAGE, {"name": "seq", "value": typed}, context or None)).completion
    return found.values, found.total, found.has_more


async def test_the_callers_conversations_are_offered_by_number_and_by_title(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        for title in ("Trip to Rome", "Ärger", None, "trip 3", "100%", "a_b", "back\\slash", "x", "x", "Tax 1", "1st"):
            await call(alice, "create_conversation", **({} if title is None else {"title": title}))
        await call(bob, "create_conversation", title="Trip of Bob")
        await call(alice, "append_message", conversation_id=1, role="user", content="latest")
        for ref in REFS:
            for typed, numbers in {
                "": [1, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2],
                "trip": [1, 4],
                "RIP": [1, 4],
                "rome": [1],
                "ärg": [2],
                "1": [1, 11, 10, 5],
                "11": [11],
                "3": [4, 3],
                "%": [5],
                "_": [6],
                "\\": [7],
                "0": [5],
                "01": [],
                "12": [],
                "nothing": [],
            }.items():
                assert await offered(alice, typed, ref) == ([str(n) for n in numbers], len(numbers), False), typed
            assert await offered(bob, "tri", ref) == (["1"], 1, False)
            assert await offered(bob, "rome", ref) == ([], 0, False)


async def test_what_is_offered_is_taken_as_the_argument(client_of: OpenClient) -> None:
    async with with_messages(client_of, 3) as (alice, bob):
        await call(bob, "create_conversation", title="B")
        for client in (alice, bob):
            ((value,), _, _) = await offered(client, "")
            assert (await client.read_resource(f"conversation://{value}")).contents
            assert (await client.get_prompt("resume_conversation", {"conversation_id": value})).messages
            assert await call(client, "load_history", conversation_id=value)
        seq = (await offered_seqs(alice, "", conversation_id="1"))[0][0]
        assert (await alice.read_resource(f"conversation://1/messages/{seq}")).contents


async def test_an_archived_or_deleted_conversation_is_not_offered(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        for client in (alice, bob):
            for title in ("one", "two", "three"):
                await call(client, "create_conversation", title=title)
        await call(alice, "update_conversation", conversation_id=1, archived=True)
        await call(alice, "delete_conversation", conversation_id=2)
        assert await offered(alice, "") == (["3"], 1, False)
        assert await offered(alice, "one") == await offered(alice, "2") == ([], 0, False)
        assert await offered(bob, "") == (["3", "2", "1"], 3, False)


async def test_at_most_a_hundred_are_offered_and_more_are_told_of(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        for number in range(1, 102):
            await call(alice, "create_conversation", title=f"all {number}")
        hundred = [str(number) for number in range(101, 1, -1)]
        for typed in ("", "all"):
            assert await offered(alice, typed) == (hundred, None, True)
        assert await offered(alice, "10") == (["101", "100", "10"], 3, False)
        await call(alice, "delete_conversation", conversation_id=1)
        assert await offered(alice, "") == (hundred, 100, False)
        assert await offered(bob, "") == ([], 0, False)


async def test_whatever_is_typed_or_stored_no_title_is_ever_offered(client_of: OpenClient) -> None:
    async with client_of("alice") as alice, client_of("bob") as bob:
        for title in HOSTILE:
            await call(alice, "create_conversation", title=title)
        hostile = [*HOSTILE, CANARY, "x" * 200, "x" * 201, "x" * 100_000, "\x00", "1\x00", "'", "' OR '1'='1", "$1"]
        hostile += ["\uff11", "+1", "-1", " 1", "1 ", "1.0", "1e1", "null", ABSENT, "{}", "%%%", "\\"]
        for typed in hostile:
            values, total, more = await offered(alice, typed)
            assert [str(int(value)) for value in values] == values
            assert (total, more) == (len(values), False)
            assert await offered(bob, typed) == ([], 0, False)
        assert len((await offered(alice, CANARY))[0]) == len(HOSTILE)
        assert await offered(alice, HOSTILE[1]) == (["2"], 1, False)


async def test_the_seqs_of_the_conversation_that_was_chosen_are_offered(client_of: OpenClient) -> None:
    async with with_messages(client_of, 23) as (alice, bob):
        made = (await call(alice, "load_history"))["conversation"]
        for ref in ("1", made["id"]):
            assert await offered_seqs(alice, "2", conversation_id=ref) == (["23", "22", "21", "20", "2"], 5, False)
            everything = [str(seq) for seq in range(23, 0, -1)]
            assert await offered_seqs(alice, "", conversation_id=ref) == (everything, 23, False)
        await call(bob, "create_conversation")
        nothing: Offered = ([], 0, False)
        for ref in (made["id"], ABSENT, "2", "0", "x", "", f"../{CANARY}"):
            assert await offered_seqs(bob, "", conversation_id=ref) == nothing
        assert await offered_seqs(bob, "", conversation_id="1") == nothing
        assert await offered_seqs(alice, "") == nothing


@pytest.mark.parametrize("last", [0, 1, 9, 10, 99, 100, 101, 1_234, 50_000])
def test_seqs_are_those_that_begin_with_what_was_typed(last: int) -> None:
    for typed in (
        "",
        "0",
        "1",
        "2",
        "9",
        "10",
        "12",
        "99",
        "123",
        "1234",
        "5000",
        "99999",
        "01",
        "x",
        "1x",
        "-1",
        "１",
    ):
        expected = [str(seq) for seq in range(last, 0, -1) if str(seq).startswith(typed)]
        found, total = seqs(typed, last)
        assert ([str(seq) for seq in found], total) == (expected[:100], len(expected)), typed


async def test_what_has_no_such_argument_is_refused(client_of: OpenClient) -> None:
    async with with_messages(client_of, 1) as (alice, bob):
        unknown: list[tuple[Any, str]] = [
            (PromptReference(name=CANARY), "conversation_id"),
            (PromptReference(name="load_history"), "conversation_id"),
            (PromptReference(name="resume_conversation"), "seq"),
            (PromptReference(name="resume_conversation"), CANARY),
            (TRANSCRIPT, "seq"),
            (TRANSCRIPT, ""),
            (ResourceTemplateReference(uri="conversation://1"), "conversation_id"),
            (ResourceTemplateReference(uri=f"file:///{CANARY}"), "conversation_id"),
        ]
        for ref, argument in unknown:
            for client in (alice, bob):
                with pytest.raises(MCPError) as raised:
                    await client.complete(ref, {"name": argument, "value": ""})
                assert (raised.value.code, raised.value.data["code"]) == (INVALID_PARAMS, "invalid_argument")
                assert CANARY not in str(raised.value.error)
