"""What a search finds, in every script, with whatever people type; never anything of somebody else."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger.storage import ConversationStore, NewMessage, message_search, search_queries
from chatledger.storage.engine import Database
from chatledger.storage.errors import ConversationUnavailable, InvalidArgument, InvalidCursor, Unavailable
from chatledger.storage.query import Query
from chatledger.storage.records import SearchPage
from chatledger.storage.search_terms import parse
from tests.conftest import OpenClient, database_at, run_sql

TEXTS = [
    "Hello world, this calls load_history(conversation_id=12) for you",
    "你好世界，今天天气很好。我们去公园吧",
    "日本語のテストです。カタカナとひらがな",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "한국어는 띄어쓰기가 있지만 조사가 붙는다",
    "اللغة العربية جميلة",
    "שלום עולם",
    "हिन्दी में खोज",
    "Привет, мир! Поиск по-русски",
    "Ärger mit Größe und naïve café",
    "C++ and C# and F# are languages; go is one too",
    "🎉🎉 party 👩‍👩‍👧",
    "path /usr/local/bin/python3.11 and https://example.com/a?b=c&d=%20",
    "fifty 100% sure _under_score_ back\\slash 'single' \"double\"",
    "def foo(bar): return {'key': [1, 2, 3]}  # TODO: fix",
    "SELECT * FROM users WHERE id = $1; DROP TABLE x; -- '",
]


@pytest.fixture
async def filled(store: ConversationStore) -> ConversationStore:
    """TEXTS are alice's messages 1 to 16; bob has the same, and one of his own."""
    for user_id in ("alice", "bob"):
        await store.create_conversation(user_id, title=f"of {user_id}")
        await store.append_messages(user_id, 1, [NewMessage(role="user", content=text) for text in TEXTS])
    await store.append_message("bob", 1, NewMessage(role="user", content="bobsecret 秘密"))
    return store


async def found(store: ConversationStore, query: str, user_id: str = "alice", **how: Any) -> list[int]:
    """The seqs of all hits, over as many pages as there are."""
    seqs: list[int] = []
    cursor = None
    while True:
        page = await store.search_messages(user_id, query, cursor=cursor, **how)
        seqs += [hit.seq for hit in page.hits]
        if (cursor := page.next_cursor) is None:
            return seqs


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        ("hello", [1]),
        ("HELLO World", [1]),
        ("world hello", [1]),
        ("load_history", [1]),
        ("history", [1]),
        ("conversation_id=12", [1]),
        ("ello", [1]),
        ("你好", [2]),
        ("好", [2]),
        ("今天天气", [2]),
        ("公园 天气", [2]),
        ("日本語", [3]),
        ("テスト", [3]),
        ("カ", [3]),
        ("ไทย", [4]),
        ("ช่องว่าง", [4]),
        ("한국어", [5]),
        ("조사", [5]),
        ("العربية", [6]),
        ("שלום", [7]),
        ("हिन्दी", [8]),
        ("खोज", [8]),
        ("привет", [9]),
        ("ПОИСК", [9]),
        ("größe", [10]),
        ("ÄRGER", [10]),
        ("café", [10]),
        ("C++", [11]),
        ("C#", [11]),
        ("go", [11]),
        ("🎉", [12]),
        ("party", [12]),
        ("/usr/local/bin", [13]),
        ("python3.11", [13]),
        ("example.com", [13]),
        ("d=%20", [13]),
        ("100%", [14]),
        ("under_score", [14]),
        ("back\\slash", [14]),
        ("foo(bar)", [15]),
        ("TODO", [15]),
        ("$1", [16]),
        ("'; DROP TABLE x; --", [16]),
        ("and", [13, 11]),
        ("and -languages", [13]),
        ('-"are languages" and', [13]),
        ('"hello world"', [1]),
        ('"world hello"', []),
        ('"are languages"', [11]),
        ('"language"', []),
        ("“hello world”", [1]),
        ("hello, world!", [1]),
        ("(hello)", [1]),
        ("nowhere", []),
        ("bobsecret", []),
        ("秘密", []),
    ],
)
async def test_what_people_type_finds_what_they_mean(query: str, seqs: list[int], filled: ConversationStore) -> None:
    assert await found(filled, query) == seqs


