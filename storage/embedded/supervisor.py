"""The process that keeps the embedded Postgres: parent of the postmaster, asleep until the last user has gone.

The server process runs this file by path, as `python -I -S supervisor.py supervise ...`: standard library only, and
nothing imported late, because the package may be replaced on disk while a supervisor is running.

Three lock files lie beside the database. Kernel locks end with their process, by whatever way it ends, so they count
users exactly. Process ids are only looked up, and believed when the command line names this very database.

    start.lock       exclusive while a process starts or stops the server; taken before the others
    users.lock       shared by every user for as long as it lives; exclusive while an idle server is being stopped
    supervisor.lock  exclusive for the life of the supervisor; free when all is down, or when it was killed
"""

# ruff: noqa: S603, S607  # every command is put together from our own words
from __future__ import annotations

import enum
import os
import queue
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

if sys.platform != "win32":  # where it is missing, importing must not fail: the caller says it in a sentence
    import fcntl

PORT = 5432  # chosen: Postgres' own; it only names the socket file, nothing listens on TCP
POLL = 0.02  # seconds between two looks; chosen: a fifth of the fastest start measured
ANSWER_TIMEOUT = 2.0  # seconds; chosen: a live server answers within milliseconds, a frozen one never
OLD_BACKENDS = 15.0  # seconds; a busy backend was measured to outlive its killed postmaster by 9 to 11
FAST_SHUTDOWN = 40.0  # seconds; chosen: its checkpoint writes 32 MB of buffers at most, and stop() waits 60
IMMEDIATE_SHUTDOWN = 10.0  # seconds; Postgres itself kills what is left of its children after 5


class EmbeddedError(Exception):
    """The embedded Postgres cannot be had. One sentence, which says why and names the way out."""


