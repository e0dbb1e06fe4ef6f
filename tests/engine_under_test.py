"""The Postgres that the suite runs on: what it is, what it lacks, and databases on every node of its cluster.

Where the database in `CHATLEDGER_TEST_DATABASE_URL` has the extension `citus`, each test gets a database whose tables
are laid out over that cluster. Such a database is one on every node: the coordinator finds the others by its name.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import asyncpg
from sqlalchemy import make_url

from chatledger.storage import distribution, schema

RunSql = Callable[..., list[Any]]
SHARDS: Final = 4  # chosen: several on each node, and a test's database is copied 8 times as fast as with 32

# Citus looks after each database in a process of its own, which on a busy machine needs longer to end than the 5 s for
# which Postgres waits.
ATTEMPTS: Final = 12

_FACTS = """
SELECT current_setting('server_version') AS version,
       (SELECT extversion FROM pg_extension WHERE extname = 'citus') AS citus,
       (SELECT rolsuper OR rolcreatedb FROM pg_roles WHERE rolname = current_user) AS makes_databases,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS mighty,
       (SELECT array_agg(wanted) FROM unnest(ARRAY['btree_gin', 'pg_trgm']) wanted
         WHERE NOT EXISTS (SELECT FROM pg_available_extensions WHERE name = wanted)) AS unavailable
