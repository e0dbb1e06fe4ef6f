"""The embedded Postgres: who starts it, who stops it, and what it leaves to nobody else."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import asyncpg
import pytest

from chatledger.storage.embedded import EmbeddedError, EmbeddedPostgres, cluster, supervisor, temporary
from chatledger.storage.embedded.postgres import START_TIMEOUT
from chatledger.storage.embedded.supervisor import FileLock
from tests.patience import PATIENCE
from tests.postgres_processes import (
    QUICK,
    ask,
    eventually,
    is_down,
    postmaster_of,
    supervisor_of,
    throughout,
    users,
)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_first_start_makes_a_safe_database_that_searches_every_script(empty: Path) -> None:
    database = EmbeddedPostgres(empty, linger=0)
    url = database.start()
    asyncio.run(_check_settings(url))
    database.release()
    assert [mode(empty / "pg18" / name) for name in ("password", "postgres.log", "start.lock")] == [0o600] * 3
    assert mode(empty / "pg18") & 0o066 == 0
    assert mode(database.data_directory) == 0o700
    assert not list((empty / "pg18").glob("new.*"))


async def _check_settings(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert await connection.fetchval(f"show {setting}") == "on"
        assert await connection.fetchval("show listen_addresses") == ""
        found = await connection.fetchrow(
            "select datlocprovider, datlocale from pg_database where datname = 'postgres'"
        )
        assert found
        assert tuple(found) == (b"b", "C.UTF-8")
        await connection.execute("create extension pg_trgm")
        for text in ("日本語", "ภาษาไทย", "中文", "Ä"):
            assert await connection.fetchval("select show_trgm($1) <> '{}'", text)
    finally:
        await connection.close()


def test_a_changed_configuration_file_cannot_switch_safety_off(copied: Path) -> None:
    with (copied / "pg18" / "data" / "postgresql.auto.conf").open("a") as file:
        file.write("fsync = off\nsynchronous_commit = off\n")
    database = EmbeddedPostgres(copied, linger=0)
    url = database.start()
    assert (ask(url, "show fsync"), ask(url, "show synchronous_commit")) == ("on", "on")
    database.release()


def test_a_row_that_breaks_a_rule_is_not_shown_in_the_log(database: EmbeddedPostgres) -> None:
    url = database.start()
    ask(url, "create table words (word text check (word = ''))")
    with pytest.raises(asyncpg.CheckViolationError):
        ask(url, "insert into words values ('our secret')")
    log = database.log_file.read_text()
    assert "violates check constraint" in log
    assert "our secret" not in log


def test_six_first_starters_share_one_server(empty: Path) -> None:
    with users(empty, 6) as six:
        assert len({user.url() for user in six}) == 1
        assert ask(str(EmbeddedPostgres(empty).url()), "select 1") == 1
        assert (empty / "pg18" / "postgres.log").read_text().count("ready to accept connections") == 1
    eventually(lambda: is_down(empty))


def test_threads_of_one_process_may_start_it_at_once(database: EmbeddedPostgres, root: Path) -> None:
    urls: list[str] = []
    threads = [threading.Thread(target=lambda: urls.append(database.start())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert urls == [database.url()] * 4
    database.release()
    eventually(lambda: is_down(root))


def test_the_server_outlives_its_starter_and_stops_after_its_last_user(root: Path) -> None:
    with users(root, 2) as (first, second):
        assert first.url() == second.url()
        pid = postmaster_of(root)
        first.leave()
        throughout(0.5, lambda: EmbeddedPostgres(root).running() and postmaster_of(root) == pid)
        second.leave()
        eventually(lambda: is_down(root))


def test_who_comes_back_within_the_linger_finds_the_server_still_up(root: Path) -> None:
    database = EmbeddedPostgres(root, linger=1.0, settings=QUICK)
    database.start()
    pid = postmaster_of(root)
    database.release()
    throughout(0.3, database.running)
    database.start()
    throughout(1.2, lambda: database.running() and postmaster_of(root) == pid)
    database.release()
    eventually(lambda: is_down(root))


def test_a_program_that_is_merely_connected_keeps_the_server_up(database: EmbeddedPostgres, root: Path) -> None:
    async def connected() -> None:
        connection = await asyncpg.connect(database.start())
        database.release()
        await asyncio.to_thread(throughout, 0.7, database.running)
        assert await connection.fetchval("select 1") == 1
        await connection.close()

    asyncio.run(connected())
    eventually(lambda: is_down(root))


def test_stop_takes_the_server_from_its_users_and_their_next_start_brings_it_back(root: Path) -> None:
    with users(root) as (user,):
        url = user.url()
        ask(url, "create table outlives_a_stop as select 1")
        assert EmbeddedPostgres(root).stop() is True
        assert is_down(root)
        assert EmbeddedPostgres(root).stop() is False
        user.do("print(database.start(), flush=True)")
        assert user.answer() == url
        assert ask(url, "select count(*) from outlives_a_stop") == 1


def test_asking_about_a_database_that_never_was_creates_nothing(empty: Path) -> None:
    database = EmbeddedPostgres(empty / "deeper")
    assert database.url() is None
    assert not database.running()
    assert not database.stop()
    assert database.data_directory == empty / "deeper" / "pg18" / "data"
    assert list(empty.iterdir()) == []


def test_the_url_is_known_while_the_server_is_down(database: EmbeddedPostgres, root: Path) -> None:
    url = database.url()
    assert not database.running()
    assert url == database.start()
    assert database.running()
    assert EmbeddedPostgres(root).running()


def test_a_forked_child_is_no_user(root: Path) -> None:
    with users(root) as (user,):
        user.url()
        user.do("import os; child = os.fork(); os.read(0, 1) if child == 0 else print(child, flush=True)")
        assert int(user.answer())
        assert user.process.stdin
        user.process.kill()
        user.process.wait()
        eventually(lambda: is_down(root))  # while the child waits for the pipe that we hold open


def test_a_program_started_by_a_user_is_no_user(database: EmbeddedPostgres, root: Path) -> None:
    database.start()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as child:
        database.release()
        eventually(lambda: is_down(root))
        assert child.poll() is None


def test_a_nonsense_environment_does_no_harm_and_secrets_stay_with_us(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonsense = {
        "PGPORT": "99",
        "PGDATA": "/nonexistent",
        "PGUSER": "nobody",
        "LC_ALL": "xx_YY",
        "LANG": "zz",
        "TZ": "?",
    }
    for name, value in nonsense.items() | {("CHATLEDGER_TOKEN", "s3cret"), ("DATABASE_URL", "s3cret")}:
        monkeypatch.setenv(name, value)
    database = EmbeddedPostgres(empty, linger=0, settings=QUICK)
    assert ask(database.start(), "select current_user::text") == "postgres"
    if sys.platform == "linux":  # elsewhere nobody else can look
        for pid in (supervisor_of(empty), postmaster_of(empty)):
            assert b"s3cret" not in Path(f"/proc/{pid}/environ").read_bytes()
    database.release()


def test_any_directory_name_will_do(copied: Path) -> None:
    before = copied
    for name in ('it\'s a "strange", name', "ä 日本", "x" * 120):
        (copied / name).mkdir()
        (before / "pg18").rename(copied / name / "pg18")
        before = copied / name
        database = EmbeddedPostgres(before, linger=0, settings=QUICK)
        assert ask(database.start(), "select 1") == 1
        assert database.stop()
        database.release()
        if (run := cluster.socket_directory(database.folder, database.folder)).parent != database.folder:
            shutil.rmtree(run)


def test_a_temporary_server_takes_settings_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(empty))
    with temporary(fsync="off", max_connections="17") as url:
        (root,) = empty.iterdir()
        assert ask(url, "show max_connections") == "17"
        pids = supervisor_of(root), postmaster_of(root)
    assert list(empty.iterdir()) == []
    eventually(lambda: not any(exists(pid) for pid in pids))


def test_a_long_log_is_put_aside(database: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LOG_LIMIT", 10_000)
    database.log_file.write_text("old\n" * 2_501)
    database.start()
    assert database.log_file.stat().st_size < 5_000
    assert database.log_file.with_suffix(".log.1").read_text() == "old\n" * 2_501


def test_start_gives_up_after_its_timeout(database: EmbeddedPostgres, root: Path) -> None:
    with FileLock(root / "pg18" / "start.lock").take():
        began = time.monotonic()
        with pytest.raises(EmbeddedError, match=r"start\.lock is held by another process.*CHATLEDGER_DATABASE_URL"):
            database.start(timeout=0.2)
        assert 0.2 <= time.monotonic() - began < START_TIMEOUT / 2


def test_importing_does_not_need_a_unix() -> None:
    program = """
import sys, contextlib, hashlib, os, pathlib, secrets, shutil, signal, socket, subprocess, tempfile, threading
sys.platform = "win32"
sys.modules["fcntl"] = sys.modules["pwd"] = None
del os.register_at_fork, os.geteuid, signal.SIGQUIT, signal.SIGKILL, os.O_CLOEXEC, socket.AF_UNIX
from chatledger.storage.embedded import EmbeddedError, EmbeddedPostgres
try:
    EmbeddedPostgres(pathlib.Path("nowhere"))
except EmbeddedError as error:
    assert "CHATLEDGER_DATABASE_URL" in str(error)
else:
    raise AssertionError("it claims to run")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)


def test_the_supervisor_needs_the_standard_library_only() -> None:
    program = str(supervisor.__file__)
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import runpy, sys; runpy.run_path(sys.argv[1])", program], check=True
    )
