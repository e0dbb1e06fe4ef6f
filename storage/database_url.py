"""A Postgres URL as people have it (Neon's console, a hosting panel, libpq) -> what SQLAlchemy and asyncpg take.

Neither takes Neon's as it stands: SQLAlchemy hands `sslmode` and `channel_binding` to `connect()`, which has no such
arguments, and asyncpg by itself sends `channel_binding` to the server as a setting.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

APPLICATION_NAME = "chatledger"
CONNECT_TIMEOUT = 15.0  # seconds: a sleeping Neon compute needs a few hundred ms plus the network, on a slow day more
COMMAND_TIMEOUT = 20.0  # seconds, above the server's own limit, so that the server gives up first
# Sent to hosts that are certainly no pooler: PgBouncer refuses a connection that brings them.
SERVER_SETTINGS = {
    "statement_timeout": "15000",  # milliseconds, as the two below
    "lock_timeout": "5000",
    "idle_in_transaction_session_timeout": "30000",
    # Every statement has an index. A plan made while a table was small would read it whole, and a connection keeps its
    # plans while the table grows (measured: 10,000 messages later an append took 3 times as long).
    "enable_seqscan": "off",
}

_READ = {"sslmode", "sslrootcert", "connect_timeout", "application_name", "host", "port", "pgbouncer"}
# Known and of no use here: libpq's own, or meant for other drivers.
_IGNORED = {"channel_binding", "sslnegotiation", "gssencmode", "target_session_attrs", "connection_limit"}
_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SCHEME = re.compile(r"^postgres(ql)?(\+\w+)?://")


@dataclass(frozen=True)
class DatabaseTarget:
    """Where and how to connect: `url` and `connect_args` are for `create_async_engine`.

    `pooled` and `direct` are certainties; where both are false the name does not tell what is behind the host.
    """

    url: URL
    connect_args: dict[str, Any]
    neon: bool
    pooled: bool
    direct: bool

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS, verified or not."""
        return self.connect_args["ssl"] is not False

    def known_direct(self) -> DatabaseTarget:
        """The same, where it turned out that no pooler is in between."""
        arguments = {name: value for name, value in self.connect_args.items() if name != "statement_cache_size"}
        arguments["server_settings"] = arguments["server_settings"] | SERVER_SETTINGS
        return replace(self, connect_args=arguments, direct=True)

    def unpooled(self) -> DatabaseTarget | None:
        """The same database for migrations and LISTEN; None where it is pooled and no direct host can be derived."""
        if not self.pooled:
            return self
        if not self.neon:
            return None
        named = self.url.query.get("host")  # it outranks the URL's own, for libpq and for asyncpg
        host = str(named or self.url.host).lower().replace("-pooler.", ".", 1)
        url = self.url.update_query_dict({"host": host}) if named else self.url.set(host=host)
        return read_database_url(url.render_as_string(hide_password=False))


def masked(raw: str) -> str:
    """The URL with its password replaced by `***`, for people to see."""
    try:
        return _parsed(raw, "postgresql").set(query={}).render_as_string(hide_password=True)
    except ValueError:
        return "a URL that cannot be read"


def _parsed(raw: str, scheme: str) -> URL:
    text = _bare(raw)
    try:
        url = make_url(_SCHEME.sub(f"{scheme}://", text))
        # The rest of a password would be taken for a host or a database, and shown as one.
        if text.count("@") > 1 or "@" in f"{url.host}{url.database}":
            raise ValueError
        return url
    except (ArgumentError, ValueError):  # their texts may quote a piece of the password
        raise ValueError("the database URL cannot be read: percent-encode @ : / ? # in the password") from None


def _bare(raw: str) -> str:
    return raw.strip().strip("'\"")


def read_database_url(raw: str) -> DatabaseTarget:
    """Raises ValueError, whose sentence holds no part of the password, for a URL that cannot be honoured."""
    if not _SCHEME.match(_bare(raw)):
        raise ValueError("not a Postgres URL: it must begin with postgresql://")
    url = _parsed(raw, "postgresql+asyncpg")
    if several := sorted(name for name, value in url.query.items() if not isinstance(value, str)):
        raise ValueError(f"parameters given more than once in the database URL: {', '.join(several)}")
    query = {name: value for name, value in url.query.items() if isinstance(value, str)}
    if unknown := sorted(set(query) - _READ - _IGNORED):
        raise ValueError(f"unsupported parameters in the database URL: {', '.join(unknown)}")
    host = (query.get("host") or url.host or "").lower()
    on_socket = host == "" or host.startswith("/")
    neon = host.endswith((".neon.tech", ".neon.build"))
    pooled = (neon and "-pooler." in host) or query.get("pgbouncer") == "true"  # Prisma's word for it

    if query.get("pgbouncer", "false") not in ("true", "false"):
        raise ValueError("pgbouncer in the database URL must be true or false")
    if not re.fullmatch(r"\d{1,6}", connect_timeout := query.get("connect_timeout", "0")):
        raise ValueError("connect_timeout in the database URL must be a whole number of seconds")
    connect_args: dict[str, Any] = {
        "ssl": _tls(query, neon=neon, local=on_socket or host in _LOOPBACK),
        "timeout": float(connect_timeout) or CONNECT_TIMEOUT,  # libpq's 0 is without end, which no call may take
        "command_timeout": COMMAND_TIMEOUT,
        "server_settings": {"application_name": query.get("application_name", APPLICATION_NAME)},
        # Right behind every generation of poolers, and still one round trip. This one setting and no other: together
        # with prepared_statement_cache_size=0 or with generated names it gets slower, or wrong.
        "statement_cache_size": 0,
    }
    place: dict[str, str] = {name: query[name] for name in ("host", "port") if name in query}
    target = DatabaseTarget(url.set(query=place), connect_args, neon=neon, pooled=pooled, direct=False)
    return target.known_direct() if (on_socket or neon) and not pooled else target


def _tls(query: dict[str, str], *, neon: bool, local: bool) -> ssl.SSLContext | str | bool:
    mode = query.get("sslmode") or ("disable" if local else "require")
    if mode not in _SSLMODES:
        raise ValueError(f"sslmode must be one of {', '.join(_SSLMODES)}")
    if neon:
        if mode == "disable":
            raise ValueError("sslmode=disable: Neon takes encrypted connections only")
        mode = "verify-full"  # asyncpg has no channel binding; a verified public certificate stands in for it
    if mode == "disable":
        return False  # said explicitly, or local: a neighbour container often has no TLS
    if mode in ("allow", "prefer"):
        if not local:
            raise ValueError(f"sslmode={mode} may send the password unencrypted; use require, or disable to mean it")
        return mode
    if mode == "require" and "sslrootcert" not in query:
        return mode  # libpq's meaning, which asyncpg shares: encrypted, not verified
    root = query.get("sslrootcert")
    try:
        context = ssl.create_default_context(cafile=None if root in (None, "", "system") else root)
    except (OSError, ssl.SSLError):
        raise ValueError("the file that sslrootcert names cannot be read as certificates") from None
    if mode in ("require", "verify-ca"):
        context.check_hostname = False
    return context
