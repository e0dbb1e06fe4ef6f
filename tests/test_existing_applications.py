"""The backend of docs/existing-applications.md, as it stands there, on a database with an adopted users table."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
from fastapi import FastAPI

from chatledger.storage import ConversationStore
from chatledger.storage.adoption import adopt
from chatledger.storage.tokens import TokenStore
from tests.conftest import run_sql
from tests.host_application import HOSTS, install

PAGE = (Path(__file__).parent.parent / "docs" / "existing-applications.md").read_text()
SECRET = "a secret of the application, of 32 bytes"
HOST = HOSTS["uuid"]
ALICE, BOB = HOST.users


@pytest.fixture
def backend(database_url: str, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The page's code, run."""
    install(database_url, HOST)
    adopt(database_url, "public.users")
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("APP_SECRET", SECRET)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    scope: dict[str, Any] = {"__name__": "backend"}
    exec(code, scope)
    app = scope["app"]
    assert isinstance(app, FastAPI)
    return app


@pytest.fixture
async def http(backend: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with (
        backend.router.lifespan_context(backend),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(backend), base_url="http://backend") as client,
    ):
        yield client


def of(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {jwt.encode({'sub': user}, SECRET, algorithm='HS256')}"}


async def test_the_pages_backend_keeps_conversations_of_its_users_apart(http: httpx2.AsyncClient) -> None:
    made = await http.post("/conversations", params={"title": "weather"}, headers=of(ALICE))
    assert (made.status_code, made.json()) == (201, {"number": 1, "title": "weather"})
    said = {"role": "user", "content": "hello", "client_message_id": "1"}
    for repeated in (False, True):
        answer = await http.post("/conversations/1/messages", json=said, headers=of(ALICE))
        assert (answer.status_code, answer.json()) == (201, {"seq": 1, "deduplicated": repeated})
    answer = await http.post("/conversations/1/messages", json=said | {"content": "bye"}, headers=of(ALICE))
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_conflict")
    history = (await http.get("/conversations/1/messages", headers=of(ALICE))).json()
    assert history == {"messages": [{"seq": 1, "role": "user", "content": "hello"}], "earlier": 0}
    listed = (await http.get("/conversations", headers=of(ALICE))).json()
    assert listed == {"conversations": [{"number": 1, "title": "weather"}], "next_cursor": None}

    assert (await http.get("/conversations", headers=of(BOB))).json()["conversations"] == []
    refusals = [
        await http.get("/conversations/1/messages", headers=of(BOB)),
        await http.post("/conversations/1/messages", json=said, headers=of(BOB)),
    ]
    assert [(each.status_code, each.json()["code"]) for each in refusals] == [(404, "conversation_unavailable")] * 2


async def test_the_pages_backend_refuses_who_is_not_its_user_and_what_cannot_be_stored(
    http: httpx2.AsyncClient,
) -> None:
    for stranger in (HOST.stranger, "local", ALICE.upper()):
        answer = await http.post("/conversations", headers=of(stranger))
        assert (answer.status_code, answer.json()["code"]) == (403, "unknown_user")
    assert (await http.post("/conversations")).status_code == 401
    forged = jwt.encode({"sub": ALICE}, "x" * 32, algorithm="HS256")
    assert (await http.post("/conversations", headers={"Authorization": f"Bearer {forged}"})).status_code == 401
    await http.post("/conversations", headers=of(ALICE))
    answer = await http.post("/conversations/1/messages", json={"role": "user", "content": " "}, headers=of(ALICE))
    assert (answer.status_code, answer.json()["code"]) == (422, "content_empty")


async def test_who_leaves_the_pages_backend_by_a_mark_is_erased_with_the_tokens(
    http: httpx2.AsyncClient, store: ConversationStore, database_url: str
) -> None:
    for user in HOST.users:
        await http.post("/conversations", headers=of(user))
    _, text = await TokenStore(store).create(ALICE, scopes=["conversations:read"])
    assert (await http.post("/me/leave", headers=of(ALICE))).status_code == 204
    assert await TokenStore(store).find(text) is None
    users = await asyncio.to_thread(run_sql, database_url, "SELECT id FROM chatledger.users")
    assert [row["id"] for row in users] == [BOB]
    left = await asyncio.to_thread(run_sql, database_url, "SELECT FROM chatledger.conversations")
    assert len(left) == 1


def test_the_pages_statements_erase_a_user_and_give_users_back_to_chatledger(
    backend: FastAPI, database_url: str
) -> None:
    run_sql(database_url, f"INSERT INTO chatledger.users (id) VALUES ('{ALICE}'), ('{BOB}')")
    (delete,) = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    assert ALICE in delete
    run_sql(database_url, delete)
    assert [row["id"] for row in run_sql(database_url, "SELECT id FROM chatledger.users")] == [BOB]
    back = re.search(r"`(ALTER TABLE chatledger\.users .+?)`", PAGE)
    assert back is not None
    run_sql(database_url, back[1], "INSERT INTO chatledger.users (id) VALUES ('local')")
    run_sql(database_url, f"DELETE FROM public.users WHERE id = '{BOB}'")
    assert len(run_sql(database_url, "SELECT FROM chatledger.users")) == 2


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        (f"UPDATE public.users SET id = '{HOST.stranger}' WHERE id = '{ALICE}'", True),
        ("TRUNCATE public.users, public.tasks", True),
        ("DROP TABLE public.users, public.tasks", True),
        (f"UPDATE public.users SET email = 'other@example.com' WHERE id = '{ALICE}'", False),
        (f"UPDATE public.users SET id = '{HOST.stranger}' WHERE id = '{BOB}'", False),
        ("ALTER TABLE public.users RENAME TO people", False),
        ("ALTER TABLE public.users RENAME id TO uid", False),
    ],
)
def test_what_the_page_says_that_the_table_can_and_cannot_do(
    backend: FastAPI, database_url: str, statement: str, refused: bool
) -> None:
    run_sql(database_url, f"INSERT INTO chatledger.users (id) VALUES ('{ALICE}')", "DROP VIEW public.active_users")
    if refused:
        with pytest.raises(Exception, match=r"chatledger\.users|\"users\"|depend"):
            run_sql(database_url, statement)
    else:
        run_sql(database_url, statement)
    assert len(run_sql(database_url, "SELECT FROM chatledger.users")) == 1
