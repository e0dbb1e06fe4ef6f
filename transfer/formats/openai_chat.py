"""OpenAI's chat messages: `{"messages": [...]}` as a document, a line or an element, or the messages themselves.

Many other programs write this form too: a bare message that tells nothing of its provider is taken for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from chatledger.transfer.blocks import identifier, read_blocks
from chatledger.transfer.chat_messages import (
    LOOKED_AT,
    add_message,
    is_anthropic,
    is_message,
    is_message_list,
    is_openai,
    is_single_message,
    time_of,
)
from chatledger.transfer.draft import Draft, conversations, first_text, small_metadata, told
from chatledger.transfer.records import Origin, Outcome, Record, Rejected

NAME = "openai-chat"
TITLE = "OpenAI chat messages"

_SYSTEM_KEYS = ("system", "developer", "system_prompt", "instructions")


def recognises(value: Any) -> bool:
    """Whether it is a conversation of this form or one message of it."""
    if isinstance(value, dict) and isinstance(messages := value.get("messages"), list):
        plain = "system" not in value and not str(value.get("model")).startswith("claude")
        return _is_ours(messages) and (plain or any(map(is_openai, messages[:LOOKED_AT])))
    return _is_ours(value) if isinstance(value, list) else is_message(value) and not is_anthropic(value)


def _is_ours(messages: list[Any]) -> bool:
    return is_message_list(messages) and not any(map(is_anthropic, messages[:LOOKED_AT]))


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per record that has `messages` or is a list of them, in their order; all records that are single
    messages are one, which comes last."""
    return conversations(records, _conversation, listed="messages", is_single=is_single_message, add=add_message)


def _conversation(place: str, value: dict[str, Any]) -> Outcome:
    external_id = identifier(value.get("id")) or identifier(value.get("conversation_id"))
    external_id = external_id or identifier(value.get("custom_id"))
    title = first_text(value, "title", "name")
    messages = value.get("messages")
    if not isinstance(messages, list):
        return Rejected(place=place, reason="no list of messages", failed=True, external_id=external_id, title=title)
    draft = Draft()
    for key in _SYSTEM_KEYS:
        if value.get(key):
            draft.add(None, told("system", read_blocks(value[key], draft.calls)))
            break
    for message in messages:
        add_message(draft, message)
    return draft.outcome(
        place,
        external_id=external_id,
        title=title,
        created_at=time_of(value),
        metadata=small_metadata(value, "model", "tools", "functions"),
    )
