"""A process that appends: reads its orders as JSON from stdin, writes what it got as JSON to stdout.

It connects first and then waits for the advisory lock that the test holds, so that several of them begin together.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from uuid import UUID

from chatledger.storage import ConversationStore, NewMessage, StorageError
from tests.conftest import connect

GATE = 7_001
"""The advisory lock: the test holds it exclusively until all writers wait for it."""


async def repeat(store: ConversationStore, orders: dict[str, Any]) -> list[Any]:
    """Each of `ids` by an append of its own, all at once: receipts."""
    conversation = UUID(orders["conversation"])

    async def append(name: str) -> list[Any]:
        message = NewMessage(role="user", content=f"message {name}", client_message_id=name)
        receipt = await store.append_message("alice", conversation, message)
        return [receipt.seq, str(receipt.id), receipt.created_at.isoformat(), receipt.deduplicated]

    return await asyncio.gather(*map(append, orders["ids"]))


async def write(store: ConversationStore, orders: dict[str, Any]) -> list[Any]:
    """`writers` at once, each `rounds` appends in turn, every third a batch of two: the seqs of each writer in order."""
    conversation = UUID(orders["conversation"])

    async def writer(number: int) -> list[int]:
        seqs: list[int] = []
        for round in range(orders["rounds"]):
            said = [NewMessage(role="user", content=f"{orders['name']} {number} {round} {part}") for part in "ab"]
            if round % 3 == 2:
                seqs += [receipt.seq for receipt in await store.append_messages("alice", conversation, said)]
            else:
                seqs.append((await store.append_message("alice", conversation, said[0])).seq)
        return seqs

    return await asyncio.gather(*map(writer, range(orders["writers"])))


async def expect(store: ConversationStore, orders: dict[str, Any]) -> list[Any]:
    """One conditional append: its seq, or the code of what refused it."""
    try:
        message = NewMessage(role="user", content=orders["name"])
        expected = orders["expected_last_seq"]
        conversation = UUID(orders["conversation"])
        return [(await store.append_message("alice", conversation, message, expected_last_seq=expected)).seq]
    except StorageError as refused:
        return [refused.code]


WORK = {"repeat": repeat, "write": write, "expect": expect}


async def main(orders: dict[str, Any]) -> list[Any]:
    async with ConversationStore.at(orders["url"]) as store:
        await store.load_history("alice", UUID(orders["conversation"]), limit=1)
        gate = await connect(orders["url"])
        try:
            await gate.execute("SELECT pg_advisory_lock_shared($1)", GATE)
        finally:
            await gate.close()
        return await WORK[orders["work"]](store, orders)


if __name__ == "__main__":
    json.dump(asyncio.run(main(json.load(sys.stdin))), sys.stdout)
