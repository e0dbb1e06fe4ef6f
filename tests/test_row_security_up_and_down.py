"""Row security put up and taken down: by a hosted role, by the command, by its SQL; and what the doctor says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from sqlalchemy import make_url

from chatledger.server.cli import main
from chatledger.storage import ConversationStore, row_security, schema
from chatledger.storage.adoption import adopt
from chatledger.storage.diagnosis import Diagnosis, diagnose
from chatledger.storage.embedded import temporary
from chatledger.storage.errors import Unavailable, UnknownUser
from chatledger.storage.source import ExternalDatabase
from chatledger.storage.tokens import TokenStore
from tests.conftest import database_at, run_sql
from tests.driver import connect
from tests.fenced_database import as_app, log_in_role, put_up


@pytest.fixture
def hosted_url() -> Iterator[str]:
    """A migrated database as a hosting service gives it: its owner may create roles, and is no superuser."""
    with temporary(fsync="off", full_page_writes="off") as server:
        run_sql(server, "CREATE ROLE host LOGIN CREATEROLE PASSWORD 'host'", "CREATE DATABASE hosted OWNER host")
        place = make_url(database_at(server, "hosted")).set(username="host", password="host")
        url = place.render_as_string(hide_password=False)
        schema.migrate(url)
        yield url


async def test_it_is_put_up_and_taken_down_by_a_hosted_role_under_a_server_that_runs(hosted_url: str) -> None:
    async with ConversationStore.at(hosted_url) as store:
        await store.create_conversation("alice", title="before")
        await asyncio.to_thread(put_up, hosted_url)
        (listed,) = (await store.list_conversations("alice")).conversations
        assert listed.conversation.title == "before"
        await store.create_conversation("alice", title="behind it")
        assert (await store.list_conversations("bob")).conversations == []
        opened = store.database._opened_already()
        assert opened is not None
        assert opened.state.fenced
        await TokenStore(store).create("bob", scopes=["conversations:read"])
        assert [token.user_id for token in await TokenStore(store).list()] == ["bob"], "who migrates may list all"
        async with ConversationStore.at(as_app(hosted_url)) as app:
            assert len((await app.list_conversations("alice")).conversations) == 2
        assert await asyncio.to_thread(schema.migrate, hosted_url) == (schema.REVISION, schema.REVISION)
        await asyncio.to_thread(partial(schema.migrate, hosted_url, then=row_security.take_down))
        assert len((await store.list_conversations("alice")).conversations) == 2
    async with ConversationStore.at(as_app(hosted_url)) as app:
        with pytest.raises(Unavailable, match="privilege"):
            await app.list_conversations("alice")


async def test_an_application_s_users_table_is_adopted_behind_it(hosted_url: str) -> None:
    await asyncio.to_thread(put_up, hosted_url)
    async with ConversationStore.at(as_app(hosted_url)) as store:
        await store.create_conversation("7")
    host = ("CREATE TABLE public.users (id integer PRIMARY KEY)", "INSERT INTO public.users VALUES (7), (8)")
    await asyncio.to_thread(run_sql, hosted_url, *host)
    await asyncio.to_thread(adopt, hosted_url, "public.users")
    async with ConversationStore.at(as_app(hosted_url)) as store:
        await store.create_conversation("8")
        with pytest.raises(UnknownUser):
            await store.create_conversation("9")
        await asyncio.to_thread(run_sql, hosted_url, "DELETE FROM public.users WHERE id = 7")
        assert (await store.list_conversations("7")).conversations == []
        assert len((await store.list_conversations("8")).conversations) == 1


async def test_the_doctor_tells_whether_it_is_on_and_whether_the_role_passes_it(database_url: str) -> None:
    async def told(url: str) -> Diagnosis:
        return await diagnose(ExternalDatabase(url), "here")

    assert (await told(database_url)).row_security is False
    await asyncio.to_thread(put_up, database_url)
    passed, held = await told(database_url), await told(as_app(database_url))
    assert (passed.row_security, held.row_security) == (False, True)
    assert any("passes it" in problem.what for problem in passed.problems)
    assert not any("row security" in problem.what for problem in held.problems)
    assert any("row security is on" in remark for remark in held.remarks)
    await asyncio.to_thread(run_sql, database_url, "ALTER TABLE chatledger.users NO FORCE ROW LEVEL SECURITY")
    assert any("not for users" in problem.what for problem in (await told(as_app(database_url))).problems)


def test_putting_it_up_twice_changes_nothing_and_taking_it_down_leaves_no_trace(database_url: str) -> None:
    tables = (
        "SELECT relname::text, relrowsecurity, relforcerowsecurity, relacl::text FROM pg_class "
        "WHERE relnamespace = 'chatledger'::regnamespace AND relkind = 'r' ORDER BY 1"
    )
    policies = "SELECT tablename::text, policyname::text, roles::text, qual, with_check FROM pg_policies ORDER BY 1, 2"

    def seen() -> list[Any]:
        return [tuple(row) for sql in (tables, policies) for row in run_sql(database_url, sql)]

    put_up(database_url)
    once = seen()
    put_up(database_url)
    assert seen() == once
    assert schema.migrate(database_url, "base") == (schema.REVISION, None)
    schema.migrate(database_url)
    put_up(database_url)
    assert seen() == once
    schema.migrate(database_url, then=row_security.take_down)
    assert not any(fenced or forced for _, fenced, forced, _ in seen())  # and no policy: those have five columns
    assert row_security.APP not in str(seen())


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_puts_it_up_and_takes_it_down(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["migrate", *arguments])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    up = "SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE oid = 'chatledger.messages'::regclass"
    monkeypatch.setenv("CHATLEDGER_DATABASE_URL", database_url)
    for _ in range(2):
        code, told = command("--with-rls")
        assert (code, "chatledger_app" in told) == (0, True)
        assert run_sql(database_url, up)[0][0] is True
    assert command("--with-rls", "--check")[0] == 2
    assert command("--with-rls", "--to", "base")[0] == 2
    assert command()[0] == 0
    assert run_sql(database_url, up)[0][0] is True
    assert command("--without-rls")[0] == 0
    assert run_sql(database_url, up)[0][0] is False
    monkeypatch.delenv("CHATLEDGER_DATABASE_URL")
    code, told = command("--with-rls")
    assert (code, "superuser" in told) == (2, True)


def test_the_printed_sql_puts_it_up_as_well(empty_database_url: str) -> None:
    async def run() -> None:
        connection = await connect(empty_database_url)
        await connection.execute(schema.migration_sql(with_row_security=True))
        await connection.close()
        await asyncio.to_thread(log_in_role, empty_database_url)
        async with ConversationStore.at(as_app(empty_database_url)) as store:
            await store.create_conversation("alice")
            opened = store.database._opened_already()
            assert opened is not None
            assert opened.state.fenced

    asyncio.run(run())
