"""What a search finds, in every script, with whatever people type; never anything of somebody else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from chatledger.storage import ConversationStore, NewMessage, search_queries
from chatledger.storage.errors import ConversationUnavailable, InvalidCursor
from chatledger.storage.records import SearchPage
from tests.conftest import OpenClient

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