class FileLock:
    """A kernel lock (flock) on a file. It ends with `release()`, with the process, and at once in a forked child."""

    _open: ClassVar[set[FileLock]] = set()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        FileLock._open.add(self)

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def take(self, timeout: float = 0, *, shared: bool = False) -> Self:
        """Lock the file, trying for `timeout` seconds: 0 means once.

        Raises:
            TimeoutError: another process held it all the time. The file is closed, as after any error.
        """
        deadline = time.monotonic() + timeout
        try:
            while not self.try_once(shared=shared):
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{self.path.name} is held by another process")
                time.sleep(POLL)
        except BaseException:
            self.release()
            raise
        return self

    def try_once(self, *, shared: bool = False) -> bool:
        try:
            fcntl.flock(self._fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def await_nobody(self) -> None:
        """Sleep in the kernel until nobody else holds the lock. It is not held afterwards."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def write(self, text: str) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def release(self) -> None:
        FileLock._open.discard(self)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @classmethod
    def release_all(cls) -> None:
        for lock in list(cls._open):
            lock.release()


if hasattr(os, "register_at_fork"):
    # The copies in a forked child are the same locks, and would be held until the child ends, too.
    os.register_at_fork(after_in_child=FileLock.release_all)


class Answer(enum.Enum):
    READY = "ready"
    BUSY = "busy"  # something is there, but starting up, shutting down, full or frozen
    ABSENT = "absent"


def ask(socket_dir: Path) -> Answer:
    """What the server itself says to a start-up message, within ANSWER_TIMEOUT; never guessed from a process id."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_TIMEOUT)
        try:
            probe.connect(str(socket_dir / f".s.PGSQL.{PORT}"))
        except (BlockingIOError, TimeoutError):  # its queue of connections is full
            return Answer.BUSY
        except OSError:
            return Answer.ABSENT
        try:
            # https://www.postgresql.org/docs/18/protocol-message-formats.html, StartupMessage of protocol 3.0
            body = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
            probe.sendall(struct.pack("!I", len(body) + 4) + body)
            # R: it asks for the password. Read whole, or the server logs a reset connection.
            return Answer.READY if probe.recv(4096)[:1] == b"R" else Answer.BUSY
        except OSError:
            return Answer.BUSY


def _command_of(pid: int) -> bytes | None:
    """The command line of a process: None if there is none, empty for a zombie, which is as good as gone."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            return None
    ps = subprocess.run(["ps", "-ww", "-o", "stat=,command=", "-p", str(pid)], capture_output=True, check=False)
    state, _, command = ps.stdout.strip().partition(b" ")
    return (b"" if state.startswith(b"Z") else command) if state else None


def _children_of(pid: int) -> list[bytes]:
    """The command lines of the children of a process."""
    if sys.platform != "linux":
        ps = subprocess.run(["ps", "-Aww", "-o", "ppid=,command="], capture_output=True, check=False)
        rows = (line.strip().partition(b" ") for line in ps.stdout.splitlines())
        return [command for parent, _, command in rows if parent == str(pid).encode()]
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # Parentheses and blanks may stand in the second field, the name: count from the last parenthesis.
            parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[1]
        except (OSError, IndexError):
            continue
        if int(parent) == pid:
            found.append(_command_of(int(entry.name)) or b"")
    return found


def pid_in(file: Path) -> int:
    """The number that opens a lock file, 0 if there is none."""
    try:
        return int(file.read_bytes().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def is_supervisor(pid: int, folder: Path) -> bool:
    return pid > 0 and b" supervise %b " % os.fsencode(folder) in (_command_of(pid) or b"")


def is_postmaster(pid: int, data: Path) -> bool:
    program, found, _ = (_command_of(pid) or b"").partition(b"postgres -D %b -c " % os.fsencode(data))
    # A supervisor is told that command: in a new container it may itself have the number of the last postmaster.
    return pid > 0 and found != b"" and b" supervise " not in program


def has_clients(postmaster: int) -> bool:
    """Whether programs are connected: Postgres shows each as `postgres: USER DATABASE [local] ...`."""
    return any(b" [local] " in command for command in _children_of(postmaster))


def _obstacle_in(log: Path, start: int) -> bool:
    """Whether the log from byte `start` on says that something of an earlier server is still there, which will pass."""
    with log.open("rb") as file:
        file.seek(start)
        return bool(re.search(rb"pre-existing shared memory block|lock file .* already exists", file.read()))


def clear_stale_lock_files(data: Path, socket_dir: Path) -> None:
    """Remove Postgres' own lock files where they name a zombie or a process that is not our postmaster.

    Postgres refuses to start while that pid is in the process table at all: after a restart of a container the same
    small pids come back as other programs, and an init that does not reap keeps a dead postmaster as a zombie. A pid
    that is in no table is left to Postgres, which then also looks for backends in the old shared memory. To be called
    under the supervisor's lock, and only when nothing answers on the socket.
    """
    for file in (data / "postmaster.pid", socket_dir / f".s.PGSQL.{PORT}.lock"):
        pid = pid_in(file)
        unreadable = pid <= 0 and file.exists()
        if unreadable or (pid > 0 and _command_of(pid) is not None and not is_postmaster(pid, data)):
            file.unlink(missing_ok=True)


def stop_postmaster(data: Path, child: subprocess.Popen[bytes] | None = None) -> None:
    """Stop the server and wait for its end: FAST_SHUTDOWN seconds, then IMMEDIATE_SHUTDOWN, then SIGKILL."""
    pid = child.pid if child else pid_in(data / "postmaster.pid")

    def gone() -> bool:
        return child.poll() is not None if child else not is_postmaster(pid, data)

    # Postgres recovers from the last two at its next start; only a postmaster that hangs needs them.
    for how, patience in ((signal.SIGINT, FAST_SHUTDOWN), (signal.SIGQUIT, IMMEDIATE_SHUTDOWN), (signal.SIGKILL, 5.0)):
        if gone():
            return
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience
        while not gone() and time.monotonic() < deadline:
            time.sleep(POLL)


def environment() -> dict[str, str]:
    """Hardly anything of the caller's, whose variables hold secrets.

    PG* variables are defaults for the server, too, and an unknown LC_ALL fails initdb. The library path stays: an
    interpreter or a libc in an unusual place may need it.
    """
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {"PATH": os.defpath, "LC_ALL": "C"} | {name: os.environ[name] for name in kept if name in os.environ}


def spawn(
    command: Sequence[str], account: tuple[int, int] | None, output: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a program of Postgres, as user and group `account` if one is given; its output goes to a file, not a pipe.

    A pipe's reader would wait until the last backend has closed it. Raises OSError if it cannot be executed.
    """
    uid, gid = account or (None, None)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd="/",
        env=environment(),
        user=uid,
        group=gid,
        extra_groups=None if account is None else [],
    )


