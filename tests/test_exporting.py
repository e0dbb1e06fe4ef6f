"""What comes out: everything as JSONL, so that an import of an export is the identity; Markdown for reading."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.errors import ConversationUnavailable
from chatledger.transfer.exporting import export_conversations
from chatledger.transfer.formats import native
from chatledger.transfer.importing import Importer
from chatledger.transfer.records import Origin, Record
from chatledger.transfer.report import ImportReport
from tests.conftest import database_at, run_sql


async def exported(store: ConversationStore, user_id: str, **how: Any) -> bytes:
    out = io.BytesIO()
    await export_conversations(store, user_id, out.write, **how)
    return out.getvalue()


def records(data: bytes) -> Iterator[Record]:
    for number, line in enumerate(data.splitlines(), 1):
        yield Record(f"line {number}", json.loads(line))


async def imported(store: ConversationStore, user_id: str, data: bytes) -> ImportReport:
    importer = Importer(store, user_id)
    outcomes = native.read(records(data), Origin("export.jsonl"))
    await importer.take(outcomes, file="export.jsonl", format=native.NAME)
    return importer.report


async def a_little_of_everything(store: ConversationStore, user_id: str) -> None:
    first, _ = await store.create_conversation(user_id, title="Ärger ` # \u202e", key="k", metadata={"a": [1, None]})
    await store.append_message(user_id, first.id, NewMessage(role="user", content=" \r\n``` hi\u2028 ", name="n"))
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    await store.append_messages(
        user_id,
        first.id,
        [
            NewMessage(role="assistant", tool_calls=[call], client_message_id="x"),
            NewMessage(role="tool", tool_call_id="c1", content="````\nresult", metadata={}),
            NewMessage(role="assistant", parts=[{"n": 6.02e23, "z": -0.5}], content="done"),
        ],
    )
    await store.fork_conversation(user_id, first.id, at_seq=1, title="another way")
    empty, _ = await store.create_conversation(user_id)
    await store.update_conversation(user_id, empty.id, metadata={"x": None}, archived=True)
    gone, _ = await store.create_conversation(user_id)
    await store.delete_conversation(user_id, gone.id)
    await store.create_conversation(user_id, title="the last")


async def test_an_import_of_an_export_is_the_identity_and_again_changes_nothing(store: ConversationStore) -> None:
    await a_little_of_everything(store, "alice")
    data = await exported(store, "alice")
    report = await imported(store, "bob", data)
    assert report.totals["created"] == 4
    assert await exported(store, "bob") == data
    for user_id in ("alice", "bob"):
        assert {each.status for each in (await imported(store, user_id, data)).conversations} == {"unchanged"}
        assert await exported(store, user_id) == data
    assert (await store.list_conversations("bob", include_archived=True)).conversations[0].conversation.number == 5


async def test_what_was_added_on_either_side_since_an_export_is_kept(store: ConversationStore) -> None:
    conversation, _ = await store.create_conversation("alice")
    await store.append_message("alice", 1, NewMessage(role="user", content="shared"))
    await imported(store, "bob", await exported(store, "alice"))
    await store.append_message("alice", 1, NewMessage(role="user", content="hers"))
    data = await exported(store, "alice")
    assert [each.status for each in (await imported(store, "bob", data)).conversations] == ["updated"]
    assert await exported(store, "bob") == data

    await store.append_message("bob", 1, NewMessage(role="user", content="his"))
    await store.append_message("alice", 1, NewMessage(role="user", content="hers again"))
    data = await exported(store, "alice")
    report = await imported(store, "bob", data)
    assert (report.conversations[0].status, report.conversations[0].forks) == ("updated", 1)
    fork = await store.load_history("bob", 2)
    assert [each.content for each in fork.messages] == ["shared", "hers", "hers again"]
    assert fork.conversation.forked_from is not None
    assert (fork.conversation.forked_from.conversation_id, fork.conversation.forked_from.seq) == (conversation.id, 2)
    assert [each.status for each in (await imported(store, "bob", data)).conversations] == ["unchanged"]


async def test_an_export_is_one_users_and_may_be_of_one_conversation(store: ConversationStore) -> None:
    await a_little_of_everything(store, "alice")
    theirs, _ = await store.create_conversation("bob", title="bob's")
    assert b"bob's" not in await exported(store, "alice")
    assert [record.value["conversation"]["title"] for record in records(await exported(store, "bob"))] == ["bob's"]
    lines = (await exported(store, "alice", conversation=2)).splitlines()
    assert [json.loads(line).get("content", "head") for line in lines] == ["head", " \r\n``` hi\u2028 "]
    with pytest.raises(ConversationUnavailable):
        await exported(store, "alice", conversation=theirs.id)


async def test_a_counted_export_ends_with_what_it_holds_and_its_digest(store: ConversationStore) -> None:
    await a_little_of_everything(store, "alice")
    plain, counted = await exported(store, "alice"), await exported(store, "alice", counted=True)
    assert counted.startswith(plain)
    assert json.loads(counted[len(plain) :]) == {
        "chatledger": 1,
        "end": {"conversations": 4, "messages": 5, "sha256": hashlib.sha256(plain).hexdigest()},
    }
    assert (await imported(store, "bob", counted)).totals["created"] == 4


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([0, 1, 2], "has 2 of 4 messages"),
        ([0, 1, 3, 2, 4], "has seq 3 where 2 was expected"),
        ([1, 2], "stands before the head"),
    ],
)
async def test_an_export_that_lost_lines_fails_and_changes_nothing(
    lines: list[int], reason: str, store: ConversationStore
) -> None:
    await a_little_of_everything(store, "alice")
    whole = (await exported(store, "alice", conversation=1)).splitlines(keepends=True)
    report = await imported(store, "bob", b"".join(whole[line] for line in lines))
    assert {each.status for each in report.conversations} == {"failed"}
    assert reason in str(report.conversations[0].reason)
    assert not report.ok
    assert not (await store.list_conversations("bob")).conversations


async def test_a_version_that_is_not_known_is_refused(store: ConversationStore) -> None:
    data = b'{"chatledger": 2, "conversation": {"id": "x"}}\n'
    report = await imported(store, "alice", data)
    assert [(each.status, each.reason) for each in report.conversations] == [
        ("failed", "of a version of the format that is not known: 1 is")
    ]


async def test_our_format_written_by_hand_needs_nothing_but_roles_and_texts(store: ConversationStore) -> None:
    data = b'{"chatledger": 1, "conversation": {"title": "T"}}\n{"role": "user", "content": "hi"}\n'
    assert [each.status for each in (await imported(store, "alice", data)).conversations] == ["created"]
    assert [each.status for each in (await imported(store, "alice", data)).conversations] == ["unchanged"]


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.builds(
    NewMessage,
    role=st.sampled_from(["user", "assistant", "system", "tool"]),
    content=TEXTS.filter(lambda text: not text.isspace()),
    tool_calls=st.none() | st.lists(JSON, max_size=2),
    tool_call_id=st.none() | TEXTS,
    name=st.none() | TEXTS,
    parts=st.none() | st.lists(JSON, max_size=2),
    metadata=st.none() | st.dictionaries(TEXTS, JSON, max_size=2),
)


@pytest.fixture(scope="module")
def shared_url(postgres_url: str, template: str) -> Iterator[str]:
    """One database for all examples, each with users of its own."""
    name = f"chatledger_exports_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield database_at(postgres_url, name)
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@given(
    conversations=st.lists(
        st.tuples(
            st.none() | TEXTS,
            st.none() | st.dictionaries(TEXTS, JSON, max_size=2),
            st.lists(MESSAGES, max_size=4),
            st.none() | st.integers(1, 4),
            st.booleans(),
        ),
        max_size=4,
    )
)
@settings(max_examples=40, deadline=None)
def test_any_conversations_come_back_equal(conversations: list[Any], shared_url: str) -> None:
    async def there_and_back() -> None:
        async with ConversationStore.at(shared_url) as store:
            alice, bob = str(uuid4()), str(uuid4())
            for title, metadata, messages, fork_at, archived in conversations:
                made, _ = await store.create_conversation(alice, title=title, metadata=metadata)
                if messages:
                    await store.append_messages(alice, made.id, messages)
                if fork_at is not None and fork_at <= len(messages):
                    await store.fork_conversation(alice, made.id, at_seq=fork_at)
                if archived:
                    await store.update_conversation(alice, made.id, archived=True)
            data = await exported(store, alice)
            report = await imported(store, bob, data)
            assert report.totals["failed"] == 0
            assert await exported(store, bob) == data

    asyncio.run(there_and_back())


async def test_markdown_is_for_reading_and_fences_hold_whatever_is_inside(store: ConversationStore) -> None:
    await a_little_of_everything(store, "alice")
    text = (await exported(store, "alice", format="markdown", conversation=1)).decode()
    head, _, body = text.partition("\n---\n\n")
    facts = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    assert json.loads(facts["title"]) == "Ärger ` # \u202e"
    assert json.loads(facts["messages"]) == 4
    assert datetime.fromisoformat(json.loads(facts["created_at"])) <= datetime.now(UTC) + timedelta(hours=1)
    assert body.startswith("# Ärger ` # \u202e\n\n## User (n) · ")
    assert "`````text\n````\nresult\n`````\n" in body
    assert '```json\n[\n  {\n    "id": "c1"' in body
    assert body.count("\n## ") == 4
