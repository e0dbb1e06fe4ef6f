"""Codex's rollouts: JSONL, one session per file, every turn as an item for the model and again as an event for the
screen. Old files have the items without an envelope, after a header with the id of the session.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from chatledger.transfer.blocks import identifier, text_or_none, visible_text
from chatledger.transfer.draft import Draft, small_metadata
from chatledger.transfer.records import Malformed, Origin, Outcome, ReadMessage, Record
from chatledger.transfer.response_items import add_item, is_item
from chatledger.transfer.times import parse_time

NAME = "codex"
TITLE = "a Codex rollout"

_ENVELOPE = frozenset({"timestamp", "type", "payload"})
_TYPES = frozenset({"session_meta", "response_item", "event_msg", "turn_context", "compacted"})
_NO_HEADER = ("type", "role", "input", "output", "messages")
# What the program puts before the user's first words.
_NOT_SAID = ("<environment_context>", "<user_instructions>", "# AGENTS.md")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


def recognises(value: Any) -> bool:
    """Whether it is a line of a rollout. An item without an envelope is not: it could be anybody's."""
    if not isinstance(value, dict):
        return False
    if isinstance(value.get("payload"), dict) and isinstance(kind := value.get("type"), str):
        return kind in _TYPES or value.keys() == _ENVELOPE
    return _is_header(value) or value.get("record_type") == "state"


def _is_header(value: dict[str, Any]) -> bool:
    return {"id", "timestamp", "instructions"} <= value.keys() and value.keys().isdisjoint(_NO_HEADER)


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """The one conversation of the file."""
    rollout = _Rollout()
    place: str | None = None
    for record in records:
        place = place or record.place
        rollout.add(record.value)
    named = _UUID.findall(origin.name)
    if place is not None:
        yield rollout.outcome(place, named[-1] if named else None)


class _Rollout:
    """What the lines tell: the items, and the events in case there are none."""

    def __init__(self) -> None:
        self._items = Draft()
        self._events = Draft()
        self._has_items = False
        self._external_id: str | None = None
        self._metadata: dict[str, Any] = {}
        self._first_time: datetime | None = None
        self._last_time: datetime | None = None

    def add(self, value: Any) -> None:
        if not isinstance(value, dict):
            self._leave_out("malformed line" if isinstance(value, Malformed) else "not an object")
            return
        kind, payload = value.get("type"), value.get("payload")
        at = parse_time(value.get("timestamp"))
        if at is not None:
            self._first_time = self._first_time or at
            self._last_time = at
        if not isinstance(payload, dict):
            if _is_header(value):
                self._meet(value)
            elif is_item(value):
                self._item(value, at)
            elif "record_type" in value:
                self._leave_out("record type", value["record_type"])
            else:
                self._leave_out("unknown record type", kind)
        elif kind == "session_meta":
            self._meet(payload)
        elif kind == "turn_context":
            for key, found in small_metadata(payload, "cwd", "model").items():
                self._metadata.setdefault(key, found)
        elif kind == "response_item":
            self._item(payload, at)
        elif kind == "event_msg":
            self._event(payload, at)
        else:
            self._leave_out("record type", kind)

    def _meet(self, meta: dict[str, Any]) -> None:
        """The first header is the file's own; a session that goes on from another one copies the other's too."""
        if self._external_id is None:
            self._external_id = identifier(meta.get("id"))
            self._metadata.update(small_metadata(meta, "cwd", "git", "cli_version"))

    def _item(self, item: dict[str, Any], at: datetime | None) -> None:
        self._has_items = True
        if item.get("type") == "message" and item.get("role") == "user":
            content = item.get("content")
            blocks = content if isinstance(content, list) else [content]
            said = [block for block in blocks if not (visible_text(block) or "").lstrip().startswith(_NOT_SAID)]
            if not said:
                self._items.leave_out("instructions and environment")
                return
            item = {**item, "content": said}
        add_item(self._items, item, at=at)

    def _event(self, event: dict[str, Any], at: datetime | None) -> None:
        kind = event.get("type")
        text = text_or_none(event.get("text" if kind == "agent_reasoning" else "message"))
        if kind == "user_message":
            if text is not None and text.lstrip().startswith(_NOT_SAID):
                self._events.leave_out("instructions and environment")
                return
            images = event.get("images")
            parts = (
                [{"type": "input_image", "image_url": image} for image in images] if isinstance(images, list) else []
            )
            self._events.add(None, [ReadMessage("user", text or "", created_at=at, parts=parts or None)])
        elif kind == "agent_message":
            self._events.add(None, [ReadMessage("assistant", text or "", created_at=at)])
        elif kind == "agent_reasoning":
            self._events.add(None, [ReadMessage("assistant", created_at=at, parts=[event] if text else None)])
        else:
            self._events.leave_out("record type", kind)

    def _leave_out(self, reason: str, detail: Any = None) -> None:
        for draft in (self._items, self._events):
            draft.leave_out(reason, detail)

    def outcome(self, place: str, named: str | None) -> Outcome:
        """The conversation; `named` is the id in the name of the file, where no header has one."""
        return (self._items if self._has_items else self._events).outcome(
            place,
            external_id=self._external_id or named,
            created_at=self._first_time,
            updated_at=self._last_time,
            metadata=self._metadata,
        )
