"""A real Postgres for the whole session, a fresh database with the real schema for each test.

`CHATLEDGER_TEST_DATABASE_URL` points the suite at any Postgres whose role may create databases; without it the session
starts an embedded one, without fsync, in a temporary directory. The first lines say what the engine lacks.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client
from sqlalchemy import make_url

from chatledger.server.app import make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore, Limits, schema
from chatledger.storage.embedded import temporary
from tests import engine_under_test
from tests.driver import connect

if TYPE_CHECKING:
    from pathlib import Path

    from tests.auth_server import Serve, Served
    from tests.commands import Run
    from tests.issuer import Issuer
    from tests.spans_in_memory import Spans

ENGINE = "CHATLEDGER_TEST_DATABASE_URL"
ERAS = ("auto", "legacy")
"""Both protocol eras: the newest revision that client and server know, and `initialize`."""

OpenClient = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No setting of the person who runs the tests reaches them, and no test reaches that person's data."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name == "DATABASE_URL" or (name.startswith("CHATLEDGER_") and name != ENGINE):
                patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        for name, folder in (("HOME", "."), ("XDG_CONFIG_HOME", "config"), ("XDG_DATA_HOME", "data")):
            patch.setenv(name, str(home / folder))
        yield


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A Postgres server where databases may be created."""
    if given := os.environ.get(ENGINE):
        yield given
        return
    with temporary(fsync="off", full_page_writes="off", max_connections="300") as url:
        yield url


def run_sql(url: str, *statements: str) -> list[Any]:
    """Run statements on a connection of their own; the rows of the last. One of whole databases is run on all nodes."""
    if len(statements) == 1 and engine_under_test.on_every_node(url, statements[0], _run_there):
        return []
    return _run_there(url, *statements)


def _run_there(url: str, *statements: str) -> list[Any]:
    async def run() -> list[Any]:
        connection = await connect(url)
        try:
            rows: list[list[Any]] = [await connection.fetch(statement) for statement in statements]
            return rows[-1]
        finally:
            await connection.close()

    return asyncio.run(run())


def database_at(url: str, name: str) -> str:
    """The same server, another database."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the engine has not, and say so before the first test."""
    engine = _engine()
    left_out = [] if engine and engine.citus else [item for item in items if item.get_closest_marker("cluster")]
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    for line in engine_under_test.report(engine, [(engine_under_test.NO_CLUSTER, len(left_out))] if left_out else []):
        reporter.write_line(line)


def _engine() -> engine_under_test.Engine | None:
    given = os.environ.get(ENGINE)
    return engine_under_test.look(given, _run_there) if given else None


@pytest.fixture(scope="session")
def template_of_engine(postgres_url: str) -> Iterator[str]:
    """The name of a database that the real migrations were run in; each test gets a copy.

    On a cluster its tables are laid out over it.
    """
    engine = _engine()
    with _migrated(postgres_url) as name:
        if engine is not None and engine.citus:
            engine_under_test.lay_out(engine, database_at(postgres_url, name), _run_there)
        yield name


@pytest.fixture(scope="session")
def template_of_one_machine(postgres_url: str) -> Iterator[str]:
    """The same without a cluster."""
    with _migrated(postgres_url) as name:
        yield name


@pytest.fixture(scope="module")
def template(request: pytest.FixtureRequest) -> str:
    """What a module makes copies of: of one machine where all of it is about something that a cluster has not."""
    return _template_for(request)


@pytest.fixture
def template_of_the_test(request: pytest.FixtureRequest) -> str:
    """The same for one test."""
    return _template_for(request)


def _template_for(request: pytest.FixtureRequest) -> str:
    engine = _engine()
    lacking = engine is not None and engine.lacks(request.node)
    return str(request.getfixturevalue("template_of_one_machine" if lacking else "template_of_engine"))


@contextmanager
def _migrated(postgres_url: str) -> Iterator[str]:
    name = f"chatledger_template_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE template0")
    schema.migrate(database_at(postgres_url, name))
    yield name
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A database without any table."""
    name = f"chatledger_empty_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE template0")
    yield database_at(postgres_url, name)
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(postgres_url: str, template_of_the_test: str) -> Iterator[str]:
    """A database with the schema and no rows; of one machine for what a cluster has not."""
    name = f"chatledger_test_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template_of_the_test}")
    yield database_at(postgres_url, name)
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[ConversationStore]:
    """A store with the default limits."""
    async with ConversationStore.at(database_url) as opened:
        yield opened


@pytest.fixture(params=ERAS)
def era(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client_of(database_url: str, era: str) -> OpenClient:
    """Opens an in-memory client for a user: `async with client_of("alice") as client`. Each has a server of its own."""

    @asynccontextmanager
    async def connect(user_id: str, *, toolset: str = "full", limits: Limits | None = None) -> AsyncIterator[Client]:
        async with (
            ConversationStore.at(database_url, limits) as store,
            Client(make_server(store, local_user(user_id), toolset=toolset), mode=era) as client,
        ):
            yield client

    return connect


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer of tokens with its JWKS on a loopback port."""
    from tests.issuer import serving

    with serving() as served:
        yield served


@pytest.fixture
def serve(store: ConversationStore, issuer: Issuer) -> Serve:
    """Serves over HTTP whom the issuer knows: `async with serve() as served`, with settings of authentication."""
    from tests.auth_server import start

    return partial(start, store, issuer)


@pytest.fixture
async def served(serve: Serve) -> AsyncIterator[Served]:
    """Such a server with the default settings."""
    async with serve() as started:
        yield started


@pytest.fixture
def spans() -> Spans:
    """A provider that keeps the spans it is left."""
    from tests.spans_in_memory import Spans

    return Spans()


@pytest.fixture
def run(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Run:
    """Runs commands on the test's database."""
    from tests.commands import runner

    return runner(database_url, tmp_path, monkeypatch, capfdbinary)
