"""The branches of a log that was gone back in, as Claude Code and Gemini CLI write it: a list of nodes of messages."""

from __future__ import annotations

from chatledger.transfer.branches import Branches
from chatledger.transfer.draft import Draft
from chatledger.transfer.records import ReadMessage
from chatledger.transfer.tree import BEYOND, MOST_BRANCHES


def settle(
    draft: Draft, messages: list[list[ReadMessage]], parents: list[int | None], *, current: int | None = None
) -> Branches:
    """Gives the draft its active branch, and returns the others in the order of their leaves, at most 1,000.

    `messages` are those of each node in the order of the log, `parents` the node above each; no node is above itself. A
    node without messages only connects. The active branch ends at `current`, else at the last leaf of the log.
    """
    above = list(parents)

    def nearest(node: int | None) -> int | None:
        while node is not None and not messages[node]:
            node = above[node]
        return node

    for node, parent in enumerate(above):
        above[node] = nearest(parent)
    inner = {above[node] for node in range(len(messages)) if messages[node]}
    leaves = [node for node in range(len(messages)) if messages[node] and node not in inner]
    active = nearest(current) if current is not None else leaves[-1] if leaves else None
    draft.messages = Branches(messages, above, ()).to(active)
    # A log that was written anew has the same messages once more, at other places.
    ids = {message.external_id for message in draft.messages if message.external_id is not None}
    others = [leaf for leaf in leaves if leaf != active and messages[leaf][-1].external_id not in ids]
    if len(others) > MOST_BRANCHES:
        draft.left_out[BEYOND] += len(others) - MOST_BRANCHES
    return Branches(messages, above, others[:MOST_BRANCHES])
