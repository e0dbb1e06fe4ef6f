"""Statements without their owner predicate, and what must notice.

`$1` is the user in every statement of the store. A mutant is a statement's text in which one comparison with it, or
all, are always true; so may be one of the user with another table's. The store runs the mutant in the statement's
place. Questions must then be answered otherwise than before, or another user's rows must have changed: else nobody
would notice that the predicate was forgotten.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from chatledger.storage import ConversationStore, Limits, erasure_queries, search_queries
from chatledger.storage.bulk import BulkStore, ExportedConversation
from chatledger.storage.engine import Database
from chatledger.storage.errors import StorageError
from chatledger.storage.message_search import MessageSearch
from chatledger.storage.query import Query
from chatledger.storage.records import Growth, NewMessage, Receipt, WholeConversation, WholeMessage
from chatledger.storage.retention import Retention
from chatledger.storage.source import DatabaseSource, ExternalDatabase
from chatledger.storage.tokens import TokenStore
from chatledger.storage.transaction import Transaction
from tests.dealer import Probe
from tests.probes import ask
from tests.test_queries import MODULES
from tests.two_worlds import COMMON, PROBER, RARE, TOKEN, Owner, World

PREDICATE = re.compile(r"(?<![\w.])(?:(?:\w+\.)?(?:user_id|id) = \$1(?!\d)|\w+\.user_id = \w+\.(?:user_id|id)\b)")

# Filters of a search, and the numbers of arguments behind them.
_FORMS = re.compile(
    r" AND created_at [<>] \$\d+::timestamptz| AND regexp_replace\(.*?\) ILIKE \(SELECT \$\d+::text\)|(?<=\$)1\d"
)

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)  # before every message in the two worlds


class Mutant(NamedTuple):
    """A statement's text without one owner predicate, or without any."""

    text: str
    line: str
    """The line that the predicate was in, without what only some of the statement's forms have in it; empty where all
    predicates are gone."""


def mutants(sql: str) -> Iterator[Mutant]:
    """One for each predicate, and one without them all. None for a text that compares nothing with the user."""
    found = list(PREDICATE.finditer(sql))
    for each in found:
        start, end = sql.rfind("\n", 0, each.start()) + 1, sql.find("\n", each.end())
        line = f"{sql[start : each.start()]}[{each[0]}]{sql[each.end() : end if end >= 0 else None]}"
        yield Mutant(sql[: each.start()] + _always(each) + sql[each.end() :], " ".join(_FORMS.sub("", line).split()))
    if found:
        yield Mutant(PREDICATE.sub(_always, sql), "")


def _always(predicate: re.Match[str]) -> str:
    return "$1::text IS NOT NULL" if predicate[0].endswith("$1") else "true"  # the argument keeps its type


class Ledger:
    """Which function made which text."""

    def __init__(self) -> None:
        self.name_of: dict[str, str] = {}

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Note every statement that is made from now on."""
        for module in MODULES:
            for name, function in inspect.getmembers(module, inspect.isfunction):
                if function.__module__ == module.__name__ and not name.startswith("_"):
                    patch.setattr(module, name, self._noting(name, function))

    def _noting(self, name: str, function: Callable[..., Query]) -> Callable[..., Query]:
        def make(*args: Any, **kwargs: Any) -> Query:
            query = function(*args, **kwargs)
            self.name_of[query.sql] = name
            return query

        return make


def small_search(patch: pytest.MonkeyPatch) -> None:
    """Have a search go through all its steps for the few messages that there are."""
    patch.setattr(search_queries, "NEAR", 2)
    patch.setattr(search_queries, "WALKED", 3)
    text, few = search_queries._BY_INDEX, search_queries.FEW
    assert f"LIMIT {few}\n" in text
    assert f"OFFSET {few} -" in text
    patch.setattr(
        search_queries,
        "_BY_INDEX",
        text.replace(f"LIMIT {few}\n", "LIMIT 3\n").replace(f"OFFSET {few} -", "OFFSET 3 -"),
    )
    search_queries._statement.cache_clear()


class WatchedDatabase(Database):
    """Notes the statements that it runs, and runs others in their place."""

    def __init__(self, source: DatabaseSource) -> None:
        super().__init__(source)
        self.ran: set[str] = set()
        self.instead: dict[str, str] = {}

    def changed(self, query: Query) -> Query:
        self.ran.add(query.sql)
        return query._replace(sql=self.instead.get(query.sql, query.sql))

    async def read(self, query: Query, *, seconds: float | None = None) -> list[Any]:
        return await super().read(self.changed(query), seconds=seconds)

    async def write(self, query: Query, *, repeatable: bool) -> list[Any]:
        return await super().write(self.changed(query), repeatable=repeatable)

    @asynccontextmanager
    async def transaction(self, *, snapshot: bool = False) -> AsyncIterator[Transaction]:
        async with super().transaction(snapshot=snapshot) as begun:
            fetch = begun.fetch

            async def changed(query: Query) -> list[Any]:
                return await fetch(self.changed(query))

            begun.fetch = changed  # type: ignore[method-assign]
            yield begun


class WatchedStore(ConversationStore):
    """A store on such a database."""

    database: WatchedDatabase

    def __init__(self, url: str) -> None:
        MessageSearch.__init__(self, WatchedDatabase(ExternalDatabase(url)), Limits())


# ---- what is asked of the store beside the tools --------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Something to ask in a world; the answer is text."""

    name: str
    ask: Callable[[World], Awaitable[str]] = field(repr=False)
    reads: bool = True


