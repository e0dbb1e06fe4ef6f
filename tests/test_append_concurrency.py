"""Any number of writers in any number of processes: one order without a gap, each message once, nobody waits for ever."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from chatledger.storage import ConversationStore, NewMessage, StorageError
from chatledger.storage.errors import SequenceConflict
from chatledger.storage.records import Receipt
from tests.conftest import connect
from tests.writer_process import GATE

PROCESSES = 4
HELLO = NewMessage(role="user", content="hello")


async def in_processes(url: str, orders: list[dict[str, Any]]) -> list[Any]:
    """What writer processes answer to these orders, one process each, all begun at the same moment."""
    gate = await connect(url)
    try:
        await gate.execute("SELECT pg_advisory_lock($1)", GATE)
        answers = [asyncio.create_task(_one_process(json.dumps(order | {"url": url}))) for order in orders]
        await until_waiting(gate, len(orders), "advisory", answers)
    finally:
        await gate.close()
    return await asyncio.wait_for(asyncio.gather(*answers), 60)


async def _one_process(orders: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.writer_process",
        cwd=Path(__file__).parent.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        out, _ = await process.communicate(orders.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    return json.loads(out)


async def until_waiting(connection: Any, number: int, lock: str, tasks: list[asyncio.Task[Any]]) -> None:
    """Return when that many other connections to this database wait for a lock of this kind."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = $1"
    )
    async with asyncio.timeout(30):
        while await connection.fetchval(waiting, lock) < number:
            assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
            await asyncio.sleep(0.01)


async def test_64_writers_in_4_processes_make_one_order_without_a_gap(
    store: ConversationStore, database_url: str
) -> None:
    conversation, _ = await store.create_conversation("alice")
    order = {"work": "write", "conversation": str(conversation.id), "writers": 64 // PROCESSES, "rounds": 6}
    answers = await in_processes(database_url, [order | {"name": str(n)} for n in range(PROCESSES)])
    writers = [seqs for process in answers for seqs in process]
    assert len(writers) == 64
    for seqs in writers:
        assert len(seqs) == 8
        assert seqs == sorted(seqs), "what one writer sent later has a larger seq"
    assert sorted(seq for seqs in writers for seq in seqs) == list(range(1, 64 * 8 + 1))
    window = await store.load_history("alice", conversation.id, max_tokens=200_000)
    assert [message.seq for message in window.messages] == list(range(1, 64 * 8 + 1))
    assert window.conversation.message_count == 64 * 8
    times = [message.created_at for message in window.messages]
    assert times == sorted(times)
    assert window.conversation.updated_at == times[-1]
    for process, seqs_of in enumerate(answers):
        for writer, seqs in enumerate(seqs_of):
            said = [window.messages[seq - 1].content for seq in seqs]
            parts = ((round, part) for round in range(6) for part in ("ab" if round % 3 == 2 else "a"))
            assert said == [f"{process} {writer} {round} {part}" for round, part in parts]


async def test_one_id_sent_by_4_processes_at_once_is_one_message_with_one_receipt(
    store: ConversationStore, database_url: str
) -> None:
    conversation, _ = await store.create_conversation("alice")
    ids = [f"id {n}" for n in range(20)]
    order = {"work": "repeat", "conversation": str(conversation.id), "ids": ids}
    answers = await in_processes(database_url, [order] * PROCESSES)
    for name, *receipts in zip(ids, *answers, strict=True):
        assert len({(seq, id, time) for seq, id, time, _ in receipts}) == 1, name
        assert sorted(repeated for *_, repeated in receipts) == [False, True, True, True], name
    found = await store.get_chat_history("alice", conversation.id)
    assert [message.seq for message in found] == list(range(1, 21))
    assert sorted(message.client_message_id or "" for message in found) == sorted(ids)


async def test_of_those_who_expect_the_same_last_seq_exactly_one_wins(
    store: ConversationStore, database_url: str
) -> None:
    conversation, _ = await store.create_conversation("alice")
    order = {"work": "expect", "conversation": str(conversation.id), "expected_last_seq": 0}
    answers = await in_processes(database_url, [order | {"name": str(n)} for n in range(PROCESSES)])
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
        blocker = await connect(database_url)
        try:
            await blocker.execute("BEGIN; SELECT FROM chatledger.conversations FOR UPDATE")
            tasks = [asyncio.create_task(append()) for _ in range(3)]
            await until_waiting(blocker, 1, "transactionid", tasks)
            await until_waiting(blocker, 2, "tuple", tasks)
        finally:
            await blocker.close()
        outcomes = await asyncio.gather(*tasks)
        assert len({tuple((r.seq, r.id) for r in receipts) for receipts in outcomes}) == 1
        assert sum(not receipt.deduplicated for receipts in outcomes for receipt in receipts) == added


async def test_create_append_fork_and_delete_of_one_key_at_once_end_without_a_deadlock(
    store: ConversationStore, database_url: str
) -> None:
    other = ConversationStore.at(database_url)
    refusals: list[StorageError] = []

    async def task(number: int) -> None:
        chosen, chance = (store, other)[number % 2], random.Random(number)
        for _ in range(25):
            conversation = await chosen.get_or_create_conversation("alice", "the key")
            work: list[Callable[[], Awaitable[object]]] = [
                lambda: chosen.append_message("alice", conversation.id, HELLO),
                lambda: chosen.append_messages("alice", conversation.number, [HELLO] * 3),
                lambda: chosen.fork_conversation("alice", conversation.id),
                lambda: chosen.update_conversation("alice", conversation.id, title="x", metadata={"a": number}),
                lambda: chosen.delete_conversation("alice", conversation.id),
                lambda: chosen.create_conversation("alice"),
            ]
            try:
                await chance.choice(work)()
            except StorageError as refused:
                refusals.append(refused)

    await asyncio.wait_for(asyncio.gather(*map(task, range(16))), 60)
    assert {refused.code for refused in refusals} <= {"conversation_unavailable"}, "it was deleted in the meantime"
    await other.aclose()
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
