"""Any number of writers in any number of processes: one order without a gap, each message once, no deadlock."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chatledger.storage import ConversationStore, NewMessage, StorageError
from chatledger.storage.errors import SequenceConflict
from chatledger.storage.query import OWNED_BY
from chatledger.storage.records import Conversation, Receipt
from tests.driver import connect
from tests.lock_waits import looking, until_waiting
from tests.patience import PATIENCE
from tests.writer_process import GATE

HELLO = NewMessage(role="user", content="hello")


class Writers:
    """Processes that append, waiting for orders."""

    def __init__(self, number: int) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.writer_process"],
                cwd=Path(__file__).parent.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(number)
        ]

    async def do(self, url: str, conversation: Conversation, **order: Any) -> list[Any]:
        """What each process answers to the order, all of them beginning at the same moment."""
        order |= {"url": url, "conversation": str(conversation.id)}
        gate = await connect(url)
        try:
            await gate.execute(f"SELECT pg_advisory_lock({GATE})")
            answers = [
                asyncio.create_task(asyncio.to_thread(self._ask, process, order | {"name": str(name)}))
                for name, process in enumerate(self.processes)
            ]
            await until_waiting(url, len(answers), answers)
        finally:
            await gate.close()
        return await asyncio.wait_for(asyncio.gather(*answers), PATIENCE)

    def _ask(self, process: subprocess.Popen[str], order: dict[str, Any]) -> Any:
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    started = Writers(4)
    yield started
    started.end()


@asynccontextmanager
async def held(url: str, table: str) -> AsyncIterator[None]:
    """Hold alice's row locks, so that what needs them gathers there, each statement with its view of the data taken."""
    blocker = await connect(url)
    try:
        await blocker.execute("BEGIN")
        await blocker.execute(f"SELECT FROM chatledger.{table} WHERE {OWNED_BY[table]} = 'alice' FOR NO KEY UPDATE")
        yield
    finally:
        await blocker.close()


async def deadlocks(*stores: ConversationStore, url: str) -> int:
    """How many there were; the stores are closed, for a server process tells what it counted when it ends."""
    await asyncio.gather(*(store.aclose() for store in stores))
    async with looking(url) as count:
        return await count("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")


async def test_64_writers_in_4_processes_make_one_order_without_a_gap(
    store: ConversationStore, database_url: str, writers: Writers
) -> None:
    conversation, _ = await store.create_conversation("alice")
    answers = await writers.do(database_url, conversation, work="write", writers=16, rounds=6)
    all_seqs = [seqs for process in answers for seqs in process]
    assert [len(seqs) for seqs in all_seqs] == [8] * 64
    assert all(seqs == sorted(seqs) for seqs in all_seqs), "what a writer sent later has a larger seq"
    assert sorted(itertools.chain(*all_seqs)) == list(range(1, 64 * 8 + 1))
    window = await store.load_history("alice", conversation.id, max_tokens=200_000)
    assert [message.seq for message in window.messages] == list(range(1, 64 * 8 + 1))
    assert window.conversation.message_count == 64 * 8
    times = [message.created_at for message in window.messages]
    assert times == sorted(times)
    assert window.conversation.updated_at == times[-1]
    for process, seqs_of in enumerate(answers):
        for writer, seqs in enumerate(seqs_of):
            said = [window.messages[seq - 1].content for seq in seqs]
            parts = ((turn, part) for turn in range(6) for part in ("ab" if turn % 3 == 2 else "a"))
            assert said == [f"{process} {writer} {turn} {part}" for turn, part in parts]


async def test_one_id_sent_by_4_processes_at_once_is_one_message_with_one_receipt(
    store: ConversationStore, database_url: str, writers: Writers
) -> None:
    conversation, _ = await store.create_conversation("alice")
    ids = [f"id {n}" for n in range(20)]
    async with held(database_url, "conversations"):
        work = asyncio.create_task(writers.do(database_url, conversation, work="repeat", ids=ids))
        await until_waiting(database_url, 4, [work])  # of each process the first; the others are gathered behind it
    answers = await work
    for name, *receipts in zip(ids, *answers, strict=True):
        assert len({tuple(receipt[:3]) for receipt in receipts}) == 1, name
        assert sorted(repeated for *_, repeated in receipts) == [False, True, True, True], name
    found = await store.get_chat_history("alice", conversation.id)
    assert [message.seq for message in found] == list(range(1, 21))
    assert sorted(message.client_message_id or "" for message in found) == sorted(ids)


