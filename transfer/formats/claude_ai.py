"""Claude.ai's data export, or a single conversation as its web page loads it.

The visible text of a message is that of its `content` blocks. The `text` beside them is older and mixes thinking in, so
it counts only for what a person wrote, or where there are no blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from chatledger.transfer.blocks import identifier, read_blocks, role_of, text_or_none, without_ciphertext
from chatledger.transfer.draft import EMPTY, Draft, first_text, has_substance, malformed, small_metadata
from chatledger.transfer.records import Origin, Outcome, ReadConversation, ReadMessage, Record, Rejected
from chatledger.transfer.times import parse_time
from chatledger.transfer.tree import BEYOND, paths, rooted

NAME = "claude-ai"
TITLE = "a Claude.ai export"


def recognises(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("chat_messages"), list)


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per record, in their order; one without `chat_messages` has failed."""
    for record in records:
        yield _conversation(record.place, record.value) if isinstance(record.value, dict) else malformed(record)


def _conversation(place: str, value: dict[str, Any]) -> Outcome:
    external_id = identifier(value.get("uuid"))
    title = first_text(value, "name", "title")
    sources = value.get("chat_messages")
    if not isinstance(sources, list):
        reason = "no list of chat_messages"
        return Rejected(place=place, reason=reason, failed=True, external_id=external_id, title=title)
    draft = Draft()
    parents: dict[str, str | None] = {}
    messages: dict[str, ReadMessage] = {}
    for number, source in enumerate(sources):
        if not isinstance(source, dict):
            draft.leave_out("malformed message")
            continue
        uuid = identifier(source.get("uuid"))
        if not draft.is_new(uuid):
            continue
        node = uuid or f"#{number}"
        parents[node] = identifier(source.get("parent_message_uuid"))
        message = _message(uuid, source, draft)
        if message is not None:
            messages[node] = message
    branching = any(parents.values())
    # Without parents the messages are one branch, which ends with the last of them wherever the page stood.
    current = identifier(value.get("current_leaf_message_uuid")) if branching else None
    found = paths(rooted(parents, current), messages, current)
    if found.beyond:
        draft.left_out[BEYOND] = found.beyond
    project = value.get("project")
    return ReadConversation(
        place=place,
        external_id=external_id,
        title=title,
        created_at=parse_time(value.get("created_at")),
        updated_at=parse_time(value.get("updated_at")),
        archived=value.get("is_archived") is True,
        metadata=small_metadata(value, "model")
        | small_metadata({"project": project.get("name") if isinstance(project, dict) else None}, "project")
        | ({"is_starred": True} if value.get("is_starred") is True else {}),
        messages=found.active,
        branches=found.others,
        left_out=draft.left_out,
    )


def _message(uuid: str | None, source: dict[str, Any], draft: Draft) -> ReadMessage | None:
    """What the message says; None where it is left out and counted."""
    role = role_of(source.get("sender"))
    if role is None:
        draft.leave_out("unknown role", source.get("sender"))
        return None
    content, files = source.get("content"), source.get("files") or source.get("files_v2")
    blocks = content if isinstance(content, list) else [content]
    found = read_blocks(blocks, draft.calls, answering=False)
    text = found.text
    if not text.strip() and (role == "user" or not content):
        text = text_or_none(source.get("text")) or ""
    # Calls and their results stand in one message, in their order: both stay in parts, whatever else is made of them.
    calls = []
    for number, block in enumerate(blocks):
        if role == "assistant" and isinstance(block, dict) and block.get("type") == "tool_use":
            call_id = identifier(block.get("id")) or (uuid and f"call_{uuid}_{number}")
            calls.append(draft.calls.made(call_id, block.get("name"), block.get("input")))
    message = ReadMessage(
        role=role,
        content=text,
        external_id=uuid,
        created_at=parse_time(source.get("created_at")),
        tool_calls=calls or None,
        parts=[*_listed(source.get("attachments")), *_listed(files), *(found.parts or ())] or None,
    )
    if has_substance(message):
        return message
    draft.leave_out(EMPTY)
    return None


def _listed(value: Any) -> list[Any]:
    """The attachments or files, verbatim: the text of an attachment is in its `extracted_content`."""
    return [without_ciphertext(each) for each in value if each is not None] if isinstance(value, list) else []
