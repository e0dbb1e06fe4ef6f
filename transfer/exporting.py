"""A user's conversations out of the store: as our own JSONL without loss, or as Markdown for reading."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any, Final, Literal, NamedTuple

from pydantic_core import to_json

from chatledger.storage.bulk import BulkStore, ExportedConversation
from chatledger.storage.message_log import MessageLog
from chatledger.storage.records import ConversationRef, Message
from chatledger.transfer import markdown
from chatledger.transfer.formats import native

ExportFormat = Literal["jsonl", "markdown"]
_BUFFER: Final = 256 * 1024  # bytes written at once (chosen)


class ExportSummary(NamedTuple):
    """What was written. `sha256` is that of all bytes, in hexadecimal."""

    conversations: int
    messages: int
    sha256: str


async def export_conversations(
    store: MessageLog,
    user_id: str,
    write: Callable[[bytes], object],
    *,
    format: ExportFormat = "jsonl",
    conversation: ConversationRef | None = None,
    counted: bool = False,
) -> ExportSummary:
    """Write a user's conversations by number (or the one named) from one snapshot; little is in memory at a time.

    `counted` adds a last line to JSONL: how many conversations and messages there are, and the SHA-256 of all lines
    before it. `import_paths` of the JSONL into an empty store makes the same conversations again.

    Raises:
        ConversationUnavailable: the one named is not there or not the user's.
        StorageError: the database could not be read to the end; what was written is incomplete.
    """
    digest, buffer = hashlib.sha256(), bytearray()
    conversations = messages = 0
    entries = BulkStore(store).read(user_id, conversation)
    async for entry, text in _rendered(entries, format):
        if isinstance(entry, ExportedConversation):
            conversations += 1
        else:
            messages += 1
        buffer += text
        if len(buffer) >= _BUFFER:
            digest.update(buffer)
            write(bytes(buffer))
            buffer.clear()
    digest.update(buffer)
    summary = ExportSummary(conversations, messages, digest.hexdigest())
    if counted and format == "jsonl":
        buffer += to_json({"chatledger": native.VERSION, "end": summary._asdict()}) + b"\n"
    write(bytes(buffer))
    return summary


async def _rendered(
    entries: AsyncIterator[ExportedConversation | Message], format: ExportFormat
) -> AsyncIterator[tuple[ExportedConversation | Message, bytes]]:
    async for entry in entries:
        if format == "jsonl":
            line = _head(entry) if isinstance(entry, ExportedConversation) else _present(entry._asdict())
            yield entry, to_json(line) + b"\n"
        elif isinstance(entry, ExportedConversation):
            yield entry, markdown.head(entry.conversation).encode()
        else:
            yield entry, markdown.message(entry).encode()


def _head(entry: ExportedConversation) -> dict[str, Any]:
    facts = _present(asdict(entry.conversation))
    if entry.archived_at is None:
        del facts["archived"]
    else:
        facts["archived_at"] = entry.archived_at
    return {"chatledger": native.VERSION, "conversation": facts}


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
