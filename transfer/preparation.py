"""A conversation as its source has it -> one that can be stored: identities, characters, sizes, keys.

What has to be altered for that is counted, never done in silence; what cannot be stored fails the conversation whole.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from math import isfinite
from typing import Any, Final, NamedTuple
from uuid import UUID

from pydantic_core import to_json

from chatledger.storage import limits
from chatledger.storage.records import ROLES
from chatledger.transfer.records import NativeFacts, ReadConversation, ReadMessage

DEPTH: Final = 100  # levels of JSON (chosen: three times what a tool takes; a source rarely has ten)
_TIME_BYTES: Final = 100  # room for the time that may be added to a message's metadata
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")

REPLACED = "characters that cannot be stored, now U+FFFD"
STRINGS = "numbers that JSON cannot carry safely, now strings"
TOO_LARGE_PARTS = "parts over the limit of 4 MiB, now a note of their size"
TOO_LARGE_METADATA = "metadata over the limit of 16 KiB, left out"
CUT_TITLE = "title over 200 characters, cut; the whole is in the metadata"
REPEATED = "repeated id"


class Unstorable(Exception):
    """The conversation cannot be stored; the text says why, and may be shown."""


class PreparedMessage(NamedTuple):
    """A message that fits its columns; JSON as text, but for the metadata, to which a time may yet be added."""

    identity: str
    """What it is recognised by when it comes again."""
    id: UUID | None
    client_message_id: str | None
    role: str
    content: str
    tool_calls: str | None
    tool_call_id: str | None
    name: str | None
    parts: str | None
    metadata: dict[str, Any] | None
    created_at: datetime | None


@dataclass(slots=True, kw_only=True)
class PreparedConversation:
    """A conversation that fits its columns, with its branches as paths of messages, the active one first."""

    place: str
    source: str
    external_id: str
    key: str | None
    native: NativeFacts | None
    title: str | None
    metadata: str | None
    archived: bool
    created_at: datetime | None
    updated_at: datetime | None
    paths: list[list[PreparedMessage]]
    left_out: Counter[str]
    altered: Counter[str]

    @property
    def lookup(self) -> str | UUID:
        """What it is found by in the store."""
        return self.native.id if self.native is not None else str(self.key)

    def fork_key(self, first_own: PreparedMessage) -> str:
        """The key of a fork, by the first message that is its own: it stays when the fork grows."""
        key = f"{self.key or f'{self.source}:{self.external_id}'}#{first_own.identity}"
        return key if len(key) <= limits.KEY_CHARS else f"{self.source}:sha256:{_digest(key)}"


def prepare(conversation: ReadConversation, source: str) -> PreparedConversation:
    """Raises Unstorable."""
    return _Preparation(conversation, source).done()


@dataclass
class _Preparation:
    read: ReadConversation
    source: str
    altered: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    known: dict[str | int, PreparedMessage | None] = field(default_factory=dict)

    def done(self) -> PreparedConversation:
        read = self.read
        self.left_out = Counter(read.left_out)
        active = self.path(read.messages)
        branches = [self.path(branch) for branch in read.branches]
        external_id = self.text(read.external_id or "") or _digest(
            json.dumps([read.title, [message.identity for message in active]])
        )
        title = self.text(read.title or "")
        return PreparedConversation(
            place=read.place,
            source=self.source,
            external_id=external_id,
            key=read.native.key if read.native else _key(self.source, external_id),
            native=read.native,
            title=self.title(title),
            metadata=self.metadata(external_id, title),
            archived=read.archived,
            created_at=read.created_at,
            updated_at=read.updated_at,
            paths=[path for path in (active, *branches) if path] or [active],
            left_out=self.left_out,
            altered=self.altered,
        )

    # ---- the conversation ------------------------------------------------------------------------------------------

    def title(self, title: str) -> str | None:
        if self.read.native is None and not title.strip():
            return None
        if len(title) > limits.TITLE_CHARS:
            self.altered[CUT_TITLE] += 1
        return title[: limits.TITLE_CHARS] or None

    def metadata(self, external_id: str, title: str) -> str | None:
        if self.read.native is not None:
            found = self.value(self.read.native.metadata)
            if found is None:
                return None
        else:
            found = {"source": {"format": self.source, "id": external_id, **self.value(self.read.metadata)}}
            if len(title) > limits.TITLE_CHARS:
                found["source"]["title"] = title
        if len(text := to_json(found)) > limits.METADATA_BYTES:
            self.altered[TOO_LARGE_METADATA] += 1
            text = to_json({"source": {"format": self.source, "id": external_id[: limits.KEY_CHARS]}})
        return text.decode()

    # ---- messages --------------------------------------------------------------------------------------------------

    def path(self, messages: list[ReadMessage]) -> list[PreparedMessage]:
        path: list[PreparedMessage] = []
        seen: set[str] = set()
        occurrences: Counter[str] = Counter()
        for read in messages:
            name = read.external_id or id(read)
            if name not in self.known:
                self.known[name] = self.message(read, len(path) + 1, occurrences)
            prepared = self.known[name]
            if prepared is None:
                continue
            if prepared.identity in seen:
                self.left_out[REPEATED] += 1
                continue
            seen.add(prepared.identity)
            path.append(prepared)
        return path

    def message(self, read: ReadMessage, place: int, occurrences: Counter[str]) -> PreparedMessage | None:
        content = self.text(read.content)
        if len(content) > limits.STORED_CONTENT_CHARS:
            raise Unstorable(
                f"message {place} has {len(content):,} characters; the limit is {limits.STORED_CONTENT_CHARS:,}"
            )
        if not read.tool_calls and not read.parts and (not content or (content.isspace() and read.id is None)):
            self.left_out["no text, call or parts"] += 1
            return None
        if read.role not in ROLES:
            raise Unstorable(f"message {place} has a role that is none of {', '.join(ROLES)}")
        tool_calls = self.array(read.tool_calls)
        if tool_calls is not None and _stored_bytes(tool_calls) > limits.STORED_JSON_BYTES:
            raise Unstorable(f"the tool calls of message {place} take more than {limits.STORED_JSON_BYTES:,} bytes")
        message = PreparedMessage(
            identity="",
            id=read.id,
            client_message_id=read.client_message_id,
            role=read.role,
            content=content,
            tool_calls=tool_calls,
            tool_call_id=None if read.tool_call_id is None else self.text(read.tool_call_id),
            name=None if read.name is None else self.text(read.name),
            parts=self.parts(read.parts),
            metadata=self.message_metadata(read.metadata),
            created_at=read.created_at,
        )
        if read.id is not None:
            return message._replace(identity=str(read.id))
        if read.external_id:
            identity = self.text(read.external_id)
            if len(identity) > limits.CLIENT_MESSAGE_ID_CHARS:
                identity = f"sha256:{_digest(identity)}"
        else:
            body = _digest(json.dumps(message[3:9], ensure_ascii=False))
            occurrences[body] += 1  # the same words said twice are two messages
            identity = f"sha256:{body}" if occurrences[body] == 1 else f"sha256:{body}:{occurrences[body]}"
        return message._replace(identity=identity, client_message_id=identity)

    def parts(self, parts: list[Any] | None) -> str | None:
        text = self.array(parts)
        if parts is None or text is None or _stored_bytes(text) <= limits.STORED_JSON_BYTES:
            return text
        # The largest first, until the rest fits: a picture among a hundred notes does not take them with it.
        kept: list[Any] = json.loads(text)
        sizes = [_stored_bytes(to_json(part).decode()) for part in kept]
        total = sum(sizes)
        for place in sorted(range(len(kept)), key=sizes.__getitem__, reverse=True):
            if total <= limits.STORED_JSON_BYTES - 200 * len(kept):
                break
            kind = kept[place].get("type") if isinstance(kept[place], dict) else None
            kept[place] = {"type": kind if isinstance(kind, str) else "unknown", "left_out_bytes": sizes[place]}
            total -= sizes[place]
            self.altered[TOO_LARGE_PARTS] += 1
        return to_json(kept).decode()

    def message_metadata(self, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
        if metadata is None:
            return None
        found: dict[str, Any] = self.value(metadata)
        if self.read.native is None and len(to_json(found)) > limits.METADATA_BYTES - _TIME_BYTES:
            self.altered[TOO_LARGE_METADATA] += 1
            return None
        return found

    # ---- values ----------------------------------------------------------------------------------------------------

    def text(self, text: str) -> str:
        if not _UNSTORABLE.search(text):
            return text
        text, count = _UNSTORABLE.subn("\ufffd", text)
        self.altered[REPLACED] += count
        return text

    def array(self, value: list[Any] | None) -> str | None:
        return None if value is None else to_json(self.value(value)).decode()

    def value(self, value: Any, depth: int = 0) -> Any:
        """`value` with everything that Postgres or a double cannot hold replaced."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            if depth >= DEPTH:
                raise Unstorable(f"JSON in it is nested deeper than {DEPTH} levels")
            return {self.text(str(key)): self.value(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            if depth >= DEPTH:
                raise Unstorable(f"JSON in it is nested deeper than {DEPTH} levels")
            return [self.value(inner, depth + 1) for inner in value]
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int) and abs(value) <= limits.JSON_INTEGER:
            return value
        if isinstance(value, float) and isfinite(value):
            return value
        self.altered[STRINGS] += 1
        return str(value)


def _key(source: str, external_id: str) -> str:
    key = f"{source}:{external_id}"
    return key if len(key) <= limits.KEY_CHARS else f"{source}:sha256:{_digest(external_id)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _stored_bytes(text: str) -> int:
    """What the database measures: jsonb prints a space after each colon and comma, so at most so much."""
    return len(text.encode()) + text.count(":") + text.count(",") if len(text) > limits.STORED_JSON_BYTES // 6 else 0