@pytest.mark.parametrize(
    "query",
    [
        "'", '"', "!!!", ":*", "(", ")", "a &", "\\", "|", "&", "!", "<->", "a:*b", "-", "--", "-hello", '-"x y"',
        '""', "'; DROP TABLE users; --", "$$", "%s", "$1", "{}", "[", "]", "*", "?", "+", "^", ".", "[[:alpha:]]",
        "(?i)", "a{1000}", "%", "_", "trailing\\", '"unclosed', 'a"b"c', "\u200d", "\ufeff", "\u202e", "e\u0301",
        "\U0010ffff", "\ufffe", "   x   ", "x" * 512, "你" * 512, "\u0301" * 512, "( " * 256, ") (" * 10, "a-b",
        "-a-b", "and or not", "NULL", "\n\t x",
    ],
)  # fmt: skip
async def test_nothing_that_can_be_typed_is_malformed(query: str, filled: ConversationStore) -> None:
    page = await filled.search_messages("alice", query)
    assert isinstance(page, SearchPage)
    assert (await filled.search_messages("alice", "hello")).hits


async def test_only_exclusions_find_nothing_and_a_foreign_conversation_is_refused_all_the_same(
    filled: ConversationStore,
) -> None:
    assert (await filled.search_messages("alice", "-hello -world")).hits == []
    for query in ("-hello", "hello"):
        for foreign in (2, uuid4()):
            with pytest.raises(ConversationUnavailable):
                await filled.search_messages("alice", query, conversation=foreign)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"query": ""}, "query has 0 characters"),
        ({"query": "x" * 513}, "query has 513 characters"),
        ({"query": " ".join(f"w{n}" for n in range(33))}, "query has 33 terms; it may have 32"),
        ({"query": "a\x00b"}, "U\\+0000"),
        ({"query": "a\ud800b"}, "lone surrogate"),
        ({"query": "x", "limit": 0}, "limit must be between 1 and 50"),
        ({"query": "x", "limit": 51}, "limit must be between 1 and 50"),
        ({"query": "x", "role": "root"}, "role must be one of"),
    ],
)
async def test_bounds_are_told(arguments: dict[str, Any], told: str, store: ConversationStore) -> None:
    with pytest.raises(InvalidArgument, match=told):
        await store.search_messages("alice", **arguments)


async def test_thirty_two_terms_are_searched(store: ConversationStore) -> None:
    words = [f"word{n}" for n in range(32)]
    await store.create_conversation("alice")
    await store.append_message("alice", 1, NewMessage(role="user", content=" ".join(words)))
    await store.append_message("alice", 1, NewMessage(role="user", content=" ".join(words[:-1])))
    assert await found(store, " ".join(words)) == [1]


async def test_filters_narrow_a_search(store: ConversationStore) -> None:
    for title in ("one", "two"):
        conversation, _ = await store.create_conversation("alice", title=title)
        for role in ("user", "assistant"):
            await store.append_message("alice", conversation.id, NewMessage(role=role, content=f"apple in {title}"))
    page = await store.search_messages("alice", "apple")
    assert [(hit.number, hit.title, hit.seq, hit.role) for hit in page.hits] == [
        (2, "two", 2, "assistant"),
        (2, "two", 1, "user"),
        (1, "one", 2, "assistant"),
        (1, "one", 1, "user"),
    ]
    assert await found(store, "apple", conversation=1) == [2, 1]
    assert await found(store, "apple", conversation=page.hits[0].conversation_id, role="user") == [1]
    newest, oldest = page.hits[0].created_at, page.hits[-1].created_at
    assert await found(store, "apple", created_after=oldest, created_before=newest) == [1, 2]
    assert await found(store, "apple", created_after=newest) == []
    await store.update_conversation("alice", 2, archived=True)
    assert len(await found(store, "apple")) == 4