def of_probe(probe: Probe) -> Question:
    """A probe of the server."""

    async def asked(world: World) -> str:
        return (await ask(world.client, probe))[0]

    return Question(str(probe), asked, probe.reads)


Do = Callable[[ConversationStore], Awaitable[object]]


def _of(name: str, do: Do, *, reads: bool = True) -> Question:
    async def asked(world: World) -> str:
        try:
            return repr(await do(world.store))
        except StorageError as exc:
            return f"{type(exc).__name__}: {exc.message}"

    return Question(name, asked, reads)


def of_the_store(owner: Owner) -> Iterator[Question]:
    """What tools ask in more ways than probes hit upon, and what only commands do."""
    yield from _of_messages(owner)
    yield from _of_conversations(owner)
    yield from _of_searches(owner)
    yield from _of_whole_conversations(owner)

    async def made(store: ConversationStore) -> object:
        token, _ = await TokenStore(store).create(PROBER, scopes=["conversations:read"])
        return token._replace(id="", created_at=MOMENT)

    async def used(store: ConversationStore) -> object:
        tokens = TokenStore(store)
        found = await tokens.find(TOKEN)
        await tokens.aclose()
        return found

    yield _of("a new token", made, reads=False)
    yield _of("a token in use", used, reads=False)
    yield _of("a user's tokens", lambda store: TokenStore(store).list(PROBER))


def _refs(owner: Owner) -> list[UUID | int]:
    """Conversations that there are two of: the namesakes, by id and by number."""
    return [*map(UUID, owner.namesakes), 2, 3, UUID(owner.conversations[0])]


def _of_messages(owner: Owner) -> Iterator[Question]:
    bounds: list[dict[str, Any]] = [{}, {"after_seq": 2}, {"before_seq": 3}, {"limit": 4}, {"after_seq": 0, "limit": 2}]
    for ref in (None, *_refs(owner)):
        for bound in bounds:
            for detail in ("concise", "full"):
                yield _of(
                    f"{detail} history of {ref}, {bound}",
                    partial(ConversationStore.load_history, user_id=PROBER, conversation=ref, detail=detail, **bound),
                )

        for seq in (2, 6):
            if ref is not None:
                yield _of(f"message {seq} of {ref}", partial(_message, ref=ref, seq=seq))

    async def append(store: ConversationStore, ref: UUID | int, key: str, many: bool) -> object:
        said = NewMessage(role="user", content="mine", client_message_id=key)
        if many:
            return [receipt.seq for receipt in await store.append_messages(PROBER, ref, [said, said])]
        receipt = await store.append_message(PROBER, ref, said)
        return receipt.seq, receipt.deduplicated

    for ref in _refs(owner):
        for key in owner.repeats:
            for many in (False, True):
                yield _of(f"append to {ref} by {key}", partial(append, ref=ref, key=key, many=many), reads=False)

    async def gathered(store: ConversationStore, key: str) -> object:
        # So many to a conversation that they go together; each conversation by one name, so that they go in order.
        refs = (1, UUID(owner.namesakes[0]), 3, UUID(owner.conversations[0]))
        said = [
            (ref, NewMessage(role="user", content="mine", client_message_id=by))
            for by in ("x", key, "y", "z", None)
            for ref in refs
        ]
        receipts = await asyncio.gather(
            *(store.append_message(PROBER, ref, message) for ref, message in said), return_exceptions=True
        )
        return sorted(  # which of two comes first is open
            f"{refs.index(ref)}: {receipt.seq} {receipt.deduplicated}" if isinstance(receipt, Receipt) else str(receipt)
            for (ref, _), receipt in zip(said, receipts, strict=True)
        )

    for key in owner.repeats:
        yield _of(f"many at once by {key}", partial(gathered, key=key), reads=False)

    async def create(store: ConversationStore, key: str) -> object:
        made, created = await store.create_conversation(PROBER, key=key)
        return made.number, made.title, created

    for key in [text for text in owner.texts if text.startswith("key-")][:2]:
        yield _of(f"create {key}", partial(create, key=key), reads=False)


async def _message(store: ConversationStore, ref: UUID | int, seq: int) -> object:
    return await store.load_message(PROBER, ref, seq)


