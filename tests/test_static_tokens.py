"""Tokens made on the command line: kept as hashes, found by their bearer only, gone when revoked, expired or erased."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chatledger.server.auth.refusals import TokenRefused
from chatledger.server.auth.scopes import DELETE, READ, WRITE
from chatledger.server.auth.static_tokens import StaticTokenVerifier
from chatledger.storage import ConversationStore, StorageError
from chatledger.storage.bulk import BulkStore
from chatledger.storage.errors import InvalidArgument, Unavailable
from chatledger.storage.records import Holdings
from chatledger.storage.tokens import ApiToken, TokenStore
from tests.driver import connect

SHAPE = re.compile(r"chatledger_([0-9a-f]{12})_[0-9a-f]{64}")
US = "https://ledger.example/mcp"


@pytest.fixture
async def tokens(store: ConversationStore) -> AsyncIterator[TokenStore]:
    opened = TokenStore(store)
    yield opened
    await opened.aclose()


async def sql(url: str, statement: str, *args: Any) -> list[Any]:
    connection = await connect(url)
    try:
        rows: list[Any] = await connection.fetch(statement, *args)
        return rows
    finally:
        await connection.close()


async def test_a_token_has_a_shape_that_scanners_know_and_is_kept_as_a_hash_only(
    tokens: TokenStore, database_url: str
) -> None:
    made, text = await tokens.create("alice", scopes=[READ])
    shape = SHAPE.fullmatch(text)
    assert shape is not None
    assert shape[1] == made.id
    rows = await sql(database_url, "SELECT t::text AS whole, hash FROM chatledger.api_tokens t")
    assert [row["hash"] for row in rows] == [hashlib.sha256(text.encode()).digest()]
    assert text[-64:] not in rows[0]["whole"]
    assert text[-64:] not in repr(made)


async def test_no_two_tokens_are_alike(tokens: TokenStore) -> None:
    texts = [(await tokens.create("alice", scopes=[READ]))[1] for _ in range(20)]
    assert len({text[-64:] for text in texts}) == 20


async def test_a_token_stands_for_its_user_with_its_scopes(tokens: TokenStore) -> None:
    expires = datetime(2050, 1, 1, tzinfo=UTC)
    made, text = await tokens.create("Zoë|7", scopes=[DELETE, READ], name="backup", expires_at=expires)
    assert made == ApiToken("Zoë|7", made.id, "backup", (DELETE, READ), made.created_at, expires, None)
    token = await StaticTokenVerifier(tokens, US).verify(text)
    assert token.model_dump() == {
        "token": "",
        "client_id": f"token:{made.id}",
        "scopes": [READ, DELETE],
        "expires_at": int(expires.timestamp()),
        "resource": US,
        "subject": "Zoë|7",
        "claims": {"iss": US},
    }


async def refused(tokens: TokenStore, text: str) -> None:
    with pytest.raises(TokenRefused, match="revoked, has expired or was never made"):
        await StaticTokenVerifier(tokens, US).verify(text)


async def test_whatever_is_not_exactly_a_token_is_refused(tokens: TokenStore) -> None:
    made, text = await tokens.create("alice", scopes=[READ])
    _, other = await tokens.create("bob", scopes=[READ])
    assert (await tokens.find(text)) is not None
    flipped = text[:-1] + ("0" if text[-1] != "0" else "1")
    for wrong in (
        flipped,
        text[:-1],
        text + "0",
        text + "\n",
        f" {text}",
        text.upper(),
        text[:24] + other[24:],
        f"chatledger_{'0' * 12}_{text[-64:]}",
        f"chatledger_{made.id}_",
        f"chatledger_{made.id}_{hashlib.sha256(text.encode()).hexdigest()}",
        "chatledger_",
        "",
        "chatledger_" + "0" * 100_000,
        f"chatledger_' OR '1'='1_{'0' * 64}",
    ):
        await refused(tokens, wrong)


async def test_a_text_that_cannot_be_a_token_costs_no_question_to_the_database() -> None:
    async with ConversationStore.at("postgresql://nobody@127.0.0.1:1/none") as nowhere:
        assert await TokenStore(nowhere).find("chatledger_" + "g" * 77) is None


async def test_two_tokens_with_one_id_are_told_apart_by_their_secrets(tokens: TokenStore, database_url: str) -> None:
    a, alices = await tokens.create("alice", scopes=[READ])
    b, bobs = await tokens.create("bob", scopes=[READ])
    same = bobs.replace(b.id, a.id)
    await sql(
        database_url,
        "UPDATE chatledger.api_tokens SET id = $1, hash = $2 WHERE user_id = 'bob'",
        a.id,
        hashlib.sha256(same.encode()).digest(),
    )
    found = [await tokens.find(text) for text in (alices, same, bobs)]
    assert [token and token.user_id for token in found] == ["alice", "bob", None]


async def test_a_revoked_token_is_refused_by_every_process_from_the_next_request_on(
    tokens: TokenStore, database_url: str
) -> None:
    made, text = await tokens.create("alice", scopes=[READ])
    async with ConversationStore.at(database_url) as elsewhere:
        other = TokenStore(elsewhere)
        assert await other.find(text) is not None
        assert (await tokens.revoke(made.id)) is not None
        await refused(other, text)
        await other.aclose()
    await refused(tokens, text)
    assert await tokens.revoke(made.id) is None


async def test_a_token_expires_by_the_databases_clock(tokens: TokenStore, database_url: str) -> None:
    made, text = await tokens.create("alice", scopes=[READ], expires_at=datetime.now(UTC) + timedelta(hours=1))
    assert await tokens.find(text) is not None
    await sql(database_url, "UPDATE chatledger.api_tokens SET expires_at = now() - interval '1 second'")
    await refused(tokens, text)
    assert [token.id for token in await tokens.list()] == [made.id]


async def test_its_use_is_noted_once_a_minute_and_beside_the_call(
    tokens: TokenStore, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = await tokens.create("alice", scopes=[READ])
    written = []
    write = tokens._database.write

    async def counted(*args: Any, **how: Any) -> list[Any]:
        written.append(args)
        return await write(*args, **how)

    monkeypatch.setattr(tokens._database, "write", counted)
    await asyncio.gather(*[tokens.find(text) for _ in range(30)])
    await tokens.aclose()
    assert len(written) == 1
    (first,) = await tokens.list("alice")
    assert first.last_used_at is not None
    await tokens.find(text)
    await tokens.aclose()
    assert (await tokens.list("alice")) == [first]
    await sql(database_url, "UPDATE chatledger.api_tokens SET last_used_at = now() - interval '61 seconds'")
    await tokens.find(text)
    await tokens.aclose()
    (later,) = await tokens.list("alice")
    assert later.last_used_at is not None
    assert later.last_used_at > first.last_used_at
    assert len(written) == 2


async def test_a_use_that_cannot_be_noted_is_a_use_all_the_same(
    tokens: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = await tokens.create("alice", scopes=[READ])

    async def fail(*_: Any, **__: Any) -> list[Any]:
        raise Unavailable("the database is read-only at present")

    monkeypatch.setattr(tokens._database, "write", fail)
    for _ in range(2):
        assert await tokens.find(text) is not None
        await tokens.aclose()


async def test_while_the_database_is_away_nobody_is_refused_for_good() -> None:
    async with ConversationStore.at("postgresql://nobody@127.0.0.1:1/none") as nowhere:
        nowhere.database.source.migrates_itself = False
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("chatledger.storage.engine.WAKING_SECONDS", 0.0)
            with pytest.raises(StorageError) as away:
                await StaticTokenVerifier(TokenStore(nowhere), US).verify(f"chatledger_{'0' * 12}_{'0' * 64}")
    assert away.value.code == "unavailable"


async def test_a_list_shows_all_or_one_users_and_no_secret(tokens: TokenStore) -> None:
    texts = {user: (await tokens.create(user, scopes=[WRITE]))[1] for user in ("bob", "alice", "carol")}
    again, _ = await tokens.create("alice", scopes=[READ], name="second")
    assert [token.user_id for token in await tokens.list()] == ["alice", "alice", "bob", "carol"]
    assert [token.name for token in await tokens.list("alice")] == [None, "second"]
    assert (await tokens.list("alice"))[1] == again
    assert await tokens.list("nobody") == []
    for text in texts.values():
        assert text[-64:] not in repr(await tokens.list())


async def test_an_erased_user_leaves_no_token_even_without_a_conversation(
    tokens: TokenStore, store: ConversationStore, database_url: str
) -> None:
    await store.create_conversation("alice")
    _, alices = await tokens.create("alice", scopes=[READ])
    _, quiet = await tokens.create("quiet", scopes=[READ])
    _, bobs = await tokens.create("bob", scopes=[READ])
    bulk = BulkStore(store)
    assert await bulk.count("quiet") == Holdings(0, 0)
    assert await bulk.erase_user("alice") == Holdings(1, 0)
    assert await bulk.erase_user("quiet") == Holdings(0, 0)
    for text in (alices, quiet):
        await refused(tokens, text)
    assert await tokens.find(bobs) is not None
    rows = await sql(database_url, "SELECT user_id FROM chatledger.api_tokens")
    assert [row["user_id"] for row in rows] == ["bob"]


async def test_making_a_token_changes_nothing_of_a_user_who_is_there(
    tokens: TokenStore, store: ConversationStore, database_url: str
) -> None:
    await store.create_conversation("alice")
    users = "SELECT u::text FROM chatledger.users u"
    before = await sql(database_url, users)
    await tokens.create("alice", scopes=[READ])
    assert await sql(database_url, users) == before
    await tokens.create("bob", scopes=[READ])
    conversation, _ = await store.create_conversation("bob")
    assert conversation.number == 1


@pytest.mark.parametrize("user_id", ["", "x" * 256, "a\0b", "\ud800"])
async def test_a_token_needs_a_user_that_can_be_stored(tokens: TokenStore, user_id: str) -> None:
    with pytest.raises(InvalidArgument):
        await tokens.create(user_id, scopes=[READ])
    for name in ("", "x" * 101, "a\0"):
        with pytest.raises(InvalidArgument):
            await tokens.create("alice", scopes=[READ], name=name)
