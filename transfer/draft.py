"""Conversations in the making: what every reader does with the messages it finds, whatever their format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from chatledger.transfer.blocks import Blocks, Calls, Result, text_or_none, without_ciphertext
from chatledger.transfer.records import Malformed, Outcome, ReadConversation, ReadMessage, Record, Rejected

EMPTY = "no text, call or parts"
_DETAILS = 20  # chosen: reasons that quote a word of the source; what comes after them is counted together
_DETAIL_CHARS = 40  # chosen: names of record types have up to 25
_DEFINITION_BYTES = 8 * 1024  # chosen: half of what the metadata of a conversation may take (storage/limits.py)


class Draft:
    """The messages so far, in the order of `add`, and what was left out, by reason."""

    def __init__(self) -> None:
        self.messages: list[ReadMessage] = []
        self.left_out: Counter[str] = Counter()
        self.calls = Calls()
        self._ids: set[str] = set()

    def leave_out(self, reason: str, detail: Any = None) -> None:
        """Counts one record. `detail` is the source's own word for it, as far as it is one."""
        if detail is not None:
            known = f"{reason}: {str(detail)[:_DETAIL_CHARS] if isinstance(detail, str | int) else 'not a name'}"
            quoted = sum(1 for each in self.left_out if ": " in each)
            reason = known if known in self.left_out or quoted < _DETAILS else f"{reason}: other"
        self.left_out[reason] += 1

    def is_new(self, record_id: str | None) -> bool:
        """Whether the source's record is the first with its id; one that is not is counted."""
        if record_id is None:
            return True
        if record_id in self._ids:
            self.leave_out("repeated id")
            return False
        self._ids.add(record_id)
        return True

    def add(self, record_id: str | None, messages: Iterable[ReadMessage]) -> None:
        """The messages of one record of the source, which share its id: the first has it, the others `id#1`, `id#2`."""
        if not self.is_new(record_id):
            return
        told = [message for message in messages if has_substance(message)]
        if not told:
            self.leave_out(EMPTY)
        self.messages += numbered(record_id, told)

    def outcome(self, place: str, **fields: Any) -> Outcome:
        """The conversation, with these fields of ReadConversation; rejected, but no failure, if it has no message."""
        if self.messages:
            return ReadConversation(place=place, messages=self.messages, left_out=self.left_out, **fields)
        return without_messages(place, self.left_out, fields.get("external_id"), fields.get("title"))


def has_substance(message: ReadMessage) -> bool:
    """Whether there is anything to store: the storage refuses a message without it."""
    return bool(message.tool_calls or message.parts or message.content.strip())


def numbered(record_id: str | None, messages: Iterable[ReadMessage]) -> Iterator[ReadMessage]:
    """The messages of one record with ids made of its id; without one they have none."""
    for place, message in enumerate(messages):
        yield (
            message
            if record_id is None
            else message._replace(external_id=f"{record_id}#{place}" if place else record_id)
        )


def without_messages(place: str, left_out: Counter[str], external_id: str | None, title: str | None) -> Rejected:
    """What a conversation without any message is."""
    why = ", ".join(
        f"{count} × {reason}" for reason, count in left_out.most_common(5)
    )  # chosen: enough to recognise it
    reason = f"it has no messages ({why})" if why else "it has no messages"
    return Rejected(place=place, reason=reason, failed=False, external_id=external_id, title=title)


def malformed(record: Record) -> Rejected:
    """A record that should have been a whole conversation and is no JSON, or no object."""
    reason = record.value.reason if isinstance(record.value, Malformed) else "it is not a JSON object"
    return Rejected(place=record.place, reason=reason, failed=True)


def conversations(
    records: Iterable[Record],
    conversation: Callable[[str, dict[str, Any]], Outcome],
    *,
    listed: str,
    is_single: Callable[[dict[str, Any]], bool],
    add: Callable[[Draft, dict[str, Any]], None],
) -> Iterator[Outcome]:
    """A conversation per record that is one, or a list as one has it under `listed`, in their order; all records that
    are single messages or items are one, which comes last."""
    loose = Draft()
    first_place: str | None = None
    for record in records:
        value = record.value
        if isinstance(value, list):
            yield conversation(record.place, {listed: value})
        elif isinstance(value, dict) and is_single(value):
            first_place = first_place or record.place
            add(loose, value)
        elif isinstance(value, dict):
            yield conversation(record.place, value)
        elif first_place is not None:
            loose.leave_out("malformed line" if isinstance(value, Malformed) else "not an object")
        else:
            yield malformed(record)
    if first_place is not None:
        yield loose.outcome(first_place)


def told(
    role: str,
    found: Blocks,
    *,
    created_at: datetime | None = None,
    name: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> list[ReadMessage]:
    """The messages that the blocks of one record make: every result a `tool` message, the rest one of `role`.

    Results come first, as they answer what was said before; an assistant's own calls come before their results.
    """
    own = ReadMessage(
        role=role,
        content=found.text,
        created_at=created_at,
        tool_calls=found.calls,
        name=name,
        parts=[without_ciphertext(part) for part in found.parts] if found.parts else None,
        metadata=metadata,
    )
    results = [answer(result, created_at=created_at) for result in found.results]
    if not results:
        return [own]
    if not has_substance(own):
        return results
    return [own, *results] if role == "assistant" else [*results, own]


def answer(result: Result, *, created_at: datetime | None = None, name: str | None = None) -> ReadMessage:
    """The `tool` message of a result."""
    return ReadMessage(
        role="tool",
        content=result.text,
        created_at=created_at,
        tool_call_id=result.call_id,
        name=name,
        parts=result.parts,
        metadata={"is_error": True} if result.is_error else None,
    )


def small_metadata(source: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Those of the keys that have a value, and one small enough to stand beside a conversation."""
    kept = {}
    for key in keys:
        value = source.get(key)
        if value is None or value in ("", [], {}):
            continue
        try:
            size = len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        except RecursionError:
            continue
        if size < _DEFINITION_BYTES:
            kept[key] = value
    return kept


def first_text(source: dict[str, Any], *keys: str) -> str | None:
    """The first of the keys' values that is a text with something to see in it."""
    return next((text for key in keys if (text := text_or_none(source.get(key)))), None)
