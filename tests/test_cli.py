"""The commands: what they say, where they say it, and with which exit code they end. No password is ever among it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from chatledger.server import settings
from chatledger.server.cli import main
from chatledger.storage.embedded import EmbeddedPostgres
from chatledger.storage.schema import REVISION
from tests.commands import Run
from tests.conftest import database_at, run_sql
from tests.driver import connect
from tests.patience import PATIENCE
from tests.postgres_processes import ready_root

CANARY = "Wb7canaryWb7"


@pytest.fixture(autouse=True)
def nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "USER_CONFIG_FILE", tmp_path / "config.env")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process: its exit code, stdout and stderr."""

    def run(*argv: str, **set_to: object) -> tuple[int, str, str]:
        for name, value in set_to.items():
            monkeypatch.setenv(f"CHATLEDGER_{name}", str(value))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(argv)
        out, err = capsys.readouterr()
        assert CANARY not in out + err
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The folder of an embedded database that keeps what it is told: `doctor` would find fault with the suite's own."""
    with ready_root() as ready:
        yield ready


@pytest.fixture
def url(root: Path) -> Iterator[str]:
    """An empty database in it, as one that somebody else runs."""
    embedded = EmbeddedPostgres(root, linger=0)
    name = f"chatledger_cli_{secrets.token_hex(4)}"
    server = embedded.start()
    run_sql(server, f"CREATE DATABASE {name} TEMPLATE template0")
    yield database_at(server, name)
    run_sql(embedded.start(), f"DROP DATABASE {name} WITH (FORCE)")
    embedded.release()


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken and not listening: a connection is refused
        yield int(taken.getsockname()[1])


def test_help_names_every_command_and_the_version_is_the_distributions(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for command in ("serve", "migrate", "doctor", "database"):
        assert re.search(rf"^    {command} ", out, re.MULTILINE)
        assert run(command, "--help")[0] == 0
    assert run("--version") == (0, f"chatledger {version('chatledger')}\n", "")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["begin"],
        ["serve", "--toolset", "all"],
        ["serve", "--transport", "carrier-pigeon"],
        ["migrate", "--check", "--sql"],
        ["migrate", "--to"],
        ["database"],
        ["database", "drop"],
        ["doctor", "--yaml"],
    ],
)
def test_a_command_that_is_not_understood_ends_with_2_and_the_usage(run: Run, argv: list[str]) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: chatledger")


@pytest.mark.parametrize("command", [["doctor"], ["migrate"], ["serve"], ["database", "url"]])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOOLSET", CANARY),
        ("MAX_CONTENT_CHARS", "0"),
        ("ALLOWED_ROLES", f"user,{CANARY}"),
        ("DATA_DIR", f"~{CANARY}/x"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_in_one_sentence(
    run: Run, command: list[str], name: str, value: str
) -> None:
    code, out, err = run(*command, **{name: value})
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"chatledger: CHATLEDGER_{name} cannot be used: .+\n", err)