async def test_of_those_who_expect_the_same_last_seq_exactly_one_wins(
    store: ConversationStore, database_url: str, writers: Writers
) -> None:
    conversation, _ = await store.create_conversation("alice")
    answers = await writers.do(database_url, conversation, work="expect", expected=0)
    assert sorted(str(answer) for [answer] in answers) == ["1"] + ["sequence_conflict"] * 3

    async def attempt(expected: int) -> Receipt | SequenceConflict:
        try:
            return await store.append_message("alice", conversation.id, HELLO, expected_last_seq=expected)
        except SequenceConflict as refused:
            return refused

    for expected in range(1, 11):
        outcomes = await asyncio.gather(*(attempt(expected) for _ in range(8)))
        assert [outcome.seq for outcome in outcomes if isinstance(outcome, Receipt)] == [expected + 1]
        assert {outcome.last_seq for outcome in outcomes if isinstance(outcome, SequenceConflict)} == {expected + 1}


async def test_a_repeat_that_overtakes_its_original_gets_its_receipt_even_with_a_condition(
    store: ConversationStore, database_url: str
) -> None:
    conversation, _ = await store.create_conversation("alice")
    keyed = [NewMessage(role="user", content=name, client_message_id=name) for name in "ab"]

    async def single() -> list[Receipt]:
        return [await store.append_message("alice", conversation.id, keyed[0], expected_last_seq=0)]

    async def batch() -> list[Receipt]:
        return await store.append_messages("alice", conversation.id, keyed, expected_last_seq=1)

    for append, added in ((single, 1), (batch, 1)):
        async with held(database_url, "conversations"):
            tasks = [asyncio.create_task(append()) for _ in range(3)]
            await until_waiting(database_url, 3, tasks)
        outcomes = await asyncio.gather(*tasks)
        assert len({tuple((r.seq, r.id) for r in receipts) for receipts in outcomes}) == 1
        assert sum(not receipt.deduplicated for receipts in outcomes for receipt in receipts) == added


async def test_create_and_delete_of_one_key_do_not_wait_for_each_other(
    store: ConversationStore, database_url: str
) -> None:
    await store.create_conversation("alice")
    add = "INSERT INTO chatledger.conversations (user_id, id, number, key) VALUES ('alice', gen_random_uuid(), 9, 'k')"
    async with held(database_url, "users"):
        create = asyncio.create_task(store.create_conversation("alice", key="k"))
        await until_waiting(database_url, 1, [create])
        another = await connect(database_url)
        await another.execute(add)  # after the create has looked for the key
        await another.close()
        delete = asyncio.create_task(store.delete_conversation("alice", 9))
        await until_waiting(database_url, 2, [create, delete])
    (conversation, _), deletion = await asyncio.gather(create, delete)
    assert deletion.messages_deleted == 0
    assert conversation.key == "k"
    assert await deadlocks(store, url=database_url) == 0


async def test_create_append_fork_and_delete_of_one_key_at_once_end_without_a_deadlock(
    store: ConversationStore, database_url: str
) -> None:
    other = ConversationStore.at(database_url)
    chances = [random.Random(seed) for seed in range(16)]
    refusals: list[StorageError] = []

    async def one(chosen: ConversationStore, chance: random.Random) -> None:
        conversation = await chosen.get_or_create_conversation("alice", "the key")
        work: list[Callable[[], Awaitable[object]]] = [
            lambda: chosen.append_message("alice", conversation.id, HELLO),
            lambda: chosen.append_messages("alice", conversation.number, [HELLO] * 3),
            lambda: chosen.fork_conversation("alice", conversation.id),
            lambda: chosen.update_conversation("alice", conversation.id, title="x", metadata={"a": 1}),
            lambda: chosen.create_conversation("alice"),
            lambda: chosen.delete_conversation("alice", conversation.id),
        ]
        try:
            await chance.choice(work)()
        except StorageError as refused:
            refusals.append(refused)

    async def task(number: int) -> None:
        for _ in range(25):
            await one((store, other)[number % 2], chances[number])

    await asyncio.wait_for(asyncio.gather(*map(task, range(16))), PATIENCE)
    assert {refused.code for refused in refusals} <= {"conversation_unavailable"}, "it was deleted in the meantime"
    assert await deadlocks(store, other, url=database_url) == 0, "some were broken up, and the calls repeated"
    connection = await connect(database_url)
    try:
        [(count, kept)] = await connection.fetch(
            "SELECT conversation_count, (SELECT count(*) FROM chatledger.conversations) FROM chatledger.users"
        )
        assert count == kept
        wrong = await connection.fetch(
            "SELECT FROM chatledger.conversations c WHERE last_seq <> (SELECT count(*) FROM chatledger.messages m "
            "WHERE m.user_id = c.user_id AND m.conversation_id = c.id)"
        )
        assert wrong == []
    finally:
        await connection.close()
