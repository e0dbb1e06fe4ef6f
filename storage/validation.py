"""What a value must be before it is sent to the database: pure functions that return or raise a contract's error."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple

from pydantic_core import to_json

from chatledger.storage import limits
from chatledger.storage.errors import ContentEmpty, ContentTooLong, IdempotencyConflict, InvalidArgument, TooLarge
from chatledger.storage.limits import Limits
from chatledger.storage.records import ROLES, NewMessage

# Postgres text holds neither U+0000 (SQLSTATE 22021) nor half of a surrogate pair, which UTF-8 cannot encode.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def check_text(name: str, value: str, *, max_chars: int | None = None, min_chars: int = 0) -> None:
    """Raises InvalidArgument for a length outside the bounds, in code points, or a character that cannot be stored."""
    if not _storable(value) and (found := _UNSTORABLE.search(value)):
        raise InvalidArgument(
            f"{name} holds {'U+0000' if found[0] == chr(0) else 'a lone surrogate'} at position {found.start()}, "
            "which cannot be stored"
        )
    if len(value) < min_chars or (max_chars is not None and len(value) > max_chars):
        raise InvalidArgument(f"{name} has {len(value):,} characters; it must have between {min_chars} and {max_chars}")


def _storable(value: str) -> bool:
    """Whether nothing in it is unstorable: the same in a tenth of the search's time."""
    if "\x00" in value:
        return False
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return True


def checked_json(name: str, value: Any, *, max_bytes: int) -> str:
    """`value` as compact JSON text, after making sure that Postgres can store it and give it back equal.

    Raises:
        InvalidArgument: a number or character that would not come back as it was, or a value that is not JSON.
        TooLarge: over `max_bytes` of UTF-8, or over the limits of depth and keys.
    """
    _check_json_values(name, value)
    text: bytes = to_json(value)
    if len(text) > max_bytes:
        raise TooLarge(f"{name} takes {len(text):,} bytes as JSON; the limit is {max_bytes:,}", limit=max_bytes)
    return text.decode()