async def test_a_snippet_shows_what_matched_wherever_it_stands(store: ConversationStore) -> None:
    await store.create_conversation("alice")
    long = "x" * 500 + " The İstanbul Needle is here " + "y" * 500
    for text in (long, "short needle", "針は" * 100 + "干し草の針" + "山" * 300, "\x1b[31mneedle\u202e <b>"):
        await store.append_message("alice", 1, NewMessage(role="user", content=text))
    hits = (await store.search_messages("alice", "needle")).hits
    assert [hit.seq for hit in hits] == [4, 2, 1]
    assert hits[0].snippet == "\x1b[31mneedle\u202e <b>"
    assert hits[1].snippet == "short needle"
    assert hits[2].snippet.startswith("…")
    assert hits[2].snippet.endswith("…")
    assert "İstanbul Needle is here" in hits[2].snippet
    assert len(hits[2].snippet) == 162
    (hit,) = (await store.search_messages("alice", "干し草")).hits
    assert "干し草の針" in hit.snippet


async def test_a_walk_by_cursors_shows_everything_once_while_others_write(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_queries, "NEAR", 7)
    for n in range(3):
        await store.create_conversation("alice")
        texts = [f"apple {n} {m}" if m % 3 else f"pear {n} {m}" for m in range(30)]
        await store.append_messages("alice", n + 1, [NewMessage(role="user", content=text) for text in texts])
    for which, expected in ((None, 60), (2, 20)):
        seen = []
        cursor = None
        while True:
            page = await store.search_messages("alice", "apple", conversation=which, limit=4, cursor=cursor)
            seen += [(hit.number, hit.seq) for hit in page.hits]
            await store.append_message("alice", 3, NewMessage(role="user", content="apple, late"))
            if (cursor := page.next_cursor) is None:
                break
        assert len(seen) == len(set(seen)) == expected


@pytest.mark.parametrize("query", ["apple", "🍎"])
async def test_what_is_common_but_not_new_is_walked_through_in_bounded_pages(
    query: str, store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_queries, "NEAR", 5)
    monkeypatch.setattr(search_queries, "WALKED", 20)
    search_queries._statement.cache_clear()
    monkeypatch.setattr(search_queries, "_BY_INDEX", search_queries._BY_INDEX.replace(str(search_queries.FEW), "10"))
    try:
        await store.create_conversation("alice")
        texts = [f"apple 🍎 {n}" if n < 60 else f"other {n}" for n in range(100)]
        await store.append_messages("alice", 1, [NewMessage(role="user", content=text) for text in texts])
        assert await found(store, query, limit=7) == list(range(60, 0, -1))
        assert await found(store, query, limit=7, conversation=1) == list(range(60, 0, -1))
    finally:
        search_queries._statement.cache_clear()


async def test_a_cursor_is_good_for_its_own_search_only(filled: ConversationStore) -> None:
    cursor = (await filled.search_messages("alice", "and", limit=1)).next_cursor
    assert cursor is not None
    assert len((await filled.search_messages("alice", "and", limit=1, cursor=cursor)).hits) == 1
    others: list[dict[str, Any]] = [
        {"user_id": "bob", "query": "and"},
        {"query": "And"},
        {"query": "and", "role": "user"},
        {"query": "and", "conversation": 1},
        {"query": "and", "created_after": datetime(2020, 1, 1, tzinfo=UTC)},
    ]
    for other in others:
        arguments: dict[str, Any] = {"user_id": "alice", "cursor": cursor, **other}
        with pytest.raises(InvalidCursor):
            await filled.search_messages(**arguments)
    for broken in ("", "x", cursor[:-1], cursor + "A", cursor[::-1]):
        with pytest.raises(InvalidCursor):
            await filled.search_messages("alice", "and", cursor=broken)
    with pytest.raises(InvalidCursor):
        await filled.list_conversations("alice", cursor=cursor)


