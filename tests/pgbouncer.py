"""A real PgBouncer in transaction mode, between a test and its Postgres."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import make_url

from chatledger.storage.embedded import run_as
from tests.patience import PATIENCE
from tests.postgres_processes import eventually

MISSING = "there is no pgbouncer: install it (apt-get install pgbouncer, brew install pgbouncer)"


class PgBouncer:
    """`with PgBouncer(url) as pooler:` and then connect to `pooler.url`, which is the same database through it.

    It has `server_connections` to Postgres for all its clients, and keeps its port over a restart. Of the settings in
    `ignored`, which clients bring, it takes no notice; others it refuses.
    """

    def __init__(self, url: str, *, server_connections: int = 4, ignored: Iterable[str] = ()) -> None:
        program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        assert program, MISSING
        self._program = program
        self._target = make_url(url)
        self._connections = server_connections
        self._ignored = ", ".join(ignored)
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="chatledger-pgbouncer-"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])

    @property
    def url(self) -> str:
        through = self._target.set(host="127.0.0.1", port=self.port, query={"sslmode": "disable"})
        return through.render_as_string(hide_password=False)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def __enter__(self) -> PgBouncer:
        try:
            self._configure()
            self.start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it; return when it answers."""
        # It refuses to be root, and must reach the socket of a Postgres that was started for root.
        identity = run_as.Identity()
        if os.geteuid() == 0:
            allowed = run_as.namespaces_allowed()
            identity = run_as.Identity(run_as.NAMESPACE) if allowed else run_as.Identity((), self._account())
        user, group = identity.account or (None, None)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*identity.prefix, self._program, self._folder / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
        eventually(self._answers)

    def kill(self) -> None:
        """End it at once, and every connection through it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(PATIENCE)
            self._process = None

    def _configure(self) -> None:
        target = self._target
        host = target.query.get("host", target.host)
        port = target.query.get("port", target.port or 5432)
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self._folder / "users.txt",
            "pool_mode": "transaction",
            "default_pool_size": self._connections,
            "max_client_conn": 500,
            "server_login_retry": 1,
            "ignore_startup_parameters": self._ignored,
        }
        lines = ["[databases]", f"* = host={host} port={port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        (self._folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        (self._folder / "users.txt").write_text(f'"{target.username}" "{target.password}"\n')
        if os.geteuid() == 0 and not run_as.namespaces_allowed():
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, *self._account())

    def _account(self) -> tuple[int, int]:
        account = run_as.unprivileged_account()
        assert account, "there is no account that could run pgbouncer"
        return account

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
