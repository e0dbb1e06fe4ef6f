"""A database URL as people have it becomes what the driver takes, or a sentence without the password."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import quote

import pytest

from chatledger.storage import ConversationStore
from chatledger.storage.database_url import (
    COMMAND_TIMEOUT,
    CONNECT_TIMEOUT,
    SERVER_SETTINGS,
    masked,
    read_database_url,
)
from chatledger.storage.errors import Unavailable
from chatledger.storage.query import Query

DIRECT = "postgresql://owner:npg_s3cret@ep-cool-darkness-a1b2c3d4.us-east-2.aws.neon.tech/neondb"
POOLED = DIRECT.replace("a1b2c3d4.", "a1b2c3d4-pooler.")
CONSOLE = "?sslmode=require&channel_binding=require"
PASSWORDS = [
    "p@ss",
    "p:w",
    "p/w",
    "p?w=x",
    "p#w",
    "p%w",
    "p%40w",
    "päss wörd",
    "[p]",
    "a@b?c=d/e#f:g",
    "'p\"",
    "p&w",
    "😀",
]

CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUHyZFlcisxWdopU8i3oso+jBRhHQwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjIwMTM4MTBaGA8yMTI2MTAyOTAxMzgx
MFowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABMtJ
OEGhVVOi614bQpe+TscmdaokyRDcThl6XveNjCfZF00JJq1nxs+AqYs2gFHdB4Zl
NOnawWYXeBlpgxwDACmjUzBRMB0GA1UdDgQWBBQ7WSWBG2O2ODZmB5GB1hhO/521
STAfBgNVHSMEGDAWgBQ7WSWBG2O2ODZmB5GB1hhO/521STAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQDpewKjz1zeoeBtJ4ufyYB7RXFEWllmAiiO
wRrYg8v4ngIgbZGH/gFxJ6J0ZvvHgBkyGJo2Qm39hgKo8b7evQwl01M=
-----END CERTIFICATE-----
"""


def verifies_the_host(given: object) -> bool:
    return isinstance(given, ssl.SSLContext) and given.check_hostname and given.verify_mode is ssl.CERT_REQUIRED


def test_the_direct_url_of_neons_console_is_taken_as_it_is() -> None:
    target = read_database_url(DIRECT + CONSOLE)
    assert (target.neon, target.pooled, target.direct, target.encrypted) == (True, False, True, True)
    assert target.url.drivername == "postgresql+asyncpg"
    assert (target.url.host or "").startswith("ep-cool-darkness-a1b2c3d4.us-east-2")
    assert (target.url.username, target.url.password, target.url.database) == ("owner", "npg_s3cret", "neondb")
    assert target.url.query == {}, "what libpq knows and the driver does not is gone"
    assert verifies_the_host(target.connect_args["ssl"])
    assert target.unpooled() is target


def test_the_pooled_url_of_neons_console_is_taken_and_leads_to_the_direct_host() -> None:
    target = read_database_url(POOLED + CONSOLE)
    assert (target.neon, target.pooled, target.direct) == (True, True, False)
    direct = target.unpooled()
    assert direct is not None
    assert direct.url == read_database_url(DIRECT + CONSOLE).url
    assert direct.direct
    assert verifies_the_host(direct.connect_args["ssl"])


def test_the_direct_host_is_also_derived_from_a_host_given_as_parameter_or_in_capitals() -> None:
    for url in (
        "postgresql://u:p@/db?host=ep-a1-pooler.eu-central-1.aws.neon.tech",
        "postgresql://u:p@EP-A1-POOLER.EU-CENTRAL-1.AWS.NEON.TECH/db",
    ):
        direct = read_database_url(url).unpooled()
        assert direct is not None
        assert direct.direct
        assert "ep-a1.eu-central-1.aws.neon.tech" in direct.url.render_as_string()


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full", "prefer", "allow", ""])
def test_neons_certificate_is_verified_whatever_the_url_says(mode: str) -> None:
    for url in (DIRECT, POOLED):
        assert verifies_the_host(read_database_url(f"{url}?sslmode={mode}").connect_args["ssl"])


