"""Messages with a `role` and a `content`, as OpenAI's and Anthropic's programs and many others write them.

A list may mix the two: what a message holds decides how it is read, whichever format its file was taken for.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from chatledger.transfer.blocks import Blocks, identifier, json_text, read_blocks, read_result, role_of
from chatledger.transfer.draft import Draft, answer, told
from chatledger.transfer.records import ReadMessage
from chatledger.transfer.times import parse_time

LOOKED_AT = 20  # chosen: messages of a list that decide whose it is
_TIME_KEYS = ("timestamp", "created_at", "create_time", "created")
# What stands beside the content of an answer: reasoning of several providers, sound, the pages that it cites.
_PART_KEYS = ("reasoning_content", "reasoning", "reasoning_details", "audio", "annotations", "images")
_ANTHROPIC_BLOCKS = frozenset({"tool_use", "tool_result", "thinking", "redacted_thinking"})
# Keys of records that have a role and a content as well and belong to somebody else.
_FOREIGN = ("seq", "uuid", "parentUuid", "sessionId", "chatledger", "payload", "stop_reason", "conversations")


def is_message_list(values: list[Any]) -> bool:
    """Whether the list holds messages, and nothing else among the first of them."""
    looked_at = values[:LOOKED_AT]
    return bool(looked_at) and all(is_message(each) for each in looked_at)


def is_single_message(record: dict[str, Any]) -> bool:
    """Whether a record is meant as one message, not as a conversation that holds some."""
    return "role" in record and "messages" not in record


def is_message(value: Any) -> bool:
    """Whether it has a role that is known, a content as a message has it, and nothing of another format."""
    return (
        isinstance(value, dict)
        and role_of(value.get("role")) is not None
        and "type" not in value
        and ("content" in value or "tool_calls" in value or "function_call" in value)
        and isinstance(value.get("content"), str | list | None)
        and not any(key in value for key in _FOREIGN)
        and not _has_block(value, lambda kind: kind.startswith(("input_", "output_")) and kind != "input_audio")
    )


def _has_block(message: dict[str, Any], wanted: Callable[[str], bool]) -> bool:
    content = message.get("content")
    kinds = (block.get("type") for block in content if isinstance(block, dict)) if isinstance(content, list) else ()
    return any(isinstance(kind, str) and wanted(kind) for kind in kinds)


def is_anthropic(message: Any) -> bool:
    return isinstance(message, dict) and not is_openai(message) and _has_block(message, _ANTHROPIC_BLOCKS.__contains__)


def is_openai(message: Any) -> bool:
    """Whether it is what Anthropic's messages never are."""
    return isinstance(message, dict) and (
        "tool_calls" in message
        or "function_call" in message
        or message.get("role") in ("system", "developer", "tool", "function")
    )


def add_message(draft: Draft, message: Any) -> None:
    """Adds what one message of this form is; what is none is counted."""
    if not isinstance(message, dict):
        draft.leave_out("not an object")
    elif role := role_of(message.get("role")):
        draft.add(identifier(message.get("id")), _messages(draft, role, message))
    else:
        draft.leave_out("unknown role", message.get("role", "none"))


def _messages(draft: Draft, role: str, message: dict[str, Any]) -> list[ReadMessage]:
    at, name = time_of(message), identifier(message.get("name"))
    if role == "tool":
        result = read_result(message, message.get("content"), draft.calls, message.get("tool_call_id"), name)
        return [answer(result, created_at=at, name=name)]
    found = read_blocks(message.get("content"), draft.calls, calling=role == "assistant")
    texts = [text for text in (found.text, message.get("refusal")) if isinstance(text, str) and text]
    parts = [*(found.parts or ()), *({key: message[key]} for key in _PART_KEYS if message.get(key))]
    made = list(found.calls or ())
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else [calls] if calls else []:
        if isinstance(call, dict):
            made.append(draft.calls.kept(call))
        else:
            parts.append({"tool_calls": call})
    legacy = message.get("function_call")
    if isinstance(legacy, dict):  # one call without an id, which a message of role `function` answers by its name
        made.append(draft.calls.made(None, legacy.get("name"), legacy.get("arguments")))
    elif legacy:
        parts.append({"function_call": json_text(legacy)})
    found = Blocks("\n\n".join(texts), parts or None, made or None, found.results)
    return told(role, found, created_at=at, name=name)


def time_of(value: dict[str, Any]) -> datetime | None:
    """When a message or a conversation was made."""
    return next((time for key in _TIME_KEYS if (time := parse_time(value.get(key)))), None)
