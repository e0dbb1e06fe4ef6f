"""The schema changes while calls are made, and a backup gives back what was in it, by digest."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config

from chatledger.storage import ConversationStore, NewMessage, schema
from chatledger.storage.embedded import EmbeddedPostgres
from chatledger.storage.errors import SchemaOutOfDate, StorageError, Unavailable
from tests import dump
from tests.conftest import run_sql
from tests.driver import connect
from tests.patience import PATIENCE
from tests.postgres_processes import copied_root, empty_root

LONGEST_WAIT = 10.0  # seconds that a migration may keep a call waiting: five times as long as it waits for a lock
HELLO = NewMessage(role="user", content="hello")

SECOND = """
from alembic import op
import sqlalchemy as sa

revision, down_revision, branch_labels, depends_on = "0002", "0001", None, None


def upgrade():
    op.add_column("messages", sa.Column("note", sa.Text()), schema="chatledger")
    op.create_index("conversations_title", "conversations", ["user_id", "title"], schema="chatledger")


def downgrade():
    op.drop_index("conversations_title", "conversations", schema="chatledger")
    op.drop_column("messages", "note", schema="chatledger")
"""


@pytest.fixture
def second_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The migrations of a later version, which has one more of them. The code that runs stays the present one."""
    (tmp_path / "versions").mkdir()
    (tmp_path / "versions" / "0002_add_a_note.py").write_text(SECOND)
    present = schema._config

    def later(*args: Any) -> Config:
        config = present(*args)
        config.set_main_option("path_separator", "newline")
        config.set_main_option("version_locations", f"chatledger.migrations:versions\n{tmp_path / 'versions'}")
        return config

    monkeypatch.setattr(schema, "_config", later)


class Traffic:
    """Writers that append one message after the other, each until it is acknowledged, and note what became of it."""

    def __init__(self, store: ConversationStore) -> None:
        self.store = store
        self.acknowledged: list[tuple[str, str]] = []
        self.refusals: dict[str, int] = {}
        self.longest = 0.0

    async def write(self, user: str, writer: int) -> None:
        number = 0
        while True:
            key = f"{writer}-{number}"
            began = time.monotonic()
            try:
                talk = await self.store.get_or_create_conversation(user)
                await self.store.append_message(user, talk.id, replace(HELLO, content=key, client_message_id=key))
            except StorageError as exc:
                self.refusals[exc.code] = self.refusals.get(exc.code, 0) + 1
            else:
                self.acknowledged.append((user, key))
                number += 1
            self.longest = max(self.longest, time.monotonic() - began)

    async def more(self, number: int = 40) -> None:
        """Return when so many more were acknowledged."""
        wanted = len(self.acknowledged) + number
        async with asyncio.timeout(PATIENCE):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.001)

    async def check(self) -> None:
        """All that was acknowledged is there, once, in order and without a gap."""
        for user in ("alice", "bob"):
            stored: list[str] = []
            after: int | None = 0
            while after is not None:
                window = await self.store.load_history(user, 1, after_seq=after, limit=1000, max_tokens=200_000)
                assert [each.seq for each in window.messages] == list(
                    range(after + 1, after + 1 + len(window.messages))
                )
                stored += [each.content for each in window.messages]
                after = window.messages[-1].seq if window.omitted_after else None
            assert len(stored) == len(set(stored))
            assert {key for owner, key in self.acknowledged if owner == user} <= set(stored)


@contextlib.asynccontextmanager
async def traffic(url: str) -> AsyncIterator[Traffic]:
    async with ConversationStore.at(url) as store:
        going = Traffic(store)
        writers = [asyncio.create_task(going.write(("alice", "bob")[n % 2], n)) for n in range(6)]
        try:
            yield going
        finally:
            for writer in writers:
                writer.cancel()
            await asyncio.wait(writers)
        await going.check()


async def migrate(url: str, revision: str = "head") -> tuple[str | None, str | None]:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.to_thread(schema.migrate, url, revision)


