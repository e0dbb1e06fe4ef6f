"""The settings of one installation, and the only place that reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from platformdirs import user_config_path, user_data_path
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from chatledger.storage.limits import STORED_CONTENT_CHARS, USER_ID_CHARS, Limits
from chatledger.storage.records import ROLES
from chatledger.storage.source import DatabaseSource, EmbeddedDatabase, ExternalDatabase

Toolset: TypeAlias = Literal["core", "full", "readonly"]

USER_CONFIG_FILE = user_config_path("chatledger", appauthor=False) / "config.env"
ENV_FILE = Path(".env")


class SettingsError(Exception):
    """A setting cannot be used. The sentence names it and what it must be, never its value."""


class Settings(BaseSettings):
    """What may be set, as `CHATLEDGER_<NAME>` in the environment, in `.env` where the server starts, or in the user's
    `config.env`; the first that has a usable value wins. An empty value, or one that a client left as `${...}`, is
    none."""

    model_config = SettingsConfigDict(
        env_prefix="CHATLEDGER_",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    database_url: SecretStr | None = None
    direct_database_url: SecretStr | None = None
    data_dir: Path = Field(default_factory=lambda: user_data_path("chatledger", appauthor=False))
    user_id: str = Field(default="local", min_length=1, max_length=USER_ID_CHARS)
    toolset: Toolset = "full"
    max_content_chars: int = Field(default=10_000, ge=1, le=STORED_CONTENT_CHARS)
    allowed_roles: Annotated[tuple[Literal["user", "assistant", "system", "tool"], ...], NoDecode] = ROLES
    max_conversations_per_user: int | None = Field(default=None, ge=1)

    @field_validator("allowed_roles", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [role.strip() for role in value.split(",") if role.strip()] if isinstance(value, str) else value

    @field_validator("allowed_roles")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one role")
        return value

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            return value.expanduser().absolute()
        except RuntimeError:
            raise ValueError("there is no such home directory") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment, `.env`, the user's file; after all of them the `DATABASE_URL` that other programs read too.

        What is no value is dropped before they are merged, so that it does not hide one further down.
        """
        assert isinstance(env_settings, EnvSettingsSource)
        files = [DotEnvSettingsSource(settings_cls, env_file=file) for file in (ENV_FILE, USER_CONFIG_FILE)]
        sources = [env_settings, *files]
        for source in sources:
            source.env_vars = {name: value for name, value in source.env_vars.items() if _usable(value)}
        plain = [source.env_vars["database_url"] for source in sources if "database_url" in source.env_vars]
        fallback = InitSettingsSource(settings_cls, {"database_url": plain[0]} if plain else {})
        return (init_settings, *sources, fallback)

    @property
    def database_source(self) -> DatabaseSource:
        """Where conversations are kept."""
        if self.database_url is not None:
            return ExternalDatabase(self.database_url.get_secret_value())
        return EmbeddedDatabase(self.data_dir)

    @property
    def limits(self) -> Limits:
        """What this installation allows of a message and a user."""
        return Limits(self.max_content_chars, self.allowed_roles, self.max_conversations_per_user)


def _usable(value: str | None) -> bool:
    return value is not None and value.strip() != "" and not value.strip().startswith("${")


def load_settings() -> Settings:
    """The settings as they are now.

    Raises:
        SettingsError: one of them cannot be used.
    """
    try:
        return Settings()
    except ValidationError as exc:
        first = exc.errors(include_input=False, include_url=False, include_context=False)[0]
        name, why = f"CHATLEDGER_{first['loc'][0]}".upper(), first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name} cannot be used: {why}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the settings in .env or {USER_CONFIG_FILE} cannot be read: not UTF-8") from None
    except OSError as exc:
        raise SettingsError(f"{exc.filename} cannot be read") from None
