"""Dockerfile, compose files and the documents about them, as far as they can be checked without a container."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from pathlib import Path
from string import Template
from typing import Any

import pytest
import yaml

from chatledger.server import cli
from chatledger.server.http import HEALTH_PATHS, STOP_SECONDS
from chatledger.server.http_guard import BODY_BYTES
from chatledger.server.settings import Settings
from chatledger.storage.database_url import read_database_url

CHECKOUT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
COMPOSE = ("compose.yaml", "compose.pgbouncer.yaml")
DOCKERFILES = ("Dockerfile", "deploy/pgbouncer/Dockerfile")
DOCUMENTS = ("docs/deploy.md", "docs/neon.md")
DOTENV = {"POSTGRES_PASSWORD": "5ecret", "CHATLEDGER_AUTH_SECRET": "0123456789abcdef" * 4}


def instructions(file: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with its words."""
    lines = (CHECKOUT / file).read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", "")
    return [(name, words.strip()) for name, _, words in (line.partition(" ") for line in text.splitlines() if line)]


def last(file: str, name: str) -> str:
    return [words for found, words in instructions(file) if found == name][-1]


def services(*files: str) -> dict[str, dict[str, Any]]:
    """The services of a compose file, those of a second one laid over them."""
    merged: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, service in yaml.safe_load((CHECKOUT / file).read_text())["services"].items():
            known = merged.setdefault(name, {})
            environment = known.get("environment", {}) | service.get("environment", {})
            known |= service | {"environment": environment}
    return merged


