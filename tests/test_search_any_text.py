"""Any query over any text: nothing fails, what is found is there, and what is plainly there is found."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger.storage import ConversationStore, Limits, NewMessage
from chatledger.storage.search_terms import parse
from tests.conftest import database_at, run_sql
from tests.test_search import found

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
    async with ConversationStore(store.database.source, Limits(max_content_chars=1_000_000)) as roomy:
        for text in texts:
            await roomy.append_message("alice", 1, NewMessage(role="user", content=text[:1_000_000]))
    assert await found(store, "一丁") == [2]