def _complain(text: str) -> None:
    """Say it as Postgres would, in the log that is our standard error."""
    sys.stderr.write(f"FATAL:  {text}\n")
    sys.stderr.flush()


class End(enum.Enum):
    """Why the supervisor's work is over."""

    IDLE = "no user is left"
    TOLD = "somebody asked for it"
    FAILED = "the postmaster did not start, or ended by itself"
    ADOPTED_ENDED = "the postmaster of a killed supervisor ended"


class Supervisor:
    """One per database: its postmaster's parent, or the warden of one whose supervisor was killed."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        socket_dir: Path,
        linger: float,
        account: tuple[int, int] | None,
        command: Sequence[str],
    ) -> None:
        self.folder, self.data, self.socket_dir = folder, data, socket_dir
        self.linger, self.account, self.command = linger, account, command
        self._child: subprocess.Popen[bytes] | None = None
        self._spawning = threading.Lock()
        self._stopping = False
        # One of those who put something here is a signal handler, which no other queue allows.
        self._end: queue.SimpleQueue[End] = queue.SimpleQueue()

    def run(self) -> int:
        """Return when the server is down: 1 if it did not start or ended by itself, else 0."""
        try:
            # A second's patience: somebody may be looking whether it is free, which takes microseconds.
            own = FileLock(self.folder / "supervisor.lock").take(1)
        except TimeoutError:
            return 0  # there is one already
        own.write(f"{os.getpid()}\n")
        users = FileLock(self.folder / "users.lock")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if the caller ignores it, so would we, and could not wait
        for polite in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(polite, lambda *_: self._end.put(End.TOLD))
        threading.Thread(target=self._keep, daemon=True).start()
        threading.Thread(target=self._await_idleness, args=(users,), daemon=True).start()
        end = self._end.get()
        with self._spawning:
            self._stopping = True
        stop_postmaster(self.data, self._child)
        own.release()  # before `users`: who waits for that one must find no supervisor, and start a new one
        users.release()
        return 1 if end is End.FAILED else 0

    def _keep(self) -> None:
        """Bring the postmaster up, or find the one that is, and wait for its end."""
        end = End.FAILED
        try:
            pid_file = self.data / "postmaster.pid"
            deadline = time.monotonic() + OLD_BACKENDS
            while not is_postmaster(pid_in(pid_file), self.data):
                if not self._try_to_run() or time.monotonic() > deadline:
                    return
                time.sleep(0.3)  # chosen: far below the seconds that an old backend takes
            end, self._child = End.ADOPTED_ENDED, None
            while is_postmaster(pid_in(pid_file), self.data):
                time.sleep(1)  # it is not our child, so there is nothing to wait for
        except OSError as error:
            _complain(str(error))
        finally:
            self._end.put(end)

    def _try_to_run(self) -> bool:
        """Run the postmaster to its end. True if it is worth another try."""
        log = self.folder / "postgres.log"
        before = log.stat().st_size
        if ask(self.socket_dir) is not Answer.ABSENT:
            _complain("a server answers whose process cannot be seen from here")
            return True  # one that is just starting or ending
        clear_stale_lock_files(self.data, self.socket_dir)
        with self._spawning:
            if self._stopping:
                return False
            self._child = spawn(self.command, self.account)
        self._child.wait()  # reaps it: as a zombie it would keep Postgres from starting again
        return not self._stopping and _obstacle_in(log, before)

    def _await_idleness(self, users: FileLock) -> None:
        pause = self.linger
        while True:
            users.await_nobody()
            time.sleep(pause)
            if users.try_once():
                pid = self._child.pid if self._child else pid_in(self.data / "postmaster.pid")
                if not has_clients(pid):
                    break
            pause = max(self.linger, 1.0)  # chosen: the end of a client cannot be waited for, and looking costs little
        self._end.put(End.IDLE)  # the lock stays: nobody can join a server that is being stopped


def main(words: Sequence[str]) -> int:
    """Words: supervise FOLDER DATA SOCKET_DIR LINGER UID:GID|- COMMAND..., as `EmbeddedPostgres` puts them."""
    folder, data, socket_dir, linger, account, *command = words[1:]
    uid, _, gid = account.partition(":")
    identity = (int(uid), int(gid)) if gid else None
    return Supervisor(Path(folder), Path(data), Path(socket_dir), float(linger), identity, command).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
