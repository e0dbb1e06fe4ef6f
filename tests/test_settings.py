"""Where a setting comes from, which of several wins, and what is said of one that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from platformdirs import user_data_path

from chatledger.server import settings
from chatledger.server.auth.rules import AuthRules, JwtRules
from chatledger.server.settings import Settings, SettingsError, load_settings
from chatledger.storage.limits import Limits

CANARY = "Wb7canaryWb7"
URL = "postgresql://u:p@h/"


@pytest.fixture(autouse=True)
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own to start in, and the path of a user's file; neither holds any setting yet."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(settings, "USER_CONFIG_FILE", tmp_path / "config.env")
    return tmp_path / "config.env"


def here(*lines: str) -> None:
    Path(".env").write_text("\n".join(lines), encoding="utf-8")


def database(loaded: Settings) -> str | None:
    return None if loaded.database_url is None else loaded.database_url.get_secret_value()


def test_without_any_setting_the_defaults_are_those_of_the_contract() -> None:
    loaded = load_settings()
    assert (loaded.database_url, loaded.direct_database_url) == (None, None)
    assert loaded.data_dir == user_data_path("chatledger", appauthor=False)
    assert (loaded.user_id, loaded.toolset) == ("local", "full")
    assert loaded.limits == Limits(10_000, ("user", "assistant", "system", "tool"), None)
    assert (loaded.auth, loaded.public_url, loaded.allowed_hosts, loaded.allowed_origins) == (None, None, (), ())


def test_every_setting_is_read_with_the_prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = {
        "DATABASE_URL": f"{URL}pooled",
        "DIRECT_DATABASE_URL": f"{URL}direct",
        "DATA_DIR": str(tmp_path / "data"),
        "USER_ID": "ann@example",
        "TOOLSET": "core",
        "MAX_CONTENT_CHARS": "1000000",
        "ALLOWED_ROLES": "user, assistant,",
        "MAX_CONVERSATIONS_PER_USER": "1",
        "MAX_MESSAGES_PER_CONVERSATION": "9",
        "AUTH_ISSUER": "https://issuer.example",
        "AUTH_JWKS_URL": "https://issuer.example/keys",
        "AUTH_AUDIENCE": "one, two,",
        "AUTH_AUTHORIZED_PARTIES": "app",
        "AUTH_ALGORITHMS": "EdDSA, RS256",
        "AUTH_USER_CLAIM": "uid",
        "AUTH_SECRET": "",  # there is a JWKS; the two exclude each other
        "AUTH_REQUIRE_SCOPES": "true",
        "AUTH_STATIC_TOKENS": "false",
        "PUBLIC_URL": "https://ledger.example",
        "RATE_LIMIT_PER_SECOND": "2.5",
        "RATE_LIMIT_BURST": "7",
        "ALLOWED_HOSTS": "ledger.example, [::1]:8000",
        "ALLOWED_ORIGINS": "https://app.example",
    }
    assert set(values) == {name.upper() for name in Settings.model_fields}
    for name, value in values.items():
        monkeypatch.setenv(name, "core" if name == "TOOLSET" else f"{URL}plain")  # without it they are somebody else's
        monkeypatch.setenv(f"CHATLEDGER_{name}", value)
    loaded = load_settings()
    assert database(loaded) == f"{URL}pooled"
    assert loaded.direct_database_url is not None
    assert loaded.direct_database_url.get_secret_value() == f"{URL}direct"
    assert (loaded.data_dir, loaded.user_id, loaded.toolset) == (tmp_path / "data", "ann@example", "core")
    assert loaded.limits == Limits(1_000_000, ("user", "assistant"), 1, 9)
    assert loaded.auth == AuthRules(
        JwtRules(
            issuer="https://issuer.example",
            jwks_url="https://issuer.example/keys",
            secret=None,
            audiences=frozenset({"one", "two"}),
            parties=frozenset({"app"}),
            algorithms=("EdDSA", "RS256"),
            user_claim="uid",
        ),
        static_tokens=False,
        require_scopes=True,
    )
    assert (loaded.public_url, loaded.rate) == ("https://ledger.example", (2.5, 7))
    assert (loaded.allowed_hosts, loaded.allowed_origins) == (
        ("ledger.example", "[::1]:8000"),
        ("https://app.example",),
    )


def test_without_the_prefix_only_the_database_url_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER_ID", "TOOLSET", "DATA_DIR", "DIRECT_DATABASE_URL"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("DATABASE_URL", f"{URL}plain")
    loaded = load_settings()
    assert database(loaded) == f"{URL}plain"
    assert loaded.direct_database_url is None
    assert CANARY not in str((loaded.user_id, loaded.toolset, loaded.data_dir))


def test_the_environment_outranks_dot_env_and_that_the_users_file(
    monkeypatch: pytest.MonkeyPatch, user_file: Path
) -> None:
    user_file.write_text("CHATLEDGER_USER_ID=file\nCHATLEDGER_TOOLSET=core\nCHATLEDGER_MAX_CONTENT_CHARS=5\n")
    here("CHATLEDGER_USER_ID=dotenv", "CHATLEDGER_TOOLSET=readonly", "SOMETHING_ELSE=1")
    monkeypatch.setenv("CHATLEDGER_USER_ID", "environment")
    loaded = load_settings()
    assert (loaded.user_id, loaded.toolset, loaded.max_content_chars) == ("environment", "readonly", 5)


@pytest.mark.parametrize("nothing", ["", "  ", "${user_config.x}", "${CHATLEDGER_X}", " ${x}"])
def test_a_value_that_is_none_does_not_hide_the_next_one(
    monkeypatch: pytest.MonkeyPatch, user_file: Path, nothing: str
) -> None:
    user_file.write_text(f"CHATLEDGER_USER_ID=file\nCHATLEDGER_DATABASE_URL={URL}file\n")
    for name in Settings.model_fields:
        monkeypatch.setenv(f"CHATLEDGER_{name}".upper(), nothing)
    assert (load_settings().user_id, database(load_settings())) == ("file", f"{URL}file")
    here(f"CHATLEDGER_USER_ID='{nothing}'", f"CHATLEDGER_DATABASE_URL='{nothing}'")
    assert (load_settings().user_id, database(load_settings())) == ("file", f"{URL}file")
    here("CHATLEDGER_USER_ID=dotenv")
    assert (load_settings().user_id, load_settings().toolset) == ("dotenv", "full")
    user_file.write_text(f"CHATLEDGER_DATABASE_URL='{nothing}'\nDATABASE_URL='{nothing}'")
    assert load_settings().database_url is None


def test_the_prefixed_database_url_outranks_the_plain_one_wherever_it_stands(
    monkeypatch: pytest.MonkeyPatch, user_file: Path
) -> None:
    user_file.write_text(f"DATABASE_URL={URL}file-plain")
    assert database(load_settings()) == f"{URL}file-plain"
    here(f"DATABASE_URL={URL}here-plain")
    assert database(load_settings()) == f"{URL}here-plain"
    monkeypatch.setenv("DATABASE_URL", f"{URL}plain")
    assert database(load_settings()) == f"{URL}plain"
    user_file.write_text(f"CHATLEDGER_DATABASE_URL={URL}file")
    assert database(load_settings()) == f"{URL}file"
    monkeypatch.setenv("CHATLEDGER_DATABASE_URL", "${DATABASE_URL}")
    assert database(load_settings()) == f"{URL}file"
    monkeypatch.setenv("CHATLEDGER_DATABASE_URL", f"{URL}environment")
    assert database(load_settings()) == f"{URL}environment"


def test_secrets_are_masked_wherever_the_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "DIRECT_DATABASE_URL", "AUTH_SECRET"):
        monkeypatch.setenv(f"CHATLEDGER_{name}", f"postgresql://u:{CANARY}@h/db")
    loaded = load_settings()
    assert CANARY in str(database(loaded))
    assert loaded.auth is not None
    for printed in (repr(loaded), str(loaded), f"{loaded.model_dump()}", loaded.model_dump_json(), repr(loaded.auth)):
        assert CANARY not in printed


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("MAX_CONTENT_CHARS", ["0", "-1"], "greater than or equal to 1"),
        ("MAX_CONTENT_CHARS", ["1000001"], "1000000"),
        ("MAX_CONTENT_CHARS", ["1e4", "10.5", CANARY], "integer"),
        ("MAX_CONVERSATIONS_PER_USER", ["0", "-1"], "greater than or equal to 1"),
        ("MAX_CONVERSATIONS_PER_USER", ["1.5", CANARY], "integer"),
        ("TOOLSET", ["FULL", "all", CANARY], "'core', 'full' or 'readonly'"),
        (
            "ALLOWED_ROLES",
            ["root", "user,User", f"user,{CANARY}", '["user"]'],
            "'user', 'assistant', 'system' or 'tool'",
        ),
        ("ALLOWED_ROLES", [",", " , "], "at least one role"),
        ("USER_ID", [CANARY * 22], "255 characters"),
        ("DATA_DIR", [f"~{CANARY}/data"], "home directory"),
        ("AUTH_ALGORITHMS", ["none", "HS512", "eddsa", f"EdDSA,{CANARY}"], "'EdDSA', 'ES256', 'RS256' or 'HS256'"),
        ("AUTH_REQUIRE_SCOPES", [CANARY, "2"], "boolean"),
        ("AUTH_STATIC_TOKENS", [CANARY], "boolean"),
        ("AUTH_SECRET", ["short", "x" * 31, "ä" * 15], "at least 32 bytes"),
        (
            "AUTH_SECRET",
            [f"-----BEGIN PUBLIC KEY-----\n{CANARY * 9}", '{"kty": "RSA"}' * 9, "ssh-rsa " * 9],
            "key pair",
        ),
        (
            "AUTH_ISSUER",
            [f"http://{CANARY}.example", CANARY, "https://", "https://u:p@h", "https://h?q"],
            "https:// URL",
        ),
        (
            "AUTH_ISSUER",
            ["file:///etc", "https://h/#f", "https://[::1", "https://h:99999", "https://h/a b"],
            "https://",
        ),
        ("AUTH_JWKS_URL", ["https://issuer.example/keys"], "needs CHATLEDGER_AUTH_ISSUER"),
        ("AUTH_AUDIENCE", ["me", "any"], "needs CHATLEDGER_AUTH_ISSUER or CHATLEDGER_AUTH_SECRET"),
        ("AUTH_AUTHORIZED_PARTIES", ["app"], "needs CHATLEDGER_AUTH_ISSUER or CHATLEDGER_AUTH_SECRET"),
        ("PUBLIC_URL", [CANARY, "ftp://h", "https://u:p@h", "https://h?x=1", "https://h#x", "//h", "https://"], "URL"),
        ("ALLOWED_HOSTS", ["*", "https://h", "h/x", "h:*", "h:", "h,a b", f"{CANARY}@h"], "names or addresses"),
        ("ALLOWED_ORIGINS", ["*", "null", "h", "https://h/", "https://*", f"https://{CANARY}@h"], "scheme://host"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_by_its_name_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, values: list[str], told: str
) -> None:
    for value in values:
        monkeypatch.setenv(f"CHATLEDGER_{name}", value)
        with pytest.raises(SettingsError) as refused:
            load_settings()
        sentence = str(refused.value)
        assert sentence.startswith(f"CHATLEDGER_{name} cannot be used: ")
        assert told in sentence
        assert CANARY not in sentence
        assert "\n" not in sentence


SECRET = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("given", "name", "told"),
    [
        ({"SECRET": SECRET, "JWKS_URL": "https://i.example/keys", "ISSUER": "i"}, "SECRET", "CHATLEDGER_AUTH_JWKS_URL"),
        ({"SECRET": SECRET, "ALGORITHMS": "RS256"}, "ALGORITHMS", "with a secret they are HS256"),
        ({"ISSUER": "https://i.example", "ALGORITHMS": "EdDSA,HS256"}, "ALGORITHMS", "EdDSA, ES256, RS256"),
        ({"ISSUER": "https://i.example", "AUDIENCE": "any,me"}, "AUDIENCE", "`any`"),
        ({"ISSUER": "https://i.example", "JWKS_URL": "http://i.example/keys"}, "JWKS_URL", "https:// URL"),
        ({"ISSUER": "https://i.example", "USER_CLAIM": "email"}, "USER_CLAIM", "never passes to another person"),
        ({"SECRET": SECRET, "USER_CLAIM": "preferred_username"}, "USER_CLAIM", "never passes to another person"),
    ],
)
def test_settings_of_authentication_that_contradict_each_other_are_told(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], name: str, told: str
) -> None:
    for setting, value in given.items():
        monkeypatch.setenv(f"CHATLEDGER_AUTH_{setting}", value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert str(refused.value).startswith(f"CHATLEDGER_AUTH_{name} cannot be used: ")
    assert told in str(refused.value)
    assert SECRET not in str(refused.value)
    assert "i.example" not in str(refused.value)


def test_authentication_is_what_is_set_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def auth(**given: str) -> AuthRules | None:
        with monkeypatch.context() as patch:
            for setting, value in given.items():
                patch.setenv(f"CHATLEDGER_AUTH_{setting}", value)
            return load_settings().auth

    for nothing in ({}, {"STATIC_TOKENS": "false"}, {"REQUIRE_SCOPES": "true"}, {"USER_CLAIM": "uid"}):
        assert auth(**nothing) is None
    assert auth(STATIC_TOKENS="true", REQUIRE_SCOPES="1") == AuthRules(None, static_tokens=True, require_scopes=True)
    by_keys = auth(ISSUER="https://i.example/")
    assert by_keys is not None
    assert by_keys.jwt == JwtRules(
        issuer="https://i.example/",
        jwks_url="https://i.example/.well-known/jwks.json",
        secret=None,
        audiences=frozenset(),
        parties=frozenset(),
        algorithms=("EdDSA", "ES256", "RS256"),
        user_claim="sub",
    )
    assert by_keys.static_tokens
    by_secret = auth(SECRET=SECRET, AUDIENCE="any", ISSUER="my backend")
    assert by_secret is not None
    assert by_secret.jwt is not None
    assert (by_secret.jwt.secret, by_secret.jwt.jwks_url, by_secret.jwt.audiences) == (SECRET.encode(), None, None)
    assert (by_secret.jwt.algorithms, by_secret.jwt.issuer) == (("HS256",), "my backend")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "localhost:8080", "127.0.0.1:1"])
def test_an_issuer_on_this_machine_needs_no_encryption(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("CHATLEDGER_AUTH_ISSUER", f"http://{host}")
    assert load_settings().auth is not None
    for elsewhere in ("localhost.example", "127.0.0.1.example", "10.0.0.1", "0.0.0.0", "[::2]"):
        monkeypatch.setenv("CHATLEDGER_AUTH_ISSUER", f"http://{elsewhere}")
        with pytest.raises(SettingsError):
            load_settings()


def test_a_settings_file_that_is_no_text_is_told_by_name(user_file: Path) -> None:
    user_file.write_bytes(b"CHATLEDGER_USER_ID=\xff\xfe")
    with pytest.raises(SettingsError, match=r"config\.env cannot be read: not UTF-8"):
        load_settings()


def test_a_data_directory_may_start_at_home_or_here_and_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLEDGER_DATA_DIR", "~/ledger")
    assert load_settings().data_dir == Path(os.environ["HOME"]) / "ledger"
    monkeypatch.setenv("CHATLEDGER_DATA_DIR", "ledger")
    assert load_settings().data_dir == Path.cwd() / "ledger"


def test_settings_do_not_change_once_they_are_read() -> None:
    loaded = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        loaded.user_id = "somebody else"
    assert loaded.user_id == "local"
