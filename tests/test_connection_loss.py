"""A connection may break at any moment: nothing is stored twice, nothing acknowledged is lost, the pool stays whole."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import pytest

from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.database_url import COMMAND_TIMEOUT
from chatledger.storage.errors import ConversationUnavailable, StorageError, Unavailable
from tests.conftest import run_sql
from tests.driver import connect
from tests.lock_waits import until_waiting
from tests.patience import PATIENCE
from tests.wire_proxy import Moment, WireProxy

HELLO = NewMessage(role="user", content="hello")
KEYED = replace(HELLO, client_message_id="1")
MOMENTS: list[Moment] = ["before", "after"]


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[WireProxy]:
    async with WireProxy(database_url) as opened:
        yield opened


@pytest.fixture
async def store(proxy: WireProxy, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ConversationStore]:
    """Connected through the proxy, with a conversation of alice's and one of bob's."""
    monkeypatch.setattr("chatledger.storage.engine.PAUSES", (0.01, 0.02))
    async with ConversationStore.at(proxy.url) as opened:
        for user in ("alice", "bob"):
            await opened.create_conversation(user, title="weather")
        yield opened


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.001)


async def turns(number: int) -> None:
    """Let all other tasks go on, so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def contents(store: ConversationStore, user: str = "alice", number: int = 1) -> list[str]:
    return [message.content for message in await store.get_chat_history(user, number)]


@pytest.mark.parametrize("moments", [["before"], ["after"], ["before", "after"], ["after", "after"]], ids=str)
async def test_an_append_with_an_id_is_settled_within_the_call(
    store: ConversationStore, proxy: WireProxy, moments: list[Moment]
) -> None:
    proxy.cut(*moments)
    receipt = await store.append_message("alice", 1, KEYED)
    assert proxy.cuts_left == 0
    assert receipt.seq == 1
    batch = [replace(KEYED, client_message_id=str(n)) for n in (1, 2, 3)]
    proxy.cut(*moments)
    receipts = await store.append_messages("alice", 1, batch)
    assert [receipt.seq for receipt in receipts] == [1, 2, 3]
    found = await store.get_chat_history("alice", 1)
    assert [(message.seq, message.id) for message in found] == [(receipt.seq, receipt.id) for receipt in receipts]
    assert (await contents(store, "bob"), store.database.connections()[0]) == ([], 0)


async def test_an_append_that_is_cut_off_while_it_waits_is_stored_once(
    store: ConversationStore, proxy: WireProxy, database_url: str
) -> None:
    blocker = await connect(database_url)
    await blocker.execute("BEGIN; SELECT FROM chatledger.conversations WHERE user_id = 'alice' FOR UPDATE")
    task = asyncio.create_task(store.append_message("alice", 1, KEYED, expected_last_seq=0))
    await until_waiting(database_url, 1, [task])
    proxy.cut_all()
    await until_waiting(database_url, 2, [task])
    await blocker.close()
    receipt = await task
    assert [(receipt.seq, receipt.id)] == [(m.seq, m.id) for m in await store.get_chat_history("alice", 1)]