async def test_up_and_down_under_appends_nothing_is_lost_refused_or_kept_waiting(
    database_url: str, second_revision: None
) -> None:
    async with traffic(database_url) as going:
        for _ in range(3):
            await going.more()
            assert await migrate(database_url) == ("0001", "0002")
            await going.more()
            assert await migrate(database_url, "0001") == ("0002", "0001")
        await going.more()
    assert going.refusals == {}
    assert going.longest < LONGEST_WAIT


async def test_a_migration_that_waits_in_a_circle_with_a_call_is_begun_again(
    database_url: str, second_revision: None
) -> None:
    blocked = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                    AND query LIKE 'CREATE INDEX%'"""
    writer, watcher = await connect(database_url), await connect(database_url)
    try:
        begun = writer.transaction()
        await begun.start()
        await writer.execute("LOCK TABLE chatledger.conversations IN ROW EXCLUSIVE MODE")
        migrating = asyncio.create_task(migrate(database_url))
        async with asyncio.timeout(PATIENCE):
            while not await watcher.fetchval(blocked):
                assert not migrating.done()
                await asyncio.sleep(0.01)
        await writer.execute("LOCK TABLE chatledger.messages IN ROW EXCLUSIVE MODE")  # the migration has that one
        await begun.commit()
        assert await migrating == ("0001", "0002")
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        async with asyncio.timeout(PATIENCE):
            while not await watcher.fetchval(deadlocks):
                await asyncio.sleep(0.1)
    finally:
        await writer.close()
        await watcher.close()


async def test_a_migration_that_waits_for_a_reader_makes_room_for_calls_again_and_again(
    database_url: str, second_revision: None
) -> None:
    waiting = """SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                    AND query LIKE 'ALTER TABLE%'"""
    reader, watcher = await connect(database_url), await connect(database_url)
    try:
        async with traffic(database_url) as going:
            await going.more()
            begun = reader.transaction()
            await begun.start()
            await reader.fetch("SELECT count(*) FROM chatledger.messages")  # as a backup or an export does
            migrating = asyncio.create_task(migrate(database_url))
            attempts: set[int] = set()
            async with asyncio.timeout(PATIENCE):
                while len(attempts) < 3:
                    attempts |= {row["pid"] for row in await watcher.fetch(waiting)}
                    assert not migrating.done()
            await begun.commit()
            assert await migrating == ("0001", "0002")
            await going.more()
        assert going.refusals == {}
        assert going.longest < LONGEST_WAIT
    finally:
        await reader.close()
        await watcher.close()


async def test_a_migration_that_gets_no_lock_gives_up_in_a_sentence_and_changes_nothing(
    database_url: str, second_revision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_PATIENCE", 0.0)
    monkeypatch.setattr(schema, "_TABLE_LOCK_TIMEOUT", "10ms")
    reader = await connect(database_url)
    try:
        async with reader.transaction():
            await reader.fetch("SELECT count(*) FROM chatledger.messages")
            with pytest.raises(Unavailable, match="something reads or changes the tables and does not end"):
                await migrate(database_url)
        assert await migrate(database_url) == ("0001", "0002")
    finally:
        await reader.close()


async def test_the_first_migration_ends_the_refusals_of_a_server_that_was_there_before_it(
    empty_database_url: str,
) -> None:
    async with traffic(empty_database_url) as going:
        async with asyncio.timeout(PATIENCE):
            while not going.refusals:
                await asyncio.sleep(0.001)
        answers = await asyncio.gather(*(migrate(empty_database_url) for _ in range(3)))
        assert sorted(map(str, answers)) == ["('0001', '0001')", "('0001', '0001')", "(None, '0001')"]
        await going.more()
    assert going.refusals.keys() <= {"schema_out_of_date", "unavailable"}


async def test_a_server_whose_tables_are_dropped_and_made_anew_refuses_meanwhile_and_goes_on(database_url: str) -> None:
    async with ConversationStore.at(database_url) as store:
        await store.create_conversation("alice")
        assert await migrate(database_url, "base") == ("0001", None)
        with pytest.raises(SchemaOutOfDate, match="chatledger migrate"):
            await store.create_conversation("alice")
        assert await migrate(database_url) == (None, "0001")
        assert (await store.create_conversation("alice"))[0].number == 1


async def test_old_code_refuses_a_newer_schema_and_names_what_to_do_and_new_code_takes_it(
    database_url: str, second_revision: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(database_url)
    async with ConversationStore.at(database_url) as old:
        with pytest.raises(SchemaOutOfDate, match=r"revision 0002, newer than the 0001 of this version; upgrade"):
            await old.create_conversation("alice")
    monkeypatch.setattr(schema, "REVISION", "0002")
    async with ConversationStore.at(database_url) as new:
        await new.create_conversation("alice")
        await migrate(database_url, "0001")
    async with ConversationStore.at(database_url) as new:
        with pytest.raises(SchemaOutOfDate, match=r"revision 0001, this version needs 0002; run `chatledger migrate`"):
            await new.create_conversation("alice")


# ---- backup and restore ----------------------------------------------------------------------------------------------


@pytest.fixture
def root() -> Iterator[Path]:
    with copied_root() as copied:
        yield copied


@contextlib.contextmanager
def started(root: Path) -> Iterator[str]:
    embedded = EmbeddedPostgres(root, linger=0)
    try:
        yield embedded.start()
    finally:
        embedded.release()
        embedded.stop()


async def fill(url: str) -> str:
    """Conversations of two users with a bit of everything; a cursor of alice's list."""
    async with ConversationStore.at(url) as store:
        for user in ("alice", "bob"):
            for number in range(1, 5):
                talk, _ = await store.create_conversation(user, title=f"talk {number}", key=f"k{number}")
                said = [replace(HELLO, content=f"{user} 你好 \\ \t \r\n 🎉 {number} {n}") for n in range(20)]
                called = NewMessage(role="assistant", tool_calls=[{"id": "1", "input": {"a": None}}])
                await store.append_messages(user, talk.id, [*said, called])
        cursor = (await store.list_conversations("alice", limit=1)).next_cursor
        assert cursor is not None
        return cursor


