"""Many conversations at once: each is created, appended to and loaded by a task of its own, all begun together."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

from chatledger.storage import ConversationStore, NewMessage, StorageError


async def crowd(url: str, conversations: int, *, appends: int = 3, loads: int = 1) -> dict[str, Any]:
    """Every call's error and time; after it each conversation is compared with what was appended to it."""
    errors: Counter[str] = Counter()
    times: list[float] = []
    async with ConversationStore.at(url) as one, ConversationStore.at(url) as other:
        stores = (one, other)
        await asyncio.gather(*(store.ping() for store in stores))

        async def talk(number: int) -> None:
            store, user = stores[number % len(stores)], f"user {number}"
            try:
                conversation, _ = await _timed(store.create_conversation(user, title=user), times)
                for n in range(appends):
                    said = NewMessage(role="user", content=f"{number} {n}", client_message_id=str(n))
                    await _timed(store.append_message(user, conversation.id, said), times)
                for _ in range(loads):
                    window = await _timed(store.load_history(user, conversation.id), times)
                    assert [m.content for m in window.messages] == [f"{number} {n}" for n in range(appends)]
            except StorageError as error:
                errors[error.code] += 1

        began = time.monotonic()
        await asyncio.gather(*(talk(number) for number in range(conversations)))
        seconds = time.monotonic() - began
    times.sort()
    return {
        "conversations": conversations,
        "calls": len(times),
        "errors": dict(errors),
        "calls a second": len(times) / seconds,
        "p50": times[len(times) // 2],
        "p95": times[int(len(times) * 0.95)],
        "slowest": times[-1],
    }


async def _timed(work: Any, times: list[float]) -> Any:
    began = time.monotonic()
    answer = await work
    times.append(time.monotonic() - began)
    return answer
