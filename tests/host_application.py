"""An application of somebody else's, with a users table, in the database that chatledger is put into."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from chatledger.storage import ConversationStore
from chatledger.storage.adoption import UsersTableRefused, adopt
from chatledger.storage.embedded.cluster import binaries
from tests.conftest import run_sql
from tests.patience import PATIENCE
from tests.test_schema import described


class Host(NamedTuple):
    """How an application may know its users; the ids are as its tokens would say them."""

    type: str
    users: tuple[str, str]
    stranger: str
    not_keys: tuple[str, ...]
    """Texts that are no key, or not its canonical text: some of them are casts away from the first user."""


def uuid(last: str) -> str:
    return f"5b1c0000-aaaa-4000-8000-{last:>012}"


_NUMBERS = (
    "+7",
    "07",
    " 7",
    "7 ",
    "7\n",
    "7.0",
    "7e0",
    "0x7",
    "0b111",
    "7_0",
    "-0",
    "--7",
    "٧",
    "seven",
    "local",
    "1" * 255,
)
HOSTS = {
    "uuid": Host(
        "uuid",
        (uuid("a1"), uuid("b2")),
        uuid("c3"),
        (
            uuid("a1").upper(),
            uuid("A1"),
            f"{{{uuid('a1')}}}",
            uuid("a1").replace("-", ""),
            f"urn:uuid:{uuid('a1')}",
            uuid("a1") + "\n",
            " " + uuid("a1"),
            "local",
            "7",
        ),
    ),
    "integer": Host("integer", ("7", "-2147483648"), "8", (*_NUMBERS, "2147483648", "-2147483649", "99999999999")),
    "bigint": Host(
        "bigint",
        ("7", "9223372036854775807"),
        "2147483648",
        (*_NUMBERS, "9223372036854775808", "-9223372036854775809"),
    ),
    "text": Host("text", ("alice", "Bär 界 'x' \\ \" {n} %s"), "mallory", ("Alice", "alice ", " alice", "ALICE")),
    "varchar": Host(
        "character varying(8)", ("alice", "x" * 8), "mallory", ("Alice", "alice ", "x" * 9, "x" * 8 + " ", "x" * 255)
    ),
}
DDL = (
    "CREATE TABLE public.users (id {type} PRIMARY KEY, email text UNIQUE NOT NULL, deleted_at timestamptz)",
    "CREATE TABLE public.tasks (id bigserial PRIMARY KEY, user_id {type} NOT NULL REFERENCES public.users (id))",
    "CREATE TABLE public.conversations (id integer PRIMARY KEY, title text)",
    "CREATE VIEW public.active_users AS SELECT * FROM public.users WHERE deleted_at IS NULL",
    "INSERT INTO public.conversations VALUES (7, 'theirs')",
)


def install(url: str, host: Host) -> None:
    """Make the application's tables, with its two users."""
    add = [
        f"INSERT INTO public.users (id, email) VALUES ({quoted(user)}, 'user{place}@example.com')"
        for place, user in enumerate(host.users)
    ]
    run_sql(url, *(statement.format(type=host.type) for statement in DDL), *add)


def quoted(text: str) -> str:
    """As a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def dump(url: str, schema: str = "public") -> str:
    """What `pg_dump` writes of a schema: definitions, rights and rows."""
    command = [str(Path(binaries()[0]) / "pg_dump"), f"--schema={schema}", f"--dbname={url}"]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    # Recent versions write a random word at the beginning and at the end.
    return "\n".join(line for line in done.stdout.splitlines() if "restrict " not in line[:12])


def store_as(url: str, *users: str) -> None:
    """Have each user store a conversation."""

    async def store() -> None:
        async with ConversationStore.at(url) as opened:
            for user in users:
                await opened.create_conversation(user)

    asyncio.run(store())


def refusal(url: str, name: str) -> str:
    """The sentence by which a table is refused, after which everything is as it was."""
    before = described(url), dump(url)
    with pytest.raises(UsersTableRefused) as refused:
        adopt(url, name)
    assert (described(url), dump(url)) == before
    return str(refused.value)
