"""`chatledger token …`: a token is printed once and alone; what is made works, what is revoked does not."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest

from chatledger.storage import ConversationStore
from chatledger.storage.tokens import ApiToken, TokenStore
from tests.commands import Run
from tests.conftest import run_sql

SHAPE = re.compile(r"chatledger_([0-9a-f]{12})_([0-9a-f]{64})\n")


@pytest.fixture
def run(run: Run) -> Run:
    """Runs `chatledger token …`."""
    return partial(run, "token")


@pytest.fixture
def found(database_url: str) -> Callable[[str], ApiToken | None]:
    """What a server makes of a token."""

    async def find(text: str) -> ApiToken | None:
        async with ConversationStore.at(database_url) as store:
            tokens = TokenStore(store)
            token = await tokens.find(text.strip())
            await tokens.aclose()
            return token

    return lambda text: asyncio.run(find(text))


def test_a_token_is_printed_alone_once_and_stands_for_its_user(
    run: Run, found: Callable[[str], ApiToken | None]
) -> None:
    code, out, err = run("create", "--user", "alice")
    shape = SHAPE.fullmatch(out)
    assert code == 0
    assert shape is not None
    assert f"token {shape[1]} for 'alice': conversations:read, conversations:write; never expires" in err
    assert shape[2] not in err
    token = found(out)
    assert token is not None
    assert (token.user_id, token.scopes) == ("alice", ("conversations:read", "conversations:write"))
    for argv in (["list"], ["list", "--json"], ["revoke", shape[1]]):
        code, listed, err = run(*argv)
        assert code == 0
        assert shape[2] not in listed + err


def test_the_hint_about_the_setting_is_there_where_servers_would_not_take_the_token(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hint = "CHATLEDGER_AUTH_STATIC_TOKENS=true"
    assert hint in run("create", "--user", "alice")[2]
    monkeypatch.setenv("CHATLEDGER_AUTH_STATIC_TOKENS", "true")
    assert hint not in run("create", "--user", "alice")[2]
    monkeypatch.delenv("CHATLEDGER_AUTH_STATIC_TOKENS")
    monkeypatch.setenv("CHATLEDGER_AUTH_SECRET", "x" * 32)
    assert hint not in run("create", "--user", "alice")[2]
    monkeypatch.setenv("CHATLEDGER_AUTH_STATIC_TOKENS", "false")
    assert hint in run("create", "--user", "alice")[2]


def test_scopes_name_and_expiry_are_as_they_were_asked_for(run: Run) -> None:
    run(
        "create",
        "--user",
        "a",
        "--scope",
        "delete",
        "--scope",
        "conversations:read",
        "--scope",
        "read",
        "--name",
        "x y",
    )
    run("create", "--user", "b", "--expires", "2099-12-31")
    run("create", "--user", "c", "--expires", "2099-12-31T23:00:00+01:00")
    run("create", "--user", "d", "--expires", "36h")
    a, b, c, d = json.loads(run("list", "--json")[1])
    assert a["scopes"] == ["conversations:delete", "conversations:read"]
    assert (a["name"], a.keys() & {"expires_at", "last_used_at"}) == ("x y", set())
    assert (b["expires_at"], c["expires_at"]) == ("2099-12-31T00:00:00Z", "2099-12-31T22:00:00Z")
    hours = (datetime.fromisoformat(d["expires_at"]) - datetime.now(UTC)).total_seconds() / 3600
    assert 35.9 < hours <= 36


def test_a_list_is_a_table_that_no_name_can_break(run: Run) -> None:
    assert run("list") == (0, "", "chatledger: there are no tokens\n")
    run("create", "--user", "alice", "--name", "evil\x1b[2J\rname\u202e")
    run("create", "--user", "bob", "--scope", "read")
    code, out, err = run("list")
    heads, alice, bob = out.splitlines()
    assert (code, err) == (0, "")
    assert re.fullmatch(r"id +user +scopes +created +expires +last used +name", heads)
    assert re.fullmatch(r"[0-9a-f]{12}  alice  read,write +\S+Z +never +never +evil\?\[2J\?name\?", alice)
    assert re.fullmatch(r"[0-9a-f]{12}  bob    read        \S+Z +never +never", bob)
    assert run("list", "--user", "bob")[1].splitlines()[1].split()[1] == "bob"
    assert json.loads(run("list", "--user", "nobody", "--json")[1]) == []


def test_a_token_ends_by_its_id_or_by_itself(run: Run, found: Callable[[str], ApiToken | None]) -> None:
    first, second = run("create", "--user", "alice")[1], run("create", "--user", "alice")[1]
    code, out, err = run("revoke", first.split("_")[1])
    assert (code, out) == (0, "")
    assert "of 'alice'" in err
    assert run("revoke", second.strip())[0] == 0
    assert (found(first), found(second)) == (None, None)
    code, out, err = run("revoke", first.split("_")[1])
    assert (code, out) == (1, "")
    assert "chatledger token list" in err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["create"],
        ["create", "--user", "a", "--scope", "all"],
        ["create", "--user", "a", "--scope", "conversations:*"],
        ["create", "--user", "a", "--scope", "Read"],
        ["create", "--user", "a", "--expires", "soon"],
        ["create", "--user", "a", "--expires", "2001-01-01"],
        ["create", "--user", "a", "--expires", "0d"],
        ["create", "--user", "a", "--expires", "-1d"],
        ["create", "--user", "a", "--expires", "9999-12-31T23:59:59-10:00"],
        ["create", "--user", "a", "--expires", "9999999d"],
        ["revoke"],
        ["revoke", "x"],
        ["revoke", "0123456789abcdef"],
        ["revoke", "' OR true"],
    ],
)
def test_a_command_that_is_not_understood_makes_nothing(run: Run, database_url: str, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: chatledger token")
    assert run_sql(database_url, "SELECT 1 FROM chatledger.api_tokens") == []


@pytest.mark.parametrize("argv", [["--user", ""], ["--user", "x" * 256], ["--user", "a", "--name", "x" * 101]])
def test_what_cannot_be_stored_is_told_with_its_bounds(run: Run, database_url: str, argv: list[str]) -> None:
    code, out, err = run("create", *argv)
    assert (code, out) == (1, "")
    assert re.fullmatch(r"chatledger: \w+ has \d+ characters; it must have between 1 and \d+\n", err)
    assert run_sql(database_url, "SELECT 1 FROM chatledger.users") == []
