"""Single faults, each injected `count` times by a seed. A function fails by an AssertionError, or returns figures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.engine import CALL_SECONDS, POOL_OVERFLOW, POOL_SIZE, Database
from chatledger.storage.errors import Unavailable
from chatledger.storage.source import ExternalDatabase
from tests.driver import connect
from tests.lock_waits import until_waiting
from tests.patience import PATIENCE
from tests.postgres_processes import postmaster_of
from tests.reliability.doors import StdioDoor, StoreDoor
from tests.reliability.history import Door, Receipt, Said, Unknown
from tests.reliability.quiet import until_quiet
from tests.wire_proxy import Moment, WireProxy

MOMENTS: list[Moment] = ["before", "after"]
POOL = POOL_SIZE + POOL_OVERFLOW
REPEATS = 40  # of one call until it is answered (chosen)
SLACK = 10.0  # seconds, for a busy machine: together with a test's short deadline less than the driver's own patience


def keyed(content: str) -> NewMessage:
    return NewMessage(role="user", content=content, client_message_id=content)


async def answered(door: Door, user: str, conversation: str, said: Said) -> Receipt:
    """Append by repeating it until there is an answer."""
    for _ in range(REPEATS):
        with contextlib.suppress(Unknown):
            return (await door.append(user, conversation, [said]))[0]
        await asyncio.sleep(0.02)
    raise AssertionError("an append was never answered")


# ---- the connection --------------------------------------------------------------------------------------------------


async def cuts(url: str, seed: int, count: int) -> dict[str, Any]:
    """The connection breaks before the statement arrives, or after COMMIT and before the reply, up to 4 times."""
    chance, unknown = random.Random(seed), 0
    async with WireProxy(url) as proxy, ConversationStore.at(proxy.url) as store:
        conversation, _ = await store.create_conversation("alice")
        for number in range(count):
            proxy.cut(*chance.choices(MOMENTS, k=chance.randint(1, 4)))
            receipt = None
            while receipt is None:
                assert unknown < REPEATS * count
                try:
                    receipt = await store.append_message("alice", conversation.id, keyed(str(number)))
                except Unavailable:
                    unknown += 1
            assert receipt.seq == number + 1
            proxy.cut()
        window = await store.load_history("alice", conversation.id, max_tokens=200_000)
        assert [message.content for message in window.messages] == [str(number) for number in range(count)]
    await until_quiet(url, 0)
    return {"appends": count, "told unknown": unknown}


async def cold_starts(url: str, seed: int, count: int, *, longest: float) -> dict[str, Any]:
    """The database says for a while that it is starting (57P03), or refuses connections: calls wait, none is lost."""
    chance, waited = random.Random(seed), []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = int(taken.getsockname()[1])
    proxy = WireProxy(url, port=port)
    async with ConversationStore.at(proxy.url) as store:
        for number in range(count):
            asleep = _starting_up(port) if number % 2 else contextlib.nullcontext()
            began = time.monotonic()
            async with asleep:
                create = asyncio.create_task(store.create_conversation("alice", key="cold"))
                look = asyncio.create_task(store.list_conversations("alice"))
                done, _ = await asyncio.wait({create, look}, timeout=chance.uniform(0.2, longest))
                assert not done, "it was answered by nobody"
            async with proxy:
                (conversation, _), _ = await asyncio.gather(create, look)
                waited.append(time.monotonic() - began)
                # Without an id, so that it is in the store twice if it was sent twice.
                await store.append_message("alice", conversation.id, NewMessage(role="user", content=str(number)))
        async with proxy:
            conversation, _ = await store.create_conversation("alice", key="cold")
            window = await store.load_history("alice", conversation.id)
            assert [message.content for message in window.messages] == [str(number) for number in range(count)]
    await until_quiet(url, 0)
    return {"starts": count, "longest wait": max(waited)}


@contextlib.asynccontextmanager
async def _starting_up(port: int) -> AsyncIterator[None]:
    """Something that tells everybody, as Postgres does, that it is starting up."""
    fields = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4)
        writer.write(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", port):
        yield


# ---- the database ----------------------------------------------------------------------------------------------------


async def stopped(root: Path, seed: int, count: int, *, deadline: float, longest: float | None) -> dict[str, Any]:
    """Every process of the embedded Postgres is stopped (SIGSTOP) for up to `longest` seconds, and goes on.

    None is until every call has ended. `deadline` is that of a call, in seconds; each must have ended soon after it,
    whatever happens.
    """
    chance, slowest, recovery = random.Random(seed), 0.0, []
    async with ConversationStore.embedded(root) as store:
        conversation, _ = await store.create_conversation("alice", key="stopped")
        first = conversation.message_count
        url = await store.database.source.url()
        for number in range(count):
            await asyncio.gather(*(store.load_history("alice", conversation.id) for _ in range(POOL)))
            watch = await connect(url)
            pids = [row["pid"] for row in await watch.fetch("SELECT pid FROM pg_stat_activity")]
            pids = [postmaster_of(root), *(pid for pid in pids if pid != watch.get_server_pid())]
            await watch.close()
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            try:
                calls = [asyncio.create_task(_ended(store, conversation.id, f"{number} {n}")) for n in range(3 * POOL)]
                await asyncio.wait(calls, timeout=PATIENCE if longest is None else chance.uniform(0.5, longest))
            finally:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
            began = time.monotonic()
            await _until_answered(store, conversation.id, f"{number} after")
            recovery.append(time.monotonic() - began)
            slowest = max(slowest, *await asyncio.gather(*calls))
            assert slowest < deadline + SLACK, f"a call took {slowest:.1f} s"
            for n in range(3 * POOL):
                await _until_answered(store, conversation.id, f"{number} {n}")
        texts = [message.content for message in await store.get_chat_history("alice", conversation.id)][first:]
        assert sorted(texts) == sorted({*texts})
        assert len(texts) == count * (3 * POOL + 1)
        await until_quiet(url, POOL)
    return {"stops": count, "slowest call": slowest, "slowest recovery": max(recovery)}


async def _ended(store: ConversationStore, conversation: Any, text: str) -> float:
    """Seconds until a call ended, by an answer or by an `unavailable`."""
    began = time.monotonic()
    with contextlib.suppress(Unavailable):
        await store.append_message("alice", conversation, keyed(text))
    return time.monotonic() - began


async def _until_answered(store: ConversationStore, conversation: Any, text: str) -> None:
    for _ in range(REPEATS):
        with contextlib.suppress(Unavailable):
            await store.append_message("alice", conversation, keyed(text))
            return
        await asyncio.sleep(0.05)
    raise AssertionError("an append was never answered")


async def exhausted(url: str, *, callers: int = 200) -> dict[str, Any]:
    """A pool of four, all of them stuck behind a lock: the other callers are told soon, and served when it is gone."""
    async with ConversationStore.at(url) as store:
        store.database = Database(ExternalDatabase(url), pool_size=2, pool_overflow=2)
        stuck = [(await store.create_conversation("alice", title="stuck"))[0] for _ in range(2)]
        free, _ = await store.create_conversation("alice", title="free")
        blocker = await connect(url)
        try:
            await blocker.execute(
                "BEGIN; SELECT FROM chatledger.conversations WHERE user_id = 'alice' AND title = 'stuck' "
                "FOR NO KEY UPDATE"
            )
            held = [
                asyncio.create_task(store.append_message("alice", each.id, keyed(f"held {n}")))
                for n in range(2)  # one conversation alone never has all connections
                for each in stuck
            ]
            await until_waiting(url, 4)
            times = await asyncio.gather(*(_ended(store, free.id, f"first {n}") for n in range(callers)))
            assert not any(task.done() for task in held)
        finally:
            await blocker.close()
        await asyncio.gather(*held)
        assert (await store.load_history("alice", free.id)).messages == [], "a caller that was told no was served"
        began = time.monotonic()
        again = sorted(await asyncio.gather(*(_ended(store, free.id, f"second {n}") for n in range(callers))))
        window = await store.load_history("alice", free.id, max_tokens=200_000)
        assert len(window.messages) == callers
        await until_quiet(url, 4)
    await until_quiet(url, 0)
    assert max(times) < CALL_SECONDS / 2, f"a caller was told after {max(times):.1f} s"
    return {
        "callers": callers,
        "told after at most": max(times),
        "p95 afterwards": again[int(len(again) * 0.95)],
        "all served in": time.monotonic() - began,
    }


# Distributed Postgres adds no interval to a column itself.
_MOVES = {
    """
    SELECT last_seq AS seq, updated_at AS moment FROM chatledger.conversations WHERE user_id = 'alice' AND id = $1
    """: """
    UPDATE chatledger.conversations SET updated_at = ($3::timestamptz[])[1]
     WHERE user_id = 'alice' AND id = $1 AND last_seq = ANY($2::integer[])""",
    """
    SELECT seq, created_at AS moment FROM chatledger.messages WHERE user_id = 'alice' AND conversation_id = $1
    """: """
    UPDATE chatledger.messages m SET created_at = t.moment
      FROM unnest($2::integer[], $3::timestamptz[]) AS t (seq, moment)
     WHERE m.user_id = 'alice' AND m.conversation_id = $1 AND m.seq = t.seq""",
}


async def clock_jumps(url: str, seed: int, count: int) -> dict[str, Any]:
    """The clock is set an hour or a day ahead or back: what is stored is moved instead, which comes to the same."""
    chance, jumps = (
        random.Random(seed),
        [timedelta(hours=1), timedelta(days=1), -timedelta(hours=1), -timedelta(days=1)],
    )
    async with ConversationStore.at(url) as store:
        conversation, _ = await store.create_conversation("alice")
        watch = await connect(url)
        try:
            for number in range(count):
                await store.append_message("alice", conversation.id, keyed(str(number)))
                jump = chance.choice(jumps)
                async with watch.transaction():
                    for look, move in _MOVES.items():
                        found = await watch.fetch(look, conversation.id)
                        moved = [row["moment"] + jump for row in found]
                        await watch.execute(move, conversation.id, [row["seq"] for row in found], moved)
                window = await store.load_history("alice", conversation.id, max_tokens=200_000)
                assert [message.seq for message in window.messages] == list(range(1, number + 2))
                assert [message.content for message in window.messages] == [str(n) for n in range(number + 1)]
                times = [message.created_at for message in window.messages]
                assert times == sorted(times), "time went back inside a conversation"
        finally:
            await watch.close()
    return {"jumps": count}


# ---- the callers -----------------------------------------------------------------------------------------------------


async def callers_gone(door: Door, user: str, url: str, seed: int, count: int, *, at_once: int = 8) -> dict[str, Any]:
    """Callers give up in the middle of their calls. What they appended is then repeated, and is there once."""
    chance = random.Random(seed)
    conversation = (await door.create(user, f"gone {seed}")).conversation
    gone = 0
    for start in range(0, count, at_once):
        said = [Said(f"{seed} {number}", f"{number}") for number in range(start, min(start + at_once, count))]
        calls = [asyncio.create_task(_append_or_load(door, user, conversation, one)) for one in said]
        for call in calls:
            await asyncio.sleep(chance.uniform(0, 0.004))
            call.cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        gone += sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        await asyncio.gather(*(answered(door, user, conversation, one) for one in said))
    messages = await door.load(user, conversation)
    assert [message.seq for message in messages] == list(range(1, count + 1))
    assert {message.content for message in messages} == {f"{seed} {number}" for number in range(count)}
    await until_quiet(url, POOL)
    assert gone > count / 4, "too few of them gave up in time"
    return {"calls": count, "given up": gone}


async def _append_or_load(door: Door, user: str, conversation: str, said: Said) -> None:
    await door.append(user, conversation, [said])
    await door.load(user, conversation, 1)


async def client_leaves(url: str, seed: int, count: int) -> dict[str, Any]:
    """A client on stdio ends its input right after its request: the server ends by itself, and the message is once."""
    for number in range(count):
        door = StdioDoor(f"leaver {seed}", DATABASE_URL=url)
        try:
            conversation = (await door.create(door.user, "k")).conversation
            said = Said(f"{seed} {number}", f"{number}")
            call = asyncio.create_task(door.append(door.user, conversation, [said]))
            await asyncio.sleep(0)
            assert await door.leave() == 0
            with contextlib.suppress(Unknown):
                await call
        finally:
            await door.aclose()
        async with ConversationStore.at(url) as store:
            again = StoreDoor(store)
            await answered(again, door.user, conversation, said)
            assert [m.content for m in await again.load(door.user, conversation)] == [
                f"{seed} {n}" for n in range(number + 1)
            ]
    await until_quiet(url, 0)
    return {"clients": count}


async def cancel_storm(url: str, seed: int, count: int, *, at_once: int = 40) -> dict[str, Any]:
    """Half of all calls are cancelled at any of their steps: no answer reaches another call, no connection is lost."""
    chance, cancelled = random.Random(seed), 0
    async with ConversationStore.at(url) as store:
        users = (f"alice {seed}", f"bob {seed}")
        own = {user: (await store.create_conversation(user, key="storm"))[0].id for user in users}

        def said(number: int) -> NewMessage:
            return keyed(f"{users[number % 2]} {number}")

        async def call(number: int) -> None:
            user = users[number % 2]
            if number % 5 == 0:
                await store.append_message(user, own[user], said(number))
            window = await store.load_history(user, own[user], limit=20)
            assert all(m.content.startswith(user) for m in window.messages), "an answer that was meant for another"

        for start in range(0, count, at_once):
            tasks = [asyncio.create_task(call(number)) for number in range(start, start + at_once)]
            for task in chance.sample(tasks, at_once // 2):
                for _ in range(chance.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
                cancelled += outcome is not None
        await until_quiet(url, POOL)
        for number in range(0, count, 5):
            await store.append_message(users[number % 2], own[users[number % 2]], said(number))
        for place, user in enumerate(users):
            found = [message.content for message in await StoreDoor(store).load(user, str(own[user]))]
            assert sorted(found) == sorted(f"{user} {n}" for n in range(0, count, 5) if n % 2 == place)
        assert store.database.connections()[0] == 0
    await until_quiet(url, 0)
    assert cancelled > count / 10, "too few were cancelled in time"
    return {"calls": count, "cancelled": cancelled}


async def same_key(doors: Sequence[Door], user: str, seed: int, count: int, *, at_once: int = 10) -> dict[str, Any]:
    """One client_message_id is sent through several processes at the same moment: one message, one receipt."""
    conversation = (await doors[0].create(user, f"same {seed}")).conversation
    for start in range(0, count, at_once):
        said = [Said(f"{seed} {number}", str(number)) for number in range(start, min(start + at_once, count))]
        answers = await asyncio.gather(
            *(asyncio.gather(*(answered(door, user, conversation, one) for door in doors)) for one in said)
        )
        for receipts in answers:
            assert len({receipt[:3] for receipt in receipts}) == 1, receipts
            assert sum(not receipt.deduplicated for receipt in receipts) == 1, receipts
    assert len(await doors[0].load(user, conversation)) == count
    return {"keys": count, "processes": len(doors)}