"""
_NODES = "SELECT nodename AS host, nodeport AS port, groupid = 0 AS coordinates FROM pg_dist_node WHERE isactive"
_OF_DATABASES = re.compile(r"(?:CREATE|DROP) DATABASE (?:IF EXISTS )?(\S+)(?: TEMPLATE (\S+))?")


class Lack(NamedTuple):
    """Something that an engine has not: which tests are about it, and what becomes of them."""

    what: str
    tests: tuple[str, ...]
    """Modules, or `module::test` to its first bracket."""
    instead: bool
    """Whether they run all the same, in a database that is not laid out over the cluster."""


# What `distribution` says cannot be had on a cluster, and what shows how one machine does it.
ON_A_CLUSTER: Final = (
    Lack(
        "appends of several users in one statement",
        ("test_append_batcher", "test_isolation::test_no_statement_may_lose_its_owner_predicate_unnoticed"),
        instead=True,
    ),
    Lack(
        "users of a host application",
        ("test_adoption", "test_adopted_users", "test_users_table_option", "test_existing_applications"),
        instead=True,
    ),
    Lack("row security", ("test_row_security", "test_row_security_up_and_down"), instead=True),
    Lack(
        "EXPLAIN ANALYZE of what changes something, and nodes of a plan in the form that Postgres tells them",
        ("test_queries", "test_search_plans"),
        instead=True,
    ),
)
NO_CLUSTER: Final = "tables over a cluster (the database in CHATLEDGER_TEST_DATABASE_URL has no extension citus)"


class Engine(NamedTuple):
    """What was found at the start."""

    version: str
    citus: str | None
    workers: tuple[str, ...]
    """URLs of the nodes beside the one that is asked."""
    coordinator: tuple[str, int] | None
    """As the cluster knows the one that is asked."""
    unreachable: str | None
    problems: tuple[str, ...]
    mighty: bool

    def lacks(self, node: Any) -> list[Lack]:
        """What a test is about that this engine has not."""
        module, name = node.module.__name__.rpartition(".")[2], node.name.partition("[")[0]
        return [lack for lack in self.lacking() if module in lack.tests or f"{module}::{name}" in lack.tests]

    def lacking(self) -> list[Lack]:
        """All that it has not."""
        return list(ON_A_CLUSTER) if self.citus else []


_known: dict[str, Engine] = {}


def look(url: str, run_sql: RunSql) -> Engine:
    """What the engine at `url` is, asked once."""
    if url not in _known:
        _known[url] = _look(url, run_sql)
    return _known[url]


def _look(url: str, run_sql: RunSql) -> Engine:
    (facts,) = run_sql(url, _FACTS)
    workers: list[str] = []
    coordinator = unreachable = None
    for node in run_sql(url, _NODES) if facts["citus"] else ():
        if node["coordinates"]:
            coordinator = (node["host"], node["port"])
        else:
            at = make_url(url).set(host=node["host"], port=node["port"])
            workers.append(at.render_as_string(hide_password=False))
    for worker in workers:
        try:
            run_sql(worker, "SELECT")
        except OSError as exc:
            unreachable = f"{make_url(worker).host}:{make_url(worker).port} ({exc})"
    problems = [] if facts["makes_databases"] else ["the role may not create databases: no test can run"]
    problems += [f"the extension {name} is not installed: no test can run" for name in facts["unavailable"] or ()]
    return Engine(
        facts["version"],
        facts["citus"],
        () if unreachable else tuple(workers),
        coordinator,
        unreachable,
        tuple(problems),
        facts["mighty"],
    )


def on_every_node(url: str, statement: str, run_sql: RunSql) -> bool:
    """Run a statement about whole databases on all nodes of a cluster. False, and nothing done: it is another one.

    What is copied must have no connection, and Citus keeps one of its own in each database.
    """
    engine, found = _known.get(url), _OF_DATABASES.match(statement)
    if engine is None or engine.citus is None or found is None:
        return False
    source = found[2]
    copied = source if statement.startswith("CREATE") and source not in (None, "template0") else None

    def run_there(node: str) -> None:
        for left in reversed(range(ATTEMPTS)):
            try:
                run_sql(node, statement)
            except asyncpg.ObjectInUseError:
                if not left:
                    raise
            else:
                return

    def close(node: str, database: str) -> None:
        run_sql(
            node,
            f"ALTER DATABASE {database} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
        )

    def run(node: str) -> None:
        if copied is None:
            if statement.startswith("DROP"):
                with contextlib.suppress(asyncpg.InvalidCatalogNameError):
                    close(node, found[1])  # or its process comes back while it is being dropped
            run_there(node)
            return
        close(node, copied)
        try:
            run_there(node)
        finally:
            run_sql(node, f"ALTER DATABASE {copied} ALLOW_CONNECTIONS true")

    # The coordinator first: its process looks for the others', and would wait for what is gone.
    run(url)
    with ThreadPoolExecutor(max(1, len(engine.workers))) as threads:
        list(threads.map(run, engine.workers))
    return True


def on_nodes(url: str) -> list[str]:
    """Where the database at `url` is: on every node of the cluster, whether its tables are laid out or not."""
    name = make_url(url).database
    workers = [make_url(worker) for engine in _known.values() for worker in engine.workers]
    return [url, *(worker.set(database=name).render_as_string(hide_password=False) for worker in workers)]


def lay_out(engine: Engine, url: str, run_sql: RunSql) -> None:
    """Make the database at `url`, which is there on every node, one of the cluster; lay the tables out in it."""
    database = make_url(url).database
    nodes = on_nodes(url)
    for node in nodes:
        run_sql(node, "CREATE EXTENSION citus")
    if engine.workers and engine.coordinator:
        run_sql(url, "SELECT citus_set_coordinator_host('{}', {})".format(*engine.coordinator))
    for place in map(make_url, nodes[1:]):
        run_sql(url, f"SELECT citus_add_node('{place.host}', {place.port})")
    run_sql(url, f"ALTER DATABASE {database} SET citus.shard_count = {SHARDS}")
    schema.migrate(url)
    schema.migrate(url, then=distribution.lay_out)


def report(engine: Engine | None, left_out: Sequence[tuple[str, int]]) -> list[str]:
    """What is said before the first test."""
    if engine is None:
        lines = ["engine     the embedded Postgres"]
    else:
        cluster = f", Citus {engine.citus} with {len(engine.workers)} workers" if engine.citus else ""
        lines = [f"engine     Postgres {engine.version}{cluster} (CHATLEDGER_TEST_DATABASE_URL)"]
        if engine.unreachable:
            lines.append(f"lacking    a way to {engine.unreachable}; all shards are with the coordinator")
        lines += [
            f"lacking    {lack.what}: {'their tests run in a database of one machine' if lack.instead else 'left out'}"
            for lack in engine.lacking()
        ]
        lines += [f"problem    {problem}" for problem in engine.problems]
    return lines + [f"lacking    {what}: {count} tests left out" for what, count in left_out]
