"""A process that appends: each line of its stdin is an order in JSON, each line of its stdout the answer.

For each it connects first and then waits at the gate, so that several processes begin at the same moment.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from uuid import UUID

from chatledger.storage import ConversationStore, NewMessage, StorageError
from tests.driver import connect

GATE = 7_001
"""An advisory lock, which a test holds alone until all writers wait for it."""


async def repeat(store: ConversationStore, conversation: UUID, order: dict[str, Any]) -> list[list[Any]]:
    """Each of `ids` by an append of its own, all at once: their receipts."""

    async def append(name: str) -> list[Any]:
        message = NewMessage(role="user", content=f"message {name}", client_message_id=name)
        receipt = await store.append_message("alice", conversation, message)
        return [receipt.seq, str(receipt.id), receipt.created_at.isoformat(), receipt.deduplicated]

    return await asyncio.gather(*map(append, order["ids"]))


async def write(store: ConversationStore, conversation: UUID, order: dict[str, Any]) -> list[list[int]]:
    """`writers` at once, each `rounds` appends in turn, every third a batch of two: the seqs that each of them got."""

    async def writer(number: int) -> list[int]:
        seqs: list[int] = []
        for turn in range(order["rounds"]):
            said = [NewMessage(role="user", content=f"{order['name']} {number} {turn} {part}") for part in "ab"]
            if turn % 3 == 2:
                seqs += [receipt.seq for receipt in await store.append_messages("alice", conversation, said)]
            else:
                seqs.append((await store.append_message("alice", conversation, said[0])).seq)
        return seqs

    return await asyncio.gather(*map(writer, range(order["writers"])))


async def expect(store: ConversationStore, conversation: UUID, order: dict[str, Any]) -> list[Any]:
    """One conditional append: its seq, or the code of what refused it."""
    message = NewMessage(role="user", content=order["name"])
    try:
        receipt = await store.append_message("alice", conversation, message, expected_last_seq=order["expected"])
    except StorageError as refused:
        return [refused.code]
    return [receipt.seq]


WORK = {"repeat": repeat, "write": write, "expect": expect}


async def obey(order: dict[str, Any]) -> list[Any]:
    conversation = UUID(order["conversation"])
    async with ConversationStore.at(order["url"]) as store:
        await store.load_history("alice", conversation, limit=1)
        gate = await connect(order["url"])
        try:
            await gate.execute(f"SELECT pg_advisory_lock_shared({GATE})")
        finally:
            await gate.close()
        return await WORK[order["work"]](store, conversation, order)


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asyncio.run(obey(json.loads(line)))) + "\n")
        sys.stdout.flush()
