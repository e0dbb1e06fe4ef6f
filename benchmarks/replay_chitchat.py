"""Replay the chitchat dataset through the store, read all of it back, and say whether it is equal.

uv run python benchmarks/replay_chitchat.py dataset.json [--database-url URL] [--tasks N]

The dataset (MIT licence, github.com/BYU-PCCL/chitchat-dataset) is people's conversations: 7,168 with 258,145 messages.
Here each sender is a user, and has a copy of each conversation that they wrote in: own messages with role `user`, those
of the other with role `assistant`. So every copy is the whole history as that sender saw it, and every message is
stored once for each sender of its conversation. 33 messages have no text; they are stored as an empty text part.

What is read back, in windows from the end, is compared by SHA-256 over (role, content) in order. Without a URL it runs
on an embedded Postgres in a temporary directory; a database at a URL must be migrated and without these users' data.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatledger.storage import ConversationStore, NewMessage, schema
from chatledger.storage.embedded import temporary
from chatledger.storage.limits import APPEND_MESSAGES

WINDOW = 50  # messages: half of the conversations then take more than one window


@dataclass(frozen=True)
class Copy:
    """A conversation as one of its senders saw it."""

    user_id: str
    key: str
    messages: list[NewMessage]

    @property
    def sha256(self) -> str:
        return sha256((message.role, message.content) for message in self.messages)


@dataclass
class Report:
    """What a replay stored, how long it took, and what was not the same when it was read back."""

    copies: int = 0
    messages: int = 0
    windows: int = 0
    seconds_to_append: float = 0.0
    seconds_to_load: float = 0.0
    differences: list[str] = field(default_factory=list)


def copies_in(dataset: dict[str, Any]) -> Iterator[Copy]:
    """A copy for each sender of each conversation."""
    for key, conversation in dataset.items():
        said = [message for turn in conversation["messages"] for message in turn]
        for sender in dict.fromkeys(message["sender"] for message in said):
            yield Copy(sender, key, [_message(message, sender) for message in said])


def _message(message: dict[str, str], sender: str) -> NewMessage:
    text = message["text"]
    return NewMessage(
        role="user" if message["sender"] == sender else "assistant",
        content=text,
        parts=None if text and not text.isspace() else [{"type": "text", "text": text}],
    )


def sha256(messages: Iterable[tuple[str, str]]) -> str:
    """Over role and content of each message in order; the lengths keep them apart."""
    digest = hashlib.sha256()
    for text in (text for message in messages for text in message):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(4) + encoded)
    return digest.hexdigest()


async def append(store: ConversationStore, copy: Copy) -> None:
    """Store a copy, in as few calls as there can be."""
    conversation = await store.get_or_create_conversation(copy.user_id, copy.key)
    for start in range(0, len(copy.messages), APPEND_MESSAGES):
        batch = copy.messages[start : start + APPEND_MESSAGES]
        await store.append_messages(copy.user_id, conversation.id, batch, expected_last_seq=start)


async def load(store: ConversationStore, copy: Copy) -> tuple[str, int]:
    """What a whole copy reads like, walked from its end, and in how many windows."""
    conversation = await store.get_or_create_conversation(copy.user_id, copy.key)
    found: list[tuple[str, str]] = []
    before_seq, windows = None, 0
    while True:
        window = await store.load_history(copy.user_id, conversation.id, limit=WINDOW, before_seq=before_seq)
        found[:0] = [(message.role, message.content) for message in window.messages]
        before_seq, windows = window.omitted_before + 1, windows + 1
        if not window.omitted_before or not window.messages:
            return sha256(found), windows


async def replay(store: ConversationStore, dataset: dict[str, Any], *, tasks: int = 8) -> Report:
    """Append everything, then load everything, with so many calls at once."""
    copies, report = list(copies_in(dataset)), Report()
    began = time.perf_counter()

    async def append_some(remaining: Iterator[Copy]) -> None:
        for copy in remaining:
            await append(store, copy)
            report.copies += 1
            report.messages += len(copy.messages)

    async def load_some(remaining: Iterator[Copy]) -> None:
        for copy in remaining:
            found, windows = await load(store, copy)
            report.windows += windows
            if found != copy.sha256:
                report.differences.append(f"conversation {copy.key} of user {copy.user_id}")

    shared = iter(copies)
    await asyncio.gather(*(append_some(shared) for _ in range(tasks)))
    report.seconds_to_append = time.perf_counter() - began
    shared = iter(copies)
    await asyncio.gather(*(load_some(shared) for _ in range(tasks)))
    report.seconds_to_load = time.perf_counter() - began - report.seconds_to_append
    return report


async def _main(url: str, dataset: dict[str, Any], tasks: int) -> Report:
    async with ConversationStore.at(url) as store:
        return await replay(store, dataset, tasks=tasks)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dataset", type=Path, help="dataset.json of the chitchat dataset")
    parser.add_argument("--database-url", help="a migrated database; without it a temporary one")
    parser.add_argument("--tasks", type=int, default=8, help="calls at once (default 8)")
    given = parser.parse_args()
    dataset = json.loads(given.dataset.read_text(encoding="utf-8"))
    said = sum(len(turn) for conversation in dataset.values() for turn in conversation["messages"])
    print(f"{len(dataset):,} conversations with {said:,} messages")
    with nullcontext(given.database_url) if given.database_url else temporary() as url:
        if not given.database_url:
            schema.migrate(url)
        report = asyncio.run(_main(url, dataset, given.tasks))
    for done, seconds in (("appended", report.seconds_to_append), ("loaded", report.seconds_to_load)):
        print(f"{report.messages:,} messages {done} in {seconds:.1f} s: {report.messages / seconds:,.0f} a second")
    print(
        f"{report.copies:,} conversations, one for each sender; {report.windows:,} windows of at most {WINDOW} messages"
    )
    print("equal" if not report.differences else f"{len(report.differences):,} differ:")
    for difference in report.differences:
        print(f"  {difference}")
    return 1 if report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
