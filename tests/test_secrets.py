"""No command prints a password, a token or a secret, whatever becomes of it; the parser says which there are."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from chatledger.server import cli, settings
from chatledger.storage import engine
from tests.patience import PATIENCE
from tests.postgres_processes import ready_root

PASSWORD, SECRET = "Wb7canaryWb7", "Qx9canary" * 5
TOKEN_SECRET = "5ec7e7" * 10 + "cafe"
TOKEN = f"chatledger_0123456789ab_{TOKEN_SECRET}"

COMMANDS: dict[tuple[str, ...], list[str]] = {
    ("serve",): [],
    ("migrate",): [],
    ("doctor",): ["--json"],
    ("import",): ["talks.jsonl"],
    ("export",): [],
    ("user", "export"): ["alice"],
    ("user", "erase"): ["alice", "--yes"],
    ("user", "erasures"): [],
    ("user", "replay-erasures"): ["erasures.jsonl", "--yes"],
    ("retention",): ["--older-than", "365d", "--yes"],
    ("token", "create"): ["--user", "alice"],
    ("token", "list"): [],
    ("token", "revoke"): [TOKEN],
    ("database", "url"): [],  # the embedded one's, whose password it is for; not that of the one that is set
    ("database", "stop"): [],
}
FAILING = ("import", "export", "user", "retention", "token", "migrate", "doctor")


def leaves(parser: argparse.ArgumentParser, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that can be run, in words."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield above
    for action in inner:
        for word, below in action.choices.items():
            yield from leaves(below, (*above, word))


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with ready_root() as ready:
        yield ready


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # taken and not listening: a connection is refused
        yield int(taken.getsockname()[1])


@pytest.fixture
def databases(database_url: str, closed_port: int) -> dict[str, str]:
    """URLs with a password in them, by what becomes of a command."""
    url = make_url(database_url)
    return {
        "works": database_url,
        "wrong password": url.set(password=PASSWORD).render_as_string(hide_password=False),
        "no such database": url.set(database="nowhere").render_as_string(hide_password=False),
        "no server": f"postgresql://someone:{PASSWORD}@127.0.0.1:{closed_port}/none",
        "no such host": f"postgresql://someone:{PASSWORD}@nowhere.invalid/none",
        "unreadable": f"postgresql://someone:{PASSWORD}@{PASSWORD}@h/db",
        "unsupported": f"postgresql://someone:{PASSWORD}@h/db?password={PASSWORD}",
        "pooled": f"postgresql://someone:{PASSWORD}@ep-x-pooler.eu.neon.tech/db?sslmode=disable",
        "other scheme": f"mysql://someone:{PASSWORD}@h/db",
    }


def test_every_command_is_in_the_table() -> None:
    assert set(leaves(cli._parser())) == COMMANDS.keys()


@pytest.mark.parametrize(
    "case",
    [
        "works", "wrong password", "no such database", "no server", "no such host", "unreadable", "unsupported",
        "pooled", "other scheme",
    ],
)  # fmt: skip
def test_no_command_prints_a_secret(
    case: str,
    databases: dict[str, str],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "USER_CONFIG_FILE", tmp_path / "config.env")
    monkeypatch.setattr(engine, "WAKING_SECONDS", 0.0)
    Path("talks.jsonl").write_text('{"id": "one", "conversations": [{"from": "human", "value": "2+2?"}]}\n')
    Path("erasures.jsonl").write_text('{"erasures_of": "0000000000000000"}\n')
    url = databases[case]
    environment = {
        "CHATLEDGER_DATABASE_URL": url,
        "CHATLEDGER_DIRECT_DATABASE_URL": url,
        "CHATLEDGER_DATA_DIR": str(root),
        "CHATLEDGER_AUTH_SECRET": SECRET,
        "CHATLEDGER_AUTH_AUDIENCE": "any",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    password = make_url(url).password if case in ("works", "no such database") else PASSWORD
    assert password
    for command, arguments in COMMANDS.items():
        capfd.readouterr()
        if command == ("serve",):
            told, code = served(environment, tmp_path)
        else:
            with pytest.raises(SystemExit) as ended:
                cli.main([*command, *arguments])
            out, err = capfd.readouterr()
            told, code = out + err, int(ended.value.code or 0)
        assert [secret for secret in (password, SECRET, TOKEN_SECRET) if secret in told] == [], (command, told)
        assert "Traceback" not in told
        if case != "works" and command[0] in FAILING:
            assert code > 0, command
            assert told, "a failure is told"


def served(environment: dict[str, str], home: Path) -> tuple[str, int]:
    """What `serve` says to a client that leaves at once, and its exit code."""
    command = [str(Path(sys.executable).with_name("chatledger")), "serve"]
    clean = {"PATH": os.environ["PATH"], "HOME": str(home)} | environment
    done = subprocess.run(
        command, env=clean, cwd=home, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
    )
    return done.stdout + done.stderr, done.returncode


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AUTH_SECRET", PASSWORD),  # too short
        ("AUTH_JWKS_URL", f"https://u:{PASSWORD}@keys.invalid/"),  # beside a secret
        ("AUTH_ALGORITHMS", PASSWORD),
        ("PUBLIC_URL", f"ftp://u:{PASSWORD}@h/"),
        ("ALLOWED_ORIGINS", f"https://u:{PASSWORD}@h"),
        ("RATE_LIMIT_BURST", PASSWORD),
    ],
)
def test_a_setting_that_is_refused_is_not_repeated(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "USER_CONFIG_FILE", tmp_path / "config.env")
    monkeypatch.setenv("CHATLEDGER_AUTH_SECRET", SECRET)
    monkeypatch.setenv(f"CHATLEDGER_{name}", value)
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor"])
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("chatledger: ")
    assert PASSWORD not in err
    assert SECRET not in err