def _of_conversations(owner: Owner) -> Iterator[Question]:
    async def walk(store: ConversationStore, limit: int, **filters: Any) -> object:
        pages: list[Any] = []
        cursor = None
        while not pages or cursor is not None:
            page = await store.list_conversations(PROBER, limit=limit, cursor=cursor, **filters)
            pages.append(page.conversations)
            cursor = page.next_cursor
        return pages

    filters: dict[str, Any] = {"include_archived": True, "title_contains": "o", "updated_after": MOMENT}
    filters["updated_before"] = MOMENT.replace(year=2100)
    for count in range(1 << len(filters)):
        chosen = {name: value for place, (name, value) in enumerate(filters.items()) if count >> place & 1}
        yield _of(f"a list by {sorted(chosen)}", partial(walk, limit=1, **chosen))
    for ref in _refs(owner):
        changes: dict[str, Callable[..., Awaitable[object]]] = {
            "update": partial(ConversationStore.update_conversation, title="Other"),
            "fork": ConversationStore.fork_conversation,
            "delete": ConversationStore.delete_conversation,
        }
        for name, do in changes.items():
            yield _of(f"{name} {ref}", partial(_done, do=do, ref=ref), reads=False)


async def _done(store: ConversationStore, do: Callable[..., Awaitable[object]], ref: UUID | int) -> object:
    await do(store, PROBER, ref)  # what it gives back holds new ids and times
    return [(each.conversation.number, each.preview) for each in (await store.list_conversations(PROBER)).conversations]


def _of_searches(owner: Owner) -> Iterator[Question]:
    async def walk(store: ConversationStore, query: str, limit: int, **filters: Any) -> object:
        pages: list[Any] = []
        cursor = None
        while not pages or cursor is not None:
            page = await store.search_messages(PROBER, query, limit=limit, cursor=cursor, **filters)
            pages.append(page.hits)
            cursor = page.next_cursor
            assert len(pages) < 100
        return pages

    times: list[dict[str, Any]] = [
        {},
        {"created_after": MOMENT},
        {"created_before": MOMENT.replace(year=2100)},
        {"created_after": MOMENT, "created_before": MOMENT.replace(year=2100)},
    ]
    for query in (RARE, "my", "lantern harbour", COMMON):  # one word for the index, none, two, three
        for ref in (None, *_refs(owner)):
            for filters in times if query in (RARE, "my") else times[:1]:
                for limit in (1, 4, 50):
                    yield _of(
                        f"{query} in {ref} {sorted(filters)}, {limit} a page",
                        partial(walk, query=query, limit=limit, conversation=ref, **filters),
                    )


def _of_whole_conversations(owner: Owner) -> Iterator[Question]:
    keys = [text for text in owner.texts if text.startswith("key-")]

    async def find(store: ConversationStore, by_message_id: bool) -> object:
        heads = [each async for each in BulkStore(store).read(PROBER) if isinstance(each, ExportedConversation)]
        ids, known = [head.conversation.id for head in heads], [head.conversation.key or "" for head in heads]
        bulk = BulkStore(store)
        found = await bulk.find(PROBER, ids=[UUID(owner.conversations[0]), *ids], by_message_id=by_message_id)
        return found, await bulk.find(PROBER, keys=[*keys, *known], by_message_id=by_message_id)

    async def add(store: ConversationStore) -> object:
        new = WholeConversation(
            id=UUID(owner.conversations[1]),
            key=keys[0],
            title=None,
            metadata=None,
            created_at=MOMENT,
            updated_at=MOMENT,
            messages=[],
        )
        return await BulkStore(store).store(PROBER, [new])

    async def grow(store: ConversationStore, id: str) -> object:
        said = WholeMessage(UUID(id), 7, UUID(int=7), "user", "more", None, None, None, None, None, None, MOMENT)
        return await BulkStore(store).store(PROBER, [], [Growth(UUID(id), 6, MOMENT, [said])])

    async def export(store: ConversationStore, ref: UUID | int | None) -> object:
        return [each async for each in BulkStore(store).read(PROBER, ref)]

    for by_message_id in (False, True):
        yield _of(f"what an import looks for, {by_message_id}", partial(find, by_message_id=by_message_id))
    yield _of("an import with another's id and key", add, reads=False)
    for ref in (owner.conversations[0], *owner.namesakes):
        yield _of(f"an import that lengthens {ref}", partial(grow, id=ref), reads=False)
    for named in (None, 1, owner.numbers[0], *_refs(owner)):
        yield _of(f"an export of {named}", partial(export, ref=named))
    yield _of("a count", lambda store: BulkStore(store).count(PROBER))

    async def old(store: ConversationStore) -> object:
        before = MOMENT.replace(year=2100)
        found = [each._replace(oldest=MOMENT) async for each in Retention(store).find(before, user_id=PROBER)]
        return found, [each async for each in Retention(store).delete(PROBER, before)]

    async def again(store: ConversationStore) -> object:
        erased_at = MOMENT.replace(year=2100)
        query = erasure_queries.replay_erasure(PROBER, bytes(32), erased_at, conversations=1, messages=1)
        return [tuple(row) for row in await store.database.write(query, repeatable=False)]

    yield _of("what is old, and its end", old, reads=False)
    yield _of("an erasure that is replayed", again, reads=False)
    yield _of("an erasure", lambda store: BulkStore(store).erase_user(PROBER), reads=False)
