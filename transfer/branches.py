"""The branches of a conversation whose source appends to a log and now and then goes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chatledger.transfer.records import ReadMessage


class Branches:
    """Every branch but the active one, each made when it is asked for: a long log may have hundreds.

    `messages` are those of every node, `parents` the node above each, None for one that begins the conversation. No
    node is above itself.
    """

    def __init__(
        self, messages: Sequence[list[ReadMessage]], parents: Sequence[int | None], leaves: Sequence[int]
    ) -> None:
        self._messages = messages
        self._parents = parents
        self._leaves = leaves

    def __iter__(self) -> Iterator[list[ReadMessage]]:
        return map(self.to, self._leaves)

    def to(self, leaf: int | None) -> list[ReadMessage]:
        """The messages from the first one to this leaf."""
        path: list[int] = []
        while leaf is not None:
            path.append(leaf)
            leaf = self._parents[leaf]
        return [message for place in reversed(path) for message in self._messages[place]]