async def test_any_text_can_be_stored_however_it_is_indexed(store: ConversationStore) -> None:
    """The index takes a bounded beginning: a tsvector of this would be over its limit, and fail the message."""
    await store.create_conversation("alice")
    texts = [
        " ".join(f"{n:x}" for n in range(150_000)),
        "".join(chr(0x4E00 + n % 20_000) for n in range(1_000_000)),
        "\U0001f600" * 1_000_000,
        "".join(chr(0x20000 + n % 40_000) for n in range(250_000)),
        "x" * 1_000_000,
    ]
    async with ConversationStore(store.database.source, _unlimited()) as roomy:
        for text in texts:
            await roomy.append_message("alice", 1, NewMessage(role="user", content=text[:1_000_000]))
    assert await found(store, "一丁") == [2]


def _unlimited() -> Any:
    from chatledger.storage import Limits

    return Limits(max_content_chars=1_000_000)


async def test_a_search_that_takes_too_long_is_ended_in_the_database_too(
    store: ConversationStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create_conversation("alice")
    slow = Query("SELECT $1 AS user_id, pg_sleep(30)", ("alice",))
    monkeypatch.setattr(message_search, "SEARCH_SECONDS", 0.5)
    monkeypatch.setattr(search_queries, "search_messages", lambda *_, **__: slow)
    with pytest.raises(Unavailable, match=r"^the search took longer than 0.5 s; name a conversation"):
        await store.search_messages("alice", "x")
    for _ in range(100):
        asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND pid <> pg_backend_pid()"
        if (await asyncio.to_thread(run_sql, database_url, asked))[0][0] == 0:
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("it is still running")
    monkeypatch.undo()
    assert (await store.search_messages("alice", "x")).hits == []


async def test_a_database_that_starts_takes_no_part_of_a_searchs_time(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = Database._open

    async def opens_late(database: Database) -> Any:
        await asyncio.sleep(1)
        return await opens(database)

    monkeypatch.setattr(Database, "_open", opens_late)
    monkeypatch.setattr(message_search, "SEARCH_SECONDS", 0.9)
    async with ConversationStore.at(database_url) as late:
        assert (await late.search_messages("alice", "x")).hits == []


async def test_a_users_fifth_search_waits_and_another_users_does_not(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, go = 0, 0, asyncio.Event()

    async def read(query: Any, **_: Any) -> list[Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go.wait()
        running -= 1
        return [{"user_id": query.args[0], "seq": None, "edge_seq": None}]

    await store.database.cursor_secret()
    monkeypatch.setattr(store.database, "read", read)
    searches = [asyncio.create_task(store.search_messages("alice", "x")) for _ in range(10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert running == 4
    other = asyncio.create_task(store.search_messages("bob", "x"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert running == 5
    go.set()
    await asyncio.gather(other, *searches)
    assert most == 5
    assert not store._searching


async def test_the_tool_finds_in_both_eras_and_for_its_caller_only(client_of: OpenClient) -> None:
    for user in ("alice", "bob"):
        async with client_of(user) as client:
            await client.call_tool("create_conversation", {"title": f"of {user}"})
            await client.call_tool("append_message", {"conversation_id": 1, "role": "user", "content": f"{user} 你好"})
    async with client_of("alice", toolset="readonly") as client:
        result = await client.call_tool("search_messages", {"query": "你好"})
        assert result.structured_content is not None
        (hit,) = result.structured_content["hits"]
        assert {**hit, "conversation_id": None, "created_at": None} == {
            "conversation_id": None,
            "number": 1,
            "title": "of alice",
            "seq": 1,
            "role": "user",
            "created_at": None,
            "snippet": "alice 你好",
        }
        for arguments, code in (
            ({}, "invalid_argument"),
            ({"query": ""}, "invalid_argument"),
            ({"query": "x", "limit": "7"}, "invalid_argument"),
            ({"query": "x", "role": "root"}, "invalid_argument"),
            ({"query": "x", "created_after": "yesterday"}, "invalid_argument"),
            ({"query": "x", "cursor": "x"}, "invalid_cursor"),
            ({"query": "x", "conversation_id": 7}, "conversation_unavailable"),
        ):
            refused = await client.call_tool("search_messages", arguments)
            assert refused.structured_content is not None
            assert refused.structured_content["error"]["code"] == code


# ---- any query, any text --------------------------------------------------------------------------------------------

ALPHABET = "ab c-\"'%_\\.*+?()[]{}|&!:<>$#@/好你日本ไทกขÄäßéñ🎉\u0301\u200d12_A"
QUERIES = st.text(st.sampled_from(ALPHABET), min_size=1, max_size=12)
CONTENTS = st.lists(st.text(st.sampled_from(ALPHABET), min_size=1, max_size=25), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def shared_url(postgres_url: str, template: str) -> Iterator[str]:
    """One database for all examples, each with users of its own."""
    name = f"chatledger_searches_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield database_at(postgres_url, name)
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def plainly_there(query: str, text: str) -> bool:
    """Whether each word of at least three letters, without anything else in it, is in the text: then it is found."""
    words = query.split()
    return (
        bool(words)
        and all(re.fullmatch("[a-c]{3,}|[好你日本]+", word) for word in words)
        and all(word in text for word in words)
    )


def ever_there(query: str, text: str) -> bool:
    """Whether each term's letters are in the text, in any case: otherwise it is not found."""
    wanted, _ = parse(query)
    folded = text.lower()
    return bool(wanted) and all(word.lower() in folded for term in wanted for word in term.words)


@given(examples=st.lists(st.tuples(QUERIES, CONTENTS), min_size=10, max_size=10))
@settings(max_examples=20, deadline=None)
def test_no_query_fails_nothing_is_foreign_and_what_is_found_is_there(
    examples: list[tuple[str, list[str]]], shared_url: str
) -> None:
    async def search_all() -> None:
        async with ConversationStore.at(shared_url) as store:
            for query, contents in examples:
                alice, bob = str(uuid4()), str(uuid4())
                texts = [text for text in contents if not text.isspace()]
                for user_id in (alice, bob):
                    await store.create_conversation(user_id, title=user_id)
                    if texts:
                        messages = [NewMessage(role="user", content=text) for text in texts]
                        await store.append_messages(user_id, 1, messages)
                page = await store.search_messages(alice, query)
                assert {hit.title for hit in page.hits} <= {alice}
                seqs = {hit.seq for hit in page.hits}
                for seq, text in enumerate(texts, 1):
                    assert seq not in seqs or ever_there(query, text), (query, text)
                    assert seq in seqs or not plainly_there(query, text), (query, text)

    asyncio.run(search_all())


async def test_times_of_imported_messages_order_a_search_too(store: ConversationStore) -> None:
    from chatledger.transfer.importing import Importer
    from chatledger.transfer.records import ReadConversation, ReadMessage

    start = datetime(2020, 1, 1, tzinfo=UTC)
    outcomes = [
        ReadConversation(
            place="1",
            external_id=name,
            messages=[ReadMessage("user", f"apple {name}", "m", start + timedelta(days=day))],
        )
        for name, day in (("newest", 9), ("oldest", 1), ("middle", 5))
    ]
    importer = Importer(store, "alice")
    await importer.take(outcomes, file="f", format="sharegpt")
    hits = (await store.search_messages("alice", "apple")).hits
    assert [hit.snippet for hit in hits] == ["apple newest", "apple middle", "apple oldest"]
