"""Our own JSONL, version 1: what `chatledger export` writes, and others may write who want everything to be kept.

A line that heads a conversation, then a line for each of its messages in order; `user export` ends with a line that
counts both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final
from uuid import UUID

from chatledger.storage.records import ForkOrigin
from chatledger.transfer.records import (
    Malformed,
    NativeFacts,
    Origin,
    Outcome,
    ReadConversation,
    ReadMessage,
    Record,
    Rejected,
)
from chatledger.transfer.times import parse_time

NAME: Final = "chatledger"
TITLE: Final = "a chatledger export"
VERSION: Final = 1


def recognises(value: Any) -> bool:
    """Whether it is a line that heads a conversation, or the last line of an export."""
    return isinstance(value, dict) and "chatledger" in value and ("conversation" in value or "end" in value)


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation for each head; one that is incomplete or not understood is rejected whole."""
    head: Record | None = None
    messages: list[Record] = []
    count = 0
    for record in records:
        value = record.value
        if not recognises(value):
            if head is None:
                yield Rejected(place=record.place, reason="stands before the head of a conversation", failed=True)
            else:
                messages.append(record)
            continue
        if head is not None:
            yield _conversation(head, messages)
        head, messages = None, []
        if not isinstance(version := value["chatledger"], int) or version > VERSION:
            yield Rejected(
                place=record.place, reason=f"of a version of the format that is not known: {VERSION} is", failed=True
            )
        elif "conversation" in value:
            head = record
            count += 1
        elif (expected := _count(value["end"])) not in (None, count):
            yield Rejected(
                place=record.place, reason=f"the export had {expected} conversations, here are {count}", failed=True
            )
    if head is not None:
        yield _conversation(head, messages)


def _conversation(head: Record, records: list[Record]) -> Outcome:
    facts = head.value["conversation"]
    if not isinstance(facts, dict):
        return Rejected(place=head.place, reason="its head is no object", failed=True)
    own_id, title = _uuid(facts.get("id")), _text(facts.get("title"))

    def rejected(place: str, reason: str) -> Rejected:
        return Rejected(place=place, reason=reason, failed=True, external_id=facts.get("id"), title=title)

    messages = []
    for seq, record in enumerate(records, 1):
        value = record.value
        if isinstance(value, Malformed):
            return rejected(record.place, value.reason)
        if not isinstance(value, dict) or not isinstance(value.get("role"), str):
            return rejected(record.place, "is no message: an object with a role")
        if value.get("seq", seq) != seq:
            return rejected(record.place, f"has seq {value['seq']} where {seq} was expected")
        messages.append(_message(value, keeps_id=own_id is not None))
    if facts.get("message_count", len(messages)) != len(messages):
        return rejected(head.place, f"has {len(messages)} of {facts['message_count']} messages: the file is incomplete")
    number = facts.get("number")
    metadata = facts["metadata"] if isinstance(facts.get("metadata"), dict) else None
    archived_at = parse_time(facts.get("archived_at"))
    return ReadConversation(
        place=head.place,
        external_id=_text(facts.get("id")) or _text(facts.get("key")),
        title=title,
        created_at=parse_time(facts.get("created_at")),
        updated_at=parse_time(facts.get("updated_at")),
        archived=archived_at is not None or facts.get("archived") is True,
        metadata=metadata or {},
        messages=messages,
        native=None
        if own_id is None
        else NativeFacts(
            id=own_id,
            number=number if isinstance(number, int) and 0 < number < 2**62 else None,
            key=_text(facts.get("key")),
            archived_at=archived_at,
            forked_from=_fork(facts.get("forked_from")),
            metadata=metadata,
        ),
    )


def _message(value: dict[str, Any], *, keeps_id: bool) -> ReadMessage:
    own_id, client_message_id = _uuid(value.get("id")), _text(value.get("client_message_id"))

    def of(field: str, kind: type) -> Any:
        return found if isinstance(found := value.get(field), kind) else None

    return ReadMessage(
        role=value["role"],
        content=of("content", str) or "",
        external_id=client_message_id or _text(value.get("id")),
        created_at=parse_time(value.get("created_at")),
        tool_calls=of("tool_calls", list),
        tool_call_id=of("tool_call_id", str),
        name=of("name", str),
        parts=of("parts", list),
        metadata=of("metadata", dict),
        id=own_id if keeps_id else None,
        client_message_id=client_message_id,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _uuid(value: Any) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _count(end: Any) -> int | None:
    count = end.get("conversations") if isinstance(end, dict) else None
    return count if isinstance(count, int) else None


def _fork(value: Any) -> ForkOrigin | None:
    if not isinstance(value, dict) or not isinstance(seq := value.get("seq"), int) or not 0 <= seq < 2**31:
        return None
    source = _uuid(value.get("conversation_id"))
    return None if source is None else ForkOrigin(source, seq)
