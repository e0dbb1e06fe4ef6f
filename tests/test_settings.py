"""Where a setting comes from, which of several wins, and what is said of one that cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from platformdirs import user_data_path

from chatledger.server import settings
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
    assert loaded.limits == Limits(1_000_000, ("user", "assistant"), 1)


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
    for name in ("DATABASE_URL", "DIRECT_DATABASE_URL"):
        monkeypatch.setenv(f"CHATLEDGER_{name}", f"postgresql://u:{CANARY}@h/db")
    loaded = load_settings()
    assert CANARY in str(database(loaded))
    for printed in (repr(loaded), str(loaded), f"{loaded.model_dump()}", loaded.model_dump_json()):
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