async def test_an_append_that_cannot_be_settled_is_settled_by_repeating_it(
    store: ConversationStore, proxy: WireProxy
) -> None:
    proxy.cut("after", "before", "before")
    with pytest.raises(Unavailable, match="outcome is unknown"):
        await store.append_message("alice", 1, KEYED)
    receipt = await store.append_message("alice", 1, KEYED)
    assert (receipt.seq, receipt.deduplicated) == (1, True)
    assert await contents(store) == ["hello"]


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_write_that_would_not_be_the_same_twice_is_sent_once(
    store: ConversationStore, proxy: WireProxy, moment: Moment
) -> None:
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: store.append_message("alice", 1, HELLO),
        lambda: store.append_messages("alice", 1, [HELLO, KEYED]),
        lambda: store.create_conversation("alice"),
        lambda: store.create_conversation("alice", key="k"),
        lambda: store.fork_conversation("alice", 1),
        lambda: store.update_conversation("alice", 1, title="news", metadata={"a": 1}),
        lambda: store.delete_conversation("alice", 1),
    ]
    for write in writes:
        proxy.cut(moment, "before")
        with pytest.raises(Unavailable, match="outcome is unknown") as lost:
            await write()
        assert (lost.value.code, lost.value.retry_after_seconds > 0, proxy.cuts_left) == ("unavailable", True, 1)
        proxy.cut()
    made = {found.conversation.number for found in (await store.list_conversations("alice")).conversations}
    if moment == "before":
        assert made == {1}
        assert await contents(store) == []
    else:
        assert made == {2, 3, 4}
        assert await contents(store, number=4) == ["hello"] * 3
    assert (await store.list_conversations("bob")).conversations[0].preview is None


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_read_is_repeated_and_nobody_notices(
    store: ConversationStore, proxy: WireProxy, moment: Moment
) -> None:
    await store.append_message("alice", 1, HELLO)
    proxy.cut(moment, moment)
    assert await contents(store) == ["hello"]
    proxy.cut(moment, moment)
    assert len((await store.list_conversations("alice")).conversations) == 1
    proxy.cut(moment, moment)
    assert (await store.update_conversation("alice", 1)).message_count == 1
    assert proxy.cuts_left == 0


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_connection_that_breaks_while_the_store_opens_fails_calls_until_then_only(
    proxy: WireProxy, moment: Moment
) -> None:
    async with ConversationStore.at(proxy.url) as store:
        proxy.cut(moment)
        outcomes = await asyncio.gather(*(store.create_conversation("alice") for _ in range(3)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Unavailable}
        assert (await store.create_conversation("alice"))[0].number == 1


async def test_a_cancelled_caller_leaves_a_stored_message_and_a_whole_pool(
    store: ConversationStore, proxy: WireProxy
) -> None:
    proxy.delay = 0.01
    for number in range(1, 11):
        task = asyncio.create_task(store.append_message("alice", 1, replace(HELLO, content=str(number))))
        await turns(number * 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await until(lambda: not store.database._unfinished and not store.database.connections()[0])
    assert sorted(await contents(store), key=int) == [str(number) for number in range(1, 11)]
    assert store.database.connections()[0] == 0


async def test_closing_waits_for_what_a_cancelled_caller_had_sent(proxy: WireProxy, database_url: str) -> None:
    other = ConversationStore.at(proxy.url)
    await other.create_conversation("alice")
    proxy.delay = 0.2
    task = asyncio.create_task(other.append_message("alice", 1, HELLO))
    await turns(1)
    task.cancel()
    await asyncio.wait([task])
    await other.aclose()
    assert len(await asyncio.to_thread(run_sql, database_url, "SELECT FROM chatledger.messages")) == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_closing_ends_a_write_that_waits_for_the_database(begun: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = ConversationStore.at(f"postgresql://someone@127.0.0.1:{silent.getsockname()[1]}/none")
        store.start()
        call = asyncio.create_task(store.create_conversation("alice"))
        await turns(20 if begun else 1)
        await asyncio.wait_for(store.aclose(), PATIENCE)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, PATIENCE)


async def test_300_cancels_at_random_moments_leave_the_pool_whole(store: ConversationStore, proxy: WireProxy) -> None:
    chance, proxy.delay = random.Random(7), 0.001
    for user in ("alice", "bob"):
        await store.append_message(user, 1, replace(HELLO, content=user))

    async def call(number: int) -> None:
        user = ("alice", "bob")[number % 2]
        if number % 5 == 0:
            await store.append_message(user, 1, replace(HELLO, content=user, client_message_id=str(number)))
        else:
            assert set(await contents(store, user)) == {user}, "an answer that was meant for another"

    for start in range(0, 300, 12):
        tasks = [asyncio.create_task(call(number)) for number in range(start, start + 12)]
        for task in chance.sample(tasks, 12):
            await turns(chance.randrange(100))
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
    await until(lambda: not store.database._unfinished and not store.database.connections()[0])
    proxy.delay = 0.0
    assert store.database.connections()[0] == 0
    for user in ("alice", "bob"):
        answers = await asyncio.gather(*(contents(store, user) for _ in range(20)))
        assert {content for answer in answers for content in answer} == {user}
        assert len({len(answer) for answer in answers}) == 1
    ids = [message.client_message_id for message in await store.get_chat_history("alice", 1)]
    assert len(set(ids)) == len(ids)


async def test_a_call_waits_for_a_database_that_wakes(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    proxy = WireProxy(database_url, port=port)
    async with ConversationStore.at(proxy.url) as store:
        first = asyncio.create_task(store.create_conversation("alice"))
        await asyncio.wait([first], timeout=0.5)
        assert not first.done()
        async with proxy:
            assert (await first)[0].number == 1
        later = asyncio.create_task(store.append_message("alice", 1, HELLO))
        await asyncio.wait([later], timeout=0.5)
        assert not later.done()
        async with proxy:
            assert (await later).seq == 1


async def test_a_database_that_stays_absent_is_unavailable_and_used_as_soon_as_it_is_there(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatledger.storage.engine.WAKING_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    proxy = WireProxy(database_url, port=port)
    async with ConversationStore.at(proxy.url) as store:
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(Unavailable, match="the database cannot be reached; `chatledger doctor`") as refused:
                await store.create_conversation("alice")
            assert (
                time.monotonic() - began < 10
            )  # far below the 20 s for which a call would wait for a database that starts
            assert str(port) not in refused.value.message
        async with proxy:
            assert (await store.create_conversation("alice"))[0].number == 1
        with pytest.raises(Unavailable, match="the database cannot be reached"):
            await store.append_message("alice", 1, HELLO)
        async with proxy:
            assert (await store.append_message("alice", 1, HELLO)).seq == 1


async def test_connections_killed_while_idle_fail_no_call(store: ConversationStore, database_url: str) -> None:
    kill = (
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    for count in range(1, 4):
        await asyncio.gather(*(contents(store) for _ in range(8)))
        assert store.database.connections()[1] > 1
        assert len(await asyncio.to_thread(run_sql, database_url, kill)) > 1
        assert (await store.append_message("alice", 1, HELLO)).seq == count


@pytest.mark.parametrize("cancelled", [False, True], ids=["ended by the deadline", "cancelled by the caller"])
async def test_after_a_black_hole_the_next_calls_work_at_once(
    store: ConversationStore, proxy: WireProxy, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    await asyncio.gather(*(contents(store) for _ in range(5)))
    monkeypatch.setattr("chatledger.storage.engine.CALL_SECONDS", 0.3)
    proxy.black_hole, sent = True, proxy.round_trips
    calls = [asyncio.create_task(contents(store)) for _ in range(5)]
    if cancelled:
        await until(lambda: proxy.round_trips == sent + 5)
        for call in calls:
            call.cancel()
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), COMMAND_TIMEOUT / 2)
    assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError if cancelled else Unavailable}
    proxy.black_hole = False
    monkeypatch.undo()
    for _ in range(6):
        assert await asyncio.wait_for(contents(store), COMMAND_TIMEOUT / 2) == []
    assert store.database.connections()[0] == 0


async def test_a_refusal_by_the_database_costs_no_connection(store: ConversationStore, proxy: WireProxy) -> None:
    await store.append_message("alice", 1, KEYED)
    opened = proxy.connections
    for _ in range(5):
        with pytest.raises(StorageError):
            await store.update_conversation("alice", 1, metadata={"a": [1e308] * 1_000})
        with pytest.raises(ConversationUnavailable):
            await store.append_message("alice", 2, HELLO)
    assert proxy.connections == opened


async def test_a_connection_that_breaks_while_the_schema_is_looked_at_again_is_not_used_again(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = store.database._opened_already()
    assert opened is not None
    broken: list[object] = []

    async def breaks(driver: object) -> object:
        broken.append(driver)
        raise ConnectionResetError

    monkeypatch.setattr("chatledger.storage.schema.read_state", breaks)
    with pytest.raises(Unavailable):
        await opened.changed()
    connection = await opened.connections.borrow()
    assert connection.driver_connection not in broken
    await opened.connections.give_back(connection, broken=False)
    assert store.database.connections()[0] == 0
