"""A tree of messages, as chat programs keep it once a prompt is edited or an answer regenerated -> its branches.

Everything is a loop of linear cost: sources have conversations that are thousands of messages deep, and a file may have
been made to do harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from chatledger.transfer.branches import Branches
from chatledger.transfer.records import ReadMessage

MOST_BRANCHES = 1_000  # chosen: far more than anyone has regenerated; each becomes a conversation of its own
BEYOND = f"branches beyond the first {MOST_BRANCHES:,}"

_EARLIEST = datetime.min.replace(tzinfo=UTC)


class Paths(NamedTuple):
    """The branches of one conversation. No two are equal, and none is the beginning of another but the active one."""

    active: list[ReadMessage]
    others: Branches
    """In the order of their last messages in the source, at most 1,000."""
    beyond: int
    """How many there are beyond the 1,000."""


def rooted(parents: Mapping[str, str | None], current: str | None = None) -> dict[str, str | None]:
    """The same nodes, each after its parent, None for the parent of a root.

    A node whose parent is not there is a root. A circle is cut where the walk from `current` to its ancestors comes
    back to it, elsewhere where the walk from its first node does. Where no node has a parent, each follows the one
    before it.
    """
    if all(parent is None for parent in parents.values()):
        nodes = list(parents)
        return dict(zip(nodes, [None, *nodes], strict=False))
    found: dict[str, str | None] = {}
    for start in (current, *parents):
        walked: dict[str, str | None] = {}
        node = start if start in parents else None
        while node is not None and node not in found and node not in walked:
            parent = parents[node]
            walked[node] = parent if parent in parents else None
            node = walked[node]
        if node in walked:  # a circle: the last one walked has its parent below it
            walked[next(reversed(walked))] = None
        found.update(reversed(walked.items()))
    return found


def paths(tree: Mapping[str, str | None], messages: Mapping[str, ReadMessage], current: str | None) -> Paths:
    """The branches of a tree as `rooted` gives it.

    `messages` has those of the nodes that are to be seen, in the order of the source; the other nodes only connect.
    The active branch ends at `current`, or at the nearest message above it; where there is none, at the newest message
    that nothing follows, the last of the source if times are equal. A message without a time has that of the one before
    it.
    """
    seen = {node: place for place, node in enumerate(messages)}
    nearest: dict[str, int | None] = {}  # the message of the node itself, or of what stands above it
    above: list[int | None] = [None] * len(messages)
    times = [_EARLIEST] * len(messages)
    for node, parent in tree.items():
        before = None if parent is None else nearest[parent]
        place = nearest[node] = seen.get(node, before)
        if place is not None and node in seen:
            above[place] = before
            times[place] = messages[node].created_at or (_EARLIEST if before is None else times[before])
    followed = set(above)
    leaves = [place for place in seen.values() if place not in followed]
    active = None if current is None else nearest.get(current)
    if active is None and leaves:
        active = max(reversed(leaves), key=times.__getitem__)
    others = [leaf for leaf in leaves if leaf != active]
    branches = Branches([[message] for message in messages.values()], above, others[:MOST_BRANCHES])
    return Paths(branches.to(active), branches, len(others[MOST_BRANCHES:]))
