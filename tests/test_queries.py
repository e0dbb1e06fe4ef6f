"""Every statement reaches every table through the caller's own rows, by the index that it names, at any size.

The plans are Postgres' own, on a user with 100,000 messages among others. A statement that a later change adds to a
module of queries is found here by itself, and fails until it says how it is to be called.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatledger.storage import (
    append_queries,
    bulk_queries,
    conversation_queries,
    erasure_queries,
    history_queries,
    retention_queries,
    search_queries,
    token_queries,
)
from chatledger.storage.database_url import SERVER_SETTINGS
from chatledger.storage.query import Query
from chatledger.storage.records import ConversationRef, WholeConversation
from chatledger.storage.search_queries import Place
from chatledger.storage.search_terms import parse, search_for
from chatledger.storage.validation import MessageColumns
from tests.driver import connect

MODULES = (
    append_queries,
    bulk_queries,
    conversation_queries,
    erasure_queries,
    history_queries,
    retention_queries,
    search_queries,
    token_queries,
)
USER, BUSY = "user-3", UUID(int=3)
MESSAGE = MessageColumns("user", "hello", None, None, None, None, None, "key-1")
NEW, UNKEYED = MESSAGE._replace(client_message_id="new"), MESSAGE._replace(client_message_id=None)
WINDOW: dict[str, Any] = {"after_seq": 0, "before_seq": 2**63 - 1, "limit": 20, "max_tokens": 8000, "full": True}
NO_FILTER: dict[str, Any] = {
    "before": None,
    "include_archived": True,
    "title_contains": None,
    "updated_after": None,
    "updated_before": None,
}
ANYWHERE: dict[str, Any] = {
    "role": None,
    "created_after": None,
    "created_before": None,
    "after": None,
    "limit": 11,
}
PLACE = (datetime(2030, 1, 1, tzinfo=UTC), BUSY)
TOKEN = f"{3:012x}"  # of USER
# A token is found before anybody knows whose it is, and whoever runs the server sees and ends those of all users. No
# tool leads to these statements; they are held to touch no other table.
OF_ANY_USER = {"find_token", "revoke_token", "list_tokens"}
# What whoever runs the server asks of all users at once, and the tables that it reads: counts and digests, no message.
OF_ALL_USERS: dict[str, set[str]] = {
    "add_erasures": set(),
    "cutoff": set(),
    "list_erasures": {"erasures"},
    "next_users": {"users"},
    "users_with_old": {"conversations"},
}

# It carries messages of many users, each row with its own: the first argument is the list of them.
OF_MANY_USERS = {"append_batch"}

# Most messages here are this one user's, so that a scan of all is right for a common word: test_search_plans has
# other data.
PLANNED_ELSEWHERE = {"search_messages"}

POPULATE = (
    """INSERT INTO chatledger.users (id, last_number, conversation_count)
       SELECT 'user-' || n, 10000, 10000 FROM generate_series(0, 19999) n""",
    """INSERT INTO chatledger.conversations (user_id, id, number, key, title, updated_at, last_seq)
       SELECT 'user-' || n % 10, lpad(to_hex(n), 32, '0')::uuid, n / 10 + 1, 'key-' || n, 'title ' || n,
              now() - n * interval '1 second', CASE WHEN n = 3 THEN 100000 ELSE 1 END
         FROM generate_series(0, 19999) n""",
    """INSERT INTO chatledger.messages (user_id, conversation_id, seq, id, role, content, client_message_id)
       SELECT 'user-3', lpad('3', 32, '0')::uuid, n, gen_random_uuid(), 'user', 'message ' || n, 'key-' || n
         FROM generate_series(1, 100000) n""",
    """INSERT INTO chatledger.messages (user_id, conversation_id, seq, id, role, content)
       SELECT user_id, id, 1, gen_random_uuid(), 'user', 'hello' FROM chatledger.conversations WHERE number > 1""",
    """INSERT INTO chatledger.api_tokens (user_id, id, hash, scopes)
       SELECT 'user-' || n % 10, lpad(to_hex(n), 12, '0'), sha256(n::text::bytea), ARRAY['conversations:read']
         FROM generate_series(0, 19999) n""",
    "ANALYZE",
)
SMALL = (
    "INSERT INTO chatledger.users (id, last_number, conversation_count) VALUES ('user-3', 1, 1)",
    """INSERT INTO chatledger.conversations (user_id, id, number, last_seq)
       VALUES ('user-3', lpad('3', 32, '0')::uuid, 1, 3)""",
    """INSERT INTO chatledger.messages (user_id, conversation_id, seq, id, role, content, client_message_id)
       SELECT 'user-3', lpad('3', 32, '0')::uuid, n, gen_random_uuid(), 'user', 'message ' || n, 'key-' || n
         FROM generate_series(1, 3) n""",
    "ANALYZE",
)

# As a connection has them that keeps its plans, from the sixth call of a statement on.
SETTINGS = (
    "SET plan_cache_mode = force_generic_plan",
    *(f"SET {name} = '{of}'" for name, of in SERVER_SETTINGS.items()),
)


def samples(ref: ConversationRef) -> dict[str, list[Query]]:
    """Each statement, called in each of its forms."""
    lists: list[dict[str, Any]] = [
        {},
        {"before": PLACE},
        {"include_archived": False},
        {"before": PLACE, "title_contains": "le 1", "updated_after": PLACE[0], "updated_before": PLACE[0]},
    ]
    places: list[dict[str, Any]] = [
        {},
        {"after": Place(PLACE[0], BUSY, 50_000), "role": "user"},
        {"created_after": PLACE[0], "created_before": PLACE[0]},
    ]
    new = WholeConversation(
        id=uuid4(), number=7, key="new", title="t", metadata="{}", created_at=PLACE[0], updated_at=PLACE[0], messages=[]
    )
    return {
        "create_token": [token_queries.create_token(USER, "new", bytes(32), name=None, scopes=["a"], expires_at=None)],
        "find_token": [token_queries.find_token(TOKEN)],
        "mark_token": [token_queries.mark_token(USER, TOKEN, last) for last in (None, PLACE[0])],
        "list_tokens": [token_queries.list_tokens()],
        "list_tokens_of": [token_queries.list_tokens_of(USER)],
        "revoke_token": [token_queries.revoke_token(TOKEN)],
        "find_by_keys": [bulk_queries.find_by_keys(USER, ["key-3", "key-13"], by_message_id=False)],
        "find_by_ids": [bulk_queries.find_by_ids(USER, [BUSY], by_message_id=True)],
        "add_conversations": [bulk_queries.add_conversations(USER, [new], quota=quota) for quota in (None, 20_000)],
        "extend_conversation": [
            bulk_queries.extend_conversation(USER, BUSY, last_seq=100_000, added=1, updated_at=PLACE[0])
        ],
        "read_conversation": [bulk_queries.read_conversation(USER, ref)],
        "read_conversations": [bulk_queries.read_conversations(USER, after_number=500, limit=100)],
        "read_messages": [bulk_queries.read_messages(USER, [BUSY], after_seq=50_000, limit=100)],
        "count_user": [bulk_queries.count_user(USER)],
        "erase_user": [bulk_queries.erase_user(USER, bytes(32))],
        "list_erasures": [erasure_queries.list_erasures()],
        "next_users": [erasure_queries.next_users(USER, 10)],
        "replay_erasure": [erasure_queries.replay_erasure(USER, bytes(32), PLACE[0], conversations=1, messages=1)],
        "add_erasures": [erasure_queries.add_erasures([bytes(32)], [PLACE[0]], [1], [1])],
        "cutoff": [retention_queries.cutoff(timedelta(days=365))],
        "users_with_old": [retention_queries.users_with_old("", 10, before=PLACE[0], archived_only=True)],
        "count_old": [retention_queries.count_old(USER, before=PLACE[0], archived_only=True)],
        "delete_old": [
            retention_queries.delete_old(USER, before=PLACE[0], archived_only=archived_only, limit=10)
            for archived_only in (False, True)
        ],
        "create_conversation": [
            conversation_queries.create_conversation(USER, uuid4(), key=key, title="t", metadata="{}", quota=quota)
            for key in (None, "key-3")
            for quota in (None, 5)
        ],
        "get_conversation": [conversation_queries.get_conversation(USER, ref)],
        "update_conversation": [
            conversation_queries.update_conversation(USER, ref, title="t", merged="{}", removed=["a"], archived=True)
        ],
        "fork_conversation": [
            conversation_queries.fork_conversation(USER, ref, uuid4(), at_seq=5, title=None, quota=None)
        ],
        "search_messages": [
            search_queries.search_messages(USER, search_for(*parse(query)), which, **ANYWHERE | how)
            for query in ("message", '"message 77" 9 -x', "\u4f60\u597d", "ab", "\U0001f389")
            for which in (ref, None)
            for how in places
        ],
        "delete_conversation": [conversation_queries.delete_conversation(USER, ref)],
        "list_conversations": [conversation_queries.list_conversations(USER, 21, **NO_FILTER | how) for how in lists],
        "list_numbers": [conversation_queries.list_numbers(USER, typed, 101) for typed in ("", "1", "le 1")],
        "append_message": [
            append_queries.append_message(USER, ref, uuid4(), message, expected_last_seq=None)
            for message in (MESSAGE, NEW, UNKEYED)
        ],
        "append_batch": [
            append_queries.append_batch([USER] * 2, [ref, UUID(int=13)], [uuid4(), uuid4()], [MESSAGE] * 2, quota=None)
        ],
        "append_messages": [
            append_queries.append_messages(USER, ref, [uuid4(), uuid4()], [MESSAGE] * 2, expected_last_seq=None)
        ],
        "load_message": [history_queries.load_message(USER, ref, 50_000)],
        "load_history": [
            history_queries.load_history(USER, which, **WINDOW | how)
            for which in (ref, None)
            for how in ({"forward": False}, {"forward": True, "after_seq": 50_000}, {"forward": False, "full": False})
        ],
    }


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.fixture(scope="module")
def populated_url(postgres_url: str, template: str) -> Iterator[str]:
    import secrets

    from tests.conftest import database_at, run_sql

    name = f"chatledger_plans_{secrets.token_hex(4)}"
    run_sql(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template}")
    url = database_at(postgres_url, name)
    run_sql(url, *POPULATE)
    yield url
    run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def plan_of(populated_url: str) -> AsyncIterator[Callable[[Query], Any]]:
    """Runs a statement and gives its plan; what it changed is rolled back."""
    connection = await connect(populated_url, **SERVER_SETTINGS)

    async def explain(query: Query) -> dict[str, Any]:
        transaction = connection.transaction()
        await transaction.start()
        try:
            told = await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query.sql}", *query.args)
        finally:
            await transaction.rollback()
        plan: dict[str, Any] = json.loads(told)[0]["Plan"]
        return plan

    yield explain
    await connection.close()


def test_every_statement_has_a_sample() -> None:
    statements = {
        name
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert statements == set(samples(BUSY))


@pytest.mark.parametrize("ref", [BUSY, 1], ids=["by id", "by number"])
@pytest.mark.parametrize("name", sorted(samples(BUSY).keys() - OF_ANY_USER - OF_ALL_USERS.keys() - PLANNED_ELSEWHERE))
async def test_a_statement_touches_the_callers_rows_only_and_through_an_index(
    name: str, ref: ConversationRef, plan_of: Callable[[Query], Any]
) -> None:
    for query in samples(ref)[name]:
        assert query.args[0] == ([USER] * 2 if name in OF_MANY_USERS else USER)
        plan = await plan_of(query)
        for node in nodes(plan):
            if node.get("Schema", "chatledger") != "chatledger" or "Scan" not in node["Node Type"]:
                continue
            table = node.get("Relation Name")
            if table is None:
                continue
            condition = str(node.get("Index Cond", node.get("Recheck Cond", "")))
            owner = "(id = 'user-3'::text)" if table == "users" else "(user_id = 'user-3'::text)"
            if name in OF_MANY_USERS:
                owner = "(user_id = "  # of the message
            assert owner in condition, f"{name} reads {table} by {node['Node Type']} with {condition or 'no index'}"


@pytest.mark.parametrize("name", sorted(OF_ANY_USER))
async def test_a_statement_that_is_about_any_user_touches_tokens_only(
    name: str, plan_of: Callable[[Query], Any]
) -> None:
    assert hasattr(token_queries, name)
    for query in samples(BUSY)[name]:
        found = list(nodes(await plan_of(query)))
        assert {node["Relation Name"] for node in found if "Relation Name" in node} == {"api_tokens"}
        if query.args:
            conditions = [str(node["Index Cond"]) for node in found if "Index Cond" in node]
            assert conditions == [f"(id = '{TOKEN}'::text)"]


@pytest.mark.parametrize(("name", "tables"), OF_ALL_USERS.items())
async def test_a_statement_that_is_about_all_users_reads_no_message(
    name: str, tables: set[str], plan_of: Callable[[Query], Any]
) -> None:
    for query in samples(BUSY)[name]:
        found = list(nodes(await plan_of(query)))
        scanned = {node["Relation Name"] for node in found if "Relation Name" in node and "Scan" in node["Node Type"]}
        assert scanned == tables


@pytest.mark.parametrize(
    ("name", "index", "most_buffers"),
    [
        ("append_message", "conversations_pkey", 90),
        ("append_batch", "messages_client_message_id", 120),
        ("append_messages", "messages_client_message_id", 90),
        ("create_conversation", "conversations_key", 60),
        ("extend_conversation", "conversations_pkey", 60),
        ("get_conversation", "conversations_pkey", 10),
        ("list_conversations", "conversations_recent", 250),
        ("load_history", "messages_pkey", 120),
        ("load_message", "messages_pkey", 10),
        ("find_token", "api_tokens_id", 10),
        ("revoke_token", "api_tokens_id", 60),
        ("read_conversation", "conversations_pkey", 10),
        ("read_conversations", "conversations_number", 250),
        ("read_messages", "messages_pkey", 120),
        ("update_conversation", "conversations_pkey", 60),
    ],
)
async def test_a_statement_uses_the_index_that_it_names_and_touches_few_pages(
    name: str, index: str, most_buffers: int, plan_of: Callable[[Query], Any]
) -> None:
    for query in samples(BUSY)[name]:
        plan = await plan_of(query)
        used = {node.get("Index Name") for node in nodes(plan)}
        # Without a key there is nothing to look up by it.
        assert index in used or (name == "create_conversation" and query.args[2] is None)
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= most_buffers


async def test_a_repeat_is_looked_up_by_its_key_and_a_message_without_one_is_not(
    plan_of: Callable[[Query], Any],
) -> None:
    appends = samples(BUSY)["append_message"]
    repeated, new, unkeyed = [{node.get("Index Name") for node in nodes(await plan_of(each))} for each in appends]
    assert repeated == new == unkeyed | {"messages_client_message_id"} != unkeyed


@pytest.mark.parametrize("ref", [BUSY, 1], ids=["by id", "by number"])
async def test_a_table_that_is_still_small_is_not_read_whole(ref: ConversationRef, database_url: str) -> None:
    """For a connection keeps the plan that is made for any arguments, and the table grows."""
    connection = await connect(database_url, **SERVER_SETTINGS)
    try:
        for statement in (*SMALL, *SETTINGS):
            await connection.execute(statement)
        whole = set()
        for name in samples(ref).keys() - OF_ALL_USERS.keys() - {"list_tokens"}:
            for query in samples(ref)[name]:
                await connection.execute(f"PREPARE sample AS {query.sql}")
                told = await connection.fetchval(
                    f"EXPLAIN (FORMAT JSON) EXECUTE sample ({', '.join(['NULL'] * len(query.args))})"
                )
                await connection.execute("DEALLOCATE sample")
                scans = [each for each in nodes(json.loads(told)[0]["Plan"]) if "Seq Scan" in each["Node Type"]]
                whole |= {(name, each["Relation Name"]) for each in scans}
    finally:
        await connection.close()
    assert whole == set()


async def test_a_budget_that_is_spent_soon_is_looked_for_in_few_messages(database_url: str) -> None:
    connection = await connect(database_url, **SERVER_SETTINGS)
    try:
        for statement in SMALL[:2]:
            await connection.execute(statement)
        await connection.execute(
            """INSERT INTO chatledger.messages (user_id, conversation_id, seq, id, role, content)
               SELECT 'user-3', $1, n, gen_random_uuid(), 'user', repeat('word ', 60)
                 FROM generate_series(1, 1000) n""",
            BUSY,
        )
        seen = []
        for forward in (False, True):
            window = WINDOW | {"limit": 1_000, "forward": forward}
            query = history_queries.load_history(USER, BUSY, **window)
            plan = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query.sql}", *query.args))
            scans = [node for node in nodes(plan[0]["Plan"]) if node.get("Relation Name") == "messages"]
            seen.append(sum(node["Actual Rows"] * node["Actual Loops"] for node in scans))
    finally:
        await connection.close()
    fit, looked_at = 8_000 // 79, 8_000 // history_queries.TYPICAL_TOKENS
    assert seen == [3 * looked_at + fit] * 2


async def test_a_page_far_down_a_list_costs_what_the_first_one_costs(plan_of: Callable[[Query], Any]) -> None:
    connection_pages = []
    for before in (None, (datetime(2000, 1, 1, tzinfo=UTC), BUSY)):
        filters: dict[str, Any] = NO_FILTER | {"before": before}
        plan = await plan_of(conversation_queries.list_conversations(USER, 21, **filters))
        connection_pages.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        assert not any(node["Node Type"] == "Sort" and node.get("Actual Rows", 0) > 21 for node in nodes(plan))
    assert connection_pages[1] <= connection_pages[0]
