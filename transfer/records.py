"""What a reader of foreign formats makes of a file: conversations as their source has them, no limit applied yet.

Readers are pure: records in, these values out. Lengths, characters that cannot be stored, missing ids, times that run
backwards are the importer's business, the same for every format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from chatledger.storage.records import ForkOrigin


class Record(NamedTuple):
    """One JSON value of a file: an element of its array, a line of its lines, or the whole document."""

    place: str
    """Where it stands, for a report: `conversation 12`, `line 7`."""
    value: Any
    """The parsed value; an instance of `Malformed` where it is no JSON."""


class Malformed(NamedTuple):
    """Stands for a record that is no JSON."""

    reason: str


class Origin(NamedTuple):
    """The file that records come from."""

    name: str
    """Its name without folders, for formats that keep nothing better; inside an archive the entry's."""
    assets: tuple[str, ...] = ()
    """The names of the other entries of its archive, where pointers to files may lead."""


class ReadMessage(NamedTuple):
    """A message of a source. None means absent."""

    role: str
    """user, assistant, system or tool."""
    content: str = ""
    """The visible text, never trimmed. Empty only beside tool_calls or parts."""
    external_id: str | None = None
    """Its id in the source, the same in every later export and unique in the conversation; None: there is none."""
    created_at: datetime | None = None
    """When the source says that it was made, with a time zone; None: it does not say."""
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    parts: list[Any] | None = None
    metadata: dict[str, Any] | None = None
    id: UUID | None = None
    """Our own id, in our own format only."""
    client_message_id: str | None = None
    """In our own format only; elsewhere it is made of `external_id`."""


class NativeFacts(NamedTuple):
    """What only our own format knows of a conversation, so that an import of an export is the identity."""

    id: UUID
    number: int | None
    key: str | None
    archived_at: datetime | None
    forked_from: ForkOrigin | None
    metadata: dict[str, Any] | None


@dataclass(slots=True, kw_only=True)
class ReadConversation:
    """A conversation of a source."""

    place: str
    external_id: str | None = None
    """Its id in the source; None: there is none, and the importer takes a digest of the messages."""
    title: str | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    archived: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    """What else is worth keeping (model, project, working directory), small."""
    messages: list[ReadMessage]
    """The active branch, oldest first."""
    branches: Iterable[list[ReadMessage]] = ()
    """Every other branch, each from the first message to its leaf; messages that branches share are the same objects
    or have the same `external_id`. In the source's order."""
    native: NativeFacts | None = None
    """In our own format only."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What is not among the messages, by reason, such as `hidden` or `no text, call or parts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A record that is no conversation. `failed` says that it should have been one."""

    place: str
    reason: str
    failed: bool
    external_id: str | None = None
    title: str | None = None


Outcome: TypeAlias = ReadConversation | Rejected
