"""What an import does about branches: nothing stored is rewritten, nothing of a source is missing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger.storage.records import StoredPath
from chatledger.transfer.plan import Lookup, Plan, make_plan
from chatledger.transfer.preparation import prepare
from chatledger.transfer.records import ReadConversation, ReadMessage

START = datetime(2024, 1, 1, tzinfo=UTC)
NOW = START + timedelta(days=365)


def said(name: str, *, minute: float | None = 0, role: str = "user") -> ReadMessage:
    at = None if minute is None else START + timedelta(minutes=minute)
    return ReadMessage(role, f"text of {name}", external_id=name, created_at=at)


def source(active: str, *branches: str, **facts: object) -> ReadConversation:
    """A conversation whose messages are letters: `source("abc", "abd")` has two branches that part after b."""
    made = {name: said(name, minute=ord(name[0])) for name in "".join((active, *branches))}
    paths = [[made[name] for name in path] for path in (active, *branches)]
    return ReadConversation(place="element 1", external_id="c", messages=paths[0], branches=paths[1:], **facts)  # type: ignore[arg-type]


class Store:
    """Conversations by their keys, each as the identities of its messages."""

    def __init__(self) -> None:
        self.paths: dict[Lookup, StoredPath] = {}

    def take(self, read: ReadConversation) -> Plan:
        """As the importer does: look up what a plan wants until it wants nothing more, then carry it out."""
        prepared, known = prepare(read, "chatgpt"), dict[Lookup, StoredPath | None]()
        while (plan := make_plan(prepared, known, NOW)).wanted:
            known |= {lookup: self.paths.get(lookup) for lookup in plan.wanted}
        for new in plan.new:
            assert new.key is not None
            assert new.key not in self.paths
            self.paths[new.key] = StoredPath(new.id, 1, new.key, [m.client_message_id for m in new.messages], None)
        by_id = {path.id: path for path in self.paths.values()}
        for grown in plan.grown:
            path = by_id[grown.conversation_id]
            assert len(path.identities) == grown.last_seq
            path.identities.extend(message.client_message_id for message in grown.messages)
        return plan

    def texts(self) -> dict[Lookup, str]:
        return {key: "".join(str(identity) for identity in path.identities) for key, path in self.paths.items()}


def test_the_active_branch_becomes_the_conversation_and_the_others_forks() -> None:
    store = Store()
    plan = store.take(source("abc", "abd", "xy"))
    assert store.texts() == {"chatgpt:c": "abc", "chatgpt:c#d": "abd", "chatgpt:c#x": "xy"}
    main, *forks = plan.new
    assert main.forked_from is None
    assert [(fork.forked_from and (fork.forked_from.conversation_id, fork.forked_from.seq)) for fork in forks] == [
        (main.id, 2),
        (main.id, 0),
    ]


def test_the_same_source_again_changes_nothing() -> None:
    store = Store()
    store.take(source("abc", "abd", "abde"))
    plan = store.take(source("abc", "abd", "abde"))
    assert (plan.new, plan.grown, plan.messages) == ([], [], 0)


def test_what_has_grown_is_lengthened_and_only_by_what_is_new() -> None:
    store = Store()
    store.take(source("ab", "ac"))
    plan = store.take(source("abde", "acf"))
    assert store.texts() == {"chatgpt:c": "abde", "chatgpt:c#c": "acf"}
    assert (plan.new, plan.messages) == ([], 3)


def test_another_active_branch_finds_the_fork_that_it_was() -> None:
    store = Store()
    store.take(source("abc", "abd"))
    plan = store.take(source("abde", "abc"))
    assert store.texts() == {"chatgpt:c": "abc", "chatgpt:c#d": "abde"}
    assert (plan.new, plan.active_is_fork, plan.messages) == ([], True, 1)


def test_an_active_branch_that_left_what_is_stored_becomes_a_fork_and_is_told() -> None:
    store = Store()
    store.take(source("abc"))
    plan = store.take(source("abd", "abc"))
    assert store.texts() == {"chatgpt:c": "abc", "chatgpt:c#d": "abd"}
    assert plan.active_is_fork


def test_what_its_owner_wrote_behind_an_import_stays_and_the_source_goes_on_in_a_fork() -> None:
    store = Store()
    store.take(source("ab"))
    store.paths["chatgpt:c"].identities.append(None)
    plan = store.take(source("abcd"))
    assert store.texts() == {"chatgpt:c": "abNone", "chatgpt:c#c": "abcd"}
    assert plan.active_is_fork
    store.take(source("abcde"))
    assert store.texts()["chatgpt:c#c"] == "abcde"


def test_the_order_of_branches_does_not_matter_when_they_come_again() -> None:
    store = Store()
    store.take(source("ab", "acd", "ace"))
    before = store.texts()
    plan = store.take(source("ab", "ace", "acd"))
    assert store.texts() == before
    assert plan.messages == 0


def test_a_fork_whose_conversation_was_deleted_is_found_again() -> None:
    store = Store()
    store.take(source("abc", "abd"))
    del store.paths["chatgpt:c"]
    store.take(source("abc", "abde"))
    assert store.texts() == {"chatgpt:c": "abc", "chatgpt:c#d": "abde"}


def test_a_shorter_source_takes_nothing_away() -> None:
    store = Store()
    store.take(source("abc"))
    plan = store.take(source("ab"))
    assert (store.texts(), plan.messages) == ({"chatgpt:c": "abc"}, 0)


def test_times_never_run_backwards_nor_into_the_future_and_the_originals_are_kept() -> None:
    minutes = [10.0, 5.0, None, 20.0, 600_000.0, 30.0]
    read = ReadConversation(
        place="element 1",
        external_id="c",
        created_at=START,
        messages=[said(str(n), minute=minute) for n, minute in enumerate(minutes)],
    )
    (whole,) = Store().take(read).new
    told = [(message.created_at - START) / timedelta(minutes=1) for message in whole.messages]
    year = (NOW - START) / timedelta(minutes=1)
    assert told == [10, 10, 10, 20, year, year]
    kept = [message.metadata for message in whole.messages]
    assert kept[0] == kept[2] == kept[3] is None
    assert kept[1] == '{"source_created_at":"2024-01-01T00:05:00+00:00"}'
    assert kept[4] is not None
    assert kept[5] is not None
    assert (whole.created_at, whole.updated_at) == (START, NOW)


def test_a_conversation_without_any_time_has_that_of_its_import() -> None:
    read = ReadConversation(place="element 1", external_id="c", messages=[said("a", minute=None)])
    (whole,) = Store().take(read).new
    assert whole.created_at == whole.updated_at == whole.messages[0].created_at == NOW


# ---- any tree, growing in any way -----------------------------------------------------------------------------------

PARENTS = st.lists(st.integers(0, 10_000), min_size=1, max_size=14)


@st.composite
def growing_trees(draw: st.DrawFn) -> list[tuple[str, list[str]]]:
    """A tree at several moments of its growth, each as its active path and all of its paths in some order."""
    parents = draw(PARENTS)
    names = "abcdefghijklmn"
    paths = [names[0]]
    moments = []
    for place in range(len(parents)):
        if place > 0:
            paths.append(paths[parents[place] % place] + names[place])
        if place == len(parents) - 1 or draw(st.booleans()):
            leaves = [path for path in paths if not any(other != path and other.startswith(path) for other in paths)]
            order = draw(st.permutations(leaves))
            moments.append((order[0], list(order)))
    return moments


@given(moments=growing_trees())
@settings(max_examples=300, deadline=None)
def test_every_branch_is_stored_nothing_is_rewritten_and_nothing_comes_twice(
    moments: list[tuple[str, list[str]]],
) -> None:
    store = Store()
    for active, paths in moments:
        before = store.texts()
        store.take(source(active, *paths[1:]))
        after = store.texts()
        assert all(after[key].startswith(text) for key, text in before.items())
        assert all(any(text.startswith(path) for text in after.values()) for path in paths)
        assert all(any(path.startswith(text) for path in paths) for text in after.values())
        assert len(set(after.values())) == len(after)
        assert store.take(source(active, *reversed(paths[1:]))).messages == 0
