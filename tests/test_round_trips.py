"""Each operation is one network round trip on a warm connection, whichever way its conversation is named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from chatledger.storage import ConversationStore, NewMessage
from chatledger.storage.database_url import read_database_url
from chatledger.storage.query import Query
from chatledger.storage.records import Conversation, ConversationRef
from tests.wire_proxy import WireProxy

SAID = NewMessage(role="user", content="hello", client_message_id="1", metadata={"a": 1}, parts=[{"b": 2}])
CALLED = NewMessage(role="assistant", tool_calls=[{"id": "1"}])
RESULT = NewMessage(role="tool", tool_call_id="1", content="sunny")
ASKED = NewMessage(role="user", content="and tomorrow?")


@dataclass
class Line:
    """A store behind a proxy, and a conversation of each of two users in it."""

    store: ConversationStore
    proxy: WireProxy
    alices: Conversation
    bobs: Conversation
    connections: int

    async def trips(self, operation: Callable[[], Awaitable[object]]) -> int:
        """Of the second time, when the connection has seen the statement before."""
        await operation()
        before = self.proxy.round_trips
        await operation()
        assert self.proxy.connections == self.connections
        return self.proxy.round_trips - before


@pytest.fixture(params=["a pooler", "no pooler, by the name", "no pooler, as it turns out"])
async def line(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> AsyncIterator[Line]:
    folder = tmp_path if request.param == "no pooler, by the name" else None
    pooler = request.param == "a pooler"
    async with (
        WireProxy(database_url, folder, pooler=pooler) as proxy,
        ConversationStore.at(proxy.url) as store,
    ):
        assert read_database_url(proxy.url).direct == (folder is not None)
        made = [(await store.create_conversation(user, title="weather"))[0] for user in ("bob", "alice")]
        await store.append_messages("alice", made[1].id, [SAID, CALLED, RESULT, ASKED])
        kept = await store.database.read(Query("SELECT FROM pg_prepared_statements WHERE name <> ''", ()))
        assert bool(kept) != pooler
        # One to find out what is there, where the name does not tell, and one for all that follows.
        connections = 2 if folder is None and not pooler else 1
        yield Line(store, proxy, bobs=made[0], alices=made[1], connections=connections)


@pytest.fixture(params=["id", "number"])
def name(request: pytest.FixtureRequest) -> Callable[[Conversation], ConversationRef]:
    def named(conversation: Conversation) -> ConversationRef:
        return conversation.id if request.param == "id" else conversation.number

    return named


Name = Callable[[Conversation], ConversationRef]


async def test_create_is_one_round_trip(line: Line) -> None:
    store = line.store
    assert await line.trips(lambda: store.create_conversation("alice", title="news", metadata={"a": 1})) == 1
    assert await line.trips(lambda: store.create_conversation("alice", key="daily")) == 1
    assert await line.trips(lambda: store.get_or_create_conversation("bob")) == 1


async def test_append_is_one_round_trip_new_and_repeated(line: Line, name: Name) -> None:
    store, ref = line.store, name(line.alices)
    assert await line.trips(lambda: store.append_message("alice", ref, ASKED)) == 1
    assert await line.trips(lambda: store.append_message("alice", ref, SAID)) == 1
    bobs = name(line.bobs)
    seen = 0

    async def expecting() -> None:
        nonlocal seen
        await store.append_message("bob", bobs, ASKED, expected_last_seq=seen)
        seen += 1

    assert await line.trips(expecting) == 1


async def test_a_batch_is_one_round_trip_whatever_its_size(line: Line, name: Name) -> None:
    store, ref = line.store, name(line.alices)
    for batch in ([ASKED], [SAID, ASKED, ASKED], [ASKED] * 100):
        assert await line.trips(partial(store.append_messages, "alice", ref, batch)) == 1


async def test_load_is_one_round_trip_with_any_bounds_and_detail(line: Line, name: Name) -> None:
    store, ref = line.store, name(line.alices)
    assert await line.trips(lambda: store.load_history("alice", ref)) == 1
    assert await line.trips(lambda: store.load_history("alice", ref, detail="full")) == 1
    assert await line.trips(lambda: store.load_history("alice", ref, limit=1)) == 1
    assert await line.trips(lambda: store.load_history("alice", ref, before_seq=4)) == 1, "ends with an exchange"
    assert await line.trips(lambda: store.load_history("alice", ref, after_seq=0, limit=3, max_tokens=1)) == 1
    assert await line.trips(lambda: store.load_history("alice", ref, after_seq=4)) == 1, "an empty window"
    assert await line.trips(lambda: store.load_history("alice")) == 1, "of the latest"


async def test_loading_one_message_is_one_round_trip(line: Line, name: Name) -> None:
    store, ref = line.store, name(line.alices)
    assert await line.trips(lambda: store.load_message("alice", ref, 3)) == 1


async def test_a_cut_in_a_tool_exchange_is_mended_in_one_more_round_trip(line: Line, name: Name) -> None:
    store, ref = line.store, name(line.alices)
    window = await store.load_history("alice", ref, before_seq=4, limit=1)
    assert [message.seq for message in window.messages] == [2, 3]
    assert await line.trips(lambda: store.load_history("alice", ref, before_seq=4, limit=1)) == 2


async def test_list_is_one_round_trip_on_every_page(line: Line) -> None:
    store = line.store
    await store.create_conversation("alice")
    assert await line.trips(lambda: store.list_conversations("alice")) == 1
    cursor = (await store.list_conversations("alice", limit=1)).next_cursor
    assert cursor is not None
    assert await line.trips(lambda: store.list_conversations("alice", limit=1, cursor=cursor)) == 1
    assert await line.trips(lambda: store.list_conversations("alice", title_contains="w", include_archived=True)) == 1
    assert await line.trips(lambda: store.list_numbers("alice", "w")) == 1


async def test_update_is_one_round_trip(line: Line, name: Name) -> None:
    store, ref = line.store, name(line.alices)
    assert await line.trips(lambda: store.update_conversation("alice", ref, title="news")) == 1
    assert await line.trips(lambda: store.update_conversation("alice", ref, metadata={"a": None, "b": 2})) == 1
    assert await line.trips(lambda: store.update_conversation("alice", ref, archived=True)) == 1
    assert await line.trips(lambda: store.update_conversation("alice", ref)) == 1


async def test_fork_is_one_round_trip(line: Line, name: Name) -> None:
    store, ref = line.store, name(line.alices)
    assert await line.trips(lambda: store.fork_conversation("alice", ref)) == 1
    assert await line.trips(lambda: store.fork_conversation("alice", ref, at_seq=1, title="news")) == 1


async def test_delete_is_one_round_trip(line: Line, name: Name) -> None:
    store = line.store
    doomed = [name((await store.create_conversation("alice"))[0]) for _ in range(2)]
    assert await line.trips(lambda: store.delete_conversation("alice", doomed.pop())) == 1


async def test_a_foreign_conversation_and_an_absent_one_take_the_same_round_trips(line: Line) -> None:
    store = line.store
    absent = (await store.create_conversation("alice"))[0]
    await store.delete_conversation("alice", absent.id)

    async def refused(ref: ConversationRef, expected: int | None) -> None:
        with pytest.raises(Exception, match="no such conversation of yours"):
            await store.append_message("alice", ref, ASKED, expected_last_seq=expected)

    for expected, trips in ((None, 1), (0, 2)):
        for ref in (line.bobs.id, absent.id, absent.number):
            assert await line.trips(partial(refused, ref, expected)) == trips