def _check_json_values(name: str, value: Any) -> None:
    """A loop, not a recursion: the depth is the sender's to choose."""
    keys = 0
    stack: list[tuple[Any, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, str):
            check_text(name, item)
        elif item is None or isinstance(item, bool):
            pass
        elif isinstance(item, int):
            if abs(item) > limits.JSON_INTEGER:
                raise InvalidArgument(f"{name} holds an integer beyond 2^53; send it as a string")
        elif isinstance(item, float):
            if not isfinite(item):
                raise InvalidArgument(f"{name} holds a number beyond the range of a double; send it as a string")
        elif isinstance(item, dict | list | tuple):
            if depth > limits.JSON_DEPTH:
                raise TooLarge(f"{name} is nested deeper than {limits.JSON_DEPTH} levels", limit=limits.JSON_DEPTH)
            if isinstance(item, dict):
                keys += len(item)
                for key in item:
                    if not isinstance(key, str):
                        raise InvalidArgument(f"{name} holds a key that is not a string")
                    check_text(name, key)
            inner = item.values() if isinstance(item, dict) else item
            stack.extend((element, depth + 1) for element in inner)
        else:
            raise InvalidArgument(f"{name} holds a value that is not JSON")
    if keys > limits.JSON_KEYS:
        raise TooLarge(f"{name} has {keys:,} keys; the limit is {limits.JSON_KEYS:,}", limit=limits.JSON_KEYS)


class MessageColumns(NamedTuple):
    """A message that fulfils every limit, as the values of its columns; JSON as text."""

    role: str
    content: str
    tool_calls: str | None
    tool_call_id: str | None
    name: str | None
    parts: str | None
    metadata: str | None
    client_message_id: str | None


def checked_message(message: NewMessage, allowed: Limits, *, name: str = "") -> MessageColumns:
    """The columns of a message, all of it checked. `name` prefixes a field in a sentence, as in `messages[3].`.

    Raises:
        InvalidArgument, ContentEmpty, ContentTooLong, TooLarge: as the contract has them.
    """
    if message.role not in ROLES:
        raise InvalidArgument(f"{name}role must be one of {', '.join(ROLES)}")
    if message.role not in allowed.allowed_roles:
        raise InvalidArgument(f"{name}role must be one of {', '.join(allowed.allowed_roles)} on this server")
    content = message.content
    check_text(f"{name}content", content)
    if (not content or content.isspace()) and not message.tool_calls and not message.parts:
        raise ContentEmpty(
            f"{name}content has {len(content)} characters and no visible one; send text, or tool_calls or parts"
        )
    most = min(allowed.max_content_chars, limits.STORED_CONTENT_CHARS)
    if len(content) > most:
        raise ContentTooLong(
            f"{name}content has {len(content):,} characters; the limit is {most:,}. Nothing is truncated: "
            "split it over several messages with append_messages",
            limit=most,
            length=len(content),
        )
    for field, value, chars in (
        ("tool_call_id", message.tool_call_id, limits.TOOL_CALL_ID_CHARS),
        ("name", message.name, limits.NAME_CHARS),
        ("client_message_id", message.client_message_id, limits.CLIENT_MESSAGE_ID_CHARS),
    ):
        if value is not None:
            check_text(name + field, value, min_chars=1, max_chars=chars)

    def json_text(field: str, value: Any, kind: type, max_bytes: int) -> str | None:
        if value is None:
            return None
        if not isinstance(value, kind):
            raise InvalidArgument(f"{name}{field} must be a JSON {'array' if kind is list else 'object'}")
        return checked_json(name + field, value, max_bytes=max_bytes)

    return MessageColumns(
        role=message.role,
        content=content,
        tool_calls=json_text("tool_calls", message.tool_calls, list, limits.TOOL_CALLS_BYTES),
        tool_call_id=message.tool_call_id,
        name=message.name,
        parts=json_text("parts", message.parts, list, limits.PARTS_BYTES),
        metadata=json_text("metadata", message.metadata, dict, limits.METADATA_BYTES),
        client_message_id=message.client_message_id,
    )


def repeats_within(columns: Sequence[MessageColumns]) -> tuple[list[int], dict[int, int]]:
    """Which places of a batch hold a message of their own, and of which earlier place each other one is a repeat.

    Raises:
        IdempotencyConflict: one `client_message_id` comes with two bodies.
    """
    first_of: list[int] = []
    repeats: dict[int, int] = {}
    seen: dict[str, int] = {}
    for place, message in enumerate(columns):
        earlier = seen.get(message.client_message_id) if message.client_message_id is not None else None
        if earlier is None:
            first_of.append(place)
            if message.client_message_id is not None:
                seen[message.client_message_id] = place
        elif _body(columns[earlier]) != _body(message):
            raise IdempotencyConflict
        else:
            repeats[place] = earlier
    return first_of, repeats


def _body(message: MessageColumns) -> list[object]:
    """What makes two messages the same, as for the database: the order of an object's keys does not count."""
    texts = (message.tool_calls, message.parts, message.metadata)
    ordered = [None if text is None else json.dumps(json.loads(text), sort_keys=True) for text in texts]
    return [message.role, message.content, message.tool_call_id, message.name, *ordered]


def check_user(user_id: str) -> None:
    """Raises InvalidArgument for a user id that the users table could not hold."""
    check_text("user_id", user_id, min_chars=1, max_chars=limits.USER_ID_CHARS)


def check_title(title: str | None) -> None:
    """Raises InvalidArgument."""
    if title is not None:
        check_text("title", title, min_chars=1, max_chars=limits.TITLE_CHARS)


def check_range(name: str, value: int | None, least: int, most: int) -> None:
    """Raises InvalidArgument, which names the bounds; None is in every range."""
    if value is not None and not least <= value <= most:
        raise InvalidArgument(f"{name} must be between {least:,} and {most:,}")


def checked_metadata(value: dict[str, Any] | None) -> str | None:
    """As `checked_json`; None stays None."""
    return None if value is None else checked_json("metadata", value, max_bytes=limits.METADATA_BYTES)
