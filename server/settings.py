"""The settings of one installation, and the only place that reads the environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from platformdirs import user_config_path, user_data_path
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from chatledger.server.admission import Rate
from chatledger.server.auth.rules import AuthRules, is_public_url, make_rules
from chatledger.storage.limits import STORED_CONTENT_CHARS, USER_ID_CHARS, Limits
from chatledger.storage.records import ROLES
from chatledger.storage.source import DatabaseSource, EmbeddedDatabase, ExternalDatabase

Toolset: TypeAlias = Literal["core", "full", "readonly"]

USER_CONFIG_FILE = user_config_path("chatledger", appauthor=False) / "config.env"
ENV_FILE = Path(".env")
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_ORIGIN = re.compile(rf"https?://{_HOST.pattern}")


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
    max_messages_per_conversation: int | None = Field(default=None, ge=1)

    auth_issuer: str | None = None
    auth_jwks_url: str | None = None
    auth_audience: Annotated[tuple[str, ...], NoDecode] = ()
    auth_authorized_parties: Annotated[tuple[str, ...], NoDecode] = ()
    auth_algorithms: Annotated[tuple[Literal["EdDSA", "ES256", "RS256", "HS256"], ...], NoDecode] = ()
    auth_user_claim: str = "sub"
    auth_secret: SecretStr | None = None
    auth_require_scopes: bool = False
    auth_static_tokens: bool | None = None
    public_url: str | None = None
    rate_limit_per_second: float | None = Field(default=None, ge=0, le=10_000)
    rate_limit_burst: int = Field(default=60, ge=1, le=100_000)
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = ()

    @field_validator(
        "allowed_roles",
        "auth_audience",
        "auth_authorized_parties",
        "auth_algorithms",
        "allowed_hosts",
        "allowed_origins",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

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

    @field_validator("public_url")
    @classmethod
    def _public(cls, value: str | None) -> str | None:
        if value is not None and not is_public_url(value):
            raise ValueError("it must be the https:// or http:// URL at which clients reach this server")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_HOST.fullmatch(host) for host in value):
            raise ValueError("they are names or addresses, each with a port where only that one will do")
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_ORIGIN.fullmatch(origin) for origin in value):
            raise ValueError("they are scheme://host, each with a port where only that one will do")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        self.auth  # noqa: B018  # raises
        return self

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
    def database_place(self) -> str:
        """The same for people: a URL without its password, or a folder."""
        if self.database_url is None:
            from chatledger.storage.embedded import EmbeddedPostgres

            return f"embedded Postgres in {EmbeddedPostgres(self.data_dir).data_directory.parent}"
        from chatledger.storage.database_url import masked

        return masked(self.database_url.get_secret_value())

    @property
    def limits(self) -> Limits:
        """What this installation allows of a message and a user."""
        return Limits(
            self.max_content_chars,
            self.allowed_roles,
            self.max_conversations_per_user,
            self.max_messages_per_conversation,
        )

    @property
    def rate(self) -> Rate | None:
        """How fast one user may call; None: as fast as one likes."""
        per_second, burst = self.rate_limit_per_second, self.rate_limit_burst
        if per_second is None:
            per_second = 0 if self.auth is None else 20
        return None if per_second == 0 else Rate(per_second, burst)

    @property
    def auth(self) -> AuthRules | None:
        """How callers over HTTP are verified; None where nothing is configured, so that only loopback may be served."""
        return make_rules(
            issuer=self.auth_issuer,
            jwks_url=self.auth_jwks_url,
            secret=None if self.auth_secret is None else self.auth_secret.get_secret_value(),
            audience=self.auth_audience,
            parties=self.auth_authorized_parties,
            algorithms=self.auth_algorithms,
            user_claim=self.auth_user_claim,
            require_scopes=self.auth_require_scopes,
            static_tokens=self.auth_static_tokens,
        )


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
        why = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # about several of them together
            raise SettingsError(why) from None
        name = f"CHATLEDGER_{first['loc'][0]}".upper()
        raise SettingsError(f"{name} cannot be used: {why}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the settings in .env or {USER_CONFIG_FILE} cannot be read: not UTF-8") from None
    except OSError as exc:
        raise SettingsError(f"{exc.filename} cannot be read") from None
