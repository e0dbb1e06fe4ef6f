"""Nothing of another user: probes dealt from what the server offers, and the fence that stops them, removed on purpose.

The same requests are made where the other user has rows and where there is no such user, and answered byte for byte
alike. `uv run python -m tests.probes` asks 20,000 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from mcp.types import PromptArgument

from chatledger.server.app import make_server
from chatledger.server.identity import local_user
from chatledger.storage import ConversationStore
from tests.dealer import Dealer, Hand, Probe, UnknownTarget
from tests.owner_predicates import (
    Ledger,
    Question,
    WatchedDatabase,
    WatchedStore,
    mutants,
    of_probe,
    of_the_store,
    small_search,
)
from tests.probes import Inquiry, ask, inquire
from tests.test_queries import OF_ALL_USERS, OF_ANY_USER, samples
from tests.two_worlds import FIRST_NUMBER, Worlds, opened, two_databases

AT_RANDOM = 300  # in each era; the long form asks 20,000


@pytest.fixture(scope="module")
def urls(postgres_url: str, template: str) -> Iterator[tuple[str, str]]:
    with two_databases(postgres_url, template) as made:
        yield made


async def test_every_argument_of_everything_offered_tells_nothing_of_another_user(
    urls: tuple[str, str], era: str
) -> None:
    async with opened(urls, era) as worlds:
        chance = Random(7)
        dealer = await Dealer.of(worlds.both.client, worlds.owner, chance)
        inquiry = Inquiry(worlds, chance)
        schemas = {tool.name: tool.input_schema for tool in dealer.tools}
        probes = list(dealer.each(2))
        for probe in probes:
            if probe.method == "tools/call":
                jsonschema.validate(probe.arguments, schemas[probe.name])
        for start in range(0, len(probes), 5):
            await inquiry.block(probes[start : start + 5])
    assert inquiry.found == []
    assert inquiry.asked == len(probes) > 150


async def test_probes_at_random_find_nothing_foreign(urls: tuple[str, str], era: str) -> None:
    async with opened(urls, era) as worlds:
        inquiry = await inquire(worlds, AT_RANDOM, seed=5)
    assert inquiry.found == []
    assert inquiry.asked == AT_RANDOM


async def test_a_tool_an_argument_or_a_template_that_no_card_is_for_fails(urls: tuple[str, str]) -> None:
    async with opened(urls, "auto") as worlds:
        dealer = await Dealer.of(worlds.both.client, worlds.owner, Random(1))
    tool = dealer.tools[-1]
    strange = {"type": "object", "properties": {"conversation_id": {}, "folder": {}}, "required": ["folder"]}
    message = {"type": "object", "properties": {"folder": {}}, "required": ["folder"]}
    batch = {
        "type": "object",
        "properties": {"messages": {"items": {"$ref": "#/$defs/M"}}},
        "required": ["messages"],
        "$defs": {"M": message},
    }
    template = dealer.templates[0].model_copy(update={"uri_template": "conversation://{conversation_id}/{folder}"})
    prompt = dealer.prompts[0].model_copy(update={"arguments": [PromptArgument(name="folder")]})
    for more in (
        {"tools": [tool.model_copy(update={"input_schema": strange})]},
        {"tools": [tool.model_copy(update={"input_schema": batch})]},
        {"templates": [template]},
        {"prompts": [prompt]},
    ):
        offered: dict[str, list[Any]] = {"tools": [], "templates": [], "prompts": []} | more
        with pytest.raises(UnknownTarget, match="folder"):
            list(Dealer(Hand(worlds.owner, Random(1)), **offered).each(1))


async def test_whatever_the_server_answers_is_probed_or_says_nothing_of_rows(store: ConversationStore) -> None:
    server = make_server(store, local_user("alice"))
    probed = {"tools/list", "tools/call", "resources/list", "resources/templates/list", "resources/read"}
    probed |= {"prompts/list", "prompts/get", "completion/complete"}
    answered = set(server._lowlevel_server._request_handlers)
    assert answered - probed == {"ping", "server/discover"}
    assert probed <= answered


async def test_a_leak_of_each_kind_is_found(urls: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = Probe("tools/call", "load_history", {"conversation_id": str(FIRST_NUMBER)})
    found = []
    async with opened(urls, "auto") as worlds:

        async def as_the_owner(client: Any, probe: Probe) -> tuple[str, bool]:
            return await ask(worlds.owners_client if client is worlds.both.client else client, probe)

        async def with_a_hint(client: Any, probe: Probe) -> tuple[str, bool]:
            answer, refused = await ask(client, probe)
            return f"{answer}{' ' * (probe == foreign)}", refused

        async def astray(client: Any, probe: Probe) -> tuple[str, bool]:
            await worlds.both.watch.execute("UPDATE chatledger.users SET last_number = last_number + 1")
            return await ask(client, probe)

        for leaking in (as_the_owner, with_a_hint, astray):
            monkeypatch.setattr("tests.probes.ask", leaking)
            inquiry = Inquiry(worlds, Random(1))
            await inquiry.block([foreign])
            found.append(inquiry.found)
    assert "another answer than where there is no owner" in found[0][0]
    assert "foreign and absent are told apart" in found[1][0]
    assert "rows of the owner were changed" in found[2][0]


# Comparisons that may go one at a time, and why: each stands beside another fence. Without all comparisons of its
# statement a mutant must be noticed all the same, but for the two that have an empty line here.
_LOCK_AND_KEY = "the user's row, which is locked first, is joined with the conversation, which names the user once more"
_OF_THE_KEY = "the row that conflicts is the user's by its key; distributed Postgres wants to be told the shard"
_SENT_ALONE = "what it would store breaks a key: the batch is refused whole, and each message goes alone"
_NUMBER = "(SELECT id FROM chatledger.conversations WHERE user_id = $1 AND number = $2::bigint)"
_LOCKED = "SELECT id FROM chatledger.users WHERE [id = $1] FOR NO KEY UPDATE"
_COUNTED = "what a user has is counted before the user's row is deleted, which is joined with it: each names the user"
_OLD = "AND c.updated_at < $2::timestamptz"
SECOND_FENCES: dict[tuple[str, str], str] = {
    ("create_conversation", "WHERE [u.id = $1] AND ($6::bigint IS NULL OR u.conversation_count < $6)"): _OF_THE_KEY,
    ("add_conversations", "WHERE [u.id = $1] AND ($ IS NULL OR u.conversation_count + $ <= $)"): _OF_THE_KEY,
    ("add_conversations", ""): _OF_THE_KEY,
    ("delete_conversation", _LOCKED): _LOCK_AND_KEY,
    ("delete_conversation", "WHERE [c.user_id = $1] AND c.user_id = o.id AND c.id = $2::uuid"): _LOCK_AND_KEY,
    ("delete_conversation", "WHERE c.user_id = $1 AND [c.user_id = o.id] AND c.id = $2::uuid"): _LOCK_AND_KEY,
    ("delete_conversation", f"WHERE [c.user_id = $1] AND c.user_id = o.id AND c.id = {_NUMBER}"): _LOCK_AND_KEY,
    ("delete_conversation", f"WHERE c.user_id = $1 AND [c.user_id = o.id] AND c.id = {_NUMBER}"): _LOCK_AND_KEY,
    ("delete_old", _LOCKED): _LOCK_AND_KEY,
    ("delete_old", f"WHERE [c.user_id = $1] AND c.user_id = o.id {_OLD}"): _LOCK_AND_KEY,
    ("delete_old", f"WHERE c.user_id = $1 AND [c.user_id = o.id] {_OLD}"): _LOCK_AND_KEY,
    ("fork_conversation", _LOCKED): _LOCK_AND_KEY,
    ("erase_user", "WHERE [u.id = $1] GROUP BY u.id"): _COUNTED,
    ("erase_user", "DELETE FROM chatledger.users u USING had h WHERE [u.id = $1] AND u.id = h.user_id"): _COUNTED,
    ("replay_erasure", "WHERE [u.id = $1] GROUP BY u.id"): _COUNTED,
    ("replay_erasure", "WHERE [u.id = $1] AND u.id = h.user_id AND u.created_at <= l.erased_at"): _COUNTED,
    ("append_batch", "WHERE [c.user_id = x.user_id] AND c.number = x.number::bigint))"): _SENT_ALONE,
    ("append_batch", "JOIN head h ON [h.user_id = t.user_id] AND h.id = t.conversation_id"): _SENT_ALONE,
    ("append_batch", ""): _SENT_ALONE,
}


@pytest.fixture
def urls_for_all_statements(postgres_url: str, template_of_the_test: str) -> Iterator[tuple[str, str]]:
    with two_databases(postgres_url, template_of_the_test) as made:
        yield made


async def test_no_statement_may_lose_its_owner_predicate_unnoticed(
    urls_for_all_statements: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger()
    ledger.watch(monkeypatch)
    small_search(monkeypatch)
    passed: dict[tuple[str, str], bool] = {}
    async with opened(urls_for_all_statements, "auto", open_store=WatchedStore) as worlds:
        battery = await make_battery(worlds)
        for text, asked in battery.items():
            for mutant in mutants(text) if ledger.name_of.get(text, "ping") not in OF_ANY_USER else ():
                place = (ledger.name_of[text], mutant.line)
                if mutant.line and passed.get(place) is False:
                    continue  # another form of the statement has shown it
                passed[place] = not await noticed(worlds, text, mutant.text, asked)
    assert {name for name, _ in passed} == set(samples(1)) - OF_ANY_USER - OF_ALL_USERS.keys() - {"create_token"}
    unnoticed = {place for place, unseen in passed.items() if unseen}
    assert unnoticed == SECOND_FENCES.keys()
    assert len(passed) > 120


async def make_battery(worlds: Worlds) -> dict[str, list[tuple[Question, str]]]:
    """For each text that a statement is run with, the questions that ran it, and their answers."""
    dealer = await Dealer.of(worlds.both.client, worlds.owner, Random(3))
    inquiry = Inquiry(worlds, Random(3))
    questions = list(of_the_store(worlds.owner))
    await worlds.restore()
    questions += [of_probe(await inquiry.aimed(probe)) for probe in dealer.each(2)]
    battery: dict[str, list[tuple[Question, str]]] = {}
    database = watched_database(worlds)
    for question in questions:
        database.ran.clear()
        answer, alone = await question.ask(worlds.both), await question.ask(worlds.alone)
        if not question.reads:
            await worlds.restore()
        assert inquiry.masked(answer) == inquiry.masked(alone), question.name
        for text in database.ran:
            battery.setdefault(text, []).append((question, inquiry.masked(alone)))
    return battery


async def noticed(worlds: Worlds, text: str, instead: str, asked: list[tuple[Question, str]]) -> bool:
    database = watched_database(worlds)
    inquiry = Inquiry(worlds, Random(3))
    before = await worlds.both.others()
    database.instead = {text: instead}
    try:
        for question, expected in asked:
            answer = await question.ask(worlds.both)
            if not question.reads:
                changed = await worlds.both.others() != before
                await worlds.both.restore()
                if changed:
                    return True
            if inquiry.masked(answer) != expected:
                return True
    finally:
        database.instead = {}
    return False


def watched_database(worlds: Worlds) -> WatchedDatabase:
    assert isinstance(worlds.both.store, WatchedStore)
    return worlds.both.store.database
