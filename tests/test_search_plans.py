"""How Postgres runs a search of a user with 100,000 messages: by the indexes, over few of that user's rows only."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from chatledger.storage import search_queries
from chatledger.storage.database_url import SERVER_SETTINGS
from chatledger.storage.search_terms import parse
from tests.conftest import database_at, run_sql

OWN, OTHERS = 100_000, 50_000
FILL = (
    "SET statement_timeout = 0",
    "DROP INDEX chatledger.messages_search",
    """INSERT INTO chatledger.users (id, last_number, conversation_count)
       SELECT 'user-' || n, 1, 1 FROM generate_series(0, 20) n""",
    """INSERT INTO chatledger.conversations (user_id, id, number, last_seq)
       SELECT 'user-' || n, lpad(to_hex(n), 32, '0')::uuid, 1, 100000 FROM generate_series(0, 20) n""",
    f"""INSERT INTO chatledger.messages (user_id, conversation_id, seq, id, role, content, created_at)
       SELECT 'user-' || u, lpad(to_hex(u), 32, '0')::uuid, row_number() OVER (), gen_random_uuid(), 'user',
              'common ' || md5(n::text) || CASE WHEN n % 500 = 7 THEN ' needle' ELSE '' END
                        || CASE WHEN n % 4000 = 7 THEN ' 天气' ELSE '' END,
              timestamptz '2025-01-01' + n * interval '1 second'
         FROM (SELECT n, CASE WHEN n < {OWN} THEN 0 ELSE 1 + n % 20 END AS u
                 FROM generate_series(0, {OWN + OTHERS - 1}) n) made""",
)


@pytest.fixture(scope="module")
def large_url(postgres_url: str, template: str) -> Iterator[str]:
    """A user with 100,000 messages, and 20 others with half as many together."""
    name = f"chatledger_large_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    url = database_at(postgres_url, name)
    (made,) = run_sql(url, "SELECT indexdef FROM pg_indexes WHERE indexname = 'messages_search'")
    run_sql(url, *FILL, "SET maintenance_work_mem = '256MB'", made["indexdef"], "ANALYZE")
    yield url
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(
    ("query", "hits"),
    [
        ("needle", 11),
        ("common", 11),
        ('"common zzz"', 0),
        ("eedl", 11),
        ("天气", 11),
        ("天", 11),
        ("needle 天气", 11),
        ("zzzz", 0),
        ("zz", 0),
        ("C++", 0),
        ('"a zz"', 0),
        ('"zz common"', 0),
        ("zz common", 0),
    ],
)
async def test_a_search_of_a_large_user_reads_that_users_rows_only_and_few_of_them(
    query: str, hits: int, large_url: str
) -> None:
    import json

    from chatledger.storage.search_terms import search_for
    from tests.driver import connect

    statement = search_queries.search_messages(
        "user-0",
        search_for(*parse(query)),
        None,
        role=None,
        created_after=None,
        created_before=None,
        after=None,
        limit=11,
    )
    connection = await connect(large_url, **SERVER_SETTINGS)
    rows = await connection.fetch(statement.sql, *statement.args)
    await connection.execute(f"PREPARE searched AS {statement.sql}")
    values = ", ".join(map(as_literal, statement.args))
    told = []
    for plans in ("force_custom_plan", "force_generic_plan"):  # a driver's connection comes to the second by itself
        await connection.execute(f"SET plan_cache_mode = {plans}")
        told.append(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE searched ({values})"))
    await connection.close()
    assert len([row for row in rows if row["seq"] is not None]) == hits
    for plan in (json.loads(text)[0]["Plan"] for text in told):
        check_plan(query, plan)


def as_literal(value: object) -> str:
    """An argument as EXECUTE takes it."""
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(as_literal, value))}]::text[]"
    return (
        "NULL" if value is None else str(value) if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
    )


def check_plan(query: str, plan: dict[str, Any]) -> None:
    from tests.test_queries import nodes

    for node in nodes(plan):
        if node.get("Relation Name") == "messages" and node["Actual Loops"]:
            condition = str(node.get("Index Cond", node.get("Recheck Cond", "")))
            assert "(user_id = 'user-0'::text)" in condition or "(user_id = $1)" in condition, node
            refused = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
            assert (node.get("Actual Rows", 0) + refused) * node["Actual Loops"] <= 12_000, node
    used = {node["Index Name"] for node in nodes(plan) if "Index Name" in node and node["Actual Loops"]}
    assert used & {"messages_recent", "messages_search"}
    if query not in ("common", "zz", "C++", '"a zz"'):  # what is common is found sooner; the others have no trigram
        assert "messages_search" in used