def test_a_process_with_a_bad_setting_ends_without_a_traceback(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CHATLEDGER_USER_ID": CANARY * 30}
    command = [str(Path(sys.executable).with_name("chatledger")), "serve"]
    ended = subprocess.run(
        command, env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE
    )
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert re.fullmatch(rb"chatledger: CHATLEDGER_USER_ID cannot be used: [^\n]+\n", ended.stderr)


def test_doctor_names_what_mends_the_database_until_nothing_is_left_to_mend(run: Run, url: str) -> None:
    code, out, err = run("doctor", DATABASE_URL=url)
    assert (code, err) == (1, "")
    assert "problem    the database has no chatledger tables yet" in out
    assert "mend       `chatledger migrate`" in out
    code, out, err = run("doctor", "--json")
    facts = json.loads(out)
    assert (code, facts["ok"], facts["schema_revision"], facts["schema_revision_needed"]) == (1, False, None, REVISION)
    assert facts["problems"][0] == {
        "what": "the database has no chatledger tables yet",
        "mend": "`chatledger migrate`",
    }
    code, out, err = run("migrate")
    assert (code, out) == (0, "")
    assert f"schema     none -> {REVISION}" in err
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert out.endswith("all is well\n")
    assert f"schema     {REVISION}\n" in out
    facts = json.loads(run("doctor", "--json")[1])
    assert (facts["ok"], facts["problems"], facts["schema_revision"]) == (True, [], REVISION)
    assert (facts["user_id"], facts["toolset"]) == ("local", "full")
    assert facts["server_version"].split(".")[0].isdecimal()


def test_doctor_hides_the_password_of_the_database_that_it_names(run: Run, url: str) -> None:
    password = make_url(url).password
    assert password
    for argv in (["doctor"], ["doctor", "--json"], ["migrate"], ["migrate", "--check"], ["migrate", "--to", "base"]):
        _, out, err = run(*argv, DATABASE_URL=url)
        assert password not in out + err
        assert "--check" in argv or "***" in out + err


def test_migrating_up_again_down_and_up_leaves_what_is_not_chatledgers_alone(run: Run, url: str) -> None:
    run_sql(url, "CREATE TABLE public.theirs AS SELECT 1 AS kept")
    assert run("migrate", "--check", DATABASE_URL=url)[0] == 1
    steps = [
        (["migrate", "--to", "0001"], "none -> 0001"),
        (["migrate", "--check"], f"0001; this version needs {REVISION}"),
        (["migrate"], f"{REVISION}, nothing to do"),
        (["migrate", "--to", "base"], f"{REVISION} -> none"),
        (["migrate", "--to", "base"], "none, nothing to do"),
        (["migrate"], f"none -> {REVISION}"),
    ]
    for argv, told in steps:
        code, out, err = run(*argv)
        assert (code, out) == (0, "")
        assert f"schema     {told}\n" in err
    assert run("migrate", "--check")[0] == 0
    assert [row["kept"] for row in run_sql(url, "SELECT kept FROM public.theirs")] == [1]


def test_a_revision_that_is_not_there_is_refused_and_nothing_changes(run: Run, url: str) -> None:
    for revision in ("0099", "head~1", "nonsense"):
        code, out, err = run("migrate", "--to", revision, DATABASE_URL=url)
        assert (code, out) == (2, "")
        assert err.endswith(f"chatledger: there is no schema revision {revision}\n")
    assert run("migrate", "--check")[0] == 1


def test_a_newer_database_is_left_alone_and_the_upgrade_is_named(run: Run, url: str) -> None:
    assert run("migrate", DATABASE_URL=url)[0] == 0
    run_sql(url, "UPDATE chatledger.alembic_version SET version_num = '9999'")
    for argv in (["migrate"], ["migrate", "--to", "base"], ["doctor"]):
        code, out, err = run(*argv)
        assert code == 1
        assert "upgrade chatledger" in out + err
    assert run("migrate", "--check")[0] == 1
    assert [row["version_num"] for row in run_sql(url, "SELECT version_num FROM chatledger.alembic_version")] == [
        "9999"
    ]


def test_the_printed_sql_makes_a_current_schema_of_an_empty_database(run: Run, url: str) -> None:
    code, script, err = run("migrate", "--sql", DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    assert (code, err) == (0, "")

    async def execute() -> None:
        connection: Any = await connect(url)
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    asyncio.run(execute())
    assert run("migrate", "--check", DATABASE_URL=url)[0] == 0
    assert run("migrate")[2].endswith(f"schema     {REVISION}, nothing to do\n")
    assert run("doctor")[0] == 0


def test_an_unreachable_database_is_told_by_every_command(run: Run, closed_port: int) -> None:
    url = f"postgresql://someone:{CANARY}@127.0.0.1:{closed_port}/none"
    for argv in (["doctor"], ["doctor", "--json"], ["migrate"], ["migrate", "--check"]):
        code, out, err = run(*argv, DATABASE_URL=url)
        assert code == 1
        assert "***" in out + err or "--check" in argv
    assert "server     not reached\n" in run("doctor")[1]


def test_a_refused_password_is_told_and_not_repeated(run: Run, url: str) -> None:
    wrong = make_url(url).set(password=CANARY).render_as_string(hide_password=False)
    for argv in (["doctor"], ["doctor", "--json"], ["migrate"], ["migrate", "--check"]):
        code, out, err = run(*argv, DATABASE_URL=wrong)
        assert code == 1
        assert argv == ["migrate"] or "refuses the user or the password" in out + err


@pytest.mark.parametrize(
    "malformed",
    [
        f"mysql://u:{CANARY}@h/db",
        f"postgresql://u:{CANARY}@{CANARY}@h/db",
        f"postgresql://u:{CANARY}@h:{CANARY}/db",
        f"postgresql://u:{CANARY}@h/db?sslmode={CANARY}",
        f"postgresql://u:{CANARY}@h/db?connect_timeout={CANARY}",
        f"postgresql:u:{CANARY}@h/db",
        f"host=h password={CANARY}",
        CANARY,
    ],
)
def test_a_url_that_cannot_be_honoured_is_told_without_any_of_its_password(run: Run, malformed: str) -> None:
    code, out, _ = run("doctor", DATABASE_URL=malformed)
    assert code == 1
    assert "correct CHATLEDGER_DATABASE_URL" in out
    assert json.loads(run("doctor", "--json")[1])["ok"] is False
    assert run("migrate")[0] == 2
    assert run("migrate", "--check")[0] == 1


def test_the_embedded_database_is_started_looked_at_and_stopped_by_commands(run: Run, root: Path) -> None:
    assert run("database", "stop", DATA_DIR=root)[0] == 0
    assert run("database", "stop") == (0, "", "it was not running\n")
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    assert f"database   embedded Postgres in {root}/" in out
    assert "server     Postgres 18" in out
    code, out, err = run("database", "url")
    assert (code, err) == (0, "")
    assert [row["one"] for row in run_sql(out.strip(), "SELECT 1 AS one")] == [1]
    assert run("database", "stop") == (0, "", "stopped\n")
    code, _, err = run("database", "stop", DATABASE_URL="postgresql://elsewhere/db")
    assert (code, "CHATLEDGER_DATABASE_URL is set" in err) == (0, True)


def test_a_data_directory_that_cannot_be_used_is_told_in_a_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for argv in (["doctor"], ["migrate"], ["database", "url"]):
        code, out, err = run(*argv, DATA_DIR=tmp_path / "file" / "data")
        assert code == 1
        assert "CHATLEDGER_DATA_DIR" in out + err
