"""Conversations of a source into a real store: what is created, what is only lengthened, what fails by itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from chatledger.storage import ConversationStore, Limits, NewMessage
from chatledger.storage.bulk import BulkStore
from chatledger.storage.errors import InvalidArgument, Unavailable, UniqueViolation
from chatledger.storage.records import HistoryWindow
from chatledger.transfer import importing
from chatledger.transfer.importing import Importer
from chatledger.transfer.records import Outcome, ReadConversation, ReadMessage, Rejected
from chatledger.transfer.report import ImportReport

START = datetime(2024, 1, 1, tzinfo=UTC)


def said(name: str, **facts: Any) -> ReadMessage:
    told: dict[str, Any] = {
        "content": f"text of {name}",
        "external_id": name,
        "created_at": START + timedelta(hours=1),
        **facts,
    }
    return ReadMessage(told.pop("role", "user"), **told)


def read(id: str | None, *messages: ReadMessage, branches: Iterable[list[ReadMessage]] = (), **facts: Any) -> Outcome:
    told: dict[str, Any] = {"title": f"title of {id}", "created_at": START, **facts}
    return ReadConversation(place="element 1", external_id=id, messages=list(messages), branches=branches, **told)


async def take(store: ConversationStore, *outcomes: Outcome, user_id: str = "alice", **how: Any) -> ImportReport:
    importer = Importer(store, user_id, **how)
    await importer.take(outcomes, file="conversations.json", format="chatgpt")
    return importer.report


def statuses(report: ImportReport) -> list[str]:
    return [each.status for each in report.conversations]


async def loaded(store: ConversationStore, number: int, user_id: str = "alice") -> HistoryWindow:
    return await store.load_history(user_id, number, detail="full", max_tokens=200_000)


async def test_a_conversation_comes_with_its_times_its_ids_and_where_it_is_from(store: ConversationStore) -> None:
    parts = [{"type": "image", "data": "xyz"}]
    outcome = read(
        "c1", said("m1"), said("m2", role="assistant", parts=parts, metadata={"model": "m"}), metadata={"model": "g"}
    )
    report = await take(store, outcome)
    assert (statuses(report), report.totals["messages"], report.ok) == (["created"], 2, True)
    window = await loaded(store, 1)
    conversation = window.conversation
    assert (conversation.key, conversation.title) == ("chatgpt:c1", "title of c1")
    assert conversation.metadata == {"source": {"format": "chatgpt", "id": "c1", "model": "g"}}
    assert (conversation.created_at, conversation.updated_at) == (START, START + timedelta(hours=1))
    assert report.conversations[0].conversation_id == conversation.id
    assert [(each.seq, each.content, each.client_message_id) for each in window.messages] == [
        (1, "text of m1", "m1"),
        (2, "text of m2", "m2"),
    ]
    assert (window.messages[1].parts, window.messages[1].metadata) == (parts, {"model": "m"})
    assert {each.created_at for each in window.messages} == {START + timedelta(hours=1)}


async def test_importing_again_changes_nothing_and_a_grown_one_brings_what_is_new(store: ConversationStore) -> None:
    await take(store, read("c1", said("m1")), read("c2", said("m1")))
    before = await loaded(store, 1)
    report = await take(store, read("c1", said("m1")), read("c2", said("m1"), said("m2")))
    assert statuses(report) == ["unchanged", "updated"]
    assert report.totals["messages"] == 1
    assert await loaded(store, 1) == before
    assert [each.content for each in (await loaded(store, 2)).messages] == ["text of m1", "text of m2"]


async def test_an_import_is_one_users_and_another_may_have_the_same(store: ConversationStore) -> None:
    await take(store, read("c1", said("m1")))
    report = await take(store, read("c1", said("m1"), said("m2")), user_id="bob")
    assert statuses(report) == ["created"]
    assert (await loaded(store, 1)).conversation.message_count == 1
    assert (await loaded(store, 1, "bob")).conversation.message_count == 2


async def test_branches_become_forks_that_share_their_beginning(store: ConversationStore) -> None:
    first, second, other = said("m1"), said("m2"), said("m3", content="another way")
    report = await take(store, read("c1", first, second, branches=[[first, other]]))
    assert (report.totals["forks"], report.totals["messages"]) == (1, 4)
    main, fork = (await loaded(store, 1)), (await loaded(store, 2))
    assert fork.conversation.forked_from is not None
    assert (fork.conversation.forked_from.conversation_id, fork.conversation.forked_from.seq) == (
        main.conversation.id,
        1,
    )
    assert [each.content for each in fork.messages] == ["text of m1", "another way"]


async def test_a_user_may_go_on_in_an_imported_conversation_and_import_it_again(store: ConversationStore) -> None:
    await take(store, read("c1", said("m1")))
    await store.append_message("alice", 1, NewMessage(role="user", content="mine"))
    assert statuses(await take(store, read("c1", said("m1")))) == ["unchanged"]
    report = await take(store, read("c1", said("m1"), said("m2")))
    assert (statuses(report), report.totals["forks"]) == (["updated"], 1)
    assert report.conversations[0].reason is not None
    assert [each.content for each in (await loaded(store, 1)).messages] == ["text of m1", "mine"]
    assert [each.content for each in (await loaded(store, 2)).messages] == ["text of m1", "text of m2"]


async def test_a_bad_conversation_fails_alone_with_its_reason(store: ConversationStore) -> None:
    report = await take(
        store,
        read("c1", said("m1")),
        read("c2", said("m1", content="x" * 1_000_001)),
        Rejected(place="element 3", reason="has no mapping", failed=True, external_id="c3"),
        Rejected(place="element 4", reason="is no prompt", failed=False),
        read("c5"),
        read("c6", said("m1", parts=[{"type": "a"}], metadata={"a": "x" * 20_000})),
    )
    assert statuses(report) == ["created", "failed", "failed", "skipped", "skipped", "created"]
    assert report.conversations[1].reason == "message 1 has 1,000,001 characters; the limit is 1,000,000"
    assert report.conversations[5].altered == {"metadata over the limit of 16 KiB, left out": 1}
    assert not report.ok
    assert len((await store.list_conversations("alice")).conversations) == 2


async def test_what_the_database_refuses_fails_alone_too(store: ConversationStore) -> None:
    wide = [{"type": "numbers", "values": [1e308] * 20_000}]  # jsonb writes each of them out with 309 digits
    report = await take(store, read("c1", said("m1")), read("c2", said("m1", parts=wide)), read("c3", said("m1")))
    assert statuses(report) == ["created", "failed", "created"]
    assert report.conversations[1].reason == "parts is over its limit of 4,194,304 bytes of JSON"
    assert (await loaded(store, 2)).conversation.key == "chatgpt:c3"


async def test_text_is_kept_exactly_but_for_what_postgres_cannot_hold(store: ConversationStore) -> None:
    texts = ["  two spaces \r\n", "\ufeffé e\u0301", "nul \x00 and \ud800 half", "👩‍👩‍👧 \u202e"]
    messages = [said(f"m{n}", content=text) for n, text in enumerate(texts)]
    report = await take(store, read("c1", *messages, said("m9", parts=[{"a\x00": "\udfff", "n": 2**60}])))
    window = await loaded(store, 1)
    assert [each.content for each in window.messages[:4]] == [*texts[:2], "nul \ufffd and \ufffd half", texts[3]]
    assert window.messages[4].parts == [{"a\ufffd": "\ufffd", "n": str(2**60)}]
    assert sorted(report.conversations[0].altered.values()) == [1, 4]


async def test_a_long_title_is_cut_and_kept_whole_in_the_metadata(store: ConversationStore) -> None:
    await take(store, read("c1", said("m1"), title="t" * 201), read("c2", said("m1"), title=" \n "))
    first, second = (await loaded(store, 1)).conversation, (await loaded(store, 2)).conversation
    assert first.title == "t" * 200
    assert first.metadata is not None
    assert first.metadata["source"]["title"] == "t" * 201
    assert second.title is None


async def test_messages_and_conversations_without_ids_are_recognised_by_what_they_say(
    store: ConversationStore,
) -> None:
    twice = [said("a", external_id=None), said("a", external_id=None), said("b", external_id=None)]
    assert statuses(await take(store, read(None, *twice))) == ["created"]
    again = [said("a", external_id=None), said("a", external_id=None), said("b", external_id=None)]
    assert statuses(await take(store, read(None, *again))) == ["unchanged"]
    assert (await loaded(store, 1)).conversation.message_count == 3


async def test_long_ids_are_hashed_and_recognised(store: ConversationStore) -> None:
    outcome = read("c" * 500, said("m" * 500), branches=[[said("n" * 500)]])
    assert statuses(await take(store, outcome)) == ["created"]
    assert statuses(await take(store, outcome)) == ["unchanged"]


async def test_parts_over_the_limit_leave_a_note_of_their_size(store: ConversationStore) -> None:
    small, large = {"type": "text", "text": "note"}, {"type": "image", "data": "x" * 4_300_000}
    report = await take(store, read("c1", said("m1", parts=[small, large, small])))
    parts = (await loaded(store, 1)).messages[0].parts
    assert parts is not None
    assert (parts[0], parts[2], parts[1]["type"]) == (small, small, "image")
    assert parts[1]["left_out_bytes"] > 4_300_000
    assert sum(report.conversations[0].altered.values()) == 1


async def test_a_dry_run_tells_the_same_and_stores_nothing(store: ConversationStore) -> None:
    first, other = said("m1"), said("m2")
    outcomes = [read("c1", first, branches=[[other]]), read("c1", first, said("m3")), read("c2")]
    pretended = await take(store, *outcomes, dry_run=True)
    assert not (await store.list_conversations("alice")).conversations
    done = await take(store, *outcomes)
    assert statuses(pretended) == statuses(done) == ["created", "updated", "skipped"]
    assert pretended.totals == done.totals
    assert "would be added" in pretended.words()


async def test_many_small_and_one_large_conversation_go_in_over_several_steps(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH_CONVERSATIONS", 7)
    monkeypatch.setattr(importing, "BATCH_MESSAGES", 20)
    seen = []
    importer = Importer(store, "alice", progress=lambda *done: seen.append(done))
    outcomes = [read(f"c{n}", *[said(f"m{m}") for m in range(1 + n * 7 % 5)]) for n in range(40)]
    outcomes.append(read("large", *[said(f"m{m}") for m in range(5_000)]))
    await importer.take(outcomes, file="f", format="chatgpt")
    assert importer.report.totals["created"] == 41
    assert len(seen) > 5
    assert seen[-1] == (41, importer.report.totals["messages"], 1.0)
    assert [each.number for each in importer.report.conversations] == list(range(1, 42))


async def test_a_quota_is_kept_and_what_fits_is_stored(database_url: str) -> None:
    async with ConversationStore.at(database_url, Limits(max_conversations_per_user=2)) as store:
        report = await take(store, *[read(f"c{n}", said("m1")) for n in range(4)])
        assert statuses(report) == ["created", "created", "failed", "failed"]
        assert "at most 2 conversations" in str(report.conversations[2].reason)


async def test_a_plan_that_another_import_overtook_is_made_again(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_whole = BulkStore.store
    raced = False

    async def overtaken(self: BulkStore, *args: Any) -> Any:
        nonlocal raced
        if not raced:
            raced = True
            await take(store, read("c1", said("m1")))
        return await store_whole(self, *args)

    monkeypatch.setattr(BulkStore, "store", overtaken)
    assert statuses(await take(store, read("c1", said("m1"), said("m2")))) == ["updated"]
    assert (await loaded(store, 1)).conversation.message_count == 2


async def test_an_append_between_plan_and_import_sends_the_new_messages_into_a_fork(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await take(store, read("c1", said("m1")))
    store_whole = BulkStore.store
    raced = False

    async def overtaken(self: BulkStore, *args: Any) -> Any:
        nonlocal raced
        if not raced:
            raced = True
            await store.append_message("alice", 1, NewMessage(role="user", content="mine"))
        return await store_whole(self, *args)

    monkeypatch.setattr(BulkStore, "store", overtaken)
    report = await take(store, read("c1", said("m1"), said("m2")))
    assert report.totals["forks"] == 1
    assert [each.content for each in (await loaded(store, 1)).messages] == ["text of m1", "mine"]


async def test_a_key_that_stays_taken_fails_its_conversation_only(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def taken(self: BulkStore, user_id: str, new: Any, grown: Any) -> Any:
        if any(each.key == "chatgpt:c2" for each in new):
            raise UniqueViolation("taken")
        return await store_whole(self, user_id, new, grown)

    store_whole = BulkStore.store
    monkeypatch.setattr(BulkStore, "store", taken)
    report = await take(store, read("c1", said("m1")), read("c2", said("m1")), read("c3", said("m1")))
    assert statuses(report) == ["created", "failed", "created"]
    assert report.conversations[1].reason == "its id or key belongs to another conversation"


async def test_a_database_that_goes_away_ends_the_import_and_running_it_again_completes_it(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "BATCH_CONVERSATIONS", 1)
    store_whole = BulkStore.store

    async def failing(self: BulkStore, user_id: str, new: Any, grown: Any) -> Any:
        if new[0].key == "chatgpt:c2":
            raise Unavailable("the database is restarting; try again shortly")
        return await store_whole(self, user_id, new, grown)

    monkeypatch.setattr(BulkStore, "store", failing)
    outcomes = [read(f"c{n}", said("m1")) for n in range(5)]
    importer = Importer(store, "alice")
    with pytest.raises(Unavailable):
        await importer.take(outcomes, file="f", format="chatgpt")
    assert statuses(importer.report) == ["created", "created"]
    monkeypatch.undo()
    assert statuses(await take(store, *outcomes)) == ["unchanged", "unchanged", "created", "created", "created"]


async def test_a_user_id_that_cannot_be_is_refused_at_once(store: ConversationStore) -> None:
    with pytest.raises(InvalidArgument):
        Importer(store, "")


def test_a_report_says_everything_in_words_and_in_json() -> None:
    from chatledger.transfer.report import ConversationReport, FileReport

    report = ImportReport(dry_run=False)
    report.files += [
        FileReport(name="a.json", format="chatgpt", status="read"),
        FileReport(name="b.png", format=None, status="refused", reason="a PNG image"),
    ]
    told: dict[str, Any] = {"file": "a.json", "format": "chatgpt"}
    counts: dict[str, Any] = {"left_out": {"hidden": 2}, "altered": {"x": 1}}
    known = uuid4()
    report.conversations += [
        ConversationReport(
            status="created", place="element 1", title="T\x1b[31m", number=4, messages=3, forks=1, **told
        ),
        ConversationReport(status="failed", place="element 2", external_id="c2", reason="has no mapping", **told),
        ConversationReport(status="unchanged", place="element 3", conversation_id=known, **counts, **told),
    ]
    assert report.words().splitlines() == [
        "refused    b.png: a PNG image",
        'created    #4 "T\ufffd[31m": 3 messages; 1 forks',
        "failed     c2: element 2 has no mapping",
        "unchanged  element 3: left out: 2 × hidden; altered: 1 × x",
        "1 created, 1 unchanged, 1 failed; 3 messages added, 1 forks",
    ]
    facts = json.loads(json.dumps(report.facts(), default=str))
    assert facts["ok"] is False
    assert facts["totals"] == {
        "created": 1, "updated": 0, "unchanged": 1, "skipped": 0, "failed": 1, "messages": 3, "forks": 1,
    }  # fmt: skip
    assert facts["conversations"][2]["conversation_id"] == str(known)