def environment(service: dict[str, Any]) -> dict[str, str]:
    """What a service gets from it, with DOTENV as the file of secrets."""
    simple = {
        name: re.sub(r"\$\{(\w+):[?-]([^}]*)\}", lambda found: DOTENV.get(found[1], found[2]), value)
        for name, value in service["environment"].items()
    }
    return {name: Template(value).substitute(DOTENV) for name, value in simple.items()}


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """For settings of nothing but what a test sets."""
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_versions_are_those_of_the_project() -> None:
    version = PROJECT["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in last("Dockerfile", "LABEL")
    images = {service["image"] for service in services("compose.yaml").values() if service.get("build") == "."}
    assert images == {f"chatledger:{version}"}


def test_the_image_is_built_from_what_is_locked_and_nothing_else() -> None:
    bases = {words.split()[0] for name, words in instructions("Dockerfile") if name == "FROM"}
    assert len(bases) == 1, "an environment moves between two stages only if their Python is the same"
    (python,) = re.findall(r"^python:3\.(\d+)-slim-\w+$", bases.pop())
    assert int(python) >= int(PROJECT["project"]["requires-python"].removeprefix(">=3."))
    synced = [words for name, words in instructions("Dockerfile") if name == "RUN" and words.startswith("uv sync")]
    assert synced
    assert all("--locked" in words and "--no-default-groups" in words for words in synced)
    copied = {
        source
        for name, words in instructions("Dockerfile")
        if name == "COPY" and "--from" not in words
        for source in words.split()[:-1]
    }
    folders = {package.split(".")[1] for package in PROJECT["tool"]["setuptools"]["packages"]}
    assert copied == folders | {"pyproject.toml", "uv.lock", "README.md", "LICENSE"}
    let_in = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert let_in[0] == "*"
    assert {line[1:] for line in let_in if line.startswith("!")} == copied


def test_the_entry_point_exists_and_the_registry_knows_the_image() -> None:
    assert json.loads(last("Dockerfile", "ENTRYPOINT")) == ["tini", "--", *PROJECT["project"]["scripts"]]
    assert f'io.modelcontextprotocol.server.name="{PROJECT["project"]["name"]}"' in last("Dockerfile", "LABEL")
    assert "CHATLEDGER_DATA_DIR=" + last("Dockerfile", "VOLUME") in last("Dockerfile", "ENV")


@pytest.mark.parametrize("file", DOCKERFILES)
def test_no_container_of_ours_runs_as_root(file: str) -> None:
    user, _, group = last(file, "USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_every_command_is_one_that_the_program_has() -> None:
    commands = [json.loads(last("Dockerfile", "CMD"))]
    commands += [service["command"] for service in services("compose.yaml").values() if service.get("build") == "."]
    assert len(commands) == 3
    for command in commands:
        assert cli._parser().parse_args(command).run


def test_the_health_check_asks_where_the_server_answers() -> None:
    _, _, command = last("Dockerfile", "HEALTHCHECK").partition("CMD ")
    python, option, code = json.loads(command)
    assert (python, option) == ("python", "-c")
    compile(code, "healthcheck", "exec")
    (path,) = re.findall(r"'(/\w+)'\)", code)
    (port,) = re.findall(r"'127\.0\.0\.1', (\d+)", code)
    assert path in HEALTH_PATHS
    service = services("compose.yaml")["chatledger"]
    args = cli._parser().parse_args(service["command"])
    assert {int(port), args.port, int(last("Dockerfile", "EXPOSE"))} == {cli._parser().parse_args(["serve"]).port}
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]


@pytest.mark.parametrize("files", [COMPOSE[:1], COMPOSE])
def test_compose_sets_what_there_is_and_it_is_accepted(files: tuple[str, ...], only: pytest.MonkeyPatch) -> None:
    for name, service in services(*files).items():
        ours = {key: value for key, value in environment(service).items() if key.startswith("CHATLEDGER_")}
        assert {key.removeprefix("CHATLEDGER_").lower() for key in ours} <= Settings.model_fields.keys()
        if not ours:
            continue
        with only.context() as patch:
            for key, value in ours.items():
                patch.setenv(key, value)
            settings = Settings()
        assert settings.database_url is not None
        direct = settings.direct_database_url or settings.database_url
        assert read_database_url(direct.get_secret_value()).url.host == "db"
        assert read_database_url(settings.database_url.get_secret_value()).url.host in services(*files)
        if name == "chatledger":
            assert settings.auth is not None, "beyond loopback the server starts with authentication only"
            assert settings.auth.static_tokens
            assert settings.auth.jwt is not None


def test_the_pooler_is_the_one_that_the_server_is_sent_to() -> None:
    ini = configparser.ConfigParser()
    ini.read(CHECKOUT / "deploy/pgbouncer/pgbouncer.ini")
    assert ini["pgbouncer"]["pool_mode"] == "transaction"
    url = read_database_url(environment(services(*COMPOSE)["chatledger"])["CHATLEDGER_DATABASE_URL"]).url
    assert (url.host, str(url.port)) == ("pgbouncer", ini["pgbouncer"]["listen_port"])
    assert url.database is not None
    assert "host=db" in ini["databases"][url.database]


@pytest.mark.parametrize("file", [*COMPOSE, *DOCKERFILES, "deploy/pgbouncer/pgbouncer.ini"])
def test_no_secret_is_in_the_files(file: str) -> None:
    text = (CHECKOUT / file).read_text()
    for secret in re.findall(r"(?:PASSWORD|SECRET|TOKEN): (.+)", text) + re.findall(r"://\w+:(.+?)@", text):
        assert secret.startswith("${")


def test_containers_may_do_nothing_that_they_need_not() -> None:
    for name, service in services(*COMPOSE).items():
        if "build" not in service:
            continue
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    assert int(services("compose.yaml")["chatledger"]["stop_grace_period"].removesuffix("s")) > STOP_SECONDS


@pytest.mark.parametrize("file", DOCUMENTS)
def test_documents_name_settings_and_commands_that_exist(file: str) -> None:
    text = (CHECKOUT / file).read_text()
    settings = {name.lower() for name in re.findall(r"CHATLEDGER_([A-Z_]+[A-Z])", text)}
    assert settings
    assert settings <= Settings.model_fields.keys() | {"auth"}  # "CHATLEDGER_AUTH_…", all of them
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for command in re.findall(
            r"(?:^|run --rm |uv run )chatledger ((?!chatledger)[a-z].*?)(?: +#.*)?$", block, re.MULTILINE
        ):
            assert cli._parser().parse_args(command.split()).run


def test_the_proxy_in_the_document_lets_the_largest_body_through() -> None:
    assert f"client_max_body_size {BODY_BYTES // 1024 // 1024}m;" in (CHECKOUT / "docs/deploy.md").read_text()
