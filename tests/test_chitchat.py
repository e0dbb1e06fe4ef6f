"""Real conversations go in and come out the same. The whole dataset is replayed by `benchmarks/replay_chitchat.py`."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.replay_chitchat import copies_in, load, replay
from chatledger.storage import ConversationStore
from tests.conftest import run_sql
from tests.patience import PATIENCE

SLICE = Path(__file__).parent / "data" / "chitchat_slice.json"


@pytest.fixture(scope="module")
def dataset() -> dict[str, Any]:
    """44 conversations of 59 people, under the MIT licence beside the file."""
    found: dict[str, Any] = json.loads(SLICE.read_text(encoding="utf-8"))
    return found


def test_the_slice_has_what_makes_it_worth_replaying(dataset: dict[str, Any]) -> None:
    said = [[message for turn in conversation["messages"] for message in turn] for conversation in dataset.values()]
    pairs = [pair for messages in said for pair in itertools.pairwise(messages)]
    assert (len(said), sum(map(len, said))) == (44, 1_432)
    assert sum(one["timestamp"] == other["timestamp"] for one, other in pairs) == 160
    assert sum(not message["text"] for messages in said for message in messages) == 10
    assert len(list(copies_in(dataset))) > len(said), "most have two senders"


async def test_every_conversation_reads_as_it_was_written(store: ConversationStore, dataset: dict[str, Any]) -> None:
    report = await replay(store, dataset)
    copies = list(copies_in(dataset))
    assert report.differences == []
    assert (report.copies, report.messages) == (len(copies), sum(len(copy.messages) for copy in copies))
    assert report.windows > report.copies, "some took more than one window"
    for user in {copy.user_id for copy in copies}:
        page = await store.list_conversations(user, limit=100)
        own = {copy.key: len(copy.messages) for copy in copies if copy.user_id == user}
        assert {entry.conversation.key: entry.conversation.message_count for entry in page.conversations} == own


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE chatledger.messages SET content = content || ' ' WHERE seq = 2",
        "UPDATE chatledger.messages SET role = 'system' WHERE seq = 2",
        "UPDATE chatledger.messages SET seq = CASE seq WHEN 1 THEN -2 ELSE -1 END WHERE seq < 3",
    ],
    ids=["a space", "a role", "the order"],
)
async def test_what_is_not_equal_is_noticed(
    store: ConversationStore, dataset: dict[str, Any], database_url: str, damage: str
) -> None:
    one = dict(list(dataset.items())[-1:])
    assert (await replay(store, one, tasks=2)).differences == []
    swap = "UPDATE chatledger.messages SET seq = -seq WHERE seq < 0"
    drop = "ALTER DOMAIN chatledger.seq DROP CONSTRAINT seq_positive"
    await asyncio.to_thread(run_sql, database_url, drop, damage, swap)
    for copy in copies_in(one):
        assert (await load(store, copy))[0] != copy.sha256


def test_the_program_says_equal(tmp_path: Path, database_url: str) -> None:
    few = dict(list(json.loads(SLICE.read_text(encoding="utf-8")).items())[:3])
    (tmp_path / "few.json").write_text(json.dumps(few))
    program = Path(__file__).parent.parent / "benchmarks" / "replay_chitchat.py"
    command = [sys.executable, str(program), str(tmp_path / "few.json"), "--database-url", database_url]
    first = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert first.stdout.startswith("3 conversations with ")
    assert first.stdout.endswith("\nequal\n")