async def use(url: str, cursor: str) -> None:
    """A restored database is one to go on with: the same cursors, the next seq, the search."""
    async with ConversationStore.at(url) as store:
        page = await store.list_conversations("alice", cursor=cursor)
        assert [each.conversation.number for each in page.conversations] == [3, 2, 1]
        assert (await store.append_message("alice", 4, HELLO)).seq == 22
        assert len((await store.search_messages("bob", "你好 4")).hits) > 0
        assert (await store.create_conversation("bob"))[0].number == 5


def tables(url: str) -> list[str]:
    """Every row that is the store's, whatever order it is kept in."""
    names = ("users", "conversations", "messages", "api_tokens", "erasures", "signing_keys", "alembic_version")
    return sorted(
        str(row["told"]) for name in names for row in run_sql(url, f"SELECT t::text AS told FROM chatledger.{name} t")
    )


def test_a_dump_gives_back_every_message_by_digest_and_every_row(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "chatledger.dump"
    with started(root) as url:
        schema.migrate(url)
        cursor = asyncio.run(fill(url))
        dump.run("pg_dump", "--format=custom", f"--file={file}", url)
        kept, every = dump.digest(url), tables(url)
        assert kept[0] == 168
        run_sql(url, "UPDATE chatledger.messages SET content = content || '.' WHERE user_id = 'bob' AND seq = 7")
        assert dump.digest(url) != kept, "a single character more is another digest"
    with empty_root() as other, started(other) as url:
        dump.run("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={url}", file)
        assert dump.digest(url) == kept
        assert tables(url) == every
        asyncio.run(use(url, cursor))


def test_a_copy_of_the_stopped_database_is_one(root: Path) -> None:
    with started(root) as url:
        schema.migrate(url)
        cursor = asyncio.run(fill(url))
        kept = dump.digest(url)
    with empty_root() as other:
        subprocess.run(["cp", "-a", root / "pg18", other], check=True)
        with started(other) as url:
            assert dump.digest(url) == kept
            asyncio.run(use(url, cursor))
        shutil.rmtree(other / "pg18")
