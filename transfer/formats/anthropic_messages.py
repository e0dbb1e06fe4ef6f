"""Anthropic's Messages API: requests `{system, messages}`, answers, pairs of both, or the messages themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from chatledger.transfer.blocks import identifier, read_blocks
from chatledger.transfer.chat_messages import (
    LOOKED_AT,
    add_message,
    is_anthropic,
    is_message_list,
    is_openai,
    is_single_message,
    time_of,
)
from chatledger.transfer.draft import Draft, conversations, first_text, small_metadata, told
from chatledger.transfer.records import Origin, Outcome, Record, Rejected

NAME = "anthropic-messages"
TITLE = "Anthropic messages"


def recognises(value: Any) -> bool:
    """Whether it is a conversation of this form or one message of it.

    A request whose blocks do not tell is told by its `system`, which OpenAI has among the messages, or by its model.
    """
    if isinstance(value, list):
        return is_message_list(value) and any(map(is_anthropic, value[:LOOKED_AT]))
    if not isinstance(value, dict):
        return False
    if isinstance(messages := value.get("messages"), list):
        if not is_message_list(messages):
            return False
        if any(map(is_anthropic, messages[:LOOKED_AT])):
            return True
        claimed = "system" in value or str(value.get("model")).startswith("claude")
        return claimed and not any(map(is_openai, messages[:LOOKED_AT]))
    if _is_pair(value):
        return isinstance(value["request"]["messages"], list)
    return _is_answer(value) or (is_message_list([value]) and is_anthropic(value))


def _is_pair(value: dict[str, Any]) -> bool:
    request, response = value.get("request"), value.get("response")
    return isinstance(request, dict) and "messages" in request and isinstance(response, dict) and _is_answer(response)


def _is_answer(value: dict[str, Any]) -> bool:
    """Whether it is what the API answers: a message with the reason why it ends."""
    return value.get("type") == "message" and isinstance(value.get("content"), list) and "stop_reason" in value


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per record that has `messages` or is a list of them, in their order; all records that are single
    messages are one, which comes last."""
    return conversations(records, _conversation, listed="messages", is_single=is_single_message, add=add_message)


def _conversation(place: str, value: dict[str, Any]) -> Outcome:
    request, response = value, None
    if isinstance(value.get("request"), dict) and "messages" not in value:
        request, response = value["request"], value.get("response")
    external_id = identifier(value.get("id")) or identifier(value.get("conversation_id"))
    title = first_text(value, "title", "name")
    messages = request.get("messages")
    if not isinstance(messages, list):
        return Rejected(place=place, reason="no list of messages", failed=True, external_id=external_id, title=title)
    draft = Draft()
    if request.get("system"):
        draft.add(None, told("system", read_blocks(request["system"], draft.calls)))
    for message in messages:
        add_message(draft, message)
    if response is not None:
        add_message(draft, response)
    return draft.outcome(
        place,
        external_id=external_id,
        title=title,
        created_at=time_of(value),
        metadata=small_metadata(request, "model", "tools"),
    )
