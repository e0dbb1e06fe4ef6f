"""Nothing of an erased user is left in the database, as whole dumps show; no older backup brings it back."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chatledger.storage import ConversationStore, NewMessage, erasures, schema
from chatledger.storage.bulk import BulkStore
from chatledger.storage.embedded import EmbeddedPostgres
from chatledger.storage.erasures import Erasure, ErasureList, Returned
from chatledger.storage.records import Holdings
from chatledger.storage.tokens import TokenStore
from tests import dump
from tests.commands import Run
from tests.conftest import database_at, run_sql
from tests.engine_under_test import on_nodes
from tests.postgres_processes import copied_root


def unique_words(number: int = 50) -> list[str]:
    """Words that are nowhere else, long enough that they are not there by chance."""
    return [f"w{secrets.token_hex(8)}" for _ in range(number)]


async def tell(store: ConversationStore, user: str, words: list[str]) -> None:
    """Store the words wherever a user's words can go."""
    title, key, metadata, label, name, call, client, part, about, *said = words
    made, _ = await store.create_conversation(user, title=title, key=key, metadata={"a": {"b": metadata}})
    messages = [
        NewMessage(
            role="assistant", name=name, tool_calls=[{"id": call}], client_message_id=client, metadata={about: 1}
        ),
        NewMessage(role="tool", tool_call_id=call, content="x", parts=[{"type": "text", "text": part}]),
        *(NewMessage(role="user", content=f"I said {word}, not more") for word in said),
    ]
    await store.append_messages(user, made.id, messages)
    await store.fork_conversation(user, made.id)
    await TokenStore(store).create(user, scopes=["conversations:read"], name=label)


async def found(store: ConversationStore, user: str, word: str) -> int:
    return len((await store.search_messages(user, word)).hits)


def on(url: str, work: Callable[[ConversationStore], Any]) -> Any:
    """What `work` gives for a store at `url`, opened for it alone."""

    async def run() -> Any:
        async with ConversationStore.at(url) as store:
            return await work(store)

    return asyncio.run(run())


def test_fifty_words_of_an_erased_user_are_in_no_table(run: Run, database_url: str) -> None:
    user, words, theirs = f"u{secrets.token_hex(8)}", unique_words(), unique_words()
    on(database_url, lambda store: tell(store, user, words))
    on(database_url, lambda store: tell(store, "bob", theirs))
    nodes = on_nodes(database_url)
    statistics = "SELECT s::text AS told FROM pg_statistic s"
    sampled = "".join(row["told"] for node in nodes for row in run_sql(node, "ANALYZE", statistics))
    before = "\n".join(map(dump.rows, nodes))
    assert [word for word in [user, *words, *theirs] if word not in before] == []
    assert any(word in sampled for word in words), "otherwise this shows nothing about statistics"

    code, out, _ = run("user", "erase", user, "--yes")
    assert (code, out) == (0, f"erased '{user}': 2 conversations, 86 messages\n")

    after = "\n".join(map(dump.rows, nodes))
    assert [word for word in [user, *words] if word in after] == []
    assert [word for word in theirs if word not in after] == []
    printed = dump.run("pg_dump", "--dbname", database_url).decode()
    assert [word for word in [user, *words] if word in printed] == []
    assert "COPY chatledger.messages" in printed
    for word in words[-5:]:
        assert on(database_url, partial(found, user=user, word=word)) == 0
    assert on(database_url, lambda store: found(store, "bob", theirs[-1])) == 2, "in the conversation and in its fork"


def test_the_last_user_of_a_database_leaves_no_sample_either(run: Run, database_url: str) -> None:
    words = unique_words()
    on(database_url, lambda store: tell(store, "alice", words))
    version = "SELECT current_setting('server_version_num')::integer AS version"
    nodes = on_nodes(database_url)
    server, *_ = [run_sql(node, "ANALYZE", version)[0] for node in nodes]
    assert run("user", "erase", "alice", "--yes")[0] == 0
    after = "\n".join(map(dump.rows, nodes))
    left = [word for word in words if word in after]
    assert bool(left) == (server["version"] < 180000), "what Postgres 15 to 17 cannot, the documentation says"


def test_after_a_full_vacuum_the_words_are_in_no_file_of_the_database(tmp_path: Path) -> None:
    words, theirs = unique_words(), unique_words()
    with copied_root() as root:
        embedded = EmbeddedPostgres(root, linger=0)
        url = embedded.start()

        def bytes_of_files() -> bytes:
            run_sql(url, "CHECKPOINT")
            files = [file for file in (embedded.data_directory / "base").rglob("*") if file.is_file()]
            return b"".join(file.read_bytes() for file in files)

        try:
            schema.migrate(url)
            on(url, lambda store: tell(store, "alice", words))
            on(url, lambda store: tell(store, "bob", theirs))
            before = bytes_of_files()
            assert [word for word in words if word.encode() not in before] == []
            on(url, lambda store: BulkStore(store).erase_user("alice"))
            on(url, lambda store: ErasureList(store).forget())
            run_sql(url, "VACUUM FULL")
            left = bytes_of_files()
        finally:
            embedded.release()
    assert [word for word in words if word.encode() in left] == []
    assert [word for word in theirs if word.encode() not in left] == []


async def test_an_erasure_is_listed_by_a_digest_that_only_this_database_can_make(
    store: ConversationStore, database_url: str
) -> None:
    bulk, listed = BulkStore(store), ErasureList(store)
    for user in ("alice", "bob"):
        await tell(store, user, unique_words())
    assert await listed.read() == []
    assert await bulk.erase_user("nobody") is None
    assert await listed.read() == [], "who was never here is not noted"
    before = datetime.now(UTC) - timedelta(minutes=5)
    assert await bulk.erase_user("alice") == Holdings(2, 86)
    (only,) = await listed.read()
    secret = await store.database.cursor_secret()
    assert only.user_digest == erasures.user_digest(secret, "alice") != erasures.user_digest(b"x" * 32, "alice")
    assert (only.conversations, only.messages, only.erased_at > before) == (2, 86, True)