def test_neon_is_never_connected_to_unencrypted() -> None:
    for url in (DIRECT, POOLED, DIRECT.replace("neon.tech", "NEON.TECH"), DIRECT.replace("neon.tech", "neon.build")):
        with pytest.raises(ValueError, match="Neon takes encrypted connections only"):
            read_database_url(url + "?sslmode=disable")


def test_any_other_host_is_encrypted_unless_it_is_said_otherwise() -> None:
    assert read_database_url("postgresql://u:p@db.example/x").connect_args["ssl"] == "require"
    for url in ("postgresql://u:p@db.example/x?sslmode=disable", "postgresql://u:p@db/x?sslmode=disable"):
        target = read_database_url(url)
        assert target.connect_args["ssl"] is False
        assert not target.encrypted


@pytest.mark.parametrize("mode", ["prefer", "allow"])
def test_a_password_is_not_sent_unencrypted_by_accident(mode: str) -> None:
    for host in ("db.example", "10.0.0.5", "localhost.evil", "127.0.0.1.evil"):
        with pytest.raises(ValueError, match=f"sslmode={mode} may send the password unencrypted"):
            read_database_url(f"postgresql://u:p@{host}/x?sslmode={mode}")
    assert read_database_url(f"postgresql://u:p@localhost/x?sslmode={mode}").connect_args["ssl"] == mode


def test_certificates_are_verified_as_libpq_would(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_text(CERTIFICATE)
    url = "postgresql://u:p@db.example/x?sslmode="
    assert verifies_the_host(read_database_url(url + "verify-full").connect_args["ssl"])
    assert verifies_the_host(read_database_url(url + "verify-full&sslrootcert=system").connect_args["ssl"])
    for mode in ("verify-ca", f"require&sslrootcert={quote(str(tmp_path / 'root.pem'))}"):
        context = read_database_url(url + mode).connect_args["ssl"]
        assert not context.check_hostname
        assert context.verify_mode is ssl.CERT_REQUIRED


def test_certificates_that_cannot_be_read_are_refused_without_a_path(tmp_path: Path) -> None:
    (tmp_path / "not.pem").write_text("no certificate")
    for file in (tmp_path / "not.pem", tmp_path / "absent.pem"):
        with pytest.raises(ValueError, match="sslrootcert") as refused:
            read_database_url(f"postgresql://u:p@db.example/x?sslmode=verify-full&sslrootcert={quote(str(file))}")
        assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        DIRECT,
        "postgresql://u:p@/db?host=/var/run/postgresql&port=5433",
        "postgresql:///db",
    ],
)
def test_limits_of_the_server_and_prepared_statements_are_for_hosts_that_are_certainly_no_pooler(url: str) -> None:
    target = read_database_url(url)
    assert target.direct
    assert "statement_cache_size" not in target.connect_args
    assert target.connect_args["server_settings"] == {"application_name": "chatledger", **SERVER_SETTINGS}


@pytest.mark.parametrize(
    "url",
    [
        POOLED,
        f"{DIRECT}?pgbouncer=true",
        "postgresql://u:p@/db?host=/var/run/pgbouncer&pgbouncer=true",
        "postgresql://u:p@localhost/db",
        "postgresql://u:p@127.0.0.1:6432/db",
        "postgresql://u:p@[::1]/db",
        "postgresql://u:p@db.example/db",
        "postgresql://u:p@aws-0-eu-central-1.pooler.supabase.com:6543/db",
        "postgresql://u:p@ep-a1.neon.tech.evil/db",
    ],
)
def test_a_host_that_may_be_a_pooler_gets_neither(url: str) -> None:
    target = read_database_url(url)
    assert not target.direct
    assert target.connect_args["statement_cache_size"] == 0
    assert target.connect_args["server_settings"] == {"application_name": "chatledger"}


def test_a_pooler_is_one_by_its_name_or_where_the_url_says_so() -> None:
    assert read_database_url(POOLED).pooled
    said = read_database_url("postgresql://u:p@h/db?pgbouncer=true&sslmode=disable")
    assert said.pooled
    assert said.unpooled() is None, "nobody knows where else it is"
    assert not read_database_url("postgresql://u:p@h/db?pgbouncer=false").pooled
    with pytest.raises(ValueError, match="pgbouncer"):
        read_database_url("postgresql://u:p@h/db?pgbouncer=1")


