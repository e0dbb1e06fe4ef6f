"""Of a tree of messages every leaf becomes one branch, whatever nodes are left out or wrongly joined."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatledger.transfer.records import ReadMessage
from chatledger.transfer.times import parse_time
from chatledger.transfer.tree import MOST_BRANCHES, paths, rooted

MANY = settings(max_examples=300, deadline=None, database=None)
NODES = "abcdefghij"


def said(*ids: str, **times: int) -> dict[str, ReadMessage]:
    return {each: ReadMessage("user", each, each, parse_time(times.get(each))) for each in ids}


def branches(
    parents: dict[str, str | None], messages: dict[str, ReadMessage] | None = None, current: str | None = None
) -> tuple[str, list[str]]:
    """The active branch and the others, a letter for each message."""
    found = paths(rooted(parents, current), said(*parents) if messages is None else messages, current)

    def told(path: list[ReadMessage]) -> str:
        return "".join(message.content for message in path)

    assert [told(path) for path in found.others] == [told(path) for path in found.others]  # as often as asked for
    return told(found.active), [told(path) for path in found.others]


def parents(text: str) -> dict[str, str | None]:
    """`a b:a c:b`: c after b after a."""
    return {node: parent or None for node, _, parent in (each.partition(":") for each in text.split())}


def test_the_active_branch_ends_at_the_current_node_and_the_others_at_their_leaves() -> None:
    tree = parents("a b:a c:a d:b e:b")
    assert branches(tree, current="d") == ("abd", ["ac", "abe"])
    assert branches(tree, current="c") == ("ac", ["abd", "abe"])
    assert branches(tree, current="b") == ("ab", ["ac", "abd", "abe"])


def test_without_a_current_node_the_newest_leaf_ends_the_active_branch() -> None:
    tree = parents("a b:a c:a d:a")
    for current in (None, "lost"):
        assert branches(tree, said(*"abcd", a=9, b=7, c=8, d=6), current) == ("ac", ["ab", "ad"])
        assert branches(tree, said(*"abcd", a=9, b=7, c=8), current) == ("ad", ["ab", "ac"])
        assert branches(tree, said(*"abcd"), current) == ("ad", ["ab", "ac"])


def test_nodes_without_a_message_only_connect() -> None:
    tree = parents("root a:root x:a b:x y:b c:a")
    assert branches(tree, said(*"abc"), "y") == ("ab", ["ac"])
    assert branches(tree, said(*"abc"), "root") == ("ac", ["ab"])
    assert branches(tree, {}, "y") == ("", [])


def test_branches_that_differ_only_in_what_is_left_out_are_one() -> None:
    tree = parents("a b:a x:b y:b z:a")
    assert branches(tree, said(*"ab"), "y") == ("ab", [])
    assert branches(tree, said(*"ab"), "z") == ("a", ["ab"])


def test_parents_that_are_lost_or_circular_make_roots() -> None:
    assert branches(parents("a:lost b:a"), current="b") == ("ab", [])
    assert branches(parents("a:a b:a"), current="b") == ("ab", [])
    assert branches(parents("a:b b:c c:a"), current="c") == ("bac", [])
    assert branches(parents("a:b b:a c d:c"), current="d") == ("cd", ["ba"])
    assert branches(parents("a:lost b:lost")) == ("b", ["a"])


def test_without_any_parent_the_order_of_the_source_is_the_only_branch() -> None:
    assert branches(parents("a b c")) == ("abc", [])
    assert branches(parents("a x c"), said(*"ac")) == ("ac", [])
    assert branches({}) == ("", [])


TREES = st.dictionaries(st.sampled_from(NODES), st.none() | st.sampled_from(NODES + "?"), max_size=len(NODES))
CURRENT = st.none() | st.sampled_from(NODES + "?")


@MANY
@given(TREES, CURRENT)
def test_rooting_keeps_every_node_after_its_parent(tree: dict[str, str | None], current: str | None) -> None:
    found = rooted(tree, current)
    assert found.keys() == tree.keys()
    seen: set[str] = set()
    for node, parent in found.items():
        assert parent is None or parent in seen
        seen.add(node)
    if any(tree.values()):
        changed = {node for node, parent in found.items() if parent != tree[node]}
        assert all(found[node] is None for node in changed)
        for node in changed:  # each is needed: its parent is lost, or is reached from it
            above = tree[node]
            walked = set()
            while above in tree and above != node and above not in walked:
                walked.add(above)
                above = tree[above]
            assert above not in tree or above == node


@MANY
@example({"a": None, "b": "a", "c": "a"}, frozenset("abc"), "a")
@given(TREES, st.frozensets(st.sampled_from(NODES)), CURRENT)
def test_every_leaf_ends_exactly_one_branch(
    tree: dict[str, str | None], seen: frozenset[str], current: str | None
) -> None:
    whole = rooted(tree, current)

    def walk(node: str | None) -> str:
        path = ""
        while node is not None:
            path, node = (node if node in seen else "") + path, whole[node]
        return path

    walks = {walk(node) for node in whole} - {""}
    ends = {each for each in walks if not any(other != each and other.startswith(each) for other in walks)}
    active, others = branches(tree, {node: said(node)[node] for node in tree if node in seen}, current)
    wanted = walk(current) if current in tree else ""
    assert active == wanted if wanted else active in ends or not ends
    assert sorted(others) == sorted(ends - {active})
    order = list(tree)
    assert [order.index(path[-1]) for path in others] == sorted(order.index(path[-1]) for path in others)


def test_beyond_a_thousand_branches_they_are_counted() -> None:
    tree: dict[str, str | None] = {"root": None} | {str(n): "root" for n in range(MOST_BRANCHES + 8)}
    found = paths(rooted(tree), said(*tree), "5")
    assert (len(list(found.others)), found.beyond) == (MOST_BRANCHES, 7)
    assert [path[-1].content for path in found.others][4:7] == ["4", "6", "7"]


@pytest.mark.parametrize("circle", [False, True])
def test_a_hundred_thousand_messages_are_no_danger(circle: bool) -> None:
    nodes = [str(n) for n in range(100_000)]
    upward: dict[str, str | None] = dict(zip(nodes, [nodes[-1] if circle else None, *nodes], strict=False))
    for tree in (upward, dict(reversed(upward.items()))):
        found = paths(rooted(tree), said(*tree), None)
        assert (len(found.active), list(found.others), found.beyond) == (100_000, [], 0)


# ---- times ---------------------------------------------------------------------------------------------------------

AT = datetime(2024, 1, 15, 10, 0, 0, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    "value",
    [
        1705312800.25,
        1705312800250,
        "1705312800.25",
        "1705312800250",
        "2024-01-15T10:00:00.25Z",
        "2024-01-15T10:00:00.250",
        " 2024-01-15 10:00:00.250000999+00:00 ",
        "2024-01-15T15:30:00.250000+05:30",
    ],
)
def test_times_in_every_form_are_the_same_time_wherever_it_is_read(
    value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse_time(value) == AT
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert parse_time(value) == AT
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, "", "yesterday", [], {}, float("nan"), float("inf"), 1e300, 10**400, 0, -1, "9" * 400),
        *(
            "0001-01-01T00:00:00+05:00",
            "9999-12-31T23:59:59-05:00",
            "9999-12-31T00:00:00Z",
            "1969-12-31",
            "2024-13-01",
            b"2024-01-15",
        ),
    ],
)
def test_what_is_no_time_is_none(value: object) -> None:
    assert parse_time(value) is None


def test_a_date_of_eight_digits_is_a_date() -> None:
    assert parse_time("20240115") == datetime(2024, 1, 15, tzinfo=UTC)
    assert str(parse_time(1705312800)) == "2024-01-15 10:00:00+00:00"
