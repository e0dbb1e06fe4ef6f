"""Database rows -> records. Each row's owner is compared with the caller once more before it leaves the store."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic_core import from_json

from chatledger.storage import limits
from chatledger.storage.errors import Unforeseen
from chatledger.storage.history import Cut, Trace, call_ids, cut
from chatledger.storage.records import (
    Conversation,
    ForkOrigin,
    HistoryWindow,
    Hit,
    ListedConversation,
    Message,
    Messages,
    Receipt,
)

SNIPPET_CHARS = 160  # chosen: two lines

_LONG_NUMBER = re.compile("[0-9]{16}")


def decode_json(text: str) -> Any:
    """A jsonb value as it was sent. jsonb writes 1e23 out as an integer; integers that long are never accepted."""
    return json.loads(text, parse_int=_number) if _LONG_NUMBER.search(text) else from_json(text)


def _number(digits: str) -> int | float:
    number = int(digits)
    return number if abs(number) <= limits.JSON_INTEGER else float(digits)


FOREIGN: Final = "a statement found a row of another user"


def owned(user_id: str, rows: list[Any]) -> list[Any]:
    """The rows, all of them the user's. Raises Unforeseen otherwise: a statement is wrong, and nothing leaves."""
    for row in rows:
        if row["user_id"] != user_id:
            raise Unforeseen(FOREIGN)
    return rows


def conversation(row: Any) -> Conversation:
    """From the columns of `query.CONVERSATION`."""
    origin = row["forked_from_id"]
    return Conversation(
        id=row["id"],
        number=row["number"],
        title=row["title"],
        key=row["key"],
        metadata=row["metadata"],
        message_count=row["last_seq"],
        archived=row["archived"],
        forked_from=None if origin is None else ForkOrigin(origin, row["forked_from_seq"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def listed(row: Any) -> ListedConversation:
    """A conversation and its preview."""
    return ListedConversation(conversation(row), row["preview"])


def conversation_of(head: Any) -> Conversation:
    """From the JSON of `query.HEAD`."""
    typed = {"id": UUID(head["id"]), "forked_from_id": head["forked_from_id"] and UUID(head["forked_from_id"])}
    times = {name: datetime.fromisoformat(head[name]).astimezone(UTC) for name in ("created_at", "updated_at")}
    return conversation(head | typed | times)


def whole_message(row: Any) -> Message:
    """From the columns of `query.MESSAGE`, in full detail."""
    return Message(**{field: row[field] for field in Message._fields})


def hit(row: Any) -> Hit:
    """A message that was found; its piece begins at `start`, and is a character longer where the text goes on."""
    piece = row["piece"]
    before = "\u2026" if row["start"] > 1 else ""
    after = "\u2026" if len(piece) > SNIPPET_CHARS else ""
    return Hit(
        conversation_id=row["conversation_id"],
        number=row["number"],
        title=row["title"],
        seq=row["seq"],
        role=row["role"],
        created_at=row["created_at"],
        snippet=f"{before}{piece[:SNIPPET_CHARS]}{after}",
    )


class FoundHistory(NamedTuple):
    """What the history statement answers with; messages oldest first, each with its tokens at the same place."""

    head: dict[str, Any] | None
    messages: Messages
    tokens: Sequence[int]
    around: list[Trace]

    def cut(self, *, after_seq: int, before_seq: int, forward: bool) -> Cut:
        """Where the window must be cut; there must be messages."""
        seqs, roles, _, _, calls, call_id, *_ = self.messages.columns
        traces = [
            Trace(seq, role, answered, call_ids(called))
            for seq, role, answered, called in zip(seqs, roles, call_id, calls, strict=True)
            if called is not None or role == "tool"
        ]
        edges = (seqs[0], seqs[-1])
        return cut(edges, traces + self.around, after_seq=after_seq, before_seq=before_seq, forward=forward)

    def between(self, first: int, last: int) -> FoundHistory:
        """The messages `first` to `last` only."""
        if not self.messages:
            return self
        start = self.messages.columns[0][0]
        kept = slice(max(0, first - start), max(0, last + 1 - start))
        return self._replace(messages=self.messages[kept], tokens=self.tokens[kept])


_SEQ, _CONTENT = 1, 3  # their places in a row of the history statement, which are looked up faster than names
_NO_MESSAGES: Final = Messages([()] * len(Message._fields))


def history(user_id: str, found: list[Any]) -> FoundHistory:
    """From the rows of the history statement, whose kinds come in no promised order.

    Raises:
        Unforeseen: a row is another user's.
    """
    rows = [row for row in found if row[_CONTENT] is not None]
    others = owned(user_id, [row for row in found if row[_CONTENT] is None] if len(rows) < len(found) else [])
    head = next((row["conversation"] for row in others if row["conversation"] is not None), None)
    around = [
        Trace(row["seq"], row["role"], row["tool_call_id"], call_ids(row["tool_calls"]))
        for row in others
        if row["conversation"] is None
    ]
    if not rows:
        return FoundHistory(head, _NO_MESSAGES, (), around)
    rows.sort(key=itemgetter(_SEQ))
    owners, *columns, tokens, _ = zip(*rows, strict=True)
    if set(owners) != {user_id}:
        raise Unforeseen(FOREIGN)
    return FoundHistory(head, Messages(columns), tokens, around)


def window(found: FoundHistory, place: int, left_out: tuple[int, int] | None) -> HistoryWindow:
    """All of the messages found; `place` is the seq after which an empty window lies."""
    assert found.head is not None
    last_seq = int(found.head["last_seq"])
    place = max(0, min(place, last_seq))
    first, last = place + 1, place
    if found.messages:
        first, last = found.messages.columns[0][0], found.messages.columns[0][-1]
    return HistoryWindow(
        conversation=conversation_of(found.head),
        messages=found.messages,
        omitted_before=first - 1,
        omitted_after=last_seq - last,
        estimated_tokens=sum(found.tokens),
        omitted_exchange=left_out,
    )


def receipt(row: Any, *, deduplicated: bool | None = None) -> Receipt:
    """What an append answered for one message."""
    return Receipt(
        conversation_id=row["conversation_id"],
        seq=row["seq"],
        id=row["id"],
        created_at=row["created_at"],
        deduplicated=row["deduplicated"] if deduplicated is None else deduplicated,
    )