def test_timeouts_have_an_end() -> None:
    for given, seconds in (("", CONNECT_TIMEOUT), ("?connect_timeout=0", CONNECT_TIMEOUT), ("?connect_timeout=3", 3.0)):
        args = read_database_url("postgresql://u:p@h/db" + given).connect_args
        assert (args["timeout"], args["command_timeout"]) == (seconds, COMMAND_TIMEOUT)
    for wrong in ("abc", "nan", "inf", "-5", "1.5", "3s"):
        with pytest.raises(ValueError, match="connect_timeout"):
            read_database_url(f"postgresql://u:p@h/db?connect_timeout={wrong}")


def test_parameters_that_other_programs_need_are_ignored_and_unknown_ones_are_refused_by_name() -> None:
    read_database_url("postgresql://u:p@h/db?channel_binding=require&target_session_attrs=any")
    assert read_database_url("postgresql://u:p@h/db?application_name=mine").connect_args["server_settings"] == {
        "application_name": "mine"
    }
    with pytest.raises(ValueError, match=r"unsupported parameters in the database URL: options, shema$"):
        read_database_url("postgresql://u:p@h/db?shema=x&options=-csearch_path%3Dx&sslmode=require")
    with pytest.raises(ValueError, match=r"given more than once in the database URL: sslmode$"):
        read_database_url("postgresql://u:p@h/db?sslmode=require&sslmode=disable")
    with pytest.raises(ValueError, match="sslmode must be one of disable, allow"):
        read_database_url("postgresql://u:p@h/db?sslmode=off")


@pytest.mark.parametrize("prefix", ["postgres://", "postgresql://", "postgresql+asyncpg://", "postgresql+psycopg://"])
def test_every_usual_scheme_and_quotes_around_it_are_taken(prefix: str) -> None:
    for text in (f"{prefix}u:p@h/db", f" '{prefix}u:p@h/db'\n", f'"{prefix}u:p@h/db"'):
        assert read_database_url(text).url.render_as_string(hide_password=False) == "postgresql+asyncpg://u:p@h/db"


@pytest.mark.parametrize(
    "text", ["", "mysql://u:s3cret@h/db", "host=h password=s3cret", "u:s3cret@h/db", "sqlite:///x"]
)
def test_what_is_no_postgres_url_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a Postgres URL: it must begin with postgresql://$"):
        read_database_url(text)


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_percent_encoded_password_arrives_as_it_is_and_is_masked(password: str) -> None:
    for url in (DIRECT, POOLED, "postgresql://owner:npg_s3cret@db.example:5433/neondb"):
        text = url.replace("npg_s3cret", quote(password, safe=""))
        target = read_database_url(text)
        assert target.url.password == password
        direct = target.unpooled()
        assert direct is not None
        assert direct.url.password == password
        assert masked(text) == url.replace("npg_s3cret", "***")


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    "rest", ["db.example/x", "db.example:54x2/x", "db.example/x?unknown=1", "db.example/x?sslmode=no"]
)
def test_a_password_that_was_not_encoded_is_in_no_error_and_no_masked_url(password: str, rest: str) -> None:
    raw = "s3cret" + password + "t3rces"
    text = f"postgresql://owner:{raw}@{rest}"
    shown = [masked(text)]
    try:
        assert read_database_url(text).url.host == "db.example"
    except ValueError as refused:
        shown += [str(refused), str(refused.__cause__)]
    for sentence in shown:
        assert "s3cret" not in sentence
        assert "t3rces" not in sentence


async def test_a_store_tells_what_is_wrong_with_its_url_and_not_the_password() -> None:
    for url in ("postgresql://u:s3cret@db.example/x?sslmode=prefer", "postgresql://u:s3cret@h:port/x"):
        async with ConversationStore.at(url) as store:
            with pytest.raises(Unavailable, match="chatledger doctor") as refused:
                await store.list_conversations("alice")
        assert "s3cret" not in refused.value.message
        assert "db.example" not in refused.value.message


async def test_limits_of_the_server_hold_on_a_direct_connection(store: ConversationStore) -> None:
    found = dict(await store.database.read(Query("SELECT name, setting FROM pg_settings", ())))
    limits = SERVER_SETTINGS if (await store.database._ready()).connections.direct else {}
    assert {name: found[name] for name in limits} == limits
