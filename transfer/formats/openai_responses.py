"""OpenAI's Responses API: requests, answers and lists of items, or the items themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from chatledger.transfer.blocks import identifier, read_blocks
from chatledger.transfer.chat_messages import LOOKED_AT, is_message, time_of
from chatledger.transfer.draft import Draft, conversations, first_text, small_metadata, told
from chatledger.transfer.records import Origin, Outcome, Record, Rejected
from chatledger.transfer.response_items import add_item, is_item

NAME = "openai-responses"
TITLE = "OpenAI Responses items"

# Where a document has its items, in the order in which they were said.
_LISTS = ("input", "items", "data", "output")


def recognises(value: Any) -> bool:
    """Whether it is a document of items, or one item. Messages without a `type` are items beside others only: alone
    they are taken for OpenAI's chat messages, which read the same."""
    if isinstance(value, list):
        return _holds_items(value)
    if not isinstance(value, dict):
        return False
    if is_item(value) or _has_own_block(value):
        return True
    if value.get("object") == "response":
        return isinstance(value.get("output"), list)
    if "messages" in value or "type" in value:
        return False
    holding = [value[key] for key in _LISTS if isinstance(value.get(key), list)]
    alone = [value["input"]] if isinstance(value.get("input"), list) else []
    return any(map(_holds_items, holding)) or any(inside and all(map(is_message, inside)) for inside in alone)


def _holds_items(values: list[Any]) -> bool:
    looked_at = values[:LOOKED_AT]
    return any(is_item(each) or _has_own_block(each) for each in looked_at) and all(
        is_item(each) or is_message(each) or _has_own_block(each) or _is_other_item(each) for each in looked_at
    )


def _has_own_block(value: Any) -> bool:
    """Whether it is a message with a block that only this API has."""
    if not isinstance(value, dict) or "role" not in value or "type" in value:
        return False
    content = value.get("content")
    kinds = [block.get("type") for block in content if isinstance(block, dict)] if isinstance(content, list) else []
    return any(kind in ("input_text", "output_text", "input_image", "input_file") for kind in kinds)


def _is_other_item(value: Any) -> bool:
    """Whether it may be an item of a type that is not known."""
    return isinstance(value, dict) and isinstance(value.get("type"), str) and "payload" not in value


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per record that holds items, in their order; all records that are single items are one, which
    comes last."""
    return conversations(records, _conversation, listed="items", is_single=_is_single_item, add=add_item)


def _is_single_item(value: dict[str, Any]) -> bool:
    return "type" in value or "role" in value


def _conversation(place: str, value: dict[str, Any]) -> Outcome:
    external_id, title = identifier(value.get("id")), first_text(value, "title", "name")
    holding = [value[key] for key in _LISTS if value.get(key) is not None]
    if not any(isinstance(inside, list) for inside in holding):
        return Rejected(place=place, reason="no list of items", failed=True, external_id=external_id, title=title)
    draft = Draft()
    if value.get("instructions"):
        draft.add(None, told("system", read_blocks(value["instructions"], draft.calls)))
    for inside in holding:
        if isinstance(inside, list):
            for item in inside:
                add_item(draft, item)
        else:  # the input may be a text alone
            draft.add(None, told("user", read_blocks(inside, draft.calls)))
    return draft.outcome(
        place,
        external_id=external_id,
        title=title,
        created_at=time_of(value),
        metadata=small_metadata(value, "model", "tools", "previous_response_id"),
    )