@pytest.fixture
def backup_of(postgres_url: str) -> Iterator[Callable[[str], str]]:
    """Makes copies of databases as they are at that moment, as a backup that is restored under another name."""
    made: list[str] = []

    def copy(url: str) -> str:
        made.append(f"chatledger_backup_{secrets.token_hex(4)}")
        run_sql(postgres_url, f"CREATE DATABASE {made[-1]} TEMPLATE {url.rpartition('/')[2].partition('?')[0]}")
        return database_at(postgres_url, made[-1])

    yield copy
    for name in made:
        run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_who_was_erased_after_a_backup_is_gone_again_after_it_was_restored(
    run: Run, database_url: str, backup_of: Callable[[str], str], tmp_path: Path
) -> None:
    words, theirs, listing = unique_words(), unique_words(), tmp_path / "erasures.jsonl"
    on(database_url, lambda store: tell(store, "gone before", unique_words()))
    assert run("user", "erase", "gone before", "--yes")[0] == 0
    on(database_url, lambda store: tell(store, "alice", words))
    on(database_url, lambda store: tell(store, "gone before", theirs))  # is back, and stays
    restored = backup_of(database_url)
    on(database_url, lambda store: tell(store, "came later", unique_words()))
    for user in ("alice", "came later"):
        assert run("user", "erase", user, "--yes")[0] == 0
    code, out, err = run("user", "erasures", "-o", listing)
    assert (code, out, err) == (0, "", "3 erasures\n")
    assert "alice" not in listing.read_text()

    assert words[-1] in dump.rows(restored)
    code, out, err = run("user", "replay-erasures", listing, at=restored)
    assert (code, out) == (0, "1 users of this database were erased after it was backed up\n")
    assert err == "nothing was changed; with --yes they are erased again\n"
    assert words[-1] in dump.rows(restored)

    code, out, err = run("user", "replay-erasures", listing, "--yes", at=restored)
    assert (code, out, err) == (0, "erased 1 users again: 2 conversations, 86 messages\n", "")
    after = dump.rows(restored)
    assert [word for word in ["alice", *words] if word in after] == []
    assert [word for word in ["gone before", *theirs] if word not in after] == []
    assert run("user", "erasures", at=restored)[1] == listing.read_text(), "the list is whole there, too"

    on(restored, lambda store: tell(store, "alice", unique_words()))
    code, out, err = run("user", "replay-erasures", listing, "--yes", at=restored)
    assert (code, out) == (0, "erased 0 users again: 0 conversations, 0 messages\n"), "who comes back is not erased"


def test_a_user_who_came_after_the_erasure_is_not_what_was_erased(database_url: str) -> None:
    async def work(store: ConversationStore) -> list[Returned]:
        await store.create_conversation("alice")
        digest = erasures.user_digest(await store.database.cursor_secret(), "alice")
        listed = [Erasure(digest, datetime(2020, 1, 1, tzinfo=UTC), 1, 1)]
        found = [each async for each in ErasureList(store).returned(listed)]
        assert await ErasureList(store).replay(Returned("alice", listed)) == Holdings(0, 0)
        assert await BulkStore(store).count("alice") == Holdings(1, 0)
        return found

    assert on(database_url, work) == []


async def test_users_are_found_over_any_number_of_pages(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasures, "READ_USERS", 2)
    monkeypatch.setattr(erasures, "ADD_ERASURES", 2)
    secret, later = await store.database.cursor_secret(), datetime.now(UTC) + timedelta(days=1)
    users = [f"user-{number}" for number in range(5)]
    for user in users:
        await store.create_conversation(user)
    listed = [Erasure(erasures.user_digest(secret, user), later, 1, 0) for user in users]
    assert [each.user_id async for each in ErasureList(store).returned(listed)] == users
    assert await ErasureList(store).add(listed) == 5
    assert await ErasureList(store).add(listed) == 0
    assert [each.user_id async for each in ErasureList(store).returned(listed)] == []


HEAD = {"erasures_of": "0" * 16}
ENTRY: dict[str, Any] = {
    "user_digest": "0" * 64, "erased_at": "2026-01-01T00:00:00+00:00", "conversations": 1, "messages": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "is not a list that `chatledger user erasures` wrote: it is empty"),
        (["not JSON"], "line 1 is not one of it"),
        ([ENTRY], "line 1 is not one of it"),
        ([HEAD, ENTRY | {"user_digest": "00"}], "line 2 is not one of it"),
        ([HEAD, ENTRY, ENTRY | {"erased_at": "2026-01-01"}], "line 3 is not one of it"),
        ([HEAD, ENTRY | {"messages": None}], "line 2 is not one of it"),
        ([HEAD, [1]], "line 2 is not one of it"),
        ([HEAD, ENTRY], "the list is of another database: the users in it cannot be known here"),
    ],
)
def test_what_is_no_list_of_this_database_is_refused_in_a_sentence(
    lines: list[Any], told: str, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "list"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    code, out, err = run("user", "replay-erasures", path, "--yes")
    assert (code, out) == (1, "")
    assert err.startswith("chatledger: ")
    assert err.endswith(f"{told}\n")


def test_a_list_that_is_not_there_is_told(run: Run, tmp_path: Path) -> None:
    code, _, err = run("user", "replay-erasures", tmp_path / "none")
    assert code == 1
    assert "cannot be read: No such file or directory" in err
