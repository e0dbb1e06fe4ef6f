"""ChatGPT's data export: `conversations.json`, its shards, or a single conversation as its web page loads it.

A conversation is a tree of nodes, `mapping`; the branch that was shown last ends at `current_node`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from chatledger.transfer.blocks import identifier, role_of, text_or_none
from chatledger.transfer.chatgpt_content import Assets, read_content
from chatledger.transfer.draft import EMPTY, Draft, has_substance, malformed, small_metadata
from chatledger.transfer.records import Origin, Outcome, ReadConversation, ReadMessage, Record, Rejected
from chatledger.transfer.times import parse_time
from chatledger.transfer.tree import BEYOND, paths, rooted

NAME = "chatgpt"
TITLE = "a ChatGPT export"

# Calls that wait for a result and are compared with its name (chosen): parallel calls are a few dozen at most.
_COMPARED = 100

Waiting = tuple[str, str, Any] | None
"""The latest call on a path that has no result: its id, its name, and the Waiting before it, which paths share."""


def recognises(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("mapping"), dict)


def read(records: Iterable[Record], origin: Origin) -> Iterator[Outcome]:
    """A conversation per record, in their order; one without `mapping` has failed."""
    assets = Assets(origin.assets)
    for record in records:
        yield _conversation(record.place, record.value, assets) if isinstance(record.value, dict) else malformed(record)


def _conversation(place: str, value: dict[str, Any], assets: Assets) -> Outcome:
    external_id = identifier(value.get("conversation_id")) or identifier(value.get("id"))
    title = text_or_none(value.get("title"))
    mapping = value.get("mapping")
    if not isinstance(mapping, dict):
        reason = "no mapping of messages"
        return Rejected(place=place, reason=reason, failed=True, external_id=external_id, title=title)
    draft = Draft()
    current = identifier(value.get("current_node"))
    tree = rooted(_parents(mapping), current)
    messages: dict[str, ReadMessage] = {}
    for node_id, node in mapping.items():
        message = _message(node_id, node, draft, assets)
        if message is not None:
            messages[node_id] = message
    _pair(tree, messages)
    found = paths(tree, messages, current)
    if found.beyond:
        draft.left_out[BEYOND] = found.beyond
    model = small_metadata({"model": value.get("default_model_slug")}, "model")
    return ReadConversation(
        place=place,
        external_id=external_id,
        title=title,
        created_at=parse_time(value.get("create_time")),
        updated_at=parse_time(value.get("update_time")),
        archived=value.get("is_archived") is True,
        metadata=model | small_metadata(value, "gizmo_id") | ({"is_starred": True} if value.get("is_starred") else {}),
        messages=found.active,
        branches=found.others,
        left_out=draft.left_out,
    )


def _parents(mapping: dict[str, Any]) -> dict[str, str | None]:
    """The parent of each node: what it names, else a node that lists it among its children."""
    listed: dict[str, str] = {}
    for node_id, node in mapping.items():
        children = node.get("children") if isinstance(node, dict) else None
        for child in children if isinstance(children, list) else ():
            if isinstance(child, str):
                listed.setdefault(child, node_id)
    parents: dict[str, str | None] = {}
    for node_id, node in mapping.items():
        named = identifier(node.get("parent")) if isinstance(node, dict) else None
        parents[node_id] = named if named in mapping else listed.get(node_id, named)
    return parents


def _message(node_id: str, node: Any, draft: Draft, assets: Assets) -> ReadMessage | None:
    """What the node says; None where it has no message, or one that is left out and counted."""
    source = node.get("message") if isinstance(node, dict) else None
    if source is None:  # the root, and nodes that only connect
        return None
    if not isinstance(source, dict):
        draft.leave_out("malformed message")
        return None
    content, about, author = (_object(source.get(key)) for key in ("content", "metadata", "author"))
    if about.get("is_visually_hidden_from_conversation") is True:
        draft.leave_out("hidden")
        return None
    if content.get("content_type") in ("user_editable_context", "model_editable_context"):
        draft.leave_out("editable context")
        return None
    role = role_of(author.get("role"))
    if role is None:
        draft.leave_out("unknown role", author.get("role"))
        return None
    external_id = identifier(source.get("id")) or node_id
    found = read_content(source.get("content"), about.get("attachments"), assets)
    message = ReadMessage(
        role=role,
        content=found.text,
        external_id=external_id,
        created_at=parse_time(source.get("create_time")),
        name=text_or_none(author.get("name")),
        parts=found.parts or None,
        metadata=small_metadata({"model": about.get("model_slug"), "files": found.files}, "model", "files") or None,
    )
    recipient = text_or_none(source.get("recipient"))
    if role == "assistant" and recipient not in (None, "all"):
        function = {"name": recipient, "arguments": found.text}
        call = {"id": f"call_{external_id}", "type": "function", "function": function}
        message = message._replace(content="", tool_calls=[call])
    if not has_substance(message):
        draft.leave_out(EMPTY)
        return None
    return message if draft.is_new(external_id) else None


def _pair(tree: dict[str, str | None], messages: dict[str, ReadMessage]) -> None:
    """Gives each result the id of the call that it answers: the nearest before it on its path that has no result yet,
    one of its name if there is one. The source pairs them by nothing else."""
    waiting: dict[str, Waiting] = {}
    for node_id, parent in tree.items():
        open_calls = None if parent is None else waiting[parent]
        message = messages.get(node_id)
        if message is not None and message.tool_calls:
            call = message.tool_calls[0]
            open_calls = (call["id"], call["function"]["name"], open_calls)
        elif message is not None and message.role == "tool" and open_calls is not None:
            call_id, open_calls = _answered(open_calls, message.name)
            messages[node_id] = message._replace(tool_call_id=call_id)
        waiting[node_id] = open_calls


def _answered(open_calls: tuple[str, str, Any], name: str | None) -> tuple[str, Waiting]:
    """The call that a result of this name answers, and those that still wait."""
    later: list[tuple[str, str]] = []
    rest: Waiting = open_calls
    while rest is not None and len(later) < _COMPARED:
        call_id, called, rest = rest
        if called == name or (name and called.startswith(f"{name}.")):
            for each in reversed(later):
                rest = (*each, rest)
            return call_id, rest
        later.append((call_id, called))
    return open_calls[0], open_calls[2]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
