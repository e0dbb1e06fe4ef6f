"""ShareGPT's conversations: `{"conversations": [{"from", "value"}]}` a line, as data sets for training have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from chatledger.transfer.blocks import Blocks, identifier, read_blocks, role_of
from chatledger.transfer.chat_messages import LOOKED_AT, add_message, time_of
from chatledger.transfer.draft import Draft, first_text, malformed, small_metadata, told
from chatledger.transfer.records import Origin, Outcome, Record, Rejected

NAME = "sharegpt"
TITLE = "ShareGPT conversations"

_LISTS = ("conversations", "conversation", "messages")


def recognises(value: Any) -> bool:
    """Whether it is a conversation of this form."""
    return isinstance(value, dict) and _turns(value) is not None


def _turns(value: dict[str, Any]) -> list[Any] | None:
    """The list of turns. Under `messages` only turns with `from` are of this form: others are OpenAI's."""
    for key in _LISTS:
        turns = value.get(key)
        if isinstance(turns, list) and any(_is_turn(turn, key == "conversations") for turn in turns[:LOOKED_AT]):
            return turns
    return None


def _is_turn(turn: Any, either: bool) -> bool:
    if not isinstance(turn, dict):
        return False
    if isinstance(turn.get("from"), str):
        return "value" in turn
    return either and "content" in turn and role_of(turn.get("role")) is not None


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per record, in their order."""
    for record in records:
        yield _conversation(record.place, record.value) if isinstance(record.value, dict) else malformed(record)


def _conversation(place: str, value: dict[str, Any]) -> Outcome:
    external_id, title = identifier(value.get("id")), first_text(value, "title")
    turns = _turns(value)
    if turns is None:
        turns = next((value[key] for key in _LISTS if isinstance(value.get(key), list)), None)
    if turns is None:
        return Rejected(place=place, reason="no list of turns", failed=True, external_id=external_id, title=title)
    draft = Draft()
    if value.get("system"):
        draft.add(None, told("system", read_blocks(value["system"], draft.calls)))
    for turn in turns:
        if isinstance(turn, dict) and "from" in turn:
            _add_turn(draft, turn)
        else:
            add_message(draft, turn)
    return draft.outcome(
        place,
        external_id=external_id,
        title=title,
        created_at=time_of(value),
        metadata=small_metadata(value, "model", "tools"),
    )


def _add_turn(draft: Draft, turn: dict[str, Any]) -> None:
    speaker, value = turn["from"], turn.get("value")
    if speaker in ("function_call", "tool_call"):
        found = Blocks("", calls=_calls(draft, value))
        draft.add(identifier(turn.get("id")), told("assistant", found, created_at=time_of(turn)))
        return
    role = role_of(speaker)
    if role is None:
        draft.leave_out("unknown role", speaker)
    elif role == "tool":
        add_message(draft, {**turn, "role": "tool", "content": value})
    else:
        found = read_blocks(value, draft.calls, calling=role == "assistant")
        draft.add(identifier(turn.get("id")), told(role, found, created_at=time_of(turn)))


def _calls(draft: Draft, value: Any) -> list[Any] | None:
    """The calls in a turn: `{"name", "arguments"}` or a list of them, mostly as text. Text of another kind is kept as
    the arguments of a call without a name."""
    if value is None or value == "":
        return None
    decoded = value
    if isinstance(value, str):
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            decoded = None
    calls = [each for each in (decoded if isinstance(decoded, list) else [decoded]) if isinstance(each, dict)]
    whole = len(calls) == (len(decoded) if isinstance(decoded, list) else 1)
    if not calls or not whole or not all(isinstance(each.get("name"), str) for each in calls):
        return [draft.calls.made(None, None, value)]
    return [
        draft.calls.made(each.get("id"), each["name"], each.get("arguments", each.get("parameters"))) for each in calls
    ]
